//! Bytes that are not what was written: a torn tail is cut off, damage is reported, and neither old
//! generations nor foreign files are taken for records.

use crate::common::{Contents, SMALL, config, dir, open, payload};
use lumeofs_base::disk::{Disk, OpenMode, sim::SimDisk};
use lumeofs_base::{Code, FsError};
use lumeofs_wal::Wal;
use std::path::PathBuf;

fn append_each_synced(wal: &Wal, count: u64, len: usize) -> Contents {
    let records = (0..count).map(|index| {
        let data = payload(index, len);
        let lsn = wal.append(&[&data]).unwrap();
        wal.sync(lsn).unwrap();
        (lsn, data)
    });
    records.collect()
}

fn segments(disk: &SimDisk) -> Vec<PathBuf> {
    let names = disk.list(dir()).unwrap().into_iter();
    let segments = names.filter(|name| name.to_str().unwrap().starts_with("segment-"));
    segments.map(|name| dir().join(name)).collect()
}

fn refusal(disk: &SimDisk) -> FsError {
    open(disk, SMALL)
        .map(drop)
        .expect_err("damage was not noticed")
}

#[test]
fn a_flipped_bit_before_intact_records_names_file_and_offset() {
    let config = config(1 << 20);
    let disk = SimDisk::new();
    let (wal, _) = open(&disk, config).unwrap();
    let written = append_each_synced(&wal, 10, 6000);
    drop(wal);
    let path = segments(&disk).remove(0);
    // Header, payload, first and last blocks, of each record but the last one.
    for (lsn, _) in &written[..9] {
        for within in [0, 5, 9, 17, 21, 30, 5000] {
            let damaged = disk.crash(0);
            damaged.flip_bit(&path, lsn.0 + within);
            let error = refusal(&damaged);
            assert_eq!(error.code, Code::Io);
            assert!(error.context.contains(path.to_str().unwrap()), "{error}");
            assert!(error.context.contains("damaged at offset"), "{error}");
        }
    }
    // The last batch cannot be told from one that was never acknowledged.
    let last = &written[9];
    disk.flip_bit(&path, last.0.0 + 30);
    let (wal, found) = open(&disk, config).unwrap();
    assert_eq!(found, written[..9]);
    let next = wal.append(&[b"next"]).unwrap();
    wal.sync(next).unwrap();
    assert_eq!(wal.read(written[8].0).unwrap(), written[8].1);
    drop(wal);
    let found = open(&disk, config).unwrap().1;
    assert_eq!(found.last().unwrap().1, b"next");
    assert_eq!(found.len(), 10);
}

#[test]
fn damage_of_one_small_record_among_others_in_a_block_is_found() {
    let disk = SimDisk::new();
    let (wal, _) = open(&disk, SMALL).unwrap();
    let mut lsns = Vec::new();
    for index in 0..40 {
        lsns.push(wal.append(&[&payload(index, 50)]).unwrap());
    }
    wal.sync(lsns[39]).unwrap();
    let after = wal.append(&[b"a later batch"]).unwrap();
    wal.sync(after).unwrap();
    drop(wal);
    let path = segments(&disk).remove(0);
    for lsn in lsns {
        let damaged = disk.crash(0);
        damaged.flip_bit(&path, lsn.0 + 40);
        assert_eq!(refusal(&damaged).code, Code::Io);
    }
}

#[test]
fn the_rest_of_a_torn_batch_does_not_join_a_new_one_that_fits_before_it() {
    let disk = SimDisk::new();
    let (wal, _) = open(&disk, SMALL).unwrap();
    let kept = append_each_synced(&wal, 1, 100).remove(0);
    // One batch: a record that fills a block, then another. The first one gets lost.
    let torn = wal.append(&[&payload(1, 4096 - 24)]).unwrap();
    wal.append(&[b"must not come back"]).unwrap();
    wal.sync(wal.last()).unwrap();
    drop(wal);
    disk.flip_bit(&segments(&disk)[0], torn.0 + 100);
    let (wal, found) = open(&disk, SMALL).unwrap();
    assert_eq!(found, std::slice::from_ref(&kept));
    let data = payload(2, 4096 - 24);
    let lsn = wal.append(&[&data]).unwrap();
    wal.sync(lsn).unwrap();
    drop(wal);
    assert_eq!(open(&disk, SMALL).unwrap().1, [kept, (lsn, data)]);
}

#[test]
fn damage_in_an_earlier_segment_is_found_even_at_its_end() {
    let disk = SimDisk::new();
    let (wal, _) = open(&disk, SMALL).unwrap();
    append_each_synced(&wal, 40, 3000);
    drop(wal);
    let paths = segments(&disk);
    assert!(paths.len() > 3);
    for path in &paths[..paths.len() - 1] {
        let file = disk.open(path, OpenMode::default()).unwrap();
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
        let damaged = disk.crash(0);
        damaged.flip_bit(path, end as u64);
        assert!(refusal(&damaged).context.contains(path.to_str().unwrap()));
    }
}

#[test]
fn damage_is_noticed_by_a_read_too() {
    let disk = SimDisk::new();
    let (wal, _) = open(&disk, SMALL).unwrap();
    let written = append_each_synced(&wal, 3, 5000);
    disk.flip_bit(&segments(&disk)[0], written[1].0.0 + 3000);
    assert_eq!(wal.read(written[0].0).unwrap(), written[0].1);
    assert_eq!(wal.read(written[1].0).unwrap_err().code, Code::Io);
}

#[test]
fn old_records_of_a_recycled_segment_are_not_taken_for_new_ones() {
    let disk = SimDisk::new();
    let (wal, _) = open(&disk, SMALL).unwrap();
    // Records of one size, so that old and new ones lie at the same offsets.
    let mut written = Contents::new();
    for round in 0..30 {
        written.extend(append_each_synced(&wal, 7, 4000 + round));
        wal.truncate_before(written[written.len() - 1].0).unwrap();
    }
    drop(wal);
    let (wal, found) = open(&disk, SMALL).unwrap();
    assert_eq!(found[..], written[written.len() - found.len()..]);
    // A segment begins on top of old records; the cut comes right after its first one.
    wal.truncate_after(found[0].0).unwrap();
    let lsn = wal.append(&[b"first"]).unwrap();
    wal.sync(lsn).unwrap();
    for seed in 0..10 {
        let again = open(&disk.crash(seed), SMALL).unwrap().1;
        assert_eq!(again, [found[0].clone(), (lsn, b"first".to_vec())]);
    }
}

#[test]
fn a_missing_segment_is_an_error_unless_it_was_given_up() {
    let disk = SimDisk::new();
    let (wal, _) = open(&disk, SMALL).unwrap();
    append_each_synced(&wal, 40, 3000);
    drop(wal);
    for path in segments(&disk).iter().rev().skip(1) {
        let damaged = disk.crash(0);
        damaged.remove(path).unwrap();
        let error = refusal(&damaged);
        assert!(
            error
                .context
                .contains(&format!("{} is missing", path.display())),
            "{error}"
        );
    }
}

#[test]
fn foreign_and_future_files_are_refused_by_name() {
    let disk = SimDisk::new();
    let (wal, _) = open(&disk, SMALL).unwrap();
    append_each_synced(&wal, 3, 100);
    drop(wal);
    let path = segments(&disk).remove(0);
    for (offset, code, what) in [
        (0, Code::Invalid, "magic"),
        (4, Code::Invalid, "version 0"),
        (30, Code::Io, "checksum"),
    ] {
        let damaged = disk.crash(0);
        damaged.flip_bit(&path, offset);
        let error = refusal(&damaged);
        assert_eq!(error.code, code);
        assert!(
            error.context.contains(what) && error.context.contains("segment-"),
            "{error}"
        );
    }
}
