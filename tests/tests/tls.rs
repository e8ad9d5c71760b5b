//! A cluster with TLS: it works as any other, nothing that matters crosses in the clear, and who disagrees about TLS
//! is told.

use lumeofs_tests::{Cluster, Running, binary, eventually, run};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const CONTENT: &str = "not-for-the-eyes-of-the-network.";
const NAME: &str = "name-of-a-secret-file";

/// Watches what crosses the loopback interface.
struct Listening(Running);

const LISTEN: &str = r#"
import socket, select, sys
packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
packets.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
packets.bind(("lo", 0))
words = [word.encode() for word in sys.argv[1:]]
seen, total = [0] * len(words), 0
print("listening", flush=True)
while True:
    ready, _, _ = select.select([packets, sys.stdin], [], [])
    if packets in ready:
        packet = packets.recv(1 << 18)
        total += len(packet)
        for at, word in enumerate(words):
            seen[at] += word in packet
    elif sys.stdin in ready:
        break
print(*seen, total)
"#;

impl Listening {
    fn start() -> Self {
        let mut command = Command::new("python3");
        command.args(["-c", LISTEN, CONTENT, NAME]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = Running::start(&mut command);
        let mut line = String::new();
        let out = child.stdout.as_mut().expect("a pipe");
        BufReader::with_capacity(1, out)
            .read_line(&mut line)
            .expect("a line");
        assert_eq!(line.trim(), "listening", "packets can be recorded (root?)");
        Self(child)
    }

    /// Packets with the content, packets with the name, bytes in all.
    fn stop(mut self) -> [u64; 3] {
        drop(self.0.stdin.take());
        let mut text = String::new();
        let out = self.0.stdout.as_mut().expect("a pipe");
        out.read_to_string(&mut text).expect("text");
        let figures = text.split_whitespace().map(str::parse);
        let figures: Result<Vec<_>, _> = figures.collect();
        let figures = figures.expect("figures");
        figures.try_into().expect("three figures")
    }
}

/// The cluster's secret file, changed.
fn secret_as(cluster: &Cluster, change: impl Fn(String) -> String) -> PathBuf {
    let text = std::fs::read_to_string(cluster.dir().join("secret")).unwrap();
    let file = cluster.scratch().join("changed-secret");
    std::fs::write(&file, change(text)).unwrap();
    file
}

/// Runs a command with a secret file that does not fit, and checks what it says.
fn is_refused(cluster: &Cluster, secret: &Path, reason: &str) {
    let (masters, secret) = (cluster.masters(), secret.display().to_string());
    for command in [&["fs", "ls"][..], &["admin", "status"]] {
        let output = Command::new(binary())
            .args([command[0], "--masters", &masters, "--secret", &secret])
            .args(&command[1..])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(8), "{command:?}: {text}");
        assert!(text.contains(reason), "{command:?}: {text}");
    }
}

#[test]
fn an_encrypted_cluster_works_and_nothing_crosses_in_the_clear() {
    let mut cluster = Cluster::start_with(&["--tls"]);
    let listening = Listening::start();
    let content = CONTENT.repeat((8 << 20) / CONTENT.len());
    let file = cluster.mount().join(NAME);
    std::fs::write(&file, &content).unwrap();
    std::fs::File::open(&file).unwrap().sync_all().unwrap();
    let second = cluster.second_mount();
    let there = std::fs::read_to_string(second.join(NAME)).unwrap();
    assert!(
        there == content,
        "the second mount reads what the first wrote"
    );

    cluster.kill("datanode-101");
    let there = std::fs::read_to_string(&file).unwrap();
    assert!(there == content, "all is there without one datanode");
    std::fs::write(second.join("after"), &content).unwrap();
    cluster.restart("datanode-101");
    cluster.wait_in_sync(Duration::from_secs(60));
    let there = std::fs::read_to_string(cluster.mount().join("after")).unwrap();
    assert!(there == content, "and what was written meanwhile");

    let [content_seen, name_seen, bytes] = listening.stop();
    assert!(bytes > 32 << 20, "all of it was watched: {bytes} bytes");
    assert_eq!((content_seen, name_seen), (0, 0), "packets in the clear");

    let pem = run(
        binary(),
        &[
            "admin",
            "certificate",
            "--dir",
            cluster.dir().to_str().unwrap(),
        ],
    );
    assert!(pem.starts_with("-----BEGIN CERTIFICATE-----"), "{pem}");
    let without = secret_as(&cluster, |text| text.replace("tls = true\n", ""));
    is_refused(&cluster, &without, "add the line \"tls = true\"");
}

#[test]
fn a_cluster_without_tls_says_so_to_who_wants_it() {
    let cluster = Cluster::start_with(&["--masters", "1", "--datanodes", "1"]);
    // Here the other test would have failed.
    let listening = Listening::start();
    let mut file = std::fs::File::create(cluster.mount().join(NAME)).unwrap();
    file.write_all(CONTENT.repeat(1000).as_bytes()).unwrap();
    file.sync_all().unwrap();
    let [content_seen, name_seen, _] = listening.stop();
    assert!(
        content_seen > 0 && name_seen > 0,
        "{content_seen} {name_seen}"
    );
    let with = secret_as(&cluster, |text| text + "tls = true\n");
    is_refused(&cluster, &with, "the server does not speak TLS");
    // Nor does a datanode join that disagrees; it ends and says why.
    let mut command = Command::new(binary());
    command
        .args(["datanode", "--id", "102", "--listen", "127.0.0.1:0"])
        .args(["--masters", &cluster.masters(), "--secret"])
        .arg(&with)
        .arg("--data")
        .arg(cluster.scratch().join("102"))
        .stderr(Stdio::piped());
    let mut node = Running::start(&mut command);
    eventually("the datanode ends", Duration::from_secs(20), || {
        node.try_wait().unwrap().is_some()
    });
    let output = node.output();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(8), "{text}");
    assert!(text.contains("the server does not speak TLS"), "{text}");
    std::fs::write(cluster.mount().join("file"), "goes on").unwrap();
}
