//! `lumeofs mount`: in the foreground, or detached once the mount answers.

pub(crate) mod helper;
mod log;
mod trim;

use crate::access::split_masters;
use crate::{endpoint, exit, signals};
use anyhow::bail;
use lumeofs_base::{Code, FsError};
use lumeofs_client::OnOutage;
use lumeofs_fuse::MountOptions;
use lumeofs_proto::auth::Credentials;
use std::io::{BufRead as _, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// What the detached process prints once its mount answers.
const READY: &str = "ready";
/// The secret if none is named and this is there.
const DEFAULT_SECRET: &str = "/etc/lumeofs/secret";

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
    /// Secret file of the cluster; the same as -o secretfile=FILE [env: LUMEOFS_SECRET] [default: /etc/lumeofs/secret]
    #[arg(long, value_name = "FILE")]
    secret: Option<PathBuf>,
    /// What calls do when no quorum answers: block[:SECONDS] or eio; the same as -o on-outage=…
    #[arg(long, value_name = "WHAT")]
    on_outage: Option<String>,
    /// Stays in the foreground
    #[arg(short, long)]
    foreground: bool,
    /// Where the detached process logs; the same as -o log=FILE [default: /var/log/lumeofs-mount.log, for ordinary
    /// users /tmp/lumeofs-mount-UID.log]
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// HOST:PORT for Prometheus: /metrics, /healthz and /log, without authentication; the same as -o metrics=HOST:PORT
    /// [default: none]
    #[arg(long, value_name = "HOST:PORT")]
    metrics: Option<String>,
    /// Says on stdout when the mount answers, and leaves the terminal's session
    #[arg(long, hide = true)]
    notify: bool,
}

/// Mounts; returns when unmounted, or at once if detached.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let text = args.options_text();
    if lumeofs_fuse::is_remount(&text) {
        return lumeofs_fuse::remount(&args.mountpoint, &text);
    }
    let wanted = Wanted::check(&args, text)?;
    if args.foreground {
        foreground(args, wanted)
    } else {
        detach(&args, &wanted)
    }
}

impl Args {
    /// All mount options, whichever way they were given.
    fn options_text(&self) -> String {
        let mut options = self.options.clone();
        options.extend(
            self.on_outage
                .as_ref()
                .map(|what| format!("on-outage={what}")),
        );
        options.extend(self.metrics.as_ref().map(|at| format!("metrics={at}")));
        options.join(",")
    }
}

/// A mount that is wanted, as far as it can be judged before anything is done.
struct Wanted {
    masters: Vec<String>,
    subdir: String,
    options: MountOptions,
    options_text: String,
    secret: PathBuf,
    credentials: Credentials,
}

impl Wanted {
    fn check(args: &Args, options_text: String) -> anyhow::Result<Self> {
        let options = lumeofs_fuse::parse_options(&options_text)?;
        let (masters, subdir) = split_source(&args.source)?;
        if options.export && subdir != "/" {
            // Handles are numbers of inodes, whatever directory they are in.
            bail!(
                "option export with directory {subdir}: handles would reach the whole filesystem; mount all of it"
            );
        }
        let secret = args
            .secret
            .clone()
            .or_else(|| options.secret_file.clone())
            .or_else(|| std::env::var_os("LUMEOFS_SECRET").map(PathBuf::from))
            .or_else(|| Path::new(DEFAULT_SECRET).exists().then(|| DEFAULT_SECRET.into()))
            .ok_or_else(|| {
                let text = format!(
                    "no secret file: add --secret FILE or -o secretfile=FILE, or put it at {DEFAULT_SECRET}"
                );
                FsError::new(Code::Invalid, text)
            })?;
        Ok(Self {
            masters,
            subdir,
            options,
            options_text,
            credentials: Credentials::load(&secret)?,
            secret,
        })
    }
}

fn foreground(args: Args, wanted: Wanted) -> anyhow::Result<()> {
    crate::server::raise_file_limit();
    let address = wanted.options.metrics.clone();
    let config = lumeofs_fuse::MountConfig {
        source: args.source,
        masters: wanted.masters,
        credentials: wanted.credentials,
        subdir: wanted.subdir.into_bytes(),
        mountpoint: args.mountpoint,
        on_outage: wanted.options.on_outage.unwrap_or(OnOutage::Block(None)),
        options: wanted.options,
        options_text: format!(
            "{},secretfile={}",
            wanted.options_text,
            wanted.secret.display()
        ),
    };
    if args.notify {
        // Fails only for a process that leads its group already; then it has no terminal to leave.
        let _ = rustix::process::setsid();
    }
    // Before the mount, so that a wrong address leaves nothing behind.
    let collect = lumeofs_fuse::Metrics::collect;
    let metrics = endpoint::start_early(address.as_deref(), collect)?;
    let mounted = lumeofs_fuse::start(config)?;
    metrics.get_or_init(|| mounted.metrics());
    trim::start()?;
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
        // The directory where it was started is not to be in use for as long as the mount lives.
        std::env::set_current_dir("/")?;
        // The starter may have gone; the mount stays.
        let _ = writeln!(std::io::stdout(), "{READY}");
    }
    mounted.wait()
}

fn detach(args: &Args, wanted: &Wanted) -> anyhow::Result<()> {
    // The child's messages go to the log; what it says before it is ready is shown here too.
    let named = args.log.as_ref().or(wanted.options.log.as_ref());
    let (path, log) = log::open(named)?;
    let start = log.metadata()?.len();
    let mut child = std::process::Command::new(std::env::current_exe()?)
        // This program may have been called by the name of the helper, which has other arguments.
        .arg0("lumeofs")
        .envs(crate::log::environment())
        .args(["mount", "--foreground", "--notify", "-o"])
        .arg(&wanted.options_text)
        .arg("--secret")
        .arg(&wanted.secret)
        .arg("--")
        .arg(&args.source)
        .arg(&args.mountpoint)
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
    let mut log = std::fs::File::open(&path)?;
    std::io::Seek::seek(&mut log, std::io::SeekFrom::Start(start))?;
    log.take(64 << 10).read_to_end(&mut said)?;
    std::io::stderr().write_all(&said)?;
    if let Some(code) = status.code() {
        return Err(exit::Told(u8::try_from(code.max(1)).unwrap_or(1)).into());
    }
    bail!(
        "the mount process ended by a signal ({status}); see {}",
        path.display()
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
