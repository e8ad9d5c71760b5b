//! A batch under construction: records back to back in one aligned buffer, written in one go.

use crate::Lsn;
use crate::format::{BLOCK, Generation, RECORD_HEADER_BYTES, RecordHeader, record_bytes};
use lumeofs_base::checksum::{crc32c, crc32c_append};
use lumeofs_base::{AlignedBuf, limits::BLOCK_SIZE};

/// A record on its way into a batch. Its checksum is computed before any lock is taken.
pub(crate) struct Payload<'a> {
    parts: &'a [&'a [u8]],
    len: usize,
    crc: u32,
}

impl<'a> Payload<'a> {
    pub(crate) fn new(parts: &'a [&'a [u8]]) -> Self {
        let len = parts.iter().map(|part| part.len()).sum();
        let crc = parts
            .iter()
            .fold(crc32c(b""), |crc, part| crc32c_append(crc, part));
        Self { parts, len, crc }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Bytes that it takes in the log.
    pub(crate) fn record_bytes(&self) -> u64 {
        record_bytes(self.len)
    }
}

/// Records that are written together, at one place.
pub(crate) struct Batch {
    pub(crate) generation: Generation,
    /// Position of the first record; a multiple of the block size.
    pub(crate) start: u64,
    /// Position of the last record.
    pub(crate) last: Lsn,
    /// Distance from `start` back to the last record before the batch in this segment, 0 for none.
    predecessor_distance: u32,
    /// The bytes so far, then (sealed) whole blocks.
    buf: AlignedBuf,
}

impl Batch {
    /// An empty batch. `predecessor` is the last record before it in this segment, 0 for none.
    pub(crate) fn new(
        generation: Generation,
        start: u64,
        predecessor: u64,
        mut buf: AlignedBuf,
    ) -> Self {
        buf.set_len(0);
        let distance = if predecessor == 0 {
            0
        } else {
            start - predecessor
        };
        let predecessor_distance =
            u32::try_from(distance).expect("a segment is smaller than 4 GiB");
        Self {
            generation,
            start,
            last: Lsn(predecessor),
            predecessor_distance,
            buf,
        }
    }

    pub(crate) fn len(&self) -> u64 {
        self.buf.len() as u64
    }

    /// Where the batch ends on disk when it is sealed after `more` further bytes.
    pub(crate) fn end_with(&self, more: u64) -> u64 {
        self.start + (self.len() + more).next_multiple_of(BLOCK)
    }

    /// Whether so many more bytes fit into the buffer.
    pub(crate) fn has_room(&self, more: u64) -> bool {
        self.len() + more <= self.buf.capacity() as u64
    }

    pub(crate) fn push(&mut self, payload: &Payload<'_>) -> Lsn {
        let offset = self.buf.len();
        let header = RecordHeader {
            payload_bytes: payload.len as u32,
            position: self.start + offset as u64,
            offset_in_batch: offset as u32,
            predecessor_distance: self.predecessor_distance,
        };
        self.buf.set_len(offset + payload.record_bytes() as usize);
        let (head, mut rest) = self.buf[offset..].split_at_mut(RECORD_HEADER_BYTES);
        head.copy_from_slice(&header.encode(self.generation, payload.crc));
        for part in payload.parts {
            let (piece, after) = rest.split_at_mut(part.len());
            piece.copy_from_slice(part);
            rest = after;
        }
        rest.fill(0);
        self.last = Lsn(header.position);
        self.last
    }

    /// Fills the last block with zeros: nothing can be added any more.
    pub(crate) fn seal(&mut self) {
        let len = self.buf.len();
        self.buf.set_len(len.next_multiple_of(BLOCK_SIZE));
        self.buf[len..].fill(0);
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buf
    }

    pub(crate) fn into_buf(self) -> AlignedBuf {
        self.buf
    }

    /// The payload of the record at `lsn`, if there is one in this batch.
    pub(crate) fn read(&self, lsn: Lsn) -> Option<Vec<u8>> {
        let offset = usize::try_from(lsn.0.checked_sub(self.start)?).ok()?;
        let record = self.buf.get(offset..)?;
        let header = RecordHeader::decode(record.get(..RECORD_HEADER_BYTES)?);
        let end = RECORD_HEADER_BYTES + header.payload_bytes as usize;
        let record = record.get(..end)?;
        (header.position == lsn.0 && RecordHeader::verify(record, self.generation))
            .then(|| record[RECORD_HEADER_BYTES..].to_vec())
    }
}
