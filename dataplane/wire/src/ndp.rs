//! IPv6 neighbour discovery (RFC 4861): solicitations and advertisements, and the frames that claim an address.
//!
//! Messages that fail the validation of RFC 4861 section 7.1 never become a [`NeighborSolicitation`] or
//! [`NeighborAdvertisement`]: a hop limit of 255 proves that the sender is on the segment.

use crate::addr::{Addr, MacAddr, Protocol};
use crate::packet::{Ip, ParseError};
use crate::{ethernet, field, icmp, ipv6};

/// Octets of an advertisement's frame with its link-layer address option.
pub const ADVERTISEMENT_FRAME_LEN: usize = 86;
/// Octets of the frame of a solicitation that asks whether an address is free: it has no option.
pub const DAD_FRAME_LEN: usize = 78;

pub(crate) const SOLICITATION: u8 = 135;
pub(crate) const ADVERTISEMENT: u8 = 136;

/// Octets of either message before its options.
const FIXED_LEN: usize = 24;
const TARGET: usize = 8;
const HOP_LIMIT: u8 = 255;

const OPTION_SOURCE_LINK_LAYER: u8 = 1;
const OPTION_TARGET_LINK_LAYER: u8 = 2;

const FLAG_SOLICITED: u8 = 0x40;
const FLAG_OVERRIDE: u8 = 0x20;

/// `ff02::1`.
const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// Who has this address?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NeighborSolicitation {
    /// The address asked for.
    pub target: Addr,
    /// Who asks; `::` when only to learn whether the address is free (RFC 4862 section 5.4.2).
    pub src: Addr,
    /// Where it was sent to: the target itself or its solicited-node group.
    pub dst: Addr,
    /// The asker's link-layer address, where the message says it.
    pub src_ll: Option<MacAddr>,
    /// The link-layer hop that the frame came from.
    pub src_mac: MacAddr,
}

impl NeighborSolicitation {
    /// Whether this only asks if the address is free.
    #[must_use]
    pub fn is_probe(&self) -> bool {
        self.src == Addr::UNSPECIFIED
    }
}

/// Somebody has this address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NeighborAdvertisement {
    /// The address.
    pub target: Addr,
    /// Who says so.
    pub src: Addr,
    /// The target's link-layer address, where the message says it.
    pub target_ll: Option<MacAddr>,
    /// Whether this answers a solicitation.
    pub solicited: bool,
    /// Whether this shall replace what a cache holds.
    pub overrides: bool,
    /// The link-layer hop that the frame came from.
    pub src_mac: MacAddr,
}

/// The solicited-node group of an address (RFC 4291 section 2.7.1): `ff02::1:ff` and its last three octets.
#[must_use]
pub fn solicited_node(addr: Addr) -> Addr {
    let [.., a, b, c] = *addr.octets();
    Addr::from_v6([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

/// The Ethernet address of an IPv6 group (RFC 2464 section 7): `33:33` and its last four octets.
#[must_use]
pub fn group_mac(group: Addr) -> MacAddr {
    let [.., a, b, c, d] = *group.octets();
    MacAddr([0x33, 0x33, a, b, c, d])
}

/// The checks that RFC 4861 sections 7.1.1 and 7.1.2 have in common.
fn check<'a>(frame: &'a [u8], ip: &Ip) -> Result<&'a [u8], ParseError> {
    let message = &frame[usize::from(ip.l4)..usize::from(ip.end)];
    if message.len() < FIXED_LEN {
        return Err(ParseError::Truncated);
    }
    if ip.ttl != HOP_LIMIT || message[1] != 0 || is_multicast(field::octets(message, TARGET)) {
        return Err(ParseError::BadHeader);
    }
    if icmp::sum(message, ip.src, ip.dst).fold() != 0xffff {
        return Err(ParseError::BadChecksum);
    }
    Ok(message)
}

fn is_multicast(addr: [u8; 16]) -> bool {
    addr[0] == 0xff
}

/// Walks all options, none of which may have length zero, and returns the link-layer address of kind `wanted`.
fn link_layer_option(mut options: &[u8], wanted: u8) -> Result<Option<MacAddr>, ParseError> {
    let mut found = None;
    while !options.is_empty() {
        if options.len() < 2 {
            return Err(ParseError::Truncated);
        }
        let len = usize::from(options[1]) * 8;
        if len == 0 || len > options.len() {
            return Err(ParseError::BadHeader);
        }
        if options[0] == wanted && len == 8 && found.is_none() {
            found = Some(MacAddr(field::octets(options, 2)));
        }
        options = &options[len..];
    }
    Ok(found)
}

/// Validates a solicitation (RFC 4861 section 7.1.1).
pub(crate) fn parse_solicitation(frame: &[u8], ip: Ip) -> Result<NeighborSolicitation, ParseError> {
    let message = check(frame, &ip)?;
    let target = Addr::from_v6(field::octets(message, TARGET));
    let src_ll = link_layer_option(&message[FIXED_LEN..], OPTION_SOURCE_LINK_LAYER)?;
    if ip.src == Addr::UNSPECIFIED && (src_ll.is_some() || ip.dst != solicited_node(target)) {
        return Err(ParseError::BadHeader);
    }
    Ok(NeighborSolicitation { target, src: ip.src, dst: ip.dst, src_ll, src_mac: ip.src_mac })
}

/// Validates an advertisement (RFC 4861 section 7.1.2).
pub(crate) fn parse_advertisement(frame: &[u8], ip: Ip) -> Result<NeighborAdvertisement, ParseError> {
    let message = check(frame, &ip)?;
    let target = Addr::from_v6(field::octets(message, TARGET));
    let target_ll = link_layer_option(&message[FIXED_LEN..], OPTION_TARGET_LINK_LAYER)?;
    let flags = message[4];
    let solicited = flags & FLAG_SOLICITED != 0;
    if solicited && is_multicast(*ip.dst.octets()) {
        return Err(ParseError::BadHeader);
    }
    let overrides = flags & FLAG_OVERRIDE != 0;
    Ok(NeighborAdvertisement { target, src: ip.src, target_ll, solicited, overrides, src_mac: ip.src_mac })
}

/// Writes a whole frame: IPv6 header, the fixed message and one option where given. Returns its length.
fn emit(frame: &mut [u8], ends: Ends, kind: u8, flags: u8, target: Addr, option: Option<u8>) -> usize {
    let l4 = ethernet::HEADER_LEN + ipv6::HEADER_LEN;
    let len = FIXED_LEN + if option.is_some() { 8 } else { 0 };
    ethernet::emit(frame, ends.src_mac, ends.dst_mac, ethernet::TYPE_IPV6);
    ipv6::emit(&mut frame[ethernet::HEADER_LEN..], ends.src, ends.dst, Protocol::ICMPV6, HOP_LIMIT, len);
    let message = &mut frame[l4..l4 + len];
    field::put(message, 0, &[kind, 0, 0, 0, flags, 0, 0, 0]);
    field::put(message, TARGET, target.octets());
    if let Some(option) = option {
        field::put(message, FIXED_LEN, &[option, 1]);
        field::put(message, FIXED_LEN + 2, &ends.src_mac.0);
    }
    icmp::put_checksum(message, ends.src, ends.dst);
    l4 + len
}

/// Who sends a frame to whom.
struct Ends {
    src_mac: MacAddr,
    dst_mac: MacAddr,
    src: Addr,
    dst: Addr,
}

/// Writes the answer to a solicitation over its frame (RFC 4861 section 7.2.4): `our_mac` has its target.
///
/// An asker without an address gets it by way of all nodes, not marked as solicited. Returns the frame's length.
pub(crate) fn emit_answer(frame: &mut [u8], asked: &NeighborSolicitation, our_mac: MacAddr) -> usize {
    let src = asked.target;
    let (dst, dst_mac, flags) = if asked.is_probe() {
        let dst = Addr::from_v6(ALL_NODES);
        (dst, group_mac(dst), FLAG_OVERRIDE)
    } else {
        (asked.src, asked.src_ll.unwrap_or(asked.src_mac), FLAG_SOLICITED | FLAG_OVERRIDE)
    };
    let ends = Ends { src_mac: our_mac, dst_mac, src, dst };
    emit(frame, ends, ADVERTISEMENT, flags, asked.target, Some(OPTION_TARGET_LINK_LAYER))
}

/// Writes an unsolicited advertisement to all nodes: `mac` has `addr` (RFC 4861 section 7.2.6).
pub fn announcement(frame: &mut [u8; ADVERTISEMENT_FRAME_LEN], mac: MacAddr, addr: Addr) {
    let dst = Addr::from_v6(ALL_NODES);
    let ends = Ends { src_mac: mac, dst_mac: group_mac(dst), src: addr, dst };
    emit(frame, ends, ADVERTISEMENT, FLAG_OVERRIDE, addr, Some(OPTION_TARGET_LINK_LAYER));
}

/// Writes a solicitation from `::`: does anybody have `addr`? (RFC 4862 section 5.4.2.)
pub fn probe(frame: &mut [u8; DAD_FRAME_LEN], mac: MacAddr, addr: Addr) {
    let dst = solicited_node(addr);
    let ends = Ends { src_mac: mac, dst_mac: group_mac(dst), src: Addr::UNSPECIFIED, dst };
    emit(frame, ends, SOLICITATION, 0, addr, None);
}

/// Writes a solicitation of `mac` at `src` for the link-layer address of `target` (RFC 4861 section 7.2.2).
pub fn solicitation(frame: &mut [u8; ADVERTISEMENT_FRAME_LEN], mac: MacAddr, src: Addr, target: Addr) {
    let dst = solicited_node(target);
    let ends = Ends { src_mac: mac, dst_mac: group_mac(dst), src, dst };
    emit(frame, ends, SOLICITATION, 0, target, Some(OPTION_SOURCE_LINK_LAYER));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::{self, OUR_MAC};
    use crate::{Packet, parse};

    const OURS: Addr = Addr::from_v6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xab, 0xcd, 0xef]);

    fn rechecked(mut frame: Vec<u8>) -> Vec<u8> {
        let (src, dst) = (Addr::from_v6(field::octets(&frame, 22)), Addr::from_v6(field::octets(&frame, 38)));
        icmp::put_checksum(&mut frame[54..], src, dst);
        frame
    }

    #[test]
    fn an_announcement_goes_to_all_nodes_and_overrides() {
        let mut frame = [0; ADVERTISEMENT_FRAME_LEN];
        announcement(&mut frame, OUR_MAC, OURS);
        frames::assert_checksums(&frame);
        assert_eq!(frame[..6], [0x33, 0x33, 0, 0, 0, 1]);
        let Ok(Packet::NeighborAdvertisement(said)) = parse(&frame) else { panic!() };
        assert_eq!((said.target, said.target_ll, said.solicited, said.overrides), (OURS, Some(OUR_MAC), false, true));
    }

    #[test]
    fn a_probe_goes_from_nobody_to_the_solicited_node_group() {
        let mut frame = [0; DAD_FRAME_LEN];
        probe(&mut frame, OUR_MAC, OURS);
        frames::assert_checksums(&frame);
        assert_eq!(frame[..6], [0x33, 0x33, 0xff, 0xab, 0xcd, 0xef]);
        let Ok(Packet::NeighborSolicitation(asked)) = parse(&frame) else { panic!() };
        assert!(asked.is_probe() && asked.target == OURS && asked.dst == solicited_node(OURS));
    }

    #[test]
    fn messages_that_rfc_4861_bars_are_refused() {
        let mut frame = [0; ADVERTISEMENT_FRAME_LEN];
        solicitation(&mut frame, OUR_MAC, OURS, OURS);
        assert!(parse(&frame).is_ok());
        // Hop limit, code, group as target, option of no length, option that is too long.
        for (at, value) in [(21, 254), (55, 1), (62, 0xff), (79, 0), (79, 2)] {
            let mut bad = frame.to_vec();
            bad[at] = value;
            assert_eq!(parse(&rechecked(bad)), Err(ParseError::BadHeader), "octet {at}");
        }
        let mut nobody_with_option = frame.to_vec();
        nobody_with_option[22..38].fill(0);
        assert_eq!(parse(&rechecked(nobody_with_option)), Err(ParseError::BadHeader));
        let mut damaged = frame;
        damaged[85] ^= 1;
        assert_eq!(parse(&damaged), Err(ParseError::BadChecksum));
        for len in 0..frame.len() {
            assert_eq!(parse(&frame[..len]), Err(ParseError::Truncated));
        }
    }
}
