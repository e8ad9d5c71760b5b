//! The cluster tells the truth about itself: health follows what happens within seconds, and a check finds what
//! does not belong.

use lumeofs_tests::{Cluster, binary, eventually, run};
use serde_json::Value;
use std::fs::File;
use std::process::Command;
use std::time::Duration;

/// How long the truth may take: a silent datanode is known as such after four seconds.
const SOON: Duration = Duration::from_secs(15);
/// How long a datanode that is back may take to be in sync everywhere.
const BACK: Duration = Duration::from_secs(60);

/// Exit code and JSON of an admin command that may find something.
fn admin(cluster: &Cluster, arguments: &[&str]) -> (i32, Value) {
    let output = Command::new(binary())
        .args(["admin", "--json", "--dir"])
        .arg(cluster.dir())
        .args(arguments)
        .output()
        .expect("the binary runs");
    let code = output.status.code().expect("it was not killed");
    let value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        let text = String::from_utf8_lossy(&output.stderr);
        panic!("admin {arguments:?}: {code}: {error}: {text}")
    });
    (code, value)
}

fn state(cluster: &Cluster) -> (i32, String) {
    let (code, health) = admin(cluster, &["health"]);
    (code, health["state"].as_str().unwrap_or("").to_owned())
}

fn wait_for(cluster: &Cluster, wanted: (i32, &str), limit: Duration) {
    eventually(&format!("health is {wanted:?}"), limit, || {
        let (code, state) = state(cluster);
        (code, state.as_str()) == wanted
    });
}

/// Chunks at a level.
fn chunks(health: &Value, level: &str) -> u64 {
    health["data"]["levels"][level]["chunks"]
        .as_u64()
        .unwrap_or_else(|| panic!("no {level} in {health}"))
}

fn write(cluster: &Cluster, name: &str, len: usize) {
    let path = cluster.mount().join(name);
    std::fs::write(&path, vec![7; len]).unwrap();
    File::open(&path).unwrap().sync_all().unwrap();
}

#[test]
fn health_follows_a_datanode_that_dies_and_comes_back_within_seconds() {
    let cluster = Cluster::start();
    cluster.wait_in_sync(BACK);
    for number in 0..30 {
        write(&cluster, &format!("f{number}"), 10_000);
    }
    wait_for(&cluster, (0, "healthy"), SOON);
    // And that of the file with which the cluster was tried is deleted.
    eventually("every chunk is attested", SOON, || {
        chunks(&admin(&cluster, &["health"]).1, "full") == 30
    });
    let before = admin(&cluster, &["health"]).1;
    let all = chunks(&before, "full");
    assert_eq!(before["data"]["datanodes_that_may_fail_for_data"], 2);
    assert_eq!(before["data"]["datanodes_that_may_fail_for_writes"], 1);
    assert_eq!(before["masters_that_may_fail"], 1);

    cluster.kill("datanode-101");
    wait_for(&cluster, (9, "degraded"), SOON);
    eventually("all chunks of its groups are reduced", SOON, || {
        let health = admin(&cluster, &["health"]).1;
        health["data"]["silent"].as_array().map(Vec::len) == Some(1)
            && chunks(&health, "reduced") == all
            && chunks(&health, "full") == 0
    });
    let health = admin(&cluster, &["health"]).1;
    assert_eq!(health["data"]["datanodes_that_may_fail_for_data"], 1);
    assert_eq!(health["data"]["datanodes_that_may_fail_for_writes"], 0);

    cluster.restart("datanode-101");
    wait_for(&cluster, (0, "healthy"), BACK);
    assert_eq!(chunks(&admin(&cluster, &["health"]).1, "full"), all);
}

#[test]
fn the_last_copy_names_its_files_and_no_master_is_no_health() {
    let cluster = Cluster::start();
    cluster.wait_in_sync(BACK);
    std::fs::create_dir(cluster.mount().join("dir")).unwrap();
    write(&cluster, "dir/precious", 10_000);
    wait_for(&cluster, (0, "healthy"), SOON);
    cluster.kill("datanode-101");
    cluster.kill("datanode-102");
    wait_for(&cluster, (9, "critical"), SOON);
    eventually("the file is named", SOON, || {
        let health = admin(&cluster, &["health"]).1;
        let files = health["data"]["files"].as_array().cloned();
        let named = |file: &Value| file["path"] == "/dir/precious" && file["level"] == "last copy";
        files.is_some_and(|files| files.iter().any(named))
    });
    cluster.restart("datanode-101");
    cluster.restart("datanode-102");
    wait_for(&cluster, (0, "healthy"), BACK);

    cluster.kill("master-1");
    cluster.kill("master-2");
    wait_for(&cluster, (7, "unknown"), SOON);
    cluster.restart("master-1");
    cluster.restart("master-2");
    wait_for(&cluster, (0, "healthy"), BACK);
}

#[test]
fn a_chunk_that_no_file_has_is_found_and_deleted() {
    let cluster = Cluster::start();
    cluster.wait_in_sync(BACK);
    write(&cluster, "stays", 10_000);
    write(&cluster, "orphan", 10_000);
    let clean = |cluster: &Cluster| admin(cluster, &["fsck"]);
    let (code, found) = clean(&cluster);
    assert_eq!((code, &found["findings"]), (0, &0.into()), "{found}");
    assert!(found["metadata_index"].as_u64() > Some(0), "{found}");
    wait_for(&cluster, (0, "healthy"), SOON);
    let count = || chunks(&admin(&cluster, &["health"]).1, "full");
    eventually("both files have a chunk", SOON, || count() >= 2);
    let before = count();

    // The datanodes as they are now come back after the file was removed and its chunk deleted.
    cluster.stop();
    let saved = cluster.scratch();
    let nodes = ["datanode-101", "datanode-102", "datanode-103"];
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        let (from, to) = (from.to_str().unwrap(), to.to_str().unwrap());
        run("rm", &["-rf", to]);
        run("cp", &["-a", "--sparse=always", from, to]);
    };
    for node in nodes {
        copy(&cluster.dir().join(node), &saved.join(node));
    }
    cluster.bring_up(&[]);
    std::fs::remove_file(cluster.mount().join("orphan")).unwrap();
    eventually("its chunk is deleted", BACK, || {
        let (code, health) = admin(&cluster, &["health"]);
        code == 0 && chunks(&health, "full") < before
    });
    // Which also takes longer than the note that it is deleted.
    let (code, found) = clean(&cluster);
    assert_eq!((code, &found["findings"]), (0, &0.into()), "{found}");
    cluster.stop();
    for node in nodes {
        copy(&saved.join(node), &cluster.dir().join(node));
    }
    cluster.bring_up(&[]);
    cluster.wait_in_sync(BACK);

    // They are read by and by.
    let mut last = (0, Value::Null);
    eventually("every replica can be checked", SOON, || {
        last = clean(&cluster);
        let list = last.1["list"].as_array();
        list.is_some_and(|list| list.iter().all(|found| found["kind"] != "unchecked"))
    });
    let (code, found) = last;
    let orphans = found["list"].as_array().unwrap();
    // The file with which the cluster was tried may have left one too.
    assert!(code == 9 && (1..=2).contains(&orphans.len()), "{found}");
    let count = orphans.len();
    assert!(
        orphans.iter().all(|orphan| orphan["kind"] == "orphan"),
        "{found}"
    );
    let (code, found) = admin(&cluster, &["fsck", "--repair"]);
    assert_eq!((code, &found["repaired"]), (0, &count.into()), "{found}");
    eventually("it is gone", BACK, || clean(&cluster).1["findings"] == 0);
    let kept = std::fs::read(cluster.mount().join("stays")).unwrap();
    assert!(kept == vec![7; 10_000]);
}
