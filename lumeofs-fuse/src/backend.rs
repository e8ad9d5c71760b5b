//! What the mount asks of a cluster. One trait, so that the adapter can be tested on a real mount
//! without servers; [`Client`] is its only implementation outside tests.

use lumeofs_base::{Attr, FsResult, InodeId};
use lumeofs_client::{
    CacheStats, Client, Context, Interrupted, LeaseStats, PageRequest, Range, Usage, WriteMode,
    Written,
};
use lumeofs_meta::locks::{Lock, LockOwner};
use lumeofs_meta::op::{CreateMode, DirEntry, NewNode, RenameMode, SetAttr, XattrMode};
use std::time::Duration;

/// The calls of [`Client`] that a mount makes; see there for what each promises.
pub(crate) trait Backend: Send + Sync + 'static {
    fn lookup(&self, cx: Context<'_>, parent: InodeId, name: &[u8]) -> FsResult<Attr>;
    fn getattr(&self, cx: Context<'_>, ino: InodeId) -> FsResult<Attr>;
    fn known_attr(&self, ino: InodeId) -> Option<Attr>;
    fn setattr(&self, cx: Context<'_>, ino: InodeId, set: SetAttr) -> FsResult<Attr>;
    fn create(
        &self,
        cx: Context<'_>,
        parent: InodeId,
        name: &[u8],
        node: NewNode,
        mode: CreateMode,
    ) -> FsResult<Attr>;
    fn create_unnamed(&self, cx: Context<'_>, parent: InodeId, mode: CreateMode) -> FsResult<Attr>;
    fn link(&self, cx: Context<'_>, ino: InodeId, parent: InodeId, name: &[u8]) -> FsResult<Attr>;
    fn unlink(&self, cx: Context<'_>, parent: InodeId, name: &[u8]) -> FsResult<()>;
    fn rmdir(&self, cx: Context<'_>, parent: InodeId, name: &[u8]) -> FsResult<()>;
    fn rename(
        &self,
        cx: Context<'_>,
        from: (InodeId, &[u8]),
        to: (InodeId, &[u8]),
        mode: RenameMode,
    ) -> FsResult<()>;
    fn readlink(&self, cx: Context<'_>, ino: InodeId) -> FsResult<Vec<u8>>;
    fn readdir(
        &self,
        cx: Context<'_>,
        ino: InodeId,
        cookie: u64,
        count_max: u32,
    ) -> FsResult<(Vec<DirEntry>, bool)>;
    fn parent(&self, cx: Context<'_>, ino: InodeId) -> FsResult<Attr>;
    fn getxattr(&self, cx: Context<'_>, ino: InodeId, name: &[u8]) -> FsResult<Vec<u8>>;
    fn setxattr(
        &self,
        cx: Context<'_>,
        ino: InodeId,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> FsResult<()>;
    fn listxattr(&self, cx: Context<'_>, ino: InodeId) -> FsResult<Vec<Vec<u8>>>;
    fn removexattr(&self, cx: Context<'_>, ino: InodeId, name: &[u8]) -> FsResult<()>;
    fn usage(&self, cx: Context<'_>) -> FsResult<Usage>;
    fn open(&self, cx: Context<'_>, ino: InodeId, truncate: bool) -> FsResult<()>;
    fn release(&self, ino: InodeId);
    fn lock(
        &self,
        cx: Context<'_>,
        ino: InodeId,
        handle: u64,
        lock: Lock,
        wait: Option<Interrupted<'_>>,
    ) -> FsResult<()>;
    fn unlock(
        &self,
        cx: Context<'_>,
        ino: InodeId,
        owner: LockOwner,
        first: u64,
        last: u64,
    ) -> FsResult<()>;
    fn test_lock(&self, cx: Context<'_>, ino: InodeId, lock: Lock) -> FsResult<Option<Lock>>;
    /// Whether `close_locks` has nothing to do. Never waits.
    fn has_no_locks(&self, ino: InodeId, owner: LockOwner) -> bool;
    fn close_locks(&self, cx: Context<'_>, ino: InodeId, owner: LockOwner);
    /// Never waits.
    fn release_locks(&self, handle: u64);
    /// Says how the kernel drops its pages of a file.
    fn on_changed(&self, drop_pages: Box<dyn Fn(InodeId) + Send + Sync>);
    /// For as long as a request of the page cache is answered.
    fn page_request(&self, ino: InodeId) -> Option<PageRequest<'_>>;
    fn late_page_drops(&self) -> u64;
    fn read(&self, cx: Context<'_>, ino: InodeId, offset: u64, buf: &mut [u8]) -> FsResult<usize>;
    /// Never waits.
    fn accessed(&self, ino: InodeId, is_strict: bool);
    fn write(
        &self,
        cx: Context<'_>,
        ino: InodeId,
        offset: u64,
        data: &[u8],
        mode: WriteMode,
    ) -> FsResult<Written>;
    fn flush(&self, cx: Context<'_>, ino: InodeId) -> FsResult<()>;
    fn fsync(&self, cx: Context<'_>, ino: InodeId, data_only: bool) -> FsResult<()>;
    fn allocate(
        &self,
        cx: Context<'_>,
        ino: InodeId,
        offset: u64,
        len: u64,
        range: Range,
    ) -> FsResult<()>;
    fn seek(&self, cx: Context<'_>, ino: InodeId, offset: u64, hole: bool) -> FsResult<u64>;
    /// Whether `flush` has nothing to do. Never waits.
    fn is_flushed(&self, ino: InodeId) -> bool;
    /// From now on calls wait out no long outage.
    fn leave(&self);
    /// How long the cluster has not answered.
    fn silence(&self) -> Duration;
    /// Sessions that the cluster has ended.
    fn lost_sessions(&self) -> u64;
    /// What was answered from memory, and what keeping leases takes.
    fn lease_stats(&self) -> LeaseStats;
    /// What the data cache holds and does.
    fn cache_stats(&self) -> CacheStats;
    /// Sends what is in memory and ends the session; later calls fail. Fails if something written is lost.
    fn close(&self) -> FsResult<()>;
}

impl Backend for Client {
    fn lookup(&self, cx: Context<'_>, parent: InodeId, name: &[u8]) -> FsResult<Attr> {
        Client::lookup(self, cx, parent, name)
    }
    fn getattr(&self, cx: Context<'_>, ino: InodeId) -> FsResult<Attr> {
        Client::getattr(self, cx, ino)
    }
    fn known_attr(&self, ino: InodeId) -> Option<Attr> {
        Client::known_attr(self, ino)
    }
    fn setattr(&self, cx: Context<'_>, ino: InodeId, set: SetAttr) -> FsResult<Attr> {
        Client::setattr(self, cx, ino, set)
    }
    fn create(
        &self,
        cx: Context<'_>,
        parent: InodeId,
        name: &[u8],
        node: NewNode,
        mode: CreateMode,
    ) -> FsResult<Attr> {
        // Always exclusive: see `Core::create` for what happens to a name that appeared meanwhile.
        Client::create(self, cx, parent, name, node, mode, true).map(|(attr, _)| attr)
    }
    fn create_unnamed(&self, cx: Context<'_>, parent: InodeId, mode: CreateMode) -> FsResult<Attr> {
        Client::create_unnamed(self, cx, parent, mode)
    }
    fn link(&self, cx: Context<'_>, ino: InodeId, parent: InodeId, name: &[u8]) -> FsResult<Attr> {
        Client::link(self, cx, ino, parent, name)
    }
    fn unlink(&self, cx: Context<'_>, parent: InodeId, name: &[u8]) -> FsResult<()> {
        Client::unlink(self, cx, parent, name)
    }
    fn rmdir(&self, cx: Context<'_>, parent: InodeId, name: &[u8]) -> FsResult<()> {
        Client::rmdir(self, cx, parent, name)
    }
    fn rename(
        &self,
        cx: Context<'_>,
        from: (InodeId, &[u8]),
        to: (InodeId, &[u8]),
        mode: RenameMode,
    ) -> FsResult<()> {
        Client::rename(self, cx, from.0, from.1, to.0, to.1, mode)
    }
    fn readlink(&self, cx: Context<'_>, ino: InodeId) -> FsResult<Vec<u8>> {
        Client::readlink(self, cx, ino)
    }
    fn readdir(
        &self,
        cx: Context<'_>,
        ino: InodeId,
        cookie: u64,
        count_max: u32,
    ) -> FsResult<(Vec<DirEntry>, bool)> {
        Client::readdir(self, cx, ino, cookie, count_max)
    }
    fn parent(&self, cx: Context<'_>, ino: InodeId) -> FsResult<Attr> {
        Client::parent(self, cx, ino)
    }
    fn getxattr(&self, cx: Context<'_>, ino: InodeId, name: &[u8]) -> FsResult<Vec<u8>> {
        Client::getxattr(self, cx, ino, name)
    }
    fn setxattr(
        &self,
        cx: Context<'_>,
        ino: InodeId,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> FsResult<()> {
        Client::setxattr(self, cx, ino, name, value, mode)
    }
    fn listxattr(&self, cx: Context<'_>, ino: InodeId) -> FsResult<Vec<Vec<u8>>> {
        Client::listxattr(self, cx, ino)
    }
    fn removexattr(&self, cx: Context<'_>, ino: InodeId, name: &[u8]) -> FsResult<()> {
        Client::removexattr(self, cx, ino, name)
    }
    fn usage(&self, cx: Context<'_>) -> FsResult<Usage> {
        Client::usage(self, cx)
    }
    fn open(&self, cx: Context<'_>, ino: InodeId, truncate: bool) -> FsResult<()> {
        Client::open(self, cx, ino, truncate)
    }
    fn release(&self, ino: InodeId) {
        Client::release(self, ino);
    }
    fn lock(
        &self,
        cx: Context<'_>,
        ino: InodeId,
        handle: u64,
        lock: Lock,
        wait: Option<Interrupted<'_>>,
    ) -> FsResult<()> {
        Client::lock(self, cx, ino, handle, lock, wait)
    }
    fn unlock(
        &self,
        cx: Context<'_>,
        ino: InodeId,
        owner: LockOwner,
        first: u64,
        last: u64,
    ) -> FsResult<()> {
        Client::unlock(self, cx, ino, owner, first, last)
    }
    fn test_lock(&self, cx: Context<'_>, ino: InodeId, lock: Lock) -> FsResult<Option<Lock>> {
        Client::test_lock(self, cx, ino, lock)
    }
    fn has_no_locks(&self, ino: InodeId, owner: LockOwner) -> bool {
        Client::has_no_locks(self, ino, owner)
    }
    fn close_locks(&self, cx: Context<'_>, ino: InodeId, owner: LockOwner) {
        Client::close_locks(self, cx, ino, owner);
    }
    fn release_locks(&self, handle: u64) {
        Client::release_locks(self, handle);
    }
    fn read(&self, cx: Context<'_>, ino: InodeId, offset: u64, buf: &mut [u8]) -> FsResult<usize> {
        Client::read(self, cx, ino, offset, buf)
    }
    fn accessed(&self, ino: InodeId, is_strict: bool) {
        Client::accessed(self, ino, is_strict);
    }
    fn write(
        &self,
        cx: Context<'_>,
        ino: InodeId,
        offset: u64,
        data: &[u8],
        mode: WriteMode,
    ) -> FsResult<Written> {
        Client::write(self, cx, ino, offset, data, mode)
    }
    fn flush(&self, cx: Context<'_>, ino: InodeId) -> FsResult<()> {
        Client::flush(self, cx, ino)
    }
    fn fsync(&self, cx: Context<'_>, ino: InodeId, data_only: bool) -> FsResult<()> {
        Client::fsync(self, cx, ino, data_only)
    }
    fn allocate(
        &self,
        cx: Context<'_>,
        ino: InodeId,
        offset: u64,
        len: u64,
        range: Range,
    ) -> FsResult<()> {
        Client::allocate(self, cx, ino, offset, len, range)
    }
    fn seek(&self, cx: Context<'_>, ino: InodeId, offset: u64, hole: bool) -> FsResult<u64> {
        Client::seek(self, cx, ino, offset, hole)
    }
    fn is_flushed(&self, ino: InodeId) -> bool {
        Client::is_flushed(self, ino)
    }
    fn leave(&self) {
        Client::leave(self);
    }
    fn silence(&self) -> Duration {
        Client::silence(self)
    }
    fn on_changed(&self, drop_pages: Box<dyn Fn(InodeId) + Send + Sync>) {
        Client::on_changed(self, drop_pages);
    }
    fn page_request(&self, ino: InodeId) -> Option<PageRequest<'_>> {
        Some(Client::page_request(self, ino))
    }
    fn late_page_drops(&self) -> u64 {
        Client::late_page_drops(self)
    }
    fn lost_sessions(&self) -> u64 {
        Client::lost_sessions(self)
    }
    fn lease_stats(&self) -> LeaseStats {
        Client::lease_stats(self)
    }
    fn cache_stats(&self) -> CacheStats {
        Client::cache_stats(self)
    }
    fn close(&self) -> FsResult<()> {
        Client::close(self)
    }
}
