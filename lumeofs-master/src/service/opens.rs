//! Who holds which inode open (rule S4): soft state of the metadata leader.
//!
//! Belongs to one leadership. A new leader knows nothing and purges nothing until every live session
//! has restated what it holds, or was opened under this leadership.

use crate::raft::Term;
use lumeofs_base::{FileKind, InodeId, SessionId};
use lumeofs_meta::op::{Command, Internal, Mutation, NewNode, Outcome, Reply};
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};

/// The table of open inodes.
#[derive(Default)]
pub(crate) struct Opens(Mutex<Table>);

#[derive(Default)]
struct Table {
    term: Term,
    holders: HashMap<InodeId, HashSet<SessionId>>,
    sessions: HashMap<SessionId, Held>,
}

#[derive(Default)]
struct Held {
    inos: HashSet<InodeId>,
    /// Everything that the session holds is in `inos`.
    complete: bool,
}

impl Opens {
    /// Learns from commands that were applied under a leadership of this master.
    pub(crate) fn observe(&self, term: Term, commands: &[Command], outcomes: &[Outcome]) {
        let mut table = self.0.lock();
        if !table.enter(term) {
            return;
        }
        for (command, outcome) in commands.iter().zip(outcomes) {
            match (command, outcome) {
                (
                    Command::Mutate {
                        session,
                        mutation:
                            Mutation::Create {
                                node: NewNode::Regular,
                                ..
                            },
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
                (Command::Internal(Internal::CloseSession { session }), Ok(_)) => {
                    table.forget(*session);
                }
                _ => {}
            }
        }
    }

    /// Enters that a session holds inodes open. Returns those that nobody held before, or `None` if a
    /// newer leadership has begun.
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
        let mut new = Vec::new();
        for ino in inos {
            if !table.holders.contains_key(ino) {
                new.push(*ino);
            }
            table.hold(session, *ino);
        }
        Some(new)
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
        table.enter(term)
            && !std::mem::replace(
                &mut table.sessions.entry(session).or_default().complete,
                true,
            )
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

    /// Of `orphans`, those that no session holds; none while a live session has not yet stated what it
    /// holds.
    pub(crate) fn unheld(
        &self,
        term: Term,
        live: &[SessionId],
        orphans: Vec<InodeId>,
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
            .filter(|ino| !table.holders.contains_key(ino))
            .collect()
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

    fn hold(&mut self, session: SessionId, ino: InodeId) {
        self.holders.entry(ino).or_default().insert(session);
        self.sessions.entry(session).or_default().inos.insert(ino);
    }

    fn release(&mut self, session: SessionId, ino: InodeId) {
        if let Some(held) = self.sessions.get_mut(&session) {
            held.inos.remove(&ino);
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
        for ino in held.inos {
            self.release(session, ino);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERM: Term = Term { number: 2, node: 1 };
    const A: SessionId = SessionId(1);
    const B: SessionId = SessionId(2);
    const INO: InodeId = InodeId(77);

    #[test]
    fn an_orphan_is_purged_only_when_every_session_has_spoken_and_none_holds_it() {
        let opens = Opens::default();
        assert!(opens.complete(TERM, A));
        assert_eq!(opens.unheld(TERM, &[A, B], vec![INO]), []);
        assert_eq!(opens.open(TERM, B, &[INO]), Some(vec![INO]));
        assert!(opens.complete(TERM, B));
        assert_eq!(opens.unheld(TERM, &[A, B], vec![INO]), []);
        assert_eq!(opens.open(TERM, A, &[INO]), Some(vec![]));
        opens.release(TERM, B, &[INO]);
        assert_eq!(opens.unheld(TERM, &[A, B], vec![INO]), []);
        opens.release(TERM, A, &[INO]);
        assert_eq!(opens.unheld(TERM, &[A, B], vec![INO]), [INO]);
    }

    #[test]
    fn a_new_leadership_starts_from_nothing_and_an_old_one_has_no_say() {
        let opens = Opens::default();
        opens.complete(TERM, A);
        let next = Term { number: 2, node: 3 };
        assert_eq!(opens.unheld(next, &[A], vec![INO]), []);
        opens.complete(next, A);
        assert_eq!(opens.unheld(next, &[A], vec![INO]), [INO]);
        assert_eq!(opens.open(TERM, A, &[INO]), None);
        assert_eq!(opens.unheld(TERM, &[A], vec![INO]), []);
    }

    #[test]
    fn sessions_hold_what_they_create_until_they_end() {
        let opens = Opens::default();
        let open = Command::Internal(Internal::OpenSession {
            nonce: 1,
            description: String::new(),
        });
        opens.observe(TERM, &[open], &[Ok(Reply::Session(A))]);
        assert!(opens.is_complete(TERM, A));
        opens.open(TERM, A, &[INO]).unwrap();
        let close = Command::Internal(Internal::CloseSession { session: A });
        opens.observe(TERM, &[close], &[Ok(Reply::Done)]);
        assert_eq!(opens.unheld(TERM, &[], vec![INO]), [INO]);
    }
}
