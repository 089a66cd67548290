//! How far a flow has come: as much of TCP (RFC 9293 section 3.3.2, RFC 5382) and UDP (RFC 4787) as timeouts need; what
//! SCTP packets change is in [`super::association`].
//!
//! Where endpoints answer past us the client's packets alone tell ([`FlowState::after_one_sided`]).
//! Of sequence numbers as much is followed as tells a reset that was guessed ([`super::FlowEntry`]): one that its receiver
//! would not accept changes nothing here. One that fits by chance shortens the timeout for a moment only: traffic of both
//! directions after it makes the flow established again.

use wire::{Protocol, TcpFlags};

use crate::tables::Timeouts;

/// Whose packet it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Direction {
    /// From the client.
    Forward = 0,
    /// From the endpoint.
    Reply = 1,
}

impl Direction {
    /// The other one.
    #[must_use]
    #[inline]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Forward => Self::Reply,
            Self::Reply => Self::Forward,
        }
    }

    /// One bit for each direction.
    pub(super) const fn bit(self) -> u8 {
        match self {
            Self::Forward => 1,
            Self::Reply => 2,
        }
    }
}

/// How far a flow has come.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum FlowState {
    /// TCP: the client's SYN was seen.
    Opening = 1,
    /// TCP: the endpoint's SYN-ACK was seen.
    SynAck = 2,
    /// TCP: data may flow both ways.
    Established = 3,
    /// TCP: one side sent FIN.
    HalfClosed = 4,
    /// TCP: both sides sent FIN, the last is not acknowledged.
    Closing = 5,
    /// TCP: both FINs were acknowledged.
    Closed = 6,
    /// TCP: a RST was seen, and no traffic of both sides after it; but for [`FlowState::ClientReset`].
    Reset = 7,
    /// UDP: nothing came back.
    Unreplied = 8,
    /// UDP: traffic both ways.
    Replied = 9,
    /// UDP, port 53: one query, no reply.
    DnsQuery = 10,
    /// UDP, port 53: one query with one reply, or whose reply is not seen.
    DnsDone = 11,
    /// UDP, port 53: more than that.
    Dns = 12,
    /// UDP, replies are not seen: one datagram.
    Sent = 13,
    /// UDP, replies are not seen: more than that.
    Sending = 14,
    /// TCP, replies are not seen: the client sent FIN.
    Finished = 15,
    /// SCTP: the client's INIT was seen.
    CookieWait = 16,
    /// SCTP: the client's COOKIE ECHO was seen.
    CookieEchoed = 17,
    /// SCTP: the endpoint took the cookie.
    Associated = 18,
    /// SCTP: one side sent SHUTDOWN.
    ShutdownSent = 19,
    /// SCTP: the other one sent SHUTDOWN ACK.
    ShutdownAckSent = 20,
    /// SCTP: SHUTDOWN COMPLETE or ABORT was seen, and no traffic of both sides after it.
    Ended = 21,
    /// TCP: the client sent a RST on a connection that was established, which may have been guessed; its endpoint did not,
    /// and there was no traffic of both sides after it.
    ClientReset = 22,
}

impl FlowState {
    /// From the number in an entry.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Opening,
            2 => Self::SynAck,
            3 => Self::Established,
            4 => Self::HalfClosed,
            5 => Self::Closing,
            6 => Self::Closed,
            7 => Self::Reset,
            8 => Self::Unreplied,
            9 => Self::Replied,
            10 => Self::DnsQuery,
            11 => Self::DnsDone,
            12 => Self::Dns,
            13 => Self::Sent,
            14 => Self::Sending,
            15 => Self::Finished,
            16 => Self::CookieWait,
            17 => Self::CookieEchoed,
            18 => Self::Associated,
            19 => Self::ShutdownSent,
            20 => Self::ShutdownAckSent,
            21 => Self::Ended,
            22 => Self::ClientReset,
            _ => return None,
        })
    }

    /// The word for it in listings.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::SynAck => "syn-ack",
            Self::Established => "established",
            Self::HalfClosed => "half-closed",
            Self::Closing => "closing",
            Self::Closed => "closed",
            Self::Reset => "reset",
            Self::Unreplied => "unreplied",
            Self::Replied => "replied",
            Self::DnsQuery => "dns-query",
            Self::DnsDone => "dns-done",
            Self::Dns => "dns",
            Self::Sent => "sent",
            Self::Sending => "sending",
            Self::Finished => "finished",
            Self::CookieWait => "cookie-wait",
            Self::CookieEchoed => "cookie-echoed",
            Self::Associated => "associated",
            Self::ShutdownSent => "shutdown-sent",
            Self::ShutdownAckSent => "shutdown-ack-sent",
            Self::Ended => "ended",
            Self::ClientReset => "client-reset",
        }
    }

    /// Whose state it is.
    #[must_use]
    #[inline]
    pub const fn protocol(self) -> Protocol {
        match self as u8 {
            ..=7 | 15 | 22 => Protocol::TCP,
            8..=14 => Protocol::UDP,
            16.. => Protocol::SCTP,
        }
    }

    /// Whose packets do not change it, but for those that end a TCP connection: [`Direction::bit`] of each direction.
    #[must_use]
    #[inline]
    pub(super) const fn steady(self) -> u8 {
        match self {
            Self::Established | Self::Replied | Self::Dns => Direction::Forward.bit() | Direction::Reply.bit(),
            Self::Unreplied | Self::Sending => Direction::Forward.bit(),
            _ => 0,
        }
    }

    /// Over: the flow lingers for what is still on its way, and counts for nothing.
    #[must_use]
    #[inline]
    pub const fn is_closed(self) -> bool {
        matches!(self, Self::Closed | Self::Reset | Self::ClientReset | Self::Finished | Self::Ended)
    }

    /// Whether a full table may drop such a flow for another one.
    #[must_use]
    #[inline]
    pub const fn is_evictable(self) -> bool {
        matches!(
            self,
            Self::Opening
                | Self::SynAck
                | Self::Closed
                | Self::Reset
                | Self::ClientReset
                | Self::Unreplied
                | Self::DnsQuery
                | Self::DnsDone
                | Self::Sent
                | Self::Sending
                | Self::Finished
                | Self::CookieWait
                | Self::CookieEchoed
                | Self::Ended
        )
    }

    /// How long a flow may be idle, in ticks; `own` is the Service's `udp-timeout`.
    #[must_use]
    #[inline]
    pub fn timeout(self, timeouts: &Timeouts, own: Option<u32>) -> u32 {
        match self {
            Self::Opening | Self::SynAck => timeouts.tcp_opening,
            Self::Established => timeouts.tcp_established,
            // Of one that is finished the endpoint may go on to send, and the client to acknowledge.
            Self::HalfClosed | Self::Closing | Self::Finished => timeouts.tcp_transitory,
            Self::Closed | Self::Reset | Self::ClientReset => timeouts.tcp_closed,
            Self::Unreplied | Self::Sent => own.unwrap_or(timeouts.udp_unreplied),
            Self::Replied | Self::Sending => own.unwrap_or(timeouts.udp),
            Self::DnsQuery | Self::Dns => own.unwrap_or(timeouts.dns),
            Self::DnsDone => own.map_or(timeouts.dns_done, |own| own.min(timeouts.dns_done)),
            Self::CookieWait | Self::CookieEchoed => timeouts.sctp_opening,
            Self::Associated => timeouts.sctp_established,
            Self::ShutdownSent | Self::ShutdownAckSent => timeouts.sctp_closing,
            Self::Ended => timeouts.sctp_closed,
        }
    }

    /// The state after a UDP datagram.
    #[must_use]
    #[inline]
    pub(crate) const fn after_datagram(self, direction: Direction) -> Self {
        match (self, direction) {
            (Self::Unreplied, Direction::Reply) => Self::Replied,
            (Self::DnsQuery, Direction::Reply) => Self::DnsDone,
            (Self::DnsQuery | Self::DnsDone, _) => Self::Dns,
            (state, _) => state,
        }
    }

    /// The state after a packet of the client's where replies are not seen: what it sends tells what it got. `flags` are
    /// none for UDP.
    #[must_use]
    #[inline]
    pub(crate) const fn after_one_sided(self, flags: TcpFlags) -> Self {
        match self {
            Self::Sent => Self::Sending,
            Self::DnsDone => Self::Dns,
            Self::Sending | Self::Dns => self,
            _ if flags.contains(TcpFlags::RST) => Self::Reset,
            _ if flags.contains(TcpFlags::SYN) => self,
            _ if flags.contains(TcpFlags::FIN) => Self::Finished,
            Self::Opening if flags.contains(TcpFlags::ACK) => Self::Established,
            // Whoever goes on did not send that reset.
            Self::Reset => Self::Established,
            _ => self,
        }
    }

    /// The state after a TCP segment, and which directions have been seen to do what the state waits for: those that
    /// sent FIN, or, after a RST, those that went on.
    #[must_use]
    #[inline]
    pub(crate) fn after_segment(self, seen: u8, direction: Direction, flags: TcpFlags) -> (Self, u8) {
        // The common case first: data on an established connection.
        if self == Self::Established && !flags.intersects(TcpFlags::FIN.union(TcpFlags::RST)) {
            return (self, seen);
        }
        if flags.contains(TcpFlags::RST) {
            return match (self, direction) {
                (Self::Established | Self::HalfClosed | Self::Closing, Direction::Forward) => (Self::ClientReset, 0),
                (Self::ClientReset, Direction::Reply) => (Self::Reset, 0),
                _ if self.is_closed() => (self, seen),
                _ => (Self::Reset, 0),
            };
        }
        match self {
            // A SYN without ACK is of an endpoint that opens at the same time (RFC 9293 section 3.5).
            Self::Opening if direction == Direction::Reply && flags.contains(TcpFlags::SYN) => (Self::SynAck, 0),
            Self::SynAck
                if direction == Direction::Forward
                    && flags.contains(TcpFlags::ACK)
                    && !flags.contains(TcpFlags::SYN) =>
            {
                Self::Established.after_fin(0, direction, flags)
            }
            Self::Opening | Self::SynAck => (self, seen),
            Self::Established | Self::HalfClosed => self.after_fin(seen, direction, flags),
            // The last FIN came from one side; the other's next segment acknowledges it.
            Self::Closing if flags.contains(TcpFlags::ACK) && seen == direction.bit() => (Self::Closed, 0),
            // The endpoint takes a SYN that came after the reset.
            Self::ClientReset if direction == Direction::Reply && flags.contains(TcpFlags::SYN) => (Self::SynAck, 0),
            Self::Reset | Self::ClientReset if !flags.contains(TcpFlags::SYN) => match seen | direction.bit() {
                3 => (Self::Established, 0),
                seen => (self, seen),
            },
            _ => (self, seen),
        }
    }

    /// FINs of an established or half-closed connection. In [`FlowState::Closing`], `seen` is who is to acknowledge.
    fn after_fin(self, seen: u8, direction: Direction, flags: TcpFlags) -> (Self, u8) {
        if !flags.contains(TcpFlags::FIN) {
            return (self, seen);
        }
        match seen | direction.bit() {
            3 => (Self::Closing, direction.opposite().bit()),
            seen => (Self::HalfClosed, seen),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const F: Direction = Direction::Forward;
    const R: Direction = Direction::Reply;
    const SYN: TcpFlags = TcpFlags::SYN;
    const ACK: TcpFlags = TcpFlags::ACK;
    const FIN_ACK: TcpFlags = TcpFlags::FIN.union(TcpFlags::ACK);
    const SYN_ACK: TcpFlags = TcpFlags::SYN.union(TcpFlags::ACK);
    const RST: TcpFlags = TcpFlags::RST;

    fn after(segments: &[(Direction, TcpFlags)]) -> FlowState {
        let mut now = (FlowState::Opening, 0);
        for &(direction, flags) in segments {
            now = now.0.after_segment(now.1, direction, flags);
        }
        now.0
    }

    const OPENED: [(Direction, TcpFlags); 2] = [(R, SYN_ACK), (F, ACK)];

    fn after_open(segments: &[(Direction, TcpFlags)]) -> FlowState {
        after(&[&OPENED, segments].concat())
    }

    #[test]
    fn what_is_steady_stays_whatever_comes_but_fin_and_rst() {
        let states = (0..=u8::MAX).filter_map(FlowState::from_number);
        for (state, direction) in states.flat_map(|state| [(state, F), (state, R)]) {
            if state.steady() & direction.bit() == 0 {
                continue;
            }
            assert!(!state.is_closed());
            if state.protocol() != Protocol::TCP {
                assert_eq!(state.after_datagram(direction), state);
                continue;
            }
            for flags in (0..=u8::MAX).map(TcpFlags).filter(|flags| !flags.intersects(TcpFlags::FIN.union(RST))) {
                (0..4).for_each(|seen| assert_eq!(state.after_segment(seen, direction, flags), (state, seen)));
            }
        }
        assert_eq!(FlowState::Established.steady(), 3);
        assert_eq!((FlowState::Unreplied.steady(), FlowState::Opening.steady()), (F.bit(), 0));
    }

    #[test]
    fn a_handshake_establishes() {
        assert_eq!(after(&[]), FlowState::Opening);
        assert_eq!(after(&[(F, SYN)]), FlowState::Opening);
        assert_eq!(after(&[(F, ACK)]), FlowState::Opening);
        assert_eq!(after(&[(R, SYN_ACK)]), FlowState::SynAck);
        assert_eq!(after(&[(R, SYN_ACK), (F, SYN), (R, SYN_ACK)]), FlowState::SynAck);
        assert_eq!(after(&[(R, SYN_ACK), (F, ACK)]), FlowState::Established);
        assert_eq!(after(&[(R, SYN_ACK), (F, FIN_ACK)]), FlowState::HalfClosed);
        assert_eq!(
            after(&[(R, SYN), (F, SYN_ACK), (R, SYN_ACK), (F, ACK)]),
            FlowState::Established,
            "at the same time"
        );
    }

    #[test]
    fn a_connection_closes_when_both_fins_are_acknowledged() {
        assert_eq!(after_open(&[(F, FIN_ACK)]), FlowState::HalfClosed);
        assert_eq!(after_open(&[(F, FIN_ACK), (R, ACK), (F, FIN_ACK), (R, ACK)]), FlowState::HalfClosed);
        assert_eq!(after_open(&[(F, FIN_ACK), (R, FIN_ACK)]), FlowState::Closing);
        assert_eq!(after_open(&[(F, FIN_ACK), (R, FIN_ACK), (R, FIN_ACK)]), FlowState::Closing);
        assert_eq!(after_open(&[(F, FIN_ACK), (R, FIN_ACK), (F, ACK)]), FlowState::Closed);
        assert_eq!(after_open(&[(R, FIN_ACK), (F, ACK), (F, FIN_ACK), (R, ACK)]), FlowState::Closed);
        assert_eq!(after_open(&[(R, FIN_ACK), (F, FIN_ACK), (R, ACK), (F, ACK)]), FlowState::Closed);
    }

    #[test]
    fn a_reset_closes_and_traffic_of_both_sides_undoes_it() {
        assert_eq!(after(&[(R, RST)]), FlowState::Reset);
        assert_eq!(after_open(&[(F, RST)]), FlowState::ClientReset);
        assert_eq!(after_open(&[(F, RST), (R, ACK), (R, ACK)]), FlowState::ClientReset);
        assert_eq!(after_open(&[(F, RST), (F, SYN), (R, SYN_ACK), (F, ACK)]), FlowState::Established);
        assert_eq!(after_open(&[(F, RST), (R, ACK), (F, ACK)]), FlowState::Established);
        assert_eq!(after_open(&[(F, RST), (R, RST), (F, SYN)]), FlowState::Reset);
    }

    #[test]
    fn where_replies_are_not_seen_the_clients_packets_tell() {
        let after = |flags: &[TcpFlags]| flags.iter().fold(FlowState::Opening, |state, f| state.after_one_sided(*f));
        assert_eq!(after(&[SYN, SYN]), FlowState::Opening);
        assert_eq!(after(&[ACK, ACK]), FlowState::Established);
        assert_eq!(after(&[FIN_ACK]), FlowState::Finished);
        assert_eq!(after(&[ACK, FIN_ACK, ACK, SYN]), FlowState::Finished);
        assert_eq!(after(&[ACK, FIN_ACK, RST]), FlowState::Reset);
        assert_eq!(after(&[ACK, RST, SYN, RST]), FlowState::Reset);
        assert_eq!(after(&[RST, FIN_ACK]), FlowState::Finished);
        assert_eq!(after(&[ACK, RST, ACK]), FlowState::Established, "a reset that the client did not mean");
    }

    #[test]
    fn each_state_has_its_timeout() {
        let t = Timeouts::default();
        let all: Vec<_> = (0..=255).filter_map(FlowState::from_number).map(|s| (s, s.timeout(&t, None))).collect();
        assert_eq!(
            all,
            [
                (FlowState::Opening, t.tcp_opening),
                (FlowState::SynAck, t.tcp_opening),
                (FlowState::Established, t.tcp_established),
                (FlowState::HalfClosed, t.tcp_transitory),
                (FlowState::Closing, t.tcp_transitory),
                (FlowState::Closed, t.tcp_closed),
                (FlowState::Reset, t.tcp_closed),
                (FlowState::Unreplied, t.udp_unreplied),
                (FlowState::Replied, t.udp),
                (FlowState::DnsQuery, t.dns),
                (FlowState::DnsDone, t.dns_done),
                (FlowState::Dns, t.dns),
                (FlowState::Sent, t.udp_unreplied),
                (FlowState::Sending, t.udp),
                (FlowState::Finished, t.tcp_transitory),
                (FlowState::CookieWait, t.sctp_opening),
                (FlowState::CookieEchoed, t.sctp_opening),
                (FlowState::Associated, t.sctp_established),
                (FlowState::ShutdownSent, t.sctp_closing),
                (FlowState::ShutdownAckSent, t.sctp_closing),
                (FlowState::Ended, t.sctp_closed),
                (FlowState::ClientReset, t.tcp_closed),
            ]
        );
        assert_eq!(FlowState::Replied.timeout(&t, Some(7)), 7);
        assert_eq!(FlowState::Established.timeout(&t, Some(7)), t.tcp_established);
    }

    #[test]
    fn one_dns_query_with_one_reply_is_done() {
        let dns = |steps: &[Direction]| steps.iter().fold(FlowState::DnsQuery, |s, &d| s.after_datagram(d));
        assert_eq!(dns(&[R]), FlowState::DnsDone);
        assert_eq!(dns(&[F]), FlowState::Dns);
        assert_eq!(dns(&[R, R]), FlowState::Dns);
        assert_eq!(dns(&[R, F, R]), FlowState::Dns);
        assert_eq!(FlowState::Unreplied.after_datagram(F), FlowState::Unreplied);
        assert_eq!(FlowState::Unreplied.after_datagram(R).after_datagram(F), FlowState::Replied);
    }
}
