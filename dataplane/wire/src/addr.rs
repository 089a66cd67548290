//! Addresses, ports and protocol numbers in network byte order, as plain bytes.
//!
//! No bare integers cross a room's border: a number that came from a packet is one of these.

use core::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// An IP address in 16 octets, network order; an IPv4 address is held as IPv4-mapped (RFC 4291 section 2.5.5.2).
///
/// Two words in memory, so that addresses are made, compared and moved in registers: octets written one by one and read
/// back as words would wait for the store buffer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Addr([u64; 2]);

/// The second word of a mapped address whose IPv4 address is zero.
const MAPPED_LOW: u64 = u64::from_ne_bytes([0, 0, 0xff, 0xff, 0, 0, 0, 0]);
const V4_MASK: u64 = u64::from_ne_bytes([0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);

impl Addr {
    /// `::`, which stands for "none".
    pub const UNSPECIFIED: Self = Self([0; 2]);

    /// From the four octets of an IPv4 header.
    #[must_use]
    #[inline]
    pub const fn from_v4(octets: [u8; 4]) -> Self {
        Self::from_v4_word(u32::from_ne_bytes(octets))
    }

    /// From the sixteen octets of an IPv6 header.
    #[must_use]
    #[inline]
    pub const fn from_v6(octets: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
        Self([u64::from_ne_bytes([a, b, c, d, e, f, g, h]), u64::from_ne_bytes([i, j, k, l, m, n, o, p])])
    }

    /// Whether this is an IPv4 address.
    #[must_use]
    #[inline]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] & !V4_MASK == MAPPED_LOW
    }

    /// The last four octets: the IPv4 address, where [`Addr::is_v4`].
    #[must_use]
    #[inline]
    pub const fn v4_octets(&self) -> [u8; 4] {
        self.last_word().to_ne_bytes()
    }

    /// From the last four octets as [`Addr::last_word`] gives them, of IPv4.
    #[must_use]
    #[inline]
    pub const fn from_v4_word(last: u32) -> Self {
        let number = last as u64;
        Self([0, MAPPED_LOW | if cfg!(target_endian = "little") { number << 32 } else { number }])
    }

    /// From its parts: the first eight octets, four more, and the last four, as the methods of these names give them.
    #[must_use]
    #[inline]
    pub const fn from_parts(first: u64, third: u32, last: u32) -> Self {
        let (third, last) = (third as u64, last as u64);
        Self([first, if cfg!(target_endian = "little") { third | last << 32 } else { third << 32 | last }])
    }

    /// The first eight octets as a word, in the machine's order.
    #[must_use]
    #[inline]
    pub const fn first_word(&self) -> u64 {
        self.0[0]
    }

    /// Octets 8 to 11 as a word, in the machine's order.
    #[must_use]
    #[inline]
    pub const fn third_word(&self) -> u32 {
        (if cfg!(target_endian = "little") { self.0[1] } else { self.0[1] >> 32 }) as u32
    }

    /// The last four octets as a word, in the machine's order: the IPv4 address, where [`Addr::is_v4`].
    #[must_use]
    #[inline]
    pub const fn last_word(&self) -> u32 {
        (if cfg!(target_endian = "little") { self.0[1] >> 32 } else { self.0[1] }) as u32
    }

    /// All sixteen octets.
    #[must_use]
    #[inline]
    pub fn octets(&self) -> &[u8; 16] {
        zerocopy::transmute_ref!(&self.0)
    }

    /// The same as two words, in the machine's order.
    #[must_use]
    #[inline]
    pub const fn words(&self) -> [u64; 2] {
        self.0
    }
}

impl Ord for Addr {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.octets().cmp(other.octets())
    }
}

impl PartialOrd for Addr {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::from_v4(v4.octets()),
            IpAddr::V6(v6) => Self::from_v6(v6.octets()),
        }
    }
}

impl From<Addr> for IpAddr {
    fn from(addr: Addr) -> Self {
        if addr.is_v4() { Self::V4(Ipv4Addr::from(addr.v4_octets())) } else { Self::V6(Ipv6Addr::from(*addr.octets())) }
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}

impl fmt::Debug for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A transport port as it stands in the header (network order).
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct Port([u8; 2]);

impl Port {
    /// From a port number as people write it.
    #[must_use]
    #[inline]
    pub const fn new(number: u16) -> Self {
        Self(number.to_be_bytes())
    }

    /// From the two octets of a header.
    #[must_use]
    #[inline]
    pub const fn from_octets(octets: [u8; 2]) -> Self {
        Self(octets)
    }

    /// The number as people write it.
    #[must_use]
    #[inline]
    pub const fn number(self) -> u16 {
        u16::from_be_bytes(self.0)
    }

    /// The two octets as they stand in the header.
    #[must_use]
    #[inline]
    pub const fn octets(self) -> [u8; 2] {
        self.0
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number().fmt(f)
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Source and destination port as they stand in the first four octets of a TCP or UDP header.
///
/// One word in memory, for the reason that [`Addr`] is two.
#[derive(Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Ports(u32);

impl Ports {
    /// From both ports.
    #[must_use]
    #[inline]
    pub const fn new(source: Port, destination: Port) -> Self {
        let ([a, b], [c, d]) = (source.0, destination.0);
        Self(u32::from_ne_bytes([a, b, c, d]))
    }

    /// From the first four octets of a header.
    #[must_use]
    #[inline]
    pub const fn from_octets(octets: [u8; 4]) -> Self {
        Self(u32::from_ne_bytes(octets))
    }

    /// The octets as they stand in the header.
    #[must_use]
    #[inline]
    pub const fn octets(self) -> [u8; 4] {
        self.0.to_ne_bytes()
    }

    /// The same as a word, in the machine's order.
    #[must_use]
    #[inline]
    pub const fn word(self) -> u32 {
        self.0
    }

    /// Source port.
    #[must_use]
    #[inline]
    pub const fn source(self) -> Port {
        let [a, b, ..] = self.octets();
        Port([a, b])
    }

    /// Destination port.
    #[must_use]
    #[inline]
    pub const fn destination(self) -> Port {
        let [.., c, d] = self.octets();
        Port([c, d])
    }

    /// Those of a packet the other way.
    #[must_use]
    #[inline]
    pub const fn reversed(self) -> Self {
        Self(self.0.rotate_left(16))
    }
}

impl fmt::Debug for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}->{}", self.source(), self.destination())
    }
}

/// An Ethernet address.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// All zero, which stands for "not known".
    pub const UNKNOWN: Self = Self([0; 6]);
    /// `ff:ff:ff:ff:ff:ff`.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// The six octets in a word, to be moved and compared in a register.
    #[must_use]
    #[inline]
    pub const fn word(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u32::from_le_bytes([a, b, c, d]) as u64 | (u16::from_le_bytes([e, f]) as u64) << 32
    }

    /// From [`MacAddr::word`].
    #[must_use]
    #[inline]
    pub const fn from_word(word: u64) -> Self {
        let [a, b, c, d, e, f, ..] = word.to_le_bytes();
        Self([a, b, c, d, e, f])
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An IP protocol number (IANA "Assigned Internet Protocol Numbers").
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct Protocol(pub u8);

impl Protocol {
    /// ICMP for IPv4 (RFC 792).
    pub const ICMP: Self = Self(1);
    /// IPv4 within IP (RFC 2003).
    pub const IPV4: Self = Self(4);
    /// TCP (RFC 9293).
    pub const TCP: Self = Self(6);
    /// UDP (RFC 768).
    pub const UDP: Self = Self(17);
    /// IPv6 within IP (RFC 2473, RFC 4213).
    pub const IPV6: Self = Self(41);
    /// ICMPv6 (RFC 4443).
    pub const ICMPV6: Self = Self(58);
    /// SCTP (RFC 9260).
    pub const SCTP: Self = Self(132);
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ICMP => f.write_str("icmp"),
            Self::TCP => f.write_str("tcp"),
            Self::UDP => f.write_str("udp"),
            Self::ICMPV6 => f.write_str("icmpv6"),
            Self::SCTP => f.write_str("sctp"),
            Self(number) => number.fmt(f),
        }
    }
}

impl fmt::Debug for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
