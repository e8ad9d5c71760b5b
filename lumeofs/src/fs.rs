//! `lumeofs fs`: files without a mount, through the SDK.

mod copy;
mod session;
mod show;
mod trash;

pub(crate) use session::Session;
pub(crate) use show::date;

use crate::access::Access;
use crate::output;
use anyhow::Context as _;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

/// Options of `lumeofs fs`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    access: Access,
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Lists a directory
    Ls {
        /// Path from the root of the filesystem
        #[arg(default_value = "/")]
        path: OsString,
    },
    /// Shows attributes
    Stat {
        /// Path from the root of the filesystem
        path: OsString,
    },
    /// Copies a local file in (- = standard input)
    Put {
        /// Local file
        local: PathBuf,
        /// Path in the filesystem; an existing file is replaced, a directory gets it under its name
        path: OsString,
    },
    /// Copies a file out (- = standard output)
    Get {
        /// Path in the filesystem
        path: OsString,
        /// Local file; replaced if it exists
        local: PathBuf,
    },
    /// Prints a file
    Cat {
        /// Path in the filesystem
        path: OsString,
    },
    /// Removes a file, or a directory with -r
    Rm {
        /// Path in the filesystem
        path: OsString,
        /// Also a directory with all below it
        #[arg(short, long)]
        recursive: bool,
    },
    /// Makes a directory
    Mkdir {
        /// Path in the filesystem
        path: OsString,
        /// Also its missing parents; no error if it exists
        #[arg(short, long)]
        parents: bool,
    },
    /// Renames; an existing file is replaced
    Mv {
        /// Path in the filesystem
        from: OsString,
        /// New path, or the directory to move it to
        to: OsString,
    },
    /// What was deleted and is kept for a while: for root
    #[command(subcommand)]
    Trash(trash::Action),
}

/// Runs the command.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let session = Session::open(&args.access)?;
    let json = args.access.json;
    let done = |value: Value| if json { output::json(&value) } else { Ok(()) };
    match args.action {
        Action::Ls { path } => show::list(&session, path.as_bytes(), json),
        Action::Stat { path } => {
            let attr = session.resolve(path.as_bytes())?;
            show::attributes(path.as_bytes(), &attr, json)
        }
        Action::Put { local, path } => {
            let bytes = copy::put(&session, &local, path.as_bytes())?;
            done(json!({"path": output::json_name(path.as_bytes()), "bytes": bytes}))
        }
        Action::Get { path, local } if local.as_os_str() == "-" => {
            copy::get(&session, path.as_bytes(), || Ok(std::io::stdout())).map(drop)
        }
        Action::Get { path, local } => {
            let create = || {
                std::fs::File::create(&local).with_context(|| format!("create {}", local.display()))
            };
            let bytes = copy::get(&session, path.as_bytes(), create)?;
            done(json!({"path": output::json_name(path.as_bytes()), "bytes": bytes}))
        }
        Action::Cat { path } => {
            copy::get(&session, path.as_bytes(), || Ok(std::io::stdout())).map(drop)
        }
        Action::Rm { path, recursive } => {
            let shown = output::name(path.as_bytes());
            let (parent, name) = session.resolve_parent(path.as_bytes())?;
            session
                .remove(parent, name, recursive)
                .map_err(|error| error.during(&shown))?;
            done(json!({"removed": output::json_name(path.as_bytes())}))
        }
        Action::Mkdir { path, parents } => {
            let shown = output::name(path.as_bytes());
            session
                .mkdir(path.as_bytes(), parents)
                .map_err(|error| error.during(&shown))?;
            done(json!({"path": output::json_name(path.as_bytes())}))
        }
        Action::Mv { from, to } => {
            let (shown, new) = (output::name(from.as_bytes()), output::name(to.as_bytes()));
            session
                .rename(from.as_bytes(), to.as_bytes())
                .map_err(|error| error.during(format_args!("move {shown} to {new}")))?;
            done(json!({
                "from": output::json_name(from.as_bytes()), "to": output::json_name(to.as_bytes()),
            }))
        }
        Action::Trash(action) => trash::run(&session, action, json),
    }
}
