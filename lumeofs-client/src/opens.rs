//! Which files this client holds open, so that an unlinked one lives until its last close: rule S4.
//!
//! The leader knows of an inode before its first open returns, and is told of its last release in
//! the background. A report for an inode is never under way together with another one for the same inode, and
//! nothing is reported while the whole list is being restated: so no two reports can cross.

use crate::wait::Patience;
use lumeofs_base::{FsResult, InodeId};
use parking_lot::{Condvar, Mutex};
use std::collections::HashMap;

/// Inodes in one report.
const REPORT_MAX: usize = 4096;

/// The table of open files.
#[derive(Debug, Default)]
pub(crate) struct Opens {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<InodeId, Entry>,
    /// Inodes whose count reached zero; some may be open again.
    released: Vec<InodeId>,
    /// The whole list is being sent.
    restating: bool,
    /// Number of restatements begun.
    restatements: u64,
}

#[derive(Debug, Default)]
struct Entry {
    count: u64,
    /// The leader knows.
    reported: bool,
    /// A report that names it is under way.
    busy: bool,
}

/// What an opener must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entered {
    /// Nothing: the leader knows of it.
    Known,
    /// Report it, then call [`Opens::reported`].
    MustReport,
}

/// What a release was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Left {
    /// Nobody has the inode open any more.
    pub(crate) is_last: bool,
    /// The leader knows that it was, or may: a report is due if it was the last one.
    pub(crate) was_known: bool,
}

impl Opens {
    /// Counts an open.
    pub(crate) fn enter(&self, ino: InodeId, patience: &Patience<'_>) -> FsResult<Entered> {
        let mut state = self.state.lock();
        loop {
            let restating = state.restating;
            let entry = state.entries.entry(ino).or_default();
            if entry.reported && !entry.busy {
                entry.count += 1;
                return Ok(Entered::Known);
            }
            if !entry.busy && !restating {
                entry.count += 1;
                entry.busy = true;
                return Ok(Entered::MustReport);
            }
            let waited = patience.wait(&self.changed, &mut state);
            if let Err(error) = waited {
                state.forget_if_unused(ino);
                return Err(error);
            }
        }
    }

    /// The report of an open ended. A failed one takes the open back; the leader may have heard of it, so it is
    /// told the opposite.
    pub(crate) fn reported(&self, ino: InodeId, ok: bool) {
        let mut state = self.state.lock();
        if let Some(entry) = state.entries.get_mut(&ino) {
            entry.busy = false;
            entry.reported = true;
            if !ok {
                entry.count -= 1;
                if entry.count == 0 {
                    state.released.push(ino);
                }
            }
        }
        self.changed.notify_all();
    }

    /// Number of restatements begun, once none is under way: see [`Opens::created`].
    pub(crate) fn restatements(&self, patience: &Patience<'_>) -> FsResult<u64> {
        let mut state = self.state.lock();
        while state.restating {
            patience.wait(&self.changed, &mut state)?;
        }
        Ok(state.restatements)
    }

    /// Counts the open that came with a create. False if a restatement began since `restatements`: the leader may
    /// have forgotten the new inode, so the open must be entered and reported like another one.
    pub(crate) fn created(&self, ino: InodeId, restatements: u64) -> bool {
        let mut state = self.state.lock();
        if state.restatements != restatements || state.entries.contains_key(&ino) {
            return false;
        }
        state.entries.insert(
            ino,
            Entry {
                count: 1,
                reported: true,
                busy: false,
            },
        );
        true
    }

    /// Counts an open that needs no report: the leader knows of one, or `is_covered` says that a lease stands for it.
    pub(crate) fn enter_silently(&self, ino: InodeId, is_covered: impl FnOnce() -> bool) -> bool {
        let mut state = self.state.lock();
        let entry = state.entries.get(&ino);
        let is_known = entry.is_some_and(|entry| entry.reported && !entry.busy);
        let enters = is_known || is_covered();
        if enters {
            state.entries.entry(ino).or_default().count += 1;
        }
        enters
    }

    /// Whether an inode is open and the leader was not told.
    #[cfg(test)]
    fn is_silent(&self, ino: InodeId) -> bool {
        let state = self.state.lock();
        let entry = state.entries.get(&ino);
        entry.is_some_and(|entry| entry.count > 0 && !entry.reported)
    }

    /// The leader has come to know that an inode is open.
    pub(crate) fn is_known(&self, ino: InodeId) {
        let mut state = self.state.lock();
        if let Some(entry) = state.entries.get_mut(&ino) {
            entry.reported = true;
        }
        self.changed.notify_all();
    }

    /// The leader takes an inode to be open that may not be. True if it is not, which is to be reported.
    pub(crate) fn is_presumed(&self, ino: InodeId) -> bool {
        let mut state = self.state.lock();
        let entry = state.entries.entry(ino).or_default();
        entry.reported = true;
        let is_unused = entry.count == 0;
        if is_unused {
            state.released.push(ino);
        }
        self.changed.notify_all();
        is_unused
    }

    /// Counts a release.
    pub(crate) fn leave(&self, ino: InodeId) -> Left {
        let mut state = self.state.lock();
        let Some(entry) = state.entries.get_mut(&ino).filter(|entry| entry.count > 0) else {
            return Left::default();
        };
        entry.count -= 1;
        let left = Left {
            is_last: entry.count == 0,
            was_known: entry.reported || entry.busy,
        };
        if left.is_last && left.was_known {
            state.released.push(ino);
        } else {
            state.forget_if_unused(ino);
        }
        left
    }

    /// Takes the inodes whose release is to be reported now; then call [`Opens::forgotten`].
    pub(crate) fn take_released(&self) -> Vec<InodeId> {
        let State {
            entries, released, ..
        } = &mut *self.state.lock();
        let mut due = Vec::new();
        while let Some(ino) = released.pop() {
            let entry = entries.get_mut(&ino);
            if let Some(entry) = entry.filter(|entry| entry.count == 0 && !entry.busy) {
                entry.busy = true;
                due.push(ino);
            }
            if due.len() == REPORT_MAX {
                break;
            }
        }
        due
    }

    /// The report of releases ended. After a failure they are due again.
    pub(crate) fn forgotten(&self, inos: &[InodeId], ok: bool) {
        let mut state = self.state.lock();
        for ino in inos {
            if let Some(entry) = state.entries.get_mut(ino) {
                entry.busy = false;
                entry.reported = !ok;
            }
            if ok {
                state.forget_if_unused(*ino);
            } else {
                state.released.push(*ino);
            }
        }
        self.changed.notify_all();
    }

    /// Begins to restate: all inodes that are open and of which the leader can know. Then call [`Opens::restated`].
    pub(crate) fn restate(&self, can_know: impl Fn(InodeId) -> bool) -> Vec<InodeId> {
        let mut state = self.state.lock();
        state.restating = true;
        state.restatements += 1;
        // The leader forgets those that are not listed, so an open of one must be reported again.
        for (ino, entry) in &mut state.entries {
            if entry.count == 0 || !entry.busy {
                entry.reported = entry.count > 0 && can_know(*ino);
            }
        }
        state
            .entries
            .iter()
            .filter(|(ino, entry)| entry.count > 0 && can_know(**ino))
            .map(|(ino, _)| *ino)
            .collect()
    }

    /// The restatement ended.
    pub(crate) fn restated(&self) {
        self.state.lock().restating = false;
        self.changed.notify_all();
    }
}

impl State {
    fn forget_if_unused(&mut self, ino: InodeId) {
        if self
            .entries
            .get(&ino)
            .is_some_and(|entry| entry.count == 0 && !entry.busy && !entry.reported)
        {
            self.entries.remove(&ino);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::Halt;
    use std::time::Duration;

    const INO: InodeId = InodeId(9);

    #[test]
    fn only_the_first_open_and_the_last_release_are_reported() {
        let (opens, halt) = (Opens::default(), Halt::default());
        let patience = Patience::background(&halt, None);
        assert_eq!(opens.enter(INO, &patience).unwrap(), Entered::MustReport);
        opens.reported(INO, true);
        assert_eq!(opens.enter(INO, &patience).unwrap(), Entered::Known);
        assert!(!opens.leave(INO).is_last);
        assert!(opens.leave(INO).is_last);
        assert_eq!(opens.take_released(), [INO]);
        opens.forgotten(&[INO], true);
        assert_eq!(opens.enter(INO, &patience).unwrap(), Entered::MustReport);
    }

    #[test]
    fn an_open_waits_for_a_release_report_that_is_under_way() {
        let (opens, halt) = (Opens::default(), Halt::default());
        let short = Patience::background(&halt, Some(Duration::from_millis(20)));
        opens.enter(INO, &short).unwrap();
        opens.reported(INO, true);
        opens.leave(INO);
        assert_eq!(opens.take_released(), [INO]);
        assert!(opens.enter(INO, &short).is_err());
        opens.forgotten(&[INO], true);
        assert_eq!(opens.enter(INO, &short).unwrap(), Entered::MustReport);
    }

    #[test]
    fn a_file_opened_again_is_not_reported_as_released() {
        let (opens, halt) = (Opens::default(), Halt::default());
        let patience = Patience::background(&halt, None);
        opens.enter(INO, &patience).unwrap();
        opens.reported(INO, true);
        opens.leave(INO);
        assert_eq!(opens.enter(INO, &patience).unwrap(), Entered::Known);
        assert!(opens.take_released().is_empty());
        assert_eq!(opens.restate(|_| true), [INO]);
    }

    #[test]
    fn a_create_that_crossed_a_restatement_is_reported_by_itself() {
        let (opens, halt) = (Opens::default(), Halt::default());
        let patience = Patience::background(&halt, None);
        let seen = opens.restatements(&patience).unwrap();
        opens.restate(|_| true);
        opens.restated();
        assert!(!opens.created(INO, seen));
        let seen = opens.restatements(&patience).unwrap();
        assert!(opens.created(INO, seen));
        assert!(opens.leave(INO).is_last);
    }

    #[test]
    fn an_open_under_a_lease_is_told_only_when_the_leader_asks() {
        let (opens, halt) = (Opens::default(), Halt::default());
        let patience = Patience::background(&halt, None);
        assert!(!opens.enter_silently(INO, || false));
        assert!(opens.enter_silently(INO, || true));
        assert!(opens.is_silent(INO));
        let left = opens.leave(INO);
        assert!(left.is_last && !left.was_known);
        assert!(opens.take_released().is_empty());

        assert!(opens.enter_silently(INO, || true));
        opens.is_known(INO);
        assert!(!opens.is_silent(INO));
        assert!(opens.enter_silently(INO, || unreachable!("the leader knows")));
        opens.leave(INO);
        assert!(opens.leave(INO).was_known);
        assert_eq!(opens.take_released(), [INO]);
        opens.forgotten(&[INO], true);
        assert_eq!(opens.enter(INO, &patience).unwrap(), Entered::MustReport);
    }

    #[test]
    fn what_is_presumed_open_is_reported_as_released_if_it_is_not() {
        let opens = Opens::default();
        assert!(opens.is_presumed(INO));
        assert_eq!(opens.take_released(), [INO]);
        opens.forgotten(&[INO], true);
        assert!(opens.enter_silently(INO, || true));
        assert!(!opens.is_presumed(INO));
        assert!(opens.take_released().is_empty());
        assert!(opens.leave(INO).was_known);
    }
}
