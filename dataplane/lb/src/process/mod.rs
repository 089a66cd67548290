//! A burst's journey: parse, prefetch, look up, decide, rewrite in place.
//!
//! Every frame gets one verdict. Nothing here allocates, locks, logs or reads a clock; what is shared across workers is
//! touched only where a flow opens or closes, or where a packet has no flow here.
//!
//! - `steady`: packets of established flows that this worker owns, which most are;
//! - `established`: any packet of a flow that this worker owns;
//! - `classify`: packets without one — whose are they?
//! - `plan`: what packets that may open flows will need, asked for ahead;
//! - `open`: a packet that opens a flow;
//! - `local`: ARP, neighbour discovery, ping;
//! - `reject`: resets and ICMP errors of our own, rate-limited.

mod classify;
mod established;
mod limiter;
mod local;
mod open;
mod plan;
mod reject;
mod steady;

use wire::{ChecksumMode, MacAddr, Packet, ParseError, Plain, Transport};

pub use limiter::Limiter;
pub(crate) use plan::Plans;

use crate::flow::{FlowHash, FlowKey, Guess};
use crate::id::PortId;
use crate::state::WorkerState;
use crate::tables::{BackendRow, Link, Tables};
use crate::time::{Now, Tick};
use crate::verdict::{DropReason, Frame, Verdict};

/// Frames that are looked up together; longer bursts are taken in parts.
pub const BURST: usize = 64;
/// How many frames ahead the headers are asked for.
const HEADER_AHEAD: usize = 8;

/// Decides about every frame of a burst, in order; frames that are sent or handed over are rewritten in place.
///
/// # Panics
/// If there are fewer verdicts than frames, or a frame's `len` is beyond its room.
pub fn process(burst: &mut [Frame<'_>], now: Now, tables: &Tables, state: &mut WorkerState, verdicts: &mut [Verdict]) {
    let verdicts = &mut verdicts[..burst.len()];
    for (frames, verdicts) in burst.chunks_mut(BURST).zip(verdicts.chunks_mut(BURST)) {
        let (looks, missing) = look(frames, state);
        // Plans are made by these tables, for this burst.
        state.plans.forget();
        if missing != 0 {
            plan::plan(frames, missing, tables, state);
        }
        let offloads = tables.ports.iter().any(|port| port.virtual_device);
        let (backends, links) = (tables.backends.as_slice(), tables.links.as_slice());
        let mut turn = Turn { now, tick: now.tick(), tables, backends, links, offloads, state };
        for ((frame, (plain, guess)), verdict) in frames.iter_mut().zip(&looks).zip(verdicts) {
            *verdict = turn.decide(frame, plain.as_ref(), *guess);
        }
    }
}

/// What the first look at a frame found: what nearly all frames are, and where its flow may be.
type Look = (Option<Plain>, Guess);

/// Looks at all frames, and asks for the memory that they need: index lines first, then entries. With a bit
/// for each plain one that has no flow at first sight.
#[inline]
fn look(frames: &[Frame<'_>], state: &WorkerState) -> ([Look; BURST], u64) {
    let mut looks = [(None, Guess::NONE); BURST];
    let mut hashes = [FlowHash(0); BURST];
    for frame in frames.iter().take(HEADER_AHEAD) {
        arena::prefetch_start(frame.room);
    }
    for (i, ((frame, look), hash)) in frames.iter().zip(&mut looks).zip(&mut hashes).enumerate() {
        if let Some(ahead) = frames.get(i + HEADER_AHEAD) {
            arena::prefetch_start(ahead.room);
        }
        let bytes = &frame.room[..frame.len];
        if let Some(plain) = Plain::parse(bytes) {
            *hash = state.flows.prefetch(&plain, bytes);
            look.0 = Some(plain);
        }
    }
    let mut missing = 0;
    for (i, (look, hash)) in looks.iter_mut().zip(hashes).take(frames.len()).enumerate() {
        if let Some(plain) = &look.0 {
            look.1 = state.flows.guess(hash, plain.ipv6);
            missing |= u64::from(look.1.is_none()) << i;
        }
    }
    (looks, missing)
}

/// What a packet is looked up by.
#[inline]
fn key(t: &Transport) -> FlowKey {
    FlowKey { src: t.src, dst: t.dst, ports: t.ports, protocol: t.protocol }
}

/// What the frames of a burst are decided with.
struct Turn<'a> {
    now: Now,
    tick: Tick,
    tables: &'a Tables,
    /// [`Tables::backends`] and [`Tables::links`].
    backends: &'a [BackendRow],
    links: &'a [Link],
    /// Whether there is a NIC whose frames may have partial checksums.
    offloads: bool,
    state: &'a mut WorkerState,
}

impl Turn<'_> {
    #[inline]
    fn decide(&mut self, frame: &mut Frame<'_>, plain: Option<&Plain>, guess: Guess) -> Verdict {
        if frame.handed {
            self.state.counters.handed_decided += 1;
        }
        match plain.and_then(|plain| self.steady(frame, plain, guess)) {
            Some(verdict) => verdict,
            None => self.general(frame),
        }
    }

    /// The way for every frame. Out of line, so that the loop of those that need it not has the registers.
    #[inline(never)]
    fn general(&mut self, frame: &mut Frame<'_>) -> Verdict {
        match wire::parse(&frame.room[..frame.len]) {
            Ok(Packet::Transport(t)) => self.transport(frame, &t),
            Ok(packet) => self.not_a_flow(frame, &packet),
            Err(error) => Verdict::Drop(match error {
                ParseError::Truncated => DropReason::Truncated,
                ParseError::BadHeader => DropReason::BadHeader,
                ParseError::BadChecksum => DropReason::BadChecksum,
                ParseError::ExtensionHeaders => DropReason::ExtensionHeaders,
                ParseError::UnknownEtherType => DropReason::UnknownProtocol,
            }),
        }
    }

    fn transport(&mut self, frame: &mut Frame<'_>, t: &Transport) -> Verdict {
        let key = key(t);
        let hash = self.state.flows.hash(&key);
        if let Some((flow, direction)) = self.state.flows.lookup(hash, &key)
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
