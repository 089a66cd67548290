//! SNAT ports: blocks of 64 that workers claim, and the choice of a port within one's own.
//!
//! The block of a reply's port names the worker that owns its flow. A port serves any number of endpoints at a time, for
//! only the key of replies must be free. Which block is claimed and which port is taken cannot be guessed from outside
//! (RFC 6056 section 3.3.2: random with few tries). A port whose flow is closed stays taken towards that endpoint
//! until the closed flow's timeout.

use core::hash::Hasher;
use core::sync::atomic::{AtomicU32, Ordering};

use arena::SharedSlab;
use siphasher::sip::SipHasher13;
use wire::{Addr, Port, Ports, Protocol};

use crate::flow::{FlowKey, FlowTable};
use crate::id::WorkerId;
use crate::tables::{SnatAddress, SnatPool};

/// Ports of a block.
pub const BLOCK_PORTS: u16 = 64;
/// Blocks of an address; those of port numbers below 1024 are never claimed unless a range says so.
pub const BLOCKS_PER_ADDRESS: usize = 65536 / BLOCK_PORTS as usize;
/// Most SNAT addresses of both families.
pub const MAX_SNAT_ADDRESSES: usize = 64;

/// Which worker owns which block of SNAT ports; 0 in a word is nobody, else the worker's number plus one.
#[derive(Debug)]
pub struct PortBlocks {
    addresses: Vec<Addr>,
    owners: SharedSlab<AtomicU32>,
}

impl PortBlocks {
    /// Over words that have [`BLOCKS_PER_ADDRESS`] for each address; nothing is owned.
    pub(crate) fn over(addresses: Vec<Addr>, owners: SharedSlab<AtomicU32>) -> Self {
        assert!(owners.len() >= addresses.len() * BLOCKS_PER_ADDRESS, "each address has its blocks");
        for owner in &owners[..] {
            owner.store(0, Ordering::Relaxed);
        }
        Self { addresses, owners }
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
        let word = self.owners.get(number(index, port.number() / BLOCK_PORTS))?.load(Ordering::Relaxed);
        (word != 0).then(|| WorkerId((word - 1) as u8))
    }

    /// As [`PortBlocks::owner`], by the address itself; `None` also if it is no SNAT address.
    #[must_use]
    #[inline]
    pub fn owner_of(&self, address: &Addr, port: Port) -> Option<WorkerId> {
        self.owner(self.index_of(address)?, port)
    }

    /// How many blocks a worker owns.
    #[must_use]
    pub fn owned(&self, worker: WorkerId) -> usize {
        self.owners.iter().filter(|owner| owner.load(Ordering::Relaxed) == word(worker)).count()
    }

    /// Claims a block that nobody owns.
    fn claim(&self, number: usize, worker: WorkerId) -> bool {
        let owner = &self.owners[number];
        owner.load(Ordering::Relaxed) == 0
            && owner.compare_exchange(0, word(worker), Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    fn release(&self, number: usize, worker: WorkerId) {
        let _ = self.owners[number].compare_exchange(word(worker), 0, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Claims the block of an adopted flow's port; `false`: no such address, or another worker has it.
    pub(crate) fn adopt(&self, address: &Addr, port: Port, worker: WorkerId) -> bool {
        self.number(address, port).is_some_and(|number| {
            self.claim(number, worker) || self.owners[number].load(Ordering::Relaxed) == word(worker)
        })
    }
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

/// Blocks that a worker claims before it chooses its first port, where there are enough: more to choose from.
const FIRST_BLOCKS: usize = 16;
/// Tries at random before another block is claimed.
const TRIES: usize = 4;
/// Ports looked at one by one when no block is left to claim.
const LAST_TRIES: usize = 256;
/// Choices without a look for free blocks after none was found.
const PATIENCE: u32 = 256;

/// A worker's choice of SNAT ports.
pub struct SnatAllocator {
    worker: WorkerId,
    /// Own blocks (address index, block of the address) of IPv4 and of IPv6; has room for all from the start.
    own: [Vec<(u16, u16)>; 2],
    /// Choices left before free blocks are looked for again.
    patience: [u32; 2],
    random: SipHasher13,
    drawn: u64,
}

impl SnatAllocator {
    /// For a worker; takes up the blocks of its adopted flows. `seed` is secret and the worker's own.
    #[must_use]
    pub fn new(flows: &FlowTable, seed: [u8; 16]) -> Self {
        let (worker, blocks) = (flows.worker(), &flows.shared().blocks);
        let mut own = [true, false].map(|v4| {
            Vec::with_capacity(blocks.addresses.iter().filter(|a| a.is_v4() == v4).count() * BLOCKS_PER_ADDRESS)
        });
        for (i, address) in blocks.addresses.iter().enumerate() {
            let words = &blocks.owners[i * BLOCKS_PER_ADDRESS..(i + 1) * BLOCKS_PER_ADDRESS];
            let mine = words.iter().enumerate().filter(|(_, w)| w.load(Ordering::Relaxed) == word(worker));
            own[family(address)].extend(mine.map(|(block, _)| (i as u16, block as u16)));
        }
        Self { worker, own, patience: [0; 2], random: SipHasher13::new_with_key(&seed), drawn: 0 }
    }

    /// A SNAT address and port of this worker's that may be free; nothing is taken.
    #[must_use]
    pub(crate) fn suggest(&mut self, pool: &SnatPool, v4: bool) -> Option<(Addr, Port)> {
        self.draw(usize::from(!v4), pool.family(v4))
    }

    /// A SNAT address and port for a new flow to an endpoint, so that the key of its replies is free.
    ///
    /// # Errors
    /// [`SnatExhausted`] if none was found in a bounded search.
    pub fn allocate(
        &mut self,
        pool: &SnatPool,
        flows: &FlowTable,
        backend: &Addr,
        backend_port: Port,
        protocol: Protocol,
    ) -> Result<(Addr, Port), SnatExhausted> {
        let addresses = pool.family(backend.is_v4());
        let free = |address: &Addr, port: Port| is_free(flows, (*address, port), (*backend, backend_port), protocol);
        let f = family(backend);
        let share = addresses.iter().map(blocks_of).sum::<usize>() / (2 * flows.shared().workers());
        while self.own[f].len() < share.clamp(1, FIRST_BLOCKS) && self.claim(f, addresses, flows) {}
        for _ in 0..TRIES {
            if let Some((address, port)) = self.draw(f, addresses).filter(|(a, p)| free(a, *p)) {
                return Ok((address, port));
            }
        }
        if self.claim(f, addresses, flows) {
            let newest = self.own[f].len() - 1;
            let offset = self.below(usize::from(BLOCK_PORTS));
            return self.walk(f, addresses, newest, offset, usize::from(BLOCK_PORTS), free).ok_or(SnatExhausted);
        }
        let (start, offset) = (self.below(self.own[f].len()), self.below(usize::from(BLOCK_PORTS)));
        self.walk(f, addresses, start, offset, LAST_TRIES, free).ok_or(SnatExhausted)
    }

    /// Gives back a block of this worker's that has no flow, if it has more than it begins with. Looks at one block a
    /// call.
    pub fn release_idle(&mut self, flows: &FlowTable) {
        for f in 0..2 {
            if self.own[f].len() <= FIRST_BLOCKS {
                continue;
            }
            let at = self.below(self.own[f].len());
            let (index, block) = self.own[f][at];
            if flows.flows_of_block(number(index, block)) == 0 {
                self.own[f].swap_remove(at);
                flows.shared().blocks.release(number(index, block), self.worker);
            }
        }
    }

    /// A port of a block of one's own, at random; `None` if the pool does not have it.
    fn draw(&mut self, f: usize, addresses: &[SnatAddress]) -> Option<(Addr, Port)> {
        let random = self.random_bits();
        let at = ((random >> 32) * self.own[f].len() as u64) >> 32;
        let &(index, block) = self.own[f].get(at as usize)?;
        let address = addresses.iter().find(|a| a.index == index)?;
        let (first, last) = ports(address, block)?;
        let offset = ((random & u64::from(u32::MAX)) * (u64::from(last - first) + 1)) >> 32;
        Some((address.address, Port::new(first + offset as u16)))
    }

    /// Looks at ports one by one, from one of a block on.
    fn walk(
        &self,
        f: usize,
        addresses: &[SnatAddress],
        start: usize,
        offset: usize,
        tries: usize,
        free: impl Fn(&Addr, Port) -> bool,
    ) -> Option<(Addr, Port)> {
        let per_block = usize::from(BLOCK_PORTS);
        (0..tries.min(self.own[f].len() * per_block)).find_map(|i| {
            let (index, block) = self.own[f][(start + i / per_block) % self.own[f].len()];
            let address = addresses.iter().find(|a| a.index == index)?;
            let (first, last) = ports(address, block)?;
            let port = block * BLOCK_PORTS + ((offset + i) % per_block) as u16;
            let port = (first..=last).contains(&port).then(|| Port::new(port))?;
            free(&address.address, port).then_some((address.address, port))
        })
    }

    /// Claims one more block, at random among those of the pool; `false` if none is free.
    fn claim(&mut self, f: usize, addresses: &[SnatAddress], flows: &FlowTable) -> bool {
        if self.patience[f] > 0 {
            self.patience[f] -= 1;
            return false;
        }
        let total: usize = addresses.iter().map(blocks_of).sum();
        let start = self.below(total);
        for i in 0..total {
            let Some((index, block)) = block_at(addresses, (start + i) % total) else { continue };
            if self.own[f].len() < self.own[f].capacity()
                && flows.shared().blocks.claim(number(index, block), self.worker)
            {
                self.own[f].push((index, block));
                return true;
            }
        }
        self.patience[f] = PATIENCE;
        false
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

/// Whether the key of an endpoint's replies to a SNAT address and port is free.
pub(crate) fn is_free(flows: &FlowTable, snat: (Addr, Port), backend: (Addr, Port), protocol: Protocol) -> bool {
    let key = FlowKey { src: backend.0, dst: snat.0, ports: Ports::new(backend.1, snat.1), protocol };
    flows.lookup(flows.hash(&key), &key).is_none()
}

impl core::fmt::Debug for SnatAllocator {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("SnatAllocator").field("worker", &self.worker).finish_non_exhaustive()
    }
}

fn family(address: &Addr) -> usize {
    usize::from(!address.is_v4())
}

/// First and last port of a block that the address's range allows.
fn ports(address: &SnatAddress, block: u16) -> Option<(u16, u16)> {
    let begin = block * BLOCK_PORTS;
    let first = begin.max(address.first_port);
    let last = (begin + (BLOCK_PORTS - 1)).min(address.last_port);
    (first <= last).then_some((first, last))
}

/// How many blocks an address's range touches.
fn blocks_of(address: &SnatAddress) -> usize {
    if address.first_port > address.last_port {
        return 0;
    }
    usize::from(address.last_port / BLOCK_PORTS - address.first_port / BLOCK_PORTS) + 1
}

/// The nth block of the addresses' ranges.
fn block_at(addresses: &[SnatAddress], mut n: usize) -> Option<(u16, u16)> {
    for address in addresses {
        let count = blocks_of(address);
        if n < count {
            return Some((address.index, address.first_port / BLOCK_PORTS + n as u16));
        }
        n -= count;
    }
    None
}

#[cfg(test)]
#[path = "snat_tests.rs"]
mod tests;
