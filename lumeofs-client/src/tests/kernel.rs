//! Pages in the kernel's cache: they are gone before a change elsewhere is acknowledged.

use super::cluster::{Cluster, cx};
use super::files::{file, put};
use super::until;
use crate::client::Client;
use lumeofs_base::InodeId;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

type Dropped = Arc<Mutex<Vec<InodeId>>>;

/// A client whose kernel notes which pages it drops.
fn client(cluster: &Cluster) -> (Arc<Client>, Dropped) {
    let client = cluster.client();
    until("leases count", || client.lease_stats().is_valid);
    let dropped = Dropped::default();
    let notes = Arc::clone(&dropped);
    client.on_changed(move |ino| {
        // Longer than everything else here takes.
        std::thread::sleep(Duration::from_millis(30));
        notes.lock().push(ino);
    });
    (client, dropped)
}

/// Reads from memory, where a lease allows that.
pub(super) fn read(client: &Client, ino: InodeId) -> Vec<u8> {
    let mut buf = vec![0; 4096];
    let count = client.read(cx(), ino, 0, &mut buf).unwrap();
    buf.truncate(count);
    buf
}

fn map(client: &Client, ino: InodeId) -> Vec<u8> {
    let _request = client.page_request(ino);
    read(client, ino)
}

fn change(client: &Client, ino: InodeId, data: &[u8]) {
    put(client, ino, 0, data);
    client.fsync(cx(), ino, false).unwrap();
}

#[test]
fn pages_are_gone_when_a_change_is_acknowledged() {
    let cluster = Cluster::start(1);
    let ((a, none), (b, dropped)) = (client(&cluster), client(&cluster));
    let ino = file(&a, "f");
    change(&a, ino, b"old");
    assert_eq!(map(&b, ino), b"old");
    assert_eq!(*dropped.lock(), []);
    change(&a, ino, b"new");
    assert_eq!(*dropped.lock(), [ino]);
    assert_eq!(map(&b, ino), b"new");
    change(&a, ino, b"two");
    assert_eq!(*dropped.lock(), [ino, ino]);
    // Nothing was mapped since.
    assert_eq!(read(&b, ino), b"two");
    change(&a, ino, b"six");
    assert_eq!(*dropped.lock(), [ino, ino]);
    assert_eq!(
        *none.lock(),
        [],
        "the writer's own pages are its kernel's matter"
    );
    assert_eq!(b.late_page_drops(), 0);
}

#[test]
fn a_kernel_that_does_not_drop_its_pages_keeps_a_change_waiting_for_a_second() {
    let cluster = Cluster::start(1);
    let ((a, _), b) = (client(&cluster), cluster.client());
    let is_stuck = Arc::new(AtomicBool::new(true));
    let stuck = Arc::clone(&is_stuck);
    b.on_changed(move |_| {
        while stuck.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    until("leases count", || b.lease_stats().is_valid);
    let ino = file(&a, "f");
    change(&a, ino, b"old");
    map(&b, ino);
    let begun = Instant::now();
    change(&a, ino, b"new");
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(900), "{took:?}");
    assert_eq!(b.late_page_drops(), 1);
    // Other files are waited for all the same, and this one again.
    let other = file(&a, "g");
    change(&a, other, b"old");
    map(&b, other);
    change(&a, other, b"new");
    assert_eq!(b.late_page_drops(), 2);
    is_stuck.store(false, Ordering::Relaxed);
}

#[test]
fn pages_go_when_nobody_would_hear_of_changes() {
    let cluster = Cluster::start(1);
    let ((a, _), (b, dropped)) = (client(&cluster), client(&cluster));
    let ino = file(&a, "f");
    change(&a, ino, b"old");
    map(&b, ino);
    cluster.world.state.lock().is_mute = true;
    until("the leases lapse", || !b.lease_stats().is_valid);
    until("pages are dropped", || *dropped.lock() == [ino]);
    cluster.world.state.lock().is_mute = false;
}
