//! ARP for IPv4 over Ethernet (RFC 826), and the frames that claim an address (RFC 5227).

use crate::addr::{Addr, MacAddr};
use crate::packet::ParseError;
use crate::{ethernet, field};

/// Octets of a whole frame, padding not counted.
pub const FRAME_LEN: usize = 42;

const BODY: usize = ethernet::HEADER_LEN;
/// Hardware type Ethernet, protocol type IPv4, lengths 6 and 4.
const PREFIX: [u8; 6] = [0, 1, 8, 0, 6, 4];
const OP: usize = BODY + 6;
const SENDER_MAC: usize = BODY + 8;
const SENDER_IP: usize = BODY + 14;
const TARGET_MAC: usize = BODY + 18;
const TARGET_IP: usize = BODY + 24;

/// What an ARP packet is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ArpOp {
    /// Who has the target address? Also the form of probes and announcements.
    Request,
    /// The sender has the sender address.
    Reply,
}

/// An ARP packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ArpPacket {
    /// Request or reply.
    pub op: ArpOp,
    /// The link-layer address that the sender says is its own.
    pub sender_mac: MacAddr,
    /// The sender's address; `0.0.0.0` in a probe.
    pub sender_ip: Addr,
    /// The target's link-layer address; all zero in a request.
    pub target_mac: MacAddr,
    /// The address asked for; equal to `sender_ip` in an announcement.
    pub target_ip: Addr,
}

impl ArpPacket {
    /// Whether this only asks if the address is free (RFC 5227 section 1.1: sender address all zero).
    #[must_use]
    pub fn is_probe(&self) -> bool {
        self.op == ArpOp::Request && self.sender_ip.v4_octets() == [0; 4]
    }
}

/// Reads the ARP packet behind the Ethernet header.
pub(crate) fn parse(frame: &[u8]) -> Result<ArpPacket, ParseError> {
    if frame.len() < FRAME_LEN {
        return Err(ParseError::Truncated);
    }
    if frame[BODY..BODY + 6] != PREFIX {
        return Err(ParseError::BadHeader);
    }
    let op = match field::u16_at(frame, OP) {
        1 => ArpOp::Request,
        2 => ArpOp::Reply,
        _ => return Err(ParseError::BadHeader),
    };
    Ok(ArpPacket {
        op,
        sender_mac: MacAddr(field::octets(frame, SENDER_MAC)),
        sender_ip: Addr::from_v4(field::octets(frame, SENDER_IP)),
        target_mac: MacAddr(field::octets(frame, TARGET_MAC)),
        target_ip: Addr::from_v4(field::octets(frame, TARGET_IP)),
    })
}

/// Writes a whole frame from `packet.sender_mac` to `dst`.
pub(crate) fn emit(frame: &mut [u8], dst: MacAddr, packet: &ArpPacket) {
    ethernet::emit(frame, packet.sender_mac, dst, ethernet::TYPE_ARP);
    field::put(frame, BODY, &PREFIX);
    field::put_u16(frame, OP, if packet.op == ArpOp::Request { 1 } else { 2 });
    field::put(frame, SENDER_MAC, &packet.sender_mac.0);
    field::put(frame, SENDER_IP, &packet.sender_ip.v4_octets());
    field::put(frame, TARGET_MAC, &packet.target_mac.0);
    field::put(frame, TARGET_IP, &packet.target_ip.v4_octets());
}

/// Writes a broadcast request of `mac` at `sender_ip` for `target_ip`.
pub fn request(frame: &mut [u8; FRAME_LEN], mac: MacAddr, sender_ip: Addr, target_ip: Addr) {
    let packet = ArpPacket { op: ArpOp::Request, sender_mac: mac, sender_ip, target_mac: MacAddr::UNKNOWN, target_ip };
    emit(frame, MacAddr::BROADCAST, &packet);
}

/// Writes an announcement, "gratuitous ARP": `mac` has `ip` (RFC 5227 section 2.3, in the request form).
pub fn announcement(frame: &mut [u8; FRAME_LEN], mac: MacAddr, ip: Addr) {
    request(frame, mac, ip, ip);
}

/// Writes a probe: does anybody have `ip`? (RFC 5227 section 2.1.1.)
pub fn probe(frame: &mut [u8; FRAME_LEN], mac: MacAddr, ip: Addr) {
    request(frame, mac, Addr::from_v4([0; 4]), ip);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::OUR_MAC;
    use crate::{Packet, parse};

    #[test]
    fn an_announcement_is_a_request_for_ones_own_address() {
        let mut frame = [0; FRAME_LEN];
        let ip = Addr::from_v4([10, 0, 0, 1]);
        announcement(&mut frame, OUR_MAC, ip);
        #[rustfmt::skip]
        let golden = [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 2, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1,
            2, 0, 0, 0, 0, 2, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 1,
        ];
        assert_eq!(frame, golden);
        let Ok(Packet::Arp(packet)) = parse(&frame) else { panic!() };
        assert!(packet.op == ArpOp::Request && packet.sender_ip == packet.target_ip && !packet.is_probe());
    }

    #[test]
    fn a_probe_names_no_sender_address() {
        let mut frame = [0; FRAME_LEN];
        probe(&mut frame, OUR_MAC, Addr::from_v4([10, 0, 0, 1]));
        let Ok(Packet::Arp(packet)) = parse(&frame) else { panic!() };
        assert!(packet.is_probe());
    }

    #[test]
    fn other_hardware_operations_and_short_packets_are_refused() {
        let mut frame = [0; FRAME_LEN];
        announcement(&mut frame, OUR_MAC, Addr::from_v4([10, 0, 0, 1]));
        for len in 0..FRAME_LEN {
            assert_eq!(crate::parse(&frame[..len]), Err(ParseError::Truncated));
        }
        for (at, value) in [(15, 6), (17, 1), (18, 8), (21, 9)] {
            let mut frame = frame;
            frame[at] = value;
            assert_eq!(crate::parse(&frame), Err(ParseError::BadHeader));
        }
    }
}
