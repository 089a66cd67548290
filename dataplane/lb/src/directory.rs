//! The owner directory: which worker owns the flows of a tag, so that one worker alone opens a flow.
//!
//! A fixed table of atomics in buckets of one cache line. A word is `tag (21) | count (4) | owner + 1 (7)`; 0 is free, and
//! no tag is 0. The count says how many flows of this tag its owner has (tags are hashes, and two keys may share one: one
//! flow in half a million finds its tag with another, and is opened by that one's owner); count 0 is a claim under way.
//!
//! Invariant: no two words of a bucket have the same tag and a count above 0, so a tag has at most one owner. A worker
//! that finds its tag nowhere writes a claim under way into a free word, looks at the bucket again, and only then makes
//! the claim count. Of two that do so at once, at least one sees the other's word (both steps are SeqCst): it yields to
//! one that counts or stands in an earlier word, and strikes out one under way in a later word. Whoever is struck out
//! fails to make its claim count, and looks anew. Only its owner changes a word that counts. The only worker, whom nobody
//! can forestall, writes a word that counts at once.

use arena::{ArenaError, Pages};

use crate::id::WorkerId;
#[cfg(loom)]
use crate::words::fence;
use crate::words::{
    AtomicU32, Atomics,
    Ordering::{Release, SeqCst},
    Snapshot, in_memory,
};

/// Words of a bucket: a cache line.
const WAYS: usize = if cfg!(loom) { 2 } else { 16 };
/// Words per flow: a bucket then holds a quarter of its words on average, and overflows about once in a million.
const WORDS_PER_FLOW: usize = 4;
const TAG_SHIFT: u32 = 11;
const COUNT_SHIFT: u32 = 7;
const COUNT_MAX: u32 = (1 << (TAG_SHIFT - COUNT_SHIFT)) - 1;
const OWNER_MASK: u32 = (1 << COUNT_SHIFT) - 1;
const _: () = assert!(WorkerId::MAX <= OWNER_MASK as usize);
/// How often a struck-out claim is made anew before the bucket counts as full.
const ATTEMPTS: usize = 8;

/// What came of a claim.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claim {
    /// The claimer owns the flow's tag, and must release it when the flow ends.
    Won,
    /// This other worker owns it, or is about to.
    Owned(WorkerId),
    /// The bucket has no free word: the flow must not be opened.
    Full,
}

/// The directory; shared by all workers.
pub struct Directory {
    words: Atomics<AtomicU32>,
    buckets: u64,
    /// Whether one worker claims, whom nobody can forestall.
    alone: bool,
}

type Bucket = [AtomicU32; WAYS];

/// A word taken apart.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Word(u32);

impl Word {
    const FREE: Self = Self(0);

    fn new(tag: u32, count: u32, owner: WorkerId) -> Self {
        Self(tag << TAG_SHIFT | count << COUNT_SHIFT | (u32::from(owner.0) + 1))
    }

    fn has_tag(self, tag: u32) -> bool {
        self.0 >> TAG_SHIFT == tag
    }

    fn count(self) -> u32 {
        (self.0 >> COUNT_SHIFT) & COUNT_MAX
    }

    /// Not to be asked of a free word.
    fn owner(self) -> WorkerId {
        WorkerId(((self.0 & OWNER_MASK) - 1) as u8)
    }
}

impl Directory {
    /// A directory for so many flows (two keys each in mode `preserve` still fit well) of so many workers.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn new(flows: usize, workers: usize, pages: Pages) -> Result<Self, ArenaError> {
        let buckets = (flows * WORDS_PER_FLOW).div_ceil(WAYS).max(1);
        Ok(Self { words: in_memory(buckets * WAYS, pages)?, buckets: buckets as u64, alone: workers == 1 })
    }

    /// Octets that it takes.
    #[must_use]
    pub fn octets(&self) -> usize {
        size_of_val(&self.words[..])
    }

    /// Asks for the memory that a claim, release or question to come will touch.
    #[cfg(not(loom))]
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        arena::prefetch(self.place(hash).0);
    }

    /// Claims the tag of a flow's key before the flow is opened. `hash` is the key's keyed hash.
    #[must_use]
    pub fn claim(&self, hash: u64, worker: WorkerId) -> Claim {
        let (bucket, tag) = self.place(hash);
        let under_way = Word::new(tag, 0, worker);
        for _ in 0..ATTEMPTS {
            let (same, free) = with_tag(bucket, tag);
            match counting(bucket, tag, same) {
                Some((at, word)) if word.owner() == worker => return add_one(&bucket[at], word),
                Some((_, word)) => return Claim::Owned(word.owner()),
                None => {}
            }
            let counts = Word::new(tag, 1, worker);
            if self.alone {
                let Some(slot) = bucket.get(free.trailing_zeros() as usize) else { return Claim::Full };
                slot.store(counts.0, Release);
                return Claim::Won;
            }
            let Some(at) = take_free(bucket, free, under_way) else {
                return Claim::Full;
            };
            // The claim under way is written before the bucket is looked at: of two claims, one sees the other. That all
            // of these are SeqCst says so; loom takes them for less and needs the fence.
            #[cfg(loom)]
            fence(SeqCst);
            if let Some(owner) = yields_to(bucket, at, tag) {
                // It may have been struck out by now, and then the word may be another's already.
                let _ = bucket[at].compare_exchange(under_way.0, 0, SeqCst, SeqCst);
                return Claim::Owned(owner);
            }
            if bucket[at].compare_exchange(under_way.0, counts.0, SeqCst, SeqCst).is_ok() {
                return Claim::Won;
            }
        }
        Claim::Full
    }

    /// Gives back what one [`Claim::Won`] gave. Does nothing if `worker` owns no such tag.
    pub fn release(&self, hash: u64, worker: WorkerId) {
        let (bucket, tag) = self.place(hash);
        if let Some((at, word)) = find(bucket, tag).filter(|(_, word)| word.owner() == worker) {
            let less = if word.count() == 1 { Word::FREE } else { Word::new(tag, word.count() - 1, worker) };
            bucket[at].store(less.0, Release);
        }
    }

    /// Who owns the tag of this key.
    #[must_use]
    pub fn owner(&self, hash: u64) -> Option<WorkerId> {
        let (bucket, tag) = self.place(hash);
        find(bucket, tag).map(|(_, word)| word.owner())
    }

    #[inline]
    fn place(&self, hash: u64) -> (&Bucket, u32) {
        let first = ((u64::from(hash as u32) * self.buckets) >> 32) as usize * WAYS;
        let bucket = self.words[first..].first_chunk().expect("buckets are whole");
        // The tag has other bits; no word that is free has one.
        (bucket, ((hash >> (32 + TAG_SHIFT)) as u32).max(1))
    }
}

/// Which words have this tag, and which are free, a bit each: without a branch for each of them.
#[inline]
fn with_tag(bucket: &Bucket, tag: u32) -> (u32, u32) {
    let words = Snapshot::of(bucket);
    (words.matching(u32::MAX << TAG_SHIFT, tag << TAG_SHIFT), words.matching(u32::MAX, Word::FREE.0))
}

/// The place of the lowest bit, and the other bits.
#[inline]
fn each(bits: &mut u32) -> Option<usize> {
    let at = (*bits != 0).then(|| bits.trailing_zeros() as usize)?;
    *bits &= *bits - 1;
    Some(at)
}

/// The word of this tag that counts, if any, and where it is.
fn find(bucket: &Bucket, tag: u32) -> Option<(usize, Word)> {
    counting(bucket, tag, with_tag(bucket, tag).0)
}

/// The same, of those that were seen to have the tag.
#[inline]
fn counting(bucket: &Bucket, tag: u32, mut same: u32) -> Option<(usize, Word)> {
    core::iter::from_fn(|| each(&mut same))
        .map(|at| (at, Word(bucket[at].load(SeqCst))))
        .find(|(_, word)| word.has_tag(tag) && word.count() > 0)
}

/// One flow more on a word that counts and is the caller's own: nobody else changes it.
fn add_one(slot: &AtomicU32, word: Word) -> Claim {
    if word.count() == COUNT_MAX {
        return Claim::Full;
    }
    slot.store(word.0 + (1 << COUNT_SHIFT), Release);
    Claim::Won
}

/// Writes a claim under way into the first of the words that were seen free, and says which.
fn take_free(bucket: &Bucket, mut free: u32, under_way: Word) -> Option<usize> {
    let take = |at: &usize| bucket[*at].compare_exchange(0, under_way.0, SeqCst, SeqCst).is_ok();
    core::iter::from_fn(|| each(&mut free)).find(take)
}

/// Looks at the bucket after a claim under way stands in word `at`: whom it must yield to. Strikes out claims under
/// way in later words.
fn yields_to(bucket: &Bucket, at: usize, tag: u32) -> Option<WorkerId> {
    let mut others = with_tag(bucket, tag).0 & !(1 << at);
    while let Some(other) = each(&mut others) {
        let word = Word(bucket[other].load(SeqCst));
        if !word.has_tag(tag) {
            continue;
        }
        if word.count() > 0 || other < at {
            return Some(word.owner());
        }
        if let Err(now) = bucket[other].compare_exchange(word.0, 0, SeqCst, SeqCst)
            && Word(now).has_tag(tag)
            && Word(now).count() > 0
        {
            return Some(Word(now).owner());
        }
    }
    None
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use super::*;

    const A: WorkerId = WorkerId(0);
    const B: WorkerId = WorkerId(63);

    fn directory(flows: usize) -> Directory {
        Directory::new(flows, 2, Pages::Base).unwrap()
    }

    #[test]
    fn the_first_to_claim_owns_until_it_releases() {
        let directory = directory(100);
        let hash = 0xdead_beef_0000_0001;
        assert_eq!(directory.owner(hash), None);
        assert_eq!(directory.claim(hash, B), Claim::Won);
        assert_eq!(directory.claim(hash, A), Claim::Owned(B));
        assert_eq!(directory.owner(hash), Some(B));
        directory.release(hash, A);
        assert_eq!(directory.owner(hash), Some(B), "only the owner releases");
        directory.release(hash, B);
        assert_eq!((directory.owner(hash), directory.claim(hash, A)), (None, Claim::Won));
    }

    #[test]
    fn a_tag_counts_its_flows() {
        let directory = directory(100);
        assert_eq!((directory.claim(1 << 60, A), directory.claim(1 << 60, A)), (Claim::Won, Claim::Won));
        directory.release(1 << 60, A);
        assert_eq!(directory.claim(1 << 60, B), Claim::Owned(A));
        directory.release(1 << 60, A);
        assert_eq!(directory.owner(1 << 60), None);
        for _ in 0..COUNT_MAX {
            assert_eq!(directory.claim(1 << 60, A), Claim::Won);
        }
        assert_eq!(directory.claim(1 << 60, A), Claim::Full, "a count that is full refuses");
    }

    #[test]
    fn a_full_bucket_refuses_and_frees_again() {
        let directory = directory(1);
        let hash = |n: u64| (n + 1) << 48;
        for n in 0..WAYS as u64 {
            assert_eq!(directory.claim(hash(n), A), Claim::Won);
        }
        assert_eq!(directory.claim(hash(99), A), Claim::Full);
        assert_eq!(directory.claim(hash(3), B), Claim::Owned(A), "what is in it is still found");
        directory.release(hash(3), A);
        assert_eq!(directory.claim(hash(99), A), Claim::Won);
    }

    #[test]
    fn the_only_worker_claims_by_the_same_rules() {
        let directory = Directory::new(1, 1, Pages::Base).unwrap();
        let hash = |n: u64| (n + 1) << 48;
        assert_eq!((directory.claim(hash(0), A), directory.claim(hash(0), A)), (Claim::Won, Claim::Won));
        assert!((1..WAYS as u64).all(|n| directory.claim(hash(n), A) == Claim::Won));
        assert_eq!((directory.claim(hash(99), A), directory.claim(hash(3), A)), (Claim::Full, Claim::Won));
        directory.release(hash(0), A);
        assert_eq!(directory.owner(hash(0)), Some(A), "two flows have its tag");
        directory.release(hash(0), A);
        assert_eq!((directory.owner(hash(0)), directory.claim(hash(99), A)), (None, Claim::Won));
    }

    #[test]
    fn as_many_flows_as_it_is_made_for_fit_and_leave_it_empty() {
        let directory = directory(50_000);
        let hash = |n: u64| n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (n << 7);
        let refused = (0..50_000).filter(|&n| directory.claim(hash(n), A) != Claim::Won).count();
        assert_eq!(refused, 0);
        (0..50_000).for_each(|n| directory.release(hash(n), A));
        assert!(directory.words.iter().all(|word| word.load(SeqCst) == 0));
    }

    #[test]
    fn of_threads_that_claim_at_once_one_wins() {
        let directory = directory(8);
        let barrier = Barrier::new(2);
        let claims = |worker: WorkerId| {
            let mut won = Vec::new();
            for round in 0..5_000u64 {
                barrier.wait();
                won.push(directory.claim(round << 48, worker) == Claim::Won);
                barrier.wait();
                directory.release(round << 48, worker);
            }
            won
        };
        let (a, b) = thread::scope(|scope| {
            let other = scope.spawn(|| claims(B));
            (claims(A), other.join().unwrap())
        });
        assert!(a.iter().zip(&b).all(|(a, b)| a ^ b), "exactly one of them, each time");
    }
}
