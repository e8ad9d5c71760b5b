//! Counters of the leases and of what was answered from memory.

use super::Leases;
use crate::client::Client;
use crate::wait::now;
use lumeofs_lease::{Recall, What};
use lumeofs_meta::op::Query;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How often the leases spared a question, and what keeping them took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseStats {
    /// Inodes with a lease now.
    pub leases: u64,
    /// They count now: the leader was heard of lately.
    pub is_valid: bool,
    /// How often they did not count any more because nothing was heard of the leader.
    pub lapses: u64,
    /// By kind of query, those that never occurred too.
    pub queries: Vec<Lookups>,
    /// Opens of files.
    pub opens: Lookups,
    /// Polls of the leader.
    pub polls: Polls,
    /// Write leases that the leader wanted back.
    pub given_back: GiveBacks,
    /// Mutations that went on after their callers had given up.
    pub finished_later: u64,
    /// What was made in memory and the leader has been told since.
    pub made: u64,
    /// How many requests that took.
    pub made_requests: u64,
}

/// Questions of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lookups {
    /// Which: the name of a query of [`lumeofs_meta::op::Query::NAMES`], or `open`.
    pub kind: &'static str,
    /// Answered from memory.
    pub from_memory: u64,
    /// The leader was asked.
    pub asked: u64,
}

/// Polls and what they brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Polls {
    /// Those that were answered.
    pub answered: u64,
    /// Those that were not.
    pub failed: u64,
    /// Recalls that told new attributes.
    pub attributes: u64,
    /// Recalls that told what a name means.
    pub names: u64,
    /// Recalls of extended attributes.
    pub xattrs: u64,
    /// Recalls that took a lease away.
    pub drops: u64,
    /// Recalls that left a right to read.
    pub downgrades: u64,
}

/// Write leases that were given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GiveBacks {
    /// How many.
    pub count: u64,
    /// From the recalls to the ends, in all.
    pub time: Duration,
    /// The longest of them.
    pub time_max: Duration,
}

/// Counts as things happen.
#[derive(Debug, Default)]
pub(super) struct Counters {
    from_memory: [AtomicU64; Query::NAMES.len()],
    asked: [AtomicU64; Query::NAMES.len()],
    opened: AtomicU64,
    reported: AtomicU64,
    lapses: AtomicU64,
    answered: AtomicU64,
    failed: AtomicU64,
    attributes: AtomicU64,
    names: AtomicU64,
    xattrs: AtomicU64,
    drops: AtomicU64,
    downgrades: AtomicU64,
    given_back: AtomicU64,
    given_back_ns: AtomicU64,
    given_back_ns_max: AtomicU64,
    finished_later: AtomicU64,
    made: AtomicU64,
    made_requests: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn seen(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// The place of a query in [`Query::NAMES`].
fn place(query: &Query) -> usize {
    match query {
        Query::Lookup { .. } => 0,
        Query::GetAttr { .. } => 1,
        Query::ReadLink { .. } => 2,
        Query::ReadDir { .. } => 3,
        Query::GetXattr { .. } => 4,
        Query::ListXattr { .. } => 5,
        Query::Chunks { .. } => 6,
        Query::Usage => 7,
        Query::Parent { .. } => 8,
        Query::TestLock { .. } => 9,
        Query::Trash { .. } => 10,
    }
}

impl Counters {
    pub(super) fn query(&self, query: &Query, from_memory: bool) {
        let counters = match from_memory {
            true => &self.from_memory,
            false => &self.asked,
        };
        count(&counters[place(query)]);
    }

    pub(super) fn open(&self, from_memory: bool) {
        count(match from_memory {
            true => &self.opened,
            false => &self.reported,
        });
    }

    pub(super) fn lapsed(&self) {
        count(&self.lapses);
    }

    pub(super) fn polled(&self, answered: bool) {
        count(match answered {
            true => &self.answered,
            false => &self.failed,
        });
    }

    pub(super) fn recalled(&self, recall: &Recall) {
        count(match recall.what {
            What::Attr(_) => &self.attributes,
            What::Name { .. } => &self.names,
            What::Xattr => &self.xattrs,
            What::Drop => &self.drops,
            What::Downgrade => &self.downgrades,
        });
    }

    pub(super) fn gave_back(&self, after: Duration) {
        let ns = after.as_nanos() as u64;
        count(&self.given_back);
        self.given_back_ns.fetch_add(ns, Ordering::Relaxed);
        self.given_back_ns_max.fetch_max(ns, Ordering::Relaxed);
    }

    pub(super) fn finished_later(&self) {
        count(&self.finished_later);
    }

    pub(super) fn made(&self, objects: usize) {
        self.made.fetch_add(objects as u64, Ordering::Relaxed);
        count(&self.made_requests);
    }
}

impl Leases {
    fn stats(&self) -> LeaseStats {
        let (leases, is_valid) = {
            let holder = &self.state.lock().holder;
            (holder.len() as u64, holder.is_valid(now()))
        };
        let counters = &self.counters;
        let kinds = Query::NAMES.iter().enumerate();
        let queries = kinds.map(|(at, kind)| Lookups {
            kind,
            from_memory: seen(&counters.from_memory[at]),
            asked: seen(&counters.asked[at]),
        });
        LeaseStats {
            leases,
            is_valid,
            lapses: seen(&counters.lapses),
            queries: queries.collect(),
            opens: Lookups {
                kind: "open",
                from_memory: seen(&counters.opened),
                asked: seen(&counters.reported),
            },
            polls: Polls {
                answered: seen(&counters.answered),
                failed: seen(&counters.failed),
                attributes: seen(&counters.attributes),
                names: seen(&counters.names),
                xattrs: seen(&counters.xattrs),
                drops: seen(&counters.drops),
                downgrades: seen(&counters.downgrades),
            },
            given_back: GiveBacks {
                count: seen(&counters.given_back),
                time: Duration::from_nanos(seen(&counters.given_back_ns)),
                time_max: Duration::from_nanos(seen(&counters.given_back_ns_max)),
            },
            finished_later: seen(&counters.finished_later),
            made: seen(&counters.made),
            made_requests: seen(&counters.made_requests),
        }
    }
}

impl LeaseStats {
    /// Questions of one kind.
    pub fn of(&self, kind: &str) -> Lookups {
        let mut all = self.queries.iter().chain([&self.opens]);
        let found = all.find(|lookups| lookups.kind == kind);
        found.cloned().unwrap_or_default()
    }
}

impl Client {
    /// Counters of the leases and of what was answered from memory, since the client began.
    pub fn lease_stats(&self) -> LeaseStats {
        self.link.leases.stats()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lumeofs_base::InodeId;

    #[test]
    fn each_query_is_counted_under_its_name() {
        let counters = Counters::default();
        let ino = InodeId::ROOT;
        counters.query(&Query::Parent { ino }, true);
        counters.query(&Query::GetAttr { ino }, false);
        let leases = Leases {
            counters,
            ..Leases::new()
        };
        let stats = leases.stats();
        assert_eq!(stats.of("parent").from_memory, 1);
        assert_eq!(stats.of("get_attr").asked, 1);
        assert_eq!(
            stats.of("lookup"),
            Lookups {
                kind: "lookup",
                ..Lookups::default()
            }
        );
    }
}
