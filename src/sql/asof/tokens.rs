//! Before parsing: spells every ASOF join in words that the SQL parser knows.
//!
//! The parser reads `ASOF JOIN t MATCH_CONDITION (…)` and nothing else that begins with ASOF. The other forms are
//! carried by the parser's `GLOBAL` flag of a join, which no SQL of ours uses otherwise:
//!
//! ```text
//! ASOF [LEFT [OUTER]] JOIN t MATCH_CONDITION (…)   →   ASOF JOIN t MATCH_CONDITION (…)
//! ASOF INNER JOIN t MATCH_CONDITION (…)            →   GLOBAL ASOF JOIN t MATCH_CONDITION (…)
//! ASOF [INNER] JOIN t ON|USING …                   →   GLOBAL [INNER] JOIN t ON|USING …
//! ASOF LEFT [OUTER] JOIN t ON|USING …              →   GLOBAL LEFT [OUTER] JOIN t ON|USING …
//! ```

use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Whitespace, Word};

use crate::error::{Error, Result};

/// Rewrites ASOF joins in the tokens of one or more statements; positions stay those of the original text.
///
/// # Errors
/// `Invalid` for an ASOF join without a condition, of a kind that does not exist, and for `GLOBAL JOIN`.
pub(crate) fn rewrite_tokens(tokens: Vec<TokenWithSpan>) -> Result<Vec<TokenWithSpan>> {
    let significant: Vec<usize> =
        (0..tokens.len()).filter(|&i| !matches!(tokens[i].token, Token::Whitespace(_))).collect();
    let view = View { tokens: &tokens, significant: &significant };
    let mut edits = Vec::new();
    for at in 0..significant.len() {
        if view.keyword(at) == Keyword::GLOBAL && view.joins(at + 1) && view.ends_a_table(at) {
            return Err(Error::unsupported(format!(
                "GLOBAL JOIN at {} is not supported: leave out GLOBAL",
                view.position(at)
            )));
        }
        if view.keyword(at) == Keyword::ASOF && view.ends_a_table(at) {
            edits.extend(view.rewrite_join(at)?);
        }
    }
    Ok(apply(tokens, &significant, &edits))
}

/// A change of one significant token.
enum Edit {
    Replace(usize, Keyword),
    Remove(usize),
    InsertBefore(usize, Keyword),
}

/// Tokens without whitespace and comments.
struct View<'a> {
    tokens: &'a [TokenWithSpan],
    significant: &'a [usize],
}

impl View<'_> {
    fn token(&self, at: usize) -> &Token {
        self.significant.get(at).map_or(&Token::EOF, |&index| &self.tokens[index].token)
    }

    /// The keyword at a place; `NoKeyword` for quoted words and everything else.
    fn keyword(&self, at: usize) -> Keyword {
        match self.token(at) {
            Token::Word(word) if word.quote_style.is_none() => word.keyword,
            _ => Keyword::NoKeyword,
        }
    }

    fn position(&self, at: usize) -> String {
        let start = self.tokens[self.significant[at]].span.start;
        format!("line {}, column {}", start.line, start.column)
    }

    /// Whether a join's words start here.
    fn joins(&self, at: usize) -> bool {
        use Keyword::{ANTI, ASOF, CROSS, FULL, INNER, JOIN, LEFT, NATURAL, OUTER, RIGHT, SEMI};
        match self.keyword(at) {
            JOIN => true,
            INNER | LEFT | RIGHT | FULL | CROSS | OUTER | NATURAL | ASOF | SEMI | ANTI => self.joins(at + 1),
            _ => false,
        }
    }

    /// Whether the token before ends a table or a join condition, so that the one here is a join's word
    /// and not a table, alias or column of that name.
    fn ends_a_table(&self, at: usize) -> bool {
        use Keyword as K;
        let Some(before) = at.checked_sub(1) else {
            return false;
        };
        match self.token(before) {
            Token::Word(word) if word.quote_style.is_some() => true,
            Token::Word(word) => !matches!(
                word.keyword,
                K::FROM
                    | K::JOIN
                    | K::AS
                    | K::INTO
                    | K::UPDATE
                    | K::TABLE
                    | K::LATERAL
                    | K::ONLY
                    | K::ON
                    | K::AND
                    | K::OR
                    | K::NOT
                    | K::IN
                    | K::LIKE
                    | K::BETWEEN
                    | K::IS
                    | K::SELECT
                    | K::DISTINCT
                    | K::WHERE
                    | K::BY
                    | K::HAVING
                    | K::CASE
                    | K::WHEN
                    | K::THEN
                    | K::ELSE
                    | K::LEFT
                    | K::RIGHT
                    | K::FULL
                    | K::INNER
                    | K::OUTER
            ),
            Token::RParen
            | Token::RBracket
            | Token::Number(..)
            | Token::SingleQuotedString(_)
            | Token::Placeholder(_) => true,
            _ => false,
        }
    }

    fn rewrite_join(&self, at: usize) -> Result<Vec<Edit>> {
        let mut next = at + 1;
        let kind = self.keyword(next);
        match kind {
            Keyword::LEFT | Keyword::INNER => next += 1,
            Keyword::RIGHT
            | Keyword::FULL
            | Keyword::SEMI
            | Keyword::ANTI
            | Keyword::CROSS
            | Keyword::NATURAL
                if self.joins(next) =>
            {
                return Err(Error::unsupported(format!(
                    "ASOF {kind} JOIN at {} does not exist: use ASOF JOIN or ASOF LEFT JOIN",
                    self.position(at)
                )));
            }
            _ => {}
        }
        if kind == Keyword::LEFT && self.keyword(next) == Keyword::OUTER {
            next += 1;
        }
        if self.keyword(next) != Keyword::JOIN {
            return Ok(Vec::new());
        }
        let match_condition = self.find_condition(at, next + 1)? == Keyword::MATCH_CONDITION;
        Ok(match (match_condition, kind) {
            (true, Keyword::INNER) => vec![Edit::InsertBefore(at, Keyword::GLOBAL), Edit::Remove(at + 1)],
            (true, _) => (at + 1..next).map(Edit::Remove).collect(),
            (false, _) => vec![Edit::Replace(at, Keyword::GLOBAL)],
        })
    }

    /// The word that starts the condition of the join at `at`: the first of three outside parentheses.
    fn find_condition(&self, at: usize, from: usize) -> Result<Keyword> {
        let mut depth = 0_usize;
        for place in from..self.significant.len() {
            match self.token(place) {
                Token::LParen => depth += 1,
                Token::RParen if depth == 0 => break,
                Token::RParen => depth -= 1,
                Token::SemiColon => break,
                _ if depth > 0 => {}
                _ => match self.keyword(place) {
                    found @ (Keyword::MATCH_CONDITION | Keyword::ON | Keyword::USING) => return Ok(found),
                    Keyword::WHERE | Keyword::GROUP | Keyword::ORDER | Keyword::UNION | Keyword::HAVING => {
                        break;
                    }
                    _ => {}
                },
            }
        }
        Err(Error::invalid(format!(
            "ASOF JOIN at {} has no condition: add MATCH_CONDITION (left.time >= right.time) [ON …], or ON with one \
             inequality",
            self.position(at)
        )))
    }
}

fn apply(tokens: Vec<TokenWithSpan>, significant: &[usize], edits: &[Edit]) -> Vec<TokenWithSpan> {
    let mut tokens: Vec<Vec<TokenWithSpan>> = tokens.into_iter().map(|token| vec![token]).collect();
    for edit in edits {
        match edit {
            Edit::Replace(at, keyword) => tokens[significant[*at]][0].token = word(*keyword),
            Edit::Remove(at) => tokens[significant[*at]][0].token = Token::Whitespace(Whitespace::Space),
            Edit::InsertBefore(at, keyword) => {
                let slot = &mut tokens[significant[*at]];
                let inserted = TokenWithSpan { token: word(*keyword), span: slot[0].span };
                slot.insert(0, inserted);
            }
        }
    }
    tokens.into_iter().flatten().collect()
}

fn word(keyword: Keyword) -> Token {
    Token::Word(Word { value: keyword.to_string(), quote_style: None, keyword })
}

#[cfg(test)]
mod tests {
    use super::*;

    use datafusion::sql::sqlparser::dialect::GenericDialect;
    use datafusion::sql::sqlparser::tokenizer::Tokenizer;

    use crate::error::ErrorKind;

    fn rewrite(sql: &str) -> Result<String> {
        let tokens = Tokenizer::new(&GenericDialect {}, sql).tokenize_with_location().unwrap();
        let text = rewrite_tokens(tokens)?.iter().map(|t| t.token.to_string()).collect::<Vec<_>>().join(" ");
        Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn every_form_becomes_parseable() {
        let cases = [
            ("a ASOF JOIN b MATCH_CONDITION (x)", "a ASOF JOIN b MATCH_CONDITION ( x )"),
            ("a asof left join b match_condition (x) on y", "a asof join b match_condition ( x ) on y"),
            ("a ASOF LEFT OUTER JOIN b MATCH_CONDITION (x)", "a ASOF JOIN b MATCH_CONDITION ( x )"),
            ("a ASOF INNER JOIN b MATCH_CONDITION (x)", "a GLOBAL ASOF JOIN b MATCH_CONDITION ( x )"),
            ("a ASOF JOIN b ON x", "a GLOBAL JOIN b ON x"),
            ("a ASOF INNER JOIN b USING (x)", "a GLOBAL INNER JOIN b USING ( x )"),
            ("a ASOF LEFT JOIN b ON x", "a GLOBAL LEFT JOIN b ON x"),
            ("a ASOF /* why */ LEFT OUTER JOIN b ON x", "a GLOBAL /* why */ LEFT OUTER JOIN b ON x"),
            (
                "a ASOF JOIN (SELECT 1 FROM c JOIN d ON e) b USING (x)",
                "a GLOBAL JOIN ( SELECT 1 FROM c JOIN d ON e ) b USING ( x )",
            ),
            (
                "a ASOF JOIN (c ASOF LEFT JOIN d ON e) MATCH_CONDITION (x)",
                "a ASOF JOIN ( c GLOBAL LEFT JOIN d ON e ) MATCH_CONDITION ( x )",
            ),
            (
                "a ASOF JOIN b ON x ASOF JOIN c MATCH_CONDITION (y)",
                "a GLOBAL JOIN b ON x ASOF JOIN c MATCH_CONDITION ( y )",
            ),
            ("a ASOF JOIN b ON x = 1 ASOF JOIN c ON y", "a GLOBAL JOIN b ON x = 1 GLOBAL JOIN c ON y"),
            ("\"a\" ASOF JOIN \"on\" ON x", "\"a\" GLOBAL JOIN \"on\" ON x"),
        ];
        for (sql, expected) in cases {
            assert_eq!(rewrite(sql).unwrap(), expected, "{sql}");
        }
    }

    #[test]
    fn other_uses_of_the_word_stay() {
        for sql in [
            "SELECT asof , global FROM t",
            "SELECT 1 FROM t AS asof JOIN u ON x",
            "SELECT 1 FROM asof JOIN u ON x",
            "SELECT 1 FROM s . asof JOIN u ON x",
            "SELECT 1 FROM a , asof LEFT JOIN u ON x",
            "SELECT 1 FROM a JOIN asof ON x",
            "SELECT 1 FROM a JOIN b ON x = asof JOIN c ON y",
            "SELECT 1 FROM t \"asof\" JOIN u ON x",
            "SELECT 'a ASOF JOIN b'",
            "SELECT 1 FROM t AS global JOIN u ON x",
            "SET GLOBAL x = 1",
        ] {
            assert_eq!(rewrite(sql).unwrap(), sql);
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_place() {
        let cases = [
            ("a ASOF JOIN b", ErrorKind::Invalid, "line 1, column 3 has no condition"),
            ("a\nASOF JOIN b WHERE x ON y", ErrorKind::Invalid, "line 2, column 1 has no condition"),
            ("(a ASOF JOIN b) JOIN c ON d", ErrorKind::Invalid, "has no condition"),
            ("a ASOF JOIN b; SELECT 1 FROM c JOIN d ON e", ErrorKind::Invalid, "has no condition"),
            ("a ASOF RIGHT JOIN b ON x", ErrorKind::Unsupported, "ASOF RIGHT JOIN"),
            ("a ASOF FULL OUTER JOIN b ON x", ErrorKind::Unsupported, "ASOF FULL JOIN"),
            ("a GLOBAL JOIN b ON x", ErrorKind::Unsupported, "GLOBAL JOIN"),
            ("a GLOBAL LEFT OUTER JOIN b ON x", ErrorKind::Unsupported, "GLOBAL JOIN"),
            ("a GLOBAL ASOF JOIN b ON x", ErrorKind::Unsupported, "GLOBAL JOIN"),
        ];
        for (sql, kind, message) in cases {
            let error = rewrite(sql).unwrap_err();
            assert_eq!(error.kind(), kind, "{sql}");
            assert!(error.message().contains(message), "{sql}: {error}");
        }
    }
}
