//! Sessions that take part, and their polls.

use super::Table;
use crate::wire::{Generation, Held, Poll, PollAnswer};
use crate::{GIVE_BACK_MAX, TERM};
use lumeofs_base::{InodeId, SessionId};
use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

/// How many recalls one answer carries.
const RECALLS_PER_ANSWER_MAX: usize = 4096;

/// A session that has polled.
#[derive(Debug)]
pub(super) struct Standing {
    pub(super) generation: Generation,
    /// It has adopted the generation and asserted its write leases.
    pub(super) takes_part: bool,
    /// Of its last poll.
    pub(super) serial: u64,
    /// When its last poll that renews the term was received.
    pub(super) heard: Duration,
    /// On what it has a lease.
    pub(super) inodes: HashSet<InodeId>,
    /// Recalls that it has not acknowledged.
    pub(super) recalls: BTreeSet<u64>,
    /// How many of them tell what something is like now.
    pub(super) telling: usize,
    /// When the driver was told to end it.
    pub(super) end_asked: Option<Duration>,
    /// It has ended: nothing is changed in its name any more.
    pub(super) has_ended: bool,
}

impl Standing {
    /// It has polled for the first time.
    fn is_unnamed(&self) -> bool {
        self.generation == Generation::default()
    }
}

/// What a poll led to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// For the holder. If it says nothing new, the driver may hold it back for [`crate::POLL_WAIT`] and then ask
    /// [`Table::news`] for another.
    pub answer: PollAnswer,
    /// Inodes that the session has open. To be entered before the next purge.
    pub opened: Vec<InodeId>,
    /// A generation begins, so nothing may be purged until the session states its open files anew.
    pub unstated: bool,
}

impl Table {
    /// Takes a poll that was received at `now` by a leader that was confirmed afterwards, and had applied then all that
    /// was committed when it was received. Only of sessions that have not ended. `None`: a later one has arrived before
    /// it, and nothing of it counts.
    pub fn poll(&mut self, now: Duration, session: SessionId, poll: &Poll) -> Option<Heard> {
        let standing = self.sessions.entry(session).or_insert_with(|| Standing {
            generation: Generation::default(),
            takes_part: false,
            serial: 0,
            heard: now,
            inodes: HashSet::new(),
            recalls: BTreeSet::new(),
            telling: 0,
            end_asked: None,
            has_ended: false,
        });
        if poll.serial <= standing.serial {
            return None;
        }
        standing.serial = poll.serial;
        let is_current =
            standing.generation == poll.generation && poll.generation != Generation::default();
        let takes_part = standing.takes_part;
        let mut opened = Vec::new();
        if poll.generation.term == self.term {
            // Numbers of another leadership mean something else.
            for ack in &poll.acks {
                opened.extend(self.acknowledge(now, session, *ack));
            }
        }
        match &poll.asserts {
            Some(asserts) if is_current && !takes_part => self.take_part(now, session, asserts),
            _ if is_current && takes_part => {}
            _ => {
                // A generation that its holder does not know of is as good as a new one.
                let unstated = is_current || takes_part || self.sessions[&session].is_unnamed();
                if unstated {
                    self.begin_generation(now, session);
                }
                return Some(Heard {
                    answer: self.news(session, u64::MAX),
                    opened,
                    unstated,
                });
            }
        }
        for release in &poll.released {
            let leases = self.inodes.get(&release.ino);
            let own = leases.and_then(|leases| leases.of(session));
            if own.is_some_and(|own| own.number <= release.number) {
                match release.keeps_shared {
                    true => self.keep_shared(session, release.ino),
                    false => self.remove(session, release.ino),
                }
            }
        }
        let renewed = !self.is_overdue(now, session);
        if renewed {
            let standing = self.sessions.get_mut(&session).expect("it was entered");
            standing.heard = now.max(standing.heard);
        }
        let mut answer = self.news(session, poll.seen);
        answer.renewed = renewed;
        Some(Heard {
            answer,
            opened,
            unstated: false,
        })
    }

    /// What a session has not seen yet, for a poll that was held back. Whether that renewed the term was said by
    /// [`Table::poll`]: that stays as it was.
    pub fn news(&self, session: SessionId, seen: u64) -> PollAnswer {
        let Some(standing) = self.sessions.get(&session) else {
            return PollAnswer::default();
        };
        let from = seen.saturating_add(1);
        let recalls = standing.recalls.range(from..).take(RECALLS_PER_ANSWER_MAX);
        PollAnswer {
            generation: standing.generation,
            restate: !standing.takes_part,
            renewed: false,
            leases_max: self.told() as u64,
            recalls: recalls.map(|id| self.recalls[id].recall.clone()).collect(),
        }
    }

    /// Makes the shared leases of a session void; its write leases are to be asserted, within a term from now.
    pub(super) fn begin_generation(&mut self, now: Duration, session: SessionId) {
        self.last += 1;
        let generation = Generation {
            term: self.term,
            number: self.last,
        };
        if let Some(standing) = self.sessions.get_mut(&session) {
            standing.generation = generation;
            standing.takes_part = false;
            standing.heard = now.max(standing.heard);
        }
        self.withdraw_shared(session);
    }

    /// A holder has begun a generation with these write leases and no other.
    fn take_part(&mut self, now: Duration, session: SessionId, asserts: &[Held]) {
        let began = self.sessions[&session].generation.number;
        let asserts = asserts.iter().filter(|held| held.kind.writes());
        let asserted: HashSet<InodeId> = asserts.clone().map(|held| held.ino).collect();
        let inodes = self.sessions[&session].inodes.iter().copied();
        // Also what it had made in its memory and was granted since: if it has heard so it has forgotten it, else it asserts it.
        let forgotten: Vec<InodeId> = inodes.filter(|ino| !asserted.contains(ino)).collect();
        for ino in forgotten {
            self.remove(session, ino);
        }
        for held in asserts {
            // With a number that the holder knows, so that it can release them.
            self.enter_as(now, session, (held.ino, held.kind), began);
        }
        let standing = self.sessions.get_mut(&session).expect("it was entered");
        standing.takes_part = true;
        let moot: Vec<u64> = standing.recalls.iter().copied().collect();
        for id in moot {
            if !self.has_write_lease(session, self.recalls[&id].recall.ino) {
                self.settle(id);
            }
        }
        self.spoken(session);
    }

    /// Whether a session polls but leaves something unacknowledged that takes no time: then its term runs out.
    fn is_overdue(&self, now: Duration, session: SessionId) -> bool {
        let recalls = self.sessions[&session].recalls.iter();
        let pending = recalls.map(|id| &self.recalls[id]);
        // Those that follow were made later still.
        let mut old = pending.take_while(|pending| now >= pending.made + TERM);
        old.any(|pending| {
            let takes_time =
                pending.recall.what.takes() && self.has_write_lease(session, pending.recall.ino);
            let limit = if takes_time { GIVE_BACK_MAX } else { TERM };
            now >= pending.made + limit
        })
    }

    /// Whether a session that has ended cannot rely on anything in its memory any more. Until then it may not hear of
    /// changes, so it is not closed. For one that was never heard of, the answer is yes.
    pub fn may_be_closed(&self, now: Duration, session: SessionId) -> bool {
        let standing = self.sessions.get(&session);
        let relies = standing.is_some_and(|own| own.takes_part && now < own.heard + TERM);
        !relies && !self.relies_on_former(now, session)
    }

    /// A session is no more: it was closed by itself, or it has ended, [may be closed](Table::may_be_closed) and is
    /// shut out everywhere.
    pub fn session_closed(&mut self, session: SessionId) {
        if let Some(standing) = self.sessions.get(&session) {
            let recalls: Vec<u64> = standing.recalls.iter().copied().collect();
            let inodes: Vec<InodeId> = standing.inodes.iter().copied().collect();
            for id in recalls {
                self.settle(id);
            }
            for ino in inodes {
                self.remove(session, ino);
            }
            self.sessions.remove(&session);
        }
        self.spoken(session);
    }
}
