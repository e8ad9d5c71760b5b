//! Who holds which inode open (rule S4): soft state of the metadata leader.
//!
//! Belongs to one leadership. A new leader knows nothing and purges nothing until every live session
//! has restated what it holds, or was opened under this leadership.
//!
//! An inode without a name that nobody holds can still be opened for a while: whoever does so may have looked its
//! name up just before it went. Then it is condemned, under the same lock, and its purge is proposed.

use crate::raft::Term;
use lumeofs_base::limits::OPENS_MAX;
use lumeofs_base::{FileKind, InodeId, SessionId};
use lumeofs_meta::change::Applied;
use lumeofs_meta::op::{Command, Internal, Mutation, NewNode, Reply};
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// How long an orphan that nobody holds can still be opened.
const GRACE: Duration = Duration::from_secs(1);
/// Orphans whose time is counted, and those that are condemned; the others wait for their turn.
const CANDIDATES_MAX: usize = 65_536;

/// The table of open inodes.
#[derive(Default)]
pub(crate) struct Opens(Mutex<Table>);

#[derive(Default)]
struct Table {
    term: Term,
    holders: HashMap<InodeId, HashSet<SessionId>>,
    sessions: HashMap<SessionId, Held>,
    /// Pairs of both.
    held: usize,
    /// Orphans that nobody holds, and since when.
    unheld: HashMap<InodeId, Duration>,
    /// Orphans whose purge was proposed.
    condemned: HashSet<InodeId>,
}

#[derive(Default)]
struct Held {
    inos: HashSet<InodeId>,
    /// Those of them that it did not state itself.
    presumed: HashSet<InodeId>,
    /// Everything that the session holds is in `inos`.
    complete: bool,
}

impl Opens {
    /// Learns from commands that were applied under a leadership of this master.
    pub(crate) fn observe(&self, term: Term, commands: &[Command], applied: &[Applied]) {
        let mut table = self.0.lock();
        if !table.enter(term) {
            return;
        }
        for (command, applied) in commands.iter().zip(applied) {
            match (command, &applied.outcome) {
                (
                    Command::Mutate {
                        session,
                        mutation:
                            Mutation::Create {
                                node: NewNode::Regular,
                                ..
                            }
                            | Mutation::CreateUnnamed { .. },
                        ..
                    },
                    Ok(Reply::Created { attr, .. }),
                ) if attr.kind == FileKind::Regular => table.hold(*session, attr.ino),
                (Command::Internal(Internal::OpenSession { .. }), Ok(Reply::Session(session))) => {
                    // It may also be the repeated opening of a session that is in use: then this
                    // says nothing new about it.
                    table.sessions.entry(*session).or_insert_with(|| Held {
                        complete: true,
                        ..Held::default()
                    });
                }
                // What an ended session had open is let go before it is shut out: a late write to a deleted chunk
                // fails on its tombstone.
                (
                    Command::Internal(
                        Internal::CloseSession { session } | Internal::EndSession { session },
                    ),
                    Ok(_),
                ) => {
                    table.forget(*session);
                }
                _ => {}
            }
        }
    }

    /// How many inodes a session holds open, as far as this leadership knows.
    pub(crate) fn held_by(&self, term: Term, session: SessionId) -> usize {
        let mut table = self.0.lock();
        let known = table.enter(term);
        let held = table.sessions.get(&session).filter(|_| known);
        held.map_or(0, |held| held.inos.len())
    }

    /// Whether `more` inodes can be held open besides those that are.
    pub(crate) fn has_room(&self, term: Term, more: usize) -> bool {
        let mut table = self.0.lock();
        !table.enter(term) || table.held + more <= OPENS_MAX
    }

    /// Enters that a session holds inodes open. Returns those that are condemned, or `None` if a newer
    /// leadership has begun.
    pub(crate) fn open(
        &self,
        term: Term,
        session: SessionId,
        inos: &[InodeId],
    ) -> Option<Vec<InodeId>> {
        let mut table = self.0.lock();
        if !table.enter(term) {
            return None;
        }
        for ino in inos {
            table.hold(session, *ino);
            if let Some(held) = table.sessions.get_mut(&session) {
                held.presumed.remove(ino);
            }
        }
        let condemned = inos.iter().filter(|ino| table.condemned.contains(ino));
        Some(condemned.copied().collect())
    }

    /// Enters that a session has released inodes.
    pub(crate) fn release(&self, term: Term, session: SessionId, inos: &[InodeId]) {
        let mut table = self.0.lock();
        if table.enter(term) {
            for ino in inos {
                table.release(session, *ino);
            }
        }
    }

    /// Enters that a session has stated all that it holds. Returns whether that was news.
    pub(crate) fn complete(&self, term: Term, session: SessionId) -> bool {
        let mut table = self.0.lock();
        if !table.enter(term) {
            return false;
        }
        let held = table.sessions.entry(session).or_default();
        for ino in std::mem::take(&mut held.presumed) {
            table.release(session, ino);
        }
        let held = table.sessions.entry(session).or_default();
        !std::mem::replace(&mut held.complete, true)
    }

    /// Enters that a session may hold more than it has stated, until it states all of it anew.
    pub(crate) fn doubt(&self, term: Term, session: SessionId) {
        let mut table = self.0.lock();
        if table.enter(term) {
            table.sessions.entry(session).or_default().complete = false;
        }
    }

    /// Enters that a session may hold these until then.
    pub(crate) fn presume(&self, term: Term, session: SessionId, inos: &[InodeId]) {
        let mut table = self.0.lock();
        if !table.enter(term) {
            return;
        }
        for ino in inos {
            let held = table.sessions.entry(session).or_default();
            if !held.inos.contains(ino) {
                held.presumed.insert(*ino);
                table.hold(session, *ino);
            }
        }
    }

    /// Whether a session has stated all that it holds under this leadership.
    pub(crate) fn is_complete(&self, term: Term, session: SessionId) -> bool {
        let mut table = self.0.lock();
        table.enter(term)
            && table
                .sessions
                .get(&session)
                .is_some_and(|held| held.complete)
    }

    /// Condemns those of `orphans` that no session has held for [`GRACE`], and returns all that are condemned;
    /// none while a live session has not yet stated what it holds.
    pub(crate) fn condemn(
        &self,
        term: Term,
        live: &[SessionId],
        orphans: Vec<InodeId>,
        now: Duration,
    ) -> Vec<InodeId> {
        let mut table = self.0.lock();
        let all_known = table.enter(term)
            && live.iter().all(|session| {
                table
                    .sessions
                    .get(session)
                    .is_some_and(|held| held.complete)
            });
        if !all_known {
            return Vec::new();
        }
        orphans
            .into_iter()
            .filter(|ino| table.is_condemned(*ino, now))
            .collect()
    }

    /// Enters that there is no orphan at all: forgets those whose purge had an outcome that is not known.
    pub(crate) fn no_orphans(&self, term: Term) {
        let mut table = self.0.lock();
        if table.enter(term) {
            table.condemned.clear();
            table.unheld.clear();
        }
    }

    /// Enters that inodes are gone.
    pub(crate) fn purged(&self, term: Term, inos: &[InodeId]) {
        let mut table = self.0.lock();
        if table.enter(term) {
            for ino in inos {
                table.condemned.remove(ino);
            }
        }
    }
}

impl Table {
    /// Makes the table that of `term`. False if it is that of a newer one.
    fn enter(&mut self, term: Term) -> bool {
        if self.term < term {
            *self = Self {
                term,
                ..Self::default()
            };
        }
        self.term == term
    }

    /// Whether an orphan is condemned now.
    fn is_condemned(&mut self, ino: InodeId, now: Duration) -> bool {
        if self.condemned.contains(&ino) {
            return true;
        }
        if self.holders.contains_key(&ino) {
            return false;
        }
        let room = self.unheld.len() < CANDIDATES_MAX;
        match self.unheld.get(&ino) {
            Some(since) if now.saturating_sub(*since) < GRACE => false,
            Some(_) if self.condemned.len() < CANDIDATES_MAX => {
                self.unheld.remove(&ino);
                self.condemned.insert(ino)
            }
            None if room => {
                self.unheld.insert(ino, now);
                false
            }
            Some(_) | None => false,
        }
    }

    fn hold(&mut self, session: SessionId, ino: InodeId) {
        self.unheld.remove(&ino);
        self.holders.entry(ino).or_default().insert(session);
        let held = self.sessions.entry(session).or_default();
        self.held += usize::from(held.inos.insert(ino));
    }

    fn release(&mut self, session: SessionId, ino: InodeId) {
        if let Some(held) = self.sessions.get_mut(&session) {
            self.held -= usize::from(held.inos.remove(&ino));
            held.presumed.remove(&ino);
        }
        if let Some(holders) = self.holders.get_mut(&ino) {
            holders.remove(&session);
            if holders.is_empty() {
                self.holders.remove(&ino);
            }
        }
    }

    fn forget(&mut self, session: SessionId) {
        let Some(held) = self.sessions.remove(&session) else {
            return;
        };
        self.held -= held.inos.len();
        for ino in held.inos {
            self.release(session, ino);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lumeofs_base::{Attr, Timestamp};
    use lumeofs_meta::op::Caller;

    const TERM: Term = Term { number: 2, node: 1 };
    const A: SessionId = SessionId(1);
    const B: SessionId = SessionId(2);
    const INO: InodeId = InodeId(77);

    const LATER: Duration = Duration::from_secs(1);

    fn done(reply: Reply) -> Applied {
        Applied {
            outcome: Ok(reply),
            changes: Vec::new(),
            repeated: false,
        }
    }

    /// What is condemned after enough time without a holder.
    fn condemned(opens: &Opens, term: Term, live: &[SessionId]) -> Vec<InodeId> {
        let at = Duration::from_secs(1000);
        assert_eq!(opens.condemn(term, live, vec![INO], at), []);
        opens.condemn(term, live, vec![INO], at + LATER)
    }

    #[test]
    fn an_orphan_is_purged_only_when_every_session_has_spoken_and_none_holds_it() {
        let opens = Opens::default();
        assert!(opens.complete(TERM, A));
        assert_eq!(condemned(&opens, TERM, &[A, B]), []);
        assert_eq!(opens.open(TERM, B, &[INO]), Some(vec![]));
        assert!(opens.complete(TERM, B));
        assert_eq!(condemned(&opens, TERM, &[A, B]), []);
        assert_eq!(opens.open(TERM, A, &[INO]), Some(vec![]));
        opens.release(TERM, B, &[INO]);
        assert_eq!(condemned(&opens, TERM, &[A, B]), []);
        opens.release(TERM, A, &[INO]);
        assert_eq!(condemned(&opens, TERM, &[A, B]), [INO]);
    }

    #[test]
    fn an_orphan_can_be_opened_until_it_is_condemned() {
        let opens = Opens::default();
        assert!(opens.complete(TERM, A));
        let at = |ms| Duration::from_millis(ms);
        assert_eq!(opens.condemn(TERM, &[A], vec![INO], at(0)), []);
        assert_eq!(opens.condemn(TERM, &[A], vec![INO], at(999)), []);
        assert_eq!(opens.open(TERM, A, &[INO]), Some(vec![]));
        opens.release(TERM, A, &[INO]);
        // Its time begins anew.
        assert_eq!(opens.condemn(TERM, &[A], vec![INO], at(1500)), []);
        assert_eq!(opens.condemn(TERM, &[A], vec![INO], at(2499)), []);
        assert_eq!(opens.condemn(TERM, &[A], vec![INO], at(2500)), [INO]);
        assert_eq!(opens.open(TERM, A, &[INO]), Some(vec![INO]));
        opens.release(TERM, A, &[INO]);
        // The purge may have to be proposed again.
        assert_eq!(opens.condemn(TERM, &[A], vec![INO], at(2501)), [INO]);
        opens.purged(TERM, &[INO]);
        assert_eq!(opens.open(TERM, A, &[INO]), Some(vec![]));
    }

    #[test]
    fn what_a_session_is_believed_to_hold_is_held_until_it_says_what_it_does() {
        let opens = Opens::default();
        let other = InodeId(78);
        opens.complete(TERM, A);
        opens.open(TERM, A, &[other]).unwrap();
        opens.doubt(TERM, A);
        opens.presume(TERM, A, &[INO, other]);
        assert_eq!(condemned(&opens, TERM, &[A]), [], "it was not heard yet");
        opens.open(TERM, A, &[other]).unwrap();
        assert!(opens.complete(TERM, A));
        assert_eq!(opens.held_by(TERM, A), 1);
        assert_eq!(condemned(&opens, TERM, &[A]), [INO]);
        opens.doubt(TERM, A);
        opens.presume(TERM, A, &[InodeId(79)]);
        opens.open(TERM, A, &[InodeId(79)]).unwrap();
        opens.complete(TERM, A);
        assert_eq!(opens.held_by(TERM, A), 2);
    }

    #[test]
    fn open_files_are_counted_and_bounded() {
        let opens = Opens::default();
        let all: Vec<_> = (1..OPENS_MAX as u64).map(InodeId).collect();
        opens.open(TERM, A, &all).unwrap();
        opens.open(TERM, A, &all[..10]).unwrap();
        assert!(opens.has_room(TERM, 1));
        assert!(!opens.has_room(TERM, 2));
        opens.open(TERM, B, &all[..1]).unwrap();
        assert!(!opens.has_room(TERM, 1));
        opens.release(TERM, A, &all[..3]);
        opens.release(TERM, A, &all[..3]);
        assert!(opens.has_room(TERM, 3) && !opens.has_room(TERM, 4));
        let session = A;
        let close = Command::Internal(Internal::CloseSession { session });
        opens.observe(TERM, &[close], &[done(Reply::Done)]);
        assert!(opens.has_room(TERM, OPENS_MAX - 1) && !opens.has_room(TERM, OPENS_MAX));
    }

    #[test]
    fn a_new_leadership_starts_from_nothing_and_an_old_one_has_no_say() {
        let opens = Opens::default();
        opens.complete(TERM, A);
        let next = Term { number: 2, node: 3 };
        assert_eq!(condemned(&opens, next, &[A]), []);
        opens.complete(next, A);
        assert_eq!(condemned(&opens, next, &[A]), [INO]);
        assert_eq!(opens.open(TERM, A, &[INO]), None);
        assert_eq!(condemned(&opens, TERM, &[A]), []);
    }

    #[test]
    fn sessions_hold_what_they_create_until_they_end() {
        let opens = Opens::default();
        let open = Command::Internal(Internal::OpenSession {
            nonce: 1,
            description: String::new(),
        });
        opens.observe(TERM, &[open], &[done(Reply::Session(A))]);
        assert!(opens.is_complete(TERM, A));
        let time = Timestamp::default();
        let attr = Attr {
            ino: INO,
            kind: FileKind::Regular,
            mode: 0o600,
            uid: 0,
            gid: 0,
            nlink: 0,
            rdev: 0,
            size: 0,
            allocated: 0,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
            truncations: 0,
            tail_unclean: false,
            has_xattrs: false,
        };
        let unnamed = Command::Mutate {
            session: A,
            sequence: 1,
            acked_below: 1,
            caller: Caller::default(),
            mutation: Mutation::CreateUnnamed {
                parent: InodeId::ROOT,
                mode: 0o600.into(),
            },
        };
        let made = Reply::Created {
            attr,
            first_chunk: None,
            created: true,
        };
        opens.observe(TERM, &[unnamed], &[done(made)]);
        assert_eq!(condemned(&opens, TERM, &[A]), []);
        let close = Command::Internal(Internal::CloseSession { session: A });
        opens.observe(TERM, &[close], &[done(Reply::Done)]);
        assert_eq!(condemned(&opens, TERM, &[]), [INO]);
    }
}
