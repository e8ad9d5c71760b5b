//! Exit codes: the only place where an error becomes one. They are part of the interface.

use lumeofs_base::{Code, FsError};
use std::process::ExitCode;

/// The exit code of an error: that of the `FsError` within it, else 1.
pub(crate) fn code_of(error: &anyhow::Error) -> ExitCode {
    let code = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<FsError>())
        .map(|error| error.code);
    ExitCode::from(code.map_or(1, number))
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
        | Code::StaleWrite
        | Code::LostTail
        | Code::SessionExpired => 1,
    }
}
