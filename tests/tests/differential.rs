//! Random calls of several users on a mount and on ext4: each answer, and everything that can be seen after it, is the
//! same.

#[path = "differential/call.rs"]
mod call;
#[path = "differential/draw.rs"]
mod draw;
#[path = "differential/place.rs"]
mod place;
#[path = "differential/run.rs"]
mod run;
#[path = "differential/view.rs"]
mod view;

use lumeofs_tests::{Cluster, LoopMounts, MKFS_EXT4, number, temporary};
use run::{Places, explore};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Room for the trees of all sequences that are under way.
const DISK_BYTES: u64 = 2 << 30;
/// Sequences that are made side by side.
const WORKERS: usize = 4;
/// So many sequences that differ are enough.
const WRONG_MAX: usize = 8;

/// An ext4 of its own, mounted as LumeoFS is.
fn ext4(disks: &mut LoopMounts, directory: &Path, options: &str) -> PathBuf {
    let (image, point) = (directory.join("ext4.img"), directory.join("ext4"));
    LoopMounts::format(&image, DISK_BYTES, &MKFS_EXT4);
    disks.mount(&image, &point, options);
    point
}

/// Makes the sequences of all seeds; those that fail are told together.
fn explore_all(places: &Places, seeds: u64) {
    let (first, seeds) = (
        number("LUMEOFS_SEED_FIRST", 1),
        number("LUMEOFS_SEEDS", seeds),
    );
    let count = number("LUMEOFS_STEPS", 100) as usize;
    let kept = std::env::var("LUMEOFS_KEPT").ok();
    let kept: Option<Vec<usize>> = kept.map(|list| {
        let numbers = list.split(',').map(str::parse);
        numbers.map(|number| number.expect("a number")).collect()
    });
    let (next, wrong) = (AtomicU64::new(first), Mutex::new(Vec::new()));
    let begun = std::time::Instant::now();
    let work = || {
        place::separate_thread();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + seeds || wrong.lock().unwrap().len() >= WRONG_MAX {
                return;
            }
            if let Err(told) = explore(places, seed, count, kept.as_deref()) {
                // At once: it may take long until all have ended.
                println!("{told}\n");
                wrong.lock().unwrap().push(seed);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(work);
        }
    });
    println!(
        "{seeds} sequences of {count} steps in {:?}",
        begun.elapsed()
    );
    let wrong = wrong.into_inner().unwrap();
    assert!(
        wrong.is_empty(),
        "seeds {wrong:?} give sequences that differ"
    );
}

/// The same on ext4 and on so many mounts of a cluster in turn.
fn compare_mounts(count: usize, seeds: u64) {
    let mut cluster = Cluster::start();
    let mut disks = LoopMounts::default();
    let local = ext4(&mut disks, &cluster.scratch(), "loop,noatime");
    let mounts = (0..count).map(|_| cluster.mount_with("noatime")).collect();
    explore_all(&Places { local, mounts }, seeds);
}

#[test]
fn a_mount_answers_as_ext4_does() {
    compare_mounts(1, 80);
}

#[test]
fn two_mounts_in_turn_answer_as_one_ext4_does() {
    compare_mounts(2, 80);
}

/// Two directories for the same, both on ext4.
fn two_disks(directory: &Path, disks: &mut LoopMounts, options: &str) -> Places {
    let point = |name: &str| {
        let point = directory.join(name);
        std::fs::create_dir(&point).unwrap();
        point
    };
    let local = ext4(disks, &point("right"), "loop,noatime");
    let other = ext4(disks, &point("other"), options);
    Places {
        local,
        mounts: vec![other.clone(), other],
    }
}

#[test]
fn ext4_answers_as_ext4_does() {
    let (directory, mut disks) = (temporary(), LoopMounts::default());
    let places = two_disks(directory.path(), &mut disks, "loop,noatime");
    explore_all(&places, 100);
}

#[test]
fn a_filesystem_that_gives_files_the_group_of_their_directory_is_found_out_with_one_step() {
    let (directory, mut disks) = (temporary(), LoopMounts::default());
    let places = two_disks(directory.path(), &mut disks, "loop,noatime,grpid");
    place::separate_thread();
    let found = explore(&places, 1, 60, None).unwrap_err();
    assert_eq!(
        found.matches("Step {").count(),
        2,
        "the list and its last: {found}"
    );
}
