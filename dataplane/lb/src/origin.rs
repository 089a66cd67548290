//! What a Service port's table was made of, so that the next build can tell that nothing changed.

use std::net::IpAddr;
use std::time::Duration;

use wire::{Addr, Port};

use crate::id::BackendId;
use crate::model::{Algorithm, Endpoint, EndpointState, Frontend, Mode, NoEndpoint, ServicePort};

/// Everything of a [`ServicePort`] that tables depend on, and the ids that its endpoints got, in its own order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    port: u16,
    frontends: Box<[Frontend]>,
    endpoints: Box<[Made]>,
    algorithm: Algorithm,
    mode: Mode,
    affinity: Option<Duration>,
    source_ranges: Box<[(IpAddr, u8)]>,
    no_endpoint: NoEndpoint,
    udp_timeout: Option<Duration>,
    min_table_size: usize,
}

/// An endpoint and its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Made {
    address: Addr,
    port: Port,
    weight: u16,
    state: EndpointState,
    id: BackendId,
}

impl Made {
    fn is(&self, endpoint: &Endpoint) -> bool {
        self.port.number() == endpoint.port
            && self.weight == endpoint.weight
            && self.state == endpoint.state
            && self.address == Addr::from(endpoint.address)
    }
}

impl Origin {
    /// Of a Service port whose endpoints have these ids, each its own.
    pub(crate) fn of(port: &ServicePort, ids: &[BackendId]) -> Self {
        let made = |(endpoint, &id): (&Endpoint, &BackendId)| Made {
            address: endpoint.address.into(),
            port: Port::new(endpoint.port),
            weight: endpoint.weight,
            state: endpoint.state,
            id,
        };
        Self {
            port: port.port,
            frontends: port.frontends.as_slice().into(),
            endpoints: port.endpoints.iter().zip(ids).map(made).collect(),
            algorithm: port.algorithm,
            mode: port.mode,
            affinity: port.affinity,
            source_ranges: port.source_ranges.as_slice().into(),
            no_endpoint: port.no_endpoint,
            udp_timeout: port.udp_timeout,
            min_table_size: port.min_table_size,
        }
    }

    /// Whether a table of this Service port would be the same.
    pub(crate) fn is(&self, port: &ServicePort) -> bool {
        self.port == port.port
            && self.frontends[..] == port.frontends[..]
            && self.endpoints.len() == port.endpoints.len()
            && self.endpoints.iter().zip(&port.endpoints).all(|(made, endpoint)| made.is(endpoint))
            && self.algorithm == port.algorithm
            && self.mode == port.mode
            && self.affinity == port.affinity
            && self.source_ranges[..] == port.source_ranges[..]
            && self.no_endpoint == port.no_endpoint
            && self.udp_timeout == port.udp_timeout
            && self.min_table_size == port.min_table_size
    }

    /// Whether it is reached at the same places under the same rules.
    pub(crate) fn is_reached_as(&self, port: &ServicePort) -> bool {
        self.frontends[..] == port.frontends[..] && self.source_ranges.is_empty() == port.source_ranges.is_empty()
    }

    /// The ids of its endpoints.
    pub(crate) fn ids(&self) -> impl Iterator<Item = BackendId> + '_ {
        self.endpoints.iter().map(|made| made.id)
    }

    /// Octets that it takes.
    pub(crate) fn octets(&self) -> usize {
        size_of::<Self>()
            + size_of_val(&self.frontends[..])
            + size_of_val(&self.endpoints[..])
            + size_of_val(&self.source_ranges[..])
    }
}
