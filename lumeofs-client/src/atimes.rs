//! Access times by reading: kept here, shown by this client at once, and told to the leader later, many at a time.
//!
//! Who reads waits for nobody. What is kept stands for the access time that the reader saw: if that is another one by now,
//! since somebody has set it or another mount has told of a read, what is kept here does not count. So an explicit time wins
//! over reads from before, and of several mounts that read the same only the first changes anything.

use crate::link::{Asker, Link};
use crate::wait::{Patience, now};
use lumeofs_base::clock::{Clock as _, SystemClock};
use lumeofs_base::limits::{ACCESSES_MAX, LEAVE_PATIENCE};
use lumeofs_base::{Attr, Code, FsResult, InodeId, Timestamp};
use lumeofs_lease::Cached;
use lumeofs_meta::op::{Access, Mutation};
use parking_lot::{Condvar, Mutex};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// How long a time is kept before it is told, with all others that are kept then.
const DELAY: Duration = Duration::from_secs(5);
/// How often it is looked for such.
const LOOK: Duration = Duration::from_secs(1);
/// When so many are kept they are told at the next look.
const MANY: usize = 8192;
/// More than that are not kept, which in an outage loses the times of what is read then.
const KEPT_MAX: usize = 65_536;
/// Under `relatime` an access time that is so old is set anew, even if nothing has changed.
const DAY_SECS: i64 = 24 * 60 * 60;

/// All that is kept.
#[derive(Debug, Default)]
pub(crate) struct Atimes {
    state: Mutex<State>,
    /// What was being told is known, or not.
    told: Condvar,
    /// How many are kept, for those who need not look then.
    count: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    kept: HashMap<InodeId, Kept>,
    being_told: Vec<Access>,
}

#[derive(Clone, Copy, Debug)]
struct Kept {
    from: Timestamp,
    to: Timestamp,
    since: Duration,
}

/// Whether Linux would set the access time of an inode with these times, under `relatime`.
fn is_due(atime: Timestamp, attr: &Attr, wall: Timestamp) -> bool {
    attr.mtime >= atime || attr.ctime >= atime || wall.secs.saturating_sub(atime.secs) >= DAY_SECS
}

impl Atimes {
    /// Something that has these attributes, but for what is kept here, is read at this time.
    fn note(&self, attr: &Attr, wall: Timestamp, at: Duration, is_strict: bool) {
        if !is_strict && !is_due(attr.atime, attr, wall) {
            return;
        }
        let mut state = self.state.lock();
        let kept = state.kept.get(&attr.ino);
        let kept = kept.filter(|kept| kept.from == attr.atime).copied();
        let atime = kept.map_or(attr.atime, |kept| kept.to);
        if atime == wall || !(is_strict || is_due(atime, attr, wall)) {
            return;
        }
        if kept.is_none() && state.kept.len() >= KEPT_MAX {
            return;
        }
        let new = Kept {
            from: attr.atime,
            to: wall,
            since: kept.map_or(at, |kept| kept.since),
        };
        state.kept.insert(attr.ino, new);
        self.count.store(state.kept.len(), Ordering::Relaxed);
    }

    /// Enters what is kept in attributes that are to be shown.
    fn show(&self, attr: &mut Attr) {
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let state = self.state.lock();
        let kept = state.kept.get(&attr.ino);
        if let Some(kept) = kept.filter(|kept| kept.from == attr.atime) {
            attr.atime = kept.to;
        }
    }

    /// The access time is about to be set: what is kept does not count, and nothing of it is on its way when this returns.
    pub(crate) fn give_up(&self, ino: InodeId, patience: &Patience<'_>) -> FsResult<()> {
        let mut state = self.state.lock();
        state.kept.remove(&ino);
        self.count.store(state.kept.len(), Ordering::Relaxed);
        while state.being_told.iter().any(|access| access.ino == ino) {
            patience.wait(&self.told, &mut state)?;
        }
        Ok(())
    }

    /// Whether it is time to tell what is kept.
    fn is_time(&self, at: Duration) -> bool {
        let state = self.state.lock();
        let mut kept = state.kept.values();
        state.kept.len() >= MANY || kept.any(|kept| at >= kept.since + DELAY)
    }

    /// What is kept since this time or longer.
    fn kept_since(&self, at: Duration) -> Vec<InodeId> {
        let state = self.state.lock();
        let kept = state.kept.iter();
        let kept = kept.filter(|(_, kept)| kept.since <= at);
        kept.map(|(ino, _)| *ino).collect()
    }

    /// Begins to tell. Then call [`Atimes::told`].
    fn begin(&self, inos: &[InodeId]) -> Vec<Access> {
        let state = &mut *self.state.lock();
        let kept = |ino: &InodeId| {
            let Kept { from, to, .. } = *state.kept.get(ino)?;
            Some(Access {
                ino: *ino,
                from,
                to,
            })
        };
        state.being_told = inos.iter().filter_map(kept).collect();
        state.being_told.clone()
    }

    /// The leader knows, or has refused; or it was not reached, and will be told again.
    fn told(&self, is_over: bool) {
        let state = &mut *self.state.lock();
        for access in std::mem::take(&mut state.being_told) {
            let Some(kept) = state.kept.get_mut(&access.ino) else {
                continue;
            };
            if is_over && kept.to == access.to {
                state.kept.remove(&access.ino);
            } else if is_over && kept.from == access.from {
                // It was read again meanwhile.
                kept.from = access.to;
            }
        }
        self.count.store(state.kept.len(), Ordering::Relaxed);
        self.told.notify_all();
    }
}

impl Link {
    /// Something was read, by a caller under `strictatime` or else `relatime`. What nothing is known of keeps its time.
    pub(crate) fn accessed(&self, ino: InodeId, is_strict: bool) {
        let known = match self.attr_under_lease(ino) {
            Cached::Is(attr) => Some(attr),
            Cached::Absent | Cached::Unknown => {
                let inode = self.inodes.find(ino);
                inode.and_then(|inode| inode.known_attr())
            }
        };
        if let Some(attr) = known {
            let attr = self.with_local_changes(attr);
            let wall = SystemClock.wall();
            self.atimes.note(&attr, wall, now(), is_strict);
        }
    }

    /// Attributes as the leader told them, with what this client has written, set and read and not told yet.
    pub(crate) fn with_own_writes(&self, attr: Attr) -> Attr {
        let mut attr = self.with_local_changes(attr);
        self.atimes.show(&mut attr);
        attr
    }

    /// The background thread.
    pub(crate) fn keep_telling_accesses(&self) {
        while !self.halt.is_halted() {
            self.halt.sleep(LOOK);
            if self.atimes.is_time(now()) && !self.halt.is_halted() {
                // Until it is known what became of it: a time that is set meanwhile waits for that.
                self.tell_accesses(None).ok();
            }
        }
    }

    /// Tells what is left, as long as the leader answers. No data depends on it.
    pub(crate) fn tell_accesses_before_close(&self) {
        let left = LEAVE_PATIENCE.saturating_sub(self.masters.silence());
        if !left.is_zero() {
            self.tell_accesses(Some(left)).ok();
        }
    }

    fn tell_accesses(&self, limit: Option<Duration>) -> FsResult<()> {
        let mut kept = self.atimes.kept_since(now());
        // A time that was set and is not published would make the leader refuse these.
        kept.retain(|ino| {
            let local = self.local_state(*ino);
            local.is_none_or(|(local, _)| !local.has_set_atime() || local.is_published())
        });
        for part in kept.chunks(ACCESSES_MAX) {
            let accesses = self.atimes.begin(part);
            let Some(first) = accesses.first().map(|access| access.ino) else {
                self.atimes.told(true);
                continue;
            };
            let asker = Asker::background(Patience::background(&self.halt, limit));
            let done = self.mutate(&asker, first, &Mutation::Access { accesses });
            let is_outage = done.as_ref().is_err_and(|error| {
                matches!(
                    error.code,
                    Code::Unavailable | Code::Timeout | Code::Interrupted
                )
            });
            self.atimes.told(!is_outage);
            if let Err(error) = done {
                tracing::debug!(%error, "access times");
                return Err(error);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::testing;
    use crate::wait::Halt;

    const fn at(secs: i64) -> Timestamp {
        Timestamp { secs, nanos: 0 }
    }

    /// An inode with these times of access and change.
    fn attr(atime: i64, changed: i64) -> Attr {
        Attr {
            atime: at(atime),
            mtime: at(changed),
            ctime: at(changed),
            ..testing::attr(5)
        }
    }

    fn shown(atimes: &Atimes, mut attr: Attr) -> Timestamp {
        atimes.show(&mut attr);
        attr.atime
    }

    fn read(atimes: &Atimes, attr: &Attr, secs: i64, is_strict: bool) {
        atimes.note(attr, at(secs), Duration::ZERO, is_strict);
    }

    #[test]
    fn under_relatime_a_read_counts_once_for_each_change_and_once_a_day() {
        let atimes = Atimes::default();
        let file = attr(100, 100);
        read(&atimes, &file, 200, false);
        assert_eq!(shown(&atimes, file.clone()), at(200));
        read(&atimes, &file, 300, false);
        assert_eq!(shown(&atimes, file.clone()), at(200), "nothing has changed");
        let changed = attr(100, 400);
        read(&atimes, &changed, 500, false);
        assert_eq!(shown(&atimes, changed), at(500));
        let old = attr(100, 50);
        let other = Atimes::default();
        read(&other, &old, 100 + DAY_SECS - 1, false);
        assert_eq!(shown(&other, old.clone()), at(100));
        read(&other, &old, 100 + DAY_SECS, false);
        assert_eq!(shown(&other, old), at(100 + DAY_SECS));
    }

    #[test]
    fn under_strictatime_each_read_counts() {
        let atimes = Atimes::default();
        let file = attr(100, 50);
        for secs in [200, 201] {
            read(&atimes, &file, secs, true);
            assert_eq!(shown(&atimes, file.clone()), at(secs));
        }
    }

    #[test]
    fn a_time_that_others_have_set_is_shown() {
        let atimes = Atimes::default();
        read(&atimes, &attr(100, 100), 200, false);
        assert_eq!(shown(&atimes, attr(7, 300)), at(7));
        read(&atimes, &attr(7, 300), 400, false);
        assert_eq!(shown(&atimes, attr(7, 300)), at(400));
    }

    #[test]
    fn what_was_told_is_kept_no_longer_unless_it_was_read_again() {
        let atimes = Atimes::default();
        let file = attr(100, 50);
        read(&atimes, &file, 200, true);
        assert!(!atimes.is_time(DELAY / 2) && atimes.is_time(DELAY));
        let ino = file.ino;
        assert_eq!(atimes.kept_since(Duration::ZERO), [ino]);
        let access = |from, to| Access {
            ino,
            from: at(from),
            to: at(to),
        };
        assert_eq!(atimes.begin(&[ino]), [access(100, 200)]);
        atimes.told(false);
        assert_eq!(shown(&atimes, file.clone()), at(200), "nobody was there");
        assert_eq!(atimes.begin(&[ino]), [access(100, 200)]);
        read(&atimes, &file, 300, true);
        atimes.told(true);
        assert_eq!(shown(&atimes, attr(200, 50)), at(300));
        assert_eq!(atimes.begin(&[ino]), [access(200, 300)]);
        atimes.told(true);
        assert_eq!(atimes.kept_since(Duration::MAX), []);
        assert_eq!(atimes.count.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn who_sets_a_time_waits_for_what_is_being_told() {
        let (atimes, halt) = (Atimes::default(), Halt::default());
        let file = attr(100, 100);
        read(&atimes, &file, 200, false);
        atimes.begin(&[file.ino]);
        let short = Patience::background(&halt, Some(Duration::from_millis(20)));
        assert!(atimes.give_up(file.ino, &short).is_err());
        assert_eq!(shown(&atimes, file.clone()), at(100));
        atimes.told(true);
        assert!(atimes.give_up(file.ino, &short).is_ok());
    }

    #[test]
    fn no_more_than_a_limit_is_kept() {
        let atimes = Atimes::default();
        for number in 0..KEPT_MAX as u64 + 1 {
            let file = Attr {
                ino: InodeId(number + 1),
                ..attr(100, 100)
            };
            read(&atimes, &file, 200, false);
        }
        assert_eq!(atimes.kept_since(Duration::ZERO).len(), KEPT_MAX);
    }
}
