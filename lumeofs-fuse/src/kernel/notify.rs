//! What the kernel is told without having asked.

use super::device::Device;
use super::reply::Out;
use fuser::INodeNo;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;

/// `FUSE_NOTIFY_INVAL_INODE`.
const INVAL_INODE: i32 = 2;
/// `struct fuse_out_header` and `struct fuse_notify_inval_inode_out`.
const INVAL_INODE_BYTES: u32 = 16 + 24;

/// Tells the kernel.
#[derive(Debug)]
pub(crate) struct Notifier(Device);

impl Notifier {
    /// Over this connection.
    pub(crate) fn new(connection: OwnedFd) -> Self {
        Self(Device::new(connection))
    }

    /// Has the kernel drop its pages and attributes of an inode. Waits for requests for these pages, and for the writing of
    /// those that were changed; so no thread that serves requests may call it.
    ///
    /// # Errors
    /// `ENOENT`: it does not know the inode. `ENODEV`: the mount has ended.
    pub(crate) fn drop_pages(&self, ino: INodeNo) -> io::Result<()> {
        let mut message = Out::default();
        message.u32(INVAL_INODE_BYTES).i32(INVAL_INODE).u64(0);
        // From the start to the end.
        message.u64(ino.0).u64(0).u64(0);
        self.0.send(&[IoSlice::new(message.bytes())])
    }
}
