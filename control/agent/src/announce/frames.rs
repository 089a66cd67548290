//! The frames that are sent for an address, and the claims that are read from frames of others.

use std::collections::BTreeSet;
use std::net::IpAddr;

use wire::{Addr, MacAddr, Packet, arp, ndp};

/// ARP.
pub(super) const TYPE_ARP: u16 = 0x0806;
/// IPv6, for neighbour discovery is part of ICMPv6.
pub(super) const TYPE_IPV6: u16 = 0x86dd;

/// Where the type of an ICMPv6 message is that follows the IPv6 header at once, as neighbour discovery does.
const ICMPV6_NEXT_HEADER: usize = 14 + 6;
const ICMPV6_TYPE: usize = 14 + 40;

/// Does anybody have `address`?
pub(super) fn probe(mac: MacAddr, address: IpAddr) -> Vec<u8> {
    let addr = Addr::from(address);
    if address.is_ipv4() {
        let mut frame = [0; arp::FRAME_LEN];
        arp::probe(&mut frame, mac, addr);
        frame.to_vec()
    } else {
        let mut frame = [0; ndp::DAD_FRAME_LEN];
        ndp::probe(&mut frame, mac, addr);
        frame.to_vec()
    }
}

/// `mac` has `address`.
pub(super) fn announcement(mac: MacAddr, address: IpAddr) -> Vec<u8> {
    let addr = Addr::from(address);
    if address.is_ipv4() {
        let mut frame = [0; arp::FRAME_LEN];
        arp::announcement(&mut frame, mac, addr);
        frame.to_vec()
    } else {
        let mut frame = [0; ndp::ADVERTISEMENT_FRAME_LEN];
        ndp::announcement(&mut frame, mac, addr);
        frame.to_vec()
    }
}

/// The Ethernet groups that a NIC must let in to hear who asks for these addresses; and, with any, what all nodes hear.
pub(super) fn groups(addresses: &BTreeSet<IpAddr>) -> BTreeSet<[u8; 6]> {
    const ALL_NODES: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
    let v6 = addresses.iter().filter(|address| address.is_ipv6());
    let mut groups: BTreeSet<_> = v6.map(|&a| ndp::group_mac(ndp::solicited_node(a.into())).0).collect();
    if !groups.is_empty() {
        groups.insert(ALL_NODES);
    }
    groups
}

/// Whose address a frame says is whose: any ARP with a sender address, any neighbour advertisement.
pub(super) fn claim(frame: &[u8]) -> Option<(IpAddr, MacAddr)> {
    let ipv6 = frame.get(12..14)? == TYPE_IPV6.to_be_bytes();
    if ipv6 && (*frame.get(ICMPV6_NEXT_HEADER)? != 58 || *frame.get(ICMPV6_TYPE)? != 136) {
        return None;
    }
    match wire::parse(frame).ok()? {
        Packet::Arp(packet) if !packet.is_probe() => Some((packet.sender_ip.into(), packet.sender_mac)),
        Packet::NeighborAdvertisement(said) => Some((said.target.into(), said.target_ll.unwrap_or(said.src_mac))),
        _ => None,
    }
}
