//! Logged rows that no snapshot has, in memory: what queries read beside a snapshot, and what a fold commits.
//!
//! ```text
//!   dropped │ folded: kept for who reads an older snapshot │ pieces: sealed, each is a file once read │ open: the newest
//! ──────────┼──────────────────────────────────────────────┼──────────────────────────────────────────┼─────────────────▶
//!         base                                       the table's property                        barrier          numbers
//! ```
//! A piece never changes, so that its rows are written to one file once, whoever asks first: queries read that file, and
//! the fold commits it. Small pieces are merged into larger ones, but never across the end of a fold that was begun.

use std::collections::HashMap;
use std::sync::Arc;

use iceberg::spec::DataFile;
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use uuid::Uuid;

use super::Logged;
use crate::model::TableName;

/// Files that overlap in ingestion are only slower to join, so the last few cuts will do.
const CUTS_MAX: usize = 16;

/// Logged rows of one table under one schema, oldest first.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) logged: Vec<Arc<Logged>>,
    rows: usize,
    /// The data files of its rows, once somebody wanted them.
    pub(super) files: OnceCell<Vec<DataFile>>,
}

impl Piece {
    pub(super) fn new(logged: Vec<Arc<Logged>>) -> Arc<Self> {
        let rows = logged.iter().map(|logged| logged.rows.num_rows()).sum();
        Arc::new(Self { logged, rows, files: OnceCell::new() })
    }

    fn first(&self) -> u64 {
        self.logged.first().map_or(0, |logged| logged.number)
    }

    pub(super) fn last(&self) -> u64 {
        self.logged.last().map_or(0, |logged| logged.number)
    }

    pub(super) fn schema_id(&self) -> i32 {
        self.logged.first().map_or(0, |logged| logged.schema_id)
    }
}

/// What is logged of one table.
#[derive(Debug, Default)]
struct Tail {
    name: Option<TableName>,
    folded: Vec<Arc<Piece>>,
    pieces: Vec<Arc<Piece>>,
    open: Vec<Arc<Logged>>,
    base: u64,
    barrier: u64,
    /// `_ingested_at` of what was written past the log: no piece has rows from before and from behind one of them, so that
    /// of two files one was ingested last.
    cuts: Vec<i64>,
    /// Files of pieces that were merged, and when about that was, in µs since 1970.
    superseded: Vec<(DataFile, i64)>,
    keys: HashMap<String, u64>,
    extent: Extent,
}

/// How much of a table is logged and in no snapshot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) rows: usize,
    pub(crate) bytes: usize,
    pub(crate) keys: usize,
    /// `_ingested_at` of the oldest, in µs since 1970.
    pub(crate) oldest_us: Option<i64>,
    /// That of the newest.
    pub(crate) latest_us: Option<i64>,
}

impl Tail {
    fn push(&mut self, logged: Arc<Logged>) {
        self.extent.rows += logged.rows.num_rows();
        self.extent.bytes += logged.rows.get_array_memory_size();
        self.extent.oldest_us.get_or_insert(logged.ingested_at_us);
        self.extent.latest_us = self.extent.latest_us.max(Some(logged.ingested_at_us));
        for write in &logged.writes {
            if let Some(key) = &write.key {
                self.keys.insert(key.to_string(), write.rows as u64);
            }
        }
        self.extent.keys = self.keys.len();
        self.open.push(logged);
    }

    /// `folded` is what some state of the table has: no piece lies on both sides of it.
    fn seal(&mut self, folded: u64) {
        self.barrier = self.barrier.max(folded);
        let barrier = self.barrier;
        let open = std::mem::take(&mut self.open);
        let together = |a: &Arc<Logged>, b: &Arc<Logged>| {
            self.fit(a, b) && (a.number <= barrier) == (b.number <= barrier)
        };
        let pieces: Vec<_> = open.chunk_by(together).map(|logged| Piece::new(logged.to_vec())).collect();
        for piece in pieces {
            self.pieces.push(piece);
            self.merge();
        }
    }

    /// Whether both may lie in one file; `b` comes behind `a`.
    fn fit(&self, a: &Logged, b: &Logged) -> bool {
        let is_between = |cut: &i64| a.ingested_at_us < *cut && *cut < b.ingested_at_us;
        a.schema_id == b.schema_id && !self.cuts.iter().any(is_between)
    }

    /// As in a binary counter: a row is merged as often as the rows behind it double.
    fn merge(&mut self) {
        while let [.., before, last] = self.pieces.as_slice()
            && before.first() > self.barrier
            && before.rows < 2 * last.rows
            && let (Some(end), Some(begin)) = (before.logged.last(), last.logged.first())
            && self.fit(end, begin)
        {
            let merged = Piece::new(before.logged.iter().chain(&last.logged).cloned().collect());
            let (now_us, files) = (begin.ingested_at_us, [before, last].map(|piece| piece.files.get()));
            let files = files.into_iter().flatten().flatten().cloned();
            let files: Vec<_> = files.map(|file| (file, now_us)).collect();
            self.superseded.extend(files);
            self.pieces.truncate(self.pieces.len() - 2);
            self.pieces.push(merged);
        }
    }

    fn folded(&mut self, upto: u64) {
        if let Some(last) = self.folded.last() {
            self.base = self.base.max(last.last());
        }
        let (folded, rest) = std::mem::take(&mut self.pieces).into_iter().partition(|p| p.last() <= upto);
        (self.folded, self.pieces) = (folded, rest);
        let logged = self.pieces.iter().flat_map(|piece| piece.logged.iter().cloned());
        let left: Vec<_> = logged.chain(std::mem::take(&mut self.open)).collect();
        // They are counted again; pieces stay as they are.
        (self.extent, self.keys) = (Extent::default(), HashMap::new());
        let open: usize = self.pieces.iter().map(|piece| piece.logged.len()).sum();
        left.into_iter().for_each(|logged| self.push(logged));
        self.open.drain(..open);
    }
}

/// The tails of all tables, by their ids.
#[derive(Debug, Default)]
pub(super) struct Tails(Mutex<HashMap<Uuid, Tail>>);

/// What a reader wants is not in memory any more.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Gone;

impl Tails {
    pub(super) fn push(&self, logged: Logged) {
        let mut tails = self.0.lock();
        let tail = tails.entry(logged.table_id).or_default();
        tail.name.get_or_insert_with(|| logged.name.clone());
        tail.push(Arc::new(logged));
    }

    /// What is logged of a table behind the number `folded`.
    pub(super) fn behind(&self, table: Uuid, folded: u64) -> Result<Vec<Arc<Piece>>, Gone> {
        let mut tails = self.0.lock();
        let Some(tail) = tails.get_mut(&table) else { return Ok(Vec::new()) };
        if folded < tail.base {
            return Err(Gone);
        }
        tail.seal(folded);
        let pieces = tail.folded.iter().chain(&tail.pieces);
        Ok(pieces.filter(|piece| piece.first() > folded).cloned().collect())
    }

    /// Something was ingested past the log.
    pub(super) fn cut(&self, table: Uuid, ingested_at_us: i64) {
        let mut tails = self.0.lock();
        let cuts = &mut tails.entry(table).or_default().cuts;
        cuts.push(ingested_at_us);
        cuts.drain(..cuts.len().saturating_sub(CUTS_MAX));
    }

    /// Takes the files that nobody who looks now will read, and that were superseded before that time.
    pub(super) fn superseded(&self, table: Uuid, before_us: i64) -> Vec<DataFile> {
        let mut tails = self.0.lock();
        let Some(tail) = tails.get_mut(&table) else { return Vec::new() };
        tail.superseded.extract_if(.., |(_, at_us)| *at_us < before_us).map(|(file, _)| file).collect()
    }

    /// Whose files are superseded.
    pub(super) fn with_superseded(&self) -> Vec<Uuid> {
        let tails = self.0.lock();
        tails.iter().filter(|(_, tail)| !tail.superseded.is_empty()).map(|(id, _)| *id).collect()
    }

    /// What is to be folded into a table that has what is up to `folded`. From now on nothing is merged with it.
    pub(super) fn to_fold(&self, table: Uuid, folded: u64) -> Vec<Arc<Piece>> {
        let mut tails = self.0.lock();
        let Some(tail) = tails.get_mut(&table) else { return Vec::new() };
        tail.seal(folded);
        tail.barrier = tail.pieces.last().map_or(tail.barrier, |piece| piece.last());
        tail.pieces.clone()
    }

    /// Everything up to that number is in a snapshot.
    pub(super) fn folded(&self, table: Uuid, upto: u64) {
        if let Some(tail) = self.0.lock().get_mut(&table) {
            tail.folded(upto);
        }
    }

    /// The table is gone, and so are its rows.
    pub(super) fn forget(&self, table: Uuid) {
        self.0.lock().remove(&table);
    }

    /// The rows of the write with that key, if it is logged and in no snapshot.
    pub(super) fn rows_written_with(&self, table: Uuid, key: &str) -> Option<u64> {
        self.0.lock().get(&table)?.keys.get(key).copied()
    }

    pub(super) fn extent(&self, table: Uuid) -> Extent {
        self.0.lock().get(&table).map_or_else(Extent::default, |tail| tail.extent)
    }

    /// The tables of which something is logged, and how much.
    pub(super) fn extents(&self) -> Vec<(Uuid, TableName, Extent)> {
        let tails = self.0.lock();
        let some = tails.iter().filter(|(_, tail)| tail.extent.rows > 0);
        some.filter_map(|(id, tail)| Some((*id, tail.name.clone()?, tail.extent))).collect()
    }
}
