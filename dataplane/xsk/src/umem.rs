//! The UMEM: the one piece of memory that all queues, ports and workers share, cut into frames.
//!
//! Invariant: for each index there is at most one [`Frame`], or none while a kernel ring (or an in-memory queue) holds
//! the index. A `Frame` is therefore exclusive access to its bytes, checked by the borrow checker: reading needs `&Frame`,
//! writing needs `&mut Frame`. Frames name their UMEM, so that one of another UMEM is refused rather than misread.
//!
//! Layout of a frame, as `net/xdp/xdp_umem.c` cuts it: `XDP_PACKET_HEADROOM` (256) bytes that the kernel keeps, then the
//! packet, to the end of the frame.

use std::{
    cell::UnsafeCell,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
};

use xsk_rs::{
    FrameDesc,
    config::{FrameSize, QueueSize, UmemConfig},
};

use crate::{XskError, socket::LARGEST_RING};

/// `XDP_PACKET_HEADROOM` of `linux/bpf.h`, in bytes.
const HEADROOM: u32 = 256;

/// The longest frame, Ethernet header included, that fits in a UMEM frame of `frame_size` bytes.
///
/// 2048 serves an MTU of 1500 with VLAN tags, 4096 one of about 3800.
#[must_use]
pub const fn max_frame_len(frame_size: u32) -> usize {
    (frame_size - HEADROOM) as usize
}

/// Memory for frames, shared by all queues of the process; a clone is another handle to the same memory.
///
/// A kernel-backed UMEM belongs to the network namespace of the thread that made it, and so do the queues bound to it.
/// The (interface, queue) that is bound first is released only when the last handle is dropped, because libxdp binds it
/// through the UMEM's own descriptor.
#[derive(Clone, Debug)]
pub struct Umem {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Carried by every frame; two of 65,536 UMEMs that a process makes may share one.
    id: u16,
    frames: u32,
    frame_size: u32,
    /// Start of `frames * frame_size` bytes. It stays mapped for as long as `backing` lives.
    base: *mut u8,
    backing: Backing,
}

#[derive(Debug)]
enum Backing {
    Kernel(KernelUmem),
    Anonymous(#[expect(dead_code, reason = "owns the bytes behind `base`")] Area),
}

/// What xsk-rs keeps of a UMEM that the kernel knows.
#[derive(Debug)]
struct KernelUmem {
    umem: xsk_rs::Umem,
    /// Each frame's description, where its packet starts, by index. They are large, so frames carry their index alone.
    /// One is read and written only by who has the frame's [`Frame`].
    descs: Box<[UnsafeCell<FrameDesc>]>,
}

/// A cache line, so that anonymous memory is aligned as the packet path likes it.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "only its size and alignment count")] [u8; 64]);

/// Zeroed memory that is freed on drop. A raw pointer, because a `Box` would claim to be the only way to its bytes.
#[derive(Debug)]
struct Area(*mut [Line]);

impl Area {
    fn new(bytes: usize) -> Area {
        Area(Box::into_raw(vec![Line([0; 64]); bytes / 64].into_boxed_slice()))
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `Box::into_raw` in `new` and is freed nowhere else.
        drop(unsafe { Box::from_raw(self.0) });
    }
}

// SAFETY: `base` points to memory that `backing` owns and that is only reached through a `Frame`, of which there is one
// per index (see the module's invariant); `xsk_rs::Umem` and the boxed bytes are themselves free to be shared and sent.
unsafe impl Send for Inner {}
// SAFETY: as above; a shared `Inner` gives `&[u8]` for a `&Frame` and `&mut [u8]` for a `&mut Frame` only, and a frame's
// description is reached by who has its `Frame` alone.
unsafe impl Sync for Inner {}

/// Exclusive ownership of one frame of a [`Umem`].
///
/// Not clonable, made only by the UMEM. Dropping one leaks its frame until the UMEM goes, so frames go home to a pool.
#[must_use = "a frame that is dropped is lost to its UMEM"]
#[derive(Debug)]
pub struct Frame {
    index: u32,
    umem: u16,
    /// Offset of the packet from the frame's first byte.
    start: u16,
    len: u16,
    /// Bytes from `start` to the frame's end.
    room: u16,
}

static NEXT_ID: AtomicU16 = AtomicU16::new(0);

// Frames move from vector to vector, some eight times a packet.
const _: () = assert!(size_of::<Frame>() == 12);

impl Umem {
    /// Maps and registers `frames` frames of `frame_size` (2048 or 4096) bytes with the kernel, on huge pages if `huge`.
    ///
    /// Returns the UMEM and all its frames. Raises `RLIMIT_MEMLOCK` if it has to.
    ///
    /// # Errors
    ///
    /// [`XskError::Geometry`] for a size that does not work, [`XskError::Umem`] when the kernel refuses.
    pub fn new(frames: u32, frame_size: u32, huge: bool) -> Result<(Umem, Vec<Frame>), XskError> {
        let count = check_geometry(frames, frame_size)?;
        let bytes = u64::from(frames) * u64::from(frame_size);
        let refused = |source: Box<dyn std::error::Error + Send + Sync>| XskError::Umem { bytes, huge, source };
        raise_memlock_limit();
        let config = UmemConfig::builder()
            .frame_size(FrameSize::new(frame_size).map_err(|error| refused(Box::new(error)))?)
            .fill_queue_size(QueueSize::new(LARGEST_RING).map_err(|error| refused(Box::new(error)))?)
            .comp_queue_size(QueueSize::new(LARGEST_RING).map_err(|error| refused(Box::new(error)))?)
            .build()
            .map_err(|error| refused(Box::new(error)))?;
        let (umem, mut descs) =
            xsk_rs::Umem::new(config, count, huge).map_err(|error| refused(Box::new(Explained::from(error))))?;
        let first = &mut descs[0];
        let offset = first.addr();
        // SAFETY: `first` is a descriptor of this UMEM that nobody else uses: no frame has been handed out yet.
        let data = unsafe { umem.data_mut(first) }.contents().as_ptr();
        // The area's address was given to the kernel as an integer (XDP_UMEM_REG), so its provenance is exposed; the
        // pointer into the first frame only tells the address.
        let base = std::ptr::with_exposed_provenance_mut(data.addr() - offset);
        let places = descs.iter().map(|desc| UnsafeCell::new(*desc)).collect();
        let backing = Backing::Kernel(KernelUmem { umem, descs: places });
        let inner = Inner { id: next_id(), frames, frame_size, base, backing };
        let tokens = descs.iter().map(|desc| inner.adopt(*desc)).collect();
        Ok((Umem { inner: Arc::new(inner) }, tokens))
    }

    /// Plain memory without a kernel behind it, for in-memory queues; needs no privileges.
    ///
    /// # Errors
    ///
    /// [`XskError::Geometry`] for a size that does not work.
    pub fn anonymous(frames: u32, frame_size: u32) -> Result<(Umem, Vec<Frame>), XskError> {
        check_geometry(frames, frame_size)?;
        let area = Area::new(frames as usize * frame_size as usize);
        let base = area.0.cast::<u8>();
        let inner = Inner { id: next_id(), frames, frame_size, base, backing: Backing::Anonymous(area) };
        let tokens = (0..frames).map(|index| inner.frame(index, HEADROOM as u16, 0)).collect();
        Ok((Umem { inner: Arc::new(inner) }, tokens))
    }

    /// How many frames there are.
    #[must_use]
    pub fn frames(&self) -> u32 {
        self.inner.frames
    }

    /// Size of one frame in bytes, headroom included.
    #[must_use]
    pub fn frame_size(&self) -> u32 {
        self.inner.frame_size
    }

    /// The packet in `frame`: [`Frame::len`] bytes from the Ethernet header on.
    ///
    /// # Panics
    ///
    /// If the frame belongs to another UMEM.
    #[inline]
    #[must_use]
    pub fn packet<'a>(&'a self, frame: &'a Frame) -> &'a [u8] {
        let start = self.packet_ptr(frame);
        // SAFETY: `start + len` is inside the frame (`len <= room` always), the memory is mapped while `self` lives and
        // was zeroed when mapped; the shared borrow of the only `Frame` of this index excludes writers.
        unsafe { std::slice::from_raw_parts(start, usize::from(frame.len)) }
    }

    /// All bytes of `frame` from the packet's start to the frame's end, whatever its length is.
    ///
    /// # Panics
    ///
    /// If the frame belongs to another UMEM.
    #[inline]
    #[must_use]
    pub fn room_mut<'a>(&'a self, frame: &'a mut Frame) -> &'a mut [u8] {
        let start = self.packet_ptr(frame);
        // SAFETY: `start + room` is the frame's end, the memory is mapped while `self` lives and was zeroed when mapped;
        // the exclusive borrow of the only `Frame` of this index excludes every other access.
        unsafe { std::slice::from_raw_parts_mut(start, usize::from(frame.room)) }
    }

    #[inline]
    fn packet_ptr(&self, frame: &Frame) -> *mut u8 {
        assert_eq!(frame.umem, self.inner.id, "a frame of another UMEM");
        let offset = frame.index as usize * self.inner.frame_size as usize + usize::from(frame.start);
        // SAFETY: a frame of this UMEM has `index < frames` and `start < frame_size` (checked where frames are made), so
        // the offset stays inside the area.
        unsafe { self.inner.base.add(offset) }
    }

    /// The xsk-rs UMEM, if there is a kernel behind this one.
    pub(crate) fn kernel(&self) -> Option<&xsk_rs::Umem> {
        match &self.inner.backing {
            Backing::Kernel(kernel) => Some(&kernel.umem),
            Backing::Anonymous(_) => None,
        }
    }

    /// The frame that a descriptor from an RX or completion ring stands for.
    ///
    /// # Panics
    ///
    /// If the descriptor points outside the UMEM, which only a broken kernel could make it do.
    ///
    /// # Safety
    ///
    /// The kernel must just have given the descriptor back, so that no other `Frame` of its index exists.
    #[inline]
    pub(crate) unsafe fn adopt(&self, desc: FrameDesc) -> Frame {
        self.inner.adopt(desc)
    }

    /// Gives up `frame` for its descriptor, with the length written into it.
    ///
    /// # Panics
    ///
    /// If the frame belongs to another UMEM, or there is no kernel behind this one.
    #[inline]
    pub(crate) fn surrender(&self, frame: Frame) -> FrameDesc {
        assert_eq!(frame.umem, self.inner.id, "a frame of another UMEM");
        let Backing::Kernel(kernel) = &self.inner.backing else {
            panic!("a frame for the kernel, which has none here")
        };
        // SAFETY: `frame` is the only one of its index, so nobody else reads or writes the index's description.
        let mut desc = unsafe { *kernel.descs[frame.index as usize].get() };
        // SAFETY: the descriptor belongs to this UMEM (checked above) and `frame`, owned here, is the only access to it.
        unsafe { kernel.umem.data_mut(&mut desc) }.cursor().set_pos(usize::from(frame.len));
        desc.set_options(0);
        desc
    }

    /// Whether `frame` is one of this UMEM.
    pub(crate) fn owns(&self, frame: &Frame) -> bool {
        frame.umem == self.inner.id
    }
}

impl Inner {
    #[inline]
    fn adopt(&self, desc: FrameDesc) -> Frame {
        let index = desc.addr() / self.frame_size as usize;
        let start = desc.addr() % self.frame_size as usize;
        let len = desc.lengths().data();
        assert!(index < self.frames as usize, "the kernel returned a descriptor outside the UMEM");
        assert!(start + len <= self.frame_size as usize, "the kernel returned a packet that leaves its frame");
        if let Backing::Kernel(kernel) = &self.backing {
            let place = kernel.descs[index].get();
            // SAFETY: who adopts a frame has it alone (see `Umem::adopt`), and with it the index's description.
            unsafe {
                if (*place).addr() != desc.addr() {
                    *place = desc;
                }
            }
        }
        // Frame sizes are at most 4096 and there are at most u32::MAX frames, so none of these truncates.
        self.frame(index as u32, start as u16, len as u16)
    }

    #[inline]
    fn frame(&self, index: u32, start: u16, len: u16) -> Frame {
        Frame { index, umem: self.id, start, len, room: self.frame_size as u16 - start }
    }
}

impl Frame {
    /// Which frame of its UMEM this is, from 0.
    #[inline]
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Length of the packet in bytes, Ethernet header included.
    #[inline]
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "an empty frame is a spare one, nobody asks")]
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// Bytes from the packet's start to the frame's end: the longest that the packet can get.
    #[inline]
    #[must_use]
    pub fn room(&self) -> usize {
        usize::from(self.room)
    }

    /// Sets the packet's length in bytes.
    ///
    /// # Panics
    ///
    /// If it is longer than [`Frame::room`].
    #[inline]
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= usize::from(self.room), "a packet of {len} bytes in a frame with room for {}", self.room);
        self.len = len as u16;
    }

    /// Empties the frame. The packet's start stays where the kernel put it, behind the headroom.
    #[inline]
    pub fn reset(&mut self) {
        self.len = 0;
    }
}

/// An xsk-rs error whose `Display` leaves its source out, told in one line.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Explained {
    message: String,
}

impl From<xsk_rs::umem::UmemCreateError> for Explained {
    fn from(error: xsk_rs::umem::UmemCreateError) -> Explained {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        Explained { message: format!("{error}{cause}") }
    }
}

fn next_id() -> u16 {
    NEXT_ID.fetch_add(1, Ordering::Relaxed)
}

fn check_geometry(frames: u32, frame_size: u32) -> Result<NonZeroU32, XskError> {
    match (NonZeroU32::new(frames), frame_size) {
        (Some(count), 2048 | 4096) => Ok(count),
        _ => Err(XskError::Geometry { frames, frame_size }),
    }
}

/// Lifts the limit on locked memory, which the UMEM's pages count against for a process without `CAP_IPC_LOCK`.
///
/// A refusal is no error here: registering the memory tells whether the limit matters.
fn raise_memlock_limit() {
    let unlimited = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: setrlimit only reads the struct, which lives through the call.
    if unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) } != 0 {
        tracing::debug!(error = %std::io::Error::last_os_error(), "cannot raise RLIMIT_MEMLOCK");
    }
}
