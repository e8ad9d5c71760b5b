//! Names of one directory: those that were looked up, absences, and the listing as far as it was read.

use super::{Cached, Listing};
use lumeofs_base::{FileKind, InodeId};
use lumeofs_meta::op::DirEntry;
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

/// What is remembered of a directory's names.
#[derive(Debug, Default)]
pub(in crate::holder) struct Names {
    names: HashMap<Vec<u8>, Name>,
    /// Entries in the order of their cookies: all of them up to the end of the last page.
    listed: BTreeMap<u64, (Vec<u8>, InodeId, FileKind)>,
    /// The pages that were read, without gap: the last cookie of each, and the number of its answer.
    pages: Vec<(u64, u64)>,
    /// Names that were not known when they were looked up.
    misses: u8,
}

#[derive(Clone, Copy, Debug)]
struct Name {
    /// Of the answer or change that it comes from.
    number: u64,
    /// What it means, if anything.
    to: Option<InodeId>,
    /// Its place in the listing.
    cookie: Option<u64>,
}

impl Names {
    pub(in crate::holder) fn len(&self) -> usize {
        self.names.len()
    }

    fn is_complete(&self) -> bool {
        self.pages.last().is_some_and(|(end, _)| *end == u64::MAX)
    }

    /// The number of the page that holds a cookie, if that was read.
    fn page_of(&self, cookie: u64) -> Option<u64> {
        let at = self.pages.partition_point(|(end, _)| *end < cookie);
        self.pages.get(at).map(|(_, number)| *number)
    }

    /// Takes a name out of the listing.
    fn unlist(&mut self, cookie: u64, name: &[u8]) {
        let there = self.listed.get(&cookie);
        if there.is_some_and(|(other, ..)| other == name) {
            self.listed.remove(&cookie);
        }
    }

    pub(in crate::holder) fn get(&self, name: &[u8]) -> Cached<InodeId> {
        match self.names.get(name) {
            Some(Name { to: Some(ino), .. }) => Cached::Is(*ino),
            Some(Name { to: None, .. }) => Cached::Absent,
            None if self.is_complete() => Cached::Absent,
            None => Cached::Unknown,
        }
    }

    /// A name was not answered: the cookie after which it is, or if that is not known and many were missed, the one up to
    /// which the listing was read.
    pub(super) fn missed(&mut self, name: &[u8], misses_min: u8) -> Option<u64> {
        if let Some(cookie) = self.names.get(name).and_then(|known| known.cookie) {
            return Some(cookie - 1);
        }
        self.misses = self.misses.saturating_add(1);
        let is_walk = self.misses >= misses_min && !self.is_complete();
        is_walk.then(|| self.pages.last().map_or(0, |(end, _)| *end))
    }

    /// The directory was made just now: there is nothing in it.
    pub(in crate::holder) fn is_empty_from(&mut self, number: u64) {
        self.pages = vec![(u64::MAX, number)];
    }

    /// Something was made here that the leader does not know: no answer of it says otherwise. Returns how many names more
    /// there are.
    pub(in crate::holder) fn make(&mut self, name: &[u8], ino: InodeId) -> usize {
        let name_of = Name {
            number: u64::MAX,
            to: Some(ino),
            cookie: None,
        };
        usize::from(self.names.insert(name.to_vec(), name_of).is_none())
    }

    /// The leader knows it now, and its place in the listing comes as a change with the same number if `is_listed`.
    pub(in crate::holder) fn born(&mut self, name: &[u8], number: u64, is_listed: bool) {
        if let Some(known) = self.names.get_mut(name) {
            known.number = if is_listed { 0 } else { number };
        }
        if !is_listed {
            self.pages.clear();
        }
    }

    /// It was not taken. Returns how many names less there are.
    pub(in crate::holder) fn unmake(&mut self, name: &[u8]) -> usize {
        self.pages.clear();
        usize::from(self.names.remove(name).is_some())
    }

    /// Takes the answer to a lookup. Returns how many names more there are.
    pub(super) fn learn(&mut self, number: u64, name: &[u8], to: Option<InodeId>) -> usize {
        let known = self.names.get(name).copied();
        if known.is_some_and(|known| number <= known.number) {
            return 0;
        }
        let is_told = known.is_some() || self.is_complete();
        if is_told && known.and_then(|known| known.to) != to {
            // There is something that the listing does not have, or the other way round.
            self.pages.clear();
        } else if is_told && known.is_none() {
            return 0;
        }
        let cookie = known.and_then(|known| known.cookie);
        let name_of = Name { number, to, cookie };
        usize::from(self.names.insert(name.to_vec(), name_of).is_none())
    }

    /// Takes a change. Returns how many names more there are.
    pub(super) fn change(&mut self, number: u64, name: &[u8], entry: Option<&DirEntry>) -> usize {
        let known = self.names.get(name).copied();
        let is_old = known.is_some_and(|known| number <= known.number);
        let page = entry.and_then(|entry| self.page_of(entry.cookie));
        if is_old && self.pages.iter().any(|(_, page)| *page < number) {
            // A page was read before the change, and the name after it: the listing lacks one of both.
            self.pages.clear();
        }
        if is_old || page.is_some_and(|page| number <= page) {
            return 0;
        }
        if let Some(cookie) = known.and_then(|known| known.cookie) {
            self.unlist(cookie, name);
        }
        let listed = entry.filter(|_| page.is_some());
        if let Some(entry) = listed {
            let value = (entry.name.clone(), entry.ino, entry.kind);
            self.listed.insert(entry.cookie, value);
        }
        let name_of = Name {
            number,
            to: entry.map(|entry| entry.ino),
            cookie: listed.map(|entry| entry.cookie),
        };
        usize::from(self.names.insert(name.to_vec(), name_of).is_none())
    }

    /// A change with this number came late: what a name means is not known, unless it is newer. Returns how many names
    /// more there are, modulo 2^64.
    pub(super) fn doubt(&mut self, number: u64, name: &[u8]) -> usize {
        if self.pages.iter().any(|(_, page)| *page < number) {
            self.pages.clear();
        }
        match self.names.get(name) {
            Some(known) if known.number < number => {
                self.names.remove(name);
                1_usize.wrapping_neg()
            }
            _ => 0,
        }
    }

    /// Takes the entries after a cookie. Returns how many names more there are.
    pub(super) fn learn_page(
        &mut self,
        number: u64,
        after: u64,
        entries: &[DirEntry],
        more: bool,
    ) -> usize {
        if after == 0 {
            self.pages.clear();
            self.listed.clear();
        } else if self.pages.last().map(|(end, _)| *end) != Some(after) {
            return 0;
        }
        let end = match (more, entries.last()) {
            (true, Some(last)) => last.cookie,
            (true, None) => return 0,
            (false, _) => u64::MAX,
        };
        let before = self.names.len();
        for entry in entries {
            let newer = self
                .names
                .get(&entry.name)
                .filter(|known| known.number > number);
            if newer.is_some_and(|newer| newer.to != Some(entry.ino)) {
                // A change of this session lies between both.
                self.pages.clear();
                return self.names.len() - before;
            }
            let value = (entry.name.clone(), entry.ino, entry.kind);
            self.listed.insert(entry.cookie, value);
            let name_of = Name {
                number: newer.map_or(number, |newer| newer.number),
                to: Some(entry.ino),
                cookie: Some(entry.cookie),
            };
            self.names.insert(entry.name.clone(), name_of);
        }
        self.pages.push((end, number));
        self.names.len() - before
    }

    /// At most `count_max` entries after a cookie, if they are all known.
    pub(super) fn after(&self, after: u64, count_max: usize) -> Option<Listing> {
        let end = self.pages.last()?.0;
        let range = (Bound::Excluded(after), Bound::Unbounded);
        let mut entries: Vec<DirEntry> = self
            .listed
            .range(range)
            .take(count_max + 1)
            .map(|(cookie, (name, ino, kind))| DirEntry {
                cookie: *cookie,
                name: name.clone(),
                ino: *ino,
                kind: *kind,
            })
            .collect();
        let more = entries.len() > count_max;
        entries.truncate(count_max);
        (more || end == u64::MAX).then_some(Listing { entries, more })
    }
}
