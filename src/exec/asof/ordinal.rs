//! Times as exact integers, so that units and zones mix without truncation or overflow.

use datafusion::arrow::array::cast::AsArray;
use datafusion::arrow::array::types::{
    ArrowPrimitiveType, Date32Type, Date64Type, Decimal128Type, Float32Type, Float64Type, Int8Type,
    Int16Type, Int32Type, Int64Type, Time32MillisecondType, Time32SecondType, Time64MicrosecondType,
    Time64NanosecondType, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
    TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use datafusion::arrow::array::{Array, ArrayRef};
use datafusion::arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::{Result, internal_err};

const SECOND_NS: i128 = 1_000_000_000;

/// Whether values of this type are instants, compared in UTC whatever their unit and zone.
pub(crate) fn is_instant(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Timestamp(_, _) | DataType::Date32 | DataType::Date64)
}

/// Whether [`ordinals`] understands this type.
pub(crate) fn is_ordinal(data_type: &DataType) -> bool {
    is_instant(data_type)
        || data_type.is_integer()
        || matches!(
            data_type,
            DataType::Float32
                | DataType::Float64
                | DataType::Decimal128(_, _)
                | DataType::Time32(_)
                | DataType::Time64(_)
        )
}

/// Order-preserving integers: nanoseconds since 1970 for instants, nanoseconds since midnight for times of day,
/// the value itself for integers and for decimals without their point, ranks for floats. NULL slots hold anything.
pub(super) fn ordinals(array: &ArrayRef) -> Result<Vec<i128>> {
    use TimeUnit::{Microsecond, Millisecond, Nanosecond, Second};
    Ok(match array.data_type() {
        DataType::Timestamp(Second, _) => scaled::<TimestampSecondType>(array, SECOND_NS),
        DataType::Timestamp(Millisecond, _) => scaled::<TimestampMillisecondType>(array, 1_000_000),
        DataType::Timestamp(Microsecond, _) => scaled::<TimestampMicrosecondType>(array, 1_000),
        DataType::Timestamp(Nanosecond, _) => scaled::<TimestampNanosecondType>(array, 1),
        DataType::Date32 => scaled::<Date32Type>(array, 86_400 * SECOND_NS),
        DataType::Date64 => scaled::<Date64Type>(array, 1_000_000),
        DataType::Time32(Second) => scaled::<Time32SecondType>(array, SECOND_NS),
        DataType::Time32(_) => scaled::<Time32MillisecondType>(array, 1_000_000),
        DataType::Time64(Microsecond) => scaled::<Time64MicrosecondType>(array, 1_000),
        DataType::Time64(_) => scaled::<Time64NanosecondType>(array, 1),
        DataType::Int8 => scaled::<Int8Type>(array, 1),
        DataType::Int16 => scaled::<Int16Type>(array, 1),
        DataType::Int32 => scaled::<Int32Type>(array, 1),
        DataType::Int64 => scaled::<Int64Type>(array, 1),
        DataType::UInt8 => scaled::<UInt8Type>(array, 1),
        DataType::UInt16 => scaled::<UInt16Type>(array, 1),
        DataType::UInt32 => scaled::<UInt32Type>(array, 1),
        DataType::UInt64 => scaled::<UInt64Type>(array, 1),
        DataType::Decimal128(_, _) => array.as_primitive::<Decimal128Type>().values().to_vec(),
        DataType::Float32 => {
            ranks(array.as_primitive::<Float32Type>().values().iter().map(|v| f64::from(*v)))
        }
        DataType::Float64 => ranks(array.as_primitive::<Float64Type>().values().iter().copied()),
        other => return internal_err!("an ASOF join cannot order values of type {other}"),
    })
}

fn scaled<T>(array: &ArrayRef, unit: i128) -> Vec<i128>
where
    T: ArrowPrimitiveType,
    T::Native: Into<i128>,
{
    array.as_primitive::<T>().values().iter().map(|&v| v.into() * unit).collect()
}

/// IEEE total order as integers, with both zeros equal.
fn ranks(values: impl Iterator<Item = f64>) -> Vec<i128> {
    values
        .map(|value| {
            let bits = (value + 0.0).to_bits().cast_signed();
            i128::from(bits ^ ((bits >> 63).cast_unsigned() >> 1).cast_signed())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use datafusion::arrow::array::{
        Date32Array, Float64Array, Int32Array, TimestampNanosecondArray, TimestampSecondArray,
    };

    #[test]
    fn instants_of_all_units_share_one_scale() {
        let far: ArrayRef = Arc::new(TimestampSecondArray::from(vec![i64::MAX, -1, 1]));
        let near: ArrayRef =
            Arc::new(TimestampNanosecondArray::from(vec![i64::MAX, -1_000_000_000, 1_000_000_001]));
        let days: ArrayRef = Arc::new(Date32Array::from(vec![i32::MIN, 0, 1]));
        let (far, near, days) = (ordinals(&far).unwrap(), ordinals(&near).unwrap(), ordinals(&days).unwrap());
        assert!(far[0] > near[0]);
        assert_eq!(far[1], near[1]);
        assert!(far[2] < near[2]);
        assert_eq!(days[2], 86_400 * far[2]);
    }

    #[test]
    fn floats_keep_their_order() {
        let values =
            vec![f64::NEG_INFINITY, -1.5, -0.0, 0.0, f64::MIN_POSITIVE, 1.5, f64::INFINITY, f64::NAN];
        let array: ArrayRef = Arc::new(Float64Array::from(values));
        let ranks = ordinals(&array).unwrap();
        assert!(ranks.is_sorted());
        assert_eq!(ranks[2], ranks[3]);
        assert!(ranks.windows(2).filter(|pair| pair[0] == pair[1]).count() == 1);
    }

    #[test]
    fn integers_are_themselves() {
        let array: ArrayRef = Arc::new(Int32Array::from(vec![i32::MIN, 7]));
        assert_eq!(ordinals(&array).unwrap(), vec![i128::from(i32::MIN), 7]);
    }
}
