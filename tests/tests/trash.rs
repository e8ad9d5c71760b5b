//! What was deleted comes back from the trash with all that it was, over the death of a leader, until its time is over.

use lumeofs_tests::{Cluster, binary, eventually, pause, run, shell};
use serde_json::Value;
use std::fs::{self, File, Metadata};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

/// Exit code of commands that got no answer.
const NO_ANSWER: Option<i32> = Some(7);

/// `lumeofs fs trash … --json`, again if no master answered in time.
fn try_trash(cluster: &Cluster, arguments: &[&str]) -> Output {
    let run = || {
        Command::new(binary())
            .args(["fs", "--json", "--dir"])
            .arg(cluster.dir())
            .arg("trash")
            .args(arguments)
            .output()
            .expect("the command runs")
    };
    let mut output = run();
    eventually("masters answer", SOON, || {
        let is_answered = output.status.code() != NO_ANSWER;
        if !is_answered {
            output = run();
        }
        is_answered
    });
    output
}

fn trash(cluster: &Cluster, arguments: &[&str]) -> Value {
    let output = try_trash(cluster, arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The exit code and message of a command that fails.
fn refused(cluster: &Cluster, arguments: &[&str]) -> (Option<i32>, String) {
    let output = try_trash(cluster, arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), said)
}

fn entries(cluster: &Cluster, arguments: &[&str]) -> Vec<Value> {
    let all = [&["ls"], arguments].concat();
    let listed = trash(cluster, &all);
    listed["entries"].as_array().expect("entries").clone()
}

fn paths(cluster: &Cluster, arguments: &[&str]) -> Vec<String> {
    let entries = entries(cluster, arguments).into_iter();
    entries
        .map(|entry| entry["path"].as_str().expect("a path").to_owned())
        .collect()
}

fn content(seed: usize) -> Vec<u8> {
    (0..300_000 + seed)
        .map(|at| (at * (seed + 7) / 5) as u8)
        .collect()
}

fn looks(path: &Path) -> (u32, u32, u32, u64, i64, i64) {
    let all: Metadata = fs::metadata(path).expect("it is there");
    let (mode, uid, gid) = (all.mode(), all.uid(), all.gid());
    (mode, uid, gid, all.len(), all.mtime(), all.mtime_nsec())
}

#[test]
fn deleted_and_replaced_files_come_back_until_their_time_is_over() {
    let mut cluster = Cluster::start();
    let (mount, other) = (cluster.mount(), cluster.second_mount());
    assert_eq!(trash(&cluster, &["policy"])["on"], false);
    fs::write(mount.join("early"), "x").expect("a file");
    fs::remove_file(mount.join("early")).expect("it goes");
    assert_eq!(paths(&cluster, &[]), [""; 0]);
    let policy = trash(&cluster, &["policy", "--keep", "7d"]);
    assert_eq!(
        (&policy["on"], &policy["keep_s"]),
        (&true.into(), &604_800.into())
    );

    // Deleted at once, when nothing of its data was sent yet.
    fs::create_dir_all(mount.join("dir/inner")).expect("directories");
    let file = mount.join("dir/inner/file");
    fs::write(&file, content(1)).expect("a file");
    shell(
        &mount.join("dir/inner"),
        "chmod 640 file; chown 12:34 file; setfattr -n user.a -v b file; touch -d '2001-02-03 04:05:06.7 UTC' file",
    );
    let before = looks(&file);
    fs::remove_file(&file).expect("it goes");
    // As an editor saves: on another mount than the one that has it in memory.
    fs::write(mount.join("saved"), content(2)).expect("a file");
    fs::write(other.join("new"), content(3)).expect("a file");
    fs::rename(other.join("new"), other.join("saved")).expect("it is replaced");
    assert_eq!(paths(&cluster, &[]), ["/dir/inner/file", "/saved"]);
    let entry = entries(&cluster, &["/dir"]).remove(0);
    let number = |name: &str| entry[name].as_u64().expect("a number");
    assert_eq!(number("uid"), 0);
    assert_eq!(
        number("expires_ns") - number("deleted_ns"),
        604_800_000_000_000
    );

    // What the mount has not published of it counts.
    shell(
        &mount,
        "mkdir soon; echo x > soon/file; chown 5:6 soon/file; rm -r soon",
    );
    trash(&cluster, &["restore", "/soon/file"]);
    let made = fs::metadata(mount.join("soon")).expect("it was made again");
    assert_eq!((made.uid(), made.gid()), (5, 6));

    // Nothing depends on who leads.
    fs::remove_dir_all(mount.join("dir")).expect("the directories go");
    let leader = cluster.leader("metadata");
    cluster.kill(&leader);
    eventually("another master leads", SOON, || {
        try_trash(&cluster, &["ls"]).status.success()
    });
    trash(&cluster, &["restore", "dir/inner/file"]);
    assert_eq!(fs::read(&file).expect("it is there"), content(1));
    assert_eq!(looks(&file), before);
    assert_eq!(fs::metadata(&file).expect("it is there").nlink(), 1);
    let value = run(
        "getfattr",
        &[
            "--only-values",
            "-n",
            "user.a",
            file.to_str().expect("ASCII"),
        ],
    );
    assert_eq!(value, "b");
    for made in ["dir", "dir/inner"] {
        let all = fs::metadata(other.join(made)).expect("it was made again");
        assert_eq!((all.mode() & 0o7777, all.uid(), all.gid()), (0o700, 12, 34));
    }
    cluster.restart(&leader);

    // What is there is not overwritten.
    let saved = entries(&cluster, &["/saved"]).remove(0);
    let id = saved["id"].to_string();
    let (code, said) = refused(&cluster, &["restore", &id]);
    assert!(code == Some(4) && said.contains("--to"), "{code:?} {said}");
    trash(&cluster, &["restore", &id, "--to", "/dir"]);
    assert_eq!(
        fs::read(mount.join("dir/saved")).expect("a file"),
        content(2)
    );
    assert_eq!(fs::read(mount.join("saved")).expect("a file"), content(3));
    let (code, said) = refused(&cluster, &["restore", &id]);
    assert!(
        code == Some(3) && said.contains("not in the trash"),
        "{said}"
    );

    // A file that is open goes on as ever, and is the same when it is back.
    let mut open = File::options()
        .append(true)
        .open(other.join("saved"))
        .expect("a file");
    fs::remove_file(mount.join("saved")).expect("it goes");
    assert_eq!(open.metadata().expect("attributes").nlink(), 0);
    open.write_all(b"more").expect("it is written to");
    trash(&cluster, &["restore", "/saved", "--to", "/back"]);
    assert_eq!(open.metadata().expect("attributes").nlink(), 1);
    let whole = [&content(3)[..], b"more"].concat();
    assert_eq!(fs::read(mount.join("back")).expect("a file"), whole);
    drop(open);

    // A whole tree.
    shell(
        &mount,
        "mkdir -p tree/sub; for n in 1 2 3; do echo $n > tree/$n; echo sub$n > tree/sub/$n; done; ln -s 1 tree/soft; rm -r tree",
    );
    assert_eq!(paths(&cluster, &["tree"]).len(), 7);
    let limited = trash(&cluster, &["ls", "--limit", "3"]);
    let next = limited["next"].as_str().expect("there is more");
    assert_eq!(entries(&cluster, &["--after", next]).len(), 4);
    let (code, said) = refused(&cluster, &["restore", "/tree"]);
    assert!(
        code == Some(1) && said.contains("add -r"),
        "{code:?} {said}"
    );
    shell(&mount, "mkdir tree; echo mine > tree/2");
    let (code, said) = refused(&cluster, &["restore", "/tree", "-r"]);
    assert!(
        code == Some(4) && said.contains("1 of 7"),
        "{code:?} {said}"
    );
    shell(
        &mount,
        r#"[ "$(cat tree/soft tree/2 tree/3 tree/sub/[123] | xargs)" = "1 mine 3 sub1 sub2 sub3" ]"#,
    );
    assert_eq!(paths(&cluster, &[]), ["/tree/2"]);

    // It counts as used until it is emptied, and no check takes it for lost.
    let used = || cluster.admin(&["status"])["bytes"].as_u64().expect("bytes");
    let large = 5 << 20;
    // What was written to small files is published by then.
    pause(Duration::from_secs(2));
    let before = used();
    let file = File::create(mount.join("large")).expect("a file");
    (&file)
        .write_all(&vec![7; large as usize])
        .expect("it is written");
    file.sync_all().expect("it is on disk");
    drop(file);
    eventually("it counts", SOON, || used() == before + large);
    fs::remove_file(mount.join("large")).expect("it goes");
    // Orphans are freed within seconds.
    pause(Duration::from_secs(3));
    assert_eq!(used(), before + large);
    let checked = cluster.admin(&["fsck"]);
    assert_eq!(checked["list"], Value::Array(Vec::new()), "{checked}");
    let none = trash(&cluster, &["empty", "--older-than", "1h"]);
    assert_eq!(none["files"], 0);
    let emptied = trash(&cluster, &["empty", "/large"]);
    assert_eq!(emptied["files"], 1);
    assert_eq!(paths(&cluster, &[]), ["/tree/2"]);
    eventually("it is freed", SOON, || used() == before);

    // Time.
    trash(&cluster, &["policy", "--keep", "1s"]);
    eventually("all is expired", SOON, || paths(&cluster, &[]).is_empty());
    trash(&cluster, &["policy", "--keep", "1h"]);
    fs::remove_file(mount.join("back")).expect("it goes");
    let off = trash(&cluster, &["policy", "--keep", "off"]);
    assert_eq!(off["on"], false);
    fs::remove_file(mount.join("dir/saved")).expect("it goes");
    assert_eq!(paths(&cluster, &[]), ["/back"]);
    assert_eq!(trash(&cluster, &["empty"])["files"], 1);
    assert_eq!(paths(&cluster, &[]), [""; 0]);
}
