//! Operations of the mount's callers: from memory if a lease allows it, else by asking.

use super::plans::{Plan, touches};
use super::{Then, World};
use crate::bugs::Bug;
use crate::calls::Ask;
use crate::history::{Object, Register, Value, number_of, page, strip};
use crate::world::{MountEvent, OPS_UNTIL};
use lumeofs_base::{Attr, InodeId, SessionId};
use lumeofs_lease::{Cached, Kind, Want, WriteRight};
use lumeofs_meta::op::{DirEntry, Mutation, Query, SetTime};
use std::time::Duration;

/// One that is under way.
#[derive(Debug)]
pub(crate) struct Op {
    pub(super) plan: Plan,
    pub(super) began: Duration,
    pub(super) stage: Stage,
    /// Epoch of the file's data when it was asked for.
    pub(super) epoch: Option<u64>,
    /// Of the mutation that it sent.
    pub(super) sequence: Option<u64>,
    /// It has asked for a right to write.
    pub(super) has_asked: bool,
    /// What it will return.
    result: Vec<Seen>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Begin,
    /// A buffered write has begun; the file is so long.
    Buffered(u64),
    /// It may be read at the datanode.
    Uncached,
    Done,
}

/// Something that an operation has seen.
#[derive(Clone, Debug)]
pub(super) enum Seen {
    Name(InodeId, Vec<u8>, Option<InodeId>),
    Attr(Attr),
    Missing(InodeId),
    Page(InodeId, u64, usize, Vec<DirEntry>, bool),
    Xattr(InodeId, Option<Vec<u8>>),
    Block(InodeId, u8, Option<u64>),
}

impl World {
    pub(super) fn new_op(&mut self, mount: usize) {
        if self.now >= OPS_UNTIL {
            return;
        }
        if self.mounts[mount].session.is_none() {
            return self.mount_after(mount, 50_000, 60_000, MountEvent::NewOp);
        }
        let plan = self.plan(mount);
        let (began, now) = (self.now, self.mount_clock(mount));
        let relaxes = self.rng.percent(5);
        let state = &mut self.mounts[mount];
        if relaxes {
            state.holder.relax(now);
        }
        state.next += 1;
        let id = state.next;
        state.ops.insert(
            id,
            Op {
                plan,
                began,
                stage: Stage::Begin,
                epoch: None,
                sequence: None,
                has_asked: false,
                result: Vec::new(),
            },
        );
        self.step(mount, id);
    }

    pub(super) fn again(&mut self, mount: usize, op: u64) {
        self.mount_after(mount, 3_000, 12_000, MountEvent::Step(op));
    }

    pub(super) fn ask(&mut self, mount: usize, op: u64, query: Query, want: Want) {
        if self.is_ahead(mount, asked(&query)) && self.bug != Some(Bug::MadeNotAwaited) {
            return self.again(mount, op);
        }
        self.ask_for(mount, Then::Op(op), query, want);
    }

    fn ask_for(&mut self, mount: usize, then: Then, query: Query, want: Want) {
        if let Some(session) = self.mounts[mount].session {
            let ask = Ask::Query {
                session,
                query,
                want,
            };
            self.call(mount, ask, then);
        }
    }

    /// Begins an operation, or goes on with it.
    pub(super) fn step(&mut self, mount: usize, id: u64) {
        let now = self.mount_clock(mount);
        let Some(op) = self.mounts[mount].ops.get(&id) else {
            return;
        };
        let plan = op.plan.clone();
        if op.stage == Stage::Begin
            && let Some(ino) = plan.locks()
            && !self.mounts[mount].locks.contains(&ino)
        {
            self.mounts[mount].locks.insert(ino);
            return self.begin_locked(mount, id, plan);
        }
        let holder = &mut self.mounts[mount].holder;
        match plan {
            Plan::Lookup { parent, name } => match holder.lookup(now, parent, &name) {
                Cached::Is(attr) => {
                    let seen = vec![Seen::Name(parent, name, Some(attr.ino)), Seen::Attr(attr)];
                    self.hit(mount, id, seen);
                }
                Cached::Absent => self.hit(mount, id, vec![Seen::Name(parent, name, None)]),
                Cached::Unknown => {
                    if !holder.is_ahead_in(parent)
                        && let Some(ahead) = holder.look_ahead(parent, &name)
                    {
                        let query = Query::ReadDir {
                            ino: parent,
                            cookie: ahead.after,
                            count_max: ahead.count as u32,
                            inodes_max: ahead.count as u32,
                        };
                        self.ask_for(mount, Then::Ahead, query, Want::Shared);
                    }
                    self.ask(mount, id, Query::Lookup { parent, name }, Want::Shared)
                }
            },
            Plan::Attr { ino } => match holder.attr(now, ino) {
                Cached::Is(attr) => self.hit(mount, id, vec![Seen::Attr(attr)]),
                _ => self.ask(mount, id, Query::GetAttr { ino }, Want::Shared),
            },
            Plan::List { dir, after, count } => match holder.listing(now, dir, after, count) {
                Cached::Is(list) => {
                    let seen = Seen::Page(dir, after, count, list.entries, list.more);
                    self.hit(mount, id, vec![seen]);
                }
                _ => {
                    let query = Query::ReadDir {
                        ino: dir,
                        cookie: after,
                        count_max: count as u32,
                        inodes_max: holder.listed_ahead() as u32,
                    };
                    self.ask(mount, id, query, Want::Shared);
                }
            },
            Plan::Xattr { ino } => match holder.xattr(now, ino, b"user.x") {
                Cached::Is(value) => self.hit(mount, id, vec![Seen::Xattr(ino, Some(value))]),
                Cached::Absent => self.hit(mount, id, vec![Seen::Xattr(ino, None)]),
                Cached::Unknown => {
                    let name = b"user.x".to_vec();
                    self.ask(mount, id, Query::GetXattr { ino, name }, Want::Shared);
                }
            },
            Plan::Mutate { mutation } => {
                if op_is_begin(&self.mounts[mount].ops[&id]) && plan_waits(&mutation) {
                    return self.again(mount, id);
                }
                self.begin_mutation(mount, id, mutation);
            }
            Plan::Read { ino, block } => self.step_read(mount, id, ino, block),
            Plan::Write { .. } if op_is_begin(&self.mounts[mount].ops[&id]) => {
                self.again(mount, id);
            }
            Plan::Write {
                ino,
                block,
                value,
                time,
            } => {
                if let Stage::Buffered(size) = self.mounts[mount].ops[&id].stage {
                    let size = size.max((u64::from(block) + 1) * 100);
                    self.buffer(mount, ino, block, value, (size, time));
                    self.mounts[mount].holder.end_write(ino);
                    self.complete(mount, id);
                } else {
                    self.step_write(mount, id, ino, block, value);
                }
            }
            Plan::Sync { ino } if self.is_ahead(mount, ino) => self.again(mount, id),
            Plan::Sync { ino } => match self.mounts[mount].is_dirty(ino) {
                true => {
                    self.flush(mount, ino);
                    self.again(mount, id);
                }
                false => self.complete(mount, id),
            },
        }
    }

    /// An operation that has its file for itself.
    fn begin_locked(&mut self, mount: usize, id: u64, mut plan: Plan) {
        if let Plan::Write { value, time, .. } = &mut plan {
            // The times of a mount's writes to a file are in their order.
            *time = self.unique_time();
            *value = number_of(*time);
        }
        let Some(session) = self.mounts[mount].session else {
            return;
        };
        let now = self.now;
        let state = &mut self.mounts[mount];
        let op = state.ops.get_mut(&id).expect("it is stepped");
        op.stage = Stage::Uncached;
        op.plan = plan.clone();
        match plan {
            Plan::Write {
                ino,
                block,
                value,
                time,
            } => {
                let register = Register::Block(ino, block);
                self.history.write_begins(now, register, value, session);
                let register = Register::Time(ino);
                self.history
                    .write_begins(now, register, number_of(time), session);
            }
            Plan::Mutate {
                mutation: Mutation::SetAttr { ino, set },
            } => {
                if let Some(SetTime::At(time)) = set.mtime {
                    let register = Register::Time(ino);
                    self.history
                        .write_begins(now, register, number_of(time), session);
                }
            }
            _ => {}
        }
        self.step(mount, id);
    }

    fn begin_mutation(&mut self, mount: usize, id: u64, mutation: Mutation) {
        if self.make(mount, &mutation) || self.set_ahead(mount, &mutation) {
            return self.complete(mount, id);
        }
        if self.is_ahead_of(mount, &mutation) {
            return self.again(mount, id);
        }
        if let Mutation::SetAttr { ino, .. } = mutation
            && self.mounts[mount].is_dirty(ino)
        {
            // What was written before comes first.
            self.flush(mount, ino);
            return self.again(mount, id);
        }
        if self.bug != Some(Bug::OwnChangesNotBusy) {
            self.mounts[mount].holder.begin_change(&touches(&mutation));
        }
        self.mutate(mount, mutation, Then::Op(id));
    }

    pub(super) fn mutate(&mut self, mount: usize, mutation: Mutation, then: Then) {
        let state = &mut self.mounts[mount];
        let Some(session) = state.session else {
            return;
        };
        state.sequence += 1;
        let sequence = state.sequence;
        state.outstanding.insert(sequence);
        if let Then::Op(id) = then
            && let Some(op) = state.ops.get_mut(&id)
        {
            op.sequence = Some(sequence);
        }
        let ask = Ask::Mutate {
            session,
            sequence,
            acked_below: 0,
            mutation,
        };
        self.call(mount, ask, then);
    }

    fn step_read(&mut self, mount: usize, id: u64, ino: InodeId, block: u8) {
        let now = self.mount_clock(mount);
        let state = &mut self.mounts[mount];
        let op = state.ops.get_mut(&id).expect("it is stepped");
        let file = state.files.entry(ino).or_default();
        let right = state.holder.caches_data(now, ino);
        if right.is_some() {
            if let Some((value, _)) = file.blocks.get(&block) {
                let value = *value;
                self.counts.data_hits += 1;
                return self.hit(mount, id, vec![Seen::Block(ino, block, value)]);
            }
            op.epoch = Some(file.epoch);
            return self.call(mount, Ask::Read { ino, block }, Then::Op(id));
        }
        if state.holder.is_writer(ino) {
            // It may be nowhere else.
            return self.again(mount, id);
        }
        if op.stage == Stage::Uncached {
            op.epoch = None;
            return self.call(mount, Ask::Read { ino, block }, Then::Op(id));
        }
        self.ask(mount, id, Query::GetAttr { ino }, Want::Data(ino));
    }

    fn step_write(&mut self, mount: usize, id: u64, ino: InodeId, block: u8, value: u64) {
        let now = self.mount_clock(mount);
        let Some(session) = self.mounts[mount].session else {
            return;
        };
        let state = &mut self.mounts[mount];
        match state.holder.begin_write(now, ino) {
            WriteRight::Buffered => {
                let Cached::Is(attr) = state.holder.attr(now, ino) else {
                    state.holder.end_write(ino);
                    return self.again(mount, id);
                };
                state.ops.get_mut(&id).expect("it is stepped").stage = Stage::Buffered(attr.size);
                self.mount_after(mount, 10, 3_000, MountEvent::Step(id));
            }
            WriteRight::Through => {
                self.counts.through += 1;
                let blocks = vec![(block, value)];
                let ask = Ask::Write {
                    session,
                    ino,
                    attempt: 0,
                    blocks,
                };
                self.call(mount, ask, Then::Op(id));
            }
            WriteRight::Ask => self.ask(mount, id, Query::GetAttr { ino }, Want::Write(ino)),
            WriteRight::Wait => self.again(mount, id),
        }
    }

    /// An answer from memory.
    fn hit(&mut self, mount: usize, id: u64, seen: Vec<Seen>) {
        self.counts.hits += 1;
        if let Some(ino) = seen.iter().find_map(|seen| match seen {
            Seen::Block(ino, ..) => Some(*ino),
            _ => None,
        }) {
            self.check_alone(mount, ino);
        }
        self.saw(mount, id, seen);
    }

    /// Whoever answers data from memory now is alone with it, or nobody writes.
    fn check_alone(&self, mount: usize, ino: InodeId) {
        for (other, state) in self
            .mounts
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != mount)
        {
            let is_live = state
                .session
                .is_some_and(|session| !self.data.is_fenced(session));
            assert!(
                !is_live || !state.is_dirty(ino) || !state.holder.is_writer(ino),
                "mount {mount} reads {ino} from memory while {other} writes in memory"
            );
        }
    }

    /// An operation knows what it will return; mostly it does so at once.
    pub(super) fn saw(&mut self, mount: usize, id: u64, seen: Vec<Seen>) {
        let op = self.mounts[mount].ops.get_mut(&id).expect("it is stepped");
        op.result = seen;
        op.stage = Stage::Done;
        if self.rng.percent(10) {
            return self.mount_after(mount, 100, 50_000, MountEvent::Complete(id));
        }
        self.complete(mount, id);
    }

    pub(super) fn complete(&mut self, mount: usize, id: u64) {
        let Some(op) = self.mounts[mount].ops.remove(&id) else {
            return;
        };
        self.counts.ops += 1;
        let session = self.mounts[mount]
            .session
            .expect("its operations end with it");
        let (began, now) = (op.began, self.now);
        self.trace(|| format!("mount {mount}: {:?} -> {:?}", op.plan, op.result));
        for seen in &op.result {
            self.judge((mount, session), began, seen);
        }
        if let Some(ino) = op.plan.locks() {
            self.mounts[mount].locks.remove(&ino);
        }
        if let Some(sequence) = op.sequence {
            self.history.acknowledged(now, session, sequence);
        }
        match op.plan {
            // It was not there.
            Plan::Write { .. } if op.stage == Stage::Done => {}
            Plan::Write {
                ino,
                block,
                value,
                time,
            } => {
                let register = Register::Block(ino, block);
                self.history.write_ends(now, register, value);
                let register = Register::Time(ino);
                self.history.write_ends(now, register, number_of(time));
            }
            Plan::Mutate {
                mutation: Mutation::SetAttr { ino, set },
            } => {
                if let Some(SetTime::At(time)) = set.mtime {
                    let register = Register::Time(ino);
                    self.history.write_ends(now, register, number_of(time));
                }
            }
            Plan::Sync { ino } => self.history.synced(ino, session, began),
            Plan::List { dir, count, .. } => {
                if let Some(Seen::Page(_, _, _, entries, true)) = op.result.first() {
                    return self.next_page(mount, dir, entries, count);
                }
            }
            _ => {}
        }
        self.mount_after(mount, 1_000, 120_000, MountEvent::NewOp);
    }

    fn next_page(&mut self, mount: usize, dir: InodeId, entries: &[DirEntry], count: usize) {
        let after = entries.last().map_or(0, |entry| entry.cookie);
        let (began, state) = (self.now, &mut self.mounts[mount]);
        state.next += 1;
        let id = state.next;
        let op = Op {
            plan: Plan::List { dir, after, count },
            began,
            stage: Stage::Begin,
            epoch: None,
            sequence: None,
            has_asked: false,
            result: Vec::new(),
        };
        state.ops.insert(id, op);
        self.step(mount, id);
    }

    fn judge(&mut self, who: (usize, SessionId), began: Duration, seen: &Seen) {
        let (mount, now) = (who.0, self.now);
        let history = &mut self.history;
        match seen {
            Seen::Name(parent, name, to) => {
                let object = Object::Name(*parent, name.clone());
                history.read(who, began, now, &object, |value| *value == Value::Name(*to));
            }
            Seen::Attr(attr) => {
                let object = Object::Attr(attr.ino);
                let is = Value::Attr(strip(attr));
                history.read(who, began, now, &object, |value| *value == is);
                if attr.kind == lumeofs_base::FileKind::Regular {
                    let (register, time) = (Register::Time(attr.ino), number_of(attr.mtime));
                    history.read_register(mount, began, now, register, Some(time));
                }
            }
            Seen::Missing(ino) => {
                let object = Object::Attr(*ino);
                history.read(who, began, now, &object, |value| *value == Value::Gone);
            }
            Seen::Page(dir, after, count, entries, more) => {
                let object = Object::Listing(*dir);
                history.read(who, began, now, &object, |value| match value {
                    Value::Listing(all) => page(all, *after, *count) == (entries.clone(), *more),
                    _ => false,
                });
            }
            Seen::Xattr(ino, is) => {
                let object = Object::Xattr(*ino, b"user.x".to_vec());
                let is = Value::Bytes(is.clone());
                history.read(who, began, now, &object, |value| *value == is);
            }
            Seen::Block(ino, block, value) => {
                let register = Register::Block(*ino, *block);
                history.read_register(mount, began, now, register, *value);
            }
        }
    }

    /// Enters a block that was fetched, unless the right to keep it went meanwhile. Returns what is to be shown.
    pub(super) fn fetched(
        &mut self,
        mount: usize,
        epoch: u64,
        (ino, block): (InodeId, u8),
        value: Option<u64>,
    ) -> Option<u64> {
        let now = self.mount_clock(mount);
        let state = &mut self.mounts[mount];
        let right: Option<Kind> = state.holder.caches_data(now, ino);
        let file = state.files.entry(ino).or_default();
        if file.epoch != epoch || right.is_none() {
            return value;
        }
        file.blocks.entry(block).or_insert((value, false)).0
    }
}

/// The inode that the leader must know to answer.
fn asked(query: &Query) -> InodeId {
    match query {
        Query::Lookup { parent: ino, .. }
        | Query::GetAttr { ino }
        | Query::ReadDir { ino, .. }
        | Query::GetXattr { ino, .. } => *ino,
        _ => panic!("{query:?} is not asked here"),
    }
}

fn op_is_begin(op: &Op) -> bool {
    op.stage == Stage::Begin
}

/// Whether it must have its file for itself first.
fn plan_waits(mutation: &Mutation) -> bool {
    matches!(mutation, Mutation::SetAttr { .. })
}
