//! Reading the latest values: for each row of an input the entity it names, or every entity there is.
//!
//! `LookupExec` asks the store once per input batch, keeps the order of its input and its partitions, and holds one
//! batch and its answer. `LatestScanExec` streams what is being served. Both fix "now" when they start, so one query
//! sees one moment; which of an entity's rows that moment serves is decided in `answer`, apart from streams and I/O.

mod answer;
mod columns;
mod logical;
mod lookup_exec;
mod planner;
mod scan_exec;

pub(crate) use answer::Missing;
pub(crate) use columns::latest_schema;
pub(crate) use logical::{LookupNode, LookupOutput, LookupRequest};
pub(crate) use lookup_exec::{LookupExec, Output};
pub(crate) use planner::LookupPlanner;
pub(crate) use scan_exec::LatestScanExec;
