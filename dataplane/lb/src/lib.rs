//! What a load balancer decides about a packet: services, endpoint selection, flows, NAT, and replies of its own.
//!
//! [`process`](process::process) takes a burst of frames, the time, the immutable [`Tables`] and a worker's own
//! [`WorkerState`](state::WorkerState), rewrites the frames in place and says what becomes of each. There is no I/O
//! here and no clock; nothing allocates or locks once a worker's state is made.
#![cfg_attr(not(loom), forbid(unsafe_code))]

pub mod id;
pub mod model;
pub mod tables;
pub mod time;
pub mod affinity;
pub mod build;
pub mod directory;
pub mod maglev;
pub mod ranges;
pub mod select;
pub mod sources;
pub mod words;
mod probe;
pub mod verdict;

pub use id::{BackendId, PortId, ServiceId, WorkerId};
pub use tables::Tables;
pub use time::{Now, Tick};
pub use verdict::{DropReason, Frame, Verdict};
