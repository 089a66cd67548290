use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder, icmpv4};
use proptest::prelude::*;

use super::*;
use crate::frames::{self, CLIENT_MAC, OUR_MAC, Spec};
use crate::{Packet, Port, parse};

const ROUTER_V4: [u8; 4] = [198, 18, 0, 1];
const ROUTER_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// The error that a router sends about a frame's packet, `quoted` octets of which it quotes.
fn error_about(frame: &[u8], quoted: usize) -> Vec<u8> {
    let quote = &frame[14..(14 + quoted).min(frame.len())];
    let link = PacketBuilder::ethernet2(CLIENT_MAC.0, OUR_MAC.0);
    let mut error = Vec::new();
    if frame[14] >> 4 == 4 {
        let kind = icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1400 };
        let back = field::octets(frame, 26);
        let step = link.ipv4(ROUTER_V4, back, 60).icmpv4(Icmpv4Type::DestinationUnreachable(kind));
        step.write(&mut error, quote).unwrap();
    } else {
        let back = field::octets(frame, 22);
        let step = link.ipv6(ROUTER_V6, back, 60).icmpv6(Icmpv6Type::PacketTooBig { mtu: 1400 });
        step.write(&mut error, quote).unwrap();
    }
    error
}

fn ip_of(frame: &[u8]) -> Ip {
    match parse(frame) {
        Ok(Packet::IcmpError(ip)) => ip,
        other => panic!("{other:?}"),
    }
}

fn tuple(addresses: (Addr, Addr), ports: (u16, u16)) -> (Addr, Addr, Port, Port) {
    (addresses.0, addresses.1, Port::new(ports.0), Port::new(ports.1))
}

fn any_quoted() -> impl Strategy<Value = (Spec, Addr, Addr, u16, u16)> {
    frames::any_spec().prop_flat_map(|spec| {
        let v6 = !spec.src.is_v4();
        (Just(spec), frames::any_addr(v6), frames::any_addr(v6), any::<u16>(), any::<u16>())
    })
}

proptest! {
    /// A sender's packet is translated, a router further on quotes it, and the error comes back by the same translation.
    #[test]
    fn who_sent_a_packet_gets_errors_about_what_it_sent(
        (spec, src, dst, sport, dport) in any_quoted(), quoted in 0..200usize,
    ) {
        let sent = spec.frame();
        let was = frames::transport(&sent);
        let old = tuple((was.src, was.dst), (was.sport().number(), was.dport().number()));
        let new = tuple((src, dst), (sport, dport));
        let mut seen = sent.clone();
        crate::rewrite(&mut seen, &was, &Rewrite::new(old, new), crate::ChecksumMode::Incremental);
        let quoted = usize::from(was.l4) - 14 + 8 + quoted;
        let mut error = error_about(&seen, quoted);
        let ip = ip_of(&error);
        let quote = Quote::parse(&error, &ip).unwrap().unwrap();
        prop_assert_eq!((quote.src, quote.dst, quote.ports, quote.protocol), (src, dst, Ports::new(new.2, new.3), was.protocol));
        // What packets of the other direction become.
        let back = Rewrite::new((new.1, new.0, new.3, new.2), (old.1, old.0, old.3, old.2));
        rewrite_error(&mut error, &ip, &quote, &back, back.src);
        // Both checksums of the error itself hold, and it comes from whom the sender knows.
        let ip = ip_of(&error);
        prop_assert_eq!((ip.src, ip.dst, ip.ttl), (was.dst, was.src, 59));
        let quote = Quote::parse(&error, &ip).unwrap().unwrap();
        prop_assert_eq!((quote.src, quote.dst, quote.ports), (was.src, was.dst, was.ports));
        // To the octet what was sent, but for the TTL and what covers it.
        let inside = &error[usize::from(ip.l4) + 8..usize::from(ip.end)];
        // Half a checksum cannot be turned back.
        let half = usize::from(was.l4) - 14 + tcp::CHECKSUM + 1;
        let inside = if was.is_tcp() && inside.len() == half { &inside[..half - 1] } else { inside };
        let mut whole = sent.clone();
        whole[14..14 + inside.len()].copy_from_slice(inside);
        prop_assert!(frames::same_but_ttl(&sent, &whole));
    }

    /// Whatever is in the quote, nothing panics.
    #[test]
    fn any_quote_is_judged(octets in prop::collection::vec(any::<u8>(), 0..120), v6: bool, first in prop::option::of(0..4usize)) {
        let mut octets = octets;
        if let (Some(first), Some(to)) = (first, octets.first_mut()) {
            *to = [0x45, 0x46, 0x60, 0x4f][first];
        }
        let link = PacketBuilder::ethernet2(CLIENT_MAC.0, OUR_MAC.0);
        let mut whole = Vec::new();
        if v6 {
            link.ipv6(ROUTER_V6, [7; 16], 9).icmpv6(Icmpv6Type::PacketTooBig { mtu: 1 }).write(&mut whole, &octets).unwrap();
        } else {
            let kind = Icmpv4Type::TimeExceeded(icmpv4::TimeExceededCode::TtlExceededInTransit);
            link.ipv4(ROUTER_V4, [9, 9, 9, 9], 9).icmpv4(kind).write(&mut whole, &octets).unwrap();
        }
        let ip = ip_of(&whole);
        let _ = Quote::parse(&whole, &ip);
    }
}

#[test]
fn what_cannot_be_translated_is_told_apart() {
    for base in [Spec::v4(true), Spec::v6(false)] {
        let sent = base.frame();
        let header = if base.src.is_v4() { 20 } else { 40 };
        let judged = |error: &[u8]| Quote::parse(error, &ip_of(error));
        assert_eq!(judged(&error_about(&sent, header + 7)), Err(ParseError::Truncated));
        assert_eq!(judged(&error_about(&sent, header - 1)), Err(ParseError::Truncated));
        assert!(judged(&error_about(&sent, header + 8)).unwrap().is_some());
        let mut damaged = error_about(&sent, 100);
        *damaged.last_mut().unwrap() ^= 1;
        assert_eq!(judged(&damaged), Err(ParseError::BadChecksum));
        let mut error = error_about(&sent, 100);
        let ip = ip_of(&error);
        error[usize::from(ip.l4) + 8] = 0x75;
        icmp::put_checksum(&mut error[usize::from(ip.l4)..usize::from(ip.end)], ip.src, ip.dst);
        assert_eq!(judged(&error), Err(ParseError::BadHeader));
    }
}

#[test]
fn later_fragments_and_other_protocols_have_no_ports() {
    let mut later = Spec::v4(false).frame();
    field::put_u16(&mut later, 20, 5);
    let error = error_about(&later, 100);
    assert_eq!(Quote::parse(&error, &ip_of(&error)), Ok(None));
    let mut echo = Spec::v4(false).frame();
    echo[23] = 1;
    let error = error_about(&echo, 100);
    assert_eq!(Quote::parse(&error, &ip_of(&error)), Ok(None));
    // The first part of a datagram has the ports.
    let mut first = Spec::v4(false).frame();
    field::put_u16(&mut first, 20, 0x2000);
    let error = error_about(&first, 100);
    assert!(Quote::parse(&error, &ip_of(&error)).unwrap().is_some());
}

#[test]
fn a_quoted_sctp_packet_is_turned_back_and_so_is_its_crc_where_that_is_quoted() {
    let data = [&[0, 3, 0, 100][..], &[7; 96]].concat();
    for v6 in [false, true] {
        let (sent, header) = (frames::sctp_frame(v6, 4000, 38412, 99, &data), if v6 { 40 } else { 20 });
        let was = frames::transport(&sent);
        let (src, dst) = (was.dst, was.src);
        let old = tuple((was.src, was.dst), (4000, 38412));
        let new = tuple((src, dst), (5000, 9));
        let mut seen = sent.clone();
        crate::rewrite(&mut seen, &was, &Rewrite::new(old, new), crate::ChecksumMode::Incremental);
        for quoted in [8, 11, 12, 40, 112] {
            let mut error = error_about(&seen, header + quoted);
            let ip = ip_of(&error);
            let quote = Quote::parse(&error, &ip).unwrap().unwrap();
            assert_eq!((quote.ports, quote.protocol), (Ports::new(new.2, new.3), Protocol::SCTP));
            let back = Rewrite::new((new.1, new.0, new.3, new.2), (old.1, old.0, old.3, old.2));
            rewrite_error(&mut error, &ip, &quote, &back, back.src);
            let ip = ip_of(&error);
            let inside = &error[usize::from(ip.l4) + 8..usize::from(ip.end)];
            // Three octets of a CRC cannot be turned back.
            let inside = if quoted == 11 { &inside[..header + 8] } else { inside };
            let mut whole = sent.clone();
            whole[14..14 + inside.len()].copy_from_slice(inside);
            assert!(frames::same_but_ttl(&sent, &whole), "{quoted}");
        }
    }
}
