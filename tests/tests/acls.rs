//! POSIX ACLs and extended attributes, call by call as on ext4, from two mounts in turn; and what tools make of them.

use lumeofs_tests::{Cluster, run, shell};
use lumeofs_tests::{LoopMounts, MKFS_EXT4};
use rustix::fs::XattrFlags;
use rustix::io::Errno;
use std::path::{Path, PathBuf};
use std::process::Command;

const CASES: &str = include_str!("acls/cases.py");
const RACING: &str = include_str!("acls/racing.py");

/// An ext4 in a file, in the scratch directory of a cluster.
fn ext4(cluster: &Cluster) -> (LoopMounts, PathBuf) {
    let (image, point) = (
        cluster.scratch().join("disk"),
        cluster.scratch().join("ext4"),
    );
    LoopMounts::format(&image, 256 << 20, &MKFS_EXT4);
    let mut mounts = LoopMounts::default();
    mounts.mount(&image, &point, "loop");
    (mounts, point)
}

/// What the cases print in these directories, which show the same files.
fn cases(roots: &[&Path]) -> Vec<String> {
    for root in roots.iter().take(1) {
        std::fs::create_dir(root.join("cases")).unwrap();
        run("chmod", &["755", root.join("cases").to_str().unwrap()]);
    }
    let mut command = Command::new("python3");
    command.args(["-c", CASES]);
    command.args(roots.iter().map(|root| root.join("cases")));
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{roots:?}: {said}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn every_case_ends_as_on_ext4_with_calls_from_two_mounts_in_turn() {
    let mut cluster = Cluster::start();
    let (a, b) = (cluster.mount(), cluster.second_mount());
    let (_mounts, local) = ext4(&cluster);
    let wanted = cases(&[&local]);
    let found = cases(&[&a, &b]);
    let pairs = wanted.iter().zip(&found).enumerate();
    let differ: Vec<String> = pairs
        .filter(|(_, (wanted, found))| wanted != found)
        .map(|(line, (wanted, found))| format!("{line}\next4 {wanted}\nhere {found}"))
        .collect();
    let shown = &differ[..differ.len().min(30)];
    assert!(
        differ.is_empty() && wanted.len() == found.len(),
        "{} of {} cases differ:\n{}",
        differ.len(),
        wanted.len(),
        shown.join("\n")
    );
    assert!(wanted.len() > 2000, "{} cases", wanted.len());
}

#[test]
fn what_was_given_or_taken_counts_in_each_try_that_begins_after_it() {
    let mut cluster = Cluster::start();
    let (a, b) = (cluster.mount(), cluster.second_mount());
    for target in ["dir", "dir/file"] {
        let (one, other) = (a.to_str().unwrap(), b.to_str().unwrap());
        print!(
            "{}",
            run("python3", &["-c", RACING, one, other, "5", target])
        );
        std::fs::remove_dir_all(a.join("dir")).unwrap();
    }
}

/// Extended attributes that the leader was asked for by a mount.
fn asked(mount: &Path) -> u64 {
    let mut page = vec![0; 1 << 16];
    let length = rustix::fs::getxattr(mount, "lumeofs.stats", &mut page[..]).unwrap();
    let page = std::str::from_utf8(&page[..length]).unwrap();
    let series = "lumeofs_mount_queries_total{kind=\"get_xattr\",from=\"leader\"} ";
    let value = page.lines().find_map(|line| line.strip_prefix(series));
    value.expect(series).parse().unwrap()
}

#[test]
fn without_lists_nobody_is_asked_for_them_and_long_ones_end_with_e2big() {
    let mut cluster = Cluster::start();
    let (a, b) = (cluster.mount(), cluster.second_mount());
    let script = "umask 022; mkdir -p tree/{1..9}/{1..9}; for at in tree/*/*; do echo x > $at/f; done; chmod 755 .";
    shell(&a, script);
    let walk = "ls -lR tree | wc -l; find tree -type f -exec cat {} +";
    for mount in [&a, &b] {
        let before = asked(mount);
        shell(mount, walk);
        // Nobody else's permissions are a matter of lists alone, so the kernel asks for them at each step.
        let other = format!("setpriv --reuid 1000 --regid 1000 --clear-groups bash -ec '{walk}'");
        shell(mount, &other);
        assert_eq!(asked(mount), before);
    }
    let list = |count: usize| {
        let mut value = vec![2, 0, 0, 0];
        let mut add = |tag, id| value.extend([tag, 0, 6, 0, id, id, id, id]);
        add(1, 255);
        (0..count - 4).for_each(|_| add(2, 1));
        [4, 16, 32].into_iter().for_each(|tag| add(tag, 255));
        value
    };
    let set = |count| {
        let (path, name) = (a.join("tree"), "system.posix_acl_access");
        rustix::fs::setxattr(path, name, &list(count), XattrFlags::empty())
    };
    assert_eq!(set(511), Ok(()));
    assert_eq!(set(512), Err(Errno::TOOBIG));
    let mut found = [0; 4096];
    let length = rustix::fs::getxattr(b.join("tree"), "system.posix_acl_access", &mut found[..]);
    assert_eq!(found[..length.unwrap()], list(511));
}

#[test]
fn copies_archives_and_synchronisation_keep_lists_and_attributes() {
    let mut cluster = Cluster::start();
    let (a, b) = (cluster.mount(), cluster.second_mount());
    let (_mounts, local) = ext4(&cluster);
    shell(
        &local,
        r#"
        mkdir -p tree/open tree/closed/deep tree/plain
        setfacl -m u:1000:rwx,g:50:r-x tree/open
        setfacl -d -m u:1000:rwx,g:50:r-x,o::- tree/open
        echo one > tree/open/inherits; mkdir tree/open/sub; touch tree/open/sub/too
        chmod 2770 tree/closed; setfacl -m u:1001:--x,m::--x tree/closed
        echo two > tree/closed/deep/f; setfacl -m u:7:rw-,u:8:---,g:9:r-- tree/closed/deep/f; chmod 604 tree/closed/deep/f
        setfattr -n user.comment -v 'a value' tree/plain; setfattr -n trusted.x -v 0x00ff tree/closed/deep/f
        touch tree/plain/bare; ln -s bare tree/plain/link; mkfifo tree/plain/fifo; setfacl -m u:7:rw tree/plain/fifo
        chown 500:50 tree/open tree/closed/deep/f; touch -d '2001-02-03 04:05:06.5 UTC' tree/plain/bare tree/closed/deep/f
        "#,
    );
    let show = |tree: &Path| {
        shell(
            tree,
            r"find . ! -type l -print0 | sort -z | xargs -0 getfacl --numeric
            find . -print0 | sort -z | xargs -0 getfattr -h -d -m - -e hex
            find . -printf '%p %m %U:%G %y\n' | sort",
        )
    };
    let wanted = show(&local.join("tree"));
    assert!(wanted.contains("default:user:1000:rwx"), "{wanted}");
    let (from, to) = (local.to_str().unwrap(), a.to_str().unwrap());
    let back = cluster.scratch().join("ext4/back");
    std::fs::create_dir(&back).unwrap();
    for (name, there, again) in [
        (
            "cp",
            "cp -a $from/tree $to/cp",
            "cp -a $to/cp $from/back/cp",
        ),
        (
            "tar",
            "mkdir $to/tar; tar --xattrs --xattrs-include='*' --acls -C $from/tree -cf - . | \
             tar --xattrs --xattrs-include='*' --acls -C $to/tar -xpf -",
            "mkdir $from/back/tar; tar --xattrs --xattrs-include='*' --acls -C $to/tar -cf - . | \
             tar --xattrs --xattrs-include='*' --acls -C $from/back/tar -xpf -",
        ),
        (
            "rsync",
            "rsync -aAX $from/tree/ $to/rsync",
            "rsync -aAX $to/rsync/ $from/back/rsync",
        ),
    ] {
        let script = |script: &str| shell(&a, &format!("from={from} to={to}; {script}"));
        script(there);
        assert_eq!(show(&a.join(name)), wanted, "{name}, here");
        assert_eq!(show(&b.join(name)), wanted, "{name}, at the other mount");
        script(again);
        assert_eq!(show(&back.join(name)), wanted, "{name}, back on ext4");
    }
    // Nothing is left to be sent again.
    let again = run(
        "rsync",
        &["-aAXni", &format!("{from}/tree/"), &format!("{to}/rsync")],
    );
    assert_eq!(again, "");
    cluster.remount();
    assert_eq!(show(&a.join("tar")), wanted, "after a remount");
}
