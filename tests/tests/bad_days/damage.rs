//! Files that are truncated, corrupt or gone.

use crate::attempt::{Attempt, ends, peers, secret, text};
use lumeofs_tests::{Cluster, binary, eventually, run};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// What happens to a file.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Emptied,
    Halved,
    Removed,
    /// The bytes at this offset are inverted.
    Flipped(u64),
}

fn damage(file: &Path, damage: Damage) {
    let open = || File::options().read(true).write(true).open(file).unwrap();
    match damage {
        Damage::Emptied => open().set_len(0).unwrap(),
        Damage::Halved => open().set_len(file.metadata().unwrap().len() / 2).unwrap(),
        Damage::Removed => std::fs::remove_file(file).unwrap(),
        Damage::Flipped(offset) => {
            let mut bytes = [0; 16];
            open().read_exact_at(&mut bytes, offset).unwrap();
            let inverted = bytes.map(|byte: u8| !byte);
            open().write_all_at(&inverted, offset).unwrap();
        }
    }
}

/// A stopped cluster with something in it; its nodes' directories are copied to be damaged.
struct Patient {
    cluster: Cluster,
    blob: Vec<u8>,
}

impl Patient {
    fn new() -> Self {
        let cluster = Cluster::start();
        let blob: Vec<u8> = (0..9_000_001u32).map(|at| (at / 7 * 31) as u8).collect();
        std::fs::write(cluster.mount().join("blob"), &blob).unwrap();
        for number in 0..200 {
            std::fs::write(cluster.mount().join(format!("f{number}")), "small").unwrap();
        }
        File::open(cluster.mount().join("blob"))
            .unwrap()
            .sync_all()
            .unwrap();
        cluster.stop();
        Self { cluster, blob }
    }

    fn check(&self) {
        let mount = self.cluster.mount();
        assert!(std::fs::read(mount.join("blob")).unwrap() == self.blob);
        for number in 0..200 {
            let read = std::fs::read_to_string(mount.join(format!("f{number}")));
            assert_eq!(read.unwrap(), "small");
        }
    }

    fn copy(&self, node: &str) -> PathBuf {
        let copy = self.cluster.scratch().join("copy");
        run("rm", &["-rf", &text(&copy)]);
        let from = text(&self.cluster.dir().join(node));
        run("cp", &["-a", "--sparse=always", &from, &text(&copy)]);
        copy
    }

    fn start_datanode(&self, data: &Path) -> Attempt {
        let mut command = Command::new(binary());
        command.args(["datanode", "--id", "101", "--listen", "127.0.0.1:0"]);
        command.args(["--masters", &self.cluster.masters()]);
        command.args(["--secret", &secret(&self.cluster), "--data"]);
        ends(command.arg(data))
    }

    /// Ends by itself after nine seconds, with 124, if nothing is wrong: [`ends`] waits longer.
    fn start_master(&self, data: &Path) -> Attempt {
        let mut command = Command::new("timeout");
        command.arg("9").arg(binary());
        command.args(["master", "--id", "1", "--peers", &peers(&self.cluster)]);
        command.args(["--secret", &secret(&self.cluster), "--data"]);
        ends(command.arg(data))
    }
}

#[test]
fn a_datanode_with_damaged_files_names_them_and_the_others_bring_it_back() {
    let patient = Patient::new();
    let segment = "chunks/wal/segment-0000000000000001";
    let cases = [
        ("chunks/superblock", Damage::Emptied),
        ("chunks/superblock", Damage::Flipped(0)),
        ("chunks/superblock", Damage::Removed),
        (segment, Damage::Emptied),
        (segment, Damage::Flipped(0)),
        (segment, Damage::Flipped(8192)),
        ("chunks/wal/floor", Damage::Flipped(0)),
        ("chunks/extents/00000000.dat", Damage::Removed),
    ];
    for (file, how) in cases {
        let copy = patient.copy("datanode-101");
        damage(&copy.join(file), how);
        let attempt = patient.start_datanode(&copy);
        println!("{file} {how:?}: {}", attempt.text.trim());
        let name = file.rsplit('/').next().unwrap();
        let named = if name.ends_with(".dat") {
            "extent file"
        } else {
            name
        };
        attempt.says(1, &[named, &text(&copy)]);
    }
    // The way out for one node, while another has data that no longer matches its checksums.
    let dir = patient.cluster.dir();
    let wiped = dir.join("datanode-101");
    damage(&wiped.join(segment), Damage::Flipped(8192));
    patient
        .start_datanode(&wiped)
        .says(1, &["is damaged at offset", "move", "away"]);
    run("rm", &["-r", &text(&wiped)]);
    let extents = dir.join("datanode-102/chunks/extents/00000000.dat");
    let file = File::options().write(true).open(&extents).unwrap();
    for block in 0..2500 {
        file.write_all_at(&[0x5a; 8], block * 4096).unwrap();
    }
    patient.cluster.bring_up(&[]);
    patient.cluster.wait_in_sync(Duration::from_secs(60));
    patient.check();
    // The wiped one has it all again: it is enough together with the sound one.
    patient.cluster.kill("datanode-102");
    patient.check();
}

#[test]
fn a_master_with_damaged_files_names_them_and_a_copied_store_helps() {
    let patient = Patient::new();
    let segment = "metadata/log/segment-0000000000000001";
    let cases = [
        ("superblock", Damage::Emptied),
        ("superblock", Damage::Halved),
        ("superblock", Damage::Removed),
        (segment, Damage::Emptied),
        (segment, Damage::Flipped(0)),
        (segment, Damage::Flipped(8192)),
        (segment, Damage::Removed),
        ("metadata/log/floor", Damage::Flipped(0)),
        ("metadata/store.redb", Damage::Halved),
        ("metadata/store.redb", Damage::Flipped(0)),
        ("metadata/store.redb", Damage::Flipped(20)),
        ("controller/store.redb", Damage::Halved),
    ];
    let ways_out = [
        "start both",
        "restore the directory",
        "its own directory",
        "start again",
    ];
    for (file, how) in cases {
        let copy = patient.copy("master-1");
        damage(&copy.join(file), how);
        let attempt = patient.start_master(&copy);
        println!("{file} {how:?}: {}", attempt.text.trim());
        assert!(matches!(attempt.code, Some(1 | 8)), "{attempt:#?}");
        let way_out = ways_out.iter().any(|way| attempt.text.contains(way));
        assert!(
            way_out && attempt.text.contains(&text(&copy)),
            "{attempt:#?}"
        );
    }
    // Pages in the middle: whatever redb makes of them, they must not be served.
    for offset in [4096, 8192, 16384] {
        let copy = patient.copy("master-1");
        damage(&copy.join("metadata/store.redb"), Damage::Flipped(offset));
        let attempt = patient.start_master(&copy);
        println!("store.redb at {offset}: {:?}", attempt.code);
        // Otherwise the damage was in a page that nothing uses.
        if attempt.code != Some(124) {
            attempt.says(1, &["store.redb", "start both"]);
        }
    }
    let dir = patient.cluster.dir();
    let mine = dir.join("master-1/metadata/store.redb");
    damage(&mine, Damage::Halved);
    run(
        "cp",
        &[
            &text(&dir.join("master-2/metadata/store.redb")),
            &text(&mine),
        ],
    );
    patient.cluster.bring_up(&[]);
    patient.check();
    patient.cluster.kill("master-3");
    eventually("two masters serve", Duration::from_secs(10), || {
        std::fs::write(patient.cluster.mount().join("new"), "new").is_ok()
    });
    patient.check();
}
