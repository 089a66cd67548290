//! Packets within packets: IP in IP (RFC 2003, RFC 2473, RFC 4213), and IP in UDP as variant 1 of GUE has it
//! (draft-ietf-intarea-gue-09 section 4: no header of its own, the IP version tells what is within), which receivers of
//! plain IP in UDP take as well.
//!
//! The outer header takes over what routers go by: "don't fragment" (RFC 2003 section 3.1) and all of the traffic class,
//! congestion marks included (RFC 6040 section 4.1, normal mode). Its TTL is its own. A flow's number stands where
//! receivers spread their queues by: the UDP source port, the flow label (RFC 6438), and what the caller makes the source
//! address from.
//!
//! Errors about outer packets come to us; [`Within`] reads what they say of the packet within, and [`relay`] tells that to
//! who sent it (RFC 2003 section 4, RFC 2473 section 8).

use crate::addr::{Addr, Protocol};
use crate::checksum::{self, Delta};
use crate::packet::{Ip, ParseError};
use crate::quote::Quote;
use crate::reply::{self, IcmpErrorKind};
use crate::{ethernet, field, icmp, ipv4, ipv6, udp};

/// Where receivers of GUE listen (IANA "Service Name and Transport Protocol Port Number Registry", `gue`).
pub const GUE_PORT: u16 = 6080;
/// First of the ports that a flow's number is in (RFC 6335 section 6, dynamic ports: 2^14 of them).
const FIRST_PORT: u16 = 0xc000;
/// TTL and hop limit of outer headers.
const TTL: u8 = 64;
/// The smallest MTU of IPv6 (RFC 8200 section 5); who sends IPv6 never makes its packets shorter than that.
const LEAST_MTU_V6: u16 = 1280;
/// The same of IPv4 (RFC 791 section 3.2).
const LEAST_MTU_V4: u16 = 68;

/// How far apart the outer identifications of a datagram's parts are for each unit between them: odd, so that no two are
/// the same.
const PER_OFFSET: u16 = 0x9e37;

/// What an outer header is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wrapping {
    /// IP alone.
    Ip,
    /// IP and UDP.
    Gue,
}

/// An outer header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outer {
    /// Source address.
    pub src: Addr,
    /// Destination address, of the same family.
    pub dst: Addr,
    /// What it is made of.
    pub wrapping: Wrapping,
    /// The flow's number.
    pub entropy: u32,
}

impl Outer {
    fn ip_len(&self) -> usize {
        if self.dst.is_v4() { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN }
    }

    /// Octets that it takes.
    #[must_use]
    pub fn len(&self) -> u16 {
        let udp = if self.wrapping == Wrapping::Gue { udp::HEADER_LEN } else { 0 };
        (self.ip_len() + udp) as u16
    }

    /// Never.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }
}

/// What an outer header takes over from the packet within.
struct Inner {
    protocol: Protocol,
    class: u8,
    /// Identification and flags of an outer header of IPv4.
    identification: [u16; 2],
}

impl Inner {
    fn of(packet: &[u8], entropy: u32) -> Self {
        if packet[0] >> 4 == 6 {
            let class = (field::u16_at(packet, 0) >> 4) as u8;
            return Self { protocol: Protocol::IPV6, class, identification: [0, ipv4::DONT_FRAGMENT] };
        }
        let flags = field::u16_at(packet, ipv4::FRAGMENT) & ipv4::DONT_FRAGMENT;
        // Of one that may be cut the parts must find each other: the sender's number, apart from other flows' (RFC 6864).
        // Parts of one datagram have one number, and each its own packet around it.
        let offset = field::u16_at(packet, ipv4::FRAGMENT) & ipv4::OFFSET_MASK;
        let number = field::u16_at(packet, ipv4::ID).wrapping_add(offset.wrapping_mul(PER_OFFSET));
        let id = if flags == 0 { number.wrapping_add(entropy as u16) } else { 0 };
        Self { protocol: Protocol::IPV4, class: packet[1], identification: [id, flags] }
    }
}

/// Puts the packet between `l3` and `end` into an outer one, which begins where it began. Gives where that ends; `None`, and
/// nothing was written, if the room is too short.
///
/// # Panics
/// If there is no whole IP header at `l3`, or no link-layer header before it.
#[must_use]
pub fn encapsulate(room: &mut [u8], l3: u16, end: u16, outer: &Outer) -> Option<u16> {
    let (l3, end) = (usize::from(l3), usize::from(end));
    let after = u16::try_from(end + usize::from(outer.len())).ok().filter(|after| usize::from(*after) <= room.len())?;
    let inner = Inner::of(&room[l3..end], outer.entropy);
    room.copy_within(l3..end, l3 + usize::from(outer.len()));
    let packet = &mut room[l3..usize::from(after)];
    let payload = packet.len() - outer.ip_len();
    let protocol = if outer.wrapping == Wrapping::Gue { Protocol::UDP } else { inner.protocol };
    let ether_type = if outer.dst.is_v4() {
        ipv4::emit_with_id(packet, outer.src, outer.dst, protocol, TTL, payload, inner.identification);
        packet[1] = inner.class;
        let class = Delta::between(&[0, 0], &[0, inner.class]);
        let checksum = class.apply(field::u16_at(packet, ipv4::CHECKSUM));
        field::put_u16(packet, ipv4::CHECKSUM, checksum);
        ethernet::TYPE_IPV4
    } else {
        ipv6::emit(packet, outer.src, outer.dst, protocol, TTL, payload);
        let label = (outer.entropy >> 12).max(1);
        field::put_u32(packet, 0, 6 << 28 | u32::from(inner.class) << 20 | label);
        ethernet::TYPE_IPV6
    };
    if outer.wrapping == Wrapping::Gue {
        put_udp(&mut packet[outer.ip_len()..], outer);
    }
    field::put_u16(room, l3 - 2, ether_type);
    Some(after)
}

/// Writes the UDP header of a datagram whose data is there. Without a checksum over IPv4, as tunnels may (RFC 768, and what
/// is within has its own); with one over IPv6, where receivers need not take others (RFC 8200 section 8.1, RFC 6935).
fn put_udp(datagram: &mut [u8], outer: &Outer) {
    let len = datagram.len() as u16;
    let port = FIRST_PORT | (outer.entropy >> 18) as u16;
    field::put_u16(datagram, 0, port);
    field::put_u16(datagram, 2, GUE_PORT);
    field::put_u16(datagram, udp::LENGTH, len);
    field::put_u16(datagram, udp::CHECKSUM, 0);
    if outer.dst.is_v4() {
        return;
    }
    let pseudo = checksum::pseudo_header(true, outer.src, outer.dst, Protocol::UDP, u32::from(len));
    let checksum = (pseudo + checksum::sum(datagram)).checksum();
    field::put_u16(datagram, udp::CHECKSUM, if checksum == 0 { 0xffff } else { checksum });
}

/// What an ICMP error about an outer packet says of the packet within.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Within {
    /// The packet within.
    pub quote: Quote,
    /// Where the outer packet was going.
    pub endpoint: Addr,
    /// What it is made of.
    pub wrapping: Wrapping,
    /// What to tell who sent it; `None`: nothing.
    pub kind: Option<IcmpErrorKind>,
    /// Where it begins.
    at: u16,
}

impl Within {
    /// Reads what the error `ip` quotes; `None` where that is no packet of a tunnel of ours.
    ///
    /// # Errors
    /// As [`Quote::parse`]; [`ParseError::Truncated`] too if it quotes less than tells whose packet that was.
    ///
    /// # Panics
    /// If `frame` is not the one that was parsed.
    pub fn parse(frame: &[u8], ip: &Ip) -> Result<Option<Self>, ParseError> {
        let end = usize::from(ip.end);
        let message = &frame[usize::from(ip.l4)..end];
        if icmp::sum(message, ip.src, ip.dst).fold() != 0xffff {
            return Err(ParseError::BadChecksum);
        }
        let l3 = usize::from(ip.l4) + icmp::HEADER_LEN;
        let quoted = &frame[l3..end];
        let Some(outer) = (if ip.ipv6 { ipv6::quoted(quoted)? } else { ipv4::quoted(quoted)? }) else {
            return Ok(None);
        };
        let mut at = l3 + outer.header_len;
        let wrapping = if outer.protocol == Protocol::UDP { Wrapping::Gue } else { Wrapping::Ip };
        let version = match outer.protocol {
            // Who is told of a packet must have sent it.
            _ if outer.src != ip.dst => return Ok(None),
            Protocol::IPV4 => 4,
            Protocol::IPV6 => 6,
            Protocol::UDP => {
                let header = frame[at..end].get(..udp::HEADER_LEN).ok_or(ParseError::Truncated)?;
                if field::u16_at(header, 2) != GUE_PORT {
                    return Ok(None);
                }
                at += udp::HEADER_LEN;
                frame[at..end].first().ok_or(ParseError::Truncated)? >> 4
            }
            _ => return Ok(None),
        };
        let ipv6 = version == 6;
        let Some(quote) = Quote::at(&frame[..end], at, ipv6)? else { return Ok(None) };
        let around = (at - l3) as u16;
        let kind = what_it_means(message, ip.ipv6, ipv6, around).filter(|kind| {
            // Who lets its packet be cut is told of no MTU (RFC 2473 section 8.2).
            let cut = !ipv6 && field::u16_at(frame, at + ipv4::FRAGMENT) & ipv4::DONT_FRAGMENT == 0;
            !(cut && matches!(kind, IcmpErrorKind::PacketTooBig { .. }))
        });
        Ok(Some(Self { quote, endpoint: outer.dst, wrapping, kind, at: at as u16 }))
    }
}

/// What an error about an outer packet means for the one within, around which there are so many octets. A tunnel's end that
/// cannot be reached, or does not understand, is a host that cannot be reached.
fn what_it_means(message: &[u8], outer_ipv6: bool, ipv6: bool, around: u16) -> Option<IcmpErrorKind> {
    let too_big = |mtu: u32| {
        let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
        match (mtu.checked_sub(around), ipv6) {
            (inner, true) => Some(IcmpErrorKind::PacketTooBig { mtu: inner.unwrap_or(0).max(LEAST_MTU_V6) }),
            // A router of old does not say how big (RFC 1191 section 5); who sent it knows what it sent.
            (_, false) if mtu == 0 => Some(IcmpErrorKind::PacketTooBig { mtu }),
            (inner, false) => inner.filter(|mtu| *mtu >= LEAST_MTU_V4).map(|mtu| IcmpErrorKind::PacketTooBig { mtu }),
        }
    };
    match (outer_ipv6, message[0], message[1]) {
        (false, icmp::V4_UNREACHABLE, 4) => too_big(field::u32_at(message, icmp::MTU) & 0xffff),
        (false, icmp::V4_UNREACHABLE, 9 | 10 | 13) | (true, icmp::V6_UNREACHABLE, 1) => Some(IcmpErrorKind::Prohibited),
        (false, icmp::V4_UNREACHABLE | icmp::V4_TIME_EXCEEDED, _) => Some(IcmpErrorKind::HostUnreachable),
        (true, icmp::V6_PACKET_TOO_BIG, _) => too_big(field::u32_at(message, icmp::MTU)),
        (true, icmp::V6_UNREACHABLE | icmp::V6_TIME_EXCEEDED, _) => Some(IcmpErrorKind::HostUnreachable),
        _ => None,
    }
}

/// Turns the error `ip` into one about the packet within, to who sent that, in the name of `from`. Gives where it ends;
/// `None`, and nothing was written, where there is no room.
///
/// # Panics
/// If `room` does not begin with the frame that both were parsed from, or the families of `from` and the packet differ.
#[must_use]
pub fn relay(room: &mut [u8], ip: &Ip, within: &Within, kind: IcmpErrorKind, from: Addr) -> Option<u16> {
    let quoted = usize::from(within.at)..usize::from(ip.end);
    let end = reply::emit_error(room, usize::from(ip.l3), quoted, kind, (from, within.quote.src))?;
    u16::try_from(end).ok()
}

#[cfg(test)]
#[path = "tunnel_tests.rs"]
mod tests;
