//! openraft's own test suite for storages, over our log and state machine; and their life across
//! restarts and crashes.

use super::log_store::LogStore;
use super::overlay::Overlay;
use super::state_machine::StateMachine;
use super::store::{Limits, Store};
use super::types::{
    Applied, Entry, EntryOrigin, LeaderId, LogId, Machine, Payload, StorageError, TypeConfig, Vote,
};
use lumeofs_base::FsResult;
use lumeofs_meta::tables::Tables as _;
use lumeofs_wal::WalConfig;
use openraft::EntryPayload;
use openraft::RaftLogReader as _;
use openraft::storage::{RaftLogStorage as _, RaftLogStorageExt as _, RaftStateMachine as _};
use openraft::testing::{StoreBuilder, Suite};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// A state machine that writes each batch under its index.
struct Recorder;

impl Machine for Recorder {
    type Command = ();
    type Reply = ();
    fn seal(&self, _: Vec<()>) -> Vec<u8> {
        Vec::new()
    }
    fn apply(&self, tables: &mut Overlay, origin: EntryOrigin, batch: &[u8]) -> FsResult<Applied> {
        tables.put(&origin.index.to_be_bytes(), batch.to_vec());
        Ok(Applied::Nothing)
    }
    fn replies(&self, _: Applied) -> Vec<()> {
        Vec::new()
    }
}

struct InTempDir;

impl StoreBuilder<TypeConfig, LogStore, StateMachine<Recorder>, TempDir> for InTempDir {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine<Recorder>), StorageError> {
        let dir = tempfile::tempdir().unwrap();
        let log = open_log(dir.path());
        let store = store(dir.path(), Limits::default());
        let machine = StateMachine::new(store, log.clone(), Arc::new(Recorder));
        Ok((dir, log, machine))
    }
}

/// This member. Entries and votes of the tests are mostly those of member 1.
const ME: u64 = 2;

fn open_log(dir: &Path) -> LogStore {
    let config = WalConfig {
        segment_bytes: 2 << 20,
        ..WalConfig::default()
    };
    LogStore::open(dir, config, ME).unwrap()
}

fn store(dir: &Path, limits: Limits) -> Arc<Store> {
    Arc::new(Store::open(&dir.join("store.redb"), limits).unwrap())
}

/// A state machine whose log has no entries.
fn machine(dir: &Path, store: &Arc<Store>) -> StateMachine<Recorder> {
    let log = dir.join("log");
    std::fs::create_dir_all(&log).unwrap();
    StateMachine::new(store.clone(), open_log(&log), Arc::new(Recorder))
}

fn id(index: u64) -> LogId {
    LogId {
        leader_id: LeaderId {
            term: 1,
            node_id: 1,
        },
        index,
    }
}

fn entry(index: u64, size: usize) -> Entry {
    Entry {
        log_id: id(index),
        payload: EntryPayload::Normal(Payload(vec![index as u8; size].into())),
    }
}

fn rows(store: &Store) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut rows = Vec::new();
    store.read(|tables| {
        tables.scan(&[], &[255; 9], &mut |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
            true
        });
    });
    rows
}

#[test]
fn log_and_state_machine_pass_openrafts_suite() {
    Suite::test_all(InTempDir).unwrap();
}

#[tokio::test]
async fn a_log_is_the_same_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    {
        let mut log = open_log(dir.path());
        log.save_vote(&Vote::new_committed(1, 1)).await.unwrap();
        log.blocking_append((1..=50).map(|index| entry(index, 100)))
            .await
            .unwrap();
        log.truncate(id(41)).await.unwrap();
        log.blocking_append((41..=60).map(|index| entry(index, 7)))
            .await
            .unwrap();
        log.purge(id(10)).await.unwrap();
        log.save_committed(Some(id(55))).await.unwrap();
        log.blocking_append([entry(61, 1)]).await.unwrap();
    }
    let mut log = open_log(dir.path());
    let state = log.get_log_state().await.unwrap();
    assert_eq!(
        (state.last_purged_log_id, state.last_log_id),
        (Some(id(10)), Some(id(61)))
    );
    assert_eq!(
        log.read_vote().await.unwrap(),
        Some(Vote::new_committed(1, 1))
    );
    assert_eq!(log.read_committed().await.unwrap(), Some(id(55)));
    let entries = log.try_get_log_entries(0..100).await.unwrap();
    assert_eq!(entries.len(), 51);
    assert_eq!(entries[30].payload, entry(41, 7).payload);
    // Once more: the vote now lies only in the state that the purge restated.
    log.purge(id(61)).await.unwrap();
    drop(log);
    let mut log = open_log(dir.path());
    assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(id(61)));
    assert_eq!(
        log.read_vote().await.unwrap(),
        Some(Vote::new_committed(1, 1))
    );
}

#[tokio::test]
async fn a_leaders_own_entries_are_on_disk_when_they_are_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let own = |index| {
        let mut entry = entry(index, 100);
        entry.log_id.leader_id.node_id = ME;
        entry
    };
    {
        let mut log = open_log(dir.path());
        log.save_vote(&Vote::new_committed(1, ME)).await.unwrap();
        log.blocking_append((1..=9).map(own)).await.unwrap();
        log.wait_durable(5).await.unwrap();
        log.wait_durable(99).await.unwrap();
    }
    let mut log = open_log(dir.path());
    assert_eq!(log.try_get_log_entries(0..100).await.unwrap().len(), 9);
    // It may have lost entries that followers have, so it is no leader of that term any more.
    assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new(1, ME)));
}

#[tokio::test]
async fn appends_to_followers_are_bounded_and_never_empty() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open_log(dir.path());
    log.blocking_append((1..=20).map(|index| entry(index, 200_000)))
        .await
        .unwrap();
    assert_eq!(log.limited_get_log_entries(1, 21).await.unwrap().len(), 2);
    assert_eq!(log.limited_get_log_entries(20, 21).await.unwrap().len(), 1);
    assert_eq!(log.try_get_log_entries(1..21).await.unwrap().len(), 20);
}

#[tokio::test]
async fn a_store_without_its_last_checkpoint_is_as_if_it_never_applied_more() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = store(dir.path(), Limits::default());
        let mut machine = machine(dir.path(), &store);
        machine
            .apply((1..=10).map(|index| entry(index, 3)))
            .await
            .unwrap();
        store.checkpoint().unwrap();
        machine
            .apply((11..=20).map(|index| entry(index, 3)))
            .await
            .unwrap();
        assert_eq!(rows(&store).len(), 20);
    }
    let store = store(dir.path(), Limits::default());
    let mut machine = machine(dir.path(), &store);
    assert_eq!(machine.applied_state().await.unwrap().0, Some(id(10)));
    assert_eq!(rows(&store).len(), 10);
    machine
        .apply((11..=20).map(|index| entry(index, 3)))
        .await
        .unwrap();
    assert_eq!(rows(&store).len(), 20);
}

#[tokio::test]
async fn changes_over_the_limit_are_written_without_anybody_asking() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(
        dir.path(),
        Limits {
            records_max: 10,
            bytes_max: 1 << 20,
        },
    );
    let mut machine = machine(dir.path(), &store);
    machine
        .apply((1..=100).map(|index| entry(index, 3)))
        .await
        .unwrap();
    assert!(
        store.saved().0.applied >= Some(id(60)),
        "{:?}",
        store.saved().0.applied
    );
    assert_eq!(rows(&store).len(), 100);
}

#[tokio::test]
async fn an_installed_snapshot_replaces_everything_and_survives_a_restart() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = store(from.path(), Limits::default());
    let mut leader = machine(from.path(), &source);
    // Rows of several pieces.
    leader
        .apply((1..=40).map(|index| entry(index, 60_000)))
        .await
        .unwrap();
    source.checkpoint().unwrap();
    let snapshot = leader.get_current_snapshot().await.unwrap().unwrap();
    {
        let target = store(to.path(), Limits::default());
        let mut follower = machine(to.path(), &target);
        follower.apply([entry(1, 5)]).await.unwrap();
        drop(follower.begin_receiving_snapshot().await.unwrap());
        follower
            .install_snapshot(&snapshot.meta, snapshot.snapshot)
            .await
            .unwrap();
        assert_eq!(rows(&target), rows(&source));
        follower.apply([entry(41, 1)]).await.unwrap();
        target.checkpoint().unwrap();
    }
    let target = store(to.path(), Limits::default());
    assert_eq!(target.applied(), Some(id(41)));
    assert_eq!(rows(&target)[..40], rows(&source)[..]);
    let mut left: Vec<_> = std::fs::read_dir(to.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["log", "store.redb"]);
}

#[tokio::test]
async fn a_log_is_purged_only_behind_what_the_store_has_saved() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), Limits::default());
    let mut machine = machine(dir.path(), &store);
    {
        let mut log = open_log(dir.path());
        log.stand_behind(store.clone()).await.unwrap();
        let entries = || (1..=40).map(|index| entry(index, 3));
        log.blocking_append(entries()).await.unwrap();
        machine.apply(entries().take(30)).await.unwrap();
        let mut purging = log.clone();
        let purge = tokio::spawn(async move { purging.purge(id(30)).await });
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!purge.is_finished() && log.purged().is_none());
        store.checkpoint().unwrap();
        purge.await.unwrap().unwrap();
        assert_eq!(log.purged(), Some(30));
        // One that cannot come any more is not waited for.
        store.fail(&lumeofs_base::Code::NoSpace.into());
        assert!(log.purge(id(35)).await.is_err());
    }
    let mut log = open_log(dir.path());
    let state = log.get_log_state().await.unwrap();
    assert_eq!(
        (state.last_purged_log_id, state.last_log_id),
        (Some(id(30)), Some(id(40)))
    );
}

#[tokio::test]
async fn a_log_that_a_snapshot_has_overtaken_goes_on_behind_it() {
    let of_later_leader = |index| LogId {
        leader_id: LeaderId {
            term: 3,
            node_id: 3,
        },
        index,
    };
    // The log is shorter than the snapshot, or another one: it must not look newer either.
    for (there, next) in [(20, 31), (50, 31)] {
        let dir = tempfile::tempdir().unwrap();
        let entries = (1..=there).map(|index| Entry {
            log_id: of_later_leader(index),
            ..entry(index, 3)
        });
        let mut log = open_log(dir.path());
        log.blocking_append(entries).await.unwrap();
        drop(log);
        let store = store(dir.path(), Limits::default());
        let mut machine = machine(dir.path(), &store);
        machine
            .apply((1..=30).map(|index| entry(index, 3)))
            .await
            .unwrap();
        store.checkpoint().unwrap();
        let mut log = open_log(dir.path());
        log.stand_behind(store).await.unwrap();
        log.blocking_append([entry(next, 3)]).await.unwrap();
        drop(log);
        let mut log = open_log(dir.path());
        let state = log.get_log_state().await.unwrap();
        assert_eq!(
            (state.last_purged_log_id, state.last_log_id),
            (Some(id(30)), Some(id(31)))
        );
    }
}
