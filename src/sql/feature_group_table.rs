//! A feature group as a SQL table: its declared columns, with the history behind them.

use std::any::Any;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{Result, Statistics};
use datafusion::datasource::TableType;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_plan::ExecutionPlan;

use crate::model::FeatureGroup;

/// `name` in SQL. `history` holds the declared columns in order, then the system columns; this
/// table shows the declared ones only, so a column index means the same in both.
#[derive(Debug, Clone)]
pub(crate) struct FeatureGroupTable {
    pub(crate) definition: Arc<FeatureGroup>,
    pub(crate) history: Arc<dyn TableProvider>,
    schema: SchemaRef,
}

impl FeatureGroupTable {
    pub(crate) fn new(definition: Arc<FeatureGroup>, history: Arc<dyn TableProvider>) -> Self {
        let schema = definition.schema();
        Self { definition, history, schema }
    }
}

#[async_trait]
impl TableProvider for FeatureGroupTable {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let declared: Vec<usize> = (0..self.schema.fields().len()).collect();
        let projection = projection.unwrap_or(&declared);
        self.history.scan(state, Some(projection), filters, limit).await
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        self.history.supports_filters_pushdown(filters)
    }

    fn statistics(&self) -> Option<Statistics> {
        None
    }
}
