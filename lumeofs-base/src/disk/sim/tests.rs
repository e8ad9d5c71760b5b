//! The simulated disk keeps what was synced, may lose the rest, and behaves as the real one.

use super::*;
use crate::AlignedBuf;
use crate::disk::os::OsDisk;

const CREATE: OpenMode = OpenMode {
    create: true,
    direct: false,
    dsync: false,
};

fn read(disk: &dyn Disk, path: &str) -> Option<Vec<u8>> {
    let file = disk.open(Path::new(path), OpenMode::default()).ok()?;
    let mut data = vec![0; file.len().unwrap() as usize];
    file.read_exact_at(&mut data, 0).unwrap();
    Some(data)
}

#[test]
fn what_was_synced_survives_every_crash() {
    let disk = SimDisk::new();
    let file = disk.open(Path::new("a"), CREATE).unwrap();
    file.write_all_at(b"synced", 0).unwrap();
    file.sync().unwrap();
    disk.sync_dir(Path::new("")).unwrap();
    file.write_all_at(b"UN", 2).unwrap();
    let mut outcomes = std::collections::BTreeSet::new();
    for seed in 0..50 {
        outcomes.insert(read(&disk.crash(seed), "a").unwrap());
    }
    assert_eq!(
        outcomes.into_iter().collect::<Vec<_>>(),
        [b"syUNed".to_vec(), b"synced".to_vec()]
    );
}

#[test]
fn unsynced_writes_are_torn_between_sectors_and_reordered() {
    let disk = SimDisk::new();
    let file = disk.open(Path::new("a"), CREATE).unwrap();
    file.set_len(8192).unwrap();
    file.sync().unwrap();
    disk.sync_dir(Path::new("")).unwrap();
    file.write_all_at(&[1; 4096], 0).unwrap();
    file.write_all_at(&[2; 4096], 4096).unwrap();
    let (mut torn, mut reordered) = (false, false);
    for seed in 0..200 {
        let data = read(&disk.crash(seed), "a").unwrap();
        for sector in data.chunks(512) {
            assert!(
                sector.iter().all(|byte| *byte == sector[0]),
                "a sector is atomic"
            );
        }
        torn |= data[..4096].contains(&0) && data[..4096].contains(&1);
        reordered |= data[0..4096] == [0; 4096] && data[4096..] == [2; 4096];
    }
    assert!(torn && reordered);
}

#[test]
fn names_need_a_sync_of_their_directory() {
    let disk = SimDisk::new();
    disk.create_dir_all(Path::new("d/e")).unwrap();
    disk.sync_dir(Path::new("")).unwrap();
    disk.sync_dir(Path::new("d")).unwrap();
    disk.open(Path::new("d/e/old"), CREATE).unwrap();
    disk.sync_dir(Path::new("d/e")).unwrap();
    disk.rename(Path::new("d/e/old"), Path::new("d/e/new"))
        .unwrap();
    let (mut old, mut new) = (0, 0);
    for seed in 0..50 {
        let names = disk.crash(seed).list(Path::new("d/e")).unwrap();
        assert_eq!(names.len(), 1, "a rename is atomic");
        if names[0] == Path::new("old") {
            old += 1;
        } else {
            new += 1;
        }
    }
    assert!(old > 0 && new > 0);
    disk.sync_dir(Path::new("d/e")).unwrap();
    assert!((0..50).all(|seed| read(&disk.crash(seed), "d/e/new").is_some()));
}

#[test]
fn a_directory_that_was_lost_takes_its_files_along() {
    let disk = SimDisk::new();
    disk.create_dir_all(Path::new("d")).unwrap();
    disk.open(Path::new("d/f"), CREATE).unwrap();
    disk.sync_dir(Path::new("d")).unwrap();
    let lost = (0..50)
        .filter(|&seed| read(&disk.crash(seed), "d/f").is_none())
        .count();
    assert!(lost > 0 && lost < 50);
}

#[test]
fn nothing_is_durable_after_the_freeze_and_order_holds() {
    let disk = SimDisk::new();
    let file = disk
        .open(
            Path::new("a"),
            OpenMode {
                create: true,
                direct: false,
                dsync: true,
            },
        )
        .unwrap();
    disk.sync_dir(Path::new("")).unwrap();
    disk.freeze_after_syncs(2);
    for (index, value) in [(0, 1), (1, 2), (2, 3)] {
        file.write_all_at(&[value; 512], index * 512).unwrap();
    }
    assert!(disk.is_frozen());
    assert_eq!(disk.sync_count(), 4);
    let mut lengths = std::collections::BTreeSet::new();
    for seed in 0..50 {
        lengths.insert(read(&disk.crash(seed), "a").unwrap().len());
    }
    let lengths: Vec<_> = lengths.into_iter().collect();
    assert_eq!(
        lengths,
        [512, 1024],
        "the write under way may be kept, the one after it cannot"
    );
}

#[test]
fn a_failed_sync_is_not_repaired_by_a_later_one() {
    let disk = SimDisk::new();
    let file = disk.open(Path::new("a"), CREATE).unwrap();
    disk.sync_dir(Path::new("")).unwrap();
    file.write_all_at(b"gone", 0).unwrap();
    disk.fail_syncs(io::ErrorKind::Other);
    assert!(file.sync().is_err());
    disk.fail_syncs(None);
    file.sync().unwrap();
    assert_eq!(read(&disk, "a").unwrap(), b"gone");
    assert!((0..20).all(|seed| read(&disk.crash(seed), "a").unwrap().is_empty()));
}

#[test]
fn a_full_disk_says_so_and_recovers_when_files_go() {
    let disk = SimDisk::new();
    disk.set_capacity(3 * 4096);
    let file = disk.open(Path::new("a"), CREATE).unwrap();
    file.allocate(0, 2 * 4096).unwrap();
    file.write_all_at(&[1; 8192], 0).unwrap();
    let other = disk.open(Path::new("b"), CREATE).unwrap();
    let error = other.write_all_at(&[1; 8192], 0).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert_eq!(disk.space(Path::new("")).unwrap(), (12288, 4096));
    drop(file);
    disk.remove(Path::new("a")).unwrap();
    other.write_all_at(&[1; 8192], 0).unwrap();
}

#[test]
fn answers_as_the_real_disk_does() {
    let root = std::env::temp_dir().join(format!("lumeofs-simdisk-{}", std::process::id()));
    std::fs::create_dir_all(&root).unwrap();
    let disks: [Arc<dyn Disk>; 2] = [Arc::new(OsDisk::new(&root)), Arc::new(SimDisk::new())];
    let logs = disks.map(|disk| exercise(&*disk));
    std::fs::remove_dir_all(&root).unwrap();
    assert_eq!(logs[0], logs[1]);
}

fn exercise(disk: &dyn Disk) -> Vec<String> {
    let mut log = Vec::new();
    let p = Path::new;
    let kind = |result: io::Result<()>| format!("{:?}", result.map_err(|error| error.kind()));
    log.push(kind(disk.open(p("none"), OpenMode::default()).map(drop)));
    log.push(kind(disk.open(p("no/file"), CREATE).map(drop)));
    log.push(kind(disk.list(p("none")).map(drop)));
    log.push(kind(disk.remove(p("none"))));
    log.push(kind(disk.rename(p("none"), p("other"))));
    log.push(kind(disk.create_dir_all(p("x/y"))));
    log.push(kind(disk.create_dir_all(p("x/y"))));
    let file = disk.open(p("x/y/f"), CREATE).unwrap();
    file.write_all_at(b"hello", 10).unwrap();
    let mut buf = [9; 15];
    log.push(kind(file.read_exact_at(&mut buf, 0)));
    log.push(format!("{buf:?}"));
    log.push(kind(file.read_exact_at(&mut buf, 1)));
    file.set_len(12).unwrap();
    file.set_len(15).unwrap();
    log.push(kind(file.read_exact_at(&mut buf, 0)));
    log.push(format!("{buf:?}"));
    file.allocate(0, 5000).unwrap();
    log.push(format!("{}", file.len().unwrap()));
    log.push(kind(disk.open(p("x/y"), OpenMode::default()).map(drop)));
    disk.open(p("x/y/g"), CREATE).unwrap();
    log.push(kind(disk.rename(p("x/y/f"), p("x/y/g"))));
    log.push(format!(
        "{:?} {:?}",
        disk.list(p("x/y")).unwrap(),
        disk.list(p("x")).unwrap()
    ));
    log.push(kind(disk.remove(p("x/y/g"))));
    log.push(kind(file.read_exact_at(&mut buf, 0)));
    log.push(kind(file.sync().and_then(|()| disk.sync_dir(p("x/y")))));
    let mode = OpenMode {
        create: true,
        direct: true,
        dsync: true,
    };
    let direct = disk.open(p("x/direct"), mode).unwrap();
    let mut block = AlignedBuf::copy_of(&[7; BLOCK_SIZE]);
    log.push(kind(direct.write_all_at(&block, BLOCK_SIZE as u64)));
    log.push(kind(direct.read_exact_at(&mut block, 0)));
    log.push(format!("{}", block.iter().all(|byte| *byte == 0)));
    log
}
