//! How long a machine let nobody run: who is late by that much is not late by what is tested.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How often it beats.
const BEAT: Duration = Duration::from_millis(1);

/// A thread that does nothing but to look at the clock.
pub struct Pulse {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Duration>,
}

impl Pulse {
    /// Begins to look.
    #[must_use]
    pub fn begin() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
            while !ends.load(Ordering::Relaxed) {
                thread::park_timeout(BEAT);
                let now = Instant::now();
                (last, longest) = (now, longest.max(now - last));
            }
            longest
        });
        Self { stop, thread }
    }

    /// The longest that it did not run, since it began.
    ///
    /// # Panics
    /// If its thread did.
    #[must_use]
    pub fn longest(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a thread that looks at the clock")
    }
}
