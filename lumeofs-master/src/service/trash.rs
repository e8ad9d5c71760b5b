//! Drops what is in the trash when its time is over. What is then free is found and purged like other orphans.

use super::metadata::MetadataService;
use lumeofs_base::clock::{Clock as _, SystemClock};
use lumeofs_base::limits::TRASH_ENTRIES_MAX;
use lumeofs_meta::namespace;
use lumeofs_meta::op::Internal;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// How often it is looked.
const LOOK: Duration = Duration::from_secs(1);
/// Between commands while there is more, so that orphans do not heap up faster than they are purged.
const PAUSE: Duration = Duration::from_millis(100);

/// Runs for ever: expires while this master leads.
pub(crate) async fn expire_trash(service: Arc<MetadataService>) {
    loop {
        sleep(LOOK).await;
        while service.group.leadership().is_some() && expire_some(&service).await {
            sleep(PAUSE).await;
        }
    }
}

/// Drops the oldest. Returns whether there may be more.
async fn expire_some(service: &MetadataService) -> bool {
    let now = SystemClock.wall();
    // Names of entries are exact: what was restored since stays, whoever leads meanwhile.
    let entries = service.group.store().read(|tables| {
        if namespace::is_held(tables) {
            return Vec::new();
        }
        namespace::expired_trash(tables, now, TRASH_ENTRIES_MAX)
    });
    let (count, is_full) = (entries.len(), entries.len() == TRASH_ENTRIES_MAX);
    if entries.is_empty() {
        return false;
    }
    let done = service
        .propose_internal(Internal::ExpireTrash { entries, now })
        .await;
    match done.and_then(|done| done.reply) {
        Ok(_) => {
            tracing::debug!(count, "dropped from the trash");
            is_full
        }
        Err(error) => {
            super::log_failure("expiring the trash", &error);
            false
        }
    }
}
