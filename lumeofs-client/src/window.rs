//! The session's window of mutations under way: rule S1.
//!
//! Each mutation has one sequence, kept over all its retries. The servers keep the outcomes from the
//! lowest unanswered sequence on, for [`SESSION_WINDOW`] sequences; so a new one waits while the window is full.

use crate::wait::Patience;
use lumeofs_base::limits::SESSION_WINDOW;
use lumeofs_base::{FsResult, SessionId};
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeSet;

/// The session and its sequences.
#[derive(Debug, Default)]
pub(crate) struct Window {
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    session: SessionId,
    /// The last sequence given out.
    last: u64,
    unanswered: BTreeSet<u64>,
}

impl State {
    fn acked_below(&self) -> u64 {
        self.unanswered.first().copied().unwrap_or(self.last + 1)
    }
}

/// The right to one mutation. When dropped, its outcome is not needed any more.
#[derive(Debug)]
pub(crate) struct Ticket<'a> {
    window: &'a Window,
    pub(crate) session: SessionId,
    pub(crate) sequence: u64,
}

impl Window {
    /// The session.
    pub(crate) fn session(&self) -> SessionId {
        self.state.lock().session
    }

    /// Starts with a new session. Tickets of the old one are void.
    pub(crate) fn restart(&self, session: SessionId) {
        *self.state.lock() = State {
            session,
            ..State::default()
        };
        self.freed.notify_all();
    }

    /// Goes on with a ticket that was left.
    pub(crate) fn take_up(&self, session: SessionId, sequence: u64) -> Ticket<'_> {
        Ticket {
            window: self,
            session,
            sequence,
        }
    }

    /// Gives out the next sequence, once it fits the window.
    pub(crate) fn begin(&self, patience: &Patience<'_>) -> FsResult<Ticket<'_>> {
        let mut state = self.state.lock();
        while state.last + 1 >= state.acked_below() + SESSION_WINDOW {
            patience.wait(&self.freed, &mut state)?;
        }
        state.last += 1;
        let sequence = state.last;
        state.unanswered.insert(sequence);
        Ok(Ticket {
            window: self,
            session: state.session,
            sequence,
        })
    }
}

impl Ticket<'_> {
    /// Leaves it to whoever takes it up: it stays unanswered.
    pub(crate) fn leave(self) -> (SessionId, u64) {
        let left = (self.session, self.sequence);
        std::mem::forget(self);
        left
    }

    /// All sequences below were answered.
    pub(crate) fn acked_below(&self) -> u64 {
        let state = self.window.state.lock();
        if state.session == self.session {
            state.acked_below()
        } else {
            self.sequence
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut state = self.window.state.lock();
        if state.session == self.session {
            state.unanswered.remove(&self.sequence);
            self.window.freed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::Halt;
    use lumeofs_base::Code;
    use std::time::Duration;

    #[test]
    fn the_lowest_unanswered_sequence_holds_the_window() {
        let (window, halt) = (Window::default(), Halt::default());
        window.restart(SessionId(5));
        let patience = Patience::background(&halt, Some(Duration::from_millis(60)));
        let first = window.begin(&patience).unwrap();
        assert_eq!(
            (first.session, first.sequence, first.acked_below()),
            (SessionId(5), 1, 1)
        );
        for sequence in 2..=SESSION_WINDOW {
            let ticket = window.begin(&patience).unwrap();
            assert_eq!((ticket.sequence, ticket.acked_below()), (sequence, 1));
        }
        assert_eq!(window.begin(&patience).unwrap_err().code, Code::Unavailable);
        drop(first);
        let next = window.begin(&patience).unwrap();
        assert_eq!(next.sequence, SESSION_WINDOW + 1);
        assert_eq!(next.acked_below(), SESSION_WINDOW + 1);
    }

    #[test]
    fn a_ticket_of_a_lost_session_does_not_touch_the_new_one() {
        let (window, halt) = (Window::default(), Halt::default());
        let patience = Patience::background(&halt, None);
        let old = window.begin(&patience).unwrap();
        window.restart(SessionId(6));
        let new = window.begin(&patience).unwrap();
        drop(old);
        assert_eq!((new.sequence, new.acked_below()), (1, 1));
    }
}
