//! One writer publishes a value whole, many readers see the newest by one atomic load; and how a sleeper is woken.
//!
//! [`Slot`] holds what workers read and the control thread replaces. [`Wake`] is the handshake between a worker that goes
//! to sleep in `poll` and whoever gives it work. Both are checked by loom:
//! `RUSTFLAGS="--cfg loom --cfg crossbeam_loom" cargo test -p millrace-publish --test loom`.

mod primitive;
mod slot;
mod wake;

pub use slot::{Pinned, Reader, Slot};
pub use wake::Wake;
