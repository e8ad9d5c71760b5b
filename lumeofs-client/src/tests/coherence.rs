//! Several clients that cache all they may, against one model: whoever looks sees what was done last, by whomever.

use super::cluster::{APPEND, Cluster, cx};
use super::until;
use crate::client::{Client, Range, WriteMode};
use crate::pages::testing::Random;
use lumeofs_base::{Code, FileKind, InodeId};
use lumeofs_meta::op::{NewNode, RenameMode, SetAttr, XattrMode};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const ROOT: InodeId = InodeId::ROOT;

/// A file of the model.
#[derive(Clone, Default)]
struct File {
    ino: InodeId,
    data: Vec<u8>,
    mode: u16,
    xattr: Option<Vec<u8>>,
}

fn clients(cluster: &Cluster, count: usize) -> Vec<Arc<Client>> {
    let clients: Vec<_> = (0..count).map(|_| cluster.client()).collect();
    for client in &clients {
        until("leases count", || client.lease_stats().is_valid);
    }
    clients
}

fn size(size: u64) -> SetAttr {
    SetAttr {
        size: Some(size),
        ..SetAttr::default()
    }
}

fn name(random: &mut Random) -> Vec<u8> {
    vec![b'a' + random.below(5) as u8]
}

/// Compares what a client sees of a name, or of all, with the model.
fn check(client: &Client, random: &mut Random, model: &BTreeMap<Vec<u8>, File>, what: &str) {
    let name = name(random);
    match (client.lookup(cx(), ROOT, &name), model.get(&name)) {
        (Ok(attr), Some(file)) => {
            let seen = client.getattr(cx(), file.ino).unwrap();
            assert_eq!((attr.ino, seen.mode), (file.ino, file.mode), "{what}");
            assert_eq!(attr.size, file.data.len() as u64, "{what}");
            assert_eq!(seen.size, file.data.len() as u64, "{what}");
            let mut buf = vec![0; file.data.len() + 10];
            let count = client.read(cx(), file.ino, 0, &mut buf).unwrap();
            assert!(buf[..count] == file.data, "{what}: data");
            let xattr = client.getxattr(cx(), file.ino, b"user.x").ok();
            assert_eq!(xattr, file.xattr, "{what}");
        }
        (Err(error), None) => assert_eq!(error.code, Code::NotFound, "{what}"),
        (seen, _) => panic!("{what}: {seen:?}"),
    }
    let (entries, _) = client.readdir(cx(), ROOT, 0, 100).unwrap();
    let mut seen: Vec<_> = entries.into_iter().map(|entry| entry.name).collect();
    seen.sort();
    assert!(seen.iter().eq(model.keys()), "{what}: {seen:?}");
}

/// One random call of a client, and the same to the model.
fn act(client: &Client, random: &mut Random, model: &mut BTreeMap<Vec<u8>, File>) -> &'static str {
    let (name, to) = (name(random), name(random));
    let Some(mut file) = model.get(&name).cloned() else {
        let made = client.create(cx(), ROOT, &name, NewNode::Regular, 0o644, true);
        let (attr, _) = made.unwrap();
        assert_eq!(attr.kind, FileKind::Regular);
        client.release(attr.ino);
        let file = File {
            ino: attr.ino,
            mode: 0o644,
            ..File::default()
        };
        model.insert(name, file);
        return "create";
    };
    let ino = file.ino;
    let byte = 1 + random.below(250) as u8;
    let (offset, len) = (random.below(30_000), 1 + random.below(10_000));
    let end = (offset + len) as usize;
    let what = match random.below(12) {
        0 => {
            client.unlink(cx(), ROOT, &name).unwrap();
            model.remove(&name);
            return "unlink";
        }
        1 => {
            let mode = RenameMode::Replace;
            client.rename(cx(), ROOT, &name, ROOT, &to, mode).unwrap();
            model.remove(&name);
            model.insert(to, file);
            return "rename";
        }
        2 => {
            file.mode = 0o600 + u16::from(byte % 64);
            let set = SetAttr {
                mode: Some(file.mode),
                ..SetAttr::default()
            };
            client.setattr(cx(), ino, set).unwrap();
            "chmod"
        }
        3 => {
            client
                .setxattr(cx(), ino, b"user.x", &[byte], XattrMode::Set)
                .unwrap();
            file.xattr = Some(vec![byte]);
            "setxattr"
        }
        4 => {
            file.data.resize(offset as usize, 0);
            client.setattr(cx(), ino, size(offset)).unwrap();
            "truncate"
        }
        5 => {
            let data = vec![byte; len as usize];
            let written = client.write(cx(), ino, 0, &data, APPEND);
            assert_eq!(written.unwrap().offset, file.data.len() as u64);
            file.data.extend(data);
            "append"
        }
        6 => {
            client
                .allocate(cx(), ino, offset, len, Range::Punch)
                .unwrap();
            let until = end.min(file.data.len());
            file.data[until.min(offset as usize)..until].fill(0);
            "punch"
        }
        7 => {
            client.fsync(cx(), ino, byte.is_multiple_of(2)).unwrap();
            "fsync"
        }
        _ => {
            file.data.resize(file.data.len().max(end), 0);
            file.data[offset as usize..end].fill(byte);
            let data = vec![byte; len as usize];
            client
                .write(cx(), ino, offset, &data, WriteMode::default())
                .unwrap();
            "write"
        }
    };
    model.insert(name, file);
    what
}

#[test]
fn random_calls_of_three_clients_are_seen_by_all_at_once() {
    for seed in 1..4 {
        let cluster = Cluster::start(1);
        let clients = clients(&cluster, 3);
        let (mut random, mut model) = (Random(seed), BTreeMap::new());
        for step in 0..300 {
            let actor = random.below(3) as usize;
            let what = act(&clients[actor], &mut random, &mut model);
            let viewer = random.below(3) as usize;
            let what = format!("seed {seed}, step {step}: {what} by {actor}, seen by {viewer}");
            check(&clients[viewer], &mut random, &model, &what);
        }
        for client in &clients {
            let stats = client.lease_stats();
            assert!(stats.of("lookup").from_memory > 0, "{stats:?}");
            client.close().unwrap();
        }
    }
}

#[test]
fn a_reader_never_sees_an_older_write_than_one_that_had_ended() {
    let cluster = Cluster::start(1);
    let clients = clients(&cluster, 3);
    let (attr, _) = clients[0]
        .create(cx(), ROOT, b"f", NewNode::Regular, 0o644, true)
        .unwrap();
    let ino = attr.ino;
    let write = |client: &Client, number: u64| {
        client
            .write(cx(), ino, 0, &number.to_le_bytes(), WriteMode::default())
            .unwrap();
    };
    write(&clients[0], 0);
    let (written, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1..300 {
                write(&clients[number as usize % 2], number);
                written.store(number, Ordering::SeqCst);
            }
            is_over.store(true, Ordering::SeqCst);
        });
        for client in &clients {
            let (written, is_over) = (&written, &is_over);
            scope.spawn(move || {
                let mut last = 0;
                while !is_over.load(Ordering::SeqCst) {
                    let least = written.load(Ordering::SeqCst);
                    let mut buf = [0; 8];
                    assert_eq!(client.read(cx(), ino, 0, &mut buf).unwrap(), 8);
                    let seen = u64::from_le_bytes(buf);
                    assert!(seen >= least && seen >= last, "{seen}: {least}, {last}");
                    last = seen;
                }
            });
        }
    });
}

#[test]
fn appends_of_several_clients_leave_no_gap_and_lose_nothing() {
    let cluster = Cluster::start(1);
    let clients = clients(&cluster, 3);
    let (attr, _) = clients[0]
        .create(cx(), ROOT, b"log", NewNode::Regular, 0o644, true)
        .unwrap();
    std::thread::scope(|scope| {
        for (client, byte) in clients.iter().zip(1u8..) {
            scope.spawn(move || {
                for _ in 0..40 {
                    let record = [byte; 16];
                    client.write(cx(), attr.ino, 0, &record, APPEND).unwrap();
                }
            });
        }
    });
    let mut buf = vec![0; 5000];
    let count = clients[1].read(cx(), attr.ino, 0, &mut buf).unwrap();
    assert_eq!(count, 3 * 40 * 16);
    let mut counts = [0; 4];
    for record in buf[..count].chunks(16) {
        assert!(record.iter().all(|byte| *byte == record[0]), "{record:?}");
        counts[record[0] as usize] += 1;
    }
    assert_eq!(counts, [0, 40, 40, 40]);
}
