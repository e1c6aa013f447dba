//! The ASOF join against the data files of its right side: no exchange, and for sorted files no sort and no merge.
//!
//! ```text
//! labels ─ collect ─ sort by (entity key, time) ─┬ range 0 ┐          files, each sorted by (entity key, event time)
//!                                                ├ range 1 ┤            day 1  ▇▇▇▇▇▇▇▇
//!                                                └ range 2 ┘            day 2  ▇▇▇▇▇▇▇▇▇
//! a range, one after the other in each partition:
//!   1. search   per file: the pages whose keys its labels have, keys and times alone, merged with the labels
//!   2. choose   per label: the candidate nearest in time, of equal ones that of the file ingested last
//!   3. gather   per file: the features of the chosen rows
//!   4. put out  the label columns and what was gathered
//! ```
//!
//! Files are visited from the nearest in time, and a label that no farther file can better is not looked up again; so
//! files, pages and rows that no label needs are not read. Labels that do not fit into memory are joined in passes, each
//! with as many as fit; the history is read again for each. Rows come out in any order.
//!
//! Files in another order, or in none, are searched the same way, but all their keys and times are read, and those of a
//! range sorted in memory.
//!
//! Several joins of the same label columns run as one: the labels are sorted once.

mod column;
mod exec;
mod gather;
mod keys;
mod labels;
mod lookup;
mod range;
mod right;
mod search;
mod slots;
mod source;

pub(super) use exec::AsofHistoryExec;
pub(super) use keys::{Integers, KeyKind, Keys};
pub(super) use labels::LabelExprs;
pub(super) use right::{HistoryColumn, KnownBy, Origin, Output, Right, SortedFile};
pub(super) use search::{Rows, Sought, Window, search};
