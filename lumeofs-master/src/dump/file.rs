//! The file of a dump: a stream of blocks with checksums, whose last one says that it is the last.
//!
//! ```text
//! file    magic 8 "LUMEODMP", version 4, blocks
//! block   kind 1, length 4, body, crc32c 4 of the block's number (8), kind, length and body
//! kind    1 head        postcard of `Head`; the first block
//!         2 group       postcard of `GroupHead`; rows of this group follow
//!         3 rows        key length 4, value length 4, key, value; and so on
//!         4 group end   rows of the group 8
//!         5 end         blocks before this one 8
//! ```
//! Numbers are little-endian. The version is looked at before anything else, so that a newer file is named as such.

use lumeofs_base::checksum::{crc32c, crc32c_append};
use lumeofs_base::{ClusterId, Code, FsError, FsResult};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{ErrorKind, Read, Write};

const MAGIC: &[u8; 8] = b"LUMEODMP";
/// Version of the file.
const VERSION: u32 = 1;
/// Longest body of a block. Rows come in pieces of half a megabyte, unless one row is larger.
const BODY_BYTES_MAX: usize = 16 << 20;

const HEAD: u8 = 1;
const GROUP: u8 = 2;
const ROWS: u8 = 3;
const GROUP_END: u8 = 4;
const END: u8 = 5;

/// What a dump says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The cluster whose masters had it.
    pub cluster: ClusterId,
    /// When it was begun, in milliseconds since 1970.
    pub time_ms: i64,
    /// Version of the stored form of the rows' values.
    pub records: u32,
    /// The program that wrote it.
    pub program: String,
}

/// What precedes the rows of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupHead {
    /// Its name.
    pub name: String,
    /// The last entry of its log that the rows contain.
    pub index: u64,
    /// The term of that entry.
    pub term: u64,
}

/// A block behind the head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Block {
    /// A group begins.
    Group(GroupHead),
    /// Rows of it.
    Rows(Vec<u8>),
    /// It ends, with so many rows.
    GroupEnd(u64),
    /// The dump is whole.
    End,
}

/// Writes a dump.
#[derive(Debug)]
pub struct DumpWriter<W> {
    out: W,
    blocks: u64,
}

impl<W: Write> DumpWriter<W> {
    /// Begins a dump.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn begin(mut out: W, head: &Head) -> FsResult<Self> {
        out.write_all(MAGIC).map_err(|error| failed(&error))?;
        out.write_all(&VERSION.to_le_bytes())
            .map_err(|error| failed(&error))?;
        let mut writer = Self { out, blocks: 0 };
        writer.block(HEAD, &encode(head))?;
        Ok(writer)
    }

    /// Begins a group.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn group(&mut self, head: &GroupHead) -> FsResult<()> {
        self.block(GROUP, &encode(head))
    }

    /// Adds rows.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn rows(&mut self, piece: &[u8]) -> FsResult<()> {
        self.block(ROWS, piece)
    }

    /// Ends a group.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn group_end(&mut self, rows: u64) -> FsResult<()> {
        self.block(GROUP_END, &rows.to_le_bytes())
    }

    /// Ends the dump and hands its file back, which is not synced.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn end(mut self) -> FsResult<W> {
        self.block(END, &self.blocks.to_le_bytes())?;
        self.out.flush().map_err(|error| failed(&error))?;
        Ok(self.out)
    }

    fn block(&mut self, kind: u8, body: &[u8]) -> FsResult<()> {
        if body.len() > BODY_BYTES_MAX {
            let text = format!("a block of {} bytes in a dump", body.len());
            return Err(FsError::new(Code::TooBig, text));
        }
        let head = block_head(kind, body.len());
        let sum = checksum(self.blocks, &head, body);
        for part in [&head[..], body, &sum.to_le_bytes()] {
            self.out.write_all(part).map_err(|error| failed(&error))?;
        }
        self.blocks += 1;
        Ok(())
    }
}

/// Reads a dump.
#[derive(Debug)]
pub struct DumpReader<R> {
    input: R,
    blocks: u64,
    head: Head,
}

impl<R: Read> DumpReader<R> {
    /// Opens a dump.
    ///
    /// # Errors
    /// It is none, it is damaged, or a newer release has written it.
    pub fn open(mut input: R) -> FsResult<Self> {
        let mut begin = [0; 12];
        fill(&mut input, &mut begin)?;
        let (magic, version) = begin.split_at(8);
        if magic != MAGIC {
            return Err(bad("this is no dump of `lumeofs admin meta dump`"));
        }
        let version = u32::from_le_bytes(version.try_into().expect("four bytes"));
        if version != VERSION {
            return Err(bad(format_args!(
                "the dump has format {version}, this program reads {VERSION}: use the release that wrote it"
            )));
        }
        let (kind, body) = block(&mut input, 0)?;
        if kind != HEAD {
            return Err(bad("the dump is damaged: its first block is no head"));
        }
        Ok(Self {
            input,
            blocks: 1,
            head: decode(&body)?,
        })
    }

    /// What it says of itself.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The next block.
    ///
    /// # Errors
    /// The dump is cut off or damaged.
    pub fn next_block(&mut self) -> FsResult<Block> {
        let before = self.blocks;
        let (kind, body) = block(&mut self.input, before)?;
        self.blocks += 1;
        let number = || {
            let bytes = body[..].try_into();
            bytes
                .map(u64::from_le_bytes)
                .map_err(|_| bad("the dump is damaged: a number has the wrong length"))
        };
        Ok(match kind {
            GROUP => Block::Group(decode(&body)?),
            GROUP_END => Block::GroupEnd(number()?),
            ROWS => Block::Rows(body),
            END if number()? == before => Block::End,
            END => return Err(bad("the dump is damaged: blocks are missing")),
            other => {
                return Err(bad(format_args!(
                    "the dump is damaged: a block of kind {other}"
                )));
            }
        })
    }
}

fn block(input: &mut impl Read, number: u64) -> FsResult<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    fill(input, &mut head)?;
    let len = u32::from_le_bytes(head[1..].try_into().expect("four bytes")) as usize;
    let damaged = || bad(format_args!("the dump is damaged in block {number}"));
    if len > BODY_BYTES_MAX {
        return Err(damaged());
    }
    let mut body = vec![0; len];
    fill(input, &mut body)?;
    let mut sum = [0; 4];
    fill(input, &mut sum)?;
    if u32::from_le_bytes(sum) != checksum(number, &head, &body) {
        return Err(damaged());
    }
    Ok((head[0], body))
}

fn block_head(kind: u8, len: usize) -> [u8; 5] {
    let mut head = [kind; 5];
    head[1..].copy_from_slice(&(len as u32).to_le_bytes());
    head
}

fn checksum(number: u64, head: &[u8], body: &[u8]) -> u32 {
    let sum = crc32c_append(crc32c(&number.to_le_bytes()), head);
    crc32c_append(sum, body)
}

fn fill(input: &mut impl Read, buffer: &mut [u8]) -> FsResult<()> {
    input
        .read_exact(buffer)
        .map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => bad("the dump is cut off: it has no end"),
            _ => FsError::from_disk(&error, "read the dump"),
        })
}

fn encode(value: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(value).expect("heads are plain data")
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> FsResult<T> {
    postcard::from_bytes(body).map_err(|error| bad(format_args!("the dump is damaged: {error}")))
}

fn failed(error: &std::io::Error) -> FsError {
    FsError::from_disk(error, "write the dump")
}

pub(super) fn bad(what: impl std::fmt::Display) -> FsError {
    FsError::new(Code::Invalid, what.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        Head {
            cluster: ClusterId([7; 16]),
            time_ms: 1_800_000_000_000,
            records: 3,
            program: "1.0".into(),
        }
    }

    fn blocks() -> Vec<Block> {
        let group = GroupHead {
            name: "metadata".into(),
            index: 1 << 40,
            term: 9,
        };
        let rows = (0..4).map(|at| Block::Rows(vec![at; 100]));
        let mut blocks = vec![Block::Group(group)];
        blocks.extend(rows);
        blocks.extend([Block::GroupEnd(4), Block::End]);
        blocks
    }

    fn dump() -> Vec<u8> {
        let mut writer = DumpWriter::begin(Vec::new(), &head()).unwrap();
        for block in blocks() {
            match block {
                Block::Group(head) => writer.group(&head).unwrap(),
                Block::Rows(piece) => writer.rows(&piece).unwrap(),
                Block::GroupEnd(rows) => writer.group_end(rows).unwrap(),
                Block::End => return writer.end().unwrap(),
            }
        }
        unreachable!("the last block ends it")
    }

    fn read(bytes: &[u8]) -> FsResult<(Head, Vec<Block>)> {
        let mut reader = DumpReader::open(bytes)?;
        let mut read = Vec::new();
        while read.last() != Some(&Block::End) {
            read.push(reader.next_block()?);
        }
        Ok((reader.head().clone(), read))
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(read(&dump()).unwrap(), (head(), blocks()));
    }

    #[test]
    fn a_dump_that_is_cut_off_anywhere_is_refused() {
        let dump = dump();
        for len in 0..dump.len() {
            let error = read(&dump[..len]).unwrap_err();
            assert!(error.context.contains("cut off"), "{len}: {error}");
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_refused() {
        let dump = dump();
        for at in 0..dump.len() {
            let mut bytes = dump.clone();
            bytes[at] ^= 4;
            assert!(read(&bytes).is_err(), "{at}");
        }
    }

    #[test]
    fn blocks_that_were_left_out_or_moved_are_missed() {
        let dump = dump();
        let block = 5 + 100 + 4;
        let first = dump.windows(100).position(|part| part == [0; 100]);
        let first = first.unwrap() - 5;
        let mut shorter = dump.clone();
        shorter.drain(first..first + block);
        assert!(read(&shorter).is_err());
        let mut swapped = dump;
        let (one, other) = swapped[first..].split_at_mut(block);
        one.swap_with_slice(&mut other[..block]);
        assert!(read(&swapped).is_err());
    }

    #[test]
    fn a_newer_format_is_named_and_something_else_is_too() {
        let mut newer = dump();
        newer[8] = 2;
        let error = read(&newer).unwrap_err();
        assert!(error.context.contains("format 2"), "{error}");
        let error = read(b"PK\x03\x04 something else").unwrap_err();
        assert!(error.context.contains("no dump"), "{error}");
    }
}
