//! What becomes of data when the session ends against our will: rule S3.
//!
//! Others may have written since, so nothing that was on its way is sent again under the next session: a call that had
//! sent data fails with `Io`. What was acknowledged is with the datanodes; but who relies on nobody having written in
//! between must hear of it, so each file with unsynced writes fails once too.

use crate::inodes::Inode;
use crate::link::{Asker, Link};
use lumeofs_base::{Code, FsError, FsResult, InodeId, SessionId};

/// Files that are named in the log; of the others there is the number.
pub(crate) const NAMED_MAX: usize = 16;

impl Link {
    /// Before a call sends data: not if it sent some under a session that is over.
    pub(crate) fn bind(&self, asker: &Asker<'_>) -> FsResult<()> {
        let session = self.window.session();
        match asker.bound.get() {
            None => {
                asker.bound.set(Some(session));
                Ok(())
            }
            Some(bound) if bound == session => Ok(()),
            Some(bound) => Err(lost(bound)),
        }
    }

    /// Whether the session still is the one under which the call sent data, if it sent any.
    pub(crate) fn still_bound(&self, asker: &Asker<'_>) -> FsResult<()> {
        let session = self.window.session();
        match asker.bound.get() {
            Some(bound) if bound != session => Err(lost(bound)),
            Some(_) | None => Ok(()),
        }
    }

    /// The result of a write: it failed if its session ended meanwhile, and says so for the whole file.
    pub(crate) fn told<T>(
        &self,
        asker: &Asker<'_>,
        inode: &Inode,
        result: FsResult<T>,
    ) -> FsResult<T> {
        match self.still_bound(asker) {
            Ok(()) => result,
            Err(error) => {
                // Otherwise the next call would fail for the same reason.
                inode.take_lost().ok();
                Err(result.err().unwrap_or(error))
            }
        }
    }

    /// The error of an operation that a datanode or a master did not take because the session has ended: replaces the
    /// session, so that what comes next works.
    pub(crate) fn shut_out(&self, asker: &Asker<'_>, error: FsError) -> FsError {
        if error.code != Code::SessionExpired {
            return error;
        }
        let session = asker.bound.get().unwrap_or_default();
        match self.renew_session(session, &asker.patience) {
            Ok(()) => lost(session),
            Err(error) => error,
        }
    }

    /// The session is to be replaced: its locks are void, and who had some is told once. On which files that was.
    pub(crate) fn locks_were_lost(&self, session: SessionId) -> Vec<InodeId> {
        let (error, files) = (lost(session), self.locks.forget_all());
        for ino in &files {
            self.inodes.get(*ino).lose(&error);
        }
        files
    }

    /// The session was replaced: what is remembered of files is void, and who has unsynced writes is told once. `locked`
    /// are files with locks, which have been told.
    pub(crate) fn session_was_lost(&self, session: SessionId, locked: Vec<InodeId>) {
        let error = lost(session);
        let (mut files, mut bytes) = self.inodes.forget_all(&error);
        files.extend(locked);
        for (ino, unsent) in self.forget_pages() {
            self.inodes.get(ino).lose(&error);
            files.push(ino);
            bytes += unsent;
        }
        if files.is_empty() {
            return;
        }
        files.sort_unstable();
        files.dedup();
        let named: Vec<InodeId> = files.iter().copied().take(NAMED_MAX).collect();
        tracing::error!(
            %session, files = files.len(), ?named, bytes,
            "the session ended while files had unsynced writes or locks: their next write, fsync or close fails with EIO, \
             since others may have written in between"
        );
    }
}

fn lost(session: SessionId) -> FsError {
    FsError::new(
        Code::Io,
        format!("session {session} has ended; others may have written since"),
    )
}
