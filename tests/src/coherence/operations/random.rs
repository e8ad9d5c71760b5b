//! Which calls are drawn how often.

use super::Operation as Op;
use crate::chaos::Random;

/// Paths that are files most of the time: few, so that steps meet.
const FILES: [&str; 6] = ["a", "b", "p/a", "p/b", "q/a", "p/r/a"];
/// Paths that are directories most of the time.
const DIRECTORIES: [&str; 4] = ["p", "q", "p/r", "q/r"];
/// Where symbolic links point, relative to their directory.
const TARGETS: [&str; 5] = ["a", "b", "r", "r/a", "nowhere"];
const XATTRS: [&str; 2] = ["user.one", "user.two"];
const MODES: [u32; 5] = [0o644, 0o600, 0o755, 0o4755, 0o000];
/// No file gets longer than this, but by appends.
const LENGTH_MAX: u64 = 40_000;
/// Files that one mount may have open at once.
const SLOTS: u64 = 3;

impl Op {
    /// Draws one: more than half change something.
    pub(in crate::coherence) fn random(random: &mut Random) -> Self {
        // Every path may become anything, but not so often that most calls fail.
        let any = random.below(16) == 0;
        let mut draw = |list: &[&'static str]| match any {
            true => random.of(&[&FILES[..], &DIRECTORIES].concat()),
            false => random.of(list),
        };
        let (path, other) = (draw(&FILES), draw(&FILES));
        let (directory, other_directory) = (draw(&DIRECTORIES), draw(&DIRECTORIES));
        let either = if random.below(4) == 0 {
            directory
        } else {
            path
        };
        // What should be a directory and is none, or the reverse, goes again.
        let (unlinked, removed) = match random.below(2) {
            0 => (path, directory),
            _ => (directory, path),
        };
        let (seed, slot) = (random.number(), random.below(SLOTS));
        let offset = random.below(LENGTH_MAX / 2);
        let length = random.between(1, LENGTH_MAX / 2) as usize;
        match random.below(64) {
            0..6 => Op::Create {
                path,
                exclusive: random.below(2) == 0,
            },
            6..9 => Op::Mkdir(directory),
            9 => Op::Symlink {
                path: either,
                target: random.of(&TARGETS),
            },
            10 => Op::Fifo(either),
            11..13 => Op::Link {
                from: path,
                to: other,
            },
            13 | 14 => Op::Unlink(unlinked),
            15 => Op::Rmdir(removed),
            16 | 17 => Op::Rename {
                from: directory,
                to: other_directory,
                exchange: false,
                replace: true,
            },
            18..23 => Op::Rename {
                from: path,
                to: other,
                exchange: false,
                replace: true,
            },
            23 => Op::Rename {
                from: either,
                to: other,
                exchange: true,
                replace: true,
            },
            24 => Op::Rename {
                from: path,
                to: other,
                exchange: false,
                replace: false,
            },
            25 | 26 => Op::Chmod {
                path: either,
                mode: random.of(&MODES),
            },
            27 => Op::Chown {
                path: either,
                uid: random.below(3) as u32,
                gid: random.below(3) as u32,
            },
            28 => Op::SetMtime {
                path,
                seconds: random.below(1000),
            },
            29 | 30 => Op::Truncate {
                path,
                length: random.below(LENGTH_MAX),
            },
            31..35 => Op::Write {
                path,
                offset,
                length,
                seed,
                sync: random.below(4) == 0,
            },
            35 | 36 => Op::Append {
                path,
                length: length / 8 + 1,
                seed,
            },
            37 => Op::Store {
                path,
                offset,
                length: length.min(500),
                seed,
            },
            38 => Op::Fallocate {
                path,
                how: random.below(4) as u8,
                offset,
                length: length as u64,
            },
            39 => Op::SetXattr {
                path,
                name: random.of(&XATTRS),
                length: length % 2000,
                seed,
            },
            40 => Op::RemoveXattr {
                path,
                name: random.of(&XATTRS),
            },
            41 => Op::Xattr {
                path,
                name: random.of(&XATTRS),
            },
            42 => Op::Xattrs(either),
            43..47 => Op::Stat(either),
            47 => Op::Followed(path),
            48 => Op::Access(either),
            49..52 => Op::Read(path),
            52 | 53 => Op::List(directory),
            54 => Op::Readlink(path),
            55 => Op::SameFile { one: path, other },
            56 | 57 => Op::Hold { slot, path },
            58 => Op::Release(slot),
            59 => Op::HeldRead(slot),
            60 => Op::HeldStat(slot),
            61 => Op::HeldEnd(slot),
            _ => Op::HeldWrite {
                slot,
                offset,
                length,
                seed,
            },
        }
    }
}
