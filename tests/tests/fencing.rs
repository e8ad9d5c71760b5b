//! A mount that is cut off cannot change what others do afterwards (rule S3).

use lumeofs_tests::{Cluster, Running, eventually, run};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};
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

/// Another process that writes when it is told to: what this one has open, each child that it starts would close, and wait
/// for the stopped mount.
struct Writer {
    process: Running,
    said: std::io::Lines<BufReader<ChildStdout>>,
}

impl Writer {
    fn start(path: &Path) -> Self {
        let script = "import os, sys\n\
                      file = os.open(sys.argv[1], os.O_WRONLY)\n\
                      for line in sys.stdin:\n\
                      \x20   letter, offset = line.split()\n\
                      \x20   try:\n\
                      \x20       os.pwrite(file, letter.encode() * 4096, int(offset))\n\
                      \x20       if letter == '4': os.fsync(file)\n\
                      \x20       print(0, flush=True)\n\
                      \x20   except OSError as error:\n\
                      \x20       print(error.errno, flush=True)\n";
        let mut command = Command::new("python3");
        command.args(["-c", script]).arg(path);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Running::start(&mut command);
        let said = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, said }
    }

    fn begin(&mut self, letter: char, offset: u64) {
        let stdin = self.process.stdin.as_mut().unwrap();
        writeln!(stdin, "{letter} {offset}").unwrap();
    }

    /// The error of the call, 0 if there was none.
    fn outcome(&mut self) -> i32 {
        self.said.next().unwrap().unwrap().parse().unwrap()
    }
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
    let mut writer = Writer::start(&b.join("file"));
    writer.begin('1', 0);
    assert_eq!(writer.outcome(), 0);

    let process = pid_of_mount(b.to_str().unwrap());
    run("kill", &["-STOP", &process]);
    // It waits in the kernel for the stopped process, and goes out when that continues.
    writer.begin('2', 4096);
    let id = evicted[0].to_string();
    cluster.admin(&["session", "evict", &id]);
    eventually(
        "the session to be shut out",
        Duration::from_secs(20),
        || !sessions(&cluster).contains(&evicted[0]),
    );
    std::fs::write(a.join("others"), b"kept").unwrap();
    std::fs::write(a.join("file"), vec![b'3'; 1 << 20]).unwrap();
    run("kill", &["-CONT", &process]);

    let error = writer.outcome();
    assert_eq!(
        error, 5,
        "its file has unsynced writes of a session that ended"
    );
    assert_eq!(std::fs::read(a.join("file")).unwrap(), vec![b'3'; 1 << 20]);
    writer.begin('4', 8192);
    assert_eq!(writer.outcome(), 0);
    let shown = std::fs::read(a.join("file")).unwrap();
    assert!(shown[8192..12288].iter().all(|byte| *byte == b'4'));
    assert!(shown[..8192].iter().all(|byte| *byte == b'3'));
    assert_eq!(std::fs::read(b.join("others")).unwrap(), b"kept");
}
