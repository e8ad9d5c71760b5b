//! What is deleted while a policy wants it kept.

use super::restore::restored;
use super::*;
use crate::op::{TrashEntry, TrashKey, TrashPolicy};
use lumeofs_base::limits::{TRASH_ENTRIES_MAX, TRASH_PATH_BYTES_MAX};

const ROOT: InodeId = InodeId::ROOT;

impl Fixture {
    fn keep(&mut self, keep_s: Option<u64>) {
        self.mutate(Mutation::SetTrash { keep_s }).unwrap();
    }

    fn page(&self, after: Option<TrashKey>, of: Option<InodeId>, count_max: u32) -> Outcome {
        self.query(&Query::Trash {
            after,
            of,
            count_max,
        })
    }

    fn trash(&self) -> Vec<TrashEntry> {
        match self.page(None, None, 1000) {
            Ok(Reply::Trash { entries, .. }) => entries,
            other => panic!("{other:?}"),
        }
    }

    fn paths(&self) -> Vec<String> {
        let entries = self.trash().into_iter();
        entries
            .map(|entry| String::from_utf8(entry.path).unwrap())
            .collect()
    }

    fn orphans(&self) -> Vec<InodeId> {
        namespace::orphans_after(&self.tables, InodeId(0), 99)
    }

    fn expire(&mut self, secs: u64) -> usize {
        let now = seconds(secs);
        let entries = namespace::expired_trash(&self.tables, now, 99);
        let count = entries.len();
        self.internal(Internal::ExpireTrash { entries, now })
            .unwrap();
        count
    }
}

fn restore(ino: InodeId, parent: InodeId, name: &str) -> Mutation {
    Mutation::Restore {
        ino,
        parent,
        name: name.into(),
    }
}

#[test]
fn nothing_is_kept_before_a_policy_wants_it_nor_after() {
    let mut fixture = Fixture::new();
    let file = fixture.file(ROOT, "before");
    fixture.mutate(unlink(ROOT, "before")).unwrap();
    fixture.keep(Some(100));
    let kept = fixture.file(ROOT, "kept");
    fixture.mutate(unlink(ROOT, "kept")).unwrap();
    fixture.keep(None);
    let after = fixture.file(ROOT, "after");
    fixture.mutate(unlink(ROOT, "after")).unwrap();
    assert_eq!(fixture.orphans(), [file, after]);
    assert_eq!(fixture.paths(), ["/kept"]);
    // It stays for as long as was said when it was kept.
    let Ok(Reply::Trash { policy, .. }) = fixture.page(None, None, 0) else {
        panic!()
    };
    let expected = TrashPolicy {
        is_on: false,
        keep_s: 100,
    };
    assert_eq!(policy, expected);
    assert_eq!(fixture.expire(50), 0);
    assert_eq!(fixture.expire(1000), 1);
    assert_eq!(fixture.orphans(), [file, kept, after]);
    fixture.check();
    for keep_s in [0, u64::MAX] {
        let set = Mutation::SetTrash {
            keep_s: Some(keep_s),
        };
        assert_eq!(fixture.refused(set), Code::Invalid);
    }
}

#[test]
fn what_was_removed_or_replaced_comes_back_as_it_was() {
    let mut fixture = Fixture::new();
    fixture.keep(Some(100));
    let dir = fixture.dir(ROOT, "dir");
    let inner = fixture.dir(dir, "inner");
    let file = fixture.file(inner, "file");
    fixture
        .mutate(Mutation::Append {
            ino: file,
            len: 5000,
            clear_suid: false,
        })
        .unwrap();
    let before = fixture.attr(file);
    // The path is that at the time of deletion.
    let moved = rename((dir, "inner"), (ROOT, "outer"), RenameMode::Replace);
    fixture.mutate(moved).unwrap();
    let new = fixture.file(inner, "new");
    let replaced = rename((inner, "new"), (inner, "file"), RenameMode::Replace);
    fixture.mutate(replaced).unwrap();
    assert_eq!(fixture.attr(file).nlink, 0);
    let usage = fixture.query(&Query::Usage);
    fixture.mutate(unlink(inner, "file")).unwrap();
    assert_eq!(fixture.query(&Query::Usage), usage, "it counts as used");
    assert_eq!(fixture.paths(), ["/outer/file", "/outer/file"]);
    assert_eq!(fixture.orphans(), []);
    fixture.mutate(rmdir(ROOT, "outer")).unwrap();
    fixture.check();

    let [old, entry] = &fixture.trash()[..] else {
        panic!()
    };
    assert_eq!((old.key.ino, entry.key.ino), (file, new));
    assert!(old.key < entry.key);
    assert_eq!((old.uid, old.attr.size), (0, 5000));
    fixture.mutate(restore(file, dir, "again")).unwrap();
    let now = seconds(fixture.log.len() as u64);
    let expected = Attr {
        ctime: now,
        ..before
    };
    assert_eq!(fixture.attr(file), expected);
    assert_eq!(fixture.lookup(dir, "again"), Ok(file));
    let attr = fixture.attr(dir);
    assert_eq!((attr.size, attr.mtime, attr.ctime), (1, now, now));
    fixture.check();
    // It can be deleted once more, and only that entry is meant by its key.
    fixture.mutate(unlink(dir, "again")).unwrap();
    let entries = vec![old.key];
    fixture.mutate(Mutation::EmptyTrash { entries }).unwrap();
    assert_eq!(fixture.paths(), ["/outer/file", "/dir/again"]);
    let entries = fixture.trash().iter().map(|entry| entry.key).collect();
    fixture.mutate(Mutation::EmptyTrash { entries }).unwrap();
    assert_eq!(fixture.trash(), []);
    assert!(fixture.orphans().contains(&file) && fixture.orphans().contains(&new));
    assert_eq!(fixture.refused(restore(file, dir, "x")), Code::NotFound);
    fixture.check();
}

#[test]
fn only_files_with_a_last_name_to_lose_are_kept() {
    let mut fixture = Fixture::new();
    fixture.keep(Some(100));
    let file = fixture.file(ROOT, "a");
    let link = |name: &str| Mutation::Link {
        ino: file,
        parent: ROOT,
        name: name.into(),
    };
    fixture.mutate(link("b")).unwrap();
    fixture.mutate(unlink(ROOT, "a")).unwrap();
    assert_eq!(fixture.paths(), [""; 0]);
    fixture.mutate(unlink(ROOT, "b")).unwrap();
    assert_eq!(fixture.paths(), ["/b"]);
    assert_eq!(fixture.refused(link("c")), Code::NotFound);
    fixture.create(ROOT, "soft", NewNode::Symlink(b"b".to_vec()), 0o777);
    fixture.mutate(unlink(ROOT, "soft")).unwrap();
    fixture.dir(ROOT, "dir");
    fixture.mutate(rmdir(ROOT, "dir")).unwrap();
    assert_eq!(fixture.paths(), ["/b", "/soft"]);
    let unnamed = attr(fixture.mutate(Mutation::CreateUnnamed {
        parent: ROOT,
        mode: 0o600.into(),
    }));
    assert!(fixture.orphans().contains(&unnamed.ino));
    assert_eq!(fixture.trash().len(), 2);
    fixture.check();
}

#[test]
fn the_trash_is_for_root_and_overwrites_nothing() {
    let mut fixture = Fixture::new();
    fixture.keep(Some(100));
    let file = fixture.file(ROOT, "a");
    fixture.mutate(unlink(ROOT, "a")).unwrap();
    fixture.file(ROOT, "a");
    let dir = fixture.dir(ROOT, "dir");
    fixture.mutate(rmdir(ROOT, "dir")).unwrap();
    assert_eq!(fixture.refused(restore(file, ROOT, "a")), Code::Exists);
    assert_eq!(fixture.refused(restore(file, dir, "a")), Code::NotFound);
    assert_eq!(fixture.refused(restore(file, ROOT, "a/b")), Code::Invalid);
    for trusted in [false, true] {
        fixture.as_user(1000, 1000);
        fixture.caller.trusted = trusted;
        assert_eq!(
            fixture.refused(restore(file, ROOT, "b")),
            Code::NotPermitted
        );
        let empty = Mutation::EmptyTrash {
            entries: Vec::new(),
        };
        assert_eq!(fixture.refused(empty), Code::NotPermitted);
        let off = Mutation::SetTrash { keep_s: None };
        assert_eq!(fixture.refused(off), Code::NotPermitted);
        let shown = fixture.page(None, None, 9);
        assert_eq!(shown.unwrap_err().code, Code::NotPermitted);
    }
    fixture.check();
}

#[test]
fn pages_show_all_in_the_order_of_deletion_and_expiry_follows_it() {
    let mut fixture = Fixture::new();
    fixture.keep(Some(10));
    let names = ["e", "d", "c", "b", "a"];
    let inos = names.map(|name| fixture.file(ROOT, name));
    // Two in one entry of the log have the same time.
    let both = [unlink(ROOT, "a"), unlink(ROOT, "b")].map(|one| fixture.command(one));
    fixture.apply(both.to_vec());
    for name in ["c", "d", "e"] {
        fixture.mutate(unlink(ROOT, name)).unwrap();
    }
    for count in 1..7 {
        let (mut after, mut found) = (None, Vec::new());
        loop {
            let Ok(Reply::Trash { entries, more, .. }) = fixture.page(after, None, count) else {
                panic!()
            };
            assert!(entries.len() <= count as usize);
            after = entries.last().map(|entry| entry.key);
            found.extend(entries);
            if !more {
                break;
            }
        }
        assert_eq!(found, fixture.trash());
    }
    assert_eq!(fixture.paths(), ["/b", "/a", "/c", "/d", "/e"]);
    let Ok(Reply::Trash { entries, .. }) = fixture.page(None, Some(inos[2]), 1) else {
        panic!()
    };
    assert_eq!(entries, fixture.trash()[2..3]);

    let first = fixture.trash()[0].key.deleted_ns / 1_000_000_000;
    assert_eq!(fixture.expire(first + 9), 0);
    assert_eq!(fixture.expire(first + 10), 2);
    assert_eq!(fixture.expire(first + 11), 1);
    assert_eq!(fixture.paths(), ["/d", "/e"]);
    // What is kept longer now is, also if the leader had chosen it before, and what is kept less long is not.
    let now = seconds(first + 100);
    let entries = namespace::expired_trash(&fixture.tables, now, 99);
    assert_eq!(entries.len(), 2);
    fixture.keep(Some(1000));
    fixture
        .internal(Internal::ExpireTrash { entries, now })
        .unwrap();
    assert_eq!(fixture.expire(first + 100), 0);
    fixture.keep(Some(1));
    assert_eq!(fixture.expire(first + 100), 2);
    fixture.check();
    let too_many = vec![
        TrashKey {
            deleted_ns: 0,
            ino: ROOT
        };
        TRASH_ENTRIES_MAX + 1
    ];
    let empty = Mutation::EmptyTrash { entries: too_many };
    assert_eq!(fixture.refused(empty), Code::Invalid);
}

#[test]
fn a_path_that_is_too_long_keeps_its_end() {
    let mut fixture = Fixture::new();
    fixture.keep(Some(10));
    let name = "n".repeat(255);
    let mut dir = ROOT;
    for _ in 0..20 {
        dir = fixture.dir(dir, &name);
    }
    fixture.file(dir, "file");
    fixture.mutate(unlink(dir, "file")).unwrap();
    let path = fixture.paths().remove(0);
    assert!(path.len() <= TRASH_PATH_BYTES_MAX, "{}", path.len());
    assert!(path.len() > TRASH_PATH_BYTES_MAX - 300);
    assert!(path.starts_with(".../nnn") && path.ends_with("n/file"));
    fixture.check();
}

#[test]
fn a_dump_has_the_trash_and_its_policy() {
    let mut fixture = Fixture::new();
    fixture.keep(Some(100));
    let file = fixture.file(ROOT, "a");
    fixture.mutate(unlink(ROOT, "a")).unwrap();
    let keys = |fixture: &Fixture| -> Vec<_> {
        let entries = fixture.trash().into_iter();
        entries.map(|entry| (entry.key, entry.path)).collect()
    };
    let before = keys(&fixture);
    fixture.tables = restored(&fixture.tables);
    fixture.check();
    assert_eq!((before.len(), keys(&fixture)), (1, before));
    let open = Internal::OpenSession {
        nonce: 8,
        description: "new".into(),
    };
    let Ok(Reply::Session(session)) = fixture.internal(open) else {
        panic!()
    };
    (fixture.session, fixture.sequence) = (session, 0);
    fixture.mutate(restore(file, ROOT, "a")).unwrap();
    assert_eq!(fixture.lookup(ROOT, "a"), Ok(file));
    fixture.file(ROOT, "b");
    fixture.mutate(unlink(ROOT, "b")).unwrap();
    assert_eq!(fixture.paths(), ["/b"]);
    fixture.check();
}
