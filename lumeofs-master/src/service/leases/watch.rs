//! What time brings: terms that are over, leases that are not given back.

use super::super::metadata::MetadataService;
use super::Leases;
use crate::raft::Term;
use lumeofs_base::SessionId;
use lumeofs_base::clock::{Clock as _, SystemClock};
use lumeofs_lease::Effect;
use lumeofs_meta::namespace;
use lumeofs_meta::op::Internal;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// How often the table is looked at.
const TICK: Duration = Duration::from_millis(100);
/// After so long without a look this process did not run: then sessions are first given [`HEARING`] to be heard.
const STOPPED: Duration = Duration::from_secs(1);
/// Longer than the polls of sessions are apart.
const HEARING: Duration = Duration::from_secs(2);

/// Runs for ever: while this master leads, ends sessions that keep others waiting.
pub(crate) async fn watch_leases(service: Arc<MetadataService>) {
    let mut ends = JoinSet::new();
    let mut looked = SystemClock.monotonic();
    let mut not_before = looked;
    loop {
        sleep(TICK).await;
        while ends.try_join_next().is_some() {}
        let now = SystemClock.monotonic();
        if now.saturating_sub(looked) > STOPPED {
            not_before = now + HEARING;
        }
        looked = now;
        let Some(leadership) = service.group.leadership() else {
            continue;
        };
        let term = leadership.term;
        if !service.leases.is_of(term) {
            if service.group.linearizable().await.ok() == Some(leadership) {
                let begin = |tables: &_| service.leases.begin(term, tables);
                // Fails only if the next leadership has begun.
                let _ = service.group.store().read(begin);
            }
            continue;
        }
        if !service.group.has_heard(leadership, STOPPED) {
            not_before = now + HEARING;
        }
        if now < not_before {
            continue;
        }
        for session in service.leases.tick(term, now) {
            ends.spawn(end(service.clone(), session));
        }
        // Each once: those before are seen to first.
        if ends.is_empty() {
            for session in service.overdue_delegates(term, now) {
                ends.spawn(end(service.clone(), session));
            }
        }
    }
}

/// Ends a session that keeps others waiting; its fence is seen to elsewhere.
async fn end(service: Arc<MetadataService>, session: SessionId) {
    let is_live = |tables: &_| namespace::has_session(tables, session);
    if !service.group.store().read(is_live) {
        // Its fence is not up everywhere yet.
        return;
    }
    tracing::warn!(%session, "session does not give back what others wait for, ending it");
    let end = Internal::EndSession { session };
    match service.propose_internal(end).await {
        Ok(_) => service.sessions.count_ended_for_leases(),
        Err(error) => super::super::log_failure("ending a session that keeps a lease", &error),
    }
}

impl Leases {
    /// Sessions to be ended.
    fn tick(&self, term: Term, now: Duration) -> Vec<SessionId> {
        let Ok(mut table) = self.still_of(term.to_wire(), self.table.lock()) else {
            return Vec::new();
        };
        let effects = table.tick(now);
        if !effects.is_empty() {
            self.news.notify_waiters();
        }
        let mut ends = Vec::new();
        for effect in effects {
            match effect {
                Effect::End(session) => ends.push(session),
                Effect::Restate(session) => {
                    tracing::info!(%session, "session is silent, its leases are void");
                    self.counts.voided();
                    self.opens.doubt(term, session);
                }
            }
        }
        drop(table);
        self.settled.notify_waiters();
        ends
    }
}
