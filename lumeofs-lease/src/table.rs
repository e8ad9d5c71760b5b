//! The leader's side: who has which right, and what must be heard before a change may be seen.
//!
//! Soft state of one leadership. The driver calls [`Table::read`] in the same critical section in which it reads the
//! answer, and [`Table::changed`] in that in which it applies a change; so every grant is before or after every change, and
//! numbers order them. Whoever gets [`Blocked`] tries again after a poll, a change, the end of a session, or a tick.

mod change;
mod inode;
mod recalls;
mod room;
mod sessions;
mod window;

pub use change::{Changed, Created};
pub use recalls::Unheard;
pub use room::TableLimits;
pub use sessions::Heard;

use crate::wire::{Generation, Grant, Kind, Recall, What};
use crate::{CONTENTION, WRITER_ACTIVE};
use inode::{Lease, Leases};
use lumeofs_base::{FileKind, InodeId, SessionId};
use room::Tally;
use sessions::Standing;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;
use window::{Recent, Window};

/// How long queries wait for an instant without changes before they get one.
const READERS_WAIT: Duration = Duration::from_millis(100);

/// Something must happen first: recalls were made, or are not acknowledged yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocked;

/// What a session wants besides an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Nothing.
    Nothing,
    /// To cache what it is told.
    Shared,
    /// To cache what it is told, and to read the data of this inode.
    Data(InodeId),
    /// To write to this inode.
    Write(InodeId),
}

/// What the driver must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// End the session and shut it out at the datanodes: it has, or may have, a write lease and does not answer.
    End(SessionId),
    /// What the session has open is not known until it states that anew: nothing may be purged before.
    Restate(SessionId),
}

/// The leases of a metadata group.
#[derive(Debug, Default)]
pub struct Table {
    limits: TableLimits,
    /// The leadership; 0 before the first.
    term: u64,
    /// The last number given out: of grants, recalls and generations.
    last: u64,
    sessions: BTreeMap<SessionId, Standing>,
    /// Boxed, as most of a growing map is empty.
    inodes: HashMap<InodeId, Box<Leases>>,
    /// Those that were not acknowledged.
    recalls: BTreeMap<u64, Pending>,
    /// Those of them that tell what something is like now.
    telling: BTreeSet<u64>,
    window: Option<Window>,
    recent: Recent,
    tally: Tally,
    /// Inodes on which nobody had a lease any more, but lately a writer; some may have one again.
    emptied: VecDeque<InodeId>,
    /// How long recalls took that were acknowledged since somebody asked.
    took: Vec<(&'static str, Duration)>,
}

#[derive(Debug)]
struct Pending {
    session: SessionId,
    recall: Recall,
    made: Duration,
}

impl Table {
    /// Without any lease, and of no leadership.
    pub fn new(limits: TableLimits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    /// Whether a session may be told about `shown` now; with which rights then.
    ///
    /// # Errors
    /// [`Blocked`] while another one's unpublished writes would be missing, or while someone has not heard yet of what
    /// would be shown.
    pub fn read(
        &mut self,
        now: Duration,
        session: SessionId,
        shown: &[(InodeId, FileKind)],
        want: Want,
    ) -> Result<Vec<Grant>, Blocked> {
        self.check_window(now, session, shown, want)?;
        let mut blocked = false;
        for (ino, kind) in shown {
            let for_writing = want == Want::Write(*ino);
            blocked |= self.waits_to_hear(now, *ino);
            let other = self.ahead_of(now, session, *ino, *kind == FileKind::Directory);
            if let Some(other) = other {
                let what = if for_writing {
                    What::Drop
                } else {
                    What::Downgrade
                };
                self.recall_once(now, other, *ino, what);
                blocked = true;
                if *kind == FileKind::Directory {
                    self.is_contended(now, *ino);
                }
            }
        }
        if let Want::Write(ino) = want {
            blocked |= match self.gives_back(session, ino) {
                // Its query must not wait for others who were asked too: each may be part of a write that has to end first.
                true => !self.has_write_lease(session, ino),
                // Both: who asks in vain is active all the same.
                false => {
                    self.make_way(now, session, ino) | self.is_changed_by_another(session, ino)
                }
            };
        }
        if blocked {
            return Err(Blocked);
        }
        if want == Want::Nothing {
            return Ok(Vec::new());
        }
        let grants = shown.iter().filter_map(|(ino, kind)| {
            if self.gives_back(session, *ino) {
                // A grant would seem to be newer than the recall, and its acknowledgement end it.
                return None;
            }
            if *kind == FileKind::Regular && self.may_have_writer(session, *ino) {
                return None;
            }
            match want == Want::Write(*ino) && *kind == FileKind::Regular {
                true => self.grant_write(now, session, *ino),
                false => self.grant_shared(now, session, *ino),
            }
        });
        Ok(grants.collect())
    }

    /// Whether a mutation that names these inodes, and changes names in those directories, may be proposed. If so, nobody
    /// else gets an exclusive lease on any of them until [`Table::change_over`].
    ///
    /// # Errors
    /// [`Blocked`] while another session has unpublished writes to one of them, in the first time of a leadership, or
    /// while readers that changes have kept waiting have their turn.
    pub fn before_change(
        &mut self,
        now: Duration,
        session: SessionId,
        named: &[InodeId],
        directories: &[InodeId],
    ) -> Result<(), Blocked> {
        let mut blocked = !self.may_change(now);
        for ino in named.iter().chain(directories) {
            let leases = self.inodes.get(ino);
            blocked |= leases.is_some_and(|leases| leases.readers_turn(now));
        }
        for (inodes, are_directories) in [(named, false), (directories, true)] {
            for ino in inodes {
                blocked |= self.is_ahead_elsewhere(now, session, *ino, are_directories);
            }
        }
        for ino in directories {
            self.changes_names(now, session, *ino);
        }
        if blocked {
            return Err(Blocked);
        }
        for ino in named.iter().chain(directories) {
            let leases = self.inodes.entry(*ino).or_default();
            leases.changers.push(session);
        }
        Ok(())
    }

    /// Whether no other session may be ahead of the leader in these directories.
    ///
    /// # Errors
    /// [`Blocked`] until those that may be have given their leases back.
    pub fn nobody_ahead(
        &mut self,
        now: Duration,
        session: SessionId,
        directories: &[InodeId],
    ) -> Result<(), Blocked> {
        let mut blocked = false;
        for ino in directories {
            blocked |= self.is_ahead_elsewhere(now, session, *ino, true);
        }
        match blocked {
            true => Err(Blocked),
            false => Ok(()),
        }
    }

    /// Recalls the exclusive lease of another session, if there is one. Says so.
    fn is_ahead_elsewhere(
        &mut self,
        now: Duration,
        session: SessionId,
        ino: InodeId,
        is_directory: bool,
    ) -> bool {
        let other = self.ahead_of(now, session, ino, is_directory);
        if let Some(other) = other {
            self.recall_once(now, other, ino, What::Downgrade);
        }
        other.is_some()
    }

    /// Which other session may be ahead in an inode. In a directory nobody is who has ended and whose term is over: what it
    /// had made there is lost, whatever it may still write to files.
    fn ahead_of(
        &self,
        now: Duration,
        session: SessionId,
        ino: InodeId,
        is_directory: bool,
    ) -> Option<SessionId> {
        let other = self.inodes.get(&ino)?.exclusive_of_another(session)?;
        let has_ended = |standing: &Standing| standing.has_ended;
        let is_gone = is_directory
            && self.sessions.get(&other).is_none_or(has_ended)
            && self.may_be_closed(now, other);
        (!is_gone).then_some(other)
    }

    /// A mutation that [`Table::before_change`] let pass was applied, or will not be. Once for each.
    pub fn change_over(&mut self, session: SessionId, named: &[InodeId], directories: &[InodeId]) {
        for ino in named.iter().chain(directories) {
            let Some(leases) = self.inodes.get_mut(ino) else {
                continue;
            };
            if let Some(at) = leases.changers.iter().position(|other| *other == session) {
                leases.changers.swap_remove(at);
            }
            self.tidy(*ino);
        }
    }

    /// Somebody else needs what a directory's exclusive lease keeps in memory: for a while nobody gets one.
    fn is_contended(&mut self, now: Duration, ino: InodeId) {
        if let Some(leases) = self.inodes.get_mut(&ino) {
            leases.contended_until = now + WRITER_ACTIVE;
        }
    }

    /// A session changes names in a directory.
    fn changes_names(&mut self, now: Duration, session: SessionId, ino: InodeId) {
        let leases = self.inodes.entry(ino).or_default();
        if let Some((writer, asked)) = leases.writer
            && writer != session
            && now < asked + CONTENTION
        {
            leases.contended_until = now + WRITER_ACTIVE;
        }
        leases.writer = Some((session, now));
    }

    fn is_changed_by_another(&self, session: SessionId, ino: InodeId) -> bool {
        let changers = self.inodes.get(&ino).map(|leases| &leases.changers);
        let mut changers = changers.into_iter().flatten();
        changers.any(|changer| *changer != session)
    }

    /// Whether a query of an inode must wait until all have heard what it is like. Then changes of it make a pause
    /// sometime.
    fn waits_to_hear(&mut self, now: Duration, ino: InodeId) -> bool {
        let is_unheard = self.is_unheard(ino);
        if let Some(leases) = self.inodes.get_mut(&ino) {
            let since = leases
                .readers
                .filter(|(_, asked)| now < *asked + CONTENTION)
                .map_or(now, |(since, _)| since);
            leases.readers = is_unheard.then_some((since, now));
        }
        is_unheard
    }

    /// Whether a session has been asked for its lease.
    fn gives_back(&self, session: SessionId, ino: InodeId) -> bool {
        let leases = self.inodes.get(&ino);
        leases.is_some_and(|leases| leases.taking_of(session).next().is_some())
    }

    /// Recalls what stands in the way of a writer. Says whether there was something.
    fn make_way(&mut self, now: Duration, session: SessionId, ino: InodeId) -> bool {
        let Some(leases) = self.inodes.get_mut(&ino) else {
            return false;
        };
        if let Some((writer, asked)) = leases.writer
            && writer != session
            && now < asked + CONTENTION
        {
            leases.contended_until = now + WRITER_ACTIVE;
        }
        leases.writer = Some((session, now));
        let stale = |lease: &Lease| match lease.kind {
            Kind::Shared => true,
            Kind::Through => now >= lease.asked + WRITER_ACTIVE,
            // Recalled by the caller.
            Kind::Exclusive => false,
        };
        let others: Vec<SessionId> = leases
            .held
            .iter()
            .filter(|lease| lease.session != session && stale(lease))
            .map(|lease| lease.session)
            .collect();
        for other in &others {
            self.recall_once(now, *other, ino, What::Drop);
        }
        !others.is_empty()
    }

    /// A right to write, where nothing stands in the way of it.
    fn grant_write(&mut self, now: Duration, session: SessionId, ino: InodeId) -> Option<Grant> {
        if !self.takes_part(session) {
            return None;
        }
        // Whoever asserted that it writes through may not have been alone, and the other be of those who did not speak.
        let may_have_others = self.window.is_some();
        let leases = self.inodes.entry(ino).or_default();
        let others = leases.held.iter().any(|lease| lease.session != session);
        if others {
            leases.contended_until = now + WRITER_ACTIVE;
        }
        let shared = others || may_have_others || now < leases.contended_until;
        let kind = match leases.of(session).map(|own| own.kind) {
            // Nobody else asked meanwhile, or it would be gone.
            Some(Kind::Exclusive) => Kind::Exclusive,
            // Until the grant arrives its holder answers from memory: it must not lose what it relies on.
            Some(Kind::Shared) => Kind::Exclusive,
            Some(Kind::Through) | None if shared => Kind::Through,
            Some(Kind::Through) | None => Kind::Exclusive,
        };
        leases.writer = Some((session, now));
        Some(self.enter(now, session, ino, kind))
    }

    /// A right to cache, if there is room and nobody writes through.
    fn grant_shared(&mut self, now: Duration, session: SessionId, ino: InodeId) -> Option<Grant> {
        if !self.takes_part(session) {
            return None;
        }
        let mut has_through = Vec::new();
        if let Some(leases) = self.inodes.get(&ino) {
            if let Some(own) = leases.of(session) {
                let kind = own.kind;
                // Who writes through keeps nothing, and reading does not make it a writer for longer.
                return (kind != Kind::Through).then(|| self.enter(now, session, ino, kind));
            }
            let drops = |id: &u64| self.recalls[id].recall.what == What::Drop;
            if leases.taking.iter().any(|(_, id)| drops(id)) {
                // A writer waits: readers that come meanwhile must not hold it up for ever.
                return None;
            }
            for lease in &leases.held {
                if lease.kind == Kind::Through {
                    has_through.push((lease.session, now >= lease.asked + WRITER_ACTIVE));
                }
            }
        }
        if !has_through.is_empty() {
            for (writer, is_idle) in has_through {
                if is_idle {
                    self.recall_once(now, writer, ino, What::Drop);
                }
            }
            return None;
        }
        self.has_room(session)
            .then(|| self.enter(now, session, ino, Kind::Shared))
    }

    /// Rights to cache what can come with an answer and was not asked for itself, as far as nothing stands in the way of
    /// telling it. Nobody is recalled for its sake. To be called when [`Table::read`] let the answer pass.
    pub fn offer(
        &mut self,
        now: Duration,
        session: SessionId,
        want: Want,
        inodes: &[InodeId],
    ) -> Vec<Grant> {
        if want == Want::Nothing {
            return Vec::new();
        }
        let inodes = inodes.iter();
        inodes
            .filter_map(|ino| self.offer_one(now, session, *ino))
            .collect()
    }

    fn offer_one(&mut self, now: Duration, session: SessionId, ino: InodeId) -> Option<Grant> {
        let is_quiet = self.inodes.get(&ino).is_none_or(|leases| {
            let is_in_the_way = |lease: &Lease| lease.kind != Kind::Shared;
            leases.telling.is_empty()
                && leases.taking.is_empty()
                && !leases.held.iter().any(is_in_the_way)
        });
        let may = is_quiet && self.window.is_none();
        (may && self.takes_part(session) && self.has_room(session))
            .then(|| self.enter(now, session, ino, Kind::Shared))
    }

    /// Enters a right, in place of what the session has on the inode.
    fn enter(&mut self, now: Duration, session: SessionId, ino: InodeId, kind: Kind) -> Grant {
        self.last += 1;
        self.enter_as(now, session, (ino, kind), self.last)
    }

    fn enter_as(
        &mut self,
        now: Duration,
        session: SessionId,
        (ino, kind): (InodeId, Kind),
        number: u64,
    ) -> Grant {
        let lease = Lease {
            session,
            kind,
            number,
            asked: now,
        };
        let leases = self.inodes.entry(ino).or_default();
        match leases.held.iter_mut().find(|own| own.session == session) {
            Some(own) => self.tally.take(std::mem::replace(own, lease).kind),
            None => {
                if leases.held.is_empty() {
                    // Mostly it stays the only one.
                    leases.held.reserve_exact(1);
                }
                leases.held.push(lease);
                if let Some(standing) = self.sessions.get_mut(&session) {
                    standing.inodes.insert(ino);
                }
            }
        }
        self.tally.add(kind);
        self.has_grown();
        Grant { ino, kind, number }
    }

    /// Takes a right away.
    fn remove(&mut self, session: SessionId, ino: InodeId) {
        if let Some(leases) = self.inodes.get_mut(&ino)
            && let Some(at) = leases.held.iter().position(|own| own.session == session)
        {
            self.tally.take(leases.held.remove(at).kind);
        }
        if let Some(standing) = self.sessions.get_mut(&session) {
            standing.inodes.remove(&ino);
        }
        self.tidy(ino);
    }

    /// Forgets an inode on which nobody has anything, at once or later.
    fn tidy(&mut self, ino: InodeId) {
        let Some(leases) = self.inodes.get(&ino) else {
            return;
        };
        if leases.is_unused(Duration::ZERO) {
            self.inodes.remove(&ino);
        } else if leases.is_unused(Duration::MAX) {
            self.emptied.push_back(ino);
        }
    }

    /// The generation of a session, if its leases count.
    pub fn generation(&self, session: SessionId) -> Option<Generation> {
        let standing = self.sessions.get(&session)?;
        standing.takes_part.then_some(standing.generation)
    }

    fn takes_part(&self, session: SessionId) -> bool {
        self.generation(session).is_some()
    }

    /// The last number given out: for answers to queries, read after [`Table::read`] in the same critical section.
    pub fn number(&self) -> u64 {
        self.last
    }

    /// Recalls that were not acknowledged.
    pub fn unacknowledged(&self) -> usize {
        self.recalls.len()
    }

    /// Sessions that others may be waiting for.
    pub fn debtors(&self) -> BTreeSet<SessionId> {
        let sessions = self.sessions.iter();
        let owing = sessions.filter(|(_, standing)| !standing.recalls.is_empty());
        let owing = owing.map(|(session, _)| *session);
        let awaited = self.window.iter().flat_map(Window::awaited);
        owing.chain(awaited).collect()
    }

    /// How long recalls took that were acknowledged since the last call, with what they were about: one of
    /// [`What::NAMES`].
    pub fn take_durations(&mut self) -> Vec<(&'static str, Duration)> {
        std::mem::take(&mut self.took)
    }
}
