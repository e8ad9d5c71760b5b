//! What full tables and holders cost, in bytes and in time: prints it, for the documentation of their limits.
//!
//! `cargo test --release -p lumeofs-lease --test memory -- --ignored --nocapture --test-threads=1`

use lumeofs_base::rng::SplitMix64;
use lumeofs_base::{Attr, FileKind, InodeId, SessionId, Timestamp};
use lumeofs_lease::{
    Ack, Cached, Created, Generation, Grant, Holder, HolderLimits, Kind, Learned, Poll, PollAnswer,
    Table, TableLimits, Want,
};
use lumeofs_meta::change::Change;
use lumeofs_meta::op::DirEntry;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Bytes that are allocated now.
static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

struct Counting;

#[allow(
    unsafe_code,
    reason = "an allocator is; it only adds up what the system's does"
)]
// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// What `make` makes, and how many MB that takes.
fn measured<T>(make: impl FnOnce() -> T) -> (T, usize) {
    let before = ALLOCATED.load(Ordering::Relaxed);
    let made = make();
    let bytes = ALLOCATED.load(Ordering::Relaxed) - before;
    (made, bytes / 1_000_000)
}

fn file(ino: InodeId) -> Attr {
    Attr {
        ino,
        kind: FileKind::Regular,
        mode: 0o644,
        uid: 0,
        gid: 0,
        nlink: 1,
        rdev: 0,
        size: 0,
        allocated: 0,
        atime: Timestamp::default(),
        mtime: Timestamp::default(),
        ctime: Timestamp::default(),
        btime: Timestamp::default(),
        truncations: 0,
        tail_unclean: false,
        has_xattrs: false,
    }
}

const GENERATION: Generation = Generation { term: 1, number: 1 };

/// One that takes part.
fn holder() -> Holder {
    let mut holder = Holder::new(HolderLimits::default());
    for restate in [true, false] {
        let asserted = holder.poll().asserts.is_some();
        let answer = PollAnswer {
            generation: GENERATION,
            restate,
            renewed: true,
            leases_max: u64::MAX,
            recalls: Vec::new(),
        };
        holder.heard(Duration::ZERO, asserted, answer);
    }
    holder
}

const DIRECTORIES: u64 = 1000;
const NAMES: u64 = 500;
/// Per directory, with a lease of their own.
const FILES: u64 = 149;

fn directory(number: u64) -> InodeId {
    InodeId(1_000_000_000 + number)
}

fn name(number: u64, length: usize) -> Vec<u8> {
    format!("{number:0length$}").into_bytes()
}

/// Directories that were listed, and the attributes of some of the files in them.
fn full_holder(name_length: usize) -> Holder {
    let mut holder = holder();
    let mut number = 0;
    let mut grant = |ino| {
        number += 1;
        let kind = Kind::Shared;
        [Grant { ino, kind, number }]
    };
    for at in 0..DIRECTORIES {
        let dir = directory(at);
        let entry = |number: u64| DirEntry {
            cookie: number + 3,
            name: name(number, name_length),
            ino: InodeId(at * NAMES + number + 1),
            kind: FileKind::Regular,
        };
        let entries: Vec<DirEntry> = (0..NAMES).map(entry).collect();
        let learned = Learned::Entries {
            ino: dir,
            after: 0,
            entries: &entries,
            more: false,
            inodes: &[],
        };
        holder.learn(Duration::ZERO, GENERATION, &grant(dir), learned);
        for entry in &entries[..FILES as usize] {
            let attr = file(entry.ino);
            let learned = Learned::Attr(&attr);
            holder.learn(Duration::ZERO, GENERATION, &grant(entry.ino), learned);
        }
    }
    holder.take_acts();
    holder
}

#[test]
#[ignore = "a measurement"]
fn a_full_holder_and_its_answers() {
    for length in [255, 24] {
        let (holder, megabytes) = measured(|| full_holder(length));
        assert_eq!(holder.len(), HolderLimits::default().inodes_max);
        println!("holder with names of {length} bytes: {megabytes} MB");
    }
    let mut holder = full_holder(24);
    for (directories, what) in [(DIRECTORIES, "any name"), (1, "names in one directory")] {
        let took = time_of_lookup(&mut holder, directories);
        println!("a lookup of {what}: {} ns", took.as_nanos());
    }
}

/// Looks names in some of the directories up, in no order.
fn time_of_lookup(holder: &mut Holder, directories: u64) -> Duration {
    const LOOKUPS: u32 = 2_000_000;
    let names: Vec<Vec<u8>> = (0..FILES).map(|number| name(number, 24)).collect();
    let mut rng = SplitMix64::new(1);
    let begun = Instant::now();
    for _ in 0..LOOKUPS {
        let parent = directory(rng.below(directories));
        let name = &names[rng.below(FILES) as usize];
        let attr = holder.lookup(Duration::ZERO, parent, name);
        assert!(matches!(attr, Cached::Is(_)));
    }
    begun.elapsed() / LOOKUPS
}

/// A table with as many leases as there may be: on each inode those of `sharers` of the sessions.
fn full_table(sessions: u64, sharers: u64) -> Table {
    let limits = TableLimits {
        leases_per_session_max: TableLimits::default().leases_max,
        ..TableLimits::default()
    };
    let mut table = Table::new(limits);
    table.lead(Duration::ZERO, 1, []);
    for session in (1..=sessions).map(SessionId) {
        let mut poll = Poll {
            serial: 1,
            ..Poll::default()
        };
        let heard = table
            .poll(Duration::ZERO, session, &poll)
            .expect("it is the first");
        poll.serial = 2;
        poll.generation = heard.answer.generation;
        poll.asserts = Some(Vec::new());
        table.poll(Duration::ZERO, session, &poll);
    }
    for number in 0..limits.leases_max as u64 {
        let session = SessionId(1 + number % sessions);
        let ino = InodeId(1 + number / sharers);
        let shown = [(ino, FileKind::Regular)];
        table
            .read(Duration::ZERO, session, &shown, Want::Shared)
            .expect("nobody writes");
    }
    table
}

#[test]
#[ignore = "a measurement"]
fn a_full_table() {
    for (sessions, sharers) in [(8, 1), (100, 100)] {
        let begun = Instant::now();
        let (table, megabytes) = measured(|| full_table(sessions, sharers));
        let [shared, ..] = table.counts();
        let took = begun.elapsed() / shared as u32;
        println!("table with {shared} leases, {sharers} on each inode: {megabytes} MB");
        println!("a grant: {} ns", took.as_nanos());
    }
}

/// How long a change takes that the last of the mounts has not acknowledged, nor any before.
#[test]
#[ignore = "a measurement"]
fn changes_in_a_directory_that_a_hundred_mounts_cache() {
    const CHANGES: u64 = 1600;
    let (mut table, dir) = (full_table(100, 100), InodeId(1));
    let mut unheard = Vec::new();
    let begun = Instant::now();
    for number in 0..CHANGES {
        let changer = SessionId(1 + number % 100);
        let change = Change::Attr(file(dir));
        let changed = table.changed(Duration::ZERO, changer, &[change], &Created::Nothing);
        unheard.push(changed.unheard);
    }
    let took = begun.elapsed() / CHANGES as u32;
    let recalls = table.unacknowledged();
    println!(
        "a change with up to {recalls} recalls before it: {} us",
        took.as_micros()
    );
    let begun = Instant::now();
    for session in (1..=100).map(SessionId) {
        let news = table.news(session, 0);
        let poll = Poll {
            serial: u64::MAX,
            generation: news.generation,
            acks: news
                .recalls
                .iter()
                .map(|recall| Ack {
                    id: recall.id,
                    open: false,
                })
                .collect(),
            ..Poll::default()
        };
        table.poll(Duration::ZERO, session, &poll);
    }
    let took = begun.elapsed() / recalls as u32;
    assert!(unheard.iter().all(|unheard| table.is_heard(unheard)));
    println!("an acknowledgement: {} ns", took.as_nanos());
}
