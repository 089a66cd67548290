//! What opening connections tell of endpoints, shared by all workers: who fails is set aside for a while, and how long
//! an answer usually takes.
//!
//! Two words an endpoint, read where a flow opens and where it is answered, and stored only where that changes something:
//! the word of an endpoint that is well is read and never written. After [`FAILURES`] failures in a row an endpoint is set
//! aside for a second, then for twice as long each time it fails again, up to a minute. When its time is over one connection
//! tries it; the others go on without it until that was answered. Being set aside is advice: selection ignores it where no
//! other endpoint is left. Nothing of this outlives the process.

use arena::{ArenaError, Pages};

use crate::id::BackendId;
use crate::time::Tick;
use crate::words::{
    AtomicU64,
    Ordering::{Acquire, Relaxed},
    Words, in_memory,
};

/// Failures in a row after which an endpoint is set aside.
pub const FAILURES: u64 = 3;
/// For how long at first, and at most.
const SHORTEST_MS: u64 = 1_000;
const LONGEST_MS: u64 = 60_000;
const LONGEST: u32 = Tick::from_millis(LONGEST_MS);
/// Who was well for so long begins with the shortest time again.
const FORGIVEN: u32 = Tick::from_millis(120_000);

/// The state's word: end of the time aside (32 bits), generation (12), failures in a row (8), times set aside (8), two
/// flags.
const GENERATION_SHIFT: u32 = 32;
const FAILURES_SHIFT: u32 = 44;
const TIMES_SHIFT: u32 = 52;
const ASIDE: u64 = 1 << 60;
const TRIED: u64 = 1 << 61;

/// Answers that take less are all alike, for no wait is shorter than three times that.
const LEAST_MS: u64 = 64;
const MOST_MS: u64 = 4_000;
/// A usual time is kept in eighths of a millisecond; each answer counts for an eighth.
const EIGHTH: u64 = 8;

/// How an endpoint stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It gets connections.
    Well,
    /// It is set aside for so many ticks more.
    Aside {
        /// Until one connection may try it.
        left: u32,
    },
    /// One connection may try it, or does.
    Trial,
}

/// How all endpoints stand, by [`BackendId::index`].
pub struct Health {
    words: Words,
}

/// The state's word of one endpoint.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Word(u64);

impl Word {
    fn fresh(id: BackendId) -> Self {
        Self(u64::from(id.generation()) << GENERATION_SHIFT)
    }

    /// What is said of this user of the slot.
    fn of(self, id: BackendId) -> Self {
        if self.0 >> GENERATION_SHIFT & 0xfff == u64::from(id.generation()) { self } else { Self::fresh(id) }
    }

    fn has(self, flag: u64) -> bool {
        self.0 & flag != 0
    }

    fn until(self) -> Tick {
        Tick(self.0 as u32)
    }

    fn failures(self) -> u64 {
        self.0 >> FAILURES_SHIFT & 0xff
    }

    fn times(self) -> u64 {
        self.0 >> TIMES_SHIFT & 0xff
    }

    /// The same user of the slot, with all else anew.
    fn with(self, until: Tick, failures: u64, times: u64, flags: u64) -> Self {
        let generation = self.0 & 0xfff << GENERATION_SHIFT;
        Self(u64::from(until.0) | generation | failures << FAILURES_SHIFT | times << TIMES_SHIFT | flags)
    }

    /// Set aside for the n-th time in a row.
    fn aside(self, times: u64, now: Tick) -> Self {
        self.with(after(now, interval(times)), 0, times, ASIDE)
    }

    /// Ticks of its time aside that are left; none where it seems to have more than that ever is: it passed long ago.
    fn left(self, now: Tick) -> u32 {
        let left = self.until().since(now);
        if left <= LONGEST + Tick::SKEW { left } else { 0 }
    }

    /// Whether the end of its time aside was long ago, which it may seem to be to come after half the range of ticks, or
    /// where another worker brought it back.
    fn is_forgiven(self, now: Tick) -> bool {
        let ago = now.0.wrapping_sub(self.until().0);
        (FORGIVEN..=u32::MAX - Tick::SKEW).contains(&ago)
    }

    fn standing(self, now: Tick) -> Standing {
        match self.left(now) {
            _ if !self.has(ASIDE) => Standing::Well,
            _ if self.has(TRIED) => Standing::Trial,
            0 => Standing::Trial,
            left => Standing::Aside { left },
        }
    }
}

/// How long the n-th time aside is.
fn interval(times: u64) -> u32 {
    Tick::from_millis((SHORTEST_MS << times.saturating_sub(1).min(16)).min(LONGEST_MS))
}

fn after(now: Tick, ticks: u32) -> Tick {
    Tick(now.0.wrapping_add(ticks))
}

impl Health {
    /// For so many endpoints, all well.
    ///
    /// # Errors
    /// [`ArenaError`] if there is no memory.
    pub fn new(backends: usize) -> Result<Self, ArenaError> {
        Ok(Self { words: in_memory(backends.max(1) * 2, Pages::Base)? })
    }

    /// How an endpoint stands.
    #[must_use]
    pub fn standing(&self, id: BackendId, now: Tick) -> Standing {
        self.word(id).map_or(Standing::Well, |word| Word(word.load(Relaxed)).of(id).standing(now))
    }

    /// Whether a connection may go there now; of an endpoint whose time aside is over, to one caller, who is its trial.
    #[must_use]
    pub fn takes(&self, id: BackendId, now: Tick) -> bool {
        let Some(word) = self.word(id) else { return true };
        let seen = word.load(Relaxed);
        let state = Word(seen).of(id);
        if !state.has(ASIDE) {
            return true;
        }
        if state.left(now) > 0 {
            return false;
        }
        // Where nothing is heard of the trial for as long, another one follows.
        let tried = state.with(after(now, interval(state.times())), 0, state.times(), ASIDE | TRIED);
        word.compare_exchange(seen, tried.0, Relaxed, Relaxed).is_ok()
    }

    /// A connection to an endpoint was refused or not answered. Whether it is set aside for that.
    pub fn failed(&self, id: BackendId, now: Tick) -> bool {
        let Some(word) = self.word(id) else { return false };
        let seen = word.load(Relaxed);
        let state = Word(seen).of(id);
        let after = match (state.has(ASIDE), state.has(TRIED)) {
            // Of a connection that was opened before.
            (true, false) => return false,
            (true, true) => state.aside((state.times() + 1).min(16), now),
            (false, _) if state.failures() + 1 < FAILURES => {
                state.with(state.until(), state.failures() + 1, state.times(), 0)
            }
            // Times aside of long ago are forgiven.
            (false, _) if state.is_forgiven(now) || state.times() == 0 => state.aside(1, now),
            (false, _) => state.aside((state.times() + 1).min(16), now),
        };
        // Who stores at the same time tells of another failure, or of an answer.
        word.compare_exchange(seen, after.0, Relaxed, Relaxed).is_ok() && after.has(ASIDE)
    }

    /// An endpoint answered a SYN.
    #[inline]
    pub fn answered(&self, id: BackendId, now: Tick) {
        let Some(word) = self.word(id) else { return };
        let seen = word.load(Relaxed);
        let state = Word(seen).of(id);
        if state.has(ASIDE) || state.failures() > 0 {
            let until = if state.has(ASIDE) { now } else { state.until() };
            let _ = word.compare_exchange(seen, state.with(until, 0, state.times(), 0).0, Relaxed, Relaxed);
        }
    }

    /// Notes how long an answer took.
    #[inline]
    pub fn took(&self, id: BackendId, milliseconds: u64) {
        let Some(word) = self.words.get(id.index() * 2 + 1) else { return };
        let seen = word.load(Relaxed);
        let usual = usual(seen, id);
        let sample = milliseconds.clamp(LEAST_MS, MOST_MS) * EIGHTH;
        let moved = if sample >= usual { usual + (sample - usual) / EIGHTH } else { usual - (usual - sample) / EIGHTH };
        if moved != usual {
            word.store(Word::fresh(id).0 | moved, Relaxed);
        }
    }

    /// How many milliseconds an endpoint usually takes to answer, 64 at least.
    #[must_use]
    #[inline]
    pub fn usual_ms(&self, id: BackendId) -> u64 {
        self.words.get(id.index() * 2 + 1).map_or(LEAST_MS, |word| usual(word.load(Acquire), id).div_ceil(EIGHTH))
    }

    fn word(&self, id: BackendId) -> Option<&AtomicU64> {
        self.words.get(id.index() * 2)
    }
}

/// The usual time that a word tells of this user of the slot, in eighths of a millisecond.
fn usual(word: u64, id: BackendId) -> u64 {
    let known = word as u32 != 0 && Word(word).of(id).0 == word;
    if known { u64::from(word as u32) } else { LEAST_MS * EIGHTH }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const A: BackendId = BackendId::new(3, 1);
    const NEXT_USER: BackendId = BackendId::new(3, 2);
    const START: Tick = Tick(u32::MAX - 100);

    fn health() -> Health {
        Health::new(8).unwrap()
    }

    fn later(ms: u64) -> Tick {
        after(START, Tick::from_millis(ms))
    }

    fn fail(health: &Health, now: Tick) {
        for _ in 0..FAILURES {
            let _ = health.failed(A, now);
        }
    }

    #[test]
    fn failures_in_a_row_set_aside_and_an_answer_between_them_does_not() {
        let health = health();
        for _ in 0..10 {
            assert!(!health.failed(A, START) && !health.failed(A, START));
            assert!(health.takes(A, START));
            health.answered(A, START);
        }
        assert!(!health.failed(A, START) && !health.failed(A, START) && health.failed(A, START));
        assert!(!health.takes(A, START) && !health.takes(A, later(999)));
        assert_eq!(health.standing(A, START), Standing::Aside { left: Tick::from_millis(1000) });
        assert!(health.takes(BackendId::new(4, 1), START), "another one is well");
    }

    #[test]
    fn one_connection_tries_it_and_its_failure_doubles_the_time_up_to_a_minute() {
        let health = health();
        fail(&health, START);
        let mut at = 0;
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
            assert!(!health.takes(A, later(at + seconds * 1000 - 10)), "{seconds}");
            at += seconds * 1000 + 10;
            assert!(health.takes(A, later(at)), "{seconds}");
            assert_eq!(health.standing(A, later(at)), Standing::Trial);
            assert!(!health.takes(A, later(at)), "one alone");
            assert!(health.failed(A, later(at)));
        }
    }

    #[test]
    fn who_was_set_aside_long_ago_is_tried_also_where_times_have_wrapped() {
        for days in [1, 27, 51] {
            let health = health();
            fail(&health, START);
            let at = later(days * 86_400_000);
            assert_eq!(health.standing(A, at), Standing::Trial, "after {days} days");
            assert!(health.takes(A, at) && !health.takes(A, at), "after {days} days, one");
        }
    }

    #[test]
    fn failures_of_older_connections_do_not_lengthen_the_time() {
        let health = health();
        fail(&health, START);
        (0..100).for_each(|_| assert!(!health.failed(A, later(500))));
        assert!(health.takes(A, later(1010)));
    }

    #[test]
    fn an_answer_brings_it_back_and_who_fails_soon_again_is_set_aside_for_longer() {
        let health = health();
        fail(&health, START);
        health.answered(A, later(100));
        assert_eq!(health.standing(A, later(100)), Standing::Well);
        fail(&health, later(5_000));
        assert!(!health.takes(A, later(6_900)) && health.takes(A, later(7_100)));
        health.answered(A, later(7_200));
        fail(&health, later(200_000));
        assert!(health.takes(A, later(201_100)), "after a long time it is forgiven");
    }

    #[test]
    fn times_aside_are_forgiven_also_where_times_have_wrapped_and_not_by_who_is_a_moment_behind() {
        for (ago_ms, seconds) in [(-1_i64, 2_u64), (5_000, 2), (130_000, 1), (27 * 86_400_000, 1), (51 * 86_400_000, 1)]
        {
            let health = health();
            fail(&health, START);
            let answered = 3_000;
            assert!(health.takes(A, later(answered)));
            health.answered(A, later(answered));
            let at = answered.strict_add_signed(ago_ms);
            fail(&health, later(at));
            let ends = at + seconds * 1_000;
            assert!(!health.takes(A, later(ends - 10)) && health.takes(A, later(ends + 10)), "{ago_ms} ms later");
        }
    }

    #[test]
    fn a_trial_that_nobody_hears_of_is_followed_by_another() {
        let health = health();
        fail(&health, START);
        assert!(health.takes(A, later(1010)));
        assert!(!health.takes(A, later(1500)));
        assert!(health.takes(A, later(2100)));
    }

    #[test]
    fn the_next_user_of_the_slot_begins_well() {
        let health = health();
        fail(&health, START);
        (0..50).for_each(|_| health.took(A, 900));
        assert!(health.takes(NEXT_USER, START));
        assert_eq!(health.usual_ms(NEXT_USER), LEAST_MS);
        assert!(!health.failed(NEXT_USER, START));
        assert_eq!(health.standing(A, START), Standing::Well, "and what is said of the former one is forgotten");
    }

    #[test]
    fn the_usual_time_follows_the_answers_and_short_ones_are_alike() {
        let health = health();
        assert_eq!(health.usual_ms(A), LEAST_MS);
        health.took(A, 1);
        assert_eq!((health.usual_ms(A), health.words[7].load(Relaxed)), (LEAST_MS, 0), "nothing is stored");
        (0..100).for_each(|_| health.took(A, 500));
        assert!((490..=500).contains(&health.usual_ms(A)), "{}", health.usual_ms(A));
        (0..100).for_each(|_| health.took(A, 1));
        assert!((LEAST_MS..=LEAST_MS + 2).contains(&health.usual_ms(A)), "{}", health.usual_ms(A));
    }
}
