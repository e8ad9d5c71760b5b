//! `chmod`, `chown`, `utimensat`, `truncate`.

use super::{resize, xattr};
use crate::access::{self, WRITE};
use crate::attributes;
use crate::op::{Caller, Outcome, Reply, SetAttr, SetTime};
use crate::record::Inode;
use crate::transaction::Tx;
use lumeofs_base::{Code, FileKind, FsError, FsResult, InodeId};

pub(super) fn set_attr(tx: &mut Tx<'_>, caller: &Caller, ino: InodeId, set: &SetAttr) -> Outcome {
    let mut inode = tx.inode(ino)?;
    check_values(&inode, set)?;
    if !access::passes_all(caller) {
        check_access(caller, &inode, set)?;
    }
    if set.size.is_some_and(|size| size > inode.attr.size) {
        resize::check_gap(tx, &inode)?;
    }

    // Also if nothing else changes: a chown(2) that keeps both ids comes as that, and counts as a change in Linux.
    tx.note_change(&mut inode.attr);
    if set.size.is_some() || set.uid.is_some() || set.gid.is_some() {
        xattr::drop_capabilities(tx, &mut inode);
    }
    if let Some(size) = set.size {
        resize::resize(tx, &mut inode, size);
        // Root keeps the bits, as it has CAP_FSETID.
        if caller.uid != 0 {
            inode.attr.mode = attributes::without_suid(inode.attr.mode);
        }
    }
    attributes::set(&mut inode.attr, caller, set, tx.now());
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
    attributes::check_times(set)?;
    set.size.map_or(Ok(()), |size| resize::check(inode, size))
}

/// What a caller without privileges may do.
fn check_access(caller: &Caller, inode: &Inode, set: &SetAttr) -> FsResult<()> {
    let attr = &inode.attr;
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
    if set.mode.is_some() || set.clear_sgid {
        access::require_owner(caller, attr)?;
    }
    if set.size.is_some() {
        access::require(caller, inode, WRITE)?;
    }
    match (set.atime, set.mtime) {
        (None, None) => Ok(()),
        // Who may write may also touch; any other time is the owner's.
        (Some(SetTime::Now), Some(SetTime::Now)) if caller.uid != attr.uid => {
            access::require(caller, inode, WRITE)
        }
        _ => access::require_owner(caller, attr),
    }
}
