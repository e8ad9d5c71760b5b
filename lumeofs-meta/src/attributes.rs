//! How attributes follow from those before: alike for the metadata group and for a mount that shows what it has not
//! published yet.

use crate::access::{self, GROUP_EXEC, SGID, SUID};
use crate::op::{Caller, SetAttr, SetTime};
use lumeofs_base::{Attr, Code, FileKind, FsError, FsResult, Timestamp};

/// The mode after a change of contents or owner: without suid, and without sgid where that means
/// set-group-id.
pub fn without_suid(mode: u16) -> u16 {
    let mode = mode & !SUID;
    if mode & GROUP_EXEC != 0 {
        mode & !SGID
    } else {
        mode
    }
}

/// Sets all but size and ctime. What the caller may do was checked.
pub fn set(attr: &mut Attr, caller: &Caller, set: &SetAttr, now: Timestamp) {
    if set.uid.is_some() || set.gid.is_some() {
        attr.uid = set.uid.unwrap_or(attr.uid);
        attr.gid = set.gid.unwrap_or(attr.gid);
        if attr.kind != FileKind::Directory {
            attr.mode = without_suid(attr.mode);
        }
    }
    if let Some(mode) = set.mode {
        attr.mode = mode & 0o7777;
        if !access::passes_all(caller) && !access::in_group(caller, attr.gid) {
            attr.mode &= !SGID;
        }
    }
    if set.clear_sgid {
        attr.mode &= !(SUID | SGID);
    }
    let time = |time| match time {
        SetTime::Now => now,
        SetTime::At(time) => time,
    };
    attr.atime = set.atime.map_or(attr.atime, time);
    attr.mtime = set.mtime.map_or(attr.mtime, time);
}

/// Whether all given times are time stamps.
///
/// # Errors
/// `Invalid`: one has 1e9 nanoseconds or more.
pub fn check_times(set: &SetAttr) -> FsResult<()> {
    let given = [set.atime, set.mtime].into_iter().flatten();
    let given = given.filter_map(|time| match time {
        SetTime::Now => None,
        SetTime::At(time) => Some(time),
    });
    given.chain(set.ctime).try_for_each(check_time)
}

/// Whether a time stamp is one.
///
/// # Errors
/// `Invalid`: it has 1e9 nanoseconds or more.
pub fn check_time(time: Timestamp) -> FsResult<()> {
    if time.nanos < 1_000_000_000 {
        return Ok(());
    }
    Err(FsError::new(
        Code::Invalid,
        "a time stamp of 1e9 nanoseconds or more",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suid_goes_and_sgid_only_with_group_execution() {
        assert_eq!(without_suid(0o6755), 0o755);
        assert_eq!(without_suid(0o6745), 0o2745);
    }
}
