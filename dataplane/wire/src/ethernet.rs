//! The Ethernet II header (IEEE 802.3 clause 3.1.1): destination, source, type. Tags are not looked into.

use crate::addr::MacAddr;
use crate::field;

/// Octets of the header.
pub(crate) const HEADER_LEN: usize = 14;
pub(crate) const DESTINATION: usize = 0;
pub(crate) const SOURCE: usize = 6;
pub(crate) const ETHER_TYPE: usize = 12;

pub(crate) const TYPE_IPV4: u16 = 0x0800;
pub(crate) const TYPE_ARP: u16 = 0x0806;
pub(crate) const TYPE_IPV6: u16 = 0x86dd;

/// Whom the frame is for.
#[inline]
pub(crate) fn destination(frame: &[u8]) -> MacAddr {
    MacAddr(field::octets(frame, DESTINATION))
}

/// Whom the frame is from.
#[inline]
pub(crate) fn source(frame: &[u8]) -> MacAddr {
    MacAddr(field::octets(frame, SOURCE))
}

/// Whether an address is a broadcast or multicast one (the individual/group bit).
#[inline]
pub(crate) fn is_group(mac: MacAddr) -> bool {
    mac.0[0] & 1 != 0
}

/// Writes the whole header.
pub(crate) fn emit(frame: &mut [u8], src: MacAddr, dst: MacAddr, ether_type: u16) {
    field::put(frame, DESTINATION, &dst.0);
    field::put(frame, SOURCE, &src.0);
    field::put_u16(frame, ETHER_TYPE, ether_type);
}

/// Turns the header around, so that the frame goes back to where it came from.
pub(crate) fn swap(frame: &mut [u8]) {
    let (src, dst) = (source(frame), destination(frame));
    field::put(frame, DESTINATION, &src.0);
    field::put(frame, SOURCE, &dst.0);
}
