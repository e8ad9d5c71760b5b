//! `unlink` and `rmdir`: what loses its last name becomes an orphan until a purge, or goes to the trash.

use crate::access::{self, SEARCH};
use crate::directory::{self, Found};
use crate::op::{Caller, Outcome, Reply};
use crate::transaction::Tx;
use lumeofs_base::{Code, FsError, InodeId};

pub(super) fn unlink(tx: &mut Tx<'_>, caller: &Caller, parent: InodeId, name: &[u8]) -> Outcome {
    remove(tx, caller, parent, name, false)
}

pub(super) fn rmdir(tx: &mut Tx<'_>, caller: &Caller, parent: InodeId, name: &[u8]) -> Outcome {
    remove(tx, caller, parent, name, true)
}

fn remove(
    tx: &mut Tx<'_>,
    caller: &Caller,
    parent: InodeId,
    name: &[u8],
    directory_wanted: bool,
) -> Outcome {
    directory::check_name(name)?;
    let mut dir = tx.directory(parent)?;
    access::require(caller, &dir, SEARCH)?;
    let error = |code| FsError::new(code, format!("{:?}", String::from_utf8_lossy(name)));
    let Found::At(position, dentry) = directory::find(tx.tables, parent, name) else {
        return Err(error(Code::NotFound));
    };
    let mut inode = tx.linked(dentry.ino);
    access::require_removal(caller, &dir, &inode.attr)?;
    match (inode.is_directory(), directory_wanted) {
        (true, false) => return Err(error(Code::IsDirectory)),
        (false, true) => return Err(error(Code::NotDirectory)),
        (true, true) if inode.attr.size > 0 => return Err(error(Code::NotEmpty)),
        (true, true) => dir.attr.nlink -= 1,
        (false, false) => {}
    }
    tx.remove_name(parent, position, name);
    dir.attr.size -= 1;
    tx.touch(&mut dir);
    tx.save(&mut dir);
    tx.drop_name(&mut inode, (parent, name), caller);
    Ok(Reply::Removed { attr: inode.attr })
}
