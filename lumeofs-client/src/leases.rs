//! Leases of this client: what it may answer from memory and write on its own, kept by polling the leader.
//!
//! Everything is decided in the [`Holder`], a pure core that one lock protects; the threads here talk for it and do what it
//! asks for. That is done under the same lock, before anybody can acknowledge it: so what a recall takes away is gone when
//! the leader hears so. The lock comes before those of open files and of remembered inodes, and nobody waits for a server
//! while holding it.

mod ahead;
mod answers;
mod changes;
mod finish;
mod give_back;
mod making;
mod opens;
mod polls;
mod rights;
mod stats;

pub(crate) use answers::{Answer, Want};
pub(crate) use changes::Changing;
pub(crate) use finish::Unfinished;
pub(crate) use rights::Right;
pub use stats::{GiveBacks, LeaseStats, Lookups, Polls};

use crate::link::Link;
use crate::wait::now;
use give_back::Due;
use lumeofs_base::{InodeId, SessionId};
use lumeofs_lease::{Act, Holder, HolderLimits};
use making::Numbers;
use parking_lot::{Condvar, Mutex};
use stats::Counters;
use std::collections::VecDeque;
use std::time::Duration;

/// The leases and who waits for something about them.
#[derive(Debug)]
pub(crate) struct Leases {
    state: Mutex<State>,
    /// Something is to be said, given back or finished, or a right may have come or ended.
    changed: Condvar,
    /// Something was made that the leader does not know.
    made: Condvar,
    /// Held by whoever asks for inodes ahead.
    ahead: Mutex<()>,
    counters: Counters,
}

#[derive(Debug)]
struct State {
    holder: Holder,
    /// Whose leases they are; none while it is being replaced.
    session: SessionId,
    /// Counts sessions, so that what began under one does not end under another.
    epoch: u64,
    /// A poll is under way, so acknowledgements that become ready do not go with the next one.
    is_polling: bool,
    give_back: VecDeque<Due>,
    /// How many of those who give back wait for writers.
    waiting: usize,
    unfinished: VecDeque<Unfinished>,
    /// What mutations without a caller are about that are not finished, each time.
    late: Vec<InodeId>,
    /// The leases counted when that was looked at last.
    was_valid: bool,
    numbers: Numbers,
    /// Since when something waits that was made.
    made_since: Duration,
    /// Somebody waits until the leader knows of it.
    is_hurried: bool,
    /// How many do: nothing more is made meanwhile, lest they wait for ever.
    told_waiters: usize,
}

impl Leases {
    /// Without any lease.
    pub(crate) fn new() -> Self {
        let state = State {
            holder: Holder::new(HolderLimits::default()),
            session: SessionId::default(),
            epoch: 0,
            is_polling: false,
            give_back: VecDeque::new(),
            waiting: 0,
            unfinished: VecDeque::new(),
            late: Vec::new(),
            was_valid: false,
            numbers: Numbers::default(),
            made_since: Duration::ZERO,
            is_hurried: false,
            told_waiters: 0,
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            made: Condvar::new(),
            ahead: Mutex::new(()),
            counters: Counters::default(),
        }
    }

    /// Has all threads look whether they should end.
    pub(crate) fn wake(&self) {
        let _state = self.state.lock();
        self.changed.notify_all();
        self.made.notify_all();
    }
}

impl Link {
    /// Uses the leases, and does what follows from it before anybody else uses them.
    fn with_leases<T>(&self, run: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.leases.state.lock();
        let done = run(&mut state);
        let acts = state.holder.take_acts();
        if !acts.is_empty() {
            for act in acts {
                self.act(&mut state, act);
            }
            self.leases.changed.notify_all();
        }
        done
    }

    /// Whether this client knows that its session is live.
    pub(crate) fn leases_are_valid(&self) -> bool {
        self.with_leases(|state| state.holder.is_valid(now()))
    }

    fn act(&self, state: &mut State, act: Act) {
        match act {
            Act::DropData(ino) => {
                self.drop_data(ino);
                self.kernel.forget(ino);
            }
            Act::GiveBack(ino) => state.give_back.push_back(Due {
                ino,
                generation: state.holder.generation(),
                since: now(),
            }),
            Act::Reported(ino) => self.opens.is_known(ino),
            Act::StateOpen(ino) => {
                if self.opens.is_presumed(ino) {
                    self.session.release_soon();
                }
            }
            Act::RestateOpens => self.session.restate_soon(),
        }
    }

    /// A session begins, or the one that was has ended: nothing of it counts any more.
    pub(crate) fn restart_leases(&self, session: Option<SessionId>) {
        self.with_leases(|state| {
            state.session = session.unwrap_or_default();
            state.epoch += 1;
            state.give_back.clear();
            state.was_valid = false;
            self.lose_made(state);
            state.holder.reset();
            // Who replaces the session drops all data, after counting what is lost, and states all opens.
            state.holder.take_acts();
        });
        self.leases.changed.notify_all();
        self.kernel.forget_all();
    }
}
