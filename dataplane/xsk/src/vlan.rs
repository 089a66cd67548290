//! Whether a NIC takes VLAN tags off the frames that it receives (`rx-vlan-offload` of ethtool(8)) and tells them beside
//! the frame: then neither the steering program nor a socket sees them.
//!
//! Sources: `linux/ethtool.h` and the kernel's `net/ethtool/ioctl.c`, `ETHTOOL_GFLAGS` and `ETHTOOL_SFLAGS`.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_SFLAGS: u32 = 0x26;
/// Tags of 802.1Q are taken off.
const ETH_FLAG_RXVLAN: u32 = 1 << 8;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Whether `interface` takes VLAN tags off the frames that it receives.
///
/// # Errors
///
/// What the kernel returned: no such interface. One whose driver knows of no such thing does not.
pub fn strips_vlan_tags(interface: &str) -> io::Result<bool> {
    match ethtool(interface, ETHTOOL_GFLAGS, 0) {
        Ok(flags) => Ok(flags & ETH_FLAG_RXVLAN != 0),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Has `interface` take VLAN tags off the frames that it receives, or leave them.
///
/// # Errors
///
/// What the kernel returned: no such interface, a NIC that cannot do otherwise, or `CAP_NET_ADMIN` missing.
pub fn set_vlan_stripping(interface: &str, strips: bool) -> io::Result<()> {
    let flags = ethtool(interface, ETHTOOL_GFLAGS, 0)?;
    let wanted = if strips { flags | ETH_FLAG_RXVLAN } else { flags & !ETH_FLAG_RXVLAN };
    if wanted != flags {
        ethtool(interface, ETHTOOL_SFLAGS, wanted)?;
    }
    // A driver may keep what the kernel asked it to change.
    match strips_vlan_tags(interface)? {
        found if found == strips => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
    }
}

/// Asks a driver, or tells it; gives what it answers.
pub(crate) fn ethtool(interface: &str, command: u32, data: u32) -> io::Result<u32> {
    // SAFETY: plain integers.
    let raw = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    let mut name = [0; libc::IFNAMSIZ];
    // The last octet stays 0.
    if interface.is_empty() || interface.len() >= name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    let mut value = Value { command, data };
    let ifru_data = (&raw mut value).cast();
    let mut request = libc::ifreq { ifr_name: name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data } };
    // SAFETY: the request is a whole `ifreq` whose data is a whole `ethtool_value`, which both commands read and write; both
    // outlive the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(value.data)
}
