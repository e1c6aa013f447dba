//! Parquet as this store writes it, and Iceberg's description of a file that is written.

use std::collections::{HashMap, HashSet};

use datafusion::arrow::array::{Array, ArrayRef, RecordBatch};
use datafusion::arrow::datatypes::{DataType, Schema as ArrowSchema};
use iceberg::spec::{
    DataContentType, DataFile, DataFileBuilder, Datum, PrimitiveLiteral, PrimitiveType, Struct,
};
use parquet::basic::{Compression, Encoding};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use parquet::schema::types::ColumnPath;

use crate::error::{Error, Result};
use crate::offline::order::TableOrder;

const ROW_GROUP_ROWS_MAX: usize = 128 * 1024;
const PAGE_ROWS_MAX: usize = 10_000;
/// Whoever reads one row of a column reads its dictionary.
const DICTIONARY_BYTES_MAX: usize = 256 * 1024;

/// A page that compression leaves larger than this part of it stays as it is: single values are read from it without a
/// copy, and to read it whole from memory is cheaper than to decompress it.
const COMPRESSED_RATIO_MAX: f64 = 0.5;

/// Longer bounds are shortened in manifests, which every query reads.
const BOUND_BYTES_MAX: usize = 64;

/// Of values of which more than this part are different, a dictionary would soon be full, and only be in the way.
const DISTINCT_RATIO_MAX: f64 = 0.9;

/// How files of `schema` are written; `order` is that of their rows, if they have one, and `sample` some of them.
///
/// - LZ4 decodes markedly faster than zstd, for a tenth more bytes.
/// - Values that are not in a dictionary lie in plain slots, which are read one by one without what is between.
/// - Numbers and times that rows are sorted by differ little from one to the next, which is what
///   DELTA_BINARY_PACKED is for, or never repeat, which is what a dictionary is not for.
/// - The first key has no bloom filter: rows are sorted by it, so the page index finds its one page in fewer
///   bytes than the filter has. The other keys are spread over every page.
/// - Statistics of column chunks are whole, because a shortened one would be left out of the file's bounds.
pub(super) fn properties(
    schema: &ArrowSchema,
    order: Option<&TableOrder>,
    sample: Option<&RecordBatch>,
) -> WriterProperties {
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::LZ4_RAW)
        .set_writer_version(WriterVersion::PARQUET_2_0)
        .set_data_page_v2_compression_ratio_threshold(COMPRESSED_RATIO_MAX)
        .set_encoding(Encoding::PLAIN)
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS_MAX))
        .set_data_page_row_count_limit(PAGE_ROWS_MAX)
        .set_dictionary_page_size_limit(DICTIONARY_BYTES_MAX)
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_statistics_truncate_length(None);
    let path = |name: &str| ColumnPath::new(vec![name.to_owned()]);
    for (field, values) in sample.iter().flat_map(|s| s.schema_ref().fields().iter().zip(s.columns())) {
        if rarely_repeats(values) {
            properties = properties.set_column_dictionary_enabled(path(field.name()), false);
        }
    }
    let Some(order) = order else { return properties.build() };
    for name in &order.columns {
        if schema.field_with_name(name).is_ok_and(|f| is_packed(f.data_type())) {
            properties = properties
                .set_column_dictionary_enabled(path(name), false)
                .set_column_encoding(path(name), Encoding::DELTA_BINARY_PACKED);
        }
    }
    for name in order.keys().iter().skip(1) {
        properties = properties.set_column_bloom_filter_enabled(path(name), true);
    }
    properties.build()
}

/// Whether nearly all values of a column are different, as far as a look at so many of them tells.
fn rarely_repeats(values: &ArrayRef) -> bool {
    let data = values.to_data();
    let different = match data.data_type().primitive_width() {
        Some(8) => data.buffer::<u64>(0)[..data.len()].iter().copied().collect::<HashSet<u64>>().len(),
        Some(4) => data.buffer::<u32>(0)[..data.len()].iter().copied().collect::<HashSet<u32>>().len(),
        _ => return false,
    };
    different as f64 > data.len() as f64 * DISTINCT_RATIO_MAX
}

fn is_packed(data_type: &DataType) -> bool {
    use DataType::{Date32, Int32, Int64, Time64, Timestamp};
    matches!(data_type, Int32 | Int64 | Date32 | Time64(_) | Timestamp(_, _))
}

/// What the manifest will say of a file.
pub(super) fn data_file(
    mut file: DataFileBuilder,
    partition_spec_id: i32,
    order: Option<&TableOrder>,
) -> Result<DataFile> {
    let incomplete = |e| Error::internal("a data file is incomplete").with_source(e);
    file.content(DataContentType::Data).partition(Struct::empty()).partition_spec_id(partition_spec_id);
    if let Some(order) = order {
        file.sort_order_id(order.id);
    }
    let whole = file.build().map_err(incomplete)?;
    file.lower_bounds(shortened(whole.lower_bounds(), shorter_lower));
    file.upper_bounds(shortened(whole.upper_bounds(), shorter_upper));
    file.build().map_err(incomplete)
}

fn shortened(bounds: &HashMap<i32, Datum>, shorter: fn(&Datum) -> Option<Datum>) -> HashMap<i32, Datum> {
    let short = |(id, bound): (&i32, &Datum)| match bound.literal() {
        PrimitiveLiteral::String(text) if text.len() > BOUND_BYTES_MAX => Some((*id, shorter(bound)?)),
        PrimitiveLiteral::Binary(bytes) if bytes.len() > BOUND_BYTES_MAX => Some((*id, shorter(bound)?)),
        _ => Some((*id, bound.clone())),
    };
    bounds.iter().filter_map(short).collect()
}

/// A prefix sorts before the whole.
fn shorter_lower(bound: &Datum) -> Option<Datum> {
    match (bound.literal(), bound.data_type()) {
        (PrimitiveLiteral::String(text), _) => Some(Datum::string(prefix(text))),
        (PrimitiveLiteral::Binary(bytes), PrimitiveType::Binary) => {
            Some(Datum::binary(bytes[..BOUND_BYTES_MAX].iter().copied()))
        }
        _ => None,
    }
}

/// A prefix whose last character is raised sorts behind the whole.
fn shorter_upper(bound: &Datum) -> Option<Datum> {
    match (bound.literal(), bound.data_type()) {
        (PrimitiveLiteral::String(text), _) => {
            let mut kept: Vec<char> = prefix(text).chars().collect();
            while let Some(last) = kept.pop() {
                if let Some(raised) = (u32::from(last) + 1..=u32::from(char::MAX)).find_map(char::from_u32) {
                    kept.push(raised);
                    return Some(Datum::string(kept.into_iter().collect::<String>()));
                }
            }
            None
        }
        (PrimitiveLiteral::Binary(bytes), PrimitiveType::Binary) => {
            let mut kept = bytes[..BOUND_BYTES_MAX].to_vec();
            while let Some(last) = kept.pop() {
                if last < u8::MAX {
                    kept.push(last + 1);
                    return Some(Datum::binary(kept));
                }
            }
            None
        }
        _ => None,
    }
}

fn prefix(text: &str) -> &str {
    &text[..text.floor_char_boundary(BOUND_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortened_bounds_still_bound() {
        let texts = [
            "x".repeat(65),
            "ü".repeat(40),
            format!("{}\u{d7ff}{}", "a".repeat(61), "z".repeat(10)),
            char::MAX.to_string().repeat(30),
            format!("a{}", char::MAX.to_string().repeat(30)),
        ];
        for text in &texts {
            let bound = Datum::string(text);
            let lower = shorter_lower(&bound).unwrap();
            assert!(lower <= bound && lower.to_string().len() <= BOUND_BYTES_MAX + 2, "{text}");
            match shorter_upper(&bound) {
                Some(upper) => assert!(upper > bound, "{text}"),
                None => assert!(text.chars().all(|c| c == char::MAX), "{text}"),
            }
        }
        for bytes in [vec![7; 65], vec![255; 70], [vec![1], vec![255; 70]].concat()] {
            let bound = Datum::binary(bytes.clone());
            let of = |d: &Datum| match d.literal() {
                PrimitiveLiteral::Binary(bytes) => bytes.clone(),
                other => panic!("{other:?}"),
            };
            assert!(of(&shorter_lower(&bound).unwrap()) <= bytes);
            assert!(shorter_upper(&bound).is_none_or(|upper| of(&upper) > bytes));
        }
    }
}
