//! Data files under a schema that has changed since they were written: columns are matched by Iceberg's field ids.
//!
//! ```text
//! table   1 id   3 name  4 added  2 amount: long      what a query reads
//!           │      │       │        │
//! file    1 id   3 label  NULL    2 amount: int       what a file has, under the names of its day
//! ```
//! A file without field ids is matched by name, as one that another engine has imported.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::datatypes::{Field, FieldRef, Schema as ArrowSchema, SchemaRef};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{Result, ScalarValue};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr_adapter::{
    DefaultPhysicalExprAdapter, PhysicalExprAdapter, PhysicalExprAdapterFactory,
    replace_columns_with_literals,
};
use iceberg::spec::{NestedFieldRef, Schema, TableMetadata, Type};
use parquet::arrow::PARQUET_FIELD_ID_META_KEY;

use super::statistics::scalar;
use crate::error::Error;
use crate::model::TableName;

/// Reads files into the columns of one schema of a table.
#[derive(Debug)]
pub(super) struct ByFieldId {
    names: HashMap<i32, String>,
    /// What a column reads in files that are older than it, where that is not NULL.
    defaults: HashMap<String, ScalarValue>,
}

impl ByFieldId {
    /// `arrow` is `schema` as SQL sees it.
    pub(super) fn new(schema: &Schema, arrow: &ArrowSchema) -> Self {
        let fields = schema.as_struct().fields();
        let names = fields.iter().map(|f| (f.id, f.name.clone())).collect();
        let default = |(iceberg, arrow): (&NestedFieldRef, &FieldRef)| {
            let value = iceberg.initial_default.as_ref()?.as_primitive_literal()?;
            Some((iceberg.name.clone(), scalar(&value, arrow.data_type())?))
        };
        let defaults = fields.iter().zip(arrow.fields()).filter_map(default).collect();
        Self { names, defaults }
    }

    /// The file's columns under the table's names. A column that the table has dropped takes a name that no column has.
    fn renamed(&self, file: &ArrowSchema) -> ArrowSchema {
        let id_of = |field: &Field| field.metadata().get(PARQUET_FIELD_ID_META_KEY)?.parse::<i32>().ok();
        let ids: Vec<Option<i32>> = file.fields().iter().map(|field| id_of(field)).collect();
        if ids.iter().all(Option::is_none) {
            return file.clone();
        }
        let named = file.fields().iter().zip(ids).enumerate().map(|(index, (field, id))| {
            let name = id.and_then(|id| self.names.get(&id)).cloned();
            field.as_ref().clone().with_name(name.unwrap_or_else(|| format!("\0{index}")))
        });
        ArrowSchema::new(named.collect::<Vec<_>>())
    }
}

impl PhysicalExprAdapterFactory for ByFieldId {
    fn create(&self, table: SchemaRef, file: SchemaRef) -> Result<Arc<dyn PhysicalExprAdapter>> {
        let renamed = Arc::new(self.renamed(&file));
        let absent = |name: &&String| renamed.index_of(name).is_err();
        let defaults = self.defaults.keys().filter(absent);
        let defaults = defaults.map(|name| (name.clone(), self.defaults[name].clone())).collect();
        let by_name = DefaultPhysicalExprAdapter::new(table, renamed);
        Ok(Arc::new(Adapter { defaults, by_name, file }))
    }
}

/// Rewrites expressions over the table's columns to one file's.
#[derive(Debug)]
struct Adapter {
    defaults: HashMap<String, ScalarValue>,
    by_name: DefaultPhysicalExprAdapter,
    file: SchemaRef,
}

impl PhysicalExprAdapter for Adapter {
    fn rewrite(&self, expr: Arc<dyn PhysicalExpr>) -> Result<Arc<dyn PhysicalExpr>> {
        let adapted = self.by_name.rewrite(replace_columns_with_literals(expr, &self.defaults)?)?;
        // The reader looks columns up by the names that the file gives them.
        let under_own_name = |expr: Arc<dyn PhysicalExpr>| {
            let Some(column) = expr.as_any().downcast_ref::<Column>() else {
                return Ok(Transformed::no(expr));
            };
            let name = self.file.field(column.index()).name();
            Ok(Transformed::yes(Arc::new(Column::new(name, column.index())) as Arc<dyn PhysicalExpr>))
        };
        adapted.transform(under_own_name).data()
    }
}

/// Refuses a table with a renamed field inside a struct, list or map, which is still matched by name.
pub(super) fn refuse_nested_renames(name: &TableName, metadata: &TableMetadata) -> Result<(), Error> {
    let current = metadata.current_schema();
    for schema in metadata.schemas_iter() {
        for column in schema.as_struct().fields() {
            let Some(now) = current.field_by_id(column.id) else { continue };
            if !same_names(&column.field_type, &now.field_type) {
                return Err(Error::unsupported(format!(
                    "a field inside column '{}' of table '{name}' was renamed or replaced, which is not read yet: \
                     copy the table with the engine that renamed it",
                    column.name
                )));
            }
        }
    }
    Ok(())
}

/// Whether fields of the same id have the same name in both, and the other way round, at every depth.
fn same_names(a: &Type, b: &Type) -> bool {
    let fields = |t: &Type| -> Vec<NestedFieldRef> {
        match t {
            Type::Primitive(_) => Vec::new(),
            Type::Struct(fields) => fields.fields().to_vec(),
            Type::List(list) => vec![Arc::clone(&list.element_field)],
            Type::Map(map) => vec![Arc::clone(&map.key_field), Arc::clone(&map.value_field)],
        }
    };
    let (a, b) = (fields(a), fields(b));
    a.iter().all(|a| {
        b.iter().all(|b| match (a.id == b.id, a.name == b.name) {
            (true, true) => same_names(&a.field_type, &b.field_type),
            (same_id, same_name) => !same_id && !same_name,
        })
    })
}
