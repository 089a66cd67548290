//! What the nodes have to settle between them: which nodes there are, and who may own which address. Pure: objects and
//! their translation in, a value out.
//!
//! A node is excluded as the cloud controllers exclude it from load balancers: by label, or when the autoscaler is about
//! to delete it; never because it is cordoned. Of an address with a Service of policy Local, those nodes may own it that
//! serve the most of its Services. Sources: `k8s.io/cloud-provider/controllers/service`, KEP-3836.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use members::{Candidates, Cluster, Name};
use translate::{BackendListing, Objects, Translation};

/// The label of a Node that is to get no traffic of load balancers.
pub(crate) const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// The taint of a Node that the autoscaler is about to delete.
pub(crate) const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// What nodes have to settle.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Situation {
    /// Nodes, and addresses with their candidates.
    pub cluster: Cluster,
    /// Where each node is reached.
    pub places: BTreeMap<Name, Vec<IpAddr>>,
}

/// From the API server's objects and what comes of them; `is_announced` says which addresses are announced by nodes.
#[must_use]
pub fn situation(objects: &Objects, translation: &Translation, is_announced: impl Fn(IpAddr) -> bool) -> Situation {
    let nodes = objects.nodes.iter().map(|node| &node.object);
    let named: Vec<(Name, &Node)> =
        nodes.filter_map(|node| Some((node.metadata.name.as_deref()?.into(), node))).collect();
    let mut served = services_at(objects, translation);
    let vips = translation.desired.addresses.iter().filter(|vip| vip.is_announced() && is_announced(vip.address));
    let addresses = vips.map(|vip| {
        // An address that no Service has any more lingers where its flows are.
        let candidates = served.remove(&vip.address).map_or_else(nobody, Served::candidates);
        (vip.address, candidates)
    });
    Situation {
        cluster: Cluster {
            addresses: addresses.collect(),
            nodes: named.iter().map(|(name, node)| (Arc::clone(name), is_excluded(node))).collect(),
        },
        places: named.iter().map(|(name, node)| (Arc::clone(name), places(node))).collect(),
    }
}

fn nobody() -> Candidates {
    Candidates::These(Arc::default())
}

/// The Services at an address.
#[derive(Default)]
struct Served {
    /// Those that every node serves.
    everywhere: usize,
    /// Those of policy Local, and which nodes have endpoints.
    local: Vec<BTreeSet<Name>>,
}

impl Served {
    /// The nodes that serve the most.
    fn candidates(self) -> Candidates {
        let mut counts: BTreeMap<&Name, usize> = BTreeMap::new();
        self.local.iter().flatten().for_each(|name| *counts.entry(name).or_default() += 1);
        match counts.values().max() {
            None if self.everywhere > 0 => Candidates::All,
            None => nobody(),
            Some(&most) => {
                let best = counts.iter().filter(|(_, count)| **count == most).map(|(name, _)| Name::clone(name));
                Candidates::These(Arc::new(best.collect()))
            }
        }
    }
}

fn services_at(objects: &Objects, translation: &Translation) -> BTreeMap<IpAddr, Served> {
    let local: HashSet<(&str, &str)> = objects
        .services
        .iter()
        .filter(|service| {
            let spec = service.object.spec.as_ref();
            spec.and_then(|spec| spec.external_traffic_policy.as_deref()) == Some("Local")
        })
        .filter_map(|service| {
            let metadata = &service.object.metadata;
            Some((metadata.namespace.as_deref()?, metadata.name.as_deref()?))
        })
        .collect();
    let mut served: BTreeMap<IpAddr, Served> = BTreeMap::new();
    for (service, backends) in translation.services.iter().zip(translation.backends.iter()) {
        let nodes = local.contains(&(service.namespace.as_str(), service.name.as_str())).then(|| nodes_of(backends));
        for address in service.addresses.iter().filter(|address| !service.cluster_ips.contains(address)) {
            let at = served.entry(*address).or_default();
            match &nodes {
                Some(nodes) => at.local.push(nodes.clone()),
                None => at.everywhere += 1,
            }
        }
    }
    served
}

/// The nodes of ready endpoints; without any, of those that still serve.
fn nodes_of(backends: &[BackendListing]) -> BTreeSet<Name> {
    let nodes = |fits: fn(&BackendListing) -> bool| -> BTreeSet<Name> {
        let fitting = backends.iter().filter(|backend| fits(backend));
        fitting.filter_map(|backend| backend.node.as_deref().map(Name::from)).collect()
    };
    let ready = nodes(|backend| backend.ready);
    if ready.is_empty() { nodes(|backend| backend.serving) } else { ready }
}

fn is_excluded(node: &Node) -> bool {
    let labelled = node.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(EXCLUDED));
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    labelled || taints.is_some_and(|taints| taints.iter().any(|taint| taint.key == TO_BE_DELETED))
}

fn places(node: &Node) -> Vec<IpAddr> {
    let all = node.status.as_ref().and_then(|status| status.addresses.as_ref());
    let own = all.into_iter().flatten().filter(|address| address.type_ == "InternalIP");
    own.filter_map(|address| address.address.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(text: &str) -> Node {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_node_is_excluded_by_label_or_when_it_is_about_to_be_deleted_and_not_when_it_is_cordoned() {
        for (text, excluded) in [
            (r#"{"metadata": {"name": "n1"}}"#, false),
            (r#"{"metadata": {"labels": {"node.kubernetes.io/exclude-from-external-load-balancers": ""}}}"#, true),
            (r#"{"spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]}}"#, true),
            (
                r#"{"spec": {"unschedulable": true,
                    "taints": [{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]}}"#,
                false,
            ),
        ] {
            assert_eq!(is_excluded(&node(text)), excluded, "{text}");
        }
    }

    #[test]
    fn a_node_is_reached_at_its_internal_addresses() {
        let text = r#"{"status": {"addresses": [
            {"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": "10.0.0.1"},
            {"type": "ExternalIP", "address": "198.51.100.1"}, {"type": "InternalIP", "address": "fd00::1"}]}}"#;
        assert_eq!(places(&node(text)), ["10.0.0.1", "fd00::1"].map(|ip| ip.parse::<IpAddr>().unwrap()));
    }

    #[test]
    fn those_may_own_an_address_that_serve_the_most_of_its_services() {
        let names = |names: &[&str]| names.iter().map(|name| Name::from(*name)).collect::<BTreeSet<_>>();
        let these = |of: &[&str]| Candidates::These(Arc::new(names(of)));
        for (everywhere, local, expected) in [
            (1, vec![], Candidates::All),
            (0, vec![], nobody()),
            (0, vec![names(&["a", "b"])], these(&["a", "b"])),
            (0, vec![names(&[])], nobody()),
            (1, vec![names(&[])], Candidates::All),
            (1, vec![names(&["a"])], these(&["a"])),
            (0, vec![names(&["a", "b"]), names(&["b", "c"])], these(&["b"])),
        ] {
            assert_eq!(Served { everywhere, local: local.clone() }.candidates(), expected, "{everywhere} {local:?}");
        }
    }
}
