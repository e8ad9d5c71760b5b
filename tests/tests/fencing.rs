//! A mount that is cut off cannot change what others do afterwards (rule S3).

use lumeofs_tests::{Cluster, eventually, run};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

/// Process of the mount at `directory`, told by its arguments.
fn pid_of_mount(directory: &str) -> String {
    let all = run("pgrep", &["-f", &format!("lumeofs.* mount .*{directory}")]);
    all.lines()
        .next()
        .expect("the mount's process")
        .trim()
        .to_owned()
}

fn sessions(cluster: &Cluster) -> Vec<u64> {
    let listed = cluster.admin(&["session", "list"]);
    let listed = listed.as_array().expect("a list");
    let id = |session: &serde_json::Value| session["id"].as_u64().expect("an id");
    listed.iter().map(id).collect()
}

#[test]
fn a_stopped_mount_that_was_evicted_changes_nothing_fails_once_and_works_again() {
    let mut cluster = Cluster::start();
    let a = cluster.mount();
    let before = sessions(&cluster);
    let b = cluster.second_mount();
    let mut evicted = sessions(&cluster);
    evicted.retain(|session| !before.contains(session));
    assert_eq!(evicted.len(), 1, "the second mount has one session");
    std::fs::write(a.join("file"), vec![b'0'; 1 << 20]).unwrap();
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(b.join("file"))
        .unwrap();
    file.write_all_at(&[b'1'; 4096], 0).unwrap();

    let process = pid_of_mount(b.to_str().unwrap());
    run("kill", &["-STOP", &process]);
    // It waits in the kernel for the stopped process, and goes out when that continues.
    let late = std::thread::spawn(move || {
        let result = file.write_all_at(&[b'2'; 4096], 4096);
        (file, result)
    });
    let id = evicted[0].to_string();
    cluster.admin(&["session", "evict", &id]);
    eventually(
        "the session to be shut out",
        Duration::from_secs(20),
        || !sessions(&cluster).contains(&evicted[0]),
    );
    let mut others = std::fs::File::create(a.join("others")).unwrap();
    others.write_all(b"kept").unwrap();
    std::fs::write(a.join("file"), vec![b'3'; 1 << 20]).unwrap();
    run("kill", &["-CONT", &process]);

    let (file, result) = late.join().unwrap();
    let error = result.expect_err("its file has unsynced writes of a session that ended");
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    assert_eq!(std::fs::read(a.join("file")).unwrap(), vec![b'3'; 1 << 20]);
    file.write_all_at(&[b'4'; 4096], 8192).unwrap();
    file.sync_all().unwrap();
    let shown = std::fs::read(a.join("file")).unwrap();
    assert!(shown[8192..12288].iter().all(|byte| *byte == b'4'));
    assert!(shown[..8192].iter().all(|byte| *byte == b'3'));
    assert_eq!(std::fs::read(b.join("others")).unwrap(), b"kept");
}
