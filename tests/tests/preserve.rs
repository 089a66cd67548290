//! Mode `preserve`: backends see the clients' own addresses, and only the replies of their flows go through Millrace.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use millrace_tests::greeter::{greeted, greeter};
use millrace_tests::lab::Process;
use millrace_tests::load;
use millrace_tests::millrace::Gateway;
use millrace_tests::servers;
use millrace_tests::topology::Network;
use millrace_tests::wait::eventually;

const END: Duration = Duration::from_secs(30);
/// An endpoint that is held to be dead is not steered, so a busy machine must not make it seem so: it is told by refusals.
const CHECK: &str = "millrace.dev/health-check: \"tcp;interval=200ms;timeout=5s;up=2;down=2\"";
const PRESERVE: &str = "millrace.dev/mode: preserve";

/// Two NICs, backends whose default route is the gateway, and a gateway whose kernel routes for them.
fn network(name: &str, queues: u32) -> Network {
    let network = Network::two_nics(name, 2, queues);
    network.gateway.sysctl("net.ipv4.ip_forward", "1");
    network.gateway.sysctl("net.ipv6.conf.all.forwarding", "1");
    network.route_backends_by_gateway();
    network.client.route("10.82.1.0/24 via 10.81.1.1");
    network.client.route("fd82:1::/64 via fd81:1::1");
    network
}

/// The backends' servers anew, with access logs.
fn log_accesses(network: &mut Network) -> Vec<PathBuf> {
    network.servers.clear();
    let mut logs = Vec::new();
    for number in 1..=network.backends.len() {
        let (server, log) = serve(network, number);
        network.servers.push(server);
        logs.push(log);
    }
    logs
}

fn serve(network: &Network, number: usize) -> (Process, PathBuf) {
    let listen =
        [false, true].map(|v6| std::net::SocketAddr::new(network.backend_address(number, v6), 8080).to_string());
    let listen: Vec<&str> = listen.iter().map(String::as_str).collect();
    servers::nginx_with_log(&network.backends[number - 1], network.lab.dir(), &format!("b{number}"), &listen)
}

/// How many requests each client address made, by the backends' logs.
fn requests_of(logs: &[PathBuf], address: &str) -> usize {
    let texts = logs.iter().map(|log| fs::read_to_string(log).unwrap_or_default());
    texts.map(|text| text.lines().filter(|line| line.split(' ').next() == Some(address)).count()).sum()
}

fn await_healthy(gateway: &Gateway, network: &Network, number: usize, healthy: bool) {
    for ipv6 in [false, true] {
        let filter = network.backend_address(number, ipv6).to_string();
        eventually("the backend's health is seen", END, || {
            let rows = gateway.json(&["backends", "--backend", &filter]);
            if rows[0]["healthy"] == healthy { Ok(()) } else { Err(rows.to_string()) }
        });
    }
}

/// Connections that are not Millrace's: other ports of a backend through the gateway's kernel, and a backend's own.
fn others_are_untouched(network: &Network, when: &str) {
    for (from, to) in [
        (&network.client, "10.82.1.11:2222"),
        (&network.client, "[fd82:1::11]:2222"),
        (&network.backends[0], "10.81.1.2:2222"),
        (&network.backends[0], "[fd81:1::2]:2222"),
        (&network.gateway, "10.82.1.11:2222"),
    ] {
        assert!(greeted(from, to), "{when}: {} cannot reach {to}", from.netns);
    }
}

#[test]
fn backends_see_the_clients_own_address_and_their_other_traffic_is_untouched() {
    let mut network = network("preserve", 2);
    let logs = log_accesses(&mut network);
    for address in ["10.82.1.11:2222", "[fd82:1::11]:2222"] {
        greeter(&network.backends[0], address);
    }
    for address in ["10.81.1.2:2222", "[fd81:1::2]:2222"] {
        greeter(&network.client, address);
    }
    others_are_untouched(&network, "before");
    let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &network.config("workers: {cores: [0, 1]}"));
    gateway.manifest("web.yaml", &network.manifest(&[1, 2], &[PRESERVE, CHECK]));
    let mut process = gateway.start();
    for number in [1, 2] {
        await_healthy(&gateway, &network, number, true);
    }
    for (ipv6, client) in [(false, "10.81.1.2"), (true, "fd81:1::2")] {
        let outcome = load::requests(&network.client, network.vip(ipv6), 1000, 20);
        assert_eq!((outcome.answered, outcome.failures.len()), (1000, 0), "{outcome:?}");
        assert_eq!(outcome.by_server.len(), 2, "{:?}", outcome.by_server);
        // A server writes its log after its answer.
        eventually("each request is in the backends' logs", END, || match requests_of(&logs, client) {
            1000 => Ok(()),
            other => Err(format!("{other} of {client}")),
        });
        println!("ipv6 {ipv6}: {:?}, all from {client} by the backends' logs", outcome.by_server);
    }
    others_are_untouched(&network, "while Millrace runs");
    // The one thing that is not: a served port, past its Service. It is dropped, and counted.
    // Where the client's port is one that it had by the Service before, the answer is taken for that flow's.
    eventually("what has no flow is counted", END, || {
        let past = network.client.output("curl", ["-sS", "--max-time", "1", "http://10.82.1.11:8080/"]);
        assert_eq!(past.status.code(), Some(28), "curl: {}", String::from_utf8_lossy(&past.stderr));
        let dropped = gateway.metric("millrace_drops_total", "reason=\"not_ours\"");
        if dropped > 0.0 { Ok(()) } else { Err(format!("{dropped}")) }
    });
    // The checks leave from the gateway itself, and their answers come from the very ports that are steered.
    drop(network.servers.remove(1));
    await_healthy(&gateway, &network, 2, false);
    network.servers.push(serve(&network, 2).0);
    await_healthy(&gateway, &network, 2, true);
    assert!(gateway.admin(&["stop"]).status.success(), "stop: {}", gateway.log_text());
    assert!(process.wait(END).is_some(), "stop did not end the instance");
    for interface in &network.interfaces {
        let text = network.gateway.run("ip", ["-d", "link", "show", "dev", interface]);
        assert!(!text.contains("xdp"), "an XDP program is left on {interface}: {text}");
    }
    assert!(!gateway.dir.join("run/bpf").exists(), "pins are left");
    others_are_untouched(&network, "after it stopped");
    let direct = std::net::SocketAddr::new(network.backend_address(1, false), 8080);
    let outcome = load::requests(&network.client, direct, 5, 1);
    assert_eq!(outcome.answered, 5, "the kernel has the backend's port back: {outcome:?}");
}

#[test]
fn flows_of_an_endpoint_that_is_removed_or_whose_mode_changes_go_on_also_in_a_successor() {
    let network = network("preserve-flows", 1);
    let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &network.config(""));
    gateway.manifest("web.yaml", &network.manifest(&[1], &[PRESERVE]));
    let mut process = gateway.start();
    let held = [false, true].map(|v6| load::hold(&network.client, network.vip(v6), 10, Duration::from_millis(10)));
    let all_answered = || held.iter().for_each(|held| held.await_answers(100, END));
    all_answered();
    let second = [false, true].map(|ipv6| network.backend_address(2, ipv6).to_string());
    let in_force = |mode: &str| {
        eventually("the change is in force", END, || {
            let rows = gateway.json(&["backends"]);
            let has = |rows: &Vec<serde_json::Value>, ip: &String| {
                rows.iter().any(|row| row["address"] == ip.as_str() && row["mode"] == mode)
            };
            let all = rows.as_array().is_some_and(|all| all.len() == 2 && second.iter().all(|ip| has(all, ip)));
            if all { Ok(()) } else { Err(rows.to_string()) }
        });
    };
    gateway.manifest("web.yaml", &network.manifest(&[2], &[PRESERVE]));
    in_force("preserve");
    all_answered();
    gateway.manifest("web.yaml", &network.manifest(&[2], &[]));
    in_force("nat");
    all_answered();
    let mut successor = gateway.start();
    assert!(process.wait(END).is_some_and(|status| status.success()), "the predecessor: {}", gateway.log_text());
    all_answered();
    for held in held {
        let outcome = held.finish();
        assert!(outcome.failures.is_empty(), "established connections broke: {:?}", outcome.failures);
    }
    assert!(gateway.admin(&["stop"]).status.success());
    assert!(successor.wait(END).is_some());
}
