//! Joins with `LATEST(group)` as batched look-ups.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema, DFSchemaRef, JoinType, NullEquality, Result, TableReference};
use datafusion::datasource::source_as_provider;
use datafusion::logical_expr::{
    Cast, Expr, ExprSchemable, Extension, Filter, Join, LogicalPlan, Projection, TryCast,
};
use datafusion::optimizer::optimizer::ApplyOrder;
use datafusion::optimizer::{OptimizerConfig, OptimizerRule};

use super::table::LatestTable;
use crate::exec::{LookupNode, LookupOutput, LookupRequest, Missing, latest_schema};
use crate::model::FeatureGroup;

/// Names the looked-up columns between the look-up and the projection above it, where no other name can clash.
const QUALIFIER: &str = "__latest";

/// Turns an inner join with `LATEST(group)`, or an outer join that keeps the other side, into a look-up over the
/// other side, when the join's keys are exactly the entity key. Any other join stays a join over the scan.
///
/// Add it behind DataFusion's own rules: filters and projections are then where they belong.
#[derive(Debug, Default)]
pub(super) struct LookupJoin;

impl OptimizerRule for LookupJoin {
    fn name(&self) -> &str {
        "lookup_join"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::BottomUp)
    }

    fn supports_rewrite(&self) -> bool {
        true
    }

    fn rewrite(&self, plan: LogicalPlan, _config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        let LogicalPlan::Join(join) = &plan else { return Ok(Transformed::no(plan)) };
        match lookup_for(join)? {
            Some(lookup) => Ok(Transformed::yes(lookup)),
            None => Ok(Transformed::no(plan)),
        }
    }
}

fn lookup_for(join: &Join) -> Result<Option<LogicalPlan>> {
    if join.null_equality != NullEquality::NullEqualsNothing {
        return Ok(None);
    }
    let (inner, left, right) = (JoinType::Inner, JoinType::Left, JoinType::Right);
    if join.join_type == inner || join.join_type == left {
        let on = join.on.iter().map(|(asking, served)| (asking, served)).collect();
        if let Some(lookup) = Side::new(join, &join.left, &join.right, on) {
            return lookup.plan(join).map(Some);
        }
    }
    if join.join_type == inner || join.join_type == right {
        let on = join.on.iter().map(|(served, asking)| (asking, served)).collect();
        if let Some(lookup) = Side::new(join, &join.right, &join.left, on) {
            return lookup.plan(join).map(Some);
        }
    }
    Ok(None)
}

/// A join that can be a look-up: `asking` keeps its rows, the other side is `served`.
struct Side<'a> {
    asking: &'a Arc<LogicalPlan>,
    served: Served,
    served_schema: &'a DFSchemaRef,
    keys: Vec<Expr>,
    request: LookupRequest,
}

impl<'a> Side<'a> {
    fn new(
        join: &Join,
        asking: &'a Arc<LogicalPlan>,
        served: &'a Arc<LogicalPlan>,
        on: Vec<(&Expr, &Expr)>,
    ) -> Option<Self> {
        let served_schema = served.schema();
        let served = Served::of(served)?;
        // A condition on the found row decides in an outer join whether it is a match at all.
        let conditional = join.filter.is_some() || !served.filters.is_empty();
        if join.join_type != JoinType::Inner && conditional {
            return None;
        }
        let keys = entity_keys(&served, served_schema, asking.schema(), on)?;
        let missing = if join.join_type == JoinType::Inner { Missing::Drop } else { Missing::Null };
        let request =
            LookupRequest { group: Arc::clone(&served.group), missing, max_staleness: served.max_staleness };
        Some(Self { asking, served, served_schema, keys, request })
    }

    /// Look-up, then what was filtered, then the join's columns under the join's names.
    fn plan(self, join: &Join) -> Result<LogicalPlan> {
        let latest = latest_schema(&self.served.group);
        let asked = self.asking.schema();
        let mut fields: Vec<_> = asked.iter().map(|(q, f)| (q.cloned(), Arc::clone(f))).collect();
        let mut output: Vec<LookupOutput> =
            asked.columns().into_iter().map(|c| LookupOutput::Input(Expr::Column(c))).collect();
        for (i, field) in latest.fields().iter().enumerate() {
            let nullable = field.is_nullable() || self.request.missing == Missing::Null;
            let field = Arc::new(field.as_ref().clone().with_nullable(nullable));
            fields.push((Some(TableReference::bare(QUALIFIER)), field));
            output.push(LookupOutput::Latest(i));
        }
        let schema = Arc::new(DFSchema::new_with_metadata(fields, HashMap::new())?);
        let mut filters = self.served.filters.clone();
        if let Some(filter) = &join.filter {
            filters.push(self.rename(filter.clone())?);
        }
        let projected = join.schema.columns().into_iter().map(|column| {
            let renamed = self.rename(Expr::Column(column.clone()))?;
            Ok(match renamed == Expr::Column(column.clone()) {
                true => renamed,
                false => renamed.alias_qualified(column.relation, column.name),
            })
        });
        let projected = projected.collect::<Result<Vec<_>>>()?;
        let node = LookupNode {
            input: self.asking.as_ref().clone(),
            keys: self.keys,
            output,
            request: self.request,
            schema,
        };
        let mut plan = LogicalPlan::Extension(Extension { node: Arc::new(node) });
        for filter in filters {
            plan = LogicalPlan::Filter(Filter::try_new(filter, Arc::new(plan))?);
        }
        let plan = Projection::try_new_with_schema(projected, Arc::new(plan), Arc::clone(&join.schema))?;
        Ok(LogicalPlan::Projection(plan))
    }

    /// The expression with the served side's columns under their names in the look-up.
    fn rename(&self, expr: Expr) -> Result<Expr> {
        let rename = |part: Expr| match &part {
            Expr::Column(column) => Ok(match self.served_schema.maybe_index_of_column(column) {
                Some(index) => {
                    Transformed::yes(latest_column(&self.served.group, self.served.columns[index]))
                }
                None => Transformed::no(part),
            }),
            _ => Ok(Transformed::no(part)),
        };
        Ok(expr.transform(rename)?.data)
    }
}

fn latest_column(group: &FeatureGroup, index: usize) -> Expr {
    let schema = latest_schema(group);
    Expr::Column(Column::new(Some(TableReference::bare(QUALIFIER)), schema.field(index).name()))
}

/// A scan of [`LatestTable`] under aliases, filters and projections of plain columns.
struct Served {
    group: Arc<FeatureGroup>,
    max_staleness: Option<std::time::Duration>,
    /// For each column of the plan, which column of `latest_schema` it is.
    columns: Vec<usize>,
    /// What was filtered, over columns as [`latest_column`] names them.
    filters: Vec<Expr>,
}

impl Served {
    fn of(plan: &LogicalPlan) -> Option<Self> {
        match plan {
            LogicalPlan::TableScan(scan) if scan.fetch.is_none() => {
                let provider = source_as_provider(&scan.source).ok()?;
                let table = provider.as_any().downcast_ref::<LatestTable>()?;
                let all = || (0..latest_schema(&table.group).fields().len()).collect();
                // `scan.filters` are narrowings only; each of them stands in a filter above as well.
                Some(Self {
                    group: Arc::clone(&table.group),
                    max_staleness: table.max_staleness,
                    columns: scan.projection.clone().unwrap_or_else(all),
                    filters: Vec::new(),
                })
            }
            LogicalPlan::SubqueryAlias(alias) => Self::of(&alias.input),
            LogicalPlan::Projection(projection) => {
                let served = Self::of(&projection.input)?;
                let columns = projection.expr.iter().map(|expr| {
                    let Expr::Column(column) = expr.clone().unalias() else { return None };
                    let index = projection.input.schema().maybe_index_of_column(&column)?;
                    Some(served.columns[index])
                });
                let columns = columns.collect::<Option<Vec<_>>>()?;
                Some(Self { columns, ..served })
            }
            LogicalPlan::Filter(filter) => {
                let mut served = Self::of(&filter.input)?;
                let schema = filter.input.schema();
                let named = filter.predicate.clone().transform(|part| match &part {
                    Expr::Column(column) => Ok(match schema.maybe_index_of_column(column) {
                        Some(index) => Transformed::yes(latest_column(&served.group, served.columns[index])),
                        None => Transformed::no(part),
                    }),
                    _ => Ok(Transformed::no(part)),
                });
                served.filters.push(named.ok()?.data);
                Some(served)
            }
            _ => None,
        }
    }
}

/// One expression over the asking side per key column, when `on` (asking, served) pairs each of them exactly once.
fn entity_keys(
    served: &Served,
    served_schema: &DFSchema,
    asking: &DFSchema,
    on: Vec<(&Expr, &Expr)>,
) -> Option<Vec<Expr>> {
    let fields = served.group.key_fields();
    let mut keys: Vec<Option<Expr>> = vec![None; fields.len()];
    for (asked, named) in on {
        let column = match named {
            Expr::Column(column) => column,
            Expr::Cast(Cast { expr, data_type }) => match expr.as_ref() {
                Expr::Column(column) if widens(expr.get_type(served_schema).ok()?, data_type) => column,
                _ => return None,
            },
            _ => return None,
        };
        let position = served.columns[served_schema.maybe_index_of_column(column)?];
        // Behind the key columns come the event time and the features: a condition on them is no key.
        let slot = keys.get_mut(position).filter(|slot| slot.is_none())?;
        let wanted = fields[position].data_type();
        // A value that the key's type cannot hold equals none of its values: NULL finds nothing.
        *slot = Some(match asked.get_type(asking).ok()? == *wanted {
            true => asked.clone(),
            false => Expr::TryCast(TryCast::new(Box::new(asked.clone()), wanted.clone())),
        });
    }
    keys.into_iter().collect()
}

/// Whether comparing as `wide` tells the same values apart as the key's own type does, so that casting the asked
/// value to the key's type instead finds the same entity.
fn widens(key: DataType, wide: &DataType) -> bool {
    (key.is_signed_integer() && wide.is_signed_integer()) || (key.is_string() && wide.is_string())
}
