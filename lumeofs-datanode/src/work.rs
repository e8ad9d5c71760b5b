//! Store work of a group, strictly in order, by whichever thread is there.

use crate::data::Data;
use crate::group::{Caller, GroupDriver};
use lumeofs_base::checksum::block_checksums;
use lumeofs_base::limits::IO_BYTES_MAX;
use lumeofs_base::{AlignedBuf, ChunkId, ChunkOp, ChunkState, FsResult, NodeId};
use lumeofs_replica::{CopyStep, Entry, Note, Outcome, Piece, StreamId, Work};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::store::Lsn;

/// Pieces of work that a connection's thread does for others before it leaves them to the worker.
const HELP_MAX: usize = 16;
/// Chunks in one list.
const LIST_MAX: usize = 4096;

/// The queue.
#[derive(Default)]
pub(crate) struct WorkQueue {
    state: Mutex<State>,
    ready: Condvar,
    lsn: AtomicU64,
    /// Counts the histories of this member: each catch-up begins one.
    history: AtomicU64,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Work<Data>>,
    /// A thread is at it.
    running: bool,
    stopped: bool,
}

impl WorkQueue {
    pub(crate) fn push(&self, work: Work<Data>) {
        self.state.lock().queue.push_back(work);
    }

    pub(crate) fn clear(&self) {
        self.state.lock().queue.clear();
    }

    pub(crate) fn begin_history(&self) {
        self.history.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether nothing is queued or under way.
    pub(crate) fn is_idle(&self) -> bool {
        let state = self.state.lock();
        state.queue.is_empty() && !state.running
    }

    /// How much is queued.
    pub(crate) fn len(&self) -> usize {
        self.state.lock().queue.len()
    }

    /// Wakes the worker for what another thread queued and has not come to, because it waits for a peer.
    pub(crate) fn nudge_if_queued(&self) {
        if !self.state.lock().queue.is_empty() {
            self.nudge();
        }
    }

    pub(crate) fn nudge(&self) {
        self.ready.notify_one();
    }

    pub(crate) fn stop(&self) {
        let mut state = self.state.lock();
        state.stopped = true;
        state.queue.clear();
        self.ready.notify_all();
    }
}

impl GroupDriver {
    /// Does work on the calling thread unless another one is at it.
    pub(crate) fn run_some_work(&self) {
        let mut state = self.work.state.lock();
        if state.running {
            return;
        }
        state.running = true;
        for _ in 0..HELP_MAX {
            let Some(work) = state.queue.pop_front() else {
                break;
            };
            drop(state);
            self.execute(work);
            state = self.work.state.lock();
        }
        state.running = false;
        if !state.queue.is_empty() {
            self.work.ready.notify_one();
        }
    }

    /// What the group's worker does until the end.
    pub(crate) fn run_worker(&self) {
        loop {
            let mut state = self.work.state.lock();
            while !state.stopped && (state.queue.is_empty() || state.running) {
                self.work.ready.wait(&mut state);
            }
            if state.stopped {
                return;
            }
            drop(state);
            self.run_some_work();
        }
    }

    fn execute(&self, work: Work<Data>) {
        if let Err(error) = self.try_execute(work) {
            self.store_failed(&error);
        }
    }

    fn try_execute(&self, work: Work<Data>) -> FsResult<()> {
        let (store, group) = (&self.store, self.id);
        match work {
            Work::Apply { entry } => {
                let outcome = self.apply(&entry)?;
                self.with(Caller::Patient, |core, now| {
                    core.on_applied(entry.version, outcome, now)
                });
            }
            Work::Follow {
                entry,
                partial,
                stream,
            } => {
                if partial {
                    self.patch(&entry)?;
                } else {
                    self.apply(&entry)?;
                }
                self.with(Caller::Patient, |core, _| {
                    core.on_followed(stream, entry.version)
                });
            }
            Work::Note(note) => self.keep_note(&note)?,
            Work::Sync { upto } => {
                let me = self.me.clone();
                let history = self.work.history.load(Ordering::Acquire);
                let done = move |result: FsResult<()>| {
                    let Some(driver) = me.upgrade() else { return };
                    match result {
                        Ok(()) => driver.with(Caller::Quick, |core, now| {
                            // Places in a history that was given up meanwhile say nothing of the
                            // one that took its place.
                            let still = driver.work.history.load(Ordering::Acquire) == history;
                            if still && core.peer_state().complete {
                                core.on_durable(upto, now);
                            }
                        }),
                        Err(error) => driver.store_failed(&error),
                    }
                };
                store.on_durable(Lsn(self.work.lsn.load(Ordering::Acquire)), Box::new(done));
            }
            Work::ListOwn {
                member,
                stream,
                after,
            } => {
                let chunks = store.list(group, after, LIST_MAX);
                let end = chunks.len() < LIST_MAX;
                self.with(Caller::Quick, |core, now| {
                    core.on_own_list(member, stream, chunks, end, now);
                });
            }
            Work::ReadPiece {
                member,
                stream,
                chunk,
                offset,
            } => {
                self.read_piece(member, stream, chunk, offset);
            }
            Work::ListForPrimary { stream, after } => {
                let chunks = store.list(group, after, LIST_MAX);
                let end = chunks.len() < LIST_MAX;
                self.with(Caller::Patient, |core, _| {
                    core.on_listed(stream, chunks, end)
                });
            }
            Work::Copy { stream, step } => self.copy(stream, step)?,
            Work::Finish { stream, last, note } => {
                self.work.begin_history();
                store.set_last(group, last)?;
                self.keep_note(&note)?;
                self.with(Caller::Patient, |core, _| core.on_finished(stream));
            }
        }
        Ok(())
    }

    fn apply(&self, entry: &Entry<Data>) -> FsResult<Outcome> {
        let applied = self
            .store
            .apply(self.id, entry.version, &entry.op, &entry.data.whole())
            .or_else(|error| self.apply_over_damage(entry, error))?;
        self.work.lsn.fetch_max(applied.lsn.0, Ordering::AcqRel);
        Ok(applied
            .refused
            .map_or(Outcome::Applied, |error| Outcome::Refused(error.code)))
    }

    /// Changes the copied beginning of a chunk without touching the mark that it is incomplete.
    fn patch(&self, entry: &Entry<Data>) -> FsResult<()> {
        match &entry.op {
            ChunkOp::Write {
                chunk,
                offset,
                checksums,
                ..
            } => self
                .store
                .copy_piece(self.id, *chunk, *offset, &entry.data.whole(), checksums),
            ChunkOp::Zero {
                chunk, offset, len, ..
            } => self.zero(*chunk, *offset, *offset + *len),
            // Clipping makes the one a range of zeros and leaves the other to the copy's end.
            ChunkOp::Truncate { .. } | ChunkOp::Delete { .. } | ChunkOp::Fence { .. } => Ok(()),
        }
    }

    fn zero(&self, chunk: ChunkId, start: u64, end: u64) -> FsResult<()> {
        for (offset, len) in self.store.extents(chunk) {
            let (mut from, to) = (offset.max(start), (offset + len).min(end));
            while from < to {
                let piece = AlignedBuf::zeroed(IO_BYTES_MAX.min((to - from) as usize));
                let checksums = block_checksums(from, &piece);
                self.store
                    .copy_piece(self.id, chunk, from, &piece, &checksums)?;
                from += piece.len() as u64;
            }
        }
        Ok(())
    }

    fn keep_note(&self, note: &Note) -> FsResult<()> {
        let bytes = postcard::to_stdvec(note).expect("a note has no form that cannot be encoded");
        self.store.set_group_note(self.id, &bytes)
    }

    fn copy(&self, stream: StreamId, step: CopyStep<Data>) -> FsResult<()> {
        match step {
            CopyStep::Begin { chunk } => self.store.copy_begin(self.id, chunk),
            CopyStep::Piece {
                chunk,
                offset,
                checksums,
                data,
            } => {
                self.store
                    .copy_piece(self.id, chunk, offset, &data.whole(), &checksums)?;
                self.with(Caller::Patient, |core, _| core.on_copied(stream));
                Ok(())
            }
            CopyStep::End { state } => self.store.copy_end(self.id, &state),
            CopyStep::Drop { chunk } => self.store.drop_chunk(self.id, chunk),
        }
    }

    fn read_piece(&self, member: NodeId, stream: StreamId, chunk: ChunkId, offset: u64) {
        match self.piece(chunk, offset) {
            Ok(piece) => self.with(Caller::Quick, |core, now| {
                core.on_piece(member, stream, piece, now);
            }),
            // The own copy is damaged: this member cannot be helped from here, but from another one that is in sync.
            Err(error) => {
                tracing::error!(group = %self.id, %chunk, %member, %error, "catch-up gave up");
                self.end_outgoing(member, stream);
                self.with(Caller::Quick, |core, _| core.on_unreadable());
            }
        }
    }

    fn piece(&self, chunk: ChunkId, offset: u64) -> FsResult<Piece<Data>> {
        let missing = ChunkState {
            chunk,
            version: Default::default(),
            len: 0,
            truncations: 0,
            deleted: true,
            part: None,
        };
        let state = self.store.state(self.id, chunk).unwrap_or(missing);
        let extents = if state.deleted {
            Vec::new()
        } else {
            self.store.extents(chunk)
        };
        let mut rest = extents.iter().filter(|(start, len)| start + len > offset);
        let Some((start, len)) = rest.next() else {
            let data = Data::none();
            let (checksums, truncations) = (Vec::new(), state.truncations);
            return Ok(Piece {
                chunk,
                offset,
                checksums,
                data,
                truncations,
                end: Some(state),
            });
        };
        let from = offset.max(*start);
        let to = (start + len).min(from + IO_BYTES_MAX as u64);
        let (data, checksums) = self.read(chunk, from, (to - from) as usize)?;
        let end = (to == start + len && rest.next().is_none()).then_some(state);
        let (data, truncations) = (data.into(), state.truncations);
        Ok(Piece {
            chunk,
            offset: from,
            checksums,
            data,
            truncations,
            end,
        })
    }
}
