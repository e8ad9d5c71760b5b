//! A primary's time in office: becoming one, staying one, watching the others.

use super::in_sync::Change;
use super::peer::{Member, Phase};
use super::requests::Requests;
use super::yielding::Yielding;
use super::{ACK_SILENCE, Group, MEMBER_SILENCE};
use crate::effect::Effect;
use crate::message::{Payload, StreamId, ToMember};
use lumeofs_base::{NodeId, Sequence};
use std::collections::BTreeMap;
use std::time::Duration;

/// What only a primary has.
pub(super) struct Primary<P> {
    pub(super) since: Duration,
    /// All in-sync members have agreed once; operations may be ordered.
    pub(super) serving: bool,
    /// It restarted, and leads because no member that did not restart was there.
    pub(super) recovered: bool,
    pub(super) members: BTreeMap<NodeId, Member<P>>,
    pub(super) change: Change,
    /// Highest sequence that all required members had on disk.
    pub(super) durable: Sequence,
    pub(super) requests: Requests,
    /// It is giving its office to another member.
    pub(super) yielding: Option<Yielding>,
}

impl<P> Primary<P> {
    fn new(since: Duration, recovered: bool) -> Self {
        Self {
            since,
            serving: false,
            recovered,
            members: BTreeMap::new(),
            change: Change::default(),
            durable: Sequence(0),
            requests: Requests::default(),
            yielding: None,
        }
    }

    pub(super) fn open_streams(&self) -> impl Iterator<Item = (NodeId, StreamId)> {
        self.members
            .iter()
            .filter_map(|(node, member)| Some((*node, member.stream?)))
    }
}

impl<P: Payload> Group<P> {
    pub(super) fn is_serving(&self) -> bool {
        let serves = |primary: &Primary<P>| {
            let proposed = primary.yielding.is_some_and(|yielding| yielding.proposed);
            primary.serving && !proposed
        };
        self.primary.as_ref().is_some_and(serves)
    }

    /// Whether new requests may begin.
    pub(super) fn takes_requests(&self) -> bool {
        let yields = |primary: &Primary<P>| primary.yielding.is_some();
        self.is_serving() && !self.primary.as_ref().is_some_and(yields)
    }

    /// Becomes primary of the configuration.
    pub(super) fn lead(&mut self, recovered: bool, now: Duration) {
        let mut primary = Primary::new(now, recovered);
        for &node in self.config.members.iter().filter(|node| **node != self.me) {
            primary.members.insert(node, Member::new(now));
        }
        self.primary = Some(primary);
        self.sync_asked = self.durable;
        self.effects.push(Effect::BeaconNow);
        self.primary_tick(now);
    }

    /// Stays primary in the next configuration.
    pub(super) fn primary_continues(&mut self, now: Duration) {
        let config = self.config.clone();
        let Some(primary) = &mut self.primary else {
            return;
        };
        let is_joining = |node: &NodeId| config.members.contains(node) && !config.is_in_sync(*node);
        primary.change.admitting.retain(is_joining);
        primary.change.proposed.clear();
        primary.change.removing.clear();
        // Whatever was proposed for the last epoch is void.
        primary.yielding = None;
        primary.members.retain(|node, member| {
            let stays = config.members.contains(node);
            if let (false, Some(stream)) = (stays, member.stream) {
                self.effects.push(Effect::Close { to: *node, stream });
            }
            stays
        });
        for &node in config.members.iter().filter(|node| **node != self.me) {
            let member = primary
                .members
                .entry(node)
                .or_insert_with(|| Member::new(now));
            if member.is_live() && !config.is_in_sync(node) {
                // Removed by a proposal made before it came back.
                primary.change.admitting.insert(node);
            }
            if let (Some(stream), false) = (member.stream, matches!(member.phase, Phase::Opening)) {
                let message = ToMember::Config {
                    config: config.clone(),
                };
                self.effects.push(Effect::Send {
                    to: node,
                    stream,
                    message,
                });
            }
        }
        self.effects.push(Effect::BeaconNow);
        self.primary_tick(now);
    }

    pub(super) fn primary_tick(&mut self, now: Duration) {
        let committed = self.committed;
        let last = self.last.sequence;
        let (mut silent, mut hung) = (Vec::new(), Vec::new());
        let Some(primary) = &mut self.primary else {
            return;
        };
        for (&to, member) in &mut primary.members {
            let Some(stream) = member.stream else {
                if now >= member.reopen_at {
                    self.next_stream += 1;
                    member.stream = Some(self.next_stream);
                    member.phase = Phase::Opening;
                    member.heard = now;
                    self.effects.push(Effect::Open {
                        to,
                        stream: self.next_stream,
                    });
                }
                continue;
            };
            if matches!(member.phase, Phase::Opening) {
                if now >= member.heard + ACK_SILENCE {
                    silent.push((to, stream));
                }
                continue;
            }
            if now >= member.heard + MEMBER_SILENCE {
                member.trouble.get_or_insert(member.heard);
                silent.push((to, stream));
            } else if member.hangs(last, now) {
                hung.push((to, stream));
            } else if member.is_live() && member.told_committed < committed {
                member.told_committed = committed;
                let message = ToMember::Commit { committed };
                self.effects.push(Effect::Send {
                    to,
                    stream,
                    message,
                });
            }
        }
        for &(to, stream) in silent.iter().chain(&hung) {
            self.effects.push(Effect::Close { to, stream });
            self.on_stream_closed(to, stream, now);
        }
        for (to, _) in hung {
            let in_sync = self.config.is_in_sync(to);
            let members = self.primary.as_mut().map(|primary| &mut primary.members);
            if let Some(member) = members.and_then(|members| members.get_mut(&to)) {
                member.hung(in_sync, now);
            }
        }
        self.settle(now);
        self.advance(now);
        if !self.yield_office(now) {
            self.reconfigure(now);
        }
    }
}
