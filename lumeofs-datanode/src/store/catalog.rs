//! Which chunks and groups the store has.

use super::chunk::Chunk;
use super::era::is_mark;
use lumeofs_base::{ChunkId, GroupId, Version};
use parking_lot::RwLock;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

/// Tables behind one lock, which is held for look-ups only and never while a chunk's lock is taken.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    tables: RwLock<Tables>,
}

#[derive(Debug, Default)]
struct Tables {
    chunks: BTreeMap<ChunkId, Arc<Chunk>>,
    groups: BTreeMap<GroupId, Group>,
}

#[derive(Debug, Default)]
struct Group {
    last: Version,
    durable: Version,
    note: Vec<u8>,
    chunks: BTreeSet<ChunkId>,
    /// Those of them that are tombstones.
    tombstones: BTreeSet<ChunkId>,
}

impl Catalog {
    pub(super) fn chunk(&self, id: ChunkId) -> Option<Arc<Chunk>> {
        self.tables.read().chunks.get(&id).cloned()
    }

    pub(super) fn insert(&self, chunk: Arc<Chunk>) {
        let mut tables = self.tables.write();
        tables
            .groups
            .entry(chunk.group)
            .or_default()
            .chunks
            .insert(chunk.id);
        tables.chunks.insert(chunk.id, chunk);
    }

    pub(super) fn remove(&self, id: ChunkId) {
        let mut tables = self.tables.write();
        if let Some(chunk) = tables.chunks.remove(&id)
            && let Some(group) = tables.groups.get_mut(&chunk.group)
        {
            group.chunks.remove(&id);
            group.tombstones.remove(&id);
        }
    }

    /// Notes whether a chunk of the catalog is a tombstone.
    pub(super) fn set_deleted(&self, group: GroupId, id: ChunkId, deleted: bool) {
        let mut tables = self.tables.write();
        let tombstones = &mut tables.groups.entry(group).or_default().tombstones;
        if deleted {
            tombstones.insert(id);
        } else {
            tombstones.remove(&id);
        }
    }

    /// Removes all tombstones of a group. They use no space.
    pub(super) fn remove_tombstones(&self, group: GroupId) {
        let mut tables = self.tables.write();
        let Tables { chunks, groups } = &mut *tables;
        if let Some(group) = groups.get_mut(&group) {
            for id in std::mem::take(&mut group.tombstones) {
                chunks.remove(&id);
                group.chunks.remove(&id);
            }
        }
    }

    /// Up to `max` chunks above `after`, in order.
    pub(super) fn chunks_after(&self, after: Option<ChunkId>, max: usize) -> Vec<Arc<Chunk>> {
        let tables = self.tables.read();
        tables
            .chunks
            .range(above(after))
            .take(max)
            .map(|(_, chunk)| chunk.clone())
            .collect()
    }

    /// Up to `max` chunks of a group above `after`, in order, without the mark of its era.
    pub(super) fn chunks_of(
        &self,
        group: GroupId,
        after: Option<ChunkId>,
        max: usize,
    ) -> Vec<Arc<Chunk>> {
        let tables = self.tables.read();
        let Some(group) = tables.groups.get(&group) else {
            return Vec::new();
        };
        let ids = group.chunks.range(above(after));
        let ids = ids.take_while(|id| !is_mark(**id)).take(max);
        ids.filter_map(|id| tables.chunks.get(id).cloned())
            .collect()
    }

    /// How many chunks a group has, up to one of them: without tombstones, and without the mark of its era.
    pub(super) fn count(&self, group: GroupId, upto: Option<ChunkId>) -> u64 {
        let tables = self.tables.read();
        let Some(group) = tables.groups.get(&group) else {
            return 0;
        };
        let count = |ids: &BTreeSet<ChunkId>| match upto {
            Some(upto) => ids.range(..=upto).filter(|id| !is_mark(**id)).count(),
            // The mark is the last of all, if there is one.
            None => ids.len() - usize::from(ids.last().is_some_and(|id| is_mark(*id))),
        };
        count(&group.chunks).saturating_sub(count(&group.tombstones)) as u64
    }

    /// The group's last operation, and the last one that is durable.
    pub(super) fn versions(&self, group: GroupId) -> (Version, Version) {
        let tables = self.tables.read();
        tables
            .groups
            .get(&group)
            .map_or_else(Default::default, |group| (group.last, group.durable))
    }

    /// The replication layer's own record of the group.
    pub(super) fn note(&self, group: GroupId) -> Vec<u8> {
        self.tables
            .read()
            .groups
            .get(&group)
            .map_or_else(Vec::new, |group| group.note.clone())
    }

    pub(super) fn groups(&self) -> Vec<GroupId> {
        self.tables.read().groups.keys().copied().collect()
    }

    pub(super) fn set_last(&self, group: GroupId, version: Version) {
        self.tables.write().groups.entry(group).or_default().last = version;
    }

    pub(super) fn set_durable(&self, group: GroupId, version: Version) {
        self.tables.write().groups.entry(group).or_default().durable = version;
    }

    pub(super) fn set_note(&self, group: GroupId, note: Vec<u8>) {
        self.tables.write().groups.entry(group).or_default().note = note;
    }

    /// After recovery: whatever is there was read from disk.
    pub(super) fn mark_all_durable(&self) {
        for group in self.tables.write().groups.values_mut() {
            group.durable = group.last;
        }
    }
}

fn above(after: Option<ChunkId>) -> (Bound<ChunkId>, Bound<ChunkId>) {
    (
        after.map_or(Bound::Unbounded, Bound::Excluded),
        Bound::Unbounded,
    )
}
