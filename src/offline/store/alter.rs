//! Changes of a table's columns and properties, for which no file is written anew: files keep the columns of their day,
//! which are matched by field id as they are read; see [`crate::offline::evolution`].

use std::sync::Arc;

use iceberg::spec::{
    ListType, MapType, NestedField, NestedFieldRef, Schema, StructType, TableMetadata, TableMetadataBuilder,
    Type,
};

use super::{OfflineStore, TableSpec, updated_at};
use crate::error::{Error, Result};
use crate::offline::commit::{COMMIT_ATTEMPTS_MAX, contended};
use crate::offline::schema::{arrow_schema, iceberg_schema};
use crate::offline::table::OfflineTable;

/// Iceberg's property for what a table is, in words.
const COMMENT: &str = "comment";

impl OfflineStore {
    /// Gives the table the columns, descriptions and properties that `change` says of what it is by then, which is asked
    /// again where others commit first. A column is the same as before where it has the same name, and may have a wider
    /// type; one of a new name is a new one. Returns the table as it is afterwards.
    ///
    /// # Errors
    /// Those of `change`; `Conflict` where the table was dropped or replaced meanwhile, or stays contended.
    pub(crate) async fn alter(
        &self,
        table: &OfflineTable,
        mut change: impl FnMut(&OfflineTable) -> Result<TableSpec>,
    ) -> Result<OfflineTable> {
        for _ in 0..COMMIT_ATTEMPTS_MAX {
            let current = self.current(table).await?;
            let next = altered(&current.metadata, &change(&current)?)?;
            let is_same = next.current_schema_id() == current.metadata.current_schema_id()
                && next.properties() == current.metadata.properties();
            if is_same {
                return Ok(current);
            }
            let now_ms = self.clock.now_us().div_euclid(1000).max(current.metadata.last_updated_ms());
            let next = updated_at(&next, now_ms)?;
            let (schema, properties) = (Arc::clone(next.current_schema()), next.properties().clone());
            let is_in = |now: &TableMetadata| {
                now.schemas_iter().any(|known| *known == schema) && *now.properties() == properties
            };
            if let Some(committed) = self.swap(&current, next, &[], is_in).await? {
                return Ok(committed);
            }
        }
        Err(contended(&table.name))
    }
}

fn altered(metadata: &TableMetadata, spec: &TableSpec) -> Result<TableMetadata> {
    let cannot = |e| Error::invalid(format!("table '{}' does not fit Iceberg", spec.name)).with_source(e);
    let schema = evolved(metadata.current_schema(), metadata.last_column_id(), spec)?;
    let mut builder = TableMetadataBuilder::new_from_metadata(metadata.clone(), None)
        .add_current_schema(schema)
        .and_then(|builder| builder.set_properties(spec.properties.clone()))
        .map_err(cannot)?;
    if !spec.properties.contains_key(COMMENT) {
        builder = builder.remove_properties(&[COMMENT.to_owned()]).map_err(cannot)?;
    }
    Ok(builder.build().map_err(cannot)?.metadata)
}

/// The schema of the columns of `spec`: those of `current` under the ids that they have, the others under new ones.
fn evolved(current: &Schema, last_column_id: i32, spec: &TableSpec) -> Result<Schema> {
    let (now, before) = (iceberg_schema(&spec.schema, &spec.docs)?, arrow_schema(current)?);
    let is_new = |name: &str| current.as_struct().field_by_name(name).is_none();
    let added: Vec<usize> =
        (0..spec.schema.fields().len()).filter(|&i| is_new(spec.schema.field(i).name())).collect();
    let added = iceberg_schema(&spec.schema.project(&added)?, &spec.docs)?;
    let mut added = added.as_struct().fields().iter().map(|field| behind(last_column_id, field));
    let mut fields = Vec::with_capacity(spec.schema.fields().len());
    for (field, arrow) in now.as_struct().fields().iter().zip(spec.schema.fields()) {
        fields.push(match current.as_struct().field_by_name(&field.name) {
            Some(known) if before.field_with_name(&field.name)?.data_type() == arrow.data_type() => {
                Arc::new(NestedField { doc: field.doc.clone(), ..known.as_ref().clone() })
            }
            Some(known) => {
                let field_type = field.field_type.clone();
                Arc::new(NestedField { doc: field.doc.clone(), field_type, ..known.as_ref().clone() })
            }
            None => added.next().ok_or_else(|| Error::internal("a new column has no Iceberg field"))?,
        });
    }
    let schema = Schema::builder()
        .with_fields(fields)
        .with_identifier_field_ids(current.identifier_field_ids())
        .build();
    schema.map_err(|e| Error::invalid(format!("table '{}' does not fit Iceberg", spec.name)).with_source(e))
}

/// The field with its ids, at every depth, moved behind `last_id`.
fn behind(last_id: i32, field: &NestedFieldRef) -> NestedFieldRef {
    let inner = |field: &NestedFieldRef| behind(last_id, field);
    let field_type = match field.field_type.as_ref() {
        Type::Primitive(primitive) => Type::Primitive(primitive.clone()),
        Type::Struct(fields) => Type::Struct(StructType::new(fields.fields().iter().map(inner).collect())),
        Type::List(list) => Type::List(ListType::new(inner(&list.element_field))),
        Type::Map(map) => Type::Map(MapType::new(inner(&map.key_field), inner(&map.value_field))),
    };
    let (id, field_type) = (field.id + last_id, Box::new(field_type));
    Arc::new(NestedField { id, field_type, ..field.as_ref().clone() })
}
