//! The extent files: where chunk data lies, and beside each of them the checksums of its blocks.
//!
//! Places number the blocks of all files laid end to end. Data goes around the page cache. Checksums
//! go through it, so that their memory is the kernel's to bound; they are written with the data but
//! made durable only by a checkpoint, because until then the log has them too.

use super::block_map::{Place, Run};
use lumeofs_base::checksum::crc32c;
use lumeofs_base::disk::{Disk, DiskFile, OpenMode};
use lumeofs_base::limits::BLOCK_SIZE;
use lumeofs_base::{AlignedBuf, Code, FsError, FsResult};
use parking_lot::{Mutex, RwLock};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const BLOCK: u64 = BLOCK_SIZE as u64;
const SUM_BYTES: u64 = 4;

/// A block whose bytes do not match its checksum.
#[derive(Debug)]
pub(super) struct Damaged {
    /// Counted from the start of the run that was read.
    pub(super) index: usize,
    pub(super) file: PathBuf,
    pub(super) offset: u64,
}

/// What [`Extents::verify`] found of a damaged block.
#[derive(Debug)]
pub(super) struct Mismatch {
    pub(super) damaged: Damaged,
    /// The checksum that reads compare with.
    pub(super) stored: u32,
    /// That of the bytes on the disk.
    pub(super) found: u32,
}

/// Why a run could not be read.
#[derive(Debug)]
pub(super) enum ReadError {
    /// The disk failed.
    Disk(FsError),
    Damaged(Damaged),
}

/// All extent files of a store.
pub(super) struct Extents {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    blocks_per_file: u64,
    files: RwLock<Vec<Arc<ExtentFile>>>,
}

struct ExtentFile {
    path: PathBuf,
    /// For writing, past the page cache.
    data: Arc<dyn DiskFile>,
    /// The same file, for reading: what is read again comes from memory.
    cached: Arc<dyn DiskFile>,
    sums: Arc<dyn DiskFile>,
    /// The same file past the page cache, which could hide for long that the disk has forgotten something.
    sums_on_disk: Arc<dyn DiskFile>,
    data_dirty: AtomicBool,
    sums_dirty: AtomicBool,
    /// Held while one of the two is being synced.
    syncing: Mutex<()>,
}

/// The part of a run that lies in one file.
struct Part {
    file: Arc<ExtentFile>,
    /// First block within the file.
    start: u64,
    /// Blocks of the run: first one and count.
    first: usize,
    count: usize,
}

/// Position of the first block that does not match its checksum.
fn first_damaged(blocks: &[u8], sums: &[u32]) -> Option<usize> {
    let mut blocks = blocks.chunks_exact(BLOCK_SIZE).zip(sums);
    blocks.position(|(block, sum)| crc32c(block) != *sum)
}

impl Extents {
    /// Opens the files that are there.
    pub(super) fn open(disk: Arc<dyn Disk>, directory: PathBuf, file_bytes: u64) -> FsResult<Self> {
        let extents = Self {
            disk,
            directory,
            blocks_per_file: file_bytes / BLOCK,
            files: RwLock::default(),
        };
        let context = |error: io::Error| {
            FsError::from_disk(
                &error,
                format!("open extents in {}", extents.directory.display()),
            )
        };
        extents
            .disk
            .create_dir_all(&extents.directory)
            .map_err(context)?;
        if let Some(parent) = extents.directory.parent() {
            extents.disk.sync_dir(parent).map_err(context)?;
        }
        let names = extents.disk.list(&extents.directory).map_err(context)?;
        for index in 0.. {
            let here = [data_name(index), sums_name(index)];
            if !here.iter().all(|name| names.contains(name)) {
                break;
            }
            let file = extents.open_file(index)?;
            if !extents.is_whole(&file).map_err(context)? {
                break;
            }
            extents.files.write().push(Arc::new(file));
        }
        // The process may have died between the last file's making and its syncs.
        if let Some(last) = extents.files.read().last() {
            let synced = last.data.sync().and_then(|()| last.sums.sync());
            synced.map_err(context)?;
            extents.disk.sync_dir(&extents.directory).map_err(context)?;
        }
        Ok(extents)
    }

    /// Whether the store has finished making a file. One that it has not is no part of it: there may
    /// be no space now to finish it, and there is nothing in it.
    fn is_whole(&self, file: &ExtentFile) -> io::Result<bool> {
        let wanted = (
            self.blocks_per_file * BLOCK,
            self.blocks_per_file * SUM_BYTES,
        );
        Ok((file.data.len()?, file.sums.len()?) == wanted)
    }

    /// Blocks of all files.
    pub(super) fn blocks(&self) -> u64 {
        self.files.read().len() as u64 * self.blocks_per_file
    }

    /// Bytes of disk that one more file takes, checksums included.
    pub(super) fn growth_bytes(&self) -> u64 {
        self.blocks_per_file * (BLOCK + SUM_BYTES)
    }

    /// Blocks of one file.
    pub(super) fn blocks_per_file(&self) -> u64 {
        self.blocks_per_file
    }

    /// Adds a file; one caller at a time. Returns its places.
    pub(super) fn grow(&self) -> FsResult<Run> {
        let index = self.files.read().len();
        let file = self.open_file(index)?;
        self.fill(&file)?;
        let synced = file.data.sync().and_then(|()| file.sums.sync());
        synced
            .and_then(|()| self.disk.sync_dir(&self.directory))
            .map_err(|error| FsError::from_disk(&error, format!("sync {}", file.path.display())))?;
        self.files.write().push(Arc::new(file));
        Ok(Run {
            place: index as u64 * self.blocks_per_file,
            count: u32::try_from(self.blocks_per_file).expect("checked when the store is opened"),
        })
    }

    /// Opens a file, or creates it empty.
    fn open_file(&self, index: usize) -> FsResult<ExtentFile> {
        let path = self.directory.join(data_name(index));
        let sums_path = self.directory.join(sums_name(index));
        let context =
            |error: io::Error| FsError::from_disk(&error, format!("prepare {}", path.display()));
        let create = OpenMode {
            create: true,
            ..OpenMode::default()
        };
        let direct = OpenMode {
            direct: true,
            ..create
        };
        let data = self.disk.open(&path, direct).map_err(context)?;
        let cached = self.disk.open(&path, create).map_err(context)?;
        let sums = self.disk.open(&sums_path, create).map_err(context)?;
        let sums_on_disk = self.disk.open(&sums_path, direct).map_err(context)?;
        let (data_dirty, sums_dirty) = (AtomicBool::new(false), AtomicBool::new(false));
        Ok(ExtentFile {
            path,
            data,
            cached,
            sums,
            sums_on_disk,
            data_dirty,
            sums_dirty,
            syncing: Mutex::new(()),
        })
    }

    /// Gives a file its full size.
    fn fill(&self, file: &ExtentFile) -> FsResult<()> {
        let data = file.data.allocate(0, self.blocks_per_file * BLOCK);
        data.and_then(|()| file.sums.allocate(0, self.blocks_per_file * SUM_BYTES))
            .map_err(|error| FsError::from_disk(&error, format!("prepare {}", file.path.display())))
    }

    /// Whether a run lies in existing files.
    pub(super) fn contains(&self, run: Run) -> bool {
        run.place
            .checked_add(u64::from(run.count))
            .is_some_and(|end| end <= self.blocks())
    }

    /// Writes whole blocks. `data` is aligned in memory.
    pub(super) fn write(&self, run: Run, data: &[u8]) -> FsResult<()> {
        for part in self.parts(run) {
            let bytes = &data[part.first * BLOCK_SIZE..(part.first + part.count) * BLOCK_SIZE];
            let written = part.file.data.write_all_at(bytes, part.start * BLOCK);
            part.file.data_dirty.store(true, Ordering::Release);
            written.map_err(|error| part.failed("write", &error))?;
        }
        Ok(())
    }

    /// Writes the checksums of a run's blocks.
    pub(super) fn write_sums(&self, run: Run, sums: &[u32]) -> FsResult<()> {
        for part in self.parts(run) {
            let sums = &sums[part.first..part.first + part.count];
            let bytes: Vec<u8> = sums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
            let written = part.file.sums.write_all_at(&bytes, part.start * SUM_BYTES);
            part.file.sums_dirty.store(true, Ordering::Release);
            written.map_err(|error| part.failed("write checksums of", &error))?;
        }
        Ok(())
    }

    /// Reads whole blocks into `buf`, which is aligned in memory, and verifies each. Returns their
    /// checksums.
    pub(super) fn read(&self, run: Run, buf: &mut [u8]) -> Result<Vec<u32>, ReadError> {
        let mut all = Vec::with_capacity(run.count as usize);
        for part in self.parts(run) {
            let blocks = &mut buf[part.first * BLOCK_SIZE..(part.first + part.count) * BLOCK_SIZE];
            let failed = |error: io::Error| ReadError::Disk(part.failed("read", &error));
            let start = part.start * BLOCK;
            let read = part.file.cached.read_exact_at(blocks, start);
            let sums = read.and_then(|()| part.sums()).map_err(failed)?;
            let mut damaged = first_damaged(blocks, &sums);
            if damaged.is_some() {
                // Memory fails too: what counts is what the disk has.
                let again = part.file.data.read_exact_at(blocks, start);
                again.map_err(failed)?;
                damaged = first_damaged(blocks, &sums);
            }
            if let Some(index) = damaged {
                return Err(ReadError::Damaged(part.damaged(index)));
            }
            all.extend(sums);
        }
        Ok(all)
    }

    /// Compares whole blocks with their checksums, both as the disk itself has them. `buf` is as long as the run and
    /// aligned in memory.
    pub(super) fn verify(&self, run: Run, buf: &mut [u8]) -> FsResult<Vec<Mismatch>> {
        let mut mismatches = Vec::new();
        for part in self.parts(run) {
            let blocks = &mut buf[part.first * BLOCK_SIZE..(part.first + part.count) * BLOCK_SIZE];
            let failed = |error: io::Error| part.failed("read", &error);
            let read = part.file.data.read_exact_at(blocks, part.start * BLOCK);
            let stored = read.and_then(|()| part.sums()).map_err(failed)?;
            let on_disk = part.sums_on_disk(&stored).map_err(failed)?;
            for (index, block) in blocks.chunks_exact(BLOCK_SIZE).enumerate() {
                let (stored, found) = (stored[index], crc32c(block));
                if found != stored || on_disk[index] != stored {
                    mismatches.push(Mismatch {
                        damaged: part.damaged(index),
                        stored,
                        found,
                    });
                }
            }
        }
        Ok(mismatches)
    }

    /// The checksum that reads of a block compare with.
    pub(super) fn sum_of(&self, place: Place) -> FsResult<u32> {
        let mut part = self.parts(Run { place, count: 1 });
        let part = part.next().expect("a run of one block has a part");
        let sums = part.sums().map_err(|error| part.failed("read", &error))?;
        Ok(sums[0])
    }

    /// Has the disk begin with a run that will probably be read soon.
    pub(super) fn will_read(&self, run: Run) {
        for part in self.parts(run) {
            let len = part.count as u64 * BLOCK;
            part.file.cached.will_read(part.start * BLOCK, len);
        }
    }

    /// Makes all data written so far durable.
    pub(super) fn sync_data(&self) -> FsResult<()> {
        self.sync_where(|file| (&file.data_dirty, &file.data))
    }

    /// Makes all checksums written so far durable.
    pub(super) fn sync_sums(&self) -> FsResult<()> {
        self.sync_where(|file| (&file.sums_dirty, &file.sums))
    }

    fn sync_where(
        &self,
        choose: impl Fn(&ExtentFile) -> (&AtomicBool, &Arc<dyn DiskFile>),
    ) -> FsResult<()> {
        let files = self.files.read().clone();
        for file in files {
            let (dirty, handle) = choose(&file);
            // One at a time: who finds the mark cleared must not go on before the sync that cleared it.
            let _syncing = file.syncing.lock();
            // Cleared before the sync: what is written meanwhile marks the file again.
            if dirty.swap(false, Ordering::AcqRel) {
                handle.sync().map_err(|error| {
                    dirty.store(true, Ordering::Release);
                    FsError::from_disk(&error, format!("sync {}", file.path.display()))
                })?;
            }
        }
        Ok(())
    }

    fn parts(&self, run: Run) -> impl Iterator<Item = Part> + '_ {
        let mut done = 0;
        std::iter::from_fn(move || {
            let missing = u64::from(run.count) - done;
            if missing == 0 {
                return None;
            }
            let place: Place = run.place + done;
            let (index, start) = (place / self.blocks_per_file, place % self.blocks_per_file);
            let count = missing.min(self.blocks_per_file - start);
            let file = self.files.read()[index as usize].clone();
            let part = Part {
                file,
                start,
                first: done as usize,
                count: count as usize,
            };
            done += count;
            Some(part)
        })
    }
}

impl Part {
    /// The stored checksums of its blocks.
    fn sums(&self) -> io::Result<Vec<u32>> {
        let mut bytes = vec![0; self.count * SUM_BYTES as usize];
        let start = self.start * SUM_BYTES;
        self.file.sums.read_exact_at(&mut bytes, start)?;
        let (sums, _) = bytes.as_chunks();
        Ok(sums.iter().map(|sum| u32::from_le_bytes(*sum)).collect())
    }

    /// The same as the disk has them. What the file has past its last whole block is as in `stored`.
    fn sums_on_disk(&self, stored: &[u32]) -> io::Result<Vec<u32>> {
        let from = self.start * SUM_BYTES / BLOCK * BLOCK;
        let end = ((self.start + self.count as u64) * SUM_BYTES).next_multiple_of(BLOCK);
        let end = end.min(self.file.sums_on_disk.len()? / BLOCK * BLOCK);
        let mut bytes = AlignedBuf::scratch(end.saturating_sub(from) as usize);
        self.file.sums_on_disk.read_exact_at(&mut bytes, from)?;
        let first = (self.start * SUM_BYTES - from) as usize;
        let (sums, _) = bytes.get(first..).unwrap_or_default().as_chunks();
        let sums = sums.iter().map(|sum| u32::from_le_bytes(*sum));
        let past = stored.iter().copied().skip(sums.len());
        Ok(sums.chain(past).take(self.count).collect())
    }

    /// Its block `index` does not match.
    fn damaged(&self, index: usize) -> Damaged {
        Damaged {
            index: self.first + index,
            file: self.file.path.clone(),
            offset: (self.start + index as u64) * BLOCK,
        }
    }

    fn failed(&self, what: &str, error: &io::Error) -> FsError {
        let (path, offset) = (self.file.path.display(), self.start * BLOCK);
        // Extent files are allocated in full; a full disk here is a broken promise, not an ENOSPC.
        FsError::new(Code::Io, format!("{what} {path} at {offset}: {error}"))
    }
}

fn data_name(index: usize) -> PathBuf {
    Path::new(&format!("{index:08}.dat")).to_path_buf()
}

fn sums_name(index: usize) -> PathBuf {
    Path::new(&format!("{index:08}.crc")).to_path_buf()
}
