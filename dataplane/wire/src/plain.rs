//! Plain frames, which nearly all are: Ethernet, IPv4 without options or IPv6 without extension headers, whole, with hops
//! left to go, TCP or UDP, sound.
//!
//! A view as small as it can be, for the packets of flows that exist: what else is asked of such a frame is read from it
//! again, at offsets that are constants. [`crate::parse`] and [`crate::rewrite`] say and do the same for any frame, only
//! slower; tests hold both against each other.

use crate::addr::{Addr, MacAddr, Ports, Protocol};
use crate::checksum::{self, Delta};
use crate::nat::Rewrite;
use crate::packet::Transport;
use crate::sctp::Chunks;
use crate::tcp::{self, TcpFlags};
use crate::{ethernet, field, ipv4, ipv6, udp};

/// Where the transport header of IPv4 is.
const L4_V4: usize = ethernet::HEADER_LEN + ipv4::HEADER_LEN;
/// Where the transport header of IPv6 is.
const L4_V6: usize = ethernet::HEADER_LEN + ipv6::HEADER_LEN;
/// Octets up to the end of the last field that a rewrite touches, a TCP checksum (followed by the urgent pointer).
const HEADERS: usize = L4_V6 + tcp::HEADER_LEN;

/// The first octets of a frame's room: where all of a plain frame's headers are, if it is one. A shorter frame has more room
/// than it needs.
pub type Head = [u8; HEADERS];

/// A plain frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plain {
    /// [`crate::Addr::last_word`] of the source, then (in the high half) of the destination: all of them for IPv4.
    pub last_words: u64,
    /// Source and destination port.
    pub ports: Ports,
    /// Offset past the IP packet's last octet; what follows is padding.
    pub end: u16,
    /// Family and protocol.
    pub kind: Kind,
    /// TCP control bits; none for UDP.
    pub tcp_flags: TcpFlags,
}

/// What a plain frame is: the protocol's number, and a bit for IPv6.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// TCP over IPv4.
    TcpV4 = Protocol::TCP.0,
    /// UDP over IPv4.
    UdpV4 = Protocol::UDP.0,
    /// TCP over IPv6.
    TcpV6 = Protocol::TCP.0 | Kind::IPV6,
    /// UDP over IPv6.
    UdpV6 = Protocol::UDP.0 | Kind::IPV6,
}

impl Kind {
    /// The bit of those of IPv6. The bits below it tell protocols apart.
    pub const IPV6: u8 = 1 << 6;

    /// TCP or UDP.
    #[must_use]
    #[inline]
    pub const fn protocol(self) -> Protocol {
        Protocol(self as u8 & (Self::IPV6 - 1))
    }

    /// Whether it is over IPv6.
    #[must_use]
    #[inline]
    pub const fn ipv6(self) -> bool {
        self as u8 & Self::IPV6 != 0
    }

    #[inline]
    const fn is_udp(self) -> bool {
        matches!(self, Self::UdpV4 | Self::UdpV6)
    }
}

/// What is known of the word at [`ethernet::ETHER_TYPE`]: the type, then the first octet of the IP header.
struct Shape {
    mask: u32,
    value: u32,
}

/// IPv4, version 4 and a header of five words.
const SHAPE_V4: Shape = Shape::new(ethernet::TYPE_IPV4, 0xff, 0x45);
/// IPv6, version 6.
const SHAPE_V6: Shape = Shape::new(ethernet::TYPE_IPV6, 0xf0, 0x60);

impl Shape {
    const fn new(ether_type: u16, mask: u8, first: u8) -> Self {
        let [high, low] = ether_type.to_be_bytes();
        let mask = u32::from_ne_bytes([0xff, 0xff, mask, 0]);
        Self { mask, value: u32::from_ne_bytes([high, low, first, 0]) }
    }

    #[inline]
    const fn is(&self, word: u32) -> bool {
        word & self.mask == self.value
    }
}

/// The word at `at`, in the machine's order.
#[inline]
fn word(head: &Head, at: usize) -> u32 {
    u32::from_ne_bytes(field::octets(head, at))
}

impl Plain {
    /// Reads a frame of `len` octets, 65,535 at most, that begins with `head`; `None` where it is not plain, sound or not.
    #[must_use]
    #[inline]
    pub fn parse(head: &Head, len: usize) -> Option<Self> {
        debug_assert!(len <= usize::from(u16::MAX));
        // Headers lie before the packet's end, which lies within the frame: what stands behind that is never one.
        let shape = word(head, ethernet::ETHER_TYPE);
        if SHAPE_V4.is(shape) {
            Self::parse_v4(head, len)
        } else if SHAPE_V6.is(shape) {
            Self::parse_v6(head, len)
        } else {
            None
        }
    }

    #[inline]
    fn parse_v4(head: &Head, len: usize) -> Option<Self> {
        const IP: usize = ethernet::HEADER_LEN;
        let end = IP + usize::from(field::u16_at(head, IP + ipv4::TOTAL_LEN));
        // Neither a part of a datagram nor followed by one.
        let whole = field::u16_at(head, IP + ipv4::FRAGMENT) & ipv4::PART == 0;
        let ip: &[u8; ipv4::HEADER_LEN] = head[IP..].first_chunk()?;
        if !whole || end > len || head[IP + ipv4::TTL] <= 1 || !checksum::is_right_v4(ip) {
            return None;
        }
        let (kind, tcp_flags) = match Protocol(head[IP + ipv4::PROTOCOL]) {
            Protocol::TCP => (Kind::TcpV4, tcp_flags::<L4_V4>(head, end)?),
            Protocol::UDP => (Kind::UdpV4, no_flags::<L4_V4>(head, end)?),
            _ => return None,
        };
        Some(Self {
            last_words: u64::from(word(head, IP + ipv4::SRC)) | u64::from(word(head, IP + ipv4::DST)) << 32,
            ports: Ports::from_octets(field::octets(head, L4_V4)),
            end: end as u16,
            kind,
            tcp_flags,
        })
    }

    #[inline]
    fn parse_v6(head: &Head, len: usize) -> Option<Self> {
        const IP: usize = ethernet::HEADER_LEN;
        let end = L4_V6 + usize::from(field::u16_at(head, IP + ipv6::PAYLOAD_LEN));
        if end > len
            || head[IP + ipv6::HOP_LIMIT] <= 1
            || is_mapped(head, IP + ipv6::SRC)
            || is_mapped(head, IP + ipv6::DST)
        {
            return None;
        }
        let (kind, tcp_flags) = match Protocol(head[IP + ipv6::NEXT_HEADER]) {
            Protocol::TCP => (Kind::TcpV6, tcp_flags::<L4_V6>(head, end)?),
            Protocol::UDP => (Kind::UdpV6, no_flags::<L4_V6>(head, end)?),
            _ => return None,
        };
        let last = |at| u64::from(word(head, at + 12));
        Some(Self {
            last_words: last(IP + ipv6::SRC) | last(IP + ipv6::DST) << 32,
            ports: Ports::from_octets(field::octets(head, L4_V6)),
            end: end as u16,
            kind,
            tcp_flags,
        })
    }

    /// What else there is of the addresses of IPv6: the first eight octets of each, then (in the low and the high half)
    /// the third word of each, as [`crate::Addr`] gives them. `head` is the one that was parsed.
    #[must_use]
    #[inline]
    pub fn other_words(head: &Head) -> [u64; 3] {
        const SRC: usize = ethernet::HEADER_LEN + ipv6::SRC;
        const DST: usize = ethernet::HEADER_LEN + ipv6::DST;
        let first = |at| u64::from_ne_bytes(field::octets(head, at));
        let thirds = u64::from(word(head, SRC + 8)) | u64::from(word(head, DST + 8)) << 32;
        [first(SRC), first(DST), thirds]
    }

    /// The frame as [`crate::parse`] gives it, without reading it anew. `head` is the one that was parsed.
    #[must_use]
    #[inline]
    pub fn transport(&self, head: &Head) -> Transport {
        let (src, dst) = (self.last_words as u32, (self.last_words >> 32) as u32);
        const IP: usize = ethernet::HEADER_LEN;
        let ipv6 = self.kind.ipv6();
        let (src, dst) = if ipv6 {
            let [first, second, thirds] = Self::other_words(head);
            (Addr::from_parts(first, thirds as u32, src), Addr::from_parts(second, (thirds >> 32) as u32, dst))
        } else {
            (Addr::from_v4_word(src), Addr::from_v4_word(dst))
        };
        let (l4, ttl) = if ipv6 { (L4_V6, IP + ipv6::HOP_LIMIT) } else { (L4_V4, IP + ipv4::TTL) };
        Transport {
            src,
            dst,
            ports: self.ports,
            l3: IP as u16,
            l4: l4 as u16,
            end: self.end,
            ipv6,
            protocol: self.kind.protocol(),
            tcp_flags: self.tcp_flags,
            chunks: Chunks::default(),
            ttl: head[ttl],
            part: false,
            src_mac: MacAddr(field::octets(head, ethernet::SOURCE)),
        }
    }

    /// Where an IP packet of so many octets ends, see [`Plain::end`]; the largest number for what no frame has room for.
    #[must_use]
    #[inline]
    pub const fn end_of(octets: u16) -> u16 {
        octets.saturating_add(ethernet::HEADER_LEN as u16)
    }

    /// The link-layer hop that the frame came from, as [`MacAddr::word`] gives it.
    #[must_use]
    #[inline]
    pub fn source_mac(head: &Head) -> u64 {
        // With the two octets before it, so that it is one read.
        u64::from_le_bytes(field::octets(head, ethernet::SOURCE - 2)) >> 16
    }

    /// Whether the transport checksum is partial, see [`crate::checksum::is_partial`].
    #[must_use]
    #[inline]
    pub fn is_partial(&self, head: &Head) -> bool {
        let (l4, addresses) = if self.kind.ipv6() { (L4_V6, 22..54) } else { (L4_V4, 26..34) };
        let udp = self.kind.is_udp();
        let len = if udp { field::u16_at(head, l4 + udp::LENGTH) } else { self.end - l4 as u16 };
        let at = l4 + if udp { udp::CHECKSUM } else { tcp::CHECKSUM };
        let sum = checksum::sum(&head[addresses]) + checksum::Sum::word(u16::from(self.kind.protocol().0));
        field::u16_at(head, at) == (sum + checksum::Sum::word(len)).fold()
    }

    /// Rewrites the frame in place, as [`crate::rewrite`] does with complete checksums, and its link-layer addresses:
    /// `link` is the first eight octets of the frame, then the next four, each from its lowest octet on.
    ///
    /// Gives the upper half of the acknowledgment number of a TCP segment; of a UDP datagram what stands there.
    #[inline(always)] // And what it calls: for the steady path, which is in two loops.
    pub fn rewrite(&self, head: &mut Head, r: &Rewrite, link: (u64, u32)) -> u16 {
        if self.kind.ipv6() { self.rewrite_v6(head, r, link) } else { self.rewrite_v4(head, r, link) }
    }

    #[inline(always)]
    fn rewrite_v4(&self, head: &mut Head, r: &Rewrite, link: (u64, u32)) -> u16 {
        const IP: usize = ethernet::HEADER_LEN;
        set_link(head, link);
        head[IP + ipv4::TTL] = head[IP + ipv4::TTL].wrapping_sub(1);
        let checksum = field::octets(head, IP + ipv4::CHECKSUM);
        field::put(head, IP + ipv4::CHECKSUM, &Delta::TTL_DECREMENT.apply_to(r.ip_delta.apply_to(checksum)));
        let (src, dst) = (u64::from(r.src.last_word()), u64::from(r.dst.last_word()));
        // One store.
        let both = if cfg!(target_endian = "little") { src | dst << 32 } else { src << 32 | dst };
        field::put(head, IP + ipv4::SRC, &both.to_ne_bytes());
        self.rewrite_transport::<L4_V4>(head, r)
    }

    #[inline(always)]
    fn rewrite_v6(&self, head: &mut Head, r: &Rewrite, link: (u64, u32)) -> u16 {
        const IP: usize = ethernet::HEADER_LEN;
        set_link(head, link);
        head[IP + ipv6::HOP_LIMIT] = head[IP + ipv6::HOP_LIMIT].wrapping_sub(1);
        field::put(head, IP + ipv6::SRC, r.src.octets());
        field::put(head, IP + ipv6::DST, r.dst.octets());
        self.rewrite_transport::<L4_V6>(head, r)
    }

    #[inline(always)]
    fn rewrite_transport<const L4: usize>(&self, head: &mut Head, r: &Rewrite) -> u16 {
        field::put(head, L4, &r.ports.octets());
        if self.kind.is_udp() {
            // Zero stands for none, RFC 768.
            match field::octets(head, L4 + udp::CHECKSUM) {
                [0, 0] => {}
                old => {
                    let new = r.l4_delta.apply_to(old);
                    let new = if new == [0, 0] { [0xff; 2] } else { new };
                    field::put(head, L4 + udp::CHECKSUM, &new);
                }
            }
        } else {
            let old = field::octets(head, L4 + tcp::CHECKSUM);
            field::put(head, L4 + tcp::CHECKSUM, &r.l4_delta.apply_to(old));
        }
        field::u16_at(head, L4 + tcp::ACK)
    }
}

/// Whether the address at `at` is an IPv4-mapped one, which no packet may have.
#[inline]
fn is_mapped(head: &Head, at: usize) -> bool {
    field::octets::<8>(head, at) == [0; 8] && field::octets::<4>(head, at + 8) == [0, 0, 0xff, 0xff]
}

/// The control bits of a TCP segment; `None` where its header is not sound.
#[inline]
fn tcp_flags<const L4: usize>(head: &Head, end: usize) -> Option<TcpFlags> {
    tcp::is_sound(head[L4 + tcp::DATA_OFFSET], L4, end).then(|| TcpFlags(head[L4 + tcp::FLAGS]))
}

/// Those of a UDP datagram; `None` where its header is not sound.
#[inline]
fn no_flags<const L4: usize>(head: &Head, end: usize) -> Option<TcpFlags> {
    udp::is_sound(field::u16_at(head, L4 + udp::LENGTH), L4, end).then(TcpFlags::default)
}

/// Writes both link-layer addresses, in as few stores as there can be.
#[inline]
fn set_link(header: &mut Head, (head, tail): (u64, u32)) {
    field::put(header, 0, &head.to_le_bytes());
    field::put(header, 8, &tail.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frames::{self, Spec};
    use crate::{ChecksumMode, Packet, Port, parse, rewrite, set_ethernet};

    /// A frame's head, in a room that is as long at least, with what a former frame left behind its end.
    fn head(frame: &[u8]) -> Head {
        let mut room = frame.to_vec();
        room.resize(frame.len().max(HEADERS), 0x45);
        *room.first_chunk().unwrap()
    }

    /// Whether a frame is plain; where it is, that the view says what the whole parse says.
    fn agrees(frame: &[u8]) -> bool {
        let head = head(frame);
        let Some(plain) = Plain::parse(&head, frame.len()) else { return false };
        let Ok(Packet::Transport(t)) = parse(frame) else { panic!("plain, and no packet: {plain:?}") };
        assert_eq!(plain.transport(&head), t);
        assert_eq!(MacAddr::from_word(Plain::source_mac(&head)), t.src_mac);
        assert_eq!(plain.end, Plain::end_of(t.end - t.l3));
        assert_eq!(plain.is_partial(&head), checksum::is_partial(frame, &t));
        true
    }

    fn refresh_v4_checksum(frame: &mut [u8]) {
        field::put_u16(frame, 24, 0);
        let checksum = checksum::sum(&frame[14..34]).checksum();
        field::put_u16(frame, 24, checksum);
    }

    #[test]
    fn a_frame_without_hops_left_is_not_plain() {
        for spec in [Spec::v4(true), Spec::v4(false), Spec::v6(true), Spec::v6(false)] {
            for ttl in [0, 1, 2, 255] {
                let frame = Spec { ttl, ..spec.clone() }.frame();
                assert_eq!(agrees(&frame), ttl > 1, "{ttl}: {spec:?}");
            }
        }
    }

    #[test]
    fn a_partial_checksum_is_found() {
        for spec in [Spec::v4(true), Spec::v4(false), Spec::v6(true), Spec::v6(false)] {
            let mut frame = spec.frame();
            let t = frames::transport(&frame);
            let len = u32::from(t.end - t.l4);
            let partial = checksum::pseudo_header(t.ipv6, t.src, t.dst, t.protocol, len).fold();
            field::put_u16(&mut frame, t.checksum_at(), partial);
            let head = head(&frame);
            assert!(Plain::parse(&head, frame.len()).unwrap().is_partial(&head));
        }
    }

    proptest! {
        #[test]
        fn every_plain_frame_is_taken_and_damaged_ones_are_read_as_by_the_whole_parse(
            spec in frames::any_spec(), at in any::<proptest::sample::Index>(), bit in 0u8..8,
            cut in any::<proptest::sample::Index>(),
        ) {
            let mut frame = spec.frame();
            prop_assert!(agrees(&frame));
            let octet = at.index(frame.len());
            frame[octet] ^= 1 << bit;
            agrees(&frame);
            // Damage that the header checksum cannot tell.
            if spec.src.is_v4() {
                refresh_v4_checksum(&mut frame);
                agrees(&frame);
            }
            agrees(&frame[..cut.index(frame.len())]);
        }

        #[test]
        fn a_rewrite_does_what_the_general_one_does(
            spec in frames::any_spec(), src in any::<[u8; 6]>(), dst in any::<[u8; 6]>(), ports in any::<[u16; 2]>(),
            none in any::<bool>(),
        ) {
            let mut frame = spec.frame();
            let len = frame.len();
            frame.resize(len.max(HEADERS), 0);
            let t = frames::transport(&frame);
            if none {
                field::put_u16(&mut frame, t.checksum_at(), 0);
            }
            let new = (t.dst, t.src, Port::new(ports[0]), Port::new(ports[1]));
            let r = Rewrite::new((t.src, t.dst, t.sport(), t.dport()), new);
            let mut other = frame.clone();
            rewrite(&mut other, &t, &r, ChecksumMode::Incremental);
            set_ethernet(&mut other, MacAddr(src), MacAddr(dst));
            let head: &mut Head = frame.first_chunk_mut().unwrap();
            let plain = Plain::parse(head, len).unwrap();
            let (src, dst) = (MacAddr(src).word(), MacAddr(dst).word());
            let ack = plain.rewrite(head, &r, (dst | src << 48, (src >> 16) as u32));
            prop_assert!(!t.is_tcp() || ack == (t.ack(&frame) >> 16) as u16);
            prop_assert_eq!(frame, other);
        }
    }
}
