//! Opening: superblock, checkpoint, then the log on top of it.
//!
//! Replay never reads or moves chunk data: a place named early in the log may belong to somebody else
//! by its end. Images wait in memory until all is read, and free space is what the final index leaves.

use super::catalog::Catalog;
use super::checkpoint::{self, Item};
use super::chunk::{Chunk, Image};
use super::era::is_mark;
use super::extents::Extents;
use super::health::Health;
use super::journal::Journal;
use super::record::{Edit, Placement, Record};
use super::space::Space;
use super::superblock::Superblock;
use super::upkeep::Upkeep;
use super::watch::{Watch, WatchedDisk};
use super::{Core, StoreConfig, StoreIdentity};
use lumeofs_base::disk::Disk;
use lumeofs_base::limits::BLOCK_SIZE;
use lumeofs_base::{ChunkId, Code, FsError, FsResult, GroupId};
use lumeofs_wal::Wal;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};

/// Locks that order the changes of chunks; a chunk's is chosen by its id.
const ORDER_LOCKS: usize = 256;

impl Core {
    /// See [`super::ChunkStore::open`].
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        identity: StoreIdentity,
        config: StoreConfig,
    ) -> FsResult<Core> {
        let directory = config.directory;
        let watch = Watch::new(config.clock.clone());
        let disk: Arc<dyn Disk> = WatchedDisk::new(disk, watch.clone());
        let fresh = Superblock {
            identity,
            extent_file_bytes: file_bytes(config.extent_file_bytes)?,
        };
        let superblock = Superblock::open_or_create(&*disk, &directory, fresh)?;
        let bytes = superblock.extent_file_bytes;
        let extents = Arc::new(Extents::open(
            disk.clone(),
            directory.join("extents"),
            bytes,
        )?);
        checkpoint::remove_unfinished(&*disk, &directory);
        let mut index = Index {
            catalog: Catalog::default(),
            extents: extents.clone(),
            log_bytes: 0,
        };
        checkpoint::load(&*disk, &directory, &mut |item| index.load(item))?;
        let wal = Wal::open(
            disk.clone(),
            &directory.join("wal"),
            config.wal,
            &mut |_, bytes| index.replay(bytes),
        )?;
        index.catalog.mark_all_durable();
        let (capacity, reserve) = (config.capacity_bytes, config.reserve_bytes);
        let space = Arc::new(Space::new(
            disk.clone(),
            directory.clone(),
            extents.clone(),
            capacity,
            reserve,
        ));
        let (dirty, overlay_blocks) = index.settle(&space)?;
        let (catalog, health) = (Arc::new(index.catalog), Arc::new(Health::default()));
        let journal = Journal::new(
            wal,
            extents.clone(),
            space.clone(),
            catalog.clone(),
            health.clone(),
            index.log_bytes,
        );
        Ok(Core {
            disk,
            directory,
            clock: config.clock,
            overlay_bytes_max: config.overlay_bytes_max,
            checkpoint_wal_bytes: config.checkpoint_wal_bytes,
            extents,
            space,
            catalog,
            health,
            watch,
            journal,
            order: (0..ORDER_LOCKS).map(|_| Mutex::new(())).collect(),
            dirty: Mutex::new(dirty),
            overlay_blocks: AtomicUsize::new(overlay_blocks),
            damaged_reads: AtomicU64::new(0),
            checkpointed_bytes: AtomicU64::new(0),
            upkeep: Mutex::new(Upkeep::default()),
            damaged: Mutex::default(),
        })
    }
}

fn file_bytes(wanted: u64) -> FsResult<u64> {
    let bytes = wanted / BLOCK_SIZE as u64 * BLOCK_SIZE as u64;
    if (1..=u64::from(u32::MAX)).contains(&(bytes / BLOCK_SIZE as u64)) {
        return Ok(bytes);
    }
    let context = format!("extent files of {wanted} bytes: want at least a block and below 16 TiB");
    Err(FsError::new(Code::Invalid, context))
}

/// The index while it is put together.
struct Index {
    catalog: Catalog,
    extents: Arc<Extents>,
    log_bytes: u64,
}

impl Index {
    fn load(&mut self, item: Item) -> FsResult<()> {
        match item {
            Item::Chunk {
                chunk,
                group,
                head,
                runs,
            } => {
                let chunk = Chunk::new(chunk, group);
                let mut content = chunk.content.write();
                content.head = head;
                for placement in runs {
                    content
                        .map
                        .insert(self.existing(placement)?.mapped(), &mut Vec::new());
                }
                drop(content);
                let (id, deleted) = (chunk.id, head.deleted);
                self.catalog.insert(Arc::new(chunk));
                self.catalog.set_deleted(group, id, deleted);
            }
            Item::Group { group, last, note } => {
                self.catalog.set_last(group, last);
                self.catalog.set_note(group, note);
            }
            Item::Part { chunk, part } => {
                if let Some(chunk) = self.catalog.chunk(chunk) {
                    chunk.content.write().part = Some(part);
                }
            }
            Item::End { .. } => {}
        }
        Ok(())
    }

    fn replay(&mut self, bytes: &[u8]) -> FsResult<()> {
        self.log_bytes += bytes.len() as u64;
        let (record, images) = Record::decode(bytes)?;
        match record {
            Record::Operation {
                group,
                version,
                edit,
                ..
            } => {
                if let Some(edit) = edit {
                    self.make(&edit, images)?;
                    if is_mark(edit.chunk) {
                        // Those of later deletes, if a newer checkpoint has them, are made again.
                        self.catalog.remove_tombstones(group);
                    }
                }
                self.catalog.set_last(group, version);
            }
            Record::Copied { edit } => self.make(&edit, images)?,
            Record::Forgotten { chunk } => self.catalog.remove(chunk),
            Record::Last { group, version } => self.catalog.set_last(group, version),
            Record::Note { group, note } => self.catalog.set_note(group, note),
        }
        Ok(())
    }

    fn make(&self, edit: &Edit, images: &[u8]) -> FsResult<()> {
        let chunk = self.chunk(edit.chunk, edit.group);
        // The checksums may not have reached the disk; those of a place's last user are written last.
        let mut sums = &edit.sums[..];
        for placement in &edit.placed {
            let mapped = self.existing(*placement)?.mapped();
            let (now, later) = sums.split_at(mapped.run.count as usize);
            self.extents.write_sums(mapped.run, now)?;
            sums = later;
        }
        for placement in &edit.inlined {
            self.existing(*placement)?;
        }
        let images = images.chunks_exact(BLOCK_SIZE).zip(edit.inlined_sums());
        let images: Vec<_> = images
            .map(|(bytes, &sum)| {
                Arc::new(Image {
                    bytes: bytes.into(),
                    sum,
                })
            })
            .collect();
        chunk.content.write().apply(edit, &images);
        self.catalog
            .set_deleted(edit.group, edit.chunk, edit.head.deleted);
        Ok(())
    }

    fn chunk(&self, id: ChunkId, group: GroupId) -> Arc<Chunk> {
        self.catalog.chunk(id).unwrap_or_else(|| {
            let chunk = Arc::new(Chunk::new(id, group));
            self.catalog.insert(chunk.clone());
            chunk
        })
    }

    fn existing(&self, placement: Placement) -> FsResult<Placement> {
        if self.extents.contains(placement.mapped().run) {
            return Ok(placement);
        }
        let context = format!(
            "the index names place {}, past the last extent file",
            placement.1
        );
        Err(FsError::new(Code::Io, context))
    }

    /// Takes the space of all chunks. Which of them have images, and how many.
    fn settle(&self, space: &Space) -> FsResult<(BTreeSet<ChunkId>, usize)> {
        let (mut dirty, mut overlay_blocks) = (BTreeSet::new(), 0);
        for chunk in self.catalog.chunks_after(None, usize::MAX) {
            let content = chunk.content.read();
            for mapped in content.map.iter() {
                let used = space.mark_used(mapped.run);
                used.map_err(|error| error.during(format_args!("chunk {}", chunk.id)))?;
            }
            if !content.overlay.is_empty() {
                dirty.insert(chunk.id);
                overlay_blocks += content.overlay.len();
            }
        }
        Ok((dirty, overlay_blocks))
    }
}
