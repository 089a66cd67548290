//! A token bucket: how many replies of our own may leave a worker.
//!
//! RFC 1812 section 4.3.2.8 and RFC 4443 section 2.4 (f) ask for a limit on ICMP errors and describe this one; resets
//! are limited likewise, so that a flood of strays is not answered by another.

use crate::time::Now;

/// Nanoseconds in a second.
const SECOND_NS: u64 = 1_000_000_000;

/// A token bucket; made full.
#[derive(Clone, Copy, Debug)]
pub struct Limiter {
    /// Nanoseconds in which one token comes.
    token_ns: u64,
    /// Most nanoseconds' worth of tokens that are kept.
    depth_ns: u64,
    /// When the bucket would have been empty; tokens are what came since, up to the depth.
    empty_at: u64,
}

impl Limiter {
    /// A bucket of `burst` tokens into which `per_second` come.
    ///
    /// # Panics
    /// If `per_second` is 0.
    #[must_use]
    pub const fn new(per_second: u64, burst: u64) -> Self {
        let token_ns = SECOND_NS / per_second;
        Self { token_ns, depth_ns: token_ns * burst, empty_at: 0 }
    }

    /// Takes a token, if there is one.
    #[inline]
    pub fn take(&mut self, now: Now) -> bool {
        // Time before the depth counts for nothing: the bucket was full then.
        let empty_at = self.empty_at.max(now.0.saturating_sub(self.depth_ns));
        let allowed = empty_at + self.token_ns <= now.0;
        if allowed {
            self.empty_at = empty_at + self.token_ns;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::{Limiter, SECOND_NS};
    use crate::time::Now;

    #[test]
    fn a_burst_passes_and_then_one_per_token() {
        let mut limiter = Limiter::new(1000, 100);
        let start = Now(5 * SECOND_NS);
        assert_eq!((0..500).filter(|_| limiter.take(start)).count(), 100);
        assert!(!limiter.take(Now(start.0 + 999_999)));
        assert!(limiter.take(Now(start.0 + 1_000_000)));
        assert!(!limiter.take(Now(start.0 + 1_000_001)));
    }

    #[test]
    fn the_rate_holds_over_a_long_time() {
        let mut limiter = Limiter::new(1000, 100);
        let taken = (0..10_000).filter(|i| limiter.take(Now(10 * SECOND_NS + i * 100_000))).count();
        assert_eq!(taken, 100 + 999);
    }

    #[test]
    fn silence_does_not_save_up_more_than_the_burst() {
        let mut limiter = Limiter::new(10, 3);
        assert_eq!((0..9).filter(|_| limiter.take(Now(SECOND_NS))).count(), 3);
        assert_eq!((0..9).filter(|_| limiter.take(Now(3600 * SECOND_NS))).count(), 3);
    }
}
