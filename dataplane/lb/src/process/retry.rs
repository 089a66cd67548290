//! Connect retry: an opening connection that its endpoint refuses, or leaves unanswered, goes to another one, and the
//! client sees one connection.
//!
//! The SYN alone is sent again, as it came; what it opens is the same flow, whose key of replies and rewrite change. So this
//! is done only while nothing is established: before any answer to the SYN itself was let through, and never with data in
//! the SYN, which an endpoint might act upon (RFC 7413). The endpoint that lost is remembered for a while: its late answer
//! is reset (RFC 9293 section 3.10.7.1) and never reaches the client.
//!
//! An answer that acknowledges something else is of a former connection that the endpoint remembers (a challenge ACK of
//! TIME_WAIT: RFC 9293 section 3.10.7.4, RFC 5961 section 4). As the client would, it is answered by a reset (section
//! 3.10.7.3, SYN-SENT), which ends that connection, and the SYN is sent again at once rather than when the client gives up
//! waiting.

use wire::{Addr, Packet, Port, Quote, TcpFlags, Transport, reply};

use super::Turn;
use super::emit::Emission;
use super::established::passable;
use super::open::opening;
use crate::attempts::{AttemptRef, Due, Loser, SHORTEST_WAIT_MS};
use crate::directory::Claim;
use crate::flow::{Direction, FlowHash, FlowRef, FlowState};
use crate::health::Standing;
use crate::id::BackendId;
use crate::model::Mode;
use crate::select::Opening;
use crate::tables::{BackendRow, BackendState, ServiceTable};
use crate::verdict::{DropReason, Frame, Verdict};

const ETHERNET: usize = 14;
const SYN_ACK: TcpFlags = TcpFlags::SYN.union(TcpFlags::ACK);
/// SYNs with less to live may end behind us, and their silence would tell nothing of the endpoint.
const LEAST_TTL: u8 = 16;
/// How many times its usual time an endpoint has for its answer.
const PATIENCE: u64 = 3;

impl Turn<'_> {
    /// The endpoint for a connection that opens, given the one that was chosen: another where that is set aside or was silent
    /// just now, unless all are.
    pub(super) fn unless_aside(&mut self, service: &ServiceTable, opening: &Opening, chosen: BackendId) -> BackendId {
        let state = &mut *self.state;
        let (health, tick, silent) = (&state.shared.health, self.tick, self.silent.take());
        if health.takes(chosen, tick) && silent != Some(chosen) {
            return chosen;
        }
        let mut may = |id| id != chosen && health.takes(id, tick);
        let next = state.selector.another(service, &self.tables.selection, opening, &mut may).unwrap_or(chosen);
        if let (Some(_), Some(timeout)) = (silent, service.affinity) {
            state.shared.affinity.put(&opening.source, service.id, next, tick, timeout);
        }
        next
    }

    /// Keeps the SYN of a flow that was just opened or begun anew, if it may be sent again.
    pub(super) fn keep_syn(&mut self, frame: &Frame<'_>, t: &Transport, flow: FlowRef, backend: BackendId) {
        self.state.retries.open(self.now);
        let has_payload = t.payload_len(&frame.room[..frame.len]) > 0;
        // Judging it takes longer than all else; where there is no room that tells nothing.
        if has_payload || self.state.attempts.has_room() && !self.is_for_an_answer(frame, t) {
            return;
        }
        let packet = &frame.room[usize::from(t.l3)..usize::from(t.end)];
        let wait_ms = self.wait_ms(backend);
        let kept = self.state.attempts.keep(flow, packet, self.now, wait_ms);
        self.state.counters.syns_not_kept += u64::from(kept.is_none());
        self.state.flows.entry_mut(flow).set_kept_syn(kept.map(AttemptRef::number));
    }

    /// Whether an endpoint that lives answers what opens a flow: it gets there, and is not dropped as damaged, or for want of
    /// a key (RFC 2385, RFC 5925). Of anything else silence tells nothing.
    pub(super) fn is_for_an_answer(&self, frame: &Frame<'_>, t: &Transport) -> bool {
        let plain = t.l4 - t.l3 == if t.ipv6 { 40 } else { 20 };
        let bytes = &frame.room[..frame.len];
        plain
            && t.ttl >= LEAST_TTL
            && !t.part
            && t.needs_no_key(bytes)
            && t.checksum_holds(bytes, self.checksum_mode(frame.port))
    }

    /// The client sends another SYN while its flow opens: a new connection, if it begins elsewhere.
    #[cold]
    pub(super) fn syn_again(&mut self, frame: &Frame<'_>, t: &Transport, flow: FlowRef) {
        let Some(at) = self.kept(flow) else { return };
        if self.state.attempts.seq(at) != t.seq(frame.room) {
            self.state.attempts.forget(at);
            let backend = self.state.flows.entry(flow).backend_id();
            self.keep_syn(frame, t, flow, backend);
        }
    }

    /// What an endpoint sends to a flow that opens; `None`: it goes on to the client.
    #[cold]
    pub(super) fn answer_to_syn(&mut self, frame: &mut Frame<'_>, t: &Transport, flow: FlowRef) -> Option<Verdict> {
        let flags = t.tcp_flags;
        let kept = self.kept(flow);
        let expected = kept.map(|at| self.state.attempts.seq(at).wrapping_add(1));
        let fits = flags.contains(TcpFlags::ACK) && expected.is_none_or(|expected| t.ack(frame.room) == expected);
        if flags.contains(TcpFlags::RST) {
            return self.refused(frame, flow, kept, fits);
        }
        if !fits && flags.contains(TcpFlags::ACK) {
            return self.challenged(frame, t, kept?);
        }
        if fits && flags.contains(SYN_ACK) {
            self.won(flow, kept);
        }
        None
    }

    /// An endpoint answers a SYN by a reset; whether that `fits` it.
    fn refused(
        &mut self,
        frame: &mut Frame<'_>,
        flow: FlowRef,
        kept: Option<AttemptRef>,
        fits: bool,
    ) -> Option<Verdict> {
        if !fits {
            // RFC 9293 section 3.10.7.3: without the SYN's number acknowledged it is dropped.
            return kept.map(|_| Verdict::Drop(DropReason::UnacceptableReset));
        }
        self.endpoint_failed(flow);
        self.go_on(kept?, flow, frame)
    }

    /// An error says of a flow's SYN that its endpoint cannot be reached: as in SYN-SENT, that ends the attempt (RFC 5461
    /// section 4). `None`: the client is told.
    #[cold]
    pub(super) fn unreachable(&mut self, frame: &mut Frame<'_>, quote: &Quote, flow: FlowRef) -> Option<Verdict> {
        let at = self.kept(flow)?;
        // RFC 5927 section 4.1: only of what was sent.
        if quote.tcp_seq(frame.room) != self.state.attempts.seq(at) {
            return None;
        }
        self.endpoint_failed(flow);
        self.go_on(at, flow, frame)
    }

    /// Sends a SYN to the next endpoint in a frame that is at hand; `None`, and it is kept no longer, if there is none.
    fn go_on(&mut self, at: AttemptRef, flow: FlowRef, frame: &mut Frame<'_>) -> Option<Verdict> {
        match self.retry(at, flow, frame.room) {
            Some(Emission { len, port, .. }) => {
                frame.len = len;
                Some(Verdict::Tx(port))
            }
            None => {
                self.state.attempts.forget(at);
                None
            }
        }
    }

    /// An endpoint answers something else than the SYN.
    fn challenged(&mut self, frame: &mut Frame<'_>, t: &Transport, at: AttemptRef) -> Option<Verdict> {
        if !self.state.attempts.repeat(at) {
            return None;
        }
        let len = reply::tcp_reset(frame.room, t)?;
        self.state.attempts.wait(at, self.now, 0);
        self.state.counters.challenges_reset += 1;
        Some(self.answer(frame, len))
    }

    /// An endpoint answers the SYN, or an INIT.
    pub(super) fn won(&mut self, flow: FlowRef, kept: Option<AttemptRef>) {
        let entry = self.state.flows.entry(flow);
        let (backend, shared) = (entry.backend_id(), &self.state.shared);
        shared.health.answered(backend, self.tick);
        if let Some(microseconds) = entry.since_opened_us(self.now) {
            shared.health.took(backend, microseconds / 1000);
        }
        if let Some(service) = self.tables.service(entry.service())
            && let Some(timeout) = service.affinity
        {
            let client = entry.client();
            let known = shared.affinity.get(&client, service.id, self.tick);
            let lost = kept.map_or(&[][..], |at| self.state.attempts.lost(at));
            if known.is_none_or(|known| known != backend && self.is_left(known, lost)) {
                shared.affinity.put(&client, service.id, backend, self.tick, timeout);
            }
        }
        if let Some(at) = kept {
            self.state.counters.connects_rescued += u64::from(!self.state.attempts.lost(at).is_empty());
            self.state.attempts.forget(at);
        }
    }

    /// Whether a connection that another endpoint won left this one for it: it lost the connection, or is set aside.
    /// Otherwise this one won another connection of the source meanwhile, and where that went the next ones go.
    fn is_left(&self, known: BackendId, lost: &[BackendId]) -> bool {
        lost.contains(&known) || self.state.shared.health.standing(known, self.tick) != Standing::Well
    }

    /// A late answer of an endpoint that a SYN did not wait for.
    #[cold]
    pub(super) fn late_answer(&mut self, frame: &mut Frame<'_>, t: &Transport, loser: &Loser) -> Verdict {
        if t.tcp_flags.contains(SYN_ACK) {
            // It is slow, not dead: the next one waits for it as long as it takes.
            let milliseconds = (u64::from(self.tick.since(loser.sent)) << crate::Tick::SHIFT) / 1_000_000;
            self.state.shared.health.answered(loser.backend, self.tick);
            self.state.shared.health.took(loser.backend, milliseconds);
            self.state.counters.late_answers_reset += 1;
        }
        self.reject(frame, t)
    }

    /// Sees to a SYN that waited long enough.
    pub(super) fn attempt_due(&mut self, due: Due, room: &mut [u8]) -> Option<Emission> {
        // It leaves with the tags of where it goes, whatever came before it.
        (self.tags, self.priorities) = (wire::Tags::NONE, wire::Priorities::NONE);
        let (Due::Again(at) | Due::Silent(at)) = due;
        let flow = self.state.attempts.flow(at);
        let opens =
            self.state.flows.keeps_syn(flow, at.number()) && self.state.flows.entry(flow).state() == FlowState::Opening;
        let emission = match due {
            _ if !opens => None,
            Due::Again(_) => self.send_again(at, flow, room),
            Due::Silent(_) => {
                self.endpoint_failed(flow);
                self.retry(at, flow, room)
            }
        };
        let Some(Emission { len, port, to }) = emission else {
            self.state.attempts.forget(at);
            return None;
        };
        let mut frame = Frame { room, len, port, handed: false };
        match self.put_tags_on(&mut frame, Verdict::Tx(port)) {
            Verdict::Tx(port) => Some(Emission { len: frame.len, port, to }),
            // A frame of ours has room for a SYN and its tags.
            _ => None,
        }
    }

    pub(super) fn endpoint_failed(&mut self, flow: FlowRef) {
        let backend = self.state.flows.entry(flow).backend_id();
        self.state.counters.endpoints_set_aside += u64::from(self.state.shared.health.failed(backend, self.tick));
    }

    /// The SYN that is kept for a flow that opens.
    fn kept(&self, flow: FlowRef) -> Option<AttemptRef> {
        self.state.attempts.of(self.state.flows.entry(flow).kept_syn()?, flow)
    }

    /// How long an endpoint's answer is waited for.
    pub(super) fn wait_ms(&self, backend: BackendId) -> u64 {
        (PATIENCE * self.state.shared.health.usual_ms(backend)).max(SHORTEST_WAIT_MS)
    }

    /// Once more to the same endpoint.
    fn send_again(&mut self, at: AttemptRef, flow: FlowRef, room: &mut [u8]) -> Option<Emission> {
        let row = *self.tables.backend(self.state.flows.entry(flow).backend_id())?;
        self.send_kept(at, flow, &row, room)
    }

    /// Has a flow go to the next endpoint, and writes its SYN; `None` where that is not to be.
    fn retry(&mut self, at: AttemptRef, flow: FlowRef, room: &mut [u8]) -> Option<Emission> {
        let former = self.state.flows.entry(flow).backend_id();
        let next = if self.state.attempts.lose(at, former) { self.next_endpoint(at, flow) } else { None };
        let Some(row) = next else {
            self.state.counters.retries_exhausted += 1;
            return None;
        };
        if !self.state.retries.take(self.now) {
            self.state.counters.retries_over_budget += 1;
            return None;
        }
        self.retarget(flow, &row)?;
        self.state.counters.connects_retried += 1;
        self.send_kept(at, flow, &row, room)
    }

    /// The endpoint that comes next for a flow that opens: one that is not set aside, if there is one.
    fn next_endpoint(&mut self, at: AttemptRef, flow: FlowRef) -> Option<BackendRow> {
        let (tables, tick) = (self.tables, self.tick);
        let state = &mut *self.state;
        let entry = state.flows.entry(flow);
        let (client, mode) = (entry.client(), entry.mode());
        let opening = opening(&entry.key(Direction::Forward));
        let service = tables.service(entry.service())?;
        let (attempts, health) = (&state.attempts, &state.shared.health);
        let reaches = |row: &BackendRow| {
            let unfit = mode == Mode::Preserve && (row.address == client || !tables.brings_back(&row.hop));
            row.state == BackendState::Usable && passable(&row.hop, mode).is_ok() && !unfit
        };
        let may = |id: BackendId| !attempts.lost(at).contains(&id) && tables.backend(id).is_some_and(reaches);
        let well =
            state.selector.another(service, &tables.selection, &opening, &mut |id| may(id) && health.takes(id, tick));
        let next = well.or_else(|| state.selector.another(service, &tables.selection, &opening, &mut |id| may(id)))?;
        tables.backend(next).copied()
    }

    /// Changes where a flow goes. `None`, and nothing changed, if its replies cannot be told from others'.
    fn retarget(&mut self, flow: FlowRef, row: &BackendRow) -> Option<()> {
        let state = &mut *self.state;
        let entry = state.flows.entry(flow);
        let (mode, former, sent) = (entry.mode(), entry.backend_id(), entry.opened_at());
        let lost = state.flows.hash(&entry.key(Direction::Reply));
        let backend = (row.address, row.port);
        let snat: (Addr, Port) = match mode {
            Mode::Nat => {
                // A TIME_WAIT that it meets is ended as any other.
                let holds = |_| false;
                let protocol = entry.protocol();
                let supply = self.tables.snat.supply(row.address.is_v4(), self.tables.is_by_kernel(&row.hop));
                let found = state.snat.allocate(supply, &state.flows, backend, protocol, holds, self.tick);
                let found = found.ok()?;
                if let Some(closed) = found.makes_way {
                    state.flows.remove(closed);
                    state.counters.flows_closed += 1;
                }
                found.snat
            }
            _ => (entry.snat(), entry.snat_port()),
        };
        let spec = state.flows.entry(flow).towards(row.id, backend, snat);
        let reply = state.flows.hash(&spec.key(Direction::Reply));
        let claimed = mode == Mode::Preserve;
        if claimed && state.shared.claim(reply, state.id) != Claim::Won {
            return None;
        }
        if !state.flows.retarget(flow, &spec, self.tick) {
            if claimed {
                state.shared.directory.release(reply.0, state.id);
            }
            return None;
        }
        state.flows.entry_mut(flow).set_opened(self.now);
        let evicted = state.losers.add(Loser { hash: lost, backend: former, sent, claimed }, self.tick);
        if let Some(evicted) = evicted {
            evicted.give_back(&state.shared.directory, state.id);
        }
        Some(())
    }

    /// Writes a kept SYN, rewritten for its flow's endpoint, and has it wait for the answer.
    fn send_kept(&mut self, at: AttemptRef, flow: FlowRef, row: &BackendRow, room: &mut [u8]) -> Option<Emission> {
        let packet = self.state.attempts.packet(at);
        let len = ETHERNET + packet.len();
        let ethertype: [u8; 2] = if packet[0] >> 4 == 6 { [0x86, 0xdd] } else { [0x08, 0x00] };
        let head = room.get_mut(..len)?;
        head[..ETHERNET - 2].fill(0);
        head[ETHERNET - 2..ETHERNET].copy_from_slice(&ethertype);
        head[ETHERNET..].copy_from_slice(packet);
        let Ok(Packet::Transport(t)) = wire::parse(head) else { return None };
        let port = self.state.flows.entry(flow).client_nic();
        let mut frame = Frame { room, len, port, handed: false };
        let way = self.way(flow, Direction::Forward, row).ok()?;
        let Verdict::Tx(port) = self.send(&mut frame, &t, flow, Direction::Forward, &way) else { return None };
        let len = frame.len;
        let wait_ms = self.wait_ms(row.id);
        self.state.attempts.wait(at, self.now, wait_ms);
        Some(Emission { len, port, to: None })
    }

    /// The endpoint whose late answer this is.
    #[inline]
    pub(super) fn loser(&self, t: &Transport, hash: FlowHash) -> Option<Loser> {
        let losers = &self.state.losers;
        if losers.is_empty() || !t.is_tcp() || t.tcp_flags.opens() { None } else { losers.find(hash) }
    }
}
