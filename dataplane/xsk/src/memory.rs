//! A NIC in memory, so that workers run in tests without a kernel: the same rings, the same frames, the same trait.
//!
//! The [`Wire`] is the far end: it injects packets and collects what was sent. Its [`WireLimits`] make the rings as
//! narrow and as late as real ones get, so that the accounting of frames is exercised. Like a copy-mode socket it sends
//! only when kicked, and not everything at once. Invariant: a frame is in exactly one of the four rings or with the
//! caller; [`Wire`] never holds one.

use std::{
    collections::VecDeque,
    os::fd::BorrowedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{BURST, Frame, Queue, QueueStatistics, Umem};

/// How narrow the rings are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireLimits {
    /// Descriptors in the fill ring, and the most frames outstanding for receiving.
    pub fill_ring: usize,
    /// Descriptors in the RX ring.
    pub rx_ring: usize,
    /// Descriptors in the TX ring; 0: the queue only receives.
    pub tx_ring: usize,
    /// Frames that one [`Queue::kick`] sends at most, 32 in the kernel's copy mode.
    pub sent_per_kick: usize,
    /// Whether sent frames are completed only by [`Wire::complete`], as when a receiver sits on them.
    pub delay_completion: bool,
}

impl Default for WireLimits {
    fn default() -> Self {
        WireLimits { fill_ring: 2048, rx_ring: 2048, tx_ring: 2048, sent_per_kick: 32, delay_completion: false }
    }
}

#[derive(Debug, Default)]
struct Rings {
    fill: VecDeque<Frame>,
    rx: VecDeque<Frame>,
    tx: VecDeque<Frame>,
    /// Sent, held back from the completion ring.
    delayed: VecDeque<Frame>,
    completion: VecDeque<Frame>,
    /// Copies of what was sent.
    sent: VecDeque<Vec<u8>>,
    statistics: QueueStatistics,
    kicks: u64,
}

#[derive(Debug)]
struct Shared {
    umem: Umem,
    limits: WireLimits,
    rings: Mutex<Rings>,
}

impl Shared {
    fn rings(&self) -> MutexGuard<'_, Rings> {
        // A test thread that panicked must not hide behind a poisoned lock.
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The far end of a [`MemoryQueue`]; clones are the same end.
#[derive(Clone, Debug)]
pub struct Wire {
    shared: Arc<Shared>,
}

/// An in-memory [`Queue`].
#[derive(Debug)]
pub struct MemoryQueue {
    shared: Arc<Shared>,
}

impl Wire {
    /// A wire and the queue at its near end, with frames of `umem`.
    #[must_use]
    pub fn new(umem: &Umem, limits: WireLimits) -> (Wire, MemoryQueue) {
        let shared = Arc::new(Shared { umem: umem.clone(), limits, rings: Mutex::default() });
        (Wire { shared: Arc::clone(&shared) }, MemoryQueue { shared })
    }

    /// Puts one packet on the wire. Whether it was received: like a NIC, it drops and counts the packet when the fill
    /// ring is empty, the RX ring is full, or the packet is too long for a frame.
    pub fn inject(&self, packet: &[u8]) -> bool {
        let mut rings = self.shared.rings();
        if rings.rx.len() >= self.shared.limits.rx_ring {
            rings.statistics.rx_ring_full += 1;
            return false;
        }
        let Some(mut frame) = rings.fill.pop_front() else {
            rings.statistics.rx_fill_ring_empty_descs += 1;
            return false;
        };
        if packet.len() > frame.room() {
            rings.statistics.rx_dropped += 1;
            rings.fill.push_front(frame);
            return false;
        }
        self.shared.umem.room_mut(&mut frame)[..packet.len()].copy_from_slice(packet);
        frame.set_len(packet.len());
        rings.rx.push_back(frame);
        true
    }

    /// Takes everything that was sent since the last call, in order.
    #[must_use]
    pub fn collect(&self) -> Vec<Vec<u8>> {
        self.shared.rings().sent.drain(..).collect()
    }

    /// Completes up to `max` frames of a wire with [`WireLimits::delay_completion`]; returns how many.
    pub fn complete(&self, max: usize) -> usize {
        let mut rings = self.shared.rings();
        let count = rings.delayed.len().min(max);
        let done: Vec<Frame> = rings.delayed.drain(..count).collect();
        rings.completion.extend(done);
        count
    }

    /// How often the queue was kicked with frames to send.
    #[must_use]
    pub fn kicks(&self) -> u64 {
        self.shared.rings().kicks
    }

    /// Packets injected and not yet received by the worker.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.shared.rings().rx.len()
    }

    /// Frames in the fill ring: how many packets can be injected now.
    #[must_use]
    pub fn fill_level(&self) -> usize {
        self.shared.rings().fill.len()
    }
}

impl Queue for MemoryQueue {
    fn receive(&mut self, into: &mut Vec<Frame>, max: usize) -> usize {
        let mut rings = self.shared.rings();
        let count = max.min(BURST).min(into.capacity() - into.len()).min(rings.rx.len());
        into.extend(rings.rx.drain(..count));
        count
    }

    fn send(&mut self, frames: &mut Vec<Frame>) -> usize {
        let mut rings = self.shared.rings();
        let free = self.shared.limits.tx_ring - rings.tx.len();
        let count = frames.len().min(BURST).min(free);
        for frame in frames.drain(..count) {
            assert!(frame.len() > 0, "an empty frame to send");
            assert!(self.shared.umem.owns(&frame), "a frame of another UMEM to send");
            rings.tx.push_back(frame);
        }
        count
    }

    fn reclaim(&mut self, pool: &mut Vec<Frame>) -> usize {
        let mut rings = self.shared.rings();
        let count = BURST.min(pool.capacity() - pool.len()).min(rings.completion.len());
        pool.extend(rings.completion.drain(..count).map(|mut frame| {
            frame.reset();
            frame
        }));
        count
    }

    fn refill(&mut self, pool: &mut Vec<Frame>) -> usize {
        let mut rings = self.shared.rings();
        let free = self.shared.limits.fill_ring.saturating_sub(rings.fill.len() + rings.rx.len());
        let count = pool.len().min(BURST).min(free);
        let from = pool.len() - count;
        for frame in pool.drain(from..) {
            assert!(self.shared.umem.owns(&frame), "a frame of another UMEM");
            rings.fill.push_back(frame);
        }
        count
    }

    fn kick(&mut self) -> bool {
        let mut rings = self.shared.rings();
        if rings.tx.is_empty() {
            return true;
        }
        rings.kicks += 1;
        for _ in 0..self.shared.limits.sent_per_kick {
            let Some(frame) = rings.tx.pop_front() else { break };
            let packet = self.shared.umem.packet(&frame).to_vec();
            rings.sent.push_back(packet);
            if self.shared.limits.delay_completion {
                rings.delayed.push_back(frame);
            } else {
                rings.completion.push_back(frame);
            }
        }
        rings.tx.is_empty()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn in_flight(&self) -> usize {
        let rings = self.shared.rings();
        rings.tx.len() + rings.delayed.len() + rings.completion.len()
    }

    fn held(&self) -> usize {
        let rings = self.shared.rings();
        rings.fill.len() + rings.rx.len() + rings.tx.len() + rings.delayed.len() + rings.completion.len()
    }

    fn statistics(&self) -> QueueStatistics {
        self.shared.rings().statistics
    }

    fn zero_copy(&self) -> bool {
        false
    }

    fn can_send(&self) -> bool {
        self.shared.limits.tx_ring > 0
    }
}
