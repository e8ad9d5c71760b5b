//! What a create makes of attributes: the same for the state machine and for a mount that makes something in its memory first.

pub use crate::directory::check_name;
use crate::op::{CreateMode, NewNode};
use lumeofs_base::{Attr, FileKind, InodeId, Timestamp};

impl NewNode {
    /// The kind of what is made.
    pub fn kind(&self) -> FileKind {
        match self {
            Self::Regular => FileKind::Regular,
            Self::Directory => FileKind::Directory,
            Self::Symlink(_) => FileKind::Symlink,
            Self::Special(kind, _) => *kind,
        }
    }
}

/// Attributes of a new inode with one name, that belongs to `uid` and `gid`; of its permissions nothing is taken away.
pub fn attr(
    ino: InodeId,
    node: &NewNode,
    mode: u16,
    (uid, gid): (u32, u32),
    time: Timestamp,
) -> Attr {
    let kind = node.kind();
    let size = match node {
        NewNode::Symlink(target) => target.len() as u64,
        _ => 0,
    };
    let rdev = match node {
        NewNode::Special(FileKind::CharDevice | FileKind::BlockDevice, rdev) => *rdev,
        _ => 0,
    };
    Attr {
        ino,
        kind,
        mode: match kind {
            FileKind::Symlink => 0o777,
            FileKind::Directory => mode & 0o1777,
            _ => mode & 0o7777,
        },
        uid,
        gid,
        nlink: if kind == FileKind::Directory { 2 } else { 1 },
        rdev,
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

/// Takes away what the umask does not give. Symlinks have no permissions.
pub fn mask(attr: &mut Attr, mode: CreateMode) {
    if attr.kind != FileKind::Symlink {
        attr.mode &= !(mode.umask & 0o777);
    }
}

/// Enters in a directory that something of this kind was made in it.
pub fn enter(dir: &mut Attr, kind: FileKind, time: Timestamp) {
    dir.nlink += u32::from(kind == FileKind::Directory);
    dir.size += 1;
    dir.mtime = time;
    dir.ctime = dir.ctime.max(time);
}
