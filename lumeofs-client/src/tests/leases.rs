//! Answers from memory, and how long they may be given.

use super::cluster::{APPEND, Answer, Cluster, cx};
use super::until;
use crate::client::{Client, Context, OnOutage, WriteMode};
use lumeofs_base::{Attr, Code, InodeId, Timestamp};
use lumeofs_lease::TERM_OF_HOLDER;
use lumeofs_meta::op::{Caller, Mutation, NewNode, RenameMode, SetAttr, SetTime, XattrMode};
use lumeofs_proto::frame::Op;
use lumeofs_proto::meta::OpenReport;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const ROOT: InodeId = InodeId::ROOT;

/// A client that takes part in leases.
fn client(cluster: &Cluster) -> Arc<Client> {
    let client = cluster.client();
    until("leases count", || client.lease_stats().is_valid);
    client
}

fn make(client: &Client, name: &[u8], node: NewNode) -> Attr {
    let made = client.create(cx(), ROOT, name, node, 0o755, true);
    let attr = made.unwrap().0;
    if attr.kind == lumeofs_base::FileKind::Regular {
        client.release(attr.ino);
    }
    attr
}

fn names(client: &Client, ino: InodeId) -> Vec<Vec<u8>> {
    let mut names = Vec::new();
    let mut cookie = 0;
    loop {
        let (entries, more) = client.readdir(cx(), ino, cookie, 3).unwrap();
        cookie = entries.last().map_or(cookie, |last| last.cookie);
        names.extend(entries.into_iter().map(|entry| entry.name));
        if !more {
            names.sort();
            return names;
        }
    }
}

/// How many questions the leader was asked.
fn asked(client: &Client) -> u64 {
    let stats = client.lease_stats();
    stats.queries.iter().map(|lookups| lookups.asked).sum()
}

/// A kind of change, what makes it, and whether it is seen.
type Step<'a> = (&'a str, &'a dyn Fn(), &'a dyn Fn() -> bool);

fn is_absent(client: &Client, name: &[u8]) -> bool {
    match client.lookup(cx(), ROOT, name) {
        Ok(_) => false,
        Err(error) => {
            assert_eq!(error.code, Code::NotFound);
            true
        }
    }
}

#[test]
fn what_was_asked_once_is_answered_from_memory() {
    let cluster = Cluster::start(1);
    let (a, b) = (client(&cluster), client(&cluster));
    let file = make(&a, b"f", NewNode::Regular);
    let link = make(&a, b"l", NewNode::Symlink(b"target".to_vec()));
    for n in 0..8 {
        make(&a, format!("d{n}").as_bytes(), NewNode::Directory);
    }
    a.setxattr(cx(), file.ino, b"user.x", b"1", XattrMode::Set)
        .unwrap();
    let look = || {
        assert_eq!(b.lookup(cx(), ROOT, b"f").unwrap().ino, file.ino);
        assert!(is_absent(&b, b"nothing"));
        assert_eq!(b.getattr(cx(), file.ino).unwrap().ino, file.ino);
        assert_eq!(names(&b, ROOT).len(), 10);
        assert_eq!(b.readlink(cx(), link.ino).unwrap(), b"target");
        assert_eq!(b.getxattr(cx(), file.ino, b"user.x").unwrap(), b"1");
        let missing = b.getxattr(cx(), file.ino, b"user.y").unwrap_err();
        assert_eq!(missing.code, Code::NoData);
        assert_eq!(b.listxattr(cx(), file.ino).unwrap(), [b"user.x"]);
    };
    look();
    let before = asked(&b);
    assert!(before > 0);
    look();
    assert_eq!(asked(&b), before);
    assert!(b.lease_stats().of("lookup").from_memory >= 2);
}

#[test]
fn attributes_tell_whether_there_are_extended_ones() {
    let cluster = Cluster::start(1);
    let (a, b) = (client(&cluster), client(&cluster));
    let dir = make(&a, b"dir", NewNode::Directory);
    let access = b"system.posix_acl_access";
    // u::rwx,u:0:rwx,g::r-x,m::rwx,o::r-x
    let mut list = vec![2, 0, 0, 0];
    for (tag, allows, id) in [
        (1, 7, 255),
        (2, 7, 0),
        (4, 5, 255),
        (16, 7, 255),
        (32, 5, 255),
    ] {
        list.extend([tag, 0, allows, 0, id, id, id, id]);
    }
    let new = |name| {
        let made = a.create(cx(), dir.ino, name, NewNode::Regular, 0o666, true);
        let ino = made.unwrap().0.ino;
        a.release(ino);
        ino
    };
    let none = |client: &Client, ino| {
        let before = asked(client);
        let missing = client.getxattr(cx(), ino, access).unwrap_err();
        assert_eq!(missing.code, Code::NoData);
        assert!(client.listxattr(cx(), ino).unwrap().is_empty());
        assert_eq!(asked(client), before, "its attributes say so");
    };
    let bare = new(b"bare");
    none(&a, bare);
    b.lookup(cx(), dir.ino, b"bare").unwrap();
    none(&b, bare);
    let default = b"system.posix_acl_default";
    b.setxattr(cx(), dir.ino, default, &list, XattrMode::Set)
        .unwrap();
    let inherits = new(b"inherits");
    for client in [&a, &b] {
        let attr = client.lookup(cx(), dir.ino, b"inherits").unwrap();
        assert_eq!((attr.ino, attr.mode), (inherits, 0o664));
        let value = client.getxattr(cx(), inherits, access).unwrap();
        assert_eq!((value.len(), value[22]), (list.len(), 5));
        assert_eq!(client.listxattr(cx(), inherits).unwrap(), [access]);
    }
    // A mode that is set while there is data in memory changes the list at once.
    a.open(cx(), inherits, false).unwrap();
    a.write(cx(), inherits, 0, b"data", WriteMode::default())
        .unwrap();
    let set = SetAttr {
        mode: Some(0o600),
        ..SetAttr::default()
    };
    a.setattr(cx(), inherits, set).unwrap();
    for client in [&a, &b] {
        let value = client.getxattr(cx(), inherits, access).unwrap();
        assert_eq!(value[30], 0, "the mask");
    }
    a.release(inherits);
    // One that was set there before does not come back with the data.
    a.open(cx(), bare, false).unwrap();
    a.write(cx(), bare, 0, b"data", WriteMode::default())
        .unwrap();
    a.setattr(
        cx(),
        bare,
        SetAttr {
            mode: Some(0o600),
            ..SetAttr::default()
        },
    )
    .unwrap();
    a.setxattr(cx(), bare, access, &list, XattrMode::Set)
        .unwrap();
    a.fsync(cx(), bare, false).unwrap();
    for client in [&a, &b] {
        assert_eq!(client.getattr(cx(), bare).unwrap().mode, 0o775);
    }
    a.release(bare);
}

#[test]
fn what_one_client_changes_the_other_sees_at_once() {
    let cluster = Cluster::start(1);
    let (a, b) = (client(&cluster), client(&cluster));
    let file = make(&a, b"f", NewNode::Regular);
    let dir = make(&a, b"dir", NewNode::Directory);
    // Warms all there is.
    let warm = || {
        for name in names(&b, ROOT) {
            let attr = b.lookup(cx(), ROOT, &name).unwrap();
            b.getattr(cx(), attr.ino).unwrap();
            b.listxattr(cx(), attr.ino).unwrap();
            b.getxattr(cx(), attr.ino, b"user.x").ok();
        }
        for name in [b"g", b"h", b"s", b"l"] {
            b.lookup(cx(), ROOT, name).ok();
        }
    };
    let changes: &[Step<'_>] = &[
        (
            "create",
            &|| {
                make(&a, b"g", NewNode::Regular);
            },
            &|| !is_absent(&b, b"g") && names(&b, ROOT).len() == 3,
        ),
        (
            "symlink",
            &|| {
                make(&a, b"s", NewNode::Symlink(b"x".to_vec()));
            },
            &|| !is_absent(&b, b"s"),
        ),
        (
            "link",
            &|| {
                a.link(cx(), file.ino, ROOT, b"l").unwrap();
            },
            &|| b.getattr(cx(), file.ino).unwrap().nlink == 2 && !is_absent(&b, b"l"),
        ),
        (
            "rename",
            &|| {
                a.rename(cx(), ROOT, b"g", ROOT, b"h", RenameMode::Replace)
                    .unwrap();
            },
            &|| is_absent(&b, b"g") && !is_absent(&b, b"h"),
        ),
        (
            "rename over",
            &|| {
                a.rename(cx(), ROOT, b"h", ROOT, b"l", RenameMode::Replace)
                    .unwrap();
            },
            &|| {
                let other = b.lookup(cx(), ROOT, b"l").unwrap().ino;
                other != file.ino && b.getattr(cx(), file.ino).unwrap().nlink == 1
            },
        ),
        (
            "rename into",
            &|| {
                a.rename(cx(), ROOT, b"l", dir.ino, b"in", RenameMode::Replace)
                    .unwrap();
            },
            &|| is_absent(&b, b"l") && b.getattr(cx(), dir.ino).unwrap().size == 1,
        ),
        (
            "unlink",
            &|| a.unlink(cx(), dir.ino, b"in").unwrap(),
            &|| names(&b, dir.ino).is_empty(),
        ),
        ("rmdir", &|| a.rmdir(cx(), ROOT, b"dir").unwrap(), &|| {
            is_absent(&b, b"dir")
        }),
        (
            "mode",
            &|| {
                let set = SetAttr {
                    mode: Some(0o600),
                    ..SetAttr::default()
                };
                a.setattr(cx(), file.ino, set).unwrap();
            },
            &|| b.lookup(cx(), ROOT, b"f").unwrap().mode == 0o600,
        ),
        (
            "time",
            &|| {
                let set = SetAttr {
                    mtime: Some(SetTime::At(Timestamp { secs: 7, nanos: 8 })),
                    ..SetAttr::default()
                };
                a.setattr(cx(), file.ino, set).unwrap();
            },
            &|| b.getattr(cx(), file.ino).unwrap().mtime.secs == 7,
        ),
        (
            "setxattr",
            &|| {
                a.setxattr(cx(), file.ino, b"user.x", b"1", XattrMode::Set)
                    .unwrap();
            },
            &|| b.getxattr(cx(), file.ino, b"user.x").unwrap() == b"1",
        ),
        (
            "removexattr",
            &|| a.removexattr(cx(), file.ino, b"user.x").unwrap(),
            &|| b.listxattr(cx(), file.ino).unwrap().is_empty(),
        ),
        (
            "write",
            &|| {
                a.write(cx(), file.ino, 0, b"12345", WriteMode::default())
                    .unwrap();
            },
            &|| {
                let mut buf = [0; 9];
                let count = b.read(cx(), file.ino, 0, &mut buf).unwrap();
                b.getattr(cx(), file.ino).unwrap().size == 5 && &buf[..count] == b"12345"
            },
        ),
        (
            "overwrite",
            &|| {
                a.write(cx(), file.ino, 1, b"x", WriteMode::default())
                    .unwrap();
            },
            &|| {
                let mut buf = [0; 9];
                let count = b.read(cx(), file.ino, 0, &mut buf).unwrap();
                &buf[..count] == b"1x345"
            },
        ),
        (
            "append",
            &|| {
                a.write(cx(), file.ino, 0, b"67", APPEND).unwrap();
            },
            &|| b.getattr(cx(), file.ino).unwrap().size == 7,
        ),
        (
            "truncate",
            &|| {
                let set = SetAttr {
                    size: Some(2),
                    ..SetAttr::default()
                };
                a.setattr(cx(), file.ino, set).unwrap();
            },
            &|| b.getattr(cx(), file.ino).unwrap().size == 2,
        ),
    ];
    for (what, change, is_seen) in changes {
        warm();
        let before = asked(&b);
        warm();
        assert_eq!(asked(&b), before, "before {what}");
        change();
        assert!(is_seen(), "{what}");
    }
    let polls = b.lease_stats().polls;
    assert!(polls.attributes > 0 && polls.names > 0 && polls.xattrs > 0);
}

#[test]
fn a_change_of_its_own_is_in_memory_when_it_returns() {
    let cluster = Cluster::start(1);
    let a = client(&cluster);
    let dir = make(&a, b"d", NewNode::Directory);
    let (sub, _) = a
        .create(cx(), dir.ino, b"sub", NewNode::Directory, 0o755, true)
        .unwrap();
    let before = asked(&a);
    // A new directory is known to be empty but for what was made in it.
    assert_eq!(names(&a, dir.ino), [b"sub"]);
    assert_eq!(a.lookup(cx(), dir.ino, b"sub").unwrap(), sub);
    assert!(names(&a, sub.ino).is_empty());
    assert_eq!(asked(&a), before);
    a.rmdir(cx(), dir.ino, b"sub").unwrap();
    assert_eq!(names(&a, dir.ino), [b""; 0]);
    let gone = a.lookup(cx(), dir.ino, b"sub").unwrap_err();
    assert_eq!(gone.code, Code::NotFound);
    assert_eq!(asked(&a), before);
}

#[test]
fn who_hears_nothing_of_its_polls_answers_nothing_from_memory_in_time() {
    let cluster = Cluster::start(1);
    let a = client(&cluster);
    let file = make(&a, b"f", NewNode::Regular);
    a.getattr(cx(), file.ino).unwrap();
    let start = crate::wait::now();
    cluster.world.state.lock().is_mute = true;
    // Waits until nobody relies on the old mode, however long nobody hears of the new one.
    let set = SetAttr {
        mode: Some(0o600),
        ..SetAttr::default()
    };
    let ino = file.ino;
    cluster
        .world
        .mutate(Mutation::SetAttr { ino, set })
        .unwrap();
    assert!(crate::wait::now() - start < TERM_OF_HOLDER * 2);
    assert!(!a.lease_stats().is_valid);
    assert_eq!(a.getattr(cx(), file.ino).unwrap().mode, 0o600);
    assert_eq!(a.lease_stats().lapses, 1);
    cluster.world.state.lock().is_mute = false;
    until("leases count again", || a.lease_stats().is_valid);
    a.getattr(cx(), file.ino).unwrap();
    let before = asked(&a);
    a.getattr(cx(), file.ino).unwrap();
    assert_eq!(asked(&a), before);
}

#[test]
fn a_mutation_whose_caller_gave_up_goes_on_and_what_it_made_is_released() {
    let cluster = Cluster::start(1);
    let a = cluster.client_with(OnOutage::Block(None));
    until("leases count", || a.lease_stats().is_valid);
    assert!(is_absent(&a, b"f"));
    let hit = Arc::new(AtomicBool::new(false));
    let told = hit.clone();
    cluster.masters[0].once(Op::Mutate, move |_, _| {
        told.store(true, Ordering::SeqCst);
        Answer::Hang
    });
    let interrupted = || hit.load(Ordering::SeqCst);
    let given_up = Context {
        interrupted: &interrupted,
        ..cx()
    };
    let made = a.create(given_up, ROOT, b"f", NewNode::Regular, 0o644, true);
    assert_eq!(made.unwrap_err().code, Code::Interrupted);
    assert_eq!(a.lease_stats().finished_later, 1);
    until("the file is there", || !is_absent(&a, b"f"));
    let state = cluster.world.state.lock();
    let sequences: Vec<u64> = state
        .mutations
        .iter()
        .map(|(sequence, _)| *sequence)
        .collect();
    assert_eq!(sequences, [1]);
    drop(state);
    until("the open that nobody has is taken back", || {
        let state = cluster.world.state.lock();
        let last = state.reports.iter().rfind(|report| report.complete);
        last.is_some_and(|report| report.opened.is_empty())
    });
}

#[test]
fn a_file_that_is_open_under_a_lease_is_named_when_it_loses_its_last_name() {
    let cluster = Cluster::start(1);
    let (a, b) = (client(&cluster), client(&cluster));
    let file = make(&a, b"f", NewNode::Regular);
    b.lookup(cx(), ROOT, b"f").unwrap();
    let reports = || {
        let state = cluster.world.state.lock();
        let opened = state.reports.iter().map(|report| report.opened.len());
        opened.sum::<usize>()
    };
    let before = reports();
    b.open(cx(), file.ino, false).unwrap();
    assert_eq!(reports(), before);
    assert_eq!(b.lease_stats().opens.from_memory, 1);
    a.unlink(cx(), ROOT, b"f").unwrap();
    assert!(cluster.world.state.lock().found_open.contains(&file.ino));
    // The leader knows, so it is told of the release.
    b.release(file.ino);
    until("the release is reported", || {
        let state = cluster.world.state.lock();
        let mut released = state.reports.iter().flat_map(|report| &report.released);
        released.any(|ino| *ino == file.ino.get())
    });
}

#[test]
fn who_takes_the_last_name_of_a_file_that_it_has_open_is_known_to() {
    let cluster = Cluster::start(1);
    let (a, b) = (client(&cluster), client(&cluster));
    let open = make(&a, b"f", NewNode::Regular).ino;
    let closed = make(&a, b"g", NewNode::Regular).ino;
    b.lookup(cx(), ROOT, b"f").unwrap();
    b.lookup(cx(), ROOT, b"g").unwrap();
    b.open(cx(), open, false).unwrap();
    b.unlink(cx(), ROOT, b"f").unwrap();
    b.unlink(cx(), ROOT, b"g").unwrap();
    assert!(cluster.world.state.lock().found_open.contains(&open));
    let released = |ino: InodeId| {
        let state = cluster.world.state.lock();
        let own = |report: &&OpenReport| report.session == b.link.window.session().get();
        let mut released = state
            .reports
            .iter()
            .filter(own)
            .flat_map(|report| &report.released);
        released.any(|other| *other == ino.get())
    };
    until("what is not open is said not to be", || released(closed));
    assert!(!released(open));
    b.release(open);
    until("the release is reported", || released(open));
}

#[test]
fn writers_of_one_file_hand_the_right_over_or_share_it() {
    let cluster = Cluster::start(1);
    let (a, b) = (client(&cluster), client(&cluster));
    let file = make(&a, b"f", NewNode::Regular);
    for n in 0..20u64 {
        let (writer, reader) = if n % 2 == 0 { (&a, &b) } else { (&b, &a) };
        let data = [n as u8 + 1; 10];
        writer
            .write(cx(), file.ino, n * 10, &data, WriteMode::default())
            .unwrap();
        let mut buf = [0; 10];
        let count = reader.read(cx(), file.ino, n * 10, &mut buf).unwrap();
        assert_eq!((count, buf), (10, data));
        assert_eq!(reader.getattr(cx(), file.ino).unwrap().size, n * 10 + 10);
    }
}

#[test]
fn nothing_of_a_session_that_has_ended_is_in_memory() {
    let cluster = Cluster::start(1);
    let a = client(&cluster);
    let file = make(&a, b"f", NewNode::Regular);
    a.getattr(cx(), file.ino).unwrap();
    super::meta::end_sessions(&cluster.world);
    until("the session is replaced", || a.lost_sessions() > 0);
    until("leases count again", || a.lease_stats().is_valid);
    let before = asked(&a);
    a.getattr(cx(), file.ino).unwrap();
    assert_eq!(asked(&a), before + 1);
}

#[test]
fn callers_whose_rights_the_leader_checks_are_answered_by_it() {
    let cluster = Cluster::start(1);
    let a = client(&cluster);
    let file = make(&a, b"f", NewNode::Regular);
    a.getattr(cx(), file.ino).unwrap();
    let before = asked(&a);
    let other = Caller {
        uid: 1000,
        ..Caller::default()
    };
    let unchecked = Context {
        caller: &other,
        ..cx()
    };
    a.getattr(unchecked, file.ino).unwrap();
    a.getattr(unchecked, file.ino).unwrap();
    assert_eq!(asked(&a), before + 2);
}
