//! Whether a worker gets more than it can do: frames wait whenever it looks, for a long time.
//!
//! A queue that gives a full burst has more waiting as good as always. A burst of traffic is taken in within a few
//! milliseconds however long the ring is; where full bursts go on for longer, frames come faster than they go. Time alone
//! does not tell: a worker that did not have its core for a while finds what came meanwhile, a ring of it at most.

use xsk::BURST;

/// For how many nanoseconds full bursts must go on: longer than a full ring of 4,096 takes at half a million a second.
const OVERLOADED_NS: u64 = 10_000_000;
/// Rounds in which a full ring of 4,096 is taken in.
const RING: u32 = (4096 / BURST) as u32;

/// Since when a worker's queues are backed up.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Backlog {
    since_ns: Option<u64>,
    /// Rounds with full bursts since then.
    rounds: u32,
}

impl Backlog {
    /// Takes note of a round that began at `now_ns` and in which a queue gave a full burst, or none did. Says whether it is
    /// overload.
    #[inline]
    pub(crate) fn note(&mut self, full: bool, now_ns: u64) -> bool {
        if !full {
            *self = Self::default();
            return false;
        }
        let since_ns = *self.since_ns.get_or_insert(now_ns);
        self.rounds = self.rounds.saturating_add(1);
        self.rounds > RING && now_ns.saturating_sub(since_ns) >= OVERLOADED_NS
    }
}

#[cfg(test)]
mod tests {
    use super::{Backlog, OVERLOADED_NS, RING};

    /// Full bursts for as many rounds as a ring holds, from `start_ns` on.
    fn backed_up(start_ns: u64) -> Backlog {
        let mut backlog = Backlog::default();
        assert!((0..RING).all(|_| !backlog.note(true, start_ns)), "a burst of traffic");
        backlog
    }

    #[test]
    fn only_full_bursts_that_go_on_are_overload() {
        let mut backlog = backed_up(5);
        assert!(!backlog.note(true, 4 + OVERLOADED_NS), "a burst of traffic");
        assert!(backlog.note(true, 5 + OVERLOADED_NS));
        assert!(backlog.note(true, 6 + OVERLOADED_NS));
    }

    #[test]
    fn what_came_while_the_worker_did_not_have_its_core_is_not() {
        let mut backlog = Backlog::default();
        let pauses = |round: u64| round * 3 * OVERLOADED_NS;
        assert!((0..u64::from(RING)).all(|round| !backlog.note(true, pauses(round))));
        assert!(backlog.note(true, pauses(u64::from(RING))));
    }

    #[test]
    fn one_round_that_empties_its_queues_ends_it() {
        let mut backlog = backed_up(0);
        assert!(backlog.note(true, OVERLOADED_NS));
        assert!(!backlog.note(false, OVERLOADED_NS + 1));
        assert!(!backlog.note(true, 2 * OVERLOADED_NS), "and it begins anew");
        assert!((1..RING).all(|_| !backlog.note(true, 3 * OVERLOADED_NS)));
        assert!(backlog.note(true, 3 * OVERLOADED_NS));
    }
}
