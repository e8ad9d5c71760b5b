//! What this client knows of the locks of its own callers. Of an inode that is delegated to it that is everything.

use super::Tried;
use crate::wait::now;
use lumeofs_base::{Code, FsResult, InodeId, SessionId};
use lumeofs_meta::locks::{Lock, LockAnswer, LockList, LockOwner, LockSpace};
use parking_lot::{Condvar, Mutex};
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

/// Its own callers are the only ones here.
const OWN: SessionId = SessionId(0);
/// How long an inode that others lock too is not asked to be delegated.
const CONTENDED: Duration = Duration::from_secs(5);
/// Inodes whose contention is remembered.
const CONTENDED_MAX: usize = 1024;
/// Inodes beyond which those that are delegated and not locked are given back.
const FILES_MAX: usize = 1024;
/// After so long without a lock an inode is given back, so that no other client has to wait for this one.
const IDLE_MAX: Duration = Duration::from_secs(5);
/// How often it is looked for those.
const IDLE_LOOK: Duration = Duration::from_secs(1);
/// Waiters that keep a connection to the leader busy.
const SLOTS: usize = 16;

/// The locks and who waits for something about them.
#[derive(Debug, Default)]
pub(crate) struct Locks {
    pub(super) state: Mutex<State>,
    /// Something is to be done, or was.
    pub(super) changed: Condvar,
    slots: Mutex<usize>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    files: HashMap<InodeId, File>,
    /// What was locked through which open file.
    handles: HashMap<u64, HashSet<(InodeId, LockOwner)>>,
    /// Inodes that others lock too, until when.
    contended: HashMap<InodeId, Duration>,
    /// When it was looked for idle ones last.
    looked: Duration,
    /// Counts sessions: what began under one does not end under another.
    pub(super) epoch: u64,
    /// To be given back.
    pub(super) recalls: VecDeque<InodeId>,
    /// To be unlocked, whatever there is.
    pub(super) releases: VecDeque<(InodeId, LockOwner)>,
}

/// The locks of one inode.
#[derive(Debug, Default)]
pub(super) struct File {
    /// This client decides on them.
    pub(super) delegated: bool,
    /// They are being given back: nothing begins meanwhile.
    pub(super) returning: bool,
    /// Owners of whom a request is under way whose caller waits for the answer. Each has one at a time, or they could be
    /// applied in another order than they are booked here: the leader takes them in the order in which they arrive.
    pub(super) busy: HashSet<LockOwner>,
    /// Those of whom one is under way whose caller has given up.
    late: HashSet<LockOwner>,
    /// Owners whose locks are being released: what is new of them waits.
    releasing: HashSet<LockOwner>,
    /// Owners that may have more locks than `list` says.
    doubtful: HashSet<LockOwner>,
    list: LockList,
    /// When something was locked or unlocked last.
    used: Duration,
    /// Through which open files owners have locked.
    through: HashMap<LockOwner, HashSet<u64>>,
}

impl File {
    /// Whether an owner has to wait before it begins anything.
    pub(super) fn is_moving(&self, owner: LockOwner) -> bool {
        self.returning || self.releasing.contains(&owner) || self.has_request_of(owner)
    }

    fn has_request_of(&self, owner: LockOwner) -> bool {
        self.busy.contains(&owner) || self.late.contains(&owner)
    }

    /// Whether anything is under way that may change who has what.
    pub(super) fn has_requests(&self) -> bool {
        !self.busy.is_empty() || !self.late.is_empty()
    }

    fn has(&self, owner: LockOwner) -> bool {
        self.doubtful.contains(&owner) || self.list.has(OWN, owner)
    }

    /// Whether a release of everything that an owner has would now really be one.
    pub(super) fn is_releasable(&self, owner: LockOwner) -> bool {
        !self.returning && !self.has_request_of(owner)
    }

    fn is_idle(&self) -> bool {
        let busy = self.returning || self.has_requests();
        !busy && self.releasing.is_empty() && self.doubtful.is_empty() && self.list.is_empty()
    }
}

impl State {
    /// What is known of an inode; [`State::tidy`] forgets it if that is nothing.
    pub(super) fn file(&mut self, ino: InodeId) -> &mut File {
        self.files.entry(ino).or_default()
    }

    pub(super) fn is_delegated(&self, ino: InodeId) -> bool {
        let file = self.files.get(&ino);
        file.is_some_and(|file| file.delegated && !file.returning)
    }

    /// Whether the locks of an inode are delegated, even if they are being given back.
    pub(super) fn decides(&self, ino: InodeId) -> bool {
        self.files.get(&ino).is_some_and(|file| file.delegated)
    }

    /// Whether an owner may have locks.
    pub(super) fn has(&self, ino: InodeId, owner: LockOwner) -> bool {
        self.files.get(&ino).is_some_and(|file| file.has(owner))
    }

    pub(super) fn may_have_in(
        &self,
        ino: InodeId,
        owner: LockOwner,
        first: u64,
        last: u64,
    ) -> bool {
        self.files.get(&ino).is_some_and(|file| {
            file.doubtful.contains(&owner) || file.list.has_in(OWN, owner, first, last)
        })
    }

    /// The lock of another caller here that prevents one.
    pub(super) fn conflict_here(&mut self, ino: InodeId, lock: Lock) -> Option<Lock> {
        let file = self.files.get(&ino)?;
        let mut held = file.list.conflicts(OWN, lock);
        held.next().map(|held| held.lock)
    }

    /// Locks what this client decides on.
    pub(super) fn lock_here(&mut self, ino: InodeId, handle: u64, lock: Lock) -> FsResult<Tried> {
        if self.file(ino).list.try_lock(OWN, lock)?.is_some() {
            // What flock would have converted is gone.
            self.forget_handles(ino, lock.owner);
            return Ok(Tried::HeldHere);
        }
        self.file(ino).used = now();
        self.note_handle(ino, handle, lock.owner);
        Ok(Tried::Done)
    }

    /// The leader has granted a lock.
    pub(super) fn locked(&mut self, ino: InodeId, handle: u64, lock: Lock) {
        self.file(ino).list.put(OWN, lock);
        self.note_handle(ino, handle, lock.owner);
    }

    /// The leader has refused a lock: what flock would have converted is gone.
    pub(super) fn converted_in_vain(&mut self, ino: InodeId, lock: Lock) {
        if lock.owner.space == LockSpace::File {
            let list = &mut self.file(ino).list;
            if list.has_other_kind(OWN, lock) {
                // Nothing is split by that.
                list.unlock(OWN, lock.owner, 0, u64::MAX).ok();
                self.forget_handles(ino, lock.owner);
            }
        }
    }

    /// An owner has no locks in a range any more.
    pub(super) fn unlocked(
        &mut self,
        ino: InodeId,
        owner: LockOwner,
        first: u64,
        last: u64,
    ) -> FsResult<()> {
        let file = self.file(ino);
        file.used = now();
        let result = file.list.unlock(OWN, owner, first, last);
        self.forget_handles(ino, owner);
        self.tidy(ino);
        result
    }

    /// The outcome of a lock of an owner is not known.
    pub(super) fn doubt(&mut self, ino: InodeId, handle: u64, owner: LockOwner) {
        self.file(ino).doubtful.insert(owner);
        self.note_handle(ino, handle, owner);
    }

    fn note_handle(&mut self, ino: InodeId, handle: u64, owner: LockOwner) {
        let through = self.file(ino).through.entry(owner).or_default();
        if through.insert(handle) {
            self.handles.entry(handle).or_default().insert((ino, owner));
        }
    }

    /// Forgets through which open files an owner has locked, if it has nothing any more: what it locks from now on does not
    /// end with those.
    fn forget_handles(&mut self, ino: InodeId, owner: LockOwner) {
        if self.has(ino, owner) {
            return;
        }
        for handle in self.file(ino).through.remove(&owner).unwrap_or_default() {
            if let Some(owners) = self.handles.get_mut(&handle) {
                owners.remove(&(ino, owner));
                if owners.is_empty() {
                    self.handles.remove(&handle);
                }
            }
        }
    }

    /// Whose locks end with an open file: an open file description's own, which is locked through no other one, and those
    /// that a process left that did not close its last one. A process that lives may share this one with others, and have
    /// the inode open once more; when it closed this one, that has ended its locks already.
    pub(super) fn take_handle(&mut self, handle: u64) -> Vec<(InodeId, LockOwner)> {
        let owners = self.handles.remove(&handle).unwrap_or_default();
        let mut ended = Vec::new();
        for (ino, owner) in owners {
            let through = &mut self.file(ino).through;
            if let Some(handles) = through.get_mut(&owner)
                && handles.remove(&handle)
                && handles.is_empty()
            {
                through.remove(&owner);
                ended.push((ino, owner));
            }
            self.tidy(ino);
        }
        ended
    }

    /// An owner's locks begin to be released. `false`: there are none, or they are already.
    pub(super) fn begin_release(&mut self, ino: InodeId, owner: LockOwner) -> bool {
        let Some(file) = self.files.get_mut(&ino) else {
            return false;
        };
        file.has(owner) && file.releasing.insert(owner)
    }

    pub(super) fn is_releasing(&self, ino: InodeId, owner: LockOwner) -> bool {
        let file = self.files.get(&ino);
        file.is_some_and(|file| file.releasing.contains(&owner))
    }

    /// An owner's locks are gone.
    pub(super) fn released(&mut self, ino: InodeId, owner: LockOwner) {
        let file = self.file(ino);
        file.used = now();
        file.releasing.remove(&owner);
        file.doubtful.remove(&owner);
        // Nothing is split by that.
        file.list.unlock(OWN, owner, 0, u64::MAX).ok();
        self.forget_handles(ino, owner);
        self.tidy(ino);
    }

    /// The account of an inode is this client's. Others that are not in use go, if there are many.
    pub(super) fn delegated(&mut self, ino: InodeId) {
        self.file(ino).delegated = true;
        if self.files.len() > FILES_MAX && self.recalls.len() < FILES_MAX {
            let mut idle = self.files.iter();
            let idle =
                idle.find(|(other, file)| **other != ino && file.delegated && file.is_idle());
            let idle = idle.map(|(other, _)| *other);
            self.recalls.extend(idle);
        }
    }

    /// Has inodes given back in which nothing was locked for a while.
    pub(super) fn give_idle_back(&mut self, now: Duration) {
        if now.saturating_sub(self.looked) < IDLE_LOOK {
            return;
        }
        self.looked = now;
        let idle = self.files.iter().filter(|(_, file)| {
            file.delegated && file.is_idle() && now.saturating_sub(file.used) >= IDLE_MAX
        });
        self.recalls.extend(idle.map(|(ino, _)| *ino));
    }

    /// What is to be told of the locks of an inode that are given back.
    pub(super) fn all_of(&self, ino: InodeId) -> Vec<Lock> {
        let file = self.files.get(&ino);
        let held = file.into_iter().flat_map(|file| file.list.iter());
        held.map(|held| held.lock).collect()
    }

    /// Others lock an inode too.
    pub(super) fn contended(&mut self, ino: InodeId, now: Duration) {
        if self.contended.len() >= CONTENDED_MAX {
            self.contended.retain(|_, until| *until > now);
        }
        if self.contended.len() < CONTENDED_MAX {
            self.contended.insert(ino, now + CONTENDED);
        }
    }

    /// The locks of an inode are to be given back, since another client or caller wants some. Says whether that is new.
    pub(super) fn recall(&mut self, ino: InodeId) -> bool {
        self.contended(ino, now());
        let is_new = !self.recalls.contains(&ino);
        if is_new {
            self.recalls.push_back(ino);
        }
        is_new
    }

    pub(super) fn is_contended(&self, ino: InodeId, now: Duration) -> bool {
        self.contended.get(&ino).is_some_and(|until| *until > now)
    }

    /// Forgets an inode of which nothing is known.
    pub(super) fn tidy(&mut self, ino: InodeId) {
        let file = self.files.get(&ino);
        if file.is_some_and(|file| !file.delegated && file.is_idle() && file.through.is_empty()) {
            self.files.remove(&ino);
        }
    }

    /// The session has ended, and all locks with it: on which inodes there were some.
    pub(super) fn forget_all(&mut self) -> Vec<InodeId> {
        self.epoch += 1;
        self.recalls.clear();
        self.releases.clear();
        self.handles.clear();
        let mut lost = Vec::new();
        for (ino, file) in &mut self.files {
            if !file.list.is_empty() {
                lost.push(*ino);
            }
            *file = File {
                returning: file.returning,
                busy: std::mem::take(&mut file.busy),
                late: std::mem::take(&mut file.late),
                ..File::default()
            };
        }
        self.files.retain(|_, file| !file.is_idle());
        lost
    }
}

impl Locks {
    /// A request of an owner is over, or its caller has given up.
    pub(super) fn step_over(&self, state: &mut State, ino: InodeId, owner: LockOwner) {
        state.file(ino).busy.remove(&owner);
        state.tidy(ino);
        self.changed.notify_all();
    }

    /// The caller of an owner's request has given up, and will say so by `step_over`.
    pub(crate) fn left(&self, ino: InodeId, owner: LockOwner) {
        self.state.lock().file(ino).late.insert(owner);
    }

    /// A request whose caller had given up is over; `answer` if it was one to lock. If the locks of the inode were delegated
    /// by that, nobody here knows: they are given back, or others would have to wait for that some day.
    pub(crate) fn finished(&self, ino: InodeId, owner: LockOwner, answer: Option<LockAnswer>) {
        let mut state = self.state.lock();
        let file = state.file(ino);
        file.late.remove(&owner);
        let is_news = answer == Some(LockAnswer::Delegated) && !file.delegated;
        if is_news && !state.recalls.contains(&ino) {
            state.recalls.push_back(ino);
        }
        state.tidy(ino);
        self.changed.notify_all();
    }

    /// Another client wants to lock these inodes.
    pub(crate) fn recall(&self, inodes: &[u64]) {
        if inodes.is_empty() {
            return;
        }
        let mut state = self.state.lock();
        for ino in inodes.iter().map(|ino| InodeId(*ino)) {
            state.recall(ino);
        }
        self.changed.notify_all();
    }

    /// The session has ended: on which inodes there were locks.
    pub(crate) fn forget_all(&self) -> Vec<InodeId> {
        let lost = self.state.lock().forget_all();
        self.changed.notify_all();
        lost
    }

    /// Has all threads look whether they should end.
    pub(crate) fn wake(&self) {
        let _state = self.state.lock();
        self.changed.notify_all();
    }
}

/// The right to keep a connection to the leader busy while waiting.
pub(super) struct Slot<'a>(&'a Locks);

impl<'a> Slot<'a> {
    pub(super) fn take(locks: &'a Locks) -> Option<Self> {
        let mut taken = locks.slots.lock();
        (*taken < SLOTS).then(|| {
            *taken += 1;
            Self(locks)
        })
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        *self.0.slots.lock() -= 1;
    }
}

/// Whether a failed request may have had its effect, or may have it yet.
pub(super) fn is_open(code: Code) -> bool {
    matches!(
        code,
        Code::Interrupted | Code::Unavailable | Code::Timeout | Code::Io
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use lumeofs_meta::locks::LockKind;

    const INO: InodeId = InodeId(7);

    fn lock(id: u64, byte: u64) -> Lock {
        let space = LockSpace::Range;
        Lock {
            owner: LockOwner { space, id },
            pid: 1,
            kind: LockKind::Exclusive,
            first: byte,
            last: byte,
        }
    }

    fn lock_here(state: &mut State, handle: u64, lock: Lock) {
        let tried = state.lock_here(INO, handle, lock);
        assert!(matches!(tried, Ok(Tried::Done)));
    }

    #[test]
    fn locks_of_a_process_do_not_end_with_an_open_file_that_it_left_to_another() {
        let mut state = State::default();
        state.delegated(INO);
        let owner = lock(1, 0).owner;
        lock_here(&mut state, 10, lock(1, 0));
        state.unlocked(INO, owner, 0, u64::MAX).unwrap();
        lock_here(&mut state, 11, lock(1, 1));
        assert!(state.take_handle(10).is_empty());
        assert!(state.has(INO, owner));
        // Nor if it has locked through both.
        lock_here(&mut state, 12, lock(1, 2));
        assert!(state.take_handle(11).is_empty());
        assert_eq!(state.take_handle(12), [(INO, owner)]);
        state.released(INO, owner);
        assert!(state.handles.is_empty() && !state.has(INO, owner));
    }

    #[test]
    fn an_owner_begins_nothing_before_what_it_gave_up_is_over_and_others_do() {
        let locks = Locks::default();
        let (owner, other) = (lock(1, 0).owner, lock(2, 0).owner);
        let moving = |owner| locks.state.lock().file(INO).is_moving(owner);
        locks.state.lock().file(INO).busy.insert(owner);
        assert!(moving(owner) && !moving(other));
        locks.left(INO, owner);
        locks.step_over(&mut locks.state.lock(), INO, owner);
        assert!(moving(owner) && !moving(other));
        // Nor under another session: that it is not taken there must be heard first.
        locks.forget_all();
        assert!(moving(owner) && locks.state.lock().file(INO).has_requests());
        assert!(!locks.state.lock().file(INO).is_releasable(owner));
        locks.finished(INO, owner, Some(LockAnswer::Done));
        assert!(!moving(owner) && !locks.state.lock().file(INO).has_requests());
        assert!(locks.state.lock().recalls.is_empty());
        // What was delegated without anybody's knowledge is given back.
        locks.left(INO, owner);
        locks.finished(INO, owner, Some(LockAnswer::Delegated));
        assert_eq!(locks.state.lock().recalls, [INO]);
    }

    #[test]
    fn what_may_have_been_locked_ends_with_its_open_file() {
        let mut state = State::default();
        let owner = lock(1, 0).owner;
        state.doubt(INO, 10, owner);
        state.unlocked(INO, owner, 0, 9).unwrap();
        assert_eq!(state.take_handle(10), [(INO, owner)]);
        assert!(state.begin_release(INO, owner) && !state.begin_release(INO, owner));
        state.released(INO, owner);
        assert!(state.files.is_empty() && state.handles.is_empty());
    }
}
