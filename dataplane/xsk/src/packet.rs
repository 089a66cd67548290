//! A packet socket (`packet(7)`) for the control plane's own ARP and neighbour discovery.
//!
//! It sees what the steering program leaves to the kernel, and what the kernel itself sends.

use std::{
    ffi::CString,
    io,
    mem::size_of,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

/// A non-blocking raw `AF_PACKET` socket on one interface and one EtherType; whole Ethernet frames in and out.
#[derive(Debug)]
pub struct PacketSocket {
    socket: OwnedFd,
    index: u32,
}

impl PacketSocket {
    /// Opens a socket on `interface` for frames of `ethertype` (host order, for example 0x0806).
    ///
    /// # Errors
    ///
    /// What the kernel returned: no such interface, or `CAP_NET_RAW` missing.
    pub fn open(interface: &str, ethertype: u16) -> io::Result<PacketSocket> {
        let name = CString::new(interface)?;
        // SAFETY: the name is NUL-terminated and outlives the call.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(io::Error::last_os_error());
        }
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // Protocol 0: nothing arrives before the bind names interface and EtherType together.
        // SAFETY: plain integers.
        let raw = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just opened and belongs to nobody else.
        let socket = unsafe { OwnedFd::from_raw_fd(raw) };
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: ethertype.to_be(),
            sll_ifindex: index as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the address is a whole `sockaddr_ll` of that length and outlives the call.
        if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(PacketSocket { socket, index })
    }

    /// Has the NIC deliver frames for one link-layer multicast group, until the socket is closed.
    ///
    /// # Errors
    ///
    /// What the kernel returned.
    pub fn join_multicast(&self, group: [u8; 6]) -> io::Result<()> {
        self.membership(libc::PACKET_ADD_MEMBERSHIP, group)
    }

    /// Undoes [`PacketSocket::join_multicast`].
    ///
    /// # Errors
    ///
    /// What the kernel returned; not having joined is one.
    pub fn leave_multicast(&self, group: [u8; 6]) -> io::Result<()> {
        self.membership(libc::PACKET_DROP_MEMBERSHIP, group)
    }

    fn membership(&self, option: libc::c_int, group: [u8; 6]) -> io::Result<()> {
        let mut address = [0; 8];
        address[..6].copy_from_slice(&group);
        let request = libc::packet_mreq {
            mr_ifindex: self.index as i32,
            mr_type: libc::PACKET_MR_MULTICAST as u16,
            mr_alen: 6,
            mr_address: address,
        };
        let len = size_of::<libc::packet_mreq>() as libc::socklen_t;
        // SAFETY: the request is a whole `packet_mreq` of that length and outlives the call.
        let result = unsafe {
            libc::setsockopt(self.socket.as_raw_fd(), libc::SOL_PACKET, option, (&raw const request).cast(), len)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Sends one Ethernet frame, without its checksum.
    ///
    /// # Errors
    ///
    /// What the kernel returned, `WouldBlock` when its buffer is full.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: the kernel reads `frame.len()` bytes of a slice that is borrowed through the call.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Receives one Ethernet frame into `buffer`; `None` when there is none. Returns its length, cut to the buffer's.
    ///
    /// # Errors
    ///
    /// What the kernel returned, for example `ENETDOWN` once when the interface goes down.
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        // SAFETY: the kernel writes at most `buffer.len()` bytes to a slice that is exclusively borrowed.
        let got = unsafe { libc::recv(self.socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        if got >= 0 {
            return Ok(Some(got as usize));
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
            _ => Err(error),
        }
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
