//! The durable form of a state machine: one redb file, written by checkpoints, never by commands.
//!
//! The file holds the rows and, in the same transaction, up to which log entry they are applied. What
//! is newer lives in the overlay and in the Raft log, which is kept until a checkpoint has it.

use super::overlay::{Base, Changes, Overlay, ROWS, View};
use super::types::{LogId, Membership};
use lumeofs_base::disk::Disk as _;
use lumeofs_base::disk::os::OsDisk;
use lumeofs_base::limits::{CHECKPOINT_BYTES_MAX, CHECKPOINT_RECORDS_MAX};
use lumeofs_base::{Code, FsError, FsResult};
use parking_lot::{Mutex, MutexGuard, RwLock};
use redb::{Database, Durability, ReadableDatabase as _, TableDefinition};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::timeout;

/// Facts about the rows: format version and [`Position`].
const FACTS: TableDefinition<'static, &'static str, &'static [u8]> = TableDefinition::new("facts");
const POSITION: &str = "position";
const FORMAT: &str = "format";
/// Extension of files that a snapshot is received into, before their number.
const INCOMING: &str = "incoming-";
/// Version of the rows' file.
const FORMAT_VERSION: u8 = 1;
/// Free space that the smallest checkpoint may take.
const CHECKPOINT_ROOM_BYTES: u64 = 8 << 20;
/// A snapshot that is being received is synced when so much of it is not: its end, which keeps the member from
/// answering, is quick then.
const INCOMING_UNSYNCED_BYTES_MAX: usize = 64 << 20;
/// redb's page cache of one store.
const CACHE_BYTES: usize = 64 << 20;

/// What to do about a damaged store. A copy of another master's is as good: it holds applied entries
/// only, and the own log goes on from wherever it ends.
const WAY_OUT: &str = "stop another master, copy its file of this name here, and start both";

/// Up to where a state machine has applied the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Position {
    /// The last applied entry.
    pub(super) applied: Option<LogId>,
    /// The last applied membership.
    pub(super) membership: Membership,
}

/// The rows with their position. Behind one lock: appliers write, queries read.
pub(crate) struct Current {
    pub(super) overlay: Overlay,
    pub(super) position: Position,
    /// Position of the last checkpoint.
    pub(super) saved: Position,
}

/// A state machine's storage.
pub(crate) struct Store {
    path: PathBuf,
    /// Held by a checkpoint or an installation: they exclude each other.
    database: Mutex<Database>,
    current: RwLock<Current>,
    /// Signalled when the active changes are over their limit.
    pub(super) full: Notify,
    /// Signalled after each checkpoint and installation, and when they have failed.
    pub(super) checkpointed: Notify,
    /// Why nothing will be applied or installed any more.
    failure: OnceLock<FsError>,
    limits: Limits,
    /// Numbers the files of received snapshots.
    received: AtomicU64,
}

/// When a checkpoint is due.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) records_max: usize,
    pub(crate) bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            records_max: CHECKPOINT_RECORDS_MAX,
            bytes_max: CHECKPOINT_BYTES_MAX,
        }
    }
}

impl Store {
    /// Opens or creates the store.
    pub(crate) fn open(path: &Path, limits: Limits) -> FsResult<Self> {
        remove_leftovers(path)?;
        let explain = |error: FsError| match error.code {
            Code::Io => FsError::new(error.code, format!("{}; {}", error.context, WAY_OUT)),
            _ => error,
        };
        let failed = |error| explain(failed(path, error));
        let database = whole(path).map_err(failed)?;
        let position = read_position(&database).map_err(failed)?;
        let overlay = Overlay::new(Base::open(&database).map_err(failed)?);
        let current = Current {
            overlay,
            saved: position.clone(),
            position,
        };
        Ok(Self {
            path: path.to_owned(),
            database: Mutex::new(database),
            current: RwLock::new(current),
            full: Notify::new(),
            checkpointed: Notify::new(),
            failure: OnceLock::new(),
            limits,
            received: AtomicU64::new(0),
        })
    }

    /// Its file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Answers from applied state. Must be quick: it keeps the next entry from being applied.
    pub(crate) fn read<T>(&self, answer: impl FnOnce(&Overlay) -> T) -> T {
        answer(&self.current.read().overlay)
    }

    /// Answers from applied state, with the log index at which the answer is true.
    pub(crate) fn read_at<T>(&self, answer: impl FnOnce(&Overlay) -> T) -> (u64, T) {
        let current = self.current.read();
        let index = current.position.applied.map_or(0, |id| id.index);
        (index, answer(&current.overlay))
    }

    /// Up to where the log is applied.
    pub(super) fn applied(&self) -> Option<LogId> {
        self.current.read().position.applied
    }

    /// Position of the applied state.
    pub(super) fn position(&self) -> Position {
        self.current.read().position.clone()
    }

    /// The last checkpoint: what a crash would leave, readable as long as it is held.
    pub(super) fn saved(&self) -> (Position, Arc<Base>) {
        let current = self.current.read();
        (current.saved.clone(), current.overlay.base())
    }

    /// Everything that is applied now, and perhaps more, as a checkpoint of it, with its log index. Asks for one and
    /// waits, but not longer than `limit`.
    pub(crate) async fn view(&self, limit: Duration) -> FsResult<(u64, View)> {
        let (position, base) = self.settled(limit).await?;
        let index = position.applied.map_or(0, |id| id.index);
        Ok((index, View(base)))
    }

    /// The same, with all that is known of where it is.
    pub(super) async fn settled(&self, limit: Duration) -> FsResult<(Position, Arc<Base>)> {
        let Some(upto) = self.applied() else {
            return Err(FsError::new(Code::Unavailable, "nothing is applied yet"));
        };
        let saved = async {
            while !self.has_saved(upto)? {
                let written = self.checkpointed.notified();
                self.full.notify_one();
                // One that was under way may end without what is wanted, and a full disk has none.
                let _ = timeout(Duration::from_millis(200), written).await;
            }
            Ok(())
        };
        let late = |_| {
            let text = format!("no checkpoint within {limit:?}: is the master's disk full?");
            Err(FsError::new(Code::Timeout, text))
        };
        timeout(limit, saved).await.unwrap_or_else(late)?;
        Ok(self.saved())
    }

    /// Applies entries: `change` may write rows and must move the position.
    pub(super) fn apply<T>(&self, change: impl FnOnce(&mut Current) -> T) -> T {
        let mut current = self.current.write();
        let done = change(&mut current);
        if self.is_over(&current, 1) {
            self.full.notify_one();
        }
        done
    }

    /// Whether the next entry must wait: the active changes are over their limit while the frozen
    /// ones are still being written, or nobody started to write them for long.
    pub(super) fn must_wait(&self) -> Wait {
        let current = self.current.read();
        if self.is_over(&current, 1) && current.overlay.is_frozen() {
            Wait::ForCheckpoint
        } else if self.is_over(&current, 4) {
            Wait::NeedsCheckpoint
        } else {
            Wait::No
        }
    }

    /// Rows that no checkpoint was begun for, and their bytes.
    pub(super) fn unsaved(&self) -> (usize, usize) {
        self.current.read().overlay.active_size()
    }

    /// Whether a checkpoint is due.
    #[cfg(test)]
    pub(super) fn is_full(&self) -> bool {
        self.is_over(&self.current.read(), 1)
    }

    /// Whether there is anything that a checkpoint would write.
    pub(super) fn is_dirty(&self) -> bool {
        let current = self.current.read();
        current.position != current.saved
    }

    fn is_over(&self, current: &Current, times: usize) -> bool {
        let (records, bytes) = current.overlay.active_size();
        records >= self.limits.records_max * times || bytes >= self.limits.bytes_max * times
    }

    /// Whether a checkpoint would fit on the disk. redb cannot go on after an ENOSPC, so it is not
    /// risked; the log keeps what was not written.
    pub(super) fn has_room(&self) -> bool {
        let (_, bytes) = self.current.read().overlay.active_size();
        // Pages are copied before they are changed, and a small change may copy many.
        let needed = bytes as u64 * 4 + CHECKPOINT_ROOM_BYTES;
        let space = OsDisk::new(directory(&self.path)).space(Path::new(""));
        // Without an answer the attempt itself shows what is wrong.
        space.map_or(true, |(_, free)| free >= needed)
    }

    /// As [`Store::checkpoint`], unless the disk is full; says whether it was written.
    pub(super) fn checkpoint_if_room(&self) -> FsResult<bool> {
        if !self.has_room() {
            return Ok(false);
        }
        self.checkpoint().map(|_| true)
    }

    /// Writes everything applied so far to the file. Blocks; applying goes on meanwhile.
    pub(super) fn checkpoint(&self) -> FsResult<Position> {
        let database = self.database.lock();
        let (changes, position) = {
            let mut current = self.current.write();
            if current.position == current.saved {
                return Ok(current.saved.clone());
            }
            (current.overlay.freeze(), current.position.clone())
        };
        // On an error the changes stay frozen and the process is about to stop: the group treats a
        // failed checkpoint as fatal.
        let base =
            write(&database, &changes, &position).map_err(|error| failed(&self.path, error))?;
        let dropped = {
            let mut current = self.current.write();
            current.saved = position.clone();
            current.overlay.thaw(base)
        };
        drop((changes, dropped));
        self.checkpointed.notify_waiters();
        Ok(position)
    }

    /// Whether a crash would leave the entries up to `upto` applied. Fails if that cannot come any more.
    pub(super) fn has_saved(&self, upto: LogId) -> FsResult<bool> {
        if self.current.read().saved.applied.map(|id| id.index) >= Some(upto.index) {
            return Ok(true);
        }
        self.failure
            .get()
            .map_or(Ok(false), |error| Err(error.clone()))
    }

    /// Applying or installing failed, and nobody will do it again.
    pub(super) fn fail(&self, error: &FsError) {
        // The first cause is the one to tell.
        let _ = self.failure.set(error.clone());
        self.checkpointed.notify_waiters();
    }

    /// Replaces everything by a finished snapshot file.
    pub(super) fn install(&self, snapshot: Incoming, position: &Position) -> FsResult<()> {
        let mut database: MutexGuard<'_, Database> = self.database.lock();
        #[cfg(test)]
        cut::pass(&self.path, cut::Step::Received)?;
        let new = snapshot.finish(position, &self.path)?;
        #[cfg(test)]
        cut::pass(&self.path, cut::Step::InPlace)?;
        let base = Base::open(&new).map_err(|error| failed(&self.path, error))?;
        let old = {
            let mut current = self.current.write();
            current.position = position.clone();
            current.saved = position.clone();
            std::mem::replace(&mut current.overlay, Overlay::new(base))
        };
        drop(old);
        *database = new;
        self.checkpointed.notify_waiters();
        Ok(())
    }

    /// Starts a file that a snapshot is received into.
    pub(super) fn receive(&self) -> FsResult<Incoming> {
        let number = self.received.fetch_add(1, Ordering::Relaxed);
        Incoming::create(&self.path.with_extension(format!("{INCOMING}{number}")))
    }
}

/// Answer of [`Store::must_wait`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    No,
    ForCheckpoint,
    NeedsCheckpoint,
}

/// A snapshot that is being received: a redb file beside the real one, removed unless it is installed.
pub(crate) struct Incoming {
    path: PathBuf,
    database: Option<Database>,
    /// Bytes of rows that are not on disk yet.
    unsynced_bytes: usize,
}

impl Incoming {
    pub(super) fn create(path: &Path) -> FsResult<Self> {
        let database = create(path).map_err(|error| failed(path, error))?;
        Ok(Self {
            path: path.to_owned(),
            database: Some(database),
            unsynced_bytes: 0,
        })
    }

    /// Adds rows.
    pub(super) fn add<'a>(
        &mut self,
        rows: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    ) -> FsResult<()> {
        let mut bytes = self.unsynced_bytes;
        let database = self.database.as_ref();
        let database = database.expect("only finish and drop take it");
        let insert = || -> Result<(), redb::Error> {
            let mut tx = database.begin_write()?;
            {
                let mut table = tx.open_table(ROWS)?;
                for (key, value) in rows {
                    bytes += key.len() + value.len();
                    table.insert(key, value)?;
                }
            }
            if bytes < INCOMING_UNSYNCED_BYTES_MAX {
                tx.set_durability(Durability::None)?;
            } else {
                bytes = 0;
            }
            Ok(tx.commit()?)
        };
        insert().map_err(|error| failed(&self.path, error))?;
        self.unsynced_bytes = bytes;
        Ok(())
    }

    /// Brings all rows to the disk.
    pub(super) fn sync(&mut self) -> FsResult<()> {
        let database = self.database.as_ref();
        let database = database.expect("only finish and drop take it");
        let commit = || -> Result<(), redb::Error> { Ok(database.begin_write()?.commit()?) };
        commit().map_err(|error| failed(&self.path, error))?;
        self.unsynced_bytes = 0;
        Ok(())
    }

    /// Makes the file durable and puts it in the place of `target`.
    pub(super) fn finish(mut self, position: &Position, target: &Path) -> FsResult<Database> {
        let database = self.database.take().expect("only finish and drop take it");
        write(&database, &Changes::new(), position).map_err(|error| failed(&self.path, error))?;
        let failed = |error: std::io::Error| FsError::from_disk(&error, "install a snapshot");
        std::fs::rename(&self.path, target).map_err(failed)?;
        File::open(directory(target))
            .and_then(|dir| dir.sync_all())
            .map_err(failed)?;
        Ok(database)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if self.database.take().is_some() {
            // What stays is removed at the next start.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Opens the store and checks every page of it: redb itself takes pages as they come, and one that is
/// damaged would turn into wrong metadata or a panic at any later time.
fn whole(path: &Path) -> Result<Database, redb::Error> {
    // redb panics on some damage; that must end the process, but can say what to do.
    let usual = Arc::new(std::panic::take_hook());
    let (shown, inner) = (path.display().to_string(), usual.clone());
    let checks = std::thread::current().id();
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().id() != checks {
            return inner(panic);
        }
        tracing::error!("metadata store {shown} is damaged; {WAY_OUT}");
        std::process::exit(1);
    }));
    let checked = create(path).and_then(|mut database| match database.check_integrity()? {
        true => Ok(database),
        // It went back to an older commit: the log says whether it still leads on from there.
        false => {
            tracing::warn!(path = %path.display(), "metadata store was damaged and repaired");
            Ok(database)
        }
    });
    drop(std::panic::take_hook());
    std::panic::set_hook(Box::new(move |panic| usual(panic)));
    checked
}

fn create(path: &Path) -> Result<Database, redb::Error> {
    let database = Database::builder()
        .set_cache_size(CACHE_BYTES)
        .create(path)?;
    let is_new = match database.begin_read()?.open_table(FACTS) {
        Err(redb::TableError::TableDoesNotExist(_)) => true,
        Err(error) => return Err(error.into()),
        Ok(facts) => {
            let found = facts.get(FORMAT)?.map(|version| version.value().to_vec());
            if found.as_deref() != Some(&[FORMAT_VERSION]) {
                return Err(redb::Error::Corrupted(format!(
                    "format {found:?}, this build reads {FORMAT_VERSION}"
                )));
            }
            false
        }
    };
    if is_new {
        let mut tx = database.begin_write()?;
        tx.set_quick_repair(true);
        tx.open_table(ROWS)?;
        tx.open_table(FACTS)?
            .insert(FORMAT, &[FORMAT_VERSION][..])?;
        tx.commit()?;
    }
    Ok(database)
}

fn read_position(database: &Database) -> Result<Position, redb::Error> {
    let facts = database.begin_read()?.open_table(FACTS)?;
    match facts.get(POSITION)? {
        None => Ok(Position::default()),
        Some(bytes) => postcard::from_bytes(bytes.value())
            .map_err(|error| redb::Error::Corrupted(format!("position: {error}"))),
    }
}

fn write(database: &Database, changes: &Changes, position: &Position) -> Result<Base, redb::Error> {
    let mut tx = database.begin_write()?;
    tx.set_durability(Durability::Immediate)?;
    tx.set_quick_repair(true);
    {
        let mut rows = tx.open_table(ROWS)?;
        for (key, value) in changes {
            match value {
                Some(value) => drop(rows.insert(&key[..], &value[..])?),
                None => drop(rows.remove(&key[..])?),
            }
        }
        let bytes = postcard::to_stdvec(position).expect("a position is plain data");
        tx.open_table(FACTS)?.insert(POSITION, &bytes[..])?;
    }
    tx.commit()?;
    Base::open(database)
}

/// Removes snapshots whose transfer broke off.
fn remove_leftovers(path: &Path) -> FsResult<()> {
    let remove = || -> std::io::Result<()> {
        let stem = path.with_extension(INCOMING);
        let prefix = stem
            .file_name()
            .expect("a store has a name")
            .as_encoded_bytes();
        for entry in std::fs::read_dir(directory(path))? {
            let entry = entry?;
            if entry.file_name().as_encoded_bytes().starts_with(prefix) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    };
    remove().map_err(|error| FsError::from_disk(&error, "remove unfinished snapshots"))
}

fn directory(path: &Path) -> &Path {
    path.parent().expect("a store lies in a directory")
}

fn failed(path: &Path, error: redb::Error) -> FsError {
    let what = format!("metadata store {}", path.display());
    match error {
        redb::Error::Io(error) => FsError::from_disk(&error, what),
        error => FsError::new(Code::Io, format!("{what}: {error}")),
    }
}

/// Where tests stop an installation, as a crash would.
#[cfg(test)]
pub(crate) mod cut {
    use super::{Code, FsError, FsResult, Path};
    use parking_lot::Mutex;
    use std::collections::BTreeMap;
    use std::path::PathBuf;
    use std::time::Duration;

    /// A moment of an installation.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Step {
        /// All rows are here, in a file of their own.
        Received,
        /// The file is the store's.
        InPlace,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum State {
        Awaited(Step),
        Reached,
        Released,
    }

    static CUTS: Mutex<BTreeMap<PathBuf, State>> = Mutex::new(BTreeMap::new());

    /// The next installation of this store stops here.
    pub(crate) fn await_step(store: &Path, step: Step) {
        CUTS.lock().insert(store.to_owned(), State::Awaited(step));
    }

    /// Whether an installation stands there.
    pub(crate) fn is_reached(store: &Path) -> bool {
        CUTS.lock().get(store) == Some(&State::Reached)
    }

    /// Lets it fail.
    pub(crate) fn release(store: &Path) {
        CUTS.lock().insert(store.to_owned(), State::Released);
    }

    pub(super) fn pass(store: &Path, step: Step) -> FsResult<()> {
        if CUTS.lock().get(store) != Some(&State::Awaited(step)) {
            return Ok(());
        }
        CUTS.lock().insert(store.to_owned(), State::Reached);
        while CUTS.lock().get(store) != Some(&State::Released) {
            std::thread::sleep(Duration::from_millis(5));
        }
        Err(FsError::new(Code::Io, "the test ended this master"))
    }
}
