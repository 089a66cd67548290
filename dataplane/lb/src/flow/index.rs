//! Hash of a key → slot of an entry, for the keys of both directions.
//!
//! Buckets of one cache line with eight places. A key is in its first bucket or, when that was full, in a second one
//! that its tag gives from the first; a bucket counts its strays, so a key that is nowhere mostly costs one line.
//! When both are full, one inhabitant moves to its own other bucket, or two do, one after the other. Half of the places
//! at most are used, or four in five by a worker that has all flows though there are others, so that this always finds
//! room in practice; the hash is keyed, so nobody can aim. Lives in memory, rebuilt at load.

use arena::{ArenaError, Pages, Slab, match_tags8, prefetch};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::flow::key::FlowHash;

const WAYS: usize = 8;
/// How many places of how many are used when all flows there may be are here.
const USED_ALONE: (usize, usize) = (1, 2);
const USED_AMONG_OTHERS: (usize, usize) = (4, 5);
/// A place is a slot with this bit for the key of replies.
pub(crate) const REPLY: u32 = 1 << 31;
/// And this one where the key stands in its second bucket.
const AWAY: u32 = 1 << 30;
/// Slots are below this.
pub(crate) const MAX_SLOTS: usize = 1 << 30;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
struct Bucket {
    /// 0: free.
    tags: [u16; WAYS],
    places: [u32; WAYS],
    /// Keys whose first bucket this is and that stand in their second one.
    strays: u32,
    reserved: [u32; 3],
}

#[derive(Debug)]
pub(crate) struct Index {
    buckets: Slab<Bucket>,
}

impl Index {
    /// For the two keys of so many flows; of a worker that is the only one, or one of several, each of which may come to
    /// have all flows and nearly always has its share.
    pub(crate) fn new(flows: usize, alone: bool, pages: Pages) -> Result<Self, ArenaError> {
        let (keys, used) = (2 * flows, if alone { USED_ALONE } else { USED_AMONG_OTHERS });
        let buckets = (keys * used.1).div_ceil(WAYS * used.0).max(2);
        Ok(Self { buckets: Slab::anonymous(buckets, pages)? })
    }

    /// Octets that it takes.
    pub(crate) fn octets(&self) -> usize {
        size_of_val(&self.buckets[..])
    }

    /// A bucket by 32 evenly spread bits.
    #[inline]
    fn nth(&self, bits: u32) -> usize {
        ((u64::from(bits) * self.buckets.len() as u64) >> 32) as usize
    }

    #[inline]
    fn first(&self, hash: FlowHash) -> usize {
        self.nth(hash.0 as u32)
    }

    /// The other bucket of a tag that may stand in this one; its own inverse: the two mirror each other at a place that
    /// the tag gives. (Two buckets of a tag are their own mirrors; such a key has one bucket.)
    #[inline]
    fn other(&self, bucket: usize, tag: u16) -> usize {
        let mirror = self.nth(u32::from(tag).wrapping_mul(0x9e37_79b1));
        if mirror >= bucket { mirror - bucket } else { mirror + self.buckets.len() - bucket }
    }

    #[inline]
    pub(crate) fn prefetch(&self, hash: FlowHash) {
        prefetch(&self.buckets[self.first(hash)]);
    }

    /// The first place that may be the key's, without looking further.
    #[inline]
    pub(crate) fn guess(&self, hash: FlowHash) -> Option<u32> {
        let bucket = &self.buckets[self.first(hash)];
        let hits = match_tags8(&bucket.tags, hash.tag());
        (hits != 0).then(|| bucket.places[hits.trailing_zeros() as usize % WAYS] & !AWAY)
    }

    /// The place among those of this hash that `is_it` accepts.
    #[inline]
    pub(crate) fn find(&self, hash: FlowHash, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        self.locate(hash, &mut is_it).map(|(bucket, way)| self.buckets[bucket].places[way] & !AWAY)
    }

    #[inline]
    fn locate(&self, hash: FlowHash, is_it: &mut impl FnMut(u32) -> bool) -> Option<(usize, usize)> {
        let tag = hash.tag();
        let first = self.first(hash);
        if let Some(way) = self.locate_in(first, tag, is_it) {
            return Some((first, way));
        }
        if self.buckets[first].strays == 0 {
            return None;
        }
        let second = self.other(first, tag);
        self.locate_in(second, tag, is_it).map(|way| (second, way))
    }

    #[inline]
    fn locate_in(&self, at: usize, tag: u16, is_it: &mut impl FnMut(u32) -> bool) -> Option<usize> {
        let bucket = &self.buckets[at];
        let mut hits = match_tags8(&bucket.tags, tag);
        while hits != 0 {
            let way = hits.trailing_zeros() as usize;
            if is_it(bucket.places[way] & !AWAY) {
                return Some(way);
            }
            hits &= hits - 1;
        }
        None
    }

    fn free_way(&self, bucket: usize) -> Option<usize> {
        let free = match_tags8(&self.buckets[bucket].tags, 0);
        (free != 0).then(|| free.trailing_zeros() as usize)
    }

    /// Adds a place that is not there yet. `false`: no room was found.
    #[must_use]
    pub(crate) fn insert(&mut self, hash: FlowHash, place: u32) -> bool {
        let tag = hash.tag();
        let first = self.first(hash);
        let second = self.other(first, tag);
        let found = [first, second].iter().find_map(|&b| Some((b, self.free_way(b)?)));
        let Some((bucket, way)) = found.or_else(|| self.make_room([first, second])) else { return false };
        let away = if bucket == first { 0 } else { AWAY };
        self.buckets[bucket].tags[way] = tag;
        self.buckets[bucket].places[way] = place | away;
        self.buckets[first].strays += u32::from(away != 0);
        true
    }

    /// Frees a way of one of two full buckets by as few moves as will do, of two at most.
    #[cold]
    fn make_room(&mut self, full: [usize; 2]) -> Option<(usize, usize)> {
        let [first, second] = full;
        let way = self.free_by_move(first).map(|way| (first, way));
        let way = way.or_else(|| Some((second, self.free_by_move(second)?)));
        way.or_else(|| full.into_iter().find_map(|bucket| Some((bucket, self.free_by_two_moves(bucket)?))))
    }

    /// Moves an inhabitant of a full bucket to its other one; gives the way that it leaves.
    fn free_by_move(&mut self, bucket: usize) -> Option<usize> {
        let movable = |way: usize| Some((way, self.free_way(self.other(bucket, self.buckets[bucket].tags[way]))?));
        let (way, free) = (0..WAYS).find_map(movable)?;
        self.relocate(bucket, way, free);
        Some(way)
    }

    /// The same where all their other buckets are full: one that makes room in one of those goes before it.
    fn free_by_two_moves(&mut self, bucket: usize) -> Option<usize> {
        for way in 0..WAYS {
            let target = self.other(bucket, self.buckets[bucket].tags[way]);
            if target != bucket
                && let Some(free) = self.free_by_move(target)
            {
                self.relocate(bucket, way, free);
                return Some(way);
            }
        }
        None
    }

    /// Moves an inhabitant to a free way of its other bucket.
    fn relocate(&mut self, bucket: usize, way: usize, free: usize) {
        let (tag, place) = (self.buckets[bucket].tags[way], self.buckets[bucket].places[way]);
        let target = self.other(bucket, tag);
        self.buckets[target].tags[free] = tag;
        self.buckets[target].places[free] = place ^ AWAY;
        if place & AWAY == 0 {
            self.buckets[bucket].strays += 1;
        } else {
            self.buckets[target].strays -= 1;
        }
        self.buckets[bucket].tags[way] = 0;
    }

    /// Takes out a place that is there.
    pub(crate) fn remove(&mut self, hash: FlowHash, place: u32) {
        let Some((bucket, way)) = self.locate(hash, &mut |p| p == place) else {
            return;
        };
        self.buckets[bucket].tags[way] = 0;
        if self.buckets[bucket].places[way] & AWAY != 0 {
            let first = self.first(hash);
            self.buckets[first].strays -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Few buckets and few tags, so that buckets fill, strays move and tags collide.
        #[test]
        fn an_index_is_a_map(ops in prop::collection::vec((any::<bool>(), 0..64u64, 0..4u64), 1..400)) {
            let mut index = Index::new(32, true, Pages::Base).unwrap();
            let mut model: HashMap<u32, FlowHash> = HashMap::new();
            for (insert, low, tag) in ops {
                let place = low as u32;
                let hash = FlowHash((low % 8) << 29 | ((tag + 1) << 32));
                if insert && !model.contains_key(&place) {
                    if index.insert(hash, place) {
                        model.insert(place, hash);
                    }
                } else if let Some(old) = model.remove(&place) {
                    index.remove(old, place);
                }
                for place in 0..64 {
                    let found = model.get(&place).and_then(|&hash| index.find(hash, |p| p == place));
                    prop_assert_eq!(found, model.contains_key(&place).then_some(place));
                }
            }
            for (place, hash) in model {
                index.remove(hash, place);
            }
            prop_assert!(index.buckets.iter().all(|b| b.strays == 0 && b.tags == [0; WAYS]));
        }
    }

    #[test]
    fn for_all_flows_there_always_is_room() {
        let sizes = [(100, 50), (1000, 50), (30_000, 20), (1 << 17, 8)];
        let runs = sizes.into_iter().flat_map(|(flows, seeds)| (1..=seeds).map(move |seed| (flows, seed)));
        for ((flows, seed), alone) in runs.flat_map(|run| [(run, true), (run, false)]) {
            let mut index = Index::new(flows, alone, Pages::Base).unwrap();
            let mut word: u64 = seed;
            for place in 0..2 * flows as u32 {
                word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                assert!(index.insert(FlowHash(word.rotate_left(17) ^ word), place), "{place} of {}", 2 * flows);
            }
        }
    }
}
