//! The session's life: opening, keeping alive, replacing a lost one, and telling the leader which
//! files are open.
//!
//! One background thread keeps the session alive, restates the open files when another leader
//! answers, and reports releases in batches.

use crate::link::Link;
use crate::pool::Host;
use crate::retry::{Attempt, Next, retry};
use crate::wait::{Halt, Patience, now};
use lumeofs_base::limits::{OPENS_PER_REPORT_MAX, REQUEST_TIMEOUT, SESSION_KEEPALIVE};
use lumeofs_base::{Code, FsError, FsResult, InodeId, SessionId, entropy};
use lumeofs_proto::frame::Op;
use lumeofs_proto::meta::{OpenReport, SessionReply, SessionRequest};
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// How long releases are gathered before they are reported.
const RELEASE_DELAY: Duration = Duration::from_millis(20);
/// How long one master may take to answer a sign of life before another is asked: what finds a new
/// leader when the old one hangs.
const BEAT_LIMIT: Duration = Duration::from_secs(1);
/// How long closing a session may take.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// Wakes the background thread.
#[derive(Debug, Default)]
pub(crate) struct Alarm {
    signals: Mutex<Signals>,
    signalled: Condvar,
}

#[derive(Debug, Default)]
struct Signals {
    beat: bool,
    release: bool,
}

impl Alarm {
    fn signal(&self, set: impl FnOnce(&mut Signals)) {
        set(&mut self.signals.lock());
        self.signalled.notify_one();
    }

    /// Look for the leader now.
    pub(crate) fn beat_soon(&self) {
        self.signal(|signals| signals.beat = true);
    }

    fn wait(&self, time: Duration) -> Signals {
        let mut signals = self.signals.lock();
        if !signals.beat && !signals.release && !time.is_zero() {
            self.signalled.wait_for(&mut signals, time);
        }
        std::mem::take(&mut signals)
    }
}

/// What is known of the session besides its number.
#[derive(Debug)]
pub(crate) struct SessionState {
    /// Term of the leader as last heard.
    term: AtomicU64,
    /// The leader may not know all open files.
    restate: AtomicBool,
    renewing: Mutex<()>,
    /// Sessions that ended against our will.
    lost: AtomicU64,
    alarm: Arc<Alarm>,
}

impl SessionState {
    pub(crate) fn new(alarm: Arc<Alarm>) -> Self {
        let (term, restate) = (AtomicU64::new(0), AtomicBool::new(false));
        Self {
            term,
            restate,
            renewing: Mutex::default(),
            lost: AtomicU64::new(0),
            alarm,
        }
    }

    /// How many sessions ended against our will.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Wakes the background thread, to show a sign of life or to end.
    pub(crate) fn beat_soon(&self) {
        self.alarm.beat_soon();
    }

    /// There are releases to report.
    pub(crate) fn release_soon(&self) {
        self.alarm.signal(|signals| signals.release = true);
    }

    /// The leader may count opens that this client does not know of: restate them all.
    pub(crate) fn restate_soon(&self) {
        self.restate.store(true, Ordering::SeqCst);
        self.beat_soon();
    }

    fn learn_term(&self, term: u64) {
        if self.term.swap(term, Ordering::SeqCst) != term {
            self.restate_soon();
        }
    }
}

impl Link {
    /// Opens the first session.
    pub(crate) fn open_session(&self, patience: &Patience<'_>) -> FsResult<()> {
        let nonce = entropy::bytes::<16>().to_vec();
        let reply: SessionReply = self
            .masters
            .call(patience, Op::Session, || SessionRequest {
                nonce: nonce.clone().into(),
                description: self.description.clone(),
                ..Default::default()
            })?;
        self.session.term.store(reply.term, Ordering::SeqCst);
        self.window.restart(SessionId(reply.session));
        Ok(())
    }

    /// Replaces a session that the servers do not know any more.
    pub(crate) fn renew_session(&self, lost: SessionId, patience: &Patience<'_>) -> FsResult<()> {
        let _one_at_a_time = patience.lock(&self.session.renewing)?;
        if self.window.session() == lost {
            tracing::warn!(session = %lost, "the session expired; opening a new one");
            self.session.lost.fetch_add(1, Ordering::Relaxed);
            self.restart_leases(None);
            // Before anything can begin under the next session: what is booked from then on is of that one.
            let locked = self.locks_were_lost(lost);
            self.open_session(patience)?;
            self.session_was_lost(lost, locked);
            self.restart_leases(Some(self.window.session()));
            self.session.restate_soon();
        }
        Ok(())
    }

    /// Tells the leader that an inode is open.
    pub(crate) fn report_open(&self, ino: InodeId, patience: &Patience<'_>) -> FsResult<()> {
        let report = OpenReport {
            opened: vec![ino.get()],
            ..Default::default()
        };
        self.report(report, patience)
    }

    fn report(&self, report: OpenReport, patience: &Patience<'_>) -> FsResult<()> {
        let session = self.window.session();
        let report = OpenReport {
            session: session.get(),
            ..report
        };
        let mut call = ReportCall {
            link: self,
            patience,
            report,
            asked: None,
            hinted: false,
            overtaken: false,
        };
        let done = match retry(patience, &mut call) {
            Err(error) if error.code == Code::SessionExpired => {
                self.renew_session(session, patience)?;
                // The new session's restatement says all that the report would have said, and more.
                let session = self.window.session().get();
                call.report.session = session;
                retry(patience, &mut call)
            }
            other => other,
        };
        match done {
            Ok(()) if call.overtaken => {
                let what = "another leader came while the open files were stated";
                Err(FsError::new(Code::Again, what))
            }
            done => done,
        }
    }

    /// Shows the leader that the client lives and learns its term.
    fn beat(&self, patience: &Patience<'_>) -> FsResult<()> {
        let session = self.window.session();
        let asked = || SessionRequest {
            session: session.get(),
            ..Default::default()
        };
        let reply: FsResult<SessionReply> =
            self.masters
                .call_within(patience, Op::Session, BEAT_LIMIT, asked);
        match reply {
            Ok(reply) => {
                self.session.learn_term(reply.term);
                self.masters.learn(&reply.masters);
                Ok(())
            }
            Err(error) if error.code == Code::SessionExpired => {
                self.renew_session(session, patience)
            }
            Err(error) => Err(error),
        }
    }

    fn restate(&self, patience: &Patience<'_>) -> FsResult<()> {
        self.session.restate.store(false, Ordering::SeqCst);
        let inos = self.opens_to_state();
        let result = self.state_all(&inos, patience);
        self.opens.restated();
        if result.is_err() {
            self.session.restate.store(true, Ordering::SeqCst);
        }
        result
    }

    /// States everything that is open, in parts if it is much. Fails if another leader or another session came
    /// in between, which knows nothing of the parts before.
    fn state_all(&self, inos: &[InodeId], patience: &Patience<'_>) -> FsResult<()> {
        let (session, term) = (
            self.window.session(),
            self.session.term.load(Ordering::SeqCst),
        );
        let part = inos.len() > OPENS_PER_REPORT_MAX;
        let mut rest = inos;
        loop {
            let (now, later) = rest.split_at(rest.len().min(OPENS_PER_REPORT_MAX));
            let report = OpenReport {
                opened: now.iter().map(|ino| ino.get()).collect(),
                complete: later.is_empty(),
                part,
                term,
                ..Default::default()
            };
            self.report(report, patience)?;
            if part && self.window.session() != session {
                let what = "the session was replaced while its open files were stated";
                return Err(FsError::new(Code::Again, what));
            }
            if later.is_empty() {
                return Ok(());
            }
            rest = later;
        }
    }

    fn report_releases(&self, patience: &Patience<'_>) {
        let inos = self.opens.take_released();
        if inos.is_empty() {
            return;
        }
        let released = inos.iter().map(|ino| ino.get()).collect();
        let result = self.report(
            OpenReport {
                released,
                ..Default::default()
            },
            patience,
        );
        self.opens.forgotten(&inos, result.is_ok());
        if let Err(error) = result {
            tracing::debug!(%error, "releases not reported yet");
            patience.pause(RELEASE_DELAY).ok();
        }
        self.session.release_soon();
    }

    /// The background thread.
    pub(crate) fn keep_session(&self) {
        let patience = Patience::background(&self.halt, None);
        let (mut last_beat, mut changes) = (now(), self.masters.changes());
        while !self.halt.is_halted() {
            let left = SESSION_KEEPALIVE.saturating_sub(now().saturating_sub(last_beat));
            let signals = self.session.alarm.wait(left);
            if self.halt.is_halted() {
                return;
            }
            let due = now().saturating_sub(last_beat) >= SESSION_KEEPALIVE;
            if due || signals.beat || changes != self.masters.changes() {
                last_beat = now();
                changes = self.masters.changes();
                if let Err(error) = self.beat(&patience) {
                    tracing::warn!(%error, "keeping the session alive");
                }
                if self.session.restate.load(Ordering::SeqCst)
                    && let Err(error) = self.restate(&patience)
                {
                    tracing::warn!(%error, "restating open files");
                    patience.pause(RELEASE_DELAY).ok();
                }
            }
            if signals.release {
                self.halt.sleep(RELEASE_DELAY);
                self.report_releases(&patience);
            }
        }
    }

    /// Gives the session up, so that the servers need not wait for its end.
    pub(crate) fn close_session(&self) {
        let halt = Halt::default();
        let patience = Patience::background(&halt, Some(CLOSE_LIMIT));
        let session = self.window.session().get();
        let asked = || SessionRequest {
            session,
            close: true,
            ..Default::default()
        };
        if let Err(error) = self
            .masters
            .call::<_, SessionReply>(&patience, Op::Session, asked)
        {
            tracing::info!(%error, "the session was not closed; it will expire");
        }
    }
}

/// A report, under the term of whichever leader takes it.
struct ReportCall<'a, 'p> {
    link: &'a Link,
    patience: &'a Patience<'p>,
    report: OpenReport,
    asked: Option<Arc<Host>>,
    hinted: bool,
    /// A part of a list was refused by another leader than that of the parts before.
    overtaken: bool,
}

impl Attempt for ReportCall<'_, '_> {
    type Done = ();

    fn attempt(&mut self) -> FsResult<()> {
        let link = self.link;
        let host = self.asked.insert(link.masters.target());
        let mut sent = 0;
        let mut make = || {
            sent = match self.report.part {
                // With the parts before: it is for their leader or for none.
                true => self.report.term,
                false => link.session.term.load(Ordering::SeqCst),
            };
            OpenReport {
                term: sent,
                ..self.report.clone()
            }
        };
        let reply: SessionReply =
            link.masters
                .once(host, self.patience, Op::Opens, REQUEST_TIMEOUT, &mut make)?;
        if reply.term == sent {
            return Ok(());
        }
        if self.report.part {
            link.session.learn_term(reply.term);
            self.overtaken = true;
            return Ok(());
        }
        if self.report.complete {
            // A whole list counts under any term, so this leader knows everything now.
            link.session.term.store(reply.term, Ordering::SeqCst);
            return Ok(());
        }
        link.session.learn_term(reply.term);
        let what = "another leader did not take a report of opens";
        Err(FsError::new(Code::Again, what))
    }

    fn prepare(&mut self, error: &FsError) -> FsResult<Next> {
        let Some(asked) = &self.asked else {
            return Ok(Next::Pause);
        };
        Ok(self.link.masters.move_on(asked, error, &mut self.hinted))
    }
}
