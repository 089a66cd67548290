//! How a worker that goes to sleep in `poll` misses no work, and who gives it work writes its eventfd only when needed.
//!
//! The sleeper sets a flag, then looks for work once more; the giver gives work, then looks at the flag. A sequentially
//! consistent fence stands between the two steps on both sides, so at least one of them sees what the other did.

use crate::primitive::{AtomicBool, Ordering, fence};

/// The flag of one sleeper.
#[derive(Debug)]
pub struct Wake {
    sleeping: AtomicBool,
}

impl Default for Wake {
    fn default() -> Self {
        Self { sleeping: AtomicBool::new(false) }
    }
}

impl Wake {
    /// The flag of a worker that is awake.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Called by the sleeper before it blocks: announces that it sleeps, then asks whether there is still nothing to do.
    /// Where this is `true` it may block; work given from now on is followed by a write to its eventfd. It must call
    /// [`Wake::awake`] when it comes back.
    #[must_use]
    pub fn prepare_sleep(&self, still_nothing: impl FnOnce() -> bool) -> bool {
        self.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let sleeps = still_nothing();
        if !sleeps {
            self.awake();
        }
        sleeps
    }

    /// Called by the sleeper when it no longer sleeps.
    pub fn awake(&self) {
        self.sleeping.store(false, Ordering::Relaxed);
    }

    /// Called by a giver after it gave work: whether it must write the sleeper's eventfd. Of several givers one is told
    /// to. Cheap while the sleeper is awake: a fence and a load.
    #[must_use]
    pub fn needs_wake(&self) -> bool {
        fence(Ordering::SeqCst);
        self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::Relaxed)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn only_a_sleeper_is_woken_and_only_once() {
        let wake = Wake::new();
        assert!(!wake.needs_wake());
        assert!(wake.prepare_sleep(|| true));
        assert!(wake.needs_wake());
        assert!(!wake.needs_wake(), "a second giver finds it woken");
        wake.awake();
        assert!(!wake.needs_wake());
    }

    #[test]
    fn work_that_came_meanwhile_keeps_it_awake() {
        let wake = Wake::new();
        assert!(!wake.prepare_sleep(|| false));
        assert!(!wake.needs_wake());
    }
}
