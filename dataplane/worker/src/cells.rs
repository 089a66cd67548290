//! What a worker shows while it runs: numbers that only it writes and anybody reads.

use std::{
    array,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use lb::{DropReason, PortId, counters::Counters, handshake::Handshakes};
use xsk::QueueStatistics;

use crate::residence::Residence;

/// A number with one writer, so that adding is a load and a store instead of a locked instruction.
#[derive(Debug, Default)]
pub(crate) struct Cell(AtomicU64);

impl Cell {
    /// Adds `n`. Only the owner may call this.
    #[inline]
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Sets it. Only the owner may call this.
    #[inline]
    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    #[inline]
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// How many reasons for a drop there are.
pub(crate) const REASONS: usize = DropReason::ALL.len();

/// Everything that one worker shows. Aligned so that no other worker's cells share a line with it.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Cells {
    pub(crate) drops: [Cell; REASONS],
    /// Frames given to other workers, for a decision or to transmit.
    pub(crate) handed_sent: Cell,
    /// Frames taken from other workers.
    pub(crate) handed_received: Cell,
    /// Frames that a full ring refused.
    pub(crate) handed_full: Cell,
    /// Foreign frames sent home.
    pub(crate) sent_home: Cell,
    pub(crate) flows: Cell,
    pub(crate) counters: [Cell; Counters::LEN],
    /// In the order of [`Handshakes::values`].
    pub(crate) handshakes: [Cell; Handshakes::LEN],
    /// Nanoseconds in rounds that had work.
    pub(crate) busy_ns: Cell,
    /// Share of the last second or so that was busy, in millionths.
    pub(crate) busy_ppm: Cell,
    /// Times that it blocked.
    pub(crate) sleeps: Cell,
    /// Times that another thread's eventfd write ended a sleep.
    pub(crate) woken: Cell,
    /// Home frames at hand, neither filled nor under way.
    pub(crate) spare_frames: Cell,
    pub(crate) queues: Box<[QueueCells]>,
    pub(crate) residence: Residence,
}

/// What is shown of one queue.
#[derive(Debug)]
pub(crate) struct QueueCells {
    pub(crate) port: PortId,
    pub(crate) zero_copy: bool,
    pub(crate) received_packets: Cell,
    pub(crate) received_bytes: Cell,
    pub(crate) sent_packets: Cell,
    pub(crate) sent_bytes: Cell,
    pub(crate) held: Cell,
    pub(crate) in_flight: Cell,
    statistics: [Cell; 7],
}

impl Cells {
    /// For a worker with these queues: port, and whether it is zero-copy.
    pub(crate) fn new(queues: impl Iterator<Item = (PortId, bool)>) -> Self {
        Self {
            drops: array::from_fn(|_| Cell::default()),
            handed_sent: Cell::default(),
            handed_received: Cell::default(),
            handed_full: Cell::default(),
            sent_home: Cell::default(),
            flows: Cell::default(),
            counters: array::from_fn(|_| Cell::default()),
            handshakes: array::from_fn(|_| Cell::default()),
            busy_ns: Cell::default(),
            busy_ppm: Cell::default(),
            sleeps: Cell::default(),
            woken: Cell::default(),
            spare_frames: Cell::default(),
            queues: queues.map(|(port, zero_copy)| QueueCells::new(port, zero_copy)).collect(),
            residence: Residence::new(),
        }
    }
}

impl QueueCells {
    fn new(port: PortId, zero_copy: bool) -> Self {
        Self {
            port,
            zero_copy,
            received_packets: Cell::default(),
            received_bytes: Cell::default(),
            sent_packets: Cell::default(),
            sent_bytes: Cell::default(),
            held: Cell::default(),
            in_flight: Cell::default(),
            statistics: array::from_fn(|_| Cell::default()),
        }
    }

    /// Shows what the kernel counts. Only the owner may call this.
    pub(crate) fn set_statistics(&self, now: &QueueStatistics) {
        let values = [
            now.rx_dropped,
            now.rx_invalid_descs,
            now.tx_invalid_descs,
            now.rx_ring_full,
            now.rx_fill_ring_empty_descs,
            now.tx_ring_empty_descs,
            now.kick_errors,
        ];
        for (cell, value) in self.statistics.iter().zip(values) {
            cell.set(value);
        }
    }

    pub(crate) fn statistics(&self) -> QueueStatistics {
        let [rx_dropped, rx_invalid_descs, tx_invalid_descs, rx_ring_full, fill_empty, tx_empty, kick_errors] =
            array::from_fn(|at| self.statistics[at].get());
        QueueStatistics {
            rx_dropped,
            rx_invalid_descs,
            tx_invalid_descs,
            rx_ring_full,
            rx_fill_ring_empty_descs: fill_empty,
            tx_ring_empty_descs: tx_empty,
            kick_errors,
        }
    }
}
