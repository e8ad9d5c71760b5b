//! `/dev/fuse`.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};

/// `FUSE_DEV_IOC_CLONE`: `_IOR(229, 0, uint32_t)`.
const CLONE: libc::c_ulong = 0x8004_e500;

/// A descriptor of a connection. What is read from one is answered through the same.
#[derive(Debug)]
pub(super) struct Device(File);

impl Device {
    pub(super) fn new(connection: OwnedFd) -> Self {
        Self(connection.into())
    }

    /// Another descriptor of the same connection, so that threads do not wait for each other.
    pub(super) fn another(&self) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/fuse")?;
        let own = self.0.as_raw_fd().cast_unsigned();
        // SAFETY: the call reads one number of that size, and both descriptors are open.
        #[allow(unsafe_code, reason = "this ioctl has no safe interface")]
        let result = unsafe { libc::ioctl(file.as_raw_fd(), CLONE, &raw const own) };
        match result {
            0 => Ok(Self(file)),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The next request; `None` after the end of the mount.
    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            let error = match (&self.0).read(buffer) {
                Ok(len) => return Ok(Some(len)),
                Err(error) => error,
            };
            match error.raw_os_error() {
                // A request that was taken back before it was read.
                Some(libc::ENOENT | libc::EINTR | libc::EAGAIN) => {}
                Some(libc::ENODEV) => return Ok(None),
                _ => return Err(error),
            }
        }
    }

    /// Sends a message. Written at once or not at all.
    pub(super) fn send(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        (&self.0).write_vectored(parts).map(drop)
    }

    /// Answers a request.
    pub(super) fn write(&self, parts: &[IoSlice<'_>]) {
        if let Err(error) = self.send(parts) {
            // Nobody waits any more, or the mount has ended.
            tracing::debug!(%error, "a reply was not taken");
        }
    }
}
