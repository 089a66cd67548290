//! What becomes of flows when their endpoint, their connection or the source's share changes.

use std::net::SocketAddr;
use std::time::Duration;

use lb::handshake::BOUNDS_US;
use lb::model::{Algorithm, EndpointState, Mode};
use lb::tables::BackendState;
use lb::{DropReason, Verdict};

use crate::packet::{ACK, RST, RST_ACK, SYN_ACK, Segment};
use crate::rig::{INSIDE, KINDS, OUTSIDE, Rig, TCP4, TCP6, UDP4, UDP6};

fn remove(rig: &mut Rig, endpoint: SocketAddr) {
    rig.change(|port| port.endpoints.retain(|e| SocketAddr::new(e.address, e.port) != endpoint));
}

#[test]
fn tcp_stays_with_a_removed_endpoint_and_udp_moves_to_another() {
    let mut rig = Rig::new();
    for kind in KINDS {
        let (sent, got) = rig.open(kind, 3000);
        rig.inside(&got.back().with_flags(SYN_ACK)).sent(OUTSIDE);
        remove(&mut rig, got.dst);
        let after = rig.outside(&sent.with_flags(ACK)).sent(INSIDE);
        assert_eq!(after.dst == got.dst, sent.tcp.is_some(), "{kind:?}");
    }
    assert_eq!(rig.workers[0].counters.flows_moved, 2);
    assert_eq!(rig.shared.flows(), 4);
}

#[test]
fn udp_stays_with_a_removed_endpoint_when_no_other_serves() {
    let mut rig = Rig::new();
    let flows = [UDP4, UDP6].map(|kind| rig.open(kind, 3001));
    rig.change(|port| port.endpoints.clear());
    for (sent, got) in flows {
        assert_eq!(rig.outside(&sent).sent(INSIDE).dst, got.dst);
    }
}

#[test]
fn what_a_removed_endpoint_still_says_reaches_the_client_and_keeps_no_flow_there() {
    for kind in [UDP4, UDP6] {
        let mut rig = Rig::new();
        let (sent, got) = rig.open(kind, 3002);
        rig.inside(&got.back()).sent(OUTSIDE);
        remove(&mut rig, got.dst);
        for _ in 0..3 {
            let heard = rig.inside(&got.back()).sent(OUTSIDE);
            assert_eq!((heard.src, heard.dst), (sent.dst, sent.src));
            rig.wait(Duration::from_secs(90));
            rig.workers[0].housekeep(rig.now, &rig.tables);
        }
        assert_eq!((rig.workers[0].counters.flows_moved, rig.shared.flows()), (0, 1));
        rig.wait(Duration::from_secs(31));
        rig.workers[0].housekeep(rig.now, &rig.tables);
        assert_eq!(rig.shared.flows(), 0, "the client was silent for five minutes");
        let (sent, got) = rig.open(kind, 3003);
        remove(&mut rig, got.dst);
        assert_ne!(rig.outside(&sent).sent(INSIDE).dst, got.dst);
        rig.inside(&got.back()).dropped(DropReason::NoFlow);
    }
}

#[test]
fn a_draining_endpoint_keeps_its_flows_and_gets_no_new_ones() {
    let mut rig = Rig::new();
    for kind in KINDS {
        let (sent, got) = rig.open(kind, 3002);
        rig.change(|port| {
            for endpoint in &mut port.endpoints {
                if endpoint.address == got.dst.ip() {
                    endpoint.state = EndpointState::Draining;
                }
            }
        });
        assert_eq!(rig.outside(&sent.with_flags(ACK)).sent(INSIDE).dst, got.dst);
        for port in 3100..3130 {
            assert_ne!(rig.open(kind, port).1.dst, got.dst);
        }
    }
}

#[test]
fn a_tcp_flow_whose_drain_ended_is_reset() {
    let mut rig = Rig::new();
    for kind in [TCP4, TCP6] {
        let (sent, got) = rig.open(kind, 3003);
        remove(&mut rig, got.dst);
        let rows = rig.tables.backends.iter();
        rig.config.expired = rows.filter(|row| row.state == BackendState::Removed).map(|row| row.id).collect();
        rig.rebuild();
        let tcp = rig.outside(&sent.with_flags(ACK)).sent(OUTSIDE).tcp.unwrap();
        assert!(tcp.flags.contains(RST));
        rig.inside(&got.back().with_flags(ACK)).dropped(DropReason::NoFlow);
    }
    assert_eq!(rig.shared.flows(), 0);
}

#[test]
fn a_silent_flow_whose_drain_ended_is_over_too() {
    let mut rig = Rig::new();
    let flows = [TCP4, TCP6].map(|kind| rig.open(kind, 3003));
    for (_, got) in &flows {
        remove(&mut rig, got.dst);
    }
    rig.wait(Duration::from_secs(3));
    rig.workers[0].housekeep(rig.now, &rig.tables);
    assert_eq!(rig.shared.flows(), 2, "the drain goes on");
    let rows = rig.tables.backends.iter();
    rig.config.expired = rows.filter(|row| row.state == BackendState::Removed).map(|row| row.id).collect();
    rig.rebuild();
    rig.wait(Duration::from_secs(3));
    rig.workers[0].housekeep(rig.now, &rig.tables);
    assert_eq!(rig.shared.flows(), 0);
}

#[test]
fn a_syn_reopens_a_closed_flow() {
    let mut rig = Rig::new();
    for kind in [TCP4, TCP6] {
        let (sent, got) = rig.open(kind, 3004);
        rig.inside(&got.back().with_flags(SYN_ACK)).sent(OUTSIDE);
        rig.inside(&got.back().with_flags(RST_ACK)).sent(OUTSIDE);
        let opened = rig.workers[0].counters.flows_opened;
        let again = rig.outside(&sent).sent(INSIDE);
        assert_eq!(rig.workers[0].counters.flows_opened, opened + 1);
        // The endpoint's TIME_WAIT is of a connection of the same client.
        assert_eq!((again.src, again.dst), (got.src, got.dst), "another SNAT port");
        rig.outside(&sent).sent(INSIDE);
        assert_eq!(rig.workers[0].counters.flows_opened, opened + 1, "a retransmission opens nothing");
    }
    assert_eq!(rig.shared.flows(), 2);
}

#[test]
fn flows_end_when_they_are_idle_and_give_back_what_was_counted() {
    let mut rig = Rig::new();
    rig.config.flows_per_source = 8;
    rig.rebuild();
    let mut backends = Vec::new();
    for kind in KINDS {
        rig.open(kind, 3005);
        backends
            .extend(rig.tables.backends.iter().filter(|row| rig.shared.backend_connections(row.id) > 0).map(|r| r.id));
    }
    rig.wait(Duration::from_secs(7500));
    rig.workers[0].housekeep(rig.now, &rig.tables);
    assert_eq!((rig.shared.flows(), rig.workers[0].flows.len()), (0, 0));
    assert!(backends.iter().all(|id| rig.shared.backend_connections(*id) == 0));
    assert_eq!(rig.shared.sources.count(&Rig::addr(TCP4.client(7))), 0);
    assert!(KINDS.iter().all(|kind| {
        let sent = kind.opening(3005);
        let key = lb::flow::FlowKey {
            src: sent.src.ip().into(),
            dst: sent.dst.ip().into(),
            ports: wire::Ports::new(wire::Port::new(sent.src.port()), wire::Port::new(80)),
            protocol: kind.protocol,
        };
        rig.shared.directory.owner(rig.workers[0].flows.hash(&key).0).is_none()
    }));
}

#[test]
fn the_first_answer_to_a_syn_is_timed_and_no_other() {
    let mut rig = Rig::new();
    for (port, took, bucket) in [(3101, 70, 0), (3102, 900, 3), (3103, 30_000_000, BOUNDS_US.len())] {
        for kind in [TCP4, TCP6] {
            let before = rig.workers[0].handshakes;
            let (sent, got) = rig.open(kind, port);
            rig.wait(Duration::from_micros(took));
            rig.outside(&sent).sent(INSIDE);
            rig.inside(&got.back().with_flags(SYN_ACK)).sent(OUTSIDE);
            let after = rig.workers[0].handshakes;
            assert_eq!(after.buckets[bucket], before.buckets[bucket] + 1, "{took} us after the opening");
            assert!((after.sum_us - before.sum_us).abs_diff(took) <= 2, "{} us", after.sum_us - before.sum_us);
            rig.inside(&got.back().with_flags(SYN_ACK)).sent(OUTSIDE);
            rig.inside(&got.back().with_flags(ACK)).sent(OUTSIDE);
            assert_eq!(rig.workers[0].handshakes, after, "a repetition says nothing");
        }
    }
    let (_, got) = rig.open(UDP4, 3104);
    rig.inside(&got.back()).sent(OUTSIDE);
    assert_eq!(rig.workers[0].handshakes.count(), 6);
}

#[test]
fn a_scan_for_idle_flows_goes_in_short_steps_and_says_that_more_are_due() {
    let mut rig = Rig::with(1, 8192);
    for port in 0..5000 {
        rig.open(UDP4, 1024 + port);
    }
    rig.wait(Duration::from_secs(7500));
    let (mut steps, mut more) = (0, true);
    while more {
        let before = rig.shared.flows();
        more = rig.workers[0].housekeep(rig.now, &rig.tables);
        assert!(before - rig.shared.flows() <= 1024, "a burst may wait for a step");
        steps += 1;
    }
    assert_eq!(
        (steps, rig.shared.flows()),
        (5, 0),
        "2 s after the last scan a whole one is due, and no more than that"
    );
    rig.wait(Duration::from_micros(100));
    assert!(!rig.workers[0].housekeep(rig.now, &rig.tables));
}

#[test]
fn a_few_flows_of_a_large_table_are_looked_at_in_one_step() {
    let mut rig = Rig::with(1, 1 << 20);
    for port in 0..3 {
        rig.open(UDP4, 1024 + port);
    }
    rig.wait(Duration::from_secs(301));
    assert!(!rig.workers[0].housekeep(rig.now, &rig.tables), "slots that were never used are not due");
    assert_eq!(rig.shared.flows(), 0);
}

#[test]
fn a_refused_opening_leaves_nothing_behind() {
    let mut rig = Rig::new();
    rig.config.flows_per_source = 1;
    rig.rebuild();
    for kind in [TCP4, TCP6] {
        rig.open(kind, 3006);
        let before = (rig.shared.flows(), rig.shared.sources.count(&Rig::addr(kind.client(7))));
        for _ in 0..2000 {
            let outcome = rig.outside(&kind.opening(3007));
            assert!(matches!(outcome.verdict, Verdict::Tx(OUTSIDE) | Verdict::Drop(DropReason::SourceLimit)));
        }
        assert_eq!((rig.shared.flows(), rig.shared.sources.count(&Rig::addr(kind.client(7)))), before);
        rig.outside(&kind.opening_of(8, 3007)).sent(INSIDE);
    }
}

#[test]
fn endpoints_are_chosen_by_maglev_alike_in_every_process() {
    let choose = || {
        let mut rig = Rig::new();
        (0..200).map(|n| rig.open(TCP4, 4000 + n).1.dst).collect::<Vec<_>>()
    };
    let chosen = choose();
    assert_eq!(chosen, choose());
    assert!((1..=3).all(|n| chosen.iter().filter(|dst| **dst == TCP4.backend(n)).count() > 40));
}

#[test]
fn connections_are_counted_for_least_connections() {
    let mut rig = Rig::new();
    rig.change(|port| port.algorithm = Algorithm::LeastConnections);
    for port in 0..30 {
        rig.open(TCP4, 5000 + port);
    }
    let counts: Vec<u32> =
        rig.tables.backends.iter().map(|row| rig.shared.backend_connections(row.id)).filter(|n| *n > 0).collect();
    assert_eq!(counts, [10, 10, 10]);
    let service = rig.tables.frontends.get(&Rig::addr(TCP4.vip()), wire::Port::new(80), TCP4.protocol).unwrap();
    assert_eq!(rig.shared.service_opened(service.service), 30);
}

#[test]
fn in_mode_preserve_the_same_client_port_by_another_frontend_is_refused() {
    let mut rig = Rig::new();
    rig.change(|port| {
        port.mode = Mode::Preserve;
        port.endpoints.truncate(1);
    });
    for kind in KINDS {
        let (sent, got) = rig.open(kind, 3008);
        let other = Segment { dst: SocketAddr::new(kind.host(), 30080), ..sent.clone() };
        crate::limits::is_prohibited(&rig.outside(&other), &other);
        rig.inside(&got.back().with_flags(SYN_ACK)).sent(OUTSIDE);
    }
    assert_eq!(rig.shared.flows(), 4);
}
