//! What this session makes in a directory on which it has the exclusive lease, and sets of that: known here at once, to the
//! leader a little later.
//!
//! Until the leader knows an inode nobody else can, so its maker uses it as under an exclusive lease. What names it, or lists
//! its directory, must wait until the leader knows it: see [`Holder::is_ahead_in`].

use super::{Cached, Contents, Entry, Holder, Touch};
use crate::wire::{Generation, Grant, Kind, Release};
use lumeofs_base::limits::LINK_COUNT_MAX;
use lumeofs_base::{Attr, FileKind, InodeId, Timestamp};
use lumeofs_meta::attributes;
use lumeofs_meta::change::Change;
use lumeofs_meta::made;
use lumeofs_meta::op::{Caller, NewNode, NewObject, SetAttr, SetTime, Step};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Steps that the leader does not know.
const MADE_MAX: usize = 2048;
/// How long a directory keeps the exclusive lease after something was made in it.
const IDLE: Duration = Duration::from_secs(1);
/// Of a directory's mode: what is made in it belongs to its group.
const SGID: u16 = 0o2000;

/// What the leader does not know, in the order in which it was made.
#[derive(Debug, Default)]
pub(super) struct Making {
    queue: VecDeque<Step>,
    /// How many of the first ones are on their way.
    sent: usize,
    /// Directories and symlinks with the exclusive lease, and when they were used by it last.
    used: BTreeMap<InodeId, Duration>,
}

impl Making {
    pub(super) fn is_used(&mut self, dir: InodeId, now: Duration) {
        self.used.insert(dir, now);
    }
}

/// What the leader said to steps that it was told.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// Under which it was said.
    pub generation: Generation,
    /// Its place among grants and recalls.
    pub number: u64,
    /// Whether each one was done.
    pub is_done: &'a [bool],
    /// What has changed, if that is known.
    pub changes: Option<&'a [Change]>,
    /// What is granted.
    pub grants: &'a [Grant],
}

impl Holder {
    /// Makes something in memory, if nobody else can know of the directory's contents and there is nothing of that name. What
    /// it is says `give`, with a number of its own, as of a time that is not before the given one.
    pub fn make(
        &mut self,
        now: Duration,
        (parent, name): (InodeId, &[u8]),
        give: impl FnOnce(Timestamp) -> Option<NewObject>,
    ) -> Option<Attr> {
        let is_busy = self.busy.has_name(parent, name) || self.busy.has_inode(parent);
        if !self.is_valid(now) || is_busy || self.making.queue.len() >= MADE_MAX {
            return None;
        }
        let dir = self.entries.get_mut(&parent)?;
        if dir.kind != Kind::Exclusive || dir.giving_back.is_some() || !dir.contents.has_attr() {
            return None;
        }
        let names = dir.contents.names.as_mut()?;
        let in_dir = dir.contents.attr.as_mut()?;
        // With an ACL, or a group to inherit, the leader decides what becomes of the mode.
        if names.get(name) != Cached::Absent
            || in_dir.nlink == 0
            || in_dir.has_xattrs
            || in_dir.mode & SGID != 0
            || in_dir.nlink >= LINK_COUNT_MAX
        {
            return None;
        }
        let object = give(in_dir.ctime)?;
        debug_assert!(object.parent == parent && object.name == name);
        let owner = (object.uid, object.gid);
        let mut attr = made::attr(
            object.ino,
            &object.node,
            object.mode.mode,
            owner,
            object.time,
        );
        made::mask(&mut attr, object.mode);
        made::enter(in_dir, attr.kind, object.time);
        let more = names.make(name, object.ino);
        self.items += more;
        dir.making += 1;
        dir.used = true;
        self.making.is_used(parent, now);
        self.enter_made(now, &object, &attr);
        self.making.queue.push_back(Step::Make(object));
        Some(attr)
    }

    /// Sets attributes in memory, apart from the size, of something that is no regular file and that nobody else can know.
    pub fn set(
        &mut self,
        now: Duration,
        ino: InodeId,
        caller: &Caller,
        set: &SetAttr,
        time: Timestamp,
    ) -> Option<Attr> {
        let is_full = self.making.queue.len() >= MADE_MAX;
        if !self.is_valid(now) || self.busy.has_inode(ino) || is_full {
            return None;
        }
        let entry = self.entries.get_mut(&ino)?;
        let is_own = entry.kind == Kind::Exclusive && entry.is_no_file;
        if !is_own || entry.giving_back.is_some() || !entry.contents.has_attr() {
            return None;
        }
        let attr = entry.contents.attr.as_mut()?;
        let is_plain = set.size.is_none() && set.ctime.is_none() && !attr.has_xattrs;
        if !is_plain || (set.mode.is_some() && attr.kind == FileKind::Symlink) {
            return None;
        }
        let time = time.max(attr.ctime);
        attr.ctime = time;
        attributes::set(attr, caller, set, time);
        let at = |is_set: bool, time| is_set.then_some(SetTime::At(time));
        let values = SetAttr {
            mode: (set.mode.is_some() || set.clear_sgid).then_some(attr.mode),
            uid: set.uid,
            gid: set.gid,
            size: None,
            atime: at(set.atime.is_some(), attr.atime),
            mtime: at(set.mtime.is_some(), attr.mtime),
            ctime: Some(attr.ctime),
            clear_sgid: false,
        };
        let attr = attr.clone();
        entry.making += 1;
        entry.used = true;
        self.making.is_used(ino, now);
        self.making.queue.push_back(Step::Set { ino, set: values });
        Some(attr)
    }

    fn enter_made(&mut self, now: Duration, object: &NewObject, attr: &Attr) {
        let mut contents = Contents::default();
        contents.set_made(attr.clone());
        match &object.node {
            NewNode::Directory => {
                contents.names.get_or_insert_default().is_empty_from(0);
                contents.place = Some(Box::new((object.parent, object.name.clone())));
            }
            NewNode::Symlink(target) => self.items += contents.set_target(target),
            NewNode::Regular | NewNode::Special(..) => {}
        }
        if attr.kind != FileKind::Regular {
            self.making.is_used(object.ino, now);
        }
        let entry = Entry {
            is_unborn: true,
            is_no_file: attr.kind != FileKind::Regular,
            named: true,
            ..Entry::new(Kind::Exclusive, 0, now, contents)
        };
        self.entries.insert(object.ino, Box::new(entry));
        self.hand.push_back(object.ino);
    }

    /// How many steps the leader was not told.
    pub fn made_count(&self) -> usize {
        self.making.queue.len() - self.making.sent
    }

    /// Whether there is something that the leader does not know.
    pub fn has_made(&self) -> bool {
        !self.making.queue.is_empty()
    }

    /// The next ones to tell it, at most so many and, but for one, so many bytes of names and targets. [`Holder::told`], or
    /// [`Holder::untold`], must follow before the next call.
    pub fn take_made(&mut self, count_max: usize, bytes_max: usize) -> Vec<Step> {
        assert_eq!(self.making.sent, 0, "steps are on their way");
        let mut bytes = 0;
        let steps = self.making.queue.iter().take(count_max);
        let steps = steps.enumerate().take_while(|(at, step)| {
            if let Step::Make(object) = step {
                bytes += object.name.len();
                if let NewNode::Symlink(target) = &object.node {
                    bytes += target.len();
                }
            }
            *at == 0 || bytes <= bytes_max
        });
        let steps: Vec<Step> = steps.map(|(_, step)| step.clone()).collect();
        self.making.sent = steps.len();
        steps
    }

    /// The leader was not told, for now.
    pub fn untold(&mut self) {
        self.making.sent = 0;
    }

    /// The leader was told.
    pub fn told(&mut self, now: Duration, told: &Told<'_>) {
        let sent = std::mem::take(&mut self.making.sent);
        let steps: Vec<Step> = self.making.queue.drain(..sent).collect();
        let is_current = told.generation == self.generation;
        let is_listed = is_current && told.changes.is_some();
        for (step, is_done) in steps.iter().zip(told.is_done) {
            self.is_over(step, *is_done, is_listed, told.number);
        }
        if !is_current {
            return;
        }
        for step in &steps {
            // What was answered before lacks it.
            self.raise_floor(step.ino(), told.number);
            // The grants of an attempt whose answer was lost have lower numbers.
            if let Step::Make(object) = step
                && let Some(entry) = self.entries.get_mut(&object.ino)
            {
                entry.number = entry.number.max(told.number);
            }
        }
        for grant in told.grants {
            self.admit(now, grant);
        }
        let is_made = |ino| {
            let mut made = steps.iter();
            made.any(|step| matches!(step, Step::Make(object) if object.ino == ino))
        };
        for change in told.changes.unwrap_or_default() {
            // Of what is new its maker knows more.
            if !matches!(change, Change::Attr(attr) if is_made(attr.ino) && attr.kind != FileKind::Directory)
            {
                self.changed(told.number, change, true, true);
            }
        }
        self.make_room();
    }

    /// The leader has done a step, or will not.
    fn is_over(&mut self, step: &Step, is_done: bool, is_listed: bool, number: u64) {
        if let Some(entry) = self.entries.get_mut(&step.ino()) {
            entry.making = entry.making.saturating_sub(1);
        }
        match step {
            Step::Make(object) => self.born(object, is_done, is_listed, number),
            Step::Set { .. } if is_done => {}
            Step::Set { ino, .. } => self.forget(*ino),
        }
    }

    fn born(&mut self, object: &NewObject, is_there: bool, is_listed: bool, number: u64) {
        if let Some(dir) = self.entries.get_mut(&object.parent)
            && let Some(names) = &mut dir.contents.names
        {
            match is_there {
                true => names.born(&object.name, number, is_listed),
                false => self.items -= names.unmake(&object.name),
            }
        }
        if is_there {
            if let Some(entry) = self.entries.get_mut(&object.ino) {
                entry.is_unborn = false;
            }
            return;
        }
        // It counts what it does not have.
        self.forget(object.parent);
        self.remove(object.ino);
        self.released.push(Release {
            ino: object.ino,
            number: u64::MAX,
            keeps_shared: false,
        });
    }

    /// What was made and the leader was not told is given up: whose session has ended, or is about to.
    pub fn give_up_made(&mut self) -> Vec<Step> {
        self.making.sent = 0;
        self.making.used.clear();
        let lost: Vec<Step> = self.making.queue.drain(..).collect();
        for step in &lost {
            // Whoever waits for it waits no longer.
            self.is_over(step, false, false, 0);
        }
        lost
    }

    /// Keeps only a shared lease of directories in which nothing was made lately, and of symlinks: if this session falls silent then, nobody has
    /// to wait for its end.
    pub fn relax(&mut self, now: Duration) {
        let used = std::mem::take(&mut self.making.used);
        let (idle, used) = used
            .into_iter()
            .partition(|(_, at)| now >= *at + IDLE && self.takes_part);
        self.making.used = used;
        for (ino, _) in idle {
            let Some(entry) = self.entries.get_mut(&ino) else {
                continue;
            };
            if entry.kind != Kind::Exclusive || entry.giving_back.is_some() {
                continue;
            }
            if entry.is_ahead_of_leader() {
                self.making.is_used(ino, now);
                continue;
            }
            entry.kind = Kind::Shared;
            let number = entry.number;
            self.released.push(Release {
                ino,
                number,
                keeps_shared: true,
            });
        }
    }

    /// Whether there are directories for [`Holder::relax`].
    pub fn has_made_lately(&self) -> bool {
        !self.making.used.is_empty()
    }

    /// Whether there is something of an inode that the leader must be told before it is asked about it: the inode itself, or
    /// what was made in it.
    pub fn is_ahead_in(&self, ino: InodeId) -> bool {
        let entry = self.entries.get(&ino);
        entry.is_some_and(|entry| entry.is_ahead_of_leader())
    }

    /// The same of what a mutation is about, also of what its names mean.
    pub fn is_ahead_of(&self, touch: &Touch) -> bool {
        match touch {
            Touch::Inode(ino) => self.is_ahead_in(*ino),
            Touch::Name(parent, name) => {
                let is_meant = match self.target_of(*parent, name) {
                    Cached::Is(ino) => self.is_ahead_in(ino),
                    Cached::Absent => false,
                    // It may be a directory in which something was made.
                    Cached::Unknown => self.has_made(),
                };
                is_meant || self.is_ahead_in(*parent)
            }
        }
    }

    /// Whether the leader does not know an inode.
    pub fn is_unborn(&self, ino: InodeId) -> bool {
        self.entries.get(&ino).is_some_and(|entry| entry.is_unborn)
    }
}
