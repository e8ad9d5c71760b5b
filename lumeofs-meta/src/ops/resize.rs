//! Truncation and extension.
//!
//! A shrink frees the chunks wholly past the new size at once; in the chunk that the new size cuts,
//! bytes past it survive until the replicas were told. So the inode becomes *unclean*: nothing may
//! extend it before a `TailClean`, or those bytes would be read again (D11). The truncation number
//! turns away writers that planned their write before.
//!
//! A session that ended may have written past the size of any file and not have told. What grows a file over a
//! gap would show that; so it is refused until a `CutTail` has made a truncation to the present size of it.

use crate::record::Inode;
use crate::transaction::{Tx, chunks};
use lumeofs_base::limits::FILE_SIZE_BYTES_MAX;
use lumeofs_base::{Code, FileKind, FsError, FsResult};

/// Whether an inode may get this size. The caller has loaded the inode and will save it.
pub(super) fn check(inode: &Inode, size: u64) -> FsResult<()> {
    check_regular(inode)?;
    if size > FILE_SIZE_BYTES_MAX {
        return Err(FsError::new(
            Code::FileTooBig,
            format!("{} of {size} bytes", inode.attr.ino),
        ));
    }
    if size > inode.attr.size && inode.attr.tail_unclean {
        return Err(FsError::new(
            Code::StaleWrite,
            format!(
                "{} has an unclean tail past {} bytes: cut it off before the file grows",
                inode.attr.ino, inode.attr.size
            ),
        ));
    }
    Ok(())
}

/// Whether an inode may grow so that bytes become part of it which nobody has written.
pub(super) fn check_gap(tx: &Tx<'_>, inode: &Inode) -> FsResult<()> {
    if !tx.has_suspect_tail(inode) {
        return Ok(());
    }
    Err(FsError::new(
        Code::StaleWrite,
        format!(
            "{} may have bytes of a lost writer past {} bytes: cut them off before a gap",
            inode.attr.ino, inode.attr.size
        ),
    ))
}

/// Whether an inode has data at all.
pub(super) fn check_regular(inode: &Inode) -> FsResult<()> {
    match inode.attr.kind {
        FileKind::Regular => Ok(()),
        FileKind::Directory => Err(FsError::new(
            Code::IsDirectory,
            format!("{} is a directory", inode.attr.ino),
        )),
        FileKind::Symlink
        | FileKind::Fifo
        | FileKind::Socket
        | FileKind::CharDevice
        | FileKind::BlockDevice => Err(FsError::new(
            Code::Invalid,
            format!("{} is no regular file", inode.attr.ino),
        )),
    }
}

/// Sets the size, which was checked.
///
/// Also a "truncation" to the present size frees and cuts what lies past it: a writer may have
/// written there without publishing it yet, and a truncation discards that.
pub(super) fn resize(tx: &mut Tx<'_>, inode: &mut Inode, size: u64) {
    if size <= inode.attr.size {
        cut(tx, inode, size);
    }
    inode.attr.size = size;
    inode.attr.mtime = tx.now();
    tx.note_change(&mut inode.attr);
}

/// Frees what lies past a size that is not larger than the present one, and has the rest cut off.
pub(super) fn cut(tx: &mut Tx<'_>, inode: &mut Inode, size: u64) {
    let chunk_size = tx.state.chunk_size;
    let freed = tx.free_chunks(inode, size.div_ceil(chunk_size), usize::MAX);
    let last = size / chunk_size;
    let cut = !size.is_multiple_of(chunk_size)
        && inode.chunk_rows > 0
        && !chunks(tx.tables, inode.attr.ino, last..last + 1).is_empty();
    if size < inode.attr.size || freed > 0 || cut {
        inode.attr.truncations = inode.attr.truncations.wrapping_add(1);
        inode.attr.tail_unclean = cut;
    }
    // Not when the tail has been cut: a session that wrote after this number became known may have ended by then.
    inode.sessions_ended = tx.state.sessions_ended;
}
