//! What tests of this module share.

use lumeofs_base::{Attr, FileKind, InodeId, Timestamp};

/// Numbers from a seed (xorshift, Marsaglia 2003).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// A file of this size.
pub(crate) fn attr(size: u64) -> Attr {
    let time = Timestamp { secs: 10, nanos: 0 };
    Attr {
        ino: InodeId(5),
        kind: FileKind::Regular,
        mode: 0o644,
        uid: 0,
        gid: 0,
        nlink: 1,
        rdev: 0,
        size,
        allocated: 0,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
        truncations: 0,
        tail_unclean: false,
        has_xattrs: false,
    }
}
