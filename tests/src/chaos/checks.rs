//! What must hold after a day of failure: full health, and nothing leaked.

use super::fault::Kind;
use super::load::LOCKS;
use crate::{Site, binary, eventually, run};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Memory that no process may exceed: the limit of a mount; servers need less for what a day makes.
const MEMORY_BYTES: u64 = 512 << 20;
/// What the memory of one process may grow by over all rounds of its life.
const MEMORY_GROWTH_BYTES: u64 = 192 << 20;
/// Open files of one process: connections of all others, segments, extents.
const OPEN_FILES: usize = 1024;
/// Threads of one process.
const THREADS: usize = 512;
/// Space of a datanode that a day may keep: its log until the next checkpoint, which comes at 48 MiB.
const SPACE_KEPT_BYTES: u64 = 48 << 20;
/// What all days together may keep.
const SPACE_KEPT_IN_ALL_BYTES: u64 = 96 << 20;
/// When space of removed files is free again.
pub(super) const SPACE_FREED: Duration = Duration::from_secs(90);
/// When memory that a process has freed belongs to the machine again: a mount looks after it every ten seconds.
const MEMORY_FREED: Duration = Duration::from_secs(30);
/// When sessions of mounts that died are gone, and locks that nobody holds are given back.
pub(super) const SESSIONS_ENDED: Duration = Duration::from_secs(90);
/// Longer than the leases by which a node is missed.
const STEADY: Duration = Duration::from_secs(3);
/// When the health command sees what the groups say already.
const HEALTHY: Duration = Duration::from_secs(60);

/// The first command that the binary lacks of those that a fault needs.
pub(super) fn missing_command(kind: &Kind) -> Option<String> {
    let missing = kind.needs.iter().find(|words| !has_command(words))?;
    Some(missing.join(" "))
}

fn has_command(words: &[&str]) -> bool {
    let mut command = Command::new(binary());
    command.arg("admin").args(words).arg("--help");
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// What the processes and datanodes of a cluster used when they were seen first.
#[derive(Debug, Default)]
pub(super) struct Baseline {
    memory: BTreeMap<(String, u32), u64>,
    free: BTreeMap<u64, u64>,
    /// The largest growth of a process that was seen.
    pub(super) growth: u64,
}

impl Baseline {
    /// Checks memory, open files and threads of each process, as soon as what was freed has gone back to the machine.
    pub(super) fn check_processes(&mut self, site: &mut Site) -> Vec<String> {
        let mut grown = 0;
        let wrong = settled(MEMORY_FREED, || {
            grown = 0;
            self.look_at_processes(site, &mut grown)
        });
        self.growth = self.growth.max(grown);
        wrong
    }

    fn look_at_processes(&mut self, site: &mut Site, grown: &mut u64) -> Vec<String> {
        let mut wrong = Vec::new();
        for (name, pid) in site.processes() {
            let Some(memory) = resident(pid) else {
                wrong.push(format!("{name} ended by itself"));
                continue;
            };
            let first = *self.memory.entry((name.clone(), pid)).or_insert(memory);
            let growth = memory.saturating_sub(first);
            *grown = growth.max(*grown);
            if memory > MEMORY_BYTES || growth > MEMORY_GROWTH_BYTES {
                let (memory, first) = (memory >> 20, first >> 20);
                wrong.push(format!(
                    "{name} has {memory} MiB of memory, at first {first} MiB; limits are {} MiB and +{} MiB",
                    MEMORY_BYTES >> 20,
                    MEMORY_GROWTH_BYTES >> 20
                ));
            }
            for (what, directory, limit) in [
                ("open files", "fd", OPEN_FILES),
                ("threads", "task", THREADS),
            ] {
                let entries = std::fs::read_dir(format!("/proc/{pid}/{directory}"));
                let count = entries.map_or(0, Iterator::count);
                if count > limit {
                    wrong.push(format!("{name} has {count} {what}; {limit} is the limit"));
                }
            }
        }
        wrong
    }

    /// Waits until what was free before the load is free again, or nearly.
    pub(super) fn check_space(&mut self, site: &Site, before: &BTreeMap<u64, u64>) -> Vec<String> {
        for (node, free) in before {
            self.free.entry(*node).or_insert(*free);
        }
        settled(SPACE_FREED, || {
            let now = free_space(site);
            let kept = |before: &BTreeMap<u64, u64>, limit: u64| -> Vec<String> {
                let nodes = now.iter().filter_map(|(node, free)| {
                    let kept = before.get(node)?.saturating_sub(*free);
                    (kept > limit).then(|| format!("datanode {node} keeps {} MiB", kept >> 20))
                });
                nodes.collect()
            };
            let mut wrong = kept(before, SPACE_KEPT_BYTES);
            wrong.extend(kept(&self.free, SPACE_KEPT_IN_ALL_BYTES));
            if now.is_empty() {
                wrong.push("no datanode says how much space it has".into());
            }
            wrong
        })
    }
}

/// Looks again and again until nothing is wrong, or `limit` is over; what was wrong last.
pub(super) fn settled(limit: Duration, mut look: impl FnMut() -> Vec<String>) -> Vec<String> {
    let begun = Instant::now();
    loop {
        let wrong = look();
        if wrong.is_empty() || begun.elapsed() > limit {
            return wrong;
        }
        crate::pause(Duration::from_millis(500));
    }
}

/// Free bytes by datanode.
pub(super) fn free_space(site: &Site) -> BTreeMap<u64, u64> {
    let nodes = site.admin(&["node", "list"]).unwrap_or_default();
    let nodes = nodes.as_array().into_iter().flatten();
    nodes
        .filter_map(|node| Some((node["id"].as_u64()?, node["free_bytes"].as_u64()?)))
        .collect()
}

fn resident(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// Processes on the hosts that the site does not know, and loop devices beyond its disks.
pub(super) fn strangers(site: &mut Site) -> Vec<String> {
    let known: BTreeSet<_> = site.processes().into_values().collect();
    let mut wrong = Vec::new();
    for host in site.hosts().names() {
        let found = run("ip", &["netns", "pids", &site.hosts().namespace(host)]);
        let pids = found.split_whitespace().filter_map(|pid| pid.parse().ok());
        for pid in pids.filter(|pid: &u32| !known.contains(pid)) {
            wrong.push(format!("process {pid} is left on {host}"));
        }
    }
    let loops = loop_devices(site.directory());
    if loops != site.disks() {
        wrong.push(format!("{loops} loop devices for {} disks", site.disks()));
    }
    wrong
}

/// Loop devices of files below a directory.
pub(super) fn loop_devices(directory: &Path) -> usize {
    let files = run(
        "losetup",
        &["--list", "--noheadings", "--output", "BACK-FILE"],
    );
    let directory = directory.display().to_string();
    let files = files.lines().filter(|file| file.contains(&directory));
    files.count()
}

/// Locks of the load that outlived its writers, as each mount sees them.
pub(super) fn locks_held(roots: &[PathBuf]) -> Vec<String> {
    let mut wrong = Vec::new();
    for root in roots {
        let names = std::fs::read_dir(root.join(LOCKS)).into_iter().flatten();
        for path in names.flatten().map(|entry| entry.path()) {
            if let Err(error) = try_lock(&path) {
                wrong.push(format!("{}: {error}", path.display()));
            }
        }
    }
    wrong
}

fn try_lock(path: &Path) -> Result<(), String> {
    let file = File::options().write(true).open(path);
    let file = file.map_err(|error| error.to_string())?;
    file.try_lock().map_err(|error| error.to_string())
}

/// Waits for `lumeofs admin health` to find nothing, where the binary has it; what it says otherwise.
pub(super) fn health(site: &Site) -> Vec<String> {
    if !has_command(&["health"]) {
        return Vec::new();
    }
    settled(HEALTHY, || {
        let said = site.admin(&["health"]).err();
        let wrong = said.map(|said| format!("admin health: {said}"));
        wrong.into_iter().collect()
    })
}

/// Removes the load's directory. What cannot be removed is wrong.
pub(super) fn remove(root: &Path) -> Vec<String> {
    let removed = std::fs::remove_dir_all(root);
    let wrong = removed
        .err()
        .map(|error| format!("remove {}: {error}", root.display()));
    wrong.into_iter().collect()
}

/// Waits for groups and masters; how long it took, or `None` if it took longer than `limit`. It counts only if it lasts:
/// a node that died a moment ago is still taken for a member.
pub(super) fn recovery(
    site: &mut Site,
    limit: Duration,
    mut is_over: impl FnMut(&mut Site) -> bool,
) -> Option<Duration> {
    let begun = Instant::now();
    let mut whole = None;
    loop {
        let level = site.in_sync() && site.masters_caught_up() && is_over(site);
        whole = level.then(|| whole.unwrap_or_else(|| begun.elapsed()));
        match whole {
            Some(at) if begun.elapsed() > at + STEADY => return whole,
            None if begun.elapsed() > limit => return None,
            _ => crate::pause(Duration::from_millis(200)),
        }
    }
}

/// Waits until the cluster is level before anything is done to it.
pub(super) fn level(site: &mut Site, limit: Duration) {
    eventually("the cluster is level", limit, || {
        site.in_sync() && site.masters_caught_up()
    });
}
