//! The Internet checksum: sums, the full checksum of a packet, and the incremental update of RFC 1624.
//!
//! What is easily confused, settled here once:
//!
//! - A **sum** is the ones-complement sum of 16-bit words, the last odd octet padded with a zero on its right
//!   (RFC 1071). A **checksum** is the complement of a sum; only checksums stand in headers. [`Sum`] is never
//!   stored in a header but for partial checksums, below.
//! - Ones-complement arithmetic has two zeros, `0x0000` and `0xffff`. A sum over anything that is not all zero
//!   folds to 1..=0xffff, never to 0, so a computed checksum is 0..=0xfffe. RFC 1624's equation 3
//!   (`HC' = ~(~HC + ~m + m')`) keeps to that; equation 4 and RFC 1141 do not, hence equation 3.
//! - UDP has no place for a computed checksum of zero: it is sent as `0xffff` (RFC 768). A zero in the field means
//!   "none was computed": allowed over IPv4, where it is left alone, and illegal over IPv6 (RFC 8200 section 8.1),
//!   where it is left alone too, so that the receiver still sees it and drops it. TCP and ICMP have no such rule.
//! - IPv6 headers have no checksum; the pseudo-header counts for TCP, UDP and ICMPv6, not for ICMP over IPv4.
//! - A **partial** checksum (`CHECKSUM_PARTIAL` of Linux, seen on veth and virtio, where the sender left the work to
//!   the device) is the folded *sum* of the pseudo-header alone, *not* complemented. See [`is_partial`].
//! - The sum does not depend on byte order (RFC 1071 section 2 (B)): adding words as the machine loads them and
//!   turning the folded result around gives the same as adding network-order words.

use core::ops::Add;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::{Addr, Protocol};
use crate::field;
use crate::packet::Transport;
use crate::sctp;

/// A ones-complement sum, not yet folded to 16 bits.
///
/// Holds the sum of at least 65,536 folded sums without overflow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sum(u32);

impl Sum {
    /// The sum of one 16-bit number.
    #[must_use]
    #[inline]
    pub const fn word(word: u16) -> Self {
        Self(word as u32)
    }

    /// The sum in 16 bits, carries added back in.
    #[must_use]
    #[inline]
    pub const fn fold(self) -> u16 {
        let once = (self.0 & 0xffff) + (self.0 >> 16);
        ((once & 0xffff) + (once >> 16)) as u16
    }

    /// The checksum that goes into a header: the complement of the folded sum.
    #[must_use]
    #[inline]
    pub const fn checksum(self) -> u16 {
        !self.fold()
    }
}

impl Add for Sum {
    type Output = Self;

    #[inline]
    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

/// The sum of octets; an odd last one is padded with zero. Parts of odd length must come last.
#[must_use]
#[inline]
pub fn sum(bytes: &[u8]) -> Sum {
    let mut total = 0u64;
    let mut chunks = bytes.chunks_exact(4);
    for chunk in &mut chunks {
        total += u64::from(u32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]));
    }
    let mut last = [0; 4];
    let rest = chunks.remainder();
    last[..rest.len()].copy_from_slice(rest);
    total += u64::from(u32::from_ne_bytes(last));
    // 64 to 32 to 16 bits, adding the carries back in; then from the machine's order to the network's.
    let wide = (total & 0xffff_ffff) + (total >> 32);
    let wide = (wide & 0xffff_ffff) + (wide >> 32);
    Sum::word(Sum(wide as u32).fold().to_be())
}

/// Whether the checksum of an IPv4 header without options is right (RFC 791: the sum of all its words is `0xffff`).
///
/// The ones-complement sum of 64-bit words folds to the same 16 bits, and is a multiple of 65,535 where they are all ones
/// (a header begins with its version, so they are never all zero).
#[must_use]
#[inline]
pub(crate) fn is_right_v4(header: &[u8; 20]) -> bool {
    let [a, b] = [0, 8].map(|at| u64::from_ne_bytes(field::octets(header, at)));
    let (sum, carry) = a.overflowing_add(b);
    let (sum, again) = sum.overflowing_add(u64::from(u32::from_ne_bytes(field::octets(header, 16))) + u64::from(carry));
    // After a carry the sum is small, so adding that has none.
    (sum + u64::from(again)).is_multiple_of(0xffff)
}

/// The sum of the pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1); `len` is of the transport header and
/// its data, in octets.
#[must_use]
#[inline]
pub fn pseudo_header(ipv6: bool, src: Addr, dst: Addr, protocol: Protocol, len: u32) -> Sum {
    let addresses =
        if ipv6 { sum(src.octets()) + sum(dst.octets()) } else { sum(&src.v4_octets()) + sum(&dst.v4_octets()) };
    addresses + Sum::word(u16::from(protocol.0)) + Sum((len & 0xffff) + (len >> 16))
}

/// How much a checksum changes when some of the octets that it covers do (RFC 1624, equation 3).
///
/// Holds `~m + m'`, folded, in the machine's order: a sum does not depend on it, and packets are changed as they stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Delta(u16);

impl Delta {
    /// Changes nothing.
    pub const NONE: Self = Self(0);
    /// TTL less one: the TTL is the high octet of its word, so the word is less by `0x0100` whatever it was.
    pub const TTL_DECREMENT: Self = Self(0xfeff_u16.to_be());

    /// The change from `old` to `new`, which stand at the same, even offset and have the same length.
    #[must_use]
    #[inline]
    pub fn between(old: &[u8], new: &[u8]) -> Self {
        Self((Sum::word(!sum(old).fold()) + sum(new)).fold().to_be())
    }

    /// The change between two numbers of 32 bits each as they stand in packets, on even offsets.
    #[must_use]
    #[inline]
    pub(crate) const fn between_words(old: [u32; 2], new: [u32; 2]) -> Self {
        // The complement of a number of 32 bits is its negative, as that of 16 bits is: 2^32 - 1 is a multiple of 65,535.
        let wide = !old[0] as u64 + !old[1] as u64 + new[0] as u64 + new[1] as u64;
        let wide = (wide & 0xffff_ffff) + (wide >> 32);
        let wide = (wide & 0xffff) + (wide >> 16);
        Self(Sum((wide & 0xffff) as u32 + (wide >> 16) as u32).fold())
    }

    /// Both changes together.
    #[must_use]
    #[inline]
    pub const fn and(self, other: Self) -> Self {
        Self(Sum(self.0 as u32 + other.0 as u32).fold())
    }

    /// The change back. None stays none, whichever zero stands for it.
    #[must_use]
    #[inline]
    pub const fn negate(self) -> Self {
        if self.0 == 0 || self.0 == 0xffff { self } else { Self(!self.0) }
    }

    /// The new checksum. What UDP makes of a zero is the caller's business.
    #[must_use]
    #[inline]
    pub const fn apply(self, checksum: u16) -> u16 {
        u16::from_be_bytes(self.apply_to(checksum.to_be_bytes()))
    }

    /// The same of a checksum as it stands in the packet.
    #[must_use]
    #[inline]
    pub(crate) const fn apply_to(self, checksum: [u8; 2]) -> [u8; 2] {
        // Adding to the complement and complementing again is subtracting; a carry of the one is a borrow of the other.
        let (less, borrow) = u16::from_ne_bytes(checksum).overflowing_sub(self.0);
        less.wrapping_sub(borrow as u16).to_ne_bytes()
    }

    /// The number that stands for this change in a flow's record.
    #[must_use]
    #[inline]
    pub const fn to_bits(self) -> u16 {
        self.0
    }

    /// From [`Delta::to_bits`].
    #[must_use]
    #[inline]
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }
}

/// The pseudo-header's sum of a packet, addresses as they stand in the frame now.
#[inline]
fn pseudo_header_of(frame: &[u8], t: &Transport, len: usize) -> Sum {
    let l3 = usize::from(t.l3);
    // Both addresses are neighbours in either header; their sum is one run.
    let addresses = if t.ipv6 { &frame[l3 + 8..l3 + 40] } else { &frame[l3 + 12..l3 + 20] };
    sum(addresses) + Sum::word(u16::from(t.protocol.0)) + Sum::word(len as u16)
}

/// The TCP or UDP checksum of the frame as it stands now, computed from all of it, whatever the field holds.
///
/// A UDP checksum of zero comes out as `0xffff`.
///
/// # Panics
/// When `frame` is not the frame that was parsed.
#[must_use]
pub fn transport_checksum(frame: &[u8], t: &Transport) -> u16 {
    let covered = t.l4_bytes(frame);
    let field_at = t.checksum_at() - usize::from(t.l4);
    let data = sum(&covered[..field_at]) + sum(&covered[field_at + 2..]);
    let checksum = (pseudo_header_of(frame, t, covered.len()) + data).checksum();
    if checksum == 0 && t.protocol == Protocol::UDP { 0xffff } else { checksum }
}

/// Whether the transport checksum is right: what a host asks before it answers (RFC 9293 section 3.1, RFC 1122 section
/// 4.1.3.4, RFC 9260 section 6.8). UDP over IPv4 may come without one, over IPv6 not (RFC 8200 section 8.1).
///
/// # Panics
/// When `frame` is not the frame that was parsed.
#[must_use]
pub(crate) fn is_right(frame: &[u8], t: &Transport) -> bool {
    if t.is_sctp() {
        return sctp::is_right(t.l4_bytes(frame));
    }
    let is = field::u16_at(frame, t.checksum_at());
    match (t.protocol, is) {
        (Protocol::UDP, 0) => !t.ipv6,
        // The sum with the checksum is all ones, whichever zero of one's complement arithmetic stands there.
        _ => {
            let covered = t.l4_bytes(frame);
            (pseudo_header_of(frame, t, covered.len()) + sum(covered)).fold() == 0xffff
        }
    }
}

/// Whether the checksum field holds a partial checksum: the pseudo-header's sum, not complemented; of SCTP, whose CRC covers
/// no such header, zero (`csum_not_inet` of Linux).
///
/// One complete checksum in 65,536 looks the same (of SCTP, in 2^32); recomputing that one gives what it was.
///
/// # Panics
/// When `frame` is not the frame that was parsed.
#[must_use]
#[inline]
pub fn is_partial(frame: &[u8], t: &Transport) -> bool {
    if t.is_sctp() {
        return sctp::has_none(t.l4_bytes(frame));
    }
    let len = t.l4_bytes(frame).len();
    field::u16_at(frame, t.checksum_at()) == pseudo_header_of(frame, t, len).fold()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frames::{self, Spec};

    /// RFC 1071 section 4.1: word by word, network order, carries added at the end.
    fn rfc_1071(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low));
        }
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn the_example_of_rfc_1071_section_3_sums_to_ddf2() {
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]).fold(), 0xddf2);
    }

    #[test]
    fn the_example_of_rfc_1624_section_4_gives_zero_and_not_ffff() {
        assert_eq!(Delta::between(&[0x55, 0x55], &[0x32, 0x85]).apply(0xdd2f), 0x0000);
    }

    #[test]
    fn ttl_decrement_is_the_difference_of_the_word_whatever_the_ttl() {
        for ttl in 1..=255u8 {
            let direct = Delta::between(&[ttl, 6], &[ttl - 1, 6]);
            assert_eq!(Delta::TTL_DECREMENT.apply(0x1234), direct.apply(0x1234));
        }
    }

    #[test]
    fn a_partial_checksum_is_told_from_a_complete_one() {
        for spec in [Spec::v4(true), Spec::v4(false), Spec::v6(true), Spec::v6(false)] {
            let mut frame = spec.frame();
            let t = frames::transport(&frame);
            assert!(!is_partial(&frame, &t), "{spec:?}");
            let len = u32::from(t.end - t.l4);
            let partial = pseudo_header(t.ipv6, t.src, t.dst, t.protocol, len).fold();
            field::put_u16(&mut frame, t.checksum_at(), partial);
            assert!(is_partial(&frame, &t), "{spec:?}");
        }
    }

    proptest! {
        #[test]
        fn the_sum_equals_that_of_the_rfc_at_any_length(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(sum(&bytes).fold(), rfc_1071(&bytes));
        }

        #[test]
        fn a_header_of_ipv4_is_right_where_its_words_sum_to_ffff(
            mut header in any::<[u8; 20]>(), wide in any::<bool>(), right in any::<bool>(),
        ) {
            header[0] = 0x45;
            if wide {
                header[1..16].fill(0xff);
            }
            if right {
                header[10..12].fill(0);
                let checksum = sum(&header).checksum();
                header[10..12].copy_from_slice(&checksum.to_be_bytes());
            }
            prop_assert_eq!(is_right_v4(&header), rfc_1071(&header) == 0xffff);
            prop_assert!(!right || is_right_v4(&header));
        }

        #[test]
        fn an_update_equals_a_recomputation(
            mut bytes in proptest::collection::vec(any::<u8>(), 40..41), new in any::<[u8; 8]>(), at in 0usize..16,
        ) {
            bytes[39] |= 1;
            let before = sum(&bytes).checksum();
            let delta = Delta::between(&bytes[at * 2..at * 2 + 8], &new);
            bytes[at * 2..at * 2 + 8].copy_from_slice(&new);
            prop_assume!(sum(&bytes).fold() != 0);
            prop_assert_eq!(delta.apply(before), sum(&bytes).checksum());
            prop_assert_eq!(delta.negate().apply(delta.apply(before)), before);
        }

        #[test]
        fn the_full_checksum_is_what_etherparse_computed(spec in frames::any_spec()) {
            let frame = spec.frame();
            let t = frames::transport(&frame);
            prop_assert_eq!(transport_checksum(&frame, &t), field::u16_at(&frame, t.checksum_at()));
        }
    }
}
