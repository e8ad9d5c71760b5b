//! Whether sessions are alive (rule S2): the metadata leader measures their silence on its monotonic
//! clock, from the later of its election and the last contact, and proposes to close the silent ones.

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
use std::time::Duration;
use tokio::time::sleep;

/// How often silence is looked for, and how stale the list of known sessions may be.
const LOOK: Duration = Duration::from_secs(1);

/// Last contacts of sessions.
#[derive(Default)]
pub(crate) struct Sessions(Mutex<Contacts>);

#[derive(Default)]
struct Contacts {
    term: Term,
    /// When this leadership was noticed.
    since: Duration,
    last: HashMap<SessionId, Duration>,
}

impl Sessions {
    /// A session was heard of.
    pub(crate) fn touch(&self, session: SessionId) {
        if session != SessionId(0) {
            self.touch_at(session, SystemClock.monotonic());
        }
    }

    fn touch_at(&self, session: SessionId, now: Duration) {
        self.0.lock().last.insert(session, now);
    }

    /// The silent ones of the live sessions. Forgets contacts of all others.
    fn silent(&self, term: Term, live: &[SessionId], now: Duration) -> Vec<SessionId> {
        let mut contacts = self.0.lock();
        if contacts.term != term {
            contacts.term = term;
            contacts.since = now;
        }
        let old = std::mem::take(&mut contacts.last);
        contacts.last = live
            .iter()
            .filter_map(|id| Some((*id, *old.get(id)?)))
            .collect();
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

/// Runs for ever: closes silent sessions while this master leads.
pub(crate) async fn close_silent_sessions(service: Arc<MetadataService>) {
    loop {
        sleep(LOOK).await;
        let Ok(leadership) = service.group.linearizable().await else {
            continue;
        };
        let live: Vec<_> = service
            .group
            .store()
            .read(namespace::sessions)
            .into_iter()
            .map(|session| session.id)
            .collect();
        let now = SystemClock.monotonic();
        for session in service.sessions.silent(leadership.term, &live, now) {
            tracing::warn!(%session, "session was silent for too long, closing it");
            if let Err(error) = service
                .propose_internal(Internal::CloseSession { session })
                .await
            {
                super::log_failure("closing a silent session", &error);
                break;
            }
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
        let start = Duration::from_secs(1000);
        assert_eq!(sessions.silent(first, &live, start), []);
        assert_eq!(sessions.silent(first, &live, start + SESSION_TIMEOUT), []);
        let late = start + SESSION_TIMEOUT + Duration::from_millis(1);
        sessions.touch_at(SessionId(2), late);
        assert_eq!(sessions.silent(first, &live, late), [SessionId(1)]);
        assert_eq!(sessions.silent(second, &live, late + SESSION_TIMEOUT), []);
        let end = late + SESSION_TIMEOUT + SESSION_TIMEOUT + Duration::from_millis(1);
        assert_eq!(sessions.silent(second, &live, end), live);
    }
}
