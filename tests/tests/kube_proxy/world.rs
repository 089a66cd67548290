//! A node of a cluster with its pods, another node with its pods, and a client outside; two worlds of equal addresses.
//!
//! ```text
//! client ── eth0 node eth1 ── node2 ── cni0 ── r1, r2
//!  .2        .1   │   .1       .21
//!               cni0 ── l1, l2
//! ```

use std::net::IpAddr;

use millrace_tests::kubelab::Kubelab;
use millrace_tests::lab::{Host, Lab};
use millrace_tests::witness;

/// The ports that pods answer on: those of `http`, `alt` and `dns`.
pub const PORTS: [u16; 3] = [8080, 9090, 8053];
/// Pods' addresses.
pub const PODS: [&str; 2] = ["10.244.0.0/16", "fd00:244::/32"];
/// The addresses that pods have on their node, and the Node that it is.
pub const POD_ADDRESSES: [(&str, &str, [&str; 2]); 4] = [
    ("l1", "n1", ["10.244.1.5", "fd00:244:1::5"]),
    ("l2", "n1", ["10.244.1.6", "fd00:244:1::6"]),
    ("r1", "n2", ["10.244.2.5", "fd00:244:2::5"]),
    ("r2", "n2", ["10.244.2.6", "fd00:244:2::6"]),
];
/// The addresses of the Node.
pub const NODE: [&str; 2] = ["10.82.1.1", "fd82:1::1"];
/// The other node, as a server outside the cluster, too.
pub const OTHER: (&str, [&str; 2]) = ("other", ["10.82.1.21", "fd82:1::21"]);

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// A machine outside the cluster.
    Client,
    /// A pod on the node that no Service here has.
    Pod,
    /// A pod on the node that Services have: `l1`.
    Chosen,
    /// The node itself.
    Node,
}

/// One of the two.
pub struct World {
    pub client: Host,
    pub node: Host,
    pods: Vec<Host>,
    /// What is on the node and no pod: where connections come from that are translated.
    pub translated: Vec<IpAddr>,
}

fn bridge(lab: &Lab, node: &Host, pods: &[(&Host, [&str; 2])], gateway: [&str; 2]) {
    node.run("ip", ["link", "add", "cni0", "type", "bridge"]);
    node.run("ip", ["link", "set", "cni0", "up"]);
    for (address, length) in gateway.iter().zip([24, 64]) {
        node.address("cni0", &format!("{address}/{length}"));
    }
    for (number, (pod, addresses)) in pods.iter().enumerate() {
        let port = format!("veth{number}");
        lab.wire((node, &port), (pod, "eth0"), 1);
        node.run("ip", ["link", "set", &port, "master", "cni0"]);
        // A pod that a Service has may be its own client.
        node.run("bridge", ["link", "set", "dev", &port, "hairpin", "on"]);
        for (address, (length, router)) in addresses.iter().zip([24, 64].iter().zip(gateway)) {
            pod.address("eth0", &format!("{address}/{length}"));
            pod.route(&format!("default via {router}"));
        }
    }
}

impl World {
    /// Makes it, with a server in each pod and on the other node. `api` is the node's interface and address towards the API
    /// server.
    pub fn new(lab: &mut Lab, prefix: &str, kubelab: &Kubelab, api: (&str, &str)) -> Self {
        let mut host = |name: &str| lab.host(&format!("{prefix}-{name}"));
        let (client, node, other) = (host("client"), host("node"), host("node2"));
        let pods: Vec<Host> = POD_ADDRESSES.iter().map(|(name, ..)| host(name)).collect();
        lab.wire((&client, "eth0"), (&node, "eth0"), 1);
        lab.wire((&node, "eth1"), (&other, "eth0"), 1);
        for (host, interface, addresses) in [
            (&client, "eth0", ["10.81.1.2/24", "fd81:1::2/64"]),
            (&node, "eth0", ["10.81.1.1/24", "fd81:1::1/64"]),
            (&node, "eth1", ["10.82.1.1/24", "fd82:1::1/64"]),
            (&other, "eth0", ["10.82.1.21/24", "fd82:1::21/64"]),
        ] {
            addresses.iter().for_each(|address| host.address(interface, address));
        }
        for host in [&node, &other] {
            for (key, value) in [
                ("net.ipv4.ip_forward", "1"),
                ("net.ipv6.conf.all.forwarding", "1"),
                // Every refusal is to be told.
                ("net.ipv4.icmp_ratelimit", "0"),
                ("net.ipv6.icmp.ratelimit", "0"),
            ] {
                host.sysctl(key, value);
            }
        }
        let own = |at: usize| (&pods[at], POD_ADDRESSES[at].2);
        bridge(lab, &node, &[own(0), own(1)], ["10.244.1.1", "fd00:244:1::1"]);
        bridge(lab, &other, &[own(2), own(3)], ["10.244.2.1", "fd00:244:2::1"]);
        for (host, routes) in [
            (&client, ["default via 10.81.1.1", "default via fd81:1::1"]),
            // What nobody on the node takes leaves it, and is lost.
            (&node, ["default via 10.81.1.2", "default via fd81:1::2"]),
            (&node, ["10.244.2.0/24 via 10.82.1.21", "fd00:244:2::/64 via fd82:1::21"]),
            (&other, ["default via 10.82.1.1", "default via fd82:1::1"]),
        ] {
            routes.iter().for_each(|route| host.route(route));
        }
        for (pod, (name, ..)) in pods.iter().zip(POD_ADDRESSES) {
            witness::stand(pod, name, &PORTS);
        }
        witness::stand(&other, OTHER.0, &PORTS);
        kubelab.wire(lab, &node, api.0, api.1);
        let own = ["10.81.1.1", "fd81:1::1", "10.82.1.1", "fd82:1::1", "10.244.1.1", "fd00:244:1::1"];
        let translated = own.iter().map(|address| address.parse().expect("an address")).collect();
        Self { client, node, pods, translated }
    }

    /// Who asks, and the addresses that it asks from past any Service.
    pub fn asker(&self, from: From) -> (Host, Vec<IpAddr>) {
        let parsed =
            |addresses: [&str; 2]| addresses.iter().map(|address| address.parse().expect("an address")).collect();
        match from {
            From::Client => (self.client.clone(), parsed(["10.81.1.2", "fd81:1::2"])),
            From::Chosen => (self.pods[0].clone(), parsed(POD_ADDRESSES[0].2)),
            From::Pod => (self.pods[1].clone(), parsed(POD_ADDRESSES[1].2)),
            From::Node => (self.node.clone(), Vec::new()),
        }
    }
}
