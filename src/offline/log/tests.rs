use std::sync::Arc;

use datafusion::arrow::array::{Int64Array, RecordBatch};
use datafusion::arrow::datatypes::{DataType, Field, Schema};

use super::tail::{Gone, Tails};
use super::*;

fn logged(number: u64, rows: i64) -> Logged {
    let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
    let column = Int64Array::from_iter_values(0..rows);
    Logged {
        number,
        table_id: Uuid::from_u128(7),
        name: TableName::new("public", "g"),
        schema_id: 3,
        rows: RecordBatch::try_new(schema, vec![Arc::new(column)]).unwrap(),
        writes: vec![LoggedWrite { rows: rows as usize, key: Some(key(number)) }],
        ingested_at_us: number as i64,
    }
}

fn key(number: u64) -> IdempotencyKey {
    IdempotencyKey::parse(&format!("key-{number}")).unwrap()
}

#[tokio::test]
async fn records_survive_a_restart_and_numbers_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, before) = Journal::open_all(dir.path()).unwrap().pop().unwrap();
    assert!(before.is_empty());
    let id = journal.id;
    let written = journal.append(vec![logged(0, 2), logged(0, 5)]).await.unwrap();
    assert_eq!(written.iter().map(|logged| logged.number).collect::<Vec<_>>(), [1, 2]);
    drop(journal);

    let (journal, there) = Journal::open_all(dir.path()).unwrap().pop().unwrap();
    assert_eq!(journal.id, id);
    for (was, is) in written.iter().zip(&there) {
        assert_eq!((was.number, was.table_id, &was.name), (is.number, is.table_id, &is.name));
        assert_eq!(
            (was.schema_id, was.ingested_at_us, &was.rows),
            (is.schema_id, is.ingested_at_us, &is.rows)
        );
        assert_eq!(was.writes[0].key, is.writes[0].key);
    }
    journal.remove(vec![1, 2]).await.unwrap();
    // Although nothing is there, no number comes again: a table has noted that it has them.
    assert_eq!(journal.append(vec![logged(0, 1)]).await.unwrap()[0].number, 3);
}

#[tokio::test]
async fn servers_that_share_a_directory_have_a_file_each_and_inherit_from_those_that_ended() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = Journal::open_all(dir.path()).unwrap();
    let mut second = Journal::open_all(dir.path()).unwrap();
    assert_eq!((first.len(), second.len()), (1, 1));
    assert_ne!(first[0].0.id, second[0].0.id);
    second.remove(0).0.append(vec![logged(0, 4)]).await.unwrap();
    first.remove(0).0.append(vec![logged(0, 3)]).await.unwrap();

    let both = Journal::open_all(dir.path()).unwrap();
    let rows: Vec<_> = both.iter().map(|(_, records)| records[0].rows.num_rows()).collect();
    assert_eq!(rows, [3, 4]);
}

#[test]
fn a_damaged_record_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.redb");
    let database = redb::Database::create(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    let records = redb::TableDefinition::<u64, &[u8]>::new("records");
    transaction.open_table(records).unwrap().insert(5, b"no record".as_slice()).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = Journal::open_all(dir.path()).unwrap_err();
    assert_eq!(error.kind(), crate::error::ErrorKind::Corrupt);
    assert!(error.message().contains("record 5 of the log"), "{error}");
}

/// Rows that a reader of a snapshot that has folded up to `folded` sees.
fn seen(tails: &Tails, folded: u64) -> std::result::Result<Vec<u64>, Gone> {
    let pieces = tails.behind(Uuid::from_u128(7), folded)?;
    Ok(pieces.iter().flat_map(|piece| piece.logged.iter().map(|logged| logged.number)).collect())
}

#[test]
fn a_reader_sees_what_its_snapshot_has_not_whatever_is_merged_and_folded() {
    let table = Uuid::from_u128(7);
    let tails = Tails::default();
    for number in 1..=20 {
        tails.push(logged(number, 1));
        assert_eq!(seen(&tails, 0).unwrap(), (1..=number).collect::<Vec<_>>());
    }
    let pieces = tails.behind(table, 0).unwrap();
    assert!(pieces.len() <= 5, "few files for many reads: {}", pieces.len());

    let folding = tails.to_fold(table, 0);
    let upto = folding.last().unwrap().last();
    assert_eq!(upto, 20);
    for number in 21..=40 {
        tails.push(logged(number, 1));
        assert_eq!(seen(&tails, 0).unwrap(), (1..=number).collect::<Vec<_>>());
        assert_eq!(seen(&tails, 20).unwrap(), (21..=number).collect::<Vec<_>>(), "of one who sees the fold");
    }
    assert_eq!(tails.rows_written_with(table, "key-7"), Some(1));
    tails.folded(table, upto);
    assert_eq!(tails.extent(table).rows, 20);
    assert_eq!(tails.rows_written_with(table, "key-7"), None, "a snapshot has it");
    assert_eq!(tails.rows_written_with(table, "key-27"), Some(1));
    assert_eq!(seen(&tails, 0).unwrap(), (1..=40).collect::<Vec<_>>(), "who planned before");
    assert_eq!(seen(&tails, 20).unwrap(), (21..=40).collect::<Vec<_>>());

    let upto = tails.to_fold(table, 0).last().unwrap().last();
    tails.folded(table, upto);
    assert_eq!(seen(&tails, 20).unwrap(), (21..=40).collect::<Vec<_>>());
    assert_eq!(seen(&tails, 40).unwrap(), Vec::<u64>::new());
    assert_eq!(seen(&tails, 0), Err(Gone), "two folds later");
    assert_eq!(tails.extent(table), LogExtent::default());
    assert!(tails.extents().is_empty());
}

#[test]
fn rows_of_another_schema_are_a_piece_of_their_own() {
    let tails = Tails::default();
    for number in 1..=6 {
        tails.push(Logged { schema_id: if number < 4 { 0 } else { 1 }, ..logged(number, 1) });
    }
    let pieces = tails.behind(Uuid::from_u128(7), 0).unwrap();
    let schemas: Vec<_> = pieces.iter().map(|piece| (piece.schema_id(), piece.logged.len())).collect();
    assert_eq!(schemas, [(0, 3), (1, 3)]);
}

#[test]
fn after_a_restart_no_piece_holds_both_what_a_table_has_and_what_it_has_not() {
    let table = Uuid::from_u128(7);
    for folded in 0..=5 {
        let tails = Tails::default();
        (1..=5).for_each(|number| tails.push(logged(number, 1)));
        assert_eq!(seen(&tails, folded).unwrap(), (folded + 1..=5).collect::<Vec<_>>());
        let tails = Tails::default();
        (1..=5).for_each(|number| tails.push(logged(number, 1)));
        let pieces = tails.to_fold(table, folded);
        let missing = pieces.iter().filter(|piece| piece.last() > folded);
        let missing: Vec<_> =
            missing.flat_map(|piece| piece.logged.iter().map(|logged| logged.number)).collect();
        assert_eq!(missing, (folded + 1..=5).collect::<Vec<_>>());
    }
}

#[test]
fn what_was_written_past_the_log_lies_between_two_files() {
    let table = Uuid::from_u128(7);
    let tails = Tails::default();
    tails.cut(table, 0);
    for number in [1, 2, 4, 5, 7, 8] {
        if number == 4 {
            tails.behind(table, 0).unwrap();
            tails.cut(table, 3);
        }
        if number == 7 {
            tails.cut(table, 6);
        }
        tails.push(logged(number, 1));
    }
    let pieces = tails.behind(table, 0).unwrap();
    let numbers =
        |piece: &std::sync::Arc<tail::Piece>| piece.logged.iter().map(|l| l.number).collect::<Vec<_>>();
    assert_eq!(pieces.iter().map(numbers).collect::<Vec<_>>(), [[1, 2], [4, 5], [7, 8]]);
}

#[tokio::test]
async fn what_a_refused_write_left_behind_is_gone_with_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open_all(dir.path()).unwrap().pop().unwrap();
    journal.append(vec![logged(0, 1)]).await.unwrap();
    journal.lose(vec![logged(2, 7), logged(3, 7)]);
    assert_eq!(journal.append(vec![logged(0, 2)]).await.unwrap()[0].number, 2);
    drop(journal);
    let (_, records) = Journal::open_all(dir.path()).unwrap().pop().unwrap();
    assert_eq!(records.iter().map(|logged| logged.rows.num_rows()).collect::<Vec<_>>(), [1, 2]);
}
