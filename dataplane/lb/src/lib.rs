//! What a load balancer decides about a packet: services, endpoint selection, flows, NAT, and replies of its own.
//!
//! [`process`](process::process) takes a burst of frames, the time, the immutable [`Tables`] and a worker's own
//! [`WorkerState`](state::WorkerState), rewrites the frames in place and says what becomes of each. There is no I/O
//! here and no clock; nothing allocates or locks once a worker's state is made.
#![cfg_attr(not(loom), forbid(unsafe_code))]

// Under loom only what is shared between workers is built: the rest maps files and has nothing to interleave.
pub mod affinity;
#[cfg(not(loom))]
mod attempts;
#[cfg(not(loom))]
pub mod build;
#[cfg(not(loom))]
pub mod counters;
pub mod directory;
#[cfg(not(loom))]
pub mod flow;
#[cfg(not(loom))]
mod fragments;
#[cfg(not(loom))]
pub mod handshake;
pub mod health;
pub mod id;
#[cfg(not(loom))]
pub mod list;
#[cfg(not(loom))]
pub mod maglev;
#[cfg(not(loom))]
pub mod model;
#[cfg(not(loom))]
mod origin;
#[cfg(not(loom))]
mod probe;
#[cfg(not(loom))]
pub mod process;
#[cfg(not(loom))]
pub mod ranges;
#[cfg(not(loom))]
pub mod rates;
#[cfg(not(loom))]
pub mod registry;
#[cfg(not(loom))]
pub mod select;
#[cfg(not(loom))]
pub mod shared;
#[cfg(not(loom))]
pub mod snat;
#[cfg(not(loom))]
mod snat_pool;
#[cfg(not(loom))]
pub mod sources;
#[cfg(not(loom))]
mod standing;
#[cfg(not(loom))]
pub mod state;
#[cfg(not(loom))]
pub mod tables;
#[cfg(not(loom))]
mod tally;
pub mod time;
#[cfg(not(loom))]
mod time_wait;
#[cfg(not(loom))]
pub mod verdict;
pub mod words;

pub use id::{BackendId, PortId, ServiceId, WorkerId};
#[cfg(not(loom))]
pub use process::{Emission, emit};
#[cfg(not(loom))]
pub use tables::Tables;
pub use time::{Now, Tick};
#[cfg(not(loom))]
pub use verdict::{DropReason, Frame, Verdict};
