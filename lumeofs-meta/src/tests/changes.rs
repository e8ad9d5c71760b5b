//! What commands tell of their changes: a cache that is told only that is never wrong.

use super::*;
use crate::acl::Which;
use crate::change::Change;
use crate::keys;
use crate::op::{DirEntry, SetAttr, SetTime, XattrMode};
use crate::record::{Dentry, Inode, Place, decode};
use crate::tables::Tables as _;
use lumeofs_base::{ChunkIndex, FileKind};
use std::collections::{BTreeMap, BTreeSet};

const ROOT: InodeId = InodeId::ROOT;

/// Attributes, and what comes with them: a directory's parent, a symlink's target, a file's chunks.
type Cached = (Attr, InodeId, Vec<u8>, Vec<Vec<u8>>);

/// All that a mount can cache of a namespace.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Cache {
    inodes: BTreeMap<InodeId, Cached>,
    names: BTreeMap<(InodeId, Vec<u8>), DirEntry>,
    xattrs: BTreeMap<InodeId, BTreeMap<Vec<u8>, Vec<u8>>>,
    /// Entries of the fixture's log that it was told of.
    told: usize,
}

impl Cache {
    /// Everything that is in tables.
    pub(super) fn of(tables: &MemoryTables) -> Self {
        let mut cache = Self::default();
        for (key, value) in &tables.0 {
            if keys::all::INODES.start[0] == key[0] {
                cache.read_inode(tables, InodeId(keys::first(key)));
            }
            if keys::all::DENTRIES.start[0] == key[0]
                && let Place::Entry(Dentry { name, ino, kind }) = decode(value)
            {
                let parent = InodeId(keys::first(key));
                let cookie = keys::second(key);
                let entry = DirEntry {
                    cookie,
                    name: name.clone(),
                    ino,
                    kind,
                };
                cache.names.insert((parent, name), entry);
            }
            if keys::all::XATTRS.start[0] == key[0] {
                cache.read_xattrs(tables, InodeId(keys::first(key)));
            }
        }
        cache
    }

    /// Applies what the fixture's commands told since, and must have all of the tables then.
    pub(super) fn learn(&mut self, fixture: &Fixture, context: &str) {
        let entries = &fixture.applied[self.told.min(fixture.applied.len())..];
        for change in entries.iter().flatten().flat_map(|done| &done.changes) {
            self.apply(&fixture.tables, change);
        }
        self.told = 0;
        assert_eq!(*self, Self::of(&fixture.tables), "{context}");
        self.told = fixture.applied.len();
    }

    fn apply(&mut self, tables: &MemoryTables, change: &Change) {
        match change {
            Change::Attr(attr) => {
                self.read_inode(tables, attr.ino);
                // Told of several entries at once it sees the tables after the last of them.
                if let Some((known, ..)) = self.inodes.get_mut(&attr.ino) {
                    known.clone_from(attr);
                }
            }
            Change::Name {
                parent,
                name,
                entry,
            } => {
                let place = (*parent, name.clone());
                match entry {
                    Some(entry) => self.names.insert(place, entry.clone()),
                    None => self.names.remove(&place),
                };
            }
            Change::Xattr { ino } => self.read_xattrs(tables, *ino),
            Change::Gone { ino } => {
                self.inodes.remove(ino);
                self.xattrs.remove(ino);
            }
        }
    }

    fn read_inode(&mut self, tables: &MemoryTables, ino: InodeId) {
        let Some(value) = tables.get(&keys::inode(ino)) else {
            return;
        };
        let inode: Inode = decode(&value);
        let mut chunks = Vec::new();
        tables.scan(
            &keys::chunk(ino, 0),
            &keys::chunk(ino, 1 << 32),
            &mut |key, value| {
                chunks.push([key, value].concat());
                true
            },
        );
        let all = (inode.attr, inode.parent, inode.target, chunks);
        self.inodes.insert(ino, all);
    }

    fn read_xattrs(&mut self, tables: &MemoryTables, ino: InodeId) {
        let mut found = BTreeMap::new();
        let range = keys::xattrs_of(ino);
        tables.scan(&range.start, &range.end, &mut |key, value| {
            found.insert(keys::xattr_name(key).to_vec(), value.to_vec());
            true
        });
        if let Some(value) = tables.get(&keys::inode(ino)) {
            let inode: Inode = decode(&value);
            let values = inode.acls.names().map(|name| {
                let which = Which::of(name).unwrap();
                (name.to_vec(), inode.acls.get(which).unwrap().value())
            });
            found.extend(values);
        }
        self.xattrs.remove(&ino);
        if !found.is_empty() {
            self.xattrs.insert(ino, found);
        }
    }
}

/// A change without its contents, for people: `attr 5`, `+1/name`, `-1/name`, `xattr 5`, `gone 5`.
fn brief(change: &Change) -> String {
    let name = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
    match change {
        Change::Attr(attr) => format!("attr {}", attr.ino.get()),
        Change::Name {
            parent,
            name: of,
            entry,
        } => {
            let sign = if entry.is_some() { '+' } else { '-' };
            format!("{sign}{}/{}", parent.get(), name(of))
        }
        Change::Xattr { ino } => format!("xattr {}", ino.get()),
        Change::Gone { ino } => format!("gone {}", ino.get()),
    }
}

impl Fixture {
    /// What the last command touched.
    fn touched(&self) -> BTreeSet<String> {
        let last = self.applied.last().unwrap().last().unwrap();
        let all: BTreeSet<_> = last.changes.iter().map(brief).collect();
        assert_eq!(all.len(), last.changes.len(), "each object once");
        all
    }

    /// What a mutation that succeeds touches.
    fn touches(&mut self, mutation: Mutation) -> BTreeSet<String> {
        self.mutate(mutation).unwrap();
        self.touched()
    }
}

fn set<const N: usize>(all: [String; N]) -> BTreeSet<String> {
    BTreeSet::from(all)
}

fn at(ino: InodeId) -> String {
    format!("attr {}", ino.get())
}

fn put(parent: InodeId, name: &str) -> String {
    format!("+{}/{name}", parent.get())
}

fn gone(parent: InodeId, name: &str) -> String {
    format!("-{}/{name}", parent.get())
}

#[test]
fn names_that_come_and_go_tell_of_the_name_its_directory_and_its_object() {
    let mut fixture = Fixture::new();
    let file = fixture.file(ROOT, "f");
    assert_eq!(fixture.touched(), set([at(ROOT), put(ROOT, "f"), at(file)]));
    let dir = fixture.dir(ROOT, "d");
    assert_eq!(fixture.touched(), set([at(ROOT), put(ROOT, "d"), at(dir)]));
    let link = Mutation::Link {
        ino: file,
        parent: dir,
        name: b"g".to_vec(),
    };
    assert_eq!(
        fixture.touches(link),
        set([at(dir), put(dir, "g"), at(file)])
    );
    assert_eq!(
        fixture.touches(unlink(dir, "g")),
        set([at(dir), gone(dir, "g"), at(file)])
    );
    assert_eq!(
        fixture.touches(rmdir(ROOT, "d")),
        set([at(ROOT), gone(ROOT, "d"), at(dir)])
    );
}

#[test]
fn a_rename_tells_of_both_directories_both_names_and_both_objects() {
    let mut fixture = Fixture::new();
    let (one, two) = (fixture.dir(ROOT, "1"), fixture.dir(ROOT, "2"));
    let (a, b) = (fixture.dir(one, "a"), fixture.dir(two, "b"));
    let both = |x: String, y: String| set([at(one), at(two), x, y, at(a), at(b)]);
    let replace = rename((one, "a"), (two, "b"), RenameMode::Replace);
    let touched = fixture.touches(replace);
    assert_eq!(touched, both(gone(one, "a"), put(two, "b")));
    let b = fixture.file(one, "b");
    let exchange = rename((two, "b"), (one, "b"), RenameMode::Exchange);
    let touched = fixture.touches(exchange);
    let names = [put(one, "b"), put(two, "b")];
    assert_eq!(
        touched,
        names
            .into_iter()
            .chain([at(one), at(two), at(a), at(b)])
            .collect()
    );
    let whiteout = rename((one, "b"), (one, "c"), RenameMode::Whiteout);
    let touched = fixture.touches(whiteout);
    let left = InodeId(b.get() + 1);
    assert_eq!(
        touched,
        set([at(one), put(one, "b"), put(one, "c"), at(a), at(left)])
    );
    // Two names of one inode: nothing happens.
    let link = Mutation::Link {
        ino: b,
        parent: two,
        name: b"again".to_vec(),
    };
    fixture.mutate(link).unwrap();
    let same = rename((two, "b"), (two, "again"), RenameMode::Replace);
    assert_eq!(fixture.touches(same), set([]));
}

#[test]
fn attributes_and_data_tell_of_the_inode_and_of_what_goes_with_it() {
    let mut fixture = Fixture::new();
    let file = fixture.file(ROOT, "f");
    let xattr = format!("xattr {}", file.get());
    let capability = Mutation::SetXattr {
        ino: file,
        name: b"security.capability".to_vec(),
        value: b"x".to_vec(),
        mode: XattrMode::Set,
    };
    let both = set([at(file), xattr.clone()]);
    assert_eq!(fixture.touches(capability.clone()), both);
    let extend = |from| Mutation::Extend {
        ino: file,
        from,
        size: 10,
        truncations: 0,
        clear_suid: true,
    };
    assert_eq!(
        fixture.touches(extend(0)),
        both,
        "a write takes the capabilities away"
    );
    assert_eq!(fixture.touches(extend(0)), set([at(file)]));
    fixture.mutate(capability).unwrap();
    let chown = Mutation::SetAttr {
        ino: file,
        set: SetAttr {
            uid: Some(5),
            ..SetAttr::default()
        },
    };
    assert_eq!(fixture.touches(chown), both);
    let allocate = |count| Mutation::Allocate {
        ino: file,
        first: ChunkIndex(0),
        count,
    };
    assert_eq!(fixture.touches(allocate(3)), set([at(file)]));
    assert_eq!(fixture.touches(allocate(3)), set([]), "all were there");
    let refused = Mutation::TailClean {
        ino: file,
        truncations: 77,
    };
    assert_eq!(fixture.refused(refused), Code::StaleWrite);
    assert_eq!(fixture.touched(), set([]), "a failure touches nothing");
}

#[test]
fn a_purge_tells_what_is_gone_and_what_is_only_less() {
    let mut fixture = Fixture::new();
    let file = fixture.file(ROOT, "f");
    fixture
        .mutate(Mutation::SetXattr {
            ino: file,
            name: b"user.a".to_vec(),
            value: Vec::new(),
            mode: XattrMode::Set,
        })
        .unwrap();
    fixture.mutate(unlink(ROOT, "f")).unwrap();
    let purge = Internal::Purge { inos: vec![file] };
    fixture.internal(purge).unwrap();
    assert_eq!(fixture.touched(), set([format!("gone {}", file.get())]));
}

#[test]
fn a_repetition_says_that_it_is_one_and_changes_nothing() {
    let mut fixture = Fixture::new();
    let command = fixture.command(Mutation::Create {
        parent: ROOT,
        name: b"f".to_vec(),
        node: NewNode::Regular,
        mode: 0o644.into(),
        exclusive: true,
    });
    fixture.apply(vec![command.clone(), command]);
    let last = fixture.applied.last().unwrap();
    assert_eq!(last[0].outcome, last[1].outcome);
    assert!(!last[0].repeated && !last[0].changes.is_empty());
    assert!(last[1].repeated && last[1].changes.is_empty());
}

#[test]
fn a_flush_states_the_time_that_was_shown() {
    let mut fixture = Fixture::new();
    let ino = fixture.file(ROOT, "f");
    let flush_with = |size, time, set| Mutation::Flush {
        ino,
        from: 0,
        size,
        truncations: 0,
        clear_suid: true,
        mtime: time,
        ctime: time,
        set,
    };
    let flush = |size, time| flush_with(size, time, SetAttr::default());
    let made = fixture.attr(ino);
    let before = seconds(1);
    assert!(before < made.ctime);
    let early = attr(fixture.mutate(flush(10, before)));
    assert_eq!(
        (early.size, early.mtime, early.ctime),
        (10, before, made.ctime),
        "what was changed meanwhile keeps its later time"
    );
    let late = Timestamp {
        secs: 1_000_000,
        nanos: 7,
    };
    let late_attr = attr(fixture.mutate(flush(5, late)));
    assert_eq!(
        (late_attr.size, late_attr.mtime, late_attr.ctime),
        (10, late, late)
    );
    let set = SetAttr {
        mode: Some(0o4700),
        uid: Some(12),
        atime: Some(SetTime::At(before)),
        ..SetAttr::default()
    };
    let set = attr(fixture.mutate(flush_with(0, late, set)));
    assert_eq!(
        (set.mode, set.uid, set.atime, set.size),
        (0o4700, 12, before, 10),
        "what was set counts, after what the write took away"
    );
    let size = SetAttr {
        size: Some(3),
        ..SetAttr::default()
    };
    assert_eq!(
        fixture.refused(flush_with(0, late, size)),
        Code::Invalid,
        "a truncation has more to see to"
    );
    let wrong = Timestamp {
        secs: 1,
        nanos: 1_000_000_000,
    };
    assert_eq!(fixture.refused(flush(20, wrong)), Code::Invalid);
    let utimes = Mutation::SetAttr {
        ino,
        set: SetAttr {
            mtime: Some(SetTime::At(wrong)),
            ..SetAttr::default()
        },
    };
    assert_eq!(fixture.refused(utimes), Code::Invalid);
    fixture.as_user(0, 0);
    assert_eq!(fixture.refused(flush(20, late)), Code::NotPermitted);
    assert_eq!(fixture.attr(ino).kind, FileKind::Regular);
    assert_eq!(fixture.attr(ino).size, 10);
}
