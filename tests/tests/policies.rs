//! The policies of Services on nodes of a cluster, pods behind bridges: a real API server, the real controllers, real TCP.
//!
//! ```text
//! c1, c2 ── switch ── n1 ── cni0 ── p1, p2         all of the switch in 10.81.1.0/24
//!             ├────── n2 ── cni0 ── p3
//!             ├────── n3 (p4 itself; kube-proxy in place of Millrace)
//!             └────── machine, outside the cluster
//! ```
//! c1 comes to the Services' addresses by n1, c2 by n2: routes, as a routing daemon would make them. n1 and n2 are in one
//! zone, n3 in another.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use millrace_tests::kubelab::{Kubelab, Pod};
use millrace_tests::lab::{Host, Lab, Process};
use millrace_tests::load;
use millrace_tests::millrace::Gateway;
use millrace_tests::servers;
use millrace_tests::wait::eventually;
use nix::sys::signal::Signal;

/// How long a change may take to be in force on a busy machine.
const SOON: Duration = Duration::from_secs(60);
/// Requests by which all of a few servers are met.
const MANY: usize = 60;

/// What a client comes to.
enum Come {
    /// All of these answer, and see another address than the client's.
    To(&'static [&'static str]),
    /// All of these answer, and see the client's own address.
    Known(&'static [&'static str]),
    /// Refused at once.
    Refused,
    /// Left without an answer.
    Nowhere,
}
use Come::{Known, Nowhere, Refused, To};

const ALL: &[&str] = &["p1", "p2", "p3", "p4"];

/// A Service and what comes of it.
struct Shape {
    name: &'static str,
    /// Keys of its specification, in YAML's flow style.
    spec: &'static str,
    /// From c1 and c2.
    come: [Come; 2],
    /// What its `healthCheckNodePort` says on n1 and n2: code and weight.
    health: Option<[(u16, usize); 2]>,
}

/// Their places are the last octets of their addresses, from 1.
const SHAPES: &[Shape] = &[
    Shape { name: "cluster", spec: "selector: {app: web}", come: [To(ALL), To(ALL)], health: None },
    Shape {
        name: "local",
        spec: "selector: {app: web}, externalTrafficPolicy: Local, healthCheckNodePort: 32002",
        come: [Known(&["p1", "p2"]), Known(&["p3"])],
        health: Some([(200, 2), (200, 1)]),
    },
    Shape {
        name: "local-on-n1",
        spec: "selector: {app: one}, externalTrafficPolicy: Local, healthCheckNodePort: 32003",
        come: [Known(&["p1", "p2"]), Nowhere],
        health: Some([(200, 2), (503, 0)]),
    },
    Shape {
        name: "zone",
        spec: "selector: {app: web}, trafficDistribution: PreferSameZone",
        come: [To(&["p1", "p2", "p3"]), To(&["p1", "p2", "p3"])],
        health: None,
    },
    Shape {
        name: "node",
        spec: "selector: {app: web}, trafficDistribution: PreferSameNode",
        come: [To(&["p1", "p2"]), To(&["p3"])],
        health: None,
    },
    Shape {
        name: "ranges",
        spec: "selector: {app: web}, loadBalancerSourceRanges: [10.81.1.2/32, \"fd81:1::2/128\"]",
        come: [To(ALL), Nowhere],
        health: None,
    },
    Shape {
        name: "no-node-ports",
        spec: "selector: {app: web}, allocateLoadBalancerNodePorts: false",
        come: [To(ALL), To(ALL)],
        health: None,
    },
    Shape { name: "outside", spec: "", come: [To(&["machine"]), To(&["machine"])], health: None },
    Shape { name: "nobody", spec: "selector: {app: nobody}", come: [Refused, Refused], health: None },
    Shape { name: "unready", spec: "selector: {app: unready}", come: [Refused, Refused], health: None },
    Shape {
        name: "published",
        spec: "selector: {app: unready}, publishNotReadyAddresses: true",
        come: [To(&["p2"]), To(&["p2"])],
        health: None,
    },
    Shape {
        name: "leaving",
        spec: "selector: {app: leaving}, externalTrafficPolicy: Local, healthCheckNodePort: 32012",
        come: [Known(&["p1"]), Known(&["p3"])],
        health: Some([(200, 1), (200, 1)]),
    },
    Shape {
        name: "leaving-cluster",
        spec: "selector: {app: leaving}",
        come: [To(&["p1", "p3"]), To(&["p1", "p3"])],
        health: None,
    },
    Shape { name: "itself", spec: "selector: {app: itself}", come: [To(&["p1"]), To(&["p1"])], health: None },
];
/// A Service with session affinity, beside those.
const STICKY: u8 = 100;

/// A Pod by name, app and which server it stands for. One server may be several Pods: there is no kubelet.
const PODS: &[(&str, &str, &str)] = &[
    ("p1", "web", "p1"),
    ("p2", "web", "p2"),
    ("p3", "web", "p3"),
    ("p4", "web", "p4"),
    ("one-1", "one", "p1"),
    ("one-2", "one", "p2"),
    ("unready", "unready", "p2"),
    ("leaving-1", "leaving", "p1"),
    ("leaving-3", "leaving", "p3"),
    ("itself", "itself", "p1"),
];

/// The node and the addresses of a server.
fn place(server: &str) -> (&'static str, [&'static str; 2]) {
    match server {
        "p1" => ("n1", ["10.244.1.5", "fd00:244:1::5"]),
        "p2" => ("n1", ["10.244.1.6", "fd00:244:1::6"]),
        "p3" => ("n2", ["10.244.2.5", "fd00:244:2::5"]),
        "p4" => ("n3", ["10.244.3.5", "fd00:244:3::5"]),
        _ => ("", ["10.81.1.40", "fd81:1::40"]),
    }
}

fn vip(number: usize, ipv6: bool) -> SocketAddr {
    let text = if ipv6 { format!("fd90::{number:x}") } else { format!("10.90.0.{number}") };
    SocketAddr::new(text.parse().expect("an address"), 80)
}

fn number(name: &str) -> usize {
    1 + SHAPES.iter().position(|shape| shape.name == name).expect("a Service")
}

fn service(name: &str, number: usize, spec: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, annotations: {{millrace.dev/addresses: \"{},{}\"}}}}\n\
         spec: {{type: LoadBalancer, ipFamilyPolicy: RequireDualStack, ports: [{{port: 80, targetPort: 8080}}]{}{spec}}}\n",
        vip(number, false).ip(),
        vip(number, true).ip(),
        if spec.is_empty() { "" } else { ", " },
    )
}

struct Cluster {
    // Dropped in this order.
    _kube_proxy: Process,
    processes: Vec<Process>,
    nodes: Vec<Gateway>,
    kubelab: Kubelab,
    _servers: Vec<Process>,
    clients: Vec<Host>,
    /// A pod of n1, and one of n2.
    pod: Host,
    other_pod: Host,
    _lab: Lab,
}

impl Cluster {
    fn new() -> Self {
        servers::require(&["nginx", "ip", "nft", "nsenter", "curl"]);
        let mut lab = Lab::new("policies");
        let names = ["switch", "c1", "c2", "n1", "n2", "n3", "machine", "p1", "p2", "p3"];
        let hosts: Vec<Host> = names.iter().map(|name| lab.host(name)).collect();
        let host = |name: &str| hosts[names.iter().position(|known| *known == name).expect("a host")].clone();
        let switch = host("switch");
        switch.run("ip", ["link", "add", "br0", "type", "bridge"]);
        switch.run("ip", ["link", "set", "br0", "up"]);
        for (name, last) in [("c1", 2), ("c2", 3), ("n1", 21), ("n2", 22), ("n3", 23), ("machine", 40)] {
            lab.wire((&host(name), "eth0"), (&switch, name), 1);
            switch.run("ip", ["link", "set", name, "master", "br0"]);
            host(name).address("eth0", &format!("10.81.1.{last}/24"));
            host(name).address("eth0", &format!("fd81:1::{last}/64"));
        }
        let pods = [("p1", "n1", 1), ("p2", "n1", 1), ("p3", "n2", 2)];
        for (pod, node, number) in pods {
            behind_bridge(&lab, &host(pod), (pod, &host(node), number));
        }
        host("n3").address("eth0", "10.244.3.5/32");
        host("n3").address("eth0", "fd00:244:3::5/128");
        for (from, to, last) in [("n1", 2, 22), ("n1", 3, 23), ("n2", 1, 21), ("n2", 3, 23)] {
            host(from).route(&format!("10.244.{to}.0/24 via 10.81.1.{last}"));
            host(from).route(&format!("fd00:244:{to}::/64 via fd81:1::{last}"));
        }
        for (client, last) in [("c1", 21), ("c2", 22)] {
            host(client).route(&format!("10.90.0.0/24 via 10.81.1.{last}"));
            host(client).route(&format!("fd90::/64 via fd81:1::{last}"));
        }
        let serve = |(name, host): (&str, &Host)| {
            let (_, [v4, v6]) = place(name);
            servers::nginx(host, lab.dir(), name, &[&format!("{v4}:8080"), &format!("[{v6}]:8080")])
        };
        let at = [("p1", "p1"), ("p2", "p2"), ("p3", "p3"), ("p4", "n3"), ("machine", "machine")];
        let servers = at.iter().map(|(name, at)| serve((name, &host(at)))).collect();
        let kubelab = Kubelab::start(&mut lab, &[]);
        for (node, zone) in [("n1", "a"), ("n2", "a"), ("n3", "b")] {
            kubelab.node(node, zone);
        }
        kubelab.wire(&lab, &host("n3"), "api3", "10.77.0.4");
        let addresses =
            ["10.81.1.23", "fd81:1::23"].map(|ip| format!("{{\"type\": \"InternalIP\", \"address\": \"{ip}\"}}"));
        kubelab.patch_status("node/n3", &format!("{{\"addresses\": [{}]}}", addresses.join(", ")));
        let kube_proxy = kubelab.kube_proxy(&host("n3"), "n3", &["10.244.0.0/16", "fd00:244::/32"]);
        let nodes = (1..=2).map(|number| node(&lab, &kubelab, &host(&format!("n{number}")), number)).collect();
        let clients = vec![host("c1"), host("c2")];
        let [pod, other_pod] = ["p1", "p3"].map(host);
        Self {
            _kube_proxy: kube_proxy,
            processes: Vec::new(),
            nodes,
            kubelab,
            _servers: servers,
            clients,
            pod,
            other_pod,
            _lab: lab,
        }
    }

    /// Makes Services and Pods.
    fn populate(&self) {
        let services = SHAPES.iter().enumerate().map(|(at, shape)| service(shape.name, at + 1, shape.spec));
        let sticky =
            "selector: {app: web}, sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 4}}";
        let machine = "---\napiVersion: v1\nkind: Endpoints\nmetadata: {name: outside}\nsubsets:\n\
                       - {addresses: [{ip: 10.81.1.40}, {ip: \"fd81:1::40\"}], ports: [{port: 8080}]}\n";
        let all: String =
            services.chain([service("sticky", usize::from(STICKY), sticky), machine.to_owned()]).collect();
        self.kubelab.create(&all);
        for (name, app, server) in PODS {
            let (node, addresses) = place(server);
            self.kubelab.pod(&Pod { name, app, node, addresses: &addresses });
        }
        self.kubelab.ready("unready", false);
    }

    /// What is to come of a Service comes, from each client and in each family.
    fn come(&self, name: &str, come: &[Come; 2]) {
        for (client, come) in self.clients.iter().zip(come) {
            for ipv6 in [false, true] {
                let what = format!("{name} from {}, ipv6 {ipv6}", client.netns);
                eventually(&what, SOON, || comes(client, vip(number(name), ipv6), come));
            }
        }
    }

    /// What n1 and n2 say of a `healthCheckNodePort`.
    fn says(&self, port: u16, expected: &[(u16, usize); 2]) {
        for (node, (code, weight)) in expected.iter().enumerate() {
            for address in [format!("10.81.1.{}", 21 + node), format!("[fd81:1::{}]", 21 + node)] {
                let url = format!("http://{address}:{port}/any/path");
                eventually(&url, SOON, || {
                    let said = self.health(&url);
                    let right = format!(
                        "\"localEndpoints\":{weight},\"serviceProxyHealthy\":true}}\n{code} {weight} nosniff application/json"
                    );
                    if said.ends_with(&right) { Ok(()) } else { Err(format!("{said}, not {right}")) }
                });
            }
        }
    }

    /// Body, code and headers.
    fn health(&self, url: &str) -> String {
        let format =
            "%{http_code} %header{x-load-balancing-endpoint-weight} %header{x-content-type-options} %{content_type}";
        let output = self.clients[0].output("curl", ["-gs", "--max-time", "10", "-w", format, url]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

/// A pod behind the bridge of its node, which is made if it is not there.
fn behind_bridge(lab: &Lab, pod: &Host, (name, node, number): (&str, &Host, usize)) {
    if !node.output("ip", ["link", "show", "cni0"]).status.success() {
        node.run("ip", ["link", "add", "cni0", "type", "bridge"]);
        node.run("ip", ["link", "set", "cni0", "up"]);
        node.address("cni0", &format!("10.244.{number}.1/24"));
        node.address("cni0", &format!("fd00:244:{number}::1/64"));
    }
    lab.wire((node, name), (pod, "eth0"), 1);
    node.run("ip", ["link", "set", name, "master", "cni0"]);
    let (_, [v4, v6]) = place(name);
    pod.address("eth0", &format!("{v4}/24"));
    pod.address("eth0", &format!("{v6}/64"));
    pod.route(&format!("default via 10.244.{number}.1"));
    pod.route(&format!("default via fd00:244:{number}::1"));
}

fn node(lab: &Lab, kubelab: &Kubelab, host: &Host, number: usize) -> Gateway {
    kubelab.wire(lab, host, &format!("api{number}"), &format!("10.77.0.{}", number + 1));
    let config = format!(
        "interfaces: [eth0]\npools: [{{name: public, addresses: [10.90.0.0/24, \"fd90::/112\"]}}]\n\
         snat: {{addresses: [10.81.1.20{number}, \"fd81:1::20{number}\"]}}\n\
         kernelPort: {{snat: [10.244.{number}.250, \"fd00:244:{number}::250\"]}}\nannounce: [{{mode: none}}]\n\
         kubernetes: {{kubeconfig: {}, healthCheckNodePorts: on}}\nnode: {{hostname: n{number}}}\n",
        kubelab.kubeconfig().display(),
    );
    Gateway::new(host, &lab.dir().join(format!("n{number}")), &config)
}

/// Whether this comes of asking.
fn comes(client: &Host, target: SocketAddr, come: &Come) -> Result<(), String> {
    let url = format!("http://{target}/");
    let (names, known) = match come {
        To(names) => (names, false),
        Known(names) => (names, true),
        Refused | Nowhere => {
            let code = if matches!(come, Refused) { "exit status: 7" } else { "exit status: 28" };
            return match servers::who(client, &url, 1) {
                Err(error) if error.ends_with(code) => Ok(()),
                other => Err(format!("{other:?}, not {code}")),
            };
        }
    };
    answer(client, target, names)?;
    let own = client.run("ip", ["-o", "addr", "show", "dev", "eth0", "scope", "global"]);
    let (_, seen) = servers::who(client, &url, 5)?;
    if own.contains(&format!(" {seen}/")) == known { Ok(()) } else { Err(format!("they see {seen}")) }
}

/// Whether all of these answer, and nobody else.
fn answer(client: &Host, target: SocketAddr, names: &[&str]) -> Result<(), String> {
    let outcome = load::requests(client, target, MANY, 4);
    let by: Vec<&str> = outcome.by_server.keys().map(String::as_str).collect();
    if outcome.failures.is_empty() && by == names { Ok(()) } else { Err(format!("{outcome:?}, not {names:?}")) }
}

#[test]
fn each_policy_does_on_two_nodes_with_pods_behind_bridges_what_it_says() {
    let mut cluster = Cluster::new();
    let taken = taken(&cluster.nodes[1].host);
    cluster.populate();
    cluster.processes = cluster.nodes.iter_mut().map(Gateway::launch).collect();
    for (gateway, process) in cluster.nodes.iter().zip(&mut cluster.processes) {
        gateway.await_ready(process);
    }
    who_comes_too_late_is_told_once_and_gets_the_port_in_the_end(&cluster, taken);
    for shape in SHAPES {
        cluster.come(shape.name, &shape.come);
        let port = cluster.kubelab.kubectl(&["get", "service", shape.name, "-o=jsonpath={.spec.healthCheckNodePort}"]);
        assert_eq!(port.is_empty(), shape.health.is_none(), "{}", shape.name);
        if let Some(health) = &shape.health {
            cluster.says(port.parse().expect("a port"), health);
        }
    }
    let path = "-o=jsonpath={.spec.ports[*].nodePort}";
    assert_eq!(cluster.kubelab.kubectl(&["get", "service", "no-node-ports", path]), "");
    health_is_told_as_kube_proxy_does(&cluster);
    from_within(&cluster);
    from_where_no_endpoint_is(&cluster);
    what_only_terminates_serves_and_is_not_told(&cluster);
    affinity_holds_and_ends(&cluster);
    health_checks_live_as_long_as_their_service(&mut cluster);
}

/// Has a port of `local` in use on a host.
fn taken(host: &Host) -> TcpListener {
    host.within(|| TcpListener::bind("0.0.0.0:32002").expect("the port is free")).join().expect("it listens")
}

fn who_comes_too_late_is_told_once_and_gets_the_port_in_the_end(cluster: &Cluster, taken: TcpListener) {
    let said = || cluster.nodes[1].log_text().matches("healthCheckNodePort is not answered here").count();
    eventually("it is said", SOON, || if said() == 1 { Ok(()) } else { Err(cluster.nodes[1].log_text()) });
    drop(taken);
    cluster.says(32002, &[(200, 2), (200, 1)]);
    assert_eq!(said(), 1);
}

/// n3 has as many endpoints as n2.
fn health_is_told_as_kube_proxy_does(cluster: &Cluster) {
    for port in [32002, 32003] {
        eventually("kube-proxy says the same", SOON, || {
            let [ours, theirs] = [22, 23].map(|last| {
                let said = cluster.health(&format!("http://10.81.1.{last}:{port}/"));
                let (body, rest) =
                    said.rsplit_once('}').map(|(body, rest)| (format!("{body}}}"), rest.trim().to_owned()))?;
                Some((serde_json::from_str::<serde_json::Value>(&body).ok()?, rest))
            });
            if ours.is_some() && ours == theirs { Ok(()) } else { Err(format!("{ours:?} and {theirs:?}")) }
        });
    }
}

/// The node itself and its pods, the chosen one too.
fn from_within(cluster: &Cluster) {
    let here: &[&str] = &["p1", "p2"];
    for (name, names) in
        [("cluster", ALL), ("local", here), ("node", here), ("outside", &["machine"]), ("itself", &["p1"])]
    {
        for host in [&cluster.nodes[0].host, &cluster.pod] {
            for ipv6 in [false, true] {
                let what = format!("{name} from {}, ipv6 {ipv6}", host.netns);
                eventually(&what, SOON, || answer(host, vip(number(name), ipv6), names));
            }
        }
    }
}

/// A node and its pods that have no endpoint of policy Local themselves reach those of other nodes, as any client does.
fn from_where_no_endpoint_is(cluster: &Cluster) {
    let [_, without] = &cluster.nodes[..] else { unreachable!("two") };
    // As a router would have it that knows who announces it.
    for (address, via) in [("10.90.0.3/32", "10.81.1.21"), ("fd90::3/128", "fd81:1::21")] {
        without.host.route(&format!("{address} via {via}"));
    }
    for host in [&without.host, &cluster.other_pod] {
        for ipv6 in [false, true] {
            let what = format!("local-on-n1 from {}, ipv6 {ipv6}", host.netns);
            eventually(&what, SOON, || answer(host, vip(number("local-on-n1"), ipv6), &["p1", "p2"]));
        }
    }
}

/// Pods that are to be deleted serve while nobody else does; load balancers are told to go elsewhere.
fn what_only_terminates_serves_and_is_not_told(cluster: &Cluster) {
    let leave = |pod: &str| cluster.kubelab.kubectl(&["delete", "--wait=false", "pod", pod]);
    leave("leaving-1");
    cluster.come("leaving-cluster", &[To(&["p3"]), To(&["p3"])]);
    cluster.come("leaving", &[Known(&["p1"]), Known(&["p3"])]);
    cluster.says(32012, &[(503, 0), (200, 1)]);
    leave("leaving-3");
    cluster.come("leaving-cluster", &[To(&["p1", "p3"]), To(&["p1", "p3"])]);
    cluster.come("leaving", &[Known(&["p1"]), Known(&["p3"])]);
    cluster.says(32012, &[(503, 0), (503, 0)]);
    cluster.kubelab.kubectl(&["delete", "--force", "--grace-period=0", "pod", "leaving-1"]);
    cluster.come("leaving-cluster", &[To(&["p3"]), To(&["p3"])]);
    cluster.come("leaving", &[Nowhere, Known(&["p3"])]);
}

/// A client stays where it is, although it would go elsewhere now, until it is silent for long enough.
fn affinity_holds_and_ends(cluster: &Cluster) {
    let retries = || cluster.nodes[0].metric("millrace_connect_retries_total", "");
    let (before, home) = (retries(), explained(cluster));
    eventually("affinity holds and ends", 4 * SOON, || {
        let held = affinity(cluster, &home);
        // Affinity follows who won a connection that was not answered in time, as happens on a busy machine.
        assert!(held.is_ok() || retries() != before, "{held:?}");
        held
    });
}

/// Where a client goes that asks now.
fn explained(cluster: &Cluster) -> serde_json::Value {
    let target = format!("{}/tcp", vip(usize::from(STICKY), false));
    cluster.nodes[0].json(&["explain", "10.81.1.2:40000", &target])["endpoint"].clone()
}

/// `home` is where a client goes of which nothing is known.
fn affinity(cluster: &Cluster, home: &serde_json::Value) -> Result<(), String> {
    let (client, target) = (&cluster.clients[0], vip(usize::from(STICKY), false));
    let await_home = || {
        eventually("nothing is known of the client", SOON, || {
            let endpoint = explained(cluster);
            if endpoint == *home { Ok(()) } else { Err(endpoint.to_string()) }
        });
    };
    let only = || -> Result<String, String> {
        let outcome = load::requests(client, target, 20, 4);
        let by: BTreeSet<String> = outcome.by_server.keys().cloned().collect();
        if outcome.failures.is_empty() && by.len() == 1 {
            Ok(by.into_iter().collect())
        } else {
            Err(format!("{outcome:?}"))
        }
    };
    await_home();
    let first = eventually("a client has one server", SOON, only);
    let of_first = format!("{}:8080", place(&first).1[0]);
    if *home != of_first {
        return Err(format!("{of_first}, not {home}"));
    }
    cluster.kubelab.ready(&first, false);
    let second = eventually("another server takes it", SOON, || {
        only().and_then(|by| if by == first { Err(by) } else { Ok(by) })
    });
    // Meanwhile it is not silent, however long that takes.
    let asks = load::steady(client, target, 1);
    cluster.kubelab.ready(&first, true);
    eventually("the first one is back", SOON, || {
        let backends = cluster.nodes[0].json(&["backends", "--service", "default/sticky"]);
        let back = |one: &serde_json::Value| one["address"] == place(&first).1[0] && one["state"] == "usable";
        if backends.as_array().expect("a list").iter().any(back) { Ok(()) } else { Err(backends.to_string()) }
    });
    asks.await_answers(20, SOON);
    let meanwhile = asks.finish();
    if !meanwhile.failures.is_empty() || !meanwhile.by_server.keys().eq([&second]) {
        return Err(format!("not {second} alone: {:?}, {:?}", meanwhile.by_server, meanwhile.failures));
    }
    await_home();
    let last = only()?;
    if last == first { Ok(()) } else { Err(format!("{last}, not {first}")) }
}

/// Over an upgrade and a kill, under idle connections, and not longer.
fn health_checks_live_as_long_as_their_service(cluster: &mut Cluster) {
    let expected = [(200, 2), (200, 1)];
    let target: SocketAddr = "10.81.1.21:32002".parse().expect("an address");
    let asks = load::steady(&cluster.clients[0], target, 1);
    asks.await_answers(50, SOON);
    let successor = cluster.nodes[0].start();
    let mut former = std::mem::replace(&mut cluster.processes[0], successor);
    assert!(former.wait(SOON).is_some_and(|status| status.success()), "{}", cluster.nodes[0].log_text());
    asks.await_answers(50, SOON);
    let outcome = asks.finish();
    // What is in the queue of the one that ends is lost with it.
    assert!(outcome.failures.values().sum::<u64>() <= 1, "{outcome:?}");
    cluster.processes[0].signal(Signal::SIGKILL);
    assert!(cluster.processes[0].wait(SOON).is_some());
    cluster.processes[0] = cluster.nodes[0].start();
    cluster.says(32002, &expected);
    let idle = cluster.clients[0].within(move || -> Vec<TcpStream> {
        (0..300).map(|_| TcpStream::connect(target).expect("a place in the queue")).collect()
    });
    let idle = idle.join().expect("who says nothing");
    cluster.says(32002, &expected);
    drop(idle);
    let policy = |policy: &str, port: u16| {
        let patch =
            format!("{{\"spec\": {{\"externalTrafficPolicy\": \"{policy}\", \"healthCheckNodePort\": {port}}}}}");
        cluster.kubelab.kubectl(&["patch", "service", "local", "-p", &patch]);
    };
    let closed = |port: u16| {
        eventually("nobody listens any more", SOON, || {
            let url = format!("http://10.81.1.21:{port}/");
            let said = servers::who(&cluster.clients[0], &url, 5);
            if said.as_ref().is_err_and(|error| error.ends_with("exit status: 7")) {
                Ok(())
            } else {
                Err(format!("{said:?}"))
            }
        });
    };
    policy("Cluster", 0);
    closed(32002);
    policy("Local", 32099);
    cluster.says(32099, &expected);
    for (gateway, process) in cluster.nodes.iter().zip(&mut cluster.processes) {
        assert!(gateway.admin(&["stop"]).status.success(), "{}", gateway.log_text());
        assert!(process.wait(SOON).is_some());
    }
    closed(32099);
}
