//! How fast a source opens flows, over all workers (`limits.newFlowsPerSource`).
//!
//! A fixed table of atomics in buckets, as [`crate::sources`]. A word is `tag (24) | time (40)`, in units of 64 ns: when the
//! source's bucket of tokens will be full again (the theoretical arrival time of ITU-T I.371 annex A, GCRA). A word whose
//! time has passed says nothing any more, so it is free: a flood of sources that open one flow each holds a word for an
//! interval each, and nothing needs to be cleared. A source whose bucket of the table is full of others that are busy is
//! admitted uncounted: the table limits those that open many flows and never refuses one that opened none.

use arena::{ArenaError, Pages};
use wire::Addr;

use crate::flow::FlowHasher;
use crate::sources::network_hash;
use crate::time::{Now, SKEW_NS};
use crate::words::{
    AtomicU64,
    Ordering::{Acquire, Relaxed},
    Words, in_memory,
};

/// Words of a bucket: one cache line.
const WAYS: usize = 8;
/// Nanoseconds are shifted right by this: 64 ns, so that even a hundred thousand a second are met to a hundredth.
const UNIT_SHIFT: u32 = 6;
const UNITS_PER_SECOND: u64 = 1_000_000_000 >> UNIT_SHIFT;
/// Times wrap after 19 hours.
const TIME_BITS: u32 = 40;
const TIME: u64 = (1 << TIME_BITS) - 1;
/// Flows that may open at once after a quiet time, where that is more than a second's.
const LEAST_BURST: u64 = 10;

/// The table; shared by all workers.
pub struct SourceRates {
    words: Words,
    buckets: usize,
    hasher: FlowHasher,
}

impl SourceRates {
    /// A table for so many sources at a time, with a secret key.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn new(sources: usize, key: (u64, u64), pages: Pages) -> Result<Self, ArenaError> {
        let buckets = sources.div_ceil(WAYS).max(1);
        Ok(Self { words: in_memory(buckets * WAYS, pages)?, buckets, hasher: FlowHasher::new([key.0, key.1]) })
    }

    /// Takes one of the flows that this source may open: `per_second`, and a second's worth (ten at least) at once after a
    /// quiet time. Whether there was one; 0 is no limit.
    #[must_use]
    pub fn take(&self, source: &Addr, per_second: u32, now: Now) -> bool {
        if per_second == 0 {
            return true;
        }
        let interval = (UNITS_PER_SECOND / u64::from(per_second)).max(1);
        let depth = interval * LEAST_BURST.max(u64::from(per_second));
        let now = now.0 >> UNIT_SHIFT & TIME;
        let (bucket, tag) = self.place(source);
        loop {
            let own = bucket.iter().map(|slot| (slot, slot.load(Acquire))).find(|(_, word)| word >> TIME_BITS == tag);
            let is_free = |word: u64| word == 0 || ahead(word & TIME, now, depth) == 0;
            let free = || bucket.iter().map(|slot| (slot, slot.load(Acquire))).find(|(_, word)| is_free(*word));
            let Some((slot, word)) = own.or_else(free) else { return true };
            let wait = if word >> TIME_BITS == tag { ahead(word & TIME, now, depth) } else { 0 };
            if wait + interval > depth {
                return false;
            }
            let full_again = now.wrapping_add(wait + interval) & TIME;
            if slot.compare_exchange_weak(word, tag << TIME_BITS | full_again, Relaxed, Relaxed).is_ok() {
                return true;
            }
        }
    }

    fn place(&self, source: &Addr) -> (&[AtomicU64], u64) {
        let hash = network_hash(&self.hasher, source);
        let bucket = ((u128::from(hash) * self.buckets as u128) >> 64) as usize * WAYS;
        (&self.words[bucket..bucket + WAYS], (hash & (u64::MAX >> TIME_BITS)).max(1))
    }
}

/// How far a time is ahead of `now`; 0 where it has passed, which is what one says that is further ahead than `depth` and
/// what workers differ by: it was written long ago, or under a lower rate.
fn ahead(time: u64, now: u64, depth: u64) -> u64 {
    let ahead = time.wrapping_sub(now) & TIME;
    if ahead <= depth + (SKEW_NS >> UNIT_SHIFT) { ahead } else { 0 }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const START: Now = Now(77 * SECOND);

    fn table(sources: usize) -> SourceRates {
        SourceRates::new(sources, (1, 2), Pages::Base).unwrap()
    }

    fn source(text: &str) -> Addr {
        text.parse::<std::net::IpAddr>().unwrap().into()
    }

    fn taken(rates: &SourceRates, from: &Addr, limit: u32, tries: usize, now: Now) -> usize {
        (0..tries).filter(|_| rates.take(from, limit, now)).count()
    }

    #[test]
    fn a_second_s_worth_opens_at_once_and_then_as_many_a_second_as_may() {
        let (rates, client) = (table(64), source("192.0.2.1"));
        assert_eq!(taken(&rates, &client, 100, 500, START), 100);
        assert!(!rates.take(&client, 100, Now(START.0 + 9_000_000)), "the next token comes after ten milliseconds");
        assert!(rates.take(&client, 100, Now(START.0 + 10_100_000)));
        let over_ten_seconds =
            (0..10_000).filter(|ms| rates.take(&client, 100, Now(START.0 + SECOND + ms * 1_000_000)));
        assert!((1080..=1105).contains(&over_ten_seconds.count()));
        assert_eq!(taken(&rates, &source("192.0.2.2"), 100, 500, Now(START.0 + SECOND)), 100, "another has its own");
    }

    #[test]
    fn a_low_rate_still_lets_a_browser_open_its_connections_at_once() {
        let (rates, client) = (table(64), source("192.0.2.1"));
        assert_eq!(taken(&rates, &client, 1, 50, START), 10);
        assert_eq!(taken(&rates, &client, 1, 50, Now(START.0 + 3 * SECOND + 1000)), 3);
    }

    #[test]
    fn zero_is_no_limit_and_high_rates_are_met() {
        let (rates, client) = (table(64), source("192.0.2.1"));
        assert_eq!(taken(&rates, &client, 0, 10_000, START), 10_000);
        let steps = (0..2_000_000_u64).filter(|n| rates.take(&client, 100_000, Now(START.0 + n * 1_000)));
        let admitted = steps.count();
        assert!((298_000..=302_000).contains(&admitted), "{admitted} in two seconds, the burst among them");
    }

    #[test]
    fn ipv6_sources_of_one_64_are_one() {
        let rates = table(64);
        assert_eq!(taken(&rates, &source("2001:db8:0:1::1"), 10, 20, START), 10);
        assert!(!rates.take(&source("2001:db8:0:1:ffff::2"), 10, START));
        assert!(rates.take(&source("2001:db8:0:2::1"), 10, START));
    }

    #[test]
    fn a_flood_of_sources_neither_fills_the_table_nor_refuses_a_new_one() {
        let rates = table(WAYS);
        let flood = |from: u32, now| {
            (0..100_000u32).filter(|n| rates.take(&Addr::from_v4((from + n).to_be_bytes()), 100, now)).count()
        };
        assert_eq!(flood(0x0a00_0000, START), 100_000, "who opens one is not refused");
        let later = Now(START.0 + SECOND);
        let client = source("192.0.2.1");
        assert_eq!(taken(&rates, &client, 100, 500, later), 100, "what others left has passed");
        assert_eq!(flood(0x0b00_0000, later), 100_000);
        assert!(!rates.take(&client, 100, later), "who is over its rate stays that while others come");
    }

    #[test]
    fn what_was_written_long_ago_refuses_nobody() {
        let (rates, client) = (table(WAYS), source("192.0.2.1"));
        for hours in 0..60 {
            let now = Now(START.0 + hours * 3600 * SECOND);
            assert!(taken(&rates, &client, 100, 500, now) >= 99, "after {hours} hours");
        }
    }

    #[test]
    fn a_new_source_is_counted_also_right_before_times_wrap() {
        for before_ns in [1_000, SECOND / 2, 3 * SECOND / 2] {
            let (rates, client) = (table(64), source("192.0.2.1"));
            let now = Now(((TIME + 1) << UNIT_SHIFT) - before_ns);
            assert_eq!(taken(&rates, &client, 100, 500, now), 100, "{before_ns} ns before");
        }
    }

    #[test]
    fn a_worker_whose_burst_began_before_the_last_token_was_taken_takes_none() {
        let (rates, client) = (table(64), source("192.0.2.1"));
        assert_eq!(taken(&rates, &client, 100, 500, START), 100);
        for behind in [64, 10_000, 1_000_000, 100_000_000] {
            assert_eq!(taken(&rates, &client, 100, 500, Now(START.0 - behind)), 0, "{behind} ns");
        }
        assert_eq!(taken(&rates, &client, 100, 500, Now(START.0 + SECOND + 1000)), 100, "and it goes on as it was");
    }

    #[test]
    fn workers_together_let_in_no_more_than_one() {
        let (rates, client, admitted) = (table(64), source("192.0.2.1"), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| admitted.fetch_add(taken(&rates, &client, 1000, 50_000, START), Ordering::Relaxed));
            }
        });
        assert_eq!(admitted.into_inner(), 1000);
    }
}
