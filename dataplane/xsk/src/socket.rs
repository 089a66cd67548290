//! A queue on a real NIC: one AF_XDP socket with its four rings.
//!
//! Invariants: a frame is surrendered to a ring only after the ring was seen to have room for it (`produce` of xsk-rs is
//! all or nothing), and adopted from a ring only as the kernel returns it. need_wakeup is always on. libxdp's own program
//! is never loaded; steering is this crate's. Source: `net/xdp/xsk.c`, `xsk_generic_xmit`.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    time::{Duration, Instant},
};

use xsk_rs::{
    CompQueue, FillQueue, FrameDesc, RxQueue, Socket, TxQueue,
    config::{BindFlags, Interface, LibxdpFlags, QueueSize, SocketConfig},
};

use crate::{BURST, Frame, Queue, QueueStatistics, Umem, XskError, options};

/// The largest ring that [`QueueConfig::ring_size`] takes, in descriptors. Fill and completion rings always have it.
pub(crate) const LARGEST_RING: u32 = 4096;

/// How long to sleep between attempts to bind a queue that a predecessor still holds.
const BIND_RETRY: Duration = Duration::from_millis(1);

/// How to bind an AF_XDP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueConfig {
    /// Descriptors in the RX and the TX ring each: a power of two, 64 to 4096. A queue holds at most twice that many
    /// frames.
    pub ring_size: u32,
    /// Zero-copy, copy, or whatever the driver has.
    pub mode: BindMode,
    /// For how long to retry while another process still holds the queue.
    pub busy_deadline: Duration,
    /// The NIC has no transmit queue of this number. The kernel binds such a socket all the same, and then keeps what is
    /// sent by it for ever (`xsk_generic_xmit` returns before it looks at the ring), so nothing is.
    pub receive_only: bool,
}

impl Default for QueueConfig {
    fn default() -> Self {
        QueueConfig {
            ring_size: 2048,
            mode: BindMode::Auto,
            busy_deadline: Duration::from_secs(2),
            receive_only: false,
        }
    }
}

/// Which mode a socket is bound in.
///
/// It counts for the first queue of a UMEM: the kernel gives all later ones the same, and refuses those whose driver
/// cannot (`EOPNOTSUPP`). Ports of unlike drivers in one process are therefore bound with [`BindMode::Copy`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BindMode {
    /// Zero-copy where the driver has it, else copy. [`Queue::zero_copy`] tells which.
    #[default]
    Auto,
    /// Zero-copy or an error.
    ZeroCopy,
    /// Always copy.
    Copy,
}

/// A NIC's queue, over AF_XDP.
///
/// Dropping it unbinds the socket (but see [`Umem`] for the first one) and loses the frames that it holds to the UMEM.
#[derive(Debug)]
pub struct XskQueue {
    // The four rings share the socket, which is closed with the last of them. Each also keeps the UMEM mapped.
    rx: RxQueue,
    tx: TxQueue,
    fill: FillQueue,
    completion: CompQueue,
    umem: Umem,
    interface: String,
    queue: u32,
    ring_size: u32,
    zero_copy: bool,
    receive_only: bool,
    /// Frames in the fill ring or on their way through RX.
    receiving: usize,
    /// Frames in the TX ring, being sent, or in the completion ring.
    sending: usize,
    kick_errors: u64,
}

impl XskQueue {
    /// Binds a socket to `queue` of `interface`, in the calling thread's network namespace.
    ///
    /// A queue that is held by another process is retried until `config.busy_deadline`.
    ///
    /// # Errors
    ///
    /// [`XskError::Bind`] when the kernel refuses, [`XskError::Option`] when the mode cannot be read back,
    /// [`XskError::RingSize`], [`XskError::NoInterface`] and [`XskError::AnonymousUmem`] before it is asked.
    pub fn bind(umem: &Umem, interface: &str, queue: u32, config: &QueueConfig) -> Result<Self, XskError> {
        let kernel = umem.kernel().ok_or(XskError::AnonymousUmem)?;
        let name: Interface = interface.parse().map_err(|_| XskError::NoInterface(interface.into()))?;
        let socket_config = socket_config(config)?;
        let deadline = Instant::now() + config.busy_deadline;
        let bind_error = |source| XskError::Bind { interface: interface.into(), queue, source };
        let (tx, rx, rings) = loop {
            // SAFETY: libxdp's program is inhibited by `socket_config`, which is what the contract asks for when an
            // (interface, queue) is bound twice over one UMEM.
            match unsafe { Socket::new(socket_config, kernel, &name, queue) } {
                Ok(rings) => break rings,
                Err(error) => {
                    let error = cause(&error);
                    match error.raw_os_error() {
                        Some(libc::EBUSY) if Instant::now() < deadline => std::thread::sleep(BIND_RETRY),
                        Some(libc::ENODEV | libc::ENXIO) => return Err(XskError::NoInterface(interface.into())),
                        _ => return Err(bind_error(error)),
                    }
                }
            }
        };
        // A second socket on the same queue over the same UMEM would share the rings of the first.
        let (fill, completion) = rings.ok_or_else(|| bind_error(io::Error::from_raw_os_error(libc::EBUSY)))?;
        let mut bound = XskQueue {
            rx,
            tx,
            fill,
            completion,
            umem: umem.clone(),
            interface: interface.into(),
            queue,
            ring_size: config.ring_size,
            zero_copy: false,
            receive_only: config.receive_only,
            receiving: 0,
            sending: 0,
            kick_errors: 0,
        };
        bound.zero_copy = options::zero_copy(bound.socket()).map_err(|source| XskError::Option {
            option: "XDP_OPTIONS",
            interface: interface.into(),
            queue,
            source,
        })?;
        if !bound.zero_copy
            && !bound.receive_only
            && let Err(error) = options::set_tx_budget(bound.socket(), config.ring_size)
        {
            tracing::debug!(interface, queue, %error, "one system call sends 32 frames: Linux 6.17 and later send more");
        }
        tracing::info!(interface, queue, zero_copy = bound.zero_copy, "bound an AF_XDP socket");
        Ok(bound)
    }

    /// The interface that it is bound to.
    #[must_use]
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// The queue of the interface that it is bound to.
    #[must_use]
    pub fn queue(&self) -> u32 {
        self.queue
    }

    /// The socket, for polling and for [`crate::Steering::insert_socket`].
    #[must_use]
    pub fn socket(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor stays open for as long as any of the four rings lives, and they live as long as `self`.
        unsafe { BorrowedFd::borrow_raw(self.rx.fd().as_raw_fd()) }
    }

    /// Descriptors that the kernel has not yet taken from the TX ring.
    fn unsent(&mut self) -> u32 {
        self.ring_size - self.tx.nb_free_exact()
    }

    /// Says whether the kernel took everything.
    fn wake_tx(&mut self) -> bool {
        if self.zero_copy {
            self.wake_tx_once();
            return self.unsent() == 0;
        }
        // In copy mode the system call itself transmits, before Linux 6.17 no more than 32 descriptors at a time, and xsk-rs
        // hides the EAGAIN that says so. Repeat while the ring drains; stop when it does not, or when everything is in the
        // driver's hands.
        let mut unsent = self.unsent();
        while unsent > 0 {
            self.wake_tx_once();
            let left = self.unsent();
            if left == unsent {
                break;
            }
            unsent = left;
        }
        unsent == 0
    }

    fn wake_tx_once(&mut self) {
        if self.tx.wakeup().is_err() {
            self.kick_errors += 1;
        }
    }
}

impl Queue for XskQueue {
    fn receive(&mut self, into: &mut Vec<Frame>, max: usize) -> usize {
        let want = max.min(BURST).min(into.capacity() - into.len());
        let mut descs = [FrameDesc::default(); BURST];
        // SAFETY: xsk-rs only writes what the kernel returned into `descs`, and adopting it below is the only use.
        let got = unsafe { self.rx.consume(&mut descs[..want]) };
        // SAFETY: each descriptor was just consumed from the RX ring, so the kernel has let go of its frame.
        into.extend(descs[..got].iter().map(|desc| unsafe { self.umem.adopt(*desc) }));
        self.receiving -= got;
        got
    }

    fn send(&mut self, frames: &mut Vec<Frame>) -> usize {
        let want = if self.receive_only { 0 } else { frames.len().min(BURST) };
        let count = want.min(self.tx.nb_free(want as u32) as usize);
        assert!(frames[..count].iter().all(|frame| frame.len() > 0), "an empty frame to send");
        assert!(frames[..count].iter().all(|frame| self.umem.owns(frame)), "a frame of another UMEM to send");
        let mut descs = [FrameDesc::default(); BURST];
        for (desc, frame) in descs.iter_mut().zip(frames.drain(..count)) {
            *desc = self.umem.surrender(frame);
        }
        // SAFETY: the descriptors are of this UMEM, and the frames that owned them were given up just above.
        let sent = unsafe { self.tx.produce(&descs[..count]) };
        // The ring is ours alone to fill, so the room seen above is still there.
        assert_eq!(sent, count, "the TX ring took fewer frames than it had room for");
        self.sending += count;
        count
    }

    fn reclaim(&mut self, pool: &mut Vec<Frame>) -> usize {
        let want = BURST.min(pool.capacity() - pool.len());
        if self.sending == 0 || want == 0 {
            return 0;
        }
        let mut descs = [FrameDesc::default(); BURST];
        // SAFETY: xsk-rs only writes what the kernel returned into `descs`, and adopting it below is the only use.
        let got = unsafe { self.completion.consume(&mut descs[..want]) };
        // SAFETY: each descriptor was just consumed from the completion ring, so the kernel has let go of its frame.
        pool.extend(descs[..got].iter().map(|desc| unsafe { self.umem.adopt(*desc) }));
        self.sending -= got;
        got
    }

    fn refill(&mut self, pool: &mut Vec<Frame>) -> usize {
        let want = pool.len().min(BURST).min(self.ring_size as usize - self.receiving);
        let count = want.min(self.fill.nb_free(want as u32) as usize);
        assert!(pool[pool.len() - count..].iter().all(|frame| self.umem.owns(frame)), "a frame of another UMEM");
        let mut descs = [FrameDesc::default(); BURST];
        let from = pool.len() - count;
        for (desc, frame) in descs.iter_mut().zip(pool.drain(from..)) {
            *desc = self.umem.surrender(frame);
        }
        // SAFETY: the descriptors are of this UMEM, and the frames that owned them were given up just above.
        let filled = unsafe { self.fill.produce(&descs[..count]) };
        // The ring is ours alone to fill, so the room seen above is still there.
        assert_eq!(filled, count, "the fill ring took fewer frames than it had room for");
        self.receiving += count;
        count
    }

    fn kick(&mut self) -> bool {
        let taken = match self.sending {
            0 => true,
            _ if self.tx.needs_wakeup() => self.wake_tx(),
            _ => self.unsent() == 0,
        };
        if self.receiving > 0 && self.fill.needs_wakeup() && self.fill.wakeup(self.rx.fd_mut(), 0).is_err() {
            self.kick_errors += 1;
        }
        taken
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket())
    }

    fn in_flight(&self) -> usize {
        self.sending
    }

    fn held(&self) -> usize {
        self.receiving + self.sending
    }

    fn statistics(&self) -> QueueStatistics {
        // It cannot fail on a bound socket; and counters of nothing are no reason to stop forwarding.
        let counters = options::statistics(self.socket()).unwrap_or_default();
        QueueStatistics { kick_errors: self.kick_errors, ..counters }
    }

    fn zero_copy(&self) -> bool {
        self.zero_copy
    }

    fn can_send(&self) -> bool {
        !self.receive_only
    }
}

fn socket_config(config: &QueueConfig) -> Result<SocketConfig, XskError> {
    if !(BURST as u32..=LARGEST_RING).contains(&config.ring_size) {
        return Err(XskError::RingSize(config.ring_size));
    }
    let ring = QueueSize::new(config.ring_size).map_err(|_| XskError::RingSize(config.ring_size))?;
    let mode = match config.mode {
        BindMode::Auto => BindFlags::empty(),
        BindMode::ZeroCopy => BindFlags::XDP_ZEROCOPY,
        BindMode::Copy => BindFlags::XDP_COPY,
    };
    Ok(SocketConfig::builder()
        .rx_queue_size(ring)
        .tx_queue_size(ring)
        .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
        .bind_flags(mode | BindFlags::XDP_USE_NEED_WAKEUP)
        .build())
}

/// The system's error below an xsk-rs one.
fn cause(error: &xsk_rs::socket::SocketCreateError) -> io::Error {
    std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<io::Error>())
        .and_then(io::Error::raw_os_error)
        .map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error)
}
