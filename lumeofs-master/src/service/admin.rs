//! Administration: what this master knows, without asking others.

use super::controller::{ControllerService, to_wire};
use super::metadata::MetadataService;
use crate::masters::Masters;
use crate::raft::Group;
use lumeofs_meta::op::{Caller, Query, Reply};
use lumeofs_meta::{controller, namespace};
use lumeofs_proto::control::admin_server::Admin;
use lumeofs_proto::control::{
    ChangeMastersReply, ChangeMastersRequest, DataNode, Follower, GroupsReply, GroupsRequest,
    MastersReply, MastersRequest, Node, NodesReply, NodesRequest, RaftGroup, RaftReply,
    RaftRequest, StatusReply, StatusRequest,
};
use lumeofs_proto::status::to_grpc;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Answers administrators.
pub(crate) struct AdminService {
    pub(crate) controller: Arc<ControllerService>,
    pub(crate) controller_group: Arc<Group>,
    pub(crate) metadata: Arc<MetadataService>,
    pub(crate) masters: Arc<Masters>,
}

impl AdminService {
    fn nodes(&self) -> Vec<DataNode> {
        let map = self.controller_group.store().read(controller::cluster_map);
        let node = |info: lumeofs_base::NodeInfo| DataNode {
            silent_ms: self.controller.silence(info.id).map_or(-1, |silence| {
                i64::try_from(silence.as_millis()).unwrap_or(i64::MAX)
            }),
            trouble: self.controller.trouble(info.id),
            node: Some(Node {
                id: info.id.get(),
                address: info.address,
                zone: info.zone,
                capacity_bytes: info.capacity_bytes,
                free_bytes: info.free_bytes,
            }),
        };
        map.nodes.into_iter().map(node).collect()
    }

    fn groups(&self) -> Vec<lumeofs_proto::control::GroupConfig> {
        let map = self.controller_group.store().read(controller::cluster_map);
        map.groups.iter().map(to_wire).collect()
    }

    fn raft(&self) -> Vec<RaftGroup> {
        [&self.controller_group, &self.metadata.group]
            .map(|group| self.raft_group(group))
            .into()
    }

    fn raft_group(&self, group: &Group) -> RaftGroup {
        let report = group.report();
        let follower = |(node, matched): (u64, u64)| Follower {
            node,
            address: self.masters.address(node).unwrap_or_default(),
            matched,
            lag: report.last_log.saturating_sub(matched),
        };
        RaftGroup {
            group: group.id.get(),
            name: group.name.to_owned(),
            role: report.role.to_owned(),
            term: report.term,
            leader: report.leader.unwrap_or(0),
            last_log: report.last_log,
            committed: report.committed,
            applied: report.applied,
            snapshot: report.snapshot,
            purged: report.purged,
            followers: report.followers.iter().copied().map(follower).collect(),
        }
    }

    fn status(&self) -> StatusReply {
        let caller = Caller {
            trusted: true,
            ..Caller::default()
        };
        let (usage, sessions) = self.metadata.group.store().read(|tables| {
            (
                namespace::query(tables, &caller, &Query::Usage),
                namespace::sessions(tables).len(),
            )
        });
        let (inodes, bytes) = match usage {
            Ok(Reply::Usage { inodes, bytes }) => (inodes, bytes),
            // Before the first entry there is nothing.
            _ => (0, 0),
        };
        let identity = &self.metadata.identity;
        StatusReply {
            cluster_id: identity.credentials.cluster.to_string(),
            node_id: identity.node.get(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            raft: self.raft(),
            nodes: self.nodes(),
            groups: self.groups(),
            inodes,
            bytes,
            sessions: sessions as u64,
        }
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        Ok(Response::new(self.status()))
    }

    async fn nodes(&self, _: Request<NodesRequest>) -> Result<Response<NodesReply>, Status> {
        Ok(Response::new(NodesReply {
            nodes: self.nodes(),
        }))
    }

    async fn groups(&self, _: Request<GroupsRequest>) -> Result<Response<GroupsReply>, Status> {
        Ok(Response::new(GroupsReply {
            groups: self.groups(),
        }))
    }

    async fn raft(&self, _: Request<RaftRequest>) -> Result<Response<RaftReply>, Status> {
        Ok(Response::new(RaftReply {
            groups: self.raft(),
        }))
    }

    async fn masters(&self, _: Request<MastersRequest>) -> Result<Response<MastersReply>, Status> {
        let listed = self.controller.list_masters(&self.metadata.group).await;
        listed
            .map(|masters| Response::new(MastersReply { masters }))
            .map_err(|error| to_grpc(&error))
    }

    async fn change_masters(
        &self,
        request: Request<ChangeMastersRequest>,
    ) -> Result<Response<ChangeMastersReply>, Status> {
        let begun = self.controller.begin_change(request.into_inner()).await;
        begun
            .map(|()| Response::new(ChangeMastersReply {}))
            .map_err(|error| to_grpc(&error))
    }
}
