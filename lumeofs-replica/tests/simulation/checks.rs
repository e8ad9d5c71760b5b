//! What must hold at every moment, and what in the end.

use crate::world::{Node, World, index};
use lumeofs_base::ChunkId;
use lumeofs_replica::Role;
use std::collections::BTreeMap;

impl World {
    /// Members with the same history have the same contents.
    pub(crate) fn check_equal_histories(&self) {
        let complete = |node: &&Node| {
            node.core.as_ref().is_some_and(|core| {
                core.peer_state().complete && node.store.now.last.sequence.get() > 0
            })
        };
        let mut by_last: BTreeMap<lumeofs_base::Version, &Node> = BTreeMap::new();
        for node in self.nodes.iter().filter(complete) {
            let contents = &node.store.now;
            let other = by_last.entry(contents.last).or_insert(node);
            if other.store.now.chunks != contents.chunks {
                let differ =
                    |id: &ChunkId| other.store.now.chunks.get(id) != contents.chunks.get(id);
                let ids: Vec<_> = contents.chunks.keys().filter(|id| differ(id)).collect();
                let show = |node: &Node| {
                    ids.iter()
                        .map(|id| node.store.now.chunks.get(id).cloned())
                        .collect::<Vec<_>>()
                };
                panic!(
                    "equal histories up to {:?}, chunks differ: {ids:?}: {:?} {:?}",
                    contents.last,
                    show(node),
                    show(other)
                );
            }
        }
    }

    pub(crate) fn check_one_primary(&self) {
        let serves = |node: usize| {
            let core = self.nodes[node].core.as_ref()?;
            let state = core.state(self.clock(node));
            (state.role == Role::Primary && !state.lease_left.is_zero()).then_some(state)
        };
        let serving: Vec<_> = (0..self.nodes.len()).filter_map(serves).collect();
        assert!(serving.len() <= 1, "two primaries serve: {serving:?}");
    }

    /// Why the group is not as it should be after all faults have ended.
    pub(crate) fn converged(&self) -> Result<(), String> {
        let states: Vec<_> = (0..self.nodes.len())
            .map(|node| {
                self.nodes[node]
                    .core
                    .as_ref()
                    .map(|core| core.state(self.clock(node)))
            })
            .collect();
        let fail = |what: &str| Err(format!("{what}: {:?} {states:#?}", self.config));
        if !self.config.is_full() {
            return fail("not all in sync");
        }
        let primary = index(self.config.primary);
        if states[primary]
            .as_ref()
            .is_none_or(|state| state.lease_left.is_zero())
        {
            return fail("the primary has no lease");
        }
        for &member in &self.config.members {
            let chunks = &self.nodes[index(member)].store.now.chunks;
            if *chunks != self.nodes[primary].store.now.chunks {
                return fail("stores differ");
            }
        }
        Ok(())
    }
}
