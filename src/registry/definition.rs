//! A feature group as an Iceberg table, its definition in the table's properties, and back.
//!
//! ```text
//! sort order               = the entity key in its order, the event time, _ingested_at, _sequence
//! comment                  = what the group is, in words
//! fletching.feature-group  = {"format":1,"version":1,"entity_key":["user_id"],"event_time":"ts",
//!                             "ttl_us":2592000000000,"owner":"ml","tags":["churn"],"online":true,
//!                             "defaults":{"purchase_count_7d":"0"},
//!                             "dropped_defaults":{"7":"unknown"}}
//! ```
//! Column descriptions are Iceberg field docs; names, types and nullability are the Iceberg schema's. The
//! defaults of dropped features stay, by field id, for those who read the group as it was.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::datatypes::{DataType, FieldRef};
use datafusion::common::ScalarValue;
use serde::{Deserialize, Serialize};

use super::Object;
use crate::error::{Error, Result};
use crate::model::{Change, Column, FeatureGroup, FeatureSchema, INGESTED_AT, RowLayout, SEQUENCE};
use crate::offline::{OfflineTable, TableSpec};

const PROPERTY: &str = "fletching.feature-group";
const COMMENT: &str = "comment";
const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Stored {
    format: u32,
    version: u32,
    entity_key: Vec<String>,
    event_time: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ttl_us: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
    #[serde(default)]
    tags: Vec<String>,
    online: bool,
    #[serde(default)]
    defaults: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    dropped_defaults: BTreeMap<i32, String>,
}

/// The table that keeps `group`: an entity's rows lie together, oldest first, and of rows of one time the one that
/// wins lies last.
pub(crate) fn table_of(group: &FeatureGroup) -> Result<TableSpec> {
    spec_of(group, BTreeMap::new())
}

/// What `table`, which keeps `group`, becomes by `changes`.
///
/// # Errors
/// Those of [`FeatureGroup::changed`]; `Unsupported` for a type that the online store cannot keep.
pub(super) fn altered(table: &OfflineTable, group: &FeatureGroup, changes: &[Change]) -> Result<TableSpec> {
    let changed = group.changed(changes)?;
    if changed.online {
        RowLayout::new(&FeatureGroup { schemas: Vec::new(), ..changed.clone() })?;
    }
    let stored = stored_in(table)?.ok_or_else(|| Error::internal("a feature group without a definition"))?;
    let mut dropped = stored.dropped_defaults;
    for (name, default) in stored.defaults {
        if changed.columns.iter().all(|column| *column.field.name() != name)
            && let Some(field) = table.iceberg_schema().as_struct().field_by_name(&name)
        {
            dropped.insert(field.id, default);
        }
    }
    spec_of(&changed, dropped)
}

fn spec_of(group: &FeatureGroup, dropped_defaults: BTreeMap<i32, String>) -> Result<TableSpec> {
    let described = |c: &Column| Some((c.field.name().clone(), c.description.clone()?));
    let order = group.entity_key.iter().chain([&group.event_time]);
    let order = order.map(|&i| group.columns[i].field.name().as_str()).chain([INGESTED_AT, SEQUENCE]);
    Ok(TableSpec {
        name: group.name.clone(),
        schema: group.history_schema(),
        docs: group.columns.iter().filter_map(described).collect(),
        properties: properties_of(group, dropped_defaults)?,
        sort_columns: order.map(str::to_owned).collect(),
        snapshot_properties: HashMap::new(),
    })
}

/// The table properties that keep `group`'s definition.
fn properties_of(
    group: &FeatureGroup,
    dropped_defaults: BTreeMap<i32, String>,
) -> Result<HashMap<String, String>> {
    let name_of = |i: &usize| group.columns[*i].field.name().clone();
    let mut defaults = BTreeMap::new();
    for column in &group.columns {
        if let Some(default) = &column.default {
            let (name, data_type) = (column.field.name(), column.field.data_type());
            let text =
                default_text(default).filter(|text| default_of(text, data_type).as_ref() == Ok(default));
            let text = text.ok_or_else(|| {
                Error::unsupported(format!(
                    "DEFAULT of column '{name}' is {data_type}, of which no default can be kept"
                ))
            })?;
            defaults.insert(name.clone(), text);
        }
    }
    let ttl_us = group.ttl.map(|ttl| u64::try_from(ttl.as_micros()).unwrap_or(u64::MAX));
    let stored = Stored {
        format: FORMAT,
        version: group.version,
        entity_key: group.entity_key.iter().map(name_of).collect(),
        event_time: name_of(&group.event_time),
        ttl_us,
        owner: group.owner.clone(),
        tags: group.tags.clone(),
        online: group.online,
        defaults,
        dropped_defaults,
    };
    let json = serde_json::to_string(&stored)
        .map_err(|e| Error::internal("a definition does not serialize").with_source(e))?;
    let mut properties = HashMap::from([(PROPERTY.to_owned(), json)]);
    if let Some(description) = &group.description {
        properties.insert(COMMENT.to_owned(), description.clone());
    }
    Ok(properties)
}

/// What an Iceberg table is: a feature group where its properties define one, else a plain table.
pub(crate) fn object_of(table: OfflineTable) -> Result<Object> {
    let Some(stored) = stored_in(&table)? else { return Ok(Object::Table(table)) };
    let system = table.schema().fields().iter().rev().take(2).rev().map(|f| f.name().as_str());
    if !system.eq([INGESTED_AT, SEQUENCE]) {
        return Err(Error::unsupported(format!(
            "feature group '{}' has columns that were added by another engine, which is not read yet: drop them there",
            table.name()
        )));
    }
    let columns = columns_of(&table, &stored)?;
    let index = |name: &str| {
        columns
            .iter()
            .position(|c| c.field.name() == name)
            .ok_or_else(|| corrupt(&table, &format!("no column '{name}'")))
    };
    let group = FeatureGroup {
        id: table.metadata().uuid(),
        name: table.name().clone(),
        version: stored.version,
        entity_key: stored.entity_key.iter().map(|n| index(n)).collect::<Result<_>>()?,
        event_time: index(&stored.event_time)?,
        ttl: stored.ttl_us.map(Duration::from_micros),
        owner: stored.owner,
        description: table.metadata().properties().get(COMMENT).cloned(),
        tags: stored.tags,
        online: stored.online,
        schemas: schemas_of(&table, stored.entity_key.iter().chain([&stored.event_time])),
        columns,
    };
    Ok(Object::FeatureGroup(Arc::new(group), table))
}

/// The definition that a table's properties hold; `None` for a plain table.
fn stored_in(table: &OfflineTable) -> Result<Option<Stored>> {
    let Some(json) = table.metadata().properties().get(PROPERTY) else { return Ok(None) };
    let stored: Stored = serde_json::from_str(json).map_err(|e| corrupt(table, &e.to_string()))?;
    match stored.format {
        FORMAT => Ok(Some(stored)),
        newer => Err(Error::unsupported(format!(
            "feature group '{}' was defined by a newer version (format {newer}): upgrade this server",
            table.name()
        ))),
    }
}

fn corrupt(table: &OfflineTable, what: &str) -> Error {
    Error::corrupt(format!("definition of feature group '{}': {what}", table.name()))
}

/// The features under every schema that the table has had: what is neither among the `others` nor a system column.
fn schemas_of<'a>(table: &OfflineTable, others: impl Iterator<Item = &'a String>) -> Vec<FeatureSchema> {
    let id_of = |name: &str| table.iceberg_schema().field_by_name(name).map(|field| field.id);
    let others: HashSet<i32> =
        others.map(String::as_str).chain([INGESTED_AT, SEQUENCE]).filter_map(id_of).collect();
    let features = |columns: Vec<(i32, FieldRef)>| {
        let features = columns.into_iter().filter(|(id, _)| !others.contains(id));
        features.map(|(id, field)| (id, field.data_type().clone())).collect()
    };
    let schemas = table.schemas().into_iter();
    schemas.map(|(id, columns)| FeatureSchema { id, features: features(columns) }).collect()
}

/// The declared columns. `table` may be read under an older schema: features of now are found there by field id.
fn columns_of(table: &OfflineTable, stored: &Stored) -> Result<Vec<Column>> {
    let (iceberg, now) = (table.iceberg_schema().as_struct(), table.metadata().current_schema());
    let default_text = |id: i32| match now.field_by_id(id) {
        Some(field) => stored.defaults.get(&field.name),
        None => stored.dropped_defaults.get(&id),
    };
    let declared = table.schema().fields().iter().filter(|f| f.name() != INGESTED_AT && f.name() != SEQUENCE);
    declared
        .map(|field| {
            let known = iceberg.field_by_name(field.name());
            let default = known.and_then(|known| default_text(known.id));
            let default = default.map(|text| default_of(text, field.data_type())).transpose();
            let default = default.map_err(|e| {
                Error::corrupt(format!(
                    "DEFAULT of column '{}' of feature group '{}': {e}",
                    field.name(),
                    table.name()
                ))
            })?;
            let description = known.and_then(|known| known.doc.clone());
            Ok(Column { field: Arc::clone(field), default, description })
        })
        .collect()
}

/// A default as text, for people and for the table's properties; `None` for a type without a text form.
pub(crate) fn default_text(value: &ScalarValue) -> Option<String> {
    match value.cast_to(&DataType::Utf8) {
        Ok(ScalarValue::Utf8(text)) => text,
        _ => None,
    }
}

fn default_of(text: &str, data_type: &DataType) -> Result<ScalarValue, String> {
    ScalarValue::Utf8(Some(text.to_owned())).cast_to(data_type).map_err(|e| e.to_string())
}
