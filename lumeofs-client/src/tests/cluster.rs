//! A small cluster over loopback: masters share one namespace and one table of leases, datanodes one set of chunks.

mod leases;
mod locks;

use crate::client::{Client, ClientOptions, Context, OnOutage, WriteMode};
use lumeofs_base::checksum::{block_checksums, verify_blocks};
use lumeofs_base::{
    ClusterMap, Code, Epoch, FsError, FsResult, GroupConfig, GroupId, InodeId, NodeId, NodeInfo,
    NodeKind, RequestId,
};
use lumeofs_lease::{LockWaits, Table};
use lumeofs_meta::namespace;
use lumeofs_meta::op::{Caller, Command, Internal, Mutation, Outcome, Reply};
use lumeofs_meta::tables::MemoryTables;
use lumeofs_proto::auth::{Credentials, Identity};
use lumeofs_proto::blocking::{Conn, Frame};
use lumeofs_proto::data::{ChunkReply, ChunkRequest, CopySource, FilePart};
use lumeofs_proto::frame::{FLAG_BLOCK_CHECKSUMS, Op};
use lumeofs_proto::meta::*;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::TcpListener;
use std::sync::Arc;

pub(super) const CHUNK: u64 = 256 << 10;
pub(super) const GROUP: GroupId = GroupId(1);
/// A write at the end.
pub(super) const APPEND: WriteMode = WriteMode {
    append: true,
    durable: false,
    direct: false,
    clear_suid: false,
};

/// What a server does with a request.
pub(super) enum Answer {
    Reply(MetaReply),
    Lease(LeaseReply),
    Verdict(LockVerdict),
    Session(SessionReply),
    Map(MapReply),
    Chunk(ChunkReply, Vec<u8>),
    Fail(FsError),
    /// Takes its time, beside other requests.
    Later(Box<dyn FnOnce(&World) -> Answer + Send>),
    /// Never answers.
    Hang,
    /// Closes the connection.
    Drop,
}

/// Looks at each request first; `None` lets the server answer as usual.
pub(super) type Hook = Box<dyn FnMut(&Frame, &World) -> Option<Answer> + Send>;

/// All that the servers know.
pub(super) struct World {
    pub(super) state: Mutex<State>,
}

pub(super) struct State {
    tables: MemoryTables,
    index: u64,
    pub(super) term: u64,
    pub(super) map: ClusterMap,
    masters: Vec<MasterAddress>,
    chunks: HashMap<u64, FakeChunk>,
    generation: u32,
    sequence: u64,
    /// Everything that clients reported.
    pub(super) reports: Vec<OpenReport>,
    /// Mutations as they came in.
    pub(super) mutations: Vec<(u64, Mutation)>,
    table: Table,
    pub(super) locks: LockWaits,
    /// Inodes that were open where a recall was acknowledged.
    pub(super) found_open: Vec<InodeId>,
    /// Clients hear nothing of their polls.
    pub(super) is_mute: bool,
}

#[derive(Default)]
struct FakeChunk {
    data: Vec<u8>,
    truncations: u32,
    /// What writes said of it.
    part: Option<FilePart>,
}

pub(super) struct Server {
    pub(super) address: String,
    hook: Arc<Mutex<Option<Hook>>>,
}

impl Server {
    pub(super) fn hook(&self, hook: impl FnMut(&Frame, &World) -> Option<Answer> + Send + 'static) {
        *self.hook.lock() = Some(Box::new(hook));
    }

    /// Does something other than usual with the first request of a kind.
    pub(super) fn once(
        &self,
        op: Op,
        mut act: impl FnMut(&Frame, &World) -> Answer + Send + 'static,
    ) {
        let mut done = false;
        self.hook(move |frame, world| {
            let now = frame.fixed.op == op && !done;
            done |= now;
            now.then(|| act(frame, world))
        });
    }
}

pub(super) struct Cluster {
    pub(super) world: Arc<World>,
    pub(super) masters: Vec<Server>,
    pub(super) nodes: Vec<Server>,
    credentials: Credentials,
}

impl Cluster {
    pub(super) fn start(master_count: u64) -> Self {
        let credentials = Credentials::generate();
        let config = GroupConfig {
            group: GROUP,
            epoch: Epoch(1),
            primary: NodeId(11),
            members: vec![NodeId(11), NodeId(12), NodeId(13)],
            in_sync: vec![NodeId(11), NodeId(12), NodeId(13)],
            leaving: Vec::new(),
            replicas: 3,
        };
        let map = ClusterMap {
            version: 1,
            groups: vec![config],
            chunk_size: CHUNK,
            ..ClusterMap::default()
        };
        let state = State {
            tables: MemoryTables::default(),
            index: 0,
            term: 1,
            map,
            masters: Vec::new(),
            chunks: HashMap::new(),
            generation: 0,
            sequence: 0,
            reports: Vec::new(),
            mutations: Vec::new(),
            table: leases::table(),
            locks: LockWaits::default(),
            found_open: Vec::new(),
            is_mute: false,
        };
        let world = Arc::new(World {
            state: Mutex::new(state),
        });
        world
            .command(Command::Internal(Internal::SetChunkSize { bytes: CHUNK }))
            .unwrap();
        let start = |id, kind| Self::server(&world, &credentials, NodeId(id), kind);
        let masters: Vec<_> = (1..=master_count)
            .map(|id| start(id, NodeKind::Master))
            .collect();
        let nodes: Vec<_> = (11..=13).map(|id| start(id, NodeKind::Datanode)).collect();
        let mut state = world.state.lock();
        for (id, server) in (1..).zip(&masters) {
            state.masters.push(MasterAddress {
                id,
                address: server.address.clone(),
                joined: true,
            });
        }
        for (id, server) in (11..).zip(&nodes) {
            state.map.nodes.push(NodeInfo {
                id: NodeId(id),
                address: server.address.clone(),
                zone: String::new(),
                capacity_bytes: 3 << 30,
                free_bytes: 1 << 30,
                state: lumeofs_base::NodeState::Active,
            });
        }
        drop(state);
        Self {
            world,
            masters,
            nodes,
            credentials,
        }
    }

    fn server(
        world: &Arc<World>,
        credentials: &Credentials,
        node: NodeId,
        kind: NodeKind,
    ) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let hook: Arc<Mutex<Option<Hook>>> = Arc::default();
        let identity = Arc::new(Identity {
            credentials: credentials.clone(),
            node,
            kind,
        });
        let (world, hooks) = (world.clone(), hook.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (world, hooks, identity) = (world.clone(), hooks.clone(), identity.clone());
                std::thread::spawn(move || {
                    if let Ok(conn) = Conn::accept(stream.unwrap(), &identity) {
                        serve(conn, &world, &hooks);
                    }
                });
            }
        });
        Server { address, hook }
    }

    pub(super) fn client(&self) -> Arc<Client> {
        self.client_with(OnOutage::Block(Some(std::time::Duration::from_secs(20))))
    }

    pub(super) fn client_with(&self, on_outage: OnOutage) -> Arc<Client> {
        self.client_of(on_outage, crate::CACHE_BYTES_DEFAULT)
    }

    /// A client with little memory.
    pub(super) fn client_with_cache(&self, cache_bytes: usize) -> Arc<Client> {
        let on_outage = OnOutage::Block(Some(std::time::Duration::from_secs(20)));
        self.client_of(on_outage, cache_bytes)
    }

    fn client_of(&self, on_outage: OnOutage, cache_bytes: usize) -> Arc<Client> {
        let masters: Vec<_> = self
            .masters
            .iter()
            .map(|server| server.address.clone())
            .collect();
        let options = ClientOptions {
            on_outage,
            description: "test".into(),
            cache_bytes,
            dirsync: false,
        };
        let client = Client::connect(&masters, self.credentials.clone(), options).unwrap();
        // What it then asks brings leases, unless the test's masters give none.
        let start = crate::wait::now();
        while !client.lease_stats().is_valid
            && crate::wait::now() - start < std::time::Duration::from_secs(2)
        {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        client
    }
}

/// The context of tests.
pub(super) fn cx() -> Context<'static> {
    static ROOT: Caller = Caller {
        uid: 0,
        gid: 0,
        groups: Vec::new(),
        trusted: true,
    };
    Context {
        request: RequestId::next(),
        caller: &ROOT,
        interrupted: &|| false,
    }
}

/// A context of callers that never use what is in memory.
pub(super) fn direct() -> Context<'static> {
    static UNCHECKED: Caller = Caller {
        uid: 0,
        gid: 0,
        groups: Vec::new(),
        trusted: false,
    };
    Context {
        caller: &UNCHECKED,
        ..cx()
    }
}

fn serve(mut conn: Conn, world: &World, hook: &Mutex<Option<Hook>>) {
    while let Ok(frame) = conn.receiver.receive() {
        let hooked = match frame.fixed.op {
            // What a hook does just now may have to wait for polls.
            Op::Lease | Op::LockWait => hook.try_lock(),
            _ => Some(hook.lock()),
        };
        let hooked = hooked.and_then(|mut hook| hook.as_mut().and_then(|hook| hook(&frame, world)));
        let answer = hooked.unwrap_or_else(|| world.answer(&frame).unwrap_or_else(Answer::Fail));
        let answer = match answer {
            Answer::Later(answer) => answer(world),
            other => other,
        };
        let sent = match answer {
            Answer::Reply(reply) => conn.sender.reply(&frame.fixed, 0, &reply, &[]),
            Answer::Lease(reply) => conn.sender.reply(&frame.fixed, 0, &reply, &[]),
            Answer::Verdict(reply) => conn.sender.reply(&frame.fixed, 0, &reply, &[]),
            Answer::Fail(error) => conn.sender.fail(&frame.fixed, &error),
            Answer::Session(reply) => conn.sender.reply(&frame.fixed, 0, &reply, &[]),
            Answer::Map(reply) => conn.sender.reply(&frame.fixed, 0, &reply, &[]),
            Answer::Chunk(reply, data) => {
                conn.sender
                    .reply(&frame.fixed, FLAG_BLOCK_CHECKSUMS, &reply, &[&data])
            }
            Answer::Hang | Answer::Later(_) => continue,
            Answer::Drop => return,
        };
        if sent.is_err() {
            return;
        }
    }
}

impl World {
    pub(super) fn command(&self, command: Command) -> Outcome {
        self.state.lock().apply(command).0.outcome
    }

    /// A mutation of somebody else, who has and wants no lease.
    pub(super) fn mutate(&self, mutation: Mutation) -> Outcome {
        let nonce = u128::from_le_bytes(lumeofs_base::entropy::bytes());
        let open = Internal::OpenSession {
            nonce,
            description: String::new(),
        };
        let Ok(Reply::Session(session)) = self.command(Command::Internal(open)) else {
            panic!()
        };
        let caller = cx().caller.clone();
        let command = Command::Mutate {
            session,
            sequence: 1,
            acked_below: 1,
            caller,
            mutation,
        };
        let (applied, changed) = self.state.lock().apply(command);
        self.until_settled(&changed);
        applied.outcome
    }

    /// The usual answer.
    pub(super) fn answer(&self, frame: &Frame) -> FsResult<Answer> {
        Ok(match frame.fixed.op {
            Op::Query => Answer::Reply(self.query(&frame.decode()?)?),
            Op::Mutate => Answer::Reply(self.mutate_for(&frame.decode()?)?),
            Op::Lease => self.lease(&frame.decode()?)?,
            Op::LockWait => self.lock_wait(&frame.decode()?)?,
            Op::Session => self.session(&frame.decode()?)?,
            Op::Opens => {
                let report: OpenReport = frame.decode()?;
                let mut state = self.state.lock();
                let (session, term) = (report.session, state.term);
                if report.term == term || (report.complete && !report.part) {
                    state.reports.push(report);
                }
                Answer::Session(SessionReply {
                    session,
                    term,
                    ..Default::default()
                })
            }
            Op::Map => {
                let state = self.state.lock();
                let map = postcard::to_stdvec(&state.map).unwrap().into();
                Answer::Map(MapReply {
                    map,
                    masters: state.masters.clone(),
                    certain: false,
                    ..MapReply::default()
                })
            }
            _ => {
                let (reply, data) = self.chunk(frame)?;
                Answer::Chunk(reply, data)
            }
        })
    }

    fn session(&self, asked: &SessionRequest) -> FsResult<Answer> {
        let mut session = asked.session;
        if !asked.nonce.is_empty() {
            let nonce = u128::from_le_bytes(asked.nonce[..].try_into().unwrap());
            let description = asked.description.clone();
            let open = Internal::OpenSession { nonce, description };
            let Reply::Session(opened) = self.command(Command::Internal(open))? else {
                panic!()
            };
            session = opened.get();
        } else if asked.close {
            let session = session.into();
            self.command(Command::Internal(Internal::CloseSession { session }))?;
        } else if !namespace::sessions(&self.state.lock().tables)
            .iter()
            .any(|info| info.id.get() == session)
        {
            return Err(Code::SessionExpired.into());
        }
        let term = self.state.lock().term;
        Ok(Answer::Session(SessionReply {
            session,
            term,
            ..Default::default()
        }))
    }

    fn chunk(&self, frame: &Frame) -> FsResult<(ChunkReply, Vec<u8>)> {
        let asked: ChunkRequest = frame.decode()?;
        let mut state = self.state.lock();
        if asked.epoch != state.map.groups[0].epoch.get() {
            return Err(Code::StaleEpoch.into());
        }
        let op = frame.fixed.op;
        if matches!(op, Op::Write | Op::Copy | Op::Zero | Op::Truncate) {
            let truncations = state.chunks.entry(asked.chunk).or_default().truncations;
            if asked.generation < state.generation || asked.truncations < truncations {
                return Err(Code::StaleWrite.into());
            }
            state.generation = asked.generation;
            state.sequence += 1;
        }
        let mut reply = ChunkReply {
            epoch: asked.epoch,
            sequence: state.sequence,
            ..Default::default()
        };
        let (start, end) = (asked.offset as usize, (asked.offset + asked.len) as usize);
        let source = asked.source.as_ref();
        let copied = source.map_or(Ok(Vec::new()), |source| state.copied(source, asked.len))?;
        let chunk = state.chunks.entry(asked.chunk).or_default();
        let mut out = Vec::new();
        match op {
            Op::Write => {
                assert!(verify_blocks(
                    asked.offset,
                    &frame.payload,
                    &asked.checksums
                ));
                let part = asked.part.expect("each write says where its chunk belongs");
                assert_eq!(u64::from(part.chunk_size), CHUNK);
                assert_eq!(*chunk.part.get_or_insert(part), part);
                let end = start + frame.payload.len();
                chunk.data.resize(chunk.data.len().max(end), 0);
                chunk.data[start..end].copy_from_slice(&frame.payload);
                chunk.truncations = asked.truncations;
            }
            Op::Copy => {
                assert!(!copied.is_empty() && frame.payload.is_empty());
                chunk.data.resize(chunk.data.len().max(end), 0);
                chunk.data[start..end].copy_from_slice(&copied);
                chunk.truncations = asked.truncations;
            }
            Op::Zero => {
                let end = end.min(chunk.data.len());
                chunk.data[start.min(end)..end].fill(0);
            }
            Op::Truncate => {
                chunk.data.truncate(start);
                chunk.truncations = asked.truncations;
            }
            Op::Read => {
                out = vec![0; asked.len as usize];
                let from = start.min(chunk.data.len());
                let count = end.min(chunk.data.len()) - from;
                out[..count].copy_from_slice(&chunk.data[from..from + count]);
                reply.checksums = block_checksums(asked.offset, &out);
            }
            Op::Extents => reply.extents = vec![0, chunk.data.len() as u64],
            Op::Sync => {}
            other => panic!("{other:?}"),
        }
        Ok((reply, out))
    }
}

impl State {
    /// The bytes that a copy writes.
    fn copied(&self, source: &CopySource, len: u64) -> FsResult<Vec<u8>> {
        let mut bytes = vec![0; len as usize];
        let Some(chunk) = self.chunks.get(&source.chunk) else {
            return Ok(bytes);
        };
        if source.truncations < chunk.truncations {
            return Err(Code::StaleWrite.into());
        }
        let from = chunk.data.len().min(source.offset as usize);
        let until = chunk.data.len().min((source.offset + len) as usize);
        bytes[..until - from].copy_from_slice(&chunk.data[from..until]);
        Ok(bytes)
    }
}
