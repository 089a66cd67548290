//! A burst's journey: parse, prefetch, look up, decide, rewrite in place.
//!
//! Every frame gets one verdict. Nothing here allocates, locks, logs or reads a clock; what is shared across workers is
//! touched only where a flow opens or closes, or where a packet has no flow here.
//!
//! - `steady`: packets of established flows that this worker owns, which most are;
//! - `established`: any packet of a flow that this worker owns;
//! - `errors`: ICMP errors about packets of flows;
//! - `classify`: packets without one — whose are they?
//! - `overload`: which of these are dropped while there is too much to do;
//! - `plan`: what packets that may open flows will need, asked for ahead;
//! - `open`: a packet that opens a flow;
//! - `retry`: connections that open go on to another endpoint;
//! - `association`: what is SCTP's own;
//! - `emit`: packets that are sent without a frame to answer;
//! - `fragments`: parts of datagrams, and packets that are cut;
//! - `local`: ARP, neighbour discovery, ping;
//! - `reject`: resets and ICMP errors of our own, rate-limited.

mod association;
mod classify;
mod emit;
mod errors;
mod established;
mod fragments;
mod limiter;
mod local;
mod open;
mod overload;
mod plan;
mod reject;
mod retry;
mod steady;

use core::cell::Cell;

use arrayvec::ArrayVec;
use wire::{Addr, ChecksumMode, MacAddr, Packet, Plain, Port, Priorities, Tags, Transport};

pub use emit::{Emission, emit};
pub use limiter::Limiter;
pub use overload::{Admission, DATAGRAM_PRICE, PRICE};
pub(crate) use plan::Plans;

use crate::flow::{FlowHash, FlowKey, Guess};
use crate::id::{BackendId, PortId};
use crate::shared::Shared;
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
        if state.admission.sheds_syns(now) {
            verdicts.fill(Verdict::Drop(DropReason::Overload));
            process_burst::<true>(frames, now, tables, state, verdicts);
        } else {
            process_burst::<false>(frames, now, tables, state, verdicts);
        }
    }
}

/// A burst; where this is `SHEDDING`, no SYN is looked at further, and their verdicts stay as they are. Each way is a
/// function of its own, so that one has nothing to do for the other.
#[inline(never)]
fn process_burst<const SHEDDING: bool>(
    frames: &mut [Frame<'_>],
    now: Now,
    tables: &Tables,
    state: &mut WorkerState,
    verdicts: &mut [Verdict],
) {
    let mut looks = ArrayVec::new();
    let missing = look::<SHEDDING>(frames, &mut looks, state);
    let (admission, shared, flows) = (&mut state.admission, &state.shared, &state.flows);
    // Nearly all flows are found at first sight, but not all.
    let is_known = |frame: &Frame<'_>, look: &Look, plain: &Plain| {
        let here = |t: &Transport| flows.lookup(look.hash, &key(t)).is_some();
        elsewhere(frame, look, plain, tables, shared) || transport_of(frame, plain).as_ref().is_some_and(here)
    };
    let missing = admission.admit(frames, &mut looks, missing, is_known);
    // Plans are made by these tables, for this burst.
    state.plans.forget();
    if missing != 0 {
        plan::plan(frames, &looks, now.tick(), tables, state);
    }
    let mut turn = Turn::new(now, tables, state);
    if SHEDDING {
        for look in &looks {
            let at = usize::from(look.at);
            verdicts[at] = turn.decide(&mut frames[at], look);
        }
    } else {
        for ((frame, look), verdict) in frames.iter_mut().zip(&looks).zip(verdicts) {
            *verdict = turn.decide(frame, look);
        }
    }
}

/// What the first look at a frame found.
#[derive(Clone, Copy)]
struct Look {
    /// Which frame of the burst it is.
    at: u8,
    /// What nearly all frames are.
    plain: Option<Plain>,
    /// Of a plain one's key.
    hash: FlowHash,
    /// Where its flow may be.
    guess: Guess,
}

impl Look {
    /// At one that is not plain.
    const fn other(at: u8) -> Self {
        Self { at, plain: None, hash: FlowHash(0), guess: Guess::NONE }
    }
}

/// Looks of a burst, a bit each.
type Places = u64;
const _: () = assert!(BURST <= Places::BITS as usize);

/// Looks at all frames (but for plain SYNs where this is `SHEDDING`), and asks for the memory that they need: index lines
/// first, then entries. Gives the plain ones that have no flow at first sight.
#[inline]
fn look<const SHEDDING: bool>(frames: &[Frame<'_>], looks: &mut ArrayVec<Look, BURST>, state: &WorkerState) -> Places {
    for frame in frames.iter().take(HEADER_AHEAD) {
        arena::prefetch_start(frame.room);
    }
    let first_look = |(i, frame): (usize, &Frame<'_>)| {
        if let Some(ahead) = frames.get(i + HEADER_AHEAD) {
            arena::prefetch_start(ahead.room);
        }
        let Some((head, plain)) = frame.head().and_then(|head| Some((head, Plain::parse(head, frame.len)?))) else {
            return Some(Look::other(i as u8));
        };
        // What another worker handed over is its flow's owner's to decide, whatever it is.
        if SHEDDING && plain.tcp_flags.opens() && !frame.handed {
            return None;
        }
        let hash = state.flows.prefetch(&plain, head);
        Some(Look { at: i as u8, hash, plain: Some(plain), guess: Guess::NONE })
    };
    looks.extend(frames.iter().enumerate().filter_map(first_look));
    let mut missing = 0;
    for (i, look) in looks.iter_mut().enumerate() {
        if let Some(plain) = &look.plain {
            match state.flows.guess(look.hash, plain.kind.ipv6()) {
                Some(guess) => look.guess = guess,
                None => missing |= 1 << i,
            }
        }
    }
    missing
}

/// A plain frame as the whole parse gives it.
#[inline]
fn transport_of(frame: &Frame<'_>, plain: &Plain) -> Option<Transport> {
    frame.head().map(|head| plain.transport(head))
}

/// Whether a datagram without a flow here is of one that another worker may have: the directory says so, or it comes to a
/// SNAT port.
#[cold]
fn elsewhere(frame: &Frame<'_>, look: &Look, plain: &Plain, tables: &Tables, shared: &Shared) -> bool {
    shared.workers() > 1
        && (shared.directory.owner(look.hash.0).is_some()
            || transport_of(frame, plain).is_some_and(|t| tables.snat.of(&t.dst, t.dport()).is_some()))
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
    /// The place in the burst of the packet at hand, if it is one that may be planned for.
    planned: Option<u8>,
    /// The closed flow that the packet at hand reopens.
    former: Option<Former>,
    /// The endpoint that left the packet at hand unanswered before.
    silent: Option<BackendId>,
    /// The first part of a datagram that is being decided.
    first: Option<fragments::FirstPart>,
    /// VLAN tags that the frame at hand came with.
    tags: Tags,
    /// What those say besides.
    priorities: Priorities,
    /// The tags that it leaves with: of answers, those of what they answer.
    out: Cell<Tags>,
}

/// What a flow had that a SYN of the same client opens again.
#[derive(Clone, Copy)]
struct Former {
    /// From the client.
    key: FlowKey,
    backend: (Addr, Port),
    snat: (Addr, Port),
}

impl<'a> Turn<'a> {
    #[inline]
    fn new(now: Now, tables: &'a Tables, state: &'a mut WorkerState) -> Self {
        let offloads = tables.ports.iter().any(|port| port.virtual_device);
        let (backends, links) = (tables.backends.as_slice(), tables.links.as_slice());
        Self {
            now,
            tick: now.tick(),
            tables,
            backends,
            links,
            offloads,
            state,
            planned: None,
            former: None,
            silent: None,
            first: None,
            tags: Tags::NONE,
            priorities: Priorities::NONE,
            out: Cell::new(Tags::NONE),
        }
    }
}

impl Turn<'_> {
    #[inline(always)] // The body of two loops: called, it and what it calls take an eighth more instructions.
    fn decide(&mut self, frame: &mut Frame<'_>, look: &Look) -> Verdict {
        if frame.handed {
            self.state.counters.handed_decided += 1;
        }
        if let Some(plain) = &look.plain
            && let Some(verdict) = self.steady(frame, plain, look.guess)
        {
            verdict
        } else if look.guess.is_refused() {
            Verdict::Drop(DropReason::Overload)
        } else {
            self.general(frame, look)
        }
    }

    /// The way for every frame. Out of line, so that the loop of those that need it not has the registers.
    #[inline(never)]
    fn general(&mut self, frame: &mut Frame<'_>, look: &Look) -> Verdict {
        self.planned = look.plain.map(|_| look.at);
        self.take_tags_off(frame, look.plain.is_some());
        let verdict = match self.untagged(frame, look) {
            Verdict::Pass => self.to_kernel(frame),
            verdict => verdict,
        };
        self.put_tags_on(frame, verdict)
    }

    /// Has a frame leave by the kernel port, where there is one and it is an IP packet to this machine.
    #[cold]
    fn to_kernel(&self, frame: &mut Frame<'_>) -> Verdict {
        let row =
            self.tables.kernel.and_then(|kernel| Some((kernel, self.tables.ports.get(usize::from(kernel.port.0))?)));
        let packet = frame.room.get(12..frame.len);
        let (Some((kernel, row)), Some([high, low, packet @ ..])) = (row, packet) else { return Verdict::Pass };
        let is_ip = matches!([*high, *low], [0x08, 0x00] | [0x86, 0xdd]);
        // Neighbours are asked about on their own links.
        if !is_ip || established::is_group(wire::destination(frame.room)) {
            return Verdict::Pass;
        }
        if packet.len() > usize::from(row.mtu) {
            return Verdict::Drop(DropReason::TooBig);
        }
        // By the source the kernel tells it from packets of flows, whose answers it is to bring back.
        wire::set_ethernet(frame.room, kernel.peer, kernel.peer);
        self.out.set(Tags::NONE);
        Verdict::Tx(kernel.port)
    }

    /// Takes the VLAN tags off a frame, and remembers them; `plain`: it has none.
    #[inline]
    fn take_tags_off(&mut self, frame: &mut Frame<'_>, plain: bool) {
        (self.tags, self.priorities) = (Tags::NONE, Priorities::NONE);
        if !plain && Tags::are_in(&frame.room[..frame.len]) {
            (self.tags, self.priorities, frame.len) = Tags::take_off(&mut frame.room[..frame.len]);
        }
        self.out.set(self.tags);
    }

    /// Puts the tags on that a frame leaves with, or came with where another is to decide about it.
    #[inline]
    fn put_tags_on(&self, frame: &mut Frame<'_>, verdict: Verdict) -> Verdict {
        let tags = match verdict {
            Verdict::Tx(_) => self.out.get(),
            Verdict::HandOff(_) | Verdict::HandOffPart(_) | Verdict::Pass => self.tags,
            Verdict::Keep | Verdict::Drop(_) => return verdict,
        };
        if tags.is_none() {
            return verdict;
        }
        match tags.put_on(self.priorities_with(tags), frame.room, frame.len) {
            Some(len) => {
                frame.len = len;
                verdict
            }
            None => Verdict::Drop(DropReason::NoRoom),
        }
    }

    /// What tags say besides their VLANs: a frame that leaves with those that it came with keeps that.
    fn priorities_with(&self, tags: Tags) -> Priorities {
        if tags == self.tags { self.priorities } else { Priorities::NONE }
    }

    /// A frame without tags, or with the tags taken off.
    fn untagged(&mut self, frame: &mut Frame<'_>, look: &Look) -> Verdict {
        if let Some(t) = look.plain.as_ref().and_then(|plain| transport_of(frame, plain)) {
            if look.guess.is_none()
                && let Some(owner) = self.foreign(frame, &t, look.hash)
            {
                return Verdict::HandOff(owner);
            }
            return self.transport(frame, &t, look.hash);
        }
        match wire::parse(&frame.room[..frame.len]) {
            Ok(Packet::Transport(t)) => {
                let hash = self.state.flows.hash(&key(&t));
                self.transport(frame, &t, hash)
            }
            Ok(packet) => self.not_a_flow(frame, &packet),
            Err(error) => Verdict::Drop(error.into()),
        }
    }

    fn transport(&mut self, frame: &mut Frame<'_>, t: &Transport, hash: FlowHash) -> Verdict {
        if let Some((flow, direction)) = self.state.flows.lookup(hash, &key(t))
            && let Some(verdict) = self.established(frame, t, flow, direction)
        {
            return verdict;
        }
        let verdict = self.without_flow(frame, t, hash);
        self.silent = None;
        verdict
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
