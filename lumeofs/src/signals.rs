//! SIGINT and SIGTERM as an event: the process stops in order instead of dying. Whoever does not want
//! to wait for that sends a second one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A further signal within this time belongs to the first: a terminal's Ctrl-C and a supervisor's
/// SIGTERM may come together.
const SAME_REQUEST: Duration = Duration::from_millis(500);

/// Whether the process was asked to stop.
#[derive(Clone, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Whether a signal came.
    pub(crate) fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Starts a thread that waits for SIGINT, SIGTERM or SIGHUP, then calls `then` once. A later second
/// signal ends the process at once, as a kill would, whatever it still waits for: `then` too may wait, as an unmount
/// does for pages to be written.
pub(crate) fn on_stop(then: impl FnOnce() + Send + 'static) -> anyhow::Result<Stop> {
    let (asked_to_stop, stops) = std::sync::mpsc::channel::<()>();
    std::thread::Builder::new()
        .name("stop".into())
        .spawn(move || {
            if stops.recv().is_ok() {
                then();
            }
        })?;
    use tokio::signal::unix::{SignalKind, signal};
    let stop = Stop::default();
    let flag = stop.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (mut interrupt, mut terminate, mut hangup) = {
        let _guard = runtime.enter();
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        )
    };
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            let mut wait = || {
                runtime.block_on(async {
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                        _ = hangup.recv() => {}
                    }
                });
            };
            wait();
            let asked = Instant::now();
            flag.0.store(true, Ordering::Relaxed);
            // Fails only if `then` panicked, which ends the process.
            let _ = asked_to_stop.send(());
            loop {
                wait();
                if asked.elapsed() > SAME_REQUEST {
                    tracing::warn!("a second signal: ending at once");
                    std::process::exit(1);
                }
            }
        })?;
    Ok(stop)
}
