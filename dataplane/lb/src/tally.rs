//! What each worker counts of its own flows, for everybody to read. Only the worker writes, so nothing is locked, and no
//! line goes from core to core for each flow that opens.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arena::{ArenaError, Pages, SharedSlab};

use crate::id::{BackendId, ServiceId};

/// A worker's counts, on lines of their own (two: they come in pairs).
#[repr(align(128))]
pub(crate) struct Tally {
    /// By endpoint.
    connections: SharedSlab<AtomicU32>,
    /// By Service port.
    opened: SharedSlab<AtomicU64>,
    flows: AtomicU64,
}

impl Tally {
    /// For so many Service ports and endpoints; pages that none of them uses cost nothing.
    ///
    /// # Errors
    /// If there is no memory.
    pub(crate) fn new(services: usize, backends: usize) -> Result<Self, ArenaError> {
        Ok(Self {
            connections: SharedSlab::anonymous(backends, Pages::Base)?,
            opened: SharedSlab::anonymous(services, Pages::Base)?,
            flows: AtomicU64::new(0),
        })
    }

    /// A connection to an endpoint more.
    #[inline]
    pub(crate) fn connection_opened(&self, id: BackendId) {
        self.recount(id, |count| count + 1);
    }

    /// One less.
    #[inline]
    pub(crate) fn connection_closed(&self, id: BackendId) {
        self.recount(id, |count| count - 1);
    }

    #[inline]
    fn recount(&self, id: BackendId, change: impl FnOnce(u32) -> u32) {
        if let Some(count) = self.connections.get(id.index()) {
            count.store(change(count.load(Ordering::Relaxed)), Ordering::Relaxed);
        }
    }

    /// A flow of a Service port more, ever.
    #[inline]
    pub(crate) fn count_opened(&self, id: ServiceId) {
        if let Some(count) = self.opened.get(id.index()) {
            count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
    }

    /// How many flows the worker has.
    #[inline]
    pub(crate) fn set_flows(&self, flows: usize) {
        self.flows.store(flows as u64, Ordering::Relaxed);
    }

    pub(crate) fn connections(&self, id: BackendId) -> u32 {
        self.connections.get(id.index()).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    pub(crate) fn all_connections(&self) -> u64 {
        self.connections.iter().map(|count| u64::from(count.load(Ordering::Relaxed))).sum()
    }

    pub(crate) fn opened(&self, id: ServiceId) -> u64 {
        self.opened.get(id.index()).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    pub(crate) fn flows(&self) -> u64 {
        self.flows.load(Ordering::Relaxed)
    }
}
