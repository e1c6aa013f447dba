//! Generated joins against a brute-force oracle that knows the rules of point-in-time joins and nothing of the operator.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, Int32Array, Int64Array, PrimitiveArray, RecordBatch, StringArray,
    StringViewArray,
};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Int64Type, TimeUnit};
use datafusion::catalog::TableProvider;
use datafusion::common::ScalarValue;
use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use super::{Group, batch, context, micros, run, timestamp};

/// Label, feature and value of each row, in order.
pub(super) type Rows = Vec<(i64, Option<i64>, Option<i64>)>;

/// Units as (unit, nanoseconds).
const UNITS: [(TimeUnit, i64); 4] = [
    (TimeUnit::Second, 1_000_000_000),
    (TimeUnit::Millisecond, 1_000_000),
    (TimeUnit::Microsecond, 1_000),
    (TimeUnit::Nanosecond, 1),
];
const ZONES: [Option<&str>; 3] = [None, Some("UTC"), Some("+05:30")];

#[derive(Debug, Clone)]
struct Label {
    number: Option<i32>,
    word: Option<usize>,
    /// Instant in half seconds around 1970, and a step of one unit.
    time: Option<(i64, i64)>,
    bound: Option<i64>,
}

#[derive(Debug, Clone)]
struct Feature {
    number: Option<i32>,
    word: Option<usize>,
    time: Option<(i64, i64)>,
    ingested_at: Option<i64>,
    value: Option<i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    MatchOn,
    MatchUsing,
    DuckInner,
    DuckLeft,
    DuckUsing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    Column,
    LabelTime,
    Constant(i64),
}

#[derive(Debug, Clone)]
pub(super) struct Case {
    labels: Vec<Label>,
    features: Vec<Feature>,
    pub(super) keys: usize,
    form: Form,
    op: &'static str,
    flipped: bool,
    tolerance: Option<(i64, bool)>,
    pub(super) known: Option<(Known, bool)>,
    pub(super) ttl: Option<u64>,
    default: Option<i64>,
    pub(super) group: bool,
    label_type: (usize, usize),
    feature_type: (usize, usize),
    pub(super) partitions: usize,
    pub(super) batch_size: usize,
    chunk: usize,
}

const WORDS: [&str; 3] = ["", "a", "b"];

fn time() -> impl Strategy<Value = Option<(i64, i64)>> {
    option::weighted(0.9, (-6_i64..6, -1_i64..=1))
}

pub(super) fn case() -> impl Strategy<Value = Case> {
    let label = (
        option::weighted(0.9, 0..3),
        option::weighted(0.9, 0..3_usize),
        time(),
        option::weighted(0.9, -6_i64..6),
    )
        .prop_map(|(number, word, time, bound)| Label { number, word, time, bound });
    let feature = (
        option::weighted(0.9, 0..3),
        option::weighted(0.9, 0..3_usize),
        time(),
        option::weighted(0.9, -6_i64..6),
        option::weighted(0.8, 0..100_i64),
    )
        .prop_map(|(number, word, time, ingested_at, value)| Feature {
            number,
            word,
            time,
            ingested_at,
            value,
        });
    let known =
        prop_oneof![Just(Known::Column), Just(Known::LabelTime), (-6_i64..6).prop_map(Known::Constant)];
    let form =
        select(vec![Form::MatchOn, Form::MatchUsing, Form::DuckInner, Form::DuckLeft, Form::DuckUsing]);
    let query = (0..3_usize, form, select(vec![">=", ">", "<=", "<"]), any::<bool>());
    let limits = (
        option::weighted(0.3, (0..5_i64, any::<bool>())),
        option::weighted(0.4, (known, any::<bool>())),
        option::weighted(0.5, 1..4_u64),
        option::weighted(0.5, 500..502_i64),
        any::<bool>(),
    );
    let kinds = ((0..4_usize, 0..3_usize), (0..4_usize, 0..3_usize));
    let shape = (select(vec![1_usize, 2, 4]), select(vec![1_usize, 2, 7, 8192]), 1..12_usize);
    (vec(label, 0..14), vec(feature, 0..40), query, limits, kinds, shape).prop_map(
        |(labels, features, query, limits, (label_type, feature_type), (partitions, batch_size, chunk))| {
            let (keys, form, op, flipped) = query;
            let (tolerance, known, ttl, default, group) = limits;
            let in_match = matches!(form, Form::MatchOn | Form::MatchUsing);
            Case {
                labels,
                features,
                keys,
                form,
                op: if form == Form::DuckUsing { ">=" } else { op },
                flipped,
                tolerance: tolerance.filter(|_| in_match),
                known: known.filter(|_| in_match && group),
                ttl: ttl.filter(|_| group),
                default: default.filter(|_| group),
                group,
                label_type,
                feature_type,
                partitions,
                batch_size,
                chunk,
            }
        },
    )
}

impl Case {
    /// Value of a generated time in the given unit.
    fn in_unit(time: Option<(i64, i64)>, unit: usize) -> Option<i64> {
        time.map(|(half_seconds, step)| {
            let per_second = 1_000_000_000 / UNITS[unit].1;
            if per_second == 1 { half_seconds } else { half_seconds * per_second / 2 + step }
        })
    }

    fn label_ns(&self, label: &Label) -> Option<i128> {
        let unit = self.label_type.0;
        Self::in_unit(label.time, unit).map(|time| i128::from(time) * i128::from(UNITS[unit].1))
    }

    fn feature_ns(&self, feature: &Feature) -> Option<i128> {
        let unit = self.feature_type.0;
        Self::in_unit(feature.time, unit).map(|time| i128::from(time) * i128::from(UNITS[unit].1))
    }

    fn is_inner(&self) -> bool {
        matches!(self.form, Form::DuckInner | Form::DuckUsing)
    }

    /// Every feature row that may be picked for a label: one, or several that tie where nothing orders them.
    fn picks(&self, label: &Label) -> Vec<usize> {
        let Some(label_time) = self.label_ns(label) else {
            return Vec::new();
        };
        let eligible: Vec<(usize, i128)> = self
            .features
            .iter()
            .enumerate()
            .filter_map(|(id, feature)| Some((id, self.feature_ns(feature)?)))
            .filter(|(id, time)| self.is_eligible(label, label_time, &self.features[*id], *time))
            .collect();
        let times = eligible.iter().map(|(_, time)| *time);
        let best = if self.op.starts_with('>') { times.max() } else { times.min() };
        let mut tied: Vec<usize> =
            eligible.iter().filter(|(_, time)| Some(*time) == best).map(|(id, _)| *id).collect();
        if self.group {
            tied.sort_by_key(|id| (self.features[*id].ingested_at, *id));
            tied = tied.pop().into_iter().collect();
        }
        tied
    }

    fn is_eligible(&self, label: &Label, label_time: i128, feature: &Feature, time: i128) -> bool {
        const SECOND: i128 = 1_000_000_000;
        let numbers = self.keys < 1 || (label.number.is_some() && label.number == feature.number);
        let words = self.keys < 2 || (label.word.is_some() && label.word == feature.word);
        let matches = match self.op {
            ">=" => label_time >= time,
            ">" => label_time > time,
            "<=" => label_time <= time,
            _ => label_time < time,
        };
        let distance = (label_time - time).abs();
        let near = self.tolerance.is_none_or(|(seconds, strict)| {
            let max = i128::from(seconds) * SECOND;
            distance < max || (!strict && distance == max)
        });
        let fresh = match self.ttl {
            Some(seconds) if self.op.starts_with('>') => distance <= i128::from(seconds) * SECOND,
            _ => true,
        };
        let known = self.known.is_none_or(|(known, strict)| {
            let bound = match known {
                Known::Column => label.bound.map(|seconds| i128::from(seconds) * SECOND),
                Known::LabelTime => Some(label_time),
                Known::Constant(seconds) => Some(i128::from(seconds) * SECOND),
            };
            match (bound, feature.ingested_at.map(|seconds| i128::from(seconds) * SECOND)) {
                (Some(bound), Some(ingested_at)) => ingested_at < bound || (!strict && ingested_at == bound),
                _ => false,
            }
        });
        numbers && words && matches && near && fresh && known
    }

    fn sql(&self) -> String {
        let compare = |left: &str, op: &str, right: &str| {
            if !self.flipped {
                return format!("{left} {op} {right}");
            }
            let op = match op {
                ">=" => "<=",
                ">" => "<",
                "<=" => ">=",
                _ => ">",
            };
            format!("{right} {op} {left}")
        };
        let names = ["number", "word"];
        let mut on: Vec<String> = names[..self.keys].iter().map(|key| format!("l.{key} = f.{key}")).collect();
        let mut using: Vec<&str> = names[..self.keys].to_vec();
        let mut matching = compare("l.ts", self.op, "f.ts");
        if let Some((seconds, strict)) = self.tolerance {
            let (later, earlier) = if self.op.starts_with('>') { ("l.ts", "f.ts") } else { ("f.ts", "l.ts") };
            let distance = format!("{earlier} + INTERVAL '{seconds} seconds'");
            matching += &format!(" AND {}", compare(later, if strict { "<" } else { "<=" }, &distance));
        }
        if let Some((known, strict)) = self.known {
            let bound = match known {
                Known::Column => "l.bound".to_owned(),
                Known::LabelTime => "l.ts".to_owned(),
                Known::Constant(seconds) => format!("(to_timestamp_seconds({seconds}))"),
            };
            matching +=
                &format!(" AND {}", compare(&bound, if strict { ">" } else { ">=" }, "f._ingested_at"));
        }
        let join = match self.form {
            Form::MatchOn if on.is_empty() => format!("ASOF JOIN f MATCH_CONDITION ({matching})"),
            Form::MatchOn => format!("ASOF JOIN f MATCH_CONDITION ({matching}) ON {}", on.join(" AND ")),
            Form::MatchUsing if using.is_empty() => format!("ASOF LEFT JOIN f MATCH_CONDITION ({matching})"),
            Form::MatchUsing => {
                format!("ASOF JOIN f MATCH_CONDITION ({matching}) USING ({})", using.join(", "))
            }
            Form::DuckUsing => {
                using.push("ts");
                format!("ASOF JOIN f USING ({})", using.join(", "))
            }
            Form::DuckInner | Form::DuckLeft => {
                on.push(matching);
                let kind = if self.form == Form::DuckLeft { "LEFT" } else { "INNER" };
                format!("ASOF {kind} JOIN f ON {}", on.join(" AND "))
            }
        };
        format!("SELECT l.id, f.fid, f.value FROM l {join}")
    }

    fn time_array(times: Vec<Option<i64>>, (unit, zone): (usize, usize)) -> ArrayRef {
        let array: ArrayRef = Arc::new(Int64Array::from(times));
        cast(&array, &timestamp(UNITS[unit].0, ZONES[zone])).unwrap()
    }

    fn labels(&self) -> RecordBatch {
        let column = |f: fn(&Label) -> Option<i64>| self.labels.iter().map(f).collect::<Vec<_>>();
        let words: StringArray = self.labels.iter().map(|l| l.word.map(|w| WORDS[w])).collect();
        let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
        let times = self.labels.iter().map(|l| Self::in_unit(l.time, self.label_type.0)).collect();
        batch(vec![
            ("id", Arc::new(Int64Array::from_iter_values(0..self.labels.len() as i64))),
            ("number", Arc::new(self.labels.iter().map(|l| l.number).collect::<Int32Array>())),
            ("word", cast(&words, &dictionary).unwrap()),
            ("ts", Self::time_array(times, self.label_type)),
            ("bound", Self::time_array(column(|l| l.bound), (0, 0))),
        ])
    }

    pub(super) fn features(&self) -> RecordBatch {
        let numbers: PrimitiveArray<Int64Type> =
            self.features.iter().map(|f| f.number.map(i64::from)).collect();
        let words: StringViewArray = self.features.iter().map(|f| f.word.map(|w| WORDS[w])).collect();
        let ids = 0..self.features.len() as i64;
        let times = self.features.iter().map(|f| Self::in_unit(f.time, self.feature_type.0)).collect();
        let ingested: Int64Array =
            self.features.iter().map(|f| f.ingested_at.map(|s| s * 1_000_000)).collect();
        batch(vec![
            ("value", Arc::new(self.features.iter().map(|f| f.value).collect::<Int64Array>())),
            ("word", Arc::new(words)),
            ("fid", Arc::new(Int64Array::from_iter_values(ids.clone()))),
            ("ts", Self::time_array(times, self.feature_type)),
            ("number", Arc::new(numbers)),
            ("_ingested_at", cast(&ingested, &micros(Some("UTC"))).unwrap()),
            ("_sequence", Arc::new(Int64Array::from_iter_values(ids))),
        ])
    }

    /// The case as a store holds it: no NULL among keys and times, which are in µs, and every row learnt at some time.
    pub(super) fn stored(mut self) -> Self {
        self.features.retain(|f| {
            f.number.is_some() && f.word.is_some() && f.time.is_some() && f.ingested_at.is_some()
        });
        self.features.sort_by_key(|feature| feature.ingested_at);
        self.feature_type.0 = 2;
        Self { group: true, ..self }
    }

    /// The case without what only feature groups have; its times are in µs.
    pub(super) fn plain(mut self) -> Self {
        self.feature_type.0 = 2;
        Self { group: false, known: None, ttl: None, default: None, ..self }
    }

    /// When the store learnt each feature.
    pub(super) fn ingested_at(&self) -> Vec<Option<i64>> {
        self.features.iter().map(|feature| feature.ingested_at).collect()
    }

    /// The rows cut into batches, dealt out to partitions.
    fn cut(&self, batch: &RecordBatch) -> Vec<Vec<RecordBatch>> {
        let mut partitions = vec![Vec::new(); 2];
        for (index, start) in (0..batch.num_rows()).step_by(self.chunk).enumerate() {
            partitions[index % 2].push(batch.slice(start, self.chunk.min(batch.num_rows() - start)));
        }
        partitions
    }

    async fn results(&self) -> Rows {
        let features = self.features();
        let table: Arc<dyn TableProvider> = if self.group {
            self.definition().table(&features.schema(), self.cut(&features))
        } else {
            let features = features.project(&[0, 1, 2, 3, 4]).unwrap();
            Arc::new(MemTable::try_new(features.schema(), self.cut(&features)).unwrap())
        };
        self.results_from(&context(self.partitions, self.batch_size), table).await
    }

    pub(super) fn definition(&self) -> Group {
        Group {
            name: "f",
            keys: vec![4, 1],
            event_time: 3,
            ttl: self.ttl.map(Duration::from_secs),
            defaults: self.default.map(|value| (0, ScalarValue::Int64(Some(value)))).into_iter().collect(),
        }
    }

    pub(super) async fn results_from(
        &self,
        context: &SessionContext,
        features: Arc<dyn TableProvider>,
    ) -> Rows {
        let labels = self.labels();
        let table = MemTable::try_new(labels.schema(), self.cut(&labels)).unwrap();
        context.register_table("l", Arc::new(table)).unwrap();
        context.register_table("f", features).unwrap();
        let sql = self.sql();
        let batches = match run(context, &sql).await {
            Ok(batches) => batches,
            Err(error) => panic!("{sql}: {error}"),
        };
        let mut rows = Vec::new();
        for batch in &batches {
            assert!(batch.num_rows() <= self.batch_size);
            let column = |i: usize| batch.column(i).as_primitive::<Int64Type>();
            let value = |i: usize, row: usize| column(i).is_valid(row).then(|| column(i).value(row));
            for row in 0..batch.num_rows() {
                rows.push((value(0, row).unwrap(), value(1, row), value(2, row)));
            }
        }
        rows.sort_unstable();
        rows
    }

    pub(super) fn check(&self, rows: &[(i64, Option<i64>, Option<i64>)]) -> Result<(), TestCaseError> {
        let mut rows = rows.iter();
        for (id, label) in self.labels.iter().enumerate() {
            let picks: HashSet<usize> = self.picks(label).into_iter().collect();
            if picks.is_empty() && self.is_inner() {
                continue;
            }
            let Some(&(row_id, feature, value)) = rows.next() else {
                return Err(TestCaseError::fail(format!("label {id} is missing: {}", self.sql())));
            };
            prop_assert_eq!(row_id, id as i64, "{}", self.sql());
            match feature {
                None => {
                    prop_assert!(picks.is_empty(), "label {} should pick {:?}: {}", id, picks, self.sql());
                    prop_assert_eq!(value, self.default, "label {}: {}", id, self.sql());
                }
                Some(feature) => {
                    let feature = usize::try_from(feature).unwrap();
                    prop_assert!(
                        picks.contains(&feature),
                        "label {} picked {} of {:?}: {}",
                        id,
                        feature,
                        picks,
                        self.sql()
                    );
                    prop_assert_eq!(value, self.features[feature].value, "label {}: {}", id, self.sql());
                }
            }
        }
        prop_assert_eq!(rows.next(), None, "{}", self.sql());
        Ok(())
    }
}

#[test]
fn every_join_equals_the_oracle() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut runner = TestRunner::new(Config { cases: 500, failure_persistence: None, ..Config::default() });
    let result = runner.run(&case(), |case| case.check(&runtime.block_on(case.results())));
    if let Err(error) = result {
        panic!("{error}");
    }
}

/// The oracle itself: that it says no where it should, so that the property can fail.
#[test]
fn the_oracle_refuses_wrong_rows() {
    let feature = |time, ingested_at| Feature {
        number: Some(1),
        word: Some(1),
        time: Some((time, 0)),
        ingested_at,
        value: Some(time),
    };
    let case = Case {
        labels: vec![Label { number: Some(1), word: Some(1), time: Some((4, 0)), bound: None }],
        features: vec![feature(2, Some(1)), feature(4, Some(2)), feature(4, Some(3)), feature(6, Some(1))],
        keys: 2,
        form: Form::MatchOn,
        op: ">=",
        flipped: false,
        tolerance: None,
        known: None,
        ttl: None,
        default: None,
        group: true,
        label_type: (2, 0),
        feature_type: (2, 0),
        partitions: 1,
        batch_size: 8192,
        chunk: 8,
    };
    assert!(case.check(&[(0, Some(2), Some(4))]).is_ok());
    for wrong in [vec![], vec![(0, Some(1), Some(4))], vec![(0, None, None)], vec![(0, Some(2), Some(4)); 2]]
    {
        assert!(case.check(&wrong).is_err(), "{wrong:?}");
    }
    assert_eq!(Case { op: ">", ..case.clone() }.picks(&case.labels[0]), vec![0]);
    assert_eq!(Case { op: "<", ..case.clone() }.picks(&case.labels[0]), vec![3]);
    let known = Some((Known::Constant(2), true));
    assert_eq!(Case { known, ..case.clone() }.picks(&case.labels[0]), vec![0]);
}
