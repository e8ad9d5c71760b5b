//! Talking with the leader about leases: one long poll is under way at all times, on a connection that no call waits for. Its
//! sending is what the term counts from. Acknowledgements that become ready meanwhile go in a short one beside it.

use crate::link::Link;
use crate::pool::Host;
use crate::retry::Next;
use crate::wait::{Patience, SLICE, now};
use lumeofs_base::{Code, FsError, FsResult, SessionId};
use lumeofs_lease::{POLL_WAIT, Poll, PollAnswer};
use lumeofs_proto::frame::Op;
use lumeofs_proto::meta::{LeaseReply, LeaseRequest};
use std::sync::Arc;
use std::time::Duration;

/// How long a master may take to answer, apart from what it is allowed to wait.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// Pauses between polls that fail: they grow with the time that the trouble lasts.
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(200);
/// How often a pause looks whether another leader answered somebody else.
const LOOK: Duration = Duration::from_millis(10);

/// A poll that is being sent.
struct Sent {
    session: SessionId,
    poll: Poll,
    at: Duration,
    /// How long its answer may be held back.
    wait: Duration,
    /// It is not one of those beside.
    is_main: bool,
}

impl Link {
    /// The background thread that always has a poll under way.
    pub(crate) fn keep_polling(&self) {
        let patience = Patience::background(&self.halt, None);
        let (mut failing_since, mut hinted) = (None, false);
        let mut host = self.masters.target();
        while !self.halt.is_halted() {
            let Some(sent) = self.next_poll(failing_since.is_some()) else {
                self.halt.sleep(LOOK);
                continue;
            };
            let session = sent.session;
            let error = match self.say(&host, &patience, sent) {
                Ok(()) => {
                    (failing_since, hinted) = (None, false);
                    continue;
                }
                Err(error) => error,
            };
            tracing::debug!(%error, master = host.address(), "polling for leases");
            if error.code == Code::SessionExpired {
                self.renew_session(session, &patience).ok();
            }
            let since = *failing_since.get_or_insert_with(now);
            let next = match error.code {
                // It leads all the same: the poll was overtaken, or the session has ended.
                Code::Invalid | Code::SessionExpired => Next::Pause,
                _ => self.masters.move_on(&host, &error, &mut hinted),
            };
            if next == Next::Pause {
                let pause = ((now() - since) / 8).clamp(PAUSE_MIN, PAUSE_MAX);
                self.pause_for_leader(pause);
            }
            host = self.masters.target();
        }
    }

    /// The background thread that says what cannot wait for the next poll.
    pub(crate) fn keep_acknowledging(&self) {
        let patience = Patience::background(&self.halt, None);
        while !self.halt.is_halted() {
            let sent = {
                let mut state = self.leases.state.lock();
                if !state.is_polling || !state.holder.has_acks() {
                    self.leases.changed.wait_for(&mut state, SLICE * 10);
                    continue;
                }
                if self.kernel.is_due() {
                    drop(state);
                    self.kernel.wait();
                    continue;
                }
                Sent {
                    session: state.session,
                    poll: state.holder.poll(),
                    at: now(),
                    wait: Duration::ZERO,
                    is_main: false,
                }
            };
            let host = self.masters.target();
            if let Err(error) = self.say(&host, &patience, sent) {
                tracing::debug!(%error, master = host.address(), "acknowledging recalls");
                self.pause_for_leader(PAUSE_MIN);
            }
        }
    }

    /// What the next long poll says, if there is a session.
    fn next_poll(&self, after_failure: bool) -> Option<Sent> {
        self.kernel.wait();
        self.with_leases(|state| {
            if self.kernel.is_due() {
                // It was recalled beside.
                return None;
            }
            let now = now();
            state.note_lapse(now, &self.leases.counters);
            if state.session == SessionId::default() {
                return None;
            }
            let poll = state.holder.poll();
            // Nothing can be answered from memory before the answer.
            let hurries = poll.asserts.is_some() || after_failure;
            state.is_polling = true;
            Some(Sent {
                session: state.session,
                poll,
                at: now,
                wait: if hurries { Duration::ZERO } else { POLL_WAIT },
                is_main: true,
            })
        })
    }

    /// Sends a poll and takes its answer.
    fn say(&self, host: &Arc<Host>, patience: &Patience<'_>, sent: Sent) -> FsResult<()> {
        let answer = self.answer_to(host, patience, &sent);
        self.leases.counters.polled(answer.is_ok());
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                self.with_leases(|state| {
                    state.is_polling &= !sent.is_main;
                    if state.session == sent.session {
                        state.holder.unheard(sent.poll);
                    }
                });
                return Err(error);
            }
        };
        for recall in &answer.recalls {
            self.leases.counters.recalled(recall);
        }
        let asserted = sent.poll.asserts.is_some();
        self.with_leases(|state| {
            state.is_polling &= !sent.is_main;
            if state.session == sent.session {
                state.holder.heard(sent.at, asserted, answer);
                state.was_valid |= state.holder.is_valid(now());
            }
        });
        self.leases.changed.notify_all();
        Ok(())
    }

    fn answer_to(
        &self,
        host: &Arc<Host>,
        patience: &Patience<'_>,
        sent: &Sent,
    ) -> FsResult<PollAnswer> {
        let body = postcard::to_stdvec(&sent.poll)
            .map_err(|error| FsError::new(Code::Invalid, format!("encode a poll: {error}")))?;
        let mut make = || LeaseRequest {
            session: sent.session.get(),
            body: body.clone().into(),
            wait_ms: sent.wait.as_millis() as u32,
        };
        let reply: LeaseReply = self.masters.ask(
            host,
            patience,
            Op::Lease,
            sent.wait + ANSWER_LIMIT,
            sent.wait,
            &mut make,
        )?;
        self.locks.recall(&reply.lock_recalls);
        postcard::from_bytes(&reply.body)
            .map_err(|error| FsError::new(Code::Io, format!("the answer to a poll: {error}")))
    }

    /// Pauses, less long if another leader is found meanwhile.
    fn pause_for_leader(&self, time: Duration) {
        let (changes, until) = (self.masters.changes(), now() + time);
        loop {
            let left = until.saturating_sub(now());
            if left.is_zero() || self.halt.is_halted() || self.masters.changes() != changes {
                return;
            }
            self.halt.sleep(left.min(LOOK));
        }
    }
}
