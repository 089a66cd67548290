//! What tests of several modules are made of.

use std::net::IpAddr;

use lb::model::{Algorithm, Endpoint, EndpointState, Mode, NoEndpoint, Scope, ServicePort, ServicePortKey};
use wire::Protocol;

/// TCP port 80 of Service `default/NAME`, served nowhere and by nobody, all else as it is by default.
pub(crate) fn service_port(name: &str) -> ServicePort {
    ServicePort {
        key: ServicePortKey {
            namespace: "default".to_owned(),
            name: name.to_owned(),
            port_name: String::new(),
            protocol: Protocol::TCP,
            ipv6: false,
            scope: Scope::All,
        },
        port: 80,
        frontends: Vec::new(),
        endpoints: Vec::new(),
        algorithm: Algorithm::Maglev,
        mode: Mode::Nat,
        affinity: None,
        source_ranges: [].into(),
        no_endpoint: NoEndpoint::Reject,
        udp_timeout: None,
        drain: None,
        min_table_size: 1021,
    }
}

/// An endpoint that gets new flows.
pub(crate) fn endpoint(address: IpAddr, port: u16) -> Endpoint {
    Endpoint { address, port, weight: 1, state: EndpointState::Usable, node: None, zone: None, target: None }
}
