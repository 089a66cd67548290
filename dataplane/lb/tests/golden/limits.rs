//! What one source may take, and how who is refused is told.

use std::net::SocketAddr;
use std::time::Duration;

use lb::state::REFUSALS;
use lb::tables::SnatAddress;
use lb::{DropReason, Verdict};

use crate::answers::icmp;
use crate::packet::{ACK, FIN_ACK, SYN_ACK, Segment, Tcp};
use crate::rig::{INSIDE, KINDS, Kind, OUTSIDE, Outcome, Rig, TCP4, TCP6};

/// Whether the sender is told, in the name of where it sent to, that it may not (RFC 5508 REQ-8, RFC 4443 section 3.1).
pub fn is_prohibited(outcome: &Outcome, sent: &Segment) {
    assert_eq!(outcome.verdict, Verdict::Tx(OUTSIDE));
    let (kind, code, src, dst, quote) = icmp(outcome);
    assert_eq!((kind, code), if sent.src.is_ipv4() { (3, 13) } else { (1, 1) });
    assert_eq!((src, dst), (sent.dst.ip(), sent.src.ip()));
    assert_eq!(quote, sent.bytes()[14..], "the packet is quoted as it came");
}

#[test]
fn who_is_refused_is_told_so_as_often_as_may_be_and_all_are_counted() {
    for kind in KINDS {
        let mut rig = Rig::new();
        rig.config.flows_per_source = 1;
        rig.rebuild();
        rig.open(kind, 1000);
        let before = rig.workers[0].counters;
        let verdicts: Vec<Verdict> = (0..1000).map(|n| rig.outside(&kind.opening(2000 + n)).verdict).collect();
        let told = verdicts.iter().filter(|verdict| **verdict == Verdict::Tx(OUTSIDE)).count();
        let silent = verdicts.iter().filter(|verdict| **verdict == Verdict::Drop(DropReason::SourceLimit)).count();
        assert_eq!((told as u64, told + silent), (REFUSALS.1, 1000));
        let after = rig.workers[0].counters;
        assert_eq!(after.refused_source_limit - before.refused_source_limit, 1000);
        assert_eq!(after.prohibiteds_sent - before.prohibiteds_sent, REFUSALS.1);
        // What paths need is told all the same.
        let beyond = Segment { ttl: 1, ..kind.opening(1000) };
        assert_eq!(rig.outside(&beyond).verdict, Verdict::Tx(OUTSIDE));
    }
}

#[test]
fn who_opens_too_fast_waits_and_flows_that_are_open_do_not() {
    let mut rig = Rig::new();
    rig.config.new_flows_per_source = 20;
    rig.rebuild();
    for kind in KINDS {
        // Both protocols of a family count for one source.
        rig.wait(Duration::from_secs(10));
        for port in 0..20 {
            rig.open(kind, 1000 + port);
        }
        rig.outside(&kind.opening(1020)).dropped(DropReason::SourceRate);
        rig.outside(&kind.opening(1000)).sent(INSIDE);
        rig.outside(&kind.opening_of(8, 1020)).sent(INSIDE);
        rig.wait(Duration::from_millis(51));
        rig.outside(&kind.opening(1020)).sent(INSIDE);
        rig.outside(&kind.opening(1021)).dropped(DropReason::SourceRate);
    }
    // An IPv6 customer has a /64.
    let SocketAddr::V6(mut neighbour) = TCP6.opening(1).src else { panic!("IPv6") };
    neighbour.set_ip("2001:db8:c:7:ffff::9".parse().unwrap());
    rig.outside(&Segment { src: neighbour.into(), ..TCP6.opening(2000) }).dropped(DropReason::SourceRate);
    rig.config.new_flows_per_source = 0;
    rig.rebuild();
    for port in 0..100 {
        rig.open(TCP4, 3000 + port);
    }
}

#[test]
fn a_flood_of_ten_tables_ends_no_connection_that_is_established() {
    const FLOWS: usize = 1024;
    let mut rig = Rig::with(1, FLOWS);
    let kept: Vec<_> =
        [TCP4, TCP6].into_iter().flat_map(|kind| (0..300).map(move |port| (kind, 1000 + port))).collect();
    for &(kind, port) in &kept {
        let (sent, got) = rig.open(kind, port);
        rig.inside(&got.back().with_flags(SYN_ACK)).sent(OUTSIDE);
        rig.outside(&sent.with_flags(ACK)).sent(INSIDE);
    }
    for n in 0..10 * FLOWS as u32 {
        let kind = [TCP4, TCP6][n as usize % 2];
        let port = (n / 500) as u16 + 10_000;
        rig.outside(&kind.opening_of((n % 250) as u8, port)).sent(INSIDE);
        if n % 16 == 0 {
            // One that means it gets through its handshake meanwhile.
            let (sent, got) = rig.open(kind, 40_000 + (n % 64) as u16);
            rig.inside(&got.back().with_flags(SYN_ACK)).sent(OUTSIDE);
            rig.outside(&sent.with_flags(ACK)).sent(INSIDE);
            rig.outside(&sent.with_flags(crate::packet::RST)).sent(INSIDE);
        }
        rig.now = lb::Now(rig.now.0 + 10_000);
    }
    assert!(rig.shared.flows() <= FLOWS as u64);
    for (kind, port) in kept {
        rig.outside(&kind.opening(port).with_flags(ACK)).sent(INSIDE);
    }
}

/// A gateway with so many SNAT ports towards one endpoint.
fn narrow(ports: u16) -> Rig {
    let snat = [TCP4, TCP6].into_iter().enumerate().map(|(index, kind)| SnatAddress {
        address: kind.snat().into(),
        index: index as u16,
        first_port: 2048,
        last_port: 2047 + ports,
        dedicated: true,
    });
    let mut rig = Rig::with_snat(1, 1024, snat.collect());
    rig.change(|port| port.endpoints.truncate(1));
    rig
}

/// A client's SYN with this sequence number.
fn syn(kind: Kind, client: u8, port: u16, seq: u32) -> Segment {
    let opening = kind.opening_of(client, port);
    Segment { tcp: opening.tcp.map(|tcp| Tcp { seq, ..tcp }), ..opening }
}

/// A connection that ends; the client's last sequence number is 5002. Gives its SNAT port.
fn ended(rig: &mut Rig, kind: Kind, port: u16, endpoint_first: bool) -> u16 {
    let sent = syn(kind, 7, port, 5000);
    let got = rig.outside(&sent).sent(INSIDE);
    let reply = |flags| got.back().with_flags(flags);
    let at = |flags, seq| Segment { tcp: Some(Tcp { flags, seq, ack: 2 }), ..sent.clone() };
    rig.inside(&reply(SYN_ACK)).sent(OUTSIDE);
    rig.outside(&at(ACK, 5001)).sent(INSIDE);
    if endpoint_first {
        rig.inside(&reply(FIN_ACK)).sent(OUTSIDE);
        rig.outside(&at(FIN_ACK, 5001)).sent(INSIDE);
        rig.inside(&reply(ACK)).sent(OUTSIDE);
    } else {
        rig.outside(&at(FIN_ACK, 5001)).sent(INSIDE);
        rig.inside(&reply(FIN_ACK)).sent(OUTSIDE);
        rig.outside(&at(ACK, 5002)).sent(INSIDE);
    }
    got.src.port()
}

#[test]
fn a_port_in_the_endpoints_time_wait_is_passed_over_for_a_minute_by_syns_that_it_would_not_pass() {
    for kind in [TCP4, TCP6] {
        let mut rig = narrow(4);
        let held: Vec<u16> = (0..3).map(|n| ended(&mut rig, kind, 3000 + n, true)).collect();
        // The closed flows are gone after ten seconds, the TIME_WAITs are not.
        rig.wait(Duration::from_secs(11));
        rig.workers[0].housekeep(rig.now, &rig.tables);
        assert_eq!(rig.shared.flows(), 0);
        let first = rig.outside(&syn(kind, 8, 4000, 100)).sent(INSIDE).src.port();
        assert!(!held.contains(&first), "the one that is free");
        let later = rig.outside(&syn(kind, 8, 4001, 6000)).sent(INSIDE).src.port();
        assert!(held.contains(&later), "at once by a SYN beyond what was sent");
        // Where there is no other, a client that may have to try again is better than one that is refused.
        let early = rig.outside(&syn(kind, 8, 4002, 101)).sent(INSIDE).src.port();
        assert!(held.contains(&early) && early != later);
        let mut rig = narrow(4);
        let held: Vec<u16> = (0..2).map(|n| ended(&mut rig, kind, 3000 + n, true)).collect();
        rig.wait(Duration::from_secs(61));
        rig.workers[0].housekeep(rig.now, &rig.tables);
        let all: Vec<u16> = (0..4).map(|n| rig.outside(&syn(kind, 8, 4000 + n, 100)).sent(INSIDE).src.port()).collect();
        assert!(held.iter().all(|port| all.contains(port)), "{all:?} after a minute");
    }
}

#[test]
fn a_closed_flow_makes_way_when_no_other_port_is_left() {
    for kind in [TCP4, TCP6] {
        let mut rig = narrow(4);
        // The clients closed first: no TIME_WAIT at the endpoint.
        let ports: Vec<u16> = (0..4).map(|n| ended(&mut rig, kind, 3000 + n, false)).collect();
        assert_eq!(rig.shared.flows(), 4);
        for n in 0..4 {
            let port = rig.outside(&syn(kind, 8, 4000 + n, 100)).sent(INSIDE).src.port();
            assert!(ports.contains(&port));
        }
        assert_eq!(rig.shared.flows(), 4);
        let refused = syn(kind, 8, 5000, 100);
        is_prohibited(&rig.outside(&refused), &refused);
        rig.outside(&syn(kind, 8, 4000, 100)).sent(INSIDE);
    }
}

#[test]
fn the_port_of_a_half_open_flow_that_made_way_is_free_at_once() {
    for kind in [TCP4, TCP6] {
        let mut rig = Rig::with(1, 16);
        for n in 0..2000 {
            rig.outside(&syn(kind, 8, 4000 + n, 100)).sent(INSIDE);
        }
        assert_eq!(rig.workers[0].counters.refused_snat_exhausted, 0);
    }
}
