//! Answers of our own, written over the frame that asked for them.
//!
//! `room` is the frame's whole room in the UMEM, the packet at its start; it may be longer than the packet, and an
//! answer may be longer than what it answers. Each function returns the length of the answer, or `None` when there
//! must be no answer or no room for it, and then the frame is untouched. Answers go back to the link-layer hop that
//! the packet came from.
//!
//! # Panics
//! All of them, when `room` does not begin with the frame that was parsed.

use core::ops::Range;

use crate::addr::{Addr, MacAddr, Protocol};
use crate::arp::{self, ArpOp, ArpPacket};
use crate::checksum::{self, Delta};
use crate::ndp::{self, NeighborSolicitation};
use crate::packet::{Fragment, Ip, Transport};
use crate::sctp::Chunks;
use crate::tcp::{self, TcpFlags};
use crate::{ethernet, field, fragment, icmp, ipv4, ipv6, sctp};

/// TTL and hop limit of answers (IANA "IP Option Numbers", recommended default; RFC 1700).
const TTL: u8 = 64;
/// The longest ICMP error, IP header included (RFC 1812 section 4.3.2.3).
const V4_ERROR_MAX: usize = 576;
/// The longest ICMPv6 error, IPv6 header included: the minimum MTU (RFC 4443 section 2.4 (c)).
const V6_ERROR_MAX: usize = 1280;

/// Answers an ARP request or probe: `our_mac` has the target address.
#[must_use]
pub fn arp_reply(room: &mut [u8], asked: &ArpPacket, our_mac: MacAddr) -> Option<usize> {
    if asked.op != ArpOp::Request || ethernet::is_group(asked.sender_mac) {
        return None;
    }
    let answer = ArpPacket {
        op: ArpOp::Reply,
        sender_mac: our_mac,
        sender_ip: asked.target_ip,
        target_mac: asked.sender_mac,
        target_ip: asked.sender_ip,
    };
    let dst = ethernet::source(room);
    arp::emit(room, dst, &answer);
    Some(arp::FRAME_LEN)
}

/// Answers a neighbour solicitation: `our_mac` has the target address (RFC 4861 section 7.2.4).
#[must_use]
pub fn neighbor_advertisement(room: &mut [u8], asked: &NeighborSolicitation, our_mac: MacAddr) -> Option<usize> {
    let group = asked.src_ll.is_some_and(ethernet::is_group) || is_multicast(asked.src);
    if group || room.len() < ndp::ADVERTISEMENT_FRAME_LEN {
        return None;
    }
    Some(ndp::emit_answer(room, asked, our_mac))
}

/// Answers an echo request (RFC 1122 section 3.2.2.6, RFC 4443 section 4.2).
///
/// The data and its checksum are kept, so a damaged request gets a reply that is as damaged. IPv4 options and IPv6
/// extension headers are not returned.
#[must_use]
pub fn echo_reply(room: &mut [u8], asked: &Ip) -> Option<usize> {
    if !may_answer(room, asked) {
        return None;
    }
    let (l3, from, end) = (usize::from(asked.l3), usize::from(asked.l4), usize::from(asked.end));
    let l4 = l3 + ip_header_len(asked);
    let id = [field::u16_at(room, l3 + ipv4::ID), field::u16_at(room, l3 + ipv4::FRAGMENT)];
    room.copy_within(from..end, l4);
    let payload = end - from;
    ethernet::swap(room);
    let header = &mut room[l3..];
    let kind = if asked.ipv6 {
        ipv6::emit(header, asked.dst, asked.src, Protocol::ICMPV6, TTL, payload);
        icmp::V6_ECHO_REPLY
    } else {
        // The asker's own identification: the reply may meet a smaller MTU on its way, and be cut there as well.
        ipv4::emit_with_id(header, asked.dst, asked.src, Protocol::ICMP, TTL, payload, id);
        icmp::V4_ECHO_REPLY
    };
    put_reply_kind(&mut room[l4..], kind);
    Some(l4 + payload)
}

/// Answers a part of an echo request by the same part of the reply: the same octets at the same place, under the asker's own
/// identification, but for the type in the first part and the checksum that it has of all parts. So nothing need be put
/// together for the reply to be as long as the request.
#[must_use]
pub fn echo_reply_part(room: &mut [u8], part: &Fragment) -> Option<usize> {
    let asked = &part.ip;
    if !may_answer(room, asked) {
        return None;
    }
    let (l3, from, end) = (usize::from(asked.l3), usize::from(asked.l4), usize::from(asked.end));
    // A fragment header stands right before what is fragmented.
    let fragment = if asked.ipv6 { usize::from(fragment::HEADER_LEN_V6) } else { 0 };
    let id = [field::u16_at(room, l3 + ipv4::ID), field::u16_at(room, l3 + ipv4::FRAGMENT)];
    let l4 = l3 + ip_header_len(asked) + fragment;
    room.copy_within(from - fragment..end, l4 - fragment);
    let payload = end - from;
    ethernet::swap(room);
    let header = &mut room[l3..];
    let kind = if asked.ipv6 {
        ipv6::emit(header, asked.dst, asked.src, fragment::HEADER, TTL, fragment + payload);
        room[l4 - fragment] = Protocol::ICMPV6.0;
        icmp::V6_ECHO_REPLY
    } else {
        ipv4::emit_with_id(header, asked.dst, asked.src, Protocol::ICMP, TTL, payload, id);
        icmp::V4_ECHO_REPLY
    };
    if part.offset == 0 {
        put_reply_kind(&mut room[l4..], kind);
    }
    Some(l4 + payload)
}

/// Makes an echo request a reply. The addresses of the ICMPv6 pseudo-header only change places.
fn put_reply_kind(message: &mut [u8], kind: u8) {
    let delta = Delta::between(&message[..1], &[kind]);
    let checksum = delta.apply(field::u16_at(message, icmp::CHECKSUM));
    message[0] = kind;
    field::put_u16(message, icmp::CHECKSUM, checksum);
}

/// Resets the connection of a TCP segment (RFC 9293 section 3.10.7.1); never in answer to a reset.
#[must_use]
pub fn tcp_reset(room: &mut [u8], t: &Transport) -> Option<usize> {
    let ip = t.ip();
    if !t.is_tcp() || t.tcp_flags.contains(TcpFlags::RST) || !may_answer(room, &ip) {
        return None;
    }
    let (seq, ack, flags) = if t.tcp_flags.contains(TcpFlags::ACK) {
        (t.ack(room), 0, TcpFlags::RST)
    } else {
        // SYN and FIN each take one sequence number (RFC 9293 section 3.4).
        let controls = u32::from(t.tcp_flags.contains(TcpFlags::SYN)) + u32::from(t.tcp_flags.contains(TcpFlags::FIN));
        let len = t.payload_len(room) as u32 + controls;
        (0, t.seq(room).wrapping_add(len), TcpFlags::RST.union(TcpFlags::ACK))
    };
    let l4 = usize::from(t.l3) + ip_header_len(&ip);
    emit_ip(room, &ip, t.dst, Protocol::TCP, tcp::HEADER_LEN);
    let segment = &mut room[l4..l4 + tcp::HEADER_LEN];
    segment.fill(0);
    field::put(segment, 0, &t.ports.reversed().octets());
    field::put_u32(segment, tcp::SEQ, seq);
    field::put_u32(segment, tcp::ACK, ack);
    segment[tcp::DATA_OFFSET] = 5 << 4;
    segment[tcp::FLAGS] = flags.0;
    let pseudo = checksum::pseudo_header(t.ipv6, t.dst, t.src, Protocol::TCP, tcp::HEADER_LEN as u32);
    let checksum = (pseudo + checksum::sum(segment)).checksum();
    field::put_u16(segment, tcp::CHECKSUM, checksum);
    Some(l4 + tcp::HEADER_LEN)
}

/// Answers an SCTP packet of no association (RFC 9260 sections 5.1 and 8.4): an ABORT, or the SHUTDOWN COMPLETE that a
/// SHUTDOWN ACK waits for. `None` also for those that are not to be answered.
#[must_use]
pub fn sctp_out_of_the_blue(room: &mut [u8], t: &Transport) -> Option<usize> {
    let ip = t.ip();
    let late = Chunks::COOKIE_ACK.union(Chunks::STALE_COOKIE);
    let silent = Chunks::ABORT.union(Chunks::SHUTDOWN_COMPLETE).union(late);
    if !t.is_sctp() || t.chunks.intersects(silent) || !may_answer(room, &ip) {
        return None;
    }
    let tag = t.verification_tag(room);
    let (kind, flags, tag) = match t.initiate_tag(room).filter(|_| t.chunks.intersects(Chunks::INIT)) {
        Some(initiate) => (sctp::ABORT, 0, initiate),
        // Without a tag it can only be an INIT (section 8.5.1 A).
        None if tag == 0 => return None,
        None if t.chunks.intersects(Chunks::SHUTDOWN_ACK) => (sctp::SHUTDOWN_COMPLETE, sctp::REFLECTED, tag),
        None => (sctp::ABORT, sctp::REFLECTED, tag),
    };
    let l4 = usize::from(t.l3) + ip_header_len(&ip);
    emit_ip(room, &ip, t.dst, Protocol::SCTP, sctp::SHORTEST);
    let packet = &mut room[l4..l4 + sctp::SHORTEST];
    field::put(packet, 0, &t.ports.reversed().octets());
    field::put_u32(packet, sctp::TAG, tag);
    field::put(packet, sctp::HEADER_LEN, &[kind, flags, 0, sctp::CHUNK_HEADER_LEN as u8]);
    sctp::complete(packet);
    Some(l4 + sctp::SHORTEST)
}

/// What an ICMP or ICMPv6 error says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IcmpErrorKind {
    /// Nobody listens there.
    PortUnreachable,
    /// The machine behind the address cannot be reached.
    HostUnreachable,
    /// Policy forbids it.
    Prohibited,
    /// TTL or hop limit ended on the way.
    TimeExceeded,
    /// The packet is longer than the next hop takes: fragmentation needed (IPv4) or packet too big (IPv6).
    PacketTooBig {
        /// The next hop's MTU in octets.
        mtu: u16,
    },
}

impl IcmpErrorKind {
    /// Type and code.
    fn numbers(self, ipv6: bool) -> [u8; 2] {
        match (self, ipv6) {
            (Self::PortUnreachable, false) => [icmp::V4_UNREACHABLE, 3],
            (Self::HostUnreachable, false) => [icmp::V4_UNREACHABLE, 1],
            (Self::Prohibited, false) => [icmp::V4_UNREACHABLE, 13],
            (Self::TimeExceeded, false) => [icmp::V4_TIME_EXCEEDED, 0],
            (Self::PacketTooBig { .. }, false) => [icmp::V4_UNREACHABLE, icmp::V4_FRAGMENTATION_NEEDED],
            (Self::PortUnreachable, true) => [icmp::V6_UNREACHABLE, 4],
            (Self::HostUnreachable, true) => [icmp::V6_UNREACHABLE, 3],
            (Self::Prohibited, true) => [icmp::V6_UNREACHABLE, 1],
            (Self::TimeExceeded, true) => [icmp::V6_TIME_EXCEEDED, 0],
            (Self::PacketTooBig { .. }, true) => [icmp::V6_PACKET_TOO_BIG, 0],
        }
    }
}

/// Says that nobody listens at the packet's destination, in the destination's name.
#[must_use]
pub fn port_unreachable(room: &mut [u8], t: &Transport) -> Option<usize> {
    icmp_error(room, &t.ip(), IcmpErrorKind::PortUnreachable, t.dst)
}

/// Says, in the name of `from`, that the packet's TTL or hop limit ended.
#[must_use]
pub fn time_exceeded(room: &mut [u8], ip: &Ip, from: Addr) -> Option<usize> {
    icmp_error(room, ip, IcmpErrorKind::TimeExceeded, from)
}

/// Sends an error about the packet back to its source, in the name of `from`, an address of the packet's family.
///
/// Quotes as much of the packet as 576 (IPv4) or 1280 octets (IPv6) and the room take. There is none about ICMP
/// errors and redirects, later fragments, and what was not sent from one machine to one machine (RFC 1122 section
/// 3.2.2, RFC 4443 section 2.4 (e)).
#[must_use]
pub fn icmp_error(room: &mut [u8], ip: &Ip, kind: IcmpErrorKind, from: Addr) -> Option<usize> {
    if !may_answer(room, ip) || is_later_fragment(room, ip) || is_icmp_error(room, ip) || from.is_v4() == ip.ipv6 {
        return None;
    }
    let l3 = usize::from(ip.l3);
    let end = emit_error(room, l3, l3..usize::from(ip.end), kind, (from, ip.src))?;
    ethernet::swap(room);
    Some(end)
}

/// Writes an error at `l3` that quotes as much of what stands at `quoted` as it may, and the EtherType before it. Gives
/// where it ends; `None`, and nothing was written, if there is no room for its headers.
pub(crate) fn emit_error(
    room: &mut [u8],
    l3: usize,
    quoted: Range<usize>,
    kind: IcmpErrorKind,
    (from, to): (Addr, Addr),
) -> Option<usize> {
    let ipv6 = !from.is_v4();
    let (header, longest, protocol, ether_type) = match ipv6 {
        true => (ipv6::HEADER_LEN, V6_ERROR_MAX, Protocol::ICMPV6, ethernet::TYPE_IPV6),
        false => (ipv4::HEADER_LEN, V4_ERROR_MAX, Protocol::ICMP, ethernet::TYPE_IPV4),
    };
    let message_at = l3 + header;
    let quote_at = message_at + icmp::HEADER_LEN;
    let len = quoted.len().min(longest - header - icmp::HEADER_LEN).min(room.len().checked_sub(quote_at)?);
    room.copy_within(quoted.start..quoted.start + len, quote_at);
    field::put_u16(room, l3 - 2, ether_type);
    if ipv6 {
        ipv6::emit(&mut room[l3..], from, to, protocol, TTL, icmp::HEADER_LEN + len);
    } else {
        ipv4::emit(&mut room[l3..], from, to, protocol, TTL, icmp::HEADER_LEN + len);
    }
    let message = &mut room[message_at..quote_at + len];
    let [kind_number, code] = kind.numbers(ipv6);
    field::put(message, 0, &[kind_number, code, 0, 0, 0, 0, 0, 0]);
    if let IcmpErrorKind::PacketTooBig { mtu } = kind {
        field::put_u32(message, icmp::MTU, u32::from(mtu));
    }
    icmp::put_checksum(message, from, to);
    Some(quote_at + len)
}

/// Octets of the IP header of an answer: no options, no extension headers.
fn ip_header_len(ip: &Ip) -> usize {
    if ip.ipv6 { ipv6::HEADER_LEN } else { ipv4::HEADER_LEN }
}

/// Writes Ethernet and IP headers of an answer from `from` to the packet's source.
fn emit_ip(room: &mut [u8], ip: &Ip, from: Addr, protocol: Protocol, payload: usize) {
    ethernet::swap(room);
    let header = &mut room[usize::from(ip.l3)..];
    if ip.ipv6 {
        ipv6::emit(header, from, ip.src, protocol, TTL, payload);
    } else {
        ipv4::emit(header, from, ip.src, protocol, TTL, payload);
    }
}

/// Whether the packet went from one machine to one machine, on the link and above it.
fn may_answer(frame: &[u8], ip: &Ip) -> bool {
    !ethernet::is_group(ethernet::destination(frame))
        && !ethernet::is_group(ip.src_mac)
        && is_machine(ip.src)
        && is_machine(ip.dst)
}

/// Whether an address can be that of one machine out there: no group, not "none", not loopback.
fn is_machine(addr: Addr) -> bool {
    if addr.is_v4() {
        let first = addr.v4_octets()[0];
        first != 0 && first != 127 && first < 224
    } else {
        let loopback = addr.octets()[..15] == [0; 15] && addr.octets()[15] <= 1;
        !loopback && !is_multicast(addr)
    }
}

fn is_multicast(addr: Addr) -> bool {
    addr.octets()[0] == 0xff
}

/// Whether the packet is a part of a datagram other than its first.
fn is_later_fragment(frame: &[u8], ip: &Ip) -> bool {
    // IPv6 parts come as `Packet::Fragment`, for which nobody asks an error.
    !ip.ipv6 && field::u16_at(frame, usize::from(ip.l3) + ipv4::FRAGMENT) & ipv4::OFFSET_MASK != 0
}

/// Whether the packet is itself an ICMP error or redirect; one too short to tell counts as such.
fn is_icmp_error(frame: &[u8], ip: &Ip) -> bool {
    if ip.protocol != if ip.ipv6 { Protocol::ICMPV6 } else { Protocol::ICMP } {
        return false;
    }
    let (l4, end) = (usize::from(ip.l4), usize::from(ip.end));
    l4 >= end || icmp::is_error_or_redirect(ip.ipv6, frame[l4])
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    use super::*;
    use crate::frames::{self, CLIENT_MAC, OUR_MAC, Spec};
    use crate::{Packet, parse};

    /// The frame in a room that is longer, as in the UMEM.
    fn room_of(frame: &[u8]) -> Vec<u8> {
        let mut room = vec![0x55; 2048];
        room[..frame.len()].copy_from_slice(frame);
        room
    }

    fn echo_request(v6: bool, payload: &[u8]) -> Vec<u8> {
        let (link, mut frame) = (PacketBuilder::ethernet2(CLIENT_MAC.0, OUR_MAC.0), Vec::new());
        if v6 {
            let Spec { src, dst, .. } = Spec::v6(false);
            let ip = link.ipv6(*src.octets(), *dst.octets(), 3);
            ip.icmpv6_echo_request(5, 6).write(&mut frame, payload).unwrap();
        } else {
            let Spec { src, dst, .. } = Spec::v4(false);
            let ip = link.ipv4(src.v4_octets(), dst.v4_octets(), 3);
            ip.icmpv4_echo_request(5, 6).write(&mut frame, payload).unwrap();
        }
        frame
    }

    fn assert_goes_back(frame: &[u8]) {
        assert_eq!(frame[..12], [CLIENT_MAC.0, OUR_MAC.0].concat());
    }

    #[test]
    fn an_arp_request_is_answered_to_the_asker() {
        let mut request = [0; arp::FRAME_LEN];
        let (ours, theirs) = (Addr::from_v4([10, 0, 0, 1]), Addr::from_v4([10, 0, 0, 2]));
        arp::request(&mut request, CLIENT_MAC, theirs, ours);
        let Ok(Packet::Arp(asked)) = parse(&request) else { panic!() };
        let mut room = room_of(&request);
        assert_eq!(arp_reply(&mut room, &asked, OUR_MAC), Some(42));
        #[rustfmt::skip]
        let golden = [
            2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 6, 0, 1, 8, 0, 6, 4, 0, 2,
            2, 0, 0, 0, 0, 2, 10, 0, 0, 1, 2, 0, 0, 0, 0, 1, 10, 0, 0, 2,
        ];
        assert_eq!(room[..42], golden);
        let Ok(Packet::Arp(reply)) = parse(&room[..42]) else { panic!() };
        assert_eq!(arp_reply(&mut room, &reply, OUR_MAC), None);
    }

    #[test]
    fn a_solicitation_is_answered_solicited_and_a_probe_by_way_of_all_nodes() {
        let Spec { src, dst: target, .. } = Spec::v6(false);
        let mut frame = [0; ndp::ADVERTISEMENT_FRAME_LEN];
        ndp::solicitation(&mut frame, CLIENT_MAC, src, target);
        let mut probe = [0; ndp::DAD_FRAME_LEN];
        ndp::probe(&mut probe, CLIENT_MAC, target);
        for (question, solicited, to) in
            [(&frame[..], true, CLIENT_MAC.0), (&probe[..], false, [0x33, 0x33, 0, 0, 0, 1])]
        {
            let Ok(Packet::NeighborSolicitation(asked)) = parse(question) else { panic!() };
            assert_eq!((asked.target, asked.is_probe()), (target, !solicited));
            let mut room = room_of(question);
            assert_eq!(neighbor_advertisement(&mut room, &asked, OUR_MAC), Some(86));
            let answer = &room[..86];
            assert_eq!((&answer[..6], &answer[6..12]), (&to[..], &OUR_MAC.0[..]));
            frames::assert_checksums(answer);
            let Ok(Packet::NeighborAdvertisement(said)) = parse(answer) else { panic!() };
            assert_eq!((said.target, said.src, said.target_ll), (target, target, Some(OUR_MAC)));
            assert_eq!((said.solicited, said.overrides), (solicited, true));
        }
        let mut short = probe.to_vec();
        let Ok(Packet::NeighborSolicitation(asked)) = parse(&probe) else { panic!() };
        assert_eq!(neighbor_advertisement(&mut short, &asked, OUR_MAC), None);
    }

    #[test]
    fn echo_requests_are_answered_with_their_data() {
        for (v6, payload) in [(false, &b"odd"[..]), (true, b"odd"), (false, b""), (true, b"even")] {
            let request = echo_request(v6, payload);
            let Ok(Packet::EchoRequest(asked)) = parse(&request) else { panic!() };
            let mut room = room_of(&request);
            let len = echo_reply(&mut room, &asked).unwrap();
            assert_eq!(len, request.len());
            assert_goes_back(&room);
            frames::assert_checksums(&room[..len]);
            let Ok(Packet::IcmpOther(reply)) = parse(&room[..len]) else { panic!() };
            assert_eq!((reply.src, reply.dst, reply.ttl), (asked.dst, asked.src, 64));
            let l4 = usize::from(reply.l4);
            assert_eq!(room[l4], if v6 { 129 } else { 0 });
            assert_eq!(room[l4 + 4..len], request[l4 + 4..]);
        }
    }

    #[test]
    fn a_reset_takes_its_numbers_from_the_segment() {
        let cases = [(0x02, 0x14, 0, 1004), (0x03, 0x14, 0, 1005), (0x10, 0x04, 7777, 0), (0x12, 0x04, 7777, 0)];
        for base in [Spec::v4(true), Spec::v6(true)] {
            for (flags, expected, seq, ack) in cases {
                let frame = Spec { flags, ..base.clone() }.frame();
                let t = frames::transport(&frame);
                let mut room = room_of(&frame);
                let len = tcp_reset(&mut room, &t).unwrap();
                assert_goes_back(&room);
                frames::assert_checksums(&room[..len]);
                let reset = frames::transport(&room[..len]);
                assert_eq!((reset.src, reset.dst, reset.ports), (t.dst, t.src, t.ports.reversed()));
                assert_eq!(reset.tcp_flags.0, expected);
                assert_eq!((reset.seq(&room), reset.ack(&room), reset.payload_len(&room)), (seq, ack, 0));
            }
        }
    }

    #[test]
    fn a_reset_is_never_reset_and_udp_neither() {
        for spec in [Spec { flags: 0x04, ..Spec::v4(true) }, Spec { flags: 0x14, ..Spec::v6(true) }, Spec::v4(false)] {
            let frame = spec.frame();
            let mut room = frame.clone();
            assert_eq!(tcp_reset(&mut room, &frames::transport(&frame)), None);
            assert_eq!(room, frame);
        }
    }

    #[test]
    fn errors_quote_as_much_as_they_may() {
        for (base, payload, packet_len) in [
            (Spec::v4(false), 10, 20 + 8 + 38),
            (Spec::v4(false), 1400, 576),
            (Spec::v6(false), 10, 40 + 8 + 58),
            (Spec::v6(false), 1400, 1280),
        ] {
            let frame = Spec { payload: vec![7; payload], ..base }.frame();
            let t = frames::transport(&frame);
            let mut room = room_of(&frame);
            let len = port_unreachable(&mut room, &t).unwrap();
            assert_eq!(len, 14 + packet_len);
            assert_goes_back(&room);
            frames::assert_checksums(&room[..len]);
            let Ok(Packet::IcmpError(ip)) = parse(&room[..len]) else { panic!() };
            assert_eq!((ip.src, ip.dst), (t.dst, t.src));
            let quote = usize::from(ip.l4) + 8;
            assert_eq!(room[quote..len], frame[14..14 + len - quote]);
            assert_eq!(room[quote - 8..quote - 6], if t.ipv6 { [1, 4] } else { [3, 3] });
            assert_eq!(icmp_error(&mut room, &ip, IcmpErrorKind::TimeExceeded, t.src), None);
        }
    }

    #[test]
    fn each_kind_of_error_has_its_numbers_and_the_mtu() {
        let kinds = [
            (IcmpErrorKind::HostUnreachable, [3, 1], [1, 3]),
            (IcmpErrorKind::Prohibited, [3, 13], [1, 1]),
            (IcmpErrorKind::TimeExceeded, [11, 0], [3, 0]),
            (IcmpErrorKind::PacketTooBig { mtu: 1400 }, [3, 4], [2, 0]),
        ];
        for (kind, v4, v6) in kinds {
            for (spec, expected) in [(Spec::v4(true), v4), (Spec::v6(true), v6)] {
                let frame = spec.frame();
                let mut room = room_of(&frame);
                let len = icmp_error(&mut room, &frames::transport(&frame).ip(), kind, spec.dst).unwrap();
                frames::assert_checksums(&room[..len]);
                let message = &room[if spec.dst.is_v4() { 34 } else { 54 }..];
                assert_eq!(message[..2], expected);
                let mtu = if matches!(kind, IcmpErrorKind::PacketTooBig { .. }) { 1400 } else { 0 };
                assert_eq!(field::u32_at(message, icmp::MTU), mtu);
            }
        }
    }

    #[test]
    fn groups_broadcasts_and_nobody_get_no_answer() {
        let group = Addr::from_v6([0xff; 16]);
        let specs = [
            Spec { dst: Addr::from_v4([224, 0, 0, 1]), ..Spec::v4(true) },
            Spec { dst: Addr::from_v4([255; 4]), ..Spec::v4(true) },
            Spec { src: Addr::from_v4([0; 4]), ..Spec::v4(true) },
            Spec { src: Addr::from_v4([127, 0, 0, 1]), ..Spec::v4(true) },
            Spec { dst: group, ..Spec::v6(true) },
            Spec { src: group, ..Spec::v6(true) },
            Spec { src: Addr::UNSPECIFIED, ..Spec::v6(true) },
        ];
        for spec in specs {
            let mut room = room_of(&spec.frame());
            let t = frames::transport(&spec.frame());
            assert_eq!((tcp_reset(&mut room, &t), port_unreachable(&mut room, &t)), (None, None), "{spec:?}");
        }
        let mut frame = Spec::v4(true).frame();
        frame[..6].fill(0xff);
        let t = frames::transport(&frame);
        assert_eq!(tcp_reset(&mut frame, &t), None);
    }

    #[test]
    fn a_later_fragment_gets_no_error() {
        let frame = Spec::v4(false).frame();
        let ip = frames::transport(&frame).ip();
        let mut room = room_of(&frame);
        field::put_u16(&mut room, 20, 5);
        assert_eq!(time_exceeded(&mut room, &ip, ip.dst), None);
    }

    proptest! {
        #[test]
        fn every_answer_has_right_checksums(spec in frames::any_spec()) {
            let frame = spec.frame();
            let t = frames::transport(&frame);
            for answer in [tcp_reset, port_unreachable] {
                let mut room = room_of(&frame);
                match answer(&mut room, &t) {
                    Some(len) => frames::assert_checksums(&room[..len]),
                    None => prop_assert_eq!(room, room_of(&frame)),
                }
            }
        }
    }
}
