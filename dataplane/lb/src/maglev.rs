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
    /// If `size` is not prime (then a permutation could miss slots, and this run forever), or is 2^17 or more, or one of the
    /// primes from 52,697 on whose multiples miss 2^64 by too much to be walked as this does it; of the sizes that
    /// tables have none is.
    #[must_use]
    pub fn build(endpoints: &[(Permutation, u16)], size: usize) -> Self {
        Self::fill(endpoints.iter().enumerate().map(|(at, &(order, weight))| (at as u32, order, weight)), size)
    }

    fn fill(endpoints: impl Iterator<Item = (u32, Permutation, u16)>, size: usize) -> Self {
        assert!(is_prime(size) && size < 1 << LARGEST, "a Maglev table's size is prime, and below 2^17");
        match size {
            ..0x400 => Filling::<10>::whole(endpoints, size),
            0x400..0x4000 => Filling::<14>::whole(endpoints, size),
            _ => Filling::<LARGEST>::whole(endpoints, size),
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

    /// The endpoints of all slots in their order, from the one on that [`Maglev::lookup`] looks at.
    pub fn from_slot_of(&self, hash: u64) -> impl Iterator<Item = usize> {
        let first = ((u128::from(hash) * self.slots.len() as u128) >> 64) as usize;
        let (before, after) = self.slots.split_at_checked(first).unwrap_or_default();
        after.iter().chain(before).map(|&index| index as usize)
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

/// Slots on a circle of 2^64, as far from each other as can be: a walk along a permutation comes round by itself.
///
/// A slot's place is so many times `unit`, which is 2^64 / size rounded to the nearest, and a little more, see below. Each
/// time a walk comes round it is off by `size * unit - 2^64`, and it comes round less than once a step, of which there
/// are no more than slots. It tells slots apart by which of 2^`BITS` equal arcs a place is in, as many as slots at least.
/// Multiples of 2^64 / size are on an arc's bound (slot 0) or 2^(64 - BITS) / size from one at least; places begin half of that
/// after their slot, so that they stay in their arc as long as what they are off by, with what rounding adds, is less.
#[derive(Clone, Copy)]
struct Circle<const BITS: u32> {
    size: u64,
    unit: u64,
}

impl<const BITS: u32> Circle<BITS> {
    fn of(size: usize) -> Self {
        let size = size as u64;
        let unit = ((1 << 64) / u128::from(size) + u128::from(size / 2 < (u64::MAX % size + 1) % size)) as u64;
        let circle = Self { size, unit };
        let off = unit.wrapping_mul(size).cast_signed().unsigned_abs();
        assert!((size + 1) * off < circle.half(), "a table of {size} slots can't be walked in steps of {unit} / 2^64");
        circle
    }

    /// Half of 2^(64 - BITS) / size: how far behind a multiple of 2^64 / size its slot's place is.
    fn half(self) -> u64 {
        (1 << (63 - BITS)) / self.size
    }

    fn place(self, slot: u32) -> u64 {
        self.distance(slot) + self.half()
    }

    fn distance(self, slots: u32) -> u64 {
        u64::from(slots) * self.unit
    }

    fn slot(self, place: u64) -> u32 {
        ((u128::from(place) * u128::from(self.size)) >> 64) as u32
    }

    /// Which of the arcs.
    fn arc(place: u64) -> usize {
        (place >> (64 - BITS)) as usize
    }
}

/// A table being filled, of at most 2^`BITS` slots. What costs is the branches that depend on where free slots are, so several
/// places of a permutation are looked at together, without one; an octet a place is what that takes least for.
struct Filling<const BITS: u32> {
    circle: Circle<BITS>,
    turns: Vec<Turn>,
    /// Whose turn it is.
    at: usize,
    /// The largest weight.
    price: u32,
    slots: Vec<u32>,
    /// Arc of the circle → [`FREE`] or [`TAKEN`]; there is a slot in it at most.
    taken: Vec<u8>,
    /// How many slots are free.
    free: usize,
}

const FREE: u8 = 0;
const TAKEN: u8 = 1;
/// Tables have less than 2 to the power of this slots.
const LARGEST: u32 = 17;

impl<const BITS: u32> Filling<BITS> {
    fn whole(endpoints: impl Iterator<Item = (u32, Permutation, u16)>, size: usize) -> Maglev {
        let circle = Circle::of(size);
        let turns: Vec<Turn> = endpoints
            .filter(|&(_, _, weight)| weight > 0)
            .map(|(index, order, weight)| Turn::new(index, order, weight, circle))
            .collect();
        let Some(price) = turns.iter().map(|turn| turn.weight).max() else {
            return Maglev::default();
        };
        let (slots, taken) = (vec![0; size], vec![FREE; 1 << BITS]);
        let mut filling = Self { circle, turns, at: 0, price, slots, taken, free: size };
        // The fewer are free, the more are looked at together.
        filling.walk::<2>(size / 3 * 2);
        filling.walk::<4>(size / 4);
        filling.walk::<8>(size / 8);
        filling.walk::<16>(last_count(size));
        filling.last();
        Maglev { slots: filling.slots }
    }

    /// Goes on until so many slots are free, looking at `N` of a permutation together.
    fn walk<const N: u32>(&mut self, until: usize) {
        // Of a length known at compile time no index needs to be checked.
        let taken = &mut self.taken[..1 << BITS];
        while self.free > until {
            let Some(turn) = next_turn(&mut self.turns, &mut self.at, self.price) else { continue };
            let slot = self.circle.slot(turn.take::<N, BITS>(taken));
            self.slots[slot as usize] = turn.index;
            self.free -= 1;
        }
    }

    /// Goes on until no slot is free.
    fn last(&mut self) {
        let mut last = Last { free: self.free_slots(), circle: self.circle };
        while !last.free.is_empty() {
            let Some(turn) = next_turn(&mut self.turns, &mut self.at, self.price) else { continue };
            let slot = last.take(turn);
            self.slots[slot as usize] = turn.index;
        }
    }

    fn free_slots(&self) -> Vec<u32> {
        const TOGETHER: u32 = 8;
        let size = self.slots.len() as u32;
        let state = |slot: u32| self.taken[Circle::<BITS>::arc(self.circle.place(slot))];
        let mut free = Vec::with_capacity(self.free);
        for first in (0..size).step_by(TOGETHER as usize) {
            let slots = first..(first + TOGETHER).min(size);
            // Most have none, and that is told at once.
            if slots.clone().fold(TAKEN, |all, slot| all & state(slot)) == FREE {
                free.extend(slots.filter(|&slot| state(slot) == FREE));
            }
        }
        free
    }
}

/// Whose turn it is, unless it lacks credit for it.
#[inline]
fn next_turn<'a>(turns: &'a mut [Turn], at: &mut usize, price: u32) -> Option<&'a mut Turn> {
    if *at == turns.len() {
        *at = 0;
    }
    let turn = &mut turns[*at];
    *at += 1;
    turn.credit += turn.weight;
    if turn.credit < price {
        return None;
    }
    turn.credit -= price;
    Some(turn)
}

/// One endpoint while a table is filled.
struct Turn {
    /// The place of its permutation that it tries next.
    next: u64,
    /// How far the one after it is.
    step: u64,
    skip: u32,
    weight: u32,
    /// Below the largest weight after every round.
    credit: u32,
    index: u32,
}

impl Turn {
    fn new<const BITS: u32>(index: u32, order: Permutation, weight: u16, circle: Circle<BITS>) -> Self {
        let Permutation { offset, skip } = order;
        let (next, step) = (circle.place(offset), circle.distance(skip));
        Self { next, step, skip, weight: weight.into(), credit: 0, index }
    }

    /// Takes its next free place; there must be one. Looks at `N` together, fewer than 32.
    #[inline]
    fn take<const N: u32, const BITS: u32>(&mut self, taken: &mut [u8]) -> u64 {
        let mut first = self.next;
        loop {
            // A bit each, the first one's highest.
            let (mut states, mut place) = (0, first);
            for _ in 0..N {
                states = states + states + u32::from(taken[Circle::<BITS>::arc(place)]);
                place = place.wrapping_add(self.step);
            }
            let free = !states << (u32::BITS - N);
            if free != 0 {
                let place = first.wrapping_add(self.step.wrapping_mul(free.leading_zeros().into()));
                taken[Circle::<BITS>::arc(place)] = TAKEN;
                self.next = place.wrapping_add(self.step);
                return place;
            }
            first = place;
        }
    }
}

/// The last free slots. Walking a permutation until one of few is met takes long, and which of them it meets first can be
/// told: each slot's place in the permutation is its distance from where the walk stands, divided by the skip.
struct Last<const BITS: u32> {
    free: Vec<u32>,
    circle: Circle<BITS>,
}

impl<const BITS: u32> Last<BITS> {
    /// The slot that the walk meets first, which is free no longer.
    ///
    /// A slot's place is (slot - next) / skip modulo the size. What is compared is that many units of the circle, where
    /// arithmetic is modulo the size but for what comes of rounding: less than size² to either side, which is less than
    /// half a unit.
    fn take(&mut self, turn: &mut Turn) -> u32 {
        let scale = self.circle.distance(inverse(turn.skip, self.circle.size as u32));
        let origin = scale.wrapping_mul(self.circle.slot(turn.next).into());
        let mut nearest = (u64::MAX, 0);
        for (i, &slot) in self.free.iter().enumerate() {
            let place = scale.wrapping_mul(slot.into()).wrapping_sub(origin);
            if place < nearest.0 {
                nearest = (place, i);
            }
        }
        let slot = self.free.swap_remove(nearest.1);
        turn.next = self.circle.place(slot).wrapping_add(turn.step);
        slot
    }
}

/// How many slots are the last: about where telling costs as much as walking.
fn last_count(size: usize) -> usize {
    size.isqrt()
}

/// What `n` is to be multiplied by to give 1 modulo a prime that it is no multiple of (Euclid's algorithm, extended).
fn inverse(n: u32, prime: u32) -> u32 {
    let (mut old, mut rest) = (prime, n);
    let (mut old_factor, mut factor) = (0i32, 1i32);
    while rest > 1 {
        let quotient = old / rest;
        (old, rest) = (rest, old % rest);
        (old_factor, factor) = (factor, old_factor - quotient as i32 * factor);
    }
    if factor < 0 { prime.wrapping_add_signed(factor) } else { factor as u32 }
}

fn is_prime(n: usize) -> bool {
    n >= 2 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};
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
        for (count, size) in [
            (1, 2),
            (1, 3),
            (2, 5),
            (3, 7),
            (7, 101),
            (10, 1021),
            (300, 1021),
            (999, 16381),
            (1, 16381),
            (1, 65537),
            (70, 65537),
        ] {
            let order = |n: usize| Permutation::of(&endpoint(n as u32).0, Port::new(80), size, SEED);
            let list: Vec<(Permutation, u16)> = (0..count).map(|n| (order(n), (n % 5 + 1) as u16 * 7)).collect();
            assert_eq!(Maglev::build(&list, size).slots(), walked(&list, size), "{count} in {size}");
        }
    }

    /// Along walks of all slots places are in the arcs of their slots, which are each slot's own.
    fn assert_walks<const BITS: u32>(size: usize) {
        let circle = Circle::<BITS>::of(size);
        let arcs: HashSet<usize> = (0..size as u32).map(|slot| Circle::<BITS>::arc(circle.place(slot))).collect();
        assert_eq!(arcs.len(), size);
        for skip in [1, 2, size as u32 / 2, size as u32 - 1] {
            let (mut place, mut slot) = (circle.place(0), 0);
            for _ in 0..size {
                let at = (circle.slot(place), Circle::<BITS>::arc(place));
                assert_eq!(at, (slot, Circle::<BITS>::arc(circle.place(slot))), "{skip} in {size}");
                place = place.wrapping_add(circle.distance(skip));
                slot = (slot + skip) % size as u32;
            }
        }
    }

    #[test]
    fn places_of_any_walk_are_where_their_slots_are() {
        let [small, middle, large] = TABLE_SIZES;
        assert_walks::<10>(small);
        assert_walks::<14>(middle);
        assert_walks::<LARGEST>(large);
    }

    #[test]
    #[should_panic(expected = "can't be walked")]
    fn a_size_whose_multiples_miss_the_circle_by_too_much_is_refused() {
        let _ = Maglev::build(&[(Permutation::new(0, 1, 131_071), 1)], 131_071);
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
    fn an_inverse_times_its_number_is_one() {
        for prime in [2, 3, 5, 101, 65537, 2_097_143u32] {
            for n in (1..prime).step_by(prime as usize / 1000 + 1).chain([prime - 1]) {
                assert_eq!(u64::from(inverse(n, prime)) * u64::from(n) % u64::from(prime), 1, "{n} modulo {prime}");
            }
        }
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
