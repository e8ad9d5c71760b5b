//! Clients' requests at the primary: ordering, acknowledging, and how many may be under way.

use super::peer::{Member, Phase};
use super::{Admission, Group, WriteRequest};
use crate::effect::{Effect, Pending, Ticket};
use crate::message::{Entry, Payload, ToMember, Writer};
use lumeofs_base::limits::{GROUP_INFLIGHT_BYTES_MAX, GROUP_INFLIGHT_MAX};
use lumeofs_base::{ChunkOp, Code, Epoch, FsError, NodeId, Sequence, Version};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Requests that wait for their operations, and operations that not every member has followed.
#[derive(Default)]
pub(super) struct Requests {
    waiting: BTreeMap<Sequence, Pending>,
    waiting_durable: BTreeMap<(Sequence, Ticket), Pending>,
    inflight: BTreeMap<Sequence, usize>,
    inflight_bytes: usize,
    was_full: bool,
}

impl Requests {
    fn add(&mut self, pending: Pending, bytes: usize) {
        let sequence = pending.version.sequence;
        if pending.durable {
            self.add_durable(pending);
        } else {
            self.waiting.insert(sequence, pending);
        }
        self.inflight.insert(sequence, bytes);
        self.inflight_bytes += bytes;
    }

    fn add_durable(&mut self, pending: Pending) {
        self.waiting_durable
            .insert((pending.version.sequence, pending.ticket), pending);
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

    pub(super) fn all(&self) -> impl Iterator<Item = &Pending> {
        self.waiting.values().chain(self.waiting_durable.values())
    }

    /// Whether nobody waits for an answer.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.waiting_durable.is_empty()
    }

    fn is_full(&self) -> bool {
        self.inflight.len() >= GROUP_INFLIGHT_MAX || self.inflight_bytes >= GROUP_INFLIGHT_BYTES_MAX
    }

    /// Highest sequence that somebody waits to be durable.
    fn durable_wanted(&self) -> Sequence {
        self.waiting_durable
            .last_key_value()
            .map_or(Sequence(0), |((sequence, _), _)| *sequence)
    }

    /// All members have followed up to here. True if that made room for who found none.
    fn followed(&mut self, upto: Sequence) -> bool {
        let behind = self.inflight.split_off(&upto.next());
        let gone = std::mem::replace(&mut self.inflight, behind);
        self.inflight_bytes -= gone.values().sum::<usize>();
        let room = self.was_full && !self.is_full();
        self.was_full &= !room;
        room
    }

    /// Takes out what can be answered.
    fn take_done(&mut self, committed: Sequence, durable: Sequence) -> Vec<Pending> {
        let waiting = self.waiting.split_off(&committed.next());
        let mut done: Vec<Pending> = std::mem::replace(&mut self.waiting, waiting)
            .into_values()
            .collect();
        let rest = self.waiting_durable.split_off(&(durable.next(), 0));
        done.extend(std::mem::replace(&mut self.waiting_durable, rest).into_values());
        done
    }

    fn forget(&mut self, ticket: Ticket) {
        self.waiting.retain(|_, pending| pending.ticket != ticket);
        self.waiting_durable
            .retain(|_, pending| pending.ticket != ticket);
    }
}

impl<P: Payload> Group<P> {
    /// Notes a writer, before anything is done for its request. Refused if it is shut out, or a newer connection of its session
    /// has sent something.
    ///
    /// # Errors
    /// `StaleWrite` and what a fence says.
    pub fn admit(&mut self, writer: Writer) -> Result<(), FsError> {
        if let Some(error) = self.fenced(writer) {
            return Err(error);
        }
        if !self.writers.admit(writer) {
            let context = format!("a newer connection of session {} wrote", writer.session);
            return Err(FsError::new(Code::StaleWrite, context));
        }
        Ok(())
    }

    /// An operation of a client. Nothing is kept of the request unless it is taken, but for its connection generation.
    pub fn write(&mut self, request: &WriteRequest<P>, now: Duration) -> Admission {
        if let Some(admission) = self.not_ready(request.epoch, now) {
            return admission;
        }
        // Also of what is refused below: an earlier attempt that still comes must not be taken after that.
        if let Err(error) = self.admit(request.writer) {
            return Admission::Refused(error);
        }
        let config = &self.config;
        let primary = self.primary.as_mut().expect("ready means primary");
        if primary.requests.is_full() {
            primary.requests.was_full = true;
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
        primary.requests.add(pending, entry.data.len());
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
        primary.requests.add_durable(pending);
        self.want_sync(target);
        self.send_syncs();
        self.advance(now);
        Admission::Taken
    }

    /// Nobody waits for this request any longer.
    pub fn forget(&mut self, ticket: Ticket) {
        if let Some(primary) = &mut self.primary {
            primary.requests.forget(ticket);
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
        let ready = self.takes_requests() && now < self.lease_until();
        (!ready).then_some(Admission::Wait)
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
        let wanted = primary.requests.durable_wanted();
        for (&to, member) in &mut primary.members {
            let wanted = if primary.change.admitting.contains(&to) {
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
        if primary.requests.followed(followed) {
            self.effects.push(Effect::Changed);
        }
        for pending in primary.requests.take_done(self.committed, primary.durable) {
            self.reply(&pending);
        }
        self.tail.trim(self.committed);
        if moved {
            self.effects.push(Effect::Changed);
        }
        if !self
            .primary
            .as_ref()
            .is_none_or(|primary| primary.change.admitting.is_empty())
        {
            self.reconfigure(now);
        }
    }
}
