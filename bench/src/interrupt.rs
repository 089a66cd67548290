//! Ctrl-C and SIGTERM: looked at between steps, so that namespaces and processes are taken down again.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on they do nothing but be noticed by [`check`]; for cases that make what must be taken down. They are handled, not blocked: what is started would inherit
/// that it cannot be asked to end.
///
/// # Panics
/// If the system has no means for that.
pub fn catch() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
    let guard = runtime.enter();
    let signals = [SignalKind::interrupt(), SignalKind::terminate()].map(|kind| signal(kind).expect("a handler"));
    drop(guard);
    let [mut interrupt, mut terminate] = signals;
    std::thread::spawn(move || {
        runtime.block_on(async {
            let told = tokio::task::LocalSet::new();
            told.spawn_local(async move {
                interrupt.recv().await;
                INTERRUPTED.store(true, Ordering::Relaxed);
            });
            told.spawn_local(async move {
                terminate.recv().await;
                INTERRUPTED.store(true, Ordering::Relaxed);
            });
            told.await;
        });
    });
}

/// Unwinds if there was one, so that all that is up is dropped.
pub fn check() {
    if INTERRUPTED.load(Ordering::Relaxed) {
        eprintln!("interrupted, taking everything down");
        std::panic::resume_unwind(Box::new(()));
    }
}
