//! Endpoints that did not answer a SYN in time, by the key that their answer would have: who answers late is reset, and
//! nobody else hears of it.
//!
//! A fixed number of slots in small buckets; a full bucket loses what would end first. In mode `preserve` the key is
//! claimed in the owner directory for as long, so that a late answer comes to the worker that knows of it.

use crate::directory::Directory;
use crate::flow::FlowHash;
use crate::id::{BackendId, WorkerId};
use crate::time::Tick;

const WAYS: usize = 4;
const SLOTS: usize = 4096;
/// How long an answer is awaited: three times what an endpoint takes that was never waited for longer.
const LIFE: u32 = Tick::from_millis(16_000);
/// Slots that one call looks at for what ended.
const SWEEP: usize = 16;

/// An endpoint that may answer late.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Loser {
    /// Of the key of its packets.
    pub hash: FlowHash,
    /// The endpoint.
    pub backend: BackendId,
    /// When the SYN was sent to it.
    pub sent: Tick,
    /// Whether its key is claimed in the owner directory.
    pub claimed: bool,
}

impl Loser {
    /// Gives back what was claimed for it.
    pub(crate) fn give_back(&self, directory: &Directory, worker: WorkerId) {
        if self.claimed {
            directory.release(self.hash.0, worker);
        }
    }
}

/// A worker's losers.
pub(crate) struct Losers {
    slots: Box<[Option<(Loser, Tick)>]>,
    count: usize,
    sweep: usize,
}

impl Losers {
    pub(crate) fn new() -> Self {
        Self { slots: vec![None; SLOTS].into_boxed_slice(), count: 0, sweep: 0 }
    }

    /// Whether there is none.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Remembers one for a while. Gives the one that makes way for it.
    pub(crate) fn add(&mut self, loser: Loser, now: Tick) -> Option<Loser> {
        let ends = Tick(now.0.wrapping_add(LIFE));
        let first = bucket(loser.hash);
        let left = |slot: &Option<(Loser, Tick)>| slot.map_or(0, |(_, ends)| 1 + ends.since(now));
        let place = self.slots[first..first + WAYS].iter_mut().min_by_key(|slot| left(slot))?;
        let former = place.replace((loser, ends)).map(|(former, _)| former);
        self.count += usize::from(former.is_none());
        former
    }

    /// The one whose packets have this key.
    pub(crate) fn find(&self, hash: FlowHash) -> Option<Loser> {
        let first = bucket(hash);
        let mut known = self.slots[first..first + WAYS].iter().flatten().map(|(loser, _)| *loser);
        known.find(|loser| loser.hash == hash)
    }

    /// Looks at a few slots; `ended` sees who is no longer awaited.
    pub(crate) fn sweep(&mut self, now: Tick, ended: &mut dyn FnMut(Loser)) {
        if self.is_empty() {
            return;
        }
        for slot in &mut self.slots[self.sweep..self.sweep + SWEEP] {
            if let Some((loser, _)) = slot.take_if(|(_, ends)| ends.since(now) == 0) {
                self.count -= 1;
                ended(loser);
            }
        }
        self.sweep = (self.sweep + SWEEP) % SLOTS;
    }
}

fn bucket(hash: FlowHash) -> usize {
    (hash.0 >> 32) as usize % (SLOTS / WAYS) * WAYS
}
