//! Servers die under load: nothing fails, nothing acknowledged is lost, stalls are bounded.

use lumeofs_tests::{Cluster, Running, eventually, fio_job, shell};
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longest stall that a killed master may cause.
const MASTER_STALL: Duration = Duration::from_secs(7);
/// Longest stall that a killed primary may cause.
const DATANODE_STALL: Duration = Duration::from_secs(5);

/// How long the calls of a thread take.
#[derive(Default)]
struct Calls {
    count: u64,
    longest: Duration,
}

/// A thread that writes, fsyncs, reads, renames and appends without a pause, and measures each call.
struct Prober {
    stop: Arc<AtomicBool>,
    calls: Arc<Mutex<Calls>>,
    thread: JoinHandle<u64>,
}

impl Prober {
    fn start(directory: &Path) -> Self {
        let (stop, calls) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Calls>>::default());
        let directory = directory.join("prober");
        std::fs::create_dir(&directory).unwrap();
        let (ended, record) = (stop.clone(), calls.clone());
        let thread = std::thread::spawn(move || {
            let log = directory.join("log");
            let append = File::options().append(true).create(true).open(log);
            let mut log = append.unwrap();
            let mut count = 0u64;
            while !ended.load(Ordering::Relaxed) {
                let (number, path) = (count.to_le_bytes(), directory.join(format!("f{count}")));
                let mut file = timed(&record, || File::create_new(&path));
                timed(&record, || file.write_all(&number));
                timed(&record, || file.sync_all());
                assert_eq!(timed(&record, || std::fs::read(&path)), number);
                // Exactly once: a replayed mkdir or rename would fail here.
                let (once, made) = (directory.join("once"), directory.join(format!("d{count}")));
                timed(&record, || std::fs::create_dir(&once));
                timed(&record, || std::fs::rename(&once, &made));
                timed(&record, || log.write_all(&number));
                count += 1;
            }
            log.sync_all().unwrap();
            count
        });
        Self {
            stop,
            calls,
            thread,
        }
    }

    /// The longest call since this was asked last. The one under way counts here, and not the next time: its
    /// end is waited for.
    fn longest_since_reset(&self) -> Duration {
        let count = || self.calls.lock().unwrap().count;
        let before = count();
        eventually("the call under way ends", 3 * MASTER_STALL, || {
            count() > before || self.thread.is_finished()
        });
        assert!(!self.thread.is_finished(), "no operation failed");
        std::mem::take(&mut self.calls.lock().unwrap().longest)
    }

    fn finish(self, directory: &Path) {
        self.stop.store(true, Ordering::Relaxed);
        let count = self.thread.join().expect("no operation failed");
        let directory = directory.join("prober");
        let log = std::fs::read(directory.join("log")).unwrap();
        let expected: Vec<u8> = (0..count).flat_map(u64::to_le_bytes).collect();
        assert!(
            log == expected,
            "the log of appends is complete, in order and without doubles"
        );
        for number in 0..count {
            assert_eq!(
                std::fs::read(directory.join(format!("f{number}"))).unwrap(),
                number.to_le_bytes()
            );
            assert!(directory.join(format!("d{number}")).is_dir());
        }
        println!("prober: {count} rounds");
    }
}

/// Makes a call that must not fail, and notes how long it took.
fn timed<T>(calls: &Mutex<Calls>, call: impl FnOnce() -> std::io::Result<T>) -> T {
    let begun = Instant::now();
    let result = call();
    {
        let mut calls = calls.lock().unwrap();
        calls.count += 1;
        calls.longest = calls.longest.max(begun.elapsed());
    }
    result.unwrap()
}

/// What fio writes while servers die.
fn fio(directory: &Path) -> Command {
    fio_job(directory, "80m", 2)
}

fn verified(output: Output) {
    assert!(
        output.status.success(),
        "fio: {}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The datanode that is primary of most replica groups.
fn primary_of_most(cluster: &Cluster) -> String {
    let groups = cluster.admin(&["groups"]);
    let mut counts = std::collections::BTreeMap::<u64, usize>::new();
    for group in groups.as_array().expect("groups") {
        *counts
            .entry(group["primary"].as_u64().expect("a primary"))
            .or_default() += 1;
    }
    let (node, count) = counts
        .into_iter()
        .max_by_key(|(_, count)| *count)
        .expect("groups exist");
    println!("datanode-{node} is primary of {count} groups");
    format!("datanode-{node}")
}

#[test]
fn fio_verifies_sequential_and_random_data_over_many_chunks() {
    let cluster = Cluster::start();
    let mount = cluster.mount();
    let write = |verify_only: bool| {
        let only = if verify_only { "--verify_only" } else { "" };
        shell(
            &mount,
            &format!(
                "fio --verify_state_save=0 --name=seq --rw=write --bs=1m --size=200m --verify=crc32c --end_fsync=1 {only} > /dev/null
                 fio --verify_state_save=0 --name=rnd --rw=randwrite --bs=4k --size=32m --numjobs=3 --verify=crc32c --end_fsync=1 {only} > /dev/null
                 fio --verify_state_save=0 --name=odd --rw=randwrite --bsrange=512-100k --bs_unaligned --size=24m --verify=crc32c --end_fsync=1 {only} > /dev/null"
            ),
        )
    };
    write(false);
    cluster.remount();
    write(true);
}

#[test]
fn killed_leaders_and_primaries_stall_for_seconds_and_lose_nothing() {
    let cluster = Cluster::start();
    let mount = cluster.mount();
    let prober = Prober::start(&mount);
    // 40 seconds of writing, then fio reads and verifies all of it.
    let load = Running::start(fio(&mount).arg("--rate=,2m"));
    std::thread::sleep(Duration::from_secs(4));
    let check = |what: &str, limit: Duration| {
        let stall = prober.longest_since_reset();
        println!("{what}: longest call {stall:?}");
        assert!(stall < limit, "{what}: {stall:?}");
    };
    check("without faults", MASTER_STALL);

    let leader = cluster.leader("metadata");
    cluster.kill(&leader);
    std::thread::sleep(Duration::from_secs(9));
    check(&format!("leader {leader} killed"), MASTER_STALL);
    cluster.restart(&leader);
    check(&format!("{leader} restarted"), MASTER_STALL);

    let victim = primary_of_most(&cluster);
    cluster.kill(&victim);
    std::thread::sleep(Duration::from_secs(8));
    check(&format!("{victim} killed"), DATANODE_STALL);
    cluster.restart(&victim);
    verified(load.output());
    check(&format!("{victim} restarted"), DATANODE_STALL);
    prober.finish(&mount);

    cluster.wait_in_sync(Duration::from_secs(60));
    cluster.remount();
    verified(fio(&mount).arg("--verify_only").output().unwrap());
}
