//! Datanodes and disks that go for good, and those that come: replicas move by themselves, nobody notices.

use lumeofs_tests::{Cluster, LoopMounts, Prober, eventually, pull_out, temporary};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// When replicas have moved, also on a slow machine.
const MOVED: Duration = Duration::from_secs(120);
/// Longest stall that a datanode that is killed may cause.
const KILLED_STALL: Duration = Duration::from_secs(5);
/// The same of one that is told to go.
const DRAINED_STALL: Duration = Duration::from_secs(3);

/// The MiB with this number of a file that differs everywhere.
fn piece(number: u64) -> Vec<u8> {
    let words =
        (0..1u64 << 17).map(|word| (number << 32 | word).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    words.flat_map(u64::to_le_bytes).collect()
}

/// Files over all groups, on disk.
fn write_files(mount: &Path, files: u64, mib: u64) {
    for name in 0..files {
        let mut file = File::create(mount.join(format!("kept-{name}"))).unwrap();
        (0..mib).for_each(|number| file.write_all(&piece(name * mib + number)).unwrap());
        file.sync_all().unwrap();
    }
}

fn assert_holds(mount: &Path, files: u64, mib: u64) {
    let mut read = vec![0; 1 << 20];
    for name in 0..files {
        let file = File::open(mount.join(format!("kept-{name}"))).unwrap();
        for number in 0..mib {
            file.read_exact_at(&mut read, number << 20).unwrap();
            assert!(
                read == piece(name * mib + number),
                "MiB {number} of file {name}"
            );
        }
    }
}

/// Free bytes of each datanode.
fn free(cluster: &Cluster) -> BTreeMap<u64, u64> {
    let nodes = cluster.admin(&["node", "list"]);
    let nodes = nodes.as_array().unwrap().iter();
    let pair =
        |node: &serde_json::Value| Some((node["id"].as_u64()?, node["free_bytes"].as_u64()?));
    nodes.filter_map(pair).collect()
}

fn node(cluster: &Cluster, id: u64) -> Option<serde_json::Value> {
    let nodes = cluster.admin(&["node", "list"]);
    nodes
        .as_array()
        .unwrap()
        .iter()
        .find(|node| node["id"] == id)
        .cloned()
}

#[test]
fn a_datanode_that_stays_away_is_replaced_and_drops_what_it_had_when_it_comes_back() {
    let cluster = Cluster::start();
    let mount = cluster.mount();
    let policy = cluster.admin(&["policy", "--repair-after", "3"]);
    assert_eq!(policy["repair_after_ms"], 3000);
    let before = free(&cluster)[&102];
    write_files(&mount, 16, 8);
    let prober = Prober::start(&mount);
    cluster.kill("datanode-102");
    std::thread::sleep(Duration::from_secs(5));
    let disk = temporary();
    let new = cluster.further_datanode(104, &[disk.path()]);
    let begun = Instant::now();
    cluster.wait_moved_off(102, MOVED);
    println!(
        "whole again {:?} after a new datanode came",
        begun.elapsed()
    );
    let stall = prober.longest_since_reset();
    println!("longest call {stall:?}");
    assert!(stall < KILLED_STALL);
    assert_holds(&mount, 16, 8);

    cluster.restart("datanode-102");
    eventually(
        "what it had is dropped, or it has a share again",
        MOVED,
        || {
            node(&cluster, 102).is_some_and(|node| node["silent_ms"].as_i64() < Some(3000))
                && (node(&cluster, 102).unwrap()["replicas"] != 0
                    || free(&cluster)[&102] + (8 << 20) > before)
        },
    );
    let removed = cluster.admin(&["node", "remove", "102"]);
    assert!(
        removed
            .as_array()
            .unwrap()
            .iter()
            .all(|node| node["id"] != 102)
    );
    eventually("a removed datanode ends", Duration::from_secs(30), || {
        cluster.pid("datanode-102").is_none()
    });
    cluster.wait_in_sync(MOVED);
    prober.finish(&mount);
    cluster.remount();
    assert_holds(&mount, 16, 8);
    cluster.stop();
    drop(new);
}

#[test]
fn a_datanode_is_drained_under_load_and_loses_no_call() {
    let cluster = Cluster::start_with(&["--datanodes", "4"]);
    let mount = cluster.mount();
    write_files(&mount, 16, 8);
    let prober = Prober::start(&mount);
    std::thread::sleep(Duration::from_secs(2));
    prober.longest_since_reset();
    let begun = Instant::now();
    cluster.admin(&["node", "drain", "101"]);
    println!("drained in {:?}", begun.elapsed());
    let stall = prober.longest_since_reset();
    println!("longest call {stall:?}");
    assert!(stall < DRAINED_STALL);
    let drained = node(&cluster, 101).unwrap();
    assert_eq!(
        (&drained["state"], &drained["replicas"]),
        (&"draining".into(), &0.into())
    );
    cluster.kill("datanode-101");
    assert_holds(&mount, 16, 8);
    cluster.restart("datanode-101");
    cluster.admin(&["node", "undrain", "101"]);
    eventually("it gets a share again", MOVED, || {
        node(&cluster, 101).is_some_and(|node| node["in_sync"].as_u64() > Some(4))
    });
    prober.finish(&mount);
    assert_holds(&mount, 16, 8);

    let wrong = cluster.try_admin(&["node", "drain", "999"]).unwrap_err();
    assert!(
        wrong.contains("no datanode 999") && wrong.contains("101"),
        "{wrong}"
    );
}

#[test]
fn a_datanode_that_loses_one_of_its_disks_goes_on_with_the_other() {
    let images = temporary();
    let mut disks = LoopMounts::default();
    let (one, other) = (images.path().join("one"), images.path().join("other"));
    for disk in [&one, &other] {
        let image = disk.with_extension("image");
        LoopMounts::format(&image, 2 << 30, &["mkfs.ext4", "-q", "-F"]);
        disks.mount(&image, disk, "loop");
    }
    let cluster = Cluster::start();
    let mount = cluster.mount();
    cluster.admin(&["policy", "--repair-after", "3"]);
    let new = cluster.further_datanode(104, &[&one, &other]);
    eventually("it is known", Duration::from_secs(30), || {
        node(&cluster, 104).is_some()
    });
    cluster.admin(&["node", "replace", "101", "104"]);
    write_files(&mount, 16, 4);
    let used = |disk: &Path| {
        let of = rustix::fs::statvfs(disk).unwrap();
        (of.f_blocks - of.f_bfree) * of.f_frsize
    };
    let (on_one, on_other) = (used(&one), used(&other));
    println!("used: {on_one} and {on_other} bytes");
    assert!(
        on_one > 64 << 20 && on_other > 64 << 20,
        "both disks are used"
    );
    let prober = Prober::start(&mount);
    pull_out(&one);
    let groups = cluster.admin(&["groups"]).as_array().unwrap().len();
    eventually(
        "its groups are whole again, on the other disk",
        MOVED,
        || {
            node(&cluster, 104).is_some_and(|node| {
                let trouble = node["trouble"].as_str().unwrap_or_default();
                node["in_sync"] == groups && trouble.contains("nput/output error")
            })
        },
    );
    assert!(prober.longest_since_reset() < KILLED_STALL);
    prober.finish(&mount);
    cluster.kill("datanode-102");
    assert_holds(&mount, 16, 4);
    cluster.restart("datanode-102");
    cluster.wait_in_sync(MOVED);
    cluster.stop();
    drop(new);
}
