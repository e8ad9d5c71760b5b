//! The commit queue between the operations and the log (C1).
//!
//! An operation is visible when it is queued here and durable when its record is in the log. A record
//! enters the log only after the extent data that it names was synced, so the queue is written by one
//! *leader* at a time: it takes all that is queued, syncs the extent files once, appends, syncs the
//! log once. Whoever asks meanwhile waits and finds itself done, or leads the next round. Places that
//! a record frees are given back only here, when the record is durable.

use super::Lsn;
use super::block_map::Run;
use super::catalog::Catalog;
use super::chunk::Image;
use super::extents::Extents;
use super::health::Health;
use super::record::Record;
use super::space::Space;
use lumeofs_base::{Code, FsError, FsResult, GroupId, Version};
use lumeofs_wal::Wal;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Queued bytes from which the commit thread starts without being asked.
const EAGER_BYTES: usize = 1 << 20;

/// Called with the outcome.
pub(super) type Callback = Box<dyn FnOnce(FsResult<()>) + Send>;

/// See the module's description.
pub(super) struct Journal {
    wal: Wal,
    extents: Arc<Extents>,
    space: Arc<Space>,
    catalog: Arc<Catalog>,
    health: Arc<Health>,
    queue: Mutex<Queue>,
    /// Wakes who waits for a round to end.
    settled: Condvar,
    /// Wakes the commit thread.
    wanted: Condvar,
    /// Bytes ever appended to the log, for deciding when to write a checkpoint.
    bytes: AtomicU64,
}

#[derive(Default)]
struct Queue {
    pending: VecDeque<Entry>,
    pending_bytes: usize,
    last: u64,
    durable: u64,
    /// Somebody writes a round.
    leading: bool,
    /// The commit thread is to make everything up to here durable.
    wanted: u64,
    callbacks: BTreeMap<u64, Vec<Callback>>,
    answered: Vec<(Callback, FsResult<()>)>,
    closing: bool,
}

/// A record on its way to the log.
pub(super) struct Entry {
    body: Vec<u8>,
    images: Vec<Arc<Image>>,
    /// Places that nobody uses any more once this is durable.
    freed: Vec<Run>,
    /// The group's last durable operation once this is durable.
    mark: Option<(GroupId, Version)>,
    names_extents: bool,
}

impl Entry {
    pub(super) fn new(record: &Record, images: Vec<Arc<Image>>) -> Self {
        let (mark, edit) = match record {
            Record::Operation {
                group,
                version,
                edit,
                ..
            } => (Some((*group, *version)), edit.as_ref()),
            Record::Last { group, version } => (Some((*group, *version)), None),
            Record::Copied { edit } => (None, Some(edit)),
            Record::Forgotten { .. } | Record::Note { .. } => (None, None),
        };
        let names_extents = edit.is_some_and(|edit| !edit.placed.is_empty());
        Self {
            body: record.encode(),
            images,
            freed: Vec::new(),
            mark,
            names_extents,
        }
    }

    pub(super) fn freeing(mut self, freed: Vec<Run>) -> Self {
        self.freed = freed;
        self
    }

    fn bytes(&self) -> usize {
        self.body.len()
            + self
                .images
                .iter()
                .map(|image| image.bytes.len())
                .sum::<usize>()
    }
}

impl Journal {
    /// `bytes` are those of the log that the last checkpoint does not cover.
    pub(super) fn new(
        wal: Wal,
        extents: Arc<Extents>,
        space: Arc<Space>,
        catalog: Arc<Catalog>,
        health: Arc<Health>,
        bytes: u64,
    ) -> Self {
        Self {
            wal,
            extents,
            space,
            catalog,
            health,
            queue: Mutex::default(),
            settled: Condvar::new(),
            wanted: Condvar::new(),
            bytes: AtomicU64::new(bytes),
        }
    }

    /// Queues a record behind all others. `show` makes visible in the catalog what it says, in one step
    /// with that: a checkpoint that sees it can wait for the record, and one that begins when the record
    /// is in the log already cannot miss it.
    pub(super) fn push(&self, entry: Entry, show: impl FnOnce(&Catalog)) -> Lsn {
        let mut queue = self.queue.lock();
        queue.last += 1;
        queue.pending_bytes += entry.bytes();
        queue.pending.push_back(entry);
        show(&self.catalog);
        if queue.pending_bytes >= EAGER_BYTES {
            queue.wanted = queue.last;
            self.wanted.notify_one();
        }
        Lsn(queue.last)
    }

    /// The last record queued.
    pub(super) fn last(&self) -> Lsn {
        Lsn(self.queue.lock().last)
    }

    /// Bytes that wait for a round.
    pub(super) fn pending_bytes(&self) -> usize {
        self.queue.lock().pending_bytes
    }

    /// Whether records wait.
    pub(super) fn has_pending(&self) -> bool {
        !self.queue.lock().pending.is_empty()
    }

    /// Whether records are queued or on their way to the log.
    pub(super) fn has_unsettled(&self) -> bool {
        let queue = self.queue.lock();
        queue.durable < queue.last
    }

    /// Bytes ever written to the log, plus those found in it.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The log itself, for truncating it.
    pub(super) fn wal(&self) -> &Wal {
        &self.wal
    }

    /// Returns when the record and all before it are durable. On [`Code::NoSpace`] they are not, but
    /// stay queued.
    pub(super) fn sync(&self, lsn: Lsn) -> FsResult<()> {
        let mut queue = self.queue.lock();
        loop {
            if queue.durable >= lsn.0 {
                return Ok(());
            }
            self.health.check()?;
            if lsn.0 > queue.last {
                let context = format!("record {} of {} was never made", lsn.0, queue.last);
                return Err(FsError::new(Code::Invalid, context));
            }
            if queue.leading {
                self.settled.wait(&mut queue);
            } else {
                self.lead(&mut queue)?;
            }
        }
    }

    /// As [`Journal::sync`]; `done` runs on the commit thread.
    pub(super) fn on_durable(&self, lsn: Lsn, done: Callback) {
        let mut queue = self.queue.lock();
        let failed = self.health.check().err();
        if failed.is_some() || lsn.0 <= queue.durable {
            queue.answered.push((done, failed.map_or(Ok(()), Err)));
        } else {
            queue.callbacks.entry(lsn.0).or_default().push(done);
            queue.wanted = queue.wanted.max(lsn.0.min(queue.last));
        }
        self.wanted.notify_one();
    }

    /// The commit thread: leads rounds for those who do not wait themselves, and answers them. Only
    /// it calls callbacks, so that they may take locks that a caller of the store holds.
    pub(super) fn run(&self) {
        let mut queue = self.queue.lock();
        loop {
            if !queue.answered.is_empty() {
                let answered = std::mem::take(&mut queue.answered);
                MutexGuard::unlocked(&mut queue, || {
                    answered
                        .into_iter()
                        .for_each(|(callback, result)| callback(result));
                });
            } else if queue.closing {
                return;
            } else if queue.leading || queue.wanted <= queue.durable || queue.pending.is_empty() {
                self.wanted.wait(&mut queue);
            } else if let Err(error) = self.lead(&mut queue) {
                // Whoever waited was told; the next one asks again.
                queue.wanted = 0;
                tracing::debug!(%error, "commit failed");
            }
        }
    }

    /// Ends [`Journal::run`] when all callbacks that can be answered are.
    pub(super) fn close(&self) {
        let mut queue = self.queue.lock();
        queue.closing = true;
        let left = std::mem::take(&mut queue.callbacks).into_values().flatten();
        let gone = || {
            Err(FsError::new(
                Code::Interrupted,
                "the chunk store was closed",
            ))
        };
        let left: Vec<_> = left.map(|callback| (callback, gone())).collect();
        queue.answered.extend(left);
        self.wanted.notify_all();
    }

    /// Writes all that is queued.
    fn lead(&self, queue: &mut MutexGuard<'_, Queue>) -> FsResult<()> {
        queue.leading = true;
        queue.pending_bytes = 0;
        let mut batch = std::mem::take(&mut queue.pending);
        let first = queue.durable + 1;
        let (written, result) = MutexGuard::unlocked(queue, || {
            let (written, result) = self.write(&batch);
            self.settle(batch.drain(..written));
            (written, result)
        });
        queue.leading = false;
        queue.durable = first - 1 + written as u64;
        // What found no space goes back in front of what came meanwhile.
        queue.pending_bytes += batch.iter().map(Entry::bytes).sum::<usize>();
        while let Some(entry) = batch.pop_back() {
            queue.pending.push_front(entry);
        }
        self.answer(queue, &result);
        self.settled.notify_all();
        result
    }

    /// Writes as many entries as the log takes; how many are durable.
    fn write(&self, batch: &VecDeque<Entry>) -> (usize, FsResult<()>) {
        let data_synced = self.health.check().and_then(|()| {
            let names_extents = batch.iter().any(|entry| entry.names_extents);
            if names_extents {
                self.health.note(self.extents.sync_data())
            } else {
                Ok(())
            }
        });
        if let Err(error) = data_synced {
            return (0, Err(error));
        }
        let mut appended = (0, None);
        let mut full = Ok(());
        for entry in batch {
            let images = entry.images.iter().map(|image| &*image.bytes);
            let parts: Vec<&[u8]> = std::iter::once(&*entry.body).chain(images).collect();
            match self.health.note(self.wal.append(&parts)) {
                Ok(lsn) => appended = (appended.0 + 1, Some(lsn)),
                Err(error) => {
                    full = Err(error.during("write to the chunk store's log"));
                    break;
                }
            }
            self.bytes
                .fetch_add(entry.bytes() as u64, Ordering::Relaxed);
        }
        let synced = appended
            .1
            .map_or(Ok(()), |lsn| self.health.note(self.wal.sync(lsn)));
        match synced {
            Ok(()) => (appended.0, full),
            Err(error) => (0, Err(error)),
        }
    }

    /// What becomes true when entries are durable.
    fn settle(&self, entries: impl Iterator<Item = Entry>) {
        for entry in entries {
            self.space.release(&entry.freed);
            if let Some((group, version)) = entry.mark {
                self.catalog.set_durable(group, version);
            }
        }
    }

    /// Moves callbacks to the answered ones: those up to the durable record, or all after a failure.
    fn answer(&self, queue: &mut Queue, result: &FsResult<()>) {
        let later = queue.callbacks.split_off(&(queue.durable + 1));
        let reached = std::mem::replace(&mut queue.callbacks, later)
            .into_values()
            .flatten();
        queue
            .answered
            .extend(reached.map(|callback| (callback, Ok(()))));
        if let Err(error) = result {
            let failed = std::mem::take(&mut queue.callbacks).into_values().flatten();
            let failed: Vec<_> = failed
                .map(|callback| (callback, Err(error.clone())))
                .collect();
            queue.answered.extend(failed);
        }
        if !queue.answered.is_empty() || queue.wanted > queue.durable {
            self.wanted.notify_one();
        }
    }
}
