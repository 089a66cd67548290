//! The picture of the kernel's network state, and the answers it gives. Pure: messages in, answers out.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use lb::PortId;
use lb::tables::{Hop, HopState, KernelPort};
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourMessage, NeighbourState,
};
use wire::{MacAddr, Tags};

use super::routes::{NextHop, Route, Routes};
use super::{HostAddress, Link, ToKernel, link};

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

/// What the kernel reaches and our NICs do not.
#[derive(Debug, Default, PartialEq, Eq)]
struct Beyond {
    /// The kernel's end of the way to it.
    peer: Option<Link>,
    /// The MTU of every interface.
    mtus: HashMap<u32, u32>,
}

/// The picture.
#[derive(Debug)]
pub(super) struct View {
    /// Our NICs by [`PortId`], as they were last seen.
    ours: Vec<Link>,
    /// VLANs by their index, whatever they stand on.
    vlans: HashMap<u32, link::Vlan>,
    names: BTreeMap<u32, String>,
    addresses: Vec<HostAddress>,
    routes: Routes,
    neighbours: HashMap<NeighbourKey, Neighbour>,
    /// The way to the kernel, and what leads on from there.
    to_kernel: Option<(ToKernel, Beyond)>,
    /// Counts what may have changed an answer.
    version: u64,
}

impl View {
    /// Of a host that nothing is known of; `interfaces` are ours, by [`PortId`].
    pub fn new(interfaces: Vec<String>, to_kernel: Option<ToKernel>) -> Self {
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
            vlans: HashMap::new(),
            names: BTreeMap::new(),
            addresses: Vec::new(),
            routes: Routes::default(),
            neighbours: HashMap::new(),
            to_kernel: to_kernel.map(|way| (way, Beyond::default())),
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
        let vlans: HashMap<u32, link::Vlan> =
            dump.links.iter().filter_map(link::parse_vlan).map(|vlan| (vlan.link.ifindex, vlan)).collect();
        let addresses = host_addresses(&dump.addresses, &names);
        let beyond = self.to_kernel.as_ref().map(|(way, _)| Beyond {
            peer: links.iter().find(|link| link.name == way.peer).cloned(),
            mtus: links.iter().map(|link| (link.ifindex, link.mtu)).collect(),
        });
        let same_beyond = self.to_kernel.as_ref().map(|(_, known)| known) == beyond.as_ref();
        if let (Some((_, known)), Some(beyond)) = (&mut self.to_kernel, beyond) {
            *known = beyond;
        }
        let changed = !same_beyond
            || ours != self.ours
            || vlans != self.vlans
            || addresses != self.addresses
            || dump.routes != self.routes;
        self.vlans = vlans;
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

    /// The NIC of ours that serves an interface, the interface, and the tags that its frames have there: none on the NIC
    /// itself, those of the VLANs that it stands on otherwise.
    fn port(&self, ifindex: u32) -> Option<(PortId, &Link, Tags)> {
        let (mut below, mut tags, mut own) = (ifindex, Tags::NONE, None);
        loop {
            if let Some(at) = self.ours.iter().position(|link| link.ifindex == below) {
                return Some((PortId(u8::try_from(at).ok()?), own.unwrap_or(&self.ours[at]), tags));
            }
            let vlan = self.vlans.get(&below)?;
            // Two tags at most, so this ends.
            tags = tags.within(vlan.number, vlan.provider)?;
            own = own.or(Some(&vlan.link));
            below = vlan.parent;
        }
    }

    /// VLAN subinterfaces that a NIC of ours serves, by their index, and which NIC that is. They listen to the NIC's
    /// link-layer address here, which workers answer with.
    pub fn vlans(&self) -> Vec<(PortId, Link)> {
        let mut vlans: Vec<_> = self
            .vlans
            .keys()
            .filter_map(|ifindex| {
                let (port, link, _) = self.port(*ifindex)?;
                Some((port, Link { mac: self.ours[usize::from(port.0)].mac, ..link.clone() }))
            })
            .collect();
        vlans.sort_by_key(|(_, link)| link.ifindex);
        vlans
    }

    /// The way to the kernel as packets take it.
    pub fn to_kernel(&self) -> Option<KernelPort> {
        let (way, beyond) = self.to_kernel.as_ref()?;
        Some(KernelPort { port: way.port, peer: beyond.peer.as_ref()?.mac, brings_back: way.brings_back })
    }

    /// Whether an address is the host's.
    fn is_own(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|host| host.address == address)
    }

    /// The next hop to an address that only the kernel reaches: the host itself, or what its best route leads to by another
    /// interface than ours. Which route that is, the kernel decides once more.
    fn beyond(&self, address: IpAddr) -> Option<Hop> {
        let (way, Beyond { peer, mtus }) = self.to_kernel.as_ref()?;
        let (own, peer) = (self.ours.get(usize::from(way.port.0))?, peer.as_ref()?);
        let route = match self.is_own(address) {
            true => None,
            false => Some(self.routes.lookup(address).first().filter(|route| self.leads_past_us(route, peer.ifindex))?),
        };
        let paths = route.iter().flat_map(|route| &route.hops).filter_map(|hop| mtus.get(&hop.ifindex));
        let least = paths.chain(route.map(|route| &route.mtu).filter(|mtu| **mtu > 0)).min();
        let is_there = own.up && peer.up && if address.is_ipv4() { way.families.0 } else { way.families.1 };
        Some(Hop {
            state: if is_there { HopState::Resolved } else { HopState::NoRoute },
            port: way.port,
            dst_mac: peer.mac,
            src_mac: own.mac,
            mtu: u16::try_from(least.map_or(own.mtu, |mtu| own.mtu.min(*mtu))).unwrap_or(u16::MAX),
            on_link: false,
            tags: Tags::NONE,
        })
    }

    /// Whether a route leads somewhere, by none of our NICs, and not back to us by the kernel's end of our wire.
    fn leads_past_us(&self, route: &Route, peer: u32) -> bool {
        let ours = |hop: &NextHop| hop.ifindex == peer || self.port(hop.ifindex).is_some();
        !route.hops.is_empty() && !route.hops.iter().any(ours)
    }

    /// Next hops to an address by NICs of ours, the kernel's choice first, with the route's MTU (0: none).
    fn candidates(&self, address: IpAddr) -> impl Iterator<Item = (&NextHop, u32)> {
        let past_us = self.is_own(address) || self.beyond(address).is_some();
        let routes = if past_us { &[] } else { self.routes.lookup(address) };
        // A route that refuses ends the search: what is behind it does not count for the kernel either.
        let routes = routes.iter().take_while(|route| !route.hops.is_empty());
        let hops = routes.flat_map(|route| route.hops.iter().map(|hop| (hop, route.mtu)));
        hops.filter(|(hop, _)| self.port(hop.ifindex).is_some())
    }

    /// The next hop to an address: by the kernel, or else the first that is usable and resolved, else the first usable, else
    /// the first.
    pub fn hop(&self, address: IpAddr) -> Option<Hop> {
        if let Some(hop) = self.beyond(address) {
            return Some(hop);
        }
        let rank = |hop: &NextHop| {
            let up = hop.usable && self.port(hop.ifindex).is_some_and(|(_, link, _)| link.up);
            let mac = self.neighbours.get(&(hop.ifindex, hop.gateway.unwrap_or(address))).and_then(|n| n.mac);
            (if up { mac } else { None }, up)
        };
        // `min_by_key` keeps the first of equals, so that the kernel's order stands.
        let (hop, route_mtu) = self.candidates(address).min_by_key(|(hop, _)| {
            let (mac, up) = rank(hop);
            (mac.is_none(), !up)
        })?;
        let (port, link, tags) = self.port(hop.ifindex)?;
        let mac = rank(hop).0;
        let mtu = if route_mtu == 0 { link.mtu } else { link.mtu.min(route_mtu) };
        Some(Hop {
            state: if mac.is_some() { HopState::Resolved } else { HopState::Unresolved },
            port,
            dst_mac: mac.unwrap_or(MacAddr::UNKNOWN),
            src_mac: link.mac,
            mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
            on_link: hop.gateway.is_none(),
            tags,
        })
    }

    /// Every neighbour that a packet to one of these addresses may go to, and that is not fixed by somebody.
    pub fn towards(&self, addresses: &BTreeSet<IpAddr>) -> BTreeSet<NeighbourKey> {
        let of = |&address: &IpAddr| {
            let keys = self.candidates(address).map(move |(hop, _)| (hop.ifindex, hop.gateway.unwrap_or(address)));
            keys.filter(|key| {
                let up = self.port(key.0).is_some_and(|(_, link, _)| link.up);
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

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::AddressFamily;
    use rtnetlink::packet_route::link::{
        InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, VlanProtocol,
    };
    use rtnetlink::packet_route::route::{
        RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteType,
    };

    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const THEIRS: [u8; 6] = [2, 0, 0, 0, 0, 2];

    fn link(index: u32, name: &str, mtu: u32) -> LinkMessage {
        let mut message = LinkMessage::default();
        (message.header.index, message.header.flags) = (index, LinkFlags::Up | LinkFlags::LowerUp);
        message.attributes.extend([
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(MAC.to_vec()),
            LinkAttribute::Mtu(mtu),
        ]);
        message
    }

    fn vlan(index: u32, name: &str, parent: u32, number: u16, protocol: VlanProtocol) -> LinkMessage {
        let mut message = link(index, name, 1400);
        let data = InfoData::Vlan(vec![InfoVlan::Id(number), InfoVlan::Protocol(protocol)]);
        message.attributes.extend([
            LinkAttribute::Link(parent),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vlan), LinkInfo::Data(data)]),
        ]);
        message
    }

    fn on_link(last: u8, ifindex: u32) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.kind = RouteType::Unicast;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.destination_prefix_length = 24;
        message.attributes.extend([
            RouteAttribute::Destination(RouteAddress::Inet([10, 0, last, 0].into())),
            RouteAttribute::Oif(ifindex),
        ]);
        message
    }

    #[test]
    fn what_no_nic_of_ours_reaches_goes_to_the_kernel_where_there_is_a_way() {
        let families = (true, false);
        let way = ToKernel { port: PortId(1), peer: "k1".to_owned(), families, brings_back: true };
        let mut view = View::new(vec!["eth0".to_owned(), "k0".to_owned()], Some(way));
        let links = vec![
            link(2, "eth0", 1500),
            link(3, "k0", 1500),
            link(4, "k1", 1500),
            link(5, "cni0", 1450),
            link(6, "lo", 65535),
        ];
        let mut slow = on_link(5, 5);
        slow.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(1300)]));
        let mut worse = on_link(6, 5);
        worse.attributes.push(RouteAttribute::Priority(10));
        let mut better = on_link(7, 5);
        better.attributes.push(RouteAttribute::Priority(5));
        let mut other = on_link(7, 2);
        other.attributes.push(RouteAttribute::Priority(10));
        let mut refusal = on_link(8, 5);
        refusal.header.kind = RouteType::BlackHole;
        let routes = [on_link(2, 2), on_link(3, 5), on_link(4, 4), slow, on_link(6, 2), worse, better, other, refusal];
        let mut own = AddressMessage::default();
        own.header.index = 2;
        own.header.prefix_len = 24;
        own.attributes.push(AddressAttribute::Local([10, 0, 2, 1].into()));
        let dump =
            |links| Dump { links, routes: Routes::from_dump(&routes), addresses: vec![own.clone()], ..Dump::default() };
        assert!(view.replace(dump(links.clone())));
        assert!(!view.replace(dump(links.clone())), "nothing changed");
        let by = |view: &View, last: u8, host: u8| {
            view.hop([10, 0, last, host].into()).map(|hop| (hop.port.0, hop.state, hop.mtu))
        };
        for (last, host, expected) in [
            (2, 2, Some((0, HopState::Unresolved, 1500))),
            (2, 1, Some((1, HopState::Resolved, 1500))),
            (3, 2, Some((1, HopState::Resolved, 1450))),
            (4, 2, None),
            (5, 2, Some((1, HopState::Resolved, 1300))),
            (6, 2, Some((0, HopState::Unresolved, 1500))),
            (7, 2, Some((1, HopState::Resolved, 1450))),
            (8, 2, None),
            (9, 2, None),
        ] {
            assert_eq!(by(&view, last, host), expected, "10.0.{last}.{host}");
        }
        let wanted: Vec<IpAddr> = (2..9).map(|last| [10, 0, last, 2].into()).collect();
        let towards: Vec<_> = view.towards(&wanted.into_iter().collect()).into_iter().collect();
        assert_eq!(towards, [(2, [10, 0, 2, 2].into()), (2, [10, 0, 6, 2].into())], "the kernel looks for its own");
        assert_eq!(view.to_kernel(), Some(KernelPort { port: PortId(1), peer: MacAddr(MAC), brings_back: true }));
        // Its other end is gone.
        let without = links.iter().filter(|link| link.header.index != 4).cloned().collect();
        assert!(view.replace(dump(without)));
        assert_eq!((by(&view, 3, 2), view.to_kernel()), (None, None));
    }

    fn neighbour(last: u8, ifindex: u32) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        (message.header.ifindex, message.header.state) = (ifindex, NeighbourState::Reachable);
        message.attributes.extend([
            NeighbourAttribute::Destination(NeighbourAddress::Inet([10, 0, last, 2].into())),
            NeighbourAttribute::LinkLayerAddress(THEIRS.to_vec()),
        ]);
        message
    }

    #[test]
    fn a_next_hop_on_a_vlan_leaves_by_the_nic_below_with_the_tags_of_all_vlans_between() {
        let (customer, provider) = (VlanProtocol::Ieee8021Q, VlanProtocol::Ieee8021Ad);
        let mut view = View::new(vec!["eth0".to_owned()], None);
        let links = vec![
            link(2, "eth0", 1500),
            vlan(3, "eth0.100", 2, 100, customer),
            vlan(4, "service", 2, 200, provider),
            vlan(5, "service.7", 4, 7, customer),
            vlan(6, "service.7.8", 5, 8, customer),
            link(7, "eth1", 1500),
            vlan(8, "eth1.9", 7, 9, customer),
        ];
        let routes: Vec<_> = (2..=8).map(|index| on_link(index as u8, index)).collect();
        let dump = |links| Dump { links, routes: Routes::from_dump(&routes), ..Dump::default() };
        assert!(view.replace(dump(links.clone())));
        assert!(view.replace_neighbours(&(2..=8).map(|index| neighbour(index as u8, index)).collect::<Vec<_>>()));
        let hop = |view: &View, last: u8| view.hop([10, 0, last, 2].into());
        for (last, mtu, tags) in [(2, 1500, ""), (3, 1400, "100"), (4, 1400, "200"), (5, 1400, "200.7")] {
            let hop = hop(&view, last).expect("a hop");
            assert_eq!((hop.port, hop.state, hop.mtu, hop.on_link), (PortId(0), HopState::Resolved, mtu, true));
            assert_eq!(
                (hop.tags.to_string(), hop.dst_mac, hop.src_mac),
                (tags.to_owned(), MacAddr(THEIRS), MacAddr(MAC))
            );
        }
        let provided = Tags::NONE.within(7, false).and_then(|tags| tags.within(200, true));
        assert_eq!(Some(hop(&view, 5).unwrap().tags), provided);
        assert_eq!([6, 7, 8].map(|last| hop(&view, last)), [None; 3], "three tags, and a NIC that is not ours");
        let vlans: Vec<_> = view.vlans().into_iter().map(|(port, link)| (port, link.name)).collect();
        assert_eq!(vlans, ["eth0.100", "service", "service.7"].map(|name| (PortId(0), name.to_owned())));
        assert!(!view.replace(dump(links[..7].to_vec())), "nothing changed");
        assert!(view.replace(dump(links[..2].to_vec())));
        assert_eq!(hop(&view, 5), None, "its VLAN is gone");
        assert_eq!(view.vlans().len(), 1);
    }
}
