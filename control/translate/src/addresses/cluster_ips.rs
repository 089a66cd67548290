//! ClusterIPs: those written, warned about outside the Service range, and those given from it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;

use crate::context::AddressRange;
use crate::finding::Severity;
use crate::service::ServiceView;

use super::load_balancers::Claim;
use super::{Giving, free_in, lacking};

/// Who has a ClusterIP: `namespace/name (file:line)`; the host has its own addresses.
type Used = BTreeMap<IpAddr, String>;

impl Giving<'_> {
    pub(super) fn cluster_ips(&mut self, services: &mut [ServiceView]) {
        let mut used: Used = self.context.node_addresses.iter().map(|&ip| (ip, "this host".to_owned())).collect();
        for service in services.iter_mut().filter(|service| service.balances()) {
            self.written_cluster_ips(service, &mut used);
        }
        for service in services.iter_mut().filter(|service| service.balances()) {
            self.kept_cluster_ips(service, &mut used);
        }
        for service in services.iter_mut().filter(|service| service.balances()) {
            self.free_cluster_ips(service, &mut used);
        }
    }

    /// A ClusterIP belongs to one Service: the API server refuses it to a second.
    fn written_cluster_ips(&mut self, service: &mut ServiceView, used: &mut Used) {
        let ranges = &self.context.service_ranges;
        let (located, named, claim) = (Arc::clone(&service.located), service.named(), Claim::of(service));
        let had = self.before.cluster_ips.get(&claim.key).cloned().unwrap_or_default();
        service.cluster_ips.retain(|ip| {
            let field = if located.lines.contains_key("spec.clusterIP") { "spec.clusterIP" } else { "spec.clusterIPs" };
            let key = claim.key.as_str();
            let holder = self.former.cluster_ips.get(ip).filter(|(of, _)| *of != key).map(|(_, named)| named.as_str());
            let holder = holder.or_else(|| self.former.other_load_balancer(*ip, &claim).filter(|_| !had.contains(ip)));
            if let Some(owner) = holder.or(used.get(ip).map(String::as_str)) {
                let message = format!("`{ip}` of {named} is the ClusterIP of {owner}, expected one of its own");
                self.findings.push(located.finding(Severity::Error, field, message));
                return false;
            }
            used.insert(*ip, named.clone());
            self.kept.cluster_ips.entry(claim.key.clone()).or_default().push(*ip);
            if !ranges.is_empty() && !ranges.iter().any(|net| net.contains(ip)) {
                let listed = ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                let message = format!("`{ip}` is outside serviceRange, expected an address of {listed}");
                self.findings.push(located.finding(Severity::Warning, field, message));
            }
            true
        });
    }

    fn kept_cluster_ips(&mut self, service: &mut ServiceView, used: &mut Used) {
        let ours = |ip: &IpAddr| self.context.service_ranges.iter().any(|net| net.contains(ip));
        let before = self.before.cluster_ips.get(&service.key()).map(Vec::as_slice).unwrap_or_default();
        for ipv6 in lacking(&service.families, &service.cluster_ips) {
            let Some(&ip) = before.iter().find(|ip| ip.is_ipv6() == ipv6 && ours(ip)) else { continue };
            if self.context.node_addresses.contains(&ip) {
                // Perhaps for a moment only: it is not to move for good.
                let message = format!("`{ip}` is not served while this host has it, expected the host to let go of it");
                self.findings.push(service.located.finding(Severity::Warning, "spec.clusterIP", message));
                self.kept.cluster_ips.entry(service.key()).or_default().push(ip);
            } else if let Entry::Vacant(free) = used.entry(ip) {
                free.insert(service.named());
                service.cluster_ips.push(ip);
                self.kept.cluster_ips.entry(service.key()).or_default().push(ip);
            }
        }
    }

    fn free_cluster_ips(&mut self, service: &mut ServiceView, used: &mut Used) {
        let mut has = service.cluster_ips.clone();
        has.extend(self.kept.cluster_ips.get(&service.key()).into_iter().flatten());
        for ipv6 in lacking(&service.families, &has) {
            let Some(&net) = self.context.service_ranges.iter().find(|net| net.addr().is_ipv6() == ipv6) else {
                continue;
            };
            // The first and the last address of a range are not given, as the API server has it.
            let range = AddressRange::from(net);
            let usable = |ip| {
                ip != range.first()
                    && ip != range.last()
                    && !used.contains_key(&ip)
                    && !self.former.addresses.contains_key(&ip)
            };
            if let Some(ip) = free_in(range, &service.key(), usable) {
                used.insert(ip, service.named());
                service.cluster_ips.push(ip);
                self.kept.cluster_ips.entry(service.key()).or_default().push(ip);
            } else {
                let message = format!("none is free in serviceRange {net}, expected a wider range");
                self.findings.push(service.located.finding(Severity::Error, "spec.clusterIP", message));
            }
        }
    }
}
