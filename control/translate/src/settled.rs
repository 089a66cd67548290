//! What Services have between them: addresses, numbers, frontends, each with one Service.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use lb::model::{FrontendKind, VipAddress};

use crate::addresses;
use crate::context::{Context, Place};
use crate::endpoints::Index;
use crate::finding::Finding;
use crate::frontends::{self, Arbiter, Owners, Reached};
use crate::given::{Given, frontend_key};
use crate::manifest::protocol_of;
use crate::objects::Objects;
use crate::service::ServiceView;

/// What is settled between Services.
#[derive(Debug)]
pub(crate) struct Settled {
    /// Ordered by namespace and name.
    pub services: Vec<ServiceView>,
    /// Where each of them is reached.
    pub reached: Vec<Vec<Reached>>,
    pub owners: Owners,
    pub findings: Vec<Finding>,
    /// Every address with a frontend, ordered.
    pub addresses: Vec<VipAddress>,
    /// What was read of what was given before: addresses, numbers and frontends.
    pub before: Given,
    /// The same parts as they are to be kept, shared with `before` where they are equal.
    pub given: Given,
    /// Whether it depends on where endpoints are, too.
    pub asked_endpoints: bool,
    /// Slices of type FQDN.
    pub fqdn: u64,
    /// Slices and Endpoints without their Service.
    pub waiting: u64,
}

impl Settled {
    pub fn of(objects: &Objects, context: &Context, before: &Given, index: &Index<'_>) -> Self {
        let mut services: Vec<ServiceView> =
            objects.services.iter().map(|located| ServiceView::new(located, context)).collect();
        services.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        let mut findings = Vec::new();
        let kept = addresses::give(&mut services, &objects.nodes, (context, before), &mut findings);
        let mut reached: Vec<Reached> = Vec::new();
        for (which, service) in services.iter().enumerate() {
            reach(which, service, context, &mut reached);
        }
        let arbiter = Arbiter { services: &services, context, given: before, index, holders: Default::default() };
        let owners = arbiter.settle(&mut reached, &mut findings);
        let asked_endpoints = arbiter.holders.get().is_some();
        let mut frontends = BTreeMap::new();
        let mut of_service: Vec<Vec<Reached>> = services.iter().map(|_| Vec::new()).collect();
        for port in reached {
            let service = &services[port.service];
            for frontend in &port.frontends {
                let key = frontend_key(frontend.address, frontend.port, protocol_of(&service.ports()[port.at]));
                frontends.insert(key, service.key());
            }
            of_service[port.service].push(port);
        }
        let given = Given {
            addresses: shared(&before.addresses, kept.addresses),
            cluster_ips: shared(&before.cluster_ips, kept.cluster_ips),
            node_ports: shared(&before.node_ports, kept.node_ports),
            frontends: shared(&before.frontends, frontends),
            ..Given::default()
        };
        let names: BTreeSet<(&str, &str)> = services.iter().map(|s| (s.namespace.as_str(), s.name.as_str())).collect();
        let waiting = index.waiting(|namespace, name| names.contains(&(namespace, name)));
        let addresses = served(&of_service, context);
        let (reached, fqdn, before) = (of_service, index.fqdn, before.clone());
        Self { services, reached, owners, findings, addresses, before, given, asked_endpoints, fqdn, waiting }
    }

    /// Whether this would come of these as well, as far as what was given before is concerned.
    pub fn is_after(&self, before: &Given) -> bool {
        !self.asked_endpoints
            && self.before.addresses == before.addresses
            && self.before.cluster_ips == before.cluster_ips
            && self.before.node_ports == before.node_ports
            && self.before.frontends == before.frontends
    }
}

fn shared<T: PartialEq>(before: &Arc<T>, now: T) -> Arc<T> {
    if **before == now { Arc::clone(before) } else { Arc::new(now) }
}

fn reach(which: usize, service: &ServiceView, context: &Context, reached: &mut Vec<Reached>) {
    if !service.balances() {
        return;
    }
    for at in 0..service.ports().len() {
        for ipv6 in [false, true].into_iter().filter(|ipv6| service.families.contains(ipv6)) {
            let frontends = frontends::of_port(service, at, ipv6, context);
            reached.push(Reached { service: which, at, ipv6, frontends });
        }
    }
}

/// The addresses that are served.
fn served(reached: &[Vec<Reached>], context: &Context) -> Vec<VipAddress> {
    let mut addresses: BTreeMap<IpAddr, VipAddress> = BTreeMap::new();
    for frontend in reached.iter().flatten().flat_map(|port| &port.frontends) {
        let host_owned = context.node_addresses.contains(&frontend.address);
        let answers = matches!(frontend.kind, FrontendKind::LoadBalancer | FrontendKind::ExternalIp);
        let echo = answers && context.defaults.echo && !host_owned;
        let internal = context.place == Place::Node && !answers && !host_owned;
        let vip = VipAddress { address: frontend.address, host_owned, echo, internal };
        let known = addresses.entry(frontend.address).or_insert(vip);
        (known.echo, known.internal) = (known.echo || echo, known.internal && internal);
    }
    addresses.into_values().collect()
}
