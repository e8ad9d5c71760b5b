//! Whether a caller that waits in the kernel is to die, or is dying.
//!
//! The kernel has a task wait for the answer to a request that was read, whatever signal it gets. So a waiting operation looks
//! at its caller itself and ends with EINTR when nobody will see the answer. Only a fatal signal counts: calls on regular files never return
//! EINTR to a program that lives, and a runtime's timer signals must not fail its I/O. Nor does anybody see the
//! answer to the close(2) of a process that is ending already, and no signal would reach that one any more.

use crate::task::read;

/// Signals whose default action is to do nothing or to stop or go on, as bits of a mask.
const HARMLESS_BY_DEFAULT: u64 = bit(libc::SIGCHLD)
    | bit(libc::SIGCONT)
    | bit(libc::SIGURG)
    | bit(libc::SIGWINCH)
    | bit(libc::SIGSTOP)
    | bit(libc::SIGTSTP)
    | bit(libc::SIGTTIN)
    | bit(libc::SIGTTOU);

/// The flag of a thread that has begun to end, in `/proc/TID/stat` (PF_EXITING).
const EXITING: u32 = 4;

/// Whether the thread `tid` is ending, or a fatal signal is pending for it: one that is not blocked, caught or
/// ignored and that would end it. 0, which the kernel sends where nobody waits, and a thread that is gone or out
/// of sight do not count.
pub(crate) fn is_dying(tid: u32) -> bool {
    if tid == 0 {
        return false;
    }
    let Some(status) = read(tid, "status") else {
        return false;
    };
    if Masks::parse(&status).is_some_and(Masks::fatal) {
        return true;
    }
    // Only a thread that has given up its memory can be ending; there are few of those, so this costs little.
    !status.contains("\nVmSize:") && read(tid, "stat").is_some_and(|stat| is_exiting(&stat))
}

/// Whether the flags in the text of `/proc/TID/stat` (proc(5)) say that the thread is ending.
fn is_exiting(stat: &str) -> bool {
    // The name, in parentheses, may hold anything.
    let fields = stat.rsplit_once(')').map(|(_, fields)| fields);
    let flags = fields.and_then(|fields| fields.split_ascii_whitespace().nth(6)?.parse().ok());
    flags.is_some_and(|flags: u32| flags & EXITING != 0)
}

/// The bit of a signal in the masks of `/proc/TID/status`.
const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// The signal masks of a thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Masks {
    /// Pending for the thread or for its process.
    pending: u64,
    blocked: u64,
    ignored: u64,
    caught: u64,
}

impl Masks {
    /// Reads the lines of `/proc/TID/status`; `None` if one is missing.
    fn parse(status: &str) -> Option<Self> {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            u64::from_str_radix(line.trim(), 16).ok()
        };
        Some(Self {
            pending: field("SigPnd:")? | field("ShdPnd:")?,
            blocked: field("SigBlk:")?,
            ignored: field("SigIgn:")?,
            caught: field("SigCgt:")?,
        })
    }

    /// Whether one of the pending signals will end the thread.
    fn fatal(self) -> bool {
        let harmless = self.blocked | self.ignored | self.caught | HARMLESS_BY_DEFAULT;
        self.pending & (bit(libc::SIGKILL) | !harmless) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;

    fn masks(pending: &[i32], blocked: &[i32], ignored: &[i32], caught: &[i32]) -> Masks {
        let mask = |signals: &[i32]| signals.iter().fold(0, |mask, &signal| mask | bit(signal));
        Masks {
            pending: mask(pending),
            blocked: mask(blocked),
            ignored: mask(ignored),
            caught: mask(caught),
        }
    }

    #[test]
    fn only_a_signal_that_ends_the_caller_is_fatal() {
        assert!(masks(&[libc::SIGKILL], &[], &[], &[]).fatal());
        assert!(masks(&[libc::SIGTERM], &[], &[], &[]).fatal());
        assert!(masks(&[libc::SIGQUIT], &[], &[], &[]).fatal());
        assert!(!masks(&[], &[], &[], &[]).fatal());
        assert!(!masks(&[libc::SIGTERM], &[libc::SIGTERM], &[], &[]).fatal());
        assert!(!masks(&[libc::SIGTERM], &[], &[libc::SIGTERM], &[]).fatal());
        assert!(!masks(&[libc::SIGALRM], &[], &[], &[libc::SIGALRM]).fatal());
        for signal in [
            libc::SIGCHLD,
            libc::SIGWINCH,
            libc::SIGURG,
            libc::SIGSTOP,
            libc::SIGTSTP,
        ] {
            assert!(!masks(&[signal], &[], &[], &[]).fatal(), "{signal}");
        }
    }

    #[test]
    fn status_of_this_thread_can_be_read() {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        assert!(Masks::parse(&status).is_some());
        assert!(Masks::parse("Name:\tx\n").is_none());
        assert!(!is_dying(0));
        assert!(!is_dying(u32::MAX));
        assert!(!is_dying(std::process::id()));
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        assert!(!is_exiting(&stat));
    }

    #[test]
    fn a_process_that_has_ended_is_dying_whatever_its_name() {
        let mut child = Command::new("true").spawn().unwrap();
        // It stays as a zombie until somebody asks for its status.
        wait_for(|| is_dying(child.id()));
        child.wait().unwrap();
        assert!(is_exiting("7 (a) 1 2 3) Z 1 7 7 0 -1 4227084 0 0"));
        assert!(!is_exiting("7 (x) S 1 7 7 0 -1 4194560 0 0"));
        assert!(!is_exiting("7"));
    }

    /// A process in which SIGTERM does what `setup` says and that stopped, so that signals stay pending.
    fn stopped(setup: &str) -> Child {
        let child = Command::new("sh")
            .args(["-c", &format!("{setup} kill -STOP $$; exec sleep 60")])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        wait_for(|| {
            let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
            status.lines().any(|line| line.starts_with("State:\tT"))
        });
        child
    }

    fn wait_for(condition: impl Fn() -> bool) {
        for _ in 0..6000 {
            if condition() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("condition did not come true in 60 s");
    }

    fn signal(child: &Child, name: &str) {
        let status = Command::new("kill")
            .args([&format!("-{name}"), &child.id().to_string()])
            .status();
        assert!(status.unwrap().success());
    }

    #[test]
    fn pending_signals_of_a_stopped_process_are_judged_by_what_it_does_with_them() {
        for (setup, name, fatal) in [
            ("", "TERM", true),
            ("", "WINCH", false),
            ("trap '' TERM;", "TERM", false),
            ("trap 'echo caught' TERM;", "TERM", false),
            ("trap 'echo caught' TERM;", "USR1", true),
        ] {
            let mut child = stopped(setup);
            assert!(!is_dying(child.id()), "nothing sent yet: {setup:?}");
            signal(&child, name);
            if fatal {
                wait_for(|| is_dying(child.id()));
            } else {
                assert!(!is_dying(child.id()), "{setup:?} {name}");
            }
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
