//! Ordinary tools on one and on two mounts.

use lumeofs_tests::{
    Cluster, LoopMounts, MKFS_EXT4, binary, eventually, pause, run, shell, temporary,
};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

#[test]
fn shell_tools_work_and_a_second_mount_sees_each_change_at_once() {
    let mut cluster = Cluster::start();
    let a = cluster.mount();
    let b = cluster.second_mount();
    let text = run("cat", &["/proc/mounts"]);
    assert!(
        text.lines()
            .any(|line| line.contains(a.to_str().unwrap()) && line.contains(" fuse.lumeofs "))
    );

    for round in 0..50 {
        std::fs::write(a.join("file"), format!("round {round}")).unwrap();
        assert_eq!(
            std::fs::read_to_string(b.join("file")).unwrap(),
            format!("round {round}")
        );
        std::fs::rename(b.join("file"), b.join("other")).unwrap();
        assert!(!a.join("file").exists() && a.join("other").exists());
        std::fs::rename(a.join("other"), a.join("file")).unwrap();
    }
    let (mut from, to) = (
        std::fs::File::create(a.join("grow")).unwrap(),
        b.join("grow"),
    );
    for round in 1..=50u64 {
        from.write_all(&[round as u8; 1000]).unwrap();
        assert_eq!(std::fs::metadata(&to).unwrap().len(), round * 1000);
        assert_eq!(
            std::fs::read(&to).unwrap()[round as usize * 1000 - 1],
            round as u8
        );
    }

    shell(
        &a,
        r#"
        mkdir -p d/e; echo one > d/e/f; ln d/e/f d/hard; ln -s e/f d/soft
        [ "$(cat d/soft)" = one ]; [ "$(stat -c %h d/hard)" = 2 ]; [ "$(readlink d/soft)" = e/f ]
        chmod 4711 d/e/f; [ "$(stat -c %a d/hard)" = 4711 ]; chown 12:34 d/e/f; [ "$(stat -c %u:%g:%a d/hard)" = 12:34:711 ]
        touch -d '2001-02-03 04:05:06.123456789 UTC' d/hard
        [ "$(stat -c %.9Y d/e/f)" = 981173106.123456789 ]
        mkfifo d/fifo; [ -p d/fifo ]; mknod d/null c 1 3; echo gone > d/null
        # Not "! mkdir d": a negated command never ends a script.
        if mkdir d 2>/dev/null; then exit 1; fi; if rmdir d 2>/dev/null; then exit 1; fi
        if cat missing 2>/dev/null; then exit 1; fi
        mv d/e d/g; [ "$(cat d/g/f)" = one ]; cp -a d copy; diff -r --no-dereference --exclude fifo --exclude null d copy
        [ "$(stat -c %.9Y copy/hard)" = 981173106.123456789 ]
        dd if=/dev/urandom of=blob bs=1M count=5 status=none; cp blob blob2; cmp blob blob2
        truncate -s 3000001 blob; [ "$(stat -c %s blob)" = 3000001 ]; truncate -s 5M blob; cmp -n 3000001 blob blob2
        [ "$(tail -c 2242879 blob | tr -d '\0' | wc -c)" = 0 ]
        find . | wc -l > /dev/null; du -s . > /dev/null
        # Numbers that no file has end calls, not the mount.
        python3 -c '
import errno, os
fd = os.open("blob", os.O_RDWR)
for offset in 1 << 50, 1 << 58, (1 << 63) - 1:
    for whence in os.SEEK_DATA, os.SEEK_HOLE:
        try:
            os.lseek(fd, offset, whence)
            raise SystemExit(f"found something at {offset}")
        except OSError as error:
            assert error.errno == errno.ENXIO, error
try:
    os.posix_fallocate(fd, 0, 15 << 40)
    raise SystemExit("15 TiB were free")
except OSError as error:
    assert error.errno == errno.ENOSPC, error
'
        touch -d @-9223372036854775808 blob2; touch -d @9223372036854775807 blob2; touch blob2
        tar cf - d copy | tar tf - > /dev/null; rm -r d copy blob blob2
        [ -z "$(find . -mindepth 1 ! -name file ! -name grow)" ]
        "#,
    );
    cluster.remount();
    assert_eq!(std::fs::read_to_string(a.join("file")).unwrap(), "round 49");
    assert_eq!(std::fs::metadata(a.join("grow")).unwrap().len(), 50_000);
}

#[test]
fn free_space_follows_what_is_written_and_removed() {
    let directory = temporary();
    let (image, disk) = (
        directory.path().join("image"),
        directory.path().join("disk"),
    );
    // Nobody else writes to this disk. Extent files are of 256 MiB, so that one comes while the test writes.
    LoopMounts::format(&image, 6 << 30, &MKFS_EXT4);
    let mut disks = LoopMounts::default();
    disks.mount(&image, &disk, "loop");
    let one = ["--masters", "1", "--datanodes", "1", "--replicas", "1"];
    let cluster = Cluster::start_at(&disk.join("cluster"), &one);
    let mount = cluster.mount();
    let free = || {
        let text = run("stat", &["-f", "-c", "%a", mount.to_str().unwrap()]);
        text.trim().parse::<i64>().unwrap() / 256
    };
    let comes_to = |expected: i64| {
        let what = format!("{expected} MiB are free, at first {}", free());
        eventually(&what, Duration::from_secs(30), || {
            (free() - expected).abs() <= 16
        });
    };
    // What is kept for writes under way is known once there are groups.
    let mut before = 0;
    eventually("nothing moves", Duration::from_secs(30), || {
        let last = std::mem::replace(&mut before, free());
        pause(Duration::from_secs(3));
        last == before
    });
    let mib: Vec<u8> = (0..1u32 << 18).flat_map(u32::to_le_bytes).collect();
    for file in 1..=2 {
        let mut written = std::fs::File::create(mount.join(format!("file-{file}"))).unwrap();
        (0..150).for_each(|_| written.write_all(&mib).unwrap());
        written.sync_all().unwrap();
        comes_to(before - file * 150);
    }
    std::fs::remove_file(mount.join("file-1")).unwrap();
    comes_to(before - 150);
}

#[test]
fn files_are_exact_at_every_offset_and_open_unlinked_ones_stay() {
    let mut cluster = Cluster::start();
    let (a, b) = (cluster.mount(), cluster.second_mount());
    let path = a.join("sparse");
    let chunk = 64u64 << 20;
    let mut file = std::fs::File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)
        .unwrap();
    // Across a chunk boundary, unaligned.
    let data: Vec<u8> = (0..3_000_000u32).map(|i| (i * 7 + i / 251) as u8).collect();
    file.write_all_at(&data, chunk - 1_234_567).unwrap();
    file.write_all_at(b"far", 5 * chunk + 1).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 5 * chunk + 4);
    assert!(
        file.metadata().unwrap().blocks() * 512 < 5 * chunk,
        "untouched chunks take no space"
    );
    let mut read = vec![1; data.len() + 200];
    let other = std::fs::File::open(b.join("sparse")).unwrap();
    other.read_exact_at(&mut read, chunk - 1_234_667).unwrap();
    assert!(
        read[..100]
            .iter()
            .chain(&read[data.len() + 100..])
            .all(|&byte| byte == 0)
    );
    assert!(
        read[100..data.len() + 100] == data[..],
        "the other mount reads what was written"
    );
    let seek = |offset: u64, hole: bool| {
        let whence = if hole {
            rustix::fs::SeekFrom::Hole(offset)
        } else {
            rustix::fs::SeekFrom::Data(offset)
        };
        rustix::fs::seek(&other, whence)
    };
    assert!(
        seek(0, false).unwrap() <= chunk - 1_234_567 && seek(0, false).unwrap() > chunk - 1_300_000
    );
    assert_eq!(seek(0, true).unwrap(), 0);
    assert!(seek(chunk, true).unwrap() >= chunk + 1_765_433);
    assert_eq!(seek(5 * chunk + 2, true).unwrap(), 5 * chunk + 4);
    assert_eq!(seek(6 * chunk, false).unwrap_err(), rustix::io::Errno::NXIO);

    std::fs::remove_file(b.join("sparse")).unwrap();
    assert!(!path.exists());
    file.seek(SeekFrom::Start(5 * chunk + 1)).unwrap();
    let mut rest = String::new();
    file.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "far", "an open file outlives its name");
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    file.write_all_at(b"still here", 0).unwrap();
    let mut start = [0; 10];
    file.read_exact_at(&mut start, 0).unwrap();
    assert_eq!(&start, b"still here");

    let big = std::fs::File::create(a.join("big")).unwrap();
    big.set_len(16 << 40).unwrap();
    assert_eq!(
        big.set_len(1 << 50).unwrap_err().raw_os_error(),
        Some(27),
        "EFBIG"
    );
    let name = a.join("n".repeat(256));
    assert_eq!(
        std::fs::File::create(name).unwrap_err().raw_os_error(),
        Some(36),
        "ENAMETOOLONG"
    );
    let bytes = std::ffi::OsString::from(String::from("name with \n and \u{7f}"));
    std::fs::write(a.join(&bytes), b"x").unwrap();
    assert!(b.join(&bytes).exists());
    std::fs::set_permissions(a.join(&bytes), PermissionsExt::from_mode(0o600)).unwrap();
}

#[test]
fn commands_work_without_a_mount_and_say_what_is_wrong() {
    let cluster = Cluster::start_with(&["--no-mount"]);
    let dir = cluster.dir();
    let dir = dir.to_str().unwrap();
    let fs = |arguments: &[&str]| {
        let mut all = vec!["fs", "--dir", dir];
        all.extend(arguments);
        Command::new(binary()).args(all).output().unwrap()
    };
    let scratch = cluster.scratch();
    let data: Vec<u8> = (0..3_333_333u32).map(|i| (i ^ (i >> 9)) as u8).collect();
    let local = scratch.join("data");
    std::fs::write(&local, &data).unwrap();
    let local = local.to_str().unwrap();
    assert!(fs(&["mkdir", "-p", "/a/b"]).status.success());
    assert!(fs(&["put", local, "/a/b/data"]).status.success());
    assert!(fs(&["cat", "/a/b/data"]).stdout == data);
    assert!(fs(&["mv", "/a/b/data", "/a/data"]).status.success());
    let out = scratch.join("out");
    assert!(
        fs(&["get", "/a/data", out.to_str().unwrap()])
            .status
            .success()
    );
    assert!(std::fs::read(out).unwrap() == data);
    let listed: serde_json::Value =
        serde_json::from_slice(&fs(&["ls", "/a", "--json"]).stdout).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 2);
    let chunks = cluster.admin(&["chunks", "/a/data"]);
    assert_eq!(
        chunks[0]["replicas"].as_array().unwrap().len(),
        3,
        "{chunks}"
    );
    assert_eq!(
        fs(&["rm", "/a"]).status.code(),
        Some(1),
        "a directory wants -r"
    );
    assert!(fs(&["rm", "-r", "/a"]).status.success());
    let missing = fs(&["stat", "/a"]);
    assert_eq!(missing.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("/a"));

    // A wrong secret, an unknown master, an occupied port.
    let other = scratch.join("secret");
    run(binary(), &["keygen", other.to_str().unwrap()]);
    let masters = cluster.masters();
    let refused = Command::new(binary())
        .args([
            "fs",
            "--masters",
            &masters,
            "--secret",
            other.to_str().unwrap(),
            "ls",
            "/",
        ])
        .output()
        .unwrap();
    assert_eq!(
        refused.status.code(),
        Some(8),
        "{}",
        String::from_utf8_lossy(&refused.stderr)
    );
    let nobody = Command::new(binary())
        .args([
            "fs",
            "--masters",
            "127.0.0.1:1",
            "--secret",
            &format!("{dir}/secret"),
            "ls",
            "/",
        ])
        .output()
        .unwrap();
    assert_eq!(
        nobody.status.code(),
        Some(7),
        "{}",
        String::from_utf8_lossy(&nobody.stderr)
    );
    let data = scratch.join("dn");
    let taken = Command::new(binary())
        .args([
            "datanode",
            "--id",
            "200",
            "--listen",
            masters.split(',').next().unwrap(),
            "--masters",
            &masters,
        ])
        .args([
            "--data",
            data.to_str().unwrap(),
            "--secret",
            &format!("{dir}/secret"),
        ])
        .output()
        .unwrap();
    assert!(!taken.status.success());
    let said = String::from_utf8_lossy(&taken.stderr).into_owned();
    assert!(said.contains("in use"), "{said}");
}

/// Makes files without a name, tells so, does what it is told, and says what came of it.
const UNNAMED: &str = r#"
import os, sys
os.umask(0o027)
def make(flags=0):
    fd = os.open("d", os.O_TMPFILE | os.O_RDWR | flags, 0o666)
    os.write(fd, b"hidden" * 100000)
    return fd
def link(fd, name):
    # With a directory it is linkat(2), which can follow the link.
    os.link(f"/proc/self/fd/{fd}", name, src_dir_fd=os.open("d", os.O_PATH), follow_symlinks=True)
named, held, alone = make(), make(), make(os.O_EXCL)
for fd in named, held, alone:
    stat = os.fstat(fd)
    assert (stat.st_nlink, stat.st_gid, stat.st_size) == (0, 77, 600000), stat
assert os.listdir("d") == []
print("made", flush=True)
sys.stdin.readline()
try:
    link(alone, "d/alone")
    raise SystemExit("O_EXCL was linked")
except FileNotFoundError:
    pass
link(named, "d/named")
for fd in named, held, alone:
    assert os.pread(fd, 700000, 0) == b"hidden" * 100000
print("linked", flush=True)
sys.stdin.readline()
"#;

#[test]
fn a_file_without_a_name_outlives_the_leading_master_and_goes_with_its_process() {
    let mut cluster = Cluster::start();
    let (a, b) = (cluster.mount(), cluster.second_mount());
    shell(
        &a,
        "mkdir d; chgrp 77 d; chmod 2777 d; setfacl -d -m u:4001:rw d",
    );
    let inodes = || {
        let used = run("stat", &["-f", "-c", "%c %d", a.to_str().unwrap()]);
        let (all, free) = used.trim().split_once(' ').unwrap();
        all.parse::<u64>().unwrap() - free.parse::<u64>().unwrap()
    };
    let mut process = Command::new("python3")
        .args(["-c", UNNAMED])
        .current_dir(&a)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(process.stdout.take().unwrap()).lines();
    assert_eq!(said.next().unwrap().unwrap(), "made");
    // The root, the directory, and these; more where something that was deleted before is not gone yet.
    assert!(inodes() >= 5);
    let leader = cluster.leader("metadata");
    cluster.kill(&leader);
    writeln!(process.stdin.as_mut().unwrap()).unwrap();
    assert_eq!(said.next().unwrap().unwrap(), "linked");
    cluster.restart(&leader);
    assert_eq!(
        std::fs::read(b.join("d/named")).unwrap(),
        b"hidden".repeat(100_000)
    );
    let acl = shell(&b, "getfacl -cn d/named; stat -c '%a %g %h' d/named; ls d");
    assert!(acl.contains("user:4001:rw-"), "{acl}");
    assert!(acl.contains("666 77 1"), "{acl}");
    run("kill", &["-KILL", &process.id().to_string()]);
    process.wait().unwrap();
    eventually(
        "what nobody has open is gone",
        Duration::from_secs(20),
        || inodes() == 3,
    );
}

#[test]
fn reads_set_access_times_which_other_mounts_see_a_little_later() {
    let mut cluster = Cluster::start();
    let (a, b) = (cluster.mount(), cluster.second_mount());
    shell(&a, "mkdir d; for i in $(seq 300); do echo $i > d/$i; done");
    let atime = |path: &Path| {
        let found = std::fs::metadata(path).unwrap();
        (found.atime(), found.atime_nsec())
    };
    let (file, there) = (a.join("d/7"), b.join("d/7"));
    let before = std::fs::metadata(&file).unwrap();
    assert_eq!(atime(&there), atime(&file));
    std::fs::read(&file).unwrap();
    let read = std::fs::metadata(&file).unwrap();
    assert!(atime(&file) > (before.atime(), before.atime_nsec()));
    assert_eq!(
        (read.ctime(), read.ctime_nsec(), read.mtime_nsec()),
        (before.ctime(), before.ctime_nsec(), before.mtime_nsec())
    );
    let once = atime(&file);
    shell(&a, "cat d/* > /dev/null; ls d > /dev/null");
    assert_eq!(atime(&file), once, "relatime");
    // What is set wins, also if that is the time that there was.
    let times = cluster.scratch().join("times");
    let script = "touch -a -d '2001-02-03 UTC' d/8; echo new > d/new; touch -r d/new TIMES; cat d/new; touch -a -r TIMES d/new";
    shell(&a, &script.replace("TIMES", times.to_str().unwrap()));
    let set = ["d/8", "d/new"].map(|name| atime(&a.join(name)));
    assert_eq!((set[0].0, set[1]), (981_158_400, atime(&times)));
    let all = || {
        let names = (1..=300).map(|number| format!("d/{number}"));
        names.chain(["d".to_owned(), "d/new".to_owned()])
    };
    eventually("the others see it", Duration::from_secs(20), || {
        all().all(|name| atime(&a.join(&name)) == atime(&b.join(&name)))
    });
    assert_eq!(atime(&there), once);
    for (name, set) in ["d/8", "d/new"].into_iter().zip(set) {
        assert_eq!((atime(&a.join(name)), atime(&b.join(name))), (set, set));
    }
    // An unmount tells what is left.
    std::fs::read(a.join("d/new")).unwrap();
    let last = atime(&a.join("d/new"));
    assert!(last > set[1]);
    cluster.remount();
    assert_eq!(atime(&a.join("d/new")), last);
}

/// Keeps handles of files, or opens what was kept.
const HANDLES: &str = r#"
import ctypes, errno, os, pickle, sys
libc = ctypes.CDLL(None, use_errno=True)
class Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("data", ctypes.c_ubyte * 128)]
def keep(path):
    handle, mount = Handle(128), ctypes.c_int()
    if libc.name_to_handle_at(-100, path.encode(), ctypes.byref(handle), ctypes.byref(mount), 0):
        raise OSError(ctypes.get_errno(), path)
    return bytes(handle)
def open_kept(kept, flags):
    root = os.open(".", os.O_RDONLY)
    fd = libc.open_by_handle_at(root, ctypes.byref(Handle.from_buffer_copy(kept)), flags)
    os.close(root)
    return fd if fd >= 0 else -ctypes.get_errno()
store, action, *paths = sys.argv[1:]
if action == "keep":
    pickle.dump({path: keep(path) for path in paths}, open(store, "wb"))
    sys.exit()
kept = pickle.load(open(store, "rb"))
for path in paths:
    if action == "stale":
        assert open_kept(kept[path], os.O_RDONLY) == -errno.ESTALE, path
    elif os.path.isdir(path):
        fd = open_kept(kept[path], os.O_RDONLY | os.O_DIRECTORY)
        assert fd >= 0 and os.listdir(fd) == os.listdir(path), (path, fd)
        assert os.path.realpath(f"/proc/self/fd/{fd}") == os.path.realpath(path)
    else:
        fd = open_kept(kept[path], os.O_RDWR)
        assert fd >= 0 and os.pread(fd, 100, 0) == open(path, "rb").read(), (path, fd)
        os.pwrite(fd, b"W", 0)
"#;

#[test]
fn handles_outlive_what_the_kernel_knows_but_not_the_file() {
    let mut cluster = Cluster::start();
    let (a, b) = (cluster.mount(), cluster.second_mount());
    shell(
        &a,
        "mkdir -p d/e/f; echo one > d/e/file; echo two > gone; echo three > gone-elsewhere; mkdir d/empty",
    );
    let script = cluster.scratch().join("handles.py");
    std::fs::write(&script, HANDLES).unwrap();
    let store = cluster.scratch().join("store");
    let python = |at: &Path, rest: &str| {
        let (script, store) = (script.display(), store.display());
        shell(
            at,
            &format!("sync; echo 2 > /proc/sys/vm/drop_caches; python3 {script} {store} {rest}"),
        );
    };
    python(
        &a,
        "keep . d d/e d/e/f d/e/file d/empty gone gone-elsewhere",
    );
    let there = "open d/e/file d/e/f d/e d .";
    python(&a, there);
    assert_eq!(std::fs::read(b.join("d/e/file")).unwrap(), b"Wne\n");
    python(&b, there);
    shell(
        &b,
        "mv d/e moved; mv moved/f moved/g; mv moved d/e; mv d/e/g d/e/f",
    );
    python(&a, there);
    std::fs::remove_file(a.join("gone")).unwrap();
    std::fs::remove_file(b.join("gone-elsewhere")).unwrap();
    std::fs::remove_dir(a.join("d/empty")).unwrap();
    python(&a, "stale gone gone-elsewhere d/empty");
    cluster.remount();
    python(&a, there);
    python(&a, "stale gone gone-elsewhere d/empty");
}
