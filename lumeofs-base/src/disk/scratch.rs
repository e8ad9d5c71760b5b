//! A disk that shows what another one has and keeps all changes to itself, in memory.
//!
//! Opening a store recovers it, and that writes. Who only wants to look at a store, on a disk that perhaps must not be
//! written any more, opens it here and gets all of it, and the disk stays as it is. Whatever is opened must write little.

use super::{Disk, DiskFile, OpenMode};
use crate::limits::BLOCK_SIZE;
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const BLOCK: u64 = BLOCK_SIZE as u64;

/// What another disk has, and changes that go when this is dropped.
pub struct ScratchDisk {
    below: Arc<dyn Disk>,
    names: Mutex<Names>,
}

/// What this disk knows by itself; of everything else the names are those of the disk below.
#[derive(Default)]
struct Names {
    /// Files that were opened here; nothing if the name was removed.
    files: BTreeMap<PathBuf, Option<Arc<ScratchFile>>>,
    directories: BTreeSet<PathBuf>,
}

impl ScratchDisk {
    /// Shows what `below` has. Nothing is written to it.
    pub fn new(below: Arc<dyn Disk>) -> Self {
        let names = Mutex::default();
        Self { below, names }
    }

    /// The file of a name. All who open it share its changes.
    fn file(&self, names: &mut Names, path: &Path, create: bool) -> io::Result<Arc<ScratchFile>> {
        let file = match names.files.get(path) {
            Some(Some(file)) => return Ok(file.clone()),
            Some(None) => Err(io::ErrorKind::NotFound.into()),
            None => self.below.open(path, OpenMode::default()),
        };
        let file = match file {
            Ok(file) => ScratchFile::over(file)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound && create => {
                ScratchFile::default()
            }
            Err(error) => return Err(error),
        };
        let file = Arc::new(file);
        names.files.insert(path.to_owned(), Some(file.clone()));
        Ok(file)
    }
}

impl Disk for ScratchDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.file(&mut self.names.lock(), path, mode.create)?)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.names.lock().directories.insert(path.to_owned());
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let names = self.names.lock();
        let mut list: BTreeSet<PathBuf> = match self.below.list(path) {
            Ok(list) => list.into_iter().collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if !names.directories.contains(path) {
                    return Err(error);
                }
                BTreeSet::new()
            }
            Err(error) => return Err(error),
        };
        for (file, content) in &names.files {
            let (Some(parent), Some(name)) = (file.parent(), file.file_name()) else {
                continue;
            };
            if parent == path && content.is_some() {
                list.insert(name.into());
            } else if parent == path {
                list.remove(Path::new(name));
            }
        }
        Ok(list.into_iter().collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut names = self.names.lock();
        let file = self.file(&mut names, from, false)?;
        names.files.insert(from.to_owned(), None);
        names.files.insert(to.to_owned(), Some(file));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut names = self.names.lock();
        self.file(&mut names, path, false)?;
        names.files.insert(path.to_owned(), None);
        Ok(())
    }

    fn sync_dir(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn space(&self, path: &Path) -> io::Result<(u64, u64)> {
        self.below.space(path)
    }
}

/// A file of which some blocks were written here.
#[derive(Default)]
struct ScratchFile {
    below: Option<Arc<dyn DiskFile>>,
    content: RwLock<Content>,
}

#[derive(Default)]
struct Content {
    len: u64,
    /// Up to where the file below counts; it was never cut shorter.
    below_len: u64,
    /// Blocks that were written; nothing for one of zeros, since logs fill files with them.
    blocks: BTreeMap<u64, Option<Box<[u8]>>>,
}

impl ScratchFile {
    fn over(below: Arc<dyn DiskFile>) -> io::Result<Self> {
        let len = below.len()?;
        let content = RwLock::new(Content {
            len,
            below_len: len,
            blocks: BTreeMap::new(),
        });
        let below = Some(below);
        Ok(Self { below, content })
    }

    /// Reads a range; what lies past the end is zeros.
    fn fill(&self, content: &Content, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset + buf.len() as u64;
        let from_below = content.below_len.min(end).saturating_sub(offset) as usize;
        let (stored, rest) = buf.split_at_mut(from_below);
        if let Some(below) = self.below.as_ref().filter(|_| !stored.is_empty()) {
            below.read_exact_at(stored, offset)?;
        }
        rest.fill(0);
        for (&block, bytes) in content.blocks.range(offset / BLOCK..end.div_ceil(BLOCK)) {
            let start = (block * BLOCK).max(offset);
            let to = &mut buf[(start - offset) as usize..];
            let within = (start - block * BLOCK) as usize;
            let count = to.len().min(BLOCK_SIZE - within);
            match bytes {
                Some(bytes) => to[..count].copy_from_slice(&bytes[within..within + count]),
                None => to[..count].fill(0),
            }
        }
        Ok(())
    }
}

impl DiskFile for ScratchFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let content = self.content.read();
        if offset + buf.len() as u64 > content.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.fill(&content, buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut content = self.content.write();
        let mut rest = buf;
        let mut at = offset;
        while !rest.is_empty() {
            let (block, within) = (at / BLOCK, (at % BLOCK) as usize);
            let (now, later) = rest.split_at(rest.len().min(BLOCK_SIZE - within));
            let mut bytes = vec![0; BLOCK_SIZE];
            if now.len() < BLOCK_SIZE {
                self.fill(&content, &mut bytes, block * BLOCK)?;
            }
            bytes[within..within + now.len()].copy_from_slice(now);
            let is_zero = bytes.iter().all(|byte| *byte == 0);
            let bytes = (!is_zero).then(|| bytes.into_boxed_slice());
            content.blocks.insert(block, bytes);
            (rest, at) = (later, at + now.len() as u64);
        }
        content.len = content.len.max(at);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.content.read().len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut content = self.content.write();
        if len < content.len {
            content.below_len = content.below_len.min(len);
            content.blocks.split_off(&len.div_ceil(BLOCK));
            if let Some(Some(last)) = content.blocks.get_mut(&(len / BLOCK)) {
                last[(len % BLOCK) as usize..].fill(0);
            }
        }
        content.len = len;
        Ok(())
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut content = self.content.write();
        content.len = content.len.max(offset + len);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::sim::SimDisk;
    use crate::rng::SplitMix64;

    const CREATE: OpenMode = OpenMode {
        create: true,
        direct: false,
        dsync: false,
    };

    fn bytes_of(disk: &dyn Disk, path: &str) -> Vec<u8> {
        let file = disk.open(path.as_ref(), OpenMode::default()).unwrap();
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn what_is_written_is_read_again_and_the_disk_below_stays_as_it_is() {
        for seed in 0..50 {
            let mut rng = SplitMix64::new(seed);
            let below = SimDisk::new();
            let mut expected = vec![0; rng.below(40_000) as usize];
            rng.fill(&mut expected);
            below.create_dir_all("d".as_ref()).unwrap();
            let file = below.open("d/f".as_ref(), CREATE).unwrap();
            file.write_all_at(&expected, 0).unwrap();
            let before = expected.clone();
            let disk = ScratchDisk::new(Arc::new(below.clone()));
            let file = disk.open("d/f".as_ref(), OpenMode::default()).unwrap();
            for _ in 0..40 {
                let at = rng.below(50_000) as usize;
                if rng.percent(20) {
                    expected.resize(at, 0);
                    file.set_len(at as u64).unwrap();
                    continue;
                }
                let mut data = vec![0; 1 + rng.below(15_000) as usize];
                if rng.percent(70) {
                    rng.fill(&mut data);
                }
                expected.resize(expected.len().max(at + data.len()), 0);
                expected[at..at + data.len()].copy_from_slice(&data);
                file.write_all_at(&data, at as u64).unwrap();
                let from = rng.below(expected.len() as u64) as usize;
                let mut read = vec![1; expected.len() - from];
                file.read_exact_at(&mut read, from as u64).unwrap();
                assert!(read == expected[from..], "seed {seed}");
            }
            assert!(bytes_of(&disk, "d/f") == expected);
            assert!(bytes_of(&below, "d/f") == before);
        }
    }

    #[test]
    fn names_change_here_only() {
        let below = SimDisk::new();
        below.create_dir_all("d".as_ref()).unwrap();
        for name in ["d/a", "d/b"] {
            let file = below.open(name.as_ref(), CREATE).unwrap();
            file.write_all_at(name.as_bytes(), 0).unwrap();
        }
        let disk = ScratchDisk::new(Arc::new(below.clone()));
        disk.rename("d/a".as_ref(), "d/b".as_ref()).unwrap();
        disk.open("d/c".as_ref(), CREATE).unwrap();
        assert_eq!(bytes_of(&disk, "d/b"), b"d/a");
        let names = |disk: &dyn Disk| disk.list("d".as_ref()).unwrap();
        assert_eq!(names(&disk), [Path::new("b"), Path::new("c")]);
        assert_eq!(names(&below), [Path::new("a"), Path::new("b")]);
        let gone = disk.open("d/a".as_ref(), OpenMode::default());
        assert_eq!(gone.err().unwrap().kind(), io::ErrorKind::NotFound);
        assert!(disk.remove("d/a".as_ref()).is_err());
        assert!(disk.list("e".as_ref()).is_err());
        disk.create_dir_all("e".as_ref()).unwrap();
        assert!(disk.list("e".as_ref()).unwrap().is_empty());
    }
}
