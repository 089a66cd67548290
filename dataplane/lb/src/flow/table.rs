//! A worker's own flows: found by either direction's key, opened and ended here.
//!
//! The table keeps the shared counts right by itself: whoever opens a flow has claimed its directory tags and counted
//! it in for its source; whatever ends it — [`FlowTable::remove`], eviction, time — gives these back. A flow that is
//! closed lingers, for what is still on its way, but counts for its endpoint and its source no longer.
//! Slots are taken last freed first, else next to the high-water mark: pages that were never needed cost nothing.

use std::sync::Arc;

use arena::{ArenaError, Pages, Slab, prefetch};
use wire::{Addr, Head, Plain, Port, TcpFlags};

use crate::flow::allowance::Allowance;
use crate::flow::association::Said;
use crate::flow::entry::FlowEntry;
use crate::flow::evict::Eviction;
use crate::flow::expire::Deadlines;
use crate::flow::index::{Index, MAX_SLOTS, REPLY};
use crate::flow::key::{FlowHash, FlowHasher, FlowKey};
use crate::flow::record::FlowRecord;
use crate::flow::spec::FlowSpec;
use crate::flow::state::Direction;
use crate::id::WorkerId;
use crate::model::Mode;
use crate::shared::Shared;
use crate::sources::SourceHash;
use crate::tally::Tally;
use crate::time::Tick;

/// A flow in its worker's table; good until that flow is removed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowRef(pub(crate) u32);

/// Where a flow may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guess(u32);

impl Guess {
    /// Beyond every slot.
    pub(crate) const NONE: Self = Self(!REPLY);
    /// As well, and the packet is not to open one.
    pub(crate) const REFUSED: Self = Self(!REPLY - 1);

    #[inline]
    pub(crate) fn is_none(self) -> bool {
        self.0 == Self::NONE.0
    }

    #[inline]
    pub(crate) fn is_refused(self) -> bool {
        self.0 == Self::REFUSED.0
    }
}

/// What ending a flow takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Removal {
    flow: FlowRef,
    /// Of its keys.
    hashes: [FlowHash; 2],
    /// Of its source.
    source: SourceHash,
}

/// Why a flow was not opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InsertError {
    /// As many flows as allowed (other workers may have a few of these to spare), and none that may be evicted was found.
    Full,
    /// A flow with one of the keys is there already (in mode `preserve`: the client reaches the same endpoint from the
    /// same port by another frontend).
    Taken,
}

/// A worker's flows.
#[derive(Debug)]
pub struct FlowTable {
    pub(super) worker: WorkerId,
    pub(super) entries: Slab<FlowEntry>,
    /// First slot never used; in the file, so that a successor need not look further.
    pub(super) high_water: Slab<u32>,
    /// The slot below the high-water mark that was freed last; each free one knows the next.
    free: Option<u32>,
    index: Index,
    hasher: FlowHasher,
    shared: Arc<Shared>,
    len: usize,
    allowance: Allowance,
    /// The group of slots that is looked at next.
    pub(super) scan: u32,
    pub(super) deadlines: Deadlines,
    pub(super) eviction: Eviction,
    /// Flows of each SNAT port block.
    block_flows: Vec<u32>,
}

impl FlowTable {
    /// Over a region of a flow file; nothing is adopted yet.
    pub(super) fn over(
        worker: WorkerId,
        entries: Slab<FlowEntry>,
        high_water: Slab<u32>,
        hasher: FlowHasher,
        shared: Arc<Shared>,
        pages: Pages,
    ) -> Result<Self, ArenaError> {
        assert!(entries.len() <= MAX_SLOTS, "a flow table has at most 2^30 slots");
        Ok(Self {
            worker,
            free: None,
            index: Index::new(entries.len(), shared.workers() == 1, pages)?,
            deadlines: Deadlines::new(entries.len()),
            entries,
            high_water,
            hasher,
            len: 0,
            allowance: Allowance::default(),
            scan: 0,
            eviction: Eviction::default(),
            block_flows: vec![0; shared.blocks.len()],
            shared,
        })
    }

    /// Takes up the flows that stand in the region: indexes them, counts them, frees every other slot. Gives how many
    /// were taken up, and how many were not whole or had lost their SNAT port.
    pub(super) fn adopt(&mut self) -> (usize, usize) {
        let high = self.high_water[0].min(self.entries.len() as u32);
        self.high_water[0] = high;
        let mut dropped = 0;
        for slot in (0..high).rev() {
            let entry = &self.entries[slot as usize];
            let committed = entry.is_committed();
            let hashes = [Direction::Forward, Direction::Reply].map(|d| entry.hash(d, &self.hasher));
            if committed && entry.is_whole(hashes[0], hashes[1]) && self.adopt_one(slot, hashes) {
                continue;
            }
            dropped += usize::from(committed);
            self.free_slot(slot);
        }
        (self.len, dropped)
    }

    fn adopt_one(&mut self, slot: u32, [forward, reply]: [FlowHash; 2]) -> bool {
        let entry = self.entries[slot as usize];
        let known = |hash, direction| self.find(hash, &entry.key(direction)).is_some();
        if known(forward, Direction::Forward) || known(reply, Direction::Reply) {
            return false;
        }
        if entry.mode() == Mode::Nat && !self.shared.blocks.adopt(&entry.snat(), entry.snat_port(), self.worker) {
            return false;
        }
        if !self.enter(slot, forward, reply) {
            return false;
        }
        self.allowance.take_adopted(&self.shared);
        // Where the limit of flows changed, and with it the buckets, another worker may have the tag, once in a million; this
        // flow then lacks its claim.
        let _ = self.shared.directory.claim(forward.0, self.worker);
        if entry.mode() == Mode::Preserve {
            let _ = self.shared.directory.claim(reply.0, self.worker);
        }
        if entry.is_counted() {
            let _ = self.shared.sources.open(&entry.client(), 0);
            self.tally().connection_opened(entry.backend_id());
        }
        self.count(1);
        if entry.mode() == Mode::Nat {
            self.count_block(&entry.snat(), entry.snat_port(), 1);
        }
        true
    }

    /// Adds both keys to the index, or none.
    fn enter(&mut self, slot: u32, forward: FlowHash, reply: FlowHash) -> bool {
        if !self.index.insert(forward, slot) {
            return false;
        }
        if !self.index.insert(reply, slot | REPLY) {
            self.index.remove(forward, slot);
            return false;
        }
        true
    }

    fn count_block(&mut self, snat: &Addr, port: Port, change: i32) {
        if let Some(block) = self.shared.blocks.number(snat, port) {
            self.block_flows[block] = self.block_flows[block].wrapping_add_signed(change);
        }
    }

    /// The keyed hash of a key; the same in every worker's table.
    #[must_use]
    #[inline]
    pub fn hash(&self, key: &FlowKey) -> FlowHash {
        self.hasher.hash(key)
    }

    /// First step of a lookup to come: the hash of a plain frame's key; asks for the index's line.
    #[must_use]
    #[inline]
    pub(crate) fn prefetch(&self, plain: &Plain, head: &Head) -> FlowHash {
        let hash = self.hasher.hash_plain(plain, head);
        self.index.prefetch(hash);
        hash
    }

    /// Second step of a lookup to come: where the flow is if it is where nearly all are. Asks for the entry's first line,
    /// and for the second one of IPv6.
    #[must_use]
    #[inline]
    pub(crate) fn guess(&self, hash: FlowHash, ipv6: bool) -> Option<Guess> {
        let place = self.index.guess(hash)?;
        let entry = &self.entries[(place & !REPLY) as usize];
        prefetch(entry);
        if ipv6 {
            prefetch(entry.second_line());
        }
        Some(Guess(place))
    }

    /// Third step: the slot that was guessed, whose flow may be another one or gone.
    #[must_use]
    #[inline]
    pub(crate) fn guessed_mut(&mut self, guess: Guess) -> Option<(&mut FlowEntry, Direction)> {
        Some((self.entries.get_mut((guess.0 & !REPLY) as usize)?, direction_of(guess.0)))
    }

    /// Asks for the index's line of a key that will be looked up.
    #[inline]
    pub(crate) fn prefetch_bucket(&self, hash: FlowHash) {
        self.index.prefetch(hash);
    }

    /// The flow that has this key, and whose key it is. `hash` is the key's.
    #[must_use]
    pub fn lookup(&self, hash: FlowHash, key: &FlowKey) -> Option<(FlowRef, Direction)> {
        self.find(hash, key).map(|place| (FlowRef(place & !REPLY), direction_of(place)))
    }

    #[inline]
    fn find(&self, hash: FlowHash, key: &FlowKey) -> Option<u32> {
        self.index.find(hash, |place| self.entries[(place & !REPLY) as usize].has_key(direction_of(place), key))
    }

    /// A flow.
    #[must_use]
    #[inline]
    pub fn entry(&self, flow: FlowRef) -> &FlowEntry {
        &self.entries[flow.0 as usize]
    }

    /// A flow, to note the client's hop in.
    #[must_use]
    #[inline]
    pub fn entry_mut(&mut self, flow: FlowRef) -> &mut FlowEntry {
        &mut self.entries[flow.0 as usize]
    }

    /// Takes note of a packet of a flow: last seen, state, and whether it still counts as a connection. `flags` are
    /// none for UDP.
    #[inline]
    pub fn packet(&mut self, flow: FlowRef, direction: Direction, flags: TcpFlags, now: Tick) {
        let entry = &mut self.entries[flow.0 as usize];
        let before = entry.state();
        entry.packet(direction, flags, now);
        if entry.state() != before {
            self.deadlines.mark(flow.0);
        }
        if entry.is_counted() == entry.state().is_closed() {
            self.recount(flow);
        }
    }

    /// The same of a packet of SCTP; `false` if it would have ended the association and is not believed.
    pub(crate) fn sctp_packet(&mut self, flow: FlowRef, direction: Direction, said: &Said, now: Tick) -> bool {
        let entry = &mut self.entries[flow.0 as usize];
        let before = entry.state();
        let believed = entry.sctp_packet(direction, said, now);
        if entry.state() != before {
            self.deadlines.mark(flow.0);
        }
        if entry.is_counted() == entry.state().is_closed() {
            self.recount(flow);
        }
        believed
    }

    #[cold]
    fn recount(&mut self, flow: FlowRef) {
        let entry = &mut self.entries[flow.0 as usize];
        let counted = !entry.is_counted();
        entry.set_counted(counted);
        if counted {
            // Open after all: the source's limit is for flows that open.
            let _ = self.shared.sources.open(&entry.client(), 0);
            self.shared.tally(self.worker).connection_opened(entry.backend_id());
        } else {
            self.shared.sources.close(&entry.client());
            self.shared.tally(self.worker).connection_closed(entry.backend_id());
        }
    }

    /// Whether a packet of this flow's key, one that `opens` a connection or an association, does so anew where the old one
    /// is over: then remove the flow, and treat the packet as one without a flow.
    #[must_use]
    #[inline]
    pub fn reopens(&self, flow: FlowRef, direction: Direction, opens: bool) -> bool {
        opens && direction == Direction::Forward && self.entry(flow).state().is_closed()
    }

    /// Opens a flow. The caller has claimed the directory's tags (the forward key's; in mode `preserve` the reply key's
    /// too), owns the SNAT port's block, and has counted the flow in for its source; on an error it gives these back.
    ///
    /// With as many flows as allowed, one of this worker's that is not established, or whose packets find their way
    /// without it, makes way: one that is closed, else the longest idle one of a sample.
    ///
    /// # Errors
    /// [`InsertError::Full`] if none could, [`InsertError::Taken`] if one of the keys has a flow.
    pub fn insert(&mut self, spec: &FlowSpec, now: Tick) -> Result<FlowRef, InsertError> {
        self.insert_hashed(spec, [Direction::Forward, Direction::Reply].map(|d| self.hash(&spec.key(d))), now)
    }

    /// The same where it is known which hashes the keys have.
    pub(crate) fn insert_hashed(
        &mut self,
        spec: &FlowSpec,
        hashes: [FlowHash; 2],
        now: Tick,
    ) -> Result<FlowRef, InsertError> {
        let [forward, reply] = [Direction::Forward, Direction::Reply].map(|d| spec.key(d));
        if self.find(hashes[0], &forward).is_some() || self.find(hashes[1], &reply).is_some() {
            return Err(InsertError::Taken);
        }
        self.insert_new(spec, hashes, now)
    }

    /// The same where it is known, too, that neither key has a flow.
    pub(crate) fn insert_new(
        &mut self,
        spec: &FlowSpec,
        [forward, reply]: [FlowHash; 2],
        now: Tick,
    ) -> Result<FlowRef, InsertError> {
        if !(self.allowance.take(&self.shared) || self.evict(now) && self.allowance.take(&self.shared)) {
            return Err(InsertError::Full);
        }
        let Some(slot) = self.take_slot(now) else {
            self.allowance.give_back(&self.shared);
            return Err(InsertError::Full);
        };
        self.entries[slot as usize].write(spec, now);
        if !self.enter(slot, forward, reply) {
            self.free_slot(slot);
            self.allowance.give_back(&self.shared);
            return Err(InsertError::Full);
        }
        self.entries[slot as usize].commit(forward, reply);
        self.deadlines.mark(slot);
        self.count(1);
        self.tally().connection_opened(spec.backend_id);
        self.tally().count_opened(spec.service);
        if spec.mode == Mode::Nat {
            self.count_block(&spec.snat.0, spec.snat.1, 1);
        }
        Ok(FlowRef(slot))
    }

    /// Whether the slot has a flow that names this kept SYN.
    #[must_use]
    pub(crate) fn keeps_syn(&self, flow: FlowRef, number: u32) -> bool {
        let entry = self.entries.get(flow.0 as usize);
        entry.is_some_and(|entry| entry.is_committed() && entry.kept_syn() == Some(number))
    }

    /// Has a flow that opens go to another endpoint: its keys, its rewrite and what is counted for the endpoints. The caller
    /// owns the SNAT port's block, or has claimed the new reply key's tag (in mode `preserve`), and then gives back the old
    /// one's. `false`, and nothing changed, if the new reply key has a flow or finds no room.
    ///
    /// # Panics
    /// If the flow is gone.
    pub(crate) fn retarget(&mut self, flow: FlowRef, spec: &FlowSpec, now: Tick) -> bool {
        let old = self.entries[flow.0 as usize];
        assert!(old.is_committed(), "a flow that is gone goes nowhere");
        let keys = [Direction::Forward, Direction::Reply].map(|d| spec.key(d));
        let [forward, reply] = keys.map(|key| self.hash(&key));
        if self.find(reply, &keys[1]).is_some() || !self.index.insert(reply, flow.0 | REPLY) {
            return false;
        }
        self.index.remove(self.hash(&old.key(Direction::Reply)), flow.0 | REPLY);
        self.tally().connection_closed(old.backend_id());
        self.tally().connection_opened(spec.backend_id);
        if spec.mode == Mode::Nat {
            self.count_block(&old.snat(), old.snat_port(), -1);
            self.count_block(&spec.snat.0, spec.snat.1, 1);
        }
        self.deadlines.mark(flow.0);
        let entry = &mut self.entries[flow.0 as usize];
        entry.write(spec, now);
        entry.set_kept_syn(old.kept_syn());
        entry.set_client_tags(old.client_tags());
        entry.commit(forward, reply);
        true
    }

    #[inline]
    fn tally(&self) -> &Tally {
        self.shared.tally(self.worker)
    }

    /// A flow more, or one less.
    #[inline]
    fn count(&mut self, change: isize) {
        self.len = self.len.wrapping_add_signed(change);
        self.tally().set_flows(self.len);
    }

    fn take_slot(&mut self, now: Tick) -> Option<u32> {
        if self.free.is_none() && self.high_water[0] as usize == self.entries.len() && !self.evict(now) {
            return None;
        }
        if let Some(slot) = self.free {
            self.free = self.entries[slot as usize].next_free();
            if let Some(next) = self.free {
                // The next flow that opens will want it.
                self.entries[next as usize].prefetch();
            }
            return Some(slot);
        }
        let slot = self.high_water[0];
        self.high_water[0] = slot + 1;
        Some(slot)
    }

    fn free_slot(&mut self, slot: u32) {
        let entry = &mut self.entries[slot as usize];
        entry.uncommit();
        entry.link_free(self.free.replace(slot));
    }

    /// Ends a flow: its keys are free at once, and all that was counted for it is given back.
    ///
    /// # Panics
    /// If the flow is gone already.
    pub fn remove(&mut self, flow: FlowRef) {
        assert!(self.entries[flow.0 as usize].is_committed(), "a flow is removed once");
        self.remove_by(&self.removal(flow));
    }

    /// What ending a flow will need.
    #[inline(always)] // It is made where it stays, and not read as a whole right after its fields were written.
    pub(super) fn removal(&self, flow: FlowRef) -> Removal {
        let entry = &self.entries[flow.0 as usize];
        let hashes = [Direction::Forward, Direction::Reply].map(|d| entry.hash(d, &self.hasher));
        Removal { flow, hashes, source: self.shared.sources.hash(&entry.client()) }
    }

    /// Asks for the memory that ending a flow will touch.
    #[inline]
    pub(super) fn prefetch_removal(&self, Removal { flow, hashes, source }: &Removal) {
        self.entries[flow.0 as usize].prefetch();
        self.index.prefetch(hashes[0]);
        self.index.prefetch(hashes[1]);
        self.shared.directory.prefetch(hashes[0].0);
        self.shared.sources.prefetch(*source);
    }

    /// Ends a flow.
    pub(super) fn remove_by(&mut self, Removal { flow, hashes: [forward, reply], source }: &Removal) {
        let entry = &self.entries[flow.0 as usize];
        let (mode, counted, backend) = (entry.mode(), entry.is_counted(), entry.backend_id());
        if mode == Mode::Nat {
            let (snat, port) = (entry.snat(), entry.snat_port());
            self.count_block(&snat, port, -1);
        }
        self.index.remove(*forward, flow.0);
        self.index.remove(*reply, flow.0 | REPLY);
        self.count(-1);
        self.allowance.give_back(&self.shared);
        self.shared.directory.release(forward.0, self.worker);
        if mode == Mode::Preserve {
            self.shared.directory.release(reply.0, self.worker);
        }
        if counted {
            self.shared.sources.close_hashed(*source);
            self.tally().connection_closed(backend);
        }
        self.free_slot(flow.0);
    }

    /// Flows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Most flows that the region holds.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.entries.len()
    }

    /// Octets of memory for all flows that the region holds: their entries, the index of both keys, and when which are to be
    /// looked at.
    #[must_use]
    pub fn octets(&self) -> usize {
        size_of_val(&self.entries[..]) + self.index.octets() + self.deadlines.octets()
    }

    /// Slots that have or ever had a flow; none beyond these needs to be looked at.
    #[must_use]
    pub fn used_slots(&self) -> usize {
        self.high_water[0] as usize
    }

    /// How many flows made way for others so far.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.eviction.evicted()
    }

    /// What the workers share.
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The worker whose flows these are.
    #[must_use]
    pub fn worker(&self) -> WorkerId {
        self.worker
    }

    /// Flows of a port block, by the number that [`crate::snat::PortBlocks::number`] gives.
    pub(crate) fn flows_of_block(&self, number: usize) -> u32 {
        self.block_flows[number]
    }

    /// Adds the flows of at most `slots` slots from slot `from` on. Gives where to go on; `None` at the end. A flow that
    /// stays is listed once, others come and go between the calls.
    pub fn export(&self, from: u32, slots: u32, into: &mut Vec<FlowRecord>) -> Option<u32> {
        let high = self.high_water[0];
        let end = from.saturating_add(slots.max(1)).min(high);
        let listed = (from.min(end)..end).map(|slot| &self.entries[slot as usize]).filter(|e| e.is_committed());
        into.extend(listed.map(|entry| FlowRecord::of(entry, self.worker)));
        (end < high).then_some(end)
    }
}

#[inline]
fn direction_of(place: u32) -> Direction {
    if place & REPLY == 0 { Direction::Forward } else { Direction::Reply }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
