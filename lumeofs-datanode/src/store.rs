//! The chunk store: all chunks of one data directory, of whichever replica groups they are.
//!
//! Chunk data lies in a few large preallocated extent files, the checksum of every 4 KiB block beside
//! it. An index in memory says where; it is recovered from a checkpoint and the log of what happened
//! since. Long writes go to new places around the page cache and are then named in the log; short
//! ones travel in the log and are moved to their places later, merged.
//!
//! What must always hold:
//! 1. A record that names extent data is in the log only when that data is durable (`journal`).
//! 2. A place is used again only when the record that freed it is durable (`journal`).
//! 3. A place that holds the only copy of something is overwritten only by images that are durable in
//!    the log (`upkeep`).
//! 4. The log is cut only up to a point that a durable checkpoint covers (`upkeep`).
//! 5. A block whose checksum does not match is never served, and never merged into another (`read`).
//! 6. After the first failure of the disk nothing is served any more (`health`).
//!
//! ```text
//! DIRECTORY/superblock           whose store this is
//!           checkpoint           the index at some moment
//!           wal/                 records since
//!           scrub                how far the scrub is
//!           extents/NNNNNNNN.dat data
//!           extents/NNNNNNNN.crc one CRC-32C per block of the .dat
//! ```
//! `docs/format.md` has the bytes.

mod block_map;
mod catalog;
mod checkpoint;
mod chunk;
mod copy;
mod era;
mod extents;
mod free_map;
mod health;
mod journal;
mod look;
mod plan;
mod read;
mod read_ahead;
mod record;
mod recovery;
mod scrub;
mod space;
mod superblock;
#[cfg(test)]
pub(crate) mod tests;
mod upkeep;
mod upkeep_thread;
mod watch;
mod write;

pub use scrub::{DamagedBlock, GoodBlock, Mended, Verified};
pub use space::Reservation;
pub use upkeep_thread::UpkeepThread;

use catalog::Catalog;
use extents::Extents;
use health::Health;
use journal::Journal;
use lumeofs_base::clock::{Clock, SystemClock};
use lumeofs_base::disk::Disk;
use lumeofs_base::limits::{BLOCK_SIZE, DISK_STALL_MAX};
use lumeofs_base::{
    AlignedBuf, ChunkId, ChunkOp, ChunkState, ClusterId, Code, ERA_MARK, FsError, FsResult,
    GroupId, NodeId, Version,
};
use lumeofs_wal::WalConfig;
use parking_lot::Mutex;
use space::Space;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use upkeep::Upkeep;
use watch::Watch;

/// Position of an operation in the order in which the store took operations. Means nothing to another
/// store, nor after the store was closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

/// Whose directory a store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreIdentity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The datanode.
    pub node: NodeId,
}

/// Sizes and places. The defaults suit a disk of its own.
#[derive(Clone)]
pub struct StoreConfig {
    /// Directory of the store, relative to the disk's root.
    pub directory: PathBuf,
    /// Bytes of one extent file, by which the store grows. Counts when the store is created.
    pub extent_file_bytes: u64,
    /// Most bytes of data; without it, as many as the disk has.
    pub capacity_bytes: Option<u64>,
    /// Bytes of the disk that data never takes, so that the log and checkpoints have room.
    pub reserve_bytes: u64,
    /// Memory for blocks that only the log has yet. Operations wait beyond it.
    pub overlay_bytes_max: usize,
    /// Bytes of the log after which a checkpoint is written. Operations wait beyond four times that.
    pub checkpoint_wal_bytes: u64,
    /// The log's own sizes.
    pub wal: WalConfig,
    /// Stamps operations with wall time.
    pub clock: Arc<dyn Clock>,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            directory: PathBuf::from("chunks"),
            extent_file_bytes: 256 << 20,
            capacity_bytes: None,
            reserve_bytes: 512 << 20,
            overlay_bytes_max: 64 << 20,
            checkpoint_wal_bytes: 48 << 20,
            wal: WalConfig::default(),
            clock: Arc::new(SystemClock),
        }
    }
}

/// Chunks that are dropped in one go when a group is.
const DROP_PAGE: usize = 1024;

/// A disk of this size or more is used with the defaults; of a smaller one all sizes are less in
/// proportion, so that the log of a test disk does not take all of it.
const DISK_BYTES_FULL: u64 = 4 << 30;

impl StoreConfig {
    /// For a store that has a disk of this size to itself.
    pub fn for_disk(disk_bytes: u64) -> Self {
        let full = Self::default();
        if disk_bytes >= DISK_BYTES_FULL {
            return full;
        }
        let scaled = |bytes: u64, least: u64| {
            let share = u128::from(bytes) * u128::from(disk_bytes) / u128::from(DISK_BYTES_FULL);
            // Never more than `bytes`, so it fits.
            (share as u64)
                .next_multiple_of(1 << 20)
                .max(least)
                .min(bytes)
        };
        Self {
            extent_file_bytes: scaled(full.extent_file_bytes, 8 << 20),
            reserve_bytes: scaled(full.reserve_bytes, 64 << 20),
            checkpoint_wal_bytes: scaled(full.checkpoint_wal_bytes, 4 << 20),
            wal: WalConfig {
                segment_bytes: scaled(full.wal.segment_bytes, 16 << 20),
                segments_kept_spare: 1,
                ..full.wal
            },
            ..full
        }
    }
}

/// Outcome of an operation that took its place in the group's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Durable after [`ChunkStore::sync`] of it.
    pub lsn: Lsn,
    /// Why the operation changed nothing: [`Code::StaleWrite`] or [`Code::Stale`]. Every member
    /// decides alike.
    pub refused: Option<FsError>,
}

/// An open store. All calls block and may be made from any thread.
///
/// Errors of all calls: [`Code::Io`] with the first cause once the disk has failed;
/// [`Code::NoSpace`] when the disk is full, after which nothing has changed; [`Code::Invalid`] for
/// requests that no caller should make.
pub struct ChunkStore {
    core: Arc<Core>,
    committer: Option<JoinHandle<()>>,
}

/// Everything but the threads.
struct Core {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    clock: Arc<dyn Clock>,
    overlay_bytes_max: usize,
    checkpoint_wal_bytes: u64,
    extents: Arc<Extents>,
    space: Arc<Space>,
    catalog: Arc<Catalog>,
    health: Arc<Health>,
    watch: Arc<Watch>,
    journal: Journal,
    /// Taken first of all locks: the order of changes of a chunk, by its id. Then come the chunk's
    /// content, and last `dirty`, the queue, the catalog's tables and the free map; of these the queue and
    /// then the tables together, the others each alone.
    order: Box<[Mutex<()>]>,
    /// Chunks with images in memory.
    dirty: Mutex<BTreeSet<ChunkId>>,
    overlay_blocks: AtomicUsize,
    /// Blocks read that did not match their checksum.
    damaged_reads: AtomicU64,
    /// What [`Journal::bytes`] was where the last checkpoint covers the log.
    checkpointed_bytes: AtomicU64,
    upkeep: Mutex<Upkeep>,
    /// Pieces of chunks that reads found damaged, for the scrub.
    damaged: Mutex<BTreeSet<(ChunkId, u64)>>,
}

impl ChunkStore {
    /// Opens the store in `config.directory`, or creates it there if the directory is missing or
    /// empty. Keeping two processes from opening it at once is the caller's business.
    ///
    /// # Errors
    /// [`Code::Refused`] if the store is another node's, [`Code::Invalid`] if its format is unknown,
    /// [`Code::Io`] if it is damaged.
    pub fn open(
        disk: Arc<dyn Disk>,
        identity: StoreIdentity,
        config: StoreConfig,
    ) -> FsResult<Self> {
        let core = Arc::new(Core::open(disk, identity, config)?);
        let commits = core.clone();
        let committer = std::thread::Builder::new().name("chunk-commit".into());
        let committer = committer
            .spawn(move || commits.journal.run())
            .map_err(|error| {
                FsError::new(
                    Code::Again,
                    format!("start the chunk store's commit thread: {error}"),
                )
            })?;
        Ok(Self {
            core,
            committer: Some(committer),
        })
    }

    /// Applies an operation of `group`. The caller makes the calls for one group one after the other,
    /// in the group's order. `data` is a write's and otherwise ignored. The effect is visible when
    /// this returns and durable after [`ChunkStore::sync`] of the position.
    ///
    /// A refused operation changes no chunk but takes its place as the group's last one.
    ///
    /// # Errors
    /// The operation did not take its place. [`Code::Io`] also if `data` does not match its checksums,
    /// or if a block that must be merged is damaged.
    pub fn apply(
        &self,
        group: GroupId,
        version: Version,
        op: &ChunkOp,
        data: &AlignedBuf,
    ) -> FsResult<Applied> {
        self.core.apply(group, version, op, data)
    }

    /// Makes everything up to `lsn` durable. Callers that wait at the same time share the cost.
    /// After [`Code::NoSpace`] it may be tried again.
    pub fn sync(&self, lsn: Lsn) -> FsResult<()> {
        self.core.journal.sync(lsn)
    }

    /// As [`ChunkStore::sync`], without waiting. `done` runs on a thread of the store, always, and
    /// delays the others until it returns.
    pub fn on_durable(&self, lsn: Lsn, done: Box<dyn FnOnce(FsResult<()>) + Send>) {
        self.core.journal.on_durable(lsn, done);
    }

    /// Reads `len` bytes at `offset`. Holes, missing chunks and bytes past the end are zeros. Returns
    /// the data and the checksums of its pieces, as [`lumeofs_base::checksum::block_checksums`] lays
    /// them out.
    ///
    /// # Errors
    /// [`Code::Io`] if a block does not match its checksum; it names chunk, block and file.
    pub fn read(
        &self,
        chunk: ChunkId,
        offset: u64,
        len: usize,
    ) -> FsResult<(AlignedBuf, Vec<u32>)> {
        self.core.read(chunk, offset, len)
    }

    /// Offset and length in bytes of each range with data, in whole blocks, in order.
    pub fn extents(&self, chunk: ChunkId) -> Vec<(u64, u64)> {
        let Some(chunk) = self.core.catalog.chunk(chunk) else {
            return Vec::new();
        };
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for mapped in chunk.content.read().map.iter() {
            let start = u64::from(mapped.block) * BLOCK_SIZE as u64;
            let len = u64::from(mapped.run.count) * BLOCK_SIZE as u64;
            match ranges.last_mut() {
                Some(last) if last.0 + last.1 == start => last.1 += len,
                _ => ranges.push((start, len)),
            }
        }
        ranges
    }

    /// The state of a chunk of a group, tombstones and the mark of its era included.
    pub fn state(&self, group: GroupId, chunk: ChunkId) -> Option<ChunkState> {
        let found = self.core.catalog.chunk(era::stored_id(group, chunk))?;
        (found.group == group).then(|| ChunkState {
            chunk,
            ..found.state()
        })
    }

    /// The group that a chunk belongs to, if it is here.
    pub fn owner(&self, chunk: ChunkId) -> Option<GroupId> {
        Some(self.core.catalog.chunk(chunk)?.group)
    }

    /// States of up to `max` chunks of a group above `after`, in order of their ids; so the mark of its
    /// era comes first.
    pub fn list(&self, group: GroupId, after: Option<ChunkId>, max: usize) -> Vec<ChunkState> {
        let mark = match after {
            None => self.state(group, ERA_MARK),
            Some(_) => None,
        };
        let room = max - usize::from(mark.is_some()).min(max);
        let chunks = self.core.catalog.chunks_of(group, after, room);
        let others = chunks.iter().map(|chunk| chunk.state());
        mark.into_iter().chain(others).take(max).collect()
    }

    /// How many chunks of a group there are, tombstones apart. All of them are counted at once; those up to a
    /// chunk one by one.
    pub fn count(&self, group: GroupId, upto: Option<ChunkId>) -> u64 {
        self.core.catalog.count(group, upto)
    }

    /// The era that a group is in: see [`ERA_MARK`].
    pub fn era(&self, group: GroupId) -> u32 {
        self.core.era(group)
    }

    /// The group's last operation.
    pub fn last(&self, group: GroupId) -> Version {
        self.core.catalog.versions(group).0
    }

    /// The group's last operation that is durable.
    pub fn durable(&self, group: GroupId) -> Version {
        self.core.catalog.versions(group).1
    }

    /// What [`ChunkStore::set_group_note`] was given last.
    pub fn group_note(&self, group: GroupId) -> Vec<u8> {
        self.core.catalog.note(group)
    }

    /// Keeps a small record of the replication layer, at most 256 KiB. Durable on return, and so is
    /// everything before it.
    pub fn set_group_note(&self, group: GroupId, note: &[u8]) -> FsResult<()> {
        self.core.set_group_note(group, note)
    }

    /// Begins to replace a chunk by another member's copy: drops what is there, tombstone included.
    /// Until [`ChunkStore::copy_end`] it has the default version.
    pub fn copy_begin(&self, group: GroupId, chunk: ChunkId) -> FsResult<()> {
        self.core.copy_begin(group, chunk)
    }

    /// Puts bytes of the copy at `offset`.
    pub fn copy_piece(
        &self,
        group: GroupId,
        chunk: ChunkId,
        offset: u64,
        data: &AlignedBuf,
        checksums: &[u32],
    ) -> FsResult<()> {
        self.core.copy_piece(group, chunk, offset, data, checksums)
    }

    /// Gives the chunk the state of the one it was copied from; its length follows from the data.
    pub fn copy_end(&self, group: GroupId, state: &ChunkState) -> FsResult<()> {
        self.core.copy_end(group, state)
    }

    /// Sets the group's last operation after catching up. Durable on return, and so is everything
    /// before it.
    pub fn set_last(&self, group: GroupId, version: Version) -> FsResult<()> {
        self.core.set_last(group, version)
    }

    /// Forgets a chunk as if it had never been.
    pub fn drop_chunk(&self, group: GroupId, chunk: ChunkId) -> FsResult<()> {
        self.core.drop_chunk(group, chunk)
    }

    /// Forgets a group and all its chunks. May be cut short at any point and begun again.
    pub fn drop_group(&self, group: GroupId) -> FsResult<()> {
        loop {
            let chunks = self.list(group, None, DROP_PAGE);
            for state in &chunks {
                self.core.make_room()?;
                self.drop_chunk(group, state.chunk)?;
            }
            if chunks.is_empty() {
                break;
            }
        }
        self.set_group_note(group, &[])?;
        self.set_last(group, Version::default())
    }

    /// Whether the store has anything of a group.
    pub fn has_group(&self, group: GroupId) -> bool {
        self.last(group) != Version::default()
            || !self.group_note(group).is_empty()
            || !self.list(group, None, 1).is_empty()
    }

    /// Bytes that the store can hold, and how many of them are free.
    pub fn space(&self) -> (u64, u64) {
        self.core.space.report()
    }

    /// The same to be shown: it follows what is written and deleted, instead of moving by whole extent files.
    pub fn shown_space(&self) -> (u64, u64) {
        self.core.space.shown()
    }

    /// Promises space to a write of `len` bytes that is about to be ordered, beyond what other such
    /// writes were promised and with `kept` bytes left over. Once ordered it must not find the disk full.
    pub fn reserve(&self, len: usize, kept: u64) -> FsResult<Reservation> {
        // Each end may lie within a block.
        let blocks = (len / BLOCK_SIZE) as u64 + 2;
        self.core.space.reserve(blocks * BLOCK_SIZE as u64, kept)
    }

    /// The log of what happened to the store.
    pub(crate) fn wal(&self) -> &lumeofs_wal::Wal {
        self.core.journal.wal()
    }

    /// Blocks that were read and did not match their checksum, since the store was opened.
    pub(crate) fn damaged_blocks(&self) -> u64 {
        self.core.damaged_reads.load(Ordering::Relaxed)
    }

    /// Others were found without a read.
    pub(crate) fn count_damaged(&self, blocks: u64) {
        self.core.damaged_reads.fetch_add(blocks, Ordering::Relaxed);
    }

    /// Bytes that only the log and memory have yet.
    pub(crate) fn unmerged_bytes(&self) -> usize {
        self.core.overlay_blocks.load(Ordering::Relaxed) * BLOCK_SIZE
    }

    /// Bytes that wait for the log.
    pub(crate) fn queued_log_bytes(&self) -> usize {
        self.core.journal.pending_bytes()
    }

    /// How long the disk has been at the oldest thing that it was asked for, if at anything.
    pub fn stalled_for(&self) -> Option<Duration> {
        self.core.watch.oldest()
    }

    /// Whether the store can be used: the first failure of its disk, or that the disk hangs. The
    /// latter may pass.
    pub fn check(&self) -> FsResult<()> {
        self.core.health.check()?;
        match self.stalled_for() {
            Some(time) if time > DISK_STALL_MAX => Err(FsError::new(
                Code::Io,
                format!(
                    "the disk of {} does not answer for {} s",
                    self.core.directory.display(),
                    time.as_secs()
                ),
            )),
            Some(_) | None => Ok(()),
        }
    }

    /// Compares the blocks of a chunk's piece, [`lumeofs_base::limits::SCRUB_PIECE_BYTES`] long and at a multiple of that,
    /// in which `offset` lies, with their checksums, as the disk has both. Those whose newest image is in memory are
    /// left out: what lies at their place is about to be replaced. A chunk that is not there has no pieces.
    pub fn verify(&self, chunk: ChunkId, offset: u64) -> FsResult<Verified> {
        self.core.verify(chunk, offset)
    }

    /// Puts what another member has in the place of a damaged block, if it is what this one should have: it is of
    /// the same operation, or of a later one and matches what is left here. `version` is the chunk's when the block was
    /// found damaged.
    pub fn mend(
        &self,
        group: GroupId,
        chunk: ChunkId,
        version: Version,
        block: &DamagedBlock,
        good: &GoodBlock,
    ) -> FsResult<Mended> {
        self.core.mend(group, chunk, version, block, good)
    }

    /// The first chunk above `after`, with its group; marks of eras, which have no data, among them.
    pub fn chunk_above(&self, after: Option<ChunkId>) -> Option<(GroupId, ChunkId)> {
        self.core.chunk_above(after)
    }

    /// Bytes in whole blocks that all chunks have.
    pub fn stored_bytes(&self) -> u64 {
        self.core.stored_bytes()
    }

    /// Chunks, and offsets of pieces as of [`ChunkStore::verify`], in which reads found damage since the last call; at
    /// most [`lumeofs_base::limits::DAMAGED_PIECES_MAX`].
    pub fn take_damaged(&self) -> BTreeSet<(ChunkId, u64)> {
        self.core.take_damaged()
    }

    /// Keeps a small record of the scrub, at most 4 KiB. It replaces the last one as a whole, durably.
    pub fn keep_scrub_note(&self, note: &[u8]) -> FsResult<()> {
        self.core.keep_scrub_note(note)
    }

    /// What [`ChunkStore::keep_scrub_note`] was given last, if it can be read.
    pub fn scrub_note(&self) -> Option<Vec<u8>> {
        self.core.scrub_note()
    }

    /// Does one bounded step of background work: writes what is queued, moves images to their places,
    /// writes a piece of a checkpoint, cuts the log. Returns whether there is more to do now.
    pub fn maintain(&self) -> FsResult<bool> {
        self.core.maintain()
    }

    /// Starts a thread that calls [`ChunkStore::maintain`] until the guard is dropped.
    pub fn start_upkeep(&self) -> FsResult<UpkeepThread> {
        UpkeepThread::start(self.core.clone())
    }
}

impl Drop for ChunkStore {
    fn drop(&mut self) {
        // What was not synced may be lost; trying costs little and spares the group a catch-up.
        if let Err(error) = self.core.journal.sync(self.core.journal.last()) {
            tracing::warn!(%error, "close chunk store");
        }
        self.core.journal.close();
        if let Some(committer) = self.committer.take()
            && committer.thread().id() != std::thread::current().id()
        {
            // A panic of that thread was reported when it happened.
            drop(committer.join());
        }
    }
}
