//! `COPY … FROM` as it is written: in PostgreSQL's and DuckDB's words, and in Snowflake's.
//!
//! ```text
//! COPY [INTO] name [(column, …)] FROM 'file' [[WITH] (option, …) | FILE_FORMAT = (option …)]
//! ```

use std::str::FromStr;

use datafusion::common::parsers::CompressionTypeVariant as Compression;
use datafusion::sql::sqlparser::ast::{Ident, ObjectName};
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::Token;

use crate::error::{Error, Result};
use crate::model::IdempotencyKey;

/// Options, for messages.
const OPTIONS: &str = "FORMAT, COMPRESSION, HEADER, DELIMITER, QUOTE, ESCAPE, NULL, IDEMPOTENCY_KEY";

/// `COPY … FROM`, as written.
#[derive(Debug)]
pub(in crate::sql) struct CopyFrom {
    pub(in crate::sql) name: ObjectName,
    /// The columns to fill; all where none is named.
    pub(super) columns: Vec<Ident>,
    pub(super) source: String,
    pub(super) options: Options,
}

/// How files are to be read; where it is not said, their names tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) format: Option<Format>,
    pub(super) compression: Option<Compression>,
    /// Whether the first line of a CSV file names its columns, which it does by default.
    pub(super) header: Option<bool>,
    pub(super) delimiter: Option<u8>,
    pub(super) quote: Option<u8>,
    pub(super) escape: Option<u8>,
    /// What stands for NULL in a CSV file, as an empty field does.
    pub(super) null: Option<String>,
    pub(super) key: Option<Key>,
}

/// Where the idempotency key of a `COPY` comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Key {
    /// From the files: see [`super::Session::copy_from`].
    Auto,
    Given(IdempotencyKey),
}

/// A format of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Parquet,
    Csv,
    /// One record a line, or one array of them.
    Json,
}

impl Format {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Parquet => "parquet",
            Self::Csv => "csv",
            Self::Json => "json",
        }
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.to_lowercase().as_str() {
            "parquet" => Ok(Self::Parquet),
            "csv" => Ok(Self::Csv),
            "json" | "ndjson" | "jsonl" => Ok(Self::Json),
            _ => Err(Error::unsupported(format!(
                "FORMAT '{text}' is not one that COPY reads, which are parquet, csv and json"
            ))),
        }
    }
}

/// Parses what comes behind COPY.
pub(in crate::sql) fn parse(parser: &mut Parser<'_>) -> Result<CopyFrom> {
    let unparsable = |error: ParserError| Error::invalid(format!("SQL does not parse: {error}"));
    let _ = parser.parse_keyword(Keyword::INTO);
    if parser.peek_token().token == Token::LParen {
        return Err(to_is_unsupported());
    }
    let name = parser.parse_object_name(false).map_err(unparsable)?;
    let mut columns = Vec::new();
    if parser.consume_token(&Token::LParen) {
        columns = parser.parse_comma_separated(|p| p.parse_identifier()).map_err(unparsable)?;
        parser.expect_token(&Token::RParen).map_err(unparsable)?;
    }
    if parser.parse_keyword(Keyword::TO) {
        return Err(to_is_unsupported());
    }
    parser.expect_keyword(Keyword::FROM).map_err(unparsable)?;
    let source = match parser.next_token().token {
        Token::SingleQuotedString(source) => source,
        Token::Word(word) if word.keyword == Keyword::STDIN => {
            return Err(Error::unsupported(
                "COPY … FROM STDIN is not supported: Arrow Flight has bulk ingest for rows of the client, such as \
                 adbc_ingest",
            ));
        }
        other => {
            return Err(Error::invalid(format!(
                "SQL does not parse: COPY … FROM takes the name of a file in single quotes, not '{other}'"
            )));
        }
    };
    let options = options(parser)?;
    Ok(CopyFrom { name, columns, source, options })
}

fn to_is_unsupported() -> Error {
    Error::unsupported(
        "COPY … TO is not supported: the server writes no files for its clients; fetch the rows",
    )
}

fn options(parser: &mut Parser<'_>) -> Result<Options> {
    let mut options = Options::default();
    let is_word =
        |token: &Token, word: &str| matches!(token, Token::Word(w) if w.value.eq_ignore_ascii_case(word));
    if is_word(&parser.peek_token().token, "FILE_FORMAT") {
        parser.next_token();
        let _ = parser.consume_token(&Token::Eq);
    } else {
        let _ = parser.parse_keyword(Keyword::WITH);
    }
    if !parser.consume_token(&Token::LParen) {
        return Ok(options);
    }
    while !parser.consume_token(&Token::RParen) {
        let name = match parser.next_token().token {
            Token::Word(word) => word.value.to_uppercase(),
            other => {
                return Err(Error::invalid(format!("SQL does not parse: '{other}' is no option of COPY")));
            }
        };
        let is_followed = parser.consume_token(&Token::Eq)
            || !matches!(parser.peek_token().token, Token::Comma | Token::RParen | Token::EOF);
        let value = is_followed.then(|| parser.next_token().token).map(text).transpose()?;
        options.set(&name, value)?;
        let _ = parser.consume_token(&Token::Comma);
    }
    Ok(options)
}

/// The value of an option.
fn text(token: Token) -> Result<String> {
    match token {
        Token::SingleQuotedString(text) | Token::EscapedStringLiteral(text) => Ok(text),
        Token::Number(text, _) => Ok(text),
        Token::Word(word) => Ok(word.value),
        other => {
            Err(Error::invalid(format!("SQL does not parse: '{other}' is no value of an option of COPY")))
        }
    }
}

impl Options {
    fn set(&mut self, name: &str, value: Option<String>) -> Result<()> {
        let given =
            || value.clone().ok_or_else(|| Error::invalid(format!("option {name} of COPY lacks its value")));
        match name {
            "FORMAT" | "TYPE" => self.format = Some(given()?.parse()?),
            "COMPRESSION" => self.compression = Some(compression(&given()?)?),
            "HEADER" | "SKIP_HEADER" | "PARSE_HEADER" => self.header = Some(flag(name, value.as_deref())?),
            "DELIMITER" | "DELIM" | "SEP" | "FIELD_DELIMITER" => {
                self.delimiter = Some(character(name, &given()?)?)
            }
            "QUOTE" | "FIELD_OPTIONALLY_ENCLOSED_BY" => self.quote = Some(character(name, &given()?)?),
            "ESCAPE" => self.escape = Some(character(name, &given()?)?),
            "NULL" | "NULLSTR" | "NULL_IF" => self.null = Some(given()?),
            "IDEMPOTENCY_KEY" => {
                let key = given()?;
                self.key = Some(match key.eq_ignore_ascii_case("auto") {
                    true => Key::Auto,
                    false => Key::Given(IdempotencyKey::parse(&key)?),
                });
            }
            _ => {
                return Err(Error::unsupported(format!(
                    "'{name}' is no option of COPY, which has {OPTIONS}"
                )));
            }
        }
        Ok(())
    }

    /// How files are read, as a part of keys that outlive this version: options that are not given add nothing.
    pub(super) fn in_a_key(&self) -> String {
        let byte = |byte: Option<u8>| byte.map(|byte| byte.to_string());
        let given = [
            ("format", self.format.map(|format| format.name().to_owned())),
            ("compression", self.compression.map(|compression| compression.to_string())),
            ("header", self.header.map(|header| header.to_string())),
            ("delimiter", byte(self.delimiter)),
            ("quote", byte(self.quote)),
            ("escape", byte(self.escape)),
            ("null", self.null.clone()),
        ];
        let given = given.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value?)));
        given.collect::<Vec<_>>().join("\n")
    }

    /// Refuses what means nothing for files of this format.
    pub(super) fn check(&self, format: Format) -> Result<()> {
        let of_csv = [
            ("HEADER", self.header.is_some()),
            ("DELIMITER", self.delimiter.is_some()),
            ("QUOTE", self.quote.is_some()),
            ("ESCAPE", self.escape.is_some()),
            ("NULL", self.null.is_some()),
        ];
        let wrong = match format {
            Format::Csv => None,
            Format::Parquet if self.compression.is_some() => Some(("COMPRESSION", "csv and json")),
            Format::Json | Format::Parquet => {
                of_csv.iter().find(|(_, is_given)| *is_given).map(|(name, _)| (*name, "csv"))
            }
        };
        match wrong {
            None => Ok(()),
            Some((name, whose)) => Err(Error::invalid(format!(
                "option {name} of COPY is for files of {whose}, and these are {}",
                format.name()
            ))),
        }
    }
}

pub(super) fn compression(text: &str) -> Result<Compression> {
    Ok(match text.to_lowercase().as_str() {
        "none" | "uncompressed" => Compression::UNCOMPRESSED,
        "gzip" | "gz" => Compression::GZIP,
        "zstd" | "zst" => Compression::ZSTD,
        "bzip2" | "bz2" => Compression::BZIP2,
        "xz" => Compression::XZ,
        _ => {
            return Err(Error::unsupported(format!(
                "COMPRESSION '{text}' is not one that COPY reads, which are gzip, zstd, bzip2, xz and none"
            )));
        }
    })
}

fn flag(name: &str, value: Option<&str>) -> Result<bool> {
    match value.map(str::to_lowercase).as_deref() {
        None | Some("true" | "on" | "1" | "yes") => Ok(true),
        Some("false" | "off" | "0" | "no") => Ok(false),
        Some(other) => Err(Error::invalid(format!("option {name} of COPY is true or false, not '{other}'"))),
    }
}

fn character(name: &str, value: &str) -> Result<u8> {
    match value.as_bytes() {
        b"\\t" => Ok(b'\t'),
        [one] if one.is_ascii() && *one != b'\n' && *one != b'\r' => Ok(*one),
        _ => Err(Error::invalid(format!("option {name} of COPY is one ASCII character, not '{value}'"))),
    }
}
