//! Path MTU: ICMP errors about packets of flows, those about packets that are too big to go on, and what SYNs offer.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder, icmpv4};
use lb::flow::FlowRecord;
use lb::model::Mode;
use lb::tables::{Hop, HopState, MssClamp, SnatAddress};
use lb::{DropReason, PortId, Verdict};
use wire::{MacAddr, Protocol, TcpFlags};

use crate::answers::icmp;
use crate::packet::{ACK, SYN_ACK, Segment};
use crate::rig::{
    CLIENT_MAC, INSIDE, INSIDE_MAC, KINDS, Kind, OUTSIDE, OUTSIDE_MAC, Outcome, Rig, TCP4, TCP6, backend_mac,
};

const MTU: u16 = 1400;

pub fn router(ipv6: bool) -> IpAddr {
    if ipv6 { "2001:db8:ffff::1" } else { "198.18.0.1" }.parse().unwrap()
}

/// What a router says of a packet that is too big for its next link, to whom the packet says that it came from; it
/// quotes `len` octets at most.
pub fn too_big(packet: &[u8], to: MacAddr, len: usize) -> Vec<u8> {
    let ipv6 = packet[0] >> 4 == 6;
    let quote = &packet[..len.min(packet.len())];
    let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0xd, 1], to.0);
    let mut error = Vec::new();
    match router(ipv6) {
        IpAddr::V4(router) => {
            let kind = icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: MTU };
            let back = packet[12..16].try_into().unwrap();
            let step = link.ipv4(router.octets(), back, 60).icmpv4(Icmpv4Type::DestinationUnreachable(kind));
            step.write(&mut error, quote).unwrap();
        }
        IpAddr::V6(router) => {
            let back = packet[8..24].try_into().unwrap();
            let step = link.ipv6(router.octets(), back, 60).icmpv6(Icmpv6Type::PacketTooBig { mtu: u32::from(MTU) });
            step.write(&mut error, quote).unwrap();
        }
    }
    error
}

/// A flow with traffic both ways: what the client sent, what the endpoint got, what it answered, and the frames that went
/// on.
struct Conversation {
    sent: Segment,
    got: Segment,
    reply: Segment,
    /// To the endpoint, and to the client.
    seen: [Vec<u8>; 2],
}

fn conversation(rig: &mut Rig, kind: Kind, port: u16) -> Conversation {
    let (sent, got) = rig.open(kind, port);
    rig.inside(&got.back().with_flags(SYN_ACK)).sent(OUTSIDE);
    let sent = Segment { payload: vec![1; 200], ..sent.with_flags(ACK) };
    let forward = rig.outside(&sent);
    let reply = Segment { payload: vec![2; 200], ..got.back().with_flags(ACK) };
    let back = rig.inside(&reply);
    Conversation { sent, got, reply, seen: [forward.frame, back.frame] }
}

/// The error, as it went out to `port`: it comes from `from`, is for `to`, and quotes what that one sent.
fn tells(outcome: &Outcome, port: PortId, from: IpAddr, to: SocketAddr, what: &Segment, len: usize) {
    assert_eq!(outcome.verdict, Verdict::Tx(port));
    let (kind, code, src, dst, quote) = icmp(outcome);
    assert_eq!((kind, code), if from.is_ipv6() { (2, 0) } else { (3, 4) });
    assert_eq!((src, dst), (from, to.ip()));
    let mut original = what.bytes()[14..].to_vec();
    original.truncate(len);
    // The TTL was less when the router saw it, and so the header's checksum is another.
    let (ttl, checksum) = if from.is_ipv6() { (7, None) } else { (8, Some(10..12)) };
    let mut quote = quote;
    quote[ttl] = original[ttl];
    if let Some(at) = checksum {
        quote[at.clone()].copy_from_slice(&original[at]);
    }
    assert_eq!(quote, original);
    let mtu_at = 14 + if from.is_ipv6() { 40 } else { 20 } + 6;
    assert_eq!(outcome.frame[mtu_at..mtu_at + 2], MTU.to_be_bytes(), "the MTU");
}

#[test]
fn errors_from_either_side_reach_who_sent_what_they_quote() {
    let mut rig = Rig::new();
    for (kind, len) in KINDS.into_iter().flat_map(|kind| [48, 60, 500].map(|len| (kind, len))) {
        let c = conversation(&mut rig, kind, 5000 + len as u16);
        let inside = rig.process(0, INSIDE, false, &too_big(&c.seen[0][14..], INSIDE_MAC, len));
        tells(&inside, OUTSIDE, kind.vip(), c.sent.src, &c.sent, len);
        let outside = rig.process(0, OUTSIDE, false, &too_big(&c.seen[1][14..], OUTSIDE_MAC, len));
        tells(&outside, INSIDE, kind.snat(), c.got.dst, &c.reply, len);
        let macs = |frame: &[u8]| (MacAddr(frame[..6].try_into().unwrap()), MacAddr(frame[6..12].try_into().unwrap()));
        assert_eq!(macs(&inside.frame), (CLIENT_MAC, OUTSIDE_MAC));
        assert_eq!(macs(&outside.frame), (backend_mac(c.got.dst.ip()), INSIDE_MAC));
    }
    assert_eq!(rig.workers[0].counters.icmp_errors_translated, 24);
}

#[test]
fn endpoints_that_see_clients_see_routers_too() {
    let mut rig = Rig::new();
    rig.change(|port| port.mode = Mode::Preserve);
    for kind in KINDS {
        let c = conversation(&mut rig, kind, 5100);
        let inside = rig.process(0, INSIDE, false, &too_big(&c.seen[0][14..], INSIDE_MAC, 500));
        tells(&inside, OUTSIDE, kind.vip(), c.sent.src, &c.sent, 500);
        let outside = rig.process(0, OUTSIDE, false, &too_big(&c.seen[1][14..], OUTSIDE_MAC, 500));
        tells(&outside, INSIDE, router(kind.ipv6), c.got.dst, &c.reply, 500);
    }
}

#[test]
fn errors_about_a_frontend_beside_a_range_of_snat_ports_go_to_the_worker_that_has_the_flow() {
    for kind in [TCP4, TCP6] {
        let node_port = SocketAddr::new(kind.host(), 30080);
        // One block, which the frontend's port is in and the range is not.
        let address = SnatAddress {
            address: kind.host().into(),
            index: 0,
            first_port: 30081,
            last_port: 30143,
            dedicated: false,
        };
        let mut rig = Rig::with_snat(2, 1024, vec![address]);
        rig.change(|port| port.mode = if port.key.protocol == kind.protocol { Mode::Preserve } else { Mode::Nat });
        let datagram = Kind { protocol: Protocol::UDP, ..kind }.opening(5300);
        let taken = rig.process(1, OUTSIDE, false, &Segment { tcp: None, ..datagram }.bytes()).sent(INSIDE).src;
        assert!((30081..=30143).contains(&taken.port()), "the other worker has the block: {taken}");
        let sent = Segment { dst: node_port, ..kind.opening(5300) };
        let got = rig.process(0, OUTSIDE, false, &sent.bytes()).sent(INSIDE);
        let reply = rig.process(0, INSIDE, false, &got.back().with_flags(SYN_ACK).bytes());
        assert_eq!(reply.sent(OUTSIDE).src, node_port);
        let error = too_big(&reply.frame[14..], OUTSIDE_MAC, 100);
        rig.process(1, OUTSIDE, false, &error).handed_to(0);
    }
}

#[test]
fn errors_go_to_the_worker_that_has_the_flow() {
    for mode in [Mode::Nat, Mode::Preserve] {
        let mut rig = Rig::with(2, 1024);
        rig.change(|port| port.mode = mode);
        for kind in KINDS {
            let c = conversation(&mut rig, kind, 5200);
            for (port, mac, seen) in [(INSIDE, INSIDE_MAC, &c.seen[0]), (OUTSIDE, OUTSIDE_MAC, &c.seen[1])] {
                let error = too_big(&seen[14..], mac, 100);
                rig.process(1, port, false, &error).handed_to(0);
                assert!(matches!(rig.process(0, port, true, &error).verdict, Verdict::Tx(_)));
                // Handed over, it is decided whatever becomes of it.
                assert!(matches!(rig.process(1, port, true, &error).verdict, Verdict::Drop(_)));
            }
        }
    }
}

#[test]
fn errors_that_are_about_nothing_of_ours_or_forged_are_dropped() {
    let mut rig = Rig::new();
    for kind in KINDS {
        let c = conversation(&mut rig, kind, 5300);
        let drops = |rig: &mut Rig, error: &[u8], reason| rig.process(0, OUTSIDE, false, error).dropped(reason);
        let other = Segment { src: SocketAddr::new(kind.vip(), 81), ..Segment::read(&c.seen[1]) };
        drops(&mut rig, &too_big(&other.bytes()[14..], OUTSIDE_MAC, 100), DropReason::Icmp);
        // For the VIP, about what another machine sent.
        let mut forged = too_big(&c.seen[1][14..], OUTSIDE_MAC, 100);
        let silent =
            too_big(&Segment { src: SocketAddr::new(kind.silent_vip(), 80), ..other }.bytes()[14..], OUTSIDE_MAC, 100);
        let headers = if kind.ipv6 { 54 } else { 34 };
        forged[..headers].copy_from_slice(&silent[..headers]);
        if kind.ipv6 {
            drops(&mut rig, &forged, DropReason::BadChecksum);
        } else {
            drops(&mut rig, &forged, DropReason::Icmp);
        }
        let mut damaged = too_big(&c.seen[1][14..], OUTSIDE_MAC, 100);
        *damaged.last_mut().unwrap() ^= 0x55;
        drops(&mut rig, &damaged, DropReason::BadChecksum);
        // There is no error about an error.
        let mut last = too_big(&c.seen[1][14..], OUTSIDE_MAC, 100);
        if kind.ipv6 {
            last[21] = 1;
        } else {
            let sum = u16::from_be_bytes([last[24], last[25]]);
            let ttl = u16::from(last[22] - 1) << 8;
            last[22] = 1;
            last[24..26]
                .copy_from_slice(&(u16::try_from((u32::from(sum) + u32::from(ttl)) % 0xffff).unwrap()).to_be_bytes());
        }
        drops(&mut rig, &last, DropReason::TtlExceeded);
        let short = if kind.ipv6 { 47 } else { 27 };
        drops(&mut rig, &too_big(&c.seen[1][14..], OUTSIDE_MAC, short), DropReason::Truncated);
    }
}

#[test]
fn an_error_neither_refreshes_nor_ends_nor_moves_a_flow() {
    let mut rig = Rig::new();
    for kind in KINDS {
        let c = conversation(&mut rig, kind, 5400);
        let before: Vec<_> = flows(&mut rig);
        rig.wait(Duration::from_secs(5));
        for (port, mac, seen) in [(INSIDE, INSIDE_MAC, &c.seen[0]), (OUTSIDE, OUTSIDE_MAC, &c.seen[1])] {
            let error = too_big(&seen[14..], mac, 100);
            assert!(matches!(rig.process(0, port, false, &error).verdict, Verdict::Tx(_)));
        }
        assert_eq!(flows(&mut rig), before);
    }
}

fn flows(rig: &mut Rig) -> Vec<FlowRecord> {
    let mut records = Vec::new();
    assert_eq!(rig.workers[0].flows.export(0, 1024, &mut records), None);
    records
}

#[test]
fn packets_longer_than_their_next_hop_takes_are_answered_with_its_mtu() {
    for kind in KINDS {
        let mut rig = Rig::new();
        let (_, got) = rig.open(kind, 5500);
        let narrow = |ip| Hop {
            state: HopState::Resolved,
            port: INSIDE,
            dst_mac: backend_mac(ip),
            src_mac: INSIDE_MAC,
            mtu: MTU,
            on_link: true,
            tags: wire::Tags::NONE,
        };
        rig.hops = (1..=3).map(|n| kind.backend(n).ip()).map(|ip| (ip, narrow(ip))).collect();
        rig.config.ports[0].mtu = MTU;
        rig.rebuild();
        let payload = vec![0; 1400];
        // Of a flow, one that would open a flow, and a reply.
        let long = Segment { payload: payload.clone(), ..kind.opening(5500).with_flags(ACK) };
        let first = Segment { payload: payload.clone(), ..kind.opening(5501) };
        let reply = Segment { payload, ..got.back().with_flags(ACK) };
        let longest = if kind.ipv6 { 1280 - 48 } else { 576 - 28 };
        for sent in [&long, &first] {
            tells(&rig.outside(sent), OUTSIDE, kind.vip(), sent.src, sent, longest);
        }
        tells(&rig.inside(&reply), INSIDE, kind.snat(), reply.src, &reply, longest);
        assert_eq!((rig.shared.flows(), rig.workers[0].counters.too_bigs_sent), (1, 3));
    }
}

/// A SYN that offers segments of 1,460 octets, and what it offers when it went on.
fn offer(rig: &mut Rig, kind: Kind, sent: &Segment, from: PortId) -> u16 {
    let link = PacketBuilder::ethernet2(sent.src_mac.0, sent.dst_mac.0);
    let ip = match (sent.src.ip(), sent.dst.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => link.ipv4(src.octets(), dst.octets(), 64),
        (IpAddr::V6(src), IpAddr::V6(dst)) => link.ipv6(src.octets(), dst.octets(), 64),
        _ => panic!("one family"),
    };
    let step = ip.tcp(sent.src.port(), sent.dst.port(), 1000, 4096).syn();
    let step = if sent.tcp.unwrap().flags.contains(ACK) { step.ack(1001) } else { step };
    let mut frame = Vec::new();
    step.options_raw(&[2, 4, 5, 180]).unwrap().write(&mut frame, &[]).unwrap();
    let out = rig.process(0, from, false, &frame);
    let there = Segment::read(&out.frame);
    assert!(there.tcp.unwrap().flags.contains(TcpFlags::SYN));
    let at = if kind.ipv6 { 54 } else { 34 } + 20;
    assert_eq!(out.frame[at..at + 2], [2, 4]);
    u16::from_be_bytes([out.frame[at + 2], out.frame[at + 3]])
}

#[test]
fn syns_offer_no_more_than_they_may() {
    for kind in [TCP4, TCP6] {
        let header = if kind.ipv6 { 60 } else { 40 };
        for (clamp, offered) in [
            (MssClamp::Off, [1460, 1460]),
            (MssClamp::Most(1000), [1000, 1000]),
            (MssClamp::Most(9000), [1460, 1460]),
            (MssClamp::Auto, [MTU - header, MTU - header]),
        ] {
            let mut rig = Rig::new();
            rig.config.mss_clamp = clamp;
            // The client's NIC takes less than the endpoint's.
            rig.config.ports[0].mtu = MTU;
            rig.rebuild();
            let sent = kind.opening(5700);
            assert_eq!(offer(&mut rig, kind, &sent, OUTSIDE), offered[0], "{clamp:?}");
            let got = rig.outside(&sent).sent(INSIDE);
            let reply = got.back().with_flags(SYN_ACK);
            assert_eq!(offer(&mut rig, kind, &reply, INSIDE), offered[1], "{clamp:?}");
        }
    }
}
