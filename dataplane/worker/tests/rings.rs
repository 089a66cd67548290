//! Frames among queues and workers: nothing is lost, used twice, starved or slept over.

mod rig;

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use lb::{DropReason, Now, PortId, Tables, Verdict, WorkerId};
use millrace_worker::{Dataplane, DataplaneConfig, Idle, WorkerError};
use publish::Slot;
use rig::{NARROW, Rig, Rule, inject, plans, until};
use xsk::memory::WireLimits;

const A: PortId = PortId(0);
const B: PortId = PortId(1);
const WIDE: WireLimits =
    WireLimits { fill_ring: 2048, rx_ring: 2048, tx_ring: 2048, sent_per_kick: 32, delay_completion: false };

fn config() -> DataplaneConfig {
    DataplaneConfig::default()
}

#[test]
fn a_packet_leaves_by_the_port_that_its_verdict_names_and_is_counted() {
    let rig = Rig::new(&[&[(0, NARROW), (1, NARROW)]], 256, config(), |_, frame| {
        frame.room[0] ^= 1;
        frame.len += 2;
        Verdict::Tx(if frame.port == A { B } else { A })
    });
    inject(&rig.wires[0][0], &[0; 60]);
    inject(&rig.wires[0][1], &[9; 80]);
    let (mut on_a, mut on_b) = (Vec::new(), Vec::new());
    until("both packets left", || {
        on_a.extend(rig.wires[0][0].collect());
        on_b.extend(rig.wires[0][1].collect());
        on_a.len() + on_b.len() == 2
    });
    assert_eq!((on_b[0][0], on_b[0].len()), (1, 62));
    assert_eq!((on_a[0][0], on_a[0].len()), (8, 82));
    let mut ports = rig.dataplane.snapshot().ports();
    until("both were counted", || {
        ports = rig.dataplane.snapshot().ports();
        ports[&A].sent.packets + ports[&B].sent.packets == 2
    });
    assert_eq!((ports[&A].received.bytes, ports[&B].sent.bytes), (60, 62));
    until("a stay was measured", || !rig.dataplane.snapshot().residence_ns.is_empty());
    rig.stop();
}

#[test]
fn all_frames_balance_with_1_2_and_4_queues_and_1_and_2_workers() {
    let one: &[(u8, WireLimits)] = &[(0, NARROW)];
    let two: &[(u8, WireLimits)] = &[(0, NARROW), (1, NARROW)];
    let four: &[(u8, WireLimits)] = &[(0, NARROW), (0, NARROW), (1, NARROW), (1, NARROW)];
    // The odd ones change their worker, so half of all packets cross.
    let rule = |worker: WorkerId, frame: &mut lb::Frame<'_>| {
        let other = WorkerId(1 - worker.0);
        if !frame.handed && frame.room[0] % 2 == 1 { Verdict::HandOff(other) } else { Verdict::Tx(A) }
    };
    for workers in [vec![one], vec![two], vec![four], vec![one, one], vec![two, two], vec![four, four]] {
        let rig = Rig::new(&workers, 512, config(), rule);
        let wires: Vec<_> = rig.wires.iter().flatten().collect();
        let mut sent = 0;
        for n in 0..5_000usize {
            inject(wires[n % wires.len()], &[n as u8; 64]);
            sent += wires.iter().map(|wire| wire.collect().len()).sum::<usize>();
        }
        until("every packet left or was counted", || {
            sent += wires.iter().map(|wire| wire.collect().len()).sum::<usize>();
            let snapshot = rig.dataplane.snapshot();
            let drops: u64 = snapshot.workers.iter().flat_map(|w| &w.drops).map(|&(_, count)| count).sum();
            sent + drops as usize == 5_000
        });
        rig.stop();
    }
}

#[test]
fn hand_off_that_goes_one_way_for_100_000_packets_starves_nobody() {
    let rig = Rig::new(&[&[(0, NARROW)], &[(0, NARROW)]], 192, config(), |worker, _| match worker {
        WorkerId(0) => Verdict::HandOff(WorkerId(1)),
        _ => Verdict::Tx(A),
    });
    let mut left = 0;
    for n in 0..100_000u32 {
        inject(&rig.wires[0][0], &[n as u8; 60]);
        if n % 32 == 0 {
            left += rig.wires[1][0].collect().len() as u64;
        }
    }
    until("every packet left or was counted", || {
        left += rig.wires[1][0].collect().len() as u64;
        let snapshot = rig.dataplane.snapshot();
        left + snapshot.drops(DropReason::HandOffFull) + snapshot.drops(DropReason::TxFull) == 100_000
    });
    assert!(left > 50_000, "only {left} got through");
    // Worker 1's own queue can still receive: what was handed over took none of its frames.
    inject(&rig.wires[1][0], &[1; 60]);
    until("worker 1 sent a packet of its own", || rig.wires[1][0].collect().len() == 1);
    until("everything came home", || rig.dataplane.snapshot().hand_off().home >= left);
    let report = rig.stop();
    assert_eq!(report.failed, None);
}

#[test]
fn a_worker_without_a_queue_on_the_out_port_sends_by_one_that_has() {
    let rig = Rig::new(&[&[(0, NARROW)], &[(1, NARROW)]], 128, config(), |_, frame| {
        Verdict::Tx(if frame.port == A { B } else { A })
    });
    for _ in 0..1_000 {
        inject(&rig.wires[0][0], &[7; 60]);
        inject(&rig.wires[1][0], &[8; 60]);
    }
    let (mut on_a, mut on_b) = (Vec::new(), Vec::new());
    until("all packets left", || {
        on_a.extend(rig.wires[0][0].collect());
        on_b.extend(rig.wires[1][0].collect());
        on_a.len() + on_b.len() == 2_000
    });
    assert!(on_a.iter().all(|packet| packet[0] == 8) && on_b.iter().all(|packet| packet[0] == 7));
    assert_eq!(rig.dataplane.snapshot().hand_off().sent, 2_000);
    rig.stop();
}

#[test]
fn what_comes_in_by_a_queue_that_only_receives_leaves_by_one_that_sends() {
    const DEAF: WireLimits = WireLimits { tx_ring: 0, ..NARROW };
    // Worker 0 has another queue of the NIC to send by, worker 1 has to ask it.
    let rig = Rig::new(&[&[(0, DEAF), (0, NARROW)], &[(0, DEAF)]], 128, config(), |_, _| Verdict::Tx(A));
    for _ in 0..1_000 {
        inject(&rig.wires[0][0], &[1; 60]);
        inject(&rig.wires[1][0], &[2; 60]);
    }
    let mut left = 0;
    until("all packets left by the queue that sends", || {
        left += rig.wires[0][1].collect().len();
        left == 2_000
    });
    assert_eq!(rig.dataplane.snapshot().hand_off().sent, 1_000);
    rig.stop();
}

#[test]
fn a_small_tx_ring_with_late_completions_delays_but_loses_nothing() {
    let late = WireLimits { tx_ring: 4, sent_per_kick: 2, delay_completion: true, ..NARROW };
    let rig = Rig::new(&[&[(0, late)]], 128, config(), |_, _| Verdict::Tx(A));
    let wire = &rig.wires[0][0];
    let mut left = 0;
    for _ in 0..2_000 {
        until("the wire took a packet", || {
            wire.complete(3);
            wire.inject(&[1; 60])
        });
        left += wire.collect().len();
    }
    until("all packets left", || {
        wire.complete(8);
        left += wire.collect().len();
        left == 2_000
    });
    assert_eq!(rig.dataplane.snapshot().drops(DropReason::TxFull), 0);
    rig.stop();
}

#[test]
fn a_tx_ring_that_stays_full_drops_and_counts() {
    let stuck = WireLimits { tx_ring: 4, sent_per_kick: 0, ..NARROW };
    let rig = Rig::new(&[&[(0, NARROW), (1, stuck)]], 1024, config(), |_, _| Verdict::Tx(B));
    for _ in 0..600 {
        inject(&rig.wires[0][0], &[1; 60]);
    }
    until("drops were counted", || rig.dataplane.snapshot().drops(DropReason::TxFull) == 600 - 4 - 256);
    rig.stop();
}

#[test]
fn a_full_hand_off_ring_drops_and_counts() {
    static OPEN: AtomicBool = AtomicBool::new(false);
    let config = DataplaneConfig { hand_off_ring: 8, ..config() };
    let rig = Rig::new(&[&[(0, WIDE)], &[]], 512, config, |worker, _| match worker {
        WorkerId(0) => Verdict::HandOff(WorkerId(1)),
        _ => {
            until("the gate opened", || OPEN.load(Ordering::Relaxed));
            Verdict::Drop(DropReason::NoFlow)
        }
    });
    for _ in 0..100 {
        inject(&rig.wires[0][0], &[1; 60]);
    }
    let full = || rig.dataplane.snapshot().drops(DropReason::HandOffFull);
    // Eight in the ring, and at most as many again that worker 1 took before it stood still.
    until("the ring was full", || full() >= 100 - 16);
    OPEN.store(true, Ordering::Relaxed);
    until("the rest was decided", || full() + rig.dataplane.snapshot().drops(DropReason::NoFlow) == 100);
    assert_eq!(rig.dataplane.snapshot().hand_off().full, full());
    rig.stop();
}

#[test]
fn a_sleeping_worker_is_woken_by_hand_off_and_by_a_stop() {
    // It would sleep for an hour: nothing but the doorbell can wake it.
    let config = DataplaneConfig { longest_sleep: Duration::from_secs(3600), ..config() };
    let rig = Rig::new(&[&[(0, NARROW)], &[]], 128, config, |worker, _| match worker {
        WorkerId(0) => Verdict::HandOff(WorkerId(1)),
        _ => Verdict::Tx(A),
    });
    for round in 1..=50 {
        until("worker 1 sleeps", || rig.dataplane.snapshot().workers[1].sleeps >= round);
        inject(&rig.wires[0][0], &[1; 60]);
        until("the packet was sent", || rig.wires[0][0].collect().len() == 1);
    }
    until("worker 1 was woken", || rig.dataplane.snapshot().workers[1].woken > 0);
    rig.stop();
}

#[test]
fn a_worker_does_the_housekeeping_that_is_due_before_it_sleeps() {
    // It would sleep for an hour after each step.
    let config = DataplaneConfig { longest_sleep: Duration::from_secs(3600), ..config() };
    let tables = Arc::new(Slot::new(Tables::default()));
    let due = |id| Rule { id, rule: |_, _| Verdict::Pass, steps: 10_000, own: VecDeque::new() };
    let rig = Rig::with(&[&[(0, NARROW)]], 128, config, tables, due);
    until("it sleeps", || rig.dataplane.snapshot().workers[0].sleeps > 0);
    assert_eq!(rig.stop().workers[0].state.steps, 0);
}

#[test]
fn a_busy_worker_never_sleeps() {
    let rig = Rig::new(&[&[(0, NARROW)]], 128, DataplaneConfig { idle: Idle::Busy, ..config() }, |_, _| Verdict::Tx(A));
    for _ in 0..100 {
        inject(&rig.wires[0][0], &[1; 60]);
        until("the packet was sent", || rig.wires[0][0].collect().len() == 1);
    }
    assert_eq!(rig.dataplane.snapshot().workers[0].sleeps, 0);
    rig.stop();
}

#[test]
fn each_verdict_that_cannot_be_carried_out_is_counted_under_its_reason() {
    let rig = Rig::new(&[&[(0, NARROW)], &[]], 128, config(), |_, frame| match (frame.room[0], frame.handed) {
        (0, _) => Verdict::Pass,
        (1, _) => Verdict::Tx(PortId(9)),
        (2, _) => Verdict::HandOff(WorkerId(1)),
        (3, _) => Verdict::HandOff(WorkerId(7)),
        _ => Verdict::Drop(DropReason::Martian),
    });
    for kind in 0..5 {
        inject(&rig.wires[0][0], &[kind; 60]);
    }
    let drops = |reason| rig.dataplane.snapshot().drops(reason);
    until("all were dropped", || {
        drops(DropReason::NoKernelPort) == 1
            && drops(DropReason::NoTxQueue) == 1
            && drops(DropReason::OwnerGone) == 2
            && drops(DropReason::Martian) == 1
    });
    rig.stop();
}

#[test]
fn a_burst_that_leaves_by_several_ways_leaves_in_order_by_each() {
    static OPEN: AtomicBool = AtomicBool::new(false);
    let rig = Rig::new(&[&[(0, WIDE), (1, NARROW)], &[]], 1024, config(), |worker, frame| {
        until("all packets were there", || OPEN.load(Ordering::Relaxed));
        match (worker, frame.room[0] % 4) {
            (WorkerId(0), 1) => Verdict::HandOff(WorkerId(1)),
            (_, 1) => Verdict::Drop(DropReason::NoFlow),
            (_, 2) => Verdict::Tx(A),
            (_, 3) => Verdict::Drop(DropReason::Martian),
            _ => Verdict::Tx(B),
        }
    });
    (0..240).for_each(|n| inject(&rig.wires[0][0], &[n; 60]));
    OPEN.store(true, Ordering::Relaxed);
    let mut left = [Vec::new(), Vec::new()];
    until("all packets left or were dropped", || {
        left.iter_mut().zip(&rig.wires[0]).for_each(|(left, wire)| left.extend(wire.collect().iter().map(|p| p[0])));
        let dropped = |reason| rig.dataplane.snapshot().drops(reason) == 60;
        left.iter().all(|left| left.len() == 60) && dropped(DropReason::NoFlow) && dropped(DropReason::Martian)
    });
    for (left, rest) in left.iter().zip([2, 0]) {
        assert!(left.iter().copied().eq((0..240).filter(|n| n % 4 == rest)), "{left:?}");
    }
    let mut ports = rig.dataplane.snapshot().ports();
    until("all were counted", || {
        ports = rig.dataplane.snapshot().ports();
        ports[&A].sent.packets + ports[&B].sent.packets == 120
    });
    assert_eq!((ports[&A].sent.bytes, ports[&B].sent.bytes), (3600, 3600));
    rig.stop();
}

#[test]
fn a_panic_of_a_worker_is_noticed_and_the_others_go_on() {
    let rig = Rig::new(&[&[(0, NARROW)], &[(1, NARROW)]], 128, config(), |worker, frame| {
        assert!(worker != WorkerId(0), "a frame of {} octets", frame.len);
        Verdict::Tx(B)
    });
    assert_eq!(rig.dataplane.failed(), None);
    inject(&rig.wires[0][0], &[1; 60]);
    until("the failure was noticed", || rig.dataplane.failed().is_some());
    assert!(rig.dataplane.failed().unwrap().ends_with("a frame of 60 octets"));
    inject(&rig.wires[1][0], &[1; 60]);
    until("the other one sent", || rig.wires[1][0].collect().len() == 1);
    assert!(rig.dataplane.export_flows(10, &mut |_| true).is_empty(), "and a listing does not wait for the dead");
    let report = rig.dataplane.stop();
    assert_eq!(report.workers.len(), 1);
    assert!(report.frames.lost() > 0 && report.frames.duplicates == 0);
}

#[test]
fn the_queues_of_a_worker_share_its_frames() {
    // The first queue could take all of the frames; the second still gets as many, and an eighth is for the worker itself.
    let rig = Rig::new(&[&[(0, WIDE), (1, WIDE)]], 100, config(), |_, frame| Verdict::Tx(frame.port));
    let [first, second] = &rig.wires[0][..] else { unreachable!() };
    until("both were filled", || first.fill_level() == 44 && second.fill_level() == 44);
    for _ in 0..1_000 {
        inject(second, &[1; 60]);
    }
    until("both were filled again", || first.fill_level() == 44 && second.fill_level() == 44);
    rig.stop();
}

#[test]
fn plans_that_cannot_work_are_refused() {
    let tables = || Arc::new(Slot::new(Tables::default()));
    let rule = |id| Rule { id, rule: |_, _| Verdict::Pass, steps: 0, own: VecDeque::new() };
    let start = |umem, plans| Dataplane::start(umem, plans, tables(), config()).map(drop).unwrap_err();

    let (umem, mut all, _wires) = plans(&[&[(0, NARROW)], &[]], 8, rule);
    all.swap(0, 1);
    assert!(matches!(start(umem.clone(), all), WorkerError::WrongState { place: 0, found: WorkerId(1) }));
    assert!(matches!(start(umem, Vec::new()), WorkerError::WorkerCount(0)));

    let (umem, all, _wires) = plans(&[&[(0, NARROW), (0, NARROW)]], 1, rule);
    assert!(matches!(start(umem, all), WorkerError::TooFewFrames(0)));
}

#[test]
fn packets_of_its_own_leave_when_they_are_due_though_the_worker_sleeps() {
    let begun = rig::now();
    let due = |at_ms: u64, octet| (Now(begun.0 + at_ms * 1_000_000), octet);
    let tables = Arc::new(Slot::new(Tables::default()));
    let config = DataplaneConfig { longest_sleep: Duration::from_secs(3600), ..config() };
    // More than a burst at once, and one that is due long before the longest sleep ends.
    let own: VecDeque<_> = (0..200).map(|n| due(0, n)).chain([due(300, 255)]).collect();
    let rule = |id| Rule { id, rule: |_, _| Verdict::Pass, steps: 0, own: own.clone() };
    let rig = Rig::with(&[&[(0, NARROW)]], 64, config, tables, rule);
    let mut left = Vec::new();
    until("all packets left", || {
        left.extend(rig.wires[0][0].collect().into_iter().map(|packet| (rig::now(), packet[0])));
        left.len() == 201
    });
    assert!(left.iter().map(|(_, octet)| *octet).eq((0..200).chain([255])), "each once, in order");
    assert!(left[200].0 >= Now(begun.0 + 300_000_000), "too early");
    let sleeps = rig.dataplane.snapshot().workers[0].sleeps;
    // Queues in memory cannot be polled, so it looks at them each millisecond.
    assert!(sleeps < 2000, "{sleeps} sleeps: it must not wait awake");
    rig.stop();
}
