//! Traffic of the host itself stays its own.

use std::time::Duration;

use millrace_tests::greeter::{greeted, greeter};
use millrace_tests::load;
use millrace_tests::millrace::{Gateway, binary};
use millrace_tests::topology::Network;
use millrace_tests::wait::eventually;

const END: Duration = Duration::from_secs(30);

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
        let output = network.client.output("curl", ["-sS", "--max-time", "10", "http://10.81.1.1:81/"]);
        assert_eq!(output.status.code(), Some(7), "{when}: {output:?}");
    };
    check("before");
    let mut process = gateway.start();
    let node = std::net::SocketAddr::new("10.81.1.1".parse().expect("an address"), 30080);
    let outcome = load::requests(&network.client, node, 50, 5);
    assert_eq!((outcome.answered, outcome.failures.len()), (50, 0), "NodePort: {outcome:?}");
    check("while Millrace runs");
    stop(&gateway);
    assert!(process.wait(END).is_some(), "it does not end: {}", gateway.log_text());
    check("after it stopped");
}

/// `millrace stop`.
fn stop(gateway: &Gateway) {
    let output = gateway.admin(&["stop"]);
    assert!(output.status.success(), "{output:?}\n{}", gateway.log_text());
}

/// What `millrace check` says, and its exit code.
fn checked(gateway: &Gateway) -> (Option<i32>, String) {
    let mut command = gateway.host.command(binary());
    let output = command.args(["check", "--config"]).arg(gateway.config()).output().expect("millrace check");
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn a_port_that_the_host_listens_on_stays_its_own_and_is_served_once_nobody_listens() {
    let network = Network::two_nics("occupied", 1, 1);
    let config = "serve: [loadBalancer, externalIPs, nodePort]\nexternalIPs: [10.81.1.1/32, \"fd81:1::1/128\"]";
    let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &network.config(config));
    let ports = "  externalIPs: [10.81.1.1, \"fd81:1::1\"]\n  ports:\n  - port: 22\n    nodePort: 30022\n";
    gateway.manifest("web.yaml", &network.manifest(&[1], &[]).replace("  ports:\n  - port: 80\n", ports));
    for address in ["10.81.1.1:22", "[fd81:1::1]:22", "127.0.0.1:30022"] {
        greeter(&network.gateway, address);
    }
    // Listens until it is told to end.
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let (ready, wait) = std::sync::mpsc::channel();
    let brief = network.gateway.within(move || {
        let listener = std::net::TcpListener::bind("10.81.1.1:30022").expect("to listen");
        ready.send(()).expect("the test waits");
        let _ = ended.recv();
        drop(listener);
    });
    wait.recv_timeout(END).expect("it listens");
    let (code, said) = checked(&gateway);
    assert_eq!(code, Some(2), "{said}");
    for socket in ["10.81.1.1:22/tcp", "[fd81:1::1]:22/tcp", "10.81.1.1:30022/tcp"] {
        assert!(said.contains(&format!("listens on {socket}: choose another")), "{socket}: {said}");
    }
    let process = gateway.start();
    let own = |when: &str| {
        assert!(greeted(&network.client, "10.81.1.1:22"), "{when}");
        assert!(greeted(&network.client, "[fd81:1::1]:22"), "{when}");
    };
    own("while Millrace runs");
    let errors = |gateway: &Gateway| gateway.json(&["status"])["errors"].to_string();
    assert!(errors(&gateway).contains("listens on 10.81.1.1:22/tcp"), "{}", errors(&gateway));
    assert_eq!(load::requests(&network.client, "[fd81:1::1]:30022".parse().expect("it"), 10, 1).answered, 10);
    // What is in the way goes away, and the NodePort is served, also when something comes to listen there later.
    end.send(()).expect("it waits");
    brief.join().expect("it ends");
    let node = std::net::SocketAddr::new("10.81.1.1".parse().expect("an address"), 30022);
    let served = || {
        eventually("the NodePort is served", END, || {
            let outcome = load::requests(&network.client, node, 1, 1);
            if outcome.answered == 1 { Ok(()) } else { Err(format!("{outcome:?}")) }
        });
    };
    // What is wrong is told once all is done.
    let is_told_no_more = |gateway: &Gateway| {
        eventually("the NodePort is no error any more", END, || {
            let errors = errors(gateway);
            if errors.contains("30022") { Err(errors) } else { Ok(()) }
        });
    };
    served();
    is_told_no_more(&gateway);
    greeter(&network.gateway, "10.81.1.1:30022");
    let mut successor = gateway.start();
    served();
    is_told_no_more(&gateway);
    own("in a successor");
    drop(process);
    stop(&gateway);
    assert!(successor.wait(END).is_some(), "it does not end: {}", gateway.log_text());
    own("after it stopped");
    assert!(greeted(&network.client, "10.81.1.1:30022"), "the kernel has the NodePort back");
}

#[test]
fn stop_cleans_up_right_after_a_kill_and_never_under_one_that_is_starting() {
    let network = Network::two_nics("killed", 1, 1);
    let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &network.config(""));
    gateway.manifest("web.yaml", &network.manifest(&[1], &[]));
    for turn in 0..3 {
        let mut process = gateway.start();
        process.signal(nix::sys::signal::Signal::SIGKILL);
        let output = gateway.admin(&["stop"]);
        assert!(output.status.success(), "turn {turn}: {output:?}\n{}", gateway.log_text());
        assert!(process.wait(END).is_some());
        assert!(!gateway.dir.join("run").exists(), "turn {turn}: something is left");
        let mut dead = gateway.start();
        dead.signal(nix::sys::signal::Signal::SIGKILL);
        assert!(dead.wait(END).is_some());
        let mut starting = gateway.launch();
        eventually("stop is done", Duration::from_secs(60), || {
            let output = gateway.admin(&["stop"]);
            if output.status.success() { Ok(()) } else { Err(format!("{output:?}\n{}", gateway.log_text())) }
        });
        if starting.is_running() {
            gateway.await_ready(&mut starting);
            assert_eq!(load::requests(&network.client, network.vip(false), 10, 2).answered, 10, "turn {turn}");
            stop(&gateway);
        }
        assert!(starting.wait(END).is_some());
    }
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
        let status = process.wait(END).unwrap_or_else(|| panic!("{what}: it runs"));
        let log = gateway.log_text();
        assert_eq!(status.code(), Some(2), "{what}: {log}");
        assert!(log.contains(names), "{what}: the way out is not named: {log}");
        println!("{what}: {}", log.lines().last().unwrap_or(""));
        assert!(binary().exists());
        std::fs::remove_file(gateway.dir.join("millrace.log")).expect("the log");
    }
}
