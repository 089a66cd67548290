//! Where each Service port is reached, and who has it first where two Services ask for one address and port.

use std::collections::BTreeMap;
use std::net::IpAddr;

use lb::model::{Frontend, FrontendKind};

use crate::context::{Context, Place};
use crate::finding::{Finding, Severity};
use crate::manifest::protocol_of;
use crate::service::ServiceView;

/// The frontends in force: (address, port, protocol) to the Service that has it, as [`ServiceView::named`] has it.
pub(crate) type Owners = BTreeMap<(IpAddr, u16, String), String>;

/// The frontends of one port of a Service in one family. A frontend that another Service has is refused, naming both.
pub(crate) fn of_port(
    service: &ServiceView<'_>,
    at: usize,
    ipv6: bool,
    context: &Context,
    owners: &mut Owners,
    findings: &mut Vec<Finding>,
) -> Vec<Frontend> {
    let port = &service.ports()[at];
    let number = u16::try_from(port.port).unwrap_or_default();
    let serve = context.serve;
    let mut wanted: Vec<Frontend> = Vec::new();
    let mut want = |address: IpAddr, port: u16, kind| wanted.push(Frontend { address, port, kind });
    if serve.load_balancer {
        service.addresses.iter().for_each(|&ip| want(ip, number, FrontendKind::LoadBalancer));
    }
    if serve.external_ips {
        let allowed = service.external_ips().filter(|ip| external_ip_allowed(context, *ip));
        allowed.for_each(|ip| want(ip, number, FrontendKind::ExternalIp));
    }
    if serve.cluster_ip {
        service.cluster_ips.iter().for_each(|&ip| want(ip, number, FrontendKind::ClusterIp));
    }
    if let Some(node_port) = service.node_ports[at].filter(|_| serve.node_port) {
        context.node_addresses.iter().for_each(|&ip| want(ip, node_port, FrontendKind::NodePort));
    }
    wanted.retain(|frontend| frontend.address.is_ipv6() == ipv6);
    wanted.sort();
    wanted.dedup_by_key(|frontend| (frontend.address, frontend.port));
    wanted.retain(|frontend| {
        let key = (frontend.address, frontend.port, protocol_of(port).to_owned());
        let owner = owners.entry(key).or_insert_with(|| service.named());
        if *owner == service.named() {
            return true;
        }
        let what = format!("{}:{}/{}", frontend.address, frontend.port, protocol_of(port));
        let message = format!("{what} of {} is a frontend of {owner}, expected another address or port", service.key());
        let field = if frontend.kind == FrontendKind::NodePort { "nodePort" } else { "port" };
        findings.push(service.located.finding(Severity::Error, &format!("spec.ports[{at}].{field}"), message));
        false
    });
    wanted
}

/// Whether an external IP is in the ranges of the configuration; without any, a gateway serves all and a node none.
pub(crate) fn external_ip_allowed(context: &Context, ip: IpAddr) -> bool {
    match &context.external_ip_ranges {
        Some(ranges) => ranges.iter().any(|range| range.contains(&ip)),
        None => context.place == Place::Gateway,
    }
}
