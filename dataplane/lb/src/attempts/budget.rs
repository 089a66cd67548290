//! How many SYNs may be sent again: so that a flood of them, or endpoints that are all dead, are not answered by more.

use crate::time::Now;

/// Of so many opens one may be retried.
const OPENS_A_RETRY: u32 = 5;
/// Retries of all workers beyond that.
const BURST: u32 = 1000;
/// The last ten seconds or so, in parts of 2^30 ns.
const PARTS: usize = 10;
const PART_SHIFT: u32 = 30;

/// A worker's opens and retries of the last ten seconds.
#[derive(Debug)]
pub(crate) struct Budget {
    opens: [u32; PARTS],
    retries: [u32; PARTS],
    /// Sums of both.
    opened: u32,
    retried: u32,
    /// The part that is counted in.
    part: u64,
    burst: u32,
}

impl Budget {
    /// Of one of so many workers, who share the burst.
    pub(crate) fn new(workers: usize) -> Self {
        let burst = BURST / workers.max(1) as u32;
        Self { opens: [0; PARTS], retries: [0; PARTS], opened: 0, retried: 0, part: 0, burst }
    }

    /// A connection opens.
    #[inline]
    pub(crate) fn open(&mut self, now: Now) {
        let place = self.advance(now);
        self.opens[place] += 1;
        self.opened += 1;
    }

    /// Takes one retry, if there is one.
    pub(crate) fn take(&mut self, now: Now) -> bool {
        let place = self.advance(now);
        let allowed = self.retried < self.burst + self.opened / OPENS_A_RETRY;
        if allowed {
            self.retries[place] += 1;
            self.retried += 1;
        }
        allowed
    }

    #[inline]
    fn advance(&mut self, now: Now) -> usize {
        let part = now.0 >> PART_SHIFT;
        if part != self.part {
            self.turn(part);
        }
        (part % PARTS as u64) as usize
    }

    #[cold]
    fn turn(&mut self, part: u64) {
        for gone in (self.part + 1..=part).rev().take(PARTS) {
            let place = (gone % PARTS as u64) as usize;
            self.opened -= core::mem::take(&mut self.opens[place]);
            self.retried -= core::mem::take(&mut self.retries[place]);
        }
        self.part = part;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PART_NS: u64 = 1 << PART_SHIFT;

    #[test]
    fn one_of_five_opens_of_ten_seconds_and_a_burst_may_be_retried() {
        let mut budget = Budget::new(1);
        let start = Now(77 * PART_NS);
        assert_eq!((0..5000).filter(|_| budget.take(start)).count(), 1000);
        (0..50).for_each(|_| budget.open(start));
        assert_eq!((0..5000).filter(|_| budget.take(start)).count(), 10);
        let later = Now(start.0 + 9 * PART_NS);
        assert!(!budget.take(later), "within ten seconds nothing comes back");
        let after = Now(start.0 + 10 * PART_NS);
        assert_eq!((0..5000).filter(|_| budget.take(after)).count(), 1000, "the opens are forgotten too");
    }

    #[test]
    fn over_a_long_time_a_fifth_is_retried_however_many_fail() {
        let mut budget = Budget::new(4);
        let mut retried = 0;
        for n in 0..1_000_000u64 {
            let now = Now(PART_NS + n * 1_000_000);
            budget.open(now);
            retried += u32::from(budget.take(now));
        }
        // A burst of 250 in each window of ten seconds at most.
        let windows = 1000 / 10 + 1;
        assert!((200_000..=200_000 + windows * 250).contains(&retried), "{retried}");
    }

    #[test]
    fn a_long_silence_forgets_all() {
        let mut budget = Budget::new(1);
        (0..100).for_each(|_| budget.open(Now(PART_NS)));
        assert!(budget.take(Now(PART_NS)));
        assert!(budget.take(Now(1 << 62)));
        assert_eq!((budget.opened, budget.retried), (0, 1));
    }
}
