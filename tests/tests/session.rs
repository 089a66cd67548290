//! Long sessions of the host's own, held while Millrace comes, is followed and goes.

use std::net::SocketAddr;
use std::time::Duration;

use millrace_tests::load;
use millrace_tests::millrace::Gateway;
use millrace_tests::servers;
use millrace_tests::topology::Network;
use nix::sys::signal::Signal;

const END: Duration = Duration::from_secs(30);

#[test]
fn sessions_on_other_ports_of_a_nodeport_address_go_on_over_start_kill_9_upgrade_and_stop() {
    let network = Network::two_nics("session", 1, 1);
    let mut gateway =
        Gateway::new(&network.gateway, network.lab.dir(), &network.config("serve: [loadBalancer, nodePort]"));
    let node_port = "  - port: 80\n    nodePort: 30080\n";
    gateway.manifest("web.yaml", &network.manifest(&[1], &[]).replace("  - port: 80\n", node_port));
    let incoming = ["10.81.1.1:22", "[fd81:1::1]:22"];
    let outgoing = ["10.81.1.2:2222", "[fd81:1::2]:2222"];
    let _servers = [
        servers::nginx(&network.gateway, network.lab.dir(), "host", &incoming),
        servers::nginx(&network.client, network.lab.dir(), "client", &outgoing),
    ];
    let sessions: Vec<_> = [(&network.client, incoming), (&network.gateway, outgoing)]
        .into_iter()
        .flat_map(|(from, targets)| targets.map(|target| (from, target.parse().expect("an address"))))
        .map(|(from, target)| load::hold(from, target, 1, Duration::from_millis(5)))
        .collect();
    let go_on = || sessions.iter().for_each(|session| session.await_answers(40, END));
    let served = || {
        for address in ["10.81.1.1:30080", "[fd81:1::1]:30080"] {
            let target: SocketAddr = address.parse().expect("an address");
            let outcome = load::requests(&network.client, target, 50, 5);
            assert_eq!((outcome.answered, outcome.failures.len()), (50, 0), "{target}: {outcome:?}");
        }
    };
    go_on();
    let mut process = gateway.start();
    served();
    go_on();
    process.signal(Signal::SIGKILL);
    assert!(process.wait(END).is_some());
    go_on();
    let mut process = gateway.start();
    served();
    go_on();
    let mut successor = gateway.start();
    assert!(process.wait(END).is_some_and(|status| status.success()), "{}", gateway.log_text());
    served();
    go_on();
    assert!(gateway.admin(&["stop"]).status.success(), "stop: {}", gateway.log_text());
    assert!(successor.wait(END).is_some_and(|status| status.success()), "{}", gateway.log_text());
    go_on();
    for session in sessions {
        let outcome = session.finish();
        assert!(outcome.failures.is_empty(), "a session of the host's broke: {:?}", outcome.failures);
        println!("{} answers on one connection of the host's own", outcome.answered);
    }
}
