//! Nodes that are cut off from each other: each in its own network namespace, links lost without a word.

use lumeofs_tests::{Running, binary, eventually, run, show_logs, temporary};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(40);

/// Hosts on one bridge, each with its processes.
struct Net {
    prefix: String,
    hosts: BTreeMap<&'static str, u8>,
    processes: Vec<Running>,
    directory: tempfile::TempDir,
    mounts: Vec<PathBuf>,
}

const MASTERS: [(&str, u8); 3] = [("m1", 1), ("m2", 2), ("m3", 3)];
const DATANODES: [(&str, u8); 3] = [("d1", 101), ("d2", 102), ("d3", 103)];
const CLIENTS: [(&str, u8); 2] = [("a", 201), ("b", 202)];

impl Net {
    fn start() -> Self {
        // Tests of one process may run side by side.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("lmfs{}-{count}", std::process::id());
        let directory = temporary();
        let mut net = Self {
            prefix,
            hosts: BTreeMap::new(),
            processes: Vec::new(),
            directory,
            mounts: Vec::new(),
        };
        let hub = net.namespace("hub");
        run("ip", &["netns", "add", &hub]);
        run("ip", &["-n", &hub, "link", "add", "br0", "type", "bridge"]);
        run("ip", &["-n", &hub, "link", "set", "br0", "up"]);
        for (host, number) in MASTERS.into_iter().chain(DATANODES).chain(CLIENTS) {
            net.hosts.insert(host, number);
            let name = net.namespace(host);
            run("ip", &["netns", "add", &name]);
            run(
                "ip",
                &[
                    "-n", &hub, "link", "add", "name", host, "type", "veth", "peer", "name",
                    "eth0", "netns", &name,
                ],
            );
            run(
                "ip",
                &[
                    "-n", &hub, "link", "set", "dev", host, "master", "br0", "up",
                ],
            );
            run(
                "ip",
                &[
                    "-n",
                    &name,
                    "addr",
                    "add",
                    &format!("{}/24", address(number)),
                    "dev",
                    "eth0",
                ],
            );
            run("ip", &["-n", &name, "link", "set", "eth0", "up"]);
            run("ip", &["-n", &name, "link", "set", "lo", "up"]);
        }
        run(binary(), &["keygen", &net.file("secret")]);
        for (host, number) in MASTERS {
            let peers: Vec<_> = MASTERS
                .iter()
                .map(|(_, id)| format!("{id}={}:7000", address(*id)))
                .collect();
            net.spawn(
                host,
                &[
                    "master",
                    "--id",
                    &number.to_string(),
                    "--peers",
                    &peers.join(","),
                ],
            );
        }
        for (host, number) in DATANODES {
            let listen = format!("{}:7000", address(number));
            let masters = masters();
            net.spawn(
                host,
                &[
                    "datanode",
                    "--id",
                    &number.to_string(),
                    "--listen",
                    &listen,
                    "--masters",
                    &masters,
                    "--zone",
                    host,
                ],
            );
        }
        eventually("the cluster is ready", DEADLINE, || {
            net.status().is_some_and(|status| {
                status["groups"].as_u64() > Some(0) && status["groups"] == status["groups_in_sync"]
            })
        });
        net
    }

    fn namespace(&self, host: &str) -> String {
        format!("{}-{host}", self.prefix)
    }

    fn file(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    fn command(&self, host: &str, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.namespace(host)))
            .arg("--")
            .arg(program);
        command
    }

    fn spawn(&mut self, host: &str, arguments: &[&str]) {
        let log = std::fs::File::create(self.file(&format!("{host}.log"))).unwrap();
        let mut command = self.command(host, binary().to_str().unwrap());
        command
            .args(arguments)
            .args(["--secret", &self.file("secret"), "--data", &self.file(host)])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.processes.push(Running::start(&mut command));
    }

    fn mount(&mut self, host: &'static str, options: &str) -> PathBuf {
        let point = self.directory.path().join(format!("mnt-{host}"));
        std::fs::create_dir(&point).unwrap();
        let options = format!("secretfile={},{options}", self.file("secret"));
        let log = self.file(&format!("{host}.log"));
        let output = self
            .command(host, binary().to_str().unwrap())
            .args([
                "mount",
                &masters(),
                point.to_str().unwrap(),
                "-o",
                &options,
                "--log",
                &log,
            ])
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "mount: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        self.mounts.push(point.clone());
        point
    }

    fn admin(&self, arguments: &[&str]) -> Option<Value> {
        let output = self
            .command("a", binary().to_str().unwrap())
            .args([
                "admin",
                "--json",
                "--masters",
                &masters(),
                "--secret",
                &self.file("secret"),
            ])
            .args(arguments)
            .output()
            .unwrap();
        output
            .status
            .success()
            .then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    fn status(&self) -> Option<Value> {
        self.admin(&["status"])
    }

    fn leader(&self) -> &'static str {
        let mut leader = None;
        eventually("a metadata leader", DEADLINE, || {
            leader = self.status().and_then(|status| {
                let groups = status["leaders"].as_array()?.clone();
                groups.iter().find(|group| group["group"] == "metadata")?["leader"].as_u64()
            });
            leader.is_some_and(|leader| leader != 0)
        });
        MASTERS
            .iter()
            .find(|(_, id)| Some(u64::from(*id)) == leader)
            .expect("a known master")
            .0
    }

    /// Packets from one host to another vanish.
    fn cut(&self, from: &str, to: &str) {
        let to = address(self.hosts[to]);
        let nowhere = [
            "lladdr",
            "02:00:00:00:00:ff",
            "dev",
            "eth0",
            "nud",
            "permanent",
        ];
        let mut arguments = vec!["-n", "", "neigh", "replace", &to];
        let namespace = self.namespace(from);
        arguments[1] = &namespace;
        arguments.extend(nowhere);
        run("ip", &arguments);
    }

    fn cut_both(&self, one: &str, others: &[&str]) {
        for other in others {
            self.cut(one, other);
            self.cut(other, one);
        }
    }

    fn heal(&self) {
        for host in self.hosts.keys() {
            run(
                "ip",
                &[
                    "-n",
                    &self.namespace(host),
                    "neigh",
                    "flush",
                    "nud",
                    "permanent",
                    "dev",
                    "eth0",
                ],
            );
        }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for mount in &self.mounts {
            let _ = Command::new("umount").arg("-l").arg(mount).output();
        }
        self.processes.clear();
        for host in self.hosts.keys().chain([&"hub"]) {
            let _ = Command::new("ip")
                .args(["netns", "del", &self.namespace(host)])
                .output();
        }
        if std::thread::panicking() {
            show_logs(self.directory.path());
        }
    }
}

fn address(number: u8) -> String {
    format!("10.199.0.{number}")
}

/// A mount with `on-outage=eio` may fail now and then, and shows this in the end.
fn shows(file: &Path, text: &str) {
    eventually("the cut-off mount sees the truth", DEADLINE, || {
        std::fs::read_to_string(file).is_ok_and(|read| read == text)
    });
}

fn masters() -> String {
    MASTERS
        .iter()
        .map(|(_, id)| format!("{}:7000", address(*id)))
        .collect::<Vec<_>>()
        .join(",")
}

#[test]
fn a_partitioned_old_leader_answers_nothing_stale() {
    let mut net = Net::start();
    let a = net.mount("a", "on-outage=block");
    let b = net.mount("b", "on-outage=eio");
    std::fs::write(a.join("file"), "0").unwrap();
    shows(&b.join("file"), "0");
    let leader = net.leader();
    // The old leader and client b stay together; all others lose them.
    let others: Vec<_> = net
        .hosts
        .keys()
        .copied()
        .filter(|host| *host != leader && *host != "b")
        .collect();
    net.cut_both(leader, &others);
    net.cut_both("b", &others);
    let begun = Instant::now();
    let (mut wrote, mut refused) = (0, 0);
    while begun.elapsed() < Duration::from_secs(12) {
        let next = wrote + 1;
        std::fs::write(a.join("file"), next.to_string()).unwrap();
        wrote = next;
        // Whoever answers b after a's write returned must show it.
        match std::fs::read_to_string(b.join("file")) {
            Ok(read) => {
                let at = begun.elapsed();
                assert_eq!(
                    read,
                    wrote.to_string(),
                    "a stale answer {at:?} after the cut"
                );
            }
            Err(_) => refused += 1,
        }
    }
    assert!(wrote > 0, "the majority goes on");
    assert!(refused > 0, "b was cut off");
    net.heal();
    shows(&b.join("file"), &wrote.to_string());
}

#[test]
fn a_partitioned_old_primary_answers_nothing_stale() {
    let mut net = Net::start();
    let a = net.mount("a", "on-outage=block");
    let b = net.mount("b", "on-outage=eio");
    // Enough files to have some in a group of which d1 is the primary.
    let name = |number: usize| format!("file{number}");
    for number in 0..24 {
        std::fs::write(a.join(name(number)), "0").unwrap();
        shows(&b.join(name(number)), "0");
    }
    // d1 still talks with client b, but with nobody else; b reaches everybody.
    let others: Vec<_> = net
        .hosts
        .keys()
        .copied()
        .filter(|host| *host != "d1" && *host != "b")
        .collect();
    net.cut_both("d1", &others);
    let mut answers = 0;
    for round in 1..=3 {
        for number in 0..24 {
            let text = format!("{round}");
            std::fs::write(a.join(name(number)), &text).unwrap();
            if let Ok(read) = std::fs::read_to_string(b.join(name(number))) {
                assert_eq!(read, text, "a stale answer for {}", name(number));
                answers += 1;
            }
        }
    }
    assert!(answers > 0, "b was answered");
    net.heal();
    eventually("all groups are in sync again", DEADLINE, || {
        net.status()
            .is_some_and(|status| status["groups"] == status["groups_in_sync"])
    });
    for number in 0..24 {
        shows(&b.join(name(number)), "3");
    }
}
