//! The networks that scenarios use: a client, a gateway and backends.
//!
//! ```text
//! two NICs:  client ── eth0 gateway eth1 ── switch ── b1 … bn
//!            10.81.1.2   .1 / .1             10.82.1.11 …
//! one NIC:   client ── switch ── eth0 gateway;  switch ── b1 … bn    all in 10.81.1.0/24
//! unruly:    as two NICs, with client ── m0 middle m1 ── eth0 gateway, and nothing that joins m0 and m1
//! ```

use std::net::{IpAddr, SocketAddr};

use crate::lab::{Host, Lab, Process};
use crate::servers;

/// As the Kubernetes documentation writes it: no type, no selector, a machine outside any cluster.
pub const MY_SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata:
  name: my-service
spec:
  ports:
  - protocol: TCP
    port: 80
    targetPort: 80
---
apiVersion: v1
kind: Endpoints
metadata:
  name: my-service
subsets:
- addresses:
  - ip: 1.2.3.4
  ports:
  - port: 9376
";

/// A client, a gateway and backends with nginx on port 8080 of each.
pub struct Network {
    /// Where requests come from.
    pub client: Host,
    /// Where Millrace runs.
    pub gateway: Host,
    /// `b1`, `b2` …, each answering its name.
    pub backends: Vec<Host>,
    /// Their servers.
    pub servers: Vec<Process>,
    /// Between client and gateway, where there is something: its interfaces are `m0` and `m1`.
    pub middle: Option<Host>,
    /// The gateway's interfaces.
    pub interfaces: Vec<&'static str>,
    one_nic: bool,
    /// Owns the namespaces: dropped last.
    pub lab: Lab,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    OneNic,
    TwoNics,
    Middle,
}

/// Wires the client to the middle and that to the gateway. What goes over them is whole frames with whole checksums.
fn join(lab: &Lab, [client, middle, gateway]: [&Host; 3], queues: u32) {
    middle.sysctl("net.ipv6.conf.all.disable_ipv6", "1");
    middle.sysctl("net.ipv6.conf.default.disable_ipv6", "1");
    lab.wire((client, "eth0"), (middle, "m0"), queues);
    lab.wire((gateway, "eth0"), (middle, "m1"), queues);
    for (host, interface) in [(client, "eth0"), (gateway, "eth0"), (middle, "m0"), (middle, "m1")] {
        host.run("ethtool", ["-K", interface, "tx", "off", "tso", "off", "gso", "off", "gro", "off"]);
    }
}

/// Gives client and gateway their addresses on `eth0`.
fn address(client: &Host, gateway: &Host) {
    for (host, number) in [(client, 2), (gateway, 1)] {
        host.address("eth0", &format!("10.81.1.{number}/24"));
        host.address("eth0", &format!("fd81:1::{number}/64"));
    }
}

/// Where the Service of [`Network::manifest`] is reached, IPv4.
pub const VIP: &str = "10.81.1.100";
/// Where the Service of [`Network::manifest`] is reached, IPv6.
pub const VIP6: &str = "fd81:1::100";

impl Network {
    /// A gateway with two NICs, `queues` queues each.
    #[must_use]
    pub fn two_nics(name: &str, backends: usize, queues: u32) -> Self {
        Self::new(name, backends, queues, Shape::TwoNics)
    }

    /// The same, and something must carry frames between client and gateway: an [`Unruly`](crate::unruly::Unruly) wire.
    #[must_use]
    pub fn with_middle(name: &str, backends: usize) -> Self {
        Self::new(name, backends, 1, Shape::Middle)
    }

    /// A gateway with one NIC of `queues` queues, everybody on one segment.
    #[must_use]
    pub fn one_nic(name: &str, backends: usize, queues: u32) -> Self {
        Self::new(name, backends, queues, Shape::OneNic)
    }

    /// Has what backends answer clients come through the gateway, which has two NICs: they see the clients' own addresses.
    pub fn route_backends_by_gateway(&self) {
        for backend in &self.backends {
            backend.route("default via 10.82.1.1");
            backend.route("default via fd82:1::1");
        }
    }

    /// Takes the NIC towards the client away and makes it anew, of a gateway with two NICs.
    pub fn replace_client_nic(&self, queues: u32) {
        self.gateway.run("ip", ["link", "del", "eth0"]);
        self.lab.wire((&self.client, "eth0"), (&self.gateway, "eth0"), queues);
        address(&self.client, &self.gateway);
    }

    fn new(name: &str, count: usize, queues: u32, shape: Shape) -> Self {
        let one_nic = shape == Shape::OneNic;
        servers::require(&["nginx", "ip", "nsenter", "curl", "ss", "nstat"]);
        let mut lab = Lab::new(name);
        let client = lab.host("client");
        let gateway = lab.host("gw");
        let switch = lab.host("switch");
        let middle = (shape == Shape::Middle).then(|| lab.host("middle"));
        let backends: Vec<Host> = (1..=count).map(|i| lab.host(&format!("b{i}"))).collect();
        switch.run("ip", ["link", "add", "br0", "type", "bridge"]);
        switch.run("ip", ["link", "set", "br0", "up"]);
        let plug = |host: &Host, interface: &str, port: &str| {
            lab.wire((host, interface), (&switch, port), queues);
            switch.run("ip", ["link", "set", port, "master", "br0"]);
        };
        if one_nic {
            plug(&client, "eth0", "client");
            plug(&gateway, "eth0", "gw");
        } else {
            match &middle {
                None => lab.wire((&client, "eth0"), (&gateway, "eth0"), queues),
                Some(middle) => join(&lab, [&client, middle, &gateway], queues),
            }
            plug(&gateway, "eth1", "gw");
            gateway.address("eth1", "10.82.1.1/24");
            gateway.address("eth1", "fd82:1::1/64");
        }
        address(&client, &gateway);
        let net = if one_nic { 81 } else { 82 };
        let mut processes = Vec::new();
        for (i, backend) in backends.iter().enumerate().map(|(i, b)| (i + 1, b)) {
            plug(backend, "eth0", &format!("b{i}"));
            backend.address("eth0", &format!("10.{net}.1.{}/24", 10 + i));
            backend.address("eth0", &format!("fd{net}:1::{}/64", 10 + i));
            let (v4, v6) = (format!("10.{net}.1.{}:8080", 10 + i), format!("[fd{net}:1::{}]:8080", 10 + i));
            processes.push(servers::nginx(backend, lab.dir(), &format!("b{i}"), &[&v4, &v6]));
        }
        let interfaces = if one_nic { vec!["eth0"] } else { vec!["eth0", "eth1"] };
        Self { client, gateway, backends, servers: processes, middle, interfaces, one_nic, lab }
    }

    /// A configuration for this network; `more` is added.
    #[must_use]
    pub fn config(&self, more: &str) -> String {
        let net = if self.one_nic { 81 } else { 82 };
        format!(
            "interfaces: [{}]\npools: [{{name: public, addresses: [10.81.1.96/28, \"fd81:1::100/124\"]}}]\n\
             snat: {{addresses: [10.{net}.1.100, \"fd{net}:1::1:100\"]}}\n{more}\n",
            self.interfaces.join(", ")
        )
    }

    /// Address of a backend (1-based).
    ///
    /// # Panics
    /// Never for a small number.
    #[must_use]
    pub fn backend_address(&self, number: usize, ipv6: bool) -> IpAddr {
        let net = if self.one_nic { 81 } else { 82 };
        let text = if ipv6 { format!("fd{net}:1::{}", 10 + number) } else { format!("10.{net}.1.{}", 10 + number) };
        text.parse().expect("an address")
    }

    /// A Service `default/dns` on port 53, UDP and TCP, at `address`, with the first two backends.
    #[must_use]
    pub fn dns_manifest(&self, address: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: dns\n  annotations:\n    \
             millrace.dev/addresses: {address}\nspec:\n  type: LoadBalancer\n  ports:\n  \
             - {{name: dns, port: 53, protocol: UDP}}\n  - {{name: dns-tcp, port: 53, protocol: TCP}}\n---\n\
             apiVersion: v1\nkind: Endpoints\nmetadata:\n  name: dns\nsubsets:\n\
             - addresses: [{{ip: {}}}, {{ip: {}}}]\n  ports:\n  - {{name: dns, port: 53, protocol: UDP}}\n  \
             - {{name: dns-tcp, port: 53, protocol: TCP}}\n",
            self.backend_address(1, false),
            self.backend_address(2, false)
        )
    }

    /// A dual-stack LoadBalancer Service `default/web` on port 80, TCP, at [`VIP`] and [`VIP6`], with these backends
    /// (1-based); `annotations` are lines of `key: value`.
    #[must_use]
    pub fn manifest(&self, numbers: &[usize], annotations: &[&str]) -> String {
        let notes: String = annotations.iter().map(|a| format!("    {a}\n")).collect();
        let addresses: String = [false, true]
            .iter()
            .flat_map(|v6| numbers.iter().map(move |n| (*n, *v6)))
            .map(|(n, v6)| format!("  - ip: \"{}\"\n", self.backend_address(n, v6)))
            .collect();
        let subsets = if numbers.is_empty() {
            "subsets: []\n".to_owned()
        } else {
            format!("subsets:\n- addresses:\n{addresses}  ports:\n  - port: 8080\n")
        };
        format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\n  annotations:\n    \
             millrace.dev/addresses: {VIP},{VIP6}\n{notes}\
             spec:\n  type: LoadBalancer\n  ipFamilyPolicy: RequireDualStack\n  ipFamilies: [IPv4, IPv6]\n  \
             ports:\n  - port: 80\n    targetPort: 8080\n---\n\
             apiVersion: v1\nkind: Endpoints\nmetadata:\n  name: web\n{subsets}"
        )
    }

    /// Where `default/web` is reached.
    ///
    /// # Panics
    /// Never.
    #[must_use]
    pub fn vip(&self, ipv6: bool) -> SocketAddr {
        SocketAddr::new(if ipv6 { VIP6 } else { VIP }.parse().expect("an address"), 80)
    }
}
