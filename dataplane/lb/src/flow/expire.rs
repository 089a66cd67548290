//! Idle timeouts, by a coarse scan: so many slots a call, round and round.

use arrayvec::ArrayVec;

use crate::flow::entry::FlowEntry;
use crate::flow::table::{FlowRef, FlowTable, Removal};
use crate::tables::Timeouts;
use crate::time::Tick;

/// How many flows end together, so that the memory which that touches comes while others are looked at.
const TOGETHER: usize = 16;

/// How many slots ahead of the scan are asked for.
const AHEAD: usize = 16;

/// Flows that are about to end.
#[derive(Default)]
struct Leaving {
    flows: ArrayVec<Removal, TOGETHER>,
    ended: usize,
}

impl Leaving {
    fn add(&mut self, table: &mut FlowTable, flow: FlowRef) {
        if self.flows.is_full() {
            self.end(table);
        }
        self.flows.push(table.removal(flow));
    }

    fn end(&mut self, table: &mut FlowTable) {
        // In a loop of its own: what this costs is walks of the page tables, and only neighbours pass together.
        for removal in &self.flows {
            table.prefetch_removal(removal);
        }
        self.ended += self.flows.len();
        for removal in self.flows.drain(..) {
            table.remove_by(&removal);
        }
    }
}

impl FlowTable {
    /// Looks at the next `budget` slots and ends the flows there that were idle for too long, or of which `over` says that
    /// they are. Gives how many ended. A flow is looked at once in `slots in use / budget` calls.
    pub fn expire(
        &mut self,
        now: Tick,
        timeouts: &Timeouts,
        budget: usize,
        mut over: impl FnMut(&FlowEntry) -> bool,
    ) -> usize {
        let high = self.high_water[0];
        let mut leaving = Leaving::default();
        for _ in 0..budget.min(high as usize) {
            let slot = if self.scan < high { self.scan } else { 0 };
            self.scan = slot + 1;
            if let Some(ahead) = self.entries.get(slot as usize + AHEAD) {
                arena::prefetch(ahead);
            }
            let entry = &self.entries[slot as usize];
            if entry.is_committed() && (now.since(entry.last_seen()) >= entry.timeout(timeouts) || over(entry)) {
                leaving.add(self, FlowRef(slot));
            }
        }
        leaving.end(self);
        leaving.ended
    }
}
