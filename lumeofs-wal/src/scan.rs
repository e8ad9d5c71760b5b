//! Reads a segment from front to back: which records are intact, and what the place after the last
//! one means: the end of the log, a torn tail, or damage.

use crate::Lsn;
use crate::format::{
    BLOCK, Generation, RECORD_ALIGNMENT, RECORD_HEADER_BYTES, RecordHeader, SegmentHeader, damaged,
};
use lumeofs_base::disk::DiskFile;
use lumeofs_base::limits::{BLOCK_SIZE, WAL_RECORD_BYTES_MAX};
use lumeofs_base::{AlignedBuf, FsError, FsResult};
use std::path::Path;

/// Read from the disk at once.
const WINDOW_BYTES: usize = 1 << 20;

/// How a segment ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    /// Last record, if there is one in this segment.
    pub(crate) last: Option<Lsn>,
    /// File offset after it.
    pub(crate) offset: u64,
    /// The rest of a batch that did not make it to the disk follows. New records must then go to a
    /// new generation: beside them, the leftovers would look like records of the log.
    pub(crate) torn: bool,
}

/// Visits the records of a segment in order.
///
/// With `stop_at` the segment is known to hold the log up to that record, and whatever follows is
/// not part of it. Without, the segment is the last one and ends where the records end.
pub(crate) fn walk(
    file: &dyn DiskFile,
    path: &Path,
    header: &SegmentHeader,
    stop_at: Option<Lsn>,
    visit: &mut dyn FnMut(Lsn, &[u8]) -> FsResult<()>,
) -> FsResult<End> {
    let mut scanner = Scanner::new(file, path, header)?;
    let mut place = Place {
        next: header.base + BLOCK,
        last: 0,
        batch: 0,
        predecessor: 0,
    };
    while stop_at.is_none_or(|stop| place.last < stop.0) {
        let Some(record) = scanner.next_record(&place)? else {
            break;
        };
        let payload = scanner.payload(&record)?;
        visit(Lsn(record.position), payload)?;
        place = place.after(&record);
    }
    let offset = place.next - header.base;
    let torn = match stop_at {
        Some(stop) if place.last == stop.0 => false,
        Some(stop) => {
            return Err(damaged(
                path,
                offset,
                format_args!(
                    "the log goes on to offset {}",
                    stop.0.saturating_sub(header.base)
                ),
            ));
        }
        None => scanner.judge_tail(&place)?,
    };
    Ok(End {
        last: (place.last != 0).then_some(Lsn(place.last)),
        offset,
        torn,
    })
}

/// How far a walk has come, in positions.
struct Place {
    /// After the last record.
    next: u64,
    /// The last record, 0 for none.
    last: u64,
    /// Start of its batch.
    batch: u64,
    /// What records of its batch name as the last one before it.
    predecessor: u64,
}

impl Place {
    /// Whether `record` directly follows.
    fn leads_to(&self, record: &RecordHeader) -> bool {
        if record.offset_in_batch == 0 {
            record.position == self.next.next_multiple_of(BLOCK)
                && record.predecessor() == self.last
        } else {
            record.position == self.next
                && record.batch_start() == self.batch
                && record.predecessor() == self.predecessor
        }
    }

    fn after(&self, record: &RecordHeader) -> Self {
        Self {
            next: record.position + record.record_bytes(),
            last: record.position,
            batch: record.batch_start(),
            predecessor: record.predecessor(),
        }
    }
}

/// A window over a segment file.
struct Scanner<'a> {
    file: &'a dyn DiskFile,
    path: &'a Path,
    base: u64,
    generation: Generation,
    /// Usable bytes of the file.
    len: u64,
    window: AlignedBuf,
    window_start: u64,
}

impl<'a> Scanner<'a> {
    fn new(file: &'a dyn DiskFile, path: &'a Path, header: &SegmentHeader) -> FsResult<Self> {
        let len = file
            .len()
            .map_err(|error| FsError::from_disk(&error, path.display()))?;
        let len = len.min(header.capacity) / BLOCK * BLOCK;
        let mut window = AlignedBuf::zeroed(WINDOW_BYTES);
        window.set_len(0);
        let (base, generation) = (header.base, header.generation);
        Ok(Self {
            file,
            path,
            base,
            generation,
            len,
            window,
            window_start: 0,
        })
    }

    /// Bytes of the file at `offset`, as many as asked for or, at its end, fewer.
    fn bytes(&mut self, offset: u64, len: usize) -> FsResult<&[u8]> {
        let end = (offset + len as u64).min(self.len).max(offset);
        let window_end = self.window_start + self.window.len() as u64;
        if offset < self.window_start || end > window_end {
            self.load(offset, end)?;
        }
        let start = (offset - self.window_start) as usize;
        Ok(self
            .window
            .get(start..start + (end - offset) as usize)
            .unwrap_or(&[]))
    }

    fn load(&mut self, offset: u64, end: u64) -> FsResult<()> {
        self.window_start = offset / BLOCK * BLOCK;
        let needed = end.saturating_sub(self.window_start) as usize;
        let len = needed.next_multiple_of(BLOCK_SIZE).max(WINDOW_BYTES);
        let len = len.min(self.len.saturating_sub(self.window_start) as usize);
        if len > self.window.capacity() {
            self.window = AlignedBuf::zeroed(len);
        }
        self.window.set_len(len);
        let read = self.file.read_exact_at(&mut self.window, self.window_start);
        read.map_err(|error| {
            let what = format_args!("read {} at {}", self.path.display(), self.window_start);
            FsError::from_disk(&error, what)
        })
    }

    /// The intact record of this generation at a position.
    fn record_at(&mut self, position: u64) -> FsResult<Option<RecordHeader>> {
        let offset = position - self.base;
        let generation = self.generation;
        let bytes = self.bytes(offset, RECORD_HEADER_BYTES)?;
        if bytes.len() < RECORD_HEADER_BYTES {
            return Ok(None);
        }
        let header = RecordHeader::decode(bytes);
        let payload_bytes = header.payload_bytes as usize;
        if header.position != position || payload_bytes > WAL_RECORD_BYTES_MAX {
            return Ok(None);
        }
        let record = self.bytes(offset, RECORD_HEADER_BYTES + payload_bytes)?;
        let whole = record.len() == RECORD_HEADER_BYTES + payload_bytes;
        Ok((whole && RecordHeader::verify(record, generation)).then_some(header))
    }

    fn next_record(&mut self, place: &Place) -> FsResult<Option<RecordHeader>> {
        for position in [place.next, place.next.next_multiple_of(BLOCK)] {
            if let Some(record) = self.record_at(position)?
                && place.leads_to(&record)
            {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    fn payload(&mut self, record: &RecordHeader) -> FsResult<&[u8]> {
        let offset = record.position - self.base + RECORD_HEADER_BYTES as u64;
        self.bytes(offset, record.payload_bytes as usize)
    }

    /// What follows the last record that could be read: an error if it proves that a durable record
    /// is missing, else whether anything but zeros and older generations is there.
    fn judge_tail(&mut self, place: &Place) -> FsResult<bool> {
        let block_end = place.next.next_multiple_of(BLOCK);
        let rest = self.bytes(place.next - self.base, (block_end - place.next) as usize)?;
        let mut torn = rest.iter().any(|byte| *byte != 0);
        let mut position = place.next;
        while position < self.base + self.len {
            let Some(candidate) = self.next_candidate(position)? else {
                break;
            };
            if let Some(record) = self.record_at(candidate)? {
                if record.predecessor() > place.last {
                    return Err(damaged(
                        self.path,
                        place.next - self.base,
                        format_args!(
                            "an intact record at offset {} proves that one here was lost",
                            candidate - self.base
                        ),
                    ));
                }
                torn = true;
            }
            position = candidate + RECORD_ALIGNMENT;
        }
        Ok(torn)
    }

    /// The next place at or after `position` that says of itself that it is a record.
    fn next_candidate(&mut self, mut position: u64) -> FsResult<Option<u64>> {
        while position < self.base + self.len {
            let base = self.base;
            let bytes = self.bytes(position - base, WINDOW_BYTES / 2)?;
            let headers = bytes.chunks_exact(RECORD_ALIGNMENT as usize);
            let mut claimed = position;
            // The position is the second of a header's three words.
            for word in headers.skip(1) {
                if word == claimed.to_le_bytes() {
                    return Ok(Some(claimed));
                }
                claimed += RECORD_ALIGNMENT;
            }
            position = claimed.max(position + RECORD_ALIGNMENT);
        }
        Ok(None)
    }
}
