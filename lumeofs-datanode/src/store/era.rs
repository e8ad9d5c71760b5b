//! Eras: until when a group remembers that chunks were deleted.
//!
//! A deleted chunk leaves a tombstone, so that a late write does not make it again. When an era begins,
//! the group drops all tombstones; from then on it refuses to make a chunk for a request that was
//! planned in an earlier era, which is every request that could mean one of those chunks. Which era it
//! is, is the truncation number of a chunk without data, the mark: so it is ordered, logged, checkpointed
//! and copied to members that catch up like everything else, and it is the first chunk that is copied.

use super::Core;
use lumeofs_base::{ChunkId, ERA_MARK, GroupId};

/// Set in the ids under which marks are stored: every group has one, and a store keeps many groups.
const MARK_BIT: u64 = 1 << 63;

/// The id under which a chunk of a group is stored.
pub(super) fn stored_id(group: GroupId, chunk: ChunkId) -> ChunkId {
    match chunk {
        ERA_MARK => ChunkId(MARK_BIT | u64::from(group.get())),
        chunk => chunk,
    }
}

/// Whether a stored id is that of a mark.
pub(super) fn is_mark(id: ChunkId) -> bool {
    id.get() & MARK_BIT != 0
}

impl Core {
    /// The group's era.
    pub(super) fn era(&self, group: GroupId) -> u32 {
        let mark = self.catalog.chunk(stored_id(group, ERA_MARK));
        mark.map_or(0, |mark| mark.content.read().head.truncations)
    }
}
