//! Which calls are drawn how often, and with what.

use crate::call::{Call, Name, Node, ONE, OTHER, Of, Step, Time, User, Whence};
use lumeofs_tests::chaos::Random;
use rustix::fs::{FallocateFlags, OFlags, RenameFlags, XattrFlags};

/// Paths that are files most of the time: few, so that steps meet.
const FILES: [&str; 7] = ["a", "b", "d/a", "d/b", "e/a", "d/s/a", "c"];
/// Paths that are directories most of the time.
const DIRECTORIES: [&str; 4] = ["d", "e", "d/s", "e/s"];
/// Paths that are symbolic links most of the time.
const LINKS: [&str; 3] = ["l", "d/l", "e/l"];
/// Where symbolic links point, relative to their directory.
const TARGETS: [&str; 10] = [
    "a", "b", "s", "s/a", "nowhere", "l", "d", "d/l", "../a", "../d/",
];
/// Names that no directory holds for long, or never.
const ODD: [&str; 12] = [
    "",
    ".",
    "d/.",
    "d/..",
    "./a",
    "d//a",
    "%",
    "^",
    "a/x",
    "d/%",
    "l/a",
    "nowhere/a",
];
const XATTRS: [&str; 8] = [
    "user.one",
    "user.two",
    "trusted.one",
    "security.one",
    "security.capability",
    "user.",
    "nobody.one",
    "user.%",
];
const MODES: [u32; 14] = [
    0o644, 0o600, 0o755, 0o777, 0o666, 0o4755, 0o2755, 0o6777, 0o2666, 0o1777, 0o2777, 0o000,
    0o444, 0o711,
];
const UMASKS: [u32; 4] = [0o022, 0o000, 0o077, 0o027];
const LENGTHS: [u64; 8] = [0, 1, 511, 4095, 4096, 4097, 10_000, 40_000];
/// Files that one mount may have open at once.
const SLOTS: u64 = 3;

/// So many steps make what the others use.
const BEGINNING: usize = DIRECTORIES.len() + FILES.len() + LINKS.len() + SLOTS as usize;

/// Draws a sequence for so many mounts.
pub(crate) fn steps(seed: u64, count: usize, mounts: usize) -> Vec<Step> {
    let mut draw = Draw(Random::new(seed));
    let step = |number| Step {
        number,
        mount: draw.below(mounts as u64) as usize,
        user: match number {
            // What everybody needs.
            0..BEGINNING if number >= BEGINNING - SLOTS as usize => User::Root,
            _ => draw.of(&[User::Root, User::Root, User::One, User::One, User::Other]),
        },
        umask: match draw.below(4) {
            0 => draw.of(&UMASKS),
            _ => UMASKS[0],
        },
        call: {
            let mut call = match number {
                0..BEGINNING => draw.make(number),
                _ => draw.call(),
            };
            if mounts > 1 {
                drop_sgid(&mut call);
            }
            call
        },
        // Now and then several calls meet in the caches before anybody looks.
        look: (draw.below(4) > 0).then(|| draw.below(mounts as u64) as usize),
    };
    (0..count).map(step).collect()
}

/// Whether a write takes set-group-id from a file that its group may not execute is left open where several mounts write.
fn drop_sgid(call: &mut Call) {
    if let Call::Open { mode, .. } | Call::Mknod { mode, .. } | Call::Chmod { mode, .. } = call {
        *mode &= !0o2000;
    }
}

struct Draw(Random);

impl Draw {
    fn below(&mut self, end: u64) -> u64 {
        self.0.below(end)
    }

    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        self.0.of(list)
    }

    /// Most of the time one of the list, seldom any other path or an odd one.
    fn path(&mut self, list: &[&str]) -> Name {
        let path = match self.below(24) {
            0 => self.of(&ODD),
            1 | 2 => self.of(&[&FILES[..], &DIRECTORIES, &LINKS].concat()),
            _ => self.of(list),
        };
        match self.below(24) {
            // `/` is no part of the tree.
            0 if !path.is_empty() => format!("{path}/"),
            _ => path.into(),
        }
    }

    fn file(&mut self) -> Name {
        self.path(&FILES)
    }

    fn directory(&mut self) -> Name {
        self.path(&DIRECTORIES)
    }

    fn any(&mut self) -> Name {
        let list = [&FILES[..], &FILES, &DIRECTORIES, &LINKS].concat();
        self.path(&list)
    }

    fn slot(&mut self) -> u8 {
        self.below(SLOTS) as u8
    }

    fn what(&mut self) -> Of {
        match self.below(8) {
            0 => Of::Link(self.path(&LINKS)),
            1..3 => Of::Slot(self.slot()),
            _ => Of::Path(self.any()),
        }
    }

    fn mode(&mut self) -> u32 {
        self.of(&MODES)
    }

    fn length(&mut self) -> u64 {
        match self.below(2) {
            0 => self.of(&LENGTHS),
            _ => self.below(20_000),
        }
    }

    fn id(&mut self) -> Option<u32> {
        self.of(&[None, Some(0), Some(ONE), Some(OTHER)])
    }

    fn time(&mut self) -> Time {
        match self.below(6) {
            0 | 1 => Time::Now,
            2 => Time::Omit,
            3 => Time::At(-(self.below(1000).cast_signed()), 500_000_000),
            4 => Time::At(self.below(1000).cast_signed(), 999_999_999),
            _ => Time::At(self.below(1000).cast_signed(), 0),
        }
    }

    fn open_flags(&mut self) -> OFlags {
        if self.below(2) == 0 {
            return OFlags::RDWR | OFlags::CREATE;
        }
        let mut flags = self.of(&[OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR, OFlags::RDWR]);
        for (one_in, flag) in [
            (2, OFlags::CREATE),
            (8, OFlags::EXCL),
            (6, OFlags::TRUNC),
            (4, OFlags::APPEND),
            (12, OFlags::NOFOLLOW),
            (16, OFlags::DIRECTORY),
            (12, OFlags::SYNC),
            (12, OFlags::DSYNC),
            (12, OFlags::NOATIME),
            (20, OFlags::PATH),
        ] {
            flags.set(flag, flags.contains(flag) || self.below(one_in) == 0);
        }
        flags
    }

    /// One of the calls with which a sequence begins.
    fn make(&mut self, number: usize) -> Call {
        let (files, links) = (DIRECTORIES.len(), DIRECTORIES.len() + FILES.len());
        let slots = links + LINKS.len();
        if number < files {
            Call::Mkdir {
                path: DIRECTORIES[number].into(),
                mode: self.of(&[0o777, 0o777, 0o1777, 0o2777, 0o755]),
            }
        } else if number < links {
            Call::Mknod {
                path: FILES[number - files].into(),
                node: Node::Regular,
                mode: self.mode(),
            }
        } else if number < slots {
            Call::Symlink {
                path: LINKS[number - links].into(),
                target: self.of(&TARGETS).into(),
            }
        } else {
            Call::Open {
                slot: (number - slots) as u8,
                path: self.of(&FILES).into(),
                flags: OFlags::RDWR | OFlags::CREATE,
                mode: self.mode(),
            }
        }
    }

    fn call(&mut self) -> Call {
        match self.below(100) {
            0..46 => self.data_call(),
            46..68 => self.name_call(),
            _ => self.attribute_call(),
        }
    }

    /// An open or a use of what is open.
    fn data_call(&mut self) -> Call {
        let (slot, seed) = (self.slot(), self.0.number() >> 8);
        let (offset, length) = (self.length(), self.length() as usize);
        match self.below(40) {
            0 => Call::Open {
                slot,
                path: self.directory(),
                flags: OFlags::RDONLY | OFlags::DIRECTORY,
                mode: 0,
            },
            1 => Call::Open {
                slot,
                path: self.directory(),
                flags: OFlags::TMPFILE
                    | self.of(&[
                        OFlags::RDWR,
                        OFlags::RDWR,
                        OFlags::WRONLY,
                        OFlags::RDONLY,
                        OFlags::RDWR | OFlags::EXCL,
                    ]),
                mode: self.mode(),
            },
            2..12 => Call::Open {
                slot,
                path: match self.below(8) {
                    0 => self.path(&LINKS),
                    1 => self.any(),
                    _ => self.file(),
                },
                flags: self.open_flags(),
                mode: self.mode(),
            },
            12 => Call::Close(slot),
            13..15 => Call::Read { slot, length },
            15..17 => Call::ReadAt {
                slot,
                offset,
                length,
            },
            17..21 => Call::Write { slot, length, seed },
            21..25 => Call::WriteAt {
                slot,
                offset,
                length,
                seed,
            },
            25 => Call::WriteMany {
                slot,
                lengths: [length, 0, self.length() as usize],
                seed,
            },
            26..29 => Call::Seek {
                slot,
                whence: self.of(&[
                    Whence::Start,
                    Whence::Here,
                    Whence::End,
                    Whence::Data,
                    Whence::Hole,
                ]),
                offset: match self.below(4) {
                    0 => -(offset.cast_signed()),
                    _ => offset.cast_signed(),
                },
            },
            29 => Call::SetAppend {
                slot,
                on: self.below(2) == 0,
            },
            30 => Call::Sync {
                slot,
                data_only: self.below(2) == 0,
            },
            31..36 => Call::Allocate {
                slot,
                how: self.of(&[
                    FallocateFlags::empty(),
                    FallocateFlags::KEEP_SIZE,
                    FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                    FallocateFlags::PUNCH_HOLE,
                    FallocateFlags::ZERO_RANGE,
                    FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
                ]),
                offset,
                length: length as u64,
            },
            36 => Call::Copy {
                from: slot,
                to: self.slot(),
                from_offset: offset,
                to_offset: self.length(),
                length,
            },
            37 => Call::Store {
                slot,
                offset,
                length,
                seed,
            },
            38 => Call::ListHeld(slot),
            _ => Call::Truncate {
                of: Of::Slot(slot),
                length: offset.cast_signed(),
            },
        }
    }

    fn name_call(&mut self) -> Call {
        let mode = self.mode();
        match self.below(40) {
            0..5 => Call::Mkdir {
                path: self.directory(),
                mode,
            },
            5..9 => Call::Mknod {
                path: self.any(),
                node: self.of(&[Node::Regular, Node::Fifo, Node::Socket, Node::Device]),
                mode,
            },
            9..12 => Call::Symlink {
                path: self.path(&LINKS),
                target: match self.below(12) {
                    0 => "".into(),
                    1 => "^".into(),
                    _ => self.of(&TARGETS).into(),
                },
            },
            12 => Call::Readlink(self.path(&LINKS)),
            13..16 => Call::Link {
                from: self.any(),
                to: self.file(),
                follow: self.below(3) == 0,
            },
            16..19 => Call::Unlink(self.any()),
            19..21 => Call::Rmdir(self.directory()),
            21 => Call::LinkHeld {
                slot: self.slot(),
                to: self.file(),
            },
            22 => Call::Mknod {
                path: self.file(),
                node: Node::Regular,
                mode,
            },
            23..26 => Call::Rename {
                from: self.directory(),
                to: self.directory(),
                flags: RenameFlags::empty(),
            },
            26..37 => Call::Rename {
                from: self.any(),
                to: self.any(),
                flags: self.of(&[
                    RenameFlags::empty(),
                    RenameFlags::empty(),
                    RenameFlags::empty(),
                    RenameFlags::NOREPLACE,
                    RenameFlags::EXCHANGE,
                    RenameFlags::EXCHANGE,
                    RenameFlags::WHITEOUT,
                    RenameFlags::WHITEOUT | RenameFlags::NOREPLACE,
                    RenameFlags::WHITEOUT | RenameFlags::EXCHANGE,
                    RenameFlags::EXCHANGE | RenameFlags::NOREPLACE,
                ]),
            },
            _ => Call::List(self.directory()),
        }
    }

    fn attribute_call(&mut self) -> Call {
        let name = match self.below(2) {
            0 => XATTRS[0],
            _ => self.of(&XATTRS),
        };
        let seed = self.0.number() >> 8;
        let length = self.of(&[0, 10, 100, 900]);
        match self.below(40) {
            0..6 => Call::Chmod {
                of: self.what(),
                mode: self.mode(),
            },
            6..11 => Call::Chown {
                of: self.what(),
                uid: self.id(),
                gid: self.id(),
            },
            11..17 => Call::Utimes {
                of: self.what(),
                atime: self.time(),
                mtime: self.time(),
            },
            17..21 => Call::Truncate {
                of: self.what(),
                length: match self.below(20) {
                    0 => -1,
                    _ => self.length().cast_signed(),
                },
            },
            21..23 => Call::Access {
                path: self.any(),
                bits: self.below(8) as u32,
            },
            23 => Call::Stat(self.what()),
            // Where ext4 finds the value there already, it changes nothing, not even the time of the change.
            24..33 if length == 0 || name == "security.capability" => Call::SetXattr {
                of: self.what(),
                name,
                length,
                seed,
                flags: XattrFlags::CREATE,
            },
            24..33 => Call::SetXattr {
                of: self.what(),
                name,
                length,
                seed,
                flags: self.of(&[
                    XattrFlags::empty(),
                    XattrFlags::empty(),
                    XattrFlags::empty(),
                    XattrFlags::CREATE,
                    XattrFlags::REPLACE,
                ]),
            },
            33..36 => Call::Xattr {
                of: self.what(),
                name,
                room: self.of(&[0, 10, 1000]),
            },
            36 => Call::Xattrs {
                of: self.what(),
                room: self.of(&[0, 1, 1000]),
            },
            _ => Call::RemoveXattr {
                of: self.what(),
                name,
            },
        }
    }
}
