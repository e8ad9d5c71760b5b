//! A second, naive filesystem: a tree of structs, everything derived by looking at all of it.
//!
//! It shares no code with the state machine. It knows the rules by heart and the sizes by counting,
//! so that a counter, an orphan or a parent pointer that goes wrong over there shows up here.

mod attributes;
mod names;

use attributes::strip;

use crate::op::{
    Caller, ChunkRef, CreateMode, Mutation, NewNode, RenameMode, Reply, SetAttr, SetTime, TrashKey,
    XattrMode,
};
use lumeofs_base::{Attr, ChunkId, ChunkIndex, Code, FileKind, GroupId, InodeId, Timestamp};
use std::collections::{BTreeMap, BTreeSet};

const CHUNK: u64 = 64 << 20;
/// The attribute that goes when contents or owner change.
pub(super) const CAPABILITIES: &[u8] = b"security.capability";

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) attr: Attr,
    pub(super) entries: BTreeMap<Vec<u8>, InodeId>,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) chunks: BTreeMap<u32, (u64, u32)>,
    /// Where `..` of a removed directory leads.
    parent: InodeId,
}

#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) nodes: BTreeMap<InodeId, Node>,
    pub(super) now: Timestamp,
    pub(super) freed: BTreeMap<u64, u32>,
    /// Made without a name, and never given one.
    unnamed: BTreeSet<InodeId>,
    /// In the trash: since when, by whom, and what path it had.
    pub(super) trash: BTreeMap<InodeId, (Timestamp, u32, Vec<u8>)>,
    keeps: bool,
    groups: Vec<u32>,
    next_ino: u64,
    next_chunk: u64,
}

/// Nanoseconds since 1970.
pub(super) fn ns(time: Timestamp) -> u64 {
    time.secs.cast_unsigned() * 1_000_000_000 + u64::from(time.nanos)
}

type Answer = Result<Reply, Code>;

impl Model {
    pub(super) fn new(now: Timestamp, groups: &[GroupId]) -> Self {
        let mut model = Self {
            nodes: BTreeMap::new(),
            now,
            freed: BTreeMap::new(),
            unnamed: BTreeSet::new(),
            trash: BTreeMap::new(),
            keeps: false,
            groups: groups.iter().map(|group| group.0).collect(),
            next_ino: 1,
            next_chunk: 1,
        };
        model.node(FileKind::Directory, 0o755, 0, 0, InodeId::ROOT);
        model
    }

    fn node(&mut self, kind: FileKind, mode: u16, uid: u32, gid: u32, parent: InodeId) -> InodeId {
        let ino = InodeId(self.next_ino);
        self.next_ino += 1;
        let now = self.now;
        let attr = Attr {
            ino,
            kind,
            mode,
            uid,
            gid,
            nlink: 0,
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
        let (entries, xattrs, chunks) = Default::default();
        self.nodes.insert(
            ino,
            Node {
                attr,
                entries,
                xattrs,
                chunks,
                parent,
            },
        );
        ino
    }

    fn is_dir(&self, ino: InodeId) -> bool {
        self.nodes[&ino].attr.kind == FileKind::Directory
    }

    fn names(&self, ino: InodeId) -> usize {
        self.nodes
            .values()
            .flat_map(|node| node.entries.values())
            .filter(|&&to| to == ino)
            .count()
    }

    fn holder(&self, ino: InodeId) -> InodeId {
        let holds = |node: &&Node| node.entries.values().any(|&to| to == ino);
        self.nodes
            .values()
            .find(holds)
            .map_or(InodeId::ROOT, |node| node.attr.ino)
    }

    /// Attributes with everything counted.
    pub(super) fn attr(&self, ino: InodeId) -> Attr {
        let node = &self.nodes[&ino];
        let mut attr = node.attr.clone();
        let names = self.names(ino) as u32;
        if self.is_dir(ino) {
            let subdirectories = node.entries.values().filter(|&&to| self.is_dir(to)).count();
            let live = names > 0 || ino == InodeId::ROOT;
            attr.nlink = if live { 2 + subdirectories as u32 } else { 0 };
            attr.size = node.entries.len() as u64;
        } else {
            attr.nlink = names;
        }
        attr.has_xattrs = !node.xattrs.is_empty();
        let blocks = attr.size.div_ceil(4096) * 4096;
        attr.allocated = match attr.kind {
            FileKind::Regular => blocks.min(node.chunks.len() as u64 * CHUNK),
            _ => 0,
        };
        attr
    }

    pub(super) fn parent(&self, ino: InodeId) -> InodeId {
        self.nodes[&ino].parent
    }

    pub(super) fn orphans(&self) -> Vec<InodeId> {
        let inos = self.nodes.keys().copied();
        let is_orphan = |ino: &InodeId| *ino != InodeId::ROOT && self.names(*ino) == 0;
        inos.filter(|ino| is_orphan(ino) && !self.trash.contains_key(ino))
            .collect()
    }

    pub(super) fn purge(&mut self, ino: InodeId) {
        if self.orphans().contains(&ino) {
            let node = self.nodes.remove(&ino).unwrap();
            self.freed.extend(node.chunks.into_values());
        }
    }

    fn dir(&self, ino: InodeId) -> Result<&Node, Code> {
        let node = self.nodes.get(&ino).ok_or(Code::NotFound)?;
        match node.attr.kind {
            FileKind::Directory if self.attr(ino).nlink > 0 => Ok(node),
            FileKind::Directory => Err(Code::NotFound),
            _ => Err(Code::NotDirectory),
        }
    }

    fn note_change(&mut self, ino: InodeId) {
        let now = self.now;
        let attr = self.attr_mut(ino);
        attr.ctime = attr.ctime.max(now);
    }

    fn touch(&mut self, dir: InodeId) {
        let attr = &mut self.nodes.get_mut(&dir).unwrap().attr;
        (attr.mtime, attr.ctime) = (self.now, self.now);
    }

    fn attr_mut(&mut self, ino: InodeId) -> &mut Attr {
        &mut self.nodes.get_mut(&ino).unwrap().attr
    }

    fn may(&self, caller: &Caller, ino: InodeId, want: &str) -> Result<(), Code> {
        let attr = &self.nodes[&ino].attr;
        if caller.trusted || caller.uid == 0 {
            return Ok(());
        }
        let digit = if caller.uid == attr.uid {
            attr.mode / 64 % 8
        } else if caller.gid == attr.gid || caller.groups.contains(&attr.gid) {
            attr.mode / 8 % 8
        } else {
            attr.mode % 8
        };
        let granted = |letter| match letter {
            'r' => digit / 4 % 2 == 1,
            'w' => digit / 2 % 2 == 1,
            _ => digit % 2 == 1,
        };
        if want.chars().all(granted) {
            Ok(())
        } else {
            Err(Code::Access)
        }
    }

    fn owns(&self, caller: &Caller, ino: InodeId) -> Result<(), Code> {
        let owner = self.nodes[&ino].attr.uid;
        let good = caller.trusted || caller.uid == 0 || caller.uid == owner;
        if good {
            Ok(())
        } else {
            Err(Code::NotPermitted)
        }
    }

    fn may_remove(&self, caller: &Caller, dir: InodeId, ino: InodeId) -> Result<(), Code> {
        self.may(caller, dir, "wx")?;
        if self.nodes[&dir].attr.mode & 0o1000 == 0 {
            return Ok(());
        }
        self.owns(caller, dir).or_else(|_| self.owns(caller, ino))
    }

    fn chunk(&mut self, ino: InodeId, index: u32) {
        let group = self.groups[(self.next_chunk % self.groups.len() as u64) as usize];
        let chunk = (self.next_chunk, group);
        let chunks = &mut self.nodes.get_mut(&ino).unwrap().chunks;
        if let std::collections::btree_map::Entry::Vacant(entry) = chunks.entry(index) {
            entry.insert(chunk);
            self.next_chunk += 1;
        }
    }

    fn chunk_refs(&self, ino: InodeId, from: u64, to: u64) -> Vec<ChunkRef> {
        let chunks = self.nodes[&ino].chunks.range(from as u32..to as u32);
        chunks
            .map(|(&index, &(chunk, group))| ChunkRef {
                index: ChunkIndex(index),
                chunk: ChunkId(chunk),
                group: GroupId(group),
            })
            .collect()
    }

    /// Applies a mutation. On an error the caller must take its copy back.
    pub(super) fn mutate(&mut self, caller: &Caller, mutation: &Mutation) -> Answer {
        match mutation {
            Mutation::Create {
                parent,
                name,
                node,
                mode,
                exclusive,
            } => self.create(caller, *parent, name, node, *mode, *exclusive),
            Mutation::Access { accesses } => {
                if !caller.trusted {
                    return Err(Code::NotPermitted);
                }
                for access in accesses {
                    let node = self.nodes.get_mut(&access.ino);
                    if let Some(node) = node.filter(|node| node.attr.atime == access.from) {
                        node.attr.atime = access.to;
                    }
                }
                Ok(Reply::Done)
            }
            Mutation::CreateUnnamed { parent, mode } => self.create_unnamed(caller, *parent, *mode),
            Mutation::Link { ino, parent, name } => self.link(caller, *ino, *parent, name),
            Mutation::Restore { ino, parent, name } => self.restore(caller, *ino, *parent, name),
            Mutation::EmptyTrash { entries } => {
                Self::is_root(caller)?;
                self.trash.retain(|ino, (deleted, ..)| {
                    let is_it = |key: &TrashKey| key.ino == *ino && key.deleted_ns == ns(*deleted);
                    !entries.iter().any(is_it)
                });
                Ok(Reply::Done)
            }
            Mutation::SetTrash { keep_s } => {
                Self::is_root(caller)?;
                self.keeps = keep_s.is_some();
                Ok(Reply::Done)
            }
            Mutation::Unlink { parent, name } => self.remove(caller, *parent, name, false),
            Mutation::Rmdir { parent, name } => self.remove(caller, *parent, name, true),
            Mutation::Rename {
                parent,
                name,
                new_parent,
                new_name,
                mode,
            } => self.rename(caller, (*parent, name), (*new_parent, new_name), *mode),
            Mutation::SetAttr { ino, set } => self.set_attr(caller, *ino, set),
            Mutation::SetXattr {
                ino,
                name,
                value,
                mode,
            } => {
                self.may_change_xattr(caller, *ino, name)?;
                let exists = self.nodes[ino].xattrs.contains_key(name);
                match mode {
                    XattrMode::Create if exists => return Err(Code::Exists),
                    XattrMode::Replace if !exists => return Err(Code::NoData),
                    _ => {}
                }
                let now = self.now;
                let node = self.nodes.get_mut(ino).unwrap();
                node.xattrs.insert(name.clone(), value.clone());
                node.attr.ctime = node.attr.ctime.max(now);
                Ok(Reply::Done)
            }
            Mutation::RemoveXattr { ino, name } => {
                self.may_change_xattr(caller, *ino, name)?;
                let now = self.now;
                let node = self.nodes.get_mut(ino).unwrap();
                node.xattrs.remove(name).ok_or(Code::NoData)?;
                node.attr.ctime = node.attr.ctime.max(now);
                Ok(Reply::Done)
            }
            Mutation::CutTail { ino } => {
                // No session ever ends here.
                self.writable(caller, *ino)?;
                Ok(Reply::Attr(self.attr(*ino)))
            }
            Mutation::Allocate { ino, first, count } => {
                self.writable(caller, *ino)?;
                for index in first.0..first.0 + count {
                    self.chunk(*ino, index);
                }
                let (from, to) = (u64::from(first.0), u64::from(first.0 + count));
                Ok(Reply::Chunks {
                    attr: self.attr(*ino),
                    chunks: self.chunk_refs(*ino, from, to),
                })
            }
            Mutation::Publish {
                ino,
                size,
                truncations,
                clear_suid,
            }
            | Mutation::Extend {
                ino,
                size,
                truncations,
                clear_suid,
                ..
            } => {
                self.grow(caller, *ino, *size, *truncations)?;
                self.written(*ino, *clear_suid);
                Ok(Reply::Attr(self.attr(*ino)))
            }
            Mutation::Flush {
                ino,
                size,
                truncations,
                clear_suid,
                mtime,
                ctime,
                set,
                ..
            } => {
                if !caller.trusted {
                    return Err(Code::NotPermitted);
                }
                self.grow(caller, *ino, *size, *truncations)?;
                let before = self.nodes[ino].attr.ctime;
                self.written(*ino, *clear_suid);
                let attr = self.attr_mut(*ino);
                (attr.mtime, attr.ctime) = (*mtime, before.max(*ctime));
                attr.uid = set.uid.unwrap_or(attr.uid);
                attr.gid = set.gid.unwrap_or(attr.gid);
                if set.uid.is_some() || set.gid.is_some() {
                    strip(attr);
                }
                attr.mode = set.mode.unwrap_or(attr.mode);
                Ok(Reply::Attr(self.attr(*ino)))
            }
            Mutation::Append {
                ino,
                len,
                clear_suid,
            } => {
                self.writable(caller, *ino)?;
                if self.nodes[ino].attr.tail_unclean {
                    return Err(Code::StaleWrite);
                }
                let offset = self.nodes[ino].attr.size;
                let (from, to) = (offset / CHUNK, (offset + len).div_ceil(CHUNK));
                for index in from..to {
                    self.chunk(*ino, index as u32);
                }
                self.attr_mut(*ino).size += len;
                self.written(*ino, *clear_suid);
                let chunks = self.chunk_refs(*ino, from, to);
                Ok(Reply::Appended {
                    offset,
                    attr: self.attr(*ino),
                    chunks,
                })
            }
            Mutation::Lock { .. } | Mutation::Unlock { .. } | Mutation::ReturnLocks { .. } => {
                unreachable!("locks are compared with a model of bytes, in locks.rs")
            }
            Mutation::Make { .. } | Mutation::Reserve { .. } => {
                unreachable!("what mounts have made is compared in made.rs")
            }
            Mutation::TailClean { ino, truncations } => {
                self.writable(caller, *ino)?;
                if self.nodes[ino].attr.truncations != *truncations {
                    return Err(Code::StaleWrite);
                }
                self.attr_mut(*ino).tail_unclean = false;
                Ok(Reply::Attr(self.attr(*ino)))
            }
        }
    }

    fn may_change_xattr(&self, caller: &Caller, ino: InodeId, name: &[u8]) -> Result<(), Code> {
        let node = self.nodes.get(&ino).ok_or(Code::Stale)?;
        if !caller.trusted && caller.uid != 0 {
            match node.attr.kind {
                _ if name == CAPABILITIES => return Err(Code::NotPermitted),
                FileKind::Regular => {}
                FileKind::Directory if node.attr.mode & 0o1000 != 0 => {
                    self.owns(caller, ino)?;
                }
                FileKind::Directory => {}
                _ => return Err(Code::NotPermitted),
            }
        }
        self.may(caller, ino, "w")
    }

    fn drop_capabilities(&mut self, ino: InodeId) {
        let node = self.nodes.get_mut(&ino).unwrap();
        node.xattrs.remove(CAPABILITIES);
    }

    fn grow(
        &mut self,
        caller: &Caller,
        ino: InodeId,
        size: u64,
        truncations: u32,
    ) -> Result<(), Code> {
        self.writable(caller, ino)?;
        let attr = self.attr_mut(ino);
        if attr.truncations != truncations || (size > attr.size && attr.tail_unclean) {
            return Err(Code::StaleWrite);
        }
        attr.size = attr.size.max(size);
        Ok(())
    }

    fn writable(&self, caller: &Caller, ino: InodeId) -> Result<(), Code> {
        let node = self.nodes.get(&ino).ok_or(Code::Stale)?;
        if node.attr.kind != FileKind::Regular {
            return Err(Code::Invalid);
        }
        if node.attr.uid == caller.uid {
            Ok(())
        } else {
            self.may(caller, ino, "w")
        }
    }

    fn written(&mut self, ino: InodeId, clear_suid: bool) {
        let now = self.now;
        self.drop_capabilities(ino);
        let attr = self.attr_mut(ino);
        (attr.mtime, attr.ctime) = (now, attr.ctime.max(now));
        if clear_suid {
            strip(attr);
        }
    }
}
