//! What was given to Services and is kept over restarts: addresses, ClusterIPs, NodePorts, table sizes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Kept under `state`; an empty one is a box's first start. Keys are `namespace/name` and, where a port is meant,
/// `namespace/name/protocol/port-name`. Where two claim the same, the one that has it here keeps it. Each part is shared
/// with what it was before where it did not change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Given {
    /// Addresses of Services of type LoadBalancer, from a pool or asked for: who has one keeps it, also while it cannot
    /// be served.
    pub addresses: Arc<BTreeMap<String, Vec<IpAddr>>>,
    /// ClusterIPs, written or from a Service range.
    pub cluster_ips: Arc<BTreeMap<String, Vec<IpAddr>>>,
    /// NodePorts, written or from the range.
    pub node_ports: Arc<BTreeMap<String, u16>>,
    /// Maglev table sizes once reached, by Service port and family (`…/ipv4`, `…/ipv6`).
    pub table_sizes: Arc<BTreeMap<String, usize>>,
    /// Which file each object in force is in, by `Kind namespace/name`.
    pub objects: Arc<BTreeMap<String, String>>,
    /// Which Service has each frontend in force, by `address:port/protocol`.
    pub frontends: Arc<BTreeMap<String, String>>,
    /// Where each Service has endpoints; written the other way round.
    #[serde(with = "by_address")]
    pub endpoints: Arc<Endpoints>,
}

/// Addresses of endpoints by Service; those without any are left out.
pub type Endpoints = BTreeMap<Arc<str>, Arc<BTreeSet<IpAddr>>>;

/// [`Endpoints`] as they are written: which Services have an endpoint at an address.
mod by_address {
    use super::{Arc, BTreeMap, BTreeSet, Endpoints, IpAddr};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(endpoints: &Endpoints, serializer: S) -> Result<S::Ok, S::Error> {
        let mut services: BTreeMap<IpAddr, BTreeSet<&str>> = BTreeMap::new();
        for (service, addresses) in endpoints {
            for address in addresses.iter() {
                services.entry(*address).or_default().insert(service);
            }
        }
        services.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<Endpoints>, D::Error> {
        let mut endpoints: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
        for (address, services) in BTreeMap::<IpAddr, BTreeSet<String>>::deserialize(deserializer)? {
            for service in services {
                endpoints.entry(service).or_default().insert(address);
            }
        }
        Ok(Arc::new(endpoints.into_iter().map(|(service, all)| (service.into(), Arc::new(all))).collect()))
    }
}

/// The key of an object in [`Given::objects`].
pub(crate) fn object_key(kind: &str, namespace: &str, name: &str) -> String {
    format!("{kind} {namespace}/{name}")
}

/// The key of a frontend in [`Given::frontends`].
pub(crate) fn frontend_key(address: IpAddr, port: u16, protocol: &str) -> String {
    format!("{}/{protocol}", SocketAddr::new(address, port))
}
