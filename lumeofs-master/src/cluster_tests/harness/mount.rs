//! A client that remembers under leases, as a mount does.

use super::{Client, Cluster};
use lumeofs_base::clock::{Clock as _, SystemClock};
use lumeofs_base::{Attr, FsError, FsResult, InodeId, Timestamp};
use lumeofs_lease::{Act, Cached, Generation, Grant, Holder, Learned, PollAnswer};
use lumeofs_meta::change::Change;
use lumeofs_meta::op::{Mutation, Query, Reply};
use lumeofs_proto::frame::Op;
use lumeofs_proto::meta::{LeaseReply, LeaseRequest, MetaReply, OpenReport};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// A session with its holder and a thread that polls.
pub(in crate::cluster_tests) struct Mount {
    pub(in crate::cluster_tests) client: Client,
    shared: Arc<Shared>,
    poller: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    holder: Mutex<Holder>,
    sequence: AtomicU64,
    stopped: AtomicBool,
    silent: AtomicBool,
    /// Nothing of it is under way.
    is_idle: AtomicBool,
    /// How long it takes to write data back.
    give_back_ms: AtomicU64,
    /// What was written under an exclusive lease.
    written: Mutex<Option<(InodeId, u64)>>,
}

fn now() -> Duration {
    SystemClock.monotonic()
}

/// A list of an answer; empty if it is not there.
fn list<T: DeserializeOwned>(bytes: &[u8]) -> Vec<T> {
    match bytes {
        [] => Vec::new(),
        _ => postcard::from_bytes(bytes).unwrap(),
    }
}

fn generation(reply: &MetaReply) -> Generation {
    Generation {
        term: reply.generation_term,
        number: reply.generation_number,
    }
}

impl Mount {
    /// Opens a session and waits until its leases count.
    pub(in crate::cluster_tests) fn start(cluster: &Cluster) -> Self {
        let client = Client::connect(cluster);
        let shared = Arc::new(Shared::default());
        let (polling, twin) = (shared.clone(), client.twin());
        let poller = std::thread::spawn(move || poll(&polling, twin));
        let mount = Self {
            client,
            shared,
            poller: Some(poller),
        };
        mount.wait_valid();
        mount
    }

    pub(in crate::cluster_tests) fn is_valid(&self) -> bool {
        self.shared.holder.lock().is_valid(now())
    }

    pub(in crate::cluster_tests) fn wait_valid(&self) {
        super::wait_for("leases to count", || self.is_valid());
    }

    /// Has its thread say nothing, or speak again.
    pub(in crate::cluster_tests) fn set_silent(&self, silent: bool) {
        self.shared.is_idle.store(false, Ordering::SeqCst);
        self.shared.silent.store(silent, Ordering::SeqCst);
        if silent {
            let is_idle = || self.shared.is_idle.load(Ordering::SeqCst);
            super::wait_for("the last poll to be answered", is_idle);
        }
    }

    pub(in crate::cluster_tests) fn set_give_back(&self, takes: Duration) {
        let ms = takes.as_millis() as u64;
        self.shared.give_back_ms.store(ms, Ordering::SeqCst);
    }

    pub(in crate::cluster_tests) fn holder<T>(&self, ask: impl FnOnce(&mut Holder) -> T) -> T {
        ask(&mut self.shared.holder.lock())
    }

    /// What it remembers of a name in the root.
    pub(in crate::cluster_tests) fn remembered(&self, name: &str) -> Cached<Attr> {
        self.holder(|holder| holder.lookup(now(), InodeId::ROOT, name.as_bytes()))
    }

    /// Asks the leader, and remembers the answer.
    pub(in crate::cluster_tests) fn lookup(&mut self, name: &str) -> FsResult<Attr> {
        let parent = InodeId::ROOT;
        let query = Query::Lookup {
            parent,
            name: name.into(),
        };
        let reply = self.client.query_wanting(query, 1)?;
        let outcome = outcome(&reply);
        let learned = Learned::Name {
            parent,
            name: name.as_bytes(),
            attr: outcome.as_ref().ok(),
        };
        self.learn(&reply, learned);
        outcome
    }

    /// Asks for the attributes, and for a lease.
    pub(in crate::cluster_tests) fn attr(&mut self, ino: InodeId, want: u32) -> FsResult<Attr> {
        let reply = self.client.query_wanting(Query::GetAttr { ino }, want)?;
        let attr = outcome(&reply)?;
        self.learn(&reply, Learned::Attr(&attr));
        Ok(attr)
    }

    fn learn(&self, reply: &MetaReply, learned: Learned<'_>) {
        let grants: Vec<Grant> = list(&reply.grants);
        self.holder(|holder| holder.learn(now(), generation(reply), &grants, learned));
    }

    pub(in crate::cluster_tests) fn mutate(&mut self, mutation: Mutation) -> FsResult<Reply> {
        mutate(&self.shared, &mut self.client, mutation)
    }

    /// Writes to memory under an exclusive lease.
    pub(in crate::cluster_tests) fn write(&self, ino: InodeId, size: u64) {
        let time = time_of(size);
        self.holder(|holder| {
            assert!(holder.is_writer(ino));
            holder.wrote(ino, |attr| {
                (attr.size, attr.mtime) = (size, time);
                attr.ctime = attr.ctime.max(time);
            });
        });
        *self.shared.written.lock() = Some((ino, size));
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        if let Some(poller) = self.poller.take() {
            let ended = poller.join();
            assert!(ended.is_ok() || std::thread::panicking());
        }
    }
}

/// Some time.
fn time_of(size: u64) -> Timestamp {
    Timestamp {
        secs: 1_000_000_000 + size.cast_signed(),
        nanos: 0,
    }
}

fn outcome(reply: &MetaReply) -> FsResult<Attr> {
    if !reply.error.is_empty() {
        return Err(postcard::from_bytes::<FsError>(&reply.error).unwrap());
    }
    match postcard::from_bytes(&reply.reply).unwrap() {
        Reply::Attr(attr) => Ok(attr),
        other => panic!("{other:?}"),
    }
}

fn mutate(shared: &Shared, client: &mut Client, mutation: Mutation) -> FsResult<Reply> {
    let sequence = shared.sequence.fetch_add(1, Ordering::SeqCst) + 1;
    let reply = client.mutate_fully(sequence, mutation)?;
    let changes: Vec<Change> = list(&reply.changes);
    let grants: Vec<Grant> = list(&reply.grants);
    let generation = generation(&reply);
    let mut holder = shared.holder.lock();
    holder.did(now(), generation, reply.number, &changes, &grants);
    Ok(postcard::from_bytes(&reply.reply).unwrap())
}

/// Polls until the mount is stopped.
fn poll(shared: &Shared, mut client: Client) {
    let mut giving_back: Vec<(InodeId, Duration)> = Vec::new();
    while !shared.stopped.load(Ordering::SeqCst) {
        if shared.silent.load(Ordering::SeqCst) {
            shared.is_idle.store(true, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(10));
            continue;
        }
        let sent = now();
        let poll = shared.holder.lock().poll();
        let asserted = poll.asserts.is_some();
        let request = LeaseRequest {
            session: client.session,
            body: postcard::to_stdvec(&poll).unwrap().into(),
            wait_ms: if giving_back.is_empty() { 200 } else { 20 },
        };
        let answer = client.ask::<LeaseReply>(Op::Lease, &request);
        let acts = {
            let mut holder = shared.holder.lock();
            match answer {
                Ok(reply) => {
                    let answer: PollAnswer = postcard::from_bytes(&reply.body).unwrap();
                    holder.heard(sent, asserted, answer);
                }
                Err(_) => holder.unheard(poll),
            }
            holder.take_acts()
        };
        let takes = Duration::from_millis(shared.give_back_ms.load(Ordering::SeqCst));
        for act in acts {
            match act {
                Act::GiveBack(ino) => giving_back.push((ino, now() + takes)),
                Act::RestateOpens => restate(&mut client),
                Act::StateOpen(ino) => release(&mut client, ino),
                Act::DropData(_) | Act::Reported(_) => {}
            }
        }
        giving_back.retain(|(ino, due)| {
            let is_due = now() >= *due;
            if is_due {
                give_back(shared, &mut client, *ino);
            }
            !is_due
        });
    }
}

/// It has no file open.
fn restate(client: &mut Client) {
    let Ok(reply) = client.keep_alive() else {
        return;
    };
    let report = OpenReport {
        session: client.session,
        complete: true,
        term: reply.term,
        ..OpenReport::default()
    };
    // A session that has ended states nothing.
    let _ = client.report(report);
}

/// It does not have this one open.
fn release(client: &mut Client, ino: InodeId) {
    let report = OpenReport {
        session: client.session,
        released: vec![ino.get()],
        term: client.term,
        ..OpenReport::default()
    };
    // Another leader takes only a whole list, and gets one.
    let _ = client.report(report);
}

fn give_back(shared: &Shared, client: &mut Client, ino: InodeId) {
    let written = shared.written.lock().take_if(|(of, _)| *of == ino);
    if let Some((_, size)) = written {
        let time = time_of(size);
        let flush = Mutation::Flush {
            ino,
            from: 0,
            size,
            truncations: 0,
            clear_suid: false,
            mtime: time,
            ctime: time,
            set: Default::default(),
        };
        mutate(shared, client, flush).unwrap();
        assert!(shared.holder.lock().published(ino, size, time));
    }
    let mut holder = shared.holder.lock();
    let generation = holder.generation();
    holder.gave_back(generation, ino);
}
