//! Disks that are full, read-only or failing.

use crate::attempt::{ends, errno, nobody, secret, text};
use crate::disk::Disks;
use lumeofs_tests::{Cluster, Prober, binary, eventually, fill, pull_out, run};
use rustix::io::Errno;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);
/// When all groups must be in sync again, also on a slow machine.
const RECOVERED: Duration = Duration::from_secs(60);

/// The MiB with this number of a file that differs everywhere.
fn piece(number: u64) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(1 << 17).flatten().collect()
}

/// Writes until it fails; how many MiB were taken, and the error.
fn write_until_full(path: &Path) -> (u64, Option<Errno>) {
    let mut file = File::create(path).unwrap();
    for number in 0.. {
        if let Err(error) = file.write_all(&piece(number)) {
            // What was acknowledged is kept: fsync does not fail for the write that did.
            file.sync_all().unwrap();
            return (number, Errno::from_io_error(&error));
        }
    }
    unreachable!("a disk has an end")
}

#[track_caller]
fn holds(path: &Path, mib: u64) {
    let file = File::open(path).unwrap();
    let mut read = vec![0; 1 << 20];
    for number in 0..mib {
        file.read_exact_at(&mut read, number << 20).unwrap();
        assert!(read == piece(number), "MiB {number}");
    }
}

/// A full disk takes no node out of its groups. One that was busy may be behind for a moment.
#[track_caller]
fn nobody_fell_out(cluster: &Cluster) {
    cluster.wait_in_sync(RECOVERED);
    for node in ["datanode-101", "datanode-102", "datanode-103"] {
        let said = said(cluster, node);
        assert!(!said.contains("out of service"), "{node}:\n{said}");
    }
}

/// What a node has logged.
fn said(cluster: &Cluster, node: &str) -> String {
    let log = cluster.dir().join(format!("logs/{node}.log"));
    std::fs::read_to_string(log).unwrap()
}

#[test]
fn a_full_cluster_is_enospc_to_the_writer_and_space_that_was_freed_is_used_again() {
    let mut disks = Disks::new();
    for node in ["datanode-101", "datanode-102", "datanode-103"] {
        disks.add(node, 512);
    }
    let cluster = Cluster::start_at(&disks.path(), &[]);
    let mount = cluster.mount();
    let (kept, large) = (mount.join("kept"), mount.join("large"));
    std::fs::write(&kept, piece(77)).unwrap();
    let (mib, error) = write_until_full(&large);
    println!("{mib} MiB fit on three disks of 512 MiB");
    assert_eq!(error, Some(Errno::NOSPC));
    assert!(mib > 200, "most of the disk is for data: {mib} MiB");

    // Everything else goes on.
    assert!(std::fs::read(&kept).unwrap() == piece(77));
    holds(&large, mib);
    std::fs::create_dir(mount.join("directory")).unwrap();
    File::create(mount.join("empty")).unwrap();
    std::fs::rename(&kept, mount.join("directory/kept")).unwrap();
    let more = std::fs::write(mount.join("more"), piece(1));
    assert_eq!(errno(more), Some(Errno::NOSPC));
    nobody_fell_out(&cluster);

    std::fs::remove_file(&large).unwrap();
    eventually("freed space is used again", SOON, || {
        let mut file = File::create(&large).unwrap();
        let written = (0..mib / 2).try_for_each(|number| file.write_all(&piece(number)));
        written.and_then(|()| file.sync_all()).is_ok()
    });
    holds(&large, mib / 2);
    assert!(std::fs::read(mount.join("directory/kept")).unwrap() == piece(77));
}

#[test]
fn when_something_else_fills_the_disk_of_all_servers_nothing_dies_and_nothing_is_lost() {
    let mut disks = Disks::new();
    let disk = disks.add("", 2048);
    let cluster = Cluster::start_at(&disks.path(), &[]);
    let mount = cluster.mount();
    let path = mount.join("file");
    std::fs::write(&path, [piece(1), piece(2), piece(3)].concat()).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    file.sync_all().unwrap();
    std::fs::write(mount.join("other"), "other").unwrap();

    let hog = fill(&disk);
    let new = mount.join("new");
    eventually("new objects are ENOSPC", SOON, || {
        let made = std::fs::create_dir(&new);
        if made.is_ok() {
            std::fs::remove_dir(&new).unwrap();
        }
        errno(made) == Some(Errno::NOSPC)
    });
    eventually("writes are ENOSPC", SOON, || {
        let written = file.write_all_at(&piece(1), 0);
        errno(written.and_then(|()| file.sync_all())) == Some(Errno::NOSPC)
    });
    file.sync_all().unwrap();
    let content = || std::fs::read(&path).unwrap();
    assert!(content() == [piece(1), piece(2), piece(3)].concat());
    std::fs::rename(mount.join("other"), mount.join("renamed")).unwrap();
    std::fs::remove_file(mount.join("renamed")).unwrap();
    nobody_fell_out(&cluster);

    std::fs::remove_file(hog).unwrap();
    eventually("there is space again", SOON, || {
        let written = file.write_all_at(&piece(9), 1 << 20);
        written.and_then(|()| file.sync_all()).is_ok() && std::fs::write(&new, piece(4)).is_ok()
    });
    assert!(content() == [piece(1), piece(9), piece(3)].concat());
    for number in 1..=3 {
        assert!(cluster.pid(&format!("master-{number}")).is_some());
        assert!(cluster.pid(&format!("datanode-{}", 100 + number)).is_some());
    }
}

#[test]
fn when_the_disk_of_the_leading_master_is_full_another_leads_and_no_call_fails() {
    let mut disks = Disks::new();
    for master in ["master-1", "master-2", "master-3"] {
        disks.add(master, 512);
    }
    let cluster = Cluster::start_at(&disks.path(), &[]);
    let mount = cluster.mount();
    let full = cluster.leader("metadata");
    let prober = Prober::start(&mount);
    let hog = fill(&disks.path().join(&full));
    eventually("another master leads", SOON, || {
        cluster.leader("metadata") != full
    });
    let stall = prober.longest_since_reset();
    println!("{full} was full, longest call {stall:?}");
    std::thread::sleep(Duration::from_secs(2));
    assert!(prober.longest_since_reset().max(stall) < Duration::from_secs(6));
    assert_ne!(cluster.leader("metadata"), full);
    std::fs::remove_file(hog).unwrap();
    prober.finish(&mount);
    // It has it all again: it is enough together with one that led before.
    let other = ["master-1", "master-2", "master-3"]
        .into_iter()
        .find(|master| *master != full && *master != cluster.leader("metadata"));
    cluster.kill(other.unwrap());
    std::fs::create_dir(mount.join("afterwards")).unwrap();
}

#[test]
fn a_disk_that_fails_takes_its_node_out_and_no_call_notices() {
    let mut disks = Disks::new();
    let data = disks.add("datanode-101", 1024);
    let log = disks.add("master-2", 1024);
    let cluster = Cluster::start_at(&disks.path(), &[]);
    let path = cluster.mount().join("file");
    let file = File::create(&path).unwrap();
    let write = |number: u64| {
        file.write_all_at(&piece(number), number << 20).unwrap();
        file.sync_all().unwrap();
        std::fs::create_dir(cluster.mount().join(format!("d{number}"))).unwrap();
    };
    (0..10).for_each(write);
    pull_out(&data);
    pull_out(&log);
    (10..40).for_each(write);
    eventually("the failing master ends", SOON, || {
        cluster.pid("master-2").is_none()
    });
    eventually("all groups do without the failing disk", SOON, || {
        let groups = cluster.admin(&["groups"]);
        let mut groups = groups.as_array().unwrap().iter();
        groups.all(|group| {
            let mut members = group["in_sync"].as_array().unwrap().iter();
            members.all(|member| member.as_u64() != Some(101))
        })
    });
    let datanode = said(&cluster, "datanode-101");
    assert!(datanode.contains("out of service"));
    assert!(datanode.contains("Input/output error"));
    assert!(said(&cluster, "master-2").contains("Input/output error"));

    // The same disks, back again.
    let pid = cluster.pid("datanode-101").unwrap().to_string();
    run("kill", &[&pid]);
    eventually("it stops", SOON, || cluster.pid("datanode-101").is_none());
    for node in ["datanode-101", "master-2"] {
        disks.unmount(node);
        disks.mount(node, "loop");
        cluster.restart(node);
    }
    cluster.wait_in_sync(RECOVERED);
    cluster.kill("datanode-102");
    holds(&path, 40);
}

#[test]
fn a_read_only_disk_is_named_at_the_start() {
    let mut disks = Disks::new();
    for node in ["datanode-101", "master-2"] {
        disks.add(node, 256);
        disks.unmount(node);
        disks.mount(node, "loop,ro");
    }
    let cluster = Cluster::start_with(&["--no-mount"]);
    let (secret, listen, masters) = (secret(&cluster), nobody(), cluster.masters());
    let peers = format!("1={listen},2={},3={}", nobody(), nobody());
    let servers = [
        ("datanode", "101", "--masters", &masters),
        ("master", "2", "--peers", &peers),
    ];
    for (kind, id, option, others) in servers {
        let data = text(&disks.path().join(format!("{kind}-{id}")));
        let mut command = Command::new(binary());
        command.args([kind, "--id", id, option, others, "--listen", &listen]);
        command.args(["--secret", &secret, "--data", &data]);
        ends(&mut command).says(5, &[&data, "Read-only", "remount"]);
    }
}
