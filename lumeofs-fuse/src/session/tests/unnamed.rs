//! O_TMPFILE.

use super::*;
use std::os::fd::AsRawFd as _;

#[test]
fn a_file_without_a_name_goes_with_its_last_close_unless_it_was_linked() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let make = |flags: i32| {
        let flags = libc::O_TMPFILE | flags;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .mode(0o640)
            .custom_flags(flags)
            .open(fixture.dir.path())
            .unwrap();
        (&file).write_all(b"hidden").unwrap();
        assert_eq!(file.metadata().unwrap().nlink(), 0);
        file
    };
    let link = |file: &File, name: &str| {
        let from = format!("/proc/self/fd/{}", file.as_raw_fd());
        let (cwd, flags) = (rustix::fs::CWD, rustix::fs::AtFlags::SYMLINK_FOLLOW);
        rustix::fs::linkat(cwd, from, cwd, fixture.path(name), flags)
    };
    let (kept, lost) = (make(0), make(libc::O_EXCL));
    assert_eq!(fs::read_dir(fixture.dir.path()).unwrap().count(), 0);
    assert_eq!(link(&lost, "x"), Err(rustix::io::Errno::NOENT));
    assert_eq!(link(&kept, "kept"), Ok(()));
    drop((kept, lost));
    let metadata = fs::metadata(fixture.path("kept")).unwrap();
    assert_eq!((metadata.nlink(), metadata.mode() & 0o777), (1, 0o640));
    assert_eq!(fs::read(fixture.path("kept")).unwrap(), b"hidden");
    wait_for("only one is left", || fixture.memory.inodes() == 2);
    assert_eq!(fixture.stats().done(Op::TmpFile), 2);
}
