//! Memory of atomics that all workers share: a flow file's mapping, or a mapping of its own.

use arena::{ArenaError, Pages};
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU64, Ordering};

/// A fixed slice of 64-bit atomics that begins at a page. Touched only where a flow opens or closes.
#[cfg(not(loom))]
pub type Words = arena::SharedSlab<AtomicU64>;
/// The same for loom, whose atomics are no plain data.
#[cfg(loom)]
pub type Words = Box<[AtomicU64]>;

/// Words in memory of their own, all zero.
#[cfg(not(loom))]
pub(crate) fn in_memory(count: usize, pages: Pages) -> Result<Words, ArenaError> {
    arena::SharedSlab::anonymous(count, pages)
}

#[cfg(loom)]
pub(crate) fn in_memory(count: usize, _: Pages) -> Result<Words, ArenaError> {
    Ok((0..count).map(|_| AtomicU64::new(0)).collect())
}
