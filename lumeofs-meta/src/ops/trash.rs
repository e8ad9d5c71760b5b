//! What root does with the trash: gives something back its name, drops entries, sets the policy.

use super::link;
use crate::directory::{self, Found};
use crate::keys;
use crate::op::{Caller, Outcome, Reply, TrashKey, TrashPolicy};
use crate::record::encode;
use crate::transaction::Tx;
use crate::trash;
use lumeofs_base::limits::TRASH_ENTRIES_MAX;
use lumeofs_base::{Code, FsError, InodeId};

/// Longest time that something is kept: a hundred years.
const KEEP_S_MAX: u64 = 100 * 366 * 24 * 3600;

pub(super) fn restore(
    tx: &mut Tx<'_>,
    caller: &Caller,
    ino: InodeId,
    (parent, name): (InodeId, &[u8]),
) -> Outcome {
    trash::require_root(caller)?;
    directory::check_name(name)?;
    let Some(deleted_ns) = trash::deleted_ns(tx.tables, ino) else {
        let text = format!("{ino} is not in the trash");
        return Err(FsError::new(Code::NotFound, text));
    };
    let dir = tx.directory(parent)?;
    let Found::Free(position) = directory::find(tx.tables, parent, name) else {
        let text = format!("{:?}", String::from_utf8_lossy(name));
        return Err(FsError::new(Code::Exists, text));
    };
    let inode = tx.linked(ino);
    assert!(
        trash::take(tx, TrashKey { deleted_ns, ino }),
        "both tables have it"
    );
    Ok(Reply::Attr(link::enter(tx, inode, dir, (position, name))))
}

pub(super) fn empty(tx: &mut Tx<'_>, caller: &Caller, entries: &[TrashKey]) -> Outcome {
    trash::require_root(caller)?;
    if entries.len() > TRASH_ENTRIES_MAX {
        let text = format!("{} entries, at most {TRASH_ENTRIES_MAX}", entries.len());
        return Err(FsError::new(Code::Invalid, text));
    }
    trash::drop_entries(tx, entries);
    Ok(Reply::Done)
}

pub(super) fn set_policy(tx: &mut Tx<'_>, caller: &Caller, keep_s: Option<u64>) -> Outcome {
    trash::require_root(caller)?;
    let policy = match keep_s {
        None => TrashPolicy {
            is_on: false,
            ..trash::policy(tx.tables)
        },
        Some(keep_s @ 1..=KEEP_S_MAX) => TrashPolicy {
            is_on: true,
            keep_s,
        },
        Some(keep_s) => {
            let text = format!("to keep for {keep_s} s: want 1 to {KEEP_S_MAX}");
            return Err(FsError::new(Code::Invalid, text));
        }
    };
    tx.tables.put(&keys::TRASH_POLICY, encode(&policy));
    Ok(Reply::Done)
}
