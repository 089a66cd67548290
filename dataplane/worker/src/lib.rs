//! Run-to-completion workers: take a burst, decide, send, hand over what is another's, sleep when idle.
//!
//! Each worker is a pinned thread with one or more (port, queue)s, a [`WorkerState`](lb::state::WorkerState) and home
//! frames of its own. Invariants:
//!
//! - A frame is a token that is moved, never copied: it is in a worker's hands, in a ring between two workers, or held
//!   by a queue. Every frame has a home worker, and goes home when it is done with, so that hand-off which goes one way
//!   only starves nobody. [`FrameAccount`] says after a stop that the sum stayed.
//! - In the loop nothing allocates, locks or logs; the clock is read once a burst and handed down; tables are pinned
//!   once a burst. Counters have one writer and are read with relaxed loads.
//! - Rings between workers are bounded. A full hand-off ring drops and counts; a return ring holds all the frames that
//!   its home has, so it is never full.

mod backlog;
mod cells;
mod clock;
mod command;
mod dataplane;
mod decide;
mod doorbell;
mod error;
mod frames;
mod gathering;
mod idle;
mod lane;
mod mesh;
mod residence;
mod round;
mod routes;
mod snapshot;

pub use dataplane::{Dataplane, DataplaneConfig, Idle, PlannedQueue, StopReport, Stopped, WorkerPlan, default_workers};
pub use decide::Decide;
pub use error::WorkerError;
pub use frames::FrameAccount;
pub use snapshot::{HandOffCounters, PortTraffic, QueueSnapshot, Snapshot, Traffic, WorkerSnapshot};
