//! One cached file and its lock. Whatever changes it also settles what all files share: the memory they hold, the dirty
//! bytes, the clock that evicts, the queue of what is to be sent.

use crate::pages::state::sending::{Claimed, Sent, Wanted};
use crate::pages::state::{Evicted, State};
use crate::pages::stream::Streams;
use crate::pages::{Shared, count};
use crate::ranges::Ranges;
use crate::wait::{Patience, now};
use lumeofs_base::{FsResult, InodeId};
use parking_lot::{Condvar, Mutex, RwLock};
use std::ops::Range;
use std::sync::Arc;

/// Dirty bytes of one file that are sent at once, without waiting for their time.
const BATCH_BYTES: u64 = 1 << 20;

/// A cached file.
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) ino: InodeId,
    /// Reads and writes of this client's callers: none sees half of another one.
    pub(crate) io: Ranges,
    /// Held while chunks are looked up or allocated and the tail is cut for what is sent: a cut must not come after
    /// what another thread sent.
    pub(crate) placing: Mutex<()>,
    /// Held while size and time are published, and over a change that sets them otherwise: what is published must not be
    /// older than that.
    pub(crate) publishing: Mutex<()>,
    /// Who reads it in sequence.
    pub(crate) streams: Mutex<Streams>,
    shared: Arc<Shared>,
    state: RwLock<State>,
    /// Counts the ends of fetches and of sendings.
    events: Mutex<u64>,
    happened: Condvar,
}

impl File {
    pub(crate) fn new(ino: InodeId, shared: Arc<Shared>) -> Self {
        Self {
            ino,
            io: Ranges::default(),
            placing: Mutex::default(),
            publishing: Mutex::default(),
            streams: Mutex::default(),
            shared,
            state: RwLock::default(),
            events: Mutex::default(),
            happened: Condvar::new(),
        }
    }

    /// Looks at the state.
    pub(crate) fn look<T>(&self, act: impl FnOnce(&State) -> T) -> T {
        act(&self.state.read())
    }

    /// Changes the state.
    pub(crate) fn change<T>(self: &Arc<Self>, act: impl FnOnce(&mut State) -> T) -> T {
        let (result, new_slots, grew) = {
            let mut state = self.state.write();
            let before = state.load();
            let result = act(&mut state);
            let after = state.load();
            self.shared.moved(&before, &after);
            self.enqueue(&mut state);
            (result, state.take_new_slots(), after.memory > before.memory)
        };
        if !new_slots.is_empty() || grew {
            self.shared.balance(self, new_slots);
        }
        result
    }

    /// Has what was changed sent: soon, if it is much.
    fn enqueue(self: &Arc<Self>, state: &mut State) {
        if !state.has_work() {
            return;
        }
        let is_stuck = state.stuck_since.is_some();
        if !is_stuck && !state.is_ready && state.unclaimed() >= BATCH_BYTES {
            state.is_ready = true;
            self.shared.push_ready(Arc::clone(self));
        }
        if !state.is_aging {
            state.is_aging = true;
            self.shared.push_aging(Arc::clone(self), now(), is_stuck);
        }
    }

    /// Nobody has time for it now, though it came up as one with a batch or as one whose time has come.
    pub(crate) fn put_off(self: &Arc<Self>, is_batch: bool) {
        self.change(|state| match is_batch {
            true => state.is_ready = false,
            false => state.is_aging = false,
        });
    }

    /// Copies what is there of `range`, and says what is not.
    pub(crate) fn read(&self, range: &Range<u64>, out: &mut [u8]) -> Vec<Range<u64>> {
        let read = self.look(|state| state.read(range, out));
        count(&self.shared.counters.ahead_used_bytes, read.ahead);
        read.missing
    }

    /// A number that [`File::wait`] compares: to be asked for before one looks whether there is something to wait for.
    pub(crate) fn events(&self) -> u64 {
        *self.events.lock()
    }

    /// Waits until something has happened since `seen`.
    pub(crate) fn wait(&self, seen: u64, patience: &Patience<'_>) -> FsResult<()> {
        let mut events = self.events.lock();
        while *events == seen {
            patience.wait(&self.happened, &mut events)?;
        }
        Ok(())
    }

    fn happen(&self) {
        *self.events.lock() += 1;
        self.happened.notify_all();
    }

    /// A fetch is over.
    pub(crate) fn end_fill(self: &Arc<Self>, id: u64, data: Option<&[u8]>) {
        self.change(|state| state.end_fill(id, data));
        self.happen();
    }

    /// Takes something to send.
    pub(crate) fn claim(self: &Arc<Self>, wanted: &Wanted) -> Claimed {
        self.change(|state| state.claim(wanted))
    }

    /// The sending of a claim is over. Says whether anybody still cares.
    pub(crate) fn end_claim(self: &Arc<Self>, id: u64, sent: Sent) -> bool {
        let was_claim = self.change(|state| state.end_claim(id, sent));
        self.happen();
        was_claim
    }

    /// Drops everything.
    pub(crate) fn drop_all(self: &Arc<Self>) {
        self.change(State::drop_all);
        self.happen();
    }

    /// Takes what is clean of a slot out of memory.
    pub(crate) fn evict(&self, index: u32, tag: u64) -> Evicted {
        let mut state = self.state.write();
        let before = state.load();
        let evicted = state.evict(index, tag);
        self.shared.moved(&before, &state.load());
        evicted
    }
}

impl Drop for File {
    /// Who still read it when it was forgotten may have put data into it.
    fn drop(&mut self) {
        let state = self.state.get_mut();
        let before = state.load();
        state.drop_all();
        self.shared.moved(&before, &state.load());
    }
}
