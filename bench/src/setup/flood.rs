//! What a flood of SYNs that never complete costs established flows.
//!
//! The table is at its limit, so that each SYN of the flood makes an older half-open flow end. Established flows' packets
//! are drawn at random, both directions alike, first alone, then with a SYN in so many; turn by turn. Workers take all they
//! can, so the decider is told what a worker tells it whose queues stay backed up; and, to compare, what one does that is not.

use lb::flow::Pages;
use wire::Protocol;

use crate::figure::Figure;
use crate::gateway::{self, Shape};
use crate::traffic::Traffic;

use super::burst::Bursts;

/// One packet in so many is a SYN.
const ONE_IN: usize = 10;

/// What to run.
pub struct Flood {
    /// Established flows; the table has room for as many half-open ones.
    pub flows: usize,
    /// Which pages flows, index and directory are on.
    pub pages: Pages,
    /// Packets a run.
    pub packets: usize,
    /// Counted runs.
    pub runs: usize,
}

impl Flood {
    /// Nanoseconds a packet with and without, and what of their rate established flows lose.
    pub fn run(&self) -> Vec<Figure> {
        eprintln!("setup: {} established flows, a SYN in {ONE_IN} packets, {} runs", self.flows, self.runs);
        let shape = Shape { ipv6: false, protocol: Protocol::TCP };
        let (tables, mut state) = gateway::with_limit(shape, 2 * self.flows, self.pages);
        let mut traffic = Traffic::open(shape, self.flows, 60, &tables, &mut state);
        let mut bursts = Bursts::new(shape);
        let now = bursts.now();
        bursts.open(self.flows, now, &tables, &mut state);
        let mut alone = Vec::new();
        let mut floods =
            [("SYN flood, 10%", true), ("the same, all let in", false)].map(|kind| (kind, Vec::new(), Vec::new()));
        // The first turn warms up.
        for turn in 0..=self.runs {
            traffic.restart(turn as u64 + 1);
            state.admission.set_overloaded(true);
            let without = bursts.mix(&mut traffic, self.packets, None, now, &tables, &mut state);
            for ((_, overloaded), mixed, lost) in &mut floods {
                state.admission.set_overloaded(*overloaded);
                let with = bursts.mix(&mut traffic, self.packets, Some(ONE_IN), now, &tables, &mut state);
                if turn > 0 {
                    mixed.push(with.ns_a_packet());
                    lost.push((1.0 - with.established_rate() / without.established_rate()) * 100.0);
                }
            }
            if turn > 0 {
                alone.push(without.ns_a_packet());
            }
        }
        assert!(state.counters().flows_evicted > 0, "a flood at the limit evicts");
        let suffix = gateway::suffix(self.pages);
        let figure = |name, unit, values| Figure::new("setup", self.flows, name, unit, values);
        let mut figures = vec![figure("established_ns_per_packet", "ns", alone).of(format!("no flood{suffix}"))];
        for ((variant, _), mixed, lost) in floods {
            figures.push(figure("mixed_ns_per_packet", "ns", mixed).of(format!("{variant}{suffix}")));
            figures.push(figure("established_rate_lost", "%", lost).of(format!("{variant}{suffix}")));
        }
        figures
    }
}
