//! The picture of the kernel's network state, and the answers it gives. Pure: messages in, answers out.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use lb::PortId;
use lb::tables::{Hop, HopState};
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourMessage, NeighbourState,
};
use wire::MacAddr;

use super::routes::{NextHop, Routes};
use super::{HostAddress, Link, link};

/// A neighbour by the interface that it is on.
pub(super) type NeighbourKey = (u32, IpAddr);

/// What the kernel knows of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Neighbour {
    /// Its link-layer address, while the kernel would send to it.
    pub mac: Option<MacAddr>,
    /// Whether the kernel keeps it resolved by itself.
    pub managed: bool,
    /// Whether somebody set it for good, so that nothing is to be resolved.
    pub fixed: bool,
}

/// What everything but the neighbours is taken from, read as a whole.
#[derive(Debug, Default)]
pub(super) struct Dump {
    pub links: Vec<LinkMessage>,
    pub queues: HashMap<u32, link::Queues>,
    pub addresses: Vec<AddressMessage>,
    pub routes: Routes,
}

/// The picture.
#[derive(Debug)]
pub(super) struct View {
    /// Our NICs by [`PortId`], as they were last seen.
    ours: Vec<Link>,
    names: BTreeMap<u32, String>,
    addresses: Vec<HostAddress>,
    routes: Routes,
    neighbours: HashMap<NeighbourKey, Neighbour>,
    /// Counts what may have changed an answer.
    version: u64,
}

impl View {
    /// Of a host that nothing is known of; `interfaces` are ours, by [`PortId`].
    pub fn new(interfaces: Vec<String>) -> Self {
        let unseen = |name| Link {
            name,
            ifindex: 0,
            mac: MacAddr::UNKNOWN,
            mtu: 0,
            rx_queues: 0,
            tx_queues: 0,
            virtual_device: false,
            up: false,
            kind: String::new(),
        };
        Self {
            ours: interfaces.into_iter().map(unseen).collect(),
            names: BTreeMap::new(),
            addresses: Vec::new(),
            routes: Routes::default(),
            neighbours: HashMap::new(),
            version: 0,
        }
    }

    /// As long as it is the same, so is every answer.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Counts a change, if it is one.
    fn changed(&mut self, changed: bool) -> bool {
        self.version += u64::from(changed);
        changed
    }

    /// The first of our interfaces that was never seen.
    pub fn missing(&self) -> Option<String> {
        self.ours.iter().find(|link| link.ifindex == 0).map(|link| link.name.clone())
    }

    pub fn ours(&self) -> &[Link] {
        &self.ours
    }

    pub fn host_addresses(&self) -> Vec<HostAddress> {
        self.addresses.clone()
    }

    pub fn neighbour(&self, key: &NeighbourKey) -> Option<&Neighbour> {
        self.neighbours.get(key)
    }

    /// Takes in a dump. Returns whether an answer may differ from now on.
    pub fn replace(&mut self, dump: Dump) -> bool {
        let links: Vec<Link> = (dump.links.iter())
            .filter_map(|message| link::parse(message, dump.queues.get(&message.header.index).copied()))
            .collect();
        let names = links.iter().map(|link| (link.ifindex, link.name.clone())).collect();
        let mut ours = self.ours.clone();
        for link in &mut ours {
            match links.iter().find(|found| found.name == link.name) {
                Some(found) => link.clone_from(found),
                None => link.up = false,
            }
        }
        let addresses = host_addresses(&dump.addresses, &names);
        let changed = ours != self.ours || addresses != self.addresses || dump.routes != self.routes;
        (self.ours, self.names, self.addresses, self.routes) = (ours, names, addresses, dump.routes);
        self.changed(changed)
    }

    /// Takes in all neighbours. Returns whether an answer may differ from now on.
    pub fn replace_neighbours(&mut self, dump: &[NeighbourMessage]) -> bool {
        let neighbours: HashMap<_, _> = dump.iter().filter_map(parse_neighbour).collect();
        let changed = neighbours != self.neighbours;
        self.neighbours = neighbours;
        self.changed(changed)
    }

    /// Takes in one neighbour. Returns whether an answer may differ from now on.
    pub fn set_neighbour(&mut self, message: &NeighbourMessage) -> bool {
        let Some((key, neighbour)) = parse_neighbour(message) else { return false };
        let changed = self.neighbours.insert(key, neighbour) != Some(neighbour);
        self.changed(changed)
    }

    /// The kernel forgot one neighbour. Returns whether an answer may differ from now on.
    pub fn remove_neighbour(&mut self, message: &NeighbourMessage) -> bool {
        let Some((key, _)) = parse_neighbour(message) else { return false };
        let changed = self.neighbours.remove(&key).is_some();
        self.changed(changed)
    }

    fn port(&self, ifindex: u32) -> Option<(PortId, &Link)> {
        let at = self.ours.iter().position(|link| link.ifindex == ifindex)?;
        Some((PortId(u8::try_from(at).ok()?), &self.ours[at]))
    }

    /// Next hops to an address by NICs of ours, the kernel's choice first, with the route's MTU (0: none).
    fn candidates(&self, address: IpAddr) -> impl Iterator<Item = (&NextHop, u32)> {
        let own = self.addresses.iter().any(|host| host.address == address);
        let routes = if own { &[] } else { self.routes.lookup(address) };
        // A route that refuses ends the search: what is behind it does not count for the kernel either.
        let routes = routes.iter().take_while(|route| !route.hops.is_empty());
        let hops = routes.flat_map(|route| route.hops.iter().map(|hop| (hop, route.mtu)));
        hops.filter(|(hop, _)| self.port(hop.ifindex).is_some())
    }

    /// The next hop to an address: the first that is usable and resolved, else the first usable, else the first.
    pub fn hop(&self, address: IpAddr) -> Option<Hop> {
        let rank = |hop: &NextHop| {
            let up = hop.usable && self.port(hop.ifindex).is_some_and(|(_, link)| link.up);
            let mac = self.neighbours.get(&(hop.ifindex, hop.gateway.unwrap_or(address))).and_then(|n| n.mac);
            (if up { mac } else { None }, up)
        };
        // `min_by_key` keeps the first of equals, so that the kernel's order stands.
        let (hop, route_mtu) = self.candidates(address).min_by_key(|(hop, _)| {
            let (mac, up) = rank(hop);
            (mac.is_none(), !up)
        })?;
        let (port, link) = self.port(hop.ifindex)?;
        let mac = rank(hop).0;
        let mtu = if route_mtu == 0 { link.mtu } else { link.mtu.min(route_mtu) };
        Some(Hop {
            state: if mac.is_some() { HopState::Resolved } else { HopState::Unresolved },
            port,
            dst_mac: mac.unwrap_or(MacAddr::UNKNOWN),
            src_mac: link.mac,
            mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
            on_link: hop.gateway.is_none(),
        })
    }

    /// Every neighbour that a packet to one of these addresses may go to, and that is not fixed by somebody.
    pub fn towards(&self, addresses: &BTreeSet<IpAddr>) -> BTreeSet<NeighbourKey> {
        let of = |&address: &IpAddr| {
            let keys = self.candidates(address).map(move |(hop, _)| (hop.ifindex, hop.gateway.unwrap_or(address)));
            keys.filter(|key| {
                let up = self.port(key.0).is_some_and(|(_, link)| link.up);
                up && !self.neighbours.get(key).is_some_and(|known| known.fixed)
            })
        };
        addresses.iter().flat_map(of).collect()
    }
}

fn host_addresses(dump: &[AddressMessage], names: &BTreeMap<u32, String>) -> Vec<HostAddress> {
    let mut addresses: Vec<HostAddress> = Vec::new();
    for message in dump {
        let (mut local, mut peer) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(address) => local = Some(*address),
                AddressAttribute::Address(address) => peer = Some(*address),
                _ => {}
            }
        }
        let (Some(address), Some(name)) = (local.or(peer), names.get(&message.header.index)) else { continue };
        addresses.push(HostAddress { interface: name.clone(), address, prefix: message.header.prefix_len });
    }
    addresses.sort();
    addresses.dedup();
    addresses
}

fn parse_neighbour(message: &NeighbourMessage) -> Option<(NeighbourKey, Neighbour)> {
    let (mut address, mut mac, mut managed) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::from(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::from(*v6)),
            NeighbourAttribute::LinkLayerAddress(octets) => mac = octets.as_slice().try_into().ok().map(MacAddr),
            NeighbourAttribute::ExtFlags(flags) => managed = flags.contains(NeighbourExtFlags::Managed),
            _ => {}
        }
    }
    let state = message.header.state;
    let fixed = matches!(state, NeighbourState::Permanent | NeighbourState::Noarp);
    let valid = fixed
        || matches!(
            state,
            NeighbourState::Reachable | NeighbourState::Stale | NeighbourState::Delay | NeighbourState::Probe
        );
    let mac = if valid { mac } else { None };
    Some(((message.header.ifindex, address?), Neighbour { mac, managed, fixed }))
}
