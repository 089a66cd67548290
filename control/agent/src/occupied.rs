//! Frontends on the host's own addresses, on whose ports the host itself listens.
//!
//! Steering such a port would take it from the host: ssh on a machine far away, say. So it stays with the kernel, and is
//! an error of the manifest. A place that was served before something came to listen there goes on.

use std::cell::LazyCell;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use lb::model::{Frontend, FrontendKind, ServicePortKey};
use translate::{Finding, ServiceListing, Severity, Translation};

use crate::linger::{Place, Places};
use crate::steering::{HostPorts, protocol_number};

/// Takes the occupied frontends out of what is to be served; those in `served` stay. A finding for each. `host` is asked
/// if there are others at addresses of the host.
pub fn withhold(
    translation: &mut Translation,
    served: &Places,
    host: impl FnOnce() -> HostPorts,
) -> Vec<(Place, Finding)> {
    let desired = &mut translation.desired;
    let own: BTreeSet<_> = desired.addresses.iter().filter(|vip| vip.host_owned).map(|vip| vip.address).collect();
    if own.is_empty() {
        return Vec::new();
    }
    let host = LazyCell::new(host);
    let (mut findings, mut less) = (Vec::new(), Vec::new());
    for (at, port) in desired.service_ports.iter().enumerate() {
        let protocol = protocol_number(port.key.protocol);
        let place = |frontend: &Frontend| Place { address: frontend.address, protocol, port: frontend.port };
        let is_occupied = |frontend: &Frontend| {
            let place = place(frontend);
            own.contains(&place.address) && !served.contains(&place) && host.listens(&place)
        };
        let occupied: Vec<Frontend> = port.frontends.iter().copied().filter(is_occupied).collect();
        for frontend in &occupied {
            let of = |s: &&Arc<ServiceListing>| (&s.namespace, &s.name) == (&port.key.namespace, &port.key.name);
            let source = translation.services.iter().find(of).map_or("", |service| service.source.as_str());
            findings.push((place(frontend), finding(&port.key, frontend, source)));
        }
        if !occupied.is_empty() {
            let mut port = (**port).clone();
            port.frontends.retain(|frontend| !occupied.contains(frontend));
            less.push((at, Arc::new(port)));
        }
    }
    for (at, port) in less {
        desired.service_ports.set(at, port);
    }
    findings
}

fn finding(key: &ServicePortKey, frontend: &Frontend, source: &str) -> Finding {
    let (field, other) = match frontend.kind {
        FrontendKind::NodePort => ("spec.ports[].nodePort", "choose another nodePort"),
        FrontendKind::ExternalIp => ("spec.externalIPs", "choose another port or address"),
        FrontendKind::ClusterIp => ("spec.clusterIPs", "choose another port or address"),
        FrontendKind::LoadBalancer => ("spec.ports[].port", "choose another port or address"),
    };
    let (protocol, port) = (key.protocol, frontend.port);
    let flag = match protocol {
        wire::Protocol::UDP => 'u',
        wire::Protocol::SCTP => 'S',
        _ => 't',
    };
    let (file, line) = source.rsplit_once(':').unwrap_or((source, "0"));
    Finding {
        file: file.to_owned(),
        line: line.parse().unwrap_or(0),
        field: field.to_owned(),
        message: format!(
            "the host itself listens on {}/{protocol}: {other}, or end what listens there (`ss -ln{flag}p sport = :{port}`)",
            SocketAddr::new(frontend.address, port)
        ),
        severity: Severity::Error,
    }
}

#[cfg(test)]
mod tests {
    use lb::model::{DesiredState, ServicePort, VipAddress};

    use super::*;
    use crate::fixture;

    fn translation() -> Translation {
        let own = "10.0.0.1".parse().unwrap();
        let frontend = |port, kind| Frontend { address: own, port, kind };
        let frontends = vec![frontend(22, FrontendKind::ExternalIp), frontend(30022, FrontendKind::NodePort)];
        let port = ServicePort { port: 22, frontends, ..fixture::service_port("web") };
        let addresses = vec![VipAddress { address: own, host_owned: true, echo: false, internal: false }];
        Translation {
            desired: DesiredState { service_ports: vec![port.into()].into(), addresses },
            ..Translation::default()
        }
    }

    #[test]
    fn a_port_that_the_host_listens_on_stays_its_own_unless_it_was_served_before() {
        let host = HostPorts { sockets: [(6, "0.0.0.0".parse().unwrap(), 22)].into(), ..HostPorts::default() };
        let mut now = translation();
        let findings = withhold(&mut now, &Places::default(), || host.clone());
        let text = findings[0].1.to_string();
        assert!(findings.len() == 1 && text.contains("listens on 10.0.0.1:22/tcp: choose another port"), "{text}");
        assert_eq!(now.desired.service_ports[0].frontends.len(), 1);
        let served = Places::of(&translation().desired);
        let mut now = translation();
        assert_eq!(withhold(&mut now, &served, || unreachable!("all of it was served")), []);
        assert_eq!(now, translation());
    }
}
