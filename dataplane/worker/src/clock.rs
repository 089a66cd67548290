//! `CLOCK_MONOTONIC`, the only clock of the packet path: read here, handed down as [`lb::Now`].

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds since boot; a read of the vDSO, no system call.
#[inline]
pub(crate) fn monotonic_ns() -> u64 {
    // It cannot fail: every kernel that has AF_XDP has this clock.
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}
