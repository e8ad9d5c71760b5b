//! A filesystem in memory in place of a cluster, for tests of the mount. It can be changed behind the
//! mount's back, as another mount would, and lookups of names with `wait` in them wait until they are let go.

mod locks;
mod state;

use crate::backend::Backend;
use lumeofs_base::{Attr, Code, FileKind, FsError, FsResult, InodeId};
use lumeofs_client::{
    CacheStats, Context, Interrupted, LeaseStats, PageRequest, Range, Usage, WriteMode, Written,
};
use lumeofs_meta::locks::{Lock, LockOwner};
use lumeofs_meta::op::{CreateMode, DirEntry, NewNode, RenameMode, SetAttr, SetTime, XattrMode};
use parking_lot::{Condvar, Mutex};
use state::State;
use std::time::Duration;

#[derive(Default)]
pub(crate) struct Memory {
    state: Mutex<State>,
    let_go: Condvar,
    locks: locks::Locks,
}

impl Memory {
    pub(crate) fn new() -> Self {
        let memory = Self::default();
        let root = memory
            .state
            .lock()
            .add(InodeId::ROOT, FileKind::Directory, 0o755);
        assert_eq!(root.ino, InodeId::ROOT);
        memory
    }

    /// Lookups that wait now.
    /// Locks of all mounts.
    pub(crate) fn lock_count(&self) -> usize {
        self.locks.count()
    }
    /// Callers that wait for locks.
    pub(crate) fn lock_waiting(&self) -> usize {
        self.locks.waiting()
    }
    /// Has another mount lock something.
    pub(crate) fn lock_elsewhere(&self, ino: InodeId, lock: Lock) {
        self.locks.lock_elsewhere(ino, lock);
    }
    pub(crate) fn waiting(&self) -> usize {
        self.state.lock().waiting
    }
    /// Lets them go, and all later ones.
    pub(crate) fn let_go(&self) {
        self.state.lock().open_gate = true;
        self.let_go.notify_all();
    }
    /// Has the mount's end fail.
    pub(crate) fn lose(&self, error: FsError) {
        self.state.lock().lost = Some(error);
    }
    /// Makes the next `count` lookups of `name` miss it.
    pub(crate) fn hide(&self, name: &[u8], count: usize) {
        self.state.lock().hidden.insert(name.to_vec(), count);
    }
    /// How the writes so far were to go.
    pub(crate) fn take_writes(&self) -> Vec<WriteMode> {
        std::mem::take(&mut self.state.lock().writes)
    }
    pub(crate) fn fsyncs(&self) -> usize {
        self.state.lock().fsyncs
    }
    /// What another mount does to a file in the root directory.
    pub(crate) fn change(&self, name: &[u8], change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state.lock();
        let ino = state.find(InodeId::ROOT, name).unwrap();
        change(&mut state.node(ino).unwrap().data);
        state.touch(ino).unwrap();
    }
    /// Inodes that exist, linked or open.
    pub(crate) fn inodes(&self) -> usize {
        self.state.lock().nodes.len()
    }
}

impl Backend for Memory {
    fn lookup(&self, cx: Context<'_>, parent: InodeId, name: &[u8]) -> FsResult<Attr> {
        let mut state = self.state.lock();
        if name.windows(4).any(|part| part == b"wait") {
            state.waiting += 1;
            let mut interrupted = false;
            while !state.open_gate && !interrupted {
                self.let_go.wait_for(&mut state, Duration::from_millis(50));
                interrupted = (cx.interrupted)();
            }
            state.waiting -= 1;
            if interrupted {
                return Err(Code::Interrupted.into());
            }
        }
        if let Some(count) = state.hidden.get_mut(name).filter(|count| **count > 0) {
            *count -= 1;
            return Err(Code::NotFound.into());
        }
        let ino = state.find(parent, name)?;
        Ok(state.node(ino)?.attr.clone())
    }
    fn getattr(&self, _: Context<'_>, ino: InodeId) -> FsResult<Attr> {
        Ok(self.state.lock().node(ino)?.attr.clone())
    }
    fn known_attr(&self, ino: InodeId) -> Option<Attr> {
        let mut state = self.state.lock();
        state.node(ino).ok().map(|node| node.attr.clone())
    }
    fn setattr(&self, _: Context<'_>, ino: InodeId, set: SetAttr) -> FsResult<Attr> {
        let mut state = self.state.lock();
        let now = state.now();
        let time = |time: SetTime| match time {
            SetTime::Now => now,
            SetTime::At(time) => time,
        };
        if let Some(size) = set.size {
            state.node(ino)?.data.resize(size as usize, 0);
            state.touch(ino)?;
        }
        let attr = &mut state.node(ino)?.attr;
        attr.mode = set.mode.unwrap_or(attr.mode);
        if set.clear_sgid {
            attr.mode &= !0o6000;
        }
        attr.uid = set.uid.unwrap_or(attr.uid);
        attr.gid = set.gid.unwrap_or(attr.gid);
        attr.atime = set.atime.map_or(attr.atime, time);
        attr.mtime = set.mtime.map_or(attr.mtime, time);
        attr.ctime = now;
        Ok(attr.clone())
    }
    fn create(
        &self,
        cx: Context<'_>,
        parent: InodeId,
        name: &[u8],
        node: NewNode,
        mode: CreateMode,
    ) -> FsResult<Attr> {
        let mut state = self.state.lock();
        if state.find(parent, name).is_ok() {
            return Err(Code::Exists.into());
        }
        let (kind, target, rdev) = match node {
            NewNode::Regular => (FileKind::Regular, Vec::new(), 0),
            NewNode::Directory => (FileKind::Directory, Vec::new(), 0),
            NewNode::Symlink(target) => (FileKind::Symlink, target, 0),
            NewNode::Special(kind, rdev) => (kind, Vec::new(), rdev),
        };
        let ino = state.add(parent, kind, mode.mode & !mode.umask).ino;
        state.insert(parent, name, ino)?;
        let node = state.node(ino)?;
        node.attr.size = target.len() as u64;
        (node.target, node.attr.rdev) = (target, rdev);
        (node.attr.uid, node.attr.gid) = (cx.caller.uid, cx.caller.gid);
        node.opens += usize::from(kind == FileKind::Regular);
        Ok(node.attr.clone())
    }
    fn create_unnamed(&self, cx: Context<'_>, parent: InodeId, mode: CreateMode) -> FsResult<Attr> {
        let mut state = self.state.lock();
        let kind = FileKind::Regular;
        let ino = state.add(parent, kind, mode.mode & !mode.umask).ino;
        let node = state.node(ino)?;
        (node.attr.uid, node.attr.gid) = (cx.caller.uid, cx.caller.gid);
        (node.attr.nlink, node.opens) = (0, 1);
        Ok(node.attr.clone())
    }
    fn link(&self, _: Context<'_>, ino: InodeId, parent: InodeId, name: &[u8]) -> FsResult<Attr> {
        let mut state = self.state.lock();
        state.insert(parent, name, ino)?;
        let attr = &mut state.node(ino)?.attr;
        attr.nlink += 1;
        Ok(attr.clone())
    }
    fn unlink(&self, _: Context<'_>, parent: InodeId, name: &[u8]) -> FsResult<()> {
        self.state.lock().remove(parent, name)
    }
    fn rmdir(&self, _: Context<'_>, parent: InodeId, name: &[u8]) -> FsResult<()> {
        let mut state = self.state.lock();
        let ino = state.find(parent, name)?;
        if !state.node(ino)?.entries.is_empty() {
            return Err(Code::NotEmpty.into());
        }
        state.remove(parent, name)
    }
    fn rename(
        &self,
        _: Context<'_>,
        from: (InodeId, &[u8]),
        to: (InodeId, &[u8]),
        mode: RenameMode,
    ) -> FsResult<()> {
        let mut state = self.state.lock();
        let ino = state.find(from.0, from.1)?;
        if state.find(to.0, to.1).is_ok() {
            match mode {
                RenameMode::NoReplace | RenameMode::WhiteoutNoReplace => {
                    return Err(Code::Exists.into());
                }
                RenameMode::Replace | RenameMode::Whiteout => state.remove(to.0, to.1)?,
                RenameMode::Exchange => return Err(Code::Unsupported.into()),
            }
        }
        state.node(from.0)?.entries.remove(from.1);
        state.insert(to.0, to.1, ino)?;
        state.node(ino)?.parent = to.0;
        if let RenameMode::Whiteout | RenameMode::WhiteoutNoReplace = mode {
            let whiteout = state.add(from.0, FileKind::CharDevice, 0).ino;
            state.insert(from.0, from.1, whiteout)?;
        }
        Ok(())
    }
    fn readlink(&self, _: Context<'_>, ino: InodeId) -> FsResult<Vec<u8>> {
        Ok(self.state.lock().node(ino)?.target.clone())
    }
    fn readdir(
        &self,
        _: Context<'_>,
        ino: InodeId,
        cookie: u64,
        count_max: u32,
    ) -> FsResult<(Vec<DirEntry>, bool)> {
        let mut state = self.state.lock();
        let entries = state.node(ino)?.entries.clone();
        let mut found: Vec<DirEntry> = Vec::new();
        for (name, (at, ino)) in entries {
            let kind = state.node(ino)?.attr.kind;
            found.push(DirEntry {
                cookie: at,
                name,
                ino,
                kind,
            });
        }
        found.retain(|entry| entry.cookie > cookie);
        found.sort_by_key(|entry| entry.cookie);
        let more = found.len() > count_max as usize;
        found.truncate(count_max as usize);
        Ok((found, more))
    }
    fn parent(&self, _: Context<'_>, ino: InodeId) -> FsResult<Attr> {
        let mut state = self.state.lock();
        let parent = state.node(ino)?.parent;
        Ok(state.node(parent)?.attr.clone())
    }
    fn getxattr(&self, _: Context<'_>, ino: InodeId, name: &[u8]) -> FsResult<Vec<u8>> {
        let mut state = self.state.lock();
        state
            .node(ino)?
            .xattrs
            .get(name)
            .cloned()
            .ok_or_else(|| Code::NoData.into())
    }
    fn setxattr(
        &self,
        _: Context<'_>,
        ino: InodeId,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> FsResult<()> {
        let mut state = self.state.lock();
        let xattrs = &mut state.node(ino)?.xattrs;
        match (mode, xattrs.contains_key(name)) {
            (XattrMode::Create, true) => return Err(Code::Exists.into()),
            (XattrMode::Replace, false) => return Err(Code::NoData.into()),
            _ => {}
        }
        xattrs.insert(name.to_vec(), value.to_vec());
        Ok(())
    }
    fn listxattr(&self, _: Context<'_>, ino: InodeId) -> FsResult<Vec<Vec<u8>>> {
        Ok(self
            .state
            .lock()
            .node(ino)?
            .xattrs
            .keys()
            .cloned()
            .collect())
    }
    fn removexattr(&self, _: Context<'_>, ino: InodeId, name: &[u8]) -> FsResult<()> {
        let mut state = self.state.lock();
        state
            .node(ino)?
            .xattrs
            .remove(name)
            .map(|_| ())
            .ok_or_else(|| Code::NoData.into())
    }
    fn usage(&self, _: Context<'_>) -> FsResult<Usage> {
        let inodes = self.state.lock().nodes.len() as u64;
        Ok(Usage {
            inodes,
            bytes: 0,
            capacity_bytes: 1 << 40,
            free_bytes: 1 << 39,
        })
    }
    fn open(&self, cx: Context<'_>, ino: InodeId, truncate: bool) -> FsResult<()> {
        let mut state = self.state.lock();
        if truncate {
            let node = state.node(ino)?;
            node.data.clear();
            if cx.caller.uid != 0 {
                node.attr.mode = without_suid(node.attr.mode);
            }
            state.touch(ino)?;
        }
        state.node(ino)?.opens += 1;
        Ok(())
    }
    fn release(&self, ino: InodeId) {
        let mut state = self.state.lock();
        if let Ok(node) = state.node(ino) {
            node.opens -= 1;
        }
        state.reap(ino);
    }
    fn lock(
        &self,
        _: Context<'_>,
        ino: InodeId,
        handle: u64,
        lock: Lock,
        wait: Option<Interrupted<'_>>,
    ) -> FsResult<()> {
        self.locks.lock(ino, handle, lock, wait)
    }
    fn unlock(
        &self,
        _: Context<'_>,
        ino: InodeId,
        owner: LockOwner,
        first: u64,
        last: u64,
    ) -> FsResult<()> {
        self.locks.unlock(ino, owner, first, last);
        Ok(())
    }
    fn test_lock(&self, _: Context<'_>, ino: InodeId, lock: Lock) -> FsResult<Option<Lock>> {
        Ok(self.locks.test(ino, lock))
    }
    fn has_no_locks(&self, ino: InodeId, owner: LockOwner) -> bool {
        self.locks.has_none(ino, owner)
    }
    fn close_locks(&self, _: Context<'_>, ino: InodeId, owner: LockOwner) {
        self.locks.unlock(ino, owner, 0, u64::MAX);
    }
    fn release_locks(&self, handle: u64) {
        self.locks.release(handle);
    }
    fn read(&self, _: Context<'_>, ino: InodeId, offset: u64, buf: &mut [u8]) -> FsResult<usize> {
        let mut state = self.state.lock();
        let data = &state.node(ino)?.data;
        let rest = data.get(offset as usize..).unwrap_or_default();
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }
    fn accessed(&self, ino: InodeId, _: bool) {
        let mut state = self.state.lock();
        let now = state.now();
        if let Ok(node) = state.node(ino) {
            node.attr.atime = now;
        }
    }
    fn write(
        &self,
        _: Context<'_>,
        ino: InodeId,
        offset: u64,
        data: &[u8],
        mode: WriteMode,
    ) -> FsResult<Written> {
        let mut state = self.state.lock();
        state.writes.push(mode);
        let node = state.node(ino)?;
        if mode.clear_suid {
            node.attr.mode = without_suid(node.attr.mode);
        }
        let start = if mode.append {
            node.data.len()
        } else {
            offset as usize
        };
        let end = start + data.len();
        node.data.resize(node.data.len().max(end), 0);
        node.data[start..end].copy_from_slice(data);
        Ok(Written {
            offset: start as u64,
            attr: state.touch(ino)?,
        })
    }
    fn flush(&self, _: Context<'_>, _: InodeId) -> FsResult<()> {
        Ok(())
    }
    fn fsync(&self, _: Context<'_>, _: InodeId, _: bool) -> FsResult<()> {
        self.state.lock().fsyncs += 1;
        Ok(())
    }
    fn allocate(
        &self,
        _: Context<'_>,
        ino: InodeId,
        offset: u64,
        len: u64,
        range: Range,
    ) -> FsResult<()> {
        let mut state = self.state.lock();
        let data = &mut state.node(ino)?.data;
        let (start, end) = (offset as usize, (offset + len) as usize);
        if matches!(
            range,
            Range::Allocate { keep_size: false } | Range::Zero { keep_size: false }
        ) {
            data.resize(data.len().max(end), 0);
        }
        if !matches!(range, Range::Allocate { .. }) {
            let end = end.min(data.len());
            data[start.min(end)..end].fill(0);
        }
        state.touch(ino).map(|_| ())
    }
    fn seek(&self, _: Context<'_>, ino: InodeId, offset: u64, hole: bool) -> FsResult<u64> {
        let size = self.state.lock().node(ino)?.data.len() as u64;
        match (offset < size, hole) {
            (false, _) => Err(Code::NoSuchOffset.into()),
            (true, true) => Ok(size),
            (true, false) => Ok(offset),
        }
    }
    fn copy_range(
        &self,
        _: Context<'_>,
        from: (InodeId, u64),
        to: (InodeId, u64),
        len: u64,
        _: bool,
    ) -> FsResult<u64> {
        let mut state = self.state.lock();
        let source = &state.node(from.0)?.data;
        let start = source.len().min(from.1 as usize);
        let end = source.len().min((from.1 + len) as usize);
        let copied = source[start..end].to_vec();
        let data = &mut state.node(to.0)?.data;
        let at = to.1 as usize;
        data.resize(data.len().max(at + copied.len()), 0);
        data[at..at + copied.len()].copy_from_slice(&copied);
        state.touch(to.0)?;
        Ok(copied.len() as u64)
    }
    fn is_flushed(&self, _: InodeId) -> bool {
        false
    }
    fn leave(&self) {}
    fn silence(&self) -> Duration {
        Duration::ZERO
    }
    fn lease_stats(&self) -> LeaseStats {
        LeaseStats::default()
    }
    fn cache_stats(&self) -> CacheStats {
        CacheStats::default()
    }
    // Who changes it behind the mount's back does not tell.
    fn on_changed(&self, _: Box<dyn Fn(InodeId) + Send + Sync>) {}
    fn page_request(&self, _: InodeId) -> Option<PageRequest<'_>> {
        None
    }
    fn late_page_drops(&self) -> u64 {
        0
    }
    fn lost_sessions(&self) -> u64 {
        0
    }
    fn close(&self) -> FsResult<()> {
        self.let_go();
        let lost = self.state.lock().lost.take();
        lost.map_or(Ok(()), Err)
    }
}

/// Takes suid away, and sgid where it means set-group-id.
fn without_suid(mode: u16) -> u16 {
    mode & if mode & 0o010 != 0 { !0o6000 } else { !0o4000 }
}
