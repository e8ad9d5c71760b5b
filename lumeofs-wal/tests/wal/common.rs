//! What the tests of the log share.

use lumeofs_base::FsResult;
use lumeofs_base::disk::Disk;
use lumeofs_base::rng::SplitMix64;
use lumeofs_wal::{Lsn, Wal, WalConfig};
use std::path::Path;
use std::sync::Arc;

/// Records with their positions, in order.
pub(crate) type Contents = Vec<(Lsn, Vec<u8>)>;

/// Segments so small that tests see many of them.
pub(crate) const SMALL: WalConfig = config(32 << 10);

/// A log of small batches with segments of this size.
pub(crate) const fn config(segment_bytes: u64) -> WalConfig {
    WalConfig {
        segment_bytes,
        segments_kept_spare: 2,
        batch_bytes_max: 8 << 10,
        pending_bytes_max: 64 << 10,
    }
}

/// Where the log is.
pub(crate) fn dir() -> &'static Path {
    Path::new("log")
}

/// Opens the log and collects its records.
pub(crate) fn open(disk: &(impl Disk + Clone), config: WalConfig) -> FsResult<(Wal, Contents)> {
    let mut found = Contents::new();
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let wal = Wal::open(disk, dir(), config, &mut |lsn, payload| {
        found.push((lsn, payload.to_vec()));
        Ok(())
    })?;
    Ok((wal, found))
}

/// Bytes that depend on `seed` alone.
pub(crate) fn payload(seed: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    SplitMix64::new(seed).fill(&mut data);
    data
}
