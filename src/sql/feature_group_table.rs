//! A feature group as a SQL table: its declared columns, with the history behind them.

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Result;
use datafusion::datasource::TableType;
use datafusion::logical_expr::dml::InsertOp;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, lit};
use datafusion::physical_plan::ExecutionPlan;

use super::insert::insert_plan;
use crate::error::Error;
use crate::ingest::Ingest;
use crate::model::{Column, FeatureGroup};
use crate::offline::IcebergTable;
use crate::registry::Object;

/// `name` in SQL. `history` holds the declared columns in order, then the system columns; this
/// table shows the declared ones only, so a column index means the same in both.
#[derive(Debug, Clone)]
pub(crate) struct FeatureGroupTable {
    pub(crate) definition: Arc<FeatureGroup>,
    pub(crate) history: Arc<dyn TableProvider>,
    schema: SchemaRef,
    defaults: HashMap<String, Expr>,
    ingest: Option<Arc<Ingest>>,
}

impl FeatureGroupTable {
    pub(crate) fn new(definition: Arc<FeatureGroup>, history: Arc<dyn TableProvider>) -> Self {
        let schema = definition.schema();
        let default_of = |c: &Column| Some((c.field.name().clone(), lit(c.default.clone()?)));
        let defaults = definition.columns.iter().filter_map(default_of).collect();
        Self { definition, history, schema, defaults, ingest: None }
    }

    /// The same table, which takes inserts.
    pub(crate) fn with_ingest(self, ingest: Arc<Ingest>) -> Self {
        Self { ingest: Some(ingest), ..self }
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

    fn get_column_default(&self, column: &str) -> Option<&Expr> {
        self.defaults.get(column)
    }

    async fn insert_into(
        &self,
        _state: &dyn Session,
        input: Arc<dyn ExecutionPlan>,
        insert_op: InsertOp,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let rows = self.history.as_any().downcast_ref::<IcebergTable>();
        let (Some(ingest), Some(rows)) = (&self.ingest, rows) else {
            let name = &self.definition.name;
            return Err(Error::unsupported(format!("feature group '{name}' is read-only here")).into());
        };
        let object = Object::FeatureGroup(Arc::clone(&self.definition), rows.table().clone());
        Ok(insert_plan(ingest, object, input, insert_op)?)
    }
}
