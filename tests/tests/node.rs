//! A node without kube-proxy: ClusterIPs and NodePorts for its pods, for its own processes and for clients outside, with a
//! real control plane. The API server runs on the node itself, and pods reach it by its ClusterIP.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use millrace_tests::datagrams;
use millrace_tests::kubelab::{Kubelab, Pod};
use millrace_tests::lab::{Host, Lab, Process};
use millrace_tests::load;
use millrace_tests::millrace::Gateway;
use millrace_tests::servers;
use millrace_tests::wait::eventually;
use nix::sys::signal::Signal;

/// How long a change may take to be in force on a busy machine.
const SOON: Duration = Duration::from_secs(60);
/// What is dropped is not answered within this.
const SILENCE: Duration = Duration::from_secs(1);
const OWN: [&str; 2] = ["10.81.1.1", "fd81:1::1"];
const CLIENT: [&str; 2] = ["10.81.1.2", "fd81:1::2"];
const API_SERVER: &str = "10.96.0.1";
/// Who answers for the Service `web`: behind the bridge, with a routed veth, on the other node, in the node's own network.
const WEB: [&str; 4] = ["bridged", "far", "own", "routed"];
/// ClusterIPs of Services.
const ADDRESSES: [(&str, [&str; 2]); 7] = [
    ("web", ["10.96.1.1", "fd00:10:96::101"]),
    ("alone", ["10.96.1.2", "fd00:10:96::102"]),
    ("none", ["10.96.1.3", "fd00:10:96::103"]),
    ("outside", ["10.96.1.4", "fd00:10:96::104"]),
    ("distant", ["10.96.1.5", "fd00:10:96::105"]),
    ("held", ["10.96.1.6", "fd00:10:96::106"]),
    ("beyond", ["10.96.1.7", "fd00:10:96::107"]),
];

/// ```text
/// client ── switch ── eth0 node ── cni0 (bridge) ── bridged, alone
///            │              ├── cali0 (routed veth) ── routed
///            │              └── itself: own, and the API server
///            └── node2: far, in its network
/// ```
struct Cluster {
    // Dropped in this order: the lab has the control plane's host, which is the node.
    kubelab: Kubelab,
    gateway: Gateway,
    client: Host,
    node: Host,
    bridged: Host,
    alone: Host,
    routed: Host,
    before: Vec<String>,
    _servers: Vec<Process>,
    _lab: Lab,
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().expect("an address"), port)
}

/// Where a Service is, in one family.
fn cluster_ip(service: &str, ipv6: bool, port: u16) -> SocketAddr {
    let (_, both) = ADDRESSES.iter().find(|(name, _)| *name == service).expect("a Service");
    at(both[usize::from(ipv6)], port)
}

/// The node's pods, as a bridge plugin and as Calico wire them.
fn pods(lab: &Lab, node: &Host, [bridged, alone, routed]: [&Host; 3]) {
    node.run("ip", ["link", "add", "cni0", "type", "bridge"]);
    node.run("ip", ["link", "set", "cni0", "up"]);
    for address in ["10.244.1.1/24", "fd00:244:1::1/64"] {
        node.address("cni0", address);
    }
    for (pod, wire, last) in [(bridged, "veth-b", 5), (alone, "veth-a", 6)] {
        lab.wire((node, wire), (pod, "eth0"), 1);
        node.run("ip", ["link", "set", wire, "master", "cni0"]);
        for (address, router) in
            [(format!("10.244.1.{last}/24"), "10.244.1.1"), (format!("fd00:244:1::{last}/64"), "fd00:244:1::1")]
        {
            pod.address("eth0", &address);
            pod.route(&format!("default via {router}"));
        }
    }
    lab.wire((node, "cali0"), (routed, "eth0"), 1);
    node.sysctl("net.ipv4.conf.cali0.proxy_arp", "1");
    node.sysctl("net.ipv4.neigh.cali0.proxy_delay", "0");
    node.address("cali0", "fe80::1/64");
    routed.address("eth0", "10.244.3.7/32");
    routed.address("eth0", "fd00:244:3::7/128");
    routed.route("169.254.1.1 dev eth0 scope link");
    routed.route("default via 169.254.1.1");
    routed.route("default via fe80::1 dev eth0");
    node.route("10.244.3.7/32 dev cali0");
    node.route("fd00:244:3::7/128 dev cali0");
}

/// A Service of both families; `spec` is what it has besides.
fn service(name: &str, spec: &str) -> String {
    let (_, [v4, v6]) = ADDRESSES.iter().find(|(known, _)| *known == name).expect("a Service");
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  ipFamilyPolicy: RequireDualStack\n  \
         ipFamilies: [IPv4, IPv6]\n  clusterIP: {v4}\n  clusterIPs: [{v4}, \"{v6}\"]\n  {spec}\n---\n"
    )
}

/// All Services, and what no Pod is behind.
fn services() -> String {
    let web = "type: NodePort\n  selector: {app: web}\n  ports:\n  \
               - {name: http, port: 80, targetPort: 8080, nodePort: 30080}\n  \
               - {name: echo, port: 7, targetPort: 7000, protocol: UDP, nodePort: 30007}";
    let ports = "ports: [{port: 80, targetPort: 8080";
    [
        service("web", web),
        service("alone", &format!("selector: {{app: alone}}\n  {ports}}}]")),
        service("none", &format!("type: NodePort\n  selector: {{app: none}}\n  {ports}, nodePort: 30081}}]")),
        service("outside", &format!("{ports}}}]")),
        service("distant", &format!("internalTrafficPolicy: Local\n  selector: {{app: distant}}\n  {ports}}}]")),
        service(
            "beyond",
            &format!(
                "type: NodePort\n  externalTrafficPolicy: Local\n  selector: {{app: distant}}\n  \
                 {ports}, nodePort: 30082}}]"
            ),
        ),
        service("held", &format!("sessionAffinity: ClientIP\n  selector: {{app: web}}\n  {ports}}}]")),
        format!(
            "apiVersion: v1\nkind: Endpoints\nmetadata: {{name: outside}}\n\
             subsets: [{{addresses: [{{ip: {}}}, {{ip: \"{}\"}}], ports: [{{port: 8080}}]}}]\n",
            CLIENT[0], CLIENT[1]
        ),
    ]
    .concat()
}

impl Cluster {
    fn new() -> Self {
        servers::require(&["nginx", "ip", "nft", "nsenter", "curl", "ss", "ping", "sysctl"]);
        let mut lab = Lab::new("node");
        let kubelab = Kubelab::start(&mut lab, &[]);
        let node = kubelab.host.clone();
        let hosts: Vec<Host> =
            ["client", "switch", "node2", "bridged", "alone", "routed"].iter().map(|name| lab.host(name)).collect();
        let [client, switch, node2, bridged, alone, routed] = hosts.try_into().unwrap_or_else(|_| unreachable!("six"));
        node.sysctl("net.ipv4.conf.all.rp_filter", "1");
        node.sysctl("net.ipv4.conf.default.rp_filter", "1");
        node.sysctl("net.ipv4.ip_forward", "1");
        node.sysctl("net.ipv6.conf.all.forwarding", "1");
        switch.run("ip", ["link", "add", "br0", "type", "bridge"]);
        switch.run("ip", ["link", "set", "br0", "up"]);
        for (host, port, [v4, v6]) in
            [(&node, "p0", OWN), (&client, "p1", CLIENT), (&node2, "p2", ["10.81.1.21", "fd81:1::21"])]
        {
            lab.wire((host, "eth0"), (&switch, port), 1);
            switch.run("ip", ["link", "set", port, "master", "br0"]);
            host.address("eth0", &format!("{v4}/24"));
            host.address("eth0", &format!("{v6}/64"));
        }
        node.route("default via 10.81.1.254");
        // Who looks for ClusterIPs on the link finds nobody.
        client.route("10.96.0.0/16 dev eth0");
        pods(&lab, &node, [&bridged, &alone, &routed]);
        kubelab.node("n1", "a");
        kubelab.node("n2", "a");
        let internal = |ip: &str| format!("{{\"type\": \"InternalIP\", \"address\": \"{ip}\"}}");
        let addresses = format!("{{\"addresses\": [{}, {}]}}", internal(OWN[0]), internal(OWN[1]));
        kubelab.patch_status("node/n1", &addresses);
        kubelab.apply(&services());
        let backends: [(&str, &str, &str, &Host, [&str; 2]); 6] = [
            ("bridged", "web", "n1", &bridged, ["10.244.1.5", "fd00:244:1::5"]),
            ("routed", "web", "n1", &routed, ["10.244.3.7", "fd00:244:3::7"]),
            ("far", "web", "n2", &node2, ["10.81.1.21", "fd81:1::21"]),
            ("own", "web", "n1", &node, OWN),
            ("alone", "alone", "n1", &alone, ["10.244.1.6", "fd00:244:1::6"]),
            ("distant", "distant", "n2", &node2, ["10.81.1.21", "fd81:1::21"]),
        ];
        let mut servers = Vec::new();
        for (name, app, of, host, addresses) in backends {
            kubelab.pod(&Pod { name, app, node: of, addresses: &addresses });
            if name == "distant" {
                continue;
            }
            let listen = [format!("{}:8080", addresses[0]), format!("[{}]:8080", addresses[1])];
            servers.push(servers::nginx(host, lab.dir(), name, &[&listen[0], &listen[1]]));
            addresses.iter().for_each(|address| datagrams::echo(host, at(address, 7000)));
        }
        servers.push(servers::nginx(&client, lab.dir(), "outside", &["10.81.1.2:8080", "[fd81:1::2]:8080"]));
        let config = format!(
            "interfaces: [eth0]\nkubernetes: {{kubeconfig: {}}}\nannounce: [{{mode: none}}]\nnode: {{hostname: n1}}\n\
             serve: [loadBalancer, clusterIP, nodePort]\nsnat: {{addresses: [10.81.1.201, \"fd81:1::201\"]}}\n\
             kernelPort: {{snat: [10.244.1.250, \"fd00:244:1::250\"]}}\n",
            kubelab.kubeconfig().display()
        );
        let gateway = Gateway::new(&node, lab.dir(), &config);
        let before = state(&node);
        Self { kubelab, gateway, client, node, bridged, alone, routed, before, _servers: servers, _lab: lab }
    }

    /// Waits until all that is asked for is served.
    fn await_served(&self) {
        eventually("all endpoints get new flows", SOON, || {
            let backends = self.gateway.json(&["backends"]);
            let usable = |service: &str| {
                let all = backends.as_array().expect("a list");
                all.iter().filter(|b| b["service"] == service && b["state"] == "usable").count()
            };
            // Of both families, `web` with two ports.
            let counts = [("web", 16), ("alone", 2), ("outside", 2), ("held", 8)];
            let open: Vec<_> =
                counts.iter().filter(|(name, count)| usable(&format!("default/{name}")) != *count).collect();
            // Who has no endpoint at all refuses; it is another thing not to have one here.
            let known = |service: &str| {
                let all = backends.as_array().expect("a list").iter().filter(|b| b["service"] == service);
                all.map(|b| b["address"].to_string()).collect::<BTreeSet<_>>().len() == 2
            };
            let all = open.is_empty() && known("default/distant") && known("default/beyond");
            if all { Ok(()) } else { Err(format!("{open:?}: {backends}")) }
        });
    }

    /// The configuration's kubeconfig with the API server's ClusterIP in place of its own address, as a pod knows it.
    fn name_the_cluster_ip(&self) -> PathBuf {
        let file = self.kubelab.kubeconfig();
        let text = std::fs::read_to_string(&file).expect("a kubeconfig");
        let named = text.replace("https://10.77.0.1:6443", &format!("https://{API_SERVER}:443"));
        assert_ne!(text, named);
        let part = file.with_extension("part");
        std::fs::write(&part, named).expect("a kubeconfig");
        std::fs::rename(part, &file).expect("a kubeconfig");
        file
    }
}

/// What Millrace may set on the node and must take back.
fn state(node: &Host) -> Vec<String> {
    let shown = |words: &str| node.run("ip", words.split(' '));
    let words = ["-o link", "-o addr", "route show table all", "-6 route show table all", "rule", "-6 rule"];
    let mut text: String = words.iter().map(|words| shown(words)).collect();
    text += &node.run("nft", ["list", "ruleset"]);
    text += &node.run("sysctl", ["-a", "--pattern", "^net.ipv[46].(ip_forward|conf)"]);
    let is_timer = |word: &&str| word.contains("sec") || word.parse::<f64>().is_ok();
    let mut lines: Vec<String> = text
        .lines()
        .map(|line| line.split_whitespace().filter(|word| !is_timer(word)).collect::<Vec<_>>().join(" "))
        .collect();
    lines.sort();
    lines
}

/// Requests that must all be answered, together by all of these and nobody else; who seems dead on a busy machine is set aside
/// for a while.
fn answered_by(from: &Host, target: SocketAddr, names: &[&str]) {
    let what = format!("{} to {target}", from.netns);
    let mut by = BTreeSet::new();
    eventually(&what, SOON, || {
        let outcome = load::requests(from, target, 30 * names.len(), 6);
        assert!(outcome.failures.is_empty(), "{what}: {outcome:?}");
        by.extend(outcome.by_server.into_keys());
        assert!(by.iter().all(|name| names.contains(&name.as_str())), "{what}: {by:?}, not {names:?}");
        if by.len() == names.len() { Ok(()) } else { Err(format!("{by:?}, not {names:?}")) }
    });
}

/// Waits until what the node and its pods send to these comes to Millrace: the kernel is told while that runs already.
fn await_inward(from: &[&Host], targets: &[SocketAddr]) {
    for (host, target) in from.iter().flat_map(|host| targets.iter().map(move |target| (host, *target))) {
        eventually("a Service is reached from within", SOON, || match failing(host, target, SILENCE) {
            None => Ok(()),
            other => Err(format!("{} to {target}: {other:?}", host.netns)),
        });
    }
}

/// What becomes of a connection: none where it is answered.
fn failing(from: &Host, target: SocketAddr, patience: Duration) -> Option<std::io::ErrorKind> {
    let connect = move || TcpStream::connect_timeout(&target, patience).err().map(|error| error.kind());
    from.within(connect).join().expect("a connection")
}

fn refused(from: &Host, target: SocketAddr) {
    let found = failing(from, target, SOON);
    assert_eq!(found, Some(std::io::ErrorKind::ConnectionRefused), "{} to {target}", from.netns);
}

fn silent(from: &Host, target: SocketAddr) {
    let found = failing(from, target, SILENCE);
    assert_eq!(found, Some(std::io::ErrorKind::TimedOut), "{} to {target}", from.netns);
}

/// A datagram is answered by an ICMP error.
fn unreachable(from: &Host, target: SocketAddr) {
    let asked = from.within(move || {
        let any = if target.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
        let socket = UdpSocket::bind(any).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
        socket.connect(target).expect("a route");
        eventually("a datagram is refused", SOON, || {
            let asked = socket.send(b"anybody?").and_then(|_| socket.recv(&mut [0; 64]));
            match asked.map_err(|error| error.kind()) {
                Err(std::io::ErrorKind::ConnectionRefused) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    });
    asked.join().expect("the datagrams");
}

/// Services of every shape from pods and from the node itself.
fn cluster_ips_are_served(cluster: &Cluster) {
    let Cluster { node, bridged, alone, routed, client, .. } = cluster;
    for ipv6 in [false, true] {
        let of = |service: &str, port| cluster_ip(service, ipv6, port);
        await_inward(&[node], &[of("web", 80), of("outside", 80)]);
        for from in [node, bridged, alone, routed] {
            answered_by(from, of("web", 80), &WEB);
            answered_by(from, of("alone", 80), &["alone"]);
            answered_by(from, of("outside", 80), &["outside"]);
            datagrams::exchange(from, of("web", 7), &[1, 1000, 3000]);
            refused(from, of("none", 80));
            refused(from, of("web", 81));
            unreachable(from, of("web", 9));
        }
        eventually("requests of which none was retried stay with one server", SOON, || {
            let retries = || cluster.gateway.metric("millrace_connect_retries_total", "");
            let before = retries();
            let by_one = load::requests(bridged, of("held", 80), 40, 4);
            assert_eq!(by_one.answered, 40, "{by_one:?}");
            if retries() != before {
                return Err(format!("{by_one:?}"));
            }
            assert_eq!(by_one.by_server.len(), 1, "{by_one:?}");
            Ok(())
        });
        for from in [bridged, node] {
            // Policy Local without an endpoint here, and an address that nobody has.
            silent(from, of("distant", 80));
            silent(from, if ipv6 { at("fd00:10:96::fff", 80) } else { at("10.96.200.1", 80) });
        }
        let address = of("web", 80).ip().to_string();
        assert!(!bridged.output("ping", ["-c", "1", "-W", "1", &address]).status.success(), "a ClusterIP answers ping");
    }
    assert!(failing(client, cluster_ip("web", false, 80), SOON).is_some());
    let neighbours = client.run("ip", ["neigh", "show", "10.96.1.1"]);
    assert!(!neighbours.contains("lladdr"), "a ClusterIP is announced: {neighbours}");
}

/// By ports of the node's own addresses, whose other ports stay its own.
fn node_ports_are_served(cluster: &Cluster) {
    let Cluster { node, bridged, routed, client, .. } = cluster;
    await_inward(&[node, bridged, routed], &OWN.map(|own| at(own, 30080)));
    for own in OWN {
        for from in [client, node, bridged, routed] {
            answered_by(from, at(own, 30080), &WEB);
            datagrams::exchange(from, at(own, 30007), &[1, 1000, 3000]);
            refused(from, at(own, 30081));
            refused(from, at(own, 30083));
            answered_by(from, at(own, 8080), &["own"]);
        }
        // Policy Local: from outside by none of this node, from within by all.
        silent(client, at(own, 30082));
        for from in [node, bridged] {
            answered_by(from, at(own, 30082), &["far"]);
        }
    }
    for address in ["10.244.1.1", "127.0.0.1"] {
        refused(node, at(address, 30080));
    }
}

/// From a pod by its ClusterIP, while Millrace itself goes to its own address.
fn the_api_server_is_reached(cluster: &Cluster) {
    for pod in [&cluster.bridged, &cluster.routed] {
        let url = format!("https://{API_SERVER}/readyz");
        let words = ["-sSk", "--max-time", "20", "-H", "Authorization: Bearer lab-admin", &url];
        eventually("a pod reaches the API server", SOON, || {
            let output = pod.output("curl", words);
            if output.status.success() && output.stdout == b"ok" { Ok(()) } else { Err(format!("{output:?}")) }
        });
    }
    eventually("the API server is followed", SOON, || {
        let status = cluster.gateway.json(&["status"]);
        if status["errors"].as_array().is_some_and(Vec::is_empty) { Ok(()) } else { Err(status.to_string()) }
    });
    let connections = cluster.node.run("ss", ["-Htnp", "dst", "10.96.0.0/16"]);
    assert!(!connections.contains("millrace"), "by what it serves itself: {connections}");
    eventually("it goes to the API server's own address", SOON, || {
        let connections = cluster.node.run("ss", ["-Htnp", "dst", "10.77.0.1:6443"]);
        if connections.contains("millrace") { Ok(()) } else { Err(connections) }
    });
}

#[test]
fn a_node_without_kube_proxy_serves_cluster_ips_and_node_ports_over_restarts_and_leaves_nothing() {
    let mut cluster = Cluster::new();
    let mut process = cluster.gateway.start();
    cluster.await_served();
    cluster_ips_are_served(&cluster);
    node_ports_are_served(&cluster);
    the_api_server_is_reached(&cluster);
    // From now on it knows the ClusterIP alone, which nobody but itself serves.
    cluster.name_the_cluster_ip();
    let held = [
        load::hold(&cluster.bridged, cluster_ip("web", true, 80), 8, Duration::from_millis(20)),
        load::hold(&cluster.node, cluster_ip("web", false, 80), 8, Duration::from_millis(20)),
        load::hold(&cluster.node, at(OWN[0], 30080), 8, Duration::from_millis(20)),
        load::hold(&cluster.client, at(OWN[1], 30080), 8, Duration::from_millis(20)),
    ];
    held.iter().for_each(|held| held.await_each(SOON));
    process.signal(Signal::SIGKILL);
    assert!(process.wait(SOON).is_some());
    process = cluster.gateway.start();
    the_api_server_is_reached(&cluster);
    let successor = cluster.gateway.start();
    assert!(process.wait(SOON).is_some_and(|status| status.success()), "{}", cluster.gateway.log_text());
    process = successor;
    for held in held {
        held.await_answers(20, SOON);
        let outcome = held.finish();
        assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
    }
    the_api_server_is_reached(&cluster);
    // A NodePort that comes, and one that goes.
    cluster.kubelab.kubectl(&["patch", "service", "alone", "-p", "{\"spec\": {\"type\": \"NodePort\"}}"]);
    let port = cluster.kubelab.kubectl(&["get", "service", "alone", "-o", "jsonpath={.spec.ports[0].nodePort}"]);
    let port = port.parse().expect("a port");
    for from in [&cluster.node, &cluster.bridged, &cluster.client] {
        eventually("a NodePort is served", SOON, || match failing(from, at(OWN[0], port), SILENCE) {
            None => Ok(()),
            other => Err(format!("{}: {other:?}", from.netns)),
        });
    }
    cluster.kubelab.kubectl(&["delete", "service", "alone"]);
    eventually("a NodePort is not served any more", SOON, || match failing(&cluster.node, at(OWN[0], port), SILENCE) {
        Some(std::io::ErrorKind::ConnectionRefused) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    answered_by(&cluster.node, cluster_ip("web", false, 80), &WEB);
    // A Node that has other addresses than its host.
    let elsewhere = "{\"addresses\": [{\"type\": \"InternalIP\", \"address\": \"192.0.2.99\"}]}";
    cluster.kubelab.patch_status("node/n1", elsewhere);
    eventually("NodePorts go with their address", SOON, || match failing(&cluster.node, at(OWN[0], 30080), SILENCE) {
        Some(std::io::ErrorKind::ConnectionRefused) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let log = cluster.gateway.log_text();
    assert!(log.contains("NodePorts are served nowhere: expected an InternalIP of this host"), "{log}");
    assert!(cluster.gateway.admin(&["stop"]).status.success(), "{}", cluster.gateway.log_text());
    assert!(process.wait(SOON).is_some_and(|status| status.success()));
    let after = state(&cluster.node);
    let differing: Vec<_> = after.iter().filter(|line| !cluster.before.contains(line)).collect();
    assert!(differing.is_empty(), "{differing:#?}");
    let missing: Vec<_> = cluster.before.iter().filter(|line| !after.contains(line)).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}
