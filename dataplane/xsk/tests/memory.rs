//! The in-memory NIC against a model: whatever the sequence of operations, no frame is lost or used twice, and packets
//! come out as they went in, in order.

use std::collections::{HashSet, VecDeque};

use millrace_xsk::{
    BURST, Frame, Queue, Umem,
    memory::{MemoryQueue, Wire, WireLimits},
};
use proptest::prelude::*;

const FRAMES: u32 = 48;

#[derive(Clone, Debug)]
enum Operation {
    Inject(Vec<u8>),
    Receive(usize),
    Send,
    Kick,
    Complete(usize),
    Reclaim,
    Refill,
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 1..200).prop_map(Operation::Inject),
        3 => (0..80usize).prop_map(Operation::Receive),
        2 => Just(Operation::Send),
        2 => Just(Operation::Kick),
        1 => (0..20usize).prop_map(Operation::Complete),
        2 => Just(Operation::Reclaim),
        2 => Just(Operation::Refill),
    ]
}

fn limits() -> impl Strategy<Value = WireLimits> {
    (1..40usize, 1..40usize, 1..40usize, 1..40usize, any::<bool>()).prop_map(
        |(fill_ring, rx_ring, tx_ring, sent_per_kick, delay_completion)| WireLimits {
            fill_ring,
            rx_ring,
            tx_ring,
            sent_per_kick,
            delay_completion,
        },
    )
}

/// A forwarder over one queue: what it receives it sends back.
struct Forwarder {
    umem: Umem,
    wire: Wire,
    queue: MemoryQueue,
    pool: Vec<Frame>,
    waiting: Vec<Frame>,
    /// Injected, not yet received.
    arriving: VecDeque<Vec<u8>>,
    /// Received, not yet seen on the wire.
    leaving: VecDeque<Vec<u8>>,
}

impl Forwarder {
    fn new(limits: WireLimits) -> Forwarder {
        let (umem, pool) = Umem::anonymous(FRAMES, 2048).expect("anonymous memory");
        let (wire, queue) = Wire::new(&umem, limits);
        let waiting = Vec::with_capacity(FRAMES as usize);
        Forwarder { umem, wire, queue, pool, waiting, arriving: VecDeque::new(), leaving: VecDeque::new() }
    }

    fn step(&mut self, operation: &Operation) {
        match operation {
            Operation::Inject(packet) => {
                if self.wire.inject(packet) {
                    self.arriving.push_back(packet.clone());
                }
            }
            Operation::Receive(max) => {
                let before = self.waiting.len();
                let got = self.queue.receive(&mut self.waiting, *max);
                assert!(got <= (*max).min(BURST));
                assert_eq!(self.waiting.len(), before + got);
                for frame in &self.waiting[before..] {
                    let packet = self.arriving.pop_front().expect("a packet that was injected");
                    assert_eq!(self.umem.packet(frame), packet);
                    self.leaving.push_back(packet);
                }
            }
            Operation::Send => {
                let before = self.waiting.len();
                let sent = self.queue.send(&mut self.waiting);
                assert_eq!(self.waiting.len(), before - sent);
            }
            Operation::Kick => {
                self.queue.kick();
                for packet in self.wire.collect() {
                    assert_eq!(Some(packet), self.leaving.pop_front());
                }
            }
            Operation::Complete(max) => assert!(self.wire.complete(*max) <= *max),
            Operation::Reclaim => {
                let before = self.pool.len();
                let got = self.queue.reclaim(&mut self.pool);
                assert!(self.pool[before..].iter().all(|frame| frame.len() == 0));
                assert_eq!(self.pool.len(), before + got);
            }
            Operation::Refill => {
                let before = self.pool.len();
                let filled = self.queue.refill(&mut self.pool);
                assert_eq!(self.pool.len(), before - filled);
            }
        }
    }

    fn assert_conserved(&self) {
        assert_eq!(self.pool.len() + self.waiting.len() + self.queue.held(), FRAMES as usize);
        let in_hand: HashSet<u32> = self.pool.iter().chain(&self.waiting).map(Frame::index).collect();
        assert_eq!(in_hand.len(), self.pool.len() + self.waiting.len(), "a frame is in two places");
    }

    /// Brings home everything that was sent.
    fn drain(&mut self) {
        for _ in 0..10 * FRAMES {
            for operation in
                [Operation::Receive(64), Operation::Send, Operation::Kick, Operation::Complete(64), Operation::Reclaim]
            {
                self.step(&operation);
            }
        }
    }
}

proptest! {
    #[test]
    fn frames_are_conserved_and_packets_keep_their_order(
        limits in limits(),
        operations in prop::collection::vec(operation(), 1..400),
    ) {
        let mut forwarder = Forwarder::new(limits);
        for operation in &operations {
            forwarder.step(operation);
            forwarder.assert_conserved();
        }
        forwarder.drain();
        forwarder.assert_conserved();
        prop_assert!(forwarder.arriving.is_empty() && forwarder.leaving.is_empty());
        prop_assert_eq!(forwarder.queue.in_flight(), 0);
        prop_assert_eq!(forwarder.queue.held(), forwarder.wire.fill_level());
    }
}

#[test]
fn a_full_vector_is_not_grown() {
    let mut forwarder = Forwarder::new(WireLimits::default());
    forwarder.step(&Operation::Refill);
    for byte in 0..10 {
        assert!(forwarder.wire.inject(&[byte; 60]));
    }
    let mut few = Vec::with_capacity(4);
    let room = few.capacity();
    assert_eq!(forwarder.queue.receive(&mut few, 64), room.min(10));
    assert_eq!(few.capacity(), room);
    assert_eq!(forwarder.queue.receive(&mut few, 64), 0);
}

#[test]
fn what_finds_no_frame_is_dropped_and_counted() {
    let (umem, mut pool) = Umem::anonymous(4, 2048).expect("anonymous memory");
    let (wire, mut queue) = Wire::new(&umem, WireLimits { rx_ring: 1, ..WireLimits::default() });
    assert!(!wire.inject(&[1; 60]));
    assert_eq!(queue.statistics().rx_fill_ring_empty_descs, 1);
    queue.refill(&mut pool);
    assert!(!wire.inject(&[1; 1793]), "longer than a frame");
    assert_eq!(queue.statistics().rx_dropped, 1);
    assert!(wire.inject(&[1; 1792]));
    assert!(!wire.inject(&[1; 60]));
    assert_eq!(queue.statistics().rx_ring_full, 1);
    assert_eq!(queue.held() + pool.len(), 4);
}

#[test]
fn a_frame_of_another_umem_is_refused() {
    let (_one, mut frames) = Umem::anonymous(1, 2048).expect("anonymous memory");
    let (two, _frames) = Umem::anonymous(1, 2048).expect("anonymous memory");
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| two.room_mut(&mut frames[0]).len()));
    assert!(result.is_err());
}

#[test]
fn odd_geometries_are_refused() {
    for (frames, frame_size) in [(0, 2048), (16, 1024), (16, 3000), (16, 8192)] {
        assert!(Umem::anonymous(frames, frame_size).is_err());
    }
    assert_eq!(millrace_xsk::max_frame_len(2048), 1792);
}
