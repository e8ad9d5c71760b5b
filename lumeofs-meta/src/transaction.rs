//! One Raft entry being applied: the tables with the counters that many operations share.
//!
//! Counters and sessions are read once and written back once per entry. An operation makes all its
//! checks before its first change, since there is no undoing here.

use crate::acl::Acls;
use crate::change::{Applied, Change, Changes};
use crate::directory;
use crate::keys;
use crate::locks;
use crate::made;
use crate::op::{Caller, ChunkRef, DirEntry, NewNode, Outcome};
use crate::record::{ChunkRow, Dentry, Inode, Orphan, Session, State, decode, encode};
use crate::tables::Tables;
use crate::trash;
use lumeofs_base::limits::CHUNK_SIZE_BYTES;
use lumeofs_base::{
    Attr, ChunkId, ChunkIndex, Code, FsError, FsResult, GroupId, InodeId, SessionId, SlotId,
    Timestamp,
};
use std::collections::BTreeMap;
use std::ops::Range;

/// An entry being applied.
pub(crate) struct Tx<'a> {
    /// The tables.
    pub(crate) tables: &'a mut dyn Tables,
    /// Counters; written back by [`Tx::finish`].
    pub(crate) state: State,
    /// Groups for new chunks, best first.
    groups: &'a [GroupId],
    /// Next inode counters of the slots that this entry touched.
    counters: BTreeMap<SlotId, u64>,
    /// Sessions that this entry touched.
    sessions: BTreeMap<SessionId, Session>,
    /// What the present command touched.
    changes: Changes,
}

impl<'a> Tx<'a> {
    /// Begins an entry at log time `max(previous, now)`. The first one makes the root directory.
    pub(crate) fn begin(
        tables: &'a mut dyn Tables,
        index: u64,
        now: Timestamp,
        groups: &'a [GroupId],
    ) -> Self {
        let found = state(tables);
        let state = found.clone().unwrap_or(State {
            applied: 0,
            time: now,
            next_chunk: 1,
            next_session: 1,
            inodes: 0,
            bytes: 0,
            chunk_size: CHUNK_SIZE_BYTES,
            sessions_ended: 0,
            fence: 0,
        });
        let mut tx = Self {
            tables,
            state,
            groups,
            counters: BTreeMap::new(),
            sessions: BTreeMap::new(),
            changes: Changes::default(),
        };
        tx.state.applied = index;
        tx.state.time = tx.state.time.max(now);
        if found.is_none() {
            tx.make_root();
        }
        tx
    }

    fn make_root(&mut self) {
        let ino = self
            .new_ino(InodeId::ROOT.slot())
            .expect("a new slot has free counters");
        assert_eq!(ino, InodeId::ROOT, "the root is the first inode");
        let attr = made::attr(ino, &NewNode::Directory, 0o755, (0, 0), self.now());
        let mut root = self.new_inode(attr);
        root.parent = InodeId::ROOT;
        self.save(&mut root);
    }

    /// Writes the counters back.
    pub(crate) fn finish(self) {
        for (slot, counter) in &self.counters {
            self.tables.put(&keys::counter(*slot), encode(counter));
        }
        for (id, session) in &self.sessions {
            self.tables.put(&keys::session(*id), encode(session));
        }
        self.tables.put(&keys::STATE, encode(&self.state));
    }

    /// What became of a command that ran now.
    pub(crate) fn applied(&mut self, outcome: Outcome) -> Applied {
        Applied {
            outcome,
            changes: self.changes.take(),
            repeated: false,
        }
    }

    /// Log time.
    pub(crate) fn now(&self) -> Timestamp {
        self.state.time
    }

    /// An inode, also one without a name. `Stale` if it is gone.
    pub(crate) fn inode(&self, ino: InodeId) -> FsResult<Inode> {
        inode(self.tables, ino)
    }

    /// A directory that has a name still.
    pub(crate) fn directory(&self, ino: InodeId) -> FsResult<Inode> {
        live_directory(self.tables, ino)
    }

    /// The inode of an entry or a parent pointer that was just read.
    pub(crate) fn linked(&self, ino: InodeId) -> Inode {
        self.inode(ino)
            .unwrap_or_else(|error| panic!("a name leads to no inode: {error}"))
    }

    /// A fresh inode with everything but its parent. It counts from now on.
    pub(crate) fn new_inode(&mut self, attr: Attr) -> Inode {
        self.state.inodes += 1;
        Inode {
            attr,
            parent: InodeId(0),
            position: 0,
            chunk_rows: 0,
            xattr_list_bytes: 0,
            acls: Acls::default(),
            target: Vec::new(),
            sessions_ended: self.state.sessions_ended,
        }
    }

    /// Whether bytes may lie past the size that a session wrote and did not publish before it ended.
    pub(crate) fn has_suspect_tail(&self, inode: &Inode) -> bool {
        inode.chunk_rows > 0 && inode.sessions_ended != self.state.sessions_ended
    }

    /// The next inode id of a slot.
    pub(crate) fn new_ino(&mut self, slot: SlotId) -> FsResult<InodeId> {
        self.new_inos(slot, 1)
    }

    /// The first of the next `count` inode ids of a slot.
    pub(crate) fn new_inos(&mut self, slot: SlotId, count: u32) -> FsResult<InodeId> {
        let tables = &*self.tables;
        let next = self.counters.entry(slot).or_insert_with(|| {
            tables
                .get(&keys::counter(slot))
                .map_or(1, |value| decode::<u64>(&value))
        });
        let end = *next + u64::from(count);
        if (end - 1) >> InodeId::COUNTER_BITS != 0 {
            return Err(FsError::new(
                Code::NoSpace,
                format!("slot {slot} has no inode ids left"),
            ));
        }
        let ino = InodeId::new(slot, *next);
        *next = end;
        Ok(ino)
    }

    /// Stores an inode, keeps the usage counter exact and has the access ACL follow the mode.
    pub(crate) fn save(&mut self, inode: &mut Inode) {
        if inode.acls.follow(inode.attr.mode) {
            self.note_xattrs(inode.attr.ino);
        }
        inode.attr.has_xattrs = inode.all_xattr_list_bytes() > 0;
        let bytes = inode.allocated(self.state.chunk_size);
        self.state.bytes = self.state.bytes - inode.attr.allocated + bytes;
        inode.attr.allocated = bytes;
        self.tables.put(&keys::inode(inode.attr.ino), encode(inode));
        self.changes.note(Change::Attr(inode.attr.clone()));
    }

    /// Removes an inode that has neither chunks nor extended attributes any more.
    pub(crate) fn forget(&mut self, inode: &Inode) {
        let ino = inode.attr.ino;
        self.state.inodes -= 1;
        self.state.bytes -= inode.attr.allocated;
        self.tables.delete(&keys::inode(ino));
        locks::forget_inode(self, ino);
        self.changes.note(Change::Gone { ino });
    }

    /// Puts an entry at a position that [`directory::find`] gave for its name, in place of what is there.
    pub(crate) fn put_name(&mut self, parent: InodeId, position: u64, dentry: Dentry) {
        let entry = DirEntry {
            cookie: position,
            name: dentry.name.clone(),
            ino: dentry.ino,
            kind: dentry.kind,
        };
        self.changes.note(Change::Name {
            parent,
            name: dentry.name.clone(),
            entry: Some(entry),
        });
        directory::put(self.tables, parent, position, dentry);
    }

    /// Removes the entry of a name at its position: see [`directory::remove`].
    pub(crate) fn remove_name(&mut self, parent: InodeId, position: u64, name: &[u8]) {
        directory::remove(self.tables, parent, position);
        self.changes.note(Change::Name {
            parent,
            name: name.to_vec(),
            entry: None,
        });
    }

    /// Stores an extended attribute. The caller counts its name in the inode.
    pub(crate) fn put_xattr(&mut self, ino: InodeId, name: &[u8], value: &[u8]) {
        // No version byte: the value is the user's own bytes, and always will be.
        self.tables.put(&keys::xattr(ino, name), value.to_vec());
        self.note_xattrs(ino);
    }

    /// Removes an extended attribute. The caller counts its name no more.
    pub(crate) fn remove_xattr(&mut self, ino: InodeId, name: &[u8]) {
        self.tables.delete(&keys::xattr(ino, name));
        self.note_xattrs(ino);
    }

    /// Notes that extended attributes, or ACLs, are different now.
    pub(crate) fn note_xattrs(&mut self, ino: InodeId) {
        self.changes.note(Change::Xattr { ino });
    }

    /// Takes a name away from an inode, whose directory has lost it already: its last one makes it an orphan, or puts it
    /// into the trash. Saves it.
    pub(crate) fn drop_name(
        &mut self,
        inode: &mut Inode,
        (parent, name): (InodeId, &[u8]),
        caller: &Caller,
    ) {
        inode.attr.nlink = if inode.is_directory() {
            0
        } else {
            inode.attr.nlink - 1
        };
        self.note_change(&mut inode.attr);
        let is_kept = !inode.is_directory() && inode.attr.nlink == 0;
        if is_kept && trash::policy(self.tables).is_on {
            trash::put(self, inode.attr.ino, (parent, name), caller);
        } else if inode.attr.nlink == 0 {
            let orphan = Orphan {
                may_be_named: false,
            };
            self.make_orphan(inode, orphan);
        }
        self.save(inode);
    }

    /// Lists an inode that has no name as such, for as long.
    pub(crate) fn make_orphan(&mut self, inode: &Inode, orphan: Orphan) {
        self.tables
            .put(&keys::orphan(inode.attr.ino), encode(&orphan));
    }

    /// Whether an inode without a name can be given one.
    pub(crate) fn may_be_named(&self, ino: InodeId) -> bool {
        let orphan = self.tables.get(&keys::orphan(ino));
        orphan.is_some_and(|value| decode::<Orphan>(&value).may_be_named)
    }

    /// Enters that something changes now, or at a later time that a mount whose clock is ahead has shown: that never goes
    /// back.
    pub(crate) fn note_change(&self, attr: &mut Attr) {
        attr.ctime = attr.ctime.max(self.now());
    }

    /// Marks a directory's contents as changed now. The caller saves it.
    pub(crate) fn touch(&self, dir: &mut Inode) {
        dir.attr.mtime = self.now();
        self.note_change(&mut dir.attr);
    }

    /// Allocates the missing chunks of `range` and returns all of it. Counts the rows in `inode`,
    /// which the caller saves. Changes nothing if it fails.
    pub(crate) fn allocate(
        &mut self,
        inode: &mut Inode,
        range: Range<u64>,
    ) -> FsResult<Vec<ChunkRef>> {
        let ino = inode.attr.ino;
        let there = chunks(self.tables, ino, range.clone());
        if there.len() as u64 == range.end - range.start {
            return Ok(there);
        }
        if self.groups.is_empty() {
            return Err(FsError::new(
                Code::NoSpace,
                format!("no group takes a chunk of {ino}"),
            ));
        }
        let mut there = there.into_iter().peekable();
        let mut all = Vec::with_capacity((range.end - range.start) as usize);
        for index in range {
            if let Some(chunk) = there.next_if(|chunk| u64::from(chunk.index.0) == index) {
                all.push(chunk);
                continue;
            }
            let chunk = ChunkId(self.state.next_chunk);
            let group = self.groups[(self.state.next_chunk % self.groups.len() as u64) as usize];
            self.state.next_chunk += 1;
            inode.chunk_rows += 1;
            self.tables
                .put(&keys::chunk(ino, index), encode(&ChunkRow { chunk, group }));
            let index = ChunkIndex(u32::try_from(index).expect("the caller checked the file size"));
            all.push(ChunkRef {
                index,
                chunk,
                group,
            });
        }
        Ok(all)
    }

    /// Queues at most `limit` chunks from `index` on for deletion and returns how many those were.
    /// Counts the rows in `inode`, which the caller saves.
    pub(crate) fn free_chunks(&mut self, inode: &mut Inode, index: u64, limit: usize) -> usize {
        if inode.chunk_rows == 0 || limit == 0 {
            return 0;
        }
        let ino = inode.attr.ino;
        let mut rows: Vec<(u32, ChunkRow)> = Vec::new();
        let (from, to) = (keys::chunk(ino, index), keys::chunk(ino, u64::MAX));
        self.tables.scan(&from, &to, &mut |key, value| {
            rows.push((keys::chunk_index(key), decode(value)));
            rows.len() < limit
        });
        for (index, row) in &rows {
            self.tables.delete(&keys::chunk(ino, u64::from(*index)));
            self.tables.put(&keys::freed(row.chunk), encode(&row.group));
        }
        inode.chunk_rows -= rows.len() as u32;
        rows.len()
    }

    /// A session, to look at or change; changes are written back by [`Tx::finish`].
    pub(crate) fn session(&mut self, id: SessionId) -> Option<&mut Session> {
        use std::collections::btree_map::Entry;
        match self.sessions.entry(id) {
            Entry::Occupied(entry) => Some(entry.into_mut()),
            Entry::Vacant(entry) => {
                let value = self.tables.get(&keys::session(id))?;
                Some(entry.insert(decode(&value)))
            }
        }
    }

    /// Adds a session.
    pub(crate) fn insert_session(&mut self, id: SessionId, session: Session) {
        self.sessions.insert(id, session);
    }

    /// Removes a session's record and returns it.
    pub(crate) fn remove_session(&mut self, id: SessionId) -> Option<Session> {
        let session = self.session(id)?.clone();
        self.sessions.remove(&id);
        self.tables.delete(&keys::session(id));
        Some(session)
    }
}

/// The counters, if anything was applied yet.
pub(crate) fn state(tables: &dyn Tables) -> Option<State> {
    tables.get(&keys::STATE).map(|value| decode(&value))
}

/// An inode, also one without a name. `Stale` if it is gone.
pub(crate) fn inode(tables: &dyn Tables, ino: InodeId) -> FsResult<Inode> {
    match tables.get(&keys::inode(ino)) {
        Some(value) => Ok(decode(&value)),
        None => Err(FsError::new(Code::Stale, format!("inode {ino} is gone"))),
    }
}

/// A directory that has a name still.
pub(crate) fn live_directory(tables: &dyn Tables, ino: InodeId) -> FsResult<Inode> {
    match inode(tables, ino) {
        Ok(dir) if !dir.is_directory() => Err(FsError::new(
            Code::NotDirectory,
            format!("{ino} is no directory"),
        )),
        Ok(dir) if dir.attr.nlink > 0 => Ok(dir),
        Ok(_) | Err(_) => Err(FsError::new(
            Code::NotFound,
            format!("directory {ino} was removed"),
        )),
    }
}

/// The existing chunks of a range of indices, in order.
pub(crate) fn chunks(tables: &dyn Tables, ino: InodeId, range: Range<u64>) -> Vec<ChunkRef> {
    let mut found = Vec::new();
    if range.end == range.start + 1 {
        // The common case, and a get is cheaper than a scan.
        if let Some(value) = tables.get(&keys::chunk(ino, range.start)) {
            found.push(chunk_ref(range.start as u32, decode(&value)));
        }
        return found;
    }
    let (from, to) = (keys::chunk(ino, range.start), keys::chunk(ino, range.end));
    tables.scan(&from, &to, &mut |key, value| {
        found.push(chunk_ref(keys::chunk_index(key), decode(value)));
        true
    });
    found
}

fn chunk_ref(index: u32, row: ChunkRow) -> ChunkRef {
    ChunkRef {
        index: ChunkIndex(index),
        chunk: row.chunk,
        group: row.group,
    }
}
