//! Sessions that remember under leases: no other one sees anything sooner than they do.

use super::harness::{Client, Cluster, Mount, wait_for};
use super::{WHEN_PURGED, create, lookup, mkdir};
use lumeofs_base::{Attr, Code, InodeId};
use lumeofs_lease::{Cached, TERM};
use lumeofs_meta::op::{Mutation, Query, Reply};
use lumeofs_proto::meta::OpenReport;
use std::time::{Duration, Instant};

fn rmdir(name: &str) -> Mutation {
    Mutation::Rmdir {
        parent: InodeId::ROOT,
        name: name.into(),
    }
}

fn unlink(name: &str) -> Mutation {
    Mutation::Unlink {
        parent: InodeId::ROOT,
        name: name.into(),
    }
}

fn made(reply: Reply) -> Attr {
    match reply {
        Reply::Created { attr, .. } => attr,
        other => panic!("{other:?}"),
    }
}

fn attr_of(reply: Reply) -> Attr {
    match reply {
        Reply::Attr(attr) => attr,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_another_session_remembers_is_recalled_before_a_change_is_answered() {
    let cluster = Cluster::start(1);
    let (mut a, mut b) = (Mount::start(&cluster), Mount::start(&cluster));
    // One that knows nothing of leases changes things like everybody.
    let mut plain = Client::connect(&cluster);
    for round in 0..20 {
        a.mutate(mkdir("d")).unwrap();
        b.lookup("d").unwrap();
        assert!(matches!(b.remembered("d"), Cached::Is(_)));
        assert_eq!(b.lookup("e").unwrap_err().code, Code::NotFound);
        assert_eq!(b.remembered("e"), Cached::Absent);
        a.mutate(rmdir("d")).unwrap();
        assert_eq!(b.remembered("d"), Cached::Absent);
        let sequence = 2 * round + 1;
        plain.mutate(sequence, mkdir("e")).unwrap();
        assert_ne!(b.remembered("e"), Cached::Absent);
        plain.mutate(sequence + 1, rmdir("e")).unwrap();
        assert_eq!(a.lookup("d").unwrap_err().code, Code::NotFound);
    }
}

#[test]
fn a_silent_session_delays_others_by_its_term_and_then_has_no_lease() {
    let cluster = Cluster::start(1);
    let (mut a, mut b) = (Mount::start(&cluster), Mount::start(&cluster));
    a.mutate(mkdir("d")).unwrap();
    b.lookup("d").unwrap();
    b.set_silent(true);
    let begun = Instant::now();
    a.mutate(rmdir("d")).unwrap();
    let took = begun.elapsed();
    assert_eq!(b.remembered("d"), Cached::Unknown, "its own term is over");
    assert!(took < TERM + Duration::from_secs(5), "{took:?}");
    b.set_silent(false);
    b.wait_valid();
    assert_eq!(b.remembered("d"), Cached::Unknown);
    assert_eq!(b.lookup("d").unwrap_err().code, Code::NotFound);
    b.client.keep_alive().unwrap();
}

#[test]
fn what_a_writer_keeps_in_memory_is_published_before_others_see_its_file() {
    let cluster = Cluster::start(1);
    let (mut a, mut b) = (Mount::start(&cluster), Mount::start(&cluster));
    let ino = made(b.mutate(create("f")).unwrap()).ino;
    b.write(ino, 100);
    b.set_give_back(Duration::from_millis(500));
    let begun = Instant::now();
    let seen = a.attr(ino, 1).unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(500));
    assert_eq!((seen.size, seen.mtime.secs), (100, 1_000_000_100));
    assert!(!b.holder(|holder| holder.is_writer(ino)));
    // Both remember it; the next writer is alone again.
    a.attr(ino, 2).unwrap();
    a.write(ino, 200);
    assert!(a.holder(|holder| holder.is_writer(ino)));
    let found = Mutation::Create {
        parent: InodeId::ROOT,
        name: b"f".to_vec(),
        node: lumeofs_meta::op::NewNode::Regular,
        mode: 0o644.into(),
        exclusive: false,
    };
    assert_eq!(made(b.mutate(found).unwrap()).size, 200);
}

#[test]
fn a_silent_writer_is_ended_and_shut_out_before_others_see_its_file() {
    let cluster = Cluster::start(1);
    let (mut a, mut b) = (Mount::start(&cluster), Mount::start(&cluster));
    let ino = made(b.mutate(create("f")).unwrap()).ino;
    b.write(ino, 100);
    b.set_silent(true);
    let begun = Instant::now();
    let seen = a.attr(ino, 1).unwrap();
    let took = begun.elapsed();
    assert_eq!(seen.size, 0, "nothing was published");
    assert!(
        took > TERM - Duration::from_secs(2) && took < 3 * TERM,
        "{took:?}"
    );
    let ended = b.client.keep_alive().unwrap_err();
    assert_eq!(ended.code, Code::SessionExpired);
    a.client.keep_alive().unwrap();
}

#[test]
fn a_file_is_not_shown_while_a_group_may_still_take_writes_of_a_silent_writer() {
    let cluster = Cluster::start(1);
    // They answer nobody.
    cluster.register_datanodes(3);
    let (mut a, mut b) = (Mount::start(&cluster), Mount::start(&cluster));
    let ino = made(b.mutate(create("f")).unwrap()).ino;
    b.set_silent(true);
    let begun = Instant::now();
    while begun.elapsed() < 2 * TERM {
        let shown = a.client.query_at(1, Query::GetAttr { ino });
        assert_eq!(shown.unwrap_err().code, Code::Again);
    }
    let ended = b.client.keep_alive().unwrap_err();
    assert_eq!(ended.code, Code::SessionExpired);
    // Nobody waits for what it has nothing to do with.
    a.mutate(mkdir("d")).unwrap();
    a.lookup("d").unwrap();
}

#[test]
fn a_file_that_was_opened_under_a_lease_without_a_word_outlives_its_name() {
    let cluster = Cluster::start(1);
    let (mut a, mut b) = (Mount::start(&cluster), Mount::start(&cluster));
    let mut plain = Client::connect(&cluster);
    let ino = made(plain.mutate(1, create("f")).unwrap()).ino;
    let release = |client: &mut Client| {
        let report = OpenReport {
            session: client.session,
            released: vec![ino.get()],
            term: client.term,
            ..Default::default()
        };
        client.report(report).unwrap();
    };
    release(&mut plain);
    b.lookup("f").unwrap();
    let opened = b.holder(|holder| {
        let now = lumeofs_base::clock::Clock::monotonic(&lumeofs_base::clock::SystemClock);
        holder.open(now, ino)
    });
    assert!(opened);
    a.mutate(unlink("f")).unwrap();
    std::thread::sleep(WHEN_PURGED);
    plain.query(Query::GetAttr { ino }).unwrap();
    release(&mut b.client);
    wait_for("the purge", || plain.query(Query::GetAttr { ino }).is_err());
}

#[test]
fn a_file_that_its_only_holder_removes_is_freed_once_that_has_said_that_it_is_closed() {
    let cluster = Cluster::start(1);
    let mut a = Mount::start(&cluster);
    let mut plain = Client::connect(&cluster);
    let ino = made(a.mutate(create("f")).unwrap()).ino;
    a.mutate(unlink("f")).unwrap();
    wait_for("the purge", || plain.query(Query::GetAttr { ino }).is_err());
}

#[test]
fn a_new_leader_waits_for_those_who_may_have_leases_and_ends_the_silent_ones() {
    let mut cluster = Cluster::start(3);
    let (mut a, mut b) = (Mount::start(&cluster), Mount::start(&cluster));
    let mut c = Mount::start(&cluster);
    let ino = made(b.mutate(create("f")).unwrap()).ino;
    b.write(ino, 100);
    a.mutate(mkdir("old")).unwrap();
    a.lookup("old").unwrap();
    // All speak: nobody waits for a term.
    cluster.kill(cluster.metadata_leader());
    let killed = Instant::now();
    a.mutate(mkdir("new")).unwrap();
    let took = killed.elapsed();
    eprintln!("the new leader acknowledged {took:?} after the old one was killed");
    assert_eq!(a.attr(ino, 1).unwrap().size, 100);
    assert_eq!(
        a.remembered("old"),
        Cached::Unknown,
        "that was another leader"
    );
    let [dead] = cluster.ids()[..]
        .iter()
        .copied()
        .filter(|id| !cluster.running().contains(id))
        .collect::<Vec<_>>()[..]
    else {
        panic!("one is dead")
    };
    cluster.restart(dead);
    // One does not.
    c.set_silent(true);
    cluster.kill(cluster.metadata_leader());
    let killed = Instant::now();
    let mut plain = Client::connect(&cluster);
    plain.mutate(1, mkdir("later")).unwrap();
    let took = killed.elapsed();
    assert!(
        took > TERM - Duration::from_secs(1) && took < 4 * TERM,
        "{took:?}"
    );
    attr_of(plain.query(lookup("later")).unwrap());
    let ended = c.client.keep_alive().unwrap_err();
    assert_eq!(ended.code, Code::SessionExpired);
    b.client.keep_alive().unwrap();
    assert_eq!(
        plain
            .query(Query::GetAttr { ino })
            .map(attr_of)
            .unwrap()
            .size,
        100
    );
}
