//! A burst's journey: parse, prefetch, look up, decide, rewrite in place.
//!
//! Every frame gets one verdict. Nothing here allocates, locks, logs or reads a clock; what is shared across workers is
//! touched only where a flow opens or closes, or where a packet has no flow here.
//!
//! - `established`: packets of flows that this worker owns;
//! - `classify`: packets without one — whose are they?
//! - `open`: a packet that opens a flow;
//! - `local`: ARP, neighbour discovery, ping;
//! - `reject`: resets and ICMP errors of our own, rate-limited.

mod classify;
mod established;
mod limiter;
mod local;
mod open;
mod reject;

use core::mem;

use wire::{ChecksumMode, MacAddr, Packet, ParseError, Transport};

pub use limiter::Limiter;

use crate::flow::{FlowHash, FlowKey};
use crate::id::PortId;
use crate::state::WorkerState;
use crate::tables::Tables;
use crate::time::{Now, Tick};
use crate::verdict::{DropReason, Frame, Verdict};

/// Frames that are looked up together; longer bursts are taken in parts.
pub const BURST: usize = 64;
/// How many frames ahead the headers are asked for.
const HEADER_AHEAD: usize = 4;

/// A frame of the burst after the first look.
pub(crate) struct Parsed {
    packet: Result<Packet, ParseError>,
    /// The key's hash, for [`Packet::Transport`].
    hash: FlowHash,
}

/// Decides about every frame of a burst, in order; frames that are sent or handed over are rewritten in place.
///
/// # Panics
/// If there are fewer verdicts than frames, or a frame's `len` is beyond its room.
pub fn process(burst: &mut [Frame<'_>], now: Now, tables: &Tables, state: &mut WorkerState, verdicts: &mut [Verdict]) {
    let verdicts = &mut verdicts[..burst.len()];
    let mut parsed = mem::take(&mut state.parsed);
    for (frames, verdicts) in burst.chunks_mut(BURST).zip(verdicts.chunks_mut(BURST)) {
        parse(frames, state, &mut parsed);
        let mut turn = Turn { now, tick: now.tick(), tables, state };
        for ((frame, parsed), verdict) in frames.iter_mut().zip(&parsed).zip(verdicts) {
            *verdict = turn.decide(frame, parsed);
        }
    }
    state.parsed = parsed;
}

/// Parses all frames and asks for the memory that their lookups will touch: index lines first, then entries.
fn parse(frames: &mut [Frame<'_>], state: &WorkerState, parsed: &mut Vec<Parsed>) {
    parsed.clear();
    for i in 0..frames.len() {
        if let Some(first) = frames.get(i + HEADER_AHEAD).and_then(|ahead| ahead.room.first()) {
            arena::prefetch(first);
        }
        let packet = wire::parse(&frames[i].room[..frames[i].len]);
        let hash = match &packet {
            Ok(Packet::Transport(t)) => state.flows.hash(&key(t)),
            _ => FlowHash(0),
        };
        state.flows.prefetch_bucket(hash);
        parsed.push(Parsed { packet, hash });
    }
    for parsed in parsed.iter().filter(|parsed| matches!(parsed.packet, Ok(Packet::Transport(_)))) {
        state.flows.prefetch_entry(parsed.hash);
    }
}

/// What a packet is looked up by.
#[inline]
fn key(t: &Transport) -> FlowKey {
    FlowKey { src: t.src, dst: t.dst, sport: t.sport, dport: t.dport, protocol: t.protocol }
}

/// What the frames of a burst are decided with.
struct Turn<'a> {
    now: Now,
    tick: Tick,
    tables: &'a Tables,
    state: &'a mut WorkerState,
}

impl Turn<'_> {
    #[inline]
    fn decide(&mut self, frame: &mut Frame<'_>, parsed: &Parsed) -> Verdict {
        if frame.handed {
            self.state.counters.handed_decided += 1;
        }
        match &parsed.packet {
            Ok(Packet::Transport(t)) => self.transport(frame, t, parsed.hash),
            Ok(packet) => self.not_a_flow(frame, packet),
            Err(error) => Verdict::Drop(match error {
                ParseError::Truncated => DropReason::Truncated,
                ParseError::BadHeader => DropReason::BadHeader,
                ParseError::BadChecksum => DropReason::BadChecksum,
                ParseError::ExtensionHeaders => DropReason::ExtensionHeaders,
                ParseError::UnknownEtherType => DropReason::UnknownProtocol,
            }),
        }
    }

    #[inline]
    fn transport(&mut self, frame: &mut Frame<'_>, t: &Transport, hash: FlowHash) -> Verdict {
        if let Some((flow, direction)) = self.state.flows.lookup(hash, &key(t))
            && let Some(verdict) = self.established(frame, t, flow, direction)
        {
            return verdict;
        }
        self.without_flow(frame, t, hash)
    }

    /// The link-layer address of a NIC of ours.
    fn port_mac(&self, port: PortId) -> Option<MacAddr> {
        self.tables.ports.get(usize::from(port.0)).map(|row| row.mac)
    }

    /// How the transport checksums of frames from this NIC are carried over.
    #[inline]
    fn checksum_mode(&self, port: PortId) -> ChecksumMode {
        match self.tables.ports.get(usize::from(port.0)) {
            Some(row) if row.virtual_device => ChecksumMode::Virtual,
            _ => ChecksumMode::Incremental,
        }
    }
}
