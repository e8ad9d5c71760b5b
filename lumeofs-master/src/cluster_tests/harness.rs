//! Masters, each in a runtime of its own; datanodes that are none; a small client.

mod client;
mod datanodes;
mod mount;

pub(super) use client::Client;
pub(super) use mount::Mount;

use crate::config::MasterConfig;
use crate::raft::cut;
use crate::server::Master;
use crate::service::MetadataService;
use crate::superblock::Superblock;
use lumeofs_base::{ChunkId, NodeId, NodeKind};
use lumeofs_meta::controller;
use lumeofs_meta::namespace;
use lumeofs_meta::tables::Tables as _;
use lumeofs_proto::auth::{Credentials, Identity};
use lumeofs_proto::control::admin_client::AdminClient;
use lumeofs_proto::control::change_masters_request::Change;
use lumeofs_proto::control::{
    AddMaster, ChangeMastersRequest, FsckRequest, HealthReply, HealthRequest, MastersRequest,
    RaftGroup, StatusReply, StatusRequest, fsck_event,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus as HealthStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for a condition.
pub(super) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A name for a number.
pub(super) fn name_of(number: u64) -> String {
    format!("d{number}")
}

struct Running {
    runtime: Runtime,
    master: Master,
    superblock: Superblock,
}

/// Masters 1 to n.
pub(super) struct Cluster {
    credentials: Credentials,
    addresses: BTreeMap<u64, String>,
    /// Those that founded it.
    founders: BTreeMap<u64, String>,
    dirs: BTreeMap<u64, TempDir>,
    running: BTreeMap<u64, Running>,
    caller: Runtime,
}

impl Cluster {
    pub(super) fn start(count: u64) -> Self {
        Self::start_in(count, &std::env::temp_dir())
    }

    /// With data below a directory.
    pub(super) fn start_in(count: u64, base: &Path) -> Self {
        let log = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env());
        let _ = log.with_test_writer().try_init();
        // Ports of listeners that are closed again: free for us a moment later.
        let listeners: Vec<_> = (0..count)
            .map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let addresses = listeners
            .iter()
            .map(|listener| listener.local_addr().unwrap().to_string());
        let addresses: BTreeMap<u64, String> = (1..).zip(addresses).collect();
        let mut cluster = Self {
            credentials: Credentials::generate(),
            founders: addresses.clone(),
            addresses,
            dirs: (1..=count)
                .map(|id| (id, TempDir::new_in(base).unwrap()))
                .collect(),
            running: BTreeMap::new(),
            caller: Runtime::new().unwrap(),
        };
        drop(listeners);
        for id in cluster.ids() {
            cluster.restart(id);
        }
        // A new master takes part only once others, or a leader, have said that it is new.
        let ids = cluster.ids();
        wait_for("all to take part", || {
            ids.iter().all(|id| cluster.raft(*id).applied > 0)
        });
        cluster
    }

    pub(super) fn ids(&self) -> Vec<u64> {
        self.addresses.keys().copied().collect()
    }

    fn identity(&self, node: u64, kind: NodeKind) -> Identity {
        Identity {
            credentials: self.credentials.clone(),
            node: NodeId(node),
            kind,
        }
    }

    /// Starts a master that does not run.
    pub(super) fn restart(&mut self, id: u64) {
        let is_founder = self.founders.contains_key(&id);
        let seeds = self.founders.values().cloned();
        let config = MasterConfig {
            identity: self.identity(id, NodeKind::Master),
            listen: self.addresses[&id].clone(),
            advertise: self.addresses[&id].clone(),
            masters: match is_founder {
                true => self.founders.clone(),
                false => BTreeMap::new(),
            },
            seeds: match is_founder {
                true => Vec::new(),
                false => seeds.collect(),
            },
            join: false,
            data_dir: self.dirs[&id].path().to_owned(),
            bootstrap: id == 1 && is_founder,
            chunk_size: 1 << 20,
            replicas: 3,
            always_durable: false,
        };
        let superblock = Superblock::open(&config.data_dir, &config.identity).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let master = runtime.block_on(Master::start(config)).unwrap();
        self.running.insert(
            id,
            Running {
                runtime,
                master,
                superblock,
            },
        );
    }

    /// Starts a new master, which knows nothing but the founders' addresses.
    pub(super) fn start_new(&mut self, id: u64) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        self.addresses.insert(id, address);
        self.dirs.insert(id, TempDir::new().unwrap());
        self.restart(id);
    }

    /// What the controller's leader says of the masters: id and state.
    pub(super) fn masters(&self) -> Option<BTreeMap<u64, String>> {
        let masters = self.list_masters()?.into_iter();
        Some(masters.map(|master| (master.id, master.state)).collect())
    }

    /// Whether the controller's leader has had no answer of this master for a while.
    pub(super) fn is_missed(&self, id: u64) -> bool {
        let masters = self.list_masters().unwrap_or_default();
        masters
            .iter()
            .any(|master| master.id == id && !master.answers)
    }

    fn list_masters(&self) -> Option<Vec<lumeofs_proto::control::Master>> {
        let ask = |id: &u64| {
            let token = self.credentials.grpc_token();
            let mut admin = AdminClient::with_interceptor(self.channel(*id), authorize(token));
            self.caller.block_on(admin.masters(MastersRequest {})).ok()
        };
        Some(self.running.keys().find_map(ask)?.into_inner().masters)
    }

    /// Asks for a change of the masters until a leader takes or refuses it.
    pub(super) fn change(&self, change: Change) -> Result<(), String> {
        let start = Instant::now();
        loop {
            match self.try_change(change.clone()) {
                Ok(()) => return Ok(()),
                Err((tonic::Code::Unavailable, _)) => {}
                Err((_, text)) => return Err(text),
            }
            assert!(start.elapsed() < PATIENCE, "nobody changes the masters");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Asks all that run for a change of the masters, once. The last one's answer, if none takes it.
    pub(super) fn try_change(&self, change: Change) -> Result<(), (tonic::Code, String)> {
        let mut said = (tonic::Code::Unavailable, String::new());
        for id in self.running.keys() {
            let token = self.credentials.grpc_token();
            let mut admin = AdminClient::with_interceptor(self.channel(*id), authorize(token));
            let request = ChangeMastersRequest {
                change: Some(change.clone()),
            };
            match self.caller.block_on(admin.change_masters(request)) {
                Ok(_) => return Ok(()),
                Err(status) if status.message().contains("leader") => {}
                Err(status) => said = (status.code(), status.message().to_owned()),
            }
        }
        Err(said)
    }

    /// Admits a master that runs.
    pub(super) fn admit(&self, id: u64, replaces: u64) -> Result<(), String> {
        self.change(Change::Add(AddMaster {
            id,
            address: self.addresses[&id].clone(),
            replaces,
        }))
    }

    /// Waits until a master is in a state.
    pub(super) fn wait_state(&self, id: u64, state: &str) {
        wait_for(&format!("master {id} to be {state}"), || {
            let masters = self.masters().unwrap_or_default();
            masters.get(&id).map(String::as_str) == Some(state)
        });
    }

    /// Members of a master's groups, as it knows them: those that vote.
    pub(super) fn voters(&self, id: u64) -> [Vec<u64>; 2] {
        let master = &self.running[&id].master;
        [master.controller_group(), master.metadata_group()]
            .map(|group| group.members().voters.into_iter().collect())
    }

    /// Those that run.
    pub(super) fn running(&self) -> Vec<u64> {
        self.running.keys().copied().collect()
    }

    /// Ends a master as a crash would, as far as one can inside a process: without a checkpoint and
    /// without a word to anybody.
    pub(super) fn kill(&mut self, id: u64) {
        let Running {
            runtime,
            master,
            superblock,
        } = self.running.remove(&id).unwrap();
        runtime.shutdown_timeout(Duration::from_secs(5));
        let held = master.metadata_group().watch_store();
        drop((master, superblock));
        wait_for("its files to be closed", || held.strong_count() == 0);
    }

    /// The next installation of a snapshot on this master's metadata stops at a step.
    pub(super) fn cut_installation(&self, id: u64, step: cut::Step) {
        cut::await_step(&self.metadata_store(id), step);
    }

    /// Ends a master as a crash would, in the middle of an installation.
    pub(super) fn kill_in_installation(&mut self, id: u64) {
        let store = self.metadata_store(id);
        wait_for("the installation to get there", || cut::is_reached(&store));
        // What openraft does without waiting for it.
        std::thread::sleep(Duration::from_millis(300));
        let Running {
            runtime,
            master,
            superblock,
        } = self.running.remove(&id).unwrap();
        runtime.shutdown_background();
        let held = master.metadata_group().watch_store();
        drop((master, superblock));
        std::thread::sleep(Duration::from_millis(100));
        cut::release(&store);
        wait_for("its files to be closed", || held.strong_count() == 0);
    }

    fn metadata_store(&self, id: u64) -> PathBuf {
        self.dirs[&id].path().join("metadata/store.redb")
    }

    /// Ends a master in order.
    pub(super) fn stop(&mut self, id: u64) {
        let Running {
            runtime,
            master,
            superblock,
        } = self.running.remove(&id).unwrap();
        runtime.block_on(master.stop()).unwrap();
        runtime.shutdown_timeout(Duration::from_secs(5));
        drop(superblock);
    }

    /// Takes away a part of what a master that does not run has, or all of it.
    pub(super) fn wipe(&self, id: u64, part: Option<&str>) {
        let dir = self.dirs[&id].path();
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if part.is_some_and(|part| !path.ends_with(part)) {
                continue;
            }
            if path.is_dir() {
                std::fs::remove_dir_all(path).unwrap();
            } else {
                std::fs::remove_file(path).unwrap();
            }
        }
    }

    /// A copy of what a master that does not run has.
    pub(super) fn copy(&self, id: u64) -> TempDir {
        let copy = tempfile::tempdir().unwrap();
        copy_all(self.dirs[&id].path(), copy.path());
        copy
    }

    /// Gives a master that does not run a copy back.
    pub(super) fn restore(&self, id: u64, copy: TempDir) {
        self.wipe(id, None);
        copy_all(copy.path(), self.dirs[&id].path());
    }

    /// Whether a master knows that all of them joined.
    pub(super) fn knows_all_masters(&self, id: u64) -> bool {
        let store = self.running[&id].master.controller_group().store();
        store.read(controller::joined_masters).len() == self.addresses.len()
    }

    /// Why a master gives up. Waits for it.
    pub(super) fn failure(&self, id: u64) -> String {
        let Running {
            runtime, master, ..
        } = &self.running[&id];
        let failed = async { tokio::time::timeout(PATIENCE, master.failed()).await };
        format!("{:#}", runtime.block_on(failed).unwrap())
    }

    /// Metadata group of a master.
    pub(super) fn raft(&self, id: u64) -> RaftGroup {
        let status = self.status_of(id);
        status
            .raft
            .into_iter()
            .find(|group| group.name == "metadata")
            .unwrap()
    }

    pub(super) fn leads(&self, id: u64) -> bool {
        self.running.contains_key(&id) && self.raft(id).role == "leader"
    }

    /// Runs something on a master's own threads.
    pub(super) fn inside<T>(
        &self,
        id: u64,
        work: impl AsyncFnOnce(Arc<MetadataService>) -> T,
    ) -> T {
        let Running {
            runtime, master, ..
        } = &self.running[&id];
        runtime.block_on(work(master.service()))
    }

    /// Everything in a master's metadata.
    pub(super) fn metadata_rows(&self, id: u64) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut rows = Vec::new();
        self.running[&id]
            .master
            .metadata_group()
            .store()
            .read(|tables| {
                tables.scan(&[], &[255; 32], &mut |key, value| {
                    rows.push((key.to_vec(), value.to_vec()));
                    true
                });
            });
        rows
    }

    pub(super) fn metadata_leader(&self) -> u64 {
        let mut leader = None;
        wait_for("a leader", || {
            leader = self
                .running
                .keys()
                .copied()
                .find(|id| self.raft(*id).role == "leader");
            leader.is_some()
        });
        leader.unwrap()
    }

    /// Writes a checkpoint on a master and cuts its whole log off behind it.
    pub(super) fn compact(&self, id: u64) {
        let running = &self.running[&id];
        running
            .runtime
            .block_on(running.master.metadata_group().compact());
    }

    fn channel(&self, id: u64) -> Channel {
        let endpoint = Channel::from_shared(format!("http://{}", self.addresses[&id])).unwrap();
        let _inside = self.caller.enter();
        endpoint.connect_lazy()
    }

    fn status_of(&self, id: u64) -> StatusReply {
        let token = self.credentials.grpc_token();
        let mut admin = AdminClient::with_interceptor(self.channel(id), authorize(token));
        self.caller
            .block_on(admin.status(StatusRequest {}))
            .unwrap()
            .into_inner()
    }

    /// What a master's health check says, to somebody who does not know the secret.
    pub(super) fn is_serving(&self, id: u64) -> bool {
        let mut health = HealthClient::new(self.channel(id));
        let check = health.check(HealthCheckRequest::default());
        let status = self.caller.block_on(check).unwrap().into_inner().status();
        status == HealthStatus::Serving
    }

    /// The services that a master's reflection lists.
    pub(super) fn reflected_services(&self, id: u64) -> Vec<String> {
        let token = self.credentials.grpc_token();
        let ask = ServerReflectionRequest {
            message_request: Some(MessageRequest::ListServices(String::new())),
            ..Default::default()
        };
        let mut reflection =
            ServerReflectionClient::with_interceptor(self.channel(id), authorize(token));
        let answer = self.caller.block_on(async {
            let asked = tokio_stream::once(ask);
            let answers = reflection.server_reflection_info(asked).await.unwrap();
            answers.into_inner().message().await.unwrap().unwrap()
        });
        match answer.message_response.unwrap() {
            MessageResponse::ListServicesResponse(list) => list
                .service
                .into_iter()
                .map(|service| service.name)
                .collect(),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn status(&self) -> StatusReply {
        self.status_of(1)
    }

    /// What a master says of the cluster's health, if it leads the controller.
    pub(super) fn health(&self, id: u64) -> Option<HealthReply> {
        let token = self.credentials.grpc_token();
        let mut admin = AdminClient::with_interceptor(self.channel(id), authorize(token));
        let asked = self.caller.block_on(admin.health(HealthRequest::default()));
        asked.ok().map(tonic::Response::into_inner)
    }

    /// All that a check at a master says.
    pub(super) fn fsck(&self, id: u64) -> Vec<fsck_event::Kind> {
        let token = self.credentials.grpc_token();
        let mut admin = AdminClient::with_interceptor(self.channel(id), authorize(token));
        self.caller.block_on(async {
            let mut events = admin
                .fsck(FsckRequest::default())
                .await
                .unwrap()
                .into_inner();
            let mut kinds = Vec::new();
            while let Some(event) = events.message().await.unwrap() {
                kinds.extend(event.kind);
            }
            kinds
        })
    }

    /// Chunks that a master still has to have deleted.
    pub(super) fn freed_chunks(&self, id: u64) -> usize {
        let group = self.running[&id].master.metadata_group();
        group
            .store()
            .read(|tables| namespace::freed_chunks_after(tables, ChunkId(0), usize::MAX).len())
    }

    pub(super) fn call_with_wrong_secret(&self) -> tonic::Status {
        let token = Credentials::generate().grpc_token();
        let mut admin = AdminClient::with_interceptor(self.channel(1), authorize(token));
        self.caller
            .block_on(admin.status(StatusRequest {}))
            .unwrap_err()
    }
}

fn copy_all(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy_all(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).unwrap();
        }
    }
}

type Authorize =
    Box<dyn FnMut(tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> + Send>;

fn authorize(token: String) -> Authorize {
    Box::new(move |mut request| {
        request
            .metadata_mut()
            .insert("authorization", token.parse().unwrap());
        Ok(request)
    })
}
