//! Which addresses the node's own packets, and those of its pods, are to leave the node for: those where policy Local leaves
//! this node nothing to serve. Whoever has endpoints announces them, and takes the node for a client as any other; served
//! here, they would be dropped. kube-proxy has clients within reach all endpoints instead.

use std::collections::BTreeSet;
use std::net::IpAddr;

use lb::model::{DesiredState, EndpointState, FrontendKind, NoEndpoint, ServicePort};

/// The addresses at which everything would be dropped on this node of a cluster.
pub(super) fn left_to_others(desired: &DesiredState, node: Option<&str>) -> BTreeSet<IpAddr> {
    let is_external = |kind| matches!(kind, FrontendKind::LoadBalancer | FrontendKind::ExternalIp);
    let places = |ports: fn(&ServicePort, Option<&str>) -> bool| {
        let ports = desired.service_ports.iter().filter(move |port| ports(port, node));
        ports
            .flat_map(|port| &port.frontends)
            .filter(|frontend| is_external(frontend.kind))
            .map(|frontend| frontend.address)
    };
    let mut left: BTreeSet<IpAddr> = places(|port, node| !has_something(port, node)).collect();
    if !left.is_empty() {
        for address in places(has_something) {
            left.remove(&address);
        }
    }
    left
}

/// Whether there is more to do for it here than to drop: an endpoint, or one of this node that still has flows; or to refuse.
fn has_something(port: &ServicePort, node: Option<&str>) -> bool {
    let is_here = |of: &Option<String>| node.is_some() && of.as_deref() == node;
    port.no_endpoint == NoEndpoint::Reject
        || port.endpoints.iter().any(|one| one.state == EndpointState::Usable || is_here(&one.node))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use lb::model::{Endpoint, Frontend};

    use super::*;
    use crate::fixture;

    fn port(
        name: &str,
        at: &str,
        kind: FrontendKind,
        no_endpoint: NoEndpoint,
        ends: &[(EndpointState, &str)],
    ) -> ServicePort {
        let endpoints = ends.iter().enumerate().map(|(last, (state, node))| Endpoint {
            state: *state,
            node: Some((*node).to_owned()),
            ..Endpoint::new([10, 0, 0, last as u8].into(), 80)
        });
        let frontends = vec![Frontend { address: at.parse().unwrap(), port: 80, kind }];
        ServicePort { frontends, no_endpoint, endpoints: endpoints.collect(), ..fixture::service_port(name) }
    }

    #[test]
    fn an_address_is_left_to_others_while_all_that_is_there_is_local_and_elsewhere() {
        use EndpointState::{Draining, Usable};
        use FrontendKind::{ClusterIp, LoadBalancer};
        use NoEndpoint::{Drop, Reject};
        let ports = [
            port("elsewhere", "192.0.2.1", LoadBalancer, Drop, &[(Draining, "n2")]),
            port("nobody", "192.0.2.2", LoadBalancer, Drop, &[]),
            port("here", "192.0.2.3", LoadBalancer, Drop, &[(Usable, "n1")]),
            port("leaves-here", "192.0.2.4", LoadBalancer, Drop, &[(Draining, "n1")]),
            port("cluster", "192.0.2.5", LoadBalancer, Reject, &[]),
            port("inside", "192.0.2.6", ClusterIp, Drop, &[]),
            port("shares", "192.0.2.7", LoadBalancer, Drop, &[]),
            port("shares-too", "192.0.2.7", LoadBalancer, Reject, &[(Usable, "n2")]),
        ];
        let desired = DesiredState { service_ports: ports.map(Arc::new).into(), ..DesiredState::default() };
        let left = |node| left_to_others(&desired, node).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(left(Some("n1")), ["192.0.2.1", "192.0.2.2"]);
        assert_eq!(left(Some("n2")), ["192.0.2.2", "192.0.2.4"]);
    }
}
