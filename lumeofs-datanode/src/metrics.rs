//! What a datanode tells Prometheus: read when asked from what is there anyway.

mod requests;

pub(crate) use requests::{Asked, Requests};

use crate::group::Caller;
use crate::node::Node;
use crate::store::ChunkStore;
use lumeofs_base::clock::Clock as _;
use lumeofs_base::metrics::{Kind, Page};
use lumeofs_replica::Role;
use std::sync::Weak;
use std::sync::atomic::{AtomicU64, Ordering};

const ROLES: [Role; 5] = [
    Role::Primary,
    Role::Reconciling,
    Role::Secondary,
    Role::Joining,
    Role::OutOfSync,
];

/// What a running datanode counts and knows. Keeps nothing of it alive.
pub struct Metrics(pub(crate) Weak<Node>);

impl Metrics {
    /// Writes all of it to `page`.
    pub fn collect(&self, page: &mut Page) {
        if let Some(node) = self.0.upgrade() {
            of_requests(page, &node.requests);
            of_groups(page, &node);
            of_disks(page, &node);
        }
    }
}

fn of_requests(page: &mut Page, requests: &Requests) {
    let what = "Requests answered by kind; replication apart";
    requests.operations.collect(page, "lumeofs_datanode", what);
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let counters = [
        (
            "lumeofs_datanode_slow_operations_total",
            "Requests that took as long as what counts as slow",
            requests.slow.seen(),
        ),
        (
            "lumeofs_datanode_read_bytes_total",
            "Bytes that reads returned",
            read(&requests.read_bytes),
        ),
        (
            "lumeofs_datanode_written_bytes_total",
            "Bytes that writes brought, replication apart",
            read(&requests.written_bytes),
        ),
        (
            "lumeofs_datanode_range_copied_bytes_total",
            "Bytes that were written to chunks from other chunks, without a client that carries them; replication apart",
            read(&requests.copied_bytes),
        ),
        (
            "lumeofs_datanode_forwarded_total",
            "Requests that came to a secondary and were handed on to the primary",
            read(&requests.forwarded),
        ),
        (
            "lumeofs_datanode_copied_out_bytes_total",
            "Bytes sent to catch members up",
            read(&requests.copied_out_bytes),
        ),
        (
            "lumeofs_datanode_copied_in_bytes_total",
            "Bytes by which members here were caught up",
            read(&requests.copied_in_bytes),
        ),
    ];
    for (name, help, value) in counters {
        page.value(Kind::Counter, name, help, value);
    }
}

fn of_groups(page: &mut Page, node: &Node) {
    let now = node.clock.monotonic();
    let groups = node.groups();
    let (mut roles, mut unsynced, mut catch_ups, mut without_lease) = ([0; ROLES.len()], 0, 0, 0);
    let (mut queued, mut chunks) = (0, 0);
    let mut lease_left = None;
    for driver in &groups {
        let (state, catching) =
            driver.with(Caller::Quick, |core, _| (core.state(now), core.catch_ups()));
        if let Some(at) = ROLES.iter().position(|role| *role == state.role) {
            roles[at] += 1;
        }
        unsynced += state
            .last
            .sequence
            .get()
            .saturating_sub(state.durable.get());
        catch_ups += catching.len();
        queued += driver.work.len();
        chunks += driver.store.count(driver.id, None);
        if matches!(state.role, Role::Primary | Role::Secondary) {
            without_lease += usize::from(state.lease_left.is_zero());
            let left = lease_left.map_or(state.lease_left, |least| state.lease_left.min(least));
            lease_left = Some(left);
        }
    }
    let name = "lumeofs_datanode_groups";
    page.family(Kind::Gauge, name, "Members of replica groups here, by role");
    for (role, count) in ROLES.iter().zip(roles) {
        page.sample(name, &[("role", role.name())], count);
    }
    let gauges = [
        (
            "lumeofs_datanode_groups_without_lease",
            "Primaries and secondaries here whose lease to serve or read is over",
            without_lease as u64,
        ),
        (
            "lumeofs_datanode_unsynced_operations",
            "Operations of all members that are not on disk here",
            unsynced,
        ),
        (
            "lumeofs_datanode_queued_operations",
            "Operations that wait for the store",
            queued as u64,
        ),
        (
            "lumeofs_datanode_catch_ups",
            "Members elsewhere that primaries here catch up",
            catch_ups as u64,
        ),
        ("lumeofs_datanode_chunks", "Chunks stored", chunks),
        (
            "lumeofs_datanode_connections",
            "Open connections from clients, masters and datanodes",
            node.connections() as u64,
        ),
    ];
    for (name, help, value) in gauges {
        page.value(Kind::Gauge, name, help, value);
    }
    let name = "lumeofs_datanode_lease_left_seconds";
    page.family(
        Kind::Gauge,
        name,
        "Shortest lease that a primary or secondary here has left",
    );
    if let Some(left) = lease_left {
        page.sample(name, &[], left.as_secs_f64());
    }
}

type Figure = (Kind, &'static str, &'static str, fn(&ChunkStore) -> f64);

const OF_STORE: [Figure; 6] = [
    (
        Kind::Gauge,
        "capacity_bytes",
        "Bytes that the disk can store",
        |store| store.space().0 as f64,
    ),
    (
        Kind::Gauge,
        "free_bytes",
        "Bytes of these that are free",
        |store| store.space().1 as f64,
    ),
    (
        Kind::Gauge,
        "stalled_seconds",
        "How long the disk has been at the oldest thing asked of it",
        |store| store.stalled_for().map_or(0.0, |time| time.as_secs_f64()),
    ),
    (
        Kind::Counter,
        "damaged_blocks_total",
        "Blocks read that did not match their checksum",
        |store| store.damaged_blocks() as f64,
    ),
    (
        Kind::Gauge,
        "unmerged_bytes",
        "Bytes that only the log and memory have yet",
        |store| store.unmerged_bytes() as f64,
    ),
    (
        Kind::Gauge,
        "queued_log_bytes",
        "Bytes that wait for the log",
        |store| store.queued_log_bytes() as f64,
    ),
];

fn of_disks(page: &mut Page, node: &Node) {
    let disks: Vec<_> = node
        .disks()
        .map(|(dir, store)| (dir.display().to_string(), store))
        .collect();
    let name = "lumeofs_datanode_disk_ok";
    page.family(
        Kind::Gauge,
        name,
        "1 if the disk of a data directory is used, 0 if it fails or hangs",
    );
    for (dir, store) in &disks {
        let ok = store.is_some_and(|store| store.check().is_ok());
        page.sample(name, &[("disk", dir)], u8::from(ok));
    }
    let used = || {
        disks
            .iter()
            .filter_map(|(dir, store)| Some((dir, (*store)?)))
    };
    for (kind, what, help, value) in OF_STORE {
        let name = format!("lumeofs_datanode_disk_{what}");
        page.family(kind, &name, help);
        for (dir, store) in used() {
            page.sample(&name, &[("disk", dir)], value(store));
        }
    }
    let logs: Vec<_> = used().map(|(dir, store)| (&**dir, store.wal())).collect();
    lumeofs_wal::collect(page, "lumeofs_datanode", "disk", &logs);
}
