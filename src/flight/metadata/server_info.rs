//! `GetSqlInfo`: what this server is and can do. Two of the ids have no answer: the versions of Substrait, which are null
//! where it is not supported.
//!
//! Clients cast the values hard: flags and enumerations sit in the int32 arm of the union, lengths and counts in the
//! bigint arm. The JDBC driver takes the level of outer joins for a bitmask, and the default isolation level for a
//! bigint, against the letter of the specification.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use arrow::array::RecordBatch;
use arrow_flight::error::FlightError;
use arrow_flight::sql::metadata::{SqlInfoData, SqlInfoDataBuilder};
use arrow_flight::sql::{
    CommandGetSqlInfo, SqlInfo, SqlNullOrdering, SqlOuterJoinsSupportLevel, SqlSupportedCaseSensitivity,
    SqlSupportedElementActions, SqlSupportedGroupBy, SqlSupportedResultSetConcurrency,
    SqlSupportedResultSetType, SqlSupportedSubqueries, SqlSupportedTransaction, SqlSupportedUnions,
    SqlTransactionIsolationLevel, SupportedSqlGrammar,
};

use crate::error::{Error, Result};
use crate::flight::status::from_decoder;
use crate::sql::STATEMENT_BYTES_MAX;

static SQL_INFO: LazyLock<Result<SqlInfoData, FlightError>> = LazyLock::new(|| {
    let mut infos = SqlInfoDataBuilder::new();
    server(&mut infos);
    words(&mut infos);
    abilities(&mut infos);
    levels(&mut infos);
    results(&mut infos);
    limits(&mut infos);
    infos.build()
});

/// The answers to the ids asked for, or to all when none is.
pub(super) fn sql_info(command: CommandGetSqlInfo) -> Result<RecordBatch> {
    let infos = SQL_INFO.as_ref().map_err(|error| Error::internal(error.to_string()))?;
    command.into_builder(infos).build().map_err(from_decoder)
}

fn server(infos: &mut SqlInfoDataBuilder) {
    infos.append(SqlInfo::FlightSqlServerName, "Fletching");
    infos.append(SqlInfo::FlightSqlServerVersion, env!("CARGO_PKG_VERSION"));
    infos.append(SqlInfo::FlightSqlServerArrowVersion, "1.3");
    infos.append(SqlInfo::FlightSqlServerReadOnly, false);
    infos.append(SqlInfo::FlightSqlServerSql, true);
    infos.append(SqlInfo::FlightSqlServerSubstrait, false);
    infos.append(SqlInfo::FlightSqlServerTransaction, SqlSupportedTransaction::None as i32);
    infos.append(SqlInfo::FlightSqlServerCancel, true);
    infos.append(SqlInfo::FlightSqlServerBulkIngestion, true);
    infos.append(SqlInfo::FlightSqlServerIngestTransactionsSupported, false);
    // 0 is no timeout.
    infos.append(SqlInfo::FlightSqlServerStatementTimeout, 0);
    infos.append(SqlInfo::FlightSqlServerTransactionTimeout, 0);
}

fn words(infos: &mut SqlInfoDataBuilder) {
    infos.append(SqlInfo::SqlIdentifierQuoteChar, "\"");
    infos.append(SqlInfo::SqlSearchStringEscape, "\\");
    infos.append(SqlInfo::SqlExtraNameCharacters, "");
    infos.append(SqlInfo::SqlSchemaTerm, "schema");
    infos.append(SqlInfo::SqlProcedureTerm, "procedure");
    infos.append(SqlInfo::SqlCatalogTerm, "catalog");
    let lists = [
        (SqlInfo::SqlKeywords, &KEYWORDS[..]),
        (SqlInfo::SqlNumericFunctions, &NUMERIC_FUNCTIONS[..]),
        (SqlInfo::SqlStringFunctions, &STRING_FUNCTIONS[..]),
        (SqlInfo::SqlSystemFunctions, &SYSTEM_FUNCTIONS[..]),
        (SqlInfo::SqlDatetimeFunctions, &DATETIME_FUNCTIONS[..]),
    ];
    for (id, words) in lists {
        infos.append(id, words);
    }
}

/// Words with a meaning beside those of SQL:2003.
const KEYWORDS: [&str; 12] = [
    "ASOF",
    "ENTITY",
    "EVENT",
    "EXPLAIN",
    "FEATURE",
    "LATEST",
    "LIMIT",
    "MATCH_CONDITION",
    "OFFSET",
    "QUALIFY",
    "SHOW",
    "USE",
];

const NUMERIC_FUNCTIONS: [&str; 24] = [
    "ABS", "ACOS", "ASIN", "ATAN", "ATAN2", "CEIL", "COS", "COT", "DEGREES", "EXP", "FLOOR", "LN", "LOG",
    "LOG10", "PI", "POWER", "RADIANS", "RANDOM", "ROUND", "SIGNUM", "SIN", "SQRT", "TAN", "TRUNC",
];

const STRING_FUNCTIONS: [&str; 20] = [
    "ASCII",
    "CHARACTER_LENGTH",
    "CHAR_LENGTH",
    "CHR",
    "CONCAT",
    "LEFT",
    "LENGTH",
    "LOWER",
    "LPAD",
    "LTRIM",
    "OCTET_LENGTH",
    "POSITION",
    "REPEAT",
    "REPLACE",
    "REVERSE",
    "RIGHT",
    "RPAD",
    "RTRIM",
    "SUBSTRING",
    "UPPER",
];

const SYSTEM_FUNCTIONS: [&str; 4] = ["COALESCE", "NULLIF", "NVL", "VERSION"];

const DATETIME_FUNCTIONS: [&str; 8] = [
    "CURRENT_DATE",
    "CURRENT_TIME",
    "DATE_BIN",
    "DATE_PART",
    "DATE_TRUNC",
    "FROM_UNIXTIME",
    "NOW",
    "TO_TIMESTAMP",
];

fn abilities(infos: &mut SqlInfoDataBuilder) {
    let yes = [
        SqlInfo::SqlAllTablesAreSelectable,
        SqlInfo::SqlSupportsColumnAliasing,
        SqlInfo::SqlNullPlusNullIsNull,
        SqlInfo::SqlSupportsTableCorrelationNames,
        SqlInfo::SqlSupportsExpressionsInOrderBy,
        SqlInfo::SqlSupportsOrderByUnrelated,
        SqlInfo::SqlSupportsLikeEscapeClause,
        SqlInfo::SqlSupportsNonNullableColumns,
        SqlInfo::SqlCatalogAtStart,
        SqlInfo::SqlCorrelatedSubqueriesSupported,
        SqlInfo::SqlBatchUpdatesSupported,
        SqlInfo::SqlDdlSchema,
        SqlInfo::SqlDdlTable,
    ];
    let no = [
        SqlInfo::SqlDdlCatalog,
        SqlInfo::SqlSupportsDifferentTableCorrelationNames,
        SqlInfo::SqlSupportsIntegrityEnhancementFacility,
        SqlInfo::SqlSelectForUpdateSupported,
        SqlInfo::SqlStoredProceduresSupported,
        SqlInfo::SqlMaxRowSizeIncludesBlobs,
        SqlInfo::SqlTransactionsSupported,
        SqlInfo::SqlDataDefinitionCausesTransactionCommit,
        SqlInfo::SqlDataDefinitionsInTransactionsIgnored,
        SqlInfo::SqlSavepointsSupported,
        SqlInfo::SqlNamedParametersSupported,
        SqlInfo::SqlLocatorsUpdateCopy,
        SqlInfo::SqlStoredFunctionsUsingCallSyntaxSupported,
    ];
    for (ids, answer) in [(&yes[..], true), (&no[..], false)] {
        for id in ids {
            infos.append(*id, answer);
        }
    }
}

/// Bits by their ordinal.
fn bits(ordinals: &[i32]) -> i32 {
    ordinals.iter().fold(0, |bits, ordinal| bits | 1 << ordinal)
}

fn levels(infos: &mut SqlInfoDataBuilder) {
    use SqlSupportedCaseSensitivity as CaseSensitivity;
    use SqlSupportedSubqueries as Subqueries;
    let everywhere = bits(&[
        SqlSupportedElementActions::SqlElementInProcedureCalls as i32,
        SqlSupportedElementActions::SqlElementInIndexDefinitions as i32,
        SqlSupportedElementActions::SqlElementInPrivilegeDefinitions as i32,
    ]);
    let values = [
        (SqlInfo::SqlIdentifierCase, CaseSensitivity::SqlCaseSensitivityLowercase as i32),
        // Quoted names keep their case, for which there is no number.
        (SqlInfo::SqlQuotedIdentifierCase, CaseSensitivity::SqlCaseSensitivityUnknown as i32),
        (SqlInfo::SqlNullOrdering, SqlNullOrdering::SqlNullsSortedHigh as i32),
        (
            SqlInfo::SqlSupportedGroupBy,
            bits(&[
                SqlSupportedGroupBy::SqlGroupByUnrelated as i32,
                SqlSupportedGroupBy::SqlGroupByBeyondSelect as i32,
            ]),
        ),
        (
            SqlInfo::SqlSupportedGrammar,
            bits(&[
                SupportedSqlGrammar::SqlMinimumGrammar as i32,
                SupportedSqlGrammar::SqlCoreGrammar as i32,
            ]),
        ),
        (SqlInfo::SqlAnsi92SupportedLevel, bits(&[0])),
        (
            SqlInfo::SqlOuterJoinsSupportLevel,
            bits(&[
                SqlOuterJoinsSupportLevel::SqlLimitedOuterJoins as i32,
                SqlOuterJoinsSupportLevel::SqlFullOuterJoins as i32,
            ]),
        ),
        (SqlInfo::SqlSchemasSupportedActions, everywhere),
        (SqlInfo::SqlCatalogsSupportedActions, everywhere),
        (SqlInfo::SqlSupportedPositionedCommands, 0),
        (
            SqlInfo::SqlSupportedSubqueries,
            bits(&[
                Subqueries::SqlSubqueriesInComparisons as i32,
                Subqueries::SqlSubqueriesInExists as i32,
                Subqueries::SqlSubqueriesInIns as i32,
            ]),
        ),
        (
            SqlInfo::SqlSupportedUnions,
            bits(&[SqlSupportedUnions::SqlUnion as i32, SqlSupportedUnions::SqlUnionAll as i32]),
        ),
    ];
    for (id, value) in values {
        infos.append(id, value);
    }
    infos.append(SqlInfo::SqlSupportsConvert, BTreeMap::<i32, Vec<i32>>::new());
}

/// Results are read once, forwards, outside of transactions.
fn results(infos: &mut SqlInfoDataBuilder) {
    let values = [
        (
            SqlInfo::SqlSupportedTransactionsIsolationLevels,
            bits(&[SqlTransactionIsolationLevel::SqlTransactionNone as i32]),
        ),
        (
            SqlInfo::SqlSupportedResultSetTypes,
            bits(&[SqlSupportedResultSetType::SqlResultSetTypeForwardOnly as i32]),
        ),
        (
            SqlInfo::SqlSupportedConcurrenciesForResultSetForwardOnly,
            bits(&[SqlSupportedResultSetConcurrency::SqlResultSetConcurrencyReadOnly as i32]),
        ),
        (SqlInfo::SqlSupportedConcurrenciesForResultSetUnspecified, 0),
        (SqlInfo::SqlSupportedConcurrenciesForResultSetScrollSensitive, 0),
        (SqlInfo::SqlSupportedConcurrenciesForResultSetScrollInsensitive, 0),
    ];
    for (id, value) in values {
        infos.append(id, value);
    }
    infos.append(
        SqlInfo::SqlDefaultTransactionIsolation,
        i64::from(SqlTransactionIsolationLevel::SqlTransactionNone as i32),
    );
}

/// 0 is no limit, or none that is known.
fn limits(infos: &mut SqlInfoDataBuilder) {
    for id in [
        SqlInfo::SqlMaxBinaryLiteralLength,
        SqlInfo::SqlMaxCharLiteralLength,
        SqlInfo::SqlMaxColumnNameLength,
        SqlInfo::SqlMaxColumnsInGroupBy,
        SqlInfo::SqlMaxColumnsInIndex,
        SqlInfo::SqlMaxColumnsInOrderBy,
        SqlInfo::SqlMaxColumnsInSelect,
        SqlInfo::SqlMaxColumnsInTable,
        SqlInfo::SqlMaxConnections,
        SqlInfo::SqlMaxCursorNameLength,
        SqlInfo::SqlMaxIndexLength,
        SqlInfo::SqlDbSchemaNameLength,
        SqlInfo::SqlMaxProcedureNameLength,
        SqlInfo::SqlMaxCatalogNameLength,
        SqlInfo::SqlMaxRowSize,
        SqlInfo::SqlMaxStatements,
        SqlInfo::SqlMaxTableNameLength,
        SqlInfo::SqlMaxTablesInSelect,
        SqlInfo::SqlMaxUsernameLength,
    ] {
        infos.append(id, 0_i64);
    }
    infos.append(SqlInfo::SqlMaxStatementLength, i64::try_from(STATEMENT_BYTES_MAX).unwrap_or(i64::MAX));
}

#[cfg(test)]
mod tests {
    use super::*;

    use arrow::array::AsArray;
    use arrow::datatypes::{Int32Type, UInt32Type};

    /// The arm of the union in which clients look for an id: text 0, flag 1, bigint 2, int32 3, list 4, map 5.
    fn arm(id: u32) -> i8 {
        match id {
            0..=2 | 504 | 513 | 514 | 529..=531 => 0,
            8
            | 100
            | 101
            | 503
            | 505
            | 507
            | 522
            | 525
            | 526
            | 528
            | 533..=535
            | 538
            | 540
            | 564
            | 567..=571 => 3,
            508..=512 => 4,
            517 => 5,
            541..=555 | 557..=562 => 2,
            _ => 1,
        }
    }

    #[test]
    fn no_ids_ask_for_everything_and_everything_is_answered_in_its_arm() {
        let all = sql_info(CommandGetSqlInfo { info: vec![] }).unwrap();
        let ids = all.column(0).as_primitive::<UInt32Type>().values().to_vec();
        let nothing_to_say = [
            SqlInfo::FlightSqlServerSubstraitMinVersion as u32,
            SqlInfo::FlightSqlServerSubstraitMaxVersion as u32,
        ];
        let known = (0..1000).filter(|id| SqlInfo::try_from(*id).is_ok()).map(|id| id as u32);
        let expected: Vec<u32> = known.filter(|id| !nothing_to_say.contains(id)).collect();
        assert_eq!(ids, expected);
        let values = all.column(1).as_union();
        for (row, id) in ids.iter().enumerate() {
            assert_eq!(values.type_id(row), arm(*id), "{:?}", SqlInfo::try_from(*id as i32));
        }
    }

    #[test]
    fn ids_are_answered_once_in_their_order_and_unknown_ones_not_at_all() {
        let info = vec![508, 0, 9_999, 0];
        let some = sql_info(CommandGetSqlInfo { info }).unwrap();
        let ids = some.column(0).as_primitive::<UInt32Type>();
        assert_eq!(ids.values(), &[0, 508]);
        let unknown = sql_info(CommandGetSqlInfo { info: vec![9_999] }).unwrap();
        assert_eq!((unknown.num_rows(), unknown.schema()), (0, some.schema()));
    }

    #[test]
    fn adbc_finds_the_transaction_support_in_the_int32_arm() {
        let info = vec![SqlInfo::FlightSqlServerTransaction as u32];
        let batch = sql_info(CommandGetSqlInfo { info }).unwrap();
        let value = batch.column(1).as_union();
        assert_eq!((batch.num_rows(), value.type_id(0)), (1, 3));
        assert_eq!(value.value(0).as_primitive::<Int32Type>().value(0), SqlSupportedTransaction::None as i32);
    }
}
