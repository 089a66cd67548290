//! Clients on VLANs: they are answered in the VLANs that they ask in.
//!
//! ```text
//! client ── tagger ══ eth0 gateway eth1 ── backend        ═ carries tags
//! ```

use std::net::SocketAddr;
use std::time::Duration;

use millrace_tests::datagrams;
use millrace_tests::lab::Lab;
use millrace_tests::millrace::Gateway;
use millrace_tests::servers;
use millrace_tests::tagger::{self, Tag};
use millrace_tests::transfers::{self, LENGTH, transfer};
use millrace_tests::wait::eventually;

const END: Duration = Duration::from_secs(30);
const PORT: u16 = 8080;
const CUSTOMER: u16 = 0x8100;
const PROVIDER: u16 = 0x88a8;

const MANIFEST: &str = "\
apiVersion: v1
kind: Service
metadata:
  name: web
  annotations:
    millrace.dev/addresses: 10.81.1.100,fd81:1::100
spec:
  type: LoadBalancer
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv4, IPv6]
  ports:
  - {name: tcp, port: 80}
  - {name: udp, port: 80, protocol: UDP}
---
apiVersion: v1
kind: Endpoints
metadata:
  name: web
subsets:
- addresses: [{ip: 10.82.1.11}, {ip: \"fd82:1::11\"}]
  ports:
  - {name: tcp, port: 8080}
  - {name: udp, port: 8080, protocol: UDP}
";

fn clients_are_answered_within(name: &str, tags: &[Tag]) {
    servers::require(&["ip", "nsenter", "sysctl", "curl", "nft", "ethtool"]);
    let mut lab = Lab::new(name);
    let [client, between, gateway, backend] = ["client", "tagger", "gw", "b"].map(|name| lab.host(name));
    lab.wire((&client, "eth0"), (&between, "plain"), 1);
    lab.wire((&between, "trunk"), (&gateway, "eth0"), 1);
    lab.wire((&gateway, "eth1"), (&backend, "eth0"), 1);
    for (host, interface, link, station) in
        [(&client, "eth0", 81, 2), (&gateway, "eth0", 81, 1), (&gateway, "eth1", 82, 1), (&backend, "eth0", 82, 11)]
    {
        host.address(interface, &format!("10.{link}.1.{station}/24"));
        host.address(interface, &format!("fd{link}:1::{station}/64"));
    }
    // Whole packets, and room for two tags.
    client.run("ethtool", ["-K", "eth0", "tso", "off", "gso", "off"]);
    for (host, interface) in [(&between, "trunk"), (&gateway, "eth0")] {
        host.run("ip", ["link", "set", interface, "mtu", "1508"]);
    }
    tagger::tag(&between, "plain", "trunk", tags);
    let config = "interfaces: [eth0, eth1]\npools: [{name: public, addresses: [10.81.1.96/28, \"fd81:1::100/124\"]}]\n\
                  snat: {addresses: [10.82.1.100, \"fd82:1::1:100\"]}\nannounce: [{mode: none}]\n";
    let mut millrace = Gateway::new(&gateway, lab.dir(), config);
    millrace.manifest("web.yaml", MANIFEST);
    // Frames must come with their tags, whatever the NIC did before; that is put back in the end.
    let strips = || gateway.run("ethtool", ["-k", "eth0"]).contains("rx-vlan-offload: on");
    gateway.run("ethtool", ["-K", "eth0", "rxvlan", "on"]);
    assert!(strips());
    let _process = millrace.start();
    assert!(!strips());
    let server = transfers::serve(&backend, PORT, usize::MAX);
    let before = tagger::received(&between);
    for address in ["10.81.1.100:80", "[fd81:1::100]:80"] {
        let target: SocketAddr = address.parse().expect("an address");
        for upload in [false, true] {
            let moved = client.within(move || transfer(target, upload)).join().expect("the client");
            assert_eq!(moved.map_err(|e| e.to_string()), Ok(LENGTH), "{address}, upload {upload}");
        }
        let echo = if target.is_ipv6() { "[fd82:1::11]:8080" } else { "10.82.1.11:8080" };
        datagrams::echo(&backend, echo.parse().expect("an address"));
        let asking = datagrams::ask(&client, target, 10);
        asking.await_answers(100, END);
        assert_eq!(asking.finish().1, 0, "refused");
        eventually("a ping is answered", END, || {
            let ping = client.output("ping", ["-c", "1", "-W", "2", &target.ip().to_string()]);
            if ping.status.success() { Ok(()) } else { Err(format!("{ping:?}")) }
        });
    }
    assert!(!server.is_finished(), "the server failed");
    let after = tagger::received(&between);
    println!("{name}: {} frames came with the tag, {} without", after.0 - before.0, after.1 - before.1);
    assert!(after.0 - before.0 > 2 * (LENGTH / 1500) as u64, "{before:?} {after:?}");
    assert!(millrace.admin(&["stop"]).status.success(), "stop: {}", millrace.log_text());
    assert!(strips());
}

#[test]
fn clients_on_a_vlan_are_answered_in_it() {
    clients_are_answered_within("vlan", &[(CUSTOMER, 100)]);
}

#[test]
fn clients_on_a_vlan_within_a_providers_are_answered_in_both() {
    clients_are_answered_within("vlan-qinq", &[(PROVIDER, 200), (CUSTOMER, 100)]);
}
