//! All masters are lost with all that they had, and a new one is made from a dump that is out of date: files were
//! made, changed and deleted since, and replicas moved.

use lumeofs_tests::{MachineMount, Machines, binary, eventually, free_address, pause, run};
use serde_json::Value;
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(90);

fn content(name: &str) -> Vec<u8> {
    let seed = name.bytes().map(usize::from).sum::<usize>();
    (0..300_000 + seed)
        .map(|at| (at * seed / 7) as u8)
        .collect()
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).expect("a file is written");
    let file = std::fs::File::open(path).expect("it is there");
    file.sync_all().expect("it is on disk");
}

fn json(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"))
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Findings of a check by kind, and the whole.
fn check(
    machines: &Machines,
    masters: &str,
    arguments: &[&str],
) -> (BTreeMap<String, usize>, Value) {
    let mut all = vec!["fsck"];
    all.extend(arguments);
    let whole = json(&machines.admin(masters, &all));
    let mut kinds = BTreeMap::new();
    for finding in whole["list"].as_array().expect("a list") {
        let kind = finding["kind"].as_str().expect("a kind").to_owned();
        *kinds.entry(kind).or_insert(0) += 1;
    }
    (kinds, whole)
}

fn is_healthy(machines: &Machines, masters: &str) -> bool {
    machines.admin(masters, &["health"]).status.success()
}

#[test]
fn a_cluster_that_lost_all_masters_lives_on_from_a_dump_that_is_out_of_date() {
    let (machines, m1) = Machines::found("2");
    let first = machines.first.clone();
    let d1 = machines.join("datanode", "d1");
    let d2 = machines.join("datanode", "d2");
    let d3 = machines.join("datanode", "d3");
    eventually("a file can be written", SOON, || {
        machines.put(&first, "/probe").status.success()
    });
    let m2 = machines.join("master", "m2");
    let m3 = machines.join("master", "m3");
    let (id2, id3) = (machines.id("m2"), machines.id("m3"));
    for id in [id2, id3] {
        machines.wait_candidate(&first, id);
    }
    machines.change(&first, &["add", &id2.to_string(), &id3.to_string()]);
    let all = machines.addresses();
    assert_eq!(all.split(',').count(), 3, "{all}");
    // It is lost with the master's directory.
    let secret = machines.dir.path().join("kept-secret");
    std::fs::copy(machines.secret(), &secret).expect("a copy");
    let old = MachineMount::new(&machines, &all, "old", &secret, ",on-outage=eio");
    let names: Vec<String> = (0..12).map(|at| format!("file-{at}")).collect();
    for name in &names {
        write(&old.path(name), &content(name));
    }
    write(&old.path("changed"), &[1; 400_000]);
    write(&old.path("shrunk"), &[2; 400_000]);
    write(&old.path("deleted"), &[3; 400_000]);

    // The dump is taken while files are written.
    let stop = AtomicBool::new(false);
    let dump = machines.dir.path().join("dump");
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                write(&old.path(&format!("during-{count}")), &[4; 10_000]);
                count += 1;
            }
            count
        });
        let taken = machines.admin(
            &all,
            &["meta", "dump", "--out", dump.to_str().expect("ASCII")],
        );
        stop.store(true, Ordering::Relaxed);
        assert!(taken.status.success(), "{}", said(&taken));
        assert!(json(&taken)["rows"].as_u64() > Some(30));
        assert!(writer.join().expect("the writer") > 0);
    });

    // What is cut off or damaged is told.
    let bytes = std::fs::read(&dump).expect("the dump");
    let bad = machines.dir.path().join("bad");
    let shown = bad.to_str().expect("ASCII");
    std::fs::write(&bad, &bytes[..bytes.len() - 9]).expect("a file");
    let info = machines.admin(&all, &["meta", "info", shown]);
    assert!(said(&info).contains("cut off"), "{}", said(&info));
    let mut flipped = bytes;
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    std::fs::write(&bad, &flipped).expect("a file");
    let load = machines.admin(&all, &["meta", "load", shown, "--dry-run"]);
    assert!(said(&load).contains("damaged"), "{}", said(&load));

    // Afterwards all kinds of things happen that the dump does not know.
    write(&old.path("after"), &[5; 400_000]);
    let changed = std::fs::File::options()
        .write(true)
        .open(old.path("changed"));
    let changed = changed.expect("a file");
    changed
        .write_all_at(&[6; 400_000], 0)
        .expect("it is changed");
    changed.sync_all().expect("it is on disk");
    let shrunk = std::fs::File::options()
        .write(true)
        .open(old.path("shrunk"));
    shrunk.expect("a file").set_len(100_000).expect("it is cut");
    std::fs::remove_file(old.path("deleted")).expect("it is deleted");
    let d4 = machines.join("datanode", "d4");
    let moved_away = machines.id("d3").to_string();
    let mut drain = Command::new("timeout");
    drain.arg("120").arg(binary());
    drain
        .args(["admin", "--masters", &all, "--secret"])
        .arg(&secret);
    eventually("datanode 4 is there", SOON, || {
        let nodes = json(&machines.admin(&all, &["node", "list"])).to_string();
        nodes.contains(&format!("\"id\":{}", machines.id("d4")))
    });
    let drained = drain.args(["node", "remove", &moved_away]).output();
    let drained = drained.expect("the binary runs");
    assert!(drained.status.success(), "{}", said(&drained));

    // All masters are lost. Some datanodes run on, others are killed.
    drop((m1, m2, m3));
    for name in ["m1", "m2", "m3"] {
        std::fs::remove_dir_all(machines.data(name)).expect("the directory");
    }
    drop((d2, d3, d4));
    let d2 = machines.start("datanode", "d2", &[]);
    let d4 = machines.start("datanode", "d4", &[]);

    // The new master listens where one of them did: datanodes need not be told.
    let load = |secret: &Path| {
        let mut command = Command::new(binary());
        command.args(["admin", "meta", "load"]).arg(&dump);
        command
            .args(["--listen", &first, "--data"])
            .arg(machines.data("m1"));
        command.arg("--secret").arg(secret);
        command.output().expect("the binary runs")
    };
    let other = machines.dir.path().join("other-secret");
    run(binary(), &["keygen", other.to_str().expect("ASCII")]);
    let refused = load(&other);
    assert_eq!(refused.status.code(), Some(8), "{}", said(&refused));
    let loaded = load(&secret);
    assert!(loaded.status.success(), "{}", said(&loaded));
    assert_eq!(load(&secret).status.code(), Some(8), "it is not empty");
    let m1 = machines.start("master", "m1", &[]);
    eventually("all groups are found", SOON, || {
        let health = json(&machines.admin(&first, &["health"]))["data"].clone();
        health["groups_sought"]
            .as_array()
            .is_some_and(Vec::is_empty)
            && health["datanodes"].as_u64() >= Some(3)
    });

    // Sessions of old mounts are over; they go on in new ones.
    eventually("the old mount can write again", SOON, || {
        std::fs::write(old.path("late"), b"late").is_ok()
    });
    let sessions = json(&machines.admin(&first, &["session", "list"]));
    let sessions = sessions.as_array().expect("a list").iter();
    let ids: Vec<_> = sessions
        .filter_map(|session| session["id"].as_u64())
        .collect();
    assert!(ids.iter().all(|id| *id > 1 << 40), "{ids:?}");
    let new = MachineMount::new(&machines, &first, "new", &secret, ",on-outage=eio");
    eventually("files can be read", SOON, || {
        std::fs::read(new.path("file-0")).is_ok()
    });
    let look = |mount: &MachineMount| {
        for name in &names {
            let read = std::fs::read(mount.path(name)).expect("a file of the dump");
            assert!(read == content(name), "{name}");
        }
        let changed = std::fs::read(mount.path("changed")).expect("it is there");
        assert!(changed == [6; 400_000]);
        let shrunk = std::fs::read(mount.path("shrunk")).expect("it is there");
        assert_eq!(shrunk[..100_000], [2; 100_000]);
        assert!(!mount.path("after").exists());
        let late = std::fs::read(mount.path("late")).expect("it is there");
        assert_eq!(late, b"late");
    };
    look(&new);
    // The file that was deleted after the dump has a name again, and its data is gone: that is told, not made up.
    let deleted = std::fs::read(new.path("deleted"));
    assert!(
        deleted
            .as_ref()
            .map_or(true, |bytes| *bytes == [3; 400_000]),
        "zeros for lost data"
    );

    // What is left over stays until somebody says otherwise.
    let (kinds, whole) = check(&machines, &first, &[]);
    assert!(kinds.get("orphan") > Some(&0), "{kinds:?}");
    assert_eq!(whole["deletions_held"], true);
    let others = kinds
        .keys()
        .filter(|kind| !["orphan", "deleted"].contains(&kind.as_str()));
    assert_eq!(others.count(), 0, "{whole}");
    std::fs::remove_file(new.path("deleted")).expect("it can be deleted");
    pause(Duration::from_secs(7));
    let (_, whole) = check(&machines, &first, &["--repair"]);
    assert_eq!(whole["deletions_held"], false, "{whole}");
    eventually("nothing is left over", SOON, || {
        check(&machines, &first, &[]).0.is_empty()
    });

    // The cluster goes on: new files, and a restart of everything.
    write(&new.path("new"), &content("new"));
    drop((m1, d1, d2, d4));
    let _running = [
        machines.start("master", "m1", &[]),
        machines.start("datanode", "d1", &[]),
        machines.start("datanode", "d2", &[]),
        machines.start("datanode", "d4", &[]),
    ];
    eventually("files can be read again", SOON, || {
        std::fs::read(new.path("new")).is_ok_and(|read| read == content("new"))
    });
    look(&new);
    // The dump has the datanode that was removed after it.
    let removed = machines.admin(&first, &["node", "remove", &moved_away]);
    assert!(removed.status.success(), "{}", said(&removed));
    let newer = machines.start(
        "master",
        "m5",
        &["--join", &machines.token(), "--listen", &free_address()],
    );
    let id = machines.id("m5");
    machines.wait_candidate(&first, id);
    machines.change(&first, &["add", &id.to_string()]);
    eventually("the cluster is healthy", SOON, || {
        is_healthy(&machines, &machines.addresses())
    });
    drop(newer);
}
