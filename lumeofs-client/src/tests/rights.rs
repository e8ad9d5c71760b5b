//! What a writer has in memory, through changes of its rights: leaders and sessions that end, others that want the file.

use super::cluster::{Answer, Cluster, cx};
use super::files::{file, get};
use super::until;
use crate::client::{Client, WriteMode};
use lumeofs_base::InodeId;
use lumeofs_proto::frame::Op;

fn write(client: &Client, ino: InodeId, offset: u64, data: &[u8]) {
    let written = client.write(cx(), ino, offset, data, WriteMode::default());
    written.unwrap();
}

fn read(client: &Client, ino: InodeId) -> Vec<u8> {
    let mut buf = vec![0; 1000];
    let count = client.read(cx(), ino, 0, &mut buf).unwrap();
    buf.truncate(count);
    buf
}

#[test]
fn what_was_written_over_and_is_not_sent_outlives_the_leader_that_knows_size_and_time() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    let ino = file(&client, "f");
    write(&client, ino, 0, b"old!");
    client.fsync(cx(), ino, false).unwrap();
    for node in &cluster.nodes {
        node.hook(|frame, _| (frame.fixed.op == Op::Write).then_some(Answer::Drop));
    }
    write(&client, ino, 0, b"new!");
    let link = &client.link;
    let (asker, inode) = (link.asker(&cx()), link.inodes.get(ino));
    let pages = link.pages.file(ino);
    assert!(link.publish_local(&asker, &inode, &pages, false).unwrap());
    assert!(pages.look(|state| state.local.as_ref().unwrap().is_published()));
    let polls = client.lease_stats().polls.answered;
    cluster.world.elect();
    until("the lease is asserted", || {
        let stats = client.lease_stats();
        stats.polls.answered >= polls + 3 && stats.is_valid
    });
    for node in &cluster.nodes {
        node.hook(|_, _| None);
    }
    assert_eq!(read(&client, ino), b"new!");
    client.fsync(cx(), ino, false).unwrap();
    assert!(link.local_state(ino).unwrap().1);
    assert_eq!(get(&cluster.client(), ino, 0, 10), b"new!");
}
