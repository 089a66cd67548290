//! Idle timeouts, by a coarse scan: so many slots a call, round and round.
//!
//! Slots stand in groups. Of each group it is known before which time none of its flows can be too old, so that flows that
//! are open for long are not read again and again: most of a large table are not in the cache, and who reads them takes from
//! packets what is. That time holds however many packets come; what may bring it forward marks the group.

use arrayvec::ArrayVec;

use crate::flow::entry::FlowEntry;
use crate::flow::table::{FlowRef, FlowTable, Removal};
use crate::tables::Timeouts;
use crate::time::Tick;

/// Slots of a group.
pub(crate) const GROUP: u32 = 4;

/// How many flows end together, so that the memory which that touches comes while others are looked at.
const TOGETHER: usize = 16;

/// How many groups ahead of the scan those that are due are asked for: few may be.
const AHEAD: usize = 32;

/// Deadlines are in units of 2^10 ticks (1.07 s).
const UNIT_SHIFT: u32 = 10;
/// How long nobody looks at a group at most, a quarter of what a deadline can tell: 4.9 hours.
const FAR: u32 = 1 << (u16::BITS - 2 + UNIT_SHIFT);

/// By group, when its flows are to be looked at.
#[derive(Debug)]
pub(super) struct Deadlines {
    /// The lower bits of a time in units; 0: now.
    groups: Vec<u16>,
    /// By which they were found.
    timeouts: Timeouts,
}

impl Deadlines {
    /// For so many slots; all are to be looked at.
    pub(super) fn new(slots: usize) -> Self {
        Self { groups: vec![0; slots.div_ceil(GROUP as usize)], timeouts: Timeouts::default() }
    }

    /// Octets that it takes.
    pub(super) fn octets(&self) -> usize {
        size_of_val(self.groups.as_slice())
    }

    /// The flow in this slot is another one, or in another state: it may end sooner.
    #[inline]
    pub(super) fn mark(&mut self, slot: u32) {
        self.groups[(slot / GROUP) as usize] = 0;
    }

    /// Marks all that have slots below `high` where other timeouts hold than did.
    fn follow(&mut self, timeouts: &Timeouts, high: u32) {
        if self.timeouts != *timeouts {
            self.timeouts = *timeouts;
            self.groups[..high.div_ceil(GROUP) as usize].fill(0);
        }
    }

    #[inline]
    fn is_due(&self, group: usize, now: Tick) -> bool {
        self.groups.get(group).is_some_and(|&at| at == 0 || units(now).wrapping_sub(at).cast_signed() >= 0)
    }

    /// Not before the unit that this tick is in.
    #[inline]
    fn set(&mut self, group: usize, at: Tick) {
        let unit = units(at);
        self.groups[group] = if unit == 0 { unit.wrapping_sub(1) } else { unit };
    }
}

#[inline]
fn units(tick: Tick) -> u16 {
    (tick.0 >> UNIT_SHIFT) as u16
}

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
    /// Looks at the next `budget` slots, in whole groups, and ends the flows there that were idle for too long, or of which
    /// `over` says that they are; where it is given, no group is passed over. Gives how many ended. All that are due are
    /// looked at in `slots in use / budget` calls.
    pub fn expire(
        &mut self,
        now: Tick,
        timeouts: &Timeouts,
        budget: usize,
        mut over: Option<&mut dyn FnMut(&FlowEntry) -> bool>,
    ) -> usize {
        let high = self.high_water[0];
        self.deadlines.follow(timeouts, high);
        let mut leaving = Leaving::default();
        for _ in 0..budget.min(high as usize).div_ceil(GROUP as usize) {
            let group = if self.scan < high.div_ceil(GROUP) { self.scan } else { 0 };
            self.scan = group + 1;
            let (first, group) = (group * GROUP, group as usize);
            let is_due = |table: &Self, group| over.is_some() || table.deadlines.is_due(group, now);
            if is_due(self, group + AHEAD) {
                let ahead = self.entries.iter().skip(first as usize + AHEAD * GROUP as usize).take(GROUP as usize);
                ahead.for_each(arena::prefetch);
            }
            if !is_due(self, group) {
                continue;
            }
            let mut left = FAR;
            for slot in first..high.min(first + GROUP) {
                let entry = &self.entries[slot as usize];
                if !entry.is_committed() {
                    continue;
                }
                let (idle, timeout) = (now.since(entry.last_seen()), entry.timeout(timeouts));
                if idle >= timeout || over.as_mut().is_some_and(|over| over(entry)) {
                    leaving.add(self, FlowRef(slot));
                } else {
                    left = left.min(timeout - idle);
                }
            }
            self.deadlines.set(group, Tick(now.0.wrapping_add(left)));
        }
        leaving.end(self);
        leaving.ended
    }
}
