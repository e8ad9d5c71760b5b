//! Files put together from chunks alone, when no master and no dump is left.
//!
//! Chunks know which part of which file they are. They know neither names nor sizes: a file is called after its inode
//! and ends with the last block that has data.

#[cfg(test)]
mod tests;

use crate::stopped::StoppedStore;
use lumeofs_base::limits::{BLOCK_SIZE, IO_BYTES_MAX};
use lumeofs_base::{AlignedBuf, ChunkId, Code, FilePart, FsError, FsResult, InodeId, Version};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Of each sort of finding, those that are told one by one.
const TOLD_MAX: usize = 1000;

/// What became of the chunks.
#[derive(Debug, Default)]
pub struct Salvaged {
    /// Files that were written.
    pub files: u64,
    /// Chunks that were written.
    pub chunks: u64,
    /// Chunks that are to be written.
    pub chunks_all: u64,
    /// Bytes that were written, in whole blocks.
    pub bytes: u64,
    /// Blocks that no copy of the newest version has undamaged.
    pub damaged_blocks: u64,
    /// Of them, those that were taken from a copy of an older version. The others are holes now.
    pub older_blocks: u64,
    /// The first damaged ones.
    pub damaged: Vec<Damage>,
    /// Ranges before the last chunk of a file for which there is no chunk: never written, or lost.
    pub gaps: u64,
    /// The first of them.
    pub missing: Vec<Gap>,
    /// Chunks that were left out since a later one is for the same place.
    pub conflicts: u64,
    /// The first of them.
    pub conflicting: Vec<Conflict>,
    /// Chunks with data of which nothing says to which file they belong. They were not written.
    pub unknown_chunks: u64,
    /// Of the chunks that were written, those of which the only copy was not finished.
    pub incomplete_chunks: u64,
}

/// A block that could not be saved as it was last.
#[derive(Debug)]
pub struct Damage {
    /// The file.
    pub inode: InodeId,
    /// The block's first byte in the file.
    pub offset: u64,
    /// The version of the copy that it was taken from instead.
    pub older: Option<Version>,
    /// What is wrong with one of the newest copies.
    pub error: FsError,
}

/// Positions of a file for which there is no chunk.
#[derive(Debug, PartialEq, Eq)]
pub struct Gap {
    /// The file.
    pub inode: InodeId,
    /// The first position.
    pub first: u32,
    /// The last one.
    pub last: u32,
}

/// Two chunks for one place, neither of them deleted.
#[derive(Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The file.
    pub inode: InodeId,
    /// The place.
    pub index: u32,
    /// The chunk that was written: the later one.
    pub used: ChunkId,
    /// The chunk that was not.
    pub left_out: ChunkId,
}

/// What all stores know of a chunk.
struct Found {
    newest: Version,
    is_deleted: bool,
    has_data: bool,
    part: Option<FilePart>,
    copies: Vec<ChunkCopy>,
}

/// A copy of a chunk, and the position of the store that has it.
struct ChunkCopy {
    version: Version,
    store: usize,
}

/// A chunk of a file.
struct Piece {
    chunk: ChunkId,
    part: FilePart,
    /// The newest ones first.
    copies: Vec<ChunkCopy>,
}

/// Writes a file `inode-NUMBER` for each inode into `to`, which is made, or is empty. Of each chunk the highest version
/// counts; a block that is damaged in all copies of that one is taken from the next older copy that has it, and told.
/// Blocks without data are holes. `progress` is called after each chunk.
///
/// # Errors
/// [`Code::Refused`] if the stores are of several clusters; [`Code::Exists`] if there is something in `to`; what the
/// disk of `to` says.
pub fn salvage(
    stores: &mut [StoppedStore],
    to: &Path,
    progress: &mut dyn FnMut(&Salvaged),
) -> FsResult<Salvaged> {
    check_clusters(stores)?;
    let mut done = Salvaged::default();
    let files = files_of(look_up(stores), &mut done);
    let failed = |error: std::io::Error| FsError::from_disk(&error, to.display());
    std::fs::create_dir_all(to).map_err(failed)?;
    if std::fs::read_dir(to).map_err(failed)?.next().is_some() {
        let context = format!("{} is not empty: name a new directory", to.display());
        return Err(FsError::new(Code::Exists, context));
    }
    for (inode, pieces) in files {
        write_file(stores, to, inode, &pieces, &mut done, progress)?;
        done.files += 1;
    }
    let synced = File::open(to).and_then(|directory| Ok(rustix::fs::syncfs(directory)?));
    synced.map_err(failed)?;
    Ok(done)
}

fn check_clusters(stores: &[StoppedStore]) -> FsResult<()> {
    let others = stores.windows(2);
    let mut others = others.filter(|pair| pair[0].identity().cluster != pair[1].identity().cluster);
    others.next().map_or(Ok(()), |pair| {
        let context = format!(
            "{} and {} are of different clusters: salvage each by itself",
            pair[0].directory().display(),
            pair[1].directory().display()
        );
        Err(FsError::new(Code::Refused, context))
    })
}

fn look_up(stores: &[StoppedStore]) -> BTreeMap<ChunkId, Found> {
    let mut chunks: BTreeMap<ChunkId, Found> = BTreeMap::new();
    for (store, opened) in stores.iter().enumerate() {
        for (_, state) in opened.chunks() {
            let version = state.version;
            let found = chunks.entry(state.chunk).or_insert(Found {
                newest: version,
                is_deleted: state.deleted,
                has_data: state.len > 0,
                part: None,
                copies: Vec::new(),
            });
            if version > found.newest {
                found.newest = version;
                found.is_deleted = state.deleted;
                found.has_data = state.len > 0;
            }
            // It never changes, so any copy may tell it.
            found.part = found.part.or(state.part);
            if !state.deleted {
                found.copies.push(ChunkCopy { version, store });
            }
        }
    }
    chunks
}

/// The pieces of each file, in order.
fn files_of(
    chunks: BTreeMap<ChunkId, Found>,
    done: &mut Salvaged,
) -> BTreeMap<InodeId, Vec<Piece>> {
    let mut parts = BTreeMap::new();
    for (chunk, mut found) in chunks {
        let Some(part) = found.part.filter(|_| !found.is_deleted) else {
            done.unknown_chunks += u64::from(found.has_data && !found.is_deleted);
            continue;
        };
        found.copies.sort_by_key(|copy| Reverse(copy.version));
        let piece = Piece {
            chunk,
            part,
            copies: found.copies,
        };
        // Ids grow: of two chunks for one place the later one is its successor, and the first was not deleted yet.
        if let Some(former) = parts.insert((part.inode, part.index), piece) {
            done.conflicts += 1;
            tell(&mut done.conflicting, || Conflict {
                inode: part.inode,
                index: part.index.get(),
                used: chunk,
                left_out: former.chunk,
            });
        }
    }
    done.chunks_all = parts.len() as u64;
    let mut files: BTreeMap<InodeId, Vec<Piece>> = BTreeMap::new();
    for ((inode, _), piece) in parts {
        files.entry(inode).or_default().push(piece);
    }
    files
}

/// Adds to a list that is told, unless that is long already.
fn tell<T>(told: &mut Vec<T>, finding: impl FnOnce() -> T) {
    if told.len() < TOLD_MAX {
        told.push(finding());
    }
}

fn write_file(
    stores: &mut [StoppedStore],
    to: &Path,
    inode: InodeId,
    pieces: &[Piece],
    done: &mut Salvaged,
    progress: &mut dyn FnMut(&Salvaged),
) -> FsResult<()> {
    let path = to.join(format!("inode-{}", inode.get()));
    let failed =
        |error: std::io::Error| FsError::from_disk(&error, format!("write {}", path.display()));
    let file = File::options().write(true).create_new(true).open(&path);
    let file = file.map_err(failed)?;
    let (mut file_end, mut next) = (0, 0);
    for piece in pieces {
        let index = piece.part.index.get();
        if index > next {
            done.gaps += 1;
            tell(&mut done.missing, || Gap {
                inode,
                first: next,
                last: index - 1,
            });
        }
        next = index.saturating_add(1);
        let start = piece.part.offset();
        for (offset, len) in stores[piece.copies[0].store].extents(piece.chunk) {
            let end = offset + len;
            file_end = start + end;
            for at in (offset..end).step_by(IO_BYTES_MAX) {
                let len = IO_BYTES_MAX.min((end - at) as usize);
                for (at, data) in read(stores, piece, at, len, done) {
                    file.write_all_at(&data, start + at).map_err(failed)?;
                    done.bytes += data.len() as u64;
                }
            }
        }
        done.chunks += 1;
        done.incomplete_chunks += u64::from(piece.newest() == Version::default());
        progress(done);
    }
    file.set_len(file_end).map_err(failed)
}

/// What can be had of a range of whole blocks, with the offsets; all at once if possible, else block by block from
/// whichever copy has it.
fn read(
    stores: &mut [StoppedStore],
    piece: &Piece,
    offset: u64,
    len: usize,
    done: &mut Salvaged,
) -> Vec<(u64, AlignedBuf)> {
    if let Ok(data) = piece.read_newest(stores, offset, len) {
        return vec![(offset, data)];
    }
    let mut found = Vec::new();
    for at in (offset..offset + len as u64).step_by(BLOCK_SIZE) {
        match piece.read_newest(stores, at, BLOCK_SIZE) {
            Ok(data) => found.push((at, data)),
            Err(error) => {
                let older = piece.read_older(stores, at);
                done.damaged_blocks += 1;
                done.older_blocks += u64::from(older.is_some());
                tell(&mut done.damaged, || Damage {
                    inode: piece.part.inode,
                    offset: piece.part.offset() + at,
                    older: older.as_ref().map(|(version, _)| *version),
                    error,
                });
                found.extend(older.map(|(_, data)| (at, data)));
            }
        }
    }
    found
}

impl Piece {
    fn newest(&self) -> Version {
        self.copies[0].version
    }

    fn read_newest(
        &self,
        stores: &mut [StoppedStore],
        offset: u64,
        len: usize,
    ) -> FsResult<AlignedBuf> {
        let newest = self.newest();
        let mut error = None;
        let copies = self.copies.iter();
        for copy in copies.take_while(|copy| copy.version == newest) {
            match stores[copy.store].read(self.chunk, offset, len) {
                Ok(data) => return Ok(data),
                Err(found) => error = Some(found),
            }
        }
        Err(error.expect("each chunk was found in a store"))
    }

    /// A block as it was before, with the version of the copy: what was not overwritten since is the same.
    fn read_older(
        &self,
        stores: &mut [StoppedStore],
        offset: u64,
    ) -> Option<(Version, AlignedBuf)> {
        let newest = self.newest();
        let mut older = self.copies.iter().filter(|copy| copy.version != newest);
        older.find_map(|copy| {
            let store = &mut stores[copy.store];
            // Of a hole a store reads zeros, which nobody wrote.
            if !store.has_block(self.chunk, offset) {
                return None;
            }
            let data = store.read(self.chunk, offset, BLOCK_SIZE).ok()?;
            Some((copy.version, data))
        })
    }
}
