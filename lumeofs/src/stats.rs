//! `lumeofs stats`: what a mount does, from the mount itself.
//!
//! The counters come through an extended attribute of the mount, so neither the cluster nor a port is needed.

mod counters;

use crate::output;
use anyhow::{Context as _, bail};
use counters::{Counters, Row};
use lumeofs_base::clock::{Clock as _, SystemClock};
use serde_json::json;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Room for the counters: the most that an extended attribute can have.
const BYTES_MAX: usize = 65_536;

/// Options of `lumeofs stats`.
#[derive(clap::Args)]
#[command(
    after_help = "Without --watch the figures count from the beginning of the mount, with it from one line to the next. \
docs/observing.md explains each counter."
)]
pub(crate) struct Args {
    /// A mounted directory, or anything in it
    dir: PathBuf,
    /// All counters as JSON
    #[arg(long)]
    json: bool,
    /// Shows what happened in each of so many seconds, until interrupted
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2")]
    watch: Option<f64>,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let pause = match args.watch {
        None => None,
        Some(seconds) if (0.1..=86_400.0).contains(&seconds) => Some(seconds),
        Some(seconds) => bail!("--watch {seconds}: 0.1 to 86400 seconds are possible"),
    };
    let mut before = (SystemClock.monotonic(), read(&args.dir)?);
    let Some(pause) = pause else {
        return show(&before.1, None, args.json);
    };
    loop {
        std::thread::sleep(Duration::from_secs_f64(pause));
        let now = (SystemClock.monotonic(), read(&args.dir)?);
        if !args.json {
            output::clear()?;
        }
        let seconds = (now.0 - before.0).as_secs_f64();
        show(&now.1, Some((&before.1, seconds)), args.json)?;
        before = now;
    }
}

fn read(dir: &Path) -> anyhow::Result<Counters> {
    let mut bytes = vec![0; BYTES_MAX];
    let len = match rustix::fs::getxattr(dir, lumeofs_fuse::LIVE_COUNTERS, &mut bytes) {
        Ok(len) => len,
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NODATA) => {
            bail!(
                "{} is not on a LumeoFS mount; `lumeofs mount` or /proc/mounts show where one is",
                dir.display()
            );
        }
        Err(error) => {
            let error = std::io::Error::from(error);
            let text = match error.kind() {
                ErrorKind::NotConnected => "the process of this mount was killed: mount it again",
                _ => "counters of the mount",
            };
            return Err(error).with_context(|| format!("{}: {text}", dir.display()));
        }
    };
    Counters::parse(&String::from_utf8_lossy(&bytes[..len]))
}

fn show(now: &Counters, before: Option<(&Counters, f64)>, json: bool) -> anyhow::Result<()> {
    if json {
        return output::line(match before {
            None => json!({ "counters": now.all() }),
            Some((before, seconds)) => {
                json!({ "seconds": seconds, "counters": now.since(before).all() })
            }
        });
    }
    let (counts, seconds) = match before {
        None => (now.clone(), None),
        Some((before, seconds)) => (now.since(before), Some(seconds)),
    };
    let heading = match seconds {
        None => ["operation", "count", "failed", "mean"],
        Some(_) => ["operation", "per second", "failed", "mean"],
    };
    let rows: Vec<Vec<String>> = counts
        .operations()
        .iter()
        .map(|row| cells(row, seconds))
        .collect();
    output::table(&heading, &rows)?;
    output::line("")?;
    let others: Vec<Vec<String>> = counts
        .others()
        .map(|(name, value)| vec![name.to_owned(), counters::shown(name, value)])
        .collect();
    output::table(&["counter", "value"], &others)
}

fn cells(row: &Row, seconds: Option<f64>) -> Vec<String> {
    let count = match seconds {
        None => row.count.to_string(),
        Some(seconds) => format!("{:.1}", row.count as f64 / seconds),
    };
    let mean = row.seconds / row.count.max(1) as f64 * 1e6;
    vec![
        row.name.clone(),
        count,
        row.failed.to_string(),
        format!("{mean:.0} µs"),
    ]
}
