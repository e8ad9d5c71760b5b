//! Queries and mutations of clients, in order with leases: what is shown, all have heard of or can't have otherwise.

use super::leases::{Granted, Shown, Waiting, named, shown, want};
use super::metadata::{
    COMMAND_OVERHEAD_BYTES, MetadataService, decode, encode, too_many_open, unexpected,
};
use super::placement;
use crate::raft::Overlay;
use bytes::Bytes;
use lumeofs_base::limits::{OPERATION_BYTES_MAX, SLOT_COUNT};
use lumeofs_base::{Attr, Code, FsError, FsResult, InodeId, SessionId};
use lumeofs_lease::Want;
use lumeofs_meta::namespace;
use lumeofs_meta::op::{Caller, Command, Mutation, NewNode, Outcome, Query, Reply};
use lumeofs_proto::meta::{MetaReply, MetaRequest};

impl MetadataService {
    /// Answers a query from current state.
    pub(crate) async fn query(&self, request: &MetaRequest) -> FsResult<MetaReply> {
        check_form(request)?;
        let query: Query = decode(&request.op)?;
        let caller = caller(request);
        let session = SessionId(request.session);
        let answer = |tables: &Overlay| {
            let outcome = namespace::query(tables, &caller, &query);
            let shown = shown(tables, &caller, &query, &outcome);
            let want = want(request.want, &query, &shown)?;
            Ok(((outcome, namespace::era(tables)), shown, want))
        };
        let (index, (mut outcome, era), granted) = self.read(session, answer).await?;
        if let Ok(Reply::Entries { inodes, .. }) = &mut outcome {
            *inodes = granted.listed;
        }
        let reply = match outcome {
            Ok(reply) => MetaReply {
                reply: encode(&reply),
                ..MetaReply::default()
            },
            Err(error) if request.want != 0 => MetaReply {
                error: encode(&error),
                ..MetaReply::default()
            },
            Err(error) => return Err(error),
        };
        Ok(MetaReply {
            index,
            era,
            generation_term: granted.generation.term,
            generation_number: granted.generation.number,
            grants: encode_some(&granted.grants),
            number: granted.number,
            ..reply
        })
    }

    /// Reads what a session asks for as soon as it may be shown. Returns it with its index and what was granted with it.
    async fn read<T>(
        &self,
        session: SessionId,
        answer: impl Fn(&Overlay) -> FsResult<(T, Shown, Want)>,
    ) -> FsResult<(u64, T, Granted)> {
        let mut wait = self.leases.wait(session);
        loop {
            let leadership = self.group.linearizable().await?;
            // Whom the datanodes turn away must not learn more about where chunks are.
            if session != SessionId(0) {
                self.check_session(session)?;
            }
            self.sessions.touch(session);
            let settled = self.leases.settled();
            tokio::pin!(settled);
            settled.as_mut().enable();
            let (index, read) = self.group.store().read_at(|tables| {
                let (found, shown, want) = answer(tables)?;
                let granted = self
                    .leases
                    .read(leadership.term, tables, session, &shown, want)?;
                Ok::<_, FsError>(granted.map(|granted| (found, granted)))
            });
            if let Some((found, granted)) = read? {
                return Ok((index, found, granted));
            }
            wait.pause(Waiting::Query, settled).await?;
        }
    }

    /// Applies a mutation, once however often it is sent.
    pub(crate) async fn mutate(&self, request: &MetaRequest) -> FsResult<MetaReply> {
        check_form(request)?;
        let mutation: Mutation = decode(&request.op)?;
        self.check_room(&mutation)?;
        let session = SessionId(request.session);
        self.sessions.touch(session);
        let mut wait = self.leases.wait(session);
        let named: Vec<InodeId> = named(&mutation).into_iter().collect();
        let directories = mutation.directories();
        let term = loop {
            let leadership = self.group.check_leads()?;
            if !self.leases.is_of(leadership.term) {
                // A leadership begins with all that was applied under former ones.
                self.group.linearizable().await?;
            }
            let settled = self.leases.settled();
            tokio::pin!(settled);
            settled.as_mut().enable();
            let may = |tables: &Overlay| {
                let (term, moved) = (leadership.term, mutation.moved_directories(tables));
                self.leases
                    .may_change(term, tables, session, &named, &directories, &moved)
            };
            if self.group.store().read(may)? {
                break leadership.term;
            }
            wait.pause(Waiting::Mutation, settled).await?;
        };
        wait.over();
        let mutation = self.locks.without_waiters(session, mutation);
        let command = Command::Mutate {
            session,
            sequence: request.sequence,
            acked_below: request.acked_below,
            caller: caller(request),
            mutation,
        };
        let bytes = bytes_of(request) + COMMAND_OVERHEAD_BYTES;
        let (proposer, leases) = (self.proposer.clone(), self.leases.clone());
        // A task of its own: if this request is given up, the command may be applied all the same, and until then nobody
        // else begins to write to what it names.
        let proposed = tokio::spawn(async move {
            let done = proposer.propose(command, bytes).await;
            if let Err(error) = &done
                && matches!(error.code, Code::NotLeader(_) | Code::Again)
            {
                leases.not_changed(term, session, &named, &directories);
            }
            done
        });
        let done = proposed
            .await
            .unwrap_or_else(|_| Err(FsError::new(Code::Unavailable, "stopping")))?;
        let (index, done) = (done.index, done.reply);
        loop {
            let settled = self.leases.settled();
            tokio::pin!(settled);
            settled.as_mut().enable();
            if self.leases.is_settled(&done.leases)? {
                break;
            }
            wait.pause(Waiting::Reply, settled).await?;
        }
        drop(wait);
        let outcome = self.with_found(session, done.applied.outcome).await;
        let changes = match done.applied.repeated {
            true => Bytes::new(),
            false => encode(&done.applied.changes),
        };
        // Without an era: an outcome may be older than the state that we have now.
        Ok(MetaReply {
            index,
            reply: encode(&outcome?),
            changes,
            number: done.leases.number,
            generation_term: done.leases.generation.term,
            generation_number: done.leases.generation.number,
            grants: encode_some(&done.leases.grants),
            is_short: self.room.is_short(),
            ..MetaReply::default()
        })
    }

    /// A file that was there already is shown as by a query: another session may have written to it and not
    /// published that yet.
    async fn with_found(&self, session: SessionId, outcome: Outcome) -> Outcome {
        let reply = outcome?;
        let Reply::Created {
            attr,
            first_chunk,
            created: false,
        } = reply
        else {
            return Ok(reply);
        };
        let trusted = Caller {
            trusted: true,
            ..Caller::default()
        };
        let ino = attr.ino;
        let answer =
            |tables: &Overlay| match namespace::query(tables, &trusted, &Query::GetAttr { ino }) {
                Ok(Reply::Attr(attr)) => {
                    let shown = Shown::one(&attr);
                    Ok((attr, shown, Want::Nothing))
                }
                Ok(other) => Err(unexpected(&other)),
                // It was deleted since: as it was found.
                Err(_) => Ok((attr.clone(), Shown::default(), Want::Nothing)),
            };
        let (_, attr, _): (_, Attr, _) = self.read(session, answer).await?;
        Ok(Reply::Created {
            attr,
            first_chunk,
            created: false,
        })
    }

    /// Whether there is room for what a mutation makes.
    fn check_room(&self, mutation: &Mutation) -> FsResult<()> {
        let leadership = self.group.check_leads()?;
        if creates_open(mutation) && !self.opens.has_room(leadership.term, 1) {
            return Err(too_many_open());
        }
        if let Err(full) = self.room.check(mutation) {
            return Err(match self.group.hands_over() {
                true => FsError::new(
                    Code::Unavailable,
                    "another master, which has room, is to lead",
                ),
                false => full,
            });
        }
        let allocates = matches!(
            mutation,
            Mutation::Allocate { .. } | Mutation::Append { .. }
        );
        if allocates && !placement::has_groups(self.controller.store()) {
            return Err(FsError::new(
                Code::Unavailable,
                "no replica groups yet: datanodes are missing",
            ));
        }
        Ok(())
    }
}

/// Whether a mutation leaves its session with one more open file.
fn creates_open(mutation: &Mutation) -> bool {
    match mutation {
        Mutation::Create { node, .. } => matches!(node, NewNode::Regular),
        Mutation::CreateUnnamed { .. } => true,
        _ => false,
    }
}

/// What a request takes in the log, roughly.
fn bytes_of(request: &MetaRequest) -> usize {
    // A group takes up to five bytes.
    request.op.len() + 5 * request.groups.len()
}

/// A request that is too long would not fit into any message between masters.
fn check_form(request: &MetaRequest) -> FsResult<()> {
    let bytes = bytes_of(request);
    if bytes > OPERATION_BYTES_MAX {
        let text =
            format!("an operation of {bytes} bytes, at most {OPERATION_BYTES_MAX} are taken");
        return Err(FsError::new(Code::TooBig, text));
    }
    if request.slot < u32::from(SLOT_COUNT) {
        return Ok(());
    }
    Err(FsError::new(
        Code::WrongGroup,
        format!("slot {}, there are {SLOT_COUNT}", request.slot),
    ))
}

fn caller(request: &MetaRequest) -> Caller {
    Caller {
        uid: request.uid,
        gid: request.gid,
        groups: request.groups.clone(),
        trusted: request.trusted,
    }
}

/// The form of a list on the wire; an empty one takes nothing.
fn encode_some<T: serde::Serialize>(list: &[T]) -> Bytes {
    match list {
        [] => Bytes::new(),
        _ => encode(&list),
    }
}
