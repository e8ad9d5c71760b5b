//! What is in the filesystem in memory.

use lumeofs_base::{Attr, Code, FileKind, FsError, FsResult, InodeId, Timestamp};
use lumeofs_client::WriteMode;
use std::collections::{BTreeMap, HashMap};

#[derive(Default)]
pub(super) struct State {
    pub(super) nodes: HashMap<InodeId, Node>,
    /// Time, cookies and inode ids.
    pub(super) last: u64,
    pub(super) waiting: usize,
    pub(super) open_gate: bool,
    /// Names that the next so many lookups do not find, although they are there.
    pub(super) hidden: HashMap<Vec<u8>, usize>,
    pub(super) writes: Vec<WriteMode>,
    pub(super) fsyncs: usize,
    /// What closing fails with.
    pub(super) lost: Option<FsError>,
}

pub(super) struct Node {
    pub(super) attr: Attr,
    pub(super) data: Vec<u8>,
    pub(super) target: Vec<u8>,
    pub(super) entries: BTreeMap<Vec<u8>, (u64, InodeId)>,
    pub(super) parent: InodeId,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) opens: usize,
}

impl State {
    pub(super) fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }
    pub(super) fn now(&mut self) -> Timestamp {
        let nanos = self.next() as u32;
        Timestamp {
            secs: 1_700_000_000,
            nanos,
        }
    }
    pub(super) fn node(&mut self, ino: InodeId) -> FsResult<&mut Node> {
        self.nodes.get_mut(&ino).ok_or_else(|| Code::Stale.into())
    }
    pub(super) fn find(&mut self, parent: InodeId, name: &[u8]) -> FsResult<InodeId> {
        let found = self.node(parent)?.entries.get(name).map(|&(_, ino)| ino);
        found.ok_or_else(|| Code::NotFound.into())
    }
    pub(super) fn insert(&mut self, parent: InodeId, name: &[u8], ino: InodeId) -> FsResult<()> {
        let cookie = self.next() + 100;
        if self.node(parent)?.entries.contains_key(name) {
            return Err(Code::Exists.into());
        }
        self.node(parent)?
            .entries
            .insert(name.to_vec(), (cookie, ino));
        Ok(())
    }
    pub(super) fn remove(&mut self, parent: InodeId, name: &[u8]) -> FsResult<()> {
        let ino = self.find(parent, name)?;
        self.node(parent)?.entries.remove(name);
        let node = self.node(ino)?;
        node.attr.nlink -= if node.attr.kind == FileKind::Directory {
            2
        } else {
            1
        };
        self.reap(ino);
        Ok(())
    }
    pub(super) fn reap(&mut self, ino: InodeId) {
        if self
            .nodes
            .get(&ino)
            .is_some_and(|node| node.attr.nlink == 0 && node.opens == 0)
        {
            self.nodes.remove(&ino);
        }
    }
    pub(super) fn touch(&mut self, ino: InodeId) -> FsResult<Attr> {
        let now = self.now();
        let node = self.node(ino)?;
        (node.attr.mtime, node.attr.ctime) = (now, now);
        node.attr.size = node.data.len() as u64;
        node.attr.allocated = node.attr.size.next_multiple_of(4096);
        Ok(node.attr.clone())
    }
    pub(super) fn add(&mut self, parent: InodeId, kind: FileKind, mode: u16) -> Attr {
        let ino = InodeId(self.next());
        let now = self.now();
        let attr = Attr {
            ino,
            kind,
            mode,
            uid: 0,
            gid: 0,
            nlink: if kind == FileKind::Directory { 2 } else { 1 },
            rdev: 0,
            size: 0,
            allocated: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            truncations: 0,
            tail_unclean: false,
            has_xattrs: false,
        };
        let node = Node {
            attr: attr.clone(),
            data: Vec::new(),
            target: Vec::new(),
            entries: BTreeMap::new(),
            parent,
            xattrs: BTreeMap::new(),
            opens: 0,
        };
        self.nodes.insert(ino, node);
        attr
    }
}
