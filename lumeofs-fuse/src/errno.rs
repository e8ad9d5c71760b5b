//! The one place where an error of the cluster becomes an errno of the kernel.
//!
//! ENOSYS must never come out of here: the kernel takes it as "this filesystem does not have the
//! operation" and never asks again, for the whole mount.

use fuser::Errno;
use lumeofs_base::Code;

/// The errno that a program sees for `code`.
pub(crate) fn errno(code: Code) -> Errno {
    Errno::from_i32(match code {
        Code::NotFound => libc::ENOENT,
        Code::Exists => libc::EEXIST,
        Code::NotDirectory => libc::ENOTDIR,
        Code::IsDirectory => libc::EISDIR,
        Code::NotEmpty => libc::ENOTEMPTY,
        Code::Access => libc::EACCES,
        Code::NotPermitted => libc::EPERM,
        Code::Invalid => libc::EINVAL,
        Code::NameTooLong => libc::ENAMETOOLONG,
        Code::FileTooBig => libc::EFBIG,
        Code::TooManyLinks => libc::EMLINK,
        Code::NoSpace => libc::ENOSPC,
        Code::Quota => libc::EDQUOT,
        Code::ReadOnly => libc::EROFS,
        Code::NoData => libc::ENODATA,
        Code::Range => libc::ERANGE,
        Code::TooBig => libc::E2BIG,
        Code::Stale => libc::ESTALE,
        Code::CrossDevice => libc::EXDEV,
        Code::Unsupported => libc::EOPNOTSUPP,
        Code::Interrupted => libc::EINTR,
        Code::Again => libc::EAGAIN,
        Code::NoSuchOffset => libc::ENXIO,
        Code::Busy => libc::EBUSY,
        Code::Io => libc::EIO,
        Code::TooManyOpen => libc::ENFILE,
        Code::Deadlock => libc::EDEADLK,
        Code::NoLocks => libc::ENOLCK,
        // The client retries these itself; one that comes through means that it gave up (`on-outage=eio`, or
        // the end of `block:SECONDS`), and POSIX has no better word for a filesystem that does not answer.
        Code::NotLeader(_)
        | Code::StaleEpoch
        | Code::WrongGroup
        | Code::StaleWrite
        | Code::LostTail
        | Code::SessionExpired
        | Code::Timeout
        | Code::Unavailable
        | Code::Refused => libc::EIO,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_that_posix_knows_keep_their_name() {
        for (code, want) in [
            (Code::NotFound, libc::ENOENT),
            (Code::NotEmpty, libc::ENOTEMPTY),
            (Code::NoData, libc::ENODATA),
            (Code::Unsupported, libc::EOPNOTSUPP),
            (Code::NoSuchOffset, libc::ENXIO),
            (Code::Interrupted, libc::EINTR),
        ] {
            assert_eq!(errno(code).code(), want, "{code:?}");
        }
    }

    #[test]
    fn a_cluster_that_does_not_answer_is_an_io_error_and_never_enosys() {
        for code in [
            Code::Timeout,
            Code::Unavailable,
            Code::NotLeader(None),
            Code::LostTail,
        ] {
            assert_eq!(errno(code).code(), libc::EIO, "{code:?}");
        }
    }
}
