//! What may change in a feature group's definition once it has rows: features come and go and widen, keys and the event
//! time stay.

use std::collections::HashSet;
use std::time::Duration;

use datafusion::arrow::datatypes::DataType;

use super::packed::reads_as;
use super::{Column, FeatureGroup};
use crate::error::{Error, Result};

/// One change of a definition.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// A new feature, behind those there are.
    AddFeature {
        /// What it is; the rows there are have NULL in it, and not its default.
        column: Column,
        /// Whether one that is there already is left as it is.
        if_not_exists: bool,
    },
    /// A feature goes, and its values with it: one that comes later under its name is another.
    DropFeature {
        /// Its name.
        name: String,
        /// Whether one that is not there is no mistake.
        if_exists: bool,
    },
    /// A feature takes a type that holds every value it has.
    WidenFeature {
        /// Its name.
        name: String,
        /// The new type.
        data_type: DataType,
    },
    /// What a feature means, in words.
    DescribeFeature {
        /// Its name.
        name: String,
        /// The words; `None` takes them away.
        description: Option<String>,
    },
    /// How long a row may be used; `None` means for ever.
    Ttl(Option<Duration>),
    /// Who answers for the group.
    Owner(Option<String>),
    /// What the group is, in words.
    Description(Option<String>),
    /// The labels to find it by, in place of those it has.
    Tags(Vec<String>),
    /// Whether `LATEST` serves it.
    Online(bool),
}

impl Change {
    /// The feature that it is about.
    fn feature(&self) -> Option<&str> {
        match self {
            Self::AddFeature { column, .. } => Some(column.field.name()),
            Self::DropFeature { name, .. }
            | Self::WidenFeature { name, .. }
            | Self::DescribeFeature { name, .. } => Some(name),
            Self::Ttl(_) | Self::Owner(_) | Self::Description(_) | Self::Tags(_) | Self::Online(_) => None,
        }
    }

    /// Makes the change in `group`, and checks nothing but that it can be made.
    pub(crate) fn apply(&self, group: &mut FeatureGroup) -> Result<()> {
        match self {
            Self::AddFeature { column, if_not_exists } => add(group, column, *if_not_exists)?,
            Self::DropFeature { name, if_exists } => drop_feature(group, name, *if_exists)?,
            Self::WidenFeature { name, data_type } => widen(group, name, data_type)?,
            Self::DescribeFeature { name, description } => {
                let at = group.feature(name)?;
                group.columns[at].description.clone_from(description);
            }
            Self::Ttl(ttl) => group.ttl = *ttl,
            Self::Owner(owner) => group.owner.clone_from(owner),
            Self::Description(description) => group.description.clone_from(description),
            Self::Tags(tags) => group.tags.clone_from(tags),
            Self::Online(online) => group.online = *online,
        }
        Ok(())
    }
}

fn add(group: &mut FeatureGroup, column: &Column, if_not_exists: bool) -> Result<()> {
    let (name, field) = (&group.name, &column.field);
    if group.columns.iter().any(|known| known.field.name() == field.name()) {
        return match if_not_exists {
            true => Ok(()),
            false => Err(Error::already_exists(format!(
                "feature group '{name}' has a column '{}' already: give another name, or use IF NOT EXISTS",
                field.name()
            ))),
        };
    }
    if !field.is_nullable() {
        return Err(Error::invalid(format!(
            "feature '{}' is NULL in the rows that '{name}' has: leave out NOT NULL",
            field.name()
        )));
    }
    group.columns.push(column.clone());
    Ok(())
}

fn drop_feature(group: &mut FeatureGroup, name: &str, if_exists: bool) -> Result<()> {
    if if_exists && group.columns.iter().all(|known| known.field.name() != name) {
        return Ok(());
    }
    let at = group.feature(name)?;
    group.columns.remove(at);
    for place in group.entity_key.iter_mut().chain([&mut group.event_time]) {
        *place -= usize::from(*place > at);
    }
    Ok(())
}

fn widen(group: &mut FeatureGroup, name: &str, data_type: &DataType) -> Result<()> {
    let at = group.feature(name)?;
    let column = &mut group.columns[at];
    let from = column.field.data_type();
    if !reads_as(from, data_type) {
        return Err(Error::unsupported(format!(
            "feature '{name}' of feature group '{}' is {from} and cannot become {data_type}: only INT becomes BIGINT, \
             REAL becomes DOUBLE, and DECIMAL takes more digits; ADD FEATURE makes one of another type",
            group.name
        )));
    }
    column.default = column.default.take().map(|value| value.cast_to(data_type)).transpose()?;
    column.field = column.field.as_ref().clone().with_data_type(data_type.clone()).into();
    Ok(())
}

impl FeatureGroup {
    /// The definition after all of `changes`, one after the other.
    ///
    /// # Errors
    /// `NotFound` and `AlreadyExists` where a feature is not there or is; `Invalid` where a column is no feature, where a
    /// feature is named twice, or where a rule would be broken; `Unsupported` for a type that a feature cannot take.
    pub fn changed(&self, changes: &[Change]) -> Result<Self> {
        let mut named = HashSet::new();
        if let Some(twice) = changes.iter().filter_map(Change::feature).find(|name| !named.insert(*name)) {
            return Err(Error::invalid(format!(
                "feature '{twice}' is named twice in one ALTER FEATURE GROUP: use one for each change"
            )));
        }
        let mut group = self.clone();
        for change in changes {
            change.apply(&mut group)?;
        }
        group.validate()?;
        Ok(group)
    }

    /// The place of the feature `name` among the columns.
    fn feature(&self, name: &str) -> Result<usize> {
        let group = &self.name;
        let Some(at) = self.columns.iter().position(|column| column.field.name() == name) else {
            let features = self.features().into_iter().map(|i| self.columns[i].field.name().as_str());
            return Err(Error::not_found(format!(
                "feature group '{group}' has no feature '{name}': it has {}",
                features.collect::<Vec<_>>().join(", ")
            )));
        };
        let role = match at {
            at if at == self.event_time => "its event time",
            at if self.entity_key.contains(&at) => "part of its entity key",
            _ => return Ok(at),
        };
        Err(Error::invalid(format!(
            "column '{name}' of feature group '{group}' is {role}, which stays as it is: CREATE another FEATURE GROUP, and \
             INSERT INTO it from this one"
        )))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use datafusion::arrow::datatypes::{Field, TimeUnit};
    use datafusion::common::ScalarValue;
    use uuid::Uuid;

    use super::*;
    use crate::error::ErrorKind;
    use crate::model::TableName;

    fn column(name: &str, data_type: DataType, nullable: bool) -> Column {
        Column { field: Arc::new(Field::new(name, data_type, nullable)), default: None, description: None }
    }

    /// `a` before the key and the time, `b` between them, `c` behind.
    fn group() -> FeatureGroup {
        let time = DataType::Timestamp(TimeUnit::Microsecond, None);
        let mut a = column("a", DataType::Int32, true);
        a.default = Some(ScalarValue::Int32(Some(7)));
        FeatureGroup {
            id: Uuid::nil(),
            name: TableName::new("public", "g"),
            version: 1,
            columns: vec![
                a,
                column("k", DataType::Int64, false),
                column("b", DataType::Float32, true),
                column("ts", time, false),
                column("c", DataType::Utf8, true),
            ],
            entity_key: vec![1],
            event_time: 3,
            ttl: None,
            owner: None,
            description: None,
            tags: vec![],
            online: true,
            schemas: vec![],
        }
    }

    fn drop_of(name: &str) -> Change {
        Change::DropFeature { name: name.to_owned(), if_exists: false }
    }

    fn add_of(name: &str) -> Change {
        Change::AddFeature { column: column(name, DataType::Boolean, true), if_not_exists: false }
    }

    fn widen_of(name: &str, data_type: DataType) -> Change {
        Change::WidenFeature { name: name.to_owned(), data_type }
    }

    #[test]
    fn key_and_time_keep_their_places_while_features_come_and_go() {
        let all = group();
        for dropped in [&["a"][..], &["b"], &["c"], &["c", "a"], &["a", "b", "c"]] {
            let mut changes: Vec<Change> = dropped.iter().map(|name| drop_of(name)).collect();
            changes.push(add_of("d"));
            let group = all.changed(&changes).unwrap();
            let names: Vec<&str> = group.columns.iter().map(|c| c.field.name().as_str()).collect();
            let left = ["a", "k", "b", "ts", "c", "d"].into_iter().filter(|name| !dropped.contains(name));
            assert_eq!(names, left.collect::<Vec<_>>());
            assert_eq!(names[group.entity_key[0]], "k");
            assert_eq!(names[group.event_time], "ts");
        }
    }

    #[test]
    fn a_wider_type_takes_the_default_along() {
        let changes = [widen_of("a", DataType::Int64), widen_of("b", DataType::Float64)];
        let group = group().changed(&changes).unwrap();
        assert_eq!(group.columns[0].default, Some(ScalarValue::Int64(Some(7))));
        assert_eq!(group.columns[2].field.data_type(), &DataType::Float64);
    }

    #[test]
    fn what_cannot_change_is_said() {
        let not_null =
            Change::AddFeature { column: column("d", DataType::Int64, false), if_not_exists: false };
        let cases = [
            (vec![drop_of("x")], ErrorKind::NotFound, "has no feature 'x': it has a, b, c"),
            (vec![drop_of("k")], ErrorKind::Invalid, "part of its entity key"),
            (vec![drop_of("ts")], ErrorKind::Invalid, "its event time"),
            (vec![widen_of("k", DataType::Int64)], ErrorKind::Invalid, "part of its entity key"),
            (vec![widen_of("a", DataType::Utf8)], ErrorKind::Unsupported, "is Int32 and cannot become Utf8"),
            (vec![widen_of("b", DataType::Int64)], ErrorKind::Unsupported, "only INT becomes BIGINT"),
            (vec![add_of("a")], ErrorKind::AlreadyExists, "a column 'a' already"),
            (vec![add_of("_d")], ErrorKind::Invalid, "starts with '_'"),
            (vec![not_null], ErrorKind::Invalid, "leave out NOT NULL"),
            (vec![drop_of("a"), add_of("a")], ErrorKind::Invalid, "'a' is named twice"),
            (vec![Change::Ttl(Some(Duration::ZERO))], ErrorKind::Invalid, "is zero"),
        ];
        for (changes, kind, expected) in cases {
            let error = group().changed(&changes).unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}
