//! What each operation of the kernel means, in terms of the cluster. Knows FUSE's values but neither
//! its threads nor its replies.

mod data;
mod directory;
mod inode;
mod locks;
mod names;
mod sgid;
mod xattr;

pub(crate) use data::{ReadBuffer, WriteRequest};
pub(crate) use directory::Listing;
pub(crate) use xattr::XattrAnswer;

use crate::atime::AtimeMode;
use crate::attr::file_attr;
use crate::backend::Backend;
use crate::stats::Stats;
use directory::Directories;
use fuser::{FileAttr, INodeNo};
use lumeofs_base::{Attr, InodeId};
use lumeofs_client::Usage;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// One mounted filesystem.
pub(crate) struct Core {
    backend: Arc<dyn Backend>,
    /// The directory that is mounted, which FUSE calls 1.
    root: InodeId,
    /// Attributes of that directory when they were asked for last.
    root_seen: Mutex<Option<Attr>>,
    /// The filesystem's space when it was asked for last.
    usage_seen: Mutex<Option<Usage>>,
    directories: Directories,
    /// The last handle of an open file.
    handle: AtomicU64,
    atime: Arc<AtimeMode>,
    stats: Arc<Stats>,
}

/// The number of an inode, as the kernel calls it, on a mount of the directory `root`.
pub(crate) fn number(ino: InodeId, root: InodeId) -> INodeNo {
    match ino == root {
        true => INodeNo::ROOT,
        false => INodeNo(ino.get()),
    }
}

impl Core {
    /// Shows the directory `root` of `backend`.
    pub(crate) fn new(
        backend: Arc<dyn Backend>,
        root: InodeId,
        atime: Arc<AtimeMode>,
        stats: Arc<Stats>,
    ) -> Self {
        Self {
            backend,
            root,
            root_seen: Mutex::default(),
            usage_seen: Mutex::default(),
            directories: Directories::default(),
            handle: AtomicU64::new(0),
            atime,
            stats,
        }
    }

    /// A name for an open file.
    pub(crate) fn new_handle(&self) -> u64 {
        self.handle.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The inode of a number of the kernel's. Only the root of the mount has two.
    pub(crate) fn inode(&self, number: INodeNo) -> InodeId {
        if number == INodeNo::ROOT {
            self.root
        } else {
            InodeId(number.0)
        }
    }

    fn number(&self, ino: InodeId) -> u64 {
        number(ino, self.root).0
    }

    fn shown(&self, attr: &Attr) -> FileAttr {
        file_attr(attr, self.number(attr.ino))
    }

    /// Attributes for a reply that gives the kernel a reference to the inode.
    fn referenced(&self, attr: &Attr) -> FileAttr {
        self.stats.add_references(1);
        self.shown(attr)
    }

    /// The kernel gives references back.
    pub(crate) fn forget(&self, count: u64) {
        self.stats.add_references(-count.cast_signed());
    }
}
