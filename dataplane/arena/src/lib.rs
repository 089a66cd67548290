//! Mapped memory of plain data, and the two machine instructions that the flow table wants.
//!
//! A [`Mapping`] is anonymous memory or a file. It is cut from its front into parts that never overlap, each with one
//! type: a [`Slab`] has one owner and is read and written as a slice; a [`SharedSlab`] is a slice of atomics for any
//! number of threads. Each part keeps the mapping alive. Data in a mapping has no pointers and no padding, and every
//! bit pattern is a value, so that whatever a file holds may be read (sources: mmap(2), madvise(2)).
//!
//! This is one of the few rooms with `unsafe`; what it offers is safe.

mod mapping;
mod simd;
mod slab;
mod snapshot;

pub use mapping::{ArenaError, Mapping, Pages, allocate};
pub use simd::{match_tags8, match_tags16, prefetch, prefetch_start};
pub use slab::{Atomic, Cutter, Plain, SharedSlab, Slab};
pub use snapshot::Snapshot;
