//! Concurrent calls on three mounts: whatever they saw can be explained by a single copy of each block, name, extended
//! attribute, time and length.

use lumeofs_tests::Cluster;
use lumeofs_tests::chaos::Random;
use lumeofs_tests::coherence::{
    Action, Event, check_linear, look, read_name, read_time, unique_value, write_name, write_time,
};
use rustix::fs::{OFlags, XattrFlags};
use rustix::io::{Errno, Result};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const LENGTH: Duration = Duration::from_secs(8);
const THREADS_PER_MOUNT: usize = 2;
/// Bytes of a block that holds one value.
const BLOCK: usize = 4096;
const XATTR: &str = "user.register";

/// Something that has one value at a time.
#[derive(Clone, Copy, Debug)]
enum Register {
    /// A block of a file, through what is open.
    Block(u64),
    /// The same, through a new open and with a sync.
    SyncedBlock(u64),
    /// What the symbolic link of this name points to; absent if there is none.
    Name(&'static str),
    Xattr,
    /// The modification time, in seconds.
    Time,
    /// The length of a file.
    Length,
}

/// Those that take part. Registers of one number are the same one, used in other ways.
const REGISTERS: [(usize, Register); 9] = [
    (0, Register::Block(0)),
    (0, Register::SyncedBlock(0)),
    (1, Register::Block(1)),
    (2, Register::Name("one")),
    (3, Register::Name("two")),
    (4, Register::Xattr),
    (5, Register::Time),
    (6, Register::Length),
    (2, Register::Name("one")),
];

/// A thread's view of the registers.
struct Client {
    number: usize,
    directory: PathBuf,
    blocks: File,
    random: Random,
}

impl Client {
    fn new(number: usize, mount: &Path) -> Self {
        let directory = mount.join("registers");
        let blocks = look::open(&directory.join("blocks"), OFlags::RDWR);
        let (blocks, random) = (blocks.expect("it is there"), Random::new(number as u64));
        Self {
            number,
            directory,
            blocks,
            random,
        }
    }

    /// Makes calls until the time is over; those of each register.
    fn run(mut self) -> Vec<(usize, Event)> {
        let (end, mut events) = (Instant::now() + LENGTH, Vec::new());
        while Instant::now() < end {
            let (key, register) = self.random.of(&REGISTERS);
            let begun = Instant::now();
            let action = self.act(register);
            let action = action.unwrap_or_else(|errno| panic!("{register:?}: {errno}"));
            let ended = Some(Instant::now());
            events.push((
                key,
                Event {
                    begun,
                    ended,
                    action,
                    by: self.number,
                },
            ));
        }
        events
    }

    fn act(&mut self, register: Register) -> Result<Action> {
        let writes = self.random.below(3) == 0;
        match register {
            Register::Block(block) if writes => write_block(&self.blocks, block),
            Register::Block(block) => read_block(&self.blocks, block),
            Register::SyncedBlock(block) => {
                let path = self.directory.join("blocks");
                let file = look::open(&path, OFlags::RDWR | OFlags::SYNC)?;
                if writes {
                    write_block(&file, block)
                } else {
                    read_block(&file, block)
                }
            }
            Register::Name(name) => self.name(name),
            Register::Xattr if writes => {
                let (value, path) = (unique_value(), self.directory.join("file"));
                let bytes = value.to_le_bytes();
                rustix::fs::setxattr(path, XATTR, &bytes, XattrFlags::empty())?;
                Ok(Action::Write(value))
            }
            Register::Xattr => self.xattr(),
            Register::Time if writes => {
                let value = unique_value();
                write_time(&self.directory.join("file"), value)?;
                Ok(Action::Write(value))
            }
            Register::Time => read_time(&self.directory.join("file")).map(Action::Read),
            Register::Length if writes => {
                let value = unique_value();
                let file = look::open(&self.directory.join("sized"), OFlags::WRONLY)?;
                rustix::fs::ftruncate(file, value)?;
                Ok(Action::Write(value))
            }
            Register::Length => {
                let stat = rustix::fs::lstat(self.directory.join("sized"))?;
                Ok(Action::Read(stat.st_size.cast_unsigned()))
            }
        }
    }

    fn xattr(&self) -> Result<Action> {
        let mut bytes = [0; 8];
        let path = self.directory.join("file");
        match rustix::fs::getxattr(path, XATTR, &mut bytes[..]) {
            Ok(_) => Ok(Action::Read(u64::from_le_bytes(bytes))),
            Err(Errno::NODATA) => Ok(Action::Read(0)),
            Err(errno) => Err(errno),
        }
    }

    fn name(&mut self, name: &str) -> Result<Action> {
        let path = self.directory.join(name);
        match self.random.below(8) {
            0 => {
                let value = unique_value();
                let made = rustix::fs::symlink(value.to_string(), path);
                Ok(Action::Create {
                    value,
                    done: done_or(made, Errno::EXIST)?,
                })
            }
            1 => {
                let value = unique_value();
                let new = self.directory.join(format!("new-{}", self.number));
                // Only the rename is the write. The event is longer, which allows more, but no stale read.
                write_name(&path, &new, value)?;
                Ok(Action::Write(value))
            }
            2 => {
                let done = done_or(rustix::fs::unlink(path), Errno::NOENT)?;
                Ok(Action::Remove { done })
            }
            _ => read_name(&path).map(Action::Read),
        }
    }
}

/// Whether a call succeeded, if it did not fail in another way than this.
fn done_or(result: Result<()>, refused: Errno) -> Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(errno) if errno == refused => Ok(false),
        Err(errno) => Err(errno),
    }
}

fn write_block(file: &File, block: u64) -> Result<Action> {
    let value = unique_value();
    let bytes = value.to_le_bytes().repeat(BLOCK / 8);
    let written = rustix::io::pwrite(file, &bytes, block * BLOCK as u64)?;
    assert_eq!(written, BLOCK, "a whole write");
    Ok(Action::Write(value))
}

fn read_block(file: &File, block: u64) -> Result<Action> {
    let mut bytes = [0; BLOCK];
    let count = rustix::io::pread(file, &mut bytes, block * BLOCK as u64)?;
    assert_eq!(count, BLOCK, "a whole read");
    let values: Vec<_> = bytes
        .chunks_exact(8)
        .map(|chunk| chunk.try_into().unwrap())
        .collect();
    let values: Vec<_> = values.into_iter().map(u64::from_le_bytes).collect();
    let value = values[0];
    let torn = values.iter().find(|other| **other != value);
    assert_eq!(torn, None, "one read shows one write, not {value} and this");
    Ok(Action::Read(value))
}

#[test]
fn concurrent_calls_on_three_mounts_are_those_of_a_single_copy() {
    let mut cluster = Cluster::start();
    let mounts = [
        cluster.mount(),
        cluster.second_mount(),
        cluster.second_mount(),
    ];
    let directory = mounts[0].join("registers");
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("blocks"), [0; 2 * BLOCK]).unwrap();
    std::fs::write(directory.join("sized"), "").unwrap();
    File::create(directory.join("file"))
        .unwrap()
        .set_modified(std::time::UNIX_EPOCH)
        .unwrap();
    let events = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..mounts.len() * THREADS_PER_MOUNT)
            .map(|number| {
                let client = Client::new(number, &mounts[number % mounts.len()]);
                scope.spawn(move || client.run())
            })
            .collect();
        let ended = clients
            .into_iter()
            .map(|client| client.join().expect("no call failed"));
        ended.flatten().collect::<Vec<_>>()
    });
    let begun = Instant::now();
    for key in 0..=6 {
        let of_key = events.iter().filter(|(of, _)| *of == key);
        let of_key: Vec<_> = of_key.map(|(_, event)| *event).collect();
        if let Err(told) = check_linear(&of_key) {
            panic!("register {key}: {told}");
        }
    }
    println!("{} calls, checked in {:?}", events.len(), begun.elapsed());
}
