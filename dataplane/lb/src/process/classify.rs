//! Packets without a flow in this worker's table: whose are they?
//!
//! Whoever owns the flow gets the frame: the owner of the SNAT port's block, or else whom the directory names. A frame
//! that was handed over is decided here whatever becomes of it, so no frame goes round.

use wire::{Addr, Transport};

use super::Turn;
use super::established::is_group;
use crate::flow::FlowHash;
use crate::id::WorkerId;
use crate::tables::{OurAddress, SnatAddress};
use crate::verdict::{DropReason, Frame, Verdict};

impl Turn<'_> {
    /// The other worker whose flow the packet is of, as far as its SNAT port's block or the directory says so: what
    /// [`Turn::without_flow`] finds there in the end, and the owner looks at everything else. Packets that may open a flow
    /// ask the directory by their claim.
    pub(super) fn foreign(&self, frame: &Frame<'_>, t: &Transport, hash: FlowHash) -> Option<WorkerId> {
        let shared = &self.state.shared;
        if frame.handed || shared.workers() == 1 {
            return None;
        }
        let served = || self.tables.frontends.get(&t.dst, t.dport(), t.protocol).is_some();
        let owner = match self.tables.snat.of(&t.dst, t.dport()) {
            Some(snat) if !served() => shared.blocks.owner(snat.index, t.dport()),
            _ if t.is_tcp() && !t.tcp_flags.opens() => shared.directory.owner(hash.0),
            _ => None,
        };
        owner.filter(|owner| *owner != self.state.id)
    }

    /// A TCP, UDP or SCTP packet that no flow here has.
    pub(super) fn without_flow(&mut self, frame: &mut Frame<'_>, t: &Transport, hash: FlowHash) -> Verdict {
        // What a link brings to all of its stations is for none of them alone (RFC 1122 section 3.3.6).
        if self.is_martian(frame, &t.src) || is_group(t.src_mac) || is_group(wire::destination(frame.room)) {
            return Verdict::Drop(DropReason::Martian);
        }
        if self.is_for_another(frame) {
            return Verdict::Drop(DropReason::NotOurs);
        }
        if let Some(loser) = self.loser(t, hash) {
            return self.late_answer(frame, t, &loser);
        }
        let plan = self.planned.and_then(|at| self.state.plans.take(at));
        let frontend = match plan {
            Some(plan) => plan.frontend,
            None => self.tables.frontends.get(&t.dst, t.dport(), t.protocol),
        };
        let service = frontend.and_then(|frontend| self.tables.service(frontend.service));
        if let (Some(frontend), Some(service)) = (frontend, service)
            && !frontend.check_source_ranges
            && self.may_open(t, service)
        {
            // Nothing but a claim stands before the flow, and that says whose it is.
            return self.claim(frame, t, hash, service, plan);
        }
        let ours = self.tables.addresses.get(&t.dst);
        if ours.is_some()
            && frontend.is_none()
            && let Some(snat) = self.tables.snat.of(&t.dst, t.dport()).copied()
        {
            return self.stray_reply(frame, t, &snat);
        }
        // The flow may be another worker's though nothing is served there any more, or (a reply in mode `preserve`) though
        // the address is the client's.
        if let Some(owner) = self.state.shared.directory.owner(hash.0).filter(|owner| *owner != self.state.id) {
            return elsewhere(frame, owner);
        }
        let Some(ours) = ours else {
            return Verdict::Drop(DropReason::NotOurs);
        };
        if let (Some(frontend), Some(service)) = (frontend, service) {
            return self.at_service(frame, t, hash, (frontend, service), plan);
        }
        match ours {
            OurAddress::Vip { .. } => self.reject(frame, t),
            OurAddress::HostOwned => Verdict::Pass,
            OurAddress::Snat { .. } => Verdict::Drop(DropReason::NoFlow),
        }
    }

    /// A packet to a SNAT port: the block's owner has the flow, or nobody has.
    fn stray_reply(&self, frame: &Frame<'_>, t: &Transport, snat: &SnatAddress) -> Verdict {
        match self.state.shared.blocks.owner(snat.index, t.dport()) {
            Some(owner) if owner != self.state.id => elsewhere(frame, owner),
            _ => Verdict::Drop(DropReason::NoFlow),
        }
    }

    /// Whether the frame is for one machine on the link, and not for this one: a switch that does not know where that is
    /// sends it to all, and an answer of ours would teach it wrong.
    pub(super) fn is_for_another(&self, frame: &Frame<'_>) -> bool {
        let to = wire::destination(frame.room);
        !is_group(to) && self.port_mac(frame.port).is_some_and(|ours| ours != to)
    }

    /// Whether this cannot be the source of a packet that comes to us: no machine's address (RFC 1812 section 5.3.7,
    /// RFC 4291 section 2.7), or one of ours (the land attack among them). The host itself sends from its own addresses, by
    /// the kernel port.
    pub(super) fn is_martian(&self, frame: &Frame<'_>, source: &Addr) -> bool {
        let no_machine = if source.is_v4() {
            let first = source.v4_octets()[0];
            first == 0 || first == 127 || first >= 224
        } else {
            let octets = source.octets();
            octets[0] == 0xff || (octets[..15] == [0; 15] && octets[15] <= 1)
        };
        no_machine
            || match self.tables.addresses.get(source) {
                None => false,
                Some(OurAddress::HostOwned) => self.tables.kernel.is_none_or(|kernel| kernel.port != frame.port),
                Some(_) => true,
            }
    }
}

/// For another worker, unless a worker gave it to us already.
pub(super) fn elsewhere(frame: &Frame<'_>, owner: WorkerId) -> Verdict {
    if frame.handed { Verdict::Drop(DropReason::OwnerGone) } else { Verdict::HandOff(owner) }
}
