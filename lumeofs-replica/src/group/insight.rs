//! What a member can say of the others: who is being caught up and how far, and for whom requests wait.

use super::catchup::CatchUpProgress;
use super::peer::Phase;
use super::{Group, MEMBER_SILENCE};
use crate::message::Payload;
use lumeofs_base::{NodeId, Sequence};
use std::time::Duration;

/// Where requests of the group wait, if any do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waits {
    /// In-sync members that have not taken all operations; at the primary.
    Members(Vec<NodeId>),
    /// In-sync members that have not all on disk; at the primary.
    Disks(Vec<NodeId>),
    /// In-sync members that are silent: without their answers the primary has no lease.
    Lease(Vec<NodeId>),
    /// The primary does not serve yet: these have not agreed with it, or given it a lease.
    Agreement(Vec<NodeId>),
    /// Another member leads.
    Primary(NodeId),
    /// It leads nobody and follows nobody: the named primary is waited for, or replaced.
    NoPrimary(NodeId),
    /// For nothing that the group knows of.
    Nothing,
}

impl<P: Payload> Group<P> {
    /// Where requests wait now.
    pub fn waits(&self, now: Duration) -> Waits {
        let Some(primary) = &self.primary else {
            return match self.complete {
                true => Waits::Primary(self.config.primary),
                false => Waits::NoPrimary(self.config.primary),
            };
        };
        let required = self.required();
        let position = |node: &NodeId, of: fn(&super::peer::Member<P>) -> Sequence| {
            primary.members.get(node).map_or(Sequence(0), of)
        };
        let behind =
            |own: Sequence, upto: Sequence, of: fn(&super::peer::Member<P>) -> Sequence| {
                let others = required.iter().filter(|node| position(node, of) < upto);
                let own = (own < upto).then_some(self.me);
                own.into_iter().chain(others.copied()).collect::<Vec<_>>()
            };
        if !primary.serving {
            let is_live = |node: &&NodeId| {
                let member = primary.members.get(node);
                member.is_some_and(|member| matches!(member.phase, Phase::Live))
            };
            let others = required.iter().filter(|node| !is_live(node));
            return Waits::Agreement(others.copied().collect());
        }
        let members = behind(self.applied, self.last.sequence, |member| member.applied);
        if !members.is_empty() {
            return Waits::Members(members);
        }
        let disks = behind(self.durable, self.sync_wanted, |member| member.durable);
        if !disks.is_empty() {
            return Waits::Disks(disks);
        }
        let is_silent = |node: &&NodeId| {
            let member = primary.members.get(node);
            member.is_none_or(|member| now > member.heard + MEMBER_SILENCE)
        };
        let silent: Vec<_> = required.iter().filter(is_silent).copied().collect();
        match silent.is_empty() {
            true => Waits::Nothing,
            false => Waits::Lease(silent),
        }
    }

    /// How far members have been caught up. Empty at any other than the primary.
    pub fn catch_ups(&self) -> Vec<CatchUpProgress> {
        let members = self.primary.iter().flat_map(|primary| &primary.members);
        members
            .filter_map(|(node, member)| match &member.phase {
                Phase::CatchingUp(catch_up) => Some(catch_up.progress(*node)),
                _ => None,
            })
            .collect()
    }
}
