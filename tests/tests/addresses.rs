//! Addresses that Millrace gives Services of a cluster: a real API server, the real controllers, two nodes.
//!
//! Nobody but Millrace writes a status here, unless the test says so. The client has routes, as a routing daemon would
//! make them.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use millrace_tests::kubelab::{Kubelab, Pod};
use millrace_tests::load;
use millrace_tests::millrace::Gateway;
use millrace_tests::topology::Network;
use millrace_tests::wait::eventually;
use nix::sys::signal::Signal;

/// How long a change may take to be in force on a busy machine, where nothing is said of time.
const SOON: Duration = Duration::from_secs(30);
/// How long until another node gives addresses: the Lease of one that was killed lasts 15 s, and is asked for every 4 s.
const SUCCESSION: Duration = Duration::from_secs(60);

/// The pool of [`Network::config`] is taken away for a smaller one.
const RANGE: &str = "10.81.1.96-10.81.1.99";

/// As `kubectl expose --type=LoadBalancer` makes it; `more` is YAML's flow style, for the spec.
fn exposed(name: &str, notes: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, annotations: {{{notes}}}}}\nspec:\n  \
         type: LoadBalancer\n  selector: {{app: web}}\n  ports: [{{port: 80, targetPort: 8080}}]\n{more}"
    )
}

struct Cluster {
    // Dropped in this order: the network's lab has the control plane's host.
    kubelab: Kubelab,
    gateway: Gateway,
    network: Network,
}

impl Cluster {
    /// Node `n1` of a cluster with Pods `p1` and `p2` of `web`, and a configuration with these pools.
    fn new(name: &str, pools: &str) -> Self {
        let mut network = Network::two_nics(name, 2, 1);
        let kubelab = Kubelab::start(&mut network.lab, &[]);
        kubelab.wire(&network.lab, &network.gateway, "api0", "10.77.0.2");
        network.client.route("10.81.1.96/28 via 10.81.1.1");
        kubelab.node("n1", "a");
        for number in 1..=2 {
            let address = network.backend_address(number, false).to_string();
            kubelab.pod(&Pod { name: &format!("p{number}"), app: "web", node: "n1", addresses: &[&address] });
        }
        let config = network.config(&format!(
            "kubernetes: {{kubeconfig: {}}}\nannounce: [{{mode: none}}]\nnode: {{hostname: n1}}\n",
            kubelab.kubeconfig().display()
        ));
        let config: String =
            config.lines().filter(|line| !line.starts_with("pools:")).map(|l| format!("{l}\n")).collect();
        let gateway = Gateway::new(&network.gateway, network.lab.dir(), &format!("{config}{pools}\n"));
        Self { kubelab, gateway, network }
    }

    /// A second node of the cluster, which only gives: its wires lead nowhere.
    fn second(&mut self) -> Gateway {
        let host = self.network.lab.host("gw2");
        let other = self.network.lab.host("nowhere");
        self.network.lab.wire((&host, "eth0"), (&other, "eth0"), 1);
        host.address("eth0", "10.83.1.1/24");
        self.kubelab.wire(&self.network.lab, &host, "api1", "10.77.0.3");
        self.kubelab.node("n2", "a");
        let folder = self.network.lab.dir().join("second");
        fs::create_dir_all(&folder).expect("a folder");
        Gateway::new(&host, &folder, &self.config_of_second())
    }

    fn config_of_second(&self) -> String {
        format!(
            "interfaces: [eth0]\nsnat: {{addresses: [10.83.1.100]}}\npools: [{{name: public, addresses: [{RANGE}]}}]\n\
             kubernetes: {{kubeconfig: {}}}\nannounce: [{{mode: none}}]\nnode: {{hostname: n2}}\n",
            self.kubelab.kubeconfig().display()
        )
    }

    fn field(&self, service: &str, path: &str) -> String {
        self.kubelab.kubectl(&["get", "service", service, "-o", &format!("jsonpath={{{path}}}")]).trim().to_owned()
    }

    fn address(&self, service: &str) -> String {
        self.field(service, ".status.loadBalancer.ingress[*].ip")
    }

    fn await_address(&self, service: &str, fits: impl Fn(&str) -> bool) -> String {
        let mut found = String::new();
        eventually(&format!("{service} has its address"), SOON, || {
            found = self.address(service);
            if fits(&found) { Ok(()) } else { Err(format!("`{found}`\n{}", self.gateway.log_text())) }
        });
        found
    }

    fn await_given(&self, service: &str) -> String {
        self.await_address(service, |address| !address.is_empty())
    }

    /// Waits until requests to an address are answered by both Pods.
    fn await_served(&self, address: &str, port: u16) {
        let target = SocketAddr::new(address.parse().expect("an address"), port);
        eventually(&format!("{target} is served"), SOON, || {
            let outcome = load::requests(&self.network.client, target, 40, 4);
            let both = outcome.failures.is_empty() && outcome.by_server.len() == 2;
            if both { Ok(()) } else { Err(format!("{outcome:?}\n{}", self.gateway.log_text())) }
        });
    }

    /// Waits for an event of a Service.
    fn await_event(&self, service: &str, reason: &str) {
        let select =
            format!("--field-selector=involvedObject.kind=Service,involvedObject.name={service},reason={reason}");
        eventually(&format!("{reason} is told of {service}"), SOON, || {
            let events = self.kubelab.kubectl(&["get", "events", &select, "-o", "name"]);
            if events.trim().is_empty() { Err(self.kubelab.kubectl(&["get", "events"])) } else { Ok(()) }
        });
    }

    /// Which node gives addresses.
    fn holder(&self) -> String {
        self.kubelab.kubectl(&["get", "lease", "millrace-allocator", "-o", "jsonpath={.spec.holderIdentity}"])
    }

    fn await_gone(&self, service: &str) {
        eventually(&format!("{service} is gone"), SOON, || {
            let left = self.kubelab.kubectl(&["get", "service", "--ignore-not-found", "-o", "name", service]);
            if left.trim().is_empty() { Ok(()) } else { Err(self.gateway.log_text()) }
        });
    }

    /// Holds the API server to refuse a manifest, and waits until it says this: at first it may not know the kind.
    fn is_refused(&self, manifest: &str, says: &str) {
        let file = self.network.lab.dir().join("refused.yaml");
        fs::write(&file, manifest).expect("a manifest");
        eventually(&format!("why it is refused is said: {manifest}"), SOON, || {
            let words = ["apply", "-f", file.to_str().expect("a path")];
            let said = self.kubelab.try_kubectl(&words).expect_err("it is refused");
            if said.contains(says) { Ok(()) } else { Err(format!("expected `{says}`, and it says: {said}")) }
        });
    }
}

#[test]
fn services_get_addresses_are_served_there_and_give_them_back() {
    let mut cluster = Cluster::new("addresses", &format!("pools: [{{name: public, addresses: [{RANGE}]}}]"));
    let process = cluster.gateway.start();
    let asked = Instant::now();
    cluster.kubelab.apply(&exposed("web", "", ""));
    let web = cluster.await_given("web");
    println!("an address is given {:?} after kubectl began", asked.elapsed());
    cluster.await_served(&web, 80);
    println!("and served {:?} after it", asked.elapsed());
    assert_eq!(cluster.field("web", ".status.loadBalancer.ingress[0].ipMode"), "Proxy");
    assert_eq!(cluster.field("web", ".metadata.finalizers[*]"), "service.kubernetes.io/load-balancer-cleanup");
    assert_eq!(cluster.field("web", ".status.conditions[?(@.type==\"millrace.dev/Addressed\")].status"), "True");
    cluster.await_event("web", "AddressGiven");
    an_address_of_others_is_replaced(&cluster, &web);
    who_asks_gets_shares_and_direct_modes_are_told(&cluster);
    another_class_is_left_alone(&cluster);
    an_empty_pool_is_told_and_what_is_released_is_given_on(&cluster);
    drop(process);
}

/// Whoever writes a status: it is neither served nor left there.
fn an_address_of_others_is_replaced(cluster: &Cluster, web: &str) {
    cluster.kubelab.assign("web", &["10.82.1.12"]);
    let again = cluster.await_address("web", |address| address.starts_with("10.81.1."));
    assert_eq!(again, web, "what a Service's name leads to is free still");
    cluster.await_served(web, 80);
    let backends = cluster.gateway.json(&["services"]).to_string();
    assert!(!backends.contains("10.82.1.12"), "{backends}");
}

fn who_asks_gets_shares_and_direct_modes_are_told(cluster: &Cluster) {
    let notes = "millrace.dev/addresses: 10.81.1.98, millrace.dev/share: one";
    cluster.kubelab.apply(&exposed("first", notes, ""));
    cluster.await_address("first", |address| address == "10.81.1.98");
    let other_port = exposed("second", notes, "").replace("port: 80,", "port: 81,");
    cluster.kubelab.apply(&other_port);
    cluster.await_address("second", |address| address == "10.81.1.98");
    cluster.await_served("10.81.1.98", 80);
    cluster.await_served("10.81.1.98", 81);
    cluster.kubelab.apply(&exposed("third", notes, ""));
    cluster.await_event("third", "AddressTaken");
    assert_eq!(cluster.address("third"), "");
    // It asks for another one now, and moves.
    cluster.kubelab.apply(&exposed("third", "millrace.dev/mode: dsr-l2, millrace.dev/addresses: 10.81.1.99", ""));
    cluster.await_address("third", |address| address == "10.81.1.99");
    assert_eq!(cluster.field("third", ".status.loadBalancer.ingress[0].ipMode"), "VIP");
    let error = ".status.loadBalancer.ingress[0].ports[0].error";
    assert_eq!(cluster.field("third", error), "millrace.dev/TargetPortDiffers");
    for name in ["first", "second", "third"] {
        cluster.kubelab.kubectl(&["delete", "service", name, "--wait=false"]);
        cluster.await_gone(name);
        cluster.await_event(name, "AddressReleased");
    }
}

fn another_class_is_left_alone(cluster: &Cluster) {
    let class = |class: &str| format!("  loadBalancerClass: {class}\n");
    cluster.kubelab.apply(&exposed("others", "", &class("example.com/other")));
    cluster.kubelab.assign("others", &["10.81.1.97"]);
    cluster.kubelab.apply(&exposed("ours", "", &class("millrace.dev/millrace")));
    let ours = cluster.await_given("ours");
    assert_ne!(ours, "");
    assert_eq!(cluster.address("others"), "10.81.1.97", "another's provider writes it");
    assert_eq!(cluster.field("others", ".metadata.finalizers[*]"), "");
    for name in ["others", "ours"] {
        cluster.kubelab.kubectl(&["delete", "service", name, "--wait=false"]);
        cluster.await_gone(name);
    }
}

fn an_empty_pool_is_told_and_what_is_released_is_given_on(cluster: &Cluster) {
    let kubelab = &cluster.kubelab;
    for name in ["a", "b", "c"] {
        kubelab.apply(&exposed(name, "", ""));
        cluster.await_given(name);
    }
    kubelab.apply(&exposed("late", "", ""));
    cluster.await_event("late", "PoolEmpty");
    let condition = ".status.conditions[?(@.type==\"millrace.dev/Addressed\")].reason";
    eventually("the status says so", SOON, || {
        let found = cluster.field("late", condition);
        if found == "PoolEmpty" { Ok(()) } else { Err(format!("`{found}`")) }
    });
    assert_eq!(cluster.address("late"), "");
    eventually("the metrics say so", SOON, || {
        let metric = |name: &str| cluster.gateway.metric(name, "pool=\"public\"");
        let found =
            ["millrace_pool_addresses", "millrace_pool_addresses_given", "millrace_pool_addresses_free"].map(metric);
        if found == [4.0, 4.0, 0.0] { Ok(()) } else { Err(format!("{found:?}")) }
    });
    // Another type gives its address back, to who waits.
    let freed = cluster.address("b");
    kubelab.kubectl(&["patch", "service", "b", "-p", "{\"spec\": {\"type\": \"ClusterIP\"}}"]);
    cluster.await_address("late", |address| address == freed);
    cluster.await_served(&freed, 80);
    eventually("nothing of ours is left of it", SOON, || {
        let left = cluster.field("b", ".metadata.finalizers[*]") + &cluster.field("b", ".status.conditions[*].type");
        if left.is_empty() && cluster.address("b").is_empty() { Ok(()) } else { Err(left) }
    });
    cluster.await_event("b", "AddressReleased");
}

#[test]
fn addresses_stay_when_who_gives_them_is_killed_and_another_one_goes_on() {
    let mut cluster = Cluster::new("addresses-two", &format!("pools: [{{name: public, addresses: [{RANGE}]}}]"));
    let mut first = cluster.gateway.start();
    cluster.kubelab.apply(&exposed("web", "", ""));
    let web = cluster.await_given("web");
    let mut gateway = cluster.second();
    let second = gateway.start();
    assert_eq!(cluster.holder(), "n1");
    let leads = |gateway: &Gateway| gateway.metric("millrace_allocator_leads", "");
    assert_eq!((leads(&cluster.gateway), leads(&gateway)), (1.0, 0.0));
    first.signal(Signal::SIGKILL);
    let _ = first.wait(SOON);
    let killed = Instant::now();
    cluster.kubelab.apply(&exposed("api", "", ""));
    let mut api = String::new();
    eventually("another node gives addresses", SUCCESSION, || {
        api = cluster.address("api");
        if api.is_empty() { Err(gateway.log_text()) } else { Ok(()) }
    });
    println!("another node gives addresses {:?} after the first was killed", killed.elapsed());
    assert_eq!(cluster.holder(), "n2");
    assert!(api != web && cluster.address("web") == web, "`{api}` `{web}`");
    // It is back, gives nothing while the other does, and serves what is given.
    let first = cluster.gateway.start();
    cluster.await_served(&web, 80);
    cluster.await_served(&api, 80);
    assert_eq!((leads(&cluster.gateway), leads(&gateway)), (0.0, 1.0));
    // One that ends in order lets go of it.
    let ended = Instant::now();
    second.signal(Signal::SIGTERM);
    eventually("the first gives again", SOON, || if cluster.holder() == "n1" { Ok(()) } else { Err(cluster.holder()) });
    println!("the first gives again {:?} after the second was told to end", ended.elapsed());
    cluster.kubelab.apply(&exposed("late", "", ""));
    let late = cluster.await_given("late");
    assert!(late != web && late != api);
    assert_eq!((cluster.address("web"), cluster.address("api")), (web, api));
    drop((first, second));
}

#[test]
fn a_cluster_has_pools_of_its_own_and_refuses_those_that_cannot_be() {
    let mut cluster = Cluster::new("addresses-crd", "nodes: {n2: {snat: {addresses: [10.81.1.97]}}}");
    let process = cluster.gateway.start();
    // Without a pool nothing is touched.
    cluster.kubelab.apply(&exposed("web", "", ""));
    cluster.kubelab.assign("web", &["10.82.1.12"]);
    let crd = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes/crds/addresspool.yaml");
    cluster.kubelab.apply(&fs::read_to_string(crd).expect("the CRD"));
    cluster.kubelab.kubectl(&["wait", "--for=condition=Established", "crd/addresspools.millrace.dev", "--timeout=60s"]);
    let pool = |name: &str, spec: &str| {
        format!("apiVersion: millrace.dev/v1alpha1\nkind: AddressPool\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n")
    };
    for (spec, says) in [
        ("addresses: [here]", "expected ADDRESS, ADDRESS/PREFIX or FIRST-LAST"),
        ("addresses: [203.0.113.0/33]", "expected ADDRESS, ADDRESS/PREFIX or FIRST-LAST"),
        ("addresses: [203.0.113.9-203.0.113.1]", "the last address comes before the first"),
        ("addresses: ['203.0.113.9-2001:db8::1']", "different families"),
        ("addresses: [127.0.0.0/24]", "none of loopback"),
        ("addresses: [0.0.0.0/0]", "expected a prefix of 8"),
        ("addresses: []", "at least 1"),
        ("priority: 1", "Required value"),
        ("addresses: [203.0.113.1], serviceSelector: {matchExpressions: [{key: a, operator: In}]}", "expected values"),
    ] {
        cluster.is_refused(&pool("wrong", spec), says);
    }
    assert_eq!(cluster.address("web"), "10.82.1.12", "there is no pool yet");
    let selector = "serviceSelector: {matchLabels: {tier: gold}}";
    cluster.kubelab.apply(&pool("gold", &format!("addresses: [10.81.1.104], priority: 1, {selector}")));
    cluster.kubelab.apply(&pool("rest", "addresses: [10.81.1.96/30]"));
    let web = cluster.await_address("web", |address| address.starts_with("10.81.1.9"));
    cluster.await_served(&web, 80);
    cluster.kubelab.apply(&exposed("other", "millrace.dev/addresses: 10.81.1.97", ""));
    cluster.await_event("other", "AddressReserved");
    assert_ne!(cluster.address("other"), "10.81.1.97", "it is of another node's snat");
    cluster.kubelab.kubectl(&["delete", "service", "other"]);
    cluster.kubelab.apply(&exposed("rich", "", "").replace("name: rich,", "name: rich, labels: {tier: gold},"));
    cluster.await_address("rich", |address| address == "10.81.1.104");
    cluster.await_served("10.81.1.104", 80);
    // A pool that goes takes its addresses along: who had one gets another.
    cluster.kubelab.kubectl(&["delete", "addresspool", "gold"]);
    let rich = cluster.await_address("rich", |address| address.starts_with("10.81.1.9"));
    cluster.await_served(&rich, 80);
    assert_eq!(cluster.address("web"), web);
    drop(process);
}
