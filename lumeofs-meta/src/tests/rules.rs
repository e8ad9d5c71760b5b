//! POSIX rules one by one: permissions, sticky, setgid, links, attributes.

use super::*;
use crate::op::{SetAttr, SetTime, XattrMode};
use lumeofs_base::FileKind;
use lumeofs_base::limits::{LINK_COUNT_MAX, SYMLINK_LEN_BYTES_MAX};
use std::collections::BTreeMap;

const ROOT: InodeId = InodeId::ROOT;

fn set_mode(ino: InodeId, mode: u16) -> Mutation {
    Mutation::SetAttr {
        ino,
        set: SetAttr {
            mode: Some(mode),
            ..SetAttr::default()
        },
    }
}

fn set_owner(ino: InodeId, uid: Option<u32>, gid: Option<u32>) -> Mutation {
    Mutation::SetAttr {
        ino,
        set: SetAttr {
            uid,
            gid,
            ..SetAttr::default()
        },
    }
}

fn create(parent: InodeId, name: &str, node: NewNode) -> Mutation {
    Mutation::Create {
        parent,
        name: name.into(),
        node,
        mode: 0o644.into(),
        exclusive: true,
    }
}

#[test]
fn the_root_is_there_from_the_first_entry() {
    let fixture = Fixture::new();
    let root = fixture.attr(ROOT);
    assert_eq!(
        (root.mode, root.uid, root.nlink, root.size),
        (0o755, 0, 2, 0)
    );
    assert_eq!(fixture.lookup(ROOT, ".."), Ok(ROOT));
    assert_eq!(root.btime, seconds(1));
}

#[test]
fn names_are_looked_up_with_their_dots() {
    let mut fixture = Fixture::new();
    let outer = fixture.dir(ROOT, "outer");
    let inner = fixture.dir(outer, "inner");
    let file = fixture.file(inner, "file");
    assert_eq!(fixture.lookup(inner, "file"), Ok(file));
    assert_eq!(fixture.lookup(inner, "."), Ok(inner));
    assert_eq!(fixture.lookup(inner, ".."), Ok(outer));
    assert_eq!(fixture.lookup(file, "x"), Err(Code::NotDirectory));
    assert_eq!(
        fixture.lookup(inner, &"x".repeat(256)),
        Err(Code::NameTooLong)
    );
    assert_eq!(
        fixture.refused(create(inner, ".", NewNode::Directory)),
        Code::Invalid
    );
    assert_eq!(
        attr(fixture.query(&Query::Parent { ino: inner })).ino,
        outer
    );
}

#[test]
fn an_open_create_finds_the_file_that_is_there() {
    let mut fixture = Fixture::new();
    let file = fixture.file(ROOT, "file");
    fixture.dir(ROOT, "dir");
    let open = |name: &str, node| Mutation::Create {
        parent: ROOT,
        name: name.into(),
        node,
        mode: 0o600.into(),
        exclusive: false,
    };
    match fixture.mutate(open("file", NewNode::Regular)) {
        Ok(Reply::Created {
            attr,
            first_chunk: Some(_),
            created: false,
        }) => {
            assert_eq!((attr.ino, attr.mode), (file, 0o644));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(
        fixture.refused(open("dir", NewNode::Regular)),
        Code::IsDirectory
    );
    assert_eq!(
        fixture.refused(open("file", NewNode::Directory)),
        Code::Exists
    );
    fixture.check();
}

#[test]
fn a_setgid_directory_hands_its_group_on() {
    let mut fixture = Fixture::new();
    let dir = fixture.dir(ROOT, "d");
    fixture.mutate(set_owner(dir, None, Some(50))).unwrap();
    fixture.mutate(set_mode(dir, 0o2777)).unwrap();
    let file = fixture.create(dir, "f", NewNode::Regular, 0o2755);
    assert_eq!((file.gid, file.mode), (50, 0o2755));
    let sub = fixture.create(dir, "s", NewNode::Directory, 0o755);
    assert_eq!((sub.gid, sub.mode), (50, 0o2755));
    fixture.as_user(1000, 1000);
    let file = fixture.create(dir, "g", NewNode::Regular, 0o2755);
    assert_eq!(
        (file.gid, file.mode),
        (50, 0o755),
        "a stranger gets no program of that group"
    );
}

#[test]
fn a_user_without_permission_is_refused() {
    let mut fixture = Fixture::new();
    let dir = fixture.dir(ROOT, "d");
    let file = fixture.file(dir, "f");
    fixture.as_user(1000, 1000);
    assert_eq!(
        fixture.refused(create(dir, "x", NewNode::Regular)),
        Code::Access
    );
    assert_eq!(
        fixture.refused(create(dir, "f", NewNode::Regular)),
        Code::Exists
    );
    assert_eq!(fixture.refused(unlink(dir, "f")), Code::Access);
    assert_eq!(
        fixture.refused(rename((dir, "f"), (dir, "g"), RenameMode::Replace)),
        Code::Access
    );
    assert_eq!(fixture.refused(set_mode(file, 0o777)), Code::NotPermitted);
    assert_eq!(
        fixture.refused(set_owner(file, Some(1000), None)),
        Code::NotPermitted
    );
    let size = SetAttr {
        size: Some(0),
        ..SetAttr::default()
    };
    assert_eq!(
        fixture.refused(Mutation::SetAttr {
            ino: file,
            set: size
        }),
        Code::Access
    );
    let device = NewNode::Special(FileKind::CharDevice, 1);
    fixture.caller.uid = 0;
    fixture.mutate(set_mode(dir, 0o777)).unwrap();
    fixture.as_user(1000, 1000);
    assert_eq!(
        fixture.refused(create(dir, "dev", device.clone())),
        Code::NotPermitted
    );
    fixture.caller.trusted = true;
    fixture.mutate(create(dir, "dev", device)).unwrap();
    fixture.caller.uid = 0;
    fixture.mutate(set_mode(dir, 0o700)).unwrap();
    fixture.as_user(1000, 1000);
    assert_eq!(fixture.lookup(dir, "f"), Err(Code::Access));
    let list = Query::ReadDir {
        ino: dir,
        cookie: 0,
        count_max: 9,
        inodes_max: 0,
    };
    assert_eq!(fixture.query(&list).unwrap_err().code, Code::Access);
    fixture.check();
}

#[test]
fn in_a_sticky_directory_only_owners_remove() {
    let mut fixture = Fixture::new();
    let dir = fixture.create(ROOT, "tmp", NewNode::Directory, 0o1777).ino;
    fixture.as_user(1000, 1000);
    fixture.file(dir, "mine");
    fixture.as_user(1001, 1001);
    assert_eq!(fixture.refused(unlink(dir, "mine")), Code::NotPermitted);
    fixture.file(dir, "other");
    let over = rename((dir, "other"), (dir, "mine"), RenameMode::Replace);
    assert_eq!(fixture.refused(over), Code::NotPermitted);
    fixture.as_user(1000, 1000);
    fixture.mutate(unlink(dir, "mine")).unwrap();
    fixture.check();
}

#[test]
fn owners_change_their_files_within_limits() {
    let mut fixture = Fixture::new();
    fixture.mutate(set_mode(ROOT, 0o777)).unwrap();
    fixture.as_user(1000, 1000);
    let file = fixture.file(ROOT, "f");
    fixture.caller.groups = vec![20];
    fixture.mutate(set_mode(file, 0o6755)).unwrap();
    let moved = attr(fixture.mutate(set_owner(file, Some(1000), Some(20))));
    assert_eq!(
        (moved.gid, moved.mode),
        (20, 0o755),
        "suid and sgid go with a change of owner"
    );
    assert_eq!(
        fixture.refused(set_owner(file, None, Some(21))),
        Code::NotPermitted
    );
    fixture.caller.groups.clear();
    assert_eq!(
        attr(fixture.mutate(set_mode(file, 0o2755))).mode,
        0o755,
        "sgid of another group"
    );

    let times = |atime, mtime| Mutation::SetAttr {
        ino: file,
        set: SetAttr {
            atime,
            mtime,
            ..SetAttr::default()
        },
    };
    let at = SetTime::At(Timestamp { secs: -5, nanos: 3 });
    let set = attr(fixture.mutate(times(Some(at), None)));
    assert_eq!(set.atime, Timestamp { secs: -5, nanos: 3 });
    let bad = SetTime::At(Timestamp {
        secs: 0,
        nanos: 1_000_000_000,
    });
    assert_eq!(fixture.refused(times(Some(bad), None)), Code::Invalid);
    fixture.mutate(set_mode(file, 0o666)).unwrap();
    fixture.as_user(1001, 1001);
    assert_eq!(fixture.refused(times(Some(at), None)), Code::NotPermitted);
    fixture
        .mutate(times(Some(SetTime::Now), Some(SetTime::Now)))
        .unwrap();
}

#[test]
fn links_count_up_to_their_limit() {
    let mut fixture = Fixture::new();
    let file = fixture.file(ROOT, "f");
    let dir = fixture.dir(ROOT, "d");
    let link = |ino, name: &str| Mutation::Link {
        ino,
        parent: dir,
        name: name.into(),
    };
    assert_eq!(attr(fixture.mutate(link(file, "g"))).nlink, 2);
    assert_eq!(fixture.refused(link(file, "g")), Code::Exists);
    assert_eq!(fixture.refused(link(dir, "h")), Code::NotPermitted);
    let gone = fixture.file(ROOT, "gone");
    fixture.mutate(unlink(ROOT, "gone")).unwrap();
    assert_eq!(fixture.refused(link(gone, "back")), Code::NotFound);

    let mut inode = crate::transaction::inode(&fixture.tables, file).unwrap();
    inode.attr.nlink = LINK_COUNT_MAX;
    let mut full = crate::transaction::inode(&fixture.tables, dir).unwrap();
    full.attr.nlink = LINK_COUNT_MAX;
    for inode in [&inode, &full] {
        let key = crate::keys::inode(inode.attr.ino).to_vec();
        fixture.tables.0.insert(key, crate::record::encode(inode));
    }
    assert_eq!(fixture.refused(link(file, "one-more")), Code::TooManyLinks);
    assert_eq!(
        fixture.refused(create(dir, "sub", NewNode::Directory)),
        Code::TooManyLinks
    );
    fixture.dir(ROOT, "s");
    let into = rename((ROOT, "s"), (dir, "s"), RenameMode::Replace);
    assert_eq!(fixture.refused(into), Code::TooManyLinks);
}

#[test]
fn symlinks_keep_their_target() {
    let mut fixture = Fixture::new();
    let link = fixture.create(ROOT, "l", NewNode::Symlink(b"../x".to_vec()), 0);
    assert_eq!((link.mode, link.size), (0o777, 4));
    let read = fixture.query(&Query::ReadLink { ino: link.ino }).unwrap();
    assert_eq!(read, Reply::Bytes(b"../x".to_vec()));
    let too_long = NewNode::Symlink(vec![b'x'; SYMLINK_LEN_BYTES_MAX + 1]);
    assert_eq!(
        fixture.refused(create(ROOT, "m", too_long)),
        Code::NameTooLong
    );
    assert_eq!(
        fixture.refused(create(ROOT, "m", NewNode::Symlink(vec![]))),
        Code::NotFound
    );
    assert_eq!(
        fixture
            .query(&Query::ReadLink { ino: ROOT })
            .unwrap_err()
            .code,
        Code::Invalid
    );
    fixture.check();
}

#[test]
fn extended_attributes_keep_their_modes_and_limits() {
    let mut fixture = Fixture::new();
    let ino = fixture.file(ROOT, "f");
    let set = |name: &str, len, mode| Mutation::SetXattr {
        ino,
        name: name.into(),
        value: vec![7; len],
        mode,
    };
    assert_eq!(
        fixture.refused(set("user.a", 1, XattrMode::Replace)),
        Code::NoData
    );
    fixture.mutate(set("user.a", 1, XattrMode::Create)).unwrap();
    assert_eq!(
        fixture.refused(set("user.a", 1, XattrMode::Create)),
        Code::Exists
    );
    fixture
        .mutate(set("user.a", 65_536, XattrMode::Replace))
        .unwrap();
    assert_eq!(
        fixture.refused(set("user.a", 65_537, XattrMode::Set)),
        Code::TooBig
    );
    assert_eq!(
        fixture.refused(set(&"x".repeat(256), 1, XattrMode::Set)),
        Code::Range
    );
    fixture
        .mutate(set("security.x", 2, XattrMode::Set))
        .unwrap();
    let get = |name: &str| Query::GetXattr {
        ino,
        name: name.into(),
    };
    assert_eq!(
        fixture.query(&get("security.x")),
        Ok(Reply::Bytes(vec![7; 2]))
    );
    let names = fixture.query(&Query::ListXattr { ino });
    assert_eq!(
        names,
        Ok(Reply::Names(vec![
            b"security.x".to_vec(),
            b"user.a".to_vec()
        ]))
    );
    let remove = || Mutation::RemoveXattr {
        ino,
        name: b"user.a".to_vec(),
    };
    fixture.mutate(remove()).unwrap();
    assert_eq!(fixture.refused(remove()), Code::NoData);
    for number in 0..255 {
        fixture
            .mutate(set(&format!("{number:0>255}"), 1, XattrMode::Set))
            .unwrap();
    }
    assert_eq!(
        fixture.refused(set(&"y".repeat(255), 1, XattrMode::Set)),
        Code::NoSpace
    );
    fixture.as_user(1000, 1000);
    assert_eq!(
        fixture.refused(set("user.b", 1, XattrMode::Set)),
        Code::Access
    );
    assert_eq!(
        fixture.refused(set("trusted.b", 1, XattrMode::Set)),
        Code::NotPermitted
    );
    assert_eq!(
        fixture.refused(set("system.b", 1, XattrMode::Set)),
        Code::Unsupported
    );
    fixture.check();
}

#[test]
fn capabilities_go_when_contents_or_owner_change() {
    let mut fixture = Fixture::new();
    let ino = fixture.file(InodeId::ROOT, "program");
    let name = b"security.capability";
    let get = Query::GetXattr {
        ino,
        name: name.to_vec(),
    };
    let size = Mutation::SetAttr {
        ino,
        set: SetAttr {
            size: Some(1),
            ..SetAttr::default()
        },
    };
    let publish = Mutation::Publish {
        ino,
        size: 0,
        truncations: 0,
        clear_suid: false,
    };
    let append = Mutation::Append {
        ino,
        len: 1,
        clear_suid: false,
    };
    let keeping = set_mode(ino, 0o755);
    for (change, goes) in [
        (keeping, false),
        (publish, true),
        (append, true),
        (size, true),
        (set_owner(ino, Some(5), None), true),
    ] {
        let set = Mutation::SetXattr {
            ino,
            name: name.to_vec(),
            value: b"all".to_vec(),
            mode: XattrMode::Set,
        };
        fixture.mutate(set).unwrap();
        fixture.mutate(change.clone()).unwrap();
        assert_eq!(fixture.query(&get).is_err(), goes, "{change:?}");
        fixture.check();
    }
}

#[test]
fn readdir_pages_through_a_directory() {
    let mut fixture = Fixture::new();
    for number in 0..2500 {
        let command = fixture.command(create(ROOT, &format!("{number}"), NewNode::Regular));
        fixture.apply(vec![command]);
    }
    let (mut cookie, mut names) = (0, Vec::new());
    loop {
        let list = Query::ReadDir {
            ino: ROOT,
            cookie,
            count_max: u32::MAX,
            inodes_max: 0,
        };
        let Ok(Reply::Entries { entries, more, .. }) = fixture.query(&list) else {
            panic!()
        };
        assert!(entries.len() <= 1024);
        assert!(
            entries
                .iter()
                .all(|entry| entry.cookie > 2 && entry.cookie <= i64::MAX as u64)
        );
        cookie = entries.last().unwrap().cookie;
        names.extend(entries.into_iter().map(|entry| entry.name));
        if !more {
            break;
        }
    }
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 2500);
    let end = fixture.query(&Query::ReadDir {
        ino: ROOT,
        cookie,
        count_max: 9,
        inodes_max: 0,
    });
    assert_eq!(
        end,
        Ok(Reply::Entries {
            entries: Vec::new(),
            more: false,
            inodes: Vec::new(),
        })
    );
}

#[test]
fn removed_directories_are_orphans_until_purged() {
    let mut fixture = Fixture::new();
    let dir = fixture.dir(ROOT, "d");
    let file = fixture.file(dir, "f");
    assert_eq!(fixture.refused(rmdir(ROOT, "d")), Code::NotEmpty);
    assert_eq!(fixture.refused(unlink(ROOT, "d")), Code::IsDirectory);
    assert_eq!(fixture.refused(rmdir(dir, "f")), Code::NotDirectory);
    fixture.mutate(unlink(dir, "f")).unwrap();
    fixture.mutate(rmdir(ROOT, "d")).unwrap();
    assert_eq!(
        namespace::orphans_after(&fixture.tables, InodeId(0), 9),
        [dir, file]
    );
    fixture
        .internal(Internal::Purge {
            inos: vec![dir, file],
        })
        .unwrap();
    assert_eq!(
        fixture.refused(create(dir, "x", NewNode::Regular)),
        Code::NotFound
    );
    fixture.check();
}

#[test]
fn a_listing_brings_what_is_in_small_directories_as_long_as_there_is_room() {
    let mut fixture = Fixture::new();
    let small = fixture.dir(ROOT, "small");
    let inner = fixture.dir(small, "inner");
    let file = fixture.file(inner, "file");
    let large = fixture.dir(ROOT, "large");
    for number in 0..100 {
        fixture.file(large, &number.to_string());
    }
    let Ok(Reply::Entries { entries, .. }) = fixture.query(&Query::ReadDir {
        ino: ROOT,
        cookie: 0,
        count_max: 9,
        inodes_max: 0,
    }) else {
        panic!("no listing");
    };
    let chosen = |count_max| {
        let caller = Caller {
            trusted: true,
            ..Caller::default()
        };
        let chosen = namespace::to_list(&fixture.tables, &caller, &entries, count_max);
        chosen
            .into_iter()
            .map(|one| (one.ino, one.entries.map(|entries| entries.len())))
            .collect::<BTreeMap<_, _>>()
    };
    let all = [
        (small, Some(1)),
        (inner, Some(1)),
        (file, None),
        (large, None),
    ];
    assert_eq!(chosen(256), all.into());
    assert_eq!(chosen(2), [(small, None), (large, None)].into());
    assert_eq!(chosen(1).len(), 1);
    let told = [inner, file].into_iter();
    let caller = Caller::default();
    let candidates = namespace::to_list(&fixture.tables, &caller, &entries, 256);
    let listed = namespace::listed(&fixture.tables, &candidates, told);
    let inodes: Vec<_> = listed.iter().map(|one| one.attr.ino).collect();
    assert_eq!(inodes, [inner, file]);
    assert_eq!(listed[0].entries.as_ref().unwrap()[0].ino, file);
}
