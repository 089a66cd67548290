//! Many short requests through one VIP, as people's browsers send them.

use std::time::Duration;

use millrace_tests::load::{self, Outcome};
use millrace_tests::millrace::Gateway;
use millrace_tests::topology::Network;
use millrace_tests::wait::eventually;

/// 10,000 requests, a connection each, 100 at a time.
fn ten_thousand(network: &Network, gateway: &Gateway, ipv6: bool) -> Outcome {
    let aside = || gateway.metric("millrace_events_total", "event=\"endpoints_set_aside\"");
    let before = aside();
    eventually("shares are even", Duration::from_secs(120), || {
        let outcome = load::requests(&network.client, network.vip(ipv6), 10_000, 100);
        assert_eq!(outcome.failures.len(), 0, "failures: {:?}", outcome.failures);
        assert_eq!(outcome.answered, 10_000);
        let share = |backend: &str| outcome.by_server.get(backend).copied().unwrap_or(0) as f64 / 10_000.0;
        let even = ["b1", "b2", "b3"].into_iter().all(|backend| (share(backend) - 1.0 / 3.0).abs() <= 0.03);
        // Who seems dead on a busy machine is set aside for a second or more.
        assert!(even || aside() != before, "{:?}", outcome.by_server);
        if even { Ok(outcome) } else { Err(format!("{:?}", outcome.by_server)) }
    })
}

fn through(network: &Network, config: &str) -> (Gateway, millrace_tests::lab::Process) {
    let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &network.config(config));
    gateway.manifest("web.yaml", &network.manifest(&[1, 2, 3], &[]));
    let process = gateway.start();
    (gateway, process)
}

#[test]
fn ten_thousand_requests_over_ipv4_and_ipv6_none_fails_and_shares_are_even_on_two_nics() {
    let network = Network::two_nics("requests", 3, 1);
    let (gateway, _process) = through(&network, "");
    for ipv6 in [false, true] {
        println!("ipv6 {ipv6}: {:?}", ten_thousand(&network, &gateway, ipv6).by_server);
    }
}

#[test]
fn ten_thousand_requests_over_ipv4_and_ipv6_none_fails_and_shares_are_even_on_one_nic() {
    let network = Network::one_nic("requests1", 3, 1);
    let (gateway, _process) = through(&network, "");
    for ipv6 in [false, true] {
        println!("ipv6 {ipv6}: {:?}", ten_thousand(&network, &gateway, ipv6).by_server);
    }
}

#[test]
fn with_two_and_four_queues_hand_off_happens_and_no_request_fails() {
    for (queues, workers) in [(2, "[0, 1]"), (4, "[0, 1]"), (4, "[0]")] {
        let network = Network::two_nics(&format!("queues{queues}"), 3, queues);
        let (gateway, _process) = through(&network, &format!("workers: {{cores: {workers}}}"));
        for ipv6 in [false, true] {
            println!("{queues} queues, workers {workers}: {:?}", ten_thousand(&network, &gateway, ipv6).by_server);
        }
        let handed = gateway.metric("millrace_handoff_total", "result=\"sent\"");
        if workers == "[0]" {
            assert_eq!(handed, 0.0, "one worker has nobody to hand frames to");
        } else {
            assert!(handed > 0.0, "{queues} queues on two workers, and no frame was handed over");
        }
        println!("{queues} queues, workers {workers}: {handed} frames handed over");
    }
}
