//! Suites of others on a mount: what they hold for POSIX holds here, but for what `tests/posix/known.md` says.

use lumeofs_tests::{run, temporary};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The version of pjdfstest that the list of exclusions is for.
const PJDFSTEST: &str = "0.2.2";
/// A suite takes seconds; one that hangs must not hold up all other tests.
const SUITE_SECONDS_MAX: &str = "600";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// pjdfstest, built in the target directory by the first test that needs it. Unoptimised: it waits for the mount.
fn pjdfstest() -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    // target/PROFILE/deps/NAME
    let tools = test.ancestors().nth(3).expect("a target").join("tools");
    let program = tools.join("bin/pjdfstest");
    let wanted = format!("pjdfstest {PJDFSTEST}\n");
    let there = Command::new(&program).arg("--version").output();
    if !there.is_ok_and(|output| output.stdout == wanted.as_bytes()) {
        let (root, build) = (tools.display().to_string(), tools.join("build"));
        let version = format!("={PJDFSTEST}");
        let what = ["install", "pjdfstest", "--version", &version, "--locked"];
        let how = ["--debug", "--force", "--quiet", "--root", &root];
        let place = ["--target-dir", build.to_str().expect("an ASCII path")];
        run(env!("CARGO"), &[&what[..], &how, &place].concat());
        std::fs::remove_dir_all(&build).expect("what it was built from goes");
    }
    program
}

/// Names of the tests that did not run, and of those that ran.
#[derive(Debug, Default)]
struct Results {
    skipped: BTreeSet<String>,
    passed: BTreeSet<String>,
}

/// Runs pjdfstest on the mount of a fresh cluster; panics with its output if a test fails.
fn pjdfstest_on_a_mount(configuration: &str, patterns: &[&str], results: &mut Results) {
    let script = repository().join("scripts/posix");
    let elsewhere = temporary();
    let output = Command::new("timeout")
        .args(["--kill-after=60", SUITE_SECONDS_MAX])
        .arg(script)
        .arg(pjdfstest())
        .arg("-c")
        .arg(repository().join("tests/posix").join(configuration))
        .arg("-s")
        .arg(elsewhere.path())
        .args(patterns)
        .env("LUMEOFS_BINARY", lumeofs_tests::binary())
        .env("NO_COLOR", "1")
        .output()
        .expect("timeout is there");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}\n{text}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    for line in text.lines() {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            [name, "skipped"] => results.skipped.insert(name.to_owned()),
            [name, "ok"] => results.passed.insert(name.to_owned()),
            _ => continue,
        };
    }
}

/// Tests that do not apply, out of the first column of the table.
fn known() -> BTreeSet<String> {
    let list = repository().join("tests/posix/known.md");
    let text = std::fs::read_to_string(&list).expect("the list of exclusions");
    let names = text.lines().filter_map(|line| {
        let (name, _) = line.strip_prefix("| `")?.split_once('`')?;
        Some(name.to_owned())
    });
    names.collect()
}

#[test]
fn all_tests_of_pjdfstest_pass_but_those_that_do_not_apply() {
    let mut results = Results::default();
    pjdfstest_on_a_mount("pjdfstest.toml", &[], &mut results);
    pjdfstest_on_a_mount("pjdfstest-remount.toml", &["erofs"], &mut results);
    let never_run: BTreeSet<_> = results.skipped.difference(&results.passed).collect();
    assert_eq!(never_run, known().iter().collect());
    assert!(results.passed.len() >= 397, "{}", results.passed.len());
}
