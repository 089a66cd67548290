//! The whole path in memory, driven by a list of steps: packets of conversations, errors about them, damaged ones, noise,
//! time, and changes of what is served.
//!
//! What must hold of every frame: one verdict; a frame is handed over once; what is sent fits its room, leaves by a NIC's
//! own address, has right checksums if what came in had them, and goes to nobody but an endpoint or one who sent
//! something himself.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

use arbitrary::{Result, Unstructured};
use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder, SlicedPacket, icmpv4, icmpv6};
use lb::model::{EndpointState, Mode};
use lb::{PortId, Verdict, WorkerId, emit};
use wire::{MacAddr, TcpFlags};

use crate::packet::{Segment, Tcp};
use crate::rig::{INSIDE, INSIDE_MAC, KINDS, Kind, OUTSIDE, OUTSIDE_MAC, Outcome, ROOM, Rig, backend_mac};
use crate::soundness::checksums_hold;

const WORKERS: u8 = 2;
/// So few flows that the table gets full.
const FLOWS: usize = 64;
/// Steps of a run: inputs are short, and runs many.
const STEPS: usize = 64;

/// Runs the steps that the input tells.
///
/// # Panics
/// Where something does not hold.
pub fn run(input: &[u8]) {
    // An input that ends ends the run.
    let _ = Run::new().steps(&mut Unstructured::new(input));
}

/// The ends of a conversation, and what its endpoint got last.
struct Conversation {
    kind: Kind,
    sent: Segment,
    got: Option<Segment>,
}

struct Run {
    rig: Rig,
    conversations: Vec<Conversation>,
    /// Who sent something.
    senders: HashSet<IpAddr>,
    endpoints: HashSet<IpAddr>,
}

impl Run {
    fn new() -> Self {
        let endpoints = KINDS.iter().flat_map(|kind| (1..=3).map(|n| kind.backend(n).ip())).collect();
        let mut rig = Rig::with(usize::from(WORKERS), FLOWS);
        // As a gateway has it where nothing else is said.
        rig.config.tunnels = KINDS.iter().map(|kind| kind.snat().into()).collect();
        rig.rebuild();
        Self { rig, conversations: Vec::new(), senders: HashSet::new(), endpoints }
    }

    fn steps(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        for _ in 0..STEPS {
            if input.is_empty() {
                break;
            }
            match input.int_in_range(0..=9u8)? {
                0 | 1 => self.open(input)?,
                2 | 3 => self.client(input)?,
                4 | 5 => self.endpoint(input)?,
                6 => self.error(input)?,
                7 => self.noise(input)?,
                8 => self.wait(input)?,
                _ => self.change(input)?,
            }
        }
        Ok(())
    }

    /// A client's first packet, or another's by the same key.
    fn open(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let kind = *input.choose(&KINDS)?;
        let mut sent = kind.opening_of(input.int_in_range(1..=4)?, input.int_in_range(1..=6)?);
        sent.ttl = input.int_in_range(0..=64)?;
        let outcome = self.send(input, OUTSIDE, sent.bytes())?;
        let got = received(outcome.as_ref(), INSIDE);
        self.conversations.push(Conversation { kind, sent, got });
        Ok(())
    }

    /// A client goes on.
    fn client(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let Some(at) = self.pick(input)? else { return Ok(()) };
        let sent = alter(input, &self.conversations[at].sent)?;
        let outcome = self.send(input, OUTSIDE, sent.bytes())?;
        self.conversations[at].sent = sent;
        if let Some(got) = received(outcome.as_ref(), INSIDE) {
            self.conversations[at].got = Some(got);
        }
        Ok(())
    }

    /// An endpoint answers what it got.
    fn endpoint(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let Some(at) = self.pick(input)? else { return Ok(()) };
        let Some(got) = &self.conversations[at].got else { return Ok(()) };
        let reply = alter(input, &got.back())?;
        self.send(input, INSIDE, reply.bytes())?;
        Ok(())
    }

    /// A router says something about a packet of either direction.
    fn error(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let Some(at) = self.pick(input)? else { return Ok(()) };
        let conversation = &self.conversations[at];
        let outside: bool = input.arbitrary()?;
        let quoted = match (&conversation.got, outside) {
            (Some(got), false) => got.clone(),
            (Some(_), true) => conversation.sent.back(),
            (None, _) => conversation.sent.clone(),
        };
        let (port, mac) = if outside { (OUTSIDE, OUTSIDE_MAC) } else { (INSIDE, INSIDE_MAC) };
        let quote = quoted.bytes().split_off(14);
        let len = input.int_in_range(0..=quote.len())?;
        let frame = error_about(&quote[..len], conversation.kind, quoted.src.ip(), mac, input.arbitrary()?);
        self.send(input, port, frame)?;
        Ok(())
    }

    /// Any octets, behind the head of a frame or not.
    fn noise(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let kind = *input.choose(&KINDS)?;
        let mut frame = kind.opening_of(1, 1).bytes();
        frame.truncate(input.int_in_range(0..=frame.len())?);
        let len = input.int_in_range(0..=200)?;
        frame.extend_from_slice(input.bytes(len.min(input.len()))?);
        let port = *input.choose(&[OUTSIDE, INSIDE])?;
        self.send(input, port, frame)?;
        Ok(())
    }

    fn wait(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let milliseconds = *input.choose(&[1, 300, 1_500, 11_000, 61_000, 301_000, 7_500_000])?;
        self.rig.wait(Duration::from_millis(milliseconds));
        let now = self.rig.now;
        for worker in &mut self.rig.workers {
            while worker.housekeep(now, &self.rig.tables) {}
        }
        self.emissions();
        Ok(())
    }

    /// What is sent without a frame that came.
    fn emissions(&mut self) {
        for worker in 0..self.rig.workers.len() {
            // As a worker asks, a burst a round.
            for _ in 0..64 {
                let mut room = [0; ROOM];
                let (now, tables) = (self.rig.now, &self.rig.tables);
                let Some(emission) = emit(now, tables, &mut self.rig.workers[worker], &mut room) else { break };
                let sent = &room[..emission.len];
                assert_ne!(checksums_hold(sent), Some(false), "a checksum of ours is wrong");
                self.judge(&[], emission.port, sent);
            }
        }
    }

    /// Endpoints come, drain and go; modes change.
    fn change(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let mode = match input.arbitrary::<u8>()? & 7 {
            4 => Mode::DsrL2,
            6 => Mode::DsrIpip,
            7 => Mode::DsrGue,
            even if even & 1 == 0 => Mode::Nat,
            _ => Mode::Preserve,
        };
        let states = [EndpointState::Usable, EndpointState::Usable, EndpointState::Draining];
        let state = *input.choose(&states)?;
        let gone: Option<u8> = input.arbitrary()?;

        let desired = KINDS.map(|kind| {
            let backends: Vec<u8> = (1..=3).filter(|n| gone.is_none_or(|gone| gone % 4 != *n)).collect();
            let mut port = crate::rig::service_port(kind, "web", &backends);
            port.mode = mode;
            if mode.is_direct() {
                port.endpoints.iter_mut().for_each(|endpoint| endpoint.port = 80);
            }
            if let Some(first) = port.endpoints.first_mut() {
                first.state = state;
            }
            port.into()
        });
        self.rig.desired.service_ports = desired.to_vec().into();
        self.rig.rebuild();
        Ok(())
    }

    fn pick(&self, input: &mut Unstructured<'_>) -> Result<Option<usize>> {
        if self.conversations.is_empty() {
            return Ok(None);
        }
        input.choose_index(self.conversations.len()).map(Some)
    }

    /// Sends a frame, damaged if the input says so, and judges what becomes of it.
    fn send(&mut self, input: &mut Unstructured<'_>, port: PortId, mut frame: Vec<u8>) -> Result<Option<Outcome>> {
        for _ in 0..input.int_in_range(0..=7u8)?.saturating_sub(4) {
            let at = input.choose_index(frame.len().max(1))?;
            let value = input.arbitrary()?;
            if let Some(octet) = frame.get_mut(at) {
                *octet = value;
            }
        }
        if input.ratio(1, 16)? {
            frame.truncate(input.choose_index(frame.len().max(1))?);
        }
        if frame.len() > ROOM {
            return Ok(None);
        }
        if let Some((src, _)) = ends(&frame) {
            self.senders.insert(src);
        }
        let first = u8::from(input.arbitrary::<bool>()?);
        let mut outcome = self.rig.process(first, port, false, &frame);
        if let Verdict::HandOff(WorkerId(owner)) = outcome.verdict {
            assert!(owner < WORKERS && owner != first, "handed to {owner} by {first}");
            outcome = self.rig.process(owner, port, true, &outcome.frame);
            assert!(!matches!(outcome.verdict, Verdict::HandOff(_)), "a frame goes round");
        }
        if let Verdict::Tx(out) = outcome.verdict {
            self.judge(&frame, out, &outcome.frame);
        }
        Ok(Some(outcome))
    }

    /// What must hold of a frame that is sent.
    fn judge(&self, came: &[u8], out: PortId, sent: &[u8]) {
        assert!((14..=ROOM).contains(&sent.len()));
        assert_eq!(sent[6..12], if out == OUTSIDE { OUTSIDE_MAC } else { INSIDE_MAC }.0);
        let Some((_, dst)) = ends(sent) else { return };
        // Who answers past us has the frontend's address.
        let to_endpoint = || self.endpoints.iter().any(|endpoint| sent[..6] == backend_mac(*endpoint).0);
        let is_direct = KINDS.iter().any(|kind| kind.vip() == dst) && out == INSIDE && to_endpoint();
        assert!(is_direct || self.endpoints.contains(&dst) || self.senders.contains(&dst), "to a third party: {dst}");
        if checksums_hold(came) == Some(true) {
            assert_ne!(checksums_hold(sent), Some(false), "a checksum is wrong");
        }
    }
}

/// The segment that left by this NIC, if one did that can be read.
fn received(outcome: Option<&Outcome>, port: PortId) -> Option<Segment> {
    let outcome = outcome.filter(|outcome| outcome.verdict == Verdict::Tx(port))?;
    let packet = SlicedPacket::from_ethernet(&outcome.frame).ok()?;
    let whole = packet.net.is_some() && packet.transport.as_ref().is_some_and(is_segment);
    whole.then(|| Segment::read_unchecked(&outcome.frame))
}

fn is_segment(transport: &etherparse::TransportSlice<'_>) -> bool {
    matches!(transport, etherparse::TransportSlice::Tcp(_) | etherparse::TransportSlice::Udp(_))
}

/// Another packet of the same direction.
fn alter(input: &mut Unstructured<'_>, segment: &Segment) -> Result<Segment> {
    let flags = TcpFlags(input.arbitrary()?);
    let (seq, ack) = (input.arbitrary()?, input.arbitrary()?);
    let len = *input.choose(&[0, 1, 100, 1400, 1480])?;
    Ok(Segment { tcp: segment.tcp.map(|_| Tcp { flags, seq, ack }), payload: vec![7; len], ..segment.clone() })
}

fn error_about(quote: &[u8], kind: Kind, to: IpAddr, mac: MacAddr, mtu: u16) -> Vec<u8> {
    let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0xd, 1], mac.0);
    let mut frame = Vec::new();
    match to {
        IpAddr::V4(to) => {
            let header = if mtu == 0 {
                icmpv4::DestUnreachableHeader::Port
            } else {
                icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu }
            };
            let step = link.ipv4([198, 18, 0, 1], to.octets(), 60).icmpv4(Icmpv4Type::DestinationUnreachable(header));
            step.write(&mut frame, quote).expect("a vector takes it");
        }
        IpAddr::V6(to) => {
            let kind = if mtu == 0 {
                Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Port)
            } else {
                Icmpv6Type::PacketTooBig { mtu: u32::from(mtu) }
            };
            let router = [0x20, 1, 0xd, 0xb8, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
            link.ipv6(router, to.octets(), 60).icmpv6(kind).write(&mut frame, quote).expect("a vector takes it");
        }
    }
    debug_assert_eq!(kind.ipv6, to.is_ipv6());
    frame
}

/// The addresses of an IP packet.
fn ends(frame: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let packet = etherparse::LaxSlicedPacket::from_ethernet(frame).ok()?;
    match packet.net? {
        etherparse::LaxNetSlice::Ipv4(ip) => {
            Some((ip.header().source_addr().into(), ip.header().destination_addr().into()))
        }
        etherparse::LaxNetSlice::Ipv6(ip) => {
            Some((ip.header().source_addr().into(), ip.header().destination_addr().into()))
        }
        _ => None,
    }
}
