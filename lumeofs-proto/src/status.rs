//! `Code` on the wire, both ways, and as gRPC status: the only place that maps them.

use crate::hello::Failure;
use lumeofs_base::{Code, FsError, NodeId};

/// Longest explanation that is sent.
const CONTEXT_BYTES_MAX: usize = 4096;

/// The failure message of an error.
pub fn to_failure(error: &FsError) -> Failure {
    let leader = match error.code {
        Code::NotLeader(Some(leader)) => leader.get(),
        _ => 0,
    };
    Failure {
        code: to_wire(error.code),
        context: shortened(&error.context).to_owned(),
        leader,
    }
}

/// What names a peer's input may be as long as the input.
fn shortened(context: &str) -> &str {
    &context[..context.floor_char_boundary(CONTEXT_BYTES_MAX)]
}

/// The error of a failure message. An unknown number, from a newer peer, is `Io`.
pub fn from_failure(failure: &Failure) -> FsError {
    FsError::new(
        from_wire(failure.code, failure.leader),
        failure.context.clone(),
    )
}

/// The error as gRPC status.
pub fn to_grpc(error: &FsError) -> tonic::Status {
    use tonic::Code as Grpc;
    let code = match error.code {
        Code::NotFound | Code::NoData | Code::NoSuchOffset => Grpc::NotFound,
        Code::Exists => Grpc::AlreadyExists,
        Code::Access | Code::NotPermitted => Grpc::PermissionDenied,
        Code::Invalid
        | Code::NameTooLong
        | Code::FileTooBig
        | Code::Range
        | Code::TooBig
        | Code::NotDirectory
        | Code::IsDirectory => Grpc::InvalidArgument,
        Code::NotEmpty
        | Code::TooManyLinks
        | Code::ReadOnly
        | Code::Stale
        | Code::CrossDevice
        | Code::Busy
        | Code::SessionExpired
        | Code::LostTail => Grpc::FailedPrecondition,
        Code::NoSpace | Code::Quota | Code::TooManyOpen | Code::NoLocks => Grpc::ResourceExhausted,
        Code::Unsupported => Grpc::Unimplemented,
        Code::Interrupted => Grpc::Cancelled,
        Code::Again | Code::NotLeader(_) | Code::Unavailable => Grpc::Unavailable,
        Code::StaleEpoch | Code::WrongGroup | Code::StaleWrite | Code::Deadlock => Grpc::Aborted,
        Code::Timeout => Grpc::DeadlineExceeded,
        Code::Refused => Grpc::Unauthenticated,
        Code::Io => Grpc::Internal,
    };
    let text = match error.context.is_empty() {
        true => error.to_string(),
        false => error.context.clone(),
    };
    tonic::Status::new(code, text)
}

const fn to_wire(code: Code) -> u32 {
    match code {
        Code::NotFound => 1,
        Code::Exists => 2,
        Code::NotDirectory => 3,
        Code::IsDirectory => 4,
        Code::NotEmpty => 5,
        Code::Access => 6,
        Code::NotPermitted => 7,
        Code::Invalid => 8,
        Code::NameTooLong => 9,
        Code::FileTooBig => 10,
        Code::TooManyLinks => 11,
        Code::NoSpace => 12,
        Code::Quota => 13,
        Code::ReadOnly => 14,
        Code::NoData => 15,
        Code::Range => 16,
        Code::TooBig => 17,
        Code::Stale => 18,
        Code::CrossDevice => 19,
        Code::Unsupported => 20,
        Code::Interrupted => 21,
        Code::Again => 22,
        Code::NoSuchOffset => 23,
        Code::Busy => 24,
        Code::Io => 25,
        Code::TooManyOpen => 26,
        Code::Deadlock => 27,
        Code::NoLocks => 28,
        Code::NotLeader(_) => 40,
        Code::StaleEpoch => 41,
        Code::WrongGroup => 42,
        Code::StaleWrite => 43,
        Code::LostTail => 44,
        Code::SessionExpired => 45,
        Code::Timeout => 46,
        Code::Unavailable => 47,
        Code::Refused => 48,
    }
}

const fn from_wire(code: u32, leader: u64) -> Code {
    match code {
        1 => Code::NotFound,
        2 => Code::Exists,
        3 => Code::NotDirectory,
        4 => Code::IsDirectory,
        5 => Code::NotEmpty,
        6 => Code::Access,
        7 => Code::NotPermitted,
        8 => Code::Invalid,
        9 => Code::NameTooLong,
        10 => Code::FileTooBig,
        11 => Code::TooManyLinks,
        12 => Code::NoSpace,
        13 => Code::Quota,
        14 => Code::ReadOnly,
        15 => Code::NoData,
        16 => Code::Range,
        17 => Code::TooBig,
        18 => Code::Stale,
        19 => Code::CrossDevice,
        20 => Code::Unsupported,
        21 => Code::Interrupted,
        22 => Code::Again,
        23 => Code::NoSuchOffset,
        24 => Code::Busy,
        26 => Code::TooManyOpen,
        27 => Code::Deadlock,
        28 => Code::NoLocks,
        40 => Code::NotLeader(if leader == 0 {
            None
        } else {
            Some(NodeId(leader))
        }),
        41 => Code::StaleEpoch,
        42 => Code::WrongGroup,
        43 => Code::StaleWrite,
        44 => Code::LostTail,
        45 => Code::SessionExpired,
        46 => Code::Timeout,
        47 => Code::Unavailable,
        48 => Code::Refused,
        _ => Code::Io,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_codes_survive_the_wire_and_unknown_ones_are_io() {
        for number in (1..=28).chain(40..=48) {
            assert_eq!(to_wire(from_wire(number, 3)), number);
        }
        assert_eq!(from_wire(999, 0), Code::Io);
        assert_eq!(from_wire(40, 3), Code::NotLeader(Some(NodeId(3))));
    }
}
