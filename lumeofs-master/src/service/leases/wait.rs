//! Requests that wait until other sessions have been heard.

use super::{Leases, WAIT_MAX};
use lumeofs_base::clock::{Clock as _, SystemClock};
use lumeofs_base::{Code, FsError, FsResult, SessionId};
use std::pin::Pin;
use std::time::Duration;
use tokio::sync::futures::Notified;
use tokio::time::{Instant, timeout_at};

/// What waits, for people; by place a [`Waiting`].
pub(super) const WAITING: [&str; 3] = ["query", "mutation", "reply"];

/// What waits.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Waiting {
    /// An answer to a query.
    Query,
    /// A mutation that is not proposed yet.
    Mutation,
    /// The reply to one that was applied.
    Reply,
}

/// The patience of one request, whatever it waits for. Begins with the request.
pub(crate) struct Wait<'a> {
    leases: &'a Leases,
    session: SessionId,
    until: Instant,
    /// For what it has to wait, since when.
    now: Option<(Waiting, Duration)>,
    in_vain: bool,
}

impl Leases {
    /// A request of a session begins.
    pub(crate) fn wait(&self, session: SessionId) -> Wait<'_> {
        Wait {
            leases: self,
            session,
            until: Instant::now() + WAIT_MAX,
            now: None,
            in_vain: false,
        }
    }

    /// Resolves when something was settled after it was enabled.
    pub(crate) fn settled(&self) -> Notified<'_> {
        self.settled.notified()
    }

    /// For whom the requests of a session wait, if any of them does.
    pub(crate) fn waits_of(&self, session: SessionId) -> Option<String> {
        if !self.waiting.lock().contains(&session) {
            return None;
        }
        let debtors = self.table.lock().debtors();
        let shown: Vec<_> = debtors.iter().take(10).map(ToString::to_string).collect();
        Some(format!("leases of sessions: {}", shown.join(", ")))
    }
}

impl Wait<'_> {
    /// Waits until something was settled.
    ///
    /// # Errors
    /// `Again`: the patience is over.
    pub(crate) async fn pause(
        &mut self,
        waiting: Waiting,
        settled: Pin<&mut Notified<'_>>,
    ) -> FsResult<()> {
        if self.now.is_none() {
            self.now = Some((waiting, SystemClock.monotonic()));
            self.leases.waiting.lock().push(self.session);
        }
        let paused = timeout_at(self.until, settled).await;
        self.in_vain = paused.is_err();
        paused.map_err(|_| {
            let text = format!("other clients do not give leases back within {WAIT_MAX:?}");
            FsError::new(Code::Again, text)
        })
    }

    /// What it waited for has come.
    pub(crate) fn over(&mut self) {
        let Some((waiting, since)) = self.now.take() else {
            return;
        };
        let mut all = self.leases.waiting.lock();
        if let Some(at) = all.iter().position(|session| *session == self.session) {
            all.swap_remove(at);
        }
        drop(all);
        let took = SystemClock.monotonic().saturating_sub(since);
        let counts = &self.leases.counts;
        counts.waited(waiting as usize, took, self.in_vain);
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.over();
    }
}
