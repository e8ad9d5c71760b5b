//! Looking at a store that nobody uses: all of it is read as usual, and nothing on its disk changes.

use super::era::is_mark;
use super::superblock::Superblock;
use super::{ChunkStore, StoreConfig, StoreIdentity};
use lumeofs_base::disk::Disk;
use lumeofs_base::disk::scratch::ScratchDisk;
use lumeofs_base::{ChunkId, ChunkState, Code, FsError, FsResult, GroupId};
use std::sync::Arc;

impl ChunkStore {
    /// Opens the store in `config.directory`, whosever it is. What is recovered, and whatever happens to the store
    /// afterwards, is in memory and goes with it.
    ///
    /// # Errors
    /// As of [`ChunkStore::open`]; [`Code::NotFound`] if there is no store.
    pub fn look(disk: Arc<dyn Disk>, config: StoreConfig) -> FsResult<(StoreIdentity, Self)> {
        let Some((superblock, _)) = Superblock::read(&*disk, &config.directory)? else {
            let context = format!("there is no chunk store in {}", config.directory.display());
            return Err(FsError::new(Code::NotFound, context));
        };
        let scratch = Arc::new(ScratchDisk::new(disk));
        let store = Self::open(scratch, superblock.identity, config)?;
        Ok((superblock.identity, store))
    }

    /// States of up to `max` chunks of all groups above `after`, in order of their ids. Tombstones are among them,
    /// marks of eras are not.
    pub fn list_all(&self, after: Option<ChunkId>, max: usize) -> Vec<(GroupId, ChunkState)> {
        let chunks = self.core.catalog.chunks_after(after, max);
        // Marks have the highest ids.
        let chunks = chunks.iter().filter(|chunk| !is_mark(chunk.id));
        chunks.map(|chunk| (chunk.group, chunk.state())).collect()
    }
}
