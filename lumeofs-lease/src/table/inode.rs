//! The rights on one inode, and what was asked or told because of them.

use super::READERS_WAIT;
use crate::CONTENTION;
use crate::wire::Kind;
use lumeofs_base::SessionId;
use std::collections::BTreeSet;
use std::time::Duration;

/// The rights on one inode.
#[derive(Debug, Default)]
pub(super) struct Leases {
    pub(super) held: Vec<Lease>,
    /// Recalls that tell what it is like now, and were not acknowledged.
    pub(super) telling: BTreeSet<u64>,
    /// Recalls of leases on it that were not acknowledged, with whose those are.
    pub(super) taking: BTreeSet<(SessionId, u64)>,
    /// Who wrote last, and when it asked for that.
    pub(super) writer: Option<(SessionId, Duration)>,
    /// Until then writers share the right.
    pub(super) contended_until: Duration,
    /// Since when queries wait until all have heard of changes, and when one asked last.
    pub(super) readers: Option<(Duration, Duration)>,
    /// Who has changes of it under way: nobody else begins to write meanwhile.
    pub(super) changers: Vec<SessionId>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Lease {
    pub(super) session: SessionId,
    pub(super) kind: Kind,
    pub(super) number: u64,
    /// When it was asked for last.
    pub(super) asked: Duration,
}

impl Leases {
    pub(super) fn of(&self, session: SessionId) -> Option<&Lease> {
        self.held.iter().find(|lease| lease.session == session)
    }

    /// Recalls of a session's lease, in the order of their numbers.
    pub(super) fn taking_of(&self, session: SessionId) -> impl Iterator<Item = u64> {
        let all = (session, 0)..=(session, u64::MAX);
        self.taking.range(all).map(|(_, id)| *id)
    }

    /// Whether queries have waited for so long that changes must wait for them.
    pub(super) fn readers_turn(&self, now: Duration) -> bool {
        self.readers
            .is_some_and(|(since, asked)| now >= since + READERS_WAIT && now < asked + CONTENTION)
    }

    pub(super) fn exclusive_of_another(&self, session: SessionId) -> Option<SessionId> {
        let is_other = |lease: &&Lease| lease.kind == Kind::Exclusive && lease.session != session;
        self.held.iter().find(is_other).map(|lease| lease.session)
    }

    pub(super) fn is_unused(&self, now: Duration) -> bool {
        let remembers = self
            .writer
            .is_some_and(|(_, asked)| now < asked + CONTENTION);
        let is_free = self.held.is_empty()
            && self.telling.is_empty()
            && self.taking.is_empty()
            && self.changers.is_empty();
        is_free && !remembers && now >= self.contended_until
    }
}
