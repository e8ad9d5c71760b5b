//! The driver of a holder: its session, its calls, its polls, and the data that it keeps.

mod flush;
mod making;
mod ops;
mod plans;
mod replies;

use crate::bugs::Bug;
use crate::calls::{Ask, From, Tell};
use crate::history::{self, page};
use crate::masters::MASTERS;
use crate::world::{Event, MountEvent, World, ms};
use lumeofs_base::{InodeId, SessionId, Timestamp};
use lumeofs_lease::{Act, Cached, Generation, Holder, HolderLimits, Poll};
use lumeofs_meta::tables::MemoryTables;
use making::Making;
pub(crate) use ops::Op;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

#[derive(Default)]
pub(crate) struct Mount {
    pub(crate) incarnation: u32,
    pub(crate) holder: Holder,
    pub(crate) session: Option<SessionId>,
    pub(crate) ops: BTreeMap<u64, Op>,
    calls: BTreeMap<u64, Call>,
    next: u64,
    sequence: u64,
    /// Sequences without an answer.
    outstanding: BTreeSet<u64>,
    files: BTreeMap<InodeId, File>,
    /// Files that are written or set, one operation at a time.
    locks: BTreeSet<InodeId>,
    /// Files that are being given back, and of which generation.
    giving: BTreeMap<InodeId, Generation>,
    making: Making,
    leader: usize,
    pub(crate) stopped_until: Duration,
    pub(crate) cut_until: Duration,
    is_down: bool,
    polls: usize,
}

/// What is kept of a file.
#[derive(Debug, Default)]
struct File {
    /// Contents, and whether the datanode lacks them.
    blocks: BTreeMap<u8, (Option<u64>, bool)>,
    /// Size and time that are not published.
    local: Option<(u64, Timestamp)>,
    /// How often the data was dropped.
    epoch: u64,
    is_flushing: bool,
}

#[derive(Debug)]
struct Call {
    ask: Ask,
    then: Then,
    attempt: u32,
    /// Only a late answer is awaited.
    is_over: bool,
}

/// What goes on when a call is answered.
#[derive(Clone, Debug)]
enum Then {
    Open,
    Op(u64),
    /// Nobody waits for it.
    Ahead,
    Reserved,
    Told,
    Flushed {
        ino: InodeId,
        blocks: Vec<(u8, u64)>,
        published: Option<(u64, Timestamp)>,
    },
    Published {
        ino: InodeId,
        published: (u64, Timestamp),
    },
    Poll {
        sent: Duration,
        poll: Poll,
        long: bool,
    },
}

impl Mount {
    pub(crate) fn cached(&self, ino: InodeId, block: u8) -> Option<u64> {
        self.files.get(&ino)?.blocks.get(&block)?.0
    }

    /// Whether something of a file is nowhere else.
    fn is_dirty(&self, ino: InodeId) -> bool {
        self.files.get(&ino).is_some_and(|file| {
            file.local.is_some() || file.blocks.values().any(|(_, is_dirty)| *is_dirty)
        })
    }

    pub(crate) fn check_directory(&mut self, now: Duration, ino: InodeId, tables: &MemoryTables) {
        let all = history::listing(tables, ino);
        for after in std::iter::once(0).chain(all.iter().map(|entry| entry.cookie)) {
            if let Cached::Is(listing) = self.holder.listing(now, ino, after, 2) {
                assert_eq!(
                    (listing.entries, listing.more),
                    page(&all, after, 2),
                    "{ino}"
                );
            }
        }
        for name in plans::NAMES {
            let is = all.iter().find(|entry| entry.name == *name);
            match self.holder.lookup(now, ino, name) {
                Cached::Is(attr) => assert_eq!(Some(attr.ino), is.map(|entry| entry.ino)),
                Cached::Absent => assert_eq!(is, None),
                Cached::Unknown => {}
            }
        }
    }
}

impl World {
    pub(crate) fn is_cut(&self, mount: usize) -> bool {
        self.mounts[mount].is_down || self.mounts[mount].cut_until > self.now
    }

    pub(crate) fn is_stopped(&self, mount: usize) -> Option<Duration> {
        let until = self.mounts[mount].stopped_until;
        (until > self.now).then_some(until)
    }

    pub(crate) fn start_mount(&mut self, mount: usize) {
        let incarnation = self.mounts[mount].incarnation + 1;
        let limits = match self.rng.percent(50) {
            true => HolderLimits {
                inodes_max: 3,
                items_max: 8,
            },
            false => HolderLimits::default(),
        };
        let state = &mut self.mounts[mount];
        *state = Mount {
            incarnation,
            holder: Holder::new(limits),
            cut_until: state.cut_until,
            stopped_until: state.stopped_until,
            ..Mount::default()
        };
        self.open_session(mount);
        for _ in 0..3 {
            self.mount_after(mount, 1_000, 200_000, MountEvent::NewOp);
        }
        self.mount_after(mount, 1_000, 2_000, MountEvent::Poll);
    }

    pub(crate) fn crash_mount(&mut self, mount: usize) {
        let state = &mut self.mounts[mount];
        state.incarnation += 1;
        state.is_down = true;
        state.stopped_until = ms(0);
        state.ops.clear();
        state.calls.clear();
        state.files.clear();
    }

    fn open_session(&mut self, mount: usize) {
        let nonce = u128::from(self.rng.next_u64());
        self.call(mount, Ask::Open { nonce }, Then::Open);
    }

    fn mount_after(&mut self, mount: usize, from: u64, to: u64, what: MountEvent) {
        let incarnation = self.mounts[mount].incarnation;
        let event = Event::Mount {
            mount,
            incarnation,
            what,
        };
        self.after(from, to, event);
    }

    fn call(&mut self, mount: usize, ask: Ask, then: Then) {
        let state = &mut self.mounts[mount];
        state.next += 1;
        let call = state.next;
        state.calls.insert(
            call,
            Call {
                ask,
                then,
                attempt: 0,
                is_over: false,
            },
        );
        self.send_call(mount, call);
    }

    fn send_call(&mut self, mount: usize, call: u64) {
        self.next_attempt += 1;
        let next_attempt = self.next_attempt;
        let at = self.mounts[mount].leader;
        let from = From {
            mount,
            incarnation: self.mounts[mount].incarnation,
            call,
        };
        let Some(state) = self.mounts[mount].calls.get_mut(&call) else {
            return;
        };
        state.attempt += 1;
        if let Ask::Write { attempt, .. } = &mut state.ask {
            *attempt = next_attempt;
        }
        let (mut ask, attempt) = (state.ask.clone(), state.attempt);
        if let Ask::Mutate { acked_below, .. } = &mut ask {
            let first = self.mounts[mount].outstanding.first();
            *acked_below = first.copied().expect("this one is outstanding");
        }
        let event = match ask {
            Ask::Read { .. } | Ask::Write { .. } => Event::ToData { from, ask },
            ask => Event::ToMaster { at, from, ask },
        };
        let is_cut = self.is_cut(mount);
        self.send(event, is_cut);
        self.mount_after(
            mount,
            2_500_000,
            2_600_000,
            MountEvent::TimeOut { call, attempt },
        );
    }

    fn time_out(&mut self, mount: usize, call: u64, attempt: u32) {
        let state = &mut self.mounts[mount];
        let Some(there) = state.calls.get_mut(&call) else {
            return;
        };
        if there.attempt != attempt || there.is_over {
            return;
        }
        state.leader = (state.leader + 1) % MASTERS;
        if let Then::Poll { poll, long, .. } = there.then.clone() {
            // Its answer may come all the same.
            there.is_over = true;
            return self.poll_failed(mount, poll, long);
        }
        if matches!(there.then, Then::Op(_)) && matches!(there.ask, Ask::Mutate { .. }) {
            self.counts.repeated += 1;
        }
        self.send_call(mount, call);
    }

    fn poll_failed(&mut self, mount: usize, poll: Poll, long: bool) {
        let state = &mut self.mounts[mount];
        state.holder.unheard(poll);
        state.polls -= 1;
        if long {
            self.mount_after(mount, 1_000, 30_000, MountEvent::Poll);
        } else {
            self.say_at_once(mount);
        }
    }

    fn poll(&mut self, mount: usize, long: bool) {
        let Some(session) = self.mounts[mount].session else {
            return;
        };
        let sent = self.mount_clock(mount);
        let state = &mut self.mounts[mount];
        state.polls += 1;
        let mut poll = state.holder.poll();
        if self.bug == Some(Bug::MadeNotAsserted)
            && let Some(asserts) = &mut poll.asserts
        {
            asserts.retain(|held| !state.holder.is_ahead_in(held.ino));
        }
        let ask = Ask::Poll {
            session,
            poll: poll.clone(),
            long,
        };
        self.call(mount, ask, Then::Poll { sent, poll, long });
    }

    /// Acknowledgements do not wait for the poll that is under way.
    fn say_at_once(&mut self, mount: usize) {
        let state = &self.mounts[mount];
        if state.holder.has_acks() && state.polls < 4 {
            self.poll(mount, false);
        }
    }

    fn polled(
        &mut self,
        mount: usize,
        sent: Duration,
        poll: &Poll,
        answer: lumeofs_lease::PollAnswer,
    ) {
        let mut sent = sent;
        let mut answer = answer;
        if self.bug == Some(Bug::TermFromTheAnswer) {
            sent = self.mount_clock(mount);
        }
        let state = &mut self.mounts[mount];
        if self.bug == Some(Bug::VoidNotHeeded)
            && state.holder.generation() != Generation::default()
        {
            answer.restate = false;
            answer.renewed = true;
            answer.generation = state.holder.generation();
        }
        let before = state.holder.generation();
        state.holder.heard(sent, poll.asserts.is_some(), answer);
        if state.holder.generation() != before && before != Generation::default() {
            self.counts.voids += 1;
        }
        self.run_acts(mount);
        self.say_at_once(mount);
    }

    /// Does what the holder wants done.
    fn run_acts(&mut self, mount: usize) {
        let state = &mut self.mounts[mount];
        let generation = state.holder.generation();
        let mut acted = Vec::new();
        let mut give_back = Vec::new();
        for act in state.holder.take_acts() {
            acted.push(act);
            match act {
                Act::DropData(ino) => {
                    let is_dirty = state.is_dirty(ino);
                    assert!(!is_dirty, "mount {mount} is to drop what it wrote to {ino}");
                    if let Some(file) = state.files.get_mut(&ino) {
                        file.blocks.clear();
                        file.epoch += 1;
                    }
                }
                Act::GiveBack(ino) => {
                    state.giving.insert(ino, generation);
                    give_back.push(ino);
                }
                Act::Reported(_) | Act::StateOpen(_) | Act::RestateOpens => {}
            }
        }
        if !acted.is_empty() {
            self.trace(|| format!("mount {mount} does {acted:?}"));
        }
        for ino in give_back {
            if self.bug == Some(Bug::DirtyDataGivenBack) {
                self.mounts[mount].files.remove(&ino);
            }
            self.flush(mount, ino);
        }
    }

    /// The session has ended: what was not published is lost, and everything begins anew.
    fn reset(&mut self, mount: usize) {
        self.trace(|| format!("mount {mount} begins anew"));
        let has_busy = self.bug != Some(Bug::OwnChangesNotBusy);
        let state = &mut self.mounts[mount];
        state.session = None;
        state.ops.clear();
        for call in std::mem::take(&mut state.calls).into_values() {
            if let Ask::Mutate { mutation, .. } = &call.ask
                && has_busy
            {
                state.holder.end_change(&plans::touches(mutation));
            }
        }
        state.outstanding.clear();
        state.locks.clear();
        state.giving.clear();
        state.files.clear();
        state.polls = 0;
        state.sequence = 0;
        state.making = Making::default();
        state.holder.give_up_made();
        state.holder.reset();
        state.holder.take_acts();
        self.open_session(mount);
        for _ in 0..3 {
            self.mount_after(mount, 1_000, 200_000, MountEvent::NewOp);
        }
    }

    pub(crate) fn on_mount_event(&mut self, mount: usize, what: MountEvent) {
        match what {
            MountEvent::NewOp => self.new_op(mount),
            MountEvent::Step(op) => self.step(mount, op),
            MountEvent::Complete(op) => self.complete(mount, op),
            MountEvent::Poll => self.poll(mount, true),
            MountEvent::Flush(ino) => self.flush(mount, ino),
            MountEvent::Tell => self.tell_made(mount),
            MountEvent::TimeOut { call, attempt } => self.time_out(mount, call, attempt),
        }
    }

    pub(crate) fn on_tell(&mut self, to: From, tell: Tell) {
        self.trace(|| format!("{to:?} hears {tell:?}"));
        let From {
            mount,
            incarnation,
            call,
        } = to;
        if self.mounts[mount].incarnation == incarnation && !self.mounts[mount].is_down {
            self.on_reply(mount, call, tell);
        }
    }
}
