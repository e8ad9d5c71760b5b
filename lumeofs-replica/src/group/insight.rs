//! What a primary can say of the others: who is being caught up, and how far.

use super::Group;
use super::catchup::CatchUpProgress;
use super::peer::Phase;
use crate::message::Payload;

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
}
