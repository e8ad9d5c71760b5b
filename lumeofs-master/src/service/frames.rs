//! Frames of clients and of other masters: decode, call, encode.

use super::blocked::Work;
use super::metadata::MetadataService;
use crate::ask::to_wire;
use crate::join::Admission;
use crate::masters::Masters;
use crate::metrics::{Asked, Requests};
use crate::raft::{Group, RaftServer, Receiving};
use lumeofs_base::clock::{Clock as _, SystemClock};
use lumeofs_base::in_work::Board;
use lumeofs_base::limits::REQUEST_TIMEOUT;
use lumeofs_base::{Code, FsError, FsResult, NodeKind, RaftGroupId};
use lumeofs_meta::controller;
use lumeofs_proto::auth::{Identity, Peer};
use lumeofs_proto::blocking::Frame;
use lumeofs_proto::data::BlockedReply;
use lumeofs_proto::frame::{Fixed, Op};
use lumeofs_proto::meta::{
    GroupMembers, LeaseReply, LeaseRequest, LockVerdict, LockWait, MapReply, MapRequest,
    MasterAddress, MetaReply, MetaRequest, OpenReport, RaftMessage, SessionReply, SessionRequest,
};
use lumeofs_proto::nonblocking::{FrameWriter, Stream, accept};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// No request is worked on for longer, whatever its deadline says.
const DEADLINE_MAX: Duration = Duration::from_secs(60);

/// Serves connections that speak frames.
pub(crate) struct FrameService {
    pub(crate) identity: Identity,
    pub(crate) admission: Admission,
    pub(crate) masters: Arc<Masters>,
    pub(crate) controller: Arc<Group>,
    pub(crate) metadata: Arc<MetadataService>,
    pub(crate) requests: Arc<Requests>,
    /// Requests that its connections work on.
    pub(crate) work: Board<Work>,
}

/// A reply's typed header.
enum Answer {
    Meta(MetaReply),
    Session(SessionReply),
    Lease(LeaseReply),
    LockVerdict(LockVerdict),
    Map(MapReply),
    Raft(RaftMessage),
    Blocked(BlockedReply),
}

impl FrameService {
    /// Serves one connection until it ends: one request at a time, in order.
    pub(crate) async fn serve(&self, stream: Stream, from: &str) {
        let (mut reader, mut writer, peer) = match accept(stream, &self.identity).await {
            Ok(accepted) => accepted,
            Err(error) if error.code == Code::Refused => {
                tracing::warn!(from, %error, "connection refused");
                return;
            }
            Err(error) => {
                tracing::debug!(from, %error, "no handshake");
                return;
            }
        };
        let mut receiving = Receiving::default();
        let place = self.work.place();
        loop {
            let frame = match reader.receive().await {
                Ok(frame) => frame,
                Err(error) => {
                    if error.kind() == std::io::ErrorKind::InvalidData {
                        tracing::warn!(from, %error, "malformed frame, connection closed");
                    }
                    return;
                }
            };
            let begun = SystemClock.monotonic();
            let in_work = place.begin(Work::of(&frame, peer), begun);
            let mut asked = Asked::new(frame.fixed.op);
            let answer = self.answer(&frame, peer, &mut receiving, &mut asked).await;
            drop(in_work);
            let took = SystemClock.monotonic().saturating_sub(begun);
            let error = answer.as_ref().err();
            self.requests.done(&frame.fixed, asked, peer, took, error);
            if send(&mut writer, &frame.fixed, answer).await.is_err() {
                return;
            }
        }
    }

    async fn answer(
        &self,
        frame: &Frame,
        peer: Peer,
        receiving: &mut Receiving,
        asked: &mut Asked,
    ) -> FsResult<Answer> {
        let op = frame.fixed.op;
        if matches!(op, Op::RaftAppend | Op::RaftVote | Op::RaftSnapshot) {
            // openraft has its own deadlines, and a snapshot's last piece takes its time.
            return self.raft(op, frame, peer, receiving).await;
        }
        let limit = match frame.fixed.deadline_ms {
            0 => REQUEST_TIMEOUT,
            ms => Duration::from_millis(u64::from(ms)).min(DEADLINE_MAX),
        };
        timeout(limit, self.ask(op, frame, asked))
            .await
            .unwrap_or_else(|_| {
                Err(FsError::new(
                    Code::Timeout,
                    format!("{op:?} was not done in {limit:?}"),
                ))
            })
    }

    async fn ask(&self, op: Op, frame: &Frame, asked: &mut Asked) -> FsResult<Answer> {
        Ok(match op {
            Op::Query => {
                let request: MetaRequest = frame.decode()?;
                asked.queries(&request);
                Answer::Meta(self.metadata.query(&request).await?)
            }
            Op::Mutate => {
                let request: MetaRequest = frame.decode()?;
                asked.mutates(&request);
                Answer::Meta(self.metadata.mutate(&request).await?)
            }
            Op::Session => {
                let request: SessionRequest = frame.decode()?;
                asked.of(request.session);
                let mut reply = self.metadata.session(request).await?;
                reply.masters = self.addresses();
                Answer::Session(reply)
            }
            Op::Opens => {
                let report: OpenReport = frame.decode()?;
                asked.of(report.session);
                Answer::Session(self.metadata.opens(report).await?)
            }
            Op::Lease => {
                let request: LeaseRequest = frame.decode()?;
                asked.of(request.session);
                Answer::Lease(self.metadata.lease(&request).await?)
            }
            Op::LockWait => {
                let wait: LockWait = frame.decode()?;
                asked.of(wait.session);
                Answer::LockVerdict(self.metadata.lock_wait(&wait).await?)
            }
            Op::Blocked => Answer::Blocked(self.blocked(&frame.decode()?)),
            Op::Map => Answer::Map(self.map(&frame.decode()?).await),
            other => {
                return Err(FsError::new(
                    Code::Unsupported,
                    format!("{other:?} is nothing for a master"),
                ));
            }
        })
    }

    /// The cluster map as this master knows it. It may be an old one: epochs tell.
    async fn map(&self, request: &MapRequest) -> MapReply {
        let certain = request.certainly && self.controller.linearizable().await.is_ok();
        let map = self.controller.store().read(controller::cluster_map);
        let known = map.version == request.version && map.version != 0;
        // Masters ask each other for certainty, not for the map.
        let map = if known || request.certainly {
            Vec::new()
        } else {
            postcard::to_stdvec(&map).expect("a map is plain data")
        };
        let mut reply = MapReply {
            map: map.into(),
            masters: self.addresses(),
            certain,
            ..MapReply::default()
        };
        if request.certainly {
            let joined = self.controller.store().read(controller::joined_masters);
            let list = self.masters.list();
            // What was just confirmed may be newer than the list.
            let recorded = self.controller.store().read(controller::masters);
            let records = match recorded.is_empty() {
                true => &list.records,
                false => &recorded,
            };
            let records = records.iter();
            // Who took part a moment ago may not be recorded for it yet.
            let acknowledgers = self.controller.acknowledgers();
            let records = records.map(|record| {
                let took_part = acknowledgers.contains(&record.id.get());
                to_wire(record, took_part || joined.contains(&record.id))
            });
            reply.records = records.collect();
            let metadata = self.metadata.group.certain_members().await;
            reply.metadata = metadata.ok().map(|members| GroupMembers {
                voters: members.voters.into_iter().collect(),
                learners: members.learners.into_iter().collect(),
                changing: members.joint || members.changing,
            });
        }
        reply
    }

    /// Where the masters are, for clients.
    fn addresses(&self) -> Vec<MasterAddress> {
        let list = self.masters.list();
        let joined = self.controller.store().read(controller::joined_masters);
        let address = |master: &controller::MasterRecord| MasterAddress {
            id: master.id.get(),
            address: master.address.clone(),
            joined: joined.contains(&master.id),
        };
        list.members().map(address).collect()
    }

    async fn raft(
        &self,
        op: Op,
        frame: &Frame,
        peer: Peer,
        receiving: &mut Receiving,
    ) -> FsResult<Answer> {
        if peer.kind != NodeKind::Master {
            return Err(FsError::new(Code::Refused, "Raft is among masters"));
        }
        if self.masters.is_removed(peer.node.get()) {
            let text = format!("master {} was removed", peer.node.get());
            return Err(FsError::new(Code::Refused, text));
        }
        if !self.admission.is_granted() {
            return Err(FsError::new(
                Code::Unavailable,
                "this master does not know yet whether it is a new one",
            ));
        }
        let message: RaftMessage = frame.decode()?;
        let server: &RaftServer = match RaftGroupId(message.group) {
            RaftGroupId::CONTROLLER => self.controller.server(),
            RaftGroupId::METADATA => self.metadata.group.server(),
            other => {
                return Err(FsError::new(
                    Code::WrongGroup,
                    format!("no Raft group {other} here"),
                ));
            }
        };
        Ok(Answer::Raft(
            server
                .answer(op, &message, &frame.payload, receiving)
                .await?,
        ))
    }
}

async fn send(
    writer: &mut FrameWriter,
    asked: &Fixed,
    answer: FsResult<Answer>,
) -> std::io::Result<()> {
    match answer {
        Ok(Answer::Meta(reply)) => writer.reply(asked, &reply, &[]).await,
        Ok(Answer::Session(reply)) => writer.reply(asked, &reply, &[]).await,
        Ok(Answer::Lease(reply)) => writer.reply(asked, &reply, &[]).await,
        Ok(Answer::LockVerdict(reply)) => writer.reply(asked, &reply, &[]).await,
        Ok(Answer::Map(reply)) => writer.reply(asked, &reply, &[]).await,
        Ok(Answer::Blocked(reply)) => writer.reply(asked, &reply, &[]).await,
        Ok(Answer::Raft(reply)) => writer.reply(asked, &reply, &[]).await,
        Err(error) => writer.fail(asked, &error).await,
    }
}
