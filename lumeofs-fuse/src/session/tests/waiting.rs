//! Calls that wait, and mounts that end meanwhile.

use super::*;

#[test]
fn a_caller_that_is_killed_does_not_wait_for_the_answer() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    for (name, number) in [
        ("KILL", libc::SIGKILL),
        ("TERM", libc::SIGTERM),
        ("INT", libc::SIGINT),
    ] {
        // Who started the tests in the background had SIGINT ignored.
        let mut child = Command::new("env")
            .args(["--default-signal=INT,TERM", "cat"])
            .arg(fixture.path("wait"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_for("the lookup", || fixture.memory.waiting() == 1);
        // What does not kill it does not end the call either.
        signal(child.id(), "WINCH");
        std::thread::sleep(Duration::from_millis(150));
        assert_eq!(fixture.memory.waiting(), 1);
        signal(child.id(), name);
        wait_for("its end", || fixture.memory.waiting() == 0);
        assert_eq!(child.wait().unwrap().signal(), Some(number));
    }
}

#[test]
fn a_mount_that_is_cut_off_ends_although_an_operation_waits() {
    let Some(mut fixture) = Fixture::new() else {
        return;
    };
    let mounted = fixture.mounted.take().unwrap();
    let mut child = Command::new("cat")
        .arg(fixture.path("wait"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the lookup", || fixture.memory.waiting() == 1);
    // It may find the mount in use, but the connection has ended then.
    let _ = Command::new("umount")
        .arg("-f")
        .arg(fixture.dir.path())
        .output()
        .unwrap();
    let begun = Instant::now();
    let handle = mounted.handle();
    mounted.wait().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(60));
    assert!(!child.wait().unwrap().success());
    handle.detach().unwrap();
}

#[test]
fn a_mount_that_loses_what_was_written_says_so_at_its_end() {
    let Some(mut fixture) = Fixture::new() else {
        return;
    };
    let mounted = fixture.mounted.take().unwrap();
    fixture.memory.lose(FsError::new(Code::Io, "7 bytes"));
    mounted.handle().unmount().unwrap();
    let error = mounted.wait().unwrap_err();
    assert!(format!("{error:#}").contains("7 bytes"), "{error:#}");
    assert_eq!(error.downcast_ref::<FsError>().unwrap().code, Code::Io);
}

fn signal(pid: u32, name: &str) {
    let status = Command::new("kill")
        .args([&format!("-{name}"), &pid.to_string()])
        .status();
    assert!(status.unwrap().success());
}

#[test]
fn with_every_thread_waiting_the_mount_still_answers_and_files_can_be_closed() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    fs::write(fixture.path("open"), b"x").unwrap();
    let file = File::open(fixture.path("open")).unwrap();
    let waiters: Vec<_> = (0..60)
        .map(|number| {
            let path = fixture.path(&format!("wait{number}"));
            std::thread::spawn(move || fs::metadata(path).unwrap_err().kind())
        })
        .collect();
    wait_for("all to wait", || fixture.memory.waiting() == 60);
    let stats = fixture.stats();
    assert!(stats.handed_over() >= 60 - 16, "{}", stats.handed_over());
    assert_eq!(fs::read(fixture.path("open")).unwrap(), b"x");
    rustix::fs::statvfs(fixture.dir.path()).unwrap();
    let released = stats.done(Op::Release);
    drop(file);
    wait_for("the release", || stats.done(Op::Release) > released);
    fixture.memory.let_go();
    for waiter in waiters {
        assert_eq!(waiter.join().unwrap(), io::ErrorKind::NotFound);
    }
    assert_eq!(stats.overloaded(), 0);
}

#[test]
fn a_mount_in_use_is_busy_but_can_be_detached() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let file = File::create(fixture.path("file")).unwrap();
    let handle = fixture.mounted.as_ref().unwrap().handle();
    assert_eq!(
        handle.unmount().unwrap_err().raw_os_error(),
        Some(libc::EBUSY)
    );
    handle.detach().unwrap();
    assert!(!fixture.path("file").exists());
    file.set_len(5).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 5);
    drop(file);
    handle.unmount().expect("what is not mounted is unmounted");
}
