//! Backends that only the kernel reaches, by the kernel port: pods behind a bridge, a routed veth and an overlay, a server of
//! the host itself; beside one on a NIC's link. On a host with strict reverse path checks, a firewall that forwards what is
//! of pods alone, and pods that are masqueraded.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use millrace_tests::datagrams;
use millrace_tests::lab::{Host, Lab, Process};
use millrace_tests::load;
use millrace_tests::millrace::Gateway;
use millrace_tests::servers;
use millrace_tests::transfers::{self, LENGTH, transfer};
use millrace_tests::wait::eventually;
use nix::sys::signal::Signal;

const END: Duration = Duration::from_secs(30);
const PORT: u16 = 8080;
const VIPS: [&str; 2] = ["10.81.1.100", "fd81:1::100"];

/// Where a backend is.
const BRIDGED: &str = "bridged";
const ROUTED: &str = "routed";
const OVERLAID: &str = "overlaid";
const LOCAL: &str = "local";
const ATTACHED: &str = "attached";
const SHAPES: [&str; 5] = [BRIDGED, ROUTED, OVERLAID, LOCAL, ATTACHED];

/// ```text
/// client ── eth0 node eth1 ── switch ── node2 ═ bridge ── overlaid
///  .2        .1       .1         └───── attached
///                ├ cni0 (bridge) ── bridged
///                ├ cali0 (routed veth) ── routed
///                └ itself: local
/// ```
struct Cluster {
    client: Host,
    node: Host,
    /// In the order of [`SHAPES`], with each's addresses.
    backends: Vec<(Host, [&'static str; 2])>,
    servers: Vec<Process>,
    lab: Lab,
}

/// A pod behind a bridge of its node, which is made if it is not there.
fn bridged(lab: &Lab, node: &Host, pod: &Host, [subnet, subnet6]: [&str; 2]) {
    node.run("ip", ["link", "add", "cni0", "type", "bridge"]);
    node.run("ip", ["link", "set", "cni0", "up"]);
    lab.wire((node, "veth-pod"), (pod, "eth0"), 1);
    node.run("ip", ["link", "set", "veth-pod", "master", "cni0"]);
    for (net, length) in [(subnet, 24), (subnet6, 64)] {
        node.address("cni0", &format!("{net}1/{length}"));
        pod.address("eth0", &format!("{net}5/{length}"));
        pod.route(&format!("default via {net}1"));
    }
}

/// A pod with a veth to its node and a route of its own to it, which asks its node for every address (Calico).
fn routed(lab: &Lab, node: &Host, pod: &Host) {
    lab.wire((node, "cali0"), (pod, "eth0"), 1);
    node.sysctl("net.ipv4.conf.cali0.proxy_arp", "1");
    node.sysctl("net.ipv4.neigh.cali0.proxy_delay", "0");
    node.address("cali0", "fe80::1/64");
    pod.address("eth0", "10.244.3.7/32");
    pod.address("eth0", "fd00:244:3::7/128");
    pod.route("169.254.1.1 dev eth0 scope link");
    pod.route("default via 169.254.1.1");
    pod.route("default via fe80::1 dev eth0");
    node.route("10.244.3.7/32 dev cali0");
    node.route("fd00:244:3::7/128 dev cali0");
}

/// The overlay between two nodes as flannel makes it: nothing is learned, the other node's part is one route.
fn overlay(node: &Host, own: u32, underlay: [&str; 2], other: (u32, &str)) {
    let words = format!(
        "link add flannel.1 mtu 1450 type vxlan id 1 dstport 8472 nolearning local {} dev {}",
        underlay[0], underlay[1]
    );
    node.run("ip", words.split(' '));
    node.run("ip", ["link", "set", "flannel.1", "address", &format!("02:00:00:00:fe:0{own}"), "up"]);
    let (number, address) = other;
    let mac = format!("02:00:00:00:fe:0{number}");
    node.address("flannel.1", &format!("10.244.{own}.0/32"));
    node.address("flannel.1", &format!("fd00:244:{own}::/128"));
    node.run("bridge", ["fdb", "append", &mac, "dev", "flannel.1", "dst", address]);
    for router in [format!("10.244.{number}.0"), format!("fd00:244:{number}::")] {
        node.run("ip", ["neigh", "add", &router, "lladdr", &mac, "dev", "flannel.1", "nud", "permanent"]);
        let length = if router.contains(':') { 64 } else { 24 };
        node.route(&format!("{router}/{length} via {router} dev flannel.1 onlink"));
    }
}

/// Strict checks, forwarding as a node has it, a firewall and masquerading.
fn guard(node: &Host) {
    for (key, value) in [
        ("net.ipv4.conf.all.rp_filter", "1"),
        ("net.ipv4.conf.default.rp_filter", "1"),
        ("net.ipv4.ip_forward", "1"),
        ("net.ipv6.conf.all.forwarding", "1"),
    ] {
        node.sysctl(key, value);
    }
    let rules = "table inet pods {\n\
                 set nets { type ipv4_addr; flags interval; elements = { 10.244.0.0/16 } }\n\
                 set nets6 { type ipv6_addr; flags interval; elements = { fd00:244::/32 } }\n\
                 chain forward { type filter hook forward priority 0; policy drop;\n\
                 ct state invalid drop\n\
                 ip saddr @nets accept\n ip daddr @nets accept\n\
                 ip6 saddr @nets6 accept\n ip6 daddr @nets6 accept\n}\n\
                 chain post { type nat hook postrouting priority 100;\n\
                 ip saddr @nets ip daddr != @nets masquerade\n\
                 ip6 saddr @nets6 ip6 daddr != @nets6 masquerade\n}\n}\n";
    let file = std::env::temp_dir().join(format!("{}.nft", node.netns));
    std::fs::write(&file, rules).expect("the rules");
    node.run("nft", ["-f", &file.to_string_lossy()]);
    std::fs::remove_file(file).expect("the rules");
}

impl Cluster {
    /// `pod_mtu` is of the last part of the way to the pod behind the overlay.
    fn new(name: &str, queues: u32, pod_mtu: u32) -> Self {
        servers::require(&["nginx", "ip", "bridge", "nft", "nsenter", "curl", "ss", "sysctl"]);
        let mut lab = Lab::new(name);
        let names = ["client", "node", "switch", "node2", BRIDGED, ROUTED, OVERLAID, ATTACHED];
        let hosts: Vec<Host> = names.iter().map(|name| lab.host(name)).collect();
        let [client, node, switch, node2, bridge_pod, routed_pod, overlay_pod, attached] =
            hosts.try_into().unwrap_or_else(|_| unreachable!("eight"));
        guard(&node);
        guard(&node2);
        switch.run("ip", ["link", "add", "br0", "type", "bridge"]);
        switch.run("ip", ["link", "set", "br0", "up"]);
        lab.wire((&client, "eth0"), (&node, "eth0"), queues);
        for (host, interface, port) in [(&node, "eth1", "p0"), (&node2, "eth0", "p1"), (&attached, "eth0", "p2")] {
            lab.wire((host, interface), (&switch, port), queues);
            switch.run("ip", ["link", "set", port, "master", "br0"]);
        }
        for (host, interface, addresses) in [
            (&client, "eth0", ["10.81.1.2/24", "fd81:1::2/64"]),
            (&node, "eth0", ["10.81.1.1/24", "fd81:1::1/64"]),
            (&node, "eth1", ["10.82.1.1/24", "fd82:1::1/64"]),
            (&node2, "eth0", ["10.82.1.21/24", "fd82:1::21/64"]),
            (&attached, "eth0", ["10.82.1.11/24", "fd82:1::11/64"]),
        ] {
            addresses.iter().for_each(|address| host.address(interface, address));
        }
        // It answers a routed pod's ARP for all that it has a route to itself: a node has one to everywhere.
        node.route("default via 10.82.1.254");
        bridged(&lab, &node, &bridge_pod, ["10.244.1.", "fd00:244:1::"]);
        routed(&lab, &node, &routed_pod);
        bridged(&lab, &node2, &overlay_pod, ["10.244.2.", "fd00:244:2::"]);
        for pod in ["10.244.2.5/32", "fd00:244:2::5/128"] {
            node2.route(&format!("{pod} dev cni0 mtu {pod_mtu}"));
        }
        overlay(&node, 1, ["10.82.1.1", "eth1"], (2, "10.82.1.21"));
        overlay(&node2, 2, ["10.82.1.21", "eth0"], (1, "10.82.1.1"));
        let backends = vec![
            (bridge_pod, ["10.244.1.5", "fd00:244:1::5"]),
            (routed_pod, ["10.244.3.7", "fd00:244:3::7"]),
            (overlay_pod, ["10.244.2.5", "fd00:244:2::5"]),
            (node.clone(), ["10.82.1.1", "fd82:1::1"]),
            (attached, ["10.82.1.11", "fd82:1::11"]),
        ];
        Self { client, node, backends, servers: Vec::new(), lab }
    }

    /// Has every backend answer its name over HTTP.
    fn serve(&mut self) {
        for (name, (host, [v4, v6])) in SHAPES.iter().zip(&self.backends) {
            let listen = [format!("{v4}:{PORT}"), format!("[{v6}]:{PORT}")];
            self.servers.push(servers::nginx(host, self.lab.dir(), name, &[&listen[0], &listen[1]]));
        }
    }

    fn gateway(&self, more: &str) -> Gateway {
        let config = "interfaces: [eth0, eth1]\npools: [{name: public, addresses: [10.81.1.96/28, \"fd81:1::100/124\"]}]\n\
                      snat: {addresses: [10.82.1.100, \"fd82:1::1:100\"]}\n\
                      kernelPort: {snat: [10.244.1.250, \"fd00:244:1::250\"]}\n";
        Gateway::new(&self.node, self.lab.dir(), &format!("{config}{more}\n"))
    }

    /// A Service of these backends (places in [`SHAPES`]) at the VIPs.
    fn manifest(&self, name: &str, port: (u16, u16, &str), backends: &[usize]) -> String {
        let addresses = backends.iter().flat_map(|at| self.backends[*at].1);
        let addresses: String = addresses.map(|address| format!("  - ip: \"{address}\"\n")).collect();
        let (port, target, protocol) = port;
        format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  annotations:\n    \
             millrace.dev/addresses: {},{}\n    millrace.dev/share: all\nspec:\n  type: LoadBalancer\n  \
             ipFamilyPolicy: RequireDualStack\n  ipFamilies: [IPv4, IPv6]\n  ports:\n  \
             - {{port: {port}, targetPort: {target}, protocol: {protocol}}}\n---\n\
             apiVersion: v1\nkind: Endpoints\nmetadata:\n  name: {name}\nsubsets:\n- addresses:\n{addresses}  \
             ports:\n  - {{port: {target}, protocol: {protocol}}}\n",
            VIPS[0], VIPS[1]
        )
    }

    /// [`Cluster::state`] before Millrace comes: links come up a moment after they are made, and get addresses then.
    fn state_before(&self) -> Vec<String> {
        eventually("the node's links are up", END, || {
            let links = self.node.run("ip", ["-o", "link"]);
            if links.contains("NO-CARRIER") { Err(links) } else { Ok(()) }
        });
        self.state()
    }

    /// What Millrace may change on the node and must not leave changed.
    fn state(&self) -> Vec<String> {
        let show = |words: &str| self.node.run("ip", words.split(' ')).lines().map(str::to_owned).collect::<Vec<_>>();
        let mut state: Vec<String> = [
            "-o -d link",
            "-o addr",
            "route show table all",
            "-6 route show table all",
            "rule",
            "-6 rule",
            "neigh show proxy",
            "-6 neigh show proxy",
        ]
        .iter()
        .flat_map(|words| show(words))
        .collect();
        let settings = self.node.run("sysctl", ["-a", "--pattern", "^net.ipv[46].(ip_forward|conf|neigh)"]);
        state.extend(settings.lines().map(str::to_owned));
        state.extend(self.node.run("nft", ["list", "ruleset"]).lines().map(str::to_owned));
        // Timers go by themselves.
        let is_timer = |word: &&str| word.contains('.') && word.parse::<f64>().is_ok();
        let mut state: Vec<String> = state
            .iter()
            .map(|line| line.split_whitespace().filter(|word| !is_timer(word)).collect::<Vec<_>>().join(" "))
            .collect();
        state.sort();
        state
    }
}

fn vip(ipv6: bool, port: u16) -> SocketAddr {
    SocketAddr::new(VIPS[usize::from(ipv6)].parse().expect("an address"), port)
}

/// Requests of a client that must all be answered, and by each of these; who seems dead on a busy machine is set aside for a
/// while.
fn all_answer_to(client: &Host, port: u16, names: &[&str], count: u64) {
    for ipv6 in [false, true] {
        let what = format!("{}, ipv6 {ipv6}, port {port}", client.netns);
        let mut by = BTreeSet::new();
        eventually(&what, END, || {
            let outcome = load::requests(client, vip(ipv6, port), count as usize, 8);
            assert_eq!((outcome.answered, outcome.failures.len()), (count, 0), "{what}: {outcome:?}");
            by.extend(outcome.by_server.into_keys());
            assert!(by.iter().all(|name| names.contains(&name.as_str())), "{what}: {by:?}");
            if by.len() == names.len() { Ok(()) } else { Err(format!("{by:?}")) }
        });
    }
}

/// Waits until the node's own packets to the VIPs come to Millrace: their routes are made while it runs already.
fn await_inward(cluster: &Cluster, port: u16) {
    for ipv6 in [false, true] {
        eventually("the node itself reaches a Service", END, || {
            let outcome = load::requests(&cluster.node, vip(ipv6, port), 1, 1);
            if outcome.answered == 1 { Ok(()) } else { Err(format!("ipv6 {ipv6}: {outcome:?}")) }
        });
    }
}

fn all_answer(cluster: &Cluster, port: u16, names: &[&str]) {
    all_answer_to(&cluster.client, port, names, 400);
}

/// The node itself and its pods reach the same as a client does, a pod that is chosen itself too.
fn asked_from_within(cluster: &Cluster) {
    await_inward(cluster, 80);
    for at in [0, 1, 3] {
        let (host, _) = &cluster.backends[at];
        all_answer_to(host, 80, &SHAPES, 200);
        all_answer_to(host, 81 + at as u16, &SHAPES[at..=at], 20);
        datagrams::exchange(host, vip(at == 1, 7000), &[1, 1000, 3000]);
    }
}

/// What one of two states has and the other has not.
fn differing(before: &[String], after: &[String]) -> Vec<String> {
    let of = |lines: &[String], others: &[String], sign| {
        lines.iter().filter(|line| !others.contains(line)).map(|line| format!("{sign} {line}")).collect::<Vec<_>>()
    };
    [of(before, after, '-'), of(after, before, '+')].concat()
}

#[test]
fn backends_of_every_shape_answer_beside_each_other_over_a_kill_and_an_upgrade_and_stop_leaves_no_trace() {
    let mut cluster = Cluster::new("kernel-port", 2, 1500);
    cluster.serve();
    let echo: u16 = 7000;
    for (host, addresses) in &cluster.backends {
        for address in addresses {
            datagrams::echo(host, SocketAddr::new(address.parse().expect("an address"), echo));
        }
    }
    let before = cluster.state_before();
    let mut gateway = cluster.gateway("workers: {cores: [0, 1]}");
    gateway.manifest("web.yaml", &cluster.manifest("web", (80, PORT, "TCP"), &[0, 1, 2, 3, 4]));
    for (at, name) in SHAPES.iter().enumerate() {
        let number = at as u16;
        gateway.manifest(&format!("{name}.yaml"), &cluster.manifest(name, (81 + number, PORT, "TCP"), &[at]));
        let datagrams = cluster.manifest(&format!("udp-{name}"), (7000 + number, echo, "UDP"), &[at]);
        gateway.manifest(&format!("udp-{name}.yaml"), &datagrams);
    }
    let mut process = gateway.start();
    all_answer(&cluster, 80, &SHAPES);
    asked_from_within(&cluster);
    for (at, name) in SHAPES.iter().enumerate() {
        all_answer(&cluster, 81 + at as u16, &[name]);
        for ipv6 in [false, true] {
            datagrams::exchange(&cluster.client, vip(ipv6, 7000 + at as u16), &[1, 1000, 3000]);
        }
    }
    let sent = gateway.metric("millrace_packets_total", "port=\"millrace-k0\",direction=\"tx\"");
    assert!(sent > 1000.0, "{sent} packets left by the kernel port");
    for ipv6 in [false, true] {
        let held = load::hold(&cluster.client, vip(ipv6, 80), 20, Duration::from_millis(5));
        held.await_answers(200, END);
        process.signal(Signal::SIGKILL);
        assert!(process.wait(END).is_some());
        process = gateway.start();
        held.await_answers(200, END);
        let successor = gateway.start();
        assert!(process.wait(END).is_some_and(|status| status.success()), "{}", gateway.log_text());
        process = successor;
        held.await_answers(200, END);
        let outcome = held.finish();
        assert!(outcome.failures.is_empty(), "ipv6 {ipv6}: {:?}", outcome.failures);
    }
    all_answer(&cluster, 80, &SHAPES);
    // Stopped by another process, after a death, and by its own.
    process.signal(Signal::SIGKILL);
    assert!(process.wait(END).is_some());
    for turn in ["of a dead one", "of a living one"] {
        assert!(gateway.admin(&["stop"]).status.success(), "stop {turn}: {}", gateway.log_text());
        assert_eq!(differing(&before, &cluster.state()), Vec::<String>::new(), "stop {turn}");
        if turn == "of a dead one" {
            process = gateway.start();
            all_answer(&cluster, 80, &SHAPES);
        }
    }
    assert!(process.wait(END).is_some());
}

/// The address that a server sees of a client that asks at this URL.
fn seen(client: &Host, url: &str) -> Result<String, String> {
    servers::who(client, url, 5).map(|(_, address)| address).map_err(|error| format!("{url}: {error}"))
}

#[test]
fn with_policy_local_pods_and_the_hosts_own_servers_see_the_client_and_are_reached_past_the_service_too() {
    let mut cluster = Cluster::new("kernel-port-local", 2, 1500);
    cluster.serve();
    for pods in ["10.244.0.0/16", "fd00:244::/32", "10.82.1.0/24", "fd82:1::/64"] {
        let node = if pods.contains(':') { "fd81:1::1" } else { "10.81.1.1" };
        cluster.client.route(&format!("{pods} via {node}"));
    }
    let before = cluster.state_before();
    let mut gateway = cluster.gateway("workers: {cores: [0, 1]}");
    let on_node = [0, 1, 3];
    for at in on_node {
        let manifest = cluster.manifest(SHAPES[at], (81 + at as u16, PORT, "TCP"), &[at]);
        let local =
            manifest.replace("  type: LoadBalancer\n", "  type: LoadBalancer\n  externalTrafficPolicy: Local\n");
        gateway.manifest(&format!("{}.yaml", SHAPES[at]), &local);
        let datagrams = cluster.manifest(&format!("udp-{}", SHAPES[at]), (7000 + at as u16, 7000, "UDP"), &[at]);
        let local =
            datagrams.replace("  type: LoadBalancer\n", "  type: LoadBalancer\n  externalTrafficPolicy: Local\n");
        gateway.manifest(&format!("udp-{}.yaml", SHAPES[at]), &local);
        let (host, addresses) = &cluster.backends[at];
        for address in addresses {
            datagrams::echo(host, SocketAddr::new(address.parse().expect("an address"), 7000));
        }
    }
    let mut process = gateway.start();
    await_inward(&cluster, 81);
    for turn in ["at first", "after a kill"] {
        for at in on_node {
            for (ipv6, own) in [(false, "10.81.1.2"), (true, "fd81:1::2")] {
                let what = format!("{turn}, {}, ipv6 {ipv6}", SHAPES[at]);
                let url = format!("http://{}/", vip(ipv6, 81 + at as u16));
                assert_eq!(seen(&cluster.client, &url).as_deref(), Ok(own), "{what}");
                datagrams::exchange(&cluster.client, vip(ipv6, 7000 + at as u16), &[1, 1000, 3000]);
                // The pod's own address and port, past the Service.
                let address: std::net::IpAddr = cluster.backends[at].1[usize::from(ipv6)].parse().expect("an address");
                let direct = format!("http://{}/", SocketAddr::new(address, PORT));
                assert_eq!(seen(&cluster.client, &direct).as_deref(), Ok(own), "{what}: directly");
                // Whoever is on the node gets an answer too, itself included.
                for from in on_node {
                    seen(&cluster.backends[from].0, &url)
                        .unwrap_or_else(|e| panic!("{what} from {}: {e}", SHAPES[from]));
                }
            }
            all_answer_to(&cluster.client, 81 + at as u16, &SHAPES[at..=at], 200);
        }
        if turn == "at first" {
            process.signal(Signal::SIGKILL);
            assert!(process.wait(END).is_some());
            process = gateway.start();
        }
    }
    assert!(gateway.admin(&["stop"]).status.success(), "{}", gateway.log_text());
    assert!(process.wait(END).is_some());
    assert_eq!(differing(&before, &cluster.state()), Vec::<String>::new());
}

#[test]
fn its_addresses_do_alone_a_bridge_may_come_later_and_a_successor_without_it_takes_it_away() {
    let mut cluster = Cluster::new("kernel-port-alone", 1, 1500);
    cluster.serve();
    let before = cluster.state_before();
    let [_, _, _, _, (attached, _)] = &cluster.backends[..] else { unreachable!("five") };
    attached.route("10.244.1.250 via 10.82.1.1");
    attached.route("fd00:244:1::250 via fd82:1::1");
    let mut gateway = cluster.gateway("");
    let config = std::fs::read_to_string(gateway.config()).expect("the configuration");
    let without =
        |key: &str| config.lines().filter(|line| !line.starts_with(key)).fold(String::new(), |t, l| t + l + "\n");
    std::fs::write(gateway.config(), without("snat:")).expect("the configuration");
    gateway.manifest("web.yaml", &cluster.manifest("web", (80, PORT, "TCP"), &[0, 1, 2, 3, 4]));
    gateway.manifest("bridged.yaml", &cluster.manifest("bridged", (81, PORT, "TCP"), &[0]));
    let process = gateway.start();
    all_answer(&cluster, 80, &SHAPES);
    // As the first pod of a node has its plugin make it.
    cluster.node.run("ip", ["link", "del", "cni0"]);
    cluster.node.run("ip", ["link", "add", "cni0", "type", "bridge"]);
    cluster.node.run("ip", ["link", "set", "cni0", "up"]);
    cluster.node.run("ip", ["link", "set", "veth-pod", "master", "cni0"]);
    cluster.node.address("cni0", "10.244.1.1/24");
    cluster.node.address("cni0", "fd00:244:1::1/64");
    for ipv6 in [false, true] {
        eventually("the pod behind the new bridge is reached", END, || {
            let outcome = load::requests(&cluster.client, vip(ipv6, 81), 1, 1);
            if outcome.answered == 1 { Ok(()) } else { Err(format!("{outcome:?}")) }
        });
    }
    std::fs::write(gateway.config(), without("kernelPort:")).expect("the configuration");
    let mut successor = gateway.start();
    drop(process);
    let left = |state: Vec<String>| state.into_iter().filter(|line| line.contains("millrace-k")).collect::<Vec<_>>();
    eventually("the kernel port is gone", END, || match left(cluster.state()) {
        left if left.is_empty() => Ok(()),
        left => Err(left.join("\n")),
    });
    assert!(gateway.admin(&["stop"]).status.success(), "{}", gateway.log_text());
    assert!(successor.wait(END).is_some());
    let ours = |line: &String| {
        ["millrace", "10.244.1.250", "fd00:244:1::250", "ip_forward", "rp_filter", "8686", "proxy"]
            .iter()
            .any(|word| line.contains(word))
    };
    let differing: Vec<String> = differing(&before, &cluster.state()).into_iter().filter(ours).collect();
    assert_eq!(differing, Vec::<String>::new());
}

#[test]
fn long_transfers_end_and_whoever_sends_too_much_for_the_overlay_or_what_is_behind_it_is_told() {
    let cluster = Cluster::new("kernel-port-mtu", 1, 1300);
    let mut gateway = cluster.gateway("");
    for (at, name) in SHAPES.iter().enumerate() {
        gateway.manifest(&format!("{name}.yaml"), &cluster.manifest(name, (81 + at as u16, 9000, "TCP"), &[at]));
    }
    let _process = gateway.start();
    let events = |event: &str| gateway.metric("millrace_events_total", &format!("event=\"{event}\""));
    for (at, (host, _)) in cluster.backends.iter().enumerate() {
        let server = transfers::serve(host, 9000, 4);
        let counts = || ["too_bigs_sent", "icmp_errors_translated"].map(events);
        let before = counts();
        for ipv6 in [false, true] {
            for upload in [true, false] {
                let target = vip(ipv6, 81 + at as u16);
                let moved = cluster.client.within(move || transfer(target, upload)).join().expect("the client");
                assert_eq!(moved.map_err(|e| e.to_string()), Ok(LENGTH), "{target}, {}, upload {upload}", SHAPES[at]);
            }
        }
        server.join().expect("the server").expect("the server");
        let [sent, translated] = [0, 1].map(|n| counts()[n] - before[n]);
        println!("{}: {sent} errors sent, {translated} translated", SHAPES[at]);
        if SHAPES[at] == OVERLAID {
            assert!(sent >= 2.0 && translated >= 2.0, "{sent} sent, {translated} translated");
        }
    }
}
