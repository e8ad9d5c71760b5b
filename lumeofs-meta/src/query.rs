//! Queries: answered from applied state, changing nothing.

use crate::access::{self, READ, SEARCH};
use crate::acl::{Acl, Which};
use crate::directory::{self, Found};
use crate::keys;
use crate::locks;
use crate::op::{Caller, DirEntry, Listed, Outcome, Query, Reply};
use crate::ops;
use crate::record::Inode;
use crate::tables::Tables;
use crate::transaction::{chunks, inode, live_directory, state};
use crate::trash;
use lumeofs_base::limits::READDIR_ENTRIES_MAX;
use lumeofs_base::{ChunkIndex, Code, FileKind, FsError, FsResult, InodeId};

/// Chunk indices that one query may span, so that its reply fits a frame header.
pub(crate) const CHUNKS_PER_QUERY_MAX: u32 = 16_384;

/// Entries of a directory of which a listing of another one tells.
const CONTENTS_MAX: usize = 64;

/// An inode that may come with a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToList {
    /// Which.
    pub ino: InodeId,
    /// If it is a directory: everything in it, as far as there is room for that.
    pub entries: Option<Vec<DirEntry>>,
}

/// The tables as a query sees them.
struct View<'a> {
    tables: &'a dyn Tables,
}

/// Answers a query.
pub(crate) fn query(tables: &dyn Tables, caller: &Caller, query: &Query) -> Outcome {
    let view = View { tables };
    match query {
        Query::Lookup { parent, name } => view.lookup(caller, *parent, name),
        Query::GetAttr { ino } => Ok(Reply::Attr(view.inode(*ino)?.attr)),
        Query::ReadLink { ino } => view.read_link(*ino),
        Query::ReadDir {
            ino,
            cookie,
            count_max,
            ..
        } => view.read_dir(caller, *ino, *cookie, *count_max),
        Query::GetXattr { ino, name } => view.get_xattr(caller, *ino, name),
        Query::ListXattr { ino } => view.list_xattr(caller, *ino),
        Query::Chunks { ino, first, count } => view.chunks(caller, *ino, *first, *count),
        Query::Usage => Ok(view.usage()),
        Query::Parent { ino } => view.parent(*ino),
        Query::TestLock { ino, session, lock } => {
            view.inode(*ino)?;
            Ok(Reply::Lock(locks::test(tables, *ino, *session, *lock)))
        }
        Query::Trash {
            after,
            of,
            count_max,
        } => trash::query(tables, caller, *after, *of, *count_max),
    }
}

/// What entries of directories mean: those of the chosen ones that may be told, in the same order.
pub(crate) fn listed(
    tables: &dyn Tables,
    chosen: &[ToList],
    told: &mut dyn Iterator<Item = InodeId>,
) -> Vec<Listed> {
    let mut chosen = chosen.iter();
    let listed = told.filter_map(|ino| {
        let ToList { entries, .. } = chosen.find(|chosen| chosen.ino == ino)?;
        let inode = inode(tables, ino).ok()?;
        let first_chunk = match inode.chunk_rows {
            0 => None,
            _ => chunks(tables, ino, 0..1).pop(),
        };
        Some(Listed {
            attr: inode.attr,
            first_chunk,
            entries: entries.clone(),
        })
    });
    listed.collect()
}

/// Inodes that are to come with a listing of which these are the first entries, `count_max` at most. Who lists a tree asks for
/// what is in its directories next, so this comes along where it is little: then with all entries of the directory.
pub(crate) fn to_list(
    tables: &dyn Tables,
    caller: &Caller,
    entries: &[DirEntry],
    count_max: usize,
) -> Vec<ToList> {
    let view = View { tables };
    let entries = entries.iter().take(count_max);
    let mut found: Vec<_> = entries.map(|entry| (entry.ino, entry.kind)).collect();
    let mut room = count_max - found.len();
    let mut chosen = Vec::with_capacity(count_max);
    while let Some(&(ino, kind)) = found.get(chosen.len()) {
        let mut chosen_entries = None;
        let most = room.min(CONTENTS_MAX);
        if kind == FileKind::Directory
            && most > 0
            && let Ok(Reply::Entries { entries, more, .. }) =
                view.read_dir(caller, ino, 0, most as u32)
        {
            // What was read in vain counts as well: it takes as long.
            room -= entries.len();
            if !more {
                found.extend(entries.iter().map(|entry| (entry.ino, entry.kind)));
                chosen_entries = Some(entries);
            }
        }
        chosen.push(ToList {
            ino,
            entries: chosen_entries,
        });
    }
    chosen
}

/// The directory that a directory is in.
pub(crate) fn parent(tables: &dyn Tables, dir: InodeId) -> Option<InodeId> {
    let inode = inode(tables, dir).ok()?;
    inode.is_directory().then_some(inode.parent)
}

impl View<'_> {
    fn inode(&self, ino: InodeId) -> FsResult<Inode> {
        inode(self.tables, ino)
    }

    fn lookup(&self, caller: &Caller, parent: InodeId, name: &[u8]) -> Outcome {
        match name {
            b"." | b".." => {
                // Also of a directory that was removed and is still somebody's working directory.
                let dir = self.inode(parent)?;
                if !dir.is_directory() {
                    return Err(FsError::new(Code::NotDirectory, format!("{parent}")));
                }
                access::require(caller, &dir, SEARCH)?;
                let attr = if name == b"." {
                    dir.attr
                } else {
                    self.inode(dir.parent)?.attr
                };
                Ok(Reply::Attr(attr))
            }
            _ => {
                directory::check_name(name)?;
                let dir = live_directory(self.tables, parent)?;
                access::require(caller, &dir, SEARCH)?;
                match directory::find(self.tables, parent, name) {
                    Found::At(_, dentry) => Ok(Reply::Attr(self.inode(dentry.ino)?.attr)),
                    Found::Free(_) => Err(FsError::new(
                        Code::NotFound,
                        format!("{:?}", String::from_utf8_lossy(name)),
                    )),
                }
            }
        }
    }

    fn parent(&self, ino: InodeId) -> Outcome {
        let dir = self.inode(ino)?;
        if !dir.is_directory() {
            return Err(FsError::new(Code::NotDirectory, format!("{ino}")));
        }
        Ok(Reply::Attr(self.inode(dir.parent)?.attr))
    }

    fn read_link(&self, ino: InodeId) -> Outcome {
        let inode = self.inode(ino)?;
        if inode.attr.kind != FileKind::Symlink {
            return Err(FsError::new(Code::Invalid, format!("{ino} is no symlink")));
        }
        Ok(Reply::Bytes(inode.target))
    }

    fn read_dir(&self, caller: &Caller, ino: InodeId, cookie: u64, count_max: u32) -> Outcome {
        let dir = live_directory(self.tables, ino)?;
        access::require(caller, &dir, READ)?;
        let count_max = (count_max as usize).clamp(1, READDIR_ENTRIES_MAX);
        let mut entries = Vec::new();
        let mut more = false;
        directory::list(self.tables, ino, cookie, |position, dentry| {
            more = entries.len() == count_max;
            if !more {
                let (name, ino, kind) = (dentry.name, dentry.ino, dentry.kind);
                entries.push(DirEntry {
                    cookie: position,
                    name,
                    ino,
                    kind,
                });
            }
            !more
        });
        Ok(Reply::Entries {
            entries,
            more,
            inodes: Vec::new(),
        })
    }

    fn get_xattr(&self, caller: &Caller, ino: InodeId, name: &[u8]) -> Outcome {
        let inode = self.inode(ino)?;
        ops::xattr_visible(caller, &inode, name)?;
        // Most inodes have none, and the kernel asks for `security.capability` at every write.
        let value = match Which::of(name) {
            Some(which) => inode.acls.get(which).map(Acl::value),
            None if inode.xattr_list_bytes == 0 => None,
            None => self.tables.get(&keys::xattr(ino, name)),
        };
        value.map(Reply::Bytes).ok_or_else(|| {
            FsError::new(
                Code::NoData,
                format!("attribute {:?}", String::from_utf8_lossy(name)),
            )
        })
    }

    fn list_xattr(&self, caller: &Caller, ino: InodeId) -> Outcome {
        let acls = self.inode(ino)?.acls;
        let mut names: Vec<_> = acls.names().map(<[u8]>::to_vec).collect();
        let range = keys::xattrs_of(ino);
        self.tables.scan(&range.start, &range.end, &mut |key, _| {
            let name = keys::xattr_name(key);
            if access::passes_all(caller) || !name.starts_with(b"trusted.") {
                names.push(name.to_vec());
            }
            true
        });
        Ok(Reply::Names(names))
    }

    fn chunks(&self, caller: &Caller, ino: InodeId, first: ChunkIndex, count: u32) -> Outcome {
        let inode = self.inode(ino)?;
        if inode.attr.kind != FileKind::Regular {
            return Err(FsError::new(
                Code::Invalid,
                format!("{ino} is no regular file"),
            ));
        }
        if caller.uid != inode.attr.uid {
            access::require(caller, &inode, READ)?;
        }
        if count > CHUNKS_PER_QUERY_MAX {
            return Err(FsError::new(
                Code::Invalid,
                format!("{count} chunks of {ino}, allowed are {CHUNKS_PER_QUERY_MAX}"),
            ));
        }
        let range = u64::from(first.0)..u64::from(first.0) + u64::from(count);
        let chunks = match inode.chunk_rows {
            0 => Vec::new(),
            _ => chunks(self.tables, ino, range),
        };
        Ok(Reply::Chunks {
            attr: inode.attr,
            chunks,
        })
    }

    fn usage(&self) -> Reply {
        let (inodes, bytes) =
            state(self.tables).map_or((0, 0), |state| (state.inodes, state.bytes));
        Reply::Usage { inodes, bytes }
    }
}
