//! The function call in a join's filter that makes it an ASOF join until the analyzer lowers it.

use std::any::Any;

use datafusion::arrow::datatypes::DataType;
use datafusion::common::{Result, internal_err};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use crate::exec::asof::{MatchOp, Reach};

/// What a marked join is to do beyond its keys. The arguments of the call are the left time, the right time and, with
/// as-known-at, its bound: apart, so that type coercion leaves each in its own unit.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Marker {
    pub(super) op: MatchOp,
    pub(super) tolerance: Option<Reach>,
    /// With as-known-at: whether a row learnt exactly at the bound is hidden too.
    pub(super) known_at_strict: Option<bool>,
    /// The last pair of the join's keys are the times of a `USING` list, there so that names resolve.
    pub(super) time_is_last_key: bool,
    signature: Signature,
}

impl Marker {
    pub(super) fn new(
        op: MatchOp,
        tolerance: Option<Reach>,
        known_at_strict: Option<bool>,
        time_is_last_key: bool,
    ) -> Self {
        let signature = Signature::variadic_any(Volatility::Immutable);
        Self { op, tolerance, known_at_strict, time_is_last_key, signature }
    }

    pub(super) fn call(self, arguments: Vec<Expr>) -> Expr {
        ScalarUDF::from(self).call(arguments)
    }

    /// The marker and its arguments, if `filter` is one.
    pub(super) fn find(filter: &Expr) -> Option<(&Self, &[Expr])> {
        match filter {
            Expr::ScalarFunction(ScalarFunction { func, args }) => {
                func.inner().as_any().downcast_ref::<Self>().map(|marker| (marker, args.as_slice()))
            }
            _ => None,
        }
    }
}

impl ScalarUDFImpl for Marker {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn name(&self) -> &str {
        "asof_match"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Boolean)
    }

    fn invoke_with_args(&self, _args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        internal_err!("an ASOF join reached execution as an ordinary join")
    }
}
