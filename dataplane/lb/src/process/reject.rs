//! Resets and ICMP errors of our own, written over the packet that they answer, within their rate.

use wire::{Addr, IcmpErrorKind, Protocol, TcpFlags, Transport, reply};

use super::Turn;
use crate::verdict::{DropReason, Frame, Verdict};

impl Turn<'_> {
    /// Nobody serves this: TCP RST, SCTP ABORT (RFC 9260 section 8.4) or ICMP port unreachable, in the name of the packet's
    /// destination.
    pub(super) fn reject(&mut self, frame: &mut Frame<'_>, t: &Transport) -> Verdict {
        if t.tcp_flags.contains(TcpFlags::RST) {
            // Never a reset for a reset (RFC 9293 section 3.10.7.1).
            return Verdict::Drop(DropReason::NoFlow);
        }
        if !t.checksum_holds(frame.room, self.checksum_mode(frame.port)) {
            // Who knows what it was, and who sent it (RFC 9293 section 3.1).
            return Verdict::Drop(DropReason::BadChecksum);
        }
        let limiter = if t.protocol == Protocol::UDP { &mut self.state.icmp_errors } else { &mut self.state.resets };
        if !limiter.take(self.now) {
            return Verdict::Drop(DropReason::RejectRateLimited);
        }
        let counters = &mut self.state.counters;
        let (answer, sent) = match t.protocol {
            Protocol::TCP => (reply::tcp_reset(frame.room, t), &mut counters.resets_sent),
            Protocol::SCTP => (reply::sctp_out_of_the_blue(frame.room, t), &mut counters.aborts_sent),
            _ => (reply::port_unreachable(frame.room, t), &mut counters.unreachables_sent),
        };
        let Some(len) = answer else {
            return Verdict::Drop(if t.is_sctp() { DropReason::NoFlow } else { DropReason::Martian });
        };
        *sent += 1;
        self.answer(frame, len)
    }

    /// Drops a packet that would have opened a flow. Who is refused for want of room, or has its share, is told: a client
    /// then tries another way at once instead of waiting (RFC 5508 REQ-8, code 13; RFC 4443 section 3.1, code 1). Not who
    /// opens too fast, for it gets in with its next try; nor who may not know that anything is here.
    #[cold]
    pub(super) fn refuse(&mut self, frame: &mut Frame<'_>, t: &Transport, reason: DropReason) -> Verdict {
        let counters = &mut self.state.counters;
        let refused = match reason {
            DropReason::SnatExhausted => &mut counters.refused_snat_exhausted,
            DropReason::SourceLimit => &mut counters.refused_source_limit,
            DropReason::FlowTableFull => &mut counters.refused_flow_table_full,
            DropReason::DirectoryFull => &mut counters.refused_directory_full,
            _ => return Verdict::Drop(reason),
        };
        *refused += 1;
        if !self.state.refusals.take(self.now) {
            return Verdict::Drop(reason);
        }
        let Some(len) = reply::icmp_error(frame.room, &t.ip(), IcmpErrorKind::Prohibited, t.dst) else {
            return Verdict::Drop(reason);
        };
        self.state.counters.prohibiteds_sent += 1;
        self.answer(frame, len)
    }

    /// The packet is longer than its next hop takes, says `from`, so that the sender learns the path's MTU (RFC 1191, RFC
    /// 8201). IPv4 packets that may be cut get no error (RFC 792), and come here only where they cannot be.
    pub(super) fn too_big(&mut self, frame: &mut Frame<'_>, t: &Transport, from: Addr, mtu: u16) -> Verdict {
        if !t.may_not_be_fragmented(frame.room) || !self.state.icmp_errors.take(self.now) {
            return Verdict::Drop(DropReason::TooBig);
        }
        let kind = IcmpErrorKind::PacketTooBig { mtu };
        let Some(len) = reply::icmp_error(frame.room, &t.ip(), kind, from) else {
            return Verdict::Drop(DropReason::TooBig);
        };
        self.state.counters.too_bigs_sent += 1;
        self.answer(frame, len)
    }

    /// The packet's TTL or hop limit ended here, says `from`.
    pub(super) fn time_exceeded(&mut self, frame: &mut Frame<'_>, t: &Transport, from: Addr) -> Verdict {
        if !self.state.icmp_errors.take(self.now) {
            return Verdict::Drop(DropReason::TtlExceeded);
        }
        let Some(len) = reply::time_exceeded(frame.room, &t.ip(), from) else {
            return Verdict::Drop(DropReason::TtlExceeded);
        };
        self.state.counters.time_exceededs_sent += 1;
        self.answer(frame, len)
    }

    /// Sends an answer that stands in the packet's place, from the NIC's own link-layer address whatever the packet was
    /// for.
    pub(super) fn answer(&self, frame: &mut Frame<'_>, len: usize) -> Verdict {
        if let Some(ours) = self.port_mac(frame.port) {
            wire::set_source(frame.room, ours);
        }
        frame.len = len;
        Verdict::Tx(frame.port)
    }
}
