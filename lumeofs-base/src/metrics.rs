//! Numbers for Prometheus: a page in its text format (0.0.4), and a histogram that costs two relaxed additions.
//!
//! Counters are plain atomics where the work is done; whoever owns them writes them to a [`Page`] when asked. There is
//! no global registry ([ADR 16](../../docs/adr/0016-metrics-are-atomics-written-to-a-page.md)).

mod operations;

pub use operations::Operations;

use std::fmt::{Display, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows while the process lives.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// A page under construction.
#[derive(Debug, Default)]
pub struct Page {
    text: String,
    /// Samples only: neither help nor buckets.
    brief: bool,
}

impl Page {
    /// A page without help texts and buckets, for those who know the names and want it short.
    pub fn brief() -> Self {
        Self {
            brief: true,
            ..Self::default()
        }
    }

    /// The text so far.
    pub fn into_text(self) -> String {
        self.text
    }

    /// Adds a metric that has one value.
    pub fn value(&mut self, kind: Kind, name: &str, help: &str, value: impl Display) {
        self.family(kind, name, help);
        self.sample(name, &[], value);
    }

    /// Begins a metric whose samples follow.
    pub fn family(&mut self, kind: Kind, name: &str, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        self.head(kind, name, help);
    }

    /// Adds a sample of the metric that was begun last.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.text.push_str(name);
        self.labels(labels, None);
        self.line(value);
    }

    /// Begins a histogram in seconds; [`Page::buckets`] follow.
    pub fn histogram(&mut self, name: &str, help: &str) {
        self.head("histogram", name, help);
    }

    /// Adds one histogram of those that was begun last.
    pub fn buckets(&mut self, name: &str, labels: &[(&str, &str)], histogram: &Histogram) {
        let mut below = 0;
        for (at, count) in histogram.buckets.iter().enumerate() {
            below += count.load(Ordering::Relaxed);
            if self.brief {
                continue;
            }
            let bound = match BOUNDS_US.get(at) {
                Some(&bound) => (bound as f64 / 1e6).to_string(),
                None => "+Inf".to_owned(),
            };
            let _ = write!(self.text, "{name}_bucket");
            self.labels(labels, Some(&bound));
            self.line(below);
        }
        let sum = Duration::from_nanos(histogram.sum_ns.load(Ordering::Relaxed));
        let _ = write!(self.text, "{name}_sum");
        self.labels(labels, None);
        self.line(sum.as_secs_f64());
        let _ = write!(self.text, "{name}_count");
        self.labels(labels, None);
        self.line(below);
    }

    fn head(&mut self, kind: &str, name: &str, help: &str) {
        if self.brief {
            return;
        }
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn labels(&mut self, labels: &[(&str, &str)], bound: Option<&str>) {
        let all = labels
            .iter()
            .copied()
            .chain(bound.map(|bound| ("le", bound)));
        let mut open = '{';
        for (name, value) in all {
            let value = value
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            let _ = write!(self.text, "{open}{name}=\"{value}\"");
            open = ',';
        }
        if open == ',' {
            self.text.push('}');
        }
    }

    fn line(&mut self, value: impl Display) {
        let _ = writeln!(self.text, " {value}");
    }
}

/// Upper bounds of the buckets of a [`Histogram`], in microseconds.
const BOUNDS_US: [u64; 16] = [
    50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000,
    1_000_000, 5_000_000, 30_000_000,
];

/// How long something took, counted by fixed bounds from 50 µs to 30 s.
#[derive(Debug, Default)]
pub struct Histogram {
    /// Each counts what is in it alone; the last what is above all bounds.
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_ns: AtomicU64,
}

impl Histogram {
    /// Counts one.
    pub fn observe(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|&bound| bound * 1000 < nanos);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(nanos, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_help_type_and_escaped_labels() {
        let mut page = Page::default();
        page.value(Kind::Gauge, "a_bytes", "Room", 7);
        page.family(Kind::Counter, "b_total", "Calls");
        page.sample("b_total", &[("op", "r\"d"), ("x", "a\\b\n")], 3);
        let want = "# HELP a_bytes Room\n# TYPE a_bytes gauge\na_bytes 7\n# HELP b_total Calls\n\
                    # TYPE b_total counter\nb_total{op=\"r\\\"d\",x=\"a\\\\b\\n\"} 3\n";
        assert_eq!(page.into_text(), want);
    }

    #[test]
    fn a_brief_page_has_sums_and_counts_but_no_buckets() {
        let histogram = Histogram::default();
        histogram.observe(Duration::from_secs(2));
        let mut page = Page::brief();
        page.histogram("t_seconds", "Time");
        page.buckets("t_seconds", &[], &histogram);
        assert_eq!(page.into_text(), "t_seconds_sum 2\nt_seconds_count 1\n");
    }

    #[test]
    fn buckets_are_cumulative_and_bounds_belong_to_the_lower_bucket() {
        let histogram = Histogram::default();
        for micros in [50, 51, 60_000_000] {
            histogram.observe(Duration::from_micros(micros));
        }
        let mut page = Page::default();
        page.buckets("t_seconds", &[("op", "x")], &histogram);
        let text = page.into_text();
        for line in [
            "t_seconds_bucket{op=\"x\",le=\"0.00005\"} 1\n",
            "t_seconds_bucket{op=\"x\",le=\"0.0001\"} 2\n",
            "t_seconds_bucket{op=\"x\",le=\"30\"} 2\n",
            "t_seconds_bucket{op=\"x\",le=\"+Inf\"} 3\n",
            "t_seconds_sum{op=\"x\"} 60.000101\n",
            "t_seconds_count{op=\"x\"} 3\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
