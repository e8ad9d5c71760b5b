//! Random operations on the state machine and on the naive model beside it.

use super::changes::Cache;
use super::model::{CAPABILITIES, Model, ns};
use super::*;
use crate::directory::narrow::HASH_COUNT;
use crate::op::{Access, CreateMode, SetAttr, SetTime, TrashKey, XattrMode};
use lumeofs_base::rng::SplitMix64;
use lumeofs_base::{ChunkIndex, FileKind};
use std::collections::BTreeMap;

const STEPS: usize = 150;

/// `.1`: mostly reads and writes of files rather than names.
struct Draw(SplitMix64, bool);

impl Draw {
    fn pick<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.0.below(all.len() as u64) as usize].clone()
    }

    fn name(&mut self) -> Vec<u8> {
        vec![b'a' + self.0.below(5) as u8]
    }

    fn some<T>(&mut self, percent: u64, value: impl FnOnce(&mut Self) -> T) -> Option<T> {
        if self.0.percent(percent) {
            Some(value(self))
        } else {
            None
        }
    }

    /// Mostly directories and inodes that exist, sometimes others.
    fn dir(&mut self, model: &Model) -> InodeId {
        let all: Vec<_> = model.nodes.values().map(|node| node.attr.clone()).collect();
        let dirs: Vec<_> = all
            .iter()
            .filter(|attr| attr.kind == FileKind::Directory)
            .collect();
        if self.0.percent(95) {
            self.pick(&dirs).ino
        } else {
            self.ino(model)
        }
    }

    fn ino(&mut self, model: &Model) -> InodeId {
        let last = model.nodes.keys().last().unwrap().0;
        if self.0.percent(3) {
            return InodeId(1 + self.0.below(last + 1));
        }
        let files: Vec<_> = model
            .nodes
            .values()
            .filter(|node| node.attr.kind == FileKind::Regular)
            .collect();
        if self.1 && !files.is_empty() {
            return self.pick(&files).attr.ino;
        }
        self.pick(&model.nodes.keys().copied().collect::<Vec<_>>())
    }

    fn caller(&mut self) -> Caller {
        let uid = self.pick(&[0, 0, 1000, 1001]);
        let groups = self.some(50, |_| vec![5, 1000]).unwrap_or_default();
        Caller {
            uid,
            gid: uid,
            groups,
            trusted: self.0.percent(50),
        }
    }

    fn mode(&mut self) -> u16 {
        self.pick(&[
            0o755, 0o777, 0o644, 0o1777, 0o2775, 0o6755, 0o2666, 0o700, 0,
        ])
    }

    fn create_mode(&mut self) -> CreateMode {
        CreateMode {
            mode: self.mode(),
            umask: self.pick(&[0, 0o022, 0o077]),
        }
    }

    /// What a mount sets besides what it wrote.
    fn shown(&mut self) -> SetAttr {
        SetAttr {
            mode: self.0.percent(30).then_some(0o4751),
            uid: self.0.percent(30).then_some(7),
            gid: self.0.percent(10).then_some(8),
            ..SetAttr::default()
        }
    }

    fn size(&mut self) -> u64 {
        let chunk = 64 << 20;
        self.pick(&[
            0,
            1,
            4096,
            5000,
            chunk - 1,
            chunk,
            chunk + 1,
            2 * chunk,
            3 * chunk + 7,
        ])
    }

    fn time(&mut self) -> SetTime {
        if self.0.percent(50) {
            SetTime::Now
        } else {
            SetTime::At(seconds(self.0.below(99)))
        }
    }

    /// What root does with the trash.
    fn of_trash(&mut self, model: &Model, parent: InodeId, name: Vec<u8>) -> Mutation {
        let trash = model.trash.iter();
        let entries: Vec<_> = trash
            .map(|(ino, (deleted, ..))| TrashKey {
                deleted_ns: ns(*deleted) + u64::from(self.0.percent(10)),
                ino: *ino,
            })
            .collect();
        match self.0.below(4) {
            0 => Mutation::SetTrash {
                keep_s: self.some(80, |_| 100),
            },
            1 if !entries.is_empty() => Mutation::EmptyTrash {
                entries: vec![self.pick(&entries), self.pick(&entries)],
            },
            _ => {
                let ino = match entries.is_empty() || self.0.percent(10) {
                    true => self.ino(model),
                    false => self.pick(&entries).ino,
                };
                Mutation::Restore { ino, parent, name }
            }
        }
    }

    fn mutation(&mut self, model: &Model) -> Mutation {
        let ino = self.ino(model);
        let (parent, name) = (self.dir(model), self.name());
        let truncations = match model.nodes.get(&ino) {
            Some(node) if self.0.percent(80) => node.attr.truncations,
            _ => self.0.below(3) as u32,
        };
        if self.0.percent(8) {
            return self.of_trash(model, parent, name);
        }
        let roll = if self.1 && self.0.percent(90) { 68 } else { 0 };
        match roll + self.0.below(100 - roll) {
            24 => Mutation::CreateUnnamed {
                parent,
                mode: self.create_mode(),
            },
            0..25 => {
                let node = match self.0.below(10) {
                    0..4 => NewNode::Regular,
                    4..8 => NewNode::Directory,
                    8 => NewNode::Symlink(b"target".to_vec()),
                    _ => NewNode::Special(FileKind::Fifo, 0),
                };
                let exclusive = self.0.percent(60);
                Mutation::Create {
                    parent,
                    name,
                    node,
                    mode: self.create_mode(),
                    exclusive,
                }
            }
            25..32 => Mutation::Link { ino, parent, name },
            32..40 => Mutation::Unlink { parent, name },
            40..45 => Mutation::Rmdir { parent, name },
            45..65 => {
                let mode = self.pick(&[
                    RenameMode::Replace,
                    RenameMode::Replace,
                    RenameMode::NoReplace,
                    RenameMode::Exchange,
                    RenameMode::Whiteout,
                    RenameMode::WhiteoutNoReplace,
                ]);
                let new_parent = if self.0.percent(30) {
                    parent
                } else {
                    self.dir(model)
                };
                Mutation::Rename {
                    parent,
                    name,
                    new_parent,
                    new_name: self.name(),
                    mode,
                }
            }
            65..80 => {
                let set = SetAttr {
                    mode: self.some(40, Self::mode),
                    uid: self.some(15, |draw| draw.pick(&[0, 1000, 1001])),
                    gid: self.some(15, |draw| draw.pick(&[0, 5, 1000, 1001])),
                    size: self.some(if self.1 { 80 } else { 30 }, Self::size),
                    atime: self.some(20, Self::time),
                    mtime: self.some(20, Self::time),
                    ctime: None,
                    clear_sgid: self.some(10, |_| ()).is_some(),
                };
                Mutation::SetAttr { ino, set }
            }
            80..84 => {
                let mode = self.pick(&[XattrMode::Set, XattrMode::Create, XattrMode::Replace]);
                let name = self
                    .pick(&[&b"user.a"[..], b"user.b", CAPABILITIES])
                    .to_vec();
                if self.0.percent(25) {
                    return Mutation::RemoveXattr { ino, name };
                }
                Mutation::SetXattr {
                    ino,
                    name,
                    value: name_of(truncations),
                    mode,
                }
            }
            84..88 => {
                let first = ChunkIndex(self.0.below(4) as u32);
                Mutation::Allocate {
                    ino,
                    first,
                    count: 1 + self.0.below(3) as u32,
                }
            }
            88..93 => {
                let (size, clear_suid) = (self.size(), self.0.percent(50));
                match self.0.below(3) {
                    0 => Mutation::Publish {
                        ino,
                        size,
                        truncations,
                        clear_suid,
                    },
                    1 => Mutation::Extend {
                        ino,
                        from: self.size(),
                        size,
                        truncations,
                        clear_suid,
                    },
                    _ => Mutation::Flush {
                        ino,
                        from: self.size(),
                        size,
                        truncations,
                        clear_suid,
                        mtime: seconds(self.0.below(200)),
                        ctime: seconds(self.0.below(200)),
                        set: self.shown(),
                    },
                }
            }
            93..97 => {
                let (len, clear_suid) = (1 + self.size(), self.0.percent(50));
                Mutation::Append {
                    ino,
                    len,
                    clear_suid,
                }
            }
            97 if self.0.percent(50) => {
                let accesses = [ino, parent].map(|ino| {
                    let node = model.nodes.get(&ino);
                    let atime = node.map(|node| node.attr.atime).unwrap_or_default();
                    Access {
                        ino,
                        from: self.pick(&[atime, atime, seconds(5)]),
                        to: seconds(self.0.below(99)),
                    }
                });
                Mutation::Access {
                    accesses: accesses.to_vec(),
                }
            }
            97 => Mutation::CutTail { ino },
            _ => Mutation::TailClean { ino, truncations },
        }
    }
}

fn name_of(number: u32) -> Vec<u8> {
    number.to_string().into_bytes()
}

/// Compares all that queries tell with the model.
fn compare(fixture: &Fixture, model: &Model, context: &str) {
    let trusted = Caller {
        trusted: true,
        ..Caller::default()
    };
    let query = |query: &Query| namespace::query(&fixture.tables, &trusted, query);
    for (&ino, node) in &model.nodes {
        assert_eq!(
            attr(query(&Query::GetAttr { ino })),
            model.attr(ino),
            "{context}"
        );
        let live = model.attr(ino).nlink > 0;
        if node.attr.kind == FileKind::Directory && live {
            assert_eq!(
                attr(query(&Query::Parent { ino })).ino,
                model.parent(ino),
                "{context}"
            );
            let list = Query::ReadDir {
                ino,
                cookie: 0,
                count_max: 1000,
                inodes_max: 0,
            };
            let Ok(Reply::Entries {
                entries,
                more: false,
                ..
            }) = query(&list)
            else {
                panic!()
            };
            let found: BTreeMap<_, _> = entries
                .iter()
                .map(|entry| (entry.name.clone(), entry.ino))
                .collect();
            assert_eq!(
                (found.len(), &found),
                (entries.len(), &node.entries),
                "{context}"
            );
        }
        for (name, value) in &node.xattrs {
            let got = query(&Query::GetXattr {
                ino,
                name: name.clone(),
            });
            assert_eq!(got, Ok(Reply::Bytes(value.clone())), "{context}");
        }
        let names = node.xattrs.keys().cloned().collect();
        let listed = query(&Query::ListXattr { ino });
        assert_eq!(listed, Ok(Reply::Names(names)), "{context}");
    }
    assert_eq!(
        namespace::orphans_after(&fixture.tables, InodeId(0), usize::MAX),
        model.orphans(),
        "{context}"
    );
    let all = Query::Trash {
        after: None,
        of: None,
        count_max: 1000,
    };
    let Ok(Reply::Trash { entries, .. }) = query(&all) else {
        panic!("root sees the trash");
    };
    let mut kept: Vec<_> = model.trash.iter().collect();
    kept.sort_by_key(|(ino, (deleted, ..))| (*deleted, **ino));
    let kept: Vec<_> = kept
        .into_iter()
        .map(|(ino, (deleted, uid, path))| (*ino, ns(*deleted), *uid, path.clone()))
        .collect();
    let found: Vec<_> = entries
        .into_iter()
        .map(|entry| (entry.key.ino, entry.key.deleted_ns, entry.uid, entry.path))
        .collect();
    assert_eq!(found, kept, "{context}");
    let freed: BTreeMap<_, _> =
        namespace::freed_chunks_after(&fixture.tables, ChunkId(0), usize::MAX)
            .into_iter()
            .map(|(chunk, group)| (chunk.0, group.0))
            .collect();
    assert_eq!(freed, model.freed, "{context}");
    assert_eq!(
        namespace::check(&fixture.tables),
        Vec::<String>::new(),
        "{context}"
    );
}

fn run(seed: u64, hashes: u64) -> BTreeMap<&'static str, usize> {
    HASH_COUNT.set(hashes);
    let mut draw = Draw(SplitMix64::new(seed), seed.is_multiple_of(3));
    let mut fixture = Fixture::new();
    let mut model = Model::new(seconds(1), &fixture.groups);
    let mut met = BTreeMap::new();
    // What was there before it is told of changes.
    let mut cache = Cache::of(&fixture.tables);
    for step in 0..STEPS {
        cache.learn(&fixture, &format!("seed {seed}, before step {step}"));
        model.now = seconds(fixture.log.len() as u64 + 1);
        if draw.0.percent(4) {
            let ino = draw.ino(&model);
            let remaining = fixture.internal(Internal::Purge { inos: vec![ino] });
            assert_eq!(
                remaining,
                Ok(Reply::Purged {
                    remaining: Vec::new()
                })
            );
            model.purge(ino);
            continue;
        }
        fixture.caller = draw.caller();
        let mutation = draw.mutation(&model);
        let context = format!(
            "seed {seed}, step {step}: {mutation:?} by {:?}",
            fixture.caller
        );
        let before = model.clone();
        let expected = model.mutate(&fixture.caller, &mutation);
        if expected.is_err() {
            model = before;
        }
        let command = fixture.command(mutation);
        let outcome = fixture.apply(vec![command.clone()]).remove(0);
        assert_eq!(
            outcome.clone().map_err(|error| error.code),
            expected,
            "{context}"
        );
        *met.entry(if outcome.is_ok() { "done" } else { "refused" })
            .or_default() += 1;
        if draw.0.percent(5) {
            assert_eq!(fixture.apply(vec![command]), [outcome], "again: {context}");
        }
        if step % 25 == 24 {
            compare(&fixture, &model, &context);
        }
    }
    compare(&fixture, &model, &format!("seed {seed}, at the end"));
    cache.learn(&fixture, &format!("seed {seed}, at the end"));

    let mut replayed = MemoryTables::default();
    for ((index, batch), applied) in (1..).zip(&fixture.log).zip(&fixture.applied) {
        let again = namespace::apply(&mut replayed, index, batch);
        assert_eq!(
            &again, applied,
            "seed {seed}: the same log, the same changes"
        );
    }
    assert_eq!(
        replayed, fixture.tables,
        "seed {seed}: the same log gives the same bytes"
    );
    HASH_COUNT.set(u64::MAX);
    met
}

#[test]
fn random_operations_do_what_the_model_does() {
    let mut all = BTreeMap::<_, usize>::new();
    for seed in 0..150 {
        for (kind, count) in run(seed, u64::MAX) {
            *all.entry(kind).or_default() += count;
        }
    }
    assert!(
        all["done"] > all["refused"] / 3,
        "many operations should do something: {all:?}"
    );
}

#[test]
fn random_operations_do_the_same_when_all_names_collide() {
    for seed in 1000..1100 {
        run(seed, 1 + seed % 3);
    }
}
