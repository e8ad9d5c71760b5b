//! Commands that must end soon, and what they said.

use lumeofs_tests::{Cluster, binary};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// "Within seconds": an election and a search for masters fit, a hang does not.
pub(crate) const SOON: Duration = Duration::from_secs(12);

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Attempt {
    /// Exit code; `None` after a signal.
    pub(crate) code: Option<i32>,
    /// All that it said.
    pub(crate) text: String,
    /// The command line.
    command: String,
}

impl Attempt {
    /// Checks the exit code, and that each of these is part of the message.
    #[track_caller]
    pub(crate) fn says(&self, code: i32, parts: &[&str]) -> &Self {
        let (command, text) = (&self.command, &self.text);
        assert_eq!(self.code, Some(code), "{command}\n{text}");
        for part in parts {
            assert!(
                text.contains(part),
                "{part:?} is missing: {command}\n{text}"
            );
        }
        assert!(!text.contains("panicked"), "{command}\n{text}");
        self
    }
}

/// Runs `lumeofs`; panics if it does not end within [`SOON`].
#[track_caller]
pub(crate) fn lumeofs<S: AsRef<OsStr>>(arguments: &[S]) -> Attempt {
    ends(Command::new(binary()).args(arguments))
}

/// Runs a command; panics if it does not end within [`SOON`].
#[track_caller]
pub(crate) fn ends(command: &mut Command) -> Attempt {
    let shown = format!("{command:?}");
    let begun = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{shown}: {error}"));
    let ended = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if begun.elapsed() > SOON {
            child.kill().unwrap();
            child.wait().unwrap();
            break None;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let mut text = String::new();
    let mut collect = |out: &mut dyn std::io::Read| {
        let mut bytes = Vec::new();
        out.read_to_end(&mut bytes).unwrap();
        text.push_str(&String::from_utf8_lossy(&bytes));
    };
    collect(&mut child.stdout.take().unwrap());
    collect(&mut child.stderr.take().unwrap());
    let Some(status) = ended else {
        panic!("{shown} did not end within {SOON:?}; it said:\n{text}");
    };
    Attempt {
        code: status.code(),
        text,
        command: shown,
    }
}

/// The errno that a call failed with.
pub(crate) fn errno<T>(result: std::io::Result<T>) -> Option<Errno> {
    result.err().and_then(|error| Errno::from_io_error(&error))
}

/// An address at which nobody listens.
pub(crate) fn nobody() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

/// A cluster's secret file.
pub(crate) fn secret(cluster: &Cluster) -> String {
    text(&cluster.dir().join("secret"))
}

/// Address of a node.
pub(crate) fn address(cluster: &Cluster, node: &str) -> String {
    let layout = std::fs::read(cluster.dir().join("cluster.json")).unwrap();
    let layout: serde_json::Value = serde_json::from_slice(&layout).unwrap();
    let mut nodes = layout["nodes"].as_array().unwrap().iter();
    let node = nodes.find(|entry| entry["name"] == node).unwrap();
    node["address"].as_str().unwrap().to_owned()
}

/// The masters as `--peers` wants them.
pub(crate) fn peers(cluster: &Cluster) -> String {
    let masters = cluster.masters();
    let masters = masters.split(',').enumerate();
    let peers: Vec<_> = masters
        .map(|(at, address)| format!("{}={address}", at + 1))
        .collect();
    peers.join(",")
}

/// A path as text.
pub(crate) fn text(path: &Path) -> String {
    path.to_str().expect("an ASCII path").to_owned()
}
