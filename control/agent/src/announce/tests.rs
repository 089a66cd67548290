//! Against real segments: a box and a peer on a wire.

use std::sync::Arc;

use wire::{Packet, arp};
use xsk::PacketSocket;

use super::*;
use crate::netlink::Network;
use crate::netlink::lab::{Namespace, eventually, until};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn segment() -> (Arc<Namespace>, Arc<Namespace>) {
    let (host, peer) = (Namespace::new(), Namespace::new());
    host.wire("eth0", &["10.0.0.1/24", "2001:db8::1/64"], &peer, "p0", &["10.0.0.2/24", "2001:db8::2/64"]);
    (Arc::new(host), Arc::new(peer))
}

async fn announce(addresses: &[&str]) -> (Arc<Announcer>, MacAddr) {
    let (network, _) = Network::start(&["eth0".to_owned()]).await.unwrap();
    let links = network.links();
    let announcer = Announcer::start(&links);
    let addresses = addresses.iter().map(|text| ip(text)).collect();
    announcer.set(vec![Announced { interface: "eth0".to_owned(), addresses, ..Announced::default() }]);
    (announcer, links[0].mac)
}

/// Opens a socket in the namespace of `peer`; a socket stays in the one that it was opened in.
fn tap(peer: &Namespace, ethertype: u16) -> PacketSocket {
    peer.within(move || PacketSocket::open("p0", ethertype).unwrap())
}

/// The next frame that `pick` takes something from.
async fn heard<T>(socket: &PacketSocket, pick: impl Fn(Packet) -> Option<T>) -> T {
    let mut buffer = [0; 1514];
    eventually("a frame", || {
        while let Ok(Some(len)) = socket.recv(&mut buffer) {
            let found = wire::parse(&buffer[..len]).ok().and_then(&pick);
            if found.is_some() {
                return found;
            }
        }
        None
    })
    .await
}

async fn conflict(announcer: &Announcer) -> Vec<Conflict> {
    eventually("a conflict", || Some(announcer.conflicts()).filter(|conflicts| !conflicts.is_empty())).await
}

#[test]
fn a_peer_hears_a_probe_first_and_then_announcements_of_both_families() {
    let (host, peer) = segment();
    let (arp, ipv6) = (tap(&peer, frames::TYPE_ARP), tap(&peer, frames::TYPE_IPV6));
    host.block_on(async move || {
        let (announcer, mac) = announce(&["10.0.0.100", "2001:db8::100"]).await;
        let about = |packet: Packet| match packet {
            Packet::Arp(packet) if packet.target_ip == ip("10.0.0.100").into() => Some(packet),
            _ => None,
        };
        let probe = heard(&arp, about).await;
        assert!(probe.is_probe() && probe.sender_mac == mac, "{probe:?}");
        for _ in 0..2 {
            let said = heard(&arp, |packet| about(packet).filter(|packet| !packet.is_probe())).await;
            assert_eq!((said.sender_ip, said.sender_mac), (ip("10.0.0.100").into(), mac));
        }
        let advertised = heard(&ipv6, |packet| match packet {
            Packet::NeighborAdvertisement(said) if said.target == ip("2001:db8::100").into() => Some(said),
            _ => None,
        })
        .await;
        assert_eq!((advertised.target_ll, advertised.overrides), (Some(mac), true));
        assert!(announcer.conflicts().is_empty());
    });
}

#[test]
fn a_peers_cache_takes_an_announced_address() {
    let (host, peer) = segment();
    peer.run("sysctl -qw net.ipv4.conf.p0.arp_accept=1");
    host.block_on(async move || {
        let (announcer, mac) = announce(&["10.0.0.100"]).await;
        let seen = tokio::task::spawn_blocking(move || {
            peer.block_on(async || {
                let (network, mut changes) = Network::start(&["p0".to_owned()]).await.unwrap();
                until("the peer knows it", &mut changes, || network.hop(ip("10.0.0.100")).dst_mac != MacAddr::UNKNOWN)
                    .await;
                network.hop(ip("10.0.0.100")).dst_mac
            })
        });
        assert_eq!(seen.await.unwrap(), mac);
        drop(announcer);
    });
}

#[test]
fn another_machine_with_the_address_is_noticed_by_the_probe_in_both_families() {
    for (address, with_prefix) in [("10.0.0.2", None), ("2001:db8::99", Some("2001:db8::99/64"))] {
        let (host, peer) = segment();
        if let Some(address) = with_prefix {
            peer.run(&format!("ip addr add {address} dev p0"));
        }
        peer.run("ip link set p0 address 02:00:00:00:00:99");
        host.block_on(async move || {
            let (announcer, _) = announce(&[address]).await;
            let mac = MacAddr([2, 0, 0, 0, 0, 0x99]);
            let expected = Conflict { interface: "eth0".to_owned(), address: ip(address), mac };
            assert_eq!(conflict(&announcer).await, [expected]);
            announcer.set(vec![]);
            eventually("no conflict", || announcer.conflicts().is_empty().then_some(())).await;
        });
    }
}

#[test]
fn another_machine_that_starts_to_announce_the_address_is_noticed_and_answered() {
    let (host, peer) = segment();
    let tap = tap(&peer, frames::TYPE_ARP);
    host.block_on(async move || {
        let (announcer, mac) = announce(&["10.0.0.100"]).await;
        let ours = |packet| match packet {
            Packet::Arp(packet) if packet.sender_ip == ip("10.0.0.100").into() && packet.sender_mac == mac => Some(()),
            _ => None,
        };
        heard(&tap, ours).await;
        let other = MacAddr([2, 0, 0, 0, 0, 0x77]);
        let mut frame = [0; arp::FRAME_LEN];
        arp::announcement(&mut frame, other, ip("10.0.0.100").into());
        tap.send(&frame).unwrap();
        assert_eq!(conflict(&announcer).await[0].mac, other);
        heard(&tap, ours).await;
    });
}

#[test]
fn the_solicited_node_group_is_joined_while_the_address_is_announced() {
    let (host, _peer) = segment();
    let hands = Arc::clone(&host);
    host.block_on(async move || {
        let (announcer, _) = announce(&["2001:db8::ab:cdef"]).await;
        let joined = || hands.read("ip maddr show dev eth0").contains("33:33:ff:ab:cd:ef");
        eventually("joined", || joined().then_some(())).await;
        announcer.set(vec![]);
        eventually("left", || (!joined()).then_some(())).await;
    });
}

#[test]
fn an_interface_that_comes_later_is_announced_on_and_let_go_of_when_it_goes() {
    // The kernel of a test has no VLANs: another NIC stands for a subinterface.
    let (host, peer) = segment();
    host.wire("eth0.100", &[], &peer, "p1", &[]);
    let taps = peer.within(|| ["p0", "p1"].map(|name| PacketSocket::open(name, frames::TYPE_ARP).unwrap()));
    host.block_on(async move || {
        let (announcer, mac) = announce(&[]).await;
        let (network, _) = Network::start(&["eth0.100".to_owned()]).await.unwrap();
        let vlan = Link { mac, ..network.links()[0].clone() };
        let set = || {
            let addresses = [ip("10.0.100.9")].into();
            announcer.set(vec![Announced { interface: "eth0.100".to_owned(), addresses, ..Announced::default() }]);
        };
        announcer.follow(std::slice::from_ref(&vlan));
        set();
        let said = |packet: Packet| match packet {
            Packet::Arp(packet) if packet.target_ip == ip("10.0.100.9").into() => Some(packet),
            _ => None,
        };
        let probe = heard(&taps[1], said).await;
        assert!(probe.is_probe() && probe.sender_mac == mac, "{probe:?}");
        // The same name, but another interface: it begins anew.
        let again = Link { ifindex: vlan.ifindex + 1, ..vlan.clone() };
        announcer.follow(&[again]);
        set();
        assert!(heard(&taps[1], |packet| said(packet).filter(|packet| packet.is_probe())).await.is_probe());
        announcer.follow(&[]);
        assert!(!announcer.segments().contains_key("eth0.100") && announcer.segments().contains_key("eth0"));
        let mut buffer = [0; 1514];
        while let Ok(Some(len)) = taps[0].recv(&mut buffer) {
            assert_eq!(wire::parse(&buffer[..len]).ok().and_then(said), None, "on the NIC itself");
        }
    });
}
