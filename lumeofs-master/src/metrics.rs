//! What a master tells Prometheus: read when asked from what is there anyway.

mod cluster;
mod requests;

pub(crate) use requests::{Asked, Requests};

use crate::raft::Group;
use crate::service::{ControllerService, MetadataService};
use lumeofs_base::metrics::{Kind, Page};
use lumeofs_meta::namespace;
use std::sync::{Arc, Weak};

/// What a running master counts and knows. Keeps nothing of it alive.
pub struct Metrics {
    pub(crate) requests: Arc<Requests>,
    pub(crate) metadata: Weak<MetadataService>,
    pub(crate) controller: Weak<ControllerService>,
}

impl Metrics {
    /// Writes all of it to `page`.
    pub fn collect(&self, page: &mut Page) {
        let what = "Requests answered by kind; outcome error includes such as no such file";
        self.requests
            .operations
            .collect(page, "lumeofs_master", what);
        let name = "lumeofs_master_slow_operations_total";
        let help = "Requests that took as long as what counts as slow";
        page.value(Kind::Counter, name, help, self.requests.slow.seen());
        let (Some(metadata), Some(controller)) =
            (self.metadata.upgrade(), self.controller.upgrade())
        else {
            return;
        };
        Group::collect(page, &[controller.group(), &metadata.group]);
        let queued = [
            ("controller", controller.queued()),
            ("metadata", metadata.proposer.queued()),
        ];
        let name = "lumeofs_master_queued_commands";
        page.family(Kind::Gauge, name, "Commands that wait for their log entry");
        for (group, queued) in queued {
            page.sample(name, &[("group", group)], queued);
        }
        of_disk(page, &metadata);
        of_sessions(page, &metadata);
        let leadership = metadata.group.leadership();
        let term = leadership.map(|leadership| leadership.term);
        metadata.leases.collect(page, term);
        cluster::collect(page, &controller);
    }
}

fn of_disk(page: &mut Page, metadata: &MetadataService) {
    let (total, free, is_short) = metadata.room.space();
    let name = "lumeofs_master_disk_bytes";
    page.value(
        Kind::Gauge,
        name,
        "Size of the disk of the data directory",
        total,
    );
    let name = "lumeofs_master_disk_free_bytes";
    page.value(Kind::Gauge, name, "Free bytes on that disk", free);
    let name = "lumeofs_master_disk_short";
    let help = "1 if these are too few for new files, else 0";
    page.value(Kind::Gauge, name, help, u8::from(is_short));
}

/// Sessions, as far as this master has applied the log.
fn of_sessions(page: &mut Page, metadata: &MetadataService) {
    let (live, ending, fence) = metadata.group.store().read(|tables| {
        (
            namespace::session_ids(tables).len(),
            namespace::ending_sessions(tables).len(),
            namespace::fence(tables).number,
        )
    });
    let gauges = [
        (
            "lumeofs_master_sessions",
            "Sessions of mounts and commands",
            live as u64,
        ),
        (
            "lumeofs_master_sessions_ending",
            "Ended sessions that are not shut out at every replica group yet",
            ending as u64,
        ),
        (
            "lumeofs_master_fence",
            "Number of the newest fence against ended sessions",
            fence,
        ),
    ];
    for (name, help, value) in gauges {
        page.value(Kind::Gauge, name, help, value);
    }
    let name = "lumeofs_master_sessions_ended_total";
    let help =
        "Sessions that this master, leading, ended: for silence, an administrator, a lease kept";
    page.family(Kind::Counter, name, help);
    for (why, count) in metadata.sessions.ended() {
        page.sample(name, &[("why", why)], count);
    }
}
