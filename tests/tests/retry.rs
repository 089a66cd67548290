//! Connections that open while endpoints are dead or remember former ones: three ways to balance, and what clients see.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use millrace_tests::lab::{Host, Process};
use millrace_tests::load::{self, Outcome};
use millrace_tests::millrace::Gateway;
use millrace_tests::pulse::Pulse;
use millrace_tests::servers;
use millrace_tests::topology::{Network, VIP};
use millrace_tests::wait::eventually;

const END: Duration = Duration::from_secs(30);
/// How long clients wait for a connection, less than it takes to send a lost SYN again.
const PATIENCE: Duration = Duration::from_millis(900);
/// Where the machine stands for less than that, nobody's patience ends for it.
const SHORT: Duration = Duration::from_millis(200);
/// The connects that find out that an endpoint is dead.
const FIRST: usize = 100;

/// How an endpoint is dead.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Death {
    /// Its kernel answers with resets.
    Refuses,
    /// Its kernel drops what comes.
    Silent,
    /// Its kernel answers with ICMP errors.
    Unreachable,
}

/// Two NICs and three backends, whose default route is the gateway.
fn network(name: &str) -> Network {
    let network = Network::two_nics(name, 3, 1);
    network.route_backends_by_gateway();
    network
}

/// What `nft -f` makes of the rules on a host.
fn nft(host: &Host, network: &Network, rules: &str) {
    let file = network.lab.dir().join("rules.nft");
    fs::write(&file, rules).expect("rules");
    host.run("nft", ["-f", &file.display().to_string()]);
}

/// The second backend is dead from now on.
fn kill(network: &mut Network, death: Death) {
    let verdict = match death {
        Death::Refuses => "reject with tcp reset",
        Death::Silent => "drop",
        Death::Unreachable => "reject with icmpx type host-unreachable",
    };
    let rules = format!(
        "table inet dead\ndelete table inet dead\ntable inet dead {{\n  chain input {{\n    type filter hook input \
         priority 0; policy accept;\n    tcp dport 8080 {verdict}\n  }}\n}}\n"
    );
    // Each is told.
    network.backends[1].sysctl("net.ipv4.icmp_ratelimit", "0");
    network.backends[1].sysctl("net.ipv6.icmp.ratelimit", "0");
    nft(&network.backends[1], network, &rules);
}

fn millrace(network: &Network, mode: &str) -> (Gateway, Process) {
    let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &network.config(""));
    gateway.manifest("web.yaml", &network.manifest(&[1, 2, 3], &[&format!("millrace.dev/mode: {mode}")]));
    let process = gateway.start();
    (gateway, process)
}

/// The longest of all but one in a hundred.
fn p99(connects: &[Duration]) -> Duration {
    let mut sorted = connects.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() * 99 / 100]
}

/// 10,000 requests with one of three endpoints dead and no health check: none fails, and none waits long. `pulse` has looked
/// since the endpoints were met first: who was late then is waited for three times as long.
fn ten_thousand(network: &Network, gateway: &Gateway, mode: &str, (death, pulse): (Death, Pulse), ipv6: bool) {
    let retried = gateway.metric("millrace_connect_retries_total", "result=\"sent\"");
    let outcome = load::requests(&network.client, network.vip(ipv6), 10_000, 20);
    let stood = pulse.longest();
    assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
    assert_eq!((outcome.answered, outcome.by_server.contains_key("b2")), (10_000, false));
    let (first, then) = outcome.connects.split_at(FIRST);
    let retried = gateway.metric("millrace_connect_retries_total", "result=\"sent\"") - retried;
    let longest = outcome.connects.iter().max().expect("connects");
    println!(
        "{mode}, {death:?}, ipv6 {ipv6}: p99 of the first {FIRST} connects {:?}, then {:?}, longest {longest:?}; {retried} retries; \
         the machine stood for {stood:?}",
        p99(first),
        p99(then)
    );
    assert!(p99(first) <= Duration::from_millis(300) + 4 * stood, "{:?}, the machine stood for {stood:?}", p99(first));
    assert!(p99(then) <= Duration::from_millis(50) + stood, "{:?}, the machine stood for {stood:?}", p99(then));
    assert!((1.0..1_000.0).contains(&retried), "{retried} retries: it is set aside soon");
}

#[test]
fn with_one_of_three_endpoints_dead_and_no_health_check_none_of_ten_thousand_requests_fails() {
    for mode in ["nat", "preserve"] {
        for death in [Death::Refuses, Death::Silent, Death::Unreachable] {
            let mut network = network(&format!("dead-{mode}"));
            let (gateway, _process) = millrace(&network, mode);
            // Who asked whom for a link-layer address first is not what is measured.
            let pulses = [false, true].map(|ipv6| {
                let (pulse, mut met) = (Pulse::begin(), BTreeSet::new());
                eventually("all endpoints are met", END, || {
                    let all = load::requests(&network.client, network.vip(ipv6), 200, 20);
                    assert!(all.failures.is_empty(), "{all:?}");
                    met.extend(all.by_server.into_keys());
                    if met.len() == 3 { Ok(()) } else { Err(format!("{met:?}")) }
                });
                pulse
            });
            kill(&mut network, death);
            for (ipv6, pulse) in [false, true].into_iter().zip(pulses) {
                ten_thousand(&network, &gateway, mode, (death, pulse), ipv6);
            }
            let dead = network.backend_address(2, false).to_string();
            let listed = gateway.json(&["backends", "--backend", &dead]);
            assert!(listed.to_string().contains("set-aside"), "{listed}");
        }
    }
}

#[test]
fn an_endpoint_that_comes_back_serves_again_within_its_time_aside() {
    let mut network = network("back");
    let (gateway, _process) = millrace(&network, "nat");
    kill(&mut network, Death::Refuses);
    let outcome = load::requests(&network.client, network.vip(false), 300, 10);
    assert!(outcome.failures.is_empty() && !outcome.by_server.contains_key("b2"), "{outcome:?}");
    nft(&network.backends[1], &network, "delete table inet dead\n");
    let dead = network.backend_address(2, false).to_string();
    eventually("the endpoint serves again", END, || {
        let outcome = load::requests(&network.client, network.vip(false), 30, 3);
        assert!(outcome.failures.is_empty(), "{outcome:?}");
        let listed = gateway.json(&["backends", "--backend", &dead]).to_string();
        let serves = outcome.by_server.contains_key("b2") && !listed.contains("set-aside");
        if serves { Ok(()) } else { Err(format!("{:?}, {listed}", outcome.by_server)) }
    });
}

/// As kube-proxy's rules have it: an endpoint is drawn, and that is that.
fn by_rules(network: &Network) -> Outcome {
    let gateway = &network.gateway;
    gateway.address("eth0", &format!("{VIP}/32"));
    gateway.sysctl("net.ipv4.ip_forward", "1");
    let draws = [1, 2, 3].map(|n| format!("{} : {}", n - 1, network.backend_address(n, false)));
    let rules = format!(
        "table ip balance {{\n  chain prerouting {{\n    type nat hook prerouting priority dstnat;\n    \
         ip daddr {VIP} tcp dport 80 dnat to numgen random mod 3 map {{ {} }} : 8080\n  }}\n  chain postrouting {{\n    \
         type nat hook postrouting priority srcnat;\n    ip daddr 10.82.1.0/24 masquerade\n  }}\n}}\n",
        draws.join(", ")
    );
    nft(gateway, network, &rules);
    let outcome = load::requests_within(&network.client, network.vip(false), 600, 20, PATIENCE);
    nft(gateway, network, "delete table ip balance\n");
    gateway.run("ip", ["addr", "del", &format!("{VIP}/32"), "dev", "eth0"]);
    outcome
}

/// The 600 requests anew where one of them failed and the machine stood for so long that a client's patience may have ended.
fn patiently(network: &Network) -> Outcome {
    eventually("none fails, or the machine goes on all the time", 2 * END, || {
        let pulse = Pulse::begin();
        let outcome = load::requests_within(&network.client, network.vip(false), 600, 20, PATIENCE);
        let stood = pulse.longest();
        let counts = outcome.failures.is_empty() || stood < SHORT;
        if counts { Ok(outcome) } else { Err(format!("the machine stood for {stood:?}: {outcome:?}")) }
    })
}

/// A userspace proxy ends the client's connection itself, and connects to whom it can.
fn by_proxy(network: &Network) -> Outcome {
    let gateway = &network.gateway;
    gateway.address("eth0", &format!("{VIP}/32"));
    let servers: String =
        [1, 2, 3].map(|n| format!("  server b{n} {}:8080\n", network.backend_address(n, false))).concat();
    let config = network.lab.dir().join("haproxy.cfg");
    let text = format!(
        "defaults\n  mode tcp\n  timeout client 10s\n  timeout server 10s\n  timeout connect 250ms\n  retries 3\n  \
         option redispatch 1\nlisten web\n  bind {VIP}:80\n  balance roundrobin\n{servers}"
    );
    fs::write(&config, text).expect("its configuration");
    let mut command = gateway.command("haproxy");
    command.arg("-db").arg("-f").arg(&config);
    let process = gateway.spawn("haproxy", command, &network.lab.dir().join("haproxy.log"));
    eventually("haproxy listens", END, || {
        let listening = gateway.run("ss", ["-ltnH", "sport = :80"]);
        if listening.contains(VIP) { Ok(()) } else { Err(listening) }
    });
    let outcome = patiently(network);
    drop(process);
    gateway.run("ip", ["addr", "del", &format!("{VIP}/32"), "dev", "eth0"]);
    outcome
}

#[test]
fn of_three_ways_rules_lose_connects_to_a_dead_endpoint_and_a_proxy_and_millrace_do_not() {
    servers::require(&["nft", "haproxy"]);
    for death in [Death::Refuses, Death::Silent] {
        let mut network = network("ways");
        kill(&mut network, death);
        let [rules, proxy] = [by_rules(&network), by_proxy(&network)];
        let (_gateway, _process) = millrace(&network, "nat");
        let none = load::requests(&network.client, network.vip(false), 20, 1);
        assert!(none.failures.is_empty(), "{none:?}");
        let millrace = patiently(&network);
        for (name, outcome) in [("rules", &rules), ("proxy", &proxy), ("Millrace", &millrace)] {
            let failed: u64 = outcome.failures.values().sum();
            println!("{death:?}, {name}: {failed} of 600 fail {:?}", outcome.failures);
            match name {
                "rules" => assert!((130..=270).contains(&failed), "a third: {outcome:?}"),
                _ => assert_eq!(failed, 0, "{name}: {outcome:?}"),
            }
        }
    }
}

/// Many clients, whose sequence numbers and timestamps have nothing to do with one another, on few SNAT ports to one
/// endpoint that closes first and so remembers each connection for a minute.
#[test]
fn of_many_clients_that_share_ports_towards_one_endpoint_none_stalls() {
    const CLIENTS: usize = 20;
    /// When a client sends a SYN again.
    const STALL: Duration = Duration::from_secs(1);
    // A port is free again some two seconds after its connection closed, which is soon: thousands of connections a second.
    const PORTS: usize = 32_768;
    const REQUESTS: usize = 200;
    let network = Network::two_nics("ports", 1, 1);
    let config = network.config("timeouts: {tcpClosed: 200ms}").replace(
        "snat: {addresses: [10.82.1.100, \"fd82:1::1:100\"]}",
        &format!("snat: {{addresses: [10.82.1.100, \"fd82:1::1:100\"], ports: 2048-{}}}", 2048 + PORTS - 1),
    );
    let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &config);
    let frontends: Vec<String> = (1..=CLIENTS).map(|n| format!("198.51.100.{n}")).collect();
    let manifest = network.manifest(&[1], &[]);
    let manifest = manifest.replace(
        "  type: LoadBalancer\n",
        &format!("  type: LoadBalancer\n  externalIPs: [{}]\n", frontends.join(", ")),
    );
    gateway.manifest("web.yaml", &manifest);
    let _process = gateway.start();
    for (n, frontend) in frontends.iter().enumerate() {
        let client = format!("10.81.1.{}", 120 + n);
        network.client.address("eth0", &format!("{client}/24"));
        network.client.route(&format!("{frontend}/32 via 10.81.1.1 src {client}"));
    }
    let mut connects = Vec::new();
    for round in 0..18 {
        for (n, frontend) in frontends.iter().enumerate() {
            let target: SocketAddr = format!("{frontend}:80").parse().expect("an address");
            let outcome = load::requests(&network.client, target, REQUESTS, 1);
            assert!(outcome.failures.is_empty(), "{:?}, round {round}, client {n}", outcome.failures);
            connects.extend(outcome.connects);
        }
    }
    let challenges = gateway.metric("millrace_events_total", "event=\"challenges_reset\"");
    let stalled = connects.iter().filter(|took| **took >= STALL).count();
    println!(
        "{} connections on {PORTS} ports: {challenges} met another's TIME_WAIT, {stalled} stalled, p99 {:?}",
        connects.len(),
        p99(&connects)
    );
    assert!(connects.len() > 2 * PORTS, "ports come round");
    // One or another packet is lost where the machine is busy.
    assert!(stalled <= connects.len() / 10_000, "{stalled} connects stalled");
    assert!(p99(&connects) <= Duration::from_millis(50), "{:?}", p99(&connects));
}
