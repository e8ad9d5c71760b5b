//! What programs do with files that they share across mounts: append to one log, hand a block to and fro, replace a
//! file, commit to one repository, use one database in turn.

use lumeofs_tests::Cluster;
use lumeofs_tests::chaos::Random;
use lumeofs_tests::coherence::{append_records, check_log, git_turns, look, sqlite_turns, tail};
use rustix::fs::OFlags;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const LENGTH: Duration = Duration::from_secs(5);
const BLOCK: usize = 4096;

fn three_mounts() -> (Cluster, [PathBuf; 3]) {
    let mut cluster = Cluster::start();
    let mounts = [
        cluster.mount(),
        cluster.second_mount(),
        cluster.second_mount(),
    ];
    (cluster, mounts)
}

#[test]
fn appends_from_three_mounts_are_whole_and_complete_and_a_follower_sees_only_whole_records() {
    let (_cluster, mounts) = three_mounts();
    let (end, ended) = (Instant::now() + LENGTH, AtomicBool::new(false));
    let log = |mount: &PathBuf| mount.join("log");
    let (counts, seen) = std::thread::scope(|scope| {
        let follower = scope.spawn(|| tail(&log(&mounts[2]), || !ended.load(Ordering::Relaxed)));
        let writers: Vec<_> = (0..6)
            .map(|writer| {
                let path = log(&mounts[writer % 3]);
                let go_on = move || Instant::now() < end;
                scope.spawn(move || append_records(&path, writer as u32, writer == 4, go_on))
            })
            .collect();
        let mut counts = BTreeMap::new();
        for (writer, thread) in (0..).zip(writers) {
            let (count, error) = thread.join().expect("appending does not panic");
            assert!(error.is_none(), "{error:?}");
            counts.insert(writer, count);
        }
        ended.store(true, Ordering::Relaxed);
        (
            counts,
            follower.join().expect("what the follower saw was whole"),
        )
    });
    println!("appended {counts:?}, the follower saw {seen}");
    for mount in &mounts {
        check_log(&log(mount), &counts, None);
    }
}

#[test]
fn a_block_that_two_mounts_overwrite_in_turn_always_has_the_others_value() {
    let (_cluster, mounts) = three_mounts();
    std::fs::write(mounts[0].join("block"), [0; BLOCK]).unwrap();
    let open = |mount: &PathBuf| look::open(&mount.join("block"), OFlags::RDWR).unwrap();
    let files = [open(&mounts[0]), open(&mounts[1])];
    let (begun, mut turn) = (Instant::now(), 0_u64);
    let mut bytes = [0; BLOCK];
    while begun.elapsed() < LENGTH {
        let (own, other) = (&files[turn as usize % 2], &files[(turn as usize + 1) % 2]);
        turn += 1;
        own.write_all_at(&turn.to_le_bytes().repeat(BLOCK / 8), 0)
            .unwrap();
        other.read_exact_at(&mut bytes, 0).unwrap();
        let right = bytes
            .chunks_exact(8)
            .all(|value| value == turn.to_le_bytes());
        assert!(right, "turn {turn}: {:?}", &bytes[..8]);
    }
    println!(
        "{:.0} turns per second",
        turn as f64 / begun.elapsed().as_secs_f64()
    );
}

/// The bytes of a version of a file: its number, then others that depend on it, of a length that does.
fn version(number: u64) -> Vec<u8> {
    let length = Random::new(number).between(8, 300_000) as usize;
    let mut bytes = look::pattern(number, length);
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// Reads the file to its end in pieces and returns its version.
fn read_version(path: &Path) -> u64 {
    let bytes =
        look::bytes(&File::open(path).expect("there is always one")).expect("it is readable");
    let number = bytes.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    let number = number.unwrap_or_else(|| panic!("{} bytes", bytes.len()));
    assert!(
        bytes == version(number),
        "all of version {number}, and nothing else"
    );
    number
}

#[test]
fn a_file_that_is_replaced_again_and_again_is_always_one_complete_version() {
    let (_cluster, mounts) = three_mounts();
    std::fs::write(mounts[0].join("file"), version(0)).unwrap();
    let (end, ended) = (Instant::now() + LENGTH, AtomicBool::new(false));
    let published = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        for mount in &mounts {
            scope.spawn(|| {
                let mut reads = 0;
                let mut last = 0;
                while !ended.load(Ordering::Relaxed) {
                    let at_least = published.load(Ordering::SeqCst).max(last);
                    last = read_version(&mount.join("file"));
                    assert!(last >= at_least, "version {last} after {at_least}");
                    reads += 1;
                }
                println!("{reads} reads, the last one of version {last}");
            });
        }
        // However this ends, the readers do.
        let _end = Ending(&ended);
        for number in 1.. {
            if Instant::now() > end {
                break;
            }
            let new = mounts[0].join("new");
            std::fs::write(&new, version(number)).unwrap();
            std::fs::rename(&new, mounts[0].join("file")).unwrap();
            published.store(number, Ordering::SeqCst);
        }
    });
}

/// Says at its end that others may end.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_git_repository_is_used_from_three_mounts_in_turn() {
    let (_cluster, mounts) = three_mounts();
    git_turns(&mounts, 13, |_| ());
}

#[test]
fn an_sqlite_database_is_used_from_three_mounts_in_turn() {
    let (_cluster, mounts) = three_mounts();
    sqlite_turns(&mounts, 13, |_| ());
}
