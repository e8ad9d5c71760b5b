//! A data directory whose datanode does not run, to be read by people who have nothing else left.
//!
//! Nothing in the directory changes, so that it may lie on a disk that can only be read, and the datanode can go on from
//! where it was.

use crate::store::{ChunkStore, StoreConfig, StoreIdentity};
use lumeofs_base::disk::os::OsDisk;
use lumeofs_base::{AlignedBuf, ChunkId, ChunkState, Code, FsError, FsResult, GroupId};
use rustix::fs::FlockOperation;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Chunks that are looked up at once.
const PAGE: usize = 1024;

/// The chunk store of a data directory. Its index is in memory, as a running datanode has it.
pub struct StoppedStore {
    directory: PathBuf,
    identity: StoreIdentity,
    store: ChunkStore,
    /// Keeps a datanode from starting meanwhile. A copy of a directory may be without the file.
    _lock: Option<File>,
}

impl StoppedStore {
    /// Opens the store of a data directory.
    ///
    /// # Errors
    /// [`Code::Busy`] if a datanode uses the directory, [`Code::NotFound`] if it is not one of a datanode,
    /// [`Code::Invalid`] if its format is unknown, [`Code::Io`] if its index cannot be read.
    pub fn open(directory: &Path) -> FsResult<Self> {
        let lock = lock(directory)?;
        let (identity, store) = look(directory)?;
        Ok(Self {
            directory: directory.to_owned(),
            identity,
            store,
            _lock: lock,
        })
    }

    /// The data directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whose it is.
    pub fn identity(&self) -> StoreIdentity {
        self.identity
    }

    /// All chunks with their groups, tombstones included, in order of their ids.
    pub fn chunks(&self) -> impl Iterator<Item = (GroupId, ChunkState)> + '_ {
        let mut after = None;
        let pages = std::iter::from_fn(move || {
            let page = self.store.list_all(after, PAGE);
            after = Some(page.last()?.1.chunk);
            Some(page)
        });
        pages.flatten()
    }

    /// As [`ChunkStore::extents`].
    pub(crate) fn extents(&self, chunk: ChunkId) -> Vec<(u64, u64)> {
        self.store.extents(chunk)
    }

    /// Whether a chunk has data in the block at this offset.
    pub(crate) fn has_block(&self, chunk: ChunkId, offset: u64) -> bool {
        let mut ranges = self.extents(chunk).into_iter();
        ranges.any(|(start, len)| (start..start + len).contains(&offset))
    }

    /// Reads a part of a chunk, or fails if any of it is damaged or cannot be read.
    pub(crate) fn read(&mut self, chunk: ChunkId, offset: u64, len: usize) -> FsResult<AlignedBuf> {
        let read = self.store.read(chunk, offset, len);
        if read.is_err() && self.store.check().is_err() {
            // A store serves nothing after a disk error. Here the next block may be whole.
            self.store = look(&self.directory)?.1;
        }
        Ok(read?.0)
    }
}

fn look(directory: &Path) -> FsResult<(StoreIdentity, ChunkStore)> {
    let disk = Arc::new(OsDisk::read_only(directory));
    // The smallest sizes: nothing will be written that could need more.
    let opened = ChunkStore::look(disk, StoreConfig::for_disk(0));
    opened.map_err(|error| error.during(format_args!("open the store in {}", directory.display())))
}

fn lock(directory: &Path) -> FsResult<Option<File>> {
    let path = directory.join("lock");
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            let what = format_args!("open {}", path.display());
            return Err(FsError::from_disk(&error, what));
        }
    };
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).map_err(|_| {
        let context = format!(
            "data directory {} is in use: stop its datanode first",
            directory.display()
        );
        FsError::new(Code::Busy, context)
    })?;
    Ok(Some(file))
}
