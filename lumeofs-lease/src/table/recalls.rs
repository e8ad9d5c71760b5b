//! Recalls: made, acknowledged, or given up when a term is over.

use super::sessions::Standing;
use super::{Effect, Pending, Table};
use crate::wire::{Ack, Kind, Recall, What};
use crate::{GIVE_BACK_MAX, TERM};
use lumeofs_base::{InodeId, SessionId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::time::Duration;

/// How long the driver has to end a session before it is told once more.
const END_AGAIN: Duration = Duration::from_secs(2);
/// Durations that are kept for whoever asks.
const DURATIONS_MAX: usize = 4096;

/// What had been told and not acknowledged at some moment: see [`Table::is_heard`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unheard {
    /// What was told later does not belong to it.
    up_to: u64,
    /// Of these inodes; otherwise of all.
    of: Option<Vec<InodeId>>,
}

impl Table {
    /// Makes a recall.
    pub(super) fn recall(
        &mut self,
        now: Duration,
        session: SessionId,
        ino: InodeId,
        what: What,
        is_alone: bool,
    ) {
        self.last += 1;
        let id = self.last;
        let tells = !what.takes();
        let leases = self.inodes.entry(ino).or_default();
        if tells {
            leases.telling.insert(id);
            self.telling.insert(id);
        } else {
            leases.taking.insert((session, id));
        }
        if let Some(standing) = self.sessions.get_mut(&session) {
            standing.recalls.insert(id);
            standing.telling += usize::from(tells);
        }
        let recall = Recall {
            id,
            ino,
            what,
            is_alone,
        };
        let pending = Pending {
            session,
            recall,
            made: now,
        };
        self.recalls.insert(id, pending);
    }

    /// Makes a recall of a whole lease unless there is one already that takes at least as much.
    pub(super) fn recall_once(
        &mut self,
        now: Duration,
        session: SessionId,
        ino: InodeId,
        what: What,
    ) {
        if !self.is_recalled(session, ino, &what) {
            self.recall(now, session, ino, what, true);
        }
    }

    /// Whether a lease is recalled already with at least as much.
    fn is_recalled(&self, session: SessionId, ino: InodeId, what: &What) -> bool {
        let leases = self.inodes.get(&ino).into_iter();
        let mut taking = leases.flat_map(|leases| leases.taking_of(session));
        taking.any(|id| {
            matches!(
                (&self.recalls[&id].recall.what, what),
                (What::Drop, _) | (What::Downgrade, What::Downgrade)
            )
        })
    }

    /// Whether some session, be it the one that asks, has not acknowledged yet what an inode is like now.
    pub fn is_unheard(&self, ino: InodeId) -> bool {
        let leases = self.inodes.get(&ino);
        leases.is_some_and(|leases| !leases.telling.is_empty())
    }

    /// What was told of these inodes and not acknowledged yet.
    pub fn unheard_of(&self, inodes: impl IntoIterator<Item = InodeId>) -> Unheard {
        let inodes = inodes.into_iter().filter(|ino| self.is_unheard(*ino));
        Unheard {
            up_to: self.last,
            of: Some(inodes.collect()),
        }
    }

    /// All that was told and not acknowledged yet: what a reply that may show any change must wait for. It does not wait for
    /// leases that are being given back, as it may be a part of that.
    pub fn unheard(&self) -> Unheard {
        Unheard {
            up_to: self.last,
            of: None,
        }
    }

    /// Whether it is acknowledged by now. What was told later does not matter.
    pub fn is_heard(&self, unheard: &Unheard) -> bool {
        let is_past = |telling: &BTreeSet<u64>| {
            let first = telling.first();
            first.is_none_or(|first| *first > unheard.up_to)
        };
        let is_heard = |ino: &InodeId| {
            let leases = self.inodes.get(ino);
            leases.is_none_or(|leases| is_past(&leases.telling))
        };
        match &unheard.of {
            Some(inodes) => inodes.iter().all(is_heard),
            None => is_past(&self.telling),
        }
    }

    /// Enters an acknowledgement that came at `now`. Returns the inode if it is open there and that must be remembered
    /// from now on: it has no name any more, or the session no lease by which it would hear of that.
    pub(super) fn acknowledge(
        &mut self,
        now: Duration,
        session: SessionId,
        ack: Ack,
    ) -> Option<InodeId> {
        let pending = self.recalls.get(&ack.id)?;
        if pending.session != session {
            return None;
        }
        if self.took.len() < DURATIONS_MAX {
            let took = now.saturating_sub(pending.made);
            self.took.push((pending.recall.what.name(), took));
        }
        let recall = self.settle(ack.id)?;
        match recall.what {
            What::Drop => {
                self.settle_taken(session, recall.ino, ack.id);
                self.remove(session, recall.ino);
                return ack.open.then_some(recall.ino);
            }
            // A session that does not take part has no shared leases.
            What::Downgrade if !self.takes_part(session) => self.remove(session, recall.ino),
            What::Downgrade => self.keep_shared(session, recall.ino),
            What::Attr(attr) => return (attr.nlink == 0 && ack.open).then_some(recall.ino),
            What::Name { .. } | What::Xattr => {}
        }
        None
    }

    /// Leaves a session a shared lease of what it has.
    pub(super) fn keep_shared(&mut self, session: SessionId, ino: InodeId) {
        let leases = self.inodes.get_mut(&ino);
        let own =
            leases.and_then(|leases| leases.held.iter_mut().find(|own| own.session == session));
        if let Some(own) = own {
            self.tally
                .take(std::mem::replace(&mut own.kind, Kind::Shared));
            self.tally.add(Kind::Shared);
        }
    }

    /// Forgets a recall.
    pub(super) fn settle(&mut self, id: u64) -> Option<Recall> {
        let pending = self.recalls.remove(&id)?;
        if let Some(leases) = self.inodes.get_mut(&pending.recall.ino) {
            leases.telling.remove(&id);
            leases.taking.remove(&(pending.session, id));
        }
        let told = self.telling.remove(&id);
        if let Some(standing) = self.sessions.get_mut(&pending.session) {
            standing.recalls.remove(&id);
            standing.telling -= usize::from(told);
        }
        self.tidy(pending.recall.ino);
        Some(pending.recall)
    }

    /// Forgets recalls of a lease that one with number `id`, which was done, includes: a holder acknowledges the last.
    fn settle_taken(&mut self, session: SessionId, ino: InodeId, id: u64) {
        let Some(leases) = self.inodes.get(&ino) else {
            return;
        };
        let taking = leases.taking_of(session);
        let included: Vec<u64> = taking.take_while(|other| *other < id).collect();
        for id in included {
            self.settle(id);
        }
    }

    /// What time has brought. To be called at least every 100 ms.
    pub fn tick(&mut self, now: Duration) -> Vec<Effect> {
        let mut effects = self.close_window(now);
        let is_late = |standing: &Standing| {
            let is_silent = now >= standing.heard + TERM;
            match standing.recalls.first() {
                Some(first) => is_silent || now >= self.recalls[first].made + GIVE_BACK_MAX,
                // Nobody waits for it, but others lack the room that its leases take.
                None => is_silent && standing.takes_part && self.runs_short(),
            }
        };
        let sessions = self.sessions.iter();
        let late: Vec<SessionId> = sessions
            .filter(|(_, standing)| is_late(standing))
            .map(|(session, _)| *session)
            .collect();
        for session in late {
            let is_silent = now >= self.sessions[&session].heard + TERM;
            if self.must_end(now, session, is_silent) {
                let standing = self.sessions.get_mut(&session).expect("just found");
                if standing
                    .end_asked
                    .is_none_or(|asked| now >= asked + END_AGAIN)
                {
                    standing.end_asked = Some(now);
                    effects.push(Effect::End(session));
                }
            }
            if is_silent && self.takes_part(session) {
                // Others have waited long enough: its shared leases are void.
                self.begin_generation(now, session);
                effects.push(Effect::Restate(session));
            }
        }
        self.sweep(now);
        self.share_room();
        effects
    }

    /// Whether a write lease is wanted back from a session that does not give it.
    fn must_end(&self, now: Duration, session: SessionId, is_silent: bool) -> bool {
        let mut recalls = self.sessions[&session].recalls.iter();
        recalls.any(|id| {
            let pending = &self.recalls[id];
            pending.recall.what.takes()
                && self.has_write_lease(session, pending.recall.ino)
                && (is_silent || now >= pending.made + GIVE_BACK_MAX)
        })
    }

    /// Takes the shared leases of a session away, and what it has not acknowledged apart from write leases that are wanted
    /// back: it begins anew, and what it shows of a file then it asks for.
    pub(super) fn withdraw_shared(&mut self, session: SessionId) {
        let Some(standing) = self.sessions.get(&session) else {
            return;
        };
        let recalls: Vec<u64> = standing.recalls.iter().copied().collect();
        let inodes: Vec<InodeId> = standing.inodes.iter().copied().collect();
        for id in recalls {
            let recall = &self.recalls[&id].recall;
            if !recall.what.takes() || !self.has_write_lease(session, recall.ino) {
                self.settle(id);
            }
        }
        for ino in inodes {
            if !self.has_write_lease(session, ino) {
                self.remove(session, ino);
            }
        }
    }

    fn kind_of(&self, session: SessionId, ino: InodeId) -> Option<Kind> {
        let own = self.inodes.get(&ino)?.of(session)?;
        Some(own.kind)
    }

    pub(super) fn has_lease(&self, session: SessionId, ino: InodeId) -> bool {
        self.kind_of(session, ino).is_some()
    }

    pub(super) fn has_write_lease(&self, session: SessionId, ino: InodeId) -> bool {
        self.kind_of(session, ino).is_some_and(Kind::writes)
    }
}
