//! Connections that open while endpoints refuse them, are silent or remember former ones.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::icmpv6::DestUnreachableCode;
use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder};
use lb::health::Standing;
use lb::model::{Algorithm, Mode};
use lb::{DropReason, Verdict};
use wire::TcpFlags;

use crate::packet::{ACK, RST, RST_ACK, SYN, SYN_ACK, Segment, Tcp};
use crate::rig::{CLIENT_MAC, INSIDE, INSIDE_MAC, Kind, OUTSIDE, OUTSIDE_MAC, Rig, TCP4, TCP6, backend_mac};

const WAIT: Duration = Duration::from_millis(252);
const BOTH: [Kind; 2] = [TCP4, TCP6];
const MODES: [Mode; 2] = [Mode::Nat, Mode::Preserve];

/// A rig in this mode.
fn rig(mode: Mode) -> Rig {
    let mut rig = Rig::new();
    rig.change(|port| port.mode = mode);
    rig
}

/// The answer to a SYN: its sequence number acknowledged.
fn answer(got: &Segment, flags: TcpFlags) -> Segment {
    let mut answer = got.back().with_flags(flags);
    answer.tcp.as_mut().unwrap().seq = 7000;
    answer
}

/// What an endpoint sends when it remembers a former connection.
fn challenge(got: &Segment) -> Segment {
    let mut answer = got.back();
    answer.tcp = Some(Tcp { flags: ACK, seq: 90_000, ack: 50_000 });
    answer
}

/// What a router says of a packet to an endpoint that it cannot reach.
fn unreachable(got: &Segment) -> Vec<u8> {
    let packet = &got.bytes()[14..];
    let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0xd, 1], INSIDE_MAC.0);
    let mut error = Vec::new();
    match got.src.ip() {
        IpAddr::V4(back) => {
            let kind = Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Host);
            link.ipv4([198, 18, 0, 1], back.octets(), 60).icmpv4(kind).write(&mut error, packet).unwrap();
        }
        IpAddr::V6(back) => {
            let kind = Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Address);
            let router: Ipv6Addr = "2001:db8:ffff::1".parse().unwrap();
            link.ipv6(router.octets(), back.octets(), 60).icmpv6(kind).write(&mut error, packet).unwrap();
        }
    }
    error
}

/// Asks for packets until nothing is due; how many there were.
fn drain(rig: &mut Rig) -> usize {
    let mut count = 0;
    while rig.workers[0].next_emission().is_some_and(|due| due <= rig.now) {
        count += usize::from(rig.emitted().is_some());
    }
    count
}

/// That this is the client's very SYN, to an endpoint.
fn assert_is_the_syn(sent: &Segment, got: &Segment, mode: Mode) {
    assert_eq!((got.tcp, &got.payload, got.ttl), (sent.tcp, &sent.payload, sent.ttl - 1));
    assert_eq!((got.src_mac, got.dst_mac), (INSIDE_MAC, backend_mac(got.dst.ip())));
    if mode == Mode::Preserve {
        assert_eq!(got.src, sent.src);
    }
}

/// Goes on with a connection to its end at the endpoint that got the last SYN, as the client sees it.
fn assert_works(rig: &mut Rig, sent: &Segment, got: &Segment) {
    let to_client = rig.inside(&answer(got, SYN_ACK)).sent(OUTSIDE);
    assert_eq!((to_client.src, to_client.dst), (sent.dst, sent.src));
    assert_eq!(to_client.tcp.unwrap(), Tcp { flags: SYN_ACK, seq: 7000, ack: 1001 });
    assert_eq!((to_client.src_mac, to_client.dst_mac), (OUTSIDE_MAC, CLIENT_MAC));
    let to_endpoint = rig.outside(&sent.with_flags(ACK)).sent(INSIDE);
    assert_eq!((to_endpoint.src, to_endpoint.dst), (got.src, got.dst));
}

#[test]
fn a_refused_syn_goes_to_each_other_endpoint_at_once_and_then_the_client_hears() {
    for mode in MODES {
        let mut rig = rig(mode);
        for kind in BOTH {
            let (sent, first) = rig.open(kind, 100);
            let second = rig.inside(&answer(&first, RST_ACK)).sent(INSIDE);
            assert_is_the_syn(&sent, &second, mode);
            let third = rig.inside(&answer(&second, RST_ACK)).sent(INSIDE);
            assert_is_the_syn(&sent, &third, mode);
            let mut all = [first.dst, second.dst, third.dst];
            all.sort_unstable();
            assert_eq!(all, [1, 2, 3].map(|n| kind.backend(n)), "each once");
            let told = rig.inside(&answer(&third, RST_ACK)).sent(OUTSIDE);
            assert_eq!((told.src, told.dst, told.tcp.unwrap().ack), (sent.dst, sent.src, 1001));
        }
        assert_eq!((rig.event("connects_retried"), rig.event("retries_exhausted")), (4, 2));
        assert_eq!(rig.event("flows_opened"), 2);
    }
}

#[test]
fn a_connection_works_at_the_endpoint_that_it_went_on_to() {
    for mode in MODES {
        let mut rig = rig(mode);
        for kind in BOTH {
            let (sent, first) = rig.open(kind, 101);
            let second = rig.inside(&answer(&first, RST_ACK)).sent(INSIDE);
            assert_works(&mut rig, &sent, &second);
            let counts = |to| {
                rig.tables
                    .backends
                    .iter()
                    .find(|row| row.address == Rig::addr(to))
                    .map(|row| rig.shared.backend_connections(row.id))
            };
            assert_eq!((counts(first.dst.ip()), counts(second.dst.ip())), (Some(0), Some(1)));
        }
        assert_eq!(rig.event("connects_rescued"), 2);
    }
}

#[test]
fn silence_moves_a_syn_on_after_a_quarter_of_a_second_and_no_sooner() {
    for mode in MODES {
        let mut rig = rig(mode);
        for kind in BOTH {
            let (sent, first) = rig.open(kind, 102);
            rig.wait(Duration::from_millis(249));
            assert_eq!(rig.emitted(), None);
            let due = rig.workers[0].next_emission().unwrap();
            assert!((1..5_000_000).contains(&(due.0 - rig.now.0)), "it is known when");
            rig.wait(Duration::from_millis(4));
            let (port, second) = rig.emitted().unwrap();
            assert_eq!((port, rig.emitted()), (INSIDE, None));
            assert_is_the_syn(&sent, &second, mode);
            assert_ne!(second.dst, first.dst);
            assert_works(&mut rig, &sent, &second);
            rig.wait(Duration::from_secs(4));
            assert_eq!((rig.emitted(), rig.workers[0].next_emission()), (None, None), "nothing waits any more");
        }
    }
}

#[test]
fn a_silent_service_gets_three_syns_and_a_retransmission_goes_to_the_last() {
    let mut rig = rig(Mode::Nat);
    let (sent, first) = rig.open(TCP4, 103);
    let mut asked = vec![first.dst];
    for _ in 0..4 {
        rig.wait(WAIT);
        while let Some((_, next)) = rig.emitted() {
            asked.push(next.dst);
            assert_eq!(rig.outside(&sent).sent(INSIDE), next, "the client's own goes there too");
        }
    }
    assert_eq!(asked.len(), 3);
    asked.sort_unstable();
    assert_eq!(asked, [1, 2, 3].map(|n| TCP4.backend(n)));
}

#[test]
fn a_losers_late_answer_is_reset_and_does_not_reach_the_client() {
    for mode in MODES {
        let mut rig = rig(mode);
        for kind in BOTH {
            let (sent, first) = rig.open(kind, 104);
            rig.wait(WAIT);
            let (_, second) = rig.emitted().unwrap();
            let reset = rig.inside(&answer(&first, SYN_ACK)).sent(INSIDE);
            assert_eq!((reset.src, reset.dst), (first.src, first.dst));
            assert_eq!(reset.tcp.unwrap(), Tcp { flags: RST, seq: 1001, ack: 0 });
            rig.inside(&answer(&first, RST_ACK)).dropped(DropReason::NoFlow);
            assert_works(&mut rig, &sent, &second);
        }
        assert_eq!(rig.event("late_answers_reset"), 2);
        // Later nobody is waited for any more, and nothing is claimed.
        rig.wait(Duration::from_secs(20));
        for _ in 0..1000 {
            rig.workers[0].housekeep(rig.now, &rig.tables);
        }
        let (_, first) = rig.open(TCP4, 105);
        let stray = Segment { src: first.src, dst: first.dst, ..answer(&first, SYN_ACK) };
        assert_ne!(rig.inside(&stray).verdict, Verdict::Tx(INSIDE));
    }
}

#[test]
fn an_unreachable_endpoint_is_left_as_soon_as_an_error_says_so() {
    for mode in MODES {
        let mut rig = rig(mode);
        for kind in BOTH {
            let (sent, first) = rig.open(kind, 106);
            let forged = unreachable(&Segment { tcp: Some(Tcp { flags: SYN, seq: 9, ack: 0 }), ..first.clone() });
            assert_eq!(
                rig.process(0, INSIDE, false, &forged).verdict,
                Verdict::Tx(OUTSIDE),
                "about nothing that was sent"
            );
            let error = unreachable(&first);
            let second = rig.process(0, INSIDE, false, &error).sent(INSIDE);
            assert_is_the_syn(&sent, &second, mode);
            assert_works(&mut rig, &sent, &second);
        }
    }
}

#[test]
fn an_answer_to_a_former_connection_is_reset_and_the_syn_sent_again_at_once() {
    for mode in MODES {
        let mut rig = rig(mode);
        for kind in BOTH {
            let (sent, got) = rig.open(kind, 107);
            for _ in 0..2 {
                let reset = rig.inside(&challenge(&got)).sent(INSIDE);
                assert_eq!((reset.src, reset.dst), (got.src, got.dst));
                assert_eq!(reset.tcp.unwrap(), Tcp { flags: RST, seq: 50_000, ack: 0 });
                assert_eq!(rig.emitted(), Some((INSIDE, got.clone())), "the same SYN to the same endpoint");
                assert_eq!(rig.emitted(), None);
            }
            // Not for ever.
            rig.inside(&challenge(&got)).sent(OUTSIDE);
            assert_works(&mut rig, &sent, &got);
        }
        assert_eq!((rig.event("challenges_reset"), rig.event("connects_retried")), (4, 0));
    }
}

#[test]
fn a_reset_that_does_not_acknowledge_the_syn_is_dropped() {
    for mode in MODES {
        let mut rig = rig(mode);
        for kind in BOTH {
            let (sent, got) = rig.open(kind, 108);
            rig.inside(&got.back().with_flags(RST)).dropped(DropReason::UnacceptableReset);
            let mut forged = answer(&got, RST_ACK);
            forged.tcp.as_mut().unwrap().ack = 1000;
            rig.inside(&forged).dropped(DropReason::UnacceptableReset);
            assert_works(&mut rig, &sent, &got);
        }
    }
}

#[test]
fn what_an_endpoint_might_act_upon_or_could_not_read_is_never_sent_to_another() {
    let mut rig = rig(Mode::Nat);
    for kind in BOTH {
        let with_data = Segment { payload: b"early".to_vec(), ..kind.opening(109) };
        let far = Segment { ttl: 9, ..kind.opening(110) };
        let mut damaged = kind.opening(111).bytes();
        let last = damaged.len() - 1;
        damaged[last] ^= 1;
        // RFC 2385, RFC 5925, and a length that lies.
        let signed =
            [[[19, 18].as_slice(), &[7; 16], &[1; 2]].concat(), vec![1, 29, 4, 0, 0, 1, 1, 1], vec![3, 1, 0, 0]];
        let signed = [0, 1, 2].map(|n| kind.opening(200 + n as u16).bytes_with_options(&signed[n]));
        for bytes in [with_data.bytes(), far.bytes(), damaged].iter().chain(&signed) {
            let outcome = rig.process(0, OUTSIDE, false, bytes);
            assert_eq!(outcome.verdict, Verdict::Tx(INSIDE));
        }
        let got = rig.outside(&with_data).sent(INSIDE);
        rig.wait(Duration::from_secs(2));
        assert_eq!(rig.emitted(), None);
        rig.inside(&answer(&got, RST_ACK)).sent(OUTSIDE);
    }
    assert_eq!(rig.event("connects_retried"), 0);
}

#[test]
fn options_and_the_window_go_on_unchanged() {
    for kind in BOTH {
        let mut rig = rig(Mode::Nat);
        let plain = kind.opening(112);
        let bytes = plain.bytes_with_options(&[2, 4, 5, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7]);
        let first = rig.process(0, OUTSIDE, false, &bytes);
        let tcp = if kind.ipv6 { 54 } else { 34 };
        rig.wait(WAIT);
        let mut room = [0; 256];
        let sent = lb::emit(rig.now, &rig.tables, &mut rig.workers[0], &mut room).unwrap();
        assert_eq!(sent.len, bytes.len());
        assert!(crate::packet::checksums_hold(&room[..sent.len]));
        // All but ports and checksum.
        assert_eq!(room[tcp + 4..tcp + 16], bytes[tcp + 4..tcp + 16]);
        assert_eq!(room[tcp + 18..sent.len], bytes[tcp + 18..]);
        assert_eq!(first.frame.len(), sent.len);
    }
}

#[test]
fn a_client_that_begins_anew_has_its_new_syn_sent_on() {
    let mut rig = rig(Mode::Nat);
    let (sent, _) = rig.open(TCP4, 113);
    let mut anew = sent.clone();
    anew.tcp.as_mut().unwrap().seq = 5_000_000;
    rig.wait(Duration::from_millis(200));
    rig.outside(&anew).sent(INSIDE);
    rig.wait(Duration::from_millis(200));
    assert_eq!(rig.emitted(), None, "it waits from its own beginning");
    rig.wait(Duration::from_millis(60));
    assert_eq!(rig.emitted().unwrap().1.tcp, anew.tcp);
}

#[test]
fn a_slow_endpoint_is_waited_for_three_times_as_long_as_it_takes() {
    let mut rig = rig(Mode::Nat);
    rig.change(|port| port.endpoints.truncate(2));
    let mut rescued = 0;
    for n in 0..60 {
        let (_, mut got) = rig.open(TCP4, 1000 + n);
        // Each of both endpoints answers after 300 ms, however late it is then.
        for _ in 0..3 {
            rig.wait(Duration::from_millis(150));
            if let Some((_, next)) = rig.emitted() {
                rig.wait(Duration::from_millis(150));
                rig.inside(&answer(&got, SYN_ACK)).sent(INSIDE);
                got = next;
                rescued += 1;
            }
        }
        rig.inside(&answer(&got, SYN_ACK)).sent(OUTSIDE);
    }
    assert!((2..20).contains(&rescued), "{rescued}: its usual time is known soon");
}

#[test]
fn an_endpoint_that_keeps_failing_is_set_aside_and_tried_again_by_one_connection() {
    for (mode, algorithm) in [(Mode::Nat, Algorithm::Maglev), (Mode::Preserve, Algorithm::LeastConnections)] {
        let mut rig = rig(mode);
        rig.change(|port| port.algorithm = algorithm);
        let dead = TCP4.backend(2);
        let connect = |rig: &mut Rig, port: u16| {
            let (sent, got) = rig.open(TCP4, port);
            let first = got.dst;
            let got = if first == dead { rig.inside(&answer(&got, RST_ACK)).sent(INSIDE) } else { got };
            assert_works(rig, &sent, &got);
            first
        };
        let to_dead = (0..200).filter(|n| connect(&mut rig, 2000 + n) == dead).count();
        assert_eq!(to_dead, 3, "three failures in a row");
        let row = rig.tables.backends.iter().find(|row| row.address == Rig::addr(dead.ip())).unwrap().id;
        assert!(matches!(rig.shared.health.standing(row, rig.now.tick()), Standing::Aside { .. }));
        rig.wait(Duration::from_millis(1002));
        let to_dead = (0..200).filter(|n| connect(&mut rig, 3000 + n) == dead).count();
        assert_eq!(to_dead, 1, "one connection tries it");
        assert_eq!(rig.event("endpoints_set_aside"), 2);
    }
}

#[test]
fn the_last_endpoints_are_used_though_they_failed() {
    let mut rig = rig(Mode::Nat);
    rig.change(|port| port.endpoints.truncate(1));
    for n in 0..20 {
        let (_, got) = rig.open(TCP4, 4000 + n);
        assert_eq!(rig.inside(&answer(&got, RST_ACK)).sent(OUTSIDE).tcp.unwrap().ack, 1001);
    }
    let (sent, got) = rig.open(TCP4, 4100);
    assert_works(&mut rig, &sent, &got);
}

#[test]
fn session_affinity_follows_the_endpoint_that_answered() {
    let mut rig = rig(Mode::Nat);
    rig.change(|port| port.affinity = Some(Duration::from_secs(100)));
    let (sent, first) = rig.open(TCP4, 5000);
    let second = rig.inside(&answer(&first, RST_ACK)).sent(INSIDE);
    assert_works(&mut rig, &sent, &second);
    for n in 0..20 {
        assert_eq!(rig.open(TCP4, 5001 + n).1.dst, second.dst);
    }
}

#[test]
fn session_affinity_stays_with_who_won_a_connection_when_others_are_answered_late() {
    for mode in MODES {
        let mut rig = rig(mode);
        rig.change(|port| port.affinity = Some(Duration::from_secs(100)));
        let (sent, slow) = rig.open(TCP4, 5000);
        rig.wait(Duration::from_millis(200));
        // Later by so much that it is answered in time.
        let (other, too) = rig.open(TCP4, 5001);
        assert_eq!(slow.dst, too.dst);
        rig.wait(WAIT - Duration::from_millis(200));
        let (_, second) = rig.emitted().expect("the first one goes on");
        assert_ne!(second.dst, slow.dst);
        assert_works(&mut rig, &sent, &second);
        assert_works(&mut rig, &other, &too);
        for n in 0..20 {
            assert_eq!(rig.open(TCP4, 5002 + n).1.dst, second.dst, "{mode:?}");
        }
    }
}

#[test]
fn a_flood_of_syns_to_silent_endpoints_is_not_answered_by_another() {
    let mut rig = Rig::with(1, 32_768);
    let mut emitted = 0;
    for n in 0..20_000u32 {
        let sent = TCP4.opening_of((n >> 14) as u8 + 1, (n & 0x3fff) as u16 + 1024);
        rig.outside(&sent).sent(INSIDE);
        rig.wait(Duration::from_micros(50));
        emitted += drain(&mut rig);
    }
    assert!((1000..=5000).contains(&emitted), "{emitted} of 20,000: a thousand and a fifth");
    assert!(rig.event("retries_over_budget") > 0);
    // Who comes after it is kept as before.
    for _ in 0..30 {
        rig.wait(Duration::from_secs(1));
        drain(&mut rig);
    }
    let not_kept = rig.event("syns_not_kept");
    let (_, got) = rig.open(TCP6, 200);
    rig.inside(&answer(&got, RST_ACK)).sent(INSIDE);
    assert_eq!(rig.event("syns_not_kept"), not_kept);
}
