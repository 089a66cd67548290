//! SCTP through the gateway: packets in and out in every mode, what becomes of associations, and packets that have none.

use std::net::SocketAddr;
use std::time::Duration;

use lb::flow::FlowState;
use lb::model::{EndpointState, Mode};
use lb::{DropReason, PortId, Verdict};
use proptest::prelude::*;

use crate::association::{
    ABORT, Association, CLIENTS, ENDPOINTS, HEARTBEAT, SCTP4, SCTPS, SHUTDOWN, SHUTDOWN_ACK, SHUTDOWN_COMPLETE, chunk,
    cookie_ack, cookie_echo, crcs, data, init, init_ack, l4, with_sctp,
};
use crate::errors::too_big;
use crate::judge::judge;
use crate::parts::part;
use crate::rig::{INSIDE, INSIDE_MAC, Kind, OUTSIDE, OUTSIDE_MAC, Outcome, Rig, backend_mac};

fn sent(out: &Outcome, port: PortId) -> Association {
    assert_eq!(out.verdict, Verdict::Tx(port));
    Association::read(&out.frame)
}

fn outside(rig: &mut Rig, packet: &Association) -> Outcome {
    rig.process(0, OUTSIDE, false, &packet.bytes())
}

fn inside(rig: &mut Rig, packet: &Association) -> Outcome {
    rig.process(0, INSIDE, false, &packet.bytes())
}

/// What the client sent and the endpoint got of an association that is there.
fn open(rig: &mut Rig, kind: Kind, port: u16) -> (Association, Association) {
    let opening = Association::opening(kind, port);
    let got = sent(&outside(rig, &opening), INSIDE);
    sent(&inside(rig, &got.back(CLIENTS, init_ack())), OUTSIDE);
    sent(&outside(rig, &opening.with(ENDPOINTS, cookie_echo())), INSIDE);
    sent(&inside(rig, &got.back(CLIENTS, cookie_ack())), OUTSIDE);
    assert_eq!(states(rig), [FlowState::Associated]);
    (opening.with(ENDPOINTS, data(1)), got.with(ENDPOINTS, data(1)))
}

fn states(rig: &Rig) -> Vec<FlowState> {
    let mut records = Vec::new();
    assert_eq!(rig.workers[0].flows.export(0, 1024, &mut records), None);
    records.iter().map(|record| record.state).collect()
}

#[test]
fn both_ways_packets_are_to_the_octet_what_the_other_side_would_have_sent() {
    for (mode, kind) in [Mode::Nat, Mode::Preserve].into_iter().flat_map(|mode| SCTPS.map(|kind| (mode, kind))) {
        let mut rig = with_sctp(1);
        rig.change(|port| port.mode = mode);
        let opening = Association::opening(kind, 40_000);
        let out = outside(&mut rig, &opening);
        let got = sent(&out, INSIDE);
        assert!((1..=3).any(|n| kind.backend(n) == got.dst), "the port too: {got:?}");
        match mode {
            Mode::Nat => assert_eq!(got.src.ip(), kind.snat()),
            _ => assert_eq!(got.src, opening.src),
        }
        let dst_mac = backend_mac(got.dst.ip());
        let ends = |packet: &Association| Association {
            src_mac: INSIDE_MAC,
            dst_mac,
            src: got.src,
            dst: got.dst,
            ttl: packet.ttl - 1,
            ..packet.clone()
        };
        assert_eq!(out.frame, ends(&opening).bytes());
        for chunks in [init_ack(), data(0), data(1), data(1300), chunk(HEARTBEAT, 0, &[7; 40])] {
            let reply = got.back(CLIENTS, chunks.clone());
            let back = inside(&mut rig, &reply);
            let (src_mac, dst_mac, src, dst) = (OUTSIDE_MAC, opening.src_mac, opening.dst, opening.src);
            let expected = Association { src_mac, dst_mac, src, dst, ttl: 63, ..reply };
            assert_eq!((back.verdict, back.frame), (Verdict::Tx(OUTSIDE), expected.bytes()));
            let more = opening.with(ENDPOINTS, [cookie_echo(), chunks].concat());
            let again = outside(&mut rig, &more);
            assert_eq!((again.verdict, again.frame), (Verdict::Tx(INSIDE), ends(&more).bytes()));
        }
        assert_eq!((rig.workers[0].counters.flows_opened, rig.shared.flows()), (1, 1));
    }
}

#[test]
fn where_endpoints_answer_clients_themselves_they_get_what_the_client_sent() {
    for (mode, around) in [(Mode::DsrL2, [0, 0]), (Mode::DsrIpip, [20, 40]), (Mode::DsrGue, [28, 48])] {
        for kind in SCTPS {
            let mut rig = with_sctp(1);
            rig.config.tunnels = ["10.1.0.200", "2001:db8:b::200"].map(|ip| Rig::addr(ip.parse().unwrap())).to_vec();
            rig.change(|port| {
                port.mode = mode;
                port.endpoints.iter_mut().for_each(|endpoint| endpoint.port = 80);
            });
            let opening = Association::opening(kind, 40_000);
            let steps = [
                (opening.clone(), FlowState::CookieWait),
                (opening.with(ENDPOINTS, cookie_echo()), FlowState::CookieEchoed),
                (opening.with(ENDPOINTS, data(1000)), FlowState::Associated),
                (opening.with(ENDPOINTS, chunk(SHUTDOWN, 0, &[0; 4])), FlowState::ShutdownSent),
                (opening.with(ENDPOINTS, chunk(SHUTDOWN_COMPLETE, 0, &[])), FlowState::Ended),
            ];
            for (packet, state) in steps {
                let out = outside(&mut rig, &packet);
                assert_eq!(out.verdict, Verdict::Tx(INSIDE));
                let inner = [&packet.bytes()[..14], &out.frame[14 + around[usize::from(kind.ipv6)]..]].concat();
                let expected = Association { ttl: 63, ..packet };
                assert_eq!(inner, expected.bytes(), "{mode:?} {kind:?}");
                assert_eq!(states(&rig), [state]);
            }
            // Without a flow it goes where the flow would be; an INIT begins another.
            let other = Association { src: SocketAddr::new(kind.client(7), 40_001), ..opening.with(5, data(3)) };
            assert_eq!(outside(&mut rig, &other).verdict, Verdict::Tx(INSIDE));
            assert_eq!(rig.workers[0].counters.stateless_forwarded, 1);
            assert_eq!(outside(&mut rig, &opening).verdict, Verdict::Tx(INSIDE));
            assert_eq!((states(&rig), rig.workers[0].counters.flows_opened), (vec![FlowState::CookieWait], 2));
        }
    }
}

#[test]
fn a_wrong_crc_stays_wrong_and_none_is_completed_where_a_nic_was_to() {
    for kind in SCTPS {
        let mut rig = with_sctp(1);
        let (client, got) = open(&mut rig, kind, 5);
        let mut damaged = client.with(ENDPOINTS, data(100)).bytes();
        *damaged.last_mut().unwrap() ^= 1;
        let at = l4(&damaged) + 8;
        let was = crcs(&damaged);
        let out = rig.process(0, OUTSIDE, false, &damaged);
        assert_eq!(out.verdict, Verdict::Tx(INSIDE));
        let is = crcs(&out.frame);
        assert_eq!(was.0 ^ was.1, is.0 ^ is.1, "the same damage");
        let mut none = client.with(ENDPOINTS, data(100)).bytes();
        none[at..at + 4].fill(0);
        let kept = rig.process(0, OUTSIDE, false, &none);
        assert_eq!((kept.verdict, crcs(&kept.frame).0), (Verdict::Tx(INSIDE), 0), "RFC 9653");
        rig.config.ports.iter_mut().for_each(|port| port.virtual_device = true);
        rig.rebuild();
        sent(&rig.process(0, OUTSIDE, false, &none), INSIDE);
        let mut reply = got.back(CLIENTS, data(100)).bytes();
        reply[at..at + 4].fill(0);
        sent(&rig.process(0, INSIDE, false, &reply), OUTSIDE);
        sent(&outside(&mut rig, &client), INSIDE);
        assert_ne!(crcs(&rig.process(0, OUTSIDE, false, &damaged).frame).0, 0);
    }
}

#[test]
fn an_association_lives_and_ends_and_its_flow_does_after_it() {
    for kind in SCTPS {
        let mut rig = with_sctp(1);
        let (client, got) = open(&mut rig, kind, 7);
        let idle = |rig: &mut Rig, seconds: u64| {
            rig.wait(Duration::from_secs(seconds));
            rig.workers[0].housekeep(rig.now, &rig.tables);
            states(rig)
        };
        assert_eq!(idle(&mut rig, 200), [FlowState::Associated]);
        sent(&outside(&mut rig, &client.with(ENDPOINTS, chunk(HEARTBEAT, 0, &[1; 36]))), INSIDE);
        assert_eq!(idle(&mut rig, 200), [FlowState::Associated]);
        sent(&inside(&mut rig, &got.back(CLIENTS, chunk(SHUTDOWN, 0, &[0; 4]))), OUTSIDE);
        assert_eq!(idle(&mut rig, 2), [FlowState::ShutdownSent]);
        sent(&outside(&mut rig, &client.with(ENDPOINTS, chunk(SHUTDOWN_ACK, 0, &[]))), INSIDE);
        assert_eq!(idle(&mut rig, 2), [FlowState::ShutdownAckSent]);
        sent(&inside(&mut rig, &got.back(CLIENTS, chunk(SHUTDOWN_COMPLETE, 0, &[]))), OUTSIDE);
        assert_eq!(rig.shared.sources.count(&Rig::addr(kind.client(7))), 0, "it counts no longer");
        assert_eq!(idle(&mut rig, 9), [FlowState::Ended]);
        // The same client's next one opens a flow of its own, from the same port.
        let again = sent(&outside(&mut rig, &Association::opening(kind, 7)), INSIDE);
        assert_eq!((again.src, rig.workers[0].counters.flows_opened), (got.src, 2));
        assert_eq!(states(&rig), [FlowState::CookieWait]);
        assert_eq!(idle(&mut rig, 11), []);
        open(&mut rig, kind, 8);
        assert_eq!(idle(&mut rig, 211), []);
    }
}

#[test]
fn an_abort_with_the_right_tag_ends_a_flow_and_others_are_delivered() {
    for kind in SCTPS {
        let mut rig = with_sctp(1);
        let (client, got) = open(&mut rig, kind, 7);
        sent(&outside(&mut rig, &client.with(ENDPOINTS ^ 1, chunk(ABORT, 0, &[]))), INSIDE);
        sent(&inside(&mut rig, &got.back(ENDPOINTS, chunk(ABORT, 0, &[]))), OUTSIDE);
        assert_eq!((states(&rig), rig.workers[0].counters.resets_not_believed), (vec![FlowState::Associated], 2));
        sent(&inside(&mut rig, &got.back(ENDPOINTS, chunk(ABORT, 1, &[]))), OUTSIDE);
        assert_eq!((states(&rig), rig.workers[0].counters.resets_not_believed), (vec![FlowState::Ended], 2));
    }
}

#[test]
fn a_packet_of_no_association_is_answered_as_its_host_would() {
    let abort = |flags| chunk(ABORT, flags, &[]);
    for kind in SCTPS {
        let mut rig = with_sctp(1);
        let opening = Association::opening(kind, 9);
        let nobodys = Association { dst: SocketAddr::new(kind.vip(), 81), ..opening.clone() };
        for (packet, tag, chunks) in [
            (nobodys.clone(), CLIENTS, abort(0)),
            (nobodys.with(7, data(3)), 7, abort(1)),
            (opening.with(7, data(3)), 7, abort(1)),
            (opening.with(7, cookie_echo()), 7, abort(1)),
            (opening.with(7, init()), 7, abort(1)),
            (opening.with(7, chunk(SHUTDOWN_ACK, 0, &[])), 7, chunk(SHUTDOWN_COMPLETE, 1, &[])),
        ] {
            let answer = sent(&outside(&mut rig, &packet), OUTSIDE);
            assert_eq!(answer, packet.back(tag, chunks));
        }
        assert_eq!((rig.workers[0].counters.aborts_sent, rig.shared.flows()), (6, 0));
        for (tag, chunks) in [
            (7, abort(0)),
            (7, abort(1)),
            (7, chunk(SHUTDOWN_COMPLETE, 0, &[])),
            (7, cookie_ack()),
            (0, data(3)),
            (0, [init(), data(3)].concat()),
        ] {
            outside(&mut rig, &opening.with(tag, chunks)).dropped(DropReason::NoFlow);
        }
        let mut damaged = nobodys.bytes();
        *damaged.last_mut().unwrap() ^= 1;
        rig.process(0, OUTSIDE, false, &damaged).dropped(DropReason::BadChecksum);
        let stray = Association { dst: SocketAddr::new(kind.snat(), 2000), ..opening.with(7, data(3)) };
        let stray = Association { src: kind.backend(1), dst_mac: INSIDE_MAC, ..stray };
        inside(&mut rig, &stray).dropped(DropReason::NoFlow);
        let reasons = (0..200).map(|_| outside(&mut rig, &nobodys).verdict).collect::<Vec<_>>();
        assert!(reasons.contains(&Verdict::Drop(DropReason::RejectRateLimited)));
    }
}

#[test]
fn who_refuses_for_want_of_endpoints_says_so() {
    for kind in SCTPS {
        let mut rig = with_sctp(1);
        rig.change(|port| port.endpoints.clear());
        let opening = Association::opening(kind, 9);
        assert_eq!(sent(&outside(&mut rig, &opening), OUTSIDE), opening.back(CLIENTS, chunk(ABORT, 0, &[])));
    }
}

#[test]
fn errors_about_packets_reach_who_sent_them_as_it_sent_them() {
    for (mode, kind) in [Mode::Nat, Mode::Preserve].into_iter().flat_map(|mode| SCTPS.map(|kind| (mode, kind))) {
        let mut rig = with_sctp(1);
        rig.change(|port| port.mode = mode);
        let (client, got) = open(&mut rig, kind, 9);
        let (longer, reply) = (client.with(ENDPOINTS, data(1000)), got.back(CLIENTS, data(1000)));
        let header = if kind.ipv6 { 40 } else { 20 };
        for quoted in [8, 12, 500] {
            for (from, to, packet) in [(OUTSIDE, INSIDE, &longer), (INSIDE, OUTSIDE, &reply)] {
                let seen = rig.process(0, from, false, &packet.bytes());
                assert_eq!(seen.verdict, Verdict::Tx(to));
                let mac = if to == INSIDE { INSIDE_MAC } else { OUTSIDE_MAC };
                let out = rig.process(0, to, false, &too_big(&seen.frame[14..], mac, header + quoted));
                assert_eq!(out.verdict, Verdict::Tx(from));
                // To the octet what it sent, from the transport header on; addresses as well.
                let inner = 14 + header + 8;
                let expected = packet.bytes();
                assert_eq!(out.frame[inner + header..][..quoted], expected[14 + header..][..quoted]);
                let addresses = if kind.ipv6 { 8..40 } else { 12..20 };
                assert_eq!(out.frame[inner..][addresses.clone()], expected[14..][addresses]);
            }
        }
        assert_eq!(states(&rig), [FlowState::Associated]);
    }
}

#[test]
fn fragments_pass_where_ports_stay_and_are_told_where_the_crc_would_need_all_of_them() {
    for kind in SCTPS {
        let mut rig = with_sctp(1);
        let (client, _) = open(&mut rig, kind, 9);
        let long = client.with(ENDPOINTS, data(1000)).bytes();
        rig.process(0, OUTSIDE, false, &part(&long, 5, 0, 504, true)).dropped(DropReason::FragmentCrc);
        rig.process(0, OUTSIDE, false, &part(&long, 5, 504, 524, false)).dropped(DropReason::FragmentUnmatched);
        // The endpoint has the Service's own port.
        let mut rig = with_sctp(1);
        rig.change(|port| {
            port.mode = Mode::Preserve;
            port.endpoints.iter_mut().for_each(|endpoint| endpoint.port = 80);
        });
        open(&mut rig, kind, 9);
        let whole = rig.process(0, OUTSIDE, false, &long);
        let parts = [part(&long, 6, 0, 504, true), part(&long, 6, 504, 524, false)];
        let came = parts.map(|part| {
            let out = rig.process(0, OUTSIDE, false, &part);
            assert_eq!(out.verdict, Verdict::Tx(INSIDE));
            out.frame
        });
        let from = l4(&long) + if kind.ipv6 { 8 } else { 0 };
        let together = [&came[0][from..], &came[1][from..]].concat();
        assert_eq!(together, whole.frame[l4(&long)..]);
    }
}

#[test]
fn limits_and_draining_hold_for_associations() {
    for kind in SCTPS {
        let mut rig = with_sctp(1);
        rig.config.flows_per_source = 2;
        rig.rebuild();
        let (client, got) = open(&mut rig, kind, 1);
        sent(&outside(&mut rig, &Association::opening(kind, 2)), INSIDE);
        assert_eq!(outside(&mut rig, &Association::opening(kind, 3)).verdict, Verdict::Tx(OUTSIDE), "prohibited");
        assert_eq!(rig.workers[0].counters.refused_source_limit, 1);
        rig.config.flows_per_source = 0;
        rig.change(|port| {
            for endpoint in port.endpoints.iter_mut().filter(|endpoint| endpoint.address == got.dst.ip()) {
                endpoint.state = EndpointState::Draining;
            }
        });
        assert_eq!(sent(&outside(&mut rig, &client), INSIDE).dst, got.dst);
        for port in 100..130 {
            assert_ne!(sent(&outside(&mut rig, &Association::opening(kind, port)), INSIDE).dst, got.dst);
        }
        // A removed endpoint keeps them too, as those of TCP.
        rig.change(|port| port.endpoints.retain(|endpoint| endpoint.address != got.dst.ip()));
        assert_eq!(sent(&outside(&mut rig, &client), INSIDE).dst, got.dst);
        assert_eq!(rig.workers[0].counters.flows_moved, 0);
    }
}

#[test]
fn an_init_that_was_left_unanswered_goes_to_another_endpoint_and_affinity_does_too() {
    for kind in SCTPS {
        let mut rig = with_sctp(1);
        rig.change(|port| port.affinity = Some(Duration::from_secs(100)));
        let opening = Association::opening(kind, 11);
        let first = sent(&outside(&mut rig, &opening), INSIDE);
        rig.wait(Duration::from_millis(100));
        assert_eq!(sent(&outside(&mut rig, &opening), INSIDE).dst, first.dst, "a copy");
        rig.wait(Duration::from_secs(1));
        let second = sent(&outside(&mut rig, &opening), INSIDE);
        assert_ne!(second.dst, first.dst);
        assert_eq!((states(&rig), rig.workers[0].counters.connects_retried), (vec![FlowState::CookieWait], 1));
        // What comes late is of no flow, and the client, who would take it, does not get it.
        if first.src != second.src {
            inside(&mut rig, &first.back(CLIENTS, init_ack())).dropped(DropReason::NoFlow);
        }
        sent(&inside(&mut rig, &second.back(CLIENTS, init_ack())), OUTSIDE);
        rig.wait(Duration::from_secs(1));
        assert_eq!(sent(&outside(&mut rig, &opening), INSIDE).dst, second.dst, "it did answer");
        assert_eq!(sent(&outside(&mut rig, &Association::opening(kind, 12)), INSIDE).dst, second.dst);
    }
}

#[test]
fn the_silence_after_inits_that_an_endpoint_drops_is_no_failure_of_its_own() {
    for kind in SCTPS {
        let mut rig = with_sctp(1);
        for port in 100..120 {
            let opening = Association { ttl: if port < 110 { 64 } else { 3 }, ..Association::opening(kind, port) };
            let mut frame = opening.bytes();
            if port < 110 {
                // Its CRC is wrong.
                frame[l4(&opening.bytes()) + 8] ^= 1;
            }
            for _ in 0..4 {
                assert_eq!(rig.process(0, OUTSIDE, false, &frame).verdict, Verdict::Tx(INSIDE));
                rig.wait(Duration::from_secs(1));
            }
        }
        let counters = rig.workers[0].counters;
        assert_eq!((counters.endpoints_set_aside, counters.connects_retried), (0, 0));
    }
}

#[test]
fn a_stale_cookie_is_told_to_nobody() {
    let mut rig = with_sctp(1);
    for kind in SCTPS {
        let error = |cause: u8| Association::opening(kind, 13).with(5, chunk(9, 0, &[0, cause, 0, 8, 0, 0, 0, 1]));
        let (stale, other) = (outside(&mut rig, &error(3)), outside(&mut rig, &error(1)));
        assert!(matches!(stale.verdict, Verdict::Drop(_)), "{:?}", stale.verdict);
        assert_eq!(sent(&other, OUTSIDE).chunks[0], ABORT);
    }
}

#[test]
fn an_endpoint_that_refuses_is_set_aside_and_the_client_is_told() {
    for kind in SCTPS {
        let mut rig = with_sctp(1);
        let mut refusing = None;
        for port in 200..400 {
            let opening = Association::opening(kind, port);
            let got = sent(&outside(&mut rig, &opening), INSIDE);
            if *refusing.get_or_insert(got.dst) == got.dst {
                let refusal = got.back(CLIENTS, chunk(ABORT, 0, &[]));
                let told = sent(&inside(&mut rig, &refusal), OUTSIDE);
                assert_eq!((told.tag, told.chunks), (CLIENTS, chunk(ABORT, 0, &[])));
            } else {
                sent(&inside(&mut rig, &got.back(CLIENTS, init_ack())), OUTSIDE);
            }
        }
        assert_eq!(rig.workers[0].counters.endpoints_set_aside, 1);
    }
}

#[test]
fn packets_on_the_wrong_worker_go_to_the_owner() {
    for (mode, kind) in [Mode::Nat, Mode::Preserve].into_iter().flat_map(|mode| SCTPS.map(|kind| (mode, kind))) {
        let mut rig = with_sctp(2);
        rig.change(|port| port.mode = mode);
        let opening = Association::opening(kind, 9);
        let got = sent(&rig.process(1, OUTSIDE, false, &opening.bytes()), INSIDE);
        for (from, to, packet) in [
            (OUTSIDE, INSIDE, opening.clone()),
            (INSIDE, OUTSIDE, got.back(CLIENTS, init_ack())),
            (OUTSIDE, INSIDE, opening.with(ENDPOINTS, cookie_echo())),
        ] {
            let wrong = rig.process(0, from, false, &packet.bytes());
            wrong.handed_to(1);
            sent(&rig.process(1, from, true, &wrong.frame), to);
        }
        assert_eq!((rig.workers[0].flows.len(), rig.workers[1].flows.len()), (0, 1));
    }
}

#[test]
fn a_packet_that_is_too_long_is_told_and_one_that_may_be_cut_is() {
    let mut rig = with_sctp(1);
    let (client, _) = open(&mut rig, SCTP4, 9);
    rig.hops = (1..=3).map(|n| SCTP4.backend(n).ip()).map(|ip| (ip, crate::rig::usual_hop(ip))).collect();
    rig.hops.iter_mut().for_each(|(_, hop)| hop.mtu = 576);
    rig.rebuild();
    let long = client.with(ENDPOINTS, data(1000));
    let mut frame = long.bytes();
    let out = rig.process(0, OUTSIDE, false, &frame);
    assert_eq!(out.verdict, Verdict::Tx(OUTSIDE), "DF is set");
    assert_eq!((out.frame[23], out.frame[34], out.frame[35]), (1, 3, 4), "fragmentation needed");
    // Without DF.
    frame[20] = 0;
    let sum = u16::from_be_bytes([frame[24], frame[25]]);
    let (sum, carry) = sum.overflowing_add(0x4000);
    frame[24..26].copy_from_slice(&(sum + u16::from(carry)).to_be_bytes());
    let first = rig.process(0, OUTSIDE, false, &frame);
    assert_eq!(first.verdict, Verdict::Tx(INSIDE));
    let mut together = first.frame;
    let mut room = [0; crate::rig::ROOM];
    while let Some(emission) = lb::emit(rig.now, &rig.tables, &mut rig.workers[0], &mut room) {
        together.extend(&room[34..emission.len]);
    }
    let (stated, right) = crcs(&together);
    assert_eq!((stated, together.len()), (right, frame.len()), "the CRC was carried over before");
}

/// A packet of either side with any chunks: by who sends it, its tag and its chunks.
fn any_packet() -> impl Strategy<Value = (bool, u32, Vec<u8>)> {
    let any_chunk = (0u8..16, 0u8..2, prop::collection::vec(any::<u8>(), 0..40));
    let any_chunk = any_chunk.prop_map(|(kind, flags, value)| chunk(kind, flags, &value));
    let one = prop_oneof![Just(init()), Just(init_ack()), Just(cookie_echo()), Just(cookie_ack()), any_chunk];
    let tag = prop_oneof![Just(0), Just(CLIENTS), Just(ENDPOINTS), any::<u32>()];
    (any::<bool>(), tag, prop::collection::vec(one, 1..4).prop_map(|chunks| chunks.concat()))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Two workers, any packets of one client and its endpoint, whole and damaged, and time that passes.
    #[test]
    fn whatever_is_said_nothing_goes_to_a_third_party_and_right_crcs_stay_right(
        preserve: bool, ipv6: bool,
        steps in prop::collection::vec((any_packet(), 0u8..2, 0u64..20_000, prop::option::of(any::<(u16, u8)>())), 1..40),
    ) {
        let mut rig = with_sctp(2);
        rig.change(|port| port.mode = if preserve { Mode::Preserve } else { Mode::Nat });
        let kind = SCTPS[usize::from(ipv6)];
        let opening = Association::opening(kind, 9);
        let got = sent(&outside(&mut rig, &opening), INSIDE);
        for ((from_client, tag, chunks), worker, wait_ms, damage) in steps {
            let (port, packet) = match from_client {
                true => (OUTSIDE, opening.with(tag, chunks)),
                false => (INSIDE, got.back(tag, chunks)),
            };
            let mut bytes = packet.bytes();
            if let Some((at, octet)) = damage {
                let at = 34 + usize::from(at) % (bytes.len() - 34);
                bytes[at] = octet;
            }
            let whole = bytes == packet.bytes();
            let verdict = judge(&mut rig, worker, port, false, &bytes);
            if let Verdict::HandOff(owner) = verdict {
                let out = rig.process(owner.0, port, true, &bytes);
                if whole && matches!(out.verdict, Verdict::Tx(_)) {
                    Association::read(&out.frame);
                }
            }
            rig.wait(Duration::from_millis(wait_ms));
            for worker in &mut rig.workers {
                worker.housekeep(rig.now, &rig.tables);
            }
        }
    }
}
