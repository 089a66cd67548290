//! Modes in which backends answer clients themselves: requests go through Millrace, replies past it.
//!
//! ```text
//!            ┌── gateway ──┐
//! client ── outside      inside ── b1, b2
//!            └── router ───┘
//!                  far ── b1, b2, where tunnels are to be long
//! ```

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use millrace_tests::datagrams;
use millrace_tests::decapsulator::decapsulate;
use millrace_tests::lab::{Host, Lab};
use millrace_tests::millrace::Gateway;
use millrace_tests::sctp::{Peer, Question};
use millrace_tests::servers;
use millrace_tests::transfers::{self, LENGTH, transfer};
use millrace_tests::wait::eventually;

const END: Duration = Duration::from_secs(30);
const PORT: u16 = 80;
const VIP: &str = "10.81.1.100";
const VIP6: &str = "fd81:1::100";

struct Site {
    client: Host,
    gateway: Host,
    router: Host,
    backends: [Host; 2],
    lab: Lab,
}

/// Both families' addresses of a station on a link.
fn addresses(host: &Host, interface: &str, link: u32, station: u32) {
    host.address(interface, &format!("10.{link}.1.{station}/24"));
    host.address(interface, &format!("fd{link}:1::{station}/64"));
}

impl Site {
    fn new(name: &str) -> Self {
        Self::with_backends(name, NEAR_LINK)
    }

    /// Backends on a link of their own.
    fn far(name: &str) -> Self {
        Self::with_backends(name, FAR_LINK)
    }

    fn with_backends(name: &str, link: u32) -> Self {
        servers::require(&["ip", "nsenter", "sysctl", "curl", "nft"]);
        let mut lab = Lab::new(name);
        let [client, gateway, router, b1, b2, outside, inside, far] =
            ["client", "gw", "router", "b1", "b2", "outside", "inside", "far"].map(|name| lab.host(name));
        let own = [(&b1, "eth0", 11), (&b2, "eth0", 12)];
        let (near_ones, far_ones) = if link == NEAR_LINK { (&own[..], &[][..]) } else { (&[][..], &own[..]) };
        for (switch, number, stations) in [
            (&outside, 81, vec![(&client, "eth0", 2), (&gateway, "eth0", 1), (&router, "eth0", 254)]),
            (&inside, NEAR_LINK, [&[(&gateway, "eth1", 1), (&router, "eth1", 254)][..], near_ones].concat()),
            (&far, FAR_LINK, [&[(&router, "eth2", 254)][..], far_ones].concat()),
        ] {
            switch.run("ip", ["link", "add", "br0", "type", "bridge"]);
            switch.run("ip", ["link", "set", "br0", "up"]);
            for (at, (host, interface, station)) in stations.into_iter().enumerate() {
                let port = format!("p{at}");
                lab.wire((host, interface), (switch, &port), 1);
                switch.run("ip", ["link", "set", &port, "master", "br0"]);
                addresses(host, interface, number, station);
            }
        }
        router.sysctl("net.ipv4.ip_forward", "1");
        router.sysctl("net.ipv6.conf.all.forwarding", "1");
        for backend in [&b1, &b2] {
            backend.route(&format!("default via 10.{link}.1.254"));
            backend.route(&format!("default via fd{link}:1::254"));
            // RFC 826 has every station answer for all of its addresses; for these Millrace answers.
            backend.sysctl("net.ipv4.conf.all.arp_ignore", "1");
            backend.sysctl("net.ipv4.conf.all.arp_announce", "2");
            backend.address("lo", &format!("{VIP}/32"));
            backend.address("lo", &format!("{VIP6}/128"));
        }
        gateway.route("10.83.1.0/24 via 10.82.1.254");
        gateway.route("fd83:1::/64 via fd82:1::254");
        Self { client, gateway, router, backends: [b1, b2], lab }
    }

    /// Has the backends take tunnels apart.
    fn decapsulate(&self, endpoints: [&str; 4]) {
        let addresses: Vec<IpAddr> = endpoints.iter().map(|text| text.parse().expect("an address")).collect();
        let [v4, v4_too, v6, v6_too] = addresses[..] else { unreachable!("four") };
        decapsulate(&self.backends[0], vec![v4, v6]);
        decapsulate(&self.backends[1], vec![v4_too, v6_too]);
    }

    /// Millrace, with a Service of TCP and UDP in this mode whose endpoints are these.
    fn millrace(&self, mode: &str, more: &str, endpoints: &[&str]) -> Gateway {
        let config = "interfaces: [eth0, eth1]\npools: [{name: public, addresses: [10.81.1.96/28, \"fd81:1::100/124\"]}]\n\
                      snat: {addresses: [10.82.1.100, \"fd82:1::1:100\"]}\n";
        let gateway = Gateway::new(&self.gateway, self.lab.dir(), &format!("{config}{more}\n"));
        gateway.manifest("web.yaml", &manifest(mode, endpoints));
        gateway
    }

    /// Octets that the router sent towards the client.
    fn returned(&self) -> u64 {
        let text = self.router.run("ip", ["-s", "-j", "link", "show", "dev", "eth0"]);
        let links: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        links[0]["stats64"]["tx"]["bytes"].as_u64().expect("a count")
    }

    /// A download and an upload over both families, each of which must end.
    fn transfers(&self) {
        let servers: Vec<_> = self.backends.iter().map(|backend| transfers::serve(backend, PORT, usize::MAX)).collect();
        for ipv6 in [false, true] {
            for upload in [false, true, false, true] {
                let moved = self.client.within(move || transfer(vip(ipv6), upload)).join().expect("the client");
                assert_eq!(moved.map_err(|e| e.to_string()), Ok(LENGTH), "IPv6 {ipv6}, upload {upload}");
            }
        }
        assert!(servers.iter().all(|server| !server.is_finished()), "a server failed");
    }

    /// Datagrams in fragments, to those who answer [`Site::questions`]; the kernel's, which are as long as the link takes.
    fn long_questions(&self) {
        for ipv6 in [false, true] {
            datagrams::exchange(&self.client, vip(ipv6), &[1_400, 4_000, 20_000]);
        }
    }

    /// Questions of both families, answered by both backends.
    fn questions(&self) {
        for ipv6 in [false, true] {
            self.backends.iter().for_each(|backend| datagrams::echo(backend, vip(ipv6)));
            let asking = datagrams::ask(&self.client, vip(ipv6), 10);
            asking.await_answers(200, END);
            assert_eq!(asking.finish().1, 0, "refused");
        }
    }
}

fn vip(ipv6: bool) -> SocketAddr {
    SocketAddr::new(if ipv6 { VIP6 } else { VIP }.parse().expect("an address"), PORT)
}

fn manifest(mode: &str, endpoints: &[&str]) -> String {
    let addresses: String = endpoints.iter().map(|address| format!("  - ip: \"{address}\"\n")).collect();
    let ports = |indent: &str| {
        format!("{indent}- {{name: tcp, port: {PORT}}}\n{indent}- {{name: udp, port: {PORT}, protocol: UDP}}\n")
    };
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\n  annotations:\n    \
         millrace.dev/addresses: {VIP},{VIP6}\n    millrace.dev/mode: {mode}\nspec:\n  type: LoadBalancer\n  \
         ipFamilyPolicy: RequireDualStack\n  ipFamilies: [IPv4, IPv6]\n  ports:\n{}---\napiVersion: v1\nkind: Endpoints\n\
         metadata:\n  name: web\nsubsets:\n- addresses:\n{addresses}  ports:\n{}",
        ports("  "),
        ports("  ")
    )
}

const NEAR_LINK: u32 = 82;
const FAR_LINK: u32 = 83;
const FAR: [&str; 4] = ["10.83.1.11", "10.83.1.12", "fd83:1::11", "fd83:1::12"];
const NEAR: [&str; 4] = ["10.82.1.11", "10.82.1.12", "fd82:1::11", "fd82:1::12"];

/// What lists say of a Service whose flows are there.
fn is_shown(gateway: &Gateway, mode: &str) {
    let flows = gateway.json(&["flows", "--service", "web"]);
    let flows = flows.as_array().expect("a list");
    let seen = |state: &str| flows.iter().any(|flow| flow["state"] == state);
    assert!(seen("finished") && seen("sending"), "{flows:?}");
    for flow in flows {
        let backend: SocketAddr = flow["backend"].as_str().and_then(|text| text.parse().ok()).expect("an endpoint");
        assert!(flow["mode"] == mode && NEAR.map(str::parse::<IpAddr>).contains(&Ok(backend.ip())), "{flow}");
        let by_backend = gateway.json(&["flows", "--backend", &backend.to_string()]);
        assert!(by_backend.as_array().is_some_and(|rows| rows.contains(flow) || !rows.is_empty()), "{by_backend}");
    }
    assert_eq!(gateway.json(&["services"])[0]["mode"], mode);
    assert!(gateway.json(&["backends"]).as_array().is_some_and(|rows| rows.iter().all(|row| row["mode"] == mode)));
    let explained = gateway.admin(&["explain", "10.81.1.2:4000", "10.81.1.100:80/tcp"]);
    let explained = String::from_utf8_lossy(&explained.stdout).into_owned();
    assert!(explained.contains(&format!("in mode {mode}")), "{explained}");
}

#[test]
fn backends_on_the_gateways_link_answer_clients_past_it() {
    let site = Site::new("direct-l2");
    let mut gateway = site.millrace("dsr-l2", "", &NEAR);
    let _process = gateway.start();
    let before = site.returned();
    site.transfers();
    site.questions();
    site.long_questions();
    assert!(site.returned() - before > 4 * LENGTH as u64, "replies did not go by the router");
    let received = gateway.metric("millrace_packets_total", "port=\"eth1\",direction=\"rx\"");
    assert!(received < 100.0, "{received} packets came to the gateway from inside");
    is_shown(&gateway, "dsr-l2");
}

/// Associations with endpoints that answer the client themselves. Their stack takes no address of the loopback interface.
fn associations(mode: &str, more: &str) {
    servers::require(&["clang"]);
    let site = Site::new(&format!("sctp-{mode}"));
    if mode != "dsr-l2" {
        site.decapsulate(NEAR);
    }
    let peer = Peer::build(site.lab.dir());
    let serve = |(number, backend): (usize, &Host)| {
        backend.run("ip", ["link", "add", "name", "vip", "type", "veth", "peer", "name", "other"]);
        for prefix in [format!("{VIP}/32"), format!("{VIP6}/128")] {
            backend.run("ip", ["addr", "del", &prefix, "dev", "lo"]);
            backend.address("vip", &prefix);
        }
        for end in ["vip", "other"] {
            backend.run("ip", ["link", "set", end, "up"]);
        }
        // Over IPv6 usrsctp leaves it to the kernel what its packets come from.
        let words = ["-6", "route", "replace", "default", "via", "fd82:1::254", "src", VIP6];
        backend.run("ip", words);
        let addresses = [false, true].map(|ipv6| vip(ipv6).ip());
        peer.serve(backend, site.lab.dir(), &format!("b{}", number + 1), PORT, &addresses)
    };
    let _servers: Vec<_> = site.backends.iter().enumerate().map(serve).collect();
    let mut gateway = site.millrace(mode, more, &NEAR);
    gateway.manifest("web.yaml", &manifest(mode, &NEAR).replace("name: udp, ", "name: sctp, ").replace("UDP", "SCTP"));
    let _process = gateway.start();
    let before = site.returned();
    for (from, to) in [("10.81.1.2", vip(false)), ("fd81:1::2", vip(true))] {
        let from = from.parse().expect("an address");
        let question = Question { from, to, messages: 20, octets: 1_000, pause: Duration::ZERO };
        let answered = (0..20).map(|_| peer.ask(&site.client, &question));
        let names: Result<std::collections::BTreeSet<_>, _> = answered.map(|a| a.map(|a| a.by)).collect();
        assert_eq!(names, Ok(["b1".to_owned(), "b2".to_owned()].into()), "{mode}");
    }
    assert!(site.returned() - before > 2 * 20 * 20 * 1_000, "replies did not go by the router");
    let received = gateway.metric("millrace_packets_total", "port=\"eth1\",direction=\"rx\"");
    assert!(received < 100.0, "{received} packets came to the gateway from inside");
}

#[test]
fn associations_with_backends_on_the_gateways_link_go_past_it() {
    associations("dsr-l2", "");
}

#[test]
fn associations_through_tunnels_go_past_the_gateway() {
    let more = "tunnel: {sources: [10.82.1.128/28, \"fd82:1::2:0/124\"]}";
    associations("dsr-ipip", more);
    associations("dsr-gue", more);
}

#[test]
fn a_download_past_the_gateway_recovers_from_a_smaller_mtu_by_errors_through_it() {
    let site = Site::new("direct-mtu");
    site.router.run("ip", ["link", "set", "eth0", "mtu", "1400"]);
    let mut gateway = site.millrace("dsr-l2", "", &NEAR);
    let _process = gateway.start();
    site.transfers();
    let translated = gateway.metric("millrace_events_total", "event=\"icmp_errors_translated\"");
    assert!(translated >= 2.0, "{translated} errors went on to backends");
}

#[test]
fn a_backend_behind_a_router_is_named_and_not_sent_to() {
    let site = Site::new("direct-far");
    let mut gateway = site.millrace("dsr-l2", "", &["10.83.1.11", "fd83:1::11"]);
    let _process = gateway.start();
    eventually("the endpoint's row says why", END, || {
        let rows = gateway.json(&["backends"]);
        let far =
            |row: &serde_json::Value| row["reason"].as_str().is_some_and(|why| why.starts_with("behind a router"));
        if rows.as_array().is_some_and(|rows| rows.len() == 4 && rows.iter().all(far)) {
            Ok(())
        } else {
            Err(rows.to_string())
        }
    });
    let status = gateway.json(&["status"])["warnings"].to_string();
    assert!(status.contains("default/web: fd83:1::11: behind a router"), "{status}");
    let explained = gateway.json(&["explain", "10.81.1.2:4000", "10.81.1.100:80/tcp"]);
    assert_eq!(explained["dropReason"], "not_on_link", "{explained}");
    let refused = site.client.within(|| transfer(vip(false), false).is_err()).join().expect("the client");
    assert!(refused);
    assert!(gateway.metric("millrace_drops_total", "reason=\"not_on_link\"") >= 1.0);
}

/// Everything through tunnels to backends on the gateway's link; the client sends more than fits with what goes around it.
fn tunnels_to_the_link(mode: &str) {
    let site = Site::new(mode);
    site.decapsulate(NEAR);
    let more = "tunnel: {sources: [10.82.1.128/28, \"fd82:1::2:0/124\"]}";
    let mut gateway = site.millrace(mode, more, &NEAR);
    let _process = gateway.start();
    let before = site.returned();
    // Before the client is told what fits.
    site.questions();
    site.long_questions();
    let cut = gateway.metric("millrace_events_total", "event=\"packets_cut\"");
    assert!(cut >= 8.0, "{cut} fragments were cut for the tunnel");
    site.transfers();
    assert!(site.returned() - before > 4 * LENGTH as u64, "replies did not go by the router");
    let told = gateway.metric("millrace_events_total", "event=\"too_bigs_sent\"");
    assert!(told >= 2.0, "{told} errors told the client what fits");
    is_shown(&gateway, mode);
}

/// Uploads through tunnels over a link that takes less: the router's errors are about the outer packets.
fn tunnels_through_a_narrow_link(mode: &str) {
    let site = Site::far(&format!("{mode}-far"));
    for (host, interface) in [(&site.router, "eth2"), (&site.backends[0], "eth0"), (&site.backends[1], "eth0")] {
        host.run("ip", ["link", "set", interface, "mtu", "1400"]);
    }
    site.decapsulate(FAR);
    let mut gateway = site.millrace(mode, "", &FAR);
    let _process = gateway.start();
    site.transfers();
    let told = gateway.metric("millrace_events_total", "event=\"icmp_errors_translated\"");
    assert!(told >= 2.0, "{told} errors about outer packets reached the client");
}

#[test]
fn backends_at_the_end_of_an_ip_tunnel_answer_clients_past_the_gateway() {
    tunnels_to_the_link("dsr-ipip");
}

#[test]
fn backends_at_the_end_of_a_udp_tunnel_answer_clients_past_the_gateway() {
    tunnels_to_the_link("dsr-gue");
}

#[test]
fn an_upload_through_an_ip_tunnel_recovers_from_a_smaller_mtu_on_its_way() {
    tunnels_through_a_narrow_link("dsr-ipip");
}

#[test]
fn an_upload_through_a_udp_tunnel_recovers_from_a_smaller_mtu_on_its_way() {
    tunnels_through_a_narrow_link("dsr-gue");
}
