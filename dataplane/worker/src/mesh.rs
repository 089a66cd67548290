//! What lies between workers: rings for each ordered pair, doorbells, mailboxes.
//!
//! A ring of pair (a, b) is pushed by a and popped by b alone. The hand-off ring is bounded and may refuse. The return
//! ring has room for all frames whose home is b, so it never does.

use std::{
    io,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use crossbeam_queue::ArrayQueue;
use lb::PortId;
use xsk::Frame;

use crate::{command::Command, doorbell::Doorbell, frames::Homes};

/// Commands that a worker's mailbox holds.
const MAILBOX: usize = 4;

/// A frame on its way to another worker.
#[derive(Debug)]
pub(crate) struct Parcel {
    pub(crate) frame: Frame,
    /// The NIC that it came in on.
    pub(crate) port: PortId,
    /// When its burst was received, for the time that it stays.
    pub(crate) received_ns: u64,
    pub(crate) errand: Errand,
}

/// What the other worker shall do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Errand {
    /// Decide: the flow is its own.
    Decide,
    /// Transmit on this NIC: the sender has no queue there.
    Transmit(PortId),
}

/// Everything that workers share.
#[derive(Debug)]
pub(crate) struct Mesh {
    workers: usize,
    handed: Box<[ArrayQueue<Parcel>]>,
    returns: Box<[ArrayQueue<Frame>]>,
    doorbells: Box<[Doorbell]>,
    mailboxes: Box<[ArrayQueue<Command>]>,
    pub(crate) homes: Homes,
    stop: AtomicBool,
    failure: Mutex<Option<String>>,
}

impl Mesh {
    /// For workers with so many home frames each.
    ///
    /// # Errors
    ///
    /// What `eventfd(2)` returned.
    pub(crate) fn new(home_frames: &[usize], hand_off_ring: usize, homes: Homes) -> io::Result<Self> {
        let workers = home_frames.len();
        let pairs = || (0..workers).flat_map(|from| (0..workers).map(move |to| (from, to)));
        // The ring of a worker to itself is never used.
        let size = |(from, to): (usize, usize), size: usize| if from == to { 1 } else { size.max(1) };
        Ok(Self {
            workers,
            handed: pairs().map(|pair| ArrayQueue::new(size(pair, hand_off_ring))).collect(),
            returns: pairs().map(|pair| ArrayQueue::new(size(pair, home_frames[pair.1]))).collect(),
            doorbells: (0..workers).map(|_| Doorbell::new()).collect::<io::Result<_>>()?,
            mailboxes: (0..workers).map(|_| ArrayQueue::new(MAILBOX)).collect(),
            homes,
            stop: AtomicBool::new(false),
            failure: Mutex::new(None),
        })
    }

    pub(crate) fn workers(&self) -> usize {
        self.workers
    }

    /// The ring by which `from` hands frames to `to`.
    #[inline]
    pub(crate) fn handed(&self, from: usize, to: usize) -> &ArrayQueue<Parcel> {
        &self.handed[from * self.workers + to]
    }

    /// The ring by which `from` sends frames home to `to`.
    #[inline]
    pub(crate) fn returns(&self, from: usize, to: usize) -> &ArrayQueue<Frame> {
        &self.returns[from * self.workers + to]
    }

    #[inline]
    pub(crate) fn doorbell(&self, worker: usize) -> &Doorbell {
        &self.doorbells[worker]
    }

    #[inline]
    pub(crate) fn mailbox(&self, worker: usize) -> &ArrayQueue<Command> {
        &self.mailboxes[worker]
    }

    /// Whether nothing waits for this worker: what it asks before it sleeps.
    pub(crate) fn nothing_for(&self, worker: usize) -> bool {
        (0..self.workers).all(|from| self.handed(from, worker).is_empty() && self.returns(from, worker).is_empty())
            && self.mailbox(worker).is_empty()
            && !self.stopping()
    }

    #[inline]
    pub(crate) fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Has all workers end.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.doorbells.iter().for_each(Doorbell::ring);
    }

    /// Takes what is left in the rings, after the workers ended.
    pub(crate) fn drain(&self) -> Vec<Frame> {
        let handed = self.handed.iter().flat_map(|ring| std::iter::from_fn(|| ring.pop())).map(|parcel| parcel.frame);
        let returns = self.returns.iter().flat_map(|ring| std::iter::from_fn(|| ring.pop()));
        handed.chain(returns).collect()
    }

    /// Notes that a worker ended by a panic. The first one is kept.
    pub(crate) fn fail(&self, message: String) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(message);
    }

    /// What the first worker that failed said.
    pub(crate) fn failed(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
