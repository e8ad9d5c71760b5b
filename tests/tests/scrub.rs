//! Bits flip on the disks of datanodes: they are found, repaired and told of, and what is damaged is never served.

use lumeofs_tests::{Cluster, Prober, eventually};
use serde_json::Value;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

/// When a round of a small cluster has ended, also on a slow machine.
const SCRUBBED: Duration = Duration::from_secs(120);
const BLOCK: u64 = 4096;
const FILES: u64 = 8;
const MIB: u64 = 3;

/// The block with this number of a file that differs everywhere.
fn block(file: u64, number: u64) -> Vec<u8> {
    let first = (file << 40) + (number << 20);
    let words = (first..first + BLOCK / 8).map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    words.flat_map(u64::to_le_bytes).collect()
}

fn content(file: u64) -> Vec<u8> {
    let blocks = MIB << 20 >> BLOCK.trailing_zeros();
    (0..blocks).flat_map(|number| block(file, number)).collect()
}

fn write(path: &Path, file: u64) {
    let mut out = File::create(path).unwrap();
    for mib in content(file).chunks(1 << 20) {
        out.write_all(mib).unwrap();
    }
    out.sync_all().unwrap();
}

/// Flips a bit in these blocks of files where they lie on a datanode's disk. How many it found.
fn flip(cluster: &Cluster, node: &str, wanted: &[(u64, u64)]) -> u64 {
    let wanted: Vec<_> = wanted
        .iter()
        .map(|(file, number)| block(*file, *number))
        .collect();
    let extents = cluster.dir().join(node).join("chunks/extents");
    let mut flipped = 0;
    for entry in std::fs::read_dir(extents).unwrap().flatten() {
        if entry
            .path()
            .extension()
            .is_none_or(|extension| extension != "dat")
        {
            continue;
        }
        let file = File::options()
            .read(true)
            .write(true)
            .open(entry.path())
            .unwrap();
        let mut found = vec![0; BLOCK as usize];
        for place in 0..file.metadata().unwrap().len() / BLOCK {
            file.read_exact_at(&mut found, place * BLOCK).unwrap();
            if wanted.contains(&found) {
                let at = place % BLOCK;
                let byte = found[at as usize] ^ 0x10;
                file.write_all_at(&[byte], place * BLOCK + at).unwrap();
                flipped += 1;
            }
        }
        file.sync_all().unwrap();
    }
    flipped
}

/// The disk of a datanode, as `scrub status` has it.
fn disk(cluster: &Cluster, node: u64) -> Value {
    let status = cluster.admin(&["scrub", "status"]);
    let mut nodes = status.as_array().unwrap().iter();
    let node = nodes.find(|of| of["datanode"] == node);
    node.unwrap()["disks"][0].clone()
}

fn wait_scrubbed(cluster: &Cluster, round: u64, waiting: u64) {
    eventually("all has been read", SCRUBBED, || {
        [101, 102].iter().all(|node| {
            let disk = disk(cluster, *node);
            disk["round"].as_u64() >= Some(round)
                && disk["state"] == "idle"
                && disk["waiting_blocks"] == waiting
        })
    });
}

fn wait_healthy(cluster: &Cluster) {
    eventually("the cluster is healthy", SCRUBBED, || {
        cluster.try_admin(&["health"]).is_ok()
    });
}

#[test]
fn two_copies_with_different_damage_repair_each_other_and_the_same_damage_is_told_until_it_is_overwritten()
 {
    let cluster = Cluster::start_with(&["--datanodes", "2", "--replicas", "2"]);
    let mount = cluster.mount();
    let path = |file: u64| mount.join(format!("kept-{file}"));
    (0..FILES).for_each(|file| write(&path(file), file));
    let prober = Prober::start(&mount);
    let of = |offset: u64| -> Vec<_> { (0..FILES).map(|file| (file, 7 * file + offset)).collect() };
    let flipped = [
        flip(&cluster, "datanode-101", &of(3)),
        flip(&cluster, "datanode-102", &of(4)),
    ];
    assert_eq!(flipped, [FILES; 2]);
    // What the kernel has of the files came before the flips.
    cluster.admin(&["scrub", "start"]);
    let round = disk(&cluster, 101)["round"].as_u64().unwrap();
    wait_scrubbed(&cluster, round, 0);
    for node in [101, 102] {
        let disk = disk(&cluster, node);
        println!("{disk}");
        assert_eq!(disk["damaged_blocks"], FILES);
        assert_eq!(disk["repaired_blocks"], FILES);
        assert_eq!(disk["position_percent"], 100);
    }
    wait_healthy(&cluster);

    // A block that both lack. Its neighbours are served, it is not.
    prober.finish(&mount);
    cluster.remount();
    let both = [(5, 600)];
    assert_eq!(flip(&cluster, "datanode-101", &both), 1);
    assert_eq!(flip(&cluster, "datanode-102", &both), 1);
    let one = cluster.admin(&["scrub", "start", "--node", "101"]);
    assert_eq!(one.as_array().unwrap().len(), 1);
    cluster.admin(&["scrub", "start", "--node", "102"]);
    wait_scrubbed(&cluster, round + 1, 1);
    eventually("health tells of it", SCRUBBED, || {
        cluster
            .try_admin(&["health"])
            .is_err_and(|error| error.contains("degraded"))
    });
    let file = File::options()
        .read(true)
        .write(true)
        .open(path(5))
        .unwrap();
    let (start, mut read) = (512 * BLOCK, vec![0; 16 * BLOCK as usize]);
    file.read_exact_at(&mut read, start).unwrap();
    assert!(read == content(5)[start as usize..][..read.len()]);
    let error = file.read_exact_at(&mut read, 600 * BLOCK).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    // The application writes it again.
    file.write_all_at(&block(5, 600), 600 * BLOCK).unwrap();
    file.sync_all().unwrap();
    wait_scrubbed(&cluster, round + 1, 0);
    wait_healthy(&cluster);
    cluster.remount();
    for file in 0..FILES {
        assert!(
            std::fs::read(path(file)).unwrap() == content(file),
            "file {file}"
        );
    }
}

#[test]
fn a_datanode_that_there_is_not_and_one_that_is_silent_are_named() {
    let cluster = Cluster::start();
    let wrong = cluster
        .try_admin(&["scrub", "start", "--node", "7"])
        .unwrap_err();
    assert!(
        wrong.contains("no datanode 7") && wrong.contains("101, 102, 103"),
        "{wrong}"
    );
    cluster.kill("datanode-102");
    let status = cluster.admin(&["scrub", "status"]);
    let silent: Vec<_> = status
        .as_array()
        .unwrap()
        .iter()
        .filter(|of| !of["error"].is_null())
        .collect();
    assert_eq!(silent.len(), 1);
    assert_eq!(silent[0]["datanode"], 102);
    let error = cluster.try_admin(&["scrub", "start"]).unwrap_err();
    assert!(error.contains("datanode 102"), "{error}");
}
