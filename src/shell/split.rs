//! Splits a script into statements, at the semicolons among SQL's tokens: those in strings and comments are none. A
//! line that begins with a backslash is a command to the shell.

use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Location, Token, Tokenizer};

use crate::error::{Error, Result};

/// What a script is made of.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// SQL, without its semicolon.
    Statement(String),
    /// A command to the shell, without its backslash.
    Command(String),
}

/// What a text holds so far.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Split {
    /// Commands, and statements that a semicolon ends.
    pub(super) complete: Vec<Item>,
    /// What follows the last of them; empty if that is space or comment.
    pub(super) rest: String,
}

/// Everything in a script, whose last statement needs no semicolon.
pub(super) fn all(script: &str) -> Result<Vec<Item>> {
    let Split { mut complete, rest } = split(script)?;
    if !rest.is_empty() {
        complete.push(Item::Statement(rest));
    }
    Ok(complete)
}

/// Splits what was typed so far.
///
/// # Errors
/// `Invalid` for a text that ends within a string, a quoted name or a comment.
pub(super) fn split(text: &str) -> Result<Split> {
    let (mut complete, mut sql) = (Vec::new(), String::new());
    for line in text.split_inclusive('\n') {
        // Within a string or a comment, a line that looks like a command is none.
        if let Some(command) = Command::of(line)
            && let Ok((statements, rest)) = statements(&sql)
            && (command.interrupts || rest.is_empty())
        {
            complete.extend(statements);
            complete.push(Item::Command(command.text.to_owned()));
            sql = if rest.is_empty() { rest } else { rest + "\n" };
        } else {
            sql.push_str(line);
        }
    }
    let (statements, rest) = statements(&sql)?;
    complete.extend(statements);
    Ok(Split { complete, rest })
}

/// Whether a statement's point is the rows that it changes, so that it is worth saying that it changed none.
pub(super) fn changes_rows(sql: &str) -> bool {
    let tokens = Tokenizer::new(&GenericDialect {}, sql).tokenize().unwrap_or_default();
    let first = tokens.iter().find(|token| !matches!(token, Token::Whitespace(_)));
    let Some(Token::Word(word)) = first else { return false };
    matches!(word.keyword, Keyword::INSERT | Keyword::UPDATE | Keyword::DELETE | Keyword::MERGE)
}

/// A line that may be a command.
struct Command<'a> {
    text: &'a str,
    /// Whether it is one even amid a statement, which then goes on after it.
    interrupts: bool,
}

impl<'a> Command<'a> {
    fn of(line: &'a str) -> Option<Self> {
        let line = line.trim();
        if let Some(text) = line.strip_prefix('\\') {
            return Some(Self { text, interrupts: true });
        }
        let text = match line.trim_end_matches(';').trim_end().to_ascii_lowercase().as_str() {
            "exit" | "quit" => "q",
            "help" => "?",
            _ => return None,
        };
        Some(Self { text, interrupts: false })
    }
}

/// The statements that a semicolon ends, and what follows.
fn statements(text: &str) -> Result<(Vec<Item>, String)> {
    let tokens = Tokenizer::new(&GenericDialect {}, text)
        .tokenize_with_location()
        .map_err(|error| Error::invalid(format!("the SQL does not end: {error}")))?;
    let offsets = Offsets::of(text);
    let (mut complete, mut start, mut has_content) = (Vec::new(), 0, false);
    for token in tokens {
        match token.token {
            Token::SemiColon => {
                let end = offsets.byte(text, token.span.start);
                if has_content {
                    complete.push(Item::Statement(text[start..end].trim().to_owned()));
                }
                (start, has_content) = (end + 1, false);
            }
            Token::Whitespace(_) | Token::EOF => {}
            _ => has_content = true,
        }
    }
    let rest = if has_content { text[start..].trim().to_owned() } else { String::new() };
    Ok((complete, rest))
}

/// Where each line begins; the tokenizer counts lines and characters from 1.
struct Offsets(Vec<usize>);

impl Offsets {
    fn of(text: &str) -> Self {
        Self(std::iter::once(0).chain(text.match_indices('\n').map(|(newline, _)| newline + 1)).collect())
    }

    fn byte(&self, text: &str, at: Location) -> usize {
        let line = (at.line as usize).saturating_sub(1).min(self.0.len() - 1);
        let start = self.0[line];
        let column = (at.column as usize).saturating_sub(1);
        text[start..].char_indices().nth(column).map_or(text.len(), |(byte, _)| start + byte)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statement(sql: &str) -> Item {
        Item::Statement(sql.to_owned())
    }

    fn command(text: &str) -> Item {
        Item::Command(text.to_owned())
    }

    #[test]
    fn scripts() {
        let cases: &[(&str, &[&str])] = &[
            ("SELECT 1", &["SELECT 1"]),
            ("SELECT 1; SELECT 2;", &["SELECT 1", "SELECT 2"]),
            (";;  ;", &[]),
            ("-- nothing; here\n/* nor; here */", &[]),
            (
                "SELECT ';' -- a;\n, \";\" /* ; */ ; SELECT 2",
                &["SELECT ';' -- a;\n, \";\" /* ; */", "SELECT 2"],
            ),
            (
                "SELECT 'é;ü', 'it''s';\nSELECT '日本;語';\n\nSELECT 3",
                &["SELECT 'é;ü', 'it''s'", "SELECT '日本;語'", "SELECT 3"],
            ),
            ("SELECT 1;\r\nSELECT 2;\r\n", &["SELECT 1", "SELECT 2"]),
            ("SELECT $1; SELECT a[1:2]", &["SELECT $1", "SELECT a[1:2]"]),
        ];
        for (script, statements) in cases {
            let statements: Vec<Item> = statements.iter().map(|sql| statement(sql)).collect();
            assert_eq!(all(script).unwrap(), statements, "{script}");
        }
    }

    #[test]
    fn commands_among_statements() {
        let cases: &[(&str, Vec<Item>)] = &[
            ("\\d", vec![command("d")]),
            ("  \\d it's ; \nSELECT 1", vec![command("d it's ;"), statement("SELECT 1")]),
            ("SELECT 1;\n\\d\r\nSELECT 2;", vec![statement("SELECT 1"), command("d"), statement("SELECT 2")]),
            ("SELECT 1,\n\\timing\n2;", vec![command("timing"), statement("SELECT 1,\n2")]),
            ("-- why not\nexit;\nSELECT 1", vec![command("q"), statement("SELECT 1")]),
            ("Help\nQUIT\n", vec![command("?"), command("q")]),
            ("SELECT 1 AS\nhelp\n;", vec![statement("SELECT 1 AS\nhelp")]),
            ("SELECT '\n\\d\nexit\n';", vec![statement("SELECT '\n\\d\nexit\n'")]),
            ("/*\n\\d\n*/ SELECT 1", vec![statement("/*\n\\d\n*/ SELECT 1")]),
        ];
        for (script, items) in cases {
            assert_eq!(all(script).unwrap(), *items, "{script}");
        }
    }

    #[test]
    fn what_is_typed_so_far() {
        let split = |text: &str| super::split(text).unwrap();
        assert_eq!(split("SELECT 1"), Split { complete: vec![], rest: "SELECT 1".into() });
        assert_eq!(
            split("SELECT 1; SEL"),
            Split { complete: vec![statement("SELECT 1")], rest: "SEL".into() }
        );
        assert_eq!(split("SELECT 1\n\\q\n"), Split { complete: vec![command("q")], rest: "SELECT 1".into() });
        assert!(super::split("SELECT 'abc").is_err());
        assert!(super::split("SELECT /* abc").is_err());
    }

    #[test]
    fn statements_about_rows() {
        for (sql, expected) in [
            ("INSERT INTO t VALUES (1)", true),
            ("-- none\n insert into t SELECT 1", true),
            ("CREATE TABLE t (a INT)", false),
            ("DROP TABLE \"insert\"", false),
            ("", false),
        ] {
            assert_eq!(changes_rows(sql), expected, "{sql}");
        }
    }
}
