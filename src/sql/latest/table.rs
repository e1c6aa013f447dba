//! `LATEST(group)` as a table: what is being served, found rows only.

use std::any::Any;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{Result, ScalarValue};
use datafusion::datasource::TableType;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::logical_expr::expr::InList;
use datafusion::logical_expr::{BinaryExpr, Expr, Operator, TableProviderFilterPushDown};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_plan::ExecutionPlan;

use super::keys::key_fields;
use crate::clock::Clock;
use crate::exec::{LatestScanExec, LookupExec, LookupRequest, Missing, Output, latest_schema};
use crate::model::FeatureGroup;
use crate::online::OnlineStore;

/// Most keys that a filter is turned into look-ups for; beyond it the scan is as good.
const LOOKUP_KEYS_MAX: usize = 10_000;

/// Every entity with a row to serve.
#[derive(Debug)]
pub(super) struct LatestTable {
    pub(super) group: Arc<FeatureGroup>,
    pub(super) max_staleness: Option<Duration>,
    store: Arc<dyn OnlineStore>,
    clock: Arc<dyn Clock>,
    schema: SchemaRef,
}

impl LatestTable {
    pub(super) fn new(
        group: Arc<FeatureGroup>,
        max_staleness: Option<Duration>,
        store: Arc<dyn OnlineStore>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let schema = latest_schema(&group);
        Self { group, max_staleness, store, clock, schema }
    }

    fn lookup(&self, keys: RecordBatch, output: Vec<usize>) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = Arc::new(self.schema.project(&output)?);
        let columns = keys.schema_ref().fields().iter().enumerate();
        let columns = columns.map(|(i, field)| Arc::new(Column::new(field.name(), i)) as _).collect();
        let key_schema = keys.schema();
        let input = MemorySourceConfig::try_new_exec(&[vec![keys]], key_schema, None)?;
        Ok(Arc::new(LookupExec::new(
            input,
            columns,
            output.into_iter().map(Output::Latest).collect(),
            LookupRequest {
                group: Arc::clone(&self.group),
                missing: Missing::Drop,
                max_staleness: self.max_staleness,
            },
            (Arc::clone(&self.store), Arc::clone(&self.clock)),
            schema,
        )))
    }
}

#[async_trait]
impl TableProvider for LatestTable {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let output = projection.cloned().unwrap_or_else(|| (0..self.schema.fields().len()).collect());
        if let Some(keys) = keys_named(&self.group, filters)? {
            return self.lookup(keys, output);
        }
        let (group, store, clock) = (&self.group, &self.store, &self.clock);
        let scan = LatestScanExec::try_new(Arc::clone(group), output, Arc::clone(store), Arc::clone(clock))?;
        Ok(Arc::new(scan))
    }

    /// Filters that name keys narrow what is read. All of them stay above too: they are cheap on what is left.
    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let names_keys = |filter: &&Expr| match column_values(&self.group, filter) {
            Some(_) => TableProviderFilterPushDown::Inexact,
            None => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(names_keys).collect())
    }
}

/// The keys that can pass the filters, each once, when they name every key column: all combinations.
fn keys_named(group: &FeatureGroup, filters: &[Expr]) -> Result<Option<RecordBatch>> {
    let mut named: Vec<Option<HashSet<ScalarValue>>> = vec![None; group.entity_key.len()];
    for (column, values) in filters.iter().filter_map(|f| column_values(group, f)) {
        let values: HashSet<ScalarValue> = values.into_iter().filter(|v| !v.is_null()).collect();
        named[column] = Some(match named[column].take() {
            Some(known) => known.intersection(&values).cloned().collect(),
            None => values,
        });
    }
    let Some(named) = named.into_iter().collect::<Option<Vec<_>>>() else { return Ok(None) };
    let combinations = named.iter().try_fold(1usize, |product, values| product.checked_mul(values.len()));
    let Some(rows) = combinations.filter(|rows| *rows <= LOOKUP_KEYS_MAX) else { return Ok(None) };
    let schema = Arc::new(Schema::new(key_fields(group)));
    if rows == 0 {
        return Ok(Some(RecordBatch::new_empty(schema)));
    }
    let mut columns = Vec::with_capacity(named.len());
    let mut repeats = rows;
    for values in &named {
        repeats /= values.len();
        let each = values.iter().flat_map(|v| std::iter::repeat_n(v.clone(), repeats));
        let column: Vec<ScalarValue> = each.collect();
        let whole = column.iter().cycle().take(rows).cloned();
        columns.push(ScalarValue::iter_to_array(whole)?);
    }
    Ok(Some(RecordBatch::try_new(schema, columns)?))
}

/// The key column (by its position in the key) and the values that the filter allows it, for `key = x`,
/// `key IN (x, …)`, and these joined by OR.
fn column_values(group: &FeatureGroup, filter: &Expr) -> Option<(usize, Vec<ScalarValue>)> {
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) => {
            let (column, value) = match (left.as_ref(), right.as_ref()) {
                (column @ Expr::Column(_), Expr::Literal(value, _))
                | (Expr::Literal(value, _), column @ Expr::Column(_)) => (column, value),
                _ => return None,
            };
            typed_values(group, column, [value])
        }
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
            let (column, mut values) = column_values(group, left)?;
            let (other, more) = column_values(group, right)?;
            values.extend(more);
            (column == other).then_some((column, values))
        }
        Expr::InList(InList { expr, list, negated: false }) => {
            let literals = list.iter().map(|item| match item {
                Expr::Literal(value, _) => Some(value),
                _ => None,
            });
            typed_values(group, expr, literals.collect::<Option<Vec<_>>>()?)
        }
        _ => None,
    }
}

fn typed_values<'a>(
    group: &FeatureGroup,
    column: &Expr,
    values: impl IntoIterator<Item = &'a ScalarValue>,
) -> Option<(usize, Vec<ScalarValue>)> {
    let Expr::Column(column) = column else { return None };
    let position = group.entity_key.iter().position(|i| *group.columns[*i].field.name() == column.name)?;
    let wanted = group.columns[group.entity_key[position]].field.data_type();
    let values: Vec<ScalarValue> = values.into_iter().cloned().collect();
    values.iter().all(|v| v.data_type() == *wanted).then_some((position, values))
}
