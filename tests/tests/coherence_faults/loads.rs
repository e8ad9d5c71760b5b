//! What goes on while something breaks: programs in turn, appends to one log, registers that are written and watched.
//!
//! Through a mount that will be away nothing is open in this process: each child that is started would close it, and
//! wait for that mount.

use crate::watch::{Watching, watch, write};
use lumeofs_tests::coherence::{append_records, check_log, git_turns, sqlite_turns, tail};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Turns of the programs before and after the fault.
const TURNS: usize = 3;
/// Between two appends.
const PACE: Duration = Duration::from_millis(5);

/// What becomes of the third mount.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Third {
    /// It works like the others.
    Works,
    /// Its process is killed.
    Dies,
    /// It does not answer for a while.
    IsAway,
}

/// How far the day is.
#[derive(Debug, Default)]
pub(crate) struct Phase {
    broken: AtomicBool,
    over: AtomicBool,
}

impl Phase {
    /// Says that the fault comes now.
    pub(crate) fn breaks(&self) {
        self.broken.store(true, Ordering::Relaxed);
    }

    /// Whether the loads go on.
    pub(crate) fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    /// Waits for the fault before the turns that come after it.
    fn await_turn(&self, turn: usize) {
        while turn > TURNS && !self.broken.load(Ordering::Relaxed) && self.goes_on() {
            std::thread::sleep(PACE);
        }
    }
}

/// Ends the loads, also when a check fails.
struct Ending<'a>(&'a Phase);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

/// Runs all loads in a directory that the mounts share, given as each of them has it, during `work` and until the
/// programs have had their turns; then checks what the loads did and saw.
pub(crate) fn under_load(below: &[PathBuf; 3], third: Third, work: impl FnOnce(&Phase)) {
    let phase = Phase::default();
    let log = |directory: &Path| directory.join("log");
    let watching = Watching::new(&below[0]);
    let appending = if third == Third::IsAway { 2 } else { 3 };
    let may_fail = third != Third::Works;
    let (counts, seen) = std::thread::scope(|scope| {
        let ending = Ending(&phase);
        let git = scope.spawn(|| git_turns(&below[..2], 2 * TURNS, |turn| phase.await_turn(turn)));
        let sqlite =
            scope.spawn(|| sqlite_turns(&below[..2], 2 * TURNS, |turn| phase.await_turn(turn)));
        let follower = scope.spawn(|| tail(&log(&below[1]), || phase.goes_on()));
        let appenders: Vec<_> = (0..appending)
            .map(|writer| {
                let (path, phase) = (log(&below[writer]), &phase);
                let dies = third == Third::Dies && writer == 2;
                let go_on = move || {
                    std::thread::sleep(PACE);
                    phase.goes_on()
                };
                scope.spawn(move || {
                    let (count, error) = append_records(&path, writer as u32, dies, go_on);
                    assert_eq!(error.is_some(), dies, "of writer {writer}: {error:?}");
                    count
                })
            })
            .collect();
        let writer = scope.spawn(|| write(&watching, &below[0], || phase.goes_on()));
        let watcher = scope.spawn(|| watch(&watching, &below[1], false, || phase.goes_on()));
        let third_one = scope.spawn(|| watch(&watching, &below[2], may_fail, || phase.goes_on()));
        work(&phase);
        git.join().expect("git works");
        sqlite.join().expect("SQLite works");
        drop(ending);
        let mut counts = BTreeMap::new();
        for (writer, thread) in (0..).zip(appenders) {
            counts.insert(writer, thread.join().expect("appending works"));
        }
        writer.join().expect("what is watched can be written");
        watcher.join().expect("watching works");
        let longest = third_one.join().expect("watching works");
        // What it had cached may have served for a while.
        let was_away = longest > Duration::from_secs(1);
        assert!(
            was_away || third != Third::IsAway,
            "no call took longer than {longest:?}"
        );
        (
            counts,
            follower.join().expect("what the follower saw was whole"),
        )
    });
    println!(
        "appended {counts:?}, the follower saw {seen}; {}",
        watching.check()
    );
    let killed = (third == Third::Dies).then_some(2);
    for directory in &below[..2] {
        check_log(&log(directory), &counts, killed);
    }
}
