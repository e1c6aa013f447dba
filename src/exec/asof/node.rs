//! The logical node of an ASOF join.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use datafusion::common::{Column, DFSchema, DFSchemaRef, JoinType, Result, internal_err};
use datafusion::logical_expr::{Expr, LogicalPlan, UserDefinedLogicalNodeCore};

use super::spec::{AsofSpec, KnownAt};

/// An ASOF join of two plans; its columns are the left ones, then the right ones that are not hidden.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct AsofJoin {
    left: LogicalPlan,
    right: LogicalPlan,
    spec: AsofSpec,
    schema: DFSchemaRef,
}

impl AsofJoin {
    pub(crate) fn try_new(left: LogicalPlan, right: LogicalPlan, spec: AsofSpec) -> Result<Self> {
        let schema = Arc::new(output_schema(left.schema(), right.schema(), &spec)?);
        Ok(Self { left, right, spec, schema })
    }

    pub(crate) fn left(&self) -> &LogicalPlan {
        &self.left
    }

    pub(crate) fn right(&self) -> &LogicalPlan {
        &self.right
    }

    pub(crate) fn spec(&self) -> &AsofSpec {
        &self.spec
    }

    /// Indices of the right columns that are output.
    pub(super) fn right_output(&self) -> Vec<usize> {
        right_output(self.right.schema(), &self.spec)
    }
}

fn right_output(right: &DFSchema, spec: &AsofSpec) -> Vec<usize> {
    let hidden: Vec<usize> =
        spec.hidden.iter().filter_map(|column| right.maybe_index_of_column(column)).collect();
    (0..right.fields().len()).filter(|index| !hidden.contains(index)).collect()
}

fn output_schema(left: &DFSchema, right: &DFSchema, spec: &AsofSpec) -> Result<DFSchema> {
    let mut fields: Vec<_> = left.iter().map(|(q, f)| (q.cloned(), Arc::clone(f))).collect();
    for index in right_output(right, spec) {
        let (qualifier, field) = right.qualified_field(index);
        let field = match spec.join_type {
            JoinType::Left => Arc::new(field.as_ref().clone().with_nullable(true)),
            _ => Arc::clone(field),
        };
        fields.push((qualifier.cloned(), field));
    }
    let mut metadata = left.metadata().clone();
    metadata.extend(right.metadata().clone());
    // No left row becomes two, so what was unique stays unique and now determines the right columns too.
    let mut dependencies = left.functional_dependencies().clone();
    dependencies.extend_target_indices(fields.len());
    DFSchema::new_with_metadata(fields, metadata)?.with_functional_dependencies(dependencies)
}

impl PartialOrd for AsofJoin {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (self == other).then_some(Ordering::Equal)
    }
}

impl UserDefinedLogicalNodeCore for AsofJoin {
    fn name(&self) -> &str {
        "AsofJoin"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.left, &self.right]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    /// Keys pairwise, the times, the bound and column of as-known-at, the ties: the order `with_exprs_and_inputs` reads.
    fn expressions(&self) -> Vec<Expr> {
        let spec = &self.spec;
        let mut exprs: Vec<Expr> = spec.on.iter().flat_map(|(l, r)| [l.clone(), r.clone()]).collect();
        exprs.extend([spec.left_time.clone(), spec.right_time.clone()]);
        if let Some(known) = &spec.known_at {
            exprs.extend([known.bound.clone(), Expr::Column(known.column.clone())]);
        }
        exprs.extend(spec.ties.iter().cloned().map(Expr::Column));
        exprs
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let kind = if self.spec.join_type == JoinType::Left { "Left" } else { "Inner" };
        write!(f, "AsofJoin: {kind}, {}", self.spec)
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        let (Some(right), Some(left), 0) = (inputs.pop(), inputs.pop(), inputs.len()) else {
            return internal_err!("an ASOF join has two inputs");
        };
        let mut exprs = exprs.into_iter();
        let mut next = || match exprs.next() {
            Some(expr) => Ok(expr),
            None => internal_err!("an expression of an ASOF join was lost"),
        };
        let mut spec = self.spec.clone();
        for (left, right) in &mut spec.on {
            (*left, *right) = (next()?, next()?);
        }
        spec.left_time = next()?;
        spec.right_time = next()?;
        if let Some(known) = spec.known_at {
            spec.known_at =
                Some(KnownAt { bound: next()?, strict: known.strict, column: as_column(next()?)? });
        }
        for tie in &mut spec.ties {
            *tie = as_column(next()?)?;
        }
        Self::try_new(left, right, spec)
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        // What the expressions need is added by the caller.
        let left_len = self.left.schema().fields().len();
        let right_output = self.right_output();
        let left = output_columns.iter().copied().filter(|index| *index < left_len).collect();
        let right = output_columns
            .iter()
            .filter_map(|index| index.checked_sub(left_len))
            .filter_map(|index| right_output.get(index).copied())
            .collect();
        Some(vec![left, right])
    }
}

fn as_column(expr: Expr) -> Result<Column> {
    match expr {
        Expr::Column(column) => Ok(column),
        other => internal_err!("a column of an ASOF join was replaced by {other}"),
    }
}
