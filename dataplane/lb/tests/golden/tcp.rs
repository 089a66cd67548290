//! How far connections have come, and how long flows are kept for it.

use std::time::Duration;

use lb::model::Mode;
use lb::{DropReason, Verdict};

use crate::packet::{ACK, FIN_ACK, RST, RST_ACK, SYN, SYN_ACK, Segment, Tcp};
use crate::rig::{INSIDE, Kind, OUTSIDE, Rig, TCP4, TCP6, UDP4, UDP6};

const BOTH: [Kind; 2] = [TCP4, TCP6];
/// First numbers of client and endpoint.
const ISS: [u32; 2] = [1000, u32::MAX - 5];

/// A connection, as the rig's next segments are made from.
struct Connection {
    client: Segment,
    endpoint: Segment,
}

impl Connection {
    fn open(rig: &mut Rig, kind: Kind, port: u16) -> Self {
        let (client, got) = rig.open(kind, port);
        let this = Self { client, endpoint: got.back() };
        this.endpoint_sends(rig, Tcp { flags: SYN_ACK, seq: ISS[1], ack: ISS[0] + 1 });
        this.client_sends(rig, Tcp { flags: ACK, seq: ISS[0] + 1, ack: ISS[1].wrapping_add(1) });
        this
    }

    fn client_sends(&self, rig: &mut Rig, tcp: Tcp) {
        rig.outside(&Segment { tcp: Some(tcp), ..self.client.clone() }).sent(INSIDE);
    }

    fn endpoint_sends(&self, rig: &mut Rig, tcp: Tcp) {
        rig.inside(&Segment { tcp: Some(tcp), ..self.endpoint.clone() }).sent(OUTSIDE);
    }
}

/// Lets time pass and ends what is over. How many flows are left.
fn left_after(rig: &mut Rig, time: Duration) -> u64 {
    rig.wait(time);
    while rig.workers[0].housekeep(rig.now, &rig.tables) {}
    rig.shared.flows()
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_reset_that_was_guessed_is_delivered_and_changes_nothing() {
    for mode in [Mode::Nat, Mode::Preserve] {
        let mut rig = Rig::new();
        rig.change(|port| port.mode = mode);
        for kind in BOTH {
            let connection = Connection::open(&mut rig, kind, 100);
            // Both went on since, by the steady path.
            let (sent, got) = (ISS[0] + 50_000_000, ISS[1].wrapping_add(90_000_000));
            connection.endpoint_sends(&mut rig, Tcp { flags: ACK, seq: got, ack: sent });
            connection.client_sends(&mut rig, Tcp { flags: ACK, seq: sent, ack: got });
            for wrong in [1 << 25, 1 << 31, 1u32.wrapping_neg() << 18] {
                connection.client_sends(&mut rig, Tcp { flags: RST, seq: sent.wrapping_add(wrong), ack: 0 });
                connection.endpoint_sends(&mut rig, Tcp { flags: RST, seq: got.wrapping_add(wrong), ack: 0 });
            }
        }
        assert_eq!((rig.event("resets_not_believed"), left_after(&mut rig, 60 * SECOND)), (12, 2));
    }
}

#[test]
fn a_reset_within_what_may_be_on_its_way_ends_a_connection_soon() {
    for ahead in [0u32, 1, 70_000, 8 << 20] {
        for of_client in [true, false] {
            let mut rig = Rig::new();
            for kind in BOTH {
                let connection = Connection::open(&mut rig, kind, 101);
                let (sent, got) = (ISS[0] + 50_000_000, ISS[1].wrapping_add(90_000_000));
                connection.endpoint_sends(&mut rig, Tcp { flags: ACK, seq: got, ack: sent });
                connection.client_sends(&mut rig, Tcp { flags: ACK, seq: sent, ack: got });
                match of_client {
                    true => connection.client_sends(&mut rig, Tcp { flags: RST, seq: sent + ahead, ack: 0 }),
                    false => connection.endpoint_sends(&mut rig, Tcp { flags: RST_ACK, seq: got + ahead, ack: sent }),
                }
            }
            assert_eq!(rig.event("resets_not_believed"), 0, "{ahead} ahead");
            assert_eq!((left_after(&mut rig, 9 * SECOND), left_after(&mut rig, 4 * SECOND)), (2, 0));
        }
    }
}

/// A connection after a reset of its client's that its endpoint may have believed or not, and where the endpoint got it from.
fn doubtful(rig: &mut Rig, kind: Kind, port: u16) -> (Connection, Segment) {
    let (client, got) = rig.open(kind, port);
    let this = Connection { client, endpoint: got.back() };
    this.endpoint_sends(rig, Tcp { flags: SYN_ACK, seq: ISS[1], ack: ISS[0] + 1 });
    this.client_sends(rig, Tcp { flags: ACK, seq: ISS[0] + 1, ack: ISS[1].wrapping_add(1) });
    this.client_sends(rig, Tcp { flags: RST, seq: ISS[0] + 70_000, ack: 0 });
    (this, got)
}

#[test]
fn a_connection_outlives_a_guessed_reset_and_a_syn_right_after_it() {
    for (mode, kind) in [Mode::Nat, Mode::Preserve].into_iter().flat_map(|mode| BOTH.map(|kind| (mode, kind))) {
        let mut rig = Rig::new();
        rig.change(|port| port.mode = mode);
        let (this, got) = doubtful(&mut rig, kind, 110);
        let spoofed = Segment { tcp: Some(Tcp { flags: SYN, seq: 77, ack: 0 }), ..this.client.clone() };
        let challenge = Tcp { flags: ACK, seq: ISS[1].wrapping_add(1), ack: ISS[0] + 1 };
        for wait in [Duration::ZERO, Duration::from_secs(2), Duration::from_secs(5)] {
            rig.wait(wait);
            // The endpoint judges the SYN, and the client gets what it says of it.
            let there = rig.outside(&spoofed).sent(INSIDE);
            assert_eq!((there.src, there.dst), (got.src, got.dst));
            this.endpoint_sends(&mut rig, challenge);
        }
        assert_eq!((rig.event("challenges_reset"), rig.emitted()), (0, None));
        this.client_sends(&mut rig, Tcp { flags: ACK, seq: ISS[0] + 1, ack: ISS[1].wrapping_add(1) });
        this.endpoint_sends(&mut rig, challenge);
        assert_eq!((left_after(&mut rig, 1000 * SECOND), rig.workers[0].counters.flows_opened), (1, 1), "established");
    }
}

#[test]
fn after_a_reset_that_its_endpoint_believed_the_client_may_open_anew_at_once() {
    for (kind, dead) in BOTH.into_iter().flat_map(|kind| [(kind, false), (kind, true)]) {
        let mut rig = Rig::new();
        let (this, got) = doubtful(&mut rig, kind, 111);
        let again = Segment { tcp: Some(Tcp { flags: SYN, seq: 5000, ack: 0 }), ..this.client.clone() };
        assert_eq!(rig.outside(&again).sent(INSIDE).src, got.src);
        if dead {
            // It is silent: the client's next SYN opens a flow, and that goes on where this one answers nothing.
            rig.wait(SECOND);
            rig.outside(&again).sent(INSIDE);
            rig.wait(SECOND);
            assert!(rig.emitted().is_some());
            assert_eq!(rig.workers[0].counters.flows_opened, 2);
            continue;
        }
        this.endpoint_sends(&mut rig, Tcp { flags: SYN_ACK, seq: ISS[1], ack: 5001 });
        this.client_sends(&mut rig, Tcp { flags: ACK, seq: 5001, ack: ISS[1].wrapping_add(1) });
        assert_eq!(left_after(&mut rig, 1000 * SECOND), 1, "established");
    }
}

#[test]
fn a_syn_after_a_reset_counts_as_one_that_opens_a_flow() {
    let mut rig = Rig::new();
    rig.config.new_flows_per_source = 3;
    rig.rebuild();
    let (this, _) = doubtful(&mut rig, TCP4, 112);
    let again = Segment { tcp: Some(Tcp { flags: SYN, seq: 5000, ack: 0 }), ..this.client.clone() };
    let verdicts: Vec<Verdict> = (0..100).map(|_| rig.outside(&again).verdict).collect();
    assert_eq!((verdicts[0], verdicts[99]), (Verdict::Tx(INSIDE), Verdict::Drop(DropReason::SourceRate)));
}

#[test]
fn connections_are_kept_for_as_long_as_rfc_5382_asks_for() {
    let mut rig = Rig::new();
    let _ = BOTH.map(|kind| Connection::open(&mut rig, kind, 102));
    assert_eq!((left_after(&mut rig, 7_437 * SECOND), left_after(&mut rig, 10 * SECOND)), (2, 0), "established");
    let _ = BOTH.map(|kind| rig.open(kind, 103));
    assert_eq!((left_after(&mut rig, 58 * SECOND), left_after(&mut rig, 10 * SECOND)), (2, 0), "opening");
    let half = BOTH.map(|kind| Connection::open(&mut rig, kind, 104));
    for connection in &half {
        connection.client_sends(&mut rig, Tcp { flags: FIN_ACK, seq: ISS[0] + 1, ack: ISS[1].wrapping_add(1) });
    }
    // The other side may go on for long.
    for _ in 0..20 {
        assert_eq!(left_after(&mut rig, 200 * SECOND), 2);
        for connection in &half {
            connection.endpoint_sends(&mut rig, Tcp { flags: ACK, seq: ISS[1].wrapping_add(1), ack: ISS[0] + 2 });
        }
    }
    assert_eq!((left_after(&mut rig, 237 * SECOND), left_after(&mut rig, 10 * SECOND)), (2, 0), "half-closed");
}

#[test]
fn datagrams_keep_their_flow_for_as_long_as_rfc_4787_asks_for() {
    let mut rig = Rig::new();
    for kind in [UDP4, UDP6] {
        rig.open(kind, 105);
    }
    assert_eq!((left_after(&mut rig, 118 * SECOND), left_after(&mut rig, 10 * SECOND)), (2, 0), "not answered");
    let flows = [UDP4, UDP6].map(|kind| rig.open(kind, 106));
    for (sent, got) in &flows {
        rig.inside(&got.back()).sent(OUTSIDE);
        assert_eq!(left_after(&mut rig, 100 * SECOND), 2);
        // REQ-6: what a client sends refreshes.
        rig.outside(sent).sent(INSIDE);
    }
    assert_eq!((left_after(&mut rig, 190 * SECOND), left_after(&mut rig, 125 * SECOND)), (2, 0), "answered");
}

#[test]
fn both_sides_may_open_at_the_same_time() {
    for mode in [Mode::Nat, Mode::Preserve] {
        let mut rig = Rig::new();
        rig.change(|port| port.mode = mode);
        for kind in BOTH {
            let (client, got) = rig.open(kind, 107);
            let this = Connection { client, endpoint: got.back() };
            this.endpoint_sends(&mut rig, Tcp { flags: SYN, seq: ISS[1], ack: 0 });
            this.client_sends(&mut rig, Tcp { flags: SYN_ACK, seq: ISS[0], ack: ISS[1].wrapping_add(1) });
            this.endpoint_sends(&mut rig, Tcp { flags: SYN_ACK, seq: ISS[1], ack: ISS[0] + 1 });
            this.client_sends(&mut rig, Tcp { flags: ACK, seq: ISS[0] + 1, ack: ISS[1].wrapping_add(1) });
        }
        rig.wait(Duration::from_secs(3));
        assert_eq!(rig.emitted(), None, "the endpoint was not silent");
        assert_eq!(left_after(&mut rig, 1000 * SECOND), 2, "established");
    }
}

#[test]
fn a_segment_of_no_connection_is_reset_and_a_reset_is_not() {
    let mut rig = Rig::new();
    for kind in BOTH {
        for flags in [ACK, FIN_ACK, SYN_ACK] {
            let stray = Segment { tcp: Some(Tcp { flags, seq: 5, ack: 77 }), ..kind.opening(108) };
            let reset = rig.outside(&stray).sent(OUTSIDE);
            assert_eq!(
                (reset.src, reset.dst, reset.tcp),
                (stray.dst, stray.src, Some(Tcp { flags: RST, seq: 77, ack: 0 }))
            );
        }
        rig.outside(&kind.opening(108).with_flags(RST)).dropped(DropReason::NoFlow);
    }
    let stray = TCP4.opening(108).with_flags(ACK);
    let answers = (0..500).filter(|_| rig.outside(&stray).verdict == Verdict::Tx(OUTSIDE)).count();
    assert_eq!(answers, 100 - 6, "no more than a burst of them");
    assert_eq!(rig.shared.flows(), 0);
}
