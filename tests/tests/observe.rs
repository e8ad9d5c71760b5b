//! What the processes of a cluster tell of themselves: metrics, logs, and the pages that say what to do.

use lumeofs_tests::metrics::{Metrics, get};
use lumeofs_tests::{Cluster, binary, eventually, run};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How long the truth may take, also on a slow machine.
const SOON: Duration = Duration::from_secs(60);

/// The endpoint of each process, by the name that `lumeofs dev status` shows.
fn endpoints(cluster: &Cluster) -> BTreeMap<String, String> {
    let dir = cluster.dir();
    let rows = run(
        binary(),
        &["dev", "status", "--json", "--dir", &dir.to_string_lossy()],
    );
    let rows: serde_json::Value = serde_json::from_str(&rows).unwrap();
    let rows = rows.as_array().unwrap().iter();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    rows.map(|row| (text(&row["name"]), text(&row["metrics"])))
        .collect()
}

/// The metrics of all processes whose names begin so.
fn of(endpoints: &BTreeMap<String, String>, role: &str) -> Vec<Metrics> {
    let named = endpoints.iter().filter(|(name, _)| name.starts_with(role));
    let metrics: Vec<_> = named.map(|(_, address)| Metrics::of(address)).collect();
    assert!(!metrics.is_empty(), "no {role}");
    metrics
}

fn sum(metrics: &[Metrics], name: &str, labels: &[&str]) -> f64 {
    metrics.iter().map(|one| one.sum(name, labels)).sum()
}

fn write_synced(path: &Path, bytes: usize) {
    std::fs::write(path, vec![7; bytes]).unwrap();
    File::open(path).unwrap().sync_all().unwrap();
}

/// `copy_file_range` until nothing is left.
fn copy(from: &File, mut source: u64, to: &File, mut target: u64) -> usize {
    let mut copied = 0;
    loop {
        let once = rustix::fs::copy_file_range(
            from,
            Some(&mut source),
            to,
            Some(&mut target),
            usize::MAX >> 1,
        );
        match once.unwrap() {
            0 => return copied,
            count => copied += count,
        }
    }
}

fn documents() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

#[test]
fn every_process_tells_what_it_does_and_alerts_name_what_is_told() {
    let cluster = Cluster::start();
    cluster.wait_in_sync(Duration::from_secs(60));
    let endpoints = endpoints(&cluster);
    assert_eq!(endpoints.len(), 7, "{endpoints:?}");
    for (name, address) in &endpoints {
        assert_eq!(get(address, "/healthz"), (200, "ok\n".to_owned()), "{name}");
        let metrics = Metrics::of(address);
        for common in ["process_resident_memory_bytes", "lumeofs_clock_seconds"] {
            assert!(metrics.sum(common, &[]) > 0.0, "{name} {common}");
        }
    }

    let before: Vec<_> = ["master", "datanode", "mount"]
        .map(|role| of(&endpoints, role))
        .into();
    write_synced(&cluster.mount().join("measured"), 3 << 20);
    let after: Vec<_> = ["master", "datanode", "mount"]
        .map(|role| of(&endpoints, role))
        .into();
    let grew = |role: usize, name: &str, labels: &[&str]| {
        sum(&after[role], name, labels) - sum(&before[role], name, labels)
    };
    let ok = "outcome=\"ok\"";
    assert!(grew(0, "lumeofs_master_operations_total", &["op=\"create\"", ok]) >= 1.0);
    assert!(
        grew(
            0,
            "lumeofs_master_operation_seconds_count",
            &["op=\"create\""]
        ) >= 1.0
    );
    assert!(
        grew(
            0,
            "lumeofs_master_wal_sync_seconds_count",
            &["group=\"metadata\""]
        ) >= 2.0
    );
    assert!(
        grew(
            0,
            "lumeofs_master_raft_committed_index",
            &["group=\"metadata\""]
        ) >= 3.0
    );
    assert!(
        grew(
            1,
            "lumeofs_datanode_operations_total",
            &["op=\"write\"", ok]
        ) >= 3.0
    );
    assert!(grew(1, "lumeofs_datanode_operations_total", &["op=\"sync\"", ok]) >= 1.0);
    assert!(grew(1, "lumeofs_datanode_written_bytes_total", &[]) >= f64::from(3 << 20));
    assert!(grew(1, "lumeofs_datanode_wal_sync_seconds_count", &["disk="]) >= 3.0);
    assert!(grew(2, "lumeofs_mount_operations_total", &["op=\"write\"", ok]) >= 3.0);
    assert!(grew(2, "lumeofs_mount_written_bytes_total", &[]) >= f64::from(3 << 20));

    let mount = cluster.mount();
    let dir = mount.to_string_lossy();
    let live: serde_json::Value =
        serde_json::from_str(&run(binary(), &["stats", "--json", &dir])).unwrap();
    let written = live["counters"]["written_bytes_total"].as_f64().unwrap();
    assert!(written >= f64::from(3 << 20), "{live}");
    let shown = run(binary(), &["stats", &dir]);
    assert!(
        shown.lines().any(|line| line.starts_with("write ")),
        "{shown}"
    );

    for one in &after[0] {
        assert!(one.sum("lumeofs_master_sessions", &[]) >= 1.0);
        assert!(one.sum("lumeofs_master_raft_store_bytes", &[]) > 0.0);
    }
    for one in &after[1] {
        assert_eq!(one.sum("lumeofs_datanode_disk_ok", &[]), 1.0);
        assert!(one.sum("lumeofs_datanode_disk_free_bytes", &[]) > 0.0);
    }
    assert_eq!(
        sum(&after[2], "lumeofs_mount_sessions_lost_total", &[]),
        0.0
    );

    eventually("a healthy cluster is told", SOON, || is_healthy(&endpoints));
    cluster.kill("datanode-103");
    eventually("a silent datanode is told", SOON, || {
        let masters = of(&endpoints, "master");
        let silent = &["node=\"103\""];
        sum(&masters, "lumeofs_master_datanode_silent", silent) == 1.0
            && sum(&masters, "lumeofs_master_groups", &["level=\"full\""]) == 0.0
            && sum(&masters, "lumeofs_master_groups", &["level=\"reduced\""]) > 0.0
    });
    cluster.restart("datanode-103");
    eventually("a healthy cluster is told again", SOON, || {
        is_healthy(&endpoints)
    });

    let told = ["master", "datanode", "mount"].map(|role| of(&endpoints, role));
    let told = told.into_iter().flatten();
    check_alerts(&told.flat_map(|one| one.families.into_keys()).collect());
}

/// Whether the masters tell of one leader each, and datanodes and the controller of whole groups.
fn is_healthy(endpoints: &BTreeMap<String, String>) -> bool {
    let (masters, datanodes) = (of(endpoints, "master"), of(endpoints, "datanode"));
    let led = ["group=\"metadata\"", "group=\"controller\""]
        .iter()
        .all(|group| {
            sum(&masters, "lumeofs_master_raft_has_quorum", &[group]) == 1.0
                && sum(&masters, "lumeofs_master_raft_has_leader", &[group]) == 3.0
        });
    let whole = sum(&masters, "lumeofs_master_groups", &["level=\"full\""]);
    let role = |name: &str| sum(&datanodes, "lumeofs_datanode_groups", &[name]);
    led && sum(&masters, "lumeofs_master_health_state", &[]) == 0.0
        && whole > 0.0
        && sum(&masters, "lumeofs_master_groups", &[]) == whole
        && role("role=\"primary\"") == whole
        && role("role=\"secondary\"") == 2.0 * whole
}

/// Each metric of the alerts is told by some process, and each alert names a page that is there.
fn check_alerts(told: &BTreeSet<String>) {
    let text = std::fs::read_to_string(documents().join("alerts.yml")).unwrap();
    let (mut alerts, mut pages) = (0, 0);
    for line in text.lines().map(str::trim) {
        if line.starts_with("- alert:") {
            assert_eq!(alerts, pages, "the alert before {line} names no page");
            alerts += 1;
        }
        if let Some(page) = line.strip_prefix("runbook: ") {
            pages += 1;
            let page = page.strip_prefix("docs/").expect(line);
            assert!(documents().join(page).is_file(), "{line}");
        }
        let words = line.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        for word in
            words.filter(|word| word.starts_with("lumeofs_") || word.starts_with("process_"))
        {
            let family = ["_bucket", "_count", "_sum"]
                .iter()
                .find_map(|suffix| word.strip_suffix(suffix))
                .unwrap_or(word);
            assert!(
                told.contains(family) || told.contains(word),
                "no process tells {word}: {line}"
            );
        }
    }
    assert!(alerts > 10, "{alerts} alerts");
    assert_eq!(alerts, pages);
}

#[test]
fn every_page_of_the_runbook_is_in_its_index_and_its_commands_exist() {
    let directory = documents().join("runbook");
    let index = std::fs::read_to_string(directory.join("README.md")).unwrap();
    let mut commands = BTreeSet::new();
    let mut pages = 0;
    for entry in std::fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        commands.extend(commands_of(&text));
        if name != "README.md" {
            pages += 1;
            assert!(
                index.contains(&format!("({name})")),
                "{name} is not in the index"
            );
        }
    }
    assert!(pages > 10, "{pages} pages");
    assert!(commands.len() > 5, "{commands:?}");
    for command in commands {
        let mut arguments: Vec<_> = command.split(' ').collect();
        arguments.push("--help");
        run(binary(), &arguments);
    }
}

/// The commands of `lumeofs` in the fenced lines of a page, up to what is no plain word.
fn commands_of(text: &str) -> Vec<String> {
    let mut fenced = false;
    let mut commands = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        if let Some(rest) = line.trim().strip_prefix("lumeofs ").filter(|_| fenced) {
            let is_plain = |word: &&str| {
                !word.is_empty() && word.chars().all(|letter| letter.is_ascii_lowercase())
            };
            let words: Vec<_> = rest.split(' ').take_while(is_plain).collect();
            commands.push(words.join(" "));
        }
    }
    commands
}

/// The log of a process.
fn log(cluster: &Cluster, name: &str) -> String {
    let path = cluster.dir().join(format!("logs/{name}.log"));
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Request ids of the lines that have all these words.
fn requests(log: &str, words: &[&str]) -> BTreeSet<String> {
    let lines = log
        .lines()
        .filter(|line| words.iter().all(|word| line.contains(word)));
    let id = |line: &str| {
        let (_, rest) = line.split_once("request=")?;
        rest.split(' ').next().map(str::to_owned)
    };
    lines.filter_map(id).collect()
}

#[test]
fn one_request_id_is_in_the_logs_of_mount_master_and_datanode() {
    let cluster = Cluster::start();
    cluster.wait_in_sync(Duration::from_secs(60));
    let endpoints = endpoints(&cluster);
    let masters = ["master-1", "master-2", "master-3"];
    let datanodes = ["datanode-101", "datanode-102", "datanode-103"];
    for (name, address) in &endpoints {
        assert!(!log(&cluster, name).contains(" DEBUG "), "{name}");
        let url = format!("http://{address}");
        let filter =
            "info,openraft=off,lumeofs_fuse=debug,lumeofs_master=debug,lumeofs_datanode=debug";
        let shown = run(binary(), &["admin", "log", &url, filter]);
        assert!(shown.contains("lumeofs_master=debug"), "{shown}");
    }
    let path = cluster.mount().join("linked");
    // A write that waits for the servers itself.
    let mut file = File::options();
    let file = file
        .write(true)
        .create(true)
        .custom_flags(rustix::fs::OFlags::SYNC.bits().cast_signed())
        .open(&path);
    file.unwrap().write_all(&[7; 4096]).unwrap();

    let all = |names: &[&str], words: &[&str]| -> BTreeSet<String> {
        let ids = names
            .iter()
            .map(|name| requests(&log(&cluster, name), words));
        ids.flatten().collect()
    };
    eventually("one id at all three", SOON, || {
        let mount = all(&["mount"], &["DEBUG", "op=\"write\""]);
        let master = all(&masters, &["DEBUG", "operation"]);
        let datanode = all(&datanodes, &["DEBUG", "op=\"write\""]);
        let linked: Vec<_> = mount
            .iter()
            .filter(|id| master.contains(*id) && datanode.contains(*id))
            .collect();
        linked.iter().any(|id| id.len() == 16)
    });

    // Back to what it was: nothing more is told of what is done.
    for address in endpoints.values() {
        run(
            binary(),
            &[
                "admin",
                "log",
                &format!("http://{address}"),
                "info,openraft=off",
            ],
        );
    }
    let lines = |name: &str| log(&cluster, name).matches(" DEBUG ").count();
    let before: Vec<_> = endpoints.keys().map(|name| lines(name)).collect();
    write_synced(&path, 1 << 20);
    let after: Vec<_> = endpoints.keys().map(|name| lines(name)).collect();
    assert_eq!(before, after);

    // With a threshold of nothing everything is slow, and told without debugging; here as JSON.
    let dir = cluster.dir();
    let restarted = Command::new(binary())
        .args(["dev", "restart", "mount", "--dir", &dir.to_string_lossy()])
        .env("LUMEOFS_SLOW_MS", "0")
        .env("LUMEOFS_LOG_FORMAT", "json")
        .status()
        .unwrap();
    assert!(restarted.success());
    write_synced(&path, 1 << 20);
    eventually("slow operations are told", SOON, || {
        let text = log(&cluster, "mount");
        let values = text
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let mut slow = values.filter(|value| value["message"] == "slow operation");
        slow.any(|value| value["request"].as_str().is_some_and(|id| id.len() == 16))
    });
    assert!(
        Metrics::of(&endpoints["mount"]).sum("lumeofs_mount_slow_operations_total", &[]) >= 1.0
    );
}

#[test]
fn datanodes_copy_among_each_other_and_no_mount_carries_the_data() {
    let mut cluster = Cluster::start();
    cluster.wait_in_sync(SOON);
    let (a, b) = (cluster.mount(), cluster.second_mount());
    let open = |path: PathBuf| {
        let mut options = File::options();
        options.read(true).write(true).create(true);
        options.truncate(false).open(path).unwrap()
    };
    // Across two chunks, behind a hole.
    let (begin, data) = ((64 << 20) - 3_000_000, (0..6_000_000_u32));
    let mut data: Vec<u8> = data.map(|at| (at * 7 + at / 251) as u8).collect();
    let source = open(b.join("source"));
    source.write_all_at(&data, begin).unwrap();
    source.sync_all().unwrap();
    // In the memory of the other mount; the destination in that of this one.
    source.write_all_at(b"unsent", begin + 3_000_000).unwrap();
    data[3_000_000..3_000_006].copy_from_slice(b"unsent");
    let (from, to) = (open(a.join("source")), open(a.join("copy")));
    assert_eq!(from.metadata().unwrap().len(), begin + 6_000_000);
    to.write_all_at(b"former", 0).unwrap();
    let endpoints = endpoints(&cluster);
    let bytes = || {
        let metrics = of(&endpoints, "datanode");
        let names = ["written_bytes_total", "range_copied_bytes_total"];
        names.map(|name| sum(&metrics, &format!("lumeofs_datanode_{name}"), &[]))
    };
    let before = bytes();
    assert_eq!(copy(&from, 5, &to, 100) as u64, begin + 6_000_000 - 5);
    let after = bytes();
    assert!(after[0] - before[0] < 1e5, "{before:?} {after:?}");
    assert!(after[1] - before[1] >= 6e6, "{before:?} {after:?}");

    let read = |file: &File, offset: u64, len: usize| {
        let mut read = vec![0; len];
        file.read_exact_at(&mut read, offset).unwrap();
        read
    };
    for mount in [&a, &b] {
        let copied = File::open(mount.join("copy")).unwrap();
        assert_eq!(copied.metadata().unwrap().len(), begin + 6_000_000 + 95);
        assert_eq!(read(&copied, 0, 1000), [&b"former"[..], &[0; 994]].concat());
        assert!(read(&copied, begin + 95, data.len()) == data);
        let data_at = rustix::fs::seek(&copied, rustix::fs::SeekFrom::Data(8192)).unwrap();
        assert!(
            data_at > begin - (1 << 20),
            "the hole was filled: {data_at}"
        );
    }
    // Both are files of their own, and one that has no name any more can be copied.
    source.write_all_at(b"changed", begin).unwrap();
    to.write_all_at(b"other", begin + 100 + 95).unwrap();
    assert!(read(&from, begin + 7, 1000) == data[7..1007]);
    assert!(read(&to, begin + 95, 100) == data[..100]);
    std::fs::remove_file(b.join("source")).unwrap();
    let third = open(a.join("third"));
    assert_eq!(copy(&from, begin, &third, 0), data.len());
    data[..7].copy_from_slice(b"changed");
    assert!(read(&third, 0, data.len()) == data);
    // Tools use it.
    let copied = bytes()[1];
    let named = |name: &str| a.join(name).to_string_lossy().into_owned();
    run("cp", &[&named("third"), &named("fourth")]);
    assert!(std::fs::read(b.join("fourth")).unwrap() == data);
    assert!(bytes()[1] - copied >= 6e6, "cp copied by itself");
}
