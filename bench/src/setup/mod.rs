//! Case `setup`: flows that open and end, in memory, by SYNs that go the way that all packets go.
//!
//! A SYN is decided by `lb::process` in bursts of 64: parse, lookup, owner directory, frontend, source count, Maglev, SNAT
//! port, entry, both index places, rewrite. A flow ends by its timeout, in the scan that workers do between bursts
//! (`housekeep`): what opening took is given back. Packets are written while the watch stands still. What a flow takes is
//! its entry, both keys in the index and its share of the owner directory, of one worker.

mod burst;
mod flood;

use std::time::Duration;

use lb::flow::Pages;
use lb::state::WorkerState;
use lb::{Now, Tables};
use wire::Protocol;

use crate::figure::Figure;
use crate::gateway::{self, Shape};
use crate::traffic::Traffic;

pub use burst::Bursts;
pub use flood::Flood;

/// Longer than a flow may stay half open, and far shorter than an established one may be idle.
const ABANDONED: Duration = Duration::from_secs(61);
/// A worker gives up the scan after so many steps without work; more means that the scan does not get on.
const MOST_STEPS: usize = 1 << 22;

/// What to run.
pub struct Setup {
    /// The table's limit.
    pub limit: usize,
    /// Flows opened and ended in a run.
    pub flows: usize,
    /// Which pages flows, index and directory are on.
    pub pages: Pages,
    /// Counted runs.
    pub runs: usize,
}

/// Nanoseconds a flow of one run.
struct Run {
    open: f64,
    end: f64,
}

impl Setup {
    /// An empty table, then one that is nearly full of established flows.
    pub fn run(&self) -> Vec<Figure> {
        let mut figures = Vec::new();
        for filled in [0, self.limit / 100 * 95] {
            eprintln!("setup: {} flows opened and ended at {filled} of {}, {} runs", self.flows, self.limit, self.runs);
            figures.extend(self.at(filled));
        }
        figures
    }

    /// With so many flows that stay.
    fn at(&self, filled: usize) -> Vec<Figure> {
        let shape = Shape { ipv6: false, protocol: Protocol::TCP };
        let (tables, mut state) = gateway::with_limit(shape, self.limit, self.pages);
        let mut bursts = Bursts::new(shape);
        let mut now = bursts.now();
        if filled > 0 {
            // Slots that were used and freed in no order: those next to each other would be in the cache together.
            bursts.open(self.limit, now, &tables, &mut state);
            bursts.end_at_random(&mut state);
            drop(Traffic::open(shape, filled, 60, &tables, &mut state));
            assert_eq!(state.flows.len(), filled);
        }
        let flows = self.flows.min(self.limit - filled);
        // The first run warms up.
        let runs: Vec<Run> = (0..=self.runs).map(|_| one(&mut bursts, flows, &mut now, &tables, &mut state)).collect();
        eprintln!("setup: {} of all SYNs refused by a full directory bucket", bursts.refused);
        let share = format!("{}% of {}{}", filled * 100 / self.limit, self.limit, gateway::suffix(self.pages));
        let figure = |name, unit, value: &dyn Fn(&Run) -> f64| {
            let values = runs.iter().skip(1).map(value).collect();
            Figure::new("setup", self.limit, name, unit, values).of(share.clone())
        };
        let octets = state.flows.octets() + state.shared.directory.octets();
        vec![
            figure("octets_a_flow", "B", &|_| octets as f64 / self.limit as f64),
            figure("open_ns_per_flow", "ns", &|run| run.open),
            figure("end_ns_per_flow", "ns", &|run| run.end),
            figure("flows_per_second", "M/s", &|run| 1000.0 / (run.open + run.end)),
        ]
    }
}

/// Opens flows, lets them become too old, and has them ended.
fn one(bursts: &mut Bursts, flows: usize, now: &mut Now, tables: &Tables, state: &mut WorkerState) -> Run {
    let (before, refused) = (state.flows.len(), bursts.refused);
    let open = bursts.open(flows, *now, tables, state);
    assert_eq!(state.flows.len(), before + flows - (bursts.refused - refused), "the other SYNs open flows");
    *now = Now(now.0 + ABANDONED.as_nanos() as u64);
    let (end, steps) = burst::timed(|| {
        (1..MOST_STEPS).find(|_| {
            state.housekeep(*now, tables);
            state.flows.len() == before || {
                // Time that passes is what drives the scan.
                now.0 += 1_000_000;
                false
            }
        })
    });
    assert!(steps.is_some(), "half-open flows end: {} of {before} are left", state.flows.len());
    let each = |time: Duration| time.as_nanos() as f64 / flows as f64;
    Run { open: each(open), end: each(end) }
}
