//! What a Service port's table was made of, so that the next build can tell that nothing changed.

use std::sync::Arc;

use wire::Protocol;

use crate::id::{BackendId, ServiceId};
use crate::model::{Endpoint, ServicePort};

/// A Service port that tables were built from.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Its id.
    pub id: ServiceId,
    /// As it was.
    pub port: Arc<ServicePort>,
    /// The ids of its endpoints, in its own order; `None` where there was no room.
    pub backends: Arc<[Option<BackendId>]>,
}

impl Origin {
    /// Whether each endpoint has its id.
    pub(crate) fn is_whole(&self) -> bool {
        self.backends.iter().all(Option::is_some)
    }

    /// Whether the same endpoints answer datagrams.
    pub(crate) fn answers_like(&self, port: &Arc<ServicePort>) -> bool {
        let own = &self.port;
        let places = |port: &ServicePort| -> Vec<_> { port.endpoints.iter().map(|e| (e.address, e.port)).collect() };
        Arc::ptr_eq(own, port) || own.key.protocol != Protocol::UDP || places(own) == places(port)
    }

    /// Whether a table of this Service port would be the same.
    pub(crate) fn is(&self, port: &Arc<ServicePort>) -> bool {
        let own = &self.port;
        Arc::ptr_eq(own, port)
            || own.port == port.port
                && own.frontends == port.frontends
                && own.endpoints.len() == port.endpoints.len()
                && own.endpoints.iter().zip(&port.endpoints).all(|(own, endpoint)| serves_like(own, endpoint))
                && own.algorithm == port.algorithm
                && own.mode == port.mode
                && own.affinity == port.affinity
                && own.source_ranges == port.source_ranges
                && own.no_endpoint == port.no_endpoint
                && own.udp_timeout == port.udp_timeout
                && own.min_table_size == port.min_table_size
    }

    /// Whether it is reached at the same places under the same rules.
    pub(crate) fn is_reached_as(&self, port: &Arc<ServicePort>) -> bool {
        let own = &self.port;
        Arc::ptr_eq(own, port)
            || own.frontends == port.frontends && own.source_ranges.is_empty() == port.source_ranges.is_empty()
    }

    /// The ids of its endpoints.
    pub(crate) fn ids(&self) -> impl Iterator<Item = BackendId> + '_ {
        self.backends.iter().copied().flatten()
    }

    /// Octets that it takes, those of the names in it left out.
    pub(crate) fn octets(&self) -> usize {
        size_of::<Self>()
            + size_of_val(&self.backends[..])
            + size_of::<ServicePort>()
            + size_of_val(&self.port.frontends[..])
            + size_of_val(&self.port.endpoints[..])
            + size_of_val(&self.port.source_ranges[..])
    }
}

/// Whether tables need not tell one from the other.
fn serves_like(a: &Endpoint, b: &Endpoint) -> bool {
    (a.port, a.weight, a.state, a.address) == (b.port, b.weight, b.state, b.address)
}
