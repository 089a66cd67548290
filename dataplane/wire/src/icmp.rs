//! ICMP (RFC 792) and ICMPv6 (RFC 4443) messages: which kind one is, and the numbers of those that are sent here.

use crate::addr::{Addr, Protocol};
use crate::packet::{Ip, Packet, ParseError};
use crate::{checksum, field, ndp};

/// Octets of type, code, checksum and the four octets that depend on the type.
pub(crate) const HEADER_LEN: usize = 8;
pub(crate) const CHECKSUM: usize = 2;
/// Where an error tells an MTU: 32 bits in ICMPv6, the lower 16 of them in ICMP (RFC 1191 section 4).
pub(crate) const MTU: usize = 4;

pub(crate) const V4_ECHO_REPLY: u8 = 0;
pub(crate) const V4_UNREACHABLE: u8 = 3;
/// The code of the former that is no lack of a way.
pub(crate) const V4_FRAGMENTATION_NEEDED: u8 = 4;
const V4_SOURCE_QUENCH: u8 = 4;
const V4_REDIRECT: u8 = 5;
pub(crate) const V4_ECHO_REQUEST: u8 = 8;
pub(crate) const V4_TIME_EXCEEDED: u8 = 11;
const V4_PARAMETER_PROBLEM: u8 = 12;

pub(crate) const V6_UNREACHABLE: u8 = 1;
pub(crate) const V6_PACKET_TOO_BIG: u8 = 2;
pub(crate) const V6_TIME_EXCEEDED: u8 = 3;
pub(crate) const V6_ECHO_REQUEST: u8 = 128;
pub(crate) const V6_ECHO_REPLY: u8 = 129;
const V6_REDIRECT: u8 = 137;

/// Whether an error must never be sent about a message of this type.
///
/// Redirects are none of the errors that quote a flow, but RFC 1122 section 3.2.2 and RFC 4443 section 2.4 (e.2)
/// bar them too.
pub(crate) fn is_error_or_redirect(ipv6: bool, kind: u8) -> bool {
    is_error(ipv6, kind) || kind == if ipv6 { V6_REDIRECT } else { V4_REDIRECT }
}

/// Whether a type is an error that quotes a packet.
fn is_error(ipv6: bool, kind: u8) -> bool {
    if ipv6 {
        kind < 128
    } else {
        matches!(kind, V4_UNREACHABLE | V4_SOURCE_QUENCH | V4_TIME_EXCEEDED | V4_PARAMETER_PROBLEM)
    }
}

/// Tells the kind of a whole ICMP message.
pub(crate) fn parse(frame: &[u8], ip: Ip) -> Result<Packet, ParseError> {
    let message = &frame[usize::from(ip.l4)..usize::from(ip.end)];
    if message.len() < HEADER_LEN {
        return Err(ParseError::Truncated);
    }
    let (kind, code) = (message[0], message[1]);
    let echo_request = if ip.ipv6 { V6_ECHO_REQUEST } else { V4_ECHO_REQUEST };
    match kind {
        _ if kind == echo_request && code == 0 => Ok(Packet::EchoRequest(ip)),
        _ if is_error(ip.ipv6, kind) => Ok(Packet::IcmpError(ip)),
        ndp::SOLICITATION if ip.ipv6 => ndp::parse_solicitation(frame, ip).map(Packet::NeighborSolicitation),
        ndp::ADVERTISEMENT if ip.ipv6 => ndp::parse_advertisement(frame, ip).map(Packet::NeighborAdvertisement),
        _ => Ok(Packet::IcmpOther(ip)),
    }
}

/// The sum of a message between these addresses, of ICMPv6 with its pseudo-header; `0xffff` folded when its checksum is
/// right.
pub(crate) fn sum(message: &[u8], src: Addr, dst: Addr) -> checksum::Sum {
    let message_sum = checksum::sum(message);
    if src.is_v4() {
        return message_sum;
    }
    checksum::pseudo_header(true, src, dst, Protocol::ICMPV6, message.len() as u32) + message_sum
}

/// Computes and writes the checksum of a message between these addresses.
pub(crate) fn put_checksum(message: &mut [u8], src: Addr, dst: Addr) {
    field::put_u16(message, CHECKSUM, 0);
    let checksum = sum(message, src, dst).checksum();
    field::put_u16(message, CHECKSUM, checksum);
}
