//! VLAN tags: whoever is answered or sent to gets the tags that it needs, and nothing else knows of them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lb::model::Mode;
use lb::tables::Hop;
use lb::{DropReason, PortId, Verdict};
use wire::{Priorities, Tags, TcpFlags};

use crate::packet::{ACK, RST, RST_ACK, SYN_ACK, Segment};
use crate::parts::{parts, together};
use crate::rig::{CLIENT_MAC, INSIDE, KINDS, Kind, OUTSIDE, Outcome, ROOM, Rig, TCP4, TCP6, UDP4, UDP6, usual_hop};
use crate::tunnels::tunnelling;

fn customer() -> Tags {
    Tags::NONE.within(100, false).unwrap()
}

fn provider() -> Tags {
    customer().within(200, true).unwrap()
}

/// Tags of a frame's way in and of its way out.
fn ways() -> [(Tags, Tags); 4] {
    let other = Tags::NONE.within(7, false).unwrap();
    [(customer(), provider()), (Tags::NONE, provider()), (provider(), Tags::NONE), (customer(), other)]
}

fn tagged(tags: Tags, frame: &[u8]) -> Vec<u8> {
    let mut room = frame.to_vec();
    room.resize(frame.len() + tags.octets(), 0);
    assert_eq!(tags.put_on(Priorities::NONE, &mut room, frame.len()), Some(frame.len() + tags.octets()));
    room
}

/// A frame that has these tags, without them.
fn without(frame: &[u8], tags: Tags) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let (found, _, len) = Tags::take_off(&mut frame);
    assert_eq!(found, tags);
    frame.truncate(len);
    frame
}

/// The frame that was sent with these tags, without them.
fn untagged(outcome: &Outcome, port: PortId, tags: Tags) -> Vec<u8> {
    assert_eq!(outcome.verdict, Verdict::Tx(port));
    without(&outcome.frame, tags)
}

/// A gateway whose endpoints are reached within tags.
fn behind(tags: Tags, workers: usize, change: impl Fn(Hop) -> Hop) -> Rig {
    reach_within(Rig::with(workers, 1024), tags, change)
}

fn reach_within(mut rig: Rig, tags: Tags, change: impl Fn(Hop) -> Hop) -> Rig {
    let endpoints = KINDS.iter().flat_map(|kind| (1..=3).map(|n| kind.backend(n).ip()));
    rig.hops = endpoints.map(|ip: IpAddr| (ip, change(Hop { tags, ..usual_hop(ip) }))).collect();
    rig.rebuild();
    rig
}

fn same(hop: Hop) -> Hop {
    hop
}

/// What a client that sends within `from` and an endpoint within `to` say, once their flow is established.
fn conversation(rig: &mut Rig, kind: Kind, port: u16, from: Tags, to: Tags) -> (Segment, Segment) {
    let opening = kind.opening(port);
    let got = rig.process(0, OUTSIDE, false, &tagged(from, &opening.bytes()));
    let got = Segment::read(&untagged(&got, INSIDE, to));
    let answer = tagged(to, &got.back().with_flags(SYN_ACK).bytes());
    untagged(&rig.process(0, INSIDE, false, &answer), OUTSIDE, from);
    (opening.with_flags(ACK), got.back().with_flags(ACK))
}

fn long(segment: &Segment) -> Segment {
    Segment { payload: vec![3; 1000], ..segment.clone() }
}

#[test]
fn clients_get_replies_with_the_tags_that_their_packets_have() {
    for (kind, tags) in KINDS.into_iter().flat_map(|kind| [customer(), provider()].map(|tags| (kind, tags))) {
        let mut rig = Rig::new();
        let send =
            |rig: &mut Rig, tags, segment: &Segment| rig.process(0, OUTSIDE, false, &tagged(tags, &segment.bytes()));
        let sent = kind.opening(4000);
        let got = send(&mut rig, tags, &sent).sent(INSIDE);
        for flags in [SYN_ACK, ACK, ACK] {
            let back = rig.inside(&got.back().with_flags(flags));
            let back = Segment::read(&untagged(&back, OUTSIDE, tags));
            assert_eq!((back.src, back.dst, back.dst_mac), (sent.dst, sent.src, CLIENT_MAC));
            assert_eq!(send(&mut rig, tags, &sent.with_flags(ACK)).sent(INSIDE).dst, got.dst);
        }
        // It moves to another VLAN, and out of all.
        for moved in [customer(), Tags::NONE, provider(), Tags::NONE] {
            send(&mut rig, moved, &sent.with_flags(ACK)).sent(INSIDE);
            untagged(&rig.inside(&got.back().with_flags(ACK)), OUTSIDE, moved);
        }
        assert_eq!(rig.workers[0].counters.flows_opened, 1);
    }
}

#[test]
fn next_hops_get_the_tags_of_their_link() {
    for (kind, tags) in KINDS.into_iter().flat_map(|kind| [customer(), provider()].map(|tags| (kind, tags))) {
        let mut rig = behind(tags, 1, same);
        let sent = kind.opening(4100);
        let got = Segment::read(&untagged(&rig.outside(&sent), INSIDE, tags));
        for flags in [SYN_ACK, ACK, ACK] {
            let reply = tagged(tags, &got.back().with_flags(flags).bytes());
            let back = rig.process(0, INSIDE, false, &reply);
            assert_eq!(Segment::read(&untagged(&back, OUTSIDE, Tags::NONE)).dst, sent.src);
            untagged(&rig.outside(&sent.with_flags(ACK)), INSIDE, tags);
        }
    }
}

#[test]
fn in_every_mode_packets_are_the_same_with_tags_and_without() {
    let gateway = |mode, tags| {
        let mut rig = if matches!(mode, Mode::Nat | Mode::Preserve) { Rig::new() } else { tunnelling(1, mode) };
        rig.change(|port| port.mode = mode);
        reach_within(rig, tags, same)
    };
    for mode in [Mode::Nat, Mode::Preserve, Mode::DsrL2, Mode::DsrIpip, Mode::DsrGue] {
        for (from, to) in ways() {
            let (mut with, mut plain) = (gateway(mode, to), gateway(mode, Tags::NONE));
            for kind in KINDS {
                let sent = kind.opening(4150);
                for segment in [sent.clone(), sent.with_flags(ACK), sent.with_flags(ACK)] {
                    let there = plain.outside(&segment);
                    let got = with.process(0, OUTSIDE, false, &tagged(from, &segment.bytes()));
                    assert_eq!(untagged(&got, INSIDE, to), there.frame, "{mode:?} {kind:?}");
                    if mode.is_direct() {
                        continue;
                    }
                    let reply = Segment::read(&there.frame).back().with_flags(SYN_ACK);
                    let got = with.process(0, INSIDE, false, &tagged(to, &reply.bytes()));
                    assert_eq!(untagged(&got, OUTSIDE, from), plain.inside(&reply).frame, "{mode:?} {kind:?}");
                }
            }
        }
    }
}

#[test]
fn what_we_answer_ourselves_goes_back_with_the_tags_of_the_question() {
    for tags in [customer(), provider()] {
        let mut rig = Rig::new();
        for kind in KINDS {
            let nobody = Segment { dst: SocketAddr::new(kind.vip(), 81), ..kind.opening(4200) };
            let out = rig.process(0, OUTSIDE, false, &tagged(tags, &nobody.bytes()));
            let answer = untagged(&out, OUTSIDE, tags);
            if kind.protocol == TCP4.protocol {
                assert!(Segment::read(&answer).tcp.unwrap().flags.contains(RST));
            }
        }
        let mut request = [0; 42];
        let (asker, vip) = (TCP4.client(7).into(), TCP4.vip().into());
        wire::arp::request(&mut request, CLIENT_MAC, asker, vip);
        let answer = untagged(&rig.process(0, OUTSIDE, false, &tagged(tags, &request)), OUTSIDE, tags);
        assert_eq!((&answer[12..14], answer[21]), (&[8, 6][..], 2));
    }
}

#[test]
fn a_frame_for_another_worker_keeps_its_tags() {
    let mut rig = Rig::with(2, 1024);
    for kind in [TCP4, TCP6] {
        let sent = kind.opening(4300);
        let got = rig.process(0, OUTSIDE, false, &tagged(customer(), &sent.bytes())).sent(INSIDE);
        let midway = tagged(customer(), &sent.with_flags(ACK).bytes());
        let out = rig.process(1, OUTSIDE, false, &midway);
        out.handed_to(0);
        assert_eq!(out.frame, midway);
        assert_eq!(rig.process(0, OUTSIDE, true, &out.frame).sent(INSIDE).dst, got.dst);
        let reply = rig.process(1, INSIDE, false, &got.back().with_flags(SYN_ACK).bytes());
        reply.handed_to(0);
        untagged(&rig.process(0, INSIDE, true, &reply.frame), OUTSIDE, customer());
    }
}

#[test]
fn more_than_two_tags_and_frames_that_end_in_one_are_dropped() {
    let mut rig = Rig::new();
    let frame = tagged(customer(), &tagged(provider(), &UDP4.opening(4400).bytes()));
    rig.process(0, OUTSIDE, false, &frame).dropped(DropReason::UnknownProtocol);
    rig.process(0, OUTSIDE, false, &tagged(customer(), &UDP4.opening(4400).bytes())[..17])
        .dropped(DropReason::UnknownProtocol);
    rig.process(0, OUTSIDE, false, &tagged(customer(), &UDP4.opening(4400).bytes())[..30])
        .dropped(DropReason::Truncated);
}

#[test]
fn parts_of_datagrams_leave_with_the_tags_of_their_way_held_ones_too() {
    for (from, to) in ways() {
        for (workers, order) in [(1, [0, 1, 2]), (1, [2, 1, 0]), (3, [0, 2, 1]), (3, [2, 1, 0])] {
            let mut rig = behind(to, workers, same);
            for (kind, port) in KINDS.into_iter().zip(4500..) {
                let opening = Segment { payload: vec![], ..kind.opening(port) };
                let came = rig.deliver(0, OUTSIDE, &tagged(from, &opening.bytes())).all_by(INSIDE);
                let got = Segment::read(&without(&came[0], to));
                let answer = tagged(to, &got.back().with_flags(SYN_ACK).bytes());
                without(&rig.deliver(0, INSIDE, &answer).all_by(OUTSIDE)[0], from);
                let (sent, reply) = (long(&opening.with_flags(ACK)), long(&got.back().with_flags(ACK)));
                for (segment, inwards, outwards, by, out) in
                    [(&sent, from, to, OUTSIDE, INSIDE), (&reply, to, from, INSIDE, OUTSIDE)]
                {
                    let all = parts(segment, 7, 400);
                    let frames: Vec<_> = order.iter().map(|n| tagged(inwards, &all[*n])).collect();
                    let came = rig.deliver_all(by, &frames, |n| (n % workers) as u8).all_by(out);
                    let came: Vec<_> = came.iter().map(|frame| without(frame, outwards)).collect();
                    assert_eq!((came.len(), together(&came).payload), (3, segment.payload.clone()), "{kind:?}");
                }
                // That parts waited has not made the client one without tags.
                let whole = rig.deliver(0, INSIDE, &tagged(to, &reply.bytes())).all_by(OUTSIDE);
                without(&whole[0], from);
            }
        }
    }
}

#[test]
fn pieces_of_packets_that_are_cut_leave_with_the_tags_of_their_way() {
    for (from, to) in ways() {
        let mut rig = behind(to, 1, |hop| Hop { mtu: 576, ..hop });
        rig.config.ports[0].mtu = 580;
        rig.rebuild();
        let (sent, reply) = conversation(&mut rig, UDP4, 4600, from, to);
        for (segment, inwards, outwards, by, out) in
            [(sent, from, to, OUTSIDE, INSIDE), (reply, to, from, INSIDE, OUTSIDE)]
        {
            let mut frame = long(&segment).bytes();
            // It may be cut.
            let mut header = etherparse::Ipv4Header::from_slice(&frame[14..]).unwrap().0;
            header.dont_fragment = false;
            header.header_checksum = header.calc_header_checksum();
            frame[14..34].copy_from_slice(&header.to_bytes());
            let came = rig.deliver(0, by, &tagged(inwards, &frame)).all_by(out);
            let came: Vec<_> = came.iter().map(|frame| without(frame, outwards)).collect();
            assert!(came.len() == 2 && came.iter().all(|frame| frame.len() <= 14 + 580));
            assert_eq!(together(&came).payload, [3; 1000]);
        }
    }
}

#[test]
fn a_syn_that_goes_on_to_another_endpoint_leaves_with_the_tags_of_that() {
    for (from, to) in ways() {
        for mode in [Mode::Nat, Mode::Preserve] {
            let mut rig = behind(to, 1, same);
            rig.change(|port| port.mode = mode);
            for kind in [TCP4, TCP6] {
                let sent = kind.opening(4700);
                let answer = |got: &Segment, flags: TcpFlags| tagged(to, &got.back().with_flags(flags).bytes());
                let out = rig.process(0, OUTSIDE, false, &tagged(from, &sent.bytes()));
                let first = Segment::read(&untagged(&out, INSIDE, to));
                // Refused: it goes on in the frame of the refusal.
                let second =
                    Segment::read(&untagged(&rig.process(0, INSIDE, false, &answer(&first, RST_ACK)), INSIDE, to));
                assert_ne!(second.dst, first.dst);
                // Unanswered: it goes on in a frame of ours.
                rig.wait(Duration::from_millis(252));
                let mut room = [0; ROOM];
                let emission = lb::emit(rig.now, &rig.tables, &mut rig.workers[0], &mut room).unwrap();
                let third = Segment::read(&without(&room[..emission.len], to));
                assert_eq!((emission.port, third.tcp), (INSIDE, sent.tcp));
                assert!(third.dst != first.dst && third.dst != second.dst);
                // Whoever lost is reset in its own VLAN, and the client gets the answer in its own.
                let late = rig.process(0, INSIDE, false, &answer(&second, SYN_ACK));
                assert!(Segment::read(&untagged(&late, INSIDE, to)).tcp.unwrap().flags.contains(RST));
                let won = rig.process(0, INSIDE, false, &answer(&third, SYN_ACK));
                assert_eq!(Segment::read(&untagged(&won, OUTSIDE, from)).dst, sent.src);
            }
        }
    }
}

#[test]
fn errors_of_our_own_and_those_of_others_have_the_tags_of_whom_they_are_for() {
    for (from, to) in ways() {
        let mut rig = behind(to, 1, |hop| Hop { mtu: 1280, ..hop });
        for kind in KINDS {
            let (sent, reply) = conversation(&mut rig, kind, 4800, from, to);
            let (to_client, to_endpoint) =
                (|out: &Outcome| untagged(out, OUTSIDE, from), |out: &Outcome| untagged(out, INSIDE, to));
            let large = Segment { payload: vec![3; 1300], ..sent.clone() };
            to_client(&rig.process(0, OUTSIDE, false, &tagged(from, &large.bytes())));
            to_client(&rig.process(0, OUTSIDE, false, &tagged(from, &Segment { ttl: 1, ..sent.clone() }.bytes())));
            let late = rig.process(0, INSIDE, false, &tagged(to, &Segment { ttl: 1, ..reply }.bytes()));
            let error = to_endpoint(&late);
            // An error that comes back about what the endpoint got goes on to the client.
            let asked = rig.process(0, OUTSIDE, false, &tagged(from, &sent.bytes()));
            let asked = to_endpoint(&asked);
            let from_router = [&error[6..12], &error[..6], &error[12..14], &unreachable(&asked[14..])].concat();
            let told = to_client(&rig.process(0, INSIDE, false, &tagged(to, &from_router)));
            assert_eq!(told[..6], CLIENT_MAC.0);
        }
    }
}

/// What a router says of a packet to a host that it cannot reach, from its IP header on.
fn unreachable(packet: &[u8]) -> Vec<u8> {
    let mut error = Vec::new();
    if packet[0] >> 4 == 6 {
        let back = packet[8..24].try_into().unwrap();
        let kind = etherparse::Icmpv6Type::DestinationUnreachable(etherparse::icmpv6::DestUnreachableCode::Address);
        let step = etherparse::PacketBuilder::ipv6([0x20; 16], back, 60).icmpv6(kind);
        step.write(&mut error, packet).unwrap();
    } else {
        let back = packet[12..16].try_into().unwrap();
        let kind = etherparse::Icmpv4Type::DestinationUnreachable(etherparse::icmpv4::DestUnreachableHeader::Host);
        let step = etherparse::PacketBuilder::ipv4([198, 18, 0, 1], back, 60).icmpv4(kind);
        step.write(&mut error, packet).unwrap();
    }
    error
}

/// The control words of a frame's tags, the outer one's first.
fn controls(frame: &[u8], count: usize) -> Vec<u16> {
    (0..count).map(|n| u16::from_be_bytes([frame[14 + 4 * n], frame[15 + 4 * n]])).collect()
}

#[test]
fn priorities_are_kept_with_the_tags_and_are_none_where_others_are_put_on() {
    // PCP 5 and 3, the outer tag's DEI set.
    let urgent = |mut frame: Vec<u8>| {
        frame[14] |= 0xb0;
        frame[18] |= 0x60;
        frame
    };
    let kept = vec![0xb000 | 200, 0x6000 | 100];
    // An answer, and a packet that goes on within the tags that it came with.
    let mut rig = behind(provider(), 1, same);
    let nobody = Segment { dst: SocketAddr::new(TCP4.vip(), 81), ..TCP4.opening(4900) };
    let out = rig.process(0, OUTSIDE, false, &urgent(tagged(provider(), &nobody.bytes())));
    assert_eq!((out.verdict, controls(&out.frame, 2)), (Verdict::Tx(OUTSIDE), kept.clone()));
    let out = rig.process(0, OUTSIDE, false, &urgent(tagged(provider(), &UDP4.opening(4901).bytes())));
    assert_eq!((out.verdict, controls(&out.frame, 2)), (Verdict::Tx(INSIDE), kept.clone()));
    let got = Segment::read(&without(&out.frame, provider()));
    // What the client said is not the endpoint's to repeat.
    let out = rig.process(0, INSIDE, false, &tagged(provider(), &got.back().bytes()));
    assert_eq!(controls(&out.frame, 2), [200, 100]);
    // Others.
    let mut rig = behind(Tags::NONE.within(7, false).unwrap(), 1, same);
    let out = rig.process(0, OUTSIDE, false, &urgent(tagged(provider(), &UDP6.opening(4902).bytes())));
    assert_eq!((out.verdict, controls(&out.frame, 1)), (Verdict::Tx(INSIDE), vec![7]));
    // Handed over as it came.
    let mut rig = Rig::with(2, 1024);
    rig.open(TCP4, 4903);
    let frame = urgent(tagged(provider(), &TCP4.opening(4903).with_flags(ACK).bytes()));
    let out = rig.process(1, OUTSIDE, false, &frame);
    out.handed_to(0);
    assert_eq!(out.frame, frame);
}

#[test]
fn a_tag_of_no_vlan_is_none() {
    for kind in KINDS {
        let mut rig = Rig::new();
        let mut frame = tagged(customer(), &kind.opening(5000).bytes());
        frame[14..16].copy_from_slice(&[0xe0, 0]);
        let got = rig.process(0, OUTSIDE, false, &frame).sent(INSIDE);
        untagged(&rig.inside(&got.back().with_flags(SYN_ACK)), OUTSIDE, Tags::NONE);
    }
}

#[test]
fn a_second_tag_takes_its_room_from_the_packets_to_the_client() {
    for (tags, longest) in [(Tags::NONE, 1500), (customer(), 1500), (provider(), 1496)] {
        let mut rig = Rig::new();
        for kind in KINDS {
            let (_, reply) = conversation(&mut rig, kind, 5100, tags, Tags::NONE);
            let headers = if kind.ipv6 { 40 } else { 20 } + if kind.protocol == TCP4.protocol { 20 } else { 8 };
            let of = |len: usize| Segment { payload: vec![3; len - headers], ..reply.clone() };
            untagged(&rig.inside(&of(longest)), OUTSIDE, tags);
            if longest < 1500 {
                // The endpoint is told, in its own VLAN.
                untagged(&rig.inside(&of(longest + 1)), INSIDE, Tags::NONE);
            }
        }
        assert_eq!(rig.event("too_bigs_sent"), if longest < 1500 { 4 } else { 0 });
    }
}
