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

/// Bursts of frames, last in first out; the least that can be done to hand frames on.
#[derive(Default)]
struct Bursts {
    full: Vec<Vec<Frame>>,
    empty: Vec<Vec<Frame>>,
    frames: usize,
}

impl Bursts {
    fn of(frames: usize) -> Self {
        let empty = (0..frames).map(|_| Vec::with_capacity(BURST)).collect();
        Self { full: Vec::with_capacity(frames), empty, frames: 0 }
    }

    /// Takes at most a burst from the front of `frames`.
    #[inline]
    fn put(&mut self, frames: &mut Vec<Frame>) -> usize {
        let mut burst = self.empty.pop().expect("there are as many bursts as frames");
        if frames.len() <= BURST {
            burst.append(frames);
        } else {
            burst.extend(frames.drain(..BURST));
        }
        let count = burst.len();
        self.frames += count;
        if count == 0 {
            self.empty.push(burst)
        } else {
            self.full.push(burst)
        }
        count
    }

    /// Gives a burst to the end of `into`, which has room for it.
    #[inline]
    fn take(&mut self, into: &mut Vec<Frame>) -> usize {
        let Some(mut burst) = self.full.pop() else { return 0 };
        let count = burst.len();
        self.frames -= count;
        into.append(&mut burst);
        self.empty.push(burst);
        count
    }
}

/// The queue.
pub struct TimedQueue {
    umem: Umem,
    traffic: Arc<Mutex<Traffic>>,
    /// Packets of a round.
    round: usize,
    /// Packets in all.
    packets: usize,
    ready: Bursts,
    fill: Bursts,
    sent: Bursts,
    started: Option<Duration>,
    timed: Timed,
    shown: Arc<Mutex<Timed>>,
}

impl TimedQueue {
    /// For frames of `umem`, all of them in each round; ends after about so many packets.
    pub fn new(umem: &Umem, traffic: Arc<Mutex<Traffic>>, packets: usize) -> (Self, Arc<Mutex<Timed>>) {
        let shown = Arc::new(Mutex::new(Timed::default()));
        let round = umem.frames() as usize;
        let queue = Self {
            umem: umem.clone(),
            traffic,
            round,
            packets,
            ready: Bursts::of(round),
            fill: Bursts::of(round),
            sent: Bursts::of(round),
            started: None,
            timed: Timed::default(),
            shown: Arc::clone(&shown),
        };
        (queue, shown)
    }

    /// Stops the watch, writes packets into all frames, and starts it again. Never inlined: case `budget` leaves it out by
    /// its name.
    #[cold]
    #[inline(never)]
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
        std::mem::swap(&mut self.ready, &mut self.fill);
        for frame in self.ready.full.iter_mut().flatten() {
            let len = traffic.next(self.umem.room_mut(frame));
            frame.set_len(len);
        }
        self.started = Some(cpu_time());
    }
}

impl Queue for TimedQueue {
    #[inline]
    fn receive(&mut self, into: &mut Vec<Frame>, _max: usize) -> usize {
        if self.ready.frames == 0 {
            if self.timed.done {
                // Nothing comes any more; rounds without work are not to be counted by who counts instructions.
                std::thread::sleep(Duration::from_millis(1));
                return 0;
            }
            if self.fill.frames < self.round {
                return 0;
            }
            self.next_round();
        }
        self.ready.take(into)
    }

    #[inline]
    fn send(&mut self, frames: &mut Vec<Frame>) -> usize {
        self.sent.put(frames)
    }

    #[inline]
    fn reclaim(&mut self, pool: &mut Vec<Frame>) -> usize {
        let from = pool.len();
        let count = self.sent.take(pool);
        pool[from..].iter_mut().for_each(Frame::reset);
        count
    }

    #[inline]
    fn refill(&mut self, pool: &mut Vec<Frame>) -> usize {
        self.fill.put(pool)
    }

    fn kick(&mut self) {}

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    #[inline]
    fn in_flight(&self) -> usize {
        self.sent.frames
    }

    #[inline]
    fn held(&self) -> usize {
        self.ready.frames + self.fill.frames + self.sent.frames
    }

    fn statistics(&self) -> QueueStatistics {
        QueueStatistics::default()
    }

    fn zero_copy(&self) -> bool {
        false
    }
}
