//! Locks of processes on two mounts: who excludes whom, who waits, and what ends a lock.

use lumeofs_tests::{Cluster, Running, eventually, run, shell};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

const EINTR: &str = "4";
const EAGAIN: &str = "11";
const EDEADLK: &str = "35";
const OK: &str = "0";
/// Longer than a call may take that waits for nobody.
const SOON: Duration = Duration::from_secs(30);

/// Does with a file what it is told, a line each, and says the error of the call, 0 if there was none.
const SCRIPT: &str = r#"
import fcntl, os, signal, struct, sys
def caught(*_): raise InterruptedError(4, 'caught')
signal.signal(signal.SIGUSR1, caught)
COMMANDS = {'set': 6, 'wait': 7, 'ofd': 37, 'ofdwait': 38}
KINDS = {'r': 0, 'w': 1, 'u': 2}
FLOCKS = {'r': 1, 'w': 2, 'u': 8}
def opened(): return os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
file = opened()
for line in sys.stdin:
    command, kind, first, length = (line.split() + ['u', '0', '0'])[:4]
    try:
        if command in COMMANDS:
            lock = struct.pack('hhqqi', KINDS[kind], 0, int(first), int(length), 0)
            fcntl.fcntl(file, COMMANDS[command], lock)
            said = 0
        elif command == 'get':
            lock = struct.pack('hhqqi', KINDS[kind], 0, int(first), int(length), 0)
            found = struct.unpack('hhqqi', fcntl.fcntl(file, 5, lock))
            said = '%s %d %d' % ('rwu'[found[0]], found[2], found[3])
        elif command == 'flock':
            fcntl.flock(file, FLOCKS[kind] | 4)
            said = 0
        elif command == 'flockwait':
            fcntl.flock(file, FLOCKS[kind])
            said = 0
        elif command == 'other':
            os.close(os.open(sys.argv[1], os.O_RDONLY))
            said = 0
        elif command == 'reopen':
            os.close(file)
            file = opened()
            said = 0
        print(said, flush=True)
    except OSError as error:
        print(error.errno, flush=True)
"#;

/// A process that locks.
struct Locker {
    process: Running,
    said: Receiver<String>,
}

impl Locker {
    fn start(path: &Path) -> Self {
        let mut command = Command::new("python3");
        command.args(["-c", SCRIPT]).arg(path);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Running::start(&mut command);
        let output = BufReader::new(process.stdout.take().unwrap());
        let (sender, said) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { process, said }
    }

    fn begin(&mut self, call: &str) {
        writeln!(self.process.stdin.as_mut().unwrap(), "{call}").unwrap();
    }

    /// What the call that was begun has come to.
    fn end_within(&mut self, limit: Duration) -> String {
        let said = self.said.recv_timeout(limit);
        said.expect("the call ends in time")
    }

    fn call(&mut self, call: &str) -> String {
        self.begin(call);
        self.end_within(SOON)
    }

    /// Begins a call that waits.
    fn begin_wait(&mut self, call: &str) {
        self.begin(call);
        let said = self.said.recv_timeout(Duration::from_millis(700));
        assert_eq!(said, Err(RecvTimeoutError::Timeout), "{call} waits");
    }

    fn signal(&self, name: &str) {
        run("kill", &[name, &self.process.id().to_string()]);
    }
}

/// A cluster with two mounts and a process on each that has the same file open.
struct Pair {
    cluster: Cluster,
    mounts: [PathBuf; 2],
    a: Locker,
    b: Locker,
}

impl Pair {
    fn start() -> Self {
        let mut cluster = Cluster::start();
        let mounts = [cluster.mount(), cluster.second_mount()];
        std::fs::write(mounts[0].join("file"), b"data").unwrap();
        let [a, b] = mounts
            .each_ref()
            .map(|mount| Locker::start(&mount.join("file")));
        Self {
            cluster,
            mounts,
            a,
            b,
        }
    }
}

#[test]
fn ranges_and_whole_files_exclude_each_other_across_mounts_each_among_their_kind() {
    let mut pair = Pair::start();
    let (a, b) = (&mut pair.a, &mut pair.b);
    assert_eq!(a.call("set w 0 10"), OK);
    assert_eq!(b.call("set w 9 1"), EAGAIN);
    assert_eq!(b.call("set r 5 1"), EAGAIN);
    assert_eq!(b.call("set w 10 10"), OK);
    assert_eq!(b.call("get w 0 0"), "w 0 10");
    assert_eq!(a.call("get r 10 1"), "w 10 10");
    // Part of it, and for reading.
    assert_eq!(a.call("set r 0 5"), OK);
    assert_eq!(a.call("set u 5 2"), OK);
    assert_eq!(b.call("set r 0 7"), OK);
    assert_eq!(b.call("set w 5 2"), OK);
    assert_eq!(b.call("set w 0 5"), EAGAIN);
    assert_eq!(a.call("set w 0 5"), EAGAIN);
    // Locks of open file descriptions are of the same kind, those of flock are not.
    assert_eq!(b.call("ofd w 8 1"), EAGAIN);
    assert_eq!(b.call("ofd w 100 1"), OK);
    assert_eq!(a.call("set w 100 1"), EAGAIN);
    assert_eq!(a.call("flock r"), OK);
    assert_eq!(b.call("flock r"), OK);
    assert_eq!(b.call("flock w"), EAGAIN);
    assert_eq!(a.call("flock w"), OK, "what was to be converted is gone");
    assert_eq!(b.call("flock r"), EAGAIN);
    assert_eq!(a.call("flock u"), OK);
    assert_eq!(b.call("flock w"), OK);
    // Two of one mount, and a third.
    let mut second = Locker::start(&pair.mounts[0].join("file"));
    assert_eq!(second.call("set w 200 1"), OK);
    assert_eq!(a.call("set w 200 1"), EAGAIN);
    assert_eq!(b.call("set w 200 1"), EAGAIN);
}

#[test]
fn a_wait_ends_by_an_unlock_a_close_or_the_death_of_a_process_elsewhere() {
    let mut pair = Pair::start();
    let (a, b) = (&mut pair.a, &mut pair.b);
    let begun = Instant::now();
    assert_eq!(a.call("set w 0 0"), OK);
    b.begin_wait("wait w 5 1");
    assert_eq!(a.call("set u 5 1"), OK);
    assert_eq!(b.end_within(SOON), OK);
    assert_eq!(b.call("set u 0 0"), OK);
    b.begin_wait("wait r 0 0");
    // Whatever open file it is that the process closes.
    assert_eq!(a.call("other"), OK);
    assert_eq!(b.end_within(SOON), OK);
    assert_eq!(b.call("reopen"), OK);
    for (locks, waits, dies) in [
        ("flock w", "flockwait r", false),
        ("ofd w 0 0", "ofdwait w 3 4", false),
        ("flock w", "flockwait w", true),
        ("ofd w 0 0", "wait w 3 4", true),
        ("set w 0 0", "ofdwait w 3 4", true),
    ] {
        // What the last round had locked ends a moment after its close.
        eventually("it is free", SOON, || a.call(locks) == OK);
        b.begin_wait(waits);
        if dies {
            a.signal("-KILL");
        } else {
            assert_eq!(a.call("reopen"), OK);
        }
        assert_eq!(b.end_within(SOON), OK, "{waits} after {locks}");
        if dies {
            a.process.wait().unwrap();
            *a = Locker::start(&pair.mounts[0].join("file"));
        }
        assert_eq!(b.call("reopen"), OK);
        eventually("it is closed", SOON, || {
            a.call("flock w") == OK && a.call("set w 0 0") == OK
        });
        assert_eq!(a.call("reopen"), OK);
    }
    println!("{:?}", begun.elapsed());
}

#[test]
fn a_wait_ends_by_a_signal_or_because_it_would_never_end() {
    let mut pair = Pair::start();
    let (a, b) = (&mut pair.a, &mut pair.b);
    assert_eq!(a.call("set w 0 1"), OK);
    assert_eq!(b.call("set w 1 1"), OK);
    assert_eq!(a.call("flock w"), OK);
    for wait in ["wait w 0 1", "flockwait w", "ofdwait r 0 1"] {
        b.begin_wait(wait);
        // What does not concern it lets it wait.
        b.signal("-WINCH");
        std::thread::sleep(Duration::from_millis(300));
        b.signal("-USR1");
        assert_eq!(b.end_within(Duration::from_secs(5)), EINTR, "{wait}");
    }
    // It waits no more, and got nothing.
    assert_eq!(a.call("set u 0 1"), OK);
    assert_eq!(a.call("set w 0 1"), OK);
    a.begin_wait("wait w 1 1");
    assert_eq!(b.call("wait w 0 1"), EDEADLK);
    assert_eq!(b.call("set u 1 1"), OK);
    assert_eq!(a.end_within(SOON), OK);
    // And a process that waits can be killed.
    b.begin_wait("wait w 0 1");
    b.signal("-KILL");
    b.process.wait().unwrap();
}

#[test]
fn locks_and_waits_outlive_the_leading_master() {
    let mut pair = Pair::start();
    let (a, b) = (&mut pair.a, &mut pair.b);
    let mut c = Locker::start(&pair.mounts[1].join("file"));
    assert_eq!(a.call("set w 0 10"), OK);
    assert_eq!(b.call("set w 10 10"), OK);
    assert_eq!(a.call("flock w"), OK);
    c.begin_wait("wait w 5 1");
    let leader = pair.cluster.leader("metadata");
    pair.cluster.kill(&leader);
    assert_eq!(b.call("set w 9 1"), EAGAIN);
    assert_eq!(a.call("set w 10 1"), EAGAIN);
    assert_eq!(b.call("flock r"), EAGAIN);
    assert_eq!(a.call("set u 0 10"), OK);
    assert_eq!(c.end_within(SOON), OK);
    assert_eq!(a.call("set w 0 10"), EAGAIN);
    pair.cluster.restart(&leader);
}

/// Process of the mount at a directory, told by its arguments.
fn pid_of_mount(directory: &Path) -> String {
    let pattern = format!("lumeofs.* mount .*{}", directory.display());
    let all = run("pgrep", &["-f", &pattern]);
    all.lines().next().expect("the mount's process").to_owned()
}

#[test]
fn locks_of_a_mount_that_dies_end_with_its_session() {
    let mut pair = Pair::start();
    // One file is locked by that mount alone, of the other one the masters know who has which locks.
    let mut alone = Locker::start(&pair.mounts[1].join("alone"));
    assert_eq!(alone.call("set w 0 0"), OK);
    assert_eq!(pair.a.call("set w 0 1"), OK);
    assert_eq!(pair.b.call("set w 1 1"), OK);
    let process = pid_of_mount(&pair.mounts[1]);
    run("kill", &["-KILL", &process]);
    let begun = Instant::now();
    pair.a.begin_wait("wait w 1 1");
    let mut other = Locker::start(&pair.mounts[0].join("alone"));
    assert_eq!(other.call("set w 0 0"), OK);
    println!("alone: {:?}", begun.elapsed());
    assert_eq!(pair.a.end_within(Duration::from_secs(120)), OK);
    println!("shared: {:?}", begun.elapsed());
}

#[test]
fn an_sqlite_database_is_written_from_two_mounts_at_once() {
    let mut cluster = Cluster::start();
    let mounts = [cluster.mount(), cluster.second_mount()];
    shell(
        &mounts[0],
        "sqlite3 db 'CREATE TABLE t(who INTEGER, n INTEGER, UNIQUE(who, n)); CREATE TABLE sum(n INTEGER); INSERT INTO sum VALUES(0)'",
    );
    std::thread::scope(|scope| {
        for (who, mount) in mounts.iter().enumerate() {
            scope.spawn(move || {
                let script = format!(
                    "for n in $(seq 60); do echo \"BEGIN IMMEDIATE; INSERT INTO t VALUES({who}, $n); UPDATE sum SET n = n + 1; COMMIT;\"; done | sqlite3 -bail -cmd '.timeout 120000' db"
                );
                shell(mount, &script);
            });
        }
    });
    for mount in &mounts {
        let counted =
            "sqlite3 db 'PRAGMA integrity_check; SELECT count(*) FROM t; SELECT n FROM sum'";
        assert_eq!(shell(mount, counted), "ok\n120\n120\n");
    }
}
