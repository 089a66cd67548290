//! How many SYNs to one address the steering programs let pass (`limits.synsPerVip`).
//!
//! A ring that overflows loses packets of connections and SYNs of a flood alike, before any worker can tell them apart.
//! So SYNs beyond a rate are dropped before they reach a ring: always, where a rate is configured; else from when a worker
//! had to drop openings because it could not keep up, until the programs have dropped nothing for a while.

use crate::config::SynLimit;

/// SYNs a second to one address while workers cannot keep up and nobody has configured a rate: a small part of what a
/// worker can open, and far more than one that does not keep up opens anyway.
pub const UNDER_OVERLOAD: u32 = 50_000;
/// Looks without a drop after which the flood is over.
const QUIET: u32 = 10;

/// What is known of a flood.
#[derive(Clone, Copy, Debug, Default)]
pub struct FloodGuard {
    /// Openings that workers shed, up to the last look.
    shed: u64,
    /// SYNs that the programs dropped, up to the last look.
    dropped: u64,
    /// Looks left for which the limit stays though nothing is dropped; 0: it is off.
    armed: u32,
    /// What the programs were told last.
    told: Option<u32>,
}

impl FloodGuard {
    /// Looks at how many openings workers have shed for want of time and how many SYNs the programs dropped, ever; says what
    /// to tell these, if that is new. Called once a second or so.
    pub fn look(&mut self, limit: SynLimit, shed: u64, dropped: u64) -> Option<u32> {
        let busy = shed > self.shed && self.told.is_some() || self.armed > 0 && dropped > self.dropped;
        (self.shed, self.dropped) = (shed, dropped);
        self.armed = if busy { QUIET } else { self.armed.saturating_sub(1) };
        let rate = match limit {
            SynLimit::Off => 0,
            SynLimit::PerSecond(rate) => rate,
            SynLimit::Auto if self.armed > 0 => UNDER_OVERLOAD,
            SynLimit::Auto => 0,
        };
        (self.told.replace(rate) != Some(rate)).then_some(rate)
    }

    /// What was said could not be told; it will be said again.
    pub fn forget(&mut self) {
        self.told = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_that_is_configured_is_told_once_and_again_when_it_changes() {
        let mut guard = FloodGuard::default();
        assert_eq!(guard.look(SynLimit::PerSecond(7), 0, 0), Some(7));
        assert_eq!(guard.look(SynLimit::PerSecond(7), 5, 5), None);
        assert_eq!(guard.look(SynLimit::Off, 9, 9), Some(0), "a predecessor's or an earlier one ends");
        guard.forget();
        assert_eq!(guard.look(SynLimit::Off, 9, 9), Some(0));
    }

    #[test]
    fn overload_arms_it_and_a_while_without_drops_ends_it() {
        let mut guard = FloodGuard::default();
        assert_eq!(guard.look(SynLimit::Auto, 100, 0), Some(0), "shed before anybody looked");
        assert_eq!(guard.look(SynLimit::Auto, 100, 0), None);
        assert_eq!(guard.look(SynLimit::Auto, 101, 0), Some(UNDER_OVERLOAD));
        for second in 1..100 {
            assert_eq!(guard.look(SynLimit::Auto, 101, second), None, "the flood goes on, and workers keep up");
        }
        let quiet: Vec<_> = (0..QUIET).filter_map(|_| guard.look(SynLimit::Auto, 101, 99)).collect();
        assert_eq!(quiet, [0]);
        assert_eq!(guard.look(SynLimit::Auto, 101, 100), None, "what others count does not arm it");
    }
}
