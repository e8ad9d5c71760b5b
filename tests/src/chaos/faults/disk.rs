//! Disks that are full, fail, refuse writes or forget.

use super::super::Random;
use super::super::fault::Fault;
use crate::{Site, fill, pull_out, run};
use serde_json::Value;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// Blocks in each of which one bit flips.
const FLIPS: u64 = 40;
const BLOCK: u64 = 4096;

/// Something else takes all space of a disk.
pub(in super::super) struct Full {
    host: &'static str,
    hog: Option<PathBuf>,
}

impl Full {
    pub(in super::super) fn new(host: &'static str) -> Self {
        Self { host, hog: None }
    }
}

impl Fault for Full {
    fn target(&self) -> String {
        self.host.into()
    }

    fn inject(&mut self, site: &mut Site) {
        self.hog = Some(fill(&site.disk(self.host)));
        takes_no_writes(site, self.host);
    }

    fn heal(&mut self, site: &mut Site) {
        let hog = self.hog.take().expect("it was made");
        std::fs::remove_file(hog).expect("the disk takes a removal");
        // What was left of the room may hold an empty file of the check.
        let _ = std::fs::remove_file(site.disk(self.host).join("probe"));
        // A server may have given up; an administrator starts it again.
        if site.pid(self.host).is_none() {
            site.start_node(self.host);
        }
    }
}

/// Every access fails with EIO.
pub(in super::super) struct Pulled(&'static str);

impl Pulled {
    pub(in super::super) fn new(host: &'static str) -> Self {
        Self(host)
    }
}

impl Fault for Pulled {
    fn target(&self) -> String {
        self.0.into()
    }

    fn inject(&mut self, site: &mut Site) {
        pull_out(&site.disk(self.0));
        takes_no_writes(site, self.0);
    }

    fn heal(&mut self, site: &mut Site) {
        site.terminate(self.0);
        site.replug(self.0);
        site.start_node(self.0);
    }
}

/// The kernel has seen an error and makes the filesystem read-only: reads go on, writes are EROFS.
pub(in super::super) struct ReadOnly(&'static str);

impl ReadOnly {
    pub(in super::super) fn new(host: &'static str) -> Self {
        Self(host)
    }
}

impl Fault for ReadOnly {
    fn target(&self) -> String {
        self.0.into()
    }

    fn inject(&mut self, site: &mut Site) {
        let disk = site.disk(self.0).display().to_string();
        let device = run("findmnt", &["-n", "-o", "SOURCE", &disk]);
        let device = device.trim().trim_start_matches("/dev/");
        let trigger = format!("/sys/fs/ext4/{device}/trigger_fs_error");
        std::fs::write(trigger, "an error for a test\n").expect("ext4 can be told of an error");
        takes_no_writes(site, self.0);
    }

    fn heal(&mut self, site: &mut Site) {
        site.terminate(self.0);
        site.replug(self.0);
        site.start_node(self.0);
    }
}

/// A fault that is none would pass every check. What [`fill`] cannot take is less than this writes.
fn takes_no_writes(site: &Site, host: &str) {
    let probe = site.disk(host).join("probe");
    let written = std::fs::write(&probe, vec![1; 2 << 20]);
    assert!(written.is_err(), "the disk of {host} still takes writes");
}

/// Bits that flip while nobody looks, in data that lies on the disk.
pub(in super::super) struct Flipped {
    host: &'static str,
    random: Random,
    flipped: u64,
}

impl Flipped {
    pub(in super::super) fn new(host: &'static str, random: &mut Random) -> Self {
        Self {
            host,
            random: Random::new(random.number()),
            flipped: 0,
        }
    }

    /// Flips one bit in each of some blocks that are not empty.
    fn flip(&mut self, file: &Path, wanted: u64) {
        let opened = File::options().read(true).write(true).open(file);
        let extents = opened.expect("an extent file");
        let blocks = extents.metadata().expect("an extent file").len() / BLOCK;
        let mut block = [0; BLOCK as usize];
        let mut done = 0;
        // Most of the file is empty: look at many.
        for _ in 0..blocks.min(20_000) {
            let at = self.random.below(blocks) * BLOCK;
            extents.read_exact_at(&mut block, at).expect("a block");
            if block.iter().all(|byte| *byte == 0) {
                continue;
            }
            let (byte, bit) = (self.random.below(BLOCK), self.random.below(8));
            let flipped = block[byte as usize] ^ (1 << bit);
            let written = extents.write_all_at(&[flipped], at + byte);
            written.expect("the disk takes a byte");
            done += 1;
            if done == wanted {
                break;
            }
        }
        extents.sync_all().expect("the disk takes a byte");
        self.flipped += done;
    }
}

impl Fault for Flipped {
    fn target(&self) -> String {
        self.host.into()
    }

    fn inject(&mut self, site: &mut Site) {
        let extents = site.data(self.host).join("chunks/extents");
        let names = std::fs::read_dir(&extents).expect("extent files").flatten();
        let files: Vec<_> = names
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "dat"))
            .collect();
        for file in &files {
            self.flip(file, FLIPS.div_ceil(files.len() as u64));
        }
        assert!(self.flipped > 0, "no data lies in {}", extents.display());
    }

    fn heal(&mut self, site: &mut Site) {
        let started = site.admin(&["scrub", "start"]);
        started.expect("the scrub starts");
    }

    fn is_over(&mut self, site: &mut Site) -> bool {
        let status = site.admin(&["scrub", "status"]);
        status.is_ok_and(|status| !runs(&status))
    }
}

/// Whether by `scrub status` a round is under way, something damaged is not repaired, or a datanode cannot tell.
fn runs(status: &Value) -> bool {
    let nodes = status.as_array().expect("a list of datanodes");
    nodes.iter().any(|node| {
        let disks = node["disks"].as_array();
        disks.is_none_or(|disks| {
            disks
                .iter()
                .any(|disk| disk["state"] != "idle" || disk["waiting_blocks"] != 0)
        })
    })
}
