//! Datagrams in fragments, through the gateway and back: of the kernel's making, of scapy's, and floods of them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use millrace_tests::datagrams;
use millrace_tests::lab::{Host, Process};
use millrace_tests::load;
use millrace_tests::millrace::Gateway;
use millrace_tests::servers;
use millrace_tests::topology::{Network, VIP, VIP6};
use millrace_tests::wait::eventually;

const END: Duration = Duration::from_secs(30);
const PORT: u16 = 7007;
const NODE_PORT: u16 = 30077;
/// Octets of datagrams: two, some and as many fragments as there may be.
const LENGTHS: [usize; 4] = [1400, 4_000, 20_000, 60_000];

/// Two NICs, and backends that send a datagram back.
fn network(name: &str, queues: u32, preserve: bool) -> Network {
    servers::require(&["scapy3"]);
    let network = Network::two_nics(name, 2, queues);
    if preserve {
        network.route_backends_by_gateway();
    }
    for (number, backend) in network.backends.iter().enumerate() {
        for ipv6 in [false, true] {
            datagrams::echo(backend, SocketAddr::new(network.backend_address(number + 1, ipv6), PORT));
        }
    }
    network
}

/// The web Service, and one of UDP beside it.
fn gateway(network: &Network, workers: usize, mode: &str) -> (Gateway, Process) {
    let cores = if workers == 1 { "[0]" } else { "[0, 1]" };
    let more = format!("workers: {{cores: {cores}}}\nserve: [loadBalancer, nodePort]");
    let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &network.config(&more));
    let echo = network
        .manifest(&[1, 2], &["millrace.dev/share: all", &format!("millrace.dev/mode: {mode}")])
        .replace("name: web", "name: echo")
        .replace("port: 8080", &format!("{{port: {PORT}, protocol: UDP}}"))
        .replace("port: 80\n    targetPort: 8080", &format!("{{port: {PORT}, protocol: UDP, nodePort: {NODE_PORT}}}"));
    let web = network.manifest(&[1, 2], &["millrace.dev/share: all"]);
    gateway.manifest("web.yaml", &web);
    gateway.manifest("echo.yaml", &echo);
    let process = gateway.start();
    (gateway, process)
}

/// Datagrams of all lengths there and back.
fn exchange(client: &Host, target: SocketAddr) {
    datagrams::exchange(client, target, &LENGTHS);
}

fn drops(gateway: &Gateway, reason: &str) -> f64 {
    gateway.metric("millrace_drops_total", &format!("reason=\"{reason}\""))
}

fn events(gateway: &Gateway, event: &str) -> f64 {
    gateway.metric("millrace_events_total", &format!("event=\"{event}\""))
}

fn targets() -> [SocketAddr; 2] {
    [VIP, VIP6].map(|address| SocketAddr::new(address.parse().expect("an address"), PORT))
}

#[test]
fn long_datagrams_go_both_ways_in_every_mode_over_one_worker_and_several() {
    for (mode, workers, queues) in [("nat", 1, 1), ("nat", 2, 4), ("preserve", 1, 2), ("preserve", 2, 4)] {
        let network = network(&format!("frag-{mode}-{workers}"), queues, mode == "preserve");
        let (gateway, _process) = gateway(&network, workers, mode);
        for target in targets() {
            exchange(&network.client, target);
        }
        // The host's own addresses, where the kernel has a part of the traffic.
        for address in ["10.81.1.1", "fd81:1::1"] {
            exchange(&network.client, SocketAddr::new(address.parse().expect("an address"), NODE_PORT));
        }
        let handed = gateway.metric("millrace_handoff_total", "");
        println!("{mode}, {workers} workers: {handed} handed over, {} kept", events(&gateway, "fragments_kept"));
        assert!(workers == 1 || handed > 100.0, "{handed} handed over");
        for reason in ["fragment_overlap", "fragment_malformed", "fragment_tiny"] {
            assert_eq!(drops(&gateway, reason), 0.0, "{reason}");
        }
    }
}

/// Where the scripts are.
fn script(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scapy").join(name)
}

#[test]
fn parts_made_by_scapy_arrive_in_any_order_and_never_where_they_overlap() {
    let network = network("frag-scapy", 2, false);
    let (gateway, _process) = gateway(&network, 2, "nat");
    let mac = network.gateway.mac("eth0");
    let script = script("fragments.py");
    let run = |six: bool, case: &str| {
        let (ours, vip) = if six { ("fd81:1::2", VIP6) } else { ("10.81.1.2", VIP) };
        let port = PORT.to_string();
        let words = [script.to_str().expect("a path"), "eth0", &mac, ours, vip, &port, case];
        network.client.run("/usr/bin/python3", words).trim().to_owned()
    };
    // Parts that a machine which stands brings too late are given up, and an answer is not waited for without end.
    let is_answered = |six: bool, case: &str| {
        eventually(&format!("an answer, IPv6 {six}, {case}"), END, || match &*run(six, case) {
            "answered" => Ok(()),
            "silent" => Err(format!("silent: {:#}", gateway.json(&["status"]))),
            other => panic!("IPv6 {six}, {case}: {other}"),
        });
    };
    for six in [false, true] {
        for case in ["in-order", "reversed", "shuffled", "duplicated", "first-last"] {
            is_answered(six, case);
        }
        gateway.await_metric("millrace_drops_total", "reason=\"fragment_duplicate\"", 5.0);
        let kept = events(&gateway, "fragments_kept");
        for case in ["overlapping", "missing", "without-first"] {
            assert_eq!(run(six, case), "silent", "IPv6 {six}, {case}");
        }
        gateway.await_metric("millrace_drops_total", "reason=\"fragment_overlap\"", 4.0);
        gateway.await_metric("millrace_events_total", "event=\"fragments_kept\"", kept + 1.0);
    }
    for case in ["behind-options", "atomic"] {
        is_answered(true, case);
    }
}

#[test]
fn a_flood_of_fragments_takes_no_more_memory_than_there_is_and_traffic_goes_on() {
    let network = network("frag-flood", 1, false);
    let (gateway, process) = gateway(&network, 2, "nat");
    let mac = network.gateway.mac("eth0");
    let web = network.vip(false);
    for target in targets() {
        exchange(&network.client, target);
    }
    assert_eq!(load::requests(&network.client, web, 200, 10).answered, 200);
    let before = process.memory("VmRSS");
    for (target, address) in [(targets()[0], VIP), (targets()[1], VIP6)] {
        // On a busy machine the traffic takes longer.
        let outlasts = ["6", "30", "120"].into_iter().any(|seconds| {
            let (client, mac, script) = (network.client.clone(), mac.clone(), script("flood.py"));
            let words = [script.to_str().expect("a path"), "eth0", &mac, address, seconds].map(str::to_owned);
            let kept = events(&gateway, "fragments_kept");
            let flood = network.client.within(move || client.run("/usr/bin/python3", &words));
            gateway.await_metric("millrace_events_total", "event=\"fragments_kept\"", kept + 1024.0);
            let outcome = load::requests(&network.client, web, 1000, 10);
            assert_eq!((outcome.answered, outcome.failures.len()), (1000, 0), "{outcome:?}");
            exchange(&network.client, target);
            let outlasts = !flood.is_finished();
            let sent = flood.join().expect("the flood");
            println!("{} fragments at {address}", sent.trim());
            outlasts
        });
        assert!(outlasts, "it was over before the traffic");
    }
    let after = process.memory("VmRSS");
    println!("memory: {before} before, {after} after; given up: {}", events(&gateway, "fragments_given_up"));
    // Two workers' tables and slots, which are touched when they are first used.
    assert!(after < before + (20 << 20), "{before} before, {after} after");
    eventually("what was kept is given up", END, || {
        let (kept, given_up) = (events(&gateway, "fragments_kept"), events(&gateway, "fragments_given_up"));
        if given_up > 0.9 * kept { Ok(()) } else { Err(format!("{given_up} of {kept}")) }
    });
}
