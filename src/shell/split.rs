//! Splits a script at its semicolons, by the tokens of SQL: those in strings and comments are none.

use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Location, Token, Tokenizer};

use crate::error::{Error, Result};

/// The statements that a text holds so far.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Split {
    /// Those that a semicolon ends, without it.
    pub(super) complete: Vec<String>,
    /// What follows the last semicolon; empty if that is space or comment.
    pub(super) rest: String,
}

/// Every statement of a script, whose last needs no semicolon.
pub(super) fn all(script: &str) -> Result<Vec<String>> {
    let Split { mut complete, rest } = split(script)?;
    if !rest.is_empty() {
        complete.push(rest);
    }
    Ok(complete)
}

/// Splits what was typed so far.
///
/// # Errors
/// `Invalid` for a text that ends within a string, a quoted name or a comment.
pub(super) fn split(text: &str) -> Result<Split> {
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
                    complete.push(text[start..end].trim().to_owned());
                }
                (start, has_content) = (end + 1, false);
            }
            Token::Whitespace(_) | Token::EOF => {}
            _ => has_content = true,
        }
    }
    let rest = if has_content { text[start..].trim().to_owned() } else { String::new() };
    Ok(Split { complete, rest })
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
            assert_eq!(all(script).unwrap(), *statements, "{script}");
        }
    }

    #[test]
    fn what_is_typed_so_far() {
        let split = |text: &str| super::split(text).unwrap();
        assert_eq!(split("SELECT 1"), Split { complete: vec![], rest: "SELECT 1".into() });
        assert_eq!(split("SELECT 1; SEL"), Split { complete: vec!["SELECT 1".into()], rest: "SEL".into() });
        assert!(super::split("SELECT 'abc").is_err());
        assert!(super::split("SELECT /* abc").is_err());
    }
}
