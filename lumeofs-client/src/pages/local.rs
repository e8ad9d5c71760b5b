//! Size, times and rights of a file that this client writes to while nobody else may look: what it shows, what the
//! metadata group knows of it, and what there is to publish.
//!
//! All bytes from the published size on are this client's own: no gap may lie there (rule D11), so a write past the
//! end first has the file grown to where it begins.

use lumeofs_base::{Attr, Timestamp};
use lumeofs_meta::attributes;
use lumeofs_meta::op::{Caller, SetAttr, SetTime};

/// What is known of a file under the lease.
#[derive(Clone, Debug)]
pub(crate) struct Local {
    /// As the metadata group said last.
    attr: Attr,
    size: u64,
    mtime: Timestamp,
    /// Of the last change here.
    ctime: Timestamp,
    /// What was set besides: as it is now. Neither size nor mtime.
    set: SetAttr,
    /// A write after that takes suid and sgid away.
    clears_suid: bool,
    /// Changes so far, and how many of them are published.
    changes: u64,
    published: u64,
}

/// What is published at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Publication {
    /// Where what is new begins: not past the end that the metadata group knows.
    pub(crate) from: u64,
    /// The size that the file has at least, 0 if it has not grown.
    pub(crate) size: u64,
    pub(crate) clear_suid: bool,
    /// The times that were shown here.
    pub(crate) mtime: Timestamp,
    pub(crate) ctime: Timestamp,
    /// What else was set.
    pub(crate) set: SetAttr,
    changes: u64,
}

impl Local {
    pub(crate) fn new(attr: Attr) -> Self {
        Self {
            size: attr.size,
            mtime: attr.mtime,
            ctime: attr.ctime,
            attr,
            set: SetAttr::default(),
            clears_suid: false,
            changes: 0,
            published: 0,
        }
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// The size that the metadata group knows.
    pub(crate) fn published_size(&self) -> u64 {
        self.attr.size
    }

    /// Attributes as they are to be shown.
    pub(crate) fn attr(&self) -> Attr {
        match self.changes {
            0 => self.attr.clone(),
            _ => self.with_changes(&self.attr),
        }
    }

    /// What to show where the metadata group has said these attributes. With `is_writer` nobody else changes the file, so
    /// an answer that is older than what was published here lacks that.
    pub(crate) fn over(&self, said: &Attr, is_writer: bool) -> Attr {
        let is_older = self.changes > 0
            && said.truncations == self.attr.truncations
            && (said.size < self.attr.size || said.ctime < self.attr.ctime);
        let newest = match is_writer && is_older {
            // Names may have come and gone since.
            true => &Attr {
                nlink: said.nlink,
                ..self.attr.clone()
            },
            false => said,
        };
        match self.is_published() {
            true => newest.clone(),
            false => self.with_changes(newest),
        }
    }

    /// Attributes with what was changed here.
    pub(crate) fn with_changes(&self, attr: &Attr) -> Attr {
        let set = &self.set;
        let mode = set.mode.unwrap_or(attr.mode);
        let atime = match set.atime {
            Some(SetTime::At(time)) => time,
            _ => attr.atime,
        };
        Attr {
            size: self.size,
            mtime: self.mtime,
            ctime: attr.ctime.max(self.ctime),
            atime,
            uid: set.uid.unwrap_or(attr.uid),
            gid: set.gid.unwrap_or(attr.gid),
            mode: match self.clears_suid {
                true => attributes::without_suid(mode),
                false => mode,
            },
            ..attr.clone()
        }
    }

    pub(crate) fn is_published(&self) -> bool {
        self.changes == self.published
    }

    /// Bytes were written, up to `end`.
    pub(crate) fn wrote(&mut self, end: u64, now: Timestamp, clear_suid: bool) {
        self.mtime = self.begin_change(now);
        self.size = self.size.max(end);
        self.clears_suid |= clear_suid;
    }

    /// Whether an access time was set that may not be published yet.
    pub(crate) fn has_set_atime(&self) -> bool {
        self.set.atime.is_some()
    }

    /// A caller who may do that has set attributes other than size and ctime.
    pub(crate) fn set(&mut self, caller: &Caller, set: &SetAttr, now: Timestamp) {
        let now = self.begin_change(now);
        let mut shown = self.attr();
        attributes::set(&mut shown, caller, set, now);
        if set.mode.is_some() {
            self.set.mode = Some(shown.mode);
            self.clears_suid = false;
        } else if set.uid.is_some() || set.gid.is_some() {
            // Not the mode itself: others may have set that since it was said here.
            self.clears_suid = true;
        }
        self.set.uid = set.uid.or(self.set.uid);
        self.set.gid = set.gid.or(self.set.gid);
        if set.atime.is_some() {
            self.set.atime = Some(SetTime::At(shown.atime));
        }
        if set.mtime.is_some() {
            self.mtime = shown.mtime;
        }
    }

    /// Returns the time of the change: that never goes back.
    fn begin_change(&mut self, now: Timestamp) -> Timestamp {
        if self.is_published() {
            // What comes next is a publication of its own.
            self.set = SetAttr::default();
        }
        self.ctime = now.max(self.attr.ctime).max(self.ctime);
        self.changes += 1;
        self.ctime
    }

    /// The metadata group has grown the file to this size; nothing was written there.
    pub(crate) fn grew(&mut self, size: u64) {
        self.attr.size = self.attr.size.max(size);
        self.size = self.size.max(size);
    }

    /// The metadata group has said attributes. What is not published stays: it is newer. An answer that was overtaken by
    /// a publication does not take the size back: without a truncation a file only grows.
    pub(crate) fn adopt(&mut self, attr: &Attr) {
        let mut attr = attr.clone();
        if attr.truncations == self.attr.truncations {
            attr.size = attr.size.max(self.attr.size);
        }
        if self.is_published() {
            *self = Self::new(attr);
            return;
        }
        self.size = self.size.max(attr.size);
        self.attr = attr;
    }

    /// What was written from here on is given up. Not below what is published.
    pub(crate) fn cut(&mut self, size: u64) {
        self.size = self.size.min(size.max(self.attr.size));
    }

    /// What there is to publish if all bytes below `sent` are with the primaries.
    pub(crate) fn publication(&self, sent: u64) -> Option<Publication> {
        let size = self.size.min(sent);
        let grows = size > self.attr.size;
        let mode = self.set.mode.map(|mode| match self.clears_suid {
            true => attributes::without_suid(mode),
            false => mode,
        });
        (grows || !self.is_published()).then_some(Publication {
            from: self.attr.size,
            size: if grows { size } else { 0 },
            clear_suid: self.clears_suid,
            mtime: self.mtime,
            ctime: self.ctime,
            set: SetAttr {
                mode,
                ..self.set.clone()
            },
            changes: if size >= self.size {
                self.changes
            } else {
                self.published
            },
        })
    }

    /// That was published, and these are the attributes since.
    pub(crate) fn published(&mut self, publication: &Publication, attr: &Attr) {
        self.published = self.published.max(publication.changes);
        if self.set.atime == publication.set.atime {
            // Not once more with what is written after: it may have been read since.
            self.set.atime = None;
        }
        self.clears_suid &= self.published != self.changes;
        self.attr = attr.clone();
        self.size = self.size.max(attr.size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::testing::attr;

    const fn at(secs: i64) -> Timestamp {
        Timestamp { secs, nanos: 0 }
    }

    #[test]
    fn only_what_was_sent_is_published_and_the_rest_stays() {
        let mut local = Local::new(attr(100));
        assert_eq!(local.publication(u64::MAX), None);
        local.wrote(300, at(50), false);
        let part = local.publication(200).unwrap();
        assert_eq!((part.from, part.size), (100, 200));
        local.published(&part, &attr(200));
        assert!(!local.is_published());
        let rest = local.publication(u64::MAX).unwrap();
        assert_eq!((rest.from, rest.size, rest.mtime), (200, 300, at(50)));
        local.published(&rest, &attr(300));
        assert!(local.is_published() && local.publication(u64::MAX).is_none());
        assert_eq!(local.attr().size, 300);
    }

    #[test]
    fn attributes_from_elsewhere_take_nothing_back() {
        let mut local = Local::new(attr(100));
        local.wrote(300, at(50), false);
        local.adopt(&Attr {
            mode: 0o600,
            ..attr(100)
        });
        let shown = local.attr();
        assert_eq!((shown.size, shown.mtime, shown.mode), (300, at(50), 0o600));
        let publication = local.publication(u64::MAX).unwrap();
        assert_eq!((publication.size, publication.mtime), (300, at(50)));
        local.published(&publication, &attr(300));
        // An answer from before the publication.
        local.adopt(&attr(100));
        assert_eq!((local.size(), local.is_published()), (300, true));
        let truncated = Attr {
            truncations: 1,
            ..attr(20)
        };
        local.adopt(&truncated);
        assert_eq!(local.size(), 20);
    }

    #[test]
    fn an_answer_from_before_a_publication_does_not_hide_it() {
        let mut local = Local::new(attr(100));
        local.wrote(300, at(50), false);
        assert_eq!(local.over(&attr(100), false).size, 300);
        let all = local.publication(u64::MAX).unwrap();
        let told = Attr {
            mtime: at(50),
            ctime: at(60),
            ..attr(300)
        };
        local.published(&all, &told);
        let shown = local.over(&attr(100), true);
        assert_eq!((shown.size, shown.mtime), (300, at(50)));
        assert_eq!(local.over(&attr(100), false), attr(100));
        let later = Attr {
            truncations: 1,
            ..attr(20)
        };
        assert_eq!(local.over(&later, true), later);
    }

    #[test]
    fn times_never_go_back_and_suid_goes() {
        let old = Attr {
            ctime: at(90),
            mode: 0o6755,
            ..attr(5)
        };
        let mut local = Local::new(old);
        local.wrote(3, at(50), true);
        let shown = local.attr();
        assert_eq!((shown.size, shown.mtime, shown.ctime), (5, at(90), at(90)));
        assert_eq!(shown.mode, 0o755);
        local.wrote(3, at(95), false);
        local.wrote(3, at(94), false);
        assert_eq!(local.attr().mtime, at(95));
        assert_eq!(local.publication(9).unwrap().size, 0);
    }

    #[test]
    fn what_is_set_is_shown_at_once_and_published_with_the_writes() {
        let mut local = Local::new(Attr {
            mode: 0o6755,
            ..attr(5)
        });
        let root = Caller {
            trusted: true,
            ..Caller::default()
        };
        local.wrote(9, at(50), false);
        let owner = SetAttr {
            uid: Some(12),
            atime: Some(SetTime::At(at(3))),
            mtime: Some(SetTime::At(at(900))),
            ..SetAttr::default()
        };
        local.set(&root, &owner, at(51));
        let shown = local.attr();
        assert_eq!((shown.uid, shown.mode, shown.size), (12, 0o755, 9));
        assert_eq!(
            (shown.atime, shown.mtime, shown.ctime),
            (at(3), at(900), at(51))
        );
        let mode = SetAttr {
            mode: Some(0o4711),
            ..SetAttr::default()
        };
        local.set(&root, &mode, at(52));
        assert_eq!(local.attr().mode, 0o4711);
        let all = local.publication(u64::MAX).unwrap();
        assert_eq!((all.mtime, all.ctime), (at(900), at(52)));
        let set = SetAttr {
            mode: Some(0o4711),
            uid: Some(12),
            atime: owner.atime,
            ..SetAttr::default()
        };
        assert_eq!(all.set, set);
        // A write afterwards has its own time, and takes the rights away again.
        local.wrote(9, at(60), true);
        assert_eq!((local.attr().mode, local.attr().mtime), (0o711, at(60)));
        assert_eq!(local.publication(u64::MAX).unwrap().set.mode, Some(0o711));
        local.published(&all, &shown);
        assert!(!local.is_published(), "the write came later");
        let rest = local.publication(u64::MAX).unwrap();
        local.published(&rest, &local.attr());
        local.wrote(10, at(70), false);
        assert_eq!(
            local.publication(u64::MAX).unwrap().set,
            SetAttr::default(),
            "what was published is not set once more"
        );
    }

    #[test]
    fn an_access_time_is_set_once() {
        let mut local = Local::new(attr(5));
        let set = |secs| SetAttr {
            atime: Some(SetTime::At(at(secs))),
            ..SetAttr::default()
        };
        local.set(&Caller::default(), &set(3), at(50));
        let first = local.publication(u64::MAX).unwrap();
        assert_eq!(first.set, set(3));
        // While that is on its way.
        local.wrote(9, at(51), false);
        local.published(&first, &local.attr());
        assert!(!local.is_published() && !local.has_set_atime());
        assert_eq!(local.attr().atime, at(3));
        let read = Attr {
            atime: at(70),
            ..local.attr()
        };
        assert_eq!(local.over(&read, true).atime, at(70));
        let second = local.publication(u64::MAX).unwrap();
        assert_eq!(second.set, SetAttr::default());
        local.set(&Caller::default(), &set(4), at(52));
        local.published(&second, &local.attr());
        assert!(local.has_set_atime(), "another one was set meanwhile");
    }

    #[test]
    fn a_change_of_owner_does_not_bring_back_a_mode_that_others_have_set_since() {
        let mut local = Local::new(Attr {
            mode: 0o4755,
            ..attr(5)
        });
        local.wrote(9, at(50), false);
        let owner = SetAttr {
            gid: Some(12),
            ..SetAttr::default()
        };
        local.set(&Caller::default(), &owner, at(51));
        assert_eq!((local.attr().mode, local.attr().gid), (0o755, 12));
        let said = Attr {
            mode: 0o4600,
            ..attr(5)
        };
        assert_eq!(local.over(&said, true).mode, 0o600);
        let all = local.publication(u64::MAX).unwrap();
        assert_eq!((all.set.mode, all.clear_suid), (None, true));
    }
}
