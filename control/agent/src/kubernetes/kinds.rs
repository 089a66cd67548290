//! The kinds that are followed, and what of each is of use: the rest is not kept, for a cluster has many.

use std::collections::BTreeMap;
use std::fmt::Debug;

use k8s_openapi::api::core::v1::{Endpoints, Node, ObjectReference, Service, ServiceStatus};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::store::{Store, Stores};

/// The label of a Node's zone.
pub(super) const ZONE: &str = "topology.kubernetes.io/zone";
/// The label of a Node's region.
pub(super) const REGION: &str = "topology.kubernetes.io/region";

/// A kind that is followed.
pub(super) trait Kind:
    Resource<DynamicType = ()> + Clone + Debug + PartialEq + DeserializeOwned + Serialize + Send + 'static
{
    /// Its name.
    const KIND: &'static str;
    /// Its name in paths and rules, for people.
    const PLURAL: &'static str;
    /// Which of them, by labels.
    const SELECTOR: Option<&'static str> = None;

    /// Where they are stored.
    fn store(stores: &mut Stores) -> &mut Store<Self>;

    /// What of it is of use, without its version.
    #[must_use]
    fn slimmed(self) -> Self;
}

/// Name and namespace, and the labels and annotations that pass.
fn metadata(full: ObjectMeta, label: fn(&str) -> bool, annotation: fn(&str) -> bool) -> ObjectMeta {
    let some = |all: Option<BTreeMap<String, String>>, passes: fn(&str) -> bool| {
        let mut all = all?;
        all.retain(|key, _| passes(key));
        (!all.is_empty()).then_some(all)
    };
    ObjectMeta {
        name: full.name,
        namespace: full.namespace,
        labels: some(full.labels, label),
        annotations: some(full.annotations, annotation),
        ..ObjectMeta::default()
    }
}

fn none(_: &str) -> bool {
    false
}

fn name_alone(reference: Option<ObjectReference>) -> Option<ObjectReference> {
    let ObjectReference { name, namespace, .. } = reference?;
    Some(ObjectReference { name, namespace, ..ObjectReference::default() })
}

impl Kind for Service {
    const KIND: &'static str = "Service";
    const PLURAL: &'static str = "services";

    fn store(stores: &mut Stores) -> &mut Store<Self> {
        &mut stores.services
    }

    fn slimmed(self) -> Self {
        let load_balancer = self.status.and_then(|status| status.load_balancer);
        Self {
            metadata: metadata(self.metadata, none, |key| key.starts_with("millrace.dev/")),
            spec: self.spec,
            status: load_balancer.map(|status| ServiceStatus { load_balancer: Some(status), conditions: None }),
        }
    }
}

impl Kind for EndpointSlice {
    const KIND: &'static str = "EndpointSlice";
    const PLURAL: &'static str = "endpointslices.discovery.k8s.io";

    fn store(stores: &mut Stores) -> &mut Store<Self> {
        &mut stores.slices
    }

    fn slimmed(self) -> Self {
        let label = |key: &str| matches!(key, "kubernetes.io/service-name" | "endpointslice.kubernetes.io/managed-by");
        let mut slice = Self { metadata: metadata(self.metadata, label, none), ..self };
        for endpoint in slice.endpoints.iter_mut().flatten() {
            endpoint.deprecated_topology = None;
            endpoint.hostname = None;
            endpoint.target_ref = name_alone(endpoint.target_ref.take());
        }
        slice
    }
}

impl Kind for Endpoints {
    const KIND: &'static str = "Endpoints";
    const PLURAL: &'static str = "endpoints";
    // Of a Service with a selector a controller makes slices beside its Endpoints, and says so.
    const SELECTOR: Option<&'static str> =
        Some("!endpoints.kubernetes.io/managed-by,endpointslice.kubernetes.io/skip-mirror!=true");

    fn store(stores: &mut Stores) -> &mut Store<Self> {
        &mut stores.endpoints
    }

    fn slimmed(self) -> Self {
        let label = |key: &str| key == "endpointslice.kubernetes.io/skip-mirror";
        let mut endpoints = Self { metadata: metadata(self.metadata, label, none), ..self };
        for subset in endpoints.subsets.iter_mut().flatten() {
            for address in subset.addresses.iter_mut().chain(&mut subset.not_ready_addresses).flatten() {
                address.target_ref = name_alone(address.target_ref.take());
            }
        }
        endpoints
    }
}

impl Kind for Node {
    const KIND: &'static str = "Node";
    const PLURAL: &'static str = "nodes";

    fn store(stores: &mut Stores) -> &mut Store<Self> {
        &mut stores.nodes
    }

    fn slimmed(self) -> Self {
        let label = |key: &str| key == ZONE || key == REGION;
        Self { metadata: metadata(self.metadata, label, none), spec: None, status: None }
    }
}
