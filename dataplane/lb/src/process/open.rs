//! A packet that may open a flow: source ranges, limits, an endpoint, a SNAT port, the entry.
//!
//! The directory's tag is claimed before anything is chosen, so two workers never open one flow. What was taken on the
//! way is given back in the reverse order when a later step refuses.

use std::net::IpAddr;

use wire::{Addr, Port, Protocol, Transport};

use super::classify::elsewhere;
use super::established::Way;
use super::plan::Suggestion;
use super::{Turn, key};
use crate::directory::Claim;
use crate::flow::{Direction, FlowHash, FlowKey, FlowRef, FlowSpec, InsertError};
use crate::id::PortId;
use crate::model::{Mode, NoEndpoint};
use crate::select::{Opening, by_hash_alone};
use crate::standing::{Standing, replies, standing};
use crate::tables::{BackendRow, FrontendRow, OurAddress, ServiceTable};
use crate::time_wait::Numbers;
use crate::verdict::{DropReason, Frame, Verdict};

/// Why no flow was opened.
enum Refusal {
    /// No endpoint: the Service says what that means.
    NoEndpoint,
    /// The packet is longer than the endpoint's next hop takes.
    TooBig { mtu: u16 },
    /// The packet is dropped.
    Drop(DropReason),
}

impl From<DropReason> for Refusal {
    fn from(reason: DropReason) -> Self {
        Self::Drop(reason)
    }
}

impl<'a> Turn<'a> {
    /// A packet without a flow to a frontend.
    pub(super) fn at_service(
        &mut self,
        frame: &mut Frame<'_>,
        t: &Transport,
        hash: FlowHash,
        (frontend, service): (FrontendRow, &ServiceTable),
        plan: Option<Suggestion>,
    ) -> Verdict {
        let stray = !t.may_open();
        if stray && !service.mode.is_direct() {
            return if self.may_be_the_hosts(frame.port, &t.dst) { Verdict::Pass } else { self.reject(frame, t) };
        }
        if frontend.check_source_ranges && !service.ranges.admits(&t.src) {
            return Verdict::Drop(DropReason::SourceRange);
        }
        if t.ttl <= 1 {
            return self.time_exceeded(frame, t, t.dst);
        }
        if service.usable.is_empty() {
            return self.no_endpoint(frame, t, service);
        }
        if stray {
            return self.without_state(frame, t, service).unwrap_or_else(|| self.reject(frame, t));
        }
        self.claim(frame, t, hash, service, plan)
    }

    /// Whether a packet that opens nothing may be of a connection of the host's own, or of one that it translates, from a
    /// port that a frontend has. The kernel knows, and refuses what is nobody's.
    fn may_be_the_hosts(&self, port: PortId, destination: &Addr) -> bool {
        self.tables.kernel.is_some_and(|kernel| kernel.port != port)
            && matches!(self.tables.addresses.get(destination), Some(OurAddress::HostOwned))
    }

    /// Sends a packet that has no flow where its flow would go, in a mode that needs none. `None`: its hash alone does not
    /// tell, or it is not in such a mode.
    fn without_state(&mut self, frame: &mut Frame<'_>, t: &Transport, service: &ServiceTable) -> Option<Verdict> {
        let (row, mode) = self.recall(service, &opening(&key(t)))?;
        let way = match self.way_to(&row, mode, || key(t)) {
            Ok(way) => way,
            Err(reason) => return Some(Verdict::Drop(reason)),
        };
        if !self.fits_or_is_cut(frame, &t.ip(), &way) {
            return Some(self.too_big(frame, t, t.dst, way.mtu));
        }
        self.state.counters.stateless_forwarded += 1;
        Some(self.send_untouched(frame, t, &way))
    }

    /// The endpoint that packets with these addresses and ports go to where they have no flow, and the mode, which needs
    /// none. `None`: their hash alone does not tell, or the mode is another.
    pub(super) fn recall(&self, service: &ServiceTable, opening: &Opening) -> Option<(BackendRow, Mode)> {
        let id = self.state.selector.recall(service, self.tables, &*self.state.shared, opening, self.tick)?;
        let row = *self.tables.backend(id)?;
        let mode = self.mode_to(&row, opening, service, None);
        mode.is_direct().then_some((row, mode))
    }

    /// How a packet that came in by a port gets to an endpoint: by its Service's mode, unless only translation brings it there.
    fn mode_to(&self, row: &BackendRow, opening: &Opening, service: &ServiceTable, port: Option<PortId>) -> Mode {
        // An endpoint that is its own client would answer itself past us; where endpoints see the frontend, it must be an
        // address that they have, and the port that they serve.
        let host = || matches!(self.tables.addresses.get(&opening.destination), Some(OurAddress::HostOwned));
        match service.mode {
            _ if row.address == opening.source => Mode::Nat,
            // The host's own packets and those of its pods: their answers would meet the client itself before us.
            Mode::Preserve if self.tables.kernel.is_some_and(|kernel| Some(kernel.port) == port) => Mode::Nat,
            mode if mode.is_direct() && (row.port != opening.destination_port || host()) => Mode::Nat,
            mode => mode,
        }
    }

    /// Whether nothing about the packet itself stands against its opening a flow.
    pub(super) fn may_open(&self, t: &Transport, service: &ServiceTable) -> bool {
        t.may_open() && t.ttl > 1 && !service.usable.is_empty()
    }

    /// Opens the flow unless it is another worker's.
    pub(super) fn claim(
        &mut self,
        frame: &mut Frame<'_>,
        t: &Transport,
        hash: FlowHash,
        service: &ServiceTable,
        plan: Option<Suggestion>,
    ) -> Verdict {
        match self.state.shared.claim(hash, self.state.id) {
            Claim::Won => {}
            Claim::Owned(owner) => return elsewhere(frame, owner),
            Claim::Full => return self.refuse(frame, t, DropReason::DirectoryFull),
        }
        self.open_claimed(frame, t, hash, service, plan).unwrap_or_else(|refusal| {
            self.state.shared.directory.release(hash.0, self.state.id);
            match refusal {
                Refusal::NoEndpoint => self.no_endpoint(frame, t, service),
                Refusal::TooBig { mtu } => self.too_big(frame, t, t.dst, mtu),
                Refusal::Drop(DropReason::FlowTableFull) if service.mode.is_direct() => self
                    .without_state(frame, t, service)
                    .unwrap_or_else(|| self.refuse(frame, t, DropReason::FlowTableFull)),
                Refusal::Drop(reason) => self.refuse(frame, t, reason),
            }
        })
    }

    fn no_endpoint(&mut self, frame: &mut Frame<'_>, t: &Transport, service: &ServiceTable) -> Verdict {
        match service.no_endpoint {
            NoEndpoint::Reject => self.reject(frame, t),
            NoEndpoint::Drop => Verdict::Drop(DropReason::NoEndpoint),
        }
    }

    /// Opens a flow whose forward tag is claimed, and sends the packet on.
    fn open_claimed(
        &mut self,
        frame: &mut Frame<'_>,
        t: &Transport,
        hash: FlowHash,
        service: &ServiceTable,
        plan: Option<Suggestion>,
    ) -> Result<Verdict, Refusal> {
        if !t.is_tcp() && self.tables.answering.has(&t.src, t.sport(), t.protocol) {
            return Err(DropReason::ServiceLoop.into());
        }
        let (rate, most) = self.limits_of(frame.port, &t.src);
        if !self.state.shared.rates.take(&t.src, rate, self.now) {
            return Err(DropReason::SourceRate.into());
        }
        let source = plan.map_or_else(|| self.state.shared.sources.hash(&t.src), |plan| plan.source);
        if !self.state.shared.sources.open_hashed(source, most) {
            return Err(DropReason::SourceLimit.into());
        }
        let opened = self.open_counted(frame, t, hash, service, plan);
        opened.inspect_err(|_| self.state.shared.sources.close_hashed(source))
    }

    /// How many flows a source may open a second, and have; 0: no limit. The kernel's end of the kernel port is the host
    /// itself and all pods that it masquerades: one of them would use up what all have.
    fn limits_of(&self, port: PortId, source: &Addr) -> (u32, u32) {
        let kernels = self.tables.kernel.is_some_and(|kernel| kernel.port == port);
        let is_its_end = |ip: IpAddr| matches!(ip, IpAddr::V4(v4) if v4.is_link_local());
        match kernels && is_its_end((*source).into()) {
            true => (0, 0),
            false => (self.tables.new_flows_per_source, self.tables.flows_per_source),
        }
    }

    /// Opens a flow that is counted in for its source, and sends the packet on.
    fn open_counted(
        &mut self,
        frame: &mut Frame<'_>,
        t: &Transport,
        hash: FlowHash,
        service: &ServiceTable,
        plan: Option<Suggestion>,
    ) -> Result<Verdict, Refusal> {
        let row = self.choose(t, service, plan).ok_or(Refusal::NoEndpoint)?;
        let opening = opening(&key(t));
        // A plan has what the hash gives, by the same tables.
        let by_hash =
            plan.map_or_else(|| by_hash_alone(service, &self.tables.selection, &opening), |plan| plan.backend);
        // A port was drawn for the endpoint that was planned.
        let plan = plan.filter(|plan| plan.backend == Some(row.id));
        let mode = self.mode_to(row, &opening, service, Some(frame.port));
        let way = self.way_to(row, mode, || key(t));
        // Where it is: a way is too long to be moved for nothing.
        let way = way.as_ref().map_err(|reason| *reason)?;
        if mode == Mode::Preserve && !self.tables.brings_back(&row.hop) {
            // The kernel would send the replies to the client past us.
            return Err(DropReason::NoRoute.into());
        }
        if !self.fits_or_is_cut(frame, &t.ip(), way) {
            return Err(Refusal::TooBig { mtu: way.mtu });
        }
        let (snat, replies) = match mode {
            Mode::Nat => self.allocate(frame, t, row, plan).map(|(snat, replies)| (snat, Some(replies)))?,
            _ => ((t.src, t.sport()), None),
        };
        let backend = if mode.is_direct() { (t.dst, t.dport()) } else { (row.address, row.port) };
        let spec = FlowSpec {
            protocol: t.protocol,
            client: (t.src, t.sport()),
            vip: (t.dst, t.dport()),
            snat,
            backend,
            dispensable: by_hash == Some(row.id),
            mode,
            service: service.id,
            backend_id: row.id,
            client_mac: t.src_mac,
            client_nic: frame.port,
            udp_timeout: service.udp_timeout,
        };
        let replies = replies.unwrap_or_else(|| self.state.flows.hash(&spec.key(Direction::Reply)));
        let flow = match mode {
            Mode::Preserve => self.insert_preserved(&spec, [hash, replies])?,
            _ => self.insert(&spec, [hash, replies])?,
        };
        Ok(self.send_first(frame, t, flow, way))
    }

    /// Sends on the packet that opened a flow.
    fn send_first(&mut self, frame: &mut Frame<'_>, t: &Transport, flow: FlowRef, way: &Way) -> Verdict {
        self.state.counters.flows_opened += 1;
        let entry = self.state.flows.entry(flow);
        if t.is_tcp() && !entry.mode().is_direct() {
            self.keep_syn(frame, t, flow, entry.backend_id());
        }
        if t.is_sctp() {
            self.begin_association(frame, t, flow);
        }
        self.send(frame, t, flow, Direction::Forward, way)
    }

    fn choose(&mut self, t: &Transport, service: &ServiceTable, plan: Option<Suggestion>) -> Option<&'a BackendRow> {
        let opening = opening(&key(t));
        let state = &mut *self.state;
        let chosen = match plan.and_then(|plan| plan.backend) {
            Some(planned) => planned,
            None => state.selector.select(service, self.tables, &*state.shared, &opening, self.tick)?,
        };
        let connects = t.protocol != Protocol::UDP;
        let id = if connects { self.unless_aside(service, &opening, chosen) } else { chosen };
        self.tables.backend(id)
    }

    /// A SNAT address and port whose replies from this endpoint no other flow has, and towards which, where that can be, the
    /// endpoint has no TIME_WAIT that the packet would not pass; with the hash of the key of replies. A port of the client's
    /// own is past that in any case.
    fn allocate(
        &mut self,
        frame: &Frame<'_>,
        t: &Transport,
        row: &BackendRow,
        plan: Option<Suggestion>,
    ) -> Result<((Addr, Port), FlowHash), DropReason> {
        let former = self.former_port(t, row);
        let backend = (row.address, row.port);
        let supply = self.tables.snat.supply(row.address.is_v4(), self.tables.is_by_kernel(&row.hop));
        let state = &mut *self.state;
        let holds = |replies| {
            let numbers = || Numbers { sequence: t.seq(frame.room), timestamp: t.timestamp(frame.room) };
            t.is_tcp() && state.time_waits.holds(replies, numbers, self.tick)
        };
        if let Some(former) = former {
            let key = replies(backend, former, t.protocol);
            let hash = state.flows.hash(&key);
            if standing(&state.flows, &key, hash, &|_| false) == Standing::Free {
                return Ok((former, hash));
            }
        }
        if let Some((port, hash)) = plan.and_then(|plan| plan.snat) {
            let suggested = supply.end(port);
            let key = replies(backend, suggested, t.protocol);
            if standing(&state.flows, &key, hash, &holds) == Standing::Free {
                return Ok((suggested, hash));
            }
        }
        let allocated = state
            .snat
            .allocate(supply, &state.flows, backend, t.protocol, holds, self.tick)
            .map_err(|_| DropReason::SnatExhausted)?;
        if let Some(closed) = allocated.makes_way {
            self.end(closed);
        }
        Ok((allocated.snat, allocated.replies))
    }

    /// The SNAT port that the client's last connection by this key had, if that was to the same endpoint: the endpoint's
    /// TIME_WAIT is of a connection of the same client, whose sequence numbers and timestamps go on (RFC 6191), and where
    /// the SYN was refused for another's TIME_WAIT, the client's RST has ended that.
    fn former_port(&mut self, t: &Transport, row: &BackendRow) -> Option<(Addr, Port)> {
        let former = self.former.take().filter(|f| f.key == key(t) && f.backend == (row.address, row.port))?;
        let (address, port) = former.snat;
        let known = self.tables.snat.of(&address, port)?;
        let supply = self.tables.snat.supply(address.is_v4(), self.tables.is_by_kernel(&row.hop));
        // The next hop may be another one by now, which brings replies to this address no more.
        if !supply.addresses.iter().any(|entry| entry.address == address) {
            return None;
        }
        (self.state.shared.blocks.owner(known.index, port) == Some(self.state.id)).then_some(former.snat)
    }

    /// In mode `preserve` the reply's key needs an owner of its own in the directory.
    fn insert_preserved(&mut self, spec: &FlowSpec, hashes: [FlowHash; 2]) -> Result<FlowRef, DropReason> {
        let [_, reply] = hashes;
        match self.state.shared.claim(reply, self.state.id) {
            Claim::Won => {}
            // The client reaches this endpoint from this port by another frontend: its replies would be ambiguous. Or, once
            // in some hundred thousand openings, another worker has a flow of the same tag.
            Claim::Owned(_) => return Err(DropReason::SnatExhausted),
            Claim::Full => return Err(DropReason::DirectoryFull),
        }
        self.insert(spec, hashes).inspect_err(|_| self.state.shared.directory.release(reply.0, self.state.id))
    }

    /// `hashes` are of the keys of both directions.
    #[inline]
    fn insert(&mut self, spec: &FlowSpec, hashes: [FlowHash; 2]) -> Result<FlowRef, DropReason> {
        let inserted = match spec.mode {
            Mode::Preserve => self.state.flows.insert_hashed(spec, hashes, self.tick),
            // Both keys were looked for: the packet's before all this, the reply's when its port was chosen; or it is the
            // packet's turned around.
            _ => self.state.flows.insert_new(spec, hashes, self.tick),
        };
        let flow = inserted.map_err(|error| match error {
            InsertError::Full => DropReason::FlowTableFull,
            InsertError::Taken => DropReason::SnatExhausted,
        })?;
        let entry = self.state.flows.entry_mut(flow);
        entry.set_opened(self.now);
        entry.set_client_tags(self.tags);
        Ok(flow)
    }
}

/// What an endpoint is chosen by.
#[inline]
pub(super) fn opening(key: &FlowKey) -> Opening {
    Opening {
        source: key.src,
        source_port: key.ports.source(),
        destination: key.dst,
        destination_port: key.ports.destination(),
        protocol: key.protocol,
    }
}
