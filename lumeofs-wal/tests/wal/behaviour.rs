//! What a log promises while nothing goes wrong, and how it answers when something does.

use crate::common::{Contents, SMALL, config, dir, open, payload};
use lumeofs_base::Code;
use lumeofs_base::clock::{Clock, SystemClock};
use lumeofs_base::disk::{Disk, os::OsDisk, sim::SimDisk};
use lumeofs_base::metrics::Page;
use lumeofs_wal::{Lsn, Wal, WalConfig};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

#[test]
fn records_are_read_back_in_order_after_reopening() {
    let disk = SimDisk::new();
    let (wal, found) = open(&disk, SMALL).unwrap();
    assert!(found.is_empty());
    assert_eq!(
        (wal.last(), wal.durable(), wal.size_bytes()),
        (Lsn(0), Lsn(0), 0)
    );
    let mut written = Contents::new();
    for index in 0..200 {
        let data = payload(index, (index * 37 % 9000) as usize);
        let (head, tail) = data.split_at(data.len() / 3);
        written.push((wal.append(&[head, b"", tail]).unwrap(), data));
    }
    assert!(written.is_sorted_by_key(|record| record.0));
    for (lsn, data) in &written {
        assert_eq!(wal.read(*lsn).unwrap(), *data);
    }
    wal.sync(wal.last()).unwrap();
    assert_eq!(wal.durable(), wal.last());
    for (lsn, data) in &written {
        assert_eq!(wal.read(*lsn).unwrap(), *data);
    }
    assert_eq!(
        wal.read(Lsn(written[3].0.0 + 8)).unwrap_err().code,
        Code::NotFound
    );
    let size = wal.size_bytes();
    drop(wal);
    let (wal, found) = open(&disk, SMALL).unwrap();
    assert_eq!(found, written);
    assert_eq!(wal.last(), written.last().unwrap().0);
    assert_eq!(wal.size_bytes(), size);
    let next = wal.append(&[b"next"]).unwrap();
    assert!(next > wal.durable());
    assert_eq!(wal.read(next).unwrap(), b"next");
}

#[test]
fn a_write_is_counted_with_its_bytes_once_it_is_durable() {
    let (wal, _) = open(&SimDisk::new(), SMALL).unwrap();
    let lsn = wal.append(&[&payload(1, 5000)]).unwrap();
    wal.sync(lsn).unwrap();
    let mut page = Page::default();
    lumeofs_wal::collect(&mut page, "x", "log", &[("a", &wal)]);
    let text = page.into_text();
    assert!(
        text.contains("x_wal_sync_seconds_count{log=\"a\"} 1\n"),
        "{text}"
    );
    assert!(
        text.contains("x_wal_written_bytes_total{log=\"a\"} 8192\n"),
        "{text}"
    );
}

#[test]
fn works_on_real_filesystems_with_and_without_direct_io() {
    for parent in [std::env::temp_dir(), "/dev/shm".into()] {
        let Ok(root) = tempfile::tempdir_in(&parent) else {
            continue;
        };
        let disk = OsDisk::new(root.path());
        let mut written = Contents::new();
        for round in 0..3 {
            let (wal, found) = open(&disk, SMALL).unwrap();
            assert_eq!(found, written);
            for index in 0..20 {
                let data = payload(round * 20 + index, (index * 211) as usize);
                written.push((wal.append(&[&data]).unwrap(), data));
                wal.sync(wal.last()).unwrap();
            }
            wal.truncate_before(written[written.len() / 4].0).unwrap();
            let keep = written.len() - 3;
            wal.truncate_after(written[keep - 1].0).unwrap();
            written.truncate(keep);
            let first = wal_first(&wal, &written);
            written.drain(..first);
        }
    }
}

/// How many records at the front `truncate_before` has taken.
fn wal_first(wal: &Wal, written: &Contents) -> usize {
    written
        .iter()
        .position(|(lsn, _)| wal.read(*lsn).is_ok())
        .unwrap()
}

#[test]
fn many_threads_share_syncs_and_each_keeps_its_order() {
    let disk = SimDisk::new();
    let wal = Arc::new(open(&disk, config(1 << 20)).unwrap().0);
    let threads: Vec<_> = (0..8u64)
        .map(|thread| {
            let wal = wal.clone();
            std::thread::spawn(move || {
                for index in 0..100u64 {
                    let data = [thread.to_le_bytes(), index.to_le_bytes()].concat();
                    let lsn = wal.append(&[&data]).unwrap();
                    wal.sync(lsn).unwrap();
                    assert!(wal.durable() >= lsn);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    drop(wal);
    let found = open(&disk, SMALL).unwrap().1;
    let mut next = [0; 8];
    for (_, data) in &found {
        let thread = data[0] as usize;
        assert_eq!(
            u64::from_le_bytes(data[8..].try_into().unwrap()),
            next[thread]
        );
        next[thread] += 1;
    }
    assert_eq!(next, [100; 8]);
}

#[test]
fn callbacks_run_once_durable_and_also_when_it_is_already() {
    let disk = SimDisk::new();
    let wal = Arc::new(open(&disk, SMALL).unwrap().0);
    let (answer, answers) = mpsc::channel();
    for index in 0..10 {
        let lsn = wal.append(&[&[index]]).unwrap();
        let (answer, wal_again) = (answer.clone(), Arc::downgrade(&wal));
        wal.on_durable(
            lsn,
            Box::new(move |result| {
                let durable = wal_again.upgrade().map(|wal| wal.durable());
                answer.send((lsn, durable, result)).unwrap();
            }),
        );
    }
    for _ in 0..10 {
        let (lsn, durable, result) = answers.recv().unwrap();
        result.unwrap();
        assert!(durable.unwrap() >= lsn);
    }
    let again = answer.clone();
    let last = wal.last();
    wal.on_durable(
        last,
        Box::new(move |result| again.send((last, None, result)).unwrap()),
    );
    answers.recv().unwrap().2.unwrap();
    let beyond = Lsn(last.0 + 1);
    wal.on_durable(
        beyond,
        Box::new(move |result| answer.send((beyond, None, result)).unwrap()),
    );
    assert_eq!(answers.recv().unwrap().2.unwrap_err().code, Code::Invalid);
    assert_eq!(wal.sync(beyond).unwrap_err().code, Code::Invalid);
}

#[test]
fn a_callback_may_hold_the_last_reference() {
    let wal = Arc::new(open(&SimDisk::new(), SMALL).unwrap().0);
    let (done, finished) = mpsc::channel();
    let lsn = wal.append(&[b"x"]).unwrap();
    let held = wal.clone();
    let gate = Arc::new(std::sync::Barrier::new(2));
    let pass = gate.clone();
    let answer = Box::new(move |_| {
        pass.wait();
        drop(held);
        done.send(()).unwrap();
    });
    wal.on_durable(lsn, answer);
    drop(wal);
    gate.wait();
    finished.recv().unwrap();
}

#[test]
fn truncating_before_gives_back_whole_segments_and_bounds_the_disk() {
    let disk = SimDisk::new();
    let (wal, _) = open(&disk, SMALL).unwrap();
    let mut lsns = Vec::new();
    for index in 0..400 {
        lsns.push(wal.append(&[&payload(index, 1000)]).unwrap());
        wal.sync(wal.last()).unwrap();
        if index >= 20 {
            wal.truncate_before(lsns[index as usize - 20]).unwrap();
        }
        assert!(wal.size_bytes() < 4 * SMALL.segment_bytes);
    }
    assert_eq!(wal.read(lsns[0]).unwrap_err().code, Code::NotFound);
    assert_eq!(wal.read(lsns[385]).unwrap(), payload(385, 1000));
    drop(wal);
    let files = disk.list(dir()).unwrap().len();
    assert!(files < 12, "{files} files");
    let found = open(&disk, SMALL).unwrap().1;
    let first = found[0].0;
    assert!(first <= lsns[379] && first > lsns[300]);
    let kept: Vec<_> = lsns.iter().copied().filter(|lsn| *lsn >= first).collect();
    assert_eq!(
        found.iter().map(|record| record.0).collect::<Vec<_>>(),
        kept
    );
}

#[test]
fn truncated_records_do_not_come_back() {
    let disk = SimDisk::new();
    let (wal, _) = open(&disk, SMALL).unwrap();
    let mut written = Contents::new();
    let add = |wal: &Wal, written: &mut Contents, count: u64| {
        for index in 0..count {
            let data = payload(index + written.len() as u64, 1500);
            written.push((wal.append(&[&data]).unwrap(), data));
        }
    };
    add(&wal, &mut written, 30);
    for keep in [25, 5, 5] {
        let dropped = written[keep].clone();
        wal.truncate_after(written[keep - 1].0).unwrap();
        written.truncate(keep);
        assert_eq!(
            (wal.last(), wal.durable()),
            (written[keep - 1].0, written[keep - 1].0)
        );
        assert_eq!(wal.read(dropped.0).unwrap_err().code, Code::NotFound);
        assert_eq!(wal.read(written[4].0).unwrap(), written[4].1);
        add(&wal, &mut written, 3);
        assert!(
            written[keep].0 > dropped.0,
            "positions are not given out again"
        );
    }
    wal.sync(wal.last()).unwrap();
    drop(wal);
    let (wal, found) = open(&disk, SMALL).unwrap();
    assert_eq!(found, written);
    let code = wal
        .truncate_after(Lsn(written[2].0.0 + 8))
        .unwrap_err()
        .code;
    assert_eq!(code, Code::Invalid);
    wal.truncate_after(Lsn(0)).unwrap();
    assert_eq!(wal.last(), Lsn(0));
    drop(wal);
    let (wal, found) = open(&disk, SMALL).unwrap();
    assert!(found.is_empty());
    assert!(wal.append(&[b"on"]).unwrap() > written.last().unwrap().0);
}

#[test]
fn the_end_is_remembered_when_its_segment_is_given_up() {
    let disk = SimDisk::new();
    let (wal, _) = open(&disk, SMALL).unwrap();
    let first = wal.append(&[b"first"]).unwrap();
    let second = wal.append(&[b"second"]).unwrap();
    wal.truncate_after(first).unwrap();
    wal.truncate_before(Lsn(second.0 + SMALL.segment_bytes))
        .unwrap();
    let mut records = Contents::new();
    for round in 0..3 {
        let data = payload(round, 20_000);
        records.push((wal.append(&[&data]).unwrap(), data));
    }
    drop(wal);
    assert_eq!(open(&disk, SMALL).unwrap().1, records);
}

#[test]
fn a_failed_write_is_final_and_names_the_first_cause() {
    let disk = SimDisk::new();
    let (wal, _) = open(&disk, SMALL).unwrap();
    let kept = wal.append(&[b"kept"]).unwrap();
    wal.sync(kept).unwrap();
    let lost = wal.append(&[b"lost"]).unwrap();
    let (answer, answers) = mpsc::channel();
    disk.fail_syncs(ErrorKind::TimedOut);
    wal.on_durable(lost, Box::new(move |result| answer.send(result).unwrap()));
    let first = answers.recv().unwrap().unwrap_err();
    assert_eq!(first.code, Code::Io);
    assert!(first.context.contains("timed out"), "{first}");
    disk.fail_syncs(None);
    assert_eq!(wal.append(&[b"x"]).unwrap_err(), first);
    assert_eq!(wal.sync(lost).unwrap_err(), first);
    assert_eq!(wal.truncate_after(kept).unwrap_err(), first);
    assert_eq!(wal.truncate_before(kept).unwrap_err(), first);
    assert_eq!(wal.read(kept).unwrap(), b"kept");
    drop(wal);
    let found = open(&disk.crash(1), SMALL).unwrap().1;
    assert_eq!(found[0].1, b"kept");
}

#[test]
fn a_full_disk_refuses_appends_until_there_is_space() {
    let disk = SimDisk::new();
    disk.set_capacity(200_000);
    let (wal, _) = open(&disk, SMALL).unwrap();
    let mut written = Contents::new();
    let refused = loop {
        let data = payload(written.len() as u64, 3000);
        match wal.append(&[&data]) {
            Ok(lsn) => written.push((lsn, data)),
            Err(error) => break error,
        }
    };
    assert_eq!(refused.code, Code::NoSpace);
    wal.sync(wal.last()).unwrap();
    assert_eq!(
        wal.append(&[b"small"]).map(drop).unwrap_err().code,
        Code::NoSpace
    );
    let before = written.len();
    assert!(before > 20);

    // Giving up old segments is space for the log itself.
    wal.truncate_before(written[before - 5].0).unwrap();
    let data = payload(1000, 3000);
    let lsn = until_there_is_space(&wal, &data);
    written.push((lsn, data));
    wal.sync(lsn).unwrap();

    // So is space on the disk.
    while let Ok(lsn) = wal.append(&[&payload(written.len() as u64, 3000)]) {
        written.push((lsn, payload(written.len() as u64, 3000)));
    }
    let refused = wal
        .truncate_after(written[written.len() - 2].0)
        .unwrap_err();
    assert_eq!(refused.code, Code::NoSpace);
    disk.set_capacity(None);
    let lsn = until_there_is_space(&wal, b"more");
    wal.sync(lsn).unwrap();
    written.push((lsn, b"more".to_vec()));
    wal.truncate_after(written[written.len() - 2].0).unwrap();
    written.pop();
    drop(wal);
    let found = open(&disk, SMALL).unwrap().1;
    assert_eq!(found[..], written[written.len() - found.len()..]);
}

/// An attempt that was under way when space appeared may still be refused, and segments are given
/// up in the background.
fn until_there_is_space(wal: &Wal, data: &[u8]) -> Lsn {
    for _ in 0..1_000_000 {
        match wal.append(&[data]) {
            Ok(lsn) => return lsn,
            Err(error) => assert_eq!(error.code, Code::NoSpace),
        }
        std::thread::yield_now();
    }
    panic!("appends never worked again");
}

#[test]
fn appends_wait_rather_than_buffer_without_bound() {
    let disk = SimDisk::new();
    let config = WalConfig {
        pending_bytes_max: 20_000,
        ..SMALL
    };
    let (wal, _) = open(&disk, config).unwrap();
    let wal = Arc::new(wal);
    let blocked = Arc::new(AtomicUsize::new(0));
    // The writer thread is held in a callback while others append.
    let (hold, held) = mpsc::channel::<()>();
    let lsn = wal.append(&[b"x"]).unwrap();
    wal.on_durable(lsn, Box::new(move |_| assert!(held.recv().is_err())));
    wal.sync(lsn).unwrap();
    let appender = std::thread::spawn({
        let (wal, count) = (wal.clone(), blocked.clone());
        move || {
            for index in 0..100 {
                wal.append(&[&payload(index, 1000)]).unwrap();
                count.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    while blocked.load(Ordering::SeqCst) < 19 {
        std::thread::yield_now();
    }
    assert!(wal.size_bytes() < 30_000);
    assert!(blocked.load(Ordering::SeqCst) < 30);
    drop(hold);
    appender.join().unwrap();
    assert_eq!(blocked.load(Ordering::SeqCst), 100);
}

#[test]
fn records_that_nobody_waits_for_are_written_on_request_or_when_there_are_many() {
    let disk = SimDisk::new();
    let (wal, _) = open(&disk, config(4 << 20)).unwrap();
    let lsn = wal.append(&[b"requested"]).unwrap();
    wal.request_sync();
    wait_until(|| wal.durable() == lsn);
    let many = wal.append(&[&payload(1, 300 << 10)]).unwrap();
    wait_until(|| wal.durable() == many);
}

fn wait_until(mut condition: impl FnMut() -> bool) {
    let deadline = SystemClock.monotonic() + Duration::from_secs(20);
    while !condition() {
        assert!(SystemClock.monotonic() < deadline, "never happened");
        std::thread::yield_now();
    }
}

#[test]
fn what_cannot_be_is_refused_with_the_reason() {
    let disk = SimDisk::new();
    let (wal, _) = open(&disk, SMALL).unwrap();
    let error = wal
        .append(&[&vec![0; SMALL.segment_bytes as usize]])
        .unwrap_err();
    assert_eq!(error.code, Code::Invalid);
    let longest = SMALL.segment_bytes as usize - 4096 - 24;
    let lsn = wal.append(&[&vec![7; longest]]).unwrap();
    wal.sync(lsn).unwrap();
    assert_eq!(wal.read(lsn).unwrap().len(), longest);
    let bad = WalConfig {
        segment_bytes: 100,
        ..SMALL
    };
    assert_eq!(
        open(&SimDisk::new(), bad).map(drop).unwrap_err().code,
        Code::Invalid
    );
}

#[test]
fn segment_size_may_change_between_openings() {
    let disk = SimDisk::new();
    let mut written = Contents::new();
    for (round, size) in [1 << 16, 1 << 15, 1 << 17].into_iter().enumerate() {
        let (wal, found) = open(&disk, config(size)).unwrap();
        assert_eq!(found, written);
        for index in 0..30 {
            let data = payload(round as u64 * 100 + index, 5000);
            written.push((wal.append(&[&data]).unwrap(), data));
        }
        wal.sync(wal.last()).unwrap();
    }
    assert_eq!(open(&disk, SMALL).unwrap().1, written);
}

#[test]
fn an_error_of_the_visitor_ends_the_opening() {
    let disk = SimDisk::new();
    let (wal, _) = open(&disk, SMALL).unwrap();
    wal.append(&[b"x"]).unwrap();
    drop(wal);
    let disk: Arc<dyn Disk> = Arc::new(disk);
    let opened = Wal::open(disk, Path::new("log"), SMALL, &mut |_, _| {
        Err(Code::Unsupported.into())
    });
    assert_eq!(opened.map(drop).unwrap_err().code, Code::Unsupported);
}
