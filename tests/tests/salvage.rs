//! All masters are lost and there is no dump: files come back from the datanodes' directories alone, without their names.

use lumeofs_tests::{Cluster, binary};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::process::{Command, Output};

const BLOCK: u64 = 4096;
/// Bytes of a file in one chunk.
const CHUNK: u64 = 64 << 20;

fn content(seed: u64, len: usize) -> Vec<u8> {
    let words = (seed << 32..).map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    words.flat_map(u64::to_le_bytes).take(len).collect()
}

/// Writes a piece of a file durably; the inode's number.
fn write(path: &Path, offset: u64, bytes: &[u8]) -> u64 {
    let options = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path);
    let file = options.expect("a file");
    file.write_all_at(bytes, offset).expect("it is written");
    file.sync_all().expect("it is on disk");
    file.metadata().expect("it is there").ino()
}

fn datanode(arguments: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.arg("datanode").args(arguments);
    command.output().expect("the binary runs")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Flips a bit in a block where it lies on a datanode's disk. How often the block was found.
fn flip(data: &Path, wanted: &[u8]) -> usize {
    let mut flipped = 0;
    for entry in std::fs::read_dir(data.join("chunks/extents")).expect("extents") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "dat") {
            continue;
        }
        let file = File::options().read(true).write(true).open(path);
        let file = file.expect("an extent file");
        let mut found = vec![0; BLOCK as usize];
        for at in (0..file.metadata().expect("its size").len()).step_by(BLOCK as usize) {
            file.read_exact_at(&mut found, at).expect("a block");
            if found == wanted {
                found[9] ^= 4;
                file.write_all_at(&found, at).expect("the bit is flipped");
                flipped += 1;
            }
        }
    }
    flipped
}

#[test]
fn without_masters_and_dumps_the_contents_of_files_come_back_from_the_chunks() {
    let cluster = Cluster::start_with(&["--datanodes", "2", "--replicas", "2"]);
    let mount = cluster.mount();
    let mut files: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    for (seed, len) in [(1, 5), (2, 4096), (3, 300_001), (4, 3 << 20)] {
        let bytes = content(seed, len);
        let inode = write(&mount.join(format!("file-{seed}")), 0, &bytes);
        files.insert(inode, bytes);
    }
    // Two chunks with a hole between their data.
    let (first, second) = (content(5, 100_000), content(6, 200_000));
    let sparse = write(&mount.join("sparse"), 0, &first);
    write(&mount.join("sparse"), CHUNK + BLOCK, &second);
    // Several chunks: data across the borders of the first three, none in the fourth, some in the fifth.
    let several_data = [
        (CHUNK - 70_000, content(11, 150_000)),
        (2 * CHUNK - 4097, content(12, 90_000)),
        (4 * CHUNK + 1234, content(13, 10_000)),
    ];
    for (offset, bytes) in &several_data {
        write(&mount.join("several"), *offset, bytes);
    }
    let several = mount.join("several").metadata().expect("it is there").ino();
    // What was overwritten, cut or deleted does not come back.
    let changed = mount.join("changed");
    write(&changed, 0, &content(7, 1 << 20));
    let inode = write(&changed, 4000, &content(8, 10_000));
    let file = File::options().write(true).open(&changed).expect("a file");
    file.set_len(500_000).expect("it is cut");
    file.sync_all().expect("it is on disk");
    let mut bytes = content(7, 500_000);
    bytes[4000..14_000].copy_from_slice(&content(8, 10_000));
    files.insert(inode, bytes);
    let damaged = write(&mount.join("damaged"), 0, &content(9, 1 << 20));
    drop(file);

    let nodes = ["datanode-101", "datanode-102"].map(|name| cluster.dir().join(name));
    let nodes_text = nodes.each_ref().map(|path| path.to_str().expect("ASCII"));
    let busy = datanode(&["chunks", nodes_text[0]]);
    assert!(said(&busy).contains("stop its datanode"), "{}", said(&busy));
    cluster.kill_all();
    // The masters are gone with all they knew.
    let masters = [1, 2, 3].map(|number| format!("master-{number}"));
    for master in &masters {
        let kept = cluster.scratch().join(master);
        std::fs::rename(cluster.dir().join(master), kept).expect("the directory of a master");
    }

    // One copy of a block is damaged of one file, both are of another.
    let block =
        |seed, at: usize| content(seed, (at + 1) * BLOCK as usize)[at * BLOCK as usize..].to_vec();
    assert_eq!(flip(&nodes[0], &block(4, 100)), 1);
    for node in &nodes {
        assert_eq!(flip(node, &block(9, 30)), 1);
    }

    let listed = datanode(&["chunks", "--json", nodes_text[0]]);
    assert!(listed.status.success(), "{}", said(&listed));
    let listed = String::from_utf8(listed.stdout).expect("text");
    let rows: Vec<Value> = listed
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let of_sparse = rows.iter().filter(|row| row["inode"] == sparse);
    let of_sparse: Vec<_> = of_sparse
        .map(|row| (&row["index"], &row["length"]))
        .collect();
    let ends = [100_000, BLOCK + 200_000].map(|end: u64| end.next_multiple_of(BLOCK));
    assert_eq!(of_sparse.len(), 2, "{listed}");
    assert!(of_sparse.iter().all(|(index, len)| {
        let index = index.as_u64().expect("a number") as usize;
        **len == ends[index]
    }));

    let out = cluster.scratch().join("out");
    let out_text = out.to_str().expect("ASCII");
    let from = nodes_text.join(",");
    let salvaged = datanode(&["salvage", "--from", &from, "--to", out_text, "--json"]);
    assert_eq!(salvaged.status.code(), Some(1), "{}", said(&salvaged));
    let report: Value = serde_json::from_slice(&salvaged.stdout).expect("JSON");
    assert_eq!(report["damaged_blocks"], 1, "{report}");
    assert_eq!(report["damaged"][0]["inode"], damaged, "{report}");
    assert_eq!(report["damaged"][0]["offset"], 30 * BLOCK, "{report}");
    assert_eq!(report["unknown_chunks"], 0, "{report}");
    assert_eq!(report["conflicts"], 0, "{report}");
    let gap = serde_json::json!({"inode": several, "first_index": 3, "last_index": 3});
    assert_eq!(report["missing"], Value::from(vec![gap]), "{report}");

    let read = |inode: u64| std::fs::read(out.join(format!("inode-{inode}"))).expect("a file");
    for (inode, bytes) in &files {
        let found = read(*inode);
        assert_eq!(found.len(), bytes.len().next_multiple_of(BLOCK as usize));
        let (data, rest) = found.split_at(bytes.len());
        assert!(data == bytes, "inode {inode}");
        assert!(rest.iter().all(|byte| *byte == 0), "inode {inode}");
    }
    let mut expected = content(9, 1 << 20);
    expected[30 * BLOCK as usize..31 * BLOCK as usize].fill(0);
    assert!(read(damaged) == expected, "the other blocks are there");
    let found = read(sparse);
    assert!(found[..100_000] == first);
    assert!(
        found[100_000..(CHUNK + BLOCK) as usize]
            .iter()
            .all(|byte| *byte == 0)
    );
    assert!(found[(CHUNK + BLOCK) as usize..][..200_000] == second);
    let blocks = out
        .join(format!("inode-{sparse}"))
        .metadata()
        .expect("it is there");
    assert!(blocks.blocks() * 512 < 1 << 20, "the hole takes no space");

    let found = File::open(out.join(format!("inode-{several}"))).expect("a file");
    let mut end = 0;
    for (offset, bytes) in &several_data {
        let mut read = vec![1; bytes.len() + 10_000];
        found
            .read_exact_at(&mut read, offset - 10_000)
            .expect("it is there");
        let (hole, data) = read.split_at(10_000);
        assert!(hole.iter().all(|byte| *byte == 0) && data == bytes);
        end = offset + bytes.len() as u64;
    }
    let size = found.metadata().expect("its size").len();
    assert_eq!(size, end.next_multiple_of(BLOCK));

    let again = datanode(&["salvage", "--from", &from, "--to", out_text]);
    assert_eq!(again.status.code(), Some(4), "{}", said(&again));

    // The datanodes' directories are as they were: with its masters the cluster goes on from them.
    for master in &masters {
        let kept = cluster.scratch().join(master);
        std::fs::rename(kept, cluster.dir().join(master)).expect("the directory of a master");
    }
    cluster.bring_up(&[]);
    let bytes = std::fs::read(mount.join("file-3")).expect("a file");
    assert!(bytes == content(3, 300_001));
}
