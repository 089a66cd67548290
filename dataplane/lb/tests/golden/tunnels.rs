//! Modes in which packets go to endpoints within others: what is around them, what fits, and errors about the outer ones.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

use etherparse::{NetSlice, SlicedPacket};
use lb::model::Mode;
use lb::tables::{Hop, HopState};
use lb::{DropReason, Verdict};
use wire::tunnel::{GUE_PORT, Outer, Wrapping};

use crate::answers::icmp;
use crate::direct::direct;
use crate::errors::too_big;
use crate::fragments::{cuttable, ordered, orders};
use crate::packet::{ACK, FIN_ACK, Segment};
use crate::parts::{id_of, parts, together};
use crate::rig::{
    CLIENT_MAC, INSIDE, INSIDE_MAC, KINDS, Kind, OUTSIDE, OUTSIDE_MAC, Outcome, ROOM, Rig, TCP4, TCP6, UDP4, UDP6,
    backend_mac,
};

const MODES: [(Mode, Wrapping); 2] = [(Mode::DsrIpip, Wrapping::Ip), (Mode::DsrGue, Wrapping::Gue)];

fn sources(ipv6: bool) -> [IpAddr; 4] {
    let text = |n| if ipv6 { format!("2001:db8:b::2{n}") } else { format!("10.1.0.20{n}") };
    [0, 1, 2, 3].map(|n| text(n).parse().unwrap())
}

pub fn tunnelling(workers: usize, mode: Mode) -> Rig {
    let mut rig = direct(workers, 1024, mode);
    rig.config.tunnels = [sources(false), sources(true)].concat().into_iter().map(Into::into).collect();
    rig.rebuild();
    rig
}

fn around(wrapping: Wrapping, ipv6: bool) -> u16 {
    let any = if ipv6 { "2001:db8::1" } else { "192.0.2.1" }.parse::<IpAddr>().unwrap();
    Outer { src: any.into(), dst: any.into(), wrapping, entropy: 0 }.len()
}

/// What is around a packet that was sent, and what is within, as if it had come alone.
struct Opened {
    source: IpAddr,
    endpoint: IpAddr,
    inner: Vec<u8>,
}

fn opened(out: &Outcome, wrapping: Wrapping) -> Opened {
    assert_eq!(out.verdict, Verdict::Tx(INSIDE));
    let packet = SlicedPacket::from_ethernet(&out.frame).unwrap();
    let (source, endpoint): (IpAddr, IpAddr) = match packet.net.unwrap() {
        NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        other => panic!("{other:?}"),
    };
    let len = usize::from(around(wrapping, source.is_ipv6()));
    let inner = &out.frame[14 + len..];
    let ether_type = if inner[0] >> 4 == 6 { [0x86, 0xdd] } else { [8, 0] };
    Opened { source, endpoint, inner: [&out.frame[..12], &ether_type, inner].concat() }
}

fn within(sent: &Segment, endpoint: IpAddr) -> Vec<u8> {
    Segment { src_mac: INSIDE_MAC, dst_mac: backend_mac(endpoint), ttl: sent.ttl - 1, ..sent.clone() }.bytes()
}

#[test]
fn endpoints_get_what_the_client_sent_within_another_packet() {
    for ((mode, wrapping), kind) in MODES.into_iter().flat_map(|mode| KINDS.map(|kind| (mode, kind))) {
        let mut rig = tunnelling(1, mode);
        let sent = kind.opening(4000);
        let first = opened(&rig.outside(&sent), wrapping);
        assert!((1..=3).any(|n| kind.backend(n).ip() == first.endpoint));
        assert!(sources(kind.ipv6).contains(&first.source));
        assert_eq!(first.inner, within(&sent, first.endpoint));
        for flags in [ACK, ACK, ACK, FIN_ACK] {
            let more = Segment { payload: b"an odd number of octets".to_vec(), ..sent.with_flags(flags) };
            let again = opened(&rig.outside(&more), wrapping);
            assert_eq!(again.inner, within(&more, first.endpoint));
            assert_eq!((again.source, again.endpoint), (first.source, first.endpoint), "one flow, one queue");
        }
        assert_eq!(rig.workers[0].counters.flows_opened, 1);
    }
}

#[test]
fn flows_start_at_all_addresses_that_tunnels_have() {
    for ((mode, wrapping), kind) in MODES.into_iter().flat_map(|mode| KINDS.map(|kind| (mode, kind))) {
        let mut rig = tunnelling(1, mode);
        let of = |rig: &mut Rig, port| opened(&rig.outside(&kind.opening(port)), wrapping).source;
        let seen: HashSet<_> = (4000..4100).map(|port| of(&mut rig, port)).collect();
        assert_eq!(seen, HashSet::from(sources(kind.ipv6)));
    }
}

#[test]
fn the_endpoints_family_is_the_outer_one_whatever_is_within() {
    for ((mode, wrapping), kind) in MODES.into_iter().flat_map(|mode| KINDS.map(|kind| (mode, kind))) {
        let mut rig = tunnelling(1, mode);
        let other = Kind { ipv6: !kind.ipv6, ..kind };
        rig.change(|port| {
            for (n, endpoint) in (1..).zip(&mut port.endpoints) {
                endpoint.address = Kind { ipv6: !port.key.ipv6, ..kind }.backend(n).ip();
            }
        });
        let sent = kind.opening(4100);
        let got = opened(&rig.outside(&sent), wrapping);
        assert_eq!(got.endpoint.is_ipv6(), other.ipv6);
        assert_eq!(got.inner, within(&sent, got.endpoint));
    }
}

#[test]
fn packets_without_a_flow_and_errors_about_replies_go_the_same_way() {
    for ((mode, wrapping), kind) in MODES.into_iter().flat_map(|mode| [TCP4, TCP6].map(|kind| (mode, kind))) {
        let (mut knows, mut forgot) = (tunnelling(1, mode), tunnelling(1, mode));
        let midway = kind.opening(4200).with_flags(ACK);
        let there = opened(&knows.outside(&kind.opening(4200)), wrapping);
        let got = opened(&forgot.outside(&midway), wrapping);
        assert_eq!((got.inner, got.source), (within(&midway, there.endpoint), there.source));
        for part in parts(&Segment { payload: vec![4; 600], ..midway.clone() }, 7, 176) {
            let [knows, forgot] =
                [&mut knows, &mut forgot].map(|rig| opened(&rig.process(0, OUTSIDE, false, &part), wrapping));
            assert_eq!((forgot.inner, forgot.endpoint, forgot.source), (knows.inner, there.endpoint, there.source));
        }
        let reply = Segment { payload: vec![3; 600], ..midway.back() };
        let error = too_big(&reply.bytes()[14..], OUTSIDE_MAC, 200);
        for rig in [&mut knows, &mut forgot] {
            let got = opened(&rig.process(0, OUTSIDE, false, &error), wrapping);
            let header = if kind.ipv6 { 54 } else { 34 };
            assert_eq!(got.endpoint, there.endpoint);
            assert_eq!(got.inner[header..], error[header..]);
        }
    }
}

#[test]
fn what_fits_counts_what_goes_around_it() {
    for ((mode, wrapping), kind) in MODES.into_iter().flat_map(|mode| KINDS.map(|kind| (mode, kind))) {
        let mut rig = tunnelling(1, mode);
        let fits = 1500 - around(wrapping, kind.ipv6);
        let headers = if kind.ipv6 { 40 } else { 20 } + if kind.opening(1).tcp.is_some() { 20 } else { 8 };
        let of =
            |len: u16| Segment { payload: vec![1; usize::from(len - headers)], ..kind.opening(4300).with_flags(ACK) };
        opened(&rig.outside(&kind.opening(4300)), wrapping);
        assert_eq!(opened(&rig.outside(&of(fits)), wrapping).inner.len(), 14 + usize::from(fits));
        for port in [4300, 4301] {
            let long = Segment { src: std::net::SocketAddr::new(kind.client(7), port), ..of(fits + 1) };
            let out = rig.outside(&long);
            assert_eq!(out.verdict, Verdict::Tx(OUTSIDE));
            let (_, _, from, to, _) = icmp(&out);
            assert_eq!((from, to), (kind.vip(), long.src.ip()));
            let at = if kind.ipv6 { 60 } else { 40 };
            assert_eq!(out.frame[at..at + 2], fits.to_be_bytes());
        }
    }
}

#[test]
fn errors_about_outer_packets_are_told_to_the_client() {
    for ((mode, wrapping), kind) in MODES.into_iter().flat_map(|mode| KINDS.map(|kind| (mode, kind))) {
        let mut rig = tunnelling(2, mode);
        let sent = Segment { payload: vec![5; 700], ..kind.opening(4400) };
        let first = rig.outside(&sent);
        let got = opened(&first, wrapping);
        let error = too_big(&first.frame[14..], INSIDE_MAC, 500);
        rig.process(1, INSIDE, false, &error).handed_to(0);
        let before = rig.now;
        rig.wait(Duration::from_secs(1));
        let out = rig.process(0, INSIDE, false, &error);
        assert_eq!(out.verdict, Verdict::Tx(OUTSIDE));
        assert_eq!((&out.frame[..6], &out.frame[6..12]), (&CLIENT_MAC.0[..], &OUTSIDE_MAC.0[..]));
        let (_, _, from, to, quote) = icmp(&out);
        assert_eq!((from, to), (kind.vip(), sent.src.ip()));
        assert_eq!(quote, got.inner[14..14 + 500 - usize::from(around(wrapping, kind.ipv6))]);
        let at = if kind.ipv6 { 60 } else { 40 };
        assert_eq!(out.frame[at..at + 2], (1400 - around(wrapping, kind.ipv6)).to_be_bytes());
        let mut records = Vec::new();
        assert_eq!(rig.workers[0].flows.export(0, 1024, &mut records), None);
        assert_eq!(records[0].last_seen, before.tick(), "an error refreshes nothing");
        // About a packet that was never sent there, and one of no flow.
        let strange = Segment { src: std::net::SocketAddr::new(kind.client(9), 4400), ..sent.clone() };
        let mut other = first.frame.clone();
        let inner = 14 + usize::from(around(wrapping, kind.ipv6));
        let strange = strange.bytes();
        other[inner..].copy_from_slice(&strange[14..]);
        let error = too_big(&other[14..], INSIDE_MAC, 500);
        rig.process(0, INSIDE, false, &error).dropped(DropReason::Icmp);
        let mut moved = first.frame.clone();
        let last_of_destination = if kind.ipv6 { 53 } else { 33 };
        moved[last_of_destination] = 200;
        let error = too_big(&moved[14..], INSIDE_MAC, 500);
        rig.process(0, INSIDE, false, &error).dropped(DropReason::Icmp);
        // Less than tells whose packet it was.
        let error = too_big(&first.frame[14..], INSIDE_MAC, usize::from(around(wrapping, kind.ipv6)) + 20);
        rig.process(0, INSIDE, false, &error).dropped(DropReason::Truncated);
    }
}

/// Parts that were sent within others: what they are together, and what is around each.
fn unpacked(came: &[Vec<u8>], wrapping: Wrapping) -> (Segment, Vec<Opened>) {
    let open = |frame: &Vec<u8>| {
        assert!(frame.len() <= 1514, "{} octets", frame.len());
        opened(&Outcome { verdict: Verdict::Tx(INSIDE), frame: frame.clone() }, wrapping)
    };
    let opened: Vec<Opened> = came.iter().map(open).collect();
    let inner: Vec<Vec<u8>> = opened.iter().map(|opened| opened.inner.clone()).collect();
    (together(&inner), opened)
}

/// What receivers spread a flow's packets by: addresses, and ports or the flow label.
fn spread_by(frame: &[u8], wrapping: Wrapping, ipv6: bool) -> Vec<u8> {
    let (start, l4) = if ipv6 { (14, 54) } else { (26, 34) };
    let label_and_addresses =
        if ipv6 { [&frame[start + 1..start + 4], &frame[22..54]].concat() } else { frame[26..34].to_vec() };
    let ports = if wrapping == Wrapping::Gue { &frame[l4..l4 + 4] } else { &[] };
    [&label_and_addresses, ports].concat()
}

#[test]
fn each_part_of_a_datagram_goes_in_a_packet_of_its_own_the_flows_way() {
    for ((mode, wrapping), kind) in MODES.into_iter().flat_map(|mode| [UDP4, UDP6].map(|kind| (mode, kind))) {
        for workers in [1, 2] {
            let mut rig = tunnelling(workers, mode);
            let sent = Segment { payload: (0..1000).map(|n| (n % 251) as u8).collect(), ..kind.opening(4800) };
            let whole = rig.deliver(0, OUTSIDE, &kind.opening(4800).bytes()).all_by(INSIDE);
            let way = spread_by(&whole[0], wrapping, kind.ipv6);
            for (n, order) in orders(6).into_iter().enumerate() {
                let frames = ordered(&parts(&sent, n as u32, 176), &order);
                let came = rig.deliver_all(OUTSIDE, &frames, |n| (n % workers) as u8).all_by(INSIDE);
                let (got, opened) = unpacked(&came, wrapping);
                assert_eq!((got.src, got.dst, &got.payload), (sent.src, sent.dst, &sent.payload));
                assert_eq!(id_of(&opened[0].inner), n as u32);
                assert!(came.iter().all(|frame| spread_by(frame, wrapping, kind.ipv6) == way), "one flow, one queue");
                // A router may cut them: none is taken for a part of another.
                let outer: HashSet<_> = came.iter().map(|frame| frame[18..20].to_vec()).collect();
                assert!(kind.ipv6 || outer.len() == came.len(), "{outer:?}");
            }
        }
    }
}

#[test]
fn what_may_be_cut_is_cut_for_its_tunnel_before_it_goes_into_it() {
    for (mode, wrapping) in MODES {
        let mut rig = tunnelling(1, mode);
        let opening = UDP4.opening(4900);
        rig.outside(&opening);
        let of = |len: usize| Segment { payload: (0..len).map(|n| (n % 251) as u8).collect(), ..opening.clone() };
        for len in [1460, 1472] {
            let sent = of(len);
            let came = rig.deliver(0, OUTSIDE, &cuttable(&sent, 9)).all_by(INSIDE);
            let (got, opened) = unpacked(&came, wrapping);
            assert_eq!((came.len(), &got.payload, id_of(&opened[0].inner)), (2, &sent.payload, 9));
            assert!(
                opened.iter().all(|piece| (piece.source, piece.endpoint) == (opened[0].source, opened[0].endpoint))
            );
        }
        // Parts as well, in any order; the last fits.
        let sent = of(1900);
        for (n, order) in orders(2).into_iter().enumerate() {
            let came = rig.deliver_all(OUTSIDE, &ordered(&parts(&sent, n as u32, 1480), &order), |_| 0).all_by(INSIDE);
            assert_eq!((came.len(), unpacked(&came, wrapping).0.payload), (3, sent.payload.clone()));
        }
        assert_eq!((rig.workers[0].counters().packets_cut, rig.workers[0].counters().too_bigs_sent), (6, 0));
        // IPv6 is never cut: who sent it is told, once.
        rig.outside(&UDP6.opening(4901));
        let long = Segment { payload: vec![1; 1900], ..UDP6.opening(4901) };
        let came = rig.deliver_all(OUTSIDE, &parts(&long, 9, 1448), |_| 0);
        assert_eq!((came.sent.len(), came.dropped), (1, vec![DropReason::FragmentUnmatched]));
        assert_eq!(rig.workers[0].counters().too_bigs_sent, 1);
    }
}

#[test]
fn an_error_about_a_translated_datagram_to_the_port_of_tunnels_is_told_to_its_client() {
    for kind in [UDP4, UDP6] {
        let mut rig = Rig::with(2, 1024);
        // Tunnels start at the SNAT addresses where nothing else is said.
        rig.config.tunnels = vec![kind.snat().into()];
        rig.change(|port| port.endpoints.iter_mut().for_each(|endpoint| endpoint.port = GUE_PORT));
        let packet = kind.opening_of(9, 4600).bytes().split_off(14);
        let cut = packet[..30].to_vec();
        for (n, payload) in
            [b"question?".to_vec(), vec![], vec![0x45], vec![0x60; 90], cut, packet].into_iter().enumerate()
        {
            let sent = Segment { payload, ..kind.opening(4600 + n as u16) };
            let out = rig.outside(&sent);
            assert_eq!(out.sent(INSIDE).dst.port(), GUE_PORT);
            let error = too_big(&out.frame[14..], INSIDE_MAC, 500);
            rig.process(1, INSIDE, false, &error).handed_to(0);
            let back = rig.process(0, INSIDE, false, &error);
            assert_eq!(back.verdict, Verdict::Tx(OUTSIDE));
            let (_, _, from, to, quote) = icmp(&back);
            assert_eq!((from, to), (kind.vip(), sent.src.ip()));
            let header = if kind.ipv6 { 40 } else { 20 };
            assert_eq!(quote[header..], sent.bytes()[14 + header..]);
        }
        // Those about tunnels to the same endpoints are about what is within.
        rig.change(|port| {
            port.mode = Mode::DsrGue;
            port.endpoints.iter_mut().for_each(|endpoint| endpoint.port = 80);
        });
        let sent = kind.opening(4700);
        let out = rig.outside(&sent);
        opened(&out, Wrapping::Gue);
        let error = too_big(&out.frame[14..], INSIDE_MAC, 500);
        let handed = rig.process(1, INSIDE, false, &error);
        handed.handed_to(0);
        let (_, _, from, to, quote) = icmp(&rig.process(0, INSIDE, false, &error));
        assert_eq!((from, to), (kind.vip(), sent.src.ip()));
        assert_eq!(quote[quote.len() - 9..], *b"question?");
    }
}

#[test]
fn without_a_source_of_the_endpoints_family_or_room_nothing_is_sent() {
    for ((mode, _), kind) in MODES.into_iter().flat_map(|mode| KINDS.map(|kind| (mode, kind))) {
        let mut rig = tunnelling(1, mode);
        let roomy = |ip| Hop {
            state: HopState::Resolved,
            port: INSIDE,
            dst_mac: backend_mac(ip),
            src_mac: INSIDE_MAC,
            mtu: 9000,
            on_link: false,
            tags: wire::Tags::NONE,
        };
        rig.hops = (1..=3).map(|n| kind.backend(n).ip()).map(|ip| (ip, roomy(ip))).collect();
        rig.rebuild();
        let headers = if kind.ipv6 { 62 } else { 42 };
        let long = Segment { payload: vec![1; ROOM - headers - 12], ..kind.opening(4500) };
        rig.outside(&long).dropped(DropReason::NoRoom);
        rig.config.tunnels.retain(|address| address.is_v4() == kind.ipv6);
        rig.rebuild();
        rig.outside(&kind.opening(4501)).dropped(DropReason::NoTunnelSource);
    }
}
