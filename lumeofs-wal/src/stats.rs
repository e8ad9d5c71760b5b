//! What a log has written: each write is durable when it returns, so it is a sync as well.

use crate::Wal;
use lumeofs_base::metrics::{Histogram, Kind, Page};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counters of a log since it was opened.
#[derive(Debug, Default)]
pub struct WalStats {
    syncs: Histogram,
    bytes: AtomicU64,
}

impl WalStats {
    pub(crate) fn wrote(&self, bytes: usize, took: Duration) {
        self.syncs.observe(took);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes written, padding included.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// Writes the counters of the logs of a process to `page`: families named for `role`, and for each log its `label`.
pub fn collect(page: &mut Page, role: &str, label: &str, logs: &[(&str, &Wal)]) {
    let name = format!("{role}_wal_sync_seconds");
    page.histogram(&name, "Time of a durable write to the log");
    for (log, wal) in logs {
        page.buckets(&name, &[(label, log)], &wal.stats().syncs);
    }
    let name = format!("{role}_wal_written_bytes_total");
    page.family(Kind::Counter, &name, "Bytes written to the log");
    for (log, wal) in logs {
        page.sample(&name, &[(label, log)], wal.stats().bytes());
    }
    let name = format!("{role}_wal_bytes");
    page.family(Kind::Gauge, &name, "Bytes of the log that are kept");
    for (log, wal) in logs {
        page.sample(&name, &[(label, log)], wal.size_bytes());
    }
}
