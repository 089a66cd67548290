//! From a frame to a [`Packet`]: every length that a header states is checked against what is there.
//!
//! The fast path is plain Ethernet, IPv4 or IPv6 without extension headers, TCP or UDP; SCTP comes after. Transport checksums are not
//! verified: the endpoints do, and a rewrite carries damage through (see [`crate::checksum`]).

use crate::addr::{Ports, Protocol};
use crate::packet::{Ip, Packet, ParseError, Transport};
use crate::sctp::Chunks;
use crate::tcp::TcpFlags;
use crate::{arp, ethernet, field, icmp, ipv4, ipv6, sctp, tcp, udp};

/// Says what `frame` carries; octets past the IP packet's end are padding and are ignored.
///
/// # Errors
/// See [`ParseError`]; nothing of such a frame may be used.
#[inline]
pub fn parse(frame: &[u8]) -> Result<Packet, ParseError> {
    if frame.len() < ethernet::HEADER_LEN {
        return Err(ParseError::Truncated);
    }
    let l3 = ethernet::HEADER_LEN;
    let src_mac = ethernet::source(frame);
    let (ip, fragment) = match field::u16_at(frame, ethernet::ETHER_TYPE) {
        ethernet::TYPE_IPV4 => ipv4::parse(frame, l3, src_mac)?,
        ethernet::TYPE_IPV6 => ipv6::parse(frame, l3, src_mac)?,
        ethernet::TYPE_ARP => return arp::parse(frame).map(Packet::Arp),
        _ => return Err(ParseError::UnknownEtherType),
    };
    if let Some(fragment) = fragment {
        return Ok(Packet::Fragment(fragment));
    }
    match ip.protocol {
        Protocol::TCP | Protocol::UDP | Protocol::SCTP => transport(frame, ip, false).map(Packet::Transport),
        Protocol::ICMP if !ip.ipv6 => icmp::parse(frame, ip),
        Protocol::ICMPV6 if ip.ipv6 => icmp::parse(frame, ip),
        _ => Ok(Packet::OtherProtocol(ip)),
    }
}

/// Checks the transport header; of a `part`, what follows the header may be elsewhere.
#[inline]
pub(crate) fn transport(frame: &[u8], ip: Ip, part: bool) -> Result<Transport, ParseError> {
    let datagram = &frame[usize::from(ip.l4)..usize::from(ip.end)];
    let (mut tcp_flags, mut chunks) = (TcpFlags::default(), Chunks::default());
    match ip.protocol {
        Protocol::TCP => tcp_flags = tcp::check(datagram)?,
        Protocol::SCTP => chunks = sctp::check(datagram, part)?,
        _ if part => udp::check_first(datagram)?,
        _ => udp::check(datagram)?,
    }
    Ok(Transport {
        src: ip.src,
        dst: ip.dst,
        ports: Ports::from_octets(field::octets(datagram, 0)),
        l3: ip.l3,
        l4: ip.l4,
        end: ip.end,
        ipv6: ip.ipv6,
        protocol: ip.protocol,
        tcp_flags,
        chunks,
        ttl: ip.ttl,
        part,
        src_mac: ip.src_mac,
    })
}

#[cfg(test)]
mod tests {
    use etherparse::{Ipv6FragmentHeader, Ipv6RawExtHeader, PacketBuilder};
    use proptest::prelude::*;

    use super::*;
    use crate::frames::{self, CLIENT_MAC, OUR_MAC, Spec};
    use crate::{Addr, Fragment};

    fn refresh_v4_checksum(frame: &mut [u8]) {
        let len = usize::from(frame[14] & 15) * 4;
        field::put_u16(frame, 24, 0);
        let checksum = crate::checksum::sum(&frame[14..14 + len]).checksum();
        field::put_u16(frame, 24, checksum);
    }

    /// An IPv6 frame whose TCP segment stands behind `extensions`.
    fn with_extensions(first: u8, extensions: &[u8]) -> Vec<u8> {
        let mut frame = Spec::v6(true).frame();
        frame[20] = first;
        let len = field::u16_at(&frame, 18) + extensions.len() as u16;
        field::put_u16(&mut frame, 18, len);
        frame.splice(54..54, extensions.iter().copied());
        frame
    }

    #[test]
    fn a_header_of_ipv4_with_a_wrong_checksum_is_refused() {
        let mut frame = Spec::v4(true).frame();
        frame[24] ^= 1;
        assert_eq!(parse(&frame), Err(ParseError::BadChecksum));
    }

    #[test]
    fn options_of_ipv4_are_skipped() {
        let mut frame = Spec::v4(false).frame();
        frame.splice(34..34, [1, 1, 1, 0]);
        frame[14] = 0x46;
        let len = field::u16_at(&frame, 16) + 4;
        field::put_u16(&mut frame, 16, len);
        refresh_v4_checksum(&mut frame);
        let t = frames::transport(&frame);
        assert_eq!((t.l4, t.dport().number()), (38, 80));
        frames::assert_checksums(&frame);
    }

    #[test]
    fn padding_is_not_part_of_the_packet() {
        let mut frame = Spec { payload: vec![], ..Spec::v4(true) }.frame();
        frame.resize(60, 0xaa);
        let t = frames::transport(&frame);
        assert_eq!((t.end, t.payload_len(&frame)), (54, 0));
    }

    #[test]
    fn parts_of_ipv4_datagrams_are_fragments() {
        for (word, offset, more) in [(0x2000, 0, true), (0x2001, 8, true), (0x0003, 24, false)] {
            let mut frame = Spec::v4(false).frame();
            field::put_u16(&mut frame, 18, 0xbeef);
            field::put_u16(&mut frame, 20, word);
            refresh_v4_checksum(&mut frame);
            let Ok(Packet::Fragment(Fragment { id, offset: o, more: m, .. })) = parse(&frame) else { panic!() };
            assert_eq!((id, o, m), (0xbeef, offset, more));
        }
    }

    #[test]
    fn extension_headers_are_followed_to_the_transport() {
        let options = Ipv6RawExtHeader::new_raw(60.into(), &[0; 6]).unwrap().to_bytes();
        let last = Ipv6RawExtHeader::new_raw(6.into(), &[0; 14]).unwrap().to_bytes();
        let t = frames::transport(&with_extensions(0, &[&options[..], &last[..]].concat()));
        assert_eq!((t.l4, t.dport().number(), t.protocol), (54 + 24, 80, Protocol::TCP));
    }

    #[test]
    fn parts_of_ipv6_datagrams_are_fragments_and_a_part_alone_is_none() {
        let offset = etherparse::IpFragOffset::try_new(3).unwrap();
        let header = Ipv6FragmentHeader::new(6.into(), offset, true, 0xdead_beef);
        let frame = with_extensions(44, &header.to_bytes());
        let Ok(Packet::Fragment(f)) = parse(&frame) else { panic!() };
        assert_eq!((f.id, f.offset, f.more, f.ip.l4, f.ip.protocol), (0xdead_beef, 24, true, 62, Protocol::TCP));
        let alone = Ipv6FragmentHeader::new(6.into(), etherparse::IpFragOffset::ZERO, false, 1);
        assert_eq!(frames::transport(&with_extensions(44, &alone.to_bytes())).l4, 62);
    }

    #[test]
    fn source_routes_authentication_and_endless_headers_are_refused() {
        let routed = [6, 0, 0, 1, 0, 0, 0, 0];
        assert_eq!(parse(&with_extensions(43, &routed)), Err(ParseError::ExtensionHeaders));
        assert_eq!(frames::transport(&with_extensions(43, &[6, 0, 0, 0, 0, 0, 0, 0])).l4, 62);
        let authenticated = [6, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(parse(&with_extensions(51, &authenticated)), Err(ParseError::ExtensionHeaders));
        let endless = [60, 0, 0, 0, 0, 0, 0, 0].repeat(64);
        assert_eq!(parse(&with_extensions(60, &endless)), Err(ParseError::ExtensionHeaders));
    }

    #[test]
    fn lengths_of_transport_headers_are_checked() {
        for offset in [0x40, 0xf0] {
            let mut frame = Spec::v4(true).frame();
            frame[46] = offset;
            assert_eq!(parse(&frame), Err(ParseError::BadHeader));
        }
        for len in [0u16, 7, 12] {
            let mut frame = Spec::v6(false).frame();
            field::put_u16(&mut frame, 58, len);
            assert_eq!(parse(&frame), Err(ParseError::BadHeader));
        }
    }

    #[test]
    fn tags_and_strangers_are_unknown_and_other_protocols_are_told() {
        let mut frame = Spec::v4(true).frame();
        field::put_u16(&mut frame, 12, 0x8100);
        assert_eq!(parse(&frame), Err(ParseError::UnknownEtherType));
        let mut frame = Spec::v4(true).frame();
        frame[23] = 33;
        refresh_v4_checksum(&mut frame);
        let Ok(Packet::OtherProtocol(ip)) = parse(&frame) else { panic!() };
        assert_eq!(ip.protocol, Protocol(33), "DCCP");
    }

    #[test]
    fn a_mapped_address_in_an_ipv6_header_is_refused() {
        let spec = Spec::v6(true);
        let mut frame = spec.frame();
        field::put(&mut frame, 22, Addr::from_v4([10, 0, 0, 1]).octets());
        assert_eq!(parse(&frame), Err(ParseError::BadHeader));
    }

    #[test]
    fn messages_of_icmp_are_told_apart() {
        let kind_of = |kind: u8, code: u8| {
            let mut frame = Vec::new();
            let ip = PacketBuilder::ethernet2(CLIENT_MAC.0, OUR_MAC.0).ipv4([192, 0, 2, 1], [192, 0, 2, 2], 9);
            ip.icmpv4_raw(kind, code, [0; 4]).write(&mut frame, &[1, 2, 3]).unwrap();
            parse(&frame).unwrap()
        };
        assert!(matches!(kind_of(8, 0), Packet::EchoRequest(_)));
        assert!(matches!(kind_of(0, 0), Packet::IcmpOther(_)));
        for kind in [3, 4, 11, 12] {
            assert!(matches!(kind_of(kind, 0), Packet::IcmpError(_)));
        }
    }

    proptest! {
        #[test]
        fn generated_packets_are_read_as_etherparse_wrote_them(spec in frames::any_spec()) {
            let frame = spec.frame();
            let t = frames::transport(&frame);
            prop_assert_eq!((t.src, t.dst), (spec.src, spec.dst));
            prop_assert_eq!((t.sport().number(), t.dport().number()), (spec.sport, spec.dport));
            prop_assert_eq!((t.ttl, t.src_mac), (spec.ttl, CLIENT_MAC));
            prop_assert_eq!(t.payload_len(&frame), spec.payload.len());
            prop_assert_eq!(usize::from(t.end), frame.len());
            prop_assert_eq!(t.protocol, if spec.tcp { Protocol::TCP } else { Protocol::UDP });
            prop_assert_eq!(t.tcp_flags.0, if spec.tcp { spec.flags & 0x17 } else { 0 });
            if spec.tcp {
                prop_assert_eq!((t.seq(&frame), t.ack(&frame), t.window(&frame)), (1000, 7777, 4096));
            }
        }

        #[test]
        fn a_frame_cut_anywhere_is_refused_and_never_panics(spec in frames::any_spec()) {
            let frame = spec.frame();
            for len in 0..frame.len() {
                prop_assert_eq!(parse(&frame[..len]), Err(ParseError::Truncated));
            }
        }

        #[test]
        fn extension_headers_of_any_content_never_panic(
            first in proptest::sample::select(vec![0u8, 43, 44, 51, 58, 60]),
            kinds in proptest::collection::vec((proptest::sample::select(vec![0u8, 6, 43, 44, 58, 60]), 0u8..3), 0..6),
            rest in proptest::collection::vec(any::<u8>(), 0..40),
            cut in 0usize..400,
        ) {
            let mut extensions = Vec::new();
            for (next, len) in kinds {
                extensions.extend([next, len]);
                extensions.extend(vec![0; 6 + usize::from(len) * 8]);
            }
            extensions.extend(rest);
            let mut frame = with_extensions(first, &extensions);
            frame.truncate(cut.max(54));
            let len = frame.len() as u16 - 54;
            field::put_u16(&mut frame, 18, len);
            if let Ok(Packet::Transport(t)) = parse(&frame) {
                prop_assert!(usize::from(t.end) <= frame.len() && t.l4 < t.end);
                prop_assert!(t.payload_len(&frame) < frame.len());
            }
        }

        #[test]
        fn damaged_frames_never_panic(
            spec in frames::any_spec(), changes in proptest::collection::vec((0usize..90, any::<u8>()), 1..6),
        ) {
            let mut frame = spec.frame();
            for (at, value) in changes {
                let at = at % frame.len();
                frame[at] = value;
            }
            if frame[12] == 8 && frame.len() >= 14 + usize::from(frame[14] & 15) * 4 {
                refresh_v4_checksum(&mut frame);
            }
            if let Ok(Packet::Transport(t)) = parse(&frame) {
                let _ = (t.payload_len(&frame), crate::checksum::transport_checksum(&frame, &t));
            }
        }
    }
}
