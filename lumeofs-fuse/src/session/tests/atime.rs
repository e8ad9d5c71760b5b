//! Which reads set access times.

use super::*;

#[test]
fn reads_set_access_times_as_the_options_say_also_after_a_remount() {
    let memory = Arc::new(Memory::new());
    let Some(mut fixture) = Fixture::at(InodeId::ROOT, memory, "strictatime,nodiratime") else {
        return;
    };
    let root = fixture.dir.path().to_owned();
    let (file, link) = (fixture.path("file"), fixture.path("link"));
    fs::write(&file, b"data").unwrap();
    std::os::unix::fs::symlink("file", &link).unwrap();
    let flags = || {
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let place = root.display().to_string();
        let line = mounts.lines().find(|line| line.contains(&place)).unwrap();
        line.split(' ').nth(3).unwrap().to_owned()
    };
    assert!(!flags().contains("relatime") && flags().contains("nodiratime"));
    let atime = |path: &std::path::Path| {
        let found = fs::symlink_metadata(path).unwrap();
        (found.atime(), found.atime_nsec())
    };
    let moves = |path: &std::path::Path, read: &dyn Fn()| {
        let before = atime(path);
        read();
        atime(path) != before
    };
    let read = || drop(fs::read(&file).unwrap());
    let quietly = || {
        let mut options = OpenOptions::new();
        let opened = options.read(true).custom_flags(libc::O_NOATIME).open(&file);
        opened.unwrap().read_exact(&mut [0; 4]).unwrap();
    };
    let list = || fs::read_dir(&root).unwrap().count();
    assert!(moves(&file, &read) && moves(&file, &read));
    assert!(!moves(&file, &quietly));
    assert!(moves(&link, &|| drop(fs::read_link(&link).unwrap())));
    assert!(!moves(&root, &list));
    // As `Mounted::wait` does.
    let mut remount = |text| {
        crate::remount(&root, text).unwrap();
        let mounted = fixture.mounted.as_mut().unwrap();
        mounted.watch.look(&*mounted.backend);
    };
    remount("remount,atime");
    assert!(moves(&root, &list), "{}", flags());
    remount("remount,noatime");
    assert!(!moves(&file, &read), "{}", flags());
}
