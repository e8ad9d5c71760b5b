//! Bits flip on the disks of members, which repair each other.

use crate::harness::{Cluster, block};
use lumeofs_base::NodeId;
use lumeofs_proto::data::{ChunkRequest, ScrubDisk};
use lumeofs_proto::frame::Op;
use std::fs::File;
use std::os::unix::fs::FileExt as _;

const CHUNK: u64 = 7;
/// Of the chunk, which goes around the log.
const BLOCKS: u64 = 160;

fn content() -> Vec<u8> {
    (0..BLOCKS).flat_map(|at| block(1000 + at)).collect()
}

fn written() -> Cluster {
    let cluster = Cluster::start();
    cluster.write(CHUNK, 0, &content());
    cluster.sync((0, 0)).unwrap();
    cluster
}

/// Where a block lies in the first extent file of a member.
fn place_of(cluster: &Cluster, node: NodeId, wanted: &[u8]) -> (File, u64) {
    let path = cluster.directory(node).join("chunks/extents/00000000.dat");
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut found = vec![0; 4096];
    let places = 0..file.metadata().unwrap().len() / 4096;
    let mut places = places.filter(|place| {
        file.read_exact_at(&mut found, place * 4096).unwrap();
        found == wanted
    });
    let place = places.next().expect("the block is on the disk");
    (file, place)
}

fn flip(cluster: &Cluster, node: NodeId, number: u64) {
    let wanted = block(1000 + number);
    let (file, place) = place_of(cluster, node, &wanted);
    file.write_all_at(&[!wanted[99]], place * 4096 + 99)
        .unwrap();
    file.sync_all().unwrap();
}

fn flip_checksum(cluster: &Cluster, node: NodeId, number: u64) {
    let (_, place) = place_of(cluster, node, &block(1000 + number));
    let path = cluster.directory(node).join("chunks/extents/00000000.crc");
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut sum = [0; 4];
    file.read_exact_at(&mut sum, place * 4).unwrap();
    file.write_all_at(&sum.map(|byte| !byte), place * 4)
        .unwrap();
    file.sync_all().unwrap();
}

/// Reads from a member itself, until it may answer.
fn read_from(cluster: &Cluster, node: NodeId) -> Vec<u8> {
    let mut data = Vec::new();
    cluster.until("a member answers a read", || {
        let asked = ChunkRequest {
            chunk: CHUNK,
            len: BLOCKS * 4096,
            ..cluster.request()
        };
        match cluster.call(node, Op::Read, asked, &[]) {
            Ok((_, read)) => data = read,
            // Damage that could not be repaired would be final.
            Err(error) => assert_ne!(error.code, lumeofs_base::Code::Io, "{error}"),
        }
        !data.is_empty()
    });
    data
}

fn disk(cluster: &Cluster, node: NodeId, start: bool) -> ScrubDisk {
    let mut disks = cluster.scrub(node, start);
    assert_eq!(disks.len(), 1);
    disks.remove(0)
}

#[test]
fn every_member_has_damage_in_the_same_chunk_and_each_is_repaired_by_the_others() {
    let cluster = written();
    let members = cluster.config().members;
    for (&node, number) in members.iter().zip([3, 4, 5]) {
        flip(&cluster, node, number);
        flip(&cluster, node, number + 100);
        flip_checksum(&cluster, node, number + 50);
    }
    let (by_read, by_scrub) = members.split_at(1);
    assert!(read_from(&cluster, by_read[0]) == content());
    for &node in &members {
        disk(&cluster, node, true);
    }
    for &node in &members {
        cluster.until("all is repaired", || {
            let disk = disk(&cluster, node, false);
            disk.state == "idle" && disk.repaired == 3 && disk.waiting == 0
        });
        assert_eq!(disk(&cluster, node, false).damaged, 3);
    }
    for &node in by_scrub {
        assert!(read_from(&cluster, node) == content());
    }
    assert_eq!(cluster.config().in_sync.len(), 3);
    cluster.assert_equal();
}

#[test]
fn a_part_of_a_damaged_block_is_overwritten_without_anybody_leaving_the_group() {
    let cluster = written();
    let config = cluster.config();
    for &node in &config.members {
        flip(&cluster, node, 20 + node.get() % 10);
    }
    let mut expected = content();
    for &node in &config.members {
        let at = (20 + node.get() % 10) * 4096 + 1000;
        cluster.write(CHUNK, at, b"a few bytes");
        expected[at as usize..][..11].copy_from_slice(b"a few bytes");
    }
    assert_eq!(cluster.config().epoch, config.epoch);
    for &node in &config.members {
        assert!(read_from(&cluster, node) == expected);
        // Whole blocks took the place of the damaged ones.
        cluster.until("nothing is left to repair", || {
            let disk = disk(&cluster, node, false);
            disk.damaged == 1 && disk.waiting == 0
        });
    }
}

#[test]
fn what_nobody_has_is_not_served_and_comes_back_with_a_member_that_has_it() {
    let mut cluster = written();
    let config = cluster.config();
    let away = cluster.secondary();
    cluster.stop(away);
    cluster.until("it is out of the group", || {
        !cluster.config().in_sync.contains(&away)
    });
    let damaged: Vec<_> = config
        .members
        .into_iter()
        .filter(|node| *node != away)
        .collect();
    for &node in &damaged {
        flip(&cluster, node, 9);
        disk(&cluster, node, true);
    }
    for &node in &damaged {
        cluster.until("the damage is found", || {
            let disk = disk(&cluster, node, false);
            disk.state == "idle" && disk.waiting == 1
        });
        let asked = ChunkRequest {
            chunk: CHUNK,
            offset: 9 * 4096,
            len: 10,
            ..cluster.request()
        };
        cluster.until("the read is refused", || {
            let read = cluster.call(node, Op::Read, asked.clone(), &[]);
            read.unwrap_err().code == lumeofs_base::Code::Io
        });
    }
    cluster.restart(away);
    for &node in &damaged {
        cluster.until("it is repaired", || {
            disk(&cluster, node, false).waiting == 0
        });
        assert!(read_from(&cluster, node) == content());
    }
}
