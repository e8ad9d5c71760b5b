//! The metadata group: one log, three masters that apply it, and the driver of the leader's table.

mod elections;
mod polls;

use crate::bugs::Bug;
use crate::calls::{Ask, From, Tell};
use crate::history::caller;
use crate::queries;
use crate::world::{Event, World};
use lumeofs_base::{GroupId, InodeId, SessionId};
use lumeofs_lease::{Created, Effect, Table, TableLimits, Unheard, Want};
use lumeofs_meta::change::Applied;
use lumeofs_meta::namespace;
use lumeofs_meta::op::{Batch, Command, Internal, Mutation, Outcome, Query, Reply};
use lumeofs_meta::tables::MemoryTables;
use polls::Held;
use std::collections::VecDeque;

pub(crate) const MASTERS: usize = 3;

#[derive(Default)]
pub(crate) struct Group {
    pub(crate) log: Vec<Batch>,
    pub(crate) leader: Option<usize>,
    pub(crate) term: u64,
    pub(crate) pending: VecDeque<Proposal>,
    next_proposal: u64,
    /// What all masters will have applied.
    pub(crate) tables: MemoryTables,
}

pub(crate) struct Proposal {
    id: u64,
    command: Command,
    touched: Touched,
    from: Option<From>,
}

#[derive(Default)]
pub(crate) struct Master {
    pub(crate) tables: MemoryTables,
    applied: usize,
    pub(crate) table: Table,
    pub(crate) waiting: Vec<Waiting>,
    held: Vec<Held>,
}

impl Master {
    pub(crate) fn new(limits: TableLimits) -> Self {
        Self {
            table: Table::new(limits),
            ..Self::default()
        }
    }
}

/// A request that cannot be answered yet.
#[derive(Debug)]
pub(crate) enum Waiting {
    Query {
        from: From,
        session: SessionId,
        query: Query,
        want: Want,
        early: Option<Outcome>,
    },
    Mutation {
        from: From,
        session: SessionId,
        command: Command,
    },
    Reply {
        from: From,
        unheard: Unheard,
        tell: Tell,
    },
}

/// What a mutation is about.
#[derive(Clone, Debug, Default)]
pub(crate) struct Touched {
    /// Inodes that it names.
    named: Vec<InodeId>,
    /// Directories in which it changes names.
    directories: Vec<InodeId>,
}

impl Touched {
    fn by(mutation: &Mutation) -> Self {
        let named = match mutation {
            Mutation::SetAttr { ino, .. }
            | Mutation::SetXattr { ino, .. }
            | Mutation::Link { ino, .. }
            | Mutation::Flush { ino, .. } => vec![*ino],
            _ => Vec::new(),
        };
        let directories = mutation.directories();
        Self { named, directories }
    }
}

impl World {
    pub(crate) fn on_ask(&mut self, at: usize, from: From, ask: Ask) {
        if self.group.leader != Some(at) {
            return self.tell(from, Tell::NotLeader);
        }
        let session_of = |ask: &Ask| match ask {
            Ask::Query { session, .. }
            | Ask::Mutate { session, .. }
            | Ask::Poll { session, .. } => Some(*session),
            _ => None,
        };
        if let Some(session) = session_of(&ask)
            && !namespace::has_session(&self.masters[at].tables, session)
        {
            return self.tell(from, Tell::Expired);
        }
        match ask {
            Ask::Open { nonce } => {
                let description = String::new();
                let open = Internal::OpenSession { nonce, description };
                self.propose(Command::Internal(open), Touched::default(), Some(from));
            }
            Ask::Query {
                session,
                query,
                want,
            } => {
                let early = (self.bug == Some(Bug::GrantAfterReading))
                    .then(|| namespace::query(&self.masters[at].tables, &caller(), &query));
                self.masters[at].waiting.push(Waiting::Query {
                    from,
                    session,
                    query,
                    want,
                    early,
                });
            }
            Ask::Mutate {
                session,
                sequence,
                acked_below,
                mutation,
            } => self.masters[at].waiting.push(Waiting::Mutation {
                from,
                session,
                command: Command::Mutate {
                    session,
                    sequence,
                    acked_below,
                    caller: caller(),
                    mutation,
                },
            }),
            Ask::Poll { .. } => {
                let received = self.master_clock(at);
                let term = self.group.term;
                let late = if self.rng.percent(2) { 300_000 } else { 2_000 };
                let event = Event::Confirm {
                    at,
                    term,
                    received,
                    from,
                    ask,
                };
                self.after(10, late, event);
            }
            Ask::Read { .. } | Ask::Write { .. } => panic!("that is for a datanode"),
        }
        self.pump(at);
    }

    /// Tries again what waits.
    pub(crate) fn pump(&mut self, at: usize) {
        let is_leader = self.group.leader == Some(at);
        if is_leader {
            self.give_up_times_of_ended(at);
        }
        for waiting in std::mem::take(&mut self.masters[at].waiting) {
            if let Some(waiting) = self.try_again(at, is_leader, waiting) {
                self.masters[at].waiting.push(waiting);
            }
        }
        if is_leader {
            self.answer_held(at);
        }
    }

    /// What sessions that have ended did not publish is lost when nobody can be shown it any more.
    fn give_up_times_of_ended(&mut self, at: usize) {
        let now = self.master_clock(at);
        let master = &self.masters[at];
        for (session, _) in namespace::ending_sessions(&master.tables) {
            if master.table.may_be_closed(now, session) {
                self.history.publishes_no_more(session);
            }
        }
    }

    fn try_again(&mut self, at: usize, is_leader: bool, waiting: Waiting) -> Option<Waiting> {
        let now = self.master_clock(at);
        let skips_readers = self.bug == Some(Bug::WritersNotAsked);
        let master = &mut self.masters[at];
        match waiting {
            Waiting::Reply {
                unheard,
                from,
                tell,
            } => {
                let ignored = self.bug == Some(Bug::RecallsNotAwaited);
                if ignored || master.table.is_heard(&unheard) {
                    self.tell(from, tell);
                    return None;
                }
                Some(Waiting::Reply {
                    from,
                    unheard,
                    tell,
                })
            }
            Waiting::Query { from, .. } | Waiting::Mutation { from, .. } if !is_leader => {
                self.tell(from, Tell::NotLeader);
                None
            }
            Waiting::Query {
                from,
                session,
                ref query,
                want,
                ref early,
            } => {
                if !namespace::has_session(&master.tables, session) {
                    self.tell(from, Tell::Expired);
                    return None;
                }
                let mut outcome = match early {
                    Some(outcome) => outcome.clone(),
                    None => namespace::query(&master.tables, &caller(), query),
                };
                let mut shown = queries::shown(&master.tables, query, &outcome);
                if skips_readers && want != Want::Nothing && !matches!(want, Want::Write(_)) {
                    shown.retain(|(_, kind)| *kind != lumeofs_base::FileKind::Regular);
                }
                let Ok(mut grants) = master.table.read(now, session, &shown, want) else {
                    self.counts.blocked += 1;
                    return Some(waiting);
                };
                if let Ok(Reply::Entries {
                    entries, inodes, ..
                }) = &mut outcome
                {
                    let tables = &master.tables;
                    let chosen = namespace::to_list(tables, &caller(), entries, query.inodes_max());
                    let listed: Vec<_> = chosen.iter().map(|chosen| chosen.ino).collect();
                    let offered = master.table.offer(now, session, want, &listed);
                    let told = offered.iter().map(|grant| grant.ino);
                    *inodes = namespace::listed(tables, &chosen, told);
                    self.counts.offered += offered.len();
                    grants.extend(offered);
                }
                let generation = master.table.generation(session).unwrap_or_default();
                let query = query.clone();
                let number = master.table.number();
                let tell = Tell::Answer {
                    query,
                    outcome,
                    generation,
                    number,
                    grants,
                };
                self.tell(from, tell);
                None
            }
            Waiting::Mutation {
                from,
                session,
                ref command,
            } => {
                if !namespace::has_session(&master.tables, session) {
                    self.tell(from, Tell::Expired);
                    return None;
                }
                let Command::Mutate { mutation, .. } = command else {
                    panic!("{command:?} is no mutation");
                };
                let moved = match self.bug {
                    Some(Bug::MovedNotAsked) => Vec::new(),
                    _ => mutation.moved_directories(&master.tables),
                };
                let touched = Touched::by(mutation);
                let (named, directories) = (&touched.named, &touched.directories);
                let table = &mut master.table;
                let may = table.nobody_ahead(now, session, &moved);
                let may = may.and_then(|()| table.before_change(now, session, named, directories));
                if may.is_err() {
                    return Some(waiting);
                }
                let command = command.clone();
                if self.rng.percent(80) {
                    self.propose(command, touched, Some(from));
                    return None;
                }
                // Others may be proposed sooner.
                let propose = Event::Propose {
                    term: self.group.term,
                    command,
                    touched,
                    from,
                };
                self.after(10, 3_000, propose);
                None
            }
        }
    }

    pub(crate) fn on_propose(&mut self, term: u64, command: Command, touched: Touched, from: From) {
        match self.group.leader.is_some() && self.group.term == term {
            true => self.propose(command, touched, Some(from)),
            false => self.tell(from, Tell::NotLeader),
        }
    }

    pub(crate) fn propose(&mut self, command: Command, touched: Touched, from: Option<From>) {
        self.group.next_proposal += 1;
        let id = self.group.next_proposal;
        self.group.pending.push_back(Proposal {
            id,
            command,
            touched,
            from,
        });
        let late = if self.rng.percent(3) { 300_000 } else { 6_000 };
        let term = self.group.term;
        self.after(500, late, Event::Commit { term, proposal: id });
    }

    pub(crate) fn on_commit(&mut self, term: u64, id: u64) {
        let Some(leader) = self.group.leader.filter(|_| self.group.term == term) else {
            return;
        };
        while self
            .group
            .pending
            .front()
            .is_some_and(|first| first.id <= id)
        {
            let proposal = self.group.pending.pop_front().expect("just seen");
            self.commit(&proposal.command);
            let applied = self.apply_next(leader);
            self.applied_by_leader(leader, proposal, applied);
        }
        self.pump(leader);
    }

    /// Puts a command into the log for good.
    fn commit(&mut self, command: &Command) -> Applied {
        let batch = Batch {
            now: self.unique_time(),
            groups: vec![GroupId(1)],
            commands: vec![command.clone()],
        };
        let index = self.group.log.len() as u64 + 1;
        let applied = namespace::apply(&mut self.group.tables, index, &batch).remove(0);
        self.group.log.push(batch);
        let by = match command {
            Command::Mutate {
                session, sequence, ..
            } if !applied.repeated => Some((*session, *sequence)),
            _ => None,
        };
        self.trace(|| format!("{index}: {command:?} -> {:?}", applied.changes));
        self.history
            .applied(&self.group.tables, by, &applied.changes);
        for change in &applied.changes {
            if let lumeofs_meta::change::Change::Attr(attr) = change {
                self.inodes.insert(attr.ino, attr.kind);
            }
        }
        for at in 0..MASTERS {
            let up_to = self.group.log.len();
            self.after(1_000, 200_000, Event::Apply { at, up_to });
        }
        applied
    }

    fn apply_next(&mut self, at: usize) -> Applied {
        let now = self.master_clock(at);
        let master = &mut self.masters[at];
        let batch = &self.group.log[master.applied];
        master.applied += 1;
        let applied = namespace::apply(&mut master.tables, master.applied as u64, batch).remove(0);
        master.table.note(now, &applied.changes);
        applied
    }

    pub(crate) fn on_apply(&mut self, at: usize, up_to: usize) {
        while self.masters[at].applied < up_to {
            self.apply_next(at);
        }
    }

    fn applied_by_leader(&mut self, at: usize, proposal: Proposal, applied: Applied) {
        let now = self.master_clock(at);
        let master = &mut self.masters[at];
        let table = &mut master.table;
        match &proposal.command {
            Command::Mutate { session, .. } => {
                let created = Created::by(&proposal.command, &applied, &master.tables);
                let before = table.unacknowledged();
                let changed = table.changed(now, *session, &applied.changes, &created);
                self.counts.recalls += table.unacknowledged() - before;
                let touched = &proposal.touched;
                table.change_over(*session, &touched.named, &touched.directories);
                let unheard = match applied.repeated {
                    true => table.unheard(),
                    false => changed.unheard,
                };
                let generation = table.generation(*session).unwrap_or_default();
                let is_expired = matches!(&applied.outcome, Err(error)
                    if error.code == lumeofs_base::Code::SessionExpired);
                let tell = match is_expired {
                    true => Tell::Expired,
                    false => Tell::Done {
                        outcome: applied.outcome,
                        generation,
                        number: changed.number,
                        changes: applied.changes,
                        grants: changed.grants,
                        repeated: applied.repeated,
                    },
                };
                if let Some(from) = proposal.from {
                    self.masters[at].waiting.push(Waiting::Reply {
                        from,
                        unheard,
                        tell,
                    });
                }
            }
            Command::Internal(Internal::OpenSession { .. }) => {
                if let (Some(from), Ok(Reply::Session(session))) = (proposal.from, applied.outcome)
                {
                    self.tell(from, Tell::Opened(session));
                }
            }
            Command::Internal(Internal::EndSession { session }) => {
                table.session_ended(*session);
                self.counts.ended += 1;
                self.fence_soon(*session);
            }
            Command::Internal(Internal::CloseEnded { session }) => table.session_closed(*session),
            Command::Internal(_) => {}
        }
    }

    fn fence_soon(&mut self, session: SessionId) {
        if self.fencing.insert(session) {
            self.after(20_000, 800_000, Event::Fence(session));
        }
    }

    pub(crate) fn on_fence(&mut self, session: SessionId) {
        if self.bug != Some(Bug::NoFence) {
            self.data.fence(session);
        }
        self.history.fenced(session);
        if let Some(leader) = self.group.leader {
            let now = self.master_clock(leader);
            let may_be = self.masters[leader].table.may_be_closed(now, session);
            if may_be {
                self.history.publishes_no_more(session);
            }
            if may_be || self.bug == Some(Bug::TermOfEndedNotAwaited) {
                let close = Internal::CloseEnded { session };
                self.propose(Command::Internal(close), Touched::default(), None);
            }
        }
        // Its term may not be over, and the leader may change before it is closed.
        self.fencing.remove(&session);
    }

    pub(crate) fn on_tick(&mut self, at: usize) {
        let now = self.master_clock(at);
        let effects = self.masters[at].table.tick(now);
        self.after(100_000, 100_001, Event::Tick(at));
        if self.group.leader == Some(at) {
            for effect in effects {
                self.trace(|| format!("master {at}: {effect:?}"));
                if let Effect::End(session) = effect {
                    let end = Internal::EndSession { session };
                    self.propose(Command::Internal(end), Touched::default(), None);
                }
            }
            for (session, _) in namespace::ending_sessions(&self.masters[at].tables) {
                self.fence_soon(session);
            }
        }
        self.pump(at);
    }
}
