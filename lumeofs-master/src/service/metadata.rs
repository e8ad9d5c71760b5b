//! The metadata group as clients see it, apart from their operations: sessions, and what they have open.

use super::leases::Leases;
use super::locks::Locks;
use super::machines::MetadataMachine;
use super::opens::Opens;
use super::sessions::{self, Sessions};
use super::{fencing, leases, purge, reclaim, trash};
use crate::raft::{Group, Leadership, Proposed, Proposer};
use crate::room::Room;
use bytes::Bytes;
use lumeofs_base::limits::{OPENS_MAX, OPENS_PER_REPORT_MAX};
use lumeofs_base::{Attr, ClusterId, Code, FsError, FsResult, InodeId, SessionId};
use lumeofs_meta::controller;
use lumeofs_meta::namespace;
use lumeofs_meta::op::{Caller, Command, Internal, Outcome, Query, Reply};
use lumeofs_proto::auth::Identity;
use lumeofs_proto::meta::{OpenReport, SessionReply, SessionRequest};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// What a command weighs in a batch beside its operation, roughly.
pub(super) const COMMAND_OVERHEAD_BYTES: usize = 64;

/// Longest text by which a session is known.
const DESCRIPTION_BYTES_MAX: usize = 256;

/// The metadata group as clients see it.
pub(crate) struct MetadataService {
    pub(crate) group: Arc<Group>,
    /// The controller's group: where replica groups are found.
    pub(crate) controller: Arc<Group>,
    pub(crate) proposer: Proposer<MetadataMachine>,
    pub(crate) opens: Arc<Opens>,
    pub(crate) leases: Arc<Leases>,
    pub(crate) locks: Arc<Locks>,
    pub(crate) sessions: Sessions,
    pub(crate) identity: Identity,
    pub(crate) room: Room,
}

impl MetadataService {
    /// Starts the background work of a leader.
    pub(crate) fn start_tasks(self: &Arc<Self>, tasks: &mut JoinSet<()>) {
        tasks.spawn(sessions::end_silent_sessions(self.clone()));
        tasks.spawn(fencing::fence_ended_sessions(self.clone()));
        tasks.spawn(leases::watch_leases(self.clone()));
        tasks.spawn(purge::purge_orphans(self.clone()));
        tasks.spawn(trash::expire_trash(self.clone()));
        tasks.spawn(reclaim::reclaim_chunks(self.clone()));
        tasks.spawn(greet_leaderships(self.clone()));
        let groups = [self.controller.clone(), self.group.clone()];
        tasks.spawn(self.room.clone().watch(groups));
    }

    fn cluster(&self) -> ClusterId {
        self.identity.credentials.cluster
    }

    /// Opens, keeps alive or closes a session.
    pub(crate) async fn session(&self, request: SessionRequest) -> FsResult<SessionReply> {
        let leadership = self.group.linearizable().await?;
        let session = if !request.nonce.is_empty() {
            let nonce: [u8; 16] = request.nonce[..]
                .try_into()
                .map_err(|_| FsError::new(Code::Invalid, "nonce of a session: want 16 bytes"))?;
            let mut description = request.description;
            description.truncate(description.floor_char_boundary(DESCRIPTION_BYTES_MAX));
            let open = Internal::OpenSession {
                nonce: u128::from_le_bytes(nonce),
                description,
            };
            match self.propose_internal(open).await?.reply? {
                Reply::Session(session) => session,
                other => return Err(unexpected(&other)),
            }
        } else if request.close {
            let session = SessionId(request.session);
            self.propose_internal(Internal::CloseSession { session })
                .await?
                .reply?;
            return Ok(self.session_reply(leadership, session));
        } else {
            SessionId(request.session)
        };
        self.check_session(session)?;
        self.sessions.touch(session);
        // The leadership may have changed while the session was opened: the term must be one under
        // which it is known.
        let leadership = self.group.check_leads()?;
        Ok(self.session_reply(leadership, session))
    }

    /// Takes a report of opened and released inodes (rule S4).
    pub(crate) async fn opens(&self, report: OpenReport) -> FsResult<SessionReply> {
        let leadership = self.group.linearizable().await?;
        let session = SessionId(report.session);
        self.check_session(session)?;
        self.sessions.touch(session);
        let term = leadership.term;
        // A list of changes, or a part, means nothing without the leadership that knows the rest; the
        // reply makes the client state everything.
        let is_whole = report.complete && !report.part;
        if report.term != term.to_wire() && !is_whole {
            return Ok(self.session_reply(leadership, session));
        }
        if report.opened.len().max(report.released.len()) > OPENS_PER_REPORT_MAX {
            let text = format!("report of over {OPENS_PER_REPORT_MAX} inodes");
            return Err(FsError::new(Code::Invalid, text));
        }
        let restates = !self.opens.is_complete(term, session);
        if !restates && !self.opens.has_room(term, report.opened.len()) {
            return Err(too_many_open());
        }
        let inos = |list: &[u64]| list.iter().map(|ino| InodeId(*ino)).collect::<Vec<_>>();
        let (opened, released) = (inos(&report.opened), inos(&report.released));
        // First entered, then looked at: what is there now, and not condemned, cannot be purged any more.
        let condemned = self
            .opens
            .open(term, session, &opened)
            .ok_or(Code::NotLeader(None))?;
        let still = self.group.linearizable().await;
        let still = still.and_then(|still| match still.term == term {
            true => self.check_session(session),
            false => Err(Code::NotLeader(None).into()),
        });
        if let Err(error) = still {
            self.opens.release(term, session, &opened);
            return Err(error);
        }
        let gone: Vec<InodeId> = self.group.store().read(|tables| {
            let is_open = |ino: &InodeId| match getattr(tables, *ino) {
                Ok(_) => !condemned.contains(ino),
                Err(_) => false,
            };
            opened.iter().copied().filter(|ino| !is_open(ino)).collect()
        });
        self.opens.release(term, session, &gone);
        self.opens.release(term, session, &released);
        if report.complete {
            self.opens.complete(term, session);
        } else if let Some(ino) = gone.first().filter(|_| !report.part) {
            return Err(FsError::new(
                Code::Stale,
                format!("open of {ino}, which was deleted"),
            ));
        }
        Ok(self.session_reply(leadership, session))
    }

    /// Proposes a command of the leader itself.
    pub(crate) async fn propose_internal(&self, command: Internal) -> FsResult<Proposed<Outcome>> {
        let bytes = match &command {
            Internal::OpenSession { description, .. } => description.len(),
            Internal::Purge { inos } => inos.len() * 8,
            Internal::ChunksDeleted { chunks } => chunks.len() * 8,
            Internal::FreeChunks { chunks } => chunks.len() * 16,
            Internal::ExpireTrash { entries, .. } => entries.len() * 20,
            Internal::CloseSession { .. }
            | Internal::HoldLeases { .. }
            | Internal::EndSession { .. }
            | Internal::CloseEnded { .. }
            | Internal::Noop
            | Internal::EndHold
            | Internal::SetChunkSize { .. }
            | Internal::BeginEra { .. } => 0,
        };
        let done = self
            .proposer
            .propose(Command::Internal(command), bytes + COMMAND_OVERHEAD_BYTES)
            .await?;
        Ok(Proposed {
            index: done.index,
            reply: done.reply.applied.outcome,
        })
    }

    pub(super) fn check_session(&self, session: SessionId) -> FsResult<()> {
        let has = |tables: &_| namespace::has_session(tables, session);
        if self.group.store().read(has) {
            return Ok(());
        }
        Err(FsError::new(
            Code::SessionExpired,
            format!("session {session} is not known"),
        ))
    }

    fn session_reply(&self, leadership: Leadership, session: SessionId) -> SessionReply {
        SessionReply {
            session: session.get(),
            cluster_id: self.cluster().0.to_vec().into(),
            term: leadership.term.to_wire(),
            ..SessionReply::default()
        }
    }
}

/// Runs for ever: at the start of each leadership of this master makes sure that the root exists and
/// that the group reckons with the cluster's chunk size.
async fn greet_leaderships(service: Arc<MetadataService>) {
    let mut greeted = None;
    loop {
        sleep(Duration::from_millis(50)).await;
        let leadership = service.group.leadership();
        if leadership.is_none() || leadership == greeted {
            continue;
        }
        let map = service.controller.store().read(controller::cluster_map);
        let size = service.group.store().read(namespace::chunk_size);
        let command = if map.version > 0 && size != map.chunk_size {
            Internal::SetChunkSize {
                bytes: map.chunk_size,
            }
        } else {
            Internal::Noop
        };
        let is_new = service.group.store().read(namespace::applied) == 0;
        match service
            .propose_internal(command)
            .await
            .and_then(|done| done.reply)
        {
            // A new cluster's controller may still be without policies: then once more.
            Ok(_) if map.version == 0 => {}
            Ok(_) => greeted = leadership,
            Err(error) => super::log_failure("first command of a leadership", &error),
        }
        if is_new {
            tracing::info!("metadata group has its root");
        }
    }
}

/// The inode's attributes, whoever may see them.
fn getattr(tables: &crate::raft::Overlay, ino: InodeId) -> FsResult<Attr> {
    let caller = Caller {
        trusted: true,
        ..Caller::default()
    };
    match namespace::query(tables, &caller, &Query::GetAttr { ino })? {
        Reply::Attr(attr) => Ok(attr),
        other => Err(unexpected(&other)),
    }
}

pub(super) fn too_many_open() -> FsError {
    let text = format!("{OPENS_MAX} files are open in the whole cluster: close some");
    FsError::new(Code::TooManyOpen, text)
}

/// The form of a message on the wire.
pub(super) fn encode(message: &impl Serialize) -> Bytes {
    let bytes = postcard::to_stdvec(message);
    bytes.expect("messages are plain data").into()
}

/// The message of a form on the wire.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> FsResult<T> {
    postcard::from_bytes(bytes)
        .map_err(|error| FsError::new(Code::Invalid, format!("operation: {error}")))
}

pub(super) fn unexpected(reply: &Reply) -> FsError {
    FsError::new(
        Code::Io,
        format!("unexpected reply of the state machine: {reply:?}"),
    )
}
