//! No quorum, and mounts that must go while somebody uses them.

use crate::attempt::{ends, lumeofs, secret, text};
use lumeofs_tests::{Cluster, Running, eventually, is_mounted, run};
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(10);
/// When a mount that is in use and was taken away is given up without a cluster, and a margin.
const GIVEN_UP: Duration = Duration::from_secs(25);

/// Starts a shell command. It is the shell that waits for the mount, not this process.
fn start(script: &str) -> Running {
    let mut command = Command::new("bash");
    command.args(["-c", script]).stdout(Stdio::null());
    Running::start(command.stderr(Stdio::piped()))
}

/// Leaves one master of three.
fn end_quorum(cluster: &Cluster) {
    cluster.kill("master-1");
    cluster.kill("master-2");
}

/// Undoes [`end_quorum`]. A leader is there afterwards: who mounts waits only seconds for one.
fn bring_back_quorum(cluster: &Cluster) {
    cluster.restart("master-1");
    cluster.restart("master-2");
    cluster.leader("metadata");
}

fn terminate(pid: i64) {
    run("bash", &["-c", &format!("kill -TERM {pid} || true")]);
}

#[test]
fn without_a_quorum_commands_say_so_and_the_mount_can_be_taken_away() {
    let cluster = Cluster::start();
    let (masters, secret, dir) = (cluster.masters(), secret(&cluster), text(&cluster.dir()));
    let mount = cluster.mount();
    write_synced(&mount.join("kept"), "kept");
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

    bring_back_quorum(&cluster);
    cluster.restart("mount");
    let kept = std::fs::read_to_string(mount.join("kept"));
    assert_eq!(kept.unwrap(), "kept");
}

/// For how long a mount answers from memory without a leader, and some.
const MEMORY: Duration = Duration::from_secs(5);

fn write_synced(path: &Path, text: &str) {
    let mut file = File::create(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.sync_all().unwrap();
}

/// How a mount is taken away.
type TakeAway = fn(&Path, i64);

#[test]
fn a_mount_that_is_taken_away_ends_without_a_cluster_although_processes_wait() {
    let cluster = Cluster::start();
    let mount = cluster.mount();
    let ways: [(&str, TakeAway); 4] = [
        ("umount -f", |mount, _| {
            ends(Command::new("umount").arg("-f").arg(mount));
        }),
        ("fusermount -u -z", |mount, _| {
            let arguments = ["-u", "-z"];
            ends(Command::new("fusermount3").args(arguments).arg(mount)).says(0, &[]);
        }),
        ("umount -l", |mount, _| {
            ends(Command::new("umount").arg("-l").arg(mount)).says(0, &[]);
        }),
        ("SIGTERM", |_, pid| terminate(pid)),
    ];
    for (way, take_away) in ways {
        let pid = cluster.pid("mount").unwrap();
        // Something to publish at the close, and somebody who stands in the mount and waits for nothing.
        write_synced(&mount.join("file"), way);
        let place = text(&mount);
        let mut user = start(&format!(
            "cd {place}; exec 3<> file; printf x >&3; exec sleep 60"
        ));
        let there = format!("/proc/{}/fd/3", user.id());
        eventually("somebody uses the mount", SOON, || {
            std::fs::read_link(&there).is_ok_and(|at| at == mount.join("file"))
        });
        end_quorum(&cluster);
        let waiting: Vec<_> = (0..20)
            .map(|_| start(&format!("exec ls -l {place}")))
            .collect();
        std::thread::sleep(Duration::from_millis(500));
        take_away(&mount, pid);
        eventually(&format!("{way}: the process ends"), GIVEN_UP, || {
            cluster.pid("mount").is_none()
        });
        for mut child in waiting {
            child.wait().unwrap();
        }
        user.kill().unwrap();
        user.wait().unwrap();
        // What `umount -f` found in use stays in the tree without its process.
        let _ = Command::new("umount").arg("-l").arg(&mount).output();
        bring_back_quorum(&cluster);
        cluster.restart("mount");
        let first = std::fs::read_to_string(mount.join("file")).unwrap();
        assert_eq!(&first[1..], &way[1..]);
    }
}

#[test]
fn processes_that_wait_for_the_cluster_can_be_killed_and_the_others_go_on() {
    let cluster = Cluster::start();
    let mount = cluster.mount();
    std::fs::write(mount.join("file"), "1").unwrap();
    let (place, go) = (text(&mount), text(&cluster.scratch().join("go")));
    // One who writes, so that there is something to publish, and one who has the file open and ends by itself.
    let mut writer = start(&format!(
        "head -c 1000000 /dev/zero > {place}/written; exec 3<> {place}/written; \
         while printf x >&3; do :; done"
    ));
    let opened = |child: &Running| Path::new(&format!("/proc/{}/fd/3", child.id())).exists();
    eventually("somebody writes", SOON, || opened(&writer));
    let mut holder = start(&format!(
        "exec 3<> {place}/written; until [ -e {go} ]; do sleep 0.05; done; exit 0"
    ));
    eventually("somebody holds the file", SOON, || opened(&holder));
    std::thread::sleep(Duration::from_millis(500));
    end_quorum(&cluster);
    std::thread::sleep(MEMORY);

    // More than there are threads for: the last ones wait in the queue.
    let cat = |_| start(&format!("exec cat {place}/file"));
    let mut patient: Vec<_> = (0..300).map(cat).collect();
    std::thread::sleep(Duration::from_secs(3));
    let mut killed: Vec<_> = (0..20).map(cat).collect();
    std::thread::sleep(Duration::from_secs(1));
    std::fs::write(&go, "").unwrap();
    eventually("who ends by itself does", SOON, || {
        holder.try_wait().unwrap().is_some()
    });
    for child in killed.iter_mut().chain([&mut writer]) {
        assert!(child.try_wait().unwrap().is_none(), "it waits");
        child.kill().unwrap();
    }
    let ended = |child: &mut Running| child.try_wait().unwrap().is_some();
    eventually("those who were killed end", SOON, || {
        killed.iter_mut().chain([&mut writer]).all(ended)
    });
    assert!(!patient.iter_mut().any(ended), "the others wait");

    bring_back_quorum(&cluster);
    eventually("the others get their answers", 3 * SOON, || {
        patient.iter_mut().all(ended)
    });
    for child in &mut patient {
        assert!(child.wait().unwrap().success());
    }
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
    std::thread::sleep(MEMORY);
    let waiting = start(&format!("exec ls -l {}", text(&mount)));
    std::thread::sleep(Duration::from_millis(500));
    terminate(pid);
    eventually("the mount is detached", SOON, || !is_mounted(&mount));
    eventually("a second signal ends it", SOON, || {
        terminate(pid);
        cluster.pid("mount").is_none()
    });
    let output = waiting.output();
    assert!(!output.status.success(), "it did not get an answer");
    bring_back_quorum(&cluster);
}
