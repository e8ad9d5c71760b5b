//! A real cluster for tests: the `lumeofs` binary's processes on loopback, mounted, ended with the test.
//!
//! Everything a test starts ends with its [`Cluster`], also when the test fails: mounts, processes,
//! directories.

pub mod chaos;
pub mod coherence;
mod fio;
mod hosts;
mod interrupt;
mod loop_mounts;
mod machines;
pub mod metrics;
mod prober;
mod running;
mod site;

pub use fio::fio_job;
pub use hosts::{Hosts, address};
pub use interrupt::{interrupt, interrupted, pause};
pub use loop_mounts::{LoopMounts, MKFS_EXT4, fill, pull_out};
pub use machines::{MachineMount, Machines, free_address};
pub use prober::Prober;
pub use running::Running;
pub use site::{Role, Site};

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// The binary under test: what `LUMEOFS_BINARY` names, else as `scripts/test` has built it, in the profile of the tests.
pub fn binary() -> PathBuf {
    if let Some(named) = std::env::var_os("LUMEOFS_BINARY") {
        return named.into();
    }
    let mut dir = std::env::current_exe().expect("a test has a path");
    // target/PROFILE/deps/NAME, or target/PROFILE/NAME of a program -> target/PROFILE
    dir.pop();
    if dir.ends_with("deps") {
        dir.pop();
    }
    let binary = dir.join("lumeofs");
    assert!(
        binary.exists(),
        "{} is missing: build it first, as scripts/test does",
        binary.display()
    );
    binary
}

/// A number from the environment, for longer runs and for seeds that failed.
pub fn number(variable: &str, default: u64) -> u64 {
    let text = std::env::var(variable).ok();
    text.map_or(default, |text| text.parse().expect("a number"))
}

/// Runs a command and returns what it printed; panics with its output if it fails.
pub fn run(program: impl AsRef<OsStr>, arguments: &[&str]) -> String {
    let output = output(program.as_ref(), arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{:?} {arguments:?}: {}\n{text}\n{}",
        program.as_ref(),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// Runs a shell script with `set -e`; panics with its output if it fails.
pub fn shell(directory: &Path, script: &str) -> String {
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", script])
        .current_dir(directory)
        .output()
        .expect("bash is there");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{script}\n{}\n{text}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

fn output(program: &OsStr, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program:?}: {error}"))
}

/// Waits until `done` holds; panics with `what` after `limit`.
pub fn eventually(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < limit, "not within {limit:?}: {what}");
        pause(Duration::from_millis(50));
    }
}

/// Where tests work: a real disk.
pub fn test_dir() -> PathBuf {
    std::env::var_os("LUMEOFS_TEST_DIR").map_or("/var/tmp".into(), PathBuf::from)
}

/// A temporary directory on a real disk.
pub fn temporary() -> tempfile::TempDir {
    temporary_named("lumeofs-test.")
}

/// The same, with a name that begins so.
pub fn temporary_named(prefix: &str) -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix(prefix)
        .tempdir_in(test_dir())
        .expect("a temporary directory")
}

/// Whether something is mounted at this path.
pub fn is_mounted(point: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("the list of mounts");
    mounts
        .lines()
        .any(|line| line.split(' ').nth(1) == point.to_str())
}

/// Prints the end of each log in a directory, without what is only information: for a test that fails.
pub fn show_logs(directory: &Path) {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.extension().is_none_or(|extension| extension != "log") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let lines = text.lines().filter(|line| !line.contains(" INFO "));
        let lines: Vec<_> = lines.collect();
        let last = lines[lines.len().saturating_sub(40)..].join("\n");
        eprintln!("--- {}\n{last}", path.display());
    }
}

/// A development cluster in a temporary directory.
pub struct Cluster {
    /// Second mounts and local copies; the cluster too, unless it was placed elsewhere.
    directory: tempfile::TempDir,
    dir: PathBuf,
    mounts: Vec<PathBuf>,
}

impl Cluster {
    /// Three masters, three datanodes, mounted.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// With more arguments for `lumeofs dev`.
    pub fn start_with(arguments: &[&str]) -> Self {
        let directory = temporary();
        let dir = directory.path().join("cluster");
        let cluster = Self {
            directory,
            dir,
            mounts: Vec::new(),
        };
        cluster.bring_up(arguments);
        cluster
    }

    /// In `dir`, which may hold a cluster already. The directory stays.
    pub fn start_at(dir: &Path, arguments: &[&str]) -> Self {
        let cluster = Self {
            directory: temporary(),
            dir: dir.to_owned(),
            mounts: Vec::new(),
        };
        cluster.bring_up(arguments);
        cluster
    }

    /// Starts a stopped cluster again.
    pub fn bring_up(&self, arguments: &[&str]) {
        let mut all = vec!["dev", "--detach", "--dir", self.text()];
        all.extend(arguments);
        let text = run(binary(), &all);
        assert!(text.contains("PASS"), "{text}");
    }

    /// Stops all processes; the data stays.
    pub fn stop(&self) {
        run(binary(), &["dev", "stop", "--dir", self.text()]);
    }

    /// The cluster's directory.
    pub fn dir(&self) -> PathBuf {
        self.dir.clone()
    }

    fn text(&self) -> &str {
        self.dir.to_str().expect("an ASCII path")
    }

    /// The first mount.
    pub fn mount(&self) -> PathBuf {
        self.dir().join("mnt")
    }

    /// A directory outside of the cluster, for local copies.
    pub fn scratch(&self) -> PathBuf {
        let scratch = self.directory.path().join("scratch");
        std::fs::create_dir_all(&scratch).expect("a scratch directory");
        scratch
    }

    /// Mounts once more and returns where.
    pub fn second_mount(&mut self) -> PathBuf {
        self.mount_with("")
    }

    /// The same with these options.
    pub fn mount_with(&mut self, options: &str) -> PathBuf {
        let point = self
            .directory
            .path()
            .join(format!("mnt-{}", self.mounts.len() + 2));
        std::fs::create_dir_all(&point).expect("a mount point");
        let secret = format!("secretfile={}", self.dir().join("secret").display());
        let options = match options {
            "" => secret,
            _ => format!("{options},{secret}"),
        };
        let log = self.directory.path().join("second.log");
        let (log, target) = (log.to_string_lossy(), point.to_string_lossy());
        run(
            binary(),
            &[
                "mount",
                &self.masters(),
                &target,
                "-o",
                &options,
                "--log",
                &log,
            ],
        );
        self.mounts.push(point.clone());
        point
    }

    /// Unmounts and mounts again: nothing can come from a cache of the kernel.
    pub fn remount(&self) {
        self.restart("mount");
    }

    /// Starts a node again, stopping it first if it runs.
    pub fn restart(&self, node: &str) {
        run(binary(), &["dev", "restart", node, "--dir", self.text()]);
    }

    /// `kill -9`.
    pub fn kill(&self, node: &str) {
        let pid = self
            .pid(node)
            .unwrap_or_else(|| panic!("{node} does not run"));
        run("kill", &["-9", &pid.to_string()]);
        eventually("a killed process ends", Duration::from_secs(30), || {
            self.pid(node).is_none()
        });
    }

    /// `kill -9` of every process at once, the mount included.
    pub fn kill_all(&self) {
        let rows = run(binary(), &["dev", "status", "--json", "--dir", self.text()]);
        let rows: serde_json::Value = serde_json::from_str(&rows).expect("JSON");
        let rows = rows.as_array().expect("rows").iter();
        let pids: Vec<_> = rows
            .filter_map(|row| row["pid"].as_i64())
            .map(|pid| pid.to_string())
            .collect();
        let mut arguments = vec!["-9"];
        arguments.extend(pids.iter().map(String::as_str));
        run("kill", &arguments);
    }

    /// Process id of a node.
    pub fn pid(&self, node: &str) -> Option<i64> {
        let rows = run(binary(), &["dev", "status", "--json", "--dir", self.text()]);
        let rows: serde_json::Value = serde_json::from_str(&rows).expect("JSON");
        let row = rows.as_array()?.iter().find(|row| row["name"] == node)?;
        row["pid"].as_i64()
    }

    /// A further datanode, not one of the development cluster's: ends with the value. Its log is among theirs.
    pub fn further_datanode(&self, id: u64, data: &[&Path]) -> Running {
        let address = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = address.local_addr().expect("an address").to_string();
        let log = self.dir().join(format!("logs/datanode-{id}.log"));
        let log = std::fs::File::options().create(true).append(true).open(log);
        let data: Vec<_> = data.iter().map(|path| path.display().to_string()).collect();
        let mut command = Command::new(binary());
        command
            .args(["datanode", "--id", &id.to_string(), "--listen", &address])
            .args(["--masters", &self.masters(), "--data", &data.join(",")])
            .args(["--zone", &format!("datanode-{id}"), "--secret"])
            .arg(self.dir().join("secret"))
            .stderr(log.expect("a log"));
        Running::start(&mut command)
    }

    /// Addresses of the masters, separated by commas.
    pub fn masters(&self) -> String {
        let text = std::fs::read(self.dir().join("cluster.json")).expect("the layout");
        let layout: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        let nodes = layout["nodes"].as_array().expect("nodes").iter();
        let masters = nodes.filter(|node| node["role"] == "master");
        masters
            .map(|node| node["address"].as_str().expect("an address"))
            .collect::<Vec<_>>()
            .join(",")
    }

    /// `lumeofs admin … --json`.
    pub fn admin(&self, arguments: &[&str]) -> serde_json::Value {
        self.try_admin(arguments)
            .unwrap_or_else(|error| panic!("admin {arguments:?}: {error}"))
    }

    /// As [`Cluster::admin`]; the command's message if it fails.
    pub fn try_admin(&self, arguments: &[&str]) -> Result<serde_json::Value, String> {
        let mut all = vec!["admin", "--json", "--dir", self.text()];
        all.extend(arguments);
        let output = output(binary().as_os_str(), &all);
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())
    }

    /// Name of the master that leads a Raft group (`metadata`, `controller`).
    pub fn leader(&self, group: &str) -> String {
        let mut leader = 0;
        eventually("the group has a leader", Duration::from_secs(60), || {
            let Ok(status) = self.try_admin(&["status"]) else {
                return false;
            };
            let groups = status["leaders"].as_array().cloned().unwrap_or_default();
            leader = groups
                .iter()
                .find(|entry| entry["group"] == group)
                .and_then(|entry| entry["leader"].as_u64())
                .unwrap_or(0);
            leader != 0
        });
        format!("master-{leader}")
    }

    /// Waits until no replica group has this datanode as a member, and all are whole.
    pub fn wait_moved_off(&self, node: u64, limit: Duration) {
        eventually("replicas move", limit, || {
            let Ok(groups) = self.try_admin(&["groups"]) else {
                return false;
            };
            let mut groups = groups.as_array().expect("groups").iter();
            let list = |value: &serde_json::Value| value.as_array().cloned().unwrap_or_default();
            groups.all(|group| {
                let (members, in_sync) = (list(&group["members"]), list(&group["in_sync"]));
                members.len() == in_sync.len()
                    && group["replicas"] == members.len()
                    && !members.iter().any(|member| *member == node)
            })
        });
    }

    /// Waits until every replica group has all its members in sync.
    pub fn wait_in_sync(&self, limit: Duration) {
        eventually("all groups in sync", limit, || {
            self.try_admin(&["status"]).is_ok_and(|status| {
                status["groups"].as_u64() > Some(0) && status["groups"] == status["groups_in_sync"]
            })
        });
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for mount in &self.mounts {
            let _ = Command::new("umount").args(["-l"]).arg(mount).output();
        }
        let stopped = Command::new(binary())
            .args(["dev", "stop", "--dir", self.text()])
            .output();
        if std::thread::panicking() {
            show_logs(&self.dir().join("logs"));
            if std::env::var_os("LUMEOFS_TEST_KEEP").is_some() {
                let kept = self.directory.path().to_owned();
                self.directory.disable_cleanup(true);
                eprintln!("kept {}", kept.display());
            }
        } else {
            assert!(
                stopped.is_ok_and(|output| output.status.success()),
                "the cluster does not stop"
            );
        }
    }
}
