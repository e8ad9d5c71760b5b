//! The consistency check: reads every table and tells what does not fit.
//!
//! Tests run it after every sequence of operations, the simulator at the end, `fsck` when asked.

use crate::acl::Which;
use crate::directory::{self, Found};
use crate::keys;
use crate::record::{ChunkRow, Inode, Place, Session, State, Trashed, decode};
use crate::tables::Tables;
use crate::transaction::state;
use lumeofs_base::limits::SESSION_WINDOW;
use lumeofs_base::{ChunkId, FileKind, InodeId, SessionId, SlotId};
use std::collections::{BTreeMap, BTreeSet};

/// Runs all checks.
pub(super) fn check(tables: &dyn Tables) -> Vec<String> {
    let Some(state) = state(tables) else {
        return Vec::new();
    };
    let mut check = Check {
        tables,
        state,
        found: Vec::new(),
        inodes: BTreeMap::new(),
        seen: BTreeMap::new(),
        chunks: BTreeSet::new(),
    };
    check.read_inodes();
    check.dentries();
    check.inodes();
    check.orphans();
    check.trash();
    check.chunks();
    check.xattrs();
    check.counters();
    check.sessions();
    check.found.extend(crate::locks::check(tables));
    check.found
}

/// What the other tables say of an inode.
#[derive(Default)]
struct Seen {
    names: u32,
    entries: u64,
    subdirectories: u32,
    parent: InodeId,
    position: u64,
    chunk_rows: u32,
    xattr_list_bytes: u32,
    orphan: bool,
    trashed: bool,
}

struct Check<'a> {
    tables: &'a dyn Tables,
    state: State,
    found: Vec<String>,
    inodes: BTreeMap<InodeId, Inode>,
    seen: BTreeMap<InodeId, Seen>,
    chunks: BTreeSet<ChunkId>,
}

impl Check<'_> {
    fn expect(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.found.push(what());
        }
    }

    fn rows(&self, table: std::ops::Range<[u8; 1]>) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut rows = Vec::new();
        super::scan(self.tables, table, usize::MAX, |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
        });
        rows
    }

    fn seen(&mut self, ino: InodeId) -> &mut Seen {
        self.seen.entry(ino).or_default()
    }

    fn read_inodes(&mut self) {
        for (key, value) in self.rows(keys::all::INODES) {
            let ino = InodeId(keys::first(&key));
            let inode: Inode = decode(&value);
            self.expect(inode.attr.ino == ino, || {
                format!("{ino} calls itself {}", inode.attr.ino)
            });
            self.inodes.insert(ino, inode);
        }
    }

    fn dentries(&mut self) {
        let mut gap = None;
        for (key, value) in self.rows(keys::all::DENTRIES) {
            let (parent, position) = (InodeId(keys::first(&key)), keys::second(&key));
            if let Some((dir, at)) = gap.take() {
                self.expect(parent == dir && position == at + 1, || {
                    format!("the gap at {at} of {dir} has nothing behind it")
                });
            }
            match decode(&value) {
                Place::Gap => gap = Some((parent, position)),
                Place::Entry(dentry) => self.dentry(parent, position, &dentry),
            }
        }
        if let Some((dir, at)) = gap {
            self.found
                .push(format!("the gap at {at} of {dir} has nothing behind it"));
        }
    }

    fn dentry(&mut self, parent: InodeId, position: u64, dentry: &crate::record::Dentry) {
        let name = || format!("{:?} in {parent}", String::from_utf8_lossy(&dentry.name));
        let found = directory::find(self.tables, parent, &dentry.name);
        self.expect(found == Found::At(position, dentry.clone()), || {
            format!("{} is not found at its position", name())
        });
        let kind = self.inodes.get(&dentry.ino).map(|inode| inode.attr.kind);
        self.expect(kind == Some(dentry.kind), || {
            format!("{} is a {:?} and leads to {kind:?}", name(), dentry.kind)
        });
        let good_parent = self
            .inodes
            .get(&parent)
            .is_some_and(|dir| dir.is_directory() && dir.attr.nlink > 0);
        self.expect(good_parent, || format!("{} lies in no directory", name()));
        let is_dir = kind == Some(FileKind::Directory);
        let dir = self.seen(parent);
        dir.entries += 1;
        dir.subdirectories += u32::from(is_dir);
        let object = self.seen(dentry.ino);
        object.names += 1;
        (object.parent, object.position) = (parent, position);
    }

    fn inodes(&mut self) {
        for (key, _) in self.rows(keys::all::ORPHANS) {
            self.seen(InodeId(keys::first(&key))).orphan = true;
        }
        for (key, _) in self.rows(keys::all::TRASHED) {
            self.seen(InodeId(keys::first(&key))).trashed = true;
        }
        let inodes = std::mem::take(&mut self.inodes);
        for (ino, inode) in &inodes {
            let seen = self.seen.remove(ino).unwrap_or_default();
            let attr = &inode.attr;
            let nlink = match (inode.is_directory(), seen.names) {
                (true, 0) if *ino != InodeId::ROOT => 0,
                (true, _) => 2 + seen.subdirectories,
                (false, names) => names,
            };
            self.expect(attr.nlink == nlink, || {
                format!("{ino} has nlink {} and should have {nlink}", attr.nlink)
            });
            let lists = u32::from(seen.orphan) + u32::from(seen.trashed);
            self.expect(lists == u32::from(attr.nlink == 0), || {
                format!(
                    "{ino} has nlink {}, orphan is {} and trashed is {}",
                    attr.nlink, seen.orphan, seen.trashed
                )
            });
            self.expect(!(seen.trashed && inode.is_directory()), || {
                format!("directory {ino} is in the trash")
            });
            if inode.is_directory() {
                self.expect(attr.size == seen.entries, || {
                    format!("{ino} has {} entries and says {}", seen.entries, attr.size)
                });
                self.directory(&inodes, inode, &seen);
            }
            let allocated = inode.allocated(self.state.chunk_size);
            self.expect(attr.allocated == allocated, || {
                format!(
                    "{ino} says {} bytes allocated, not {allocated}",
                    attr.allocated
                )
            });
            self.acls(inode);
            let target_len = inode.target.len() as u64;
            let is_symlink = attr.kind == FileKind::Symlink;
            self.expect(target_len == if is_symlink { attr.size } else { 0 }, || {
                format!(
                    "{ino} of size {} has a target of {target_len} bytes",
                    attr.size
                )
            });
            self.expect(
                attr.kind == FileKind::Regular || inode.chunk_rows == 0,
                || format!("{ino} is no regular file and has chunks"),
            );
        }
        self.expect(inodes.contains_key(&InodeId::ROOT), || {
            "there is no root".to_owned()
        });
        let lost: Vec<_> = self.seen.keys().copied().collect();
        for ino in lost {
            self.found
                .push(format!("{ino} is referred to and is not there"));
        }
        self.seen.clear();
        self.inodes = inodes;
    }

    fn acls(&mut self, inode: &Inode) {
        let (ino, attr) = (inode.attr.ino, &inode.attr);
        self.expect(
            attr.has_xattrs == (inode.all_xattr_list_bytes() > 0),
            || format!("{ino} does not say whether it has extended attributes"),
        );
        for which in [Which::Access, Which::Default] {
            let Some(acl) = inode.acls.get(which) else {
                continue;
            };
            let may_have = match which {
                Which::Access => attr.kind != FileKind::Symlink && acl.mode() == attr.mode & 0o777,
                Which::Default => inode.is_directory(),
            };
            self.expect(acl.check().is_ok() && may_have, || {
                format!("{ino} with mode {:o} has as {which:?} {acl:?}", attr.mode)
            });
        }
    }

    fn directory(&mut self, inodes: &BTreeMap<InodeId, Inode>, dir: &Inode, seen: &Seen) {
        let ino = dir.attr.ino;
        if ino == InodeId::ROOT || dir.attr.nlink == 0 {
            self.expect(seen.names == 0, || format!("{ino} must not have a name"));
            return;
        }
        self.expect(seen.names == 1, || {
            format!("directory {ino} has {} names", seen.names)
        });
        let (lies, says) = ((seen.parent, seen.position), (dir.parent, dir.position));
        self.expect(lies == says, || {
            format!("{ino} lies at {lies:?} and says {says:?}")
        });
        let mut above = dir.parent;
        for _ in 0..inodes.len() {
            if above == InodeId::ROOT {
                return;
            }
            above = inodes.get(&above).map_or(InodeId::ROOT, |dir| dir.parent);
        }
        self.found.push(format!("{ino} does not lead to the root"));
    }

    fn orphans(&mut self) {
        for (key, _) in self.rows(keys::all::ORPHANS) {
            let ino = InodeId(keys::first(&key));
            let holds = self
                .inodes
                .get(&ino)
                .is_some_and(|inode| inode.attr.nlink == 0);
            self.expect(holds, || {
                format!("{ino} is listed as an orphan and is none")
            });
        }
    }

    /// Both tables of the trash have the same entries.
    fn trash(&mut self) {
        let mut times = BTreeMap::new();
        for (key, value) in self.rows(keys::all::TRASHED) {
            times.insert(InodeId(keys::first(&key)), decode::<u64>(&value));
        }
        for (key, value) in self.rows(keys::all::TRASH) {
            let (time, ino) = (keys::first(&key), InodeId(keys::second(&key)));
            let Trashed { path, .. } = decode(&value);
            self.expect(times.remove(&ino) == Some(time), || {
                format!(
                    "{ino}, deleted as {:?}, is not known to be in the trash",
                    String::from_utf8_lossy(&path)
                )
            });
        }
        for ino in times.into_keys() {
            self.found.push(format!("{ino} is not in the trash"));
        }
    }

    fn chunks(&mut self) {
        for (key, value) in self.rows(keys::all::CHUNKS) {
            let ino = InodeId(keys::first(&key));
            let row: ChunkRow = decode(&value);
            self.chunk(row.chunk, "of a file");
            self.seen(ino).chunk_rows += 1;
        }
        for (key, _) in self.rows(keys::all::FREED) {
            self.chunk(ChunkId(keys::first(&key)), "freed");
        }
        let counted: Vec<_> = self
            .inodes
            .values()
            .map(|inode| (inode.attr.ino, inode.chunk_rows))
            .collect();
        for (ino, rows) in counted {
            let seen = self.seen.remove(&ino).unwrap_or_default().chunk_rows;
            self.expect(seen == rows, || {
                format!("{ino} has {seen} chunks and says {rows}")
            });
        }
        self.no_more("chunks");
    }

    fn chunk(&mut self, chunk: ChunkId, what: &str) {
        let fresh = self.chunks.insert(chunk);
        self.expect(fresh, || format!("{chunk}, {what}, exists twice"));
        let next = self.state.next_chunk;
        self.expect(chunk.0 < next, || {
            format!("{chunk}, {what}, and the next is {next}")
        });
    }

    fn xattrs(&mut self) {
        for (key, _) in self.rows(keys::all::XATTRS) {
            let bytes = keys::xattr_name(&key).len() as u32 + 1;
            self.seen(InodeId(keys::first(&key))).xattr_list_bytes += bytes;
        }
        let counted: Vec<_> = self
            .inodes
            .values()
            .map(|inode| (inode.attr.ino, inode.xattr_list_bytes))
            .collect();
        for (ino, bytes) in counted {
            let seen = self.seen.remove(&ino).unwrap_or_default().xattr_list_bytes;
            self.expect(seen == bytes, || {
                format!("{ino} has {seen} bytes of attribute names and says {bytes}")
            });
        }
        self.no_more("attributes");
    }

    /// Whatever was seen and not claimed by an inode belongs to none.
    fn no_more(&mut self, what: &str) {
        for ino in std::mem::take(&mut self.seen).into_keys() {
            self.found
                .push(format!("{what} of {ino}, which is not there"));
        }
    }

    fn counters(&mut self) {
        let inodes = self.inodes.len() as u64;
        let bytes: u64 = self.inodes.values().map(|inode| inode.attr.allocated).sum();
        let counted = (self.state.inodes, self.state.bytes);
        self.expect(counted == (inodes, bytes), || {
            format!(
                "inodes and bytes are {:?} and counted as {counted:?}",
                (inodes, bytes)
            )
        });
        let mut next = BTreeMap::new();
        for (key, value) in self.rows(keys::all::COUNTERS) {
            next.insert(
                SlotId(u16::from_be_bytes([key[1], key[2]])),
                decode::<u64>(&value),
            );
        }
        let inos: Vec<_> = self.inodes.keys().copied().collect();
        for ino in inos {
            let next = next.get(&ino.slot()).copied().unwrap_or(0);
            self.expect(ino.counter() < next, || {
                format!("{ino} exists and the next of {} is {next}", ino.slot())
            });
        }
    }

    fn sessions(&mut self) {
        let mut windows = BTreeMap::new();
        let mut nonces = BTreeSet::new();
        for (key, value) in self.rows(keys::all::SESSIONS) {
            let id = SessionId(keys::first(&key));
            let session: Session = decode(&value);
            if session.ending.is_none() {
                windows.insert(id, session.acked_below);
                nonces.insert((keys::nonce(session.nonce).to_vec(), id));
            }
            let fence = self.state.fence;
            self.expect(session.ending.is_none_or(|number| number <= fence), || {
                format!(
                    "{id} ends at fence {:?} and the newest is {fence}",
                    session.ending
                )
            });
            let next = self.state.next_session;
            self.expect(id.0 < next, || {
                format!("{id} exists and the next session is {next}")
            });
        }
        for (key, _) in self.rows(keys::all::LEASEHOLDERS) {
            let id = SessionId(keys::first(&key));
            let known = self.tables.get(&keys::session(id)).is_some();
            self.expect(known, || format!("{id} may have leases and is no session"));
        }
        for (key, _) in self.rows(keys::all::OUTCOMES) {
            let (id, sequence) = (SessionId(keys::first(&key)), keys::second(&key));
            let holds = windows
                .get(&id)
                .is_some_and(|&from| sequence >= from && sequence - from < SESSION_WINDOW);
            self.expect(holds, || {
                format!("outcome {sequence} of {id} is in no window")
            });
        }
        for (key, value) in self.rows(keys::all::NONCES) {
            let known = nonces.remove(&(key, decode(&value)));
            self.expect(known, || "a nonce leads to no session".to_owned());
        }
        self.expect(nonces.is_empty(), || {
            "a session's nonce is not listed".to_owned()
        });
    }
}
