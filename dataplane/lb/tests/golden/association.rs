//! SCTP packets made and read octet by octet, their CRC computed bit by bit (RFC 9260 appendix A).

use std::net::{IpAddr, SocketAddr};

use etherparse::{IpNumber, NetSlice, PacketBuilder, SlicedPacket};
use wire::MacAddr;

use crate::packet::Segment;
use crate::rig::{Kind, Rig, service_port};

pub const SCTP4: Kind = Kind { ipv6: false, protocol: wire::Protocol::SCTP };
pub const SCTP6: Kind = Kind { ipv6: true, protocol: wire::Protocol::SCTP };
pub const SCTPS: [Kind; 2] = [SCTP4, SCTP6];

/// Tags of packets to the client, and of those to the endpoint.
pub const CLIENTS: u32 = 0x1111_2222;
pub const ENDPOINTS: u32 = 0x3333_4444;

/// An SCTP packet on Ethernet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Association {
    pub src_mac: MacAddr,
    pub dst_mac: MacAddr,
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub ttl: u8,
    pub tag: u32,
    pub chunks: Vec<u8>,
}

/// A chunk, padded.
pub fn chunk(kind: u8, flags: u8, value: &[u8]) -> Vec<u8> {
    let len = (value.len() + 4) as u16;
    let mut chunk = [&[kind, flags][..], &len.to_be_bytes(), value].concat();
    chunk.resize(chunk.len().next_multiple_of(4), 0);
    chunk
}

/// INIT (1) or INIT ACK (2), with a parameter.
fn initiation(kind: u8, tag: u32) -> Vec<u8> {
    chunk(kind, 0, &[&tag.to_be_bytes()[..], &[0, 1, 0, 0, 0, 10, 0, 10, 0, 0, 0, 1], &[0xc0, 0, 0, 4]].concat())
}

pub fn init() -> Vec<u8> {
    initiation(1, CLIENTS)
}

pub fn init_ack() -> Vec<u8> {
    initiation(2, ENDPOINTS)
}

pub fn cookie_echo() -> Vec<u8> {
    [chunk(10, 0, b"a cookie"), data(9)].concat()
}

pub fn cookie_ack() -> Vec<u8> {
    chunk(11, 0, &[])
}

/// DATA with so many octets.
pub fn data(len: usize) -> Vec<u8> {
    let value: Vec<u8> = (0..12 + len).map(|n| (n % 251) as u8).collect();
    chunk(0, 3, &value)
}

pub const HEARTBEAT: u8 = 4;
pub const ABORT: u8 = 6;
pub const SHUTDOWN: u8 = 7;
pub const SHUTDOWN_ACK: u8 = 8;
pub const SHUTDOWN_COMPLETE: u8 = 14;

fn crc32c(bytes: &[u8]) -> u32 {
    let bit = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, octet| (0..8).fold(crc ^ u32::from(*octet), bit))
}

/// Where the common header of a frame begins.
pub fn l4(frame: &[u8]) -> usize {
    if frame[12] == 0x86 { 54 } else { 34 }
}

/// The CRC that a frame has, and the one that it should have.
pub fn crcs(frame: &[u8]) -> (u32, u32) {
    let mut packet = frame[l4(frame)..].to_vec();
    let stated = u32::from_le_bytes(packet[8..12].try_into().unwrap());
    packet[8..12].fill(0);
    (stated, crc32c(&packet))
}

impl Association {
    /// The client's INIT to the Service.
    pub fn opening(kind: Kind, port: u16) -> Self {
        let Segment { src_mac, dst_mac, src, dst, ttl, .. } = kind.opening(port);
        Self { src_mac, dst_mac, src, dst, ttl, tag: 0, chunks: init() }
    }

    /// The whole frame.
    pub fn bytes(&self) -> Vec<u8> {
        let (sport, dport) = (self.src.port().to_be_bytes(), self.dst.port().to_be_bytes());
        let mut packet = [&sport[..], &dport, &self.tag.to_be_bytes(), &[0; 4], &self.chunks].concat();
        let crc = crc32c(&packet);
        packet[8..12].copy_from_slice(&crc.to_le_bytes());
        let link = PacketBuilder::ethernet2(self.src_mac.0, self.dst_mac.0);
        let mut bytes = Vec::new();
        match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                link.ipv4(src.octets(), dst.octets(), self.ttl).write(&mut bytes, IpNumber::SCTP, &packet)
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                link.ipv6(src.octets(), dst.octets(), self.ttl).write(&mut bytes, IpNumber::SCTP, &packet)
            }
            _ => panic!("one family"),
        }
        .unwrap();
        bytes
    }

    /// Reads a frame, and insists on its checksums.
    pub fn read(frame: &[u8]) -> Self {
        let (stated, right) = crcs(frame);
        assert_eq!(stated, right, "the CRC is wrong");
        Self::read_unchecked(frame)
    }

    pub fn read_unchecked(frame: &[u8]) -> Self {
        let packet = SlicedPacket::from_ethernet(frame).unwrap();
        let link = packet.link.unwrap().to_header().unwrap().ethernet2().unwrap();
        let (src, dst, ttl, payload): (IpAddr, IpAddr, _, _) = match packet.net.unwrap() {
            NetSlice::Ipv4(ip) => {
                let header = ip.header();
                assert_eq!(header.to_header().calc_header_checksum(), header.header_checksum());
                (header.source_addr().into(), header.destination_addr().into(), header.ttl(), ip.payload().clone())
            }
            NetSlice::Ipv6(ip) => {
                let header = ip.header();
                (
                    header.source_addr().into(),
                    header.destination_addr().into(),
                    header.hop_limit(),
                    ip.payload().clone(),
                )
            }
            other => panic!("no IP packet: {other:?}"),
        };
        assert_eq!(payload.ip_number, IpNumber::SCTP);
        let port = |at: usize| u16::from_be_bytes([payload.payload[at], payload.payload[at + 1]]);
        Self {
            src_mac: MacAddr(link.source),
            dst_mac: MacAddr(link.destination),
            src: SocketAddr::new(src, port(0)),
            dst: SocketAddr::new(dst, port(2)),
            ttl,
            tag: u32::from_be_bytes(payload.payload[4..8].try_into().unwrap()),
            chunks: payload.payload[12..].to_vec(),
        }
    }

    /// The same way with other chunks and their direction's tag.
    pub fn with(&self, tag: u32, chunks: Vec<u8>) -> Self {
        Self { tag, chunks, ..self.clone() }
    }

    /// The other way.
    pub fn back(&self, tag: u32, chunks: Vec<u8>) -> Self {
        let (src_mac, dst_mac, src, dst) = (self.dst_mac, self.src_mac, self.dst, self.src);
        Self { src_mac, dst_mac, src, dst, ttl: 64, tag, chunks }
    }
}

/// A gateway that serves SCTP too, on the same port.
pub fn with_sctp(workers: usize) -> Rig {
    let mut rig = Rig::with(workers, 1024);
    rig.desired.service_ports.extend(SCTPS.map(|kind| service_port(kind, "web", &[1, 2, 3]).into()));
    rig.rebuild();
    rig
}
