//! The IPv6 header (RFC 8200 section 3), and the slow path through its extension headers.

use etherparse::{IpNumber, Ipv6FragmentHeaderSlice, Ipv6RawExtHeaderSlice};

use crate::addr::{Addr, MacAddr, Protocol};
use crate::field;
use crate::packet::{Fragment, Ip, ParseError};
use crate::quote::QuotedIp;

/// Octets of the fixed header.
pub(crate) const HEADER_LEN: usize = 40;
pub(crate) const PAYLOAD_LEN: usize = 4;
pub(crate) const NEXT_HEADER: usize = 6;
pub(crate) const HOP_LIMIT: usize = 7;
pub(crate) const SRC: usize = 8;
pub(crate) const DST: usize = 24;

/// Extension headers longer than this together are not followed.
const MAX_EXTENSIONS_LEN: usize = 256;

/// Checks the header at `l3`; a part of a datagram comes with its [`Fragment`].
#[inline]
pub(crate) fn parse(frame: &[u8], l3: usize, src_mac: MacAddr) -> Result<(Ip, Option<Fragment>), ParseError> {
    let packet = &frame[l3..];
    let len = stated_len(packet)?;
    if len > packet.len() {
        return Err(ParseError::Truncated);
    }
    headers(&packet[..len], l3, src_mac)
}

/// The headers at the start of a quoted packet, of which not all may be there; `None` where the transport header is in
/// another part of the datagram.
pub(crate) fn quoted(packet: &[u8]) -> Result<Option<QuotedIp>, ParseError> {
    stated_len(packet)?;
    let (ip, part) = headers(packet, 0, MacAddr::UNKNOWN)?;
    if part.is_some_and(|part| part.offset != 0) {
        return Ok(None);
    }
    Ok(Some(QuotedIp { src: ip.src, dst: ip.dst, protocol: ip.protocol, header_len: usize::from(ip.l4) }))
}

/// How long a packet says that it is, its fixed header included, which is whole.
#[inline]
fn stated_len(packet: &[u8]) -> Result<usize, ParseError> {
    if packet.len() < HEADER_LEN {
        return Err(ParseError::Truncated);
    }
    if packet[0] >> 4 != 6 {
        return Err(ParseError::BadHeader);
    }
    Ok(HEADER_LEN + usize::from(field::u16_at(packet, PAYLOAD_LEN)))
}

/// The headers of what there is of a packet, whose fixed header is whole and at `l3` of its frame.
#[inline]
fn headers(packet: &[u8], l3: usize, src_mac: MacAddr) -> Result<(Ip, Option<Fragment>), ParseError> {
    let ip = Ip {
        src: Addr::from_v6(field::octets(packet, SRC)),
        dst: Addr::from_v6(field::octets(packet, DST)),
        l3: l3 as u16,
        l4: (l3 + HEADER_LEN) as u16,
        end: u16::try_from(l3 + packet.len()).map_err(|_| ParseError::BadHeader)?,
        ipv6: true,
        protocol: Protocol(packet[NEXT_HEADER]),
        ttl: packet[HOP_LIMIT],
        src_mac,
    };
    // A mapped address has no place in an IPv6 header (RFC 4942 section 2.2), and would be taken for IPv4's here.
    if ip.src.is_v4() || ip.dst.is_v4() {
        return Err(ParseError::BadHeader);
    }
    match ip.protocol {
        Protocol::TCP | Protocol::UDP | Protocol::ICMPV6 => Ok((ip, None)),
        _ => follow_extensions(&packet[HEADER_LEN..], ip),
    }
}

/// The packet whose first part `ip` is, past the extension headers that are fragmented with it: all of them must be in
/// this part (RFC 7112 section 5).
#[cold]
pub(crate) fn fragmented(frame: &[u8], mut ip: Ip) -> Result<Ip, ParseError> {
    let mut rest = &frame[usize::from(ip.l4)..usize::from(ip.end)];
    rest = &rest[..rest.len().min(MAX_EXTENSIONS_LEN)];
    while ip.protocol.0 == IpNumber::IPV6_DESTINATION_OPTIONS.0 {
        let header = Ipv6RawExtHeaderSlice::from_slice(rest).map_err(|_| ParseError::Truncated)?;
        ip.protocol = Protocol(header.next_header().0);
        ip.l4 += header.slice().len() as u16;
        rest = &rest[header.slice().len()..];
    }
    // What else may follow a fragment header is the packet itself (RFC 8200 section 4.1).
    match IpNumber(ip.protocol.0) {
        IpNumber::IPV6_HEADER_HOP_BY_HOP
        | IpNumber::IPV6_ROUTE_HEADER
        | IpNumber::IPV6_FRAGMENTATION_HEADER
        | IpNumber::AUTHENTICATION_HEADER => Err(ParseError::ExtensionHeaders),
        _ => Ok(ip),
    }
}

/// Walks the extension headers at the start of `payload` to the protocol behind them, or to what is fragmented. Those that
/// would have us send the packet elsewhere, or hide what is behind them, end the walk (RFC 5095, RFC 7045 section 2.1).
#[cold]
fn follow_extensions(payload: &[u8], mut ip: Ip) -> Result<(Ip, Option<Fragment>), ParseError> {
    let mut rest = &payload[..payload.len().min(MAX_EXTENSIONS_LEN)];
    let start = ip.l4;
    // Each turn takes at least eight octets of a bounded slice.
    loop {
        let len = match IpNumber(ip.protocol.0) {
            // The options' own meaning is for routers that want it (RFC 8200 section 4.3); only at the start.
            IpNumber::IPV6_HEADER_HOP_BY_HOP if ip.l4 != start => return Err(ParseError::ExtensionHeaders),
            IpNumber::IPV6_HEADER_HOP_BY_HOP | IpNumber::IPV6_DESTINATION_OPTIONS | IpNumber::IPV6_ROUTE_HEADER => {
                let header = Ipv6RawExtHeaderSlice::from_slice(rest).map_err(|_| ParseError::ExtensionHeaders)?;
                let routed = ip.protocol.0 == IpNumber::IPV6_ROUTE_HEADER.0;
                // With segments left, the pseudo-header's destination is the route's last (RFC 8200 section 8.1).
                if routed && header.payload()[1] != 0 {
                    return Err(ParseError::ExtensionHeaders);
                }
                ip.protocol = Protocol(header.next_header().0);
                header.slice().len()
            }
            IpNumber::IPV6_FRAGMENTATION_HEADER => {
                let header = Ipv6FragmentHeaderSlice::from_slice(rest).map_err(|_| ParseError::ExtensionHeaders)?;
                ip.protocol = Protocol(header.next_header().0);
                // One that is alone is a whole datagram (RFC 6946).
                if header.is_fragmenting_payload() {
                    ip.l4 += header.slice().len() as u16;
                    let offset = header.fragment_offset().byte_offset();
                    let (id, more) = (header.identification(), header.more_fragments());
                    return Ok((ip, Some(Fragment { ip, id, offset, more })));
                }
                header.slice().len()
            }
            // It covers the addresses that a rewrite changes.
            IpNumber::AUTHENTICATION_HEADER => return Err(ParseError::ExtensionHeaders),
            _ => return Ok((ip, None)),
        };
        ip.l4 += len as u16;
        rest = &rest[len..];
    }
}

/// Rewrites addresses and hop limit of the header at the start of `packet`.
#[inline]
pub(crate) fn rewrite(packet: &mut [u8], src: Addr, dst: Addr) {
    packet[HOP_LIMIT] = packet[HOP_LIMIT].saturating_sub(1);
    field::put(packet, SRC, src.octets());
    field::put(packet, DST, dst.octets());
}

/// Writes a fixed header at the start of `packet`; `payload` is in octets.
pub(crate) fn emit(packet: &mut [u8], src: Addr, dst: Addr, protocol: Protocol, hop_limit: u8, payload: usize) {
    field::put(packet, 0, &[0x60, 0, 0, 0]);
    field::put_u16(packet, PAYLOAD_LEN, payload as u16);
    packet[NEXT_HEADER] = protocol.0;
    packet[HOP_LIMIT] = hop_limit;
    field::put(packet, SRC, src.octets());
    field::put(packet, DST, dst.octets());
}
