//! Frees inodes that have no name and that nobody holds open.

use super::metadata::MetadataService;
use lumeofs_base::InodeId;
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
        if service.group.leadership().is_none() {
            continue;
        }
        let mut after = InodeId(0);
        loop {
            let page = service
                .group
                .store()
                .read(|tables| namespace::orphans_after(tables, after, PAGE));
            let Some(last) = page.last().copied() else {
                break;
            };
            if !purge_page(&service, page).await {
                break;
            }
            after = last;
        }
    }
}

/// Purges what nobody holds. False if this master does not lead, or should wait.
async fn purge_page(service: &MetadataService, page: Vec<InodeId>) -> bool {
    let Ok(leadership) = service.group.linearizable().await else {
        return false;
    };
    let live: Vec<_> = service
        .group
        .store()
        .read(namespace::sessions)
        .into_iter()
        .map(|session| session.id)
        .collect();
    let mut left = service.opens.unheld(leadership.term, &live, page);
    while !left.is_empty() {
        let rest = left.split_off(left.len().min(PURGE_MAX));
        let inos = std::mem::replace(&mut left, rest);
        match service
            .propose_internal(Internal::Purge { inos })
            .await
            .and_then(|done| done.reply)
        {
            // What was too much for one command is still an orphan and comes up again.
            Ok(Reply::Purged { remaining }) if !remaining.is_empty() => {
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
