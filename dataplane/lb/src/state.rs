//! What a worker owns: its flows, its SNAT ports, its counters. Nobody else reads or writes it while it runs.

use std::fmt;
use std::sync::Arc;

use siphasher::sip::SipHasher13;

use crate::counters::Counters;
use crate::flow::FlowTable;
use crate::id::WorkerId;
use crate::process::{BURST, Limiter, Parsed};
use crate::select::Selector;
use crate::shared::Shared;
use crate::snat::SnatAllocator;
use crate::tables::Tables;
use crate::time::Now;

/// TCP resets of our own, a second and at once, of each worker.
pub const RESETS: (u64, u64) = (1000, 100);
/// ICMP errors of our own, a second and at once, of each worker.
pub const ICMP_ERRORS: (u64, u64) = (1000, 100);

/// In how many nanoseconds idle flows are looked for in a whole table, where bursts are frequent.
const SCAN_NS: u64 = 2_000_000_000;
/// Most slots looked at in one go: some tens of microseconds.
const SCAN_MOST: usize = 4096;

/// A worker's own state.
pub struct WorkerState {
    /// Which worker.
    pub id: WorkerId,
    /// Its flows.
    pub flows: FlowTable,
    /// Its SNAT ports.
    pub snat: SnatAllocator,
    /// Its part of endpoint selection.
    pub selector: Selector,
    /// What it shares with the others.
    pub shared: Arc<Shared>,
    /// What it did beside forwarding.
    pub counters: Counters,
    pub(crate) resets: Limiter,
    pub(crate) icmp_errors: Limiter,
    /// Room for a burst's first look.
    pub(crate) parsed: Vec<Parsed>,
    /// Up to when idle flows were looked for.
    scanned: Now,
}

impl WorkerState {
    /// Of a worker whose table is `flows`. `seed` is random, and its own.
    #[must_use]
    pub fn new(id: WorkerId, flows: FlowTable, shared: Arc<Shared>, seed: [u8; 16]) -> Self {
        Self {
            id,
            snat: SnatAllocator::new(&flows, seed),
            // Another number than the ports are drawn with: choices of endpoints can be watched.
            selector: Selector::new(SipHasher13::new_with_key(&seed).hash(b"selection")),
            flows,
            shared,
            counters: Counters::default(),
            resets: Limiter::new(RESETS.0, RESETS.1),
            icmp_errors: Limiter::new(ICMP_ERRORS.0, ICMP_ERRORS.1),
            parsed: Vec::with_capacity(BURST),
            scanned: Now(0),
        }
    }

    /// Ends some of the flows that were idle for too long, and gives back SNAT ports. Called after a burst, and now and then without one; each
    /// call takes tens of microseconds at most.
    pub fn housekeep(&mut self, now: Now, tables: &Tables) {
        let elapsed = now.0.saturating_sub(self.scanned.0).min(SCAN_NS);
        let due = u128::from(elapsed) * self.flows.capacity() as u128 / u128::from(SCAN_NS);
        let budget = (due as usize).min(SCAN_MOST);
        if budget == 0 {
            return;
        }
        self.scanned = now;
        self.counters.flows_closed += self.flows.expire(now.tick(), &tables.timeouts, budget, &mut |_| {}) as u64;
        self.snat.release_idle(&self.flows);
    }

    /// The counters, with what the flow table counts by itself.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let evicted = self.flows.evicted();
        Counters { flows_evicted: evicted, flows_closed: self.counters.flows_closed + evicted, ..self.counters }
    }
}

impl fmt::Debug for WorkerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerState").field("id", &self.id).field("flows", &self.flows.len()).finish_non_exhaustive()
    }
}
