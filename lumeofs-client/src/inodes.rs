//! What the client remembers of files that it touched: their chunks, writes that are not on disk
//! yet, a modification time that is not published yet, and who reads or writes which range now.
//!
//! Nothing here answers a question about a file's contents or attributes; it only says what to ask.

use crate::ranges::Ranges;
use lumeofs_base::{Attr, ChunkIndex, Epoch, FsError, FsResult, GroupId, InodeId, Version};
use lumeofs_meta::op::ChunkRef;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// Inodes remembered; beyond it those that are not in use are forgotten.
const INODES_MAX: usize = 32_768;
/// Those among them with unsynced writes that are not forgotten for others that are only read.
const WRITERS_MAX: usize = INODES_MAX / 4;
/// Chunks remembered of one inode.
const CHUNKS_MAX: usize = 1024;

/// All inodes that are remembered.
#[derive(Debug, Default)]
pub(crate) struct Inodes {
    table: Mutex<Table>,
    /// Inodes with an unpublished modification time.
    dirty: Mutex<HashSet<InodeId>>,
}

#[derive(Debug, Default)]
struct Table {
    inodes: HashMap<InodeId, Arc<Inode>>,
    /// Unsynced writes of inodes that were forgotten.
    forgotten: Unsynced,
    /// Size at which the table is swept next.
    sweep_at: usize,
}

/// What is remembered of one inode.
#[derive(Debug, Default)]
pub(crate) struct Inode {
    /// Ranges that are being read or written by this client (rule D3).
    pub(crate) ranges: Ranges,
    /// Held while its modification time is being published or set.
    pub(crate) publishing: Mutex<()>,
    state: Mutex<State>,
    /// Writes to it may be among the forgotten ones.
    forgetful: bool,
}

/// Acknowledged operations that may not be on disk: the highest of each group and epoch. A later epoch's does
/// not stand for an earlier one's, which the group may have lost in between.
pub(crate) type Unsynced = HashMap<(GroupId, Epoch), Version>;

#[derive(Debug, Default)]
struct State {
    known: Option<Known>,
    /// Highest acknowledged operation per group and epoch that may not be on disk.
    unsynced: Unsynced,
    /// It was modified since mtime was last published.
    dirty: bool,
    /// Of background work, for the next flush or fsync.
    error: Option<FsError>,
    /// The session ended while there were unsynced writes: for the next write, flush or fsync.
    lost: Option<FsError>,
    /// Bytes of the unsynced writes, at most.
    unsynced_bytes: u64,
}

/// The chunks of a file, as of a truncation number: until the next truncation none of them changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    /// Attributes in the newest answer.
    pub(crate) attr: Attr,
    /// Chunks by index. An index that is missing here may exist.
    pub(crate) chunks: BTreeMap<ChunkIndex, ChunkRef>,
    /// An era in which the file had all of them, for the datanodes. 0 is always true.
    pub(crate) era: u32,
}

impl Inodes {
    /// What is remembered of an inode.
    pub(crate) fn get(&self, ino: InodeId) -> Arc<Inode> {
        let mut table = self.table.lock();
        if let Some(inode) = table.inodes.get(&ino) {
            return Arc::clone(inode);
        }
        if table.inodes.len() >= table.sweep_at.max(INODES_MAX) {
            table.sweep();
        }
        let inode = Inode {
            forgetful: !table.forgotten.is_empty(),
            ..Inode::default()
        };
        let inode = Arc::new(inode);
        table.inodes.insert(ino, Arc::clone(&inode));
        inode
    }

    /// What is remembered of an inode, if anything.
    pub(crate) fn find(&self, ino: InodeId) -> Option<Arc<Inode>> {
        self.table.lock().inodes.get(&ino).cloned()
    }

    /// Acknowledged operations that a sync of `inode` must cover.
    pub(crate) fn unsynced(&self, inode: &Inode) -> Unsynced {
        let mut all = inode.state.lock().unsynced.clone();
        if inode.forgetful {
            merge(&mut all, &self.table.lock().forgotten);
        }
        all
    }

    /// Everything up to `version` is on disk in the group, or lost and told.
    pub(crate) fn synced(&self, inode: &Inode, group: GroupId, version: Version) {
        let key = (group, version.epoch);
        let drop_older = |map: &mut Unsynced| {
            if map.get(&key).is_some_and(|last| *last <= version) {
                map.remove(&key);
            }
        };
        {
            let state = &mut *inode.state.lock();
            drop_older(&mut state.unsynced);
            if state.unsynced.is_empty() {
                state.unsynced_bytes = 0;
            }
        }
        drop_older(&mut self.table.lock().forgotten);
    }

    /// The inode was modified without the metadata group being told.
    pub(crate) fn mark_dirty(&self, ino: InodeId, inode: &Inode) {
        let mut state = inode.state.lock();
        if !std::mem::replace(&mut state.dirty, true) {
            self.dirty.lock().insert(ino);
        }
    }

    /// Takes the mark back, to publish it or because it was overtaken. Says whether it was there.
    pub(crate) fn take_dirty(&self, ino: InodeId, inode: &Inode) -> bool {
        let mut state = inode.state.lock();
        let dirty = std::mem::take(&mut state.dirty);
        if dirty {
            self.dirty.lock().remove(&ino);
        }
        dirty
    }

    /// The session was lost: forgets the chunks of all inodes, and has those with unsynced writes say so once. Which
    /// these are, and how many bytes at most.
    pub(crate) fn forget_all(&self, error: &FsError) -> (Vec<InodeId>, u64) {
        let inodes: Vec<_> = {
            let table = self.table.lock();
            let all = table.inodes.iter();
            all.map(|(ino, inode)| (*ino, Arc::clone(inode))).collect()
        };
        let (mut files, mut bytes) = (Vec::new(), 0);
        for (ino, inode) in inodes {
            // What was written is not taken back, but its time is not published under another session.
            let dirty = self.take_dirty(ino, &inode);
            let mut state = inode.state.lock();
            state.known = None;
            if dirty || !state.unsynced.is_empty() {
                state.lost = Some(error.clone());
                files.push(ino);
                bytes += state.unsynced_bytes;
            }
        }
        (files, bytes)
    }

    /// Errors that no call has reported.
    pub(crate) fn untold(&self) -> Vec<(InodeId, FsError)> {
        let table = self.table.lock();
        let untold = table.inodes.iter().filter_map(|(ino, inode)| {
            let state = inode.state.lock();
            let error = state.lost.as_ref().or(state.error.as_ref())?;
            Some((*ino, error.clone()))
        });
        untold.collect()
    }

    /// All inodes with the mark.
    pub(crate) fn all_dirty(&self) -> Vec<InodeId> {
        self.dirty.lock().iter().copied().collect()
    }
}

impl Table {
    fn sweep(&mut self) {
        let forgotten = &mut self.forgotten;
        let mut writers = 0;
        self.inodes.retain(|_, inode| {
            // Nobody else can take a reference while the table is locked.
            if Arc::strong_count(inode) > 1 {
                return true;
            }
            let state = inode.state.lock();
            if state.dirty || state.error.is_some() || state.lost.is_some() {
                return true;
            }
            if !state.unsynced.is_empty() && writers < WRITERS_MAX {
                // Forgotten, it would make the syncs of all others longer.
                writers += 1;
                return true;
            }
            merge(forgotten, &state.unsynced);
            false
        });
        self.sweep_at = self.inodes.len() * 2;
    }
}

fn merge(into: &mut Unsynced, from: &Unsynced) {
    for (key, version) in from {
        let last = into.entry(*key).or_default();
        *last = (*last).max(*version);
    }
}

impl Inode {
    /// What an answer of the metadata group said of the attributes.
    pub(crate) fn learn(&self, attr: &Attr) {
        self.learn_chunks(attr, &[], 0);
    }

    /// What an answer of the metadata group said, in this era or a later one. Older answers than those
    /// known are ignored.
    pub(crate) fn learn_chunks(&self, attr: &Attr, chunks: &[ChunkRef], era: u32) {
        let mut state = self.state.lock();
        match &mut state.known {
            Some(known) if known.attr.truncations > attr.truncations => return,
            Some(known) if known.attr.truncations == attr.truncations => {
                let size = known.attr.size.max(attr.size);
                known.attr = Attr {
                    size,
                    ..attr.clone()
                };
            }
            known => {
                *known = Some(Known {
                    attr: attr.clone(),
                    chunks: BTreeMap::new(),
                    era: 0,
                });
            }
        }
        if let Some(known) = &mut state.known {
            if known.chunks.len() + chunks.len() > CHUNKS_MAX {
                known.chunks.clear();
            }
            known
                .chunks
                .extend(chunks.iter().map(|chunk| (chunk.index, *chunk)));
            // No chunk is freed without a new truncation number.
            known.era = known.era.max(era);
        }
    }

    /// What is known, if it covers the chunks from `first` to `last`.
    pub(crate) fn known(&self, first: ChunkIndex, last: ChunkIndex) -> Option<Known> {
        let state = self.state.lock();
        let known = state.known.as_ref()?;
        let chunks: BTreeMap<_, _> = known
            .chunks
            .range(first..=last)
            .map(|(index, chunk)| (*index, *chunk))
            .collect();
        let all = chunks.len() as u64 == u64::from(last.get()) - u64::from(first.get()) + 1;
        all.then(|| Known {
            attr: known.attr.clone(),
            chunks,
            era: known.era,
        })
    }

    /// Forgets the chunks: a server contradicted them.
    pub(crate) fn unlearn(&self) {
        self.state.lock().known = None;
    }

    /// The size that was last heard.
    pub(crate) fn known_size(&self) -> Option<u64> {
        self.state
            .lock()
            .known
            .as_ref()
            .map(|known| known.attr.size)
    }

    /// The attributes that were last heard.
    pub(crate) fn known_attr(&self) -> Option<Attr> {
        let state = self.state.lock();
        state.known.as_ref().map(|known| known.attr.clone())
    }

    /// The truncation number that was last heard.
    pub(crate) fn truncations(&self) -> Option<u32> {
        self.state
            .lock()
            .known
            .as_ref()
            .map(|known| known.attr.truncations)
    }

    /// An operation on its data was acknowledged before it was on disk.
    pub(crate) fn acknowledged(&self, group: GroupId, version: Version, bytes: u64) {
        let mut state = self.state.lock();
        state.unsynced_bytes += bytes;
        let last = state.unsynced.entry((group, version.epoch)).or_default();
        *last = (*last).max(version);
    }

    /// Whether it was written to, and its mtime is neither published nor being published.
    pub(crate) fn is_modified(&self) -> bool {
        self.state.lock().dirty
    }

    /// Whether its mtime is not published, or about to be.
    pub(crate) fn is_dirty(&self) -> bool {
        self.publishing.is_locked() || self.state.lock().dirty
    }

    /// Whether there is nothing that close(2) must do or tell.
    pub(crate) fn is_flushed(&self) -> bool {
        !self.publishing.is_locked() && {
            let state = self.state.lock();
            !state.dirty && state.error.is_none() && state.lost.is_none()
        }
    }

    /// Keeps an error of background work for the next caller who asks.
    pub(crate) fn fail(&self, error: FsError) {
        self.state.lock().error = Some(error);
    }

    /// The error of background work, or that of a lost session, once.
    pub(crate) fn take_error(&self) -> Option<FsError> {
        let state = &mut *self.state.lock();
        state.lost.take().or_else(|| state.error.take())
    }

    /// The session ended while there was something of this file that had not been sent.
    pub(crate) fn lose(&self, error: &FsError) {
        self.state.lock().lost = Some(error.clone());
    }

    /// That of a lost session, once.
    pub(crate) fn take_lost(&self) -> FsResult<()> {
        self.state.lock().lost.take().map_or(Ok(()), Err)
    }
}
