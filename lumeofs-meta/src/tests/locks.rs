//! Locks: ranges against a model of single bytes, sessions that end, delegation.

use super::*;
use crate::locks::{
    HeldLock, Lock, LockAnswer, LockKind, LockList, LockOwner, LockSpace, conflicts, delegate,
};
use lumeofs_base::limits::LOCKS_PER_INODE_MAX;
use std::collections::BTreeMap;

const A: SessionId = SessionId(1);
const B: SessionId = SessionId(2);

fn owner(id: u64) -> LockOwner {
    let space = LockSpace::Range;
    LockOwner { space, id }
}

fn lock(id: u64, kind: LockKind, first: u64, last: u64) -> Lock {
    Lock {
        owner: owner(id),
        pid: 1,
        kind,
        first,
        last,
    }
}

fn shared(id: u64, first: u64, last: u64) -> Lock {
    lock(id, LockKind::Shared, first, last)
}

fn exclusive(id: u64, first: u64, last: u64) -> Lock {
    lock(id, LockKind::Exclusive, first, last)
}

fn flock(id: u64, kind: LockKind) -> Lock {
    let space = LockSpace::File;
    Lock {
        owner: LockOwner { space, id },
        ..lock(id, kind, 0, i64::MAX as u64)
    }
}

/// The ranges of an owner, in order.
fn ranges(list: &LockList, session: SessionId, id: u64) -> Vec<(u64, u64, LockKind)> {
    let own = |held: &&HeldLock| held.session == session && held.lock.owner == owner(id);
    let own = list.iter().filter(own).map(|held| held.lock);
    let mut found: Vec<_> = own.map(|lock| (lock.first, lock.last, lock.kind)).collect();
    found.sort_by_key(|range| range.0);
    found
}

#[test]
fn ranges_are_split_and_joined_and_change_their_kind() {
    use LockKind::{Exclusive, Shared};
    let mut list = LockList::default();
    assert_eq!(list.try_lock(A, shared(1, 0, 99)), Ok(None));
    assert_eq!(list.try_lock(A, exclusive(1, 40, 49)), Ok(None));
    let split = [(0, 39, Shared), (40, 49, Exclusive), (50, 99, Shared)];
    assert_eq!(ranges(&list, A, 1), split);
    assert_eq!(list.try_lock(A, shared(1, 40, 49)), Ok(None));
    assert_eq!(ranges(&list, A, 1), [(0, 99, Shared)]);
    list.unlock(A, owner(1), 10, 19).unwrap();
    assert_eq!(ranges(&list, A, 1), [(0, 9, Shared), (20, 99, Shared)]);
    assert_eq!(list.try_lock(A, shared(1, 5, u64::MAX)), Ok(None));
    assert_eq!(ranges(&list, A, 1), [(0, u64::MAX, Shared)]);
    list.unlock(A, owner(1), 0, u64::MAX).unwrap();
    assert!(list.is_empty());
}

#[test]
fn an_upgrade_waits_for_other_readers_and_keeps_what_there_was() {
    let mut list = LockList::default();
    assert_eq!(list.try_lock(A, shared(1, 0, 9)), Ok(None));
    assert_eq!(list.try_lock(B, shared(1, 5, 5)), Ok(None));
    let held = list.try_lock(A, exclusive(1, 0, 9)).unwrap().unwrap();
    assert_eq!((held.session, held.lock), (B, shared(1, 5, 5)));
    assert_eq!(ranges(&list, A, 1), [(0, 9, LockKind::Shared)]);
    list.unlock(B, owner(1), 0, u64::MAX).unwrap();
    assert_eq!(list.try_lock(A, exclusive(1, 0, 9)), Ok(None));
    assert!(list.try_lock(B, shared(1, 9, 9)).unwrap().is_some());
}

#[test]
fn flock_sees_no_ranges_and_loses_what_it_converts_in_vain() {
    let mut list = LockList::default();
    assert_eq!(list.try_lock(A, exclusive(1, 0, 9)), Ok(None));
    assert_eq!(list.try_lock(A, flock(1, LockKind::Shared)), Ok(None));
    assert_eq!(list.try_lock(B, flock(1, LockKind::Shared)), Ok(None));
    assert!(
        list.try_lock(B, flock(1, LockKind::Exclusive))
            .unwrap()
            .is_some()
    );
    assert!(!list.has(B, flock(1, LockKind::Shared).owner));
    assert_eq!(list.try_lock(A, flock(1, LockKind::Exclusive)), Ok(None));
}

#[test]
fn locks_of_one_file_are_bounded_and_what_is_too_much_changes_nothing() {
    let mut list = LockList::default();
    for at in 0..LOCKS_PER_INODE_MAX as u64 {
        assert_eq!(list.try_lock(A, shared(1, 10 * at, 10 * at + 4)), Ok(None));
    }
    let before = list.clone();
    let error = list.try_lock(B, shared(1, 0, 0)).unwrap_err();
    assert_eq!(error.code, Code::NoLocks);
    assert_eq!(
        list.unlock(A, owner(1), 2, 2).unwrap_err().code,
        Code::NoLocks
    );
    assert_eq!(list, before);
    list.unlock(A, owner(1), 0, 4).unwrap();
    assert_eq!(list.try_lock(B, shared(1, 0, 0)), Ok(None));
}

#[test]
fn ranges_that_end_before_they_begin_are_refused_and_change_nothing() {
    let mut fixture = Fixture::new();
    let ino = fixture.file(InodeId::ROOT, "file");
    let session = fixture.session;
    assert_eq!(
        fixture.lock(session, ino, shared(1, 0, 99), false),
        LockAnswer::Done
    );
    let unlock = Mutation::Unlock {
        ino,
        owner: owner(1),
        first: 20,
        last: 10,
    };
    assert_eq!(fixture.refused(unlock), Code::Invalid);
    let held = conflicts(&fixture.tables, ino, B, exclusive(2, 0, 99));
    assert_eq!(held.len(), 1);
    assert_eq!((held[0].lock.first, held[0].lock.last), (0, 99));
    let mut list = LockList::default();
    let error = list.try_lock(A, shared(1, 2, 1)).unwrap_err();
    assert_eq!(error.code, Code::Invalid);
    let other = fixture.file(InodeId::ROOT, "other");
    let wish = shared(1, 0, 0);
    assert_eq!(
        fixture.lock(session, other, wish, true),
        LockAnswer::Delegated
    );
    let locks = vec![shared(1, 2, 1)];
    let give_back = Mutation::ReturnLocks { ino: other, locks };
    assert_eq!(fixture.refused(give_back), Code::Invalid);
    assert_eq!(delegate(&fixture.tables, other), Some(session));
    fixture.check();
}

/// Small numbers in a fixed order that looks like none.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % end
    }
}

#[test]
fn random_calls_do_to_ranges_what_they_do_to_single_bytes() {
    const BYTES: u64 = 24;
    let mut numbers = Numbers(1);
    let mut list = LockList::default();
    let mut bytes: BTreeMap<(u64, SessionId, u64), LockKind> = BTreeMap::new();
    for _ in 0..20_000 {
        let session = [A, B][numbers.below(2) as usize];
        let id = numbers.below(3);
        let first = numbers.below(BYTES);
        let last = first + numbers.below(BYTES - first);
        let kind = [LockKind::Shared, LockKind::Exclusive][numbers.below(2) as usize];
        let unlocks = numbers.below(3) == 0;
        let is_own = |key: &(u64, SessionId, u64)| (key.1, key.2) == (session, id);
        let in_range = |key: &(u64, SessionId, u64)| (first..=last).contains(&key.0);
        let free = unlocks
            || !bytes.iter().any(|(key, held)| {
                let excludes = [*held, kind].contains(&LockKind::Exclusive);
                in_range(key) && !is_own(key) && excludes
            });
        if unlocks {
            list.unlock(session, owner(id), first, last).unwrap();
        } else {
            let held = list.try_lock(session, lock(id, kind, first, last)).unwrap();
            assert_eq!(held.is_none(), free);
        }
        if free {
            bytes.retain(|key, _| !(in_range(key) && is_own(key)));
            let locked = (first..=last).map(|byte| ((byte, session, id), kind));
            bytes.extend(locked.filter(|_| !unlocks));
        }
        let mut seen = BTreeMap::new();
        for held in list.iter() {
            for byte in held.lock.first..=held.lock.last {
                let key = (byte, held.session, held.lock.owner.id);
                assert_eq!(seen.insert(key, held.lock.kind), None, "twice");
            }
        }
        assert_eq!(seen, bytes);
    }
}

impl Fixture {
    fn another_session(&mut self, nonce: u128) -> SessionId {
        let description = String::new();
        match self.internal(Internal::OpenSession { nonce, description }) {
            Ok(Reply::Session(session)) => session,
            other => panic!("{other:?}"),
        }
    }

    fn as_session(&mut self, session: SessionId, mutation: Mutation) -> Outcome {
        let command = match self.command(mutation) {
            Command::Mutate {
                sequence,
                acked_below,
                caller,
                mutation,
                ..
            } => Command::Mutate {
                session,
                sequence,
                acked_below,
                caller,
                mutation,
            },
            other => other,
        };
        self.apply(vec![command]).remove(0)
    }

    fn lock(
        &mut self,
        session: SessionId,
        ino: InodeId,
        lock: Lock,
        delegated: bool,
    ) -> LockAnswer {
        let mutation = Mutation::Lock {
            ino,
            lock,
            delegated,
        };
        match self.as_session(session, mutation) {
            Ok(Reply::Lock(answer)) => answer,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_session_that_ended_keeps_its_locks_until_it_is_shut_out_everywhere() {
    let mut fixture = Fixture::new();
    let ino = fixture.file(InodeId::ROOT, "file");
    let (first, other) = (fixture.session, fixture.another_session(8));
    let wish = exclusive(1, 0, 9);
    assert_eq!(fixture.lock(first, ino, wish, false), LockAnswer::Done);
    let session = first;
    fixture.internal(Internal::EndSession { session }).unwrap();
    let held = HeldLock {
        session,
        lock: wish,
    };
    assert_eq!(
        fixture.lock(other, ino, wish, false),
        LockAnswer::Held(held)
    );
    fixture.check();
    fixture.internal(Internal::CloseEnded { session }).unwrap();
    fixture.check();
    assert_eq!(fixture.lock(other, ino, wish, false), LockAnswer::Done);
    let session = other;
    fixture
        .internal(Internal::CloseSession { session })
        .unwrap();
    fixture.check();
    assert_eq!(conflicts(&fixture.tables, ino, first, wish), []);
}

#[test]
fn delegated_locks_are_known_again_when_they_are_given_back() {
    let mut fixture = Fixture::new();
    let ino = fixture.file(InodeId::ROOT, "file");
    let (first, other) = (fixture.session, fixture.another_session(8));
    let wish = exclusive(1, 0, 9);
    assert_eq!(fixture.lock(first, ino, wish, true), LockAnswer::Delegated);
    assert_eq!(fixture.lock(first, ino, wish, false), LockAnswer::Delegated);
    let elsewhere = LockAnswer::DelegatedTo(first);
    assert_eq!(fixture.lock(other, ino, wish, true), elsewhere);
    let query = Query::TestLock {
        ino,
        session: other,
        lock: wish,
    };
    assert_eq!(fixture.query(&query), Ok(Reply::Lock(elsewhere)));
    fixture.check();
    // Nobody else can give it back.
    let give_back = |locks| Mutation::ReturnLocks { ino, locks };
    fixture.as_session(other, give_back(Vec::new())).unwrap();
    assert_eq!(delegate(&fixture.tables, ino), Some(first));
    fixture
        .as_session(first, give_back(vec![shared(2, 3, 3)]))
        .unwrap();
    fixture.check();
    let held = fixture.lock(other, ino, wish, true);
    assert!(matches!(held, LockAnswer::Held(held) if held.session == first));
    let (owner, (first_byte, last)) = (owner(2), (0, u64::MAX));
    let unlock = Mutation::Unlock {
        ino,
        owner,
        first: first_byte,
        last,
    };
    fixture.as_session(first, unlock).unwrap();
    assert_eq!(fixture.lock(other, ino, wish, true), LockAnswer::Delegated);
    let session = other;
    fixture.internal(Internal::EndSession { session }).unwrap();
    assert_eq!(
        fixture.lock(first, ino, wish, true),
        LockAnswer::DelegatedTo(other)
    );
    fixture.internal(Internal::CloseEnded { session }).unwrap();
    assert_eq!(fixture.lock(first, ino, wish, true), LockAnswer::Delegated);
    fixture.check();
}

#[test]
fn locks_go_with_their_inode() {
    let mut fixture = Fixture::new();
    let ino = fixture.file(InodeId::ROOT, "file");
    let session = fixture.session;
    assert_eq!(
        fixture.lock(session, ino, shared(1, 0, 0), false),
        LockAnswer::Done
    );
    let locked = |fixture: &Fixture| namespace::sessions(&fixture.tables)[0].locked;
    assert_eq!(locked(&fixture), 1);
    fixture.mutate(unlink(InodeId::ROOT, "file")).unwrap();
    fixture.check();
    let inos = vec![ino];
    fixture.internal(Internal::Purge { inos }).unwrap();
    fixture.check();
    assert_eq!(locked(&fixture), 0);
    let gone = Mutation::Lock {
        ino,
        lock: shared(1, 0, 0),
        delegated: false,
    };
    assert_eq!(fixture.refused(gone), Code::Stale);
}
