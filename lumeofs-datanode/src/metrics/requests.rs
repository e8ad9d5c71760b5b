//! The requests that a datanode answers: counted by kind, and logged by the name that their client gave them.

use lumeofs_base::metrics::Operations;
use lumeofs_base::slow::SlowLog;
use lumeofs_base::{FsError, RequestId};
use lumeofs_proto::auth::Peer;
use lumeofs_proto::data::ChunkRequest;
use lumeofs_proto::frame::{Fixed, Op};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

static NAMES: [&str; 13] = [
    "write",
    "read",
    "zero",
    "truncate",
    "delete",
    "sync",
    "extents",
    "fence",
    "group_state",
    "fetch",
    "scrub",
    "copy",
    "unknown",
];

fn kind(op: Op) -> usize {
    match op {
        Op::Write => 0,
        Op::Read => 1,
        Op::Zero => 2,
        Op::Truncate => 3,
        Op::Delete => 4,
        Op::Sync => 5,
        Op::Extents => 6,
        Op::Fence => 7,
        Op::GroupState => 8,
        Op::Fetch => 9,
        Op::Scrub => 10,
        Op::Copy => 11,
        _ => NAMES.len() - 1,
    }
}

/// What a log line says of a request besides its name.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Asked {
    group: u32,
    chunk: u64,
    session: u64,
}

impl From<&ChunkRequest> for Asked {
    fn from(asked: &ChunkRequest) -> Self {
        Self {
            group: asked.group,
            chunk: asked.chunk,
            session: asked.session,
        }
    }
}

/// All requests since the start, and the bytes that went by.
#[derive(Debug)]
pub(crate) struct Requests {
    pub(super) operations: Operations,
    pub(super) slow: SlowLog,
    pub(super) read_bytes: AtomicU64,
    pub(super) written_bytes: AtomicU64,
    pub(super) copied_bytes: AtomicU64,
    pub(super) forwarded: AtomicU64,
    pub(super) copied_out_bytes: AtomicU64,
    pub(super) copied_in_bytes: AtomicU64,
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            operations: Operations::new(&NAMES),
            slow: SlowLog::default(),
            read_bytes: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
            copied_bytes: AtomicU64::new(0),
            forwarded: AtomicU64::new(0),
            copied_out_bytes: AtomicU64::new(0),
            copied_in_bytes: AtomicU64::new(0),
        }
    }
}

impl Requests {
    /// Data that a reply carries.
    pub(crate) fn add_read(&self, bytes: usize) {
        add(&self.read_bytes, bytes);
    }

    /// Data that a request carried.
    pub(crate) fn add_written(&self, bytes: usize) {
        add(&self.written_bytes, bytes);
    }

    /// Data that was read from another chunk to be written.
    pub(crate) fn add_copied(&self, bytes: usize) {
        add(&self.copied_bytes, bytes);
    }

    /// A request came to a secondary and was handed on to the primary.
    pub(crate) fn count_forwarded(&self) {
        add(&self.forwarded, 1);
    }

    /// Data that was sent to catch a member up.
    pub(crate) fn add_copied_out(&self, bytes: usize) {
        add(&self.copied_out_bytes, bytes);
    }

    /// Data by which a member here was caught up.
    pub(crate) fn add_copied_in(&self, bytes: usize) {
        add(&self.copied_in_bytes, bytes);
    }

    /// A request was answered, or could not be.
    pub(crate) fn done(
        &self,
        fixed: &Fixed,
        asked: Asked,
        peer: Peer,
        took: Duration,
        error: Option<&FsError>,
    ) {
        let kind = kind(fixed.op);
        self.operations.count(kind, error.is_some(), took);
        let (request, op) = (RequestId(fixed.request), self.operations.name(kind));
        let Asked {
            group,
            chunk,
            session,
        } = asked;
        let took_ms = took.as_millis() as u64;
        let error = error.map(tracing::field::display);
        match self.slow.tell(took) {
            Some(held_back) => tracing::info!(
                %request, op, group, chunk, session, ?peer, took_ms, held_back, error, "slow operation"
            ),
            None => tracing::debug!(
                %request, op, group, chunk, session, ?peer, took_ms, error, "operation"
            ),
        }
    }
}

fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(count as u64, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_has_the_name_of_its_operation() {
        let named = [
            (Op::Write, "write"),
            (Op::Read, "read"),
            (Op::Zero, "zero"),
            (Op::Truncate, "truncate"),
            (Op::Delete, "delete"),
            (Op::Sync, "sync"),
            (Op::Extents, "extents"),
            (Op::Fence, "fence"),
            (Op::GroupState, "group_state"),
            (Op::Copy, "copy"),
            (Op::Query, "unknown"),
        ];
        for (op, name) in named {
            assert_eq!(NAMES[kind(op)], name);
        }
    }
}
