//! What translation needs to know besides the manifests: the configuration, and what the agent saw.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;
use lb::model::{Algorithm, Mode};
use serde::{Deserialize, Serialize};

use crate::listing::Probe;
use crate::pools::{Labels, Pool};

/// Where Millrace stands; policies differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Place {
    /// In front of the backends, reading manifests.
    #[default]
    Gateway,
    /// On a node of a cluster, watching an API server.
    Node,
}

/// Which kinds of frontend are served (`serve:`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Serve {
    /// Addresses of Services of type LoadBalancer.
    pub load_balancer: bool,
    /// `spec.externalIPs`.
    pub external_ips: bool,
    /// `spec.clusterIPs`.
    pub cluster_ip: bool,
    /// `spec.ports[].nodePort` on the node's own addresses.
    pub node_port: bool,
}

impl Default for Serve {
    fn default() -> Self {
        Self { load_balancer: true, external_ips: true, cluster_ip: false, node_port: false }
    }
}

/// A range of addresses of one family, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AddressRange {
    first: IpAddr,
    last: IpAddr,
}

/// Why a text is no [`AddressRange`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no range of addresses, expected ADDRESS, ADDRESS/PREFIX or FIRST-LAST of one family")]
pub struct AddressRangeError(String);

impl AddressRange {
    /// From its two ends; `None` where the families differ or the last comes before the first.
    #[must_use]
    pub fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        (first.is_ipv4() == last.is_ipv4() && first <= last).then_some(Self { first, last })
    }

    /// Of one address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        Self { first: address, last: address }
    }

    /// Its first address.
    #[must_use]
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// Its last address.
    #[must_use]
    pub fn last(&self) -> IpAddr {
        self.last
    }

    /// Whether it is of IPv6.
    #[must_use]
    pub fn is_ipv6(&self) -> bool {
        self.first.is_ipv6()
    }

    /// Whether the address is in it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.first.is_ipv4() && self.first <= address && address <= self.last
    }

    /// How many addresses it has, `u128::MAX` for all of IPv6.
    #[must_use]
    pub fn size(&self) -> u128 {
        (number(self.last) - number(self.first)).saturating_add(1)
    }

    /// The address at an offset from the first; `offset` must be below [`AddressRange::size`].
    #[must_use]
    pub fn at(&self, offset: u128) -> IpAddr {
        let number = number(self.first) + offset;
        match self.first {
            IpAddr::V4(_) => IpAddr::V4(u32::try_from(number).unwrap_or(u32::MAX).into()),
            IpAddr::V6(_) => IpAddr::V6(number.into()),
        }
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

impl From<IpNet> for AddressRange {
    fn from(net: IpNet) -> Self {
        Self { first: net.network(), last: net.broadcast() }
    }
}

impl FromStr for AddressRange {
    type Err = AddressRangeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || AddressRangeError(text.to_owned());
        let text = text.trim();
        if text.contains('/') {
            return text.parse::<IpNet>().map(Self::from).map_err(|_| wrong());
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let parse = |end: &str| end.trim().parse::<IpAddr>().map_err(|_| wrong());
        Self::new(parse(first)?, parse(last)?).ok_or_else(wrong)
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

impl Serialize for AddressRange {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AddressRange {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What topology rules and policies compare with.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Node {
    /// Compared with `nodeName` and `kubernetes.io/hostname`.
    pub hostname: Option<String>,
    /// `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
    /// `topology.kubernetes.io/region`.
    pub region: Option<String>,
}

/// What Services without the annotation get (`defaults:`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// How an endpoint is chosen.
    pub algorithm: Algorithm,
    /// How packets get there.
    pub mode: Mode,
    /// Whether LoadBalancer addresses and external IPs answer ping.
    pub echo: bool,
}

impl Default for Defaults {
    fn default() -> Self {
        Self { algorithm: Algorithm::Maglev, mode: Mode::Nat, echo: true }
    }
}

/// A backend that gets no new flows by order (`millrace drain`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Drained {
    /// Its address.
    pub address: IpAddr,
    /// Its port; `None` means all of them.
    pub port: Option<u16>,
}

/// What translation needs to know besides the objects.
#[derive(Clone, Debug)]
pub struct Context {
    /// Gateway or node.
    pub place: Place,
    /// Which kinds of frontend are served.
    pub serve: Serve,
    /// Where LoadBalancer addresses come from, those that are to be tried first in front.
    pub pools: Vec<Pool>,
    /// Labels of namespaces, which pools may select by.
    pub namespaces: Arc<BTreeMap<String, Labels>>,
    /// What no Service may have on a node, though a pool or `external_ip_ranges` have it, and what it is; Nodes' own
    /// addresses and the ranges of their Pods are known from the objects.
    pub reserved: Vec<(AddressRange, String)>,
    /// Which `spec.externalIPs` are served; `None`: all on a gateway, none on a node.
    pub external_ip_ranges: Option<Vec<IpNet>>,
    /// Where ClusterIPs come from; at most one of each family is of use.
    pub service_ranges: Vec<IpNet>,
    /// Where NodePorts come from.
    pub node_port_range: RangeInclusive<u16>,
    /// Where this box is.
    pub node: Node,
    /// The host's own addresses, which the kernel keeps answering for.
    pub node_addresses: Vec<IpAddr>,
    /// At which addresses NodePorts are served; `None`: at all of `node_addresses`. One that is not among those is a way to
    /// them that the host's own packets take.
    pub node_port_addresses: Option<Vec<IpAddr>>,
    /// Network and broadcast addresses of the host's subnets: no pool gives them.
    pub broadcasts: Vec<IpAddr>,
    /// What Services without an annotation get.
    pub defaults: Defaults,
    /// Backends that get no new flows.
    pub drained: BTreeSet<Drained>,
    /// What health checks found; one that is missing here is taken for healthy.
    pub health: BTreeMap<Probe, bool>,
}

impl Context {
    /// Whether all but health is the same.
    #[must_use]
    pub fn same_rules(&self, other: &Self) -> bool {
        let Self {
            place,
            serve,
            pools,
            namespaces,
            reserved,
            external_ip_ranges,
            service_ranges,
            node_port_range,
            node,
            node_addresses,
            node_port_addresses,
            broadcasts,
            defaults,
            drained,
            health: _,
        } = self;
        *place == other.place
            && *serve == other.serve
            && *pools == other.pools
            && *namespaces == other.namespaces
            && *reserved == other.reserved
            && *external_ip_ranges == other.external_ip_ranges
            && *service_ranges == other.service_ranges
            && *node_port_range == other.node_port_range
            && *node == other.node
            && *node_addresses == other.node_addresses
            && *node_port_addresses == other.node_port_addresses
            && *broadcasts == other.broadcasts
            && *defaults == other.defaults
            && *drained == other.drained
    }
}

impl Default for Context {
    fn default() -> Self {
        Self {
            place: Place::default(),
            serve: Serve::default(),
            pools: Vec::new(),
            namespaces: Arc::default(),
            reserved: Vec::new(),
            external_ip_ranges: None,
            service_ranges: Vec::new(),
            node_port_range: 30000..=32767,
            node: Node::default(),
            node_addresses: Vec::new(),
            node_port_addresses: None,
            broadcasts: Vec::new(),
            defaults: Defaults::default(),
            drained: BTreeSet::new(),
            health: BTreeMap::new(),
        }
    }
}
