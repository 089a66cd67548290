//! Health checks by annotation: an endpoint that fails gets no request, and is used again when it is back.

use std::fs;
use std::time::{Duration, Instant};

use millrace_tests::load;
use millrace_tests::millrace::Gateway;
use millrace_tests::pulse::Pulse;
use millrace_tests::servers;
use millrace_tests::topology::Network;
use millrace_tests::wait::eventually;

/// Interval 200 ms, two results to turn, which come at once: down within 2 × 200 ms, and a probe under way. A busy
/// machine must not make an endpoint seem dead, so a probe waits for long.
const CHECK: &str = ";interval=200ms;timeout=5s;up=2;down=2";
const TURNS_WITHIN: Duration = Duration::from_millis(1000);
/// What a loaded machine adds.
const SLACK: Duration = Duration::from_secs(2);
/// How long what nothing is said of may take.
const END: Duration = Duration::from_secs(30);

fn gateway(network: &Network, check: &str) -> (Gateway, millrace_tests::lab::Process) {
    let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &network.config(""));
    let note = format!("millrace.dev/health-check: \"{check}{CHECK}\"");
    gateway.manifest("web.yaml", &network.manifest(&[1, 2, 3], &[&note]));
    let process = gateway.start();
    (gateway, process)
}

/// Waits until `backends` shows b2's endpoints, both families, as this, which must be soon; says how long it took.
fn await_state(gateway: &Gateway, network: &Network, healthy: bool) -> Duration {
    let (since, pulse) = (Instant::now(), Pulse::begin());
    let wanted = if healthy { "usable" } else { "out" };
    for ipv6 in [false, true] {
        let filter = network.backend_address(2, ipv6).to_string();
        eventually("b2's health is seen", END, || {
            let rows = gateway.json(&["backends", "--backend", &filter]);
            let row = &rows[0];
            let seen = row["state"] == wanted && row["healthy"] == healthy;
            if seen { Ok(()) } else { Err(rows.to_string()) }
        });
    }
    let (took, stood) = (since.elapsed(), pulse.longest());
    let most = TURNS_WITHIN + SLACK + stood;
    assert!(
        took <= most,
        "healthy {healthy} is seen after {took:?}, {most:?} at most; the machine stood for {stood:?}"
    );
    took
}

/// 300 requests over each family: none fails, and b2 gets some or none.
fn ask(network: &Network, b2: bool, when: &str) {
    for ipv6 in [false, true] {
        let outcome = load::requests(&network.client, network.vip(ipv6), 300, 10);
        assert_eq!((outcome.answered, outcome.failures.len()), (300, 0), "{when}: {outcome:?}");
        assert_eq!(outcome.by_server.contains_key("b2"), b2, "{when}: {:?}", outcome.by_server);
        println!("{when}, ipv6 {ipv6}: {:?}", outcome.by_server);
    }
}

#[test]
fn a_killed_server_gets_no_request_within_the_thresholds_of_a_tcp_check_and_comes_back() {
    let mut network = Network::two_nics("tcp-check", 3, 1);
    let (gateway, _process) = gateway(&network, "tcp");
    await_state(&gateway, &network, true);
    ask(&network, true, "before");
    drop(network.servers.remove(1));
    println!("killed; unhealthy after {:?}", await_state(&gateway, &network, false));
    ask(&network, false, "b2 killed");
    let listen = [false, true].map(|v6| std::net::SocketAddr::new(network.backend_address(2, v6), 8080).to_string());
    let _back = servers::nginx(&network.backends[1], network.lab.dir(), "b2", &[&listen[0], &listen[1]]);
    println!("back; healthy after {:?}", await_state(&gateway, &network, true));
    ask(&network, true, "b2 back");
}

#[test]
fn a_server_that_answers_404_is_left_out_by_an_http_check_and_no_request_fails_meanwhile() {
    let network = Network::two_nics("http-check", 3, 1);
    let (gateway, _process) = gateway(&network, "http:/big");
    await_state(&gateway, &network, true);
    ask(&network, true, "before");
    // The server works; only what the check asks for is gone. So not one request may fail at any time.
    let held = load::hold(&network.client, network.vip(false), 20, Duration::from_millis(10));
    held.await_answers(100, END);
    let asked_for = network.lab.dir().join("nginx-b2/big");
    fs::remove_file(&asked_for).expect("to take the page away");
    println!("404; unhealthy after {:?}", await_state(&gateway, &network, false));
    ask(&network, false, "b2 answers 404");
    held.await_answers(100, END);
    fs::write(&asked_for, "ok").expect("to bring the page back");
    println!("200; healthy after {:?}", await_state(&gateway, &network, true));
    ask(&network, true, "b2 answers 200");
    let held = held.finish();
    assert!(held.failures.is_empty(), "established connections broke: {:?}", held.failures);
}
