//! Paths of files, found by reading all names a page at a time: inodes do not know theirs. Blocks; bounded by time.

use crate::raft::Store;
use lumeofs_base::InodeId;
use lumeofs_base::clock::{Clock as _, SystemClock};
use lumeofs_meta::namespace;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Rows that are read at once: a few milliseconds, during which nothing is applied.
pub(super) const PAGE: usize = 4096;
/// Directories above a file that are named; a path that is deeper begins with `...`.
const DEPTH_MAX: usize = 256;

/// The time on our clock, for deadlines.
pub(super) fn now() -> Duration {
    SystemClock.monotonic()
}

/// One path of each inode that has a name, as far as they are found in time.
pub(super) fn paths_of(
    store: &Store,
    wanted: &BTreeSet<InodeId>,
    deadline: Duration,
) -> BTreeMap<InodeId, Vec<u8>> {
    let mut places = BTreeMap::new();
    let mut at = None;
    loop {
        at = store.read(|tables| {
            namespace::names_after(tables, at, PAGE, |parent, name, ino| {
                if wanted.contains(&ino) {
                    places.insert(ino, (parent, name.to_vec()));
                }
            })
        });
        if at.is_none() || places.len() == wanted.len() || now() >= deadline {
            break;
        }
    }
    let mut directories = BTreeMap::new();
    let path = |(ino, (parent, name)): (InodeId, (InodeId, Vec<u8>))| {
        let mut path = directory(store, parent, &mut directories, deadline);
        path.push(b'/');
        path.extend_from_slice(&name);
        (ino, path)
    };
    places.into_iter().map(path).collect()
}

/// Path of a directory; that of the root is empty.
fn directory(
    store: &Store,
    dir: InodeId,
    known: &mut BTreeMap<InodeId, Option<(InodeId, Vec<u8>)>>,
    deadline: Duration,
) -> Vec<u8> {
    let mut names = Vec::new();
    let mut above = dir;
    while above != InodeId::ROOT {
        let place = known.entry(above).or_insert_with(|| {
            let in_time = now() < deadline;
            in_time
                .then(|| store.read(|tables| namespace::place_of_directory(tables, above)))
                .flatten()
        });
        match place {
            Some((parent, name)) if names.len() < DEPTH_MAX => {
                names.push(name.clone());
                above = *parent;
            }
            _ => {
                names.push(b"...".to_vec());
                break;
            }
        }
    }
    let mut path = Vec::new();
    for name in names.iter().rev() {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    path
}
