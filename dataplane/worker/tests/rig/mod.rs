//! Workers on NICs in memory, with a deadline for every wait.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use lb::{
    Emission, Now, PortId, Tables, Verdict, WorkerId, counters::Counters, flow::FlowRecord, handshake::Handshakes,
};
use millrace_worker::{Dataplane, DataplaneConfig, Decide, PlannedQueue, StopReport, WorkerPlan};
use publish::Slot;
use xsk::{
    Umem,
    memory::{MemoryQueue, Wire, WireLimits},
};

/// Decides by a function of the worker, the frame, and nothing else: for tests of what is below `lb`.
pub struct Rule {
    pub id: WorkerId,
    pub rule: fn(WorkerId, &mut lb::Frame<'_>) -> Verdict,
    /// Steps of housekeeping that are due.
    pub steps: u32,
    /// Packets of its own on port 0, in the order in which they are due: when, and their only octet.
    pub own: VecDeque<(Now, u8)>,
}

impl Decide for Rule {
    fn process(&mut self, burst: &mut [lb::Frame<'_>], _: Now, _: &Tables, verdicts: &mut [Verdict]) {
        for (frame, verdict) in burst.iter_mut().zip(verdicts) {
            *verdict = (self.rule)(self.id, frame);
        }
    }

    fn housekeep(&mut self, _: Now, _: &Tables) -> bool {
        self.steps = self.steps.saturating_sub(1);
        self.steps > 0
    }

    fn set_overloaded(&mut self, _: bool) {}

    fn emit(&mut self, now: Now, _: &Tables, room: &mut [u8]) -> Option<Emission> {
        let (_, octet) = self.own.pop_front_if(|(due, _)| *due <= now)?;
        room[..60].fill(octet);
        Some(Emission { len: 60, port: PortId(0), to: None })
    }

    fn next_emission(&self) -> Option<Now> {
        self.own.front().map(|(due, _)| *due)
    }

    fn flows(&self) -> usize {
        0
    }

    fn worker(&self) -> WorkerId {
        self.id
    }

    fn counters(&self) -> Counters {
        Counters::default()
    }

    fn handshakes(&self) -> Handshakes {
        Handshakes::default()
    }

    fn export(&self, _: u32, _: u32, _: &mut Vec<FlowRecord>) -> Option<u32> {
        None
    }
}

/// Running workers and the far ends of their queues.
pub struct Rig<D: Decide> {
    pub dataplane: Dataplane<D>,
    /// By worker, then by queue.
    pub wires: Vec<Vec<Wire>>,
    pub frames: usize,
}

pub const NARROW: WireLimits =
    WireLimits { fill_ring: 64, rx_ring: 64, tx_ring: 64, sent_per_kick: 32, delay_completion: false };

/// Plans for workers with these queues, `frames` home frames each, and what `state` makes.
pub fn plans<D>(
    queues: &[&[(u8, WireLimits)]],
    frames: usize,
    mut state: impl FnMut(WorkerId) -> D,
) -> (Umem, Vec<WorkerPlan<MemoryQueue, D>>, Vec<Vec<Wire>>) {
    let (umem, mut all) = Umem::anonymous((frames * queues.len()) as u32, 2048).unwrap();
    let mut plans = Vec::new();
    let mut wires = Vec::new();
    for (id, queues) in queues.iter().enumerate() {
        let (ends, queues) = queues
            .iter()
            .map(|&(port, limits)| {
                let (wire, queue) = Wire::new(&umem, limits);
                (wire, PlannedQueue { port: PortId(port), queue })
            })
            .unzip();
        wires.push(ends);
        let frames = all.split_off(all.len() - frames);
        plans.push(WorkerPlan { core: None, queues, state: state(WorkerId(id as u8)), frames });
    }
    (umem, plans, wires)
}

impl Rig<Rule> {
    /// Workers that decide by `rule`.
    pub fn new(
        queues: &[&[(u8, WireLimits)]],
        frames: usize,
        config: DataplaneConfig,
        rule: fn(WorkerId, &mut lb::Frame<'_>) -> Verdict,
    ) -> Self {
        Rig::with(queues, frames, config, Arc::new(Slot::new(Tables::default())), |id| Rule {
            id,
            rule,
            steps: 0,
            own: VecDeque::new(),
        })
    }
}

impl<D: Decide> Rig<D> {
    /// Workers that decide by what `state` makes.
    pub fn with(
        queues: &[&[(u8, WireLimits)]],
        frames: usize,
        config: DataplaneConfig,
        tables: Arc<Slot<Tables>>,
        state: impl FnMut(WorkerId) -> D,
    ) -> Self {
        let (umem, plans, wires) = plans(queues, frames, state);
        let total = umem.frames() as usize;
        Self { dataplane: Dataplane::start(umem, plans, tables, config).unwrap(), wires, frames: total }
    }

    /// Stops, and says that each frame is in one place.
    pub fn stop(self) -> StopReport<D> {
        let report = self.dataplane.stop();
        assert!(report.frames.balanced(), "frames do not balance: {:?}", report.frames);
        assert_eq!(report.frames.total, self.frames);
        report
    }
}

/// Asks until the answer is yes.
///
/// # Panics
///
/// After half a minute.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::yield_now();
    }
}

/// Puts `packet` on the wire as soon as there is room for it.
pub fn inject(wire: &Wire, packet: &[u8]) {
    until("the wire took a packet", || wire.inject(packet));
}

/// The time as workers see it.
pub fn now() -> Now {
    Now(Duration::from(nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap()).as_nanos() as u64)
}
