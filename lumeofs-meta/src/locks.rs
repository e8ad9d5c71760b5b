//! Locks on inodes: byte ranges of `fcntl(2)` and whole files of `flock(2)`, each among its own kind.
//!
//! Who waits for a lock is no state of the group: it asks again. A session that is alone on an inode may have the locks of
//! that inode *delegated* to it: it decides on them itself, and the group only knows that it does, until it gives them back.

use crate::keys;
use crate::op::{Outcome, Reply};
use crate::record::{decode, encode};
use crate::tables::Tables;
use crate::transaction::Tx;
use lumeofs_base::limits::{LOCKED_INODES_PER_SESSION_MAX, LOCKS_PER_INODE_MAX};
use lumeofs_base::{Code, FsError, FsResult, InodeId, SessionId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Locks of different kinds do not see each other, as on every Linux filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LockSpace {
    /// `fcntl(2)`, of processes and of open file descriptions.
    Range,
    /// `flock(2)`.
    File,
}

/// Whose a lock is, within its session: a process or an open file description, by the kernel's name for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LockOwner {
    /// The kind.
    pub space: LockSpace,
    /// The kernel's name.
    pub id: u64,
}

/// Who else may have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockKind {
    /// Others that want it shared.
    Shared,
    /// Nobody.
    Exclusive,
}

/// A lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// Whose.
    pub owner: LockOwner,
    /// The process that asked for it, for people.
    pub pid: u32,
    /// Against whom.
    pub kind: LockKind,
    /// First byte.
    pub first: u64,
    /// Last byte, included.
    pub last: u64,
}

impl Lock {
    fn overlaps(&self, first: u64, last: u64) -> bool {
        self.first <= last && first <= self.last
    }
}

/// A lock that a session has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldLock {
    /// Whose.
    pub session: SessionId,
    /// What.
    pub lock: Lock,
}

/// Whether a lock was, or could be, had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockAnswer {
    /// Yes.
    Done,
    /// The asker decides: the locks of this inode are delegated to it.
    Delegated,
    /// No, for the sake of this one.
    Held(HeldLock),
    /// Not known before this session gives the locks of the inode back.
    DelegatedTo(SessionId),
}

/// Locks of one inode, in no order that means anything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockList(Vec<HeldLock>);

impl LockList {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &HeldLock> {
        self.0.iter()
    }

    /// Whether an owner has any.
    pub fn has(&self, session: SessionId, owner: LockOwner) -> bool {
        self.of(session, owner).next().is_some()
    }

    /// Whether an owner has any in a range.
    pub fn has_in(&self, session: SessionId, owner: LockOwner, first: u64, last: u64) -> bool {
        self.of(session, owner)
            .any(|held| held.lock.overlaps(first, last))
    }

    fn of(&self, session: SessionId, owner: LockOwner) -> impl Iterator<Item = &HeldLock> {
        let own = move |held: &&HeldLock| held.session == session && held.lock.owner == owner;
        self.0.iter().filter(own)
    }

    fn has_session(&self, session: SessionId) -> bool {
        self.0.iter().any(|held| held.session == session)
    }

    /// Those of others that a lock cannot be had beside.
    pub fn conflicts(&self, session: SessionId, lock: Lock) -> impl Iterator<Item = &HeldLock> {
        self.0.iter().filter(move |held| {
            let exclusive = [held.lock.kind, lock.kind].contains(&LockKind::Exclusive);
            let own = held.session == session && held.lock.owner == lock.owner;
            held.lock.owner.space == lock.owner.space
                && exclusive
                && !own
                && held.lock.overlaps(lock.first, lock.last)
        })
    }

    /// Locks a range, if nobody else prevents that, in place of what its owner has there. What `flock` converts is gone
    /// also if it fails: flock(2).
    ///
    /// # Errors
    /// `NoLocks`: there would be too many. `Invalid`: it ends before it begins. Nothing has changed.
    pub fn try_lock(&mut self, session: SessionId, lock: Lock) -> FsResult<Option<HeldLock>> {
        check_range(lock.first, lock.last)?;
        if lock.owner.space == LockSpace::File && self.has_other_kind(session, lock) {
            self.unlock(session, lock.owner, 0, u64::MAX)?;
        }
        if let Some(held) = self.conflicts(session, lock).next() {
            return Ok(Some(*held));
        }
        let mut next = self.clone();
        next.put(session, lock);
        *self = next.bounded()?;
        Ok(None)
    }

    /// Unlocks a range, which may split a lock.
    ///
    /// # Errors
    /// `NoLocks`: there would be too many. `Invalid`: the range ends before it begins. Nothing has changed.
    pub fn unlock(
        &mut self,
        session: SessionId,
        owner: LockOwner,
        first: u64,
        last: u64,
    ) -> FsResult<()> {
        check_range(first, last)?;
        let mut next = self.clone();
        next.cut(session, owner, first, last);
        *self = next.bounded()?;
        Ok(())
    }

    /// Locks a range in place of what its owner has there, as the leader has done already.
    pub fn put(&mut self, session: SessionId, lock: Lock) {
        self.cut(session, lock.owner, lock.first, lock.last);
        self.add(session, lock);
    }

    /// Whether an owner has a lock of another kind than this one.
    pub fn has_other_kind(&self, session: SessionId, lock: Lock) -> bool {
        self.of(session, lock.owner)
            .any(|held| held.lock.kind != lock.kind)
    }

    fn bounded(self) -> FsResult<Self> {
        if self.0.len() > LOCKS_PER_INODE_MAX {
            let text = format!("over {LOCKS_PER_INODE_MAX} locks on one file");
            return Err(FsError::new(Code::NoLocks, text));
        }
        Ok(self)
    }

    fn cut(&mut self, session: SessionId, owner: LockOwner, first: u64, last: u64) {
        let mut rest = Vec::new();
        self.0.retain(|held| {
            let lock = held.lock;
            if held.session != session || lock.owner != owner || !lock.overlaps(first, last) {
                return true;
            }
            let mut keep = |first, last| {
                let lock = Lock {
                    first,
                    last,
                    ..lock
                };
                rest.push(HeldLock { session, lock });
            };
            if lock.first < first {
                keep(lock.first, first - 1);
            }
            if lock.last > last {
                keep(last + 1, lock.last);
            }
            false
        });
        self.0.append(&mut rest);
    }

    /// Adds a lock to a range that is free of its owner's, as one with those of the same kind that touch it.
    fn add(&mut self, session: SessionId, mut lock: Lock) {
        self.0.retain(|held| {
            let other = held.lock;
            let touches = other.last.checked_add(1) == Some(lock.first)
                || lock.last.checked_add(1) == Some(other.first);
            let joins = held.session == session
                && other.owner == lock.owner
                && other.kind == lock.kind
                && touches;
            if joins {
                lock.first = lock.first.min(other.first);
                lock.last = lock.last.max(other.last);
            }
            !joins
        });
        self.0.push(HeldLock { session, lock });
    }
}

/// What ends before it begins would be cut out of locks as something that overlaps itself.
fn check_range(first: u64, last: u64) -> FsResult<()> {
    if first > last {
        let text = format!("lock from byte {first} to {last}");
        return Err(FsError::new(Code::Invalid, text));
    }
    Ok(())
}

/// What is stored of an inode's locks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Row {
    /// The session that decides on them. The list is empty then.
    delegate: Option<SessionId>,
    list: LockList,
}

impl Row {
    fn has_session(&self, session: SessionId) -> bool {
        self.delegate == Some(session) || self.list.has_session(session)
    }
}

fn row(tables: &dyn Tables, ino: InodeId) -> Row {
    let value = tables.get(&keys::locks(ino));
    value.map(|value| decode(&value)).unwrap_or_default()
}

/// Whether a session could have a lock.
pub fn test(tables: &dyn Tables, ino: InodeId, session: SessionId, lock: Lock) -> LockAnswer {
    let row = row(tables, ino);
    match (row.delegate, row.list.conflicts(session, lock).next()) {
        (Some(delegate), _) if delegate == session => LockAnswer::Delegated,
        (Some(delegate), _) => LockAnswer::DelegatedTo(delegate),
        (None, Some(held)) => LockAnswer::Held(*held),
        (None, None) => LockAnswer::Done,
    }
}

/// The locks that one cannot be had beside, if they are known here.
pub fn conflicts(
    tables: &dyn Tables,
    ino: InodeId,
    session: SessionId,
    lock: Lock,
) -> Vec<HeldLock> {
    let row = row(tables, ino);
    row.list.conflicts(session, lock).copied().collect()
}

/// The session that decides on the locks of an inode, if one does.
pub fn delegate(tables: &dyn Tables, ino: InodeId) -> Option<SessionId> {
    row(tables, ino).delegate
}

pub(crate) fn lock(
    tx: &mut Tx<'_>,
    session: SessionId,
    ino: InodeId,
    lock: Lock,
    delegated: bool,
) -> Outcome {
    check_range(lock.first, lock.last)?;
    tx.inode(ino)?;
    let mut row = row(tx.tables, ino);
    match row.delegate {
        Some(delegate) if delegate == session => return answer(LockAnswer::Delegated),
        Some(delegate) => return answer(LockAnswer::DelegatedTo(delegate)),
        None => {}
    }
    if delegated && row.list.is_empty() {
        row.delegate = Some(session);
        save(tx, session, ino, &row)?;
        return answer(LockAnswer::Delegated);
    }
    let conflict = row.list.try_lock(session, lock)?;
    save(tx, session, ino, &row)?;
    answer(conflict.map_or(LockAnswer::Done, LockAnswer::Held))
}

fn answer(answer: LockAnswer) -> Outcome {
    Ok(Reply::Lock(answer))
}

pub(crate) fn unlock(
    tx: &mut Tx<'_>,
    session: SessionId,
    ino: InodeId,
    owner: LockOwner,
    first: u64,
    last: u64,
) -> Outcome {
    let mut row = row(tx.tables, ino);
    row.list.unlock(session, owner, first, last)?;
    save(tx, session, ino, &row)?;
    Ok(Reply::Done)
}

/// Takes the account of an inode's locks over from the session to which they were delegated.
pub(crate) fn give_back(
    tx: &mut Tx<'_>,
    session: SessionId,
    ino: InodeId,
    locks: &[Lock],
) -> Outcome {
    let mut row = row(tx.tables, ino);
    if row.delegate != Some(session) {
        return Ok(Reply::Done);
    }
    for lock in locks {
        check_range(lock.first, lock.last)?;
    }
    let held = locks.iter().map(|&lock| HeldLock { session, lock });
    row.list = LockList(held.collect()).bounded()?;
    row.delegate = None;
    save(tx, session, ino, &row)?;
    Ok(Reply::Done)
}

/// Stores a row in which only this session's part has changed.
///
/// # Errors
/// `NoLocks`: the session has locks on too many inodes. Nothing has changed.
fn save(tx: &mut Tx<'_>, id: SessionId, ino: InodeId, row: &Row) -> FsResult<()> {
    let listed = keys::locked(id, ino);
    let (was, is) = (tx.tables.get(&listed).is_some(), row.has_session(id));
    if was != is
        && let Some(session) = tx.session(id)
    {
        if is && session.locked >= LOCKED_INODES_PER_SESSION_MAX {
            let text = format!("locks on {} files of {id}", session.locked);
            return Err(FsError::new(Code::NoLocks, text));
        }
        session.locked = if is {
            session.locked + 1
        } else {
            session.locked - 1
        };
    }
    match is {
        true if !was => tx.tables.put(&listed, encode(&())),
        false if was => tx.tables.delete(&listed),
        _ => {}
    }
    put(tx, ino, row);
    Ok(())
}

fn put(tx: &mut Tx<'_>, ino: InodeId, row: &Row) {
    let key = keys::locks(ino);
    if *row != Row::default() {
        tx.tables.put(&key, encode(row));
    } else if tx.tables.get(&key).is_some() {
        tx.tables.delete(&key);
    }
}

/// A session is closed: its locks are gone.
pub(crate) fn forget_session(tx: &mut Tx<'_>, id: SessionId) {
    let (mut listed, range) = (Vec::new(), keys::locked_by(id));
    tx.tables.scan(&range.start, &range.end, &mut |key, _| {
        listed.push(key.to_vec());
        true
    });
    for key in listed {
        let ino = InodeId(keys::second(&key));
        let mut row = row(tx.tables, ino);
        row.delegate = row.delegate.filter(|delegate| *delegate != id);
        row.list.0.retain(|held| held.session != id);
        put(tx, ino, &row);
        tx.tables.delete(&key);
    }
}

/// An inode is gone, and its locks with it.
pub(crate) fn forget_inode(tx: &mut Tx<'_>, ino: InodeId) {
    let row = row(tx.tables, ino);
    for id in sessions(&row) {
        tx.tables.delete(&keys::locked(id, ino));
        if let Some(session) = tx.session(id) {
            session.locked -= 1;
        }
    }
    put(tx, ino, &Row::default());
}

fn sessions(row: &Row) -> BTreeSet<SessionId> {
    let held = row.list.iter().map(|held| held.session);
    held.chain(row.delegate).collect()
}

/// What of the stored locks does not fit.
pub(crate) fn check(tables: &dyn Tables) -> Vec<String> {
    let (mut found, mut have, mut listed) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    let all = keys::all::LOCKS;
    tables.scan(&all.start, &all.end, &mut |key, value| {
        let (ino, row): (_, Row) = (InodeId(keys::first(key)), decode(value));
        have.extend(sessions(&row).into_iter().map(|session| (session, ino)));
        if row.delegate.is_some() && !row.list.is_empty() || row == Row::default() {
            found.push(format!("locks of {ino} have no or two keepers"));
        }
        let beside = |held: &HeldLock| row.list.conflicts(held.session, held.lock).next();
        if row.list.iter().any(|held| beside(held).is_some()) {
            found.push(format!("locks of {ino} exclude each other"));
        }
        true
    });
    let all = keys::all::LOCKED;
    tables.scan(&all.start, &all.end, &mut |key, _| {
        listed.insert((SessionId(keys::first(key)), InodeId(keys::second(key))));
        true
    });
    for (session, ino) in have.symmetric_difference(&listed) {
        found.push(format!("locks of {session} on {ino} and its list differ"));
    }
    for (session, _) in &have {
        if tables.get(&keys::session(*session)).is_none() {
            found.push(format!("{session} has locks and is no session"));
        }
    }
    found
}
