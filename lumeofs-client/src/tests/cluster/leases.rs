//! The masters' side of leases: the real table, driven as simply as can be.

use super::{Answer, GROUP, State, World, cx};
use crate::wait::now;
use lumeofs_base::{Code, FileKind, FsError, FsResult, InodeId, SessionId, Timestamp};
use lumeofs_lease::{Changed, Created, Effect, Generation, Poll, PollAnswer, Table, Want};
use lumeofs_meta::change::Applied;
use lumeofs_meta::namespace;
use lumeofs_meta::op::{Batch, Command, Internal, Mutation, Outcome, Query, Reply};
use lumeofs_proto::meta::{LeaseReply, LeaseRequest, MetaReply, MetaRequest};
use serde::Serialize;
use std::time::Duration;

/// A table whose leadership nobody remembers another one of.
pub(super) fn table() -> Table {
    let mut table = Table::default();
    table.lead(now(), 1, []);
    table
}

fn encode(message: &impl Serialize) -> bytes::Bytes {
    postcard::to_stdvec(message).unwrap().into()
}

/// What an answer shows, the main thing last.
fn shown(state: &State, query: &Query, outcome: &Outcome) -> Vec<(InodeId, FileKind)> {
    let asked = match query {
        Query::Lookup { parent: ino, .. }
        | Query::GetAttr { ino }
        | Query::ReadLink { ino }
        | Query::ReadDir { ino, .. }
        | Query::GetXattr { ino, .. }
        | Query::ListXattr { ino }
        | Query::Chunks { ino, .. }
        | Query::Parent { ino } => *ino,
        Query::Usage | Query::TestLock { .. } | Query::Trash { .. } => return Vec::new(),
    };
    let attr = namespace::query(&state.tables, cx().caller, &Query::GetAttr { ino: asked });
    let mut shown = Vec::new();
    if let Ok(Reply::Attr(attr)) = attr {
        shown.push((attr.ino, attr.kind));
    }
    if let Ok(Reply::Attr(attr)) = outcome
        && attr.ino != asked
    {
        shown.push((attr.ino, attr.kind));
    }
    shown
}

fn named(mutation: &Mutation) -> Vec<InodeId> {
    match mutation {
        Mutation::Link { ino, .. }
        | Mutation::Restore { ino, .. }
        | Mutation::SetAttr { ino, .. }
        | Mutation::Allocate { ino, .. }
        | Mutation::Publish { ino, .. }
        | Mutation::Append { ino, .. }
        | Mutation::TailClean { ino, .. }
        | Mutation::Extend { ino, .. }
        | Mutation::Flush { ino, .. }
        | Mutation::CutTail { ino } => vec![*ino],
        _ => Vec::new(),
    }
}

impl State {
    /// Applies a command, and has the table make its recalls.
    pub(super) fn apply(&mut self, command: Command) -> (Applied, Changed) {
        self.index += 1;
        self.locks.applied(&command);
        let session = match &command {
            Command::Mutate { session, .. } => *session,
            Command::Internal(Internal::CloseSession { session }) => {
                self.table.session_closed(*session);
                SessionId::default()
            }
            Command::Internal(_) => SessionId::default(),
        };
        let batch = Batch {
            now: Timestamp {
                secs: 1000 + self.index as i64,
                nanos: 0,
            },
            groups: vec![GROUP],
            commands: vec![command],
        };
        let applied = namespace::apply(&mut self.tables, self.index, &batch);
        let applied = applied.into_iter().next().unwrap();
        let created = Created::by(&batch.commands[0], &applied, &self.tables);
        let changed = self
            .table
            .changed(now(), session, &applied.changes, &created);
        self.found_open.extend(&changed.opened);
        (applied, changed)
    }

    fn tick(&mut self) {
        for effect in self.table.tick(now()) {
            if let Effect::End(session) = effect {
                self.apply(Command::Internal(Internal::CloseSession { session }));
            }
        }
    }

    pub(super) fn check_session(&self, session: SessionId) -> FsResult<()> {
        match namespace::has_session(&self.tables, session) {
            true => Ok(()),
            false => Err(Code::SessionExpired.into()),
        }
    }

    fn generation(&self, session: SessionId) -> Generation {
        self.table.generation(session).unwrap_or_default()
    }
}

impl World {
    /// Tries until something can be done.
    pub(super) fn until<T>(&self, mut attempt: impl FnMut(&mut State) -> Option<T>) -> T {
        loop {
            let done = {
                let mut state = self.state.lock();
                state.tick();
                attempt(&mut state)
            };
            match done {
                Some(done) => return done,
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    /// Another leadership begins, which remembers no leases.
    pub(in crate::tests) fn elect(&self) {
        let mut state = self.state.lock();
        state.term += 1;
        let term = state.term;
        state.table.lead(now(), term, []);
    }

    pub(super) fn until_settled(&self, changed: &Changed) {
        self.until(|state| state.table.is_heard(&changed.unheard).then_some(()));
    }

    pub(super) fn query(&self, asked: &MetaRequest) -> FsResult<MetaReply> {
        let query: Query = postcard::from_bytes(&asked.op).unwrap();
        let session = SessionId(asked.session);
        self.until(|state| {
            let mut outcome = namespace::query(&state.tables, cx().caller, &query);
            let shown = shown(state, &query, &outcome);
            let want = match (asked.want, shown.last()) {
                (0, _) => Want::Nothing,
                (2, Some((ino, _))) => Want::Write(*ino),
                _ => Want::Shared,
            };
            let mut grants = state.table.read(now(), session, &shown, want).ok()?;
            if let Ok(Reply::Entries {
                entries, inodes, ..
            }) = &mut outcome
            {
                let tables = &state.tables;
                let chosen = namespace::to_list(tables, cx().caller, entries, query.inodes_max());
                let listed: Vec<_> = chosen.iter().map(|chosen| chosen.ino).collect();
                let offered = state.table.offer(now(), session, want, &listed);
                let told = offered.iter().map(|grant| grant.ino);
                *inodes = namespace::listed(tables, &chosen, told);
                grants.extend(offered);
            }
            let generation = state.generation(session);
            let reply = MetaReply {
                era: namespace::era(&state.tables),
                generation_term: generation.term,
                generation_number: generation.number,
                grants: encode(&grants),
                number: state.table.number(),
                ..MetaReply::default()
            };
            Some(match outcome {
                Ok(done) => Ok(MetaReply {
                    reply: encode(&done),
                    ..reply
                }),
                Err(error) if asked.want > 0 => Ok(MetaReply {
                    error: encode(&error),
                    ..reply
                }),
                Err(error) => Err(error),
            })
        })
    }

    pub(in crate::tests) fn mutate_for(&self, asked: &MetaRequest) -> FsResult<MetaReply> {
        let mutation: Mutation = postcard::from_bytes(&asked.op).unwrap();
        let session = SessionId(asked.session);
        let (named, directories) = (named(&mutation), mutation.directories());
        let noted = (asked.sequence, mutation.clone());
        self.state.lock().mutations.push(noted);
        self.until(|state| {
            let table = &mut state.table;
            table
                .before_change(now(), session, &named, &directories)
                .ok()
        });
        let (applied, changed, generation) = {
            let mut state = self.state.lock();
            let (applied, changed) = state.apply(Command::Mutate {
                session,
                sequence: asked.sequence,
                acked_below: asked.acked_below,
                caller: cx().caller.clone(),
                mutation,
            });
            state.table.change_over(session, &named, &directories);
            (applied, changed, state.generation(session))
        };
        self.until_settled(&changed);
        let changes = match applied.repeated {
            true => bytes::Bytes::new(),
            false => encode(&applied.changes),
        };
        Ok(MetaReply {
            reply: encode(&applied.outcome?),
            changes,
            number: changed.number,
            generation_term: generation.term,
            generation_number: generation.number,
            grants: encode(&changed.grants),
            ..MetaReply::default()
        })
    }

    pub(super) fn lease(&self, asked: &LeaseRequest) -> FsResult<Answer> {
        let poll: Poll = postcard::from_bytes(&asked.body).unwrap();
        let session = SessionId(asked.session);
        let until = now() + Duration::from_millis(asked.wait_ms.into());
        if self.state.lock().is_mute {
            return Ok(Answer::Hang);
        }
        let answer = {
            let mut state = self.state.lock();
            state.check_session(session)?;
            let heard = state.table.poll(now(), session, &poll);
            let heard = heard.ok_or_else(|| FsError::new(Code::Invalid, "overtaken"))?;
            state.found_open.extend(heard.opened);
            heard.answer
        };
        let renewed = answer.renewed;
        let mut lock_recalls = Vec::new();
        let answer = match answer.restate || poll.asserts.is_some() {
            true => answer,
            false => self.until(|state| {
                let news = state.table.news(session, poll.seen);
                if asked.wait_ms > 0 {
                    let recalls = state.locks.recalls(now(), session).into_iter();
                    lock_recalls.extend(recalls.map(InodeId::get));
                }
                let is_due = news.restate
                    || !news.recalls.is_empty()
                    || !lock_recalls.is_empty()
                    || now() >= until;
                is_due.then_some(PollAnswer { renewed, ..news })
            }),
        };
        let body = encode(&answer);
        Ok(Answer::Lease(LeaseReply { body, lock_recalls }))
    }
}
