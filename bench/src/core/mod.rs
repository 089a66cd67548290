//! Case `core`: all that userspace does with packets of established flows, in memory on mock rings.
//!
//! A real worker runs on its thread: it receives bursts, parses, looks up, rewrites, counts, reads the clock, refreshes
//! the flow, sends and refills. Beside it, turn by turn, the floor does its loop over the same packets.

mod floor;

use std::sync::Arc;
use std::time::{Duration, Instant};

use ::wire::Protocol;
use arena::Slab;
use lb::PortId;
use lb::flow::Pages;
use publish::Slot;
use worker::{Dataplane, DataplaneConfig, Idle, PlannedQueue, WorkerPlan};
use xsk::Umem;

use crate::clock::cpu_time;
use crate::figure::Figure;
use crate::gateway::{self, Shape};
use crate::rings::{TimedQueue, Together};
use crate::traffic::Traffic;

use floor::Floor;

/// Frames of the UMEM.
const FRAMES: u32 = 4096;
const FRAME_SIZE: u32 = 2048;
/// How long one run may take at most.
const DEADLINE: Duration = Duration::from_secs(300);

/// What to run.
pub struct Core {
    /// What packets are of.
    pub shape: Shape,
    /// Octets of a packet, without the frame check sequence.
    pub size: usize,
    /// Which pages flows, their index and the floor's table are on.
    pub pages: Pages,
    /// Packets of a run.
    pub packets: usize,
    /// Counted runs.
    pub runs: usize,
    /// Whether to run the floor too.
    pub floor: bool,
}

impl Core {
    /// What is run, in a word or three.
    pub fn variant(&self) -> String {
        let protocol = if self.shape.protocol == Protocol::UDP { "udp" } else { "tcp" };
        let family = if self.shape.ipv6 { "6" } else { "" };
        let pages = gateway::suffix(self.pages);
        format!("{protocol}{family} {}{pages}", self.size + 4)
    }

    /// Nanoseconds a packet with so many flows; with the floor, its own and the ratio.
    pub fn run(&self, flows: usize) -> Vec<Figure> {
        let (tables, mut state) = gateway::make(self.shape, flows, self.pages);
        let mut traffic = Traffic::open(self.shape, flows, self.size, &tables, &mut state);
        let mut floor = self.floor.then(|| self.floor(&traffic));
        let slot = Arc::new(Slot::new(tables));
        let mut held = Some(state);
        let (mut whole, mut least, mut ratio) = (Vec::new(), Vec::new(), Vec::new());
        // The first turn warms up.
        for turn in 0..=self.runs {
            let state = held.take().expect("each turn gives it back");
            let seed = turn as u64 + 1;
            let beside = floor.as_mut().map_or(0.0, |floor| {
                traffic.restart(seed);
                self.pass_floor(floor, &mut traffic)
            });
            traffic.restart(seed);
            let (ns, state) = self.pass(&slot, state, &traffic);
            held = Some(state);
            if turn > 0 {
                whole.push(ns);
                least.push(beside);
                ratio.push(ns / beside);
            }
        }
        let figure = |name, unit, values| Figure::new("core", flows, name, unit, values).of(self.variant());
        let mut figures = vec![figure("ns_per_packet", "ns", whole)];
        if self.floor {
            figures.push(figure("floor_ns_per_packet", "ns", least));
            figures.push(figure("ratio_to_floor", "", ratio));
        }
        figures
    }

    /// One run of a worker.
    fn pass(
        &self,
        slot: &Arc<Slot<lb::Tables>>,
        state: lb::state::WorkerState,
        traffic: &Traffic,
    ) -> (f64, lb::state::WorkerState) {
        let (umem, frames) = Umem::anonymous(FRAMES, FRAME_SIZE).expect("memory for frames");
        let mut traffic = traffic.clone();
        let write = Box::new(move |room: &mut [u8]| traffic.next(room));
        let (queue, shown) = TimedQueue::new(&umem, frames.len(), self.packets, write, &Together::new(1));
        let plan = WorkerPlan { core: None, queues: vec![PlannedQueue { port: PortId(0), queue }], state, frames };
        let config = DataplaneConfig { idle: Idle::Busy, ..DataplaneConfig::default() };
        let dataplane = Dataplane::start(umem, vec![plan], Arc::clone(slot), config).expect("a thread");
        let deadline = Instant::now() + DEADLINE;
        let timed = loop {
            let timed = *shown.lock().expect("the worker does not panic with the lock");
            if timed.done {
                break timed;
            }
            assert!(Instant::now() < deadline, "the worker does not get on: {timed:?}");
            std::thread::sleep(Duration::from_millis(1));
        };
        let snapshot = dataplane.snapshot();
        let drops: u64 = snapshot.workers.iter().flat_map(|w| w.drops.iter()).map(|(_, count)| count).sum();
        assert_eq!(drops, 0, "packets were dropped: {:?}", snapshot.workers[0].drops);
        let mut report = dataplane.stop();
        assert!(report.frames.balanced(), "{:?}", report.frames);
        let stopped = report.workers.pop().expect("one worker");
        (timed.time.as_nanos() as f64 / timed.packets as f64, stopped.state)
    }

    fn floor(&self, traffic: &Traffic) -> Floor {
        let mut floor = Floor::new(traffic.flows(), self.pages);
        for n in 0..traffic.flows() {
            let forward = traffic.pair(n, false);
            let reply = traffic.pair(n, true);
            floor.insert(forward, (reply.1, reply.0));
            floor.insert(reply, (forward.1, forward.0));
        }
        floor
    }

    fn pass_floor(&self, floor: &mut Floor, traffic: &mut Traffic) -> f64 {
        let frames = FRAMES as usize;
        // Frames begin where those of a UMEM do.
        let mut memory = Slab::<u8>::anonymous(FRAME_SIZE as usize * frames, Pages::Base).expect("memory for frames");
        let (mut packets, mut time) = (0, Duration::ZERO);
        while packets < self.packets {
            let mut rooms: Vec<&mut [u8]> = memory.chunks_exact_mut(FRAME_SIZE as usize).collect();
            for room in &mut rooms {
                traffic.next(room);
            }
            let start = cpu_time();
            let found: usize = rooms.chunks_mut(floor::BURST).map(|burst| floor.process(burst, packets as u32)).sum();
            time += cpu_time() - start;
            assert_eq!(found, frames, "the floor lost flows");
            packets += frames;
        }
        time.as_nanos() as f64 / packets as f64
    }
}
