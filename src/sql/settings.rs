//! The settings of a session: one list of them for `SET`, `SHOW`, `RESET` and `USE`, and for session options of Flight.

use datafusion::config::ConfigOptions;
use datafusion::execution::SessionState;
use datafusion::logical_expr::registry::FunctionRegistry;
use datafusion::logical_expr::{LogicalPlan, ResetVariable, SetVariable, Statement as LogicalStatement};

use super::engine::CATALOG;
use super::session::Session;
use super::system;
use crate::config::{ENDPOINTS_MAX, size_bytes};
use crate::error::{Error, Result};
use crate::exec::SessionOptions;
use crate::model;

/// Bounds of what a client may set.
const BATCH_ROWS_MAX: usize = 1 << 20;
const PARTITIONS_MAX: usize = 256;
/// Less is too little for any query.
const MEMORY_BYTES_MIN: u64 = 16 << 20;

/// The value of a setting, of the type that it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SettingValue {
    /// A name or a word.
    Text(String),
    /// A count, or bytes.
    Number(i64),
}

/// A setting that a client may change for its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Setting {
    Catalog,
    Schema,
    TimeZone,
    BatchSize,
    TargetPartitions,
    AsofStrategy,
    Endpoints,
    RowsMax,
    MemoryLimit,
    IdempotencyKey,
}

use Setting::{
    AsofStrategy, BatchSize, Catalog, Endpoints, IdempotencyKey, MemoryLimit, RowsMax, Schema,
    TargetPartitions, TimeZone,
};

/// Each setting, the names that it goes by (the first is ours), and its key in DataFusion's configuration.
const ALL: [(Setting, &[&str], &str); 10] = [
    (Catalog, &["catalog"], "datafusion.catalog.default_catalog"),
    (Schema, &["schema", "search_path"], "datafusion.catalog.default_schema"),
    (TimeZone, &["time_zone", "timezone", "time.zone"], "datafusion.execution.time_zone"),
    (BatchSize, &["batch_size"], "datafusion.execution.batch_size"),
    (TargetPartitions, &["target_partitions"], "datafusion.execution.target_partitions"),
    (AsofStrategy, &["asof_strategy"], "fletching.asof_strategy"),
    (Endpoints, &["endpoints"], "fletching.endpoints"),
    (RowsMax, &["rows_max"], "fletching.rows_max"),
    (MemoryLimit, &["memory_limit"], "fletching.memory_limit"),
    (IdempotencyKey, &["idempotency_key"], "fletching.idempotency_key"),
];

impl Setting {
    pub(super) fn find(name: &str) -> Option<Self> {
        let is = |known: &str| known.eq_ignore_ascii_case(name);
        ALL.iter().find(|(_, names, key)| is(key) || names.iter().any(|known| is(known))).map(|(it, ..)| *it)
    }

    fn name(self) -> &'static str {
        ALL.iter().find(|(it, ..)| *it == self).map_or("", |(_, names, _)| names[0])
    }

    /// The key in DataFusion's configuration.
    pub(super) fn key(self) -> &'static str {
        ALL.iter().find(|(it, ..)| *it == self).map_or("", |(.., key)| *key)
    }

    /// The name by which `SHOW` finds it: DataFusion lists the settings of others without their prefix.
    pub(super) fn shown_as(self) -> &'static str {
        self.key().trim_start_matches("fletching.")
    }

    fn value(self, options: &ConfigOptions) -> String {
        let own = options.extensions.get::<SessionOptions>();
        let own = |value: &dyn Fn(&SessionOptions) -> String| own.map(value).unwrap_or_default();
        match self {
            Catalog => options.catalog.default_catalog.clone(),
            Schema => options.catalog.default_schema.clone(),
            TimeZone => options.execution.time_zone.clone().unwrap_or_default(),
            BatchSize => options.execution.batch_size.to_string(),
            TargetPartitions => options.execution.target_partitions.to_string(),
            AsofStrategy => own(&|own| own.asof_strategy.to_string()),
            Endpoints => own(&|own| own.endpoints.to_string()),
            RowsMax => own(&|own| own.rows_max.to_string()),
            MemoryLimit => own(&|own| own.memory_limit.to_string()),
            IdempotencyKey => own(&|own| own.idempotency_key.clone()),
        }
    }

    /// The value as it is kept. Others would not fail but give wrong answers, or none.
    fn checked(self, value: &str) -> Result<String> {
        let wrong =
            |what: String| Error::invalid(format!("setting '{}' is {what}, not '{value}'", self.name()));
        let bounded = |min: usize, max: usize| match value.parse::<usize>() {
            Ok(number) if (min..=max).contains(&number) => Ok(value.to_owned()),
            _ => Err(wrong(format!("a number from {min} to {max}"))),
        };
        match self {
            Catalog if value == CATALOG => Ok(value.to_owned()),
            Catalog => {
                Err(Error::not_found(format!("catalog '{value}' does not exist: there is one, '{CATALOG}'")))
            }
            BatchSize => bounded(1, BATCH_ROWS_MAX),
            TargetPartitions => bounded(1, PARTITIONS_MAX),
            Endpoints => bounded(1, ENDPOINTS_MAX),
            RowsMax => bounded(0, usize::MAX >> 1),
            MemoryLimit => match size_bytes(value) {
                Ok(bytes) if bytes == 0 || bytes >= MEMORY_BYTES_MIN => Ok(bytes.to_string()),
                _ => Err(wrong("0 for no limit, or a size of at least 16MiB".into())),
            },
            TimeZone => match value.parse::<datafusion::arrow::array::timezone::Tz>() {
                Ok(_) => Ok(value.to_owned()),
                Err(_) => Err(Error::invalid(format!(
                    "'{value}' is not a time zone: write UTC, +02:00 or Europe/Berlin"
                ))),
            },
            IdempotencyKey if value.is_empty() => Ok(String::new()),
            IdempotencyKey => model::IdempotencyKey::parse(value).map(|key| key.to_string()),
            // Checked where they are set.
            Schema | AsofStrategy => Ok(value.to_owned()),
        }
    }
}

/// The settings that differ from the server's own, by name.
pub(super) fn changed(options: &ConfigOptions, defaults: &ConfigOptions) -> Vec<(String, String)> {
    let changed = ALL.iter().map(|(setting, ..)| (setting, setting.value(options)));
    let changed = changed.filter(|(setting, value)| *value != setting.value(defaults));
    changed.map(|(setting, value)| (setting.name().to_owned(), value)).collect()
}

/// Puts the settings of one statement to what they were when [`changed`] told them.
pub(super) fn restore(
    state: &mut SessionState,
    defaults: &ConfigOptions,
    changed: &[(String, String)],
) -> Result<()> {
    for (setting, ..) in ALL {
        let told = changed.iter().find(|(name, _)| name == setting.name());
        let value = told.map_or_else(|| setting.value(defaults), |(_, value)| value.clone());
        if value == setting.value(state.config_options()) {
            continue;
        }
        state.config_mut().options_mut().set(setting.key(), &value)?;
        if setting == TimeZone {
            let options = state.config_options();
            let functions: Vec<_> = { state.scalar_functions().values() }
                .filter_map(|function| function.inner().with_updated_config(options))
                .collect();
            for function in functions {
                state.register_udf(function.into())?;
            }
        }
    }
    Ok(())
}

impl Session {
    /// Every setting with its value, ordered by name.
    pub fn settings(&self) -> Vec<(&'static str, SettingValue)> {
        let state = self.context.state_ref();
        let state = state.read();
        let typed = |setting: Setting| {
            let text = setting.value(state.config_options());
            match setting {
                Catalog | Schema | TimeZone | AsofStrategy | IdempotencyKey => SettingValue::Text(text),
                _ => text.parse().map_or(SettingValue::Text(text), SettingValue::Number),
            }
        };
        let mut settings: Vec<_> = ALL.iter().map(|(it, ..)| (it.name(), typed(*it))).collect();
        settings.sort_by_key(|(name, _)| *name);
        settings
    }

    /// Whether there is a setting of that name.
    pub fn has_setting(&self, name: &str) -> bool {
        Setting::find(name).is_some()
    }

    /// Changes a setting for this session; `None` puts it back to the server's.
    ///
    /// # Errors
    /// `Invalid` or `Unsupported` where there is no such setting; `Invalid` or `NotFound` where the value is none for it.
    pub async fn set(&self, name: &str, value: Option<&str>) -> Result<()> {
        let setting = Setting::find(name).ok_or_else(|| unknown(name))?;
        let value = match value {
            Some(value) => setting.checked(value)?,
            None => setting.value(self.engine.config.options()),
        };
        if setting == Schema {
            let listing = self.catalog.refresh().await?;
            if !listing.schemas.contains(&value) && ![system::SCHEMA, "information_schema"].contains(&&*value)
            {
                return Err(Error::not_found(format!(
                    "schema '{value}' does not exist: CREATE SCHEMA {value}"
                )));
            }
            self.catalog.set_schema(&value);
        }
        let set = SetVariable { variable: setting.key().to_owned(), value };
        let set = LogicalPlan::Statement(LogicalStatement::SetVariable(set));
        self.context.execute_logical_plan(set).await?;
        Ok(())
    }

    pub(super) async fn run_setting(&self, statement: LogicalStatement) -> Result<()> {
        match statement {
            LogicalStatement::SetVariable(SetVariable { variable, value }) => {
                self.set(&variable, Some(&value)).await
            }
            LogicalStatement::ResetVariable(ResetVariable { variable }) => self.set(&variable, None).await,
            other => Err(Error::unsupported(format!("{} is not supported", other.name()))),
        }
    }

    /// The idempotency key that was set for the next write, which is this one. Whatever comes of it, the one after it
    /// has none: a key that stayed would make a later, different write look like a repetition of this one.
    pub(super) fn take_idempotency_key(&self) -> Result<Option<model::IdempotencyKey>> {
        let state = self.context.state_ref();
        let mut state = state.write();
        let own = state.config_mut().options_mut().extensions.get_mut::<SessionOptions>();
        let text = own.map(|own| std::mem::take(&mut own.idempotency_key)).unwrap_or_default();
        (!text.is_empty()).then(|| model::IdempotencyKey::parse(&text)).transpose()
    }

    /// Whether statements mean here what they mean in a session that has just begun.
    pub(super) fn is_plain(&self) -> bool {
        let state = self.context.state_ref();
        let state = state.read();
        let (options, defaults) = (state.config_options(), self.engine.config.options());
        let own =
            |options: &ConfigOptions| options.extensions.get::<SessionOptions>().map(|own| own.rows_max);
        self.catalog.temp.is_empty()
            && options.catalog.default_schema == defaults.catalog.default_schema
            && own(options) == own(defaults)
    }
}

fn unknown(name: &str) -> Error {
    let known: Vec<&str> = ALL.iter().map(|(_, names, _)| names[0]).collect();
    let known = known.join(", ");
    match name.starts_with("datafusion.") {
        true => {
            Error::unsupported(format!("setting '{name}' cannot be changed in a session: there are {known}"))
        }
        false => Error::invalid(format!("there is no setting '{name}': there are {known}")),
    }
}
