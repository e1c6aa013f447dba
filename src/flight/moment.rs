//! The moment of a query as a ticket carries it; see [`crate::sql::Moment`].

use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use uuid::Uuid;

use crate::model::{LoggedFile, TableName, TableVersion};
use crate::sql::{Moment, Part};

#[derive(Clone, PartialEq, Message)]
pub(super) struct MomentMessage {
    #[prost(sint64, optional, tag = "1")]
    now_us: Option<i64>,
    #[prost(message, optional, tag = "2")]
    settings: Option<SettingsMessage>,
    #[prost(message, repeated, tag = "3")]
    tables: Vec<TableMessage>,
    #[prost(message, optional, tag = "4")]
    part: Option<PartMessage>,
    #[prost(message, optional, tag = "5")]
    temporary: Option<TemporaryMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct TemporaryMessage {
    #[prost(message, repeated, tag = "1")]
    named: Vec<TemporaryObjectMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct TemporaryObjectMessage {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(bytes = "bytes", tag = "2")]
    id: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct SettingsMessage {
    #[prost(message, repeated, tag = "1")]
    changed: Vec<SettingMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct SettingMessage {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct TableMessage {
    #[prost(string, tag = "1")]
    schema: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(bytes = "bytes", tag = "3")]
    table_id: Bytes,
    #[prost(int32, tag = "4")]
    schema_id: i32,
    #[prost(int64, optional, tag = "5")]
    snapshot_id: Option<i64>,
    #[prost(uint64, optional, tag = "6")]
    ttl_us: Option<u64>,
    #[prost(message, repeated, tag = "7")]
    logged: Vec<LoggedFileMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct LoggedFileMessage {
    #[prost(string, tag = "1")]
    path: String,
    #[prost(uint64, tag = "2")]
    bytes: u64,
    #[prost(uint64, tag = "3")]
    rows: u64,
    #[prost(int32, optional, tag = "4")]
    sort_order_id: Option<i32>,
}

impl From<&LoggedFile> for LoggedFileMessage {
    fn from(file: &LoggedFile) -> Self {
        let LoggedFile { path, bytes, rows, sort_order_id } = file.clone();
        Self { path, bytes, rows, sort_order_id }
    }
}

impl From<LoggedFileMessage> for LoggedFile {
    fn from(message: LoggedFileMessage) -> Self {
        let LoggedFileMessage { path, bytes, rows, sort_order_id } = message;
        Self { path, bytes, rows, sort_order_id }
    }
}

#[derive(Clone, PartialEq, Message)]
struct PartMessage {
    #[prost(uint32, tag = "1")]
    index: u32,
    #[prost(uint32, tag = "2")]
    parts: u32,
    #[prost(uint32, tag = "3")]
    partitions: u32,
}

impl From<&Moment> for MomentMessage {
    fn from(moment: &Moment) -> Self {
        let setting =
            |(name, value): &(String, String)| SettingMessage { name: name.clone(), value: value.clone() };
        let table = |version: &TableVersion| TableMessage {
            schema: version.name.schema.clone(),
            name: version.name.name.clone(),
            table_id: Bytes::copy_from_slice(version.table_id.as_bytes()),
            schema_id: version.schema_id,
            snapshot_id: version.snapshot_id,
            ttl_us: version.ttl.map(|ttl| u64::try_from(ttl.as_micros()).unwrap_or(u64::MAX)),
            logged: version.logged.iter().map(LoggedFileMessage::from).collect(),
        };
        let object = |(name, id): &(String, Uuid)| TemporaryObjectMessage {
            name: name.clone(),
            id: Bytes::copy_from_slice(id.as_bytes()),
        };
        // Partitions and parts are bounded by settings that are far below.
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Self {
            now_us: moment.now_us,
            settings: { moment.settings.as_ref() }
                .map(|changed| SettingsMessage { changed: changed.iter().map(setting).collect() }),
            tables: moment.tables.iter().map(table).collect(),
            temporary: { moment.temporary.as_ref() }
                .map(|named| TemporaryMessage { named: named.iter().map(object).collect() }),
            part: moment.part.map(|part| PartMessage {
                index: count(part.index),
                parts: count(part.parts),
                partitions: count(part.partitions),
            }),
        }
    }
}

impl MomentMessage {
    /// `None` for bytes that are no moment.
    pub(super) fn moment(self) -> Option<Moment> {
        let table = |table: TableMessage| {
            Some(TableVersion {
                name: TableName::new(table.schema, table.name),
                table_id: Uuid::from_slice(&table.table_id).ok()?,
                schema_id: table.schema_id,
                snapshot_id: table.snapshot_id,
                ttl: table.ttl_us.map(Duration::from_micros),
                logged: table.logged.into_iter().map(LoggedFile::from).collect(),
            })
        };
        let part = |part: PartMessage| Part {
            index: part.index as usize,
            parts: part.parts as usize,
            partitions: part.partitions as usize,
        };
        let object = |object: TemporaryObjectMessage| Some((object.name, Uuid::from_slice(&object.id).ok()?));
        let pair = |setting: SettingMessage| (setting.name, setting.value);
        Some(Moment {
            now_us: self.now_us,
            settings: self.settings.map(|settings| settings.changed.into_iter().map(pair).collect()),
            tables: self.tables.into_iter().map(table).collect::<Option<_>>()?,
            temporary: match self.temporary {
                Some(temporary) => Some(temporary.named.into_iter().map(object).collect::<Option<_>>()?),
                None => None,
            },
            part: self.part.map(part).filter(|part| part.parts > 0),
        })
    }
}
