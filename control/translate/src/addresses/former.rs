//! What Services had before and still ask for: their claims come before those of newcomers.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::context::Context;
use crate::given::{Given, frontend_key};
use crate::listing::ServiceKind;
use crate::manifest::{name_of, protocol_of};
use crate::service::{ServiceView, written_node_port};

use super::lacking;
use super::load_balancers::{Claim, Claims, in_pools, status_addresses};

/// Former holders that still ask for what they had.
pub(super) struct Former {
    /// LoadBalancer addresses.
    pub addresses: Claims,
    /// ClusterIPs: (key, `namespace/name (file:line)`).
    pub cluster_ips: BTreeMap<IpAddr, (String, String)>,
    /// NodePorts by protocol and number: (the port's key, `namespace/name (file:line)`, whether it is written).
    pub node_ports: BTreeMap<(String, u16), (String, String, bool)>,
}

impl Former {
    pub fn of(services: &[ServiceView], context: &Context, before: &Given) -> Self {
        let mut former = Self { addresses: Claims::new(), cluster_ips: BTreeMap::new(), node_ports: BTreeMap::new() };
        for service in services.iter().filter(|service| service.balances()) {
            for ip in load_balancer_addresses(service, context, before) {
                former.addresses.entry(ip).or_default().push(Claim::of(service));
            }
            for ip in cluster_ips(service, context, before) {
                former.cluster_ips.entry(ip).or_insert_with(|| (service.key(), service.named()));
            }
            former.note_node_ports(service, context, before);
        }
        former.part_sharers(before);
        former
    }

    /// Of two that shared an address and now want one port there, the one that had the port before comes first.
    fn part_sharers(&mut self, before: &Given) {
        for (ip, holders) in &mut self.addresses {
            let had = |claim: &Claim, (port, protocol): &(i32, String)| {
                let number = u16::try_from(*port).unwrap_or_default();
                before.frontends.get(&frontend_key(*ip, number, protocol)) == Some(&claim.key)
            };
            let all = holders.clone();
            holders.retain(|claim| {
                let ousts = |other: &Claim| other.key != claim.key && claim.ports.iter().any(|port| had(other, port));
                !all.iter().any(|other| !claim.agrees(other) && ousts(other))
            });
        }
    }

    fn note_node_ports(&mut self, service: &ServiceView, context: &Context, before: &Given) {
        if !matches!(service.kind, ServiceKind::NodePort | ServiceKind::LoadBalancer) {
            return;
        }
        for port in service.ports() {
            let protocol = protocol_of(port).to_owned();
            let key = format!("{}/{protocol}/{}", service.key(), name_of(port));
            let written = written_node_port(port);
            let fits = |number: &u16| match written {
                Some(written) => written == *number,
                None => context.node_port_range.contains(number),
            };
            if let Some(&number) = before.node_ports.get(&key).filter(|number| fits(number)) {
                let holder = (key, service.named(), written.is_some());
                self.node_ports.entry((protocol, number)).or_insert(holder);
            }
        }
    }

    /// The Service that has an address as its LoadBalancer's and does not share it with this one.
    pub fn other_load_balancer(&self, ip: IpAddr, claim: &Claim) -> Option<&str> {
        let holders = self.addresses.get(&ip).filter(|holders| holders.iter().all(|holder| holder.key != claim.key))?;
        holders.iter().find(|holder| !holder.agrees(claim)).map(|holder| holder.named.as_str())
    }
}

fn load_balancer_addresses(service: &ServiceView, context: &Context, before: &Given) -> Vec<IpAddr> {
    if service.kind != ServiceKind::LoadBalancer || !service.class_is_ours() {
        return Vec::new();
    }
    let mut written = service.requested();
    written.extend(status_addresses(service).into_iter().filter(|&ip| in_pools(context, ip)));
    let unwritten = lacking(&service.families, &written);
    let asks = |ip: &IpAddr| written.contains(ip) || unwritten.contains(&ip.is_ipv6()) && in_pools(context, *ip);
    before.addresses.get(&service.key()).into_iter().flatten().copied().filter(asks).collect()
}

fn cluster_ips(service: &ServiceView, context: &Context, before: &Given) -> Vec<IpAddr> {
    let unwritten = lacking(&service.families, &service.cluster_ips);
    let ours = |ip: &IpAddr| context.service_ranges.iter().any(|net| net.contains(ip));
    let asks = |ip: &IpAddr| service.cluster_ips.contains(ip) || unwritten.contains(&ip.is_ipv6()) && ours(ip);
    before.cluster_ips.get(&service.key()).into_iter().flatten().copied().filter(asks).collect()
}
