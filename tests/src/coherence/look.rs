//! What a program sees of a file, as text: the same call on two filesystems can be compared.
//!
//! Left out is what may rightly differ: times that nobody set, size and links of directories, inode numbers.

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, SeekFrom, Stat, StatxFlags, StatxTimestamp,
};
use rustix::io::{Errno, Result};
use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Times below are set by tests with `utimensat`; those that come from clocks are later.
pub const SET_TIMES_END: i64 = 1_000_000_000;
/// Room for an extended attribute, or for a list of them.
const XATTR_ROOM: usize = 4096;

/// Bytes of a seed, none of which is zero: a hole is never taken for data.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut random = crate::chaos::Random::new(seed);
    let words = std::iter::repeat_with(|| random.number().to_le_bytes());
    let bytes = words.flatten().map(|byte| byte % 255 + 1);
    bytes.take(length).collect()
}

/// Length and hash (FNV-1a) of bytes.
pub fn digest(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{} bytes, hash {hash:016x}", bytes.len())
}

/// A result as text: the error's number if it is one.
pub fn told<T>(result: Result<T>, tell: impl FnOnce(T) -> String) -> String {
    result.map_or_else(error, tell)
}

/// An error as text.
pub fn error(errno: Errno) -> String {
    format!("error {}", errno.raw_os_error())
}

fn done(result: Result<()>) -> String {
    told(result, |()| "done".into())
}

/// Attributes as text.
pub fn attributes(stat: &Stat) -> String {
    let kind = FileType::from_raw_mode(stat.st_mode);
    let (mode, uid, gid) = (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid);
    let mut text = format!("{kind:?} mode {mode:o} owner {uid}:{gid}");
    if kind != FileType::Directory {
        let _ = write!(text, " links {}", stat.st_nlink);
    }
    if matches!(kind, FileType::RegularFile | FileType::Symlink) {
        let _ = write!(text, " size {}", stat.st_size);
    }
    text
}

/// `lstat`.
pub fn stat(path: &Path) -> String {
    told(rustix::fs::lstat(path), |stat| attributes(&stat))
}

/// `stat`, which follows symbolic links.
pub fn followed(path: &Path) -> String {
    told(rustix::fs::stat(path), |stat| attributes(&stat))
}

/// `statx` of the size alone.
pub fn statx_size(path: &Path) -> String {
    let found = rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::SIZE);
    told(found, |stat| {
        match FileType::from_raw_mode(stat.stx_mode.into()) {
            FileType::Directory => "a directory".into(),
            _ => format!("size {}", stat.stx_size),
        }
    })
}

/// Modification time from `statx`, in seconds and nanoseconds.
///
/// # Errors
///
/// Those of `statx(2)`.
pub fn mtime(path: &Path) -> Result<(i64, u32)> {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    let stat = rustix::fs::statx(CWD, path, flags, StatxFlags::MTIME)?;
    let StatxTimestamp {
        tv_sec, tv_nsec, ..
    } = stat.stx_mtime;
    Ok((tv_sec, tv_nsec))
}

/// Opens for reading; neither a FIFO nor a link lets it wait or go elsewhere than the flags say.
///
/// # Errors
///
/// Those of `open(2)`.
pub fn open(path: &Path, flags: OFlags) -> Result<File> {
    let flags = flags | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::open(
        path,
        flags,
        Mode::from(0o644),
    )?))
}

/// `open`, and what was opened.
pub fn opened(path: &Path) -> String {
    told(open(path, OFlags::RDONLY), |file| held_stat(&file))
}

/// All bytes through a new open.
pub fn read(path: &Path) -> String {
    told(open(path, OFlags::RDONLY), |file| held_read(&file))
}

/// All bytes of an open file, from its start until a read returns none.
///
/// # Errors
///
/// Those of `pread(2)`.
pub fn bytes(file: &File) -> std::io::Result<Vec<u8>> {
    let (mut all, mut piece) = (Vec::new(), vec![0; 1 << 16]);
    loop {
        match file.read_at(&mut piece, all.len() as u64)? {
            0 => return Ok(all),
            count => all.extend_from_slice(&piece[..count]),
        }
    }
}

/// All bytes of an open file.
pub fn held_read(file: &File) -> String {
    match bytes(file) {
        Ok(bytes) => digest(&bytes),
        Err(failed) => format!("error {:?}", failed.raw_os_error()),
    }
}

/// `fstat`.
pub fn held_stat(file: &File) -> String {
    told(rustix::fs::fstat(file), |stat| attributes(&stat))
}

/// `lseek` to the end.
pub fn held_end(file: &File) -> String {
    let end = rustix::fs::seek(file, SeekFrom::End(0));
    told(end, |end| format!("ends at {end}"))
}

/// Names and kinds in a directory, through a new open.
pub fn list(path: &Path) -> String {
    let listed = open(path, OFlags::RDONLY | OFlags::DIRECTORY).and_then(rustix::fs::Dir::new);
    told(listed, |mut directory| held_list(&mut directory))
}

/// Names and kinds in an open directory, from its start.
pub fn held_list(directory: &mut rustix::fs::Dir) -> String {
    directory.rewind();
    let mut entries = Vec::new();
    for entry in directory {
        match entry {
            Ok(entry) => {
                let name = entry.file_name().to_string_lossy().into_owned();
                if name != "." && name != ".." {
                    entries.push(format!("{name} {:?}", entry.file_type()));
                }
            }
            Err(errno) => return error(errno),
        }
    }
    entries.sort();
    entries.join(", ")
}

/// `readlink`.
pub fn link(path: &Path) -> String {
    let target = rustix::fs::readlink(path, Vec::new());
    told(target, |target| format!("to {}", target.to_string_lossy()))
}

/// `lgetxattr`.
pub fn xattr(path: &Path, name: &str) -> String {
    let mut value = [0_u8; XATTR_ROOM];
    let found = rustix::fs::lgetxattr(path, name, &mut value[..]);
    told(found, |length| digest(&value[..length]))
}

/// `fgetxattr`.
pub fn held_xattr(file: &File, name: &str) -> String {
    let mut value = [0_u8; XATTR_ROOM];
    let found = rustix::fs::fgetxattr(file, name, &mut value[..]);
    told(found, |length| digest(&value[..length]))
}

/// `llistxattr`: the names that are users'.
pub fn xattrs(path: &Path) -> String {
    let mut names = [0_u8; XATTR_ROOM];
    let found = rustix::fs::llistxattr(path, &mut names[..]);
    told(found, |length| {
        let names = String::from_utf8_lossy(&names[..length]).into_owned();
        let names = names.split('\0').filter(|name| name.starts_with("user."));
        let mut names: Vec<_> = names.collect();
        names.sort_unstable();
        names.join(", ")
    })
}

/// `access` for each kind of use.
pub fn access(path: &Path) -> String {
    use rustix::fs::Access;
    let kinds = [Access::EXISTS, Access::READ_OK, Access::EXEC_OK];
    let each = kinds.map(|kind| done(rustix::fs::access(path, kind)));
    each.join(", ")
}

/// Everything below a directory: kinds, attributes, contents, extended attributes.
///
/// # Errors
///
/// The path and the error of the first call that failed.
pub fn tree(root: &Path) -> std::result::Result<String, String> {
    let mut text = String::new();
    let mut left = vec![root.to_owned()];
    while let Some(directory) = left.pop() {
        let entries = std::fs::read_dir(&directory);
        let entries = entries.map_err(|failed| format!("{}: {failed}", directory.display()))?;
        let mut paths = Vec::new();
        for entry in entries {
            paths.push(entry.map_err(|failed| failed.to_string())?.path());
        }
        paths.sort();
        for path in paths {
            let stat = rustix::fs::lstat(&path);
            let stat = stat.map_err(|failed| format!("{}: {failed}", path.display()))?;
            let more = match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    left.push(path.clone());
                    String::new()
                }
                FileType::RegularFile => read(&path),
                FileType::Symlink => link(&path),
                _ => String::new(),
            };
            let name = path.strip_prefix(root).expect("below the root");
            let (shown, xattrs) = (attributes(&stat), xattrs(&path));
            if more.starts_with("error") || xattrs.starts_with("error") {
                return Err(format!("{}: {more} {xattrs}", path.display()));
            }
            let _ = writeln!(text, "{} {shown} {more} {xattrs}", name.display());
        }
    }
    Ok(text)
}
