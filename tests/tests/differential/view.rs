//! Everything that a filesystem shows of a tree, such that two of them can be compared.
//!
//! Inodes are named by the first path that leads to them, and times that come from a clock by whether they have moved
//! since the last look.

use crate::place::Place;
use lumeofs_tests::coherence::look::{self, SET_TIMES_END, attributes, digest};
use rustix::fs::{FileType, Mode, OFlags, Stat};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How much older than the clock a time may be: a kernel that counts ticks gives the last one.
const TICK: Duration = Duration::from_millis(20);

/// Seconds and nanoseconds.
type Time = (i64, i64);
/// Of the last access, modification and change.
type Times = [Time; 3];

/// What one filesystem has shown of the times of its inodes.
#[derive(Debug)]
pub(crate) struct Clocks {
    /// By inode, and when that was.
    seen: BTreeMap<u64, (Times, Duration)>,
    begun: Duration,
}

impl Clocks {
    /// Of inodes that are to be made from now on.
    pub(crate) fn new() -> Self {
        Self {
            seen: BTreeMap::new(),
            begun: wall(),
        }
    }

    /// Tells times: those that were set as they are, the others by whether they have moved.
    fn tell(&self, stat: &Stat, now: Duration) -> String {
        let times = times(stat);
        // An mtime does not move without the ctime: then it is another inode, made within the same tick.
        let is_other = |before: &Times| before[1] != times[1] && before[2] == times[2];
        let before = self.seen.get(&stat.st_ino);
        let before = before.filter(|(before, _)| !is_other(before));
        let looked = before.map_or(self.begun, |(_, looked)| *looked);
        let mut text = String::new();
        for (at, name) in ["atime", "mtime", "ctime"].into_iter().enumerate() {
            let (seconds, nanoseconds) = times[at];
            let word = if seconds < SET_TIMES_END {
                format!("{seconds}.{nanoseconds:09}")
            } else if before.is_some_and(|(before, _)| before[at] == times[at]) {
                "same".into()
            } else if is_recent(times[at], looked, now) {
                "new".into()
            } else {
                format!("{seconds}.{nanoseconds:09}, not within {looked:?}..{now:?}")
            };
            let _ = write!(text, " {name} {word}");
        }
        text
    }
}

/// Whether a time is between the last look and this one.
fn is_recent((seconds, nanoseconds): Time, looked: Duration, now: Duration) -> bool {
    let time = Duration::new(seconds.unsigned_abs(), nanoseconds as u32);
    (looked.saturating_sub(TICK)..=now).contains(&time)
}

fn times(stat: &Stat) -> Times {
    [
        (stat.st_atime, stat.st_atime_nsec as i64),
        (stat.st_mtime, stat.st_mtime_nsec as i64),
        (stat.st_ctime, stat.st_ctime_nsec as i64),
    ]
}

fn wall() -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("a clock after 1970")
}

/// What is shown of a tree, line by line.
pub(crate) type View = BTreeMap<String, String>;

/// Looks at everything below the root of a place, and at what is open in it.
pub(crate) fn look(place: &Place, clocks: &mut Clocks) -> View {
    place.enter();
    let mut found = Vec::new();
    walk(Path::new("."), &mut found);
    let (mut view, mut names, mut seen) = (View::new(), BTreeMap::new(), BTreeSet::new());
    let mut all = BTreeMap::new();
    // After all calls: what they showed is not younger.
    let now = wall();
    for (path, stat, more) in found {
        let name = path.display().to_string();
        let text = tell(&stat, clocks, now);
        // One name of each inode tells of it, the others name that one.
        let first: &mut String = names.entry(stat.st_ino).or_insert_with(|| name.clone());
        let text = match seen.insert(stat.st_ino) {
            true => format!("{text}{more}"),
            false => format!("is {first}"),
        };
        all.insert(stat.st_ino, (times(&stat), now));
        view.insert(name, text);
    }
    for (slot, file) in place.held() {
        let text = match rustix::fs::fstat(file) {
            Err(errno) => look::error(errno),
            Ok(stat) => {
                all.insert(stat.st_ino, (times(&stat), now));
                let name = names.get(&stat.st_ino);
                let text = match name {
                    Some(name) => format!("is {name}"),
                    None => tell(&stat, clocks, wall()),
                };
                format!("{text}{}", held(file, &stat, name.is_none()))
            }
        };
        view.insert(format!("slot {slot}"), text);
    }
    // A number that has gone may come again, as that of another inode.
    clocks.seen = all;
    view
}

fn tell(stat: &Stat, clocks: &Clocks, now: Duration) -> String {
    let mut text = attributes(stat);
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        let _ = write!(text, " links {}", stat.st_nlink);
    }
    if stat.st_rdev != 0 {
        let _ = write!(text, " device {:#x}", stat.st_rdev);
    }
    text + &clocks.tell(stat, now)
}

/// What is open beside its attributes: its position, and its bytes if no name leads to them.
fn held(file: &File, stat: &Stat, is_nameless: bool) -> String {
    let at = look::told(rustix::fs::tell(file), |at| at.to_string());
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile if is_nameless => format!(" at {at} {}", look::held_read(file)),
        FileType::RegularFile => format!(" at {at}"),
        _ => String::new(),
    }
}

/// Opens what a name leads to without leaving a trace.
fn open(path: &Path, flags: OFlags) -> rustix::io::Result<File> {
    let flags = flags | OFlags::NOATIME | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map(File::from)
}

/// Everything at and below a path, each with what it holds. A failure is something that is shown too.
fn walk(path: &Path, found: &mut Vec<(PathBuf, Stat, String)>) {
    let Ok(stat) = rustix::fs::lstat(path) else {
        return;
    };
    let kind = FileType::from_raw_mode(stat.st_mode);
    let mut more = xattrs(path);
    match kind {
        FileType::RegularFile => {
            let bytes = open(path, OFlags::RDONLY).map_err(std::io::Error::from);
            match bytes.and_then(|file| look::bytes(&file)) {
                Ok(bytes) => more += &format!(" {}", digest(&bytes)),
                Err(failed) => more += &format!(" {failed}"),
            }
        }
        FileType::Directory => match list(path) {
            Ok(names) => {
                more += &format!(" {names:?}");
                found.push((path.to_owned(), stat, more));
                for (name, _) in names {
                    walk(&path.join(name), found);
                }
                return;
            }
            Err(errno) => more += &look::error(errno),
        },
        _ => {}
    }
    found.push((path.to_owned(), stat, more));
}

/// Names and kinds in a directory.
fn list(path: &Path) -> rustix::io::Result<BTreeMap<String, FileType>> {
    let mut names = BTreeMap::new();
    for entry in rustix::fs::Dir::new(open(path, OFlags::RDONLY | OFlags::DIRECTORY)?)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            names.insert(name, entry.file_type());
        }
    }
    Ok(names)
}

/// Extended attributes and their values.
fn xattrs(path: &Path) -> String {
    let mut names = [0_u8; 4096];
    let found = rustix::fs::llistxattr(path, &mut names[..]);
    let length = match found {
        Ok(length) => length,
        Err(errno) => return format!(" attributes: {}", look::error(errno)),
    };
    let names = String::from_utf8_lossy(&names[..length]).into_owned();
    let mut names: Vec<_> = names.split_terminator('\0').collect();
    names.sort_unstable();
    let mut text = String::new();
    for name in names {
        let _ = write!(text, " {name}: {}", look::xattr(path, name));
    }
    text
}
