//! How fast a disk makes records durable through the log.
//!
//! `cargo run --release -p lumeofs-wal --example wal_bench -- DIRECTORY [THREADS [BYTES [SECONDS]]]`

use lumeofs_base::clock::{Clock, SystemClock};
use lumeofs_base::disk::os::OsDisk;
use lumeofs_wal::{Lsn, Wal, WalConfig};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let root = arguments
        .next()
        .expect("a directory on the disk to measure");
    let mut number = |default: u64| {
        arguments
            .next()
            .map_or(default, |text| text.parse().expect("a number"))
    };
    let (threads, bytes, seconds) = (number(1), number(512) as usize, number(3));

    let disk = Arc::new(OsDisk::new(root));
    let dir = Path::new("wal-bench");
    let wal = Wal::open(disk, dir, WalConfig::default(), &mut |_, _| Ok(())).expect("open the log");
    wal.truncate_after(Lsn(0)).expect("empty the log");
    let wal = Arc::new(wal);
    let running: Vec<_> = (0..threads)
        .map(|_| {
            let wal = wal.clone();
            std::thread::spawn(move || measure(&wal, bytes, Duration::from_secs(seconds)))
        })
        .collect();
    let mut latencies: Vec<Duration> = Vec::new();
    for thread in running {
        latencies.extend(thread.join().expect("no thread panics"));
    }
    latencies.sort_unstable();
    let at = |permille: usize| latencies[(latencies.len() - 1) * permille / 1000].as_micros();
    let rate = latencies.len() as u64 / seconds;
    println!(
        "{threads} threads, {bytes} bytes: {rate} records/s, {:.1} MB/s, \
         p50 {} us, p99 {} us, p99.9 {} us, max {} us",
        (rate * bytes as u64) as f64 / 1e6,
        at(500),
        at(990),
        at(999),
        at(1000),
    );
}

/// Appends and syncs one record after another, giving up old ones.
fn measure(wal: &Wal, bytes: usize, time: Duration) -> Vec<Duration> {
    let clock = SystemClock;
    let payload = vec![0xA5; bytes];
    let end = clock.monotonic() + time;
    let mut latencies = Vec::new();
    loop {
        let start = clock.monotonic();
        if start >= end {
            return latencies;
        }
        let lsn = wal.append(&[&payload]).expect("append");
        wal.sync(lsn).expect("sync");
        latencies.push(clock.monotonic() - start);
        if latencies.len().is_multiple_of(1000) {
            wal.truncate_before(lsn).expect("truncate");
        }
    }
}
