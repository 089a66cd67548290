//! Addresses of Services whose `status` is the record (see [`crate::allocation`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use lb::model::Mode;

use crate::allocation::{Allocation, Allotment, Lack, PortError, Reason, Usage};
use crate::context::Context;
use crate::given::Given;
use crate::manifest::protocol_of;
use crate::objects::Objects;
use crate::service::ServiceView;

use super::load_balancers::{Claim, Claims, status_addresses, wanted};
use super::{Giving, is_no_address};

/// An endpoint answers at the Service's own port in modes that translate none, and this targetPort is another.
const OTHER_TARGET_PORT: &str = "millrace.dev/TargetPortDiffers";

/// A Service that is to have addresses.
struct Asking<'s> {
    /// With those that it is to have.
    service: &'s mut ServiceView,
    claim: Claim,
    lacks: BTreeSet<Lack>,
}

impl Asking<'_> {
    fn lacks(&mut self, reason: Reason, message: String) {
        self.lacks.insert(Lack { reason, message });
    }
}

pub(crate) fn allot(objects: &Objects, context: &Context, before: &Arc<BTreeMap<String, Vec<IpAddr>>>) -> Allocation {
    let views = objects.services.iter().map(|located| ServiceView::new(located, context));
    let mut services: Vec<ServiceView> = views.collect();
    services.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    let before = Given { addresses: Arc::clone(before), ..Given::default() };
    let mut findings = Vec::new();
    let mut giving = Giving::new(&services, &objects.nodes, (context, &before), &mut findings);
    let mut claims = giving.reserved(&mut services);
    let ours = services.iter_mut().filter(|service| service.is_our_load_balancer());
    let mut ours: Vec<Asking<'_>> =
        ours.map(|service| Asking { claim: Claim::of(service), service, lacks: BTreeSet::new() }).collect();
    for asking in &mut ours {
        giving.keep(asking, &mut claims);
    }
    // What waits to be deleted keeps others from its addresses, and gets no more.
    let mut staying: Vec<Asking<'_>> = ours.into_iter().filter(|asking| !asking.service.goes()).collect();
    for asking in &mut staying {
        giving.fulfil(asking, &mut claims);
    }
    for asking in &mut staying {
        giving.fill(asking, &mut claims);
    }
    let allotments: Vec<Allotment> = staying.into_iter().map(|asking| allotment(asking, context)).collect();
    let usage = usage(context, &allotments, &claims);
    Allocation { allotments, usage }
}

impl Giving<'_> {
    /// What its status has of ours: one address of each of its families, those that it asks for in front.
    fn keep(&self, asking: &mut Asking<'_>, claims: &mut Claims) {
        let requested = asking.service.requested();
        let mut addresses = status_addresses(asking.service);
        addresses.sort_by_key(|ip| !requested.contains(ip));
        for ip in addresses.into_iter().filter(|&ip| self.in_pools(ip)) {
            let has = &asking.service.addresses;
            let surplus = !requested.contains(&ip) && has.iter().any(|other| other.is_ipv6() == ip.is_ipv6());
            if has.contains(&ip) || surplus || !asking.service.families.contains(&ip.is_ipv6()) {
                continue;
            }
            match self.take(claims, ip, &asking.claim) {
                Ok(()) => asking.service.addresses.push(ip),
                Err(other) => asking.lacks(Reason::AddressTaken, taken(ip, &other)),
            }
            if let Some(what) = self.reserved.what(ip) {
                let message = format!("{ip} is not served: it is {what}, expected an address of nothing else");
                asking.lacks(Reason::AddressReserved, message);
            }
        }
    }

    /// What it asks for, in place of what it had.
    fn fulfil(&self, asking: &mut Asking<'_>, claims: &mut Claims) {
        let requested = asking.service.requested();
        for &ip in &requested {
            if asking.service.addresses.contains(&ip) {
                continue;
            }
            if let Some((reason, message)) = self.objection(asking.service, ip, claims) {
                asking.lacks(reason, message);
                continue;
            }
            match self.take(claims, ip, &asking.claim) {
                Ok(()) => asking.service.addresses.push(ip),
                Err(other) => asking.lacks(Reason::AddressTaken, taken(ip, &other)),
            }
        }
        let has = asking.service.addresses.clone();
        let replaced = |ip: &IpAddr| {
            let in_its_place = |other: &IpAddr| other.is_ipv6() == ip.is_ipv6() && requested.contains(other);
            !requested.contains(ip) && has.iter().any(in_its_place)
        };
        for ip in has.iter().filter(|ip| replaced(ip)) {
            asking.service.addresses.retain(|other| other != ip);
            if let Some(holders) = claims.get_mut(ip) {
                holders.retain(|holder| holder.key != asking.claim.key);
                if holders.is_empty() {
                    claims.remove(ip);
                }
            }
        }
    }

    /// Why it cannot have an address that it asks for, others aside.
    fn objection(&self, service: &ServiceView, ip: IpAddr, claims: &Claims) -> Option<(Reason, String)> {
        let hosts = claims.get(&ip).is_some_and(Vec::is_empty).then_some("an address of a Node");
        if !service.families.contains(&ip.is_ipv6()) {
            let message = format!("{ip} is of no family of `ipFamilies`, expected one of them");
            Some((Reason::WrongFamily, message))
        } else if !self.in_pools(ip) {
            Some((Reason::NotInPools, format!("{ip} is in none of the pools, expected one of theirs")))
        } else if !self.pools_for(service).any(|pool| pool.contains(ip)) {
            let message = format!("{ip} is in no pool that selects the Service, expected an address of one that does");
            Some((Reason::NoPool, message))
        } else if is_no_address(ip) {
            Some((Reason::AddressReserved, format!("{ip} is no address of a host, expected one")))
        } else {
            let what = self.reserved.what(ip).or(hosts)?;
            Some((Reason::AddressReserved, format!("{ip} is {what}, expected an address of nothing else")))
        }
    }

    /// What it had, though its record was lost since.
    fn former(&self, service: &ServiceView, ipv6: bool) -> Option<IpAddr> {
        let may_have = |ip: IpAddr| self.pools_for(service).any(|pool| pool.auto_assign && pool.contains(ip));
        let fits = |ip: &&IpAddr| ip.is_ipv6() == ipv6 && self.reserved.what(**ip).is_none() && may_have(**ip);
        self.before.addresses.get(&service.key())?.iter().find(fits).copied()
    }

    /// Addresses of pools for the families that it has none of and asks for none of.
    fn fill(&mut self, asking: &mut Asking<'_>, claims: &mut Claims) {
        let mut lacking = Vec::new();
        for ipv6 in wanted(asking.service) {
            if let Some(ip) = self.former(asking.service, ipv6)
                && self.take(claims, ip, &asking.claim).is_ok()
            {
                asking.service.addresses.push(ip);
                continue;
            }
            match self.take_from_pools(claims, asking.service, ipv6) {
                Some(ip) => asking.service.addresses.push(ip),
                None => lacking.push(ipv6),
            }
        }
        let one_will_do = asking.service.spec.ip_family_policy.as_deref() == Some("PreferDualStack");
        if one_will_do && !asking.service.addresses.is_empty() {
            return;
        }
        for ipv6 in lacking {
            let family = if ipv6 { "IPv6" } else { "IPv4" };
            let gives = self.pools_for(asking.service).filter(|pool| pool.auto_assign);
            let of_family = gives.filter(|pool| pool.addresses.iter().any(|range| range.is_ipv6() == ipv6));
            let names: Vec<&str> = of_family.map(|pool| pool.name.as_str()).collect();
            let (reason, message) = if names.is_empty() {
                let message = format!("no pool gives {family} addresses to this Service, expected one that selects it");
                (Reason::NoPool, message)
            } else {
                let names = names.join(", ");
                (Reason::PoolEmpty, format!("no {family} address is free in {names}, expected more addresses"))
            };
            asking.lacks(reason, message);
        }
    }
}

fn taken(ip: IpAddr, other: &str) -> String {
    format!(
        "{ip} is taken by {other}, expected a free one, or different ports and the same `millrace.dev/share` on both"
    )
}

fn allotment(asking: Asking<'_>, context: &Context) -> Allotment {
    let Asking { service, lacks, .. } = asking;
    let mode = service.external_mode(context);
    let families = service.families.clone();
    let requested = service.requested();
    let place = |ip: &IpAddr| {
        let family = families.iter().position(|&ipv6| ipv6 == ip.is_ipv6());
        (family, requested.iter().position(|other| other == ip).unwrap_or(requested.len()))
    };
    let mut addresses = std::mem::take(&mut service.addresses);
    addresses.sort_by_key(place);
    Allotment {
        namespace: service.namespace.clone(),
        name: service.name.clone(),
        addresses,
        proxied: !mode.is_direct(),
        ports: port_errors(service, mode),
        lacks: lacks.into_iter().collect(),
    }
}

fn port_errors(service: &ServiceView, mode: Mode) -> Vec<PortError> {
    let ports = service.ports().iter().map(|port| {
        let differs = matches!(&port.target_port, Some(IntOrString::Int(target)) if *target != port.port);
        let error = (mode.is_direct() && differs).then_some(OTHER_TARGET_PORT);
        PortError { port: port.port, protocol: protocol_of(port).to_owned(), error }
    });
    let ports: Vec<PortError> = ports.collect();
    if ports.iter().any(|port| port.error.is_some()) { ports } else { Vec::new() }
}

fn usage(context: &Context, allotments: &[Allotment], claims: &Claims) -> Vec<Usage> {
    let given: BTreeSet<IpAddr> = allotments.iter().flat_map(|allotment| allotment.addresses.iter().copied()).collect();
    let taken: BTreeSet<IpAddr> = claims.keys().chain(&context.broadcasts).copied().collect();
    let usage = context.pools.iter().map(|pool| {
        let of_pool = |all: &BTreeSet<IpAddr>| all.iter().filter(|ip| pool.contains(**ip)).count() as u128;
        let size = pool.addresses.iter().fold(0_u128, |sum, range| sum.saturating_add(range.size()));
        Usage { pool: pool.name.clone(), size, given: of_pool(&given), free: size.saturating_sub(of_pool(&taken)) }
    });
    usage.collect()
}
