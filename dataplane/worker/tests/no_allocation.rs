//! Once workers run, packets cost no allocation: neither those that stay nor those that cross.

mod counting;
mod rig;

use std::{
    collections::VecDeque,
    os::fd::BorrowedFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use counting::{COUNTED, allocations};
use lb::{PortId, Tables, Verdict, WorkerId};
use millrace_worker::{Dataplane, DataplaneConfig, PlannedQueue, WorkerPlan};
use publish::Slot;
use rig::{Rule, until};
use xsk::{BURST, Frame, Queue, QueueStatistics, Umem};

/// A NIC at line rate: every frame that is filled is received at once, every frame that is sent is done at once.
struct Loop {
    filled: VecDeque<Frame>,
    done: VecDeque<Frame>,
    sent: Arc<AtomicU64>,
    ring: usize,
}

impl Queue for Loop {
    fn receive(&mut self, into: &mut Vec<Frame>, max: usize) -> usize {
        let count = self.filled.len().min(max).min(BURST).min(into.capacity() - into.len());
        into.extend(self.filled.drain(..count).map(|mut frame| {
            frame.set_len(60);
            frame
        }));
        count
    }

    fn send(&mut self, frames: &mut Vec<Frame>) -> usize {
        let count = frames.len().min(BURST).min(self.ring - self.done.len());
        self.done.extend(frames.drain(..count));
        self.sent.fetch_add(count as u64, Relaxed);
        count
    }

    fn reclaim(&mut self, pool: &mut Vec<Frame>) -> usize {
        let count = self.done.len().min(BURST).min(pool.capacity() - pool.len());
        pool.extend(self.done.drain(..count).map(|mut frame| {
            frame.reset();
            frame
        }));
        count
    }

    fn refill(&mut self, pool: &mut Vec<Frame>) -> usize {
        let count = pool.len().min(BURST).min(self.ring - self.filled.len());
        self.filled.extend(pool.drain(pool.len() - count..));
        count
    }

    fn kick(&mut self) -> bool {
        true
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn in_flight(&self) -> usize {
        self.done.len()
    }

    fn held(&self) -> usize {
        self.filled.len() + self.done.len()
    }

    fn statistics(&self) -> QueueStatistics {
        QueueStatistics::default()
    }

    fn zero_copy(&self) -> bool {
        false
    }
}

#[test]
fn a_million_packets_that_stay_or_cross_allocate_nothing() {
    const RING: usize = 256;
    let (umem, mut all) = Umem::anonymous(4 * RING as u32, 2048).unwrap();
    let sent = Arc::new(AtomicU64::new(0));
    let mut plan = |id: u8| {
        let (filled, done) = (VecDeque::with_capacity(RING), VecDeque::with_capacity(RING));
        let queue = Loop { filled, done, sent: Arc::clone(&sent), ring: RING };
        WorkerPlan {
            core: None,
            queues: vec![PlannedQueue { port: PortId(0), queue }],
            state: Rule {
                id: WorkerId(id),
                steps: 0,
                own: VecDeque::new(),
                // What worker 1 receives is worker 0's, so this goes one way.
                rule: |worker, frame| {
                    COUNTED.set(true);
                    match (worker, frame.handed) {
                        (WorkerId(1), false) => Verdict::HandOff(WorkerId(0)),
                        _ => Verdict::Tx(PortId(0)),
                    }
                },
            },
            frames: all.split_off(all.len() - 2 * RING),
        }
    };
    let plans = vec![plan(0), plan(1)];
    let tables = Arc::new(Slot::new(Tables::default()));
    let dataplane = Dataplane::start(umem, plans, tables, DataplaneConfig::default()).unwrap();
    until("workers are warm", || sent.load(Relaxed) > 10_000);
    let before = allocations();
    until("a million packets were sent", || sent.load(Relaxed) > 1_010_000);
    assert_eq!(allocations(), before);
    assert!(dataplane.snapshot().hand_off().received > 0, "nothing crossed");
    assert!(dataplane.stop().frames.balanced());
}
