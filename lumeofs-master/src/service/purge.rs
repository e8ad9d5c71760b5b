//! Frees inodes that have no name and that nobody holds open.

use super::metadata::MetadataService;
use lumeofs_base::InodeId;
use lumeofs_base::clock::{Clock as _, SystemClock};
use lumeofs_meta::namespace;
use lumeofs_meta::op::{Internal, Reply};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// How often orphans are looked for.
const LOOK: Duration = Duration::from_millis(100);
/// Orphans looked at in one go.
const PAGE: usize = 1024;
/// Orphans in one command: its work is bounded by the state machine too.
const PURGE_MAX: usize = 64;

/// Runs for ever: purges while this master leads.
pub(crate) async fn purge_orphans(service: Arc<MetadataService>) {
    loop {
        sleep(LOOK).await;
        let Some(leadership) = service.group.leadership() else {
            continue;
        };
        let mut after = InodeId(0);
        loop {
            let page = service
                .group
                .store()
                .read(|tables| namespace::orphans_after(tables, after, PAGE));
            let Some(last) = page.last().copied() else {
                if after == InodeId(0) {
                    service.opens.no_orphans(leadership.term);
                }
                break;
            };
            if !purge_page(&service, page).await {
                break;
            }
            after = last;
        }
    }
}

/// Purges what is condemned. False if this master does not lead, or should wait.
async fn purge_page(service: &MetadataService, page: Vec<InodeId>) -> bool {
    let Ok(leadership) = service.group.linearizable().await else {
        return false;
    };
    let term = leadership.term;
    if !service.leases.is_of(term) || service.leases.awaited() > 0 {
        // Who has not been heard may open what the former leadership granted it.
        return false;
    }
    let live = service.group.store().read(namespace::session_ids);
    let now = SystemClock.monotonic();
    // Whoever has not heard yet that it has no name may have it open.
    let page = service.leases.without_unheard(page);
    let mut left = service.opens.condemn(term, &live, page, now);
    while !left.is_empty() {
        let rest = left.split_off(left.len().min(PURGE_MAX));
        let inos = std::mem::replace(&mut left, rest);
        let purge = Internal::Purge { inos: inos.clone() };
        let done = service.propose_internal(purge).await;
        match done.and_then(|done| done.reply) {
            Ok(Reply::Purged { remaining }) => {
                let is_gone = |ino: &InodeId| !remaining.contains(ino);
                let gone: Vec<_> = inos.into_iter().filter(is_gone).collect();
                service.opens.purged(term, &gone);
                // What was too much for one command goes into the next.
                left.splice(0..0, remaining).for_each(drop);
            }
            Ok(_) => {}
            Err(error) => {
                super::log_failure("purging deleted files", &error);
                return false;
            }
        }
    }
    true
}
