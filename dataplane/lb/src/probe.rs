//! A read-only map with open addressing, built whole: a lookup is one multiply chain and, mostly, one cache line.
//!
//! Invariant: at most half of the slots are taken, so a probe always ends at a free one; far fewer of a small map, for
//! what is looked up is mostly not there, and where its slot is now taken and now free the processor guesses wrong. The
//! hash is not keyed: keys come from the configuration, and what a packet looks up changes nothing.

use wire::{Addr, Port, Protocol};

/// Entries of a map whose slots take little memory however many are free.
const SMALL: usize = 64;

/// A key that can be spread over slots.
pub(crate) trait Spread: Copy + Eq {
    /// Sixty-four well-mixed bits of the key.
    fn spread(&self) -> u64;
}

impl Spread for Addr {
    #[inline]
    fn spread(&self) -> u64 {
        let [high, low] = self.words();
        mix(high, low)
    }
}

impl Spread for (Addr, Port, Protocol) {
    #[inline]
    fn spread(&self) -> u64 {
        mix(self.0.spread(), u64::from(self.1.number()) << 8 | u64::from(self.2.0))
    }
}

/// Folds the 128-bit product of two words, each made odd-looking by a constant (digits of pi).
#[inline]
fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a ^ 0x243f_6a88_85a3_08d3) * u128::from(b ^ 0x1319_8a2e_0370_7344);
    (product as u64) ^ ((product >> 64) as u64)
}

/// The map. Empty maps have no slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProbeMap<K, V> {
    slots: Vec<Option<(K, V)>>,
    len: usize,
}

impl<K, V> Default for ProbeMap<K, V> {
    fn default() -> Self {
        Self { slots: Vec::new(), len: 0 }
    }
}

impl<K: Spread, V: Copy> ProbeMap<K, V> {
    /// From keys and values; of a key that comes twice, the first counts.
    pub(crate) fn build(entries: impl ExactSizeIterator<Item = (K, V)>) -> Self {
        if entries.len() == 0 {
            return Self::default();
        }
        let spare = if entries.len() <= SMALL { 16 } else { 2 };
        let mut map = Self { slots: vec![None; (entries.len() * spare).next_power_of_two()], len: 0 };
        for (key, value) in entries {
            let slot = map.slot(&key);
            if map.slots[slot].is_none() {
                map.slots[slot] = Some((key, value));
                map.len += 1;
            }
        }
        map
    }

    /// The value of a key.
    #[inline]
    pub(crate) fn get(&self, key: &K) -> Option<V> {
        if self.slots.is_empty() {
            return None;
        }
        self.slots[self.slot(key)].map(|(_, value)| value)
    }

    /// Asks for the key's first slot.
    #[inline]
    pub(crate) fn prefetch(&self, key: &K) {
        if !self.slots.is_empty() {
            arena::prefetch(&self.slots[key.spread() as usize & (self.slots.len() - 1)]);
        }
    }

    /// The slot that has the key, or the free one where it belongs.
    #[inline]
    fn slot(&self, key: &K) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = key.spread() as usize & mask;
        while self.slots[at].is_some_and(|(taken, _)| taken != *key) {
            at = (at + 1) & mask;
        }
        at
    }

    /// Every entry, in no order that means anything.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (K, V)> + '_ {
        self.slots.iter().flatten().copied()
    }

    /// Octets of its slots.
    pub(crate) fn octets(&self) -> usize {
        size_of_val(self.slots.as_slice())
    }

    /// How many keys.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(n: u32) -> Addr {
        Addr::from_v4(n.to_be_bytes())
    }

    #[test]
    fn every_key_is_found_and_no_other() {
        let map = ProbeMap::build((0..1000u32).map(|n| (addr(n * 256), n)));
        assert_eq!(map.len(), 1000);
        for n in 0..1000 {
            assert_eq!(map.get(&addr(n * 256)), Some(n));
            assert_eq!(map.get(&addr(n * 256 + 1)), None);
        }
        assert_eq!(ProbeMap::<Addr, u32>::default().get(&addr(1)), None);
    }

    #[test]
    fn the_first_of_two_equal_keys_counts() {
        let map = ProbeMap::build([(addr(1), 1), (addr(1), 2)].into_iter());
        assert_eq!((map.len(), map.get(&addr(1))), (1, Some(1)));
    }

    #[test]
    fn probes_of_neighbouring_keys_stay_short() {
        let map = ProbeMap::build(
            (0..10_000u32).map(|n| ((addr(0x0a00_0000 + n / 10), Port::new(80 + (n % 10) as u16), Protocol::TCP), n)),
        );
        let mask = map.slots.len() - 1;
        let longest = map
            .slots
            .iter()
            .enumerate()
            .filter_map(|(at, entry)| entry.map(|(key, _)| at.wrapping_sub(key.spread() as usize & mask) & mask));
        assert!(longest.max().unwrap() < 32);
    }
}
