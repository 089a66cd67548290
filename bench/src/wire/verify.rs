//! A look at what comes out, before anything is counted: that each contender does what it is there for.

use std::time::Duration;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use millrace_tests::lab::Host;
use millrace_tests::wait::eventually;
use xsk::PacketSocket;

use super::lanes::{BACKEND_MAC, BACKEND_PORT, Contender, Lane, backends};
use super::{VIP, VIP_PORT};

/// Packets that are looked at.
const PACKETS: usize = 32;
const DEADLINE: Duration = Duration::from_secs(5);

/// Looks at packets that a lane delivers.
pub struct Eye {
    socket: PacketSocket,
    contender: Contender,
}

impl Eye {
    /// Opens it at a lane's end.
    pub fn open(sink: &Host, lane: &Lane) -> Self {
        const IPV4: u16 = 0x0800;
        let interface = lane.counted.clone();
        let socket = sink.within(move || PacketSocket::open(&interface, IPV4)).join().expect("a thread");
        Self { socket: socket.expect("a packet socket"), contender: lane.contender }
    }

    /// Reads packets that have come.
    ///
    /// # Panics
    /// If there are none, or one is not as this contender sends them.
    pub fn judge(&self) {
        let mut buffer = [0; 2048];
        let mut seen = 0;
        eventually("packets arrive", DEADLINE, || {
            while seen < PACKETS
                && let Some(len) = self.socket.recv(&mut buffer).expect("a packet socket")
            {
                self.judge_one(&buffer[..len]);
                seen += 1;
            }
            if seen == PACKETS { Ok(()) } else { Err(format!("{}: {seen} of {PACKETS}", self.contender.name())) }
        });
    }

    fn judge_one(&self, frame: &[u8]) {
        let name = self.contender.name();
        assert_eq!(frame[..6], BACKEND_MAC.0, "{name}: link-layer destination");
        let packet = SlicedPacket::from_ethernet(frame).expect("a packet");
        let Some(NetSlice::Ipv4(ip)) = packet.net else { panic!("{name}: not IPv4") };
        let Some(TransportSlice::Udp(udp)) = packet.transport else { panic!("{name}: not UDP") };
        let header = ip.header().to_header();
        assert_eq!(header.calc_header_checksum(), header.header_checksum, "{name}: the IPv4 header's checksum");
        let sum = udp.to_header().calc_checksum_ipv4(&header, udp.payload()).expect("a short datagram");
        assert_eq!(sum, udp.checksum(), "{name}: the UDP checksum");
        let (from_client, to_vip) = (header.source[0] == 198, header.destination == VIP.octets());
        let to_backend = backends().any(|backend| backend.octets() == header.destination);
        match self.contender {
            Contender::Millrace | Contender::Nftables => {
                assert!(to_backend && !from_client, "{name}: NAT of both addresses: {header:?}");
                assert_eq!(udp.destination_port(), BACKEND_PORT, "{name}: the endpoint's port");
            }
            Contender::Bare | Contender::Kernel => {
                assert!(to_vip && from_client, "{name}: no NAT: {header:?}");
                assert_eq!(udp.destination_port(), VIP_PORT, "{name}: the Service's port");
            }
        }
    }
}
