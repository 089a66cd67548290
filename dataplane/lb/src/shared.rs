//! What must hold across workers: tables of atomics of fixed size, touched only where a flow opens or closes. What each
//! worker counts by itself is in its tally.

use std::fmt;
use std::fs::File;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use crate::affinity::Affinity;
use crate::directory::{Claim, Directory};
use crate::flow::FlowHash;
use crate::health::Health;
use crate::id::{BackendId, ServiceId, WorkerId};
use crate::rates::SourceRates;
use crate::select::Balance;
use crate::snat::PortBlocks;
use crate::sources::SourceLimits;
use crate::tally::Tally;

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
    /// Of each worker.
    tallies: Vec<Tally>,
    /// By Service port: how many flows were opened for former users of the slot.
    opened_before: Box<[AtomicU64]>,
    /// Flows that may be, and that no worker has taken; below zero where more were adopted than may be.
    spare_flows: Apart,
    flow_limit: u64,
    /// The flow file, locked while anybody uses it; `None` in memory.
    _file: Option<File>,
}

/// A number that workers write, on lines of its own (two: they come in pairs).
#[repr(align(128))]
struct Apart(AtomicI64);

/// The parts that a [`Shared`] is made of.
pub(crate) struct SharedParts {
    pub(crate) directory: Directory,
    pub(crate) blocks: PortBlocks,
    pub(crate) affinity: Affinity,
    pub(crate) sources: SourceLimits,
    pub(crate) rates: SourceRates,
    pub(crate) health: Health,
    pub(crate) tallies: Vec<Tally>,
    pub(crate) services: usize,
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
            tallies: parts.tallies,
            opened_before: (0..parts.services).map(|_| AtomicU64::new(0)).collect(),
            spare_flows: Apart(AtomicI64::new(parts.flow_limit as i64)),
            flow_limit: parts.flow_limit as u64,
            _file: parts.file,
        }
    }

    /// How many workers there are.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.tallies.len()
    }

    /// Claims the tag of a flow's key for a worker, see [`Directory::claim`]. The only worker always gets it, for nobody else
    /// could open the flow: one that finds no room in the directory goes without.
    #[must_use]
    #[inline]
    pub(crate) fn claim(&self, hash: FlowHash, worker: WorkerId) -> Claim {
        match self.directory.claim(hash.0, worker) {
            Claim::Full if self.workers() == 1 => Claim::Won,
            claim => claim,
        }
    }

    /// How many flows there are, over all workers.
    #[must_use]
    pub fn flows(&self) -> u64 {
        self.tallies.iter().map(Tally::flows).sum()
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
        self.tallies.iter().map(|tally| tally.connections(id)).sum()
    }

    /// How many connections there are to all endpoints, removed ones included. Reads a counter for every endpoint that may
    /// be: for people, not for packets.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.tallies.iter().map(Tally::all_connections).sum()
    }

    /// How many flows were opened for the Service port's slot since the process started.
    #[must_use]
    pub fn service_opened(&self, id: ServiceId) -> u64 {
        let before = self.opened_before.get(id.index()).map_or(0, |before| before.load(Ordering::Relaxed));
        self.opened_ever(id).saturating_sub(before)
    }

    /// The same and all that were opened for former users of the slot.
    fn opened_ever(&self, id: ServiceId) -> u64 {
        self.tallies.iter().map(|tally| tally.opened(id)).sum()
    }

    /// Takes up to so many of the flows that may be; gives how many.
    pub(crate) fn take_flows(&self, wanted: u32) -> u32 {
        let some = |spare: i64| i64::from(wanted).min(spare);
        let less = |spare: i64| (spare > 0).then(|| spare - some(spare));
        self.spare_flows.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).map_or(0, some) as u32
    }

    /// Gives back so many.
    pub(crate) fn give_back_flows(&self, flows: u32) {
        self.spare_flows.0.fetch_add(flows.into(), Ordering::Relaxed);
    }

    /// Takes one for a flow that is there already; `false`: it is more than may be.
    pub(crate) fn adopt_flow(&self) -> bool {
        self.spare_flows.0.fetch_sub(1, Ordering::Relaxed) > 0
    }

    /// What a worker counts of its own flows.
    #[inline]
    pub(crate) fn tally(&self, worker: WorkerId) -> &Tally {
        &self.tallies[usize::from(worker.0)]
    }

    /// Counts flows of a Service port's slot from here on.
    pub(crate) fn reset_opened(&self, id: ServiceId) {
        if let Some(before) = self.opened_before.get(id.index()) {
            before.store(self.opened_ever(id), Ordering::Relaxed);
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
        f.debug_struct("Shared").field("flows", &self.flows()).field("workers", &self.workers()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{FlowFile, FlowFileConfig};

    #[test]
    fn what_workers_count_adds_up_and_a_slot_counts_for_its_user_alone() {
        let config = FlowFileConfig { workers: 2, flows: 16, services: 2, backends: 4, ..FlowFileConfig::default() };
        let shared = FlowFile::in_memory(&config).unwrap().shared;
        let [one, two] = [0, 1].map(|worker| shared.tally(WorkerId(worker)));
        let (service, backend) = (ServiceId::new(1, 0), BackendId::new(3, 0));
        for tally in [one, two, two] {
            tally.count_opened(service);
            tally.connection_opened(backend);
        }
        one.set_flows(1);
        two.set_flows(2);
        assert_eq!((shared.service_opened(service), shared.backend_connections(backend)), (3, 3));
        two.connection_closed(backend);
        assert_eq!((shared.connections(), shared.flows()), (2, 3));
        shared.reset_opened(service);
        two.count_opened(service);
        assert_eq!((shared.service_opened(service), shared.service_opened(ServiceId::new(0, 0))), (1, 0));
    }
}
