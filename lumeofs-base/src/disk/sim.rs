//! A disk in memory that behaves as badly as the rules allow.
//!
//! Everything that no sync made durable may be lost, torn or reordered by [`SimDisk::crash`], and
//! errors can be injected. A crash test runs a workload once to count its N durability points, then
//! for each k runs it with [`SimDisk::freeze_after_syncs`], crashes with several seeds, reopens what
//! is left and checks what had been acknowledged before the freeze.
//!
//! A *durability point* is a file sync, a directory sync or a write to a dsync file.

mod image;
mod node;
mod tree;

use super::{Disk, DiskFile, OpenMode};
use crate::limits::BLOCK_SIZE;
use crate::rng::SplitMix64;
use node::{Change, Node};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tree::{Entry, NameChange, NodeNumber, Tree, normal};

/// Size that [`Disk::space`] reports where no capacity was set.
const CAPACITY_BYTES_DEFAULT: u64 = 1 << 40;

/// A simulated disk. Clones share it.
#[derive(Clone, Default)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    tree: Tree,
    nodes: HashMap<NodeNumber, Node>,
    next_node: NodeNumber,
    power: Power,
    syncs: u64,
    freeze: Option<Freeze>,
    write_fault: Option<io::ErrorKind>,
    sync_fault: Option<io::ErrorKind>,
    capacity_bytes: Option<u64>,
}

/// Where durability stops.
#[derive(Clone, Copy)]
struct Freeze {
    after_syncs: u64,
    calls_fail: bool,
}

/// How far the power cut has come. What was under way when the power went may be kept in part; what
/// would have been started after the first durability point that never finished, can not.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Power {
    #[default]
    On,
    /// The last durability point that succeeds has passed.
    Failing,
    /// One more was asked for: from here on nothing reaches the disk.
    Cut,
}

impl SimDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// After `syncs` durability points (counted from the disk's creation) nothing becomes durable
    /// any more, while calls go on to succeed. What was acknowledged after [`SimDisk::is_frozen`]
    /// turned true does not count.
    pub fn freeze_after_syncs(&self, syncs: u64) {
        self.set_freeze(Freeze {
            after_syncs: syncs,
            calls_fail: false,
        });
    }

    /// As [`SimDisk::freeze_after_syncs`], and every later durability point and write fails, so that
    /// whatever was acknowledged is really durable.
    pub fn fail_after_syncs(&self, syncs: u64) {
        self.set_freeze(Freeze {
            after_syncs: syncs,
            calls_fail: true,
        });
    }

    /// Whether durability has ended.
    pub fn is_frozen(&self) -> bool {
        self.state.lock().power != Power::On
    }

    /// Durability points that were asked for so far.
    pub fn sync_count(&self) -> u64 {
        self.state.lock().syncs
    }

    /// What a power cut at this moment leaves, as a new disk without faults; this one goes on
    /// unchanged. Each unsynced write is lost, kept or torn between sectors of 512 bytes, each
    /// unsynced change of a directory is lost or kept, as `seed` decides. The capacity stays.
    #[must_use]
    pub fn crash(&self, seed: u64) -> SimDisk {
        let mut rng = SplitMix64::new(seed);
        let state = self.state.lock();
        let names = state.tree.after_crash(&mut rng);
        let mut numbers: Vec<_> = names
            .values()
            .filter_map(|entry| match entry {
                Entry::File(number) => Some(*number),
                Entry::Directory => None,
            })
            .collect();
        numbers.sort_unstable();
        numbers.dedup();
        let left = numbers.into_iter().filter_map(|number| {
            let image = state.nodes.get(&number)?.after_crash(&mut rng);
            Some((
                number,
                Node {
                    volatile: image.clone(),
                    durable: image,
                    ..Node::default()
                },
            ))
        });
        let nodes = left.collect();
        let tree = Tree {
            volatile: names.clone(),
            durable: names,
            unsynced: Vec::new(),
        };
        let after = State {
            tree,
            nodes,
            next_node: state.next_node,
            capacity_bytes: state.capacity_bytes,
            ..State::default()
        };
        SimDisk {
            state: Arc::new(Mutex::new(after)),
        }
    }

    /// Every write fails with `kind` from now on; `None` ends it.
    pub fn fail_writes(&self, kind: impl Into<Option<io::ErrorKind>>) {
        self.state.lock().write_fault = kind.into();
    }

    /// Every sync fails with `kind` from now on; `None` ends it. As on a real kernel, what a failed
    /// sync did not save is not saved by a later one either. Writes to dsync files fail too.
    pub fn fail_syncs(&self, kind: impl Into<Option<io::ErrorKind>>) {
        self.state.lock().sync_fault = kind.into();
    }

    /// Limits the bytes of all files together (in whole blocks); writes beyond fail with
    /// `StorageFull`. `None` ends it.
    pub fn set_capacity(&self, bytes: impl Into<Option<u64>>) {
        self.state.lock().capacity_bytes = bytes.into();
    }

    /// Damages one stored byte: inverts its lowest bit, durably and unnoticed.
    ///
    /// # Panics
    /// If there is no such byte.
    pub fn flip_bit(&self, path: &Path, offset: u64) {
        let mut state = self.state.lock();
        let number = state
            .tree
            .file(&normal(path))
            .expect("the file to damage exists");
        let node = state.node(number);
        assert!(
            node.volatile.flip_bit(offset),
            "no byte {offset} in {}",
            path.display()
        );
        node.durable.flip_bit(offset);
    }

    fn set_freeze(&self, freeze: Freeze) {
        let mut state = self.state.lock();
        state.freeze = Some(freeze);
        if state.syncs >= freeze.after_syncs {
            state.power = Power::Failing;
        }
    }
}

impl State {
    fn node(&mut self, number: NodeNumber) -> &mut Node {
        self.nodes
            .get_mut(&number)
            .expect("nodes with names or handles are kept")
    }

    /// Whether a crash may keep changes that are made now.
    fn records(&self) -> bool {
        self.power != Power::Cut
    }

    fn check_write(&self) -> io::Result<()> {
        if self.power == Power::Cut && self.freeze.is_some_and(|freeze| freeze.calls_fail) {
            return Err(io::Error::other("the simulated disk has lost power"));
        }
        self.write_fault.map_or(Ok(()), |kind| Err(kind.into()))
    }

    /// Counts a durability point; whether what it covers becomes durable.
    fn durability_point(&mut self) -> io::Result<bool> {
        self.syncs += 1;
        if let Some(kind) = self.sync_fault {
            return Err(kind.into());
        }
        let Some(freeze) = self.freeze else {
            return Ok(true);
        };
        if self.power == Power::On {
            if self.syncs >= freeze.after_syncs {
                self.power = Power::Failing;
            }
            return Ok(true);
        }
        self.power = Power::Cut;
        if freeze.calls_fail {
            return Err(io::Error::other("the simulated disk has lost power"));
        }
        Ok(false)
    }

    fn used_bytes(&self) -> u64 {
        let reachable = self.nodes.iter().filter(|(number, node)| {
            node.handles > 0
                || self
                    .tree
                    .volatile
                    .values()
                    .any(|entry| *entry == Entry::File(**number))
        });
        reachable
            .map(|(_, node)| node.volatile.allocated_bytes())
            .sum()
    }

    fn check_space(&mut self, number: NodeNumber, offset: u64, len: u64) -> io::Result<()> {
        let Some(capacity) = self.capacity_bytes else {
            return Ok(());
        };
        let missing = self.node(number).volatile.missing_bytes(offset, len);
        if missing > 0 && self.used_bytes() + missing > capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    /// Drops files that nothing leads to any more.
    fn collect_garbage(&mut self) {
        let tree = &self.tree;
        self.nodes
            .retain(|number, node| node.handles > 0 || tree.refers_to(*number));
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let path = normal(path);
        let mut state = self.state.lock();
        let number = match state.tree.file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && mode.create => {
                state.check_write()?;
                state.tree.require_parent(&path)?;
                let number = state.next_node;
                state.next_node += 1;
                state.nodes.insert(number, Node::default());
                let recorded = state.records();
                let entry = Entry::File(number);
                state
                    .tree
                    .change(NameChange::Create { path, entry }, recorded);
                number
            }
            found => found?,
        };
        state.node(number).handles += 1;
        Ok(Arc::new(SimFile {
            disk: self.clone(),
            number,
            mode,
        }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        let mut current = PathBuf::new();
        for part in &normal(path) {
            current.push(part);
            match state.tree.volatile.get(&current) {
                Some(Entry::Directory) => {}
                Some(Entry::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
                None => {
                    state.check_write()?;
                    let recorded = state.records();
                    let (path, entry) = (current.clone(), Entry::Directory);
                    state
                        .tree
                        .change(NameChange::Create { path, entry }, recorded);
                }
            }
        }
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let path = normal(path);
        let state = self.state.lock();
        state.tree.require_directory(&path)?;
        Ok(state.tree.list(&path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (normal(from), normal(to));
        let mut state = self.state.lock();
        state.check_write()?;
        state.tree.file(&from)?;
        state.tree.require_parent(&to)?;
        if state.tree.volatile.get(&to) == Some(&Entry::Directory) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let recorded = state.records();
        if from != to {
            state.tree.change(NameChange::Rename { from, to }, recorded);
        }
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let path = normal(path);
        let mut state = self.state.lock();
        state.check_write()?;
        state.tree.file(&path)?;
        let recorded = state.records();
        state.tree.change(NameChange::Remove { path }, recorded);
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let path = normal(path);
        let mut state = self.state.lock();
        state.tree.require_directory(&path)?;
        if state.durability_point()? {
            state.tree.sync(&path);
            state.collect_garbage();
        }
        Ok(())
    }

    fn space(&self, _path: &Path) -> io::Result<(u64, u64)> {
        let state = self.state.lock();
        let capacity = state.capacity_bytes.unwrap_or(CAPACITY_BYTES_DEFAULT);
        Ok((capacity, capacity.saturating_sub(state.used_bytes())))
    }
}

struct SimFile {
    disk: SimDisk,
    number: NodeNumber,
    mode: OpenMode,
}

impl SimFile {
    /// What the kernel answers to unaligned direct I/O.
    fn check_alignment(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let aligned = buf.len().is_multiple_of(BLOCK_SIZE)
            && offset.is_multiple_of(BLOCK_SIZE as u64)
            && (buf.as_ptr() as usize).is_multiple_of(BLOCK_SIZE);
        if self.mode.direct && !aligned {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "unaligned direct I/O",
            ));
        }
        Ok(())
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        self.disk.state.lock().node(self.number).handles -= 1;
    }
}

impl DiskFile for SimFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.check_alignment(buf, offset)?;
        let mut state = self.disk.state.lock();
        let image = &state.node(self.number).volatile;
        if offset + buf.len() as u64 > image.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        image.read(offset, buf);
        Ok(())
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.check_alignment(buf, offset)?;
        let mut state = self.disk.state.lock();
        state.check_write()?;
        state.check_space(self.number, offset, buf.len() as u64)?;
        let recorded = state.records();
        let reached = if self.mode.dsync {
            state.durability_point()
        } else {
            Ok(false)
        };
        let durable = matches!(reached, Ok(true));
        let change = Change::Write {
            offset,
            data: buf.to_vec(),
            durable,
        };
        state.node(self.number).change(change, recorded);
        reached.map(drop)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        match state.durability_point() {
            Ok(true) => state.node(self.number).sync(),
            Ok(false) => {}
            Err(error) => {
                if state.power == Power::On {
                    state.node(self.number).fail_sync();
                }
                return Err(error);
            }
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.state.lock().node(self.number).volatile.len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        state.check_write()?;
        let recorded = state.records();
        state
            .node(self.number)
            .change(Change::SetLen(len), recorded);
        Ok(())
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        state.check_write()?;
        state.check_space(self.number, offset, len)?;
        let recorded = state.records();
        state
            .node(self.number)
            .change(Change::Allocate { offset, len }, recorded);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
