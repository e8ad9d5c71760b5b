//! What a writer tells the namespace: allocation, published size, appends, a cleaned tail.

use super::{resize, xattr};
use crate::op::{Caller, Outcome, Reply, SetAttr};
use crate::record::Inode;
use crate::transaction::Tx;
use crate::{access, attributes};
use lumeofs_base::limits::{CHUNKS_PER_ALLOCATION_MAX, FILE_SIZE_BYTES_MAX};
use lumeofs_base::{ChunkIndex, Code, FsError, FsResult, InodeId, Timestamp};
use std::ops::Range;

/// A regular file that the caller may write.
fn writable(tx: &Tx<'_>, caller: &Caller, ino: InodeId) -> FsResult<Inode> {
    let inode = tx.inode(ino)?;
    resize::check_regular(&inode).map_err(|error| FsError::new(Code::Invalid, error.context))?;
    access::require_write_of_open(caller, &inode)?;
    Ok(inode)
}

fn check_range(ino: InodeId, range: &Range<u64>, chunk_size: u64) -> FsResult<()> {
    if range.end - range.start > u64::from(CHUNKS_PER_ALLOCATION_MAX) {
        return Err(FsError::new(
            Code::Invalid,
            format!(
                "{} chunks of {ino}, allowed are {CHUNKS_PER_ALLOCATION_MAX}",
                range.end - range.start
            ),
        ));
    }
    if range.end > FILE_SIZE_BYTES_MAX.div_ceil(chunk_size) {
        return Err(FsError::new(
            Code::FileTooBig,
            format!("chunk {} of {ino}", range.end - 1),
        ));
    }
    Ok(())
}

fn written(
    tx: &mut Tx<'_>,
    inode: &mut Inode,
    clear_suid: bool,
    mtime: Timestamp,
    ctime: Timestamp,
) {
    xattr::drop_capabilities(tx, inode);
    inode.attr.mtime = mtime;
    inode.attr.ctime = inode.attr.ctime.max(ctime);
    if clear_suid {
        inode.attr.mode = attributes::without_suid(inode.attr.mode);
    }
}

pub(super) fn allocate(
    tx: &mut Tx<'_>,
    caller: &Caller,
    ino: InodeId,
    first: ChunkIndex,
    count: u32,
) -> Outcome {
    let mut inode = writable(tx, caller, ino)?;
    if count == 0 {
        return Err(FsError::new(Code::Invalid, format!("no chunks of {ino}")));
    }
    let range = u64::from(first.0)..u64::from(first.0) + u64::from(count);
    check_range(ino, &range, tx.state.chunk_size)?;
    let rows_before = inode.chunk_rows;
    let chunks = tx.allocate(&mut inode, range)?;
    if inode.chunk_rows != rows_before {
        tx.save(&mut inode);
    }
    Ok(Reply::Chunks {
        attr: inode.attr,
        chunks,
    })
}

/// What a writer tells of its writes.
pub(super) struct Written {
    /// The first byte that was written; it may lie past the size.
    pub(super) from: u64,
    /// The file is at least so long.
    pub(super) size: u64,
    /// The inode's number when the writes were planned.
    pub(super) truncations: u32,
    pub(super) clear_suid: bool,
}

pub(super) fn publish(tx: &mut Tx<'_>, caller: &Caller, ino: InodeId, what: &Written) -> Outcome {
    let mut inode = grown(tx, caller, ino, what)?;
    let now = tx.now();
    written(tx, &mut inode, what.clear_suid, now, now);
    tx.save(&mut inode);
    Ok(Reply::Attr(inode.attr))
}

pub(super) fn flush(
    tx: &mut Tx<'_>,
    caller: &Caller,
    ino: InodeId,
    what: &Written,
    (mtime, ctime): (Timestamp, Timestamp),
    set: &SetAttr,
) -> Outcome {
    if !caller.trusted {
        return Err(access::not_permitted(
            caller,
            "only mounts say when they wrote",
        ));
    }
    [mtime, ctime]
        .into_iter()
        .try_for_each(attributes::check_time)?;
    attributes::check_times(set)?;
    if set.size.is_some() || set.mtime.is_some() || set.ctime.is_some() {
        let what = format!("{set:?} with what was written to {ino}");
        return Err(FsError::new(Code::Invalid, what));
    }
    let mut inode = grown(tx, caller, ino, what)?;
    written(tx, &mut inode, what.clear_suid, mtime, ctime);
    attributes::set(&mut inode.attr, caller, set, ctime);
    tx.save(&mut inode);
    Ok(Reply::Attr(inode.attr))
}

/// The file with the size that it has now. The caller saves it.
fn grown(tx: &Tx<'_>, caller: &Caller, ino: InodeId, what: &Written) -> FsResult<Inode> {
    let mut inode = writable(tx, caller, ino)?;
    check_truncations(&inode, what.truncations)?;
    resize::check(&inode, what.size)?;
    if what.from > inode.attr.size && what.size > inode.attr.size {
        resize::check_gap(tx, &inode)?;
    }
    inode.attr.size = inode.attr.size.max(what.size);
    Ok(inode)
}

pub(super) fn append(
    tx: &mut Tx<'_>,
    caller: &Caller,
    ino: InodeId,
    len: u64,
    clear_suid: bool,
) -> Outcome {
    let mut inode = writable(tx, caller, ino)?;
    let offset = inode.attr.size;
    if len == 0 {
        return Ok(Reply::Appended {
            offset,
            attr: inode.attr,
            chunks: Vec::new(),
        });
    }
    let end = offset.saturating_add(len);
    resize::check(&inode, end)?;
    let chunk_size = tx.state.chunk_size;
    let range = offset / chunk_size..end.div_ceil(chunk_size);
    check_range(ino, &range, chunk_size)?;
    let chunks = tx.allocate(&mut inode, range)?;
    inode.attr.size = end;
    let now = tx.now();
    written(tx, &mut inode, clear_suid, now, now);
    tx.save(&mut inode);
    Ok(Reply::Appended {
        offset,
        attr: inode.attr,
        chunks,
    })
}

pub(super) fn tail_clean(
    tx: &mut Tx<'_>,
    caller: &Caller,
    ino: InodeId,
    truncations: u32,
) -> Outcome {
    let mut inode = writable(tx, caller, ino)?;
    check_truncations(&inode, truncations)?;
    if inode.attr.tail_unclean {
        inode.attr.tail_unclean = false;
        tx.save(&mut inode);
    }
    Ok(Reply::Attr(inode.attr))
}

pub(super) fn cut_tail(tx: &mut Tx<'_>, caller: &Caller, ino: InodeId) -> Outcome {
    let mut inode = writable(tx, caller, ino)?;
    if tx.has_suspect_tail(&inode) {
        let size = inode.attr.size;
        resize::cut(tx, &mut inode, size);
        tx.save(&mut inode);
    }
    Ok(Reply::Attr(inode.attr))
}

fn check_truncations(inode: &Inode, truncations: u32) -> FsResult<()> {
    if inode.attr.truncations == truncations {
        return Ok(());
    }
    Err(FsError::new(
        Code::StaleWrite,
        format!(
            "{} was truncated since: number {}, not {truncations}",
            inode.attr.ino, inode.attr.truncations
        ),
    ))
}
