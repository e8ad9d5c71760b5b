//! What an inode says of itself: kind, attributes, time stamps.

use crate::InodeId;
use serde::{Deserialize, Serialize};

/// Kind of a filesystem object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A FIFO.
    Fifo,
    /// A Unix socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

/// Wall-clock time. `nanos` is below 1 000 000 000, also before 1970.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Timestamp {
    /// Seconds since 1970-01-01 UTC.
    pub secs: i64,
    /// Nanoseconds within the second.
    pub nanos: u32,
}

/// Attributes of an inode, as `stat(2)` knows them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attr {
    /// The inode.
    pub ino: InodeId,
    /// Its kind.
    pub kind: FileKind,
    /// Permission bits with suid, sgid and sticky: the low 12 bits of `st_mode`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of names (for a directory: 2 + subdirectories).
    pub nlink: u32,
    /// Device number of a device node, else 0.
    pub rdev: u32,
    /// Size in bytes. Of a symlink: length of its target. Of a directory: number of entries.
    pub size: u64,
    /// Bytes that the allocated chunks of a regular file cover at most; `st_blocks` comes from it.
    pub allocated: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of contents.
    pub mtime: Timestamp,
    /// Last change of contents or attributes.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
    /// Truncation number: how often the file shrank. Data writes carry it, so that a write that was
    /// planned before a truncate cannot leave bytes behind it.
    pub truncations: u32,
    /// Bytes past `size` may exist in the last chunk; they must be cut off there before the file
    /// grows again.
    pub tail_unclean: bool,
    /// There are extended attributes, POSIX ACLs among them.
    pub has_xattrs: bool,
}
