//! A primary that gives its office to another in-sync member, in order: because it leaves the group, because its copy is
//! damaged, or because the group's first member, which is to lead, is back.
//!
//! It takes no new requests, waits until those under way are answered, and only then proposes the other. From that
//! moment on it serves nothing until an epoch has decided: the proposal may have been accepted, and then the other one
//! serves without waiting for this one's lease to end.

use super::primary::Primary;
use super::{Group, YIELD_PATIENCE};
use crate::message::Payload;
use lumeofs_base::NodeId;
use std::time::Duration;

/// How long the group's first member must have been well before it is made primary again.
pub(super) const FIRST_AGAIN_AFTER: Duration = Duration::from_secs(30);

/// A change of office that has begun.
#[derive(Clone, Copy, Debug)]
pub(super) struct Yielding {
    to: NodeId,
    since: Duration,
    /// The successor was proposed: nothing is served until an epoch has decided.
    pub(super) proposed: bool,
}

impl<P: Payload> Group<P> {
    /// The own copy of a chunk cannot be read, so that it cannot be given to a member that lacks it: if this one leads,
    /// another is to do so that is in sync.
    pub fn on_unreadable(&mut self) {
        self.step_down = self.primary.is_some();
    }

    /// Begins to give the office to another member, or goes on with it. True while it does.
    pub(super) fn yield_office(&mut self, now: Duration) -> bool {
        let successor = self.successor(now);
        let Some(primary) = &mut self.primary else {
            return false;
        };
        let Some(mut yielding) = primary.yielding else {
            let begins = successor.map(|to| Yielding {
                to,
                since: now,
                proposed: false,
            });
            primary.yielding = begins;
            return begins.is_some();
        };
        let answered = primary.requests.is_idle() && self.committed == self.last.sequence;
        if !yielding.proposed {
            let still = successor == Some(yielding.to);
            if !still || (!answered && now >= yielding.since + YIELD_PATIENCE) {
                primary.yielding = None;
                self.effects.push(crate::Effect::Changed);
                return false;
            }
            yielding.proposed = answered;
            primary.yielding = Some(yielding);
        }
        if yielding.proposed {
            self.hand_over(yielding.to, now);
        }
        true
    }

    /// Who is to lead instead of this member, if anybody.
    fn successor(&self, now: Duration) -> Option<NodeId> {
        let primary = self.primary.as_ref()?;
        let change = &primary.change;
        if !primary.serving || !change.proposed.is_empty() || !change.removing.is_empty() {
            return None;
        }
        let stays = self.config.staying();
        let can_lead = |node: &NodeId| self.can_lead(primary, *node);
        if self.lets_go(self.me) || self.step_down {
            return stays.into_iter().find(can_lead);
        }
        let first = self.config.staying().next().filter(can_lead)?;
        let well_since = primary.members.get(&first)?.live_since.max(primary.since);
        (now >= well_since + FIRST_AGAIN_AFTER).then_some(first)
    }

    fn can_lead(&self, primary: &Primary<P>, node: NodeId) -> bool {
        let is_well = |member: &super::peer::Member<P>| {
            member.is_live() && member.trouble.is_none() && member.applied >= self.committed
        };
        node != self.me
            && self.config.is_in_sync(node)
            && primary.members.get(&node).is_some_and(is_well)
    }
}
