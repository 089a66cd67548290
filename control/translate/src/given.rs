//! What was given to Services and is kept over restarts: addresses, ClusterIPs, NodePorts, table sizes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Kept under `state`; an empty one is a box's first start. Keys are `namespace/name` and, where a port is meant,
/// `namespace/name/protocol/port-name`. Where two claim the same, the one that has it here keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Given {
    /// Addresses of Services of type LoadBalancer, from a pool or asked for: who has one keeps it.
    pub addresses: BTreeMap<String, Vec<IpAddr>>,
    /// ClusterIPs that came from a Service range.
    pub cluster_ips: BTreeMap<String, Vec<IpAddr>>,
    /// NodePorts that came from the range.
    pub node_ports: BTreeMap<String, u16>,
    /// Maglev table sizes once reached, by Service port and family (`…/ipv4`, `…/ipv6`).
    pub table_sizes: BTreeMap<String, usize>,
    /// Which file each object in force is in, by `Kind namespace/name`.
    pub objects: BTreeMap<String, String>,
}

/// The key of an object in [`Given::objects`].
pub(crate) fn object_key(kind: &str, namespace: &str, name: &str) -> String {
    format!("{kind} {namespace}/{name}")
}
