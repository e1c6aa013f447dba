//! One walk over a statement's syntax tree, for all that rewrite it.

use std::ops::ControlFlow;

use datafusion::sql::parser::{CopyToSource, Statement};
use datafusion::sql::sqlparser::ast::{VisitMut, VisitorMut};

/// Shows `visitor` every node of a statement, inside EXPLAIN and COPY too.
pub(super) fn walk(statement: &mut Statement, visitor: &mut impl VisitorMut<Break = ()>) {
    let _: ControlFlow<()> = match statement {
        Statement::Statement(statement) => statement.as_mut().visit(visitor),
        Statement::Explain(explain) => {
            walk(&mut explain.statement, visitor);
            ControlFlow::Continue(())
        }
        Statement::CopyTo(copy) => match &mut copy.source {
            CopyToSource::Query(query) => query.as_mut().visit(visitor),
            CopyToSource::Relation(_) => ControlFlow::Continue(()),
        },
        Statement::CreateExternalTable(_) | Statement::Reset(_) => ControlFlow::Continue(()),
    };
}
