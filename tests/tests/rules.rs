//! The rules of the house that a machine can hold: who depends on whom, licences, names of crates that
//! only one place may know.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

fn metadata() -> Value {
    // Packages of other platforms are not downloaded, and need not be.
    let version = Command::new("rustc")
        .arg("-vV")
        .output()
        .expect("rustc runs");
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .expect("rustc names its host");
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline"])
        .args(["--filter-platform", host])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Direct normal dependencies of each crate of the workspace.
fn dependencies(metadata: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let packages = metadata["packages"].as_array().expect("packages").iter();
    let ours = packages.filter(|package| package["source"].is_null());
    ours.map(|package| {
        let direct = package["dependencies"]
            .as_array()
            .expect("dependencies")
            .iter();
        let direct = direct
            .filter(|dependency| dependency["kind"].is_null())
            .map(|dependency| dependency["name"].as_str().expect("a name").to_owned());
        (
            package["name"].as_str().expect("a name").to_owned(),
            direct.collect(),
        )
    })
    .collect()
}

#[test]
fn crates_depend_downwards_only() {
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("lumeofs-base", &[][..]),
        ("lumeofs-wal", &["lumeofs-base"][..]),
        ("lumeofs-proto", &["lumeofs-base"][..]),
        ("lumeofs-meta", &["lumeofs-base"][..]),
        ("lumeofs-replica", &["lumeofs-base"][..]),
        ("lumeofs-lease", &["lumeofs-base", "lumeofs-meta"][..]),
        (
            "lumeofs-master",
            &[
                "lumeofs-base",
                "lumeofs-lease",
                "lumeofs-meta",
                "lumeofs-proto",
                "lumeofs-wal",
            ][..],
        ),
        (
            "lumeofs-datanode",
            &[
                "lumeofs-base",
                "lumeofs-proto",
                "lumeofs-replica",
                "lumeofs-wal",
            ][..],
        ),
        (
            "lumeofs-client",
            &[
                "lumeofs-base",
                "lumeofs-lease",
                "lumeofs-meta",
                "lumeofs-proto",
            ][..],
        ),
        (
            "lumeofs-fuse",
            &[
                "lumeofs-base",
                "lumeofs-client",
                "lumeofs-meta",
                "lumeofs-proto",
            ][..],
        ),
    ]);
    for (name, direct) in dependencies(&metadata()) {
        let Some(allowed) = allowed.get(name.as_str()) else {
            assert!(
                matches!(name.as_str(), "lumeofs" | "lumeofs-tests"),
                "{name} has no rule here"
            );
            continue;
        };
        for dependency in direct
            .iter()
            .filter(|dependency| dependency.starts_with("lumeofs"))
        {
            assert!(
                allowed.contains(&dependency.as_str()),
                "{name} must not depend on {dependency}"
            );
        }
    }
}

#[test]
fn each_foreign_interface_is_known_in_one_place() {
    let places: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("fuser", &["lumeofs-fuse"][..]),
        ("openraft", &["lumeofs-master"][..]),
        ("redb", &["lumeofs-master"][..]),
        (
            "tonic",
            &[
                "lumeofs",
                "lumeofs-master",
                "lumeofs-datanode",
                "lumeofs-proto",
            ][..],
        ),
        (
            "prost",
            &[
                "lumeofs-client",
                "lumeofs-datanode",
                "lumeofs-master",
                "lumeofs-proto",
            ][..],
        ),
        ("clap", &["lumeofs"][..]),
    ]);
    for (name, direct) in dependencies(&metadata()) {
        for (foreign, places) in &places {
            assert!(
                !direct.contains(*foreign) || places.contains(&name.as_str()),
                "{name} must not know {foreign}"
            );
        }
    }
}

#[test]
fn the_pure_crates_have_neither_io_nor_time_nor_threads() {
    for name in ["lumeofs-lease", "lumeofs-meta", "lumeofs-replica"] {
        let direct = &dependencies(&metadata())[name];
        for foreign in [
            "tokio",
            "tonic",
            "prost",
            "redb",
            "crossbeam",
            "parking_lot",
            "rand",
            "libc",
            "rustix",
        ] {
            assert!(
                !direct.contains(foreign),
                "{name} is pure and must not know {foreign}"
            );
        }
        for file in sources(
            &Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("..")
                .join(name)
                .join("src"),
        ) {
            let text = std::fs::read_to_string(&file).expect("a source file");
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            for word in [
                "std::fs",
                "std::net",
                "std::thread",
                "std::process",
                "std::env",
                "SystemTime",
                "SystemClock",
                "Instant",
                "OsDisk",
                "entropy",
            ] {
                assert!(!code.contains(word), "{} uses {word}", file.display());
            }
            // Their order is random: what the state machines of all members must do alike cannot go by it.
            for word in ["HashMap", "HashSet"] {
                let is_soft = name == "lumeofs-lease";
                assert!(
                    is_soft || !code.contains(word),
                    "{} uses {word}",
                    file.display()
                );
            }
        }
    }
}

fn sources(directory: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).expect("a directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs")
            && !path.ends_with("tests.rs")
        {
            found.push(path);
        }
    }
    found
}

const PERMISSIVE: [&str; 11] = [
    "MIT",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "Unicode-3.0",
    "CC0-1.0",
    "Unlicense",
    "BSL-1.0",
    "0BSD",
];

#[test]
fn licences_of_all_dependencies_are_permissive() {
    let metadata = metadata();
    for package in metadata["packages"].as_array().expect("packages") {
        let name = package["name"].as_str().expect("a name");
        let licence = package["license"].as_str().unwrap_or("");
        assert!(is_permissive(licence), "{name}: licence {licence:?}");
    }
}

#[test]
fn licences_are_read_with_their_parentheses() {
    for licence in [
        "MIT",
        "MIT/GPL-3.0",
        "(MIT OR GPL-3.0) AND Unicode-3.0",
        "GPL-2.0 OR Apache-2.0 WITH LLVM-exception",
    ] {
        assert!(is_permissive(licence), "{licence}");
    }
    for licence in [
        "",
        "GPL-3.0",
        "(MIT OR Apache-2.0) AND GPL-3.0",
        "MIT AND",
        "MIT)",
    ] {
        assert!(!is_permissive(licence), "{licence}");
    }
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

/// Whether an SPDX expression leaves a choice in which everything is permissive. What cannot be read does not.
fn is_permissive(licence: &str) -> bool {
    let spaced = licence
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    any_of(&mut words) == Some(true) && words.next().is_none()
}

/// `A OR B`, which binds weaker than AND.
fn any_of(words: &mut Words<'_>) -> Option<bool> {
    let mut any = all_of(words)?;
    while words.next_if_eq(&"OR").is_some() {
        any |= all_of(words)?;
    }
    Some(any)
}

/// `A AND B`.
fn all_of(words: &mut Words<'_>) -> Option<bool> {
    let mut all = one(words)?;
    while words.next_if_eq(&"AND").is_some() {
        all &= one(words)?;
    }
    Some(all)
}

/// A licence, or an expression in parentheses.
fn one(words: &mut Words<'_>) -> Option<bool> {
    let word = words.next()?;
    if word == "(" {
        let inner = any_of(words)?;
        return words.next_if_eq(&")").map(|_| inner);
    }
    // An exception only permits more.
    if words.next_if_eq(&"WITH").is_some() {
        words.next()?;
    }
    Some(PERMISSIVE.contains(&word))
}
