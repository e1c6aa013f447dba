//! `GetXdbcTypeInfo`: the types that columns may have, as ODBC and JDBC number them.

use std::sync::LazyLock;

use arrow::array::RecordBatch;
use arrow_flight::error::FlightError;
use arrow_flight::sql::metadata::{XdbcTypeInfo, XdbcTypeInfoData, XdbcTypeInfoDataBuilder};
use arrow_flight::sql::{
    CommandGetXdbcTypeInfo, Nullable, Searchable, XdbcDataType as Xdbc, XdbcDatetimeSubcode as Subcode,
};

use crate::error::{Error, Result};
use crate::flight::status::from_decoder;

static TYPES: LazyLock<Result<XdbcTypeInfoData, FlightError>> = LazyLock::new(|| {
    let mut types = XdbcTypeInfoDataBuilder::new();
    for info in all() {
        types.append(info);
    }
    types.build()
});

pub(super) fn xdbc_type_info(command: CommandGetXdbcTypeInfo) -> Result<RecordBatch> {
    let types = TYPES.as_ref().map_err(|error| Error::internal(error.to_string()))?;
    command.into_builder(types).build().map_err(from_decoder)
}

fn base(type_name: &str, data_type: Xdbc) -> XdbcTypeInfo {
    XdbcTypeInfo {
        type_name: type_name.into(),
        data_type,
        sql_data_type: data_type,
        nullable: Nullable::NullabilityNullable,
        searchable: Searchable::Full,
        ..Default::default()
    }
}

/// `digits` are decimal for exact numbers (radix 10), binary for floating ones (radix 2).
fn number(type_name: &str, data_type: Xdbc, digits: i32, radix: i32) -> XdbcTypeInfo {
    XdbcTypeInfo {
        column_size: Some(digits),
        unsigned_attribute: Some(false),
        auto_increment: Some(false),
        num_prec_radix: Some(radix),
        ..base(type_name, data_type)
    }
}

fn quoted(type_name: &str, data_type: Xdbc, prefix: &str) -> XdbcTypeInfo {
    XdbcTypeInfo {
        literal_prefix: Some(prefix.into()),
        literal_suffix: Some("'".into()),
        ..base(type_name, data_type)
    }
}

fn moment(type_name: &str, data_type: Xdbc, characters: i32, subcode: Subcode) -> XdbcTypeInfo {
    XdbcTypeInfo {
        column_size: Some(characters),
        sql_data_type: Xdbc::XdbcDatetime,
        datetime_subcode: Some(subcode),
        ..quoted(type_name, data_type, &format!("{} '", type_name.split(' ').next().unwrap_or(type_name)))
    }
}

fn all() -> Vec<XdbcTypeInfo> {
    let decimal = XdbcTypeInfo {
        create_params: Some(vec!["precision".into(), "scale".into()]),
        minimum_scale: Some(0),
        maximum_scale: Some(38),
        ..number("DECIMAL", Xdbc::XdbcDecimal, 38, 10)
    };
    let text = XdbcTypeInfo { case_sensitive: true, ..quoted("VARCHAR", Xdbc::XdbcVarchar, "'") };
    vec![
        base("BOOLEAN", Xdbc::XdbcBit),
        number("TINYINT", Xdbc::XdbcTinyint, 3, 10),
        number("SMALLINT", Xdbc::XdbcSmallint, 5, 10),
        number("INTEGER", Xdbc::XdbcInteger, 10, 10),
        number("BIGINT", Xdbc::XdbcBigint, 19, 10),
        number("REAL", Xdbc::XdbcReal, 24, 2),
        number("FLOAT", Xdbc::XdbcFloat, 24, 2),
        number("DOUBLE", Xdbc::XdbcDouble, 53, 2),
        XdbcTypeInfo { type_name: "NUMERIC".into(), data_type: Xdbc::XdbcNumeric, ..decimal.clone() },
        decimal,
        XdbcTypeInfo { type_name: "CHAR".into(), data_type: Xdbc::XdbcChar, ..text.clone() },
        text,
        quoted("BYTEA", Xdbc::XdbcVarbinary, "X'"),
        // Date and year share the number 1.
        moment("DATE", Xdbc::XdbcDate, 10, Subcode::XdbcSubcodeYear),
        moment("TIME", Xdbc::XdbcTime, 15, Subcode::XdbcSubcodeTime),
        moment("TIMESTAMP", Xdbc::XdbcTimestamp, 26, Subcode::XdbcSubcodeTimestamp),
        moment(
            "TIMESTAMP WITH TIME ZONE",
            Xdbc::XdbcTimestamp,
            32,
            Subcode::XdbcSubcodeTimestampWithTimezone,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_type_or_all() {
        assert_eq!(
            xdbc_type_info(CommandGetXdbcTypeInfo { data_type: None }).unwrap().num_rows(),
            all().len()
        );
        let rows = |data_type: i32| {
            xdbc_type_info(CommandGetXdbcTypeInfo { data_type: Some(data_type) }).unwrap().num_rows()
        };
        assert_eq!(rows(Xdbc::XdbcBigint as i32), 1);
        assert_eq!(rows(Xdbc::XdbcTimestamp as i32), 2, "with and without time zone");
        assert_eq!(rows(4711), 0);
    }
}
