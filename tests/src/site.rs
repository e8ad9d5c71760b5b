//! A cluster of hosts: each node in its own network namespace, with its own disk if wanted.

use crate::{
    Hosts, LoopMounts, MKFS_EXT4, Running, address, binary, eventually, is_mounted, run, show_logs,
    temporary_named,
};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// How long a node, a mount or the whole cluster may take to come up or to stop.
const DEADLINE: Duration = Duration::from_secs(40);
/// Room on each node's disk; the image is sparse.
const DISK_BYTES: u64 = 1 << 30;
/// Longest time that a command of an administrator may take.
const ADMIN_SECONDS: &str = "20";
/// Hosts of masters, with their numbers and first ids; the last one is spare.
const MASTERS: [(&str, u8); 4] = [("m1", 1), ("m2", 2), ("m3", 3), ("m4", 4)];
/// Hosts of datanodes, with their numbers and first ids; the last one is spare.
const DATANODES: [(&str, u8); 4] = [("d1", 101), ("d2", 102), ("d3", 103), ("d4", 104)];
/// Hosts of mounts and of administrators.
const CLIENTS: [(&str, u8); 2] = [("a", 201), ("b", 202)];

/// What runs on a host.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// A master.
    Master,
    /// A datanode.
    Datanode,
}

/// A node and its process.
#[derive(Debug)]
struct Node {
    role: Role,
    id: u64,
    number: u8,
    /// More arguments of its next start.
    more: Vec<String>,
    /// Variables of its next start.
    environment: Vec<(&'static str, String)>,
    /// `None` while it is stopped.
    process: Option<Running>,
}

/// The cluster. Everything ends with it, also when the test fails.
#[derive(Debug)]
pub struct Site {
    mounts: BTreeMap<String, (PathBuf, Running)>,
    nodes: BTreeMap<&'static str, Node>,
    disks: LoopMounts,
    hosts: Hosts,
    directory: tempfile::TempDir,
    has_disks: bool,
}

impl Site {
    /// Three masters and three datanodes, in sync; with a fourth host for each. Names of what it makes begin
    /// with `prefix`.
    pub fn start(prefix: &str, has_disks: bool) -> Self {
        let mut site = Self {
            mounts: BTreeMap::new(),
            nodes: BTreeMap::new(),
            disks: LoopMounts::default(),
            hosts: Hosts::new(prefix),
            directory: temporary_named(&format!("{prefix}.{}.", std::process::id())),
            has_disks,
        };
        for (host, number) in MASTERS.into_iter().chain(DATANODES).chain(CLIENTS) {
            site.hosts.add(host, number);
        }
        std::fs::create_dir(site.logs()).expect("a directory for logs");
        run(binary(), &["keygen", &site.file("secret")]);
        for (host, number) in &MASTERS[..3] {
            site.add(Role::Master, host, u64::from(*number));
        }
        for (host, number) in &DATANODES[..3] {
            site.add(Role::Datanode, host, u64::from(*number));
        }
        for host in site.hosts_of(Role::Master) {
            site.start_node(host);
        }
        for host in site.hosts_of(Role::Datanode) {
            site.start_node(host);
        }
        eventually("the cluster is ready", DEADLINE, || site.in_sync());
        site
    }

    /// Says that a node with an empty disk is on this host; it is not started.
    pub fn add(&mut self, role: Role, host: &'static str, id: u64) {
        let all = MASTERS.into_iter().chain(DATANODES);
        let (_, number) = all
            .into_iter()
            .find(|(name, _)| *name == host)
            .expect("a host");
        if self.has_disks && !is_mounted(&self.disk(host)) {
            LoopMounts::format(&self.image(host), DISK_BYTES, &MKFS_EXT4);
            self.mount_disk(host);
        }
        std::fs::create_dir_all(self.data(host)).expect("a data directory");
        let node = Node {
            role,
            id,
            number,
            more: Vec::new(),
            environment: Vec::new(),
            process: None,
        };
        self.nodes.insert(host, node);
    }

    /// Forgets a node that is stopped, and what was on its disk.
    pub fn forget(&mut self, host: &'static str) {
        self.wipe(host);
        self.nodes.remove(host);
    }

    /// Hosts of nodes of a role.
    pub fn hosts_of(&self, role: Role) -> Vec<&'static str> {
        let nodes = self.nodes.iter().filter(|(_, node)| node.role == role);
        nodes.map(|(host, _)| *host).collect()
    }

    /// The host that has no node of this role.
    pub fn spare(&self, role: Role) -> &'static str {
        let hosts = match role {
            Role::Master => MASTERS,
            Role::Datanode => DATANODES,
        };
        let mut hosts = hosts.into_iter().map(|(host, _)| host);
        let spare = hosts.find(|host| !self.nodes.contains_key(host));
        spare.expect("one host more than nodes")
    }

    /// The host of a node.
    pub fn host_of(&self, id: u64) -> Option<&'static str> {
        let found = self.nodes.iter().find(|(_, node)| node.id == id);
        found.map(|(host, _)| *host)
    }

    /// The id of the node on this host.
    pub fn id(&self, host: &str) -> u64 {
        self.nodes[host].id
    }

    /// An id that no node of this role has or had here.
    pub fn new_id(&self, role: Role) -> u64 {
        let ids = self.nodes.values().filter(|node| node.role == role);
        // Those that were forgotten had smaller ones: a new node is added before the old one is forgotten.
        ids.map(|node| node.id)
            .max()
            .unwrap_or(0)
            .max(DATANODES.len() as u64)
            + 1
    }

    /// The network.
    pub fn hosts(&self) -> &Hosts {
        &self.hosts
    }

    /// Where HOST:PORT of a node is.
    pub fn address(&self, host: &str) -> String {
        format!("{}:7000", self.hosts.address(host))
    }

    /// A file below the site's directory.
    pub fn file(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    /// The site's directory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// One log for each node and mount.
    pub fn logs(&self) -> PathBuf {
        self.directory.path().join("logs")
    }

    /// The log of a node or of a mount.
    pub fn log(&self, name: &str) -> PathBuf {
        self.logs().join(format!("{name}.log"))
    }

    /// Where a node's disk is mounted.
    pub fn disk(&self, host: &str) -> PathBuf {
        self.directory.path().join(host)
    }

    /// A node's data directory.
    pub fn data(&self, host: &str) -> PathBuf {
        self.disk(host).join("data")
    }

    fn image(&self, host: &str) -> PathBuf {
        self.directory.path().join(format!("{host}.img"))
    }

    fn mount_disk(&mut self, host: &str) {
        let (image, point) = (self.image(host), self.disk(host));
        self.disks.mount(&image, &point, "loop,errors=remount-ro");
    }

    /// Takes the disk of a stopped node out and puts it back, which ends what is wrong with its filesystem.
    pub fn replug(&mut self, host: &str) {
        let point = self.disk(host);
        self.disks.unmount(&point);
        self.mount_disk(host);
    }

    /// Removes all data of a stopped node.
    pub fn wipe(&mut self, host: &str) {
        let data = self.data(host);
        std::fs::remove_dir_all(&data).expect("the data directory can be removed");
        std::fs::create_dir(&data).expect("a data directory");
    }

    /// Number of disks.
    pub fn disks(&self) -> usize {
        let all = MASTERS.into_iter().chain(DATANODES);
        all.filter(|(host, _)| is_mounted(&self.disk(host))).count()
    }

    /// Addresses of the masters, separated by commas.
    pub fn masters(&self) -> String {
        let masters = self.hosts_of(Role::Master);
        let addresses: Vec<_> = masters.iter().map(|host| self.address(host)).collect();
        addresses.join(",")
    }

    /// The masters as `--peers` wants them.
    pub fn peers(&self) -> String {
        let masters = self.hosts_of(Role::Master);
        let peers: Vec<_> = masters
            .iter()
            .map(|host| format!("{}={}", self.id(host), self.address(host)))
            .collect();
        peers.join(",")
    }

    /// Variables and more arguments for the next starts of a node.
    pub fn set_start(
        &mut self,
        host: &str,
        environment: Vec<(&'static str, String)>,
        more: Vec<String>,
    ) {
        let node = self.nodes.get_mut(host).expect("a node");
        node.environment = environment;
        node.more = more;
    }

    /// Starts a node's process.
    pub fn start_node(&mut self, host: &str) {
        let (peers, masters) = (self.peers(), self.masters());
        let node = &self.nodes[host];
        let (id, address) = (
            node.id.to_string(),
            format!("{}:7000", address(node.number)),
        );
        // Chunks as small as they can be, so that ordinary files have several.
        let special = match node.role {
            Role::Master => vec!["master", "--peers", &peers, "--chunk-size", "1048576"],
            Role::Datanode => vec!["datanode", "--masters", &masters, "--zone", host],
        };
        let mut command = self
            .hosts
            .command(host, binary().to_str().expect("an ASCII path"));
        command
            .args(special)
            .args(["--id", &id, "--listen", &address])
            .args(["--secret", &self.file("secret"), "--data"])
            .arg(self.data(host))
            .args(&node.more)
            .envs(node.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(self.append_to_log(host));
        let process = Running::start(&mut command);
        self.node(host).process = Some(process);
    }

    fn node(&mut self, host: &str) -> &mut Node {
        self.nodes.get_mut(host).expect("a node")
    }

    fn append_to_log(&self, name: &str) -> File {
        let opened = File::options()
            .append(true)
            .create(true)
            .open(self.log(name));
        opened.expect("a log file")
    }

    /// `kill -9`, and waits for the end.
    pub fn kill(&mut self, host: &str) {
        self.node(host).process = None;
    }

    /// Stops a node in order.
    pub fn terminate(&mut self, host: &str) {
        if self.pid(host).is_some() {
            self.signal(host, rustix::process::Signal::TERM);
            eventually(&format!("{host} stops when asked to"), DEADLINE, || {
                self.pid(host).is_none()
            });
        }
        self.node(host).process = None;
    }

    /// Sends a signal to a node that runs.
    pub fn signal(&mut self, host: &str, signal: rustix::process::Signal) {
        let process = self.node(host).process.as_ref().expect("it runs");
        let pid = rustix::process::Pid::from_child(process);
        rustix::process::kill_process(pid, signal).expect("a process of ours");
    }

    /// The process of a node, as long as it runs.
    pub fn pid(&mut self, host: &str) -> Option<u32> {
        let process = self.node(host).process.as_mut()?;
        let ended = process.try_wait().expect("a child of ours").is_some();
        (!ended).then(|| process.id())
    }

    /// Processes of the nodes and mounts that run, by name.
    pub fn processes(&mut self) -> BTreeMap<String, u32> {
        let hosts: Vec<_> = self.nodes.keys().copied().collect();
        let mut found: BTreeMap<_, _> = hosts
            .into_iter()
            .filter_map(|host| Some((host.to_owned(), self.pid(host)?)))
            .collect();
        let mounts = self.mounts.iter();
        found.extend(mounts.map(|(name, (_, process))| (format!("mount-{name}"), process.id())));
        found
    }

    /// Where [`Site::mount`] mounts what has this name.
    pub fn mount_point(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("mnt-{name}"))
    }

    /// Mounts at a host and waits until the mount is there. `name` is that of the mount and of its log.
    pub fn mount(&mut self, host: &str, name: &str, options: &str) -> PathBuf {
        let point = self.mount_point(name);
        std::fs::create_dir_all(&point).expect("a mount point");
        let options = format!("secretfile={},{options}", self.file("secret"));
        let mut command = self
            .hosts
            .command(host, binary().to_str().expect("an ASCII path"));
        command
            .args(["mount", &self.masters()])
            .arg(&point)
            .args(["--foreground", "-o", &options])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(self.append_to_log(&format!("mount-{name}")));
        let process = Running::start(&mut command);
        self.mounts
            .insert(name.to_owned(), (point.clone(), process));
        eventually("it is mounted", DEADLINE, || is_mounted(&point));
        point
    }

    /// Unmounts what [`Site::mount`] mounted; its process ends with it.
    pub fn unmount(&mut self, name: &str) {
        let (point, mut process) = self.mounts.remove(name).expect("a mount");
        eventually("the mount is not in use", DEADLINE, || {
            let done = Command::new("umount").arg(&point).output();
            done.is_ok_and(|output| output.status.success())
        });
        eventually("the mount's process ends", DEADLINE, || {
            process.try_wait().expect("a child of ours").is_some()
        });
    }

    /// `lumeofs admin … --json`; what it said if it failed.
    pub fn admin(&self, arguments: &[&str]) -> Result<Value, String> {
        let output = self
            .hosts
            .command("a", "timeout")
            .arg(ADMIN_SECONDS)
            .arg(binary())
            .args(["admin", "--json", "--masters", &self.masters()])
            .args(["--secret", &self.file("secret")])
            .args(arguments)
            .output()
            .map_err(|error| error.to_string())?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let text = String::from_utf8_lossy(&output.stdout);
            return Err(format!("{}: {}{text}", output.status, said.trim()));
        }
        serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())
    }

    /// The cluster at a glance.
    pub fn status(&self) -> Option<Value> {
        self.admin(&["status"]).ok()
    }

    /// Whether every replica group has all its members in sync, and as many as there are copies.
    pub fn in_sync(&self) -> bool {
        let Ok(groups) = self.admin(&["groups"]) else {
            return false;
        };
        let list = |value: &Value| {
            let ids = value.as_array().into_iter().flatten();
            let mut ids: Vec<_> = ids.filter_map(Value::as_u64).collect();
            ids.sort_unstable();
            ids
        };
        let groups = groups.as_array().cloned().unwrap_or_default();
        let whole = |group: &Value| {
            let members = list(&group["members"]);
            members.len() == 3 && members == list(&group["in_sync"])
        };
        !groups.is_empty() && groups.iter().all(whole)
    }

    /// Whether all masters answer and have followed their leaders.
    pub fn masters_caught_up(&self) -> bool {
        let Ok(rows) = self.admin(&["raft"]) else {
            return false;
        };
        let rows = rows.as_array().cloned().unwrap_or_default();
        let near = |row: &Value| {
            let followers = row["followers"].as_array().into_iter().flatten();
            let lags: Vec<_> = followers.map(|follower| follower["lag"].as_u64()).collect();
            let followed = lags.iter().all(|lag| lag.is_some_and(|lag| lag < 1000));
            row["error"].is_null() && row["leader"].as_u64() > Some(0) && followed
        };
        let leads = |group: &str| {
            rows.iter()
                .any(|row| row["group"] == group && row["role"] == "leader")
        };
        leads("metadata") && leads("controller") && rows.iter().all(near)
    }

    /// Host of the master that leads a Raft group (`metadata`, `controller`).
    pub fn leader(&self, group: &str) -> &'static str {
        let mut leader = None;
        eventually("the group has a leader", DEADLINE, || {
            leader = self.status().and_then(|status| {
                let groups = status["leaders"].as_array()?.clone();
                let found = groups.iter().find(|entry| entry["group"] == group)?["leader"].as_u64();
                self.host_of(found?)
            });
            leader.is_some()
        });
        leader.expect("found")
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for (point, _) in self.mounts.values() {
            let _ = Command::new("umount").arg("-l").arg(point).output();
        }
        self.mounts.clear();
        self.nodes.clear();
        if std::thread::panicking() {
            show_logs(&self.logs());
        }
    }
}
