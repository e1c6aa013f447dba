//! Physical operators: what DataFusion lacks for point-in-time work.

pub(crate) mod asof;
