//! The session's say in how its statements run: `SET fletching.… = …`.

use std::fmt;
use std::str::FromStr;

use datafusion::common::config::ConfigExtension;
use datafusion::common::{DataFusionError, config_field, extensions_options, plan_err};

/// How ASOF joins run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Strategy {
    /// Against the files of the right side where it is a stored table, else as a partitioned merge.
    #[default]
    Auto,
    /// Against files, or not at all.
    Files,
    /// Both sides partitioned on the keys, sorted, and merged.
    PartitionedMerge,
}

const NAMES: [(&str, Strategy); 3] =
    [("auto", Strategy::Auto), ("files", Strategy::Files), ("partitioned_merge", Strategy::PartitionedMerge)];

impl FromStr for Strategy {
    type Err = DataFusionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)) {
            Some((_, strategy)) => Ok(*strategy),
            None => plan_err!("'{text}' is no ASOF strategy: auto, files or partitioned_merge"),
        }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.iter().find(|(_, strategy)| strategy == self).map_or("", |(name, _)| *name);
        f.write_str(name)
    }
}

config_field!(Strategy);

extensions_options! {
    /// Settings of a session, `SET fletching.… = …`.
    pub(crate) struct SessionOptions {
        /// How ASOF joins run: auto, files or partitioned_merge.
        pub asof_strategy: Strategy, default = Strategy::Auto
        /// Into how many endpoints a large result is split, for clients that fetch them in parallel.
        pub endpoints: usize, default = 1
        /// Most rows that a query may return; 0 is no limit.
        pub rows_max: usize, default = 0
        /// Bytes that a statement may hold in memory before it spills; 0 is no limit but the server's.
        pub memory_limit: usize, default = 0
        /// Idempotency key of the next write; empty for none.
        pub idempotency_key: String, default = String::new()
    }
}

impl ConfigExtension for SessionOptions {
    const PREFIX: &'static str = "fletching";
}
