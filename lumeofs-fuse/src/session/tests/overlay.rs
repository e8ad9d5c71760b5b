//! overlayfs above a mount.

use super::*;
use rustix::fs::inotify;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// An overlay that goes with this.
struct Overlay(PathBuf);

impl Overlay {
    /// All its layers are on the mount of `fixture`.
    fn new(fixture: &Fixture, at: &Path) -> Self {
        let layer = |name: &str| fixture.path(name).display().to_string();
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            layer("lower"),
            layer("upper"),
            layer("work")
        );
        let options = std::ffi::CString::new(options).unwrap();
        let flags = MountFlags::empty();
        mount("overlay", at, "overlay", flags, options.as_c_str()).unwrap();
        Self(at.to_owned())
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn what_overlayfs_copied_up_is_there_although_the_name_of_its_origin_was_forgotten() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    for name in ["lower", "upper", "work"] {
        fs::create_dir(fixture.path(name)).unwrap();
    }
    let origin = fixture.path("lower/file");
    fs::write(&origin, b"one").unwrap();
    let merged = tempfile::tempdir().unwrap();
    let file = merged.path().join("file");
    let overlay = Overlay::new(&fixture, merged.path());
    let mut writer = OpenOptions::new().append(true).open(&file).unwrap();
    writer.write_all(b", two").unwrap();
    drop(writer);
    drop(overlay);
    assert_eq!(fs::read(fixture.path("upper/file")).unwrap(), b"one, two");
    // The watch keeps the inode in the kernel; its name goes when it is looked up in vain, once to be revalidated and once anew.
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
    inotify::add_watch(&watch, &origin, inotify::WatchFlags::DELETE_SELF).unwrap();
    fixture.memory.hide(b"file", 2);
    fs::metadata(&origin).unwrap_err();
    let _overlay = Overlay::new(&fixture, merged.path());
    for _ in 0..2 {
        assert_eq!(fs::read(&file).unwrap(), b"one, two");
    }
}
