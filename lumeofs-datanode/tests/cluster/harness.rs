//! Datanodes, a controller and a client in one process.

use lumeofs_base::checksum::{block_checksums, verify_blocks};
use lumeofs_base::{
    ClusterMap, Code, Epoch, FsError, FsResult, GroupConfig, GroupId, NodeId, NodeInfo, NodeKind,
    NodeState,
};
use lumeofs_datanode::{DatanodeConfig, run};
use lumeofs_proto::auth::{Credentials, Identity};
use lumeofs_proto::blocking::Conn;
use lumeofs_proto::control::controller_server::{Controller, ControllerServer};
use lumeofs_proto::control::{
    self, HeartbeatReply, HeartbeatRequest, SetGroupConfigReply, SetGroupConfigRequest,
};
use lumeofs_proto::data::{
    ChunkReply, ChunkRequest, ChunkVersion, FilePart, GroupState, GroupStateRequest, ScrubDisk,
    ScrubReply, ScrubRequest,
};
use lumeofs_proto::frame::{FLAG_BLOCK_CHECKSUMS, Op};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tonic::{Request, Response, Status};

/// How long anything may take on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(120);

const GROUP: GroupId = GroupId(1);
const NODES: [u64; 3] = [101, 102, 103];

/// 4 KiB that tell where they belong.
pub(crate) fn block(seed: u64) -> Vec<u8> {
    (0..4096u64)
        .map(|at| (at ^ seed.wrapping_mul(31)) as u8)
        .collect()
}

type SharedMap = Arc<Mutex<ClusterMap>>;

struct FakeController(SharedMap);

#[tonic::async_trait]
impl Controller for FakeController {
    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatReply>, Status> {
        let request = request.into_inner();
        let map = self.0.lock().unwrap();
        let map = match map.version > request.map_version {
            true => postcard::to_stdvec(&*map).unwrap(),
            false => Vec::new(),
        };
        Ok(Response::new(HeartbeatReply {
            map: map.into(),
            ..HeartbeatReply::default()
        }))
    }

    async fn allocate(
        &self,
        _: Request<control::AllocateRequest>,
    ) -> Result<Response<control::AllocateReply>, Status> {
        Err(Status::unimplemented("datanodes here have their ids"))
    }

    async fn announce(
        &self,
        _: Request<control::AnnounceRequest>,
    ) -> Result<Response<control::AnnounceReply>, Status> {
        Err(Status::unimplemented("datanodes do not announce masters"))
    }

    async fn set_group_config(
        &self,
        request: Request<SetGroupConfigRequest>,
    ) -> Result<Response<SetGroupConfigReply>, Status> {
        let request = request.into_inner();
        let wanted = request.config.unwrap();
        let mut map = self.0.lock().unwrap();
        let current = &mut map.groups[0];
        let accepted = current.epoch.get() == request.expected_epoch
            && wanted.epoch == request.expected_epoch + 1
            && wanted.in_sync.contains(&wanted.primary)
            && wanted.in_sync.len() >= current.write_quorum();
        if accepted {
            current.epoch = Epoch(wanted.epoch);
            current.primary = NodeId(wanted.primary);
            current.in_sync = wanted.in_sync.iter().copied().map(NodeId).collect();
        }
        let ids = |nodes: &[NodeId]| nodes.iter().map(|node| node.get()).collect();
        let config = control::GroupConfig {
            group: current.group.get(),
            epoch: current.epoch.get(),
            primary: current.primary.get(),
            members: ids(&current.members),
            in_sync: ids(&current.in_sync),
            leaving: ids(&current.leaving),
            replicas: current.replicas,
        };
        map.version += u64::from(accepted);
        Ok(Response::new(SetGroupConfigReply {
            config: Some(config),
            accepted,
        }))
    }
}

struct Running {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<()>>,
}

/// A cluster of one group.
pub(crate) struct Cluster {
    credentials: Credentials,
    map: SharedMap,
    master: String,
    dir: tempfile::TempDir,
    nodes: BTreeMap<NodeId, Running>,
    conns: RefCell<BTreeMap<NodeId, Conn>>,
    _runtime: tokio::runtime::Runtime,
}

fn free_port() -> String {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string()
}

impl Cluster {
    pub(crate) fn start() -> Self {
        // Set RUST_LOG to see what the datanodes say; another test may have been first.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_thread_names(true)
            .try_init();
        let nodes: Vec<NodeInfo> = NODES
            .iter()
            .map(|&id| NodeInfo {
                id: NodeId(id),
                address: free_port(),
                zone: String::new(),
                capacity_bytes: 0,
                free_bytes: 0,
                state: NodeState::Active,
            })
            .collect();
        let members: Vec<NodeId> = nodes.iter().map(|node| node.id).collect();
        let config = GroupConfig {
            group: GROUP,
            epoch: Epoch(1),
            primary: members[0],
            members: members.clone(),
            in_sync: members,
            leaving: Vec::new(),
            replicas: 3,
        };
        let map = ClusterMap {
            version: 1,
            nodes,
            groups: vec![config],
            chunk_size: 64 << 20,
            ..ClusterMap::default()
        };
        let map: SharedMap = Arc::new(Mutex::new(map));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let service = ControllerServer::new(FakeController(map.clone()));
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .unwrap();
        let master = listener.local_addr().unwrap().to_string();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        runtime.spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming),
        );
        let mut cluster = Self {
            credentials: Credentials::generate(),
            map,
            master,
            dir: tempfile::tempdir().unwrap(),
            nodes: BTreeMap::new(),
            conns: RefCell::default(),
            _runtime: runtime,
        };
        for id in NODES {
            cluster.restart(NodeId(id));
        }
        cluster
    }

    pub(crate) fn directory(&self, node: NodeId) -> PathBuf {
        let dir = self.dir.path().join(node.to_string());
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn node_config(&self, node: NodeId) -> DatanodeConfig {
        let address = self.map.lock().unwrap().node(node).unwrap().address.clone();
        DatanodeConfig {
            identity: Identity {
                credentials: self.credentials.clone(),
                node,
                kind: NodeKind::Datanode,
            },
            listen: address.clone(),
            advertise: address,
            data_dirs: vec![self.directory(node)],
            zone: "default".into(),
            masters: vec![free_port(), self.master.clone()],
            scrub_rate_bytes: 1 << 30,
        }
    }

    pub(crate) fn restart(&mut self, node: NodeId) {
        let config = self.node_config(node);
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = stop.clone();
        let thread =
            std::thread::spawn(move || run(config, || stopping.load(Ordering::Acquire), |_| ()));
        self.nodes.insert(node, Running { stop, thread });
    }

    pub(crate) fn stop(&mut self, node: NodeId) {
        let running = self.nodes.remove(&node).unwrap();
        running.stop.store(true, Ordering::Release);
        running.thread.join().unwrap().unwrap();
        self.conns.borrow_mut().remove(&node);
    }

    /// Starts a second process' worth of the first node: with its directory, or with its port.
    pub(crate) fn run_twice(&self, directory: bool) -> anyhow::Result<()> {
        let node = NodeId(NODES[0]);
        self.until("the first one runs", || self.connect(node).is_ok());
        let mut config = self.node_config(node);
        if directory {
            config.listen = free_port();
        } else {
            config.data_dirs = vec![self.directory(NodeId(999))];
        }
        run(config, || true, |_| ())
    }

    pub(crate) fn config(&self) -> GroupConfig {
        self.map.lock().unwrap().groups[0].clone()
    }

    pub(crate) fn secondary(&self) -> NodeId {
        let config = self.config();
        config
            .in_sync
            .into_iter()
            .find(|node| *node != config.primary)
            .unwrap()
    }

    pub(crate) fn request(&self) -> ChunkRequest {
        let epoch = self.config().epoch.get();
        ChunkRequest {
            group: GROUP.get(),
            epoch,
            session: 7,
            generation: 1,
            ..Default::default()
        }
    }

    pub(crate) fn until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done() {
            assert!(
                Instant::now() < deadline,
                "{what}: not within {PATIENCE:?}; {:?}",
                self.config()
            );
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    fn connect(&self, node: NodeId) -> FsResult<Conn> {
        let address = self.map.lock().unwrap().node(node).unwrap().address.clone();
        let identity = Identity {
            credentials: self.credentials.clone(),
            node: NodeId(0),
            kind: NodeKind::Client,
        };
        let mut conn = Conn::connect(&address, &identity)?;
        conn.receiver
            .set_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        Ok(conn)
    }

    /// One request, without a retry.
    pub(crate) fn call(
        &self,
        node: NodeId,
        op: Op,
        mut asked: ChunkRequest,
        data: &[u8],
    ) -> FsResult<(ChunkReply, Vec<u8>)> {
        asked.checksums = block_checksums(asked.offset, data);
        let kept = self.conns.borrow_mut().remove(&node);
        let mut conn = match kept {
            Some(conn) => conn,
            None => self.connect(node)?,
        };
        let net = |error: std::io::Error| FsError::from_net(&error, "call");
        let flags = if op == Op::Write {
            FLAG_BLOCK_CHECKSUMS
        } else {
            0
        };
        conn.sender
            .request(op, flags, 3000, 0, &asked, &[data])
            .map_err(net)?;
        let mut late = || Err(std::io::ErrorKind::TimedOut.into());
        let frame = conn.receiver.receive_while(&mut late).map_err(net)?;
        self.conns.borrow_mut().insert(node, conn);
        let reply: ChunkReply = frame.decode()?;
        if op == Op::Read {
            assert!(verify_blocks(
                asked.offset,
                &frame.payload,
                &reply.checksums
            ));
        }
        Ok((reply, frame.payload.to_vec()))
    }

    /// One request to the primary, until it is answered.
    fn insist(&self, op: Op, asked: &ChunkRequest, data: &[u8]) -> FsResult<(ChunkReply, Vec<u8>)> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let epoch = self.config().epoch.get();
            let asked = ChunkRequest {
                epoch,
                ..asked.clone()
            };
            match self.call(self.config().primary, op, asked, data) {
                Err(error)
                    if Instant::now() < deadline
                        && (error.code == Code::WrongGroup
                            || error.code.retry() != lumeofs_base::error::Retry::Never) =>
                {
                    std::thread::park_timeout(Duration::from_millis(20));
                }
                result => return result,
            }
        }
    }

    pub(crate) fn write(&self, chunk: u64, offset: u64, data: &[u8]) -> ChunkReply {
        let asked = ChunkRequest {
            chunk,
            offset,
            part: Some(part_of(chunk)),
            ..self.request()
        };
        self.insist(Op::Write, &asked, data).unwrap().0
    }

    pub(crate) fn read(&self, chunk: u64, offset: u64, len: u64) -> Vec<u8> {
        let asked = ChunkRequest {
            chunk,
            offset,
            len,
            ..self.request()
        };
        self.insist(Op::Read, &asked, &[]).unwrap().1
    }

    /// Some other request to the primary.
    pub(crate) fn ask(
        &self,
        op: Op,
        edit: impl FnOnce(&mut ChunkRequest),
        data: &[u8],
    ) -> FsResult<ChunkReply> {
        let mut asked = self.request();
        edit(&mut asked);
        self.insist(op, &asked, data).map(|(reply, _)| reply)
    }

    /// A member knows which part of which file each of these chunks is.
    pub(crate) fn assert_parts(&self, node: NodeId, chunks: impl IntoIterator<Item = u64>) {
        let listed = self.listed(node);
        for chunk in chunks {
            let found = listed.iter().find(|found| found.chunk == chunk);
            assert_eq!(found.and_then(|found| found.part), Some(part_of(chunk)));
        }
    }

    /// The chunks that a member lists, tombstones and the mark of the era included.
    pub(crate) fn chunks(&self, node: NodeId) -> Vec<u64> {
        let chunks = self.listed(node);
        chunks.iter().map(|chunk| chunk.chunk).collect()
    }

    fn listed(&self, node: NodeId) -> Vec<ChunkVersion> {
        let mut state = None;
        self.until("a member answers", || {
            state = self.state(node);
            state.is_some()
        });
        state.unwrap_or_default().chunks
    }

    pub(crate) fn sync(&self, after: (u64, u64)) -> FsResult<ChunkReply> {
        let (after_epoch, after_sequence) = after;
        let asked = ChunkRequest {
            after_epoch,
            after_sequence,
            ..self.request()
        };
        self.insist(Op::Sync, &asked, &[]).map(|(reply, _)| reply)
    }

    /// The scrubs of a node, which begin a round if they are to.
    pub(crate) fn scrub(&self, node: NodeId, start: bool) -> Vec<ScrubDisk> {
        let ask = || -> Option<ScrubReply> {
            let mut conn = self.connect(node).ok()?;
            let asked = ScrubRequest { start };
            conn.sender.request(Op::Scrub, 0, 0, 0, &asked, &[]).ok()?;
            conn.receiver.receive().ok()?.decode().ok()
        };
        let mut reply = None;
        self.until("a node tells of its scrubs", || {
            reply = ask();
            reply.is_some()
        });
        reply.unwrap().disks
    }

    /// `None` if the node does not answer now.
    fn state(&self, node: NodeId) -> Option<GroupState> {
        let mut conn = self.connect(node).ok()?;
        let asked = GroupStateRequest {
            group: GROUP.get(),
            with_chunks: true,
            chunk_after: None,
            chunks_max: 4096,
        };
        conn.sender
            .request(Op::GroupState, 0, 0, 0, &asked, &[])
            .ok()?;
        conn.receiver.receive().ok()?.decode().ok()
    }

    /// All members have the same operations and the same chunks.
    pub(crate) fn assert_equal(&self) {
        self.until("all members have the same chunks", || {
            let states = NODES.map(|node| self.state(NodeId(node)));
            let Some(states) = states.into_iter().collect::<Option<Vec<_>>>() else {
                return false;
            };
            states.iter().all(|state| {
                state.complete && state.last == states[0].last && state.chunks == states[0].chunks
            })
        });
        // Equal contents: each member is stopped from being asked otherwise by its version, so read
        // through the primary after each has led is left to the simulation.
        assert!(!self.chunks(NodeId(NODES[0])).is_empty());
    }
}

/// Where [`Cluster::write`] says that a chunk belongs.
fn part_of(chunk: u64) -> FilePart {
    FilePart {
        inode: 1000 + chunk,
        index: chunk as u32,
        chunk_size: 64 << 20,
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for running in self.nodes.values() {
            running.stop.store(true, Ordering::Release);
        }
        for (_, running) in std::mem::take(&mut self.nodes) {
            // A test that failed already says so itself.
            let _ = running.thread.join();
        }
    }
}
