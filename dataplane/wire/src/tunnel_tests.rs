use etherparse::{Icmpv4Type, Icmpv6Type, NetSlice, PacketBuilder, SlicedPacket, TransportSlice, icmpv4};
use proptest::prelude::*;

use super::*;
use crate::frames::{self, CLIENT_MAC, OUR_MAC, Spec};
use crate::{Packet, Port, parse};

const L3: u16 = 14;

fn outer(ipv6: bool, wrapping: Wrapping, entropy: u32) -> Outer {
    let address = |last: u8| match ipv6 {
        true => Addr::from_v6([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]),
        false => Addr::from_v4([172, 16, 0, last]),
    };
    Outer { src: address(1), dst: address(2), wrapping, entropy }
}

fn any_outer() -> impl Strategy<Value = Outer> {
    (any::<bool>(), any::<bool>(), any::<u32>())
        .prop_map(|(ipv6, udp, entropy)| outer(ipv6, if udp { Wrapping::Gue } else { Wrapping::Ip }, entropy))
}

fn wrapped(frame: &[u8], outer: &Outer) -> Vec<u8> {
    let mut room = frame.to_vec();
    room.resize(frame.len() + usize::from(outer.len()), 0x55);
    let end = encapsulate(&mut room, L3, frame.len() as u16, outer).unwrap();
    assert_eq!(usize::from(end), room.len());
    room
}

/// A frame with this traffic class, and of IPv4 with these flags and identification.
fn with(mut frame: Vec<u8>, class: u8, dont_fragment: bool, id: u16) -> Vec<u8> {
    if frame[14] >> 4 == 6 {
        field::put_u32(&mut frame, 14, 6 << 28 | u32::from(class) << 20 | 7);
        return frame;
    }
    frame[15] = class;
    field::put_u16(&mut frame, 18, id);
    field::put_u16(&mut frame, 20, if dont_fragment { ipv4::DONT_FRAGMENT } else { 0 });
    field::put_u16(&mut frame, 24, 0);
    let checksum = checksum::sum(&frame[14..34]).checksum();
    field::put_u16(&mut frame, 24, checksum);
    frame
}

proptest! {
    #[test]
    fn what_is_within_stays_and_what_is_around_is_what_etherparse_reads(
        spec in frames::any_spec(), outer in any_outer(), class: u8, dont_fragment: bool, id: u16,
    ) {
        let frame = with(spec.frame(), class, dont_fragment, id);
        let room = wrapped(&frame, &outer);
        prop_assert_eq!(&room[..12], &frame[..12]);
        prop_assert_eq!(&room[14 + usize::from(outer.len())..], &frame[14..]);
        let packet = SlicedPacket::from_ethernet(&room).unwrap();
        let inner_v6 = frame[14] >> 4 == 6;
        match packet.net.unwrap() {
            NetSlice::Ipv4(ip) => {
                let header = ip.header();
                prop_assert_eq!(header.to_header().calc_header_checksum(), header.header_checksum());
                prop_assert_eq!((header.source(), header.destination()), (outer.src.v4_octets(), outer.dst.v4_octets()));
                prop_assert_eq!((header.slice()[1], header.ttl()), (class, TTL));
                prop_assert_eq!(header.dont_fragment(), dont_fragment || inner_v6);
                let expected = if header.dont_fragment() { 0 } else { id.wrapping_add(outer.entropy as u16) };
                prop_assert_eq!(header.identification(), expected);
                prop_assert_eq!(usize::from(header.total_len()), room.len() - 14);
            }
            NetSlice::Ipv6(ip) => {
                let header = ip.header();
                prop_assert_eq!((header.source(), header.destination()), (*outer.src.octets(), *outer.dst.octets()));
                prop_assert_eq!((header.traffic_class(), header.hop_limit()), (class, TTL));
                prop_assert!(header.flow_label().value() != 0);
                prop_assert_eq!(usize::from(header.payload_length()), room.len() - 54);
            }
            other => panic!("{other:?}"),
        }
        let ip_len = usize::from(outer.len()) - if outer.wrapping == Wrapping::Gue { 8 } else { 0 };
        let protocol = if outer.dst.is_v4() { room[23] } else { room[20] };
        if outer.wrapping == Wrapping::Ip {
            prop_assert_eq!(protocol, if inner_v6 { 41 } else { 4 });
            return Ok(());
        }
        let datagram = &room[14 + ip_len..];
        let udp = etherparse::UdpHeaderSlice::from_slice(datagram).unwrap();
        prop_assert_eq!((protocol, udp.destination_port(), usize::from(udp.length())), (17, 6080, datagram.len()));
        prop_assert!(udp.source_port() >= 0xc000);
        let checksum = match outer.dst.is_v4() {
            true => 0,
            false => udp.to_header()
                .calc_checksum_ipv6_raw(*outer.src.octets(), *outer.dst.octets(), &datagram[8..]).unwrap(),
        };
        prop_assert_eq!(udp.checksum(), checksum);
    }

    #[test]
    fn a_room_that_is_too_short_is_left_alone(spec in frames::any_spec(), outer in any_outer(), lacking in 1usize..20) {
        let frame = spec.frame();
        let mut room = frame.clone();
        room.resize(frame.len() + usize::from(outer.len()) - lacking, 0x55);
        let before = room.clone();
        prop_assert_eq!(encapsulate(&mut room, L3, frame.len() as u16, &outer), None);
        prop_assert_eq!(room, before);
    }

    #[test]
    fn nothing_that_comes_for_an_error_stops_us(spec in frames::any_spec(), outer in any_outer(), noise: Vec<u8>) {
        let mut error = too_big(&wrapped(&spec.frame(), &outer)[14..], 1400);
        for (octet, noise) in error.iter_mut().skip(42).zip(&noise) {
            *octet ^= noise;
        }
        // However much of it is there.
        for len in 0..=error.len() {
            let cut = shortened(&error, len);
            if let Ok(Packet::IcmpError(ip)) = parse(&cut) {
                let _ = Within::parse(&sealed(cut, &ip), &ip);
            }
        }
    }
}

/// An error of which so many octets are there, as its IP header says too.
fn shortened(error: &[u8], len: usize) -> Vec<u8> {
    let mut cut = error[..len].to_vec();
    if len >= 54 && cut[12] == 0x86 {
        cut[18..20].copy_from_slice(&(len as u16 - 54).to_be_bytes());
    } else if len >= 34 && cut[12] == 8 {
        let mut header = etherparse::Ipv4Header::from_slice(&cut[14..]).unwrap().0;
        header.set_payload_len(len - 34).unwrap();
        header.header_checksum = header.calc_header_checksum();
        cut[14..34].copy_from_slice(&header.to_bytes());
    }
    cut
}

/// With the ICMP checksum right, so that what it quotes is looked at.
fn sealed(mut error: Vec<u8>, ip: &Ip) -> Vec<u8> {
    let message = &mut error[usize::from(ip.l4)..usize::from(ip.end)];
    message[2..4].fill(0);
    let checksum = icmp::sum(message, ip.src, ip.dst).checksum();
    field::put_u16(message, 2, checksum);
    error
}

#[test]
fn a_quoted_header_that_says_it_is_longer_than_the_quote_stops_nobody() {
    for (protocol, words, quoted) in [4, 41, 17].into_iter().flat_map(|protocol| {
        (5..=15u8).flat_map(move |words| (20..=76usize).map(move |quoted| (protocol, words, quoted)))
    }) {
        let mut outer = [0; 76];
        (outer[0], outer[9]) = (0x40 | words, protocol);
        // Who sent it is who is told.
        outer[12..16].copy_from_slice(&[10, 0, 0, 10]);
        let error = shortened(&too_big(&outer, 1400), 42 + quoted);
        let Ok(Packet::IcmpError(ip)) = parse(&error) else { panic!("an error") };
        let within = Within::parse(&sealed(error, &ip), &ip);
        if quoted < usize::from(words) * 4 {
            assert_eq!(within, Err(ParseError::Truncated), "{protocol} {words} {quoted}");
        }
    }
}

#[test]
fn flows_differ_in_source_port_and_flow_label() {
    let frame = Spec::v6(true).frame();
    let of = |entropy| {
        let frame = wrapped(&frame, &outer(true, Wrapping::Gue, entropy));
        (field::u32_at(&frame, 14) & 0xf_ffff, field::u16_at(&frame, 54))
    };
    let all: std::collections::HashSet<_> = (0..1000u32).map(|n| of(n << 22)).collect();
    assert_eq!(all.len(), 1000);
    assert_eq!(of(5), of(5));
}

/// What a router says of a packet that is too big.
fn too_big(packet: &[u8], mtu: u16) -> Vec<u8> {
    error(
        packet,
        Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu }),
        Icmpv6Type::PacketTooBig { mtu: u32::from(mtu) },
    )
}

fn error(packet: &[u8], v4: Icmpv4Type, v6: Icmpv6Type) -> Vec<u8> {
    let (link, mut error) = (PacketBuilder::ethernet2(CLIENT_MAC.0, OUR_MAC.0), Vec::new());
    if packet[0] >> 4 == 6 {
        let back = packet[8..24].try_into().unwrap();
        link.ipv6([0x20; 16], back, 60).icmpv6(v6).write(&mut error, packet).unwrap();
    } else {
        let back = packet[12..16].try_into().unwrap();
        link.ipv4([198, 18, 0, 1], back, 60).icmpv4(v4).write(&mut error, packet).unwrap();
    }
    error
}

fn within(frame: &[u8]) -> (Ip, Result<Option<Within>, ParseError>) {
    let Ok(Packet::IcmpError(ip)) = parse(frame) else { panic!("no error") };
    (ip, Within::parse(frame, &ip))
}

#[test]
fn errors_about_outer_packets_become_errors_about_inner_ones() {
    for (inner_v6, outer_v6, wrapping) in [
        (false, false, Wrapping::Ip),
        (false, false, Wrapping::Gue),
        (true, true, Wrapping::Ip),
        (true, true, Wrapping::Gue),
        (false, true, Wrapping::Gue),
        (true, false, Wrapping::Ip),
        (false, true, Wrapping::Ip),
        (true, false, Wrapping::Gue),
    ] {
        let spec = Spec { payload: vec![9; 900], ..if inner_v6 { Spec::v6(true) } else { Spec::v4(true) } };
        let frame = with(spec.frame(), 0, true, 0);
        let outer = outer(outer_v6, wrapping, 77);
        let packet = wrapped(&frame, &outer)[14..].to_vec();
        for quoted in [usize::from(outer.len()) + if inner_v6 { 48 } else { 28 }, 500] {
            let error = too_big(&packet[..quoted], 1400);
            let (ip, found) = within(&error);
            let found = found.unwrap().unwrap();
            let t = frames::transport(&frame);
            assert_eq!((found.quote.src, found.quote.dst, found.quote.ports), (t.src, t.dst, t.ports));
            assert_eq!(found.endpoint, outer.dst);
            let mtu = 1400 - outer.len();
            assert_eq!(found.kind, Some(IcmpErrorKind::PacketTooBig { mtu }));
            let mut room = error.clone();
            room.resize(2048, 0x55);
            let end = relay(&mut room, &ip, &found, found.kind.unwrap(), t.dst).unwrap();
            room.truncate(usize::from(end));
            tells(&room, &frame, quoted - usize::from(outer.len()), mtu);
        }
        // Less than who sent it could know it by.
        let (_, found) = within(&too_big(&packet[..usize::from(outer.len()) + if inner_v6 { 47 } else { 27 }], 1400));
        assert_eq!(found, Err(ParseError::Truncated));
    }
}

/// The error is for the sender of `frame`, in the name of its destination, and quotes so much of it.
fn tells(error: &[u8], frame: &[u8], quoted: usize, mtu: u16) {
    let packet = SlicedPacket::from_ethernet(error).unwrap();
    let t = frames::transport(frame);
    let quote = match (packet.net.unwrap(), packet.transport.unwrap()) {
        (NetSlice::Ipv4(ip), TransportSlice::Icmpv4(icmp)) => {
            let header = ip.header();
            assert_eq!(header.to_header().calc_header_checksum(), header.header_checksum());
            assert_eq!((header.source(), header.destination()), (t.dst.v4_octets(), t.src.v4_octets()));
            let Icmpv4Type::DestinationUnreachable(kind) = icmp.icmp_type() else { panic!() };
            assert_eq!(kind, icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu });
            assert_eq!(icmp.icmp_type().calc_checksum(icmp.payload()), icmp.checksum());
            icmp.payload().to_vec()
        }
        (NetSlice::Ipv6(ip), TransportSlice::Icmpv6(icmp)) => {
            let (src, dst) = (ip.header().source(), ip.header().destination());
            assert_eq!((src, dst), (*t.dst.octets(), *t.src.octets()));
            assert_eq!(icmp.icmp_type(), Icmpv6Type::PacketTooBig { mtu: u32::from(mtu) });
            assert_eq!(icmp.icmp_type().calc_checksum(src, dst, icmp.payload()).unwrap(), icmp.checksum());
            icmp.payload().to_vec()
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(quote, frame[14..14 + quoted]);
}

#[test]
fn an_end_that_cannot_be_reached_or_does_not_understand_is_a_host_that_cannot_be_reached() {
    use Icmpv4Type as V4;
    use Icmpv6Type as V6;
    use etherparse::icmpv4::DestUnreachableHeader as Code;
    use etherparse::icmpv6::DestUnreachableCode as Code6;
    for (inner_v6, outer_v6) in [(false, false), (true, true), (true, false), (false, true)] {
        let spec = if inner_v6 { Spec::v6(true) } else { Spec::v4(true) };
        let packet = wrapped(&with(spec.frame(), 0, true, 0), &outer(outer_v6, Wrapping::Ip, 1))[14..].to_vec();
        for (v4, v6, means) in [
            (
                V4::DestinationUnreachable(Code::Protocol),
                V6::DestinationUnreachable(Code6::Address),
                Some(IcmpErrorKind::HostUnreachable),
            ),
            (
                V4::DestinationUnreachable(Code::Port),
                V6::DestinationUnreachable(Code6::Port),
                Some(IcmpErrorKind::HostUnreachable),
            ),
            (
                V4::TimeExceeded(icmpv4::TimeExceededCode::TtlExceededInTransit),
                V6::TimeExceeded(etherparse::icmpv6::TimeExceededCode::HopLimitExceeded),
                Some(IcmpErrorKind::HostUnreachable),
            ),
            (
                V4::DestinationUnreachable(Code::FilterProhibited),
                V6::DestinationUnreachable(Code6::Prohibited),
                Some(IcmpErrorKind::Prohibited),
            ),
            (
                V4::Unknown { type_u8: 4, code_u8: 0, bytes5to8: [0; 4] },
                V6::Unknown { type_u8: 4, code_u8: 0, bytes5to8: [0; 4] },
                None,
            ),
        ] {
            let (_, found) = within(&error(&packet, v4, v6));
            assert_eq!(found.unwrap().unwrap().kind, means);
        }
    }
}

#[test]
fn mtus_that_nothing_can_be_done_about_are_kept_to_what_may_be_said() {
    let of = |frame: Vec<u8>, outer_v6, mtu| {
        let packet = wrapped(&frame, &outer(outer_v6, Wrapping::Ip, 1))[14..].to_vec();
        within(&too_big(&packet, mtu)).1.unwrap().unwrap().kind
    };
    let (v4, v6) = (with(Spec::v4(true).frame(), 0, true, 0), Spec::v6(true).frame());
    assert_eq!(of(v6.clone(), true, 1290), Some(IcmpErrorKind::PacketTooBig { mtu: 1280 }));
    assert_eq!(of(v6, false, 0), Some(IcmpErrorKind::PacketTooBig { mtu: 1280 }));
    assert_eq!(of(v4.clone(), false, 0), Some(IcmpErrorKind::PacketTooBig { mtu: 0 }), "a router of old");
    assert_eq!(of(v4.clone(), false, 60), None);
    assert_eq!(of(v4, false, 88), Some(IcmpErrorKind::PacketTooBig { mtu: 68 }));
    assert_eq!(of(with(Spec::v4(true).frame(), 0, false, 3), true, 1400), None, "it may be cut");
}

#[test]
fn errors_about_other_packets_are_none_of_a_tunnel() {
    let plain = Spec::v4(true).frame();
    assert_eq!(within(&too_big(&plain[14..], 1400)).1, Ok(None));
    let mut other = wrapped(&plain, &outer(false, Wrapping::Gue, 1));
    field::put_u16(&mut other, 36, 6081);
    assert_eq!(within(&too_big(&other[14..], 1400)).1, Ok(None));
    // To somebody else than who sent the outer packet.
    let mut error = too_big(&wrapped(&plain, &outer(false, Wrapping::Ip, 1))[14..], 1400);
    error[33] ^= 1;
    let Ok(Packet::IcmpError(ip)) = parse(&{
        field::put_u16(&mut error, 24, 0);
        let checksum = checksum::sum(&error[14..34]).checksum();
        field::put_u16(&mut error, 24, checksum);
        error.clone()
    }) else {
        panic!()
    };
    assert_eq!(Within::parse(&error, &ip), Ok(None));
    assert_eq!(Port::new(GUE_PORT).number(), 6080);
}
