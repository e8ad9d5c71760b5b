//! A round: load, fault, mending, verification.

use super::Random;
use super::checks::{self, Baseline};
use super::fault::{Fault, Kind};
use super::leftovers::PREFIX;
use super::load::Load;
use super::watch::Stall;
use crate::{Running, Site, fio_job, pause, test_dir};
use rustix::io::Errno;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

/// The load alone, before anything breaks.
const WARM: Duration = Duration::from_secs(3);
/// How long a fault lasts, in milliseconds.
const HOLD_MS: (u64, u64) = (5_000, 9_000);
/// When a cluster that just was level must be so before the next round.
const LEVEL: Duration = Duration::from_secs(60);
/// When fio has written and verified what it does in about twenty seconds.
const FIO: Duration = Duration::from_secs(180);

/// What a round does.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Its number, for names of files.
    pub number: u64,
    /// Targets, times and data follow from it.
    pub seed: u64,
    /// One fault, or two of which the second comes while the first lasts.
    pub kinds: Vec<&'static Kind>,
    /// fio runs beside the other load.
    pub fio: bool,
    /// What bounds of time are multiplied with, on a machine that has other work.
    pub slow: u32,
}

impl Plan {
    /// The faults' names as `--only` takes them.
    pub fn faults(&self) -> String {
        let names: Vec<_> = self.kinds.iter().map(|kind| kind.name).collect();
        names.join("+")
    }
}

/// How a round went.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was done.
    pub plan: Plan,
    /// What was hit.
    pub target: String,
    /// The longest call while the fault lasted and was mended, and which it was.
    pub stall: Duration,
    /// Its name.
    pub call: &'static str,
    /// From mending until everything was in sync; `None` if that never came.
    pub recovery: Option<Duration>,
    /// Calls of the load.
    pub calls: u64,
    /// Those that failed as the fault allows.
    pub failed: u64,
    /// Files that were verified through a fresh mount, and their bytes.
    pub files: usize,
    /// Bytes of these.
    pub bytes: u64,
    /// By how much the memory of a process has grown at most since the cluster's start.
    pub growth: u64,
    /// Everything that was wrong; empty if the round is clean.
    pub problems: Vec<String>,
}

impl Outcome {
    /// Of a round that did not get through.
    pub fn failed(plan: &Plan, problem: String) -> Self {
        Self {
            plan: plan.clone(),
            target: "-".into(),
            stall: Duration::ZERO,
            call: "-",
            recovery: None,
            calls: 0,
            failed: 0,
            files: 0,
            bytes: 0,
            growth: 0,
            problems: vec![problem],
        }
    }
}

/// Hosts with a mount each, and names of these.
pub(super) const MOUNTS: [&str; 2] = ["a", "b"];

/// A cluster with two mounts, in which rounds take place one after the other.
#[derive(Debug)]
pub struct Yard {
    pub(super) baseline: Baseline,
    pub(super) mounts: [PathBuf; 2],
    pub(super) site: Site,
}

impl Yard {
    /// Starts it; each node has a disk of its own.
    pub fn start() -> Self {
        let mut site = Site::start(PREFIX, true);
        let mounts = MOUNTS.map(|host| site.mount(host, host, "on-outage=block"));
        Self {
            baseline: Baseline::default(),
            mounts,
            site,
        }
    }

    /// Copies logs and manifests of a failed round to where they stay; that directory.
    pub fn keep(&self, number: u64) -> PathBuf {
        let kept = test_dir().join(format!(
            "lumeofs-chaos-failed.{}.{number}",
            std::process::id()
        ));
        let _ = std::fs::create_dir_all(&kept);
        let logs = std::fs::read_dir(self.site.logs()).into_iter().flatten();
        for log in logs.flatten() {
            if let Err(error) = std::fs::copy(log.path(), kept.join(log.file_name())) {
                eprintln!("{}: {error}", log.path().display());
            }
        }
        kept
    }
}

/// The faults of a plan.
struct Faults {
    all: Vec<Box<dyn Fault>>,
    hold: Duration,
}

impl Faults {
    fn new(plan: &Plan, site: &Site) -> Self {
        let mut random = Random::new(plan.seed);
        let hold = Duration::from_millis(random.between(HOLD_MS.0, HOLD_MS.1));
        let made = plan.kinds.iter().map(|kind| (kind.make)(&mut random, site));
        Self {
            all: made.collect(),
            hold,
        }
    }

    fn target(&self) -> String {
        let targets: Vec<_> = self.all.iter().map(|fault| fault.target()).collect();
        targets.join(" and ")
    }

    /// From the first one's beginning to the last one's end.
    fn happen(&mut self, site: &mut Site) {
        let hold = self.hold;
        for fault in &mut self.all {
            fault.inject(site);
            fault.last(site, hold);
        }
    }

    fn heal(&mut self, site: &mut Site) {
        for fault in &mut self.all {
            fault.heal(site);
        }
    }
}

/// Runs a round. Panics if it cannot be run at all; the cluster is of no use then, nor if there was a problem.
pub fn run_round(yard: &mut Yard, plan: &Plan) -> Outcome {
    if let Some(words) = plan
        .kinds
        .iter()
        .find_map(|kind| checks::missing_command(kind))
    {
        let text = format!("not available in this binary: lumeofs admin {words}");
        return Outcome::failed(plan, text);
    }
    let site = &mut yard.site;
    checks::level(site, LEVEL);
    let mut faults = Faults::new(plan, site);
    for fault in &mut faults.all {
        fault.prepare(site);
    }
    let space = checks::free_space(site);
    let mut load = start_load(site, &yard.mounts, plan);
    let fio = start_fio(plan, &yard.mounts[0].join(directory(plan)));
    pause(WARM);

    load.watch().reset();
    faults.happen(site);
    let target = faults.target();
    faults.heal(site);
    let limit = bound(plan, |kind| kind.recovery);
    let all = &mut faults.all;
    let recovery = checks::recovery(site, limit, |site| {
        all.iter_mut().all(|fault| fault.is_over(site))
    });
    let Stall { length, call } = load.watch().longest();
    load.stop();

    let mut problems = load.watch().problems();
    if length > bound(plan, |kind| kind.stall) {
        problems.push(format!("{call} took {length:?}"));
    }
    if recovery.is_none() {
        problems.push(format!("not whole within {limit:?}"));
    }
    problems.extend(fio.and_then(|fio| finish_fio(fio).err()));
    let (files, bytes, wrong) = verify(site, &load, plan);
    problems.extend(wrong);
    for fault in &mut faults.all {
        fault.tidy(site);
    }
    problems.extend(checks::health(site));
    let root = yard.mounts[1].join(directory(plan));
    problems.extend(checks::remove(&root));
    problems.extend(yard.baseline.check_space(site, &space));
    problems.extend(yard.baseline.check_processes(site));
    problems.extend(checks::strangers(site));
    let (calls, failed) = load.watch().calls();
    Outcome {
        plan: plan.clone(),
        target,
        stall: length,
        call,
        recovery,
        calls,
        failed,
        files,
        bytes,
        growth: yard.baseline.growth,
        problems,
    }
}

/// The load's directory.
fn directory(plan: &Plan) -> String {
    format!("round-{}", plan.number)
}

/// Bounds of faults at the same time add up.
fn bound(plan: &Plan, of: impl Fn(&Kind) -> Duration) -> Duration {
    plan.kinds.iter().map(|kind| of(kind)).sum::<Duration>() * plan.slow
}

fn allowed(plan: &Plan) -> &'static [Errno] {
    let allowed = plan.kinds.iter().map(|kind| kind.allowed);
    allowed.max_by_key(|errors| errors.len()).unwrap_or(&[])
}

fn start_load(site: &Site, mounts: &[PathBuf; 2], plan: &Plan) -> Load {
    let lines = site.logs().join(format!("manifest-{}.jsonl", plan.number));
    Load::start(mounts, &directory(plan), &lines, plan.seed, allowed(plan))
}

/// Compares everything through a mount that knows nothing of the load; files, bytes and what is wrong.
fn verify(site: &mut Site, load: &Load, plan: &Plan) -> (usize, u64, Vec<String>) {
    let fresh = site.mount("a", "fresh", "on-outage=block");
    let root = fresh.join(directory(plan));
    let (mut wrong, bytes) = load.manifest().check_all(&root);
    if plan.fio && allowed(plan).is_empty() {
        let mut again = fio_job(&root.join("fio"), FIO_SIZE, 1);
        let again = Running::start(again.args(["--thread", "--verify_only"]));
        wrong.extend(finish_fio(again).err());
    }
    let roots = [root, site.mount_point("a").join(directory(plan))];
    wrong.extend(checks::locks_held(&roots));
    site.unmount("fresh");
    if load.manifest().len() == 0 {
        wrong.push("the load made no file".into());
    }
    (load.manifest().len(), bytes, wrong)
}

/// What fio writes in a round.
const FIO_SIZE: &str = "16m";

/// fio beside the load, unless the fault may fail its calls: it would give up.
fn start_fio(plan: &Plan, root: &Path) -> Option<Running> {
    if !plan.fio || !allowed(plan).is_empty() {
        return None;
    }
    let directory = root.join("fio");
    std::fs::create_dir(&directory).expect("a directory for fio");
    let mut fio = fio_job(&directory, FIO_SIZE, 1);
    Some(Running::start(fio.args(["--thread", "--rate=,1m"])))
}

fn finish_fio(mut fio: Running) -> Result<(), String> {
    let begun = Instant::now();
    while fio.try_wait().expect("a child of ours").is_none() {
        if begun.elapsed() > FIO {
            return Err(format!("fio did not end within {FIO:?}"));
        }
        pause(Duration::from_millis(100));
    }
    let Output {
        status,
        stdout,
        stderr,
    } = fio.output();
    if status.success() {
        return Ok(());
    }
    let said = [stdout, stderr].concat();
    Err(format!("fio: {status}: {}", String::from_utf8_lossy(&said)))
}
