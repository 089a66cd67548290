//! Against the kernel: a box, a router on its segment, and a backend behind that.

use std::sync::Arc;

use super::lab::{Namespace, until};
use super::*;

const ROUTER_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x11]);
const OTHER_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x22]);

/// A box with `eth0`, and a router on the other end of it.
fn box_and_router() -> (Arc<Namespace>, Arc<Namespace>) {
    let (host, router) = (Namespace::new(), Namespace::new());
    host.wire(
        "eth0",
        &["10.0.0.1/24", "2001:db8::1/64"],
        &router,
        "r0",
        &["10.0.0.2/24", "2001:db8::2/64", "10.9.0.1/32"],
    );
    router.run(&format!("ip link set r0 address {ROUTER_MAC}"));
    (Arc::new(host), Arc::new(router))
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

async fn start() -> (Arc<Network>, watch::Receiver<u64>) {
    Network::start(&["eth0".to_owned()]).await.unwrap()
}

fn resolved(network: &Network, address: &str, mac: MacAddr) -> bool {
    let hop = network.hop(ip(address));
    hop.state == HopState::Resolved && hop.dst_mac == mac && hop.src_mac == network.links()[0].mac
}

fn managed(network: &Network, address: &str) -> bool {
    let key = (network.links()[0].ifindex, ip(address));
    network.view(|view| view.neighbour(&key).is_some_and(|known| known.managed))
}

#[test]
fn links_tell_queues_kind_and_mtu_and_addresses_are_the_hosts() {
    let (host, _router) = box_and_router();
    host.run("ip link set eth0 mtu 1400");
    host.block_on(async || {
        let (network, _) = start().await;
        let link = &network.links()[0];
        assert_eq!((link.name.as_str(), link.mtu, link.rx_queues, link.tx_queues), ("eth0", 1400, 2, 2));
        assert_eq!((link.kind.as_str(), link.virtual_device, link.up, link.is_stacked()), ("veth", true, true, false));
        let addresses = network.host_addresses();
        let eth0 = HostAddress { interface: "eth0".to_owned(), address: ip("10.0.0.1"), prefix: 24 };
        assert!(addresses.contains(&eth0) && addresses.iter().any(|a| a.interface == "lo"), "{addresses:?}");
    });
}

#[test]
fn an_interface_that_is_not_there_is_refused_by_name() {
    let host = Namespace::new();
    host.block_on(async || {
        let error = Network::start(&["eth7".to_owned()]).await.unwrap_err();
        assert!(error.to_string().contains("eth7"), "{error}");
    });
}

#[test]
fn resolve_makes_neighbours_reachable_without_any_traffic_and_release_takes_it_back() {
    let (host, _router) = box_and_router();
    host.block_on(async || {
        let (network, mut changes) = start().await;
        assert_eq!(network.hop(ip("10.0.0.2")).state, HopState::Unresolved);
        network.resolve(BTreeSet::from([ip("10.0.0.2"), ip("2001:db8::2")]));
        until("both resolved", &mut changes, || {
            resolved(&network, "10.0.0.2", ROUTER_MAC) && resolved(&network, "2001:db8::2", ROUTER_MAC)
        })
        .await;
        assert!(managed(&network, "10.0.0.2") && managed(&network, "2001:db8::2"));
        network.release().await;
        until("let go", &mut changes, || !managed(&network, "10.0.0.2") && !managed(&network, "2001:db8::2")).await;
        assert!(resolved(&network, "10.0.0.2", ROUTER_MAC), "what is known of it stays, for a successor");
    });
}

#[test]
fn a_managed_neighbour_that_somebody_deletes_or_lets_go_is_asked_for_again() {
    let (host, _router) = box_and_router();
    let hands = Arc::clone(&host);
    host.block_on(async move || {
        let (network, mut changes) = start().await;
        network.resolve(BTreeSet::from([ip("10.0.0.2")]));
        for undo in ["ip neigh del 10.0.0.2 dev eth0", "ip neigh replace 10.0.0.2 dev eth0 use"] {
            until("managed", &mut changes, || managed(&network, "10.0.0.2")).await;
            let before = *changes.borrow_and_update();
            hands.run(undo);
            let count = changes.clone();
            until("managed again", &mut changes, || {
                *count.borrow() > before && managed(&network, "10.0.0.2") && resolved(&network, "10.0.0.2", ROUTER_MAC)
            })
            .await;
        }
    });
}

#[test]
fn a_backend_behind_a_router_follows_the_routers_mac_and_the_version_tells() {
    let (host, router) = box_and_router();
    let hands = Arc::clone(&host);
    host.block_on(async move || {
        let (network, mut changes) = start().await;
        let backend = ip("10.9.0.1");
        assert_eq!(network.hop(backend).state, HopState::NoRoute);
        network.resolve(BTreeSet::from([backend]));
        network.resolve_also(&[ip("2001:db8:9::1")], &[ip("10.9.0.9")]);
        let mut versions = vec![network.version()];
        hands.run("ip route add 10.9.0.0/16 via 10.0.0.2 mtu 1300");
        router.run("ip addr add fe80::11:1/64 dev r0");
        hands.run("ip -6 route add 2001:db8:9::/48 via fe80::11:1 dev eth0");
        until("by the router", &mut changes, || resolved(&network, "10.9.0.1", ROUTER_MAC)).await;
        until("by its link-local address", &mut changes, || resolved(&network, "2001:db8:9::1", ROUTER_MAC)).await;
        assert_eq!(network.hop(backend).mtu, 1300);
        versions.push(network.version());
        // Another machine takes the router's address over and says so.
        router.run("sysctl -qw net.ipv4.conf.r0.arp_notify=1");
        router.run(&format!("ip link set r0 address {OTHER_MAC}"));
        until("the new MAC", &mut changes, || resolved(&network, "10.9.0.1", OTHER_MAC)).await;
        versions.push(network.version());
        hands.run("ip route del 10.9.0.0/16");
        until("the route is gone", &mut changes, || network.hop(backend).state == HopState::NoRoute).await;
        versions.push(network.version());
        assert!(versions.is_sorted_by(|a, b| a < b), "{versions:?}");
    });
}

#[test]
fn the_longest_prefix_wins_then_the_metric_and_refusals_and_foreign_interfaces_have_no_hop() {
    let (host, _router) = box_and_router();
    host.run("ip link add other type veth peer name end");
    host.run("ip link set end up");
    host.run("ip link set other up");
    host.run("ip neigh add 10.0.0.2 dev eth0 lladdr 02:00:00:00:00:11 nud permanent");
    host.run("ip neigh add 10.0.0.3 dev eth0 lladdr 02:00:00:00:00:22 nud permanent");
    for route in [
        "default via 10.0.0.2",
        "10.8.0.0/16 via 10.0.0.2 metric 20",
        "10.8.0.0/16 via 10.0.0.3 metric 10",
        "10.8.1.0/24 dev other",
        "unreachable 10.8.2.0/24",
    ] {
        host.run(&format!("ip route add {route}"));
    }
    host.block_on(async || {
        let (network, _) = start().await;
        assert!(resolved(&network, "192.0.2.1", ROUTER_MAC));
        assert!(resolved(&network, "10.8.9.9", OTHER_MAC));
        for none in ["10.8.1.1", "10.8.2.1", "10.0.0.1", "2001:db8:ffff::1"] {
            assert_eq!(network.hop(ip(none)).state, HopState::NoRoute, "{none}");
        }
    });
}

#[test]
fn of_several_paths_the_first_that_is_resolved_is_taken() {
    let (host, _router) = box_and_router();
    host.run("ip neigh add 10.0.0.3 dev eth0 lladdr 02:00:00:00:00:22 nud permanent");
    host.run("ip route add 10.7.0.0/16 nexthop via 10.0.0.9 nexthop via 10.0.0.3");
    host.block_on(async || {
        let (network, _) = start().await;
        assert!(resolved(&network, "10.7.0.1", OTHER_MAC));
    });
}

#[test]
fn a_link_that_goes_down_takes_its_routes_along_and_comes_back() {
    let (host, _router) = box_and_router();
    let hands = Arc::clone(&host);
    host.block_on(async move || {
        let (network, mut changes) = start().await;
        hands.run("ip link set eth0 down");
        until("no route", &mut changes, || {
            !network.links()[0].up && network.hop(ip("10.0.0.2")).state == HopState::NoRoute
        })
        .await;
        network.resolve(BTreeSet::from([ip("10.0.0.2")]));
        hands.run("ip link set eth0 up");
        until("resolved", &mut changes, || resolved(&network, "10.0.0.2", ROUTER_MAC)).await;
    });
}

#[test]
fn what_an_overflow_of_the_socket_lost_is_read_anew() {
    let (host, _router) = box_and_router();
    host.run("ip addr add 10.5.0.1/16 dev eth0");
    let path = std::env::temp_dir().join(format!("millrace-neighbours-{}", std::process::id()));
    let last = "10.5.7.199";
    let lines = (0..8).flat_map(|a| (2..200).map(move |b| (a, b)));
    let lines = lines.map(|(a, b)| format!("neigh add 10.5.{a}.{b} dev eth0 lladdr {ROUTER_MAC} nud permanent\n"));
    std::fs::write(&path, lines.collect::<String>()).unwrap();
    let hands = Arc::clone(&host);
    host.block_on(async move || {
        let (network, mut changes) = start().await;
        // The runtime has this one thread: while it waits for the command nobody reads the socket.
        hands.run(&format!("ip -batch {}", path.display()));
        std::fs::remove_file(&path).unwrap();
        until("the last neighbour", &mut changes, || resolved(&network, last, ROUTER_MAC)).await;
        assert!((0..8).all(|a| resolved(&network, &format!("10.5.{a}.2"), ROUTER_MAC)));
    });
}

/// A file for `ip -batch`, of one line for each neighbour.
fn batch(name: &str, lines: impl Iterator<Item = String>) -> std::path::PathBuf {
    let path = std::env::temp_dir().join(format!("millrace-{name}-{}", std::process::id()));
    std::fs::write(&path, lines.collect::<String>()).unwrap();
    path
}

#[test]
fn what_was_told_before_an_overflow_does_not_undo_what_was_read_after_it() {
    let (host, _router) = box_and_router();
    host.run("ip addr add 10.5.0.1/16 dev eth0");
    let line = |number: u32, mac: MacAddr| {
        let (a, b) = (number / 200, number % 200 + 2);
        format!("neigh replace 10.5.{a}.{b} dev eth0 lladdr {mac} nud permanent\n")
    };
    // The socket has room for the first few hundred; the new addresses of those are lost.
    let lines = (0..1000).map(|number| line(number, ROUTER_MAC)).chain((0..400).map(|number| line(number, OTHER_MAC)));
    let path = batch("replaced", lines);
    let hands = Arc::clone(&host);
    host.block_on(async move || {
        let (network, mut changes) = start().await;
        // The runtime has this one thread: while it waits for the command nobody reads the socket.
        hands.run(&format!("ip -batch {}", path.display()));
        std::fs::remove_file(&path).unwrap();
        until("the new addresses", &mut changes, || {
            (0..400).all(|number| resolved(&network, &format!("10.5.{}.{}", number / 200, number % 200 + 2), OTHER_MAC))
        })
        .await;
    });
}

#[test]
fn neighbours_that_vanish_by_hundreds_while_requests_are_in_flight_do_not_end_the_following() {
    let (host, router) = box_and_router();
    host.run("ip addr add 10.5.0.1/16 dev eth0");
    let numbers = (0..3).flat_map(|a| (2..202).map(move |b| (a, b)));
    let path = batch(
        "vanishing",
        numbers.map(|(a, b)| format!("neigh replace 10.5.{a}.{b} dev eth0 lladdr {OTHER_MAC} nud reachable\n")),
    );
    let hands = Arc::clone(&host);
    host.block_on(async move || {
        let (network, mut changes) = start().await;
        for round in 0..3_u8 {
            hands.run(&format!("ip -batch {}", path.display()));
            until("hundreds", &mut changes, || resolved(&network, "10.5.2.201", OTHER_MAC)).await;
            // The runtime has this one thread: what is asked for here is sent while what came meanwhile is being read.
            network.resolve(BTreeSet::from([ip("10.0.0.2"), IpAddr::from([10, 0, 0, 100 + round])]));
            router.run("ip link set r0 down");
            await_nobody(&hands);
            router.run("ip link set r0 up");
            until("the router, managed", &mut changes, || {
                resolved(&network, "10.0.0.2", ROUTER_MAC) && managed(&network, "10.0.0.2")
            })
            .await;
        }
        std::fs::remove_file(&path).unwrap();
        network.release().await;
        until("let go", &mut changes, || !managed(&network, "10.0.0.2")).await;
    });
}

/// Waits until the kernel has none of the hundreds any more. The runtime's thread does nothing else meanwhile.
fn await_nobody(host: &Namespace) {
    let deadline = Instant::now() + super::lab::DEADLINE;
    while host.read("ip neigh show dev eth0").contains("10.5.") {
        assert!(Instant::now() < deadline, "neighbours stay without a carrier");
    }
}
