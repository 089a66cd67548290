//! Two workers, one gateway: whoever opened a flow gets its packets, whatever queue they land on.

use std::collections::HashSet;
use std::time::Duration;

use lb::directory::Claim;
use lb::flow::FlowKey;
use lb::model::Mode;
use lb::{DropReason, Verdict, WorkerId};
use wire::{Port, Ports};

use crate::packet::{ACK, SYN_ACK};
use crate::rig::{INSIDE, KINDS, OUTSIDE, Rig, TCP4, TCP6, UDP4};

#[test]
fn packets_on_the_wrong_worker_are_handed_to_the_owner_in_both_directions() {
    for mode in [Mode::Nat, Mode::Preserve] {
        let mut rig = Rig::with(2, 1024);
        rig.change(|port| port.mode = mode);
        for kind in KINDS {
            for (port, owner) in [(100, 0), (101, 1)] {
                let other = 1 - owner;
                let opening = kind.opening(port);
                let got = rig.process(owner, OUTSIDE, false, &opening.bytes()).sent(INSIDE);
                for again in [opening.clone(), opening.with_flags(ACK)] {
                    let wrong = rig.process(other, OUTSIDE, false, &again.bytes());
                    wrong.handed_to(owner);
                    assert_eq!(wrong.frame, again.bytes(), "handed over as it came");
                    rig.process(owner, OUTSIDE, true, &wrong.frame).sent(INSIDE);
                }
                let reply = got.back().with_flags(SYN_ACK).bytes();
                let wrong = rig.process(other, INSIDE, false, &reply);
                wrong.handed_to(owner);
                let back = rig.process(owner, INSIDE, true, &wrong.frame).sent(OUTSIDE);
                assert_eq!((back.src, back.dst), (opening.dst, opening.src));
            }
        }
        assert_eq!((rig.workers[0].flows.len(), rig.workers[1].flows.len()), (4, 4));
        assert_eq!(rig.workers[1].counters.handed_decided, 12);
    }
}

#[test]
fn snat_ports_of_two_workers_are_never_the_same() {
    let mut rig = Rig::with(2, 1024);
    rig.change(|port| port.endpoints.truncate(1));
    let mut seen = HashSet::new();
    for n in 0..200 {
        let sent = TCP4.opening(1000 + n);
        assert!(seen.insert(rig.process((n % 2) as u8, OUTSIDE, false, &sent.bytes()).sent(INSIDE).src));
    }
}

#[test]
fn handed_frames_that_still_miss_are_decided_where_they_are() {
    let mut rig = Rig::with(2, 1024);
    for kind in KINDS {
        // May open: opened here.
        let sent = kind.opening(200);
        let got = rig.process(1, OUTSIDE, true, &sent.bytes()).sent(INSIDE);
        rig.process(0, OUTSIDE, false, &sent.bytes()).handed_to(1);
        // Handed on to the wrong one: never handed back.
        rig.process(0, OUTSIDE, true, &sent.bytes()).dropped(DropReason::OwnerGone);
        rig.process(0, INSIDE, true, &got.back().bytes()).dropped(DropReason::OwnerGone);
        // May not open, or has no flow.
        if sent.tcp.is_some() {
            let stray = kind.opening(201).with_flags(ACK);
            assert_eq!(rig.process(1, OUTSIDE, true, &stray.bytes()).verdict, Verdict::Tx(OUTSIDE));
        }
    }
    assert_eq!(rig.workers[0].flows.len(), 0);
}

#[test]
fn a_claim_without_a_flow_ends_the_frame_at_its_owner_who_opens_it() {
    let mut rig = Rig::with(2, 1024);
    let sent = UDP4.opening(300);
    let key = FlowKey {
        src: sent.src.ip().into(),
        dst: sent.dst.ip().into(),
        ports: Ports::new(Port::new(300), Port::new(80)),
        protocol: UDP4.protocol,
    };
    let hash = rig.workers[0].flows.hash(&key).0;
    assert_eq!(rig.shared.directory.claim(hash, WorkerId(1)), Claim::Won);
    rig.process(0, OUTSIDE, false, &sent.bytes()).handed_to(1);
    rig.process(1, OUTSIDE, true, &sent.bytes()).sent(INSIDE);
    assert_eq!(rig.workers[1].flows.len(), 1);
}

#[test]
fn a_flow_of_a_frontend_that_is_gone_is_still_handed_to_its_owner() {
    let mut rig = Rig::with(2, 1024);
    for kind in KINDS {
        let sent = kind.opening(400);
        rig.process(1, OUTSIDE, false, &sent.bytes()).sent(INSIDE);
        rig.process(1, OUTSIDE, false, &sent.with_flags(ACK).bytes()).sent(INSIDE);
    }
    rig.change(|port| port.frontends.clear());
    for kind in KINDS {
        let sent = kind.opening(400).with_flags(ACK);
        rig.process(0, OUTSIDE, false, &sent.bytes()).handed_to(1);
        rig.process(1, OUTSIDE, true, &sent.bytes()).sent(INSIDE);
    }
}

#[test]
fn affinity_holds_across_workers() {
    let mut rig = Rig::with(2, 1024);
    rig.change(|port| port.affinity = Some(Duration::from_secs(60)));
    for kind in [TCP4, TCP6] {
        for client in 1..40 {
            let mut seen = HashSet::new();
            for n in 0..6 {
                let sent = kind.opening_of(client, 500 + n);
                seen.insert(rig.process((n % 2) as u8, OUTSIDE, false, &sent.bytes()).sent(INSIDE).dst);
            }
            assert_eq!(seen.len(), 1);
        }
    }
}

#[test]
fn affinity_outlives_the_table_that_chose() {
    let mut rig = Rig::with(2, 1024);
    rig.change(|port| {
        port.affinity = Some(Duration::from_secs(60));
        port.endpoints.truncate(1);
    });
    let first = rig.process(0, OUTSIDE, false, &TCP4.opening(600).bytes()).sent(INSIDE).dst;
    rig.change(|port| {
        let more = crate::rig::service_port(if port.key.ipv6 { TCP6 } else { TCP4 }, "web", &[1, 2, 3]);
        port.endpoints = more.endpoints;
    });
    for n in 1..20 {
        assert_eq!(rig.process(1, OUTSIDE, false, &TCP4.opening(600 + n).bytes()).sent(INSIDE).dst, first);
    }
}

#[test]
fn a_sources_share_counts_over_all_workers() {
    let mut rig = Rig::with(2, 1024);
    rig.config.flows_per_source = 4;
    rig.rebuild();
    let verdicts: Vec<_> =
        (0..8).map(|n| rig.process((n % 2) as u8, OUTSIDE, false, &TCP4.opening(700 + n).bytes()).verdict).collect();
    assert_eq!(verdicts[..4], [Verdict::Tx(INSIDE); 4]);
    assert_eq!(verdicts[4..], [Verdict::Tx(OUTSIDE); 4], "refused, and told so");
    assert_eq!(rig.workers.iter().map(|worker| worker.counters.refused_source_limit).sum::<u64>(), 4);
}

#[test]
fn how_fast_a_source_opens_counts_over_all_workers() {
    let mut rig = Rig::with(2, 1024);
    rig.config.new_flows_per_source = 20;
    rig.rebuild();
    let verdicts: Vec<_> =
        (0..40).map(|n| rig.process((n % 2) as u8, OUTSIDE, false, &TCP4.opening(700 + n).bytes()).verdict).collect();
    assert_eq!(verdicts[..20], [Verdict::Tx(INSIDE); 20]);
    assert_eq!(verdicts[20..], [Verdict::Drop(DropReason::SourceRate); 20]);
}
