//! Parts of fragmented datagrams (RFC 4787 REQ-14): each goes where the first one shows, once it has come; and IPv4 packets
//! that are cut for their next hop.
//!
//! Any queue may get any part, so all parts of a datagram first meet at one worker, which its addresses and identification
//! name. There the first part is decided as a whole packet would be. Where the flow is another worker's, the parts go on to
//! that one, the first before the others, which is the second and last time that they are handed over: a worker that is
//! neither where they meet nor where the flow is has no part in it. Parts that come before the first wait as copies.

use wire::{Cutting, Fragment, Ip, Packet, ParseError, Ports, Protocol, Rewrite, Transport};

use super::emit::Emission;
use super::established::{Way, fits, is_group};
use super::open::opening;
use super::{Turn, key};
use crate::flow::{Direction, FlowKey};
use crate::fragments::{Bound, DatagramRef, Fate, Pending, key_of, meeting_worker, source_key};
use crate::verdict::{DropReason, Frame, Verdict};

/// Kept parts that lead to no packet, in one call of [`super::emit()`].
const IDLE_STEPS: usize = 64;

/// The first part that is being decided.
#[derive(Clone, Copy)]
pub(super) struct FirstPart {
    part: Fragment,
    /// What identifies its datagram from here on.
    id: u32,
    /// It was sent on; else there was an answer, or nothing.
    went_on: bool,
}

impl Turn<'_> {
    /// A part of a datagram.
    pub(super) fn fragment(&mut self, frame: &mut Frame<'_>, part: &Fragment) -> Verdict {
        let to_all = is_group(wire::destination(frame.room));
        if self.is_martian(frame, &part.ip.src) || is_group(part.ip.src_mac) || to_all {
            return Verdict::Drop(DropReason::Martian);
        }
        if !part.is_sound() {
            return Verdict::Drop(DropReason::FragmentMalformed);
        }
        if part.is_within_tcp_header() {
            return Verdict::Drop(DropReason::FragmentTiny);
        }
        let state = &mut *self.state;
        let datagram = key_of(part);
        let hash = state.flows.hash(&datagram);
        let meeting = meeting_worker(hash, state.shared.workers());
        let meets = meeting == state.id;
        if !meets && !frame.handed {
            return Verdict::HandOff(meeting);
        }
        // What the meeting worker hands on begins with the first part.
        let met = if meets || part.offset == 0 {
            let source = state.flows.hash(&source_key(&part.ip.src));
            state.fragments.meet(hash, &datagram, source, part, self.tick)
        } else {
            state.fragments.follow(hash, &datagram, part, self.tick)
        };
        match met {
            Ok(at) if part.offset == 0 => self.first_part(frame, part, at, meets),
            Ok(at) => self.later_part(frame, part, at, meets),
            Err(reason) => Verdict::Drop(reason),
        }
    }

    /// The part with the ports: decided as a whole packet, which decides about the others.
    fn first_part(&mut self, frame: &mut Frame<'_>, part: &Fragment, at: DatagramRef, meets: bool) -> Verdict {
        let refusal = match wire::first_part(&frame.room[..frame.len], part) {
            Ok(Some(t)) => return self.first_transport(frame, part, &t, at, meets),
            Ok(None) if wire::is_echo_request(frame.room, part) => return self.first_of_echo(frame, part, at),
            Ok(None) => self.unhandled(&part.ip, DropReason::UnknownProtocol),
            Err(ParseError::Truncated) => Verdict::Drop(DropReason::FragmentTiny),
            Err(error) => Verdict::Drop(error.into()),
        };
        self.state.fragments.end(at, DropReason::FragmentUnmatched);
        refusal
    }

    /// The part that shows an echo request: it and the others are answered where they meet.
    fn first_of_echo(&mut self, frame: &mut Frame<'_>, part: &Fragment, at: DatagramRef) -> Verdict {
        let verdict = self.echo_part(frame, part);
        if let Verdict::Tx(_) = verdict {
            let ports = Ports::from_octets([0; 4]);
            self.state.fragments.bind(at, Bound { ports, protocol: part.ip.protocol, owner: None, id: part.id });
            self.state.fragments.settle(at);
        } else {
            self.state.fragments.end(at, DropReason::FragmentUnmatched);
        }
        verdict
    }

    fn first_transport(
        &mut self,
        frame: &mut Frame<'_>,
        part: &Fragment,
        t: &Transport,
        at: DatagramRef,
        meets: bool,
    ) -> Verdict {
        let hash = self.state.flows.hash(&key(t));
        // From where it meets the others it may be handed over, whether or not it was handed there.
        let handed = core::mem::replace(&mut frame.handed, !meets);
        self.first = Some(FirstPart { part: *part, id: part.id, went_on: false });
        let verdict = self.transport(frame, t, hash);
        frame.handed = handed;
        let (id, went_on) = self.first.take().map_or((part.id, false), |first| (first.id, first.went_on));
        let bound = Bound { ports: t.ports, protocol: t.protocol, owner: None, id };
        let (bound, verdict) = match verdict {
            Verdict::HandOff(owner) => (Bound { owner: Some(owner), ..bound }, Verdict::HandOffPart(owner)),
            verdict if went_on => (bound, verdict),
            verdict => {
                self.state.fragments.end(at, DropReason::FragmentUnmatched);
                return verdict;
            }
        };
        self.state.fragments.bind(at, bound);
        self.state.fragments.settle(at);
        verdict
    }

    /// Notes of a first part, if this is one, that it goes on.
    pub(super) fn note_first(&mut self) {
        if let Some(first) = &mut self.first {
            first.went_on = true;
        }
    }

    /// Gives a packet that was just rewritten and goes on, a first part or one that is to be cut, the identification that its
    /// datagram has from here on: another, where the source is ours now.
    #[cold]
    pub(super) fn renumber(&mut self, frame: &mut Frame<'_>, t: &Transport, rewrite: &Rewrite) {
        self.note_first();
        if rewrite.src == t.src {
            return;
        }
        let id = self.state.fragments.draw_id(t.ipv6);
        match &mut self.first {
            Some(first) => {
                first.id = id;
                wire::set_part_id(frame.room, &first.part, id);
            }
            None => wire::set_whole_id(frame.room, &t.ip(), id as u16),
        }
    }

    fn later_part(&mut self, frame: &mut Frame<'_>, part: &Fragment, at: DatagramRef, meets: bool) -> Verdict {
        let verdict = match self.state.fragments.fate(at) {
            Fate::Going(bound) => self.bound_part(frame, part, &bound),
            Fate::Waiting if meets => self.keep(frame, at),
            Fate::Waiting => Verdict::Drop(DropReason::FragmentUnmatched),
            Fate::Ended(reason) => Verdict::Drop(reason),
        };
        self.state.fragments.settle(at);
        verdict
    }

    /// Keeps a later part as it came, with its tags.
    fn keep(&mut self, frame: &mut Frame<'_>, at: DatagramRef) -> Verdict {
        let Some(len) = self.tags.put_on(self.priorities, frame.room, frame.len) else {
            return Verdict::Drop(DropReason::NoRoom);
        };
        match self.state.fragments.keep(at, &frame.room[..len], frame.port) {
            Ok(()) => {
                self.state.counters.fragments_kept += 1;
                Verdict::Keep
            }
            Err(reason) => Verdict::Drop(reason),
        }
    }

    /// A later part of a datagram whose first one went on.
    fn bound_part(&mut self, frame: &mut Frame<'_>, part: &Fragment, bound: &Bound) -> Verdict {
        if let Some(owner) = bound.owner {
            return Verdict::HandOffPart(owner);
        }
        let (ports, protocol) = (bound.ports, bound.protocol);
        if matches!(protocol, Protocol::ICMP | Protocol::ICMPV6) {
            return self.echo_part(frame, part);
        }
        let key = FlowKey { src: part.ip.src, dst: part.ip.dst, ports, protocol };
        let found = self.state.flows.lookup(self.state.flows.hash(&key), &key);
        let Some((flow, direction)) = found else { return self.part_without_state(frame, part, &key) };
        let Some(row) = self.tables.backend(self.state.flows.entry(flow).backend_id()) else {
            self.end(flow);
            return Verdict::Drop(DropReason::FragmentUnmatched);
        };
        if part.ip.ttl <= 1 {
            // There is no error about later parts (RFC 1122 section 3.2.2).
            return Verdict::Drop(DropReason::TtlExceeded);
        }
        let way = match self.way(flow, direction, row) {
            Ok(way) => way,
            Err(reason) => return Verdict::Drop(reason),
        };
        if !self.fits_or_is_cut(frame, &part.ip, &way) {
            return Verdict::Drop(DropReason::TooBig);
        }
        self.state.flows.entry_mut(flow).refresh(self.tick);
        if direction == Direction::Forward {
            self.refresh_client_hop(flow, part.ip.src_mac, frame.port);
        }
        let rewrite = self.state.flows.entry(flow).rewrite(direction, part.ip.ipv6);
        wire::rewrite_part(frame.room, part, &rewrite);
        if bound.id != part.id {
            wire::set_part_id(frame.room, part, bound.id);
        }
        self.send_whole_or_cut(frame, &part.ip, &way)
    }

    /// A later part of a datagram whose first one went on without a flow.
    #[cold]
    fn part_without_state(&mut self, frame: &mut Frame<'_>, part: &Fragment, key: &FlowKey) -> Verdict {
        let frontend = self.tables.frontends.get(&key.dst, key.ports.destination(), key.protocol);
        let service = frontend.and_then(|frontend| self.tables.service(frontend.service));
        let Some((row, mode)) = service.and_then(|service| self.recall(service, &opening(key))) else {
            return Verdict::Drop(DropReason::FragmentUnmatched);
        };
        if part.ip.ttl <= 1 {
            return Verdict::Drop(DropReason::TtlExceeded);
        }
        let way = match self.way_to(&row, mode, || *key) {
            Ok(way) => way,
            Err(reason) => return Verdict::Drop(reason),
        };
        if !self.fits_or_is_cut(frame, &part.ip, &way) {
            return Verdict::Drop(DropReason::TooBig);
        }
        wire::rewrite_part(frame.room, part, &Rewrite::nothing(key.src, key.dst, key.ports));
        self.state.counters.stateless_forwarded += 1;
        self.send_whole_or_cut(frame, &part.ip, &way)
    }

    /// Whether a packet is within its way's MTU, or may be cut for it, with room for the pieces.
    #[inline]
    pub(super) fn fits_or_is_cut(&self, frame: &Frame<'_>, ip: &Ip, way: &Way) -> bool {
        fits(ip.end - ip.l3, way.mtu) || self.cutting(frame, ip, way).is_some()
    }

    #[cold]
    fn cutting(&self, frame: &Frame<'_>, ip: &Ip, way: &Way) -> Option<Cutting> {
        let cutting = Cutting::plan(frame.room, ip, way.mtu)?;
        // Pieces are kept as they go out, each with its own of what goes around it.
        let longest = cutting.longest_frame() + way.around();
        let others = usize::from(cutting.pieces() - 1);
        let has_room = self.state.fragments.has_room_for_pieces(others, longest + way.tags.octets());
        (has_room && longest <= frame.room.len()).then_some(cutting)
    }

    /// Sends a rewritten packet, in pieces if it is longer than its way takes (RFC 791 section 3.2).
    #[inline]
    pub(super) fn send_whole_or_cut(&mut self, frame: &mut Frame<'_>, ip: &Ip, way: &Way) -> Verdict {
        if fits(ip.end - ip.l3, way.mtu) {
            self.send_by(way, frame, ip.l3, ip.end)
        } else {
            self.send_cut(frame, ip, way)
        }
    }

    #[cold]
    fn send_cut(&mut self, frame: &mut Frame<'_>, ip: &Ip, way: &Way) -> Verdict {
        let Some(cutting) = self.cutting(frame, ip, way) else { return Verdict::Drop(DropReason::TooBig) };
        way.address(frame.room);
        let priorities = self.priorities_with(way.tags);
        // The first is sent as this frame, and the others after it.
        for number in 1..cutting.pieces() {
            let room = &*frame.room;
            self.state.fragments.keep_piece(way.port, |piece| {
                let len = cutting.copy(room, number, piece);
                let len = way.wrap(piece, ip.l3, len as u16).map_or(len, usize::from);
                way.tags.put_on(priorities, piece, len).unwrap_or(len)
            });
        }
        frame.len = cutting.keep_first(frame.room);
        self.state.counters.packets_cut += 1;
        self.send_by(way, frame, ip.l3, frame.len as u16)
    }

    /// Writes a kept part whose first one has come, or a piece of a packet that was cut, into `room`.
    pub(super) fn emit_fragment(&mut self, room: &mut [u8]) -> Option<Emission> {
        for _ in 0..IDLE_STEPS {
            let (bytes, port, whole) = match self.state.fragments.pending()? {
                Pending::Piece(bytes, port) => (bytes, port, true),
                Pending::Part(bytes, port) => (bytes, port, false),
            };
            let len = bytes.len();
            let copied = room.get_mut(..len).map(|copy| copy.copy_from_slice(bytes)).is_some();
            if whole {
                self.state.fragments.settle_piece();
                if !copied {
                    continue;
                }
                return Some(Emission { len, port, to: None });
            }
            let mut frame = Frame { room, len, port, handed: false };
            let verdict = if copied { self.released_part(&mut frame) } else { Verdict::Drop(DropReason::NoRoom) };
            let len = frame.len;
            let emission = match verdict {
                Verdict::Tx(port) => Some(Emission { len, port, to: None }),
                Verdict::HandOffPart(owner) => Some(Emission { len, port, to: Some(owner) }),
                _ => None,
            };
            self.state.fragments.settle_part(emission.is_some());
            if emission.is_some() {
                return emission;
            }
        }
        None
    }

    fn released_part(&mut self, frame: &mut Frame<'_>) -> Verdict {
        self.take_tags_off(frame, false);
        let bound = self.state.fragments.pending_bound();
        let verdict = match (wire::parse(&frame.room[..frame.len]), bound) {
            (Ok(Packet::Fragment(part)), Some(bound)) => self.bound_part(frame, &part, &bound),
            // It was one when it was kept.
            _ => Verdict::Drop(DropReason::FragmentUnmatched),
        };
        self.put_tags_on(frame, verdict)
    }
}
