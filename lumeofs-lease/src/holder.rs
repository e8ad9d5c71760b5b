//! The client's side: its leases, what it remembers under them, and what it has to say to the leader.
//!
//! All answers, recalls and changes of its own carry numbers of one sequence. What is remembered of an inode is replaced only
//! by what has a higher number; so it does not matter in which order they arrive. The driver holds the holder in one lock;
//! file data is kept by the driver and only dropped on [`Act::DropData`].

mod ahead;
mod busy;
mod contents;
mod making;
mod polls;
mod rights;

pub use ahead::Ahead;
pub use busy::Touch;
pub use contents::{Cached, Learned, Listing};
pub use making::Told;
pub use rights::WriteRight;

use crate::wire::{Ack, Generation, Grant, Kind, Release};
use crate::{ASK_AGAIN, TERM_OF_HOLDER};
use ahead::Credit;
use busy::Busy;
use contents::Contents;
use lumeofs_base::InodeId;
use making::Making;
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

/// Inodes without a lease of which it is remembered what would be too old.
const FLOORS_MAX: usize = 4096;
/// At how many places one search for room looks.
const STEPS_MAX: usize = 1024;
/// How many more places the hand may have than twice the inodes.
const HAND_SLACK: usize = 64;

/// How much a holder remembers.
#[derive(Clone, Copy, Debug)]
pub struct HolderLimits {
    /// Inodes with a lease.
    pub inodes_max: usize,
    /// Names, values and targets, of all of them; the long ones count once more for each 256 bytes.
    pub items_max: usize,
}

impl Default for HolderLimits {
    /// About 190 MB when full of names with 24 bytes, 420 MB with 255 bytes, as `tests/memory.rs` measures it.
    fn default() -> Self {
        Self {
            inodes_max: 150_000,
            items_max: 500_000,
        }
    }
}

/// What the driver must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Forget the data of a file, and where it is.
    DropData(InodeId),
    /// Publish what was written to a file, then call [`Holder::gave_back`]: when [`Holder::is_in_use`] has become
    /// false, which needs no lease of anybody.
    GiveBack(InodeId),
    /// The leader knows from now on, by the next poll, that the inode is open.
    Reported(InodeId),
    /// The leader takes the inode to be open until it is told whether it is.
    StateOpen(InodeId),
    /// State all open files anew.
    RestateOpens,
}

/// The leases of one session.
#[derive(Debug, Default)]
pub struct Holder {
    limits: HolderLimits,
    generation: Generation,
    /// The write leases were asserted under the generation, and the answer has come.
    takes_part: bool,
    /// When the last poll that renewed the term was sent.
    confirmed: Option<Duration>,
    serial: u64,
    seen: u64,
    /// How many leases the leader has said may be kept.
    leases_max: Option<u64>,
    acks: Vec<Ack>,
    released: Vec<Release>,
    /// Boxed, as most of a growing map is empty.
    entries: HashMap<InodeId, Box<Entry>>,
    /// What has these numbers or lower ones is too old, of inodes without an entry.
    floors: HashMap<InodeId, u64>,
    floor_of_all: u64,
    busy: Busy,
    /// In the order in which they are looked at when there is no room.
    hand: VecDeque<InodeId>,
    /// When the last grant of all came.
    last_granted: Duration,
    items: usize,
    making: Making,
    credit: Credit,
    acts: Vec<Act>,
}

/// A lease and what is remembered under it.
#[derive(Debug)]
struct Entry {
    kind: Kind,
    /// Of the last grant.
    number: u64,
    /// From this number on everything that others change is heard.
    since: u64,
    /// When the last grant came.
    granted: Duration,
    /// Answers with lower numbers are too old.
    floor: u64,
    contents: Contents,
    /// Operations that write under it now.
    in_use: usize,
    giving_back: Option<GivingBack>,
    /// The file is open, and the leader was not told.
    open: bool,
    /// It has a name, as far as is known. Then the lease lets be heard when it loses the last one.
    named: bool,
    /// Size and times are ahead of what is published.
    local: bool,
    /// It was used since the hand came by.
    used: bool,
    /// It was asked for ahead, and not used yet.
    is_ahead: bool,
    /// It was made here, and the leader does not know it.
    is_unborn: bool,
    /// It is known to be no regular file: there are no writes under its lease.
    is_no_file: bool,
    /// How many objects were made in it, and how often its attributes were set, here and not at the leader.
    making: usize,
}

impl Entry {
    fn new(kind: Kind, number: u64, granted: Duration, contents: Contents) -> Self {
        Self {
            kind,
            number,
            since: number,
            granted,
            floor: 0,
            contents,
            in_use: 0,
            giving_back: None,
            open: false,
            named: false,
            local: false,
            used: true,
            is_ahead: false,
            is_unborn: false,
            is_no_file: false,
            making: 0,
        }
    }

    fn is_ahead_of_leader(&self) -> bool {
        self.is_unborn || self.making > 0
    }
}

/// A recall of a write lease.
#[derive(Clone, Copy, Debug)]
struct GivingBack {
    id: u64,
    keeps_shared: bool,
}

impl Holder {
    /// Without any lease.
    pub fn new(limits: HolderLimits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    /// Whether the leases count at this time.
    pub fn is_valid(&self, now: Duration) -> bool {
        self.takes_part && self.confirmed.is_some_and(|at| now < at + TERM_OF_HOLDER)
    }

    /// What the driver must do, once.
    pub fn take_acts(&mut self) -> Vec<Act> {
        std::mem::take(&mut self.acts)
    }

    /// Inodes with a lease.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no lease.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Takes a grant. Says whether what came with it counts.
    fn admit(&mut self, now: Duration, grant: &Grant) -> bool {
        let ino = grant.ino;
        self.last_granted = now;
        if let Some(entry) = self.entries.get_mut(&ino) {
            if grant.number <= entry.floor {
                return false;
            }
            if grant.number > entry.number {
                entry.number = grant.number;
                entry.granted = now;
                // While it is `Through`, others write and nothing is heard of that.
                if (grant.kind == Kind::Through) != (entry.kind == Kind::Through) {
                    self.items -= entry.contents.clear();
                    self.acts.push(Act::DropData(ino));
                }
                entry.kind = grant.kind;
                if entry.is_no_file && grant.kind == Kind::Exclusive {
                    self.making.is_used(ino, now);
                }
            }
            return true;
        }
        let floor = self.floors.get(&ino).copied().unwrap_or(0);
        if grant.number <= floor.max(self.floor_of_all) {
            // The table believes that it is held.
            self.release(ino, grant.number);
            return false;
        }
        self.floors.remove(&ino);
        let entry = Entry {
            floor: floor.max(self.floor_of_all),
            ..Entry::new(grant.kind, grant.number, now, Contents::default())
        };
        self.entries.insert(ino, Box::new(entry));
        self.hand.push_back(ino);
        if self.hand.len() > 2 * self.entries.len() + HAND_SLACK {
            let mut there = HashSet::new();
            let entries = &self.entries;
            self.hand
                .retain(|ino| entries.contains_key(ino) && there.insert(*ino));
        }
        true
    }

    /// Whether what came with a grant counts still: nothing newer was granted, and nothing has changed since.
    pub fn counts(&self, grant: &Grant) -> bool {
        let entry = self.entries.get(&grant.ino);
        entry.is_some_and(|entry| entry.number == grant.number && grant.number > entry.floor)
    }

    /// Tells the leader, with the next poll, that a right is given up.
    fn release(&mut self, ino: InodeId, number: u64) {
        self.released.push(Release {
            ino,
            number,
            keeps_shared: false,
        });
    }

    /// Forgets a lease. Nothing that was on its way is taken afterwards.
    fn remove(&mut self, ino: InodeId) {
        let Some(mut entry) = self.entries.remove(&ino) else {
            return;
        };
        self.items -= entry.contents.clear();
        self.busy.unresolve(ino);
        self.acts.push(Act::DropData(ino));
        self.raise_floor(ino, entry.floor.max(entry.number));
    }

    /// What is known of an inode up to a number is too old.
    fn raise_floor(&mut self, ino: InodeId, number: u64) {
        if let Some(entry) = self.entries.get_mut(&ino) {
            entry.floor = entry.floor.max(number);
            return;
        }
        let floor = self.floors.entry(ino).or_default();
        *floor = number.max(*floor);
        if self.floors.len() > FLOORS_MAX {
            let highest = self.floors.drain().map(|(_, floor)| floor).max();
            self.floor_of_all = self.floor_of_all.max(highest.unwrap_or(0));
        }
    }

    /// Gives up leases that were not used for long while there are too many. What is needed may be more than that, so it
    /// does not look at all of them each time.
    fn make_room(&mut self) {
        let mut left = (2 * self.hand.len()).min(STEPS_MAX);
        let told = self
            .leases_max
            .and_then(|told| usize::try_from(told).ok())
            .unwrap_or(usize::MAX);
        let inodes_max = told.min(self.limits.inodes_max);
        let is_full = |holder: &Self| {
            holder.entries.len() > inodes_max || holder.items > holder.limits.items_max
        };
        while left > 0 && is_full(self) {
            left -= 1;
            let Some(ino) = self.hand.pop_front() else {
                return;
            };
            let Some(entry) = self.entries.get_mut(&ino) else {
                continue;
            };
            let comes_to_write =
                entry.kind.writes() && entry.granted + ASK_AGAIN > self.last_granted;
            let is_needed = entry.in_use > 0
                || entry.giving_back.is_some()
                || entry.open
                || entry.local
                || entry.is_ahead_of_leader()
                || comes_to_write;
            if is_needed || std::mem::take(&mut entry.used) {
                self.hand.push_back(ino);
                continue;
            }
            let number = entry.number;
            self.release(ino, number);
            self.remove(ino);
        }
    }
}
