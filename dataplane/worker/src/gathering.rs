//! Letting packets gather, as a NIC's interrupt moderation does: where they come fast, but not fast enough to keep a worker
//! going, it rests a little after each round, so that the next finds a burst rather than two or three.
//!
//! What that saves is what is paid by the round and not by the packet: the wake-up, the kicks of the TX rings, and the
//! interrupts that packets cost a core that is awake and not one that rests. The delay is bounded by [`LONGEST_NS`], and
//! at a low rate there is none: a worker that would gather next to nothing answers each packet at once.

use std::time::Duration;

use xsk::BURST;

/// No packet waits longer than this to make a burst (and what the timer is late).
const LONGEST_NS: u64 = 200_000;
/// A shorter rest would hardly save what it costs: setting a timer and being woken by it takes microseconds, and where
/// packets come that fast rounds are long anyway.
const SHORTEST_NS: u64 = 100_000;
/// Packets that the longest rest must promise.
const FEWEST: u64 = 16;
/// How long the rate is counted before it is believed.
const WINDOW_NS: u64 = 1_000_000;

/// What a worker knows of the rate at which packets come to it.
#[derive(Debug, Default)]
pub(crate) struct Gathering {
    window_began_ns: u64,
    /// Taken since then.
    packets: u64,
    /// The last round took a burst whole, so there may be more already.
    full: bool,
    /// What the last window's rate makes worthwhile.
    rest: Option<Duration>,
}

impl Gathering {
    /// A round begins.
    #[inline]
    pub(crate) fn begin(&mut self) {
        self.full = false;
    }

    /// So many packets were taken at once, a burst at most.
    #[inline]
    pub(crate) fn took(&mut self, packets: usize) {
        self.packets += packets as u64;
        self.full |= packets == BURST;
    }

    /// Whether a burst was taken whole since the round began.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.full
    }

    /// How long to rest after a round that ended at `now_ns`, if that is of use.
    #[inline]
    pub(crate) fn rest(&mut self, now_ns: u64) -> Option<Duration> {
        let elapsed_ns = now_ns.saturating_sub(self.window_began_ns);
        if elapsed_ns >= WINDOW_NS {
            self.rest = rest_at(self.packets, elapsed_ns);
            (self.window_began_ns, self.packets) = (now_ns, 0);
        }
        if self.full { None } else { self.rest }
    }
}

/// How long to rest when so many packets came in so long: until a burst will have come.
fn rest_at(packets: u64, elapsed_ns: u64) -> Option<Duration> {
    let promised = packets.saturating_mul(LONGEST_NS) / elapsed_ns;
    let burst_ns = (BURST as u64).saturating_mul(elapsed_ns) / packets.max(1);
    let worthwhile = promised >= FEWEST && burst_ns >= SHORTEST_NS;
    worthwhile.then(|| Duration::from_nanos(burst_ns.min(LONGEST_NS)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A worker that took `packets` in each of ten rounds of a millisecond.
    fn after(packets: usize) -> Gathering {
        let mut gathering = Gathering::default();
        for round in 1..=10 {
            gathering.begin();
            for at in (0..packets).step_by(BURST - 1) {
                gathering.took((packets - at).min(BURST - 1));
            }
            let _ = gathering.rest(round * WINDOW_NS);
        }
        gathering
    }

    #[test]
    fn at_a_low_rate_nothing_waits() {
        for a_millisecond in [0, 1, 22, 79] {
            assert_eq!(after(a_millisecond).rest(10 * WINDOW_NS), None, "{a_millisecond} a millisecond");
        }
    }

    #[test]
    fn rests_last_until_a_burst_is_there_but_never_long() {
        let rest_ns = |a_millisecond| after(a_millisecond).rest(10 * WINDOW_NS).unwrap().as_nanos() as u64;
        assert_eq!(rest_ns(80), LONGEST_NS);
        assert_eq!(rest_ns(320), LONGEST_NS);
        assert_eq!(rest_ns(640), LONGEST_NS / 2);
        assert_eq!(after(641).rest(10 * WINDOW_NS), None, "bursts come of themselves");
    }

    #[test]
    fn a_worker_that_is_kept_going_does_not_rest() {
        assert_eq!(after(4000).rest(10 * WINDOW_NS), None);
        let mut gathering = after(200);
        assert!(gathering.rest(10 * WINDOW_NS).is_some());
        gathering.begin();
        gathering.took(BURST);
        gathering.took(3);
        assert_eq!(gathering.rest(10 * WINDOW_NS), None, "a full burst says that there is more");
        gathering.begin();
        gathering.took(3);
        assert!(gathering.rest(10 * WINDOW_NS).is_some());
    }

    #[test]
    fn what_was_busy_before_a_pause_is_not_slow_after_it() {
        let mut gathering = after(200);
        gathering.begin();
        gathering.took(1);
        // A second without packets.
        assert_eq!(gathering.rest(1010 * WINDOW_NS), None);
    }
}
