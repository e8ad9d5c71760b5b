//! What is counted of leases.

use super::Leases;
use super::wait::WAITING;
use crate::raft::Term;
use lumeofs_base::metrics::{Histogram, Kind, Page};
use lumeofs_lease::What;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counters since the start.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Time from recall to acknowledgement, by [`What::NAMES`].
    recalls: [Histogram; What::NAMES.len()],
    /// Waits of requests, by [`WAITING`].
    waits: [Histogram; WAITING.len()],
    /// Those of them that ended without what they waited for.
    given_up: AtomicU64,
    /// How often the shared leases of a silent session became void.
    voided: AtomicU64,
}

impl Counts {
    pub(super) fn recalled(&self, durations: &[(&'static str, Duration)]) {
        for (name, took) in durations {
            let at = What::NAMES.iter().position(|other| other == name);
            if let Some(histogram) = at.and_then(|at| self.recalls.get(at)) {
                histogram.observe(*took);
            }
        }
    }

    pub(super) fn waited(&self, waiting: usize, took: Duration, in_vain: bool) {
        self.waits[waiting].observe(took);
        if in_vain {
            self.given_up.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn voided(&self) {
        self.voided.fetch_add(1, Ordering::Relaxed);
    }
}

impl Leases {
    /// Writes all of it to `page`. `term`: the leadership of this master, if it leads.
    pub(crate) fn collect(&self, page: &mut Page, term: Option<Term>) {
        let (kinds, pending, awaited) = {
            let table = self.table.lock();
            // Otherwise what is in the table means nothing any more.
            match term.is_some_and(|term| term.to_wire() == table.term()) {
                true => (table.counts(), table.unacknowledged(), table.awaited()),
                false => Default::default(),
            }
        };
        let name = "lumeofs_master_leases";
        page.family(Kind::Gauge, name, "Leases of sessions, at the leader");
        for (kind, count) in ["shared", "exclusive", "through"].into_iter().zip(kinds) {
            page.sample(name, &[("kind", kind)], count);
        }
        let name = "lumeofs_master_lease_recalls_pending";
        let help = "Recalls that sessions have not acknowledged";
        page.value(Kind::Gauge, name, help, pending);
        let name = "lumeofs_master_lease_sessions_awaited";
        let help = "Sessions of which a new leader has not heard what they have";
        page.value(Kind::Gauge, name, help, awaited);
        let name = "lumeofs_master_lease_recall_seconds";
        page.histogram(name, "Time from a recall to its acknowledgement");
        for (about, histogram) in What::NAMES.into_iter().zip(&self.counts.recalls) {
            page.buckets(name, &[("about", about)], histogram);
        }
        let name = "lumeofs_master_lease_wait_seconds";
        page.histogram(name, "Waits of requests for the sessions of others");
        for (request, histogram) in WAITING.into_iter().zip(&self.counts.waits) {
            page.buckets(name, &[("request", request)], histogram);
        }
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let name = "lumeofs_master_lease_waits_given_up_total";
        let help = "Those that ended in vain: the client asks again";
        page.value(Kind::Counter, name, help, read(&self.counts.given_up));
        let name = "lumeofs_master_leases_voided_total";
        let help = "How often the shared leases of a silent session became void";
        page.value(Kind::Counter, name, help, read(&self.counts.voided));
    }
}
