//! Listing directories. A handle keeps one page of entries, since the kernel asks for about a hundred at a
//! time and the servers give a thousand.
//!
//! Positions are cookies: 1 and 2 stand after `.` and `..`, all others are the servers'. Position 0 reads anew, so
//! `rewinddir(3)` sees what has changed.

use super::Core;
use crate::answer::Opened;
use crate::attr::file_type;
use fuser::{FileHandle, FileType};
use lumeofs_base::limits::READDIR_ENTRIES_MAX;
use lumeofs_base::{Code, FsResult, InodeId};
use lumeofs_client::Context;
use lumeofs_meta::op::DirEntry;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Position after `.`.
const AFTER_DOT: u64 = 1;
/// Position after `..`.
const AFTER_DOT_DOT: u64 = 2;

/// The open directories of a mount. Bounded by the file descriptors that processes may have.
#[derive(Default)]
pub(crate) struct Directories {
    last: AtomicU64,
    open: Mutex<HashMap<u64, Arc<Directory>>>,
}

/// One open directory.
#[derive(Default)]
struct Directory {
    page: Mutex<Option<Arc<Page>>>,
}

/// Entries as the servers gave them.
struct Page {
    /// The position that it was asked for.
    start: u64,
    entries: Vec<DirEntry>,
    /// More follow.
    more: bool,
}

impl Page {
    /// Where in `entries` the position `cookie` is; `None` if it is not in this page or if there the next
    /// page must go on.
    fn place(&self, cookie: u64) -> Option<usize> {
        let place = if cookie == self.start {
            0
        } else {
            1 + self
                .entries
                .iter()
                .position(|entry| entry.cookie == cookie)?
        };
        (place < self.entries.len() || !self.more).then_some(place)
    }
}

/// Entries from a position on.
pub(crate) struct Listing {
    /// `.` and `..`, as far as they are still to come: inode number and position after it.
    dots: Vec<(&'static [u8], u64, u64)>,
    page: Arc<Page>,
    from: usize,
    /// The mounted directory, which has another number.
    root: InodeId,
    root_number: u64,
}

/// An entry as the kernel gets it.
pub(crate) struct Entry<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) ino: u64,
    pub(crate) cookie: u64,
    pub(crate) kind: FileType,
}

impl Listing {
    /// The entries, in order.
    pub(crate) fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        let dots = self.dots.iter().map(|&(name, ino, cookie)| Entry {
            name,
            ino,
            cookie,
            kind: FileType::Directory,
        });
        let names = self.page.entries[self.from..].iter().map(|entry| Entry {
            name: &entry.name,
            ino: if entry.ino == self.root {
                self.root_number
            } else {
                entry.ino.get()
            },
            cookie: entry.cookie,
            kind: file_type(entry.kind),
        });
        dots.chain(names)
    }
}

impl Core {
    /// Nothing to ask: the kernel has just looked the directory up.
    pub(crate) fn opendir(&self) -> Opened {
        let handle = self.directories.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.directories.open.lock().insert(handle, Arc::default());
        Opened::Directory(handle)
    }

    pub(crate) fn releasedir(&self, handle: FileHandle) {
        self.directories.open.lock().remove(&handle.0);
    }

    pub(crate) fn readdir(
        &self,
        cx: Context<'_>,
        ino: InodeId,
        handle: FileHandle,
        position: u64,
    ) -> FsResult<Listing> {
        let directory = self
            .directories
            .open
            .lock()
            .get(&handle.0)
            .cloned()
            .unwrap_or_default();
        let dots = self.dots(cx, ino, position)?;
        // The servers know neither `.` nor `..`: what comes after them is their start.
        let cookie = if position <= AFTER_DOT_DOT {
            0
        } else {
            position
        };
        let buffered = directory.page.lock().clone().filter(|_| position != 0);
        let found = buffered.and_then(|page| page.place(cookie).map(|from| (page, from)));
        let (page, from) = match found {
            Some(found) => found,
            None => {
                let page = Arc::new(self.page(cx, ino, cookie)?);
                *directory.page.lock() = Some(page.clone());
                (page, 0)
            }
        };
        Ok(Listing {
            dots,
            page,
            from,
            root: self.root,
            root_number: self.number(self.root),
        })
    }

    fn page(&self, cx: Context<'_>, ino: InodeId, cookie: u64) -> FsResult<Page> {
        let listed = self
            .backend
            .readdir(cx, ino, cookie, READDIR_ENTRIES_MAX as u32);
        match listed {
            Ok((entries, more)) => {
                // An empty page with more to come could never be passed by.
                let more = more && !entries.is_empty();
                Ok(Page {
                    start: cookie,
                    entries,
                    more,
                })
            }
            // A directory that was removed while it was open reads as empty.
            Err(error) if matches!(error.code, Code::NotFound | Code::Stale) => Ok(Page {
                start: cookie,
                entries: Vec::new(),
                more: false,
            }),
            Err(error) => Err(error),
        }
    }

    /// `.` and `..`, where `position` is before them. Above the mounted directory is the kernel's business.
    fn dots(
        &self,
        cx: Context<'_>,
        ino: InodeId,
        position: u64,
    ) -> FsResult<Vec<(&'static [u8], u64, u64)>> {
        let mut dots = Vec::new();
        let own = self.number(ino);
        if position < AFTER_DOT {
            dots.push((&b"."[..], own, AFTER_DOT));
        }
        if position < AFTER_DOT_DOT {
            let parent = if ino == self.root {
                own
            } else {
                match self.backend.parent(cx, ino) {
                    Ok(parent) => self.number(parent.ino),
                    Err(error) if matches!(error.code, Code::NotFound | Code::Stale) => own,
                    Err(error) => return Err(error),
                }
            };
            dots.push((&b".."[..], parent, AFTER_DOT_DOT));
        }
        Ok(dots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lumeofs_base::FileKind;

    fn page(start: u64, cookies: &[u64], more: bool) -> Page {
        let entries = cookies
            .iter()
            .map(|&cookie| DirEntry {
                cookie,
                name: cookie.to_string().into_bytes(),
                ino: InodeId(cookie),
                kind: FileKind::Regular,
            })
            .collect();
        Page {
            start,
            entries,
            more,
        }
    }

    #[test]
    fn a_position_is_found_in_the_page_or_asks_for_the_next() {
        let some = page(0, &[10, 20, 30], true);
        assert_eq!(some.place(0), Some(0));
        assert_eq!(some.place(10), Some(1));
        assert_eq!(some.place(30), None, "the next page goes on there");
        assert_eq!(some.place(25), None);
        let last = page(30, &[40], false);
        assert_eq!(last.place(40), Some(1), "the end is known");
        assert_eq!(page(0, &[], false).place(0), Some(0));
    }
}
