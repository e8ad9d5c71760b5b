//! Metadata against datanodes, both ways: `lumeofs admin fsck`. Runs on the metadata group's leader.
//!
//! Group by group, the sorted list of chunks that files name is joined with the lists of the in-sync members, page by
//! page. Memory: 8 bytes per chunk of the groups of one pass over the table, which are [`PASS_CHUNKS`] chunks or one
//! group, a page per member, and [`SUSPECTS_MAX`] suspects. Metadata's own consistency is checked on a checkpoint,
//! so that nobody waits, in memory in proportion to the number of files; hence [`INODES_MAX`].

mod compare;
mod group;
mod lists;
mod report;
mod table;

use super::metadata::MetadataService;
use lumeofs_base::{ClusterMap, Code, FsError, FsResult, GroupConfig};
use lumeofs_meta::op::Internal;
use lumeofs_meta::{controller, namespace};
use lumeofs_proto::control::{FsckEvent, FsckRequest};
use report::Reporter;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// Chunks whose ids are in memory at once, unless one group has more.
const PASS_CHUNKS: u64 = 4 << 20;
/// Chunks of one group that can be checked: 128 MiB of ids.
const GROUP_CHUNKS_MAX: u64 = 16 << 20;
/// Chunks that are looked at again at most in one pass.
const SUSPECTS_MAX: usize = 10_000;
/// Inodes up to which metadata's own consistency is checked: about 1 KiB of memory each.
const INODES_MAX: u64 = 1 << 20;
/// Between two looks at a chunk: an in-sync member that has an operation under way for longer is no longer one.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(6);
/// How long a checkpoint is waited for.
const CHECKPOINT_WAIT: Duration = Duration::from_secs(30);
/// Events that wait for the caller to take them.
const EVENTS_MAX: usize = 64;

/// What the caller gets.
pub(super) type Events = ReceiverStream<Result<FsckEvent, Status>>;

/// Begins a check, if this master leads and none runs.
pub(super) async fn start(
    service: Arc<MetadataService>,
    running: Arc<Semaphore>,
    request: FsckRequest,
) -> FsResult<Events> {
    service.group.linearizable().await?;
    let busy = |_| FsError::new(Code::Busy, "a check runs already: wait for its end");
    let permit = running.try_acquire_owned().map_err(busy)?;
    let (sender, receiver) = mpsc::channel(EVENTS_MAX);
    tokio::spawn(run(service, request, Reporter::new(sender), permit));
    Ok(ReceiverStream::new(receiver))
}

async fn run(
    service: Arc<MetadataService>,
    request: FsckRequest,
    mut reporter: Reporter,
    permit: OwnedSemaphorePermit,
) {
    tracing::info!(repair = request.repair, "a check begins");
    let done = check(&service, &request, &mut reporter).await;
    if let Err(error) = &done {
        tracing::warn!(%error, "a check did not come to its end");
    }
    reporter.end(done).await;
    drop(permit);
}

async fn check(
    service: &Arc<MetadataService>,
    request: &FsckRequest,
    reporter: &mut Reporter,
) -> FsResult<()> {
    own_consistency(service, reporter).await?;
    // Ids from here on belong to files that are being made.
    let next_chunk = service.group.store().read(namespace::next_chunk);
    let map = service.controller.store().read(controller::cluster_map);
    let counts = table::counts(service, reporter).await?;
    for (group, chunks) in &counts {
        if map.group(*group).is_none() {
            reporter.no_group(*group, *chunks).await?;
        }
    }
    let count = |config: &GroupConfig| counts.get(&config.group).copied().unwrap_or(0);
    let mut pass: Vec<&GroupConfig> = Vec::new();
    let mut sum = 0;
    for config in &map.groups {
        let chunks = count(config);
        if chunks > GROUP_CHUNKS_MAX {
            let text = format!("{chunks} chunks are more than can be checked");
            reporter.unchecked(config.group, None, &text).await?;
            continue;
        }
        if sum + chunks > PASS_CHUNKS && !pass.is_empty() {
            run_pass(service, request, reporter, &map, &pass, next_chunk.get()).await?;
            pass.clear();
            sum = 0;
        }
        pass.push(config);
        sum += chunks;
    }
    run_pass(service, request, reporter, &map, &pass, next_chunk.get()).await?;
    end_hold(service, request, reporter).await
}

/// After a load from a dump: lets deletions go on, once somebody had the chance to see what they would make forgotten.
async fn end_hold(
    service: &Arc<MetadataService>,
    request: &FsckRequest,
    reporter: &mut Reporter,
) -> FsResult<()> {
    let is_held = || service.group.store().read(namespace::is_held);
    let sought = service.controller.store().read(controller::sought);
    let all_found = sought.is_none_or(|sought| sought.groups.is_empty());
    if request.repair && is_held() && all_found && reporter.saw_everything() {
        service.propose_internal(Internal::EndHold).await?.reply?;
        tracing::info!("chunks are deleted again, which was held since the load from a dump");
    }
    reporter.held(is_held());
    Ok(())
}

/// Checks some groups, whose chunks fit into memory together.
async fn run_pass(
    service: &Arc<MetadataService>,
    request: &FsckRequest,
    reporter: &mut Reporter,
    map: &ClusterMap,
    pass: &[&GroupConfig],
    next_chunk: u64,
) -> FsResult<()> {
    let groups = pass.iter().map(|config| config.group).collect();
    let mut named = table::chunks_of(service, groups).await?;
    let mut suspects = Vec::new();
    for config in pass {
        let chunks = named.remove(&config.group).unwrap_or_default();
        let scope = group::Scope {
            map,
            config,
            named: &chunks,
            next_chunk,
        };
        group::compare_group(service, reporter, &scope, &mut suspects).await?;
        reporter.group_done(chunks.len() as u64).await?;
    }
    if suspects.is_empty() {
        return Ok(());
    }
    reporter
        .progress("looking again", 0, suspects.len() as u64)
        .await?;
    tokio::time::sleep(LOOK_AGAIN_AFTER).await;
    group::look_again(service, reporter, &suspects, request.repair).await
}

/// Whether the tables of metadata fit each other.
async fn own_consistency(service: &Arc<MetadataService>, reporter: &mut Reporter) -> FsResult<()> {
    let inodes = service.group.store().read(namespace::inode_count);
    reporter.progress("metadata", 0, inodes).await?;
    if inodes > INODES_MAX {
        let text = format!(
            "metadata's own consistency: {inodes} files are more than {INODES_MAX}, it would take too much memory"
        );
        return reporter.unchecked_metadata(&text).await;
    }
    let (index, view) = match service.group.store().view(CHECKPOINT_WAIT).await {
        Ok(view) => view,
        Err(error) => {
            let text = format!("metadata's own consistency: {error}");
            return reporter.unchecked_metadata(&text).await;
        }
    };
    let checked = tokio::task::spawn_blocking(move || namespace::check(&view)).await;
    let found = checked.map_err(|error| FsError::new(Code::Io, error.to_string()))?;
    reporter.metadata(index, found).await
}
