use etherparse::{IpFragOffset, IpNumber, Ipv4Header, Ipv6FragmentHeader, NetSlice, SlicedPacket, defrag::IpDefragBuf};
use proptest::prelude::*;

use super::*;
use crate::frames::{self, Spec};
use crate::{Addr, Packet, Port, parse};

/// The part of `frame` (without options or extension headers) from `offset` on, of `len` octets.
fn part_of(frame: &[u8], offset: usize, len: usize, id: u32) -> Vec<u8> {
    let ipv6 = frame[12] == 0x86;
    let l4 = if ipv6 { 54 } else { 34 };
    let payload = &frame[l4..];
    let more = offset + len < payload.len();
    let units = IpFragOffset::try_new((offset / 8) as u16).unwrap();
    let mut part = frame[..14].to_vec();
    if ipv6 {
        let mut header = frame[14..54].to_vec();
        header[4..6].copy_from_slice(&(len as u16 + 8).to_be_bytes());
        header[6] = 44;
        part.extend(header);
        part.extend(Ipv6FragmentHeader::new(IpNumber(frame[20]), units, more, id).to_bytes());
    } else {
        let mut header = Ipv4Header::from_slice(&frame[14..]).unwrap().0;
        header.set_payload_len(len).unwrap();
        (header.dont_fragment, header.more_fragments, header.fragment_offset) = (false, more, units);
        header.identification = id as u16;
        header.header_checksum = header.calc_header_checksum();
        part.extend(header.to_bytes());
    }
    part.extend(&payload[offset..offset + len]);
    part
}

fn fragment(frame: &[u8]) -> Fragment {
    match parse(frame) {
        Ok(Packet::Fragment(fragment)) => fragment,
        other => panic!("no fragment: {other:?}"),
    }
}

/// Puts IPv4 frames together again, with etherparse.
fn together(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut buffer = IpDefragBuf::new(IpNumber::UDP, vec![], vec![]);
    let mut head = None;
    for frame in frames {
        let Some(NetSlice::Ipv4(ip)) = SlicedPacket::from_ethernet(frame).unwrap().net else { panic!("IPv4") };
        let header = ip.header().to_header();
        assert_eq!(header.calc_header_checksum(), header.header_checksum);
        buffer.add(header.fragment_offset, header.more_fragments, ip.payload().payload).unwrap();
        if header.fragment_offset.value() == 0 {
            head = Some(frame[..14 + header.header_len()].to_vec());
        }
    }
    assert!(buffer.is_complete());
    [head.unwrap(), buffer.take_bufs().0].concat()
}

#[test]
fn the_first_part_has_the_ports_and_later_ones_have_none() {
    for spec in [Spec::v4(false), Spec::v4(true), Spec::v6(false), Spec::v6(true)] {
        let whole = Spec { payload: vec![7; 100], ..spec }.frame();
        let t = frames::transport(&whole);
        let first = part_of(&whole, 0, 48, 9);
        let part = fragment(&first);
        assert_eq!((part.offset, part.more, part.id, part.len(), part.is_sound()), (0, true, 9, 48, true));
        let read = first_part(&first, &part).unwrap().unwrap();
        assert!(read.part);
        assert_eq!((read.ports, read.src, read.dst, read.tcp_flags), (t.ports, t.src, t.dst, t.tcp_flags));
        let later = fragment(&part_of(&whole, 48, whole.len() - usize::from(t.l4) - 48, 9));
        assert_eq!((later.offset, later.more, later.is_sound()), (48, false, true));
    }
}

#[test]
fn a_first_part_without_all_of_the_headers_is_told() {
    for (spec, header) in [(Spec::v4(false), 8), (Spec::v4(true), 20), (Spec::v6(false), 8), (Spec::v6(true), 20)] {
        let whole = Spec { payload: vec![7; 100], ..spec }.frame();
        for len in 1..=header {
            // Lengths that no sender makes, but which tell where the limit is.
            let bytes = part_of(&whole, 0, len, 9);
            let read = first_part(&bytes, &fragment(&bytes)).map(|t| t.is_some());
            assert_eq!(read, if len < header { Err(ParseError::Truncated) } else { Ok(true) }, "{len} of {header}");
        }
    }
    // RFC 7112: a chain of headers that goes on in the next part.
    let whole = Spec { payload: vec![7; 100], ..Spec::v6(false) }.frame();
    let mut bytes = part_of(&whole, 0, 48, 9);
    bytes[54] = 60;
    bytes[62..64].copy_from_slice(&[17, 6]);
    assert_eq!(first_part(&bytes, &fragment(&bytes)), Err(ParseError::Truncated));
    for nested in [0, 43, 44, 51] {
        bytes[54] = nested;
        assert_eq!(first_part(&bytes, &fragment(&bytes)), Err(ParseError::ExtensionHeaders));
    }
    bytes[54] = 58;
    assert_eq!(first_part(&bytes, &fragment(&bytes)), Ok(None), "another protocol");
}

#[test]
fn a_udp_header_behind_options_in_the_first_part_is_found() {
    let whole = Spec { payload: vec![7; 100], ..Spec::v6(false) }.frame();
    let t = frames::transport(&whole);
    let mut bytes = part_of(&whole, 0, 48, 9);
    bytes[54] = 60;
    bytes.splice(62..62, [17, 0, 1, 4, 0, 0, 0, 0]);
    let len = bytes.len() - 54;
    bytes[18..20].copy_from_slice(&(len as u16).to_be_bytes());
    let read = first_part(&bytes, &fragment(&bytes)).unwrap().unwrap();
    assert_eq!((read.ports, read.l4), (t.ports, 70));
}

#[test]
fn what_no_sender_makes_is_not_sound() {
    let base = fragment(&part_of(&Spec { payload: vec![7; 100], ..Spec::v4(false) }.frame(), 48, 16, 9));
    assert!(base.is_sound() && base.more);
    let with = |len: u16, offset, more| Fragment { ip: Ip { end: base.ip.l4 + len, ..base.ip }, offset, more, ..base };
    assert!(!with(0, 48, true).is_sound() && !with(0, 48, false).is_sound());
    assert!(!with(15, 48, true).is_sound() && with(15, 48, false).is_sound());
    assert!(with(8, 65_504, true).is_sound() && with(11, 65_504, false).is_sound());
    assert!(!with(12, 65_504, false).is_sound(), "past the longest datagram");
    assert!(!with(8, 65_528, false).is_sound());
    let tcp = Fragment { ip: Ip { protocol: Protocol::TCP, ..base.ip }, offset: 8, ..base };
    assert!(tcp.is_within_tcp_header() && !Fragment { offset: 16, ..tcp }.is_within_tcp_header());
    assert!(!Fragment { offset: 8, ..base }.is_within_tcp_header(), "UDP's header is one unit");
}

#[test]
fn only_options_with_the_copied_flag_are_in_later_pieces() {
    let mut out = [0; MAX_OPTIONS];
    // Record route (not copied), a router alert (copied), a strict source route (copied), no operation.
    let options = [7, 7, 4, 1, 2, 3, 4, 148, 4, 0, 0, 137, 7, 4, 9, 8, 7, 6, 1, 0];
    assert_eq!(copied_options(&options, &mut out), 12);
    assert_eq!(out[..12], [148, 4, 0, 0, 137, 7, 4, 9, 8, 7, 6, 0]);
    for nonsense in [&[148][..], &[148, 1, 0, 0], &[148, 9, 0, 0], &[0, 148, 4, 0]] {
        assert_eq!(copied_options(nonsense, &mut [0; MAX_OPTIONS]), 0, "{nonsense:?}");
    }
}

#[test]
fn what_must_not_or_cannot_be_cut_is_not() {
    let spec = |v6: bool| Spec { payload: vec![7; 1000], ..if v6 { Spec::v6(false) } else { Spec::v4(false) } };
    let whole = spec(false).frame();
    let mut cuttable = whole.clone();
    cuttable[20] &= !0x40;
    let ip = frames::transport(&whole).ip();
    assert_eq!(Cutting::plan(&whole, &ip, 576), None, "DF");
    assert!(Cutting::plan(&cuttable, &ip, 576).is_some());
    assert_eq!(Cutting::plan(&cuttable, &ip, ip.end - ip.l3), None, "it fits");
    assert_eq!((Cutting::plan(&cuttable, &ip, 27), Cutting::plan(&cuttable, &ip, 19)), (None, None), "no room");
    let six = spec(true).frame();
    assert_eq!(Cutting::plan(&six, &frames::transport(&six).ip(), 576), None);
}

proptest! {
    #[test]
    fn pieces_fit_and_are_the_packet_again(
        payload in prop::collection::vec(any::<u8>(), 40..1400), mtu in 68u16..600, options in 0usize..4,
        offset in 0u16..100, more: bool, id: u16,
    ) {
        // A router alert in every piece, a record route in the first alone.
        let listed = [148, 4, 0, 0, 7, 4, 4, 0, 1, 1, 1, 0];
        let mut header = Ipv4Header::new(0, 64, IpNumber(253), [192, 0, 2, 1], [192, 0, 2, 2]).unwrap();
        let payload = if more { &payload[..payload.len() / 8 * 8] } else { &payload[..] };
        header.options = listed[..options * 4].try_into().unwrap();
        header.set_payload_len(payload.len()).unwrap();
        (header.dont_fragment, header.identification) = (false, id);
        (header.fragment_offset, header.more_fragments) = (IpFragOffset::try_new(offset).unwrap(), more);
        header.header_checksum = header.calc_header_checksum();
        let mut frame = [&[2; 12][..], &[8, 0], &header.to_bytes(), payload].concat();
        let ip = match parse(&frame).unwrap() {
            Packet::Fragment(part) => part.ip,
            Packet::OtherProtocol(ip) => ip,
            other => panic!("{other:?}"),
        };
        let Some(cutting) = Cutting::plan(&frame, &ip, mtu) else {
            prop_assert!(ip.end - ip.l3 <= mtu);
            return Ok(());
        };
        let mut pieces = vec![Vec::new()];
        for number in 1..cutting.pieces() {
            let mut room = vec![0xee; cutting.longest_frame()];
            let len = cutting.copy(&frame, number, &mut room);
            room.truncate(len);
            pieces.push(room);
        }
        let len = cutting.keep_first(&mut frame);
        frame.truncate(len);
        pieces[0] = frame;
        let mut joined: Vec<u8> = Vec::new();
        for (number, piece) in pieces.iter().enumerate() {
            prop_assert!(piece.len() <= usize::from(mtu) + 14);
            let read = Ipv4Header::from_slice(&piece[14..]).unwrap().0;
            prop_assert_eq!(read.calc_header_checksum(), read.header_checksum);
            prop_assert_eq!(usize::from(read.total_len) + 14, piece.len());
            prop_assert_eq!(read.fragment_offset.value(), offset + (joined.len() / 8) as u16);
            prop_assert_eq!(read.more_fragments, more || number + 1 < pieces.len());
            prop_assert_eq!((read.identification, read.dont_fragment), (id, false));
            prop_assert_eq!(read.options.len(), if number == 0 { options * 4 } else { usize::from(options > 0) * 4 });
            joined.extend(&piece[14 + read.header_len()..]);
        }
        prop_assert_eq!(joined, payload);
    }

    #[test]
    fn the_parts_of_a_datagram_rewritten_are_the_rewritten_datagrams(
        spec in frames::any_spec(), len in 3usize..10, ports: [u16; 2], id: u32,
    ) {
        let spec = Spec { payload: vec![9; 200], ..spec };
        let whole = spec.frame();
        let t = frames::transport(&whole);
        let new: (Addr, Addr, Port, Port) = (t.dst, t.src, Port::new(ports[0]), Port::new(ports[1]));
        let r = Rewrite::new((t.src, t.dst, t.sport(), t.dport()), new);
        let total = whole.len() - usize::from(t.l4);
        let mut parts = Vec::new();
        for offset in (0..total).step_by(len * 8) {
            let mut bytes = part_of(&whole, offset, (len * 8).min(total - offset), 1);
            let part = fragment(&bytes);
            if offset == 0 {
                let first = first_part(&bytes, &part).unwrap().unwrap();
                crate::rewrite(&mut bytes, &first, &r, crate::ChecksumMode::Virtual);
            } else {
                rewrite_part(&mut bytes, &part, &r);
            }
            set_part_id(&mut bytes, &part, id);
            let after = fragment(&bytes);
            prop_assert_eq!(after.id, if part.ip.ipv6 { id } else { id & 0xffff });
            prop_assert_eq!((after.offset, after.more, after.ip.src, after.ip.ttl), (part.offset, part.more, new.0, part.ip.ttl - 1));
            parts.push(bytes);
        }
        if !t.ipv6 && !t.is_tcp() {
            let mut joined = together(&parts);
            // Whole again: neither flags nor offset, and its own length.
            let mut header = Ipv4Header::from_slice(&joined[14..]).unwrap().0;
            header.more_fragments = false;
            header.set_payload_len(joined.len() - 34).unwrap();
            header.header_checksum = header.calc_header_checksum();
            joined[14..34].copy_from_slice(&header.to_bytes());
            frames::assert_checksums(&joined);
        }
    }
}
