//! What the scrub of a store remembers over restarts.
//!
//! ```text
//! 0  magic "LMSC"     4
//! 4  version          2   1
//! 6  zero             2
//! 8  CRC-32C          4   of what follows
//! 12 postcard form of Record
//! ```
//! One that cannot be read is none: the rounds begin anew.

use lumeofs_base::ChunkId;
use lumeofs_base::checksum::crc32c;
use lumeofs_base::limits::{BLOCK_SIZE, SCRUB_INTERVAL};
use serde::{Deserialize, Serialize};

const MAGIC: [u8; 4] = *b"LMSC";
const VERSION: u16 = 1;
const HEAD_BYTES: usize = 12;
/// Damaged pieces that are remembered over a restart; further ones are found again by the next round.
const WAITING_KEPT: usize = 200;
/// A chunk's id and an offset within it in their longest form, and the rest of the record.
const _: () = assert!(HEAD_BYTES + WAITING_KEPT * (10 + 5) + 128 <= BLOCK_SIZE);

/// See above.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Counts rounds; 0 = none has begun.
    pub(super) round: u64,
    /// The round has not ended.
    pub(super) running: bool,
    /// The last chunk that it has read to the end.
    pub(super) after: Option<ChunkId>,
    /// Bytes that it has read.
    pub(super) bytes: u64,
    /// End of the last one that ended, by the wall clock.
    pub(super) ended_ms: Option<u64>,
    /// Blocks found damaged, ever.
    pub(super) damaged: u64,
    /// Of these, those that were repaired.
    pub(super) repaired: u64,
    /// Pieces with damage that is not repaired.
    pub(super) waiting: Vec<(ChunkId, u64)>,
}

impl Record {
    pub(super) fn encode(&mut self) -> Vec<u8> {
        self.waiting.truncate(WAITING_KEPT);
        let body = postcard::to_stdvec(self).expect("a record has no form that cannot be encoded");
        let mut bytes = Vec::with_capacity(HEAD_BYTES + body.len());
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend([0; 2]);
        bytes.extend(crc32c(&body).to_le_bytes());
        bytes.extend(body);
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, body) = bytes.split_at_checked(HEAD_BYTES)?;
        let mut expected = Vec::from(MAGIC);
        expected.extend(VERSION.to_le_bytes());
        expected.extend([0; 2]);
        expected.extend(crc32c(body).to_le_bytes());
        (head == expected)
            .then(|| postcard::from_bytes(body).ok())
            .flatten()
    }

    /// Whether it is time for another round. A clock that was ahead when the last one ended does not put it off.
    pub(super) fn is_due(&mut self, wall_ms: u64) -> bool {
        let Some(ended) = &mut self.ended_ms else {
            return true;
        };
        *ended = wall_ms.min(*ended);
        wall_ms - *ended >= SCRUB_INTERVAL.as_millis() as u64
    }

    pub(super) fn begin(&mut self) {
        self.round += 1;
        self.running = true;
        (self.after, self.bytes) = (None, 0);
    }

    pub(super) fn end(&mut self, wall_ms: u64) {
        self.running = false;
        self.ended_ms = Some(wall_ms);
    }
}
