//! Text to statement: DataFusion's grammar, plus what feature groups add to it.
//!
//! ```text
//! CREATE FEATURE GROUP [IF NOT EXISTS] name (column …, ENTITY KEY (…), EVENT TIME (…)) [COMMENT '…'] [WITH (…)]
//! ALTER FEATURE GROUP [IF EXISTS] name ADD FEATURE … | DROP FEATURE … | ALTER FEATURE … | SET (…), …
//! DROP FEATURE GROUP [IF EXISTS] name      SHOW FEATURE GROUPS      SHOW SCHEMAS      DESCRIBE name      USE [SCHEMA] name      KILL QUERY 'id'
//! REFRESH ONLINE name [FULL]               CHECKPOINT [name]
//! OPTIMIZE name [FULL]                       VACUUM name [RETAIN '7 days' | RETAIN 168 HOURS]
//! PURGE name
//! COPY name [(column, …)] FROM 'file' [(option, …)]
//! ```

use std::time::Duration;

use datafusion::sql::parser::{DFParser, DFParserBuilder, Statement as DataFusionStatement};
use datafusion::sql::sqlparser::ast::{
    ColumnDef, Ident, ObjectName, Set, SqlOption, Statement as SqlStatement,
};
use datafusion::sql::sqlparser::dialect::{Dialect, GenericDialect};
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer, TokenizerError};
use uuid::Uuid;

use super::alter::{self, AlterFeatureGroup};
use super::asof;
use super::copy::{self, CopyFrom};
use super::definition::duration;
use super::latest;
use super::settings::Setting;
use super::time_travel;
use crate::error::{Error, Result};
use crate::offline::Extent;

static DIALECT: GenericDialect = GenericDialect {};

/// What is parsed takes many times the memory of its text; and handles and tickets carry the text.
pub(crate) const STATEMENT_BYTES_MAX: usize = 2 << 20;

/// Levels of one expression; the threads that plan have stacks for as many, see [`crate::stack`]. To plan so many takes
/// seconds: the optimizer's time grows with their square.
const DEPTH_MAX: usize = 2000;

/// One parsed statement.
#[derive(Debug)]
pub(super) enum Statement {
    DataFusion(Box<DataFusionStatement>),
    CreateFeatureGroup(Box<CreateFeatureGroup>),
    DropFeatureGroup { name: ObjectName, if_exists: bool },
    AlterFeatureGroup(Box<AlterFeatureGroup>),
    ShowFeatureGroups,
    ShowSchemas,
    Describe(ObjectName),
    KillQuery(Uuid),
    RefreshOnline { name: ObjectName, full: bool },
    Checkpoint(Option<ObjectName>),
    Use(ObjectName),
    Optimize { name: ObjectName, extent: Extent },
    Vacuum { name: ObjectName, retain: Option<Duration> },
    Purge(ObjectName),
    Copy(Box<CopyFrom>),
}

/// `CREATE FEATURE GROUP`, as written.
#[derive(Debug)]
pub(super) struct CreateFeatureGroup {
    pub(super) name: ObjectName,
    pub(super) if_not_exists: bool,
    pub(super) columns: Vec<ColumnDef>,
    pub(super) entity_key: Vec<Ident>,
    pub(super) event_time: Vec<Ident>,
    pub(super) comment: Option<String>,
    pub(super) options: Vec<SqlOption>,
}

/// Parses exactly one statement; a trailing `;` is welcome.
pub(super) fn parse(sql: &str) -> Result<Statement> {
    if sql.len() > STATEMENT_BYTES_MAX {
        return Err(Error::exhausted(format!(
            "the statement takes {} bytes and may take {STATEMENT_BYTES_MAX}: bind its values as parameters, or ingest \
             them as a temporary table",
            sql.len()
        )));
    }
    let dialect: &'static dyn Dialect = &DIALECT;
    let mut tokens = Tokenizer::new(dialect, sql).tokenize_with_location().map_err(unreadable)?;
    check_depth(&tokens)?;
    number_placeholders(&mut tokens)?;
    let tokens = asof::rewrite_tokens(time_travel::rewrite_tokens(tokens)?)?;

    let words = leading_words(&tokens);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    by_words(&words, Parser::new(dialect).with_tokens_with_locations(tokens))
}

fn by_words(words: &[&str], mut parser: Parser<'static>) -> Result<Statement> {
    match words {
        [] => Err(Error::invalid("there is no SQL statement to run")),
        ["CREATE", "FEATURE", "GROUP", ..] => finished(create_feature_group(&mut parser), &mut parser),
        ["CREATE", "OR", "REPLACE", "FEATURE"] => Err(Error::unsupported(
            "CREATE OR REPLACE FEATURE GROUP would lose history: DROP FEATURE GROUP first, or use IF NOT EXISTS",
        )),
        ["DROP", "FEATURE", "GROUP", ..] => finished(drop_feature_group(&mut parser), &mut parser),
        ["ALTER", "FEATURE", "GROUP", ..] => {
            words_of(&mut parser, 3);
            let alter = alter::parse(&mut parser).map(|alter| Statement::AlterFeatureGroup(Box::new(alter)));
            finished(alter, &mut parser)
        }
        ["ALTER", "TABLE" | "FEATURE", ..] => Err(Error::unsupported(
            "ALTER is for feature groups: ALTER FEATURE GROUP name ADD FEATURE, DROP FEATURE, ALTER FEATURE or SET (…)",
        )),
        ["SHOW", "FEATURE", "GROUPS", ..] => {
            words_of(&mut parser, 3);
            finished(Ok(Statement::ShowFeatureGroups), &mut parser)
        }
        ["SHOW", "SCHEMAS" | "DATABASES"] => {
            words_of(&mut parser, 2);
            finished(Ok(Statement::ShowSchemas), &mut parser)
        }
        ["KILL", "QUERY", ..] => kill_query(&mut parser),
        ["BEGIN" | "START" | "COMMIT" | "ROLLBACK", ..] => {
            Err(Error::unsupported("transactions are not supported: every statement commits by itself"))
        }
        ["CHECKPOINT", ..] => finished(checkpoint(&mut parser), &mut parser),
        ["REFRESH" | "OPTIMIZE" | "PURGE" | "VACUUM" | "COPY", ..] => work(words, &mut parser),
        ["EXPLAIN", "COPY", ..] | ["EXPLAIN", _, "COPY", ..] => Err(Error::unsupported(
            "EXPLAIN of COPY is not supported: its files are read one after the other, and their rows sorted as they come",
        )),
        ["DESCRIBE" | "DESC", ..] => {
            words_of(&mut parser, 1);
            let _ = parser.parse_keyword(Keyword::TABLE);
            let name = parser.parse_object_name(false).map(Statement::Describe);
            finished(name, &mut parser)
        }
        ["USE", ..] => {
            words_of(&mut parser, 1);
            let _ = parser.parse_keyword(Keyword::SCHEMA);
            let name = parser.parse_object_name(false).map(Statement::Use);
            finished(name, &mut parser)
        }
        _ => datafusion_statement(parser),
    }
}

fn checkpoint(parser: &mut Parser<'_>) -> std::result::Result<Statement, ParserError> {
    words_of(parser, 1);
    let is_of_all = matches!(parser.peek_token().token, Token::EOF | Token::SemiColon);
    let name = (!is_of_all).then(|| parser.parse_object_name(false)).transpose()?;
    Ok(Statement::Checkpoint(name))
}

/// What is done to the rows of one table, and may take long.
fn work(words: &[&str], parser: &mut Parser<'_>) -> Result<Statement> {
    match words {
        ["REFRESH", "ONLINE", ..] => {
            words_of(parser, 2);
            let name = parser.parse_object_name(false);
            let full = parser.parse_keyword(Keyword::FULL);
            finished(name.map(|name| Statement::RefreshOnline { name, full }), parser)
        }
        ["OPTIMIZE", ..] => finished(optimize(parser), parser),
        ["PURGE", ..] => {
            words_of(parser, 1);
            let _ = parser.parse_keyword(Keyword::TABLE);
            let name = parser.parse_object_name(false).map(Statement::Purge);
            finished(name, parser)
        }
        ["VACUUM", ..] => vacuum(parser).and_then(|vacuum| finished(Ok(vacuum), parser)),
        ["COPY", ..] => {
            words_of(parser, 1);
            let copy = copy::parse(parser)?;
            finished(Ok(Statement::Copy(Box::new(copy))), parser)
        }
        _ => Err(Error::invalid(
            "SQL does not parse: write REFRESH ONLINE feature_group, or REFRESH ONLINE feature_group FULL",
        )),
    }
}

fn kill_query(parser: &mut Parser<'_>) -> Result<Statement> {
    words_of(parser, 2);
    let hint = "write KILL QUERY '…' with a query_id of system.queries";
    let id = parser.parse_literal_string();
    let id = id.map_err(|_| Error::invalid(format!("the id of a query is a text: {hint}")))?;
    let id = id.parse().map_err(|_| Error::invalid(format!("'{id}' is no query's id: {hint}")))?;
    finished(Ok(Statement::KillQuery(id)), parser)
}

fn datafusion_statement(parser: Parser<'static>) -> Result<Statement> {
    let mut datafusion: DFParser<'static> = DFParserBuilder::new("").with_dialect(&DIALECT).build()?;
    datafusion.parser = parser;
    let mut statement = datafusion.parse_statement()?;
    end_of_statement(&mut datafusion.parser)?;
    name_setting(&mut statement);
    time_travel::rewrite_statement(&mut statement);
    asof::rewrite_statement(&mut statement);
    latest::rewrite_statement(&mut statement);
    Ok(Statement::DataFusion(Box::new(statement)))
}

/// Settings go by shorter names too: `SHOW schema`, `SET TIME ZONE 'UTC'`.
fn name_setting(statement: &mut DataFusionStatement) {
    let DataFusionStatement::Statement(statement) = statement else { return };
    match statement.as_mut() {
        SqlStatement::ShowVariable { variable } => {
            let verbose = variable.pop_if(|word| word.value.eq_ignore_ascii_case("verbose"));
            let name = variable.iter().map(|word| word.value.as_str()).collect::<Vec<_>>().join(".");
            if let Some(setting) = Setting::find(&name) {
                *variable = setting.shown_as().split('.').map(Ident::new).collect();
            }
            variable.extend(verbose);
        }
        SqlStatement::Set(set) => {
            if let Set::SetTimeZone { local: false, value } = set {
                *set = Set::SingleAssignment {
                    scope: None,
                    hivevar: false,
                    variable: vec![Ident::new(Setting::TimeZone.key())].into(),
                    values: vec![value.clone()],
                };
            }
        }
        _ => {}
    }
}

fn finished(statement: Result<Statement, ParserError>, parser: &mut Parser<'_>) -> Result<Statement> {
    let statement = statement.map_err(unparsable)?;
    end_of_statement(parser)?;
    Ok(statement)
}

fn end_of_statement(parser: &mut Parser<'_>) -> Result<()> {
    let mut has_ended = false;
    while parser.consume_token(&Token::SemiColon) {
        has_ended = true;
    }
    let next = parser.peek_token();
    let (at, token) = (next.span.start, next.token);
    match token {
        Token::EOF => Ok(()),
        other if has_ended => Err(Error::invalid(format!(
            "there is more after the end of the statement, at '{other}': send one statement at a time"
        ))),
        other => Err(Error::invalid(format!(
            "SQL does not parse: '{other}' was not expected at line {}, column {}",
            at.line, at.column
        ))),
    }
}

fn words_of(parser: &mut Parser<'_>, count: usize) {
    for _ in 0..count {
        parser.next_token();
    }
}

/// The first words of the statement, in upper case.
fn leading_words(tokens: &[TokenWithSpan]) -> Vec<String> {
    let mut words = Vec::new();
    for token in tokens {
        match &token.token {
            Token::Whitespace(_) => {}
            Token::Word(word) if words.len() < 4 => words.push(word.value.to_uppercase()),
            Token::EOF | Token::SemiColon if words.is_empty() => {}
            _ if words.is_empty() => return vec![String::new()],
            _ => break,
        }
    }
    words
}

/// Refuses what is nested too deeply. An operator is a level: `1 + 1 + 1` is two deep. Parser, planner and optimizer walk
/// such trees by calling themselves, so a thread's stack bounds how deep they may be.
fn check_depth(tokens: &[TokenWithSpan]) -> Result<()> {
    let mut outer = Vec::new();
    let mut here = Depth::default();
    for token in tokens {
        match &token.token {
            Token::LParen | Token::LBracket => outer.push(std::mem::take(&mut here)),
            Token::RParen | Token::RBracket => {
                let within = here.deepest();
                let Some(before) = outer.pop() else { break }; // which the parser will tell of
                here = Depth { nested: before.nested.max(within + 1), ..before };
            }
            Token::Comma => here.begin_next(),
            Token::Word(word) if word.quote_style.is_none() => match word.keyword {
                Keyword::WHEN | Keyword::THEN | Keyword::ELSE => here.begin_next(),
                Keyword::AND | Keyword::OR | Keyword::NOT => here.operators += 1,
                Keyword::UNION | Keyword::EXCEPT | Keyword::INTERSECT | Keyword::JOIN => here.operators += 1,
                _ => {}
            },
            Token::Word(_) | Token::Number(..) | Token::SingleQuotedString(_) | Token::Placeholder(_) => {}
            // Comparisons stand between others, and do not follow one another.
            Token::Eq | Token::Neq | Token::Lt | Token::LtEq | Token::Gt | Token::GtEq => {}
            Token::Whitespace(_) | Token::Period => {}
            _ => here.operators += 1,
        }
        if here.deepest() > DEPTH_MAX {
            let at = token.span.start;
            return Err(Error::invalid(format!(
                "the statement has more than {DEPTH_MAX} operators in one expression, at line {}, column {}: write IN (…) \
                 for many alternatives, or join a table of them",
                at.line, at.column
            )));
        }
    }
    Ok(())
}

/// How deep the expressions between two brackets are, at most.
#[derive(Default)]
struct Depth {
    /// Operators since the last comma.
    operators: usize,
    /// The deepest of what was nested between them.
    nested: usize,
    /// The deepest expression before that comma.
    before: usize,
}

impl Depth {
    fn deepest(&self) -> usize {
        self.before.max(self.operators + self.nested)
    }

    fn begin_next(&mut self) {
        *self = Self { before: self.deepest(), ..Self::default() };
    }
}

/// DataFusion counts `$1, $2, …`; a `?` is the next of them.
fn number_placeholders(tokens: &mut [TokenWithSpan]) -> Result<()> {
    let mut next = 0;
    let mut numbered = false;
    for token in tokens {
        if let Token::Placeholder(name) = &mut token.token {
            if name == "?" {
                next += 1;
                *name = format!("${next}");
            } else {
                numbered = true;
            }
        }
    }
    if next > 0 && numbered {
        return Err(Error::invalid("the statement mixes ? and $n parameters: use one kind"));
    }
    Ok(())
}

fn create_feature_group(parser: &mut Parser<'_>) -> Result<Statement, ParserError> {
    words_of(parser, 3);
    let if_not_exists = parser.parse_keywords(&[Keyword::IF, Keyword::NOT, Keyword::EXISTS]);
    let mut create = CreateFeatureGroup {
        name: parser.parse_object_name(false)?,
        if_not_exists,
        columns: Vec::new(),
        entity_key: Vec::new(),
        event_time: Vec::new(),
        comment: None,
        options: Vec::new(),
    };
    parser.expect_token(&Token::LParen)?;
    loop {
        if starts_with(parser, "ENTITY", "KEY") {
            words_of(parser, 2);
            create.entity_key.extend(names(parser)?);
        } else if starts_with(parser, "EVENT", "TIME") {
            words_of(parser, 2);
            create.event_time.extend(names(parser)?);
        } else if starts_with(parser, "PRIMARY", "KEY") {
            return Err(ParserError::ParserError(
                "a feature group has no PRIMARY KEY: write ENTITY KEY (…) and EVENT TIME (…)".to_owned(),
            ));
        } else {
            create.columns.push(parser.parse_column_def()?);
        }
        let comma = parser.consume_token(&Token::Comma);
        if parser.consume_token(&Token::RParen) {
            break;
        }
        if !comma {
            return parser.expected("',' or ')' after a column of the feature group", parser.peek_token());
        }
    }
    loop {
        if parser.parse_keyword(Keyword::COMMENT) {
            let _ = parser.consume_token(&Token::Eq);
            create.comment = Some(parser.parse_literal_string()?);
        } else if parser.peek_keyword(Keyword::WITH) {
            create.options.extend(parser.parse_options(Keyword::WITH)?);
        } else {
            return Ok(Statement::CreateFeatureGroup(Box::new(create)));
        }
    }
}

/// Takes the TEMPORARY out of CREATE TABLE, which DataFusion's planner refuses though its plan can say it.
pub(super) fn take_temporary(statement: &mut DataFusionStatement) -> bool {
    match statement {
        DataFusionStatement::Statement(statement) => match statement.as_mut() {
            SqlStatement::CreateTable(create) => std::mem::take(&mut create.temporary),
            _ => false,
        },
        _ => false,
    }
}

/// Whether the next tokens are these two words and then `(`: a column may be called `event` or `entity`.
fn starts_with(parser: &Parser<'_>, first: &str, second: &str) -> bool {
    let [a, b, c] = parser.peek_tokens();
    let is = |token: &Token, word: &str| matches!(token, Token::Word(w) if w.quote_style.is_none() && w.value.eq_ignore_ascii_case(word));
    is(&a, first) && is(&b, second) && c == Token::LParen
}

fn names(parser: &mut Parser<'_>) -> Result<Vec<Ident>, ParserError> {
    parser.expect_token(&Token::LParen)?;
    let names = parser.parse_comma_separated(|p| p.parse_identifier())?;
    parser.expect_token(&Token::RParen)?;
    Ok(names)
}

fn drop_feature_group(parser: &mut Parser<'_>) -> Result<Statement, ParserError> {
    words_of(parser, 3);
    let if_exists = parser.parse_keywords(&[Keyword::IF, Keyword::EXISTS]);
    Ok(Statement::DropFeatureGroup { name: parser.parse_object_name(false)?, if_exists })
}

fn optimize(parser: &mut Parser<'_>) -> Result<Statement, ParserError> {
    words_of(parser, 1);
    let _ = parser.parse_keyword(Keyword::TABLE);
    let name = parser.parse_object_name(false)?;
    let extent = match parser.parse_keyword(Keyword::FULL) {
        true => Extent::Full,
        false => Extent::Needed,
    };
    Ok(Statement::Optimize { name, extent })
}

fn vacuum(parser: &mut Parser<'_>) -> Result<Statement> {
    words_of(parser, 1);
    let _ = parser.parse_keyword(Keyword::TABLE);
    let name = parser.parse_object_name(false).map_err(unparsable)?;
    let is_word =
        |token: &Token, word: &str| matches!(token, Token::Word(w) if w.value.eq_ignore_ascii_case(word));
    if !is_word(&parser.peek_token().token, "RETAIN") {
        return Ok(Statement::Vacuum { name, retain: None });
    }
    words_of(parser, 1);
    let text = match parser.next_token().token {
        Token::SingleQuotedString(text) => text,
        Token::Number(number, _) => format!("{number} {}", parser.next_token().token),
        other => {
            return Err(Error::invalid(format!(
                "RETAIN takes how long old snapshots are kept, such as '7 days' or 168 HOURS, not '{other}'"
            )));
        }
    };
    Ok(Statement::Vacuum { name, retain: Some(duration(&text)?) })
}

/// The name of a table as statements write it: `table`, `schema.table`, `"with other letters"`.
pub(super) fn name_of_table(text: &str) -> Result<ObjectName> {
    let no_name =
        || Error::invalid(format!("'{text}' is not the name of a table: write table or schema.table"));
    let dialect: &'static dyn Dialect = &DIALECT;
    let tokens = Tokenizer::new(dialect, text).tokenize().map_err(|_| no_name())?;
    let mut parser = Parser::new(dialect).with_tokens(tokens);
    let name = parser.parse_object_name(false).map_err(|_| no_name())?;
    match parser.next_token().token {
        Token::EOF => Ok(name),
        _ => Err(no_name()),
    }
}

fn unparsable(error: ParserError) -> Error {
    let text = match error {
        ParserError::TokenizerError(text) | ParserError::ParserError(text) => text,
        ParserError::RecursionLimitExceeded => "it is nested too deeply".to_owned(),
    };
    Error::invalid(format!("SQL does not parse: {text}"))
}

fn unreadable(error: TokenizerError) -> Error {
    Error::invalid(format!("SQL does not parse: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_group_keeps_what_was_written() {
        let statement = parse(
            "CREATE FEATURE GROUP IF NOT EXISTS shop.user_purchases (user_id BIGINT, event TIMESTAMP, \
             n BIGINT DEFAULT 0 COMMENT 'count', ENTITY KEY (user_id), EVENT TIME (event)) \
             COMMENT 'how a user buys' WITH (ttl = '30 days', online = true);",
        );
        let Ok(Statement::CreateFeatureGroup(create)) = statement else { panic!("{statement:?}") };
        assert!(create.if_not_exists);
        assert_eq!(create.name.to_string(), "shop.user_purchases");
        assert_eq!(create.columns.len(), 3);
        assert_eq!(create.entity_key[0].value, "user_id");
        assert_eq!(create.event_time[0].value, "event");
        assert_eq!(create.comment.as_deref(), Some("how a user buys"));
        assert_eq!(create.options.len(), 2);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let cases = [
            ("", "there is no SQL statement"),
            (" ; ", "there is no SQL statement"),
            ("SELECT 1; SELECT 2", "send one statement at a time"),
            ("SELECT ? + $1", "mixes ? and $n"),
            ("SELEC 1", "SQL does not parse"),
            ("BEGIN", "every statement commits by itself"),
            ("SELECT 'abc", "SQL does not parse"),
            ("SELECT * FORM t", "'FORM' was not expected at line 1, column 10"),
            ("CREATE FEATURE GROUP g (a INT b INT)", "after a column of the feature group"),
            ("CREATE OR REPLACE FEATURE GROUP g (a INT)", "would lose history"),
            ("DROP FEATURE GROUP", "SQL does not parse"),
            ("KILL QUERY", "the id of a query is a text"),
            ("KILL QUERY 550e8400-e29b-41d4-a716-446655440000", "the id of a query is a text"),
            ("CREATE FEATURE GROUP g (a INT, PRIMARY KEY (a))", "write ENTITY KEY"),
            ("KILL QUERY '7'", "'7' is no query's id"),
            ("REFRESH g", "write REFRESH ONLINE feature_group"),
            ("REFRESH ONLINE", "SQL does not parse"),
            ("REFRESH ONLINE g HALF", "'HALF' was not expected"),
            ("OPTIMIZE", "SQL does not parse"),
            ("OPTIMIZE g WHERE k = 1", "'WHERE' was not expected"),
            ("COPY g FROM 'a' (FORMAT avro)", "which are parquet, csv and json"),
            ("COPY g FROM 'a' (HEADERS)", "'HEADERS' is no option of COPY"),
            ("COPY g FROM 'a' (FORMAT)", "FORMAT of COPY lacks its value"),
            ("COPY g FROM 'a' (HEADER maybe)", "is true or false, not 'maybe'"),
            ("COPY g FROM 'a' (DELIMITER '||')", "is one ASCII character, not '||'"),
            ("COPY g FROM 'a' (FORMAT csv", "SQL does not parse"),
            ("COPY g FROM 'a' 'b'", "'b'"),
            ("COPY g FROM a", "in single quotes, not 'a'"),
            ("COPY g FROM STDIN", "adbc_ingest"),
            ("COPY g (a FROM 'x'", "SQL does not parse"),
            ("COPY g TO 'a'", "the server writes no files"),
            ("COPY (SELECT 1) TO 'a'", "the server writes no files"),
            ("EXPLAIN ANALYZE COPY g FROM 'a'", "EXPLAIN of COPY"),
            ("VACUUM g RETAIN", "RETAIN takes how long"),
            ("VACUUM g RETAIN 'a while'", "'a while' is not a duration"),
            ("VACUUM g RETAIN 7", "is not a duration"),
            ("VACUUM g RETAIN 168 HOURS DRY RUN", "'DRY' was not expected"),
        ];
        for (sql, expected) in cases {
            let error = parse(sql).unwrap_err();
            assert!(error.to_string().contains(expected), "{sql}: {error}");
        }
    }

    #[test]
    fn what_is_too_deep_is_refused_and_what_is_only_long_is_not() {
        let tokens = |sql: &str| Tokenizer::new(&DIALECT, sql).tokenize_with_location().unwrap();
        let check = |sql: &str| check_depth(&tokens(sql));
        let chain = |operator: &str, count: usize| vec!["1"; count].join(operator);
        for long in [
            format!("SELECT {}", chain(", ", 100_000)),
            format!("SELECT x IN ({})", chain(", -", 100_000)),
            format!("INSERT INTO t VALUES {}", vec!["(1, -1 + 2, 'a')"; 100_000].join(", ")),
            format!("SELECT CASE {} END", vec!["WHEN x = 1 AND y = 2 THEN 3"; 50_000].join(" ")),
            format!("SELECT {}", chain(" + ", DEPTH_MAX)),
        ] {
            check(&long).unwrap();
        }
        let part = format!("({}, 1)", chain(" + ", DEPTH_MAX / 2));
        for deep in [
            format!("SELECT {}", chain(" + ", DEPTH_MAX + 2)),
            format!("SELECT {}", chain(" OR ", DEPTH_MAX + 2)),
            format!("SELECT {} 1", "NOT ".repeat(DEPTH_MAX + 1)),
            format!("SELECT {}", vec!["SELECT 1"; DEPTH_MAX + 2].join(" UNION ALL ")),
            format!("SELECT {}1{}", "(".repeat(DEPTH_MAX + 1), ")".repeat(DEPTH_MAX + 1)),
            format!("SELECT f({part} + {}, 2) + f({part}, 3)", chain(" + ", DEPTH_MAX / 2)),
        ] {
            let error = check(&deep).unwrap_err();
            assert!(error.message().contains("operators in one expression"), "{error}");
        }
    }

    #[test]
    fn upkeep_is_parsed() {
        let retained = |sql: &str| match parse(sql) {
            Ok(Statement::Vacuum { name, retain }) if name.to_string() == "s.g" => retain,
            other => panic!("{sql}: {other:?}"),
        };
        let days = |days: u64| Some(Duration::from_secs(days * 24 * 60 * 60));
        assert_eq!(retained("VACUUM s.g;"), None);
        assert_eq!(retained("vacuum table s.g retain '7 days'"), days(7));
        assert_eq!(retained("VACUUM s.g RETAIN 168 HOURS"), days(7));
        assert_eq!(retained("VACUUM s.g RETAIN '0 days'"), days(0));
        for (sql, expected) in [("OPTIMIZE g", Extent::Needed), ("OPTIMIZE TABLE g FULL", Extent::Full)] {
            let parsed = parse(sql);
            assert!(
                matches!(&parsed, Ok(Statement::Optimize { extent, .. }) if *extent == expected),
                "{sql}: {parsed:?}"
            );
        }
    }

    #[test]
    fn question_marks_are_numbered() {
        let Ok(Statement::DataFusion(statement)) = parse("SELECT ?, '?', ? -- ?") else { panic!() };
        assert_eq!(statement.to_string(), "SELECT $1, '?', $2");
    }
}
