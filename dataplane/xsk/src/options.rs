//! What the kernel says about a bound socket and is told about it: `XDP_OPTIONS`, `XDP_STATISTICS` and
//! `XDP_MAX_TX_SKB_BUDGET` of `linux/if_xdp.h`.

use std::{
    io,
    mem::size_of,
    os::fd::{AsRawFd, BorrowedFd},
};

use crate::QueueStatistics;

/// Whether the socket was bound in zero-copy mode (`XDP_OPTIONS_ZEROCOPY`).
///
/// # Errors
///
/// What `getsockopt` returned.
pub(crate) fn zero_copy(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let mut options = libc::xdp_options { flags: 0 };
    // SAFETY: `xdp_options` is plain integers, which any bytes are valid for.
    unsafe { get(socket, libc::XDP_OPTIONS, &mut options) }?;
    Ok(options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0)
}

/// The kernel's counters of the socket; `kick_errors` is left 0.
///
/// # Errors
///
/// What `getsockopt` returned.
pub(crate) fn statistics(socket: BorrowedFd<'_>) -> io::Result<QueueStatistics> {
    let mut counters = libc::xdp_statistics {
        rx_dropped: 0,
        rx_invalid_descs: 0,
        tx_invalid_descs: 0,
        rx_ring_full: 0,
        rx_fill_ring_empty_descs: 0,
        tx_ring_empty_descs: 0,
    };
    // SAFETY: `xdp_statistics` is plain integers, which any bytes are valid for.
    unsafe { get(socket, libc::XDP_STATISTICS, &mut counters) }?;
    Ok(QueueStatistics {
        rx_dropped: counters.rx_dropped,
        rx_invalid_descs: counters.rx_invalid_descs,
        tx_invalid_descs: counters.tx_invalid_descs,
        rx_ring_full: counters.rx_ring_full,
        rx_fill_ring_empty_descs: counters.rx_fill_ring_empty_descs,
        tx_ring_empty_descs: counters.tx_ring_empty_descs,
        kick_errors: 0,
    })
}

/// `XDP_MAX_TX_SKB_BUDGET`, which libc does not have yet.
const MAX_TX_SKB_BUDGET: libc::c_int = 9;

/// Has one system call transmit up to so many descriptors in copy mode, from 32 (what kernels do that are not told) to as
/// many as the TX ring has.
///
/// # Errors
///
/// What `setsockopt` returned: `ENOPROTOOPT` before Linux 6.17, `EACCES` for another number or without a TX ring.
pub(crate) fn set_tx_budget(socket: BorrowedFd<'_>, most: u32) -> io::Result<()> {
    let len = size_of::<u32>() as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes, the size of `most`.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_XDP, MAX_TX_SKB_BUDGET, (&raw const most).cast(), len)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Reads one option of level `SOL_XDP` into `value`.
///
/// # Safety
///
/// Every bit pattern must be a valid `T`.
unsafe fn get<T>(socket: BorrowedFd<'_>, option: libc::c_int, value: &mut T) -> io::Result<()> {
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, the size of `value`, which is exclusively borrowed; the caller
    // vouches that whatever it writes is a valid `T`.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_XDP, option, (&raw mut *value).cast(), &raw mut len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
