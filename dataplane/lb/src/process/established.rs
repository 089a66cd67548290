//! Packets of flows that this worker owns: the entry has the whole rewrite, the endpoint's row the next hop.

use wire::tunnel::{self, Outer, Wrapping};
use wire::{Addr, MacAddr, Protocol, Rewrite, Tags, TcpFlags, Transport};

use super::{Former, Turn, key};
use crate::flow::{Direction, FlowKey, FlowRef, FlowState};
use crate::health::Standing;
use crate::id::PortId;
use crate::model::Mode;
use crate::tables::{BackendRow, BackendState, Hop, HopState, MssClamp};
use crate::time::Tick;
use crate::time_wait::Numbers;
use crate::verdict::{DropReason, Frame, Verdict};

/// Shortest Ethernet frame without its check sequence (IEEE 802.3 clause 3.2.8); NICs pad up to it.
pub(super) const SHORTEST_FRAME: usize = 60;

const SYN_ACK: TcpFlags = TcpFlags::SYN.union(TcpFlags::ACK);

/// Where a frame goes on the link.
pub(super) struct Way {
    pub port: PortId,
    src: MacAddr,
    dst: MacAddr,
    /// VLAN tags that frames have there.
    pub tags: Tags,
    /// What goes around the packet.
    pub outer: Option<Outer>,
    /// Largest packet that can go there, what goes around it not counted.
    pub mtu: u16,
}

impl Way {
    /// By a next hop, with nothing around the packet. Inlined, so that it is made where it stays: who reads as a whole what
    /// was just written field by field waits until that is in the cache.
    #[inline(always)]
    fn by(hop: &Hop) -> Self {
        Self { port: hop.port, src: hop.src_mac, dst: hop.dst_mac, tags: hop.tags, outer: None, mtu: hop.mtu }
    }

    /// Sends a frame whose packet is rewritten and stands between `l3` and `end`.
    #[inline]
    fn send(&self, frame: &mut Frame<'_>, l3: u16, end: u16) -> Verdict {
        self.address(frame.room);
        if self.outer.is_some() {
            let Some(end) = self.wrap(frame.room, l3, end) else {
                return Verdict::Drop(DropReason::NoRoom);
            };
            frame.len = usize::from(end);
            return Verdict::Tx(self.port);
        }
        // What stood behind the packet is padding at best.
        frame.len = frame.len.min(usize::from(end).max(SHORTEST_FRAME));
        Verdict::Tx(self.port)
    }

    /// Writes the link-layer addresses.
    #[inline]
    pub fn address(&self, room: &mut [u8]) {
        wire::set_ethernet(room, self.src, self.dst);
    }

    /// Puts around the packet between `l3` and `end` what goes around it; gives where that ends, or `None` where there is no
    /// room.
    #[inline]
    pub fn wrap(&self, room: &mut [u8], l3: u16, end: u16) -> Option<u16> {
        self.outer.as_ref().map_or(Some(end), |outer| tunnel::encapsulate(room, l3, end, outer))
    }

    /// Octets of what goes around a packet.
    pub fn around(&self) -> usize {
        self.outer.as_ref().map_or(0, |outer| usize::from(outer.len()))
    }
}

/// How long a SYN after a reset does not open the flow anew: until a client sends its SYN again (RFC 6298 section 2).
const FRESH_RESET: u32 = Tick::from_millis(900);

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
        let Some(row) = self.tables.backend(self.state.flows.entry(flow).backend_id()) else {
            self.end(flow);
            return None;
        };
        let moves = self.moves(flow, row);
        if moves && direction == Direction::Forward {
            self.state.counters.flows_moved += 1;
            self.end(flow);
            return None;
        }
        let reopens = self.state.flows.reopens(flow, direction, t.may_open());
        let doubtful = reopens && self.is_doubtful(flow, row);
        if doubtful && !self.state.shared.rates.take(&t.src, self.tables.new_flows_per_source, self.now) {
            return Some(Verdict::Drop(DropReason::SourceRate));
        }
        if reopens && !doubtful {
            let entry = self.state.flows.entry(flow);
            let (backend, snat) = ((row.address, row.port), (entry.snat(), entry.snat_port()));
            self.former = Some(Former { key: key(t), backend, snat });
            self.end(flow);
            return None;
        }
        if t.is_tcp() && self.state.flows.entry(flow).state() == FlowState::Opening {
            match direction {
                Direction::Forward if t.tcp_flags.opens() => self.syn_again(frame, t, flow),
                Direction::Forward => {}
                Direction::Reply => {
                    if let Some(verdict) = self.answer_to_syn(frame, t, flow) {
                        return Some(verdict);
                    }
                }
            }
        }
        if t.is_sctp() && !self.association_goes_on(frame, t, flow, direction) {
            return None;
        }
        if let Some(refusal) = self.ttl_ended(frame, t, flow, direction) {
            return Some(refusal);
        }
        let way = match self.way(flow, direction, row) {
            Ok(way) => way,
            Err(reason) => return Some(Verdict::Drop(reason)),
        };
        if !self.fits_or_is_cut(frame, &t.ip(), &way) {
            let from = self.sender_of_errors(flow, direction);
            return Some(self.too_big(frame, t, from, way.mtu));
        }
        if direction == Direction::Reply && t.tcp_flags.contains(SYN_ACK) {
            self.note_handshake(flow);
        }
        if t.tcp_flags.contains(TcpFlags::RST) && self.is_guessed(frame, t, flow, direction) {
            self.state.counters.resets_not_believed += 1;
        } else if !doubtful {
            self.note(frame, t, flow, direction, moves);
        }
        Some(self.send(frame, t, flow, direction, &way))
    }

    /// Whether a SYN after the client's reset is for the endpoint to judge, which may not have believed the reset, as it was guessed: then
    /// it challenges the SYN, and the client goes on (RFC 5961 sections 3 and 4). Opening the flow anew would take that
    /// connection away from it. So it is while the reset is fresh, or the endpoint went on after it, and the endpoint lives.
    #[cold]
    fn is_doubtful(&self, flow: FlowRef, row: &BackendRow) -> bool {
        let entry = self.state.flows.entry(flow);
        entry.state() == FlowState::ClientReset
            && row.state == BackendState::Usable
            && self.state.shared.health.standing(row.id, self.tick) == Standing::Well
            && (entry.went_on(Direction::Reply) || self.tick.since(entry.last_seen()) < FRESH_RESET)
    }

    /// Whether a reset cannot be one that its receiver accepts: who gets it judges it exactly, here it changes nothing.
    #[cold]
    fn is_guessed(&self, frame: &Frame<'_>, t: &Transport, flow: FlowRef, direction: Direction) -> bool {
        !self.state.flows.entry(flow).may_accept_reset(direction, t.seq(frame.room))
    }

    /// What a packet tells of its flow.
    #[inline]
    fn note(&mut self, frame: &Frame<'_>, t: &Transport, flow: FlowRef, direction: Direction, moves: bool) {
        if !moves {
            // What the endpoint still says reaches the client, but does not keep the flow there.
            if t.is_sctp() {
                self.note_chunks(frame, t, flow, direction);
            } else {
                self.state.flows.packet(flow, direction, t.tcp_flags, self.tick);
            }
        }
        if t.tcp_flags.contains(TcpFlags::ACK) && !t.tcp_flags.contains(TcpFlags::RST) {
            self.state.flows.entry_mut(flow).note_ack(direction, t.ack(frame.room));
        }
        if direction == Direction::Forward {
            if t.tcp_flags.contains(TcpFlags::FIN) {
                self.note_time_wait(frame, t, flow);
            }
            self.refresh_client_hop(flow, t.src_mac, frame.port);
        }
    }

    /// Whether the flow leaves its endpoint with the client's next datagram: it is UDP's, the endpoint was removed, and
    /// another one serves. Otherwise the client would talk to nobody for as long as it goes on talking (kubernetes#71514).
    #[inline]
    fn moves(&self, flow: FlowRef, row: &BackendRow) -> bool {
        row.state == BackendState::Removed && {
            let entry = self.state.flows.entry(flow);
            let service = || self.tables.service(entry.service());
            entry.protocol() == Protocol::UDP && service().is_some_and(|service| !service.usable.is_empty())
        }
    }

    /// The endpoint answers a SYN or an INIT; only its first answer tells how long it takes.
    #[cold]
    pub(super) fn note_handshake(&mut self, flow: FlowRef) {
        let entry = self.state.flows.entry(flow);
        if matches!(entry.state(), FlowState::Opening | FlowState::CookieWait)
            && let Some(microseconds) = entry.since_opened_us(self.now)
        {
            self.state.handshakes.record(microseconds);
        }
    }

    /// The client's FIN: if the endpoint's came before it, the endpoint is in TIME_WAIT next.
    #[cold]
    fn note_time_wait(&mut self, frame: &Frame<'_>, t: &Transport, flow: FlowRef) {
        let entry = self.state.flows.entry(flow);
        if entry.mode() != Mode::Nat || !matches!(entry.state(), FlowState::Closing | FlowState::Closed) {
            return;
        }
        let after = t.seq(frame.room).wrapping_add(t.payload_len(frame.room) as u32 + 1);
        let last = Numbers { sequence: after, timestamp: t.timestamp(frame.room) };
        let replies = self.state.flows.hash(&entry.key(Direction::Reply));
        self.state.time_waits.note(replies, last, self.tick);
    }

    pub(super) fn end(&mut self, flow: FlowRef) {
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
        let from = self.sender_of_errors(flow, direction);
        Some(self.time_exceeded(frame, t, from))
    }

    /// The address of ours that errors about packets of a direction come from: one that their sender knows.
    fn sender_of_errors(&self, flow: FlowRef, direction: Direction) -> Addr {
        let entry = self.state.flows.entry(flow);
        match (direction, entry.mode()) {
            (Direction::Reply, Mode::Nat) => entry.snat(),
            _ => entry.vip(),
        }
    }

    /// Where packets of a direction of the flow go, if they can go there.
    #[inline]
    pub(super) fn way(&self, flow: FlowRef, direction: Direction, row: &BackendRow) -> Result<Way, DropReason> {
        let entry = self.state.flows.entry(flow);
        match direction {
            Direction::Forward => self.way_to(row, entry.mode(), || entry.key(Direction::Forward)),
            Direction::Reply => {
                let port = entry.client_nic();
                let row = self.tables.ports.get(usize::from(port.0)).ok_or(DropReason::NoRoute)?;
                Ok(Way {
                    port,
                    src: row.mac,
                    dst: entry.client_mac(),
                    tags: entry.client_tags(),
                    outer: None,
                    mtu: entry.client_tags().mtu(row.mtu),
                })
            }
        }
    }

    /// Where packets to an endpoint go in a mode, if they can go there; `key` is of what the client sends.
    #[inline]
    pub(super) fn way_to(
        &self,
        row: &BackendRow,
        mode: Mode,
        key: impl FnOnce() -> FlowKey,
    ) -> Result<Way, DropReason> {
        passable(&row.hop, mode)?;
        match mode.wrapping() {
            None => Ok(Way::by(&row.hop)),
            Some(wrapping) => self.tunnel_to(row, wrapping, &key()),
        }
    }

    fn tunnel_to(&self, row: &BackendRow, wrapping: Wrapping, key: &FlowKey) -> Result<Way, DropReason> {
        let entropy = self.state.flows.hash(key).0 as u32;
        let src = self.tables.tunnels.towards(&row.address, entropy).ok_or(DropReason::NoTunnelSource)?;
        let outer = Outer { src, dst: row.address, wrapping, entropy };
        Ok(Way { mtu: row.hop.mtu.saturating_sub(outer.len()), outer: Some(outer), ..Way::by(&row.hop) })
    }

    /// Sends a frame on a way: what stands between `l3` and `end` is ready.
    #[inline]
    pub(super) fn send_by(&self, way: &Way, frame: &mut Frame<'_>, l3: u16, end: u16) -> Verdict {
        self.out.set(way.tags);
        way.send(frame, l3, end)
    }

    /// Sends a packet on as it is, but for its TTL: to an endpoint that answers past us.
    pub(super) fn send_untouched(&mut self, frame: &mut Frame<'_>, t: &Transport, way: &Way) -> Verdict {
        let rewrite = Rewrite::nothing(t.src, t.dst, t.ports);
        wire::rewrite(frame.room, t, &rewrite, self.checksum_mode(frame.port));
        self.note_first();
        self.send_whole_or_cut(frame, &t.ip(), way)
    }

    /// Replies follow the client: to the hop that its last packet came from. A group address is nobody's.
    #[inline]
    pub(super) fn refresh_client_hop(&mut self, flow: FlowRef, mac: MacAddr, port: PortId) {
        let entry = self.state.flows.entry_mut(flow);
        let same = entry.client_mac() == mac && entry.client_nic() == port && entry.client_tags() == self.tags;
        if !same && !is_group(mac) {
            entry.set_client_hop(mac, port);
            entry.set_client_tags(self.tags);
            self.state.counters.client_hops_changed += 1;
        }
    }

    /// Sends a packet of a flow that knows of it already; that it fits on its way was seen.
    #[inline]
    pub(super) fn send(
        &mut self,
        frame: &mut Frame<'_>,
        t: &Transport,
        flow: FlowRef,
        direction: Direction,
        way: &Way,
    ) -> Verdict {
        let entry = self.state.flows.entry(flow);
        let rewrite = entry.rewrite(direction, t.ipv6);
        if t.part && t.is_sctp() && rewrite.ports != t.ports {
            // Its CRC covers parts that are still to come.
            return Verdict::Drop(DropReason::FragmentCrc);
        }
        wire::rewrite(frame.room, t, &rewrite, self.checksum_mode(frame.port));
        if t.tcp_flags.contains(TcpFlags::SYN) {
            self.clamp_mss(frame, t, way.mtu, entry.mode());
        }
        if t.part || !fits(t.end - t.l3, way.mtu) {
            self.renumber(frame, t, &rewrite);
        }
        self.send_whole_or_cut(frame, &t.ip(), way)
    }

    /// Offers no longer segments than wanted; the checksum is complete by now. `mtu` is of where the SYN goes. Where the
    /// endpoint answers past us nobody here knows what fits on the way of those segments.
    fn clamp_mss(&self, frame: &mut Frame<'_>, t: &Transport, mtu: u16, mode: Mode) {
        let most = match self.tables.mss_clamp {
            MssClamp::Off => return,
            MssClamp::Auto if mode.is_direct() => return,
            MssClamp::Most(most) => most,
            MssClamp::Auto => {
                let own = self.tables.ports.get(usize::from(frame.port.0)).map_or(mtu, |row| self.tags.mtu(row.mtu));
                mtu.min(own).saturating_sub(if t.ipv6 { 60 } else { 40 })
            }
        };
        wire::clamp_mss(frame.room, t, most);
    }
}

/// Whether a frame can be sent to a next hop in a mode.
#[inline]
pub(super) fn passable(hop: &Hop, mode: Mode) -> Result<(), DropReason> {
    match hop.state {
        // A router would send it to the frontend's address again.
        HopState::Resolved if mode == Mode::DsrL2 && !hop.on_link => Err(DropReason::NotOnLink),
        HopState::Resolved => Ok(()),
        HopState::Unresolved => Err(DropReason::NextHopUnresolved),
        HopState::NoRoute => Err(DropReason::NoRoute),
    }
}

/// Whether an IP packet of so many octets is within an MTU.
#[inline]
pub(super) fn fits(len: u16, mtu: u16) -> bool {
    len <= mtu
}

/// Whether this is a broadcast or multicast address (the individual/group bit).
#[inline]
pub(super) fn is_group(mac: MacAddr) -> bool {
    mac.0[0] & 1 != 0
}
