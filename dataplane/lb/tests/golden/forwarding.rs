//! Forward and reply packets of both modes, families and protocols, octet by octet what etherparse would have built.

use std::net::SocketAddr;

use lb::Verdict;
use lb::model::Mode;

use crate::packet::{ACK, FIN_ACK, SYN_ACK, Segment, checksum_at, checksums_hold};
use crate::rig::{
    CLIENT_MAC, INSIDE, INSIDE_MAC, KINDS, Kind, OUTSIDE, OUTSIDE_MAC, Rig, TCP4, TCP6, UDP4, UDP6, backend_mac,
};

/// What the endpoint must get of what the client sent.
fn expected_forward(sent: &Segment, snat: SocketAddr, backend: SocketAddr) -> Segment {
    Segment {
        src_mac: INSIDE_MAC,
        dst_mac: backend_mac(backend.ip()),
        src: snat,
        dst: backend,
        ttl: sent.ttl - 1,
        ..sent.clone()
    }
}

/// What the client must get of what the endpoint sent.
fn expected_reply(reply: &Segment, client: SocketAddr, vip: SocketAddr) -> Segment {
    Segment { src_mac: OUTSIDE_MAC, dst_mac: CLIENT_MAC, src: vip, dst: client, ttl: reply.ttl - 1, ..reply.clone() }
}

fn answer(got: &Segment) -> Segment {
    let mut reply = got.back().with_flags(SYN_ACK);
    reply.payload = b"answer".to_vec();
    reply
}

fn goes_both_ways(rig: &mut Rig, kind: Kind, mode: Mode) {
    let sent = kind.opening(40_000);
    let forward = rig.outside(&sent);
    let got = forward.sent(INSIDE);
    assert!((1..=3).any(|n| kind.backend(n) == got.dst), "{got:?}");
    match mode {
        Mode::Nat => assert_eq!(got.src.ip(), kind.snat()),
        _ => assert_eq!(got.src, sent.src),
    }
    assert_eq!(forward.frame, expected_forward(&sent, got.src, got.dst).bytes());

    let reply = answer(&got);
    let back = rig.inside(&reply);
    assert_eq!(back.verdict, Verdict::Tx(OUTSIDE));
    assert_eq!(back.frame, expected_reply(&reply, sent.src, sent.dst).bytes());

    let mut data = sent.with_flags(ACK);
    data.payload = b"an odd number of octets".to_vec();
    let again = rig.outside(&data);
    assert_eq!(again.verdict, Verdict::Tx(INSIDE));
    assert_eq!(again.frame, expected_forward(&data, got.src, got.dst).bytes());
}

#[test]
fn mode_nat_changes_both_ends_and_back() {
    let mut rig = Rig::new();
    for kind in KINDS {
        goes_both_ways(&mut rig, kind, Mode::Nat);
    }
    assert_eq!(rig.workers[0].counters.flows_opened, 4);
    assert_eq!(rig.shared.flows(), 4);
}

#[test]
fn mode_preserve_keeps_the_client() {
    let mut rig = Rig::new();
    rig.change(|port| port.mode = Mode::Preserve);
    for kind in KINDS {
        goes_both_ways(&mut rig, kind, Mode::Preserve);
    }
}

#[test]
fn in_mode_preserve_an_endpoint_that_is_its_own_client_gets_nat() {
    let mut rig = Rig::new();
    rig.change(|port| {
        port.mode = Mode::Preserve;
        port.endpoints.truncate(1);
    });
    let src = SocketAddr::new(TCP4.backend(1).ip(), 5000);
    let sent = Segment { src, dst_mac: INSIDE_MAC, ..TCP4.opening(1) };
    let got = rig.inside(&sent).sent(INSIDE);
    assert_eq!((got.src.ip(), got.dst), (TCP4.snat(), TCP4.backend(1)));
}

#[test]
fn a_frontend_on_a_host_address_is_served() {
    let mut rig = Rig::new();
    for kind in KINDS {
        let sent = Segment { dst: SocketAddr::new(kind.host(), 30080), ..kind.opening(41_000) };
        let got = rig.outside(&sent).sent(INSIDE);
        let back = rig.inside(&answer(&got)).sent(OUTSIDE);
        assert_eq!((back.src, back.dst), (sent.dst, sent.src));
    }
}

#[test]
fn a_udp_checksum_of_zero_stays_zero() {
    let mut rig = Rig::new();
    let mut bytes = UDP4.opening(40_001).bytes();
    let at = checksum_at(&bytes);
    bytes[at..at + 2].fill(0);
    let out = rig.process(0, OUTSIDE, false, &bytes);
    assert_eq!(out.verdict, Verdict::Tx(INSIDE));
    assert_eq!(out.frame[at..at + 2], [0, 0]);
    assert_eq!(Segment::read_unchecked(&out.frame).src.ip(), UDP4.snat());
}

#[test]
fn damage_is_carried_through_not_repaired() {
    let mut rig = Rig::new();
    let mut bytes = TCP4.opening(40_002).bytes();
    let at = checksum_at(&bytes);
    bytes[at] ^= 0x55;
    let out = rig.process(0, OUTSIDE, false, &bytes);
    assert_eq!(out.verdict, Verdict::Tx(INSIDE));
    assert!(!checksums_hold(&out.frame));
}

/// The frame as a local stack with checksum offload leaves it: the folded sum of the pseudo-header, not complemented.
fn with_partial_checksum(segment: &Segment) -> Vec<u8> {
    let mut bytes = segment.bytes();
    let at = checksum_at(&bytes);
    let (l3, l4) = (14, if segment.src.is_ipv4() { 34 } else { 54 });
    let addresses = if segment.src.is_ipv4() { &bytes[l3 + 12..l3 + 20] } else { &bytes[l3 + 8..l3 + 40] };
    let words = addresses.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum::<u32>();
    let protocol = if segment.tcp.is_some() { 6 } else { 17 };
    let mut sum = words + protocol + (bytes.len() - l4) as u32;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    bytes[at..at + 2].copy_from_slice(&(sum as u16).to_be_bytes());
    bytes
}

#[test]
fn a_partial_checksum_of_a_virtual_device_is_completed() {
    let mut rig = Rig::new();
    rig.config.ports[usize::from(OUTSIDE.0)].virtual_device = true;
    rig.rebuild();
    for kind in KINDS {
        let mut sent = kind.opening(40_003);
        let out = rig.process(0, OUTSIDE, false, &with_partial_checksum(&sent));
        assert_eq!(out.verdict, Verdict::Tx(INSIDE));
        assert!(checksums_hold(&out.frame), "{kind:?}");
        sent.payload = b"more".to_vec();
        assert!(checksums_hold(&rig.process(0, OUTSIDE, false, &with_partial_checksum(&sent)).frame));
        assert!(checksums_hold(&rig.outside(&sent).frame), "complete ones are recognised too");
    }
}

#[test]
fn a_partial_checksum_of_a_real_nic_stays_broken() {
    let mut rig = Rig::new();
    for kind in KINDS {
        let out = rig.process(0, OUTSIDE, false, &with_partial_checksum(&kind.opening(40_004)));
        assert_eq!(out.verdict, Verdict::Tx(INSIDE));
        assert!(!checksums_hold(&out.frame), "{kind:?}");
    }
}

#[test]
fn replies_follow_the_client_to_its_new_hop() {
    let mut rig = Rig::new();
    for kind in [TCP4, UDP6] {
        let (sent, got) = rig.open(kind, 40_005);
        let router = wire::MacAddr([2, 0, 0, 0, 9, 9]);
        rig.inside(&answer(&got));
        let moved = Segment { src_mac: router, ..sent.with_flags(ACK) };
        rig.process(0, INSIDE, false, &moved.bytes()).sent(INSIDE);
        let back = rig.inside(&answer(&got)).sent(INSIDE);
        assert_eq!((back.dst_mac, back.src_mac), (router, INSIDE_MAC));
    }
    assert_eq!(rig.workers[0].counters.client_hops_changed, 2);
}

#[test]
fn padding_behind_the_packet_is_cut_to_the_shortest_frame() {
    let mut rig = Rig::new();
    let mut bytes = TCP4.opening(40_006).bytes();
    bytes.resize(200, 0xee);
    let out = rig.process(0, OUTSIDE, false, &bytes);
    assert_eq!(out.verdict, Verdict::Tx(INSIDE));
    assert_eq!(out.frame.len(), 60);
}

#[test]
fn a_connection_goes_through_its_whole_life() {
    let mut rig = Rig::new();
    for kind in [TCP4, TCP6] {
        let (sent, got) = rig.open(kind, 40_007);
        rig.inside(&got.back().with_flags(SYN_ACK)).sent(OUTSIDE);
        rig.outside(&sent.with_flags(ACK)).sent(INSIDE);
        rig.outside(&sent.with_flags(FIN_ACK)).sent(INSIDE);
        rig.inside(&got.back().with_flags(FIN_ACK)).sent(OUTSIDE);
        rig.outside(&sent.with_flags(ACK)).sent(INSIDE);
    }
    assert_eq!(rig.shared.flows(), 2, "closed flows linger");
    rig.wait(std::time::Duration::from_secs(11));
    rig.workers[0].housekeep(rig.now, &rig.tables);
    assert_eq!(rig.shared.flows(), 0);
    assert_eq!(rig.workers[0].counters().flows_closed, 2);
}
