//! The adapter on a real mount, with memory in place of a cluster. They need root and `/dev/fuse`;
//! `LUMEOFS_SKIP_MOUNT_TESTS=1` has them pass without.

mod atime;
mod locks;
mod unnamed;
mod waiting;

use super::*;
use crate::memory::Memory;
use crate::stats::Op;
use rustix::fs::{FallocateFlags, SeekFrom, XattrFlags};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

struct Fixture {
    memory: Arc<Memory>,
    mounted: Option<Mounted>,
    dir: tempfile::TempDir,
}

impl Fixture {
    fn at(root: InodeId, memory: Arc<Memory>, options: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() || mountpoint::check_device().is_err() {
            let skips = std::env::var_os("LUMEOFS_SKIP_MOUNT_TESTS").is_some();
            assert!(
                skips,
                "needs root and /dev/fuse, or LUMEOFS_SKIP_MOUNT_TESTS=1"
            );
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let options = crate::parse_options(options).unwrap();
        let path = mountpoint::check(dir.path()).unwrap();
        let mounted = start_with(memory.clone(), root, "one:1,two:2", path, &options).unwrap();
        Some(Self {
            memory,
            mounted: Some(mounted),
            dir,
        })
    }

    fn new() -> Option<Self> {
        Self::at(InodeId::ROOT, Arc::new(Memory::new()), "")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn stats(&self) -> Arc<Stats> {
        self.mounted.as_ref().unwrap().stats()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.memory.let_go();
        let Some(mounted) = self.mounted.take() else {
            return;
        };
        mounted.handle().detach().unwrap();
        let ended = mounted.wait();
        if !std::thread::panicking() {
            ended.unwrap();
        }
    }
}

fn wait_for(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..6000 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("not in 60 s: {what}");
}

#[test]
fn the_mount_is_shown_with_its_type_source_and_options() {
    let Some(fixture) = Fixture::at(InodeId::ROOT, Arc::new(Memory::new()), "ro,nosuid,noexec")
    else {
        return;
    };
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let place = fixture.dir.path().display().to_string();
    let line = mounts.lines().find(|line| line.contains(&place)).unwrap();
    assert!(
        line.starts_with(&format!(
            "one:1,two:2 {place} fuse.lumeofs ro,nosuid,noexec"
        )),
        "{line}"
    );
    assert!(line.contains("default_permissions,allow_other"), "{line}");
    let again = mountpoint::check(fixture.dir.path())
        .unwrap_err()
        .to_string();
    assert!(again.contains("fuse.lumeofs from one:1,two:2"), "{again}");
    let error = File::create(fixture.path("x")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
}

#[test]
fn files_can_be_made_written_read_moved_and_removed() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let file = fixture.path("file");
    let data: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8).collect();
    fs::write(&file, &data).unwrap();
    assert_eq!(fs::read(&file).unwrap(), data);
    assert_eq!(fs::metadata(&file).unwrap().len(), data.len() as u64);
    fs::write(&file, b"short").unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"short");
    fs::create_dir(fixture.path("dir")).unwrap();
    fs::rename(&file, fixture.path("dir/moved")).unwrap();
    assert_eq!(
        fs::metadata(&file).unwrap_err().kind(),
        io::ErrorKind::NotFound
    );
    fs::hard_link(fixture.path("dir/moved"), fixture.path("second")).unwrap();
    assert_eq!(fs::metadata(fixture.path("second")).unwrap().nlink(), 2);
    std::os::unix::fs::symlink("dir/moved", fixture.path("symlink")).unwrap();
    assert_eq!(
        fs::read_link(fixture.path("symlink")).unwrap(),
        PathBuf::from("dir/moved")
    );
    assert_eq!(fs::read(fixture.path("symlink")).unwrap(), b"short");
    let busy = fs::remove_dir(fixture.path("dir")).unwrap_err();
    assert_eq!(busy.raw_os_error(), Some(libc::ENOTEMPTY));
    fs::remove_dir_all(fixture.path("dir")).unwrap();
    fs::remove_file(fixture.path("second")).unwrap();
    let moved = rustix::fs::renameat_with(
        rustix::fs::CWD,
        fixture.path("symlink"),
        rustix::fs::CWD,
        fixture.path("other"),
        rustix::fs::RenameFlags::NOREPLACE,
    );
    assert_eq!(moved, Ok(()));
    fs::copy("/etc/passwd", fixture.path("copy")).unwrap();
    assert_eq!(
        fs::read(fixture.path("copy")).unwrap(),
        fs::read("/etc/passwd").unwrap()
    );
    fs::copy(fixture.path("copy"), fixture.path("copied")).unwrap();
    assert_eq!(
        fs::read(fixture.path("copied")).unwrap(),
        fs::read("/etc/passwd").unwrap()
    );
}

#[test]
fn a_large_directory_lists_each_name_once_and_can_be_rewound() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    for number in 0..2500 {
        File::create(fixture.path(&format!("a-rather-long-name-{number:05}"))).unwrap();
    }
    let list = || {
        let mut names: Vec<_> = fs::read_dir(fixture.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    let names = list();
    assert_eq!(names.len(), 2500);
    assert_eq!(names[2499], "a-rather-long-name-02499");
    let mut open = rustix::fs::Dir::read_from(File::open(fixture.dir.path()).unwrap()).unwrap();
    let first: Vec<_> = open.by_ref().take(3).map(|entry| entry.unwrap()).collect();
    assert_eq!(first[0].file_name().to_bytes(), b".");
    assert_eq!(first[1].file_name().to_bytes(), b"..");
    fs::remove_file(fixture.path("a-rather-long-name-00000")).unwrap();
    open.rewind();
    assert_eq!(open.count(), 2501);
    fs::create_dir(fixture.path("sub")).unwrap();
    let sub = rustix::fs::Dir::read_from(File::open(fixture.path("sub")).unwrap()).unwrap();
    let inodes: Vec<_> = sub.map(|entry| entry.unwrap().ino()).collect();
    assert_eq!(inodes[1], 1, "`..` is the root of the mount");
    assert_eq!(fixture.stats().failed(Op::ReadDir), 0);
}

#[test]
fn what_another_mount_changes_is_seen_at_once() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let path = fixture.path("file");
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .read(true)
        .open(&path)
        .unwrap();
    file.write_all(b"one\n").unwrap();
    fixture
        .memory
        .change(b"file", |data| data.extend_from_slice(b"from elsewhere\n"));
    assert_eq!(fs::metadata(&path).unwrap().len(), 19);
    file.write_all(b"two\n").unwrap();
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "one\nfrom elsewhere\ntwo\n");
    assert!(
        fixture
            .memory
            .take_writes()
            .iter()
            .all(|write| write.append && !write.durable)
    );
    fixture.memory.change(b"file", |data| data.fill(b'x'));
    let mut buf = [0; 4];
    file.read_exact_at(&mut buf, 0).unwrap();
    assert_eq!(&buf, b"xxxx");
}

#[test]
fn durability_flags_reach_each_write() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .custom_flags(libc::O_DSYNC)
        .open(fixture.path("file"))
        .unwrap();
    file.write_all(b"x").unwrap();
    assert!(fixture.memory.take_writes()[0].durable);
    let fsyncs = fixture.memory.fsyncs();
    file.sync_all().unwrap();
    assert_eq!(fixture.memory.fsyncs(), fsyncs + 1);
    File::open(fixture.dir.path()).unwrap().sync_all().unwrap();
    drop((file, fixture));
    let fixture = Fixture::at(InodeId::ROOT, Arc::new(Memory::new()), "sync").unwrap();
    fs::write(fixture.path("file"), b"x").unwrap();
    assert!(fixture.memory.take_writes()[0].durable, "as mounted");
}

#[test]
fn attributes_times_and_space_can_be_set() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let path = fixture.path("file");
    let file = File::create(&path).unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o4711))
        .unwrap();
    std::os::unix::fs::chown(&path, Some(12), Some(34)).unwrap();
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (12, 34));
    assert_eq!(meta.mode() & 0o7777, 0o711, "chown takes suid away");
    for time in [
        UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789),
        UNIX_EPOCH - Duration::new(1, 500_000_000),
    ] {
        file.set_modified(time).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), time);
    }
    file.set_modified(SystemTime::now()).unwrap();
    file.set_len(10_000).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 10_000);
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 20_000).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 20_000);
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, punch, 0, 4096).unwrap();
    let collapse = rustix::fs::fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, 4096);
    assert_eq!(collapse, Err(rustix::io::Errno::OPNOTSUPP));
    assert_eq!(rustix::fs::seek(&file, SeekFrom::Hole(5)), Ok(20_000));
    assert_eq!(
        rustix::fs::seek(&file, SeekFrom::Data(30_000)),
        Err(rustix::io::Errno::NXIO)
    );
    let space = rustix::fs::statvfs(&path).unwrap();
    assert_eq!(
        (space.f_bsize, space.f_namemax, space.f_blocks),
        (4096, 255, 1 << 28)
    );
}

#[test]
fn extended_attributes_and_acls_keep_their_rules() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let path = fixture.path("file");
    File::create(&path).unwrap();
    let mut buf = [0_u8; 16];
    rustix::fs::setxattr(&path, "user.a", b"value", XattrFlags::CREATE).unwrap();
    let again = rustix::fs::setxattr(&path, "user.a", b"value", XattrFlags::CREATE);
    assert_eq!(again, Err(rustix::io::Errno::EXIST));
    assert_eq!(rustix::fs::getxattr(&path, "user.a", &mut buf), Ok(5));
    assert_eq!(rustix::fs::getxattr_query(&path, "user.a"), Ok(5));
    assert_eq!(
        rustix::fs::getxattr(&path, "user.a", &mut buf[..2]),
        Err(rustix::io::Errno::RANGE)
    );
    assert_eq!(
        rustix::fs::getxattr(&path, "user.b", &mut buf),
        Err(rustix::io::Errno::NODATA)
    );
    assert_eq!(rustix::fs::listxattr(&path, &mut buf), Ok(7));
    rustix::fs::removexattr(&path, "user.a").unwrap();
    let acl = "system.posix_acl_access";
    let wrong = rustix::fs::setxattr(&path, acl, &[2, 0, 0], XattrFlags::empty());
    assert_eq!(wrong, Err(rustix::io::Errno::INVAL));
    // u::rw-,g::r--,m::r--,o::---
    let mut list = vec![2, 0, 0, 0];
    for (tag, allows) in [(1, 6), (4, 4), (16, 4), (32, 0)] {
        list.extend([tag, 0, allows, 0, 255, 255, 255, 255]);
    }
    rustix::fs::setxattr(&path, acl, &list, XattrFlags::empty()).unwrap();
    let mut found = [0; 64];
    assert_eq!(rustix::fs::getxattr(&path, acl, &mut found), Ok(list.len()));
    assert_eq!(found[..list.len()], list);
    for name in ["other.a", "system.other"] {
        let set = rustix::fs::setxattr(&path, name, b"1", XattrFlags::empty());
        assert_eq!(set, Err(rustix::io::Errno::OPNOTSUPP), "{name}");
    }
}

#[test]
fn an_unlinked_file_lives_until_it_is_closed() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let path = fixture.path("file");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    file.write_all(b"still here").unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "still here");
    assert_eq!(fixture.memory.inodes(), 2);
    drop(file);
    wait_for("the release", || fixture.memory.inodes() == 1);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        fixture.path("node"),
        rustix::fs::FileType::RegularFile,
        0o600.into(),
        0,
    )
    .unwrap();
    fs::remove_file(fixture.path("node")).unwrap();
    assert_eq!(fixture.memory.inodes(), 1, "mknod leaves nothing open");
}

#[test]
fn a_name_that_appears_while_it_is_created_is_opened_with_its_own_permissions() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    fs::set_permissions(fixture.dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(fixture.path("raced"), b"theirs").unwrap();
    fixture.memory.hide(b"raced", 1);
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .read(true)
        .open(fixture.path("raced"))
        .unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "theirs");
    // Names that come and go on another mount are missed again when the kernel tries again.
    fixture.memory.hide(b"raced", 2);
    fs::write(fixture.path("raced"), b"new").unwrap();
    assert_eq!(fs::read(fixture.path("raced")).unwrap(), b"new");
    // The kernel decides about what belongs to others.
    fs::set_permissions(fixture.path("raced"), fs::Permissions::from_mode(0o666)).unwrap();
    fixture.memory.hide(b"raced", 1);
    let script = format!("echo more >> {}", fixture.path("raced").display());
    let append = Command::new("sh").args(["-c", &script]).uid(1234).status();
    assert!(append.unwrap().success());
    assert_eq!(fs::read(fixture.path("raced")).unwrap(), b"newmore\n");
    fs::set_permissions(fixture.path("raced"), fs::Permissions::from_mode(0o600)).unwrap();
    fixture.memory.hide(b"raced", 1);
    let script = format!("echo mine >> {}", fixture.path("raced").display());
    let other = Command::new("sh")
        .args(["-c", &script])
        .stderr(Stdio::null())
        .uid(1234)
        .gid(1234)
        .status();
    assert!(!other.unwrap().success(), "not theirs to write");
    fixture.memory.hide(b"raced", 1);
    let exclusive = OpenOptions::new()
        .create_new(true)
        .write(true)
        .open(fixture.path("raced"));
    assert_eq!(exclusive.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
}

#[test]
fn a_write_by_an_ordinary_user_takes_suid_away() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    for (name, script) in [("written", "printf x 1<> "), ("truncated", "printf '' > ")] {
        let path = fixture.path(name);
        fs::write(&path, b"data").unwrap();
        let script = format!("{script}{}", path.display());
        let mode = || fs::metadata(&path).unwrap().mode() & 0o7777;
        // Where the group may not execute, sgid stays if the writer is in the group.
        for (gid, before, after) in [
            (1234, 0o6777, 0o777),
            (1234, 0o6767, 0o767),
            (0, 0o6767, 0o2767),
        ] {
            fs::set_permissions(&path, fs::Permissions::from_mode(before)).unwrap();
            fs::write(&path, b"by root").unwrap();
            assert_eq!(mode(), before, "{name}");
            let status = Command::new("sh")
                .args(["-c", &script])
                .uid(1234)
                .gid(gid)
                .status();
            assert!(status.unwrap().success());
            assert_eq!(mode(), after, "{name}");
        }
    }
}

#[test]
fn programs_run_from_the_mount_and_shared_mappings_are_written_back() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    fs::copy("/bin/true", fixture.path("true")).unwrap();
    assert!(
        Command::new(fixture.path("true"))
            .status()
            .unwrap()
            .success()
    );
    let path = fixture.path("mapped");
    fs::write(&path, vec![b'a'; 10_000]).unwrap();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    store_through_mapping(&file, 5000, b"through the page cache");
    let data = fs::read(&path).unwrap();
    assert_eq!(&data[5000..5022], b"through the page cache");
    assert_eq!(data.len(), 10_000);
    fixture.memory.change(b"mapped", |data| data[5000] = b'T');
    let data = fs::read(&path).unwrap();
    assert_eq!(data[5000], b'T');
}

#[allow(unsafe_code, reason = "mmap has no safe interface")]
fn store_through_mapping(file: &File, at: usize, bytes: &[u8]) {
    use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};
    let len = file.metadata().unwrap().len() as usize;
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: the mapping is new, within the file's size, and gone before this function returns.
    unsafe {
        let place = mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, file, 0).unwrap();
        let target = std::slice::from_raw_parts_mut(place.cast::<u8>(), len);
        assert_eq!(target[at], b'a');
        target[at..at + bytes.len()].copy_from_slice(bytes);
        msync(place, len, MsyncFlags::SYNC).unwrap();
        munmap(place, len).unwrap();
    }
}

#[test]
fn a_subdirectory_can_be_the_root_of_a_mount() {
    let Some(whole) = Fixture::new() else { return };
    fs::create_dir_all(whole.path("a/b")).unwrap();
    fs::write(whole.path("a/b/file"), b"deep").unwrap();
    let memory = whole.memory.clone();
    let root = resolve(&*memory, b"/a/b/").unwrap();
    assert!(
        resolve(&*memory, b"/a/missing")
            .unwrap_err()
            .to_string()
            .contains("missing")
    );
    assert!(
        resolve(&*memory, b"/a/b/file")
            .unwrap_err()
            .to_string()
            .contains("not a directory")
    );
    let part = Fixture::at(root, memory, "").unwrap();
    assert_eq!(fs::read(part.path("file")).unwrap(), b"deep");
    assert_eq!(fs::metadata(part.dir.path()).unwrap().ino(), 1);
    fs::create_dir(part.path("new")).unwrap();
    assert!(whole.path("a/b/new").is_dir());
    let names: Vec<_> = fs::read_dir(part.dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 2);
}

/// Mounts at `LUMEOFS_MEMORY_MOUNT` until that is unmounted; `scripts/bench-caches` measures it.
#[test]
#[ignore = "a server, not a test"]
fn a_mount_of_memory_to_compare_with() {
    let place = std::env::var_os("LUMEOFS_MEMORY_MOUNT").expect("LUMEOFS_MEMORY_MOUNT");
    let options = crate::parse_options("").unwrap();
    let path = mountpoint::check(Path::new(&place)).unwrap();
    let memory = Arc::new(Memory::new());
    let mounted = start_with(memory, InodeId::ROOT, "memory", path, &options).unwrap();
    mounted.wait().unwrap();
}
