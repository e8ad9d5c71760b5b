//! The primary's streams: attaching members, and deciding how each gets the primary's history.

use super::catchup::CatchUp;
use super::peer::{Attached, Member, Phase};
use super::{Group, REOPEN_AFTER};
use crate::effect::Effect;
use crate::message::{Payload, StreamId, ToMember, ToPrimary};
use lumeofs_base::{NodeId, Sequence};
use std::time::Duration;

impl<P: Payload> Group<P> {
    fn member(&mut self, node: NodeId, stream: StreamId) -> Option<&mut Member<P>> {
        let member = self.primary.as_mut()?.members.get_mut(&node)?;
        (member.stream == Some(stream)).then_some(member)
    }

    /// A stream that [`Effect::Open`] asked for is there.
    pub fn on_stream_open(&mut self, to: NodeId, stream: StreamId, now: Duration) {
        let config = self.config.clone();
        let Some(member) = self.member(to, stream) else {
            return;
        };
        member.phase = Phase::Attaching;
        (member.heard, member.progress) = (now, now);
        self.effects.push(Effect::Send {
            to,
            stream,
            message: ToMember::Attach { config },
        });
    }

    /// It could not be opened, or it broke.
    pub fn on_stream_closed(&mut self, to: NodeId, stream: StreamId, now: Duration) {
        let Some(member) = self.member(to, stream) else {
            return;
        };
        member.stream = None;
        member.phase = Phase::Down;
        member.reopen_at = now + REOPEN_AFTER;
        member.trouble.get_or_insert(now);
        if let Some(primary) = &mut self.primary {
            primary.change.admitting.remove(&to);
        }
    }

    /// A member's message on such a stream.
    pub fn on_answer(
        &mut self,
        from: NodeId,
        stream: StreamId,
        answer: ToPrimary<P>,
        now: Duration,
    ) {
        let Some(member) = self.member(from, stream) else {
            return;
        };
        member.heard = now;
        match answer {
            ToPrimary::Attached {
                complete,
                last,
                tail_from,
                applied,
                durable,
            } => {
                if !matches!(member.phase, Phase::Attaching) {
                    return;
                }
                member.said_incomplete = !complete;
                member.sync_sent = Sequence(0);
                (member.applied, member.durable) = if complete {
                    (applied, durable)
                } else {
                    (Sequence(0), Sequence(0))
                };
                member.phase = Phase::Attached(Attached {
                    complete,
                    last,
                    tail_from,
                });
                self.settle(now);
                self.primary_tick(now);
            }
            ToPrimary::Refused { epoch } => {
                if epoch > self.config.epoch {
                    self.effects.push(Effect::Refresh);
                }
                self.fail_stream(from, stream, now);
            }
            ToPrimary::Failed { .. } => self.fail_stream(from, stream, now),
            ToPrimary::Ack { applied, durable } => {
                if member.is_live() {
                    member.acknowledged(applied, durable, now);
                } else if let Phase::CatchingUp(catch_up) = &mut member.phase {
                    catch_up.position = catch_up.position.max(applied);
                    member.progress = now;
                }
            }
            ToPrimary::TailOp { entry } => {
                let next = entry.version.sequence == self.last.sequence.next()
                    && entry.version.epoch >= self.last.epoch
                    && entry.version.epoch < self.config.epoch;
                if next && self.fetching_from() == Some(from) {
                    self.extend(&entry);
                    self.route(&entry, false, Some(from), now);
                }
            }
            ToPrimary::TailEnd => {
                if let Some(Member { phase, .. }) = self.member(from, stream)
                    && let Phase::Fetching(attached) = *phase
                {
                    *phase = Phase::Attached(attached);
                    self.settle(now);
                }
            }
            ToPrimary::Listed { chunks, end } => {
                self.catch_up_step(from, stream, now, |catch_up| {
                    catch_up.on_listed(chunks, end)
                });
            }
            ToPrimary::Copied => {
                self.catch_up_step(from, stream, now, CatchUp::on_copied);
            }
            ToPrimary::Finished { last } => self.finished(from, stream, last, now),
        }
        self.advance(now);
    }

    /// The member has made progress, of which the driver will tell when it is time to go on.
    pub fn on_held_back(&mut self, from: NodeId, stream: StreamId, now: Duration) {
        if let Some(member) = self.member(from, stream) {
            member.progress = now;
        }
    }

    /// The driver gives a stream up: what the member needs cannot be read here.
    pub fn abandon_stream(&mut self, to: NodeId, stream: StreamId, now: Duration) {
        if self.member(to, stream).is_some() {
            self.fail_stream(to, stream, now);
        }
    }

    fn fail_stream(&mut self, to: NodeId, stream: StreamId, now: Duration) {
        self.effects.push(Effect::Close { to, stream });
        self.on_stream_closed(to, stream, now);
        if let Some(member) = self
            .primary
            .as_mut()
            .and_then(|primary| primary.members.get_mut(&to))
        {
            member.reopen_at = now + REOPEN_AFTER * 3;
        }
    }

    fn fetching_from(&self) -> Option<NodeId> {
        let members = &self.primary.as_ref()?.members;
        members
            .iter()
            .find(|(_, m)| matches!(m.phase, Phase::Fetching(_)))
            .map(|(node, _)| *node)
    }

    /// Decides about attached members, and begins to serve when all in-sync members agree.
    pub(super) fn settle(&mut self, now: Duration) {
        let Some(primary) = &self.primary else { return };
        let attached: Vec<_> = primary
            .members
            .iter()
            .filter_map(|(node, member)| match member.phase {
                Phase::Attached(attached) => Some((*node, member.stream?, attached)),
                _ => None,
            })
            .collect();
        for (node, stream, attached) in attached {
            self.settle_member(node, stream, attached, now);
        }
        let Some(primary) = &mut self.primary else {
            return;
        };
        let agreed = self
            .config
            .in_sync
            .iter()
            .filter(|node| **node != self.me)
            .all(|node| primary.members.get(node).is_some_and(Member::is_live));
        if !primary.serving && agreed {
            primary.serving = true;
            self.effects.push(Effect::Changed);
        }
    }

    fn settle_member(&mut self, node: NodeId, stream: StreamId, attached: Attached, now: Duration) {
        let (mine, theirs) = (self.last, attached.last);
        let known = attached.complete && self.config.is_in_sync(node);
        let recovered = self
            .primary
            .as_ref()
            .is_some_and(|primary| primary.recovered);
        if known && recovered && !self.is_serving() && !self.note.contains(mine, theirs) {
            return self.hand_over(node, now);
        }
        if known && theirs.sequence > mine.sequence {
            let reachable =
                attached.tail_from <= mine.sequence.next() && theirs.epoch >= mine.epoch;
            if self.is_serving() || !reachable {
                return self.start_catch_up(node, stream, now);
            }
            if self.fetching_from().is_none() {
                if let Some(member) = self.member(node, stream) {
                    member.phase = Phase::Fetching(attached);
                    member.progress = now;
                }
                let message = ToMember::Tail {
                    after: mine.sequence,
                };
                self.effects.push(Effect::Send {
                    to: node,
                    stream,
                    message,
                });
            }
            return;
        }
        let same_branch = self.note.contains(mine, theirs);
        if !known || !same_branch || self.tail_from() > theirs.sequence.next() {
            return self.start_catch_up(node, stream, now);
        }
        let committed = self.committed;
        let missing: Vec<_> = self.tail.after(theirs.sequence).cloned().collect();
        self.go_live(node, stream, now);
        for entry in missing {
            let message = ToMember::Op {
                entry,
                committed,
                sync: false,
            };
            self.effects.push(Effect::Send {
                to: node,
                stream,
                message,
            });
        }
        self.send_syncs();
    }

    pub(super) fn go_live(&mut self, node: NodeId, stream: StreamId, now: Duration) {
        let Some(member) = self.member(node, stream) else {
            return;
        };
        member.phase = Phase::Live;
        member.live_since = now;
        member.trouble = None;
        (member.progress, member.synced) = (now, now);
        member.told_committed = Sequence(0);
        member.sync_sent = Sequence(0);
    }

    fn start_catch_up(&mut self, node: NodeId, stream: StreamId, now: Duration) {
        let position = self.last;
        let config = &self.config;
        let Some(primary) = &mut self.primary else {
            return;
        };
        // One recorded in-sync member at a time: while its chunks are being replaced it could not lead,
        // and there must always be another that can.
        let busy = primary.members.iter().any(|(other, member)| {
            config.is_in_sync(*other) && matches!(member.phase, Phase::CatchingUp(_))
        });
        if config.is_in_sync(node) && busy {
            return;
        }
        // While a tail is being fetched the own history still grows by what others already have.
        let Some(member) = primary.members.get_mut(&node) else {
            return;
        };
        let (catch_up, message) = CatchUp::start(position);
        member.phase = Phase::CatchingUp(Box::new(catch_up));
        (member.applied, member.durable) = (Sequence(0), Sequence(0));
        member.trouble.get_or_insert(now);
        member.progress = now;
        self.effects.push(Effect::Send {
            to: node,
            stream,
            message,
        });
        self.catch_up_step(node, stream, now, CatchUp::next_step);
    }

    /// Lets a catch-up go on and carries out what it wants.
    pub(super) fn catch_up_step(
        &mut self,
        node: NodeId,
        stream: StreamId,
        now: Duration,
        step: impl FnOnce(&mut CatchUp<P>) -> Vec<super::catchup::Step<P>>,
    ) {
        let (last, note) = (self.last, self.note.clone());
        let Some(member) = self.member(node, stream) else {
            return;
        };
        let Phase::CatchingUp(catch_up) = &mut member.phase else {
            return;
        };
        member.progress = now;
        let steps = step(catch_up);
        for step in steps {
            let message = match step {
                super::catchup::Step::Send(message) => message,
                super::catchup::Step::List { after } => {
                    let work = crate::Work::ListOwn {
                        member: node,
                        stream,
                        after,
                    };
                    self.effects.push(Effect::Work(work));
                    continue;
                }
                super::catchup::Step::Read { chunk, offset } => {
                    let work = crate::Work::ReadPiece {
                        member: node,
                        stream,
                        chunk,
                        offset,
                    };
                    self.effects.push(Effect::Work(work));
                    continue;
                }
                super::catchup::Step::Done => ToMember::Done {
                    last,
                    starts: note.starts.clone(),
                    writers: self.writers.recent(4096),
                    fence: note.fence.clone(),
                },
            };
            self.effects.push(Effect::Send {
                to: node,
                stream,
                message,
            });
        }
    }

    /// A page of own chunks, read in the store's order, for a catch-up.
    pub fn on_own_list(
        &mut self,
        member: NodeId,
        stream: StreamId,
        chunks: Vec<lumeofs_base::ChunkState>,
        end: bool,
        now: Duration,
    ) {
        self.catch_up_step(member, stream, now, |catch_up| {
            catch_up.on_own_list(chunks, end)
        });
    }

    /// A piece of a chunk, read in the store's order, for a catch-up.
    pub fn on_piece(
        &mut self,
        member: NodeId,
        stream: StreamId,
        piece: crate::Piece<P>,
        now: Duration,
    ) {
        self.catch_up_step(member, stream, now, |catch_up| catch_up.on_piece(piece));
    }

    fn finished(&mut self, node: NodeId, stream: StreamId, last: Sequence, now: Duration) {
        let in_sync = self.config.is_in_sync(node);
        let Some(member) = self.member(node, stream) else {
            return;
        };
        if !matches!(&member.phase, Phase::CatchingUp(catch_up) if catch_up.is_done()) {
            return;
        }
        (member.applied, member.durable) = (last, last);
        self.go_live(node, stream, now);
        if !in_sync && let Some(primary) = &mut self.primary {
            primary.change.admitting.insert(node);
        }
        self.send_syncs();
        self.settle(now);
    }
}
