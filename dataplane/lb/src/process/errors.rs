//! ICMP errors about packets of flows: to whom they belong, and turned into what that one can understand.
//!
//! The other side of the flow gets the error as its own packets come to it: addressed to what it sent from, in the name of
//! the address that it knows, quoting what it sent (RFC 5508 section 4.2). No error refreshes, ends or moves a flow
//! (RFC 5508 REQ-3 to REQ-6, RFC 5927), so a forged one can do no more to an endpoint than without us.

use wire::tunnel::{self, Within};
use wire::{Ip, Quote};

use super::Turn;
use super::classify::elsewhere;
use super::established::{Way, fits};
use super::open::opening;
use crate::flow::{Direction, FlowHash, FlowKey, FlowRef, FlowState};
use crate::id::WorkerId;
use crate::model::Mode;
use crate::verdict::{DropReason, Frame, Verdict};

impl Turn<'_> {
    /// An ICMP or ICMPv6 error.
    pub(super) fn icmp_error(&mut self, frame: &mut Frame<'_>, ip: &Ip) -> Verdict {
        if self.is_martian(frame, &ip.src) {
            return Verdict::Drop(DropReason::Martian);
        }
        if self.tables.tunnels.contains(&ip.dst)
            && let Some(verdict) = self.tunnel_error(frame, ip)
        {
            return verdict;
        }
        let quote = match Quote::parse(&frame.room[..frame.len], ip) {
            // Who is told of a packet must have sent it.
            Ok(quote) => quote.filter(|quote| quote.src == ip.dst),
            Err(error) => return Verdict::Drop(error.into()),
        };
        let Some(quote) = quote else { return self.unhandled(ip, DropReason::Icmp) };
        // As packets of the other direction come in: their flow is the quoted packet's.
        let key = FlowKey { src: quote.dst, dst: quote.src, ports: quote.ports.reversed(), protocol: quote.protocol };
        let hash = self.state.flows.hash(&key);
        match self.state.flows.lookup(hash, &key) {
            Some((flow, direction)) => self.translate_error(frame, ip, &quote, flow, direction),
            None => match self.owner_of_quoted(frame, &key, hash) {
                Some(owner) => elsewhere(frame, owner),
                None => {
                    self.without_flow_quoted(frame, ip, &key).unwrap_or_else(|| self.unhandled(ip, DropReason::Icmp))
                }
            },
        }
    }

    /// An error about an outer packet of ours: who sent the packet within is told of it (RFC 2003 section 4, RFC 2473
    /// section 8). `None`: it is about no such packet.
    ///
    /// A tunnel may start at a SNAT address, and an endpoint of mode `nat` may serve the very port where tunnels end. So
    /// what is within tells of a tunnel only if it is of a flow that goes through one to that endpoint; else the quoted
    /// packet itself may be of a flow.
    fn tunnel_error(&mut self, frame: &mut Frame<'_>, ip: &Ip) -> Option<Verdict> {
        let within = match Within::parse(&frame.room[..frame.len], ip) {
            Ok(within) => within?,
            Err(error) => return self.unless_of_a_flow(frame, ip, error.into()),
        };
        let quote = &within.quote;
        let key = FlowKey { src: quote.src, dst: quote.dst, ports: quote.ports, protocol: quote.protocol };
        let hash = self.state.flows.hash(&key);
        let Some((flow, Direction::Forward)) = self.state.flows.lookup(hash, &key) else {
            return match self.owner_of_quoted(frame, &key, hash) {
                Some(owner) => Some(elsewhere(frame, owner)),
                None => self.unless_of_a_flow(frame, ip, DropReason::Icmp),
            };
        };
        let entry = self.state.flows.entry(flow);
        let through = entry.mode().wrapping() == Some(within.wrapping);
        let row = self.tables.backend(entry.backend_id()).filter(|row| through && row.address == within.endpoint);
        let Some(row) = row else { return self.unless_of_a_flow(frame, ip, DropReason::Icmp) };
        let Some(kind) = within.kind else { return Some(Verdict::Drop(DropReason::Icmp)) };
        let from = entry.vip();
        Some(match self.way(flow, Direction::Reply, row) {
            Err(reason) => Verdict::Drop(reason),
            Ok(way) => match tunnel::relay(frame.room, ip, &within, kind, from) {
                None => Verdict::Drop(DropReason::NoRoom),
                Some(end) => {
                    self.state.counters.icmp_errors_translated += 1;
                    frame.len = usize::from(end);
                    self.send_by(&way, frame, ip.l3, end)
                }
            },
        })
    }

    /// Drops an error for what it is as one about a tunnel; `None`, and it is not dropped, if the packet that it quotes is a
    /// flow's as it stands.
    fn unless_of_a_flow(&self, frame: &Frame<'_>, ip: &Ip, reason: DropReason) -> Option<Verdict> {
        let quote = Quote::parse(&frame.room[..frame.len], ip).ok().flatten();
        let is_known = quote.is_some_and(|quote| {
            let ports = quote.ports.reversed();
            let key = FlowKey { src: quote.dst, dst: quote.src, ports, protocol: quote.protocol };
            let hash = self.state.flows.hash(&key);
            self.state.flows.lookup(hash, &key).is_some() || self.owner_of_quoted(frame, &key, hash).is_some()
        });
        (!is_known).then_some(Verdict::Drop(reason))
    }

    /// The other worker whose flow is quoted.
    fn owner_of_quoted(&self, frame: &Frame<'_>, key: &FlowKey, hash: FlowHash) -> Option<WorkerId> {
        let shared = &self.state.shared;
        if frame.handed || shared.workers() == 1 {
            return None;
        }
        // Of a block at the edge of a range some ports are the host's, or a frontend's.
        let port = key.ports.destination();
        let snat = self.tables.snat.of(&key.dst, port);
        let by_port = snat.and_then(|address| shared.blocks.owner(address.index, port));
        by_port.or_else(|| shared.directory.owner(hash.0)).filter(|owner| *owner != self.state.id)
    }

    /// An error about what an endpoint answered past us, to that endpoint though there is no flow; `key` is of what the
    /// client sends.
    fn without_flow_quoted(&mut self, frame: &mut Frame<'_>, ip: &Ip, key: &FlowKey) -> Option<Verdict> {
        let frontend = self.tables.frontends.get(&key.dst, key.ports.destination(), key.protocol)?;
        let service = self.tables.service(frontend.service)?;
        let (row, mode) = self.recall(service, &opening(key))?;
        Some(self.send_error_untouched(frame, ip, self.way_to(&row, mode, || *key)))
    }

    fn send_error_untouched(&mut self, frame: &mut Frame<'_>, ip: &Ip, way: Result<Way, DropReason>) -> Verdict {
        let way = match way {
            Ok(way) => way,
            Err(reason) => return Verdict::Drop(reason),
        };
        if ip.ttl <= 1 {
            return Verdict::Drop(DropReason::TtlExceeded);
        }
        if !fits(ip.end - ip.l3, way.mtu) {
            return Verdict::Drop(DropReason::TooBig);
        }
        wire::forward(frame.room, ip);
        self.state.counters.icmp_errors_translated += 1;
        self.send_by(&way, frame, ip.l3, ip.end)
    }

    /// Sends an error on to the side that packets of `direction` go to.
    fn translate_error(
        &mut self,
        frame: &mut Frame<'_>,
        ip: &Ip,
        quote: &Quote,
        flow: FlowRef,
        direction: Direction,
    ) -> Verdict {
        if direction == Direction::Reply
            && self.state.flows.entry(flow).state() == FlowState::Opening
            && quote.is_unreachable(&frame.room[..frame.len], ip)
            && let Some(verdict) = self.unreachable(frame, quote, flow)
        {
            return verdict;
        }
        if ip.ttl <= 1 {
            // There is no error about an error (RFC 1122 section 3.2.2).
            return Verdict::Drop(DropReason::TtlExceeded);
        }
        let entry = self.state.flows.entry(flow);
        let Some(row) = self.tables.backend(entry.backend_id()) else { return Verdict::Drop(DropReason::Icmp) };
        let way = match self.way(flow, direction, row) {
            Ok(way) => way,
            Err(reason) => return Verdict::Drop(reason),
        };
        if !fits(ip.end - ip.l3, way.mtu) {
            return Verdict::Drop(DropReason::TooBig);
        }
        let rewrite = entry.rewrite(direction, ip.ipv6);
        // Endpoints that see clients' addresses see routers' too.
        let keeps_source = entry.mode() != Mode::Nat && direction == Direction::Forward;
        let from = if keeps_source { ip.src } else { rewrite.src };
        wire::rewrite_error(frame.room, ip, quote, &rewrite, from);
        self.state.counters.icmp_errors_translated += 1;
        self.send_by(&way, frame, ip.l3, ip.end)
    }
}
