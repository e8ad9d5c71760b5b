//! The checkpoint file: the whole index, so that the log before it can go.
//!
//! ```text
//! 0  8  magic "LUMECKPT"
//! 8  4  format version
//! 12    frames: 4 bytes length n, 4 bytes CRC-32C of the body, n bytes body
//! ```
//! A body is a sequence of `Item`s in postcard's encoding, as `Vec<Item>`. The last item of the file
//! is `Item::End`. All numbers are little-endian. The file is written beside the old one and renamed
//! over it.

use super::record::{Head, Placement};
use lumeofs_base::checksum::crc32c;
use lumeofs_base::disk::{Disk, DiskFile, OpenMode};
use lumeofs_base::{ChunkId, Code, FilePart, FsError, FsResult, GroupId, Version};
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const FILE_NAME: &str = "checkpoint";
const FILE_NAME_NEW: &str = "checkpoint.new";
const MAGIC: &[u8; 8] = b"LUMECKPT";
/// The format that is written; those from the second on are read, which had no `Item::Part`.
const FORMAT_VERSION: u32 = 3;
const FORMAT_VERSION_OLDEST: u32 = 2;
const HEADER_BYTES: usize = 12;
/// A frame is written when its items take about so much. One item is at most 16384 runs.
const FRAME_BYTES: usize = 256 << 10;
const FRAME_BYTES_MAX: u32 = 4 << 20;

/// One entry of the index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Item {
    Chunk {
        chunk: ChunkId,
        group: GroupId,
        head: Head,
        runs: Vec<Placement>,
    },
    Group {
        group: GroupId,
        last: Version,
        note: Vec<u8>,
    },
    End {
        items: u64,
    },
    /// Where the chunk before it belongs.
    Part {
        chunk: ChunkId,
        part: FilePart,
    },
}

/// Writes a checkpoint piece by piece.
pub(super) struct Writer {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    file: Arc<dyn DiskFile>,
    offset: u64,
    frame: Vec<Item>,
    frame_runs: usize,
    items: u64,
}

impl Writer {
    pub(super) fn create(disk: Arc<dyn Disk>, directory: &Path) -> FsResult<Self> {
        let path = directory.join(FILE_NAME_NEW);
        let context = |error: std::io::Error| FsError::from_disk(&error, path.display());
        let mode = OpenMode {
            create: true,
            ..OpenMode::default()
        };
        let file = disk.open(&path, mode).map_err(context)?;
        file.set_len(0).map_err(context)?;
        let mut header = MAGIC.to_vec();
        header.extend(FORMAT_VERSION.to_le_bytes());
        file.write_all_at(&header, 0).map_err(context)?;
        let (directory, offset) = (directory.to_path_buf(), HEADER_BYTES as u64);
        Ok(Self {
            disk,
            directory,
            file,
            offset,
            frame: Vec::new(),
            frame_runs: 0,
            items: 0,
        })
    }

    pub(super) fn push(&mut self, item: Item) -> FsResult<()> {
        self.frame_runs += match &item {
            Item::Chunk { runs, .. } => runs.len() + 4,
            Item::Group { note, .. } => note.len() / 8 + 4,
            Item::End { .. } => 1,
            Item::Part { .. } => 4,
        };
        self.frame.push(item);
        self.items += 1;
        if self.frame_runs * 8 >= FRAME_BYTES {
            self.write_frame()
        } else {
            Ok(())
        }
    }

    /// Makes the file whole and durable. It counts only after [`Writer::publish`].
    pub(super) fn finish(&mut self) -> FsResult<()> {
        let items = self.items;
        self.push(Item::End { items })?;
        self.write_frame()?;
        self.file.sync().map_err(|error| self.failed(&error))
    }

    /// Puts the file in place of the old checkpoint.
    pub(super) fn publish(&self) -> FsResult<()> {
        let (from, to) = (
            self.directory.join(FILE_NAME_NEW),
            self.directory.join(FILE_NAME),
        );
        let renamed = self.disk.rename(&from, &to);
        // The log may be cut only when the new name is durable.
        renamed
            .and_then(|()| self.disk.sync_dir(&self.directory))
            .map_err(|error| self.failed(&error))
    }

    fn write_frame(&mut self) -> FsResult<()> {
        let items = std::mem::take(&mut self.frame);
        self.frame_runs = 0;
        let bytes = postcard::to_extend(&items, vec![0; 8]);
        let mut bytes = bytes.expect("items hold nothing that cannot be encoded");
        let len = u32::try_from(bytes.len() - 8).expect("a frame is far below 4 GiB");
        debug_assert!(len <= FRAME_BYTES_MAX);
        let sum = crc32c(&bytes[8..]);
        bytes[..4].copy_from_slice(&len.to_le_bytes());
        bytes[4..8].copy_from_slice(&sum.to_le_bytes());
        self.file
            .write_all_at(&bytes, self.offset)
            .map_err(|error| self.failed(&error))?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    fn failed(&self, error: &std::io::Error) -> FsError {
        let path = self.directory.join(FILE_NAME_NEW);
        FsError::from_disk(error, format!("write {}", path.display()))
    }
}

/// Drops what an interrupted checkpoint left, to have its space back.
pub(super) fn remove_unfinished(disk: &dyn Disk, directory: &Path) {
    let path = directory.join(FILE_NAME_NEW);
    if let Err(error) = disk.remove(&path)
        && error.kind() != ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "remove unfinished checkpoint");
    }
}

/// Reads the checkpoint, if there is one, item by item.
pub(super) fn load(
    disk: &dyn Disk,
    directory: &Path,
    visit: &mut dyn FnMut(Item) -> FsResult<()>,
) -> FsResult<()> {
    let path = directory.join(FILE_NAME);
    let file = match disk.open(&path, OpenMode::default()) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(FsError::from_disk(&error, path.display())),
    };
    Reader {
        file,
        path,
        offset: 0,
    }
    .load(visit)
}

struct Reader {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    offset: u64,
}

impl Reader {
    fn load(mut self, visit: &mut dyn FnMut(Item) -> FsResult<()>) -> FsResult<()> {
        let header = self.bytes(HEADER_BYTES)?;
        if &header[..8] != MAGIC {
            return Err(self.damaged("it is not a checkpoint"));
        }
        let version = u32::from_le_bytes(header[8..].try_into().expect("4 bytes"));
        if !(FORMAT_VERSION_OLDEST..=FORMAT_VERSION).contains(&version) {
            return Err(FsError::new(
                Code::Invalid,
                format!(
                    "{} has format version {version}, this program knows \
                     {FORMAT_VERSION_OLDEST} to {FORMAT_VERSION}: run the release that wrote it",
                    self.path.display()
                ),
            ));
        }
        let mut count = 0;
        loop {
            for item in self.frame()? {
                match item {
                    Item::End { items } if items == count => return Ok(()),
                    Item::End { .. } => return Err(self.damaged("items are missing")),
                    item => visit(item)?,
                }
                count += 1;
            }
        }
    }

    fn frame(&mut self) -> FsResult<Vec<Item>> {
        let head = self.bytes(8)?;
        let number = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("4 bytes"));
        if number(0) > FRAME_BYTES_MAX {
            return Err(self.damaged("length of a frame"));
        }
        let body = self.bytes(number(0) as usize)?;
        if crc32c(&body) != number(4) {
            return Err(self.damaged("checksum of a frame"));
        }
        postcard::from_bytes(&body).map_err(|_| self.damaged("encoding of a frame"))
    }

    fn bytes(&mut self, len: usize) -> FsResult<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.file
            .read_exact_at(&mut bytes, self.offset)
            .map_err(|error| {
                FsError::from_disk(
                    &error,
                    format!("read {} at {}", self.path.display(), self.offset),
                )
            })?;
        self.offset += len as u64;
        Ok(bytes)
    }

    fn damaged(&self, what: &str) -> FsError {
        let context = format!(
            "{} is damaged before {}: {what}",
            self.path.display(),
            self.offset
        );
        FsError::new(Code::Io, context)
    }
}
