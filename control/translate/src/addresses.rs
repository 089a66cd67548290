//! Giving addresses, ClusterIPs and NodePorts: what is written first, then what was given before, then a free one.
//!
//! A free one is looked for from a place that the Service's name hashes to, so that boxes with equal manifests agree
//! and a Service that comes or goes moves few others.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;
use std::net::IpAddr;

use siphasher::sip::SipHasher13;

use crate::context::{AddressRange, Context};
use crate::finding::{Finding, Severity};
use crate::given::Given;
use crate::listing::ServiceKind;
use crate::manifest::{name_of, protocol_of};
use crate::service::ServiceView;

/// How many places are tried before a range counts as full: more than there ever are Services.
const TRIES: u128 = 1 << 17;

/// Gives every Service what it lacks. `given` is what was given before; the result is what to keep.
pub(crate) fn give(
    services: &mut [ServiceView<'_>],
    context: &Context,
    given: &Given,
    findings: &mut Vec<Finding>,
) -> Given {
    let mut kept = Given::default();
    cluster_ips(services, context, given, &mut kept, findings);
    node_ports(services, context, given, &mut kept, findings);
    load_balancers(services, context, given, &mut kept, findings);
    kept
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

fn cluster_ips(
    services: &mut [ServiceView<'_>],
    context: &Context,
    given: &Given,
    kept: &mut Given,
    findings: &mut Vec<Finding>,
) {
    let mut used: BTreeSet<IpAddr> = context.node_addresses.iter().copied().collect();
    for service in services.iter().filter(|service| service.balances()) {
        for &ip in &service.cluster_ips {
            used.insert(ip);
            if !context.service_ranges.is_empty() && !context.service_ranges.iter().any(|net| net.contains(&ip)) {
                let message =
                    format!("`{ip}` is outside the serviceRange, expected one of {:?}", context.service_ranges);
                findings.push(service.located.finding(Severity::Warning, "spec.clusterIP", message));
            }
        }
    }
    let lacking = |service: &ServiceView<'_>| -> Vec<bool> {
        let has = |ipv6: bool| service.cluster_ips.iter().any(|ip| ip.is_ipv6() == ipv6);
        service.families.iter().copied().filter(|&ipv6| service.balances() && !has(ipv6)).collect()
    };
    for service in services.iter_mut() {
        let before = given.cluster_ips.get(&service.key()).cloned().unwrap_or_default();
        for ipv6 in lacking(service) {
            let ours = |ip: &IpAddr| context.service_ranges.iter().any(|net| net.contains(ip));
            let Some(ip) = before.iter().copied().find(|ip| ip.is_ipv6() == ipv6 && ours(ip)) else { continue };
            if used.insert(ip) {
                service.cluster_ips.push(ip);
                kept.cluster_ips.entry(service.key()).or_default().push(ip);
            }
        }
    }
    for service in services.iter_mut() {
        for ipv6 in lacking(service) {
            let Some(&net) = context.service_ranges.iter().find(|net| net.addr().is_ipv6() == ipv6) else { continue };
            // The first and the last address of a range are not given, as the API server has it.
            let range = AddressRange::from(net);
            let usable = |ip| ip != range.first() && ip != range.last() && !used.contains(&ip);
            match free_in(range, &service.key(), usable) {
                Some(ip) => {
                    used.insert(ip);
                    service.cluster_ips.push(ip);
                    kept.cluster_ips.entry(service.key()).or_default().push(ip);
                }
                None => {
                    let message = format!("none is free in serviceRange {net}, expected a wider range");
                    findings.push(service.located.finding(Severity::Error, "spec.clusterIP", message));
                }
            }
        }
    }
}

fn node_ports(
    services: &mut [ServiceView<'_>],
    context: &Context,
    given: &Given,
    kept: &mut Given,
    findings: &mut Vec<Finding>,
) {
    let range = &context.node_port_range;
    let mut used: BTreeSet<(String, u16)> = BTreeSet::new();
    let mut lacking = Vec::new();
    for (index, service) in services.iter().enumerate() {
        let wants = match service.kind {
            ServiceKind::NodePort => true,
            ServiceKind::LoadBalancer => {
                context.serve.node_port && service.spec.allocate_load_balancer_node_ports != Some(false)
            }
            _ => false,
        };
        for (at, port) in service.ports().iter().enumerate() {
            let protocol = protocol_of(port).to_owned();
            match service.node_ports[at] {
                Some(number) => {
                    used.insert((protocol, number));
                    if !range.contains(&number) {
                        let (first, last) = (range.start(), range.end());
                        let message = format!("`{number}` is outside nodePortRange, expected {first} to {last}");
                        let field = format!("spec.ports[{at}].nodePort");
                        findings.push(service.located.finding(Severity::Warning, &field, message));
                    }
                }
                None if wants => {
                    lacking.push((
                        index,
                        at,
                        protocol.clone(),
                        format!("{}/{protocol}/{}", service.key(), name_of(port)),
                    ));
                }
                None => {}
            }
        }
    }
    lacking.retain(|(index, at, protocol, key)| {
        let before = given.node_ports.get(key).copied().filter(|number| range.contains(number));
        let Some(number) = before.filter(|&number| used.insert((protocol.clone(), number))) else { return true };
        services[*index].node_ports[*at] = Some(number);
        kept.node_ports.insert(key.clone(), number);
        false
    });
    for (index, at, protocol, key) in lacking {
        let size = u128::from(*range.end()).saturating_sub(u128::from(*range.start())) + 1;
        let number = |step: u128| {
            let offset = u16::try_from((hash(&key) + step) % size).unwrap_or(0);
            range.start().saturating_add(offset)
        };
        match (0..size).map(number).find(|&number| !used.contains(&(protocol.clone(), number))) {
            Some(number) => {
                used.insert((protocol, number));
                services[index].node_ports[at] = Some(number);
                kept.node_ports.insert(key, number);
            }
            None => {
                let field = format!("spec.ports[{at}].nodePort");
                let message = "none is free in nodePortRange, expected a wider range";
                findings.push(services[index].located.finding(Severity::Error, &field, message));
            }
        }
    }
}

/// Who has an address of a LoadBalancer: the Service's key, its share key, its (port, protocol)s.
type Claims = BTreeMap<IpAddr, Vec<Claim>>;

#[derive(Clone)]
struct Claim {
    key: String,
    share: Option<String>,
    ports: Vec<(i32, String)>,
}

impl Claim {
    fn of(service: &ServiceView<'_>) -> Self {
        let ports = service.ports().iter().map(|port| (port.port, protocol_of(port).to_owned())).collect();
        Self { key: service.key(), share: service.notes.share.clone(), ports }
    }

    /// Two Services may share an address when their ports differ and both carry the same share key.
    fn agrees(&self, other: &Self) -> bool {
        self.key == other.key
            || self.share.is_some() && self.share == other.share && !self.ports.iter().any(|p| other.ports.contains(p))
    }
}

fn load_balancers(
    services: &mut [ServiceView<'_>],
    context: &Context,
    given: &Given,
    kept: &mut Given,
    findings: &mut Vec<Finding>,
) {
    let in_pools = |ip: IpAddr| context.pools.iter().flat_map(|pool| &pool.addresses).any(|range| range.contains(ip));
    let mut claims = reserved(services, context);
    let ours = |service: &ServiceView<'_>| service.kind == ServiceKind::LoadBalancer && service.class_is_ours();
    for service in services.iter_mut().filter(|service| ours(service)) {
        let claim = Claim::of(service);
        for ip in status_addresses(service).into_iter().filter(|&ip| in_pools(ip)) {
            if let Ok(()) = take(&mut claims, ip, &claim) {
                service.addresses.push(ip);
            }
        }
        if !service.addresses.is_empty() {
            continue;
        }
        for ip in service.requested() {
            let annotated = !service.notes.addresses.is_empty();
            let field = if annotated { "metadata.annotations[millrace.dev/addresses]" } else { "spec.loadBalancerIP" };
            match take(&mut claims, ip, &claim) {
                Ok(()) => service.addresses.push(ip),
                Err(other) => {
                    let rule = "expected a free one, or different ports and the same `millrace.dev/share` on both";
                    let message = format!("{ip} of {} is taken by {other}, {rule}", service.key());
                    findings.push(service.located.finding(Severity::Error, field, message));
                }
            }
            if !in_pools(ip) {
                let message = format!("`{ip}` is in none of the pools, expected one of theirs");
                findings.push(service.located.finding(Severity::Warning, field, message));
            }
        }
    }
    let lacking = |service: &ServiceView<'_>| -> Vec<bool> {
        let has = |ipv6: bool| service.addresses.iter().any(|ip| ip.is_ipv6() == ipv6);
        let wants = ours(service) && service.requested().is_empty();
        service.families.iter().copied().filter(|&ipv6| wants && !has(ipv6)).collect()
    };
    for service in services.iter_mut() {
        let before = given.addresses.get(&service.key()).cloned().unwrap_or_default();
        for ipv6 in lacking(service) {
            let Some(ip) = before.iter().copied().find(|ip| ip.is_ipv6() == ipv6 && in_pools(*ip)) else { continue };
            if take(&mut claims, ip, &Claim::of(service)).is_ok() {
                service.addresses.push(ip);
                kept.addresses.entry(service.key()).or_default().push(ip);
            }
        }
    }
    for service in services.iter_mut() {
        for ipv6 in lacking(service) {
            let Some(ip) = from_pools(&mut claims, context, &Claim::of(service), ipv6) else { continue };
            service.addresses.push(ip);
            kept.addresses.entry(service.key()).or_default().push(ip);
        }
    }
}

/// What no pool may give: external IPs, ClusterIPs and the host's own addresses.
fn reserved(services: &[ServiceView<'_>], context: &Context) -> Claims {
    let mut claims = Claims::new();
    let nobody = |key: String| Claim { key, share: None, ports: Vec::new() };
    for service in services {
        for ip in service.external_ips().chain(service.cluster_ips.iter().copied()) {
            claims.entry(ip).or_default().push(nobody(service.key()));
        }
    }
    for &ip in &context.node_addresses {
        claims.entry(ip).or_default();
    }
    claims
}

fn status_addresses(service: &ServiceView<'_>) -> Vec<IpAddr> {
    let status = service.located.object.status.as_ref();
    let ingress = status.and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
    ingress.into_iter().flatten().filter_map(|ingress| ingress.ip.as_ref()?.parse().ok()).collect()
}

/// Claims an address, or names the Service that has it.
fn take(claims: &mut Claims, ip: IpAddr, claim: &Claim) -> Result<(), String> {
    let holders = claims.entry(ip).or_default();
    if let Some(other) = holders.iter().find(|holder| !holder.agrees(claim)) {
        return Err(other.key.clone());
    }
    holders.push(claim.clone());
    Ok(())
}

/// An address that the share key has already, else a free one of the first pool that has one.
fn from_pools(claims: &mut Claims, context: &Context, claim: &Claim, ipv6: bool) -> Option<IpAddr> {
    let ranges: Vec<AddressRange> = context
        .pools
        .iter()
        .flat_map(|pool| pool.addresses.iter().copied())
        .filter(|range| range.is_ipv6() == ipv6)
        .collect();
    let in_ranges = |ip: &IpAddr| ranges.iter().any(|range| range.contains(*ip));
    let shared = claim.share.as_ref().and_then(|_| {
        let fits = |holders: &Vec<Claim>| !holders.is_empty() && holders.iter().all(|holder| holder.agrees(claim));
        claims.iter().find(|(ip, holders)| in_ranges(ip) && fits(holders)).map(|(ip, _)| *ip)
    });
    let free = || ranges.iter().find_map(|&range| free_in(range, &claim.key, |ip| !claims.contains_key(&ip)));
    let ip = shared.or_else(free)?;
    claims.entry(ip).or_default().push(claim.clone());
    Some(ip)
}
