//! What a primary can say of the others: who is being caught up, and whom operations wait for.

use super::catchup::CatchUpProgress;
use super::peer::Phase;
use super::{Group, Role};
use crate::message::Payload;
use lumeofs_base::{NodeId, Sequence};

impl<P: Payload> Group<P> {
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

    /// Members that an operation which is under way waits for, this one too. For a sync their disks count.
    pub fn waits_for(&self, sync: bool) -> Vec<NodeId> {
        let mut nodes = Vec::new();
        let Some(primary) = &self.primary else {
            return nodes;
        };
        let lacks = |applied: Sequence, durable: Sequence| {
            applied < self.last.sequence || (sync && durable < self.last.sequence)
        };
        if lacks(self.applied, self.durable) {
            nodes.push(self.me);
        }
        nodes.extend(self.required().into_iter().filter(|node| {
            let member = primary.members.get(node);
            member.is_none_or(|member| lacks(member.applied, member.durable))
        }));
        nodes
    }

    /// Who could serve the group if this member cannot: the primary, or nobody while there is none.
    pub fn served_by(&self) -> Option<NodeId> {
        match self.role() {
            Role::Primary => Some(self.me),
            _ if self.config.primary != self.me => Some(self.config.primary),
            _ => None,
        }
    }
}
