//! SYNs of ever new flows, and the stopwatch around what decides them.

use std::time::Duration;

use arena::{Pages, Slab};
use lb::flow::{Direction, FlowKey, FlowRecord};
use lb::process::{BURST, process};
use lb::state::WorkerState;
use lb::{Frame, Now, PortId, Tables, Verdict};
use wire::{Addr, Port, Ports};

use crate::clock::cpu_time;
use crate::gateway::{self, Shape};
use crate::traffic::{self, Template, Traffic};

/// Frames that are written before the watch starts.
const FRAMES: usize = 4096;
const FRAME_SIZE: usize = 2048;
/// Clients' addresses; each opens one flow after the other, from another port.
const CLIENTS: usize = 100_003;

/// Frames, which begin where those of a UMEM do, and who sends next.
pub struct Bursts {
    shape: Shape,
    syn: Template,
    memory: Slab<u8>,
    next: usize,
    /// SYNs that opened no flow.
    pub refused: usize,
    random: u64,
    /// What [`Bursts::mix`] took so far.
    mixed: Duration,
}

impl Bursts {
    /// For a gateway's shape.
    pub fn new(shape: Shape) -> Self {
        let syn = Template::new(shape, 0, true, false);
        let memory = Slab::anonymous(FRAMES * FRAME_SIZE, Pages::Base).expect("memory for frames");
        Self { shape, syn, memory, next: 0, refused: 0, random: 0x2545_f491_4f6c_dd1d, mixed: Duration::ZERO }
    }

    /// The time that flows are opened at first.
    pub fn now(&self) -> Now {
        traffic::now()
    }

    /// Sends so many SYNs; the time that deciding took. A flow may be refused where its directory bucket is full: one in a
    /// million or so.
    ///
    /// # Panics
    /// If more are refused.
    pub fn open(&mut self, flows: usize, now: Now, tables: &Tables, state: &mut WorkerState) -> Duration {
        let (mut left, mut time) = (flows, Duration::ZERO);
        while left > 0 {
            let count = left.min(FRAMES);
            for at in 0..count {
                self.write_syn(at);
            }
            // Who is refused may be told so: what is sent says nothing.
            let before = state.counters().flows_opened;
            let took = self.decide(count, now, tables, state);
            self.refused += count - (state.counters().flows_opened - before) as usize;
            assert!(self.refused <= 10 + self.next / 10_000, "{} of {} SYNs opened no flow", self.refused, self.next);
            time += took;
            left -= count;
        }
        time
    }

    /// Decides packets of `traffic`, one in so many a SYN of the flood instead.
    pub fn mix(
        &mut self,
        traffic: &mut Traffic,
        packets: usize,
        syns: Option<usize>,
        now: Now,
        tables: &Tables,
        state: &mut WorkerState,
    ) -> Mixed {
        let mut mixed = Mixed { packets: 0, established: 0, time: Duration::ZERO };
        while mixed.packets < packets {
            for at in 0..FRAMES {
                if syns.is_some_and(|one_in| self.draw(one_in) == 0) {
                    self.write_syn(at);
                } else {
                    traffic.next(&mut self.memory[at * FRAME_SIZE..][..FRAME_SIZE]);
                    mixed.established += 1;
                }
            }
            // What is admitted under overload depends on the time that deciding takes.
            let now = Now(now.0 + self.mixed.as_nanos() as u64);
            let took = self.decide(FRAMES, now, tables, state);
            mixed.packets += FRAMES;
            mixed.time += took;
            self.mixed += took;
        }
        mixed
    }

    /// Writes the next client's SYN into a frame; gives its length.
    fn write_syn(&mut self, at: usize) -> usize {
        let n = self.next;
        self.next += 1;
        let host = 0x6440_0000 + (n % CLIENTS) as u32;
        let client = (Addr::from_v4(host.to_be_bytes()), Port::new((1024 + n / CLIENTS % 64_000) as u16));
        let vip = (gateway::vip(self.shape), Port::new(gateway::VIP_PORT));
        self.syn.write(&mut self.memory[at * FRAME_SIZE..][..FRAME_SIZE], client, vip)
    }

    /// Decides the first `count` frames: how long that took.
    fn decide(&mut self, count: usize, now: Now, tables: &Tables, state: &mut WorkerState) -> Duration {
        let rooms = self.memory.chunks_exact_mut(FRAME_SIZE).take(count);
        let mut frames: Vec<Frame<'_>> =
            rooms.map(|room| Frame { room, len: self.syn.len(), port: PortId(0), handed: false }).collect();
        let mut verdicts = [Verdict::Pass; BURST];
        let (time, ()) = timed(|| {
            for burst in frames.chunks_mut(BURST) {
                process(burst, now, tables, state, &mut verdicts[..burst.len()]);
            }
        });
        time
    }

    /// Ends all flows, in an order that has nothing to do with where they are.
    pub fn end_at_random(&mut self, state: &mut WorkerState) {
        let mut flows: Vec<FlowRecord> = Vec::new();
        let mut from = Some(0);
        while let Some(slot) = from {
            from = state.flows.export(slot, 1 << 16, &mut flows);
        }
        for at in (1..flows.len()).rev() {
            flows.swap(at, self.draw(at + 1));
        }
        for flow in flows {
            let key = FlowKey {
                src: flow.client.0,
                dst: flow.vip.0,
                ports: Ports::new(flow.client.1, flow.vip.1),
                protocol: flow.protocol,
            };
            let (found, direction) = state.flows.lookup(state.flows.hash(&key), &key).expect("it was listed");
            assert_eq!(direction, Direction::Forward);
            state.flows.remove(found);
        }
    }

    /// A number below `bound`, by xorshift64.
    pub fn draw(&mut self, bound: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        ((u128::from(self.random) * bound as u128) >> 64) as usize
    }
}

/// What came of packets of several kinds.
pub struct Mixed {
    packets: usize,
    established: usize,
    time: Duration,
}

impl Mixed {
    /// Of all packets.
    pub fn ns_a_packet(&self) -> f64 {
        self.time.as_nanos() as f64 / self.packets as f64
    }

    /// Packets of established flows a second.
    pub fn established_rate(&self) -> f64 {
        self.established as f64 / self.time.as_secs_f64()
    }
}

/// Runs it; how much processor time it took.
pub fn timed<T>(what: impl FnOnce() -> T) -> (Duration, T) {
    let start = cpu_time();
    let result = what();
    (cpu_time() - start, result)
}
