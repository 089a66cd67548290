//! What no Service may have on a node, though a pool or the ranges of external IPs have it: addresses of Nodes, ranges
//! of their Pods, and what else the context names, such as the ranges of ClusterIPs. On a gateway nothing is: its
//! manifests may ask for what they like.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;

use crate::context::{AddressRange, Context, Place};
use crate::objects::Located;

/// Ranges, and what each is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reserved {
    /// Ordered by first address.
    ranges: Vec<(AddressRange, String)>,
    /// For each of them the last address of those up to it: where to stop to look.
    up_to: Vec<IpAddr>,
    /// Addresses of Nodes.
    of_nodes: HashSet<IpAddr>,
}

impl Reserved {
    pub fn of(context: &Context, nodes: &[Arc<Located<Node>>]) -> Self {
        if context.place == Place::Gateway {
            return Self::default();
        }
        let mut ranges = context.reserved.clone();
        let mut of_nodes = HashSet::new();
        for node in nodes.iter().map(|node| &node.object) {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
            of_nodes.extend(addresses.clone().filter_map(|address| address.address.parse::<IpAddr>().ok()));
            let addresses = addresses.map(|address| (address.address.as_str(), "an address"));
            let spec = node.spec.as_ref();
            let pods = spec.into_iter().flat_map(|spec| spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr));
            let pods = pods.map(|range| (range.as_str(), "of the Pods' range"));
            // Hostnames stand among the addresses.
            let parsed = addresses.chain(pods).filter_map(|(range, what)| Some((range.parse().ok()?, what)));
            ranges.extend(parsed.map(|(range, what)| (range, format!("{what} of Node {name}"))));
        }
        ranges.sort();
        ranges.dedup_by_key(|(range, _)| *range);
        let mut up_to: Vec<IpAddr> = Vec::with_capacity(ranges.len());
        for (range, _) in &ranges {
            up_to.push(up_to.last().copied().map_or(range.last(), |last| last.max(range.last())));
        }
        Self { ranges, up_to, of_nodes }
    }

    /// What has the address, where it is asked for as an external IP. That of a Node may be one: people do have
    /// Services at their nodes' addresses so, without a load balancer, and it is the configuration's `externalIPs` that
    /// lets them.
    pub fn what_beside_nodes(&self, ip: IpAddr) -> Option<&str> {
        if self.of_nodes.contains(&ip) { None } else { self.what(ip) }
    }

    /// What has the address.
    pub fn what(&self, ip: IpAddr) -> Option<&str> {
        let mut at = self.ranges.partition_point(|(range, _)| range.first() <= ip);
        while at > 0 && self.up_to[at - 1] >= ip {
            at -= 1;
            if self.ranges[at].0.contains(ip) {
                return Some(&self.ranges[at].1);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_in_ranges_are_found_and_what_is_between_is_free() {
        let range = |text: &str, what: &str| (text.parse::<AddressRange>().expect("a range"), what.to_owned());
        let reserved = vec![range("10.0.0.0/8", "wide"), range("10.1.0.0/24", "narrow"), range("2001:db8::/64", "six")];
        let context = Context { place: Place::Node, reserved, ..Context::default() };
        let reserved = Reserved::of(&context, &[]);
        for (ip, what) in [
            ("9.255.255.255", None),
            ("10.0.0.0", Some("wide")),
            ("10.1.0.7", Some("narrow")),
            ("10.1.1.0", Some("wide")),
            ("10.255.255.255", Some("wide")),
            ("11.0.0.0", None),
            ("2001:db8::1", Some("six")),
            ("2001:db8:0:1::", None),
        ] {
            assert_eq!(reserved.what(ip.parse().expect("an address")), what, "{ip}");
        }
        assert_eq!(Reserved::of(&Context { place: Place::Gateway, ..context }, &[]), Reserved::default());
    }
}
