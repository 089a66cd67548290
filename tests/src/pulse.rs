//! How long a machine let nobody run: who is late by that much is not late by what is tested.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// How often it beats.
const BEAT: Duration = Duration::from_millis(1);
/// As these system calls name the thread that calls them.
const THIS_THREAD: Pid = Pid::from_raw(0);

/// A thread a CPU that does nothing but to look at the clock: a machine may let one CPU stand alone.
pub struct Pulse {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Duration>>,
}

impl Pulse {
    /// Begins to look.
    ///
    /// # Panics
    /// If the kernel does not tell which CPUs there are.
    #[must_use]
    pub fn begin() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let here = sched_getaffinity(THIS_THREAD).expect("the CPUs of this thread");
        let cpus = (0..CpuSet::count()).filter(|cpu| here.is_set(*cpu).unwrap_or(false));
        let threads = cpus.map(|cpu| {
            let ends = Arc::clone(&stop);
            thread::spawn(move || beat(cpu, &ends))
        });
        Self { threads: threads.collect(), stop }
    }

    /// The longest that one of them did not run, since it began.
    ///
    /// # Panics
    /// If a thread did.
    #[must_use]
    pub fn longest(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        let longest = self.threads.into_iter().map(|thread| thread.join().expect("a thread that looks at the clock"));
        longest.max().unwrap_or_default()
    }
}

/// Looks at the clock of a CPU until it is to end: the longest that it did not.
fn beat(cpu: usize, ends: &AtomicBool) -> Duration {
    let mut set = CpuSet::new();
    // One that is taken away meanwhile is none to look at.
    let _ = set.set(cpu).and_then(|()| sched_setaffinity(THIS_THREAD, &set));
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    while !ends.load(Ordering::Relaxed) {
        thread::park_timeout(BEAT);
        let now = Instant::now();
        (last, longest) = (now, longest.max(now - last));
    }
    longest
}
