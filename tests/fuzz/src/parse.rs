//! Parsing any frame: offsets lie within it, the two parsers agree, and etherparse reads the same.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use std::net::IpAddr;
use wire::{Head, Packet, Plain, Transport};

/// Parses the frame that the input is.
///
/// # Panics
/// Where the answers contradict each other or the frame.
pub fn run(frame: &[u8]) {
    if frame.len() > 9216 {
        return;
    }
    let parsed = wire::parse(frame);
    let mut room = frame.to_vec();
    room.resize(frame.len().max(size_of::<Head>()), 0x45);
    let head: &Head = room.first_chunk().expect("it was made as long");
    if let Some(plain) = Plain::parse(head, frame.len()) {
        let Ok(Packet::Transport(t)) = &parsed else {
            panic!("plain for one, {parsed:?} for the other");
        };
        assert_eq!(plain.transport(head), *t);
    }
    match &parsed {
        Ok(Packet::Transport(t)) => as_etherparse_reads(frame, t),
        Ok(Packet::Fragment(fragment)) => {
            assert!(fragment.ip.l3 <= fragment.ip.l4 && fragment.ip.l4 <= fragment.ip.end);
            assert!(usize::from(fragment.ip.end) <= frame.len());
        }
        _ => {}
    }
}

fn as_etherparse_reads(frame: &[u8], t: &Transport) {
    assert!(t.l3 < t.l4 && t.l4 < t.end && usize::from(t.end) <= frame.len(), "{t:?}");
    // It refuses some headers that may be skipped, so only what it reads is compared.
    let Ok(packet) = SlicedPacket::from_ethernet(frame) else { return };
    let ends: (IpAddr, IpAddr) = match packet.net {
        Some(NetSlice::Ipv4(ip)) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        Some(NetSlice::Ipv6(ip)) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        other => panic!("{t:?} against {other:?}"),
    };
    let ports = match packet.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            assert!(t.is_tcp());
            assert_eq!((t.seq(frame), t.ack(frame)), (tcp.sequence_number(), tcp.acknowledgment_number()));
            assert_eq!(t.payload_len(frame), tcp.payload().len());
            (tcp.source_port(), tcp.destination_port())
        }
        Some(TransportSlice::Udp(udp)) => {
            assert!(!t.is_tcp());
            (udp.source_port(), udp.destination_port())
        }
        _ => return,
    };
    assert_eq!((t.sport().number(), t.dport().number()), ports);
    assert_eq!((IpAddr::from(t.src), IpAddr::from(t.dst)), ends);
}
