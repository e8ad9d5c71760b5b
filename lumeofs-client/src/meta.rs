//! Queries and mutations: one call each, through every retry and change of leader or session.

use crate::leases::{Answer, Want};
use crate::link::{Asker, Link};
use crate::wait::Patience;
use lumeofs_base::{Attr, Code, FsError, FsResult, InodeId, SessionId, SlotId};
use lumeofs_meta::locks::LockOwner;
use lumeofs_meta::op::{Caller, Mutation, Query, Reply};
use lumeofs_proto::frame::Op;
use lumeofs_proto::meta::{MetaReply, MetaRequest};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Pause before a call is repeated under a new session.
const RENEWED_PAUSE: Duration = Duration::from_millis(10);
/// How often a question is asked anew because its answer was overtaken: each time means that a lease was taken away.
const OVERTAKEN_MAX: usize = 64;

impl Link {
    /// Asks something: memory, where a lease allows that, else the leader. Others than the kernel's callers are always
    /// answered by the leader, which checks what they may.
    pub(crate) fn query(&self, asker: &Asker<'_>, ino: InodeId, query: &Query) -> FsResult<Reply> {
        if asker.caller.trusted
            && let Some(known) = self.remembered(query)
        {
            return known;
        }
        if let Query::Lookup { parent, name } = query
            && asker.caller.trusted
            && self.look_ahead(asker, *parent, name)
            && let Some(known) = self.remembered(query)
        {
            return known;
        }
        self.ask(asker, ino, query)
    }

    /// Asks the leader something.
    pub(crate) fn ask(&self, asker: &Asker<'_>, ino: InodeId, query: &Query) -> FsResult<Reply> {
        let want = match (query, asker.caller.trusted) {
            (Query::Usage | Query::TestLock { .. } | Query::Trash { .. }, _) | (_, false) => {
                Want::Nothing
            }
            (_, true) => Want::Shared,
        };
        self.query_with_era(asker, ino, query, want)
            .map(|(reply, _)| reply)
    }

    /// The latest era that was heard of. What a mutation that is sent afterwards answers is not older;
    /// its outcome may be one that the servers kept since its first sending, so they cannot say it.
    pub(crate) fn era(&self) -> u32 {
        self.era.load(Ordering::Relaxed)
    }

    /// Asks the leader something and for a lease; also says in which era the answer was true.
    pub(crate) fn query_with_era(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        query: &Query,
        want: Want,
    ) -> FsResult<(Reply, u32)> {
        self.wait_told(asker, ino)?;
        let op = encode(query)?;
        let patience = &asker.patience;
        let mut overtaken = 0;
        loop {
            let session = self.window.session();
            let make = || MetaRequest {
                want: want.number(),
                ..request(asker.caller, ino.slot(), session, op.clone())
            };
            match self.masters.call::<_, MetaReply>(patience, Op::Query, make) {
                Ok(reply) => {
                    self.era.fetch_max(reply.era, Ordering::Relaxed);
                    let answer = Answer::of(&reply)?;
                    if !self.learn(session, query, &answer) && overtaken < OVERTAKEN_MAX {
                        overtaken += 1;
                        if let Ok(Reply::Attr(attr) | Reply::Chunks { attr, .. }) = &answer.outcome
                        {
                            self.wait_told(asker, attr.ino)?;
                        }
                        continue;
                    }
                    return answer.outcome.map(|reply| (reply, answer.era));
                }
                Err(error) if error.code == Code::SessionExpired => {
                    self.replace_session(session, patience)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Changes something, exactly once: the sequence stays the same over all retries. If the caller does not wait for the
    /// end, the change goes on without it.
    pub(crate) fn mutate(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        mutation: &Mutation,
    ) -> FsResult<Reply> {
        let op = encode(mutation)?;
        let patience = &asker.patience;
        let changing = self.begin_change(patience, ino, mutation)?;
        loop {
            let ticket = self.window.begin(patience)?;
            if is_of_session(mutation) {
                self.still_bound(asker)?;
            }
            let mut sent_count = 0;
            let make = || {
                sent_count += 1;
                MetaRequest {
                    sequence: ticket.sequence,
                    acked_below: ticket.acked_below(),
                    ..request(asker.caller, ino.slot(), ticket.session, op.clone())
                }
            };
            let error = match self
                .masters
                .call::<_, MetaReply>(patience, Op::Mutate, make)
            {
                Ok(reply) => {
                    let answer = Answer::of(&reply)?;
                    match mutation {
                        Mutation::Make { steps } => self.made_known(ticket.session, steps, &answer),
                        _ => changing.did(ticket.session, &answer),
                    }
                    return answer.outcome;
                }
                Err(error) => error,
            };
            if sent_count > 0 && matches!(error.code, Code::Interrupted | Code::Unavailable) {
                if let Some((ino, owner)) = locked(mutation) {
                    self.locks.left(ino, owner);
                }
                let request = request(asker.caller, ino.slot(), ticket.session, op);
                self.finish_later(ticket, changing, request);
                return Err(error);
            }
            if error.code != Code::SessionExpired {
                return Err(error);
            }
            self.replace_session(ticket.session, patience)?;
            // The servers never execute a mutation of an unknown session, but an earlier attempt may
            // have been executed while they still knew it.
            if sent_count > 1 && !is_repeatable(mutation) {
                return Err(FsError::new(
                    Code::Io,
                    "the session was lost; whether the operation took place is not known",
                ));
            }
        }
    }

    fn replace_session(&self, lost: SessionId, patience: &Patience<'_>) -> FsResult<()> {
        self.renew_session(lost, patience)?;
        patience.pause(RENEWED_PAUSE)
    }

    /// A mutation whose answer is attributes.
    pub(crate) fn mutate_attr(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        mutation: &Mutation,
    ) -> FsResult<Attr> {
        attr_of(self.mutate(asker, ino, mutation)?)
    }

    /// A query whose answer is attributes.
    pub(crate) fn query_attr(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        query: &Query,
    ) -> FsResult<Attr> {
        attr_of(self.query(asker, ino, query)?)
    }
}

/// Mutations that tell what a session has in memory: not under another one.
fn is_of_session(mutation: &Mutation) -> bool {
    matches!(
        mutation,
        Mutation::Publish { .. }
            | Mutation::Extend { .. }
            | Mutation::Flush { .. }
            | Mutation::Append { .. }
            | Mutation::Make { .. }
            | Mutation::Reserve { .. }
    )
}

/// Mutations that do the same when they are done twice.
fn is_repeatable(mutation: &Mutation) -> bool {
    matches!(
        mutation,
        Mutation::Allocate { .. }
            | Mutation::Publish { .. }
            | Mutation::Extend { .. }
            | Mutation::CutTail { .. }
            | Mutation::Flush { .. }
            | Mutation::TailClean { .. }
            | Mutation::Lock { .. }
            | Mutation::Unlock { .. }
            // Of another session than the one that has them they are not taken.
            | Mutation::ReturnLocks { .. }
            // What the lost session made is gone with it.
            | Mutation::CreateUnnamed { .. }
            | Mutation::Access { .. }
            | Mutation::EmptyTrash { .. }
            | Mutation::SetTrash { .. }
    )
}

/// The inode and the owner whose locks a mutation changes. Of all owners they change only at the client's own wish, which
/// it gives up when it ends.
pub(crate) fn locked(mutation: &Mutation) -> Option<(InodeId, LockOwner)> {
    match mutation {
        Mutation::Lock { ino, lock, .. } => Some((*ino, lock.owner)),
        Mutation::Unlock { ino, owner, .. } => Some((*ino, *owner)),
        _ => None,
    }
}

fn request(caller: &Caller, slot: SlotId, session: SessionId, op: Vec<u8>) -> MetaRequest {
    MetaRequest {
        slot: u32::from(slot.get()),
        session: session.get(),
        uid: caller.uid,
        gid: caller.gid,
        groups: caller.groups.clone(),
        trusted: caller.trusted,
        op: op.into(),
        ..Default::default()
    }
}

fn encode(op: &impl serde::Serialize) -> FsResult<Vec<u8>> {
    postcard::to_stdvec(op).map_err(|error| FsError::new(Code::Invalid, format!("encode: {error}")))
}

/// The error for a reply of the wrong kind.
pub(crate) fn unexpected(reply: &Reply) -> FsError {
    FsError::new(
        Code::Io,
        format!("a master answered {reply:?} to another question"),
    )
}

fn attr_of(reply: Reply) -> FsResult<Attr> {
    match reply {
        Reply::Attr(attr) => Ok(attr),
        other => Err(unexpected(&other)),
    }
}
