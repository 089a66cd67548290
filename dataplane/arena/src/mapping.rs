//! A region of memory from mmap(2), private or of a file, unmapped when dropped.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::ptr::NonNull;

/// Why memory could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    /// mmap(2) refused.
    #[error("cannot map {len} octets of memory: {source}")]
    Map {
        /// How much was asked for.
        len: usize,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The file's size could not be read or set.
    #[error("cannot size the mapped file to {len} octets: {source}")]
    Size {
        /// How much was asked for.
        len: usize,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The parts asked for are larger than the mapping.
    #[error("a mapping of {len} octets has no room for {wanted} octets at {at}")]
    Room {
        /// The mapping's length.
        len: usize,
        /// Where the part would begin.
        at: usize,
        /// How long it would be.
        wanted: usize,
    },
}

/// Which pages to ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Pages {
    /// The system's base pages.
    #[default]
    Base,
    /// Huge pages where the kernel has some to give (`MADV_HUGEPAGE`), else base pages.
    Huge,
}

/// A region of zeroed or file-backed memory.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread; `Mapping` itself hands out no reference into it, and
// the parts that do (see `slab`) bring their own rules.
unsafe impl Send for Mapping {}
// SAFETY: as above; `&Mapping` offers nothing but its length and the cutter's raw start.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Zeroed memory of at least one octet, private to the process. Pages that are never touched cost nothing.
    ///
    /// # Errors
    /// [`ArenaError::Map`] when the kernel refuses.
    pub fn anonymous(len: usize, pages: Pages) -> Result<Self, ArenaError> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        Self::map(len, flags, -1, pages)
    }

    /// The first `len` octets of a file, which has its room first (see [`allocate`]).
    ///
    /// The caller must have the file for itself: if another process shortens it, touching what is gone ends this
    /// process (SIGBUS).
    ///
    /// # Errors
    /// [`ArenaError::Size`] or [`ArenaError::Map`] when the kernel refuses.
    pub fn file(file: &File, len: usize, pages: Pages) -> Result<Self, ArenaError> {
        allocate(file, len)?;
        Self::map(len, libc::MAP_SHARED, file.as_raw_fd(), pages)
    }

    fn map(len: usize, flags: libc::c_int, fd: libc::c_int, pages: Pages) -> Result<Self, ArenaError> {
        let len = len.max(1);
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that Rust knows of; `fd` is -1
        // (anonymous) or open for the length of the call.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0) };
        if start == libc::MAP_FAILED {
            return Err(ArenaError::Map { len, source: io::Error::last_os_error() });
        }
        if pages == Pages::Huge {
            // SAFETY: the range is the mapping just made; MADV_HUGEPAGE changes no contents. A refusal (no such
            // pages in this kernel) leaves base pages, which is what was promised.
            unsafe { libc::madvise(start, len, libc::MADV_HUGEPAGE) };
        }
        let start = NonNull::new(start.cast()).expect("mmap(2) never gives address zero unless asked for it");
        Ok(Self { start, len })
    }

    /// Octets.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a mapping is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }
}

/// Takes the room of a file's first `len` octets from its file system; what was written there stays, what was not reads
/// as zero. Without it a file system that fills up would end a process that writes to the mapping (SIGBUS). Where the
/// file system cannot do that, the file is only made that long.
///
/// # Errors
/// [`ArenaError::Size`] when the kernel refuses, with [`io::ErrorKind::StorageFull`] where there is no room.
pub fn allocate(file: &File, len: usize) -> Result<(), ArenaError> {
    let size = |source| ArenaError::Size { len, source };
    let wanted = libc::off_t::try_from(len).map_err(|_| size(io::ErrorKind::FileTooLarge.into()))?;
    // Asked first: some file systems give out all that they have before they find that it is not enough.
    let metadata = file.metadata().map_err(size)?;
    if free(file).map_err(size)?.is_some_and(|free| free < (len as u64).saturating_sub(metadata.blocks() * 512)) {
        return Err(size(io::ErrorKind::StorageFull.into()));
    }
    loop {
        // SAFETY: the descriptor is open for the length of the call, which touches no memory of this process.
        match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, wanted.max(1)) } {
            0 => return Ok(()),
            libc::EINTR => {}
            libc::EOPNOTSUPP | libc::ENOSYS => break,
            code => return Err(size(io::Error::from_raw_os_error(code))),
        }
    }
    if metadata.len() < len as u64 {
        file.set_len(len as u64).map_err(size)?;
    }
    Ok(())
}

/// Free octets of a file's file system; `None` if it counts none.
fn free(file: &File) -> io::Result<Option<u64>> {
    let mut about = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the descriptor is open for the length of the call, and `about` has room for what fstatvfs(3) writes.
    if unsafe { libc::fstatvfs(file.as_raw_fd(), about.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fstatvfs(3) returned 0, so it wrote all of it.
    let about = unsafe { about.assume_init() };
    Ok((about.f_blocks > 0).then(|| about.f_bavail.saturating_mul(about.f_frsize)))
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is what mmap(2) gave, unmapped once; every part holds an `Arc` of this mapping, so no
        // reference into it is left.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
