//! What makes a write a small one.

use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use datafusion::arrow::compute::concat_batches;
use datafusion::arrow::datatypes::DataType;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{StreamExt, TryStreamExt};

use crate::error::Result;
use crate::model::IdempotencyKey;

/// A write of more rows or bytes goes into a snapshot of its own.
const FEW_ROWS_MAX: usize = 1000;
const FEW_BYTES_MAX: usize = 1 << 20;

/// One write of several into one table.
#[derive(Debug)]
pub(crate) struct Append {
    pub(crate) rows: RecordBatch,
    pub(crate) key: Option<IdempotencyKey>,
    /// What the rows take: [`bytes_of`] them.
    pub(crate) bytes: usize,
}

impl Append {
    /// Whether it shares the log with others, as far as that is a matter of its size.
    pub(crate) fn is_few(&self) -> bool {
        self.rows.num_rows() <= FEW_ROWS_MAX && self.bytes <= FEW_BYTES_MAX
    }
}

/// The rows of a write: few, or not.
pub(crate) enum Few {
    Rows(RecordBatch),
    Many(SendableRecordBatchStream),
}

impl Few {
    /// Reads as far as it takes to know.
    pub(super) async fn of(mut rows: SendableRecordBatchStream) -> Result<Self> {
        let schema = rows.schema();
        let (mut read, mut count, mut bytes) = (Vec::new(), 0, 0);
        while let Some(batch) = rows.try_next().await? {
            count += batch.num_rows();
            bytes += bytes_of(&batch);
            read.push(batch);
            if count > FEW_ROWS_MAX || bytes > FEW_BYTES_MAX {
                let read = futures::stream::iter(read.into_iter().map(Ok));
                let rows = RecordBatchStreamAdapter::new(schema, read.chain(rows));
                return Ok(Self::Many(Box::pin(rows)));
            }
        }
        Ok(Self::Rows(concat_batches(&schema, &read)?))
    }

    pub(super) fn into_stream(self) -> SendableRecordBatchStream {
        match self {
            Self::Many(rows) => rows,
            Self::Rows(rows) => {
                let schema = rows.schema();
                Box::pin(RecordBatchStreamAdapter::new(schema, futures::stream::iter([Ok(rows)])))
            }
        }
    }
}

/// What the rows themselves take, whatever larger batch they are a part of.
pub(crate) fn bytes_of(rows: &RecordBatch) -> usize {
    let own = |column: &ArrayRef| {
        // Arrow leaves out what views point to.
        let viewed = match column.data_type() {
            DataType::Utf8View => column.as_string_view().total_buffer_bytes_used(),
            DataType::BinaryView => column.as_binary_view().total_buffer_bytes_used(),
            nested if has_views(nested) => column.get_array_memory_size(),
            _ => 0,
        };
        viewed + column.to_data().get_slice_memory_size().unwrap_or_else(|_| column.get_array_memory_size())
    };
    rows.columns().iter().map(own).sum()
}

fn has_views(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8View | DataType::BinaryView => true,
        DataType::Dictionary(_, values) => has_views(values),
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::FixedSizeList(item, _)
        | DataType::ListView(item)
        | DataType::LargeListView(item)
        | DataType::Map(item, _) => has_views(item.data_type()),
        DataType::Struct(fields) => fields.iter().any(|field| has_views(field.data_type())),
        _ => false,
    }
}
