//! The kernel's interface (fuse(4), `linux/fuse.h`) from the moment at which a mount was agreed on: requests in, replies out.
//!
//! fuser makes the mount and the agreement. What follows is done here, because fuser hands on neither which locks are those of
//! `flock(2)` nor that a waiting caller got a signal: ADR 22. Everything here is about bytes; what they mean for a filesystem is
//! the matter of a [`Filesystem`].

mod device;
mod filesystem;
mod interrupts;
mod notify;
mod reply;
mod request;

pub(crate) use filesystem::{Filesystem, LockRange, SetAttrRequest};
pub(crate) use interrupts::Interrupt;
pub(crate) use notify::Notifier;
pub(crate) use reply::{
    ReplyAttr, ReplyCopied, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyLock, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
};
pub(crate) use request::Request;

use device::Device;
use filesystem::{Next, serve};
use interrupts::Interrupts;
use lumeofs_base::limits::IO_BYTES_MAX;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// What is read at once: the largest write and what belongs to it.
const REQUEST_BYTES_MAX: usize = IO_BYTES_MAX + 4096;

/// Serves a connection that was agreed on, with so many threads, until the mount ends.
///
/// # Errors
/// The first that a thread met with. `ECONNABORTED` if the connection was taken down.
pub(crate) fn run<F: Filesystem>(
    filesystem: F,
    connection: OwnedFd,
    threads: usize,
) -> io::Result<()> {
    let shared = Arc::new((filesystem, Interrupts::default()));
    let first = Device::new(connection);
    let mut devices = Vec::new();
    for _ in 1..threads {
        devices.push(first.another()?);
    }
    devices.push(first);
    let mut running = Vec::new();
    for (number, device) in devices.into_iter().enumerate() {
        let shared = shared.clone();
        let name = format!("fuse-{number}");
        let thread = std::thread::Builder::new().name(name);
        running.push(thread.spawn(move || read_requests(&shared.0, &shared.1, device))?);
    }
    let mut result = Ok(());
    for thread in running {
        let ended = thread.join();
        let ended = ended.unwrap_or_else(|_| Err(io::Error::other("a FUSE thread panicked")));
        result = result.and(ended);
    }
    result
}

/// A thread's life.
fn read_requests<F: Filesystem>(
    filesystem: &F,
    interrupts: &Interrupts,
    device: Device,
) -> io::Result<()> {
    let device = Arc::new(device);
    let mut buffer = vec![0; REQUEST_BYTES_MAX];
    while let Some(len) = device.read(&mut buffer)? {
        if let Next::End = serve(filesystem, interrupts, &device, &buffer[..len]) {
            break;
        }
    }
    Ok(())
}
