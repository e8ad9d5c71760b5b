//! What is made in memory: told to the leader a little later, with one request at a time.

use super::plans::touches;
use super::{Then, World};
use crate::calls::Tell;
use crate::history::caller;
use crate::world::MountEvent;
use lumeofs_base::{Attr, FileKind, InodeId};
use lumeofs_lease::{Cached, Told};
use lumeofs_meta::op::{Mutation, NewObject, Outcome, Reply, Step};
use std::collections::{BTreeMap, VecDeque};

/// Numbers that are reserved at once.
const RESERVED: u32 = 8;
/// With fewer left others are.
const NUMBERS_LOW: usize = 4;

/// What a mount needs to make something.
#[derive(Debug, Default)]
pub(super) struct Making {
    numbers: VecDeque<InodeId>,
    is_reserving: bool,
    is_telling: bool,
    /// What was made and not told.
    pub(super) made: BTreeMap<InodeId, FileKind>,
    /// The directory that this mount made last.
    pub(super) home: Option<InodeId>,
}

impl Making {
    pub(super) fn is_made(&mut self, attr: &Attr) {
        if attr.kind == FileKind::Directory {
            self.home = Some(attr.ino);
        }
    }
}

impl World {
    pub(super) fn reserve(&mut self, mount: usize) {
        let making = &mut self.mounts[mount].making;
        if making.numbers.len() < NUMBERS_LOW && !std::mem::replace(&mut making.is_reserving, true)
        {
            let reserve = Mutation::Reserve {
                near: InodeId::ROOT,
                count: RESERVED,
            };
            self.mutate(mount, reserve, Then::Reserved);
        }
    }

    pub(super) fn reserved(&mut self, mount: usize, outcome: &Outcome) {
        let Ok(Reply::Reserved { first, count }) = outcome else {
            panic!("{outcome:?}");
        };
        let making = &mut self.mounts[mount].making;
        making.is_reserving = false;
        let numbers = first.0..first.0 + u64::from(*count);
        making.numbers.extend(numbers.map(InodeId));
    }

    /// Makes something in memory, if the leases allow it.
    pub(super) fn make(&mut self, mount: usize, mutation: &Mutation) -> bool {
        let Mutation::Create {
            parent,
            name,
            node,
            mode,
            ..
        } = mutation
        else {
            return false;
        };
        let (now, time) = (self.mount_clock(mount), self.unique_time());
        let state = &mut self.mounts[mount];
        let mut object = None;
        let attr = state.holder.make(now, (*parent, name), |earliest| {
            object = Some(NewObject {
                ino: state.making.numbers.pop_front()?,
                parent: *parent,
                name: name.clone(),
                node: node.clone(),
                mode: *mode,
                uid: 0,
                gid: 0,
                time: time.max(earliest),
            });
            object.clone()
        });
        if let (Some(attr), Some(object)) = (&attr, object) {
            let Cached::Is(dir) = state.holder.attr(now, *parent) else {
                panic!("mount {mount} has made something in {parent}, of which it knows nothing");
            };
            let session = state.session.expect("it has leases");
            state.making.made.insert(attr.ino, attr.kind);
            state.making.is_made(attr);
            let is_first = state.holder.made_count() == 1;
            self.counts.made += 1;
            self.trace(|| format!("mount {mount} makes {object:?}"));
            self.history.made(self.now, session, &object, (attr, &dir));
            if is_first {
                self.tell_soon(mount);
            }
        }
        self.reserve(mount);
        attr.is_some()
    }

    /// Sets attributes in memory, if the leases allow it.
    pub(super) fn set_ahead(&mut self, mount: usize, mutation: &Mutation) -> bool {
        let Mutation::SetAttr { ino, set } = mutation else {
            return false;
        };
        let (now, time) = (self.mount_clock(mount), self.unique_time());
        let state = &mut self.mounts[mount];
        let Some(attr) = state.holder.set(now, *ino, &caller(), set, time) else {
            return false;
        };
        let session = state.session.expect("it has leases");
        let is_first = state.holder.made_count() == 1;
        self.counts.set_ahead += 1;
        self.trace(|| format!("mount {mount} sets {attr:?}"));
        self.history.set(self.now, session, &attr);
        if is_first {
            self.tell_soon(mount);
        }
        true
    }

    fn tell_soon(&mut self, mount: usize) {
        let late = if self.rng.percent(15) {
            3_000_000
        } else {
            20_000
        };
        self.mount_after(mount, 1_000, late, MountEvent::Tell);
    }

    pub(super) fn tell_made(&mut self, mount: usize) {
        let count_max = 1 + self.rng.below(6) as usize;
        let state = &mut self.mounts[mount];
        let has_news = state.session.is_some() && state.holder.made_count() > 0;
        if has_news && !std::mem::replace(&mut state.making.is_telling, true) {
            let steps = state.holder.take_made(count_max, 1 << 10);
            self.mutate(mount, Mutation::Make { steps }, Then::Told);
        }
    }

    /// Takes what the leader says to what it was told.
    pub(super) fn told(&mut self, mount: usize, sequence: u64, steps: &[Step], tell: &Tell) {
        let Tell::Done {
            outcome,
            generation,
            number,
            changes,
            grants,
            repeated,
        } = tell
        else {
            return;
        };
        let Ok(Reply::Made(outcomes)) = outcome else {
            panic!("{steps:?}: {outcome:?}");
        };
        let is_done: Vec<bool> = outcomes.iter().map(Result::is_ok).collect();
        assert!(
            !is_done.contains(&false),
            "mount {mount} has done {steps:?}: {outcomes:?}"
        );
        let now = self.mount_clock(mount);
        let state = &mut self.mounts[mount];
        state.outstanding.remove(&sequence);
        state.making.is_telling = false;
        for step in steps {
            if let Step::Make(object) = step {
                state.making.made.remove(&object.ino);
            }
        }
        let told = Told {
            generation: *generation,
            number: *number,
            is_done: &is_done,
            changes: (!repeated).then_some(changes),
            grants,
        };
        state.holder.told(now, &told);
        self.counts.told += steps.len();
        self.run_acts(mount);
        if self.mounts[mount].holder.made_count() > 0 {
            self.tell_soon(mount);
        }
    }

    pub(super) fn is_ahead(&self, mount: usize, ino: InodeId) -> bool {
        self.mounts[mount].holder.is_ahead_in(ino)
    }

    /// Whether the leader must know first what a mutation is about.
    pub(super) fn is_ahead_of(&self, mount: usize, mutation: &Mutation) -> bool {
        let holder = &self.mounts[mount].holder;
        let mut touches = touches(mutation).into_iter();
        touches.any(|touch| holder.is_ahead_of(&touch))
    }
}
