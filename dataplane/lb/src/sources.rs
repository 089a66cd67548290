//! How many flows a source has, over all workers, so that none takes more than its share.
//!
//! A fixed table of atomics in buckets. A word is `tag (32) | count (32)`, 0 is free; the tag is of a keyed hash of the
//! source (of an IPv6 address: its /64) and never 0. A source that finds its bucket full is admitted uncounted, so the
//! table limits those that hold many flows and never refuses one that holds none. Source: RFC 6888 REQ-4.

use arena::{ArenaError, Pages};
use wire::Addr;

use crate::flow::FlowHasher;
use crate::words::{
    AtomicU64,
    Ordering::{Acquire, Relaxed},
    Snapshot, Words, in_memory,
};

/// Words of a bucket: one cache line.
const WAYS: usize = 8;
const TAG_SHIFT: u32 = 32;
const COUNT_MAX: u64 = (1 << TAG_SHIFT) - 1;

/// The table; shared by all workers.
pub struct SourceLimits {
    words: Words,
    buckets: usize,
    hasher: FlowHasher,
    /// Whether one worker counts, whom nobody can forestall.
    alone: bool,
}

impl SourceLimits {
    /// A table for so many sources at a time that so many workers count, with a secret key.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn new(sources: usize, workers: usize, key: (u64, u64), pages: Pages) -> Result<Self, ArenaError> {
        let buckets = sources.div_ceil(WAYS).max(1);
        let (words, hasher) = (in_memory(buckets * WAYS, pages)?, FlowHasher::new([key.0, key.1]));
        Ok(Self { words, buckets, hasher, alone: workers == 1 })
    }

    /// The hash that a source is counted by.
    #[inline]
    pub(crate) fn hash(&self, source: &Addr) -> SourceHash {
        SourceHash(network_hash(&self.hasher, source))
    }

    /// Asks for the memory that counting a flow of this source will touch.
    #[inline]
    pub(crate) fn prefetch(&self, source: SourceHash) {
        arena::prefetch(&self.place(source).0[0]);
    }

    /// Counts a flow of this source, unless it has `limit` flows already (0: no limit). Whether it was counted in.
    #[must_use]
    pub fn open(&self, source: &Addr, limit: u32) -> bool {
        self.open_hashed(self.hash(source), limit)
    }

    /// The same by the source's hash.
    #[must_use]
    pub(crate) fn open_hashed(&self, source: SourceHash, limit: u32) -> bool {
        let (bucket, tag) = self.place(source);
        let limit = if limit == 0 { COUNT_MAX } else { limit.into() };
        loop {
            let Some(slot) = own_or_free(bucket, tag) else {
                return true;
            };
            let word = slot.load(Acquire);
            if word != 0 && tag_of(word) != tag {
                // Another's by now.
                continue;
            }
            let count = word & COUNT_MAX;
            if count >= limit {
                return false;
            }
            if self.put(slot, word, u64::from(tag) << TAG_SHIFT | (count + 1)) {
                return true;
            }
        }
    }

    /// Takes back one flow of this source.
    pub fn close(&self, source: &Addr) {
        self.close_hashed(self.hash(source));
    }

    /// The same by the source's hash.
    pub(crate) fn close_hashed(&self, source: SourceHash) {
        let (bucket, tag) = self.place(source);
        loop {
            let Some(slot) = bucket.get(places(bucket, tag).0.trailing_zeros() as usize) else {
                return;
            };
            let word = slot.load(Acquire);
            let less = if word & COUNT_MAX <= 1 { 0 } else { word - 1 };
            // It may be another's by now, and another word this source's.
            if tag_of(word) == tag && self.put(slot, word, less) {
                return;
            }
        }
    }

    /// How many flows this source has.
    #[must_use]
    pub fn count(&self, source: &Addr) -> u32 {
        let (bucket, tag) = self.place(self.hash(source));
        let word = bucket.iter().map(|slot| slot.load(Acquire)).find(|word| tag_of(*word) == tag);
        word.map_or(0, |word| (word & COUNT_MAX) as u32)
    }

    /// Puts a word in the place of what was seen there; `false`: it may be another by now.
    #[inline]
    fn put(&self, slot: &AtomicU64, seen: u64, word: u64) -> bool {
        if self.alone {
            slot.store(word, Relaxed);
            return true;
        }
        slot.compare_exchange_weak(seen, word, Relaxed, Relaxed).is_ok()
    }

    #[inline]
    fn place(&self, SourceHash(hash): SourceHash) -> (&[AtomicU64; WAYS], u32) {
        let bucket = ((u128::from(hash) * self.buckets as u128) >> 64) as usize * WAYS;
        (self.words[bucket..].first_chunk().expect("buckets are whole"), tag_of(hash << TAG_SHIFT).max(1))
    }
}

/// The keyed hash of a source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SourceHash(u64);

/// The hash of a source: of its address, or of an IPv6 address's /64, which is one customer's.
#[inline]
pub(crate) fn network_hash(hasher: &FlowHasher, source: &Addr) -> u64 {
    let network = if source.is_v4() { *source } else { Addr::from_parts(source.first_word(), 0, 0) };
    hasher.hash_address(&network).0
}

#[inline]
const fn tag_of(word: u64) -> u32 {
    (word >> TAG_SHIFT) as u32
}

/// Which words have this tag, and which are free, a bit each. Without a branch for each: no processor knows where they are.
#[inline]
fn places(bucket: &[AtomicU64; WAYS], tag: u32) -> (u32, u32) {
    const { assert!(TAG_SHIFT == 32) };
    let tags = Snapshot::of_upper_halves(bucket);
    (tags.matching(u32::MAX, tag), tags.matching(u32::MAX, 0))
}

/// The word of this tag, or the first free one.
#[inline]
fn own_or_free(bucket: &[AtomicU64; WAYS], tag: u32) -> Option<&AtomicU64> {
    let (own, free) = places(bucket, tag);
    let bits = if own != 0 { own } else { free };
    bucket.get(bits.trailing_zeros() as usize)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn source(text: &str) -> Addr {
        text.parse::<std::net::IpAddr>().unwrap().into()
    }

    #[test]
    fn a_source_gets_its_share_and_no_more_until_a_flow_ends() {
        let limits = SourceLimits::new(64, 2, (1, 2), Pages::Base).unwrap();
        let client = source("192.0.2.1");
        assert!(limits.open(&client, 2) && limits.open(&client, 2) && !limits.open(&client, 2));
        assert!(limits.open(&source("192.0.2.2"), 2), "another has its own");
        limits.close(&client);
        assert!(limits.open(&client, 2));
        assert_eq!(limits.count(&client), 2);
    }

    #[test]
    fn zero_is_no_limit_but_counts() {
        let limits = SourceLimits::new(64, 2, (1, 2), Pages::Base).unwrap();
        let client = source("192.0.2.1");
        assert!((0..1000).all(|_| limits.open(&client, 0)));
        assert_eq!(limits.count(&client), 1000);
        assert!(!limits.open(&client, 1000), "a limit set later holds at once");
    }

    #[test]
    fn ipv6_sources_of_one_64_are_one() {
        let limits = SourceLimits::new(64, 2, (1, 2), Pages::Base).unwrap();
        assert!(limits.open(&source("2001:db8:0:1::1"), 1));
        assert!(!limits.open(&source("2001:db8:0:1:ffff::2"), 1));
        assert!(limits.open(&source("2001:db8:0:2::1"), 1));
    }

    #[test]
    fn a_full_table_admits_and_what_closes_frees_its_word() {
        let limits = SourceLimits::new(WAYS, 1, (1, 2), Pages::Base).unwrap();
        let clients: Vec<Addr> = (0..20u8).map(|n| Addr::from_v4([10, 0, 0, n])).collect();
        for client in &clients {
            assert!(limits.open(client, 1));
        }
        clients.iter().for_each(|client| limits.close(client));
        assert!(clients.iter().all(|client| limits.count(client) == 0));
        assert!(limits.open(&clients[19], 1) && !limits.open(&clients[19], 1));
    }

    #[test]
    fn counts_of_many_threads_add_up() {
        let limits = SourceLimits::new(64, 2, (1, 2), Pages::Base).unwrap();
        let client = source("192.0.2.1");
        assert!(limits.open(&client, 0));
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..10_000).for_each(|_| assert!(limits.open(&client, 0))));
            }
        });
        assert_eq!(limits.count(&client), 20_001);
    }
    #[test]
    fn what_many_threads_open_and_close_leaves_nothing() {
        let limits = SourceLimits::new(WAYS, 2, (1, 2), Pages::Base).unwrap();
        let clients: Vec<Addr> = (0..3u8).map(|n| Addr::from_v4([10, 0, 0, n])).collect();
        thread::scope(|scope| {
            for first in 0..2 {
                let (limits, clients) = (&limits, &clients);
                scope.spawn(move || {
                    for client in clients.iter().cycle().skip(first).take(100_000) {
                        assert!(limits.open(client, 2));
                        limits.close(client);
                    }
                });
            }
        });
        assert!(limits.words.iter().all(|word| word.load(Relaxed) == 0), "words are free again");
    }
}
