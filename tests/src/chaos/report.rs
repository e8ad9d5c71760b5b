//! How rounds are told: a line each, and a table of all in Markdown.

use super::Outcome;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

impl fmt::Display for Outcome {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.problems.is_empty() {
            "ok"
        } else {
            "FAILED"
        };
        write!(
            out,
            "round {:3}  {:32} {:14} stall {:>6} s ({})  recovery {:>6} s  {} calls, {} failed as allowed, {} files, \
             {} MiB, memory +{} MiB  seed {}  {verdict}",
            self.plan.number,
            self.plan.faults(),
            self.target,
            seconds(self.stall),
            self.call,
            self.recovery.map_or("-".into(), seconds),
            self.calls,
            self.failed,
            self.files,
            self.bytes >> 20,
            self.growth >> 20,
            self.plan.seed
        )?;
        for problem in &self.problems {
            write!(out, "\n    {problem}")?;
        }
        Ok(())
    }
}

impl Outcome {
    /// For programs.
    pub fn json(&self) -> Value {
        json!({
            "round": self.plan.number, "seed": self.plan.seed, "fault": self.plan.faults(), "target": self.target,
            "stall_ms": self.stall.as_millis() as u64, "call": self.call,
            "recovery_ms": self.recovery.map(|time| time.as_millis() as u64), "calls": self.calls,
            "failed_as_allowed": self.failed, "files": self.files, "bytes": self.bytes, "memory_growth_bytes": self.growth,
            "ok": self.problems.is_empty(), "problems": self.problems,
        })
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64())
}

/// Median and worst, or a dash.
fn range(mut times: Vec<Duration>) -> String {
    times.sort();
    match (times.get(times.len() / 2), times.last()) {
        (Some(median), Some(worst)) => format!("{} / {}", seconds(*median), seconds(*worst)),
        _ => "-".into(),
    }
}

/// The table of docs/failure-model.md: a row for each fault.
pub fn table(outcomes: &[Outcome]) -> String {
    let mut rows = BTreeMap::<String, Vec<&Outcome>>::new();
    for outcome in outcomes {
        rows.entry(outcome.plan.faults()).or_default().push(outcome);
    }
    let mut text =
        "| fault | what | rounds | longest call, s | recovery, s | failed calls | clean |\n"
            .to_owned();
    text += "|---|---|---|---|---|---|---|\n";
    for (name, rounds) in rows {
        let what: Vec<_> = rounds[0].plan.kinds.iter().map(|kind| kind.what).collect();
        // A round that did not get through has measured nothing.
        let measured = || rounds.iter().filter(|round| round.calls > 0);
        let clean = rounds
            .iter()
            .filter(|round| round.problems.is_empty())
            .count();
        text += &format!(
            "| `{name}` | {} | {} | {} | {} | {} | {clean} |\n",
            what.join("; and "),
            rounds.len(),
            range(measured().map(|round| round.stall).collect()),
            range(measured().filter_map(|round| round.recovery).collect()),
            rounds.iter().map(|round| round.failed).sum::<u64>(),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::{KINDS, Plan};
    use super::*;

    #[test]
    fn the_table_has_median_and_worst_of_each_fault_and_counts_clean_rounds() {
        let plan = Plan {
            number: 1,
            seed: 1,
            kinds: vec![&KINDS[0]],
            fio: false,
            slow: 1,
        };
        let round = |stall| Outcome {
            stall: Duration::from_millis(stall),
            recovery: Some(Duration::from_secs(2)),
            calls: 1,
            problems: vec![],
            ..Outcome::failed(&plan, String::new())
        };
        let failed = Outcome::failed(&plan, "broken".into());
        let text = table(&[round(3000), failed, round(200), round(1000)]);
        let row = text.lines().nth(2).unwrap();
        assert!(row.starts_with("| `none` | nothing"), "{row}");
        assert!(
            row.ends_with("| 4 | 1.0 / 3.0 | 2.0 / 2.0 | 0 | 3 |"),
            "{row}"
        );
    }
}
