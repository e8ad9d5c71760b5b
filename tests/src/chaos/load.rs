//! The load that verifies itself: writers of fsynced files on two mounts, and a reader that compares them on both.

use super::Random;
use super::content::{Step, bytes};
use super::manifest::Manifest;
use super::watch::Watch;
use crate::pause;
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// One writer on each mount.
const WRITERS: usize = 2;
/// Files of a writer; from then on it only changes them.
const MAX_FILES: usize = 800;
/// Steps of one file.
const MAX_STEPS: usize = 8;
/// Between two operations of a thread: the machine has other work too.
const THINK: Duration = Duration::from_millis(10);
/// After a call that failed.
const AFTER_ERROR: Duration = Duration::from_millis(200);
/// Calls that take longer than this after the fault is over hang.
const HANGS: Duration = Duration::from_secs(60);

/// Where the load leaves what writers lock.
pub(super) const LOCKS: &str = "locks";

/// The threads. They are told to stop when this is dropped.
#[derive(Debug)]
pub(super) struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    watch: Watch,
    manifest: Manifest,
    /// The load's directory on each mount.
    roots: [PathBuf; WRITERS],
}

impl Load {
    /// Starts it in a new directory of this name. `lines` is where the manifest is written; errors other than those
    /// that are allowed are problems.
    pub(super) fn start(
        mounts: &[PathBuf; WRITERS],
        directory: &str,
        lines: &Path,
        seed: u64,
        allowed: &'static [Errno],
    ) -> Self {
        let roots = mounts.each_ref().map(|mount| mount.join(directory));
        for name in ["w0", "w1", LOCKS] {
            let made = std::fs::create_dir_all(roots[0].join(name));
            made.expect("the load's directories can be made");
        }
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            watch: Watch::new(WRITERS + 1, allowed),
            manifest: Manifest::new(lines),
            roots,
        });
        let start = |thread: usize| {
            let (shared, random) = (shared.clone(), Random::new(seed ^ thread as u64));
            std::thread::spawn(move || {
                if thread < WRITERS {
                    Writer::new(&shared, thread, random).run();
                } else {
                    shared.read(thread, random);
                }
            })
        };
        let threads = (0..=WRITERS).map(start).collect();
        Self { shared, threads }
    }

    pub(super) fn watch(&self) -> &Watch {
        &self.shared.watch
    }

    pub(super) fn manifest(&self) -> &Manifest {
        &self.shared.manifest
    }

    /// Ends the load; a thread that hangs in a call is a problem.
    pub(super) fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let begun = Instant::now();
        while !self.threads.iter().all(JoinHandle::is_finished) {
            if begun.elapsed() > HANGS {
                let stall = self.watch().longest();
                let text = format!("{} hangs for {:?}", stall.call, stall.length);
                self.watch().problem(text);
                return;
            }
            pause(Duration::from_millis(20));
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                self.shared
                    .watch
                    .problem("a thread of the load panicked".into());
            }
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Those that hang end when their mount's process does.
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn stops(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Compares what was acknowledged, on either mount, while the load runs.
    fn read(&self, thread: usize, mut random: Random) {
        while !self.stops() {
            std::thread::sleep(THINK);
            let count = self.manifest.len() as u64;
            if count == 0 {
                continue;
            }
            let (number, root) = (
                random.below(count) as usize,
                &self.roots[random.below(2) as usize],
            );
            let checked = self.watch.time(thread, "read", || {
                Ok(self.manifest.check_at_rest(number, root))
            });
            if let Ok(Some(Err(text))) = checked {
                self.watch.problem(format!("during the fault: {text}"));
                std::thread::sleep(AFTER_ERROR);
            }
        }
    }
}

struct Writer<'a> {
    shared: &'a Shared,
    thread: usize,
    random: Random,
    /// Its files that can be changed further, by their number in the manifest.
    files: Vec<usize>,
    made: usize,
}

impl<'a> Writer<'a> {
    fn new(shared: &'a Shared, thread: usize, random: Random) -> Self {
        Self {
            shared,
            thread,
            random,
            files: Vec::new(),
            made: 0,
        }
    }

    fn run(&mut self) {
        while !self.shared.stops() {
            let new = self.files.is_empty() || (self.made < MAX_FILES && self.random.below(4) > 0);
            let (number, step, result) = if new { self.make() } else { self.change() };
            self.shared
                .manifest
                .end(number, step.clone(), result.is_ok());
            let pause = match result {
                Ok(()) => THINK,
                Err(error) => {
                    let path = self.shared.manifest.entry(number).path;
                    let what = format!("{} of {}", named(&step), path.display());
                    self.shared.watch.failed(&what, &error);
                    self.files.retain(|file| *file != number);
                    AFTER_ERROR
                }
            };
            std::thread::sleep(pause);
        }
    }

    fn time<T>(&self, name: &'static str, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.shared.watch.time(self.thread, name, call)
    }

    /// Small ones mostly, some of several chunks.
    fn length(&mut self) -> u64 {
        let longest = self.random.of(&[
            2_000, 5_000, 5_000, 16_384, 16_384, 16_384, 70_000, 200_000, 200_000, 3_000_000,
        ]);
        self.random.between(1, longest)
    }

    fn write(&mut self, file: &File, mut offset: u64, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let piece = (self.random.between(1, 262_144) as usize).min(data.len());
            self.time("write", || file.write_all_at(&data[..piece], offset))?;
            offset += piece as u64;
            data = &data[piece..];
        }
        self.time("fsync", || file.sync_all())
    }

    fn make(&mut self) -> (usize, Step, io::Result<()>) {
        let path = PathBuf::from(format!("w{}/f{}", self.thread, self.made));
        self.made += 1;
        let (len, seed) = (self.length(), self.random.number());
        let number = self.shared.manifest.add(path.clone());
        let path = self.shared.roots[self.thread].join(path);
        let created = self.time("create", || File::create_new(&path));
        let result = created.and_then(|file| self.write(&file, 0, &bytes(seed, len)));
        if result.is_ok() {
            self.files.push(number);
        }
        let offset = 0;
        (number, Step::Write { offset, len, seed }, result)
    }

    /// One more step of one of its files, under the writer's lock.
    fn change(&mut self) -> (usize, Step, io::Result<()>) {
        let at = self.random.below(self.files.len() as u64) as usize;
        let number = self.files[at];
        let entry = self.shared.manifest.entry(number);
        let step = self.next_step(&entry.path, &entry.steps);
        if matches!(step, Step::Unlink) || entry.steps.len() + 1 >= MAX_STEPS {
            self.files.swap_remove(at);
        }
        self.shared.manifest.begin(number);
        let root = &self.shared.roots[self.thread];
        let (path, lock) = (root.join(&entry.path), root.join(LOCKS));
        let lock = lock.join(format!("w{}", self.thread));
        let locked = self.time("lock", || {
            let file = File::options()
                .write(true)
                .create(true)
                .truncate(false)
                .open(&lock)?;
            file.lock()?;
            Ok(file)
        });
        let result = locked.and_then(|_lock| self.take(&path, &step));
        (number, step, result)
    }

    fn next_step(&mut self, path: &Path, steps: &[Step]) -> Step {
        let size = super::content::content(steps).len() as u64;
        match self.random.below(10) {
            0..3 => Step::Write {
                offset: self.random.below(size + 1),
                len: self.length(),
                seed: self.random.number(),
            },
            3..6 => Step::Write {
                offset: size,
                len: self.length(),
                seed: self.random.number(),
            },
            6 => Step::Resize {
                len: self.random.below(size + 10_000),
            },
            7..9 => Step::Rename {
                to: path.with_extension(format!("r{}", steps.len())),
            },
            _ => Step::Unlink,
        }
    }

    fn take(&mut self, path: &Path, step: &Step) -> io::Result<()> {
        match step {
            Step::Write { offset, len, seed } => {
                let data = bytes(*seed, *len);
                let size = self.time("stat", || path.metadata())?.len();
                if *offset < size || self.random.below(2) == 0 {
                    let file = self.time("open", || File::options().write(true).open(path))?;
                    return self.write(&file, *offset, &data);
                }
                let mut file = self.time("open", || File::options().append(true).open(path))?;
                self.time("append", || file.write_all(&data))?;
                self.time("fsync", || file.sync_all())
            }
            Step::Resize { len } => {
                let file = self.time("open", || File::options().write(true).open(path))?;
                self.time("truncate", || file.set_len(*len))?;
                self.time("fsync", || file.sync_all())
            }
            Step::Rename { to } => {
                let to = self.shared.roots[self.thread].join(to);
                self.time("rename", || std::fs::rename(path, to))
            }
            Step::Unlink => self.time("unlink", || std::fs::remove_file(path)),
        }
    }
}

fn named(step: &Step) -> &'static str {
    match step {
        Step::Write { .. } => "write",
        Step::Resize { .. } => "truncate",
        Step::Rename { .. } => "rename",
        Step::Unlink => "unlink",
    }
}
