//! `chmod`, `chown`, `utimensat`, `truncate`.

use super::{resize, xattr};
use crate::access::{self, SGID, WRITE};
use crate::op::{Caller, Outcome, Reply, SetAttr, SetTime};
use crate::record::Inode;
use crate::transaction::Tx;
use lumeofs_base::{Attr, Code, FileKind, FsError, FsResult, InodeId, Timestamp};

pub(super) fn set_attr(tx: &mut Tx<'_>, caller: &Caller, ino: InodeId, set: &SetAttr) -> Outcome {
    let mut inode = tx.inode(ino)?;
    check_values(&inode, set)?;
    if !access::passes_all(caller) {
        check_access(caller, &inode.attr, set)?;
    }
    if set.size.is_some_and(|size| size > inode.attr.size) {
        resize::check_gap(tx, &inode)?;
    }

    // Also if nothing else changes: a chown(2) that keeps both ids comes as that, and counts as a change in Linux.
    inode.attr.ctime = tx.now();
    let old_mode = inode.attr.mode;
    if set.size.is_some() || set.uid.is_some() || set.gid.is_some() {
        xattr::drop_capabilities(tx, &mut inode);
    }
    if let Some(size) = set.size {
        resize::resize(tx, &mut inode, size);
        // Root keeps the bits, as it has CAP_FSETID.
        if caller.uid != 0 {
            inode.attr.mode = access::without_suid(inode.attr.mode);
        }
    }
    if set.uid.is_some() || set.gid.is_some() {
        inode.attr.uid = set.uid.unwrap_or(inode.attr.uid);
        inode.attr.gid = set.gid.unwrap_or(inode.attr.gid);
        if !inode.is_directory() {
            inode.attr.mode = access::without_suid(old_mode);
        }
    }
    if let Some(mode) = set.mode {
        inode.attr.mode = mode & 0o7777;
        if !access::passes_all(caller) && !access::in_group(caller, inode.attr.gid) {
            inode.attr.mode &= !SGID;
        }
    }
    let now = tx.now();
    let time = |time| match time {
        SetTime::Now => now,
        SetTime::At(time) => time,
    };
    inode.attr.atime = set.atime.map_or(inode.attr.atime, time);
    inode.attr.mtime = set.mtime.map_or(inode.attr.mtime, time);
    if let Some(ctime) = set.ctime
        && caller.trusted
    {
        inode.attr.ctime = ctime;
    }
    tx.save(&mut inode);
    Ok(Reply::Attr(inode.attr))
}

/// What holds for every caller.
fn check_values(inode: &Inode, set: &SetAttr) -> FsResult<()> {
    if set.mode.is_some() && inode.attr.kind == FileKind::Symlink {
        return Err(FsError::new(
            Code::Unsupported,
            format!("mode of symlink {}", inode.attr.ino),
        ));
    }
    let given = [set.atime, set.mtime]
        .into_iter()
        .flatten()
        .filter_map(|time| match time {
            SetTime::Now => None,
            SetTime::At(time) => Some(time),
        });
    given.chain(set.ctime).try_for_each(check_time)?;
    set.size.map_or(Ok(()), |size| resize::check(inode, size))
}

/// Whether a time stamp is one.
pub(super) fn check_time(time: Timestamp) -> FsResult<()> {
    if time.nanos < 1_000_000_000 {
        return Ok(());
    }
    Err(FsError::new(
        Code::Invalid,
        "a time stamp of 1e9 nanoseconds or more",
    ))
}

/// What a caller without privileges may do.
fn check_access(caller: &Caller, attr: &Attr, set: &SetAttr) -> FsResult<()> {
    if set
        .uid
        .is_some_and(|uid| caller.uid != attr.uid || uid != attr.uid)
    {
        return Err(access::not_permitted(
            caller,
            format!("may not give {} away", attr.ino),
        ));
    }
    if let Some(gid) = set.gid {
        access::require_owner(caller, attr)?;
        if gid != attr.gid && !access::in_group(caller, gid) {
            return Err(access::not_permitted(
                caller,
                format!("is not in group {gid}"),
            ));
        }
    }
    if set.mode.is_some() {
        access::require_owner(caller, attr)?;
    }
    if set.size.is_some() {
        access::require(caller, attr, WRITE)?;
    }
    match (set.atime, set.mtime) {
        (None, None) => Ok(()),
        // Who may write may also touch; any other time is the owner's.
        (Some(SetTime::Now), Some(SetTime::Now)) if caller.uid != attr.uid => {
            access::require(caller, attr, WRITE)
        }
        _ => access::require_owner(caller, attr),
    }
}
