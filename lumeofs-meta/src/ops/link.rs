//! `link`: a further name for an inode, or the first one for a file that was made without.

use crate::access::{self, SEARCH, WRITE};
use crate::directory::{self, Found};
use crate::keys;
use crate::op::{Caller, Outcome, Reply};
use crate::record::Dentry;
use crate::transaction::Tx;
use lumeofs_base::limits::LINK_COUNT_MAX;
use lumeofs_base::{Code, FsError, InodeId};

pub(super) fn link(
    tx: &mut Tx<'_>,
    caller: &Caller,
    ino: InodeId,
    (parent, name): (InodeId, &[u8]),
) -> Outcome {
    directory::check_name(name)?;
    let mut inode = tx.inode(ino)?;
    let mut dir = tx.directory(parent)?;
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
    inode.attr.nlink += 1;
    tx.note_change(&mut inode.attr);
    let dentry = Dentry {
        name: name.to_vec(),
        ino,
        kind: inode.attr.kind,
    };
    tx.put_name(parent, position, dentry);
    dir.attr.size += 1;
    tx.touch(&mut dir);
    tx.save(&mut dir);
    tx.save(&mut inode);
    Ok(Reply::Attr(inode.attr))
}
