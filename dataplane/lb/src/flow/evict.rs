//! Flows that make way for others where there are as many as may be.

use crate::flow::table::{FlowRef, FlowTable};
use crate::time::Tick;

/// How many slots an eviction looks at.
const SAMPLE: usize = 16;
/// How many at most where none of these may go: flows that are established often stand side by side.
const MOST: usize = 4096;
/// How many openings are refused without a look after none of so many could go: what a look costs all of them is then what
/// a sample costs each.
const PAUSE: u32 = (MOST / SAMPLE) as u32;
/// How many slots ahead of the look are asked for.
const AHEAD: usize = 16;

/// Where a worker is in looking for flows that may go.
#[derive(Debug, Default)]
pub(super) struct Eviction {
    cursor: u32,
    /// Openings that are not to look.
    pause: u32,
    evicted: u64,
}

impl Eviction {
    /// How many flows made way so far.
    pub(super) fn evicted(&self) -> u64 {
        self.evicted
    }
}

impl FlowTable {
    /// Ends a flow that may be ended; `false` if none was found.
    pub(super) fn evict(&mut self, now: Tick) -> bool {
        if self.eviction.pause > 0 {
            self.eviction.pause -= 1;
            return false;
        }
        let high = self.high_water[0];
        let mut best: Option<(u32, u32)> = None;
        for looked in 0..MOST.min(high as usize) {
            if looked >= SAMPLE && best.is_some() {
                break;
            }
            if let Some(ahead) = self.entries.get(self.eviction.cursor as usize + AHEAD) {
                arena::prefetch(ahead);
            }
            self.eviction.cursor = if self.eviction.cursor + 1 < high { self.eviction.cursor + 1 } else { 0 };
            let entry = &self.entries[self.eviction.cursor as usize];
            let goes = entry.state().is_evictable() || entry.is_dispensable();
            if !entry.is_committed() || !goes {
                continue;
            }
            let score = if entry.state().is_closed() { u32::MAX } else { now.since(entry.last_seen()) };
            if best.is_none_or(|(best, _)| score > best) {
                best = Some((score, self.eviction.cursor));
            }
            if score == u32::MAX {
                break;
            }
        }
        let Some((_, slot)) = best else {
            self.eviction.pause = PAUSE;
            return false;
        };
        self.remove(FlowRef(slot));
        self.eviction.evicted += 1;
        true
    }
}
