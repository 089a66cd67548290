//! Memory of atomics that all workers share: a flow file's mapping, or a mapping of its own.

#[cfg(not(loom))]
pub(crate) use arena::Snapshot;
use arena::{ArenaError, Pages};
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A fixed slice of atomics that begins at a page. Touched only where a flow opens or closes.
#[cfg(not(loom))]
pub type Atomics<T> = arena::SharedSlab<T>;
/// The same for loom, whose atomics are no plain data.
#[cfg(loom)]
pub type Atomics<T> = Box<[T]>;
/// A fixed slice of 64-bit atomics.
pub type Words = Atomics<AtomicU64>;

/// Atomics in memory of their own, all zero.
#[cfg(not(loom))]
pub(crate) fn in_memory<T: arena::Atomic>(count: usize, pages: Pages) -> Result<Atomics<T>, ArenaError> {
    arena::SharedSlab::anonymous(count, pages)
}

#[cfg(loom)]
pub(crate) fn in_memory<T: Default>(count: usize, _: Pages) -> Result<Atomics<T>, ArenaError> {
    Ok((0..count).map(|_| T::default()).collect())
}

/// [`arena::Snapshot`] for loom.
#[cfg(loom)]
pub(crate) struct Snapshot<const N: usize>([u32; N]);

#[cfg(loom)]
impl<const N: usize> Snapshot<N> {
    pub(crate) fn of(words: &[AtomicU32; N]) -> Self {
        Self(words.each_ref().map(|word| word.load(Ordering::SeqCst)))
    }

    pub(crate) fn of_upper_halves(words: &[AtomicU64; N]) -> Self {
        Self(words.each_ref().map(|word| (word.load(Ordering::SeqCst) >> 32) as u32))
    }

    pub(crate) fn matching(&self, mask: u32, value: u32) -> u32 {
        self.0.iter().rev().fold(0, |bits, word| bits << 1 | u32::from(word & mask == value))
    }
}
