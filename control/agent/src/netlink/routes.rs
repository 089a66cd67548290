//! The main routing tables as the kernel dumped them: longest prefix, then lowest metric.
//!
//! Invariant: the routes of one prefix are in the order of their metrics.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteNextHopFlags, RouteType,
    RouteVia,
};

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NextHop {
    pub ifindex: u32,
    /// The router; none where the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Neither dead nor without carrier.
    pub usable: bool,
}

/// A route of the main table. One that refuses (blackhole, unreachable, prohibit, throw) has no next hops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub metric: u32,
    /// The route's own MTU, 0 where it has none.
    pub mtu: u32,
    pub hops: Vec<NextHop>,
}

/// The main tables of both families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Routes {
    by_prefix: HashMap<(IpAddr, u8), Vec<Route>>,
    /// Which prefix lengths there are, for a lookup tries each once.
    lengths_v4: BTreeSet<u8>,
    lengths_v6: BTreeSet<u8>,
}

/// The address with all but its first `length` bits cleared.
fn network(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length.min(32))).unwrap_or(0);
            Ipv4Addr::from_bits(v4.to_bits() & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length.min(128))).unwrap_or(0);
            Ipv6Addr::from_bits(v6.to_bits() & mask).into()
        }
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        RouteAttribute::Via(RouteVia::Inet(v4)) => Some((*v4).into()),
        RouteAttribute::Via(RouteVia::Inet6(v6)) => Some((*v6).into()),
        _ => None,
    })
}

fn next_hops(message: &RouteMessage) -> Vec<NextHop> {
    let mut hops = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(ifindex) => hops.push(NextHop {
                ifindex: *ifindex,
                gateway: gateway(&message.attributes),
                usable: !message.header.flags.intersects(RouteFlags::Dead | RouteFlags::Linkdown),
            }),
            RouteAttribute::MultiPath(paths) => hops.extend(paths.iter().map(|path| NextHop {
                ifindex: path.interface_index,
                gateway: gateway(&path.attributes),
                usable: !path.flags.intersects(RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown),
            })),
            _ => {}
        }
    }
    hops
}

impl Routes {
    /// From a dump; what is not for forwarding by destination alone (other tables, clones, source or TOS) is left out.
    pub fn from_dump(dump: &[RouteMessage]) -> Self {
        let mut routes = Self::default();
        for message in dump {
            routes.take(message);
        }
        for list in routes.by_prefix.values_mut() {
            list.sort_by_key(|route| route.metric);
        }
        routes
    }

    fn take(&mut self, message: &RouteMessage) {
        let header = &message.header;
        let table = message.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Table(table) => Some(*table),
            _ => None,
        });
        if table.unwrap_or(header.table.into()) != u32::from(RouteHeader::RT_TABLE_MAIN)
            || header.source_prefix_length != 0
            || header.tos != 0
            || header.flags.contains(RouteFlags::Cloned)
        {
            return;
        }
        let any = match header.address_family {
            AddressFamily::Inet => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            AddressFamily::Inet6 => IpAddr::from(Ipv6Addr::UNSPECIFIED),
            _ => return,
        };
        let hops = match header.kind {
            RouteType::Unicast => next_hops(message),
            RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit | RouteType::Throw => Vec::new(),
            _ => return,
        };
        let mut route = Route { metric: 0, mtu: 0, hops };
        let mut destination = any;
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => destination = ip(address).unwrap_or(any),
                RouteAttribute::Priority(metric) => route.metric = *metric,
                RouteAttribute::Metrics(metrics) => {
                    let mtu = |metric: &RouteMetric| match metric {
                        RouteMetric::Mtu(mtu) => Some(*mtu),
                        _ => None,
                    };
                    route.mtu = metrics.iter().find_map(mtu).unwrap_or(0);
                }
                _ => {}
            }
        }
        let lengths = if any.is_ipv4() { &mut self.lengths_v4 } else { &mut self.lengths_v6 };
        lengths.insert(header.destination_prefix_length);
        self.by_prefix.entry((destination, header.destination_prefix_length)).or_default().push(route);
    }

    /// The routes of the longest prefix that holds `address`, the best first.
    pub fn lookup(&self, address: IpAddr) -> &[Route] {
        let lengths = if address.is_ipv4() { &self.lengths_v4 } else { &self.lengths_v6 };
        let found = lengths.iter().rev().find_map(|&length| self.by_prefix.get(&(network(address, length), length)));
        found.map_or(&[], Vec::as_slice)
    }
}
