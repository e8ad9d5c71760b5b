//! How much memory snapshots take: long, run by hand as docs/testing.md says.

use super::snapshot::{self, Pieces};
use super::store::{Incoming, Limits, Position, Store};
use super::types::{LeaderId, LogId};
use crate::memory::{megabytes, peak, reset_peak};
use lumeofs_base::rng::SplitMix64;
use lumeofs_meta::tables::Tables as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// What a row of an inode or a name takes, roughly.
const VALUE_BYTES: usize = 300;
/// Most that building, sending or receiving may take.
const MEMORY_MAX: u64 = 256 << 20;

fn position(index: u64) -> Position {
    let leader_id = LeaderId {
        term: 1,
        node_id: 1,
    };
    Position {
        applied: Some(LogId { leader_id, index }),
        ..Position::default()
    }
}

fn key(number: u64) -> [u8; 17] {
    let mut key = [0x10; 17];
    key[1..9].copy_from_slice(&number.to_be_bytes());
    key
}

/// A store of `bytes` bytes of rows, received like a snapshot.
fn filled(path: &Path, bytes: u64) -> (Store, u64) {
    let store = Store::open(path, Limits::default()).unwrap();
    let mut incoming: Incoming = store.receive().unwrap();
    let value = [7; VALUE_BYTES];
    let rows_per_piece = (512 << 10) / (VALUE_BYTES as u64 + 25);
    let mut rows = 0;
    while rows * (VALUE_BYTES as u64 + 17) < bytes {
        let keys: Vec<_> = (rows..rows + rows_per_piece).map(key).collect();
        incoming
            .add(keys.iter().map(|key| (&key[..], &value[..])))
            .unwrap();
        rows += rows_per_piece;
    }
    store.install(incoming, &position(1)).unwrap();
    (store, rows)
}

fn report(what: &str, begun: Instant) {
    let peak = peak();
    eprintln!(
        "{what}: {:.1?}, peak of memory {}",
        begun.elapsed(),
        megabytes(peak)
    );
    assert!(peak < MEMORY_MAX, "{what} took {}", megabytes(peak));
    reset_peak();
}

#[test]
#[ignore = "long: writes tens of GiB"]
fn snapshots_of_gigabytes_take_bounded_memory() {
    let gib = std::env::var("LUMEOFS_MEASURE_GIB").map_or(5, |gib| gib.parse().unwrap());
    let dir = crate::memory::directory();
    eprintln!("{gib} GiB of rows");
    reset_peak();
    let begun = Instant::now();
    let (store, rows) = filled(&dir.path().join("from.redb"), gib << 30);
    report("receive and install", begun);

    let begun = Instant::now();
    let mut rng = SplitMix64::new(1);
    let mut index = 1;
    while !store.is_full() {
        index += 1;
        store.apply(|current| {
            for _ in 0..256 {
                let key = key(rng.below(rows));
                current.overlay.put(&key, vec![8; VALUE_BYTES]);
            }
            current.position = position(index);
        });
    }
    eprintln!("{} changes", index * 256);
    store.checkpoint().unwrap();
    report("build (a checkpoint of all that fits in memory)", begun);

    let begun = Instant::now();
    let (_, base) = store.saved();
    let mut pieces = Pieces::new(base.clone());
    let mut sent = 0;
    while let Some(piece) = pieces.next().unwrap() {
        sent += piece.len();
    }
    eprintln!("{sent} bytes in pieces");
    report("send", begun);

    let begun = Instant::now();
    let target = Arc::new(Store::open(&dir.path().join("to.redb"), Limits::default()).unwrap());
    let mut incoming = target.receive().unwrap();
    snapshot::copy(base, &mut incoming).unwrap();
    target.install(incoming, &position(index)).unwrap();
    report("both ends in one process", begun);
    drop((store, target));

    let begun = Instant::now();
    let store = Store::open(&dir.path().join("to.redb"), Limits::default()).unwrap();
    assert_eq!(store.applied(), position(index).applied);
    report("open and check", begun);
}
