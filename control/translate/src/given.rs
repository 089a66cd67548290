//! What was given to Services and is kept over restarts: addresses, ClusterIPs, NodePorts, table sizes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// Kept under `state`; an empty one is a box's first start. Keys are `namespace/name` and, where a port is meant,
/// `namespace/name/protocol/port-name`. Where two claim the same, the one that has it here keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Given {
    /// Addresses of Services of type LoadBalancer, from a pool or asked for: who has one keeps it, also while it cannot
    /// be served.
    pub addresses: BTreeMap<String, Vec<IpAddr>>,
    /// ClusterIPs, written or from a Service range.
    pub cluster_ips: BTreeMap<String, Vec<IpAddr>>,
    /// NodePorts, written or from the range.
    pub node_ports: BTreeMap<String, u16>,
    /// Maglev table sizes once reached, by Service port and family (`…/ipv4`, `…/ipv6`).
    pub table_sizes: BTreeMap<String, usize>,
    /// Which file each object in force is in, by `Kind namespace/name`.
    pub objects: BTreeMap<String, String>,
    /// Which Service has each frontend in force, by `address:port/protocol`.
    pub frontends: BTreeMap<String, String>,
    /// Which Services have an endpoint at an address.
    pub endpoints: BTreeMap<IpAddr, BTreeSet<String>>,
}

/// The key of an object in [`Given::objects`].
pub(crate) fn object_key(kind: &str, namespace: &str, name: &str) -> String {
    format!("{kind} {namespace}/{name}")
}

/// The key of a frontend in [`Given::frontends`].
pub(crate) fn frontend_key(address: IpAddr, port: u16, protocol: &str) -> String {
    format!("{}/{protocol}", SocketAddr::new(address, port))
}
