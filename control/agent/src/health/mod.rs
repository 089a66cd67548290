//! Health checks: TCP connects and HTTP GETs to endpoints, through the kernel's own stack.
//!
//! The probes run on the tokio runtime that [`Health::start`] was called in, and end with the [`Health`]. An endpoint
//! counts as healthy until `down` results in a row said otherwise, so that serving starts at once.

mod check;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tracing::{info, warn};
use translate::Probe;

/// Most probes that run at one time.
const CONCURRENCY: usize = 256;

/// A new probe starts at a random moment within this time (or its interval), so that many do not start as one.
const START_WITHIN: Duration = Duration::from_millis(500);

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeState {
    /// Whether the endpoint is taken for healthy, thresholds applied.
    pub healthy: bool,
    /// The last result in a few words: `200`, `connection refused`, `timed out after 1s`.
    pub last: String,
    /// When that was.
    pub at: SystemTime,
}

/// A probe that runs.
#[derive(Debug)]
struct Running {
    state: Option<ProbeState>,
    /// Results in a row that speak against what the state says.
    against: u32,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug)]
struct Shared {
    running: Mutex<BTreeMap<Probe, Running>>,
    changes: watch::Sender<u64>,
    slots: Semaphore,
}

impl Shared {
    fn running(&self) -> MutexGuard<'_, BTreeMap<Probe, Running>> {
        // Nothing that runs under the lock can leave it half-changed.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a result in: `Ok` in a few words, `Err` with what failed.
    fn record(&self, probe: &Probe, result: Result<String, String>) {
        let mut all = self.running();
        // Not there: it was taken away while it ran.
        let Some(running) = all.get_mut(probe) else { return };
        let was = running.state.as_ref().is_none_or(|state| state.healthy);
        let (succeeded, last) = match result {
            Ok(last) => (true, last),
            Err(last) => (false, last),
        };
        running.against = if succeeded == was { 0 } else { running.against + 1 };
        let threshold = if was { probe.check.down } else { probe.check.up };
        let turned = running.against >= threshold.max(1);
        let healthy = was != turned;
        if turned {
            running.against = 0;
            match healthy {
                true => info!(endpoint = %probe.endpoint, result = last, "endpoint is healthy again"),
                false => warn!(endpoint = %probe.endpoint, result = last, "endpoint is unhealthy"),
            }
        }
        running.state = Some(ProbeState { healthy, last, at: SystemTime::now() });
        drop(all);
        if turned {
            self.changes.send_modify(|count| *count += 1);
        }
    }
}

/// The running health checks.
#[derive(Debug)]
pub struct Health {
    shared: Arc<Shared>,
    runtime: Handle,
}

impl Health {
    /// Nothing is probed yet. The receiver's number changes when an endpoint turns healthy or unhealthy.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn start() -> (Arc<Self>, watch::Receiver<u64>) {
        let (changes, receiver) = watch::channel(0);
        let shared = Shared { running: Mutex::default(), changes, slots: Semaphore::new(CONCURRENCY) };
        (Arc::new(Self { shared: Arc::new(shared), runtime: Handle::current() }), receiver)
    }

    /// What is to be probed from now on: new ones start at once, those that stay keep their state. Any thread.
    pub fn set(&self, probes: Vec<Probe>) {
        let mut running = self.shared.running();
        let mut former = std::mem::take(&mut *running);
        for probe in probes {
            let kept = former.remove(&probe);
            running.entry(probe).or_insert_with_key(|probe| {
                kept.unwrap_or_else(|| {
                    let task = self.runtime.spawn(keep_probing(Arc::clone(&self.shared), probe.clone()));
                    Running { state: None, against: 0, task: task.abort_handle() }
                })
            });
        }
    }

    /// What was found, for probes that have a result.
    #[must_use]
    pub fn state(&self) -> BTreeMap<Probe, ProbeState> {
        let running = self.shared.running();
        running.iter().filter_map(|(probe, running)| Some((probe.clone(), running.state.clone()?))).collect()
    }
}

impl Drop for Health {
    fn drop(&mut self) {
        self.shared.running().clear();
    }
}

async fn keep_probing(shared: Arc<Shared>, probe: Probe) {
    let interval = probe.check.interval.max(Duration::from_millis(10));
    // A fresh `RandomState` is random for every call; a jitter needs no more than that.
    let part = (RandomState::new().hash_one(probe.endpoint) % 1000) as u32;
    let mut ticks = interval_at(Instant::now() + START_WITHIN.min(interval) * part / 1000, interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // The semaphore is never closed.
        let Ok(_slot) = shared.slots.acquire().await else { return };
        let result = check::run(&probe).await;
        shared.record(&probe, result);
    }
}

#[cfg(test)]
mod tests;
