//! Servers that are started wrongly: ports, secrets, directories of others.

use crate::attempt::{Attempt, address, lumeofs, nobody, peers, secret, text};
use lumeofs_tests::{Cluster, binary, eventually, run, shell};
use std::path::Path;
use std::time::Duration;

/// What differs from case to case: id, address, data directory, secret file.
type Case<'a> = (&'a str, &'a str, &'a Path, &'a str);

fn server(kind: &[&str], (id, listen, data, secret): Case<'_>) -> Attempt {
    let data = text(data);
    let rest = [
        "--id", id, "--listen", listen, "--data", &data, "--secret", secret,
    ];
    lumeofs(&[kind, &rest].concat())
}

#[test]
fn a_server_that_was_started_wrongly_ends_with_the_reason() {
    let cluster = Cluster::start();
    let (masters, peers, good) = (cluster.masters(), peers(&cluster), secret(&cluster));
    let master = |case: Case<'_>| server(&["master", "--peers", &peers], case);
    let datanode = |case: Case<'_>| server(&["datanode", "--masters", &masters], case);
    let scratch = cluster.scratch();
    let (other, wrong) = (text(&scratch.join("other")), text(&scratch.join("wrong")));
    run(binary(), &["keygen", &other]);
    shell(
        &scratch,
        &format!("(grep cluster_id {good}; grep ^secret {other}) > {wrong}"),
    );
    let (m1, d1) = (
        cluster.dir().join("master-1"),
        cluster.dir().join("datanode-101"),
    );
    let free = nobody();
    master(("1", &free, &m1, &good)).says(1, &["in use by another process"]);
    datanode(("101", &free, &d1, &good)).says(1, &["in use by another process"]);

    let (taken_m, taken_d) = (
        address(&cluster, "master-1"),
        address(&cluster, "datanode-101"),
    );
    let new = |name: &str| scratch.join(name);
    master(("1", &taken_m, &new("a"), &good)).says(1, &[&taken_m, "port is in use", "--listen"]);
    datanode(("109", &taken_d, &new("b"), &good))
        .says(1, &[&taken_d, "port is in use", "--listen"]);

    // Copies, since the originals are locked.
    let (mcopy, dcopy) = (new("mcopy"), new("dcopy"));
    for (from, to) in [(&m1, &mcopy), (&d1, &dcopy)] {
        run("cp", &["-a", "--sparse=always", &text(from), &text(to)]);
    }
    master(("2", &free, &mcopy, &good)).says(8, &["belongs to another", "node = 1", "node = 2"]);
    master(("1", &free, &mcopy, &other)).says(8, &["belongs to another", "cluster"]);
    master(("1", &free, &dcopy, &good)).says(8, &["is that of a datanode"]);
    datanode(("102", &free, &dcopy, &good)).says(8, &["belongs to node n101", "n102"]);
    datanode(("101", &free, &dcopy, &other)).says(8, &["belongs to node n101", "cluster"]);
    datanode(("101", &free, &mcopy, &good)).says(8, &["is that of a master"]);
    shell(
        &scratch,
        "sed -i 's/format = 1/format = 7/' mcopy/superblock
         printf '\\x07' | dd of=dcopy/chunks/superblock bs=1 seek=8 conv=notrunc status=none",
    );
    master(("1", &free, &mcopy, &good)).says(1, &["format \"7\"", "release that wrote it"]);
    datanode(("101", &free, &dcopy, &good)).says(1, &["format version 7", "release that wrote it"]);

    let file = new("file");
    std::fs::write(&file, "").unwrap();
    datanode(("109", &free, &file, &good)).says(1, &["is not a directory"]);
    master(("4", &free, &new("c"), &good)).says(1, &["--id 4 is not among --peers"]);
    datanode(("0", &free, &new("d"), &good)).says(1, &["--id 0"]);
    // Nobody would ever talk to these.
    datanode(("109", &free, &new("e"), &wrong)).says(8, &["wrong cluster secret"]);
    master(("2", &free, &new("f"), &wrong)).says(8, &["all other masters refuse", "secret"]);
    // The cluster did not mind any of it.
    cluster.wait_in_sync(Duration::from_secs(60));
    std::fs::write(cluster.mount().join("file"), "works").unwrap();
}

/// Whether the leaders of both groups know that a master has some of the log.
fn has_entries(cluster: &Cluster, master: u64) -> bool {
    let groups = cluster.try_admin(&["raft"]).unwrap_or_default();
    let groups = groups.as_array().cloned().unwrap_or_default();
    let followers = groups
        .iter()
        .filter_map(|group| group["followers"].as_array());
    let mine = followers.flatten().filter(|one| one["node"] == master);
    mine.filter(|one| one["matched"].as_u64() > Some(0)).count() == 2
}

#[test]
fn a_master_that_lost_its_logs_does_not_vote_again() {
    let cluster = Cluster::start();
    std::fs::write(cluster.mount().join("kept"), "kept").unwrap();
    let leader = cluster.leader("metadata");
    let mut masters = ["master-1", "master-2", "master-3"].into_iter();
    let follower = masters.find(|name| *name != leader).unwrap();
    let id = follower.strip_prefix("master-").unwrap();
    eventually("it has taken part", Duration::from_secs(20), || {
        has_entries(&cluster, id.parse().unwrap())
    });
    cluster.kill(follower);
    let (dir, away) = (cluster.dir().join(follower), cluster.scratch().join("away"));
    run("mv", &[&text(&dir), &text(&away)]);
    let (listen, peers, secret) = (
        address(&cluster, follower),
        peers(&cluster),
        secret(&cluster),
    );
    server(&["master", "--peers", &peers], (id, &listen, &dir, &secret))
        .says(8, &["has no log", "must not vote again", "restore"]);
    // The way out that it names.
    run("rm", &["-r", &text(&dir)]);
    run("mv", &[&text(&away), &text(&dir)]);
    cluster.restart(follower);
    cluster.kill(&leader);
    let kept = std::fs::read_to_string(cluster.mount().join("kept")).unwrap();
    assert_eq!(kept, "kept");
    std::fs::write(cluster.mount().join("new"), "new").unwrap();
}
