//! What was written goes to the datanode, then its size and time to the log; then a lease can be given back.

use super::Then;
use crate::bugs::Bug;
use crate::calls::Ask;
use crate::world::{MountEvent, World};
use lumeofs_base::{InodeId, Timestamp};
use lumeofs_meta::op::{Mutation, SetAttr};

impl World {
    /// Writes back what is dirty of a file, if nobody does already; if nothing is, gives it back if that is wanted.
    pub(super) fn flush(&mut self, mount: usize, ino: InodeId) {
        let state = &mut self.mounts[mount];
        let Some(session) = state.session else {
            return;
        };
        let is_giving = state.giving.contains_key(&ino);
        let is_told = !state.holder.is_ahead_in(ino)
            || (self.bug == Some(Bug::MadeNotTold) && !state.holder.is_unborn(ino));
        if !is_told || (is_giving && state.holder.is_in_use(ino)) {
            return self.mount_after(mount, 1_000, 3_000, MountEvent::Flush(ino));
        }
        if state.is_dirty(ino) {
            let file = state.files.entry(ino).or_default();
            if std::mem::replace(&mut file.is_flushing, true) {
                return;
            }
            let dirty = file.blocks.iter().filter(|(_, (_, is_dirty))| *is_dirty);
            let blocks: Vec<(u8, u64)> = dirty
                .filter_map(|(block, (value, _))| Some((*block, (*value)?)))
                .collect();
            let published = file.local;
            let ask = Ask::Write {
                session,
                ino,
                attempt: 0,
                blocks: blocks.clone(),
            };
            let then = Then::Flushed {
                ino,
                blocks,
                published,
            };
            return self.call(mount, ask, then);
        }
        if let Some(generation) = state.giving.remove(&ino) {
            state.holder.gave_back(generation, ino);
            self.counts.given_back += 1;
            self.run_acts(mount);
            self.say_at_once(mount);
        }
    }

    /// The datanode has it.
    pub(super) fn flushed(
        &mut self,
        mount: usize,
        ino: InodeId,
        blocks: &[(u8, u64)],
        published: Option<(u64, Timestamp)>,
    ) {
        let Some(file) = self.mounts[mount].files.get_mut(&ino) else {
            return;
        };
        for (block, value) in blocks {
            if let Some((is, is_dirty)) = file.blocks.get_mut(block) {
                *is_dirty &= *is != Some(*value);
            }
        }
        match published {
            None => {
                file.is_flushing = false;
                self.flush_again(mount, ino);
            }
            Some(published) => {
                let (size, time) = published;
                let mutation = flush_of(ino, size, time);
                self.mutate(mount, mutation, Then::Published { ino, published });
            }
        }
    }

    /// The log has it.
    pub(super) fn published(&mut self, mount: usize, ino: InodeId, published: (u64, Timestamp)) {
        let (size, time) = published;
        let state = &mut self.mounts[mount];
        let is_all = state.holder.published(ino, size, time);
        let Some(file) = state.files.get_mut(&ino) else {
            return;
        };
        if file.local == Some(published) {
            assert!(is_all, "{ino} {time:?}");
            file.local = None;
        }
        file.is_flushing = false;
        self.flush_again(mount, ino);
    }

    fn flush_again(&mut self, mount: usize, ino: InodeId) {
        if self.mounts[mount].giving.contains_key(&ino) {
            self.flush(mount, ino);
        } else if self.mounts[mount].is_dirty(ino) {
            // It was written again meanwhile.
            self.mount_after(mount, 1_000, 1_000_000, MountEvent::Flush(ino));
        }
    }

    /// Enters a write in memory.
    pub(super) fn buffer(
        &mut self,
        mount: usize,
        ino: InodeId,
        block: u8,
        value: u64,
        (size, time): (u64, Timestamp),
    ) {
        let own = self.mounts[mount].session;
        let is_shut_out = own.is_some_and(|session| self.data.is_fenced(session));
        for (other, state) in self.mounts.iter().enumerate() {
            let is_live = !is_shut_out
                && other != mount
                && !state.is_down
                && state
                    .session
                    .is_some_and(|session| !self.data.is_fenced(session));
            assert!(
                !is_live || !state.is_dirty(ino),
                "mounts {mount} and {other} both have writes to {ino} in memory"
            );
        }
        let state = &mut self.mounts[mount];
        let file = state.files.entry(ino).or_default();
        file.blocks.insert(block, (Some(value), true));
        file.local = Some((size, time));
        state.holder.wrote(ino, |attr| {
            (attr.size, attr.mtime) = (size, time);
            attr.ctime = attr.ctime.max(time);
        });
        self.counts.buffered += 1;
        self.mount_after(mount, 100_000, 3_000_000, MountEvent::Flush(ino));
    }
}

pub(super) fn flush_of(ino: InodeId, size: u64, time: Timestamp) -> Mutation {
    Mutation::Flush {
        ino,
        from: 0,
        size,
        truncations: 0,
        clear_suid: false,
        mtime: time,
        ctime: time,
        set: SetAttr::default(),
    }
}
