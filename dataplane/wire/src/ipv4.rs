//! The IPv4 header (RFC 791 section 3.1).

use crate::addr::{Addr, MacAddr, Protocol};
use crate::checksum::{self, Delta};
use crate::field;
use crate::packet::{Fragment, Ip, ParseError};
use crate::quote::QuotedIp;

/// Octets of a header without options.
pub(crate) const HEADER_LEN: usize = 20;
pub(crate) const TOTAL_LEN: usize = 2;
pub(crate) const ID: usize = 4;
pub(crate) const FRAGMENT: usize = 6;
pub(crate) const TTL: usize = 8;
pub(crate) const PROTOCOL: usize = 9;
pub(crate) const CHECKSUM: usize = 10;
pub(crate) const SRC: usize = 12;
pub(crate) const DST: usize = 16;

pub(crate) const END_OF_OPTIONS: u8 = 0;
pub(crate) const NO_OPERATION: u8 = 1;
const LOOSE_SOURCE_ROUTE: u8 = 131;
const STRICT_SOURCE_ROUTE: u8 = 137;

pub(crate) const DONT_FRAGMENT: u16 = 0x4000;
pub(crate) const MORE_FRAGMENTS: u16 = 0x2000;
pub(crate) const OFFSET_MASK: u16 = 0x1fff;
/// Any of these bits: a part of a datagram.
pub(crate) const PART: u16 = MORE_FRAGMENTS | OFFSET_MASK;

/// Checks the header at `l3`; a part of a datagram comes with its [`Fragment`].
#[inline]
pub(crate) fn parse(frame: &[u8], l3: usize, src_mac: MacAddr) -> Result<(Ip, Option<Fragment>), ParseError> {
    let packet = &frame[l3..];
    if packet.len() < HEADER_LEN {
        return Err(ParseError::Truncated);
    }
    let header_len = usize::from(packet[0] & 0x0f) * 4;
    let total_len = usize::from(field::u16_at(packet, TOTAL_LEN));
    if packet[0] >> 4 != 4 || header_len < HEADER_LEN || total_len < header_len {
        return Err(ParseError::BadHeader);
    }
    if total_len > packet.len() {
        return Err(ParseError::Truncated);
    }
    if checksum::sum(&packet[..header_len]).fold() != 0xffff {
        return Err(ParseError::BadChecksum);
    }
    if header_len > HEADER_LEN {
        check_options(&packet[HEADER_LEN..header_len])?;
    }
    let ip = Ip {
        src: Addr::from_v4(field::octets(packet, SRC)),
        dst: Addr::from_v4(field::octets(packet, DST)),
        l3: l3 as u16,
        l4: (l3 + header_len) as u16,
        end: u16::try_from(l3 + total_len).map_err(|_| ParseError::BadHeader)?,
        ipv6: false,
        protocol: Protocol(packet[PROTOCOL]),
        ttl: packet[TTL],
        src_mac,
    };
    let word = field::u16_at(packet, FRAGMENT);
    if word & PART == 0 {
        return Ok((ip, None));
    }
    let id = u32::from(field::u16_at(packet, ID));
    let fragment = Fragment { ip, id, offset: (word & OFFSET_MASK) << 3, more: word & MORE_FRAGMENTS != 0 };
    Ok((ip, Some(fragment)))
}

/// Checks that options lie within their header, and that none says what way the packet is to take.
#[cold]
fn check_options(options: &[u8]) -> Result<(), ParseError> {
    let mut at = 0;
    while let Some(&kind) = options.get(at).filter(|kind| **kind != END_OF_OPTIONS) {
        if kind == NO_OPERATION {
            at += 1;
            continue;
        }
        let len = options.get(at + 1).map_or(0, |len| usize::from(*len));
        if len < 2 || at + len > options.len() {
            return Err(ParseError::BadHeader);
        }
        if kind == LOOSE_SOURCE_ROUTE || kind == STRICT_SOURCE_ROUTE {
            return Err(ParseError::SourceRoute);
        }
        at += len;
    }
    Ok(())
}

/// The header at the start of a quoted packet, of which all is there with its options, and not all may be behind it; `None`
/// where the transport header is in another part of the datagram. Routers may have changed what its checksum covers (RFC
/// 1812 section 4.3.2.3).
pub(crate) fn quoted(packet: &[u8]) -> Result<Option<QuotedIp>, ParseError> {
    let header = packet.first_chunk::<HEADER_LEN>().ok_or(ParseError::Truncated)?;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    if header[0] >> 4 != 4 || header_len < HEADER_LEN {
        return Err(ParseError::BadHeader);
    }
    if header_len > packet.len() {
        return Err(ParseError::Truncated);
    }
    if field::u16_at(header, FRAGMENT) & OFFSET_MASK != 0 {
        return Ok(None);
    }
    let (src, dst) = (Addr::from_v4(field::octets(header, SRC)), Addr::from_v4(field::octets(header, DST)));
    Ok(Some(QuotedIp { src, dst, protocol: Protocol(header[PROTOCOL]), header_len }))
}

/// Rewrites addresses, TTL and checksum of the header at the start of `packet`.
#[inline]
pub(crate) fn rewrite(packet: &mut [u8], src: Addr, dst: Addr, delta: Delta) {
    let header: &mut [u8; HEADER_LEN] = packet.first_chunk_mut().expect("a header that was parsed");
    let ttl = header[TTL];
    let delta = if ttl == 0 { delta } else { delta.and(Delta::TTL_DECREMENT) };
    header[TTL] = ttl.saturating_sub(1);
    field::put(header, SRC, &src.v4_octets());
    field::put(header, DST, &dst.v4_octets());
    let checksum = delta.apply(field::u16_at(header, CHECKSUM));
    field::put_u16(header, CHECKSUM, checksum);
}

/// Writes a header without options at the start of `packet`; `payload` is in octets.
///
/// Identification 0 with "don't fragment": an atomic datagram of RFC 6864 section 4.1.
pub(crate) fn emit(packet: &mut [u8], src: Addr, dst: Addr, protocol: Protocol, ttl: u8, payload: usize) {
    emit_with_id(packet, src, dst, protocol, ttl, payload, [0, DONT_FRAGMENT]);
}

/// As [`emit`], with the identification and the flags word given.
pub(crate) fn emit_with_id(
    packet: &mut [u8],
    src: Addr,
    dst: Addr,
    protocol: Protocol,
    ttl: u8,
    payload: usize,
    [id, flags]: [u16; 2],
) {
    packet[0] = 0x45;
    packet[1] = 0;
    field::put_u16(packet, TOTAL_LEN, (HEADER_LEN + payload) as u16);
    field::put_u16(packet, ID, id);
    field::put_u16(packet, FRAGMENT, flags);
    packet[TTL] = ttl;
    packet[PROTOCOL] = protocol.0;
    field::put_u16(packet, CHECKSUM, 0);
    field::put(packet, SRC, &src.v4_octets());
    field::put(packet, DST, &dst.v4_octets());
    let checksum = checksum::sum(&packet[..HEADER_LEN]).checksum();
    field::put_u16(packet, CHECKSUM, checksum);
}
