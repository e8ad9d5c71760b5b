//! Starting and stopping a datanode.

use crate::metrics::Metrics;
use crate::node::Node;
use crate::store::{ChunkStore, StoreConfig, StoreIdentity};
use crate::{control, listener};
use lumeofs_base::disk::Disk as _;
use lumeofs_base::disk::os::OsDisk;
use lumeofs_base::{Code, FsError};
use lumeofs_proto::auth::Identity;
use rustix::fs::FlockOperation;
use std::fs::File;
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two looks at the time-outs of all groups.
const TICK: Duration = Duration::from_millis(100);
/// How long a stop waits for threads to end.
const STOP_MAX: Duration = Duration::from_secs(3);

/// What a datanode must know.
#[derive(Clone, Debug)]
pub struct DatanodeConfig {
    /// Cluster, secret and node id. The id is never given to another data directory.
    pub identity: Identity,
    /// `host:port` to listen on.
    pub listen: String,
    /// `host:port` that others reach it by.
    pub advertise: String,
    /// Data directories, one per disk. They exist.
    pub data_dirs: Vec<PathBuf>,
    /// Failure domain.
    pub zone: String,
    /// Masters as `host:port`.
    pub masters: Vec<String>,
    /// Bytes that the scrub of each store reads in a second; 0 = none.
    pub scrub_rate_bytes: u64,
}

/// Runs a datanode until `shutdown` says so. Blocks. `running` gets what it counts once it serves.
///
/// # Errors
/// The port is taken, a data directory is locked by another process or belongs to another node, a
/// store cannot be opened, or all masters refuse this datanode.
pub fn run(
    config: DatanodeConfig,
    shutdown: impl Fn() -> bool,
    running: impl FnOnce(Metrics),
) -> anyhow::Result<()> {
    let listener = bind(&config.listen)?;
    if config.data_dirs.is_empty() {
        return Err(FsError::new(Code::Invalid, "no data directory is given").into());
    }
    let Disks {
        locks,
        stores,
        broken,
    } = open_disks(&config)?;
    let upkeep = stores
        .iter()
        .map(|store| store.start_upkeep())
        .collect::<Result<Vec<_>, FsError>>()?;
    let address = listener.local_addr()?;
    let node = Node::new(config, stores, broken);
    control::start(&node)?;
    let accepting = node.clone();
    node.spawn("accept", move || listener::run(&accepting, &listener));
    for scrub in node.scrubs() {
        let (scrub, owner) = (scrub.clone(), node.clone());
        node.spawn("scrub", move || scrub.run(&owner));
    }
    running(Metrics(Arc::downgrade(&node)));
    tracing::info!(node = %node.identity.node, %address, "datanode is ready");
    while !shutdown() && !node.is_refused() {
        std::thread::park_timeout(TICK);
        node.tick();
    }
    let refusal = node.refusal();
    node.stop();
    // Wakes the thread that accepts.
    drop(TcpStream::connect_timeout(
        &address,
        Duration::from_millis(200),
    ));
    let late = Instant::now() + STOP_MAX;
    while node.threads() > 0 && Instant::now() < late {
        std::thread::park_timeout(Duration::from_millis(5));
    }
    drop((upkeep, node, locks));
    tracing::info!("datanode has stopped");
    refusal.map_or(Ok(()), |error| Err(error.into()))
}

/// What the data directories came to.
struct Disks {
    locks: Vec<File>,
    stores: Vec<Arc<ChunkStore>>,
    /// What is wrong with those that cannot be used.
    broken: Vec<(PathBuf, String)>,
}

/// Opens all data directories. One disk of several may be broken: its groups begin anew on the others.
fn open_disks(config: &DatanodeConfig) -> anyhow::Result<Disks> {
    let (mut locks, mut stores, mut broken) = (Vec::new(), Vec::new(), Vec::new());
    let mut first = None;
    for dir in &config.data_dirs {
        match lock(dir).and_then(|lock| Ok((lock, open_store(config, dir)?))) {
            Ok((lock, store)) => {
                locks.push(lock);
                stores.push(store);
            }
            Err(error) if is_disk_failure(&error) => {
                tracing::error!(dir = %dir.display(), "this disk is not used: {error:#}");
                broken.push((dir.clone(), format!("{error:#}")));
                first.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    match first {
        Some(error) if stores.is_empty() => Err(error),
        _ => Ok(Disks {
            locks,
            stores,
            broken,
        }),
    }
}

fn is_disk_failure(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<FsError>()
        .is_some_and(|error| error.code == Code::Io)
}

fn bind(listen: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(listen).map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => {
            let context = format!(
                "listen on {listen}: the port is in use by another process; end that one (`ss -ltnp` \
                 names it) or give another --listen"
            );
            FsError::new(Code::Busy, context).into()
        }
        _ => anyhow::Error::new(error).context(format!("listen on {listen}")),
    })
}

/// Two processes with one data directory would destroy it.
fn lock(dir: &Path) -> anyhow::Result<File> {
    let path = dir.join("lock");
    let options = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path);
    let file = options
        .map_err(|error| FsError::from_disk(&error, format_args!("open {}", path.display())))?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
        let context = format!(
            "data directory {} is in use by another process ({error}): each needs its own",
            dir.display()
        );
        FsError::new(Code::Busy, context)
    })?;
    if dir.join("superblock").exists() {
        let context = format!(
            "data directory {} is that of a master: give the datanode its own",
            dir.display()
        );
        return Err(FsError::new(Code::Refused, context).into());
    }
    Ok(file)
}

fn open_store(config: &DatanodeConfig, dir: &Path) -> anyhow::Result<Arc<ChunkStore>> {
    let identity = StoreIdentity {
        cluster: config.identity.credentials.cluster,
        node: config.identity.node,
    };
    let disk = OsDisk::new(dir);
    let (bytes, _) = disk
        .space(Path::new(""))
        .map_err(|error| FsError::from_disk(&error, format_args!("size of {}", dir.display())))?;
    let store = ChunkStore::open(Arc::new(disk), identity, StoreConfig::for_disk(bytes));
    let store = store.map_err(|error| explain(error, dir))?;
    Ok(Arc::new(store))
}

fn explain(error: FsError, dir: &Path) -> FsError {
    let shown = dir.display();
    let error = error.during(format_args!("open the store in {shown}"));
    match error.code {
        Code::Io => FsError::new(
            Code::Io,
            format!(
                "{}; if the disk is sound and the other members of its groups run, move {shown} away and \
                 start again: they have all that was acknowledged and bring it back",
                error.context
            ),
        ),
        _ => error,
    }
}
