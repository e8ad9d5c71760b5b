//! A load that notices every error, everything that was lost or done twice, and every stall.

use crate::eventually;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// No call takes longer than this, whatever dies.
const CALL_MAX: Duration = Duration::from_secs(21);

/// How long the calls of a thread take.
#[derive(Default)]
struct Calls {
    count: u64,
    longest: Duration,
}

/// A thread that writes, fsyncs, reads, renames and appends without a pause, and measures each call.
pub struct Prober {
    stop: Arc<AtomicBool>,
    calls: Arc<Mutex<Calls>>,
    thread: JoinHandle<u64>,
}

impl Prober {
    /// Starts it in a directory of its own in `directory`.
    pub fn start(directory: &Path) -> Self {
        let (stop, calls) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Calls>>::default());
        let directory = directory.join("prober");
        std::fs::create_dir(&directory).unwrap();
        let (ended, record) = (stop.clone(), calls.clone());
        let thread = std::thread::spawn(move || {
            let log = directory.join("log");
            let append = File::options().append(true).create(true).open(log);
            let mut log = append.unwrap();
            let mut count = 0u64;
            while !ended.load(Ordering::Relaxed) {
                let (number, path) = (count.to_le_bytes(), directory.join(format!("f{count}")));
                let mut file = timed(&record, || File::create_new(&path));
                timed(&record, || file.write_all(&number));
                timed(&record, || file.sync_all());
                assert_eq!(timed(&record, || std::fs::read(&path)), number);
                // Exactly once: a replayed mkdir or rename would fail here.
                let (once, made) = (directory.join("once"), directory.join(format!("d{count}")));
                timed(&record, || std::fs::create_dir(&once));
                timed(&record, || std::fs::rename(&once, &made));
                timed(&record, || log.write_all(&number));
                count += 1;
            }
            log.sync_all().unwrap();
            count
        });
        Self {
            stop,
            calls,
            thread,
        }
    }

    /// The longest call since this was asked last. The one under way counts here, and not the next time: its
    /// end is waited for.
    pub fn longest_since_reset(&self) -> Duration {
        let count = || self.calls.lock().unwrap().count;
        let before = count();
        eventually("the call under way ends", CALL_MAX, || {
            count() > before || self.thread.is_finished()
        });
        assert!(!self.thread.is_finished(), "no operation failed");
        std::mem::take(&mut self.calls.lock().unwrap().longest)
    }

    /// Ends it and checks everything that it did.
    pub fn finish(self, directory: &Path) {
        self.stop.store(true, Ordering::Relaxed);
        let count = self.thread.join().expect("no operation failed");
        let directory = directory.join("prober");
        let log = std::fs::read(directory.join("log")).unwrap();
        let expected: Vec<u8> = (0..count).flat_map(u64::to_le_bytes).collect();
        assert!(
            log == expected,
            "the log of appends is complete, in order and without doubles"
        );
        for number in 0..count {
            assert_eq!(
                std::fs::read(directory.join(format!("f{number}"))).unwrap(),
                number.to_le_bytes()
            );
            assert!(directory.join(format!("d{number}")).is_dir());
        }
        println!("prober: {count} rounds");
    }
}

/// Makes a call that must not fail, and notes how long it took.
fn timed<T>(calls: &Mutex<Calls>, call: impl FnOnce() -> std::io::Result<T>) -> T {
    let begun = Instant::now();
    let result = call();
    {
        let mut calls = calls.lock().unwrap();
        calls.count += 1;
        calls.longest = calls.longest.max(begun.elapsed());
    }
    result.unwrap()
}
