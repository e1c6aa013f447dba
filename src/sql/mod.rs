//! Text to plan: statements, point-in-time joins, look-ups, and the tables they name.

mod admission;
mod asof;
mod bind;
mod bulk;
mod catalog;
mod compiled;
mod ddl;
mod definition;
mod engine;
mod feature_group_table;
mod insert;
mod latest;
mod output;
mod running;
mod session;
mod statement;
mod system;
mod temp;
mod time_travel;
mod walk;

pub use bulk::{IfExists, IfNotExists, IngestTarget, TableEntry};
pub use engine::Engine;
pub(crate) use engine::EngineParts;
pub(crate) use feature_group_table::FeatureGroupTable;
use insert::PlainTable;
pub(crate) use running::{Owner, RunLimits};
pub use session::{Prepared, Session, StatementKind};
