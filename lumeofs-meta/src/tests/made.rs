//! What mounts make in their memory and tell later.

use super::Fixture;
use crate::change::Change;
use crate::made;
use crate::namespace;
use crate::op::{
    CreateMode, Mutation, NewNode, NewObject, RenameMode, Reply, SetAttr, SetTime, Step,
};
use lumeofs_base::{Code, FileKind, InodeId, Timestamp};

const TIME: Timestamp = Timestamp {
    secs: 1000,
    nanos: 5,
};

fn object(ino: u64, parent: InodeId, name: &str, node: NewNode) -> NewObject {
    NewObject {
        ino: InodeId(ino),
        parent,
        name: name.into(),
        node,
        mode: CreateMode {
            mode: 0o666,
            umask: 0o022,
        },
        uid: 7,
        gid: 8,
        time: TIME,
    }
}

impl Fixture {
    fn reserve(&mut self, count: u32) -> u64 {
        let near = InodeId::ROOT;
        match self.mutate(Mutation::Reserve { near, count }) {
            Ok(Reply::Reserved {
                first,
                count: given,
            }) if given == count => first.0,
            other => panic!("{other:?}"),
        }
    }

    /// The codes of what could not be made.
    fn make_ahead(&mut self, objects: Vec<NewObject>) -> Vec<Option<Code>> {
        self.do_ahead(objects.into_iter().map(Step::Make).collect())
    }

    fn do_ahead(&mut self, steps: Vec<Step>) -> Vec<Option<Code>> {
        match self.mutate(Mutation::Make { steps }) {
            Ok(Reply::Made(made)) => made
                .into_iter()
                .map(|made| made.err().map(|error| error.code))
                .collect(),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_was_made_is_as_its_maker_has_shown_it() {
    let mut fixture = Fixture::new();
    let mut root = fixture.attr(InodeId::ROOT);
    let first = fixture.reserve(3);
    let dir = InodeId(first);
    let objects = vec![
        object(first, InodeId::ROOT, "d", NewNode::Directory),
        object(first + 1, dir, "f", NewNode::Regular),
        object(first + 2, dir, "l", NewNode::Symlink(b"to".to_vec())),
    ];
    assert_eq!(fixture.make_ahead(objects.clone()), [None, None, None]);
    let mut expected: Vec<_> = objects
        .iter()
        .map(|object| {
            let owner = (object.uid, object.gid);
            let mode = object.mode;
            let mut attr = made::attr(object.ino, &object.node, mode.mode, owner, object.time);
            made::mask(&mut attr, mode);
            attr
        })
        .collect();
    made::enter(&mut root, FileKind::Directory, TIME);
    made::enter(&mut expected[0], FileKind::Regular, TIME);
    made::enter(&mut expected[0], FileKind::Symlink, TIME);
    let is_of = |ino| expected.iter().find(|attr| attr.ino == ino);
    for object in &objects {
        let shown = fixture.attr(object.ino);
        let expected = is_of(object.ino).unwrap();
        // What is allocated follows from the first chunk and the size, which is none.
        assert_eq!(&shown, expected, "{object:?}");
    }
    assert_eq!(fixture.attr(InodeId::ROOT), root);
    let changes = &fixture.applied.last().unwrap()[0].changes;
    let names = changes
        .iter()
        .filter(|change| matches!(change, Change::Name { .. }));
    assert_eq!(names.count(), 3);
}

#[test]
fn only_numbers_that_the_session_reserved_are_taken_each_once_and_in_order() {
    let mut fixture = Fixture::new();
    let first = fixture.reserve(4);
    let mut make = |ino, name: &str| {
        fixture.make_ahead(vec![object(ino, InodeId::ROOT, name, NewNode::Regular)])[0]
    };
    assert_eq!(make(first + 1, "a"), None);
    assert_eq!(make(first + 1, "b"), Some(Code::Invalid));
    assert_eq!(make(first, "c"), Some(Code::Invalid));
    assert_eq!(make(first + 4, "d"), Some(Code::Invalid));
    assert_eq!(make(1, "e"), Some(Code::Invalid));
    assert_eq!(make(first + 3, "f"), None);
    assert_eq!(make(first + 3, "g"), Some(Code::Invalid));
}

#[test]
fn a_number_that_is_reserved_is_given_to_nobody_else() {
    let mut fixture = Fixture::new();
    let first = fixture.reserve(10);
    let other = fixture.create(InodeId::ROOT, "other", NewNode::Regular, 0o644);
    assert!(other.ino.0 >= first + 10, "{other:?}");
}

#[test]
fn what_cannot_be_made_keeps_the_rest_from_nothing() {
    let mut fixture = Fixture::new();
    let there = fixture
        .create(InodeId::ROOT, "there", NewNode::Regular, 0o644)
        .ino;
    let first = fixture.reserve(5);
    let objects = vec![
        object(first, InodeId::ROOT, "there", NewNode::Regular),
        object(first + 1, there, "x", NewNode::Regular),
        object(first + 2, InodeId(first), "x", NewNode::Regular),
        object(first + 3, InodeId::ROOT, "new", NewNode::Regular),
    ];
    let codes = fixture.make_ahead(objects);
    let expected = [
        Some(Code::Exists),
        Some(Code::NotDirectory),
        Some(Code::NotFound),
        None,
    ];
    assert_eq!(codes, expected);
}

#[test]
fn callers_without_trust_choose_no_numbers_and_no_owners() {
    let mut fixture = Fixture::new();
    let first = fixture.reserve(1);
    fixture.caller.trusted = false;
    let steps = vec![Step::Make(object(
        first,
        InodeId::ROOT,
        "x",
        NewNode::Regular,
    ))];
    let code = fixture.refused(Mutation::Make { steps });
    assert_eq!(code, Code::NotPermitted);
}

#[test]
fn attributes_of_what_is_no_file_are_set_in_the_same_order() {
    let mut fixture = Fixture::new();
    let first = fixture.reserve(2);
    let dir = InodeId(first);
    let later = Timestamp {
        secs: 2000,
        nanos: 0,
    };
    let set = SetAttr {
        mode: Some(0o750),
        uid: Some(4),
        mtime: Some(SetTime::At(TIME)),
        ctime: Some(later),
        ..SetAttr::default()
    };
    let mut file = object(first + 1, dir, "f", NewNode::Regular);
    file.time = later;
    let steps = vec![
        Step::Make(object(first, InodeId::ROOT, "d", NewNode::Directory)),
        Step::Make(file),
        Step::Set {
            ino: dir,
            set: set.clone(),
        },
        Step::Set {
            ino: InodeId(first + 1),
            set,
        },
    ];
    assert_eq!(
        fixture.do_ahead(steps),
        [None, None, None, Some(Code::Invalid)]
    );
    let attr = fixture.attr(dir);
    assert_eq!((attr.mode, attr.uid, attr.gid), (0o750, 4, 8));
    assert_eq!((attr.mtime, attr.ctime), (TIME, later));
}

#[test]
fn directories_that_are_moved_or_removed_are_those_that_the_names_mean_now() {
    let mut fixture = Fixture::new();
    let root = InodeId::ROOT;
    let (a, b) = (fixture.dir(root, "a"), fixture.dir(root, "b"));
    let file = fixture.file(a, "f");
    assert_ne!(file, a);
    let moved = |mutation: Mutation| mutation.moved_directories(&fixture.tables);
    let rename = |from: (InodeId, &str), to: (InodeId, &str)| Mutation::Rename {
        parent: from.0,
        name: from.1.into(),
        new_parent: to.0,
        new_name: to.1.into(),
        mode: RenameMode::Replace,
    };
    let rmdir = |parent, name: &str| Mutation::Rmdir {
        parent,
        name: name.into(),
    };
    assert_eq!(moved(rmdir(root, "a")), [a]);
    assert_eq!(moved(rmdir(root, "none")), []);
    assert_eq!(moved(rmdir(a, "f")), [], "it will be refused");
    assert_eq!(moved(rename((root, "a"), (root, "b"))), [a, b]);
    assert_eq!(moved(rename((a, "f"), (root, "none"))), []);
    assert_eq!(moved(rename((root, "b"), (a, "b"))), [b]);
    let unlink = Mutation::Unlink {
        parent: a,
        name: b"f".to_vec(),
    };
    assert_eq!(moved(unlink), []);
    assert_eq!(namespace::parent(&fixture.tables, a), Some(root));
    assert_eq!(namespace::parent(&fixture.tables, root), Some(root));
    assert_eq!(namespace::parent(&fixture.tables, file), None);
}
