//! Hostile and odd packets: each reason to drop one fires, and whatever comes, nothing goes to a third party.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use etherparse::{Icmpv4Type, PacketBuilder};
use lb::model::{Mode, NoEndpoint};
use lb::process::process;
use lb::tables::{Hop, HopState, SnatAddress};
use lb::{DropReason, Frame, PortId, Verdict};
use proptest::prelude::*;

use crate::association::{Association, ENDPOINTS, SCTP4, data};
use crate::drops::fill_bucket;
use crate::judge::judge;
use crate::packet::{ACK, RST, SYN_ACK, Segment, Tcp};
use crate::parts::{part, parts, raw_part};
use crate::rig::{CLIENT_MAC, INSIDE, INSIDE_MAC, KINDS, Kind, OUTSIDE, OUTSIDE_MAC, Rig, TCP4, TCP6, UDP4, UDP6};

/// Has a reason fire, and gives the last verdict; `None`: another drops for it, whose tests have it fire.
fn fire(reason: DropReason) -> Option<Verdict> {
    let mut rig = Rig::new();
    let outside = |rig: &mut Rig, frame: &[u8]| rig.process(0, OUTSIDE, false, frame).verdict;
    let whole = || Segment { payload: vec![1; 1000], ..UDP4.opening(1) }.bytes();
    let verdict = match reason {
        DropReason::Truncated => outside(&mut rig, &TCP4.opening(1).bytes()[..40]),
        DropReason::BadHeader => outside(&mut rig, &with(TCP4.opening(1).bytes(), &[(14, 0x44)])),
        DropReason::BadChecksum => outside(&mut rig, &with(TCP4.opening(1).bytes(), &[(24, 0), (25, 0)])),
        DropReason::Martian => outside(&mut rig, &land(TCP4).bytes()),
        DropReason::UnknownProtocol => outside(&mut rig, &with(TCP6.opening(1).bytes(), &[(20, 33)])),
        DropReason::ExtensionHeaders => outside(&mut rig, &with(TCP6.opening(1).bytes(), &[(20, 51)])),
        DropReason::SourceRoute => outside(&mut rig, &with_options(UDP4.opening(1), &[131, 7, 4, 1, 2, 3, 4, 0])),
        DropReason::ServiceLoop => rig.outside(&Segment { src: UDP4.backend(1), ..UDP4.opening(1) }).verdict,
        DropReason::FragmentMalformed => outside(&mut rig, &raw_part(&whole(), 1, 8, &[], false)),
        DropReason::FragmentTiny => outside(&mut rig, &raw_part(&TCP4.opening(1).bytes(), 1, 0, &[1; 16], true)),
        DropReason::FragmentOverlap => {
            outside(&mut rig, &part(&whole(), 1, 0, 504, true));
            outside(&mut rig, &part(&whole(), 1, 496, 16, true))
        }
        DropReason::FragmentDuplicate => {
            outside(&mut rig, &part(&whole(), 1, 0, 504, true));
            outside(&mut rig, &part(&whole(), 1, 0, 504, true))
        }
        DropReason::FragmentLimit => {
            let kept = (0..128).map(|id| outside(&mut rig, &part(&whole(), id, 8, 504, true)));
            assert!(kept.collect::<Vec<_>>().iter().all(|verdict| *verdict == Verdict::Keep));
            outside(&mut rig, &part(&whole(), 999, 8, 504, true))
        }
        DropReason::FragmentUnmatched => {
            let mut nobodys = whole();
            nobodys[36..38].copy_from_slice(&81u16.to_be_bytes());
            assert_eq!(outside(&mut rig, &part(&nobodys, 1, 0, 504, true)), Verdict::Tx(OUTSIDE), "port unreachable");
            outside(&mut rig, &part(&nobodys, 1, 504, 504, false))
        }
        DropReason::FragmentCrc => {
            rig = crate::association::with_sctp(1);
            let opening = Association::opening(SCTP4, 1);
            outside(&mut rig, &opening.bytes());
            let long = opening.with(ENDPOINTS, data(1000)).bytes();
            outside(&mut rig, &part(&long, 1, 0, 504, true))
        }
        DropReason::Icmp => outside(&mut rig, &port_unreachable_about_nothing()),
        DropReason::NeighborDiscovery => {
            outside(&mut rig, &crate::answers::arp(2, (CLIENT_MAC, [192, 0, 2, 1]), [10, 0, 0, 10]))
        }
        DropReason::NotOurs => {
            rig.outside(&Segment { dst: SocketAddr::new(TCP4.client(99), 80), ..TCP4.opening(1) }).verdict
        }
        DropReason::NoEndpoint => {
            rig.change(|port| {
                port.endpoints.clear();
                port.no_endpoint = NoEndpoint::Drop;
            });
            rig.outside(&TCP4.opening(1)).verdict
        }
        DropReason::RejectRateLimited => last_of(200, || rig.outside(&to_port(TCP4, 81)).verdict),
        DropReason::SourceRange => {
            rig.change(|port| port.source_ranges = [(TCP4.backend(1).ip(), 32)].into());
            rig.outside(&TCP4.opening(1)).verdict
        }
        DropReason::FlowTableFull => {
            rig = Rig::with(1, 1);
            let (sent, got) = rig.open(TCP4, 1);
            rig.inside(&got.back().with_flags(SYN_ACK)).sent(OUTSIDE);
            rig.outside(&sent.with_flags(ACK)).sent(INSIDE);
            last_of(1000, || rig.outside(&TCP4.opening(2)).verdict)
        }
        DropReason::DirectoryFull => {
            rig = Rig::with(2, 64);
            let sent = TCP4.opening(1);
            fill_bucket(&rig, &sent);
            last_of(1000, || rig.outside(&sent).verdict)
        }
        DropReason::OwnerGone => {
            rig = Rig::with(2, 64);
            let sent = TCP4.opening(1).bytes();
            rig.process(1, OUTSIDE, false, &sent).sent(INSIDE);
            rig.process(0, OUTSIDE, true, &sent).verdict
        }
        DropReason::SnatExhausted => {
            let snat = |index, kind: Kind| SnatAddress {
                address: kind.snat().into(),
                index,
                first_port: 2048,
                last_port: 2048,
                dedicated: true,
            };
            rig = Rig::with_snat(1, 64, vec![snat(0, TCP4), snat(1, TCP6)]);
            rig.change(|port| port.endpoints.truncate(1));
            rig.open(TCP4, 1);
            last_of(1000, || rig.outside(&TCP4.opening(2)).verdict)
        }
        DropReason::SourceLimit => {
            rig.config.flows_per_source = 1;
            rig.rebuild();
            rig.open(TCP4, 1);
            last_of(1000, || rig.outside(&TCP4.opening(2)).verdict)
        }
        DropReason::SourceRate => {
            rig.config.new_flows_per_source = 1;
            rig.rebuild();
            let mut port = 0;
            last_of(100, || {
                port += 1;
                rig.outside(&TCP4.opening(port)).verdict
            })
        }
        DropReason::NoFlow => rig.outside(&TCP4.opening(1).with_flags(RST)).verdict,
        DropReason::UnacceptableReset => {
            let (sent, _) = rig.open(TCP4, 1);
            let reset = Segment { tcp: sent.tcp.map(|tcp| Tcp { flags: RST, seq: tcp.seq + 9999, ..tcp }), ..sent };
            rig.inside(&Segment { tcp: reset.tcp, ..reset.back() });
            let got = rig.outside(&TCP4.opening(1)).sent(INSIDE);
            rig.inside(&got.back().with_flags(RST)).verdict
        }
        DropReason::NotOnLink => {
            rig.change(|port| {
                port.mode = Mode::DsrL2;
                port.endpoints.iter_mut().for_each(|endpoint| endpoint.port = 80);
            });
            rig.hops = hops(|hop| Hop { on_link: false, ..hop });
            rig.rebuild();
            rig.outside(&TCP4.opening(1)).verdict
        }
        DropReason::NextHopUnresolved | DropReason::NoRoute => {
            let state = if reason == DropReason::NoRoute { HopState::NoRoute } else { HopState::Unresolved };
            rig.hops = hops(|hop| Hop { state, ..hop });
            rig.rebuild();
            rig.outside(&TCP4.opening(1)).verdict
        }
        DropReason::TooBig => {
            rig.hops = hops(|hop| Hop { mtu: 576, ..hop });
            rig.rebuild();
            last_of(200, || rig.outside(&Segment { payload: vec![1; 1000], ..UDP4.opening(1) }).verdict)
        }
        DropReason::TtlExceeded => last_of(200, || rig.outside(&Segment { ttl: 1, ..UDP4.opening(1) }).verdict),
        DropReason::Overload => {
            let (sent, _) = rig.open(TCP4, 1);
            rig.workers[0].admission.set_overloaded(true);
            rig.burst(&[(OUTSIDE, sent.with_flags(ACK).bytes()), (OUTSIDE, TCP4.opening(2).bytes())])[1]
        }
        DropReason::NoTunnelSource => {
            rig = crate::tunnels::tunnelling(1, Mode::DsrIpip);
            rig.config.tunnels.clear();
            rig.rebuild();
            rig.outside(&TCP4.opening(1)).verdict
        }
        DropReason::NoRoom => {
            rig = crate::tunnels::tunnelling(1, Mode::DsrIpip);
            let mut room = TCP4.opening(1).bytes();
            let len = room.len();
            let mut burst = [Frame { room: &mut room, len, port: OUTSIDE, handed: false }];
            let mut verdicts = [Verdict::Pass];
            process(&mut burst, rig.now, &rig.tables, &mut rig.workers[0], &mut verdicts);
            verdicts[0]
        }
        // By the steering program: scenario `flood`.
        DropReason::SynFlood => return None,
        DropReason::NoKernelPort | DropReason::HandOffFull | DropReason::TxFull | DropReason::NoTxQueue => return None,
    };
    Some(verdict)
}

#[test]
fn every_reason_fires() {
    for &reason in DropReason::ALL {
        // The match above has no catch-all: who adds a reason is told by the compiler to have it fire.
        if let Some(verdict) = fire(reason) {
            assert_eq!(verdict, Verdict::Drop(reason));
        }
    }
}

fn last_of(times: usize, mut verdict: impl FnMut() -> Verdict) -> Verdict {
    (0..times).map(|_| verdict()).last().unwrap()
}

fn hops(change: impl Fn(Hop) -> Hop) -> Vec<(IpAddr, Hop)> {
    let ips = KINDS.iter().flat_map(|kind| (1..=3).map(|n| kind.backend(n).ip()));
    ips.map(|ip| (ip, change(crate::rig::usual_hop(ip)))).collect()
}

fn to_port(kind: Kind, port: u16) -> Segment {
    Segment { dst: SocketAddr::new(kind.vip(), port), ..kind.opening(1) }
}

/// From the VIP's own port to itself.
fn land(kind: Kind) -> Segment {
    Segment { src: kind.opening(1).dst, ..kind.opening(1) }
}

/// The same frame with some octets other than they were.
fn with(mut frame: Vec<u8>, octets: &[(usize, u8)]) -> Vec<u8> {
    for &(at, octet) in octets {
        frame[at] = octet;
    }
    frame
}

/// The IPv4 header's checksum as it should be, if there is a whole header.
fn right_header(mut frame: Vec<u8>) -> Vec<u8> {
    let len = usize::from(frame.get(14).copied().unwrap_or(0) & 0xf) * 4;
    if len < 20 || frame.len() < 14 + len {
        return frame;
    }
    frame[24..26].fill(0);
    let sum: u32 = frame[14..14 + len].chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    frame[24..26].copy_from_slice(&(!((sum & 0xffff) as u16 + (sum >> 16) as u16)).to_be_bytes());
    frame
}

/// An IPv4 packet with options, of whole words.
fn with_options(segment: Segment, options: &[u8]) -> Vec<u8> {
    let mut frame = segment.bytes();
    frame.splice(34..34, options.iter().copied());
    frame[14] += options.len() as u8 / 4;
    let len = (frame.len() - 14) as u16;
    frame[16..18].copy_from_slice(&len.to_be_bytes());
    right_header(frame)
}

fn port_unreachable_about_nothing() -> Vec<u8> {
    let unreachable = Icmpv4Type::DestinationUnreachable(etherparse::icmpv4::DestUnreachableHeader::Port);
    let link = PacketBuilder::ethernet2(CLIENT_MAC.0, OUTSIDE_MAC.0);
    let mut error = Vec::new();
    link.ipv4([192, 0, 2, 7], [10, 0, 0, 10], 64).icmpv4(unreachable).write(&mut error, &[0x45; 28]).unwrap();
    error
}

#[test]
fn a_packet_cut_at_any_length_is_truncated() {
    let mut rig = Rig::new();
    for kind in KINDS {
        let frames = [
            Segment { payload: vec![7; 50], ..kind.opening(1) }.bytes(),
            parts(&Segment { payload: vec![7; 50], ..kind.opening(2) }, 1, 40)[0].clone(),
        ];
        for (frame, len) in frames.iter().flat_map(|frame| (0..frame.len()).map(move |len| (frame, len))) {
            rig.process(0, OUTSIDE, false, &frame[..len]).dropped(DropReason::Truncated);
        }
    }
    let error = port_unreachable_about_nothing();
    for len in 0..error.len() {
        rig.process(0, OUTSIDE, false, &error[..len]).dropped(DropReason::Truncated);
    }
    assert_eq!(rig.shared.flows(), 0);
}

#[test]
fn lengths_that_contradict_one_another_are_bad_headers() {
    let mut rig = Rig::new();
    let four = |octets: &[(usize, u8)], kind: Kind| right_header(with(kind.opening(1).bytes(), octets));
    for (what, frame) in [
        ("a header shorter than the least", with(TCP4.opening(1).bytes(), &[(14, 0x44)])),
        ("a header longer than the packet", with(TCP4.opening(1).bytes(), &[(14, 0x4f)])),
        ("a packet shorter than its header", four(&[(16, 0), (17, 19)], TCP4)),
        ("another version", with(TCP4.opening(1).bytes(), &[(14, 0x65)])),
        ("another version in IPv6", with(TCP6.opening(1).bytes(), &[(14, 0x40)])),
        ("a TCP header shorter than the least", with(TCP4.opening(1).bytes(), &[(46, 0x40)])),
        ("a TCP header longer than the segment", with(TCP6.opening(1).bytes(), &[(66, 0xf0)])),
        ("a UDP datagram shorter than its header", with(UDP4.opening(1).bytes(), &[(38, 0), (39, 7)])),
        ("a UDP datagram longer than its packet", with(UDP6.opening(1).bytes(), &[(58, 0), (59, 200)])),
        ("a mapped source", mapped(UDP6.opening(1).bytes())),
    ] {
        let verdict = rig.process(0, OUTSIDE, false, &frame).verdict;
        assert_eq!(verdict, Verdict::Drop(DropReason::BadHeader), "{what}");
    }
    assert_eq!(rig.shared.flows(), 0);
}

/// From an IPv4 address in an IPv6 header (RFC 4942 section 2.2).
fn mapped(mut frame: Vec<u8>) -> Vec<u8> {
    frame[22..38].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 7]);
    frame
}

#[test]
fn ip_options_pass_but_for_those_that_route() {
    let mut rig = Rig::new();
    for (port, options) in
        (100..).zip([&[1, 1, 1, 0][..], &[7, 7, 4, 0, 0, 0, 0, 0], &[148, 4, 0, 0], &[68, 8, 5, 0, 0, 0, 0, 0]])
    {
        let out = rig.process(0, OUTSIDE, false, &with_options(UDP4.opening(port), options));
        assert_eq!((out.verdict, &out.frame[34..34 + options.len()]), (Verdict::Tx(INSIDE), options));
    }
    for kind in [131, 137] {
        let routed = with_options(UDP4.opening(1), &[1, kind, 7, 4, 9, 9, 9, 9]);
        rig.process(0, OUTSIDE, false, &routed).dropped(DropReason::SourceRoute);
    }
    for broken in [[7, 0, 0, 0], [7, 1, 0, 0], [7, 5, 0, 0], [1, 1, 1, 7]] {
        rig.process(0, OUTSIDE, false, &with_options(UDP4.opening(1), &broken)).dropped(DropReason::BadHeader);
    }
}

#[test]
fn chains_of_extension_headers_are_followed_for_as_long_as_is_sensible() {
    let mut rig = Rig::new();
    let chain = |headers: &[u8], port: u16| {
        let mut frame = UDP6.opening(port).bytes();
        let mut octets = Vec::new();
        for (n, _) in headers.iter().enumerate() {
            let next = headers.get(n + 1).copied().unwrap_or(17);
            octets.extend([next, 0, 1, 4, 0, 0, 0, 0]);
        }
        frame[20] = headers[0];
        frame.splice(54..54, octets);
        let len = (frame.len() - 54) as u16;
        frame[18..20].copy_from_slice(&len.to_be_bytes());
        frame
    };
    for (port, headers) in (200..).zip([&[0][..], &[60], &[0, 60], &[60; 8], &[60; 31]]) {
        assert_eq!(rig.process(0, OUTSIDE, false, &chain(headers, port)).verdict, Verdict::Tx(INSIDE), "{headers:?}");
    }
    // Too long; hop-by-hop not at the start; with segments left to go to; authenticated.
    for headers in [&[60; 33][..], &[60, 0], &[0, 0], &[43], &[51], &[60, 51]] {
        rig.process(0, OUTSIDE, false, &chain(headers, 1)).dropped(DropReason::ExtensionHeaders);
    }
    assert_eq!(rig.shared.flows(), 5);
}

#[test]
fn a_land_attack_and_what_is_sent_to_all_stations_open_nothing() {
    let mut rig = Rig::new();
    for kind in KINDS {
        rig.outside(&land(kind)).dropped(DropReason::Martian);
        // RFC 1122 section 3.3.6: to one machine, and by the link to all.
        let all = Segment { dst_mac: wire::MacAddr([0xff; 6]), ..kind.opening(1) };
        rig.outside(&all).dropped(DropReason::Martian);
    }
    assert_eq!(rig.shared.flows(), 0);
}

#[test]
fn two_services_cannot_be_made_to_talk_to_each_other() {
    for kind in [UDP4, UDP6] {
        let mut rig = Rig::new();
        // In the name of a frontend, of any of them, of the SNAT address, of an endpoint's own port.
        let sources = [
            SocketAddr::new(kind.vip(), 80),
            SocketAddr::new(kind.silent_vip(), 80),
            SocketAddr::new(kind.host(), 30080),
            SocketAddr::new(kind.snat(), 2000),
        ];
        for src in sources {
            rig.outside(&Segment { src, ..kind.opening(1) }).dropped(DropReason::Martian);
        }
        for n in 1..=3 {
            let src = kind.backend(n);
            rig.outside(&Segment { src, ..kind.opening(1) }).dropped(DropReason::ServiceLoop);
            // From another port it is a client as any other.
            let src = SocketAddr::new(src.ip(), src.port() + 1);
            rig.outside(&Segment { src, ..kind.opening(1) }).sent(INSIDE);
        }
        assert_eq!(rig.shared.flows(), 3);
        // TCP answers no answer.
        let tcp = Kind { protocol: TCP4.protocol, ..kind };
        rig.outside(&Segment { src: tcp.backend(1), ..tcp.opening(1) }).sent(INSIDE);
    }
}

#[test]
fn a_wrong_transport_checksum_is_the_endpoints_to_judge() {
    for kind in KINDS {
        let mut rig = Rig::new();
        rig.open(kind, 1);
        let sent = Segment { payload: vec![9; 100], ..kind.opening(1).with_flags(ACK) };
        let mut frame = sent.bytes();
        *frame.last_mut().unwrap() ^= 1;
        let out = rig.process(0, OUTSIDE, false, &frame);
        assert_eq!(out.verdict, Verdict::Tx(INSIDE));
        assert!(!crate::packet::checksums_hold(&out.frame), "damage goes on as damage");
    }
}

#[test]
fn what_is_said_of_our_own_is_limited_whatever_it_is() {
    let mut rig = Rig::new();
    rig.hops = hops(|hop| Hop { mtu: 576, ..hop });
    rig.rebuild();
    let long = |kind: Kind| Segment { payload: vec![1; 1300], ..kind.opening(1) };
    for sent in [to_port(TCP4, 81), to_port(UDP6, 81), long(UDP4), long(UDP6), Segment { ttl: 1, ..UDP4.opening(1) }] {
        rig.wait(Duration::from_secs(1));
        let answered = (0..1000).filter(|_| rig.outside(&sent).verdict == Verdict::Tx(OUTSIDE)).count();
        assert_eq!(answered, 100, "{sent:?}");
    }
}

/// Frames of all kinds, from either side; of flows that are there, and of none.
fn seeds(rig: &mut Rig) -> Vec<(PortId, Vec<u8>)> {
    let mut frames = Vec::new();
    for kind in KINDS {
        let (sent, got) = rig.open(kind, 4000);
        rig.inside(&got.back().with_flags(SYN_ACK)).sent(OUTSIDE);
        let data = Segment { payload: vec![5; 200], ..sent.with_flags(ACK) };
        let reply = Segment { payload: vec![6; 200], ..got.back().with_flags(ACK) };
        frames.extend([(OUTSIDE, data.bytes()), (INSIDE, reply.bytes()), (OUTSIDE, kind.opening(4001).bytes())]);
        frames.extend(parts(&data, 5, 64).into_iter().map(|part| (OUTSIDE, part)));
        frames.extend(parts(&reply, 6, 64).into_iter().map(|part| (INSIDE, part)));
        // An error about what went to the endpoint, and a ping.
        let seen = rig.outside(&data).frame;
        let quote = &seen[14..seen.len().min(114)];
        let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0xd, 1], INSIDE_MAC.0);
        let (mut error, mut ping) = (Vec::new(), Vec::new());
        let ask = PacketBuilder::ethernet2(CLIENT_MAC.0, OUTSIDE_MAC.0);
        match (kind.snat(), kind.client(7), kind.vip()) {
            (IpAddr::V4(snat), IpAddr::V4(client), IpAddr::V4(vip)) => {
                link.ipv4([198, 18, 0, 1], snat.octets(), 60)
                    .icmpv4_raw(3, 1, [0; 4])
                    .write(&mut error, quote)
                    .unwrap();
                ask.ipv4(client.octets(), vip.octets(), 60)
                    .icmpv4_echo_request(1, 2)
                    .write(&mut ping, &[3; 32])
                    .unwrap();
            }
            (IpAddr::V6(snat), IpAddr::V6(client), IpAddr::V6(vip)) => {
                link.ipv6([0x20; 16], snat.octets(), 60).icmpv6_raw(1, 0, [0; 4]).write(&mut error, quote).unwrap();
                ask.ipv6(client.octets(), vip.octets(), 60)
                    .icmpv6_echo_request(1, 2)
                    .write(&mut ping, &[3; 32])
                    .unwrap();
            }
            _ => unreachable!("one family"),
        }
        frames.extend([(INSIDE, error), (OUTSIDE, ping)]);
    }
    frames.push((OUTSIDE, crate::answers::arp(1, (CLIENT_MAC, [192, 0, 2, 1]), [10, 0, 0, 10])));
    frames
}

/// Changes that lead further in than noise does.
#[derive(Clone, Debug)]
enum Mutation {
    Flip(prop::sample::Index, u8),
    Set(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Lengthen(u8),
    /// Puts octets in, as a header of options would.
    Insert(prop::sample::Index, Vec<u8>),
    /// Another frame's tail.
    Splice(prop::sample::Index, prop::sample::Index),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    // Headers are at the front, so most changes are there.
    let place = || any::<prop::sample::Index>();
    prop_oneof![
        (place(), 0u8..8).prop_map(|(at, bit)| Mutation::Flip(at, bit)),
        (place(), any::<u8>()).prop_map(|(at, octet)| Mutation::Set(at, octet)),
        (place(), prop::sample::select(vec![0, 1, 4, 5, 6, 15, 17, 43, 44, 51, 58, 60, 255]))
            .prop_map(|(at, octet)| Mutation::Set(at, octet)),
        place().prop_map(Mutation::Cut),
        any::<u8>().prop_map(Mutation::Lengthen),
        (place(), prop::collection::vec(any::<u8>(), 1..24)).prop_map(|(at, octets)| Mutation::Insert(at, octets)),
        (place(), place()).prop_map(|(at, other)| Mutation::Splice(at, other)),
    ]
}

fn mutate(frame: &mut Vec<u8>, mutation: &Mutation, others: &[(PortId, Vec<u8>)]) {
    if frame.is_empty() {
        return;
    }
    let front = frame.len().min(90);
    match mutation {
        Mutation::Flip(at, bit) => frame[at.index(front)] ^= 1 << bit,
        Mutation::Set(at, octet) => frame[at.index(front)] = *octet,
        Mutation::Cut(at) => frame.truncate(at.index(frame.len())),
        Mutation::Lengthen(by) => frame.extend(std::iter::repeat_n(0x5a, usize::from(*by))),
        Mutation::Insert(at, octets) => {
            let at = at.index(front);
            frame.splice(at..at, octets.iter().copied());
        }
        Mutation::Splice(at, other) => {
            let (at, other) = (at.index(frame.len()), &others[other.index(others.len())].1);
            frame.truncate(at);
            frame.extend(other.iter().skip(at));
        }
    }
    frame.truncate(1500);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_frame_whatever_it_is_reaches_a_third_party(
        frames in prop::collection::vec((any::<prop::sample::Index>(), prop::collection::vec(mutation(), 0..4), any::<bool>(), 0u8..2, any::<bool>()), 1..40),
        two_workers: bool,
    ) {
        let mut rig = Rig::with(if two_workers { 2 } else { 1 }, 64);
        let seeds = seeds(&mut rig);
        for (seed, mutations, right, worker, handed) in frames {
            let (port, mut frame) = seeds[seed.index(seeds.len())].clone();
            mutations.iter().for_each(|mutation| mutate(&mut frame, mutation, &seeds));
            if right && frame.get(12..14) == Some(&[8, 0]) {
                frame = right_header(frame);
            }
            let worker = if two_workers { worker } else { 0 };
            judge(&mut rig, worker, port, handed && two_workers, &frame);
        }
    }
}

/// What the judge must refuse, lest it refuse nothing.
#[test]
#[should_panic(expected = "third party")]
fn the_judge_refuses_what_goes_elsewhere() {
    let mut rig = Rig::new();
    // An endpoint's neighbour is another machine.
    rig.hops = hops(|hop| Hop { dst_mac: wire::MacAddr([2, 9, 9, 9, 9, 9]), ..hop });
    rig.rebuild();
    judge(&mut rig, 0, OUTSIDE, false, &TCP4.opening(1).bytes());
}
