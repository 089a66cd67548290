//! What people do with Services, and manifests that they write, on two nodes of a cluster with a real API server and the real controllers: an Ingress
//! behind a VIP, DNS, shares of nodes with policy Local, `kubectl expose`, and changes of Services and Pods.
//!
//! ```text
//! client ── switch ── eth0 n1 eth1 ── a1
//!             └────── eth0 n2 eth1 ── pods ── b1, b2
//! ```
//!
//! The client spreads its connections over both nodes evenly, as a router with equal-cost routes does.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use millrace_tests::kubelab::{Kubelab, Pod};
use millrace_tests::lab::{Host, Lab, Process, run};
use millrace_tests::load;
use millrace_tests::millrace::Gateway;
use millrace_tests::pulse::Pulse;
use millrace_tests::servers;
use millrace_tests::wait::eventually;

/// How long a change may take to be in force on a busy machine.
const SOON: Duration = Duration::from_secs(60);
/// Where routers send to the nodes.
const POOL: &str = "203.0.113.0/28";
/// Name, node, address.
const PODS: [(&str, &str, &str); 3] = [("a1", "n1", "10.91.1.5"), ("b1", "n2", "10.92.1.5"), ("b2", "n2", "10.92.1.6")];

struct Cluster {
    // Dropped in this order: the lab has every host.
    servers: Vec<Process>,
    instances: Vec<Process>,
    gateways: Vec<Gateway>,
    kubelab: Kubelab,
    client: Host,
    pods: Vec<Host>,
    lab: Lab,
}

fn switch(lab: &Lab, host: &Host, members: &[(&Host, &str)]) {
    host.run("ip", ["link", "add", "br0", "type", "bridge"]);
    host.run("ip", ["link", "set", "br0", "up"]);
    for (number, member) in members.iter().enumerate() {
        let port = format!("p{number}");
        lab.wire(*member, (host, &port), 1);
        host.run("ip", ["link", "set", &port, "master", "br0"]);
    }
}

impl Cluster {
    fn new() -> Self {
        servers::require(&["nginx", "openssl", "curl", "dig", "dnsmasq", "ip", "nsenter"]);
        let mut lab = Lab::new("behaviours");
        let kubelab = Kubelab::start(&mut lab, &[]);
        let names = ["client", "switch", "n1", "n2", "links", "a1", "b1", "b2"];
        let hosts: Vec<Host> = names.iter().map(|name| lab.host(name)).collect();
        let [client, middle, n1, n2, links, pods @ ..] = &hosts[..] else { unreachable!("eight") };
        switch(&lab, middle, &[(client, "eth0"), (n1, "eth0"), (n2, "eth0")]);
        lab.wire((n1, "eth1"), (&pods[0], "eth0"), 1);
        switch(&lab, links, &[(n2, "eth1"), (&pods[1], "eth0"), (&pods[2], "eth0")]);
        client.address("eth0", "10.81.1.2/24");
        client.sysctl("net.ipv4.fib_multipath_hash_policy", "1");
        for (node, own, other) in [(n1, 1, 2), (n2, 2, 1)] {
            node.address("eth0", &format!("10.81.1.1{own}/24"));
            node.address("eth1", &format!("10.9{own}.1.1/24"));
            node.sysctl("net.ipv4.ip_forward", "1");
            node.route(&format!("10.9{other}.1.0/24 via 10.81.1.1{other}"));
            kubelab.wire(&lab, node, &format!("api{own}"), &format!("10.77.0.1{own}"));
        }
        client.route(&format!("{POOL} nexthop via 10.81.1.11 nexthop via 10.81.1.12"));
        kubelab.node("n1", "a");
        kubelab.node("n2", "b");
        let mut servers = Vec::new();
        for (host, (name, node, address)) in pods.iter().zip(PODS) {
            host.address("eth0", &format!("{address}/24"));
            host.route(&format!("default via 10.9{}.1.1", &node[1..]));
            kubelab.pod(&Pod { name, app: "web", node, addresses: &[address] });
            let listen = [format!("{address}:8080"), format!("{address}:9153")];
            servers.push(servers::nginx(host, lab.dir(), name, &[&listen[0], &listen[1]]));
        }
        let mut gateways: Vec<Gateway> =
            [(n1, "1"), (n2, "2")].into_iter().map(|(node, own)| gateway(&lab, &kubelab, node, own)).collect();
        let instances = gateways.iter_mut().map(Gateway::start).collect();
        let (client, pods) = (client.clone(), pods.to_vec());
        Self { servers, instances, gateways, kubelab, client, pods, lab }
    }

    /// Waits until a Service has an address and both nodes have so many usable endpoints of it.
    fn await_served(&self, service: &str, endpoints: &str, count: usize) -> String {
        for gateway in &self.gateways {
            eventually(&format!("{service} is served"), SOON, || match usable(gateway, service, endpoints) {
                found if found == count => Ok(()),
                found => Err(format!("{found} endpoints: {}\n{}", gateway.json(&["backends"]), gateway.log_text())),
            });
        }
        let address = "jsonpath={.status.loadBalancer.ingress[0].ip}";
        let mut found = String::new();
        eventually(&format!("{service} has an address that both nodes serve"), SOON, || {
            found = self.kubelab.kubectl(&["get", "service", service, "-o", address]).trim().to_owned();
            let served =
                self.gateways.iter().all(|g| g.json(&["services", "--service", service]).to_string().contains(&found));
            if served && !found.is_empty() { Ok(()) } else { Err(format!("`{found}`")) }
        });
        found
    }
}

/// Usable endpoints of a Service whose port has this name.
fn usable(gateway: &Gateway, service: &str, port: &str) -> usize {
    let all = gateway.json(&["backends"]);
    let is = |backend: &&serde_json::Value| {
        backend["service"] == format!("default/{service}")
            && backend["portName"] == port
            && backend["state"] == "usable"
    };
    all.as_array().expect("a list").iter().filter(is).count()
}

/// Millrace on a node.
fn gateway(lab: &Lab, kubelab: &Kubelab, node: &Host, own: &str) -> Gateway {
    let folder = lab.dir().join(format!("n{own}"));
    fs::create_dir_all(&folder).expect("a folder");
    let config = format!(
        "interfaces: [eth0, eth1]\nkubernetes: {{kubeconfig: {}}}\nannounce: [{{mode: none}}]\n\
         node: {{hostname: n{own}}}\npools: [{{name: public, addresses: [{POOL}]}}]\nsnat: {{addresses: [10.9{own}.1.100]}}\n",
        kubelab.kubeconfig().display()
    );
    Gateway::new(node, &folder, &config)
}

fn service(name: &str, app: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{type: LoadBalancer, selector: {{app: {app}}}, {more}}}\n"
    )
}

#[test]
fn what_people_do_with_services_works_on_two_nodes() {
    let mut cluster = Cluster::new();
    an_api_server_judges_manifests_alike(&cluster.kubelab);
    backends_are_named_by_pod_node_and_zone(&cluster);
    an_ingress_gets_hosts_and_paths_and_the_clients_address(&mut cluster);
    nodes_with_a_share_each_give_their_own_pods_a_part_of_it(&cluster);
    dns_is_answered_and_what_it_answers_is_dialled(&mut cluster);
    each_change_is_seen_in_the_tables(&cluster);
    for gateway in &cluster.gateways {
        // An API server that was slow to answer is an error until it does.
        eventually("nothing is wrong", SOON, || {
            let status = gateway.json(&["status"]);
            if status["errors"].as_array().is_some_and(Vec::is_empty) { Ok(()) } else { Err(status.to_string()) }
        });
    }
    cluster.instances.clear();
}

/// As `kubectl expose` makes it.
fn backends_are_named_by_pod_node_and_zone(cluster: &Cluster) {
    let words = [
        "expose",
        "pod",
        "a1",
        "--name=exposed",
        "--type=LoadBalancer",
        "--port=80",
        "--target-port=http",
        "--selector=app=web",
    ];
    cluster.kubelab.kubectl(&words);
    let address = cluster.await_served("exposed", "", 3);
    let target = SocketAddr::new(address.parse().expect("an address"), 80);
    eventually("all Pods answer", SOON, || {
        let outcome = load::requests(&cluster.client, target, 60, 4);
        assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
        if outcome.by_server.keys().eq(["a1", "b1", "b2"]) { Ok(()) } else { Err(format!("{outcome:?}")) }
    });
    let expected = ["10.91.1.5 default/a1 n1 a", "10.92.1.5 default/b1 n2 b", "10.92.1.6 default/b2 n2 b"];
    eventually("endpoints are named", SOON, || {
        let backends = cluster.gateways[0].json(&["backends", "--service", "default/exposed"]);
        let mut named: Vec<String> = backends
            .as_array()
            .expect("a list")
            .iter()
            .map(|b| ["address", "pod", "node", "zone"].map(|key| b[key].as_str().unwrap_or("-")).join(" "))
            .collect();
        named.sort();
        if named == expected { Ok(()) } else { Err(format!("{named:?}")) }
    });
    cluster.kubelab.kubectl(&["delete", "service", "exposed", "--wait=false"]);
}

const HOSTS: [&str; 2] = ["shop.example.com", "api.example.com"];

/// nginx that tells hosts by SNI and `Host`, each with a certificate of its own, and has rules by path.
fn ingress(host: &Host, dir: &Path, name: &str, address: &str) -> Process {
    let home = dir.join(format!("ingress-{name}"));
    fs::create_dir_all(&home).expect("nginx's folder");
    let path = |file: &str| home.join(file).display().to_string();
    let rule = |place: &str, what: &str| {
        format!("    location {place} {{ default_type text/plain; return 200 \"{what} {name} $remote_addr\\n\"; }}\n")
    };
    let server = |host: &str, rules: String| {
        let authority = dir.display();
        format!(
            "  server {{\n    listen {address}:8443 ssl;\n    listen {address}:8081;\n    server_name {host};\n    \
             ssl_certificate {authority}/{host}.crt;\n    ssl_certificate_key {authority}/{host}.key;\n{rules}  }}\n"
        )
    };
    let servers = server(HOSTS[0], rule("/", "shop") + &rule("/cart", "cart"))
        + &server(HOSTS[1], rule("/v1/", "api") + "    location / { return 404; }\n");
    let text = format!(
        "daemon off;\nmaster_process off;\nuser root;\npid {};\nerror_log {};\nevents {{ }}\nhttp {{\n  access_log off;\n  \
         client_body_temp_path {}; proxy_temp_path {}; fastcgi_temp_path {}; uwsgi_temp_path {}; scgi_temp_path {};\n\
         {servers}}}\n",
        path("pid"),
        path("error.log"),
        path("b"),
        path("p"),
        path("f"),
        path("u"),
        path("s")
    );
    fs::write(home.join("nginx.conf"), text).expect("nginx's configuration");
    let mut command = host.command("nginx");
    command.args(["-c", &path("nginx.conf"), "-e", &path("error.log")]);
    let process = host.spawn("nginx", command, &home.join("log"));
    eventually(&format!("the Ingress on {name} listens"), SOON, || {
        let text = host.run("ss", ["-Hltn"]);
        let log = || fs::read_to_string(home.join("log")).unwrap_or_default();
        if text.contains(":8443") { Ok(()) } else { Err(text + &log()) }
    });
    process
}

fn an_ingress_gets_hosts_and_paths_and_the_clients_address(cluster: &mut Cluster) {
    let dir = cluster.lab.dir().to_owned();
    for host in HOSTS {
        let words = format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={host} \
             -addext subjectAltName=DNS:{host} -keyout {host}.key -out {host}.crt"
        );
        let output = Command::new("openssl").args(words.split(' ')).current_dir(&dir).output().expect("openssl runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    for (host, (name, _, address)) in cluster.pods.iter().zip(PODS) {
        cluster.servers.push(ingress(host, &dir, name, address));
    }
    let ports = "externalTrafficPolicy: Local, ports: [{name: http, port: 80, targetPort: 8081}, \
                 {name: https, port: 443, targetPort: 8443}]";
    cluster.kubelab.apply(&service("ingress", "web", ports));
    for gateway in &cluster.gateways {
        eventually("each node has its own endpoints", SOON, || match usable(gateway, "ingress", "https") {
            1 | 2 => Ok(()),
            other => Err(format!("{other} endpoints")),
        });
    }
    let vip = address_of(cluster, "ingress");
    let ask = |host: &str, authority: &str, url: &str| {
        let resolve = [443, 80].map(|port| format!("{host}:{port}:{vip}"));
        let authority = dir.join(format!("{authority}.crt")).display().to_string();
        let words =
            ["-sS", "--max-time", "10", "--resolve", &resolve[0], "--resolve", &resolve[1], "--cacert", &authority];
        let output = cluster.client.output("curl", words.iter().copied().chain(["-w", "%{http_code}", url]));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for (url, host, what) in [
        ("https://shop.example.com/", HOSTS[0], "shop"),
        ("https://shop.example.com/cart/1", HOSTS[0], "cart"),
        ("https://api.example.com/v1/orders", HOSTS[1], "api"),
        ("http://shop.example.com/cart", HOSTS[0], "cart"),
    ] {
        let mut text = String::new();
        eventually(&format!("{url} is answered"), SOON, || {
            text = ask(host, host, url);
            if text.ends_with("200") { Ok(()) } else { Err(text.clone()) }
        });
        assert!(text.starts_with(what) && text.contains(" 10.81.1.2\n"), "{url}: {text}");
    }
    // Either node may be asked, and one may serve it later than the other.
    eventually("a path that nobody has is not found", SOON, || {
        let text = ask(HOSTS[1], HOSTS[1], "https://api.example.com/other");
        if text.ends_with("404") { Ok(()) } else { Err(text) }
    });
    let foreign = ask(HOSTS[0], HOSTS[1], "https://shop.example.com/");
    assert!(foreign.ends_with("000"), "each host has a certificate of its own: {foreign}");
}

fn address_of(cluster: &Cluster, service: &str) -> String {
    let mut found = String::new();
    eventually(&format!("{service} has an address"), SOON, || {
        let path = "jsonpath={.status.loadBalancer.ingress[0].ip}";
        found = cluster.kubelab.kubectl(&["get", "service", service, "-o", path]).trim().to_owned();
        if found.is_empty() { Err("none".to_owned()) } else { Ok(()) }
    });
    found
}

/// One pod on the first node, two on the second, and the client's routers give both nodes the same: 2:1:1.
fn nodes_with_a_share_each_give_their_own_pods_a_part_of_it(cluster: &Cluster) {
    const REQUESTS: usize = 1200;
    let more = "externalTrafficPolicy: Local, ports: [{port: 80, targetPort: 8080}]";
    cluster.kubelab.apply(&service("shares", "web", more));
    let vip = address_of(cluster, "shares");
    for (gateway, count) in cluster.gateways.iter().zip([1, 2]) {
        eventually("each node has its own endpoints", SOON, || match usable(gateway, "shares", "") {
            found if found == count => Ok(()),
            found => Err(format!("{found} endpoints, expected {count}")),
        });
    }
    let target = SocketAddr::new(vip.parse().expect("an address"), 80);
    eventually("both nodes answer", SOON, || {
        let outcome = load::requests(&cluster.client, target, 40, 4);
        if outcome.failures.is_empty() && outcome.by_server.len() == 3 { Ok(()) } else { Err(format!("{outcome:?}")) }
    });
    // A Pod that a busy machine lets stand for long is left out for a while.
    eventually("each Pod gets its share", SOON, || {
        let outcome = load::requests(&cluster.client, target, REQUESTS, 8);
        assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
        println!("shares behind an even balancer of nodes: {:?}", outcome.by_server);
        let got = |name: &str| outcome.by_server.get(name).copied().unwrap_or(0) as f64 / REQUESTS as f64;
        let fits = |(name, share): &(&str, f64)| (got(name) - share).abs() < 0.08;
        let all = [("a1", 0.5), ("b1", 0.25), ("b2", 0.25)].iter().all(fits);
        if all { Ok(()) } else { Err(format!("of {REQUESTS}: {:?}", outcome.by_server)) }
    });
}

fn dns_is_answered_and_what_it_answers_is_dialled(cluster: &mut Cluster) {
    cluster.kubelab.apply(&service("web", "web", "ports: [{port: 80, targetPort: http}]"));
    let web = cluster.await_served("web", "", 3);
    for (host, (name, node, address)) in cluster.pods.iter().zip(PODS).take(2) {
        cluster.servers.push(servers::dns(host, cluster.lab.dir(), name, address, &web));
        cluster.kubelab.pod(&Pod { name: &format!("dns-{name}"), app: "dns", node, addresses: &[address] });
    }
    let ports = "ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53}, {name: metrics, port: 9153}]";
    cluster.kubelab.apply(&service("dns", "dns", ports));
    let vip = cluster.await_served("dns", "metrics", 2);
    for (gateway, port) in cluster.gateways.iter().flat_map(|g| ["dns", "dns-tcp"].map(|port| (g, port))) {
        eventually("all of its ports are served", SOON, || match usable(gateway, "dns", port) {
            2 => Ok(()),
            other => Err(format!("{other} endpoints of {port}")),
        });
    }
    for transport in ["+notcp", "+tcp"] {
        let ask = |name: &str, kind: &str| {
            let server = format!("@{vip}");
            let words = [server.as_str(), transport, "+short", "+time=3", "+tries=4", name, kind];
            cluster.client.run("dig", words).trim().to_owned()
        };
        let (mut who, srv) = (std::collections::BTreeSet::new(), ask("_web._tcp.test", "SRV"));
        eventually("both servers answer", SOON, || {
            who.insert(ask("who.test", "TXT"));
            if who.len() == 2 { Ok(()) } else { Err(format!("{who:?}")) }
        });
        // Priority, weight, port, host.
        let [.., port, host] = &srv.split(' ').collect::<Vec<_>>()[..] else { panic!("{srv}") };
        let target = SocketAddr::new(ask(host, "A").parse().expect("an address"), port.parse().expect("a port"));
        let outcome = load::requests(&cluster.client, target, 30, 3);
        assert!(outcome.failures.is_empty() && outcome.answered == 30, "{transport}: {target}: {outcome:?}");
    }
    let metrics = load::requests(&cluster.client, SocketAddr::new(vip.parse().expect("an address"), 9153), 40, 4);
    assert!(metrics.failures.is_empty(), "{:?}", metrics.failures);
    assert_eq!(metrics.by_server.keys().collect::<Vec<_>>(), ["a1", "b1"]);
}

/// Waits until the first node's tables say so, and tells how long that took.
fn seen(what: &str, began: Instant, cluster: &Cluster, is: impl Fn(&Gateway) -> bool) {
    let (gateway, pulse) = (&cluster.gateways[0], Pulse::begin());
    eventually(what, SOON, || if is(gateway) { Ok(()) } else { Err(gateway.json(&["backends"]).to_string()) });
    let (took, stood) = (began.elapsed(), pulse.longest());
    println!("{what}: seen in the tables {took:?} after kubectl ended; the machine stood for {stood:?}");
    assert!(took < Duration::from_secs(5) + stood, "{what}: it took {took:?}, the machine stood for {stood:?}");
}

fn each_change_is_seen_in_the_tables(cluster: &Cluster) {
    let kubelab = &cluster.kubelab;
    let port_is = |gateway: &Gateway, port: u64| {
        let services = gateway.json(&["services", "--service", "changing"]);
        services[0]["ports"][0]["port"] == port
    };
    kubelab.apply(&service("changing", "web", "ports: [{port: 80, targetPort: 8080}]"));
    seen("a Service created", Instant::now(), cluster, |gateway| usable(gateway, "changing", "") == 3);
    assert!(port_is(&cluster.gateways[0], 80));
    let patch = r#"[{"op": "replace", "path": "/spec/ports/0/port", "value": 81}]"#;
    kubelab.kubectl(&["patch", "service", "changing", "--type=json", "-p", patch]);
    seen("a Service updated", Instant::now(), cluster, |gateway| port_is(gateway, 81));
    let pulse = Pulse::begin();
    let now = run("date", ["-u", "+%Y-%m-%dT%H:%M:%SZ"]);
    let condition =
        format!("{{\"type\": \"Ready\", \"status\": \"False\", \"lastTransitionTime\": \"{}\"}}", now.trim());
    kubelab.patch_status("pod/b2", &format!("{{\"conditions\": [{condition}]}}"));
    seen("a Pod changed", Instant::now(), cluster, |gateway| usable(gateway, "changing", "") == 2);
    let (when, stood) = (SystemTime::now(), pulse.longest());
    let trigger = trigger_time(kubelab);
    let latency = when.duration_since(trigger).unwrap_or_default();
    // The trigger is told in whole seconds.
    println!("a Pod changed: seen {latency:?} after its last-change-trigger-time");
    assert!(latency < Duration::from_secs(6) + stood, "{latency:?}, the machine stood for {stood:?}");
    kubelab.ready("b2", true);
    kubelab.kubectl(&["delete", "service", "changing", "--wait=false"]);
    seen("a Service deleted", Instant::now(), cluster, |gateway| {
        usable(gateway, "changing", "") == 0 && !gateway.json(&["services"]).to_string().contains("\"changing\"")
    });
}

/// What the controller says of when the change began that it wrote last for the Service.
fn trigger_time(kubelab: &Kubelab) -> SystemTime {
    let words = ["get", "endpointslices", "-l", "kubernetes.io/service-name=changing", "-o"];
    let path = r"jsonpath={.items[*].metadata.annotations.endpoints\.kubernetes\.io/last-change-trigger-time}";
    let text = kubelab.kubectl(&[&words[..], &[path]].concat());
    let seconds = run("date", ["-u", "-d", text.trim(), "+%s.%N"]);
    UNIX_EPOCH + Duration::from_secs_f64(seconds.trim().parse().unwrap_or_else(|_| panic!("`{text}`: {seconds}")))
}

/// Manifests that an API server judges otherwise, and by which rule of Millrace's own.
const OWN_RULES: [(&str, &str); 7] = [
    ("external-service-clash", "a name occurs once in all files: the API server would take the second for a change"),
    ("loadbalancer-clusterip-outside", "a written ClusterIP outside the range is served, with a warning"),
    ("loop", "an endpoint that is a frontend is refused"),
    ("topology-all", "topologyKeys are known"),
    ("topology-hostname", "topologyKeys are known"),
    ("topology-hostname-any", "topologyKeys are known"),
    ("topology-zone-region", "topologyKeys are known"),
];

/// The manifests that people write, mistakes included: what Millrace refuses of them an API server refuses, and no other.
fn an_api_server_judges_manifests_alike(kubelab: &Kubelab) {
    kubelab.kubectl(&["create", "namespace", "prod"]);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests");
    let files = fs::read_dir(&folder).expect("the manifests").map(|entry| entry.expect("a file").path());
    let mut files: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|extension| extension == "yaml")).collect();
    files.sort();
    assert!(files.len() >= 20, "{files:?}");
    for path in files {
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let outcome = fs::read_to_string(path.with_extension("expect")).expect("its outcome");
        let refused = outcome.lines().any(|line| line.starts_with("finding ") && !line.contains(": warning: "));
        let verdict = kubelab.verdict(&without_other_kinds(&fs::read_to_string(&path).expect("a manifest")));
        let own_rule = OWN_RULES.iter().find(|(own, _)| *own == name);
        let alike = verdict.is_err() == refused;
        assert_eq!(alike, own_rule.is_none(), "{name}: {verdict:?}\n{outcome}\n{own_rule:?}");
    }
}

/// What other controllers do is not judged: of these kinds the files have the beginning alone.
fn without_other_kinds(manifest: &str) -> String {
    let other = |part: &&str| {
        let kind = part.lines().find_map(|line| line.strip_prefix("kind: ")).unwrap_or_default();
        ["Deployment", "Ingress", "Pod"].contains(&kind)
    };
    manifest.split("---\n").filter(|part| !other(part)).collect::<Vec<_>>().join("---\n")
}
