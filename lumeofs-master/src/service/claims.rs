//! What datanodes say of their groups after these masters were made from a dump: see
//! [`lumeofs_meta::controller::confirmable`].

use super::controller::{ControllerService, log_group};
use crate::raft::Leadership;
use lumeofs_base::{FsResult, GroupConfig, NodeId};
use lumeofs_meta::controller::{self, ControllerCommand};
use lumeofs_proto::control::HeartbeatRequest;
use parking_lot::Mutex;
use std::collections::BTreeMap;

/// Configurations of one datanode that are remembered.
const CONFIGS_MAX: usize = 4096;

/// What each datanode told under a leadership.
#[derive(Default)]
pub(super) struct Claims(Mutex<(Option<Leadership>, Told)>);

type Told = BTreeMap<NodeId, Vec<GroupConfig>>;

impl Claims {
    fn take(
        &self,
        leadership: Leadership,
        request: &HeartbeatRequest,
        node: NodeId,
    ) -> BTreeMap<NodeId, Vec<GroupConfig>> {
        let mut claims = self.0.lock();
        if claims.0 != Some(leadership) {
            *claims = (Some(leadership), BTreeMap::new());
        }
        let configs = request.configs.iter().take(CONFIGS_MAX);
        let configs = configs.cloned().map(GroupConfig::from).collect();
        claims.1.insert(node, configs);
        claims.1.clone()
    }
}

impl ControllerService {
    /// Takes what a datanode says that was heard by this leader, and puts the groups into the map that are found with
    /// it. Says whether datanodes shall tell.
    pub(super) async fn seek(
        &self,
        leadership: Leadership,
        request: &HeartbeatRequest,
        node: NodeId,
    ) -> FsResult<bool> {
        let store = self.group().store();
        let Some(sought) = store.read(controller::sought) else {
            return Ok(false);
        };
        if !request.tells_configs {
            return Ok(true);
        }
        let told = self.claims.take(leadership, request, node);
        let map = store.read(controller::cluster_map);
        for config in controller::confirmable(&sought, &map, &told) {
            log_group(&config, "found a group that was sought");
            self.order(ControllerCommand::Confirm(config)).await?;
        }
        Ok(true)
    }
}
