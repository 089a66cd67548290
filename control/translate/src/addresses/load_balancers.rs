//! Addresses of Services of type LoadBalancer: status, request, what was given before, pools; and who may share one.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::context::AddressRange;
use crate::finding::Severity;
use crate::listing::ServiceKind;
use crate::manifest::protocol_of;
use crate::service::ServiceView;

use super::{Giving, free_in, lacking};

/// Who has an address. An address of the host stands here without holders: no pool gives it, a manifest may ask for it.
type Claims = BTreeMap<IpAddr, Vec<Claim>>;

#[derive(Clone)]
struct Claim {
    key: String,
    /// `namespace/name (file:line)`.
    named: String,
    share: Option<String>,
    ports: Vec<(i32, String)>,
}

impl Claim {
    fn of(service: &ServiceView<'_>) -> Self {
        let ports = service.ports().iter().map(|port| (port.port, protocol_of(port).to_owned())).collect();
        Self { key: service.key(), named: service.named(), share: service.notes.share.clone(), ports }
    }

    /// Two Services may share an address when their ports differ and both carry the same share key.
    fn agrees(&self, other: &Self) -> bool {
        self.key == other.key
            || self.share.is_some() && self.share == other.share && !self.ports.iter().any(|p| other.ports.contains(p))
    }
}

impl Giving<'_> {
    pub(super) fn load_balancers(&mut self, services: &mut [ServiceView<'_>]) {
        let mut claims = self.reserved(services);
        let mut ours: Vec<&mut ServiceView<'_>> = services
            .iter_mut()
            .filter(|service| service.kind == ServiceKind::LoadBalancer && service.class_is_ours())
            .collect();
        for service in &mut ours {
            self.take_from_status(service, &mut claims);
        }
        // Of two that ask for one address, the one that has it keeps it.
        let (holders, others): (Vec<_>, Vec<_>) = ours
            .iter_mut()
            .filter(|service| service.addresses.is_empty())
            .partition(|service| self.had_requested(service));
        for service in holders.into_iter().chain(others) {
            self.requested(service, &mut claims);
        }
        for service in &mut ours {
            self.kept_addresses(service, &mut claims);
        }
        for service in &mut ours {
            for ipv6 in wanted(service) {
                let Some(ip) = self.take_from_pools(&mut claims, &Claim::of(service), ipv6) else { continue };
                service.addresses.push(ip);
                self.kept.addresses.entry(service.key()).or_default().push(ip);
            }
        }
    }

    fn in_pools(&self, ip: IpAddr) -> bool {
        self.context.pools.iter().flat_map(|pool| &pool.addresses).any(|range| range.contains(ip))
    }

    /// What no pool may give: external IPs, ClusterIPs and the host's own addresses.
    fn reserved(&self, services: &[ServiceView<'_>]) -> Claims {
        let mut claims = Claims::new();
        for service in services {
            for ip in service.external_ips().chain(service.cluster_ips.iter().copied()) {
                let claim = Claim { share: None, ports: Vec::new(), ..Claim::of(service) };
                claims.entry(ip).or_default().push(claim);
            }
        }
        for &ip in &self.context.node_addresses {
            claims.entry(ip).or_default();
        }
        claims
    }

    fn take_from_status(&self, service: &mut ServiceView<'_>, claims: &mut Claims) {
        let claim = Claim::of(service);
        for ip in status_addresses(service).into_iter().filter(|&ip| self.in_pools(ip)) {
            if !service.addresses.contains(&ip) && take(claims, ip, &claim).is_ok() {
                service.addresses.push(ip);
            }
        }
    }

    /// Whether it was served at an address that it asks for.
    fn had_requested(&self, service: &ServiceView<'_>) -> bool {
        let before = self.before.addresses.get(&service.key());
        before.is_some_and(|before| service.requested().iter().any(|ip| before.contains(ip)))
    }

    fn requested(&mut self, service: &mut ServiceView<'_>, claims: &mut Claims) {
        let annotated = !service.notes.addresses.is_empty();
        let field = if annotated { "metadata.annotations[millrace.dev/addresses]" } else { "spec.loadBalancerIP" };
        let claim = Claim::of(service);
        for ip in service.requested() {
            let mut find = |severity, message| self.findings.push(service.located.finding(severity, field, message));
            if !service.families.contains(&ip.is_ipv6()) {
                let message = format!("`{ip}` is not served, expected an address of a family that the Service has");
                find(Severity::Warning, message);
                continue;
            }
            match take(claims, ip, &claim) {
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

    fn kept_addresses(&mut self, service: &mut ServiceView<'_>, claims: &mut Claims) {
        let before = self.before.addresses.get(&service.key()).map(Vec::as_slice).unwrap_or_default();
        for ipv6 in wanted(service) {
            let fits = |ip: &&IpAddr| ip.is_ipv6() == ipv6 && self.in_pools(**ip);
            let Some(&ip) = before.iter().find(fits) else { continue };
            // An address that became the host's own is given up.
            let is_host = self.context.node_addresses.contains(&ip);
            if !is_host && take(claims, ip, &Claim::of(service)).is_ok() {
                service.addresses.push(ip);
                self.kept.addresses.entry(service.key()).or_default().push(ip);
            }
        }
    }

    /// An address that the share key has already, else a free one of the first pool that has one.
    fn take_from_pools(&self, claims: &mut Claims, claim: &Claim, ipv6: bool) -> Option<IpAddr> {
        let ranges: Vec<AddressRange> = self
            .context
            .pools
            .iter()
            .flat_map(|pool| pool.addresses.iter().copied())
            .filter(|range| range.is_ipv6() == ipv6)
            .collect();
        let in_ranges = |ip: &IpAddr| ranges.iter().any(|range| range.contains(*ip));
        let shared = claim.share.as_ref().and_then(|_| {
            let fits = |holders: &Vec<Claim>| {
                !holders.is_empty() && holders.iter().all(|holder| holder.key != claim.key && holder.agrees(claim))
            };
            claims.iter().find(|(ip, holders)| in_ranges(ip) && fits(holders)).map(|(ip, _)| *ip)
        });
        let free = || ranges.iter().find_map(|&range| free_in(range, &claim.key, |ip| !claims.contains_key(&ip)));
        let ip = shared.or_else(free)?;
        claims.entry(ip).or_default().push(claim.clone());
        Some(ip)
    }
}

/// The families that it lacks an address of and asks for none of.
fn wanted(service: &ServiceView<'_>) -> Vec<bool> {
    let has: Vec<IpAddr> = service.addresses.iter().copied().chain(service.requested()).collect();
    lacking(&service.families, &has)
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
        return Err(other.named.clone());
    }
    holders.push(claim.clone());
    Ok(())
}
