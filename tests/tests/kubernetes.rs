//! Millrace on a node of a cluster: a real API server, the real controllers, Pods as network namespaces.
//!
//! Addresses of Services are announced by nobody here: the client has routes, as a routing daemon would make them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use millrace_tests::kubelab::{Kubelab, Pod, WEB};
use millrace_tests::load;
use millrace_tests::millrace::Gateway;
use millrace_tests::pulse::Pulse;
use millrace_tests::topology::{Network, VIP, VIP6};
use millrace_tests::wait::eventually;

/// How long a change may take to be in force on a busy machine, where nothing is said of time. Controllers ask an API server
/// that was away for long the seldomer.
const SOON: Duration = Duration::from_secs(60);
/// How long until an API server is given up that says nothing: 20 s until a watch is to end and 8 s more, or 30 s where an
/// answer is waited for, and what a busy machine adds.
const SILENCE: Duration = Duration::from_secs(60);

/// A selector-less Service with a machine outside the cluster.
fn outside(network: &Network) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: outside}}\nspec:\n  type: LoadBalancer\n  \
         ports: [{{port: 80, targetPort: 8080}}]\n---\napiVersion: v1\nkind: Endpoints\nmetadata: {{name: outside}}\n\
         subsets: [{{addresses: [{{ip: {}}}], ports: [{{port: 8080}}]}}]\n",
        network.backend_address(3, false)
    )
}

struct Cluster {
    // Dropped in this order: the network's lab has the control plane's host.
    kubelab: Kubelab,
    gateway: Gateway,
    network: Network,
}

impl Cluster {
    /// A node of a cluster with Service `web` and so many Pods `p1` … of it.
    fn new(name: &str, pods: usize, more: &[&str]) -> Self {
        let mut network = Network::two_nics(name, 3, 1);
        let kubelab = Kubelab::start(&mut network.lab, more);
        kubelab.wire(&network.lab, &network.gateway, "api0", "10.77.0.2");
        network.client.route(&format!("{VIP}/32 via 10.81.1.1"));
        network.client.route(&format!("{VIP6}/128 via fd81:1::1"));
        network.client.route("10.81.1.101/32 via 10.81.1.1");
        kubelab.node("n1", "a");
        kubelab.apply(WEB);
        for number in 1..=pods {
            let addresses = [false, true].map(|ipv6| network.backend_address(number, ipv6).to_string());
            let addresses = [addresses[0].as_str(), addresses[1].as_str()];
            kubelab.pod(&Pod { name: &format!("p{number}"), app: "web", node: "n1", addresses: &addresses });
        }
        kubelab.assign("web", &[VIP, VIP6]);
        let config = network.config(&format!(
            "kubernetes: {{kubeconfig: {}}}\nannounce: [{{mode: none}}]\nnode: {{hostname: n1}}\n",
            kubelab.kubeconfig().display()
        ));
        let gateway = Gateway::new(&network.gateway, network.lab.dir(), &config);
        Self { kubelab, gateway, network }
    }

    /// Waits until so many Pods of `web` get new flows, in each family.
    fn await_usable(&self, pods: usize, deadline: Duration) {
        eventually("the Pods that are to be used are", deadline, || {
            let usable = self.usable("default/web");
            if usable == 2 * pods { Ok(()) } else { Err(format!("{usable} endpoints of both families")) }
        });
    }

    fn usable(&self, service: &str) -> usize {
        let backends = self.gateway.json(&["backends"]);
        let all = backends.as_array().expect("a list");
        all.iter().filter(|backend| backend["service"] == service && backend["state"] == "usable").count()
    }

    /// All of these answer at `web` in one family, and nobody else; who seems dead on a busy machine is set aside for a while.
    fn answered_by(&self, ipv6: bool, names: &[&str]) {
        let mut by = BTreeSet::new();
        eventually("all answer", SOON, || {
            let outcome = load::requests(&self.network.client, self.network.vip(ipv6), 60, 6);
            assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
            by.extend(outcome.by_server.into_keys());
            assert!(by.iter().all(|name| names.contains(&name.as_str())), "ipv6 {ipv6}: {by:?}, not {names:?}");
            if by.len() == names.len() { Ok(()) } else { Err(format!("ipv6 {ipv6}: {by:?}, not {names:?}")) }
        });
    }

    fn await_nothing_wrong(&self) {
        eventually("nothing is wrong any more", SOON, || {
            let errors = self.gateway.json(&["status"])["errors"].clone();
            if errors.as_array().is_some_and(Vec::is_empty) { Ok(()) } else { Err(errors.to_string()) }
        });
    }

    /// Why a Service is not served: `namespace`/`name`.
    fn not_served(&self, (namespace, name): (&str, &str)) -> Option<String> {
        let services = self.gateway.json(&["services"]);
        let of = |service: &&serde_json::Value| service["namespace"] == namespace && service["name"] == name;
        services.as_array().expect("a list").iter().find(of)?["notServed"].as_str().map(str::to_owned)
    }
}

#[test]
fn pods_are_served_while_they_are_ready_and_without_an_api_server_those_seen_last() {
    let mut cluster = Cluster::new("kubernetes", 3, &[]);
    let mut process = cluster.gateway.start();
    cluster.await_usable(3, SOON);
    for ipv6 in [false, true] {
        cluster.answered_by(ipv6, &["b1", "b2", "b3"]);
    }
    let (started, pulse) = (Instant::now(), Pulse::begin());
    cluster.kubelab.ready("p3", false);
    let patched = Instant::now();
    cluster.await_usable(2, SOON);
    let (took, of_all, stood) = (patched.elapsed(), started.elapsed(), pulse.longest());
    println!(
        "a Pod that is not ready is left {took:?} after kubectl ended, {of_all:?} after it began; the machine stood for {stood:?}"
    );
    // API server, controller and node come one after the other.
    assert!(took < Duration::from_secs(1) + 3 * stood, "it took {took:?}, and the machine stood for {stood:?}");
    for ipv6 in [false, true] {
        cluster.answered_by(ipv6, &["b1", "b2"]);
    }
    addresses_of_others_are_not_served(&cluster);

    assert!(cluster.gateway.admin(&["stop"]).status.success(), "nothing is left but what is kept");
    assert!(process.wait(SOON).is_some_and(|status| status.success()));
    cluster.kubelab.kill_api_server();
    process = cluster.gateway.start();
    cluster.answered_by(false, &["b1", "b2"]);
    eventually("it is shown that the API server is not there", SOON, || {
        let status = cluster.gateway.json(&["status"]);
        let errors = status["errors"].as_array().expect("a list");
        let is_said = errors.iter().any(|error| error.as_str().is_some_and(|e| e.contains("cannot be followed")));
        if is_said { Ok(()) } else { Err(status.to_string()) }
    });
    cluster.kubelab.start_api_server();
    cluster.kubelab.ready("p3", true);
    cluster.await_usable(3, SOON);
    cluster.await_nothing_wrong();
    a_silent_api_server_is_noticed_and_harms_nobody(&cluster);
    drop(process);
}

/// Packets to and from the API server vanish, on connections that are there and for new ones.
fn a_silent_api_server_is_noticed_and_harms_nobody(cluster: &Cluster) {
    let Cluster { kubelab, gateway, network } = cluster;
    let synced = || gateway.metric("millrace_kubernetes_synced", "");
    let kinds = synced();
    let requests = load::steady(&network.client, network.vip(false), 2);
    let held = load::hold(&network.client, network.vip(true), 4, Duration::from_millis(20));
    held.await_each(SOON);
    network.gateway.run("nft", ["add", "table", "inet", "partition"]);
    for hook in ["input", "output"] {
        let side = if hook == "input" { "iifname" } else { "oifname" };
        let rules = format!(
            "add chain inet partition {hook} {{ type filter hook {hook} priority 0; }}; \
             add rule inet partition {hook} {side} api0 drop"
        );
        network.gateway.run("nft", rules.split(' '));
    }
    let began = Instant::now();
    kubelab.ready("p3", false);
    eventually("it is noticed that the API server says nothing", SILENCE, || match synced() {
        0.0 => Ok(()),
        some => Err(format!("{some} of {kinds} kinds are followed")),
    });
    println!("a partition is noticed {:?} after it began", began.elapsed());
    assert_eq!(cluster.usable("default/web"), 6, "what was seen last is served");
    requests.await_answers(100, SOON);
    network.gateway.run("nft", ["delete", "table", "inet", "partition"]);
    cluster.await_usable(2, SOON);
    cluster.await_nothing_wrong();
    eventually("all kinds are followed again", SOON, || match synced() {
        all if all == kinds => Ok(()),
        some => Err(format!("{some} of {kinds} kinds are followed")),
    });
    requests.await_answers(100, SOON);
    for outcome in [requests.finish(), held.finish()] {
        assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
    }
}

/// Only addresses of our pools are served, whoever writes them where; hand-written Endpoints are.
fn addresses_of_others_are_not_served(cluster: &Cluster) {
    let Cluster { kubelab, gateway, network } = cluster;
    kubelab.apply(&outside(network));
    kubelab.apply("apiVersion: v1\nkind: Service\nmetadata: {name: thief}\nspec:\n  externalIPs: [10.82.1.12]\n  ports: [{port: 80}]\n");
    kubelab.assign("outside", &["10.82.1.12"]);
    eventually("an address of no pool is not served", SOON, || {
        let log = gateway.log_text();
        if log.contains("`10.82.1.12` is not served") { Ok(()) } else { Err(log) }
    });
    eventually("an external IP is not served", SOON, || {
        cluster.not_served(("default", "thief")).ok_or_else(|| gateway.json(&["services"]).to_string())
    });
    kubelab.assign("outside", &["10.81.1.101"]);
    eventually("hand-written Endpoints are served", SOON, || match cluster.usable("default/outside") {
        1 => Ok(()),
        other => Err(format!("{other} endpoints")),
    });
    let outcome = load::requests(&network.client, "10.81.1.101:80".parse().expect("an address"), 10, 2);
    assert!(outcome.failures.is_empty() && outcome.by_server.contains_key("b3"), "{outcome:?}");
}

#[test]
fn no_request_fails_while_watches_end_and_the_api_server_dies_or_is_restored_from_a_backup() {
    // Watches end after 4 to 8 s.
    let mut cluster = Cluster::new("kubernetes-restarts", 3, &["--min-request-timeout=4"]);
    // A node that has seen nothing of its cluster yet waits for it.
    cluster.kubelab.kill_api_server();
    let mut process = cluster.gateway.launch();
    eventually("it says what it waits for", SOON, || {
        let log = cluster.gateway.log_text();
        if log.contains("cannot be followed: ") { Ok(()) } else { Err(log) }
    });
    assert!(!cluster.gateway.admin(&["status"]).status.success(), "nothing is served by half of what there is");
    cluster.kubelab.start_api_server();
    cluster.gateway.await_ready(&mut process);
    cluster.await_usable(3, SOON);
    let requests = load::steady(&cluster.network.client, cluster.network.vip(false), 4);
    let held = load::hold(&cluster.network.client, cluster.network.vip(true), 12, Duration::from_millis(20));
    held.await_each(SOON);
    let backup = cluster.kubelab.back_up();
    requests.await_answers(200, SOON);
    cluster.kubelab.restart_from(None);
    for turn in 0..8 {
        cluster.kubelab.ready("p3", turn % 2 == 1);
        cluster.await_usable(if turn % 2 == 1 { 3 } else { 2 }, SOON);
        requests.await_answers(200, SOON);
    }
    cluster.kubelab.apply(&outside(&cluster.network));
    cluster.kubelab.assign("outside", &["10.81.1.101"]);
    eventually("what is not in the backup is served", SOON, || {
        if cluster.usable("default/outside") == 1 { Ok(()) } else { Err("it is not".to_owned()) }
    });
    cluster.kubelab.restart_from(Some(&backup));
    eventually("what is not in the backup goes", SOON, || match cluster.usable("default/outside") {
        0 => Ok(()),
        other => Err(format!("{other} endpoints")),
    });
    // Of versions that the API server has not reached no event would come.
    cluster.kubelab.ready("p3", false);
    cluster.await_usable(2, SOON);
    requests.await_answers(200, SOON);
    let (requests, held) = (requests.finish(), held.finish());
    assert!(requests.failures.is_empty(), "requests failed: {:?}", requests.failures);
    assert!(held.failures.is_empty(), "connections broke: {:?}", held.failures);
    println!("{} requests, {} answers on connections that stayed", requests.answered, held.answered);
}
