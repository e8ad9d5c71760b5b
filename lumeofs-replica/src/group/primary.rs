//! The primary's part: ordering, acknowledging, changing the in-sync set.

use super::catchup::CatchUp;
use super::{
    ACK_SILENCE, Admission, Group, LEASE_MARGIN, MEMBER_SILENCE, PROPOSAL_TIMEOUT, RECONNECT_GRACE,
    SETTLE_GRACE, WriteRequest,
};
use crate::effect::{Effect, Pending, Ticket};
use crate::message::{Entry, Payload, StreamId, ToMember, Writer};
use lumeofs_base::limits::{
    GROUP_INFLIGHT_BYTES_MAX, GROUP_INFLIGHT_MAX, PRIMARY_LEASE, READ_LEASE,
};
use lumeofs_base::{ChunkOp, Code, Epoch, FsError, GroupConfig, NodeId, Sequence, Version};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// What only a primary has.
pub(super) struct Primary<P> {
    pub(super) since: Duration,
    /// All in-sync members have agreed once; operations may be ordered.
    pub(super) serving: bool,
    pub(super) members: BTreeMap<NodeId, Member<P>>,
    /// Members that are about to be proposed, or were in this epoch: what is acknowledged, they have,
    /// because the proposal may have been accepted already.
    pub(super) admitting: BTreeSet<NodeId>,
    pub(super) proposed: BTreeSet<NodeId>,
    /// Highest sequence that all required members had on disk.
    pub(super) durable: Sequence,
    waiting: BTreeMap<Sequence, Pending>,
    waiting_durable: BTreeMap<(Sequence, Ticket), Pending>,
    inflight: BTreeMap<Sequence, usize>,
    inflight_bytes: usize,
    was_full: bool,
}

/// Another member, as its primary sees it.
pub(super) struct Member<P> {
    pub(super) stream: Option<StreamId>,
    pub(super) phase: Phase<P>,
    pub(super) applied: Sequence,
    pub(super) durable: Sequence,
    pub(super) sync_sent: Sequence,
    pub(super) told_committed: Sequence,
    /// Last sign of life.
    pub(super) heard: Duration,
    /// Last progress, or last moment without anything to do.
    pub(super) progress: Duration,
    pub(super) reopen_at: Duration,
    /// Since when it has not been live.
    pub(super) trouble: Option<Duration>,
    /// When the last beacon that it answered was sent.
    pub(super) beacon_acked: Option<Duration>,
    /// Its clock in its last answer, and when that was received.
    pub(super) answer: Option<(Duration, Duration)>,
    /// When the last answer that was echoed to it had been received: its read lease began before.
    pub(super) echoed: Option<Duration>,
    pub(super) low_space: bool,
}

/// How far a stream has got.
pub(super) enum Phase<P> {
    /// Not connected.
    Down,
    /// Connecting.
    Opening,
    /// Waits for `Attached`.
    Attaching,
    /// Attached; what to do with it is not decided yet.
    Attached(Attached),
    /// It sends operations that the primary lacks.
    Fetching(Attached),
    /// Is being caught up.
    CatchingUp(Box<CatchUp<P>>),
    /// Has the primary's history and receives every operation.
    Live,
}

/// What a member said when it was attached.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attached {
    pub(super) complete: bool,
    pub(super) last: Version,
    pub(super) tail_from: Sequence,
}

impl<P> Member<P> {
    pub(super) fn new(now: Duration) -> Self {
        Self {
            stream: None,
            phase: Phase::Down,
            applied: Sequence(0),
            durable: Sequence(0),
            sync_sent: Sequence(0),
            told_committed: Sequence(0),
            heard: now,
            progress: now,
            reopen_at: now,
            trouble: Some(now),
            beacon_acked: None,
            answer: None,
            echoed: None,
            low_space: false,
        }
    }

    pub(super) fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Live)
    }

    /// It restarted, or fell behind: it says so itself, so it holds no read lease.
    fn is_known_incomplete(&self) -> bool {
        match &self.phase {
            Phase::Attached(attached) => !attached.complete,
            Phase::CatchingUp(_) => true,
            Phase::Down | Phase::Opening | Phase::Attaching | Phase::Fetching(_) | Phase::Live => {
                false
            }
        }
    }
}

impl<P> Primary<P> {
    fn new(since: Duration) -> Self {
        Self {
            since,
            serving: false,
            members: BTreeMap::new(),
            admitting: BTreeSet::new(),
            proposed: BTreeSet::new(),
            durable: Sequence(0),
            waiting: BTreeMap::new(),
            waiting_durable: BTreeMap::new(),
            inflight: BTreeMap::new(),
            inflight_bytes: 0,
            was_full: false,
        }
    }

    pub(super) fn refused(&mut self, version: Version, code: Code) {
        if let Some(pending) = self.waiting.get_mut(&version.sequence) {
            pending.refused = Some(code);
        }
        let range = (version.sequence, 0)..=(version.sequence, Ticket::MAX);
        for (_, pending) in self.waiting_durable.range_mut(range) {
            if pending.version == version && pending.durable {
                pending.refused = Some(code);
            }
        }
    }

    pub(super) fn waiting(&self) -> impl Iterator<Item = &Pending> {
        self.waiting.values().chain(self.waiting_durable.values())
    }

    pub(super) fn open_streams(&self) -> impl Iterator<Item = (NodeId, StreamId)> {
        self.members
            .iter()
            .filter_map(|(node, member)| Some((*node, member.stream?)))
    }

    fn is_full(&self) -> bool {
        self.inflight.len() >= GROUP_INFLIGHT_MAX || self.inflight_bytes >= GROUP_INFLIGHT_BYTES_MAX
    }

    /// Highest sequence that somebody waits to be durable.
    pub(super) fn durable_wanted(&self) -> Sequence {
        self.waiting_durable
            .last_key_value()
            .map_or(Sequence(0), |((sequence, _), _)| *sequence)
    }
}

impl<P: Payload> Group<P> {
    /// An operation of a client. Nothing is kept of the request unless it is taken.
    pub fn write(&mut self, request: &WriteRequest<P>, now: Duration) -> Admission {
        if let Some(admission) = self.not_ready(request.epoch, now) {
            return admission;
        }
        let config = &self.config;
        let primary = self.primary.as_mut().expect("ready means primary");
        if primary.is_full() {
            primary.was_full = true;
            return Admission::Wait;
        }
        let short = self.low_space
            || config
                .in_sync
                .iter()
                .any(|node| primary.members.get(node).is_some_and(|m| m.low_space));
        if short && matches!(request.op, ChunkOp::Write { .. }) {
            return Admission::Refused(FsError::new(
                Code::NoSpace,
                "a datanode of the group is full",
            ));
        }
        if !self.writers.admit(request.writer) {
            let context = format!(
                "a newer connection of session {} wrote",
                request.writer.session
            );
            return Admission::Refused(FsError::new(Code::StaleWrite, context));
        }
        let version = Version {
            epoch: self.config.epoch,
            sequence: self.last.sequence.next(),
        };
        let entry = Arc::new(Entry {
            version,
            writer: request.writer,
            op: request.op.clone(),
            data: request.data.clone(),
        });
        let pending = Pending {
            ticket: request.ticket,
            version,
            durable: request.durable,
            refused: None,
            writer: request.writer,
        };
        if request.durable {
            primary
                .waiting_durable
                .insert((version.sequence, request.ticket), pending);
        } else {
            primary.waiting.insert(version.sequence, pending);
        }
        primary.inflight.insert(version.sequence, entry.data.len());
        primary.inflight_bytes += entry.data.len();
        self.extend(&entry);
        self.route(&entry, request.durable, None, now);
        if request.durable {
            self.want_sync(version.sequence);
        }
        Admission::Taken
    }

    /// A client's fsync: everything committed so far, and `after` at least, is to be durable.
    pub fn sync(
        &mut self,
        ticket: Ticket,
        epoch: Epoch,
        after: Version,
        now: Duration,
    ) -> Admission {
        if let Some(admission) = self.not_ready(epoch, now) {
            return admission;
        }
        if !self.note.contains(self.last, after) {
            let context = format!(
                "operation {after:?} is not in the history that ends with {:?}",
                self.last
            );
            return Admission::Refused(FsError::new(Code::LostTail, context));
        }
        let target = self.committed.max(after.sequence);
        let version = Version {
            epoch: self.config.epoch,
            sequence: target,
        };
        let primary = self.primary.as_mut().expect("ready means primary");
        let pending = Pending {
            ticket,
            version,
            durable: false,
            refused: None,
            writer: Writer::default(),
        };
        if primary.durable >= target {
            self.reply(&pending);
            return Admission::Taken;
        }
        primary.waiting_durable.insert((target, ticket), pending);
        self.want_sync(target);
        self.send_syncs();
        self.advance(now);
        Admission::Taken
    }

    /// Nobody waits for this request any longer.
    pub fn forget(&mut self, ticket: Ticket) {
        if let Some(primary) = &mut self.primary {
            primary
                .waiting
                .retain(|_, pending| pending.ticket != ticket);
            primary
                .waiting_durable
                .retain(|_, pending| pending.ticket != ticket);
        }
    }

    fn not_ready(&mut self, epoch: Epoch, now: Duration) -> Option<Admission> {
        if epoch < self.config.epoch {
            let context = format!(
                "the group is at epoch {}, the request at {epoch}",
                self.config.epoch
            );
            return Some(Admission::Refused(FsError::new(Code::StaleEpoch, context)));
        }
        if epoch > self.config.epoch {
            self.effects.push(Effect::Refresh);
            return Some(Admission::Wait);
        }
        if self.config.primary != self.me {
            return Some(Admission::Forward(self.config.primary));
        }
        let ready = self.is_serving() && now < self.lease_until();
        (!ready).then_some(Admission::Wait)
    }

    pub(super) fn is_serving(&self) -> bool {
        self.primary.as_ref().is_some_and(|primary| primary.serving)
    }

    /// Until when the in-sync members let this primary serve (D4).
    pub(super) fn lease_until(&self) -> Duration {
        let Some(primary) = &self.primary else {
            return Duration::ZERO;
        };
        if self.config.in_sync.len() < self.config.write_quorum() {
            return Duration::ZERO;
        }
        let others = self.config.in_sync.iter().filter(|node| **node != self.me);
        let acked = |node| {
            primary
                .members
                .get(node)
                .and_then(|member| member.beacon_acked)
        };
        others
            .map(|node| acked(node).map_or(Duration::ZERO, |at| at + PRIMARY_LEASE - LEASE_MARGIN))
            .min()
            .unwrap_or(Duration::MAX)
    }

    /// Sends an operation to every member that follows, except its source.
    pub(super) fn route(
        &mut self,
        entry: &Arc<Entry<P>>,
        sync: bool,
        source: Option<NodeId>,
        now: Duration,
    ) {
        let committed = self.committed;
        let Some(primary) = &mut self.primary else {
            return;
        };
        for (&to, member) in &mut primary.members {
            let Some(stream) = member.stream else {
                continue;
            };
            if Some(to) == source {
                continue;
            }
            if member.applied.next() >= entry.version.sequence {
                member.progress = now;
            }
            match &mut member.phase {
                Phase::Live => {
                    if sync {
                        member.sync_sent = member.sync_sent.max(entry.version.sequence);
                    }
                    member.told_committed = committed;
                    let message = ToMember::Op {
                        entry: entry.clone(),
                        committed,
                        sync,
                    };
                    self.effects.push(Effect::Send {
                        to,
                        stream,
                        message,
                    });
                }
                Phase::CatchingUp(catch_up) => {
                    if let Some(message) = catch_up.route(entry) {
                        self.effects.push(Effect::Send {
                            to,
                            stream,
                            message,
                        });
                    }
                }
                Phase::Down
                | Phase::Opening
                | Phase::Attaching
                | Phase::Attached(_)
                | Phase::Fetching(_) => {}
            }
        }
    }

    /// Asks live members for durability as far as somebody waits for it.
    pub(super) fn send_syncs(&mut self) {
        let last = self.last.sequence;
        let Some(primary) = &mut self.primary else {
            return;
        };
        let wanted = primary.durable_wanted();
        for (&to, member) in &mut primary.members {
            let wanted = if primary.admitting.contains(&to) {
                wanted.max(last)
            } else {
                wanted
            };
            let (Some(stream), true) = (member.stream, member.is_live()) else {
                continue;
            };
            if member.sync_sent < wanted && member.durable < wanted {
                member.sync_sent = wanted;
                let message = ToMember::Sync { upto: wanted };
                self.effects.push(Effect::Send {
                    to,
                    stream,
                    message,
                });
            }
        }
    }

    /// Members whose acknowledgement every operation needs.
    fn required(&self) -> Vec<NodeId> {
        let Some(primary) = &self.primary else {
            return Vec::new();
        };
        let others = self.config.in_sync.iter().filter(|node| **node != self.me);
        others
            .chain(&primary.admitting)
            .chain(&primary.proposed)
            .copied()
            .collect()
    }

    /// Commits and answers what all required members have.
    pub(super) fn advance(&mut self, now: Duration) {
        let required = self.required();
        let Some(primary) = &mut self.primary else {
            return;
        };
        let (mut applied, mut durable) = (self.applied, self.durable);
        for node in &required {
            let member = primary.members.get(node);
            applied = applied.min(member.map_or(Sequence(0), |member| member.applied));
            durable = durable.min(member.map_or(Sequence(0), |member| member.durable));
        }
        primary.durable = primary.durable.max(durable.min(applied));
        let moved = applied > self.committed;
        self.committed = self.committed.max(applied);
        // A slow follower slows writers down; else what is on its way to it had no bound.
        let followed = primary
            .members
            .values()
            .filter(|member| matches!(member.phase, Phase::Live | Phase::CatchingUp(_)))
            .map(Member::position)
            .fold(self.committed, Ord::min);
        let behind = primary.inflight.split_off(&followed.next());
        let gone = std::mem::replace(&mut primary.inflight, behind);
        primary.inflight_bytes -= gone.values().sum::<usize>();
        if primary.was_full && !primary.is_full() {
            primary.was_full = false;
            self.effects.push(Effect::Changed);
        }
        let waiting = primary.waiting.split_off(&self.committed.next());
        let mut done: Vec<Pending> = std::mem::replace(&mut primary.waiting, waiting)
            .into_values()
            .collect();
        let rest = primary
            .waiting_durable
            .split_off(&(primary.durable.next(), 0));
        done.extend(std::mem::replace(&mut primary.waiting_durable, rest).into_values());
        for pending in &done {
            self.reply(pending);
        }
        self.tail.trim(self.committed);
        if moved {
            self.effects.push(Effect::Changed);
        }
        if !self
            .primary
            .as_ref()
            .is_none_or(|primary| primary.admitting.is_empty())
        {
            self.reconfigure(now);
        }
    }

    /// Proposes the in-sync set that the members' state calls for, if it differs.
    fn reconfigure(&mut self, now: Duration) {
        let recently = |at: Duration| now < at + PROPOSAL_TIMEOUT;
        if self.election.proposed_at.is_some_and(recently) {
            return;
        }
        let Some(primary) = &self.primary else { return };
        let config = &self.config;
        let mut kept = Vec::new();
        let mut added = BTreeSet::new();
        for &node in &config.members {
            let member = primary.members.get(&node);
            if node == self.me {
                kept.push(node);
            } else if config.is_in_sync(node) {
                if !member.is_none_or(|member| self.is_removable(primary, member, now)) {
                    kept.push(node);
                }
            } else if member.is_some_and(|member| self.is_admissible(primary, node, member)) {
                kept.push(node);
                added.insert(node);
            }
        }
        if kept.len() < config.write_quorum() {
            // Nothing may be acknowledged with so few. Removing nobody keeps the rest electable.
            kept = config.members.clone();
            kept.retain(|node| config.is_in_sync(*node) || added.contains(node));
        }
        let unchanged =
            kept.len() == config.in_sync.len() && kept.iter().all(|node| config.is_in_sync(*node));
        // A member of a lost proposal stays required until an epoch decides about it.
        let open = primary
            .proposed
            .iter()
            .any(|node| !config.is_in_sync(*node));
        if unchanged && !open {
            return;
        }
        let next = GroupConfig {
            epoch: config.epoch.next(),
            in_sync: kept,
            ..config.clone()
        };
        if let Some(primary) = &mut self.primary {
            primary.proposed.extend(added);
        }
        self.propose(next, now);
    }

    pub(super) fn propose(&mut self, config: GroupConfig, now: Duration) {
        self.election.proposed_at = Some(now);
        self.effects.push(Effect::Propose {
            expected: self.config.epoch,
            config,
        });
    }

    /// Whether an in-sync member may be removed: it is gone, and can no longer answer reads (D5).
    fn is_removable(&self, primary: &Primary<P>, member: &Member<P>, now: Duration) -> bool {
        let Some(trouble) = member.trouble else {
            return false;
        };
        if member.is_known_incomplete() {
            return primary.serving || now >= trouble.max(primary.since) + SETTLE_GRACE;
        }
        now >= trouble + RECONNECT_GRACE
            && now >= primary.since + READ_LEASE
            && member.echoed.is_none_or(|at| now >= at + READ_LEASE)
    }

    /// Whether a member has all that was ever acknowledged.
    fn is_admissible(&self, primary: &Primary<P>, node: NodeId, member: &Member<P>) -> bool {
        let needed = if primary.serving {
            self.committed
        } else {
            self.last.sequence
        };
        primary.admitting.contains(&node)
            && member.is_live()
            && member.applied >= needed
            && member.durable >= primary.durable
    }

    /// Becomes primary of the configuration.
    pub(super) fn lead(&mut self, now: Duration) {
        let mut primary = Primary::new(now);
        for &node in self.config.members.iter().filter(|node| **node != self.me) {
            primary.members.insert(node, Member::new(now));
        }
        self.primary = Some(primary);
        self.sync_asked = self.durable;
        self.effects.push(Effect::BeaconNow);
        self.primary_tick(now);
    }

    /// Stays primary in the next configuration.
    pub(super) fn primary_continues(&mut self, now: Duration) {
        let config = self.config.clone();
        let Some(primary) = &mut self.primary else {
            return;
        };
        primary.admitting.retain(|node| !config.is_in_sync(*node));
        primary.proposed.clear();
        primary.members.retain(|node, member| {
            let stays = config.members.contains(node);
            if let (false, Some(stream)) = (stays, member.stream) {
                self.effects.push(Effect::Close { to: *node, stream });
            }
            stays
        });
        for &node in config.members.iter().filter(|node| **node != self.me) {
            let member = primary
                .members
                .entry(node)
                .or_insert_with(|| Member::new(now));
            if member.is_live() && !config.is_in_sync(node) {
                // Removed by a proposal made before it came back.
                primary.admitting.insert(node);
            }
            if let (Some(stream), false) = (member.stream, matches!(member.phase, Phase::Opening)) {
                let message = ToMember::Config {
                    config: config.clone(),
                };
                self.effects.push(Effect::Send {
                    to: node,
                    stream,
                    message,
                });
            }
        }
        self.effects.push(Effect::BeaconNow);
        self.primary_tick(now);
    }

    pub(super) fn primary_tick(&mut self, now: Duration) {
        let committed = self.committed;
        let last = self.last.sequence;
        let mut failed = Vec::new();
        let Some(primary) = &mut self.primary else {
            return;
        };
        for (&to, member) in &mut primary.members {
            let Some(stream) = member.stream else {
                if now >= member.reopen_at {
                    self.next_stream += 1;
                    member.stream = Some(self.next_stream);
                    member.phase = Phase::Opening;
                    member.heard = now;
                    self.effects.push(Effect::Open {
                        to,
                        stream: self.next_stream,
                    });
                }
                continue;
            };
            if matches!(member.phase, Phase::Opening) {
                if now >= member.heard + ACK_SILENCE {
                    failed.push((to, stream));
                }
                continue;
            }
            if member.position() >= last {
                member.progress = now;
            }
            if now >= member.heard + MEMBER_SILENCE || now >= member.progress + ACK_SILENCE {
                member.trouble.get_or_insert(member.heard);
                failed.push((to, stream));
            } else if member.is_live() && member.told_committed < committed {
                member.told_committed = committed;
                let message = ToMember::Commit { committed };
                self.effects.push(Effect::Send {
                    to,
                    stream,
                    message,
                });
            }
        }
        for (to, stream) in failed {
            self.effects.push(Effect::Close { to, stream });
            self.on_stream_closed(to, stream, now);
        }
        self.settle(now);
        self.advance(now);
        self.reconfigure(now);
    }
}
