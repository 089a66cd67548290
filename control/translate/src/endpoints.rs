//! Which endpoints a Service port has: EndpointSlices by label, and `v1 Endpoints` of its name converted as the API
//! server's mirroring does.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints, ObjectReference};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use crate::finding::{Finding, Severity};
use crate::objects::{Located, Objects};

/// The label that names a slice's Service.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";

/// An object that who reads again what did not change has again.
type Shared<T> = Arc<Located<T>>;

/// An endpoint of one Service port, before policies.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Candidate {
    pub address: IpAddr,
    pub port: u16,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    /// Whether somebody says if it is ready.
    pub has_readiness: bool,
    /// Whether a TCP connection tells if it serves: not of SCTP.
    pub takes_probes: bool,
    pub node: Option<String>,
    pub zone: Option<String>,
    pub region: Option<String>,
    pub hint_zones: Vec<String>,
    pub hint_nodes: Vec<String>,
    pub target: Option<String>,
    pub place: Finding,
}

/// The objects that name endpoints, by namespace and Service.
pub(crate) struct Index<'o> {
    slices: BTreeMap<(&'o str, &'o str), Vec<&'o Shared<EndpointSlice>>>,
    endpoints: BTreeMap<(&'o str, &'o str), &'o Shared<Endpoints>>,
    nodes: BTreeMap<&'o str, (Option<&'o str>, Option<&'o str>)>,
    /// Slices of type FQDN.
    pub fqdn: u64,
}

/// A Service port to join endpoints with.
#[derive(Clone, Copy)]
pub(crate) struct Join<'s> {
    pub namespace: &'s str,
    pub service: &'s str,
    pub port_name: &'s str,
    pub protocol: &'s str,
    pub ipv6: bool,
}

/// Namespace and name of the Service that a slice is of; `None` for one of type FQDN.
pub(crate) fn service_of_slice(slice: &Located<EndpointSlice>) -> Option<(&str, &str)> {
    if slice.object.address_type == "FQDN" {
        return None;
    }
    let metadata = &slice.object.metadata;
    let name = metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME));
    Some((metadata.namespace.as_deref().unwrap_or("default"), name.map_or("", String::as_str)))
}

/// Namespace and name of the Service that Endpoints are of; `None` for those that nothing is to be made of.
pub(crate) fn service_of_endpoints(endpoints: &Located<Endpoints>) -> Option<(&str, &str)> {
    let metadata = &endpoints.object.metadata;
    let skip = metadata.labels.as_ref().and_then(|labels| labels.get(SKIP_MIRROR)).is_some_and(|v| v == "true");
    let key = (metadata.namespace.as_deref().unwrap_or("default"), metadata.name.as_deref().unwrap_or_default());
    (!skip).then_some(key)
}

impl<'o> Index<'o> {
    pub fn new(objects: &'o Objects) -> Self {
        Self::of(objects.slices.iter(), objects.endpoints.iter(), objects)
    }

    /// Of some slices and Endpoints, and all Nodes.
    pub fn of(
        slices: impl Iterator<Item = &'o Shared<EndpointSlice>>,
        endpoints: impl Iterator<Item = &'o Shared<Endpoints>>,
        objects: &'o Objects,
    ) -> Self {
        let mut index = Self { slices: BTreeMap::new(), endpoints: BTreeMap::new(), nodes: BTreeMap::new(), fqdn: 0 };
        for slice in slices {
            match service_of_slice(slice) {
                Some(key) => index.slices.entry(key).or_default().push(slice),
                None => index.fqdn += 1,
            }
        }
        for endpoints in endpoints {
            if let Some(key) = service_of_endpoints(endpoints) {
                index.endpoints.insert(key, endpoints);
            }
        }
        for node in objects.nodes.iter() {
            let metadata = &node.object.metadata;
            let label = |key: &str| metadata.labels.as_ref()?.get(key).map(String::as_str);
            let place = (label("topology.kubernetes.io/zone"), label("topology.kubernetes.io/region"));
            index.nodes.insert(metadata.name.as_deref().unwrap_or_default(), place);
        }
        index
    }

    /// How many objects name a Service that is not among these.
    pub fn waiting(&self, exists: impl Fn(&str, &str) -> bool) -> u64 {
        let slices = self.slices.iter().filter(|((ns, name), _)| !exists(ns, name)).map(|(_, slices)| slices.len());
        let endpoints = self.endpoints.keys().filter(|(ns, name)| !exists(ns, name)).count();
        (slices.sum::<usize>() + endpoints) as u64
    }

    /// The objects that name endpoints of this Service.
    pub fn objects_of<'a>(
        &'a self,
        (namespace, name): (&'a str, &'a str),
    ) -> (&'a [&'o Shared<EndpointSlice>], Option<&'o Shared<Endpoints>>) {
        let slices = self.slices.get(&(namespace, name)).map(Vec::as_slice).unwrap_or_default();
        (slices, self.endpoints.get(&(namespace, name)).copied())
    }

    /// Whether anything names an endpoint of this Service.
    pub fn knows(&self, namespace: &str, name: &str) -> bool {
        self.slices.contains_key(&(namespace, name)) || self.endpoints.contains_key(&(namespace, name))
    }

    /// The endpoints of a Service port in one family, ordered, each address and port once.
    pub fn join(&self, join: Join<'_>, publish_not_ready: bool) -> Vec<Candidate> {
        let key = (join.namespace, join.service);
        let slices = self.slices.get(&key).map(Vec::as_slice).unwrap_or_default();
        let mut found: Vec<Candidate> = slices.iter().flat_map(|slice| self.of_slice(slice, join)).collect();
        // Slices that a controller made say all that the Endpoints say, and more.
        let managed = slices.iter().any(|slice| {
            let label = slice.object.metadata.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY));
            label.is_some_and(|by| by.ends_with("-controller.k8s.io"))
        });
        if let Some(endpoints) = self.endpoints.get(&key).filter(|_| !managed) {
            found.extend(self.of_endpoints(endpoints, join));
        }
        for candidate in &mut found {
            candidate.ready |= publish_not_ready;
            candidate.serving |= publish_not_ready;
        }
        // Of two that name the same endpoint, the ready one is believed.
        found.sort_by(|a, b| (a.address, a.port, !a.ready, &a.place).cmp(&(b.address, b.port, !b.ready, &b.place)));
        found.dedup_by_key(|candidate| (candidate.address, candidate.port));
        found
    }

    fn of_slice(&self, slice: &Located<EndpointSlice>, join: Join<'_>) -> Vec<Candidate> {
        let object = &slice.object;
        if (object.address_type == "IPv6") != join.ipv6 {
            return Vec::new();
        }
        let ports = object.ports.iter().flatten().filter(|port| {
            port.name.as_deref().unwrap_or_default() == join.port_name
                && port.protocol.as_deref().unwrap_or("TCP") == join.protocol
        });
        let numbers: Vec<u16> = ports.filter_map(|port| u16::try_from(port.port?).ok()).collect();
        let mut found = Vec::new();
        for (at, endpoint) in object.endpoints.iter().flatten().enumerate() {
            let Some(address) = endpoint.addresses.first().and_then(|ip| ip.parse().ok()) else { continue };
            let place = slice.finding(Severity::Error, &format!("endpoints[{at}].addresses[0]"), "");
            found.extend(numbers.iter().map(|&port| self.of_endpoint(endpoint, address, port, &place)));
        }
        found
    }

    fn of_endpoint(&self, endpoint: &Endpoint, address: IpAddr, port: u16, place: &Finding) -> Candidate {
        let conditions = endpoint.conditions.clone().unwrap_or_default();
        let hints = endpoint.hints.clone().unwrap_or_default();
        let ready = conditions.ready.unwrap_or(true);
        let (zone, region) = self.zone_and_region(endpoint.node_name.as_deref());
        Candidate {
            address,
            port,
            ready,
            serving: conditions.serving.unwrap_or(true),
            terminating: conditions.terminating.unwrap_or(false),
            has_readiness: conditions.ready.is_some(),
            takes_probes: true,
            node: endpoint.node_name.clone(),
            zone: endpoint.zone.clone().or(zone),
            region,
            hint_zones: hints.for_zones.into_iter().flatten().map(|zone| zone.name).collect(),
            hint_nodes: hints.for_nodes.into_iter().flatten().map(|node| node.name).collect(),
            target: endpoint.target_ref.as_ref().and_then(target),
            place: place.clone(),
        }
    }

    fn zone_and_region(&self, node: Option<&str>) -> (Option<String>, Option<String>) {
        let (zone, region) = node.and_then(|node| self.nodes.get(node)).copied().unwrap_or_default();
        (zone.map(str::to_owned), region.map(str::to_owned))
    }

    fn of_endpoints(&self, endpoints: &Located<Endpoints>, join: Join<'_>) -> Vec<Candidate> {
        let mut found = Vec::new();
        for (at, subset) in endpoints.object.subsets.iter().flatten().enumerate() {
            let ports = subset.ports.iter().flatten().filter(|port| {
                port.name.as_deref().unwrap_or_default() == join.port_name
                    && port.protocol.as_deref().unwrap_or("TCP") == join.protocol
            });
            let numbers: Vec<u16> = ports.filter_map(|port| u16::try_from(port.port).ok()).collect();
            let lists =
                [("addresses", &subset.addresses, true), ("notReadyAddresses", &subset.not_ready_addresses, false)];
            for (list, addresses, ready) in lists {
                for (index, entry) in addresses.iter().flatten().enumerate() {
                    let place = endpoints.finding(Severity::Error, &format!("subsets[{at}].{list}[{index}].ip"), "");
                    let same_family = |ip: &IpAddr| ip.is_ipv6() == join.ipv6;
                    let Some(address) = entry.ip.parse().ok().filter(same_family) else { continue };
                    found.extend(numbers.iter().map(|&port| self.converted(entry, address, port, ready, &place)));
                }
            }
        }
        found
    }

    fn converted(
        &self,
        entry: &EndpointAddress,
        address: IpAddr,
        port: u16,
        ready: bool,
        place: &Finding,
    ) -> Candidate {
        let (zone, region) = self.zone_and_region(entry.node_name.as_deref());
        Candidate {
            address,
            port,
            ready,
            serving: ready,
            terminating: false,
            has_readiness: false,
            takes_probes: true,
            node: entry.node_name.clone(),
            zone,
            region,
            hint_zones: Vec::new(),
            hint_nodes: Vec::new(),
            target: entry.target_ref.as_ref().and_then(target),
            place: place.clone(),
        }
    }
}

fn target(reference: &ObjectReference) -> Option<String> {
    let name = reference.name.as_ref()?;
    Some(format!("{}/{name}", reference.namespace.as_deref().unwrap_or("default")))
}
