//! What a worker owns: its flows, its SNAT ports, its counters. Nobody else reads or writes it while it runs.

use std::fmt;
use std::sync::Arc;

use siphasher::sip::SipHasher13;
use wire::Addr;

use crate::attempts::{Attempts, Budget, Losers};
use crate::counters::Counters;
use crate::flow::{FlowEntry, FlowHash, FlowTable, GROUP};
use crate::fragments::{Fragments, source_key};
use crate::handshake::Handshakes;
use crate::id::WorkerId;
use crate::process::{Admission, Limiter, Plans};
use crate::select::Selector;
use crate::shared::Shared;
use crate::snat::SnatAllocator;
use crate::tables::Tables;
use crate::time::Now;
use crate::time_wait::TimeWaits;

/// TCP resets of our own, a second and at once, of each worker.
pub const RESETS: (u64, u64) = (1000, 100);
/// ICMP errors of our own, a second and at once, of each worker.
pub const ICMP_ERRORS: (u64, u64) = (1000, 100);

/// ICMP errors about flows that were refused, a second and at once, of each worker: apart from the others, which paths
/// need whatever one source does.
pub const REFUSALS: (u64, u64) = (1000, 100);

/// In how many nanoseconds idle flows are looked for in all slots that were ever used, of a table of usual size.
const SCAN_NS: u64 = 2_000_000_000;
/// The largest such table. Beyond it the scan takes longer, for each slot is a cache line that packets might have had.
const SCAN_SLOTS: u64 = 1 << 20;
/// How many times longer at most.
const SCAN_STRETCH: u64 = 4;
/// Most slots looked at in one go: some ten microseconds, which a burst may have to wait.
const SCAN_MOST: u64 = 1024;

/// How often SNAT blocks and lost attempts are looked after, a few of them each time.
const TEND_NS: u64 = 1_000_000;

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
    /// How long endpoints took to answer SYNs.
    pub handshakes: Handshakes,
    /// Which flows may open while there is too much to do.
    pub admission: Admission,
    pub(crate) resets: Limiter,
    pub(crate) icmp_errors: Limiter,
    pub(crate) refusals: Limiter,
    pub(crate) plans: Plans,
    /// SYNs that are not answered yet.
    pub(crate) attempts: Attempts,
    /// How many of them may be sent again.
    pub(crate) retries: Budget,
    /// Endpoints that may answer one that went on to another.
    pub(crate) losers: Losers,
    pub(crate) time_waits: TimeWaits,
    /// Datagrams that come in parts.
    pub(crate) fragments: Fragments,
    /// Up to when idle flows were looked for as fast as they should be.
    scanned: Now,
    tended: Now,
}

impl WorkerState {
    /// Of a worker whose table is `flows`. `seed` is random, and its own.
    #[must_use]
    pub fn new(id: WorkerId, flows: FlowTable, shared: Arc<Shared>, seed: [u8; 16]) -> Self {
        let flow_slots = flows.capacity();
        Self {
            id,
            snat: SnatAllocator::new(&flows, seed),
            // Another number than the ports are drawn with: choices of endpoints can be watched.
            selector: Selector::new(SipHasher13::new_with_key(&seed).hash(b"selection")),
            fragments: Fragments::new(id, shared.workers(), common_secret(&flows), fragment_start(&seed)),
            flows,
            attempts: Attempts::new(),
            retries: Budget::new(shared.workers()),
            losers: Losers::new(),
            shared,
            counters: Counters::default(),
            handshakes: Handshakes::default(),
            admission: Admission::default(),
            resets: Limiter::new(RESETS.0, RESETS.1),
            icmp_errors: Limiter::new(ICMP_ERRORS.0, ICMP_ERRORS.1),
            refusals: Limiter::new(REFUSALS.0, REFUSALS.1),
            plans: Plans::new(),
            time_waits: TimeWaits::new(flow_slots),
            scanned: Now(0),
            tended: Now(0),
        }
    }

    /// Ends some of the flows that were idle for too long, and claims and gives back SNAT ports. Called after a burst, and now and
    /// then without one; each call takes some ten microseconds at most. Says whether more is due: who has nothing better
    /// to do then calls it again, so that the scan keeps its pace however rarely packets come.
    pub fn housekeep(&mut self, now: Now, tables: &Tables) -> bool {
        self.fragments.expire(now.tick());
        if now.0.saturating_sub(self.tended.0) >= TEND_NS {
            self.tend(now, tables);
        }
        let used = self.flows.used_slots() as u64;
        let scan_ns = SCAN_NS * (used / SCAN_SLOTS).clamp(1, SCAN_STRETCH);
        let elapsed = now.0.saturating_sub(self.scanned.0).min(scan_ns);
        // Below 2^33 ns times 2^30 slots.
        let due = elapsed * used / scan_ns;
        // Of a table that has no group, all.
        let group = used.clamp(1, GROUP.into());
        if due < group {
            return false;
        }
        let budget = due.min(SCAN_MOST).next_multiple_of(group).min(used);
        // What a step left out stays due, and what it did ahead is done; what is older than a whole scan is not done twice.
        self.scanned = Now(now.0 - elapsed + budget * scan_ns / used);
        // Those of an endpoint whose drain is over, which may be silent.
        let mut over = |flow: &FlowEntry| tables.backend(flow.backend_id()).is_none();
        let over: Option<&mut dyn FnMut(&FlowEntry) -> bool> = if tables.drains_over { Some(&mut over) } else { None };
        self.counters.flows_closed += self.flows.expire(now.tick(), &tables.timeouts, budget as usize, over) as u64;
        budget < due
    }

    /// Looks after what flows leave behind.
    fn tend(&mut self, now: Now, tables: &Tables) {
        self.tended = now;
        self.snat.tend(&tables.snat, &self.flows, now.tick());
        let (directory, id) = (&self.shared.directory, self.id);
        self.losers.sweep(now.tick(), &mut |loser| loser.give_back(directory, id));
    }

    /// The counters, with what the flow table counts by itself.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let evicted = self.flows.evicted();
        Counters {
            flows_evicted: evicted,
            flows_closed: self.counters.flows_closed + evicted,
            fragments_given_up: self.fragments.given_up(),
            ..self.counters
        }
    }
}

/// A secret that all workers have, and nobody else.
fn common_secret(flows: &FlowTable) -> [u64; 2] {
    let FlowHash(hash) = flows.hash(&source_key(&Addr::UNSPECIFIED));
    [hash, !hash]
}

fn fragment_start(seed: &[u8; 16]) -> u64 {
    SipHasher13::new_with_key(seed).hash(b"identification")
}

impl fmt::Debug for WorkerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerState").field("id", &self.id).field("flows", &self.flows.len()).finish_non_exhaustive()
    }
}
