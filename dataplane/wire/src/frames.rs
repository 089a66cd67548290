//! Frames for the tests, built by etherparse; and the oracle that checks frames with it.

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use crate::{Addr, MacAddr, Packet, Transport};

pub(crate) const CLIENT_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
pub(crate) const OUR_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

/// What a generated packet is made of.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) tcp: bool,
    pub(crate) src: Addr,
    pub(crate) dst: Addr,
    pub(crate) sport: u16,
    pub(crate) dport: u16,
    pub(crate) ttl: u8,
    pub(crate) flags: u8,
    pub(crate) payload: Vec<u8>,
}

impl Spec {
    pub(crate) fn v4(tcp: bool) -> Self {
        let (src, dst) = (Addr::from_v4([192, 0, 2, 1]), Addr::from_v4([198, 51, 100, 7]));
        Self { tcp, src, dst, sport: 40000, dport: 80, ttl: 64, flags: 0x02, payload: b"odd".to_vec() }
    }

    pub(crate) fn v6(tcp: bool) -> Self {
        let mut src = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        let client = Addr::from_v6(src);
        src[15] = 7;
        Self { src: client, dst: Addr::from_v6(src), ..Self::v4(tcp) }
    }

    /// The frame, checksums complete.
    pub(crate) fn frame(&self) -> Vec<u8> {
        let link = PacketBuilder::ethernet2(CLIENT_MAC.0, OUR_MAC.0);
        let ip = if self.src.is_v4() {
            link.ipv4(self.src.v4_octets(), self.dst.v4_octets(), self.ttl)
        } else {
            link.ipv6(*self.src.octets(), *self.dst.octets(), self.ttl)
        };
        let mut frame = Vec::new();
        if self.tcp {
            let mut header = etherparse::TcpHeader::new(self.sport, self.dport, 1000, 4096);
            header.acknowledgment_number = 7777;
            header.fin = self.flags & 1 != 0;
            header.syn = self.flags & 2 != 0;
            header.rst = self.flags & 4 != 0;
            header.ack = self.flags & 16 != 0;
            ip.tcp_header(header).write(&mut frame, &self.payload).unwrap();
        } else {
            ip.udp(self.sport, self.dport).write(&mut frame, &self.payload).unwrap();
        }
        frame
    }
}

pub(crate) fn any_addr(v6: bool) -> BoxedStrategy<Addr> {
    if v6 {
        any::<[u8; 15]>()
            .prop_map(|rest| {
                let mut octets = [0x20; 16];
                octets[1..].copy_from_slice(&rest);
                Addr::from_v6(octets)
            })
            .boxed()
    } else {
        any::<[u8; 4]>().prop_map(Addr::from_v4).boxed()
    }
}

pub(crate) fn any_spec() -> impl Strategy<Value = Spec> {
    any::<bool>().prop_flat_map(|v6| {
        let rest = (any::<bool>(), any::<u16>(), any::<u16>(), 2u8.., any::<u8>());
        (any_addr(v6), any_addr(v6), rest, proptest::collection::vec(any::<u8>(), 0..200)).prop_map(
            |(src, dst, (tcp, sport, dport, ttl, flags), payload)| Spec {
                tcp,
                src,
                dst,
                sport,
                dport,
                ttl,
                flags,
                payload,
            },
        )
    })
}

/// Parses a frame that is known to be TCP or UDP.
pub(crate) fn transport(frame: &[u8]) -> Transport {
    match crate::parse(frame) {
        Ok(Packet::Transport(t)) => t,
        other => panic!("not a transport packet: {other:?}"),
    }
}

/// Checks with etherparse that every checksum of the frame is right.
pub(crate) fn assert_checksums(frame: &[u8]) {
    let sliced = SlicedPacket::from_ethernet(frame).expect("etherparse reads the frame");
    match (sliced.net.unwrap(), sliced.transport.unwrap()) {
        (NetSlice::Ipv4(ip), transport) => {
            let header = ip.header();
            assert_eq!(header.to_header().calc_header_checksum(), header.header_checksum(), "IPv4 header checksum");
            let (src, dst) = (header.source(), header.destination());
            match transport {
                TransportSlice::Tcp(s) => {
                    let expected = s.calc_checksum_ipv4(src, dst).unwrap();
                    assert_eq!(expected, s.checksum(), "TCP checksum");
                }
                TransportSlice::Udp(s) => {
                    let expected = s.to_header().calc_checksum_ipv4_raw(src, dst, s.payload()).unwrap();
                    assert!(s.checksum() == 0 || expected == s.checksum(), "UDP checksum");
                }
                TransportSlice::Icmpv4(s) => assert_eq!(crate::checksum::sum(s.slice()).fold(), 0xffff),
                other => panic!("{other:?}"),
            }
        }
        (NetSlice::Ipv6(ip), transport) => {
            let (src, dst) = (ip.header().source(), ip.header().destination());
            match transport {
                TransportSlice::Tcp(s) => {
                    let expected = s.calc_checksum_ipv6(src, dst).unwrap();
                    assert_eq!(expected, s.checksum(), "TCP checksum");
                }
                TransportSlice::Udp(s) => {
                    let expected = s.to_header().calc_checksum_ipv6_raw(src, dst, s.payload()).unwrap();
                    assert_eq!(expected, s.checksum(), "UDP checksum");
                }
                TransportSlice::Icmpv6(s) => assert!(s.is_checksum_valid(src, dst), "ICMPv6 checksum"),
                other => panic!("{other:?}"),
            }
        }
        other => panic!("{other:?}"),
    }
}

/// Whether two frames differ in nothing but TTL or hop limit (and the IPv4 header checksum that covers it).
pub(crate) fn same_but_ttl(a: &[u8], b: &[u8]) -> bool {
    let blank = |frame: &[u8]| {
        let mut frame = frame.to_vec();
        if frame[12] == 8 {
            frame[22] = 0;
            frame[24..26].fill(0);
        } else {
            frame[21] = 0;
        }
        frame
    };
    blank(a) == blank(b)
}

/// An SCTP packet as RFC 9260 has it, its CRC computed bit by bit.
pub(crate) fn sctp_packet(sport: u16, dport: u16, tag: u32, chunks: &[u8]) -> Vec<u8> {
    let mut packet = [&sport.to_be_bytes()[..], &dport.to_be_bytes(), &tag.to_be_bytes(), &[0; 4], chunks].concat();
    let crc = crc32c_slowly(&packet);
    packet[8..12].copy_from_slice(&crc.to_le_bytes());
    packet
}

/// Appendix A of RFC 9260, bit by bit, each octet's lowest one first.
pub(crate) fn crc32c_slowly(bytes: &[u8]) -> u32 {
    let bit = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, octet| (0..8).fold(crc ^ u32::from(*octet), bit))
}

/// Whether the CRC at the end of an SCTP frame's common header is right; `l4` is where that begins.
pub(crate) fn crc_holds(frame: &[u8], l4: usize) -> bool {
    let mut packet = frame[l4..].to_vec();
    let stated = packet[8..12].to_vec();
    packet[8..12].fill(0);
    crc32c_slowly(&packet).to_le_bytes() == stated[..]
}

/// The same in a frame.
pub(crate) fn sctp_frame(v6: bool, sport: u16, dport: u16, tag: u32, chunks: &[u8]) -> Vec<u8> {
    let spec = if v6 { Spec::v6(false) } else { Spec::v4(false) };
    let link = PacketBuilder::ethernet2(CLIENT_MAC.0, OUR_MAC.0);
    let (packet, mut frame) = (sctp_packet(sport, dport, tag, chunks), Vec::new());
    let number = etherparse::IpNumber::SCTP;
    match v6 {
        true => link.ipv6(*spec.src.octets(), *spec.dst.octets(), 64).write(&mut frame, number, &packet),
        false => link.ipv4(spec.src.v4_octets(), spec.dst.v4_octets(), 64).write(&mut frame, number, &packet),
    }
    .unwrap();
    frame
}
