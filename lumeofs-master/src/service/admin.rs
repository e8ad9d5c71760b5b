//! Administration: what this master knows, without asking others, and what administrators want done.

use super::controller::ControllerService;
use super::metadata::MetadataService;
use super::{dump, fsck, health_report};
use crate::masters::Masters;
use crate::raft::Group;
use lumeofs_base::SessionId;
use lumeofs_base::{Code, FsError, FsResult, NodeId, NodeState, RepairPolicy};
use lumeofs_meta::controller::ControllerCommand;
use lumeofs_meta::op::{Caller, Query, Reply};
use lumeofs_meta::{controller, namespace};
use lumeofs_proto::control::admin_server::Admin;
use lumeofs_proto::control::{
    ChangeMastersReply, ChangeMastersRequest, DataNode, DumpRequest, EvictSessionReply,
    EvictSessionRequest, Follower, FsckRequest, GroupsReply, GroupsRequest, HealthReply,
    HealthRequest, MastersReply, MastersRequest, Node, NodesReply, NodesRequest, RaftGroup,
    RaftReply, RaftRequest, RepairReply, RepairRequest, SessionsReply, SessionsRequest,
    SetNodeReply, SetNodeRequest, StatusReply, StatusRequest,
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
    /// One check at a time.
    pub(crate) fsck: Arc<tokio::sync::Semaphore>,
    /// One dump at a time.
    pub(crate) dumps: Arc<tokio::sync::Semaphore>,
}

impl AdminService {
    fn nodes(&self) -> Vec<DataNode> {
        let map = self.controller_group.store().read(controller::cluster_map);
        let count = |node, of: fn(&lumeofs_base::GroupConfig) -> &[NodeId]| {
            let holds = |config: &&lumeofs_base::GroupConfig| of(config).contains(&node);
            map.groups.iter().filter(holds).count() as u32
        };
        let node = |info: lumeofs_base::NodeInfo| DataNode {
            state: state_name(info.state).to_owned(),
            drain_to: match info.state {
                NodeState::Draining { to: Some(to), .. } => to.get(),
                NodeState::Draining { to: None, .. } | NodeState::Active => 0,
            },
            remove: matches!(info.state, NodeState::Draining { remove: true, .. }),
            replicas: count(info.id, |config| &config.members),
            in_sync: count(info.id, |config| &config.in_sync),
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
        map.nodes.iter().cloned().map(node).collect()
    }

    fn groups(&self) -> Vec<lumeofs_proto::control::GroupConfig> {
        let map = self.controller_group.store().read(controller::cluster_map);
        map.groups.iter().map(Into::into).collect()
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

fn state_name(state: NodeState) -> &'static str {
    match state {
        NodeState::Active => "active",
        NodeState::Draining { .. } => "draining",
    }
}

fn state_of(request: &SetNodeRequest) -> FsResult<NodeState> {
    let to = (request.to != 0).then_some(NodeId(request.to));
    match request.state.as_str() {
        "active" => Ok(NodeState::Active),
        "drain" => Ok(NodeState::Draining { to, remove: false }),
        "remove" => Ok(NodeState::Draining { to, remove: true }),
        other => {
            let context = format!("state {other:?} of a datanode: want active, drain or remove");
            Err(FsError::new(Code::Invalid, context))
        }
    }
}

impl AdminService {
    async fn set_repair(&self, request: RepairRequest) -> FsResult<RepairReply> {
        let read = || {
            self.controller_group
                .store()
                .read(controller::cluster_map)
                .repair
        };
        let leads = self.controller_group.linearizable().await;
        leads.map_err(|error| self.controller.elsewhere(error))?;
        let now = read();
        let wanted = RepairPolicy {
            after_ms: request.after_ms.unwrap_or(now.after_ms),
            rate_bytes: request.rate_bytes.unwrap_or(now.rate_bytes),
        };
        if wanted != now {
            self.controller
                .order(ControllerCommand::SetRepair(wanted))
                .await?;
        }
        let now = read();
        Ok(RepairReply {
            after_ms: now.after_ms,
            rate_bytes: now.rate_bytes,
        })
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

    async fn sessions(
        &self,
        _: Request<SessionsRequest>,
    ) -> Result<Response<SessionsReply>, Status> {
        let sessions = self.metadata.list_sessions().await;
        let sessions = sessions.map_err(|error| to_grpc(&error))?;
        Ok(Response::new(SessionsReply { sessions }))
    }

    async fn evict_session(
        &self,
        request: Request<EvictSessionRequest>,
    ) -> Result<Response<EvictSessionReply>, Status> {
        let session = SessionId(request.into_inner().session);
        let done = self.metadata.evict_session(session).await;
        done.map_err(|error| to_grpc(&error))?;
        Ok(Response::new(EvictSessionReply {}))
    }

    async fn raft(&self, _: Request<RaftRequest>) -> Result<Response<RaftReply>, Status> {
        let (disk_bytes, disk_free_bytes, disk_short) = self.metadata.room.space();
        Ok(Response::new(RaftReply {
            groups: self.raft(),
            disk_bytes,
            disk_free_bytes,
            disk_short,
        }))
    }

    async fn set_node(
        &self,
        request: Request<SetNodeRequest>,
    ) -> Result<Response<SetNodeReply>, Status> {
        let request = request.into_inner();
        let done = async {
            let state = state_of(&request)?;
            let node = NodeId(request.node);
            self.controller
                .order(ControllerCommand::SetNodeState { node, state })
                .await
        };
        let done = done.await.map(|()| Response::new(SetNodeReply {}));
        done.map_err(|error| to_grpc(&error))
    }

    async fn repair(
        &self,
        request: Request<RepairRequest>,
    ) -> Result<Response<RepairReply>, Status> {
        let done = self.set_repair(request.into_inner()).await;
        done.map(Response::new).map_err(|error| to_grpc(&error))
    }

    async fn health(
        &self,
        request: Request<HealthRequest>,
    ) -> Result<Response<HealthReply>, Status> {
        let health = health_report::report(self, request.into_inner()).await;
        health.map(Response::new).map_err(|error| to_grpc(&error))
    }

    type FsckStream = fsck::Events;

    async fn fsck(&self, request: Request<FsckRequest>) -> Result<Response<fsck::Events>, Status> {
        let events = fsck::start(
            self.metadata.clone(),
            self.fsck.clone(),
            request.into_inner(),
        )
        .await;
        events.map(Response::new).map_err(|error| to_grpc(&error))
    }

    type DumpStream = dump::Parts;

    async fn dump(&self, request: Request<DumpRequest>) -> Result<Response<dump::Parts>, Status> {
        let name = request.into_inner().group;
        let groups = [&self.controller_group, &self.metadata.group];
        let found = groups.into_iter().find(|group| group.name == name);
        let begun = async {
            let group = found.ok_or_else(|| {
                let text = format!("group {name:?}: want controller or metadata");
                FsError::new(Code::Invalid, text)
            })?;
            let cluster = self.metadata.identity.credentials.cluster;
            dump::start(group, cluster, self.dumps.clone()).await
        };
        let parts = begun.await;
        parts.map(Response::new).map_err(|error| to_grpc(&error))
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
