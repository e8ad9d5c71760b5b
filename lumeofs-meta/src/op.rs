//! The operations of a metadata group and their answers: what clients send, what the Raft log keeps.
//!
//! A mutation travels, is logged and is applied in this one form, so nothing is lost between the
//! wire and the state machine. The encoding is postcard under the wire version of the connection
//! and the format version of the log; variants are only ever added at the end.

mod reply;

pub use reply::{ChunkRef, DirEntry, Listed, Outcome, Reply, TrashEntry, TrashKey, TrashPolicy};

use crate::locks::{Lock, LockOwner};
use lumeofs_base::limits::READDIR_INODES_MAX;
use lumeofs_base::{ChunkId, ChunkIndex, FileKind, GroupId, InodeId, SessionId, Timestamp};
use serde::{Deserialize, Serialize};

/// Who asks. The kernel has checked the permissions of a `trusted` caller (a mount); others are
/// checked by the state machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// Effective user.
    pub uid: u32,
    /// Effective group; new objects belong to it unless the directory is setgid.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Permissions were checked already.
    pub trusted: bool,
}

/// The mode that a caller wants for a new object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateMode {
    /// Permission bits, the low 12 bits of `st_mode`.
    pub mode: u16,
    /// Permissions that are not given, unless the directory has a default ACL.
    pub umask: u16,
}

impl From<u16> for CreateMode {
    /// Without a umask.
    fn from(mode: u16) -> Self {
        Self { mode, umask: 0 }
    }
}

/// What kind of object to make, with what only that kind has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NewNode {
    /// A regular file; its first chunk is allocated with it.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link with its target.
    Symlink(Vec<u8>),
    /// FIFO, socket or device, with its device number.
    Special(FileKind, u32),
}

/// What a mount has made in its memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewObject {
    /// Its number.
    pub ino: InodeId,
    /// The directory.
    pub parent: InodeId,
    /// The name there.
    pub name: Vec<u8>,
    /// What it is.
    pub node: NewNode,
    /// Its mode.
    pub mode: CreateMode,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// When it was made.
    pub time: Timestamp,
}

/// What a mount has done in its memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// It has made something.
    Make(NewObject),
    /// It has set attributes of something that is no regular file, to these values.
    Set {
        /// What.
        ino: InodeId,
        /// The values, ctime among them.
        set: SetAttr,
    },
}

impl Step {
    /// The inode of which it says more than the leader knows, apart from what it makes.
    pub fn ino(&self) -> InodeId {
        match self {
            Self::Make(object) => object.parent,
            Self::Set { ino, .. } => *ino,
        }
    }
}

/// A time stamp to set: now (the log's time) or a given one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SetTime {
    /// The time at which the command is stamped.
    Now,
    /// This time.
    At(Timestamp),
}

/// Attributes to set; `None` keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAttr {
    /// Permission bits, the low 12 bits of `st_mode`.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// New size: truncates or extends.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
    /// Change time, where a client must restate one it has shown already.
    pub ctime: Option<Timestamp>,
    /// Takes suid and sgid away from whatever mode there is then: who changes the contents is not in the group.
    pub clear_sgid: bool,
}

/// That something was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// What.
    pub ino: InodeId,
    /// The access time that it had for whoever read it. If it has another one now, that stays.
    pub from: Timestamp,
    /// When it was read last.
    pub to: Timestamp,
}

/// How `rename` treats an existing target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RenameMode {
    /// Replace it.
    #[default]
    Replace,
    /// Fail with `Exists` (RENAME_NOREPLACE).
    NoReplace,
    /// Swap both (RENAME_EXCHANGE).
    Exchange,
    /// Replace it and leave a whiteout (char device 0:0) at the source (RENAME_WHITEOUT).
    Whiteout,
    /// Fail with `Exists`, else leave a whiteout at the source (RENAME_NOREPLACE | RENAME_WHITEOUT).
    WhiteoutNoReplace,
}

/// How `setxattr` treats an existing or missing attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum XattrMode {
    /// Create or replace.
    Set,
    /// Fail with `Exists` if there (XATTR_CREATE).
    Create,
    /// Fail with `NoData` if missing (XATTR_REPLACE).
    Replace,
}

/// Operations that change nothing. Answered by the leader from applied state.
#[allow(missing_docs, reason = "the fields are named for what they are")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Query {
    /// The object of a name. `.` and `..` are answered too. -> [`Reply::Attr`]
    Lookup { parent: InodeId, name: Vec<u8> },
    /// -> [`Reply::Attr`]
    GetAttr { ino: InodeId },
    /// Target of a symlink. -> [`Reply::Bytes`]
    ReadLink { ino: InodeId },
    /// Entries after `cookie` (0 = start) in hash order, without `.` and `..`; the first `inodes_max` with what they mean,
    /// and if there are fewer, with what is in directories among them, as far as the asker gets leases on that: see
    /// [`Query::inodes_max`]. -> [`Reply::Entries`]
    ReadDir {
        ino: InodeId,
        cookie: u64,
        count_max: u32,
        inodes_max: u32,
    },
    /// -> [`Reply::Bytes`]
    GetXattr { ino: InodeId, name: Vec<u8> },
    /// -> [`Reply::Names`]
    ListXattr { ino: InodeId },
    /// Attributes and chunks `first .. first + count` of a file. -> [`Reply::Chunks`]
    Chunks {
        ino: InodeId,
        first: ChunkIndex,
        count: u32,
    },
    /// Counters of the whole filesystem. -> [`Reply::Usage`]
    Usage,
    /// Parent directory of a directory. -> [`Reply::Attr`]
    Parent { ino: InodeId },
    /// Whether `session` could have a lock. -> [`Reply::Lock`]
    TestLock {
        ino: InodeId,
        session: SessionId,
        lock: Lock,
    },
    /// What is in the trash after an entry, by the time of deletion: at most `count_max`, and only `of` this inode if it is
    /// given. For root. -> [`Reply::Trash`]
    Trash {
        after: Option<TrashKey>,
        of: Option<InodeId>,
        count_max: u32,
    },
}

impl Query {
    /// Their names, for people. The first byte of an encoded one is its place here.
    pub const NAMES: [&str; 11] = [
        "lookup",
        "get_attr",
        "read_link",
        "read_dir",
        "get_xattr",
        "list_xattr",
        "chunks",
        "usage",
        "parent",
        "test_lock",
        "trash",
    ];
}

impl Query {
    /// How many inodes may come with the answer. Whoever gives leases chooses them by [`crate::namespace::to_list`] and adds
    /// what they mean by [`crate::namespace::listed`].
    pub fn inodes_max(&self) -> usize {
        match self {
            Self::ReadDir { inodes_max, .. } => (*inodes_max as usize).min(READDIR_INODES_MAX),
            _ => 0,
        }
    }
}

/// Operations that change the namespace. Exactly once per `(session, sequence)`.
#[allow(missing_docs, reason = "the fields are named for what they are")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mutation {
    /// Makes an object. With `exclusive == false` an existing regular file is returned as it is. -> [`Reply::Created`]
    Create {
        parent: InodeId,
        name: Vec<u8>,
        node: NewNode,
        mode: CreateMode,
        exclusive: bool,
    },
    /// A further name for an inode. -> [`Reply::Attr`]
    Link {
        ino: InodeId,
        parent: InodeId,
        name: Vec<u8>,
    },
    /// Removes a name that is no directory. -> [`Reply::Removed`]
    Unlink { parent: InodeId, name: Vec<u8> },
    /// Removes an empty directory. -> [`Reply::Removed`]
    Rmdir { parent: InodeId, name: Vec<u8> },
    /// -> [`Reply::Renamed`]
    Rename {
        parent: InodeId,
        name: Vec<u8>,
        new_parent: InodeId,
        new_name: Vec<u8>,
        mode: RenameMode,
    },
    /// -> [`Reply::Attr`]
    SetAttr { ino: InodeId, set: SetAttr },
    /// -> [`Reply::Done`]
    SetXattr {
        ino: InodeId,
        name: Vec<u8>,
        value: Vec<u8>,
        mode: XattrMode,
    },
    /// -> [`Reply::Done`]
    RemoveXattr { ino: InodeId, name: Vec<u8> },
    /// Allocates the missing chunks of `first .. first + count`. -> [`Reply::Chunks`]
    Allocate {
        ino: InodeId,
        first: ChunkIndex,
        count: u32,
    },
    /// Publishes what a writer did: the file is at least `size` long (0 = size unchanged), mtime and ctime are
    /// now, suid and sgid are cleared if `clear_suid`. Fails with `StaleWrite` if `truncations` is not the inode's
    /// number or a grown file's tail is unclean; the writer then reads the chunks again and writes again.
    /// -> [`Reply::Attr`]
    Publish {
        ino: InodeId,
        size: u64,
        truncations: u32,
        clear_suid: bool,
    },
    /// Reserves `len` bytes at the end for an appender: the size grows at once. Fails with
    /// `StaleWrite` while the tail is unclean. -> [`Reply::Appended`]
    Append {
        ino: InodeId,
        len: u64,
        clear_suid: bool,
    },
    /// The bytes past the size in the last chunk were cut off for this truncation number.
    /// -> [`Reply::Attr`]
    TailClean { ino: InodeId, truncations: u32 },
    /// As [`Mutation::Publish`], where `from` is the first byte that was written, which may lie past the size:
    /// `u64::MAX` if none was. Bytes that nobody wrote become part of the file then, so it also fails with
    /// `StaleWrite` if a session that has ended may have left something there: [`Mutation::CutTail`] ends that.
    /// -> [`Reply::Attr`]
    Extend {
        ino: InodeId,
        from: u64,
        size: u64,
        truncations: u32,
        clear_suid: bool,
    },
    /// If a session that has ended may have left bytes past the size: a truncation to the present size, whatever
    /// that is. Else nothing. -> [`Reply::Attr`]
    CutTail { ino: InodeId },
    /// As [`Mutation::Extend`], by a mount that has shown its writes to its callers already, and what they set besides:
    /// `mtime` is set, `ctime` is unless the inode's is later, then `set`, which has neither of these nor a size. From
    /// `trusted` callers only. -> [`Reply::Attr`]
    Flush {
        ino: InodeId,
        from: u64,
        size: u64,
        truncations: u32,
        clear_suid: bool,
        mtime: Timestamp,
        ctime: Timestamp,
        set: SetAttr,
    },
    /// Locks a range, in place of what its owner has there. A session that is alone on the inode and wants it to be
    /// `delegated` keeps the account of all its locks on it from then on. -> [`Reply::Lock`]
    Lock {
        ino: InodeId,
        lock: Lock,
        delegated: bool,
    },
    /// Unlocks a range. -> [`Reply::Done`]
    Unlock {
        ino: InodeId,
        owner: LockOwner,
        first: u64,
        last: u64,
    },
    /// Ends the delegation of an inode's locks to the session, which has these. -> [`Reply::Done`]
    ReturnLocks { ino: InodeId, locks: Vec<Lock> },
    /// Reserves numbers for inodes that the session will make, in the slot of `near`. -> [`Reply::Reserved`]
    Reserve { near: InodeId, count: u32 },
    /// Makes objects, and sets attributes, as a mount has shown to its callers already under exclusive leases on directories: in
    /// this order, each for itself, with numbers in ascending order that the session had reserved. From `trusted` callers
    /// only. -> [`Reply::Made`]
    Make { steps: Vec<Step> },
    /// Makes a regular file without a name (O_TMPFILE), with what it inherits from `parent`. It counts as open in the
    /// session, and a [`Mutation::Link`] can give it its first name. -> [`Reply::Created`]
    CreateUnnamed { parent: InodeId, mode: CreateMode },
    /// Sets access times of what was read, and nothing else: no ctime. What is gone is passed over. At most
    /// [`lumeofs_base::limits::ACCESSES_MAX`], from `trusted` callers only. -> [`Reply::Done`]
    Access { accesses: Vec<Access> },
    /// Gives what is in the trash a name again. For root. -> [`Reply::Attr`]
    Restore {
        ino: InodeId,
        parent: InodeId,
        name: Vec<u8>,
    },
    /// Drops entries of the trash: what was deleted is freed. Those that are there no more are passed over. At most
    /// [`lumeofs_base::limits::TRASH_ENTRIES_MAX`], for root. -> [`Reply::Done`]
    EmptyTrash { entries: Vec<TrashKey> },
    /// Sets how long what is deleted from now on is kept, in seconds; `None`: not at all. What is in the trash stays until
    /// the time is over that was set last. For root. -> [`Reply::Done`]
    SetTrash { keep_s: Option<u64> },
}

impl Mutation {
    /// Their names, for people. The first byte of an encoded one is its place here.
    pub const NAMES: [&str; 25] = [
        "create",
        "link",
        "unlink",
        "rmdir",
        "rename",
        "set_attr",
        "set_xattr",
        "remove_xattr",
        "allocate",
        "publish",
        "append",
        "tail_clean",
        "extend",
        "cut_tail",
        "flush",
        "lock",
        "unlock",
        "return_locks",
        "reserve",
        "make",
        "create_unnamed",
        "access",
        "restore",
        "empty_trash",
        "set_trash",
    ];
}

/// Commands that no session numbers: they come from the leader itself or are idempotent.
#[allow(missing_docs, reason = "the fields are named for what they are")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Internal {
    /// Opens a session. `nonce` makes a retry find the same session. -> [`Reply::Session`]
    OpenSession { nonce: u128, description: String },
    /// Closes a session that its client gave up. Refused with `SessionExpired` once it is ended by [`Internal::EndSession`].
    CloseSession { session: SessionId },
    /// Frees orphans that nobody holds open. Bounded work per command; -> [`Reply::Purged`]
    Purge { inos: Vec<InodeId> },
    /// The datanodes have deleted these chunks.
    ChunksDeleted { chunks: Vec<ChunkId> },
    /// Nothing; makes a new leader's state current.
    Noop,
    /// Sets the bytes of a file in one chunk, as the cluster's policy has them. Only before the first
    /// chunk is allocated; without it they are [`lumeofs_base::limits::CHUNK_SIZE_BYTES`].
    SetChunkSize {
        /// A multiple of the block size.
        bytes: u64,
    },
    /// Begins an era, if `after` is still the one: see [`crate::namespace::era`].
    BeginEra {
        /// The era that ends.
        after: u32,
    },
    /// Queues chunks of groups for deletion that no file has and nothing queued: what a check has found. The leader
    /// must be sure of that, since no chunk comes back into a file.
    FreeChunks {
        /// The chunks.
        chunks: Vec<(ChunkId, GroupId)>,
    },
    /// Ends a session whose client may still be at work: nothing more is taken from it, and a new fence shuts it out
    /// at the replica groups (rule S3). -> [`Reply::Done`], `NotFound` if there is no such session
    EndSession { session: SessionId },
    /// Closes a session that has ended. Only when its fence is up at every replica group.
    CloseEnded { session: SessionId },
    /// Deletions go on that are held since these tables were loaded from a dump: see [`crate::namespace::is_held`].
    EndHold,
    /// A session may have leases from now on: see [`crate::namespace::leaseholders`]. -> [`Reply::Done`],
    /// `SessionExpired` if it is not live.
    HoldLeases { session: SessionId },
    /// Drops entries of the trash whose time is over at `now`, by the clock of the leader. -> [`Reply::Done`]
    ExpireTrash {
        entries: Vec<TrashKey>,
        now: Timestamp,
    },
}

/// One command of a Raft entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// A client's mutation.
    Mutate {
        /// Its session.
        session: SessionId,
        /// Its number within the session, from 1.
        sequence: u64,
        /// All sequences below were answered; their outcomes may go.
        acked_below: u64,
        /// Who asks.
        caller: Caller,
        /// What to do.
        mutation: Mutation,
    },
    /// A command without a session.
    Internal(Internal),
}

/// One Raft entry: commands with the time and the choices that their leader made for them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// The leader's wall clock. The state machine uses `max(previous, now)`.
    pub now: Timestamp,
    /// Replica groups for new chunks, best first; chunks are spread over them in turn. Empty: no
    /// space anywhere, allocation fails with `NoSpace`.
    pub groups: Vec<GroupId>,
    /// The commands, in order.
    pub commands: Vec<Command>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::de::DeserializeOwned;
    use std::fmt::Debug;

    /// The names of all variants, in their order: zeros are a value of every field.
    fn variants<T: DeserializeOwned + Debug>() -> Vec<String> {
        let decode = |variant: u8| {
            let mut bytes = [0; 64];
            bytes[0] = variant;
            let taken = postcard::take_from_bytes::<T>(&bytes);
            taken.ok().map(|(value, _)| value)
        };
        let snake = |value: T| {
            let shown = format!("{value:?}");
            let name: String = shown
                .chars()
                .take_while(char::is_ascii_alphanumeric)
                .collect();
            let mut snake = String::new();
            for (at, letter) in name.char_indices() {
                if letter.is_uppercase() && at > 0 {
                    snake.push('_');
                }
                snake.push(letter.to_ascii_lowercase());
            }
            snake
        };
        (0..=u8::MAX)
            .map_while(|at| decode(at).map(snake))
            .collect()
    }

    #[test]
    fn an_encoded_operation_begins_with_the_place_of_its_name() {
        assert_eq!(variants::<Query>(), Query::NAMES);
        assert_eq!(variants::<Mutation>(), Mutation::NAMES);
    }
}
