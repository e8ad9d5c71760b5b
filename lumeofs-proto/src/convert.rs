//! Configurations of replica groups on the wire of the controller.

use crate::control;
use lumeofs_base::{Epoch, GroupConfig, GroupId, NodeId};

impl From<&GroupConfig> for control::GroupConfig {
    fn from(config: &GroupConfig) -> Self {
        let ids = |nodes: &[NodeId]| nodes.iter().map(|node| node.get()).collect();
        Self {
            group: config.group.get(),
            epoch: config.epoch.get(),
            primary: config.primary.get(),
            members: ids(&config.members),
            in_sync: ids(&config.in_sync),
            leaving: ids(&config.leaving),
            replicas: config.replicas,
        }
    }
}

impl From<control::GroupConfig> for GroupConfig {
    fn from(config: control::GroupConfig) -> Self {
        let ids = |nodes: Vec<u64>| nodes.into_iter().map(NodeId).collect();
        Self {
            group: GroupId(config.group),
            epoch: Epoch(config.epoch),
            primary: NodeId(config.primary),
            members: ids(config.members),
            in_sync: ids(config.in_sync),
            leaving: ids(config.leaving),
            replicas: config.replicas,
        }
    }
}
