//! A cluster of processes that join with tokens, as on real machines: masters are added, replaced and removed while
//! files are written, and nodes find their cluster again when all the masters that they were told are gone.

use lumeofs_tests::{Running, binary, eventually, run};
use serde_json::Value;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").to_string()
}

/// Nodes that keep what they need in their directories.
struct Machines {
    dir: tempfile::TempDir,
    first: String,
}

impl Machines {
    /// Prepares and starts the first master.
    fn found(replicas: &str) -> (Self, Running) {
        let machines = Self {
            dir: lumeofs_tests::temporary(),
            first: free_address(),
        };
        let data = machines.data("m1");
        let (data, listen) = (data.to_str().expect("ASCII"), machines.first.as_str());
        let said = run(
            binary(),
            &[
                "cluster",
                "init",
                "--data",
                data,
                "--listen",
                listen,
                "--replicas",
                replicas,
                "--tls",
            ],
        );
        assert!(said.contains("cluster token"), "{said}");
        let running = machines.start("master", "m1", &[]);
        eventually("the first master leads", SOON, || machines.list().is_some());
        (machines, running)
    }

    fn data(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.log"))
    }

    /// Starts a node of a directory.
    fn start(&self, role: &str, name: &str, more: &[&str]) -> Running {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.log(name))
            .expect("a log");
        let mut command = Command::new(binary());
        command
            .arg(role)
            .arg("--data")
            .arg(self.data(name))
            .args(more);
        Running::start(
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log),
        )
    }

    /// A token in a file, as a user would hand it on.
    fn token(&self) -> String {
        let data = self.data("m1");
        let token = run(
            binary(),
            &["cluster", "token", "--data", data.to_str().expect("ASCII")],
        );
        assert_eq!(token.trim().lines().count(), 1, "one line");
        let file = self.dir.path().join("token");
        std::fs::write(&file, token).expect("a file");
        format!("@{}", file.display())
    }

    /// Lets a new machine join.
    fn join(&self, role: &str, name: &str) -> Running {
        self.start(
            role,
            name,
            &["--join", &self.token(), "--listen", &free_address()],
        )
    }

    fn secret(&self) -> PathBuf {
        self.data("m1").join("secret")
    }

    /// All masters that are known to take part, to ask.
    fn addresses(&self) -> String {
        let known = self.list_from(&self.first);
        let known = known.as_ref().and_then(Value::as_array);
        let addresses = known.map(|list| {
            let voters = list.iter().filter(|master| master["state"] == "voter");
            let voters = voters.filter_map(|master| master["address"].as_str());
            voters.collect::<Vec<_>>().join(",")
        });
        addresses.unwrap_or_else(|| self.first.clone())
    }

    fn admin(&self, masters: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(binary());
        command.args(["admin", "--json", "--masters", masters, "--secret"]);
        command.arg(self.secret()).args(arguments);
        command.output().expect("the binary runs")
    }

    fn list_from(&self, masters: &str) -> Option<Value> {
        let output = self.admin(masters, &["master", "list"]);
        let listed = output.status.success();
        listed.then(|| serde_json::from_slice(&output.stdout).expect("JSON"))
    }

    fn list(&self) -> Option<Value> {
        self.list_from(&self.first)
    }

    /// The id that a node was given.
    fn id(&self, name: &str) -> u64 {
        let mut id = None;
        eventually("the node has its id", SOON, || {
            let text = std::fs::read(self.data(name).join("node.json")).unwrap_or_default();
            let node: Value = serde_json::from_slice(&text).unwrap_or_default();
            id = node["id"].as_u64();
            id.is_some()
        });
        id.expect("waited for")
    }

    /// Waits until a master has announced itself.
    fn wait_candidate(&self, masters: &str, id: u64) {
        eventually("the master is a candidate", SOON, || {
            let list = self.list_from(masters);
            let list = list.as_ref().and_then(Value::as_array);
            list.is_some_and(|list| {
                let mut list = list.iter();
                list.any(|master| master["id"] == id && master["state"] == "candidate")
            })
        });
    }

    /// Runs a change to its end.
    fn change(&self, masters: &str, arguments: &[&str]) -> Value {
        let mut all = vec!["master"];
        all.extend(arguments);
        all.extend(["--timeout", "120"]);
        let output = self.admin(masters, &all);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    fn put(&self, masters: &str, name: &str) -> Output {
        let file = self.dir.path().join("content");
        if !file.exists() {
            std::fs::write(&file, vec![7; 300_000]).expect("a file");
        }
        let mut command = Command::new(binary());
        command
            .args(["fs", "--masters", masters, "--secret"])
            .arg(self.secret());
        command.arg("put").arg(file).arg(name);
        command.output().expect("the binary runs")
    }
}

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
