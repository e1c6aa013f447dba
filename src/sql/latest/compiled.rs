//! Statements that are one look-up by listed keys, kept ready to run: neither parsed nor planned again.

use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::logical_expr::{Expr, LogicalPlan, Values};
use futures::stream::{self, Stream, StreamExt};
use tokio::task::yield_now;

use super::bind::bound_keys;
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::exec::{DirectLookup, LookupNode, LookupOutput, Missing, parts};
use crate::model::FeatureGroup;
use crate::online::OnlineStore;

/// `SELECT column, … FROM LATEST(group, key, …)`, whose keys are constants and parameters.
#[derive(Debug)]
pub(crate) struct CompiledLatest {
    group: Arc<FeatureGroup>,
    keys: Values,
    lookup: DirectLookup,
    schema: SchemaRef,
}

impl CompiledLatest {
    /// `plan` as a look-up, if that is all it is. `schema` is the one under which its rows leave.
    pub(crate) fn of(
        plan: &LogicalPlan,
        schema: SchemaRef,
        store: &Arc<dyn OnlineStore>,
        clock: &Arc<dyn Clock>,
    ) -> Result<Option<Self>> {
        let Some((node, columns)) = look_up(plan) else { return Ok(None) };
        let LogicalPlan::Values(keys) = &node.input else { return Ok(None) };
        let known = |part: &Expr| match part {
            Expr::Literal(..) => true,
            Expr::Cast(cast) => matches!(*cast.expr, Expr::Placeholder(_)),
            _ => false,
        };
        if node.request.missing != Missing::Explain || !keys.values.iter().flatten().all(known) {
            return Ok(None);
        }
        let group = Arc::clone(&node.request.group);
        let stores = (Arc::clone(store), Arc::clone(clock));
        let lookup = DirectLookup::new(node.request.clone(), &columns, Arc::clone(&schema), stores)?;
        Ok(Some(Self { group, keys: keys.clone(), lookup, schema }))
    }

    /// The definition that it was made from.
    pub(crate) fn group(&self) -> &Arc<FeatureGroup> {
        &self.group
    }

    /// How many keys it lists, and so how many rows each row of parameters gives.
    pub(crate) fn keys(&self) -> usize {
        self.keys.values.len()
    }

    /// Columns of the answer.
    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The answers for every row of `parameters` (column k holds the values of `$k+1`), in order, as of one moment.
    ///
    /// # Errors
    /// `Invalid` when a bound value does not fit its key column; those of the look-up end the stream.
    pub(crate) fn run(
        self: &Arc<Self>,
        parameters: &RecordBatch,
    ) -> Result<impl Stream<Item = Result<RecordBatch>> + Send + use<>> {
        let keys = bound_keys(&self.group, &self.keys, parameters)?.ok_or_else(|| {
            Error::internal("a compiled look-up has a key that is neither constant nor parameter")
        })?;
        let (this, now_us) = (Arc::clone(self), self.lookup.now_us());
        Ok(stream::iter(parts(keys).enumerate()).then(move |(part, keys)| {
            let this = Arc::clone(&this);
            async move {
                if part > 0 {
                    // A cache that holds all keys never waits: let others have their turn, or end this.
                    yield_now().await;
                }
                this.lookup.run(keys.columns(), now_us).await
            }
        }))
    }
}

/// The look-up under projections of plain columns, and which of its columns each column of the plan is.
fn look_up(plan: &LogicalPlan) -> Option<(&LookupNode, Vec<usize>)> {
    match plan {
        LogicalPlan::Extension(extension) => {
            let node = extension.node.as_any().downcast_ref::<LookupNode>()?;
            let column = |output: &LookupOutput| match output {
                LookupOutput::Latest(i) => Some(*i),
                LookupOutput::Input(_) => None,
            };
            Some((node, node.output.iter().map(column).collect::<Option<_>>()?))
        }
        LogicalPlan::SubqueryAlias(alias) => look_up(&alias.input),
        LogicalPlan::Projection(projection) => {
            let (node, columns) = look_up(&projection.input)?;
            let input = projection.input.schema();
            let place = |expr: &Expr| match expr {
                Expr::Column(column) => columns.get(input.maybe_index_of_column(column)?).copied(),
                Expr::Alias(alias) => match alias.expr.as_ref() {
                    Expr::Column(column) => columns.get(input.maybe_index_of_column(column)?).copied(),
                    _ => None,
                },
                _ => None,
            };
            Some((node, projection.expr.iter().map(place).collect::<Option<_>>()?))
        }
        _ => None,
    }
}
