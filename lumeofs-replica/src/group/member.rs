//! The part of a member that is not primary: following the primary's stream.

use super::Group;
use crate::effect::{Effect, Work};
use crate::history::Note;
use crate::message::{CopyStep, Entry, Payload, StreamId, ToMember, ToPrimary};
use lumeofs_base::limits::PRIMARY_LEASE;
use lumeofs_base::{ChunkState, Code, GroupConfig, NodeId, Sequence, Version};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// What a follower knows of its primary.
pub(super) struct Follower {
    pub(super) stream: Option<(NodeId, StreamId)>,
    pub(super) catching: Option<Catching>,
    /// Stream of a catch-up whose end is on its way to the disk: until then the disk holds a mixture.
    pub(super) unfinished: Option<StreamId>,
    /// Operations up to here came with a catch-up. Some may be on their way to commitment, which the own
    /// tail does not show: no reads before all of them are committed.
    pub(super) readable_from: Sequence,
    /// End of the read lease.
    pub(super) read_until: Duration,
    /// When answers to beacons of this epoch were sent.
    pub(super) answers: VecDeque<Duration>,
    pub(super) last_beacon: Duration,
    /// Until [`PRIMARY_LEASE`] after it no other primary is supported.
    pub(super) last_answer: Duration,
    /// The same by the primary that got the answer.
    promises: BTreeMap<NodeId, Duration>,
    /// A connection from the primary ended after its last beacon.
    pub(super) reset_seen: bool,
    acked: (Sequence, Sequence),
}

/// A catch-up under way.
pub(super) struct Catching {
    /// Last operation that came by the stream.
    position: Version,
    /// All up to here has been done.
    followed: Sequence,
    /// Operations handed to the store and not done.
    pending: usize,
    /// `Done` was received; the store is making it durable.
    finishing: bool,
}

impl Follower {
    pub(super) fn new(now: Duration) -> Self {
        Self {
            stream: None,
            catching: None,
            unfinished: None,
            readable_from: Sequence(0),
            read_until: Duration::ZERO,
            answers: VecDeque::new(),
            last_beacon: now,
            last_answer: now,
            promises: BTreeMap::new(),
            reset_seen: false,
            acked: (Sequence(0), Sequence(0)),
        }
    }

    /// A beacon of this primary is answered: it may serve for a while.
    pub(super) fn promise(&mut self, primary: NodeId, now: Duration) {
        self.last_answer = now;
        self.promises.retain(|_, at| now < *at + PRIMARY_LEASE);
        self.promises.insert(primary, now);
    }

    /// Until when a primary may serve by an answer of this member, except those that say themselves that
    /// they do not.
    pub(super) fn promised_until(&self, released: impl Fn(NodeId) -> bool) -> Duration {
        let held = self.promises.iter().filter(|(node, _)| !released(**node));
        held.map(|(_, at)| *at + PRIMARY_LEASE)
            .max()
            .unwrap_or(Duration::ZERO)
    }

    /// A new configuration: leases start anew, and so does the patience with the primary.
    pub(super) fn reconfigured(&mut self, now: Duration) {
        self.read_until = Duration::ZERO;
        self.answers.clear();
        self.last_beacon = now;
        self.reset_seen = false;
    }
}

impl<P: Payload> Group<P> {
    /// A message on a stream that another datanode opened.
    pub fn on_message(
        &mut self,
        from: NodeId,
        stream: StreamId,
        message: ToMember<P>,
        now: Duration,
    ) {
        if let ToMember::Attach { config } = message {
            return self.on_attach(from, stream, &config, now);
        }
        if self.follower.stream != Some((from, stream)) {
            return;
        }
        match message {
            ToMember::Attach { .. } => {}
            ToMember::Config { config } => self.on_config(&config, now),
            ToMember::Op {
                entry,
                committed,
                sync,
            } => self.on_op(&entry, committed, sync),
            ToMember::Patch { entry } => self.follow(&entry, true),
            ToMember::Skip { version, writer } => {
                self.writers.admit(writer);
                if self.step_to(version)
                    && let Some(catching) = &mut self.follower.catching
                    && catching.pending == 0
                {
                    catching.followed = version.sequence;
                    self.acknowledge();
                }
            }
            ToMember::Commit { committed } if self.complete => self.learn_committed(committed),
            ToMember::Commit { .. } => {}
            ToMember::Sync { upto } => self.want_sync(upto.min(self.last.sequence)),
            ToMember::Tail { after } => {
                let entries: Vec<_> = self.tail.after(after).cloned().collect();
                entries
                    .into_iter()
                    .for_each(|entry| self.answer(ToPrimary::TailOp { entry }));
                self.answer(ToPrimary::TailEnd);
            }
            ToMember::CatchUp { position } => {
                self.complete = false;
                self.replace_history();
                self.follower.acked = Default::default();
                self.follower.catching = Some(Catching {
                    position,
                    followed: position.sequence,
                    pending: 0,
                    finishing: false,
                });
            }
            ToMember::List { after } => {
                self.effects
                    .push(Effect::Work(Work::ListForPrimary { stream, after }));
            }
            ToMember::Copy(step) => self.on_copy(stream, step),
            ToMember::Done {
                last,
                starts,
                writers,
                mut fence,
            } => {
                writers.into_iter().for_each(|writer| {
                    self.writers.admit(writer);
                });
                fence.supersede(&self.note.fence);
                let torn = false;
                self.on_done(
                    stream,
                    last,
                    Note {
                        starts,
                        torn,
                        fence,
                        member: true,
                    },
                );
            }
        }
    }

    fn on_attach(&mut self, from: NodeId, stream: StreamId, config: &GroupConfig, now: Duration) {
        self.on_config(config, now);
        let refused = config.epoch != self.config.epoch
            || from != self.config.primary
            || from == self.me
            || !self.config.members.contains(&self.me);
        if refused {
            let message = ToPrimary::Refused {
                epoch: self.config.epoch,
            };
            self.effects.push(Effect::Answer { stream, message });
            self.effects.push(Effect::Hangup { stream });
            return;
        }
        if let Some((_, old)) = self.follower.stream {
            self.effects.push(Effect::Hangup { stream: old });
            self.stream_gone();
        }
        self.follower.stream = Some((from, stream));
        self.follower.acked = (self.applied, self.durable);
        let attached = ToPrimary::Attached {
            complete: self.complete,
            last: self.last,
            tail_from: self.tail_from(),
            applied: self.applied,
            durable: self.durable,
        };
        self.answer(attached);
    }

    /// A stream that another datanode opened has ended.
    pub fn on_stream_lost(&mut self, stream: StreamId) {
        if self
            .follower
            .stream
            .is_some_and(|(_, current)| current == stream)
        {
            self.follower.reset_seen = true;
            self.stream_gone();
        }
    }

    fn stream_gone(&mut self) {
        self.follower.stream = None;
        self.follower.catching = None;
        if !self.config.is_in_sync(self.me) {
            // Operations may be acknowledged from now on without this member.
            self.complete = false;
            self.tail.clear();
        }
    }

    /// Ends the primary's stream from this side.
    pub(super) fn drop_stream(&mut self, why: Option<Code>) {
        if let Some((_, stream)) = self.follower.stream {
            if let Some(code) = why {
                self.answer(ToPrimary::Failed { code });
            }
            self.effects.push(Effect::Hangup { stream });
            self.stream_gone();
        }
    }

    fn on_op(&mut self, entry: &Arc<Entry<P>>, committed: Sequence, sync: bool) {
        let finishing = match &self.follower.catching {
            Some(catching) if !catching.finishing => return self.follow(entry, false),
            Some(_) => true,
            None => false,
        };
        let next = entry.version.sequence == self.last.sequence.next()
            && entry.version.epoch >= self.last.epoch
            && entry.version.epoch <= self.config.epoch;
        if !(next && (self.complete || finishing)) {
            return self.drop_stream(Some(Code::StaleEpoch));
        }
        self.extend(entry);
        if sync {
            self.want_sync(entry.version.sequence);
        }
        self.learn_committed(committed);
    }

    /// During a catch-up: the next operation, or its part that concerns copied data.
    fn follow(&mut self, entry: &Arc<Entry<P>>, partial: bool) {
        self.writers.admit(entry.writer);
        if !self.step_to(entry.version) {
            return;
        }
        if self.learn_fence(&entry.op) {
            self.effects
                .push(Effect::Work(Work::Note(self.note.clone())));
        }
        self.tear();
        let Some((_, stream)) = self.follower.stream else {
            return;
        };
        if let Some(catching) = &mut self.follower.catching {
            catching.pending += 1;
        }
        let work = Work::Follow {
            entry: entry.clone(),
            partial,
            stream,
        };
        self.effects.push(Effect::Work(work));
    }

    fn step_to(&mut self, version: Version) -> bool {
        match &mut self.follower.catching {
            Some(catching)
                if !catching.finishing && version.sequence == catching.position.sequence.next() =>
            {
                catching.position = version;
                true
            }
            Some(_) | None => {
                self.drop_stream(Some(Code::StaleEpoch));
                false
            }
        }
    }

    /// From here on the own chunks are no state that the group ever had.
    fn tear(&mut self) {
        if !self.note.torn {
            self.note.torn = true;
            self.effects
                .push(Effect::Work(Work::Note(self.note.clone())));
        }
    }

    fn on_copy(&mut self, stream: StreamId, step: CopyStep<P>) {
        if self
            .follower
            .catching
            .as_ref()
            .is_none_or(|catching| catching.finishing)
        {
            return self.drop_stream(Some(Code::StaleEpoch));
        }
        self.tear();
        self.effects.push(Effect::Work(Work::Copy { stream, step }));
    }

    fn on_done(&mut self, stream: StreamId, last: Version, note: Note) {
        match &mut self.follower.catching {
            Some(catching) if !catching.finishing && catching.position == last => {
                catching.finishing = true;
            }
            Some(_) | None => return self.drop_stream(Some(Code::StaleEpoch)),
        }
        self.replace_history();
        self.last = last;
        self.applied = last.sequence;
        self.note = note.clone();
        self.follower.unfinished = Some(stream);
        self.follower.readable_from = last.sequence;
        self.effects
            .push(Effect::Work(Work::Finish { stream, last, note }));
    }

    /// What was known of the own history is about another one than what follows.
    fn replace_history(&mut self) {
        self.history += 1;
        self.committed = Sequence(0);
        (self.durable, self.sync_wanted, self.sync_asked) = Default::default();
        self.tail.clear();
    }

    /// A [`Work::Finish`] was done.
    pub fn on_finished(&mut self, stream: StreamId) {
        if self.follower.unfinished == Some(stream) {
            self.follower.unfinished = None;
            self.watch.healed();
        }
        let current = self
            .follower
            .stream
            .is_some_and(|(_, current)| current == stream);
        let finishing = self
            .follower
            .catching
            .take_if(|catching| current && catching.finishing);
        let Some(catching) = finishing else { return };
        let last = catching.position.sequence;
        self.complete = true;
        self.durable = self.durable.max(last);
        self.answer(ToPrimary::Finished { last });
        self.ask_sync();
        self.acknowledge();
    }

    /// A [`Work::Follow`] was done.
    pub fn on_followed(&mut self, stream: StreamId, version: Version) {
        if self
            .follower
            .stream
            .is_some_and(|(_, current)| current == stream)
            && let Some(catching) = &mut self.follower.catching
        {
            catching.pending = catching.pending.saturating_sub(1);
            catching.followed = match catching.pending {
                0 => catching.position.sequence,
                _ => version.sequence,
            };
            self.acknowledge();
        }
    }

    /// A piece was written.
    pub fn on_copied(&mut self, stream: StreamId) {
        self.answer_on(stream, ToPrimary::Copied);
    }

    /// A [`Work::ListForPrimary`] was done.
    pub fn on_listed(&mut self, stream: StreamId, chunks: Vec<ChunkState>, end: bool) {
        self.answer_on(stream, ToPrimary::Listed { chunks, end });
    }

    fn answer_on(&mut self, stream: StreamId, message: ToPrimary<P>) {
        if self
            .follower
            .stream
            .is_some_and(|(_, current)| current == stream)
        {
            self.answer(message);
        }
    }

    fn answer(&mut self, message: ToPrimary<P>) {
        if let Some((_, stream)) = self.follower.stream {
            self.effects.push(Effect::Answer { stream, message });
        }
    }

    /// Tells the primary how far this member is, if it is further than last told.
    pub(super) fn acknowledge(&mut self) {
        let progress = match &self.follower.catching {
            Some(catching) if !catching.finishing => (catching.followed, Sequence(0)),
            Some(_) => return,
            None if self.complete => (self.applied, self.durable.min(self.applied)),
            None => return,
        };
        if self.follower.acked != progress {
            self.follower.acked = progress;
            let (applied, durable) = progress;
            self.answer(ToPrimary::Ack { applied, durable });
        }
    }

    pub(super) fn learn_committed(&mut self, committed: Sequence) {
        let known = committed.min(self.last.sequence);
        if known > self.committed {
            self.committed = known;
            self.tail.trim(known);
        }
    }
}
