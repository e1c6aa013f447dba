//! What the conditions of an ASOF join say: keys, the times, tolerance, as-known-at.

use datafusion::arrow::datatypes::DataType;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::logical_expr::type_coercion::binary::comparison_coercion;
use datafusion::logical_expr::utils::{can_hash, split_conjunction_owned};
use datafusion::logical_expr::{BinaryExpr, Cast, Expr, ExprSchemable, Operator};

use crate::error::Error;
use crate::exec::asof::{MatchOp, Reach, is_instant, is_ordinal};
use crate::model::INGESTED_AT;

/// The conditions of one ASOF join, sorted out.
#[derive(Debug)]
pub(super) struct Condition {
    pub(super) on: Vec<(Expr, Expr)>,
    pub(super) left_time: Expr,
    pub(super) op: MatchOp,
    pub(super) right_time: Expr,
    pub(super) tolerance: Option<Reach>,
    /// The bound, and whether rows learnt exactly at it are hidden.
    pub(super) known_at: Option<(Expr, bool)>,
    pub(super) time_is_last_key: bool,
}

/// Schemas of the two sides.
pub(super) struct Sides<'a> {
    pub(super) left: &'a DFSchema,
    /// With `_ingested_at` where as-known-at may name it.
    pub(super) right: &'a DFSchema,
    pub(super) right_shown: &'a DFSchema,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Left,
    Right,
    Both,
    Constant,
}

/// `left op right`, with the left side's expression (or a constant) on the left.
struct Comparison {
    left: Expr,
    op: MatchOp,
    right: Expr,
}

fn invalid<T>(message: String) -> Result<T> {
    Err(Error::invalid(message).into())
}

impl Sides<'_> {
    /// `MATCH_CONDITION (match [AND tolerance] [AND as-known-at])` and the equalities of `ON`.
    pub(super) fn match_condition(&self, condition: Expr, on: Option<Expr>) -> Result<Condition> {
        let mut conjuncts = split_conjunction_owned(condition);
        let alone = conjuncts.len() == 1;
        let mut known_at = None;
        let mut rest = Vec::new();
        for conjunct in conjuncts.drain(..) {
            match self.known_at(&conjunct)? {
                Some(bound) if !alone => {
                    if known_at.replace(bound).is_some() {
                        return invalid(format!("MATCH_CONDITION bounds {INGESTED_AT} twice: keep one"));
                    }
                }
                _ => rest.push(conjunct),
            }
        }
        let mut rest = rest.into_iter();
        let Some(first) = rest.next() else {
            return invalid(
                "MATCH_CONDITION compares no event times: begin with left.time >= right.time".into(),
            );
        };
        let matching = self.matching(first)?;
        let mut tolerance = None;
        for conjunct in rest {
            if tolerance.replace(self.tolerance(&conjunct, &matching)?).is_some() {
                return invalid("MATCH_CONDITION has two tolerances: keep one".into());
            }
        }
        let on = match on {
            Some(on) => self.equalities(on)?,
            None => Vec::new(),
        };
        let (left_time, right_time) = self.comparable_times(matching.left, matching.right)?;
        Ok(Condition {
            on,
            left_time,
            op: matching.op,
            right_time,
            tolerance,
            known_at,
            time_is_last_key: false,
        })
    }

    /// `ON` with equalities and exactly one inequality.
    pub(super) fn inequality(&self, on: Expr) -> Result<Condition> {
        let (inequalities, equalities): (Vec<_>, Vec<_>) =
            split_conjunction_owned(on).into_iter().partition(|conjunct| as_inequality(conjunct).is_some());
        let count = inequalities.len();
        let mut inequalities = inequalities.into_iter();
        let (Some(inequality), None) = (inequalities.next(), inequalities.next()) else {
            return invalid(format!(
                "ASOF JOIN ON needs exactly one inequality between the times, found {count}: tolerance and \
                 as-known-at go into MATCH_CONDITION"
            ));
        };
        let matching = self.matching(inequality)?;
        let mut on = Vec::new();
        for equality in equalities {
            on.extend(self.equalities(equality)?);
        }
        let (left_time, right_time) = self.comparable_times(matching.left, matching.right)?;
        Ok(Condition {
            on,
            left_time,
            op: matching.op,
            right_time,
            tolerance: None,
            known_at: None,
            time_is_last_key: false,
        })
    }

    /// `USING (key, …, time)`: the last column is compared with `>=`.
    pub(super) fn using_with_time(&self, mut pairs: Vec<(Expr, Expr)>) -> Result<Condition> {
        let Some(times) = pairs.pop() else {
            return invalid("ASOF JOIN USING needs the time as its last column".into());
        };
        let (left_time, right_time) = self.comparable_times(times.0.clone(), times.1.clone())?;
        let mut on = self.checked_keys(pairs)?;
        on.push(times);
        Ok(Condition {
            on,
            left_time,
            op: MatchOp::GtEq,
            right_time,
            tolerance: None,
            known_at: None,
            time_is_last_key: true,
        })
    }

    /// Which sides an expression reads.
    fn side(&self, expr: &Expr) -> Result<Side> {
        let mut unsupported = None;
        expr.apply(|expr| {
            unsupported = match expr {
                Expr::Exists(_) | Expr::InSubquery(_) | Expr::ScalarSubquery(_) => Some("a subquery"),
                Expr::OuterReferenceColumn(..) => Some("a column of an outer query"),
                Expr::AggregateFunction(_) => Some("an aggregate"),
                Expr::WindowFunction(_) => Some("a window function"),
                expr if expr.is_volatile_node() => Some("a volatile function"),
                _ => return Ok(TreeNodeRecursion::Continue),
            };
            Ok(TreeNodeRecursion::Stop)
        })?;
        if let Some(what) = unsupported {
            return Err(Error::unsupported(format!("ASOF JOIN conditions cannot hold {what}: {expr}")).into());
        }
        let columns = expr.column_refs();
        let (mut left, mut right) = (false, false);
        for column in columns {
            if self.left.maybe_index_of_column(column).is_some() {
                left = true;
            } else {
                right = true;
            }
        }
        Ok(match (left, right) {
            (true, true) => Side::Both,
            (true, false) => Side::Left,
            (false, true) => Side::Right,
            (false, false) => Side::Constant,
        })
    }

    /// A comparison with the left side on its left, if the expression compares the two sides.
    fn compare(&self, expr: &Expr) -> Result<Option<Comparison>> {
        let Some((left, op, right)) = as_inequality(expr) else {
            return Ok(None);
        };
        Ok(match (self.side(left)?, self.side(right)?) {
            (Side::Left | Side::Constant, Side::Right) => {
                Some(Comparison { left: left.clone(), op, right: right.clone() })
            }
            (Side::Right, Side::Left | Side::Constant) => {
                Some(Comparison { left: right.clone(), op: op.flipped(), right: left.clone() })
            }
            _ => None,
        })
    }

    fn matching(&self, expr: Expr) -> Result<Comparison> {
        match self.compare(&expr)? {
            Some(comparison) => {
                self.check_shown(&comparison.right)?;
                Ok(comparison)
            }
            None => invalid(format!(
                "ASOF JOIN cannot match on '{expr}': compare an expression of the left side with one of the right side \
                 by >=, >, <= or <"
            )),
        }
    }

    /// The bound of `bound >= right._ingested_at`.
    fn known_at(&self, expr: &Expr) -> Result<Option<(Expr, bool)>> {
        let Some(Comparison { left, op, right }) = self.compare(expr)? else {
            return Ok(None);
        };
        if !matches!(&right, Expr::Column(column) if column.name == INGESTED_AT) {
            return Ok(None);
        }
        if !op.is_backward() {
            return invalid(format!(
                "'{expr}' bounds {INGESTED_AT} from below: as-known-at is time >= {right}"
            ));
        }
        let data_type = left.get_type(self.left)?;
        let bound = match data_type {
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View
                if self.side(&left)? == Side::Constant =>
            {
                cast(left, right.get_type(self.right)?)
            }
            DataType::Null => cast(left, right.get_type(self.right)?),
            ref instant if is_instant(instant) => left,
            other => {
                return invalid(format!("'{expr}' compares {INGESTED_AT} with {other}: give a TIMESTAMP"));
            }
        };
        Ok(Some((bound, op.is_strict())))
    }

    /// The tolerance that a further conjunct sets: `later <= earlier + d`, `later - d <= earlier` or
    /// `later - earlier <= d`, either way round.
    fn tolerance(&self, expr: &Expr, matching: &Comparison) -> Result<Reach> {
        let (later, earlier) = match matching.op.is_backward() {
            true => (&matching.left, &matching.right),
            false => (&matching.right, &matching.left),
        };
        let distance = as_inequality(expr).and_then(|(left, op, right)| {
            let (small, large) = if op.is_backward() { (right, left) } else { (left, right) };
            let distance = match (as_binary(small), as_binary(large)) {
                (_, Some((base, Operator::Plus, distance))) if small == later && base == earlier => distance,
                (_, Some((distance, Operator::Plus, base))) if small == later && base == earlier => distance,
                (Some((base, Operator::Minus, distance)), _) if large == earlier && base == later => distance,
                (Some((from, Operator::Minus, to)), _) if from == later && to == earlier => large,
                _ => return None,
            };
            Some((distance, op.is_strict()))
        });
        let Some((distance, strict)) = distance else {
            return invalid(format!(
                "MATCH_CONDITION cannot use '{expr}': after the match come at most a tolerance such as \
                 {later} <= {earlier} + INTERVAL '7 days' and an as-known-at bound such as {} >= {INGESTED_AT}",
                matching.left
            ));
        };
        let instants = is_instant(&matching.left.get_type(self.left)?);
        let max = match constant(distance)? {
            Some(value) => self.distance(&value, instants, expr)?,
            None => return invalid(format!("the tolerance in '{expr}' must be a constant")),
        };
        if max < 0 {
            return invalid(format!("the tolerance in '{expr}' is negative"));
        }
        Ok(Reach { max, strict, instants })
    }

    fn distance(&self, value: &ScalarValue, instants: bool, expr: &Expr) -> Result<i128> {
        use ScalarValue as S;
        let days = |days: i32| i128::from(days) * 86_400_000_000_000;
        let number = match value {
            S::IntervalMonthDayNano(Some(v)) if instants && v.months == 0 => {
                return Ok(days(v.days) + i128::from(v.nanoseconds));
            }
            S::IntervalDayTime(Some(v)) if instants => {
                return Ok(days(v.days) + i128::from(v.milliseconds) * 1_000_000);
            }
            S::IntervalYearMonth(Some(_)) | S::IntervalMonthDayNano(Some(_)) if instants => {
                return invalid(format!(
                    "the tolerance in '{expr}' has months, which differ in length: use days"
                ));
            }
            S::DurationSecond(Some(v)) if instants => return Ok(i128::from(*v) * 1_000_000_000),
            S::DurationMillisecond(Some(v)) if instants => return Ok(i128::from(*v) * 1_000_000),
            S::DurationMicrosecond(Some(v)) if instants => return Ok(i128::from(*v) * 1_000),
            S::DurationNanosecond(Some(v)) if instants => return Ok(i128::from(*v)),
            value if !instants && value.data_type().is_integer() => value.cast_to(&DataType::Int64)?,
            _ => S::Null,
        };
        match number {
            S::Int64(Some(v)) => Ok(i128::from(v)),
            _ if instants => invalid(format!("the tolerance in '{expr}' must be an INTERVAL")),
            _ => invalid(format!("the tolerance in '{expr}' must be an integer, as the times are")),
        }
    }

    /// Equalities between the sides; `TRUE` stands for none.
    fn equalities(&self, on: Expr) -> Result<Vec<(Expr, Expr)>> {
        let mut pairs = Vec::new();
        for conjunct in split_conjunction_owned(on) {
            if matches!(&conjunct, Expr::Literal(ScalarValue::Boolean(Some(true)), _)) {
                continue;
            }
            let sides = match as_binary(&conjunct) {
                Some((left, Operator::Eq, right)) => Some((left, self.side(left)?, right, self.side(right)?)),
                _ => None,
            };
            match sides {
                Some((left, Side::Left, right, Side::Right)) => pairs.push((left.clone(), right.clone())),
                Some((left, Side::Right, right, Side::Left)) => pairs.push((right.clone(), left.clone())),
                _ => {
                    return invalid(format!(
                        "ASOF JOIN ON cannot use '{conjunct}': only equality between an expression of the left side and \
                         one of the right side; filter one side in a subquery"
                    ));
                }
            }
        }
        self.checked_keys(pairs)
    }

    /// Keys that can be compared without turning one kind of value into another.
    pub(super) fn checked_keys(&self, pairs: Vec<(Expr, Expr)>) -> Result<Vec<(Expr, Expr)>> {
        for (left, right) in &pairs {
            self.check_shown(right)?;
            let (left_type, right_type) =
                (plain(left.get_type(self.left)?), plain(right.get_type(self.right)?));
            let common = comparison_coercion(&left_type, &right_type).filter(can_hash);
            if common.is_none() || kind(&left_type) != kind(&right_type) {
                return invalid(format!(
                    "ASOF JOIN cannot compare key {left} ({left_type}) with {right} ({right_type}): cast one of them"
                ));
            }
        }
        Ok(pairs)
    }

    /// Times as they are when they are instants, else both of one type.
    fn comparable_times(&self, left: Expr, right: Expr) -> Result<(Expr, Expr)> {
        let (left_type, right_type) = (left.get_type(self.left)?, right.get_type(self.right)?);
        if is_instant(&left_type) && is_instant(&right_type) {
            return Ok((left, right));
        }
        if is_instant(&right_type) && kind(&left_type) == Kind::Text && self.side(&left)? == Side::Constant {
            return Ok((cast(left, right_type), right));
        }
        let common =
            (kind(&left_type) == kind(&right_type) && !is_instant(&left_type) && !is_instant(&right_type))
                .then(|| comparison_coercion(&left_type, &right_type))
                .flatten()
                .filter(is_ordinal);
        match common {
            Some(common) => {
                let to_common =
                    |expr, from: &DataType| if *from == common { expr } else { cast(expr, common.clone()) };
                Ok((to_common(left, &left_type), to_common(right, &right_type)))
            }
            None => invalid(format!(
                "ASOF JOIN cannot match {left} ({left_type}) with {right} ({right_type}): compare two timestamps or \
                 dates, or two numbers"
            )),
        }
    }

    /// `_ingested_at` of a feature group serves as-known-at only.
    fn check_shown(&self, right: &Expr) -> Result<()> {
        for column in right.column_refs() {
            if !self.right_shown.is_column_from_schema(column) {
                return invalid(format!(
                    "{column} can only bound what was known, as in MATCH_CONDITION (… AND time >= {column}): for its \
                     values join \"name$history\""
                ));
            }
        }
        Ok(())
    }
}

fn as_binary(expr: &Expr) -> Option<(&Expr, Operator, &Expr)> {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => Some((left, *op, right)),
        _ => None,
    }
}

fn as_inequality(expr: &Expr) -> Option<(&Expr, MatchOp, &Expr)> {
    let (left, op, right) = as_binary(expr)?;
    Some((left, MatchOp::from_operator(op)?, right))
}

fn cast(expr: Expr, to: DataType) -> Expr {
    Expr::Cast(Cast::new(Box::new(expr), to))
}

/// The value of a literal, negated or cast.
fn constant(expr: &Expr) -> Result<Option<ScalarValue>> {
    Ok(match expr {
        Expr::Literal(value, _) => Some(value.clone()),
        Expr::Negative(inner) => constant(inner)?.map(|value| value.arithmetic_negate()).transpose()?,
        Expr::Cast(Cast { expr, data_type }) => {
            constant(expr)?.map(|value| value.cast_to(data_type)).transpose()?
        }
        _ => None,
    })
}

/// Values of one kind compare without a change of meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Number,
    Text,
    Instant,
    Other,
}

fn kind(data_type: &DataType) -> Kind {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Kind::Text,
        number if number.is_numeric() => Kind::Number,
        instant if is_instant(instant) => Kind::Instant,
        _ => Kind::Other,
    }
}

fn plain(data_type: DataType) -> DataType {
    match data_type {
        DataType::Dictionary(_, value) => *value,
        other => other,
    }
}
