//! `lumeofs mount`: in the foreground, or detached once the mount answers.

use crate::access::split_masters;
use crate::{endpoint, signals};
use anyhow::{Context as _, bail};
use lumeofs_base::{Code, FsError};
use lumeofs_client::OnOutage;
use lumeofs_proto::auth::Credentials;
use std::io::{BufRead as _, Read as _, Write as _};
use std::path::PathBuf;
use std::process::Stdio;

/// What the detached process prints once its mount answers.
const READY: &str = "ready";

/// Options of `lumeofs mount`.
#[derive(clap::Args, Clone)]
pub(crate) struct Args {
    /// Masters as HOST:PORT[,HOST:PORT…], optionally followed by :/SUBDIR
    source: String,
    /// An empty directory
    mountpoint: PathBuf,
    /// Mount options, separated by commas: ro, allow_other, noatime, nosuid, nodev, noexec,
    /// secretfile=FILE, on-outage=block[:SECONDS]|eio, …
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// Secret file of the cluster; the same as -o secretfile=FILE
    #[arg(long, value_name = "FILE")]
    secret: Option<PathBuf>,
    /// What calls do when no quorum answers: block[:SECONDS] or eio; the same as -o on-outage=…
    #[arg(long, value_name = "WHAT")]
    on_outage: Option<String>,
    /// Stays in the foreground
    #[arg(short, long)]
    foreground: bool,
    /// Where the detached process logs
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/var/log/lumeofs-mount.log"
    )]
    log: PathBuf,
    /// HOST:PORT for Prometheus: /metrics, /healthz and /log, without authentication [default: none]
    #[arg(long, value_name = "HOST:PORT")]
    metrics: Option<String>,
    /// Says on stdout when the mount answers, and leaves the terminal's session
    #[arg(long, hide = true)]
    notify: bool,
}

/// Mounts; returns when unmounted, or at once if detached.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    if args.foreground {
        foreground(args)
    } else {
        detach(args)
    }
}

fn foreground(args: Args) -> anyhow::Result<()> {
    crate::server::raise_file_limit();
    let mut options = args.options.join(",");
    if let Some(what) = &args.on_outage {
        options.push_str(&format!(",on-outage={what}"));
    }
    let options = lumeofs_fuse::parse_options(&options)?;
    let secret = args
        .secret
        .clone()
        .or_else(|| options.secret_file.clone())
        .or_else(|| std::env::var_os("LUMEOFS_SECRET").map(PathBuf::from))
        .ok_or_else(|| {
            FsError::new(
                Code::Invalid,
                "no secret file: add --secret FILE or -o secretfile=FILE",
            )
        })?;
    let (masters, subdir) = split_source(&args.source)?;
    let config = lumeofs_fuse::MountConfig {
        masters,
        credentials: Credentials::load(&secret)?,
        subdir: subdir.into_bytes(),
        mountpoint: args.mountpoint.clone(),
        on_outage: options.on_outage.unwrap_or(OnOutage::Block(None)),
        options,
    };
    if args.notify {
        // Fails only for a process that leads its group already; then it has no terminal to leave.
        let _ = rustix::process::setsid();
    }
    // Before the mount, so that a wrong address leaves nothing behind.
    let collect = lumeofs_fuse::Metrics::collect;
    let metrics = endpoint::start_early(args.metrics.as_deref(), collect)?;
    let mounted = lumeofs_fuse::start(config)?;
    metrics.get_or_init(|| mounted.metrics());
    let handle = mounted.handle();
    signals::on_stop(move || {
        let done = handle.unmount().or_else(|error| {
            tracing::warn!(
                "{} is in use ({error:#}): detaching it; this process ends with its last user, or at a \
                 second signal",
                handle.mountpoint().display()
            );
            handle.detach()
        });
        if let Err(error) = done {
            tracing::error!("unmount {}: {error:#}", handle.mountpoint().display());
        }
    })?;
    if args.notify {
        // The starter may have gone; the mount stays.
        let _ = writeln!(std::io::stdout(), "{READY}");
    }
    mounted.wait()
}

fn detach(args: Args) -> anyhow::Result<()> {
    // The child's messages go to the log; what it says before it is ready is shown here too.
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(&args.log)
        .with_context(|| format!("open log {}", args.log.display()))?;
    let start = log.metadata()?.len();
    let mut child = std::process::Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .args(["--foreground", "--notify"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()?;
    let stdout = child.stdout.take().expect("stdout is piped");
    let mut line = String::new();
    std::io::BufReader::new(stdout).read_line(&mut line)?;
    if line.trim() == READY {
        return Ok(());
    }
    let status = child.wait()?;
    let mut said = Vec::new();
    let mut log = std::fs::File::open(&args.log)?;
    std::io::Seek::seek(&mut log, std::io::SeekFrom::Start(start))?;
    log.take(64 << 10).read_to_end(&mut said)?;
    std::io::stderr().write_all(&said)?;
    if let Some(code) = status.code() {
        std::process::exit(code.max(1));
    }
    bail!(
        "the mount process ended by a signal ({status}); see {}",
        args.log.display()
    )
}

/// `HOST:PORT,HOST:PORT:/SUBDIR` -> masters and subdirectory.
fn split_source(source: &str) -> anyhow::Result<(Vec<String>, String)> {
    let (masters, subdir) = match source.find(":/") {
        Some(at) => (&source[..at], &source[at + 1..]),
        None => (source, "/"),
    };
    Ok((split_masters(masters)?, subdir.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_splits_into_masters_and_subdirectory() {
        let (masters, subdir) = split_source("a:1,b:2:/x/y").unwrap();
        assert_eq!((masters.len(), subdir.as_str()), (2, "/x/y"));
        assert_eq!(split_source("a:1").unwrap().1, "/");
        assert!(
            split_source("a")
                .unwrap_err()
                .to_string()
                .contains("HOST:PORT")
        );
    }
}
