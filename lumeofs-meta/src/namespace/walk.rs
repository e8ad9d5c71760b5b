//! Reading whole tables a page at a time: for reports and checks that must not keep others waiting.

use crate::keys;
use crate::record::{ChunkRow, Dentry, Place, decode};
use crate::tables::Tables;
use crate::transaction::state;
use lumeofs_base::{ChunkId, ChunkIndex, GroupId, InodeId};

/// Place in the table of chunks.
pub type ChunkCursor = Option<(InodeId, ChunkIndex)>;
/// Place in the table of names.
pub type NameCursor = Option<(InodeId, u64)>;

/// Visits at most `limit` chunks of files after a place, by inode and index. Returns where to go on, `None` at the
/// end. Pages may be read at different times: a file that is there all the time is not missed.
pub fn chunks_after(
    tables: &impl Tables,
    after: ChunkCursor,
    limit: usize,
    mut visit: impl FnMut(InodeId, ChunkId, GroupId),
) -> ChunkCursor {
    let from = match after {
        None => keys::all::CHUNKS.start.to_vec(),
        Some((ino, index)) => keys::chunk(ino, u64::from(index.get()) + 1).to_vec(),
    };
    let (mut last, mut count) = (None, 0);
    tables.scan(&from, &keys::all::CHUNKS.end, &mut |key, value| {
        let (ino, index) = (InodeId(keys::first(key)), keys::chunk_index(key));
        let row: ChunkRow = decode(value);
        visit(ino, row.chunk, row.group);
        last = Some((ino, ChunkIndex(index)));
        count += 1;
        count < limit
    });
    last.filter(|_| count >= limit)
}

/// Visits at most `limit` places of directories after one: directory, name, object. Returns where to go on, `None`
/// at the end.
pub fn names_after(
    tables: &impl Tables,
    after: NameCursor,
    limit: usize,
    mut visit: impl FnMut(InodeId, &[u8], InodeId),
) -> NameCursor {
    let from = match after {
        None => keys::all::DENTRIES.start.to_vec(),
        Some((parent, u64::MAX)) => keys::dentry(InodeId(parent.0 + 1), 0).to_vec(),
        Some((parent, position)) => keys::dentry(parent, position + 1).to_vec(),
    };
    let (mut last, mut count) = (None, 0);
    tables.scan(&from, &keys::all::DENTRIES.end, &mut |key, value| {
        let parent = InodeId(keys::first(key));
        if let Place::Entry(Dentry { name, ino, .. }) = decode(value) {
            visit(parent, &name, ino);
        }
        last = Some((parent, keys::second(key)));
        count += 1;
        count < limit
    });
    last.filter(|_| count >= limit)
}

/// Where a directory lies: its parent, and its name there. `None` for the root, and for one that was removed.
pub fn place_of_directory(tables: &impl Tables, dir: InodeId) -> Option<(InodeId, Vec<u8>)> {
    crate::trash::place_of(tables, dir)
}

/// The group of a chunk that is queued to be deleted.
pub fn freed_group(tables: &impl Tables, chunk: ChunkId) -> Option<GroupId> {
    tables.get(&keys::freed(chunk)).map(|value| decode(&value))
}

/// The id that the next chunk gets. Whatever has a lower one was in the table of chunks at some time, and is never
/// put there again.
pub fn next_chunk(tables: &impl Tables) -> ChunkId {
    ChunkId(state(tables).map_or(1, |state| state.next_chunk))
}

/// Number of inodes.
pub fn inode_count(tables: &impl Tables) -> u64 {
    state(tables).map_or(0, |state| state.inodes)
}
