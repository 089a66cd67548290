//! What translation and tables are made from besides the manifests: the configuration and what was seen of the network.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use lb::build::{BuildConfig, Built, rehop};
use lb::tables::{BackendRow, BackendState, HopState, PortRow, SelectionSeed, SnatAddress, Tables, Timeouts};
use lb::{BackendId, Tick};
use siphasher::sip128::SipHasher13;
use translate::{Context, Drained, Place};

use crate::announce::{self, Announced};
use crate::config::Config;
use crate::instance::{Instance, View};
use crate::netlink::Network;

/// How long a change waits for the next hops of endpoints that are new.
const NEXT_HOPS: Duration = Duration::from_millis(50);

/// The host's own addresses that something can be served at.
#[must_use]
pub fn host_addresses(network: &Network) -> Vec<IpAddr> {
    let addresses = network.host_addresses().into_iter().map(|h| h.address);
    let all: BTreeSet<IpAddr> = addresses.filter(|a| !a.is_loopback() && !is_link_local(*a)).collect();
    all.into_iter().collect()
}

/// Gives endpoints that are new a moment to be resolved, so that the first packets to them are not lost.
pub(super) fn await_next_hops(built: &mut Built, previous: &Tables, network: &Network) {
    let tables = &mut built.tables;
    let is_new = |row: &&BackendRow| {
        row.state == BackendState::Usable
            && row.hop.state == HopState::Unresolved
            && previous.backend(row.id).is_none_or(|before| before.address != row.address)
    };
    let taken = built.taken.iter().filter_map(|id| tables.backends.get(id.index()));
    let new: Vec<IpAddr> = taken.filter(is_new).map(|row| row.address.into()).collect();
    if new.is_empty() {
        return;
    }
    network.await_resolved(&new, NEXT_HOPS);
    let generation = tables.generation;
    *tables = rehop(tables, &|address| network.hop(address));
    tables.generation = generation;
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// What translation needs to know of the configuration and of what was seen.
#[must_use]
pub fn static_context(config: &Config) -> Context {
    Context {
        place: if config.kubernetes.is_some() { Place::Node } else { Place::Gateway },
        serve: config.serve,
        pools: config.pools.clone(),
        external_ip_ranges: config.external_ips.clone(),
        service_ranges: config.service_ranges.clone(),
        node_port_range: config.node_port_range.clone(),
        node: config.node.clone(),
        defaults: config.defaults,
        ..Context::default()
    }
}

pub(super) fn context(config: &Config, host: &[IpAddr], drained: &BTreeSet<Drained>, instance: &Instance) -> Context {
    let health = instance.health.state().into_iter().map(|(probe, state)| (probe, state.healthy)).collect();
    let (node_addresses, broadcasts) = (host.to_vec(), crate::host::subnet_ends(&instance.network.host_addresses()));
    Context { node_addresses, broadcasts, drained: drained.clone(), health, ..static_context(config) }
}

pub(super) fn port_rows(instance: &Instance) -> Vec<PortRow> {
    let links = instance.network.links();
    let row = |link: &crate::netlink::Link| PortRow {
        mac: link.mac,
        mtu: u16::try_from(link.mtu).unwrap_or(u16::MAX),
        virtual_device: link.virtual_device,
    };
    links.iter().map(row).collect()
}

fn ticks(duration: Duration) -> u32 {
    Tick::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

/// The seed of endpoint selection from the configuration's text.
#[must_use]
pub fn selection_seed(text: &str) -> SelectionSeed {
    let hash = SipHasher13::new().hash(text.as_bytes());
    SelectionSeed(hash.h1, hash.h2)
}

pub(super) fn build_config(config: &Config, instance: &Instance, expired: HashSet<BackendId>) -> BuildConfig {
    let t = &config.timeouts;
    let snat = |kernel| {
        instance.snat.iter().enumerate().filter(move |(_, s)| s.kernel == kernel).map(|(index, source)| SnatAddress {
            address: source.address.into(),
            index: u16::try_from(index).unwrap_or(u16::MAX),
            first_port: source.ports.0,
            last_port: source.ports.1,
            dedicated: source.dedicated,
        })
    };
    BuildConfig {
        ports: port_rows(instance),
        snat: snat(false).collect(),
        kernel_snat: snat(true).collect(),
        kernel: instance.network.to_kernel(),
        tunnels: instance.tunnels.iter().map(|address| (*address).into()).collect(),
        timeouts: Timeouts {
            tcp_established: ticks(t.tcp_established),
            tcp_transitory: ticks(t.tcp_transitory),
            tcp_opening: ticks(t.tcp_opening),
            tcp_closed: ticks(t.tcp_closed),
            udp: ticks(t.udp),
            udp_unreplied: ticks(t.udp_unreplied),
            dns: ticks(t.dns),
            dns_done: ticks(t.dns_done),
            sctp_opening: ticks(t.sctp_opening),
            sctp_established: ticks(t.sctp_established),
            sctp_closing: ticks(t.sctp_closing),
            sctp_closed: ticks(t.sctp_closed),
        },
        mss_clamp: config.mss_clamp,
        flows_per_source: config.limits.flows_per_source,
        new_flows_per_source: config.limits.new_flows_per_source,
        seed: selection_seed(&config.seed),
        expired,
        ..BuildConfig::default()
    }
}

/// The VIPs that another node answers for.
pub(super) fn elsewhere(config: &Config, view: &View, instance: &Instance) -> BTreeSet<IpAddr> {
    let Some(owners) = &instance.owners else { return BTreeSet::new() };
    let owned = owners.owned();
    let vips = view.translation.desired.addresses.iter().filter(|vip| vip.is_announced()).map(|vip| vip.address);
    vips.filter(|vip| announce::is_announced(config, &view.pools, *vip) && !owned.contains(vip)).collect()
}

pub(super) fn announced(config: &Config, view: &View, instance: &Instance) -> Vec<Announced> {
    let vips = view.translation.desired.addresses.iter().filter(|vip| vip.is_announced()).map(|vip| vip.address);
    let snat = instance.snat.iter().filter(|source| source.dedicated && !source.kernel).map(|s| s.address);
    let snat: BTreeSet<IpAddr> = snat.chain(instance.tunnels.iter().copied()).collect();
    let (vips, snat): (Vec<_>, Vec<_>) = (vips.collect(), snat.into_iter().collect());
    let vlans =
        instance.network.vlans().into_iter().map(|(port, link)| (usize::from(port.0), link.name)).collect::<Vec<_>>();
    announce::place((config, &view.pools), &vips, &snat, &instance.network.host_addresses(), &vlans)
}
