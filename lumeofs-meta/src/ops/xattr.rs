//! Extended attributes.
//!
//! Names are opaque to a mount's callers, since the kernel has judged them; others get the kernel's
//! rules for each prefix. ACLs are set and shown under names of their own.

use crate::access::{self, READ, SGID, STICKY, WRITE};
use crate::acl::{Acl, Which};
use crate::keys;
use crate::op::{Caller, Outcome, Reply, XattrMode};
use crate::record::Inode;
use crate::transaction::Tx;
use lumeofs_base::limits::{XATTR_LIST_BYTES_MAX, XATTR_NAME_LEN_BYTES_MAX, XATTR_VALUE_BYTES_MAX};
use lumeofs_base::{Code, FileKind, FsError, FsResult, InodeId};

/// What gives a program capabilities when it is run: capabilities(7).
const CAPABILITIES: &[u8] = b"security.capability";

pub(super) fn set(
    tx: &mut Tx<'_>,
    caller: &Caller,
    ino: InodeId,
    name: &[u8],
    value: &[u8],
    mode: XattrMode,
) -> Outcome {
    check_name(name)?;
    if value.len() > XATTR_VALUE_BYTES_MAX {
        return Err(error(Code::TooBig, name));
    }
    if let Some(which) = Which::of(name) {
        // Whether there is one already does not count, in Linux either.
        return set_acl(tx, caller, ino, which, Acl::parse(value)?);
    }
    let mut inode = tx.inode(ino)?;
    check_change(caller, &inode, name)?;
    let key = keys::xattr(ino, name);
    let exists = tx.tables.get(&key).is_some();
    match (mode, exists) {
        (XattrMode::Create, true) => return Err(error(Code::Exists, name)),
        (XattrMode::Replace, false) => return Err(error(Code::NoData, name)),
        _ => {}
    }
    if !exists {
        inode.xattr_list_bytes += name.len() as u32 + 1;
        check_list(&inode, name)?;
    }
    tx.put_xattr(ino, name, value);
    tx.note_change(&mut inode.attr);
    tx.save(&mut inode);
    Ok(Reply::Done)
}

/// Sets or removes an ACL. One that is not there is removed with success.
fn set_acl(
    tx: &mut Tx<'_>,
    caller: &Caller,
    ino: InodeId,
    which: Which,
    acl: Option<Acl>,
) -> Outcome {
    let before = tx.inode(ino)?;
    match (which, before.attr.kind) {
        (_, FileKind::Symlink) => return Err(error(Code::Unsupported, which.name())),
        (Which::Access, _) | (Which::Default, FileKind::Directory) => {}
        (Which::Default, _) if acl.is_none() => return Ok(Reply::Done),
        (Which::Default, _) => return Err(error(Code::Access, which.name())),
    }
    access::require_owner(caller, &before.attr)?;
    let mut inode = before.clone();
    if let Some(acl) = &acl {
        acl.check()?;
        if which == Which::Access {
            inode.attr.mode = inode.attr.mode & !0o777 | acl.mode();
            // The kernel leaves this to whom it asks, so it is decided here for a mount's callers too.
            if caller.uid != 0 && !access::in_group(caller, inode.attr.gid) {
                inode.attr.mode &= !SGID;
            }
        }
    }
    inode.acls.set(which, acl);
    check_list(&inode, which.name())?;
    if inode != before {
        if inode.acls != before.acls {
            tx.note_xattrs(ino);
        }
        tx.note_change(&mut inode.attr);
        tx.save(&mut inode);
    }
    Ok(Reply::Done)
}

/// Whether all names fit into what listxattr(2) can return.
fn check_list(inode: &Inode, name: &[u8]) -> FsResult<()> {
    if inode.all_xattr_list_bytes() > XATTR_LIST_BYTES_MAX {
        return Err(error(Code::NoSpace, name));
    }
    Ok(())
}

pub(super) fn remove(tx: &mut Tx<'_>, caller: &Caller, ino: InodeId, name: &[u8]) -> Outcome {
    check_name(name)?;
    if let Some(which) = Which::of(name) {
        return set_acl(tx, caller, ino, which, None);
    }
    let mut inode = tx.inode(ino)?;
    check_change(caller, &inode, name)?;
    let key = keys::xattr(ino, name);
    if tx.tables.get(&key).is_none() {
        return Err(error(Code::NoData, name));
    }
    tx.remove_xattr(ino, name);
    inode.xattr_list_bytes -= name.len() as u32 + 1;
    tx.note_change(&mut inode.attr);
    tx.save(&mut inode);
    Ok(Reply::Done)
}

/// Takes away the capabilities that a program would have got: its contents or owner change. The caller saves the
/// inode.
pub(super) fn drop_capabilities(tx: &mut Tx<'_>, inode: &mut Inode) {
    if inode.xattr_list_bytes == 0 {
        return;
    }
    let key = keys::xattr(inode.attr.ino, CAPABILITIES);
    if tx.tables.get(&key).is_some() {
        tx.remove_xattr(inode.attr.ino, CAPABILITIES);
        inode.xattr_list_bytes -= CAPABILITIES.len() as u32 + 1;
    }
}

/// Whether the caller may read an attribute, or else why not.
pub(crate) fn visible(caller: &Caller, inode: &Inode, name: &[u8]) -> FsResult<()> {
    if access::passes_all(caller) {
        return Ok(());
    }
    if name.starts_with(b"trusted.") {
        return Err(error(Code::NoData, name));
    }
    if name.starts_with(b"user.") {
        return access::require(caller, inode, READ);
    }
    Ok(())
}

fn check_change(caller: &Caller, inode: &Inode, name: &[u8]) -> FsResult<()> {
    if name.starts_with(b"system.") {
        return Err(error(Code::Unsupported, name));
    }
    if access::passes_all(caller) {
        return Ok(());
    }
    let attr = &inode.attr;
    if name.starts_with(b"user.") {
        // On other kinds the mode bits do not speak of contents, so nobody could be held off.
        if !matches!(attr.kind, FileKind::Regular | FileKind::Directory) {
            return Err(error(Code::NotPermitted, name));
        }
        if attr.kind == FileKind::Directory && attr.mode & STICKY != 0 {
            access::require_owner(caller, attr)?;
        }
        return access::require(caller, inode, WRITE);
    }
    if name.starts_with(b"trusted.") || name.starts_with(b"security.") {
        return Err(error(Code::NotPermitted, name));
    }
    Err(error(Code::Unsupported, name))
}

fn check_name(name: &[u8]) -> FsResult<()> {
    if name.is_empty() || name.len() > XATTR_NAME_LEN_BYTES_MAX {
        return Err(error(Code::Range, name));
    }
    if name.contains(&0) {
        Err(error(Code::Invalid, name))
    } else {
        Ok(())
    }
}

fn error(code: Code, name: &[u8]) -> FsError {
    FsError::new(
        code,
        format!("attribute {:?}", String::from_utf8_lossy(name)),
    )
}
