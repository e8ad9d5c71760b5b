//! Child processes that end with the test, also when it fails.

use std::ops::{Deref, DerefMut};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

/// A child process that is killed when this is dropped.
#[derive(Debug)]
pub struct Running(Option<Child>);

impl Running {
    /// Starts a command; panics if it cannot be started.
    pub fn start(command: &mut Command) -> Self {
        match command.spawn() {
            Ok(child) => Self(Some(child)),
            Err(error) => panic!("{command:?}: {error}"),
        }
    }

    /// Waits for the end; what it wrote to its pipes.
    pub fn output(mut self) -> Output {
        let child = self.0.take().expect("only this takes it");
        child.wait_with_output().expect("a child can be waited for")
    }
}

impl Deref for Running {
    type Target = Child;

    fn deref(&self) -> &Child {
        self.0.as_ref().expect("only `output` takes it")
    }
}

impl DerefMut for Running {
    fn deref_mut(&mut self) -> &mut Child {
        self.0.as_mut().expect("only `output` takes it")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(child) = &mut self.0 else {
            return;
        };
        // It may have ended already.
        let _ = child.kill();
        // Not for ever: who waits in a broken mount may not be killable.
        let begun = Instant::now();
        while matches!(child.try_wait(), Ok(None)) && begun.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
