//! Queries: what memory answers, and what an answer of the leader leaves there.

use super::State;
use crate::link::Link;
use crate::wait::now;
use lumeofs_base::limits::{NAME_LEN_BYTES_MAX, READDIR_ENTRIES_MAX};
use lumeofs_base::{Attr, Code, FsError, FsResult, InodeId, SessionId};
use lumeofs_lease::{Cached, Generation, Grant, Learned};
use lumeofs_meta::change::Change;
use lumeofs_meta::op::{Outcome, Query, Reply};
use lumeofs_proto::meta::MetaReply;
use serde::de::DeserializeOwned;

/// The lease that a question is to bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// None.
    Nothing,
    /// To cache the answer.
    Shared,
    /// To write to the inode.
    Write,
}

impl Want {
    /// As requests have it.
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Nothing => 0,
            Self::Shared => 1,
            Self::Write => 2,
        }
    }
}

/// What a master says, decoded.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) outcome: Outcome,
    /// Of a query: the era in which it is true.
    pub(crate) era: u32,
    /// Its place among recalls and other answers of its generation.
    pub(super) number: u64,
    pub(super) generation: Generation,
    pub(super) grants: Vec<Grant>,
    /// Of a mutation: what it touched, if that is known.
    pub(super) changes: Option<Vec<Change>>,
    /// Of a mutation: the leader has no room for new objects.
    pub(super) is_short: bool,
}

impl Answer {
    /// Decodes a reply.
    pub(crate) fn of(reply: &MetaReply) -> FsResult<Self> {
        let outcome = match reply.error.is_empty() {
            true => Ok(decode(&reply.reply)?),
            false => Err(decode(&reply.error)?),
        };
        let grants = match reply.grants.is_empty() {
            true => Vec::new(),
            false => decode(&reply.grants)?,
        };
        let changes = match reply.changes.is_empty() {
            true => None,
            false => Some(decode(&reply.changes)?),
        };
        Ok(Self {
            outcome,
            era: reply.era,
            number: reply.number,
            generation: Generation {
                term: reply.generation_term,
                number: reply.generation_number,
            },
            grants,
            changes,
            is_short: reply.is_short,
        })
    }
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> FsResult<T> {
    postcard::from_bytes(bytes)
        .map_err(|error| FsError::new(Code::Io, format!("a master's reply: {error}")))
}

impl Link {
    /// Answers a trusted caller's question from memory, if a lease allows it.
    pub(crate) fn remembered(&self, query: &Query) -> Option<Outcome> {
        let known = self.with_leases(|state| {
            let now = now();
            state.note_lapse(now, &self.leases.counters);
            state.answer(now, query)
        });
        if known.is_some() {
            self.leases.counters.query(query, true);
        }
        known
    }

    /// Takes what the leader answered to a question of this session. False if it was overtaken: what this session wrote
    /// in memory before it asked, and has given to others meanwhile, may be missing.
    pub(crate) fn learn(&self, session: SessionId, query: &Query, answer: &Answer) -> bool {
        self.leases.counters.query(query, false);
        self.with_leases(|state| {
            if state.session != session {
                return true;
            }
            let (generation, grants) = (answer.generation, &answer.grants);
            if !grants.is_empty() {
                match learned(query, &answer.outcome) {
                    Some(learned) => state.holder.learn(now(), generation, grants, learned),
                    None => state.holder.decline(generation, grants),
                }
            }
            let holder = &state.holder;
            if let Ok(Reply::Entries { inodes, .. }) = &answer.outcome {
                self.learn_chunks_of(holder, grants, inodes, answer.era);
            }
            match &answer.outcome {
                // It lacks what was made in it here, or set of it, and was not told when it was asked.
                Ok(Reply::Attr(attr) | Reply::Chunks { attr, .. })
                    if holder.is_ahead_in(attr.ino) =>
                {
                    false
                }
                Ok(Reply::Attr(attr) | Reply::Chunks { attr, .. })
                    if generation == holder.generation() && !holder.is_writer(attr.ino) =>
                {
                    !holder.is_overtaken(generation, answer.number, attr.ino)
                }
                _ => true,
            }
        })
    }
}

impl State {
    /// Notes when the leases do not count any more for want of an answer of the leader.
    pub(super) fn note_lapse(&mut self, now: std::time::Duration, counters: &super::Counters) {
        let is_valid = self.holder.is_valid(now);
        if std::mem::replace(&mut self.was_valid, is_valid) && !is_valid {
            counters.lapsed();
        }
    }

    fn answer(&mut self, now: std::time::Duration, query: &Query) -> Option<Outcome> {
        let holder = &mut self.holder;
        match query {
            Query::Lookup { parent, name } => match &name[..] {
                b"." => attr_of(*parent, holder.attr(now, *parent)),
                b".." => None,
                // Not a matter of what is there.
                _ if name.len() > NAME_LEN_BYTES_MAX => None,
                _ => match holder.lookup(now, *parent, name) {
                    Cached::Unknown => None,
                    Cached::Absent => Some(Err(FsError::new(
                        Code::NotFound,
                        format!("{:?}", String::from_utf8_lossy(name)),
                    ))),
                    Cached::Is(attr) => Some(Ok(Reply::Attr(attr))),
                },
            },
            Query::GetAttr { ino } => attr_of(*ino, holder.attr(now, *ino)),
            Query::ReadLink { ino } => match holder.target(now, *ino) {
                Cached::Is(target) => Some(Ok(Reply::Bytes(target))),
                Cached::Unknown | Cached::Absent => None,
            },
            Query::ReadDir {
                ino,
                cookie,
                count_max,
                ..
            } => {
                let count_max = (*count_max as usize).min(READDIR_ENTRIES_MAX);
                match holder.listing(now, *ino, *cookie, count_max) {
                    Cached::Is(listing) => Some(Ok(Reply::Entries {
                        entries: listing.entries,
                        more: listing.more,
                        inodes: Vec::new(),
                    })),
                    Cached::Unknown | Cached::Absent => None,
                }
            }
            Query::GetXattr { ino, name } => match holder.xattr(now, *ino, name) {
                Cached::Unknown => None,
                Cached::Absent => Some(Err(no_data(*ino, name))),
                Cached::Is(value) => Some(Ok(Reply::Bytes(value))),
            },
            Query::ListXattr { ino } => match holder.xattr_names(now, *ino) {
                Cached::Is(names) => Some(Ok(Reply::Names(names))),
                Cached::Unknown | Cached::Absent => None,
            },
            Query::Parent { ino } => match holder.parent(now, *ino) {
                Cached::Is(attr) => Some(Ok(Reply::Attr(attr))),
                Cached::Absent | Cached::Unknown => None,
            },
            Query::Chunks { .. } | Query::Usage | Query::TestLock { .. } | Query::Trash { .. } => {
                None
            }
        }
    }
}

fn no_data(ino: InodeId, name: &[u8]) -> FsError {
    let name = String::from_utf8_lossy(name);
    FsError::new(Code::NoData, format!("{ino}: {name:?}"))
}

fn attr_of(ino: InodeId, cached: Cached<Attr>) -> Option<Outcome> {
    match cached {
        Cached::Is(attr) => {
            debug_assert_eq!(attr.ino, ino, "attributes of another inode");
            Some(Ok(Reply::Attr(attr)))
        }
        Cached::Unknown | Cached::Absent => None,
    }
}

/// What the answer to a question says that a later one may need. What cannot be kept brings its leases all the same.
fn learned<'a>(query: &'a Query, outcome: &'a Outcome) -> Option<Learned<'a>> {
    Some(match (query, outcome) {
        (Query::Lookup { parent, name }, outcome) if !is_dots(name) => match outcome {
            Ok(Reply::Attr(attr)) => Learned::Name {
                parent: *parent,
                name,
                attr: Some(attr),
            },
            Err(error) if error.code == Code::NotFound => Learned::Name {
                parent: *parent,
                name,
                attr: None,
            },
            _ => return None,
        },
        (
            Query::ReadDir { ino, cookie, .. },
            Ok(Reply::Entries {
                entries,
                more,
                inodes,
            }),
        ) => Learned::Entries {
            ino: *ino,
            after: *cookie,
            entries,
            more: *more,
            inodes,
        },
        (Query::ReadLink { ino }, Ok(Reply::Bytes(target))) => Learned::Target(*ino, target),
        (Query::GetXattr { ino, name }, Ok(Reply::Bytes(value))) => {
            Learned::Xattr(*ino, name, Some(value))
        }
        (Query::GetXattr { ino, name }, Err(error)) if error.code == Code::NoData => {
            Learned::Xattr(*ino, name, None)
        }
        (Query::ListXattr { ino }, Ok(Reply::Names(names))) => Learned::XattrNames(*ino, names),
        (_, Ok(Reply::Attr(attr) | Reply::Chunks { attr, .. })) => Learned::Attr(attr),
        _ => return None,
    })
}

fn is_dots(name: &[u8]) -> bool {
    matches!(name, b"." | b"..")
}
