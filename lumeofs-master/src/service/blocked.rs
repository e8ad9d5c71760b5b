//! What this master has in work and for whom it waits: `lumeofs admin blocked`.

use super::frames::FrameService;
use crate::raft::Group;
use lumeofs_base::clock::{Clock as _, SystemClock};
use lumeofs_base::in_work::Noted;
use lumeofs_base::{NodeId, SessionId};
use lumeofs_proto::auth::Peer;
use lumeofs_proto::blocking::Frame;
use lumeofs_proto::data::{BlockedItem, BlockedReply, BlockedRequest};
use lumeofs_proto::frame::Op;
use lumeofs_proto::meta::{MetaRequest, OpenReport, SessionRequest};
use prost::Message as _;
use std::time::Duration;

/// Requests in one answer.
const ITEMS_MAX: usize = 1000;

/// A request in work.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    op: Op,
    /// A datanode or another master.
    from: NodeId,
    /// The request itself, which is only looked at if somebody asks.
    header: Vec<u8>,
}

impl Work {
    pub(super) fn of(frame: &Frame, peer: Peer) -> Self {
        Self {
            op: frame.fixed.op,
            from: peer.node,
            header: frame.header.clone(),
        }
    }

    /// The session and the operation.
    fn what(&self) -> (u64, String) {
        let op = format!("{:?}", self.op).to_lowercase();
        let session = match self.op {
            Op::Query | Op::Mutate => {
                MetaRequest::decode(&self.header[..]).map(|asked| asked.session)
            }
            Op::Session => SessionRequest::decode(&self.header[..]).map(|asked| asked.session),
            Op::Opens => OpenReport::decode(&self.header[..]).map(|asked| asked.session),
            _ => Ok(0),
        };
        (session.unwrap_or(0), op)
    }
}

impl FrameService {
    /// What has been in work for long.
    pub(super) fn blocked(&self, asked: &BlockedRequest) -> BlockedReply {
        let now = SystemClock.monotonic();
        let age = Duration::from_millis(asked.age_ms.into());
        let (waits, nodes) = waits(&self.metadata.group);
        // Polls are meant to wait.
        let old = self.work.older_than(age, now).into_iter();
        let old = old
            .filter(|noted| !matches!(noted.what.op, Op::Lease | Op::LockWait))
            .take(ITEMS_MAX);
        let item = |noted: Noted<Work>| {
            let (session, op) = noted.what.what();
            let leases = self.metadata.leases.waits_of(SessionId(session));
            let by_lease = matches!(noted.what.op, Op::Query | Op::Mutate);
            let waits = match leases.filter(|_| by_lease) {
                Some(leases) => leases,
                None => waits.to_owned(),
            };
            BlockedItem {
                op,
                age_ms: now.saturating_sub(noted.since).as_millis() as u64,
                session,
                from_node: noted.what.from.get(),
                waits,
                nodes: nodes.clone(),
                ..BlockedItem::default()
            }
        };
        BlockedReply {
            items: old.map(item).collect(),
        }
    }
}

fn waits(group: &Group) -> (&'static str, Vec<u64>) {
    if group.leadership().is_none() {
        return match group.leader() {
            Some(leader) => ("the leader", vec![leader]),
            None => ("the election of a leader", Vec::new()),
        };
    }
    let voters = group.members().voters;
    let silent: Vec<u64> = voters
        .into_iter()
        .filter(|id| !group.answers(*id))
        .collect();
    match silent.is_empty() {
        true => (
            "this master: its log, its disk or its queue",
            vec![group.me()],
        ),
        false => ("a majority of masters: these do not answer", silent),
    }
}
