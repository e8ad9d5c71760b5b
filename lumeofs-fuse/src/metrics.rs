//! What a mount tells Prometheus.

use crate::stats::{Op, Stats};
use lumeofs_base::metrics::{Kind, Page};

impl Stats {
    /// Writes all of it to `page`.
    pub fn collect(&self, page: &mut Page) {
        let name = "lumeofs_mount_operations_total";
        let help = "Kernel requests answered; outcome error includes such as no such file";
        page.family(Kind::Counter, name, help);
        for &op in Op::ALL {
            let failed = self.failed(op);
            // Read one after the other, so more may have failed than were done before.
            let ok = self.done(op).saturating_sub(failed);
            page.sample(name, &[("op", op.name()), ("outcome", "ok")], ok);
            page.sample(name, &[("op", op.name()), ("outcome", "error")], failed);
        }
        let name = "lumeofs_mount_operation_seconds";
        page.histogram(
            name,
            "Time from a kernel request to its answer, waiting included",
        );
        for &op in Op::ALL {
            page.buckets(name, &[("op", op.name())], self.took(op));
        }
        let counters = [
            (
                "lumeofs_mount_read_bytes_total",
                "Bytes that reads returned",
                self.bytes_read(),
            ),
            (
                "lumeofs_mount_written_bytes_total",
                "Bytes that writes took",
                self.bytes_written(),
            ),
            (
                "lumeofs_mount_handed_over_total",
                "Requests that the last free thread handed over",
                self.handed_over(),
            ),
            (
                "lumeofs_mount_overloaded_total",
                "Requests that the last free thread ran itself, as too many waited",
                self.overloaded(),
            ),
        ];
        for (name, help, value) in counters {
            page.value(Kind::Counter, name, help, value);
        }
        let name = "lumeofs_mount_inode_references";
        let help = "References that the kernel holds to inodes";
        page.value(Kind::Gauge, name, help, self.references());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_failure_is_no_success_and_both_have_a_latency() {
        let stats = Stats::default();
        stats.count(Op::Read, false, Duration::from_millis(3));
        stats.count(Op::Read, true, Duration::from_millis(3));
        stats.add_read(4096);
        let mut page = Page::default();
        stats.collect(&mut page);
        let text = page.into_text();
        for line in [
            "lumeofs_mount_operations_total{op=\"read\",outcome=\"ok\"} 1\n",
            "lumeofs_mount_operations_total{op=\"read\",outcome=\"error\"} 1\n",
            "lumeofs_mount_operation_seconds_bucket{op=\"read\",le=\"0.002\"} 0\n",
            "lumeofs_mount_operation_seconds_bucket{op=\"read\",le=\"0.005\"} 2\n",
            "lumeofs_mount_read_bytes_total 4096\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
