//! What workers did so far, read while they run. Sums that were read while they changed may be a burst apart.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use lb::{DropReason, PortId, WorkerId, counters::Counters, handshake::Handshakes};
use xsk::QueueStatistics;

use crate::{cells::Cells, residence};

/// What all workers did so far.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// One a worker, in their order.
    pub workers: Vec<WorkerSnapshot>,
    /// How long frames stayed from RX ring to TX ring, in nanoseconds: a few samples a burst, of all workers.
    pub residence_ns: Histogram<u64>,
    /// How long endpoints took to answer SYNs, of all workers; about a second old at most.
    pub handshakes: Handshakes,
}

/// What one worker did so far.
#[derive(Clone, Debug)]
pub struct WorkerSnapshot {
    /// Which one.
    pub id: WorkerId,
    /// The core that it is pinned to.
    pub core: Option<usize>,
    /// Its queues.
    pub queues: Vec<QueueSnapshot>,
    /// Drops by reason, all of [`DropReason::ALL`] in that order.
    pub drops: Vec<(DropReason, u64)>,
    /// Frames that crossed to or from other workers.
    pub hand_off: HandOffCounters,
    /// Flows that it owns.
    pub flows: u64,
    /// What it counted beside verdicts: names of [`Counters::NAMES`].
    pub counters: Vec<(&'static str, u64)>,
    /// Share of the last second or so that it spent in rounds with work, 0 to 1.
    pub busy_ratio: f64,
    /// Nanoseconds in rounds with work since the start.
    pub busy_ns: u64,
    /// Times that it blocked for want of work.
    pub sleeps: u64,
    /// Sleeps that another thread ended.
    pub woken: u64,
    /// Frames of its own at hand, neither filled nor under way.
    pub spare_frames: u64,
}

/// One queue of a worker.
#[derive(Clone, Copy, Debug)]
pub struct QueueSnapshot {
    /// Its NIC.
    pub port: PortId,
    /// Whether the driver moves frames without copying.
    pub zero_copy: bool,
    /// What came in.
    pub received: Traffic,
    /// What was given to be transmitted.
    pub sent: Traffic,
    /// The kernel's counters, about a second old at most.
    pub statistics: QueueStatistics,
    /// Frames that the queue held, about a second ago at most.
    pub held: u64,
    /// Frames of these in transmission.
    pub in_flight: u64,
}

/// Packets and octets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Octets, Ethernet headers included, checksums not.
    pub bytes: u64,
}

/// One NIC, all its queues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortTraffic {
    /// What came in.
    pub received: Traffic,
    /// What was given to be transmitted.
    pub sent: Traffic,
}

/// Frames that crossed between workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HandOffCounters {
    /// Given to other workers, to be decided or transmitted there.
    pub sent: u64,
    /// Taken from other workers.
    pub received: u64,
    /// Refused by a full ring, and dropped.
    pub full: u64,
    /// Frames of other workers that went home from here.
    pub home: u64,
}

impl Snapshot {
    pub(crate) fn read<'a>(workers: impl Iterator<Item = (Option<usize>, &'a Cells)>) -> Self {
        let mut residence_ns = residence::empty_histogram();
        let mut handshakes = Handshakes::default();
        let workers = workers
            .enumerate()
            .map(|(id, (core, cells))| {
                cells.residence.merge_into(&mut residence_ns);
                handshakes.add(&Handshakes::from_values(std::array::from_fn(|at| cells.handshakes[at].get())));
                WorkerSnapshot::read(WorkerId(id as u8), core, cells)
            })
            .collect();
        Self { workers, residence_ns, handshakes }
    }

    /// Traffic by NIC, over all workers.
    #[must_use]
    pub fn ports(&self) -> BTreeMap<PortId, PortTraffic> {
        let mut ports = BTreeMap::<PortId, PortTraffic>::new();
        for queue in self.workers.iter().flat_map(|worker| &worker.queues) {
            let port = ports.entry(queue.port).or_default();
            port.received.add(queue.received);
            port.sent.add(queue.sent);
        }
        ports
    }

    /// Drops for one reason, over all workers.
    #[must_use]
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.workers.iter().map(|worker| worker.drops[reason as usize].1).sum()
    }

    /// Hand-off over all workers.
    #[must_use]
    pub fn hand_off(&self) -> HandOffCounters {
        self.workers.iter().fold(HandOffCounters::default(), |sum, worker| HandOffCounters {
            sent: sum.sent + worker.hand_off.sent,
            received: sum.received + worker.hand_off.received,
            full: sum.full + worker.hand_off.full,
            home: sum.home + worker.hand_off.home,
        })
    }
}

impl Traffic {
    fn add(&mut self, other: Traffic) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

impl WorkerSnapshot {
    fn read(id: WorkerId, core: Option<usize>, cells: &Cells) -> Self {
        let queue = |queue: &crate::cells::QueueCells| QueueSnapshot {
            port: queue.port,
            zero_copy: queue.zero_copy,
            received: Traffic { packets: queue.received_packets.get(), bytes: queue.received_bytes.get() },
            sent: Traffic { packets: queue.sent_packets.get(), bytes: queue.sent_bytes.get() },
            statistics: queue.statistics(),
            held: queue.held.get(),
            in_flight: queue.in_flight.get(),
        };
        Self {
            id,
            core,
            queues: cells.queues.iter().map(queue).collect(),
            drops: DropReason::ALL.iter().zip(&cells.drops).map(|(&reason, cell)| (reason, cell.get())).collect(),
            hand_off: HandOffCounters {
                sent: cells.handed_sent.get(),
                received: cells.handed_received.get(),
                full: cells.handed_full.get(),
                home: cells.sent_home.get(),
            },
            flows: cells.flows.get(),
            counters: Counters::NAMES.iter().zip(&cells.counters).map(|(&name, cell)| (name, cell.get())).collect(),
            busy_ratio: cells.busy_ppm.get() as f64 / 1e6,
            busy_ns: cells.busy_ns.get(),
            sleeps: cells.sleeps.get(),
            woken: cells.woken.get(),
            spare_frames: cells.spare_frames.get(),
        }
    }
}
