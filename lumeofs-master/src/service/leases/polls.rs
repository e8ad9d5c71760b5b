//! Polls: by them sessions keep their leases, hear what is recalled, and say what they have done.

use super::super::metadata::{MetadataService, decode, encode};
use super::Leases;
use crate::raft::{Overlay, Term};
use lumeofs_base::clock::{Clock as _, SystemClock};
use lumeofs_base::{Code, FsError, FsResult, SessionId};
use lumeofs_lease::{POLL_WAIT, Poll, PollAnswer};
use lumeofs_meta::namespace;
use lumeofs_meta::op::Internal;
use lumeofs_proto::meta::{LeaseReply, LeaseRequest};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// How long a poll waits until what was committed is applied. Then it counts for nothing.
const APPLY_MAX: Duration = Duration::from_secs(1);

impl MetadataService {
    /// Answers a poll: at once if there is something to say, else when there is, or its time is over.
    pub(crate) async fn lease(&self, request: &LeaseRequest) -> FsResult<LeaseReply> {
        // The term counts from here; that this master led then is confirmed below.
        let received = SystemClock.monotonic();
        let committed = self.group.committed();
        let wait = Duration::from_millis(request.wait_ms.into()).min(POLL_WAIT);
        let until = Instant::now() + wait;
        let poll: Poll = decode(&request.body)?;
        let session = SessionId(request.session);
        let mut leadership = self.group.linearizable().await?;
        self.check_session(session)?;
        self.sessions.touch(session);
        if !self
            .group
            .store()
            .read(|tables| namespace::is_leaseholder(tables, session))
        {
            // Before it has any: the next leader must know whom to wait for.
            self.propose_internal(Internal::HoldLeases { session })
                .await?
                .reply?;
            leadership = self.group.linearizable().await?;
        }
        // What was committed when the poll came, others may have been shown since by the next leader.
        self.group.wait_applied(committed, APPLY_MAX).await?;
        let term = leadership.term;
        let mut answer = self
            .group
            .store()
            .read(|tables| self.leases.poll(term, tables, received, session, &poll))?;
        let says_nothing = |answer: &PollAnswer| answer.recalls.is_empty() && !answer.restate;
        // Told only by polls that can wait for them: those beside are answered at once and say nothing else.
        let mut lock_recalls = self.locks.recalls(session, !wait.is_zero());
        // Who has asserted its leases waits for the answer before it uses them.
        while says_nothing(&answer)
            && lock_recalls.is_empty()
            && poll.asserts.is_none()
            && !wait.is_zero()
        {
            let news = self.leases.news.notified();
            tokio::pin!(news);
            news.as_mut().enable();
            answer = PollAnswer {
                renewed: answer.renewed,
                ..self.leases.news(term, session, poll.seen)?
            };
            lock_recalls = self.locks.recalls(session, true);
            let is_due = !says_nothing(&answer) || !lock_recalls.is_empty();
            if is_due || timeout_at(until, news).await.is_err() {
                break;
            }
        }
        let body = encode(&answer);
        Ok(LeaseReply { body, lock_recalls })
    }
}

impl Leases {
    fn poll(
        &self,
        term: Term,
        tables: &Overlay,
        received: Duration,
        session: SessionId,
        poll: &Poll,
    ) -> FsResult<PollAnswer> {
        let mut table = self.of(term, tables)?;
        // Here, since a session that is closed must not enter the table again.
        if !namespace::has_session(tables, session) {
            let text = format!("session {session} is not known");
            return Err(FsError::new(Code::SessionExpired, text));
        }
        let Some(heard) = table.poll(received, session, poll) else {
            let text = format!("poll {} of {session} was overtaken", poll.serial);
            return Err(FsError::new(Code::Invalid, text));
        };
        // With the table locked: nothing may be purged between the acknowledgement and this.
        if heard.unstated {
            self.opens.doubt(term, session);
        }
        if !heard.opened.is_empty() {
            // One that is condemned already would have been stated before its recall was settled.
            self.opens.open(term, session, &heard.opened);
        }
        let durations = table.take_durations();
        drop(table);
        self.counts.recalled(&durations);
        let says_something =
            !poll.acks.is_empty() || !poll.released.is_empty() || poll.asserts.is_some();
        if says_something || heard.answer.restate {
            self.settled.notify_waiters();
        }
        Ok(heard.answer)
    }

    /// What a session has not seen.
    fn news(&self, term: Term, session: SessionId, seen: u64) -> FsResult<PollAnswer> {
        let table = self.still_of(term.to_wire(), self.table.lock())?;
        Ok(table.news(session, seen))
    }
}
