//! How often operations ran and failed, and how long they took.

use super::{Histogram, Kind, Page};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counters of a fixed list of operations. Counting one is four relaxed additions at most.
#[derive(Debug)]
pub struct Operations {
    names: &'static [&'static str],
    counts: Box<[Counts]>,
}

#[derive(Debug, Default)]
struct Counts {
    done: AtomicU64,
    failed: AtomicU64,
    took: Histogram,
}

impl Operations {
    /// Operations of these names, each known by its place.
    pub fn new(names: &'static [&'static str]) -> Self {
        let counts = names.iter().map(|_| Counts::default()).collect();
        Self { names, counts }
    }

    /// Counts one that was answered.
    pub fn count(&self, operation: usize, failed: bool, took: Duration) {
        let counts = &self.counts[operation];
        counts.took.observe(took);
        counts.done.fetch_add(1, Ordering::Relaxed);
        if failed {
            counts.failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The name of one.
    pub fn name(&self, operation: usize) -> &'static str {
        self.names[operation]
    }

    /// How often one was answered, with or without an error.
    pub fn done(&self, operation: usize) -> u64 {
        self.counts[operation].done.load(Ordering::Relaxed)
    }

    /// How often one was answered with an error.
    pub fn failed(&self, operation: usize) -> u64 {
        self.counts[operation].failed.load(Ordering::Relaxed)
    }

    /// Writes `ROLE_operations_total` and `ROLE_operation_seconds`. Operations that never ran are counted as 0, and
    /// have no histogram yet.
    pub fn collect(&self, page: &mut Page, role: &str, what: &str) {
        let name = format!("{role}_operations_total");
        page.family(Kind::Counter, &name, what);
        let all = || self.names.iter().enumerate();
        for (at, op) in all() {
            let failed = self.failed(at);
            // Read one after the other, so more may have failed than were done before.
            let ok = self.done(at).saturating_sub(failed);
            page.sample(&name, &[("op", op), ("outcome", "ok")], ok);
            page.sample(&name, &[("op", op), ("outcome", "error")], failed);
        }
        let name = format!("{role}_operation_seconds");
        page.histogram(&name, "Time from a request to its answer, waiting included");
        for (at, op) in all().filter(|(at, _)| self.done(*at) > 0) {
            page.buckets(&name, &[("op", op)], &self.counts[at].took);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_no_success_and_both_have_a_latency() {
        let operations = Operations::new(&["read", "write"]);
        operations.count(0, false, Duration::from_millis(3));
        operations.count(0, true, Duration::from_millis(3));
        let mut page = Page::default();
        operations.collect(&mut page, "lumeofs_x", "Requests");
        let text = page.into_text();
        for line in [
            "lumeofs_x_operations_total{op=\"read\",outcome=\"ok\"} 1\n",
            "lumeofs_x_operations_total{op=\"read\",outcome=\"error\"} 1\n",
            "lumeofs_x_operations_total{op=\"write\",outcome=\"ok\"} 0\n",
            "lumeofs_x_operation_seconds_bucket{op=\"read\",le=\"0.002\"} 0\n",
            "lumeofs_x_operation_seconds_bucket{op=\"read\",le=\"0.005\"} 2\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert!(!text.contains("_seconds_bucket{op=\"write\""), "{text}");
    }
}
