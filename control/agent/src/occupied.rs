//! Frontends on the host's own addresses, on whose ports the host itself listens.
//!
//! Steering such a port would take it from the host: ssh on a machine far away, say. So it stays with the kernel, and is
//! an error of the manifest. A place that was served before something came to listen there goes on.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use lb::model::{Frontend, FrontendKind, ServicePortKey};
use translate::{Finding, Severity, Translation};

use crate::linger::{Place, Places};
use crate::steering::{HostPorts, protocol_number};

/// Takes the occupied frontends out of what is to be served; those in `served` stay. A finding for each.
pub fn withhold(translation: &mut Translation, served: &Places, host: &HostPorts) -> Vec<(Place, Finding)> {
    let sources: BTreeMap<(String, String), String> =
        translation.services.iter().map(|s| ((s.namespace.clone(), s.name.clone()), s.source.clone())).collect();
    let desired = &mut translation.desired;
    let own = desired.addresses.iter().filter(|vip| vip.host_owned).map(|vip| vip.address).collect::<Vec<_>>();
    let mut findings = Vec::new();
    for port in &mut desired.service_ports {
        let protocol = protocol_number(port.key.protocol);
        let key = &port.key;
        port.frontends.retain(|frontend| {
            let place = Place { address: frontend.address, protocol, port: frontend.port };
            let occupied = own.contains(&place.address) && !served.contains(&place) && host.listens(&place);
            if occupied {
                let source = sources.get(&(key.namespace.clone(), key.name.clone()));
                findings.push((place, finding(key, frontend, source.map_or("", String::as_str))));
            }
            !occupied
        });
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
    let flag = if protocol == wire::Protocol::UDP { 'u' } else { 't' };
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

    fn translation() -> Translation {
        let own = "10.0.0.1".parse().unwrap();
        let frontend = |port, kind| Frontend { address: own, port, kind };
        let port = ServicePort {
            key: ServicePortKey {
                namespace: "default".to_owned(),
                name: "web".to_owned(),
                port_name: String::new(),
                protocol: wire::Protocol::TCP,
                ipv6: false,
                scope: lb::model::Scope::All,
            },
            port: 22,
            frontends: vec![frontend(22, FrontendKind::ExternalIp), frontend(30022, FrontendKind::NodePort)],
            endpoints: Vec::new(),
            algorithm: lb::model::Algorithm::Maglev,
            mode: lb::model::Mode::Nat,
            affinity: None,
            source_ranges: Vec::new(),
            no_endpoint: lb::model::NoEndpoint::Reject,
            udp_timeout: None,
            drain: None,
            min_table_size: 1021,
        };
        let addresses = vec![VipAddress { address: own, host_owned: true, echo: false }];
        Translation { desired: DesiredState { service_ports: vec![port], addresses }, ..Translation::default() }
    }

    #[test]
    fn a_port_that_the_host_listens_on_stays_its_own_unless_it_was_served_before() {
        let host = HostPorts { sockets: [(6, "0.0.0.0".parse().unwrap(), 22)].into(), ..HostPorts::default() };
        let mut now = translation();
        let findings = withhold(&mut now, &Places::default(), &host);
        let text = findings[0].1.to_string();
        assert!(findings.len() == 1 && text.contains("listens on 10.0.0.1:22/tcp: choose another port"), "{text}");
        assert_eq!(now.desired.service_ports[0].frontends.len(), 1);
        let served = Places::of(&translation().desired);
        let mut now = translation();
        assert_eq!(withhold(&mut now, &served, &host), []);
        assert_eq!(now, translation());
    }
}
