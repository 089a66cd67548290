//! Where NodePorts are served: at the addresses of this node's Node, one of each family, as kube-proxy has it with
//! `--nodeport-addresses=primary`. Pure.
//!
//! Source: `GetNodeHostIPs` of `k8s.io/kubernetes/pkg/util/node`: internal addresses before external ones, first come first.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use translate::{Finding, Located, Severity};

/// The addresses of the Node of this name that the host has; `own` are the host's.
#[must_use]
pub fn node_port_addresses(node: Option<&str>, nodes: &[Arc<Located<Node>>], own: &[IpAddr]) -> Vec<IpAddr> {
    let named = nodes.iter().map(|located| &located.object).find(|object| object.metadata.name.as_deref() == node);
    let all = named.and_then(|object| object.status.as_ref()?.addresses.as_ref()).into_iter().flatten();
    let of_kind = |kind: &'static str| all.clone().filter(move |address| address.type_ == kind);
    let listed = of_kind("InternalIP").chain(of_kind("ExternalIP"));
    let mut found: Vec<IpAddr> = Vec::new();
    for address in listed.filter_map(|address| address.address.parse::<IpAddr>().ok()) {
        if found.iter().all(|other| other.is_ipv6() != address.is_ipv6()) {
            found.push(address);
        }
    }
    found.retain(|address| own.contains(address));
    found
}

/// What to say where there is none of them.
#[must_use]
pub fn no_node_ports(node: &str) -> Finding {
    Finding {
        file: format!("Node {node}"),
        line: 0,
        field: "status.addresses".to_owned(),
        message:
            "none that this host has, and NodePorts are served nowhere: expected an InternalIP of this host at the \
                  Node of its name (`node.hostname`, else `NODE_NAME`)"
                .to_owned(),
        severity: Severity::Error,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_port_is_at_the_first_internal_address_of_each_family_that_the_host_has() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let addresses = json!([
            {"type": "ExternalIP", "address": "198.51.100.1"}, {"type": "Hostname", "address": "n1"},
            {"type": "InternalIP", "address": "10.0.0.1"}, {"type": "InternalIP", "address": "10.1.0.1"},
            {"type": "ExternalIP", "address": "2001:db8::1"},
        ]);
        let node = json!({"metadata": {"name": "n1"}, "status": {"addresses": addresses}});
        let nodes = [Arc::new(Located::of_api(serde_json::from_value(node).unwrap(), "Node", None, "n1"))];
        let own = ["10.0.0.1", "10.1.0.1", "198.51.100.1", "2001:db8::1"].map(ip);
        let found = |name: &str, own: &[IpAddr]| node_port_addresses(Some(name), &nodes, own);
        assert_eq!(found("n1", &own), ["10.0.0.1", "2001:db8::1"].map(ip));
        assert_eq!(found("n1", &own[1..]), [ip("2001:db8::1")], "what the host lacks is not replaced by another");
        assert_eq!(found("n2", &own), Vec::<IpAddr>::new());
    }
}
