//! Why workers could not be started.

use std::io;

use lb::WorkerId;

/// Why workers could not be started.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// There is no plan, or there are more than [`WorkerId::MAX`].
    #[error("{0} workers: there must be 1 to {max}", max = WorkerId::MAX)]
    WorkerCount(usize),
    /// A worker's state is not the one of its place in the plans.
    #[error("the plan of worker {place} has the state of worker {}", .found.0)]
    WrongState {
        /// The place in the plans.
        place: usize,
        /// Whose state it is.
        found: WorkerId,
    },
    /// A worker has more queues than it can poll.
    #[error("worker {worker} has {queues} queues, at most {max} are possible", max = crate::idle::MAX_QUEUES)]
    TooManyQueues {
        /// The worker.
        worker: usize,
        /// How many queues it would have.
        queues: usize,
    },
    /// A worker with queues and no frames to receive into.
    #[error("worker {0} has queues and too few frames of its own to receive into")]
    TooFewFrames(usize),
    /// A queue came with frames in it, so nobody knows whose they are.
    #[error("a queue of worker {0} already holds frames")]
    QueueInUse(usize),
    /// A frame was given to two workers.
    #[error("frame {0} has two homes")]
    TwoHomes(u32),
    /// The descriptor that wakes a worker could not be made.
    #[error("cannot make an eventfd: {0}")]
    Eventfd(#[source] io::Error),
    /// A thread could not be started.
    #[error("cannot start the thread of worker {worker}: {source}")]
    Thread {
        /// The worker.
        worker: usize,
        /// What the system said.
        source: io::Error,
    },
}
