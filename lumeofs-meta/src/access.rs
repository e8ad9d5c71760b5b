//! Permissions of callers that the kernel did not check (K6): mode bits, ACLs, ownership, sticky.

use crate::acl::Which;
use crate::op::Caller;
use crate::record::Inode;
use lumeofs_base::{Attr, Code, FsError, FsResult};

/// Permission to read.
pub(crate) const READ: u16 = 4;
/// Permission to write.
pub(crate) const WRITE: u16 = 2;
/// Permission to search a directory.
pub(crate) const SEARCH: u16 = 1;

/// Set-user-id bit.
pub(crate) const SUID: u16 = 0o4000;
/// Set-group-id bit.
pub(crate) const SGID: u16 = 0o2000;
/// Sticky bit.
pub(crate) const STICKY: u16 = 0o1000;
/// Permissions of the group, or the mask of an ACL.
const GROUP_CLASS: u16 = 0o070;
/// Execute permission of the group: with it, [`SGID`] means set-group-id.
pub(crate) const GROUP_EXEC: u16 = 0o010;

/// Whether nothing needs to be checked for this caller.
pub(crate) fn passes_all(caller: &Caller) -> bool {
    caller.trusted || caller.uid == 0
}

/// Whether the caller belongs to a group.
pub(crate) fn in_group(caller: &Caller, gid: u32) -> bool {
    caller.gid == gid || caller.groups.contains(&gid)
}

/// Whether mode bits and ACL give the caller all of `want`.
fn allows(caller: &Caller, inode: &Inode, want: u16) -> bool {
    let attr = &inode.attr;
    let shift = match inode.acls.get(Which::Access) {
        _ if caller.uid == attr.uid => 6,
        // As in Linux, which looks at no ACL that gives its group class nothing.
        Some(acl) if attr.mode & GROUP_CLASS != 0 => return acl.allows(caller, attr.gid, want),
        _ if in_group(caller, attr.gid) => 3,
        _ => 0,
    };
    (attr.mode >> shift) & want == want
}

/// Fails with `Access` unless mode bits and ACL give the caller all of `want`.
pub(crate) fn require(caller: &Caller, inode: &Inode, want: u16) -> FsResult<()> {
    if passes_all(caller) || allows(caller, inode, want) {
        return Ok(());
    }
    let attr = &inode.attr;
    Err(FsError::new(
        Code::Access,
        format!(
            "uid {} wants {want:o} of {} with mode {:o}",
            caller.uid, attr.ino, attr.mode
        ),
    ))
}

/// Fails with `Access` unless the caller may change the file's contents. Its owner may at any time:
/// the file may have been opened before its mode forbade it.
pub(crate) fn require_write_of_open(caller: &Caller, inode: &Inode) -> FsResult<()> {
    if caller.uid == inode.attr.uid {
        Ok(())
    } else {
        require(caller, inode, WRITE)
    }
}

/// Fails with `NotPermitted` unless the caller owns the object.
pub(crate) fn require_owner(caller: &Caller, attr: &Attr) -> FsResult<()> {
    if passes_all(caller) || caller.uid == attr.uid {
        return Ok(());
    }
    Err(not_permitted(
        caller,
        format!("{} belongs to uid {}", attr.ino, attr.uid),
    ))
}

/// Fails unless the caller may remove `object` from `dir`.
pub(crate) fn require_removal(caller: &Caller, dir: &Inode, object: &Attr) -> FsResult<()> {
    require(caller, dir, WRITE | SEARCH)?;
    let dir = &dir.attr;
    let sticky = dir.mode & STICKY != 0;
    if !sticky || passes_all(caller) || caller.uid == object.uid || caller.uid == dir.uid {
        return Ok(());
    }
    Err(not_permitted(
        caller,
        format!("{} is in the sticky directory {}", object.ino, dir.ino),
    ))
}

/// `NotPermitted` for this caller.
pub(crate) fn not_permitted(caller: &Caller, why: impl std::fmt::Display) -> FsError {
    FsError::new(Code::NotPermitted, format!("uid {}: {why}", caller.uid))
}
