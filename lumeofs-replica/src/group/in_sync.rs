//! Changing the in-sync set (D4, D5): who is removed, who is admitted, and whose acknowledgement an
//! operation needs meanwhile.

use super::peer::Member;
use super::primary::Primary;
use super::{ABSENT_GRACE, Group, PROPOSAL_TIMEOUT, RECONNECT_GRACE, SETTLE_GRACE};
use crate::effect::Effect;
use crate::message::Payload;
use lumeofs_base::limits::READ_LEASE;
use lumeofs_base::{GroupConfig, NodeId};
use std::collections::BTreeSet;
use std::time::Duration;

/// Changes that an epoch has not decided about.
#[derive(Default)]
pub(super) struct Change {
    /// Members that have caught up and are about to be proposed: what is acknowledged, they have.
    pub(super) admitting: BTreeSet<NodeId>,
    /// Members that a proposal of this epoch counts in. Required until the next epoch, since it may have
    /// been accepted already.
    pub(super) proposed: BTreeSet<NodeId>,
    /// Members that a proposal of this epoch leaves out. They get no read lease until the next epoch: the
    /// proposal may be accepted long after it was made.
    pub(super) removing: BTreeSet<NodeId>,
}

impl<P: Payload> Group<P> {
    /// Members whose acknowledgement every operation needs.
    pub(super) fn required(&self) -> Vec<NodeId> {
        let Some(primary) = &self.primary else {
            return Vec::new();
        };
        let others = self.config.in_sync.iter().filter(|node| **node != self.me);
        others
            .chain(&primary.change.admitting)
            .chain(&primary.change.proposed)
            .copied()
            .collect()
    }

    /// Proposes the in-sync set that the members' state calls for, if it differs.
    pub(super) fn reconfigure(&mut self, now: Duration) {
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
                if !member.is_none_or(|member| self.is_removable(primary, node, member, now)) {
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
        // Members of a lost proposal stay required, or without reads, until an epoch decides about it.
        let open = primary
            .change
            .proposed
            .iter()
            .any(|node| !config.is_in_sync(*node))
            || !primary.change.removing.is_empty();
        if unchanged && !open {
            return;
        }
        let mut removed = config.in_sync.clone();
        removed.retain(|node| !kept.contains(node));
        let next = GroupConfig {
            epoch: config.epoch.next(),
            in_sync: kept,
            ..config.clone()
        };
        if let Some(primary) = &mut self.primary {
            primary.change.proposed.extend(added);
            primary.change.removing.extend(removed);
        }
        self.propose(next, now);
    }

    /// Proposes a member as primary that has more than this one, which restarted (D1). Nothing was
    /// acknowledged meanwhile.
    pub(super) fn hand_over(&mut self, to: NodeId, now: Duration) {
        let recently = |at: Duration| now < at + PROPOSAL_TIMEOUT;
        if self.election.proposed_at.is_some_and(recently) {
            return;
        }
        let config = GroupConfig {
            epoch: self.config.epoch.next(),
            primary: to,
            ..self.config.clone()
        };
        self.propose(config, now);
    }

    pub(super) fn propose(&mut self, config: GroupConfig, now: Duration) {
        self.election.proposed_at = Some(now);
        self.effects.push(Effect::Propose {
            expected: self.config.epoch,
            config,
        });
    }

    /// Whether a member is to go and is needed no longer.
    pub(super) fn lets_go(&self, node: NodeId) -> bool {
        self.config.leaving.contains(&node) && self.config.can_spare_leaving()
    }

    /// Whether an in-sync member may be removed: it is gone, and can no longer answer reads (D5).
    fn is_removable(
        &self,
        primary: &Primary<P>,
        node: NodeId,
        member: &Member<P>,
        now: Duration,
    ) -> bool {
        let reads_no_more = now >= primary.since + READ_LEASE
            && member.echoed.is_none_or(|at| now >= at + READ_LEASE);
        if self.lets_go(node) && primary.serving && reads_no_more {
            return true;
        }
        let Some(trouble) = member.trouble else {
            return false;
        };
        if member.is_known_incomplete() {
            return primary.serving || now >= trouble.max(primary.since) + SETTLE_GRACE;
        }
        if primary.recovered && !primary.serving && now < trouble.max(primary.since) + ABSENT_GRACE
        {
            return false;
        }
        now >= trouble + RECONNECT_GRACE && reads_no_more
    }

    /// Whether a member has all that was ever acknowledged.
    fn is_admissible(&self, primary: &Primary<P>, node: NodeId, member: &Member<P>) -> bool {
        let needed = if primary.serving {
            self.committed
        } else {
            self.last.sequence
        };
        primary.change.admitting.contains(&node)
            && !self.lets_go(node)
            && member.is_live()
            && member.applied >= needed
            && member.durable >= primary.durable
    }
}
