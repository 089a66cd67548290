//! The two ends and what leads to them, over netlink.
//!
//! The kernel's end has a link-local address, and what is routed into it goes by a router that is our end: one neighbour a
//! family, permanent, whatever the addresses are. Source: rtnetlink(7).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressScope;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Error, Handle, IpVersion, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use tokio::task::JoinHandle;

use super::marks::MARK;
use super::{KERNELS, OURS, Wanted};

/// The kernel's end and ours: of a range that no router forwards (RFC 3927).
const NUMBER: Ipv4Addr = Ipv4Addr::new(169, 254, 86, 1);
const ROUTER: Ipv4Addr = Ipv4Addr::new(169, 254, 86, 2);
const PREFIX: u8 = 30;
const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0x6d69, 0x6b30);
/// Who made a route, as `ip route` shows it: a number that nobody else has (`/etc/iproute2/rt_protos`).
const MADE_BY: RouteProtocol = RouteProtocol::Other(77);
/// Where the routes to service addresses are, and how soon that is looked at.
const TABLE: u32 = 8686;
const PREFERENCE: u32 = 86;
/// The same of what is marked to come back: one default route.
const MARKED_TABLE: u32 = 8687;
const MARKED_PREFERENCE: u32 = 87;
/// Least MTU: what IPv6 asks of a link (RFC 8200, section 5).
const LEAST_MTU: u32 = 1280;

/// The kernel's answer to the removal of a route that is not there: ESRCH.
const NO_SUCH_ROUTE: i32 = -3;
/// Its answer to who asks for routes of a table that never had any: ENOENT.
const NO_SUCH_TABLE: i32 = -2;
/// Its answer to a route that is there already: EEXIST.
const THERE_ALREADY: i32 = -17;

/// One end.
#[derive(Clone, Debug)]
struct End {
    index: u32,
    mac: Vec<u8>,
    mtu: u32,
}

/// Netlink, to make and unmake.
pub(super) struct Wire {
    handle: Handle,
    connection: JoinHandle<()>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

fn refused(what: &str, error: &Error) -> String {
    format!("kernelPort: {what}: {error}")
}

impl Wire {
    pub async fn open() -> Result<Self, String> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(|e| format!("netlink: {e}"))?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }

    /// Both ends, if they are there.
    async fn ends(&self) -> Result<Option<(End, End)>, String> {
        let links: Vec<LinkMessage> =
            self.handle.link().get().execute().try_collect().await.map_err(|e| refused("links cannot be read", &e))?;
        let named = |name: &str| links.iter().find(|link| attribute(link, |a| is_name(a, name)).is_some());
        let end = |link: &LinkMessage| End {
            index: link.header.index,
            mac: attribute(link, |a| if let LinkAttribute::Address(mac) = a { Some(mac.clone()) } else { None })
                .unwrap_or_default(),
            mtu: attribute(link, |a| if let LinkAttribute::Mtu(mtu) = a { Some(*mtu) } else { None })
                .unwrap_or_default(),
        };
        match (named(OURS), named(KERNELS)) {
            (None, None) => Ok(None),
            (Some(ours), Some(kernels)) if is_veth_to(ours, kernels) => Ok(Some((end(ours), end(kernels)))),
            (ours, _) => {
                let name = if ours.is_some() { OURS } else { KERNELS };
                Err(format!("kernelPort: there is a {name} that is no end of a kernel port: `ip link del {name}`"))
            }
        }
    }

    async fn routes(&self) -> Result<Vec<RouteMessage>, String> {
        let mut routes = Vec::new();
        for any in [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()] {
            let found: Result<Vec<_>, _> = self.handle.route().get(any).execute().try_collect().await;
            routes.extend(found.map_err(|e| refused("routes cannot be read", &e))?);
        }
        Ok(routes)
    }

    /// The routes of one table. The kernel picks them out: the others may be those of the whole Internet, and these are
    /// read time and again.
    async fn routes_of(wanted: u32) -> Result<Vec<RouteMessage>, String> {
        let opened = rtnetlink::new_connection_with_strict_check();
        let (connection, handle, _) = opened.map_err(|e| format!("netlink: {e}"))?;
        let strict = Self { handle, connection: tokio::spawn(connection) };
        let mut routes = Vec::new();
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new().table_id(wanted).build();
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new().table_id(wanted).build();
        for mut any in [v4, v6] {
            // Whoever made them and whatever they do: what is not zero here the kernel takes for a filter.
            (any.header.protocol, any.header.kind) = (RouteProtocol::Unspec, RouteType::Unspec);
            let found: Result<Vec<_>, _> = strict.handle.route().get(any).execute().try_collect().await;
            match found {
                Ok(found) => routes.extend(found),
                Err(Error::NetlinkError(error)) if error.raw_code() == NO_SUCH_TABLE => {}
                Err(error) => return Err(refused("routes cannot be read", &error)),
            }
        }
        routes.retain(|route| table(route) == wanted);
        Ok(routes)
    }

    /// Whether anybody else has what is wanted.
    pub async fn judge(&self, wanted: &Wanted<'_>) -> Result<(), String> {
        let ours = self.ends().await?.map(|(_, kernels)| kernels.index);
        for route in self.routes().await? {
            let Some(address) = host_route(&route) else { continue };
            if wanted.addresses.contains(&address) && device(&route) != ours {
                let way = if address.is_ipv6() { "ip -6 route" } else { "ip route" };
                return Err(format!(
                    "kernelPort.snat: {address} has a route of somebody else's (`{way} show {address} table all`): use an \
                     address that nobody has"
                ));
            }
        }
        Ok(())
    }

    /// Makes the pair where it is not there, with the MTU that is wanted.
    pub async fn make(&self, wanted: &Wanted<'_>) -> Result<(), String> {
        let failed = |error: Error| {
            let help = "it needs CAP_NET_ADMIN and the kernel's module `veth` (`modprobe veth`)";
            format!("{}; {help}", refused(&format!("{OURS} cannot be made"), &error))
        };
        let queues = [LinkAttribute::NumTxQueues(wanted.queues), LinkAttribute::NumRxQueues(wanted.queues)];
        if self.ends().await?.is_none() {
            let mut peer = LinkUnspec::new_with_name(KERNELS).build();
            peer.attributes.extend(queues.clone());
            let ours = LinkVeth::new(OURS, KERNELS).set_info_data(InfoData::Veth(InfoVeth::Peer(peer)));
            let ours = queues.into_iter().fold(ours, LinkMessageBuilder::append_extra_attribute);
            self.handle.link().add(ours.build()).execute().await.map_err(failed)?;
        }
        let (ours, kernels) = self.there().await?;
        for end in [ours, kernels] {
            let mtu = wanted.mtu.max(LEAST_MTU);
            if end.mtu != mtu {
                let change = LinkUnspec::new_with_index(end.index).mtu(mtu).build();
                self.handle.link().set(change).execute().await.map_err(|e| refused("the MTU cannot be set", &e))?;
            }
        }
        xsk::send_whole_checksums(KERNELS)
            .map_err(|e| format!("kernelPort: {e}: `ethtool -K {KERNELS} tx off` does not work here"))
    }

    /// The link-layer address of our end.
    pub async fn our_address(&self) -> Result<Vec<u8>, String> {
        Ok(self.there().await?.0.mac)
    }

    async fn there(&self) -> Result<(End, End), String> {
        self.ends().await?.ok_or_else(|| format!("kernelPort: {OURS} went away: start again"))
    }

    /// Brings both ends up, numbers the kernel's, and has the addresses routed into it.
    pub async fn number(&self, wanted: &Wanted<'_>) -> Result<(), String> {
        let (ours, kernels) = self.there().await?;
        for index in [ours.index, kernels.index] {
            let up = LinkUnspec::new_with_index(index).up().build();
            self.handle.link().set(up).execute().await.map_err(|e| refused("an end cannot be brought up", &e))?;
        }
        if wanted.has(false) {
            let mut number = self.handle.address().add(kernels.index, NUMBER.into(), PREFIX).replace();
            number.message_mut().header.scope = AddressScope::Link;
            number.execute().await.map_err(|e| refused(&format!("{NUMBER} cannot be added"), &e))?;
        }
        for (router, ipv6) in [(IpAddr::from(ROUTER), false), (ROUTER_V6.into(), true)] {
            if wanted.has(ipv6) {
                let neighbour = self.handle.neighbours().add(kernels.index, router).link_layer_address(&ours.mac);
                let set = neighbour.replace().execute().await;
                set.map_err(|e| refused(&format!("the neighbour {router} cannot be set"), &e))?;
            }
        }
        for address in wanted.addresses {
            self.route((*address, whole(address)), kernels.index, u32::from(RouteHeader::RT_TABLE_MAIN)).await?;
        }
        for any in [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()] {
            if wanted.has(any.is_ipv6()) {
                self.route((any, 0), kernels.index, MARKED_TABLE).await?;
                self.rule(any.is_ipv6(), MARKED_TABLE).await?;
            }
        }
        Ok(())
    }

    /// Routes a prefix into the kernel's end, of this index, by a table.
    async fn route(&self, prefix: (IpAddr, u8), kernels: u32, table: u32) -> Result<(), String> {
        let made = self.handle.route().add(way(prefix, kernels, table)).replace().execute().await;
        made.map_err(|e| refused(&format!("{} cannot be routed into {KERNELS}", prefix.0), &e))
    }

    /// The same where that route is not there; gives whether it was not.
    async fn route_again(&self, prefix: (IpAddr, u8), kernels: u32, table: u32) -> Result<bool, String> {
        match self.handle.route().add(way(prefix, kernels, table)).execute().await {
            Ok(()) => Ok(true),
            Err(Error::NetlinkError(error)) if error.raw_code() == THERE_ALREADY => Ok(false),
            Err(error) => Err(refused(&format!("{} cannot be routed into {KERNELS}", prefix.0), &error)),
        }
    }

    /// Puts routes and rules back that [`Self::number`] made and somebody else took away, and tells which those were.
    pub async fn put_back(&self, addresses: &[IpAddr]) -> Result<Vec<String>, String> {
        let (_, kernels) = self.there().await?;
        let mut taken = Vec::new();
        let main = u32::from(RouteHeader::RT_TABLE_MAIN);
        for address in addresses {
            if self.route_again((*address, whole(address)), kernels.index, main).await? {
                taken.push(format!("the route to {address}"));
            }
        }
        for any in [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()] {
            let (ipv6, name) = family(&any);
            if !addresses.iter().any(|address| address.is_ipv6() == ipv6) {
                continue;
            }
            if self.route_again((any, 0), kernels.index, MARKED_TABLE).await? {
                taken.push(format!("the {name} route of table {MARKED_TABLE}"));
            }
            if self.rule(ipv6, MARKED_TABLE).await? {
                taken.push(format!("the {name} rule of preference {MARKED_PREFERENCE}"));
            }
        }
        Ok(taken)
    }

    /// What of these routes of [`Self::route_inward`], and of the rules that lead to them, somebody else took away.
    pub async fn taken_inward(&self, routed: &BTreeSet<IpNet>, families: (bool, bool)) -> Result<Vec<String>, String> {
        let (_, kernels) = self.there().await?;
        let read = self.inward(kernels.index).await?;
        let gone: Vec<&IpNet> = routed.iter().filter(|place| !read.contains(&place.trunc())).collect();
        let mut taken = Vec::new();
        if let Some(first) = gone.first() {
            taken.push(format!("{} of {} routes of table {TABLE} (that to {first})", gone.len(), routed.len()));
        }
        for (version, wanted, name) in [(IpVersion::V4, families.0, "IPv4"), (IpVersion::V6, families.1, "IPv6")] {
            if wanted && !self.rules(version).await?.iter().any(|rule| leads(rule, TABLE)) {
                taken.push(format!("the {name} rule of preference {PREFERENCE}"));
            }
        }
        Ok(taken)
    }

    /// Has these and no others routed into the kernel's end by a table of their own, which packets of these families meet
    /// before the main one. `routed` is what is there; `None`: that is to be read. What the kernel refuses does not keep the
    /// rest out, and the first of it is the error.
    pub async fn route_inward(
        &self,
        routed: Option<&BTreeSet<IpNet>>,
        wanted: &BTreeSet<IpNet>,
        families: (bool, bool),
    ) -> Result<(), String> {
        let (_, kernels) = self.there().await?;
        let read = match routed {
            Some(_) => BTreeSet::new(),
            None => self.inward(kernels.index).await?,
        };
        let routed = routed.unwrap_or(&read);
        let (mut done, mut lacking) = (Ok(()), Vec::new());
        for place in wanted.difference(routed) {
            let made = self.route((place.addr(), place.prefix_len()), kernels.index, TABLE).await;
            if made.is_err() {
                lacking.push(*place);
            }
            done = done.and(made);
        }
        // Of a range and its parts one is there all the time, also where the kernel refuses the other.
        let needed = |place: &IpNet| lacking.iter().any(|other| other.contains(place) || place.contains(other));
        for place in routed.difference(wanted).filter(|place| !needed(place)) {
            let route = way((place.addr(), place.prefix_len()), kernels.index, TABLE);
            let removed = match self.handle.route().del(route).execute().await {
                Err(Error::NetlinkError(error)) if error.raw_code() == NO_SUCH_ROUTE => Ok(()),
                other => other.map_err(|e| refused("a route cannot be removed", &e)),
            };
            done = done.and(removed);
        }
        for (ipv6, wanted) in [(false, families.0), (true, families.1)] {
            if wanted {
                done = done.and(self.rule(ipv6, TABLE).await.map(|_| ()));
            }
        }
        done
    }

    /// What is routed into the kernel's end by that table; what leads elsewhere is removed.
    async fn inward(&self, kernels: u32) -> Result<BTreeSet<IpNet>, String> {
        let mut routed = BTreeSet::new();
        for route in Self::routes_of(TABLE).await? {
            let place = destination(&route).and_then(|to| IpNet::new(to, route.header.destination_prefix_length).ok());
            match place.filter(|_| device(&route) == Some(kernels)) {
                Some(place) => drop(routed.insert(place)),
                None => {
                    let removed = self.handle.route().del(route).execute().await;
                    removed.map_err(|e| refused("a route cannot be removed", &e))?;
                }
            }
        }
        Ok(routed)
    }

    /// Has a table of ours looked up, if it is not yet; gives whether it was not.
    async fn rule(&self, ipv6: bool, table: u32) -> Result<bool, String> {
        let (version, family) =
            if ipv6 { (IpVersion::V6, AddressFamily::Inet6) } else { (IpVersion::V4, AddressFamily::Inet) };
        if self.rules(version).await?.iter().any(|rule| leads(rule, table)) {
            return Ok(false);
        }
        let mut rule = self.handle.rule().add();
        let message = rule.message_mut();
        message.header.family = family;
        message.header.table = RouteHeader::RT_TABLE_UNSPEC;
        message.header.action = RuleAction::ToTable;
        message.attributes.push(RuleAttribute::Table(table));
        if table == MARKED_TABLE {
            let marked = [RuleAttribute::FwMark(MARK), RuleAttribute::FwMask(MARK)];
            message.attributes.extend(marked);
            message.attributes.push(RuleAttribute::Priority(MARKED_PREFERENCE));
        } else {
            message.attributes.push(RuleAttribute::Priority(PREFERENCE));
        }
        let added = rule.execute().await.map_err(|e| refused(&format!("no rule for table {table} can be added"), &e));
        added.map(|()| true)
    }

    /// The rules that lead to tables of ours.
    async fn rules(&self, version: IpVersion) -> Result<Vec<RuleMessage>, String> {
        let rules: Result<Vec<RuleMessage>, _> = self.handle.rule().get(version).execute().try_collect().await;
        let mut rules = rules.map_err(|e| refused("rules cannot be read", &e))?;
        let ours = [RuleAttribute::Table(TABLE), RuleAttribute::Table(MARKED_TABLE)];
        rules.retain(|rule| rule.attributes.iter().any(|attribute| ours.contains(attribute)));
        Ok(rules)
    }

    /// Removes the routes of other addresses than these.
    pub async fn route_no_others(&self, addresses: &[IpAddr]) -> Result<(), String> {
        let Some((_, kernels)) = self.ends().await? else { return Ok(()) };
        for route in self.routes().await? {
            let made = route.header.protocol == MADE_BY
                && device(&route) == Some(kernels.index)
                && table(&route) == u32::from(RouteHeader::RT_TABLE_MAIN);
            if made && host_route(&route).is_some_and(|address| !addresses.contains(&address)) {
                let removed = self.handle.route().del(route).execute().await;
                removed.map_err(|e| refused("a route cannot be removed", &e))?;
            }
        }
        Ok(())
    }

    /// Has the kernel answer for an address on another link.
    pub async fn answer_on(&self, interface: &str, address: IpAddr) -> Result<(), String> {
        let failed = |error: Error| format!("the kernel does not answer for {address} on {interface}: {error}");
        let links: Vec<LinkMessage> =
            self.handle.link().get().match_name(interface.to_owned()).execute().try_collect().await.map_err(failed)?;
        let Some(link) = links.first() else { return Ok(()) };
        let proxy = self.handle.neighbours().add(link.header.index, address).flags(NeighbourFlags::Proxy);
        proxy.replace().execute().await.map_err(failed)
    }

    /// Removes both ends, and all that is of them with them; and has the kernel no longer answer for these addresses.
    pub async fn unmake(&self, addresses: &BTreeSet<IpAddr>) -> Result<(), String> {
        let proxies: Vec<NeighbourMessage> =
            self.handle.neighbours().get().proxies().execute().try_collect().await.map_err(|e| e.to_string())?;
        for mut proxy in proxies {
            let ours = proxy.attributes.iter().any(|attribute| match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => addresses.contains(&IpAddr::from(*v4)),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => addresses.contains(&IpAddr::from(*v6)),
                _ => false,
            });
            if ours {
                proxy.header.flags = NeighbourFlags::Proxy;
                self.handle.neighbours().del(proxy).execute().await.map_err(|e| e.to_string())?;
            }
        }
        for version in [IpVersion::V4, IpVersion::V6] {
            for rule in self.rules(version).await? {
                self.handle.rule().del(rule).execute().await.map_err(|e| e.to_string())?;
            }
        }
        let Some((ours, _)) = self.ends().await? else { return Ok(()) };
        self.handle.link().del(ours.index).execute().await.map_err(|e| e.to_string())
    }
}

/// A route that is being made.
struct Way(RouteMessage);

impl<T> From<RouteMessageBuilder<T>> for Way {
    fn from(builder: RouteMessageBuilder<T>) -> Self {
        Self(builder.build())
    }
}

/// A route of a prefix into the kernel's end, of this index, by a table.
fn way((address, length): (IpAddr, u8), kernels: u32, table: u32) -> RouteMessage {
    let Way(mut route) = match address {
        IpAddr::V4(v4) => {
            RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(v4, length).gateway(ROUTER).table_id(table).into()
        }
        IpAddr::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(v6, length)
            .gateway(ROUTER_V6)
            .table_id(table)
            .into(),
    };
    route.attributes.push(RouteAttribute::Oif(kernels));
    route.header.protocol = MADE_BY;
    route
}

fn attribute<T>(link: &LinkMessage, find: impl Fn(&LinkAttribute) -> Option<T>) -> Option<T> {
    link.attributes.iter().find_map(find)
}

fn is_name(attribute: &LinkAttribute, name: &str) -> Option<()> {
    matches!(attribute, LinkAttribute::IfName(found) if found == name).then_some(())
}

/// Whether a link is one end of a veth pair and another link the other.
fn is_veth_to(link: &LinkMessage, other: &LinkMessage) -> bool {
    let is_veth = |attribute: &LinkAttribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.contains(&LinkInfo::Kind(InfoKind::Veth)).then_some(()),
        _ => None,
    };
    let peer = attribute(link, |a| if let LinkAttribute::Link(peer) = a { Some(*peer) } else { None });
    attribute(link, is_veth).is_some() && peer == Some(other.header.index)
}

/// Whether a rule has this table looked up.
fn leads(rule: &RuleMessage, table: u32) -> bool {
    rule.attributes.contains(&RuleAttribute::Table(table))
}

/// Whether an address is of IPv6, and what its family is called.
fn family(address: &IpAddr) -> (bool, &'static str) {
    if address.is_ipv6() { (true, "IPv6") } else { (false, "IPv4") }
}

fn table(route: &RouteMessage) -> u32 {
    let wide =
        route.attributes.iter().find_map(|a| if let RouteAttribute::Table(table) = a { Some(*table) } else { None });
    wide.unwrap_or(route.header.table.into())
}

fn device(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|a| if let RouteAttribute::Oif(index) = a { Some(*index) } else { None })
}

/// The prefix length of one address.
fn whole(address: &IpAddr) -> u8 {
    if address.is_ipv6() { 128 } else { 32 }
}

/// The address that a route of a single one is to: of any table, for an address of the host is in that of its own.
fn host_route(route: &RouteMessage) -> Option<IpAddr> {
    let destination = destination(route)?;
    let whole = if destination.is_ipv6() { 128 } else { 32 };
    let refuses = matches!(route.header.kind, RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit);
    let is_host = route.header.destination_prefix_length == whole && !refuses;
    (is_host && route.header.table != RouteHeader::RT_TABLE_UNSPEC).then_some(destination)
}

/// The address that a route's prefix begins with.
fn destination(route: &RouteMessage) -> Option<IpAddr> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(v4)) => Some(IpAddr::from(*v4)),
        RouteAttribute::Destination(RouteAddress::Inet6(v6)) => Some(IpAddr::from(*v6)),
        _ => None,
    })
}
