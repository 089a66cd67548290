//! Whether a frame's checksums hold, told by etherparse and never by what is tested.

use etherparse::{IpNumber, NetSlice, SlicedPacket, TransportSlice};

/// Whether every checksum of the frame's IP packet is right; `None` where that cannot be told: no IP packet, a part of a
/// datagram, a transport of another kind, or headers that etherparse refuses.
#[must_use]
pub fn checksums_hold(frame: &[u8]) -> Option<bool> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let addresses = frame.get(4 * packet.vlan_ids().len()..)?;
    let (net, transport) = (packet.net?, packet.transport?);
    let (src, dst): (&[u8], &[u8]) = match &net {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            if header.to_header().calc_header_checksum() != header.header_checksum() {
                return Some(false);
            }
            (&addresses[26..30], &addresses[30..34])
        }
        NetSlice::Ipv6(_) => (&addresses[22..38], &addresses[38..54]),
        _ => return None,
    };
    let (protocol, message) = match &transport {
        TransportSlice::Tcp(tcp) => (IpNumber::TCP, tcp.slice()),
        // RFC 768: none was computed; RFC 8200 section 8.1 wants one.
        TransportSlice::Udp(udp) if udp.checksum() == 0 => return Some(matches!(net, NetSlice::Ipv4(_))),
        TransportSlice::Udp(udp) => (IpNumber::UDP, udp.slice()),
        TransportSlice::Icmpv4(icmp) => return Some(sum(&[icmp.slice()]) == 0xffff),
        TransportSlice::Icmpv6(icmp) => (IpNumber::IPV6_ICMP, icmp.slice()),
        TransportSlice::Igmp(_) => return None,
    };
    let pseudo = [0, 0, 0, protocol.0];
    let length = u32::try_from(message.len()).ok()?.to_be_bytes();
    Some(sum(&[src, dst, &pseudo, &length, message]) == 0xffff)
}

/// RFC 1071 in its plainest form; each part but the last has an even length.
fn sum(parts: &[&[u8]]) -> u32 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 = words.map(|word| u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}
