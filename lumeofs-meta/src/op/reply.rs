//! What operations answer, and what that consists of.

use crate::locks::LockAnswer;
use lumeofs_base::{Attr, ChunkId, ChunkIndex, FileKind, FsError, GroupId, InodeId, SessionId};
use serde::{Deserialize, Serialize};

/// A chunk of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkRef {
    /// Position in the file.
    pub index: ChunkIndex,
    /// The chunk.
    pub chunk: ChunkId,
    /// The replica group that stores it.
    pub group: GroupId,
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirEntry {
    /// Position after this entry: a `cookie` for the next call. Above 2, since `.` and `..` have 1 and 2.
    pub cookie: u64,
    /// The name.
    pub name: Vec<u8>,
    /// The object.
    pub ino: InodeId,
    /// Its kind.
    pub kind: FileKind,
}

/// What an entry of a directory means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its attributes.
    pub attr: Attr,
    /// Of a regular file: the chunk that it begins with.
    pub first_chunk: Option<ChunkRef>,
    /// Of a directory: everything in it, if that is told.
    pub entries: Option<Vec<DirEntry>>,
}

/// What an operation answers.
#[allow(missing_docs, reason = "the fields are named for what they are")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Done, nothing to say.
    Done,
    /// Attributes.
    Attr(Attr),
    /// Attributes of a new or found object, its first chunk, and whether it was made by this call.
    Created {
        attr: Attr,
        first_chunk: Option<ChunkRef>,
        created: bool,
    },
    /// What a removed name meant, with its new nlink.
    Removed { attr: Attr },
    /// The moved object, and what it replaced or was exchanged with.
    Renamed { attr: Attr, other: Option<Attr> },
    /// Bytes: a symlink target or an attribute's value.
    Bytes(Vec<u8>),
    /// Names of extended attributes.
    Names(Vec<Vec<u8>>),
    /// Entries of a directory, whether more follow, and what some of them mean, in the same order; then the same of entries of
    /// these.
    Entries {
        entries: Vec<DirEntry>,
        more: bool,
        inodes: Vec<Listed>,
    },
    /// Attributes and the existing chunks of the asked range, by index. A missing one is a hole.
    Chunks { attr: Attr, chunks: Vec<ChunkRef> },
    /// Where the reserved bytes start, with attributes and the chunks of that range.
    Appended {
        offset: u64,
        attr: Attr,
        chunks: Vec<ChunkRef>,
    },
    /// A session.
    Session(SessionId),
    /// Orphans that a further purge must take up again.
    Purged { remaining: Vec<InodeId> },
    /// Counters of the filesystem.
    Usage { inodes: u64, bytes: u64 },
    /// Whether a lock was, or could be, had.
    Lock(LockAnswer),
    /// Numbers of inodes.
    Reserved { first: InodeId, count: u32 },
    /// What became of each step: a new regular file comes with its first chunk, if there is room for one.
    Made(Vec<Result<Option<ChunkRef>, FsError>>),
    /// The policy of the trash, entries of it, and whether more follow.
    Trash {
        policy: TrashPolicy,
        entries: Vec<TrashEntry>,
        more: bool,
    },
}

/// What an entry of the trash is known by: an inode may be deleted again after it was restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TrashKey {
    /// When it was deleted, in nanoseconds since 1970.
    pub deleted_ns: u64,
    /// What was deleted.
    pub ino: InodeId,
}

/// What is kept of what is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrashPolicy {
    /// What is deleted from now on goes to the trash.
    pub is_on: bool,
    /// How long it stays there.
    pub keep_s: u64,
}

impl TrashPolicy {
    /// When the time of an entry is over.
    pub fn expires_ns(&self, key: TrashKey) -> u64 {
        let keep_ns = self.keep_s.saturating_mul(1_000_000_000);
        key.deleted_ns.saturating_add(keep_ns)
    }
}

/// Something in the trash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrashEntry {
    /// Its inode, and when it was deleted.
    pub key: TrashKey,
    /// The path of its last name; without a `/` at the start if that was too long to be kept whole.
    pub path: Vec<u8>,
    /// Who deleted it.
    pub uid: u32,
    /// Its attributes.
    pub attr: Attr,
}

/// Result of a command, as stored for its session.
pub type Outcome = Result<Reply, FsError>;
