//! The immutable [`Tables`] that a worker reads: what changes rarely, published whole by the control thread.
//!
//! Rows are indexed by stable ids, so a flow reaches its endpoint's row without a search. A [`BackendRow`] has its next
//! hop in it: one cache line tells where a packet of the flow goes.

use std::sync::Arc;

use wire::{Addr, MacAddr, Plain, Port, Protocol, Tags};

use crate::id::{BackendId, PortId, ServiceId};
use crate::list::List;
use crate::maglev::Maglev;
use crate::model::{Algorithm, Mode, NoEndpoint, ServicePort};
pub use crate::origin::Origin;
use crate::probe::ProbeMap;
use crate::ranges::SourceRanges;
use crate::select::SelectionHash;
pub use crate::snat_pool::{SnatAddress, SnatPool, SnatSupply};

/// Everything a worker reads that it does not own. Parts are shared between generations where nothing changed.
#[derive(Debug, Default)]
pub struct Tables {
    /// Counts publications; exported as `millrace_tables_generation`.
    pub generation: u64,
    /// Where Services are reached.
    pub frontends: Arc<FrontendMap>,
    /// Which addresses are ours.
    pub addresses: Arc<AddressMap>,
    /// Which endpoints answer whatever comes.
    pub answering: Arc<EndpointSet>,
    /// Service ports by [`ServiceId::index`].
    pub services: List<Option<Arc<ServiceTable>>>,
    /// Endpoints by [`BackendId::index`].
    pub backends: Arc<Vec<BackendRow>>,
    /// What Service ports were made of, in the order of the desired state.
    pub origins: List<Origin>,
    /// These, one for one, where everything found room; else none.
    pub(crate) made_of: List<Arc<ServicePort>>,
    /// Endpoints with a row that are not desired.
    pub leaving: Vec<BackendId>,
    /// Whether some of these have flows though their drain is over.
    pub(crate) drains_over: bool,
    /// What `addresses` was made of.
    pub(crate) ours: Arc<Vec<(Addr, OurAddress)>>,
    /// NICs by [`PortId`].
    pub ports: Vec<PortRow>,
    /// The same as the packet path writes them, without a destination.
    pub links: Vec<Link>,
    /// The way to the kernel, where there is one.
    pub kernel: Option<KernelPort>,
    /// Where SNAT ports are taken from.
    pub snat: Arc<SnatPool>,
    /// Source addresses of outer headers.
    pub tunnels: Arc<TunnelSources>,
    /// Idle timeouts, in ticks.
    pub timeouts: Timeouts,
    /// What becomes of the segment sizes that SYNs offer.
    pub mss_clamp: MssClamp,
    /// Most flows of one source; 0: no limit.
    pub flows_per_source: u32,
    /// Most flows that one source may open a second; 0: no limit.
    pub new_flows_per_source: u32,
    /// The hash that endpoints are chosen by.
    pub selection: SelectionHash,
}

/// What becomes of the maximum segment sizes that SYNs offer (`mssClamp` in the configuration).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MssClamp {
    /// They stay.
    #[default]
    Off,
    /// What fits the NIC that the SYN comes in on and its next hop, at most.
    Auto,
    /// So many octets at most.
    Most(u16),
}

/// The seed of endpoint selection (`seed` in the configuration): the same on boxes that share addresses, not secret.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SelectionSeed(pub u64, pub u64);

/// An endpoint of a Service port with its next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct BackendRow {
    /// Its id; a flow whose generation differs belongs to a former user of the slot.
    pub id: BackendId,
    /// Its port.
    pub port: Port,
    /// Whether it gets flows.
    pub state: BackendState,
    /// Whether packets of flows to it need no more than their rewrite and `link`: flows stay, and it is reached as its
    /// Service's mode needs it.
    pub steady: bool,
    /// Its address.
    pub address: Addr,
    /// How its packets leave, as the packet path writes it.
    pub link: Link,
    /// The same in words.
    pub hop: Hop,
    /// Whether its Service needs it on a link of ours (mode `dsr-l2`).
    pub near: bool,
}

const _: () = assert!(size_of::<BackendRow>() == 64);

/// Whether an endpoint gets flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendState {
    /// The slot has no user.
    Free,
    /// Gets new flows.
    Usable,
    /// Keeps its flows, gets no new ones.
    Draining,
    /// No longer in the manifests: TCP flows go on until idle (or until `drain` ended: then [`BackendState::Free`]);
    /// UDP flows move if another endpoint serves.
    Removed,
}

/// The next hop towards an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Whether a frame can be sent.
    pub state: HopState,
    /// The NIC that it leaves by.
    pub port: PortId,
    /// Link-layer destination.
    pub dst_mac: MacAddr,
    /// Link-layer source.
    pub src_mac: MacAddr,
    /// Largest IP packet, octets.
    pub mtu: u16,
    /// Whether this is the address itself, not a router on the way there.
    pub on_link: bool,
    /// VLAN tags that its frames have.
    pub tags: Tags,
}

/// How a frame leaves, in two words: link-layer addresses as they stand in the frame, how long it may be, NIC.
///
/// The packet path writes the words to the frame as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Destination, then the first two octets of the source.
    head: u64,
    /// The other four octets of the source, where a packet ends at most (16 bits), NIC (8 bits).
    tail: u64,
}

impl Link {
    /// By the NIC `port` with these addresses.
    #[must_use]
    pub const fn new(port: PortId, src: MacAddr, dst: MacAddr, mtu: u16) -> Self {
        let src = src.word();
        let end = Plain::end_of(mtu);
        Self { head: dst.word() | src << 48, tail: src >> 16 | (end as u64) << 32 | (port.0 as u64) << 48 }
    }

    /// The same to another destination, where this one has [`MacAddr::UNKNOWN`].
    #[must_use]
    #[inline]
    pub const fn towards(self, dst: u64) -> Self {
        Self { head: self.head | dst, tail: self.tail }
    }

    /// Destination and source as [`wire::Plain::rewrite`] takes them.
    #[must_use]
    #[inline]
    pub const fn addresses(self) -> (u64, u32) {
        (self.head, self.tail as u32)
    }

    /// Where the longest IP packet ends that may leave, octets from the frame's beginning.
    #[must_use]
    #[inline]
    pub const fn end(self) -> u16 {
        (self.tail >> 32) as u16
    }

    /// The NIC.
    #[must_use]
    #[inline]
    pub const fn port(self) -> PortId {
        PortId((self.tail >> 48) as u8)
    }
}

impl From<Hop> for Link {
    fn from(hop: Hop) -> Self {
        Self::new(hop.port, hop.src_mac, hop.dst_mac, hop.mtu)
    }
}

/// Whether a frame can be sent to a next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HopState {
    /// Yes.
    Resolved,
    /// The neighbour's link-layer address is not known yet.
    Unresolved,
    /// The kernel has no route there by a NIC of ours.
    NoRoute,
}

/// A NIC that Millrace forwards on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRow {
    /// Its link-layer address.
    pub mac: MacAddr,
    /// Largest IP packet, octets.
    pub mtu: u16,
    /// Whether frames may have partial checksums (veth, virtio, tap: a local stack's offloaded ones).
    pub virtual_device: bool,
}

/// One end of a wire whose other end the kernel routes: for endpoints that only the kernel reaches, and for what is its
/// own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelPort {
    /// Which port that is.
    pub port: PortId,
    /// The link-layer address of the kernel's end.
    pub peer: MacAddr,
    /// Whether the kernel brings back what endpoints answer to clients' own addresses.
    pub brings_back: bool,
}

/// What an address of ours is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OurAddress {
    /// A dedicated VIP: ARP and NDP answered if `answers`, ping if `echo`, ports without a Service rejected.
    Vip {
        /// Whether it answers ping.
        echo: bool,
        /// Whether ARP and NDP for it are answered here; else another node does that.
        answers: bool,
    },
    /// An address of the host, steered per port.
    HostOwned,
    /// A SNAT address: its packets are replies.
    Snat {
        /// Whether ARP and NDP for it are answered here (dedicated), or by the kernel.
        dedicated: bool,
    },
}

/// Idle timeouts, in [`crate::Tick`]s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP, both sides established (RFC 5382 REQ-5).
    pub tcp_established: u32,
    /// TCP, after one FIN (half-closed).
    pub tcp_transitory: u32,
    /// TCP, the handshake is not complete.
    pub tcp_opening: u32,
    /// TCP, both FINs acknowledged or a RST accepted.
    pub tcp_closed: u32,
    /// UDP with traffic both ways (RFC 4787 REQ-5).
    pub udp: u32,
    /// UDP, nothing came back.
    pub udp_unreplied: u32,
    /// UDP port 53.
    pub dns: u32,
    /// UDP port 53 after one query with one reply.
    pub dns_done: u32,
    /// SCTP, the handshake is not complete. More than the three seconds of Linux's connection tracking, which end when a client
    /// that has RFC 4960's RTO.Initial of three seconds sends its INIT again: an endpoint's silence would go unnoticed.
    pub sctp_opening: u32,
    /// SCTP, associated: several heartbeats of the endpoints may get lost. This and the next two are as in Linux's connection
    /// tracking (`nf_conntrack_sctp_timeout_…`, Documentation/networking/nf_conntrack-sysctl.rst).
    pub sctp_established: u32,
    /// SCTP, after SHUTDOWN.
    pub sctp_closing: u32,
    /// SCTP, after SHUTDOWN COMPLETE or ABORT.
    pub sctp_closed: u32,
}

impl Default for Timeouts {
    fn default() -> Self {
        use crate::time::Tick;
        Self {
            tcp_established: Tick::from_millis(7_440_000),
            tcp_transitory: Tick::from_millis(240_000),
            tcp_opening: Tick::from_millis(60_000),
            tcp_closed: Tick::from_millis(10_000),
            udp: Tick::from_millis(300_000),
            udp_unreplied: Tick::from_millis(120_000),
            dns: Tick::from_millis(30_000),
            dns_done: Tick::from_millis(5_000),
            sctp_opening: Tick::from_millis(10_000),
            sctp_established: Tick::from_millis(210_000),
            sctp_closing: Tick::from_millis(3_000),
            sctp_closed: Tick::from_millis(10_000),
        }
    }
}

/// Where Services are reached: (address, port, protocol) → Service port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FrontendMap(ProbeMap<(Addr, Port, Protocol), FrontendRow>);

/// A frontend of a Service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrontendRow {
    /// The Service port.
    pub service: ServiceId,
    /// Whether `loadBalancerSourceRanges` applies here (LoadBalancer and ExternalIp frontends).
    pub check_source_ranges: bool,
}

impl FrontendMap {
    /// From frontends; of two for the same place the first counts.
    #[must_use]
    pub fn new(frontends: &[(Addr, Port, Protocol, FrontendRow)]) -> Self {
        Self(ProbeMap::build(frontends.iter().map(|&(address, port, protocol, row)| ((address, port, protocol), row))))
    }

    /// The frontend at this place.
    #[must_use]
    #[inline]
    pub fn get(&self, address: &Addr, port: Port, protocol: Protocol) -> Option<FrontendRow> {
        self.0.get(&(*address, port, protocol))
    }

    /// Asks for the memory where the frontend at this place is, if it is where nearly all are.
    #[inline]
    pub fn prefetch(&self, address: &Addr, port: Port, protocol: Protocol) {
        self.0.prefetch(&(*address, port, protocol));
    }

    /// Every frontend, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (Addr, Port, Protocol, FrontendRow)> + '_ {
        self.0.iter().map(|((address, port, protocol), row)| (address, port, protocol, row))
    }

    /// How many frontends.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is served.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Which addresses are ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressMap(ProbeMap<Addr, OurAddress>);

/// Where endpoints answer whatever comes, from the very port: UDP, where an answer looks like a question.
#[derive(Debug, Default)]
pub struct EndpointSet(ProbeMap<(Addr, Port, Protocol), ()>);

impl EndpointSet {
    /// From endpoints' addresses, ports and protocols.
    #[must_use]
    pub fn new(endpoints: &[(Addr, Port, Protocol)]) -> Self {
        Self(ProbeMap::build(endpoints.iter().map(|endpoint| (*endpoint, ()))))
    }

    /// Whether there is one.
    #[must_use]
    #[inline]
    pub fn has(&self, address: &Addr, port: Port, protocol: Protocol) -> bool {
        self.0.get(&(*address, port, protocol)).is_some()
    }
}

impl AddressMap {
    /// From addresses; of two equal ones the first counts.
    #[must_use]
    pub fn new(addresses: &[(Addr, OurAddress)]) -> Self {
        Self(ProbeMap::build(addresses.iter().copied()))
    }

    /// What this address of ours is; `None` where it is not ours.
    #[must_use]
    #[inline]
    pub fn get(&self, address: &Addr) -> Option<OurAddress> {
        self.0.get(address)
    }

    /// Every address, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (Addr, OurAddress)> + '_ {
        self.0.iter()
    }

    /// How many addresses.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no address is ours.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A Service port of one family as workers see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceTable {
    /// Its id.
    pub id: ServiceId,
    /// Its protocol.
    pub protocol: Protocol,
    /// `spec.ports[].port`.
    pub port: Port,
    /// How an endpoint is chosen.
    pub algorithm: Algorithm,
    /// How packets get there.
    pub mode: Mode,
    /// Session affinity's timeout in ticks.
    pub affinity: Option<u32>,
    /// Who may open flows at frontends that check it.
    pub ranges: SourceRanges,
    /// What happens where `usable` is empty.
    pub no_endpoint: NoEndpoint,
    /// Idle timeout of its UDP flows in ticks, where it has its own.
    pub udp_timeout: Option<u32>,
    /// Endpoints that get new flows, none of weight 0, ordered by address and port.
    pub usable: Vec<UsableBackend>,
    /// Sum of the weights up to and with each of `usable`, all divided by their greatest common divisor.
    pub cumulative: Vec<u32>,
    /// How far round-robin steps through the sum of the weights; it has no divisor in common with it.
    pub stride: u32,
    /// Size of the Maglev table that was reached; kept, for a step moves most untracked flows.
    pub table_size: usize,
    /// Index into `usable` by hash. Empty where neither algorithm nor affinity asks for it.
    pub maglev: Arc<Maglev>,
}

/// An endpoint that gets new flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsableBackend {
    /// Its id; its row is in [`Tables::backends`].
    pub id: BackendId,
    /// Its weight, 1 to 65535.
    pub weight: u16,
}

/// Addresses of ours that tunnels start at: several, for what receives IP in IP spreads it over its queues by the
/// addresses alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TunnelSources {
    v4: Vec<Addr>,
    v6: Vec<Addr>,
}

impl TunnelSources {
    /// Of these addresses.
    #[must_use]
    pub fn new(addresses: &[Addr]) -> Self {
        let (v4, v6) = addresses.iter().partition(|address| address.is_v4());
        Self { v4, v6 }
    }

    fn family(&self, v4: bool) -> &[Addr] {
        if v4 { &self.v4 } else { &self.v6 }
    }

    /// The one for a flow with this number, towards an endpoint.
    #[must_use]
    pub fn towards(&self, endpoint: &Addr, entropy: u32) -> Option<Addr> {
        let family = self.family(endpoint.is_v4());
        family.get(((u64::from(entropy) * family.len() as u64) >> 32) as usize).copied()
    }

    /// Whether this is one of them.
    #[must_use]
    pub fn contains(&self, address: &Addr) -> bool {
        self.family(address.is_v4()).contains(address)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Addr> {
        self.v4.iter().chain(&self.v6)
    }
}

impl Tables {
    /// Whether frames by this next hop go to the kernel.
    #[must_use]
    #[inline]
    pub fn is_by_kernel(&self, hop: &Hop) -> bool {
        self.kernel.is_some_and(|kernel| kernel.port == hop.port)
    }

    /// Whether answers to clients' own addresses come back from endpoints by this next hop.
    #[must_use]
    #[inline]
    pub fn brings_back(&self, hop: &Hop) -> bool {
        self.kernel.is_none_or(|kernel| kernel.port != hop.port || kernel.brings_back)
    }

    /// Octets that all of it takes: rows, frontends and each Service's own table.
    #[must_use]
    pub fn octets(&self) -> usize {
        let services: usize = self.services.iter().flatten().map(|service| service.octets()).sum();
        let origins: usize = self.origins.iter().map(Origin::octets).sum();
        services
            + origins
            + self.services.len() * size_of::<Option<Arc<ServiceTable>>>()
            + size_of_val(self.backends.as_slice())
            + self.frontends.0.octets()
            + self.addresses.0.octets()
    }

    /// The Service port with this id, if it is still served.
    #[must_use]
    #[inline]
    pub fn service(&self, id: ServiceId) -> Option<&ServiceTable> {
        self.services.get(id.index())?.as_deref().filter(|service| service.id == id)
    }

    /// The endpoint with this id, unless its slot is free or has another user by now.
    #[must_use]
    #[inline]
    pub fn backend(&self, id: BackendId) -> Option<&BackendRow> {
        self.backends.get(id.index()).filter(|row| row.id == id && row.state != BackendState::Free)
    }
}

impl ServiceTable {
    fn octets(&self) -> usize {
        size_of::<Self>()
            + self.ranges.octets()
            + size_of_val(self.usable.as_slice())
            + size_of_val(self.cumulative.as_slice())
            + size_of_val(self.maglev.slots())
    }
}

impl BackendRow {
    /// A slot without a user.
    pub const FREE: Self = Self {
        id: BackendId::new(0, 0),
        port: Port::new(0),
        state: BackendState::Free,
        steady: false,
        address: Addr::UNSPECIFIED,
        link: Link::new(PortId(0), MacAddr::UNKNOWN, MacAddr::UNKNOWN, 0),
        hop: Hop::NO_ROUTE,
        near: false,
    };

    /// The same row with this next hop.
    #[must_use]
    pub fn by(self, hop: Hop) -> Self {
        let stays = matches!(self.state, BackendState::Usable | BackendState::Draining);
        let untagged = hop.tags.is_none();
        let steady = stays && hop.state == HopState::Resolved && (hop.on_link || !self.near) && untagged;
        Self { hop, link: hop.into(), steady, ..self }
    }
}

impl Hop {
    /// No way there.
    pub const NO_ROUTE: Self = Self {
        state: HopState::NoRoute,
        port: PortId(0),
        dst_mac: MacAddr::UNKNOWN,
        src_mac: MacAddr::UNKNOWN,
        mtu: 1500,
        on_link: false,
        tags: Tags::NONE,
    };
}
