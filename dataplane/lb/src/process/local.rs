//! What is neither TCP nor UDP, or a part of it: ARP and neighbour discovery for addresses of ours, ping, and what is not handled.
//!
//! An address of the host is the kernel's: never answered here, passed on.

use wire::{Addr, ArpOp, ArpPacket, Fragment, Ip, MacAddr, NeighborSolicitation, Packet, reply};

use super::Turn;
use crate::tables::OurAddress;
use crate::verdict::{DropReason, Frame, Verdict};

/// An ARP or neighbour discovery message that needs no answer.
const NO_ANSWER: Verdict = Verdict::Drop(DropReason::NeighborDiscovery);

impl Turn<'_> {
    /// Everything but TCP and UDP.
    pub(super) fn not_a_flow(&mut self, frame: &mut Frame<'_>, packet: &Packet) -> Verdict {
        if self.is_for_another(frame) {
            return Verdict::Drop(DropReason::NotOurs);
        }
        match packet {
            Packet::Arp(arp) => self.arp(frame, arp),
            Packet::NeighborSolicitation(asked) => self.solicitation(frame, asked),
            Packet::NeighborAdvertisement(said) => {
                self.note_conflict(&said.target, said.target_ll.unwrap_or(said.src_mac));
                self.neighbor_answer(&said.target)
            }
            Packet::EchoRequest(ip) => self.echo(frame, ip),
            Packet::IcmpError(ip) => self.icmp_error(frame, ip),
            Packet::IcmpOther(ip) => self.unhandled(ip, DropReason::Icmp),
            Packet::OtherProtocol(ip) => self.unhandled(ip, DropReason::UnknownProtocol),
            Packet::Fragment(part) => self.fragment(frame, part),
            // The caller's.
            Packet::Transport(_) => Verdict::Drop(DropReason::UnknownProtocol),
        }
    }

    fn arp(&mut self, frame: &mut Frame<'_>, arp: &ArpPacket) -> Verdict {
        self.note_conflict(&arp.sender_ip, arp.sender_mac);
        let gratuitous = arp.sender_ip == arp.target_ip;
        if arp.op == ArpOp::Reply || gratuitous || !self.answers_for(&arp.target_ip) {
            return self.neighbor_answer(&arp.target_ip);
        }
        let answer = self.port_mac(frame.port).and_then(|mac| reply::arp_reply(frame.room, arp, mac));
        self.answered(frame, answer)
    }

    fn solicitation(&mut self, frame: &mut Frame<'_>, asked: &NeighborSolicitation) -> Verdict {
        if !self.answers_for(&asked.target) {
            return self.neighbor_answer(&asked.target);
        }
        let answer = self.port_mac(frame.port).and_then(|mac| reply::neighbor_advertisement(frame.room, asked, mac));
        self.answered(frame, answer)
    }

    fn answered(&mut self, frame: &mut Frame<'_>, len: Option<usize>) -> Verdict {
        let Some(len) = len else { return NO_ANSWER };
        self.state.counters.neighbor_replies_sent += 1;
        frame.len = len;
        Verdict::Tx(frame.port)
    }

    /// What is not ours to answer.
    fn neighbor_answer(&self, about: &Addr) -> Verdict {
        match self.tables.addresses.get(about) {
            Some(OurAddress::HostOwned | OurAddress::Snat { dedicated: false }) => Verdict::Pass,
            _ => NO_ANSWER,
        }
    }

    /// Whether ARP and neighbour discovery for this address are answered here.
    fn answers_for(&self, address: &Addr) -> bool {
        let ours = self.tables.addresses.get(address);
        matches!(ours, Some(OurAddress::Vip { answers: true, .. } | OurAddress::Snat { dedicated: true }))
    }

    /// Counts another machine that says it has an address of ours (RFC 5227 section 2.4, RFC 4862 section 5.4.4).
    fn note_conflict(&mut self, address: &Addr, mac: MacAddr) {
        if self.answers_for(address) && !self.tables.ports.iter().any(|port| port.mac == mac) {
            self.state.counters.address_conflicts += 1;
        }
    }

    fn echo(&mut self, frame: &mut Frame<'_>, ip: &Ip) -> Verdict {
        if !self.is_pinged(ip) {
            return self.unhandled(ip, DropReason::Icmp);
        }
        if self.is_martian(frame, &ip.src) {
            return Verdict::Drop(DropReason::Martian);
        }
        // Not rate-limited: a reply is as long as its request.
        let Some(len) = reply::echo_reply(frame.room, ip) else {
            return Verdict::Drop(DropReason::Martian);
        };
        self.state.counters.echo_replies_sent += 1;
        self.answer(frame, len)
    }

    /// A part of an echo request.
    pub(super) fn echo_part(&mut self, frame: &mut Frame<'_>, part: &Fragment) -> Verdict {
        if !self.is_pinged(&part.ip) {
            return self.unhandled(&part.ip, DropReason::Icmp);
        }
        let Some(len) = reply::echo_reply_part(frame.room, part) else {
            return Verdict::Drop(DropReason::Martian);
        };
        self.state.counters.echo_replies_sent += u64::from(part.offset == 0);
        self.answer(frame, len)
    }

    /// Whether echo requests to a packet's destination are answered here.
    fn is_pinged(&self, ip: &Ip) -> bool {
        matches!(self.tables.addresses.get(&ip.dst), Some(OurAddress::Vip { echo: true, .. }))
    }

    /// The kernel's, if the address is the host's; else dropped for `reason`.
    pub(super) fn unhandled(&self, ip: &Ip, reason: DropReason) -> Verdict {
        match self.tables.addresses.get(&ip.dst) {
            Some(OurAddress::HostOwned) => Verdict::Pass,
            Some(_) => Verdict::Drop(reason),
            None => Verdict::Drop(DropReason::NotOurs),
        }
    }
}
