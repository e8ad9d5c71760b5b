//! A power cut of all nodes at once. `kill -9` keeps the page cache; here the disk itself is frozen: all data
//! directories lie on ext4 in an image file on XFS, and a reflink copy of that file is what a cut would have left.
//!
//! `LUMEOFS_ROUNDS` sets the number of cuts.

use lumeofs_tests::{Cluster, LoopMounts, run, temporary};
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// XFS in a loop file, holding images of the disk under test.
struct Shelf {
    mounts: LoopMounts,
    directory: tempfile::TempDir,
}

impl Shelf {
    fn new() -> Self {
        let directory = temporary();
        let (file, xfs) = (
            directory.path().join("xfs.img"),
            directory.path().join("xfs"),
        );
        let mkfs = ["mkfs.xfs", "-q", "-m", "reflink=1"];
        LoopMounts::format(&file, 24 << 30, &mkfs);
        let mut mounts = LoopMounts::default();
        mounts.mount(&file, &xfs, "loop");
        Self { mounts, directory }
    }

    fn image(&self, round: usize) -> PathBuf {
        self.directory.path().join(format!("xfs/disk-{round}.img"))
    }

    fn point(&self, round: usize) -> PathBuf {
        self.directory.path().join(format!("disk-{round}"))
    }

    fn first_disk(&mut self) -> PathBuf {
        let (image, point) = (self.image(0), self.point(0));
        let mkfs = ["mkfs.ext4", "-q", "-E", "lazy_itable_init=1"];
        LoopMounts::format(&image, 8 << 30, &mkfs);
        self.mounts.mount(&image, &point, "loop");
        point
    }

    /// What a cut at this moment leaves of the disk of `round`, mounted as that of the next.
    fn cut(&self, round: usize) {
        run(
            "cp",
            &[
                "--reflink=always",
                self.image(round).to_str().unwrap(),
                self.image(round + 1).to_str().unwrap(),
            ],
        );
    }

    fn next_disk(&mut self, round: usize) -> PathBuf {
        let (old, image, point) = (
            self.point(round),
            self.image(round + 1),
            self.point(round + 1),
        );
        self.mounts.unmount(&old);
        std::fs::remove_file(self.image(round)).unwrap();
        self.mounts.mount(&image, &point, "loop");
        point
    }
}

/// What was acknowledged: for each file its contents at the last acknowledgement.
type Manifest = Arc<Mutex<Vec<(PathBuf, Vec<u8>)>>>;

/// Writes files without a pause; each enters the manifest once it is acknowledged.
fn writer(
    directory: PathBuf,
    thread: usize,
    sync: bool,
    stop: Arc<AtomicBool>,
    manifest: Manifest,
) {
    std::fs::create_dir_all(&directory).unwrap();
    let mut count = 0usize;
    while !stop.load(Ordering::Relaxed) {
        let path = directory.join(format!("{thread}-{count}"));
        let sizes = [1, 4096, 5000, 300_000, 2_000_003];
        let data: Vec<u8> = (0..sizes[count % sizes.len()])
            .map(|i| (i * 31 + count * 7 + thread) as u8)
            .collect();
        // The machine loses power under the writer: from then on it sees errors.
        let written = || -> std::io::Result<()> {
            let mut file = std::fs::File::create_new(&path)?;
            for piece in data.chunks(70_000) {
                file.write_all(piece)?;
            }
            if sync {
                file.sync_all()?;
            }
            Ok(())
        };
        if written().is_err() {
            return;
        }
        manifest.lock().unwrap().push((
            path.strip_prefix(directory.parent().unwrap())
                .unwrap()
                .into(),
            data,
        ));
        count += 1;
    }
}

fn cut_rounds(durability: &str, sync: bool) {
    let rounds = std::env::var("LUMEOFS_ROUNDS").map_or(2, |text| text.parse().expect("a number"));
    let mut shelf = Shelf::new();
    let mut disk = shelf.first_disk();
    let arguments = ["--durability", durability];
    let mut cluster = Cluster::start_at(&disk.join("cluster"), &arguments);
    let manifest: Manifest = Arc::default();
    for round in 0..rounds {
        let stop = Arc::new(AtomicBool::new(false));
        let directory = cluster.mount().join(format!("round-{round}"));
        let threads: Vec<_> = (0..3)
            .map(|thread| {
                let (directory, stop, manifest) =
                    (directory.clone(), stop.clone(), manifest.clone());
                std::thread::spawn(move || writer(directory, thread, sync, stop, manifest))
            })
            .collect();
        std::thread::sleep(Duration::from_millis(3000 + 700 * round as u64 % 2100));
        let acknowledged = manifest.lock().unwrap().clone();
        shelf.cut(round);
        stop.store(true, Ordering::Relaxed);
        cluster.kill_all();
        for thread in threads {
            thread.join().unwrap();
        }
        drop(cluster);
        disk = shelf.next_disk(round);
        cluster = Cluster::start_at(&disk.join("cluster"), &arguments);
        for (path, data) in &acknowledged {
            let read = std::fs::read(cluster.mount().join(path));
            let read =
                read.unwrap_or_else(|error| panic!("round {round}: {}: {error}", path.display()));
            assert!(
                read == *data,
                "round {round}: {} is not what was acknowledged",
                path.display()
            );
        }
        println!(
            "round {round}: {} acknowledged files are there",
            acknowledged.len()
        );
        // What was acknowledged after the cut was lost with it.
        *manifest.lock().unwrap() = acknowledged;
        cluster.wait_in_sync(Duration::from_secs(60));
    }
}

#[test]
fn what_was_fsynced_survives_a_power_cut_of_all_nodes() {
    cut_rounds("fsync", true);
}

#[test]
fn with_durability_always_whatever_was_written_survives() {
    cut_rounds("always", false);
}
