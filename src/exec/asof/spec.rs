//! What one ASOF join is to do, in logical expressions.

use std::fmt;

use datafusion::common::{Column, JoinType, ScalarValue};
use datafusion::logical_expr::{Expr, Operator};

/// How the left time compares to the right time, read from left to right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum MatchOp {
    /// The latest right row at or before the left time.
    GtEq,
    /// The latest right row before the left time.
    Gt,
    /// The earliest right row at or after the left time.
    LtEq,
    /// The earliest right row after the left time.
    Lt,
}

impl MatchOp {
    /// The match operator of a comparison, or `None` for any other operator.
    pub(crate) fn from_operator(op: Operator) -> Option<Self> {
        match op {
            Operator::GtEq => Some(Self::GtEq),
            Operator::Gt => Some(Self::Gt),
            Operator::LtEq => Some(Self::LtEq),
            Operator::Lt => Some(Self::Lt),
            _ => None,
        }
    }

    /// The same comparison with its sides exchanged.
    pub(crate) fn flipped(self) -> Self {
        match self {
            Self::GtEq => Self::LtEq,
            Self::Gt => Self::Lt,
            Self::LtEq => Self::GtEq,
            Self::Lt => Self::Gt,
        }
    }

    /// Whether the match looks back in time: the feature is older than the label.
    pub(crate) fn is_backward(self) -> bool {
        matches!(self, Self::GtEq | Self::Gt)
    }

    /// Whether equal times do not match.
    pub(crate) fn is_strict(self) -> bool {
        matches!(self, Self::Gt | Self::Lt)
    }
}

impl fmt::Display for MatchOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GtEq => ">=",
            Self::Gt => ">",
            Self::LtEq => "<=",
            Self::Lt => "<",
        })
    }
}

/// The greatest distance between the two times of a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Reach {
    /// Nanoseconds for instants, otherwise the unit of the times.
    pub(crate) max: i128,
    /// Whether the distance must be less than `max`, not equal to it.
    pub(crate) strict: bool,
    /// Whether `max` counts nanoseconds.
    pub(crate) instants: bool,
}

impl Reach {
    /// The greatest allowed distance, itself included.
    pub(crate) fn inclusive_max(self) -> i128 {
        self.max - i128::from(self.strict)
    }
}

const UNITS: [(i128, &str); 4] = [
    (86_400_000_000_000, "day"),
    (3_600_000_000_000, "hour"),
    (60_000_000_000, "minute"),
    (1_000_000_000, "second"),
];

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.strict {
            f.write_str("< ")?;
        }
        if !self.instants {
            return write!(f, "{}", self.max);
        }
        let mut rest = self.max;
        let mut parts = Vec::new();
        for (length, unit) in UNITS {
            let count = rest / length;
            rest %= length;
            if count != 0 {
                parts.push(format!("{count} {unit}{}", if count == 1 { "" } else { "s" }));
            }
        }
        if rest != 0 || parts.is_empty() {
            parts.push(format!("{rest} ns"));
        }
        f.write_str(&parts.join(" "))
    }
}

/// Hides right rows that the store had not learnt by `bound`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct KnownAt {
    /// An instant computed from the left row.
    pub(crate) bound: Expr,
    /// Whether a row learnt exactly at `bound` is hidden too.
    pub(crate) strict: bool,
    /// The right column that says when the store learnt the row.
    pub(crate) column: Column,
}

/// An ASOF join without its inputs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct AsofSpec {
    /// `Left` keeps every left row, `Inner` the matched ones.
    pub(crate) join_type: JoinType,
    /// Equal keys, left and right of the same type; NULL equals nothing.
    pub(crate) on: Vec<(Expr, Expr)>,
    /// The left time.
    pub(crate) left_time: Expr,
    /// How the times compare.
    pub(crate) op: MatchOp,
    /// The right time.
    pub(crate) right_time: Expr,
    /// The greatest distance that the query allows.
    pub(crate) tolerance: Option<Reach>,
    /// The greatest distance that the feature group allows.
    pub(crate) ttl: Option<Reach>,
    /// As-known-at bound.
    pub(crate) known_at: Option<KnownAt>,
    /// Right columns that order rows of equal time; the greatest wins.
    pub(crate) ties: Vec<Column>,
    /// Right columns that serve the join and are not output.
    pub(crate) hidden: Vec<Column>,
    /// What stands in for a right column when no row matches; NULL for the others.
    pub(crate) defaults: Vec<(Column, ScalarValue)>,
}

impl AsofSpec {
    /// The tighter of tolerance and TTL, in the unit of the times.
    pub(crate) fn reach(&self) -> Option<i128> {
        [self.tolerance, self.ttl].into_iter().flatten().map(Reach::inclusive_max).min()
    }
}

impl fmt::Display for AsofSpec {
    /// `on=[…], match=[…], tolerance=…, ttl=…, known_at=[…]`, absent parts left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on: Vec<String> = self.on.iter().map(|(l, r)| format!("{l} = {r}")).collect();
        write!(f, "on=[{}], match=[{} {} {}]", on.join(", "), self.left_time, self.op, self.right_time)?;
        if let Some(tolerance) = self.tolerance {
            write!(f, ", tolerance={tolerance}")?;
        }
        if let Some(ttl) = self.ttl {
            write!(f, ", ttl={ttl}")?;
        }
        if let Some(known) = &self.known_at {
            let op = if known.strict { ">" } else { ">=" };
            write!(f, ", known_at=[{} {op} {}]", known.bound, known.column)?;
        }
        Ok(())
    }
}
