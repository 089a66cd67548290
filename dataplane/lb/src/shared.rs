//! What must hold across workers: tables of atomics of fixed size, touched only where a flow opens or closes.

use std::fmt;
use std::fs::File;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::affinity::Affinity;
use crate::directory::{Claim, Directory};
use crate::flow::FlowHash;
use crate::health::Health;
use crate::id::{BackendId, ServiceId, WorkerId};
use crate::rates::SourceRates;
use crate::select::Balance;
use crate::snat::PortBlocks;
use crate::sources::SourceLimits;

/// Shared by all workers and the control thread; made by [`crate::flow::FlowFile`].
pub struct Shared {
    /// Who owns a flow.
    pub directory: Directory,
    /// Who owns a SNAT port.
    pub blocks: PortBlocks,
    /// Which endpoint a source was given.
    pub affinity: Affinity,
    /// How many flows a source has.
    pub sources: SourceLimits,
    /// How fast a source opens flows.
    pub rates: SourceRates,
    /// What opening connections tell of endpoints.
    pub health: Health,
    workers: usize,
    connections: Box<[AtomicU32]>,
    opened: Box<[AtomicU64]>,
    flows: AtomicU64,
    flow_limit: u64,
    /// The flow file, locked while anybody uses it; `None` in memory.
    _file: Option<File>,
}

/// The parts that a [`Shared`] is made of.
pub(crate) struct SharedParts {
    pub(crate) directory: Directory,
    pub(crate) blocks: PortBlocks,
    pub(crate) affinity: Affinity,
    pub(crate) sources: SourceLimits,
    pub(crate) rates: SourceRates,
    pub(crate) health: Health,
    pub(crate) workers: usize,
    pub(crate) services: usize,
    pub(crate) backends: usize,
    pub(crate) flow_limit: usize,
    pub(crate) file: Option<File>,
}

impl Shared {
    pub(crate) fn new(parts: SharedParts) -> Self {
        Self {
            directory: parts.directory,
            blocks: parts.blocks,
            affinity: parts.affinity,
            sources: parts.sources,
            rates: parts.rates,
            health: parts.health,
            workers: parts.workers,
            connections: (0..parts.backends).map(|_| AtomicU32::new(0)).collect(),
            opened: (0..parts.services).map(|_| AtomicU64::new(0)).collect(),
            flows: AtomicU64::new(0),
            flow_limit: parts.flow_limit as u64,
            _file: parts.file,
        }
    }

    /// How many workers there are.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// Claims the tag of a flow's key for a worker, see [`Directory::claim`]. The only worker always gets it, for nobody else
    /// could open the flow: one that finds no room in the directory goes without.
    #[must_use]
    #[inline]
    pub(crate) fn claim(&self, hash: FlowHash, worker: WorkerId) -> Claim {
        match self.directory.claim(hash.0, worker) {
            Claim::Full if self.workers == 1 => Claim::Won,
            claim => claim,
        }
    }

    /// How many flows there are, over all workers.
    #[must_use]
    pub fn flows(&self) -> u64 {
        self.flows.load(Ordering::Relaxed)
    }

    /// Most flows, over all workers.
    #[must_use]
    pub fn flow_limit(&self) -> u64 {
        self.flow_limit
    }

    /// How many connections the user of an endpoint's slot has, over all workers; flows that are closed and linger do
    /// not count.
    #[must_use]
    pub fn backend_connections(&self, id: BackendId) -> u32 {
        self.connections.get(id.index()).map_or(0, |n| n.load(Ordering::Relaxed))
    }

    /// How many connections there are to all endpoints, removed ones included. Reads a counter for every endpoint that may
    /// be: for people, not for packets.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.connections.iter().map(|n| u64::from(n.load(Ordering::Relaxed))).sum()
    }

    /// How many flows were opened for the Service port's slot since the process started.
    #[must_use]
    pub fn service_opened(&self, id: ServiceId) -> u64 {
        self.opened.get(id.index()).map_or(0, |n| n.load(Ordering::Relaxed))
    }

    /// Takes one of the flows that may be; `false`: there are as many as allowed.
    pub(crate) fn take_flow(&self) -> bool {
        if self.flows.fetch_add(1, Ordering::Relaxed) < self.flow_limit {
            return true;
        }
        self.give_back_flow();
        false
    }

    pub(crate) fn give_back_flow(&self) {
        self.flows.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn flow_adopted(&self) {
        self.flows.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn connection_opened(&self, id: BackendId) {
        if let Some(connections) = self.connections.get(id.index()) {
            connections.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn connection_closed(&self, id: BackendId) {
        if let Some(connections) = self.connections.get(id.index()) {
            connections.fetch_sub(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn count_opened(&self, id: ServiceId) {
        if let Some(opened) = self.opened.get(id.index()) {
            opened.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn reset_opened(&self, id: ServiceId) {
        if let Some(opened) = self.opened.get(id.index()) {
            opened.store(0, Ordering::Relaxed);
        }
    }
}

impl Balance for Shared {
    fn affinity(&self) -> &Affinity {
        &self.affinity
    }

    fn connections(&self, id: BackendId) -> u32 {
        self.backend_connections(id)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("flows", &self.flows()).field("workers", &self.workers).finish_non_exhaustive()
    }
}
