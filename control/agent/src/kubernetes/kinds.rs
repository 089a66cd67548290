//! The kinds that are followed, and what of each is of use: the rest is not kept, for a cluster has many.

use std::collections::BTreeMap;
use std::fmt::Debug;

use k8s_openapi::api::core::v1::{
    Endpoints, Namespace, Node, NodeSpec, NodeStatus, ObjectReference, Service, ServiceStatus,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta};
use kube::Resource;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::address_pool::AddressPool;
use super::allocator::steps::{CONDITIONS, FINALIZER, MANAGER};
use super::store::{Store, Stores};
use crate::owners::{EXCLUDED, TO_BE_DELETED};

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
    /// Whether all else works where the cluster does not have the kind, or does not let it be read.
    const OPTIONAL: bool = false;

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

fn all(_: &str) -> bool {
    true
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
        let mut finalizers = self.metadata.finalizers.clone();
        if let Some(all) = &mut finalizers {
            all.retain(|name| name == FINALIZER);
        }
        let metadata = ObjectMeta {
            // Of the object that is meant by an event.
            uid: self.metadata.uid.clone(),
            deletion_timestamp: self.metadata.deletion_timestamp.clone(),
            finalizers: finalizers.filter(|all| !all.is_empty()),
            managed_fields: ours(self.metadata.managed_fields.as_deref().unwrap_or_default()),
            ..metadata(self.metadata, all, |key| key.starts_with("millrace.dev/"))
        };
        let status = self.status.map(|mut status| {
            if let Some(conditions) = &mut status.conditions {
                conditions.retain(|condition| CONDITIONS.contains(&condition.type_.as_str()));
            }
            ServiceStatus { conditions: status.conditions.filter(|all| !all.is_empty()), ..status }
        });
        let has = |status: &ServiceStatus| status.load_balancer.is_some() || status.conditions.is_some();
        Self { metadata, spec: self.spec, status: status.filter(has) }
    }
}

/// That something was applied under our name, and where.
fn ours(all: &[ManagedFieldsEntry]) -> Option<Vec<ManagedFieldsEntry>> {
    let ours = all.iter().filter(|entry| entry.manager.as_deref() == Some(MANAGER)).map(|entry| ManagedFieldsEntry {
        manager: entry.manager.clone(),
        operation: entry.operation.clone(),
        subresource: entry.subresource.clone(),
        // Which part of the status it is.
        fields_v1: entry.fields_v1.clone().filter(|_| entry.subresource.is_some()),
        ..ManagedFieldsEntry::default()
    });
    let ours: Vec<ManagedFieldsEntry> = ours.collect();
    (!ours.is_empty()).then_some(ours)
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
            endpoint.addresses.shrink_to_fit();
        }
        // They grew as they were read, to up to twice of what they hold.
        slice.endpoints.iter_mut().for_each(Vec::shrink_to_fit);
        slice.ports.iter_mut().for_each(Vec::shrink_to_fit);
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
        let label = |key: &str| matches!(key, ZONE | REGION | EXCLUDED);
        let NodeSpec { pod_cidr, pod_cidrs, taints, .. } = self.spec.unwrap_or_default();
        let taints = taints.map(|mut taints| {
            taints.retain(|taint| taint.key == TO_BE_DELETED);
            taints.iter_mut().for_each(|taint| taint.time_added = None);
            taints
        });
        let taints = taints.filter(|taints| !taints.is_empty());
        // What no Service may have, and what its heartbeats come from.
        let addresses = self.status.and_then(|status| status.addresses).filter(|all| !all.is_empty());
        let spec = NodeSpec { pod_cidr, pod_cidrs, taints, ..NodeSpec::default() };
        Self {
            metadata: metadata(self.metadata, label, none),
            spec: (spec != NodeSpec::default()).then_some(spec),
            status: addresses.map(|all| NodeStatus { addresses: Some(all), ..NodeStatus::default() }),
        }
    }
}

impl Kind for Namespace {
    const KIND: &'static str = "Namespace";
    const PLURAL: &'static str = "namespaces";
    const OPTIONAL: bool = true;

    fn store(stores: &mut Stores) -> &mut Store<Self> {
        &mut stores.namespaces
    }

    fn slimmed(self) -> Self {
        Self { metadata: metadata(self.metadata, all, none), spec: None, status: None }
    }
}

impl Kind for ServiceCIDR {
    const KIND: &'static str = "ServiceCIDR";
    const PLURAL: &'static str = "servicecidrs.networking.k8s.io";
    const OPTIONAL: bool = true;

    fn store(stores: &mut Stores) -> &mut Store<Self> {
        &mut stores.service_ranges
    }

    fn slimmed(self) -> Self {
        Self { metadata: metadata(self.metadata, none, none), status: None, ..self }
    }
}

impl Kind for AddressPool {
    const KIND: &'static str = "AddressPool";
    const PLURAL: &'static str = "addresspools.millrace.dev";
    const OPTIONAL: bool = true;

    fn store(stores: &mut Stores) -> &mut Store<Self> {
        &mut stores.pools
    }

    fn slimmed(self) -> Self {
        Self { metadata: metadata(self.metadata, none, none), ..self }
    }
}
