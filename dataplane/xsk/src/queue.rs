//! The queue: what a worker sees of a NIC's receive and transmit queue pair.
//!
//! Four rings of AF_XDP (fill, RX, TX, completion) behind five verbs. Frames only ever move between the caller's
//! vectors and the rings, so that the sum stays: see [`Queue::held`].

use std::os::fd::BorrowedFd;

use crate::Frame;

/// The most frames that one call moves.
pub const BURST: usize = 64;

/// One (port, queue) pair of a NIC, real or in memory.
///
/// A queue belongs to one worker. Its methods neither allocate nor block, and only [`Queue::kick`] and
/// [`Queue::statistics`] enter the kernel.
pub trait Queue: Send {
    /// Moves received frames to the end of `into`; returns how many.
    ///
    /// At most `max`, at most [`BURST`], and never more than the spare capacity of `into`, which is not grown.
    fn receive(&mut self, into: &mut Vec<Frame>, max: usize) -> usize;

    /// Moves frames from the front of `frames` to the TX ring; returns how many.
    ///
    /// As many as the ring accepts, at most [`BURST`]; the rest stays, in order. Nothing leaves before
    /// [`Queue::kick`].
    ///
    /// # Panics
    ///
    /// On a frame of length 0, which the kernel would swallow without ever completing it.
    fn send(&mut self, frames: &mut Vec<Frame>) -> usize;

    /// Moves frames whose transmission ended to `pool`, emptied; returns how many.
    ///
    /// At most [`BURST`], and never more than the spare capacity of `pool`.
    fn reclaim(&mut self, pool: &mut Vec<Frame>) -> usize;

    /// Moves frames from the end of `pool` to the fill ring, to be received into; returns how many.
    ///
    /// As many as fit, at most [`BURST`] a call. No more than the RX ring holds are ever outstanding, so that one
    /// queue does not drain the pool of a worker that has several.
    fn refill(&mut self, pool: &mut Vec<Frame>) -> usize;

    /// Makes the kernel work on what was submitted, where it asks for that (need_wakeup).
    ///
    /// One system call may transmit as few as 32 frames, so it is repeated while the TX ring drains, and the caller
    /// calls again while frames are in flight. Without anything to do it is two memory reads.
    ///
    /// Says whether the kernel took all that was submitted; where it did not, nothing tells when it will.
    fn kick(&mut self) -> bool;

    /// What to poll for readability while idle, if there is anything.
    fn fd(&self) -> Option<BorrowedFd<'_>>;

    /// Frames submitted to TX and not yet reclaimed.
    fn in_flight(&self) -> usize;

    /// All frames that this queue holds: filled, received but not taken, in TX, completed but not reclaimed.
    fn held(&self) -> usize;

    /// The kernel's counters of this socket since it was bound (`XDP_STATISTICS`).
    fn statistics(&self) -> QueueStatistics;

    /// Whether the driver moves frames without copying, as `XDP_OPTIONS` has it.
    fn zero_copy(&self) -> bool;

    /// Whether frames can be sent by it. A receive queue beyond the NIC's last transmit queue only receives.
    fn can_send(&self) -> bool {
        true
    }
}

/// `struct xdp_statistics` of `linux/if_xdp.h`, plus the wake-ups that failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStatistics {
    /// Dropped for other reasons than those below, for example too long for a frame.
    pub rx_dropped: u64,
    /// Dropped because a fill descriptor was invalid. Anything but 0 is a bug here.
    pub rx_invalid_descs: u64,
    /// Dropped because a TX descriptor was invalid. Anything but 0 is a bug here and has lost a frame.
    pub tx_invalid_descs: u64,
    /// Dropped because the RX ring was full.
    pub rx_ring_full: u64,
    /// Times that the kernel wanted a fill descriptor and there was none.
    pub rx_fill_ring_empty_descs: u64,
    /// Times that the kernel wanted a TX descriptor and there was none.
    pub tx_ring_empty_descs: u64,
    /// Wake-ups that the kernel refused with something else than "again", "busy" or "no buffers".
    pub kick_errors: u64,
}
