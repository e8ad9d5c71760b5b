//! Raft between masters, over frames.
//!
//! Each group keeps its own connections to each other master, so that neither another group's load
//! nor a snapshot delays an append. A call that is given up takes its connection with it: the answer
//! that still comes must not be taken for another's.

use super::handover::Handover;
use super::lease::Lease;
use super::log_store::LogStore;
use super::snapshot::{self, Pieces, SnapshotData};
use super::state_machine::blocking;
use super::store::{Incoming, Store};
use super::types::{LeaderId, LogId, Raft, Snapshot, SnapshotMeta, TypeConfig, Vote};
use crate::masters::Masters;
use futures::FutureExt as _;
use lumeofs_base::clock::{Clock as _, SystemClock};
use lumeofs_base::limits::RAFT_ELECT_AFTER;
use lumeofs_base::{Code, FsError, FsResult, NodeKind, RaftGroupId};
use lumeofs_proto::auth::Identity;
use lumeofs_proto::frame::Op;
use lumeofs_proto::meta::RaftMessage;
use lumeofs_proto::nonblocking::{FrameReader, FrameWriter, connect};
use openraft::error::{Fatal, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{BasicNode, OptionalSend};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::time::timeout;

/// Idle connections kept per peer and group: one replicates, one confirms leadership.
const IDLE_MAX: usize = 2;
/// Wait between two attempts to reach a peer.
const BACKOFF: Duration = Duration::from_millis(100);
/// An append that would tell nothing but the commit index is left out so soon after another one: under load the next
/// entries carry it along, else the next heartbeat does. Only followers of the metadata group can wait for it; those
/// of the controller group show the cluster map to clients.
const COMMIT_DELAY: Duration = Duration::from_millis(20);
/// How long an election is left to a better candidate: time for two attempts of the slowest one.
const LEAVE_TO_BETTER: Duration = Duration::from_millis(1100);
/// Time for one piece of a snapshot. Now and then a piece waits until those before it are on the disk.
const PIECE_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for a follower to make a whole snapshot durable and to install it.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(120);

/// Makes clients for the members of one group.
#[derive(Clone)]
pub(super) struct Network {
    group: RaftGroupId,
    identity: Identity,
    /// Where the masters are; this wins over what the membership recorded.
    masters: Arc<Masters>,
    lease: Arc<Lease>,
    handover: Arc<Handover>,
    log: LogStore,
    pools: Arc<Mutex<BTreeMap<u64, Arc<Pool>>>>,
}

impl Network {
    pub(super) fn new(
        group: RaftGroupId,
        identity: Identity,
        masters: Arc<Masters>,
        lease: Arc<Lease>,
        handover: Arc<Handover>,
        log: LogStore,
    ) -> Self {
        Self {
            group,
            identity,
            masters,
            lease,
            handover,
            log,
            pools: Arc::default(),
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Client {
        let pool = self.pools.lock().entry(target).or_default().clone();
        Client {
            group: self.group,
            target,
            masters: self.masters.clone(),
            told: node.addr.clone(),
            identity: self.identity.clone(),
            lease: self.lease.clone(),
            handover: self.handover.clone(),
            log: self.log.clone(),
            pool,
            agreed: None,
        }
    }
}

type Connection = (FrameReader, FrameWriter);

#[derive(Default)]
struct Pool(Mutex<Vec<Connection>>);

/// Calls one other member.
pub(super) struct Client {
    group: RaftGroupId,
    target: u64,
    masters: Arc<Masters>,
    /// Where it was when it became a member.
    told: String,
    identity: Identity,
    lease: Arc<Lease>,
    handover: Arc<Handover>,
    log: LogStore,
    pool: Arc<Pool>,
    /// What the last append found if it succeeded: the entry up to which the follower's log is ours, and when
    /// it was sent.
    agreed: Option<(Option<LogId>, Duration)>,
}

impl Client {
    /// Whether this append would tell only what a later one can tell as well.
    fn can_wait(&self, request: &AppendEntriesRequest<TypeConfig>, now: Duration) -> bool {
        self.group == RaftGroupId::METADATA
            && request.entries.is_empty()
            && self.agreed.is_some_and(|(upto, sent)| {
                upto == request.prev_log_id && now.saturating_sub(sent) < COMMIT_DELAY
            })
    }

    /// Sends an append; what it says to be committed is on our own disk.
    async fn append(
        &self,
        request: &AppendEntriesRequest<TypeConfig>,
    ) -> FsResult<AppendEntriesResponse<u64>> {
        if let Some(committed) = request.leader_commit {
            self.log.wait_durable(committed.index).await?;
        }
        self.call(Op::RaftAppend, request).await
    }

    /// Says instead of an append that this leader wants another one.
    async fn resign(&self) -> FsResult<()> {
        let message = RaftMessage {
            resigns: true,
            ..message(self.group, &self.identity.node.get())
        };
        self.exchange(Op::RaftAppend, &message).await.map(drop)
    }

    async fn call<A: DeserializeOwned>(&self, op: Op, ask: &impl Serialize) -> FsResult<A> {
        let answer = self.exchange(op, &message(self.group, ask)).await?;
        self.handover.note(self.target, answer.short);
        decode(&answer.body)
    }

    async fn exchange(&self, op: Op, message: &RaftMessage) -> FsResult<RaftMessage> {
        let idle = self.pool.0.lock().pop();
        let had_idle = idle.is_some();
        let done = match idle {
            Some(connection) => exchange(connection, op, message, &[]).await,
            None => exchange(self.connect().await?, op, message, &[]).await,
        };
        let (connection, answer) = match done {
            // The peer may have been restarted since: the others are as stale, a new one is tried
            // once. Raft's calls may be repeated.
            Err(_) if had_idle => {
                self.pool.0.lock().clear();
                exchange(self.connect().await?, op, message, &[]).await?
            }
            done => done?,
        };
        let mut idle = self.pool.0.lock();
        if idle.len() < IDLE_MAX {
            idle.push(connection);
        }
        drop(idle);
        Ok(answer)
    }

    async fn connect(&self) -> FsResult<Connection> {
        let address = self.masters.address(self.target);
        let address = address.as_ref().unwrap_or(&self.told);
        let (reader, writer, peer) = connect(address, &self.identity).await?;
        if peer.node.get() != self.target || peer.kind != NodeKind::Master {
            return Err(FsError::new(
                Code::Refused,
                format!(
                    "{address} is {:?} {}, not master {}",
                    peer.kind, peer.node, self.target
                ),
            ));
        }
        Ok((reader, writer))
    }

    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: Snapshot,
    ) -> FsResult<SnapshotResponse<u64>> {
        let SnapshotData::Outgoing(base) = *snapshot.snapshot else {
            return Err(FsError::new(
                Code::Invalid,
                "only a checkpoint can be sent as snapshot",
            ));
        };
        let mut pieces = Pieces::new(base);
        let mut connection = self.connect().await?;
        let step = |connection, part: Part, piece: Vec<u8>, limit| {
            let message = message(self.group, &part);
            async move {
                timeout(
                    limit,
                    exchange(connection, Op::RaftSnapshot, &message, &piece),
                )
                .await
                .unwrap_or_else(|_| Err(FsError::new(Code::Timeout, "send a snapshot")))
            }
        };
        (connection, _) = step(connection, Part::Begin, Vec::new(), PIECE_TIMEOUT).await?;
        loop {
            let (rest, piece) = blocking(move || {
                let piece = pieces.next()?;
                Ok((pieces, piece))
            })
            .await?;
            pieces = rest;
            let Some(piece) = piece else { break };
            (connection, _) = step(connection, Part::Rows, piece, PIECE_TIMEOUT).await?;
        }
        let end = Part::End {
            vote,
            meta: snapshot.meta,
        };
        let (_, answer) = step(connection, end, Vec::new(), INSTALL_TIMEOUT).await?;
        decode(&answer.body)
    }
}

impl RaftNetwork<TypeConfig> for Client {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, RPCError<u64, BasicNode, RaftError<u64>>> {
        let sent = SystemClock.monotonic();
        if self.can_wait(&request, sent) {
            return Ok(AppendEntriesResponse::Success);
        }
        self.agreed = None;
        if self.handover.resigns(sent) {
            let told = limited(option, self.resign()).await;
            let error = FsError::new(Code::Unavailable, "another master is to lead");
            return told.and(Err(RPCError::Unreachable(Unreachable::new(&error))));
        }
        let leader: LeaderId = *request.vote.leader_id();
        let answer = limited(option, self.append(&request)).await?;
        if matches!(
            answer,
            AppendEntriesResponse::Success | AppendEntriesResponse::PartialSuccess(_)
        ) {
            self.lease.acknowledge(leader.into(), self.target, sent);
        }
        if matches!(answer, AppendEntriesResponse::Success) {
            let last = request.entries.last().map(|entry| entry.log_id);
            self.agreed = Some((last.or(request.prev_log_id), sent));
        }
        Ok(answer)
    }

    async fn vote(
        &mut self,
        request: VoteRequest<u64>,
        option: RPCOption,
    ) -> Result<VoteResponse<u64>, RPCError<u64, BasicNode, RaftError<u64>>> {
        limited(option, self.call(Op::RaftVote, &request)).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<u64>, StreamingError<TypeConfig, Fatal<u64>>> {
        tracing::info!(group = %self.group, target = self.target, snapshot = %snapshot.meta.snapshot_id, "sending a snapshot");
        tokio::select! {
            closed = cancel => Err(closed.into()),
            sent = self.send_snapshot(vote, snapshot) => sent.map_err(|error| Unreachable::new(&error).into()),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(BACKOFF))
    }
}

async fn limited<A>(
    option: RPCOption,
    call: impl Future<Output = FsResult<A>>,
) -> Result<A, RPCError<u64, BasicNode, RaftError<u64>>> {
    timeout(option.hard_ttl(), call)
        .await
        .unwrap_or_else(|_| Err(FsError::new(Code::Timeout, "call of another master")))
        .map_err(|error| RPCError::Unreachable(Unreachable::new(&error)))
}

/// One request and its reply.
async fn exchange(
    (mut reader, mut writer): Connection,
    op: Op,
    message: &RaftMessage,
    payload: &[u8],
) -> FsResult<(Connection, RaftMessage)> {
    let failed = |error: std::io::Error| FsError::from_net(&error, format_args!("{op:?}"));
    writer
        .request(op, 0, message, payload)
        .await
        .map_err(failed)?;
    let answer = reader.receive().await.map_err(failed)?.decode()?;
    Ok(((reader, writer), answer))
}

fn message(group: RaftGroupId, body: &impl Serialize) -> RaftMessage {
    RaftMessage {
        group: group.get(),
        body: postcard::to_stdvec(body)
            .expect("Raft messages are plain data")
            .into(),
        ..RaftMessage::default()
    }
}

fn decode<A: DeserializeOwned>(body: &[u8]) -> FsResult<A> {
    postcard::from_bytes(body)
        .map_err(|error| FsError::new(Code::Refused, format!("Raft message: {error}")))
}

/// One frame of a snapshot on its way; rows travel as payload.
#[derive(Serialize, Deserialize)]
enum Part {
    Begin,
    Rows,
    End { vote: Vote, meta: SnapshotMeta },
}

/// The receiving end of one group.
pub(crate) struct RaftServer {
    group: RaftGroupId,
    raft: Raft,
    store: Arc<Store>,
    /// When the last append was received, on the monotonic clock; before the first one: when the
    /// process started.
    heard: Mutex<Duration>,
    /// What has been seen of others that ask for votes.
    candidates: Mutex<Candidates>,
    handover: Arc<Handover>,
    log: LogStore,
}

#[derive(Default)]
struct Candidates {
    /// The leader that has asked for votes since its last append, because it was restarted and leads no more, or that has
    /// asked for another leader.
    resigned: Option<u64>,
    /// Until then the election is left to one with a longer log. It could never win against somebody with
    /// a shorter one who is ahead of its term again each time that it asks.
    left_to_better_until: Duration,
}

/// A snapshot that a connection is receiving.
#[derive(Default)]
pub(crate) struct Receiving(Option<Incoming>);

impl RaftServer {
    pub(super) fn new(
        group: RaftGroupId,
        raft: Raft,
        store: Arc<Store>,
        handover: Arc<Handover>,
        log: LogStore,
    ) -> Self {
        Self {
            group,
            raft,
            store,
            heard: Mutex::new(SystemClock.monotonic()),
            candidates: Mutex::default(),
            handover,
            log,
        }
    }

    /// Hands an append to openraft. Hearing it and queueing it are one step under the lock that
    /// [`RaftServer::elect`] takes too: else an election could be queued right behind an append that
    /// the leader will count for its lease.
    async fn append(
        &self,
        request: AppendEntriesRequest<TypeConfig>,
    ) -> Result<AppendEntriesResponse<u64>, RaftError<u64>> {
        let mut append = pin!(self.raft.append_entries(request));
        let first = poll_fn(|context| {
            let mut heard = self.heard.lock();
            *heard = SystemClock.monotonic();
            self.candidates.lock().resigned = None;
            Poll::Ready(append.as_mut().poll(context))
        });
        match first.await {
            Poll::Ready(answer) => answer,
            Poll::Pending => append.await,
        }
    }

    /// Whether the leader `leader` leads no more: it was restarted, or wants another one to lead.
    pub(super) fn has_resigned(&self, leader: u64) -> bool {
        self.candidates.lock().resigned == Some(leader)
    }

    /// Draws conclusions from somebody's asking for votes: no leader does that, though we may believe in it
    /// still, and one with a longer log is more likely to win than we are.
    fn note_candidate(&self, request: &VoteRequest<u64>) {
        let leader = self.raft.server_metrics().borrow().current_leader;
        let mut candidates = self.candidates.lock();
        if leader == Some(request.vote.leader_id.node_id) {
            candidates.resigned = leader;
        }
        if request.last_log_id > self.log.last() {
            candidates.left_to_better_until = SystemClock.monotonic() + LEAVE_TO_BETTER;
        }
    }

    /// Asks for an election unless an append was heard within [`RAFT_ELECT_AFTER`] or there is a better
    /// candidate. Returns whether it did.
    pub(super) fn elect(&self) -> bool {
        let now = SystemClock.monotonic();
        // The first time it must ask in any case: a voter that still believes in a leader grants nothing.
        let believes = self.raft.server_metrics().borrow().current_leader.is_some();
        if !believes && now < self.candidates.lock().left_to_better_until {
            return false;
        }
        let heard = self.heard.lock();
        if now.saturating_sub(*heard) < RAFT_ELECT_AFTER {
            return false;
        }
        // Queueing does not wait. A failure means that the group is stopping.
        matches!(self.raft.trigger().elect().now_or_never(), Some(Ok(())))
    }

    /// The leader wants another one.
    fn note_resigned(&self, leader: u64) {
        let known = self.raft.server_metrics().borrow().current_leader;
        if known == Some(leader) {
            self.candidates.lock().resigned = known;
        }
    }

    /// Answers a frame of another member. `receiving` belongs to the connection.
    pub(crate) async fn answer(
        &self,
        op: Op,
        ask: &RaftMessage,
        payload: &[u8],
        receiving: &mut Receiving,
    ) -> FsResult<RaftMessage> {
        let answer = self.answer_as(op, ask, payload, receiving).await?;
        Ok(RaftMessage {
            short: self.handover.is_short(),
            ..answer
        })
    }

    async fn answer_as(
        &self,
        op: Op,
        ask: &RaftMessage,
        payload: &[u8],
        receiving: &mut Receiving,
    ) -> FsResult<RaftMessage> {
        let stopped = |error: String| FsError::new(Code::Unavailable, error);
        match op {
            Op::RaftAppend if ask.resigns => {
                self.note_resigned(decode(&ask.body)?);
                Ok(message(self.group, &()))
            }
            Op::RaftAppend => {
                let request: AppendEntriesRequest<TypeConfig> = decode(&ask.body)?;
                let answer = self.append(request).await;
                Ok(message(
                    self.group,
                    &answer.map_err(|error| stopped(error.to_string()))?,
                ))
            }
            Op::RaftVote => {
                let request: VoteRequest<u64> = decode(&ask.body)?;
                self.note_candidate(&request);
                let answer = self.raft.vote(request).await;
                Ok(message(
                    self.group,
                    &answer.map_err(|error| stopped(error.to_string()))?,
                ))
            }
            Op::RaftSnapshot => self.receive(decode(&ask.body)?, payload, receiving).await,
            other => Err(FsError::new(
                Code::Refused,
                format!("{other:?} is no Raft message"),
            )),
        }
    }

    async fn receive(
        &self,
        part: Part,
        piece: &[u8],
        receiving: &mut Receiving,
    ) -> FsResult<RaftMessage> {
        let unexpected = || FsError::new(Code::Refused, "piece of a snapshot that was not begun");
        match part {
            Part::Begin => {
                let store = self.store.clone();
                receiving.0 = Some(blocking(move || store.receive()).await?);
                Ok(message(self.group, &()))
            }
            Part::Rows => {
                let mut incoming = receiving.0.take().ok_or_else(unexpected)?;
                let piece = piece.to_vec();
                receiving.0 = Some(
                    blocking(move || {
                        incoming.add(snapshot::rows(&piece)?.into_iter())?;
                        Ok(incoming)
                    })
                    .await?,
                );
                Ok(message(self.group, &()))
            }
            Part::End { vote, meta } => {
                let mut incoming = receiving.0.take().ok_or_else(unexpected)?;
                tracing::info!(group = %self.group, snapshot = %meta.snapshot_id, "installing a snapshot");
                // Here nobody waits for it but the leader.
                let incoming = blocking(move || incoming.sync().map(|()| incoming)).await?;
                let snapshot = Snapshot {
                    meta,
                    snapshot: Box::new(SnapshotData::Incoming(incoming)),
                };
                let answer = self.raft.install_full_snapshot(vote, snapshot).await;
                let answer =
                    answer.map_err(|error| FsError::new(Code::Unavailable, error.to_string()))?;
                Ok(message(self.group, &answer))
            }
        }
    }
}
