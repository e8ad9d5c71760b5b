//! Sessions for administrators: which there are, and ending one.

use super::metadata::MetadataService;
use lumeofs_base::clock::{Clock as _, SystemClock};
use lumeofs_base::{FsResult, SessionId, Timestamp};
use lumeofs_meta::namespace;
use lumeofs_meta::op::Internal;
use lumeofs_proto::control::Session;

impl MetadataService {
    /// All sessions, as their leader knows them. Fails at every other master.
    pub(crate) async fn list_sessions(&self) -> FsResult<Vec<Session>> {
        let leadership = self.group.linearizable().await?;
        let sessions = self.group.store().read(namespace::sessions);
        let now = SystemClock.wall();
        let monotonic = SystemClock.monotonic();
        let session = |info: namespace::SessionInfo| Session {
            id: info.id.get(),
            description: info.description,
            age_ms: age_ms(info.opened, now),
            silent_ms: millis(self.sessions.silence(leadership.term, info.id, monotonic)),
            opens: self.opens.held_by(leadership.term, info.id) as u64,
            is_ending: info.ending.is_some(),
            locked: info.locked.into(),
        };
        Ok(sessions.into_iter().map(session).collect())
    }

    /// Ends a session now. Nothing is taken from it any more; it stays listed until it is shut out everywhere.
    pub(crate) async fn evict_session(&self, session: SessionId) -> FsResult<()> {
        self.group.linearizable().await?;
        tracing::warn!(%session, "an administrator ends a session");
        let end = Internal::EndSession { session };
        self.propose_internal(end).await?.reply?;
        self.sessions.count_evicted();
        Ok(())
    }
}

fn age_ms(opened: Timestamp, now: Timestamp) -> u64 {
    let seconds = now.secs.saturating_sub(opened.secs);
    u64::try_from(seconds).unwrap_or(0).saturating_mul(1000)
}

fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
