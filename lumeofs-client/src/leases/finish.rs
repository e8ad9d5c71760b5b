//! Mutations whose callers have given up after they were sent: they go on under the same sequence until it is known what
//! became of them. Until then what they touch is not answered from memory, and the session's window stays behind them, which
//! bounds how many there are.
//!
//! The leader applies mutations in the order in which they arrive, not in that of their sequences. So whatever says when a file
//! was written waits for those: a late publication would set the time back, though a newer one has been acknowledged.

use super::{Answer, Changing};
use crate::inodes::Inode;
use crate::link::{Asker, Link};
use crate::meta::locked;
use crate::wait::{Patience, SLICE};
use crate::window::Ticket;
use lumeofs_base::{Code, FileKind, FsError, FsResult, InodeId, SessionId};
use lumeofs_lease::Touch;
use lumeofs_meta::op::{Mutation, Reply};
use lumeofs_proto::frame::Op;
use lumeofs_proto::meta::{MetaReply, MetaRequest};
use parking_lot::MutexGuard;
use std::time::Duration;

/// How long one may be waited for before the next ones are.
const FINISH_LIMIT: Duration = Duration::from_secs(2);
/// How long one file may hold up the others that are to be finished.
const READ_ANEW_LIMIT: Duration = Duration::from_secs(5);

/// A mutation to be finished.
#[derive(Debug)]
pub(crate) struct Unfinished {
    session: SessionId,
    sequence: u64,
    touches: Vec<Touch>,
    request: MetaRequest,
}

impl Link {
    /// Has a mutation finished in the background.
    pub(crate) fn finish_later(
        &self,
        ticket: Ticket<'_>,
        changing: Changing<'_>,
        request: MetaRequest,
    ) {
        let (session, sequence) = ticket.leave();
        let touches = changing.leave();
        let unfinished = Unfinished {
            session,
            sequence,
            touches,
            request: MetaRequest {
                sequence,
                ..request
            },
        };
        {
            let state = &mut *self.leases.state.lock();
            state.late.extend(inodes(&unfinished.touches));
            if is_reservation(&unfinished.request) && state.session == session {
                state.numbers.left();
            }
            state.unfinished.push_back(unfinished);
        }
        self.leases.counters.finished_later();
        self.leases.changed.notify_all();
    }

    /// The right to publish or set the times of an inode, and a file's size: nothing else that does so is under way, with
    /// or without a caller.
    pub(crate) fn own_times<'i>(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        inode: &'i Inode,
    ) -> FsResult<MutexGuard<'i, ()>> {
        let owned = asker.patience.lock(&inode.publishing)?;
        let mut state = self.leases.state.lock();
        while state.late.contains(&ino) {
            asker.patience.wait(&self.leases.changed, &mut state)?;
        }
        Ok(owned)
    }

    /// A background thread.
    pub(crate) fn keep_finishing(&self) {
        loop {
            let unfinished = {
                let mut state = self.leases.state.lock();
                loop {
                    if self.halt.is_halted() {
                        return;
                    }
                    if let Some(unfinished) = state.unfinished.pop_front() {
                        break unfinished;
                    }
                    self.leases.changed.wait_for(&mut state, SLICE * 10);
                }
            };
            self.finish(unfinished);
        }
    }

    fn finish(&self, unfinished: Unfinished) {
        let Unfinished {
            session,
            sequence,
            touches,
            request,
        } = unfinished;
        let late: Vec<_> = inodes(&touches).collect();
        let changing = Changing::taken_over(self, touches);
        let ticket = self.window.take_up(session, sequence);
        let patience = Patience::background(&self.halt, Some(FINISH_LIMIT));
        let asker = Asker::background(patience);
        let make = || MetaRequest {
            acked_below: ticket.acked_below(),
            ..request.clone()
        };
        let reply = self
            .masters
            .call::<_, MetaReply>(&asker.patience, Op::Mutate, make);
        let answer = reply.and_then(|reply| Answer::of(&reply));
        if let Err(error) = &answer
            && matches!(error.code, Code::Unavailable | Code::Timeout)
        {
            // Others may be finished sooner, and somebody wait for them.
            let (session, sequence) = ticket.leave();
            let touches = changing.leave();
            self.leases.state.lock().unfinished.push_back(Unfinished {
                session,
                sequence,
                touches,
                request,
            });
            return;
        }
        if let Ok(answer) = &answer {
            changing.did(session, answer);
        }
        if is_reservation(&request) {
            let reserved = match answer.as_ref().map(|answer| &answer.outcome) {
                Ok(Ok(Reply::Reserved { first, count })) => Some((*first, *count)),
                _ => None,
            };
            let state = &mut *self.leases.state.lock();
            if state.session == session {
                state.numbers.came_late(reserved);
            }
        }
        // Its place is needed for what follows.
        drop(ticket);
        self.is_finished(&late);
        let mutation = postcard::from_bytes(&request.op).ok();
        if let Some((ino, owner)) = mutation.as_ref().and_then(locked) {
            let answer = match answer.as_ref().map(|answer| &answer.outcome) {
                Ok(Ok(Reply::Lock(answer))) => Some(*answer),
                _ => None,
            };
            self.locks.finished(ino, owner, answer);
        }
        match answer {
            Ok(answer) => {
                if let Some(ino) = changed_file(&request) {
                    self.changed_late(ino);
                }
                if has_made_file(&answer) {
                    // The leader counts an open that nobody has.
                    self.session.restate_soon();
                }
            }
            Err(error) => self.note_unfinished(&asker, session, &error),
        }
    }

    fn is_finished(&self, late: &[InodeId]) {
        let mut state = self.leases.state.lock();
        for ino in late {
            let at = state.late.iter().position(|other| other == ino);
            state.late.swap_remove(at.expect("it was entered"));
        }
        self.leases.changed.notify_all();
    }

    /// What is in memory of a file may be from before that.
    fn changed_late(&self, ino: InodeId) {
        let patience = Patience::background(&self.halt, Some(READ_ANEW_LIMIT));
        if let Err(error) = self.read_anew(&Asker::background(patience), ino) {
            tracing::warn!(%ino, %error, "a file was changed late and could not be looked at anew");
        }
    }

    fn note_unfinished(&self, asker: &Asker<'_>, session: SessionId, error: &FsError) {
        if error.code == Code::SessionExpired {
            // Its leases end with it. What goes wrong here comes up again with the next call.
            self.renew_session(session, &asker.patience).ok();
        }
        tracing::debug!(%error, "a mutation whose caller had given up");
    }
}

/// Inodes that a mutation names.
fn inodes(touches: &[Touch]) -> impl Iterator<Item = InodeId> {
    touches.iter().filter_map(|touch| match touch {
        Touch::Inode(ino) => Some(*ino),
        Touch::Name(..) => None,
    })
}

/// The file of which a request changes what memory keeps beside its attributes, apart from publishing what was written.
fn changed_file(request: &MetaRequest) -> Option<InodeId> {
    match postcard::from_bytes(&request.op).ok()? {
        Mutation::SetAttr { ino, set } => {
            (set.size.is_some() || set.mtime.is_some()).then_some(ino)
        }
        Mutation::Allocate { ino, .. } | Mutation::Extend { ino, .. } => Some(ino),
        _ => None,
    }
}

fn is_reservation(request: &MetaRequest) -> bool {
    let mutation = postcard::from_bytes(&request.op);
    matches!(mutation, Ok(Mutation::Reserve { .. }))
}

/// Whether it was a create that made a file.
fn has_made_file(answer: &Answer) -> bool {
    match &answer.outcome {
        Ok(Reply::Created { attr, created, .. }) => *created && attr.kind == FileKind::Regular,
        _ => false,
    }
}
