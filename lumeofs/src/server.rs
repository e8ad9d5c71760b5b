//! `lumeofs master`, `lumeofs datanode`, `lumeofs keygen`.

use crate::cluster::member::{self, Founding, Member, Role};
use crate::{endpoint, signals};
use anyhow::Context as _;
use lumeofs_base::{Code, FsError, NodeId, NodeKind, limits};
use lumeofs_master::MasterConfig;
use lumeofs_proto::auth::{Credentials, Identity};
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// Options of `lumeofs master`.
///
/// A master of a cluster of real machines is prepared by `lumeofs cluster init` or joins with a token; later starts
/// need only --data. With --id, --peers and --secret everything is named instead.
#[derive(clap::Args)]
pub(crate) struct MasterArgs {
    /// Directory for metadata and logs; created if missing
    #[arg(long)]
    data: PathBuf,
    /// Joins a cluster: a token of `lumeofs cluster token`, or @FILE with one [env: LUMEOFS_TOKEN]. The new master is
    /// a candidate until `lumeofs admin master add` admits it
    #[arg(long, value_name = "TOKEN", conflicts_with_all = ["id", "peers", "secret"])]
    join: Option<String>,
    /// With --join: votes as soon as it has caught up, without being admitted
    #[arg(long, conflicts_with_all = ["id", "peers", "secret"])]
    vote: bool,
    /// HOST:PORT to listen on [default: as before, or the own address in --peers]
    #[arg(long)]
    listen: Option<String>,
    /// HOST:PORT that others reach it by [default: --listen, or the own address in --peers]
    #[arg(long)]
    advertise: Option<String>,
    /// Node id, one of those in --peers
    #[arg(long, requires = "peers")]
    id: Option<u64>,
    /// The masters that found the cluster as ID=HOST:PORT, separated by commas: 1, 3 or 5. Once they are recorded,
    /// the record counts
    #[arg(long, requires_all = ["id", "secret"])]
    peers: Option<String>,
    /// Secret file of the cluster
    #[arg(long, requires = "peers")]
    secret: Option<PathBuf>,
    /// Copies of a chunk; read with --peers when the cluster is new
    #[arg(long, default_value_t = limits::REPLICAS_DEFAULT as u32)]
    replicas: u32,
    /// Bytes of a file in one chunk, a multiple of 1 MiB up to 64 MiB; read with --peers when the cluster is new
    #[arg(long, default_value_t = limits::CHUNK_SIZE_BYTES)]
    chunk_size: u64,
    /// When a write is acknowledged: `fsync` = in memory of all replicas, on disk at fsync; `always` =
    /// on disk; read with --peers when the cluster is new
    #[arg(long, default_value = "fsync", value_parser = ["fsync", "always"])]
    durability: String,
    /// HOST:PORT for Prometheus: /metrics, /healthz and /log, without authentication [default: none]
    #[arg(long, value_name = "HOST:PORT")]
    metrics: Option<String>,
}

/// Options of `lumeofs datanode`.
///
/// A datanode joins with a token; later starts need only --data. With --id, --masters, --listen and --secret
/// everything is named instead.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct DatanodeArgs {
    #[command(subcommand)]
    command: Option<crate::chunks::Command>,
    /// Data directories, one per disk, separated by commas; created if missing
    #[arg(long, value_delimiter = ',', required = true)]
    data: Vec<PathBuf>,
    /// Joins a cluster: a token of `lumeofs cluster token`, or @FILE with one [env: LUMEOFS_TOKEN]
    #[arg(long, value_name = "TOKEN", conflicts_with_all = ["id", "masters", "secret"])]
    join: Option<String>,
    /// Node id, unique in the cluster, never given to another data directory
    #[arg(long, requires_all = ["masters", "secret", "listen"])]
    id: Option<u64>,
    /// HOST:PORT to listen on [default: as before]
    #[arg(long)]
    listen: Option<String>,
    /// HOST:PORT that others reach it by [default: --listen]
    #[arg(long)]
    advertise: Option<String>,
    /// Masters as HOST:PORT, separated by commas; those that they name later are remembered
    #[arg(long, requires = "id")]
    masters: Option<String>,
    /// Failure domain: replicas avoid sharing one [default: as before, or "default"]
    #[arg(long)]
    zone: Option<String>,
    /// Secret file of the cluster
    #[arg(long, requires = "id")]
    secret: Option<PathBuf>,
    /// HOST:PORT for Prometheus: /metrics, /healthz and /log, without authentication [default: none]
    #[arg(long, value_name = "HOST:PORT")]
    metrics: Option<String>,
    /// MiB that are read of each disk in a second, once a week, to find and repair flipped bits; 0 = never
    #[arg(long, value_name = "MIB", default_value_t = limits::SCRUB_RATE_BYTES >> 20)]
    scrub_rate: u64,
}

/// Options of `lumeofs keygen`.
#[derive(clap::Args)]
pub(crate) struct KeygenArgs {
    /// File to write; must not exist
    file: PathBuf,
    /// The cluster encrypts its connections
    #[arg(long)]
    tls: bool,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

/// Allows as many open files as the system permits: each connection takes several.
pub(crate) fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files stays at {:?}", limit.current);
    }
}

/// Runs a master until it is stopped.
pub(crate) fn master(args: MasterArgs) -> anyhow::Result<()> {
    raise_file_limit();
    check_chunk_size(args.chunk_size)?;
    let config = match (args.id, &args.peers, &args.secret) {
        (Some(id), Some(peers), Some(secret)) => named_master(&args, id, peers, secret)?,
        _ => kept_master(&args)?,
    };
    let collect = lumeofs_master::Metrics::collect;
    let metrics = endpoint::start_early(args.metrics.as_deref(), collect)?;
    let (sender, shutdown) = tokio::sync::watch::channel(false);
    signals::on_stop(move || {
        sender.send_replace(true);
    })?;
    lumeofs_master::run(config, shutdown, move |running| {
        metrics.get_or_init(|| running);
    })
}

/// A master that is told everything.
fn named_master(
    args: &MasterArgs,
    id: u64,
    peers: &str,
    secret: &Path,
) -> anyhow::Result<MasterConfig> {
    let masters = parse_peers(peers)?;
    let own = masters.get(&id).ok_or_else(|| {
        FsError::new(
            Code::Invalid,
            format!("--id {id} is not among --peers {peers}"),
        )
    })?;
    if !matches!(masters.len(), 1 | 3 | 5) {
        let text = format!("{} masters in --peers: want 1, 3 or 5", masters.len());
        return Err(FsError::new(Code::Invalid, text).into());
    }
    Ok(MasterConfig {
        identity: identity(secret, id, NodeKind::Master)?,
        listen: args.listen.clone().unwrap_or_else(|| own.clone()),
        advertise: args.advertise.clone().unwrap_or_else(|| own.clone()),
        bootstrap: masters.keys().next() == Some(&id),
        masters,
        seeds: Vec::new(),
        join: false,
        data_dir: create_dir(&args.data)?,
        chunk_size: args.chunk_size,
        replicas: args.replicas,
        always_durable: args.durability == "always",
    })
}

/// A master that keeps in its directory what it needs.
fn kept_master(args: &MasterArgs) -> anyhow::Result<MasterConfig> {
    let (member, identity) = Member::open(&member::Options {
        role: Role::Master,
        dir: &create_dir(&args.data)?,
        token: args.join.as_deref(),
        listen: args.listen.clone(),
        advertise: args.advertise.clone(),
        zone: None,
        vote: args.vote,
    })?;
    let id = identity.node.get();
    let founds = member.founding.is_some();
    // Of those that join nobody reads the policies.
    let policies = member.founding.unwrap_or(Founding {
        replicas: args.replicas,
        chunk_size: args.chunk_size,
        durability: args.durability.clone(),
    });
    let masters = match founds {
        true => BTreeMap::from([(id, member.advertise.clone())]),
        false => BTreeMap::new(),
    };
    Ok(MasterConfig {
        identity,
        listen: member.listen,
        advertise: member.advertise,
        masters,
        seeds: member.masters,
        join: member.vote,
        data_dir: args.data.clone(),
        bootstrap: founds,
        chunk_size: policies.chunk_size,
        replicas: policies.replicas,
        always_durable: policies.durability == "always",
    })
}

/// Checks a chunk size.
pub(crate) fn check_chunk_size(bytes: u64) -> anyhow::Result<()> {
    if bytes == 0 || !bytes.is_multiple_of(1 << 20) || bytes > limits::CHUNK_SIZE_BYTES {
        let text = format!("--chunk-size {bytes}: want a multiple of 1048576 up to 67108864");
        return Err(FsError::new(Code::Invalid, text).into());
    }
    Ok(())
}

/// Runs a datanode until it is stopped, or does what is done with one that does not run.
pub(crate) fn datanode(args: DatanodeArgs) -> anyhow::Result<()> {
    raise_file_limit();
    if let Some(command) = args.command {
        return crate::chunks::run(command);
    }
    for dir in &args.data {
        create_dir(dir)?;
    }
    let scrub_rate_bytes = args.scrub_rate.checked_mul(1 << 20).ok_or_else(|| {
        let text = format!("--scrub-rate {}: want MiB a second, or 0", args.scrub_rate);
        FsError::new(Code::Invalid, text)
    })?;
    let config = match (args.id, &args.masters, &args.secret, &args.listen) {
        (Some(id), Some(masters), Some(secret), Some(listen)) => lumeofs_datanode::DatanodeConfig {
            identity: identity(secret, id, NodeKind::Datanode)?,
            advertise: args.advertise.clone().unwrap_or_else(|| listen.clone()),
            listen: listen.clone(),
            zone: zone_or_default(args.zone.clone()),
            masters: crate::access::split_masters(masters)?,
            data_dirs: args.data,
            scrub_rate_bytes,
        },
        _ => {
            let (member, identity) = Member::open(&member::Options {
                role: Role::Datanode,
                dir: &args.data[0],
                token: args.join.as_deref(),
                listen: args.listen.clone(),
                advertise: args.advertise.clone(),
                zone: args.zone.clone(),
                vote: false,
            })?;
            lumeofs_datanode::DatanodeConfig {
                identity,
                advertise: member.advertise,
                listen: member.listen,
                zone: zone_or_default(Some(member.zone)),
                masters: member.masters,
                data_dirs: args.data,
                scrub_rate_bytes,
            }
        }
    };
    let collect = lumeofs_datanode::Metrics::collect;
    let metrics = endpoint::start_early(args.metrics.as_deref(), collect)?;
    let stop = signals::on_stop(|| {})?;
    lumeofs_datanode::run(
        config,
        move || stop.requested(),
        move |running| {
            metrics.get_or_init(|| running);
        },
    )
}

fn zone_or_default(zone: Option<String>) -> String {
    zone.filter(|zone| !zone.is_empty())
        .unwrap_or_else(|| "default".to_owned())
}

/// Writes the secret file of a new cluster, readable by its owner only.
pub(crate) fn keygen(args: &KeygenArgs) -> anyhow::Result<()> {
    write_secret(&args.file, args.tls)?;
    if args.json {
        let file = crate::output::json_name(args.file.as_os_str().as_bytes());
        return crate::output::json(&serde_json::json!({"file": file}));
    }
    crate::output::line(args.file.display())
}

/// Creates a secret file that must not exist yet.
pub(crate) fn write_secret(file: &Path, tls: bool) -> anyhow::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut out = std::fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .with_context(|| format!("create secret file {}", file.display()))?;
    let mut credentials = Credentials::generate();
    if tls {
        credentials = credentials.with_tls();
    }
    out.write_all(credentials.to_text().as_bytes())?;
    Ok(out.sync_all()?)
}

fn identity(secret: &Path, id: u64, kind: NodeKind) -> anyhow::Result<Identity> {
    if id == 0 {
        return Err(FsError::new(Code::Invalid, "--id 0: want a number from 1").into());
    }
    Ok(Identity {
        credentials: Credentials::load(secret)?,
        node: NodeId(id),
        kind,
    })
}

fn create_dir(dir: &Path) -> anyhow::Result<PathBuf> {
    let what = || format!("data directory {}", dir.display());
    if dir.exists() && !dir.is_dir() {
        let text = format!("{} is not a directory: name another one", what());
        return Err(FsError::new(Code::NotDirectory, text).into());
    }
    std::fs::create_dir_all(dir)
        .map_err(|error| FsError::from_disk(&error, format!("create {}", what())))?;
    Ok(dir.to_owned())
}

fn parse_peers(list: &str) -> anyhow::Result<BTreeMap<u64, String>> {
    let bad = |part: &str| {
        FsError::new(
            Code::Invalid,
            format!("--peers: {part:?}: want ID=HOST:PORT[,ID=HOST:PORT…]"),
        )
    };
    let mut masters = BTreeMap::new();
    for part in list.split(',') {
        let (id, address) = part.split_once('=').ok_or_else(|| bad(part))?;
        let id: u64 = id.trim().parse().map_err(|_| bad(part))?;
        let address = crate::access::split_masters(address)?.remove(0);
        if id == 0 || masters.insert(id, address).is_some() {
            return Err(bad(part).into());
        }
    }
    Ok(masters)
}
