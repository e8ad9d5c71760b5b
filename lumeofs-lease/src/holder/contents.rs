//! What is remembered of an inode under its lease, and what may be answered from that.

mod names;

use super::{Act, Holder, Touch};
use crate::wire::{Generation, Grant, Kind};
use lumeofs_base::{Attr, FileKind, InodeId};
use lumeofs_meta::change::Change;
use lumeofs_meta::op::{DirEntry, Listed};
pub(super) use names::Names;
use std::collections::HashMap;
use std::time::Duration;

/// Bytes of a value or a target that count as one more item.
const ITEM_BYTES: usize = 256;

/// As how many items something counts that is this long.
fn weight(bytes: &[u8]) -> usize {
    1 + bytes.len() / ITEM_BYTES
}

/// As how many items a list of names counts.
fn weight_of_names(names: &[Vec<u8>]) -> usize {
    names.iter().map(|name| weight(name)).sum()
}

/// As how many items the value of an attribute counts, or that there is none.
fn weight_of_value(value: Option<&[u8]>) -> usize {
    value.map_or(1, weight)
}

/// An answer from memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cached<T> {
    /// There is none.
    Unknown,
    /// There is no such thing.
    Absent,
    /// This.
    Is(T),
}

/// A part of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// In the order of their cookies.
    pub entries: Vec<DirEntry>,
    /// Whether others follow.
    pub more: bool,
}

/// What an answer of the leader says.
#[derive(Clone, Copy, Debug)]
pub enum Learned<'a> {
    /// Attributes.
    Attr(&'a Attr),
    /// What a name means, with the attributes of that.
    Name {
        /// The directory.
        parent: InodeId,
        /// The name.
        name: &'a [u8],
        /// What it means, if anything.
        attr: Option<&'a Attr>,
    },
    /// The entries of a directory after a cookie.
    Entries {
        /// The directory.
        ino: InodeId,
        /// 0 for the start.
        after: u64,
        /// In order.
        entries: &'a [DirEntry],
        /// Whether others follow.
        more: bool,
        /// What entries mean, in the order of entries and of grants.
        inodes: &'a [Listed],
    },
    /// The target of a symlink.
    Target(InodeId, &'a [u8]),
    /// The value of an extended attribute, if there is one.
    Xattr(InodeId, &'a [u8], Option<&'a [u8]>),
    /// The names of all extended attributes.
    XattrNames(InodeId, &'a [Vec<u8>]),
}

/// Of one inode.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) attr: Option<Attr>,
    /// Of the answer that it came with.
    attr_number: u64,
    /// It may be shown: nothing was missed since.
    is_current: bool,
    target: Option<Vec<u8>>,
    xattrs: HashMap<Vec<u8>, Option<Vec<u8>>>,
    xattr_names: Option<Vec<Vec<u8>>>,
    pub(super) names: Option<Box<Names>>,
    /// Of a directory: one that it was found in, and by which name.
    pub(super) place: Option<Box<(InodeId, Vec<u8>)>>,
}

impl Contents {
    /// Forgets all. Returns how many items that were.
    pub(super) fn clear(&mut self) -> usize {
        let names = self.names.take().map_or(0, |names| names.len());
        let target = self.target.as_deref().map_or(0, weight);
        let count = self.forget_xattrs() + names + target;
        *self = Self::default();
        count
    }

    /// Keeps only what a writer has not published. Returns how many items were forgotten.
    pub(super) fn restamp(&mut self) -> usize {
        let attr = self.attr.take();
        let count = self.clear();
        self.attr = attr;
        count
    }

    pub(super) fn has_attr(&self) -> bool {
        self.attr.is_some() && self.is_current
    }

    /// Whether the attributes say that there are no others.
    fn has_no_xattrs(&self) -> bool {
        let attr = self.attr.as_ref().filter(|_| self.is_current);
        attr.is_some_and(|attr| !attr.has_xattrs)
    }

    pub(super) fn attr_mut(&mut self) -> Option<&mut Attr> {
        self.attr.as_mut()
    }

    /// Takes attributes of what nobody else knows.
    pub(super) fn set_made(&mut self, attr: Attr) {
        self.attr = Some(attr);
        self.is_current = true;
    }

    /// Takes the target of a symlink. Returns how many items more there are, modulo 2^64.
    pub(super) fn set_target(&mut self, target: &[u8]) -> usize {
        let before = self.target.replace(target.to_vec());
        weight(target).wrapping_sub(before.map_or(0, |before| weight(&before)))
    }

    /// Takes attributes unless newer ones are known. Says whether data that belongs to others may be different.
    pub(super) fn set_attr(&mut self, number: u64, attr: Attr) -> bool {
        if number <= self.attr_number {
            return false;
        }
        let differs = self.differs(&attr);
        self.attr = Some(attr);
        self.attr_number = number;
        self.is_current = true;
        differs
    }

    /// The attributes may not be shown, unless they are newer than this. Says whether data that belongs to others may be
    /// different.
    pub(super) fn doubt_attr(&mut self, number: u64, attr: &Attr) -> bool {
        let differs = self.differs(attr);
        self.is_current &= self.attr_number > number;
        differs
    }

    fn differs(&self, attr: &Attr) -> bool {
        let data = |attr: &Attr| (attr.size, attr.mtime, attr.truncations);
        self.attr.as_ref().map(data) != Some(data(attr))
    }

    /// Forgets what a name means, unless that is newer. Returns how many items more there are, modulo 2^64.
    pub(super) fn doubt_name(&mut self, number: u64, name: &[u8]) -> usize {
        let names = self.names.as_mut();
        names.map_or(0, |names| names.doubt(number, name))
    }

    /// A name was not answered: see [`Names::missed`].
    pub(super) fn missed(&mut self, name: &[u8], misses_min: u8) -> Option<u64> {
        self.names.as_mut()?.missed(name, misses_min)
    }

    /// Enters what a name means. Returns how many items more there are.
    pub(super) fn set_name(&mut self, number: u64, name: &[u8], entry: Option<&DirEntry>) -> usize {
        let names = self.names.get_or_insert_default();
        names.change(number, name, entry)
    }

    /// Returns how many items were forgotten.
    pub(super) fn forget_xattrs(&mut self) -> usize {
        let names = self.xattr_names.take();
        let names = names.map_or(0, |names| weight_of_names(&names));
        let values = self.xattrs.drain();
        names
            + values
                .map(|(_, value)| weight_of_value(value.as_deref()))
                .sum::<usize>()
    }
}

impl Holder {
    /// Takes what an answer says.
    pub fn learn(
        &mut self,
        now: Duration,
        generation: Generation,
        grants: &[Grant],
        learned: Learned<'_>,
    ) {
        if generation != self.generation || !self.takes_part {
            self.decline(generation, grants);
            return;
        }
        let mut listed = match learned {
            Learned::Entries { inodes, .. } => inodes.iter().peekable(),
            _ => [].iter().peekable(),
        };
        for grant in grants {
            let listed = listed.next_if(|listed| listed.attr.ino == grant.ino);
            let is_new = !self.entries.contains_key(&grant.ino);
            if !self.admit(now, grant) {
                continue;
            }
            if let Some(listed) = listed {
                self.learn_listed(grant, listed, is_new);
                continue;
            }
            let ino = grant.ino;
            match learned {
                Learned::Attr(attr) if attr.ino == ino => self.learn_attr(grant, attr),
                Learned::Name { parent, name, attr } => {
                    if let Some(attr) = attr.filter(|attr| attr.ino == ino) {
                        self.learn_attr(grant, attr);
                        self.note_place(attr, parent, name);
                    }
                    if parent == ino {
                        let to = attr.map(|attr| attr.ino);
                        self.with(grant, |contents| {
                            let names = contents.names.get_or_insert_default();
                            names.learn(grant.number, name, to)
                        });
                    }
                }
                Learned::Entries {
                    ino: of,
                    after,
                    entries,
                    more,
                    ..
                } if of == ino => self.with(grant, |contents| {
                    let names = contents.names.get_or_insert_default();
                    names.learn_page(grant.number, after, entries, more)
                }),
                Learned::Target(of, target) if of == ino => {
                    self.with(grant, |contents| contents.set_target(target));
                }
                Learned::Xattr(of, name, value) if of == ino => self.with(grant, |contents| {
                    let known = value.map(<[u8]>::to_vec);
                    let before = contents.xattrs.insert(name.to_vec(), known);
                    let before = before.map_or(0, |before| weight_of_value(before.as_deref()));
                    weight_of_value(value).wrapping_sub(before)
                }),
                Learned::XattrNames(of, names) if of == ino => self.with(grant, |contents| {
                    let before = contents.xattr_names.replace(names.to_vec());
                    let before = before.map_or(0, |before| weight_of_names(&before));
                    weight_of_names(names).wrapping_sub(before)
                }),
                _ => {}
            }
        }
        self.make_room();
    }

    /// Gives up what came with an answer that says nothing to be remembered.
    pub fn decline(&mut self, generation: Generation, grants: &[Grant]) {
        if generation != self.generation {
            return;
        }
        for grant in grants {
            if !self.entries.contains_key(&grant.ino) {
                self.release(grant.ino, grant.number);
                // The table forgets earlier grants with it, which may still be on their way.
                self.raise_floor(grant.ino, grant.number);
            }
        }
    }

    fn learn_listed(&mut self, grant: &Grant, listed: &Listed, is_new: bool) {
        self.learn_attr(grant, &listed.attr);
        if let Some(entries) = &listed.entries {
            self.with(grant, |contents| {
                let names = contents.names.get_or_insert_default();
                names.learn_page(grant.number, 0, entries, false)
            });
        }
        if is_new && let Some(entry) = self.entries.get_mut(&grant.ino) {
            entry.is_ahead = true;
            entry.used = false;
        }
    }

    fn learn_attr(&mut self, grant: &Grant, attr: &Attr) {
        let Some(entry) = self.entries.get_mut(&grant.ino) else {
            return;
        };
        if entry.is_ahead_of_leader() {
            return;
        }
        entry.named = attr.nlink > 0;
        entry.is_no_file = attr.kind != FileKind::Regular;
        if entry.kind == Kind::Through {
            return;
        }
        let merged = match (entry.local, entry.contents.attr_mut()) {
            (true, Some(local)) => super::polls::merge(attr, local),
            _ => attr.clone(),
        };
        entry.contents.set_attr(grant.number, merged);
    }

    /// Has `learn` change the contents of what is granted; it returns how many items more there are, modulo 2^64.
    fn with(&mut self, grant: &Grant, learn: impl FnOnce(&mut Contents) -> usize) {
        let Some(entry) = self.entries.get_mut(&grant.ino) else {
            return;
        };
        if entry.kind != Kind::Through {
            self.items = self.items.wrapping_add(learn(&mut entry.contents));
        }
    }

    /// Begins a mutation: what it may touch is not answered from memory until [`Holder::end_change`].
    pub fn begin_change(&mut self, touches: &[Touch]) {
        for touch in touches {
            let target = match touch {
                Touch::Name(parent, name) => self.target_of(*parent, name),
                Touch::Inode(_) => Cached::Absent,
            };
            self.busy.begin(touch, target);
        }
    }

    /// A mutation has had no effect, or its effects were taken.
    pub fn end_change(&mut self, touches: &[Touch]) {
        for touch in touches {
            self.busy.end(touch);
        }
    }

    /// What a name means as far as the directory's lease tells, even if its term is over.
    pub(super) fn target_of(&self, parent: InodeId, name: &[u8]) -> Cached<InodeId> {
        let entry = self.entries.get(&parent);
        let names = entry.and_then(|entry| entry.contents.names.as_ref());
        names.map_or(Cached::Unknown, |names| names.get(name))
    }

    /// Takes what a mutation of this session did: before [`Holder::end_change`].
    pub fn did(
        &mut self,
        now: Duration,
        generation: Generation,
        number: u64,
        changes: &[Change],
        grants: &[Grant],
    ) {
        if generation != self.generation || !self.takes_part {
            self.decline(generation, grants);
            // Numbers of another generation mean nothing here, and without leases nothing is remembered.
            for change in changes {
                if generation == self.generation {
                    self.raise_floor(change.ino(), number);
                }
                self.forget(change.ino());
                if matches!(change, Change::Attr(attr) if attr.nlink == 0) {
                    self.acts.push(Act::StateOpen(change.ino()));
                }
            }
            return;
        }
        for grant in grants {
            let is_new = !self.entries.contains_key(&grant.ino);
            // Not the directory that it was made in, which may be granted too.
            let is_made = changes.iter().any(|change| match change {
                Change::Name { entry, .. } => {
                    entry.as_ref().is_some_and(|entry| entry.ino == grant.ino)
                }
                _ => false,
            });
            let made = changes.iter().find_map(|change| match change {
                Change::Attr(attr) if is_made && attr.ino == grant.ino => Some(attr),
                _ => None,
            });
            let is_admitted = self.admit(now, grant);
            if is_new && let Some(entry) = self.entries.get_mut(&grant.ino) {
                entry.since = number;
            }
            if is_admitted
                && is_new
                && let Some(attr) = made
            {
                // It was made just now: there is nothing in it.
                self.with(grant, |contents| {
                    if attr.kind != FileKind::Directory {
                        return 0;
                    }
                    let names = contents.names.get_or_insert_default();
                    names.is_empty_from(grant.number);
                    0
                });
                if attr.kind == FileKind::Directory && grant.kind == Kind::Exclusive {
                    self.making.is_used(grant.ino, now);
                }
            }
        }
        for change in changes {
            self.changed(number, change, true, true);
        }
        self.make_room();
    }

    /// Nothing that was heard of an inode counts any more, nor what is on its way: what a mutation did to it is not known.
    pub fn doubt(&mut self, generation: Generation, number: u64, inodes: &[InodeId]) {
        for ino in inodes {
            if generation == self.generation {
                self.raise_floor(*ino, number);
            }
            self.forget(*ino);
            self.acts.push(Act::StateOpen(*ino));
        }
    }

    /// Whether an answer with this number says less of an inode than what is known here: it was overtaken. An answer that
    /// shows a regular file must then be asked for anew, as it lacks what this session wrote in memory before.
    pub fn is_overtaken(&self, generation: Generation, number: u64, ino: InodeId) -> bool {
        let floor = match self.entries.get(&ino) {
            Some(entry) => entry.floor,
            None => self
                .floor_of_all
                .max(self.floors.get(&ino).copied().unwrap_or(0)),
        };
        // One of the same number was given after what has it, as nothing has happened since.
        generation != self.generation || number < floor
    }

    /// Forgets what is remembered of an inode, but neither the lease nor what is not published.
    pub(super) fn forget(&mut self, ino: InodeId) {
        if let Some(entry) = self.entries.get_mut(&ino) {
            entry.named = false;
            self.items -= match entry.local {
                true => entry.contents.restamp(),
                false => entry.contents.clear(),
            };
            if entry.kind == Kind::Shared {
                self.acts.push(Act::DropData(ino));
            }
        }
    }

    /// The contents of an inode, if a lease lets them be shown now.
    fn shown(&mut self, now: Duration, ino: InodeId) -> Option<&Contents> {
        if !self.is_valid(now) || self.busy.has_inode(ino) {
            return None;
        }
        self.entry(ino)
    }

    fn entry(&mut self, ino: InodeId) -> Option<&Contents> {
        let entry = self.entries.get_mut(&ino)?;
        entry.used = true;
        if std::mem::take(&mut entry.is_ahead) {
            self.credit.is_used();
        }
        Some(&entry.contents)
    }

    /// What a name means.
    pub fn lookup(&mut self, now: Duration, parent: InodeId, name: &[u8]) -> Cached<Attr> {
        if !self.is_valid(now) || self.busy.has_name(parent, name) {
            return Cached::Unknown;
        }
        let names = self.entry(parent).and_then(|dir| dir.names.as_ref());
        match names.map_or(Cached::Unknown, |names| names.get(name)) {
            Cached::Unknown => Cached::Unknown,
            Cached::Absent => Cached::Absent,
            Cached::Is(ino) => {
                let found = self.attr(now, ino);
                if let Cached::Is(attr) = &found {
                    self.note_place(attr, parent, name);
                }
                found
            }
        }
    }

    /// Attributes of the directory that a directory is in, if its name there is in memory.
    pub fn parent(&mut self, now: Duration, ino: InodeId) -> Cached<Attr> {
        let contents = self.shown(now, ino);
        let place = contents.and_then(|contents| contents.place.clone());
        let Some((parent, name)) = place.map(|place| *place) else {
            return Cached::Unknown;
        };
        match self.lookup(now, parent, &name) {
            Cached::Is(found) if found.ino == ino => self.attr(now, parent),
            // It was moved.
            _ => Cached::Unknown,
        }
    }

    fn note_place(&mut self, attr: &Attr, parent: InodeId, name: &[u8]) {
        if attr.kind != FileKind::Directory {
            return;
        }
        if let Some(entry) = self.entries.get_mut(&attr.ino) {
            let place = &mut entry.contents.place;
            let is_known = |place: &(InodeId, Vec<u8>)| place.0 == parent && place.1 == name;
            if !place.as_deref().is_some_and(is_known) {
                *place = Some(Box::new((parent, name.to_vec())));
            }
        }
    }

    /// Attributes of an inode.
    pub fn attr(&mut self, now: Duration, ino: InodeId) -> Cached<Attr> {
        let contents = self.shown(now, ino).filter(|contents| contents.is_current);
        let attr = contents.and_then(|contents| contents.attr.clone());
        attr.map_or(Cached::Unknown, Cached::Is)
    }

    /// Entries of a directory after a cookie.
    pub fn listing(
        &mut self,
        now: Duration,
        ino: InodeId,
        after: u64,
        count_max: usize,
    ) -> Cached<Listing> {
        if self.is_ahead_in(ino) {
            // What is new has no place in it yet.
            return Cached::Unknown;
        }
        let names = self.shown(now, ino).and_then(|dir| dir.names.as_ref());
        let listing = names.and_then(|names| names.after(after, count_max));
        listing.map_or(Cached::Unknown, Cached::Is)
    }

    /// Target of a symlink.
    pub fn target(&mut self, now: Duration, ino: InodeId) -> Cached<Vec<u8>> {
        let contents = self.shown(now, ino);
        let target = contents.and_then(|contents| contents.target.clone());
        target.map_or(Cached::Unknown, Cached::Is)
    }

    /// Value of an extended attribute.
    pub fn xattr(&mut self, now: Duration, ino: InodeId, name: &[u8]) -> Cached<Vec<u8>> {
        let Some(contents) = self.shown(now, ino) else {
            return Cached::Unknown;
        };
        match contents.xattrs.get(name) {
            _ if contents.has_no_xattrs() => Cached::Absent,
            Some(Some(value)) => Cached::Is(value.clone()),
            Some(None) => Cached::Absent,
            None => match &contents.xattr_names {
                Some(names) if !names.iter().any(|other| other == name) => Cached::Absent,
                _ => Cached::Unknown,
            },
        }
    }

    /// Names of all extended attributes.
    pub fn xattr_names(&mut self, now: Duration, ino: InodeId) -> Cached<Vec<Vec<u8>>> {
        let names = self.shown(now, ino).and_then(|contents| {
            let none = contents.has_no_xattrs().then(Vec::new);
            none.or_else(|| contents.xattr_names.clone())
        });
        names.map_or(Cached::Unknown, Cached::Is)
    }
}
