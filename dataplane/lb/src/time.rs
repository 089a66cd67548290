//! Time as the dataplane sees it: handed in once a burst, kept in flows as a coarse wrapping tick.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `CLOCK_MONOTONIC`, in nanoseconds since boot, read once a burst by the worker.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Now(pub u64);

/// Workers read the clock once a burst, so what one wrote may seem to another to be of a time to come, by no more than
/// this: one that stands still longer in the middle of a burst has other troubles.
pub(crate) const SKEW_NS: u64 = 1_000_000_000;

impl Now {
    /// The coarse form that a flow keeps.
    #[must_use]
    #[inline]
    pub const fn tick(self) -> Tick {
        Tick((self.0 >> Tick::SHIFT) as u32)
    }
}

/// A point in time in units of 2^20 ns (about 1.05 ms), wrapping after 52 days; only differences mean anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Tick(pub u32);

impl Tick {
    /// Nanoseconds are shifted right by this.
    pub const SHIFT: u32 = 20;

    /// [`SKEW_NS`] in ticks.
    pub(crate) const SKEW: u32 = Self::from_millis(SKEW_NS / 1_000_000);

    /// How many ticks a duration in milliseconds has, rounded up.
    #[must_use]
    pub const fn from_millis(millis: u64) -> u32 {
        (millis * 1_000_000).div_ceil(1 << Self::SHIFT) as u32
    }

    /// Ticks from `earlier` to `self`; 0 if `earlier` is the later one by less than half the range.
    #[must_use]
    #[inline]
    pub const fn since(self, earlier: Tick) -> u32 {
        let difference = self.0.wrapping_sub(earlier.0);
        if difference > u32::MAX / 2 { 0 } else { difference }
    }
}
