//! `link`: a further name for an inode, or the first one for a file that was made without.

use crate::access::{self, SEARCH, WRITE};
use crate::directory::{self, Found};
use crate::keys;
use crate::op::{Caller, Outcome, Reply};
use crate::record::{Dentry, Inode};
use crate::transaction::Tx;
use lumeofs_base::limits::LINK_COUNT_MAX;
use lumeofs_base::{Attr, Code, FsError, InodeId};

pub(super) fn link(
    tx: &mut Tx<'_>,
    caller: &Caller,
    ino: InodeId,
    (parent, name): (InodeId, &[u8]),
) -> Outcome {
    directory::check_name(name)?;
    let inode = tx.inode(ino)?;
    let dir = tx.directory(parent)?;
    access::require(caller, &dir, SEARCH)?;
    let Found::Free(position) = directory::find(tx.tables, parent, name) else {
        return Err(FsError::new(
            Code::Exists,
            format!("{:?}", String::from_utf8_lossy(name)),
        ));
    };
    access::require(caller, &dir, WRITE | SEARCH)?;
    if inode.is_directory() {
        return Err(access::not_permitted(
            caller,
            format!("{ino} is a directory"),
        ));
    }
    match inode.attr.nlink {
        0 if tx.may_be_named(ino) => tx.tables.delete(&keys::orphan(ino)),
        0 => return Err(FsError::new(Code::NotFound, format!("{ino} was removed"))),
        LINK_COUNT_MAX.. => return Err(FsError::new(Code::TooManyLinks, format!("{ino}"))),
        _ => {}
    }
    Ok(Reply::Attr(enter(tx, inode, dir, (position, name))))
}

/// Gives an inode a name at a free position. Returns its attributes.
pub(super) fn enter(
    tx: &mut Tx<'_>,
    mut inode: Inode,
    mut dir: Inode,
    (position, name): (u64, &[u8]),
) -> Attr {
    inode.attr.nlink += 1;
    tx.note_change(&mut inode.attr);
    let dentry = Dentry {
        name: name.to_vec(),
        ino: inode.attr.ino,
        kind: inode.attr.kind,
    };
    tx.put_name(dir.attr.ino, position, dentry);
    dir.attr.size += 1;
    tx.touch(&mut dir);
    tx.save(&mut dir);
    tx.save(&mut inode);
    inode.attr
}
