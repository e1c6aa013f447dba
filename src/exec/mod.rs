//! Physical operators: what DataFusion lacks for point-in-time work.

pub(crate) mod asof;
mod lookup;
mod options;

pub(crate) use lookup::{
    DirectLookup, LatestScanExec, LookupExec, LookupNode, LookupOutput, LookupPlanner, LookupRequest,
    Missing, Output, latest_schema, parts,
};
pub(crate) use options::SessionOptions;
