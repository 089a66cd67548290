//! Idle timeouts, by a coarse scan: so many slots a call, round and round.

use crate::flow::entry::FlowEntry;
use crate::flow::table::{FlowRef, FlowTable};
use crate::tables::Timeouts;
use crate::time::Tick;

impl FlowTable {
    /// Looks at the next `budget` slots and ends the flows there that were idle for too long; `closed` sees each
    /// before it goes. Gives how many ended. A flow is looked at once in `slots in use / budget` calls.
    pub fn expire(
        &mut self,
        now: Tick,
        timeouts: &Timeouts,
        budget: usize,
        closed: &mut dyn FnMut(&FlowEntry),
    ) -> usize {
        let high = self.high_water[0];
        let mut ended = 0;
        for _ in 0..budget.min(high as usize) {
            let slot = if self.scan < high { self.scan } else { 0 };
            self.scan = slot + 1;
            let entry = &self.entries[slot as usize];
            if entry.is_committed() && now.since(entry.last_seen()) >= entry.timeout(timeouts) {
                closed(entry);
                self.remove(FlowRef(slot));
                ended += 1;
            }
        }
        ended
    }

    /// Ends every flow that `ends` says of among the next `budget` slots from `from` on. Gives where to go on; `None` at
    /// the end. For endpoints whose drain ended, say.
    pub fn end_where(&mut self, from: u32, budget: u32, ends: &mut dyn FnMut(&FlowEntry) -> bool) -> Option<u32> {
        let high = self.high_water[0];
        let end = from.saturating_add(budget.max(1)).min(high);
        for slot in from.min(end)..end {
            let entry = &self.entries[slot as usize];
            if entry.is_committed() && ends(entry) {
                self.remove(FlowRef(slot));
            }
        }
        (end < high).then_some(end)
    }
}
