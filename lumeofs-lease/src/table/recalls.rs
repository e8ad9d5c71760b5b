//! Recalls: made, acknowledged, or given up when a term is over.

use super::{Effect, Pending, Table};
use crate::wire::{Ack, Kind, Recall, What};
use crate::{GIVE_BACK_MAX, TERM};
use lumeofs_base::{InodeId, SessionId};
use std::time::Duration;

/// How long the driver has to end a session before it is told once more.
const END_AGAIN: Duration = Duration::from_secs(2);

impl Table {
    /// Makes a recall.
    pub(super) fn recall(
        &mut self,
        now: Duration,
        session: SessionId,
        ino: InodeId,
        what: What,
    ) -> u64 {
        self.last += 1;
        let id = self.last;
        let recall = Recall { id, ino, what };
        let pending = Pending {
            session,
            recall,
            made: now,
        };
        self.recalls.insert(id, pending);
        self.inodes.entry(ino).or_default().recalls.push(id);
        if let Some(standing) = self.sessions.get_mut(&session) {
            standing.recalls.insert(id);
        }
        id
    }

    /// Makes a recall of a whole lease unless there is one already that takes at least as much.
    pub(super) fn recall_once(
        &mut self,
        now: Duration,
        session: SessionId,
        ino: InodeId,
        what: What,
    ) {
        let recalls = self.inodes.get(&ino).map(|leases| &leases.recalls);
        let is_there = recalls.into_iter().flatten().any(|id| {
            let pending = &self.recalls[id];
            pending.session == session
                && matches!(
                    (&pending.recall.what, &what),
                    (What::Drop, _) | (What::Downgrade, What::Downgrade)
                )
        });
        if !is_there {
            self.recall(now, session, ino, what);
        }
    }

    /// Whether some session, be it the one that asks, has not acknowledged yet what an inode is like now.
    pub(super) fn is_unheard(&self, ino: InodeId) -> bool {
        let recalls = self.inodes.get(&ino).map(|leases| &leases.recalls);
        let mut recalls = recalls.into_iter().flatten();
        recalls.any(|id| !self.recalls[id].recall.what.takes())
    }

    /// Enters an acknowledgement. Returns the inode if it is open there and that must be remembered from now on: it has
    /// no name any more, or the session no lease by which it would hear of that.
    pub(super) fn acknowledge(&mut self, session: SessionId, ack: Ack) -> Option<InodeId> {
        if self.recalls.get(&ack.id)?.session != session {
            return None;
        }
        let recall = self.settle(ack.id)?;
        match recall.what {
            What::Drop => {
                self.remove(session, recall.ino);
                return ack.open.then_some(recall.ino);
            }
            What::Downgrade => {
                let leases = self.inodes.get_mut(&recall.ino)?;
                let own = leases.held.iter_mut().find(|own| own.session == session)?;
                own.kind = Kind::Shared;
            }
            What::Attr(attr) => return (attr.nlink == 0 && ack.open).then_some(recall.ino),
            What::Name { .. } | What::Xattr => {}
        }
        None
    }

    /// Forgets a recall.
    pub(super) fn settle(&mut self, id: u64) -> Option<Recall> {
        let pending = self.recalls.remove(&id)?;
        if let Some(leases) = self.inodes.get_mut(&pending.recall.ino) {
            leases.recalls.retain(|other| *other != id);
        }
        if let Some(standing) = self.sessions.get_mut(&pending.session) {
            standing.recalls.remove(&id);
        }
        Some(pending.recall)
    }

    /// Whether none of these recalls is outstanding.
    pub fn is_settled(&self, recalls: &[u64]) -> bool {
        recalls.iter().all(|id| !self.recalls.contains_key(id))
    }

    /// All recalls that are outstanding: what a reply that may show any change must wait for.
    pub fn outstanding(&self) -> Vec<u64> {
        self.recalls.keys().copied().collect()
    }

    /// What time has brought. To be called at least every 100 ms.
    pub fn tick(&mut self, now: Duration) -> Vec<Effect> {
        let mut effects = self.close_window(now);
        let late: Vec<SessionId> = self
            .sessions
            .iter()
            .filter(|(_, standing)| !standing.recalls.is_empty())
            .filter(|(_, standing)| {
                let first = standing.recalls.first().expect("not empty");
                now >= standing.heard + TERM || now >= self.recalls[first].made + GIVE_BACK_MAX
            })
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
                self.make_void(session, &mut effects);
            }
        }
        self.sweep(now);
        effects
    }

    /// Whether a write lease is wanted back from a session that does not give it.
    fn must_end(&self, now: Duration, session: SessionId, is_silent: bool) -> bool {
        let mut recalls = self.sessions[&session].recalls.iter();
        recalls.any(|id| {
            let pending = &self.recalls[id];
            self.has_write_lease(session, pending.recall.ino)
                && (is_silent || now >= pending.made + GIVE_BACK_MAX)
        })
    }

    /// The term of a session is over, and others wait: its shared leases are void. What it has not heard of and
    /// may have open counts as open.
    fn make_void(&mut self, session: SessionId, effects: &mut Vec<Effect>) {
        let opened = self.begin_generation(session);
        effects.extend(opened.into_iter().map(|ino| Effect::Open(session, ino)));
    }

    /// Takes the shared leases of a session away, and what it has not acknowledged about them. Returns the inodes
    /// without a name among the latter.
    pub(super) fn withdraw_shared(&mut self, session: SessionId) -> Vec<InodeId> {
        let Some(standing) = self.sessions.get(&session) else {
            return Vec::new();
        };
        let recalls: Vec<u64> = standing.recalls.iter().copied().collect();
        let inodes: Vec<InodeId> = standing.inodes.iter().copied().collect();
        let mut unheard = Vec::new();
        for id in recalls {
            if self.has_write_lease(session, self.recalls[&id].recall.ino) {
                continue;
            }
            if let Some(Recall {
                what: What::Attr(attr),
                ..
            }) = self.settle(id)
                && attr.nlink == 0
            {
                unheard.push(attr.ino);
            }
        }
        for ino in inodes {
            if !self.has_write_lease(session, ino) {
                self.remove(session, ino);
            }
        }
        unheard
    }

    pub(super) fn has_write_lease(&self, session: SessionId, ino: InodeId) -> bool {
        let leases = self.inodes.get(&ino);
        let own = leases.and_then(|leases| leases.of(session));
        own.is_some_and(|own| own.kind.writes())
    }
}
