//! Inodes that are asked for ahead: with listings, and beside lookups that seem to be a walk through a directory.

use crate::link::{Asker, Link};
use lumeofs_base::{FileKind, FsResult, InodeId};
use lumeofs_lease::{Ahead, Grant, Holder};
use lumeofs_meta::op::{Listed, Query, Reply};

impl Link {
    /// Entries of a directory after a cookie. The first ones are asked for together with their inodes.
    pub(crate) fn list(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        cookie: u64,
        count_max: u32,
    ) -> FsResult<Reply> {
        let query = |inodes_max| Query::ReadDir {
            ino,
            cookie,
            count_max,
            inodes_max,
        };
        let is_trusted = asker.caller.trusted;
        if is_trusted && let Some(known) = self.remembered(&query(0)) {
            return known;
        }
        let inodes_max = match is_trusted && cookie == 0 {
            true => self.with_leases(|state| state.holder.listed_ahead()),
            false => 0,
        };
        self.ask_ahead(asker, ino, &query(inodes_max as u32), inodes_max)
    }

    /// Asks for entries with so many inodes.
    fn ask_ahead(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        query: &Query,
        inodes_max: usize,
    ) -> FsResult<Reply> {
        let reply = self.ask(asker, ino, query);
        let count = match &reply {
            Ok(Reply::Entries {
                entries, inodes, ..
            }) => entries.len().max(inodes.len()).min(inodes_max),
            _ => 0,
        };
        if count < inodes_max {
            self.with_leases(|state| state.holder.not_listed(inodes_max - count));
        }
        reply
    }

    /// A name is not in memory: asks for a part of the directory, if that may spare this question and further ones. Says
    /// whether it has.
    pub(crate) fn look_ahead(&self, asker: &Asker<'_>, parent: InodeId, name: &[u8]) -> bool {
        // One thread at a time: the others would ask for the same.
        let Some(_asking) = self.leases.ahead.try_lock() else {
            return false;
        };
        let ahead = self.with_leases(|state| state.holder.look_ahead(parent, name));
        let Some(Ahead { after, count }) = ahead else {
            return false;
        };
        let query = Query::ReadDir {
            ino: parent,
            cookie: after,
            count_max: count as u32,
            inodes_max: count as u32,
        };
        self.ask_ahead(asker, parent, &query, count).is_ok()
    }

    /// Where the data of files is that were listed: of those whose leases have come, as nobody would tell of others.
    pub(super) fn learn_chunks_of(
        &self,
        holder: &Holder,
        grants: &[Grant],
        listed: &[Listed],
        era: u32,
    ) {
        let mut grants = grants.iter();
        for Listed {
            attr, first_chunk, ..
        } in listed
        {
            let grant = grants.find(|grant| grant.ino == attr.ino);
            if attr.kind == FileKind::Regular
                && grant.is_some_and(|grant| holder.counts(grant))
                && let Some(chunk) = first_chunk
            {
                let inode = self.inodes.get(attr.ino);
                inode.learn_chunks(attr, &[*chunk], era);
            }
        }
    }
}
