//! What a descriptor or a ticket asks for, sorted once for all calls.

use arrow_flight::FlightDescriptor;
use arrow_flight::flight_descriptor::DescriptorType;
use arrow_flight::sql::{Any, Command, CommandStatementIngest};
use bytes::Bytes;
use prost::Message;

use super::direct::Direct;
use super::handle::{Statement, Ticket};
use super::metadata::MetadataRequest;
use super::security::Seals;
use crate::error::{Error, Result};

/// More than any that this server makes, and than any client should send.
const COMMAND_BYTES_MAX: usize = 16 << 20;

/// A Flight SQL command that this server understands.
#[derive(Debug)]
pub(super) enum Request {
    /// A statement to run as a query.
    Query(Statement),
    /// A prepared statement: to run as a query, or in `DoPut` to bind.
    Prepared(Statement),
    /// A statement to run for its effect.
    Update(Statement),
    /// A prepared statement to run for its effect, once per row put.
    PreparedUpdate(Statement),
    /// Rows to put into a table.
    Ingest(CommandStatementIngest),
    /// What exists.
    Metadata(MetadataRequest),
    /// The result that a ticket stands for.
    Ticket(Ticket),
    /// A query that the client wrote into the ticket itself.
    Direct(Direct),
}

impl Request {
    /// The request of a `FlightDescriptor`.
    pub(super) fn of_descriptor(descriptor: &FlightDescriptor, seals: &Seals) -> Result<Self> {
        if descriptor.r#type != DescriptorType::Cmd as i32 {
            return Err(Error::invalid(
                "this server knows no flights by path; send a Flight SQL command in the descriptor",
            ));
        }
        Self::of_command(&descriptor.cmd, seals)
    }

    /// The request of a ticket's bytes or a descriptor's command.
    pub(super) fn of_command(bytes: &Bytes, seals: &Seals) -> Result<Self> {
        if bytes.len() > COMMAND_BYTES_MAX {
            return Err(Error::exhausted(format!(
                "the command or ticket takes {} bytes and may take {COMMAND_BYTES_MAX}",
                bytes.len()
            )));
        }
        if Direct::is(bytes) {
            return Ok(Self::Direct(Direct::parse(bytes)?));
        }
        let bad = || {
            Error::invalid(
                r#"this is neither a Flight SQL command (a packed google.protobuf.Any) nor {"query": "SELECT …"}"#,
            )
        };
        let any = Any::decode(bytes.clone()).map_err(|_| bad())?;
        let command = Command::try_from(any).map_err(|error| Error::invalid(error.to_string()))?;
        Self::of(command, seals)
    }

    fn of(command: Command, seals: &Seals) -> Result<Self> {
        use Command as C;
        use MetadataRequest as M;
        Ok(match command {
            C::CommandStatementQuery(c) => {
                refuse_transaction(c.transaction_id.as_ref())?;
                Self::Query(Statement::new(c.query))
            }
            C::CommandStatementUpdate(c) => {
                refuse_transaction(c.transaction_id.as_ref())?;
                Self::Update(Statement::new(c.query))
            }
            C::CommandPreparedStatementQuery(c) => {
                Self::Prepared(Statement::from_handle(&c.prepared_statement_handle, seals)?)
            }
            C::CommandPreparedStatementUpdate(c) => {
                Self::PreparedUpdate(Statement::from_handle(&c.prepared_statement_handle, seals)?)
            }
            C::CommandStatementIngest(c) => {
                refuse_transaction(c.transaction_id.as_ref())?;
                Self::Ingest(c)
            }
            C::TicketStatementQuery(c) => Self::Ticket(Ticket::from_bytes(&c.statement_handle, seals)?),
            C::CommandGetCatalogs(c) => Self::Metadata(M::Catalogs(c)),
            C::CommandGetDbSchemas(c) => Self::Metadata(M::Schemas(c)),
            C::CommandGetTables(c) => Self::Metadata(M::Tables(c)),
            C::CommandGetTableTypes(c) => Self::Metadata(M::TableTypes(c)),
            C::CommandGetPrimaryKeys(c) => Self::Metadata(M::PrimaryKeys(c)),
            // Nothing here refers to anything by a foreign key.
            C::CommandGetExportedKeys(_) | C::CommandGetImportedKeys(_) | C::CommandGetCrossReference(_) => {
                Self::Metadata(M::ForeignKeys)
            }
            C::CommandGetSqlInfo(c) => Self::Metadata(M::SqlInfo(c)),
            C::CommandGetXdbcTypeInfo(c) => Self::Metadata(M::XdbcTypeInfo(c)),
            C::CommandStatementSubstraitPlan(_) => {
                return Err(Error::unsupported("Substrait plans are not supported; send SQL"));
            }
            // Messages of DoAction and DoPut results, which no descriptor or ticket holds.
            other @ (C::ActionBeginSavepointRequest(_)
            | C::ActionBeginSavepointResult(_)
            | C::ActionBeginTransactionRequest(_)
            | C::ActionBeginTransactionResult(_)
            | C::ActionCancelQueryRequest(_)
            | C::ActionCancelQueryResult(_)
            | C::ActionClosePreparedStatementRequest(_)
            | C::ActionCreatePreparedStatementRequest(_)
            | C::ActionCreatePreparedStatementResult(_)
            | C::ActionCreatePreparedSubstraitPlanRequest(_)
            | C::ActionEndSavepointRequest(_)
            | C::ActionEndTransactionRequest(_)
            | C::DoPutPreparedStatementResult(_)
            | C::DoPutUpdateResult(_)) => {
                return Err(Error::invalid(format!("{} is no command", other.type_url())));
            }
            C::Unknown(any) => {
                return Err(Error::unsupported(format!("the command {} is not known here", any.type_url)));
            }
        })
    }
}

/// Every statement commits by itself.
pub(super) fn refuse_transaction(transaction: Option<&Bytes>) -> Result<()> {
    match transaction {
        Some(id) if !id.is_empty() => {
            Err(Error::unsupported("transactions are not supported: every statement commits by itself"))
        }
        _ => Ok(()),
    }
}
