//! Size and times of a file that this client writes to while nobody else may look: what it shows, what the metadata
//! group knows of it, and what there is to publish.
//!
//! All bytes from the published size on are this client's own: no gap may lie there (rule D11), so a write past the
//! end first has the file grown to where it begins.

use lumeofs_base::{Attr, Timestamp};

/// Set-user-id and set-group-id.
const SUID_AND_SGID: u16 = 0o6000;
/// Permission of the group to execute, without which set-group-id means something else and stays.
const GROUP_EXECUTE: u16 = 0o010;

/// What is known of a file under the lease.
#[derive(Clone, Debug)]
pub(crate) struct Local {
    /// As the metadata group said last.
    attr: Attr,
    size: u64,
    mtime: Timestamp,
    /// Something that is not published yet takes suid and sgid away.
    clears_suid: bool,
    /// Changes of size and time so far, and how many of them are published.
    changes: u64,
    published: u64,
}

/// What a holder lays over attributes that it keeps: what it wrote since the metadata group said them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LocalAttr {
    /// Bytes of the file.
    pub(crate) size: u64,
    /// When it was written to last; the ctime is not before that.
    pub(crate) mtime: Timestamp,
    /// A write has taken suid and sgid away.
    pub(crate) clears_suid: bool,
}

impl LocalAttr {
    /// Attributes as they are with these changes.
    pub(crate) fn over(&self, attr: &Attr) -> Attr {
        let mut mode = attr.mode;
        if self.clears_suid {
            let keeps_sgid = mode & GROUP_EXECUTE == 0;
            let sgid = if keeps_sgid { mode & 0o2000 } else { 0 };
            mode = mode & !SUID_AND_SGID | sgid;
        }
        Attr {
            size: self.size,
            mtime: self.mtime,
            ctime: attr.ctime.max(self.mtime),
            mode,
            ..attr.clone()
        }
    }
}

/// What is published at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Publication {
    /// Where what is new begins: not past the end that the metadata group knows.
    pub(crate) from: u64,
    /// The size that the file has at least, 0 if it has not grown.
    pub(crate) size: u64,
    pub(crate) clear_suid: bool,
    /// The mtime that was shown here.
    pub(crate) time: Timestamp,
    changes: u64,
}

impl Local {
    pub(crate) fn new(attr: Attr) -> Self {
        Self {
            size: attr.size,
            mtime: attr.mtime,
            attr,
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
        self.changed()
            .map_or_else(|| self.attr.clone(), |changed| changed.over(&self.attr))
    }

    /// What to show where the metadata group has said these attributes. With `is_writer` nobody else changes size and
    /// mtime: an answer that has less is from before they were published.
    pub(crate) fn over(&self, said: &Attr, is_writer: bool) -> Attr {
        let is_older = said.truncations == self.attr.truncations
            && (said.size < self.size || said.mtime < self.mtime);
        match self.changed() {
            Some(changed) if !self.is_published() || (is_writer && is_older) => changed.over(said),
            _ => said.clone(),
        }
    }

    /// What was changed here, if anything.
    pub(crate) fn changed(&self) -> Option<LocalAttr> {
        (self.changes > 0).then_some(LocalAttr {
            size: self.size,
            mtime: self.mtime,
            clears_suid: self.clears_suid,
        })
    }

    pub(crate) fn is_published(&self) -> bool {
        self.changes == self.published
    }

    /// Bytes were written, up to `end`.
    pub(crate) fn wrote(&mut self, end: u64, now: Timestamp, clear_suid: bool) {
        self.size = self.size.max(end);
        self.mtime = now.max(self.attr.ctime).max(self.mtime);
        self.clears_suid |= clear_suid;
        self.changes += 1;
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
        self.mtime = self.mtime.max(attr.mtime);
        self.attr = attr;
    }

    /// As [`Local::adopt`], where a caller has set the mtime.
    pub(crate) fn set_mtime(&mut self, attr: &Attr) {
        self.adopt(attr);
        self.mtime = attr.mtime;
    }

    /// What was written from here on is given up. Not below what is published.
    pub(crate) fn cut(&mut self, size: u64) {
        self.size = self.size.min(size.max(self.attr.size));
    }

    /// What there is to publish if all bytes below `sent` are with the primaries.
    pub(crate) fn publication(&self, sent: u64) -> Option<Publication> {
        let size = self.size.min(sent);
        let grows = size > self.attr.size;
        (grows || !self.is_published()).then_some(Publication {
            from: self.attr.size,
            size: if grows { size } else { 0 },
            clear_suid: self.clears_suid,
            time: self.mtime,
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
        assert_eq!((local.publication(u64::MAX), local.changed()), (None, None));
        local.wrote(300, at(50), false);
        let part = local.publication(200).unwrap();
        assert_eq!((part.from, part.size), (100, 200));
        local.published(&part, &attr(200));
        assert!(!local.is_published());
        let rest = local.publication(u64::MAX).unwrap();
        assert_eq!((rest.from, rest.size, rest.time), (200, 300, at(50)));
        local.published(&rest, &attr(300));
        assert!(local.is_published() && local.publication(u64::MAX).is_none());
        assert_eq!(local.changed().unwrap().size, 300);
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
        local.set_mtime(&Attr {
            mtime: at(7),
            ..attr(100)
        });
        let publication = local.publication(u64::MAX).unwrap();
        assert_eq!((publication.size, publication.time), (300, at(7)));
        local.published(&publication, &attr(300));
        // An answer from before the publication.
        local.adopt(&attr(100));
        assert_eq!((local.size(), local.changed()), (300, None));
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
}
