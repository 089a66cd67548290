//! Packets of flows that this worker owns: the entry has the whole rewrite, the endpoint's row the next hop.

use wire::{MacAddr, TcpFlags, Transport};

use super::{Former, Turn, key};
use crate::flow::{Direction, FlowRef, FlowState};
use crate::id::PortId;
use crate::model::Mode;
use crate::tables::{BackendRow, BackendState, Hop, HopState};
use crate::verdict::{DropReason, Frame, Verdict};

/// Shortest Ethernet frame without its check sequence (IEEE 802.3 clause 3.2.8); NICs pad up to it.
pub(super) const SHORTEST_FRAME: usize = 60;

const SYN_ACK: TcpFlags = TcpFlags::SYN.union(TcpFlags::ACK);

/// Where a frame goes on the link.
struct Way {
    port: PortId,
    src: MacAddr,
    dst: MacAddr,
    mtu: u16,
}

impl<'a> Turn<'a> {
    /// Sends a packet of a flow on. `None`: the flow is over, and the packet is one without a flow.
    #[inline]
    pub(super) fn established(
        &mut self,
        frame: &mut Frame<'_>,
        t: &Transport,
        flow: FlowRef,
        direction: Direction,
    ) -> Option<Verdict> {
        let Some(row) = self.row_of(flow) else {
            self.end(flow);
            return None;
        };
        if self.state.flows.reopens(flow, direction, t.tcp_flags) {
            let entry = self.state.flows.entry(flow);
            let (backend, snat) = ((row.address, row.port), (entry.snat(), entry.snat_port()));
            self.former = Some(Former { key: key(t), backend, snat });
            self.end(flow);
            return None;
        }
        if let Some(refusal) = self.ttl_ended(frame, t, flow, direction) {
            return Some(refusal);
        }
        let way = match self.way(flow, direction, &row.hop, t) {
            Ok(way) => way,
            Err(reason) => return Some(Verdict::Drop(reason)),
        };
        if direction == Direction::Reply && t.tcp_flags.contains(SYN_ACK) {
            self.note_handshake(flow);
        }
        self.state.flows.packet(flow, direction, t.tcp_flags, self.tick);
        if direction == Direction::Forward {
            self.refresh_client_hop(flow, t.src_mac, frame.port);
        }
        Some(self.send(frame, t, flow, direction, &way))
    }

    /// Sends the packet that opened a flow; the flow knows of it already.
    pub(super) fn send_first(&self, frame: &mut Frame<'_>, t: &Transport, flow: FlowRef, hop: &Hop) -> Verdict {
        match self.way(flow, Direction::Forward, hop, t) {
            Ok(way) => self.send(frame, t, flow, Direction::Forward, &way),
            Err(reason) => Verdict::Drop(reason),
        }
    }

    /// The endpoint's row, unless the flow must leave the endpoint.
    #[inline]
    fn row_of(&mut self, flow: FlowRef) -> Option<&'a BackendRow> {
        let entry = self.state.flows.entry(flow);
        let row = self.tables.backend(entry.backend_id())?;
        if row.state == BackendState::Removed && !entry.state().is_tcp() {
            let service = self.tables.service(entry.service());
            if service.is_some_and(|service| !service.usable.is_empty()) {
                self.state.counters.flows_moved += 1;
                return None;
            }
        }
        Some(row)
    }

    /// The endpoint answers a SYN; only its first answer tells how long it takes.
    #[cold]
    fn note_handshake(&mut self, flow: FlowRef) {
        let entry = self.state.flows.entry(flow);
        if entry.state() == FlowState::Opening
            && let Some(microseconds) = entry.since_opened_us(self.now)
        {
            self.state.handshakes.record(microseconds);
        }
    }

    fn end(&mut self, flow: FlowRef) {
        self.state.flows.remove(flow);
        self.state.counters.flows_closed += 1;
    }

    /// The answer to a packet whose TTL ends here. It comes from an address of ours that the sender knows.
    #[inline]
    fn ttl_ended(
        &mut self,
        frame: &mut Frame<'_>,
        t: &Transport,
        flow: FlowRef,
        direction: Direction,
    ) -> Option<Verdict> {
        if t.ttl > 1 {
            return None;
        }
        let entry = self.state.flows.entry(flow);
        let from = match (direction, entry.mode()) {
            (Direction::Reply, Mode::Nat) => entry.snat(),
            _ => entry.vip(),
        };
        Some(self.time_exceeded(frame, t, from))
    }

    /// Where a packet of the flow goes, if it fits and can go there.
    #[inline]
    fn way(&self, flow: FlowRef, direction: Direction, hop: &Hop, t: &Transport) -> Result<Way, DropReason> {
        let way = match direction {
            Direction::Forward => {
                passable(hop)?;
                Way { port: hop.port, src: hop.src_mac, dst: hop.dst_mac, mtu: hop.mtu }
            }
            Direction::Reply => {
                let entry = self.state.flows.entry(flow);
                let port = entry.client_nic();
                let row = self.tables.ports.get(usize::from(port.0)).ok_or(DropReason::NoRoute)?;
                Way { port, src: row.mac, dst: entry.client_mac(), mtu: row.mtu }
            }
        };
        if fits(t, way.mtu) { Ok(way) } else { Err(DropReason::TooBig) }
    }

    /// Replies follow the client: to the hop that its last packet came from. A group address is nobody's.
    #[inline]
    fn refresh_client_hop(&mut self, flow: FlowRef, mac: MacAddr, port: PortId) {
        let entry = self.state.flows.entry_mut(flow);
        if (entry.client_mac() != mac || entry.client_nic() != port) && !is_group(mac) {
            entry.set_client_hop(mac, port);
            self.state.counters.client_hops_changed += 1;
        }
    }

    #[inline]
    fn send(&self, frame: &mut Frame<'_>, t: &Transport, flow: FlowRef, direction: Direction, way: &Way) -> Verdict {
        let rewrite = self.state.flows.entry(flow).rewrite(direction, t.ipv6);
        wire::rewrite(frame.room, t, &rewrite, self.checksum_mode(frame.port));
        wire::set_ethernet(frame.room, way.src, way.dst);
        // What stood behind the packet is padding at best.
        frame.len = frame.len.min(usize::from(t.end).max(SHORTEST_FRAME));
        Verdict::Tx(way.port)
    }
}

/// Whether a frame can be sent to a next hop.
#[inline]
pub(super) fn passable(hop: &Hop) -> Result<(), DropReason> {
    match hop.state {
        HopState::Resolved => Ok(()),
        HopState::Unresolved => Err(DropReason::NextHopUnresolved),
        HopState::NoRoute => Err(DropReason::NoRoute),
    }
}

/// Whether the IP packet is within an MTU.
#[inline]
pub(super) fn fits(t: &Transport, mtu: u16) -> bool {
    t.end - t.l3 <= mtu
}

/// Whether this is a broadcast or multicast address (the individual/group bit).
#[inline]
pub(super) fn is_group(mac: MacAddr) -> bool {
    mac.0[0] & 1 != 0
}
