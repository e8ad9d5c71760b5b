//! Opens a log directory: finds the segments that form the log, visits their records, sorts out the
//! rest.
//!
//! The newest segment's header leads back from segment to segment. A file that is not on that path
//! was cut off by a truncation or given up, and becomes a spare. A file that should be on it and is
//! missing is an error, unless the floor says that the log starts later.

use crate::core::{Recovered, Segment, Spare};
use crate::files::{LogFile, disk_error};
use crate::format::{BLOCK, FLOOR_NAME, Floor, Generation, Name, SegmentHeader};
use crate::scan::{self, End};
use crate::{Lsn, WalConfig};
use lumeofs_base::disk::Disk;
use lumeofs_base::limits::BLOCK_SIZE;
use lumeofs_base::{AlignedBuf, Code, FsError, FsResult};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// What opening found on disk.
pub(crate) struct Opened {
    pub(crate) recovered: Recovered<Arc<LogFile>>,
    pub(crate) floor: Floor,
    pub(crate) floor_file: Arc<LogFile>,
    /// Higher than the number of any spare.
    pub(crate) next_spare: u64,
}

type Segments = BTreeMap<Generation, Segment<Arc<LogFile>>>;

/// Opens the log in `dir`, creating an empty one if there is none.
pub(crate) fn open(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    config: &WalConfig,
    visit: &mut dyn FnMut(Lsn, &[u8]) -> FsResult<()>,
) -> FsResult<Opened> {
    create_directory(disk, dir)?;
    let mut segments = Segments::new();
    let mut spares = Vec::new();
    let mut next_spare = 0;
    for name in disk.list(dir).map_err(disk_error("list", dir))? {
        match Name::parse(&name) {
            Some(Name::Segment(generation)) => {
                segments.insert(generation, open_segment(disk, dir, generation)?);
            }
            Some(Name::Spare(number)) => {
                next_spare = next_spare.max(number + 1);
                let file = LogFile::open(disk, Name::Spare(number).path(dir), false)?;
                let filled = file.filled()?;
                spares.push(Spare { file, filled });
            }
            None if name == Path::new(FLOOR_NAME) => {}
            None => tracing::warn!("{} is not part of the log in it", dir.join(&name).display()),
        }
    }
    let (floor, floor_file) = open_floor(disk, dir)?;
    // Names that another process made just before it died may not be durable yet.
    disk.sync_dir(dir).map_err(disk_error("sync", dir))?;

    let newest = segments.keys().next_back().copied().unwrap_or_default();
    let mut live = log_of(&mut segments, floor, dir)?;
    let end = visit_records(&mut live, visit)?;
    if let Some(tail) = live.last() {
        // What was read may still be on its way if only the process died; it must not vanish later.
        tail.file
            .file
            .sync()
            .map_err(disk_error("sync", &tail.file.path()))?;
    }
    let retired = segments.into_values();
    let recovered = Recovered {
        last: last_record(&live, end),
        next: next_batch(&live, end),
        next_generation: Generation(newest.0 + 1),
        live,
        spares,
        retired: retired
            .map(|it| Spare {
                file: it.file,
                filled: it.filled,
            })
            .collect(),
    };
    tracing::debug!(
        dir = %dir.display(),
        segments = recovered.live.len(),
        last = recovered.last.0,
        segment_bytes = config.segment_bytes,
        "opened the log"
    );
    Ok(Opened {
        recovered,
        floor,
        floor_file,
        next_spare,
    })
}

/// Creates the directory so that a power cut cannot take it, or its parents, away again.
fn create_directory(disk: &Arc<dyn Disk>, dir: &Path) -> FsResult<()> {
    disk.create_dir_all(dir)
        .map_err(disk_error("create", dir))?;
    for parent in dir.ancestors().skip(1) {
        disk.sync_dir(parent).map_err(disk_error("sync", parent))?;
    }
    Ok(())
}

fn open_segment(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    generation: Generation,
) -> FsResult<Segment<Arc<LogFile>>> {
    let path = Name::Segment(generation).path(dir);
    let file = LogFile::open(disk, path.clone(), false)?;
    let mut block = AlignedBuf::zeroed(BLOCK_SIZE);
    file.file
        .read_exact_at(&mut block, 0)
        .map_err(disk_error("read the header of", &path))?;
    let header = SegmentHeader::decode(&block, &path)?;
    if header.generation != generation {
        let context = format!("{} holds generation {}", path.display(), header.generation);
        return Err(FsError::new(Code::Invalid, context));
    }
    let filled = file.filled()?;
    Ok(Segment {
        header,
        file,
        filled,
        begun: true,
        used: BLOCK,
    })
}

fn open_floor(disk: &Arc<dyn Disk>, dir: &Path) -> FsResult<(Floor, Arc<LogFile>)> {
    let path = dir.join(FLOOR_NAME);
    let file = LogFile::open(disk, path.clone(), true)?;
    let mut slots = AlignedBuf::zeroed(2 * BLOCK_SIZE);
    if file.filled()? < slots.len() as u64 {
        // Only a file that was never used is shorter.
        file.file
            .write_all_at(&slots, 0)
            .map_err(disk_error("write", &path))?;
    }
    file.file
        .read_exact_at(&mut slots, 0)
        .map_err(disk_error("read", &path))?;
    Ok((Floor::decode(&slots, &path)?, file))
}

/// Takes the segments that form the log out of `segments`, oldest first.
fn log_of(
    segments: &mut Segments,
    floor: Floor,
    dir: &Path,
) -> FsResult<Vec<Segment<Arc<LogFile>>>> {
    let mut live = Vec::new();
    let mut wanted = segments.keys().next_back().copied().unwrap_or_default();
    while wanted != Generation(0) {
        let Some(segment) = segments.remove(&wanted) else {
            return Err(FsError::new(
                Code::Io,
                format!("{} is missing", Name::Segment(wanted).path(dir).display()),
            ));
        };
        let header = segment.header;
        wanted = header.previous_generation;
        if header.previous_last < floor.base {
            wanted = Generation(0);
        }
        live.push(segment);
    }
    live.reverse();
    Ok(live)
}

/// Visits all records; how the last segment ends.
fn visit_records(
    live: &mut [Segment<Arc<LogFile>>],
    visit: &mut dyn FnMut(Lsn, &[u8]) -> FsResult<()>,
) -> FsResult<Option<End>> {
    let mut last_end = None;
    for index in 0..live.len() {
        let next = live.get(index + 1);
        let stop_at = next.map(|next| Lsn(next.header.previous_last));
        let segment = &mut live[index];
        let (file, path) = (segment.file.file.clone(), segment.file.path());
        let end = scan::walk(&*file, &path, &segment.header, stop_at, visit)?;
        segment.used = end.offset.next_multiple_of(BLOCK);
        if end.torn {
            tracing::info!(
                "{} ends in a torn write at {}; cut off",
                path.display(),
                end.offset
            );
        }
        last_end = Some(end);
    }
    Ok(last_end)
}

fn last_record(live: &[Segment<Arc<LogFile>>], end: Option<End>) -> Lsn {
    let before = live
        .last()
        .map_or(Lsn(0), |tail| Lsn(tail.header.previous_last));
    end.and_then(|end| end.last).unwrap_or(before)
}

/// Where the last segment is continued, if it may be.
fn next_batch(live: &[Segment<Arc<LogFile>>], end: Option<End>) -> Option<u64> {
    let (tail, end) = (live.last()?, end?);
    (!end.torn).then(|| tail.header.base + end.offset.next_multiple_of(BLOCK))
}
