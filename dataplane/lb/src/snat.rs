//! SNAT ports: blocks of 64 that workers claim, and the choice of a port within one's own.
//!
//! The block of a reply's port names the worker that owns its flow. A port serves any number of endpoints at a time, for
//! only the key of replies must be free. Ports are used towards an endpoint least recently chosen first, so that a
//! connection seldom meets the endpoint's TIME_WAIT of an earlier one. They cannot be guessed from outside (RFC 6056
//! section 3.3): which blocks are claimed, the order in each and where an endpoint's turn begins are secret, and of the
//! ports that are least recently used by turn one of several is given at random, so that who saw all ports that an endpoint
//! was reached from, over any number of turns, does not know the next. What one endpoint sees does not tell where the turn
//! of another is.
//! A port whose flow is closed stays taken towards that endpoint until the closed flow's timeout, and one that leads into
//! the endpoint's TIME_WAIT is passed over for SYNs that would not pass that (`time_wait`), as long as there are
//! others.

use core::hash::Hasher;
use core::sync::atomic::{AtomicU32, Ordering};

use arena::SharedSlab;
use siphasher::sip::SipHasher13;
use wire::{Addr, Port, Ports, Protocol};

use crate::flow::{FlowHash, FlowKey, FlowRef, FlowTable};
use crate::id::WorkerId;
pub use crate::snat_pool::{BLOCK_PORTS, blocks_of_range};
use crate::snat_pool::{
    SNAT_SUPPLIES, SnatAddress, SnatPool, SnatSupply, SupplyPort, block_at, blocks_of, ports, supply_number,
};
use crate::standing::{Standing, replies, standing};
use crate::time::Tick;

/// Blocks of an address; those of port numbers below 1024 are never claimed unless a range says so.
pub const BLOCKS_PER_ADDRESS: usize = 65536 / BLOCK_PORTS as usize;
/// Most SNAT addresses of both families.
pub const MAX_SNAT_ADDRESSES: usize = 64;

/// The part of a block's word that says who owns it: 0 is nobody, else the worker's number plus one.
const OWNER: u32 = 0xff;
/// Set in a block's word once a port of it was chosen.
const USED: u32 = 1 << 31;
/// A time in a block's word is in units of 2^10 ticks (1.07 s), in this many bits above the owner.
const TIME_BITS: u32 = 22;

/// Which worker owns which block of SNAT ports, and when a port of it was last chosen or seen to have a flow.
///
/// The times outlive the instance as the words do, so that a successor does not begin with ports whose last connections
/// are in TIME_WAIT at the endpoints.
#[derive(Debug)]
pub struct PortBlocks {
    addresses: Vec<Addr>,
    /// How many of them, at the end, are the kernel port's.
    of_kernel: usize,
    owners: SharedSlab<AtomicU32>,
}

impl PortBlocks {
    /// Over words that have [`BLOCKS_PER_ADDRESS`] for each address; nothing is owned, times stay.
    /// The last `of_kernel` addresses are the kernel port's.
    pub(crate) fn over(addresses: Vec<Addr>, of_kernel: usize, owners: SharedSlab<AtomicU32>) -> Self {
        assert!(owners.len() >= addresses.len() * BLOCKS_PER_ADDRESS, "each address has its blocks");
        for owner in &owners[..] {
            owner.fetch_and(!OWNER, Ordering::Relaxed);
        }
        Self { addresses, of_kernel, owners }
    }

    /// The number of the supply that an address is in, by its number.
    fn supply(&self, index: usize) -> usize {
        supply_number(self.addresses[index].is_v4(), index + self.of_kernel >= self.addresses.len())
    }

    /// Blocks of all addresses.
    pub(crate) fn len(&self) -> usize {
        self.addresses.len() * BLOCKS_PER_ADDRESS
    }

    /// The number of an address, as in [`SnatAddress::index`].
    #[must_use]
    #[inline]
    pub fn index_of(&self, address: &Addr) -> Option<u16> {
        self.addresses.iter().position(|a| a == address).map(|i| i as u16)
    }

    /// The number of the block that a port is in, over all addresses.
    #[inline]
    pub(crate) fn number(&self, address: &Addr, port: Port) -> Option<usize> {
        self.index_of(address).map(|index| number(index, port.number() / BLOCK_PORTS))
    }

    /// The worker that owns the flows of a SNAT port; `index` is the address's, as in [`SnatAddress::index`].
    #[must_use]
    #[inline]
    pub fn owner(&self, index: u16, port: Port) -> Option<WorkerId> {
        let word = self.owners.get(number(index, port.number() / BLOCK_PORTS))?.load(Ordering::Relaxed) & OWNER;
        (word != 0).then(|| WorkerId((word - 1) as u8))
    }

    #[cfg(test)]
    pub(crate) fn owner_of(&self, address: &Addr, port: Port) -> Option<WorkerId> {
        self.owner(self.index_of(address)?, port)
    }

    /// How many blocks a worker owns.
    #[must_use]
    pub fn owned(&self, worker: WorkerId) -> usize {
        self.owners.iter().filter(|owner| owner.load(Ordering::Relaxed) & OWNER == word(worker)).count()
    }

    /// Claims a block that nobody owns and that `may` be taken, by what its word says of its last use.
    fn claim(&self, number: usize, worker: WorkerId, may: impl Fn(u32) -> bool) -> bool {
        let owner = &self.owners[number];
        let free = owner.load(Ordering::Relaxed);
        free & OWNER == 0
            && may(free)
            && owner.compare_exchange(free, free | word(worker), Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Notes that a port of a worker's own block is chosen or has a flow.
    fn note_use(&self, number: usize, worker: WorkerId, now: Tick) {
        self.owners[number].store(USED | time(now) | word(worker), Ordering::Relaxed);
    }

    fn release(&self, number: usize) {
        self.owners[number].fetch_and(!OWNER, Ordering::AcqRel);
    }

    /// Claims the block of an adopted flow's port; `false`: no such address, or another worker has it.
    pub(crate) fn adopt(&self, address: &Addr, port: Port, worker: WorkerId) -> bool {
        self.number(address, port).is_some_and(|number| {
            self.claim(number, worker, |_| true) || self.owners[number].load(Ordering::Relaxed) & OWNER == word(worker)
        })
    }
}

/// A time as a block's word has it.
#[inline]
fn time(now: Tick) -> u32 {
    (now.0 >> (u32::BITS - TIME_BITS)) << OWNER.count_ones()
}

/// Whether no connection by a block that was last used then is in TIME_WAIT any more. Workers read the clock once a burst:
/// another's use may seem to be of the next unit of time.
fn has_rested(word: u32, now: Tick) -> bool {
    const NEXT: u32 = (1 << TIME_BITS) - 1;
    let units = time(now).wrapping_sub(word & !(USED | OWNER)) >> OWNER.count_ones() & NEXT;
    word & USED == 0 || units > REST >> (u32::BITS - TIME_BITS) && units != NEXT
}

#[inline]
fn number(index: u16, block: u16) -> usize {
    usize::from(index) * BLOCKS_PER_ADDRESS + usize::from(block)
}

#[inline]
fn word(worker: WorkerId) -> u32 {
    u32::from(worker.0) + 1
}

/// No port is free towards this endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnatExhausted;

/// Blocks that a worker claims before others' flows take them, and keeps, where there are enough: more to choose from.
const FIRST_BLOCKS: usize = 16;
/// Ports of a turn that are looked at before another block is claimed.
const TRIES: usize = 4;
/// Blocks that a turn passes over at most, for the pool does not have them any more.
const SKIPS: usize = 16;
/// Ports looked at one by one when no block is left to claim, beginning with the emptiest block.
const LAST_TRIES: usize = 256;
/// Choices without a look for free blocks after none was found.
const PATIENCE: u32 = 256;
/// Turns of each supply. Endpoints share one by a keyed hash where there are more; its ports then come round sooner.
const TURNS: usize = 4096;
/// Most ports of a turn that are at hand to give, one of which is drawn: the odds of who guesses.
const SHELF: usize = 64;
/// Of how many ports of one's own one is at hand: those of a turn keep their distance though some wait on the shelf.
const PORTS_A_PLACE: usize = 64;
/// A turn that was never begun.
const UNBEGUN: u32 = u32::MAX;
/// How long a block without flows is kept: as long as an endpoint's TIME_WAIT, so that another worker's turn may begin with
/// what this one's ended with.
const REST: u32 = Tick::from_millis(60_000);

/// Which blocks may be claimed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    /// Any, those that have rested first.
    Any,
    /// Those that have rested.
    Rested,
}

/// A block of one's own.
#[derive(Clone, Copy)]
struct OwnBlock {
    /// The address, as in [`SnatAddress::index`].
    index: u16,
    /// The block of the address.
    block: u16,
    /// When a port of it was chosen last or seen to have a flow.
    used: Tick,
    /// In which order its ports are chosen: a secret.
    order: u64,
}

impl OwnBlock {
    /// `random` is keyed.
    fn new(index: u16, block: u16, used: Tick, random: SipHasher13) -> Self {
        let mut hasher = random;
        hasher.write_u32(number(index, block) as u32);
        Self { index, block, used, order: hasher.finish() }
    }

    /// Notes that a port of it is chosen or has a flow.
    #[inline]
    fn note_use(&mut self, blocks: &PortBlocks, worker: WorkerId, now: Tick) {
        if time(self.used) != time(now) {
            blocks.note_use(number(self.index, self.block), worker, now);
        }
        self.used = now;
    }
}

/// A worker's choice of SNAT ports.
///
/// Each endpoint has a turn through all ports of the worker: the port that is chosen is the one that was chosen for this
/// endpoint longest ago. At the end of a turn one more block is claimed, up to the worker's share of all, before the turn
/// begins anew: while there are ports that were never used towards the endpoint, none is used twice.
pub struct SnatAllocator {
    worker: WorkerId,
    /// Own blocks of each supply; has room for all from the start.
    own: [Vec<OwnBlock>; SNAT_SUPPLIES],
    /// How many of them, at the front, came with adopted flows: turns begin after them.
    adopted: [usize; SNAT_SUPPLIES],
    /// By a hash of the endpoint: how many ports of `own`, one block after the other, the turn has passed.
    turns: [Vec<u32>; SNAT_SUPPLIES],
    /// For each turn the places in it that were passed and not given yet, plus one; 0 is none.
    shelves: [Vec<u32>; SNAT_SUPPLIES],
    /// Choices left before free blocks are looked for again, of any kind and of those that have rested.
    patience: [[u32; SNAT_SUPPLIES]; 2],
    /// Keyed: of what is drawn, and of the order of ports in a block.
    random: SipHasher13,
    drawn: u64,
    /// What is left of what was drawn for shelves, and for how many places.
    bits: (u64, u8),
}

impl SnatAllocator {
    /// For a worker; takes up the blocks of its adopted flows. `seed` is secret and the worker's own.
    #[must_use]
    pub fn new(flows: &FlowTable, seed: [u8; 16]) -> Self {
        let (worker, blocks) = (flows.worker(), &flows.shared().blocks);
        let random = SipHasher13::new_with_key(&seed);
        let numbers = || (0..blocks.addresses.len()).map(|index| blocks.supply(index));
        let mut own = core::array::from_fn(|supply| {
            Vec::with_capacity(numbers().filter(|number| *number == supply).count() * BLOCKS_PER_ADDRESS)
        });
        for i in 0..blocks.addresses.len() {
            let words = &blocks.owners[i * BLOCKS_PER_ADDRESS..(i + 1) * BLOCKS_PER_ADDRESS];
            let words = words.iter().map(|w| w.load(Ordering::Relaxed)).enumerate();
            let mine = words.filter(|(_, w)| w & OWNER == word(worker));
            let mine = mine.map(|(block, w)| OwnBlock::new(i as u16, block as u16, last_use(w), random));
            own[blocks.supply(i)].extend(mine);
        }
        let adopted = own.each_ref().map(Vec::len);
        let turns = [(); SNAT_SUPPLIES].map(|()| vec![UNBEGUN; TURNS]);
        // Zeros: pages of turns that never begin cost nothing.
        let shelves = [(); SNAT_SUPPLIES].map(|()| vec![0; TURNS * SHELF]);
        Self { worker, own, adopted, turns, shelves, patience: [[0; SNAT_SUPPLIES]; 2], random, drawn: 0, bits: (0, 0) }
    }

    /// A SNAT address and port of this worker's that may be free towards an endpoint; nothing is taken, but the next
    /// suggestion is another one.
    #[must_use]
    pub(crate) fn suggest(
        &mut self,
        supply: SnatSupply<'_>,
        flows: &FlowTable,
        backend: (Addr, Port),
        protocol: Protocol,
        now: Tick,
    ) -> Option<SupplyPort> {
        let SnatSupply { number: f, addresses } = supply;
        if self.own[f].is_empty() {
            self.begin_with(first_blocks(addresses, flows), supply, flows, now);
        }
        let turn = turn_of(flows, backend, protocol);
        let wide = (self.own[f].len() * usize::from(BLOCK_PORTS) / PORTS_A_PLACE).clamp(1, SHELF);
        let drawn = self.place_of_shelf(wide);
        let next = self.advance(f, turn, addresses, flows, now)?;
        let held = std::mem::replace(&mut self.shelves[f][turn * SHELF + drawn], next + 1).checked_sub(1);
        // An empty place took one.
        let (given, found) = match held.and_then(|held| Some((held, self.port_at(f, addresses, held)?))) {
            Some(held) => held,
            None => {
                let next = self.advance(f, turn, addresses, flows, now)?;
                (next, self.port_at(f, addresses, next)?)
            }
        };
        let own = &mut self.own[f][given as usize / usize::from(BLOCK_PORTS)];
        own.note_use(&flows.shared().blocks, self.worker, now);
        Some(found)
    }

    /// The next place of a turn that has a port.
    fn advance(
        &mut self,
        f: usize,
        turn: usize,
        addresses: &[SnatAddress],
        flows: &FlowTable,
        now: Tick,
    ) -> Option<u32> {
        for _ in 0..SKIPS {
            let passed = self.turns[f][turn];
            if passed as usize / usize::from(BLOCK_PORTS) >= self.own[f].len() {
                self.turns[f][turn] = self.begin(f, addresses, flows, passed as usize, now)?;
            } else if self.has_port(f, addresses, passed) {
                self.turns[f][turn] = passed + 1;
                return Some(passed);
            } else {
                // The block has no more ports that the pool has.
                self.turns[f][turn] = (passed / u32::from(BLOCK_PORTS) + 1) * u32::from(BLOCK_PORTS);
            }
        }
        None
    }

    /// Whether there is a port at a place of turns.
    #[inline]
    fn has_port(&self, f: usize, addresses: &[SnatAddress], place: u32) -> bool {
        let own = self.own[f].get(place as usize / usize::from(BLOCK_PORTS));
        let range = own.and_then(|own| range_of(addresses, own));
        range.is_some_and(|(_, first, last)| place as u16 % BLOCK_PORTS <= last - first)
    }

    /// The port at a place of turns, if there is one.
    #[inline]
    fn port_at(&self, f: usize, addresses: &[SnatAddress], place: u32) -> Option<SupplyPort> {
        let own = self.own[f].get(place as usize / usize::from(BLOCK_PORTS))?;
        nth_port(addresses, own, place as u16 % BLOCK_PORTS)
    }

    /// A SNAT address and port for a new flow to an endpoint, so that the key of its replies is free, or would be if a flow
    /// that is closed made way. `holds` says of the hash of that key whether the endpoint would take the opening packet for
    /// an old connection's; such a port is given where there is no other.
    ///
    /// # Errors
    /// [`SnatExhausted`] if none was found in a bounded search.
    pub fn allocate(
        &mut self,
        supply: SnatSupply<'_>,
        flows: &FlowTable,
        backend: (Addr, Port),
        protocol: Protocol,
        holds: impl Fn(FlowHash) -> bool,
        now: Tick,
    ) -> Result<Allocated, SnatExhausted> {
        let SnatSupply { number: f, addresses } = supply;
        let (mut lingering, mut held) = (None, None);
        // Gives the port if nothing stands against it.
        let mut judge = |snat: (Addr, Port)| {
            let key = replies(backend, snat, protocol);
            let found = Allocated { snat, replies: flows.hash(&key), makes_way: None };
            match standing(flows, &key, found.replies, &holds) {
                Standing::Free => return Some(found),
                Standing::Lingering(flow) => _ = lingering.get_or_insert(Allocated { makes_way: Some(flow), ..found }),
                Standing::Held(makes_way) => _ = held.get_or_insert(Allocated { makes_way, ..found }),
                Standing::Taken => {}
            }
            None
        };
        for _ in 0..TRIES {
            let suggested = self.suggest(supply, flows, backend, protocol, now);
            if let Some(found) = suggested.and_then(|port| judge(supply.end(port))) {
                return Ok(found);
            }
        }
        let claimed = self.claim(f, addresses, flows, now, Which::Any);
        let (start, tries) = match claimed {
            true => (self.own[f].len() - 1, usize::from(BLOCK_PORTS)),
            false => (self.emptiest(f, flows), LAST_TRIES),
        };
        let offset = self.below(usize::from(BLOCK_PORTS));
        if let Some(found) = self.walk(f, addresses, start, offset, tries, &mut judge) {
            return Ok(found);
        }
        lingering.or(held).ok_or(SnatExhausted)
    }

    /// Claims the blocks that a worker begins with, and gives back one that has rested without a flow, if it has more. Looks
    /// at one block of each supply a call.
    pub fn tend(&mut self, pool: &SnatPool, flows: &FlowTable, now: Tick) {
        for supply in pool.supplies() {
            let first = first_blocks(supply.addresses, flows);
            self.begin_with(first, supply, flows, now);
            self.look(supply.number, first, flows, now);
        }
    }

    /// Claims so many blocks of a supply beside those of adopted flows.
    fn begin_with(&mut self, first: usize, supply: SnatSupply<'_>, flows: &FlowTable, now: Tick) {
        let SnatSupply { number: f, addresses } = supply;
        while self.own[f].len() < self.adopted[f] + first && self.claim(f, addresses, flows, now, Which::Any) {}
    }

    /// Notes that a block of a supply is in use, or gives it back, if more are left than these.
    fn look(&mut self, f: usize, least: usize, flows: &FlowTable, now: Tick) {
        let count = self.own[f].len();
        let at = self.below(count);
        let Some(own) = self.own[f].get_mut(at) else { return };
        let (number, blocks) = (number(own.index, own.block), &flows.shared().blocks);
        if flows.flows_of_block(number) > 0 {
            own.note_use(blocks, self.worker, now);
        } else if count > least && now.since(own.used) >= REST {
            self.own[f].swap_remove(at);
            self.adopted[f] = self.adopted[f].saturating_sub(1);
            blocks.release(number);
        }
    }

    /// Where a turn goes on that has passed all own ports or was never begun: in a block more, or with the first; begun it
    /// is anywhere.
    #[cold]
    fn begin(
        &mut self,
        f: usize,
        addresses: &[SnatAddress],
        flows: &FlowTable,
        passed: usize,
        now: Tick,
    ) -> Option<u32> {
        let per_block = usize::from(BLOCK_PORTS);
        let count = self.own[f].len();
        if passed == UNBEGUN as usize && count > 0 {
            let first = if self.adopted[f] < count { self.adopted[f] } else { 0 };
            return Some((first * per_block + self.below((count - first) * per_block)) as u32);
        }
        let share = blocks_of(addresses) / flows.shared().workers();
        if count < share && self.claim(f, addresses, flows, now, Which::Rested) {
            return Some((count * per_block) as u32);
        }
        (count > 0).then_some(0)
    }

    /// The own block with the fewest flows, whomever they are to; of several any one.
    fn emptiest(&mut self, f: usize, flows: &FlowTable) -> usize {
        let first = self.below(self.own[f].len());
        let own = &self.own[f];
        let all = (first..own.len()).chain(0..first);
        all.min_by_key(|at| flows.flows_of_block(number(own[*at].index, own[*at].block))).unwrap_or(0)
    }

    /// Looks at ports one by one, from one of a block on.
    fn walk(
        &self,
        f: usize,
        addresses: &[SnatAddress],
        start: usize,
        offset: usize,
        tries: usize,
        free: &mut impl FnMut((Addr, Port)) -> Option<Allocated>,
    ) -> Option<Allocated> {
        let per_block = usize::from(BLOCK_PORTS);
        (0..tries.min(self.own[f].len() * per_block)).find_map(|i| {
            let OwnBlock { index, block, .. } = self.own[f][(start + i / per_block) % self.own[f].len()];
            let address = addresses.iter().find(|a| a.index == index)?;
            let (first, last) = ports(address, block)?;
            let port = block * BLOCK_PORTS + ((offset + i) % per_block) as u16;
            let port = (first..=last).contains(&port).then(|| Port::new(port))?;
            free((address.address, port))
        })
    }

    /// Claims one more block, at random among those of the pool; `false` if none is free.
    fn claim(&mut self, f: usize, addresses: &[SnatAddress], flows: &FlowTable, now: Tick, which: Which) -> bool {
        let patience = &mut self.patience[which as usize][f];
        if *patience > 0 {
            *patience -= 1;
            return false;
        }
        if self.own[f].len() < self.own[f].capacity() {
            let total = blocks_of(addresses);
            let start = self.below(total);
            let nth = |i| block_at(addresses, (start + i) % total);
            let blocks = &flows.shared().blocks;
            let take = |may: &dyn Fn(u32) -> bool| {
                (0..total).filter_map(nth).find(|(index, block)| blocks.claim(number(*index, *block), self.worker, may))
            };
            let found = take(&|word| has_rested(word, now));
            let found = found.or_else(|| if which == Which::Any { take(&|_| true) } else { None });
            if let Some((index, block)) = found {
                blocks.note_use(number(index, block), self.worker, now);
                self.own[f].push(OwnBlock::new(index, block, now, self.random));
                return true;
            }
        }
        self.patience[which as usize][f] = PATIENCE;
        false
    }

    /// A number below `count`, which is [`SHELF`] at most.
    #[inline]
    fn place_of_shelf(&mut self, count: usize) -> usize {
        // A hash has the bits of four: of sixteen each, a place of 64 at most is even but for a part in a thousand.
        if self.bits.1 == 0 {
            self.bits = (self.random_bits(), 4);
        }
        let (bits, left) = self.bits;
        self.bits = (bits >> 16, left - 1);
        (usize::from(bits as u16) * count) >> 16
    }

    /// A number below `bound`, or 0 where that is 0.
    fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.random_bits()) * bound as u128) >> 64) as usize
    }

    #[inline]
    fn random_bits(&mut self) -> u64 {
        self.drawn += 1;
        let mut hasher = self.random;
        hasher.write_u64(self.drawn);
        hasher.finish()
    }
}

/// A port that was given to a new flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Allocated {
    /// The address and the port.
    pub snat: (Addr, Port),
    /// The hash of the key of its flow's replies.
    pub replies: FlowHash,
    /// The closed flow that has it and is to be ended first.
    pub makes_way: Option<FlowRef>,
}

impl core::fmt::Debug for SnatAllocator {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("SnatAllocator").field("worker", &self.worker).finish_non_exhaustive()
    }
}

/// How many of a supply's blocks are a worker's to begin with: half its share, so that who comes late finds some.
fn first_blocks(addresses: &[SnatAddress], flows: &FlowTable) -> usize {
    let blocks = blocks_of(addresses);
    (blocks / (2 * flows.shared().workers())).clamp(1.min(blocks), FIRST_BLOCKS)
}

/// The turn that an endpoint has.
fn turn_of(flows: &FlowTable, (address, port): (Addr, Port), protocol: Protocol) -> usize {
    let key = FlowKey { src: address, dst: address, ports: Ports::new(port, Port::new(0)), protocol };
    ((u64::from(flows.hash(&key).0 as u32) * TURNS as u64) >> 32) as usize
}

/// Which of a supply's addresses a block is of, and the first and last port there that the pool has.
#[inline]
fn range_of(addresses: &[SnatAddress], own: &OwnBlock) -> Option<(u16, u16, u16)> {
    // Addresses that came together have numbers one after the other.
    let near = usize::from(own.index.wrapping_sub(addresses.first()?.index));
    let (at, address) = match addresses.get(near).filter(|address| address.index == own.index) {
        Some(address) => (near, address),
        None => addresses.iter().enumerate().find(|(_, address)| address.index == own.index)?,
    };
    let (first, last) = ports(address, own.block)?;
    Some((at as u16, first, last))
}

/// The port of a block at a place in its order; `None` if the pool has not so many there.
#[inline]
fn nth_port(addresses: &[SnatAddress], own: &OwnBlock, step: u16) -> Option<SupplyPort> {
    let (address, first, last) = range_of(addresses, own)?;
    let begin = own.block * BLOCK_PORTS;
    let in_range = |offset: &u16| (first..=last).contains(&(begin + offset));
    let offset = match last - first + 1 {
        BLOCK_PORTS => shuffled(step, own.order),
        _ => (0..BLOCK_PORTS).map(|step| shuffled(step, own.order)).filter(in_range).nth(step.into())?,
    };
    Some(SupplyPort { address, port: Port::new(begin + offset) })
}

/// A number below 64 in the place of another, each in one place: a Feistel network of four rounds on halves of three bits,
/// whose functions are tables out of the secret.
fn shuffled(step: u16, secret: u64) -> u16 {
    let (mut left, mut right) = (step >> 3, step & 7);
    for table in [secret, secret >> 13, secret >> 26, secret >> 40] {
        (left, right) = (right, left ^ ((table >> (3 * right)) as u16 & 7));
    }
    left << 3 | right
}

/// When a port of a block was last chosen or seen to have a flow, to a second or so; long ago if never.
fn last_use(word: u32) -> Tick {
    Tick((word & !(USED | OWNER)) >> OWNER.count_ones() << (u32::BITS - TIME_BITS))
}

#[cfg(test)]
#[path = "snat_tests.rs"]
mod tests;
