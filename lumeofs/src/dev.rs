//! `lumeofs dev`: a whole cluster of real processes on loopback, mounted.
//!
//! Everything lives below one directory: the layout (which nodes, which ports), the secret, a data directory,
//! a log and a process file for each node. Processes are found again by process id *and* start time, so a
//! later command never ends somebody else's process.

pub(crate) mod layout;
mod process;
mod ready;

use crate::{output, signals};
use anyhow::{Context as _, bail};
use layout::{Layout, Node, Role};
use lumeofs_base::{Code, FsError};
use serde::Serialize;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Where a development cluster lives unless told otherwise.
pub(crate) const DEFAULT_DIR: &str = "lumeofs-dev";

/// How long a node may take to end by itself.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Options of `lumeofs dev`.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    start: StartArgs,
}

#[derive(clap::Args)]
struct StartArgs {
    /// Directory of the cluster; kept between runs
    #[arg(long, default_value = DEFAULT_DIR)]
    dir: PathBuf,
    /// Where to mount [default: DIR/mnt]
    #[arg(long)]
    mount: Option<PathBuf>,
    /// Masters of a new cluster: 1, 3 or 5 [default: 3]
    #[arg(long)]
    masters: Option<u64>,
    /// Datanodes of a new cluster [default: 3]
    #[arg(long)]
    datanodes: Option<u64>,
    /// Copies of a chunk in a new cluster [default: 3, or the number of datanodes if that is less]
    #[arg(long)]
    replicas: Option<u32>,
    /// Durability of a new cluster [default: fsync]
    #[arg(long, value_parser = ["fsync", "always"])]
    durability: Option<String>,
    /// Encrypts the connections of a new cluster
    #[arg(long)]
    tls: bool,
    /// More mount options, as for mount -o
    #[arg(short = 'o', value_name = "OPTIONS", default_value = "")]
    options: String,
    /// Does not mount
    #[arg(long)]
    no_mount: bool,
    /// Returns once everything is up; stop it with `lumeofs dev stop`
    #[arg(long)]
    detach: bool,
    /// Prints JSON once everything is up: what `status` shows
    #[arg(long)]
    json: bool,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Shows the processes
    Status {
        /// Directory of the cluster
        #[arg(long, default_value = DEFAULT_DIR)]
        dir: PathBuf,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Unmounts and stops everything; the data stays
    Stop {
        /// Directory of the cluster
        #[arg(long, default_value = DEFAULT_DIR)]
        dir: PathBuf,
        /// Prints JSON: what `status` shows afterwards
        #[arg(long)]
        json: bool,
    },
    /// Starts a node or the mount again, stopping it first if it runs
    Restart {
        /// master-1, datanode-101, mount, …: a name that `status` shows
        node: String,
        /// Directory of the cluster
        #[arg(long, default_value = DEFAULT_DIR)]
        dir: PathBuf,
        /// Prints JSON: what `status` shows afterwards
        #[arg(long)]
        json: bool,
    },
}

/// Runs the command.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let (layout, json) = match args.action {
        None => return start(args.start),
        Some(Action::Status { dir, json }) => return status(&Layout::load(&dir)?, json),
        Some(Action::Stop { dir, json }) => {
            let layout = Layout::load(&dir)?;
            stop(&layout)?;
            (layout, json)
        }
        Some(Action::Restart { node, dir, json }) => {
            let layout = Layout::load(&dir)?;
            restart(&layout, &node)?;
            (layout, json)
        }
    };
    if json {
        return status(&layout, json);
    }
    Ok(())
}

fn start(args: StartArgs) -> anyhow::Result<()> {
    let begun = Instant::now();
    let layout = if Layout::exists(&args.dir) {
        let layout = Layout::load(&args.dir)?;
        layout.check_is_as_wanted(
            args.masters,
            args.datanodes,
            args.replicas,
            args.durability.as_deref(),
        )?;
        if args.tls {
            layout.check_tls()?;
        }
        layout
    } else {
        let datanodes = args.datanodes.unwrap_or(3);
        Layout::create(
            &args.dir,
            args.masters.unwrap_or(3),
            datanodes,
            args.replicas.unwrap_or(3.min(datanodes as u32)),
            args.durability.as_deref().unwrap_or("fsync"),
            args.tls,
        )?
    };
    let mount = (!args.no_mount).then(|| args.mount.unwrap_or_else(|| layout.dir.join("mnt")));
    let layout = layout.with_mount(mount, &args.options)?;
    if let Some(running) = layout
        .nodes()
        .iter()
        .find(|node| process::find(&layout, &node.name).is_some())
    {
        let text = format!(
            "{} of the cluster in {} runs already: `lumeofs dev status`, or stop it with `lumeofs dev stop`",
            running.name,
            layout.dir.display()
        );
        return Err(FsError::new(Code::Busy, text).into());
    }
    let waiting = std::sync::mpsc::channel();
    let stop_signal = signals::on_stop(move || {
        // The receiver is gone when the cluster could not be brought up.
        let _ = waiting.0.send(());
    })?;
    let done = bring_up(&layout, &stop_signal);
    if let Err(error) = done {
        output::note("lumeofs dev: stopping what was started");
        stop(&layout)?;
        return Err(error);
    }
    let told = if args.json {
        output::json(&rows(&layout))
    } else {
        summary(&layout, begun)
    };
    if args.detach {
        return told;
    }
    // Whether or not somebody reads it, the cluster runs.
    drop(told);
    // The sender lives in the signal thread; an error would mean that it is gone.
    waiting.1.recv().context("the signal thread ended")?;
    output::note(format_args!(
        "stopping; a second signal leaves what still runs to `lumeofs dev stop --dir {}`",
        layout.dir.display()
    ));
    stop(&layout)
}

fn bring_up(layout: &Layout, stop: &signals::Stop) -> anyhow::Result<()> {
    for node in layout.nodes() {
        process::start(layout, node)?;
    }
    ready::wait_for_cluster(layout, stop)?;
    if layout.mount.is_some() {
        process::start_mount(layout)?;
        ready::probe_mount(layout)?;
    }
    Ok(())
}

fn summary(layout: &Layout, begun: Instant) -> anyhow::Result<()> {
    let dir = layout.dir.display();
    let list = |role: Role| {
        let nodes = layout.nodes().iter().filter(|node| node.role == role);
        nodes
            .map(|node| format!("{} {}", node.name, node.address))
            .collect::<Vec<_>>()
            .join(", ")
    };
    output::line(format_args!("LumeoFS development cluster in {dir}"))?;
    output::line(format_args!("  masters    {}", list(Role::Master)))?;
    output::line(format_args!("  datanodes  {}", list(Role::Datanode)))?;
    if let Some(mount) = &layout.mount {
        output::line(format_args!("  mounted    {}", mount.display()))?;
        output::line(format_args!(
            "  try        cp -a /etc {0}/ ; ls -l {0} ; df -h {0}",
            mount.display()
        ))?;
    }
    output::line(format_args!(
        "  look       lumeofs dev status --dir {dir} ; lumeofs admin status --dir {dir}"
    ))?;
    if let Some(node) = layout.nodes().first()
        && let Some(metrics) = &node.metrics
    {
        output::line(format_args!(
            "  measure    curl http://{metrics}/metrics  ({}; the others are in status)",
            node.name
        ))?;
    }
    output::line(format_args!(
        "  break      kill -9 a process, then lumeofs dev restart NODE --dir {dir}"
    ))?;
    output::line(format_args!(
        "  stop       lumeofs dev stop --dir {dir}  (the data stays)"
    ))?;
    output::line(format_args!(
        "PASS in {:.1} s",
        begun.elapsed().as_secs_f64()
    ))
}

#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    role: &'static str,
    pid: Option<i32>,
    address: &'a str,
    metrics: Option<&'a str>,
    log: PathBuf,
}

fn rows(layout: &Layout) -> Vec<Row<'_>> {
    let row = |node: &'_ Node| process::find(layout, &node.name);
    let mut rows: Vec<_> = layout
        .nodes()
        .iter()
        .map(|node| Row {
            name: &node.name,
            role: node.role.name(),
            pid: row(node),
            address: &node.address,
            metrics: node.metrics.as_deref(),
            log: layout.log_file(&node.name),
        })
        .collect();
    if let Some(mount) = &layout.mount {
        rows.push(Row {
            name: process::MOUNT,
            role: "mount",
            pid: process::find(layout, process::MOUNT),
            address: mount.to_str().unwrap_or_default(),
            metrics: layout.mount_metrics(),
            log: layout.log_file(process::MOUNT),
        });
    }
    rows
}

fn status(layout: &Layout, json: bool) -> anyhow::Result<()> {
    let rows = rows(layout);
    if json {
        return output::json(&rows);
    }
    let cells = |row: &Row| {
        let pid = row.pid.map_or("-".into(), |pid| pid.to_string());
        vec![
            row.name.into(),
            pid,
            row.address.into(),
            row.metrics.unwrap_or("-").into(),
            row.log.display().to_string(),
        ]
    };
    output::table(
        &["NODE", "PID", "ADDRESS", "METRICS", "LOG"],
        &rows.iter().map(cells).collect::<Vec<_>>(),
    )
}

fn stop(layout: &Layout) -> anyhow::Result<()> {
    if let Some(mount) = &layout.mount {
        process::unmount(layout, mount)?;
    }
    // Datanodes first: they tell the masters nothing at their end, and writes have ended with the mount.
    let mut names: Vec<_> = layout
        .nodes()
        .iter()
        .map(|node| node.name.as_str())
        .collect();
    names.reverse();
    for name in &names {
        process::ask_to_end(layout, name)?;
    }
    for name in &names {
        process::wait_for_end(layout, name, STOP_TIMEOUT)?;
    }
    Ok(())
}

fn restart(layout: &Layout, name: &str) -> anyhow::Result<()> {
    if name == process::MOUNT {
        let Some(mount) = &layout.mount else {
            bail!("this cluster was started without a mount")
        };
        process::unmount(layout, mount)?;
        process::start_mount(layout)?;
        return ready::probe_mount(layout);
    }
    let Some(node) = layout.nodes().iter().find(|node| node.name == name) else {
        let names: Vec<_> = layout
            .nodes()
            .iter()
            .map(|node| node.name.as_str())
            .collect();
        let text = format!("no node {name:?}; there are {} and mount", names.join(", "));
        return Err(FsError::new(Code::NotFound, text).into());
    };
    process::ask_to_end(layout, name)?;
    process::wait_for_end(layout, name, STOP_TIMEOUT)?;
    process::start(layout, node)?;
    ready::wait_for_node(layout, node)
}
