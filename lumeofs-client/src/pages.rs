//! The data cache: bytes of files that this client holds a lease on, clean or not yet sent, within one limit of memory.
//!
//! [`state`] is the core, one file's data, without locks and I/O. Here is what all files share: the table, the counts,
//! the clock (Corbató 1968) that evicts what was not used lately, and the room for dirty bytes. No lock of these is held
//! while bytes are copied; a file's own lock is. Nothing here knows leases: whoever calls holds one.

pub(crate) mod file;
mod intervals;
pub(crate) use intervals::without;
pub(crate) mod local;
pub(crate) mod queue;
mod slot;
pub(crate) mod state;
pub(crate) mod stream;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use crate::pages::file::File;
use crate::pages::queue::{Queue, Work};
use crate::pages::state::{Evicted, Load, State};
use crate::wait::{Halt, Patience, now};
use lumeofs_base::{FsResult, InodeId, SessionId};
use parking_lot::{Condvar, Mutex};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Memory that a cache has unless its user says otherwise.
pub const CACHE_BYTES_DEFAULT: usize = 256 << 20;
/// Least memory of a cache.
pub const CACHE_BYTES_MIN: usize = 1 << 20;
/// Dirty bytes at most, however large the cache is: bounds what is lost with the client, and how long a flush takes.
const DIRTY_BYTES_MAX: u64 = 64 << 20;
/// Steps of the clock's hand after one change, so that nobody waits for a long turn of it.
const STEPS_MAX: usize = 256;
/// Workers at most that try again what could not be sent.
const RETRYING_MAX: usize = 2;
/// Entries of the clock whose slots are gone that are put up with.
const STALE_MAX: usize = 64;

/// What all files share.
#[derive(Debug)]
pub(crate) struct Shared {
    memory_max: usize,
    memory: AtomicUsize,
    dirty: AtomicU64,
    slots: AtomicUsize,
    pub(crate) counters: Counters,
    /// Bytes that were sent within the last seconds.
    written_lately: AtomicU64,
    /// The session under which everything here was written.
    session: AtomicU64,
    /// The clock: slots, as file, index and tag; the hand is at the front.
    clock: Mutex<VecDeque<(Weak<File>, u32, u64)>>,
    queue: Mutex<Queue<Arc<File>>>,
    /// There may be work.
    work: Condvar,
    /// Who cannot wait until it is time to send: writers without room, and the end of the client.
    waiting: AtomicUsize,
    /// Workers that are with files that could not be sent before.
    retrying: AtomicUsize,
    writers: Mutex<()>,
    room: Condvar,
}

/// What has happened since the client began.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) hit_bytes: AtomicU64,
    pub(crate) missed_bytes: AtomicU64,
    pub(crate) ahead_bytes: AtomicU64,
    pub(crate) ahead_used_bytes: AtomicU64,
    pub(crate) ahead_wasted_bytes: AtomicU64,
    pub(crate) written_bytes: AtomicU64,
    pub(crate) publications: AtomicU64,
}

/// The state of the data cache, for metrics. Counts are since the client began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Memory in use.
    pub memory_bytes: u64,
    /// Bytes that were written and are not with the datanodes.
    pub dirty_bytes: u64,
    /// Bytes that reads found in the cache.
    pub hit_bytes: u64,
    /// Bytes that reads had to fetch or to wait for.
    pub missed_bytes: u64,
    /// Bytes that were read ahead.
    pub ahead_bytes: u64,
    /// Of these, what was asked for later.
    pub ahead_used_bytes: u64,
    /// Of these, what was dropped before anybody asked.
    pub ahead_wasted_bytes: u64,
    /// Bytes that write-behind has sent.
    pub written_bytes: u64,
    /// Sizes and times that were published after writes to the cache.
    pub publications: u64,
}

/// The data cache of a client.
#[derive(Debug)]
pub(crate) struct Pages {
    files: Mutex<HashMap<InodeId, Arc<File>>>,
    pub(crate) shared: Arc<Shared>,
}

impl Pages {
    /// A cache of so many bytes.
    pub(crate) fn new(memory_max: usize) -> Self {
        let shared = Shared {
            memory_max: memory_max.max(CACHE_BYTES_MIN),
            memory: AtomicUsize::new(0),
            dirty: AtomicU64::new(0),
            slots: AtomicUsize::new(0),
            counters: Counters::default(),
            written_lately: AtomicU64::new(0),
            session: AtomicU64::new(0),
            clock: Mutex::default(),
            queue: Mutex::default(),
            work: Condvar::new(),
            waiting: AtomicUsize::new(0),
            retrying: AtomicUsize::new(0),
            writers: Mutex::default(),
            room: Condvar::new(),
        };
        Self {
            files: Mutex::default(),
            shared: Arc::new(shared),
        }
    }

    /// What is cached of a file.
    pub(crate) fn file(&self, ino: InodeId) -> Arc<File> {
        let mut files = self.files.lock();
        let file = files.entry(ino);
        let make = || Arc::new(File::new(ino, Arc::clone(&self.shared)));
        Arc::clone(file.or_insert_with(make))
    }

    /// What is cached of a file, if anything.
    pub(crate) fn find(&self, ino: InodeId) -> Option<Arc<File>> {
        self.files.lock().get(&ino).cloned()
    }

    /// Forgets a file.
    pub(crate) fn forget(&self, ino: InodeId) {
        let file = self.files.lock().remove(&ino);
        if let Some(file) = file {
            file.drop_all();
        }
    }

    /// Files with changes that the servers do not have, and their bytes at most.
    pub(crate) fn unsent(&self) -> Vec<(InodeId, u64)> {
        let files = self.all();
        let unsent = files
            .iter()
            .map(|file| (file.ino, file.look(State::unsaved)));
        unsent
            .filter_map(|(ino, bytes)| Some((ino, bytes?)))
            .collect()
    }

    /// All files.
    pub(crate) fn all(&self) -> Vec<Arc<File>> {
        self.files.lock().values().cloned().collect()
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // Files and what they share refer to each other through the queue. Files that go may take locks.
        let queue = std::mem::take(&mut *self.shared.queue.lock());
        drop(queue);
    }
}

impl Shared {
    /// Dirty bytes that are allowed.
    fn dirty_max(&self) -> u64 {
        (self.memory_max as u64 / 4).min(DIRTY_BYTES_MAX)
    }

    /// Bytes that one file may have sent without publishing that it has grown: they cannot be evicted, and are lost
    /// with the client.
    pub(crate) fn unpublished_max(&self) -> u64 {
        self.dirty_max() / 4
    }

    /// How far it may be read ahead: not so far that what was read ahead is evicted before anybody comes to it.
    pub(crate) fn ahead_max(&self) -> u64 {
        let stats = self.stats();
        let unused = stats
            .ahead_bytes
            .saturating_sub(stats.ahead_used_bytes + stats.ahead_wasted_bytes);
        let memory = self.memory_max as u64;
        let room = (memory / 4).saturating_sub(unused);
        (memory / 16).min(room).min(stream::WINDOW_MAX)
    }

    /// The session under which everything that is dirty was written.
    pub(crate) fn session(&self) -> SessionId {
        SessionId(self.session.load(Ordering::SeqCst))
    }

    /// There is a new session, and nothing here was written under another one.
    pub(crate) fn begin_session(&self, session: SessionId) {
        self.session.store(session.get(), Ordering::SeqCst);
    }

    /// Bytes that write-behind has sent since the client began.
    pub(crate) fn written(&self) -> u64 {
        self.counters.written_bytes.load(Ordering::Relaxed)
    }

    /// Notes what was sent lately: all but so much.
    pub(crate) fn note_written_since(&self, before: u64) {
        let lately = self.written() - before;
        self.written_lately.store(lately, Ordering::Relaxed);
    }

    /// Bytes that take space of which the datanodes may not have told yet.
    pub(crate) fn untold(&self) -> u64 {
        self.written_lately.load(Ordering::Relaxed) + self.dirty()
    }

    pub(crate) fn dirty(&self) -> u64 {
        self.dirty.load(Ordering::Relaxed)
    }

    /// Whether dirty bytes should not wait for their time.
    fn is_pressed(&self) -> bool {
        self.dirty() > self.dirty_max() / 2 || self.waiting.load(Ordering::SeqCst) > 0
    }

    /// The counts at this moment.
    pub(crate) fn stats(&self) -> CacheStats {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CacheStats {
            memory_bytes: self.memory.load(Ordering::Relaxed) as u64,
            dirty_bytes: self.dirty(),
            hit_bytes: count(&self.counters.hit_bytes),
            missed_bytes: count(&self.counters.missed_bytes),
            ahead_bytes: count(&self.counters.ahead_bytes),
            ahead_used_bytes: count(&self.counters.ahead_used_bytes),
            ahead_wasted_bytes: count(&self.counters.ahead_wasted_bytes),
            written_bytes: count(&self.counters.written_bytes),
            publications: count(&self.counters.publications),
        }
    }

    /// A file holds more or less than before.
    pub(crate) fn moved(&self, before: &Load, after: &Load) {
        let add = |total: &AtomicUsize, before: usize, after: usize| {
            total.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
        };
        add(&self.memory, before.memory, after.memory);
        add(&self.slots, before.slots, after.slots);
        self.dirty
            .fetch_add(after.dirty.wrapping_sub(before.dirty), Ordering::SeqCst);
        let (before_ahead, after_ahead) = (before.ahead, after.ahead);
        count(
            &self.counters.ahead_bytes,
            after_ahead.fetched - before_ahead.fetched,
        );
        count(
            &self.counters.ahead_wasted_bytes,
            after_ahead.wasted - before_ahead.wasted,
        );
        if after.dirty < before.dirty && self.waiting.load(Ordering::SeqCst) > 0 {
            let _lock = self.writers.lock();
            self.room.notify_all();
        }
    }

    /// Waits until so many bytes more may be dirty: the one place where writers are slowed down to what the servers
    /// take. More than there ever is room for goes alone.
    pub(crate) fn make_room(&self, bytes: u64, patience: &Patience<'_>) -> FsResult<()> {
        let has_room = || {
            let dirty = self.dirty.load(Ordering::SeqCst);
            dirty == 0 || dirty + bytes <= self.dirty_max()
        };
        if has_room() {
            return Ok(());
        }
        let mut writers = self.writers.lock();
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.wake_workers();
        let mut least = u64::MAX;
        let result = loop {
            if has_room() {
                break Ok(());
            }
            // An outage ends the wait, not the time that much data takes.
            let dirty = self.dirty();
            if dirty < least {
                least = dirty;
                patience.progressed();
            }
            if let Err(error) = patience.wait(&self.room, &mut writers) {
                break Err(error);
            }
        };
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        result
    }

    /// Enters new slots into the clock, and moves its hand until there is room.
    pub(crate) fn balance(&self, file: &Arc<File>, new_slots: Vec<(u32, u64)>) {
        let clock_len = {
            let mut clock = self.clock.lock();
            let entries = new_slots.iter();
            clock.extend(entries.map(|(index, tag)| (Arc::downgrade(file), *index, *tag)));
            clock.len()
        };
        let is_full = || self.memory.load(Ordering::Relaxed) > self.memory_max;
        for _ in 0..STEPS_MAX.min(2 * clock_len) {
            if !is_full() {
                break;
            }
            self.step(true);
        }
        // Where files come and go, memory is never full, and their entries would stay.
        if clock_len > 2 * self.slots.load(Ordering::Relaxed) + STALE_MAX {
            for _ in 0..4 * new_slots.len().max(1) {
                self.step(false);
            }
        }
    }

    /// Moves the hand by one slot.
    fn step(&self, evicts: bool) {
        let Some((weak, index, tag)) = self.clock.lock().pop_front() else {
            return;
        };
        let Some(file) = weak.upgrade() else { return };
        let stays = if evicts {
            file.evict(index, tag) == Evicted::Kept
        } else {
            file.look(|state| state.has_slot(index, tag))
        };
        if stays {
            self.clock.lock().push_back((weak, index, tag));
        }
    }

    pub(crate) fn push_ready(&self, file: Arc<File>) {
        self.queue.lock().push_ready(file);
        self.work.notify_one();
    }

    /// It has been changed, or with `is_stuck` could not be sent.
    pub(crate) fn push_aging(&self, file: Arc<File>, now: Duration, is_stuck: bool) {
        let is_first = match is_stuck {
            true => self.queue.lock().push_resting(file, now),
            false => self.queue.lock().push_aging(file, now),
        };
        if is_first || self.is_pressed() {
            self.work.notify_one();
        }
    }

    /// From now on nothing waits for its time: the client is about to end.
    pub(crate) fn settle_all(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.wake_workers();
    }

    pub(crate) fn wake_workers(&self) {
        let _queue = self.queue.lock();
        self.work.notify_all();
    }

    /// Whether one more worker may be with files that could not be sent: others are left for the rest.
    pub(crate) fn begin_retry(&self) -> bool {
        let more = |retrying: usize| (retrying < RETRYING_MAX).then_some(retrying + 1);
        self.retrying
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, more)
            .is_ok()
    }

    /// A worker for which [`Shared::begin_retry`] held is done.
    pub(crate) fn end_retry(&self) {
        self.retrying.fetch_sub(1, Ordering::SeqCst);
    }

    /// What a worker does next; waits for it for a while.
    pub(crate) fn next_work(&self, halt: &Halt) -> Work<Arc<File>> {
        let mut queue = self.queue.lock();
        if halt.is_halted() {
            return Work::Wait(Duration::ZERO);
        }
        let mut work = queue.next(now(), self.is_pressed());
        if let Work::Wait(time) = work {
            self.work.wait_for(&mut queue, time);
            work = queue.next(now(), self.is_pressed());
        }
        // Who is busy does not look after what comes next.
        if !matches!(work, Work::Wait(_)) && !queue.is_empty() {
            self.work.notify_one();
        }
        work
    }
}

/// Adds to a counter.
pub(crate) fn count(counter: &AtomicU64, bytes: u64) {
    counter.fetch_add(bytes, Ordering::Relaxed);
}
