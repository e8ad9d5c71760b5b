//! Mutations whose callers have given up after they were sent: they go on under the same sequence until it is known what
//! became of them. Until then what they touch is not answered from memory, and the session's window stays behind them, which
//! bounds how many there are.

use super::{Answer, Changing};
use crate::link::{Asker, Link};
use crate::wait::{Patience, SLICE};
use crate::window::Ticket;
use lumeofs_base::{Code, FileKind, FsError, SessionId};
use lumeofs_lease::Touch;
use lumeofs_meta::op::Reply;
use lumeofs_proto::frame::Op;
use lumeofs_proto::meta::{MetaReply, MetaRequest};

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
                if has_made_file(&answer) {
                    // The leader counts an open that nobody has.
                    self.session.restate_soon();
                }
            }
            Err(error) => self.note_unfinished(&asker, session, &error),
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

/// Whether it was a create that made a file.
fn has_made_file(answer: &Answer) -> bool {
    match &answer.outcome {
        Ok(Reply::Created { attr, created, .. }) => *created && attr.kind == FileKind::Regular,
        _ => false,
    }
}
