//! Reading the latest values: for each row of an input the entity it names, or every entity there is.
//!
//! `LookupExec` asks the store once per input batch, keeps the order of its input and its partitions, and holds one
//! batch and its answer; look-ups over look-ups whose keys are known at the start are read for together. `DirectLookup`
//! answers listed keys without any plan. `LatestScanExec` streams what is being served. All fix "now" when they start,
//! so one query sees one moment; which of an entity's rows that moment serves is decided in `answer`, apart from streams
//! and I/O.

mod answer;
mod columns;
mod direct;
mod level;
mod logical;
mod lookup_exec;
mod planner;
mod scan_exec;

pub(crate) use answer::Missing;
pub(crate) use columns::latest_schema;
pub(crate) use direct::DirectLookup;
pub(crate) use level::parts;
pub(crate) use logical::{LookupNode, LookupOutput, LookupRequest};
pub(crate) use lookup_exec::{LookupExec, Output};
pub(crate) use planner::LookupPlanner;
pub(crate) use scan_exec::LatestScanExec;
