//! What went wrong, and what the caller should do next.

use std::error::Error as StdError;
use std::fmt;

use datafusion::arrow::error::ArrowError;
use datafusion::common::DataFusionError;
use parquet::errors::ParquetError;

/// Result of every fallible call in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller should do about an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request is wrong: fix it and send it again.
    Invalid,
    /// The caller has not said who they are, or not proven it: sign in, then send it again.
    Unauthenticated,
    /// The named object does not exist.
    NotFound,
    /// The named object exists already.
    AlreadyExists,
    /// The request is understood, and this version does not do it.
    Unsupported,
    /// Somebody else changed the same object: retry.
    Conflict,
    /// A store or the server is not reachable now: wait, then retry.
    Unavailable,
    /// The request needs more memory or room than it may have: ask for less.
    Exhausted,
    /// The caller went away or asked to stop.
    Cancelled,
    /// Stored data is not what was written: restore or report.
    Corrupt,
    /// A defect of Fletching: report it.
    Internal,
}

/// An error with its kind, a message that names the object and the fix, and its typed cause.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

macro_rules! constructors {
    ($($name:ident => $kind:ident),* $(,)?) => {
        $(#[doc = concat!("An [`ErrorKind::", stringify!($kind), "`] error.")]
        pub fn $name(message: impl Into<String>) -> Self {
            Self::new(ErrorKind::$kind, message)
        })*
    };
}

impl Error {
    /// An error of the given kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    constructors! {
        invalid => Invalid,
        unauthenticated => Unauthenticated,
        not_found => NotFound,
        already_exists => AlreadyExists,
        unsupported => Unsupported,
        conflict => Conflict,
        unavailable => Unavailable,
        exhausted => Exhausted,
        cancelled => Cancelled,
        corrupt => Corrupt,
        internal => Internal,
    }

    /// Keeps the cause; its text is appended where the error is shown.
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What the caller should do.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The message without its cause.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|s| s as &(dyn StdError + 'static))
    }
}

impl From<Error> for DataFusionError {
    fn from(error: Error) -> Self {
        DataFusionError::External(Box::new(error))
    }
}

impl From<ArrowError> for Error {
    fn from(error: ArrowError) -> Self {
        DataFusionError::from(error).into()
    }
}

/// Unwraps our own errors that travelled through DataFusion, and sorts DataFusion's by what the caller can do.
impl From<DataFusionError> for Error {
    fn from(error: DataFusionError) -> Self {
        use DataFusionError as D;
        match error {
            D::External(inner) => match inner.downcast::<Error>() {
                Ok(own) => *own,
                Err(other) => match other.downcast::<DataFusionError>() {
                    Ok(nested) => (*nested).into(),
                    Err(other) => Error::internal(other.to_string()),
                },
            },
            D::ArrowError(inner, _) => from_arrow(*inner),
            D::Context(_, inner) | D::Diagnostic(_, inner) => (*inner).into(),
            D::Collection(mut errors) if !errors.is_empty() => errors.swap_remove(0).into(),
            D::Shared(inner) => from_shared(&inner),
            D::SQL(inner, _) => Error::invalid(format!("SQL does not parse: {}", inner)),
            D::ParquetError(inner) => Error::new(kind_of_parquet(&inner), inner.to_string()),
            D::ObjectStore(inner) => Error::unavailable(inner.to_string()),
            D::IoError(inner) => Error::unavailable(inner.to_string()),
            other => from_words(&other),
        }
    }
}

/// DataFusion says in words alone that a table does not exist, and puts a heading before everything.
fn from_words(error: &DataFusionError) -> Error {
    let text = error.strip_backtrace();
    let headings = ["Error during planning: ", "Execution error: ", "This feature is not implemented: "];
    let text = headings.iter().find_map(|heading| text.strip_prefix(heading)).unwrap_or(&text);
    // DataFusion takes it for a bug of its own that a function is given what it does not take.
    if let Some((what, _)) = text.split_once(" failed to match any signature") {
        let what = what.trim_start_matches("Internal error: ");
        return Error::invalid(format!("{what} takes no arguments of these types"));
    }
    if text.starts_with("table '") && text.ends_with("' not found") {
        return Error::not_found(text);
    }
    Error::new(kind_of(error), text)
}

fn kind_of(error: &DataFusionError) -> ErrorKind {
    use DataFusionError as D;
    match error {
        D::Plan(_) | D::SchemaError(..) | D::Execution(_) | D::Configuration(_) | D::SQL(..) => {
            ErrorKind::Invalid
        }
        D::NotImplemented(_) => ErrorKind::Unsupported,
        D::ResourcesExhausted(_) => ErrorKind::Exhausted,
        D::ExecutionJoin(join) if join.is_cancelled() => ErrorKind::Cancelled,
        D::ParquetError(inner) => kind_of_parquet(inner),
        D::ObjectStore(_) | D::IoError(_) => ErrorKind::Unavailable,
        _ => ErrorKind::Internal,
    }
}

/// What cannot be read is damaged, but where it could not be fetched.
fn kind_of_parquet(error: &ParquetError) -> ErrorKind {
    match error {
        ParquetError::External(cause) => match cause.downcast_ref::<object_store::Error>() {
            Some(object_store::Error::NotFound { .. }) | None => ErrorKind::Corrupt,
            Some(_) => ErrorKind::Unavailable,
        },
        _ => ErrorKind::Corrupt,
    }
}

fn from_arrow(error: ArrowError) -> Error {
    match error {
        ArrowError::ExternalError(inner) => DataFusionError::External(inner).into(),
        ArrowError::IoError(message, _) => Error::unavailable(message),
        ArrowError::NotYetImplemented(message) => Error::unsupported(message),
        ArrowError::MemoryError(message) => Error::exhausted(message),
        other => Error::invalid(other.to_string()),
    }
}

/// A shared error cannot be moved out: keep its kind and its words.
fn from_shared(error: &DataFusionError) -> Error {
    match error.find_root() {
        DataFusionError::External(inner) => match inner.downcast_ref::<Error>() {
            Some(own) => Error::new(own.kind, own.to_string()),
            None => Error::internal(inner.to_string()),
        },
        root => from_words(root),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn our_own_errors_survive_datafusion() {
        let wrap: [fn(DataFusionError) -> DataFusionError; 4] = [
            |e| e,
            |e| e.context("while planning"),
            |e| DataFusionError::Shared(Arc::new(e)),
            |e| DataFusionError::ArrowError(Box::new(ArrowError::ExternalError(Box::new(e))), None),
        ];
        for wrap in wrap {
            let error: Error = wrap(Error::not_found("feature group 'x' does not exist").into()).into();
            assert_eq!(error.kind(), ErrorKind::NotFound);
            assert_eq!(error.message(), "feature group 'x' does not exist");
        }
    }

    #[test]
    fn datafusion_errors_tell_what_to_do() {
        let cases = [
            (DataFusionError::Plan("no such column".into()), ErrorKind::Invalid),
            (DataFusionError::Plan("table 'fletching.public.t' not found".into()), ErrorKind::NotFound),
            (
                DataFusionError::Internal("Function 'sum' failed to match any signature, errors: …".into()),
                ErrorKind::Invalid,
            ),
            (DataFusionError::ResourcesExhausted("2 GB".into()), ErrorKind::Exhausted),
            (DataFusionError::NotImplemented("cube".into()), ErrorKind::Unsupported),
            (DataFusionError::Internal("bug".into()), ErrorKind::Internal),
            (ArrowError::DivideByZero.into(), ErrorKind::Invalid),
        ];
        for (error, kind) in cases {
            assert_eq!(Error::from(error).kind(), kind);
        }
    }
}
