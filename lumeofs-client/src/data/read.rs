//! Reading. The leader says how long the file is and where its chunks are, datanodes give the bytes.
//!
//! Where the chunks are known from an earlier answer and a lease says that nobody else has writes in memory, both are asked
//! at once. The bytes count only if the
//! leader's answer, given while the read was under way, confirms the truncation number; and only below the size
//! that was known before: bytes beyond it may have been read before they were written.

use crate::data::chunks::{checked_range, span};
use crate::inodes::{Inode, Known};
use crate::link::{Asker, Link};
use lumeofs_base::limits::FILE_SIZE_BYTES_MAX;
use lumeofs_base::{Code, FsError, FsResult, InodeId};
use std::ops::Range;
use std::time::Duration;

/// Times that a read starts anew because its chunks were freed under it.
const REDO_MAX: u32 = 16;

impl Link {
    /// Reads into `buf`; short only at the end of the file.
    pub(crate) fn read(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        offset: u64,
        buf: &mut [u8],
    ) -> FsResult<usize> {
        let len = (buf.len() as u64).min(FILE_SIZE_BYTES_MAX.saturating_sub(offset));
        if len == 0 {
            return Ok(0);
        }
        let range = checked_range(offset, len)?;
        let inode = self.inodes.get(ino);
        let _held = inode.ranges.share(range.clone(), &asker.patience)?;
        let mut done = match self.is_covered(ino) {
            true => self.read_known(asker, ino, &inode, &range, buf)?,
            // What others have in memory comes to the datanodes before the leader answers.
            false => Done {
                count: 0,
                complete: false,
            },
        };
        let mut redone = 0;
        while !done.complete {
            let from = range.start + done.count as u64;
            let known = self.chunks(asker, ino, &inode, &(from..range.end))?;
            let until = known.attr.size.min(range.end);
            if until <= from {
                break;
            }
            let end = (until - range.start) as usize;
            match self.fetch(&asker.patience, &known, from, &mut buf[done.count..end]) {
                Ok(()) => {
                    done = Done {
                        count: end,
                        complete: true,
                    }
                }
                // The chunk was freed meanwhile: the file was truncated.
                Err(error) if is_gone(&error) && redone < REDO_MAX => {
                    redone += 1;
                    asker
                        .patience
                        .pause(Duration::from_millis(u64::from(redone)))?;
                }
                Err(error) if is_gone(&error) => {
                    return Err(FsError::new(Code::Io, format!("{ino}: {error}")));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(done.count)
    }

    /// Reads what can be read while the leader is being asked.
    fn read_known(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        inode: &Inode,
        range: &Range<u64>,
        buf: &mut [u8],
    ) -> FsResult<Done> {
        let Some(known) = known_below_size(inode, range, self.chunk_size()) else {
            return Ok(Done {
                count: 0,
                complete: false,
            });
        };
        let until = known.attr.size.min(range.end);
        let count = (until - range.start) as usize;
        let mut answer = None;
        let mut ask = || answer = Some(self.chunks(asker, ino, inode, range));
        let fetched = self.fetch_once(
            &asker.patience,
            &known,
            range.start,
            &mut buf[..count],
            &mut ask,
        );
        let Some(answer) = answer else {
            return Ok(Done {
                count: 0,
                complete: false,
            });
        };
        let answer = answer?;
        if fetched.is_err() || answer.attr.truncations != known.attr.truncations {
            return Ok(Done {
                count: 0,
                complete: false,
            });
        }
        // The same truncation number: the file did not shrink, so all that was read is below its end.
        Ok(Done {
            count,
            complete: answer.attr.size.min(range.end) <= until,
        })
    }
}

/// How far a read came.
struct Done {
    count: usize,
    /// Up to the end of the range or of the file.
    complete: bool,
}

fn known_below_size(inode: &Inode, range: &Range<u64>, chunk_size: u64) -> Option<Known> {
    let size = inode.known_size()?;
    let until = size.min(range.end);
    if until <= range.start {
        return None;
    }
    let (first, last) = span(&(range.start..until), chunk_size);
    // The size may have changed in between: only what both say counts.
    inode
        .known(first, last)
        .filter(|known| known.attr.size >= until)
}

pub(crate) fn is_gone(error: &FsError) -> bool {
    matches!(error.code, Code::NotFound | Code::StaleWrite | Code::Stale)
}
