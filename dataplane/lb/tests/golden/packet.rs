//! Packets made and read by etherparse, which shares no code with what is tested.

use std::net::{IpAddr, SocketAddr};

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use wire::{MacAddr, TcpFlags};

/// A TCP segment or UDP datagram on Ethernet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segment {
    pub src_mac: MacAddr,
    pub dst_mac: MacAddr,
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub ttl: u8,
    /// `None` for UDP.
    pub tcp: Option<Tcp>,
    pub payload: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tcp {
    pub flags: TcpFlags,
    pub seq: u32,
    pub ack: u32,
}

pub const SYN: TcpFlags = TcpFlags::SYN;
pub const ACK: TcpFlags = TcpFlags::ACK;
pub const SYN_ACK: TcpFlags = SYN.union(ACK);
pub const FIN_ACK: TcpFlags = TcpFlags::FIN.union(ACK);
pub const RST: TcpFlags = TcpFlags::RST;
pub const RST_ACK: TcpFlags = RST.union(ACK);

impl Segment {
    /// The whole frame, all checksums computed.
    pub fn bytes(&self) -> Vec<u8> {
        self.bytes_with_options(&[])
    }

    /// The same with TCP options.
    pub fn bytes_with_options(&self, options: &[u8]) -> Vec<u8> {
        let link = PacketBuilder::ethernet2(self.src_mac.0, self.dst_mac.0);
        let ip = match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => link.ipv4(src.octets(), dst.octets(), self.ttl),
            (IpAddr::V6(src), IpAddr::V6(dst)) => link.ipv6(src.octets(), dst.octets(), self.ttl),
            _ => panic!("one family"),
        };
        let mut bytes = Vec::new();
        match self.tcp {
            Some(tcp) => {
                let step = ip.tcp(self.src.port(), self.dst.port(), tcp.seq, 4096);
                let mut step = step.options_raw(options).unwrap();
                if tcp.flags.contains(SYN) {
                    step = step.syn();
                }
                if tcp.flags.contains(ACK) {
                    step = step.ack(tcp.ack);
                }
                if tcp.flags.contains(TcpFlags::FIN) {
                    step = step.fin();
                }
                if tcp.flags.contains(RST) {
                    step = step.rst();
                }
                step.write(&mut bytes, &self.payload).unwrap();
            }
            None => ip.udp(self.src.port(), self.dst.port()).write(&mut bytes, &self.payload).unwrap(),
        }
        bytes
    }

    /// Reads a frame, and insists on every checksum.
    pub fn read(frame: &[u8]) -> Self {
        assert!(checksums_hold(frame), "a checksum is wrong");
        Self::read_unchecked(frame)
    }

    pub fn read_unchecked(frame: &[u8]) -> Self {
        let packet = SlicedPacket::from_ethernet(frame).unwrap();
        let link = packet.link.unwrap().to_header().unwrap();
        let link = link.ethernet2().unwrap();
        let (src, dst, ttl) = match packet.net.unwrap() {
            NetSlice::Ipv4(ip) => {
                let header = ip.header();
                (header.source_addr().into(), header.destination_addr().into(), header.ttl())
            }
            NetSlice::Ipv6(ip) => {
                let header = ip.header();
                (header.source_addr().into(), header.destination_addr().into(), header.hop_limit())
            }
            other => panic!("no IP packet: {other:?}"),
        };
        let ends: (IpAddr, IpAddr) = (src, dst);
        let (sport, dport, tcp, payload) = match packet.transport.unwrap() {
            TransportSlice::Tcp(tcp) => {
                let flags = TcpFlags(tcp.slice()[13]);
                let tcp_part = Tcp { flags, seq: tcp.sequence_number(), ack: tcp.acknowledgment_number() };
                (tcp.source_port(), tcp.destination_port(), Some(tcp_part), tcp.payload().to_vec())
            }
            TransportSlice::Udp(udp) => (udp.source_port(), udp.destination_port(), None, udp.payload().to_vec()),
            other => panic!("neither TCP nor UDP: {other:?}"),
        };
        Self {
            src_mac: MacAddr(link.source),
            dst_mac: MacAddr(link.destination),
            src: SocketAddr::new(ends.0, sport),
            dst: SocketAddr::new(ends.1, dport),
            ttl,
            tcp,
            payload,
        }
    }

    /// The answer's ends: addresses and MACs turned around, and all that was sent acknowledged.
    pub fn back(&self) -> Self {
        let (src_mac, dst_mac, src, dst) = (self.dst_mac, self.src_mac, self.dst, self.src);
        let tcp = self.tcp.map(|tcp| {
            let controls = u32::from(tcp.flags.contains(SYN)) + u32::from(tcp.flags.contains(TcpFlags::FIN));
            let ack = tcp.seq.wrapping_add(self.payload.len() as u32 + controls);
            Tcp { seq: tcp.ack, ack, ..tcp }
        });
        Self { src_mac, dst_mac, src, dst, ttl: 64, tcp, ..self.clone() }
    }

    pub fn with_flags(&self, flags: TcpFlags) -> Self {
        Self { tcp: self.tcp.map(|tcp| Tcp { flags, ..tcp }), ..self.clone() }
    }
}

/// Offset of the transport checksum in a frame that has no IP options or extension headers.
pub fn checksum_at(frame: &[u8]) -> usize {
    let (l4, protocol) = if frame[12] == 0x86 { (54, frame[20]) } else { (34, frame[23]) };
    l4 + match protocol {
        6 => 16,
        17 => 6,
        _ => 2,
    }
}

/// Whether the IPv4 header's and the transport's checksums are what etherparse computes.
pub fn checksums_hold(frame: &[u8]) -> bool {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let (net, transport) = (packet.net.unwrap(), packet.transport.unwrap());
    let header_holds = match &net {
        NetSlice::Ipv4(ip) => ip.header().to_header().calc_header_checksum() == ip.header().header_checksum(),
        _ => true,
    };
    header_holds && transport_checksum(&net, &transport)
}

fn transport_checksum(net: &NetSlice<'_>, transport: &TransportSlice<'_>) -> bool {
    match (net, transport) {
        (NetSlice::Ipv4(ip), TransportSlice::Tcp(tcp)) => {
            let (src, dst) = (ip.header().source(), ip.header().destination());
            tcp.to_header().calc_checksum_ipv4_raw(src, dst, tcp.payload()).unwrap() == tcp.checksum()
        }
        (NetSlice::Ipv4(ip), TransportSlice::Udp(udp)) => {
            let (src, dst) = (ip.header().source(), ip.header().destination());
            udp.to_header().calc_checksum_ipv4_raw(src, dst, udp.payload()).unwrap() == udp.checksum()
        }
        (NetSlice::Ipv6(ip), TransportSlice::Tcp(tcp)) => {
            let (src, dst) = (ip.header().source(), ip.header().destination());
            tcp.to_header().calc_checksum_ipv6_raw(src, dst, tcp.payload()).unwrap() == tcp.checksum()
        }
        (NetSlice::Ipv6(ip), TransportSlice::Udp(udp)) => {
            let (src, dst) = (ip.header().source(), ip.header().destination());
            udp.to_header().calc_checksum_ipv6_raw(src, dst, udp.payload()).unwrap() == udp.checksum()
        }
        (NetSlice::Ipv4(_), TransportSlice::Icmpv4(icmp)) => {
            icmp.icmp_type().calc_checksum(icmp.payload()) == icmp.checksum()
        }
        (NetSlice::Ipv6(ip), TransportSlice::Icmpv6(icmp)) => {
            let (src, dst) = (ip.header().source(), ip.header().destination());
            icmp.icmp_type().calc_checksum(src, dst, icmp.payload()).unwrap() == icmp.checksum()
        }
        (net, transport) => panic!("unexpected: {net:?} {transport:?}"),
    }
}
