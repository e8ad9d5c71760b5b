//! Everything by which another mount can see a change.

use lumeofs_tests::coherence::{Mapping, look};
use rustix::fs::OFlags;
use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Sees something of a path, as text. The first call warms what caches there are, the second must be right.
pub(crate) type Seer = Box<dyn FnMut() -> String>;

/// What is at a path before the change.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    File,
    Directory,
    Other,
}

/// A way to see something.
pub(crate) struct Look {
    pub(crate) name: &'static str,
    /// Of what only, if not of everything.
    pub(crate) of: Option<Kind>,
    pub(crate) make: fn(PathBuf) -> Seer,
}

/// More than any file here has, in bytes.
const MAPPED: usize = 1 << 16;

fn held(path: &Path) -> File {
    look::open(path, OFlags::RDONLY).expect("it is there before the change")
}

/// Through what was opened before the change.
fn through_held(path: &Path, see: fn(&File) -> String) -> Seer {
    let file = held(path);
    Box::new(move || see(&file))
}

/// Through a mapping that was made before the change; `refresh` is what the mapping needs to be current, and says how
/// long the file is.
fn through_mapping(path: PathBuf, refresh: fn(&Path, &File) -> Option<u64>) -> Seer {
    let file = held(&path);
    let mapping = Mapping::new(&file, MAPPED, false).expect("a file can be mapped");
    Box::new(move || match refresh(&path, &file) {
        Some(length) => look::digest(&mapping.read(length as usize)),
        None => "another file".into(),
    })
}

fn length(file: &File) -> u64 {
    file.metadata().expect("an open file has attributes").len()
}

fn is_same(one: &File, other: &File) -> bool {
    let inode = |file: &File| file.metadata().expect("an open file has attributes").ino();
    inode(one) == inode(other)
}

macro_rules! looks {
    ($($name:literal $of:expr, $make:expr;)*) => {
        &[$(Look { name: $name, of: $of, make: $make }),*]
    };
}

/// All of them.
pub(crate) const LOOKS: &[Look] = looks![
    "stat" None, |path| Box::new(move || look::stat(&path));
    "stat that follows" None, |path| Box::new(move || look::followed(&path));
    "statx" None, |path| Box::new(move || look::statx_size(&path));
    "access" None, |path| Box::new(move || look::access(&path));
    "open" None, |path| Box::new(move || look::opened(&path));
    "read" None, |path| Box::new(move || look::read(&path));
    "readdir" None, |path| Box::new(move || look::list(&path));
    "readlink" None, |path| Box::new(move || look::link(&path));
    "getxattr" None, |path| Box::new(move || look::xattr(&path, "user.one"));
    "getxattr of one that is not there" None, |path| Box::new(move || look::xattr(&path, "user.two"));
    "getxattr of an ACL" None, |path| Box::new(move || look::xattr(&path, "system.posix_acl_access"));
    "getxattr of a default ACL" None, |path| Box::new(move || look::xattr(&path, "system.posix_acl_default"));
    "listxattr" None, |path| Box::new(move || look::xattrs(&path));
    "read of what was open" Some(Kind::File), |path| through_held(&path, look::held_read);
    "fstat of what was open" Some(Kind::File), |path| through_held(&path, look::held_stat);
    "lseek to the end of what was open" Some(Kind::File), |path| through_held(&path, look::held_end);
    "fgetxattr of what was open" Some(Kind::File), |path| {
        through_held(&path, |file| look::held_xattr(file, "user.one"))
    };
    "mapping after fstat" Some(Kind::File), |path| through_mapping(path, |_, file| Some(length(file)));
    "mapping after open" Some(Kind::File), |path| through_mapping(path, |path, mapped| {
        let opened = look::open(path, OFlags::RDONLY).ok()?;
        is_same(&opened, mapped).then(|| length(&opened))
    });
    "readdir of what was open" Some(Kind::Directory), |path| {
        let directory = rustix::fs::Dir::new(held(&path));
        let mut directory = directory.expect("a directory");
        Box::new(move || look::held_list(&mut directory))
    };
];
