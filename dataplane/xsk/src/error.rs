//! What can go wrong while sockets, memory and the steering program are set up.

use std::{io, path::PathBuf};

/// An error of set-up code. The packet path has none.
#[derive(Debug, thiserror::Error)]
pub enum XskError {
    /// A frame size that AF_XDP does not take, or no frames at all.
    #[error("a UMEM of {frames} frames of {frame_size} bytes: frames must be 2048 or 4096 bytes and at least one")]
    Geometry {
        /// How many frames were asked for.
        frames: u32,
        /// The size that was asked for, in bytes.
        frame_size: u32,
    },
    /// The kernel refused the memory.
    #[error("cannot register {bytes} bytes as UMEM{}", if *huge { " on huge pages (are enough reserved in vm.nr_hugepages?)" } else { "" })]
    Umem {
        /// Size of the memory.
        bytes: u64,
        /// Whether huge pages were asked for.
        huge: bool,
        /// The kernel's answer.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The UMEM has no socket behind it, so nothing can be bound to it.
    #[error("an anonymous UMEM serves in-memory queues only")]
    AnonymousUmem,
    /// A ring size that is no power of two, or too large.
    #[error("ring size {0} is not a power of two between 64 and 4096")]
    RingSize(u32),
    /// No such interface in this network namespace.
    #[error("there is no interface {0}")]
    NoInterface(String),
    /// The socket could not be bound.
    #[error("cannot bind an AF_XDP socket to {interface} queue {queue}: {source}{}", bind_hint(.source))]
    Bind {
        /// The interface.
        interface: String,
        /// Its queue.
        queue: u32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// An option of a socket could not be read.
    #[error("cannot read {option} of the AF_XDP socket on {interface} queue {queue}: {source}")]
    Option {
        /// `XDP_OPTIONS` or `XDP_STATISTICS`.
        option: &'static str,
        /// The interface.
        interface: String,
        /// Its queue.
        queue: u32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel is older than 6.1.
    #[error("kernel {found} is too old: the steering program needs 6.1 or later")]
    Kernel {
        /// The version that runs.
        found: String,
    },
    /// Another XDP program holds the interface.
    #[error(
        "{interface} already has an XDP program that is not Millrace's: {name} (id {id}); detach it first, for \
         example with `ip link set dev {interface} xdp off`"
    )]
    ForeignProgram {
        /// The interface.
        interface: String,
        /// The program's name, as the kernel has it.
        name: String,
        /// The program's id.
        id: u32,
    },
    /// The steering program could not be loaded or its maps opened.
    #[error("cannot load the steering program for {interface}: {source}")]
    Load {
        /// The interface.
        interface: String,
        /// aya's account of it, with the verifier's log.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The steering program could not be attached.
    #[error("cannot attach the steering program to {interface} ({mode}): {source}")]
    Attach {
        /// The interface.
        interface: String,
        /// The mode that was tried.
        mode: &'static str,
        /// The kernel's answer.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The program that is attached is not the one that was just attached.
    #[error("{interface} runs XDP program {found:?} after steering program {expected} was attached")]
    NotAttached {
        /// The interface.
        interface: String,
        /// The id that should be there.
        expected: u32,
        /// The id that is there.
        found: Option<u32>,
    },
    /// The program stayed on the interface after its link was removed.
    #[error("{interface} still runs XDP program {id} after the steering link was removed")]
    StillAttached {
        /// The interface.
        interface: String,
        /// The program.
        id: u32,
    },
    /// A map of the steering program could not be read or written.
    #[error("steering map {map}: {source}")]
    Map {
        /// Its name.
        map: &'static str,
        /// aya's account of it.
        #[source]
        source: aya::maps::MapError,
    },
    /// A queue number that the steering program's socket map has no room for.
    #[error("queue {queue} is beyond the {} queues that can be steered", crate::MAX_QUEUES)]
    TooManyQueues {
        /// The queue.
        queue: u32,
    },
    /// One address given twice with different meanings.
    #[error("{address} is steered both wholly and by ports, or has two port ranges")]
    Contradiction {
        /// The address.
        address: std::net::IpAddr,
    },
    /// Something in the pin folder is not Millrace's.
    #[error("{} is not Millrace's: move it away, or choose another runtime folder", path.display())]
    ForeignPin {
        /// It.
        path: PathBuf,
    },
    /// A file or directory of the bpffs.
    #[error("{action} {}: {source}", path.display())]
    Path {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The link's state could not be asked for over netlink.
    #[error("cannot ask the kernel about {interface}: {source}")]
    Netlink {
        /// The interface.
        interface: String,
        /// What went wrong.
        source: io::Error,
    },
}

/// What a person can do about a bind that failed.
fn bind_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EBUSY) => " (another process holds this queue)",
        Some(libc::EOPNOTSUPP) => " (the driver has no zero-copy mode)",
        Some(libc::EINVAL) => " (does the queue exist? is it already bound by this UMEM?)",
        Some(libc::EPERM) => " (CAP_NET_RAW and CAP_NET_ADMIN are needed)",
        _ => "",
    }
}
