//! Directories as open hash tables: every entry has a position that it keeps while it lives.
//!
//! The position is the 63-bit hash of the name or, if that is taken, the next free number after it.
//! It is unique in the directory and serves as the readdir cookie: a listing that goes on after a
//! position meets every entry that stays exactly once, whatever is added or removed meanwhile, and
//! no state is kept for it. Removing an entry that others were pushed past leaves a gap, so that
//! they are still found; a gap is always followed by an entry or another gap.

use crate::keys;
use crate::record::{Dentry, Place, decode, encode};
use crate::tables::Tables;
use lumeofs_base::limits::NAME_LEN_BYTES_MAX;
use lumeofs_base::{Code, FsError, FsResult, InodeId};

/// First position: cookies 1 and 2 are those of `.` and `..`.
const POSITION_MIN: u64 = 16;
/// Hashes end here. Entries pushed past it still have positions that fit 63 bits.
const POSITION_END: u64 = i64::MAX as u64 - (1 << 32);

/// Where a name is, or would go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// The entry at its position.
    At(u64, Dentry),
    /// No such name; a new entry belongs at this position.
    Free(u64),
}

/// Whether a name may be that of an entry.
pub fn check_name(name: &[u8]) -> FsResult<()> {
    if name.len() > NAME_LEN_BYTES_MAX {
        return Err(FsError::new(
            Code::NameTooLong,
            format!("a name of {} bytes", name.len()),
        ));
    }
    if name.is_empty()
        || name == b"."
        || name == b".."
        || name.iter().any(|b| matches!(b, 0 | b'/'))
    {
        return Err(FsError::new(
            Code::Invalid,
            format!("name {:?}", String::from_utf8_lossy(name)),
        ));
    }
    Ok(())
}

/// Looks a name up.
pub(crate) fn find(tables: &dyn Tables, parent: InodeId, name: &[u8]) -> Found {
    let mut gap = None;
    let mut position = position_of(parent, name);
    while let Some(value) = tables.get(&keys::dentry(parent, position)) {
        match decode(&value) {
            Place::Entry(dentry) if dentry.name == name => return Found::At(position, dentry),
            Place::Entry(_) => {}
            Place::Gap => gap = gap.or(Some(position)),
        }
        position += 1;
    }
    Found::Free(gap.unwrap_or(position))
}

/// Puts an entry at a position that [`find`] gave for its name, in place of what is there.
pub(crate) fn put(tables: &mut dyn Tables, parent: InodeId, position: u64, dentry: Dentry) {
    tables.put(
        &keys::dentry(parent, position),
        encode(&Place::Entry(dentry)),
    );
}

/// Removes the entry at a position. A new entry must be put *before* an old one is removed: its
/// free position was found while the old one was there.
pub(crate) fn remove(tables: &mut dyn Tables, parent: InodeId, position: u64) {
    if tables.get(&keys::dentry(parent, position + 1)).is_some() {
        tables.put(&keys::dentry(parent, position), encode(&Place::Gap));
        return;
    }
    tables.delete(&keys::dentry(parent, position));
    let mut before = position - 1;
    while let Some(value) = tables.get(&keys::dentry(parent, before)) {
        if decode::<Place>(&value) != Place::Gap {
            break;
        }
        tables.delete(&keys::dentry(parent, before));
        before -= 1;
    }
}

/// Calls `visit` for the entries after `cookie`, in order of their positions, until it returns
/// false.
pub(crate) fn list(
    tables: &dyn Tables,
    parent: InodeId,
    cookie: u64,
    mut visit: impl FnMut(u64, Dentry) -> bool,
) {
    let from = keys::dentry(parent, cookie.saturating_add(1));
    let to = keys::dentry(parent, u64::MAX);
    tables.scan(&from, &to, &mut |key, value| match decode(value) {
        Place::Entry(dentry) => visit(keys::second(key), dentry),
        Place::Gap => true,
    });
}

/// The position that a name has if nothing is in its way. Part of the format: never to be changed.
pub(crate) fn position_of(parent: InodeId, name: &[u8]) -> u64 {
    POSITION_MIN + narrowed(hash(parent, name)) % (POSITION_END - POSITION_MIN)
}

/// FNV-1a over the name, seeded with the directory, finished like SplitMix64: FNV alone mixes its
/// last bytes badly.
fn hash(parent: InodeId, name: &[u8]) -> u64 {
    let seed = 0xCBF2_9CE4_8422_2325 ^ parent.0.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut hash = name.iter().fold(seed, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    });
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    hash ^ (hash >> 31)
}

#[cfg(not(test))]
fn narrowed(hash: u64) -> u64 {
    hash
}

#[cfg(test)]
use narrow::narrowed;

/// Lets a test make all names of a thread collide.
#[cfg(test)]
pub(crate) mod narrow {
    use std::cell::Cell;

    thread_local! {
        pub(crate) static HASH_COUNT: Cell<u64> = const { Cell::new(u64::MAX) };
    }

    pub(super) fn narrowed(hash: u64) -> u64 {
        hash % HASH_COUNT.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::MemoryTables;
    use lumeofs_base::FileKind;
    use lumeofs_base::rng::SplitMix64;
    use std::collections::{BTreeMap, BTreeSet};

    const DIR: InodeId = InodeId(5);

    fn entry(name: &str) -> Dentry {
        Dentry {
            name: name.into(),
            ino: InodeId(9),
            kind: FileKind::Regular,
        }
    }

    #[test]
    fn names_are_checked() {
        assert!(check_name(b"a").is_ok());
        assert!(check_name(&[b'x'; 255]).is_ok());
        assert_eq!(
            check_name(&[b'x'; 256]).unwrap_err().code,
            Code::NameTooLong
        );
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0"] {
            assert_eq!(check_name(bad).unwrap_err().code, Code::Invalid, "{bad:?}");
        }
    }

    #[test]
    fn colliding_names_are_found_after_any_order_of_changes() {
        narrow::HASH_COUNT.set(3);
        let mut rng = SplitMix64::new(1);
        let mut tables = MemoryTables::default();
        let mut there = BTreeMap::new();
        for _ in 0..5_000 {
            let name = format!("n{}", rng.below(12));
            match find(&tables, DIR, name.as_bytes()) {
                Found::At(position, _) => {
                    assert_eq!(there.remove(&name), Some(position));
                    remove(&mut tables, DIR, position);
                }
                Found::Free(position) => {
                    put(&mut tables, DIR, position, entry(&name));
                    assert_eq!(there.insert(name, position), None);
                }
            }
            for (name, position) in &there {
                let found = find(&tables, DIR, name.as_bytes());
                assert_eq!(found, Found::At(*position, entry(name)));
            }
        }
        let names: BTreeSet<_> = there.keys().cloned().collect();
        for name in names {
            remove(&mut tables, DIR, there[&name]);
        }
        assert!(tables.0.is_empty(), "no gap outlives the entries behind it");
        narrow::HASH_COUNT.set(u64::MAX);
    }

    #[test]
    fn a_listing_meets_every_entry_that_stays_exactly_once() {
        for hashes in [2, 50, u64::MAX] {
            narrow::HASH_COUNT.set(hashes);
            let mut rng = SplitMix64::new(hashes);
            let mut tables = MemoryTables::default();
            let insert = |tables: &mut MemoryTables, name: String| {
                if let Found::Free(position) = find(tables, DIR, name.as_bytes()) {
                    put(tables, DIR, position, entry(&name));
                }
            };
            for index in 0..100 {
                insert(&mut tables, format!("stays{index}"));
                insert(&mut tables, format!("goes{index}"));
            }
            let (mut cookie, mut pages, mut seen) = (0, 0, Vec::new());
            loop {
                let mut count = 0;
                let before = cookie;
                list(&tables, DIR, before, |position, dentry| {
                    cookie = position;
                    seen.push(String::from_utf8(dentry.name).unwrap());
                    count += 1;
                    count < 7
                });
                if count == 0 {
                    break;
                }
                pages += 1;
                // When all collide, new entries come after the cookie and would never end.
                for _ in 0..if pages < 30 { 5 } else { 0 } {
                    let name = format!("goes{}", rng.below(100));
                    if let Found::At(position, _) = find(&tables, DIR, name.as_bytes()) {
                        remove(&mut tables, DIR, position);
                    }
                    insert(&mut tables, format!("new{}", rng.next_u64()));
                }
            }
            for index in 0..100 {
                let name = format!("stays{index}");
                assert_eq!(seen.iter().filter(|&met| *met == name).count(), 1, "{name}");
            }
        }
        narrow::HASH_COUNT.set(u64::MAX);
    }
}
