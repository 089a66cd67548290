//! Which ranges of ClusterIPs may be routed whole: those that hold nothing that a node needs. Pure.
//!
//! A route for a range is before all others of the node. A ServiceCIDR that somebody wrote too wide would take its way to
//! other nodes, their Pods and the API server; there each ClusterIP has a route of its own instead.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use translate::{Finding, Located, Severity};

/// The ranges that hold no address of a Node, none of its Pods' range and none of `others`; and what to say of the rest.
#[must_use]
pub fn routable(ranges: &[IpNet], nodes: &[Arc<Located<Node>>], others: &[IpAddr]) -> (Vec<IpNet>, Vec<Finding>) {
    let overlaps = |range: &IpNet, other: &IpNet| range.contains(other) || other.contains(range);
    let what_of = |range: &IpNet| {
        let of_node = nodes.iter().find_map(|located| {
            let node = &located.object;
            let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
            let addresses = addresses.filter_map(|address| address.address.parse::<IpAddr>().ok()).map(IpNet::from);
            let spec = node.spec.iter();
            let pods = spec.flat_map(|spec| spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr));
            let pods = pods.filter_map(|pods| pods.parse::<IpNet>().ok());
            let taken = addresses.chain(pods).find(|taken| overlaps(range, taken))?;
            Some(format!("{taken} of Node {}", node.metadata.name.as_deref().unwrap_or_default()))
        });
        let other = || others.iter().find(|other| range.contains(*other)).map(ToString::to_string);
        of_node.or_else(other)
    };
    let (mut routable, mut findings) = (Vec::new(), Vec::new());
    for range in ranges {
        match what_of(range) {
            None => routable.push(*range),
            Some(what) => findings.push(Finding {
                file: format!("ServiceCIDR {range}"),
                line: 0,
                field: "spec.cidrs".to_owned(),
                message: format!(
                    "holds {what}, and is not routed to Millrace whole but by each ClusterIP: expected a range that is of \
                     Services alone"
                ),
                severity: Severity::Warning,
            }),
        }
    }
    (routable, findings)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_range_that_holds_what_nodes_need_is_not_routed_whole() {
        let node = json!({
            "metadata": {"name": "n1"},
            "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.7"}, {"type": "Hostname", "address": "n1"}]},
        });
        let nodes = [Arc::new(Located::of_api(serde_json::from_value(node).unwrap(), "Node", None, "n1"))];
        let others = ["198.51.100.9".parse().unwrap()];
        for (range, what) in [
            ("10.96.0.0/12", None),
            ("fd00::/108", None),
            ("10.0.0.0/8", Some("10.244.1.0/24 of Node n1")),
            ("10.244.1.128/25", Some("10.244.1.0/24 of Node n1")),
            ("192.0.0.0/16", Some("192.0.2.7/32 of Node n1")),
            ("198.51.100.0/24", Some("198.51.100.9")),
        ] {
            let range: IpNet = range.parse().unwrap();
            let (found, said) = routable(&[range], &nodes, &others);
            assert_eq!(found.len(), usize::from(what.is_none()), "{range}");
            let text = said.iter().map(ToString::to_string).collect::<String>();
            assert!(what.is_none_or(|what| text.contains(what)) && text.is_empty() == what.is_none(), "{text}");
        }
    }
}
