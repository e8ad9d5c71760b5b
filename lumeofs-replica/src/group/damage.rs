//! A chunk of the own copy is damaged on the disk: another member's copy takes its place, by an ordinary catch-up.
//!
//! A secondary declares itself incomplete, as after a restart, and remembers the chunk. The primary then attaches it
//! again and catches it up; only when that begins is the damaged chunk given up. From then on the chunk differs from the
//! primary's, so the catch-up copies it, and it is what takes time: the rest is compared. Nothing is given up before,
//! because the primary catches up one recorded in-sync member at a time: if two find damage at once, one of them always
//! has a state that the group had. A primary first gives its office to a member that is in sync.

use super::{Group, Role};
use crate::effect::{Effect, Work};
use crate::message::Payload;
use lumeofs_base::ChunkId;
use lumeofs_base::limits::DAMAGED_CHUNKS_MAX;

impl<P: Payload> Group<P> {
    /// A chunk of the own copy does not match its checksums. Returns whether this member will be caught up with it; if
    /// not, ask again later: the office changes hands first, the group is too small to do without this member, or
    /// another catch-up is under way.
    pub fn on_damaged(&mut self, chunk: ChunkId) -> bool {
        if self.primary.is_some() {
            if self.can_spare_me() {
                self.step_down = true;
            }
            return false;
        }
        let noted = match self.role() {
            Role::Secondary => self.follower.unfinished.is_none() && self.can_spare_me(),
            // Nothing has been compared yet.
            Role::OutOfSync => {
                self.follower.catching.is_none() && self.follower.unfinished.is_none()
            }
            Role::Primary | Role::Reconciling | Role::Joining => false,
        };
        if !noted || self.follower.damaged.len() >= DAMAGED_CHUNKS_MAX {
            return false;
        }
        self.follower.damaged.insert(chunk);
        if self.complete {
            self.complete = false;
            self.tail.clear();
            // Without a word of failure: the primary is to come back at once.
            self.drop_stream(None);
            self.effects.push(Effect::Changed);
        }
        true
    }

    /// Whether writes can be acknowledged without this member.
    fn can_spare_me(&self) -> bool {
        let others = self.config.in_sync.iter().filter(|node| **node != self.me);
        others.count() >= self.config.write_quorum()
    }

    /// A catch-up begins: the damaged chunks are given up before it lists what is here.
    pub(super) fn give_up_damaged(&mut self) {
        let damaged = std::mem::take(&mut self.follower.damaged);
        if damaged.is_empty() {
            return;
        }
        // First in the log: with a chunk missing this is no state to lead a group with.
        self.tear();
        let works = damaged
            .into_iter()
            .map(|chunk| Effect::Work(Work::Quarantine { chunk }));
        self.effects.extend(works);
    }
}
