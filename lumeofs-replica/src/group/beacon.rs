//! Leases inside the group (D4, D5), after PacificA.
//!
//! A beacon's answer lets the primary serve for [`PRIMARY_LEASE`] from the beacon's *sending*: until then
//! the answerer supports no other primary. The primary in turn echoes the answer's time, which lets the
//! answerer read for [`READ_LEASE`] from the answer's *sending*: until then the primary removes it from
//! no in-sync set. The primary echoes only while its own lease holds, so that a read lease outlives
//! a primary by less than [`READ_LEASE`], which is what a new primary waits before it removes anybody.

use super::{Group, LEASE_MARGIN};
use crate::effect::Effect;
use crate::message::{BeaconAnswer, BeaconItem, BeaconSent, Payload};
use lumeofs_base::NodeId;
use lumeofs_base::limits::{PRIMARY_LEASE, READ_LEASE};
use std::time::Duration;

/// Own answers that are remembered until they are echoed: three seconds of beacons.
const ANSWERS_MAX: usize = 8;

impl<P: Payload> Group<P> {
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

    /// Whether a beacon to `to` would say anything about this group.
    pub fn has_beacon(&self, to: NodeId) -> bool {
        self.primary
            .as_ref()
            .is_some_and(|primary| primary.members.contains_key(&to))
    }

    /// The group's part of a beacon to `to`, sent now.
    pub fn beacon(&mut self, to: NodeId, now: Duration) -> Option<BeaconItem> {
        let leased = now < self.lease_until();
        let (epoch, committed) = (self.config.epoch, self.committed);
        let in_sync = self.config.is_in_sync(to) && !self.lets_go(to);
        let primary = self.primary.as_mut()?;
        // Its removal may be accepted any moment, and must not find it with a new lease.
        let stays = in_sync && !primary.change.removing.contains(&to);
        let member = primary.members.get_mut(&to)?;
        let answer = member
            .answer
            .filter(|_| leased && stays && member.trouble.is_none());
        if let Some((_, received)) = answer {
            member.echoed = Some(received);
        }
        Some(BeaconItem {
            epoch,
            committed,
            echo: answer.map(|(sent, _)| sent),
        })
    }

    /// A beacon, received and answered now.
    pub fn on_beacon(&mut self, from: NodeId, item: BeaconItem, now: Duration) -> BeaconAnswer {
        let answer = BeaconAnswer {
            epoch: self.config.epoch,
            low_space: self.low_space,
        };
        if item.epoch > self.config.epoch {
            self.effects.push(Effect::Refresh);
        }
        if item.epoch != self.config.epoch || from != self.config.primary || from == self.me {
            return answer;
        }
        if self.claims_next() {
            // The proposal to replace that primary may have been accepted: no more leases for it.
            self.election.refused_at = Some(now);
            return BeaconAnswer {
                epoch: lumeofs_base::Epoch(0),
                ..answer
            };
        }
        if self.complete {
            self.learn_committed(item.committed);
        }
        let follower = &mut self.follower;
        follower.last_beacon = now;
        follower.promise(from, now);
        follower.reset_seen = false;
        if item
            .echo
            .is_some_and(|echo| follower.answers.contains(&echo))
        {
            let echo = item.echo.expect("just looked at");
            follower.read_until = follower.read_until.max(echo + READ_LEASE - LEASE_MARGIN);
        }
        follower.answers.push_back(now);
        if follower.answers.len() > ANSWERS_MAX {
            follower.answers.pop_front();
        }
        answer
    }

    /// A member's answer, given at `answered` on its clock, to the beacon `sent`.
    pub fn on_beacon_answer(
        &mut self,
        from: NodeId,
        answer: BeaconAnswer,
        sent: BeaconSent,
        answered: Duration,
        now: Duration,
    ) {
        if answer.epoch > self.config.epoch {
            self.effects.push(Effect::Refresh);
        }
        // A beacon of an older epoch may have been refused by a member that is in this one.
        if answer.epoch != self.config.epoch || sent.epoch != self.config.epoch {
            return;
        }
        let before = self.lease_until();
        let Some(primary) = &mut self.primary else {
            return;
        };
        let Some(member) = primary.members.get_mut(&from) else {
            return;
        };
        member.heard = now;
        member.low_space = answer.low_space;
        member.answer = Some((answered, now));
        member.beacon_acked = member.beacon_acked.max(Some(sent.at));
        if before <= now && now < self.lease_until() {
            self.effects.push(Effect::Changed);
        }
    }

    /// A connection by which the primary's beacons came has ended.
    pub fn on_primary_reset(&mut self, from: NodeId) {
        if self.primary.is_none() && from == self.config.primary {
            self.follower.reset_seen = true;
        }
    }
}
