//! UMEM, AF_XDP sockets and the steering program.
//!
//! This room knows frames, rings and the kernel's XDP hook; it knows nothing of flows. Its invariants:
//!
//! - A [`Frame`] is exclusive ownership of one UMEM frame. It is moved, never copied, and handed to the kernel by
//!   [`Queue::send`] and [`Queue::refill`] only; it comes back by [`Queue::receive`] and [`Queue::reclaim`] only. So no
//!   frame is ever lost or used twice while its queue lives, and counting the frames in hand plus [`Queue::held`] of
//!   every queue always gives the number that the UMEM was made with.
//! - On the packet path nothing allocates, locks or logs; [`Queue::kick`] is the one system call, at most a few per
//!   burst.
//! - Which mode a socket or the steering program got is read back from the kernel, never assumed.
//!
//! Sources: the kernel's `Documentation/networking/af_xdp.rst`, `net/xdp/xsk.c`, `include/uapi/linux/if_xdp.h`.

mod addresses;
mod bpffs;
mod checksums;
mod error;
mod link;
pub mod memory;
mod options;
mod packet;
mod pins;
mod queue;
mod socket;
mod steering;
mod umem;
mod vlan;

pub use bpffs::{mount_bpffs, unmount_bpffs};
pub use checksums::send_whole_checksums;
pub use error::XskError;
pub use packet::PacketSocket;
pub use pins::pinned;
pub use queue::{BURST, Queue, QueueStatistics};
pub use socket::{BindMode, QueueConfig, XskQueue};
pub use steering::{AttachMode, MAX_QUEUES, SteeredAddress, Steering, SteeringCounters};
pub use umem::{Frame, Umem, max_frame_len};
pub use vlan::{set_vlan_stripping, strips_vlan_tags};
