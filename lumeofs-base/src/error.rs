//! The one error that crosses crate and machine boundaries.
//!
//! `Code` is closed: each boundary (errno, gRPC status, exit code) maps it in one exhaustive match.
//! Whether a retry can help, and where to go with it, is a property of the code.

use crate::NodeId;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Result with [`FsError`].
pub type FsResult<T> = Result<T, FsError>;

/// What went wrong, in POSIX's terms where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Code {
    /// ENOENT.
    NotFound,
    /// EEXIST.
    Exists,
    /// ENOTDIR.
    NotDirectory,
    /// EISDIR.
    IsDirectory,
    /// ENOTEMPTY.
    NotEmpty,
    /// EACCES.
    Access,
    /// EPERM.
    NotPermitted,
    /// EINVAL.
    Invalid,
    /// ENAMETOOLONG.
    NameTooLong,
    /// EFBIG.
    FileTooBig,
    /// EMLINK.
    TooManyLinks,
    /// ENOSPC.
    NoSpace,
    /// EDQUOT.
    Quota,
    /// EROFS.
    ReadOnly,
    /// ENODATA: no such extended attribute.
    NoData,
    /// ERANGE: the caller's buffer is too small.
    Range,
    /// E2BIG: an extended attribute over its limit.
    TooBig,
    /// ESTALE: the inode or handle is gone.
    Stale,
    /// EXDEV.
    CrossDevice,
    /// EOPNOTSUPP.
    Unsupported,
    /// EINTR.
    Interrupted,
    /// EAGAIN: refused for now without a wait (a full queue, a lock with LOCK_NB).
    Again,
    /// ENXIO: no data or hole past this offset.
    NoSuchOffset,
    /// EBUSY.
    Busy,
    /// EIO: a disk failed or data is damaged.
    Io,
    /// ENFILE: more open files than the cluster keeps account of.
    TooManyOpen,
    /// EDEADLK: waiting for this lock would never end.
    Deadlock,
    /// ENOLCK: more locks than the cluster keeps account of.
    NoLocks,
    /// The server is not the leader of this Raft group; the hint names the one it knows.
    NotLeader(Option<NodeId>),
    /// The request's epoch, primary or in-sync set is not the group's current one.
    StaleEpoch,
    /// The server does not host this group or slot.
    WrongGroup,
    /// A newer connection generation or truncation of the same writer exists; read again and retry.
    StaleWrite,
    /// The group lost operations that had been acknowledged in memory; send them again.
    LostTail,
    /// The session is unknown or was expired.
    SessionExpired,
    /// The deadline passed; the operation may or may not have happened.
    Timeout,
    /// The peer cannot be reached or has no quorum; the operation may or may not have happened.
    Unavailable,
    /// Wrong cluster secret, cluster id or wire version. Never retried.
    Refused,
}

/// What a caller may do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The answer is final.
    Never,
    /// The same request may be sent to this or another server.
    Elsewhere,
    /// The cluster map must be read again first.
    AfterRefresh,
}

impl Code {
    /// What a caller may do about it.
    pub const fn retry(self) -> Retry {
        match self {
            Code::NotLeader(_) | Code::Timeout | Code::Unavailable | Code::Again => {
                Retry::Elsewhere
            }
            Code::StaleEpoch | Code::WrongGroup => Retry::AfterRefresh,
            Code::NotFound
            | Code::Exists
            | Code::NotDirectory
            | Code::IsDirectory
            | Code::NotEmpty
            | Code::Access
            | Code::NotPermitted
            | Code::Invalid
            | Code::NameTooLong
            | Code::FileTooBig
            | Code::TooManyLinks
            | Code::NoSpace
            | Code::Quota
            | Code::ReadOnly
            | Code::NoData
            | Code::Range
            | Code::TooBig
            | Code::Stale
            | Code::CrossDevice
            | Code::Unsupported
            | Code::Interrupted
            | Code::NoSuchOffset
            | Code::Busy
            | Code::Io
            | Code::TooManyOpen
            | Code::Deadlock
            | Code::NoLocks
            | Code::StaleWrite
            | Code::LostTail
            | Code::SessionExpired
            | Code::Refused => Retry::Never,
        }
    }
}

/// An error with its code and what was being done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsError {
    /// What a program acts on.
    pub code: Code,
    /// What a person reads: the operation and the value that it failed on.
    pub context: String,
}

impl FsError {
    /// An error with context.
    pub fn new(code: Code, context: impl Into<String>) -> Self {
        Self {
            code,
            context: context.into(),
        }
    }

    /// Puts what was being done in front of the context.
    #[must_use]
    pub fn during(mut self, what: impl fmt::Display) -> Self {
        self.context = if self.context.is_empty() {
            what.to_string()
        } else {
            format!("{what}: {}", self.context)
        };
        self
    }

    /// A disk error: ENOSPC and EROFS keep their meaning, all else is EIO.
    pub fn from_disk(error: &std::io::Error, what: impl fmt::Display) -> Self {
        let (code, way_out) = match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                (Code::NoSpace, "")
            }
            std::io::ErrorKind::ReadOnlyFilesystem => (
                Code::ReadOnly,
                ": see in the kernel's log why, then remount it for writing",
            ),
            _ => (Code::Io, ""),
        };
        Self::new(code, format!("{what}: {error}{way_out}"))
    }

    /// A network error: the peer's answer, if there was one, is unknown.
    pub fn from_net(error: &std::io::Error, what: impl fmt::Display) -> Self {
        let code = match error.kind() {
            std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock => Code::Timeout,
            _ => Code::Unavailable,
        };
        Self::new(code, format!("{what}: {error}"))
    }
}

impl From<Code> for FsError {
    fn from(code: Code) -> Self {
        Self {
            code,
            context: String::new(),
        }
    }
}

impl fmt::Display for FsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.context.is_empty() {
            write!(f, "{:?}", self.code)
        } else {
            write!(f, "{} ({:?})", self.context, self.code)
        }
    }
}
impl std::error::Error for FsError {}
