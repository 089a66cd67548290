//! Session affinity: which endpoint a source was given by a Service port, shared by all workers and kept in the flow file.
//!
//! A fixed table of atomics in buckets of pairs. The first word of a pair is the key (a keyed hash of source and Service
//! port; 0 if unused), the second is `backend (32) | tick when it expires (32)`. A pair changes its key only under
//! `LOCKED` in its second word, which one worker alone wins by compare-and-swap; a reader takes a value only where the
//! key stands before and after it. A full bucket loses the pair that would expire first.

use core::hash::Hasher;

use arena::Pages;
use siphasher::sip::SipHasher13;
use wire::Addr;
use zerocopy::transmute;

use crate::id::{BackendId, ServiceId};
use crate::time::Tick;
use crate::words::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
    Words, in_memory,
};

/// Pairs of a bucket: two cache lines.
const WAYS: usize = if cfg!(loom) { 1 } else { 8 };
/// The second word while a pair changes its key. (The last slot of the registry in its last generation has it too, and
/// so has no affinity in one tick of 2^32.)
const LOCKED: u64 = u64::MAX;
/// Longest timeout in ticks (`timeoutSeconds` ends at 86400); what seems to live longer, and by more than workers differ,
/// expired long ago.
const LONGEST: u32 = Tick::from_millis(86_400_000);

/// The table; shared by all workers.
pub struct Affinity {
    words: Words,
    buckets: usize,
    key: (u64, u64),
}

impl Affinity {
    /// How many words a table for so many sources needs.
    #[must_use]
    pub const fn words_for(sources: usize) -> usize {
        sources.div_ceil(WAYS) * WAYS * 2
    }

    /// A table in memory of its own.
    ///
    /// # Panics
    /// If there is no memory.
    #[must_use]
    pub fn new(sources: usize, key: (u64, u64)) -> Self {
        Self::over(in_memory(Self::words_for(sources), Pages::Base).expect("memory for affinity"), key)
    }

    /// A table over memory that may have one in it already, made with the same secret `key`. What a killed process left
    /// half done is freed, so nobody else may use the memory yet.
    ///
    /// # Panics
    /// If there are fewer words than one bucket has.
    #[must_use]
    pub fn over(words: Words, key: (u64, u64)) -> Self {
        let buckets = words.len() / (WAYS * 2);
        assert!(buckets > 0, "an affinity table has a bucket");
        for pair in words.chunks_exact(2) {
            if pair[1].load(Relaxed) == LOCKED {
                pair[0].store(0, Relaxed);
                pair[1].store(0, Relaxed);
            }
        }
        Self { words, buckets, key }
    }

    /// The endpoint that this source was given, unless that expired.
    #[must_use]
    pub fn get(&self, source: &Addr, service: ServiceId, now: Tick) -> Option<BackendId> {
        let (bucket, key) = self.place(source, service);
        let (_, value) = find(bucket, key)?;
        remaining(value, now).map(|_| backend(value))
    }

    /// Notes that this source was given this endpoint, for `timeout` ticks from now.
    pub fn put(&self, source: &Addr, service: ServiceId, backend: BackendId, now: Tick, timeout: u32) {
        let (bucket, key) = self.place(source, service);
        let fresh = pack(backend, now, timeout);
        if let Some((pair, value)) = find(bucket, key) {
            // Whoever changed it meanwhile noted as fresh a use, or took the pair for another source.
            let _ = pair[1].compare_exchange(value, fresh, AcqRel, Relaxed);
            return;
        }
        let first_to_end =
            bucket.chunks_exact(2).map(|pair| (pair, pair[1].load(Acquire))).min_by_key(|(pair, value)| {
                if *value == LOCKED {
                    u32::MAX
                } else if pair[0].load(Relaxed) == 0 {
                    0
                } else {
                    remaining(*value, now).unwrap_or(0)
                }
            });
        let Some((pair, value)) = first_to_end.filter(|(_, value)| *value != LOCKED) else {
            return;
        };
        if pair[1].compare_exchange(value, LOCKED, AcqRel, Relaxed).is_ok() {
            pair[0].store(key, Release);
            pair[1].store(fresh, Release);
        }
    }

    fn place(&self, source: &Addr, service: ServiceId) -> (&[AtomicU64], u64) {
        let mut hasher = SipHasher13::new_with_keys(self.key.0, self.key.1);
        hasher.write(source.octets());
        let service: u32 = transmute!(service);
        hasher.write(&service.to_le_bytes());
        let hash = hasher.finish();
        let bucket = ((u128::from(hash) * self.buckets as u128) >> 64) as usize * WAYS * 2;
        (&self.words[bucket..bucket + WAYS * 2], hash.max(1))
    }
}

/// The pair that has this key, and its value.
fn find(bucket: &[AtomicU64], key: u64) -> Option<(&[AtomicU64], u64)> {
    bucket.chunks_exact(2).find_map(|pair| {
        let stands = pair[0].load(Acquire) == key;
        let value = pair[1].load(Acquire);
        (stands && value != LOCKED && pair[0].load(Relaxed) == key).then_some((pair, value))
    })
}

fn pack(backend: BackendId, now: Tick, timeout: u32) -> u64 {
    let id: u32 = transmute!(backend);
    u64::from(id) << 32 | u64::from(now.0.wrapping_add(timeout.min(LONGEST)))
}

fn backend(value: u64) -> BackendId {
    let id = (value >> 32) as u32;
    transmute!(id)
}

/// Ticks until a value expires; `None` if it did.
fn remaining(value: u64, now: Tick) -> Option<u32> {
    let left = (value as u32).wrapping_sub(now.0);
    (1..=LONGEST + Tick::SKEW).contains(&left).then_some(left)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const SERVICE: ServiceId = ServiceId::new(3, 1);
    const BACKEND: BackendId = BackendId::new(7, 2);

    fn source(n: u32) -> Addr {
        Addr::from_v4(n.to_be_bytes())
    }

    #[test]
    fn what_is_put_is_got_until_it_expires_and_a_put_refreshes_it() {
        let affinity = Affinity::new(64, (1, 2));
        let start = Tick(u32::MAX - 5);
        affinity.put(&source(1), SERVICE, BACKEND, start, 100);
        let later = |ticks| Tick(start.0.wrapping_add(ticks));
        assert_eq!(affinity.get(&source(1), SERVICE, later(99)), Some(BACKEND));
        assert_eq!(affinity.get(&source(1), SERVICE, later(100)), None);
        affinity.put(&source(1), SERVICE, BACKEND, later(50), 100);
        assert_eq!(affinity.get(&source(1), SERVICE, later(149)), Some(BACKEND));
        assert_eq!(affinity.get(&source(1), SERVICE, later(150)), None);
    }

    #[test]
    fn the_longest_timeout_holds_for_a_worker_whose_burst_began_before_the_put() {
        let affinity = Affinity::new(64, (1, 2));
        let put = Tick(5);
        affinity.put(&source(1), SERVICE, BACKEND, put, LONGEST);
        for behind in [0, 1, 100] {
            assert_eq!(affinity.get(&source(1), SERVICE, Tick(put.0.wrapping_sub(behind))), Some(BACKEND), "{behind}");
        }
        assert_eq!(affinity.get(&source(1), SERVICE, Tick(put.0 + LONGEST)), None);
    }

    #[test]
    fn sources_and_services_are_apart() {
        let affinity = Affinity::new(64, (1, 2));
        affinity.put(&source(1), SERVICE, BACKEND, Tick(0), 100);
        assert_eq!(affinity.get(&source(2), SERVICE, Tick(1)), None);
        assert_eq!(affinity.get(&source(1), ServiceId::new(3, 2), Tick(1)), None);
    }

    #[test]
    fn a_full_bucket_loses_what_would_expire_first() {
        let affinity = Affinity::new(WAYS, (1, 2));
        for n in 0..WAYS as u32 {
            affinity.put(&source(n), SERVICE, BACKEND, Tick(0), 100 + n);
        }
        affinity.put(&source(99), SERVICE, BACKEND, Tick(1), 100);
        assert_eq!(affinity.get(&source(0), SERVICE, Tick(2)), None);
        for n in (1..WAYS as u32).chain([99]) {
            assert_eq!(affinity.get(&source(n), SERVICE, Tick(2)), Some(BACKEND), "{n}");
        }
    }

    #[test]
    fn a_pair_that_a_killed_process_left_locked_is_freed_at_load_and_the_others_stay() {
        let affinity = Affinity::new(1, (1, 2));
        affinity.put(&source(1), SERVICE, BACKEND, Tick(0), 100);
        affinity.words[WAYS * 2 - 1].store(LOCKED, Release);
        let reopened = Affinity::over(affinity.words, (1, 2));
        assert_eq!(reopened.get(&source(1), SERVICE, Tick(1)), Some(BACKEND));
        assert_eq!(reopened.words[WAYS * 2 - 1].load(Acquire), 0);
    }
}
