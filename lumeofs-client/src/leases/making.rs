//! What is made in memory, under the exclusive lease of its directory: the leader is told soon after, of many objects at once.
//!
//! The numbers of new inodes are reserved ahead. Whoever asks the leader about an inode that it does not know yet, or about a
//! directory in which something was made since, waits until it was told.

use super::answers::Answer;
use super::{Leases, State};
use crate::link::{Asker, Link};
use crate::meta::unexpected;
use crate::wait::{Patience, SLICE, now};
use lumeofs_base::clock::{Clock as _, SystemClock};
use lumeofs_base::limits::{INODES_RESERVED_MAX, LEAVE_PATIENCE, SYMLINK_LEN_BYTES_MAX};
use lumeofs_base::{Attr, Code, FileKind, FsError, FsResult, InodeId, SessionId, SlotId};
use lumeofs_lease::{Holder, Told};
use lumeofs_meta::attributes;
use lumeofs_meta::change::Change;
use lumeofs_meta::made;
use lumeofs_meta::op::{CreateMode, Mutation, NewNode, NewObject, Reply, SetAttr, Step};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

/// How long steps are gathered.
const GATHER: Duration = Duration::from_millis(10);
/// Steps that are told at once.
const TOLD_MAX: usize = 128;
/// Bytes of their names and targets.
const TOLD_BYTES_MAX: usize = 64 << 10;
/// With fewer numbers left others are reserved.
const NUMBERS_LOW: u64 = 2048;
/// Steps that are named in the log when they are lost.
const NAMED_MAX: usize = 100;
/// How long the leader may take to reserve numbers, as what is made meanwhile waits for the same thread.
const RESERVE_LIMIT: Duration = Duration::from_secs(1);
/// Pause after the leader refused to reserve numbers.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// Numbers that are reserved for inodes of this client.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    free: BTreeMap<SlotId, VecDeque<Range<u64>>>,
    /// In whose slots others are to be reserved.
    wanted: VecDeque<InodeId>,
    /// They are asked for from then on.
    not_before: Duration,
    /// Reservations that nobody waits for any more and that may still be made. With more of them than a few the state
    /// machine would give up what is being used here.
    late: usize,
}

impl Numbers {
    /// The next one in the slot of an inode.
    fn take(&mut self, near: InodeId) -> Option<InodeId> {
        let free = self.free.entry(near.slot()).or_default();
        let left: u64 = free.iter().map(|range| range.end - range.start).sum();
        let is_wanted = |other: &InodeId| other.slot() == near.slot();
        if left < NUMBERS_LOW && !self.wanted.iter().any(is_wanted) {
            self.wanted.push_back(near);
        }
        let range = free.front_mut()?;
        let number = range.start;
        range.start += 1;
        if range.is_empty() {
            free.pop_front();
        }
        Some(InodeId(number))
    }

    fn give(&mut self, first: InodeId, count: u32) {
        let range = first.0..first.0 + u64::from(count);
        self.free.entry(first.slot()).or_default().push_back(range);
    }

    /// In whose slot others are to be reserved now, if anywhere.
    fn due(&self, now: Duration) -> Option<InodeId> {
        let may = self.late == 0 && now >= self.not_before;
        self.wanted.front().copied().filter(|_| may)
    }

    /// A reservation goes on without who asked for it.
    pub(super) fn left(&mut self) {
        self.late += 1;
    }

    /// That has ended.
    pub(super) fn came_late(&mut self, reserved: Option<(InodeId, u32)>) {
        self.late = self.late.saturating_sub(1);
        if let Some((first, count)) = reserved {
            self.give(first, count);
        }
    }

    /// Nothing more is made with those that there are.
    fn give_up(&mut self) {
        self.free.clear();
        self.wanted.clear();
    }
}

/// What is to be done for those who make something.
enum Task {
    Reserve(InodeId),
    Tell(SessionId, Vec<Step>),
}

impl Leases {
    /// Something was done that the leader is to be told.
    fn gather(&self, state: &mut State, now: Duration) {
        let count = state.holder.made_count();
        if count == 1 {
            state.made_since = now;
        }
        if count == 1 || count >= TOLD_MAX {
            self.made.notify_one();
        }
    }

    /// Somebody waits until the leader was told.
    fn hurry(&self, state: &mut State) {
        if !std::mem::replace(&mut state.is_hurried, true) {
            self.made.notify_one();
        }
    }
}

impl Link {
    /// Makes something in memory, if the directory's lease allows it.
    pub(crate) fn make(
        &self,
        asker: &Asker<'_>,
        parent: InodeId,
        name: &[u8],
        node: &NewNode,
        mode: CreateMode,
    ) -> Option<Attr> {
        let is_plain = match node {
            NewNode::Regular | NewNode::Directory => true,
            NewNode::Symlink(target) => {
                !target.is_empty() && target.len() <= SYMLINK_LEN_BYTES_MAX && !target.contains(&0)
            }
            NewNode::Special(..) => false,
        };
        let may = asker.caller.trusted && !self.dirsync;
        if !may || !is_plain || made::check_name(name).is_err() {
            return None;
        }
        let now = now();
        self.with_leases(|state| {
            if state.told_waiters > 0 {
                return None;
            }
            let State {
                holder, numbers, ..
            } = &mut *state;
            let give = |earliest| {
                Some(NewObject {
                    ino: numbers.take(parent)?,
                    parent,
                    name: name.to_vec(),
                    node: node.clone(),
                    mode,
                    uid: asker.caller.uid,
                    gid: asker.caller.gid,
                    time: SystemClock.wall().max(earliest),
                })
            };
            let made = holder.make(now, (parent, name), give);
            if let Some(attr) = &made
                && attr.kind == FileKind::Regular
            {
                let is_open = (self.opens).enter_silently(attr.ino, || holder.open(now, attr.ino));
                debug_assert!(is_open, "the lease on a new file stands for its open");
            }
            if made.is_some() {
                self.leases.gather(state, now);
            }
            if !state.numbers.wanted.is_empty() {
                self.leases.made.notify_one();
            }
            made
        })
    }

    /// Sets attributes in memory, of something that is no regular file, if its lease allows it.
    pub(crate) fn set_ahead(&self, asker: &Asker<'_>, ino: InodeId, set: &SetAttr) -> Option<Attr> {
        let may = asker.caller.trusted && !self.dirsync;
        if !may || attributes::check_times(set).is_err() {
            return None;
        }
        let now = now();
        self.with_leases(|state| {
            if state.told_waiters > 0 {
                return None;
            }
            let time = SystemClock.wall();
            let attr = state.holder.set(now, ino, asker.caller, set, time)?;
            self.leases.gather(state, now);
            Some(attr)
        })
    }

    /// Waits until the leader knows an inode, and what was made in it.
    pub(crate) fn wait_told(&self, asker: &Asker<'_>, ino: InodeId) -> FsResult<()> {
        self.when_told(&asker.patience, |holder| holder.is_ahead_in(ino), |_| ())
    }

    /// Does something at a moment when the leader knows what matters to it.
    pub(super) fn when_told<T>(
        &self,
        patience: &Patience<'_>,
        is_ahead: impl Fn(&Holder) -> bool,
        run: impl FnOnce(&mut Holder) -> T,
    ) -> FsResult<T> {
        let mut state = self.leases.state.lock();
        while is_ahead(&state.holder) {
            self.leases.hurry(&mut state);
            state.told_waiters += 1;
            let waited = patience.wait(&self.leases.changed, &mut state);
            state.told_waiters -= 1;
            waited?;
        }
        Ok(run(&mut state.holder))
    }

    /// At the end of the client: whether the leader knows everything, or nothing moves any more.
    pub(crate) fn tell_before_close(&self) -> FsResult<()> {
        let patience = Patience::background(&self.halt, Some(LEAVE_PATIENCE)).fixed();
        let mut state = self.leases.state.lock();
        // From now on all is made at the leader.
        state.told_waiters += 1;
        while state.holder.has_made() {
            self.leases.hurry(&mut state);
            if patience.wait(&self.leases.changed, &mut state).is_err() {
                drop(state);
                let lost = self.with_leases(|state| state.holder.give_up_made());
                let what = format!(
                    "{} new objects or attributes could not be told to a master",
                    lost.len()
                );
                let error = FsError::new(Code::Io, what);
                self.refused(&lost, &error);
                // Threads that wait for it have other files to publish.
                self.leases.changed.notify_all();
                return Err(error);
            }
        }
        Ok(())
    }

    /// The background thread that tells the leader.
    pub(crate) fn keep_telling(&self) {
        while let Some(task) = self.next_task() {
            match task {
                Task::Reserve(near) => self.reserve(near),
                Task::Tell(session, steps) => self.tell(session, steps),
            }
        }
    }

    fn next_task(&self) -> Option<Task> {
        let mut state = self.leases.state.lock();
        loop {
            if self.halt.is_halted() {
                return None;
            }
            let (now, count) = (now(), state.holder.made_count());
            let due = state.made_since + GATHER;
            if count >= TOLD_MAX || (count > 0 && (state.is_hurried || now >= due)) {
                state.is_hurried = false;
                let steps = state.holder.take_made(TOLD_MAX, TOLD_BYTES_MAX);
                // The rest has waited as long.
                return Some(Task::Tell(state.session, steps));
            }
            // Numbers are asked for well before they are needed: what was made comes first.
            if let Some(near) = state.numbers.due(now) {
                return Some(Task::Reserve(near));
            }
            let wait = match count {
                0 => SLICE * 10,
                _ => due.saturating_sub(now),
            };
            self.leases.made.wait_for(&mut state, wait);
            if state.holder.has_made_lately() {
                state.holder.relax(self::now());
            }
        }
    }

    fn reserve(&self, near: InodeId) {
        let patience = Patience::background(&self.halt, Some(RESERVE_LIMIT)).fixed();
        let asker = Asker::background(patience);
        let mutation = Mutation::Reserve {
            near,
            count: INODES_RESERVED_MAX,
        };
        let session = self.window.session();
        asker.bound.set(Some(session));
        let reserved = match self.mutate(&asker, near, &mutation) {
            Ok(Reply::Reserved { first, count }) => Ok((first, count)),
            Ok(other) => Err(unexpected(&other)),
            Err(error) => Err(error),
        };
        if let Err(error) = &reserved {
            tracing::debug!(%error, "numbers of inodes are not reserved");
        }
        let state = &mut *self.leases.state.lock();
        state.numbers.wanted.pop_front();
        if reserved.is_err() {
            state.numbers.not_before = now() + REFUSED_PAUSE;
        }
        if let Ok((first, count)) = reserved
            && state.session == session
        {
            state.numbers.give(first, count);
        }
    }

    fn tell(&self, session: SessionId, steps: Vec<Step>) {
        let asker = Asker::background(Patience::background(&self.halt, None));
        asker.bound.set(Some(session));
        let mutation = Mutation::Make { steps };
        let told = self.mutate(&asker, InodeId::ROOT, &mutation);
        let Mutation::Make { steps } = mutation else {
            unreachable!("it was made just above");
        };
        if let Err(error) = told
            && !self.halt.is_halted()
        {
            // Nothing of it was done, and it would be refused again.
            let is_current = self.with_leases(|state| {
                if state.session != session {
                    return false;
                }
                let told = Told {
                    generation: state.holder.generation(),
                    number: 0,
                    is_done: &vec![false; steps.len()],
                    changes: None,
                    grants: &[],
                };
                state.holder.told(now(), &told);
                true
            });
            if is_current {
                self.refused(&steps, &error);
            }
        }
        self.leases.changed.notify_all();
    }

    /// Takes what the leader said to what was done here under a session.
    pub(crate) fn made_known(&self, session: SessionId, steps: &[Step], answer: &Answer) {
        let Ok(Reply::Made(outcomes)) = &answer.outcome else {
            return;
        };
        self.leases.counters.made(steps.len());
        let is_done: Vec<bool> = outcomes.iter().map(Result::is_ok).collect();
        let era = self.era();
        let is_current = self.with_leases(|state| {
            if state.session != session {
                return false;
            }
            let told = Told {
                generation: answer.generation,
                number: answer.number,
                is_done: &is_done,
                changes: answer.changes.as_deref(),
                grants: &answer.grants,
            };
            state.holder.told(now(), &told);
            if answer.is_short {
                // What comes next asks the leader, which refuses it.
                state.numbers.give_up();
            }
            for (step, outcome) in steps.iter().zip(outcomes) {
                let Step::Make(object) = step else {
                    continue;
                };
                let made = answer
                    .changes
                    .iter()
                    .flatten()
                    .find_map(|change| match change {
                        Change::Attr(attr) if attr.ino == object.ino => Some(attr),
                        _ => None,
                    });
                if let (Ok(Some(chunk)), Some(attr)) = (outcome, made) {
                    self.inodes
                        .get(object.ino)
                        .learn_chunks(attr, &[*chunk], era);
                }
            }
            true
        });
        if !is_current {
            return;
        }
        for (step, outcome) in steps.iter().zip(outcomes) {
            if let Err(error) = outcome {
                self.refused(std::slice::from_ref(step), error);
            }
        }
    }

    /// What callers believe to have done is not so.
    fn refused(&self, steps: &[Step], error: &FsError) {
        self.note_lost(steps);
        for object in steps.iter().filter_map(made_by) {
            if let Some(file) = self.pages.find(object.ino) {
                file.drop_all();
            }
        }
        self.fail(steps, error);
    }

    /// Whoever syncs what these steps were about, or the directory that they were done in, hears of it once.
    fn fail(&self, steps: &[Step], error: &FsError) {
        let made = steps.iter().filter_map(made_by).map(|object| object.ino);
        for ino in steps.iter().map(Step::ino).chain(made) {
            self.inodes.get(ino).fail(error.clone());
        }
    }

    fn note_lost(&self, steps: &[Step]) {
        for step in steps.iter().take(NAMED_MAX) {
            match step {
                Step::Make(NewObject {
                    ino, parent, name, ..
                }) => {
                    let name = String::from_utf8_lossy(name);
                    tracing::error!(%ino, %parent, %name, "what was made here is lost: no master knows it");
                }
                Step::Set { ino, .. } => {
                    tracing::error!(%ino, "attributes that were set here are lost: no master knows them");
                }
            }
        }
    }

    /// The session has ended: what was made under it and no master knows is lost.
    pub(super) fn lose_made(&self, state: &mut State) {
        state.numbers = Numbers::default();
        let lost = state.holder.give_up_made();
        self.note_lost(&lost);
        let what = "what was made under a session that has ended";
        self.fail(&lost, &FsError::new(Code::Io, what));
    }
}

fn made_by(step: &Step) -> Option<&NewObject> {
    match step {
        Step::Make(object) => Some(object),
        Step::Set { .. } => None,
    }
}
