//! What Millrace says in its own name: resets, ICMP errors, pings, ARP and neighbour discovery.

use std::net::{IpAddr, SocketAddr};

use etherparse::{Icmpv4Type, Icmpv6Type, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use lb::{DropReason, Verdict};
use wire::{MacAddr, TcpFlags};

use crate::packet::{ACK, RST, SYN, Segment, checksums_hold};
use crate::rig::{CLIENT_MAC, INSIDE, KINDS, Kind, OUTSIDE, OUTSIDE_MAC, Outcome, Rig, TCP4, TCP6, UDP4, UDP6};

/// Type, code, source, destination and payload of an ICMP message.
pub fn icmp(outcome: &Outcome) -> (u8, u8, IpAddr, IpAddr, Vec<u8>) {
    assert!(checksums_hold(&outcome.frame));
    let packet = SlicedPacket::from_ethernet(&outcome.frame).unwrap();
    let (src, dst): (IpAddr, IpAddr) = match packet.net.unwrap() {
        NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        other => panic!("{other:?}"),
    };
    match packet.transport.unwrap() {
        TransportSlice::Icmpv4(m) => (m.type_u8(), m.code_u8(), src, dst, m.payload().to_vec()),
        TransportSlice::Icmpv6(m) => (m.type_u8(), m.code_u8(), src, dst, m.payload().to_vec()),
        other => panic!("{other:?}"),
    }
}

fn is_reset_of(outcome: &Outcome, sent: &Segment) {
    let reset = outcome.sent(OUTSIDE);
    let (tcp, asked) = (reset.tcp.unwrap(), sent.tcp.unwrap());
    assert_eq!((reset.src, reset.dst), (sent.dst, sent.src));
    assert_eq!((reset.src_mac, reset.dst_mac), (sent.dst_mac, sent.src_mac));
    if asked.flags.contains(ACK) {
        assert_eq!((tcp.flags, tcp.seq), (RST, asked.ack));
    } else {
        let length = sent.payload.len() as u32 + u32::from(asked.flags.contains(SYN));
        assert_eq!((tcp.flags, tcp.seq, tcp.ack), (RST.union(ACK), 0, asked.seq + length));
    }
}

fn is_unreachable_of(outcome: &Outcome, sent: &Segment) {
    assert_eq!(outcome.verdict, Verdict::Tx(OUTSIDE));
    let (kind, code, src, dst, quote) = icmp(outcome);
    assert_eq!((kind, code), if sent.src.is_ipv4() { (3, 3) } else { (1, 4) });
    assert_eq!((src, dst), (sent.dst.ip(), sent.src.ip()));
    assert_eq!(quote, sent.bytes()[14..], "the packet is quoted as it came");
}

fn is_rejection_of(kind: Kind, outcome: &Outcome, sent: &Segment) {
    if kind.protocol == wire::Protocol::TCP { is_reset_of(outcome, sent) } else { is_unreachable_of(outcome, sent) }
}

#[test]
fn a_port_that_no_service_has_is_rejected() {
    let mut rig = Rig::new();
    for kind in KINDS {
        let sent = Segment { dst: SocketAddr::new(kind.vip(), 81), ..kind.opening(1000) };
        is_rejection_of(kind, &rig.outside(&sent), &sent);
    }
    let counters = rig.workers[0].counters;
    assert_eq!((counters.resets_sent, counters.unreachables_sent), (2, 2));
}

#[test]
fn a_service_without_endpoints_is_rejected() {
    let mut rig = Rig::new();
    rig.change(|port| port.endpoints.clear());
    for kind in KINDS {
        let sent = kind.opening(1001);
        is_rejection_of(kind, &rig.outside(&sent), &sent);
    }
    assert_eq!(rig.shared.flows(), 0);
}

#[test]
fn a_segment_without_a_flow_is_reset() {
    let mut rig = Rig::new();
    for kind in [TCP4, TCP6] {
        for flags in [ACK, SYN.union(ACK), TcpFlags::FIN.union(ACK), TcpFlags::FIN] {
            let mut sent = kind.opening(1002).with_flags(flags);
            sent.tcp.as_mut().unwrap().ack = 77;
            let out = rig.outside(&sent);
            let tcp = out.sent(OUTSIDE).tcp.unwrap();
            assert!(tcp.flags.contains(RST));
            if flags.contains(ACK) {
                is_reset_of(&out, &sent);
            }
        }
    }
}

#[test]
fn a_ttl_that_ends_here_is_said_so_by_the_vip() {
    let mut rig = Rig::new();
    for kind in KINDS {
        // Before there is a flow, and with one.
        for open_first in [false, true] {
            let mut sent = kind.opening(1003);
            if open_first {
                rig.open(kind, 1003);
            }
            sent.ttl = 1;
            let out = rig.outside(&sent);
            assert_eq!(out.verdict, Verdict::Tx(OUTSIDE));
            let (number, code, src, dst, quote) = icmp(&out);
            assert_eq!((number, code), if kind.ipv6 { (3, 0) } else { (11, 0) });
            assert_eq!((src, dst), (kind.vip(), sent.src.ip()));
            assert_eq!(quote, sent.bytes()[14..]);
        }
    }
    assert_eq!(rig.workers[0].counters.time_exceededs_sent, 8);
    assert_eq!(rig.shared.flows(), 4);
}

#[test]
fn a_reply_whose_ttl_ends_here_is_said_so_by_the_snat_address() {
    let mut rig = Rig::new();
    for kind in KINDS {
        let (_, got) = rig.open(kind, 1004);
        let out = rig.inside(&Segment { ttl: 1, ..got.back() });
        assert_eq!(out.verdict, Verdict::Tx(INSIDE));
        let (_, _, src, dst, _) = icmp(&out);
        assert_eq!((src, dst), (kind.snat(), got.dst.ip()));
    }
}

fn ping(kind: Kind, from: IpAddr, to: IpAddr) -> Vec<u8> {
    let link = PacketBuilder::ethernet2(CLIENT_MAC.0, OUTSIDE_MAC.0);
    let mut bytes = Vec::new();
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let step = link.ipv4(from.octets(), to.octets(), 9).icmpv4_echo_request(7, 8);
            step.write(&mut bytes, b"are you there").unwrap();
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let step = link.ipv6(from.octets(), to.octets(), 9).icmpv6_echo_request(7, 8);
            step.write(&mut bytes, b"are you there").unwrap();
        }
        _ => panic!("{kind:?}"),
    }
    bytes
}

#[test]
fn a_vip_answers_ping() {
    let mut rig = Rig::new();
    for kind in [TCP4, TCP6] {
        let out = rig.process(0, OUTSIDE, false, &ping(kind, kind.client(1), kind.vip()));
        assert_eq!(out.verdict, Verdict::Tx(OUTSIDE));
        let (number, _, src, dst, data) = icmp(&out);
        assert_eq!((number, src, dst), (if kind.ipv6 { 129 } else { 0 }, kind.vip(), kind.client(1)));
        assert_eq!(data, b"are you there");
        let packet = SlicedPacket::from_ethernet(&out.frame).unwrap();
        let echo = match packet.transport.unwrap() {
            TransportSlice::Icmpv4(m) => match m.icmp_type() {
                Icmpv4Type::EchoReply(echo) => echo,
                other => panic!("{other:?}"),
            },
            TransportSlice::Icmpv6(m) => match m.icmp_type() {
                Icmpv6Type::EchoReply(echo) => echo,
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        };
        assert_eq!((echo.id, echo.seq), (7, 8));
    }
}

#[test]
fn pings_to_silent_vips_snat_addresses_and_strangers_are_dropped_and_those_to_the_host_passed() {
    let mut rig = Rig::new();
    for kind in [TCP4, TCP6] {
        let mut to = |to: IpAddr| rig.process(0, OUTSIDE, false, &ping(kind, kind.client(1), to)).verdict;
        assert_eq!(to(kind.silent_vip()), Verdict::Drop(DropReason::Icmp));
        assert_eq!(to(kind.snat()), Verdict::Drop(DropReason::Icmp));
        assert_eq!(to(kind.client(9)), Verdict::Drop(DropReason::NotOurs));
        assert_eq!(to(kind.host()), Verdict::Pass);
        let spoofed = ping(kind, kind.snat(), kind.vip());
        rig.process(0, OUTSIDE, false, &spoofed).dropped(DropReason::Martian);
    }
}

pub fn arp(op: u16, sender: (MacAddr, [u8; 4]), target: [u8; 4]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(MacAddr::BROADCAST.0);
    bytes.extend(sender.0.0);
    bytes.extend([8, 6, 0, 1, 8, 0, 6, 4]);
    bytes.extend(op.to_be_bytes());
    bytes.extend(sender.0.0);
    bytes.extend(sender.1);
    bytes.extend([0; 6]);
    bytes.extend(target);
    bytes
}

fn v4(ip: IpAddr) -> [u8; 4] {
    match ip {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(_) => panic!("IPv4"),
    }
}

pub fn v6(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V6(v6) => v6.octets(),
        IpAddr::V4(_) => panic!("IPv6"),
    }
}

#[test]
fn arp_for_vips_and_snat_addresses_is_answered_by_the_nic_that_was_asked() {
    let mut rig = Rig::new();
    for (target, port, mac) in [
        (TCP4.vip(), OUTSIDE, OUTSIDE_MAC),
        (TCP4.silent_vip(), OUTSIDE, OUTSIDE_MAC),
        (TCP4.snat(), INSIDE, crate::rig::INSIDE_MAC),
    ] {
        let asked = arp(1, (CLIENT_MAC, [192, 0, 2, 1]), v4(target));
        let out = rig.process(0, port, false, &asked);
        assert_eq!(out.verdict, Verdict::Tx(port));
        let mut expected = Vec::new();
        expected.extend(CLIENT_MAC.0);
        expected.extend(mac.0);
        expected.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
        expected.extend(mac.0);
        expected.extend(v4(target));
        expected.extend(CLIENT_MAC.0);
        expected.extend([192, 0, 2, 1]);
        assert_eq!(out.frame, expected);
    }
}

#[test]
fn arp_for_others_needs_no_answer_and_that_for_the_host_is_passed() {
    let mut rig = Rig::new();
    let mut verdict = |frame: &[u8]| rig.process(0, OUTSIDE, false, frame).verdict;
    let nothing = Verdict::Drop(DropReason::NeighborDiscovery);
    assert_eq!(verdict(&arp(1, (CLIENT_MAC, [192, 0, 2, 1]), [10, 0, 0, 99])), nothing);
    assert_eq!(verdict(&arp(2, (CLIENT_MAC, [192, 0, 2, 1]), v4(TCP4.vip()))), nothing);
    assert_eq!(verdict(&arp(1, (CLIENT_MAC, [192, 0, 2, 1]), v4(TCP4.host()))), Verdict::Pass);
    assert_eq!(rig.workers[0].counters.address_conflicts, 0);
}

#[test]
fn another_machine_with_an_address_of_ours_is_counted() {
    let mut rig = Rig::new();
    let vip = v4(TCP4.vip());
    let announced = rig.process(0, OUTSIDE, false, &arp(1, (CLIENT_MAC, vip), vip));
    announced.dropped(DropReason::NeighborDiscovery);
    rig.process(0, OUTSIDE, false, &arp(1, (OUTSIDE_MAC, vip), vip)).dropped(DropReason::NeighborDiscovery);
    assert_eq!(rig.workers[0].counters.address_conflicts, 1, "our own announcement is none");
}

/// A neighbour solicitation of `source` for `target`, to the target's solicited-node group.
pub fn solicitation(source: [u8; 16], target: [u8; 16]) -> Vec<u8> {
    let mut group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 0];
    group[13..].copy_from_slice(&target[13..]);
    let mut body = vec![0; 4];
    body.extend(target);
    body.extend([1, 1]);
    body.extend(CLIENT_MAC.0);
    let kind = Icmpv6Type::Unknown { type_u8: 135, code_u8: 0, bytes5to8: [0; 4] };
    let mut bytes = Vec::new();
    let link = PacketBuilder::ethernet2(CLIENT_MAC.0, [0x33, 0x33, 0xff, group[13], group[14], group[15]]);
    link.ipv6(source, group, 255).icmpv6(kind).write(&mut bytes, &body[4..]).unwrap();
    bytes
}

#[test]
fn a_neighbour_solicitation_for_an_address_of_ours_is_answered() {
    let mut rig = Rig::new();
    for target in [TCP6.vip(), TCP6.snat()] {
        let out = rig.process(0, OUTSIDE, false, &solicitation(v6(UDP6.client(1)), v6(target)));
        assert_eq!(out.verdict, Verdict::Tx(OUTSIDE));
        let (number, code, src, dst, body) = icmp(&out);
        assert_eq!((number, code, src, dst), (136, 0, target, UDP6.client(1)));
        assert_eq!(out.frame[..12], [CLIENT_MAC.0, OUTSIDE_MAC.0].concat());
        let end = body.len();
        assert_eq!(body[end - 24..end - 8], v6(target));
        assert_eq!(body[end - 8..], [&[2, 1], &OUTSIDE_MAC.0[..]].concat());
    }
    let host = rig.process(0, OUTSIDE, false, &solicitation(v6(UDP6.client(1)), v6(TCP6.host())));
    assert_eq!(host.verdict, Verdict::Pass);
}

#[test]
fn what_another_node_answers_for_is_served_and_not_answered_for() {
    let mut rig = Rig::new();
    rig.config.elsewhere = [TCP4.vip(), TCP6.vip()].into();
    rig.rebuild();
    for asked in
        [arp(1, (CLIENT_MAC, [192, 0, 2, 1]), v4(TCP4.vip())), solicitation(v6(UDP6.client(1)), v6(TCP6.vip()))]
    {
        rig.process(0, OUTSIDE, false, &asked).dropped(DropReason::NeighborDiscovery);
    }
    let theirs = v4(TCP4.vip());
    rig.process(0, OUTSIDE, false, &arp(1, (CLIENT_MAC, theirs), theirs)).dropped(DropReason::NeighborDiscovery);
    assert_eq!(rig.workers[0].counters.address_conflicts, 0, "who owns it may announce it");
    for kind in KINDS {
        assert_eq!(rig.outside(&kind.opening(1010)).verdict, Verdict::Tx(INSIDE));
    }
    assert_eq!(
        rig.process(0, OUTSIDE, false, &arp(1, (CLIENT_MAC, [192, 0, 2, 1]), v4(TCP4.silent_vip()))).verdict,
        Verdict::Tx(OUTSIDE)
    );
}

#[test]
fn the_hosts_other_ports_are_passed_never_rejected() {
    let mut rig = Rig::new();
    for kind in KINDS {
        let sent = Segment { dst: SocketAddr::new(kind.host(), 22), ..kind.opening(1005) };
        let out = rig.outside(&sent);
        assert_eq!((out.verdict, out.frame), (Verdict::Pass, sent.bytes()));
    }
}

#[test]
fn a_longer_answer_than_its_question_fits_into_the_room() {
    let mut rig = Rig::new();
    let sent = Segment { dst: SocketAddr::new(UDP4.vip(), 9), payload: vec![7; 1400], ..UDP4.opening(1006) };
    let out = rig.outside(&sent);
    let (.., quote) = icmp(&out);
    assert_eq!(quote, sent.bytes()[14..14 + 576 - 28], "no longer than RFC 1812 says");
}
