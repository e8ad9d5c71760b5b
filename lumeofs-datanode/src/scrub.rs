//! The scrub of one store: reads all chunks round after round at a set rate, and has what is damaged repaired.
//!
//! One thread per store, which does a bounded step and then waits, longer than the disk took for it: what clients
//! want of the disk goes first. Damage that reads of clients come upon is repaired before the round goes on.

mod mend;
mod record;
#[cfg(test)]
mod tests;

pub(crate) use mend::others;

use crate::node::Node;
use crate::store::ChunkStore;
use lumeofs_base::clock::{Clock, SystemClock};
use lumeofs_base::limits::DAMAGED_PIECES_MAX;
use lumeofs_base::{ChunkId, Code, FsError, FsResult, GroupId};
use lumeofs_proto::data::{ScrubDisk, ScrubReply, ScrubRequest};
use mend::Waiting;
use parking_lot::{Condvar, Mutex};
use record::Record;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How soon damage that a read found, and the end of the process, are noticed.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Between two looks at a store that cannot be read.
const FAILED_WAIT: Duration = Duration::from_secs(1);
/// The disk rests this many times as long as a step took: the scrub has at most a quarter of a busy one.
const REST_FACTOR: u32 = 3;
/// What a step counts for at least: a disk's arm moves for less, too.
const STEP_BYTES_MIN: u64 = 64 << 10;
/// Between two times that the position is written down. What was read since is read again after a restart.
const KEEP_EVERY: Duration = Duration::from_secs(10);
/// Between two times that the store's bytes are counted, for the share that was read.
const COUNT_EVERY: Duration = Duration::from_secs(60);
/// Time over which the speed is measured.
const SPEED_WINDOW: Duration = Duration::from_secs(10);

/// The scrub of a store.
pub(crate) struct Scrub {
    store: Arc<ChunkStore>,
    directory: String,
    /// Bytes a second; 0 = no rounds. What reads find is repaired all the same.
    rate: u64,
    inner: Mutex<Inner>,
    wake: Condvar,
    /// Held while a piece is repaired, so that two threads do not repair the same.
    mending: Mutex<()>,
}

#[derive(Default)]
struct Inner {
    record: Record,
    waiting: BTreeMap<(ChunkId, u64), Waiting>,
    /// A round was asked for.
    asked: bool,
    /// Where the piece after the last one begins, in the first chunk above the record's.
    offset: u64,
    /// Of the whole store, as counted last.
    all_bytes: u64,
    speed: Speed,
    counted_at: Option<Duration>,
    kept_at: Option<Duration>,
    failure: Option<FsError>,
}

/// Bytes that are read in a second, measured from a moment some seconds ago.
#[derive(Default)]
struct Speed {
    since: Duration,
    bytes: u64,
    per_s: u64,
}

impl Speed {
    fn add(&mut self, bytes: u64, now: Duration) {
        self.bytes += bytes;
        let time = now.saturating_sub(self.since);
        if time >= SPEED_WINDOW || (self.per_s == 0 && time >= FAILED_WAIT) {
            self.per_s = self.bytes * 1000 / (time.as_millis() as u64).max(1);
            (self.since, self.bytes) = (now, 0);
        }
    }

    fn restart(&mut self, now: Duration) {
        *self = Self {
            since: now,
            ..Self::default()
        };
    }
}

impl Scrub {
    /// The scrub of a store whose data directory is `directory`.
    pub(crate) fn new(store: Arc<ChunkStore>, directory: String, rate: u64) -> Self {
        let record = store.scrub_note().and_then(|note| Record::decode(&note));
        let record = record.unwrap_or_default();
        let waiting = record.waiting.iter();
        let waiting = waiting.map(|piece| (*piece, Waiting::default())).collect();
        Self {
            store,
            directory,
            rate,
            inner: Mutex::new(Inner {
                record,
                waiting,
                ..Inner::default()
            }),
            wake: Condvar::new(),
            mending: Mutex::new(()),
        }
    }

    /// Whether it is that of this store.
    pub(crate) fn is_of(&self, store: &Arc<ChunkStore>) -> bool {
        Arc::ptr_eq(&self.store, store)
    }

    /// What its thread does until the node stops.
    pub(crate) fn run(&self, node: &Arc<Node>) {
        let mut next_step = Duration::ZERO;
        while !node.is_stopping() {
            let begun = SystemClock.monotonic();
            self.take_noted();
            self.mend_due(node);
            if begun >= next_step {
                let pause = match self.step() {
                    Ok(bytes) => self.pause(bytes, SystemClock.monotonic() - begun),
                    Err(error) => {
                        tracing::debug!(%error, "the scrub cannot read its store");
                        self.inner.lock().failure = Some(error);
                        FAILED_WAIT
                    }
                };
                next_step = begun + pause;
            }
            self.keep_if_due();
            self.wait_until(next_step);
        }
        self.keep();
    }

    /// How long from the beginning of one step to that of the next.
    fn pause(&self, bytes: Option<u64>, took: Duration) -> Duration {
        match bytes {
            None => LOOK_EVERY,
            Some(0) => Duration::ZERO,
            Some(bytes) => {
                let nanos = u128::from(bytes.max(STEP_BYTES_MIN)) * 1_000_000_000;
                let share = nanos / u128::from(self.rate.max(1));
                let share = Duration::from_nanos(u64::try_from(share).unwrap_or(u64::MAX));
                share.max(took * (REST_FACTOR + 1))
            }
        }
    }

    fn wait_until(&self, until: Duration) {
        let mut inner = self.inner.lock();
        let left = until.saturating_sub(SystemClock.monotonic());
        if !left.is_zero() && !inner.asked {
            self.wake.wait_for(&mut inner, left.min(LOOK_EVERY));
        }
    }

    /// Reads a piece, if a round is on. How many bytes that were.
    fn step(&self) -> FsResult<Option<u64>> {
        self.store.check()?;
        let Some((after, offset)) = self.position()? else {
            return Ok(None);
        };
        let Some((_, chunk)) = self.store.chunk_above(after) else {
            self.end_round();
            return Ok(None);
        };
        let verified = self.store.verify(chunk, offset)?;
        let now = SystemClock.monotonic();
        let mut inner = self.inner.lock();
        // Another round was asked for meanwhile.
        if inner.asked {
            return Ok(Some(verified.bytes));
        }
        if !verified.damaged.is_empty() {
            let piece = (chunk, offset);
            if !inner.waiting.contains_key(&piece) {
                self.store.count_damaged(verified.damaged.len() as u64);
            }
            inner.waiting.entry(piece).or_default();
        }
        inner.record.bytes += verified.bytes;
        inner.speed.add(verified.bytes, now);
        match verified.next {
            Some(next) => inner.offset = next,
            None => (inner.record.after, inner.offset) = (Some(chunk), 0),
        }
        Ok(Some(verified.bytes))
    }

    /// Where the round goes on; begins one when it is time. `None` if there is nothing to do now.
    fn position(&self) -> FsResult<Option<(Option<ChunkId>, u64)>> {
        let (now, wall) = (SystemClock.monotonic(), wall_ms());
        let mut inner = self.inner.lock();
        inner.failure = None;
        let begins = inner.asked || !inner.record.running && inner.record.is_due(wall);
        if self.rate > 0 && begins {
            inner.record.begin();
            (inner.asked, inner.offset) = (false, 0);
            (inner.counted_at, inner.kept_at) = (None, None);
            inner.speed.restart(now);
        }
        // Too much is to be repaired to remember more.
        let holds = inner.waiting.len() >= DAMAGED_PIECES_MAX;
        if self.rate == 0 || !inner.record.running || holds {
            return Ok(None);
        }
        if inner.counted_at.is_none_or(|at| now >= at + COUNT_EVERY) {
            inner.counted_at = Some(now);
            drop(inner);
            let bytes = self.store.stored_bytes();
            inner = self.inner.lock();
            inner.all_bytes = bytes;
        }
        Ok(Some((inner.record.after, inner.offset)))
    }

    fn end_round(&self) {
        let mut inner = self.inner.lock();
        if inner.asked {
            return;
        }
        inner.record.end(wall_ms());
        inner.kept_at = None;
        let (round, bytes) = (inner.record.round, inner.record.bytes);
        tracing::info!(directory = %self.directory, round, bytes, "a round of the scrub has ended");
    }

    fn keep_if_due(&self) {
        let now = SystemClock.monotonic();
        let inner = self.inner.lock();
        let is_due = match inner.kept_at {
            None => inner.record.round > 0,
            Some(at) => inner.record.running && now >= at + KEEP_EVERY,
        };
        drop(inner);
        if is_due {
            self.keep();
        }
    }

    fn keep(&self) {
        let mut inner = self.inner.lock();
        inner.kept_at = Some(SystemClock.monotonic());
        inner.record.waiting = inner.waiting.keys().copied().collect();
        let note = inner.record.encode();
        drop(inner);
        if let Err(error) = self.store.keep_scrub_note(&note) {
            tracing::debug!(%error, "the position of the scrub is not kept");
        }
    }

    /// Begins a round at the next step.
    fn start(&self) -> FsResult<()> {
        if self.rate == 0 {
            let context =
                "the scrub of this datanode is off: start it with --scrub-rate of 1 or more";
            return Err(FsError::new(Code::Unsupported, context));
        }
        self.inner.lock().asked = true;
        self.wake.notify_one();
        Ok(())
    }

    fn status(&self) -> ScrubDisk {
        let inner = self.inner.lock();
        let (record, wall) = (&inner.record, wall_ms());
        let runs = record.running || inner.asked;
        let state = match (self.rate, &inner.failure) {
            (0, _) => "off",
            (_, Some(_)) => "failed",
            _ if runs => "running",
            _ => "idle",
        };
        let all = inner.all_bytes.max(record.bytes);
        let speed = inner.speed.per_s.min(self.rate);
        let left = (all - record.bytes) * 1000;
        let is_known = record.running && !inner.asked && speed > 0 && inner.counted_at.is_some();
        ScrubDisk {
            directory: self.directory.clone(),
            state: state.to_owned(),
            round: record.round + u64::from(inner.asked),
            bytes: if inner.asked { 0 } else { record.bytes },
            all_bytes: all,
            rate_bytes: self.rate,
            speed_bytes: if record.running { speed } else { 0 },
            damaged: record.damaged,
            repaired: record.repaired,
            waiting: inner.waiting.values().map(Waiting::count).sum(),
            ended_ms_ago: record.ended_ms.map(|ended| wall.saturating_sub(ended)),
            left_ms: is_known.then(|| left / speed),
            failure: inner
                .failure
                .as_ref()
                .map_or(String::new(), ToString::to_string),
        }
    }

    /// Adds the damaged blocks that are not repaired yet to those of their groups.
    pub(crate) fn count_waiting(&self, counts: &mut BTreeMap<GroupId, u64>) {
        for ((chunk, _), waiting) in &self.inner.lock().waiting {
            if let Some(group) = self.store.owner(*chunk) {
                *counts.entry(group).or_default() += waiting.count();
            }
        }
    }
}

/// Answers an admin command.
pub(crate) fn serve(node: &Node, asked: &ScrubRequest) -> FsResult<ScrubReply> {
    if asked.start {
        for scrub in node.scrubs() {
            scrub.start()?;
        }
    }
    let disks = node.scrubs().iter().map(|scrub| scrub.status()).collect();
    Ok(ScrubReply { disks })
}

fn wall_ms() -> u64 {
    let wall = SystemClock.wall();
    u64::try_from(wall.secs).unwrap_or(0) * 1000 + u64::from(wall.nanos) / 1_000_000
}
