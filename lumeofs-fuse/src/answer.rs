//! What a success carries, for each kind of reply.

use crate::core::{Listing, ReadBuffer, XattrAnswer};
use crate::dispatch::Answer;
use crate::kernel::{
    LockRange, ReplyAttr, ReplyCopied, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyLock, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
};
use fuser::{Errno, FileAttr, FileHandle, FopenFlags, Generation, INodeNo};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

/// How long the kernel may use an entry or attributes without asking: never.
const TTL: Duration = Duration::ZERO;
/// Inode ids are never reused, so every inode has the same generation.
const GENERATION: Generation = Generation(0);
/// How files are opened: no page cache for read and write, and writers of one file side by side.
const OPEN: FopenFlags =
    FopenFlags::FOPEN_DIRECT_IO.union(FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES);

/// What `statfs(2)` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StatFs {
    /// In units of `block_size`.
    pub(crate) blocks: u64,
    pub(crate) blocks_free: u64,
    pub(crate) files: u64,
    pub(crate) files_free: u64,
    pub(crate) block_size: u32,
    pub(crate) name_len_max: u32,
}

/// Implements [`Answer`] but for `value`, which is the body given.
macro_rules! answers {
    ($($reply:ident($self:ident, $value:ident: $kind:ty) $body:block)*) => {$(
        impl Answer for $reply {
            type Value = $kind;
            fn value($self, $value: $kind) $body
            fn error(self, errno: Errno) {
                $reply::error(self, errno);
            }
        }
    )*};
}

answers! {
    ReplyEmpty(self, value: ()) {
        let () = value;
        self.ok();
    }
    ReplyEntry(self, value: FileAttr) {
        self.entry(&TTL, &value, GENERATION);
    }
    ReplyAttr(self, value: FileAttr) {
        self.attr(&TTL, &value);
    }
    ReplyData(self, value: ReadBuffer) {
        self.data(value.bytes());
    }
    ReplyCreate(self, value: (FileAttr, u64)) {
        let (attr, handle) = value;
        self.created(&TTL, &attr, GENERATION, FileHandle(handle), OPEN);
    }
    ReplyLock(self, value: LockRange) {
        self.locked(value.first, value.last, value.kind, value.pid);
    }
    ReplyWrite(self, value: u32) {
        self.written(value);
    }
    ReplyCopied(self, value: u64) {
        self.copied(value);
    }
    ReplyLseek(self, value: i64) {
        self.offset(value);
    }
    ReplyStatfs(self, value: StatFs) {
        self.statfs(
            value.blocks,
            value.blocks_free,
            value.blocks_free,
            value.files,
            value.files_free,
            value.block_size,
            value.name_len_max,
            value.block_size,
        );
    }
    ReplyXattr(self, value: XattrAnswer) {
        match value {
            XattrAnswer::Size(size) => self.size(size),
            XattrAnswer::Data(data) => self.data(&data),
        }
    }
    ReplyOpen(self, value: Opened) {
        match value {
            // Closes are to be told of any file: they end locks.
            Opened::File(handle) => self.opened(FileHandle(handle), OPEN),
            Opened::Directory(handle) => self.opened(FileHandle(handle), FopenFlags::empty()),
        }
    }
}

/// What was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opened {
    /// A file with its handle, which only locks need: the client counts opens per inode.
    File(u64),
    /// A directory with its handle.
    Directory(u64),
}

impl Answer for ReplyDirectory {
    type Value = Listing;

    /// Sends as many entries as fit; the kernel asks for the rest by the last cookie that it saw.
    fn value(mut self, value: Listing) {
        for entry in value.entries() {
            let name = OsStr::from_bytes(entry.name);
            if self.add(INodeNo(entry.ino), entry.cookie, entry.kind, name) {
                break;
            }
        }
        self.ok();
    }
    fn error(self, errno: Errno) {
        ReplyDirectory::error(self, errno);
    }
}
