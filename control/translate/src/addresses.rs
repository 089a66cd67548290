//! Giving addresses, ClusterIPs and NodePorts: what is written first, then what was given before, then a free one.
//!
//! What a Service had before and still asks for is nobody else's, written or not: the newcomer's is the error. What it
//! had and the host has for a while stays its own, unserved, so that it does not move for good.
//!
//! A free one is looked for from a place that the Service's name hashes to, so that boxes with equal manifests agree
//! and a Service that comes or goes moves few others.

mod allotting;
mod cluster_ips;
mod former;
mod load_balancers;
mod node_ports;
mod reserved;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use siphasher::sip::SipHasher13;

use crate::context::{AddressRange, Context};
use crate::finding::Finding;
use crate::given::Given;
use crate::objects::Located;
use crate::service::ServiceView;
use former::Former;
use reserved::Reserved;

pub(crate) use allotting::allot;

/// How many places are tried before a range counts as full: more than there ever are Services.
const TRIES: u128 = 1 << 17;

/// What giving reads and writes: the rules, what was given before, what is to be kept, what was found wrong.
struct Giving<'g> {
    context: &'g Context,
    before: &'g Given,
    kept: Kept,
    /// What each had before and still asks for.
    former: Former,
    /// What no Service may have on a node.
    reserved: Reserved,
    /// Ranges in which nothing is free any more.
    full: BTreeSet<AddressRange>,
    findings: &'g mut Vec<Finding>,
}

/// What is to be kept.
#[derive(Default)]
pub(crate) struct Kept {
    pub addresses: BTreeMap<String, Vec<IpAddr>>,
    pub cluster_ips: BTreeMap<String, Vec<IpAddr>>,
    pub node_ports: BTreeMap<String, u16>,
}

/// Gives every Service what it lacks. `given` is what was given before; the result is what to keep.
pub(crate) fn give(
    services: &mut [ServiceView],
    nodes: &[Arc<Located<Node>>],
    (context, given): (&Context, &Given),
    findings: &mut Vec<Finding>,
) -> Kept {
    let mut giving = Giving::new(services, nodes, (context, given), findings);
    giving.cluster_ips(services);
    giving.node_ports(services);
    giving.load_balancers(services);
    giving.kept
}

impl<'g> Giving<'g> {
    fn new(
        services: &[ServiceView],
        nodes: &[Arc<Located<Node>>],
        (context, before): (&'g Context, &'g Given),
        findings: &'g mut Vec<Finding>,
    ) -> Self {
        let (former, reserved) = (Former::of(services, context, before), Reserved::of(context, nodes));
        Self { context, before, kept: Kept::default(), former, reserved, full: BTreeSet::new(), findings }
    }
}

fn hash(text: &str) -> u128 {
    let mut hasher = SipHasher13::new();
    hasher.write(text.as_bytes());
    u128::from(hasher.finish())
}

/// A free address of the range, from where the name hashes to.
fn free_in(range: AddressRange, name: &str, is_free: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
    let size = range.size();
    let start = hash(name) % size;
    (0..size.min(TRIES)).map(|step| range.at((start + step) % size)).find(|&address| is_free(address))
}

/// Whether no Service can be reached there: it is no address of one host.
pub(crate) fn is_no_address(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    let broadcast = IpAddr::V4(std::net::Ipv4Addr::BROADCAST);
    ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip == broadcast
}

/// The families (whether IPv6) that a Service asks for and none of these addresses is of.
fn lacking(families: &[bool], has: &[IpAddr]) -> Vec<bool> {
    families.iter().copied().filter(|&ipv6| has.iter().all(|ip| ip.is_ipv6() != ipv6)).collect()
}
