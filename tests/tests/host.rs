//! Traffic of the host itself stays its own.

use std::time::Duration;

use millrace_tests::greeter::{greeted, greeter};
use millrace_tests::load;
use millrace_tests::millrace::{Gateway, binary};
use millrace_tests::topology::Network;

#[test]
fn other_ports_of_a_nodeport_address_and_outgoing_connections_are_the_hosts_own() {
    let network = Network::two_nics("host", 1, 1);
    let mut gateway =
        Gateway::new(&network.gateway, network.lab.dir(), &network.config("serve: [loadBalancer, nodePort]"));
    let nodeport = network.manifest(&[1], &[]).replace("  - port: 80\n", "  - port: 80\n    nodePort: 30080\n");
    gateway.manifest("web.yaml", &nodeport);
    greeter(&network.gateway, "10.81.1.1:22");
    greeter(&network.client, "10.81.1.2:2222");
    let check = |when: &str| {
        assert!(greeted(&network.client, "10.81.1.1:22"), "{when}: the host's own port 22");
        assert!(greeted(&network.gateway, "10.81.1.2:2222"), "{when}: the host's outgoing connection");
        // A port that nobody has is refused by the kernel, at once.
        let output = network.client.output("curl", ["-sS", "--max-time", "3", "http://10.81.1.1:81/"]);
        assert_eq!(output.status.code(), Some(7), "{when}: {}", String::from_utf8_lossy(&output.stderr));
    };
    check("before");
    let mut process = gateway.start();
    let node = std::net::SocketAddr::new("10.81.1.1".parse().expect("an address"), 30080);
    let outcome = load::requests(&network.client, node, 50, 5);
    assert_eq!((outcome.answered, outcome.failures.len()), (50, 0), "NodePort: {outcome:?}");
    check("while Millrace runs");
    assert!(gateway.admin(&["stop"]).status.success());
    assert!(process.wait(Duration::from_secs(10)).is_some());
    check("after it stopped");
}

#[test]
fn a_configuration_that_would_take_the_hosts_connections_is_refused_with_the_way_out() {
    let network = Network::two_nics("refused", 1, 1);
    let base = "interfaces: [eth0, eth1]\npools: [{name: public, addresses: [10.81.1.96/28]}]\n";
    let cases = [
        ("no SNAT addresses", String::new(), "snat"),
        ("a host's address without ports", "snat: {addresses: [10.82.1.1]}".to_owned(), "ports"),
        (
            "a range in ip_local_port_range",
            "snat: {addresses: [10.82.1.1], ports: 40000-50000}".to_owned(),
            "ip_local_port_range",
        ),
    ];
    for (what, snat, names) in cases {
        let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &format!("{base}{snat}"));
        gateway.manifest("web.yaml", &network.manifest(&[1], &[]));
        let mut process = gateway.launch();
        let status = process.wait(Duration::from_secs(10)).unwrap_or_else(|| panic!("{what}: it runs"));
        let log = gateway.log_text();
        assert_eq!(status.code(), Some(2), "{what}: {log}");
        assert!(log.contains(names), "{what}: the way out is not named: {log}");
        println!("{what}: {}", log.lines().last().unwrap_or(""));
        assert!(binary().exists());
        std::fs::remove_file(gateway.dir.join("millrace.log")).expect("the log");
    }
}
