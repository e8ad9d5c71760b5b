//! Rounds, and what is remembered of them.

use super::*;
use crate::store::StoreConfig;
use crate::store::tests::{identity, small};
use lumeofs_base::checksum::block_checksums;
use lumeofs_base::disk::sim::SimDisk;
use lumeofs_base::limits::{BLOCK_SIZE, SCRUB_INTERVAL, SCRUB_PIECE_BYTES};
use lumeofs_base::{AlignedBuf, ChunkOp, Epoch, Sequence, Version};
use std::path::Path;

const CHUNKS: u64 = 6;
const CHUNK_BYTES: usize = SCRUB_PIECE_BYTES + BLOCK_SIZE;
const ALL: u64 = CHUNKS * CHUNK_BYTES as u64;

fn open(disk: &SimDisk) -> Arc<ChunkStore> {
    let config = StoreConfig {
        extent_file_bytes: 4 << 20,
        ..small()
    };
    let store = ChunkStore::open(Arc::new(disk.clone()), identity(), config);
    Arc::new(store.unwrap())
}

/// Chunks of two pieces each.
fn filled(disk: &SimDisk) -> Arc<ChunkStore> {
    let store = open(disk);
    for chunk in 1..=CHUNKS {
        let data = AlignedBuf::copy_of(&vec![chunk as u8; CHUNK_BYTES]);
        let op = ChunkOp::Write {
            chunk: ChunkId(chunk),
            offset: 0,
            truncations: 0,
            era: 0,
            part: None,
            checksums: block_checksums(0, &data),
        };
        let version = Version {
            epoch: Epoch(1),
            sequence: Sequence(chunk),
        };
        let applied = store.apply(GroupId(1), version, &op, &data);
        store.sync(applied.unwrap().lsn).unwrap();
    }
    store
}

fn scrub(store: &Arc<ChunkStore>) -> Scrub {
    Scrub::new(store.clone(), "d".into(), 1 << 20)
}

fn to_the_end(scrub: &Scrub) {
    while scrub.step().unwrap().is_some() {}
}

#[test]
fn a_round_reads_everything_once_and_goes_on_after_a_restart_where_it_was() {
    let disk = SimDisk::new();
    let store = filled(&disk);
    let first = scrub(&store);
    for _ in 0..5 {
        first.step().unwrap();
    }
    let status = first.status();
    assert_eq!((status.state.as_str(), status.round), ("running", 1));
    assert_eq!(
        (status.bytes, status.all_bytes),
        ((2 * CHUNK_BYTES + SCRUB_PIECE_BYTES) as u64, ALL)
    );
    first.keep();
    drop(first);
    let again = scrub(&store);
    assert_eq!(again.status().bytes, status.bytes);
    to_the_end(&again);
    let status = again.status();
    assert_eq!((status.state.as_str(), status.round), ("idle", 1));
    // What of the chunk in between was read is read again.
    assert_eq!(status.bytes, ALL + SCRUB_PIECE_BYTES as u64);
    assert!(status.ended_ms_ago.is_some() && status.left_ms.is_none());
    again.keep();
    assert_eq!(scrub(&store).status().state, "idle");
}

#[test]
fn a_round_that_is_asked_for_begins_at_once_and_from_the_start() {
    let disk = SimDisk::new();
    let scrub = scrub(&filled(&disk));
    to_the_end(&scrub);
    assert_eq!(scrub.step().unwrap(), None, "the next one is in a week");
    scrub.start().unwrap();
    let status = scrub.status();
    assert_eq!(
        (status.state.as_str(), status.round, status.bytes),
        ("running", 2, 0)
    );
    scrub.step().unwrap();
    scrub.start().unwrap();
    to_the_end(&scrub);
    let status = scrub.status();
    assert_eq!((status.round, status.bytes), (3, ALL));
}

#[test]
fn a_scrub_that_is_off_reads_nothing_and_cannot_be_started() {
    let disk = SimDisk::new();
    let off = Scrub::new(filled(&disk), "d".into(), 0);
    assert_eq!(off.step().unwrap(), None);
    assert_eq!(off.start().unwrap_err().code, Code::Unsupported);
    assert_eq!(off.status().state, "off");
}

#[test]
fn damage_waits_for_its_repair_also_over_a_restart() {
    let disk = SimDisk::new();
    let store = filled(&disk);
    for offset in [10, 2 * CHUNK_BYTES as u64 + 10] {
        disk.flip_bit(Path::new("chunks/extents/00000000.dat"), offset);
    }
    let first = scrub(&store);
    to_the_end(&first);
    assert_eq!(first.status().waiting, 2);
    let mut counts = BTreeMap::new();
    first.count_waiting(&mut counts);
    assert_eq!(counts, BTreeMap::from([(GroupId(1), 2)]));
    first.keep();
    assert_eq!(scrub(&store).status().waiting, 2);
    // A read that comes upon it says nothing new.
    store.read(ChunkId(1), 0, 100).unwrap_err();
    let again = scrub(&store);
    again.take_noted();
    assert_eq!(again.status().waiting, 2);
}

#[test]
fn the_pace_is_the_rate_unless_the_disk_is_slow() {
    let disk = SimDisk::new();
    let scrub = scrub(&filled(&disk));
    let (second, quick) = (Duration::from_secs(1), Duration::from_millis(1));
    assert_eq!(scrub.pause(Some(1 << 20), quick), second);
    assert_eq!(scrub.pause(Some(1 << 20), second), 4 * second);
    assert_eq!(scrub.pause(Some(1), quick), second / 16);
    assert_eq!(scrub.pause(Some(0), quick), Duration::ZERO);
}

#[test]
fn a_record_is_read_back_and_one_that_is_damaged_is_none() {
    let mut record = Record {
        round: u64::MAX,
        running: true,
        after: Some(ChunkId(u64::MAX)),
        bytes: u64::MAX,
        ended_ms: Some(u64::MAX),
        damaged: u64::MAX,
        repaired: u64::MAX,
        waiting: (0..300)
            .map(|at| (ChunkId(u64::MAX - at), 64 << 20))
            .collect(),
    };
    let mut bytes = record.encode();
    assert!(bytes.len() <= BLOCK_SIZE, "{}", bytes.len());
    assert_eq!(record.waiting.len(), 200);
    assert_eq!(Record::decode(&bytes), Some(record));
    bytes[40] ^= 1;
    assert_eq!(Record::decode(&bytes), None);
    assert_eq!(Record::decode(&bytes[..5]), None);
}

#[test]
fn the_next_round_is_due_after_a_week_also_if_the_clock_was_ahead() {
    let week = SCRUB_INTERVAL.as_millis() as u64;
    let mut record = Record::default();
    assert!(record.is_due(0));
    record.begin();
    record.end(week * 1000);
    // The clock was a thousand weeks ahead.
    assert!(!record.is_due(100));
    assert!(!record.is_due(week + 99));
    assert!(record.is_due(week + 100));
}
