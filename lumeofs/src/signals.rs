//! SIGINT and SIGTERM as an event: the process stops in order instead of dying.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether the process was asked to stop.
#[derive(Clone, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Whether a signal came.
    pub(crate) fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Starts a thread that waits for SIGINT, SIGTERM or SIGHUP, then calls `then` once.
pub(crate) fn on_stop(then: impl FnOnce() + Send + 'static) -> anyhow::Result<Stop> {
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
            runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => {}
                }
            });
            flag.0.store(true, Ordering::Relaxed);
            then();
        })?;
    Ok(stop)
}
