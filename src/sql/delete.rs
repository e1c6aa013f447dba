//! `DELETE FROM`: what its WHERE means, as one expression over the columns of the table; see [`crate::ingest`] for the rest.
//!
//! Subqueries are run first, once, and what they gave is put in their place, so that it is the same rows that are looked
//! for however often the table has to be looked through again.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, RecordBatch};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, ScalarValue};
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::expr::{Exists, InSubquery};
use datafusion::logical_expr::{DmlStatement, Expr, LogicalPlan, Subquery, lit};
use futures::TryStreamExt;

use super::ddl::RESERVED_SCHEMAS;
use super::memory::BoundedPool;
use super::session::{Session, default_schema, referenced, run};
use super::upkeep::SORT_BYTES_MAX;
use crate::error::{Error, Result};

/// Values that `IN (SELECT …)` may give.
const VALUES_MAX: usize = 100_000;

impl Session {
    /// Returns the rows deleted.
    ///
    /// # Errors
    /// `NotFound`; `Unsupported` for what is not a stored table, and for conditions that may mean something else with every
    /// look; those of [`crate::ingest::Ingest::delete`].
    pub(super) async fn delete(&self, state: &SessionState, dml: DmlStatement) -> Result<u64> {
        let name = referenced(&dml.table_name, default_schema(state))?;
        if name.name.contains('$') || RESERVED_SCHEMAS.contains(&name.schema.as_str()) {
            return Err(Error::invalid(format!("'{}' is read-only", dml.table_name)));
        }
        if self.catalog.holds_temp(&name.schema) && self.catalog.temp.get(&name.name).is_some() {
            return Err(Error::unsupported(format!(
                "DELETE is not supported on '{}', which is temporary: CREATE TEMP TABLE … AS SELECT makes one of the rows to \
                 keep",
                name.name
            )));
        }
        let predicate = match dml.input.as_ref() {
            LogicalPlan::TableScan(_) => None,
            LogicalPlan::Filter(filter) if matches!(filter.input.as_ref(), LogicalPlan::TableScan(_)) => {
                Some(self.condition(state, filter.predicate.clone()).await?)
            }
            _ => return Err(Error::unsupported("DELETE takes WHERE alone: no LIMIT and no other tables")),
        };
        let shared = state.runtime_env();
        let memory_pool = Arc::new(BoundedPool::new(Arc::clone(&shared.memory_pool), SORT_BYTES_MAX));
        let runtime = Arc::new(RuntimeEnv { memory_pool, ..shared.as_ref().clone() });
        let sorting = SessionStateBuilder::new_from_existing(state.clone()).with_runtime_env(runtime);
        let mut sorting = sorting.build();
        *sorting.execution_props_mut() = state.execution_props().clone(); // now() stays what it was
        self.engine.ingest.delete(&name, predicate.as_ref(), &sorting).await
    }

    /// The condition with values in the place of subqueries, over columns without qualifiers.
    async fn condition(&self, state: &SessionState, condition: Expr) -> Result<Expr> {
        if condition.is_volatile() {
            return Err(Error::unsupported(
                "the WHERE of a DELETE must mean the same for as long as it runs: random() and the like do not",
            ));
        }
        let mut subqueries = Vec::new();
        condition.apply(|expr| {
            if let Expr::InSubquery(InSubquery { subquery, .. })
            | Expr::Exists(Exists { subquery, .. })
            | Expr::ScalarSubquery(subquery) = expr
            {
                subqueries.push(subquery.clone());
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
        let mut values = Vec::with_capacity(subqueries.len());
        for subquery in &subqueries {
            values.push(values_of(state, subquery).await?);
        }
        let mut values = values.into_iter();
        let condition = condition.transform_down(|expr| {
            let mut next = || values.next().unwrap_or_default();
            Ok(match expr {
                Expr::InSubquery(InSubquery { expr, negated, .. }) => {
                    let list = next().into_iter().map(|value| Expr::Literal(value, None)).collect::<Vec<_>>();
                    Transformed::yes(match list.is_empty() {
                        true => lit(negated),
                        false => expr.in_list(list, negated),
                    })
                }
                Expr::Exists(Exists { negated, .. }) => Transformed::yes(lit(next().is_empty() == negated)),
                Expr::ScalarSubquery(subquery) => {
                    let mut found = next();
                    if found.len() > 1 {
                        return Err(Error::invalid(
                            "a subquery in the WHERE of a DELETE gives more than one row where one value is due",
                        )
                        .into());
                    }
                    let none = || ScalarValue::try_from(subquery.subquery.schema().field(0).data_type());
                    Transformed::yes(Expr::Literal(found.pop().map_or_else(none, Ok)?, None))
                }
                Expr::Column(column) => Transformed::yes(Expr::Column(Column::new_unqualified(column.name))),
                other => Transformed::no(other),
            })
        })?;
        Ok(condition.data)
    }
}

/// The values of a subquery's first column; of rows without columns that there are some.
async fn values_of(state: &SessionState, subquery: &Subquery) -> Result<Vec<ScalarValue>> {
    if !subquery.outer_ref_columns.is_empty() {
        return Err(Error::unsupported(
            "a subquery in the WHERE of a DELETE may not name columns of the table: write column IN (SELECT …)",
        ));
    }
    let mut values = Vec::new();
    let mut rows = run(state, &subquery.subquery).await?;
    while let Some(batch) = rows.try_next().await? {
        let column: Option<&ArrayRef> = batch.columns().first();
        for row in 0..RecordBatch::num_rows(&batch) {
            values.push(match column {
                Some(column) if column.is_valid(row) => ScalarValue::try_from_array(column, row)?,
                Some(column) => ScalarValue::try_from(column.data_type())?,
                None => ScalarValue::Null,
            });
        }
        if values.len() > VALUES_MAX {
            return Err(Error::exhausted(format!(
                "a subquery in the WHERE of a DELETE gives more than {VALUES_MAX} rows: delete in parts"
            )));
        }
    }
    Ok(values)
}
