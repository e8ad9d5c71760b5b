//! A cluster of processes that join with tokens, as on real machines: masters are added, replaced and removed while
//! files are written, and nodes find their cluster again when all the masters that they were told are gone.

use lumeofs_tests::{Machines, binary, eventually, free_address};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

fn succeeded(output: &Output) -> bool {
    if !output.status.success() {
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    }
    output.status.success()
}

fn mode(file: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    let metadata = std::fs::metadata(file).expect("a file");
    metadata.permissions().mode() & 0o777
}

#[test]
fn machines_join_with_a_token_and_masters_come_and_go_while_files_are_written() {
    let (machines, mut m1) = Machines::found("1");
    let mut d1 = machines.join("datanode", "d1");
    machines.id("d1");
    assert_eq!(mode(&machines.data("d1").join("secret")), 0o600);
    let first = machines.first.clone();
    eventually("a file can be written", SOON, || {
        machines.put(&first, "/before").status.success()
    });

    // Two more masters, admitted together, while files are written.
    let m2 = machines.join("master", "m2");
    let m3 = machines.join("master", "m3");
    let (id2, id3) = (machines.id("m2"), machines.id("m3"));
    assert_ne!(id2, id3);
    for id in [id2, id3] {
        machines.wait_candidate(&first, id);
    }
    let stop = AtomicBool::new(false);
    let written = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                assert!(succeeded(
                    &machines.put(&first, &format!("/during-{count}"))
                ));
                count += 1;
            }
            count
        });
        machines.change(&first, &["add", &id2.to_string(), &id3.to_string()]);
        stop.store(true, Ordering::Relaxed);
        writer.join().expect("the writer")
    });
    assert!(written > 0);
    let all = machines.addresses();
    assert_eq!(all.split(',').count(), 3, "{all}");

    eventually("the datanode has heard of the new ones", SOON, || {
        let known = std::fs::read_to_string(machines.data("d1").join("masters"));
        known.is_ok_and(|known| known.lines().count() == 3)
    });

    // The first one is lost with all that it had; a new one takes its place.
    let token = machines.token();
    m1.kill().expect("a process");
    drop(m1);
    let secret = machines.dir.path().join("secret");
    std::fs::copy(machines.secret(), &secret).expect("a copy");
    std::fs::remove_dir_all(machines.data("m1")).expect("the directory");
    std::fs::create_dir(machines.data("m1")).expect("a directory");
    std::fs::copy(secret, machines.secret()).expect("a copy");
    let m4 = machines.start(
        "master",
        "m4",
        &["--join", &token, "--listen", &free_address()],
    );
    let id4 = machines.id("m4");
    machines.wait_candidate(&all, id4);
    let list = machines.change(&all, &["replace", "1", &id4.to_string()]);
    let state = |list: &Value, id: u64| {
        let masters = list.as_array().expect("a list").iter();
        let mut masters = masters.filter(|master| master["id"] == id);
        masters
            .next()
            .map(|master| master["state"].as_str().unwrap_or("").to_owned())
    };
    assert_eq!(state(&list, 1).as_deref(), Some("removed"));
    assert_eq!(state(&list, id4).as_deref(), Some("voter"));

    // The datanode was told the first master only, and finds the others.
    d1.kill().expect("a process");
    drop(d1);
    let _d1 = machines.start("datanode", "d1", &[]);
    eventually("a file can be written again", SOON, || {
        machines.put(&all, "/after").status.success()
    });

    // A removed master ends, says why, and does not come back.
    let mut m3 = m3;
    let list = machines.change(&all, &["remove", &id3.to_string()]);
    assert_eq!(state(&list, id3).as_deref(), Some("removed"));
    eventually("the removed master ends", SOON, || {
        m3.try_wait().expect("a child").is_some()
    });
    let mut again = machines.start("master", "m3", &[]);
    eventually("it ends again", SOON, || {
        again.try_wait().expect("a child").is_some()
    });
    let code = again.try_wait().expect("a child").expect("it ended").code();
    assert_eq!(code, Some(8), "refused");
    let log = std::fs::read_to_string(machines.log("m3")).expect("a log");
    assert!(log.contains("was removed from this cluster"), "{log}");
    assert!(machines.put(&all, "/last").status.success());
    drop((m2, m4));
}

#[test]
fn a_token_that_was_cut_off_is_told_and_a_directory_without_one_too() {
    let (machines, _m1) = Machines::found("1");
    let token = std::fs::read_to_string(&machines.token()[1..]).expect("a token");
    let token = token.trim();
    let join = |token: &str| {
        let mut command = Command::new(binary());
        command.args(["datanode", "--listen", "127.0.0.1:1", "--data"]);
        command.arg(machines.data("x")).args(["--join", token]);
        command.output().expect("the binary runs")
    };
    let output = join(&token[..token.len() - 3]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && said.contains("cut off"),
        "{said}"
    );
    let mut command = Command::new(binary());
    command
        .args(["datanode", "--listen", "127.0.0.1:1", "--data"])
        .arg(machines.data("x"));
    let output = command
        .env_remove("LUMEOFS_TOKEN")
        .output()
        .expect("the binary runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("--join TOKEN"), "{said}");
}
