//! What a mount makes in directories that it has to itself: in its memory first, and yet one view with all others.

use lumeofs_tests::{Cluster, binary, eventually, run, shell};
use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::time::Duration;

fn counter(mount: &Path, name: &str) -> u64 {
    let text = run(binary(), &["stats", "--json", mount.to_str().unwrap()]);
    let counters: serde_json::Value = serde_json::from_str(&text).unwrap();
    counters["counters"][name].as_f64().expect("such a counter") as u64
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn a_tree_that_is_unpacked_costs_few_requests_and_is_whole_elsewhere_at_every_moment() {
    let mut cluster = Cluster::start();
    let (a, b) = (cluster.mount(), cluster.second_mount());
    std::fs::create_dir(a.join("first")).unwrap();
    let (objects, requests) = (
        counter(&a, "made_total"),
        counter(&a, "made_requests_total"),
    );
    for dir in 0..10 {
        let dir = a.join(format!("first/d{dir}"));
        std::fs::create_dir(&dir).unwrap();
        for file in 0..50 {
            std::fs::write(dir.join(format!("f{file}")), [7; 3000]).unwrap();
        }
        std::os::unix::fs::symlink("f7", dir.join("link")).unwrap();
    }
    eventually(
        "the leader knows everything",
        Duration::from_secs(20),
        || counter(&a, "made_total") - objects >= 500,
    );
    let requests = counter(&a, "made_requests_total") - requests;
    assert!(requests < 150, "{requests} requests for 520 objects");
    shell(
        a.parent().unwrap(),
        &format!("diff -r {}/first {}/first", a.display(), b.display()),
    );

    // One by one, looked at from the other side each time.
    std::fs::create_dir(a.join("second")).unwrap();
    let mut expected = BTreeSet::new();
    for at in 0..40 {
        let name = format!("n{at}");
        std::fs::write(a.join("second").join(&name), &name).unwrap();
        expected.insert(name.clone());
        match at % 3 {
            0 => assert_eq!(names(&b.join("second")), expected),
            1 => assert_eq!(
                std::fs::read_to_string(b.join("second").join(&name)).unwrap(),
                name
            ),
            _ => assert_eq!(names(&a.join("second")), expected),
        }
    }
    // And at once changed by the other one.
    std::fs::rename(b.join("second/n39"), b.join("second/moved")).unwrap();
    std::fs::remove_file(b.join("second/n38")).unwrap();
    assert!(!a.join("second/n39").exists() && !a.join("second/n38").exists());
    assert!(File::create_new(a.join("second/moved")).is_err());
}

#[test]
fn what_was_synced_outlives_the_mount_and_what_was_not_is_lost_from_the_end_only() {
    let cluster = Cluster::start();
    let a = cluster.mount();
    std::fs::create_dir_all(a.join("dir/sub")).unwrap();
    File::create(a.join("dir/sub/file"))
        .unwrap()
        .sync_all()
        .unwrap();
    std::fs::create_dir(a.join("dir/other")).unwrap();
    File::open(a.join("dir")).unwrap().sync_all().unwrap();
    std::fs::create_dir(a.join("many")).unwrap();
    for at in 0..300 {
        File::create(a.join(format!("many/{at:03}"))).unwrap();
    }
    cluster.kill("mount");
    cluster.restart("mount");
    assert_eq!(
        names(&a.join("dir/sub")),
        BTreeSet::from(["file".to_owned()])
    );
    assert!(a.join("dir/other").is_dir());
    let many = match a.join("many").exists() {
        true => names(&a.join("many")),
        false => BTreeSet::new(),
    };
    let expected = (0..many.len()).map(|at| format!("{at:03}"));
    assert_eq!(many, expected.collect(), "without gaps");
}

#[test]
fn it_goes_on_over_the_death_of_a_leader_and_the_end_of_the_numbers_that_were_reserved() {
    const FILES: usize = 5000;
    let mut cluster = Cluster::start();
    let (a, b) = (cluster.mount(), cluster.second_mount());
    std::fs::create_dir(a.join("dir")).unwrap();
    let leader = cluster.leader("metadata");
    for at in 0..FILES {
        if at == FILES / 3 {
            cluster.kill(&leader);
        }
        std::fs::write(a.join(format!("dir/{at}")), format!("{at}")).unwrap();
    }
    assert_eq!(names(&b.join("dir")).len(), FILES);
    for at in (0..FILES).step_by(97) {
        let text = std::fs::read_to_string(b.join(format!("dir/{at}"))).unwrap();
        assert_eq!(text, format!("{at}"));
    }
    run("rm", &["-rf", a.join("dir").to_str().unwrap()]);
    assert_eq!(names(&b), BTreeSet::new());
}
