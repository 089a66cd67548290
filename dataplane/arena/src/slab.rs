//! Typed parts of a mapping: cut one after the other, never overlapping.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::mapping::{ArenaError, Mapping, Pages};

/// Plain data: no padding, no pointers, every bit pattern a value.
pub trait Plain: FromBytes + IntoBytes + Immutable + KnownLayout + Send + Sync + 'static {}

impl<T: FromBytes + IntoBytes + Immutable + KnownLayout + Send + Sync + 'static> Plain for T {}

mod sealed {
    pub trait Sealed {}
}

/// An atomic integer that a [`SharedSlab`] may hold.
pub trait Atomic: sealed::Sealed + Send + Sync + 'static {}

macro_rules! atomics {
    ($($atomic:ty),*) => { $(impl sealed::Sealed for $atomic {} impl Atomic for $atomic {})* };
}
atomics!(AtomicU8, AtomicU32, AtomicU64);

/// Cuts a mapping into parts, from its front.
#[derive(Debug)]
pub struct Cutter {
    mapping: Arc<Mapping>,
    at: usize,
}

impl Cutter {
    /// Begins at the front of the mapping, which is consumed: what is not cut is not reached by anyone.
    #[must_use]
    pub fn new(mapping: Mapping) -> Self {
        Self { mapping: Arc::new(mapping), at: 0 }
    }

    /// The next `count` values, with one owner.
    ///
    /// # Errors
    /// [`ArenaError::Room`] when the mapping is too short.
    pub fn slab<T: Plain>(&mut self, count: usize) -> Result<Slab<T>, ArenaError> {
        let start = self.cut::<T>(count)?;
        Ok(Slab { start, count, mapping: Arc::clone(&self.mapping), owns: PhantomData })
    }

    /// The next `count` atomics, for any number of threads.
    ///
    /// # Errors
    /// [`ArenaError::Room`] when the mapping is too short.
    pub fn shared<A: Atomic>(&mut self, count: usize) -> Result<SharedSlab<A>, ArenaError> {
        let start = self.cut::<A>(count)?;
        Ok(SharedSlab { start, count, mapping: Arc::clone(&self.mapping), shares: PhantomData })
    }

    /// Skips to the next multiple of `align` octets, a power of two.
    pub fn align(&mut self, align: usize) {
        self.at = self.at.next_multiple_of(align);
    }

    /// Octets cut so far.
    #[must_use]
    pub fn at(&self) -> usize {
        self.at
    }

    /// Takes the next `count` values of `T` at its alignment; nobody else gets them.
    fn cut<T>(&mut self, count: usize) -> Result<NonNull<T>, ArenaError> {
        // A mapping begins at a page, so an offset's alignment is the address's.
        assert!(align_of::<T>() <= 4096, "aligned to more than a page");
        let at = self.at.next_multiple_of(align_of::<T>());
        let room = |wanted| ArenaError::Room { len: self.mapping.len(), at, wanted };
        let wanted = count.checked_mul(size_of::<T>()).ok_or_else(|| room(usize::MAX))?;
        let end = at.checked_add(wanted).filter(|&end| end <= self.mapping.len()).ok_or_else(|| room(wanted))?;
        self.at = end;
        // SAFETY: `at <= end <= len`, so the sum stays within the mapping.
        Ok(unsafe { self.mapping.start().add(at) }.cast())
    }
}

/// A slice of plain data in a mapping, with one owner.
pub struct Slab<T: Plain> {
    start: NonNull<T>,
    count: usize,
    mapping: Arc<Mapping>,
    owns: PhantomData<T>,
}

// SAFETY: a slab owns its part alone (the cutter gives each octet once), like a `Box<[T]>`.
unsafe impl<T: Plain> Send for Slab<T> {}
// SAFETY: as above; `&Slab` gives `&[T]` only, and `T: Sync`.
unsafe impl<T: Plain> Sync for Slab<T> {}

impl<T: Plain> Slab<T> {
    /// Zeroed values in memory of its own.
    ///
    /// # Errors
    /// [`ArenaError::Map`] when the kernel refuses.
    pub fn anonymous(count: usize, pages: Pages) -> Result<Self, ArenaError> {
        let len = count.checked_mul(size_of::<T>()).ok_or(ArenaError::Room { len: 0, at: 0, wanted: usize::MAX })?;
        Cutter::new(Mapping::anonymous(len, pages)?).slab(count)
    }
}

impl<T: Plain> Deref for Slab<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: the cutter proved that `count` values lie at `start`, aligned, within the mapping, which lives as
        // long as the slab; any octets are a `T` (`FromBytes`); nobody else has this part, and `&self` lends it.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.count) }
    }
}

impl<T: Plain> DerefMut for Slab<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `&mut self` lends it alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.count) }
    }
}

impl<T: Plain> fmt::Debug for Slab<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slab").field("count", &self.count).field("mapping", &self.mapping).finish()
    }
}

/// A slice of atomics in a mapping, for any number of threads.
pub struct SharedSlab<A: Atomic> {
    start: NonNull<A>,
    count: usize,
    mapping: Arc<Mapping>,
    shares: PhantomData<A>,
}

// SAFETY: it gives `&[A]` of atomics only, which any thread may use.
unsafe impl<A: Atomic> Send for SharedSlab<A> {}
// SAFETY: as above.
unsafe impl<A: Atomic> Sync for SharedSlab<A> {}

impl<A: Atomic> SharedSlab<A> {
    /// Zeroed atomics in memory of their own.
    ///
    /// # Errors
    /// [`ArenaError::Map`] when the kernel refuses.
    pub fn anonymous(count: usize, pages: Pages) -> Result<Self, ArenaError> {
        let len = count.checked_mul(size_of::<A>()).ok_or(ArenaError::Room { len: 0, at: 0, wanted: usize::MAX })?;
        Cutter::new(Mapping::anonymous(len, pages)?).shared(count)
    }
}

impl<A: Atomic> Deref for SharedSlab<A> {
    type Target = [A];

    #[inline]
    fn deref(&self) -> &[A] {
        // SAFETY: the cutter proved that `count` values lie at `start`, aligned, within the mapping, which lives as
        // long as the slab; any octets are an atomic integer; every access of this part is atomic.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.count) }
    }
}

impl<A: Atomic> AsRef<[A]> for SharedSlab<A> {
    fn as_ref(&self) -> &[A] {
        self
    }
}

impl<A: Atomic> fmt::Debug for SharedSlab<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedSlab").field("count", &self.count).field("mapping", &self.mapping).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn parts_do_not_overlap_and_are_aligned() {
        let mut cutter = Cutter::new(Mapping::anonymous(4096, Pages::Base).unwrap());
        let mut bytes = cutter.slab::<u8>(3).unwrap();
        let mut words = cutter.slab::<u64>(4).unwrap();
        let atomics = cutter.shared::<AtomicU32>(5).unwrap();
        bytes.fill(0xff);
        words.fill(7);
        atomics[0].store(9, Ordering::Relaxed);
        assert_eq!(&bytes[..], [0xff; 3]);
        assert_eq!(&words[..], [7; 4]);
        assert_eq!(words.as_ptr().addr() % 8, 0);
        assert_eq!(cutter.at(), 8 + 32 + 20);
    }

    #[test]
    fn a_part_that_does_not_fit_is_refused() {
        let mut cutter = Cutter::new(Mapping::anonymous(16, Pages::Base).unwrap());
        assert!(matches!(cutter.slab::<u64>(3), Err(ArenaError::Room { len: 16, at: 0, wanted: 24 })));
        assert!(cutter.slab::<u64>(usize::MAX).is_err());
        assert!(cutter.slab::<u64>(2).is_ok());
        assert!(cutter.slab::<u8>(1).is_err());
    }

    #[test]
    fn a_part_outlives_the_cutter() {
        let mut slab = Cutter::new(Mapping::anonymous(64, Pages::Huge).unwrap()).slab::<u64>(8).unwrap();
        slab[7] = 1;
        assert_eq!(slab.iter().sum::<u64>(), 1);
    }

    #[test]
    fn what_a_file_mapping_writes_is_in_the_file() {
        let path = std::env::temp_dir().join(format!("millrace-arena-{}", std::process::id()));
        let file = std::fs::File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        let mut slab = Cutter::new(Mapping::file(&file, 8192, Pages::Base).unwrap()).slab::<u8>(8192).unwrap();
        slab[8191] = 42;
        drop(slab);
        let contents = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!((contents.len(), contents[0], contents[8191]), (8192, 0, 42));
    }
}
