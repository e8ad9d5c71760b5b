//! Mutations whose callers have given up after they were sent: they go on under the same sequence until it is known what
//! became of them. Until then what they touch is not answered from memory, and the session's window stays behind them, which
//! bounds how many there are.

use super::{Answer, Changing};
use crate::link::{Asker, Link};
use crate::wait::{Patience, SLICE};
use crate::window::Ticket;
use lumeofs_base::{Code, FileKind, FsError, InodeId, SessionId};
use lumeofs_lease::Touch;
use lumeofs_meta::op::{Mutation, Reply};
use lumeofs_proto::frame::Op;
use lumeofs_proto::meta::{MetaReply, MetaRequest};
use std::time::Duration;

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
        self.leases.state.lock().unfinished.push_back(unfinished);
        self.leases.counters.finished_later();
        self.leases.changed.notify_all();
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
        let changing = Changing::taken_over(self, touches);
        let ticket = self.window.take_up(session, sequence);
        let asker = Asker::background(Patience::background(&self.halt, None));
        let make = || MetaRequest {
            acked_below: ticket.acked_below(),
            ..request.clone()
        };
        let reply = self
            .masters
            .call::<_, MetaReply>(&asker.patience, Op::Mutate, make);
        match reply.and_then(|reply| Answer::of(&reply)) {
            Ok(answer) => {
                changing.did(session, &answer);
                // Its place in the window is needed for what follows.
                drop(ticket);
                if let Some(ino) = resized(&request) {
                    self.resized_late(ino);
                }
                if has_made_file(&answer) {
                    // The leader counts an open that nobody has.
                    self.session.restate_soon();
                }
            }
            Err(error) => self.note_unfinished(&asker, session, &error),
        }
    }

    /// What is in memory of a file may be from before it was resized.
    fn resized_late(&self, ino: InodeId) {
        let patience = Patience::background(&self.halt, Some(READ_ANEW_LIMIT));
        if let Err(error) = self.read_anew(&Asker::background(patience), ino) {
            tracing::warn!(%ino, %error, "a file was resized late and could not be looked at anew");
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

/// The file whose size or data a request changes, apart from publishing what was written.
fn resized(request: &MetaRequest) -> Option<InodeId> {
    match postcard::from_bytes(&request.op).ok()? {
        Mutation::SetAttr { ino, set } => set.size.is_some().then_some(ino),
        Mutation::Allocate { ino, .. } | Mutation::Extend { ino, .. } => Some(ino),
        _ => None,
    }
}

/// Whether it was a create that made a file.
fn has_made_file(answer: &Answer) -> bool {
    match &answer.outcome {
        Ok(Reply::Created { attr, created, .. }) => *created && attr.kind == FileKind::Regular,
        _ => false,
    }
}
