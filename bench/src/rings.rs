//! Rings in memory with a stopwatch: packets are written while it stands still, and decided while it runs.
//!
//! The queue writes a packet into each frame that it was given, starts the watch, and hands them out burst by burst.
//! When all came back sent it stops the watch, and does the same again until it was told to end. What is timed is all
//! that a worker does with the packets, and the cheapest rings there can be. Queues of several workers do each round
//! together: none hands out packets before all have written theirs, nor writes new ones before all have theirs back.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use xsk::{BURST, Frame, Queue, QueueStatistics, Umem};

use crate::clock::cpu_time;

/// Writes the next packet into a frame; gives its length.
pub type Write = Box<dyn FnMut(&mut [u8]) -> usize + Send>;

/// What was timed so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timed {
    /// Packets handed out.
    pub packets: usize,
    /// Of the thread's own, until this queue's packets were back.
    pub time: Duration,
    /// The same until those of all queues were: with what was done for other workers in the end, and waiting for them.
    pub time_of_all: Duration,
    /// That by the clock on the wall.
    pub wall_of_all: Duration,
    /// Whether all packets were.
    pub done: bool,
}

/// Where queues that do their rounds together wait for one another.
#[derive(Debug)]
pub struct Together {
    queues: usize,
    written: Line,
    back: Line,
}

/// A counter with a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Line(AtomicUsize);

impl Together {
    /// For so many queues.
    pub fn new(queues: usize) -> Arc<Self> {
        Arc::new(Self { queues, written: Line::default(), back: Line::default() })
    }
}

impl Line {
    fn arrive(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }

    /// Whether all of so many queues arrived so often.
    fn all_arrived(&self, queues: usize, times: usize) -> bool {
        self.0.load(Ordering::Acquire) >= queues * times
    }
}

/// Where a queue is in its round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Its packets are handed out, sent and come back.
    Running,
    /// They are back, and others' may not be.
    Back,
    /// The next ones are written, and others' may not be.
    Written,
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
    write: Write,
    together: Arc<Together>,
    /// Packets of a round.
    round: usize,
    /// Packets in all.
    packets: usize,
    ready: Bursts,
    fill: Bursts,
    sent: Bursts,
    phase: Phase,
    rounds: usize,
    started: (Duration, Instant),
    timed: Timed,
    shown: Arc<Mutex<Timed>>,
}

impl TimedQueue {
    /// For a worker with so many frames of `umem`, all that it gives to be received into in each round; ends after about so
    /// many packets.
    pub fn new(
        umem: &Umem,
        frames: usize,
        packets: usize,
        write: Write,
        together: &Arc<Together>,
    ) -> (Self, Arc<Mutex<Timed>>) {
        // A worker keeps an eighth for packets of its own.
        let round = frames - frames / 8;
        let shown = Arc::new(Mutex::new(Timed::default()));
        let all = umem.frames() as usize;
        let queue = Self {
            umem: umem.clone(),
            write,
            together: Arc::clone(together),
            round,
            packets,
            ready: Bursts::of(all),
            fill: Bursts::of(all),
            // Frames of other workers, too.
            sent: Bursts::of(all),
            // Nothing was handed out, so all is back.
            phase: Phase::Back,
            rounds: 0,
            started: (cpu_time(), Instant::now()),
            timed: Timed::default(),
            shown: Arc::clone(&shown),
        };
        (queue, shown)
    }

    /// Stops the watch, writes packets into all frames, and starts it again, as far as other queues are with it; says
    /// whether it runs. Never inlined: case `budget` leaves it out by its name.
    #[cold]
    #[inline(never)]
    fn next_round(&mut self) -> bool {
        if self.phase == Phase::Running {
            self.timed.time += cpu_time() - self.started.0;
            self.together.back.arrive();
            self.phase = Phase::Back;
        }
        if self.phase == Phase::Back {
            if !self.together.back.all_arrived(self.together.queues, self.rounds) {
                return false;
            }
            self.write_round();
        }
        if self.timed.done || !self.together.written.all_arrived(self.together.queues, self.rounds) {
            return false;
        }
        std::mem::swap(&mut self.ready, &mut self.fill);
        self.phase = Phase::Running;
        self.started = (cpu_time(), Instant::now());
        true
    }

    /// Counts the round that ended and writes the next one's packets.
    fn write_round(&mut self) {
        if self.rounds > 0 {
            self.timed.time_of_all += cpu_time() - self.started.0;
            self.timed.wall_of_all += self.started.1.elapsed();
            self.timed.packets += self.round;
        }
        self.timed.done = self.timed.packets >= self.packets;
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = self.timed;
        self.rounds += 1;
        self.phase = Phase::Written;
        if self.timed.done {
            return;
        }
        for frame in self.fill.full.iter_mut().flatten() {
            let len = (self.write)(self.umem.room_mut(frame));
            frame.set_len(len);
        }
        self.together.written.arrive();
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
            if self.fill.frames < self.round || !self.next_round() {
                return 0;
            }
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

    fn kick(&mut self) -> bool {
        true
    }

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
