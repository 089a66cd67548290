//! The process dies, ends, or is followed by another; established connections go on.

use std::time::Duration;

use millrace_tests::lab::Process;
use millrace_tests::load;
use millrace_tests::millrace::Gateway;
use millrace_tests::topology::Network;
use nix::sys::signal::Signal;

const END: Duration = Duration::from_secs(10);

/// One way to follow an instance by another, under load; `workers` are before and after.
fn scenario(name: &str, workers: [&str; 2], follow: impl Fn(&mut Gateway, Process) -> Process) {
    let network = Network::two_nics(name, 3, 2);
    let config = |cores: &str| network.config(&format!("workers: {{cores: {cores}}}"));
    let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &config(workers[0]));
    gateway.manifest("web.yaml", &network.manifest(&[1, 2, 3], &[]));
    let mut process = gateway.start();
    for ipv6 in [false, true] {
        let held = load::hold(&network.client, network.vip(ipv6), 40, Duration::from_millis(5));
        held.await_answers(400, END);
        let next = if ipv6 { workers[0] } else { workers[1] };
        gateway.configure(&config(next));
        process = follow(&mut gateway, process);
        held.await_answers(400, END);
        let outcome = held.finish();
        assert!(outcome.failures.is_empty(), "{name}: established connections broke: {:?}", outcome.failures);
        let fresh = load::requests(&network.client, network.vip(ipv6), 200, 10);
        assert!(fresh.failures.is_empty(), "{name}: new connections fail: {:?}", fresh.failures);
        println!("{name}, ipv6 {ipv6}, workers now {next}: {} answers on 40 connections", outcome.answered);
    }
    assert!(gateway.admin(&["stop"]).status.success(), "stop: {}", gateway.log_text());
    assert!(process.wait(END).is_some(), "stop did not end the instance");
    network_is_clean(&network);
}

/// After `stop` nothing of Millrace is on the interfaces.
fn network_is_clean(network: &Network) {
    for interface in &network.interfaces {
        let text = network.gateway.run("ip", ["-d", "link", "show", "dev", interface]);
        assert!(!text.contains("xdp"), "an XDP program is left on {interface}: {text}");
    }
}

fn killed(gateway: &mut Gateway, mut process: Process) -> Process {
    process.signal(Signal::SIGKILL);
    assert!(process.wait(END).is_some());
    gateway.start()
}

fn terminated(gateway: &mut Gateway, mut process: Process) -> Process {
    process.signal(Signal::SIGTERM);
    assert!(process.wait(END).is_some_and(|s| s.success()), "SIGTERM did not end it cleanly: {}", gateway.log_text());
    gateway.start()
}

fn upgraded(gateway: &mut Gateway, mut process: Process) -> Process {
    let successor = gateway.start();
    assert!(process.wait(END).is_some_and(|s| s.success()), "the predecessor did not end: {}", gateway.log_text());
    successor
}

#[test]
fn kill_9_under_load_and_a_start_right_after_keep_established_connections() {
    scenario("kill", ["[0]", "[0]"], killed);
}

#[test]
fn kill_9_and_a_start_with_another_number_of_workers_keep_established_connections() {
    scenario("kill-workers", ["[0]", "[0, 1]"], killed);
}

#[test]
fn sigterm_and_a_successor_keep_established_connections() {
    scenario("term", ["[0]", "[0]"], terminated);
}

#[test]
fn sigterm_and_a_successor_with_another_number_of_workers_keep_established_connections() {
    scenario("term-workers", ["[0, 1]", "[0]"], terminated);
}

#[test]
fn an_upgrade_keeps_established_connections() {
    scenario("upgrade", ["[0]", "[0]"], upgraded);
}

#[test]
fn an_upgrade_with_another_number_of_workers_keeps_established_connections() {
    scenario("upgrade-workers", ["[0]", "[0, 1]"], upgraded);
}

#[test]
fn between_two_instances_the_kernel_never_answers_for_a_vip() {
    let network = Network::two_nics("between", 1, 1);
    let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &network.config(""));
    gateway.manifest("web.yaml", &network.manifest(&[1], &[]));
    let mut process = gateway.start();
    assert_eq!(load::requests(&network.client, network.vip(false), 5, 1).answered, 5);
    process.signal(Signal::SIGKILL);
    assert!(process.wait(END).is_some());
    // Neither a reset nor an ICMP error: the connect is simply not answered.
    let output = network.client.output("curl", ["-sS", "--max-time", "1", "http://10.81.1.100/"]);
    assert_eq!(output.status.code(), Some(28), "curl: {}", String::from_utf8_lossy(&output.stderr));
    let _process = gateway.start();
    assert_eq!(load::requests(&network.client, network.vip(false), 5, 1).answered, 5);
}
