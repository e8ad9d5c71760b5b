//! What a writer has in memory, through changes of its rights: leaders and sessions that end, others that want the file.

use super::cluster::{APPEND, Answer, Cluster, cx, direct};
use super::files::{file, get, truncate};
use super::until;
use crate::client::{Client, Context, OnOutage, WriteMode};
use crate::pages::local::Local;
use lumeofs_base::{Code, InodeId};
use lumeofs_meta::op::{SetAttr, XattrMode};
use lumeofs_proto::frame::Op;
use lumeofs_proto::meta::MetaRequest;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

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
    assert!(
        link.sending(&asker, &inode, &pages)
            .publish_local(false)
            .unwrap()
    );
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

#[test]
fn a_direct_write_is_with_the_datanodes_when_it_returns_and_any_where_space_is_short() {
    let cluster = Cluster::start(1);
    let sent = Arc::new(AtomicUsize::new(0));
    for node in &cluster.nodes {
        let sent = sent.clone();
        node.hook(move |frame, _| {
            sent.fetch_add(usize::from(frame.fixed.op == Op::Write), Ordering::SeqCst);
            None
        });
    }
    let client = cluster.client();
    let ino = file(&client, "f");
    write(&client, ino, 0, b"behind");
    assert_eq!(sent.load(Ordering::SeqCst), 0);
    let direct = WriteMode {
        direct: true,
        ..WriteMode::default()
    };
    client.write(cx(), ino, 0, b"direct", direct).unwrap();
    assert_eq!(sent.load(Ordering::SeqCst), 1);

    for node in &mut cluster.world.state.lock().map.nodes {
        node.free_bytes = 1 << 20;
    }
    let other = cluster.client();
    let ino = file(&other, "g");
    write(&other, ino, 0, b"short of space");
    assert_eq!(sent.load(Ordering::SeqCst), 2);
}

#[test]
fn a_name_looked_up_while_a_write_is_published_shows_it() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    let ino = file(&client, "f");
    write(&client, ino, 0, &[1; 100]);
    let (flushing, looked) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicBool::new(false)),
    );
    let (begun, told) = (flushing.clone(), looked.clone());
    cluster.masters[0].hook(move |frame, world| {
        let told = told.clone();
        match frame.fixed.op {
            Op::Mutate => {
                begun.store(true, Ordering::SeqCst);
                let request = frame.decode::<MetaRequest>().unwrap();
                Some(Answer::Later(Box::new(move |world| {
                    until("the name is looked up", || told.load(Ordering::SeqCst));
                    world
                        .mutate_for(&request)
                        .map_or_else(Answer::Fail, Answer::Reply)
                })))
            }
            // It is answered before the publication is applied, and heard of after that.
            Op::Query => {
                let answer = world.answer(frame).unwrap();
                Some(Answer::Later(Box::new(move |_| {
                    told.store(true, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(100));
                    answer
                })))
            }
            _ => None,
        }
    });
    std::thread::scope(|scope| {
        scope.spawn(|| client.fsync(cx(), ino, false).unwrap());
        until("size and time are being published", || {
            flushing.load(Ordering::SeqCst)
        });
        assert_eq!(client.lookup(cx(), InodeId::ROOT, b"f").unwrap().size, 100);
    });
}

#[test]
fn a_time_that_is_published_does_not_hide_what_was_written_after_it() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    let ino = file(&client, "f");
    let unchecked = |offset, data| {
        let written = client.write(direct(), ino, offset, data, WriteMode::default());
        written.unwrap();
    };
    unchecked(0, b"0123456789");
    unchecked(0, b"x");
    write(&client, ino, 10, b"more");
    assert_eq!(client.getattr(cx(), ino).unwrap().size, 14);
}

#[test]
fn a_caller_who_does_not_use_memory_loses_nothing_that_others_write_into_it_meanwhile() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    let ino = file(&client, "f");
    write(&client, ino, 0, b"0123456789");
    let writer = Arc::new(Mutex::new(None));
    for node in &cluster.nodes {
        let (client, writer) = (client.clone(), writer.clone());
        node.hook(move |frame, _| {
            let mut writer = writer.lock();
            if frame.fixed.op == Op::Write && writer.is_none() {
                // What is in memory is being sent. Whoever could write into it has time to.
                let client = client.clone();
                *writer = Some(std::thread::spawn(move || write(&client, ino, 10, b"more")));
                std::thread::sleep(Duration::from_millis(100));
            }
            None
        });
    }
    let written = client.write(direct(), ino, 0, b"x", WriteMode::default());
    written.unwrap();
    let writer = writer.lock().take().unwrap();
    writer.join().unwrap();
    assert_eq!(read(&client, ino), b"x123456789more");
    assert_eq!(read(&cluster.client(), ino), b"x123456789more");
}

#[test]
fn what_was_remembered_before_others_wrote_too_places_no_append() {
    let cluster = Cluster::start(1);
    let (a, b) = (cluster.client(), cluster.client());
    let ino = file(&a, "f");
    let append = |client: &Client, data: &[u8]| {
        client.write(cx(), ino, 0, data, APPEND).unwrap();
    };
    // Soon both write through.
    for _ in 0..4 {
        append(&a, b"a");
        append(&b, b"b");
    }
    let size_of = |client: &Client| {
        let pages = client.link.pages.file(ino);
        let attr = client.getattr(direct(), ino).unwrap();
        pages.change(|state| state.local = Some(Local::new(attr)));
    };
    // As what a session that ended had left behind.
    size_of(&a);
    append(&b, b"b");
    // Alone for long enough to write in memory again.
    until("the right to write in memory is back", || {
        append(&a, b"a");
        std::thread::sleep(Duration::from_millis(100));
        a.link.is_writer(ino)
    });
    append(&a, b"z");
    let text = read(&a, ino);
    assert_eq!(
        text.iter().filter(|byte| **byte == b'b').count(),
        5,
        "{text:?}"
    );
    assert_eq!(text, read(&b, ino));
}

#[test]
fn nothing_that_callers_have_at_hand_of_a_lost_session_is_found_by_others() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    let ino = file(&client, "f");
    write(&client, ino, 0, b"lost");
    let pages = client.link.pages.file(ino);
    super::meta::end_sessions(&cluster.world);
    until("the session is replaced", || client.lost_sessions() > 0);
    until("leases count again", || client.lease_stats().is_valid);
    assert!(!Arc::ptr_eq(&pages, &client.link.pages.file(ino)));
}

#[test]
fn a_mode_set_after_a_write_stays_though_that_was_to_take_it_away() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    let ino = file(&client, "f");
    let program = WriteMode {
        clear_suid: true,
        ..WriteMode::default()
    };
    client.write(cx(), ino, 0, b"program", program).unwrap();
    let set = SetAttr {
        mode: Some(0o4755),
        ..SetAttr::default()
    };
    let attr = client.setattr(cx(), ino, set).unwrap();
    assert_eq!((attr.mode, attr.size), (0o4755, 7));
    client.fsync(cx(), ino, false).unwrap();
    write(&client, ino, 0, b"P");
    assert_eq!(client.getattr(cx(), ino).unwrap().mode, 0o4755);
    client.fsync(cx(), ino, false).unwrap();
    let other = cluster.client();
    assert_eq!(other.getattr(cx(), ino).unwrap().mode, 0o4755);
    client.write(cx(), ino, 0, b"p", program).unwrap();
    client
        .setxattr(cx(), ino, b"security.capability", b"cap", XattrMode::Set)
        .unwrap();
    client.fsync(cx(), ino, false).unwrap();
    let value = other.getxattr(cx(), ino, b"security.capability");
    assert_eq!(value.unwrap(), b"cap");
    assert_eq!(other.getattr(cx(), ino).unwrap().mode, 0o755);
}

#[test]
fn a_capability_is_gone_with_the_first_write_and_not_only_when_that_is_published() {
    const NAME: &[u8] = b"security.capability";
    let cluster = Cluster::start(1);
    let client = cluster.client();
    let ino = file(&client, "f");
    let set = || client.setxattr(cx(), ino, NAME, b"cap", XattrMode::Create);
    set().unwrap();
    assert_eq!(client.getxattr(cx(), ino, NAME).unwrap(), b"cap");
    write(&client, ino, 0, b"other");
    let is_gone = |client: &Client| {
        let value = client.getxattr(cx(), ino, NAME).unwrap_err();
        assert_eq!(value.code, Code::NoData);
        assert!(client.listxattr(cx(), ino).unwrap().is_empty());
    };
    is_gone(&client);
    let removed = client.removexattr(cx(), ino, NAME).unwrap_err();
    assert_eq!(removed.code, Code::NoData);
    write(&client, ino, 0, b"third");
    set().unwrap();
    assert_eq!(client.getxattr(cx(), ino, NAME).unwrap(), b"cap");
    write(&client, ino, 0, b"fourth");
    client.fsync(cx(), ino, false).unwrap();
    is_gone(&client);
    is_gone(&cluster.client());
}

#[test]
fn what_an_attempt_did_whose_reply_was_lost_is_not_remembered_otherwise() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    let ino = file(&client, "f");
    client.release(ino);
    client.link(cx(), ino, InodeId::ROOT, b"g").unwrap();
    let unlink_unheard = |name: &[u8]| {
        cluster.masters[0].once(Op::Mutate, |frame, world| {
            world.mutate_for(&frame.decode().unwrap()).unwrap();
            Answer::Drop
        });
        client.unlink(cx(), InodeId::ROOT, name).unwrap();
    };
    assert_eq!(client.getattr(cx(), ino).unwrap().nlink, 2);
    unlink_unheard(b"g");
    assert_eq!(client.getattr(cx(), ino).unwrap().nlink, 1);
    unlink_unheard(b"f");
    until("what nobody has open is said not to be", || {
        let state = cluster.world.state.lock();
        let mut released = state.reports.iter().flat_map(|report| &report.released);
        released.any(|other| *other == ino.get())
    });
}

#[test]
fn a_write_during_which_the_session_ends_fails() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    let ino = file(&client, "f");
    write(&client, ino, 0, b"before");
    client.fsync(cx(), ino, false).unwrap();
    let pages = client.link.pages.file(ino);
    std::thread::scope(|scope| {
        // Who writes has the right, and waits for the range.
        let held = pages
            .io
            .own(0..u64::MAX, &client.link.asker(&cx()).patience);
        let writer = scope.spawn(|| client.write(cx(), ino, 0, b"after!", WriteMode::default()));
        std::thread::sleep(Duration::from_millis(100));
        super::meta::end_sessions(&cluster.world);
        until("the session is replaced", || client.lost_sessions() > 0);
        until("leases count again", || client.lease_stats().is_valid);
        drop(held.unwrap());
        let error = writer.join().unwrap().unwrap_err();
        assert_eq!(error.code, Code::Io);
    });
    assert_eq!(read(&client, ino), b"before");
    // The file has been told of.
    write(&client, ino, 0, b"later!");
    assert_eq!(read(&client, ino), b"later!");
}

#[test]
fn a_truncation_whose_caller_gave_up_leaves_nothing_in_memory_that_it_discards() {
    let cluster = Cluster::start(1);
    let client = cluster.client_with(OnOutage::Block(None));
    let ino = file(&client, "f");
    write(&client, ino, 0, b"0123456789");
    client.fsync(cx(), ino, false).unwrap();
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
    let set = client.setattr(given_up, ino, truncate(4));
    assert_eq!(set.unwrap_err().code, Code::Interrupted);
    until("it is done", || read(&client, ino) == b"0123");
    assert_eq!(client.getattr(cx(), ino).unwrap().size, 4);
    client.write(cx(), ino, 0, b"x", APPEND).unwrap();
    client.fsync(cx(), ino, false).unwrap();
    assert_eq!(read(&client, ino), b"0123x");
    assert_eq!(read(&cluster.client(), ino), b"0123x");
}
