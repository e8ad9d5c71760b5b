//! ACLs: how they and modes follow each other, what is inherited, who may do what.

use super::*;
use crate::change::Change;
use crate::op::{CreateMode, SetAttr, XattrMode};

const ROOT: InodeId = InodeId::ROOT;
const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

/// A list as people write it: `u::rwx,u:1000:r--,g::r-x,m::rwx,o::---`.
fn acl(text: &str) -> Vec<u8> {
    let mut value = vec![2, 0, 0, 0];
    for entry in text.split(',') {
        let [kind, id, allows] = entry.split(':').collect::<Vec<_>>()[..] else {
            panic!("{entry}");
        };
        let tag: u16 = match (kind, id) {
            ("u", "") => 1,
            ("u", _) => 2,
            ("g", "") => 4,
            ("g", _) => 8,
            ("m", _) => 16,
            _ => 32,
        };
        let bits = allows
            .bytes()
            .fold(0_u16, |bits, letter| bits << 1 | u16::from(letter != b'-'));
        let id = id.parse().unwrap_or(u32::MAX);
        value.extend(tag.to_le_bytes());
        value.extend(bits.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

fn set(ino: InodeId, name: &str, value: &[u8]) -> Mutation {
    Mutation::SetXattr {
        ino,
        name: name.into(),
        value: value.to_vec(),
        mode: XattrMode::Set,
    }
}

fn remove(ino: InodeId, name: &str) -> Mutation {
    Mutation::RemoveXattr {
        ino,
        name: name.into(),
    }
}

fn set_attr(ino: InodeId, set: SetAttr) -> Mutation {
    Mutation::SetAttr { ino, set }
}

fn chmod(ino: InodeId, mode: u16) -> Mutation {
    let mode = Some(mode);
    set_attr(
        ino,
        SetAttr {
            mode,
            ..SetAttr::default()
        },
    )
}

impl Fixture {
    fn acl(&self, ino: InodeId, name: &str) -> Option<Vec<u8>> {
        let name = name.into();
        match self.query(&Query::GetXattr { ino, name }) {
            Ok(Reply::Bytes(value)) => Some(value),
            Err(error) if error.code == Code::NoData => None,
            other => panic!("{other:?}"),
        }
    }

    fn names(&self, ino: InodeId) -> Vec<String> {
        let Ok(Reply::Names(names)) = self.query(&Query::ListXattr { ino }) else {
            panic!();
        };
        let names = names.into_iter();
        names.map(|name| String::from_utf8(name).unwrap()).collect()
    }

    fn make(&mut self, parent: InodeId, name: &str, node: NewNode, mode: u16, umask: u16) -> Attr {
        attr(self.mutate(Mutation::Create {
            parent,
            name: name.into(),
            node,
            mode: CreateMode { mode, umask },
            exclusive: true,
        }))
    }

    fn tells_of_xattrs(&self, ino: InodeId) -> bool {
        let applied = &self.applied.last().unwrap()[0];
        applied.changes.contains(&Change::Xattr { ino })
    }
}

#[test]
fn an_access_list_and_the_mode_follow_each_other() {
    let mut fixture = Fixture::new();
    let file = fixture.file(ROOT, "f");
    assert!(!fixture.attr(file).has_xattrs);
    let list = |mask: &str| acl(&format!("u::rwx,u:7:rwx,g::r-x,m::{mask},o::--x"));
    fixture.mutate(set(file, ACCESS, &list("-w-"))).unwrap();
    assert!(fixture.tells_of_xattrs(file));
    let attr = fixture.attr(file);
    assert_eq!((attr.mode, attr.has_xattrs), (0o721, true));
    assert_eq!(fixture.names(file), [ACCESS]);
    fixture.check();
    // The same again is no change.
    let ctime = attr.ctime;
    fixture.mutate(set(file, ACCESS, &list("-w-"))).unwrap();
    assert_eq!(fixture.attr(file).ctime, ctime);
    // chmod(2), also one that a mount publishes later.
    fixture.mutate(chmod(file, 0o640)).unwrap();
    assert!(fixture.tells_of_xattrs(file));
    let after = acl("u::rw-,u:7:rwx,g::r-x,m::r--,o::---");
    assert_eq!(fixture.acl(file, ACCESS), Some(after));
    let now = fixture.attr(file).mtime;
    let flush = Mutation::Flush {
        ino: file,
        from: u64::MAX,
        size: 0,
        truncations: 0,
        clear_suid: true,
        mtime: now,
        ctime: now,
        set: SetAttr {
            mode: Some(0o4777),
            ..SetAttr::default()
        },
    };
    fixture.mutate(flush).unwrap();
    assert!(fixture.tells_of_xattrs(file));
    let after = acl("u::rwx,u:7:rwx,g::r-x,m::rwx,o::rwx");
    assert_eq!(fixture.acl(file, ACCESS), Some(after.clone()));
    fixture.check();
    // Without the list the mode stays; one that says no more than the mode is none.
    fixture.mutate(remove(file, ACCESS)).unwrap();
    let attr = fixture.attr(file);
    assert_eq!((attr.mode, attr.has_xattrs), (0o4777, false));
    fixture.mutate(remove(file, ACCESS)).unwrap();
    assert!(!fixture.tells_of_xattrs(file), "there was none");
    fixture.mutate(set(file, ACCESS, &after)).unwrap();
    let minimal = acl("u::rw-,g::r--,o::---");
    fixture.mutate(set(file, ACCESS, &minimal)).unwrap();
    assert_eq!(fixture.attr(file).mode, 0o4640);
    assert_eq!(fixture.names(file), [""; 0]);
    fixture.check();
}

#[test]
fn what_is_made_in_a_directory_begins_with_its_default_list() {
    let mut fixture = Fixture::new();
    let dir = fixture.dir(ROOT, "d");
    let default = acl("u::rwx,u:7:rwx,g::r-x,m::rwx,o::---");
    fixture.mutate(set(dir, DEFAULT, &default)).unwrap();
    assert_eq!(fixture.attr(dir).mode, 0o755, "it is not about itself");
    let file = fixture.make(dir, "f", NewNode::Regular, 0o666, 0o077);
    assert_eq!((file.mode, file.has_xattrs), (0o660, true));
    let access = acl("u::rw-,u:7:rwx,g::r-x,m::rw-,o::---");
    assert_eq!(fixture.acl(file.ino, ACCESS), Some(access));
    assert_eq!(fixture.names(file.ino), [ACCESS]);
    let sub = fixture.make(dir, "s", NewNode::Directory, 0o755, 0o077);
    assert_eq!(sub.mode, 0o750);
    assert_eq!(fixture.acl(sub.ino, DEFAULT), Some(default.clone()));
    assert_eq!(fixture.names(sub.ino), [ACCESS, DEFAULT]);
    let link = fixture.make(dir, "l", NewNode::Symlink(b"x".to_vec()), 0o777, 0o077);
    assert_eq!((link.mode, link.has_xattrs), (0o777, false));
    fixture.check();
    // Without one the umask counts again.
    fixture.mutate(set(dir, DEFAULT, &[2, 0, 0, 0])).unwrap();
    let file = fixture.make(dir, "g", NewNode::Regular, 0o4666, 0o027);
    assert_eq!((file.mode, file.has_xattrs), (0o4640, false));
    // And what has lists goes like everything else.
    fixture.mutate(rmdir(dir, "s")).unwrap();
    assert_eq!(
        fixture.internal(Internal::Purge {
            inos: vec![sub.ino]
        }),
        {
            let remaining = Vec::new();
            Ok(Reply::Purged { remaining })
        }
    );
    fixture.check();
}

#[test]
fn lists_are_refused_where_they_mean_nothing_and_to_strangers() {
    let mut fixture = Fixture::new();
    let list = acl("u::rw-,u:7:rwx,g::r--,m::rwx,o::---");
    let (file, dir) = (fixture.file(ROOT, "f"), fixture.dir(ROOT, "d"));
    let link = fixture.create(ROOT, "l", NewNode::Symlink(b"x".to_vec()), 0o777);
    assert_eq!(fixture.refused(set(file, DEFAULT, &list)), Code::Access);
    fixture.mutate(set(file, DEFAULT, &[])).unwrap();
    assert_eq!(
        fixture.refused(set(link.ino, ACCESS, &list)),
        Code::Unsupported
    );
    for wrong in [
        &[2, 0, 0][..],
        &acl("u::rw-,g::r--"),
        &acl("o::---,u::rw-,g::r--"),
    ] {
        assert_eq!(fixture.refused(set(file, ACCESS, wrong)), Code::Invalid);
        fixture.as_user(9, 9);
        let refused = fixture.refused(set(dir, DEFAULT, wrong));
        assert!([Code::Invalid, Code::NotPermitted].contains(&refused));
        fixture.as_user(0, 0);
    }
    fixture.as_user(9, 9);
    assert_eq!(
        fixture.refused(set(file, ACCESS, &list)),
        Code::NotPermitted
    );
    assert_eq!(fixture.refused(remove(dir, DEFAULT)), Code::NotPermitted);
    fixture.as_user(0, 0);
    assert_eq!(
        fixture.refused(set(file, "system.x", b"1")),
        Code::Unsupported
    );
    fixture.check();
}

#[test]
fn set_group_id_goes_with_a_list_of_somebody_outside_the_group() {
    for (uid, groups, stays) in [(7, vec![], false), (7, vec![50], true), (0, vec![], true)] {
        let mut fixture = Fixture::new();
        let file = fixture.file(ROOT, "f");
        let owner = SetAttr {
            uid: Some(uid),
            gid: Some(50),
            ..SetAttr::default()
        };
        fixture.mutate(set_attr(file, owner)).unwrap();
        fixture.mutate(chmod(file, 0o2755)).unwrap();
        // The kernel says nothing of this, so it holds for a mount's callers as well.
        for trusted in [true, false] {
            fixture.caller = Caller {
                uid,
                gid: 7,
                groups: groups.clone(),
                trusted,
            };
            let list = acl("u::rwx,u:8:r-x,g::r-x,m::r-x,o::r-x");
            fixture.mutate(set(file, ACCESS, &list)).unwrap();
            assert_eq!(fixture.attr(file).mode & 0o2000 != 0, stays, "{uid}");
        }
    }
}

#[test]
fn the_checks_for_callers_without_a_kernel_know_lists() {
    let mut fixture = Fixture::new();
    let dir = fixture.dir(ROOT, "d");
    let file = fixture.file(dir, "f");
    let chunks = Query::Chunks {
        ino: file,
        first: lumeofs_base::ChunkIndex(0),
        count: 1,
    };
    fixture.mutate(chmod(dir, 0o700)).unwrap();
    fixture.mutate(chmod(file, 0o600)).unwrap();
    fixture.as_user(1000, 1000);
    assert_eq!(fixture.lookup(dir, "f"), Err(Code::Access));
    fixture.as_user(0, 0);
    let on_dir = acl("u::rwx,u:1000:-wx,g::---,g:60:r-x,m::rwx,o::---");
    fixture.mutate(set(dir, ACCESS, &on_dir)).unwrap();
    let on_file = acl("u::rw-,u:1000:rw-,g::---,m::r--,o::---");
    fixture.mutate(set(file, ACCESS, &on_file)).unwrap();
    fixture.as_user(1000, 1000);
    assert_eq!(fixture.lookup(dir, "f"), Ok(file));
    fixture.query(&chunks).unwrap();
    let write = Mutation::Append {
        ino: file,
        len: 1,
        clear_suid: true,
    };
    assert_eq!(fixture.refused(write), Code::Access, "the mask");
    fixture.file(dir, "new");
    fixture.as_user(1001, 60);
    assert_eq!(fixture.lookup(dir, "f"), Ok(file));
    assert_eq!(fixture.query(&chunks).unwrap_err().code, Code::Access);
    let refused = Mutation::Unlink {
        parent: dir,
        name: b"f".to_vec(),
    };
    assert_eq!(fixture.refused(refused), Code::Access);
    // With a mask of nothing the list is not looked at, and others are others.
    fixture.as_user(0, 0);
    fixture.mutate(chmod(dir, 0o701)).unwrap();
    fixture.as_user(1000, 1000);
    assert_eq!(fixture.lookup(dir, "f"), Ok(file));
    fixture.check();
}
