//! What is agreed on with the kernel when a mount begins. fuser does it, and has no part in what follows.

use fuser::{InitFlags, KernelConfig, Request};
use lumeofs_base::limits::IO_BYTES_MAX;
use std::io;
use std::time::Duration;

/// Asynchronous requests (read-ahead, AIO, write-back of mmap) that the kernel sends at once.
const BACKGROUND_MAX: u16 = 128;
/// From here on the kernel slows their senders down.
const BACKGROUND_CONGESTED: u16 = 96;

/// What is asked of the kernel, each for itself, so that an older one grants the rest.
///
/// - `ASYNC_DIO`: AIO and io_uring are really asynchronous.
/// - `PARALLEL_DIROPS`: lookups and listings of one directory side by side.
/// - `ATOMIC_O_TRUNC`: O_TRUNC comes with the open, not after it.
/// - `DIRECT_IO_ALLOW_MMAP`: shared mappings in spite of direct I/O.
/// - `POSIX_LOCKS`, `FLOCK_LOCKS`: locks are asked for here, since other mounts have to do with them.
/// - `AUTO_INVAL_DATA`: pages that mmap left in the kernel go when a stat or open shows another mtime.
/// - `POSIX_ACL`: ACLs count where the kernel checks permissions. It forgets those that it knows whenever it asks for
///   attributes, as it does before each check.
/// - `EXPORT_SUPPORT`: handles of files (`name_to_handle_at`, NFS) outlive what the kernel knows: it looks up `.` of their number.
/// - `DONT_MASK`: umasks come with what they are for: a default ACL takes their place.
///
/// Not asked for: the write-back cache, which makes the kernel the owner of size and times; readdirplus, whose
/// attributes would be worth nothing with time-outs of 0;
/// OVER_IO_URING, which without a ring hangs every request.
const CAPABILITIES: [InitFlags; 10] = [
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
    InitFlags::FUSE_AUTO_INVAL_DATA,
    InitFlags::FUSE_POSIX_LOCKS,
    InitFlags::FUSE_FLOCK_LOCKS,
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_EXPORT_SUPPORT,
    InitFlags::FUSE_DONT_MASK,
];

/// A filesystem that only agrees.
pub(crate) struct Handshake;

impl fuser::Filesystem for Handshake {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for capability in CAPABILITIES {
            if let Err(missing) = config.add_capabilities(capability) {
                tracing::info!(?missing, "this kernel does not offer a capability of FUSE");
            }
        }
        let refused = |what: &str, nearest: &dyn std::fmt::Debug| {
            io::Error::other(format!("FUSE does not take {what}; nearest is {nearest:?}"))
        };
        config
            .set_max_write(IO_BYTES_MAX as u32)
            .map_err(|nearest| refused("requests of 1 MiB", &nearest))?;
        config
            .set_max_background(BACKGROUND_MAX)
            .map_err(|nearest| refused("background requests", &nearest))?;
        config
            .set_congestion_threshold(BACKGROUND_CONGESTED)
            .map_err(|nearest| refused("a congestion threshold", &nearest))?;
        config
            .set_time_granularity(Duration::from_nanos(1))
            .map_err(|nearest| refused("times in nanoseconds", &nearest))?;
        Ok(())
    }
}
