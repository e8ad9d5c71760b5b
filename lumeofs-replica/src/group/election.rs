//! Who becomes primary (D4, D6). Members only propose: the controller's compare-and-set on the epoch
//! decides.
//!
//! An in-sync secondary takes over when no beacon came for long enough that the primary's lease
//! has ended. If all in-sync members that can be reached have restarted, the one with the longest
//! history leads, after a wait that outlasts every lease that one of them may have given.

use super::{ANSWER_VALID, ASK_INTERVAL, Group, PROPOSAL_TIMEOUT, RANK_DELAY};
use crate::effect::Effect;
use crate::message::{Payload, PeerState};
use lumeofs_base::limits::{GROUP_RESTART_WAIT, PRIMARY_GRACE, PRIMARY_LEASE, READ_LEASE};
use lumeofs_base::{Epoch, GroupConfig, NodeId};
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
    /// Epoch for which this member proposed itself as primary.
    pub(super) claimed: Option<Epoch>,
    pub(super) states: BTreeMap<NodeId, (Duration, PeerState)>,
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
        let next = if self.complete {
            self.take_over(now)
        } else {
            self.restart(now)
        };
        if let Some((primary, in_sync)) = next {
            let epoch = self.config.epoch.next();
            self.election.claimed = Some(epoch);
            let config = GroupConfig {
                epoch,
                primary,
                in_sync,
                ..self.config.clone()
            };
            self.propose(config, now);
        }
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
            follower.last_beacon
        } else {
            dead_at
        } + RANK_DELAY * rank;
        if follower.reset_seen || now >= dead_at {
            self.ask(&[old], now);
        }
        if now < due || !(gave_up || now >= dead_at) {
            return None;
        }
        if others.len() >= self.config.write_quorum() {
            return Some((self.me, others));
        }
        // Too few without it. If it is back, it is caught up before anything is acknowledged.
        gave_up.then(|| (self.me, self.config.in_sync.clone()))
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
                Some(state) if state.complete => return None,
                Some(state) => present.push(state),
                None => {}
            }
        }
        let all = present.len() == self.config.in_sync.len();
        let waited = now >= quiet + GROUP_RESTART_WAIT;
        let settled = all || (waited && present.len() >= self.config.write_quorum());
        if !settled {
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
        in_sync.retain(|node| present.iter().any(|state| state.node == *node));
        (leader.node == self.me).then_some((self.me, in_sync))
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
