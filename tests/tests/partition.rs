//! Nodes that are cut off from each other: each in its own network namespace, links lost without a word.

use lumeofs_tests::{Site, eventually};
use std::path::Path;
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(40);

/// The name of what these tests make.
const PREFIX: &str = "lmfs";

/// All hosts but these.
fn others<'a>(site: &'a Site, but: &'a [&str]) -> Vec<&'static str> {
    site.hosts()
        .names()
        .filter(|host| !but.contains(host))
        .collect()
}

/// A mount with `on-outage=eio` may fail now and then, and shows this in the end.
fn shows(file: &Path, text: &str) {
    eventually("the cut-off mount sees the truth", DEADLINE, || {
        std::fs::read_to_string(file).is_ok_and(|read| read == text)
    });
}

#[test]
fn a_partitioned_old_leader_answers_nothing_stale() {
    let mut site = Site::start(PREFIX, false);
    let a = site.mount("a", "a", "on-outage=block");
    let b = site.mount("b", "b", "on-outage=eio");
    std::fs::write(a.join("file"), "0").unwrap();
    shows(&b.join("file"), "0");
    let leader = site.leader("metadata");
    // The old leader and client b stay together; all others lose them.
    let others = others(&site, &[leader, "b"]);
    site.hosts().cut_both(leader, &others);
    site.hosts().cut_both("b", &others);
    let begun = Instant::now();
    let (mut wrote, mut refused) = (0, 0);
    while begun.elapsed() < Duration::from_secs(12) {
        let next = wrote + 1;
        std::fs::write(a.join("file"), next.to_string()).unwrap();
        wrote = next;
        // Whoever answers b after a's write returned must show it.
        match std::fs::read_to_string(b.join("file")) {
            Ok(read) => {
                let at = begun.elapsed();
                assert_eq!(
                    read,
                    wrote.to_string(),
                    "a stale answer {at:?} after the cut"
                );
            }
            Err(_) => refused += 1,
        }
    }
    assert!(wrote > 0, "the majority goes on");
    assert!(refused > 0, "b was cut off");
    site.hosts().heal();
    shows(&b.join("file"), &wrote.to_string());
}

#[test]
fn a_partitioned_old_primary_answers_nothing_stale() {
    let mut site = Site::start(PREFIX, false);
    let a = site.mount("a", "a", "on-outage=block");
    let b = site.mount("b", "b", "on-outage=eio");
    // Enough files to have some in a group of which d1 is the primary.
    let name = |number: usize| format!("file{number}");
    for number in 0..24 {
        std::fs::write(a.join(name(number)), "0").unwrap();
        shows(&b.join(name(number)), "0");
    }
    // d1 still talks with client b, but with nobody else; b reaches everybody.
    let others = others(&site, &["d1", "b"]);
    site.hosts().cut_both("d1", &others);
    let mut answers = 0;
    for round in 1..=3 {
        for number in 0..24 {
            let text = format!("{round}");
            std::fs::write(a.join(name(number)), &text).unwrap();
            if let Ok(read) = std::fs::read_to_string(b.join(name(number))) {
                assert_eq!(read, text, "a stale answer for {}", name(number));
                answers += 1;
            }
        }
    }
    assert!(answers > 0, "b was answered");
    site.hosts().heal();
    eventually("all groups are in sync again", DEADLINE, || site.in_sync());
    for number in 0..24 {
        shows(&b.join(name(number)), "3");
    }
}
