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
    /// A TCP or UDP packet that no flow here has.
    pub(super) fn without_flow(&mut self, frame: &mut Frame<'_>, t: &Transport, hash: FlowHash) -> Verdict {
        if self.is_martian(&t.src) || is_group(t.src_mac) {
            return Verdict::Drop(DropReason::Martian);
        }
        let ours = self.tables.addresses.get(&t.dst);
        if ours.is_some() && self.tables.frontends.get(&t.dst, t.dport, t.protocol).is_none() {
            let snat = self.tables.snat.get(&t.dst).copied();
            if let Some(snat) = snat.filter(|snat| (snat.first_port..=snat.last_port).contains(&t.dport.number())) {
                return self.stray_reply(frame, t, &snat);
            }
        }
        // The flow may be another worker's though nothing is served there any more, or (a reply in mode `preserve`) though
        // the address is the client's.
        if let Some(owner) = self.state.shared.directory.owner(hash.0).filter(|owner| *owner != self.state.id) {
            return elsewhere(frame, owner);
        }
        let Some(ours) = ours else {
            return Verdict::Drop(DropReason::NotOurs);
        };
        let frontend = self.tables.frontends.get(&t.dst, t.dport, t.protocol);
        if let Some((frontend, service)) = frontend.and_then(|f| Some((f, self.tables.service(f.service)?))) {
            return self.at_service(frame, t, hash, frontend.check_source_ranges, service);
        }
        match ours {
            OurAddress::Vip { .. } => self.reject(frame, t),
            OurAddress::HostOwned => Verdict::Pass,
            OurAddress::Snat { .. } => Verdict::Drop(DropReason::NoFlow),
        }
    }

    /// A packet to a SNAT port: the block's owner has the flow, or nobody has.
    fn stray_reply(&self, frame: &Frame<'_>, t: &Transport, snat: &SnatAddress) -> Verdict {
        match self.state.shared.blocks.owner(snat.index, t.dport) {
            Some(owner) if owner != self.state.id => elsewhere(frame, owner),
            _ => Verdict::Drop(DropReason::NoFlow),
        }
    }

    /// Whether this cannot be the source of a packet that comes to us: no machine's address (RFC 1812 section 5.3.7,
    /// RFC 4291 section 2.7), or one of ours (the land attack among them).
    pub(super) fn is_martian(&self, source: &Addr) -> bool {
        let no_machine = if source.is_v4() {
            let first = source.v4_octets()[0];
            first == 0 || first == 127 || first >= 224
        } else {
            let octets = source.octets();
            octets[0] == 0xff || (octets[..15] == [0; 15] && octets[15] <= 1)
        };
        no_machine || self.tables.addresses.get(source).is_some()
    }
}

/// For another worker, unless a worker gave it to us already.
pub(super) fn elsewhere(frame: &Frame<'_>, owner: WorkerId) -> Verdict {
    if frame.handed { Verdict::Drop(DropReason::OwnerGone) } else { Verdict::HandOff(owner) }
}
