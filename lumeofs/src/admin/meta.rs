//! `lumeofs admin meta`: the metadata in a file, and the first master of a new cluster made from it.

mod dump;

use crate::access::Access;
use crate::cluster::member::{self, Member, Role};
use crate::{fs, output};
use anyhow::Context as _;
use lumeofs_base::{Code, FsError, Timestamp};
use lumeofs_master::dump::{NewMaster, Summary, inspect, load};
use lumeofs_proto::auth::Credentials;
use serde_json::{Value, json};
use std::io::BufReader;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// Bytes of the file that are read at once.
const READ_BYTES: usize = 1 << 20;

/// Actions of `lumeofs admin meta`.
#[derive(clap::Subcommand)]
pub(super) enum Action {
    /// Writes all metadata to a file, as it is at one moment, while the cluster is in use
    #[command(
        after_help = "The file holds names, attributes and where chunks are; not the data, and not the secret: keep \
a copy of the secret file with it. It is written under a temporary name, synced, and renamed.
docs/runbook/all-masters-lost.md says what it is for."
    )]
    Dump {
        /// The file; `-` is standard output
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Reads a dump to its end, checks it, and says what is in it
    Info {
        /// The file
        file: PathBuf,
    },
    /// Makes the first master of a cluster whose masters are all lost, from a dump
    #[command(
        after_help = "Everything that was decided after the dump is not known any more: files that were made since \
have no names, files that were changed since show newer bytes, mounts go on in new sessions. Chunks that the dump does not \
know stay until `lumeofs admin fsck --repair`.
Needs --secret, the secret file of the cluster. docs/runbook/all-masters-lost.md has the steps."
    )]
    Load(Load),
}

/// Options of `lumeofs admin meta load`.
#[derive(clap::Args)]
pub(super) struct Load {
    /// The file
    file: PathBuf,
    /// Empty directory for the metadata, logs and secret of the master; created if missing
    #[arg(long, required_unless_present = "dry_run")]
    data: Option<PathBuf>,
    /// HOST:PORT to listen on
    #[arg(long, required_unless_present = "dry_run")]
    listen: Option<String>,
    /// HOST:PORT that others reach it by [default: --listen]
    #[arg(long)]
    advertise: Option<String>,
    /// Only checks the dump and says what is in it
    #[arg(long)]
    dry_run: bool,
}

/// Runs the command.
pub(super) fn run(access: &Access, action: &Action) -> anyhow::Result<()> {
    match action {
        Action::Dump { out } => {
            let (masters, credentials) = access.resolve()?;
            dump::run(&masters, &credentials, out, access.json)
        }
        Action::Info { file } => info(file, access.json),
        Action::Load(args) if args.dry_run => info(&args.file, access.json),
        Action::Load(args) => make_master(access, args),
    }
}

fn open(file: &Path) -> anyhow::Result<BufReader<std::fs::File>> {
    let opened = std::fs::File::open(file);
    let opened = opened.with_context(|| format!("open the dump {}", file.display()))?;
    Ok(BufReader::with_capacity(READ_BYTES, opened))
}

/// Reads a dump to its end.
fn check(file: &Path) -> anyhow::Result<Summary> {
    let mut told = |bytes| output::status(format_args!("checking: {}", output::size(bytes)));
    let summary = inspect(open(file)?, &mut told);
    output::status("");
    summary.with_context(|| format!("{}", file.display()))
}

fn info(file: &Path, json: bool) -> anyhow::Result<()> {
    let summary = check(file)?;
    if json {
        return output::json(&of_summary(&summary));
    }
    let contents = &summary.contents;
    output::line(format_args!("cluster    {}", summary.head.cluster))?;
    output::line(format_args!(
        "taken      {} by lumeofs {}",
        time(summary.head.time_ms),
        summary.head.program
    ))?;
    for (name, group) in &summary.groups {
        let (index, rows, size) = (group.index, group.rows, output::size(group.bytes));
        output::line(format_args!(
            "{name:<10} as of log index {index}: {rows} rows, {size}"
        ))?;
    }
    output::line(format_args!(
        "holds      {} files and directories with {}, {} replica groups, {} datanodes, {} sessions",
        contents.inodes,
        output::size(contents.bytes),
        contents.groups,
        contents.datanodes.len(),
        contents.sessions
    ))?;
    for (id, address) in &contents.masters {
        output::line(format_args!("master     {} at {address}", id.get()))?;
    }
    Ok(())
}

fn time(ms: i64) -> String {
    let secs = ms.div_euclid(1000);
    format!("{} UTC", fs::date(Timestamp { secs, nanos: 0 }))
}

fn of_summary(summary: &Summary) -> Value {
    let contents = &summary.contents;
    let groups = summary.groups.iter().map(|(name, group)| {
        json!({"group": name, "index": group.index, "term": group.term, "rows": group.rows, "bytes": group.bytes})
    });
    let masters = contents.masters.iter();
    let masters = masters.map(|(id, address)| json!({"id": id.get(), "address": address}));
    json!({
        "cluster_id": summary.head.cluster.to_string(), "time_ms": summary.head.time_ms,
        "program": summary.head.program, "groups": groups.collect::<Vec<_>>(),
        "inodes": contents.inodes, "bytes": contents.bytes, "replica_groups": contents.groups,
        "datanodes": contents.datanodes.iter().map(|id| id.get()).collect::<Vec<_>>(),
        "sessions": contents.sessions, "masters": masters.collect::<Vec<_>>(),
    })
}

fn make_master(access: &Access, args: &Load) -> anyhow::Result<()> {
    let missing = |what: &str| FsError::new(Code::Invalid, format!("--{what} is missing"));
    let dir = args.data.as_deref().ok_or_else(|| missing("data"))?;
    let listen = args.listen.clone().ok_or_else(|| missing("listen"))?;
    let advertise = args.advertise.clone().unwrap_or_else(|| listen.clone());
    member::check_address(&listen, &advertise)?;
    let credentials: Credentials = access.secret()?;
    check_empty(dir)?;
    let summary = check(&args.file)?;
    std::fs::create_dir_all(dir)
        .map_err(|error| FsError::from_disk(&error, format_args!("create {}", dir.display())))?;
    let new = NewMaster {
        data_dir: dir,
        advertise: &advertise,
        credentials: credentials.clone(),
    };
    let mut told = |bytes| output::status(format_args!("loading: {}", output::size(bytes)));
    let loaded = load(open(&args.file)?, &summary, &new, &mut told);
    output::status("");
    let id = loaded?.master.get();
    member::write_secret(&member::secret_file(dir), &credentials)?;
    // Last: without it no master starts here.
    let member = Member {
        role: Role::Master,
        id: Some(id),
        nonce: member::nonce(),
        listen,
        masters: vec![advertise.clone()],
        advertise: advertise.clone(),
        zone: String::new(),
        vote: false,
        founding: None,
    };
    member.save(dir)?;
    if access.json {
        let data = output::json_name(dir.as_os_str().as_bytes());
        return output::json(&json!({"master": id, "address": advertise, "data": data}));
    }
    output::line(next_steps(dir, id, &advertise))
}

fn check_empty(dir: &Path) -> anyhow::Result<()> {
    let mut entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("data directory {}", dir.display()))?,
    };
    if entries.next().is_some() {
        let text = format!(
            "data directory {} is not empty: give an empty one, or remove what an earlier attempt has left there",
            dir.display()
        );
        return Err(FsError::new(Code::Refused, text).into());
    }
    Ok(())
}

fn next_steps(dir: &Path, id: u64, advertise: &str) -> String {
    let shown = dir.display();
    format!(
        "Master {id} is prepared in {shown}. Next:\n\
         \x20 here           lumeofs master --data {shown}\n\
         \x20 here           lumeofs cluster token --data {shown} > token      (a secret)\n\
         \x20 datanodes      start all; where no master has the address of an old one any more: lumeofs datanode --data DIR --join @token\n\
         \x20 here           lumeofs admin --masters {advertise} --secret {shown}/secret fsck, then fsck --repair\n\
         \x20 2 more hosts   lumeofs master --join @token --data DIR --listen HOST:PORT, then lumeofs admin master add ID ID"
    )
}
