//! The look-up as a logical node.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use datafusion::common::{DFSchemaRef, Result};
use datafusion::logical_expr::{Expr, LogicalPlan, UserDefinedLogicalNodeCore};

use super::answer::{Missing, show_ttl};
use super::columns::latest_schema;
use crate::error::Error;
use crate::model::FeatureGroup;

/// What is looked up, and how.
#[derive(Debug, Clone)]
pub(crate) struct LookupRequest {
    pub(crate) group: Arc<FeatureGroup>,
    pub(crate) missing: Missing,
    /// How old a cached answer may be.
    pub(crate) max_staleness: Option<Duration>,
}

impl LookupRequest {
    fn identity(&self) -> (uuid::Uuid, u32, Missing, Option<Duration>) {
        (self.group.id, self.group.version, self.missing, self.max_staleness)
    }
}

impl PartialEq for LookupRequest {
    fn eq(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }
}

impl Eq for LookupRequest {}

impl Hash for LookupRequest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}

/// The key columns, and in a join the expression that each is looked up by.
pub(super) fn show_keys(request: &LookupRequest, keys: &[impl fmt::Display]) -> String {
    let fields = request.group.key_fields();
    let shown = fields.iter().zip(keys).map(|(field, key)| match request.missing {
        Missing::Explain => field.name().clone(),
        Missing::Drop | Missing::Null => format!("{}={key}", field.name()),
    });
    shown.collect::<Vec<_>>().join(", ")
}

/// One column of a look-up's output.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum LookupOutput {
    /// An expression over the input.
    Input(Expr),
    /// Column `.0` of [`latest_schema`].
    Latest(usize),
}

/// For each row of `input`, the entity that `keys` (one expression per key column, of its type) name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct LookupNode {
    pub(crate) input: LogicalPlan,
    pub(crate) keys: Vec<Expr>,
    pub(crate) output: Vec<LookupOutput>,
    pub(crate) request: LookupRequest,
    /// As many fields as `output`.
    pub(crate) schema: DFSchemaRef,
}

impl PartialOrd for LookupNode {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (self.input.partial_cmp(&other.input)).filter(|order| *order != Ordering::Equal || self == other)
    }
}

impl UserDefinedLogicalNodeCore for LookupNode {
    fn name(&self) -> &str {
        "Lookup"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        let passed = self.output.iter().filter_map(|output| match output {
            LookupOutput::Input(expr) => Some(expr),
            LookupOutput::Latest(_) => None,
        });
        self.keys.iter().chain(passed).cloned().collect()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let group = &self.request.group;
        let (keys, ttl) = (show_keys(&self.request, &self.keys), show_ttl(group.ttl));
        write!(f, "Lookup: group={}, keys=[{keys}], ttl={ttl}", group.name)?;
        let schema = latest_schema(group);
        let columns: Vec<&str> = self
            .output
            .iter()
            .filter_map(|output| match output {
                LookupOutput::Input(_) => None,
                LookupOutput::Latest(i) => Some(schema.field(*i).name().as_str()),
            })
            .collect();
        write!(f, ", columns=[{}], missing={}", columns.join(", "), self.request.missing.as_str())
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        let mut exprs = exprs.into_iter();
        let keys: Vec<Expr> = exprs.by_ref().take(self.keys.len()).collect();
        let mut output = Vec::with_capacity(self.output.len());
        for column in &self.output {
            output.push(match column {
                LookupOutput::Latest(i) => LookupOutput::Latest(*i),
                LookupOutput::Input(_) => LookupOutput::Input(
                    exprs.next().ok_or_else(|| Error::internal("a look-up lost an expression"))?,
                ),
            });
        }
        let input = inputs.pop().ok_or_else(|| Error::internal("a look-up lost its input"))?;
        Ok(Self { input, keys, output, request: self.request.clone(), schema: Arc::clone(&self.schema) })
    }

    /// The input holds nothing but what the look-up uses or passes on, and is pruned before this node is made.
    fn necessary_children_exprs(&self, _output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        Some(vec![(0..self.input.schema().fields().len()).collect()])
    }
}
