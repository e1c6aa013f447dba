//! Iceberg's per-file bounds and counts, as DataFusion reads them: to skip files and to estimate.

use std::collections::HashSet;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, BooleanArray, UInt64Array};
use datafusion::arrow::datatypes::{DataType, SchemaRef, TimeUnit};
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::stats::Precision;
use datafusion::common::{Column, ColumnStatistics, ScalarValue, Statistics};
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{BinaryExpr, Column as PhysicalColumn, Literal};
use datafusion::physical_expr::utils::split_conjunction;
use iceberg::spec::{DataFile, Datum, PrimitiveLiteral, Schema};

/// Bounds of many files, column by column, for a `PruningPredicate`.
pub(super) struct FileBounds<'a> {
    pub(super) files: &'a [DataFile],
    pub(super) schema: &'a Schema,
    pub(super) arrow: &'a SchemaRef,
}

impl FileBounds<'_> {
    fn column(&self, column: &Column) -> Option<(i32, &DataType)> {
        let id = self.schema.field_by_name(&column.name)?.id;
        Some((id, self.arrow.field_with_name(&column.name).ok()?.data_type()))
    }

    fn bounds<'f>(
        &'f self,
        column: &Column,
        bound: impl Fn(&'f DataFile, i32) -> Option<&'f Datum>,
    ) -> Option<ArrayRef> {
        let (id, data_type) = self.column(column)?;
        let null = ScalarValue::try_from(data_type).ok()?;
        let values = self.files.iter().map(|file| {
            bound(file, id)
                .filter(|_| !may_hold_nan(file, id, data_type))
                .and_then(|datum| scalar(datum.literal(), data_type))
                .unwrap_or_else(|| null.clone())
        });
        ScalarValue::iter_to_array(values).ok()
    }
}

/// NaN is greater than every number, and bounds leave it out.
pub(super) fn may_hold_nan(file: &DataFile, id: i32, data_type: &DataType) -> bool {
    data_type.is_floating() && file.nan_value_counts().get(&id) != Some(&0)
}

impl PruningStatistics for FileBounds<'_> {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.bounds(column, |file, id| file.lower_bounds().get(&id))
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.bounds(column, |file, id| file.upper_bounds().get(&id))
    }

    fn num_containers(&self) -> usize {
        self.files.len()
    }

    fn null_counts(&self, column: &Column) -> Option<ArrayRef> {
        let (id, _) = self.column(column)?;
        let counts: UInt64Array =
            self.files.iter().map(|f| f.null_value_counts().get(&id).copied()).collect();
        Some(Arc::new(counts))
    }

    fn row_counts(&self, _column: &Column) -> Option<ArrayRef> {
        let counts: UInt64Array = self.files.iter().map(|f| Some(f.record_count())).collect();
        Some(Arc::new(counts))
    }

    fn contained(&self, _column: &Column, _values: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}

/// What one file tells the optimizer. Counts are exact, and so are bounds but for those of texts and bytes, which are
/// shortened, and of floats, whose NaN and -0 engines order each in its own way.
pub(super) fn file_statistics(file: &DataFile, schema: &Schema, arrow: &SchemaRef) -> Statistics {
    let column_statistics = arrow
        .fields()
        .iter()
        .map(|field| {
            let Some(id) = schema.field_by_name(field.name()).map(|f| f.id) else {
                return ColumnStatistics::new_unknown();
            };
            let bound = |datum: Option<&Datum>| {
                let value = datum.and_then(|d| scalar(d.literal(), field.data_type()));
                match (value, field.data_type()) {
                    (None, _) => Precision::Absent,
                    (Some(v), DataType::Utf8 | DataType::Float32 | DataType::Float64) => {
                        Precision::Inexact(v)
                    }
                    (Some(v), _) => Precision::Exact(v),
                }
            };
            ColumnStatistics {
                null_count: match file.null_value_counts().get(&id) {
                    Some(count) => Precision::Exact(*count as usize),
                    None => Precision::Absent,
                },
                min_value: bound(file.lower_bounds().get(&id)),
                max_value: bound(file.upper_bounds().get(&id)),
                ..ColumnStatistics::new_unknown()
            }
        })
        .collect();
    Statistics {
        num_rows: Precision::Exact(file.record_count() as usize),
        total_byte_size: Precision::Inexact(file.file_size_in_bytes() as usize),
        column_statistics,
    }
}

/// Leaves out bounds that are farther apart than their type counts: DataFusion's estimates fail on them.
pub(super) fn without_endless(mut statistics: Statistics) -> Statistics {
    use ScalarValue::{Int64, TimestampMicrosecond};
    for column in &mut statistics.column_statistics {
        let distance = match (column.min_value.get_value(), column.max_value.get_value()) {
            (Some(Int64(Some(min))), Some(Int64(Some(max))))
            | (Some(TimestampMicrosecond(Some(min), _)), Some(TimestampMicrosecond(Some(max), _))) => {
                max.checked_sub(*min)
            }
            _ => continue,
        };
        if distance.is_none() {
            (column.min_value, column.max_value) = (Precision::Absent, Precision::Absent);
        }
    }
    statistics
}

/// The part of the files' rows that a predicate keeps, going by its comparisons of `column` with a constant, and as if
/// values lay evenly between their bounds. Where nothing can be told, all are kept.
pub(super) fn kept_part(
    predicate: &Arc<dyn PhysicalExpr>,
    files: &[DataFile],
    column: &str,
    schema: &Schema,
    arrow: &SchemaRef,
) -> f64 {
    let (Some(id), Ok(field)) = (schema.field_by_name(column).map(|f| f.id), arrow.field_with_name(column))
    else {
        return 1.0;
    };
    let limits: Vec<(Operator, f64)> = { split_conjunction(predicate).into_iter() }
        .filter_map(|filter| {
            let comparison = filter.as_any().downcast_ref::<BinaryExpr>()?;
            let (left, right) = (comparison.left().as_any(), comparison.right().as_any());
            let (of, constant, operator) = match left.downcast_ref::<PhysicalColumn>() {
                Some(of) => (of, right.downcast_ref::<Literal>()?, *comparison.op()),
                None => (right.downcast_ref()?, left.downcast_ref::<Literal>()?, comparison.op().swap()?),
            };
            (of.name() == column).then_some((operator, number(constant.value())?))
        })
        .collect();
    let of_file = |file: &DataFile| {
        let bound = |datum: Option<&Datum>| number(&scalar(datum?.literal(), field.data_type())?);
        let bounds = (bound(file.lower_bounds().get(&id)), bound(file.upper_bounds().get(&id)));
        let (Some(least), Some(greatest)) = bounds else { return 1.0 };
        let (mut low, mut high) = (least, greatest + 1.0);
        for (operator, limit) in &limits {
            match operator {
                Operator::Lt | Operator::LtEq => high = high.min(*limit),
                Operator::Gt | Operator::GtEq => low = low.max(*limit),
                Operator::Eq => (low, high) = (low.max(*limit), high.min(*limit + 1.0)),
                _ => {}
            }
        }
        ((high - low) / (greatest - least + 1.0)).clamp(0.0, 1.0)
    };
    let rows = |file: &DataFile| file.record_count() as f64;
    let kept: f64 = files.iter().map(|file| rows(file) * of_file(file)).sum();
    kept / f64::max(files.iter().map(rows).sum(), 1.0)
}

/// Whole numbers and instants as a number.
fn number(value: &ScalarValue) -> Option<f64> {
    match value {
        ScalarValue::Int32(value) | ScalarValue::Date32(value) => value.map(f64::from),
        ScalarValue::Int64(value) | ScalarValue::TimestampMicrosecond(value, _) => {
            value.map(|value| value as f64)
        }
        _ => None,
    }
}

/// An Iceberg value as a value of the column's Arrow type; `None` where the two do not meet.
pub(super) fn scalar(value: &PrimitiveLiteral, data_type: &DataType) -> Option<ScalarValue> {
    use PrimitiveLiteral as L;
    Some(match (value, data_type) {
        (L::Boolean(v), DataType::Boolean) => ScalarValue::Boolean(Some(*v)),
        (L::Int(v), DataType::Int32) => ScalarValue::Int32(Some(*v)),
        (L::Int(v), DataType::Int64) => ScalarValue::Int64(Some(i64::from(*v))),
        (L::Int(v), DataType::Date32) => ScalarValue::Date32(Some(*v)),
        (L::Long(v), DataType::Int64) => ScalarValue::Int64(Some(*v)),
        (L::Long(v), DataType::Timestamp(TimeUnit::Microsecond, zone)) => {
            ScalarValue::TimestampMicrosecond(Some(*v), zone.clone())
        }
        (L::Float(v), DataType::Float32) if !v.is_nan() => ScalarValue::Float32(Some(v.0)),
        (L::Float(v), DataType::Float64) if !v.is_nan() => ScalarValue::Float64(Some(f64::from(v.0))),
        (L::Double(v), DataType::Float64) if !v.is_nan() => ScalarValue::Float64(Some(v.0)),
        (L::String(v), DataType::Utf8) => ScalarValue::Utf8(Some(v.clone())),
        (L::Int128(v), DataType::Decimal128(p, s)) => ScalarValue::Decimal128(Some(*v), *p, *s),
        _ => return None,
    })
}
