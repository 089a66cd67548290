//! Modes in which endpoints answer clients past us: what they get, what is known of flows whose replies nobody sees here,
//! and where packets go that have none.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lb::flow::FlowState;
use lb::model::{Algorithm, Mode};
use lb::tables::{Hop, HopState};
use lb::{DropReason, Verdict};

use crate::errors::{router, too_big};
use crate::packet::{ACK, FIN_ACK, RST, Segment};
use crate::parts::{parts, together};
use crate::rig::{
    CLIENT_MAC, INSIDE, INSIDE_MAC, KINDS, Kind, OUTSIDE, OUTSIDE_MAC, Rig, TCP4, TCP6, UDP4, UDP6, backend_mac,
};

/// A gateway whose endpoints serve the Service's own port in this mode.
pub fn direct(workers: usize, flows: usize, mode: Mode) -> Rig {
    let mut rig = Rig::with(workers, flows);
    rig.change(|port| {
        port.mode = mode;
        port.endpoints.iter_mut().for_each(|endpoint| endpoint.port = 80);
    });
    rig
}

/// Which endpoint a frame is for.
fn endpoint_of(kind: Kind, segment: &Segment) -> IpAddr {
    (1..=3).map(|n| kind.backend(n).ip()).find(|ip| backend_mac(*ip) == segment.dst_mac).expect("an endpoint's MAC")
}

/// The same packet on the endpoint's link.
fn for_endpoint(sent: &Segment, mac: wire::MacAddr) -> Segment {
    Segment { src_mac: INSIDE_MAC, dst_mac: mac, ttl: sent.ttl - 1, ..sent.clone() }
}

fn states(rig: &Rig) -> Vec<FlowState> {
    let mut records = Vec::new();
    assert_eq!(rig.workers[0].flows.export(0, 1024, &mut records), None);
    records.iter().map(|record| record.state).collect()
}

#[test]
fn on_their_link_endpoints_get_what_the_client_sent() {
    let mut rig = direct(1, 1024, Mode::DsrL2);
    for kind in KINDS {
        let sent = kind.opening(4000);
        let first = rig.outside(&sent);
        let mac = backend_mac(endpoint_of(kind, &first.sent(INSIDE)));
        assert_eq!(first.frame, for_endpoint(&sent, mac).bytes());
        // The general way, and then the steady one.
        for _ in 0..3 {
            let more = Segment { payload: b"an odd number of octets".to_vec(), ..sent.with_flags(ACK) };
            let out = rig.outside(&more);
            assert_eq!((out.verdict, out.frame), (Verdict::Tx(INSIDE), for_endpoint(&more, mac).bytes()));
        }
    }
    assert_eq!(rig.workers[0].counters.flows_opened, 4);
}

#[test]
fn a_checksum_of_zero_stays_and_ffff_does_too() {
    let mut rig = direct(1, 1024, Mode::DsrL2);
    for checksum in [[0, 0], [0xff, 0xff]] {
        let mut bytes = UDP4.opening(4100).bytes();
        bytes[40..42].copy_from_slice(&checksum);
        let out = rig.process(0, OUTSIDE, false, &bytes);
        assert_eq!((out.verdict, &out.frame[40..42]), (Verdict::Tx(INSIDE), &checksum[..]));
    }
}

#[test]
fn a_connection_is_followed_by_what_its_client_sends() {
    for kind in [TCP4, TCP6] {
        let mut rig = direct(1, 1024, Mode::DsrL2);
        let sent = kind.opening(4200);
        let step = |rig: &mut Rig, segment: &Segment, state| {
            rig.outside(segment).sent(INSIDE);
            assert_eq!(states(rig), [state]);
        };
        step(&mut rig, &sent, FlowState::Opening);
        step(&mut rig, &sent, FlowState::Opening);
        step(&mut rig, &sent.with_flags(ACK), FlowState::Established);
        // An hour of silence is nothing to a connection.
        rig.wait(Duration::from_secs(7000));
        rig.workers[0].housekeep(rig.now, &rig.tables);
        step(&mut rig, &sent.with_flags(ACK), FlowState::Established);
        step(&mut rig, &sent.with_flags(RST), FlowState::Reset);
        step(&mut rig, &sent.with_flags(ACK), FlowState::Established);
        step(&mut rig, &sent.with_flags(FIN_ACK), FlowState::Finished);
        // The endpoint may have more to send, and the client acknowledges.
        rig.wait(Duration::from_secs(200));
        rig.workers[0].housekeep(rig.now, &rig.tables);
        step(&mut rig, &sent.with_flags(ACK), FlowState::Finished);
        assert_eq!(rig.shared.sources.count(&Rig::addr(kind.client(7))), 0, "it counts no longer");
        step(&mut rig, &sent, FlowState::Opening);
        assert_eq!(rig.workers[0].counters.flows_opened, 2);
        step(&mut rig, &sent.with_flags(FIN_ACK), FlowState::Finished);
        rig.wait(Duration::from_secs(241));
        rig.workers[0].housekeep(rig.now, &rig.tables);
        assert_eq!(rig.shared.flows(), 0);
    }
}

#[test]
fn datagrams_are_taken_to_be_answered_from_the_second_on() {
    for kind in [UDP4, UDP6] {
        for (dns, first, second) in
            [(false, FlowState::Sent, FlowState::Sending), (true, FlowState::DnsDone, FlowState::Dns)]
        {
            let mut rig = direct(1, 1024, Mode::DsrL2);
            let number = if dns { 53 } else { 80 };
            rig.change(|port| {
                port.frontends.iter_mut().for_each(|frontend| frontend.port = number);
                port.endpoints.iter_mut().for_each(|endpoint| endpoint.port = number);
            });
            let sent = Segment { dst: SocketAddr::new(kind.vip(), number), ..kind.opening(4300) };
            for state in [first, second, second] {
                rig.outside(&sent).sent(INSIDE);
                assert_eq!(states(&rig), [state]);
            }
            let lasts = if dns { 30 } else { 300 };
            rig.wait(Duration::from_secs(lasts - 1));
            rig.workers[0].housekeep(rig.now, &rig.tables);
            assert_eq!(rig.shared.flows(), 1);
            rig.wait(Duration::from_secs(3));
            rig.workers[0].housekeep(rig.now, &rig.tables);
            assert_eq!(rig.shared.flows(), 0);
        }
    }
}

#[test]
fn packets_without_a_flow_go_where_it_would_be() {
    for kind in [TCP4, TCP6] {
        let (mut knows, mut forgot) = (direct(1, 1024, Mode::DsrL2), direct(1, 1024, Mode::DsrL2));
        let mut seen = HashSet::new();
        for port in 4400..4420 {
            let sent = kind.opening(port);
            let there = endpoint_of(kind, &knows.outside(&sent).sent(INSIDE));
            let midway = sent.with_flags(ACK);
            let out = forgot.outside(&midway);
            assert_eq!(out.frame, for_endpoint(&midway, backend_mac(there)).bytes());
            seen.insert(there);
        }
        assert_eq!((seen.len(), forgot.shared.flows()), (3, 0));
        assert_eq!(forgot.workers[0].counters.stateless_forwarded, 20);
        // Packets of flows that are known stay where they are, whatever is chosen now.
        let midway = |rig: &mut Rig, port| rig.outside(&kind.opening(port).with_flags(ACK)).sent(INSIDE).dst_mac;
        let before: Vec<_> = (4400..4420).map(|port| midway(&mut knows, port)).collect();
        knows.change(|port| port.endpoints.truncate(1));
        for (port, mac) in (4400..4420).zip(before) {
            assert_eq!(midway(&mut knows, port), mac);
        }
    }
}

#[test]
fn packets_in_parts_without_a_flow_go_where_it_would_be() {
    for kind in [TCP4, TCP6] {
        let [mut knows, mut forgot] = [(); 2].map(|()| direct(2, 1024, Mode::DsrL2));
        for port in 4400..4420 {
            let sent = kind.opening(port);
            let there = knows.deliver(0, OUTSIDE, &sent.bytes()).all_by(INSIDE);
            let midway = Segment { payload: (0..1000).map(|n| n as u8).collect(), ..sent.with_flags(ACK) };
            // The first one comes late, each by another queue.
            let mut cut = parts(&midway, port.into(), 176);
            cut.rotate_left(4);
            let came = forgot.deliver_all(OUTSIDE, &cut, |n| n as u8 % 2).all_by(INSIDE);
            let got = together(&came);
            assert_eq!(came.len(), cut.len());
            assert_eq!(got.bytes(), for_endpoint(&midway, Segment::read(&there[0]).dst_mac).bytes());
        }
        assert_eq!(forgot.shared.flows(), 0);
        // Where the hash alone does not tell, nothing goes on.
        forgot.change(|port| port.algorithm = Algorithm::RoundRobin);
        let cut = parts(&Segment { payload: vec![1; 1000], ..kind.opening(4420).with_flags(ACK) }, 1, 176);
        assert!(forgot.deliver_all(OUTSIDE, &cut, |_| 0).sent.iter().all(|(port, _)| *port == OUTSIDE));
    }
}

#[test]
fn where_chance_or_turns_decide_a_packet_without_a_flow_is_reset() {
    let mut rig = direct(1, 1024, Mode::DsrL2);
    rig.change(|port| port.algorithm = Algorithm::RoundRobin);
    for kind in [TCP4, TCP6] {
        let back = rig.outside(&kind.opening(4500).with_flags(ACK)).sent(OUTSIDE);
        assert!(back.tcp.unwrap().flags.contains(RST));
    }
    // With affinity the source alone decides, and what was remembered.
    rig.change(|port| port.affinity = Some(Duration::from_secs(100)));
    for kind in [TCP4, TCP6] {
        let first = rig.outside(&kind.opening(4501)).sent(INSIDE);
        let other = rig.outside(&kind.opening(4502).with_flags(ACK)).sent(INSIDE);
        assert_eq!(first.dst_mac, other.dst_mac);
    }
}

#[test]
fn source_ranges_hold_for_packets_without_a_flow_too() {
    let mut rig = direct(1, 1024, Mode::DsrL2);
    rig.change(|port| port.source_ranges = [("203.0.113.0".parse().unwrap(), 24)].into());
    for kind in [TCP4, TCP6] {
        rig.outside(&kind.opening(4600).with_flags(ACK)).dropped(DropReason::SourceRange);
    }
}

#[test]
fn a_full_table_lets_packets_go_where_their_flow_would_and_other_services_have_their_flows() {
    let mut rig = direct(1, 64, Mode::DsrL2);
    for port in 0..200 {
        let sent = TCP4.opening(5000 + port);
        let there = rig.outside(&sent).sent(INSIDE).dst_mac;
        assert_eq!(rig.outside(&sent.with_flags(ACK)).sent(INSIDE).dst_mac, there);
    }
    assert_eq!(rig.shared.flows(), 64);
    // Those that were put out find their way.
    for port in 0..200 {
        rig.outside(&TCP4.opening(5000 + port).with_flags(ACK)).sent(INSIDE);
    }
    // Flows that cannot do without come in where these were.
    rig.change(|port| port.mode = if port.key.ipv6 { Mode::Nat } else { Mode::DsrL2 });
    rig.wait(Duration::from_secs(1));
    for port in 0..30 {
        rig.outside(&TCP6.opening(5000 + port)).sent(INSIDE);
        rig.wait(Duration::from_millis(10));
    }
    assert_eq!(states(&rig).iter().filter(|state| **state == FlowState::Opening).count(), 30);
    // Turns cannot be taken again: these flows stay, and no other comes in.
    let mut rig = direct(1, 64, Mode::DsrL2);
    rig.change(|port| port.algorithm = Algorithm::RoundRobin);
    for port in 0..64 {
        let sent = TCP4.opening(5000 + port);
        rig.outside(&sent).sent(INSIDE);
        rig.outside(&sent.with_flags(ACK)).sent(INSIDE);
    }
    assert_eq!(rig.outside(&TCP4.opening(6000)).verdict, Verdict::Tx(OUTSIDE), "it is told");
    assert_eq!(states(&rig), [FlowState::Established; 64]);
}

#[test]
fn errors_about_what_an_endpoint_sent_reach_it_with_and_without_its_flow() {
    for known in [true, false] {
        let mut rig = direct(1, 1024, Mode::DsrL2);
        for kind in KINDS {
            let sent = kind.opening(4700);
            let there = if known {
                rig.outside(&sent).sent(INSIDE).dst_mac
            } else {
                direct(1, 1024, Mode::DsrL2).outside(&sent).sent(INSIDE).dst_mac
            };
            let reply = Segment { payload: vec![3; 600], ..sent.back().with_flags(ACK) };
            for len in [48, 500] {
                let error = too_big(&reply.bytes()[14..], OUTSIDE_MAC, len);
                let out = rig.process(0, OUTSIDE, false, &error);
                assert_eq!(out.verdict, Verdict::Tx(INSIDE), "{kind:?} known {known}");
                // All of it but MACs, TTL and (IPv4) the header's checksum.
                assert_eq!(out.frame[..6], there.0);
                let header = if kind.ipv6 { 14 + 40 } else { 14 + 20 };
                assert_eq!(out.frame[header..], error[header..]);
                let addresses = if kind.ipv6 { 22..54 } else { 26..34 };
                assert_eq!(out.frame[addresses.clone()], error[addresses]);
                let source = crate::answers::icmp(&out).2;
                assert_eq!(source, router(kind.ipv6));
            }
        }
    }
}

#[test]
fn packets_of_a_flow_and_errors_about_it_go_to_the_worker_that_has_it() {
    let mut rig = direct(2, 1024, Mode::DsrL2);
    for kind in KINDS {
        let sent = kind.opening(4800);
        rig.outside(&sent).sent(INSIDE);
        rig.process(1, OUTSIDE, false, &sent.with_flags(ACK).bytes()).handed_to(0);
        let reply = Segment { payload: vec![3; 600], ..sent.back().with_flags(ACK) };
        rig.process(1, OUTSIDE, false, &too_big(&reply.bytes()[14..], OUTSIDE_MAC, 100)).handed_to(0);
    }
}

#[test]
fn what_does_not_fit_the_endpoints_link_is_answered_in_the_name_of_the_frontend() {
    for kind in KINDS {
        let mut rig = direct(1, 1024, Mode::DsrL2);
        let narrow = |ip| Hop {
            state: HopState::Resolved,
            port: INSIDE,
            dst_mac: backend_mac(ip),
            src_mac: INSIDE_MAC,
            mtu: 1400,
            on_link: true,
            tags: wire::Tags::NONE,
        };
        rig.hops = (1..=3).map(|n| kind.backend(n).ip()).map(|ip| (ip, narrow(ip))).collect();
        rig.rebuild();
        let long = Segment { payload: vec![0; 1400], ..kind.opening(4900).with_flags(ACK) };
        // Without a flow, and of one.
        for _ in 0..2 {
            let out = rig.outside(&long);
            assert_eq!(out.verdict, Verdict::Tx(OUTSIDE));
            let (.., source, target, _) = crate::answers::icmp(&out);
            assert_eq!((source, target), (kind.vip(), long.src.ip()));
            rig.outside(&kind.opening(4900));
        }
    }
}

#[test]
fn an_endpoint_behind_a_router_is_not_sent_to() {
    for kind in KINDS {
        let mut rig = direct(1, 1024, Mode::DsrL2);
        let (sent, _) = rig.open(kind, 5000);
        rig.outside(&sent.with_flags(ACK)).sent(INSIDE);
        let far = |ip| Hop {
            state: HopState::Resolved,
            port: INSIDE,
            dst_mac: backend_mac(ip),
            src_mac: INSIDE_MAC,
            mtu: 1500,
            on_link: false,
            tags: wire::Tags::NONE,
        };
        rig.hops = (1..=3).map(|n| kind.backend(n).ip()).map(|ip| (ip, far(ip))).collect();
        rig.rebuild();
        rig.outside(&sent.with_flags(ACK)).dropped(DropReason::NotOnLink);
        rig.outside(&kind.opening(5001)).dropped(DropReason::NotOnLink);
        rig.outside(&kind.opening(5002).with_flags(ACK)).dropped(DropReason::NotOnLink);
        assert_eq!(rig.shared.flows(), 1);
        // Other modes have no need of it.
        rig.change(|port| port.mode = Mode::Nat);
        rig.open(kind, 5003);
    }
}

#[test]
fn what_needs_another_port_or_is_for_the_hosts_own_address_is_translated() {
    let mut rig = direct(1, 1024, Mode::DsrL2);
    for kind in KINDS {
        let node_port = Segment { dst: SocketAddr::new(kind.host(), 30080), ..kind.opening(5100) };
        let got = rig.outside(&node_port).sent(INSIDE);
        assert_eq!((got.src.ip(), got.dst.port()), (kind.snat(), 80));
    }
    rig.change(|port| port.frontends.iter_mut().for_each(|frontend| frontend.port = 80));
    for kind in KINDS {
        let own = Segment { dst: SocketAddr::new(kind.host(), 80), ..kind.opening(5101) };
        assert_eq!(rig.outside(&own).sent(INSIDE).src.ip(), kind.snat());
    }
    rig.change(|port| port.endpoints.iter_mut().for_each(|endpoint| endpoint.port = 8080));
    for kind in KINDS {
        let got = rig.open(kind, 5102).1;
        assert_eq!((got.src.ip(), got.dst.port()), (kind.snat(), 8080));
    }
    for kind in [TCP4, TCP6] {
        let back = rig.outside(&kind.opening(5103).with_flags(ACK)).sent(OUTSIDE);
        assert!(back.tcp.unwrap().flags.contains(RST), "translated, it needs its flow");
        assert_eq!(back.dst_mac, CLIENT_MAC);
    }
}
