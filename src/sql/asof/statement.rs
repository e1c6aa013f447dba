//! After parsing: puts every ASOF join where a relation planner can see it.
//!
//! DataFusion plans the joins of a FROM clause itself and refuses ASOF there, but asks relation planners about
//! table factors. So each ASOF join, with everything to its left, becomes a table factor of its own:
//! `a JOIN b … ASOF JOIN c … JOIN d …` → `(a JOIN b … ASOF JOIN c …) JOIN d …`.

use std::ops::ControlFlow;

use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    ExcludeSelectItem, Expr, Ident, Join, JoinConstraint, JoinOperator, ObjectName, ObjectNamePart, Query,
    ReplaceSelectElement, ReplaceSelectItem, Select, SelectItem, SelectItemQualifiedWildcardKind, SetExpr,
    TableFactor, TableWithJoins, VisitMut, VisitorMut, WildcardAdditionalOptions,
};

use crate::sql::walk::walk;

/// Rewrites the ASOF joins of every query in `statement`; to be called after
/// [`rewrite_tokens`](super::rewrite_tokens) and parsing, before planning.
pub(crate) fn rewrite_statement(statement: &mut Statement) {
    walk(statement, &mut Rewriter);
}

/// Whether [`rewrite_statement`] made this table factor out of an ASOF join.
pub(super) fn is_asof(factor: &TableFactor) -> bool {
    match factor {
        TableFactor::NestedJoin { table_with_joins, alias: None } => {
            table_with_joins.joins.last().is_some_and(is_asof_join)
        }
        _ => false,
    }
}

fn is_asof_join(join: &Join) -> bool {
    join.global || matches!(join.join_operator, JoinOperator::AsOf { .. })
}

struct Rewriter;

impl VisitorMut for Rewriter {
    type Break = ();

    fn post_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        rewrite_body(&mut query.body);
        ControlFlow::Continue(())
    }

    fn post_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        if let TableFactor::NestedJoin { table_with_joins, .. } = factor {
            nest(table_with_joins);
        }
        ControlFlow::Continue(())
    }
}

fn rewrite_body(body: &mut SetExpr) {
    match body {
        SetExpr::Select(select) => {
            qualify_filter(select);
            expand_wildcards(select);
            select.from.iter_mut().for_each(nest);
        }
        SetExpr::SetOperation { left, right, .. } => {
            rewrite_body(left);
            rewrite_body(right);
        }
        _ => {}
    }
}

fn nest(table: &mut TableWithJoins) {
    while let Some(at) = table.joins.iter().position(is_asof_join) {
        let rest = table.joins.split_off(at + 1);
        let inner = TableWithJoins {
            relation: table.relation.clone(),
            joins: std::mem::replace(&mut table.joins, rest),
        };
        table.relation = TableFactor::NestedJoin { table_with_joins: Box::new(inner), alias: None };
        if table.joins.is_empty() {
            return;
        }
    }
}

/// `WHERE k = …` over `l ASOF JOIN r USING (k)` means `l.k`; DataFusion 53 calls a `USING` column in a filter ambiguous.
fn qualify_filter(select: &mut Select) {
    let [TableWithJoins { relation, joins }] = select.from.as_slice() else {
        return;
    };
    let (Some(first), Some(filter)) = (joins.first(), select.selection.as_mut()) else {
        return;
    };
    if !joins.iter().any(is_asof_join) {
        return;
    }
    if let (Some(ObjectName(table)), Some(columns)) = (factor_name(relation), using_columns(first)) {
        let table = table.into_iter().filter_map(|part| part.as_ident().cloned()).collect();
        let _: ControlFlow<()> = filter.visit(&mut Qualifier { table, columns, queries: 0 });
    }
}

/// Gives unqualified `columns` their table, outside subqueries.
struct Qualifier {
    table: Vec<Ident>,
    columns: Vec<Ident>,
    queries: usize,
}

impl VisitorMut for Qualifier {
    type Break = ();

    fn pre_visit_query(&mut self, _query: &mut Query) -> ControlFlow<()> {
        self.queries += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _query: &mut Query) -> ControlFlow<()> {
        self.queries -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if self.queries == 0
            && let Expr::Identifier(ident) = expr
            && self.columns.iter().any(|column| column.value == normalized(ident).value)
        {
            let path = self.table.iter().cloned().chain([ident.clone()]).collect();
            *expr = Expr::CompoundIdentifier(path);
        }
        ControlFlow::Continue(())
    }
}

/// `SELECT *` over `l ASOF JOIN r USING (k)` shows the left `k` once. DataFusion would show that of the side whose
/// name comes first in the alphabet, NULL for an unmatched left row if that is the right one; so the `*` is spelt
/// out as `l.*, r.* EXCLUDE (k)`, or, where a side has no name, as `* REPLACE (k AS k)`, in which `k` means the left one.
fn expand_wildcards(select: &mut Select) {
    let using: Vec<Ident> = select
        .from
        .iter()
        .flat_map(|table| &table.joins)
        .filter(|join| is_asof_join(join))
        .flat_map(|join| using_columns(join).unwrap_or_default())
        .collect();
    if using.is_empty() {
        return;
    }
    let expanded: Option<Vec<SelectItem>> =
        select.from.iter().map(expand_table).collect::<Option<Vec<_>>>().map(|items| items.concat());
    let mut projection = Vec::with_capacity(select.projection.len());
    for item in std::mem::take(&mut select.projection) {
        match (item, &expanded) {
            (SelectItem::Wildcard(options), Some(items)) if is_plain(&options) => {
                projection.extend(items.iter().cloned())
            }
            (SelectItem::Wildcard(mut options), _) if options.opt_replace.is_none() => {
                options.opt_replace = Some(replace_with_left(&using, &options));
                projection.push(SelectItem::Wildcard(options));
            }
            (item, _) => projection.push(item),
        }
    }
    select.projection = projection;
}

fn is_plain(options: &WildcardAdditionalOptions) -> bool {
    options.opt_ilike.is_none()
        && options.opt_exclude.is_none()
        && options.opt_except.is_none()
        && options.opt_replace.is_none()
        && options.opt_rename.is_none()
}

fn replace_with_left(using: &[Ident], options: &WildcardAdditionalOptions) -> ReplaceSelectItem {
    let excluded: Vec<&Ident> = match &options.opt_exclude {
        Some(ExcludeSelectItem::Single(ident)) => vec![ident],
        Some(ExcludeSelectItem::Multiple(idents)) => idents.iter().collect(),
        None => Vec::new(),
    };
    let items = using
        .iter()
        .filter(|ident| !excluded.iter().any(|excluded| excluded.value == ident.value))
        .map(|ident| {
            let expr = Expr::Identifier(ident.clone());
            Box::new(ReplaceSelectElement { expr, column_name: ident.clone(), as_keyword: true })
        })
        .collect();
    ReplaceSelectItem { items }
}

/// The wildcards of each table in turn, or `None` where one has no name or a join needs DataFusion's own expansion.
fn expand_table(table: &TableWithJoins) -> Option<Vec<SelectItem>> {
    let mut items = expand_factor(&table.relation, &[])?;
    for join in &table.joins {
        items.extend(expand_factor(&join.relation, &using_columns(join)?)?);
    }
    Some(items)
}

fn expand_factor(factor: &TableFactor, without: &[Ident]) -> Option<Vec<SelectItem>> {
    if let TableFactor::NestedJoin { table_with_joins, alias: None } = factor {
        return if without.is_empty() { expand_table(table_with_joins) } else { None };
    }
    let mut options = WildcardAdditionalOptions::default();
    if !without.is_empty() {
        options.opt_exclude = Some(ExcludeSelectItem::Multiple(without.to_vec()));
    }
    let name = SelectItemQualifiedWildcardKind::ObjectName(factor_name(factor)?);
    Some(vec![SelectItem::QualifiedWildcard(name, options)])
}

fn factor_name(factor: &TableFactor) -> Option<ObjectName> {
    match factor {
        TableFactor::Table { alias: Some(alias), .. }
        | TableFactor::Derived { alias: Some(alias), .. }
        | TableFactor::NestedJoin { alias: Some(alias), .. } => {
            Some(ObjectName(vec![ObjectNamePart::Identifier(alias.name.clone())]))
        }
        TableFactor::Table { name, alias: None, args: None, .. } => Some(name.clone()),
        _ => None,
    }
}

/// Columns of `USING` as DataFusion will call them; none for other conditions, `None` for joins whose right side is
/// not merely appended to the left.
fn using_columns(join: &Join) -> Option<Vec<Ident>> {
    use JoinOperator as J;
    match &join.join_operator {
        J::Join(constraint)
        | J::Inner(constraint)
        | J::Left(constraint)
        | J::LeftOuter(constraint)
        | J::AsOf { constraint, .. } => match constraint {
            JoinConstraint::Using(names) => names.iter().map(using_column).collect(),
            JoinConstraint::On(_) | JoinConstraint::None => Some(Vec::new()),
            JoinConstraint::Natural => None,
        },
        J::CrossJoin(JoinConstraint::None) => Some(Vec::new()),
        _ => None,
    }
}

fn using_column(name: &ObjectName) -> Option<Ident> {
    match name.0.as_slice() {
        [ObjectNamePart::Identifier(ident)] => Some(normalized(ident)),
        _ => None,
    }
}

/// The name as DataFusion reads it, quoted.
fn normalized(ident: &Ident) -> Ident {
    let value = if ident.quote_style.is_none() { ident.value.to_lowercase() } else { ident.value.clone() };
    Ident { value, quote_style: Some('"'), span: ident.span }
}

#[cfg(test)]
mod tests {
    use super::*;

    use datafusion::sql::parser::DFParser;

    fn rewrite(sql: &str) -> String {
        let mut statement = DFParser::parse_sql(sql).unwrap().pop_front().unwrap();
        rewrite_statement(&mut statement);
        statement.to_string()
    }

    const ASOF: &str = "ASOF JOIN f MATCH_CONDITION (l.t >= f.t)";

    #[test]
    fn each_join_gets_its_own_parentheses() {
        let cases = [
            (format!("SELECT 1 FROM l {ASOF}"), format!("SELECT 1 FROM (l {ASOF})")),
            (
                format!("SELECT 1 FROM a JOIN l ON true {ASOF} JOIN b ON true {ASOF}"),
                format!("SELECT 1 FROM ((a JOIN l ON true {ASOF}) JOIN b ON true {ASOF})"),
            ),
            (
                format!("SELECT 1 FROM a, (l {ASOF}) AS x JOIN (l {ASOF}) ON true"),
                format!("SELECT 1 FROM a, ((l {ASOF})) AS x JOIN ((l {ASOF})) ON true"),
            ),
            (
                format!(
                    "WITH c AS (SELECT 1 FROM l {ASOF}) SELECT (SELECT 2 FROM l {ASOF}) FROM c UNION ALL SELECT 3 FROM l {ASOF}"
                ),
                format!(
                    "WITH c AS (SELECT 1 FROM (l {ASOF})) SELECT (SELECT 2 FROM (l {ASOF})) FROM c UNION ALL SELECT 3 FROM (l {ASOF})"
                ),
            ),
            (
                format!("INSERT INTO t SELECT 1 FROM l {ASOF} WHERE x IN (SELECT 1 FROM l {ASOF})"),
                format!("INSERT INTO t SELECT 1 FROM (l {ASOF}) WHERE x IN (SELECT 1 FROM (l {ASOF}))"),
            ),
            (format!("EXPLAIN SELECT 1 FROM l {ASOF}"), format!("EXPLAIN SELECT 1 FROM (l {ASOF})")),
            (
                format!("CREATE TABLE t AS SELECT 1 FROM l {ASOF}"),
                format!("CREATE TABLE t AS SELECT 1 FROM (l {ASOF})"),
            ),
            (
                format!("CREATE VIEW v AS SELECT 1 FROM l {ASOF}"),
                format!("CREATE VIEW v AS SELECT 1 FROM (l {ASOF})"),
            ),
            (
                "SELECT 1 FROM a GLOBAL LEFT JOIN b ON x".into(),
                "SELECT 1 FROM (a GLOBAL LEFT JOIN b ON x)".into(),
            ),
            ("SELECT 1 FROM a JOIN b ON x".into(), "SELECT 1 FROM a JOIN b ON x".into()),
        ];
        for (sql, expected) in cases {
            assert_eq!(rewrite(&sql), expected, "{sql}");
        }
    }

    #[test]
    fn star_shows_the_left_key() {
        let cases = [
            (format!("SELECT * FROM l {ASOF} USING (K)"), "SELECT l.*, f.* EXCLUDE (\"k\") FROM"),
            (format!("SELECT *, 1 FROM s.l {ASOF} USING (k)"), "SELECT s.l.*, f.* EXCLUDE (\"k\"), 1 FROM"),
            (
                format!("SELECT * FROM a x JOIN l USING (j) {ASOF} USING (k)"),
                "SELECT x.*, l.* EXCLUDE (\"j\"), f.* EXCLUDE (\"k\") FROM",
            ),
            (format!("SELECT * FROM (SELECT 1) {ASOF} USING (k)"), "SELECT * REPLACE (\"k\" AS \"k\") FROM"),
            (
                format!("SELECT * EXCLUDE (x) FROM l {ASOF} USING (k)"),
                "SELECT * EXCLUDE (x) REPLACE (\"k\" AS \"k\") FROM",
            ),
            (format!("SELECT * FROM l {ASOF} ON l.k = f.k"), "SELECT * FROM"),
            (format!("SELECT l.*, count(*) FROM l {ASOF} USING (k)"), "SELECT l.*, count(*) FROM"),
        ];
        for (sql, expected) in cases {
            assert!(rewrite(&sql).starts_with(expected), "{sql}: {}", rewrite(&sql));
        }
    }

    #[test]
    fn a_filter_on_a_using_column_means_the_left_one() {
        let cases = [
            (format!("SELECT 1 FROM s.l {ASOF} USING (k) WHERE K > 1 AND x"), "WHERE s.l.K > 1 AND x"),
            (format!("SELECT 1 FROM labels l {ASOF} USING (k) {ASOF} WHERE l.k = k"), "WHERE l.k = l.k"),
            (
                format!("SELECT 1 FROM l {ASOF} USING (k) WHERE k IN (SELECT k FROM u)"),
                "WHERE l.k IN (SELECT k FROM u)",
            ),
            (format!("SELECT 1 FROM l {ASOF} ON l.k = f.k WHERE k = 1"), "WHERE k = 1"),
        ];
        for (sql, expected) in cases {
            assert!(rewrite(&sql).ends_with(expected), "{sql}: {}", rewrite(&sql));
        }
    }
}
