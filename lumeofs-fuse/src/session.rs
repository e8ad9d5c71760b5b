//! From a configuration to a mount that answers, and to its end.

use crate::adapter::Adapter;
use crate::atime::{Atime, AtimeMode, AtimeRule};
use crate::backend::Backend;
use crate::core::{Core, number};
use crate::dispatch::Dispatcher;
use crate::ending::{Verdict, Watch};
use crate::handshake::Handshake;
use crate::kernel::{self, Notifier};
use crate::metrics::Metrics;
use crate::mountpoint;
use crate::options::MountOptions;
use crate::overflow::Limits;
use crate::record::Record;
use crate::remount;
use crate::stats::Stats;
use anyhow::{Context as _, Result, bail};
use fuser::{Config, MountOption, Session, SessionACL, SessionUnmounter};
use lumeofs_base::limits::{LEAVE_PATIENCE, MOUNT_END_TIMEOUT, MOUNT_WATCH_INTERVAL};
use lumeofs_base::{Code, FileKind, FsError, InodeId, RequestId};
use lumeofs_client::{Client, ClientOptions, Context, OnOutage};
use lumeofs_meta::op::Caller;
use lumeofs_proto::auth::Credentials;
use parking_lot::Mutex;
use rustix::mount::{MountFlags, mount_remount};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

/// Threads that read requests: at least and at most. A waiting operation keeps one, so there are more than
/// processors; beyond them the overflow pool takes over.
const THREADS: (usize, usize) = (8, 16);

/// What to mount where.
#[derive(Clone, Debug)]
pub struct MountConfig {
    /// What `/proc/mounts` shows as the source. mount(8) compares it with fstab's to know what is mounted.
    pub source: String,
    /// `host:port` of masters; any one that answers is enough.
    pub masters: Vec<String>,
    /// Cluster and secret.
    pub credentials: Credentials,
    /// The directory of the cluster's filesystem to show, `/` for all of it.
    pub subdir: Vec<u8>,
    /// Where.
    pub mountpoint: PathBuf,
    /// How. Its `secret_file`, `log` and `on_outage` are for whoever fills the other fields.
    pub options: MountOptions,
    /// The same as text, with what was asked for in other ways; a remount compares it.
    pub options_text: String,
    /// What operations do when no quorum answers.
    pub on_outage: OnOutage,
}

/// A mount that answers. Dropping it leaves it mounted as long as the process lives.
pub struct Mounted {
    backend: Arc<dyn Backend>,
    /// How the session ended.
    session: Receiver<io::Result<()>>,
    watch: Watch,
    handle: MountHandle,
    stats: Arc<Stats>,
    /// For those who remount.
    record: Option<Record>,
}

/// Takes a mount away, from any thread.
#[derive(Clone)]
pub struct MountHandle {
    mountpoint: PathBuf,
    unmounter: Arc<Mutex<SessionUnmounter>>,
}

impl MountHandle {
    /// Where the mount is, without symlinks.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Unmounts. Fails with EBUSY while a file or directory in it is in use.
    pub fn unmount(&self) -> io::Result<()> {
        self.take_away(false)
    }

    /// Takes the mount out of the tree at once. Who has something of it open keeps it until they close
    /// it; only then [`Mounted::wait`] returns.
    pub fn detach(&self) -> io::Result<()> {
        self.take_away(true)
    }

    fn take_away(&self, detach: bool) -> io::Result<()> {
        match mountpoint::unmount(&self.mountpoint, detach) {
            // An ordinary user needs fusermount3, which fuser knows how to call.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                self.unmounter.lock().unmount()
            }
            result => result,
        }
    }
}

impl Mounted {
    /// For taking it away.
    pub fn handle(&self) -> MountHandle {
        self.handle.clone()
    }

    /// Its counters.
    pub fn stats(&self) -> Arc<Stats> {
        self.stats.clone()
    }

    /// What it tells Prometheus.
    pub fn metrics(&self) -> Metrics {
        Metrics {
            stats: self.stats.clone(),
            backend: self.backend.clone(),
        }
    }

    /// Waits until it is unmounted, by whomever, has what was written sent, and closes the session with the cluster.
    /// Returns within seconds after its end also if the cluster does not answer; operations may then still be under way.
    ///
    /// # Errors
    /// Something that was written is lost ([`Client::close`]), or the FUSE session failed.
    pub fn wait(mut self) -> Result<()> {
        let ended = self.ended();
        if let Some(record) = self.record.take() {
            record.remove();
        }
        let closed = self.backend.close();
        // With the client closed, what still waits for servers fails soon.
        let ended = ended.or_else(|| match self.session.recv_timeout(MOUNT_END_TIMEOUT) {
            Ok(result) => Some(result),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Err(panicked())),
        });
        let ended = match ended {
            // What the kernel says when the connection was taken down under a waiting thread: `umount -f`, or
            // the end of an unmount that another thread has already answered.
            Some(Err(error)) if error.raw_os_error() == Some(libc::ECONNABORTED) => Ok(()),
            Some(result) => result.context("the FUSE session failed"),
            None => {
                tracing::warn!("somebody still uses the mount: it ends with this process");
                Ok(())
            }
        };
        ended.and(closed.context("the mount has ended"))
    }

    /// Waits for the end; `None` if it must be forced.
    fn ended(&mut self) -> Option<io::Result<()>> {
        loop {
            match self.session.recv_timeout(MOUNT_WATCH_INTERVAL) {
                Ok(result) => return Some(result),
                Err(RecvTimeoutError::Disconnected) => return Some(Err(panicked())),
                Err(RecvTimeoutError::Timeout) => {}
            }
            match self.watch.look(&*self.backend) {
                Verdict::GoOn => {}
                Verdict::Over => return None,
                Verdict::GiveUp => {
                    tracing::warn!(
                        "the mount was taken out of the tree and the cluster has not answered for {} s: \
                         ending it although it is in use",
                        LEAVE_PATIENCE.as_secs()
                    );
                    return None;
                }
            }
        }
    }
}

/// Mounts, calls `ready` when the mount answers, and returns when it is unmounted. SIGINT and SIGTERM are the
/// caller's matter: see [`start`] for a mount with a handle.
pub fn mount(config: MountConfig, ready: impl FnOnce()) -> Result<()> {
    let mounted = start(config)?;
    ready();
    mounted.wait()
}

/// Connects and mounts; returns when the mount answers.
///
/// # Errors
/// Each names the cause and the way out: mount point missing, not a directory or busy, no `/dev/fuse`, no
/// master that answers, wrong secret, no such `subdir`, no permission to mount.
pub fn start(config: MountConfig) -> Result<Mounted> {
    let mountpoint = mountpoint::check(&config.mountpoint)?;
    mountpoint::check_device()?;
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let description = format!(
        "mount {} on {}, pid {}",
        mountpoint.display(),
        host.trim(),
        std::process::id()
    );
    let client = Client::connect(
        &config.masters,
        config.credentials.clone(),
        ClientOptions {
            on_outage: config.on_outage,
            description,
            cache_bytes: config.options.cache_bytes,
            // An NFS server tells its clients that what they have made is on stable storage.
            dirsync: config.options.sync || config.options.dirsync || config.options.export,
        },
    )
    .map_err(|error| explain_connect(&config.masters, error))?;
    let backend: Arc<dyn Backend> = client;
    let mounted = resolve(&*backend, &config.subdir).and_then(|root| {
        let source = &config.source;
        start_with(backend.clone(), root, source, mountpoint, &config.options)
    });
    match mounted {
        Ok(mut mounted) => {
            let device = mounted.watch.device();
            mounted.record = device.and_then(|device| Record::write(device, &config.options_text));
            Ok(mounted)
        }
        Err(error) => {
            // Nothing was written yet.
            backend.close().ok();
            Err(error)
        }
    }
}

/// Mounts the directory `root` of `backend`.
pub(crate) fn start_with(
    backend: Arc<dyn Backend>,
    root: InodeId,
    source: &str,
    mountpoint: PathBuf,
    options: &MountOptions,
) -> Result<Mounted> {
    let threads = std::thread::available_parallelism().map_or(THREADS.0, usize::from) * 4;
    let threads = threads.clamp(THREADS.0, THREADS.1);
    let stats: Arc<Stats> = Arc::default();
    let atime = Arc::new(AtimeMode::new(AtimeRule::of(options)));
    let core = Core::new(backend.clone(), root, atime.clone(), stats.clone());
    let core = Arc::new(core);
    let dispatcher = Dispatcher::new(core, stats.clone(), threads, Limits::default());
    let config = session_config(source, options);
    let mut session = Session::new(Handshake::new(options), &mountpoint, &config)
        .map_err(|error| explain_mount(&mountpoint, &error))?;
    let unmounter = Arc::new(Mutex::new(session.unmount_callable()));
    let handle = MountHandle {
        mountpoint: mountpoint.clone(),
        unmounter,
    };
    let connection = session.as_fd().try_clone_to_owned();
    let connection = connection.context("a descriptor for the FUSE connection")?;
    let requests = connection
        .try_clone()
        .context("a descriptor for requests")?;
    let notifier = connection
        .try_clone()
        .context("a descriptor for notifications")?;
    let notifier = Notifier::new(notifier);
    backend.on_changed(Box::new(move |ino| {
        if let Err(error) = notifier.drop_pages(number(ino, root)) {
            // It does not know the inode any more, or the mount has ended: there are no pages.
            tracing::debug!(%ino, %error, "pages of the kernel");
        }
    }));
    let watch = Watch::new(connection, atime);
    let (ended, end) = channel();
    std::thread::Builder::new()
        .name("fuse-session".to_owned())
        .spawn(move || {
            // Fails only if nobody waits for the end.
            let _ = ended.send(kernel::run(Adapter::new(dispatcher), requests, threads));
            // It takes the mount away when it is dropped.
            drop(session);
        })
        .context("no thread for the FUSE session")?;
    let mut mounted = Mounted {
        backend,
        session: end,
        watch,
        handle,
        stats,
        record: None,
    };
    // The first requests through the kernel: from here on the mount answers, these two also in an outage.
    let asked = fs::metadata(&mountpoint);
    let asked = asked.and_then(|_| Ok(rustix::fs::statvfs(&mountpoint)?));
    if let Err(error) = asked {
        // Nobody can use it yet, so this ends it at once.
        let _ = mounted.handle.detach();
        let _ = mounted.wait();
        bail!(
            "the mount at {} does not answer: {error}",
            mountpoint.display()
        );
    }
    show_atime(&mountpoint, options);
    mounted.watch.mounted_at(&mountpoint);
    mountpoint::raise_read_ahead(&mountpoint);
    tracing::info!(mountpoint = %mountpoint.display(), source, threads, "mounted");
    Ok(mounted)
}

/// Has the kernel show what fuser has no words for. What counts is what was asked for, shown or not: an ordinary user may
/// not do this.
fn show_atime(mountpoint: &Path, options: &MountOptions) {
    if options.atime != Atime::Strict && options.diratime {
        return;
    }
    // Those of the mount alone, not of the filesystem.
    let flags = remount::flags(options) | MountFlags::BIND;
    if let Err(error) = mount_remount(mountpoint, flags, c"") {
        tracing::info!(%error, "the options of access times are in effect, but not shown");
    }
}

fn session_config(source: &str, options: &MountOptions) -> Config {
    let either = |yes: bool, if_yes: MountOption, if_no: MountOption| {
        if yes { if_yes } else { if_no }
    };
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(fs_name(source)),
        // As `Subtype` it would not reach mount(2); so the type is shown as fuse.lumeofs.
        MountOption::CUSTOM("subtype=lumeofs".to_owned()),
        MountOption::DefaultPermissions,
        either(options.read_only, MountOption::RO, MountOption::RW),
        either(options.suid, MountOption::Suid, MountOption::NoSuid),
        either(options.dev, MountOption::Dev, MountOption::NoDev),
        either(options.exec, MountOption::Exec, MountOption::NoExec),
        either(
            options.atime == Atime::No,
            MountOption::NoAtime,
            MountOption::Atime,
        ),
        either(options.sync, MountOption::Sync, MountOption::Async),
    ];
    if options.dirsync {
        config.mount_options.push(MountOption::DirSync);
    }
    config.acl = if options.allow_other {
        SessionACL::All
    } else {
        SessionACL::Owner
    };
    config
}

/// The source for fuser. An ordinary user's goes through fusermount3, which splits its options at commas
/// that have no backslash.
fn fs_name(source: &str) -> String {
    if rustix::process::geteuid().is_root() {
        source.to_owned()
    } else {
        source.replace('\\', "\\\\").replace(',', "\\,")
    }
}

/// The inode of the directory `path`, from the cluster's root.
fn resolve(backend: &dyn Backend, path: &[u8]) -> Result<InodeId> {
    let caller = Caller {
        trusted: true,
        ..Caller::default()
    };
    let cx = Context {
        request: RequestId::next(),
        caller: &caller,
        interrupted: &|| false,
    };
    let mut at = backend
        .getattr(cx, InodeId::ROOT)
        .context("the cluster's root directory")?;
    let shown = String::from_utf8_lossy(path);
    for name in path
        .split(|&byte| byte == b'/')
        .filter(|name| !name.is_empty())
    {
        let part = String::from_utf8_lossy(name);
        at = match backend.lookup(cx, at.ino, name) {
            Ok(attr) => attr,
            Err(error) if error.code == Code::NotFound => bail!(
                "directory {shown} does not exist in the cluster ({part:?} is missing): mount its \
                 root and create it"
            ),
            Err(error) => bail!("directory {shown}: {error}"),
        };
        if at.kind != FileKind::Directory {
            bail!("{shown} cannot be mounted: {part:?} is not a directory");
        }
    }
    Ok(at.ino)
}

fn panicked() -> io::Error {
    io::Error::other("a thread of the FUSE session panicked")
}

/// The client's errors say what to do; the code stays with them, for the exit code.
fn explain_connect(masters: &[String], error: FsError) -> anyhow::Error {
    let masters = masters.join(", ");
    match error.code {
        Code::Refused => anyhow::Error::new(error).context(format!(
            "the masters {masters} refuse this mount: use the secret file of that cluster"
        )),
        _ => anyhow::Error::new(error).context("cannot mount"),
    }
}

fn explain_mount(mountpoint: &Path, error: &io::Error) -> anyhow::Error {
    let shown = mountpoint.display();
    let root = rustix::process::geteuid().is_root();
    if !root
        && matches!(
            error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
        )
    {
        return anyhow::anyhow!(
            "cannot mount at {shown} as an ordinary user: {error}; run as root, or install fusermount3"
        );
    }
    if error.kind() == io::ErrorKind::PermissionDenied
        || root && error.kind() == io::ErrorKind::NotFound
    {
        return anyhow::anyhow!(
            "cannot mount at {shown}: {error}; in a container, mounting needs `--cap-add SYS_ADMIN \
             --device /dev/fuse`"
        );
    }
    anyhow::anyhow!("cannot mount at {shown}: {error}")
}

#[cfg(test)]
mod tests;
