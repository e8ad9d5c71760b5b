//! `lumeofs master`, `lumeofs datanode`, `lumeofs keygen`.

use crate::signals;
use anyhow::Context as _;
use lumeofs_base::{Code, FsError, NodeId, NodeKind, limits};
use lumeofs_proto::auth::{Credentials, Identity};
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// Options of `lumeofs master`.
#[derive(clap::Args)]
pub(crate) struct MasterArgs {
    /// Node id, one of those in --peers
    #[arg(long)]
    id: u64,
    /// HOST:PORT to listen on [default: the own address in --peers]
    #[arg(long)]
    listen: Option<String>,
    /// All masters of the cluster as ID=HOST:PORT, separated by commas: 1, 3 or 5
    #[arg(long)]
    peers: String,
    /// Directory for metadata and logs; created if missing
    #[arg(long)]
    data: PathBuf,
    /// Secret file of the cluster
    #[arg(long)]
    secret: PathBuf,
    /// Copies of a chunk; read when the cluster is new
    #[arg(long, default_value_t = limits::REPLICAS_DEFAULT as u32)]
    replicas: u32,
    /// Bytes of a file in one chunk, a multiple of 1 MiB up to 64 MiB; read when the cluster is new
    #[arg(long, default_value_t = limits::CHUNK_SIZE_BYTES)]
    chunk_size: u64,
    /// When a write is acknowledged: `fsync` = in memory of all replicas, on disk at fsync; `always` =
    /// on disk; read when the cluster is new
    #[arg(long, default_value = "fsync", value_parser = ["fsync", "always"])]
    durability: String,
    /// HOST:PORT for Prometheus: /metrics, /healthz and /log, without authentication [default: none]
    #[arg(long, value_name = "HOST:PORT")]
    metrics: Option<String>,
}

/// Options of `lumeofs datanode`.
#[derive(clap::Args)]
pub(crate) struct DatanodeArgs {
    /// Node id, unique in the cluster, never given to another data directory
    #[arg(long)]
    id: u64,
    /// HOST:PORT to listen on
    #[arg(long)]
    listen: String,
    /// HOST:PORT that others reach it by [default: --listen]
    #[arg(long)]
    advertise: Option<String>,
    /// Masters as HOST:PORT, separated by commas
    #[arg(long)]
    masters: String,
    /// Data directories, one per disk, separated by commas; created if missing
    #[arg(long, value_delimiter = ',', required = true)]
    data: Vec<PathBuf>,
    /// Failure domain: replicas avoid sharing one
    #[arg(long, default_value = "default")]
    zone: String,
    /// Secret file of the cluster
    #[arg(long)]
    secret: PathBuf,
    /// HOST:PORT for Prometheus: /metrics, /healthz and /log, without authentication [default: none]
    #[arg(long, value_name = "HOST:PORT")]
    metrics: Option<String>,
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
    let masters = parse_peers(&args.peers)?;
    let own = masters.get(&args.id).ok_or_else(|| {
        FsError::new(
            Code::Invalid,
            format!("--id {} is not among --peers {}", args.id, args.peers),
        )
    })?;
    if !matches!(masters.len(), 1 | 3 | 5) {
        let text = format!("{} masters in --peers: want 1, 3 or 5", masters.len());
        return Err(FsError::new(Code::Invalid, text).into());
    }
    if args.chunk_size == 0
        || !args.chunk_size.is_multiple_of(1 << 20)
        || args.chunk_size > limits::CHUNK_SIZE_BYTES
    {
        let text = format!(
            "--chunk-size {}: want a multiple of 1048576 up to 67108864",
            args.chunk_size
        );
        return Err(FsError::new(Code::Invalid, text).into());
    }
    let config = lumeofs_master::MasterConfig {
        identity: identity(&args.secret, args.id, NodeKind::Master)?,
        listen: args.listen.unwrap_or_else(|| own.clone()),
        bootstrap: masters.keys().next() == Some(&args.id),
        masters,
        data_dir: create_dir(&args.data)?,
        chunk_size: args.chunk_size,
        replicas: args.replicas,
        always_durable: args.durability == "always",
    };
    if let Some(address) = &args.metrics {
        crate::endpoint::start(address, Box::new(|_| {}))?;
    }
    let (sender, shutdown) = tokio::sync::watch::channel(false);
    signals::on_stop(move || {
        sender.send_replace(true);
    })?;
    lumeofs_master::run(config, shutdown)
}

/// Runs a datanode until it is stopped.
pub(crate) fn datanode(args: DatanodeArgs) -> anyhow::Result<()> {
    raise_file_limit();
    for dir in &args.data {
        create_dir(dir)?;
    }
    let config = lumeofs_datanode::DatanodeConfig {
        identity: identity(&args.secret, args.id, NodeKind::Datanode)?,
        advertise: args.advertise.unwrap_or_else(|| args.listen.clone()),
        listen: args.listen,
        data_dirs: args.data,
        zone: args.zone,
        masters: crate::access::split_masters(&args.masters)?,
    };
    if let Some(address) = &args.metrics {
        crate::endpoint::start(address, Box::new(|_| {}))?;
    }
    let stop = signals::on_stop(|| {})?;
    lumeofs_datanode::run(config, move || stop.requested())
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
