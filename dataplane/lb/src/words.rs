//! Memory of atomics that all workers share: a flow file's mapping, or plain memory.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU64, Ordering, fence};

/// A fixed slice of 64-bit atomics, wherever it lives. Touched only where a flow opens or closes.
pub type Words = Box<dyn AsRef<[AtomicU64]> + Send + Sync>;

/// Words in plain memory, all zero.
#[must_use]
pub fn in_memory(count: usize) -> Words {
    Box::new((0..count).map(|_| AtomicU64::new(0)).collect::<Box<[AtomicU64]>>())
}
