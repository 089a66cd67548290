//! Whatever the packet: checksums hold after a rewrite, and the way back undoes the way there.

use lb::model::Mode;
use proptest::prelude::*;

use crate::packet::{ACK, SYN_ACK, Segment, Tcp};
use crate::rig::{INSIDE, KINDS, OUTSIDE, Rig};

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_reply_of_the_forwarded_packet_is_the_packet_turned_around(
        kind in 0..KINDS.len(),
        preserve: bool,
        client in 1u8..=254,
        port in 1u16..,
        seq: u32,
        ttl in 3u8..,
        payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..1300), 1..4),
    ) {
        let kind = KINDS[kind];
        let mut rig = Rig::new();
        rig.change(|port| port.mode = if preserve { Mode::Preserve } else { Mode::Nat });
        let mut opening = Segment { ttl, ..kind.opening_of(client, port) };
        opening.tcp = opening.tcp.map(|tcp| Tcp { seq, ..tcp });
        let got = rig.outside(&opening).sent(INSIDE);
        rig.inside(&got.back().with_flags(SYN_ACK)).sent(OUTSIDE);
        for payload in payloads {
            let sent = Segment { payload, ..opening.with_flags(ACK) };
            let there = rig.outside(&sent).sent(INSIDE);
            // The endpoint throws the very packet back.
            let thrown = Segment { ttl: there.ttl, ..there.back() };
            let back = rig.inside(&thrown).sent(OUTSIDE);
            let expected = Segment { ttl: sent.ttl - 2, ..sent.back() };
            prop_assert_eq!(back, expected);
        }
    }

    #[test]
    fn no_frame_whatever_it_holds_stops_a_worker(bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0usize..4) {
        let mut rig = Rig::new();
        rig.process(0, OUTSIDE, false, &bytes);
        // With a header in front that leads further in.
        let mut valid = KINDS[at].opening(1).bytes();
        for (place, value) in valid.iter_mut().skip(14).zip(bytes.iter()) {
            if *value < 64 {
                *place ^= *value;
            }
        }
        rig.process(0, OUTSIDE, false, &valid);
    }
}
