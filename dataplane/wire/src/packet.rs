//! What a frame is: the answer of [`crate::parse`], as small plain data that does not borrow the frame.
//!
//! Offsets count from the frame's first octet. [`crate::parse`] proved that they lie within the frame and that the
//! fixed headers that they name are whole; use them with that frame (or with its rewrite in place) only.

use core::fmt;

use crate::addr::{Addr, MacAddr, Port, Ports, Protocol};
use crate::arp::ArpPacket;
use crate::checksum;
use crate::field;
use crate::ipv4;
use crate::nat::ChecksumMode;
use crate::ndp::{NeighborAdvertisement, NeighborSolicitation};
use crate::sctp::{self, Chunks};
use crate::tcp::{self, TcpFlags};
use crate::udp;

/// A TCP segment, UDP datagram or SCTP packet: what the packet path needs of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transport {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Source and destination port.
    pub ports: Ports,
    /// Offset of the IP header.
    pub l3: u16,
    /// Offset of the transport header.
    pub l4: u16,
    /// Offset past the IP packet's last octet; what follows is padding.
    pub end: u16,
    /// Whether the IP header is one of IPv6.
    pub ipv6: bool,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// TCP control bits; none for others.
    pub tcp_flags: TcpFlags,
    /// What an SCTP packet does to its association; nothing for others.
    pub chunks: Chunks,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Whether this is the first part of a fragmented datagram, whose end is elsewhere; see [`crate::first_part`].
    pub part: bool,
    /// The link-layer hop that the frame came from.
    pub src_mac: MacAddr,
}

// The burst keeps one per packet in its own array; one cache line each.
const _: () = assert!(size_of::<Transport>() <= 64);

impl Transport {
    /// Whether routers must not cut it: any IPv6 packet, and an IPv4 one with DF (RFC 791 section 3.1).
    ///
    /// # Panics
    /// When `frame` is not the frame that was parsed.
    #[must_use]
    pub fn may_not_be_fragmented(&self, frame: &[u8]) -> bool {
        self.ipv6 || field::u16_at(frame, usize::from(self.l3) + ipv4::FRAGMENT) & ipv4::DONT_FRAGMENT != 0
    }

    /// The same packet as seen by IP.
    #[must_use]
    #[inline]
    pub fn ip(&self) -> Ip {
        Ip {
            src: self.src,
            dst: self.dst,
            l3: self.l3,
            l4: self.l4,
            end: self.end,
            ipv6: self.ipv6,
            protocol: self.protocol,
            ttl: self.ttl,
            src_mac: self.src_mac,
        }
    }

    /// Source port.
    #[must_use]
    #[inline]
    pub const fn sport(&self) -> Port {
        self.ports.source()
    }

    /// Destination port.
    #[must_use]
    #[inline]
    pub const fn dport(&self) -> Port {
        self.ports.destination()
    }

    /// Whether this is TCP.
    #[must_use]
    #[inline]
    pub fn is_tcp(&self) -> bool {
        self.protocol == Protocol::TCP
    }

    /// The sequence number of a TCP segment.
    ///
    /// # Panics
    /// When `frame` is not the frame that was parsed.
    #[must_use]
    #[inline]
    pub fn seq(&self, frame: &[u8]) -> u32 {
        field::u32_at(frame, usize::from(self.l4) + tcp::SEQ)
    }

    /// The acknowledgment number of a TCP segment.
    ///
    /// # Panics
    /// When `frame` is not the frame that was parsed.
    #[must_use]
    #[inline]
    pub fn ack(&self, frame: &[u8]) -> u32 {
        field::u32_at(frame, usize::from(self.l4) + tcp::ACK)
    }

    /// The sender's timestamp of a TCP segment that has one (RFC 7323).
    ///
    /// # Panics
    /// If `frame` is not the one that was parsed.
    #[must_use]
    pub fn timestamp(&self, frame: &[u8]) -> Option<u32> {
        let segment = self.l4_bytes(frame);
        let options = &segment[tcp::HEADER_LEN..tcp::header_len(segment)];
        tcp::option_at(options, tcp::TIMESTAMPS).map(|at| field::u32_at(options, at + 2))
    }

    /// The window of a TCP segment, not scaled.
    ///
    /// # Panics
    /// When `frame` is not the frame that was parsed.
    #[must_use]
    #[inline]
    pub fn window(&self, frame: &[u8]) -> u16 {
        field::u16_at(frame, usize::from(self.l4) + tcp::WINDOW)
    }

    /// Whether the transport checksum is right, or still to be completed by a NIC that there is none of, where `mode` expects
    /// that. Of a first fragment nobody can tell before the others came: it holds.
    ///
    /// # Panics
    /// When `frame` is not the frame that was parsed.
    #[must_use]
    pub fn checksum_holds(&self, frame: &[u8], mode: ChecksumMode) -> bool {
        self.part
            || mode == ChecksumMode::Virtual && checksum::is_partial(frame, self)
            || checksum::is_right(frame, self)
    }

    /// Octets of data after the TCP (options included) or UDP header, of chunks after SCTP's.
    ///
    /// # Panics
    /// When `frame` is not the frame that was parsed.
    #[must_use]
    #[inline]
    pub fn payload_len(&self, frame: &[u8]) -> usize {
        let datagram = self.l4_bytes(frame);
        let header = match self.protocol {
            Protocol::TCP => tcp::header_len(datagram),
            Protocol::SCTP => sctp::HEADER_LEN,
            _ => udp::HEADER_LEN,
        };
        datagram.len() - header
    }

    /// The TCP segment, the UDP datagram or the SCTP packet: the octets that its checksum covers, or those of them that the
    /// part has.
    ///
    /// UDP's own length rules, which may be shorter than IP's.
    #[inline]
    pub(crate) fn l4_bytes<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        let bytes = &frame[usize::from(self.l4)..usize::from(self.end)];
        let stated = self.protocol == Protocol::UDP && !self.part;
        if stated { &bytes[..usize::from(field::u16_at(bytes, udp::LENGTH))] } else { bytes }
    }

    /// Offset of the transport checksum field, of TCP and UDP.
    #[inline]
    pub(crate) fn checksum_at(&self) -> usize {
        usize::from(self.l4) + if self.is_tcp() { tcp::CHECKSUM } else { udp::CHECKSUM }
    }
}

/// An IP packet of which no more is known than what IP says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ip {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Offset of the IP header.
    pub l3: u16,
    /// Offset past the IP header, its options and its extension headers.
    pub l4: u16,
    /// Offset past the IP packet's last octet; what follows is padding.
    pub end: u16,
    /// Whether the IP header is one of IPv6.
    pub ipv6: bool,
    /// What follows the IP header (and its extension headers).
    pub protocol: Protocol,
    /// TTL or hop limit.
    pub ttl: u8,
    /// The link-layer hop that the frame came from.
    pub src_mac: MacAddr,
}

/// A part of a fragmented datagram (RFC 791 section 3.2, RFC 8200 section 4.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fragment {
    /// The packet; `l4` is where this part's payload begins.
    pub ip: Ip,
    /// Identification: 16 bits in IPv4, 32 in IPv6.
    pub id: u32,
    /// Octets of the datagram's payload that come before this part.
    pub offset: u16,
    /// Whether more parts follow.
    pub more: bool,
}

/// What a frame carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Packet {
    /// A whole TCP segment, UDP datagram or SCTP packet.
    Transport(Transport),
    /// ARP for IPv4 over Ethernet.
    Arp(ArpPacket),
    /// Who has this IPv6 address? Validated as RFC 4861 section 7.1.1 says.
    NeighborSolicitation(NeighborSolicitation),
    /// Somebody has this IPv6 address. Validated as RFC 4861 section 7.1.2 says.
    NeighborAdvertisement(NeighborAdvertisement),
    /// ICMP or ICMPv6 echo request.
    EchoRequest(Ip),
    /// An ICMP or ICMPv6 error: it quotes a packet.
    IcmpError(Ip),
    /// Any other ICMP or ICMPv6 message.
    IcmpOther(Ip),
    /// A part of a fragmented datagram; an IPv6 fragment that is alone is none (RFC 6946).
    Fragment(Fragment),
    /// Another protocol over IP.
    OtherProtocol(Ip),
}

/// Why a frame has no meaning here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ParseError {
    /// The frame ends before what its headers announce.
    Truncated,
    /// A field contradicts itself or its packet.
    BadHeader,
    /// The IPv4 header checksum, or that of a neighbour discovery message, is wrong.
    BadChecksum,
    /// IPv6 extension headers that cannot be followed: malformed, too long, source routing or authentication.
    ExtensionHeaders,
    /// An IPv4 packet with a source route (RFC 791 section 3.1, RFC 7126 sections 4.3 and 4.4).
    SourceRoute,
    /// Neither ARP nor IP; a VLAN tag that was not taken off.
    UnknownEtherType,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "truncated",
            Self::BadHeader => "bad header",
            Self::BadChecksum => "bad checksum",
            Self::ExtensionHeaders => "IPv6 extension headers",
            Self::SourceRoute => "source route",
            Self::UnknownEtherType => "unknown EtherType",
        })
    }
}

impl core::error::Error for ParseError {}
