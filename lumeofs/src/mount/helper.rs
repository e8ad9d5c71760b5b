//! `/sbin/mount.fuse.lumeofs`: this program as mount(8) calls it, for `mount -t fuse.lumeofs`, lines of fstab and
//! `mount -o remount`.
//!
//! mount(8) gives `SOURCE DIR [-sfnv] [-N NAMESPACE] [-t TYPE] -o OPTIONS`, an empty environment, and for `user` mounts
//! the user's own identity; it passes the exit code on, so that this must be one of its own.

use super::{Args, Wanted, detach};
use crate::{exit, output};
use clap::Parser as _;
use lumeofs_base::{Code, FsError};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The name that makes this program the helper.
pub(crate) const NAME: &str = "mount.fuse.lumeofs";

/// Mounts LumeoFS for mount(8)
#[derive(clap::Parser)]
#[command(name = NAME, version)]
struct Call {
    /// Masters as HOST:PORT[,HOST:PORT…], optionally followed by :/SUBDIR
    source: String,
    /// Where to mount
    mountpoint: PathBuf,
    /// Mount options, separated by commas
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// Leaves unknown options out
    #[arg(short = 's')]
    sloppy: bool,
    /// Checks options, source and secret, and mounts nothing
    #[arg(short = 'f')]
    fake: bool,
    /// Writes no /etc/mtab; nothing does
    #[arg(short = 'n')]
    no_mtab: bool,
    /// Says what was mounted
    #[arg(short = 'v')]
    verbose: bool,
    /// Refused: enter the mount namespace first, with nsenter(1)
    #[arg(short = 'N', value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// The type, fuse.lumeofs
    #[arg(short = 't', value_name = "TYPE", value_parser = ["fuse.lumeofs", "lumeofs"])]
    kind: Option<String>,
}

/// Whether this process was called as the helper.
pub(crate) fn is_called() -> bool {
    let called = std::env::args_os().next();
    called.is_some_and(|called| Path::new(&called).file_name() == Some(OsStr::new(NAME)))
}

/// Does what mount(8) wants.
pub(crate) fn run() -> ExitCode {
    let call = match Call::try_parse() {
        Ok(call) => call,
        Err(error) => {
            // Help and version are errors too, which go to stdout.
            let _ = error.print();
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    match call.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !exit::is_told(&error) {
                output::note(format_args!("{NAME}: {error:#}"));
            }
            exit::mount_code_of(&error)
        }
    }
}

impl Call {
    fn run(self) -> anyhow::Result<()> {
        crate::log::start(None, None)?;
        if let Some(namespace) = self.namespace {
            let text =
                format!("-N {namespace}: run it as `nsenter --mount={namespace} mount …` instead");
            return Err(FsError::new(Code::Invalid, text).into());
        }
        let mut text = self.options.join(",");
        if self.sloppy {
            text = lumeofs_fuse::without_unknown(&text);
        }
        let (source, dir) = (self.source.clone(), self.mountpoint.display().to_string());
        let done = if lumeofs_fuse::is_remount(&text) {
            if !self.fake {
                lumeofs_fuse::remount(&self.mountpoint, &text)?;
            }
            "remounted"
        } else {
            let args = Args {
                source: self.source,
                mountpoint: self.mountpoint,
                options: Vec::new(),
                secret: None,
                on_outage: None,
                foreground: false,
                log: None,
                metrics: None,
                notify: false,
            };
            let wanted = Wanted::check(&args, text)?;
            if !self.fake {
                detach(&args, &wanted)?;
            }
            "mounted"
        };
        if self.verbose {
            let fake = if self.fake { " (not really)" } else { "" };
            output::line(format_args!("{NAME}: {source} {done} on {dir}{fake}"))?;
        }
        Ok(())
    }
}
