//! Paths with a smaller MTU than their ends have: whoever sends too much is told, through the translation.

use std::net::SocketAddr;

use millrace_tests::lab::{Host, Lab};
use millrace_tests::millrace::Gateway;
use millrace_tests::servers;
use millrace_tests::transfers::{self, LENGTH, transfer};

const PORT: u16 = 8080;

/// client ─ r0 ═ r1 ─ gateway ═ r2 ═ r3 ─ backend, where one ═ is a link of a smaller MTU.
struct Path {
    client: Host,
    gateway: Host,
    backend: Host,
    lab: Lab,
}

/// Both families' addresses of a station on a link.
fn addresses(host: &Host, interface: &str, link: &str, station: u32) {
    host.address(interface, &format!("10.{link}.{station}/24"));
    host.address(interface, &format!("fd00:{}::{station}/64", link.replace('.', ":")));
}

/// Routes of both families to a link by a station of another.
fn route(host: &Host, to: &str, link: &str, station: u32) {
    host.route(&format!("10.{to}.0/24 via 10.{link}.{station}"));
    host.route(&format!("fd00:{}::/64 via fd00:{}::{station}", to.replace('.', ":"), link.replace('.', ":")));
}

impl Path {
    /// The MTUs are of the links between the client's routers, of the gateway's inner link, and between the backend's.
    fn new(name: &str, [outside, port, inside]: [u32; 3]) -> Self {
        servers::require(&["ip", "nsenter", "sysctl", "curl"]);
        let mut lab = Lab::new(name);
        let names = ["client", "r0", "r1", "gw", "r2", "r3", "backend"];
        let hosts: Vec<Host> = names.iter().map(|name| lab.host(name)).collect();
        // Each host's eth0 is towards the client, eth1 towards the backend.
        let links = ["1.1", "2.1", "3.1", "4.1", "5.1", "6.1"];
        for (at, link) in links.iter().enumerate() {
            let near = if at == 0 { "eth0" } else { "eth1" };
            lab.wire((&hosts[at], near), (&hosts[at + 1], "eth0"), 1);
            addresses(&hosts[at], near, link, 1);
            addresses(&hosts[at + 1], "eth0", link, 2);
            let mtu = match at {
                1 => outside,
                3 => port,
                4 => inside,
                _ => 1500,
            };
            for (host, interface) in [(&hosts[at], near), (&hosts[at + 1], "eth0")] {
                host.run("ip", ["link", "set", interface, "mtu", &mtu.to_string()]);
            }
        }
        for router in [1, 2, 4, 5] {
            hosts[router].sysctl("net.ipv4.ip_forward", "1");
            hosts[router].sysctl("net.ipv6.conf.all.forwarding", "1");
        }
        for (at, host) in hosts.iter().enumerate() {
            for (to, link) in links.iter().enumerate() {
                if to > at {
                    route(host, link, links[at], 2);
                } else if to + 1 < at {
                    route(host, link, links[at - 1], 1);
                }
            }
        }
        let [client, _, _, gateway, _, _, backend] = hosts.try_into().unwrap_or_else(|_| unreachable!("seven"));
        Self { client, gateway, backend, lab }
    }

    fn millrace(&self, mode: &str, more: &str) -> Gateway {
        let config = "interfaces: [eth0, eth1]\npools: [{name: public, addresses: [10.3.1.96/28, \"fd00:3:1::100/124\"]}]\n\
                      snat: {addresses: [10.4.1.100, \"fd00:4:1::100\"]}\n";
        let gateway = Gateway::new(&self.gateway, self.lab.dir(), &format!("{config}{more}\n"));
        gateway.manifest(
            "web.yaml",
            &format!(
                "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\n  annotations:\n    \
                 millrace.dev/addresses: 10.3.1.100,fd00:3:1::100\n    millrace.dev/mode: {mode}\nspec:\n  \
                 type: LoadBalancer\n  ipFamilyPolicy: RequireDualStack\n  ipFamilies: [IPv4, IPv6]\n  ports:\n  \
                 - port: 80\n    targetPort: {PORT}\n---\napiVersion: v1\nkind: Endpoints\nmetadata:\n  name: web\n\
                 subsets:\n- addresses:\n  - ip: 10.6.1.2\n  - ip: \"fd00:6:1::2\"\n  ports:\n  - port: {PORT}\n"
            ),
        );
        gateway
    }

    /// A download and an upload over both families, each of which must end.
    fn transfers(&self, upload_first: bool) {
        for address in ["10.3.1.100:80", "[fd00:3:1::100]:80"] {
            let target: SocketAddr = address.parse().expect("an address");
            // Ends remember what they were told, so each path is met first by who has to learn.
            for upload in [upload_first, !upload_first] {
                let moved = self.client.within(move || transfer(target, upload)).join().expect("the client");
                assert_eq!(moved.map_err(|e| e.to_string()), Ok(LENGTH), "{address}, upload {upload}");
            }
        }
    }
}

/// Transfers through a gateway with links so small; gives how many errors went through it, and how many it sent.
fn scenario(name: &str, mode: &str, more: &str, [outside, port, inside]: [u32; 3]) -> [f64; 2] {
    let path = Path::new(name, [outside, port, inside]);
    let mut gateway = path.millrace(mode, more);
    let _process = gateway.start();
    let server = transfers::serve(&path.backend, PORT, 4);
    path.transfers(outside == 1500);
    server.join().expect("the server").expect("the server");
    let metrics = gateway.metrics();
    let events = |event: &str| metrics.sum("millrace_events_total", &format!("event=\"{event}\""));
    let counts = ["icmp_errors_translated", "too_bigs_sent"].map(events);
    println!("{name}: {} errors translated, {} sent", counts[0], counts[1]);
    counts
}

#[test]
fn a_download_recovers_from_a_smaller_mtu_on_the_clients_side() {
    for mode in ["nat", "preserve"] {
        let [translated, sent] = scenario(&format!("mtu-out-{mode}"), mode, "", [1400, 1500, 1500]);
        assert!(translated >= 2.0 && sent == 0.0, "{mode}: {translated} translated, {sent} sent");
    }
}

#[test]
fn an_upload_recovers_from_a_smaller_mtu_on_the_backends_side() {
    for mode in ["nat", "preserve"] {
        let [translated, sent] = scenario(&format!("mtu-in-{mode}"), mode, "", [1500, 1500, 1400]);
        assert!(translated >= 2.0 && sent == 0.0, "{mode}: {translated} translated, {sent} sent");
    }
}

#[test]
fn what_does_not_fit_the_gateways_own_link_is_answered_by_the_gateway() {
    let [translated, sent] = scenario("mtu-port", "nat", "", [1500, 1400, 1500]);
    assert!(sent >= 2.0 && translated == 0.0, "{translated} translated, {sent} sent");
}

#[test]
fn with_clamped_segment_sizes_nobody_needs_to_be_told() {
    let [translated, sent] = scenario("mtu-clamp", "nat", "mssClamp: auto", [1500, 1400, 1500]);
    assert_eq!([translated, sent], [0.0, 0.0]);
    let [translated, sent] = scenario("mtu-clamp-most", "nat", "mssClamp: 1300", [1400, 1500, 1400]);
    assert_eq!([translated, sent], [0.0, 0.0]);
}
