//! Files put together from chunks alone, when no master and no dump is left.
//!
//! Chunks know which part of which file they are. They know neither names nor sizes: a file is called after its inode
//! and ends with the last block that has data.

#[cfg(test)]
mod tests;

use crate::stopped::StoppedStore;
use lumeofs_base::limits::{BLOCK_SIZE, IO_BYTES_MAX};
use lumeofs_base::{AlignedBuf, ChunkId, Code, FilePart, FsError, FsResult, InodeId, Version};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Damaged blocks that are told one by one.
const DAMAGE_TOLD_MAX: usize = 1000;

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
    /// Blocks that no copy has undamaged: holes now.
    pub damaged_blocks: u64,
    /// The first of them.
    pub damaged: Vec<Damage>,
    /// Chunks with data of which nothing says to which file they belong. They were not written.
    pub unknown_chunks: u64,
    /// Of the chunks that were written, those of which the only copy was not finished.
    pub incomplete_chunks: u64,
}

/// A block that could not be saved.
#[derive(Debug)]
pub struct Damage {
    /// The file.
    pub inode: InodeId,
    /// The block's first byte in the file.
    pub offset: u64,
    /// What is wrong with one of the copies.
    pub error: FsError,
}

/// The newest copies of a chunk.
struct Newest {
    version: Version,
    is_deleted: bool,
    has_data: bool,
    part: Option<FilePart>,
    /// Positions of the stores that have it.
    stores: Vec<usize>,
}

/// A chunk of a file.
struct Piece {
    chunk: ChunkId,
    part: FilePart,
    version: Version,
    stores: Vec<usize>,
}

/// Writes a file `inode-NUMBER` for each inode into `to`, which is made, or is empty. Of each chunk the highest version
/// counts. Blocks without data are holes. `progress` is called after each chunk.
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
    let files = files_of(newest_of(stores), &mut done);
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

fn newest_of(stores: &[StoppedStore]) -> BTreeMap<ChunkId, Newest> {
    let mut chunks: BTreeMap<ChunkId, Newest> = BTreeMap::new();
    for (at, store) in stores.iter().enumerate() {
        for (_, state) in store.chunks() {
            let this = |part| Newest {
                version: state.version,
                is_deleted: state.deleted,
                has_data: state.len > 0,
                part,
                stores: vec![at],
            };
            match chunks.get_mut(&state.chunk) {
                None => drop(chunks.insert(state.chunk, this(state.part))),
                Some(known) => {
                    // It never changes, so an older copy may tell it.
                    let part = known.part.or(state.part);
                    match state.version.cmp(&known.version) {
                        Ordering::Greater => *known = this(part),
                        Ordering::Equal => {
                            known.stores.push(at);
                            known.part = part;
                        }
                        Ordering::Less => known.part = part,
                    }
                }
            }
        }
    }
    chunks
}

/// The pieces of each file, in order.
fn files_of(
    chunks: BTreeMap<ChunkId, Newest>,
    done: &mut Salvaged,
) -> BTreeMap<InodeId, Vec<Piece>> {
    let mut parts = BTreeMap::new();
    for (chunk, newest) in chunks {
        match newest.part {
            _ if newest.is_deleted => {}
            None => done.unknown_chunks += u64::from(newest.has_data),
            // Ids grow: of two chunks for one place the later one is its successor, and the first was not deleted yet.
            Some(part) => drop(parts.insert(
                (part.inode, part.index),
                Piece {
                    chunk,
                    part,
                    version: newest.version,
                    stores: newest.stores,
                },
            )),
        }
    }
    done.chunks_all = parts.len() as u64;
    let mut files: BTreeMap<InodeId, Vec<Piece>> = BTreeMap::new();
    for ((inode, _), piece) in parts {
        files.entry(inode).or_default().push(piece);
    }
    files
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
    let mut file_end = 0;
    for piece in pieces {
        let start = piece.part.offset();
        for (offset, len) in stores[piece.stores[0]].extents(piece.chunk) {
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
        done.incomplete_chunks += u64::from(piece.version == Version::default());
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
    let mut of_any = |at: u64, len: usize| {
        let mut error = None;
        for &store in &piece.stores {
            match stores[store].read(piece.chunk, at, len) {
                Ok(data) => return Ok(data),
                Err(found) => error = Some(found),
            }
        }
        Err(error.expect("each chunk was found in a store"))
    };
    if let Ok(data) = of_any(offset, len) {
        return vec![(offset, data)];
    }
    let mut found = Vec::new();
    for at in (offset..offset + len as u64).step_by(BLOCK_SIZE) {
        match of_any(at, BLOCK_SIZE) {
            Ok(data) => found.push((at, data)),
            Err(error) => {
                done.damaged_blocks += 1;
                if done.damaged.len() < DAMAGE_TOLD_MAX {
                    done.damaged.push(Damage {
                        inode: piece.part.inode,
                        offset: piece.part.offset() + at,
                        error,
                    });
                }
            }
        }
    }
    found
}
