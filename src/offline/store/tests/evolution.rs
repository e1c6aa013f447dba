//! Tables whose schema changed after files were written, as other engines change it: through Iceberg's metadata.

use datafusion::arrow::array::{
    ArrayRef, Decimal128Array, Float32Array, Float64Array, Int32Array, StringArray, StructArray,
};
use datafusion::arrow::datatypes::{DataType, Field, Schema as ArrowSchema};
use datafusion::arrow::util::pretty::pretty_format_batches;
use iceberg::spec::{Literal, NestedField, NestedFieldRef, PrimitiveType, Schema, StructType, Type};

use super::*;

fn stream(batch: RecordBatch) -> SendableRecordBatchStream {
    Box::pin(RecordBatchStreamAdapter::new(batch.schema(), futures::stream::iter([Ok(batch)])))
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, a)| (n, a, true))).unwrap()
}

fn decimals(values: Vec<i128>, precision: u8) -> ArrayRef {
    Arc::new(Decimal128Array::from(values).with_precision_and_scale(precision, 2).unwrap())
}

/// A table of one file.
async fn created(store: &OfflineStore, rows: RecordBatch) -> OfflineTable {
    let spec = TableSpec::plain(TableName::new("public", "t"), storage_schema(&rows.schema()).unwrap());
    store.create(&spec, Some(stream(rows)), &unbounded()).await.unwrap();
    store.load(&spec.name).await.unwrap().unwrap()
}

fn field(id: i32, name: &str, data_type: PrimitiveType) -> NestedFieldRef {
    Arc::new(NestedField::optional(id, name, Type::Primitive(data_type)))
}

/// Commits `fields` as the table's schema.
async fn evolve(
    store: &OfflineStore,
    table: &OfflineTable,
    fields: Vec<NestedFieldRef>,
) -> Result<OfflineTable> {
    let schema = Schema::builder().with_fields(fields).build().unwrap();
    let previous = table.metadata.as_ref().clone();
    let next = TableMetadataBuilder::new_from_metadata(previous, Some(table.location.to_string()))
        .add_current_schema(schema)
        .and_then(|builder| builder.build())
        .unwrap()
        .metadata;
    // Whether what it is then can be read is for whoever loads it.
    let committed = store.swap(table, next, &[], |_| false).await;
    assert!(!matches!(committed, Ok(None)));
    store.load(&table.name).await.map(|table| table.expect("it was just committed"))
}

async fn query(store: &Arc<OfflineStore>, table: &OfflineTable, sql: &str) -> Vec<String> {
    let context = SessionContext::new();
    let rows = IcebergTable::current(Arc::clone(store), table.clone());
    context.register_table("t", Arc::new(rows)).unwrap();
    let rows = context.sql(sql).await.unwrap().collect().await.unwrap();
    let shown = pretty_format_batches(&rows).unwrap().to_string();
    let cells = |line: &str| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>().join(" ");
    shown.lines().filter(|l| l.starts_with('|')).skip(1).map(cells).collect()
}

#[tokio::test]
async fn columns_are_found_by_id_through_renames_drops_additions_and_promotions() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let texts = |values: [&str; 2]| Arc::new(StringArray::from(values.to_vec())) as ArrayRef;
    let old = batch(vec![
        ("id", Arc::new(Int32Array::from(vec![1, 2]))),
        ("x", texts(["x1", "x2"])),
        ("y", texts(["y1", "y2"])),
        ("gone", texts(["g1", "g2"])),
        ("f", Arc::new(Float32Array::from(vec![0.5, 1.5]))),
        ("d", decimals(vec![150, 250], 10)),
    ]);
    let table = created(&store, old).await;
    // `x` and `y` swap names, `gone` is dropped and its name given to a new column in front.
    let wide = PrimitiveType::Decimal { precision: 20, scale: 2 };
    let fields = vec![
        field(7, "gone", PrimitiveType::Double),
        field(3, "x", PrimitiveType::String),
        field(2, "y", PrimitiveType::String),
        field(1, "key", PrimitiveType::Long),
        field(5, "f", PrimitiveType::Double),
        field(6, "d", wide),
    ];
    let table = evolve(&store, &table, fields).await.unwrap();
    let new = batch(vec![
        ("gone", Arc::new(Float64Array::from(vec![9.5]))),
        ("x", Arc::new(StringArray::from(vec!["x3"]))),
        ("y", Arc::new(StringArray::from(vec!["y3"]))),
        ("key", Arc::new(Int64Array::from(vec![1_i64 << 40]))),
        ("f", Arc::new(Float64Array::from(vec![2.25]))),
        ("d", decimals(vec![10_i128.pow(15)], 20)),
    ]);
    let (table, _) = store.append(&table, stream(new), HashMap::new(), &unbounded()).await.unwrap();
    let cases: [(&str, &[&str]); 9] = [
        (
            "SELECT * FROM t ORDER BY key",
            &[" y1 x1 1 0.5 1.50", " y2 x2 2 1.5 2.50", "9.5 x3 y3 1099511627776 2.25 10000000000000.00"],
        ),
        ("SELECT x FROM t WHERE x >= 'y'  ORDER BY x", &["y1", "y2"]),
        ("SELECT key FROM t WHERE y = 'x2'", &["2"]),
        ("SELECT key, x FROM t WHERE gone IS NULL ORDER BY key", &["1 y1", "2 y2"]),
        ("SELECT key, x FROM t WHERE gone > 1", &["1099511627776 x3"]),
        ("SELECT x FROM t WHERE key = 2 AND f = 1.5 AND d = 2.5", &["y2"]),
        ("SELECT x FROM t WHERE key > 2147483648", &["x3"]),
        ("SELECT sum(key), sum(f), sum(d), count(gone) FROM t WHERE key < 3", &["3 2.0 4.00 0"]),
        ("SELECT count(*) FROM t", &["3"]),
    ];
    for (sql, expected) in cases {
        assert_eq!(query(&store, &table, sql).await, expected, "{sql}");
    }
}

/// What `table` becomes with these columns.
fn altered(table: &OfflineTable, columns: &[(&str, DataType)]) -> TableSpec {
    let fields: Vec<Field> = columns.iter().map(|(name, t)| Field::new(*name, t.clone(), true)).collect();
    TableSpec::plain(table.name.clone(), storage_schema(&ArrowSchema::new(fields)).unwrap())
}

#[tokio::test]
async fn a_name_that_comes_back_is_another_column_and_a_stale_write_lands_right() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let old = |id: i32, v: i64| {
        batch(vec![("id", Arc::new(Int32Array::from(vec![id]))), ("v", Arc::new(Int64Array::from(vec![v])))])
    };
    let stale = created(&store, old(1, 10)).await;
    let list = DataType::List(Arc::new(Field::new("element", DataType::Utf8, true)));
    let wide = [("id", DataType::Int64), ("tags", list), ("more", DataType::Utf8)];
    let without = store.alter(&stale, |now| Ok(altered(now, &wide))).await.unwrap();
    let ids: Vec<i32> = without.iceberg_schema().as_struct().fields().iter().map(|f| f.id).collect();
    assert_eq!(ids, [1, 3, 4]);
    assert_eq!(without.metadata.last_column_id(), 5, "the list's element has an id of its own");
    let again = [&wide[..], &[("v", DataType::Int64)]].concat();
    let again = store.alter(&stale, |now| Ok(altered(now, &again))).await.unwrap();
    assert_eq!(again.iceberg_schema().field_by_name("v").unwrap().id, 6);
    let back = store.alter(&stale, |now| Ok(altered(now, &wide))).await.unwrap();
    assert_eq!(
        back.schemas().iter().map(|(id, _)| *id).collect::<Vec<_>>(),
        [0, 2, 1],
        "the current one last"
    );
    let again = store.alter(&stale, |now| Ok(altered(now, &[&wide[..], &[("v", DataType::Int64)]].concat())));
    let again = again.await.unwrap();
    assert_eq!(again.iceberg_schema().field_by_name("v").unwrap().id, 7, "as often as it comes");
    let same = store.alter(&stale, |now| Ok(altered(now, &again_columns(now)))).await.unwrap();
    assert_eq!(same.location, again.location, "what changes nothing is not committed");

    // It began before the change, and has a column that is no more.
    let (table, _) = store.append(&stale, stream(old(2, 20)), HashMap::new(), &unbounded()).await.unwrap();
    assert_eq!(table.metadata.current_schema_id(), again.metadata.current_schema_id());
    let cases: [(&str, &[&str]); 4] = [
        ("SELECT id, v, more, tags IS NULL FROM t ORDER BY id", &["1   true", "2   true"]),
        ("SELECT id FROM t WHERE v = 20", &[]),
        ("SELECT id FROM t WHERE v IS NULL AND id > 1", &["2"]),
        ("SELECT sum(id), count(v) FROM t", &["3 0"]),
    ];
    for (sql, expected) in cases {
        assert_eq!(query(&store, &table, sql).await, expected, "{sql}");
    }
    let (dropped, _) = (table.clone(), store.drop_table(&table).await.unwrap());
    let gone = store.alter(&dropped, |now| Ok(altered(now, &wide))).await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::Conflict);
}

/// The columns that `table` has.
fn again_columns(table: &OfflineTable) -> Vec<(&str, DataType)> {
    table.schema().fields().iter().map(|f| (f.name().as_str(), f.data_type().clone())).collect()
}

#[tokio::test]
async fn a_column_with_an_initial_default_reads_it_in_older_files() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let table = created(&store, batch(vec![("id", Arc::new(Int64Array::from(vec![1, 2])))])).await;
    let added = NestedField::optional(2, "n", Type::Primitive(PrimitiveType::Long));
    let fields =
        vec![field(1, "id", PrimitiveType::Long), Arc::new(added.with_initial_default(Literal::long(7)))];
    let table = evolve(&store, &table, fields).await.unwrap();
    assert_eq!(query(&store, &table, "SELECT id, n FROM t WHERE n = 7 ORDER BY id").await, ["1 7", "2 7"]);
    assert!(query(&store, &table, "SELECT id FROM t WHERE n IS NULL").await.is_empty());
}

#[tokio::test]
async fn structs_grow_and_their_fields_keep_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let values: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
    let row: ArrayRef =
        Arc::new(StructArray::from(vec![(Arc::new(Field::new("a", DataType::Int64, true)), values)]));
    let table = created(&store, batch(vec![("s", row)])).await;
    let with = |fields: Vec<NestedFieldRef>| {
        vec![Arc::new(NestedField::optional(1, "s", Type::Struct(StructType::new(fields))))]
    };
    let grown = with(vec![field(2, "a", PrimitiveType::Long), field(3, "b", PrimitiveType::String)]);
    let table = evolve(&store, &table, grown).await.unwrap();
    let sql = "SELECT s['a'], s['b'] IS NULL FROM t ORDER BY 1";
    assert_eq!(query(&store, &table, sql).await, ["1 true", "2 true"]);
    let renamed = with(vec![field(2, "c", PrimitiveType::Long)]);
    let error = evolve(&store, &table, renamed).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("inside column 's' of table 'public.t'"), "{error}");
}
