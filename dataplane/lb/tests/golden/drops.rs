//! Every reason to drop a frame that is decided here fires.

use std::net::SocketAddr;

use etherparse::{Icmpv4Type, IpNumber, PacketBuilder};
use lb::directory::Claim;
use lb::flow::FlowKey;
use lb::model::NoEndpoint;
use lb::tables::{Hop, HopState, SnatAddress};
use lb::{DropReason, Verdict, WorkerId};
use wire::{MacAddr, Port, Ports};

use crate::limits::is_prohibited;
use crate::packet::{ACK, RST, Segment, checksum_at};
use crate::rig::{CLIENT_MAC, INSIDE, INSIDE_MAC, KINDS, OUTSIDE, OUTSIDE_MAC, Rig, TCP4, TCP6, UDP4, backend_mac};

fn raw(rig: &mut Rig, bytes: &[u8]) -> Verdict {
    rig.process(0, OUTSIDE, false, bytes).verdict
}

#[test]
fn frames_that_contradict_themselves() {
    let mut rig = Rig::new();
    let whole = TCP4.opening(1).bytes();
    for len in [0, 1, 13, 14, 30, 40, 53] {
        assert_eq!(raw(&mut rig, &whole[..len]), Verdict::Drop(DropReason::Truncated), "{len} octets");
    }
    let mut version = whole.clone();
    version[14] = 0x35;
    assert_eq!(raw(&mut rig, &version), Verdict::Drop(DropReason::BadHeader));
    let mut checksum = whole.clone();
    checksum[24] ^= 1;
    assert_eq!(raw(&mut rig, &checksum), Verdict::Drop(DropReason::BadChecksum));
    let mut vlan = whole;
    vlan[12..14].copy_from_slice(&[0x81, 0]);
    assert_eq!(raw(&mut rig, &vlan), Verdict::Drop(DropReason::UnknownProtocol));
    let mut routed = TCP6.opening(1).bytes();
    routed[20] = 43;
    assert_eq!(raw(&mut rig, &routed), Verdict::Drop(DropReason::ExtensionHeaders));
}

fn ipv4(protocol: IpNumber, flags: [u8; 2], to: [u8; 4]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let link = PacketBuilder::ethernet2(CLIENT_MAC.0, OUTSIDE_MAC.0);
    link.ipv4([192, 0, 2, 7], to, 64).write(&mut bytes, protocol, &[0; 64]).unwrap();
    bytes[20..22].copy_from_slice(&flags);
    bytes[24..26].fill(0);
    let sum: u32 = bytes[14..34].chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    bytes[24..26].copy_from_slice(&(!(((sum & 0xffff) + (sum >> 16)) as u16)).to_be_bytes());
    bytes
}

#[test]
fn what_is_not_handled() {
    let mut rig = Rig::new();
    let vip = [10, 0, 0, 10];
    assert_eq!(raw(&mut rig, &ipv4(IpNumber::DCCP, [0, 0], vip)), Verdict::Drop(DropReason::UnknownProtocol));
    assert_eq!(raw(&mut rig, &ipv4(IpNumber::DCCP, [0, 0], [10, 0, 0, 1])), Verdict::Pass, "the host's");
    assert_eq!(raw(&mut rig, &ipv4(IpNumber::DCCP, [0, 0], [10, 9, 9, 9])), Verdict::Drop(DropReason::NotOurs));
    let mut error = Vec::new();
    let unreachable = Icmpv4Type::DestinationUnreachable(etherparse::icmpv4::DestUnreachableHeader::Port);
    let link = PacketBuilder::ethernet2(CLIENT_MAC.0, OUTSIDE_MAC.0);
    link.ipv4([192, 0, 2, 7], vip, 64).icmpv4(unreachable).write(&mut error, &[0x45; 28]).unwrap();
    assert_eq!(raw(&mut rig, &error), Verdict::Drop(DropReason::Icmp));
}

#[test]
fn a_damaged_packet_that_nobody_serves_is_not_answered() {
    let mut rig = Rig::new();
    for kind in KINDS {
        // No flow, no Service there.
        let sent = Segment { payload: vec![1, 2, 3], ..kind.opening(1).with_flags(ACK) };
        let sent = Segment { dst: SocketAddr::new(kind.vip(), 81), ..sent };
        assert_eq!(rig.outside(&sent).verdict, Verdict::Tx(OUTSIDE));
        let mut damaged = sent.bytes();
        *damaged.last_mut().unwrap() ^= 4;
        rig.process(0, OUTSIDE, false, &damaged).dropped(DropReason::BadChecksum);
        // A NIC of a virtual device leaves it to the next one to complete the sum.
        let mut partial = sent.bytes();
        let at = checksum_at(&partial);
        let whole = u16::from_be_bytes([partial[at], partial[at + 1]]);
        partial[at..at + 2].copy_from_slice(&[0, 0]);
        if kind == UDP4 {
            assert_eq!(raw(&mut rig, &partial), Verdict::Tx(OUTSIDE), "it has none");
        } else {
            assert_eq!(raw(&mut rig, &partial), Verdict::Drop(DropReason::BadChecksum), "{whole} before");
        }
    }
}

#[test]
fn a_frame_for_another_machine_on_the_link_is_neither_answered_nor_opens_a_flow() {
    let mut rig = Rig::new();
    let another = MacAddr([2, 0, 0, 0, 0, 9]);
    for kind in KINDS {
        let opening = Segment { dst_mac: another, ..kind.opening(1) };
        rig.outside(&opening).dropped(DropReason::NotOurs);
        rig.outside(&Segment { dst: SocketAddr::new(kind.vip(), 81), ..opening }).dropped(DropReason::NotOurs);
        // Of a flow: who answers is this machine.
        let (sent, _) = rig.open(kind, 2);
        let ended = rig.outside(&Segment { dst_mac: another, ttl: 1, ..sent });
        assert_eq!((ended.verdict, &ended.frame[6..12]), (Verdict::Tx(OUTSIDE), &OUTSIDE_MAC.0[..]));
    }
    let mut ping = Vec::new();
    let link = PacketBuilder::ethernet2(CLIENT_MAC.0, another.0);
    link.ipv4([192, 0, 2, 7], [10, 0, 0, 10], 64).icmpv4_echo_request(1, 1).write(&mut ping, b"abc").unwrap();
    assert_eq!(raw(&mut rig, &ping), Verdict::Drop(DropReason::NotOurs));
}

#[test]
fn sources_that_cannot_be() {
    let mut rig = Rig::new();
    let v4 =
        ["10.0.0.10", "10.0.0.11", "10.0.0.1", "10.1.0.100", "0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"];
    let v6 = ["2001:db8::10", "2001:db8::1", "2001:db8:b::100", "::", "::1", "ff02::1"];
    for kind in KINDS {
        for source in if kind.ipv6 { &v6[..] } else { &v4[..] } {
            let src = SocketAddr::new(source.parse().unwrap(), 80);
            rig.outside(&Segment { src, ..kind.opening(1) }).dropped(DropReason::Martian);
        }
        let group = wire::MacAddr([3, 0, 0, 0, 0, 1]);
        rig.outside(&Segment { src_mac: group, ..kind.opening(1) }).dropped(DropReason::Martian);
    }
    assert_eq!(rig.shared.flows(), 0);
}

#[test]
fn packets_for_others() {
    let mut rig = Rig::new();
    for kind in KINDS {
        let dst = SocketAddr::new(kind.client(99), 80);
        rig.outside(&Segment { dst, ..kind.opening(1) }).dropped(DropReason::NotOurs);
        let dst = SocketAddr::new(kind.snat(), 2000);
        rig.inside(&Segment { dst, src: kind.backend(1), dst_mac: INSIDE_MAC, ..kind.opening(1) })
            .dropped(DropReason::NoFlow);
        let dst = SocketAddr::new(kind.snat(), 99);
        rig.inside(&Segment { dst, src: kind.backend(1), dst_mac: INSIDE_MAC, ..kind.opening(1) })
            .dropped(DropReason::NoFlow);
    }
    rig.outside(&TCP4.opening(1).with_flags(RST)).dropped(DropReason::NoFlow);
}

#[test]
fn no_endpoint_where_the_service_says_drop() {
    let mut rig = Rig::new();
    rig.change(|port| {
        port.endpoints.clear();
        port.no_endpoint = NoEndpoint::Drop;
    });
    for kind in KINDS {
        rig.outside(&kind.opening(1)).dropped(DropReason::NoEndpoint);
    }
}

#[test]
fn replies_of_our_own_over_their_rate() {
    let mut rig = Rig::new();
    for (kind, ttl, port, reason) in [
        (TCP4, 64, 99, DropReason::RejectRateLimited),
        (UDP4, 64, 99, DropReason::RejectRateLimited),
        (UDP4, 1, 80, DropReason::TtlExceeded),
    ] {
        rig.wait(std::time::Duration::from_secs(1));
        let sent = Segment { ttl, dst: SocketAddr::new(kind.vip(), port), ..kind.opening(1) };
        let verdicts: Vec<_> = (0..300).map(|_| rig.outside(&sent).verdict).collect();
        assert_eq!(verdicts.iter().filter(|v| **v == Verdict::Tx(OUTSIDE)).count(), 100);
        assert_eq!(verdicts.iter().filter(|v| **v == Verdict::Drop(reason)).count(), 200);
    }
}

#[test]
fn source_ranges_bind_the_opening_packet_at_load_balancer_frontends() {
    let mut rig = Rig::new();
    for kind in KINDS {
        let (sent, _) = rig.open(kind, 1);
        rig.change(|port| {
            let len = if port.key.ipv6 { 48 } else { 24 };
            let kind = if port.key.ipv6 { TCP6 } else { TCP4 };
            port.source_ranges = [(kind.backend(0).ip(), len)].into();
        });
        rig.outside(&kind.opening(2)).dropped(DropReason::SourceRange);
        rig.outside(&sent.with_flags(ACK)).sent(INSIDE);
        let node_port = SocketAddr::new(kind.host(), 30080);
        rig.outside(&Segment { dst: node_port, ..kind.opening(2) }).sent(INSIDE);
        rig.change(|port| port.source_ranges = [].into());
    }
}

#[test]
fn a_full_table_of_established_flows() {
    let mut rig = Rig::with(1, 16);
    for port in 0..16 {
        let (sent, got) = rig.open(TCP4, 100 + port);
        rig.inside(&got.back().with_flags(crate::packet::SYN_ACK)).sent(OUTSIDE);
        rig.outside(&sent.with_flags(ACK)).sent(INSIDE);
    }
    let refused = TCP4.opening(200);
    is_prohibited(&rig.outside(&refused), &refused);
    assert_eq!(rig.workers[0].counters.refused_flow_table_full, 1);
    rig.outside(&TCP4.opening(100).with_flags(ACK)).sent(INSIDE);
    assert_eq!(rig.shared.flows(), 16);
}

#[test]
fn a_full_table_of_half_open_flows_makes_room() {
    let mut rig = Rig::with(1, 16);
    for port in 0..40 {
        rig.open(TCP4, 100 + port);
    }
    assert_eq!((rig.shared.flows(), rig.workers[0].counters().flows_evicted), (16, 24));
}

fn key(sent: &Segment, kind: crate::rig::Kind) -> FlowKey {
    FlowKey {
        src: sent.src.ip().into(),
        dst: sent.dst.ip().into(),
        ports: Ports::new(Port::new(sent.src.port()), Port::new(sent.dst.port())),
        protocol: kind.protocol,
    }
}

#[test]
fn a_full_bucket_of_the_directory() {
    let mut rig = Rig::with(2, 64);
    let sent = TCP4.opening(1);
    let claimed = fill_bucket(&rig, &sent);
    is_prohibited(&rig.outside(&sent), &sent);
    assert_eq!(rig.workers[0].counters.refused_directory_full, 1);
    rig.shared.directory.release(claimed[0], WorkerId(0));
    rig.outside(&sent).sent(INSIDE);
}

#[test]
fn who_is_the_only_worker_opens_what_finds_no_room_in_the_directory() {
    let mut rig = Rig::new();
    let sent = TCP4.opening(1);
    fill_bucket(&rig, &sent);
    rig.outside(&sent).sent(INSIDE);
    rig.outside(&sent).sent(INSIDE);
    assert_eq!(rig.workers[0].counters.flows_opened, 1);
}

/// Has worker 0 claim other tags in the directory's bucket of this opening until that is full; gives their hashes.
pub fn fill_bucket(rig: &Rig, sent: &Segment) -> Vec<u64> {
    let hash = rig.workers[0].flows.hash(&key(sent, TCP4)).0;
    // Other tags in the same bucket: the low bits choose the bucket, the high ones are the tag.
    let others =
        (1..).map(|n: u64| hash ^ (n << 48)).take_while(|&h| rig.shared.directory.claim(h, WorkerId(0)) == Claim::Won);
    let claimed: Vec<u64> = others.take(10_000).collect();
    assert!(claimed.len() < 10_000);
    claimed
}

#[test]
fn no_snat_port_left_towards_an_endpoint() {
    let snat = |index, kind: crate::rig::Kind| SnatAddress {
        address: kind.snat().into(),
        index,
        first_port: 2048,
        last_port: 2051,
        dedicated: true,
    };
    let mut rig = Rig::with_snat(1, 1024, vec![snat(0, TCP4), snat(1, TCP6)]);
    rig.change(|port| port.endpoints.truncate(1));
    for kind in KINDS {
        for n in 0..8 {
            let sent = kind.opening(n);
            let outcome = rig.outside(&sent);
            if n < 4 { drop(outcome.sent(INSIDE)) } else { is_prohibited(&outcome, &sent) }
        }
    }
    assert_eq!((rig.shared.flows(), rig.workers[0].counters.refused_snat_exhausted), (16, 16));
}

#[test]
fn a_source_with_more_than_its_share() {
    let mut rig = Rig::new();
    rig.config.flows_per_source = 4;
    rig.rebuild();
    for kind in [TCP4, TCP6] {
        for port in 0..4 {
            rig.open(kind, 100 + port);
        }
        let refused = kind.opening(104);
        is_prohibited(&rig.outside(&refused), &refused);
        rig.outside(&kind.opening_of(8, 104)).sent(INSIDE);
    }
}

#[test]
fn next_hops_that_cannot_be_used() {
    for kind in KINDS {
        let mut rig = Rig::new();
        rig.open(kind, 1);
        for (state, mtu, reason) in [
            (HopState::Unresolved, 1500, DropReason::NextHopUnresolved),
            (HopState::NoRoute, 1500, DropReason::NoRoute),
        ] {
            rig.hops = (1..=3)
                .map(|n| kind.backend(n).ip())
                .map(|ip| {
                    (
                        ip,
                        Hop {
                            state,
                            port: INSIDE,
                            dst_mac: backend_mac(ip),
                            src_mac: OUTSIDE_MAC,
                            mtu,
                            on_link: true,
                            tags: wire::Tags::NONE,
                        },
                    )
                })
                .collect();
            rig.rebuild();
            let payload = vec![0; 100];
            rig.outside(&Segment { payload: payload.clone(), ..kind.opening(1).with_flags(ACK) }).dropped(reason);
            rig.outside(&Segment { payload, ..kind.opening(2) }).dropped(reason);
        }
        assert_eq!(rig.shared.flows(), 1);
    }
}
