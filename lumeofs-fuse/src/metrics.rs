//! What a mount tells Prometheus.

mod caches;

use crate::backend::Backend;
use crate::stats::Stats;
use lumeofs_base::metrics::{Kind, Page};
use std::sync::Arc;

/// What a mount counts and knows.
#[derive(Clone)]
pub struct Metrics {
    pub(crate) stats: Arc<Stats>,
    pub(crate) backend: Arc<dyn Backend>,
}

impl Metrics {
    /// Writes all of it to `page`.
    pub fn collect(&self, page: &mut Page) {
        self.stats.collect(page);
        let name = "lumeofs_mount_leader_silence_seconds";
        let help = "Time since a leader of the metadata group answered";
        let silence = self.backend.silence().as_secs_f64();
        page.value(Kind::Gauge, name, help, silence);
        let name = "lumeofs_mount_sessions_lost_total";
        let help = "Sessions of this mount that the cluster has ended";
        page.value(Kind::Counter, name, help, self.backend.lost_sessions());
        let late_page_drops = self.backend.late_page_drops();
        caches::collect_leases(page, &self.backend.lease_stats(), late_page_drops);
        caches::collect_data(page, &self.backend.cache_stats());
    }
}

impl Stats {
    fn collect(&self, page: &mut Page) {
        let what = "Kernel requests answered; outcome error includes such as no such file";
        self.operations.collect(page, "lumeofs_mount", what);
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
                "lumeofs_mount_copied_bytes_total",
                "Bytes that copy_file_range had copied among the datanodes",
                self.bytes_copied(),
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
            (
                "lumeofs_mount_slow_operations_total",
                "Requests that took as long as what counts as slow",
                self.slow.seen(),
            ),
        ];
        for (name, help, value) in counters {
            page.value(Kind::Counter, name, help, value);
        }
        let name = "lumeofs_mount_operations_in_progress";
        let help = "Kernel requests that are not answered yet";
        page.value(Kind::Gauge, name, help, self.in_progress());
        let name = "lumeofs_mount_inode_references";
        let help = "References that the kernel holds to inodes";
        page.value(Kind::Gauge, name, help, self.references());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Op;
    use std::time::Duration;

    #[test]
    fn what_was_counted_is_on_the_page() {
        let stats = Stats::default();
        stats.begin();
        stats.begin();
        stats.count(Op::Read, true, Duration::from_millis(3));
        stats.add_read(4096);
        let mut page = Page::default();
        stats.collect(&mut page);
        let text = page.into_text();
        for line in [
            "lumeofs_mount_operations_total{op=\"read\",outcome=\"error\"} 1\n",
            "lumeofs_mount_operation_seconds_count{op=\"read\"} 1\n",
            "lumeofs_mount_operations_in_progress 1\n",
            "lumeofs_mount_read_bytes_total 4096\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
