//! Addresses of Services of type LoadBalancer: status, request, what was given before, pools; and who may share one.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::context::{AddressRange, Context, Place};
use crate::finding::Severity;
use crate::frontends::external_ip_allowed;
use crate::manifest::protocol_of;
use crate::pools::{Labels, Pool};
use crate::service::ServiceView;

use super::{Giving, free_in, is_no_address, lacking};

/// Who has an address. An address of the host stands here without holders: no pool gives it, a manifest may ask for it.
pub(super) type Claims = BTreeMap<IpAddr, Vec<Claim>>;

#[derive(Clone)]
pub(super) struct Claim {
    pub key: String,
    /// `namespace/name (file:line)`.
    pub named: String,
    share: Option<String>,
    pub ports: Vec<(i32, String)>,
}

impl Claim {
    pub fn of(service: &ServiceView) -> Self {
        let ports = service.ports().iter().map(|port| (port.port, protocol_of(port).to_owned())).collect();
        Self { key: service.key(), named: service.named(), share: service.notes.share.clone(), ports }
    }

    /// Two Services may share an address when their ports differ and both carry the same share key.
    pub fn agrees(&self, other: &Self) -> bool {
        self.key == other.key
            || self.share.is_some() && self.share == other.share && !self.ports.iter().any(|p| other.ports.contains(p))
    }
}

impl Giving<'_> {
    pub(super) fn load_balancers(&mut self, services: &mut [ServiceView]) {
        let mut claims = self.reserved(services);
        let mut ours: Vec<&mut ServiceView> =
            services.iter_mut().filter(|service| service.is_our_load_balancer()).collect();
        for service in &mut ours {
            self.take_from_status(service, &mut claims);
        }
        if self.context.place == Place::Node {
            // The status is the record: what a node gave by itself, the others would not know.
            return;
        }
        for service in ours.iter_mut().filter(|service| service.addresses.is_empty()) {
            self.requested(service, &mut claims);
        }
        for service in &mut ours {
            self.kept_addresses(service, &mut claims);
        }
        for service in &mut ours {
            // What it waits for is its own already.
            let waiting = self.kept.addresses.get(&service.key()).cloned().unwrap_or_default();
            let waits = |ipv6: bool| waiting.iter().any(|ip| ip.is_ipv6() == ipv6);
            for ipv6 in wanted(service).into_iter().filter(|&ipv6| !waits(ipv6)) {
                let Some(ip) = self.take_from_pools(&mut claims, service, ipv6) else { continue };
                service.addresses.push(ip);
                self.kept.addresses.entry(service.key()).or_default().push(ip);
            }
        }
    }

    pub(super) fn in_pools(&self, ip: IpAddr) -> bool {
        in_pools(self.context, ip)
    }

    /// What no pool may give: external IPs, ClusterIPs and the host's own addresses. An external IP that is the
    /// address of a Service from before is refused, and one that a node, its pods or ClusterIPs have for themselves.
    pub(super) fn reserved(&mut self, services: &mut [ServiceView]) -> Claims {
        let mut claims = Claims::new();
        let (context, node) = (self.context, self.context.place == Place::Node);
        for service in services {
            let claim = Claim { share: None, ports: Vec::new(), ..Claim::of(service) };
            // Who writes a Service could else take what it likes out of the pools.
            let counts = |ip: &IpAddr| !node || external_ip_allowed(context, *ip);
            let external: Vec<(usize, IpAddr)> =
                service.external_ips().enumerate().filter(|(_, ip)| counts(ip)).collect();
            for (at, ip) in external {
                let Some(what) = self.refuses_external_ip(ip, &claim) else { continue };
                let message = format!("`{ip}` of {} is {what}, expected another address", service.key());
                let field = format!("spec.externalIPs[{at}]");
                self.findings.push(service.located.finding(Severity::Error, &field, message));
                service.refused_external_ips.push(ip);
            }
            let external = service.external_ips().filter(|ip| !service.refused_external_ips.contains(ip));
            for ip in external.filter(counts).chain(service.cluster_ips.iter().copied()) {
                claims.entry(ip).or_default().push(claim.clone());
            }
        }
        for &ip in &self.context.node_addresses {
            claims.entry(ip).or_default();
        }
        claims
    }

    /// What an external IP is that a Service may not have.
    fn refuses_external_ip(&self, ip: IpAddr, claim: &Claim) -> Option<String> {
        if let Some(other) = self.former.other_load_balancer(ip, claim) {
            return Some(format!("the address of {other}"));
        }
        // Where none is served, there is nothing to refuse.
        self.reserved.what_beside_nodes(ip).filter(|_| self.context.serve.external_ips).map(str::to_owned)
    }

    fn take_from_status(&mut self, service: &mut ServiceView, claims: &mut Claims) {
        let claim = Claim::of(service);
        for ip in status_addresses(service) {
            if !self.in_pools(ip) {
                self.not_of_the_pools(service, ip);
            } else if let Some(what) = self.reserved.what(ip) {
                let message = format!("`{ip}` is not served: it is {what}, expected an address of nothing else");
                let finding = service.located.finding(Severity::Warning, "status.loadBalancer.ingress", message);
                self.findings.push(finding);
            } else if !service.addresses.contains(&ip) && self.take(claims, ip, &claim).is_ok() {
                service.addresses.push(ip);
                self.kept.addresses.entry(service.key()).or_default().push(ip);
            }
        }
    }

    /// On a node everybody who may write a status could take what is not ours (CVE-2020-8554); a gateway's manifests
    /// may say where another load balancer has the Service.
    fn not_of_the_pools(&mut self, service: &ServiceView, ip: IpAddr) {
        if self.context.place == Place::Node {
            let message = format!("`{ip}` is not served, expected an address of `pools`");
            let finding = service.located.finding(Severity::Warning, "status.loadBalancer.ingress", message);
            self.findings.push(finding);
        }
    }

    /// Claims an address, or names the Service that has it or had it before.
    pub(super) fn take(&self, claims: &mut Claims, ip: IpAddr, claim: &Claim) -> Result<(), String> {
        let holders = claims.entry(ip).or_default();
        if let Some(other) = holders.iter().find(|holder| !holder.agrees(claim)) {
            return Err(other.named.clone());
        }
        if let Some(other) = self.former.other_load_balancer(ip, claim) {
            return Err(other.to_owned());
        }
        holders.push(claim.clone());
        Ok(())
    }

    fn requested(&mut self, service: &mut ServiceView, claims: &mut Claims) {
        let annotated = !service.notes.addresses.is_empty();
        let field = if annotated { "metadata.annotations[millrace.dev/addresses]" } else { "spec.loadBalancerIP" };
        let claim = Claim::of(service);
        for ip in service.requested() {
            let taken = if service.families.contains(&ip.is_ipv6()) { self.take(claims, ip, &claim) } else { Ok(()) };
            let mut find = |severity, message| self.findings.push(service.located.finding(severity, field, message));
            if !service.families.contains(&ip.is_ipv6()) {
                let message = format!("`{ip}` is not served, expected an address of a family that the Service has");
                find(Severity::Warning, message);
                continue;
            }
            match taken {
                Ok(()) => {
                    service.addresses.push(ip);
                    self.kept.addresses.entry(service.key()).or_default().push(ip);
                }
                Err(other) => {
                    let rule = "expected a free one, or different ports and the same `millrace.dev/share` on both";
                    find(Severity::Error, format!("`{ip}` of {} is taken by {other}, {rule}", service.key()));
                }
            }
            if !self.in_pools(ip) {
                let message = format!("`{ip}` is in none of the pools, expected one of theirs");
                self.findings.push(service.located.finding(Severity::Warning, field, message));
            }
        }
    }

    fn kept_addresses(&mut self, service: &mut ServiceView, claims: &mut Claims) {
        let before = self.before.addresses.get(&service.key()).map(Vec::as_slice).unwrap_or_default();
        for ipv6 in wanted(service) {
            let fits = |ip: &&IpAddr| ip.is_ipv6() == ipv6 && self.in_pools(**ip);
            let Some(&ip) = before.iter().find(fits) else { continue };
            if self.context.node_addresses.contains(&ip) {
                // Perhaps for a moment only: it is not to move for good.
                let rule = "expected the host to let go of it";
                let message = format!("`{ip}` of {} is not served while this host has it, {rule}", service.key());
                self.findings.push(service.located.finding(Severity::Warning, "spec.type", message));
                self.kept.addresses.entry(service.key()).or_default().push(ip);
            } else if self.take(claims, ip, &Claim::of(service)).is_ok() {
                service.addresses.push(ip);
                self.kept.addresses.entry(service.key()).or_default().push(ip);
            }
        }
    }

    /// An address that the share key has already, else a free one of the first pool that has one.
    pub(super) fn take_from_pools(&mut self, claims: &mut Claims, service: &ServiceView, ipv6: bool) -> Option<IpAddr> {
        let claim = Claim::of(service);
        let ranges: Vec<AddressRange> = self
            .pools_for(service)
            .filter(|pool| pool.auto_assign)
            .flat_map(|pool| pool.addresses.iter().copied())
            .filter(|range| range.is_ipv6() == ipv6)
            .collect();
        let Self { context, former, reserved, full, .. } = self;
        let reserved = |ip| is_no_address(ip) || context.broadcasts.contains(&ip) || reserved.what(ip).is_some();
        let in_ranges = |ip: &IpAddr| {
            former.other_load_balancer(*ip, &claim).is_none() && ranges.iter().any(|range| range.contains(*ip))
        };
        let shared = claim.share.as_ref().and_then(|_| {
            let fits = |holders: &Vec<Claim>| {
                !holders.is_empty() && holders.iter().all(|holder| holder.key != claim.key && holder.agrees(&claim))
            };
            claims.iter().find(|(ip, holders)| in_ranges(ip) && fits(holders)).map(|(ip, _)| *ip)
        });
        let is_free = |ip| !claims.contains_key(&ip) && !former.addresses.contains_key(&ip) && !reserved(ip);
        let free = || {
            ranges.iter().find_map(|&range| {
                if full.contains(&range) {
                    return None;
                }
                let found = free_in(range, &claim.key, is_free);
                if found.is_none() {
                    full.insert(range);
                }
                found
            })
        };
        let ip = shared.or_else(free)?;
        claims.entry(ip).or_default().push(claim.clone());
        Some(ip)
    }

    /// The pools that a Service may have addresses of, the first to be tried in front.
    pub(super) fn pools_for(&self, service: &ServiceView) -> impl Iterator<Item = &Pool> {
        let context = self.context;
        let none = Labels::new();
        let mut pools: Vec<&Pool> = {
            let labels = service.located.object.metadata.labels.as_ref().unwrap_or(&none);
            let admits = |pool: &&Pool| pool.admits(&service.namespace, &context.namespaces, labels);
            context.pools.iter().filter(admits).collect()
        };
        pools.sort_by_key(|pool| std::cmp::Reverse(pool.priority));
        pools.into_iter()
    }
}

/// The families that it lacks an address of and asks for none of.
pub(super) fn wanted(service: &ServiceView) -> Vec<bool> {
    let has: Vec<IpAddr> = service.addresses.iter().copied().chain(service.requested()).collect();
    lacking(&service.families, &has)
}

/// Whether a pool has it.
pub(super) fn in_pools(context: &Context, ip: IpAddr) -> bool {
    context.pools.iter().any(|pool| pool.contains(ip))
}

/// The addresses of the status, but those of no host.
pub(super) fn status_addresses(service: &ServiceView) -> Vec<IpAddr> {
    let status = service.located.object.status.as_ref();
    let ingress = status.and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
    ingress
        .into_iter()
        .flatten()
        .filter_map(|ingress| ingress.ip.as_ref()?.parse().ok())
        .filter(|ip| !is_no_address(*ip))
        .collect()
}
