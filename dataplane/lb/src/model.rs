//! The desired state that `translate` makes and [`Tables`](crate::Tables) are built from.
//!
//! Plain values in Kubernetes words. One [`ServicePort`] is one port of one Service in one family: its frontends
//! share its endpoints, its algorithm and its session affinity.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use wire::Protocol;
use wire::tunnel::Wrapping;

use crate::list::List;

/// All that is to be served, ordered and free of duplicates: equal manifests give equal values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DesiredState {
    /// Every Service port that has a frontend, by key; what did not change is shared with the state before.
    pub service_ports: List<Arc<ServicePort>>,
    /// Every address that Millrace answers for wholly (VIPs of pools, external IPs, ClusterIPs) and those served per
    /// port (node addresses), SNAT addresses excluded.
    pub addresses: Vec<VipAddress>,
}

impl DesiredState {
    /// Whether the same is to be reached at the same places, whatever the endpoints are.
    #[must_use]
    pub fn is_reached_as(&self, other: &Self) -> bool {
        let same = |a: &Arc<ServicePort>, b: &Arc<ServicePort>| {
            Arc::ptr_eq(a, b) || a.key == b.key && a.frontends == b.frontends
        };
        self.addresses == other.addresses && self.service_ports.is_like(&other.service_ports, same)
    }
}

/// Which Service port this is; stable over restarts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServicePortKey {
    /// The Service's namespace.
    pub namespace: String,
    /// The Service's name.
    pub name: String,
    /// The port's name; empty if it has none.
    pub port_name: String,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// Whether these are the IPv6 frontends and endpoints.
    pub ipv6: bool,
    /// Which frontends these are, where policies give external and internal ones different endpoints.
    pub scope: Scope,
}

impl ServicePortKey {
    /// A port without a name, in one family, whose frontends all share its endpoints.
    #[must_use]
    pub fn new(namespace: &str, name: &str, protocol: Protocol, ipv6: bool) -> Self {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        Self { namespace, name, port_name: String::new(), protocol, ipv6, scope: Scope::All }
    }
}

/// Which frontends of a Service port are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Scope {
    /// All of them: one set of endpoints serves them.
    #[default]
    All,
    /// Those of `externalTrafficPolicy`: LoadBalancer, ExternalIp and NodePort.
    External,
    /// Those of `internalTrafficPolicy`: ClusterIp.
    Internal,
}

/// One port of one Service in one family.
#[derive(Clone, Debug, PartialEq)]
pub struct ServicePort {
    /// Its stable name.
    pub key: ServicePortKey,
    /// `spec.ports[].port`; session affinity is by source and this.
    pub port: u16,
    /// Where it is reached.
    pub frontends: Vec<Frontend>,
    /// What serves it: the usable set and those that only keep their flows; policies and topology already applied.
    pub endpoints: Vec<Endpoint>,
    /// How an endpoint is chosen.
    pub algorithm: Algorithm,
    /// How packets get there.
    pub mode: Mode,
    /// `sessionAffinity: ClientIP` with its timeout.
    pub affinity: Option<Duration>,
    /// `loadBalancerSourceRanges` as (address, prefix length); empty means all. Applies to frontends of kind
    /// LoadBalancer and ExternalIp. The ports of a Service share it.
    pub source_ranges: Arc<[(IpAddr, u8)]>,
    /// What happens where no endpoint is usable.
    pub no_endpoint: NoEndpoint,
    /// `millrace.dev/udp-timeout`.
    pub udp_timeout: Option<Duration>,
    /// `millrace.dev/drain`: how long TCP flows of a removed endpoint may go on; `None`: until idle.
    pub drain: Option<Duration>,
    /// Smallest table size to use (the size once reached is kept): one of [`crate::model::TABLE_SIZES`].
    pub min_table_size: usize,
}

impl ServicePort {
    /// A Service port that is reached nowhere and served by nobody, all else as where a manifest does not say.
    #[must_use]
    pub fn new(key: ServicePortKey, port: u16) -> Self {
        Self {
            key,
            port,
            frontends: Vec::new(),
            endpoints: Vec::new(),
            algorithm: Algorithm::default(),
            mode: Mode::default(),
            affinity: None,
            source_ranges: [].into(),
            no_endpoint: NoEndpoint::default(),
            udp_timeout: None,
            drain: None,
            min_table_size: TABLE_SIZES[0],
        }
    }
}

/// The ladder of Maglev table sizes, all prime.
pub const TABLE_SIZES: [usize; 3] = [1021, 16381, 65537];

/// An address and port where a Service port is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frontend {
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// Which field asks for it.
    pub kind: FrontendKind,
}

/// Which field of a Service asks for a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FrontendKind {
    /// `status.loadBalancer.ingress`, or the address given from a pool.
    LoadBalancer,
    /// `spec.externalIPs`.
    ExternalIp,
    /// `spec.clusterIPs`.
    ClusterIp,
    /// `spec.ports[].nodePort` on an address of the node.
    NodePort,
}

/// An endpoint of a Service port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// Its port; the slice's, not `targetPort`.
    pub port: u16,
    /// 0 to 65535; 0 gets no new flows.
    pub weight: u16,
    /// Whether it gets new flows.
    pub state: EndpointState,
    /// `nodeName`, where given.
    pub node: Option<String>,
    /// The zone, where known.
    pub zone: Option<String>,
    /// `targetRef` as `namespace/name`, where given.
    pub target: Option<String>,
}

impl Endpoint {
    /// An endpoint that gets new flows, of which nothing else is known.
    #[must_use]
    pub const fn new(address: IpAddr, port: u16) -> Self {
        Self { address, port, weight: 1, state: EndpointState::Usable, node: None, zone: None, target: None }
    }
}

/// Whether an endpoint gets new flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EndpointState {
    /// In the usable set.
    Usable,
    /// Terminating, drained, or outside the usable set: keeps the flows it has, gets no new ones.
    Draining,
}

/// How an endpoint is chosen (`millrace.dev/algorithm`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Algorithm {
    /// Consistent hash of the 5-tuple.
    #[default]
    Maglev,
    /// In turn, per worker, weighted.
    RoundRobin,
    /// At random, weighted.
    Random,
    /// The fewest connections for its weight, counted across workers.
    LeastConnections,
    /// Consistent hash of the source alone.
    SourceHash,
}

/// How packets get to an endpoint (`millrace.dev/mode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Mode {
    /// DNAT and SNAT.
    #[default]
    Nat,
    /// DNAT, the client's address kept; the endpoint's route to clients leads here.
    Preserve,
    /// The packet as it is, in a frame to the endpoint, which has the frontend's address too.
    DsrL2,
    /// The packet as it is, within a packet to the endpoint: IP in IP.
    DsrIpip,
    /// The same: IP in UDP (GUE).
    DsrGue,
}

impl Mode {
    /// Every mode, in the order of its number.
    const ALL: [Self; 5] = [Self::Nat, Self::Preserve, Self::DsrL2, Self::DsrIpip, Self::DsrGue];

    /// From the number in a flow's entry, `mode as u8`.
    #[must_use]
    pub(crate) fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Whether endpoints answer clients past us ("direct server return"): packets keep addresses and ports, replies are
    /// not seen.
    #[must_use]
    pub const fn is_direct(self) -> bool {
        matches!(self, Self::DsrL2 | Self::DsrIpip | Self::DsrGue)
    }

    /// What goes around a packet, in a mode that tunnels.
    #[must_use]
    pub const fn wrapping(self) -> Option<Wrapping> {
        match self {
            Self::DsrIpip => Some(Wrapping::Ip),
            Self::DsrGue => Some(Wrapping::Gue),
            _ => None,
        }
    }
}

/// What happens to a packet where no endpoint is usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum NoEndpoint {
    /// TCP RST or ICMP port unreachable.
    #[default]
    Reject,
    /// Silence (policy Local, topology keys without a match).
    Drop,
}

/// An address that is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VipAddress {
    /// The address.
    pub address: IpAddr,
    /// Whether it is a host's own address, served on its frontends' ports alone (no ARP, no echo, no reject).
    pub host_owned: bool,
    /// Whether it answers ping.
    pub echo: bool,
    /// Whether each node of a cluster serves it for itself and its pods (a ClusterIP): nobody announces it.
    pub internal: bool,
}

impl VipAddress {
    /// Whether who looks for it on a link is told that it is here.
    #[must_use]
    pub const fn is_announced(&self) -> bool {
        !self.host_owned && !self.internal
    }
}
