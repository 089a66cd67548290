//! What Services promise, seen from a client: protocols, modes, affinity, echo and rejection.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use millrace_tests::lab::{Host, Process};
use millrace_tests::load;
use millrace_tests::millrace::Gateway;
use millrace_tests::servers;
use millrace_tests::topology::{MY_SERVICE, Network, VIP, VIP6};
use millrace_tests::wait::eventually;

const END: Duration = Duration::from_secs(30);

/// A gateway that runs with these additions to the configuration and these manifests.
fn started(network: &Network, config: &str, manifests: &[(&str, &str)]) -> (Gateway, Process) {
    let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &network.config(config));
    for (name, text) in manifests {
        gateway.manifest(name, text);
    }
    let process = gateway.start();
    (gateway, process)
}

#[test]
fn dns_is_served_on_udp_and_tcp_port_53_of_one_vip() {
    servers::require(&["dnsmasq", "dig"]);
    let network = Network::two_nics("dns", 2, 1);
    let addresses = [1, 2].map(|n| network.backend_address(n, false).to_string());
    let dns = |n: usize| {
        servers::dns(&network.backends[n], network.lab.dir(), &format!("b{}", n + 1), &addresses[n], "192.0.2.53")
    };
    let _servers = [dns(0), dns(1)];
    let manifest = network.dns_manifest("10.81.1.101");
    let (_gateway, _process) = started(&network, "", &[("dns.yaml", &manifest)]);
    for transport in ["+notcp", "+tcp"] {
        let ask = |question: &[&str]| {
            let words = ["@10.81.1.101", transport, "+short", "+time=3", "+tries=5"];
            let text = network.client.run("dig", words.iter().chain(question));
            // It tells of what it asked again.
            text.lines().filter(|line| !line.starts_with(';')).collect::<Vec<_>>().join("\n")
        };
        let mut seen = std::collections::BTreeMap::<String, u32>::new();
        for _ in 0..30 {
            *seen.entry(ask(&["who.test", "TXT"])).or_default() += 1;
        }
        assert_eq!(seen.keys().collect::<Vec<_>>(), ["\"b1\"", "\"b2\""], "{transport}: {seen:?}");
        assert_eq!(ask(&["any.test", "A"]), "192.0.2.53", "{transport}");
        println!("dig {transport}: {seen:?}");
    }
}

#[test]
fn a_selectorless_service_gets_a_cluster_ip_and_reaches_its_endpoint_behind_a_router() {
    let network = Network::two_nics("far", 1, 1);
    let far = &network.backends[0];
    far.address("lo", "1.2.3.4/32");
    network.gateway.route("1.2.3.4/32 via 10.82.1.11");
    network.client.route("10.96.0.0/16 via 10.81.1.1");
    let _server = servers::nginx(far, network.lab.dir(), "machine-1.2.3.4", &["1.2.3.4:9376"]);
    let config = "serve: [loadBalancer, clusterIP]\nserviceRange: [10.96.0.0/16]";
    let (gateway, _process) = started(&network, config, &[("my-service.yaml", MY_SERVICE)]);
    let listed = gateway.json(&["services", "--service", "default/my-service"]);
    let address = listed[0]["clusterIps"][0].as_str().unwrap_or_else(|| panic!("no ClusterIP in {listed}"));
    assert!(address.starts_with("10.96."), "{listed}");
    let target: SocketAddr = format!("{address}:80").parse().expect("an address");
    let outcome = load::requests(&network.client, target, 50, 5);
    assert_eq!(outcome.by_server.get("machine-1.2.3.4"), Some(&50), "{outcome:?}");
    println!("my-service at {address}: {:?}", outcome.by_server);
}

/// Connections that went on to another endpoint, or would have.
fn retries(gateway: &Gateway) -> f64 {
    gateway.metric("millrace_connect_retries_total", "")
}

#[test]
fn session_affinity_holds_across_two_workers() {
    let network = Network::two_nics("affinity", 3, 2);
    let turns = ["millrace.dev/algorithm: round-robin"];
    let plain = network.manifest(&[1, 2, 3], &turns);
    let sticky = plain.replace("  type: LoadBalancer\n", "  type: LoadBalancer\n  sessionAffinity: ClientIP\n");
    assert_ne!(plain, sticky);
    let (gateway, mut process) = started(&network, "workers: {cores: [0, 1]}", &[("web.yaml", &plain)]);
    let outcome = load::requests(&network.client, network.vip(false), 60, 6);
    assert_eq!((outcome.answered, outcome.by_server.len()), (60, 3), "without affinity: {outcome:?}");
    assert!(gateway.admin(&["stop"]).status.success(), "{}", gateway.log_text());
    assert!(process.wait(END).is_some(), "stop did not end the instance");
    let (gateway, _process) = started(&network, "workers: {cores: [0, 1]}", &[("web.yaml", &sticky)]);
    for ipv6 in [false, true] {
        let requests = |count| {
            let outcome = load::requests(&network.client, network.vip(ipv6), count, count);
            assert!(outcome.failures.is_empty(), "{outcome:?}");
            outcome.by_server
        };
        // The first alone: which of several first ones at once decides is nobody's promise.
        let first = || requests(1).into_keys().next().expect("an answer");
        let (mut known, mut server) = (retries(&gateway), first());
        let mut stayed = 0;
        eventually("600 requests, of which none was retried, stay with one server", Duration::from_secs(60), || {
            let by_server = requests(20);
            let now = retries(&gateway);
            if now == known {
                assert_eq!(by_server.get(&server), Some(&20), "first {server}, then {by_server:?}");
                stayed += 20;
            } else {
                // Affinity follows who won a connection that was not answered in time, as happens on a busy machine.
                println!("from {server} to {by_server:?} by {} retries", now - known);
                (known, server) = (now, first());
            }
            if stayed >= 600 { Ok(()) } else { Err(format!("{stayed}")) }
        });
        println!("ipv6 {ipv6}: {stayed} by {server}");
    }
    assert!(gateway.metric("millrace_handoff_total", "result=\"sent\"") > 0.0, "only one worker saw packets");
}

fn pings(client: &Host, target: &str, count: u32, octets: u32) -> bool {
    let [count, octets] = [count, octets].map(|number| number.to_string());
    client.output("ping", ["-n", "-c", &count, "-s", &octets, "-i", "0.05", "-W", "1", target]).status.success()
}

fn await_ping(client: &Host, target: &str, octets: u32) {
    eventually("a ping is answered", END, || {
        if pings(client, target, 5, octets) { Ok(()) } else { Err(format!("{target}, {octets} octets")) }
    });
}

#[test]
fn a_vip_answers_ping_unless_echo_is_off() {
    servers::require(&["ping"]);
    let network = Network::two_nics("echo", 1, 1);
    let manifest = network.manifest(&[1], &[]);
    for (config, answers) in [("", true), ("defaults: {echo: off}", false)] {
        let (gateway, mut process) = started(&network, config, &[("web.yaml", &manifest)]);
        // Some are longer than the link takes at once.
        for (target, octets) in
            [VIP, VIP6].into_iter().flat_map(|target| [56, 4_000, 60_000].map(|long| (target, long)))
        {
            if answers {
                await_ping(&network.client, target, octets);
            } else {
                assert!(!pings(&network.client, target, 1, octets), "{target}, {octets} octets, {config:?}");
            }
        }
        // The gateway's own address stays the kernel's affair.
        await_ping(&network.client, "10.81.1.1", 56);
        assert!(gateway.admin(&["stop"]).status.success(), "{}", gateway.log_text());
        assert!(process.wait(END).is_some(), "stop did not end the instance");
    }
}

/// A new connection is refused; one that meets a machine that stands may not be told in time.
fn await_refused(network: &Network, target: &str) {
    eventually("a new connection is refused", END, || match curl(network, target) {
        Some(7) => Ok(()),
        other => Err(format!("{target}: curl ends with {other:?}")),
    });
}

/// What the kernel tells a UDP client about a port.
fn asks_udp(client: &Host, target: SocketAddr) -> ErrorKind {
    let work = move || {
        let any = if target.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
        let socket = UdpSocket::bind(any).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(3))).expect("a timeout");
        socket.connect(target).expect("a route");
        socket.send(b"anybody?").expect("to send");
        socket.recv(&mut [0; 16]).expect_err("nobody is there").kind()
    };
    client.within(work).join().expect("the question")
}

#[test]
fn a_port_without_service_is_refused_at_once_by_reset_and_by_port_unreachable() {
    let network = Network::two_nics("refuse", 1, 1);
    let (_gateway, _process) = started(&network, "", &[("web.yaml", &network.manifest(&[1], &[]))]);
    for ipv6 in [false, true] {
        let target = SocketAddr::new(network.vip(ipv6).ip(), 81);
        await_refused(&network, &target.to_string());
        eventually("a datagram is refused", END, || match asks_udp(&network.client, target) {
            ErrorKind::ConnectionRefused => Ok(()),
            other => Err(format!("{target}/udp: {other}")),
        });
    }
}

#[test]
fn a_service_without_endpoints_is_refused_at_once() {
    let network = Network::two_nics("none", 1, 1);
    let (_gateway, _process) = started(&network, "", &[("web.yaml", &network.manifest(&[], &[]))]);
    for ipv6 in [false, true] {
        await_refused(&network, &network.vip(ipv6).to_string());
    }
}

/// Connections that last.
fn held(network: &Network, target: &str) -> load::Held {
    let target = target.parse().expect("an address");
    let held = load::hold(&network.client, target, 5, Duration::from_millis(10));
    held.await_each(END);
    held
}

/// Waits until tables are newer than the manifests, be it for another reason, and until the connections have been of use since.
fn after(gateway: &Gateway, connections: &[load::Held], change: impl FnOnce(&Gateway)) {
    let generation = || gateway.json(&["status"])["generation"].as_u64().expect("a generation");
    let before = generation();
    change(gateway);
    eventually("the change is in force", END, || if generation() > before { Ok(()) } else { Err(before.to_string()) });
    connections.iter().for_each(|held| held.await_answers(100, END));
}

/// What curl ends with for a new connection.
fn curl(network: &Network, target: &str) -> Option<i32> {
    let url = format!("http://{target}/");
    network.client.output("curl", ["-gsS", "-o", "/dev/null", "--max-time", "1", &url]).status.code()
}

/// Whether somebody says whose an address is.
fn is_answered_for(network: &Network, address: &str) -> bool {
    let family = if address.contains(':') { "-6" } else { "-4" };
    let _ = network.client.output("ip", [family, "neigh", "flush", "to", address]);
    let bare = SocketAddr::new(address.parse().expect("an address"), 80).to_string();
    let _ = curl(network, &bare);
    network.client.run("ip", [family, "neigh", "show", "to", address]).contains("lladdr")
}

fn await_let_go(network: &Network, address: &str) {
    eventually("the address is let go", Duration::from_secs(30), || {
        if is_answered_for(network, address) { Err(address.to_owned()) } else { Ok(()) }
    });
}

#[test]
fn connections_go_on_when_their_service_gets_another_address_and_when_it_is_deleted_also_in_a_successor() {
    let network = Network::two_nics("linger", 1, 1);
    let manifest = network.manifest(&[1], &[]);
    let (mut gateway, mut process) = started(&network, "", &[("web.yaml", &manifest)]);
    let mut all = vec![held(&network, "10.81.1.100:80"), held(&network, "[fd81:1::100]:80")];
    let moved = manifest.replace(&format!("{VIP},{VIP6}"), "10.81.1.101,fd81:1::101");
    assert_ne!(manifest, moved);
    after(&gateway, &all, |gateway| gateway.manifest("web.yaml", &moved));
    ["10.81.1.100:80", "[fd81:1::100]:80"].into_iter().for_each(|target| await_refused(&network, target));
    all.extend([held(&network, "10.81.1.101:80"), held(&network, "[fd81:1::101]:80")]);
    after(&gateway, &all, |gateway| {
        std::fs::remove_file(gateway.dir.join("manifests/web.yaml")).expect("the manifest");
    });
    let addresses = [VIP, VIP6, "10.81.1.101", "fd81:1::101"];
    for address in addresses {
        eventually("an address that has connections is answered for", END, || {
            if is_answered_for(&network, address) { Ok(()) } else { Err(address.to_owned()) }
        });
    }
    let mut successor = gateway.start();
    assert!(process.wait(END).is_some_and(|status| status.success()), "the predecessor: {}", gateway.log_text());
    all.iter().for_each(|held| held.await_answers(100, END));
    for held in all.drain(..2) {
        let outcome = held.finish();
        assert!(outcome.failures.is_empty(), "established connections broke: {:?}", outcome.failures);
    }
    addresses[..2].iter().for_each(|address| await_let_go(&network, address));
    all.iter().for_each(|held| held.await_answers(100, END));
    for held in all {
        let outcome = held.finish();
        assert!(outcome.failures.is_empty(), "established connections broke: {:?}", outcome.failures);
    }
    addresses[2..].iter().for_each(|address| await_let_go(&network, address));
    assert!(gateway.admin(&["stop"]).status.success(), "{}", gateway.log_text());
    assert!(successor.wait(END).is_some());
}

#[test]
fn connections_go_on_when_the_port_of_a_nodeport_or_of_a_hosts_address_changes() {
    let network = Network::two_nics("linger-port", 1, 1);
    let manifest = |port: u16| {
        let text = network.manifest(&[1], &[]);
        let ports =
            format!("  externalIPs: [10.81.1.1, \"fd81:1::1\"]\n  ports:\n  - port: {port}\n    nodePort: 300{port}\n");
        let text = text.replace("  ports:\n  - port: 80\n", &ports);
        assert!(text.contains("nodePort"), "{text}");
        text
    };
    let config = "serve: [loadBalancer, externalIPs, nodePort]\nexternalIPs: [10.81.1.1/32, \"fd81:1::1/128\"]";
    let (gateway, _process) = started(&network, config, &[("web.yaml", &manifest(80))]);
    let former = ["10.81.1.1:30080", "[fd81:1::1]:30080", "10.81.1.1:80", "[fd81:1::1]:80"];
    let all = former.map(|target| held(&network, target));
    after(&gateway, &all, |gateway| gateway.manifest("web.yaml", &manifest(81)));
    for target in former {
        eventually("the former port is served no more", END, || match curl(&network, target) {
            Some(0) | None => Err(target.to_owned()),
            Some(_) => Ok(()),
        });
    }
    for target in ["10.81.1.1:30081", "[fd81:1::1]:30081", "10.81.1.1:81", "[fd81:1::1]:81"] {
        eventually("the new port is served", END, || match curl(&network, target) {
            Some(0) => Ok(()),
            other => Err(format!("{target}: {other:?}\n{}", gateway.log_text())),
        });
    }
    for held in all {
        let outcome = held.finish();
        assert!(outcome.failures.is_empty(), "established connections broke: {:?}", outcome.failures);
    }
    for target in former {
        // It is looked for the seldomer, the longer a look took.
        eventually("the kernel has the port back", Duration::from_secs(90), || {
            let code = curl(&network, target);
            if code == Some(7) { Ok(()) } else { Err(format!("{target}: {code:?}")) }
        });
    }
}
