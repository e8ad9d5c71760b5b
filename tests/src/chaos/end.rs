//! The end of a run: all files are removed, so nothing of them may be left, and nothing of the cluster once it is stopped.

use super::checks::{SESSIONS_ENDED, SPACE_FREED, loop_devices, settled, strangers};
use super::day::{MOUNTS, Yard};
use crate::{Role, Site, binary, run};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Chunks that are named one by one.
const TOLD_MAX: usize = 10;

impl Yard {
    /// Stops the cluster and takes it away. Says what has leaked: files, chunks at datanodes, sessions, open files and locks
    /// at the leader, memory, threads, processes, mounts, network namespaces, loop devices, directories.
    pub fn end(mut self, number: u64) -> Vec<String> {
        let mut wrong = self.files_left();
        wrong.extend(settled(SPACE_FREED, || chunks_known(&self.site)));
        let mounts = self.mounts.len();
        wrong.extend(settled(SESSIONS_ENDED, || sessions(&self.site, mounts)));
        let checked = self.site.admin(&["fsck"]);
        wrong.extend(checked.err().map(|said| format!("admin fsck: {said}")));
        wrong.extend(self.baseline.check_processes(&mut self.site));
        for name in MOUNTS {
            self.site.unmount(name);
        }
        wrong.extend(settled(SESSIONS_ENDED, || sessions(&self.site, 0)));
        for host in [Role::Datanode, Role::Master]
            .map(|role| self.site.hosts_of(role))
            .concat()
        {
            self.site.terminate(host);
        }
        wrong.extend(strangers(&mut self.site));
        for host in self.site.hosts_of(Role::Datanode) {
            wrong.extend(chunks_stored(host, &self.site.data(host)));
        }
        if !wrong.is_empty() {
            let kept = self.keep(number);
            wrong.push(format!("logs: {}", kept.display()));
        }
        let traces = Traces::of(&self.site);
        drop(self);
        wrong.extend(traces.left());
        wrong
    }

    fn files_left(&self) -> Vec<String> {
        let names = self
            .mounts
            .iter()
            .map(|mount| match std::fs::read_dir(mount) {
                Ok(names) => names.count(),
                Err(_) => usize::MAX,
            });
        let counts: Vec<_> = names.collect();
        let none = counts.iter().all(|count| *count == 0);
        let wrong = (!none).then(|| format!("names in the root of each mount: {counts:?}"));
        wrong.into_iter().collect()
    }
}

/// What the datanodes have, as the masters know it.
fn chunks_known(site: &Site) -> Vec<String> {
    let health = match site.admin(&["health"]) {
        Ok(health) => health,
        Err(said) => return vec![format!("admin health: {said}")],
    };
    let levels = health["data"]["levels"].as_object();
    let counts = levels.map(|levels| levels.values().filter_map(|level| level["chunks"].as_u64()));
    match counts.map(Iterator::sum::<u64>) {
        Some(0) => Vec::new(),
        Some(count) => vec![format!(
            "{count} chunks are left, although all files were removed"
        )],
        None => vec![format!("admin health names no levels: {health}")],
    }
}

/// Sessions other than those of so many mounts that do nothing.
fn sessions(site: &Site, mounts: usize) -> Vec<String> {
    let sessions = match site.admin(&["session", "list"]) {
        Ok(sessions) => sessions.as_array().cloned().unwrap_or_default(),
        Err(said) => return vec![format!("admin session list: {said}")],
    };
    let busy = |session: &&Value| {
        session["opens"] != 0 || session["locked"] != 0 || session["ending"] != false
    };
    let busy = sessions.iter().filter(busy);
    let mut wrong: Vec<_> = busy
        .map(|session| format!("a session that holds something: {session}"))
        .collect();
    if sessions.len() != mounts {
        let all = Value::from(sessions);
        wrong.push(format!("sessions of {mounts} mounts: {all}"));
    }
    wrong
}

/// Chunks in the data directory of a stopped datanode.
fn chunks_stored(host: &str, data: &Path) -> Vec<String> {
    let directory = data.to_str().expect("an ASCII path");
    let lines = run(binary(), &["datanode", "chunks", "--json", directory]);
    let rows = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("a line of JSON"));
    let left: Vec<_> = rows.filter(|row| row["deleted"] != true).collect();
    let told = left.iter().take(TOLD_MAX);
    let mut wrong: Vec<_> = told
        .map(|row| format!("{host} has a chunk: {row}"))
        .collect();
    if left.len() > TOLD_MAX {
        wrong.push(format!("{host} has {} chunks", left.len()));
    }
    wrong
}

/// What a cluster has on this machine.
struct Traces {
    directory: PathBuf,
    namespaces: Vec<PathBuf>,
}

impl Traces {
    fn of(site: &Site) -> Self {
        let hosts = site.hosts().names().chain(["hub"]);
        let namespaces = hosts.map(|host| site.hosts().namespace(host));
        Self {
            directory: site.directory().to_owned(),
            namespaces: namespaces
                .map(|name| Path::new("/run/netns").join(name))
                .collect(),
        }
    }

    /// Those that are there after the cluster was taken away.
    fn left(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let namespaces = self.namespaces.iter().filter(|path| path.exists());
        wrong.extend(namespaces.map(|path| format!("{} is left", path.display())));
        let directory = self.directory.display();
        if self.directory.exists() {
            wrong.push(format!("{directory} is left"));
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts").expect("the list of mounts");
        let below = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        let below = below.filter(|point| Path::new(point).starts_with(&self.directory));
        wrong.extend(below.map(|point| format!("{point} is left mounted")));
        let loops = loop_devices(&self.directory);
        if loops > 0 {
            wrong.push(format!("{loops} loop devices of {directory} are left"));
        }
        wrong
    }
}
