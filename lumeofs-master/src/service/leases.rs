//! Leases of sessions (rules L1 to L7): drives the table of `lumeofs-lease`, which is soft state of the metadata leader.
//!
//! Answers are read, and changes applied, under the lock of the store; the table is asked inside it, so that each grant is
//! before or after each change. Whoever must wait for other sessions does so here, for at most [`WAIT_MAX`]: then its
//! client asks again. The lock of the store is taken before that of the table, that before the one of the open files.

mod asked;
mod counts;
mod polls;
mod wait;
mod watch;

use asked::shown_by_refusal;
pub(super) use asked::{Shown, named, shown, want};
pub(super) use wait::Waiting;
pub(super) use watch::watch_leases;

use super::opens::Opens;
use crate::done::{Consequences, Done};
use crate::raft::{Overlay, Term};
use counts::Counts;
use lumeofs_base::clock::{Clock as _, SystemClock};
use lumeofs_base::{Code, FsResult, InodeId, SessionId};
use lumeofs_lease::{Created, Generation, Grant, Table, Unheard, Want};
use lumeofs_meta::change::Applied;
use lumeofs_meta::namespace;
use lumeofs_meta::op::{Command, Internal, Listed, Mutation};
use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// How long a request is held for the sake of leases; shorter than clients wait for one answer.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// The table with those who wait for it.
pub(crate) struct Leases {
    table: Mutex<Table>,
    opens: Arc<Opens>,
    /// There may be something to tell sessions: their polls look.
    news: Notify,
    /// Sessions have been heard, or are not waited for any more: requests that wait look.
    settled: Notify,
    /// Sessions whose requests wait.
    waiting: Mutex<Vec<SessionId>>,
    counts: Counts,
}

/// What an answer comes with.
#[derive(Debug)]
pub(super) struct Granted {
    pub(super) generation: Generation,
    pub(super) grants: Vec<Grant>,
    /// Where the answer stands among grants, recalls and changes.
    pub(super) number: u64,
    /// What is told with leases only.
    pub(super) listed: Vec<Listed>,
}

impl Leases {
    /// Of a master that begins, and does not know what was changed just before.
    pub(crate) fn new(opens: Arc<Opens>) -> Self {
        let mut table = Table::default();
        table.note_anything(SystemClock.monotonic());
        Self {
            table: Mutex::new(table),
            opens,
            news: Notify::new(),
            settled: Notify::new(),
            waiting: Mutex::default(),
            counts: Counts::default(),
        }
    }

    /// The tables were replaced by those of another master: it is not known what has changed.
    pub(crate) fn replaced(&self) {
        self.table.lock().note_anything(SystemClock.monotonic());
    }

    /// The table of a leadership of this master, under which `tables` have all that was applied under former ones.
    /// Fails if another one has begun.
    fn of(&self, term: Term, tables: &Overlay) -> FsResult<MutexGuard<'_, Table>> {
        let mut table = self.table.lock();
        if table.term() < term.to_wire() {
            let now = SystemClock.monotonic();
            let holders = namespace::leaseholders(tables);
            table.lead(now, term.to_wire(), holders.iter().copied());
            for session in holders {
                if !namespace::has_session(tables, session) {
                    table.session_ended(session);
                }
            }
            self.news.notify_waiters();
            self.settled.notify_waiters();
        }
        self.still_of(term.to_wire(), table)
    }

    fn still_of<'a>(
        &self,
        term: u64,
        table: MutexGuard<'a, Table>,
    ) -> FsResult<MutexGuard<'a, Table>> {
        match table.term() == term {
            true => Ok(table),
            false => Err(Code::NotLeader(None).into()),
        }
    }

    /// Whether the table is that of a leadership already.
    pub(super) fn is_of(&self, term: Term) -> bool {
        self.table.lock().term() == term.to_wire()
    }

    /// Begins a leadership: as early as possible, since sessions are waited for from then on.
    pub(super) fn begin(&self, term: Term, tables: &Overlay) -> FsResult<()> {
        self.of(term, tables).map(drop)
    }

    /// Takes what was applied; `term` if that was proposed under a leadership of this master. To be called before
    /// anybody can see it.
    pub(crate) fn applied(
        &self,
        tables: &Overlay,
        term: Option<Term>,
        commands: &[Command],
        applied: Vec<Applied>,
    ) -> Vec<Done> {
        let now = SystemClock.monotonic();
        {
            let mut table = self.table.lock();
            for one in &applied {
                table.note(now, &one.changes);
            }
        }
        let table = term.and_then(|term| self.of(term, tables).ok());
        let Some(mut table) = table else {
            let nothing = |applied| Done {
                applied,
                leases: Consequences::default(),
            };
            return applied.into_iter().map(nothing).collect();
        };
        let before = table.unacknowledged();
        let commands = commands.iter().zip(applied);
        let done = commands
            .map(|(command, applied)| {
                let (leases, opened) = consequences(&mut table, tables, now, command, &applied);
                if let (
                    Some(term),
                    Command::Mutate {
                        session, mutation, ..
                    },
                ) = (term, command)
                {
                    self.opens.presume(term, *session, &opened);
                    // Only here: a request that is given up before leaves its command in the log.
                    table.change_over(
                        *session,
                        named(mutation).as_slice(),
                        &mutation.directories(),
                    );
                }
                Done { applied, leases }
            })
            .collect();
        if table.unacknowledged() > before {
            self.news.notify_waiters();
        }
        drop(table);
        self.settled.notify_waiters();
        done
    }

    /// Whether a session may be told now of what its query shows. `None`: not yet.
    pub(super) fn read(
        &self,
        term: Term,
        tables: &Overlay,
        session: SessionId,
        shown: &Shown,
        want: Want,
    ) -> FsResult<Option<Granted>> {
        let now = SystemClock.monotonic();
        let mut table = self.of(term, tables)?;
        let before = table.unacknowledged();
        let read = table.read(now, session, &shown.inodes, want);
        self.tell_if_more(&table, before);
        let Ok(mut grants) = read else {
            return Ok(None);
        };
        let chosen: Vec<_> = shown.listed.iter().map(|chosen| chosen.ino).collect();
        let offered = table.offer(now, session, want, &chosen);
        let told = offered.iter().map(|grant| grant.ino);
        let listed = namespace::listed(tables, &shown.listed, told);
        grants.extend(offered);
        Ok(Some(Granted {
            generation: table.generation(session).unwrap_or_default(),
            grants,
            number: table.number(),
            listed,
        }))
    }

    /// Whether a mutation that names these inodes, changes names in these directories and moves or removes those may be
    /// proposed now.
    pub(super) fn may_change(
        &self,
        term: Term,
        tables: &Overlay,
        session: SessionId,
        named: &[InodeId],
        directories: &[InodeId],
        moved: &[InodeId],
    ) -> FsResult<bool> {
        let now = SystemClock.monotonic();
        let mut table = self.of(term, tables)?;
        let before = table.unacknowledged();
        // What was made in them counts for what becomes of them.
        let may = table.nobody_ahead(now, session, moved);
        let may = may.and_then(|()| table.before_change(now, session, named, directories));
        self.tell_if_more(&table, before);
        Ok(may.is_ok())
    }

    /// There is something to tell a session: polls look.
    pub(super) fn wake_polls(&self) {
        self.news.notify_waiters();
    }

    /// Wakes polls if there are recalls that were not there before.
    fn tell_if_more(&self, table: &Table, before: usize) {
        if table.unacknowledged() > before {
            self.news.notify_waiters();
        }
    }

    /// Whether all have heard what a reply must not be earlier than.
    pub(super) fn is_settled(&self, after: &Consequences) -> FsResult<bool> {
        if after.term == 0 {
            return Err(Code::NotLeader(None).into());
        }
        let table = self.still_of(after.term, self.table.lock())?;
        Ok(table.is_heard(&after.awaits))
    }

    /// A mutation that [`Leases::may_change`] let pass will not be applied.
    pub(super) fn not_changed(
        &self,
        term: Term,
        session: SessionId,
        named: &[InodeId],
        directories: &[InodeId],
    ) {
        if let Ok(mut table) = self.still_of(term.to_wire(), self.table.lock()) {
            table.change_over(session, named, directories);
        }
        self.settled.notify_waiters();
    }

    /// Whether a session that has ended cannot answer from its memory any more.
    pub(super) fn may_be_closed(&self, term: Term, session: SessionId) -> bool {
        let table = self.still_of(term.to_wire(), self.table.lock());
        table.is_ok_and(|table| table.may_be_closed(SystemClock.monotonic(), session))
    }

    /// Sessions of which a new leadership has not heard yet.
    pub(super) fn awaited(&self) -> usize {
        self.table.lock().awaited()
    }

    /// Those of these orphans of which every session with a lease knows that they are.
    pub(super) fn without_unheard(&self, mut orphans: Vec<InodeId>) -> Vec<InodeId> {
        let table = self.table.lock();
        orphans.retain(|ino| !table.is_unheard(*ino));
        orphans
    }
}

/// Takes one command that was applied. Also returns inodes without a name that its session may have open.
fn consequences(
    table: &mut Table,
    tables: &Overlay,
    now: Duration,
    command: &Command,
    applied: &Applied,
) -> (Consequences, Vec<InodeId>) {
    let session = match command {
        Command::Mutate { session, .. } => *session,
        // Of nobody who would know of it otherwise.
        Command::Internal(_) => SessionId(0),
    };
    let created = Created::by(command, applied, tables);
    let changed = table.changed(now, session, &applied.changes, &created);
    if let Command::Internal(Internal::CloseSession { session } | Internal::CloseEnded { session }) =
        command
        && applied.outcome.is_ok()
    {
        table.session_closed(*session);
    }
    if let Command::Internal(Internal::EndSession { session }) = command {
        table.session_ended(*session);
    }
    let awaits = match command {
        Command::Mutate { mutation, .. } => {
            awaits(table, tables, mutation, applied, changed.unheard)
        }
        Command::Internal(_) => Unheard::default(),
    };
    let consequences = Consequences {
        term: table.term(),
        awaits,
        number: changed.number,
        generation: table.generation(session).unwrap_or_default(),
        grants: changed.grants,
    };
    (consequences, changed.opened)
}

/// What must be settled before a mutation may be answered: whatever it did, and what its reply shows of the doings of
/// others. An earlier outcome may show anything.
fn awaits(
    table: &Table,
    tables: &Overlay,
    mutation: &Mutation,
    applied: &Applied,
    unheard: Unheard,
) -> Unheard {
    if applied.repeated {
        return table.unheard();
    }
    // What a file without a name inherits shows the mode and ACLs of a directory that it does not change.
    let is_of_other = matches!(mutation, Mutation::CreateUnnamed { .. });
    match applied.changes.is_empty() || is_of_other {
        true => table.unheard_of(shown_by_refusal(tables, mutation)),
        false => unheard,
    }
}
