//! Freeing orphans, some rows at a time.

use crate::keys;
use crate::op::{Outcome, Reply};
use crate::transaction::Tx;
use lumeofs_base::InodeId;

/// Rows of chunks and extended attributes that one command removes at most, so that no command
/// stops the others for long.
pub(crate) const ROWS_PER_PURGE_MAX: usize = 1024;

/// Frees the orphans among `inos`; what was not finished comes back.
pub(crate) fn purge(tx: &mut Tx<'_>, inos: &[InodeId]) -> Outcome {
    let mut budget = ROWS_PER_PURGE_MAX;
    for (done, ino) in inos.iter().enumerate() {
        if budget == 0 || !purge_one(tx, *ino, &mut budget) {
            return Ok(Reply::Purged {
                remaining: inos[done..].to_vec(),
            });
        }
    }
    Ok(Reply::Purged {
        remaining: Vec::new(),
    })
}

/// Whether nothing is left to do for `ino`.
fn purge_one(tx: &mut Tx<'_>, ino: InodeId, budget: &mut usize) -> bool {
    if tx.tables.get(&keys::orphan(ino)).is_none() {
        return true;
    }
    let mut inode = tx.linked(ino);
    *budget -= tx.free_chunks(&mut inode, 0, *budget);
    if inode.chunk_rows == 0 && inode.xattr_list_bytes > 0 {
        for key in xattr_keys(tx, ino, *budget) {
            let name = keys::xattr_name(&key);
            tx.remove_xattr(ino, name);
            inode.xattr_list_bytes -= name.len() as u32 + 1;
            *budget -= 1;
        }
    }
    if inode.chunk_rows > 0 || inode.xattr_list_bytes > 0 {
        tx.save(&mut inode);
        return false;
    }
    // An inode without rows costs one too, or a long list of empty files would have no bound.
    *budget = budget.saturating_sub(1);
    tx.forget(&inode);
    tx.tables.delete(&keys::orphan(ino));
    true
}

fn xattr_keys(tx: &Tx<'_>, ino: InodeId, limit: usize) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    if limit == 0 {
        return found;
    }
    let range = keys::xattrs_of(ino);
    tx.tables.scan(&range.start, &range.end, &mut |key, _| {
        found.push(key.to_vec());
        found.len() < limit
    });
    found
}
