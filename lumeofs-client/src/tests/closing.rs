//! What a client that ends still does, and what it says of what is lost.

use super::cached::{sync, write};
use super::cluster::{Answer, Cluster};
use super::files::{file, get};
use crate::wait::now;
use lumeofs_base::Code;
use lumeofs_base::limits::LEAVE_PATIENCE;
use lumeofs_proto::data::ChunkRequest;
use lumeofs_proto::frame::Op;
use std::time::Duration;

#[test]
fn the_end_waits_as_long_as_anything_moves_and_a_file_that_does_not_stops_no_other() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    let stuck = file(&client, "stuck");
    let slow: Vec<_> = (0..8).map(|n| file(&client, &format!("{n}"))).collect();
    for node in &cluster.nodes {
        node.hook(move |frame, world| {
            let asked: ChunkRequest = frame.decode().unwrap();
            if frame.fixed.op != Op::Write {
                return None;
            }
            if asked.part.is_some_and(|part| part.inode == stuck.get()) {
                return Some(Answer::Drop);
            }
            let answer = world.answer(frame).unwrap();
            Some(Answer::Later(Box::new(move |_| {
                std::thread::sleep(Duration::from_millis(1200));
                answer
            })))
        });
    }
    write(&client, stuck, 0, b"stuck");
    for ino in &slow {
        write(&client, *ino, 0, b"slow");
    }
    let began = now();
    let lost = client.close().unwrap_err();
    let took = now() - began;
    assert_eq!(lost.code, Code::Io);
    assert!(lost.context.contains("of 1 files 5 bytes"), "{lost}");
    // Four at a time, then as long as nothing has moved.
    assert!(
        took >= LEAVE_PATIENCE + Duration::from_millis(1200),
        "{took:?}"
    );
    assert!(took < LEAVE_PATIENCE * 3, "{took:?}");
    client.close().unwrap();
    let other = cluster.client();
    for ino in &slow {
        assert_eq!(get(&other, *ino, 0, 10), b"slow");
    }
}

#[test]
fn the_end_tells_of_what_could_not_be_stored_unless_a_call_has() {
    for is_told in [false, true] {
        let cluster = Cluster::start(1);
        let client = cluster.client();
        let ino = file(&client, "f");
        for node in &cluster.nodes {
            node.hook(|frame, _| {
                (frame.fixed.op == Op::Write).then(|| Answer::Fail(Code::NoSpace.into()))
            });
        }
        write(&client, ino, 0, b"too much");
        if is_told {
            assert_eq!(sync(&client, ino).unwrap_err().code, Code::NoSpace);
        }
        assert_eq!(client.close().is_ok(), is_told);
    }
}
