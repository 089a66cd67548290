//! Rings in memory with a stopwatch: packets are written while it stands still, and decided while it runs.
//!
//! The queue writes a packet into each frame that it was given, starts the watch, and hands them out burst by burst.
//! When all came back sent it stops the watch, and does the same again until it was told to end. What is timed is all
//! that a worker does with the packets, and the cheapest rings there can be.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use xsk::{BURST, Frame, Queue, QueueStatistics, Umem};

use crate::clock::cpu_time;
use crate::traffic::Traffic;

/// What was timed so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timed {
    /// Packets handed out.
    pub packets: usize,
    /// While the watch ran, of the thread's own.
    pub time: Duration,
    /// Whether all packets were.
    pub done: bool,
}

/// The queue.
pub struct TimedQueue {
    umem: Umem,
    traffic: Arc<Mutex<Traffic>>,
    /// Packets of a round.
    round: usize,
    /// Packets in all.
    packets: usize,
    /// To be received, the next one last.
    ready: Vec<Frame>,
    fill: Vec<Frame>,
    sent: Vec<Frame>,
    started: Option<Duration>,
    timed: Timed,
    shown: Arc<Mutex<Timed>>,
}

impl TimedQueue {
    /// For frames of `umem`, all of them in each round; ends after about so many packets.
    pub fn new(umem: &Umem, traffic: Arc<Mutex<Traffic>>, packets: usize) -> (Self, Arc<Mutex<Timed>>) {
        let shown = Arc::new(Mutex::new(Timed::default()));
        let round = umem.frames() as usize;
        let room = || Vec::with_capacity(round);
        let queue = Self {
            umem: umem.clone(),
            traffic,
            round,
            packets,
            ready: room(),
            fill: room(),
            sent: room(),
            started: None,
            timed: Timed::default(),
            shown: Arc::clone(&shown),
        };
        (queue, shown)
    }

    /// Stops the watch, writes packets into all frames, and starts it again.
    #[cold]
    fn next_round(&mut self) {
        if let Some(started) = self.started.take() {
            self.timed.time += cpu_time() - started;
            self.timed.packets += self.round;
        }
        self.timed.done = self.timed.packets >= self.packets;
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = self.timed;
        if self.timed.done {
            return;
        }
        let mut traffic = self.traffic.lock().unwrap_or_else(PoisonError::into_inner);
        for mut frame in self.fill.drain(..) {
            let len = traffic.next(self.umem.room_mut(&mut frame));
            frame.set_len(len);
            self.ready.push(frame);
        }
        self.started = Some(cpu_time());
    }
}

impl Queue for TimedQueue {
    #[inline]
    fn receive(&mut self, into: &mut Vec<Frame>, max: usize) -> usize {
        if self.ready.is_empty() {
            if self.fill.len() < self.round {
                return 0;
            }
            self.next_round();
        }
        let count = max.min(BURST).min(into.capacity() - into.len()).min(self.ready.len());
        into.extend(self.ready.drain(self.ready.len() - count..));
        count
    }

    #[inline]
    fn send(&mut self, frames: &mut Vec<Frame>) -> usize {
        let count = frames.len().min(BURST);
        self.sent.extend(frames.drain(..count));
        count
    }

    #[inline]
    fn reclaim(&mut self, pool: &mut Vec<Frame>) -> usize {
        let count = BURST.min(pool.capacity() - pool.len()).min(self.sent.len());
        pool.extend(self.sent.drain(self.sent.len() - count..).map(|mut frame| {
            frame.reset();
            frame
        }));
        count
    }

    #[inline]
    fn refill(&mut self, pool: &mut Vec<Frame>) -> usize {
        let count = pool.len().min(BURST);
        self.fill.extend(pool.drain(pool.len() - count..));
        count
    }

    fn kick(&mut self) {}

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    #[inline]
    fn in_flight(&self) -> usize {
        self.sent.len()
    }

    #[inline]
    fn held(&self) -> usize {
        self.ready.len() + self.fill.len() + self.sent.len()
    }

    fn statistics(&self) -> QueueStatistics {
        QueueStatistics::default()
    }

    fn zero_copy(&self) -> bool {
        false
    }
}
