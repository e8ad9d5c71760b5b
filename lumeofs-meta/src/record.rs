//! Values of the tables: a byte of format version, then postcard.
//!
//! A value that does not decode means a damaged store or a newer version's data. Going on would make
//! this member differ from the others, so it ends the process.

use crate::acl::Acls;
use lumeofs_base::{Attr, ChunkId, FileKind, GroupId, InodeId, RepairPolicy, Timestamp};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Version of the stored form of all values.
pub const FORMAT: u8 = 5;

/// Counters of the whole group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// Log index of the last applied entry.
    pub(crate) applied: u64,
    /// Log time: never goes back.
    pub(crate) time: Timestamp,
    /// The next chunk id.
    pub(crate) next_chunk: u64,
    /// The next session id.
    pub(crate) next_session: u64,
    /// Inodes, orphans included.
    pub(crate) inodes: u64,
    /// Sum of `allocated` over all inodes.
    pub(crate) bytes: u64,
    /// Bytes of a file in one chunk.
    pub(crate) chunk_size: u64,
    /// Sessions that have ended. Each may have left bytes past the size of any file (D11).
    pub(crate) sessions_ended: u64,
    /// Number of the newest fence: how often a session was ended by the leader.
    pub(crate) fence: u64,
}

/// An inode with what only the master knows of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Inode {
    /// Attributes. `allocated` and `has_xattrs` follow from the other fields when the inode is saved; until then
    /// `allocated` is what the usage counter holds of this inode.
    pub(crate) attr: Attr,
    /// Of a directory: its parent. Of others 0, since they may have several.
    pub(crate) parent: InodeId,
    /// Of a directory with a name: the position of its entry in the parent. Else 0.
    pub(crate) position: u64,
    /// Rows in the chunk table.
    pub(crate) chunk_rows: u32,
    /// Names of the extended attributes that have rows, with their NULs.
    pub(crate) xattr_list_bytes: u32,
    /// Its ACLs, which are shown as extended attributes too.
    pub(crate) acls: Acls,
    /// Target of a symlink.
    pub(crate) target: Vec<u8>,
    /// [`State::sessions_ended`] when nothing lay past the size but what live sessions were writing, or was about to
    /// be cut off.
    pub(crate) sessions_ended: u64,
}

impl Inode {
    /// What `allocated` is: whole chunks, but no more than the size in blocks. A chunk's replicas
    /// take space only as far as it was written, which a small file's size says better.
    pub(crate) fn allocated(&self, chunk_size: u64) -> u64 {
        let chunks = u64::from(self.chunk_rows).saturating_mul(chunk_size);
        match self.attr.kind {
            FileKind::Regular => chunks.min(self.attr.size.next_multiple_of(4096)),
            _ => 0,
        }
    }

    /// All that listxattr(2) can return.
    pub(crate) fn all_xattr_list_bytes(&self) -> usize {
        let acls: usize = self.acls.names().map(|name| name.len() + 1).sum();
        self.xattr_list_bytes as usize + acls
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.attr.kind == FileKind::Directory
    }
}

/// A place of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Place {
    /// An entry.
    Entry(Dentry),
    /// An entry was here and others that were inserted after it lie behind: a search goes on.
    Gap,
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Dentry {
    pub(crate) name: Vec<u8>,
    pub(crate) ino: InodeId,
    pub(crate) kind: FileKind,
}

/// An inode without a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Orphan {
    /// It never had one and can be given its first. What lost its last name gets no other.
    pub(crate) may_be_named: bool,
}

/// What is in the trash; the key holds time and inode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trashed {
    /// Its last name, from the root; without a `/` at the start if there was more before.
    pub(crate) path: Vec<u8>,
    /// Who took it away.
    pub(crate) uid: u32,
}

/// A row of the chunk table; the key holds inode and index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChunkRow {
    pub(crate) chunk: ChunkId,
    pub(crate) group: GroupId,
}

/// A session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Session {
    pub(crate) nonce: u128,
    pub(crate) description: String,
    pub(crate) opened: Timestamp,
    /// Outcomes below were purged.
    pub(crate) acked_below: u64,
    /// It has ended; it is closed when this fence is up at every replica group.
    pub(crate) ending: Option<u64>,
    /// Inodes on which it has locks.
    pub(crate) locked: u32,
    /// Numbers of inodes that it may still make: see [`crate::op::Mutation::Reserve`].
    pub(crate) reserved: Vec<Range<u64>>,
}

/// Policies and version of the controller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Policy {
    /// Log index of the last change that was more than space figures.
    pub(crate) version: u64,
    /// Set once by `Init`.
    pub(crate) set: Option<PolicyValues>,
}

/// What `Init` sets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PolicyValues {
    pub(crate) chunk_size: u64,
    pub(crate) replicas: u32,
    pub(crate) always_durable: bool,
    pub(crate) repair: RepairPolicy,
}

/// The stored form of a value.
pub(crate) fn encode(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(96);
    bytes.push(FORMAT);
    postcard::to_extend(value, bytes).expect("encoding into memory cannot fail")
}

/// The value of a stored form.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> T {
    match bytes.split_first() {
        Some((&FORMAT, body)) => postcard::from_bytes(body).unwrap_or_else(|error| {
            panic!(
                "a stored {} does not decode: {error}",
                std::any::type_name::<T>()
            )
        }),
        Some((version, _)) => panic!(
            "a stored {} has format version {version}, this program knows {FORMAT}",
            std::any::type_name::<T>()
        ),
        None => panic!("a stored {} is empty", std::any::type_name::<T>()),
    }
}
