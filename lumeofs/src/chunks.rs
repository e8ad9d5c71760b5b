//! `lumeofs datanode chunks` and `lumeofs datanode salvage`: what is left when all masters are lost.
//!
//! Both read data directories of datanodes that do not run, and change nothing in them.

use crate::output;
use lumeofs_base::{ChunkState, Code, FsError, GroupId, Version};
use lumeofs_datanode::{Salvaged, StoppedStore, salvage};
use serde_json::json;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// Between two lines of progress, in chunks.
const PROGRESS_CHUNKS: u64 = 16;

/// What is done with datanodes that do not run.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Lists the chunks in data directories of stopped datanodes, with the files that they are parts of
    Chunks(ChunksArgs),
    /// Puts files together from data directories of stopped datanodes, if all masters and dumps are lost
    Salvage(SalvageArgs),
}

/// Options of `lumeofs datanode chunks`.
#[derive(clap::Args)]
pub(crate) struct ChunksArgs {
    /// Data directories
    #[arg(required = true, value_name = "DIR")]
    data: Vec<PathBuf>,
    /// Prints a JSON object for each chunk, one a line
    #[arg(long)]
    json: bool,
}

/// Options of `lumeofs datanode salvage`.
///
/// Each file becomes OUTDIR/inode-NUMBER; names, owners and modes are lost. A file ends with a whole block of 4096 bytes,
/// filled up with zeros, as sizes are lost too. Name the directories of all datanodes that are left: of each chunk the
/// newest copy counts, and of several the one that is not damaged.
#[derive(clap::Args)]
pub(crate) struct SalvageArgs {
    /// Data directories, separated by commas or in several --from
    #[arg(long, required = true, value_delimiter = ',', value_name = "DIR")]
    from: Vec<PathBuf>,
    /// Directory for the files; must be empty, or is created
    #[arg(long, value_name = "OUTDIR")]
    to: PathBuf,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

/// Runs a command.
pub(crate) fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Chunks(args) => list(&args),
        Command::Salvage(args) => save(&args),
    }
}

fn list(args: &ChunksArgs) -> anyhow::Result<()> {
    for directory in &args.data {
        let store = StoppedStore::open(directory)?;
        if !args.json {
            let identity = store.identity();
            output::line(format_args!(
                "{}: datanode {} of cluster {}",
                output::name(directory.as_os_str().as_bytes()),
                identity.node.get(),
                identity.cluster
            ))?;
            output::line(row([
                "CHUNK", "GROUP", "INODE", "INDEX", "VERSION", "LENGTH", "",
            ]))?;
        }
        for (group, state) in store.chunks() {
            match args.json {
                true => output::line(object(directory, group, &state))?,
                false => output::line(shown(group, &state))?,
            }
        }
    }
    Ok(())
}

/// A line with columns of a fixed width, since there may be too many lines to measure.
fn row<T: std::fmt::Display>(cells: [T; 7]) -> String {
    let [chunk, group, inode, index, version, len, remark] = cells;
    let line = format!(
        "{chunk:<12}  {group:<8}  {inode:<16}  {index:<8}  {version:<20}  {len:<9}  {remark}"
    );
    line.trim_end().to_owned()
}

fn shown(group: GroupId, state: &ChunkState) -> String {
    let remark = match (state.deleted, state.version == Default::default()) {
        (true, _) => "deleted",
        (false, true) => "incomplete",
        (false, false) => "",
    };
    let of_part = |number: Option<u64>| number.map_or("-".to_owned(), |number| number.to_string());
    row([
        state.chunk.get().to_string(),
        group.get().to_string(),
        of_part(state.part.map(|part| part.inode.get())),
        of_part(state.part.map(|part| u64::from(part.index.get()))),
        version(state.version),
        state.len.to_string(),
        remark.to_owned(),
    ])
}

fn object(directory: &Path, group: GroupId, state: &ChunkState) -> serde_json::Value {
    json!({
        "directory": output::json_name(directory.as_os_str().as_bytes()),
        "chunk": state.chunk.get(),
        "group": group.get(),
        "inode": state.part.map(|part| part.inode.get()),
        "index": state.part.map(|part| part.index.get()),
        "chunk_size": state.part.map(|part| part.chunk_size.get()),
        "epoch": state.version.epoch.get(),
        "sequence": state.version.sequence.get(),
        "length": state.len,
        "deleted": state.deleted,
    })
}

fn save(args: &SalvageArgs) -> anyhow::Result<()> {
    let (mut stores, mut unread) = (Vec::new(), Vec::new());
    for directory in &args.from {
        match StoppedStore::open(directory) {
            Ok(store) => stores.push(store),
            // Others may have the same chunks.
            Err(error) if matches!(error.code, Code::Io | Code::Invalid) => {
                output::note(format_args!("left out: {error}"));
                unread.push(error);
            }
            Err(error) => return Err(error.into()),
        }
    }
    let done = salvage(&mut stores, &args.to, &mut |done| {
        if done.chunks.is_multiple_of(PROGRESS_CHUNKS) || done.chunks == done.chunks_all {
            output::status(format_args!(
                "chunk {} of {}, {}",
                done.chunks,
                done.chunks_all,
                output::size(done.bytes)
            ));
        }
    })?;
    output::status("");
    match args.json {
        true => output::json(&report(&args.to, &done))?,
        false => tell(&args.to, &done)?,
    }
    if done.damaged_blocks > 0 {
        let text = format!(
            "{} blocks are damaged in all newest copies",
            done.damaged_blocks
        );
        return Err(FsError::new(Code::Io, text).into());
    }
    unread.pop().map_or(Ok(()), |error| Err(error.into()))
}

fn version(version: Version) -> String {
    format!("{}.{}", version.epoch.get(), version.sequence.get())
}

fn report(to: &Path, done: &Salvaged) -> serde_json::Value {
    let damaged = done.damaged.iter().map(|damage| {
        json!({
            "inode": damage.inode.get(), "offset": damage.offset, "error": damage.error.to_string(),
            "taken_from_version": damage.older.map(version),
        })
    });
    let missing = done.missing.iter().map(
        |gap| json!({"inode": gap.inode.get(), "first_index": gap.first, "last_index": gap.last}),
    );
    let conflicting = done.conflicting.iter().map(|conflict| {
        json!({
            "inode": conflict.inode.get(), "index": conflict.index, "used": conflict.used.get(),
            "left_out": conflict.left_out.get(),
        })
    });
    json!({
        "directory": output::json_name(to.as_os_str().as_bytes()),
        "files": done.files,
        "chunks": done.chunks,
        "bytes": done.bytes,
        "damaged_blocks": done.damaged_blocks,
        "older_blocks": done.older_blocks,
        "damaged": damaged.collect::<Vec<_>>(),
        "gaps": done.gaps,
        "missing": missing.collect::<Vec<_>>(),
        "conflicts": done.conflicts,
        "conflicting": conflicting.collect::<Vec<_>>(),
        "incomplete_chunks": done.incomplete_chunks,
        "unknown_chunks": done.unknown_chunks,
    })
}

fn tell(to: &Path, done: &Salvaged) -> anyhow::Result<()> {
    let damaged = done.damaged.iter().map(|damage| {
        let (inode, offset, error) = (damage.inode.get(), damage.offset, &damage.error);
        let instead = damage.older.map_or("a hole now".to_owned(), |older| {
            format!("taken from version {}", version(older))
        });
        format!("inode-{inode} at {offset}, {instead}: {error}")
    });
    list_findings("damaged", "blocks", damaged, done.damaged_blocks)?;
    let conflicting = done.conflicting.iter().map(|conflict| {
        format!(
            "inode-{}: chunks {} and {} are both number {}; the former was left out",
            conflict.inode.get(),
            conflict.left_out.get(),
            conflict.used.get(),
            conflict.index
        )
    });
    list_findings("conflict", "chunks", conflicting, done.conflicts)?;
    let missing = done.missing.iter().map(|gap| {
        format!(
            "inode-{}: chunks {} to {}, never written or lost",
            gap.inode.get(),
            gap.first,
            gap.last
        )
    });
    list_findings("missing", "ranges", missing, done.gaps)?;
    if done.incomplete_chunks > 0 {
        output::line(format_args!(
            "incomplete: {} chunks, of which no finished copy was found",
            done.incomplete_chunks
        ))?;
    }
    if done.unknown_chunks > 0 {
        output::line(format_args!(
            "left out: {} chunks that do not say to which file they belong; `lumeofs datanode chunks` lists them",
            done.unknown_chunks
        ))?;
    }
    output::line(format_args!(
        "{}: {} files of {} chunks, {}",
        output::name(to.as_os_str().as_bytes()),
        done.files,
        done.chunks,
        output::size(done.bytes)
    ))
}

/// Those that are told one by one, and how many others there are.
fn list_findings(
    sort: &str,
    what: &str,
    told: impl ExactSizeIterator<Item = String>,
    all: u64,
) -> anyhow::Result<()> {
    let others = all - told.len() as u64;
    for text in told {
        output::line(format_args!("{sort}: {text}"))?;
    }
    match others {
        0 => Ok(()),
        _ => output::line(format_args!("{sort}: {others} other {what}")),
    }
}
