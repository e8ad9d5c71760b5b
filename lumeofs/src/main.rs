//! The one binary: servers, mount, development cluster, commands. Argument parsing only; the work is
//! in the libraries and in the modules beside this file.

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "brackets in help texts mean that something may be left out"
)]

mod access;
mod admin;
mod chunks;
mod cluster;
mod dev;
mod endpoint;
mod exit;
mod fs;
mod log;
mod mount;
mod output;
mod server;
mod setup;
mod signals;
mod stats;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no such file, 4 exists already, \
5 no permission, 6 no space, 7 cluster not reachable or no quorum, 8 refused (wrong secret, cluster or version), 9 cluster not healthy.";

/// LumeoFS: a replicated, coherent POSIX filesystem.
///
/// Try it on one machine:  lumeofs dev
#[derive(Parser)]
#[command(version, after_help = EXIT_CODES)]
struct Cli {
    /// Form of log lines [default: $LUMEOFS_LOG_FORMAT, else text]
    #[arg(long, global = true, value_enum, value_name = "FORM")]
    log_format: Option<log::Format>,
    /// Operations that take so many milliseconds are logged [default: $LUMEOFS_SLOW_MS, else 1000]
    #[arg(long, global = true, value_name = "MS")]
    slow_ms: Option<u64>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a whole cluster on this machine and mounts it
    Dev(dev::Args),
    /// Mounts the filesystem: lumeofs mount HOST:PORT[,HOST:PORT…][:/SUBDIR] DIR
    Mount(mount::Args),
    /// Shows what a mount does: operations, caches, waits
    Stats(stats::Args),
    /// Works on files without a mount
    Fs(fs::Args),
    /// Looks into a cluster, changes its masters
    Admin(admin::Args),
    /// Makes a cluster of real machines: its first master, tokens for the others
    Cluster(cluster::Args),
    /// Runs a master: metadata and controller
    Master(server::MasterArgs),
    /// Runs a datanode: chunks
    Datanode(server::DatanodeArgs),
    /// Writes the secret file of a new cluster
    Keygen(server::KeygenArgs),
    /// Installs this program, the helper of mount(8), systemd units and examples of their configuration
    Setup(setup::Args),
}

fn main() -> ExitCode {
    if mount::helper::is_called() {
        return mount::helper::run();
    }
    let cli = Cli::parse();
    let done = log::start(cli.log_format, cli.slow_ms).and_then(|()| run(cli.command));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if output::is_closed(&error) => ExitCode::SUCCESS,
        Err(error) => {
            if !exit::is_told(&error) {
                output::note(format_args!("lumeofs: {error:#}"));
            }
            exit::code_of(&error)
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Dev(args) => dev::run(args),
        Command::Mount(args) => mount::run(args),
        Command::Stats(args) => stats::run(&args),
        Command::Fs(args) => fs::run(args),
        Command::Admin(args) => admin::run(args),
        Command::Cluster(args) => cluster::run(args),
        Command::Master(args) => server::master(args),
        Command::Datanode(args) => server::datanode(args),
        Command::Keygen(args) => server::keygen(&args),
        Command::Setup(args) => setup::run(&args),
    }
}
