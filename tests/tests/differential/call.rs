//! What a program can ask of a filesystem, as data: the same call can be made on two of them.

use rustix::fs::{FallocateFlags, FileType, OFlags, RenameFlags, XattrFlags};

/// A path relative to the root of the tree. `%` stands for a name of 255 bytes, `^` for one of 256.
pub(crate) type Name = String;

/// A time to set with `utimensat`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Time {
    Now,
    Omit,
    At(i64, i64),
}

/// Where an offset counts from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Whence {
    Start,
    Here,
    End,
    Data,
    Hole,
}

/// What is made with `mknod`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Node {
    Regular,
    Fifo,
    Socket,
    /// `/dev/null`.
    Device,
}

impl Node {
    /// As the call wants it.
    pub(crate) fn kind(self) -> (FileType, u64) {
        match self {
            Self::Regular => (FileType::RegularFile, 0),
            Self::Fifo => (FileType::Fifo, 0),
            Self::Socket => (FileType::Socket, 0),
            Self::Device => (FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
        }
    }
}

/// What a call is about: a path, or what is open in a slot.
#[derive(Clone, Debug)]
pub(crate) enum Of {
    /// Through symbolic links.
    Path(Name),
    /// The link itself.
    Link(Name),
    Slot(u8),
}

/// One system call.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    /// Keeps a file or a directory in the slot, in place of what was open there; that stays if this fails.
    Open {
        slot: u8,
        path: Name,
        flags: OFlags,
        mode: u32,
    },
    Close(u8),
    Read {
        slot: u8,
        length: usize,
    },
    ReadAt {
        slot: u8,
        offset: u64,
        length: usize,
    },
    Write {
        slot: u8,
        length: usize,
        seed: u64,
    },
    WriteAt {
        slot: u8,
        offset: u64,
        length: usize,
        seed: u64,
    },
    /// `writev`.
    WriteMany {
        slot: u8,
        lengths: [usize; 3],
        seed: u64,
    },
    Seek {
        slot: u8,
        whence: Whence,
        offset: i64,
    },
    /// `O_APPEND` by `fcntl`.
    SetAppend {
        slot: u8,
        on: bool,
    },
    Sync {
        slot: u8,
        data_only: bool,
    },
    Allocate {
        slot: u8,
        how: FallocateFlags,
        offset: u64,
        length: u64,
    },
    /// `copy_file_range` until it copies no more.
    Copy {
        from: u8,
        to: u8,
        from_offset: u64,
        to_offset: u64,
        length: usize,
    },
    /// A store through a shared mapping, with `msync`.
    Store {
        slot: u8,
        offset: u64,
        length: usize,
        seed: u64,
    },
    /// `truncate` or `ftruncate`.
    Truncate {
        of: Of,
        length: i64,
    },
    Mkdir {
        path: Name,
        mode: u32,
    },
    Mknod {
        path: Name,
        node: Node,
        mode: u32,
    },
    Symlink {
        path: Name,
        target: Name,
    },
    Readlink(Name),
    Link {
        from: Name,
        to: Name,
        follow: bool,
    },
    /// By its place in `/proc`.
    LinkHeld {
        slot: u8,
        to: Name,
    },
    Unlink(Name),
    Rmdir(Name),
    Rename {
        from: Name,
        to: Name,
        flags: RenameFlags,
    },
    Chmod {
        of: Of,
        mode: u32,
    },
    Chown {
        of: Of,
        uid: Option<u32>,
        gid: Option<u32>,
    },
    Utimes {
        of: Of,
        atime: Time,
        mtime: Time,
    },
    /// `access`: what for, in bits.
    Access {
        path: Name,
        bits: u32,
    },
    Stat(Of),
    SetXattr {
        of: Of,
        name: &'static str,
        length: usize,
        seed: u64,
        flags: XattrFlags,
    },
    Xattr {
        of: Of,
        name: &'static str,
        room: usize,
    },
    Xattrs {
        of: Of,
        room: usize,
    },
    RemoveXattr {
        of: Of,
        name: &'static str,
    },
    /// Names in a directory through a new open.
    List(Name),
    /// Names in an open directory, from its start.
    ListHeld(u8),
}

/// Who calls: root, two ordinary users. The second is in the group of the first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum User {
    Root,
    One,
    Other,
}

impl User {
    /// Its number, which is also that of its group, and the other groups that it is in.
    pub(crate) fn ids(self) -> (u32, &'static [u32]) {
        match self {
            Self::Root => (0, &[]),
            Self::One => (ONE, &[]),
            Self::Other => (OTHER, &[ONE]),
        }
    }
}

/// Users.
pub(crate) const ONE: u32 = 4001;
pub(crate) const OTHER: u32 = 4002;

/// A call by somebody through one of the mounts, and what is looked at then.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    /// Its place in the sequence that was drawn.
    pub(crate) number: usize,
    pub(crate) mount: usize,
    pub(crate) user: User,
    pub(crate) umask: u32,
    pub(crate) call: Call,
    /// The mount through which the whole tree is compared after the call.
    pub(crate) look: Option<usize>,
}
