//! Parts of fragmented datagrams, in place: whether one is sound, the headers that the first one has, the rewrite of the
//! others, and the cutting of IPv4 packets (RFC 791 section 3.2, RFC 8200 section 4.5).
//!
//! The transport checksum stands in the first part and covers all of them, so it is carried over by its difference
//! alone ([`crate::checksum`]); nothing here puts datagrams together.

use core::ops::Range;

use crate::addr::Protocol;
use crate::checksum::{self, Delta};
use crate::nat::Rewrite;
use crate::packet::{Fragment, Ip, ParseError, Transport};
use crate::{field, icmp, ipv4, ipv6, parse};

/// Offsets are in units of so many octets, and so is the length of every part but the last.
pub const UNIT: u16 = 8;
/// Octets of an IPv6 fragment header.
pub(crate) const HEADER_LEN_V6: u16 = 8;
/// That header where another names what comes next (RFC 8200 section 4.5).
pub(crate) const HEADER: Protocol = Protocol(44);
/// Before where an IPv6 fragment header ends, where its identification begins.
const ID_BACK_V6: usize = 4;
/// Octets of a datagram's payload at most, headers before the fragment header included.
const LONGEST: u32 = 65_535;
/// Most octets of IPv4 options.
const MAX_OPTIONS: usize = 40;

impl Fragment {
    /// Octets of the datagram that it has.
    #[must_use]
    pub const fn len(&self) -> u16 {
        self.ip.end - self.ip.l4
    }

    /// Whether it has nothing of the datagram; such a one is not sound.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it can be a part of a datagram: it has something, ends on a unit if more follows, and does not end past the
    /// longest datagram (RFC 791 section 3.2, RFC 8200 section 4.5).
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let len = self.len();
        let before = self.ip.l4 - self.ip.l3 - if self.ip.ipv6 { ipv6::HEADER_LEN as u16 + HEADER_LEN_V6 } else { 0 };
        let end = u32::from(before) + u32::from(self.offset) + u32::from(len);
        len > 0 && (!self.more || len.is_multiple_of(UNIT)) && end <= LONGEST
    }

    /// Whether it could write over the header of a TCP segment from the second unit on, as none does that a sender made
    /// (RFC 3128 section 4).
    #[must_use]
    pub fn is_within_tcp_header(&self) -> bool {
        self.ip.protocol == Protocol::TCP && self.offset == UNIT
    }
}

/// Reads the headers of a datagram's first part: of TCP, UDP or SCTP, all of it in this part (RFC 1858 section 3.2.2, RFC 7112
/// section 5). `None`: another protocol.
///
/// # Errors
/// [`ParseError::Truncated`] if they are not all in it; others if they contradict themselves.
///
/// # Panics
/// If `frame` is not the one that was parsed.
pub fn first_part(frame: &[u8], part: &Fragment) -> Result<Option<Transport>, ParseError> {
    let ip = if part.ip.ipv6 { ipv6::fragmented(frame, part.ip)? } else { part.ip };
    match ip.protocol {
        Protocol::TCP | Protocol::UDP | Protocol::SCTP => parse::transport(frame, ip, true).map(Some),
        _ => Ok(None),
    }
}

/// Whether a datagram's first part shows that it is an echo request (RFC 792, RFC 4443 section 4.1); its checksum covers all
/// parts, and is not looked at.
///
/// # Panics
/// If `frame` is not the one that was parsed.
#[must_use]
pub fn is_echo_request(frame: &[u8], part: &Fragment) -> bool {
    let (protocol, kind) = match part.ip.ipv6 {
        true => (Protocol::ICMPV6, icmp::V6_ECHO_REQUEST),
        false => (Protocol::ICMP, icmp::V4_ECHO_REQUEST),
    };
    let message = &frame[usize::from(part.ip.l4)..usize::from(part.ip.end)];
    part.ip.protocol == protocol && message.len() >= icmp::HEADER_LEN && message[..2] == [kind, 0]
}

/// Rewrites a later part in place: addresses, TTL or hop limit less one, header checksum. The TTL is 1 at least.
///
/// # Panics
/// If `frame` is not the one that was parsed.
pub fn rewrite_part(frame: &mut [u8], part: &Fragment, r: &Rewrite) {
    let packet = &mut frame[usize::from(part.ip.l3)..];
    if part.ip.ipv6 {
        ipv6::rewrite(packet, r.src, r.dst);
    } else {
        ipv4::rewrite(packet, r.src, r.dst, r.ip_delta);
    }
}

/// Gives a part another identification, of which IPv4 has the lower half.
///
/// # Panics
/// If `frame` is not the one that was parsed, or its rewrite in place.
pub fn set_part_id(frame: &mut [u8], part: &Fragment, id: u32) {
    if part.ip.ipv6 {
        field::put_u32(frame, usize::from(part.ip.l4) - ID_BACK_V6, id);
    } else {
        set_id_v4(&mut frame[usize::from(part.ip.l3)..], id as u16);
    }
}

/// Writes the identification of the IPv4 header at the start of `packet`.
fn set_id_v4(packet: &mut [u8], id: u16) {
    let delta = Delta::between(&packet[ipv4::ID..ipv4::ID + 2], &id.to_be_bytes());
    field::put_u16(packet, ipv4::ID, id);
    let checksum = delta.apply(field::u16_at(packet, ipv4::CHECKSUM));
    field::put_u16(packet, ipv4::CHECKSUM, checksum);
}

/// An IPv4 packet, a part of a datagram or not, in pieces that a link takes (RFC 791 section 3.2, RFC 1812 section
/// 4.2.2.7).
///
/// The first piece is made in place, so it is made last: the others are copied out of the packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cutting {
    /// Offset of the IP header.
    l3: u16,
    /// Offset of what is cut.
    l4: u16,
    end: u16,
    /// Flags and offset of the packet as it is.
    fragment: u16,
    /// Octets of payload of every piece but the last; the first one's header may be longer than the others'.
    step: u16,
}

impl Cutting {
    /// How to cut `ip` for a link that takes `mtu` octets; `None` where it must not be cut, cannot be, or need not.
    ///
    /// # Panics
    /// If `frame` is not the one that was parsed, or its rewrite in place.
    #[must_use]
    pub fn plan(frame: &[u8], ip: &Ip, mtu: u16) -> Option<Self> {
        if ip.ipv6 || ip.end - ip.l3 <= mtu {
            return None;
        }
        let fragment = field::u16_at(frame, usize::from(ip.l3) + ipv4::FRAGMENT);
        let step = mtu.checked_sub(ip.l4 - ip.l3)? / UNIT * UNIT;
        let payload = ip.end - ip.l4;
        let offset = (fragment & ipv4::OFFSET_MASK) * UNIT;
        if fragment & ipv4::DONT_FRAGMENT != 0 || step == 0 || u32::from(offset) + u32::from(payload) > LONGEST {
            return None;
        }
        Some(Self { l3: ip.l3, l4: ip.l4, end: ip.end, fragment, step })
    }

    /// Pieces, the first one included: two at least.
    #[must_use]
    pub const fn pieces(&self) -> u16 {
        (self.end - self.l4).div_ceil(self.step)
    }

    /// Octets of the longest frame that a piece becomes.
    #[must_use]
    pub const fn longest_frame(&self) -> usize {
        self.l4 as usize + self.step as usize
    }

    fn payload_of(&self, number: u16) -> Range<usize> {
        let start = self.l4 + number * self.step;
        usize::from(start)..usize::from(self.end.min(start.saturating_add(self.step)))
    }

    /// Copies a piece other than the first into a room of [`Cutting::longest_frame`] octets, all headers included; gives
    /// the length of the frame.
    ///
    /// # Panics
    /// If there is no such piece, or the room is too short.
    #[must_use]
    pub fn copy(&self, frame: &[u8], number: u16, room: &mut [u8]) -> usize {
        let (l3, l4) = (usize::from(self.l3), usize::from(self.l4));
        let mut options = [0; MAX_OPTIONS];
        let options_len = copied_options(&frame[l3 + ipv4::HEADER_LEN..l4], &mut options);
        room[..l3 + ipv4::HEADER_LEN].copy_from_slice(&frame[..l3 + ipv4::HEADER_LEN]);
        let header_len = ipv4::HEADER_LEN + options_len;
        field::put(room, l3 + ipv4::HEADER_LEN, &options[..options_len]);
        let payload = &frame[self.payload_of(number)];
        field::put(room, l3 + header_len, payload);
        self.finish(&mut room[l3..], number, header_len, payload.len());
        l3 + header_len + payload.len()
    }

    /// Makes the packet its own first piece; gives the length of the frame. What was behind it is lost to
    /// [`Cutting::copy`].
    ///
    /// # Panics
    /// If `frame` is not the one that was planned for.
    #[must_use]
    pub fn keep_first(&self, frame: &mut [u8]) -> usize {
        let payload = self.payload_of(0).len();
        self.finish(&mut frame[usize::from(self.l3)..], 0, usize::from(self.l4 - self.l3), payload);
        usize::from(self.l4) + payload
    }

    /// Writes what differs in the header of a piece, and its checksum.
    fn finish(&self, packet: &mut [u8], number: u16, header_len: usize, payload: usize) {
        packet[0] = 0x40 | (header_len / 4) as u8;
        field::put_u16(packet, ipv4::TOTAL_LEN, (header_len + payload) as u16);
        let last = number + 1 == self.pieces();
        let more = if last { self.fragment & ipv4::MORE_FRAGMENTS } else { ipv4::MORE_FRAGMENTS };
        let offset = (self.fragment & ipv4::OFFSET_MASK) + number * (self.step / UNIT);
        field::put_u16(packet, ipv4::FRAGMENT, more | offset);
        field::put_u16(packet, ipv4::CHECKSUM, 0);
        let checksum = checksum::sum(&packet[..header_len]).checksum();
        field::put_u16(packet, ipv4::CHECKSUM, checksum);
    }
}

/// Gives a whole IPv4 packet that will be cut an identification; the others keep theirs.
///
/// # Panics
/// If `frame` is not the one that was parsed, or its rewrite in place.
pub fn set_whole_id(frame: &mut [u8], ip: &Ip, id: u16) {
    let packet = &mut frame[usize::from(ip.l3)..];
    if !ip.ipv6 && field::u16_at(packet, ipv4::FRAGMENT) & ipv4::PART == 0 {
        set_id_v4(packet, id);
    }
}

/// Those of a header's options that every piece has (RFC 791 section 3.1, the copied flag), padded to words; gives their
/// length. Options that make no sense end the list.
fn copied_options(options: &[u8], out: &mut [u8; MAX_OPTIONS]) -> usize {
    const COPIED: u8 = 0x80;
    let (mut at, mut len) = (0, 0);
    while let Some(&kind) = options.get(at).filter(|kind| **kind != ipv4::END_OF_OPTIONS) {
        if kind == ipv4::NO_OPERATION {
            at += 1;
            continue;
        }
        let size = options.get(at + 1).map_or(0, |size| usize::from(*size));
        let Some(option) = options.get(at..at + size).filter(|_| size >= 2) else { break };
        if kind & COPIED != 0 {
            field::put(&mut out[..], len, option);
            len += size;
        }
        at += size;
    }
    len.next_multiple_of(4)
}

#[cfg(test)]
#[path = "fragment_tests.rs"]
mod tests;
