//! POSIX access control lists: acl(5), with what Linux makes of it.
//!
//! They are part of the inode's record, so that mode and list cannot disagree: the entries of owner, group class and
//! others are the nine permission bits seen another way, and [`crate::transaction::Tx::save`] has them follow the mode.
//! A list that says no more than the bits is not kept.

use crate::access;
use crate::op::Caller;
use lumeofs_base::{Code, FsError, FsResult};
use serde::{Deserialize, Serialize};

/// What the kernel hands on of a list is one page at most.
const ENTRIES_MAX: usize = (4096 - HEADER_BYTES) / ENTRY_BYTES;
const HEADER_BYTES: usize = 4;
const ENTRY_BYTES: usize = 8;
/// The one version of the form in which extended attributes have a list.
const VERSION: u32 = 2;
/// The id in entries that name nobody.
const NOBODY: u32 = u32::MAX;

/// Which of the lists of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// Who may use it.
    Access,
    /// Of a directory: what is made in it begins with this.
    Default,
}

impl Which {
    const ALL: [Self; 2] = [Self::Access, Self::Default];

    /// The extended attribute that shows it.
    pub(crate) const fn name(self) -> &'static [u8] {
        match self {
            Self::Access => b"system.posix_acl_access",
            Self::Default => b"system.posix_acl_default",
        }
    }

    /// The list that an extended attribute shows.
    pub(crate) fn of(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|which| which.name() == name)
    }
}

/// The lists of an inode.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Acls {
    access: Option<Acl>,
    default: Option<Acl>,
}

impl Acls {
    pub(crate) fn get(&self, which: Which) -> Option<&Acl> {
        match which {
            Which::Access => self.access.as_ref(),
            Which::Default => self.default.as_ref(),
        }
    }

    pub(crate) fn set(&mut self, which: Which, acl: Option<Acl>) {
        match which {
            Which::Access => self.access = acl.filter(|acl| !acl.is_minimal()),
            Which::Default => self.default = acl,
        }
    }

    /// Extended attributes that show them.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static [u8]> {
        let there = Which::ALL.into_iter();
        let there = there.filter(|which| self.get(*which).is_some());
        there.map(Which::name)
    }

    /// Has the access list say what the mode says. Returns whether that is a change.
    pub(crate) fn follow(&mut self, mode: u16) -> bool {
        self.access.as_mut().is_some_and(|acl| acl.follow(mode))
    }

    /// What a new object in a directory with these lists has, and its mode; `None` without a default list: then the
    /// umask counts.
    pub(crate) fn inherited(&self, mode: u16, is_directory: bool) -> Option<(Self, u16)> {
        let default = self.default.as_ref()?;
        let mut access = default.clone();
        access.restrict(mode);
        let mode = mode & !0o777 | access.mode();
        let mut acls = Self::default();
        acls.set(Which::Access, Some(access));
        acls.set(Which::Default, is_directory.then(|| default.clone()));
        Some((acls, mode))
    }
}

/// Whom an entry is about, in the order in which a list has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Who {
    Owner,
    User(u32),
    OwningGroup,
    Group(u32),
    /// The most that named users and all groups get.
    Mask,
    Others,
}

impl Who {
    fn of(tag: u16, id: u32) -> Option<Self> {
        Some(match tag {
            0x01 => Self::Owner,
            0x02 if id != NOBODY => Self::User(id),
            0x04 => Self::OwningGroup,
            0x08 if id != NOBODY => Self::Group(id),
            0x10 => Self::Mask,
            0x20 => Self::Others,
            _ => return None,
        })
    }

    fn tag_and_id(self) -> (u16, u32) {
        match self {
            Self::Owner => (0x01, NOBODY),
            Self::User(uid) => (0x02, uid),
            Self::OwningGroup => (0x04, NOBODY),
            Self::Group(gid) => (0x08, gid),
            Self::Mask => (0x10, NOBODY),
            Self::Others => (0x20, NOBODY),
        }
    }

    fn is_named(self) -> bool {
        matches!(self, Self::User(_) | Self::Group(_))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    who: Who,
    /// Three bits, as one class of a mode has them.
    allows: u16,
}

/// A valid list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Acl(Vec<Entry>);

impl Acl {
    /// A list as extended attributes have it; `None` for one without entries, which is none. [`Acl::check`] must follow.
    ///
    /// # Errors
    /// `Unsupported`: another version. `TooBig`: too long. `Invalid`: no list at all.
    pub(crate) fn parse(value: &[u8]) -> FsResult<Option<Self>> {
        let invalid = || FsError::new(Code::Invalid, format!("{} bytes are no ACL", value.len()));
        if value.is_empty() {
            return Ok(None);
        }
        let (version, entries) = value.split_first_chunk().ok_or_else(invalid)?;
        let version = u32::from_le_bytes(*version);
        if version != VERSION {
            let what = format!("an ACL of version {version}, not {VERSION}");
            return Err(FsError::new(Code::Unsupported, what));
        }
        let count = entries.len() / ENTRY_BYTES;
        if count > ENTRIES_MAX {
            let what = format!("an ACL of {count} entries, allowed are {ENTRIES_MAX}");
            return Err(FsError::new(Code::TooBig, what));
        }
        let (entries, []) = entries.as_chunks::<ENTRY_BYTES>() else {
            return Err(invalid());
        };
        let entries = entries.iter().map(|&[t0, t1, p0, p1, id @ ..]| {
            let tag = u16::from_le_bytes([t0, t1]);
            let allows = u16::from_le_bytes([p0, p1]);
            let who = Who::of(tag, u32::from_le_bytes(id))?;
            Some(Entry { who, allows })
        });
        let entries: Vec<_> = entries.collect::<Option<_>>().ok_or_else(invalid)?;
        Ok((!entries.is_empty()).then_some(Self(entries)))
    }

    /// Whether it is one: each class once and in order, and a mask if anybody is named. Names may come twice, as in
    /// Linux: the first one counts.
    ///
    /// # Errors
    /// `Invalid`: it is not.
    pub(crate) fn check(&self) -> FsResult<()> {
        let place = |entry: &Entry| entry.who.tag_and_id().0;
        let in_order = self.0.is_sorted_by(|one, next| match one.who.is_named() {
            true => place(one) <= place(next),
            false => place(one) < place(next),
        });
        let has = |who| self.0.iter().any(|entry| entry.who == who);
        let is_complete = has(Who::Owner) && has(Who::OwningGroup) && has(Who::Others);
        let needs_mask = self.0.iter().any(|entry| entry.who.is_named());
        let are_bits = self.0.iter().all(|entry| entry.allows <= 7);
        if in_order && is_complete && are_bits && (has(Who::Mask) || !needs_mask) {
            return Ok(());
        }
        Err(FsError::new(Code::Invalid, format!("ACL {:?}", self.0)))
    }

    /// As extended attributes have it.
    pub(crate) fn value(&self) -> Vec<u8> {
        let mut value = Vec::with_capacity(HEADER_BYTES + self.0.len() * ENTRY_BYTES);
        value.extend(VERSION.to_le_bytes());
        for entry in &self.0 {
            let (tag, id) = entry.who.tag_and_id();
            value.extend(tag.to_le_bytes());
            value.extend(entry.allows.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        value
    }

    /// The nine permission bits that say the same, as far as they can.
    pub(crate) fn mode(&self) -> u16 {
        let classes = self.0.iter();
        let classes =
            classes.filter_map(|entry| Some(entry.allows << class(entry.who, self.has_mask())?));
        classes.sum()
    }

    /// Whether the bits say all of it.
    fn is_minimal(&self) -> bool {
        self.0.len() == 3
    }

    fn has_mask(&self) -> bool {
        self.mask().is_some()
    }

    fn mask(&self) -> Option<u16> {
        let mask = self.0.iter().find(|entry| entry.who == Who::Mask);
        mask.map(|mask| mask.allows)
    }

    fn follow(&mut self, mode: u16) -> bool {
        self.change_classes(|_, shift| mode >> shift & 7)
    }

    /// Takes away what the mode of a new object does not give.
    fn restrict(&mut self, mode: u16) {
        self.change_classes(|allows, shift| allows & mode >> shift);
    }

    fn change_classes(&mut self, change: impl Fn(u16, u32) -> u16) -> bool {
        let has_mask = self.has_mask();
        let mut changed = false;
        for entry in &mut self.0 {
            if let Some(shift) = class(entry.who, has_mask) {
                let allows = change(entry.allows, shift);
                changed |= std::mem::replace(&mut entry.allows, allows) != allows;
            }
        }
        changed
    }

    /// Whether it gives a caller, who is not the owner, all of `want` on an object of group `gid`.
    pub(crate) fn allows(&self, caller: &Caller, gid: u32, want: u16) -> bool {
        let mask = self.mask().unwrap_or(7);
        let mut is_in_group = false;
        for Entry { who, allows } in &self.0 {
            let has_all = allows & want == want;
            let is_meant = match *who {
                Who::User(uid) if uid == caller.uid => return has_all && mask & want == want,
                Who::OwningGroup => access::in_group(caller, gid),
                Who::Group(gid) => access::in_group(caller, gid),
                Who::Others => return !is_in_group && has_all,
                Who::Owner | Who::User(_) | Who::Mask => false,
            };
            is_in_group |= is_meant;
            // One of several groups is enough, but nothing is put together from them.
            if is_meant && has_all {
                return mask & want == want;
            }
        }
        false
    }
}

/// Where a mode has the bits of an entry, if it has them: of the group class, those of the mask if there is one.
fn class(who: Who, has_mask: bool) -> Option<u32> {
    match who {
        Who::Owner => Some(6),
        Who::Mask => Some(3),
        Who::OwningGroup if !has_mask => Some(3),
        Who::Others => Some(0),
        Who::User(_) | Who::OwningGroup | Who::Group(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From `(tag, bits, id)`.
    fn value(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut value = VERSION.to_le_bytes().to_vec();
        for (tag, allows, id) in entries {
            value.extend(tag.to_le_bytes());
            value.extend(allows.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        value
    }

    fn acl(entries: &[(u16, u16, u32)]) -> FsResult<Acl> {
        let acl = Acl::parse(&value(entries))?.expect("it has entries");
        acl.check().map(|()| acl)
    }

    fn code<T: std::fmt::Debug>(result: FsResult<T>) -> Code {
        result.unwrap_err().code
    }

    const OWNER: (u16, u16, u32) = (0x01, 7, NOBODY);
    const USER: (u16, u16, u32) = (0x02, 6, 1000);
    const OWNING: (u16, u16, u32) = (0x04, 5, NOBODY);
    const GROUP: (u16, u16, u32) = (0x08, 4, 50);
    const MASK: (u16, u16, u32) = (0x10, 4, NOBODY);
    const OTHERS: (u16, u16, u32) = (0x20, 1, NOBODY);

    #[test]
    fn a_valid_list_comes_back_as_it_was() {
        for entries in [
            &[OWNER, OWNING, OTHERS][..],
            &[OWNER, OWNING, MASK, OTHERS],
            &[OWNER, USER, OWNING, GROUP, MASK, OTHERS],
            &[OWNER, USER, (2, 0, 7), USER, OWNING, MASK, OTHERS],
        ] {
            assert_eq!(acl(entries).unwrap().value(), value(entries));
        }
        // Ids mean nothing where nobody is named.
        let named = acl(&[(0x01, 7, 5), OWNING, OTHERS]).unwrap();
        assert_eq!(named.value(), value(&[OWNER, OWNING, OTHERS]));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for entries in [
            &[OWNER, OWNING][..],
            &[OWNER, OTHERS],
            &[OWNING, OTHERS],
            &[OWNING, OWNER, OTHERS],
            &[OWNER, OWNER, OWNING, OTHERS],
            &[OWNER, OWNING, MASK, MASK, OTHERS],
            &[OWNER, USER, OWNING, OTHERS],
            &[OWNER, OWNING, USER, MASK, OTHERS],
            &[OWNER, OWNING, (0x20, 8, NOBODY)],
            &[OWNER, OWNING, (0x40, 1, NOBODY)],
            &[OWNER, (0x02, 1, NOBODY), OWNING, MASK, OTHERS],
        ] {
            assert_eq!(code(acl(entries)), Code::Invalid, "{entries:?}");
        }
        assert_eq!(code(Acl::parse(&[2, 0, 0])), Code::Invalid);
        assert_eq!(code(Acl::parse(&[2, 0, 0, 0, 1])), Code::Invalid);
        assert_eq!(code(Acl::parse(&[1, 0, 0, 0])), Code::Unsupported);
        assert_eq!(Acl::parse(&[2, 0, 0, 0]), Ok(None));
        assert_eq!(Acl::parse(&[]), Ok(None));
        let many = vec![USER; ENTRIES_MAX + 1];
        assert_eq!(code(Acl::parse(&value(&many))), Code::TooBig);
    }

    #[test]
    fn a_mode_and_a_list_say_the_same() {
        let minimal = acl(&[OWNER, OWNING, OTHERS]).unwrap();
        assert_eq!((minimal.mode(), minimal.is_minimal()), (0o751, true));
        let mut full = acl(&[OWNER, USER, OWNING, MASK, OTHERS]).unwrap();
        assert_eq!((full.mode(), full.is_minimal()), (0o741, false));
        assert!(full.follow(0o620));
        assert!(!full.follow(0o620));
        let after = [
            (1, 6, NOBODY),
            USER,
            OWNING,
            (16, 2, NOBODY),
            (32, 0, NOBODY),
        ];
        assert_eq!(full, acl(&after).unwrap());
    }

    #[test]
    fn a_new_object_gets_what_default_and_mode_both_give() {
        let mut dir = Acls::default();
        assert_eq!(dir.inherited(0o644, false), None);
        let default = acl(&[OWNER, USER, OWNING, (0x10, 6, NOBODY), OTHERS]).unwrap();
        dir.set(Which::Default, Some(default.clone()));
        let (acls, mode) = dir.inherited(0o4640, false).unwrap();
        assert_eq!(mode, 0o4640);
        let access = [
            (1, 6, NOBODY),
            USER,
            OWNING,
            (16, 4, NOBODY),
            (32, 0, NOBODY),
        ];
        assert_eq!(acls.get(Which::Access), Some(&acl(&access).unwrap()));
        assert_eq!(acls.get(Which::Default), None);
        let (acls, mode) = dir.inherited(0o777, true).unwrap();
        assert_eq!(mode, 0o761);
        assert_eq!(acls.get(Which::Default), Some(&default));
        let names: Vec<_> = acls.names().collect();
        assert_eq!(names, [Which::Access.name(), Which::Default.name()]);
        // One that says no more than bits leaves no list.
        dir.set(Which::Default, acl(&[OWNER, OWNING, OTHERS]).ok());
        let (acls, mode) = dir.inherited(0o666, false).unwrap();
        assert_eq!((acls, mode), (Acls::default(), 0o640));
    }

    #[test]
    fn the_first_user_or_any_group_decides_below_the_mask() {
        let acl = acl(&[
            OWNER,
            (2, 6, 1000),
            (2, 0, 1001),
            (4, 1, NOBODY),
            (8, 6, 50),
            (8, 0, 51),
            (16, 4, NOBODY),
            (32, 7, NOBODY),
        ])
        .unwrap();
        let allows = |uid, groups: &[u32], want| {
            let caller = Caller {
                uid,
                gid: groups[0],
                groups: groups.to_vec(),
                trusted: false,
            };
            acl.allows(&caller, 9, want)
        };
        assert!(allows(1000, &[1], 4));
        assert!(!allows(1000, &[1], 2), "the mask");
        assert!(!allows(1001, &[50], 4), "a user's entry comes first");
        assert!(allows(1, &[51, 50], 4), "one group is enough");
        assert!(!allows(1, &[51], 4));
        assert!(!allows(1, &[9], 4));
        assert!(!allows(1, &[9, 50], 5), "nothing is put together");
        assert!(allows(1, &[2], 7));
    }
}
