//! The one binary: servers, mount, development cluster, commands. Argument parsing only; the work is
//! in the libraries and in the modules beside this file.

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "brackets in help texts mean that something may be left out"
)]

mod access;
mod admin;
mod cluster;
mod dev;
mod exit;
mod fs;
mod mount;
mod output;
mod server;
mod signals;

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
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a whole cluster on this machine and mounts it
    Dev(dev::Args),
    /// Mounts the filesystem: lumeofs mount HOST:PORT[,HOST:PORT…][:/SUBDIR] DIR
    Mount(mount::Args),
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
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_log();
    let done = match cli.command {
        Command::Dev(args) => dev::run(args),
        Command::Mount(args) => mount::run(args),
        Command::Fs(args) => fs::run(args),
        Command::Admin(args) => admin::run(args),
        Command::Cluster(args) => cluster::run(args),
        Command::Master(args) => server::master(args),
        Command::Datanode(args) => server::datanode(args),
        Command::Keygen(args) => server::keygen(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if output::is_closed(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::note(format_args!("lumeofs: {error:#}"));
            exit::code_of(&error)
        }
    }
}

/// Logs go to stderr; `LUMEOFS_LOG` filters them, e.g. `info` or `lumeofs_master=debug`.
fn start_log() {
    // openraft reports each attempt to reach a peer that is down; what matters of it we log ourselves.
    const DEFAULT: &str = "info,openraft=off,fuser=error";
    let filter = tracing_subscriber::EnvFilter::try_from_env("LUMEOFS_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(DEFAULT));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
}
