//! ICMP errors in transit: the packet that one quotes, and the translation of both (RFC 5508 section 4.2, RFC 792,
//! RFC 4443 section 3).
//!
//! A router or a host quotes what it got: the packet as it was after its translation here, or the first octets of it. The
//! receiver of the error must find what it sent, so the quoted packet is turned back while the error itself is translated
//! like any packet of the other direction. Types, codes, MTUs and extensions (RFC 4884) stay as they are.
//!
//! Nobody is believed here: an error changes nothing about a flow. Whether the quoted sequence number can be one that was
//! sent (RFC 5927 section 4.1) is judged by the endpoint that gets the error: numbers pass unchanged.

use crate::addr::{Addr, Ports, Protocol};
use crate::checksum::Delta;
use crate::nat::Rewrite;
use crate::packet::{Ip, ParseError};
use crate::{field, icmp, ipv4, ipv6, sctp, tcp, udp};

/// How much of the transport header every error quotes: the ports, and a TCP sequence number or an SCTP verification tag
/// (RFC 792, RFC 9260 section 10.2).
const LEAST_TRANSPORT: usize = 8;

/// What an ICMP error says of the packet that it quotes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quote {
    /// Source address of the quoted packet: whom the error is for.
    pub src: Addr,
    /// Its destination address.
    pub dst: Addr,
    /// Its source and destination port.
    pub ports: Ports,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// Offset of its IP header.
    l3: u16,
    /// Offset of its transport header.
    l4: u16,
}

impl Quote {
    /// Reads what the error `ip` quotes; `None` where that is no start of a TCP segment, UDP
    /// datagram or SCTP packet.
    ///
    /// # Errors
    /// [`ParseError::BadChecksum`] if the error's own checksum is wrong, [`ParseError::Truncated`] if it quotes less than
    /// RFC 792 says, [`ParseError::BadHeader`] or [`ParseError::ExtensionHeaders`] if that contradicts itself.
    ///
    /// # Panics
    /// If `frame` is not the one that was parsed.
    pub fn parse(frame: &[u8], ip: &Ip) -> Result<Option<Self>, ParseError> {
        let message = &frame[usize::from(ip.l4)..usize::from(ip.end)];
        if icmp::sum(message, ip.src, ip.dst).fold() != 0xffff {
            return Err(ParseError::BadChecksum);
        }
        Self::at(&frame[..usize::from(ip.end)], usize::from(ip.l4) + icmp::HEADER_LEN, ip.ipv6)
    }

    /// The packet whose IP header is at `l3` of what there is of it; as [`Quote::parse`].
    pub(crate) fn at(bytes: &[u8], l3: usize, ipv6: bool) -> Result<Option<Self>, ParseError> {
        let quoted = &bytes[l3..];
        let Some(inner) = (if ipv6 { ipv6::quoted(quoted)? } else { ipv4::quoted(quoted)? }) else {
            return Ok(None);
        };
        if !matches!(inner.protocol, Protocol::TCP | Protocol::UDP | Protocol::SCTP) {
            return Ok(None);
        }
        let transport = quoted.get(inner.header_len..).filter(|rest| rest.len() >= LEAST_TRANSPORT);
        let transport = transport.ok_or(ParseError::Truncated)?;
        Ok(Some(Self {
            src: inner.src,
            dst: inner.dst,
            ports: Ports::from_octets(field::octets(transport, 0)),
            protocol: inner.protocol,
            l3: l3 as u16,
            l4: (l3 + inner.header_len) as u16,
        }))
    }
}

impl Quote {
    /// The sequence number of a quoted TCP segment.
    ///
    /// # Panics
    /// If `frame` is not the one that was parsed.
    #[must_use]
    pub fn tcp_seq(&self, frame: &[u8]) -> u32 {
        field::u32_at(frame, usize::from(self.l4) + tcp::SEQ)
    }

    /// Whether the error says that the packet's destination cannot be reached, and not that the packet was too long for the
    /// way there (RFC 792; RFC 4443 section 3.1).
    ///
    /// # Panics
    /// If `frame` is not the one that was parsed.
    #[must_use]
    pub fn is_unreachable(&self, frame: &[u8], ip: &Ip) -> bool {
        match (ip.ipv6, frame[usize::from(ip.l4)], frame[usize::from(ip.l4) + 1]) {
            (false, kind, code) => kind == icmp::V4_UNREACHABLE && code != icmp::V4_FRAGMENTATION_NEEDED,
            (true, kind, _) => kind == icmp::V6_UNREACHABLE,
        }
    }
}

/// What is known of a quoted IP header.
pub(crate) struct QuotedIp {
    pub(crate) src: Addr,
    pub(crate) dst: Addr,
    pub(crate) protocol: Protocol,
    /// Options and extension headers included.
    pub(crate) header_len: usize,
}

/// Translates the error `ip` and what it quotes, in place: `r` is what packets become that go the error's way, by the flow
/// whose other direction is quoted; the error goes out in the name of `from`.
///
/// # Panics
/// If `frame` is not the one that both were parsed from.
pub fn rewrite_error(frame: &mut [u8], ip: &Ip, quote: &Quote, r: &Rewrite, from: Addr) {
    turn_back(frame, usize::from(ip.end), quote, r);
    let header = &mut frame[usize::from(ip.l3)..];
    if ip.ipv6 {
        ipv6::rewrite(header, from, r.dst);
    } else {
        let old = Delta::between(&ip.src.v4_octets(), &from.v4_octets());
        ipv4::rewrite(header, from, r.dst, old.and(Delta::between(&ip.dst.v4_octets(), &r.dst.v4_octets())));
    }
    let message = &mut frame[usize::from(ip.l4)..usize::from(ip.end)];
    icmp::put_checksum(message, from, r.dst);
}

/// Makes the quoted packet what its sender sent: from where packets of the other direction arrive, to where they come from.
/// Sums do not care for order, so the deltas of that direction's packets are the quoted one's as well.
fn turn_back(frame: &mut [u8], end: usize, quote: &Quote, r: &Rewrite) {
    let (l3, l4) = (usize::from(quote.l3), usize::from(quote.l4));
    let (src, dst) = (r.dst, r.src);
    let header = &mut frame[l3..l4];
    if src.is_v4() {
        field::put(header, ipv4::SRC, &src.v4_octets());
        field::put(header, ipv4::DST, &dst.v4_octets());
        let checksum = r.ip_delta.apply(field::u16_at(header, ipv4::CHECKSUM));
        field::put_u16(header, ipv4::CHECKSUM, checksum);
    } else {
        field::put(header, ipv6::SRC, src.octets());
        field::put(header, ipv6::DST, dst.octets());
    }
    let covered = if quote.protocol == Protocol::SCTP { quoted_len(frame, quote) } else { None };
    let segment = &mut frame[l4..end];
    if quote.protocol == Protocol::SCTP {
        return turn_sctp_back(segment, r.ports.reversed(), covered);
    }
    field::put(segment, 0, &r.ports.reversed().octets());
    let is_udp = quote.protocol == Protocol::UDP;
    let at = if is_udp { udp::CHECKSUM } else { tcp::CHECKSUM };
    // Of TCP the checksum may be beyond what is quoted, or half of it: that half stays, for nobody can tell what it was.
    let Some(field) = segment.get_mut(at..at + 2) else { return };
    let old = u16::from_be_bytes([field[0], field[1]]);
    if is_udp && old == 0 {
        return;
    }
    let new = r.l4_delta.apply(old);
    let new = if is_udp && new == 0 { 0xffff } else { new };
    field.copy_from_slice(&new.to_be_bytes());
}

/// The ports of a quoted SCTP packet, and its CRC where that is quoted and the length of the packet is known.
fn turn_sctp_back(packet: &mut [u8], ports: Ports, covered: Option<u16>) {
    let old = Ports::from_octets(field::octets(packet, 0));
    field::put(packet, 0, &ports.octets());
    if let Some(octets) = covered
        && packet.len() >= sctp::HEADER_LEN
        && !sctp::has_none(packet)
    {
        sctp::carry(packet, old, ports, octets);
    }
}

/// Octets of the quoted transport packet, by its IP header; `None` of a part.
fn quoted_len(frame: &[u8], quote: &Quote) -> Option<u16> {
    let (header, before) = (&frame[usize::from(quote.l3)..], quote.l4 - quote.l3);
    if !quote.src.is_v4() {
        // A fragment header is an extension; who has extensions says nothing sure.
        let plain = usize::from(before) == ipv6::HEADER_LEN;
        return plain.then(|| field::u16_at(header, ipv6::PAYLOAD_LEN));
    }
    let part = field::u16_at(header, ipv4::FRAGMENT) & ipv4::PART != 0;
    field::u16_at(header, ipv4::TOTAL_LEN).checked_sub(before).filter(|_| !part)
}

#[cfg(test)]
#[path = "quote_tests.rs"]
mod tests;
