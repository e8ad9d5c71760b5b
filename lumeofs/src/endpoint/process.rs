//! What every process tells of itself, under the names that Prometheus's own libraries use.

use lumeofs_base::clock::{Clock as _, SystemClock};
use lumeofs_base::metrics::{Kind, Page};
use lumeofs_base::slow;
use std::sync::OnceLock;

/// Adds memory, threads, open files, processor time, start time and version.
pub(super) fn collect(page: &mut Page) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    for (field, unit, name, help) in [
        (
            "VmRSS:",
            1024,
            "process_resident_memory_bytes",
            "Memory in use",
        ),
        (
            "VmSize:",
            1024,
            "process_virtual_memory_bytes",
            "Address space in use",
        ),
        ("Threads:", 1, "process_threads", "Threads"),
    ] {
        // Left out rather than shown as 0 where the kernel does not tell.
        if let Some(number) = field_of(&status, field) {
            page.value(Kind::Gauge, name, help, number * unit);
        }
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        // One of them is this listing itself.
        let open = open.count().saturating_sub(1);
        page.value(
            Kind::Gauge,
            "process_open_fds",
            "Open files and sockets",
            open,
        );
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if let Some(most) = limit.current {
        page.value(
            Kind::Gauge,
            "process_max_fds",
            "Most files it may open",
            most,
        );
    }
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let seconds = time.tv_sec as f64 + time.tv_nsec as f64 / 1e9;
    let help = "Processor time used, in seconds";
    page.value(Kind::Counter, "process_cpu_seconds_total", help, seconds);
    let help = "When the process began to serve metrics, in seconds since 1970";
    page.value(
        Kind::Gauge,
        "process_start_time_seconds",
        help,
        start_time(),
    );
    let now = SystemClock.wall();
    let now = now.secs as f64 + f64::from(now.nanos) / 1e9;
    let help =
        "The machine's wall clock, in seconds since 1970: to be compared with that of others";
    page.value(Kind::Gauge, "lumeofs_clock_seconds", help, now);
    let help = "What counts as a slow operation, which is logged";
    let slow = slow::threshold().as_secs_f64();
    page.value(Kind::Gauge, "lumeofs_slow_threshold_seconds", help, slow);
    page.family(
        Kind::Gauge,
        "lumeofs_build_info",
        "Always 1; the version is a label",
    );
    let version = env!("CARGO_PKG_VERSION");
    page.sample("lumeofs_build_info", &[("version", version)], 1);
}

/// The first call fixes it.
pub(super) fn start_time() -> i64 {
    static START: OnceLock<i64> = OnceLock::new();
    *START.get_or_init(|| SystemClock.wall().secs)
}

fn field_of(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.split_whitespace().next()?.parse().ok()
}
