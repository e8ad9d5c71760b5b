//! Servers die under load: nothing fails, nothing acknowledged is lost, stalls are bounded.

use lumeofs_tests::{Cluster, shell};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Longest stall that a killed master may cause.
const MASTER_STALL: Duration = Duration::from_secs(7);
/// Longest stall that a killed primary may cause.
const DATANODE_STALL: Duration = Duration::from_secs(5);

/// A thread that writes and fsyncs small files and appends without a pause, and measures each step.
struct Prober {
    stop: Arc<AtomicBool>,
    longest: Arc<Mutex<Duration>>,
    thread: Option<std::thread::JoinHandle<u64>>,
}

impl Prober {
    fn start(directory: &Path) -> Self {
        let (stop, longest) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(Mutex::new(Duration::ZERO)),
        );
        let directory = directory.join("prober");
        std::fs::create_dir(&directory).unwrap();
        let (ended, record) = (stop.clone(), longest.clone());
        let thread = std::thread::spawn(move || {
            use std::io::Write;
            let mut log = std::fs::File::options()
                .append(true)
                .create(true)
                .open(directory.join("log"))
                .unwrap();
            let mut count = 0u64;
            while !ended.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let path = directory.join(format!("f{count}"));
                let mut file = std::fs::File::create_new(&path).unwrap();
                file.write_all(&count.to_le_bytes()).unwrap();
                file.sync_all().unwrap();
                // Exactly once: a replayed mkdir or rename would fail here.
                std::fs::create_dir(directory.join("once")).unwrap();
                std::fs::rename(directory.join("once"), directory.join(format!("d{count}")))
                    .unwrap();
                log.write_all(&count.to_le_bytes()).unwrap();
                count += 1;
                let took = begun.elapsed();
                let mut longest = record.lock().unwrap();
                *longest = took.max(*longest);
            }
            log.sync_all().unwrap();
            count
        });
        Self {
            stop,
            longest,
            thread: Some(thread),
        }
    }

    fn longest_since_reset(&self) -> Duration {
        std::mem::take(&mut *self.longest.lock().unwrap())
    }

    fn finish(mut self, directory: &Path) {
        self.stop.store(true, Ordering::Relaxed);
        let count = self
            .thread
            .take()
            .unwrap()
            .join()
            .expect("no operation failed");
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

fn fio(directory: &Path, seconds: u32) -> std::process::Child {
    std::process::Command::new("fio")
        .args([
            "--name=random",
            "--rw=randrw",
            "--bs=4k-64k",
            "--size=80m",
            "--numjobs=2",
            "--fsync=32",
        ])
        .args([
            "--verify=crc32c",
            "--verify_fatal=1",
            "--group_reporting",
            "--verify_state_save=0",
            "--direct=1",
            "--time_based",
        ])
        .arg(format!("--runtime={seconds}"))
        .arg(format!("--directory={}", directory.display()))
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("fio is there")
}

fn verified(child: std::process::Child) {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && !text.contains("err=") || text.contains("err= 0"),
        "fio:\n{text}"
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
    let load = fio(&mount, 40);
    std::thread::sleep(Duration::from_secs(4));
    println!(
        "without faults: longest step {:?}",
        prober.longest_since_reset()
    );

    let leader = cluster.leader("metadata");
    cluster.kill(&leader);
    std::thread::sleep(Duration::from_secs(9));
    let stall = prober.longest_since_reset();
    println!("leader {leader} killed: longest step {stall:?}");
    assert!(stall < MASTER_STALL, "{stall:?}");
    cluster.restart(&leader);

    let victim = primary_of_most(&cluster);
    cluster.kill(&victim);
    std::thread::sleep(Duration::from_secs(8));
    let stall = prober.longest_since_reset();
    println!("{victim} killed: longest step {stall:?}");
    assert!(stall < DATANODE_STALL, "{stall:?}");
    cluster.restart(&victim);
    verified(load);
    prober.finish(&mount);
    cluster.wait_in_sync(Duration::from_secs(60));
}
