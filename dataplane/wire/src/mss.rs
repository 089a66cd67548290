//! The maximum segment size that a TCP endpoint offers in its SYN (RFC 9293 section 3.7.1), made smaller on its way.
//!
//! For paths whose routers' errors get lost: what is never sent too long needs no error.

use crate::checksum::Delta;
use crate::field;
use crate::packet::Transport;
use crate::tcp;

/// Kind and length of the option.
const MAXIMUM_SEGMENT_SIZE: (u8, u8) = (2, 4);

/// Makes the size that a SYN offers `most` octets if it is more; without the option it is small by definition. The checksum
/// must be complete, not partial. Whether something changed.
///
/// # Panics
/// If `frame` is not the one that was parsed, or its rewrite in place.
pub fn clamp_mss(frame: &mut [u8], t: &Transport, most: u16) -> bool {
    let segment = &mut frame[usize::from(t.l4)..usize::from(t.end)];
    let header_len = tcp::header_len(segment);
    let Some(at) = tcp::option_at(&segment[tcp::HEADER_LEN..header_len], MAXIMUM_SEGMENT_SIZE) else { return false };
    let at = tcp::HEADER_LEN + at + 2;
    if field::u16_at(segment, at) <= most {
        return false;
    }
    // The option may stand at an odd offset; sums are made of even words.
    let words = (at & !1)..(at + 3) & !1;
    let mut old = [0; 4];
    let len = words.len();
    old[..len].copy_from_slice(&segment[words.clone()]);
    field::put_u16(segment, at, most);
    let delta = Delta::between(&old[..len], &segment[words]);
    let checksum = delta.apply(field::u16_at(segment, tcp::CHECKSUM));
    field::put_u16(segment, tcp::CHECKSUM, checksum);
    true
}

#[cfg(test)]
mod tests {
    use etherparse::{PacketBuilder, TcpOptionElement as Option_};
    use proptest::prelude::*;

    use super::*;
    use crate::frames::{self, CLIENT_MAC, OUR_MAC};

    fn syn(options: &[u8], v6: bool) -> Vec<u8> {
        let link = PacketBuilder::ethernet2(CLIENT_MAC.0, OUR_MAC.0);
        let ip = if v6 { link.ipv6([1; 16], [2; 16], 64) } else { link.ipv4([192, 0, 2, 1], [192, 0, 2, 2], 64) };
        let mut frame = Vec::new();
        ip.tcp(40_000, 80, 1, 64_000).syn().options_raw(options).unwrap().write(&mut frame, &[]).unwrap();
        frame
    }

    fn offered(frame: &[u8]) -> Option<u16> {
        let packet = etherparse::SlicedPacket::from_ethernet(frame).unwrap();
        let Some(etherparse::TransportSlice::Tcp(tcp)) = packet.transport else { panic!("no TCP") };
        tcp.options_iterator().find_map(|option| match option {
            Ok(Option_::MaximumSegmentSize(size)) => Some(size),
            _ => None,
        })
    }

    #[test]
    fn what_is_more_becomes_the_most_and_what_is_less_stays() {
        // At an even offset, and at an odd one.
        for options in [&[2, 4, 5, 180, 4, 2, 1, 1][..], &[1, 2, 4, 5, 180, 1, 1, 0], &[1, 1, 1, 2, 4, 5, 180, 0]] {
            for v6 in [false, true] {
                for (most, after) in [(1400, 1400), (1460, 1460), (9000, 1460)] {
                    let mut frame = syn(options, v6);
                    let t = frames::transport(&frame);
                    assert_eq!(clamp_mss(&mut frame, &t, most), most < 1460);
                    assert_eq!(offered(&frame), Some(after));
                    frames::assert_checksums(&frame);
                }
            }
        }
    }

    #[test]
    fn a_syn_without_the_option_stays_as_it_is() {
        for options in [&[][..], &[1, 1, 4, 2], &[0, 2, 4, 5], &[2, 4], &[2, 3, 9, 1], &[8, 0, 1, 1]] {
            let mut frame = syn(options, false);
            let (before, t) = (frame.clone(), frames::transport(&frame));
            assert!(!clamp_mss(&mut frame, &t, 100));
            assert_eq!(frame, before);
        }
    }

    proptest! {
        #[test]
        fn checksums_hold_whatever_the_options_are(options in prop::collection::vec(0..6u8, 0..40), most: u16) {
            let mut frame = syn(&options, true);
            let t = frames::transport(&frame);
            clamp_mss(&mut frame, &t, most);
            frames::assert_checksums(&frame);
        }
    }
}
