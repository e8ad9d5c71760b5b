//! Every change on one mount against every look on another: the look was made just before, and once more when the
//! change has returned. What is right is seen in a local directory in which the same is done.

use crate::changes::{ALL, CHANGES, Change, SET_TIME, fixture};
use crate::looks::{Kind, LOOKS, Look};
use lumeofs_tests::coherence::look;
use lumeofs_tests::{Cluster, temporary};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Pairs that are under way at once.
const WORKERS: usize = 4;

/// The directories of all pairs: on the mount that changes, on the one that looks, and the local one.
struct Places {
    changing: PathBuf,
    looking: PathBuf,
    local: PathBuf,
}

/// A look that must be right after a change.
#[derive(Clone, Copy)]
struct Pair {
    change: &'static Change,
    /// `None` looks at the modification time.
    look: Option<&'static Look>,
    path: &'static str,
    /// Whether the mount that looks has made the files, and may still hold everything about them.
    looker_made: bool,
}

impl Pair {
    fn check(&self, places: &Places, number: usize) -> Result<(), String> {
        let at = |root: &Path| root.join(format!("pair-{number}"));
        let (changing, looking, local) =
            (at(&places.changing), at(&places.looking), at(&places.local));
        let maker = if self.looker_made {
            &looking
        } else {
            &changing
        };
        fixture(maker, self.change.touches).map_err(|errno| format!("making it: {errno}"))?;
        fixture(&local, self.change.touches)
            .map_err(|errno| format!("making it locally: {errno}"))?;
        let change = || -> Result<(), String> {
            let made = (self.change.make)(&changing);
            made.map_err(|errno| format!("changing: {errno}"))?;
            (self.change.make)(&local).map_err(|errno| format!("changing locally: {errno}"))
        };
        let Some(look) = self.look else {
            return moved(&looking.join(self.path), change);
        };
        let mut shared = (look.make)(looking.join(self.path));
        let mut right = (look.make)(local.join(self.path));
        same("before", &shared(), &right())?;
        change()?;
        same("after", &shared(), &right())
    }

    fn name(&self) -> String {
        let look = self.look.map_or("modification time", |look| look.name);
        let maker = if self.looker_made { "looks" } else { "changes" };
        let (change, path) = (self.change.name, self.path);
        format!("{change}, {look} of {path:?}, made by the mount that {maker}")
    }
}

fn same(when: &str, got: &str, right: &str) -> Result<(), String> {
    let told = || format!("{when}: {got:?} instead of {right:?}");
    (got == right).then_some(()).ok_or_else(told)
}

/// Whether the modification time is another one after the change, and the one that was set.
fn moved(path: &Path, change: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    let see = || look::mtime(path).map_err(|errno| format!("statx: {errno}"));
    let before = see()?;
    change()?;
    let after = see()?;
    let was_set = after.0 < look::SET_TIMES_END;
    if after == before || (was_set && after != (SET_TIME.cast_signed(), 0)) {
        return Err(format!("{after:?} after {before:?}"));
    }
    Ok(())
}

/// What the fixture has at a path.
fn kind(fixture: &Path, path: &str) -> Kind {
    match std::fs::symlink_metadata(fixture.join(path)) {
        Ok(found) if found.is_file() => Kind::File,
        Ok(found) if found.is_dir() => Kind::Directory,
        _ => Kind::Other,
    }
}

/// Every change with every look that can be taken of what it touches.
fn pairs(example: &Path) -> Vec<Pair> {
    let mut pairs = Vec::new();
    for change in CHANGES {
        for path in change.touches {
            let fits = |look: &&Look| look.of.is_none_or(|of| of == kind(example, path));
            let times = change.moves.contains(path).then_some(None);
            let looks = LOOKS.iter().filter(fits).map(Some).chain(times);
            for look in looks {
                pairs.extend([false, true].map(|looker_made| Pair {
                    change,
                    look,
                    path,
                    looker_made,
                }));
            }
        }
    }
    pairs
}

#[test]
fn every_change_on_one_mount_is_in_the_next_look_of_another() {
    let mut cluster = Cluster::start();
    let places = Places {
        changing: cluster.mount(),
        looking: cluster.second_mount(),
        local: cluster.scratch(),
    };
    let example = places.local.join("example");
    fixture(&example, &ALL).expect("a local fixture");
    let pairs = pairs(&example);
    let (begun, next, wrong) = (Instant::now(), AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(pair) = pairs.get(number) else {
                return;
            };
            if let Err(told) = pair.check(&places, number) {
                wrong
                    .lock()
                    .unwrap()
                    .push(format!("{}: {told}", pair.name()));
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(work);
        }
    });
    println!("{} pairs in {:?}", pairs.len(), begun.elapsed());
    let wrong = wrong.into_inner().unwrap();
    let count = wrong.len();
    assert!(
        wrong.is_empty(),
        "{count} of {}:\n{}",
        pairs.len(),
        wrong.join("\n")
    );
}

#[test]
fn each_change_is_seen_at_everything_that_it_touches_and_each_look_sees_some_change() {
    let directory = temporary();
    let example = directory.path().join("example");
    fixture(&example, &ALL).expect("a local fixture");
    let (mut seen, mut looks) = (BTreeSet::new(), BTreeSet::new());
    for (number, pair) in pairs(&example).iter().enumerate() {
        let Some(look) = pair.look.filter(|_| !pair.looker_made) else {
            continue;
        };
        let root = directory.path().join(number.to_string());
        fixture(&root, pair.change.touches).expect("a local fixture");
        let mut see = (look.make)(root.join(pair.path));
        let before = see();
        (pair.change.make)(&root).expect("a change of local files");
        if see() != before {
            seen.insert((pair.change.name, pair.path));
            looks.insert(look.name);
        }
    }
    for change in CHANGES {
        for path in change.touches {
            let is_time = change.moves.contains(path);
            let is_seen = seen.contains(&(change.name, path));
            assert!(
                is_seen || is_time,
                "nothing sees {} at {path:?}",
                change.name
            );
        }
    }
    for look in LOOKS {
        assert!(looks.contains(look.name), "{} sees no change", look.name);
    }
}
