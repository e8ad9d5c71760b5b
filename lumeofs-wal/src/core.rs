//! The log as a state machine: where records go, how batches are cut, which segment comes next.
//!
//! Nothing here touches a disk or a thread. The two threads of the driver ask what to do
//! ([`Core::next_step`] for the writer, [`Core::next_chore`] for the keeper), do it, and report back.
//! `F` is whatever the driver knows a file by.

mod batch;
mod keeping;
mod truncate;

pub(crate) use batch::{Batch, Payload};
pub(crate) use keeping::Chore;

use crate::format::{BLOCK, Generation, RECORD_HEADER_BYTES, SegmentHeader};
use crate::{Lsn, WalConfig};
use lumeofs_base::AlignedBuf;
use lumeofs_base::limits::{WAL_EAGER_BYTES, WAL_RECORD_BYTES_MAX};
use std::collections::VecDeque;
use std::sync::Arc;

/// Buffers of written batches kept for the next ones.
const FREE_BUFFERS_MAX: usize = 3;

/// A segment of the log.
#[derive(Clone, Debug)]
pub(crate) struct Segment<F> {
    pub(crate) header: SegmentHeader,
    pub(crate) file: F,
    /// The file is preallocated up to this offset.
    pub(crate) filled: u64,
    /// Its header and name are durable, so batches may be written.
    pub(crate) begun: bool,
    /// Bytes of the file that hold header and records; counted when the next segment begins.
    pub(crate) used: u64,
}

impl<F> Segment<F> {
    /// Position of the first record.
    fn first(&self) -> u64 {
        self.header.base + BLOCK
    }

    /// Position after the last byte that may be used.
    fn end(&self) -> u64 {
        self.header.base + self.header.capacity
    }
}

/// A file for a later segment.
#[derive(Clone, Debug)]
pub(crate) struct Spare<F> {
    pub(crate) file: F,
    pub(crate) filled: u64,
}

/// What opening found.
pub(crate) struct Recovered<F> {
    /// The log's segments, oldest first.
    pub(crate) live: Vec<Segment<F>>,
    pub(crate) spares: Vec<Spare<F>>,
    /// Files that are no part of the log any more but still bear the name of one.
    pub(crate) retired: Vec<Spare<F>>,
    pub(crate) last: Lsn,
    /// Where the next batch goes in the last segment; `None` if that one must not be continued.
    pub(crate) next: Option<u64>,
    /// Higher than every generation seen.
    pub(crate) next_generation: Generation,
}

/// Where a record went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placed {
    At(Lsn),
    /// Too much waits for the disk; try again after a write.
    TooMuchPending,
    /// The keeper must prepare space first.
    NoRoom,
}

/// What the writer does next.
#[derive(Clone)]
pub(crate) enum Step<F> {
    /// Make a header durable in a spare file, and the file's name that of a segment.
    Begin { file: F, header: SegmentHeader },
    /// Write a batch at an offset of a file.
    Write {
        file: F,
        offset: u64,
        batch: Arc<Batch>,
    },
}

/// Where the record is that a reader asks for.
pub(crate) enum Located<F> {
    Buffered(Vec<u8>),
    OnDisk {
        file: F,
        offset: u64,
        generation: Generation,
    },
    Missing,
}

pub(crate) struct Core<F> {
    config: WalConfig,
    /// Oldest first; the last one takes new records while `next` is set.
    live: VecDeque<Segment<F>>,
    /// Where the next batch starts, unless the next record begins a new segment.
    next: Option<u64>,
    next_base: u64,
    next_generation: Generation,
    open: Option<Batch>,
    /// In writing order; the first one may be on its way to the disk.
    sealed: VecDeque<Arc<Batch>>,
    /// Bytes of `open` and `sealed`.
    pending_bytes: u64,
    last: Lsn,
    durable: Lsn,
    /// Somebody waits for everything up to here.
    wanted: Lsn,
    /// Records above this are to be dropped.
    truncation: Option<Lsn>,
    /// The segment that a truncation has asked the writer to begin.
    truncating_into: Option<Segment<F>>,
    free: Vec<AlignedBuf>,
    keeping: keeping::Keeping<F>,
}

impl<F: Clone> Core<F> {
    pub(crate) fn new(config: WalConfig, found: Recovered<F>) -> Self {
        let next_base = found.live.last().map_or(0, Segment::end);
        let keeping = keeping::Keeping::new(found.spares, found.retired);
        Self {
            config,
            live: found.live.into(),
            next: found.next,
            next_base,
            next_generation: found.next_generation,
            open: None,
            sealed: VecDeque::new(),
            pending_bytes: 0,
            last: found.last,
            durable: found.last,
            wanted: found.last,
            truncation: None,
            truncating_into: None,
            free: Vec::new(),
            keeping,
        }
    }

    pub(crate) fn last(&self) -> Lsn {
        self.last
    }

    pub(crate) fn durable(&self) -> Lsn {
        self.durable
    }

    /// Longest payload that a record may have.
    pub(crate) fn payload_bytes_max(&self) -> usize {
        let in_segment = (self.config.segment_bytes - BLOCK) as usize - RECORD_HEADER_BYTES;
        in_segment.min(WAL_RECORD_BYTES_MAX)
    }

    /// Bytes of the log's segments that hold records or headers, buffered ones included.
    pub(crate) fn size_bytes(&self) -> u64 {
        let closed: u64 = self
            .live
            .iter()
            .rev()
            .skip(1)
            .map(|segment| segment.used)
            .sum();
        closed + self.live.back().map_or(0, |tail| self.used_of(tail))
    }

    fn used_of(&self, tail: &Segment<F>) -> u64 {
        let open = self.open.as_ref().map(|batch| batch.end_with(0));
        open.or(self.next)
            .map_or(tail.used, |end| end - tail.header.base)
    }

    /// Gives a record its place. The payload must not exceed [`Core::payload_bytes_max`].
    pub(crate) fn place(&mut self, payload: &Payload<'_>) -> Placed {
        let bytes = payload.record_bytes();
        if self.pending_bytes > 0
            && self.pending_bytes + bytes > self.config.pending_bytes_max as u64
        {
            self.wanted = self.last;
            return Placed::TooMuchPending;
        }
        if !self.fits_open_batch(bytes) {
            self.seal();
            if let Some(missing) = self.make_batch(bytes) {
                self.keeping.need(missing);
                return Placed::NoRoom;
            }
        }
        if let Some(needed) = self.unfilled(bytes) {
            self.keeping.need(keeping::Need::Tail(needed));
            let in_spare = BLOCK + bytes.next_multiple_of(BLOCK);
            if !(self.keeping.is_paused() && self.keeping.has_spare(in_spare)) {
                return Placed::NoRoom;
            }
            // The disk is full, so this segment cannot be prepared further; but a spare is left.
            self.seal();
            self.close_tail();
            assert!(self.make_batch(bytes).is_none(), "a spare was there");
        }
        let open = self.open.as_mut().expect("found or made above");
        self.last = open.push(payload);
        self.pending_bytes += bytes;
        Placed::At(self.last)
    }

    fn fits_open_batch(&self, bytes: u64) -> bool {
        self.open.as_ref().is_some_and(|open| {
            let tail = self.live.back().expect("an open batch has a segment");
            open.has_room(bytes) && open.end_with(bytes) <= tail.end()
        })
    }

    /// How far the last segment must be prepared for a record in the open batch, if it is not.
    fn unfilled(&self, bytes: u64) -> Option<u64> {
        let (open, tail) = (self.open.as_ref()?, self.live.back()?);
        let needed = open.end_with(bytes) - tail.header.base;
        (needed > tail.filled).then_some(needed)
    }

    /// Opens an empty batch for a record of this size, in a new segment if need be.
    fn make_batch(&mut self, bytes: u64) -> Option<keeping::Need> {
        let padded = bytes.next_multiple_of(BLOCK);
        let fits = |next: &u64| {
            self.live
                .back()
                .is_some_and(|tail| next + padded <= tail.end())
        };
        let start = match self.next.filter(fits) {
            Some(start) => start,
            None => {
                let previous = self.last;
                let Some(segment) = self.plan_segment(BLOCK + padded, previous) else {
                    return Some(keeping::Need::Spare(BLOCK + padded));
                };
                self.close_tail();
                let start = segment.first();
                self.live.push_back(segment);
                start
            }
        };
        self.next = Some(start);
        let tail = self.live.back().expect("found or made above");
        let in_segment = self.last.0 >= tail.first();
        let predecessor = if in_segment { self.last.0 } else { 0 };
        let generation = tail.header.generation;
        let buf = self.take_buffer(bytes);
        self.open = Some(Batch::new(generation, start, predecessor, buf));
        None
    }

    /// Turns a spare with this many prepared bytes into the next segment of a log that ends with
    /// the record `previous`.
    fn plan_segment(&mut self, bytes: u64, previous: Lsn) -> Option<Segment<F>> {
        let spare = self.keeping.take_spare(bytes)?;
        let holder = self.holder_of(previous);
        let header = SegmentHeader {
            generation: self.next_generation,
            base: self.next_base,
            capacity: self.config.segment_bytes,
            previous_generation: holder.map_or(Generation(0), |segment| segment.header.generation),
            previous_last: previous.0,
        };
        self.next_generation = Generation(self.next_generation.0 + 1);
        self.next_base += header.capacity;
        Some(Segment {
            header,
            file: spare.file,
            filled: spare.filled,
            begun: false,
            used: BLOCK,
        })
    }

    fn close_tail(&mut self) {
        if let Some(used) = self.live.back().map(|tail| self.used_of(tail)) {
            self.live.back_mut().expect("seen above").used = used;
        }
        self.next = None;
    }

    /// The segment in which a position lies.
    fn holder_of(&self, lsn: Lsn) -> Option<&Segment<F>> {
        self.live
            .iter()
            .rev()
            .find(|segment| segment.first() <= lsn.0)
            .filter(|it| lsn.0 < it.end())
    }

    fn take_buffer(&mut self, bytes: u64) -> AlignedBuf {
        let wanted = bytes as usize;
        if wanted <= self.config.batch_bytes_max {
            let free = self.free.pop();
            return free.unwrap_or_else(|| AlignedBuf::zeroed(self.config.batch_bytes_max));
        }
        AlignedBuf::zeroed(wanted)
    }

    /// Ends the open batch, if it has records: the next one starts at the next block.
    fn seal(&mut self) {
        let Some(mut batch) = self.open.take() else {
            return;
        };
        if batch.len() == 0 {
            self.keep_buffer(batch.into_buf());
            return;
        }
        batch.seal();
        self.next = Some(batch.start + batch.len());
        self.sealed.push_back(Arc::new(batch));
    }

    fn keep_buffer(&mut self, buf: AlignedBuf) {
        let reusable = buf.capacity() == self.config.batch_bytes_max;
        if reusable && self.free.len() < FREE_BUFFERS_MAX {
            self.free.push(buf);
        }
    }

    /// Whether so much is buffered that it is written though nobody waits.
    pub(crate) fn has_eager_batch(&self) -> bool {
        self.pending_bytes >= WAL_EAGER_BYTES as u64
    }

    /// Whether `lsn` lies in the segments of the log, rather than before them.
    pub(crate) fn is_in_log(&self, lsn: Lsn) -> bool {
        self.live
            .front()
            .is_some_and(|first| first.first() <= lsn.0)
    }

    /// Notes that somebody waits for the record at `lsn`.
    pub(crate) fn want(&mut self, lsn: Lsn) {
        self.wanted = self.wanted.max(lsn.min(self.last));
    }

    /// What the writer is to do now; the same again until [`Core::step_done`].
    pub(crate) fn next_step(&mut self) -> Option<Step<F>> {
        let wanted = self.wanted > self.durable || self.truncation.is_some();
        if !wanted && !self.has_eager_batch() {
            return None;
        }
        if self.sealed.is_empty() {
            self.seal();
        }
        let Some(batch) = self.sealed.front() else {
            return self.next_truncation_step();
        };
        let segment = self
            .live
            .iter()
            .rev()
            .find(|it| it.header.generation == batch.generation);
        let segment = segment.expect("a segment with unwritten batches stays");
        Some(if segment.begun {
            let offset = batch.start - segment.header.base;
            Step::Write {
                file: segment.file.clone(),
                offset,
                batch: batch.clone(),
            }
        } else {
            Step::Begin {
                file: segment.file.clone(),
                header: segment.header,
            }
        })
    }

    /// The step that [`Core::next_step`] named has succeeded, and its copy was dropped.
    pub(crate) fn step_done(&mut self) {
        if let Some(mut segment) = self.truncating_into.take() {
            segment.begun = true;
            return self.finish_truncation(segment);
        }
        let batch = self
            .sealed
            .front()
            .expect("a step was due to it")
            .generation;
        let segment = self
            .live
            .iter_mut()
            .rev()
            .find(|it| it.header.generation == batch);
        let segment = segment.expect("a segment with unwritten batches stays");
        if !segment.begun {
            segment.begun = true;
            return;
        }
        let batch = self.sealed.pop_front().expect("seen above");
        self.durable = batch.last;
        self.pending_bytes = self.bytes_pending();
        if let Ok(batch) = Arc::try_unwrap(batch) {
            self.keep_buffer(batch.into_buf());
        }
    }

    fn bytes_pending(&self) -> u64 {
        let sealed: u64 = self.sealed.iter().map(|batch| batch.len()).sum();
        sealed + self.open.as_ref().map_or(0, Batch::len)
    }

    /// Finds the record at `lsn`.
    pub(crate) fn locate(&self, lsn: Lsn) -> Located<F> {
        let Some(index) = self
            .live
            .iter()
            .rposition(|it| it.first() <= lsn.0 && lsn.0 < it.end())
        else {
            return Located::Missing;
        };
        let segment = &self.live[index];
        let limit = self
            .live
            .get(index + 1)
            .map_or(self.last.0, |next| next.header.previous_last);
        if lsn.0 > limit {
            return Located::Missing;
        }
        let batches = self
            .open
            .iter()
            .chain(self.sealed.iter().map(|batch| &**batch));
        let batch = batches
            .into_iter()
            .find(|it| it.start <= lsn.0 && lsn.0 < it.start + it.len());
        match batch.map(|batch| batch.read(lsn)) {
            Some(Some(payload)) => Located::Buffered(payload),
            Some(None) => Located::Missing,
            None => Located::OnDisk {
                file: segment.file.clone(),
                offset: lsn.0 - segment.header.base,
                generation: segment.header.generation,
            },
        }
    }
}

#[cfg(test)]
mod tests;
