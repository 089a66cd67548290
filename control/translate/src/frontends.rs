//! Where each Service port is reached, and who has it where two Services ask for one address and port: the one that had
//! it before, else the first in order. What is new takes no address of an endpoint in force.

use std::cell::OnceCell;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use lb::model::{Frontend, FrontendKind};

use crate::context::{Context, Place};
use crate::endpoints::{Index, Join};
use crate::finding::{self, Finding, Severity};
use crate::given::{Given, frontend_key};
use crate::manifest::{name_of, protocol_of};
use crate::service::ServiceView;

/// The frontends in force: (address, port, protocol) to the Service that has it, as [`ServiceView::named`] has it.
pub(crate) type Owners = BTreeMap<Key, String>;

type Key = (IpAddr, u16, String);

/// A port of a Service in one family, and its frontends.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Reached {
    /// Which Service.
    pub service: usize,
    /// Which of its ports.
    pub at: usize,
    pub ipv6: bool,
    pub frontends: Vec<Frontend>,
}

/// The frontends that one port of a Service asks for in one family.
pub(crate) fn of_port(service: &ServiceView, at: usize, ipv6: bool, context: &Context) -> Vec<Frontend> {
    let port = &service.ports()[at];
    let number = u16::try_from(port.port).unwrap_or_default();
    let serve = context.serve;
    let mut wanted: Vec<Frontend> = Vec::new();
    let mut want = |address: IpAddr, port: u16, kind| wanted.push(Frontend { address, port, kind });
    if serve.load_balancer {
        service.addresses.iter().for_each(|&ip| want(ip, number, FrontendKind::LoadBalancer));
    }
    if serve.external_ips {
        let refused = |ip: &IpAddr| service.refused_external_ips.contains(ip);
        let allowed = service.external_ips().filter(|ip| external_ip_allowed(context, *ip) && !refused(ip));
        allowed.for_each(|ip| want(ip, number, FrontendKind::ExternalIp));
    }
    let another_proxys = service.is_another_proxys(context);
    if serve.cluster_ip && !another_proxys {
        service.cluster_ips.iter().for_each(|&ip| want(ip, number, FrontendKind::ClusterIp));
    }
    if let Some(node_port) = service.node_ports[at].filter(|_| serve.node_port && !another_proxys) {
        context
            .node_port_addresses
            .as_ref()
            .unwrap_or(&context.node_addresses)
            .iter()
            .for_each(|&ip| want(ip, node_port, FrontendKind::NodePort));
    }
    wanted.retain(|frontend| frontend.address.is_ipv6() == ipv6);
    wanted.sort();
    wanted.dedup_by_key(|frontend| (frontend.address, frontend.port));
    wanted
}

/// What decides between those that ask for one frontend.
pub(crate) struct Arbiter<'a, 'o> {
    pub services: &'a [ServiceView],
    pub context: &'a Context,
    pub given: &'a Given,
    pub index: &'a Index<'o>,
    /// Which Services had endpoints at an address; made when it is asked for first.
    pub holders: OnceCell<Holders<'a>>,
}

/// Services by the addresses of their endpoints.
pub(crate) type Holders<'a> = HashMap<IpAddr, Vec<&'a str>>;

impl Arbiter<'_, '_> {
    /// Leaves each frontend with one Service; the others are refused it, naming both.
    pub fn settle(&self, reached: &mut [Reached], findings: &mut Vec<Finding>) -> Owners {
        let mut askers: BTreeMap<Key, Vec<usize>> = BTreeMap::new();
        for port in reached.iter() {
            for frontend in &port.frontends {
                askers.entry(self.key(port, frontend)).or_default().push(port.service);
            }
        }
        let mut owners = Owners::new();
        let mut loops: BTreeMap<Key, String> = BTreeMap::new();
        for (key, askers) in askers {
            let former = self.given.frontends.get(&frontend_key(key.0, key.1, &key.2));
            let had = |asker: &&usize| former == Some(&self.services[**asker].key());
            if let Some(&holder) = askers.iter().find(had) {
                owners.insert(key, self.services[holder].named());
                continue;
            }
            let found = askers.iter().map(|&asker| (asker, self.endpoint_in_force(&key, asker)));
            let mut refusals: Vec<(usize, Option<String>)> = found.collect();
            match refusals.iter().find(|(_, endpoint)| endpoint.is_none()) {
                Some(&(first, _)) => drop(owners.insert(key, self.services[first].named())),
                None => drop(refusals.pop().and_then(|(_, endpoint)| loops.insert(key, endpoint?))),
            }
        }
        for port in reached {
            let service = &self.services[port.service];
            let mut kept = std::mem::take(&mut port.frontends);
            kept.retain(|frontend| {
                let key = self.key(port, frontend);
                let (what, rule) = match (owners.get(&key), loops.get(&key)) {
                    (Some(owner), _) if *owner == service.named() => return true,
                    (Some(owner), _) => (format!("a frontend of {owner}"), "another address or port"),
                    (None, Some(endpoint)) => (format!("at an endpoint of {endpoint}: a loop"), "another address"),
                    (None, None) => return true,
                };
                let place = format!("{}:{}/{}", frontend.address, frontend.port, key.2);
                let message = format!("{place} of {} is {what}, expected {rule}", service.key());
                let field = if frontend.kind == FrontendKind::NodePort { "nodePort" } else { "port" };
                let field = format!("spec.ports[{}].{field}", port.at);
                findings.push(service.located.finding(Severity::Error, &field, message));
                false
            });
            port.frontends = kept;
        }
        owners
    }

    fn key(&self, port: &Reached, frontend: &Frontend) -> Key {
        let protocol = protocol_of(&self.services[port.service].ports()[port.at]);
        (frontend.address, frontend.port, protocol.to_owned())
    }

    /// The endpoint in force, and still asked for, that a new frontend would be at: where it is and whose. An address
    /// that is not the host's is taken as a whole, for it is announced.
    fn endpoint_in_force(&self, key: &Key, asker: usize) -> Option<String> {
        let (address, number, protocol) = key;
        let holders = self.holders.get_or_init(|| holders(self.given)).get(address)?;
        let asks = self.services[asker].key();
        let has = |of: &&String| **of == asks;
        let prefix = frontend_key(*address, 0, "");
        let prefix = prefix.trim_end_matches("0/");
        let mut before = self.given.frontends.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        let new_there = !before.any(|(_, of)| has(&of));
        let whole = new_there && !self.context.node_addresses.contains(address);
        self.services.iter().filter(|service| holders.contains(&service.key().as_str())).find_map(|service| {
            let publish = service.spec.publish_not_ready_addresses == Some(true);
            service.ports().iter().find_map(|port| {
                let (port_name, its_protocol) = (name_of(port), protocol_of(port));
                let (namespace, ipv6) = (service.namespace.as_str(), address.is_ipv6());
                let join = Join { namespace, service: &service.name, port_name, protocol: its_protocol, ipv6 };
                let candidates = self.index.join(join, publish);
                let same = |at: u16| whole || (at, its_protocol) == (*number, protocol.as_str());
                let found = candidates.iter().find(|found| found.address == *address && same(found.port))?;
                Some(format!("{} ({})", service.key(), finding::place(&found.place.file, found.place.line)))
            })
        })
    }
}

fn holders(given: &Given) -> Holders<'_> {
    let mut holders = Holders::new();
    for (service, addresses) in given.endpoints.iter() {
        addresses.iter().for_each(|address| holders.entry(*address).or_default().push(service.as_ref()));
    }
    holders
}

/// Whether an external IP is in the ranges of the configuration; without any, a gateway serves all and a node none.
pub(crate) fn external_ip_allowed(context: &Context, ip: IpAddr) -> bool {
    match &context.external_ip_ranges {
        Some(ranges) => ranges.iter().any(|range| range.contains(&ip)),
        None => context.place == Place::Gateway,
    }
}
