//! Keys of the tables: one byte of table, then big-endian numbers, inode first.
//!
//! An inode id begins with its slot, so a slot is one contiguous range in each table and can be
//! moved as such. Sessions belong to the whole group.
//!
//! ```text
//! 01                             state: counters, log time
//! 02 slot:2                      next inode counter of a slot
//! 03                             era, once there was more than one
//! 04                             deletions are held, since these tables were loaded from a dump
//! 05                             policy of the trash
//! 10 ino:8                       inode
//! 11 parent:8 position:8         directory entry
//! 12 ino:8 name                  extended attribute
//! 13 ino:8 index:4               chunk of a file
//! 14 ino:8                       orphan: an inode without a name, and whether it can be given one
//! 15 ino:8                       locks of an inode
//! 16 time:8 ino:8                what is in the trash, by the time of its deletion
//! 17 ino:8                       that time of an inode
//! 20 session:8                   session
//! 21 session:8 sequence:8        outcome kept for exactly-once
//! 22 nonce:16                    session opened with this nonce
//! 23 session:8                   session that may have leases
//! 24 session:8 ino:8             inode on which a session has locks
//! 30 chunk:8                     freed chunk, to be deleted on its group
//! 80..84                         the controller's
//! 85 group:8                     group of a dump, whose configuration its members must confirm
//! 86                             lowest id of a group that was not made before a dump was loaded
//! 90 id:8                        master: address, state
//! 91 id:8                        id that was given to a node, with its nonce
//! F0..                           the host's own (last applied, membership); not used here
//! ```

use lumeofs_base::{ChunkId, GroupId, InodeId, NodeId, SessionId, SlotId};
use std::ops::Range;

/// First byte of the keys that the host may use for itself. The state machines keep below it.
pub const HOST: u8 = 0xF0;

/// Counters and log time.
pub(crate) const STATE: [u8; 1] = [0x01];
/// The era.
pub(crate) const ERA: [u8; 1] = [0x03];
/// Deletions are held.
pub(crate) const HELD: [u8; 1] = [0x04];
/// Policy of the trash.
pub(crate) const TRASH_POLICY: [u8; 1] = [0x05];
/// Groups from here on are younger than the dump that was loaded.
pub(crate) const GROUP_FLOOR: [u8; 1] = [0x86];
/// Policies and version of the controller.
pub(crate) const POLICY: [u8; 1] = [0x80];

const COUNTER: u8 = 0x02;
const INODE: u8 = 0x10;
const DENTRY: u8 = 0x11;
const XATTR: u8 = 0x12;
const CHUNK: u8 = 0x13;
const ORPHAN: u8 = 0x14;
const LOCKS: u8 = 0x15;
const TRASH: u8 = 0x16;
const TRASHED: u8 = 0x17;
const SESSION: u8 = 0x20;
const OUTCOME: u8 = 0x21;
const NONCE: u8 = 0x22;
const LEASEHOLDER: u8 = 0x23;
const LOCKED: u8 = 0x24;
const FREED: u8 = 0x30;
const NODE: u8 = 0x81;
const GROUP: u8 = 0x82;
const MASTER: u8 = 0x83;
const REMOVED_NODE: u8 = 0x84;
const SOUGHT: u8 = 0x85;
const MASTER_RECORD: u8 = 0x90;
const ALLOCATION: u8 = 0x91;

pub(crate) fn counter(slot: SlotId) -> [u8; 3] {
    let [high, low] = slot.0.to_be_bytes();
    [COUNTER, high, low]
}

pub(crate) fn inode(ino: InodeId) -> [u8; 9] {
    one(INODE, ino.0)
}

pub(crate) fn dentry(parent: InodeId, position: u64) -> [u8; 17] {
    two(DENTRY, parent.0, position)
}

pub(crate) fn xattr(ino: InodeId, name: &[u8]) -> Vec<u8> {
    let mut key = one(XATTR, ino.0).to_vec();
    key.extend_from_slice(name);
    key
}

/// The name in the key of an extended attribute.
pub(crate) fn xattr_name(key: &[u8]) -> &[u8] {
    &key[9..]
}

/// `index` may be one past the largest index, as the end of a range.
pub(crate) fn chunk(ino: InodeId, index: u64) -> [u8; 13] {
    let mut key = [0; 13];
    match u32::try_from(index) {
        Ok(index) => {
            key[..9].copy_from_slice(&one(CHUNK, ino.0));
            key[9..].copy_from_slice(&index.to_be_bytes());
        }
        Err(_) => key[..9].copy_from_slice(&one(CHUNK, ino.0 + 1)),
    }
    key
}

/// The index in the key of a chunk.
pub(crate) fn chunk_index(key: &[u8]) -> u32 {
    u32::from_be_bytes(key[9..13].try_into().expect("chunk keys have 13 bytes"))
}

pub(crate) fn orphan(ino: InodeId) -> [u8; 9] {
    one(ORPHAN, ino.0)
}

/// `time` in nanoseconds since 1970.
pub(crate) fn trash(time: u64, ino: InodeId) -> [u8; 17] {
    two(TRASH, time, ino.0)
}

pub(crate) fn trashed(ino: InodeId) -> [u8; 9] {
    one(TRASHED, ino.0)
}

pub(crate) fn session(id: SessionId) -> [u8; 9] {
    one(SESSION, id.0)
}

pub(crate) fn outcome(id: SessionId, sequence: u64) -> [u8; 17] {
    two(OUTCOME, id.0, sequence)
}

pub(crate) fn nonce(nonce: u128) -> [u8; 17] {
    let mut key = [NONCE; 17];
    key[1..].copy_from_slice(&nonce.to_be_bytes());
    key
}

pub(crate) fn leaseholder(id: SessionId) -> [u8; 9] {
    one(LEASEHOLDER, id.0)
}

pub(crate) fn locks(ino: InodeId) -> [u8; 9] {
    one(LOCKS, ino.0)
}

pub(crate) fn locked(id: SessionId, ino: InodeId) -> [u8; 17] {
    two(LOCKED, id.0, ino.0)
}

/// Inodes on which one session has locks.
pub(crate) fn locked_by(id: SessionId) -> Range<[u8; 9]> {
    one(LOCKED, id.0)..one(LOCKED, id.0 + 1)
}

pub(crate) fn freed(chunk: ChunkId) -> [u8; 9] {
    one(FREED, chunk.0)
}

pub(crate) fn node(id: NodeId) -> [u8; 9] {
    one(NODE, id.0)
}

pub(crate) fn removed_node(id: NodeId) -> [u8; 9] {
    one(REMOVED_NODE, id.0)
}

pub(crate) fn master(id: NodeId) -> [u8; 9] {
    one(MASTER, id.0)
}

pub(crate) fn master_record(id: NodeId) -> [u8; 9] {
    one(MASTER_RECORD, id.0)
}

pub(crate) fn allocation(id: NodeId) -> [u8; 9] {
    one(ALLOCATION, id.0)
}

pub(crate) fn group(id: GroupId) -> [u8; 9] {
    one(GROUP, u64::from(id.0))
}

pub(crate) fn sought(id: GroupId) -> [u8; 9] {
    one(SOUGHT, u64::from(id.0))
}

/// The first number of a key after its table.
pub(crate) fn first(key: &[u8]) -> u64 {
    u64::from_be_bytes(key[1..9].try_into().expect("the key begins with a number"))
}

/// The second number of a key after its table.
pub(crate) fn second(key: &[u8]) -> u64 {
    u64::from_be_bytes(key[9..17].try_into().expect("the key holds two numbers"))
}

/// Extended attributes of one inode.
pub(crate) fn xattrs_of(ino: InodeId) -> Range<[u8; 9]> {
    one(XATTR, ino.0)..one(XATTR, ino.0 + 1)
}

/// Whole tables, for lists and checks.
pub(crate) mod all {
    use std::ops::Range;

    pub(crate) const COUNTERS: Range<[u8; 1]> = table(super::COUNTER);
    pub(crate) const INODES: Range<[u8; 1]> = table(super::INODE);
    pub(crate) const DENTRIES: Range<[u8; 1]> = table(super::DENTRY);
    pub(crate) const XATTRS: Range<[u8; 1]> = table(super::XATTR);
    pub(crate) const CHUNKS: Range<[u8; 1]> = table(super::CHUNK);
    pub(crate) const ORPHANS: Range<[u8; 1]> = table(super::ORPHAN);
    pub(crate) const TRASH: Range<[u8; 1]> = table(super::TRASH);
    pub(crate) const TRASHED: Range<[u8; 1]> = table(super::TRASHED);
    pub(crate) const SESSIONS: Range<[u8; 1]> = table(super::SESSION);
    pub(crate) const OUTCOMES: Range<[u8; 1]> = table(super::OUTCOME);
    pub(crate) const NONCES: Range<[u8; 1]> = table(super::NONCE);
    pub(crate) const LEASEHOLDERS: Range<[u8; 1]> = table(super::LEASEHOLDER);
    pub(crate) const LOCKS: Range<[u8; 1]> = table(super::LOCKS);
    pub(crate) const LOCKED: Range<[u8; 1]> = table(super::LOCKED);
    pub(crate) const FREED: Range<[u8; 1]> = table(super::FREED);
    pub(crate) const NODES: Range<[u8; 1]> = table(super::NODE);
    pub(crate) const GROUPS: Range<[u8; 1]> = table(super::GROUP);
    pub(crate) const SOUGHT: Range<[u8; 1]> = table(super::SOUGHT);
    pub(crate) const MASTERS: Range<[u8; 1]> = table(super::MASTER);
    pub(crate) const REMOVED_NODES: Range<[u8; 1]> = table(super::REMOVED_NODE);
    pub(crate) const MASTER_RECORDS: Range<[u8; 1]> = table(super::MASTER_RECORD);
    pub(crate) const ALLOCATIONS: Range<[u8; 1]> = table(super::ALLOCATION);

    const fn table(byte: u8) -> Range<[u8; 1]> {
        [byte]..[byte + 1]
    }
}

fn one(table: u8, number: u64) -> [u8; 9] {
    let mut key = [table; 9];
    key[1..].copy_from_slice(&number.to_be_bytes());
    key
}

fn two(table: u8, number: u64, further: u64) -> [u8; 17] {
    let mut key = [table; 17];
    key[1..9].copy_from_slice(&number.to_be_bytes());
    key[9..].copy_from_slice(&further.to_be_bytes());
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_contiguous_and_the_end_of_a_file_is_before_the_next() {
        let early = InodeId::new(SlotId(1), (1 << 48) - 1);
        let late = InodeId::new(SlotId(2), 1);
        assert!(inode(early) < inode(late));
        assert!(chunk(early, u64::from(u32::MAX)) < chunk(early, 1 << 32));
        assert!(chunk(early, 1 << 32) <= chunk(InodeId(early.0 + 1), 0));
        assert_eq!(chunk_index(&chunk(late, 77)), 77);
        assert!(dentry(late, u64::MAX)[0] < HOST);
    }
}
