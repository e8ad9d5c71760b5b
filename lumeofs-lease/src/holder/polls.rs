//! What is said to the leader and heard from it, apart from answers to operations.

use super::{Act, GivingBack, Holder};
use crate::wire::{Ack, Held, Kind, Poll, PollAnswer, Recall, What};
use lumeofs_base::{Attr, FileKind, InodeId};
use lumeofs_meta::change::Change;
use std::time::Duration;

/// How much is given up in one poll.
const RELEASED_PER_POLL_MAX: usize = 32_768;

impl Holder {
    /// What is to be said next. If no answer comes, [`Holder::unheard`] must follow.
    pub fn poll(&mut self) -> Poll {
        self.serial += 1;
        let asserts = (!self.takes_part).then(|| {
            let held = self.entries.iter();
            let mut held: Vec<Held> = held
                .map(|(ino, entry)| Held {
                    ino: *ino,
                    kind: entry.kind,
                })
                .collect();
            held.sort_by_key(|held| held.ino);
            held
        });
        let later = self.released.len().min(RELEASED_PER_POLL_MAX);
        let later = self.released.split_off(later);
        Poll {
            serial: self.serial,
            generation: self.generation,
            asserts,
            seen: self.seen,
            acks: std::mem::take(&mut self.acks),
            released: std::mem::replace(&mut self.released, later),
        }
    }

    /// Whether there is something to say at once.
    pub fn has_acks(&self) -> bool {
        !self.acks.is_empty()
    }

    /// A poll got no answer: what it said is said again.
    pub fn unheard(&mut self, poll: Poll) {
        if poll.generation == self.generation {
            self.acks.extend(poll.acks);
            self.released.extend(poll.released);
        }
    }

    /// Takes the answer to a poll that was sent at `sent`. The recalls are done, or begun, when this returns.
    pub fn heard(&mut self, sent: Duration, asserted: bool, answer: PollAnswer) {
        if answer.restate {
            // One that has begun here already is repeated by an answer that was late.
            if answer.generation > self.generation {
                self.begin(answer.generation);
            }
            return;
        }
        if answer.generation != self.generation {
            return;
        }
        self.takes_part |= asserted;
        if self.takes_part {
            self.leases_max = Some(answer.leases_max);
        }
        if answer.renewed && self.takes_part {
            self.confirmed = self.confirmed.max(Some(sent));
        }
        for recall in answer.recalls {
            if recall.id > self.seen {
                self.seen = recall.id;
                self.recall(recall);
            }
        }
        // Names may have come, or there may be less room.
        self.make_room();
    }

    /// The session was replaced: all is void, and what was written and not published is lost.
    pub fn reset(&mut self) {
        let inodes: Vec<InodeId> = self.entries.keys().copied().collect();
        for ino in inodes {
            self.remove(ino);
        }
        self.begin(Default::default());
        self.serial = 0;
    }

    /// Begins a generation: shared leases are void, write leases in use are kept to be asserted.
    fn begin(&mut self, generation: crate::Generation) {
        let is_kept = |entry: &super::Entry| match entry.kind {
            Kind::Shared => false,
            Kind::Exclusive => entry.local || entry.in_use > 0 || entry.is_ahead_of_leader(),
            Kind::Through => entry.in_use > 0,
        };
        let mut void: Vec<InodeId> = self
            .entries
            .iter()
            .filter(|(_, entry)| !is_kept(entry))
            .map(|(ino, _)| *ino)
            .collect();
        void.sort();
        for ino in void {
            self.remove(ino);
        }
        self.busy.unresolve_all();
        for entry in self.entries.values_mut() {
            entry.giving_back = None;
            entry.floor = 0;
            // What is asserted is entered with this.
            entry.number = generation.number;
            entry.since = 0;
            // What the leader does not know it cannot have forgotten.
            entry.open &= entry.is_unborn;
            entry.named &= entry.is_unborn;
            self.items -= entry.contents.restamp();
        }
        self.generation = generation;
        self.takes_part = false;
        self.confirmed = None;
        self.seen = 0;
        self.leases_max = None;
        self.acks.clear();
        self.released.clear();
        self.floors.clear();
        self.floor_of_all = 0;
        self.acts.push(Act::RestateOpens);
    }

    fn recall(&mut self, recall: Recall) {
        let Recall {
            id,
            ino,
            what,
            is_alone,
        } = recall;
        let Some(entry) = self.entries.get_mut(&ino) else {
            // The grant may still be on its way, or was lost.
            self.raise_floor(ino, id);
            self.acks.push(Ack { id, open: false });
            self.release(ino, id);
            return;
        };
        match what {
            What::Drop | What::Downgrade if entry.kind.writes() => {
                let keeps_shared = what == What::Downgrade;
                entry.giving_back = Some(GivingBack { id, keeps_shared });
                self.acts.push(Act::GiveBack(ino));
            }
            What::Downgrade => {
                // A grant to write may still be on its way.
                entry.floor = entry.floor.max(id);
                self.acks.push(Ack { id, open: false });
            }
            What::Drop => {
                let open = entry.open;
                self.acks.push(Ack { id, open });
                self.drop_lease(ino, id);
            }
            What::Attr(attr) => {
                let open = attr.nlink == 0 && entry.open;
                if open {
                    // From now on the leader remembers.
                    entry.open = false;
                    self.acts.push(Act::Reported(ino));
                }
                self.acks.push(Ack { id, open });
                self.changed(id, &Change::Attr(attr), false, is_alone);
            }
            What::Name { name, entry } => {
                self.acks.push(Ack { id, open: false });
                let parent = ino;
                let change = Change::Name {
                    parent,
                    name,
                    entry,
                };
                self.changed(id, &change, false, is_alone);
            }
            What::Xattr => {
                self.acks.push(Ack { id, open: false });
                self.changed(id, &Change::Xattr { ino }, false, is_alone);
            }
        }
    }

    /// A lease goes, by a recall.
    pub(super) fn drop_lease(&mut self, ino: InodeId, id: u64) {
        if self.entries.get(&ino).is_some_and(|entry| entry.open) {
            self.acts.push(Act::Reported(ino));
        }
        self.remove(ino);
        self.raise_floor(ino, id);
    }

    /// Applies a change, a foreign one or one of its own, with its number. If it may not be shown yet, it makes forget.
    pub(super) fn changed(&mut self, number: u64, change: &Change, own: bool, is_shown: bool) {
        let ino = change.ino();
        let entry = self.entries.get(&ino);
        // Something newer has happened, or may have, and it is not known to what.
        let is_late = entry.is_some_and(|entry| number < entry.floor.max(entry.since));
        let makes_forget = is_late || !is_shown;
        self.raise_floor(ino, number);
        let Some(entry) = self.entries.get_mut(&ino) else {
            if let Change::Attr(Attr { nlink: 0, .. }) = change
                && own
            {
                self.acts.push(Act::StateOpen(ino));
            }
            return;
        };
        match change {
            Change::Attr(attr) => {
                entry.named = attr.nlink > 0;
                entry.is_no_file = attr.kind != FileKind::Regular;
                if own && attr.nlink == 0 {
                    self.acts.push(match std::mem::take(&mut entry.open) {
                        true => Act::Reported(ino),
                        false => Act::StateOpen(ino),
                    });
                }
                if entry.kind == Kind::Through {
                    // Of what others write nothing is heard.
                    return;
                }
                if entry.is_ahead_of_leader() {
                    return;
                }
                if makes_forget {
                    let differs = entry.contents.doubt_attr(number, attr);
                    if differs && !own && entry.kind == Kind::Shared {
                        self.acts.push(Act::DropData(ino));
                    }
                    return;
                }
                let merged = match (entry.local, entry.contents.attr_mut()) {
                    (true, Some(local)) => merge(attr, local),
                    _ => attr.clone(),
                };
                let differs = entry.contents.set_attr(number, merged);
                if differs && !own && entry.kind == Kind::Shared {
                    self.acts.push(Act::DropData(ino));
                }
            }
            Change::Name {
                name, entry: to, ..
            } => {
                let more = match makes_forget {
                    true => entry.contents.doubt_name(number, name),
                    false => entry.contents.set_name(number, name, to.as_ref()),
                };
                self.items = self.items.wrapping_add(more);
                let to = to.as_ref().map(|to| to.ino);
                self.busy.resolve(ino, name, to);
            }
            Change::Xattr { .. } => self.items -= entry.contents.forget_xattrs(),
            Change::Gone { .. } => self.remove(ino),
        }
    }
}

/// Attributes that others changed, with the size and times that a writer has not published yet.
pub(super) fn merge(new: &Attr, local: &Attr) -> Attr {
    Attr {
        size: local.size,
        mtime: local.mtime,
        ctime: new.ctime.max(local.ctime),
        ..new.clone()
    }
}
