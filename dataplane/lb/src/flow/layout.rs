//! Where things are in the flow file: header, SNAT addresses, marks, block owners, registries, affinity, flows.
//!
//! All is plain data in the machine's own byte order. The header's `ready` is its last store; a file without it is
//! none. A region has room for all flows, for one worker may come to have them all, and the file's room is taken
//! when it is made: a full file system refuses a start and never a store.

use std::sync::atomic::{AtomicU32, AtomicU64};

use arena::{ArenaError, Cutter, Mapping, SharedSlab, Slab};
use wire::{Addr, Port};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::affinity::Affinity;
use crate::flow::entry::FlowEntry;
use crate::flow::index::MAX_SLOTS;
use crate::id::{BackendId, ServiceId, WorkerId};
use crate::snat::{BLOCKS_PER_ADDRESS, MAX_SNAT_ADDRESSES};

/// First octets of the file, there before anything else of it.
pub(crate) const MAGIC: [u8; 8] = *b"MILLFLOW";
/// Grows with every change of what is where or of what it means.
const VERSION: u32 = 8;
/// The value of `ready`.
const READY: u32 = 0x5eed_f10e;
/// Where a part begins; the SNAT addresses are the second.
pub(crate) const PAGE: usize = 4096;

/// A Service port or an endpoint that has an id.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct RegistrySlot {
    pub(crate) name_low: u64,
    pub(crate) name_high: u64,
    pub(crate) address: Addr,
    pub(crate) port: Port,
    pub(crate) reserved: u16,
    /// Counts users, 12 bits.
    pub(crate) generation: u32,
    /// Not 0: the slot has a user. Its last store.
    pub(crate) in_use: u32,
    pub(crate) reserved_too: u32,
}

impl RegistrySlot {
    pub(crate) fn name(&self) -> u128 {
        u128::from(self.name_high) << 64 | u128::from(self.name_low)
    }
}

/// The front of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Header {
    magic: [u8; 8],
    version: u32,
    ready: u32,
    pub(crate) boot_id: [u8; 16],
    pub(crate) secret: [u64; 2],
    workers: u32,
    snat: u32,
    flows: u64,
    services: u32,
    backends: u32,
    affinity_words: u64,
}

/// How much of everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) workers: usize,
    pub(crate) flows: usize,
    pub(crate) services: usize,
    pub(crate) backends: usize,
    pub(crate) snat: usize,
    pub(crate) affinity_sources: usize,
}

impl Sizes {
    fn affinity_words(&self) -> usize {
        Affinity::words_for(self.affinity_sources)
    }

    /// Whether every number is within its limits.
    pub(crate) fn are_sound(&self) -> bool {
        (1..=WorkerId::MAX).contains(&self.workers)
            && (1..=MAX_SLOTS).contains(&self.flows)
            && (1..=ServiceId::MAX).contains(&self.services)
            && (1..=BackendId::MAX).contains(&self.backends)
            && self.snat <= MAX_SNAT_ADDRESSES
            && (1..=1 << 30).contains(&self.affinity_sources)
    }

    /// Octets of the file: the parts and what aligning each to a page may take.
    pub(crate) fn file_len(&self) -> usize {
        let parts = PAGE
            + size_of::<Addr>() * MAX_SNAT_ADDRESSES
            + 64 * WorkerId::MAX
            + 4 * self.snat * BLOCKS_PER_ADDRESS
            + size_of::<RegistrySlot>() * (self.services + self.backends)
            + 8 * self.affinity_words()
            + size_of::<FlowEntry>() * self.flows * self.workers;
        (parts + PAGE * (8 + self.workers)).next_multiple_of(PAGE)
    }
}

impl Header {
    pub(crate) fn new(sizes: &Sizes, boot_id: [u8; 16], secret: [u64; 2]) -> Self {
        Self {
            magic: MAGIC,
            version: VERSION,
            ready: READY,
            boot_id,
            secret,
            workers: sizes.workers as u32,
            snat: sizes.snat as u32,
            flows: sizes.flows as u64,
            services: sizes.services as u32,
            backends: sizes.backends as u32,
            affinity_words: sizes.affinity_words() as u64,
        }
    }

    /// Whether the file was made whole at all.
    pub(crate) fn is_ready(&self) -> bool {
        self.magic == MAGIC && self.ready == READY
    }

    /// The sizes, if the file has this layout and they are sound.
    pub(crate) fn sizes(&self) -> Option<Sizes> {
        let per_source = Affinity::words_for(1 << 10) as u64 / (1 << 10);
        let sizes = Sizes {
            workers: self.workers as usize,
            flows: usize::try_from(self.flows).ok()?,
            services: self.services as usize,
            backends: self.backends as usize,
            snat: self.snat as usize,
            affinity_sources: usize::try_from(self.affinity_words / per_source).ok()?,
        };
        (self.version == VERSION && sizes.are_sound() && sizes.affinity_words() as u64 == self.affinity_words)
            .then_some(sizes)
    }
}

/// The parts of a mapped file.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) header: Slab<Header>,
    pub(crate) snat: Slab<Addr>,
    pub(crate) high_water: Vec<Slab<u32>>,
    pub(crate) owners: SharedSlab<AtomicU32>,
    pub(crate) services: Slab<RegistrySlot>,
    pub(crate) backends: Slab<RegistrySlot>,
    pub(crate) affinity: SharedSlab<AtomicU64>,
    pub(crate) regions: Vec<Slab<FlowEntry>>,
}

impl Parts {
    pub(crate) fn cut(mapping: Mapping, sizes: &Sizes) -> Result<Self, ArenaError> {
        let mut cutter = Cutter::new(mapping);
        let header = cutter.slab(1)?;
        cutter.align(PAGE);
        let snat = cutter.slab(MAX_SNAT_ADDRESSES)?;
        let mut high_water = Vec::with_capacity(sizes.workers);
        for _ in 0..sizes.workers {
            // A line each: every worker writes its own.
            cutter.align(64);
            high_water.push(cutter.slab(1)?);
        }
        cutter.align(PAGE);
        let owners = cutter.shared(sizes.snat * BLOCKS_PER_ADDRESS)?;
        cutter.align(PAGE);
        let services = cutter.slab(sizes.services)?;
        cutter.align(PAGE);
        let backends = cutter.slab(sizes.backends)?;
        cutter.align(PAGE);
        let affinity = cutter.shared(sizes.affinity_words())?;
        let mut regions = Vec::with_capacity(sizes.workers);
        for _ in 0..sizes.workers {
            cutter.align(PAGE);
            regions.push(cutter.slab(sizes.flows)?);
        }
        Ok(Self { header, snat, high_water, owners, services, backends, affinity, regions })
    }
}
