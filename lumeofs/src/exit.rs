//! Exit codes: the only place where an error becomes one. They are part of the interface.

use lumeofs_base::{Code, FsError};
use lumeofs_fuse::OptionError;
use std::io::{self, ErrorKind};
use std::process::ExitCode;

/// The cluster answers, and something is wrong with it. What it is has been shown.
#[derive(Debug)]
pub(crate) struct Unhealthy(pub(crate) String);

impl std::fmt::Display for Unhealthy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unhealthy {}

/// A process of ours has ended with this code, and has said why.
#[derive(Debug)]
pub(crate) struct Told(pub(crate) u8);

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ended with code {}", self.0)
    }
}

impl std::error::Error for Told {}

/// Whether the user knows of an error already.
pub(crate) fn is_told(error: &anyhow::Error) -> bool {
    error.is::<Told>()
}

/// The exit code of an error where mount(8) called: 1 for a wrong call, 32 for a mount that failed.
pub(crate) fn mount_code_of(error: &anyhow::Error) -> ExitCode {
    let is_usage = |cause: &(dyn std::error::Error + 'static)| {
        let invalid = |error: &FsError| error.code == Code::Invalid;
        cause.is::<OptionError>() || cause.downcast_ref().is_some_and(invalid)
    };
    ExitCode::from(if error.chain().any(is_usage) { 1 } else { 32 })
}

/// The exit code of an error: that of the cluster's or the machine's error within it, else 1.
pub(crate) fn code_of(error: &anyhow::Error) -> ExitCode {
    let numbers = error.chain().find_map(|cause| {
        let of_cluster = cause
            .downcast_ref()
            .map(|error: &FsError| number(error.code));
        of_cluster
            .or_else(|| {
                cause
                    .downcast_ref()
                    .map(|error: &io::Error| local(error.kind()))
            })
            .or_else(|| cause.downcast_ref().map(|_: &Unhealthy| 9))
            .or_else(|| cause.downcast_ref().map(|told: &Told| told.0))
    });
    ExitCode::from(numbers.unwrap_or(1))
}

/// The same of a local file's error.
const fn local(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::NotFound => 3,
        ErrorKind::AlreadyExists => 4,
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => 5,
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => 6,
        _ => 1,
    }
}

const fn number(code: Code) -> u8 {
    match code {
        Code::NotFound | Code::NoData | Code::NoSuchOffset => 3,
        Code::Exists => 4,
        Code::Access | Code::NotPermitted | Code::ReadOnly => 5,
        Code::NoSpace | Code::Quota => 6,
        Code::NotLeader(_)
        | Code::StaleEpoch
        | Code::WrongGroup
        | Code::Timeout
        | Code::Unavailable
        | Code::Again => 7,
        Code::Refused => 8,
        Code::Invalid
        | Code::NameTooLong
        | Code::FileTooBig
        | Code::TooManyLinks
        | Code::NotDirectory
        | Code::IsDirectory
        | Code::NotEmpty
        | Code::Range
        | Code::TooBig
        | Code::Stale
        | Code::CrossDevice
        | Code::Unsupported
        | Code::Interrupted
        | Code::Busy
        | Code::Io
        | Code::TooManyOpen
        | Code::Deadlock
        | Code::NoLocks
        | Code::StaleWrite
        | Code::LostTail
        | Code::SessionExpired => 1,
    }
}
