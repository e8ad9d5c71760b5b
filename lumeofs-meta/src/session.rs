//! Sessions and exactly-once (S1).
//!
//! A session's outcomes are kept for the sequences in `[acked_below, acked_below + 1024)`, so a
//! mutation that was sent twice is applied once and answered alike. Purging follows from the
//! `acked_below` that commands carry, so it is the same on every member.

use crate::change::Applied;
use crate::keys;
use crate::locks;
use crate::op::{Caller, Mutation, Outcome, Reply};
use crate::ops;
use crate::record::{Session, decode, encode};
use crate::transaction::Tx;
use lumeofs_base::limits::{INODES_RESERVED_MAX, SESSION_WINDOW, SESSIONS_MAX};
use lumeofs_base::{Code, FsError, FsResult, InodeId, SessionId};

/// Longest description that is kept.
const DESCRIPTION_LEN_BYTES_MAX: usize = 256;
/// Ranges of numbers of inodes that a session has besides a new one.
const RANGES_KEPT: usize = 3;

/// Opens a session, or finds the one that was opened with this nonce.
pub(crate) fn open(tx: &mut Tx<'_>, nonce: u128, description: &str) -> Outcome {
    if let Some(value) = tx.tables.get(&keys::nonce(nonce)) {
        return Ok(Reply::Session(decode(&value)));
    }
    // Each id was used once, so the difference is those that are there.
    let count = tx.state.next_session - 1 - tx.state.sessions_ended;
    if count >= SESSIONS_MAX as u64 {
        let context =
            format!("{count} sessions are open: unmount some, or `lumeofs admin session evict`");
        return Err(FsError::new(Code::TooManyOpen, context));
    }
    let id = SessionId(tx.state.next_session);
    tx.state.next_session += 1;
    let end = description.floor_char_boundary(DESCRIPTION_LEN_BYTES_MAX);
    let session = Session {
        nonce,
        description: description[..end].to_owned(),
        opened: tx.now(),
        acked_below: 1,
        ending: None,
        locked: 0,
        reserved: Vec::new(),
    };
    tx.tables.put(&keys::nonce(nonce), encode(&id));
    tx.insert_session(id, session);
    Ok(Reply::Session(id))
}

/// Closes a session that its client gave up. Closing it again is fine.
pub(crate) fn close(tx: &mut Tx<'_>, id: SessionId) -> Outcome {
    if tx
        .session(id)
        .is_some_and(|session| session.ending.is_some())
    {
        return Err(has_ended(id));
    }
    remove(tx, id);
    Ok(Reply::Done)
}

/// Ends a session against the will of its client, which may still have writes on their way: rule S3. What counts its
/// writes as over, and what it alone could use, waits for its fence.
pub(crate) fn end(tx: &mut Tx<'_>, id: SessionId) -> Outcome {
    let next = tx.state.fence + 1;
    let Some(session) = tx.session(id) else {
        return Err(FsError::new(Code::NotFound, format!("session {id}")));
    };
    if session.ending.is_some() {
        return Ok(Reply::Done);
    }
    session.ending = Some(next);
    let nonce = session.nonce;
    tx.state.fence = next;
    forget(tx, id, nonce);
    Ok(Reply::Done)
}

/// Closes a session that has ended. Closing it again is fine.
pub(crate) fn close_ended(tx: &mut Tx<'_>, id: SessionId) -> Outcome {
    if tx
        .session(id)
        .is_some_and(|session| session.ending.is_none())
    {
        return Err(FsError::new(
            Code::Invalid,
            format!("session {id} has not ended"),
        ));
    }
    remove(tx, id);
    Ok(Reply::Done)
}

/// Notes that a session may have leases.
pub(crate) fn hold_leases(tx: &mut Tx<'_>, id: SessionId) -> Outcome {
    let session = tx.session(id);
    if session.is_none_or(|session| session.ending.is_some()) {
        return Err(has_ended(id));
    }
    tx.tables.put(&keys::leaseholder(id), encode(&()));
    Ok(Reply::Done)
}

/// Takes a number that a session had reserved, and all before it: it makes its inodes in the order of their numbers.
pub(crate) fn take_reserved(tx: &mut Tx<'_>, id: SessionId, ino: InodeId) -> FsResult<()> {
    let session = tx.session(id).ok_or_else(|| has_ended(id))?;
    let reserved = &mut session.reserved;
    let Some(at) = reserved.iter().position(|range| range.contains(&ino.0)) else {
        let text = format!("inode {ino}, which session {id} has not reserved");
        return Err(FsError::new(Code::Invalid, text));
    };
    reserved[at].start = ino.0 + 1;
    reserved.retain(|range| !range.is_empty());
    Ok(())
}

/// Reserves numbers of inodes for a session, in the slot of one.
pub(crate) fn reserve(tx: &mut Tx<'_>, id: SessionId, near: InodeId, count: u32) -> Outcome {
    if count == 0 || count > INODES_RESERVED_MAX {
        let text = format!("{count} numbers of inodes, 1 to {INODES_RESERVED_MAX} can be reserved");
        return Err(FsError::new(Code::Invalid, text));
    }
    let session = tx.session(id).ok_or_else(|| has_ended(id))?;
    // What was reserved longest ago is given up.
    let kept = session.reserved.len().min(RANGES_KEPT);
    session.reserved.drain(..session.reserved.len() - kept);
    let first = tx.new_inos(near.slot(), count)?;
    let range = first.0..first.0 + u64::from(count);
    let session = tx.session(id).expect("it was just there");
    session.reserved.push(range);
    Ok(Reply::Reserved { first, count })
}

fn remove(tx: &mut Tx<'_>, id: SessionId) {
    locks::forget_session(tx, id);
    if let Some(session) = tx.remove_session(id) {
        tx.tables.delete(&keys::leaseholder(id));
        tx.state.sessions_ended += 1;
        if session.ending.is_none() {
            forget(tx, id, session.nonce);
        }
    }
}

/// Forgets the outcomes of a session, and what finds it again.
fn forget(tx: &mut Tx<'_>, id: SessionId, nonce: u128) {
    tx.tables.delete(&keys::nonce(nonce));
    let mut outcomes = Vec::new();
    tx.tables.scan(
        &keys::outcome(id, 0),
        &keys::outcome(id, u64::MAX),
        &mut |key, _| {
            outcomes.push(key.to_vec());
            true
        },
    );
    for key in outcomes {
        tx.tables.delete(&key);
    }
}

fn has_ended(id: SessionId) -> FsError {
    FsError::new(Code::SessionExpired, format!("session {id}"))
}

/// Runs a mutation, unless it ran before: then its outcome comes back.
pub(crate) fn mutate(
    tx: &mut Tx<'_>,
    id: SessionId,
    sequence: u64,
    acked_below: u64,
    caller: &Caller,
    mutation: &Mutation,
) -> Applied {
    let key = keys::outcome(id, sequence);
    if let Err(error) = enter(tx, id, sequence, acked_below) {
        return tx.applied(Err(error));
    }
    if let Some(value) = tx.tables.get(&key) {
        return Applied::again(decode(&value));
    }
    let outcome = ops::run(tx, id, caller, mutation);
    tx.tables.put(&key, encode(&outcome));
    tx.applied(outcome)
}

/// Whether a session may send this sequence. Forgets the outcomes that its client has.
fn enter(tx: &mut Tx<'_>, id: SessionId, sequence: u64, acked_below: u64) -> FsResult<()> {
    let Some(session) = tx.session(id).filter(|session| session.ending.is_none()) else {
        return Err(has_ended(id));
    };
    let purge_from = session.acked_below;
    let window_from = purge_from.max(acked_below);
    if sequence < window_from || sequence - window_from >= SESSION_WINDOW {
        return Err(FsError::new(
            Code::Invalid,
            format!("sequence {sequence} of session {id}, whose window begins at {window_from}"),
        ));
    }
    session.acked_below = window_from;
    // Whatever the client claims, there are outcomes in the old window only.
    for purged in purge_from..window_from.min(purge_from.saturating_add(SESSION_WINDOW)) {
        tx.tables.delete(&keys::outcome(id, purged));
    }
    Ok(())
}
