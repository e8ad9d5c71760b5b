//! Space of the store: what is free, how it grows, and allocations that give themselves back.

use super::block_map::{Place, Run};
use super::extents::Extents;
use super::free_map::FreeMap;
use lumeofs_base::disk::Disk;
use lumeofs_base::limits::BLOCK_SIZE;
use lumeofs_base::{Code, FsError, FsResult};
use parking_lot::Mutex;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const BLOCK: u64 = BLOCK_SIZE as u64;

/// With less than this part of the reserve left on the disk, the log may soon not grow any more.
const LOG_ROOM_SHARE: u64 = 4;

/// With room for fewer files than this, only room for whole files is shown.
const ROOMY_FILES: u64 = 8;

/// The allocator.
pub(super) struct Space {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    extents: Arc<Extents>,
    /// Most bytes of data, if the store may not have the whole disk.
    capacity_bytes: Option<u64>,
    /// Bytes of the disk that growing leaves to the log and the checkpoints.
    reserve_bytes: u64,
    /// Never held during a call of the disk.
    free: Mutex<FreeMap>,
    /// Held while the store grows, which may take long. Taken before `free`, if both are.
    growing: Mutex<()>,
    /// Bytes promised to operations that have not taken their places yet.
    reserved: AtomicU64,
}

impl Space {
    /// A store in which everything is free, until [`Space::mark_used`] says otherwise.
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        directory: PathBuf,
        extents: Arc<Extents>,
        capacity_bytes: Option<u64>,
        reserve_bytes: u64,
    ) -> Self {
        let mut free = FreeMap::default();
        let per_file = extents.blocks_per_file();
        for place in (0..extents.blocks()).step_by(per_file as usize) {
            free.give(Run {
                place,
                count: per_file as u32,
            });
        }
        let free = Mutex::new(free);
        let growing = Mutex::new(());
        Self {
            disk,
            directory,
            extents,
            capacity_bytes,
            reserve_bytes,
            free,
            growing,
            reserved: AtomicU64::new(0),
        }
    }

    /// Takes places out of the free ones, after the index was loaded.
    pub(super) fn mark_used(&self, run: Run) -> FsResult<()> {
        if self.free.lock().mark_used(run) {
            return Ok(());
        }
        let context = format!(
            "{} blocks at place {} belong to two chunks",
            run.count, run.place
        );
        Err(FsError::new(Code::Io, context))
    }

    /// Takes `count` blocks, preferably at `hint`. [`Code::NoSpace`] changes nothing.
    pub(super) fn allocate(&self, count: u32, hint: Option<Place>) -> FsResult<Allocation<'_>> {
        let wanted = u64::from(count);
        let mut full = None;
        loop {
            let mut free = self.free.lock();
            // On a full disk shreds are better than nothing.
            if free.serves(wanted) || full.is_some() {
                match (free.take(count, hint), full) {
                    (Some(runs), _) => return Ok(Allocation { space: self, runs }),
                    (None, Some(error)) => return Err(error),
                    (None, None) => unreachable!("enough blocks are free"),
                }
            }
            drop(free);
            match self.grow(|free| !free.serves(wanted)) {
                Ok(()) => {}
                Err(error) if error.code == Code::NoSpace => {
                    full = Some(error.during(format_args!("allocate {count} blocks")));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Promises `bytes` to an operation beyond what others were promised, if `kept` bytes stay free
    /// after that. It takes its places with [`Space::allocate`] as usual.
    pub(super) fn reserve(self: &Arc<Self>, bytes: u64, kept: u64) -> FsResult<Reservation> {
        let before = self.reserved.fetch_add(bytes, Ordering::AcqRel);
        let reservation = Reservation {
            space: self.clone(),
            bytes,
        };
        let (_, free) = self.report();
        if free >= before.saturating_add(bytes).saturating_add(kept) {
            return Ok(reservation);
        }
        let context = format!(
            "{bytes} bytes for chunk store {}: {free} are free, of which {before} are promised and {kept} \
             are kept",
            self.directory.display()
        );
        Err(FsError::new(Code::NoSpace, context))
    }

    /// Grows a store that is in use before an operation has to wait for it.
    pub(super) fn grow_ahead(&self) -> FsResult<()> {
        let wanted = self.extents.blocks_per_file() / 4;
        let is_short = |free: &FreeMap| free.total() < wanted;
        if self.extents.blocks() == 0 || !is_short(&self.free.lock()) {
            return Ok(());
        }
        match self.grow(is_short) {
            Err(error) if error.code == Code::NoSpace => Ok(()),
            grown => grown,
        }
    }

    /// Gives places back.
    pub(super) fn release(&self, runs: &[Run]) {
        let mut free = self.free.lock();
        runs.iter().for_each(|run| free.give(*run));
    }

    /// Bytes that the store can hold, and how many of them are free. If something else fills the disk,
    /// nothing is free: data would find a place, but the log could not take the record of it.
    pub(super) fn report(&self) -> (u64, u64) {
        let growth = self.files_to_come() * self.extents.blocks_per_file();
        let free = self.free.lock().total();
        let (_, available) = self.disk.space(&self.directory).unwrap_or((0, 0));
        let log_has_room = available >= self.reserve_bytes / LOG_ROOM_SHARE;
        (
            (self.extents.blocks() + growth) * BLOCK,
            if log_has_room {
                (free + growth) * BLOCK
            } else {
                0
            },
        )
    }

    /// The same to be shown. While there is plenty, the room that is too little for one more file counts too: otherwise what
    /// is free would jump by a whole file whenever something else writes a little to the disk. When space gets
    /// scarce, it is exactly what can be used, since others decide by it.
    pub(super) fn shown(&self) -> (u64, u64) {
        let (total, free) = self.report();
        let is_roomy = free >= ROOMY_FILES * self.extents.blocks_per_file() * BLOCK;
        if !is_roomy || self.capacity_bytes.is_some() {
            return (total, free);
        }
        let (_, available) = self.disk.space(&self.directory).unwrap_or((0, 0));
        let rest = available.saturating_sub(self.reserve_bytes) % self.extents.growth_bytes();
        (total + rest, free + rest)
    }

    /// Adds a file unless another thread has just made that unnecessary.
    fn grow(&self, is_needed: impl Fn(&FreeMap) -> bool) -> FsResult<()> {
        let _one = self.growing.lock();
        if !is_needed(&self.free.lock()) {
            return Ok(());
        }
        if self.files_to_come() == 0 {
            let limit = if self.capacity_bytes.is_some() {
                "capacity"
            } else {
                "disk"
            };
            return Err(FsError::new(
                Code::NoSpace,
                format!(
                    "the {limit} of chunk store {} is used up",
                    self.directory.display()
                ),
            ));
        }
        let run = self.extents.grow()?;
        self.free.lock().give(run);
        Ok(())
    }

    fn files_to_come(&self) -> u64 {
        let (_, available) = self.disk.space(&self.directory).unwrap_or((0, 0));
        let room = available.saturating_sub(self.reserve_bytes) / self.extents.growth_bytes();
        let Some(capacity) = self.capacity_bytes else {
            return room;
        };
        let left = (capacity / BLOCK).saturating_sub(self.extents.blocks());
        room.min(left / self.extents.blocks_per_file())
    }
}

/// Space that an operation will find. It must be kept until the operation took its places.
#[must_use]
pub struct Reservation {
    space: Arc<Space>,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.space.reserved.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// Places that go back when it is dropped, unless they came to be used.
#[must_use]
pub(super) struct Allocation<'a> {
    space: &'a Space,
    runs: Vec<Run>,
}

impl Allocation<'_> {
    /// The places.
    pub(super) fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The places belong to a chunk now.
    pub(super) fn commit(mut self) {
        self.runs.clear();
    }
}

impl Drop for Allocation<'_> {
    fn drop(&mut self) {
        self.space.release(&self.runs);
    }
}
