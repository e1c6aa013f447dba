//! A look-up of listed keys outside any plan.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use datafusion::arrow::datatypes::SchemaRef;

use super::answer::Answerer;
use super::columns::LatestColumn;
use super::logical::LookupRequest;
use crate::clock::Clock;
use crate::error::Result;
use crate::model::{EntityKey, encode_keys};
use crate::online::OnlineStore;

/// What `LATEST(group, key, …)` answers, ready to be asked again and again.
#[derive(Debug)]
pub(crate) struct DirectLookup {
    request: LookupRequest,
    answerer: Answerer,
    columns: Vec<LatestColumn>,
    schema: SchemaRef,
    store: Arc<dyn OnlineStore>,
    clock: Arc<dyn Clock>,
}

impl DirectLookup {
    /// `columns` are places in `latest_schema`, and `schema` has a field for each of them.
    ///
    /// # Errors
    /// `Unsupported` for a group that the online store cannot keep.
    pub(crate) fn new(
        request: LookupRequest,
        columns: &[usize],
        schema: SchemaRef,
        (store, clock): (Arc<dyn OnlineStore>, Arc<dyn Clock>),
    ) -> Result<Self> {
        let answerer = Answerer::new(Arc::clone(&request.group), request.missing)?;
        let columns = columns.iter().map(|i| LatestColumn::at(&request.group, *i)).collect();
        Ok(Self { request, answerer, columns, schema, store, clock })
    }

    /// Microseconds since 1970: the moment that one query asks about, however many parts it has.
    pub(crate) fn now_us(&self) -> i64 {
        self.clock.now_us()
    }

    /// The answer for each row of `keys` (the entity key's columns, in key order and of its types) at `now_us`.
    ///
    /// # Errors
    /// `Unavailable` when the store does not answer, `Corrupt` for what it holds and nobody can read.
    pub(crate) async fn run(&self, keys: &[ArrayRef], now_us: i64) -> Result<RecordBatch> {
        let encoded = encode_keys(keys)?;
        // No entity has a key of which a part is NULL.
        let is_known: Vec<bool> = encoded.iter().map(Option::is_some).collect();
        let known: Vec<EntityKey> = encoded.into_iter().flatten().collect();
        let found = self.store.get(&self.request.group, &known, self.request.max_staleness).await?;
        let found = found.checked(known.len())?;
        let entries = match known.len() == is_known.len() {
            true => found,
            false => {
                let mut places = 0..known.len();
                found.arranged(is_known.iter().map(|is_known| is_known.then(|| places.next())?))
            }
        };
        let answer = self.answerer.answer(&entries, now_us, self.clock.now_us())?;
        let columns = answer.columns(&self.columns, keys)?;
        let rows = RecordBatchOptions::new().with_row_count(Some(answer.len()));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &rows)?)
    }
}
