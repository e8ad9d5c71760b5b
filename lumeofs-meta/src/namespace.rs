//! The namespace of a metadata group: files, directories, sessions, and what is still to be deleted.
//!
//! [`apply`] is the only thing that changes it. Everything else reads.

mod check;
mod walk;

pub use crate::query::ToList;
pub use walk::{
    ChunkCursor, NameCursor, chunks_after, freed_group, inode_count, names_after, next_chunk,
    place_of_directory,
};

use crate::change::Applied;
use crate::keys;
use crate::op::{
    Batch, Caller, Command, DirEntry, Internal, Listed, Outcome, Query, Reply, TrashKey,
};
use crate::record::{Session, decode, encode};
use crate::tables::Tables;
use crate::transaction::{Tx, state};
use crate::{ops, session, trash};
use lumeofs_base::limits::{BLOCK_SIZE, CHUNK_SIZE_BYTES, FILE_SIZE_BYTES_MAX};
use lumeofs_base::{ChunkId, Code, Fence, FsError, GroupId, InodeId, SessionId, Timestamp};

/// A session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// Its id.
    pub id: SessionId,
    /// What its client said of itself.
    pub description: String,
    /// Log time at which it was opened.
    pub opened: Timestamp,
    /// It has ended, and is closed when the fence of this number is up at every replica group.
    pub ending: Option<u64>,
    /// Inodes on which it has locks, or may decide about them alone.
    pub locked: u32,
}

/// Applies one Raft entry and returns what became of each command, in order. The first entry makes
/// the root directory (mode 0755, uid 0), so a new leader's `Noop` is enough to have one.
pub fn apply(tables: &mut impl Tables, index: u64, batch: &Batch) -> Vec<Applied> {
    let mut tx = Tx::begin(tables, index, batch.now, &batch.groups);
    let applied = batch
        .commands
        .iter()
        .map(|command| match command {
            Command::Mutate {
                session,
                sequence,
                acked_below,
                caller,
                mutation,
            } => session::mutate(&mut tx, *session, *sequence, *acked_below, caller, mutation),
            Command::Internal(internal) => {
                let outcome = run(&mut tx, internal);
                tx.applied(outcome)
            }
        })
        .collect();
    tx.finish();
    applied
}

fn run(tx: &mut Tx<'_>, internal: &Internal) -> Outcome {
    match internal {
        Internal::OpenSession { nonce, description } => session::open(tx, *nonce, description),
        Internal::CloseSession { session } => session::close(tx, *session),
        Internal::EndSession { session } => session::end(tx, *session),
        Internal::CloseEnded { session } => session::close_ended(tx, *session),
        Internal::Purge { inos } => ops::purge(tx, inos),
        Internal::ChunksDeleted { chunks } => {
            for chunk in chunks {
                tx.tables.delete(&keys::freed(*chunk));
            }
            Ok(Reply::Done)
        }
        Internal::Noop => Ok(Reply::Done),
        Internal::FreeChunks { chunks } => {
            // What was never allocated may still be.
            let known = chunks
                .iter()
                .filter(|(chunk, _)| chunk.0 < tx.state.next_chunk);
            for (chunk, group) in known {
                tx.tables.put(&keys::freed(*chunk), encode(group));
            }
            Ok(Reply::Done)
        }
        Internal::SetChunkSize { bytes } => set_chunk_size(tx, *bytes),
        Internal::EndHold => {
            tx.tables.delete(&keys::HELD);
            Ok(Reply::Done)
        }
        Internal::ExpireTrash { entries, now } => {
            trash::expire(tx, entries, *now);
            Ok(Reply::Done)
        }
        Internal::HoldLeases { session } => session::hold_leases(tx, *session),
        Internal::BeginEra { after } => {
            if era_of(tx.tables) == *after {
                tx.tables.put(&keys::ERA, encode(&(after + 1)));
            }
            Ok(Reply::Done)
        }
    }
}

fn set_chunk_size(tx: &mut Tx<'_>, bytes: u64) -> Outcome {
    if bytes == tx.state.chunk_size {
        return Ok(Reply::Done);
    }
    // Indices must fit 32 bits.
    let smallest = FILE_SIZE_BYTES_MAX >> 32;
    if !bytes.is_multiple_of(BLOCK_SIZE as u64) || !(smallest..=1 << 32).contains(&bytes) {
        return Err(FsError::new(
            Code::Invalid,
            format!("chunks of {bytes} bytes"),
        ));
    }
    if tx.state.next_chunk > 1 {
        return Err(FsError::new(
            Code::Busy,
            format!("there are chunks of {} bytes already", tx.state.chunk_size),
        ));
    }
    tx.state.chunk_size = bytes;
    Ok(Reply::Done)
}

/// Answers a query from applied state. Before the first entry there is not even a root.
pub fn query(tables: &impl Tables, caller: &Caller, query: &Query) -> Outcome {
    crate::query::query(tables, caller, query)
}

/// What comes with a listing: those of the chosen inodes that may be told, in the same order.
pub fn listed(
    tables: &impl Tables,
    chosen: &[ToList],
    told: impl Iterator<Item = InodeId>,
) -> Vec<Listed> {
    let mut told = told;
    crate::query::listed(tables, chosen, &mut told)
}

/// Which inodes are to come with a listing that begins with these entries, `count_max` at most.
pub fn to_list(
    tables: &impl Tables,
    caller: &Caller,
    entries: &[DirEntry],
    count_max: usize,
) -> Vec<ToList> {
    crate::query::to_list(tables, caller, entries, count_max)
}

/// The directory that a directory is in; of the root that itself.
pub fn parent(tables: &impl Tables, dir: InodeId) -> Option<InodeId> {
    crate::query::parent(tables, dir)
}

/// Makes the root directory if there is none, with times of 1970. Only for a group without a log:
/// with one, the first entry does it on every member alike.
pub fn init(tables: &mut impl Tables) {
    if state(tables).is_none() {
        Tx::begin(tables, 0, Timestamp::default(), &[]).finish();
    }
}

/// Log index of the last applied entry, 0 before the first.
pub fn applied(tables: &impl Tables) -> u64 {
    state(tables).map_or(0, |state| state.applied)
}

/// Bytes of a file in one chunk, as this group reckons.
pub fn chunk_size(tables: &impl Tables) -> u64 {
    state(tables).map_or(CHUNK_SIZE_BYTES, |state| state.chunk_size)
}

/// Whether a chunk was ever allocated. If not, nobody has anything to write at a datanode.
pub fn has_allocated(tables: &impl Tables) -> bool {
    state(tables).is_some_and(|state| state.next_chunk > 1)
}

/// The era. Who learned of a file's chunks in this era or a later one knows none that was freed in an
/// earlier one; so datanodes that are told of an era may forget what was deleted before it.
pub fn era(tables: &impl Tables) -> u32 {
    era_of(tables)
}

/// Whether nothing may be deleted at datanodes: these tables were loaded from a dump, and nobody has looked yet what
/// datanodes have that they do not know, and the other way round. A group that is told of an era forgets which chunks
/// were deleted, and with that the difference between a lost chunk and a hole.
pub fn is_held(tables: &impl Tables) -> bool {
    tables.get(&keys::HELD).is_some()
}

fn era_of(tables: &dyn Tables) -> u32 {
    tables.get(&keys::ERA).map_or(0, |value| decode(&value))
}

/// All sessions by id, those included that have ended and are not closed.
pub fn sessions(tables: &impl Tables) -> Vec<SessionInfo> {
    let mut found = Vec::new();
    scan(tables, keys::all::SESSIONS, usize::MAX, |key, value| {
        let Session {
            description,
            opened,
            ending,
            locked,
            ..
        } = decode(value);
        found.push(SessionInfo {
            id: SessionId(keys::first(key)),
            description,
            opened,
            ending,
            locked,
        });
    });
    found
}

/// Live sessions, in order, without what is known of them.
pub fn session_ids(tables: &impl Tables) -> Vec<SessionId> {
    let mut found = Vec::new();
    scan(tables, keys::all::SESSIONS, usize::MAX, |key, value| {
        if decode::<Session>(value).ending.is_none() {
            found.push(SessionId(keys::first(key)));
        }
    });
    found
}

/// Whether a session is live.
pub fn has_session(tables: &impl Tables, session: SessionId) -> bool {
    let found = tables.get(&keys::session(session));
    found.is_some_and(|value| decode::<Session>(&value).ending.is_none())
}

/// Sessions that may have leases, those included that have ended and are not closed: a new leader must hear of each of
/// them.
pub fn leaseholders(tables: &impl Tables) -> Vec<SessionId> {
    let mut found = Vec::new();
    scan(tables, keys::all::LEASEHOLDERS, usize::MAX, |key, _| {
        found.push(SessionId(keys::first(key)));
    });
    found
}

/// Whether a session is one of them.
pub fn is_leaseholder(tables: &impl Tables, session: SessionId) -> bool {
    tables.get(&keys::leaseholder(session)).is_some()
}

/// The fence that shuts out all sessions that have ended. One of the same number may list others: sessions that were
/// opened or closed by their clients since, which changes nothing for those that it is about.
pub fn fence(tables: &impl Tables) -> Fence {
    let Some(state) = state(tables) else {
        return Fence::default();
    };
    Fence {
        number: state.fence,
        below: state.next_session,
        live: session_ids(tables),
    }
}

/// Sessions that have ended and are not closed, each with the number of its fence.
pub fn ending_sessions(tables: &impl Tables) -> Vec<(SessionId, u64)> {
    let all = sessions(tables).into_iter();
    all.filter_map(|session| Some((session.id, session.ending?)))
        .collect()
}

/// At most `limit` inodes without a name, which wait for a purge, beginning after an inode: so that those that
/// are held open do not hide the others. The leader purges those that no session holds.
pub fn orphans_after(tables: &impl Tables, after: InodeId, limit: usize) -> Vec<InodeId> {
    let mut found = Vec::new();
    if limit > 0 {
        let from = keys::orphan(InodeId(after.0.saturating_add(1)));
        tables.scan(&from, &keys::all::ORPHANS.end, &mut |key, _| {
            found.push(InodeId(keys::first(key)));
            found.len() < limit
        });
    }
    found
}

/// At most `limit` entries of the trash whose time is over, the oldest first.
pub fn expired_trash(tables: &impl Tables, now: Timestamp, limit: usize) -> Vec<TrashKey> {
    trash::expired(tables, now, limit)
}

/// At most `limit` chunks that no file has any more and that their group must delete, by id, beginning after a
/// chunk: so that those of a group that does not answer do not hide the others. They stay in the queue until a
/// `ChunksDeleted` names them.
pub fn freed_chunks_after(
    tables: &impl Tables,
    after: ChunkId,
    limit: usize,
) -> Vec<(ChunkId, GroupId)> {
    let mut found = Vec::new();
    if limit > 0 {
        let from = keys::freed(ChunkId(after.0.saturating_add(1)));
        tables.scan(&from, &keys::all::FREED.end, &mut |key, value| {
            found.push((ChunkId(keys::first(key)), decode(value)));
            found.len() < limit
        });
    }
    found
}

/// What is inconsistent, one sentence each: empty when all is well. Reads everything.
pub fn check(tables: &impl Tables) -> Vec<String> {
    check::check(tables)
}

/// Calls `visit` for at most `limit` rows of a table.
fn scan(
    tables: &dyn Tables,
    table: std::ops::Range<[u8; 1]>,
    limit: usize,
    mut visit: impl FnMut(&[u8], &[u8]),
) {
    let mut left = limit;
    if left > 0 {
        tables.scan(&table.start, &table.end, &mut |key, value| {
            visit(key, value);
            left -= 1;
            left > 0
        });
    }
}
