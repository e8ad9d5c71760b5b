//! Locks, as the kernel asks for them.

use super::*;
use lumeofs_meta::locks::{Lock, LockKind, LockOwner, LockSpace};
use rustix::fs::{FlockOperation, flock};
use std::os::fd::AsRawFd as _;
use std::os::unix::thread::JoinHandleExt as _;

/// `fcntl(2)` with a lock of an open file description from byte `first`, `len` bytes long (0: to the end). What is in the
/// structure afterwards.
#[allow(unsafe_code, reason = "rustix knows locks of whole files only")]
fn range(file: &File, command: i32, kind: i32, first: i64, len: i64) -> io::Result<libc::flock> {
    // SAFETY: all zero is a value of a structure of numbers.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as i16;
    (lock.l_start, lock.l_len) = (first, len);
    // SAFETY: the structure is the one that these commands take, and the descriptor is open.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(lock),
    }
}

fn open(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(true)
        .open(path)
        .unwrap()
}

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

/// A lock that another mount has.
fn elsewhere(space: LockSpace, first: u64, last: u64) -> Lock {
    Lock {
        owner: LockOwner { space, id: 1 },
        pid: 0,
        kind: LockKind::Exclusive,
        first,
        last,
    }
}

#[test]
fn ranges_exclude_each_other_and_not_what_flock_locks() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let (a, b) = (open(&fixture.path("file")), open(&fixture.path("file")));
    let (set, get, all) = (
        libc::F_OFD_SETLK,
        libc::F_OFD_GETLK,
        FlockOperation::NonBlockingLockExclusive,
    );
    range(&a, set, libc::F_WRLCK, 10, 10).unwrap();
    range(&b, set, libc::F_WRLCK, 20, 0).unwrap();
    assert_eq!(
        errno(range(&b, set, libc::F_RDLCK, 19, 1)),
        Some(libc::EAGAIN)
    );
    let held = range(&b, get, libc::F_RDLCK, 0, 0).unwrap();
    assert_eq!(
        (i32::from(held.l_type), held.l_start, held.l_len),
        (libc::F_WRLCK, 10, 10)
    );
    flock(&a, all).unwrap();
    assert_eq!(flock(&b, all), Err(rustix::io::Errno::WOULDBLOCK));
    flock(&a, FlockOperation::Unlock).unwrap();
    flock(&b, all).unwrap();
    range(&a, set, libc::F_UNLCK, 0, 0).unwrap();
    let held = range(&b, get, libc::F_WRLCK, 0, 20).unwrap();
    assert_eq!(i32::from(held.l_type), libc::F_UNLCK);
    assert_eq!(fixture.memory.lock_count(), 2);
    // A close of another open file of this process ends none of them; that of the last copy of its own does.
    drop(a);
    let copy = b.try_clone().unwrap();
    drop(b);
    assert_eq!(fixture.memory.lock_count(), 2);
    drop(copy);
    wait_for("the release", || fixture.memory.lock_count() == 0);
}

#[test]
fn locks_of_a_process_end_with_its_first_close_of_the_file_or_its_death() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let (file, other) = (open(&fixture.path("file")), open(&fixture.path("file")));
    range(&file, libc::F_SETLK, libc::F_WRLCK, 5, 1).unwrap();
    assert_eq!(fixture.memory.lock_count(), 1);
    // Also one that is open for reading only.
    drop(File::open(fixture.path("file")).unwrap());
    assert_eq!(fixture.memory.lock_count(), 0);
    range(&other, libc::F_OFD_SETLK, libc::F_WRLCK, 5, 1).unwrap();
    assert_eq!(
        errno(range(&file, libc::F_SETLK, libc::F_WRLCK, 0, 0)),
        Some(libc::EAGAIN)
    );
    drop(other);
    let mut child = Command::new("flock")
        .arg(fixture.path("file"))
        .args(["sleep", "60"])
        .process_group(0)
        .spawn()
        .unwrap();
    wait_for("the child's lock", || fixture.memory.lock_count() == 1);
    // The command that it runs has the file open too.
    let group = format!("-{}", child.id());
    let killed = Command::new("kill").args(["-KILL", "--", &group]).status();
    assert!(killed.unwrap().success());
    child.wait().unwrap();
    wait_for("the release", || fixture.memory.lock_count() == 0);
}

#[test]
fn a_wait_for_a_lock_ends_when_it_is_granted_or_a_signal_is_caught() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let file = open(&fixture.path("file"));
    let ino = InodeId(file.metadata().unwrap().ino());
    fixture
        .memory
        .lock_elsewhere(ino, elsewhere(LockSpace::Range, 0, 9));
    let other = open(&fixture.path("file"));
    range(&other, libc::F_OFD_SETLK, libc::F_WRLCK, 10, 10).unwrap();
    let waits = |first| {
        let file = open(&fixture.path("file"));
        std::thread::spawn(move || {
            errno(range(&file, libc::F_OFD_SETLKW, libc::F_WRLCK, first, 10))
        })
    };
    let granted = waits(10);
    wait_for("the wait", || fixture.memory.lock_waiting() == 1);
    range(&other, libc::F_OFD_SETLK, libc::F_UNLCK, 0, 0).unwrap();
    assert_eq!(granted.join().unwrap(), None);
    catch_usr1();
    let interrupted = waits(0);
    wait_for("the wait", || fixture.memory.lock_waiting() == 1);
    signal_thread(&interrupted);
    assert_eq!(interrupted.join().unwrap(), Some(libc::EINTR));
    // As many as wait leave the mount free for others.
    let waiters: Vec<_> = (0..40).map(|_| waits(0)).collect();
    wait_for("all to wait", || fixture.memory.lock_waiting() == 40);
    fs::write(fixture.path("free"), b"x").unwrap();
    for waiter in waiters {
        signal_thread(&waiter);
        assert_eq!(waiter.join().unwrap(), Some(libc::EINTR));
    }
}

#[allow(unsafe_code, reason = "handlers of signals have no safe interface")]
fn catch_usr1() {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: all zero is a value of this structure, and the handler touches nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        assert_eq!(
            libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()),
            0
        );
    }
}

#[allow(unsafe_code, reason = "pthread_kill has no safe interface")]
fn signal_thread<T>(thread: &std::thread::JoinHandle<T>) {
    // SAFETY: the thread was not joined yet.
    assert_eq!(
        unsafe { libc::pthread_kill(thread.as_pthread_t(), libc::SIGUSR1) },
        0
    );
}
