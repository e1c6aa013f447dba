//! `ALTER FEATURE GROUP`: one statement, one new version of the Iceberg table's metadata, and no file written anew.
//!
//! ```text
//! ALTER FEATURE GROUP [IF EXISTS] name action, …
//!
//! ADD FEATURE [IF NOT EXISTS] column type [DEFAULT value] [COMMENT '…']     ALTER FEATURE column [SET DATA] TYPE type
//! DROP FEATURE [IF EXISTS] column                                           ALTER FEATURE column COMMENT '…' | NULL
//! SET (ttl = …, owner = …, description = …, tags = …, online = …)           where NULL takes away what there is
//! ```
//!
//! 1. The actions become [`Change`]s of a definition, their types and defaults planned as those of `CREATE FEATURE GROUP`.
//! 2. The registry applies them to the definition that the catalog has by then, and commits; again, where others commit
//!    first. Writes under way keep the columns they began with: files are read by field id.
//! 3. The online store follows: it reads rows of every schema, so only what it never had, or let go too early, is replayed.

use std::sync::Arc;

use datafusion::arrow::datatypes::DataType;
use datafusion::execution::SessionState;
use datafusion::sql::sqlparser::ast::{ColumnDef, Ident, ObjectName, SqlOption};
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::Token;

use super::definition::{self, normalized};
use super::session::{Planned, Session, default_schema, table_name};
use crate::error::{Error, Result};
use crate::model::{Change, Column, TableName};
use crate::registry::Object;

/// `ALTER FEATURE GROUP`, as written.
#[derive(Debug)]
pub(super) struct AlterFeatureGroup {
    name: ObjectName,
    if_exists: bool,
    actions: Vec<Action>,
}

#[derive(Debug)]
enum Action {
    Add {
        column: ColumnDef,
        if_not_exists: bool,
    },
    Drop {
        column: Ident,
        if_exists: bool,
    },
    /// A column of the new type.
    Widen(ColumnDef),
    Describe {
        column: Ident,
        description: Option<String>,
    },
    Set(Vec<SqlOption>),
}

/// What stands behind `ALTER FEATURE GROUP`.
pub(super) fn parse(parser: &mut Parser<'_>) -> Result<AlterFeatureGroup, ParserError> {
    let if_exists = parser.parse_keywords(&[Keyword::IF, Keyword::EXISTS]);
    let name = parser.parse_object_name(false)?;
    let mut actions = vec![action(parser)?];
    while parser.consume_token(&Token::Comma) {
        actions.push(action(parser)?);
    }
    Ok(AlterFeatureGroup { name, if_exists, actions })
}

fn action(parser: &mut Parser<'_>) -> Result<Action, ParserError> {
    if parser.parse_keyword(Keyword::ADD) {
        feature(parser)?;
        let if_not_exists = parser.parse_keywords(&[Keyword::IF, Keyword::NOT, Keyword::EXISTS]);
        Ok(Action::Add { column: parser.parse_column_def()?, if_not_exists })
    } else if parser.parse_keyword(Keyword::DROP) {
        feature(parser)?;
        let if_exists = parser.parse_keywords(&[Keyword::IF, Keyword::EXISTS]);
        Ok(Action::Drop { column: parser.parse_identifier()?, if_exists })
    } else if parser.parse_keyword(Keyword::ALTER) {
        feature(parser)?;
        let name = parser.parse_identifier()?;
        if parser.parse_keyword(Keyword::COMMENT) {
            let _ = parser.consume_token(&Token::Eq);
            let is_null = parser.parse_keyword(Keyword::NULL);
            let description = if is_null { None } else { Some(parser.parse_literal_string()?) };
            return Ok(Action::Describe { column: name, description });
        }
        let _ = parser.parse_keywords(&[Keyword::SET, Keyword::DATA]);
        if !parser.parse_keyword(Keyword::TYPE) {
            return parser.expected("TYPE or COMMENT after ALTER FEATURE and its name", parser.peek_token());
        }
        Ok(Action::Widen(ColumnDef { name, data_type: parser.parse_data_type()?, options: vec![] }))
    } else if parser.peek_keyword(Keyword::SET) {
        Ok(Action::Set(parser.parse_options(Keyword::SET)?))
    } else {
        parser.expected("ADD FEATURE, DROP FEATURE, ALTER FEATURE or SET (…)", parser.peek_token())
    }
}

/// The word FEATURE, which is no keyword of SQL.
fn feature(parser: &mut Parser<'_>) -> Result<(), ParserError> {
    let next = parser.next_token();
    match &next.token {
        Token::Word(word) if word.quote_style.is_none() && word.value.eq_ignore_ascii_case("FEATURE") => {
            Ok(())
        }
        _ => parser.expected("FEATURE", next),
    }
}

/// The statement with its names and types resolved.
pub(super) async fn planned(state: &SessionState, alter: AlterFeatureGroup) -> Result<Planned> {
    let name = table_name(&alter.name, default_schema(state))?;
    let mut changes = Vec::with_capacity(alter.actions.len());
    for action in alter.actions {
        match action {
            Action::Add { column, if_not_exists } => {
                changes.push(Change::AddFeature { column: column_of(state, column).await?, if_not_exists });
            }
            Action::Drop { column, if_exists } => {
                changes.push(Change::DropFeature { name: normalized(&column), if_exists });
            }
            Action::Widen(column) => {
                let data_type: DataType = column_of(state, column.clone()).await?.field.data_type().clone();
                changes.push(Change::WidenFeature { name: normalized(&column.name), data_type });
            }
            Action::Describe { column, description } => {
                changes.push(Change::DescribeFeature { name: normalized(&column), description });
            }
            Action::Set(options) => changes.extend(definition::options(&name, &options)?),
        }
    }
    Ok(Planned::AlterFeatureGroup { name, if_exists: alter.if_exists, changes })
}

async fn column_of(state: &SessionState, column: ColumnDef) -> Result<Column> {
    let column = definition::columns(state, &[column]).await?.pop();
    column.ok_or_else(|| Error::internal("a column was planned as none"))
}

impl Session {
    pub(super) async fn alter_feature_group(
        &self,
        name: &TableName,
        if_exists: bool,
        changes: &[Change],
    ) -> Result<()> {
        let (group, table) = match self.catalog.object(name).await? {
            Some(Object::FeatureGroup(group, table)) => (group, table),
            Some(Object::Table(_)) => {
                return Err(Error::invalid(format!(
                    "'{name}' is a plain table, not a feature group: CREATE TABLE … AS SELECT makes one of other columns"
                )));
            }
            None if if_exists => return Ok(()),
            None => return Err(Error::not_found(format!("feature group '{name}' does not exist"))),
        };
        let ingest = &self.engine.ingest;
        // What was logged before the change is in a snapshot of before it.
        self.engine.checkpoint(Some(name)).await?;
        if ingest.must_replay(&group, &group.changed(changes)?) {
            // Before the commit, so that a server that starts again after a crash knows that something is missing.
            ingest.forget_applied(group.id).await?;
        }
        let altered = self.engine.registry.alter(&table, changes).await?;
        if ingest.must_replay(&altered.before, &altered.after) {
            let replay = Arc::clone(ingest);
            let replay = async move {
                // Who caught up meanwhile did so by the definition of before.
                replay.forget_applied(altered.after.id).await?;
                replay.rebuild(&altered.after, &altered.table, &|_| ()).await
            };
            if let Err(error) = self.engine.compute.run(replay).await {
                tracing::warn!(group = %name, %error, "online store is behind until it answers");
            }
        } else if altered.before.online
            && !altered.after.online
            && let Err(error) = ingest.drop_unserved(&altered.after).await
        {
            // Nobody reads them, and should the group be served again, all of it is replayed.
            tracing::warn!(group = %name, %error, "online entries of a group that is not served were not removed");
        }
        Ok(())
    }
}
