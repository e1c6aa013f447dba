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
mod memory;
mod moment;
mod output;
mod parameters;
mod parts;
mod running;
mod session;
mod settings;
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
pub use moment::{Described, Moment};
pub use parts::Part;
pub(crate) use running::{Owner, RunLimits};
pub use session::{Prepared, Session, StatementKind};
pub use settings::SettingValue;
pub(crate) use statement::STATEMENT_BYTES_MAX;
