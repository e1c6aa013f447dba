//! Statements that create, drop and set: what each does to the stores and to the session.

use std::sync::Arc;

use datafusion::arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::common::TableReference;
use datafusion::datasource::ViewTable;
use datafusion::execution::{SendableRecordBatchStream, SessionState};
use datafusion::logical_expr::{
    CreateCatalogSchema, CreateMemoryTable, CreateView, DdlStatement, DropCatalogSchema, DropTable, DropView,
    LogicalPlan,
};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;

use super::definition;
use super::session::{Session, default_schema, referenced, run, table_name};
use super::statement::CreateFeatureGroup;
use super::system;
use super::temp::TempTable;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{IdempotencyKey, TableName};
use crate::offline::{TableSpec, storage_schema};
use crate::registry::{DEFAULT_SCHEMA, Object, table_of};

pub(super) const RESERVED_SCHEMAS: [&str; 2] = [system::SCHEMA, "information_schema"];

impl Session {
    pub(super) async fn create_feature_group(
        &self,
        state: &SessionState,
        create: CreateFeatureGroup,
    ) -> Result<()> {
        let name = table_name(&create.name, default_schema(state))?;
        let if_not_exists = create.if_not_exists;
        self.check_creatable(&name)?;
        let group = definition::feature_group(state, name.clone(), create).await?;
        match self.engine.offline.create(&table_of(&group)?, None, &self.engine.runtime.memory_pool).await {
            Err(error) if error.kind() == ErrorKind::AlreadyExists && if_not_exists => {
                match self.catalog.object(&name).await? {
                    Some(Object::Table(_)) => Err(Error::already_exists(format!(
                        "'{name}' exists and is a plain table, not a feature group"
                    ))),
                    _ => Ok(()),
                }
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(Error::already_exists(format!(
                "'{name}' exists already: DROP it first, or use IF NOT EXISTS"
            ))),
            created => created.map(|_| ()),
        }
    }

    pub(super) async fn drop_feature_group(&self, name: &TableName, if_exists: bool) -> Result<()> {
        match self.catalog.object(name).await? {
            Some(Object::FeatureGroup(group, table)) => {
                self.engine.offline.drop_table(&table).await?;
                if group.online
                    && let Err(error) = self.engine.online.drop_group(group.id).await
                {
                    // Entries are keyed by the group's id, which never comes back: they are unreachable.
                    tracing::warn!(group = %name, %error, "online entries of a dropped group were not removed");
                }
                Ok(())
            }
            Some(Object::Table(_)) => {
                Err(Error::invalid(format!("'{name}' is a plain table, not a feature group: use DROP TABLE")))
            }
            None if if_exists => Ok(()),
            None => Err(Error::not_found(format!("feature group '{name}' does not exist"))),
        }
    }

    pub(super) async fn run_ddl(
        &self,
        state: &SessionState,
        ddl: DdlStatement,
        key: Option<&IdempotencyKey>,
    ) -> Result<u64> {
        match ddl {
            DdlStatement::CreateMemoryTable(create) => self.create_table(state, create, key).await,
            DdlStatement::CreateView(create) => self.create_view(create).map(|()| 0),
            DdlStatement::DropTable(DropTable { name, if_exists, .. }) => {
                self.drop_table(&name, if_exists).await.map(|()| 0)
            }
            DdlStatement::DropView(DropView { name, if_exists, .. }) => {
                self.drop_view(&name, if_exists).map(|()| 0)
            }
            DdlStatement::CreateCatalogSchema(create) => self.create_schema(create).await.map(|()| 0),
            DdlStatement::DropCatalogSchema(drop) => self.drop_schema(drop).await.map(|()| 0),
            DdlStatement::CreateExternalTable(_) => Err(Error::unsupported(
                "CREATE EXTERNAL TABLE is not supported: the server reads no files of its own accord; load them with a client",
            )),
            other => Err(Error::unsupported(format!("{} is not supported", other.name()))),
        }
    }

    async fn create_table(
        &self,
        state: &SessionState,
        create: CreateMemoryTable,
        key: Option<&IdempotencyKey>,
    ) -> Result<u64> {
        let CreateMemoryTable {
            name,
            constraints,
            input,
            if_not_exists,
            or_replace,
            column_defaults,
            temporary,
        } = create;
        let name = referenced(&name, default_schema(state))?;
        if constraints.iter().next().is_some() {
            return Err(Error::unsupported(format!(
                "PRIMARY KEY and UNIQUE of table '{name}' would not be enforced: leave them out, or CREATE FEATURE GROUP"
            )));
        }
        if !column_defaults.is_empty() {
            return Err(Error::unsupported(format!(
                "DEFAULT is for feature groups: leave it out of table '{name}', or CREATE FEATURE GROUP"
            )));
        }
        let rows = match input.as_ref() {
            LogicalPlan::EmptyRelation(empty) if !empty.produce_one_row => None,
            query => Some(query),
        };
        if temporary {
            return self
                .create_temp_table(state, &name, rows, input.schema().inner(), if_not_exists, or_replace)
                .await;
        }
        self.check_creatable(&name)?;
        if if_not_exists && self.catalog.object(&name).await?.is_some() {
            return Ok(0);
        }
        match rows {
            Some(query) => {
                let rows = nullable(run(state, query).await?);
                match or_replace {
                    true => self.engine.ingest.replace_table(&name, rows, key).await,
                    false => self.engine.ingest.create_table(&name, rows, key).await,
                }
            }
            None if or_replace => {
                let schema = storage_schema(input.schema().as_arrow())?;
                let none = RecordBatchStreamAdapter::new(schema, futures::stream::empty());
                self.engine.ingest.replace_table(&name, Box::pin(none), key).await
            }
            None => {
                let schema = storage_schema(input.schema().as_arrow())?;
                let memory = &self.engine.runtime.memory_pool;
                self.engine.offline.create(&TableSpec::plain(name, schema), None, memory).await
            }
        }
    }

    async fn create_temp_table(
        &self,
        state: &SessionState,
        name: &TableName,
        rows: Option<&LogicalPlan>,
        schema: &SchemaRef,
        if_not_exists: bool,
        or_replace: bool,
    ) -> Result<u64> {
        self.check_temp_name(name)?;
        if if_not_exists && self.catalog.temp.get(&name.name).is_some() {
            return Ok(0);
        }
        let pool = &self.engine.runtime.memory_pool;
        let (table, count) = match rows {
            Some(query) => {
                let rows = nullable(run(state, query).await?);
                let table = TempTable::new(&name.name, &rows.schema(), pool)?;
                let count = table.append(rows).await?;
                (table, count)
            }
            None => (TempTable::new(&name.name, schema, pool)?, 0),
        };
        self.catalog.temp.insert(&name.name, Arc::new(table), or_replace)?;
        Ok(count)
    }

    fn create_view(&self, create: CreateView) -> Result<()> {
        let name = referenced(&create.name, &self.catalog.schema())?;
        if !create.temporary {
            return Err(Error::unsupported(format!(
                "views are not kept yet: CREATE TEMPORARY VIEW {} lasts as long as the session",
                name.name
            )));
        }
        self.check_temp_name(&name)?;
        let view = ViewTable::new(create.input.as_ref().clone(), create.definition);
        self.catalog.temp.insert(&name.name, Arc::new(view), create.or_replace)
    }

    async fn drop_table(&self, reference: &TableReference, if_exists: bool) -> Result<()> {
        let name = referenced(reference, &self.catalog.schema())?;
        if self.catalog.holds_temp(&name.schema)
            && let Some(object) = self.catalog.temp.get(&name.name)
        {
            if object.as_any().is::<ViewTable>() {
                return Err(Error::invalid(format!("'{}' is a view: use DROP VIEW", name.name)));
            }
            self.catalog.temp.remove(&name.name);
            return Ok(());
        }
        match self.catalog.object(&name).await? {
            Some(Object::Table(table)) => self.engine.offline.drop_table(&table).await,
            Some(Object::FeatureGroup(..)) => {
                Err(Error::invalid(format!("'{name}' is a feature group: use DROP FEATURE GROUP")))
            }
            None if if_exists => Ok(()),
            None => Err(Error::not_found(format!("table '{name}' does not exist"))),
        }
    }

    fn drop_view(&self, reference: &TableReference, if_exists: bool) -> Result<()> {
        let name = referenced(reference, &self.catalog.schema())?;
        match self.catalog.temp.get(&name.name) {
            Some(object) if object.as_any().is::<ViewTable>() => {
                self.catalog.temp.remove(&name.name);
                Ok(())
            }
            Some(_) => Err(Error::invalid(format!("'{}' is a table: use DROP TABLE", name.name))),
            None if if_exists => Ok(()),
            None => Err(Error::not_found(format!("view '{}' does not exist", name.name))),
        }
    }

    async fn create_schema(&self, create: CreateCatalogSchema) -> Result<()> {
        let name = schema_name(&create.schema_name)?;
        let taken = RESERVED_SCHEMAS.contains(&name) || name == DEFAULT_SCHEMA;
        if taken || !self.engine.offline.create_schema(name).await? {
            return match create.if_not_exists {
                true => Ok(()),
                false => Err(Error::already_exists(format!("schema '{name}' exists already"))),
            };
        }
        Ok(())
    }

    async fn drop_schema(&self, drop: DropCatalogSchema) -> Result<()> {
        let name = match &drop.name {
            datafusion::common::SchemaReference::Bare { schema } => schema.to_string(),
            datafusion::common::SchemaReference::Full { schema, .. } => schema.to_string(),
        };
        if RESERVED_SCHEMAS.contains(&name.as_str()) || name == DEFAULT_SCHEMA {
            return Err(Error::invalid(format!("schema '{name}' cannot be dropped")));
        }
        let listing = self.catalog.listing();
        if !listing.schemas.contains(&name) {
            return match drop.if_exists {
                true => Ok(()),
                false => Err(Error::not_found(format!("schema '{name}' does not exist"))),
            };
        }
        if drop.cascade {
            return Err(Error::unsupported(format!(
                "DROP SCHEMA '{name}' CASCADE is not supported: drop its tables first"
            )));
        }
        match self.engine.offline.drop_schema(&name).await? {
            true => Ok(()),
            false => Err(Error::invalid(format!("schema '{name}' is not empty: drop its tables first"))),
        }
    }

    /// Whether a stored object of that name may be created at all.
    pub(super) fn check_creatable(&self, name: &TableName) -> Result<()> {
        if RESERVED_SCHEMAS.contains(&name.schema.as_str()) {
            return Err(Error::invalid(format!(
                "schema '{}' is read-only: create '{}' elsewhere",
                name.schema, name.name
            )));
        }
        if name.name.is_empty() || name.name.contains(['$', '@']) {
            return Err(Error::invalid(format!(
                "'{name}' cannot be a table's name: it must not be empty nor contain '$' or '@'"
            )));
        }
        if !self.catalog.listing().schemas.contains(&name.schema) {
            return Err(Error::not_found(format!(
                "schema '{}' does not exist: CREATE SCHEMA {0}",
                name.schema
            )));
        }
        Ok(())
    }

    pub(super) fn check_temp_name(&self, name: &TableName) -> Result<()> {
        match self.catalog.holds_temp(&name.schema) {
            true => Ok(()),
            false => Err(Error::invalid(format!(
                "temporary table '{}' cannot be in schema '{}': give its name alone",
                name.name, name.schema
            ))),
        }
    }
}

fn schema_name(name: &str) -> Result<&str> {
    let bare = name.strip_prefix("fletching.").unwrap_or(name);
    match bare.contains('.') || bare.is_empty() {
        true => Err(Error::invalid(format!("'{name}' is not the name of a schema: write one word"))),
        false => Ok(bare),
    }
}

/// The same rows with every column nullable: a query's own claim does not bind the table made of it.
pub(super) fn nullable(rows: SendableRecordBatchStream) -> SendableRecordBatchStream {
    let fields: Vec<Field> =
        rows.schema().fields().iter().map(|f| f.as_ref().clone().with_nullable(true)).collect();
    let schema = Arc::new(Schema::new(fields));
    super::output::to_wire(rows, &schema)
}
