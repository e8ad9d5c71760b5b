//! Rename with its modes: what may replace what, and that the tree stays a tree.

use super::*;
use lumeofs_base::FileKind;

const ROOT: InodeId = InodeId::ROOT;

fn create(parent: InodeId, name: &str) -> Mutation {
    let (name, node) = (name.into(), NewNode::Regular);
    Mutation::Create {
        parent,
        name,
        node,
        mode: 0o644.into(),
        exclusive: true,
    }
}

#[test]
fn a_directory_does_not_move_below_itself() {
    let mut fixture = Fixture::new();
    let a = fixture.dir(ROOT, "a");
    let b = fixture.dir(a, "b");
    let c = fixture.dir(b, "c");
    for mode in [RenameMode::Replace, RenameMode::NoReplace] {
        assert_eq!(
            fixture.refused(rename((ROOT, "a"), (c, "x"), mode)),
            Code::Invalid
        );
        assert_eq!(
            fixture.refused(rename((ROOT, "a"), (a, "x"), mode)),
            Code::Invalid
        );
    }
    let replace = |from, to| rename(from, to, RenameMode::Replace);
    assert_eq!(
        fixture.refused(replace((b, "c"), (ROOT, "a"))),
        Code::NotEmpty
    );
    let exchange = rename((b, "c"), (ROOT, "a"), RenameMode::Exchange);
    assert_eq!(fixture.refused(exchange), Code::Invalid);
    fixture.mutate(replace((a, "b"), (ROOT, "b"))).unwrap();
    fixture.mutate(replace((ROOT, "a"), (c, "a"))).unwrap();
    assert_eq!(fixture.lookup(a, ".."), Ok(c));
    fixture.check();
}

#[test]
fn rename_replaces_only_what_fits() {
    let mut fixture = Fixture::new();
    let dir = fixture.dir(ROOT, "dir");
    let full = fixture.dir(ROOT, "full");
    fixture.file(full, "x");
    let file = fixture.file(ROOT, "file");
    let other = fixture.file(ROOT, "other");
    let go = |from, to, mode| rename((ROOT, from), (ROOT, to), mode);
    let replace = RenameMode::Replace;
    assert_eq!(
        fixture.refused(go("dir", "file", replace)),
        Code::NotDirectory
    );
    assert_eq!(
        fixture.refused(go("file", "dir", replace)),
        Code::IsDirectory
    );
    assert_eq!(fixture.refused(go("dir", "full", replace)), Code::NotEmpty);
    assert_eq!(fixture.refused(go("gone", "file", replace)), Code::NotFound);
    assert_eq!(
        fixture.refused(go("file", "other", RenameMode::NoReplace)),
        Code::Exists
    );
    assert_eq!(
        fixture.refused(go("file", "gone", RenameMode::Exchange)),
        Code::NotFound
    );
    match fixture.mutate(go("file", "other", replace)) {
        Ok(Reply::Renamed {
            attr,
            other: Some(replaced),
        }) => {
            assert_eq!((attr.ino, replaced.ino, replaced.nlink), (file, other, 0));
        }
        reply => panic!("{reply:?}"),
    }
    fixture
        .mutate(rename((full, "x"), (ROOT, "y"), replace))
        .unwrap();
    fixture.mutate(go("dir", "full", replace)).unwrap();
    assert_eq!(fixture.lookup(ROOT, "full"), Ok(dir));
    assert_eq!(fixture.attr(full).nlink, 0);
    assert_eq!(fixture.attr(ROOT).nlink, 3);
    assert_eq!(fixture.refused(create(full, "x")), Code::NotFound);
    assert_eq!(fixture.lookup(full, "x"), Err(Code::NotFound));
    assert_eq!(fixture.lookup(full, ".."), Ok(ROOT));
    fixture.check();
}

#[test]
fn two_names_of_one_inode_stay_after_a_rename() {
    let mut fixture = Fixture::new();
    let file = fixture.file(ROOT, "a");
    fixture
        .mutate(Mutation::Link {
            ino: file,
            parent: ROOT,
            name: b"b".to_vec(),
        })
        .unwrap();
    let before = fixture.attr(file);
    let reply = fixture.mutate(rename((ROOT, "a"), (ROOT, "b"), RenameMode::Replace));
    assert_eq!(
        reply,
        Ok(Reply::Renamed {
            attr: before,
            other: None
        })
    );
    assert_eq!(fixture.lookup(ROOT, "a"), Ok(file));
    assert_eq!(fixture.lookup(ROOT, "b"), Ok(file));
}

#[test]
fn exchange_and_whiteout_leave_something_at_the_source() {
    let mut fixture = Fixture::new();
    let a = fixture.dir(ROOT, "a");
    let b = fixture.dir(ROOT, "b");
    let sub = fixture.dir(a, "sub");
    let file = fixture.file(b, "file");
    fixture
        .mutate(rename((a, "sub"), (b, "file"), RenameMode::Exchange))
        .unwrap();
    assert_eq!(
        (fixture.lookup(a, "sub"), fixture.lookup(b, "file")),
        (Ok(file), Ok(sub))
    );
    assert_eq!((fixture.attr(a).nlink, fixture.attr(b).nlink), (2, 3));
    assert_eq!(fixture.lookup(sub, ".."), Ok(b));

    fixture
        .mutate(rename((a, "sub"), (b, "new"), RenameMode::Whiteout))
        .unwrap();
    assert_eq!(fixture.lookup(b, "new"), Ok(file));
    let whiteout = fixture.attr(fixture.lookup(a, "sub").unwrap());
    assert_eq!(
        (whiteout.kind, whiteout.rdev, whiteout.mode),
        (FileKind::CharDevice, 0, 0)
    );
    fixture.check();
}
