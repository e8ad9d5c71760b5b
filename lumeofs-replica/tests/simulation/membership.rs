//! The controller moves replicas: who is a member changes while everything else goes wrong.

use crate::store::Store;
use crate::world::{Event, World, id};
use lumeofs_base::{GroupConfig, NodeId};
use lumeofs_replica::StreamId;

impl World {
    /// A node learns of a configuration: from the controller, or by a stream that begins with it.
    pub(crate) fn learn(&mut self, node: usize, config: &GroupConfig) {
        let is_member = config.members.contains(&id(node));
        if self.nodes[node].outside && is_member && config.epoch == self.config.epoch {
            self.start_node(node);
        }
        let known = self.nodes[node]
            .core
            .as_ref()
            .map(|core| core.config().epoch);
        if known.is_some_and(|known| known < config.epoch) && !is_member {
            self.retire(node);
        }
        self.with(node, |core, now| core.on_config(config, now));
    }

    /// A node that is no member drops what it has of the group.
    pub(crate) fn retire(&mut self, node: usize) {
        self.trace(|| format!("{node} is outside"));
        let state = &mut self.nodes[node];
        state.outside = true;
        state.incarnation += 1;
        state.core = None;
        state.store = Store::default();
        state.work.clear();
        state.working = false;
        self.clients.on_crash(node);
        self.end_streams(node);
    }

    pub(crate) fn end_streams(&mut self, node: usize) {
        let ends = |stream: &crate::network::Stream| stream.from == node || stream.to == node;
        let streams = self.streams.iter().filter(|(_, stream)| ends(stream));
        let streams: Vec<StreamId> = streams.map(|(id, _)| *id).collect();
        streams
            .into_iter()
            .for_each(|stream| self.end_stream(stream));
    }

    /// A replica is to go to a spare node.
    pub(crate) fn move_replica(&mut self) {
        let config = &self.config;
        let is_outside = |node: &NodeId| !config.members.contains(node);
        let spares: Vec<NodeId> = (0..self.nodes.len()).map(id).filter(is_outside).collect();
        let settled = config.leaving.is_empty() && config.members.len() == config.replicas as usize;
        if spares.is_empty() || !settled || self.controller_down {
            return;
        }
        let to = spares[self.rng.below(spares.len() as u64) as usize];
        let place = self.rng.below(self.config.members.len() as u64) as usize;
        let mut next = self.config.clone();
        let from = std::mem::replace(&mut next.members[place], to);
        if next.is_in_sync(from) {
            next.members.push(from);
            next.leaving.push(from);
        }
        self.moves += 1;
        self.reassign(next);
    }

    /// Members that leave and are out of the in-sync set are members no longer.
    pub(crate) fn let_go(&mut self) {
        let mut next = self.config.clone();
        let goes =
            |node: &NodeId| self.config.leaving.contains(node) && !self.config.is_in_sync(*node);
        next.members.retain(|node| !goes(node));
        next.leaving.retain(|node| !goes(node));
        if next != self.config && !self.controller_down {
            self.reassign(next);
        }
    }

    pub(crate) fn reassign(&mut self, mut next: GroupConfig) {
        next.epoch = next.epoch.next();
        self.config = next;
        self.trace(|| {
            format!(
                "members are {:?}, leaving {:?}",
                self.config.members, self.config.leaving
            )
        });
        for node in 0..self.nodes.len() {
            self.after(300, 1_000_000, Event::Fetch(node));
        }
    }
}
