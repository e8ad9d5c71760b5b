//! A segmented log with group commit, on preallocated files.
//!
//! The Raft log of each metadata group and the journal of each datanode are a [`Wal`] of their own:
//! records go in through [`Wal::append`], become durable together, and are read back in order when
//! the log is opened. What a record means is its owner's business.
//!
//! Rules: a record whose [`Wal::sync`] returned survives a power cut; after a crash the records are
//! a prefix of those appended; what a truncation dropped does not come back; a failed write is final
//! for the process. No thread waits on a timer: while a batch is on its way to the disk the next one
//! fills, which is all the batching there is.

mod core;
mod files;
mod format;
mod keeper;
mod recover;
mod scan;
mod state;
mod stats;
mod wal;
mod writer;

pub use stats::{WalStats, collect};
pub use wal::Wal;

use lumeofs_base::limits;
use std::fmt;

/// Position of a record in its log. It grows from record to record for the life of the log, over
/// restarts and truncations (positions of records that a crash lost may be given out again), and
/// encodes where the record is: [`Wal::read`] needs no index. `Lsn(0)` is before everything.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "@{}", self.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "@{}", self.0)
    }
}

/// Sizes of a log. They may change from one opening to the next; segments keep the size that they
/// were begun with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalConfig {
    /// Bytes of a segment file, rounded down to whole blocks: the unit in which
    /// [`Wal::truncate_before`] gives space back.
    pub segment_bytes: u64,
    /// Given-up segments that are kept for later ones; more are removed.
    pub segments_kept_spare: usize,
    /// A batch is cut when it has so many bytes, rounded down to whole blocks.
    pub batch_bytes_max: usize,
    /// Bytes that may be buffered before [`Wal::append`] waits for the disk.
    pub pending_bytes_max: usize,
}

impl Default for WalConfig {
    fn default() -> Self {
        Self {
            segment_bytes: limits::WAL_SEGMENT_BYTES,
            segments_kept_spare: limits::WAL_SEGMENTS_KEPT_SPARE,
            batch_bytes_max: limits::WAL_BATCH_BYTES_MAX,
            pending_bytes_max: limits::WAL_PENDING_BYTES_MAX,
        }
    }
}
