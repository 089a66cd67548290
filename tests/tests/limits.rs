//! What sources may take and what happens when there is no more, seen by clients' own kernels.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use millrace_tests::lab::Host;
use millrace_tests::load;
use millrace_tests::millrace::Gateway;
use millrace_tests::topology::Network;
use millrace_tests::wait::eventually;

const END: Duration = Duration::from_secs(30);

/// What a client is told that is refused, and after how long.
fn refused(client: &Host, target: SocketAddr) -> (Option<i32>, ErrorKind, Duration) {
    client
        .within(move || {
            let begun = Instant::now();
            let error = TcpStream::connect_timeout(&target, END).expect_err("to be refused");
            (error.raw_os_error(), error.kind(), begun.elapsed())
        })
        .join()
        .expect("the client")
}

/// RFC 5508 REQ-8 as Linux tells it: code 13 is EHOSTUNREACH, ICMPv6's code 1 EACCES.
fn is_told_at_once(client: &Host, target: SocketAddr) {
    let expected = if target.is_ipv6() { nix::libc::EACCES } else { nix::libc::EHOSTUNREACH };
    // A second SYN is sent where the machine stands meanwhile.
    eventually("the first SYN is answered", END, || {
        let (number, kind, time) = refused(client, target);
        assert_eq!(number, Some(expected), "{target}: {kind}, after {time:?}");
        if time < Duration::from_millis(900) { Ok(()) } else { Err(format!("{target}: {time:?}")) }
    });
}

#[test]
fn a_source_with_its_share_of_flows_is_told_at_once_and_gets_more_when_some_end() {
    let network = Network::two_nics("share", 2, 2);
    let config = network.config("limits: {flowsPerSource: 20}\nworkers: {cores: [0, 1]}");
    let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &config);
    gateway.manifest("web.yaml", &network.manifest(&[1, 2], &[]));
    let _process = gateway.start();
    for ipv6 in [false, true] {
        let held = load::hold(&network.client, network.vip(ipv6), 20, Duration::from_millis(20));
        held.await_each(END);
        is_told_at_once(&network.client, network.vip(ipv6));
        held.await_answers(100, END);
        let outcome = held.finish();
        assert!(outcome.failures.is_empty(), "{outcome:?}");
        eventually("closed connections count no longer", END, || {
            let outcome = load::requests(&network.client, network.vip(ipv6), 20, 1);
            if outcome.failures.is_empty() { Ok(()) } else { Err(format!("{outcome:?}")) }
        });
    }
    gateway.await_metric("millrace_events_total", "refused_source_limit", 2.0);
    gateway.await_metric("millrace_events_total", "prohibiteds_sent", 2.0);
}

#[test]
fn a_source_that_opens_too_fast_is_slowed_down_and_fails_nothing() {
    let network = Network::two_nics("pace", 2, 2);
    let config = network.config("limits: {newFlowsPerSource: 100/s}\nworkers: {cores: [0, 1]}");
    let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &config);
    gateway.manifest("web.yaml", &network.manifest(&[1, 2], &[]));
    let _process = gateway.start();
    for ipv6 in [false, true] {
        let begun = Instant::now();
        let outcome = load::requests(&network.client, network.vip(ipv6), 500, 20);
        let time = begun.elapsed();
        assert_eq!((outcome.answered, outcome.failures.len()), (500, 0), "{outcome:?}");
        // A hundred at once, then a hundred a second.
        assert!(time >= Duration::from_millis(3_900), "{time:?}");
        println!("ipv6 {ipv6}: 500 requests at 100 a second took {time:?}");
    }
    let dropped = gateway.metric("millrace_drops_total", "source_rate");
    assert!(dropped > 0.0, "{dropped}");
}

#[test]
fn who_finds_no_snat_port_left_is_told_at_once_and_those_that_have_one_go_on() {
    let network = Network::two_nics("exhausted", 1, 1);
    let config = network.config("").replace("]}\n\n", "], ports: 20000-20063}\n");
    assert!(config.contains("ports: 20000-20063"), "{config}");
    let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &config);
    gateway.manifest("web.yaml", &network.manifest(&[1], &[]));
    let _process = gateway.start();
    for ipv6 in [false, true] {
        let held = load::hold(&network.client, network.vip(ipv6), 64, Duration::from_millis(20));
        held.await_each(END);
        is_told_at_once(&network.client, network.vip(ipv6));
        held.await_answers(100, END);
        let outcome = held.finish();
        assert!(outcome.failures.is_empty(), "{outcome:?}");
    }
    gateway.await_metric("millrace_events_total", "refused_snat_exhausted", 2.0);
}
