//! Workers that forward in memory on two cores: of one gateway, or of several that share nothing.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ::wire::Protocol;
use lb::flow::Pages;
use lb::state::WorkerState;
use lb::{PortId, Tables};
use publish::Slot;
use worker::{Dataplane, DataplaneConfig, HandOffCounters, Idle, PlannedQueue, WorkerPlan};
use xsk::{Frame, Umem};

use crate::gateway::{self, Shape};
use crate::rings::{Timed, TimedQueue, Together, Write};
use crate::traffic::Traffic;

/// What packets are of.
pub const SHAPE: Shape = Shape { ipv6: false, protocol: Protocol::TCP };
/// Octets of a packet, without the frame check sequence.
const SIZE: usize = 60;
/// Frames of each worker, which are its packets of a round.
const FRAMES: usize = 4096;
const FRAME_SIZE: u32 = 2048;
/// How long one run may take at most.
const DEADLINE: Duration = Duration::from_secs(300);

/// Workers with flows of their own.
pub struct Gateway {
    slot: Arc<Slot<Tables>>,
    states: Vec<WorkerState>,
    traffic: Vec<Traffic>,
}

/// What its workers are told.
pub struct Orders<'a> {
    /// A worker for each, pinned to it; the gateway may have more.
    pub cores: &'a [usize],
    /// Packets of each.
    pub packets: usize,
    /// How many in a hundred come in at the wrong worker.
    pub wrong: u32,
    /// Of the random sequence of packets.
    pub seed: u64,
}

/// Workers at it.
pub struct Running {
    dataplane: Dataplane,
    shown: Vec<Arc<Mutex<Timed>>>,
}

/// What came of it.
pub struct Outcome {
    /// Of each worker.
    pub timed: Vec<Timed>,
    /// Of all workers.
    pub hand_off: HandOffCounters,
}

impl Gateway {
    /// So many workers with so many flows each, opened by handshakes.
    pub fn open(workers: usize, flows: usize, pages: Pages) -> Self {
        let (tables, mut states) = gateway::with_workers(SHAPE, workers, workers * (flows + flows / 8 + 64), pages);
        let each = states.iter_mut().enumerate();
        let traffic =
            each.map(|(n, state)| Traffic::open_from(n * flows, SHAPE, flows, SIZE, &tables, state)).collect();
        Self { slot: Arc::new(Slot::new(tables)), states, traffic }
    }

    /// Starts as many workers as there are cores.
    pub fn start(&mut self, orders: &Orders<'_>, together: &Arc<Together>) -> Running {
        let count = orders.cores.len();
        let (umem, mut frames) = Umem::anonymous((count * FRAMES) as u32, FRAME_SIZE).expect("memory for frames");
        let (mut plans, mut shown) = (Vec::new(), Vec::new());
        for (worker, state) in self.states.drain(..count).enumerate() {
            let own: Vec<Frame> = frames.drain(..FRAMES).collect();
            let write = write(&self.traffic, worker, orders);
            let (queue, timed) = TimedQueue::new(&umem, FRAMES, orders.packets, write, together);
            shown.push(timed);
            let queues = vec![PlannedQueue { port: PortId(0), queue }];
            plans.push(WorkerPlan { core: Some(orders.cores[worker]), queues, state, frames: own });
        }
        // All that a worker has under way fits into a ring to another, so that a worker that is held up loses nothing.
        let config = DataplaneConfig { idle: Idle::Busy, hand_off_ring: FRAMES, ..DataplaneConfig::default() };
        let dataplane = Dataplane::start(umem, plans, Arc::clone(&self.slot), config).expect("threads");
        Running { dataplane, shown }
    }

    /// Waits until the workers are done and takes their states back.
    ///
    /// # Panics
    /// If a worker fails or loses a packet.
    pub fn end(&mut self, running: Running) -> Outcome {
        let Running { dataplane, shown } = running;
        let timed = shown.iter().map(|shown| wait(shown, &dataplane)).collect();
        let snapshot = dataplane.snapshot();
        for worker in &snapshot.workers {
            let drops: u64 = worker.drops.iter().map(|(_, count)| count).sum();
            assert_eq!(drops, 0, "packets were dropped: {:?}", worker.drops);
        }
        let report = dataplane.stop();
        assert!(report.frames.balanced(), "{:?}", report.frames);
        self.states.splice(..0, report.workers.into_iter().map(|stopped| stopped.state));
        Outcome { timed, hand_off: snapshot.hand_off() }
    }
}

/// Packets for a worker's queue: of its own flows, and as many in a hundred as told of the other worker's.
fn write(traffic: &[Traffic], worker: usize, orders: &Orders<'_>) -> Write {
    let mut own = traffic[worker].clone();
    own.restart(2 * orders.seed);
    let wrong = u64::from(orders.wrong);
    if wrong == 0 {
        return Box::new(move |room| own.next(room));
    }
    let mut other = traffic[(worker + 1) % traffic.len()].clone();
    other.restart(2 * orders.seed + 1);
    let mut random = orders.seed | 1;
    Box::new(move |room| {
        // xorshift64.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        if (random >> 32) * 100 < wrong << 32 { other.next(room) } else { own.next(room) }
    })
}

fn wait(shown: &Mutex<Timed>, dataplane: &Dataplane) -> Timed {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let timed = *shown.lock().unwrap_or_else(PoisonError::into_inner);
        if timed.done {
            return timed;
        }
        assert!(dataplane.failed().is_none(), "{:?}", dataplane.failed());
        assert!(Instant::now() < deadline, "the worker does not get on: {timed:?}");
        // Seldom: both cores are busy, and whoever looks takes the time of one.
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Outcome {
    /// Millions of packets a second: of each worker by the clock on the wall, all workers' rounds together, summed.
    pub fn rate(&self) -> f64 {
        self.timed.iter().map(|timed| timed.packets as f64 / timed.wall_of_all.as_secs_f64() / 1e6).sum()
    }

    /// The same by the workers' processor time until their own packets were done.
    pub fn rate_by_cpu(&self) -> f64 {
        self.timed.iter().map(|timed| timed.packets as f64 / timed.time.as_secs_f64() / 1e6).sum()
    }

    /// Nanoseconds of all workers' processor time for a packet, to the end of each round.
    pub fn ns_a_packet(&self) -> f64 {
        let time: Duration = self.timed.iter().map(|timed| timed.time_of_all).sum();
        time.as_nanos() as f64 / self.packets() as f64
    }

    /// Packets of all workers.
    pub fn packets(&self) -> usize {
        self.timed.iter().map(|timed| timed.packets).sum()
    }

    /// Both, of gateways that share nothing.
    pub fn and(mut self, other: Self) -> Self {
        self.timed.extend(other.timed);
        self
    }
}
