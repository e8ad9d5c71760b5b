//! The trash: what lost its last name while a policy wants it kept, by the time of its deletion.
//!
//! Such an inode has no link and is no orphan, so no purge takes it. What leaves the trash without a new name becomes an
//! orphan like any other.

use crate::access::not_permitted;
use crate::keys;
use crate::op::{Caller, Outcome, Reply, TrashEntry, TrashKey, TrashPolicy};
use crate::record::{Orphan, Place, Trashed, decode, encode};
use crate::tables::Tables;
use crate::transaction::{Tx, inode};
use lumeofs_base::limits::{TRASH_ENTRIES_MAX, TRASH_PATH_BYTES_MAX};
use lumeofs_base::{FsResult, InodeId, Timestamp};

/// What one answer holds at most, roughly, beside its last entry.
const REPLY_BYTES_MAX: usize = 256 << 10;
/// An entry without its path, roughly.
const ENTRY_BYTES: usize = 128;
/// Stands for the directories of a path that is too long.
const CUT: &[u8] = b"...";

/// The policy. None was set: nothing is kept.
pub(crate) fn policy(tables: &dyn Tables) -> TrashPolicy {
    let stored = tables.get(&keys::TRASH_POLICY);
    stored.map_or_else(TrashPolicy::default, |value| decode(&value))
}

/// When an inode was deleted that is in the trash.
pub(crate) fn deleted_ns(tables: &dyn Tables, ino: InodeId) -> Option<u64> {
    tables
        .get(&keys::trashed(ino))
        .map(|value| decode::<u64>(&value))
}

/// Puts in what has lost this name, its last one.
pub(crate) fn put(
    tx: &mut Tx<'_>,
    ino: InodeId,
    (parent, name): (InodeId, &[u8]),
    caller: &Caller,
) {
    let time = nanoseconds(tx.now());
    let row = Trashed {
        path: path_of(tx.tables, parent, name),
        uid: caller.uid,
    };
    tx.tables.put(&keys::trash(time, ino), encode(&row));
    tx.tables.put(&keys::trashed(ino), encode(&time));
}

/// Takes an entry out, if it is there: then it is the caller's.
pub(crate) fn take(tx: &mut Tx<'_>, key: TrashKey) -> bool {
    let row = keys::trash(key.deleted_ns, key.ino);
    let is_there = tx.tables.get(&row).is_some();
    if is_there {
        tx.tables.delete(&row);
        tx.tables.delete(&keys::trashed(key.ino));
    }
    is_there
}

/// Makes orphans of entries, as far as they are there.
pub(crate) fn drop_entries(tx: &mut Tx<'_>, entries: &[TrashKey]) {
    let orphan = encode(&Orphan {
        may_be_named: false,
    });
    for key in entries {
        if take(tx, *key) {
            tx.tables.put(&keys::orphan(key.ino), orphan.clone());
        }
    }
}

/// The same for those of which the time is over at `now`: another policy may have been set since they were chosen.
pub(crate) fn expire(tx: &mut Tx<'_>, entries: &[TrashKey], now: Timestamp) {
    let (policy, now) = (policy(tx.tables), nanoseconds(now));
    let is_over = |key: &&TrashKey| policy.expires_ns(**key) <= now;
    let over: Vec<_> = entries.iter().filter(is_over).copied().collect();
    drop_entries(tx, &over);
}

/// At most `limit` entries whose time is over, the oldest first.
pub(crate) fn expired(tables: &dyn Tables, now: Timestamp, limit: usize) -> Vec<TrashKey> {
    let (policy, now) = (policy(tables), nanoseconds(now));
    let mut found = Vec::new();
    scan(tables, None, &mut |key, _| {
        let is_over = policy.expires_ns(key) <= now && found.len() < limit;
        if is_over {
            found.push(key);
        }
        is_over
    });
    found
}

/// Answers [`crate::op::Query::Trash`].
pub(crate) fn query(
    tables: &dyn Tables,
    caller: &Caller,
    after: Option<TrashKey>,
    of: Option<InodeId>,
    count_max: u32,
) -> Outcome {
    require_root(caller)?;
    let count_max = (count_max as usize).min(TRASH_ENTRIES_MAX);
    let (mut entries, mut more, mut bytes) = (Vec::new(), false, 0);
    let mut visit = |key: TrashKey, value: &[u8]| {
        if entries.len() == count_max || bytes >= REPLY_BYTES_MAX {
            more = true;
            return false;
        }
        let Trashed { path, uid } = decode(value);
        let attr = inode(tables, key.ino)
            .unwrap_or_else(|error| panic!("what is in the trash is an inode: {error}"))
            .attr;
        bytes += ENTRY_BYTES + path.len();
        entries.push(TrashEntry {
            key,
            path,
            uid,
            attr,
        });
        true
    };
    match of {
        Some(ino) => {
            if let Some(deleted_ns) = deleted_ns(tables, ino)
                && let Some(value) = tables.get(&keys::trash(deleted_ns, ino))
            {
                visit(TrashKey { deleted_ns, ino }, &value);
            }
        }
        None => scan(tables, after, &mut visit),
    }
    Ok(Reply::Trash {
        policy: policy(tables),
        entries,
        more,
    })
}

/// Fails with `NotPermitted` for anybody but root.
pub(crate) fn require_root(caller: &Caller) -> FsResult<()> {
    match caller.uid {
        0 => Ok(()),
        _ => Err(not_permitted(caller, "the trash is for root")),
    }
}

/// Where a directory lies: its parent, and its name there. `None` for the root, and for one that was removed.
pub(crate) fn place_of(tables: &dyn Tables, dir: InodeId) -> Option<(InodeId, Vec<u8>)> {
    let inode = inode(tables, dir).ok()?;
    if dir == InodeId::ROOT || inode.attr.nlink == 0 {
        return None;
    }
    let value = tables.get(&keys::dentry(inode.parent, inode.position))?;
    match decode(&value) {
        Place::Entry(entry) if entry.ino == dir => Some((inode.parent, entry.name)),
        Place::Entry(_) | Place::Gap => None,
    }
}

/// The path of a name: see [`Trashed::path`].
fn path_of(tables: &dyn Tables, mut dir: InodeId, name: &[u8]) -> Vec<u8> {
    let mut names = vec![name.to_vec()];
    let mut bytes = 1 + name.len();
    let mut path = Vec::new();
    while let Some((parent, name)) = place_of(tables, dir) {
        bytes += 1 + name.len();
        if bytes + CUT.len() > TRASH_PATH_BYTES_MAX {
            path.extend_from_slice(CUT);
            break;
        }
        names.push(name);
        dir = parent;
    }
    for name in names.iter().rev() {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    path
}

/// Visits entries after one, by time of deletion, until `visit` returns false.
fn scan(
    tables: &dyn Tables,
    after: Option<TrashKey>,
    visit: &mut dyn FnMut(TrashKey, &[u8]) -> bool,
) {
    let from = match after {
        None => keys::all::TRASH.start.to_vec(),
        Some(key) => {
            let mut from = keys::trash(key.deleted_ns, key.ino).to_vec();
            from.push(0);
            from
        }
    };
    tables.scan(&from, &keys::all::TRASH.end, &mut |key, value| {
        let found = TrashKey {
            deleted_ns: keys::first(key),
            ino: InodeId(keys::second(key)),
        };
        visit(found, value)
    });
}

/// Nanoseconds since 1970, as far as they fit: they are in the key, which orders entries.
fn nanoseconds(time: Timestamp) -> u64 {
    let secs = u64::try_from(time.secs).unwrap_or(0);
    let whole = secs.saturating_mul(1_000_000_000);
    whole.saturating_add(u64::from(time.nanos))
}
