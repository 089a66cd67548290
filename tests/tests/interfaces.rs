//! Queues and interfaces that are unlike, change, move under flows, or go away.

use std::time::Duration;

use millrace_tests::lab::{Host, Process};
use millrace_tests::load;
use millrace_tests::millrace::Gateway;
use millrace_tests::topology::Network;
use millrace_tests::wait::eventually;

const END: Duration = Duration::from_secs(30);
const TWO_WORKERS: &str = "workers: {cores: [0, 1]}";

fn queues(host: &Host, interface: &str, rx: u32, tx: u32) {
    let words = ["-L", interface, "rx", &rx.to_string(), "tx", &tx.to_string()].map(str::to_owned);
    let output = host.output("ethtool", words);
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() || complaint.contains("unmodified"), "{interface} rx {rx} tx {tx}: {complaint}");
}

fn all_answered(network: &Network, requests: usize, when: &str) {
    for ipv6 in [false, true] {
        let outcome = load::requests(&network.client, network.vip(ipv6), requests, 20);
        assert_eq!((outcome.answered as usize, outcome.failures.len()), (requests, 0), "{when}: {outcome:?}");
    }
}

fn started(network: &Network, config: &str) -> (Gateway, Process) {
    let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &network.config(config));
    gateway.manifest("web.yaml", &network.manifest(&[1, 2], &[]));
    let process = gateway.start();
    (gateway, process)
}

/// Ends it and asserts that every frame was found where it should be.
fn stop(gateway: &Gateway, mut process: Process) {
    assert!(gateway.admin(&["stop"]).status.success(), "stop: {}", gateway.log_text());
    assert!(process.wait(END).is_some(), "stop did not end the instance");
    let log = gateway.log_text();
    assert!(log.contains("workers stopped"), "{log}");
    assert!(!log.contains("frames are not where they should be"), "{log}");
}

#[test]
fn receive_queues_without_a_transmit_queue_of_their_number_are_served() {
    let network = Network::two_nics("rx-only", 2, 4);
    for interface in ["eth0", "eth1"] {
        queues(&network.gateway, interface, 4, 2);
    }
    // With three workers one has no queue to send by (and, where there are only two cores, none of its own).
    for workers in [TWO_WORKERS, "workers: {cores: [0, 1, 2]}", "workers: {cores: [0]}"] {
        let (gateway, process) = started(&network, workers);
        let ports = &gateway.json(&["status"])["ports"];
        assert_eq!(ports[0]["queues"], 4, "{ports}");
        all_answered(&network, 1000, workers);
        stop(&gateway, process);
    }
}

#[test]
fn a_queue_that_is_added_while_it_runs_is_reported_and_a_successor_serves_it() {
    let network = Network::two_nics("ethtool", 2, 4);
    queues(&network.client, "eth0", 2, 2);
    queues(&network.gateway, "eth0", 2, 2);
    let (mut gateway, mut process) = started(&network, TWO_WORKERS);
    all_answered(&network, 200, "with two queues");
    queues(&network.gateway, "eth0", 4, 2);
    queues(&network.client, "eth0", 2, 4);
    eventually("the new queues are noticed", END, || {
        let log = gateway.log_text();
        let noticed = log.contains("eth0 has 4 receive queues now, and 2 have sockets");
        if noticed { Ok(()) } else { Err(log) }
    });
    // It is logged before it is shown.
    eventually("the new queues are shown", END, || {
        let status = gateway.json(&["status"]).to_string();
        if status.contains("4 receive queues") { Ok(()) } else { Err(status) }
    });
    let successor = gateway.start();
    assert!(process.wait(END).is_some_and(|status| status.success()), "the predecessor: {}", gateway.log_text());
    assert!(!gateway.json(&["status"]).to_string().contains("receive queues"), "{}", gateway.json(&["status"]));
    all_answered(&network, 1000, "with four queues");
    stop(&gateway, successor);
}

#[test]
fn an_interface_that_leaves_the_configuration_is_let_go_by_the_successor() {
    let mut network = Network::two_nics("dropped", 2, 1);
    network.lab.wire((&network.client, "eth1"), (&network.gateway, "eth2"), 1);
    network.interfaces = vec!["eth0", "eth1", "eth2"];
    let (mut gateway, mut process) = started(&network, "");
    let has_program = |interface: &str| network.gateway.run("ip", ["link", "show", "dev", interface]).contains("xdp");
    assert!(has_program("eth2") && gateway.dir.join("run/bpf/eth2").exists());
    let held = load::hold(&network.client, network.vip(false), 10, Duration::from_millis(5));
    held.await_answers(100, END);
    network.interfaces.pop();
    gateway.configure(&network.config(""));
    let successor = gateway.start();
    assert!(process.wait(END).is_some_and(|status| status.success()), "the predecessor: {}", gateway.log_text());
    eventually("eth2 is let go", END, || {
        if has_program("eth2") || gateway.dir.join("run/bpf/eth2").exists() { Err(gateway.log_text()) } else { Ok(()) }
    });
    held.await_answers(100, END);
    let outcome = held.finish();
    assert!(outcome.failures.is_empty(), "established connections broke: {:?}", outcome.failures);
    let told = gateway.log_text().matches("is not in the configuration any more").count();
    assert_eq!(told, 1, "eth2 and nothing else: {}", gateway.log_text());
    assert!(["eth0", "eth1"].into_iter().all(has_program), "what stays in the configuration stays steered");
    stop(&gateway, successor);
}

/// A download of 300 MB in pieces over one connection.
fn transfer(network: &Network, ipv6: bool) -> Process {
    let mut command = network.client.command("curl");
    command.args(["-sS", "--fail", "--globoff"]);
    for piece in 0..300 {
        command.args(["-o", "/dev/null"]).arg(format!("http://{}/big?{piece}", network.vip(ipv6)));
    }
    network.client.spawn("curl", command, &network.lab.dir().join("curl.log"))
}

#[test]
fn flows_whose_queue_changes_under_them_go_on_and_are_handed_to_their_owner() {
    for count in [2, 4] {
        let network = Network::two_nics(&format!("moving{count}"), 2, count);
        let (gateway, process) = started(&network, TWO_WORKERS);
        let held = [false, true].map(|v6| load::hold(&network.client, network.vip(v6), 20, Duration::from_millis(5)));
        held.iter().for_each(|held| held.await_answers(200, END));
        let mut transfers = [false, true].map(|ipv6| transfer(&network, ipv6));
        let handed = || gateway.metric("millrace_handoff_total", "result=\"sent\"");
        let mut before = handed();
        for round in 0..6 {
            // All on one queue, then over all of them again.
            let tx = if round % 2 == 0 { 1 } else { count };
            queues(&network.client, "eth0", count, tx);
            held.iter().for_each(|held| held.await_answers(200, END));
            let now = handed();
            assert!(now > before, "{count} queues, the client sends by {tx}: nothing was handed over");
            println!("{count} queues, the client sends by {tx}: {} frames handed over", now - before);
            before = now;
        }
        for transfer in &mut transfers {
            let status = transfer.wait(Duration::from_secs(120));
            let log = std::fs::read_to_string(network.lab.dir().join("curl.log")).unwrap_or_default();
            assert!(status.is_some_and(|status| status.success()), "a transfer failed: {status:?} {log}");
        }
        for held in held {
            let outcome = held.finish();
            assert!(outcome.failures.is_empty(), "established connections broke: {:?}", outcome.failures);
        }
        stop(&gateway, process);
    }
}

#[test]
fn a_link_that_goes_down_under_load_stops_nothing_for_good_and_loses_no_frame() {
    let network = Network::two_nics("down", 2, 2);
    let (gateway, process) = started(&network, TWO_WORKERS);
    for (host, interface) in [(&network.client, "eth0"), (&network.gateway, "eth1"), (&network.gateway, "eth0")] {
        let held = load::hold(&network.client, network.vip(false), 20, Duration::from_millis(1));
        held.await_answers(200, END);
        host.run("ip", ["link", "set", interface, "down"]);
        // Nothing comes through any more, for as long as the busy ratio, taken once a second, needs to tell.
        eventually("the workers rest", END, || {
            let busy = gateway.metric("millrace_worker_busy_ratio", "");
            if busy < 0.2 { Ok(()) } else { Err(format!("busy: {busy}")) }
        });
        host.run("ip", ["link", "set", interface, "up"]);
        held.await_answers(200, END);
        let outcome = held.finish();
        assert!(outcome.failures.is_empty(), "{interface} down and up: {:?}", outcome.failures);
        let outcome = load::requests(&network.client, network.vip(false), 200, 10);
        assert_eq!((outcome.answered, outcome.failures.len()), (200, 0), "{interface} is up again: {outcome:?}");
    }
    stop(&gateway, process);
}
