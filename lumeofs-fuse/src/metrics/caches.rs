//! What a mount has in memory, and what that spares.

use lumeofs_base::metrics::{Kind, Page};
use lumeofs_client::{CacheStats, LeaseStats};

/// Leases, and questions that they answer.
pub(super) fn collect_leases(page: &mut Page, stats: &LeaseStats, late_page_drops: u64) {
    let name = "lumeofs_mount_queries_total";
    let help = "Questions about the namespace, and opens of files, by who answered";
    page.family(Kind::Counter, name, help);
    for lookups in stats.queries.iter().chain([&stats.opens]) {
        let kind = lookups.kind;
        page.sample(
            name,
            &[("kind", kind), ("from", "memory")],
            lookups.from_memory,
        );
        page.sample(name, &[("kind", kind), ("from", "leader")], lookups.asked);
    }
    let name = "lumeofs_mount_leases";
    page.value(Kind::Gauge, name, "Inodes with a lease", stats.leases);
    let name = "lumeofs_mount_leases_valid";
    let help = "Whether the leader was heard of so lately that leases count";
    page.value(Kind::Gauge, name, help, u8::from(stats.is_valid));
    let name = "lumeofs_mount_lease_lapses_total";
    let help = "How often leases stopped to count as nothing was heard of the leader";
    page.value(Kind::Counter, name, help, stats.lapses);
    let polls = &stats.polls;
    let name = "lumeofs_mount_polls_total";
    page.family(
        Kind::Counter,
        name,
        "Polls of the leader, which keep the leases",
    );
    page.sample(name, &[("outcome", "ok")], polls.answered);
    page.sample(name, &[("outcome", "error")], polls.failed);
    let name = "lumeofs_mount_recalls_total";
    let help = "What the leader told of changes by others, and leases that it wanted back";
    page.family(Kind::Counter, name, help);
    for (about, count) in [
        ("attr", polls.attributes),
        ("name", polls.names),
        ("xattr", polls.xattrs),
        ("drop", polls.drops),
        ("downgrade", polls.downgrades),
    ] {
        page.sample(name, &[("about", about)], count);
    }
    let name = "lumeofs_mount_write_leases_given_back_total";
    let help = "Write leases that the leader wanted back and got";
    page.value(Kind::Counter, name, help, stats.given_back.count);
    let name = "lumeofs_mount_write_leases_give_back_seconds_total";
    let help = "Time that giving them back took, in all";
    let seconds = stats.given_back.time.as_secs_f64();
    page.value(Kind::Counter, name, help, seconds);
    let name = "lumeofs_mount_page_drops_late_total";
    let help = "How often others went on before the kernel had dropped pages that they had changed";
    page.value(Kind::Counter, name, help, late_page_drops);
    let name = "lumeofs_mount_finished_later_total";
    let help = "Changes that went on after their callers had given up";
    page.value(Kind::Counter, name, help, stats.finished_later);
    let name = "lumeofs_mount_made_total";
    let help =
        "Files, directories and symlinks that were made in memory and told to the leader since";
    page.value(Kind::Counter, name, help, stats.made);
    let name = "lumeofs_mount_made_requests_total";
    let help = "Requests by which the leader was told of them";
    page.value(Kind::Counter, name, help, stats.made_requests);
}

/// File data.
pub(super) fn collect_data(page: &mut Page, stats: &CacheStats) {
    for (name, help, value) in [
        (
            "lumeofs_mount_cache_memory_bytes",
            "Memory of cached file data",
            stats.memory_bytes,
        ),
        (
            "lumeofs_mount_cache_dirty_bytes",
            "Bytes that were written and are not with the datanodes yet",
            stats.dirty_bytes,
        ),
    ] {
        page.value(Kind::Gauge, name, help, value);
    }
    for (name, help, value) in [
        (
            "lumeofs_mount_cache_hit_bytes_total",
            "Bytes that reads found in memory",
            stats.hit_bytes,
        ),
        (
            "lumeofs_mount_cache_missed_bytes_total",
            "Bytes that reads fetched or waited for",
            stats.missed_bytes,
        ),
        (
            "lumeofs_mount_read_ahead_bytes_total",
            "Bytes that were read ahead",
            stats.ahead_bytes,
        ),
        (
            "lumeofs_mount_read_ahead_used_bytes_total",
            "Those of them that were asked for later",
            stats.ahead_used_bytes,
        ),
        (
            "lumeofs_mount_read_ahead_wasted_bytes_total",
            "Those of them that were dropped before",
            stats.ahead_wasted_bytes,
        ),
        (
            "lumeofs_mount_written_behind_bytes_total",
            "Bytes that were sent to datanodes after write had returned",
            stats.written_bytes,
        ),
        (
            "lumeofs_mount_publications_total",
            "Sizes and times that were published after such writes",
            stats.publications,
        ),
    ] {
        page.value(Kind::Counter, name, help, value);
    }
}
