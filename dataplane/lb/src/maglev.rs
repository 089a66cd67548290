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
#[path = "maglev_tests.rs"]
mod tests;
