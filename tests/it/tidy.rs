//! The house rules that a compiler does not hold: who imports whom, how long things get, what every room says of itself.
//!
//! The import table is read from ARCHITECTURE.md, so the page and the rule cannot drift apart.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `folder` whose name ends in `ending`, in a fixed order.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else { return found };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, ending));
        } else if path.to_string_lossy().ends_with(ending) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().to_string_lossy().into_owned()
}

/// A path of names as it stands in the source, with its line: `crate::sql::Session` or `super::super::model`.
#[derive(Debug, PartialEq)]
struct Mention {
    path: Vec<String>,
    line: usize,
    /// How many inline modules surround it.
    depth: usize,
}

/// What one source file says outside its test code.
#[derive(Debug, Default)]
struct Facts {
    mentions: Vec<Mention>,
    /// Name, first line and length in lines of each function.
    functions: Vec<(String, usize, usize)>,
    /// Modules declared under `#[cfg(test)]` that live in files of their own.
    test_modules: Vec<String>,
}

impl Facts {
    fn of(source: &str) -> Self {
        let mut facts = Self::default();
        facts.read(TokenStream::from_str(source).expect("sources are Rust"), 0);
        facts
    }

    fn read(&mut self, stream: TokenStream, depth: usize) {
        let tokens: Vec<TokenTree> = stream.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            if is_test_attribute(&tokens[at..]) {
                at = self.skip_test_item(&tokens, at + 2);
                continue;
            }
            self.read_function(&tokens[at..]);
            if starts_path(&tokens, at) {
                self.read_path(&tokens[at..], &mut Vec::new(), depth);
            }
            if let TokenTree::Group(group) = &tokens[at] {
                let module = at >= 2 && ident(&tokens[at - 2]).is_some_and(|word| word == "mod");
                self.read(group.stream(), depth + usize::from(module));
            }
            at += 1;
        }
    }

    /// The index behind the item that starts at `from`: past its `;`, or past its `{…}`.
    fn skip_test_item(&mut self, tokens: &[TokenTree], from: usize) -> usize {
        let mut names = Vec::new();
        for (offset, token) in tokens[from..].iter().enumerate() {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ';' => {
                    if let Some(at) = names.iter().position(|name| name == "mod") {
                        self.test_modules.extend(names.get(at + 1).cloned());
                    }
                    return from + offset + 1;
                }
                TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                    if names.iter().all(|name| name != "use") {
                        return from + offset + 1;
                    }
                }
                other => names.extend(ident(other)),
            }
        }
        tokens.len()
    }

    fn read_function(&mut self, tokens: &[TokenTree]) {
        let [first, second, rest @ ..] = tokens else { return };
        let (Some("fn"), Some(name)) = (ident(first).as_deref(), ident(second)) else { return };
        for token in rest {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ';' => return,
                TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                    let start = first.span().start().line;
                    self.functions.push((name, start, group.span_close().end().line - start + 1));
                    return;
                }
                _ => {}
            }
        }
    }

    /// Reads one path, and every path of a `{…}` it ends in.
    fn read_path(&mut self, tokens: &[TokenTree], prefix: &mut Vec<String>, depth: usize) {
        let line = tokens[0].span().start().line;
        let mut rest = tokens;
        let length = prefix.len();
        while let Some(name) = rest.first().and_then(ident) {
            prefix.push(name);
            if !is_colons(&rest[1..]) {
                break;
            }
            rest = &rest[3..];
            if let Some(TokenTree::Group(group)) = rest.first() {
                let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                for part in inner.split(|token| matches!(token, TokenTree::Punct(p) if p.as_char() == ',')) {
                    if !part.is_empty() {
                        self.read_path(part, prefix, depth);
                    }
                }
                prefix.truncate(length);
                return;
            }
        }
        self.mentions.push(Mention { path: prefix.clone(), line, depth });
        prefix.truncate(length);
    }
}

fn ident(token: &TokenTree) -> Option<String> {
    match token {
        TokenTree::Ident(ident) => Some(ident.to_string()),
        _ => None,
    }
}

fn is_colons(tokens: &[TokenTree]) -> bool {
    matches!(tokens, [TokenTree::Punct(a), TokenTree::Punct(b), ..]
        if a.as_char() == ':' && a.spacing() == Spacing::Joint && b.as_char() == ':')
}

/// Whether a path begins here: a name, with no `::` before it and one behind it.
fn starts_path(tokens: &[TokenTree], at: usize) -> bool {
    ident(&tokens[at]).is_some()
        && is_colons(&tokens[at + 1..])
        && !(at >= 2 && is_colons(&tokens[at - 2..at]))
}

fn is_test_attribute(tokens: &[TokenTree]) -> bool {
    let [TokenTree::Punct(hash), TokenTree::Group(group), ..] = tokens else { return false };
    hash.as_char() == '#' && group.stream().to_string().replace(' ', "") == "cfg(test)"
}

/// One source file outside tests, with the names of the modules that lead to it.
struct Source {
    path: PathBuf,
    module: Vec<String>,
    text: String,
    facts: Facts,
}

impl Source {
    fn room(&self) -> &str {
        &self.module[0]
    }
}

/// Modules that lead to a file: `src/sql/ddl.rs` is `[sql, ddl]`, `src/sql/mod.rs` is `[sql]`, `src/lib.rs` is `[lib]`.
fn module_of(path: &Path) -> Vec<String> {
    let below = path.strip_prefix(root().join("src")).unwrap().with_extension("");
    let mut names: Vec<String> = below.iter().map(|name| name.to_string_lossy().into_owned()).collect();
    if names.len() > 1 && names.last().is_some_and(|name| name == "mod") {
        names.pop();
    }
    names
}

/// All sources of the crate; files that only tests compile are left out.
fn sources() -> Vec<Source> {
    let mut all: Vec<Source> = files(&root().join("src"), ".rs")
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            Source { module: module_of(&path), facts: Facts::of(&text), text, path }
        })
        .collect();
    let tests: Vec<Vec<String>> = all
        .iter()
        .flat_map(|source| {
            source.facts.test_modules.iter().map(|name| [source.module.clone(), vec![name.clone()]].concat())
        })
        .collect();
    all.retain(|source| !tests.iter().any(|test| source.module.starts_with(test)));
    assert!(all.len() > 5, "the sources were found");
    all
}

/// The import table of ARCHITECTURE.md: room → rooms it may import; `None` for the rooms that may import any.
fn import_table() -> BTreeMap<String, Option<BTreeSet<String>>> {
    let page = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let mut table = BTreeMap::new();
    for line in page.lines().skip_while(|line| !line.starts_with("| room |")).skip(2) {
        let Some(line) = line.strip_prefix('|').and_then(|line| line.strip_suffix('|')) else { break };
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [room, _, imports] = cells[..] else { panic!("the import table has three columns: {line}") };
        let room = room.trim_matches('`').trim_end_matches('/').trim_end_matches(".rs").to_owned();
        let allowed = match imports {
            "everything" => None,
            "nothing" => Some(BTreeSet::new()),
            names => Some(names.split(',').map(|name| name.trim().to_owned()).collect()),
        };
        table.insert(room, allowed);
    }
    assert!(table.len() > 5, "ARCHITECTURE.md has the import table");
    table
}

/// The room a mention leads to, if it leaves the file's own room.
fn room_mentioned(source: &Source, mention: &Mention) -> Option<String> {
    let supers = mention.path.iter().take_while(|name| *name == "super").count();
    let room = match mention.path[0].as_str() {
        "crate" | "fletching" => mention.path.get(1)?,
        "super" if supers >= source.module.len() + mention.depth => mention.path.get(supers)?,
        _ => return None,
    };
    (room != source.room()).then(|| room.clone())
}

fn assert_none(offences: &[String], rule: &str) {
    assert!(offences.is_empty(), "{rule}:\n  {}", offences.join("\n  "));
}

#[test]
fn rooms_import_only_what_the_table_allows() {
    let table = import_table();
    let mut offences = Vec::new();
    for source in sources() {
        let place = relative(&source.path);
        if source.room() == "lib" {
            continue;
        }
        let Some(allowed) = table.get(source.room()) else {
            offences.push(format!("{place}: room `{}` has no row", source.room()));
            continue;
        };
        for mention in &source.facts.mentions {
            let Some(room) = room_mentioned(&source, mention) else { continue };
            if allowed.as_ref().is_some_and(|allowed| table.contains_key(&room) && !allowed.contains(&room)) {
                offences.push(format!(
                    "{place}:{}: `{}` may not import `{room}`",
                    mention.line,
                    source.room()
                ));
            }
        }
    }
    assert_none(&offences, "imports against the table in ARCHITECTURE.md");
}

#[test]
fn the_table_names_the_rooms_that_exist() {
    let rooms: BTreeSet<String> =
        sources().iter().map(|source| source.room().to_owned()).filter(|room| room != "lib").collect();
    let listed: BTreeSet<String> = import_table().into_keys().collect();
    assert_eq!(listed, rooms, "left: rooms in ARCHITECTURE.md; right: rooms in src/");
    for (room, allowed) in import_table() {
        let strangers: Vec<_> = allowed.iter().flatten().filter(|name| !listed.contains(*name)).collect();
        assert!(strangers.is_empty(), "`{room}` may import rooms that do not exist: {strangers:?}");
    }
}

#[test]
fn only_the_wire_names_grpc() {
    let mut offences = Vec::new();
    for source in sources().iter().filter(|source| !["flight", "shell"].contains(&source.room())) {
        for mention in &source.facts.mentions {
            if ["tonic", "arrow_flight", "prost"].contains(&mention.path[0].as_str()) {
                let line = mention.line;
                offences.push(format!("{}:{line}: {}", relative(&source.path), mention.path.join("::")));
            }
        }
    }
    assert_none(&offences, "only flight/ and shell name tonic, arrow_flight or prost");
}

#[test]
fn files_and_functions_stay_short() {
    let mut offences = Vec::new();
    for source in sources() {
        let place = relative(&source.path);
        let body = source.text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let lines = body.lines().count();
        if lines > FILE_LINES_MAX {
            offences.push(format!("{place}: {lines} lines of at most {FILE_LINES_MAX}"));
        }
        for (name, line, length) in &source.facts.functions {
            if *length > FUNCTION_LINES_MAX {
                offences.push(format!(
                    "{place}:{line}: `{name}` has {length} lines of at most {FUNCTION_LINES_MAX}"
                ));
            }
        }
    }
    assert_none(&offences, "too long");
}

#[test]
fn every_file_says_what_it_is_for() {
    let mut offences = Vec::new();
    for source in sources() {
        let place = relative(&source.path);
        if !source.text.starts_with("//! ") {
            offences.push(format!("{place}: starts with no `//!` charter"));
        }
        for junk in ["util", "utils", "helper", "helpers", "misc", "common"] {
            if source.module.iter().any(|name| name == junk) {
                offences.push(format!("{place}: `{junk}` says nothing"));
            }
        }
    }
    assert_none(&offences, "names and charters");
}

#[test]
fn every_shipped_sql_file_is_run_by_a_test() {
    let tests: String = [".rs", ".py", ".slt"]
        .iter()
        .flat_map(|ending| files(&root().join("tests"), ending))
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    let forgotten: Vec<String> = files(&root().join("sql"), ".sql")
        .iter()
        .map(|path| relative(path))
        .filter(|path| !tests.contains(path.as_str()))
        .collect();
    assert_none(&forgotten, "no test names these files");
}

#[test]
fn the_reader_of_sources_sees_what_it_should() {
    let facts = Facts::of(
        "use crate::{error::Error, model::{self, Column}};\n\
         fn short() -> crate::sql::Session { tonic::Status::ok(\"crate::none\") }\n\
         mod inner { use super::super::online; fn declared();\n }\n\
         // crate::comment\n\
         #[cfg(test)] use crate::flight::{A, B};\n\
         #[cfg(test)] mod tests { use crate::server; fn gone() {} }\n\
         #[cfg(test)] mod elsewhere;\n\
         macro_rules! m { () => { crate::exec::run() } }\n\
         fn long()\n{\n\n}",
    );
    // what stands in `{…}` is read again on its own; only paths from a root count
    let seen: Vec<(String, usize)> = facts
        .mentions
        .iter()
        .filter(|mention| ["crate", "super", "tonic"].contains(&mention.path[0].as_str()))
        .map(|mention| (mention.path.join("::"), mention.depth))
        .collect();
    let expected = [
        ("crate::error::Error", 0),
        ("crate::model::self", 0),
        ("crate::model::Column", 0),
        ("crate::sql::Session", 0),
        ("tonic::Status::ok", 0),
        ("super::super::online", 1),
        ("crate::exec::run", 0),
    ];
    assert_eq!(seen, expected.map(|(path, depth)| (path.to_owned(), depth)));
    assert_eq!(facts.test_modules, ["elsewhere"]);
    assert_eq!(facts.functions, [("short".to_owned(), 2, 1), ("long".to_owned(), 10, 4)]);
}
