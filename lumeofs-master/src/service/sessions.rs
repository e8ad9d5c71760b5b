//! Whether sessions are alive (rule S2): the metadata leader measures their silence on its monotonic
//! clock, from the later of its election and the last contact, and proposes to end the silent ones.

use super::metadata::MetadataService;
use crate::raft::Term;
use lumeofs_base::SessionId;
use lumeofs_base::clock::{Clock as _, SystemClock};
use lumeofs_base::limits::SESSION_TIMEOUT;
use lumeofs_meta::namespace;
use lumeofs_meta::op::Internal;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::sleep;

/// How often silence is looked for, and how stale the list of known sessions may be.
const LOOK: Duration = Duration::from_secs(1);

/// Last contacts of sessions, and how many were ended here.
#[derive(Default)]
pub(crate) struct Sessions {
    contacts: Mutex<Contacts>,
    ended_silent: AtomicU64,
    ended_evicted: AtomicU64,
    ended_for_leases: AtomicU64,
}

#[derive(Default)]
struct Contacts {
    term: Term,
    /// From when on silence counts: since this leadership was noticed, or is one again after an outage in which
    /// no session could be heard.
    since: Duration,
    /// When silence was looked for last.
    looked: Duration,
    last: HashMap<SessionId, Duration>,
}

impl Sessions {
    /// A session was heard of.
    pub(crate) fn touch(&self, session: SessionId) {
        if session != SessionId(0) {
            self.touch_at(session, SystemClock.monotonic());
        }
    }

    /// An administrator ended one.
    pub(crate) fn count_evicted(&self) {
        self.ended_evicted.fetch_add(1, Ordering::Relaxed);
    }

    /// One was ended since it did not give a lease back.
    pub(crate) fn count_ended_for_leases(&self) {
        self.ended_for_leases.fetch_add(1, Ordering::Relaxed);
    }

    /// How many sessions this master ended, and why.
    pub(crate) fn ended(&self) -> [(&'static str, u64); 3] {
        [
            ("silent", &self.ended_silent),
            ("evicted", &self.ended_evicted),
            ("lease", &self.ended_for_leases),
        ]
        .map(|(why, count)| (why, count.load(Ordering::Relaxed)))
    }

    fn touch_at(&self, session: SessionId, now: Duration) {
        self.contacts.lock().last.insert(session, now);
    }

    /// How long a session was silent, or has been listened to under this leadership if that is less.
    pub(crate) fn silence(&self, term: Term, session: SessionId, now: Duration) -> Duration {
        let contacts = self.contacts.lock();
        if contacts.term != term {
            // Another master was spoken to before, so what was heard here is old.
            return Duration::ZERO;
        }
        let last = contacts.last.get(&session).copied().unwrap_or_default();
        now.saturating_sub(last.max(contacts.since))
    }

    /// The silent ones of the live sessions. Forgets contacts of all others.
    fn silent(&self, term: Term, live: &[SessionId], now: Duration) -> Vec<SessionId> {
        let mut contacts = self.contacts.lock();
        if contacts.term != term || now.saturating_sub(contacts.looked) > SESSION_TIMEOUT / 4 {
            contacts.since = now;
        }
        (contacts.term, contacts.looked) = (term, now);
        // One that was opened since `live` was read is kept too.
        contacts.last.retain(|id, at| {
            live.binary_search(id).is_ok() || now.saturating_sub(*at) < SESSION_TIMEOUT
        });
        let heard = |id: &SessionId| {
            contacts
                .last
                .get(id)
                .copied()
                .unwrap_or_default()
                .max(contacts.since)
        };
        live.iter()
            .copied()
            .filter(|id| now.saturating_sub(heard(id)) > SESSION_TIMEOUT)
            .collect()
    }
}

/// Runs for ever: ends silent sessions while this master leads.
pub(crate) async fn end_silent_sessions(service: Arc<MetadataService>) {
    loop {
        sleep(LOOK).await;
        let Ok(leadership) = service.group.linearizable().await else {
            continue;
        };
        let live = service.group.store().read(namespace::session_ids);
        let now = SystemClock.monotonic();
        for session in service.sessions.silent(leadership.term, &live, now) {
            tracing::warn!(%session, "session was silent for too long, ending it");
            if let Err(error) = service
                .propose_internal(Internal::EndSession { session })
                .await
            {
                super::log_failure("ending a silent session", &error);
                break;
            }
            service
                .sessions
                .ended_silent
                .fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_counts_from_the_later_of_election_and_contact() {
        let sessions = Sessions::default();
        let (first, second) = (Term { number: 1, node: 1 }, Term { number: 2, node: 1 });
        let live = [SessionId(1), SessionId(2)];
        let second_of = |at: u64| Duration::from_secs(1000 + at);
        let timeout = SESSION_TIMEOUT.as_secs();
        for at in 0..=timeout {
            assert_eq!(sessions.silent(first, &live, second_of(at)), []);
        }
        let late = timeout + 1;
        sessions.touch_at(SessionId(2), second_of(late));
        assert_eq!(
            sessions.silent(first, &live, second_of(late)),
            [SessionId(1)]
        );
        for at in late + 1..=late + 1 + timeout {
            assert_eq!(sessions.silent(second, &live, second_of(at)), []);
        }
        let end = second_of(late + 2 + timeout);
        assert_eq!(sessions.silent(second, &live, end), live);
    }

    #[test]
    fn silence_under_another_leadership_does_not_count() {
        let sessions = Sessions::default();
        let (first, second) = (Term { number: 1, node: 1 }, Term { number: 2, node: 1 });
        let (session, at) = (SessionId(1), |at: u64| Duration::from_secs(1000 + at));
        assert_eq!(sessions.silence(first, session, at(0)), Duration::ZERO);
        assert_eq!(sessions.silent(first, &[session], at(0)), []);
        sessions.touch_at(session, at(1));
        let silence = |term, now| sessions.silence(term, session, at(now)).as_secs();
        assert_eq!(silence(first, 3), 2);
        // Not noticed yet, then noticed, then heard.
        assert_eq!(silence(second, 9), 0);
        assert_eq!(sessions.silent(second, &[session], at(10)), []);
        assert_eq!((silence(second, 10), silence(second, 17)), (0, 7));
        sessions.touch_at(session, at(18));
        assert_eq!((silence(second, 19), silence(first, 19)), (1, 0));
    }

    #[test]
    fn silence_during_an_outage_of_the_masters_does_not_count() {
        let sessions = Sessions::default();
        let (term, live) = (Term { number: 1, node: 1 }, [SessionId(1)]);
        let start = Duration::from_secs(1000);
        sessions.touch_at(SessionId(1), start);
        assert_eq!(sessions.silent(term, &live, start), []);
        let back = start + SESSION_TIMEOUT * 2;
        assert_eq!(sessions.silent(term, &live, back), []);
    }

    #[test]
    fn a_session_that_is_newer_than_the_list_is_not_forgotten() {
        let sessions = Sessions::default();
        let term = Term { number: 1, node: 1 };
        let begun = Duration::from_secs(1000);
        assert_eq!(sessions.silent(term, &[], begun), []);
        for at in 1..100 {
            let now = begun + Duration::from_secs(at);
            sessions.touch_at(SessionId(7), now);
            assert_eq!(sessions.silent(term, &[], now), []);
        }
        let now = begun + Duration::from_secs(101);
        assert_eq!(sessions.silent(term, &[SessionId(7)], now), []);
    }
}
