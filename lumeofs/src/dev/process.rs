//! Processes of a development cluster: started, found again, ended.

use super::layout::{Layout, Node};
use crate::output;
use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Name of the mount process.
pub(crate) const MOUNT: &str = "mount";

/// Starts a server. It outlives this process.
pub(crate) fn start(layout: &Layout, node: &Node) -> anyhow::Result<()> {
    spawn(
        layout,
        &node.name,
        Command::new(std::env::current_exe()?).args(layout.arguments(node)),
    )
}

/// Mounts, and returns once the mount answers.
pub(crate) fn start_mount(layout: &Layout) -> anyhow::Result<()> {
    let mount = layout.mount.as_ref().context("the cluster has no mount")?;
    let log = layout.log_file(MOUNT);
    let start = std::fs::metadata(&log).map_or(0, |meta| meta.len());
    let mut options = format!("secretfile={}", layout.secret_file().display());
    if !layout.mount_options().is_empty() {
        options = format!("{options},{}", layout.mount_options());
    }
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("mount")
        .arg(layout.master_addresses().join(","))
        .arg(mount);
    command.args(["-o", &options, "--foreground", "--notify"]);
    if let Some(metrics) = layout.mount_metrics() {
        command.args(["--metrics", metrics]);
    }
    command.stdout(Stdio::piped());
    let mut child = spawn_child(layout, MOUNT, &mut command)?;
    let mut said = [0; 1];
    let mut stdout = child.stdout.take().context("stdout is piped")?;
    if stdout.read(&mut said)? == 0 {
        child.wait()?;
        bail!("mount {}: {}", mount.display(), tail(&log, start));
    }
    Ok(())
}

fn spawn(layout: &Layout, name: &str, command: &mut Command) -> anyhow::Result<()> {
    command.stdout(Stdio::null());
    spawn_child(layout, name, command).map(drop)
}

fn spawn_child(
    layout: &Layout,
    name: &str,
    command: &mut Command,
) -> anyhow::Result<std::process::Child> {
    use std::os::unix::process::CommandExt as _;
    let log = layout.log_file(name);
    let out = std::fs::File::options()
        .create(true)
        .append(true)
        .open(&log)
        .with_context(|| format!("open {}", log.display()))?;
    // A process group of its own: Ctrl-C in the terminal reaches the parent alone, which ends all in order.
    let child = command
        .stdin(Stdio::null())
        .stderr(out)
        .process_group(0)
        .spawn()
        .with_context(|| format!("start {name}"))?;
    let pid = child.id().cast_signed();
    let started = start_time(pid).context("the process ended at once")?;
    std::fs::write(layout.run_file(name), format!("{pid} {started}\n"))?;
    Ok(child)
}

/// The process id of a running process of the cluster.
pub(crate) fn find(layout: &Layout, name: &str) -> Option<i32> {
    let text = std::fs::read_to_string(layout.run_file(name)).ok()?;
    let (pid, started) = text.trim().split_once(' ')?;
    let (pid, started): (i32, u64) = (pid.parse().ok()?, started.parse().ok()?);
    (start_time(pid) == Some(started)).then_some(pid)
}

/// Asks a process to end in order.
pub(crate) fn ask_to_end(layout: &Layout, name: &str) -> anyhow::Result<()> {
    signal(layout, name, Signal::TERM)
}

/// Waits until a process has ended; kills it after `limit`.
pub(crate) fn wait_for_end(layout: &Layout, name: &str, limit: Duration) -> anyhow::Result<()> {
    if !ended_within(layout, name, limit) {
        output::note(format_args!(
            "{name} did not end within {} s: killing it",
            limit.as_secs()
        ));
        signal(layout, name, Signal::KILL)?;
        if !ended_within(layout, name, limit) {
            bail!("{name} does not end, not even when killed");
        }
    }
    match std::fs::remove_file(layout.run_file(name)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Unmounts and waits for the mount process. A mount whose process is gone is detached.
pub(crate) fn unmount(layout: &Layout, mount: &Path) -> anyhow::Result<()> {
    ask_to_end(layout, MOUNT)?;
    wait_for_end(layout, MOUNT, super::STOP_TIMEOUT)?;
    if is_mounted(mount)? {
        rustix::mount::unmount(mount, rustix::mount::UnmountFlags::DETACH)
            .with_context(|| format!("unmount {}", mount.display()))?;
    }
    Ok(())
}

fn signal(layout: &Layout, name: &str, signal: Signal) -> anyhow::Result<()> {
    let Some(pid) = find(layout, name).and_then(Pid::from_raw) else {
        return Ok(());
    };
    match kill_process(pid, signal) {
        Err(error) if error != rustix::io::Errno::SRCH => {
            Err(error).with_context(|| format!("signal {name}"))
        }
        _ => Ok(()),
    }
}

fn ended_within(layout: &Layout, name: &str, limit: Duration) -> bool {
    let begun = Instant::now();
    while find(layout, name).is_some() {
        if begun.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

/// Start time of a process in clock ticks since boot; `None` if it does not run. A zombie does not, unless
/// a thread of it is still at the disk and so keeps its files and its port.
fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; the fields after it are plain.
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
    let is_last_thread =
        || std::fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|tasks| tasks.count() <= 1);
    if fields.next()? == "Z" && is_last_thread() {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

fn is_mounted(mount: &Path) -> anyhow::Result<bool> {
    // Not stat(2): it would hang or fail on a mount whose process is gone.
    let wanted = mount.to_string_lossy().replace(' ', "\\040");
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    Ok(mounts
        .lines()
        .any(|line| line.split(' ').nth(1) == Some(&wanted)))
}

/// What a log says from `start` on, its last lines.
pub(crate) fn tail(log: &Path, start: u64) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    let text =
        String::from_utf8_lossy(bytes.get(start as usize..).unwrap_or_default()).into_owned();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}
