//! Who becomes primary (D4, D6). Members only propose: the controller's compare-and-set on the epoch
//! decides.
//!
//! An in-sync secondary takes over when no beacon came for long enough that the primary's lease
//! has ended. If all in-sync members that can be reached have restarted, the one with the longest
//! history leads, after a wait that outlasts every lease that one of them may have given.
//!
//! *Too few of them.* Both do so too when fewer than a write quorum are there, and then leave the in-sync
//! set as it is. Such a primary acknowledges nothing, since that takes every in-sync member, and
//! it cannot remove one as long as fewer than a quorum would remain. But it can catch up members that
//! are not in sync, and once enough of them are, one proposal counts them in and leaves out the ones
//! that are gone. What may be lost:
//!
//! * A secondary that did not restart has every acknowledged operation. Nothing.
//! * A member that restarted has on its disk every operation that an fsync was answered for, because those
//!   are on the disks of *all* in-sync members. What was only in memory may be with an in-sync
//!   member that did not restart and cannot be reached. If that one comes back within
//!   [`super::ABSENT_GRACE`] it is made primary; beyond that the group does not wait for it, since it may
//!   be gone for ever. As with a quorum that restarted, whose wait is [`GROUP_RESTART_WAIT`], power lost at
//!   fewer than all members can then lose operations that no fsync covered; `LostTail` tells their
//!   writers.
//! * A member whose catch-up was cut short has a mixture and never leads. If it was in sync and the
//!   others are gone for good, a person must decide.

use super::{ANSWER_VALID, ASK_INTERVAL, Group, PROPOSAL_TIMEOUT, RANK_DELAY};
use crate::effect::Effect;
use crate::message::{Payload, PeerState};
use lumeofs_base::limits::{GROUP_RESTART_WAIT, PRIMARY_GRACE, PRIMARY_LEASE, READ_LEASE};
use lumeofs_base::{GroupConfig, NodeId};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

const _: () = assert!(
    GROUP_RESTART_WAIT.as_millis() >= PRIMARY_LEASE.as_millis() + READ_LEASE.as_millis(),
    "a restarted member may have given the old primary a lease just before"
);

/// State of proposals and questions.
#[derive(Default)]
pub(super) struct Election {
    pub(super) proposed_at: Option<Duration>,
    /// The configuration in which this member proposed itself as primary.
    pub(super) claimed: Option<GroupConfig>,
    pub(super) states: BTreeMap<NodeId, (Duration, PeerState)>,
    /// When a beacon of the primary in force was refused because of such a proposal.
    pub(super) refused_at: Option<Duration>,
    asked_at: Option<Duration>,
}

impl<P: Payload> Group<P> {
    /// A member's answer to [`Effect::Ask`].
    pub fn on_peer_state(&mut self, state: PeerState, now: Duration) {
        if state.epoch > self.config.epoch {
            self.effects.push(Effect::Refresh);
        }
        if state.epoch == self.config.epoch {
            self.election.states.insert(state.node, (now, state));
            self.on_tick(now);
        }
    }

    pub(super) fn election_tick(&mut self, now: Duration) {
        let recently = |at: Duration| now < at + PROPOSAL_TIMEOUT;
        if !self.config.is_in_sync(self.me) || self.election.proposed_at.is_some_and(recently) {
            return;
        }
        if self.watch.is_suspect() {
            return;
        }
        let next = if self.complete {
            self.take_over(now)
        } else {
            self.restart(now)
        };
        if let Some((primary, in_sync)) = next.or_else(|| self.withdraw(now)) {
            let config = GroupConfig {
                epoch: self.config.epoch.next(),
                primary,
                in_sync,
                ..self.config.clone()
            };
            self.election.claimed = Some(config.clone());
            self.propose(config, now);
        }
    }

    /// Whoever proposed itself supports the primary in force no longer, for its proposal may have been
    /// accepted. If the reason has gone and that primary is there, the next epoch is to decide.
    fn withdraw(&self, now: Duration) -> Option<(NodeId, Vec<NodeId>)> {
        let claims = self.claims_next();
        let refused = |at: Duration| now < at + ANSWER_VALID;
        (claims && self.election.refused_at.is_some_and(refused))
            .then(|| (self.config.primary, self.config.in_sync.clone()))
    }

    /// An in-sync member without a primary: itself, once the primary's lease is over for certain.
    fn take_over(&mut self, now: Duration) -> Option<(NodeId, Vec<NodeId>)> {
        let old = self.config.primary;
        let others: Vec<NodeId> = self
            .config
            .in_sync
            .iter()
            .copied()
            .filter(|node| *node != old)
            .collect();
        let order = |node: &NodeId| self.config.members.iter().position(|member| member == node);
        let rank = others
            .iter()
            .filter(|node| order(node) < order(&self.me))
            .count() as u32;
        let follower = &self.follower;
        let dead_at = if follower.reset_seen {
            follower.last_answer + PRIMARY_LEASE
        } else {
            follower.last_beacon + PRIMARY_GRACE
        };
        // A process that says that it has just started, or that it gave up, holds no lease.
        let gave_up = self
            .answer_of(old, now)
            .is_some_and(|state| !state.complete);
        let due = if gave_up {
            // But the one before it may, if this primary never came to lead.
            follower
                .last_beacon
                .max(follower.promised_until(|node| node == old))
        } else {
            dead_at
        } + RANK_DELAY * rank;
        if follower.reset_seen || now >= dead_at {
            self.ask(&[old], now);
        }
        if now < due || !(gave_up || now >= dead_at) {
            return None;
        }
        let enough = others.len() >= self.config.write_quorum();
        let in_sync = if enough {
            others
        } else {
            self.config.in_sync.clone()
        };
        Some((self.me, in_sync))
    }

    /// An in-sync member that restarted (D6): the longest history among those that are there.
    fn restart(&mut self, now: Duration) -> Option<(NodeId, Vec<NodeId>)> {
        let quiet = self
            .created
            .max(self.follower.last_beacon)
            .max(self.follower.last_answer);
        if self.follower.stream.is_some() {
            return None;
        }
        let others: Vec<NodeId> = self
            .config
            .in_sync
            .iter()
            .copied()
            .filter(|node| *node != self.me)
            .collect();
        self.ask(&others, now);
        let mut present = vec![self.peer_state()];
        for node in others {
            match self.answer_of(node, now) {
                Some(state) if state.complete && state.eligible => return None,
                // Its disk hangs, so it will not lead: as good as away.
                Some(state) if state.complete => {}
                Some(state) => present.push(state),
                None => {}
            }
        }
        let is_present = |node: NodeId| present.iter().any(|state| state.node == node);
        let all = present.len() == self.config.in_sync.len();
        // Those that are present hold no lease.
        let ready_at = if all {
            self.follower.promised_until(is_present)
        } else {
            quiet + GROUP_RESTART_WAIT
        };
        if now < ready_at {
            return None;
        }
        let config = &self.config;
        let preferred = |node: NodeId| {
            let order = config.members.iter().position(|member| *member == node);
            (node == config.primary, Reverse(order))
        };
        let eligible = present.iter().filter(|state| state.eligible);
        let leader = eligible.max_by_key(|state| (state.last, preferred(state.node)))?;
        let mut in_sync = config.in_sync.clone();
        if present.len() >= config.write_quorum() {
            in_sync.retain(|node| is_present(*node));
        }
        (leader.node == self.me).then_some((self.me, in_sync))
    }

    /// Whether this member proposed itself for the next epoch, which may have been accepted.
    pub(super) fn claims_next(&self) -> bool {
        let claimed = self.election.claimed.as_ref();
        claimed.is_some_and(|config| config.epoch == self.config.epoch.next())
    }

    fn answer_of(&self, node: NodeId, now: Duration) -> Option<PeerState> {
        let (at, state) = self.election.states.get(&node)?;
        (now < *at + ANSWER_VALID).then_some(*state)
    }

    fn ask(&mut self, nodes: &[NodeId], now: Duration) {
        if self
            .election
            .asked_at
            .is_some_and(|at| now < at + ASK_INTERVAL)
        {
            return;
        }
        self.election.asked_at = Some(now);
        let asks = nodes.iter().filter(|node| **node != self.me);
        self.effects.extend(asks.map(|&node| Effect::Ask { node }));
    }
}
