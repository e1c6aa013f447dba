//! The ASOF join: for each left row, the one right row that was current at the left row's time.

mod choice;
mod exec;
mod gather;
mod history;
pub(crate) mod kernels;
mod merge;
mod node;
mod ordinal;
mod planner;
mod spec;
mod stream;

pub(crate) use choice::as_column;
pub(crate) use node::AsofJoin;
pub(crate) use ordinal::{is_instant, is_ordinal};
pub(crate) use planner::AsofExtensionPlanner;
pub(crate) use spec::{AsofSpec, KnownAt, MatchOp, Reach};
