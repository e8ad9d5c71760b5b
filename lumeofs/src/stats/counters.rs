//! Counters of a mount, as lines of text.

use crate::output;
use anyhow::Context as _;
use std::collections::BTreeMap;

/// What the names of a mount's counters begin with.
const PREFIX: &str = "lumeofs_mount_";
const OPERATIONS: &str = "operations_total{";
const TIMES: &str = "operation_seconds_";

/// Values by name, which includes the labels.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Counters(BTreeMap<String, f64>);

/// One kind of operation.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) count: u64,
    pub(super) failed: u64,
    /// In all.
    pub(super) seconds: f64,
}

impl Counters {
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let parse = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            let name = name.strip_prefix(PREFIX).unwrap_or(name);
            Some((name.to_owned(), value.parse().ok()?))
        };
        text.lines()
            .map(|line| parse(line).with_context(|| format!("a counter of the mount: {line:?}")))
            .collect::<anyhow::Result<_>>()
            .map(Self)
    }

    pub(super) fn all(&self) -> &BTreeMap<String, f64> {
        &self.0
    }

    /// What was counted since; what goes up and down is as it is now.
    pub(super) fn since(&self, before: &Self) -> Self {
        let since = |(name, value): (&String, &f64)| {
            let is_counter = name.contains("_total") || name.starts_with(TIMES);
            let then = match is_counter {
                true => before.0.get(name).copied().unwrap_or(0.0),
                false => 0.0,
            };
            (name.clone(), value - then)
        };
        Self(self.0.iter().map(since).collect())
    }

    /// Operations that ran, the most frequent first.
    pub(super) fn operations(&self) -> Vec<Row> {
        let mut rows: BTreeMap<&str, Row> = BTreeMap::new();
        for (name, value) in &self.0 {
            let Some(op) = label(name, "op") else {
                continue;
            };
            let row = rows.entry(op).or_default();
            row.name = op.to_owned();
            if name.starts_with(OPERATIONS) {
                row.count += *value as u64;
                if label(name, "outcome") == Some("error") {
                    row.failed += *value as u64;
                }
            } else if name.starts_with("operation_seconds_sum") {
                row.seconds += value;
            }
        }
        let mut rows: Vec<Row> = rows.into_values().filter(|row| row.count > 0).collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.count));
        rows
    }

    /// All else.
    pub(super) fn others(&self) -> impl Iterator<Item = (&str, f64)> {
        let others = self.0.iter();
        let others =
            others.filter(|(name, _)| !name.starts_with(OPERATIONS) && !name.starts_with(TIMES));
        others.map(|(name, value)| (name.as_str(), *value))
    }
}

/// The value of a label in a counter's name.
fn label<'a>(name: &'a str, label: &str) -> Option<&'a str> {
    let labels = name.split_once('{')?.1.strip_suffix('}')?;
    let value = labels
        .split(',')
        .find_map(|pair| pair.strip_prefix(label)?.strip_prefix("=\""))?;
    value.strip_suffix('"')
}

/// A value for people.
pub(super) fn shown(name: &str, value: f64) -> String {
    if name.contains("bytes") {
        output::size(value.max(0.0) as u64)
    } else if name.contains("seconds") {
        format!("{value:.3} s")
    } else {
        format!("{value}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "lumeofs_mount_operations_total{op=\"read\",outcome=\"ok\"} 7\n\
        lumeofs_mount_operations_total{op=\"read\",outcome=\"error\"} 1\n\
        lumeofs_mount_operations_total{op=\"write\",outcome=\"ok\"} 0\n\
        lumeofs_mount_operation_seconds_sum{op=\"read\"} 0.5\n\
        lumeofs_mount_operation_seconds_count{op=\"read\"} 8\n\
        lumeofs_mount_operations_in_progress 3\n\
        lumeofs_mount_read_bytes_total 4096\n";

    #[test]
    fn operations_are_put_together_from_their_lines() {
        let counters = Counters::parse(TEXT).unwrap();
        let read = Row {
            name: "read".into(),
            count: 8,
            failed: 1,
            seconds: 0.5,
        };
        assert_eq!(counters.operations(), [read]);
        let others: Vec<_> = counters.others().collect();
        assert_eq!(
            others,
            [
                ("operations_in_progress", 3.0),
                ("read_bytes_total", 4096.0)
            ]
        );
    }

    #[test]
    fn a_difference_is_of_counters_only() {
        let before = Counters::parse(TEXT).unwrap();
        let text = TEXT
            .replace("} 7", "} 17")
            .replace("_progress 3", "_progress 2");
        let since = Counters::parse(&text).unwrap().since(&before);
        assert_eq!(since.operations()[0].count, 10);
        let others: Vec<_> = since.others().collect();
        assert_eq!(
            others,
            [("operations_in_progress", 2.0), ("read_bytes_total", 0.0)]
        );
    }

    #[test]
    fn a_line_that_is_no_counter_is_named() {
        let error = Counters::parse("a 1\nnonsense\n").unwrap_err();
        assert!(error.to_string().contains("nonsense"), "{error}");
    }
}
