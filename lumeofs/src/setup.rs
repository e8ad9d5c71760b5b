//! `lumeofs setup`: this program, the helper of mount(8), systemd units and examples of their configuration, installed
//! and removed.
//!
//! What was installed is listed with checksums in one file. So a later setup replaces what it installed and keeps
//! what somebody changed since, and a removal takes away the former and leaves the latter.

mod files;
mod list;
mod place;

use crate::output;
use anyhow::Context as _;
use files::Layout;
use list::List;
use place::{Done, Place};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Options of `lumeofs setup`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The program goes to DIR/bin. Units go to DIR/lib/systemd/system if that is where systemd looks (/usr,
    /// /usr/local), else to /etc/systemd/system
    #[arg(long, value_name = "DIR", default_value = "/usr/local")]
    prefix: PathBuf,
    /// Installs below DIR as if that were /, for packages and images
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/",
        hide_default_value = true
    )]
    root: PathBuf,
    /// Removes what setup installed, except what was changed since
    #[arg(long)]
    remove: bool,
    /// Says what would be done
    #[arg(long)]
    dry_run: bool,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

/// A line of the report.
#[derive(Serialize)]
struct Row {
    path: PathBuf,
    done: Done,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let layout = Layout::new(&args.prefix)?;
    let root = std::path::absolute(&args.root)
        .with_context(|| format!("--root {}", args.root.display()))?;
    let mut list = List::load(&root, &layout.list)?;
    let mut place = Place::new(root, args.dry_run);
    let (rows, result) = if args.remove {
        remove(&mut place, &layout, &mut list)
    } else {
        // Not by its path: it may have been replaced since it was started.
        let program = std::fs::read("/proc/self/exe").context("read this program")?;
        install(&mut place, &layout, program, &mut list)
    };
    // Also what was done before something failed.
    show(&rows, args)?;
    result?;
    if args.remove || args.json {
        return Ok(());
    }
    output::line(next_steps(&layout, args))
}

fn install(
    place: &mut Place,
    layout: &Layout,
    program: Vec<u8>,
    list: &mut List,
) -> (Vec<Row>, anyhow::Result<()>) {
    let mut rows = Vec::new();
    let each = || -> anyhow::Result<()> {
        for item in layout.items(program) {
            let done = place.install(&item, list)?;
            let path = item.path;
            rows.push(Row { path, done });
        }
        Ok(())
    };
    let installed = each();
    // In any case: what is not listed would never be removed.
    let listed = place.save_list(&layout.list, list);
    (rows, installed.and(listed))
}

fn remove(place: &mut Place, layout: &Layout, list: &mut List) -> (Vec<Row>, anyhow::Result<()>) {
    let mut rows = Vec::new();
    let mut each = || -> anyhow::Result<()> {
        for (path, entry) in list.entries() {
            let Some(done) = place.remove(&path, &entry)? else {
                continue;
            };
            if done != Done::Kept {
                list.forget(&path);
            }
            rows.push(Row { path, done });
        }
        Ok(())
    };
    let removed = each();
    let listed = place.remove_list(&layout.list, list);
    (rows, removed.and(listed))
}

fn show(rows: &[Row], args: &Args) -> anyhow::Result<()> {
    if args.json {
        return output::json(&rows);
    }
    if rows.is_empty() {
        let prefix = args.prefix.display();
        return output::line(format_args!("nothing is installed with --prefix {prefix}"));
    }
    for row in rows {
        let shown = below(&args.root, &row.path);
        let done = row.done.text(args.dry_run);
        output::line(format_args!("{done:<14} {}", shown.display()))?;
    }
    Ok(())
}

/// An absolute path below a root.
fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn next_steps(layout: &Layout, args: &Args) -> String {
    let reload = match args.root == Path::new("/") {
        true => "systemctl daemon-reload",
        false => "(on the machine) systemctl daemon-reload",
    };
    format!(
        "\nNext:\n  \
         mount    put the cluster's secret into /etc/lumeofs/secret, mode 0600, then\n           \
         mount -t fuse.lumeofs HOST:7000[,HOST:7000…] DIR\n           \
         or a line of /etc/fstab: HOST:7000 DIR fuse.lumeofs _netdev,nofail 0 0\n  \
         servers  {reload}; edit /etc/lumeofs/*.conf, then\n           \
         systemctl enable --now lumeofs-master, lumeofs-datanode@1\n  \
         program  {} --help",
        layout.binary.display()
    )
}

#[cfg(test)]
mod tests;
