//! The log as its users see it: callers, the two threads behind them, and how they wait.

use crate::core::{Core, Located, Payload, Placed};
use crate::files::{LogDir, LogFile, disk_error};
use crate::format::{BLOCK, Generation, RECORD_HEADER_BYTES, RecordHeader};
use crate::keeper::Keeper;
use crate::state::{Callback, Shared, State};
use crate::stats::WalStats;
use crate::{Lsn, WalConfig, recover, writer};
use lumeofs_base::disk::Disk;
use lumeofs_base::limits::{BLOCK_SIZE, WAL_RECORD_BYTES_MAX};
use lumeofs_base::{AlignedBuf, Code, FsError, FsResult};
use parking_lot::{Condvar, Mutex};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

/// Largest segment: distances inside one fit into 32 bits.
const SEGMENT_BYTES_MAX: u64 = 2 << 30;
/// Smallest segment: a header and a record of more than one block.
const SEGMENT_BYTES_MIN: u64 = 4 * BLOCK;

/// An open log. Dropping it writes what is buffered and ends its threads.
///
/// Errors: [`Code::Io`] once the disk has failed, with the first cause, from every later call;
/// [`Code::NoSpace`] from [`Wal::append`] and [`Wal::truncate_after`] while no segment can be
/// prepared, which harms nothing and ends when there is space; [`Code::Invalid`] for a record that
/// is too long or a position at which none is.
pub struct Wal {
    shared: Arc<Shared>,
    /// Held by the one caller that may truncate the end.
    truncating: Mutex<()>,
    threads: Vec<JoinHandle<()>>,
}

impl Wal {
    /// Opens the log in `dir`, creating it if there is none, and calls `visit` with each record in
    /// order. The rest of a write that a crash tore is cut off. Records that were lost before others
    /// that are intact are an error that names file and offset.
    ///
    /// Records below an earlier [`Wal::truncate_before`] may be visited again.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        config: WalConfig,
        visit: &mut dyn FnMut(Lsn, &[u8]) -> FsResult<()>,
    ) -> FsResult<Wal> {
        let config = checked(config)?;
        let opened = recover::open(&disk, dir, &config, visit)
            .map_err(|error| error.during(format_args!("open the log in {}", dir.display())))?;
        let shared = Arc::new(Shared {
            dir: LogDir {
                disk,
                dir: dir.to_path_buf(),
            },
            state: Mutex::new(State::new(Core::new(config, opened.recovered))),
            stats: WalStats::default(),
            to_write: Condvar::new(),
            to_keep: Condvar::new(),
            written: Condvar::new(),
            room: Condvar::new(),
        });
        let keeper = Keeper {
            floor: opened.floor,
            floor_file: opened.floor_file,
            next_spare: opened.next_spare,
        };
        let mut wal = Wal {
            shared,
            truncating: Mutex::new(()),
            threads: Vec::new(),
        };
        wal.spawn("wal-writer", writer::run)?;
        wal.spawn("wal-keeper", |shared| keeper.run(shared))?;
        Ok(wal)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce(&Shared) + Send + 'static) -> FsResult<()> {
        let shared = self.shared.clone();
        let thread = std::thread::Builder::new()
            .name(name.into())
            .spawn(move || run(&shared));
        let thread = thread.map_err(|error| FsError::new(Code::Io, format!("{name}: {error}")))?;
        self.threads.push(thread);
        Ok(())
    }

    /// Buffers one record, the concatenation of `parts`, behind all earlier ones, and returns its
    /// position. Waits only while too much is buffered or the next segment is being prepared.
    pub fn append(&self, parts: &[&[u8]]) -> FsResult<Lsn> {
        let payload = Payload::new(parts);
        let mut state = self.shared.state.lock();
        let longest = state.core.payload_bytes_max();
        if payload.len() > longest {
            let context = format!("a record of {} bytes; the most is {longest}", payload.len());
            return Err(FsError::new(Code::Invalid, context));
        }
        let full_before = state.full.0;
        let mut asked = false;
        loop {
            state.check()?;
            if !state.core.is_truncating() {
                match state.core.place(&payload) {
                    Placed::At(lsn) => {
                        self.wake_threads(&mut state);
                        return Ok(lsn);
                    }
                    Placed::TooMuchPending => {
                        self.shared.to_write.notify_one();
                    }
                    Placed::NoRoom if asked && state.full.0 > full_before => {
                        return Err(state.full.1.clone().during("append to the log"));
                    }
                    Placed::NoRoom => {
                        if !asked {
                            state.core.resume_filling();
                            asked = true;
                        }
                        self.shared.to_keep.notify_one();
                    }
                }
            }
            self.shared.room.wait(&mut state);
        }
    }

    /// After a record was placed: it may have made enough for the writer, or used up the lead that
    /// the keeper is to hold. Both look for themselves; waking a thread that is busy costs nothing.
    fn wake_threads(&self, state: &mut State) {
        if state.core.has_eager_batch() {
            self.shared.to_write.notify_one();
        }
    }

    /// Returns when the record at `lsn` and all before it are durable.
    pub fn sync(&self, lsn: Lsn) -> FsResult<()> {
        let mut state = self.shared.state.lock();
        state.check_known(lsn)?;
        if lsn > state.core.durable() {
            state.core.want(lsn);
            self.shared.to_write.notify_one();
        }
        loop {
            state.check()?;
            // A truncation may shorten the log while this waits; it first writes everything.
            if lsn <= state.core.durable() || lsn > state.core.last() {
                return Ok(());
            }
            self.shared.written.wait(&mut state);
        }
    }

    /// As [`Wal::sync`], but calls `done` on the writer thread, also if the answer is known at once.
    /// It must be quick, and must not wait for this log.
    pub fn on_durable(&self, lsn: Lsn, done: Callback) {
        self.shared.state.lock().call_when_durable(lsn, done);
        self.shared.to_write.notify_one();
    }

    /// The last record that is durable.
    pub fn durable(&self) -> Lsn {
        self.shared.state.lock().core.durable()
    }

    /// The last record, durable or buffered.
    pub fn last(&self) -> Lsn {
        self.shared.state.lock().core.last()
    }

    /// Starts writing what is buffered; nobody waits for it.
    pub fn request_sync(&self) {
        let mut state = self.shared.state.lock();
        let last = state.core.last();
        state.core.want(last);
        self.shared.to_write.notify_one();
    }

    /// The payload of the record at `lsn`, which may still be buffered. [`Code::NotFound`] if it was
    /// truncated or there never was one, [`Code::Io`] if it is damaged.
    pub fn read(&self, lsn: Lsn) -> FsResult<Vec<u8>> {
        let located = self.shared.state.lock().core.locate(lsn);
        let read = match located {
            Located::Buffered(payload) => return Ok(payload),
            Located::Missing => return Err(no_record(lsn)),
            Located::OnDisk {
                file,
                offset,
                generation,
            } => read_record(&file, offset, generation, lsn),
        };
        read.map_err(|error| {
            // Its segment may have been given up, and used again, during the read.
            let gone = matches!(self.shared.state.lock().core.locate(lsn), Located::Missing);
            if gone { no_record(lsn) } else { error }
        })
    }

    /// Records below `lsn` may go: segments that hold only such are used again, in the background.
    pub fn truncate_before(&self, lsn: Lsn) -> FsResult<()> {
        let mut state = self.shared.state.lock();
        state.check()?;
        while state.core.is_truncating() {
            self.shared.room.wait(&mut state);
            state.check()?;
        }
        if state.core.truncate_before(lsn) {
            self.shared.to_keep.notify_one();
        }
        Ok(())
    }

    /// Drops the records above `lsn`, durably; `Lsn(0)` drops everything. There must be a record at
    /// `lsn`, unless it lies before the log. Costs a segment file of which little may be used.
    pub fn truncate_after(&self, lsn: Lsn) -> FsResult<()> {
        let _turn = self.truncating.lock();
        let mut state = self.shared.state.lock();
        state.check_known(lsn)?;
        if lsn == state.core.last() {
            return Ok(());
        }
        if state.core.is_in_log(lsn) {
            drop(state);
            self.read(lsn).map_err(|error| match error.code {
                Code::NotFound => FsError {
                    code: Code::Invalid,
                    ..error
                },
                _ => error,
            })?;
            state = self.shared.state.lock();
        }
        self.run_truncation(&mut state, lsn)
    }

    fn run_truncation(
        &self,
        state: &mut parking_lot::MutexGuard<'_, State>,
        lsn: Lsn,
    ) -> FsResult<()> {
        let full_before = state.full.0;
        state.core.truncate_after(lsn);
        state.core.resume_filling();
        self.shared.to_write.notify_one();
        while state.core.is_truncating() {
            state.check()?;
            if state.full.0 > full_before && state.core.cancel_truncation() {
                self.shared.written.notify_all();
                self.shared.room.notify_all();
                return Err(state.full.1.clone().during("truncate the log"));
            }
            self.shared.written.wait(state);
        }
        Ok(())
    }

    /// What the log has written since it was opened.
    pub fn stats(&self) -> &WalStats {
        &self.shared.stats
    }

    /// Bytes of the log from its first segment on, buffered ones included.
    pub fn size_bytes(&self) -> u64 {
        self.shared.state.lock().core.size_bytes()
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        self.shared.state.lock().closing = true;
        self.shared.to_write.notify_all();
        self.shared.to_keep.notify_all();
        for thread in self.threads.drain(..) {
            // A callback may have held the last reference; its thread ends when it returns.
            if thread.thread().id() != std::thread::current().id() {
                // A panic of the thread was reported when it happened.
                drop(thread.join());
            }
        }
    }
}

fn checked(config: WalConfig) -> FsResult<WalConfig> {
    let segment_bytes = config.segment_bytes / BLOCK * BLOCK;
    if !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&segment_bytes) {
        let context = format!(
            "segments of {} bytes; {SEGMENT_BYTES_MIN} to {SEGMENT_BYTES_MAX} are possible",
            config.segment_bytes
        );
        return Err(FsError::new(Code::Invalid, context));
    }
    let batch_bytes_max = (config.batch_bytes_max / BLOCK_SIZE * BLOCK_SIZE).max(BLOCK_SIZE);
    Ok(WalConfig {
        segment_bytes,
        batch_bytes_max,
        ..config
    })
}

fn no_record(lsn: Lsn) -> FsError {
    FsError::new(Code::NotFound, format!("the log has no record {lsn}"))
}

/// Reads from the disk: first the blocks that the header lies in, then, if the record is longer, all.
fn read_record(file: &LogFile, offset: u64, generation: Generation, lsn: Lsn) -> FsResult<Vec<u8>> {
    let path = file.path();
    let start = offset / BLOCK * BLOCK;
    let within = (offset - start) as usize;
    let read = |record_bytes: usize| {
        let mut buf = AlignedBuf::zeroed((within + record_bytes).next_multiple_of(BLOCK_SIZE));
        let done = file.file.read_exact_at(&mut buf, start);
        done.map(|()| buf).map_err(disk_error("read", &path))
    };
    let mut buf = read(RECORD_HEADER_BYTES)?;
    let header = RecordHeader::decode(&buf[within..]);
    if header.position != lsn.0 || header.payload_bytes as usize > WAL_RECORD_BYTES_MAX {
        return Err(no_record(lsn));
    }
    let len = RECORD_HEADER_BYTES + header.payload_bytes as usize;
    if within + len > buf.len() {
        buf = read(len)?;
    }
    let record = &buf[within..within + len];
    if !RecordHeader::verify(record, generation) {
        return Err(crate::format::damaged(
            &path,
            offset,
            "wrong record checksum",
        ));
    }
    Ok(record[RECORD_HEADER_BYTES..].to_vec())
}
