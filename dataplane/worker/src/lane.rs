//! A worker's own queue, with what waits to be sent on it.

use lb::PortId;
use xsk::{BURST, Frame, Queue};

use crate::{cells::QueueCells, residence::Residence};

/// Frames that wait for room in a TX ring; more are dropped.
pub(crate) const TX_BACKLOG: usize = 4 * BURST;

/// A queue of this worker.
#[derive(Debug)]
pub(crate) struct Lane<Q> {
    pub(crate) port: PortId,
    pub(crate) queue: Q,
    /// Decided, not yet taken by the TX ring. Never longer than [`TX_BACKLOG`], which is reserved.
    pub(crate) out: Vec<Frame>,
    /// The kernel did not take all that was submitted.
    pub(crate) stuck: bool,
    /// The frame of `out` whose stay is measured: its place, and when it was received.
    sample: Option<(usize, u64)>,
    /// Frames that may be out for receiving here, so that queues of one worker do not starve one another.
    share: usize,
    /// Put in line and not yet counted: packets, octets.
    uncounted: (u64, u64),
}

impl<Q: Queue> Lane<Q> {
    pub(crate) fn new(port: PortId, queue: Q, share: usize) -> Self {
        Self { port, queue, out: Vec::with_capacity(TX_BACKLOG), stuck: false, sample: None, share, uncounted: (0, 0) }
    }

    /// Puts a frame in line to be sent; gives it back when the line is full.
    #[inline]
    pub(crate) fn enqueue(
        &mut self,
        frame: Frame,
        received_ns: u64,
        now_ns: u64,
        cells: &QueueCells,
        residence: &Residence,
    ) -> Result<(), Frame> {
        if self.out.len() == TX_BACKLOG && self.submit(now_ns, cells, residence) == 0 {
            return Err(frame);
        }
        self.measure(received_ns);
        self.push(frame);
        Ok(())
    }

    /// Whether so many frames more find room.
    #[inline]
    pub(crate) fn has_room(&self, frames: usize) -> bool {
        self.out.len() + frames <= TX_BACKLOG
    }

    /// The next frame in line is measured, unless another one is.
    #[inline]
    pub(crate) fn measure(&mut self, received_ns: u64) {
        if self.sample.is_none() {
            self.sample = Some((self.out.len(), received_ns));
        }
    }

    /// Puts a frame in line for which [there is room](Self::has_room).
    #[inline]
    pub(crate) fn push(&mut self, frame: Frame) {
        self.uncounted.0 += 1;
        self.uncounted.1 += frame.len() as u64;
        self.out.push(frame);
    }

    /// Puts frames in line for all of which [there is room](Self::has_room).
    #[inline]
    pub(crate) fn append(&mut self, frames: &mut Vec<Frame>) {
        self.uncounted.0 += frames.len() as u64;
        self.uncounted.1 += frames.iter().map(|frame| frame.len() as u64).sum::<u64>();
        self.out.append(frames);
    }

    /// Moves what waits to the TX ring, as far as there is room; says how many frames.
    pub(crate) fn submit(&mut self, now_ns: u64, cells: &QueueCells, residence: &Residence) -> usize {
        let (packets, octets) = std::mem::take(&mut self.uncounted);
        cells.sent_packets.add(packets);
        cells.sent_bytes.add(octets);
        let mut submitted = 0;
        while !self.out.is_empty() {
            let taken = self.queue.send(&mut self.out);
            if taken == 0 {
                break;
            }
            submitted += taken;
        }
        match self.sample {
            Some((at, received_ns)) if at < submitted => {
                residence.record(now_ns.saturating_sub(received_ns));
                self.sample = None;
            }
            Some((at, received_ns)) => self.sample = Some((at - submitted, received_ns)),
            None => {}
        }
        submitted
    }

    /// Gives one batch of `pool` to be received into; says how many. `spare` is empty, before and after.
    pub(crate) fn refill(&mut self, pool: &mut Vec<Frame>, spare: &mut Vec<Frame>) -> usize {
        let outstanding = self.queue.held().saturating_sub(self.queue.in_flight());
        let allowed = self.share.saturating_sub(outstanding);
        if allowed >= BURST.min(pool.len()) {
            return self.queue.refill(pool);
        }
        spare.extend(pool.drain(pool.len() - allowed..));
        let filled = self.queue.refill(spare);
        pool.append(spare);
        filled
    }
}
