//! Walks through directories: what they ask the leader.

use super::cluster::{Cluster, cx};
use super::files::{file, put};
use super::kernel::read;
use super::until;
use crate::client::Client;
use lumeofs_base::InodeId;
use lumeofs_meta::op::NewNode;
use std::sync::Arc;

const FILES: usize = 700;

fn walker(cluster: &Cluster) -> Arc<Client> {
    let client = cluster.client();
    until("leases count", || client.lease_stats().is_valid);
    client
}

fn name(number: usize) -> String {
    format!("file {number}")
}

/// Queries that went to the leader, by kind.
fn asked(client: &Client, kinds: &[&str]) -> u64 {
    let stats = client.lease_stats();
    kinds.iter().map(|kind| stats.of(kind).asked).sum()
}

/// Looks all names up, has their attributes and extended attributes, and reads the files.
fn walk(client: &Client, names: impl IntoIterator<Item = Vec<u8>>) {
    for name in names {
        let attr = client.lookup(cx(), InodeId::ROOT, &name).unwrap();
        assert_eq!(client.getattr(cx(), attr.ino).unwrap(), attr);
        assert!(client.getxattr(cx(), attr.ino, b"user.x").is_err());
        client.open(cx(), attr.ino, false).unwrap();
        assert_eq!(read(client, attr.ino), name);
        client.release(attr.ino);
    }
}

#[test]
fn a_walk_asks_for_many_inodes_at_once() {
    let cluster = Cluster::start(1);
    let maker = walker(&cluster);
    for number in 0..FILES {
        let name = name(number);
        let ino = file(&maker, &name);
        put(&maker, ino, 0, name.as_bytes());
        maker.fsync(cx(), ino, false).unwrap();
        maker.release(ino);
    }
    maker.close().unwrap();

    // In the order of their making, as a program that knows the names.
    let by_name = walker(&cluster);
    walk(&by_name, (0..FILES).map(|number| name(number).into_bytes()));
    assert_eq!(asked(&by_name, &["get_attr", "open"]), 0);
    let questions = asked(&by_name, &["lookup", "read_dir", "get_xattr", "chunks"]);
    assert!(questions < 40, "{:?}", by_name.lease_stats());

    // As a program that lists.
    let lister = walker(&cluster);
    let (entries, more) = lister.readdir(cx(), InodeId::ROOT, 0, 1024).unwrap();
    assert_eq!((entries.len(), more), (FILES, false));
    walk(&lister, entries.into_iter().map(|entry| entry.name));
    let kinds = ["lookup", "get_attr", "get_xattr", "open", "chunks"];
    assert_eq!(asked(&lister, &kinds), 0, "{:?}", lister.lease_stats());
    assert_eq!(asked(&lister, &["read_dir"]), 3);
}

#[test]
fn a_walk_through_a_tree_asks_for_many_directories_at_once() {
    let cluster = Cluster::start(1);
    let (maker, reader) = (walker(&cluster), walker(&cluster));
    let mut last = InodeId::ROOT;
    let make = |client: &Client, parent, name: &[u8]| {
        let made = client.create(cx(), parent, name, NewNode::Directory, 0o755, true);
        made.unwrap().0.ino
    };
    for number in 0..60 {
        let dir = make(&maker, InodeId::ROOT, name(number).as_bytes());
        last = make(&maker, dir, b"inner");
    }
    maker.close().unwrap();
    let list = |ino| reader.readdir(cx(), ino, 0, 1024).unwrap().0;
    let dirs = list(InodeId::ROOT);
    assert_eq!(dirs.len(), 60);
    for dir in &dirs {
        let inner = list(dir.ino);
        assert_eq!(inner.len(), 1);
        assert!(list(inner[0].ino).is_empty());
        assert_eq!(reader.getattr(cx(), inner[0].ino).unwrap().nlink, 2);
    }
    assert_eq!(asked(&reader, &["read_dir"]), 1);
    assert_eq!(asked(&reader, &["lookup", "get_attr"]), 0);

    // Somebody else changes one of those that came along.
    let other = walker(&cluster);
    make(&other, last, b"new");
    assert_eq!(list(last).len(), 1);
}
