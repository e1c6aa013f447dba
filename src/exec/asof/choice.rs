//! Whether a join can run against the files of its right side, and if not, why.

use datafusion::arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::{Column, DFSchema, ExprSchema, JoinType, Result};
use datafusion::datasource::source_as_provider;
use datafusion::execution::SessionState;
use datafusion::logical_expr::{Cast, Expr, LogicalPlan};
use datafusion::physical_expr::PhysicalExprRef;
use datafusion::physical_plan::ExecutionPlan;
use std::sync::Arc;

use super::history::{HistoryColumn, KeyKind, KnownBy, LabelExprs, Origin, Output, Right, SortedFile};
use super::node::AsofJoin;
use super::planner::absent_value;
use super::spec::{AsofSpec, KnownAt};
use crate::exec::options::{SessionOptions, Strategy};
use crate::model::{INGESTED_AT, SEQUENCE};
use crate::offline::{History, HistoryFile, IcebergTable};

/// How a join runs.
pub(super) enum Choice {
    /// Against the files of one table.
    Files { exprs: LabelExprs, kind: KeyKind, right: Box<Right> },
    /// As a merge of both sides, partitioned and sorted; the reason why not against files.
    Partitioned(&'static str),
}

/// The left side of the join.
pub(super) struct Side<'a> {
    pub(super) plan: &'a Arc<dyn ExecutionPlan>,
    pub(super) on_left: &'a (dyn Fn(&Expr) -> Result<PhysicalExprRef> + Sync),
}

/// The columns of a right side that is nothing but a table's rows.
struct Scanned {
    table: IcebergTable,
    /// For each column of the right side its column in the table.
    columns: Vec<HistoryColumn>,
}

macro_rules! or_partitioned {
    ($option:expr, $reason:literal) => {
        match $option {
            Some(value) => value,
            None => return Ok(Choice::Partitioned($reason)),
        }
    };
}

pub(super) async fn choose(node: &AsofJoin, left: &Side<'_>, state: &SessionState) -> Result<Choice> {
    let forced = state.config().options().extensions.get::<SessionOptions>().map(|o| o.asof_strategy);
    if forced == Some(Strategy::PartitionedMerge) {
        return Ok(Choice::Partitioned("as fletching.asof_strategy says"));
    }
    let choice = against_files(node, left).await?;
    if let (Choice::Partitioned(reason), Some(Strategy::Files)) = (&choice, forced) {
        return Err(crate::error::Error::unsupported(format!(
            "fletching.asof_strategy is files, but {reason}: SET it to 'auto'"
        ))
        .into());
    }
    Ok(choice)
}

async fn against_files(node: &AsofJoin, left: &Side<'_>) -> Result<Choice> {
    let (spec, right) = (node.spec(), node.right());
    let scanned = or_partitioned!(scanned(right), "right side is not just a stored table");
    let history = or_partitioned!(scanned.table.history().await?, "right side is not a whole table");
    let column_of = |expr: &Expr| match expr {
        Expr::Column(column) => {
            right.schema().maybe_index_of_column(column).map(|index| scanned.columns[index].clone())
        }
        _ => None,
    };
    or_partitioned!(
        learnt_by_table(spec, &scanned, right.schema()),
        "ingestion is by other columns than the table's own"
    );
    let time = or_partitioned!(column_of(&spec.right_time), "right time is computed");
    let key_of = |expr: &Expr| {
        let (column, data_type) = under_casts(expr, right.schema())?;
        Some(HistoryColumn { data_type, ..column_of(column)? })
    };
    let keys: Option<Vec<HistoryColumn>> = spec.on.iter().map(|(_, right)| key_of(right)).collect();
    let keys = or_partitioned!(keys, "a right key is computed");
    // Files in another order, or in none, are sorted as they are read, which loses the order of ingestion.
    let order = key_order(&history, &keys, &time).filter(|_| history.files.iter().all(|file| file.is_sorted));
    let is_sorted = order.is_some();
    let order = order.or_else(|| spec.ties.is_empty().then(|| (0..keys.len()).collect()));
    let order = or_partitioned!(order, "files are not sorted by keys and time, which leaves ties open");
    let keys: Vec<HistoryColumn> = order.iter().map(|index| keys[*index].clone()).collect();
    let key_types: Vec<DataType> = keys.iter().map(|key| key.data_type.clone()).collect();
    let kind = or_partitioned!(KeyKind::of(&key_types), "no keys, or of types that are not searched");
    let label_time = (left.on_left)(&spec.left_time)?;
    let units = unit(&label_time.data_type(&left.plan.schema())?).zip(unit(&time.data_type));
    let units = or_partitioned!(units, "times of such types are not searched");
    let files =
        or_partitioned!(files(&history, &scanned.table, spec, &time), "files overlap in ingestion order");
    let strategy = if is_sorted { "sorted files" } else { "unsorted files" };
    let known_by = spec.known_at.as_ref().map(|known| known_by(known, left)).transpose()?;
    let known_by = or_partitioned!(transposed(known_by), "the as-known-at bound is not searched");
    let on_left: Vec<PhysicalExprRef> =
        order.iter().map(|index| (left.on_left)(&spec.on[*index].0)).collect::<Result<_>>()?;
    let outputs = outputs(node, &scanned, &keys, &time)?;
    let description = format!("type={}, {spec}, strategy={strategy}, files={}", spec.join_type, files.len());
    let right = Right {
        files: files.into(),
        is_sorted,
        keys,
        time,
        backward: spec.op.is_backward(),
        strict: spec.op.is_strict(),
        reach: spec.reach(),
        units,
        known_by,
        inner: spec.join_type == JoinType::Inner,
        outputs,
        description,
    };
    let exprs = LabelExprs { keys: on_left, key_types, time: label_time };
    Ok(Choice::Files { exprs, kind, right: Box::new(right) })
}

/// What the join puts out of its right side, and where it comes from.
fn outputs(
    node: &AsofJoin,
    scanned: &Scanned,
    keys: &[HistoryColumn],
    time: &HistoryColumn,
) -> Result<Vec<Output>> {
    let output = |index: usize| {
        let absent = absent_value(node.spec(), node.right().schema(), index)?;
        let column = scanned.columns[index].clone();
        let origin = match keys.iter().position(|key| key.id == column.id) {
            Some(key) => Origin::Key(key),
            None if column.id == time.id => Origin::Time,
            None => Origin::File,
        };
        Ok(Output { origin, column, absent })
    };
    node.right_output().into_iter().map(output).collect()
}

/// `None` stays outside: it says that the part cannot be done.
fn transposed<T>(part: Option<Option<T>>) -> Option<Option<T>> {
    match part {
        None => Some(None),
        Some(None) => None,
        Some(done) => Some(done),
    }
}

fn scanned(plan: &LogicalPlan) -> Option<Scanned> {
    match plan {
        LogicalPlan::TableScan(scan) if scan.filters.is_empty() && scan.fetch.is_none() => {
            let provider = source_as_provider(&scan.source).ok()?;
            let table = provider.as_any().downcast_ref::<IcebergTable>()?.clone();
            let column = |index: usize| {
                let field = scan.source.schema().field(index).clone();
                let id = table.field_id(field.name())?;
                Some(HistoryColumn { id, name: field.name().clone(), data_type: field.data_type().clone() })
            };
            let all: Vec<usize> = (0..scan.source.schema().fields().len()).collect();
            let columns = scan.projection.as_ref().unwrap_or(&all).iter().map(|index| column(*index));
            let columns = columns.collect::<Option<Vec<_>>>()?;
            Some(Scanned { table, columns })
        }
        LogicalPlan::SubqueryAlias(alias) => scanned(&alias.input),
        LogicalPlan::Projection(projection) => {
            let below = scanned(&projection.input)?;
            let column = |expr: &Expr| {
                let index = projection.input.schema().maybe_index_of_column(as_column(expr)?)?;
                Some(below.columns[index].clone())
            };
            let columns = projection.expr.iter().map(column).collect::<Option<Vec<_>>>()?;
            Some(Scanned { columns, ..below })
        }
        _ => None,
    }
}

/// The column that an expression passes on, perhaps renamed.
pub(crate) fn as_column(expr: &Expr) -> Option<&Column> {
    match expr {
        Expr::Column(column) => Some(column),
        Expr::Alias(alias) => as_column(&alias.expr),
        _ => None,
    }
}

/// The column under the casts that type coercion adds to a key, where they leave keys as far apart and in the same
/// order, and the type that they give it.
fn under_casts<'a>(expr: &'a Expr, schema: &DFSchema) -> Option<(&'a Expr, DataType)> {
    match expr {
        Expr::Column(column) => Some((expr, schema.field_from_column(column).ok()?.data_type().clone())),
        Expr::Cast(Cast { expr, data_type }) => {
            let (column, from) = under_casts(expr, schema)?;
            keeps_order(&from, data_type).then(|| (column, data_type.clone()))
        }
        _ => None,
    }
}

fn keeps_order(from: &DataType, to: &DataType) -> bool {
    use DataType as D;
    match (from, to) {
        (D::Dictionary(_, from), to) => keeps_order(from, to),
        (from, D::Dictionary(_, to)) => keeps_order(from, to),
        (D::Utf8 | D::LargeUtf8 | D::Utf8View, D::Utf8 | D::LargeUtf8 | D::Utf8View) => true,
        (from, D::Int64) => matches!(from, D::Int8 | D::Int16 | D::Int32 | D::UInt8 | D::UInt16 | D::UInt32),
        (from, D::Int32) => matches!(from, D::Int8 | D::Int16),
        _ => false,
    }
}

/// Which of `keys` comes first, second and so on in the sort order, if they and the time are what it begins with.
fn key_order(history: &History, keys: &[HistoryColumn], time: &HistoryColumn) -> Option<Vec<usize>> {
    let order = history.order.get(..keys.len())?;
    if history.order.get(keys.len())? != &time.name {
        return None;
    }
    let position = |name: &String| keys.iter().position(|key| key.name == *name);
    let order: Vec<usize> = order.iter().map(position).collect::<Option<_>>()?;
    (order.len() == keys.len()).then_some(order)
}

/// How many of a common unit the values count: nanoseconds for instants, one for integers. `None` for times that are
/// not whole numbers of 64 bits.
fn unit(data_type: &DataType) -> Option<i128> {
    use DataType as D;
    Some(match data_type {
        D::Timestamp(TimeUnit::Second, _) => 1_000_000_000,
        D::Timestamp(TimeUnit::Millisecond, _) | D::Date64 => 1_000_000,
        D::Timestamp(TimeUnit::Microsecond, _) => 1_000,
        D::Timestamp(TimeUnit::Nanosecond, _) => 1,
        D::Date32 => 86_400_000_000_000,
        D::Int8 | D::Int16 | D::Int32 | D::Int64 | D::UInt8 | D::UInt16 | D::UInt32 => 1,
        _ => return None,
    })
}

fn known_by(known: &KnownAt, left: &Side<'_>) -> Result<Option<KnownBy>> {
    let bound = (left.on_left)(&known.bound)?;
    let unit = unit(&bound.data_type(&left.plan.schema())?);
    Ok(unit.map(|unit_ns| KnownBy { bound, unit_ns, strict: known.strict }))
}

/// The files from the nearest in time, ranked by ingestion; `None` where the manifest does not tell which of two rows
/// of equal time in different files was ingested last.
fn files(
    history: &History,
    table: &IcebergTable,
    spec: &AsofSpec,
    time: &HistoryColumn,
) -> Option<Vec<SortedFile>> {
    let mut files = Vec::with_capacity(history.files.len());
    for file in &history.files {
        let times = file.bounds(time.id).unwrap_or((i64::MIN, i64::MAX));
        let (learnt, ingested_us) = match spec.ties.is_empty() {
            true => (((0, 0), (0, 0)), None),
            false => learnt(file, table)?,
        };
        if spec.known_at.is_some() && ingested_us.is_none() {
            return None;
        }
        files.push((learnt, SortedFile { file: file.clone(), times, ingested_us, rank: 0 }));
    }
    files.sort_by_key(|(learnt, _)| *learnt);
    for (index, ((_, last), file)) in files.iter().enumerate() {
        if spec.ties.is_empty() {
            break;
        }
        let later = files[index + 1..].iter().take_while(|((first, _), _)| first <= last);
        let overlaps = |other: &SortedFile| file.times.0 <= other.times.1 && other.times.0 <= file.times.1;
        if { later }.any(|(_, other)| overlaps(other)) {
            return None;
        }
    }
    let ranked =
        files.into_iter().enumerate().map(|(rank, (_, file))| SortedFile { rank: rank as u32, ..file });
    let mut files: Vec<SortedFile> = ranked.collect();
    match spec.op.is_backward() {
        true => files.sort_by_key(|file| (std::cmp::Reverse(file.times.1), std::cmp::Reverse(file.rank))),
        false => files.sort_by_key(|file| (file.times.0, std::cmp::Reverse(file.rank))),
    }
    Some(files)
}

/// Whether ties and as-known-at are by the table's own system columns, which the manifests tell of, and not by others
/// that the query calls so.
fn learnt_by_table(spec: &AsofSpec, scanned: &Scanned, schema: &DFSchema) -> Option<()> {
    let is = |column: &Column, name: &str| {
        let index = schema.maybe_index_of_column(column);
        index.is_some_and(|index| Some(scanned.columns[index].id) == scanned.table.field_id(name))
    };
    let ties = spec.ties.iter().zip([INGESTED_AT, SEQUENCE]).all(|(tie, name)| is(tie, name));
    let known = spec.known_at.as_ref().is_none_or(|known| is(&known.column, INGESTED_AT));
    (ties && known && spec.ties.len() != 1).then_some(())
}

/// (Ingestion, sequence) of the first and of the last row that the store learnt of a file, and the one ingestion that
/// they share.
type Learnt = (((i64, i64), (i64, i64)), Option<i64>);

fn learnt(file: &HistoryFile, table: &IcebergTable) -> Option<Learnt> {
    let (ingested_at, sequence) = (table.field_id(INGESTED_AT)?, table.field_id(SEQUENCE)?);
    if file.has_nulls(ingested_at) || file.has_nulls(sequence) {
        return None;
    }
    let (first, last) = file.bounds(ingested_at)?;
    if first != last {
        return Some((((first, i64::MIN), (last, i64::MAX)), None));
    }
    let (low, high) = file.bounds(sequence)?;
    Some((((first, low), (last, high)), Some(first)))
}
