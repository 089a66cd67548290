//! Maglev's lookup table: consistent hashing with even shares (Eisenbud et al., NSDI 2016, section 3.4).
//!
//! Each endpoint has its own permutation of the slots; endpoints take turns, each taking the next free slot of its
//! permutation, until none is free. An endpoint of weight w takes turns in proportion to w: each round gives it credit w,
//! and a turn costs the largest weight, so weight sums larger than the table need nothing special. The table depends
//! only on the set of (endpoint, weight), the seed and the size: on no order, process or machine.

use core::hash::Hasher;

use siphasher::sip128::{Hasher128, SipHasher13};
use wire::{Addr, Port};

use crate::tables::SelectionSeed;

/// A permutation of the slots of a table of a prime size: it starts at `offset` and goes on by `skip`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permutation {
    offset: u32,
    skip: u32,
}

impl Permutation {
    /// The permutation of an endpoint: SipHash-1-3 (128 bits, keyed with the seed) of its address and port.
    #[must_use]
    pub fn of(address: &Addr, port: Port, size: usize, seed: SelectionSeed) -> Self {
        let mut hasher = SipHasher13::new_with_keys(seed.0, seed.1);
        hasher.write(address.octets());
        hasher.write(&port.octets());
        let hash = hasher.finish128();
        let size = size as u64;
        Self { offset: (hash.h1 % size) as u32, skip: (hash.h2 % (size - 1)) as u32 + 1 }
    }

    /// A permutation by its numbers, for a table of `size` slots.
    ///
    /// # Panics
    /// If `offset` is not below `size`, or `skip` not in `1..size`.
    #[must_use]
    pub const fn new(offset: u32, skip: u32, size: usize) -> Self {
        assert!((offset as usize) < size && skip > 0 && (skip as usize) < size, "a permutation stays in its table");
        Self { offset, skip }
    }
}

/// A lookup table: slot → index of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Maglev {
    slots: Vec<u32>,
}

impl Maglev {
    /// The table of a set of endpoints: the same whatever their order, but for the indexes that its slots hold, which
    /// are those of `endpoints`. Weight 0 gets no slot; without another weight the table is empty.
    ///
    /// # Panics
    /// As [`Maglev::build`].
    #[must_use]
    pub fn of_endpoints(endpoints: &[(Addr, Port, u16)], size: usize, seed: SelectionSeed) -> Self {
        let mut order: Vec<u32> = (0..endpoints.len() as u32).collect();
        order.sort_unstable_by_key(|&index| endpoints[index as usize]);
        let turns = order.into_iter().map(|index| {
            let (address, port, weight) = endpoints[index as usize];
            (index, Permutation::of(&address, port, size, seed), weight)
        });
        Self::fill(turns, size)
    }

    /// A table of `size` slots; endpoints take turns in the order given.
    ///
    /// # Panics
    /// If `size` is not prime (then a permutation could miss slots, and this run forever).
    #[must_use]
    pub fn build(endpoints: &[(Permutation, u16)], size: usize) -> Self {
        Self::fill(endpoints.iter().enumerate().map(|(at, &(order, weight))| (at as u32, order, weight)), size)
    }

    fn fill(endpoints: impl Iterator<Item = (u32, Permutation, u16)>, size: usize) -> Self {
        assert!(is_prime(size), "a Maglev table's size is prime");
        let mut turns: Vec<Turn> = endpoints.filter(|&(_, _, weight)| weight > 0).map(Turn::new).collect();
        let Some(price) = turns.iter().map(|turn| turn.weight).max() else {
            return Self::default();
        };
        let mut slots = vec![0u32; size];
        let mut taken = vec![0u64; size.div_ceil(64)];
        let mut free = size;
        let last = Last::count(size);
        loop {
            for at in 0..turns.len() {
                let turn = &mut turns[at];
                turn.credit += turn.weight;
                if turn.credit < price {
                    continue;
                }
                turn.credit -= price;
                let slot = turn.take(&mut taken, size as u32);
                slots[slot as usize] = turn.index;
                free -= 1;
                if free <= last {
                    Last::of(&taken, size).fill(&mut turns, at + 1, price, &mut slots);
                    return Self { slots };
                }
            }
        }
    }

    /// The endpoint that a hash of 64 evenly spread bits leads to, as an index into the endpoints that the table was
    /// built from; `None` where the table is empty.
    #[must_use]
    #[inline]
    pub fn lookup(&self, hash: u64) -> Option<usize> {
        let slot = (u128::from(hash) * self.slots.len() as u128) >> 64;
        self.slots.get(slot as usize).map(|&index| index as usize)
    }

    /// How many slots; 0 where no endpoint serves.
    #[must_use]
    pub fn size(&self) -> usize {
        self.slots.len()
    }

    /// Slot → index of an endpoint.
    #[must_use]
    pub fn slots(&self) -> &[u32] {
        &self.slots
    }
}

/// One endpoint while a table is filled.
struct Turn {
    /// The slot of its permutation that it tries next.
    next: u32,
    skip: u32,
    weight: u32,
    /// Below the largest weight after every round.
    credit: u32,
    index: u32,
}

impl Turn {
    fn new((index, permutation, weight): (u32, Permutation, u16)) -> Self {
        Self { next: permutation.offset, skip: permutation.skip, weight: weight.into(), credit: 0, index }
    }

    /// Takes its next free slot; there must be one.
    #[inline]
    fn take(&mut self, taken: &mut [u64], size: u32) -> u32 {
        loop {
            let slot = self.next;
            self.next += self.skip;
            if self.next >= size {
                self.next -= size;
            }
            let (word, bit) = ((slot / 64) as usize, 1u64 << (slot % 64));
            if taken[word] & bit == 0 {
                taken[word] |= bit;
                return slot;
            }
        }
    }
}

/// The last free slots. Walking a permutation until one of few is met takes long, and which of them it meets first can be
/// told: each slot's place in the permutation is its distance from where the walk stands, divided by the skip.
struct Last {
    free: Vec<u32>,
    size: u32,
    /// 2^64 divided by the size, for remainders without a division.
    reciprocal: u64,
}

impl Last {
    /// How many: about where telling costs as much as walking.
    fn count(size: usize) -> usize {
        size.isqrt()
    }

    fn of(taken: &[u64], size: usize) -> Self {
        let free = |&slot: &u32| taken[(slot / 64) as usize] & 1 << (slot % 64) == 0;
        Self { free: (0..size as u32).filter(free).collect(), size: size as u32, reciprocal: u64::MAX / size as u64 }
    }

    /// Goes on with the turns from one of them until no slot is free.
    fn fill(mut self, turns: &mut [Turn], first: usize, price: u32, slots: &mut [u32]) {
        let mut at = first;
        while !self.free.is_empty() {
            let Some(turn) = turns.get_mut(at) else {
                at = 0;
                continue;
            };
            at += 1;
            turn.credit += turn.weight;
            if turn.credit >= price {
                turn.credit -= price;
                slots[self.take(turn) as usize] = turn.index;
            }
        }
    }

    /// The slot that the walk meets first, which is free no longer.
    fn take(&mut self, turn: &mut Turn) -> u32 {
        let inverse = self.inverse(turn.skip);
        let steps = |&slot: &u32| {
            let distance = if slot >= turn.next { slot - turn.next } else { slot + self.size - turn.next };
            self.remainder(u64::from(distance) * inverse)
        };
        let nearest = (0..self.free.len()).min_by_key(|&i| steps(&self.free[i])).unwrap_or(0);
        let slot = self.free.swap_remove(nearest);
        turn.next = self.remainder(u64::from(slot) + u64::from(turn.skip)) as u32;
        slot
    }

    /// Modulo the size.
    fn remainder(&self, n: u64) -> u64 {
        let quotient = ((u128::from(n) * u128::from(self.reciprocal)) >> 64) as u64;
        let rest = n - quotient * u64::from(self.size);
        // The reciprocal is rounded down, and so the quotient may lack one.
        if rest >= u64::from(self.size) { rest - u64::from(self.size) } else { rest }
    }

    /// By Fermat's little theorem; the size is prime, and no skip is a multiple of it.
    fn inverse(&self, skip: u32) -> u64 {
        let (mut power, mut base, mut exponent) = (1, u64::from(skip), self.size - 2);
        while exponent > 0 {
            if exponent & 1 == 1 {
                power = self.remainder(power * base);
            }
            base = self.remainder(base * base);
            exponent >>= 1;
        }
        power
    }
}

fn is_prime(n: usize) -> bool {
    n >= 2 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::Instant;

    use super::*;
    use crate::model::TABLE_SIZES;

    const SEED: SelectionSeed = SelectionSeed(0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210);

    fn endpoint(n: u32) -> (Addr, Port, u16) {
        (Addr::from_v4((0x0a00_0000 + n).to_be_bytes()), Port::new(8080), 1)
    }

    fn endpoints(count: u32) -> Vec<(Addr, Port, u16)> {
        (0..count).map(endpoint).collect()
    }

    fn weighted(weights: &[u16]) -> Vec<(Addr, Port, u16)> {
        weights.iter().zip(0..).map(|(&weight, n)| (endpoint(n).0, endpoint(n).1, weight)).collect()
    }

    fn shares(table: &Maglev, count: usize) -> Vec<usize> {
        let mut shares = vec![0; count];
        table.slots().iter().for_each(|&index| shares[index as usize] += 1);
        shares
    }

    fn by_address(table: &Maglev, endpoints: &[(Addr, Port, u16)]) -> Vec<Addr> {
        table.slots().iter().map(|&index| endpoints[index as usize].0).collect()
    }

    /// The table in figure 3 and table 1 of the paper.
    #[test]
    fn the_worked_example_of_the_paper() {
        let orders = [(3, 4), (0, 2), (3, 1)].map(|(offset, skip)| (Permutation::new(offset, skip, 7), 1));
        assert_eq!(Maglev::build(&orders, 7).slots(), [1, 0, 1, 0, 2, 2, 0]);
        let without_b1 = Maglev::build(&[orders[0], (orders[1].0, 0), orders[2]], 7);
        assert_eq!(without_b1.slots(), [0, 0, 0, 0, 2, 2, 2], "and after B1 went");
    }

    #[test]
    fn without_an_endpoint_there_is_no_table_and_one_has_all_of_it() {
        assert_eq!(Maglev::of_endpoints(&[], 1021, SEED).lookup(7), None);
        assert_eq!(Maglev::of_endpoints(&weighted(&[0, 0]), 1021, SEED).lookup(7), None);
        let one = Maglev::of_endpoints(&endpoints(1), 1021, SEED);
        assert_eq!((one.size(), shares(&one, 1)), (1021, vec![1021]));
        assert_eq!((one.lookup(0), one.lookup(u64::MAX)), (Some(0), Some(0)));
    }

    #[test]
    fn shares_of_equal_weights_differ_by_one_at_most_and_no_slot_is_a_hole() {
        for size in TABLE_SIZES {
            for count in [2, 3, 10, 100, 1000] {
                let table = Maglev::of_endpoints(&endpoints(count), size, SEED);
                let shares = shares(&table, count as usize);
                assert_eq!(shares.iter().sum::<usize>(), size);
                let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
                assert!(most - least <= 1, "{count} endpoints in {size}: {least} to {most}");
            }
        }
    }

    #[test]
    fn more_endpoints_than_slots_fill_the_table_one_each() {
        let shares = shares(&Maglev::of_endpoints(&endpoints(2000), 1021, SEED), 2000);
        assert_eq!((shares.iter().sum::<usize>(), shares.iter().max()), (1021, Some(&1)));
    }

    #[test]
    fn shares_follow_the_weights_even_where_their_sum_exceeds_the_table() {
        for weights in [&[1u16, 2, 3, 4][..], &[50_000, 25_000, 12_500, 12_500], &[65535, 65535, 1, 32767], &[3, 0, 1]]
        {
            let table = Maglev::of_endpoints(&weighted(weights), 16381, SEED);
            let total: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
            for (share, &weight) in shares(&table, weights.len()).into_iter().zip(weights) {
                let wanted = f64::from(weight) / total * 16381.0;
                assert!((share as f64 - wanted).abs() <= 2.0, "weight {weight} of {weights:?}: {share}, not {wanted}");
            }
        }
    }

    #[test]
    fn the_order_of_endpoints_changes_nothing() {
        let forward = endpoints(100);
        let backward: Vec<_> = forward.iter().rev().copied().collect();
        let tables = [&forward, &backward].map(|list| by_address(&Maglev::of_endpoints(list, 16381, SEED), list));
        assert_eq!(tables[0], tables[1]);
    }

    #[test]
    fn few_flows_of_the_others_move_when_one_endpoint_goes() {
        for (count, size, most) in [(10, 1021, 0.05), (10, 16381, 0.02), (100, 16381, 0.04), (100, 65537, 0.02)] {
            let before = endpoints(count);
            let mut after = before.clone();
            let gone = after.remove(count as usize / 2).0;
            let tables = [&before, &after].map(|list| by_address(&Maglev::of_endpoints(list, size, SEED), list));
            let stayed = tables[0].iter().zip(&tables[1]).filter(|(old, _)| **old != gone);
            let (moved, all) =
                stayed.fold((0, 0), |(moved, all), (old, new)| (moved + usize::from(old != new), all + 1));
            assert!((moved as f64) < most * f64::from(all), "1 of {count} in {size}: {moved} of {all} moved");
        }
    }

    /// Walks slot by slot, as the paper has it.
    fn walked(endpoints: &[(Permutation, u16)], size: usize) -> Vec<u32> {
        let (mut next, skip): (Vec<_>, Vec<_>) = endpoints.iter().map(|(o, _)| (o.offset, o.skip)).unzip();
        let price = endpoints.iter().map(|(_, weight)| u32::from(*weight)).max().unwrap();
        let (mut slots, mut credit, mut free) = (vec![u32::MAX; size], vec![0; endpoints.len()], size);
        while free > 0 {
            for at in 0..endpoints.len() {
                credit[at] += u32::from(endpoints[at].1);
                if free == 0 || credit[at] < price {
                    continue;
                }
                credit[at] -= price;
                while slots[next[at] as usize] != u32::MAX {
                    next[at] = (next[at] + skip[at]) % size as u32;
                }
                slots[next[at] as usize] = at as u32;
                free -= 1;
            }
        }
        slots
    }

    #[test]
    fn slots_go_where_walking_from_one_to_the_next_puts_them() {
        for (count, size) in [(1, 2), (1, 3), (2, 5), (3, 7), (7, 101), (10, 1021), (300, 1021), (999, 16381)] {
            let order = |n: usize| Permutation::of(&endpoint(n as u32).0, Port::new(80), size, SEED);
            let list: Vec<(Permutation, u16)> = (0..count).map(|n| (order(n), (n % 5 + 1) as u16 * 7)).collect();
            assert_eq!(Maglev::build(&list, size).slots(), walked(&list, size), "{count} in {size}");
        }
    }

    /// The same on every machine and in every process: the table's FNV-1a hash is written down here.
    #[test]
    fn a_table_is_the_same_everywhere() {
        let mut list = weighted(&[1, 2, 3, 5, 8]);
        list.push((Addr::from_v6(*b"\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01"), Port::new(53), 7));
        let table = Maglev::of_endpoints(&list, 1021, SEED);
        let hash = table.slots().iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, &index| {
            (hash ^ u64::from(index)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        assert_eq!(hash, 0xfb50_4154_fcbe_eaf6, "{hash:#x}");
        assert_ne!(table, Maglev::of_endpoints(&list, 1021, SelectionSeed(1, 2)), "another seed, another table");
    }

    #[test]
    fn lookups_of_even_hashes_reach_endpoints_evenly() {
        let table = Maglev::of_endpoints(&endpoints(3), 1021, SEED);
        let mut seen = HashMap::new();
        for n in 0..30_000u64 {
            *seen.entry(table.lookup(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).unwrap()).or_insert(0) += 1;
        }
        assert!(seen.values().all(|&count| (9_700..=10_300).contains(&count)), "{seen:?}");
    }

    #[test]
    fn a_thousand_endpoints_in_the_largest_table_take_milliseconds() {
        let list = endpoints(1000);
        let best = (0..5).map(|_| {
            let start = Instant::now();
            assert_eq!(Maglev::of_endpoints(&list, 65537, SEED).size(), 65537);
            start.elapsed()
        });
        let best = best.min().unwrap();
        println!("65537 slots, 1000 endpoints: {best:?}");
        assert!(best.as_millis() < 100, "{best:?}");
    }
}
