//! Fragmented datagrams: all parts of one go where its first one does, whatever order, queue or worker they come by.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use etherparse::{IpNumber, Ipv6RawExtHeader};
use lb::model::Mode;
use lb::tables::{Hop, HopState};
use lb::{DropReason, PortId, Verdict};

use crate::packet::{ACK, SYN_ACK, Segment};
use crate::parts::{Came, id_of, part, parts, payload_at, raw_part, together};
use crate::rig::{
    CLIENT_MAC, INSIDE, INSIDE_MAC, KINDS, Kind, OUTSIDE, OUTSIDE_MAC, Rig, TCP4, TCP6, UDP4, UDP6, backend_mac,
};

const UDPS: [Kind; 2] = [UDP4, UDP6];

/// Of 1,000 octets of payload.
fn long(segment: &Segment) -> Segment {
    let payload = (0..1000).map(|n| (n % 251) as u8).collect();
    Segment { payload, ..segment.clone() }
}

/// What a client sends on a flow that is established, where TCP is.
fn conversation(rig: &mut Rig, kind: Kind, port: u16) -> (Segment, Segment) {
    let opening = Segment { payload: vec![], ..kind.opening(port) };
    let got = rig.deliver(0, OUTSIDE, &opening.bytes()).all_by(INSIDE);
    let got = Segment::read(&got[0]);
    rig.deliver(0, INSIDE, &got.back().with_flags(SYN_ACK).bytes()).all_by(OUTSIDE);
    (opening.with_flags(ACK), got.back().with_flags(ACK))
}

/// Orders of `count` parts.
pub fn orders(count: usize) -> Vec<Vec<usize>> {
    let in_order: Vec<usize> = (0..count).collect();
    let reversed = in_order.iter().rev().copied().collect();
    let odd_first = (0..count).filter(|n| n % 2 == 1).chain((0..count).filter(|n| n % 2 == 0)).collect();
    let first_late = (1..count).chain([0]).collect();
    vec![in_order, reversed, odd_first, first_late]
}

pub fn ordered(parts: &[Vec<u8>], order: &[usize]) -> Vec<Vec<u8>> {
    order.iter().map(|n| parts[*n].clone()).collect()
}

#[test]
fn parts_in_any_order_arrive_in_both_directions_and_all_modes() {
    for mode in [Mode::Nat, Mode::Preserve] {
        let mut rig = Rig::new();
        rig.change(|port| port.mode = mode);
        for kind in KINDS {
            let (sent, reply) = conversation(&mut rig, kind, 6000);
            for (n, order) in orders(6).into_iter().enumerate() {
                for (from, to, segment) in [(OUTSIDE, INSIDE, long(&sent)), (INSIDE, OUTSIDE, long(&reply))] {
                    let whole = rig.deliver(0, from, &segment.bytes()).all_by(to);
                    let sent = ordered(&parts(&segment, 100 + n as u32, 176), &order);
                    assert_eq!(sent.len(), 6);
                    let came = rig.deliver_all(from, &sent, |_| 0).all_by(to);
                    assert_eq!(together(&came), Segment::read(&whole[0]), "{mode:?} {kind:?} {order:?}");
                    // The source is an address of ours but for an endpoint that sees the client's.
                    let keeps = mode == Mode::Preserve && to == INSIDE;
                    assert_eq!(id_of(&came[0]) == 100 + n as u32, keeps);
                }
            }
        }
        let counters = rig.workers[0].counters();
        assert_eq!(counters.fragments_kept, 2 * 4 * (5 + 3 + 5));
        assert_eq!(counters.fragments_given_up, 0);
    }
}

#[test]
fn endpoints_that_answer_past_us_get_the_parts_as_they_were_sent() {
    let mut rig = Rig::new();
    rig.change(|port| {
        port.mode = Mode::DsrL2;
        port.endpoints.iter_mut().for_each(|endpoint| endpoint.port = 80);
    });
    for kind in UDPS {
        for order in orders(6) {
            let sent = long(&kind.opening(6050));
            let came = rig.deliver_all(OUTSIDE, &ordered(&parts(&sent, 7, 176), &order), |_| 0).all_by(INSIDE);
            let got = together(&came);
            assert_eq!((got.src, got.dst, got.payload), (sent.src, sent.dst, sent.payload));
            assert_eq!((id_of(&came[0]), got.src_mac), (7, INSIDE_MAC));
            rig.wait(Duration::from_secs(3));
        }
    }
}

#[test]
fn a_datagram_in_parts_opens_a_flow_as_a_whole_one_does() {
    for kind in UDPS {
        for order in orders(6) {
            let mut rig = Rig::new();
            let sent = long(&kind.opening(6001));
            let came = rig.deliver_all(OUTSIDE, &ordered(&parts(&sent, 7, 176), &order), |_| 0).all_by(INSIDE);
            let got = together(&came);
            assert_eq!((got.payload, got.src.ip(), rig.shared.flows()), (sent.payload, kind.snat(), 1));
        }
    }
}

#[test]
fn parts_meet_and_reach_the_owner_whatever_worker_gets_them() {
    for mode in [Mode::Nat, Mode::Preserve] {
        for workers in [2, 3] {
            let mut rig = Rig::with(workers as usize, 1024);
            rig.change(|port| port.mode = mode);
            let mut handed = 0;
            for kind in KINDS {
                for id in 0..8u32 {
                    let (sent, reply) = conversation(&mut rig, kind, 6100 + id as u16);
                    for order in orders(6) {
                        for (from, to, segment) in [(OUTSIDE, INSIDE, long(&sent)), (INSIDE, OUTSIDE, long(&reply))] {
                            let frames = ordered(&parts(&segment, id, 176), &order);
                            let queue = |n: usize| ((n as u32 * 7 + id) % workers) as u8;
                            let came = rig.deliver_all(from, &frames, queue);
                            assert_eq!(together(&came.all_by(to)).payload, segment.payload);
                            handed += came.handed;
                        }
                    }
                }
            }
            assert!(handed > 500, "{handed}");
            // One flow has all of its parts, wherever they met.
            assert_eq!(rig.shared.flows(), 32);
        }
    }
}

#[test]
fn datagrams_in_parts_open_one_flow_over_all_workers() {
    for kind in UDPS {
        let mut rig = Rig::with(2, 1024);
        for id in 0..20 {
            let frames = parts(&long(&kind.opening(6200)), id, 504);
            let came = rig.deliver_all(OUTSIDE, &frames, |n| (n as u8 + id as u8) % 2);
            assert_eq!(together(&came.all_by(INSIDE)).payload.len(), 1000);
        }
        assert_eq!(rig.shared.flows(), 1);
    }
}

#[test]
fn duplicates_are_dropped_and_the_datagram_arrives() {
    for kind in UDPS {
        for order in orders(6) {
            let mut rig = Rig::new();
            let frames = ordered(&parts(&long(&kind.opening(6300)), 7, 176), &order);
            let (last, others) = frames.split_last().unwrap();
            let twice: Vec<Vec<u8>> = others.iter().flat_map(|frame| [frame.clone(), frame.clone()]).collect();
            let mut came = rig.deliver_all(OUTSIDE, &twice, |_| 0);
            assert_eq!(came.dropped, [DropReason::FragmentDuplicate; 5]);
            came.sent.extend(rig.deliver(0, OUTSIDE, last).sent);
            came.dropped.clear();
            assert_eq!(together(&came.all_by(INSIDE)).payload.len(), 1000);
        }
    }
}

#[test]
fn nothing_that_overlaps_goes_on_nor_what_comes_after_it() {
    for kind in UDPS {
        let whole = long(&kind.opening(6400)).bytes();
        let [first, second, third] = [(0, 176), (176, 176), (352, 656)];
        let cut = |(offset, len): (usize, usize)| part(&whole, 7, offset, len, offset + len < 1008);
        for wrong in [
            raw_part(&whole, 7, 8, &[0xee; 176], true),
            raw_part(&whole, 7, 168, &[0xee; 16], true),
            raw_part(&whole, 7, 0, &[0xee; 184], true),
            raw_part(&whole, 7, 184, &[0xee; 8], true),
            raw_part(&whole, 7, 344, &[0xee; 8], false),
        ] {
            let mut rig = Rig::new();
            let frames = [cut(first), cut(second), wrong.clone(), cut(third)];
            let came = rig.deliver_all(OUTSIDE, &frames, |_| 0);
            assert_eq!((came.sent.len(), came.dropped), (2, vec![DropReason::FragmentOverlap; 2]));
            // Before the first one came: then nothing of the datagram goes on.
            let mut rig = Rig::new();
            let frames = [cut(second), wrong, cut(third), cut(first)];
            let came = rig.deliver_all(OUTSIDE, &frames, |_| 0);
            let counters = rig.workers[0].counters();
            assert!(came.dropped.iter().all(|reason| *reason == DropReason::FragmentOverlap), "{came:?}");
            assert_eq!((came.sent.len(), counters.fragments_kept, counters.fragments_given_up), (0, 1, 1), "{came:?}");
        }
    }
}

#[test]
fn parts_that_no_sender_makes_are_dropped() {
    let mut rig = Rig::new();
    for kind in KINDS {
        let whole = long(&kind.opening(6500).with_flags(ACK)).bytes();
        let mut drops = |frame: &[u8], reason| rig.process(0, OUTSIDE, false, frame).dropped(reason);
        drops(&raw_part(&whole, 1, 176, &[], false), DropReason::FragmentMalformed);
        drops(&raw_part(&whole, 2, 176, &[1; 9], true), DropReason::FragmentMalformed);
        drops(&raw_part(&whole, 3, 65_528, &[1; 8], false), DropReason::FragmentMalformed);
        let header = if kind.protocol == TCP4.protocol { 20 } else { 8 };
        if header == 20 {
            drops(&raw_part(&whole, 4, 8, &[1; 8], true), DropReason::FragmentTiny);
            let at = payload_at(&whole);
            drops(&raw_part(&whole, 5, 0, &whole[at..at + 16], true), DropReason::FragmentTiny);
            // And so is what follows.
            drops(&raw_part(&whole, 5, 16, &[1; 8], true), DropReason::FragmentUnmatched);
        }
    }
    let udp = long(&UDP6.opening(6501)).bytes();
    // RFC 7112: options in the first part, and the UDP header in the second.
    let mut chain = raw_part(&udp, 6, 0, &[17, 1, 1, 12, 0, 0, 0, 0], true);
    chain[54] = IpNumber::IPV6_DESTINATION_OPTIONS.0;
    rig.process(0, OUTSIDE, false, &chain).dropped(DropReason::FragmentTiny);
    let mut nested = raw_part(&udp, 7, 0, &udp[54..70], true);
    nested[54] = IpNumber::IPV6_FRAGMENTATION_HEADER.0;
    rig.process(0, OUTSIDE, false, &nested).dropped(DropReason::ExtensionHeaders);
    let mut length = raw_part(&udp, 8, 0, &udp[54..70], true);
    length[66..68].copy_from_slice(&[0, 7]);
    rig.process(0, OUTSIDE, false, &length).dropped(DropReason::BadHeader);
    assert_eq!(rig.shared.flows(), 0);
}

#[test]
fn parts_of_other_protocols_go_nowhere() {
    let mut rig = Rig::new();
    for kind in UDPS {
        for protocol in [IpNumber::DCCP, IpNumber::ICMP, IpNumber::IPV6_ICMP] {
            let mut whole = long(&kind.opening(6600)).bytes();
            whole[if kind.ipv6 { 20 } else { 23 }] = protocol.0;
            rig.process(0, OUTSIDE, false, &part(&whole, 9, 0, 176, true)).dropped(DropReason::UnknownProtocol);
            rig.process(0, OUTSIDE, false, &part(&whole, 9, 176, 176, true)).dropped(DropReason::FragmentUnmatched);
            rig.wait(Duration::from_secs(3));
        }
    }
}

/// An echo request to an address, with so much data.
fn ping(kind: Kind, to: IpAddr, data: usize) -> Vec<u8> {
    let data: Vec<u8> = (0..data).map(|n| (n % 251) as u8).collect();
    let link = etherparse::PacketBuilder::ethernet2(CLIENT_MAC.0, OUTSIDE_MAC.0);
    let mut frame = Vec::new();
    match (kind.client(7), to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            link.ipv4(from.octets(), to.octets(), 9).icmpv4_echo_request(77, 3).write(&mut frame, &data).unwrap();
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            link.ipv6(from.octets(), to.octets(), 9).icmpv6_echo_request(77, 3).write(&mut frame, &data).unwrap();
        }
        _ => panic!("one family"),
    }
    frame
}

/// A whole frame in parts of `size` octets.
fn cut(frame: &[u8], id: u32, size: usize) -> Vec<Vec<u8>> {
    let total = frame.len() - payload_at(frame);
    let offsets = (0..total).step_by(size);
    offsets.map(|offset| part(frame, id, offset, size.min(total - offset), offset + size < total)).collect()
}

#[test]
fn a_ping_in_parts_is_answered_in_parts() {
    for workers in [1, 2] {
        let mut rig = Rig::with(workers, 64);
        for (kind, id) in UDPS.into_iter().flat_map(|kind| (50..54).map(move |id| (kind, id))) {
            let request = ping(kind, kind.vip(), 1800);
            let whole = rig.process(0, OUTSIDE, false, &request);
            assert_eq!(whole.verdict, Verdict::Tx(OUTSIDE));
            let mut expected = cut(&whole.frame, id, 600);
            for order in orders(4) {
                let parts = ordered(&cut(&request, id, 600), &order);
                let mut came = rig.deliver_all(OUTSIDE, &parts, |n| (n % workers) as u8).all_by(OUTSIDE);
                came.sort();
                expected.sort();
                assert_eq!(came, expected, "{order:?}");
            }
        }
    }
}

#[test]
fn what_is_no_ping_of_a_frontend_is_not_answered_in_parts_either() {
    let mut rig = Rig::new();
    for kind in UDPS {
        let refused = |rig: &mut Rig, frame: &[u8], first: DropReason| {
            let came = rig.deliver_all(OUTSIDE, &cut(frame, 60, 600), |_| 0);
            assert_eq!((came.sent.len(), &came.dropped[..]), (0, &[first, DropReason::FragmentUnmatched][..]));
            rig.wait(Duration::from_secs(3));
        };
        refused(&mut rig, &ping(kind, kind.silent_vip(), 1000), DropReason::Icmp);
        let mut reply = ping(kind, kind.vip(), 1000);
        let at = payload_at(&reply);
        reply[at] = if kind.ipv6 { 129 } else { 0 };
        refused(&mut rig, &reply, DropReason::UnknownProtocol);
        // What overlaps is no ping of anybody's.
        let request = ping(kind, kind.vip(), 1000);
        let wrong = raw_part(&request, 60, 592, &[0xee; 16], true);
        let came = rig.deliver_all(OUTSIDE, &[cut(&request, 60, 600), vec![wrong]].concat(), |_| 0);
        assert_eq!((came.sent.len(), came.dropped.len()), (2, 0), "it was whole");
        let [first, last] = [0, 1].map(|n| cut(&request, 61, 600)[n].clone());
        let wrong = raw_part(&request, 61, 592, &[0xee; 16], true);
        let came = rig.deliver_all(OUTSIDE, &[first, wrong, last], |_| 0);
        assert_eq!((came.sent.len(), came.dropped), (1, vec![DropReason::FragmentOverlap; 2]));
    }
}

#[test]
fn where_the_first_part_is_refused_the_others_are_dropped() {
    let mut rig = Rig::new();
    for kind in UDPS {
        // Nobody serves it: said once, about the first part.
        let sent = long(&Segment { dst: SocketAddr::new(kind.vip(), 81), ..kind.opening(6700) });
        let came = rig.deliver_all(OUTSIDE, &parts(&sent, 7, 504), |_| 0);
        assert_eq!((came.sent.len(), came.dropped), (1, vec![DropReason::FragmentUnmatched]));
        let came = rig.deliver_all(OUTSIDE, &ordered(&parts(&sent, 8, 504), &[1, 0]), |_| 0);
        assert_eq!((came.sent.len(), came.dropped.len()), (1, 0));
        // Source ranges bind the first part.
        rig.change(|port| {
            port.source_ranges = [(port.endpoints[0].address, if port.key.ipv6 { 128 } else { 32 })].into()
        });
        let came = rig.deliver_all(OUTSIDE, &parts(&long(&kind.opening(6701)), 9, 504), |_| 0);
        assert_eq!(came.dropped, [DropReason::SourceRange, DropReason::FragmentUnmatched]);
        rig.change(|port| port.source_ranges = [].into());
    }
    let counters = rig.workers[0].counters();
    assert_eq!((counters.fragments_kept, counters.fragments_given_up, counters.unreachables_sent), (2, 2, 4));
    // A segment that no flow has.
    for kind in [TCP4, TCP6] {
        let came = rig.deliver_all(OUTSIDE, &parts(&long(&kind.opening(6702).with_flags(ACK)), 10, 504), |_| 0);
        assert_eq!((came.sent.len(), came.dropped.len()), (1, 2));
        assert!(Segment::read(&came.sent[0].1).tcp.unwrap().flags.contains(crate::packet::RST));
    }
    assert_eq!(rig.shared.flows(), 0);
}

#[test]
fn what_waits_for_too_long_is_given_up_and_identifications_come_again() {
    let mut rig = Rig::new();
    for kind in UDPS {
        let frames = parts(&long(&kind.opening(6800)), 7, 504);
        assert_eq!(rig.process(0, OUTSIDE, false, &frames[1]).verdict, Verdict::Keep);
        rig.wait(Duration::from_millis(1990));
        // In time, and again with the same identification.
        assert_eq!(rig.deliver(0, OUTSIDE, &frames[0]).all_by(INSIDE).len(), 2);
        assert_eq!(rig.deliver_all(OUTSIDE, &frames, |_| 0).all_by(INSIDE).len(), 2);
        // Too late: the part that waited is gone.
        assert_eq!(rig.process(0, OUTSIDE, false, &frames[1]).verdict, Verdict::Keep);
        let before = rig.workers[0].counters().fragments_given_up;
        rig.wait(Duration::from_millis(2100));
        let (tables, now) = (&rig.tables, rig.now);
        rig.workers[0].housekeep(now, tables);
        assert_eq!(rig.workers[0].counters().fragments_given_up, before + 1);
        assert_eq!(rig.deliver(0, OUTSIDE, &frames[0]).all_by(INSIDE).len(), 1);
    }
}

#[test]
fn parts_keep_a_flow_from_being_idle() {
    for kind in UDPS {
        let mut rig = Rig::new();
        let frames = parts(&long(&kind.opening(6900)), 7, 504);
        rig.deliver(0, OUTSIDE, &frames[0]).all_by(INSIDE);
        rig.wait(Duration::from_secs(1));
        rig.deliver(0, OUTSIDE, &frames[1]).all_by(INSIDE);
        let mut records = Vec::new();
        rig.workers[0].flows.export(0, 1024, &mut records);
        assert_eq!(records[0].last_seen, rig.now.tick());
    }
}

#[test]
fn an_atomic_fragment_is_a_whole_datagram_and_none_of_the_others() {
    let mut rig = Rig::new();
    let frames = parts(&long(&UDP6.opening(7000)), 7, 504);
    rig.deliver(0, OUTSIDE, &frames[0]).all_by(INSIDE);
    // RFC 6946: with the same identification, amid the parts.
    let alone = UDP6.opening(7000).bytes();
    let alone = raw_part(&alone, 7, 0, &alone[54..], false);
    let came = rig.deliver(0, OUTSIDE, &alone).all_by(INSIDE);
    assert_eq!((came[0][20], &came[0][54..62], came[0].len()), (44, &alone[54..62], alone.len()));
    assert_eq!(rig.deliver(0, OUTSIDE, &frames[1]).all_by(INSIDE).len(), 1);
    assert_eq!(rig.shared.flows(), 1);
}

#[test]
fn extension_headers_before_and_behind_the_fragment_header_are_followed() {
    let mut rig = Rig::new();
    let whole = long(&UDP6.opening(7100)).bytes();
    let options =
        |next: u8| Ipv6RawExtHeader::new_raw(IpNumber(next), &[1, 4, 0, 0, 0, 0]).unwrap().to_bytes().to_vec();
    let with = |mut frame: Vec<u8>, at: usize, before: usize, kind: IpNumber| {
        let next = core::mem::replace(&mut frame[before], kind.0);
        frame.splice(at..at, options(next));
        let len = frame.len() - 54;
        frame[18..20].copy_from_slice(&(len as u16).to_be_bytes());
        frame
    };
    for hop_by_hop in [IpNumber::IPV6_HEADER_HOP_BY_HOP, IpNumber::IPV6_DESTINATION_OPTIONS] {
        let frames: Vec<Vec<u8>> = [(0, 504), (504, 504)]
            .map(|(offset, len)| part(&whole, 7, offset, len, offset == 0))
            .map(|frame| with(frame, 54, 20, hop_by_hop))
            .to_vec();
        let came = rig.deliver_all(OUTSIDE, &ordered(&frames, &[1, 0]), |_| 0).all_by(INSIDE);
        assert_eq!((came[0].len(), came[1].len()), (frames[0].len(), frames[1].len()));
        // What is behind the headers is as without them.
        let plain = rig.deliver(0, OUTSIDE, &part(&whole, 9, 0, 504, true)).all_by(INSIDE);
        rig.wait(Duration::from_secs(3));
        assert_eq!(came[0][70..], plain[0][62..]);
        assert_eq!(came[1][70..], frames[1][70..]);
    }
    // Options behind the fragment header are in the first part, and move the others.
    let first = with(part(&whole, 11, 0, 496, true), 62, 54, IpNumber::IPV6_DESTINATION_OPTIONS);
    let second = raw_part(&whole, 11, 504, &whole[54 + 496..], false);
    let came = rig.deliver_all(OUTSIDE, &[first, second], |_| 0).all_by(INSIDE);
    assert_eq!(came[0][62..70], [17, 0, 1, 4, 0, 0, 0, 0]);
    assert_eq!(came.len(), 2);
}

#[test]
fn clients_that_choose_the_same_identification_do_not_at_the_endpoint() {
    for kind in UDPS {
        let mut rig = Rig::with(2, 1024);
        rig.change(|port| port.endpoints.truncate(1));
        let mut seen = std::collections::HashSet::new();
        for client in 1..100 {
            let frames = parts(&long(&kind.opening_of(client, 7200)), 7, 504);
            let came = rig.deliver_all(OUTSIDE, &frames, |n| n as u8 % 2).all_by(INSIDE);
            assert_eq!(together(&came).payload.len(), 1000);
            assert!(seen.insert(id_of(&came[0])));
        }
    }
}

#[test]
fn later_parts_whose_ttl_ends_or_that_cannot_go_on_are_dropped() {
    let mut rig = Rig::new();
    for kind in UDPS {
        let frames = parts(&long(&kind.opening(7300)), 7, 504);
        rig.deliver(0, OUTSIDE, &frames[0]).all_by(INSIDE);
        let dying = parts(&Segment { ttl: 1, ..long(&kind.opening(7300)) }, 7, 504);
        rig.process(0, OUTSIDE, false, &dying[1]).dropped(DropReason::TtlExceeded);
        let martian = parts(&Segment { src: SocketAddr::new(kind.vip(), 80), ..long(&kind.opening(7300)) }, 7, 504);
        rig.process(0, OUTSIDE, false, &martian[1]).dropped(DropReason::Martian);
    }
}

/// A gateway whose NICs and next hops take so many octets.
fn narrow(mtu: u16) -> Rig {
    let mut rig = Rig::new();
    let hop = |ip| Hop {
        state: HopState::Resolved,
        port: INSIDE,
        dst_mac: backend_mac(ip),
        src_mac: INSIDE_MAC,
        mtu,
        on_link: true,
        tags: wire::Tags::NONE,
    };
    rig.hops = KINDS.iter().flat_map(|kind| (1..=3).map(|n| kind.backend(n).ip())).map(|ip| (ip, hop(ip))).collect();
    rig.config.ports[0].mtu = mtu;
    rig.rebuild();
    rig
}

/// A frame of IPv4 that may be cut, with an identification.
pub fn cuttable(segment: &Segment, id: u16) -> Vec<u8> {
    let mut header = etherparse::Ipv4Header::from_slice(&segment.bytes()[14..]).unwrap().0;
    (header.dont_fragment, header.identification) = (false, id);
    header.header_checksum = header.calc_header_checksum();
    let frame = segment.bytes();
    [&frame[..14], &header.to_bytes(), &frame[34..]].concat()
}

fn fits(came: &Came, port: PortId, mtu: usize) -> Vec<Vec<u8>> {
    let frames = came.all_by(port);
    assert!(frames.iter().all(|frame| frame.len() <= mtu + 14));
    frames
}

#[test]
fn ipv4_packets_that_may_be_cut_are_cut_for_their_next_hop() {
    for kind in [TCP4, UDP4] {
        let mut rig = narrow(576);
        let (sent, reply) = conversation(&mut rig, kind, 7400);
        for (from, to, segment) in [(OUTSIDE, INSIDE, long(&sent)), (INSIDE, OUTSIDE, long(&reply))] {
            let came = rig.deliver(0, from, &cuttable(&segment, 7));
            let pieces = fits(&came, to, 576);
            let got = together(&pieces);
            assert_eq!((pieces.len(), &got.payload), (2, &segment.payload));
            assert_ne!(id_of(&pieces[0]), 7);
            // Parts are cut as well, in any order.
            for order in orders(2) {
                let frames = ordered(&parts(&segment, 7, 904), &order);
                let pieces = fits(&rig.deliver_all(from, &frames, |_| 0), to, 576);
                assert_eq!((pieces.len(), together(&pieces).payload), (3, segment.payload.clone()));
            }
        }
        assert_eq!(rig.workers[0].counters().packets_cut, 10);
        assert_eq!(rig.workers[0].counters().too_bigs_sent, 0);
    }
    // One that opens a flow.
    let mut rig = narrow(576);
    let segment = long(&UDP4.opening(7401));
    assert_eq!(together(&fits(&rig.deliver(0, OUTSIDE, &cuttable(&segment, 7)), INSIDE, 576)).payload, segment.payload);
}

#[test]
fn what_cannot_be_cut_is_dropped_or_answered() {
    let mut rig = narrow(576);
    let (sent, _) = conversation(&mut rig, UDP4, 7500);
    // With nobody to send the pieces, their room is used up.
    let frame = cuttable(&long(&sent), 7);
    let verdicts: Vec<_> = (0..600).map(|_| rig.process(0, OUTSIDE, false, &frame).verdict).collect();
    assert_eq!(verdicts[..512], [Verdict::Tx(INSIDE); 512]);
    assert_eq!(verdicts[512..], [Verdict::Drop(DropReason::TooBig); 88]);
    // IPv6: the first part is answered, and the others are dropped, also those that would fit.
    let mut rig = narrow(1280);
    conversation(&mut rig, UDP6, 7501);
    let mut segment = UDP6.opening(7501);
    segment.payload = vec![3; 2800];
    let came = rig.deliver_all(OUTSIDE, &parts(&segment, 9, 1400), |_| 0);
    assert_eq!((came.sent.len(), came.dropped), (1, vec![DropReason::FragmentUnmatched; 2]));
    assert_eq!(rig.workers[0].counters.too_bigs_sent, 1);
}

#[test]
fn a_source_keeps_no_more_than_its_share_and_floods_do_not_stop_datagrams_of_flows() {
    for kind in UDPS {
        let mut rig = Rig::new();
        // One source: later parts without a first one.
        let flood = |client: u8, id: u32| part(&long(&kind.opening_of(client, 7600)).bytes(), id, 504, 504, false);
        let verdicts: Vec<_> = (0..1000).map(|id| rig.process(0, OUTSIDE, false, &flood(8, id)).verdict).collect();
        assert_eq!(verdicts.iter().filter(|v| **v == Verdict::Keep).count(), 128);
        assert!(verdicts[128..].iter().all(|v| *v == Verdict::Drop(DropReason::FragmentLimit)));
        // Another one has its own share, in any order.
        let frames = parts(&long(&kind.opening_of(7, 7600)), 7, 504);
        assert_eq!(rig.deliver_all(OUTSIDE, &ordered(&frames, &[1, 0]), |_| 0).all_by(INSIDE).len(), 2);
        // Many sources: what is in order goes on meanwhile, with parts of the flood in between.
        for id in 0..20_000u32 {
            let client = (id % 250) as u8;
            if client != 7 {
                rig.process(0, OUTSIDE, false, &flood(client, id));
            }
            if id % 100 == 99 {
                let frames = parts(&long(&kind.opening_of(7, 7601)), id, 504);
                let mut came = rig.deliver(0, OUTSIDE, &frames[0]).all_by(INSIDE);
                for n in 0..50 {
                    rig.process(0, OUTSIDE, false, &flood((n % 250) as u8 | 8, id * 7 + n));
                }
                came.extend(rig.deliver(0, OUTSIDE, &frames[1]).all_by(INSIDE));
                assert_eq!(together(&came).payload.len(), 1000);
            }
        }
    }
}

/// What a router says of a packet that it cannot send on: time exceeded.
fn expired(packet: &[u8], to: &[u8; 6]) -> Vec<u8> {
    let link = etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0xd, 1], *to);
    let quote = &packet[..packet.len().min(200)];
    let mut error = Vec::new();
    if packet[0] >> 4 == 6 {
        let source = packet[8..24].try_into().unwrap();
        let kind = etherparse::Icmpv6Type::TimeExceeded(etherparse::icmpv6::TimeExceededCode::HopLimitExceeded);
        link.ipv6([0x20; 16], source, 60).icmpv6(kind).write(&mut error, quote).unwrap();
    } else {
        let source = packet[12..16].try_into().unwrap();
        let kind = etherparse::Icmpv4Type::TimeExceeded(etherparse::icmpv4::TimeExceededCode::TtlExceededInTransit);
        link.ipv4([198, 18, 0, 1], source, 60).icmpv4(kind).write(&mut error, quote).unwrap();
    }
    error
}

#[test]
fn errors_about_first_parts_are_translated_and_about_later_ones_dropped() {
    let mut rig = Rig::new();
    for kind in KINDS {
        let (sent, _) = conversation(&mut rig, kind, 7700);
        let frames = parts(&long(&sent), 7, 504);
        let came = rig.deliver_all(OUTSIDE, &frames, |_| 0).all_by(INSIDE);
        let back = rig.process(0, INSIDE, false, &expired(&came[0][14..], &INSIDE_MAC.0));
        assert_eq!(back.verdict, Verdict::Tx(OUTSIDE));
        // It quotes what the client sent, but for TTL, header checksum and identification.
        let quoted = payload_at(&back.frame) + 8;
        let at = if kind.ipv6 { quoted + 48 } else { quoted + 20 };
        let ports = [sent.src.port(), sent.dst.port()].map(u16::to_be_bytes).concat();
        assert_eq!(back.frame[at..at + 4], ports);
        rig.process(0, INSIDE, false, &expired(&came[1][14..], &INSIDE_MAC.0)).dropped(DropReason::Icmp);
    }
}
