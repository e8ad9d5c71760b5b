//! A cluster of processes that join with tokens, as on real machines, without network namespaces.

use crate::{Running, binary, eventually, is_mounted, run, show_logs, temporary};
use serde_json::Value;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

/// An address that nobody listens on.
pub fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").to_string()
}

/// Nodes that keep what they need in their directories.
#[derive(Debug)]
pub struct Machines {
    /// Where they are.
    pub dir: tempfile::TempDir,
    /// Address of the first master.
    pub first: String,
}

impl Machines {
    /// Prepares and starts the first master.
    pub fn found(replicas: &str) -> (Self, Running) {
        let machines = Self {
            dir: temporary(),
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

    /// A node's data directory.
    pub fn data(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A node's log.
    pub fn log(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.log"))
    }

    /// Starts a node of a directory.
    pub fn start(&self, role: &str, name: &str, more: &[&str]) -> Running {
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
    pub fn token(&self) -> String {
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
    pub fn join(&self, role: &str, name: &str) -> Running {
        self.start(
            role,
            name,
            &["--join", &self.token(), "--listen", &free_address()],
        )
    }

    /// The secret file of the first master.
    pub fn secret(&self) -> PathBuf {
        self.data("m1").join("secret")
    }

    /// All masters that are known to take part, to ask.
    pub fn addresses(&self) -> String {
        let known = self.list_from(&self.first);
        let known = known.as_ref().and_then(Value::as_array);
        let addresses = known.map(|list| {
            let voters = list.iter().filter(|master| master["state"] == "voter");
            let voters = voters.filter_map(|master| master["address"].as_str());
            voters.collect::<Vec<_>>().join(",")
        });
        addresses.unwrap_or_else(|| self.first.clone())
    }

    /// `lumeofs admin --json …`.
    pub fn admin(&self, masters: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(binary());
        command.args(["admin", "--json", "--masters", masters, "--secret"]);
        command.arg(self.secret()).args(arguments);
        command.output().expect("the binary runs")
    }

    /// What `admin master list` says.
    pub fn list_from(&self, masters: &str) -> Option<Value> {
        let output = self.admin(masters, &["master", "list"]);
        let listed = output.status.success();
        listed.then(|| serde_json::from_slice(&output.stdout).expect("JSON"))
    }

    /// The same, of the first master.
    pub fn list(&self) -> Option<Value> {
        self.list_from(&self.first)
    }

    /// The id that a node was given.
    pub fn id(&self, name: &str) -> u64 {
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
    pub fn wait_candidate(&self, masters: &str, id: u64) {
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
    pub fn change(&self, masters: &str, arguments: &[&str]) -> Value {
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

    /// Writes a file through a command.
    pub fn put(&self, masters: &str, name: &str) -> Output {
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

impl Drop for Machines {
    fn drop(&mut self) {
        if std::thread::panicking() {
            show_logs(self.dir.path());
        }
    }
}

/// A mount of this machine.
#[derive(Debug)]
pub struct MachineMount {
    point: PathBuf,
    _process: Running,
}

impl MachineMount {
    /// Mounts and waits until it is there. `name` is that of the mount point and of its log;
    /// `options` begin with a comma.
    pub fn new(
        machines: &Machines,
        masters: &str,
        name: &str,
        secret: &Path,
        options: &str,
    ) -> Self {
        let point = machines.dir.path().join(name);
        std::fs::create_dir_all(&point).expect("a mount point");
        let log = std::fs::File::create(machines.log(name)).expect("a log");
        let mut command = Command::new(binary());
        command.args(["mount", masters]).arg(&point);
        let options = format!("secretfile={}{options}", secret.display());
        command.args(["--foreground", "-o", &options]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let mount = Self {
            _process: Running::start(&mut command),
            point,
        };
        eventually("it is mounted", SOON, || is_mounted(&mount.point));
        mount
    }

    /// A file below the mount point.
    pub fn path(&self, name: &str) -> PathBuf {
        self.point.join(name)
    }
}

impl Drop for MachineMount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.point).output();
    }
}
