//! A worker that cannot keep up forwards what has a flow first, and opens few more.

use lb::process::{BURST, DATAGRAM_PRICE, PRICE};
use lb::{DropReason, PortId, Verdict};

use crate::packet::{ACK, Segment, Tcp};
use crate::rig::{INSIDE, KINDS, Kind, OUTSIDE, Rig, TCP4, TCP6, UDP4, UDP6};

/// The last `openings` frames of each burst open flows.
const OPENINGS: usize = 6;

fn established(kind: Kind, port: u16) -> Segment {
    let opening = kind.opening(port);
    Segment { tcp: opening.tcp.map(|_| Tcp { flags: ACK, seq: 1001, ack: 1 }), ..opening }
}

/// A burst of packets of the flow with client port 1, and of SYNs from ever new ports; only these where `mixed` is not.
fn burst(kind: Kind, mixed: bool, next: &mut u16) -> Vec<(PortId, Vec<u8>)> {
    let flows = if mixed { BURST - OPENINGS } else { 0 };
    let mut frames = vec![(OUTSIDE, established(kind, 1).bytes()); flows];
    frames.extend((flows..BURST).map(|_| {
        *next += 1;
        (OUTSIDE, kind.opening(*next).bytes())
    }));
    frames
}

/// How many of the last frames were sent on; all others must have been dropped for overload.
fn opened(verdicts: &[Verdict]) -> usize {
    let sent = |verdict: &&Verdict| **verdict == Verdict::Tx(INSIDE);
    let (sent, others): (Vec<&Verdict>, Vec<&Verdict>) = verdicts.iter().partition(sent);
    assert!(others.iter().all(|verdict| **verdict == Verdict::Drop(DropReason::Overload)), "{verdicts:?}");
    sent.len()
}

#[test]
fn who_keeps_up_drops_no_opening() {
    for kind in KINDS {
        let mut rig = Rig::with(1, 8192);
        rig.open(kind, 1);
        let mut next = 1000;
        for _ in 0..50 {
            assert_eq!(opened(&rig.burst(&burst(kind, true, &mut next))), BURST);
        }
    }
}

#[test]
fn who_does_not_forwards_all_that_has_a_flow_and_opens_one_in_so_much_time() {
    for kind in KINDS {
        let price = if kind.protocol == wire::Protocol::TCP { PRICE } else { DATAGRAM_PRICE };
        let mut rig = Rig::new();
        rig.open(kind, 1);
        rig.workers[0].admission.set_overloaded(true);
        let (mut next, mut passed, mut admitted) = (1000, 0, 0);
        // What passed before is nobody's credit.
        rig.burst(&burst(kind, true, &mut next));
        while passed < 20 * PRICE {
            let step = PRICE / 32;
            rig.now.0 += step;
            passed += step;
            let verdicts = rig.burst(&burst(kind, true, &mut next));
            let (flows, openings) = verdicts.split_at(BURST - OPENINGS);
            assert!(flows.iter().all(|verdict| *verdict == Verdict::Tx(INSIDE)), "{flows:?}");
            admitted += opened(openings);
        }
        assert_eq!(admitted, (passed / price) as usize, "{kind:?}");
        assert_eq!(rig.workers[0].flows.len(), 1 + admitted);
        rig.now.0 += 1000 * PRICE;
        let saved = opened(&rig.burst(&burst(kind, true, &mut next))[BURST - OPENINGS..]);
        assert_eq!(saved, if kind.protocol == wire::Protocol::TCP { 4 } else { OPENINGS }, "few are saved up");
        rig.workers[0].admission.set_overloaded(false);
        assert_eq!(opened(&rig.burst(&burst(kind, true, &mut next))), BURST, "and it ends when the overload ends");
    }
}

#[test]
fn neither_kind_of_opening_takes_what_the_other_has() {
    let mut rig = Rig::new();
    rig.open(TCP4, 1);
    rig.workers[0].admission.set_overloaded(true);
    let (mut next, mut syns, mut datagrams) = (1000, 0, 0);
    rig.burst(&burst(TCP4, true, &mut next));
    for _ in 0..10 * PRICE / DATAGRAM_PRICE {
        rig.now.0 += DATAGRAM_PRICE;
        next += 1;
        let frames = [established(TCP4, 1), UDP4.opening(next), TCP4.opening(next)];
        let verdicts = rig.burst(&frames.map(|frame| (OUTSIDE, frame.bytes())));
        datagrams += opened(&verdicts[1..2]);
        syns += opened(&verdicts[2..]);
    }
    assert_eq!((syns, datagrams as u64), (9, 10 * PRICE / DATAGRAM_PRICE));
}

#[test]
fn every_flow_of_a_full_table_is_forwarded_also_those_that_are_not_found_at_first_sight() {
    for kind in [UDP4, UDP6] {
        const FLOWS: u16 = 4000;
        let mut rig = Rig::with(1, FLOWS.into());
        (1..=FLOWS).for_each(|port| drop(rig.open(kind, port)));
        rig.workers[0].admission.set_overloaded(true);
        for first in (1..=FLOWS).step_by(BURST) {
            let ports = first..=(first + BURST as u16 - 1).min(FLOWS);
            let frames: Vec<_> = ports.map(|port| (OUTSIDE, established(kind, port).bytes())).collect();
            let verdicts = rig.burst(&frames);
            assert!(verdicts.iter().all(|verdict| *verdict == Verdict::Tx(INSIDE)), "{verdicts:?}");
        }
    }
}

#[test]
fn openings_that_keep_nobody_from_anything_all_pass() {
    let mut rig = Rig::with(1, 8192);
    rig.open(TCP4, 1);
    rig.workers[0].admission.set_overloaded(true);
    let mut next = 1000;
    for _ in 0..50 {
        assert_eq!(opened(&rig.burst(&burst(TCP4, false, &mut next))), BURST);
    }
    rig.burst(&burst(TCP4, true, &mut next));
    let passed: Vec<usize> = (0..50).map(|_| opened(&rig.burst(&burst(TCP4, false, &mut next)))).collect();
    assert!(passed[0] < BURST, "somebody had a flow just now");
    assert_eq!(passed[49], BURST, "who has gone");
}

#[test]
fn a_frame_of_another_kind_among_them_is_nobodys_flow() {
    let mut rig = Rig::with(1, 8192);
    rig.open(TCP4, 1);
    rig.workers[0].admission.set_overloaded(true);
    let mut next = 1000;
    rig.burst(&burst(TCP4, true, &mut next));
    let passed: Vec<usize> = (0..50)
        .map(|_| {
            let mut frames = burst(TCP4, false, &mut next);
            frames[0] = (OUTSIDE, Segment { ttl: 1, ..TCP4.opening(1) }.bytes());
            opened(&rig.burst(&frames)[1..])
        })
        .collect();
    assert!(passed[0] < BURST - 1);
    assert_eq!(passed[49], BURST - 1);
}

#[test]
fn a_syn_without_credit_is_dropped_though_it_has_a_flow_and_each_verdict_is_its_own_frames() {
    for (tcp, udp) in [(TCP4, UDP4), (TCP6, UDP6)] {
        let mut rig = Rig::new();
        rig.open(tcp, 1);
        rig.workers[0].admission.set_overloaded(true);
        let sent = rig.outside(&established(tcp, 1)).sent(INSIDE);
        let expiring = Segment { ttl: 1, ..established(tcp, 1) };
        let frames =
            [tcp.opening(1), established(tcp, 1), tcp.opening(2), expiring, udp.opening(3), established(tcp, 1)];
        let verdicts = rig.burst(&frames.clone().map(|frame| (OUTSIDE, frame.bytes())));
        let shed = Verdict::Drop(DropReason::Overload);
        let (on, back) = (Verdict::Tx(INSIDE), Verdict::Tx(OUTSIDE));
        assert_eq!(verdicts, [shed, on, shed, back, shed, on]);
        rig.now.0 += PRICE;
        let again = rig.outside(&frames[0]).sent(INSIDE);
        assert_eq!(again.src, sent.src, "of the same flow");
    }
}

#[test]
fn datagrams_that_have_a_flow_or_may_have_one_elsewhere_are_not_held_back() {
    for (tcp, udp) in [(TCP4, UDP4), (TCP6, UDP6)] {
        let mut rig = Rig::with(2, 1024);
        for kind in [tcp, udp] {
            rig.open(kind, 1);
        }
        let others = rig.process(1, OUTSIDE, false, &udp.opening(2).bytes()).sent(INSIDE);
        rig.workers[0].admission.set_overloaded(true);
        rig.outside(&established(tcp, 1)).sent(INSIDE);
        rig.outside(&udp.opening(1)).sent(INSIDE);
        for kind in [tcp, udp] {
            let handed = rig.process(0, OUTSIDE, true, &kind.opening(3).bytes());
            assert_eq!(handed.verdict, Verdict::Tx(INSIDE), "what another worker handed over");
            rig.outside(&kind.opening(4)).dropped(DropReason::Overload);
        }
        rig.outside(&udp.opening(2)).handed_to(1);
        rig.inside(&others.back()).handed_to(1);
    }
}
