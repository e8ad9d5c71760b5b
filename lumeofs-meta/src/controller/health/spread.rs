//! What more may fail before data is gone or cannot be written.

use super::GroupHealth;
use lumeofs_base::{ClusterMap, NodeId};
use std::collections::BTreeMap;

/// What more may fail.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survival {
    /// Datanodes that may fail, whichever they are, and every chunk still has a copy. `None`: some has none now.
    pub nodes_for_data: Option<u64>,
    /// Datanodes that may fail, whichever they are, and everything can still be written. `None`: something
    /// cannot now.
    pub nodes_for_writes: Option<u64>,
    /// What each zone would take along.
    pub zones: Vec<ZoneLoss>,
}

/// What the loss of a zone would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneLoss {
    /// The zone.
    pub zone: String,
    /// Datanodes in it.
    pub nodes: u64,
    /// Groups that have copies now and would have none.
    pub groups_lost: u64,
    /// Groups that are written now and could not be.
    pub groups_unwritable: u64,
}

/// Computes it.
pub(super) fn survival(map: &ClusterMap, groups: &[GroupHealth]) -> Survival {
    let spare = |needed: &dyn Fn(&GroupHealth) -> usize| {
        let spares = groups
            .iter()
            .map(|group| group.attested.len().checked_sub(needed(group)));
        // `None` is the least.
        spares.min().flatten().map(|spare| spare as u64)
    };
    let mut zones: BTreeMap<&str, Vec<NodeId>> = BTreeMap::new();
    for info in &map.nodes {
        zones.entry(&info.zone).or_default().push(info.id);
    }
    let loss = |(zone, nodes): (&str, Vec<NodeId>)| {
        let counts = |needed: &dyn Fn(&GroupHealth) -> usize| {
            let falls = |group: &&GroupHealth| {
                let copies = group.attested.len();
                let gone = group
                    .attested
                    .iter()
                    .filter(|node| nodes.contains(node))
                    .count();
                copies >= needed(group) && copies - gone < needed(group)
            };
            groups.iter().filter(falls).count() as u64
        };
        ZoneLoss {
            zone: zone.to_owned(),
            groups_lost: counts(&|_| 1),
            groups_unwritable: counts(&|group| group.quorum),
            nodes: nodes.len() as u64,
        }
    };
    Survival {
        nodes_for_data: spare(&|_| 1),
        nodes_for_writes: spare(&|group| group.quorum),
        zones: zones.into_iter().map(loss).collect(),
    }
}
