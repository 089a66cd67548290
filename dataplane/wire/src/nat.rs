//! Network address and port translation in place: addresses, ports, TTL and checksums of one frame.
//!
//! A [`Rewrite`] is computed once, when the flow opens; applying it costs the same for any length of packet.
//! Incremental updates carry a damaged packet's wrong checksum through, so the receiver still sees the damage.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::{Addr, MacAddr, Port, Ports, Protocol};
use crate::checksum::{self, Delta};
use crate::packet::{Ip, Transport};
use crate::{ethernet, field, ipv4, ipv6, sctp};

/// What a direction of a flow becomes, and what that does to checksums.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Rewrite {
    /// New source address.
    pub src: Addr,
    /// New destination address.
    pub dst: Addr,
    /// New source and destination port.
    pub ports: Ports,
    /// Change of the IPv4 header checksum: addresses.
    pub ip_delta: Delta,
    /// Change of the transport checksum: addresses and ports.
    pub l4_delta: Delta,
}

/// Source address, destination address, source port, destination port.
pub type Tuple = (Addr, Addr, Port, Port);

impl Rewrite {
    /// From what the packets of a direction have to what they shall have. All addresses are of one family.
    #[must_use]
    #[inline(always)] // Addresses come in registers: stored in words and read as a whole they wait for the store buffer.
    pub fn new(old: Tuple, new: Tuple) -> Self {
        let ip_delta = if new.1.is_v4() {
            let both = |(src, dst, ..): &Tuple| [src.last_word(), dst.last_word()];
            Delta::between_words(both(&old), both(&new))
        } else {
            between(old.0, new.0).and(between(old.1, new.1))
        };
        let both = |(_, _, sport, dport): &Tuple| [Ports::new(*sport, *dport).word(), 0];
        let ports = Delta::between_words(both(&old), both(&new));
        Self { src: new.0, dst: new.1, ports: Ports::new(new.2, new.3), ip_delta, l4_delta: ip_delta.and(ports) }
    }
}

#[inline(never)]
fn between(old: Addr, new: Addr) -> Delta {
    Delta::between(old.octets(), new.octets())
}

impl Rewrite {
    /// Of a direction whose packets keep these addresses and ports: TTL alone changes.
    #[must_use]
    pub const fn nothing(src: Addr, dst: Addr, ports: Ports) -> Self {
        Self { src, dst, ports, ip_delta: Delta::NONE, l4_delta: Delta::NONE }
    }
}

/// How a transport checksum is carried over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChecksumMode {
    /// By its difference alone: the sender's checksum is complete.
    Incremental,
    /// Frames of a virtual device: a partial checksum is recognised and completed, others change by difference.
    Virtual,
}

/// Rewrites the packet in place: addresses, ports, TTL or hop limit less one, header and transport checksums.
///
/// Of SCTP the ports of a part must stay. A TTL of zero stays; packets whose TTL ends here (≤ 1) are for [`crate::reply::time_exceeded`].
///
/// # Panics
/// When `frame` is not the frame that was parsed to `t`.
#[inline]
pub fn rewrite(frame: &mut [u8], t: &Transport, r: &Rewrite, mode: ChecksumMode) {
    let (l3, l4, at) = (usize::from(t.l3), usize::from(t.l4), t.checksum_at());
    let is_sctp = t.is_sctp();
    // Asked of the old addresses: after the rewrite the old pseudo-header is gone. Who cuts a datagram completes its
    // checksum first.
    let partial = mode == ChecksumMode::Virtual && !t.part && !is_sctp && checksum::is_partial(frame, t);
    if t.ipv6 {
        ipv6::rewrite(&mut frame[l3..], r.src, r.dst);
    } else {
        ipv4::rewrite(&mut frame[l3..], r.src, r.dst, r.ip_delta);
    }
    if is_sctp {
        // Its CRC does not cover addresses.
        return sctp::rewrite(frame, t, r.ports, mode);
    }
    field::put(frame, l4, &r.ports.octets());

    let udp = t.protocol == Protocol::UDP;
    let old = field::u16_at(frame, at);
    if udp && old == 0 {
        return;
    }
    let new = if partial { checksum::transport_checksum(frame, t) } else { r.l4_delta.apply(old) };
    field::put_u16(frame, at, if udp && new == 0 { 0xffff } else { new });
}

/// One hop on: TTL or hop limit less one and the header's checksum, all else as it is.
///
/// # Panics
/// When `frame` is not the frame that was parsed to `ip`.
pub fn forward(frame: &mut [u8], ip: &Ip) {
    let header = &mut frame[usize::from(ip.l3)..];
    if ip.ipv6 {
        ipv6::rewrite(header, ip.src, ip.dst);
    } else {
        ipv4::rewrite(header, ip.src, ip.dst, Delta::NONE);
    }
}

/// Writes the link-layer addresses.
///
/// # Panics
/// When the frame is shorter than an Ethernet header.
#[inline]
pub fn set_ethernet(frame: &mut [u8], src: MacAddr, dst: MacAddr) {
    field::put(frame, ethernet::DESTINATION, &dst.0);
    field::put(frame, ethernet::SOURCE, &src.0);
}

/// Writes the link-layer address that a frame comes from.
///
/// # Panics
/// When the frame is shorter than an Ethernet header.
pub fn set_source(frame: &mut [u8], src: MacAddr) {
    field::put(frame, ethernet::SOURCE, &src.0);
}

/// Which machine on the link a frame is for.
///
/// # Panics
/// When the frame is shorter than an Ethernet header.
#[must_use]
#[inline]
pub fn destination(frame: &[u8]) -> MacAddr {
    MacAddr(field::octets(frame, ethernet::DESTINATION))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frames::{self, Spec};

    fn new_tuple(v6: bool) -> BoxedStrategy<Tuple> {
        let port = || any::<u16>().prop_map(Port::new);
        (frames::any_addr(v6), frames::any_addr(v6), port(), port()).boxed()
    }

    fn spec_and_tuple() -> impl Strategy<Value = (Spec, Tuple)> {
        frames::any_spec().prop_flat_map(|spec| {
            let v6 = !spec.src.is_v4();
            (Just(spec), new_tuple(v6))
        })
    }

    fn tuple_of(t: &Transport) -> Tuple {
        (t.src, t.dst, t.sport(), t.dport())
    }

    fn make_partial(frame: &mut [u8], t: &Transport) {
        let len = t.l4_bytes(frame).len() as u32;
        let sum = checksum::pseudo_header(t.ipv6, t.src, t.dst, t.protocol, len).fold();
        field::put_u16(frame, t.checksum_at(), sum);
    }

    #[test]
    fn golden_udp_over_ipv4() {
        // 192.0.2.1:40000 → 198.51.100.7:80 becomes 203.0.113.9:1024 → 10.0.0.5:8080.
        let mut frame = Spec { payload: b"hi!".to_vec(), ..Spec::v4(false) }.frame();
        let t = frames::transport(&frame);
        let new = (Addr::from_v4([203, 0, 113, 9]), Addr::from_v4([10, 0, 0, 5]), Port::new(1024), Port::new(8080));
        rewrite(&mut frame, &t, &Rewrite::new(tuple_of(&t), new), ChecksumMode::Incremental);
        #[rustfmt::skip]
        let golden = [
            0x45, 0x00, 0x00, 0x1f, 0x00, 0x00, 0x40, 0x00, 0x3f, 0x11, 0xf5, 0xbf,
            0xcb, 0x00, 0x71, 0x09, 0x0a, 0x00, 0x00, 0x05,
            0x04, 0x00, 0x1f, 0x90, 0x00, 0x0b, 0x0c, 0xd0, 0x68, 0x69, 0x21,
        ];
        assert_eq!(frame[14..], golden);
    }

    #[test]
    fn a_udp_datagram_without_checksum_stays_without() {
        let mut frame = Spec::v4(false).frame();
        let t = frames::transport(&frame);
        field::put_u16(&mut frame, t.checksum_at(), 0);
        let r = Rewrite::new(tuple_of(&t), (t.dst, t.src, Port::new(1), Port::new(2)));
        for mode in [ChecksumMode::Incremental, ChecksumMode::Virtual] {
            let mut frame = frame.clone();
            rewrite(&mut frame, &t, &r, mode);
            assert_eq!(field::u16_at(&frame, t.checksum_at()), 0);
        }
    }

    #[test]
    fn a_udp_checksum_that_becomes_zero_is_sent_as_ffff() {
        for base in [Spec::v4(false), Spec::v6(false)] {
            let frame = base.frame();
            let t = frames::transport(&frame);
            let mut seen = false;
            for port in 0..=u16::MAX {
                let mut frame = frame.clone();
                let new = (t.src, t.dst, Port::new(port), t.dport());
                rewrite(&mut frame, &t, &Rewrite::new(tuple_of(&t), new), ChecksumMode::Incremental);
                let checksum = field::u16_at(&frame, t.checksum_at());
                assert_ne!(checksum, 0);
                if checksum == 0xffff {
                    seen = true;
                    frames::assert_checksums(&frame);
                }
            }
            assert!(seen);
        }
    }

    #[test]
    fn damage_is_carried_through() {
        let mut frame = Spec::v4(true).frame();
        *frame.last_mut().unwrap() ^= 1;
        let t = frames::transport(&frame);
        let new = (t.dst, t.src, Port::new(1), Port::new(2));
        rewrite(&mut frame, &t, &Rewrite::new(tuple_of(&t), new), ChecksumMode::Virtual);
        assert_ne!(field::u16_at(&frame, t.checksum_at()), checksum::transport_checksum(&frame, &t));
    }

    proptest! {
        #[test]
        fn checksums_after_a_rewrite_equal_a_full_recomputation(
            (spec, new) in spec_and_tuple(), partial in any::<bool>(),
        ) {
            let mut frame = spec.frame();
            let t = frames::transport(&frame);
            if partial {
                make_partial(&mut frame, &t);
            }
            let mode = if partial { ChecksumMode::Virtual } else { ChecksumMode::Incremental };
            rewrite(&mut frame, &t, &Rewrite::new(tuple_of(&t), new), mode);
            frames::assert_checksums(&frame);
            let after = frames::transport(&frame);
            prop_assert_eq!(tuple_of(&after), new);
            prop_assert_eq!(after.ttl, t.ttl - 1);
            prop_assert_eq!(field::u16_at(&frame, t.checksum_at()), checksum::transport_checksum(&frame, &after));
        }

        #[test]
        fn the_reverse_of_a_rewrite_gives_the_packet_back_but_for_ttl((spec, new) in spec_and_tuple()) {
            let before = spec.frame();
            let mut frame = before.clone();
            let t = frames::transport(&frame);
            let forward = Rewrite::new(tuple_of(&t), new);
            let back = Rewrite::new(new, tuple_of(&t));
            rewrite(&mut frame, &t, &forward, ChecksumMode::Incremental);
            rewrite(&mut frame, &t, &back, ChecksumMode::Incremental);
            prop_assert!(frames::same_but_ttl(&before, &frame));
        }
    }
}
