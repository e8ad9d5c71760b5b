//! No quorum, and mounts that must go while somebody uses them.

use crate::attempt::{ends, lumeofs, secret, text};
use lumeofs_tests::{Cluster, eventually, run};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(10);

fn is_mounted(point: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    mounts
        .lines()
        .any(|line| line.split(' ').nth(1) == point.to_str())
}

/// Starts a shell command. It is the shell that waits for the mount, not this process.
fn start(script: &str) -> Child {
    Command::new("bash")
        .args(["-c", script])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Leaves one master of three.
fn end_quorum(cluster: &Cluster) {
    cluster.kill("master-1");
    cluster.kill("master-2");
}

fn terminate(pid: i64) {
    run("bash", &["-c", &format!("kill -TERM {pid} || true")]);
}

#[test]
fn without_a_quorum_commands_say_so_and_the_mount_can_be_taken_away() {
    let cluster = Cluster::start();
    let (masters, secret, dir) = (cluster.masters(), secret(&cluster), text(&cluster.dir()));
    let mount = cluster.mount();
    std::fs::write(mount.join("kept"), "kept").unwrap();
    end_quorum(&cluster);
    lumeofs(&["fs", "--dir", &dir, "ls"]).says(7, &["no quorum", "more than half"]);
    let point = cluster.scratch().join("point");
    std::fs::create_dir(&point).unwrap();
    let (point, log) = (text(&point), text(&cluster.scratch().join("log")));
    let options = format!("secretfile={secret}");
    lumeofs(&["mount", &masters, &point, "-o", &options, "--log", &log]).says(
        7,
        &["no quorum", &masters.replace(',', ", "), "more than half"],
    );
    lumeofs(&["admin", "--dir", &dir, "raft"]).says(0, &["cannot connect", "refused"]);
    eventually("the last master gives up its leader", SOON, || {
        let status = lumeofs(&["admin", "--dir", &dir, "status"]);
        status.text.contains("no leader: no quorum")
    });

    // Who waits can be killed, and the mount goes although nobody answers.
    let mut waiting = start(&format!("exec ls -l {}", text(&mount)));
    std::thread::sleep(Duration::from_millis(500));
    let ended = waiting.try_wait().unwrap();
    assert!(ended.is_none(), "on-outage=block waits: {ended:?}");
    waiting.kill().unwrap();
    waiting.wait().unwrap();
    ends(Command::new("umount").arg(&mount)).says(0, &[]);
    assert!(!is_mounted(&mount));
    eventually("the mount process ends", SOON, || {
        cluster.pid("mount").is_none()
    });

    cluster.restart("master-1");
    cluster.restart("master-2");
    cluster.restart("mount");
    let kept = std::fs::read_to_string(mount.join("kept"));
    assert_eq!(kept.unwrap(), "kept");
}

#[test]
fn a_signal_takes_a_busy_mount_away_and_a_second_one_ends_it() {
    let cluster = Cluster::start();
    let mount = cluster.mount();
    // In use, but not waiting: the mount goes at once, its process with the last user.
    let pid = cluster.pid("mount").unwrap();
    let mut user = start(&format!("cd {} && exec sleep 60", text(&mount)));
    let there = format!("/proc/{}/cwd", user.id());
    eventually("somebody stands in the mount", SOON, || {
        std::fs::read_link(&there).is_ok_and(|at| at == mount)
    });
    terminate(pid);
    eventually("the mount is detached", SOON, || !is_mounted(&mount));
    assert!(
        cluster.pid("mount").is_some(),
        "it serves who still uses it"
    );
    user.kill().unwrap();
    user.wait().unwrap();
    eventually("the process ends", SOON, || cluster.pid("mount").is_none());

    // Somebody waits for masters that do not come: the process is made to end, and tells them so.
    cluster.restart("mount");
    let pid = cluster.pid("mount").unwrap();
    end_quorum(&cluster);
    let waiting = start(&format!("exec ls -l {}", text(&mount)));
    std::thread::sleep(Duration::from_millis(500));
    terminate(pid);
    eventually("the mount is detached", SOON, || !is_mounted(&mount));
    eventually("a second signal ends it", SOON, || {
        terminate(pid);
        cluster.pid("mount").is_none()
    });
    let output = waiting.wait_with_output().unwrap();
    assert!(!output.status.success(), "it did not get an answer");
    cluster.restart("master-1");
    cluster.restart("master-2");
}
