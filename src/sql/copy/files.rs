//! Which files a `COPY` reads: those that its pattern names, within the directories that the server's operator allows.

use std::fs::Metadata;
use std::path::{Component, Path, PathBuf};

use datafusion::common::parsers::CompressionTypeVariant as Compression;

use super::statement::{Format, Options, compression};
use crate::error::{Error, Result};

/// One `COPY` reads no more files than this.
const FILES_MAX: usize = 100_000;

/// One file to read.
#[derive(Debug, Clone)]
pub(super) struct CopyFile {
    /// Absolute, without symbolic links.
    pub(super) path: PathBuf,
    /// As its statement may name it.
    pub(super) shown: String,
    pub(super) format: Format,
    pub(super) compression: Compression,
    /// What separates fields, where its name tells.
    pub(super) delimiter: Option<u8>,
    pub(super) metadata: Metadata,
}

/// The directories from which files may be read.
#[derive(Debug, Clone, Default)]
pub(crate) struct CopyDirectories(Vec<PathBuf>);

impl CopyDirectories {
    /// # Errors
    /// `Invalid` for what is no directory.
    pub(crate) fn new(directories: &[PathBuf]) -> Result<Self> {
        let resolved = directories.iter().map(|directory| {
            let unusable = |why: &str| {
                Error::invalid(format!(
                    "copy_from: '{}' is not a directory to read from: {why}",
                    directory.display()
                ))
            };
            let resolved = directory.canonicalize().map_err(|error| unusable(&error.to_string()))?;
            if resolved.is_dir() { Ok(resolved) } else { Err(unusable("it is a file")) }
        });
        Ok(Self(resolved.collect::<Result<_>>()?))
    }

    /// The files that `source` names, in the order of their names: a file, a directory with all that is below it, or a
    /// pattern. Blocks.
    ///
    /// # Errors
    /// `Unsupported` for URLs, and where the operator allows no files; `NotFound` where there is none; `Invalid` for what
    /// is not allowed, and for files that do not tell what they are.
    pub(super) fn files(&self, source: &str, options: &Options) -> Result<Vec<CopyFile>> {
        let source = local(source)?;
        if self.0.is_empty() {
            return Err(Error::unsupported(
                "COPY reads files of the server's machine only where its operator allows it: start the server with \
                 --copy-from DIRECTORY, or send the rows by bulk ingest, such as adbc_ingest",
            ));
        }
        let mut found = Vec::new();
        for pattern in self.patterns(Path::new(source))? {
            self.matching(&pattern, &mut found)?;
        }
        found.sort();
        found.dedup();
        if found.is_empty() {
            return Err(Error::not_found(format!("COPY finds no file '{source}' on the server's machine")));
        }
        found.into_iter().map(|path| described(path, options)).collect()
    }

    /// Where `source` may be: in every directory where it is relative, and in one of them where it is not.
    fn patterns(&self, source: &Path) -> Result<Vec<PathBuf>> {
        let climbs = source.components().any(|part| part == Component::ParentDir);
        if source.is_relative() && !climbs {
            return Ok(self.0.iter().map(|directory| directory.join(source)).collect());
        }
        match !climbs && self.0.iter().any(|directory| source.starts_with(directory)) {
            true => Ok(vec![source.to_owned()]),
            false => Err(self.forbidden(&source.display().to_string())),
        }
    }

    /// Adds the files that a path or a pattern names.
    fn matching(&self, pattern: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
        let is_pattern = |text: &str| text.contains(['*', '?', '[']);
        let text =
            pattern.to_str().ok_or_else(|| Error::invalid("the name of a file to COPY is not UTF-8"))?;
        if pattern.exists() || !is_pattern(text) {
            return if pattern.exists() { self.add(pattern, true, found) } else { Ok(()) };
        }
        let bad = |error: &dyn std::error::Error| {
            Error::invalid(format!("'{text}' is not a pattern of files: {error}"))
        };
        for path in glob::glob(text).map_err(|error| bad(&error))? {
            self.add(&path.map_err(|error| unreadable(error.path(), error.error()))?, false, found)?;
        }
        Ok(())
    }

    /// Adds a file, or, of a directory that was named or lies in one, what is below it but for hidden files: those that begin with a
    /// dot or an underscore.
    fn add(&self, path: &Path, into_directories: bool, found: &mut Vec<PathBuf>) -> Result<()> {
        let resolved = path.canonicalize().map_err(|error| unreadable(path, &error))?;
        if !self.0.iter().any(|directory| resolved.starts_with(directory)) {
            return Err(self.forbidden(&path.display().to_string()));
        }
        if resolved.is_file() {
            if found.len() == FILES_MAX {
                return Err(Error::exhausted(format!(
                    "COPY reads at most {FILES_MAX} files: name fewer at a time"
                )));
            }
            found.push(resolved);
            return Ok(());
        }
        if !into_directories || !resolved.is_dir() {
            return Ok(());
        }
        for entry in std::fs::read_dir(&resolved).map_err(|error| unreadable(path, &error))? {
            let entry = entry.map_err(|error| unreadable(path, &error))?;
            let name = entry.file_name();
            if !matches!(name.as_encoded_bytes().first(), Some(b'.' | b'_')) {
                self.add(&path.join(name), true, found)?;
            }
        }
        Ok(())
    }

    fn forbidden(&self, source: &str) -> Error {
        let allowed: Vec<String> =
            self.0.iter().map(|directory| format!("'{}'", directory.display())).collect();
        Error::invalid(format!(
            "COPY may not read '{source}': the server's operator allows files in {}, and names relative to that",
            allowed.join(", ")
        ))
    }
}

/// The path that a source names, which may be a URL of a file.
fn local(source: &str) -> Result<&str> {
    match source.split_once("://") {
        None if source.trim().is_empty() => Err(Error::invalid("COPY … FROM '' names no file")),
        None => Ok(source),
        Some(("file", path)) => Ok(path),
        Some((scheme, _)) => Err(Error::unsupported(format!(
            "COPY does not read from {scheme}:// in this version: it reads files of the server's machine, by path or \
             file://; send other rows by bulk ingest, such as adbc_ingest"
        ))),
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    Error::unavailable(format!("COPY cannot read '{}': {error}", path.display()))
}

/// What a file is: by the statement, else by its name.
fn described(path: PathBuf, options: &Options) -> Result<CopyFile> {
    let shown = path.display().to_string();
    let metadata = path.metadata().map_err(|error| unreadable(&path, &error))?;
    if metadata.len() == 0 {
        return Err(Error::invalid(format!(
            "file '{shown}' is empty: it has no rows, and says nothing of columns"
        )));
    }
    let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let mut extensions = name.rsplit('.').peekable();
    let by_name = extensions.peek().and_then(|last| compression(last).ok().filter(|_| name.contains('.')));
    if by_name.is_some_and(|compression| compression.is_compressed()) {
        extensions.next();
    }
    let (format, delimiter) = match extensions.next() {
        Some("parquet" | "parq" | "pq") => (Some(Format::Parquet), None),
        Some("csv") => (Some(Format::Csv), None),
        Some("tsv") => (Some(Format::Csv), Some(b'\t')),
        Some("json" | "jsonl" | "ndjson") => (Some(Format::Json), None),
        _ => (None, None),
    };
    let format = options.format.or(format).ok_or_else(|| {
        Error::invalid(format!(
            "the name of file '{shown}' does not tell what it is: say (FORMAT parquet), (FORMAT csv) or (FORMAT json)"
        ))
    })?;
    options.check(format)?;
    let compression = options.compression.or(by_name).unwrap_or(Compression::UNCOMPRESSED);
    Ok(CopyFile { path, shown, format, compression, delimiter, metadata })
}
