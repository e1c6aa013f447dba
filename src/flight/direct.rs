//! Requests that a client writes itself, so that one call is enough: the query and its parameters as JSON, in the
//! ticket of `DoGet` or in the descriptor of `DoExchange`.
//!
//! ```text
//! {"query": "SELECT * FROM LATEST(user_purchases, ?)", "parameters": [[42], [43]]}
//! ```
//!
//! `parameters` is a list of rows, each a list of values in the order of the placeholders; of a statement with one
//! placeholder the rows may be bare values. Whole numbers, numbers, strings, booleans and null are values; a string
//! stands for a timestamp or a date as it does in SQL.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Float64Array, Int64Array, NullArray, RecordBatch, StringArray, UInt64Array,
};
use arrow::datatypes::Schema;
use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result};

/// How a request of one's own looks, for the errors.
const FORM: &str = r#"write {"query": "SELECT …", "parameters": [[…], …]}"#;

/// What is parsed takes many times the memory of its text.
const REQUEST_BYTES_MAX: usize = 4 << 20;

/// Whole numbers beyond this are not all kept by a double.
const EXACT_MAX: u64 = 1 << f64::MANTISSA_DIGITS;

/// A query, and what is bound to its placeholders.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Direct {
    pub(super) query: String,
    /// `None` where the query takes none.
    parameters: Option<Vec<Value>>,
}

impl Direct {
    /// Whether the bytes of a ticket or a command are such a request, and no protobuf.
    pub(super) fn is(bytes: &[u8]) -> bool {
        bytes.first() == Some(&b'{')
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > REQUEST_BYTES_MAX {
            return Err(Error::exhausted(format!(
                "the request takes {} bytes and may take {REQUEST_BYTES_MAX}: ask for fewer rows at a time, or use \
                 DoExchange",
                bytes.len()
            )));
        }
        serde_json::from_slice(bytes)
            .map_err(|error| Error::invalid(format!("the request is not understood: {error}; {FORM}")))
    }

    pub(super) fn has_parameters(&self) -> bool {
        self.parameters.is_some()
    }

    /// Whether the columns of [`Self::values`] can only be told by the statement.
    pub(super) fn is_without_rows(&self) -> bool {
        self.parameters.as_ref().is_some_and(Vec::is_empty)
    }

    /// The values as one batch, a row per execution and a column per placeholder. `declared` are the parameters of the
    /// statement, which tell the columns of a list without rows.
    ///
    /// # Errors
    /// `Invalid` for rows of different lengths, and values that are of no one type.
    pub(super) fn values(&self, declared: &Arc<Schema>) -> Result<Option<RecordBatch>> {
        let Some(rows) = &self.parameters else { return Ok(None) };
        let Some(first) = rows.first() else { return Ok(Some(RecordBatch::new_empty(Arc::clone(declared)))) };
        let width = cells(first).len();
        if let Some((row, other)) = rows.iter().enumerate().find(|(_, row)| cells(row).len() != width) {
            let got = cells(other).len();
            return Err(Error::invalid(format!(
                "row {row} of the parameters has {got} values, and row 0 has {width}: give each as many as the query \
                 has placeholders"
            )));
        }
        if width == 0 {
            return Err(Error::invalid(format!("the rows of the parameters are empty: {FORM}")));
        }
        let columns = (0..width).map(|place| {
            let column = column(rows.iter().map(|row| &cells(row)[place]), rows.len());
            let column = column.map_err(|what| {
                Error::invalid(format!(
                    "parameter {} is {what} in one row and something else in another: each row is a list with a value \
                     for each placeholder, as [[…, …], …]",
                    place + 1
                ))
            })?;
            Ok((format!("${}", place + 1), column, true))
        });
        Ok(Some(RecordBatch::try_from_iter_with_nullable(columns.collect::<Result<Vec<_>>>()?)?))
    }
}

/// The values of a row; a bare value is a row of one.
fn cells(row: &Value) -> &[Value] {
    match row {
        Value::Array(cells) => cells,
        bare => std::slice::from_ref(bare),
    }
}

/// The values as the narrowest type that holds them; `Err` says what could not be held with the rest.
fn column<'a>(
    values: impl Iterator<Item = &'a Value> + Clone,
    rows: usize,
) -> Result<ArrayRef, Cow<'static, str>> {
    let known = |value: &&&Value| !value.is_null();
    let all = |is: fn(&Value) -> bool| values.clone().filter(|value| known(&value)).all(is);
    Ok(match values.clone().find(|value| known(&value)) {
        None => Arc::new(NullArray::new(rows)),
        Some(Value::Number(_)) if all(Value::is_i64) => {
            Arc::new(values.map(Value::as_i64).collect::<Int64Array>())
        }
        Some(Value::Number(_)) if all(Value::is_u64) => {
            Arc::new(values.map(Value::as_u64).collect::<UInt64Array>())
        }
        Some(Value::Number(_)) if all(is_exact_as_double) => {
            Arc::new(values.map(Value::as_f64).collect::<Float64Array>())
        }
        Some(Value::String(_)) if all(Value::is_string) => {
            Arc::new(values.map(Value::as_str).collect::<StringArray>())
        }
        Some(Value::Bool(_)) if all(Value::is_boolean) => {
            Arc::new(values.map(Value::as_bool).collect::<BooleanArray>())
        }
        Some(Value::Array(_) | Value::Object(_)) => return Err("a list or an object".into()),
        Some(other) => return Err(other.to_string().into()),
    })
}

/// Whether it is a number that no double changes.
fn is_exact_as_double(value: &Value) -> bool {
    let whole = value.as_i64().map(i64::unsigned_abs).or(value.as_u64());
    value.is_number() && whole.is_none_or(|whole| whole <= EXACT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    use arrow::datatypes::{DataType, Field};

    fn values(json: &str) -> Result<Option<RecordBatch>> {
        let declared = Arc::new(Schema::new(vec![Field::new("$1", DataType::Int64, true)]));
        Direct::parse(json.as_bytes())?.values(&declared)
    }

    #[test]
    fn rows_become_columns() {
        let batch = |json| values(json).unwrap().unwrap();
        let bare = batch(r#"{"query": "q", "parameters": [42, null, -1]}"#);
        assert_eq!(bare.column(0).as_ref(), &Int64Array::from(vec![Some(42), None, Some(-1)]));
        assert_eq!(batch(r#"{"query": "q", "parameters": [[42], [null], [-1]]}"#), bare);
        let two = batch(r#"{"query": "q", "parameters": [["u1", 7], ["u2", 2.5]]}"#);
        assert_eq!(two.column(0).as_ref(), &StringArray::from(vec!["u1", "u2"]));
        assert_eq!(two.column(1).as_ref(), &Float64Array::from(vec![7.0, 2.5]));
        let none = batch(r#"{"query": "q", "parameters": []}"#);
        assert_eq!((none.num_rows(), none.num_columns()), (0, 1));
        assert!(values(r#"{"query": "q"}"#).unwrap().is_none());
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (json, expected) in [
            (r#"{"query": "q", "parameters": [[1], [1, 2]]}"#, "row 1 of the parameters has 2 values"),
            (r#"{"query": "q", "parameters": [1, "a"]}"#, "parameter 1 is 1 in one row"),
            (r#"{"query": "q", "parameters": [[[1]]]}"#, "a list or an object"),
            (
                r#"{"query": "q", "parameters": [9007199254740993, 2.5]}"#,
                "parameter 1 is 9007199254740993 in one row",
            ),
            (r#"{"query": "q", "parameters": [[]]}"#, "are empty"),
            (r#"{"sql": "q"}"#, "unknown field `sql`"),
            (r#"{"query": "q""#, "write {"),
            (r#"{"parameters": []}"#, "missing field `query`"),
        ] {
            let error = values(json).unwrap_err();
            assert!(error.to_string().contains(expected), "{json}: {error}");
        }
    }
}
