//! Whether a device completes the checksums of what it sends (`tx-checksumming` of ethtool(8)): on a virtual one nobody
//! does, and the other end sees them as they were left.
//!
//! Sources: `linux/ethtool.h` and the kernel's `net/ethtool/ioctl.c`, `ETHTOOL_GTXCSUM` and `ETHTOOL_STXCSUM`.

use std::io;

use crate::vlan::ethtool;

const ETHTOOL_GTXCSUM: u32 = 0x16;
const ETHTOOL_STXCSUM: u32 = 0x17;

/// Has the kernel complete checksums, and cut long segments, before it gives a packet to `interface`.
///
/// # Errors
///
/// What the kernel returned: no such interface, a driver that cannot do otherwise, or `CAP_NET_ADMIN` missing.
pub fn send_whole_checksums(interface: &str) -> io::Result<()> {
    if ethtool(interface, ETHTOOL_GTXCSUM, 0)? != 0 {
        ethtool(interface, ETHTOOL_STXCSUM, 0)?;
    }
    // A driver may keep what the kernel asked it to change.
    match ethtool(interface, ETHTOOL_GTXCSUM, 0)? {
        0 => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
    }
}
