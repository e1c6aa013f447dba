//! What exists and what this server can do, in the tables that Flight SQL prescribes.

mod objects;
mod server_info;
mod type_info;
mod type_names;

use arrow::array::RecordBatch;
use arrow_flight::sql::{
    CommandGetCatalogs, CommandGetDbSchemas, CommandGetPrimaryKeys, CommandGetSqlInfo, CommandGetTableTypes,
    CommandGetTables, CommandGetXdbcTypeInfo,
};

use super::status::from_decoder;
use crate::error::Result;
use crate::metrics::Kind;
use crate::sql::Session;

/// The one catalog.
pub(super) const CATALOG: &str = "fletching";

/// A question about what exists.
#[derive(Debug)]
pub(super) enum MetadataRequest {
    Catalogs(CommandGetCatalogs),
    Schemas(CommandGetDbSchemas),
    Tables(CommandGetTables),
    TableTypes(CommandGetTableTypes),
    PrimaryKeys(CommandGetPrimaryKeys),
    ForeignKeys,
    SqlInfo(CommandGetSqlInfo),
    XdbcTypeInfo(CommandGetXdbcTypeInfo),
}

/// The answer. It is small, so its schema is taken from it too, and cannot differ.
pub(super) async fn answer(session: &Session, request: MetadataRequest) -> Result<RecordBatch> {
    session.counted(Kind::Metadata, answer_to(session, request)).await
}

async fn answer_to(session: &Session, request: MetadataRequest) -> Result<RecordBatch> {
    match request {
        MetadataRequest::Catalogs(command) => {
            let mut builder = command.into_builder();
            builder.append(CATALOG);
            builder.build().map_err(from_decoder)
        }
        MetadataRequest::Schemas(command) => objects::schemas(command, &session.schemas().await?),
        MetadataRequest::Tables(command) => objects::tables(command, session.tables().await?),
        MetadataRequest::TableTypes(command) => objects::table_types(command),
        MetadataRequest::PrimaryKeys(command) => objects::primary_keys(&command, session.tables().await?),
        MetadataRequest::ForeignKeys => Ok(objects::no_foreign_keys()),
        MetadataRequest::SqlInfo(command) => server_info::sql_info(command),
        MetadataRequest::XdbcTypeInfo(command) => type_info::xdbc_type_info(command),
    }
}
