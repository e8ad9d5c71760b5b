//! Who waits for which lock: soft state of the leader, which every waiter renews by asking again.
//!
//! Nothing is granted here. A waiter is told when to try, in the order in which they came, and tries by a mutation; so one
//! that is not heard any more has got nothing. Waits for each other are found here, since only the leader sees those of all
//! sessions; and sessions to which the locks of an inode are delegated are asked to give them back.

use crate::GIVE_BACK_MAX;
use lumeofs_base::limits::{LOCK_WAIT_ANSWER, LOCK_WAITS_MAX};
use lumeofs_base::{Code, FsError, FsResult, InodeId, SessionId};
use lumeofs_meta::locks::{self, Lock, LockAnswer, LockOwner, LockSpace};
use lumeofs_meta::op::{Command, Internal, Mutation};
use lumeofs_meta::tables::Tables;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A waiter that has not asked for so long waits no more.
const HEARD_WITHIN: Duration = Duration::from_secs(3);
/// A session that was asked for the locks of an inode is asked again after this time.
const RECALL_AGAIN: Duration = Duration::from_millis(500);

/// What somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockWish {
    /// Whose.
    pub session: SessionId,
    /// The inode.
    pub ino: InodeId,
    /// The lock.
    pub lock: Lock,
    /// How long it has been waited for.
    pub waited: Duration,
    /// It is enough if it can be said whether the lock can be had.
    pub just_to_know: bool,
}

impl LockWish {
    fn owner(&self) -> Owner {
        (self.session, self.lock.owner)
    }
}

/// What a waiter is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockVerdict {
    /// Wait.
    Wait,
    /// Wait for this session, which has to give the locks of the inode back.
    Recall(SessionId),
    /// Try to lock.
    Try,
    /// Give up: who has the lock waits for this waiter.
    Deadlock,
}

type Owner = (SessionId, LockOwner);

#[derive(Clone, Copy, Debug)]
struct Wait {
    wish: LockWish,
    since: Duration,
    heard: Duration,
}

impl Wait {
    /// Whether it is for what this waiter, who is the same, wishes for.
    fn is_for(&self, wish: &LockWish) -> bool {
        self.wish.ino == wish.ino && self.wish.lock == wish.lock
    }
}

#[derive(Clone, Copy, Debug)]
struct Recall {
    /// When somebody was last in need of it.
    needed: Duration,
    /// From when on the session has time for it: since it was told first; until then, since it was needed first.
    since: Duration,
    told: Option<Duration>,
}

impl Recall {
    fn is_needed(&self, now: Duration) -> bool {
        now.saturating_sub(self.needed) < HEARD_WITHIN
    }
}

/// All waits.
#[derive(Debug, Default)]
pub struct LockWaits {
    waits: BTreeMap<Owner, Vec<Wait>>,
    count: usize,
    recalls: BTreeMap<(SessionId, InodeId), Recall>,
    swept: Duration,
}

impl LockWaits {
    /// What a waiter is to do now. It is remembered for a while if that is to wait.
    ///
    /// # Errors
    /// `NoLocks`: too many wait.
    pub fn judge(
        &mut self,
        tables: &dyn Tables,
        now: Duration,
        wish: &LockWish,
    ) -> FsResult<LockVerdict> {
        self.sweep(now);
        self.forget(wish);
        let answer = locks::test(tables, wish.ino, wish.session, wish.lock);
        let verdict = match answer {
            LockAnswer::DelegatedTo(delegate) => {
                let new = Recall {
                    needed: now,
                    since: now,
                    told: None,
                };
                let recall = self.recalls.entry((delegate, wish.ino)).or_insert(new);
                // Nobody was in need of it for a while, or was heard here.
                if !recall.is_needed(now) {
                    *recall = new;
                }
                recall.needed = now;
                LockVerdict::Recall(delegate)
            }
            _ if wish.just_to_know => LockVerdict::Try,
            LockAnswer::Held(_) if self.is_deadlock(tables, wish) => LockVerdict::Deadlock,
            LockAnswer::Held(_) => LockVerdict::Wait,
            LockAnswer::Done | LockAnswer::Delegated => {
                match self.is_behind(tables, wish, now.saturating_sub(wish.waited)) {
                    true => LockVerdict::Wait,
                    false => LockVerdict::Try,
                }
            }
        };
        if matches!(verdict, LockVerdict::Wait | LockVerdict::Recall(_)) {
            self.remember(wish, now)?;
        }
        Ok(verdict)
    }

    /// What a waiter is to do that was told to wait by [`LockWaits::judge`]. `None` if it waits no more: it must not be
    /// entered again, or others would be taken to wait for who waits for nothing.
    ///
    /// # Errors
    /// As of `judge`.
    pub fn judge_again(
        &mut self,
        tables: &dyn Tables,
        now: Duration,
        wish: &LockWish,
    ) -> FsResult<Option<LockVerdict>> {
        let mut waits = self.waits.get(&wish.owner()).into_iter().flatten();
        match waits.any(|wait| wait.is_for(wish)) {
            true => self.judge(tables, now, wish).map(Some),
            false => Ok(None),
        }
    }

    fn remember(&mut self, wish: &LockWish, now: Duration) -> FsResult<()> {
        if self.count >= LOCK_WAITS_MAX {
            let text = format!("{} callers wait for locks", self.count);
            return Err(FsError::new(Code::NoLocks, text));
        }
        self.count += 1;
        let since = now.saturating_sub(wish.waited);
        self.waits.entry(wish.owner()).or_default().push(Wait {
            wish: *wish,
            since,
            heard: now,
        });
        Ok(())
    }

    /// A waiter waits no more.
    pub fn forget(&mut self, wish: &LockWish) {
        let Some(waits) = self.waits.get_mut(&wish.owner()) else {
            return;
        };
        if let Some(at) = waits.iter().position(|wait| wait.is_for(wish)) {
            waits.swap_remove(at);
            self.count -= 1;
        }
        if waits.is_empty() {
            self.waits.remove(&wish.owner());
        }
    }

    /// Whether somebody who came earlier can have a lock now that this one cannot be had beside.
    fn is_behind(&self, tables: &dyn Tables, wish: &LockWish, since: Duration) -> bool {
        let earlier = |wait: &&Wait| {
            let other = &wait.wish;
            let mut list = locks::LockList::default();
            other.ino == wish.ino
                && !other.just_to_know
                && wait.since < since
                && other.owner() != wish.owner()
                // Fails only for a list that is full.
                && list.try_lock(other.session, other.lock).is_ok()
                && list.conflicts(wish.session, wish.lock).next().is_some()
        };
        let mut earlier = self.waits.values().flatten().filter(earlier);
        earlier.any(|wait| {
            let other = &wait.wish;
            locks::test(tables, other.ino, other.session, other.lock) == LockAnswer::Done
        })
    }

    /// Whether those who have what is wished for wait for its owner, at first or second hand. As `fcntl(2)` has it, for
    /// ranges only.
    fn is_deadlock(&self, tables: &dyn Tables, wish: &LockWish) -> bool {
        if wish.lock.owner.space != LockSpace::Range {
            return false;
        }
        let holders = |wish: &LockWish| {
            let held = locks::conflicts(tables, wish.ino, wish.session, wish.lock).into_iter();
            held.map(|held| (held.session, held.lock.owner))
        };
        let (mut seen, mut next) = (BTreeSet::new(), Vec::new());
        next.extend(holders(wish));
        while let Some(owner) = next.pop() {
            if owner == wish.owner() {
                return true;
            }
            if seen.insert(owner) {
                let waits = self.waits.get(&owner).into_iter().flatten();
                next.extend(waits.flat_map(|wait| holders(&wait.wish)));
            }
        }
        false
    }

    /// Inodes whose locks this session should give back, if it is time to say so.
    pub fn recalls(&mut self, now: Duration, session: SessionId) -> Vec<InodeId> {
        let of_session = (session, InodeId(0))..=(session, InodeId(u64::MAX));
        let mut due = Vec::new();
        for ((_, ino), recall) in self.recalls.range_mut(of_session) {
            let told = |told: Duration| now.saturating_sub(told) < RECALL_AGAIN;
            if !recall.told.is_some_and(told) {
                if recall.told.is_none() {
                    recall.since = now;
                }
                recall.told = Some(now);
                due.push(*ino);
            }
        }
        due
    }

    /// Sessions for which others have waited long enough to give locks back: at once for those that are silent, for the
    /// others as long as for a write lease. How long a caller has waited does not matter: most of that it may have waited
    /// for a lock, not for the session that has the delegation now.
    pub fn overdue(
        &self,
        tables: &dyn Tables,
        now: Duration,
        is_silent: &dyn Fn(SessionId) -> bool,
    ) -> BTreeSet<SessionId> {
        let recalls = self.recalls.iter().filter(|((session, ino), recall)| {
            let is_late = now.saturating_sub(recall.since) >= GIVE_BACK_MAX;
            recall.is_needed(now)
                && (is_late || is_silent(*session))
                && locks::delegate(tables, *ino) == Some(*session)
        });
        recalls.map(|((session, _), _)| *session).collect()
    }

    /// Whether somebody else than this owner waits for locks of an inode. Then these should be delegated to nobody: each
    /// time the others would have to wait until they are given back.
    pub fn has_others(&self, now: Duration, ino: InodeId, owner: (SessionId, LockOwner)) -> bool {
        self.waits.values().flatten().any(|wait| {
            let is_heard = now.saturating_sub(wait.heard) < HEARD_WITHIN;
            wait.wish.ino == ino && wait.wish.owner() != owner && is_heard
        })
    }

    /// Takes a command that was applied. Says whether somebody may have to wait no more.
    pub fn applied(&mut self, command: &Command) -> bool {
        match command {
            Command::Mutate {
                session,
                mutation: Mutation::ReturnLocks { ino, .. },
                ..
            } => {
                self.recalls.remove(&(*session, *ino));
                true
            }
            // A lock may take the place of one that excluded more.
            Command::Mutate { mutation, .. } => {
                matches!(mutation, Mutation::Lock { .. } | Mutation::Unlock { .. })
            }
            Command::Internal(internal) => matches!(
                internal,
                Internal::CloseSession { .. } | Internal::CloseEnded { .. }
            ),
        }
    }

    fn sweep(&mut self, now: Duration) {
        if now.saturating_sub(self.swept) < HEARD_WITHIN {
            return;
        }
        self.swept = now;
        let recent = |at: Duration| now.saturating_sub(at) < HEARD_WITHIN;
        self.waits.retain(|_, waits| {
            waits.retain(|wait| recent(wait.heard));
            !waits.is_empty()
        });
        self.count = self.waits.values().map(Vec::len).sum();
        self.recalls.retain(|_, recall| recall.is_needed(now));
    }
}

const _: () = assert!(LOCK_WAIT_ANSWER.as_millis() * 2 < HEARD_WITHIN.as_millis());

#[cfg(test)]
mod tests {
    use super::*;
    use lumeofs_base::Timestamp;
    use lumeofs_meta::locks::LockKind;
    use lumeofs_meta::namespace;
    use lumeofs_meta::op::{Batch, Caller, Outcome, Reply};
    use lumeofs_meta::tables::MemoryTables;

    const INO: InodeId = InodeId::ROOT;

    #[derive(Default)]
    struct World {
        tables: MemoryTables,
        waits: LockWaits,
        index: u64,
        sequences: BTreeMap<SessionId, u64>,
    }

    impl World {
        fn apply(&mut self, command: Command) -> Outcome {
            self.index += 1;
            self.waits.applied(&command);
            let batch = Batch {
                now: Timestamp::default(),
                groups: Vec::new(),
                commands: vec![command],
            };
            let applied = namespace::apply(&mut self.tables, self.index, &batch);
            applied.into_iter().next().unwrap().outcome
        }

        fn session(&mut self, nonce: u128) -> SessionId {
            let description = String::new();
            let open = Internal::OpenSession { nonce, description };
            match self.apply(Command::Internal(open)) {
                Ok(Reply::Session(session)) => session,
                other => panic!("{other:?}"),
            }
        }

        fn mutate(&mut self, session: SessionId, mutation: Mutation) -> Outcome {
            let sequence = self.sequences.entry(session).or_default();
            *sequence += 1;
            let sequence = *sequence;
            let caller = Caller::default();
            self.apply(Command::Mutate {
                session,
                sequence,
                acked_below: sequence,
                caller,
                mutation,
            })
        }

        fn lock(&mut self, session: SessionId, lock: Lock, delegated: bool) -> LockAnswer {
            let mutation = Mutation::Lock {
                ino: INO,
                lock,
                delegated,
            };
            match self.mutate(session, mutation) {
                Ok(Reply::Lock(answer)) => answer,
                other => panic!("{other:?}"),
            }
        }

        fn judge(&mut self, session: SessionId, lock: Lock, waited_ms: u64) -> LockVerdict {
            self.judge_at(100, &wish(session, lock, waited_ms))
        }

        fn judge_at(&mut self, secs: u64, wish: &LockWish) -> LockVerdict {
            let now = Duration::from_secs(secs);
            self.waits.judge(&self.tables, now, wish).unwrap()
        }

        fn overdue(&self, secs: u64, is_silent: bool) -> Vec<SessionId> {
            let now = Duration::from_secs(secs);
            let overdue = self.waits.overdue(&self.tables, now, &|_| is_silent);
            overdue.into_iter().collect()
        }
    }

    fn wish(session: SessionId, lock: Lock, waited_ms: u64) -> LockWish {
        LockWish {
            session,
            ino: INO,
            lock,
            waited: Duration::from_millis(waited_ms),
            just_to_know: false,
        }
    }

    fn lock(id: u64, space: LockSpace, byte: u64) -> Lock {
        Lock {
            owner: LockOwner { space, id },
            pid: 1,
            kind: LockKind::Exclusive,
            first: byte,
            last: byte,
        }
    }

    #[test]
    fn who_would_wait_for_himself_is_told_so() {
        let mut world = World::default();
        let (a, b) = (world.session(1), world.session(2));
        let range = |id, byte| lock(id, LockSpace::Range, byte);
        assert_eq!(world.lock(a, range(1, 0), false), LockAnswer::Done);
        assert_eq!(world.lock(b, range(1, 1), false), LockAnswer::Done);
        assert_eq!(world.lock(a, range(2, 2), false), LockAnswer::Done);
        assert_eq!(world.judge(a, range(1, 1), 0), LockVerdict::Wait);
        assert_eq!(world.judge(b, range(1, 2), 0), LockVerdict::Wait);
        // The third one would close the ring.
        assert_eq!(world.judge(a, range(2, 0), 0), LockVerdict::Deadlock);
        // It waits for nobody then, and neither does who gave up.
        world.waits.forget(&wish(b, range(1, 2), 0));
        assert_eq!(world.judge(a, range(2, 0), 0), LockVerdict::Wait);
    }

    #[test]
    fn who_has_given_up_is_not_entered_again_by_a_request_that_still_waits() {
        let mut world = World::default();
        let (a, b) = (world.session(1), world.session(2));
        let range = |id, byte| lock(id, LockSpace::Range, byte);
        assert_eq!(world.lock(a, range(1, 0), false), LockAnswer::Done);
        assert_eq!(world.lock(b, range(1, 1), false), LockAnswer::Done);
        let waits = wish(b, range(1, 0), 0);
        let again = |world: &mut World| {
            let now = Duration::from_secs(100);
            world.waits.judge_again(&world.tables, now, &waits)
        };
        assert_eq!(again(&mut world), Ok(None));
        assert_eq!(world.judge_at(100, &waits), LockVerdict::Wait);
        assert_eq!(again(&mut world), Ok(Some(LockVerdict::Wait)));
        world.waits.forget(&waits);
        assert_eq!(again(&mut world), Ok(None));
        // That would be a deadlock if the other one still waited.
        assert_eq!(world.judge(a, range(1, 1), 0), LockVerdict::Wait);
    }

    #[test]
    fn flock_is_not_looked_at_for_deadlocks() {
        let mut world = World::default();
        let (a, b) = (world.session(1), world.session(2));
        let file = |id, byte| lock(id, LockSpace::File, byte);
        assert_eq!(world.lock(a, file(1, 0), false), LockAnswer::Done);
        assert_eq!(world.lock(b, file(1, 1), false), LockAnswer::Done);
        assert_eq!(world.judge(a, file(1, 1), 0), LockVerdict::Wait);
        assert_eq!(world.judge(b, file(1, 0), 0), LockVerdict::Wait);
    }

    #[test]
    fn who_came_first_may_try_first() {
        let mut world = World::default();
        let (a, b) = (world.session(1), world.session(2));
        let range = |id| lock(id, LockSpace::Range, 0);
        assert_eq!(world.lock(a, range(1), false), LockAnswer::Done);
        assert_eq!(world.judge(b, range(2), 200), LockVerdict::Wait);
        assert_eq!(world.judge(b, range(3), 100), LockVerdict::Wait);
        let unlock = Mutation::Unlock {
            ino: INO,
            owner: range(1).owner,
            first: 0,
            last: u64::MAX,
        };
        assert_eq!(world.mutate(a, unlock), Ok(Reply::Done));
        assert_eq!(world.judge(b, range(3), 100), LockVerdict::Wait);
        assert_eq!(world.judge(b, range(2), 200), LockVerdict::Try);
        // It has gone to do so.
        assert_eq!(world.judge(b, range(3), 100), LockVerdict::Try);
    }

    #[test]
    fn delegated_locks_are_recalled_and_told_again_only_after_a_while() {
        let mut world = World::default();
        let (a, b) = (world.session(1), world.session(2));
        let range = |id| lock(id, LockSpace::Range, 0);
        assert_eq!(world.lock(a, range(1), true), LockAnswer::Delegated);
        assert_eq!(world.lock(a, range(2), true), LockAnswer::Delegated);
        assert_eq!(world.lock(b, range(1), true), LockAnswer::DelegatedTo(a));
        assert_eq!(world.judge(b, range(1), 0), LockVerdict::Recall(a));
        let at = Duration::from_millis;
        assert_eq!(world.waits.recalls(at(100_000), b), []);
        assert_eq!(world.waits.recalls(at(100_000), a), [INO]);
        assert_eq!(world.waits.recalls(at(100_100), a), []);
        assert_eq!(world.waits.recalls(at(100_600), a), [INO]);
        let locks = vec![range(1)];
        let give_back = Mutation::ReturnLocks { ino: INO, locks };
        assert_eq!(world.mutate(a, give_back), Ok(Reply::Done));
        assert_eq!(world.waits.recalls(at(105_000), a), []);
        assert_eq!(world.judge(b, range(1), 0), LockVerdict::Wait);
        let held = world.lock(b, range(1), true);
        assert!(matches!(held, LockAnswer::Held(held) if held.session == a));
        assert_eq!(namespace::check(&world.tables), Vec::<String>::new());
    }

    #[test]
    fn a_session_has_time_to_give_locks_back_from_when_it_is_told_on() {
        let mut world = World::default();
        let (a, b) = (world.session(1), world.session(2));
        let range = |id| lock(id, LockSpace::Range, 0);
        let limit = GIVE_BACK_MAX.as_secs();
        assert_eq!(world.lock(a, range(1), true), LockAnswer::Delegated);
        assert_eq!(world.overdue(100, true), []);
        // However long this caller has waited for others.
        let waits = wish(b, range(1), 10 * limit * 1000);
        assert_eq!(world.judge_at(100, &waits), LockVerdict::Recall(a));
        assert_eq!(world.overdue(100, false), []);
        assert_eq!(world.overdue(100, true), [a]);
        let told = 101;
        assert_eq!(world.waits.recalls(Duration::from_secs(told), a), [INO]);
        for at in told..told + limit {
            assert_eq!(world.judge_at(at, &waits), LockVerdict::Recall(a));
            world.waits.recalls(Duration::from_secs(at), a);
            assert_eq!(world.overdue(at, false), []);
        }
        let late = told + limit;
        assert_eq!(world.judge_at(late, &waits), LockVerdict::Recall(a));
        assert_eq!(world.overdue(late, false), [a]);
        // Who needs it after a time in which nobody did begins anew.
        let later = late + 2 * HEARD_WITHIN.as_secs();
        assert_eq!(world.overdue(later, true), []);
        assert_eq!(world.judge_at(later, &waits), LockVerdict::Recall(a));
        assert_eq!(world.overdue(later, false), []);
        let locks = Vec::new();
        let give_back = Mutation::ReturnLocks { ino: INO, locks };
        assert_eq!(world.mutate(a, give_back), Ok(Reply::Done));
        assert_eq!(world.overdue(later, true), []);
    }

    #[test]
    fn it_is_known_whether_others_wait_for_locks_of_an_inode() {
        let mut world = World::default();
        let (a, b) = (world.session(1), world.session(2));
        let range = |id| lock(id, LockSpace::Range, 0);
        let others = |world: &World, secs, session, id| {
            let (now, owner) = (Duration::from_secs(secs), (session, range(id).owner));
            world.waits.has_others(now, INO, owner)
        };
        assert_eq!(world.lock(a, range(1), false), LockAnswer::Done);
        assert_eq!(world.judge(b, range(2), 0), LockVerdict::Wait);
        assert!(others(&world, 100, a, 2) && others(&world, 100, b, 1));
        assert!(!others(&world, 100, b, 2) && !others(&world, 110, a, 2));
        world.waits.forget(&wish(b, range(2), 0));
        assert!(!others(&world, 100, a, 2));
    }
}
