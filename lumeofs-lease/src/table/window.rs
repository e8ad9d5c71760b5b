//! The first time of a leadership, in which it is not known who has which lease: rule L6.

use super::{Blocked, Effect, Table, Want};
use crate::{CONTENTION, TERM};
use lumeofs_base::{FileKind, InodeId, SessionId};
use lumeofs_meta::change::Change;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

/// Inodes whose last change is remembered.
const RECENT_MAX: usize = 65_536;
/// How long: what was applied earlier has been heard by everyone, or the former leader has waited their terms out.
const RECENT: Duration = Duration::from_secs(TERM.as_secs() + 1);
/// How many unused entries one tick looks at, if there are so many.
const SWEEP_MIN: usize = 1024;

/// Sessions of which this leadership has not heard.
#[derive(Debug)]
pub(super) struct Window {
    /// Until then they may rely on leases of the former leadership.
    until: Duration,
    awaited: BTreeSet<SessionId>,
    /// Those that have ended since, or before, and are not shut out at the datanodes yet: what they wrote under a lease
    /// of which nothing is known may still arrive there.
    ended: BTreeSet<SessionId>,
    /// When the driver was told to end them.
    end_asked: Option<Duration>,
    /// What had changed shortly before this leadership.
    since: Duration,
}

impl Window {
    pub(super) fn awaited(&self) -> impl Iterator<Item = SessionId> {
        self.awaited.iter().chain(&self.ended).copied()
    }

    /// Whether all have spoken or have ended, and nobody relies on leases of the former leadership.
    fn is_over_for_names(&self, now: Duration) -> bool {
        self.awaited.is_empty() && now >= self.until
    }
}

/// When inodes changed last, as this master applied it: of a leader and of those who may become one.
#[derive(Debug, Default)]
pub(super) struct Recent {
    at: HashMap<InodeId, Duration>,
    order: VecDeque<(Duration, InodeId)>,
    /// Up to then anything may have changed; `None` while nothing was noted at all.
    anything_until: Option<Duration>,
}

impl Recent {
    fn begin(&mut self, now: Duration) {
        self.anything_until.get_or_insert(now);
    }

    fn note(&mut self, now: Duration, ino: InodeId) {
        if self.at.insert(ino, now) != Some(now) {
            self.order.push_back((now, ino));
        }
        while let Some((at, ino)) = self.order.front().copied() {
            let is_old = now >= at + RECENT;
            if !is_old && self.order.len() <= RECENT_MAX {
                break;
            }
            self.order.pop_front();
            if self.at.get(&ino) == Some(&at) {
                self.at.remove(&ino);
                if !is_old {
                    self.note_anything(at);
                }
            }
        }
    }

    fn note_anything(&mut self, now: Duration) {
        self.anything_until = self.anything_until.max(Some(now));
    }

    fn has(&self, ino: InodeId, since: Duration) -> bool {
        let changed = self.at.get(&ino).copied();
        changed
            .max(self.anything_until)
            .is_some_and(|at| at >= since)
    }
}

impl Table {
    /// Begins a leadership, once everything of the former ones is applied here. `live`: the sessions that
    /// may have leases and are not closed.
    pub fn lead(&mut self, now: Duration, term: u64, live: impl IntoIterator<Item = SessionId>) {
        let mut recent = std::mem::take(&mut self.recent);
        recent.begin(now);
        let awaited: BTreeSet<SessionId> = live.into_iter().collect();
        let window = Window {
            until: now + TERM,
            awaited,
            ended: BTreeSet::new(),
            end_asked: None,
            since: now.saturating_sub(RECENT),
        };
        *self = Self {
            limits: self.limits,
            term,
            recent,
            window: (!window.awaited.is_empty()).then_some(window),
            ..Self::default()
        };
    }

    /// The leadership that the table is of; 0 before the first.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Notes what was applied here, under whichever leadership. To be called with nothing at the start of a master, which
    /// does not know what it applied shortly before.
    pub fn note(&mut self, now: Duration, changes: &[Change]) {
        self.recent.begin(now);
        for change in changes {
            self.recent.note(now, change.ino());
        }
    }

    /// Notes that anything may have changed: this master has taken up what others had applied, or has begun.
    pub fn note_anything(&mut self, now: Duration) {
        self.recent.note_anything(now);
    }

    /// Sessions of which nothing has been heard since the leadership began.
    pub fn awaited(&self) -> usize {
        self.window
            .as_ref()
            .map_or(0, |window| window.awaited.len())
    }

    /// A session has said what it has, or is no more.
    pub(super) fn spoken(&mut self, session: SessionId) {
        if let Some(window) = &mut self.window {
            window.awaited.remove(&session);
            window.ended.remove(&session);
            if window.awaited.is_empty() && window.ended.is_empty() {
                self.window = None;
            }
        }
    }

    /// Whether a session may rely on leases of a former leadership.
    pub(super) fn relies_on_former(&self, now: Duration, session: SessionId) -> bool {
        let window = self.window.as_ref();
        window.is_some_and(|window| {
            now < window.until && window.awaited().any(|awaited| awaited == session)
        })
    }

    /// A session has ended: it changes and publishes nothing any more. [`Table::session_closed`] follows when its term is
    /// over and it is shut out at the datanodes.
    pub fn session_ended(&mut self, session: SessionId) {
        if let Some(standing) = self.sessions.get_mut(&session) {
            standing.has_ended = true;
        }
        if let Some(window) = &mut self.window
            && window.awaited.remove(&session)
        {
            window.ended.insert(session);
        }
    }

    /// Whether anything may be changed.
    pub(super) fn may_change(&self, now: Duration) -> bool {
        let window = self.window.as_ref();
        self.term != 0 && window.is_none_or(|window| window.is_over_for_names(now))
    }

    /// What may be shown although it is not known who has which lease: what nobody can have in its memory, nor in
    /// another form than it was shown for long.
    pub(super) fn check_window(
        &self,
        now: Duration,
        session: SessionId,
        shown: &[(InodeId, FileKind)],
        want: Want,
    ) -> Result<(), Blocked> {
        if self.term == 0 {
            return Err(Blocked);
        }
        let Some(window) = &self.window else {
            return Ok(());
        };
        if window.is_over_for_names(now) {
            return match want {
                Want::Write(ino) | Want::Data(ino) if self.may_have_writer(session, ino) => {
                    Err(Blocked)
                }
                Want::Write(_) | Want::Data(_) | Want::Shared | Want::Nothing => Ok(()),
            };
        }
        let may_differ = |(ino, kind): &(InodeId, FileKind)| match kind {
            // Somebody may have written to it, or made something in it, in its memory.
            FileKind::Regular | FileKind::Directory => true,
            _ => self.recent.has(*ino, window.since),
        };
        match matches!(want, Want::Write(_)) || shown.iter().any(may_differ) {
            true => Err(Blocked),
            false => Ok(()),
        }
    }

    /// Whether somebody of whom this leadership has not heard may have a write lease on a file.
    pub(super) fn may_have_writer(&self, session: SessionId, ino: InodeId) -> bool {
        self.window.is_some() && !self.has_write_lease(session, ino)
    }

    /// Has those ended who did not speak in time: they may have a write lease.
    pub(super) fn close_window(&mut self, now: Duration) -> Vec<Effect> {
        let Some(window) = &mut self.window else {
            return Vec::new();
        };
        let asked_lately = window.end_asked.is_some_and(|at| now < at + CONTENTION);
        if now < window.until || asked_lately {
            return Vec::new();
        }
        window.end_asked = Some(now);
        window.awaited.iter().copied().map(Effect::End).collect()
    }

    /// Forgets inodes on which nobody has anything.
    pub(super) fn sweep(&mut self, now: Duration) {
        // A part of them at least, lest they grow in number while many are written.
        let count = self.emptied.len().min(SWEEP_MIN + self.emptied.len() / 4);
        let unused: Vec<InodeId> = self.emptied.drain(..count).collect();
        for ino in unused {
            match self.inodes.get(&ino) {
                Some(leases) if leases.is_unused(now) => {
                    self.inodes.remove(&ino);
                }
                Some(leases) if leases.is_unused(Duration::MAX) => self.emptied.push_back(ino),
                _ => {}
            }
        }
    }
}
